"""Fill an array from the tiles of a Source."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from contextlib import suppress
from itertools import count, product
from typing import TYPE_CHECKING, Any

from bioio_tk.core.spec import Address
from bioio_tk.core.tiling import TileCopy, TileGrid, copy_pixels, plan
from bioio_tk.engine import arrays
from bioio_tk.engine.pool import run

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from numpy.typing import NDArray

    from bioio_tk.backends.base import Source
    from bioio_tk.core.index import Selection
    from bioio_tk.core.region import Shape5

_SMALL = 1 << 17
"""Bytes below which a tile is not worth handing to another thread."""


_MOST_TO_KEEP = 64
"""Tiles of one request up to which they are kept for the next."""

_FEW = 16
"""Tiles of a request up to which they are read one by one, also where they lie in shards."""

_WAITING_WORKERS = 32
"""Threads for a source that waits for a network: they sleep most of the time."""


class TileCache:
    """The decoded tiles used last, for requests that want only a part of each.

    Parameters
    ----------
    tiles : int
        Most tiles to keep.
    size : int
        Most bytes to keep.
    """

    def __init__(self, tiles: int, size: int = 128 << 20) -> None:
        self._most_tiles = tiles
        self._most_bytes = size
        self.reset()

    def reset(self) -> None:
        """Forget everything, also who holds the lock."""
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def forget(self, wanted: Callable[[Any], bool]) -> None:
        """Forget the tiles whose address is `wanted`."""
        with self._lock:
            for at in [at for at in self._tiles if wanted(at)]:
                self._bytes -= self._tiles.pop(at).nbytes

    def takes(self, size: int) -> bool:
        """Return whether a tile of `size` bytes would be kept."""
        return size <= self._most_bytes

    def get(self, at: Hashable) -> NDArray[Any] | None:
        """Return the tile, or None."""
        with self._lock:
            tile = self._tiles.get(at)
            if tile is not None:
                self._tiles.move_to_end(at)
            return tile

    def put(self, at: Hashable, tile: NDArray[Any]) -> None:
        """Keep the tile; forget the ones not used for longest."""
        with self._lock:
            if at in self._tiles or tile.nbytes > self._most_bytes:
                return
            self._tiles[at] = tile
            self._bytes += tile.nbytes
            while len(self._tiles) > self._most_tiles or self._bytes > self._most_bytes:
                _, old = self._tiles.popitem(last=False)
                self._bytes -= old.nbytes


_shared = TileCache(tiles=4096)
_numbers = count()
_gone: deque[int] = deque()
"""Numbers of readers that were forgotten without close(): their tiles go at the next put()."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.reset)


class OwnTiles:
    """One reader's part of the cache that all readers of the process share."""

    def __init__(self) -> None:
        self._number = next(_numbers)
        self._used = False

    def takes(self, size: int) -> bool:
        """Return whether a tile of `size` bytes would be kept."""
        return _shared.takes(size)

    def get(self, at: Address) -> NDArray[Any] | None:
        """Return the tile, or None."""
        return _shared.get((self._number, at))

    def put(self, at: Address, tile: NDArray[Any]) -> None:
        """Keep the tile; forget the ones that any reader has not used for longest."""
        self._used = True
        _shared.put((self._number, at), tile)
        if _gone:
            _forget_gone()

    def clear(self) -> None:
        """Forget this reader's tiles."""
        if self._used:
            self._used = False
            _shared.forget(lambda at: at[0] == self._number)

    def __del__(self) -> None:
        # may run anywhere, also in a thread that holds the lock of the cache just now
        if self._used:
            _gone.append(self._number)


def _forget_gone() -> None:
    numbers = set()
    with suppress(IndexError):  # empty, or another thread was faster
        while True:
            numbers.add(_gone.popleft())
    _shared.forget(lambda at: at[0] in numbers)


def read(
    source: Source,
    image: int,
    level: int,
    selection: Selection,
    *,
    workers: int,
    cache: TileCache | OwnTiles | None = None,
) -> NDArray[Any]:
    """Return the selected pixels, shaped (y, x, z, c, t)."""
    settle(source, image, level)
    spec = source.images[image]
    grid = spec.levels[level].grid
    out = arrays.empty(selection.shape, spec.dtype)
    if not selection.size:
        return out
    if _read_planes(source, image, level, selection, out):
        return selection.flip(out)
    workers = _threads(source, workers, out.nbytes)
    touched = _touched(grid, selection)
    shard = _shard(source, image, level, touched)
    if shard is not None:
        _read_shards(source, Address(image, level, (0,) * 5), shard, selection, out, workers)
        return selection.flip(out)
    tile_bytes = spec.dtype.itemsize
    for n, size in zip(grid.tile, grid.shape, strict=True):
        tile_bytes *= min(n, size)
    keep = cache if cache and source.caps.costly_tiles and cache.takes(tile_bytes) else None
    if touched > _MOST_TO_KEEP:
        keep = None  # a request as wide as that would drive out what is really wanted again
    copy = _copier(source, image, level, out, keep)
    steps = plan(grid, selection.spans, abreast=workers)
    batch = 1 if source.caps.waits else max(1, _SMALL // max(1, tile_bytes))
    run(copy, steps, workers, batch=batch)
    return selection.flip(out)


def settle(source: Source, image: int, level: int) -> None:
    """Let the source make up its mind about its tiles, before they are looked at."""
    decide = getattr(source, "settle", None)
    if decide is not None:
        decide(image, level)


def _copier(
    source: Source,
    image: int,
    level: int,
    out: NDArray[Any],
    keep: TileCache | OwnTiles | None,
) -> Callable[[TileCopy], None]:
    """Return what does one step of a plan."""
    read_part = getattr(source, "read_part", None)

    def copy(step: TileCopy) -> None:
        at = Address(image, level, step.key)
        if step.plain and read_part is not None and read_part(at, step.src, out[step.dst]):
            return
        tile = None if keep is None else keep.get(at)
        if tile is None:
            tile = source.read_tile(at)
            if keep is not None and not step.whole:
                keep.put(at, tile)
        copy_pixels(out, step.dst, tile, step.src, plain=step.plain)

    return copy


def _threads(source: Source, workers: int, size: int) -> int:
    if not source.caps.parallel_read:
        return 1
    if source.caps.waits:
        return max(workers, _WAITING_WORKERS)
    return 1 if size <= _SMALL else workers


def _shard(source: Source, image: int, level: int, touched: int) -> Shape5 | None:
    """Return the size of the pieces to read a large request in; None: tile by tile."""
    shard = getattr(source, "shard", None)
    return None if shard is None or touched <= _FEW else shard(image, level)


def _read_shards(
    source: Any,
    at: Address,
    shard: Shape5,
    selection: Selection,
    out: NDArray[Any],
    workers: int,
) -> None:
    level = source.images[at.image].levels[at.level]
    grid = TileGrid(level.shape, shard)
    if _touched(grid, selection) < 4 * workers:  # rows of tiles, so that each thread gets some
        grid = TileGrid(level.shape, (level.tile[0], *shard[1:]))
    rows = shard[0] // grid.tile[0]

    def copy(step: TileCopy) -> None:
        ky, kx, kz, kc, kt = step.key
        piece = at._replace(key=(ky // rows, kx, kz, kc, kt))
        down = ky % rows * grid.tile[0]
        box = tuple(_hull(item) for item in step.src)
        inside = (slice(box[0].start + down, box[0].stop + down), *box[1:])
        if step.plain and all(s.step in (None, 1) for s in step.src):  # type: ignore[union-attr]
            source.read_shard(piece, inside, out[step.dst])
            return
        part = arrays.empty(tuple(s.stop - s.start for s in box), out.dtype)
        source.read_shard(piece, inside, part)
        picks = tuple(_shifted(item, s.start) for item, s in zip(step.src, box, strict=True))
        copy_pixels(out, step.dst, part, picks, plain=step.plain)

    run(copy, plan(grid, selection.spans), workers)


def _hull(item: Any) -> slice:
    """Return the run of positions that holds all of an index."""
    if isinstance(item, slice):
        positions = range(item.start, item.stop, item.step or 1)
        return slice(positions[0], positions[-1] + 1)
    return slice(int(item.min()), int(item.max()) + 1)


def _shifted(item: Any, start: int) -> Any:
    if isinstance(item, slice):
        return slice(item.start - start, item.stop - start, item.step)
    return item - start


def _touched(grid: TileGrid, selection: Selection) -> int:
    """Return about how many tiles hold a wanted pixel."""
    total = 1
    for span, n in zip(selection.spans, grid.tile, strict=True):
        total *= min(len(span), abs(int(span[-1]) - int(span[0])) // n + 2)
    return total


def _read_planes(
    source: Source, image: int, level: int, selection: Selection, out: NDArray[Any]
) -> bool:
    """Let the source read a stack of small planes in one go, where it can."""
    read_planes = getattr(source, "read_planes", None)
    y, x, z, c, t = selection.spans
    height, width = source.images[image].levels[level].shape[:2]
    small = height * width * out.itemsize < _SMALL
    ranges = isinstance(y, range) and isinstance(x, range)
    entire = ranges and (y, x) == (range(height), range(width))
    if read_planes is None or not small or not entire:
        return False
    where = [(kz, kc, kt) for kt, kc, kz in product(t, c, z)]
    if len(where) < 2:
        return False
    done: bool = read_planes(
        image, level, where, out.transpose(4, 3, 2, 0, 1).reshape(-1, height, width)
    )
    return done
