"""Layer: one image at one resolution, put together from pages. Knows which page holds a plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bioio_tk.backends._tiff_segments import Page, Recipe
from bioio_tk.core.spec import Level
from bioio_tk.errors import DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.core.region import Slices5
    from bioio_tk.core.spec import Address

Steps: TypeAlias = tuple[tuple[int, int], ...]
"""How a position along an axis adds to a page's number: (size, stride) a part, slowest first."""
Find: TypeAlias = Callable[[int], Page]


@dataclass(slots=True)
class Layer:
    """One image at one resolution.

    Attributes
    ----------
    recipe : Recipe
        Of its first page; the others show the same size and pixel type.
    find : callable
        Gives the page with a number.
    z, c, t : Steps
        From a position to the number of a page; `c` counts channels, not their samples.
    first : int
        Number of the first page.
    """

    recipe: Recipe
    find: Find
    z: Steps
    c: Steps
    t: Steps
    first: int = 0

    @property
    def level(self) -> Level:
        """Size of the image and of its virtual tiles."""
        recipe = self.recipe
        rows, columns, deep = recipe.tile
        pages = count(self.z)
        if pages > 1 and recipe.depth % deep:
            deep = 1
        shape = (
            recipe.length,
            recipe.width,
            pages * recipe.depth,
            count(self.c) * recipe.planes * recipe.samples,
            count(self.t),
        )
        return Level(shape, (rows, columns, deep, recipe.samples, 1))

    def page_of(self, z: int, c: int, t: int) -> int:
        """Return the number of the page with a plane, all counted in pages."""
        return self.first + number(self.z, z) + number(self.c, c) + number(self.t, t)

    def fill(self, at: Address, part: Slices5, out: NDArray[Any], level: Level) -> None:
        """Fill `out` (y, x, z, c, t) with a part of a tile."""
        recipe = self.recipe
        ky, kx, kz, kc, kt = at.key
        rows, columns, deep, _, _ = level.tile
        zp, zd = divmod(kz * deep, recipe.depth)
        group, plane = divmod(kc, recipe.planes)
        page = self.find(self.page_of(zp, group, kt))
        corner = (ky * rows, kx * columns, zd)
        want = part[:4]
        if page.recipe is recipe:
            recipe.fill(page, corner, plane, want, out[..., 0])
        else:
            self._fill_odd(page, corner, plane, want, out[..., 0])

    def fill_planes(self, planes: list[tuple[int, int, int]], out: NDArray[Any]) -> bool:
        """Fill `out` (n, y, x) with whole raw planes, neighbours in the file at once.

        Returns False, and leaves `out` in any state, where they are not all stored so plainly.
        """
        recipe = self.recipe
        if not recipe.as_in_memory or recipe.planes * recipe.samples * recipe.depth > 1:
            return False
        size = recipe.nbytes
        runs: list[tuple[Page, int, int, int]] = []  # page, offset, first plane, planes
        for n, (z, c, t) in enumerate(planes):
            page = self.find(self.page_of(z, c, t))
            if page.recipe is not recipe or not page.joined:
                return False
            offset = int(page.offsets[0])
            if runs:
                last, start, first, total = runs[-1]
                if last.file is page.file and offset == start + total * size:
                    runs[-1] = (last, start, first, total + 1)
                    continue
            runs.append((page, offset, n, 1))
        for page, offset, first, total in runs:
            buffer = out[first : first + total].reshape(-1).view(np.uint8)
            recipe.read_exactly(page, 0, offset, buffer)
        return True

    def _fill_odd(
        self,
        page: Page,
        corner: tuple[int, int, int],
        plane: int,
        part: tuple[slice, slice, slice, slice],
        out: NDArray[Any],
    ) -> None:
        """Fill from a page that is stored in another way than the first one."""
        mine, its = self.recipe, page.recipe
        same = ("dtype", "planes", "depth", "length", "width", "samples")
        if any(getattr(mine, name) != getattr(its, name) for name in same):
            raise UnsupportedError(
                f"{str(page.file.path)!r} mixes pages of different size or pixel type in one "
                f"image: {mine.width} x {mine.length} {mine.dtype}, and "
                f"{its.width} x {its.length} {its.dtype}"
            )
        width = its.tile[1]
        start, stop = corner[1] + part[1].start, corner[1] + part[1].stop
        whole = np.empty((*out.shape[:1], stop - start, *out.shape[2:]), out.dtype)
        for left in range(start // width * width, stop, width):
            a, b = max(start, left), min(stop, left + width)
            columns = slice(a - corner[1], b - corner[1])
            its.fill(
                page, corner, plane, (part[0], columns, *part[2:]), whole[:, a - start : b - start]
            )
        out[...] = whole[:, :: part[1].step or 1]


def count(steps: Steps) -> int:
    """Return the length of the axis.

    >>> count(((2, 10), (5, 1)))
    10
    """
    total = 1
    for size, _ in steps:
        total *= size
    return total


def number(steps: Steps, position: int) -> int:
    """Return what a position adds to the number of a page.

    >>> [number(((2, 10), (3, 1)), n) for n in range(6)]
    [0, 1, 2, 10, 11, 12]
    """
    total = 0
    for size, stride in reversed(steps):
        position, digit = divmod(position, size)
        total += digit * stride
    return total


def missing(path: Any, why: str) -> DamagedFileError:
    """Return the error for a plane that is not there."""
    return DamagedFileError(f"{str(path)!r}: the plane cannot be read, {why}")
