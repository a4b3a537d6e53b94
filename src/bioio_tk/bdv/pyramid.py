"""The smaller resolutions of stacks that are stored already."""

from __future__ import annotations

import math
import threading
from itertools import pairwise, product
from typing import TYPE_CHECKING

from bioio_tk.bdv.scheme import mipmaps as proposed
from bioio_tk.engine.scratch import Scratch
from bioio_tk.engine.write import TileWriter
from bioio_tk.errors import SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bioio_tk.backends.base import ViewStore
    from bioio_tk.core.downsample import Method
    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.core.tiling import TileKey
    from bioio_tk.core.views import Mipmap, Point3, Shape3, ViewId
    from bioio_tk.engine.copy import Progress

_FULL = (1, 1, 1)
_WAITING = 16 << 20
"""Bytes of smaller tiles that wait for their rest in memory; few do, whatever the stack."""


def with_smaller(
    first: Mipmap,
    size: Shape3,
    voxel: Point3 | None,
    itemsize: int,
    subsamp: Sequence[Shape3] | None,
    blockdim: Sequence[Shape3] | None,
) -> tuple[Mipmap, ...]:
    """Return the resolutions of a stack of which only the full one is stored.

    Parameters
    ----------
    first : Mipmap
        The full one.
    size : Shape3
        Of it along Z, Y, X.
    voxel : Point3 or None
        Size of a voxel along X, Y, Z.
    itemsize : int
        Bytes of a pixel.
    subsamp : sequence of Shape3, optional
        Factors of the others; by default those that BigDataViewer proposes.
    blockdim : sequence of Shape3, optional
        Blocks of each of them, or the first for all.

    Raises
    ------
    UnsupportedError
        What is stored is not the full resolution.
    SpecError
        The factors make no sense.
    """
    if first.factor != _FULL:
        raise UnsupportedError(
            f"the largest resolution that is stored is made of {first.factor} pixels (Z, Y, X) "
            "each: smaller ones are made from the full resolution only"
        )
    if subsamp is None:
        return (first, *proposed(size, voxel, itemsize, None, None)[1:])
    if _FULL in subsamp:
        raise SpecError("subsamp: (1, 1, 1) is there already, give smaller resolutions only")
    if not subsamp:
        return (first,)
    return (first, *proposed(size, voxel, itemsize, subsamp, blockdim))


def make_levels(  # noqa: PLR0913
    file: ViewStore,
    view: ViewId,
    mipmaps: Sequence[Mipmap],
    *,
    compression: str | None,
    level: int | None,
    workers: int,
    method: Method = "mean",
    scratch_folder: Path,
    progress: Progress | None = None,
) -> None:
    """Make the smaller resolutions of one stack from its full one, block by block.

    Readers see all of them once they are complete. The tables of the setup, which all its stacks
    share, stay as they are: see `ViewStore.set_mipmaps`. Memory does not grow with the stack.

    Parameters
    ----------
    file : ViewStore
        Open to be written.
    view : ViewId
        Which stack.
    mipmaps : sequence of Mipmap
        All resolutions it is to have, the full one first.
    compression, level : str or None, int or None
        Of the new ones.
    workers : int
        Threads.
    method : Method
        How pixels are joined, see `core.downsample`.
    scratch_folder : Path
        Where a temporary file goes, should one be needed.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes of the full resolution. What it raises ends
        the work: the stack stays as it was.
    """
    if len(mipmaps) < 2:
        return
    sink = file.begin_levels(view, file.shape(view), mipmaps, compression, level)
    scratch = Scratch(scratch_folder, _WAITING)
    try:
        image = sink.images[0]
        tiles = TileWriter(sink, workers=workers, scratch=scratch, method=method)
        tiles.shrink_stored(_counter(image, progress), order=nested(image, _cells(image, mipmaps)))
        sink.finish()
    finally:
        sink.close()
        scratch.close()


def nested(image: ImageSpec, cells: Sequence[tuple[int, int, int]]) -> Iterator[TileKey]:
    """Yield each tile of the full resolution; those under one cell follow each other.

    So hardly more than one tile of each smaller resolution waits for its rest at a time.

    Parameters
    ----------
    image : ImageSpec
        One stack.
    cells : sequence of (int, int, int)
        Sizes of cells in tiles along Z, Y, X, the largest first.
    """
    y, x, z, _, _ = image.levels[0].grid.counts

    def walk(box: Sequence[range], sizes: Sequence[tuple[int, int, int]]) -> Iterator[TileKey]:
        if not sizes:
            for kz, ky, kx in product(*box):
                yield (ky, kx, kz, 0, 0)
            return
        for part in product(*map(_cut, box, sizes[0])):
            yield from walk(part, sizes[1:])

    return walk((range(z), range(y), range(x)), cells)


def _cut(span: range, size: int) -> list[range]:
    """Return the parts of a range between whole multiples of a number."""
    first = (span.start // size + 1) * size
    edges = [span.start, *range(first, span.stop, size), span.stop]
    return [range(a, b) for a, b in pairwise(edges)]


def _cells(image: ImageSpec, mipmaps: Sequence[Mipmap]) -> list[tuple[int, int, int]]:
    """Return how many tiles of the full resolution a tile of each other one is made of."""
    y, x, z, _, _ = image.levels[0].tile
    found = []
    for level, mipmap in zip(image.levels[1:], list(mipmaps)[1:], strict=True):
        height, width, depth, _, _ = level.tile
        sizes = zip((depth, height, width), mipmap.factor, (z, y, x), strict=True)
        dz, dy, dx = (max(1, n * f // m) for n, f, m in sizes)
        found.append((dz, dy, dx))
    return sorted(set(found), key=math.prod, reverse=True)


def _counter(image: ImageSpec, progress: Progress | None) -> Callable[[TileKey], object] | None:
    if progress is None:
        return None
    tell, size = progress, image.dtype.itemsize
    total = math.prod(image.shape) * size
    lock, done = threading.Lock(), 0

    def count(key: TileKey) -> None:
        nonlocal done
        with lock:
            done += math.prod(image.levels[0].grid.tile_shape(key)) * size
            tell(done, total)

    return count
