"""MosaicSource: many files at their places in one large image."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends.base import Caps
from bioio_tk.core.dtype import as_pixels
from bioio_tk.core.spec import ImageSpec, Level, PhysicalSize
from bioio_tk.engine import arrays
from bioio_tk.engine.copy import View
from bioio_tk.engine.pool import run
from bioio_tk.errors import SpecError
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.core.region import Region, Shape5
    from bioio_tk.core.spec import Address
    from bioio_tk.core.stitching import Placed

BLENDS = ("last", "first", "max", "min", "mean")
"""What is seen where files overlap."""

_TILE = 1024
_LARGEST = 32 << 20
"""Bytes up to which a tile is as large as two files side by side."""


class MosaicSource:
    """An image put together of others.

    Only the sizes of the files are kept; each is opened when a tile touches it, and closed again.

    Parameters
    ----------
    placed : list of Placed
        The files and where they go; no place is negative.
    blend : str
        What is seen where they overlap, see `BLENDS`; ``"mean"`` of whole numbers is rounded half
        to even.
    fill : number
        What is seen where there is none.
    series : int
        Which image of each file.
    workers : int
        Threads to look at the files with.
    """

    def __init__(
        self,
        placed: list[Placed],
        blend: str = "last",
        fill: Any = 0,
        series: int = 0,
        workers: int = 1,
    ) -> None:
        if blend not in BLENDS:
            raise SpecError(f"blend={blend!r}: choose one of {', '.join(BLENDS)}")
        self._placed, self._blend, self._series = placed, blend, series
        self._sizes: list[Shape5] = [(0, 0, 0, 0, 0)] * len(placed)
        with self._open(0) as first:
            self._first, self._xml, notes = first._spec(), first.ome_xml, first.notes  # noqa: SLF001
            several = first.n_series > 1
        if several and self._xml is not None:
            from bioio_tk.meta import ome

            self._xml = ome.single(self._xml, series)
        self.notes = tuple(notes)
        run(self._look, range(len(placed)), workers)
        self.caps = Caps(costly_tiles=True)
        self.images = (self._spec(),)
        # raises for a number that is no pixel
        self._fill = as_pixels(fill, self._first.dtype).reshape(())
        self._near = self._by_tile()

    def _open(self, number: int) -> BioReader:
        return BioReader(self._placed[number].path, 1, series=self._series)

    def _look(self, number: int) -> None:
        with self._open(number) as reader:
            shape, dtype = reader.shape, reader.dtype
        first = self._first
        if shape[2:] != first.shape[2:] or dtype != first.dtype:
            raise SpecError(
                f"{str(self._placed[number].path)!r} has Z, C, T = {shape[2:]} and {dtype} pixels, "
                f"{str(self._placed[0].path)!r} has {first.shape[2:]} and {first.dtype}: all files "
                "of a mosaic must be alike in that"
            )
        self._sizes[number] = shape

    def _spec(self) -> ImageSpec:
        spans = list(zip(self._placed, self._sizes, strict=True))
        height = max(p.y + size[0] for p, size in spans)
        width = max(p.x + size[1] for p, size in spans)
        y, x = (max(size[n] for size in self._sizes) for n in (0, 1))
        item = self._first.dtype.itemsize
        wide = [-(-2 * n // _TILE) * _TILE for n in (y, x)]
        if wide[0] * wide[1] * item > _LARGEST:
            wide = [-(-n // _TILE) * _TILE for n in (y, x)]
        if wide[0] * wide[1] * item > _LARGEST:
            wide = [_TILE, _TILE]
        shape: Shape5 = (height, width, *self._first.shape[2:])
        tile = (min(wide[0], height), min(wide[1], width), 1, 1, 1)
        # the first file may lie anywhere in the whole
        return replace(self._first, levels=(Level(shape, tile),), position=PhysicalSize())

    def _by_tile(self) -> dict[tuple[int, int], list[int]]:
        """Return for each tile (row, column) the files that reach into it, in their order."""
        height, width = self.images[0].levels[0].tile[:2]
        near = defaultdict(list)
        for number, (p, size) in enumerate(zip(self._placed, self._sizes, strict=True)):
            for row in range(p.y // height, (p.y + size[0] - 1) // height + 1):
                for column in range(p.x // width, (p.x + size[1] - 1) // width + 1):
                    near[row, column].append(number)
        return dict(near)

    def read_tile(self, at: Address) -> NDArray[Any]:
        """Return what the files show of a tile, together."""
        region = self.images[0].levels[0].grid.region(at.key)
        out = arrays.empty(region.shape, self._first.dtype)
        out[...] = self._fill
        seen = np.zeros(region.shape[:2], np.uint32)
        # sums of a mean; whole numbers of up to 32 bits are exact in it
        wide = np.dtype(np.complex128 if out.dtype.kind == "c" else np.float64)
        total = arrays.zeros(region.shape, wide) if self._blend == "mean" else out
        for number in self._near.get(at.key[:2], ()):
            self._add(number, region, total, seen)
        if total is not out:
            count = seen[..., None, None, None]
            mean = total / np.maximum(count, 1)
            whole = out.dtype.kind in "iub"
            np.copyto(out, np.rint(mean) if whole else mean, where=count > 0, casting="unsafe")
        return out

    def _add(
        self, number: int, region: Region, total: NDArray[Any], seen: NDArray[np.uint32]
    ) -> None:
        """Add what a file shows of a region to the pixels there."""
        placed, size = self._placed[number], self._sizes[number]
        inside, box = [], []
        for start, stop, at, n in zip(
            region.start, region.stop, (placed.y, placed.x), size, strict=False
        ):
            a, b = max(start, at), min(stop, at + n)
            inside.append(slice(a - start, b - start))
            box.append(slice(a - at, b - at))
        planes = region.slices()[2:]
        with self._open(number) as reader:
            if reader.shape != size:
                raise SpecError(f"{str(placed.path)!r} was changed while it was being read")
            view = View.whole(reader._source, reader.series, 0)  # noqa: SLF001
            pixels = view.read((box[0], box[1], *planes), 1)
        where = (inside[0], inside[1])
        self._blended(total[where], pixels, seen[where])
        seen[where] += 1

    def _blended(
        self, target: NDArray[Any], pixels: NDArray[Any], seen: NDArray[np.uint32]
    ) -> None:
        if self._blend == "mean":
            target += pixels
            return
        if self._blend == "last":
            target[...] = pixels
            return
        empty = (seen == 0)[..., None, None, None]
        if self._blend != "first":
            choose = np.maximum if self._blend == "max" else np.minimum
            choose(target, pixels, out=target, where=~empty)
        np.copyto(target, pixels, where=empty)

    def ome_xml(self) -> str | None:
        """Return the document of the first file."""
        return self._xml

    def used_files(self) -> tuple[Path, ...]:
        """Return all files."""
        return tuple(p.path for p in self._placed)

    def details(self, image: int, level: int) -> dict[str, Any]:
        """Return the size of the pieces it is put together in."""
        return {"tile": self.images[0].levels[0].tile, "compression": "none"}

    def close(self) -> None:
        """Do nothing: no file stays open."""
