"""StreamSource: an image whose pixels come one after the other, from a generator."""

from __future__ import annotations

import math
import operator
import os
import tempfile
import threading
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends.base import Caps
from bioio_tk.core.dtype import as_pixels, pixel_dtype
from bioio_tk.core.region import AXES
from bioio_tk.core.spec import ImageSpec, Level
from bioio_tk.core.tiling import plan
from bioio_tk.engine.scratch import Room, Scratch
from bioio_tk.engine.tiles import Tile
from bioio_tk.errors import ClosedError, RegionError, SpecError, UnsupportedError
from bioio_tk.inputs.array import axes_of, check_shape, is_array, with_workers
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.core.spec import Address
    from bioio_tk.core.tiling import TileKey
    from bioio_tk.meta.ngff_axes import AxisOrder

_END = object()


def open_stream(
    items: Iterable[Any],
    shape: Sequence[int] | None,
    dtype: Any = None,
    dims: str | None = None,
    *,
    workers: int | None = None,
) -> BioReader:
    """Return a reader of what a generator gives; it can be read once.

    Parameters
    ----------
    items : iterable
        Either planes, or larger blocks: arrays that span the last axes of `dims`, while the
        others are counted through, the first one slowest. Or tiles: pairs of slices and pixels,
        also `BioReader.tiles`' own, in any order; slices left out at the end are whole, an int
        is a slice of length 1.
    shape : sequence of int
        Size of the whole image, along `dims`.
    dtype : dtype_like, optional
        Pixel type; by default that of the first pixels.
    dims : str, optional
        The axes, slowest first. By default planes have YX, TYX, TZYX or TCZYX, by the length of
        `shape`; tiles Y, X, Z, C, T, as everything of a reader has.
    workers : int, optional
        Threads that read.

    Raises
    ------
    SpecError
        `shape` is missing or does not fit the first pixels.

    Notes
    -----
    Items are drawn when their pixels are wanted, by one thread at a time, but not always by the
    same. What was drawn but is not wanted yet waits in memory, beyond 128 MB in a temporary file;
    a copy wants T, C, Z, the last one fastest. Fewer items than `shape` says are an error where
    the first one is missed, more are one at the end.
    """
    if shape is None:
        raise SpecError(
            "a generator does not say how large the image is: give shape= and dtype=, as in "
            "shape=(10, 512, 512), dtype='uint16' for 10 planes"
        )
    sizes = check_shape(shape)
    source = iter(items)
    first = next(source, _END)
    if first is _END:
        raise SpecError("the generator gives nothing: not even a first plane")
    stream = _stream(chain([first], source), first, sizes, dtype, dims)
    stream.end = getattr(source, "close", None)
    kind = f"a {type(items).__name__} of {stream.what}"
    reader = BioReader._over(Path("stream"), "stream", kind, StreamSource, stream)  # noqa: SLF001
    return with_workers(reader, workers)


def _stream(
    items: Iterator[Any], first: Any, sizes: tuple[int, ...], dtype: Any, dims: str | None
) -> Stream:
    tiled = isinstance(first, Tile) or (isinstance(first, tuple) and len(first) == 2)
    if dims is None and tiled:
        dims = AXES[: len(sizes)]
    axes = axes_of(sizes, dims)
    shape: Shape5 = tuple(1 if at is None else sizes[at] for at in axes)  # type: ignore[assignment]
    boxes = _tiles(items, sizes, axes) if tiled else _blocks(items, sizes, axes)
    head, pixels = next(boxes)
    tile = tuple(s.stop - s.start for s in head)
    kind = pixel_dtype(pixels.dtype if dtype is None else dtype)
    level = Level(shape, tile)
    what = "tiles" if tiled else "planes"
    return Stream(chain([(head, pixels)], boxes), ImageSpec(kind, (level,)), what)


def _blocks(
    items: Iterator[Any], sizes: tuple[int, ...], axes: AxisOrder
) -> Iterator[tuple[Slices5, NDArray[Any]]]:
    """Yield where each block lies, and its pixels shaped (y, x, z, c, t)."""
    counts: tuple[int, ...] = ()
    for number, item in enumerate(items):
        if not is_array(item):
            raise SpecError(
                f"item {number} of the generator is a {type(item).__name__}: it gives planes "
                "(arrays), or tiles: pairs of slices and pixels"
            )
        block = np.asarray(item)
        if not number:
            counts = sizes[: max(0, len(sizes) - block.ndim)]
        if not 2 <= block.ndim <= len(sizes) or block.shape != sizes[len(counts) :]:
            raise SpecError(
                f"item {number} of the generator has the shape {block.shape}; by shape={sizes} "
                f"{sizes[len(counts) :] if number else sizes[-2:]} was expected"
            )
        if number >= math.prod(counts):
            raise SpecError(
                f"the generator gives more than the {math.prod(counts)} blocks of shape={sizes}"
            )
        place = np.unravel_index(number, counts) if counts else ()
        key = [slice(int(k), int(k) + 1) for k in place] + [slice(0, n) for n in block.shape]
        yield _five(key, block.reshape((*(1,) * len(counts), *block.shape)), axes)


def _tiles(
    items: Iterator[Any], sizes: tuple[int, ...], axes: AxisOrder
) -> Iterator[tuple[Slices5, NDArray[Any]]]:
    """Yield where each tile lies, and its pixels shaped (y, x, z, c, t)."""
    for number, item in enumerate(items):
        if isinstance(item, Tile):
            box = item.slices
            yield box, _shaped(item.crop(item.data), [s.stop - s.start for s in box], number)
            continue
        if not isinstance(item, tuple) or len(item) != 2 or not hasattr(item[1], "shape"):
            raise SpecError(
                f"item {number} of the generator is {item!r:.60}; a tile is a pair of slices and "
                "pixels, as in ((slice(0, 512), slice(0, 512)), pixels)"
            )
        keys = item[0] if isinstance(item[0], tuple) else (item[0],)
        if len(keys) > len(sizes):
            raise RegionError(f"tile {number} has {len(keys)} slices, the image {len(sizes)} axes")
        keys = (*keys, *(slice(None),) * (len(sizes) - len(keys)))
        key = [_span(k, n, number) for k, n in zip(keys, sizes, strict=True)]
        pixels = _shaped(np.asarray(item[1]), [s.stop - s.start for s in key], number)
        yield _five(key, pixels, axes)


def _span(key: Any, size: int, number: int) -> slice:
    """Return the slice of an axis that a tile covers."""
    if isinstance(key, slice):
        start, stop, step = key.indices(size)
        given = 0 if key.stop is None else operator.index(key.stop)
        if step == 1 and start < stop and given <= size:
            return slice(start, stop)
    elif hasattr(key, "__index__") and 0 <= operator.index(key) < size:
        return slice(operator.index(key), operator.index(key) + 1)
    raise RegionError(f"tile {number} lies at {key!r} of an axis that is {size} long")


def _shaped(pixels: NDArray[Any], sizes: Sequence[int], number: int) -> NDArray[Any]:
    """Return the pixels with axes of length 1 where they were left out."""
    if [n for n in pixels.shape if n != 1] != [n for n in sizes if n != 1]:
        raise SpecError(
            f"tile {number} has pixels of shape {pixels.shape}; its slices are {tuple(sizes)} large"
        )
    return pixels.reshape(sizes)


def _five(key: list[slice], pixels: NDArray[Any], axes: AxisOrder) -> tuple[Slices5, NDArray[Any]]:
    box = tuple(slice(0, 1) if at is None else key[at] for at in axes)
    order = [at for at in axes if at is not None]
    block = pixels.transpose(order)
    for axis, at in enumerate(axes):
        if at is None:
            block = np.expand_dims(block, axis)
    return box, block  # type: ignore[return-value]


class _Waiting:
    """A tile that is being filled, or waits until all its pixels were read."""

    __slots__ = ("filled", "left", "room")

    def __init__(self, room: Room) -> None:
        self.room = room
        self.filled: NDArray[np.bool_] | None = np.zeros(room.array.shape, bool)
        self.left = room.array.size

    def put(self, where: tuple[Any, ...], pixels: NDArray[Any]) -> None:
        self.room.array[where] = pixels
        if self.filled is not None:
            self.filled[where] = True
            if self.filled.all():
                self.filled = None


class Stream:
    """The state of a generator that is being read.

    Parameters
    ----------
    boxes : iterator
        Where pixels lie, and the pixels.
    spec : ImageSpec
        The whole image; its tiles are as large as the first of them.
    what : str
        What comes, in a word.
    """

    def __init__(
        self, boxes: Iterator[tuple[Slices5, NDArray[Any]]], spec: ImageSpec, what: str
    ) -> None:
        self.spec = spec
        self.what = what
        self.end: Callable[[], object] | None = None
        self._boxes = boxes
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._scratch = Scratch(Path(tempfile.gettempdir()))
        self._waiting: dict[TileKey, _Waiting] = {}
        self._done: set[TileKey] = set()
        self._drawn = 0
        self._missing = math.prod(spec.levels[0].grid.counts)
        self._failed: BaseException | None = None
        self._closed = False

    def __reduce__(self) -> Any:
        raise UnsupportedError("a generator cannot go to another process: give an array, or paths")

    def read(self, key: TileKey, part: Slices5 | None, out: NDArray[Any] | None) -> Any:
        """Fill `out` with a part of a tile, or return a copy of all of it."""
        if self._pid != os.getpid():
            raise UnsupportedError("a generator cannot be read on in a forked process")
        with self._lock:
            tile = self._wait_for(key)
            if part is None or out is None:
                return tile.room.array.copy()
            out[...] = tile.room.array[part]
            tile.left -= out.size
            if tile.left <= 0:
                del self._waiting[key]
                self._scratch.free(tile.room)
                self._done.add(key)
            return None

    def _wait_for(self, key: TileKey) -> _Waiting:
        if key in self._done:
            raise SpecError(
                "the pixels of a generator can be read once, and these were: keep what it gives "
                "in an array, or write it to a file and read that"
            )
        while True:
            if self._closed:
                raise ClosedError("the generator was closed")
            tile = self._waiting.get(key)
            if tile is not None and tile.filled is None:
                return tile
            self._draw(key)

    def _draw(self, wanted: TileKey) -> None:
        """Take the next item in."""
        if self._failed is not None:
            raise self._failed
        try:
            found = next(self._boxes, None)
            if found is None:
                at = self.spec.levels[0].grid.region(wanted).start
                where = ", ".join(f"{axis}={n}" for axis, n in zip(AXES, at, strict=True))
                raise SpecError(
                    f"the generator ended after {self._drawn} {self.what}: the one at {where} is "
                    f"missing, of an image of {self.spec.shape} (Y, X, Z, C, T)"
                )
            self._drawn += 1
            self._take(*found)
        except BaseException as exc:
            self._failed = exc
            raise

    def _take(self, box: Slices5, pixels: NDArray[Any]) -> None:
        level, dtype = self.spec.levels[0], self.spec.dtype
        pixels = as_pixels(pixels, dtype)
        spans = tuple(range(s.start, s.stop) for s in box)
        for step in plan(level.grid, spans):  # type: ignore[arg-type]
            tile = self._waiting.get(step.key)
            if step.key in self._done or (tile is not None and tile.filled is None):
                raise SpecError(
                    f"the generator gives the pixels at {_where(box)} twice: {self.what[:-1]} "
                    f"number {self._drawn - 1}"
                )
            if tile is None:
                room = self._scratch.room(level.grid.tile_shape(step.key), dtype)
                tile = self._waiting[step.key] = _Waiting(room)
            tile.put(step.src, pixels[step.dst])
            self._missing -= tile.filled is None
        if not self._missing and next(self._boxes, None) is not None:
            raise SpecError(f"the generator gives more than an image of {self.spec.shape} has")

    def close(self) -> None:
        """End the generator and drop what waits."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._waiting.clear()
            self._scratch.close()
            if self.end is not None:
                self.end()


def _where(box: Slices5) -> str:
    return ", ".join(f"{k}={s.start}:{s.stop}" for k, s in zip(AXES, box, strict=True))


class StreamSource:
    """Tiles of what a generator gives."""

    caps = Caps()
    notes: tuple[str, ...] = ()

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.images = (stream.spec,)

    def read_tile(self, at: Address) -> NDArray[Any]:
        """Return the pixels of a tile; they stay, to be read once more."""
        tile: NDArray[Any] = self._stream.read(at.key, None, None)
        return tile

    def read_part(self, at: Address, part: Slices5, out: NDArray[Any]) -> bool:
        """Fill `out` with a part of a tile; what was read is forgotten."""
        self._stream.read(at.key, part, out)
        return True

    def ome_xml(self) -> str | None:
        """Return None: a generator has no document."""
        return None

    def used_files(self) -> tuple[Path, ...]:
        """Return nothing: it is no file."""
        return ()

    def details(self, image: int, level: int) -> dict[str, Any]:
        """Return in what pieces the pixels come."""
        return {"tile": self.images[image].levels[level].tile, "compression": "none"}

    def close(self) -> None:
        """End the generator."""
        self._stream.close()
