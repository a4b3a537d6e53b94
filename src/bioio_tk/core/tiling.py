"""TileGrid: which tiles an image has; plan(): which of them a selection touches, and how."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from bioio_tk.core.region import Region, Shape5

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TileKey: TypeAlias = tuple[int, int, int, int, int]
Span: TypeAlias = "range | NDArray[np.intp]"
"""The positions wanted along one axis: an ascending range, or any list of positions."""
Pick: TypeAlias = "slice | NDArray[np.intp]"


@dataclass(frozen=True, slots=True)
class TileGrid:
    """A regular grid of tiles over an image; edge tiles are clipped.

    Parameters
    ----------
    shape : tuple of 5 int
        Image size in YXZCT.
    tile : tuple of 5 int
        Tile size in YXZCT, e.g. ``(1024, 1024, 1, 1, 1)``.
    """

    shape: Shape5
    tile: Shape5

    @property
    def counts(self) -> Shape5:
        """Number of tiles along Y, X, Z, C, T."""
        y, x, z, c, t = (-(-s // n) for s, n in zip(self.shape, self.tile, strict=True))
        return (y, x, z, c, t)

    def region(self, key: TileKey) -> Region:
        """Return the pixels of one tile, clipped to the image."""
        start = tuple(k * n for k, n in zip(key, self.tile, strict=True))
        stop = tuple(min(a + n, s) for a, n, s in zip(start, self.tile, self.shape, strict=True))
        return Region(start, stop)  # type: ignore[arg-type]

    def tile_shape(self, key: TileKey) -> Shape5:
        """Return the clipped size of one tile in YXZCT."""
        y, x, z, c, t = (
            min(n, s - k * n) for k, n, s in zip(key, self.tile, self.shape, strict=True)
        )
        return (y, x, z, c, t)

    def keys(self) -> Iterator[TileKey]:
        """Yield the key of every tile, T outermost, X fastest."""
        y, x, z, c, t = (range(n) for n in self.counts)
        for kt, kc, kz, ky, kx in product(t, c, z, y, x):
            yield (ky, kx, kz, kc, kt)


class TileCopy(NamedTuple):
    """One step of a plan: ``out[dst]`` and ``tile[src]`` are the same pixels.

    `src` and `dst` hold one slice or index array per axis. `whole` is True where `src` is all
    of the (clipped) tile in order; `plain` where both hold nothing but slices.
    """

    key: TileKey
    src: tuple[Pick, Pick, Pick, Pick, Pick]
    dst: tuple[Pick, Pick, Pick, Pick, Pick]
    whole: bool
    plain: bool


class _Step(NamedTuple):
    tile: int
    src: Pick
    dst: Pick
    whole: bool
    plain: bool


def plan(
    grid: TileGrid, spans: tuple[Span, Span, Span, Span, Span], abreast: int = 1
) -> Iterator[TileCopy]:
    """Yield one TileCopy for every tile that holds a wanted pixel; T outermost, X fastest.

    Parameters
    ----------
    grid : TileGrid
        The tiles of the image.
    spans : tuple of 5 range or integer array
        Wanted positions along Y, X, Z, C, T, all inside the image. Ranges ascend.
    abreast : int
        Rows of tiles to walk along at the same time. Threads that fill neighbouring tiles of one
        row wait for each other, because the system hands out memory in pages wider than a tile.
    """
    ys, xs, zs, cs, ts = map(_along, spans, grid.tile, grid.shape)
    for t, c, z in product(ts, cs, zs):
        whole_tcz = t.whole and c.whole and z.whole
        plain_tcz = t.plain and c.plain and z.plain
        for first in range(0, len(ys), abreast):
            for x in xs:
                for y in ys[first : first + abreast]:
                    yield TileCopy(
                        (y.tile, x.tile, z.tile, c.tile, t.tile),
                        (y.src, x.src, z.src, c.src, t.src),
                        (y.dst, x.dst, z.dst, c.dst, t.dst),
                        whole_tcz and y.whole and x.whole,
                        plain_tcz and y.plain and x.plain,
                    )


def copy_pixels(
    target: NDArray[Any],
    where: tuple[Pick, ...],
    source: NDArray[Any],
    which: tuple[Pick, ...],
    *,
    plain: bool,
) -> None:
    """Do ``target[where] = source[which]``, each axis indexed on its own (outer indexing)."""
    if plain:
        target[where] = source[which]
        return
    picked = source
    for axis, item in enumerate(which):
        picked = picked[(slice(None),) * axis + (item,)]
    if all(isinstance(item, slice) for item in where):
        target[where] = picked
    else:
        target[open_mesh(where, target.shape)] = picked


def open_mesh(items: tuple[Pick, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Return index arrays that select the outer product of `items` (slices or index arrays)."""
    arrays = [
        np.arange(n)[item] if isinstance(item, slice) else item
        for item, n in zip(items, shape, strict=True)
    ]
    return np.ix_(*arrays)


def _along(span: Span, n: int, size: int) -> list[_Step]:
    if not isinstance(span, range):
        return list(_along_array(span, n))
    if not span:
        return []
    if span.step == 1:
        return _along_run(span.start, span.stop, n, size)
    return list(_along_range(span, n, size))


def _along_run(start: int, stop: int, n: int, size: int) -> list[_Step]:
    """Do what `_along_range` does for neighbouring positions, which is nearly always the case."""
    steps = []
    for k in range(start // n, (stop - 1) // n + 1):
        low = k * n
        high = min(low + n, size)
        a, b = max(start, low), min(stop, high)
        whole = a == low and b == high
        steps.append(
            _Step(k, slice(a - low, b - low), slice(a - start, b - start), whole, plain=True)
        )
    return steps


def _along_range(span: range, n: int, size: int) -> Iterator[_Step]:
    start, step = span.start, span.step
    first = 0
    while first < len(span):  # from one tile with a wanted position to the next one
        k = span[first] // n
        low = k * n
        stop = min(len(span), (min(low + n, size) - 1 - start) // step + 1)
        a, b = span[first] - low, span[stop - 1] - low + 1
        whole = step == 1 and b - a == min(n, size - low)
        yield _Step(k, slice(a, b, step), slice(first, stop), whole, plain=True)
        first = stop


def _along_array(span: NDArray[np.intp], n: int) -> Iterator[_Step]:
    tiles = span // n
    for k in np.unique(tiles).tolist():
        dst = np.flatnonzero(tiles == k)
        yield _Step(k, span[dst] - k * n, dst, whole=False, plain=False)
