"""TileWriter: sends pixels to the tiles of a Sink and fills the pyramid while they pass."""

from __future__ import annotations

import math
import threading
from contextlib import ExitStack
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bioio_tk.core.downsample import shrink_all
from bioio_tk.core.spec import Address
from bioio_tk.core.tiling import TileCopy, TileGrid, copy_pixels, open_mesh, plan
from bioio_tk.engine import arrays
from bioio_tk.engine.pool import Turns, run
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from bioio_tk.backends.base import Sink
    from bioio_tk.core.downsample import Method
    from bioio_tk.core.region import Region, Shape5
    from bioio_tk.core.spec import Level
    from bioio_tk.core.tiling import Span, TileKey
    from bioio_tk.engine.scratch import Room, Scratch


_Box: TypeAlias = tuple[tuple[int, int], ...]
_MOST_BOXES = 8
_WAITING_WORKERS = 16
"""Threads for a sink that waits for a network; each may hold a tile."""
_LARGEST_UNIT = 64 << 20
"""Bytes of pixels up to which a shard is stored (a block is shrunk) in one piece."""
_UNIT = 2 << 20
"""Bytes of pixels that are worth shrinking together where tiles are smaller."""


class _Partial:
    """A tile that waits until each of its pixels has been given (again), or for flush().

    Which pixels those are is kept as a few boxes, which do for a pyramid and for large pieces;
    where boxes meet or become many, as a map of all pixels.
    """

    __slots__ = ("_boxes", "_map", "missing", "room")

    def __init__(self, room: Room) -> None:
        self.room = room
        self.missing = room.array.size  # pixels
        self._boxes: list[_Box] = []
        self._map: Room | None = None

    def give(self, step: TileCopy, scratch: Scratch) -> bool:
        """Mark the pixels of a step as given; return True when these were the last ones."""
        if self._map is None:
            box = _box(step)
            if box is not None and box in self._boxes:
                return False
            if (
                box is not None
                and len(self._boxes) < _MOST_BOXES
                and not any(_meet(box, other) for other in self._boxes)
            ):
                self._boxes.append(box)
                self.missing -= math.prod(stop - start for start, stop in box)
                return self.missing == 0
            self._map = scratch.room(self.room.array.shape, np.dtype(bool))
            for known in self._boxes:
                self._map.array[tuple(slice(*span) for span in known)] = True
        where = _where(step, self.room.array.shape)
        before = self._map.array[where]
        self.missing -= before.size - int(np.count_nonzero(before))
        self._map.array[where] = True
        return self.missing == 0

    @property
    def rooms(self) -> tuple[Room, ...]:
        """The memory it takes."""
        return (self.room,) if self._map is None else (self.room, self._map)

    def given(self) -> _Box:
        """Return the one box that holds all pixels given so far."""
        if self._map is None:
            along = (zip(*spans, strict=True) for spans in zip(*self._boxes, strict=True))
            return tuple((min(starts), max(stops)) for starts, stops in along)
        there = np.nonzero(self._map.array)
        return tuple((int(p.min()), int(p.max()) + 1) for p in there)

    def rest(self) -> None:
        """Let the system take the memory back until the tile is touched again."""
        for room in self.rooms:
            room.rest()

    def free(self, scratch: Scratch) -> None:
        """Give the memory back."""
        for room in self.rooms:
            scratch.free(room)


class TileWriter:
    """Writes to one image of a Sink, from any number of threads.

    Whole tiles are stored at once. A tile given in parts waits in `scratch` until it is full or
    until :meth:`flush`. What is stored is shrunk into the level below, which is written the same
    way, so the whole pyramid grows in one pass and a change of a pixel reaches all its levels.
    For a `MipmapSink` the full resolution is shrunk into every level, and these no further.
    Where a tile cannot be shrunk alone (one plane of it, where Z is halved as well) the tiles
    that can be shrunk together wait for each other as a block: level ``~n`` in `_partial`.

    Parameters
    ----------
    sink : Sink
        Where the tiles go.
    image : int
        Number of the image in the sink.
    workers : int
        Threads to encode with.
    scratch : Scratch
        Room for tiles that wait.
    method : Method
        How pixels are joined, see `core.downsample`.
    done : collection of Address
        Tiles of any level that an earlier run has stored: they are not written again. Call
        :meth:`resume` first.
    stored : callable, optional
        Called with tiles that are down, each as (address, what it was encoded to); any thread.
    shrinks : bool
        Fill the smaller levels from the full resolution; else they are written as they are given.
    """

    def __init__(
        self,
        sink: Sink,
        image: int = 0,
        *,
        workers: int,
        scratch: Scratch,
        method: Method = "mean",
        done: Collection[Address] = (),
        stored: Callable[[Sequence[tuple[Address, Any]]], object] | None = None,
        shrinks: bool = True,
    ) -> None:
        self._sink = sink
        self._image = image
        self._workers = max(workers, _WAITING_WORKERS) if sink.caps.waits else workers
        self._scratch = scratch
        self._method = method
        self._done = done
        self._stored = stored
        self._levels = sink.images[image].levels
        self._dtype = sink.images[image].dtype
        self._turns = Turns()
        self._store_lock = threading.Lock()
        self._partial: dict[Address, _Partial] = {}
        shard = getattr(sink, "shard", None)
        self._shard: Shape5 | None = None if shard is None else shard(0)
        self._shrinks = shrinks and len(self._levels) > 1
        self._below = _below(sink, self._levels) if shrinks else [{} for _ in self._levels]
        self._blocks = [_blocks(v, f) for v, f in zip(self._levels, self._below, strict=True)]

    def write(self, spans: tuple[Span, Span, Span, Span, Span], data: NDArray[Any]) -> None:
        """Write `data` (y, x, z, c, t) to the positions `spans` of the full resolution."""
        grid = self._levels[0].grid
        units = None if self._done else self._units(spans)
        if units is None:
            run(lambda step: self._put(0, step, data), plan(grid, spans), self._workers)
            return

        def put(step: TileCopy) -> None:
            if step.whole:
                self._put_unit(units.region(step.key), data[step.dst])
                return
            inside = tuple(_picked(span, dst) for span, dst in zip(spans, step.dst, strict=True))
            part = data[step.dst] if step.plain else data[open_mesh(step.dst, data.shape)]
            for piece in plan(grid, inside):  # type: ignore[arg-type]
                self._put(0, piece, part)

        run(put, plan(units, spans), self._workers)

    def write_tiles(self, tiles: Sequence[tuple[Address, NDArray[Any]]]) -> None:
        """Write whole (clipped) tiles of the full resolution, each given once and never in parts.

        For sinks that store several tiles at once (`GrowingSink`); the same as `write` of each.
        """
        encoded = [(at, self._sink.encode_tile(at, tile)) for at, tile in tiles]
        self._sink.store_tiles(encoded)  # type: ignore[attr-defined]
        if self._stored is not None:
            self._stored(encoded)
        if self._shrinks:
            for at, tile in tiles:
                self._hand_down(at, tile)

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        """Return a tile as it is now, also one that waits for its rest; None for all 0."""
        with self._turns(at):
            partial = self._partial.get(at)
            return self._sink.load_tile(at) if partial is None else partial.room.array.copy()

    def _units(self, spans: tuple[Span, ...]) -> TileGrid | None:
        """Return the grid of groups of tiles to go by, where a write is wide enough for that.

        Those are shards, or what is shrunk in one piece: small tiles one by one take longer.
        """
        least, shape = self._blocks[0], self._levels[0].shape
        if least is None and self._shard is not None:
            size = self._shard
        elif self._below[0]:
            size = self._levels[0].tile if least is None else least.tile
        else:
            return None
        wide = math.prod(map(len, spans)) // (2 * self._workers)
        pixels = math.prod(size)
        if pixels > wide or pixels * self._dtype.itemsize > _LARGEST_UNIT:
            return None
        if size is not self._shard:
            size = _grown(size, shape, min(wide, _UNIT // self._dtype.itemsize))
        return None if size == self._levels[0].tile else TileGrid(shape, size)

    def _put_unit(self, region: Region, pixels: NDArray[Any]) -> None:
        """Encode and store all tiles of a shard or of whole blocks, and shrink it where it lies."""
        spans = tuple(range(a, b) for a, b in zip(region.start, region.stop, strict=True))
        # always in the same order, so that two threads that take their turns cannot block each
        # other
        steps = sorted(plan(self._levels[0].grid, spans), key=lambda step: step.key)  # type: ignore[arg-type]
        places = [Address(self._image, 0, step.key) for step in steps]
        grid = self._blocks[0]
        keys = sorted(step.key for step in plan(grid, spans)) if grid is not None else []  # type: ignore[arg-type]
        with ExitStack() as turns:
            for at in (*places, *(Address(self._image, ~0, key) for key in keys)):
                turns.enter_context(self._turns(at))
                self._forget(at)
            tiles = ((at, pixels[step.dst]) for at, step in zip(places, steps, strict=True))
            if self._shard is not None and grid is None:
                encoded = [(at, self._sink.encode_tile(at, tile)) for at, tile in tiles]
                self._sink.store_tiles(encoded)  # type: ignore[attr-defined]
                if self._stored is not None:
                    self._stored(encoded)
                del encoded
            else:
                for at, tile in tiles:
                    self._store_encoded(at, self._sink.encode_tile(at, tile))
            if self._shrinks:
                self._shrink_down(0, region.start, pixels)

    def _forget(self, at: Address) -> None:
        """Drop what waits of a tile (or block) that comes whole; its turn is held."""
        partial = self._partial.pop(at, None)
        if partial is not None:
            partial.free(self._scratch)

    def flush(self) -> None:
        """Store every tile that still waits, level by level; pixels never given are 0."""
        for level in range(len(self._levels)):
            self._flush(level)
            self._flush(~level)

    def shrink_stored(
        self,
        progress: Callable[[TileKey], object] | None = None,
        order: Iterable[TileKey] | None = None,
    ) -> None:
        """Fill the smaller levels from the stored tiles of the full resolution, then flush.

        `order` has all of these tiles; by default they come row by row.
        """
        level = self._levels[0]

        def shrink_one(key: TileKey) -> None:
            at = Address(self._image, 0, key)
            tile = self._sink.load_tile(at)
            if tile is not None:
                with self._turns(at):
                    self._hand_down(at, tile)
            if progress is not None:
                progress(key)

        if len(self._levels) > 1:
            run(shrink_one, level.grid.keys() if order is None else order, self._workers)
        self.flush()

    def resume(self) -> None:
        """Hand down again what was waiting for the rest of a smaller tile and is lost.

        Those are the tiles that are done above one that is not. All others that belong to it are
        still to come, and hand themselves down.
        """
        for level, found in enumerate(self._levels[:-1] if self._shrinks else ()):
            above = {at.key for at in self._done if at.level == level}
            keys = (key for key in found.grid.keys() if key in above)  # noqa: SIM118 (no dict)
            waiting = [at for key in keys if self._wanted(at := Address(self._image, level, key))]
            run(self._hand_down_again, waiting, self._workers)

    def _wanted(self, at: Address) -> bool:
        """Return whether a smaller tile that this one is a part of is not done."""
        region = self._levels[at.level].grid.region(at.key)
        for level, factor in self._below[at.level].items():
            sizes = ((*factor, 1, 1), self._levels[level].tile)
            spans = [
                range(a // f // n, -(-b // (f * n)))
                for a, b, f, n in zip(region.start, region.stop, *sizes, strict=True)
            ]
            if any(Address(self._image, level, key) not in self._done for key in product(*spans)):  # type: ignore[arg-type]
                return True
        return False

    def _hand_down_again(self, at: Address) -> None:
        tile = self._sink.load_tile(at)
        if tile is None:  # all 0, which some formats do not store
            tile = np.zeros(self._levels[at.level].grid.tile_shape(at.key), self._dtype)
        with self._turns(at):
            self._hand_down(at, tile)

    def shrink_into(self, level: int, region: Region) -> None:
        """Make all tiles of `level` that a region touches from stored tiles of the level above.

        No tile waits for another: each is made whole from what is stored. So several processes
        can share a level, as long as their regions touch different files.
        """
        spans = tuple(range(a, b) for a, b in zip(region.start, region.stop, strict=True))
        keys = (step.key for step in plan(self._levels[level].grid, spans))  # type: ignore[arg-type]
        run(lambda key: self._shrink_to(Address(self._image, level, key)), keys, self._workers)

    def _shrink_to(self, at: Address) -> None:
        """Make one tile of a smaller level; nothing where nothing is stored above it."""
        source = next(n for n, below in enumerate(self._below) if at.level in below)
        above, factor = self._levels[source], self._below[source][at.level]
        region = self._levels[at.level].grid.region(at.key)
        bounds = zip(region.start, region.stop, (*factor, 1, 1), above.shape, strict=True)
        spans = tuple(range(a * f, min(b * f, n)) for a, b, f, n in bounds)
        pixels: NDArray[Any] | None = None
        for step in plan(above.grid, spans):  # type: ignore[arg-type]
            stored = self._sink.load_tile(Address(self._image, source, step.key))
            if stored is None:
                continue
            if pixels is None:
                pixels = arrays.zeros(tuple(map(len, spans)), self._dtype)  # type: ignore[arg-type]
            pixels[step.dst] = stored[step.src]
        if pixels is not None:
            (tile,) = shrink_all(pixels, [factor], self._method)
            self._store_encoded(at, self._sink.encode_tile(at, tile))

    def take_waiting(self) -> list[tuple[int, tuple[range, ...], NDArray[Any]]]:
        """Return what was given of tiles that are not full, and forget it.

        For `write_at` of another writer, which has the rest: (level, positions along Y, X, Z, C,
        T, pixels). What one writer is given has to be a box of the image.
        """
        found = []
        for at, partial in sorted(self._partial.items()):
            box = partial.given()
            pixels = partial.room.array[tuple(slice(*span) for span in box)]
            assert at.level >= 0
            assert pixels.size == partial.room.array.size - partial.missing
            start = self._levels[at.level].grid.region(at.key).start
            spans = tuple(range(n + a, n + b) for n, (a, b) in zip(start, box, strict=True))
            found.append((at.level, spans, pixels.copy()))
            partial.free(self._scratch)
        self._partial.clear()
        return found

    def write_at(self, level: int, spans: tuple[range, ...], data: NDArray[Any]) -> None:
        """Write `data` (y, x, z, c, t) to a level, and hand it down from there."""
        steps = plan(self._levels[level].grid, spans)  # type: ignore[arg-type]
        run(lambda step: self._put(level, step, data), steps, self._workers)

    def store_encoded(self, at: Address, encoded: Any) -> None:
        """Store a whole tile that was encoded, and handed down, elsewhere."""
        with self._turns(at):
            self._store_encoded(at, encoded)

    def _flush(self, level: int) -> None:
        waiting = sorted(
            (at for at in list(self._partial) if at.level == level), key=lambda at: at.key[::-1]
        )
        run(self._flush_one, waiting, self._workers)

    def _flush_one(self, at: Address) -> None:
        with self._turns(at):
            partial = self._partial.pop(at, None)
            if partial is not None:
                self._complete(at, partial)

    def _complete(self, at: Address, partial: _Partial) -> None:
        if at.level >= 0:
            self._store(at, partial.room.array)
        else:
            self._shrink_block(at, partial.room.array)
        partial.free(self._scratch)

    def _put(self, level: int, step: TileCopy, data: NDArray[Any]) -> None:
        at = Address(self._image, level, step.key)
        if at in self._done:
            return
        with self._turns(at):
            if step.whole:
                self._forget(at)
                self._store(at, data[step.dst])
                return
            self._give(at, step, data)

    def _give(self, at: Address, step: TileCopy, data: NDArray[Any]) -> None:
        """Put a part of a tile (or block) where it waits for the rest; its turn is held."""
        partial = self._partial.get(at) or self._begin(at)
        copy_pixels(partial.room.array, step.src, data, step.dst, plain=step.plain)
        if partial.give(step, self._scratch):
            self._partial.pop(at)
            self._complete(at, partial)
        else:
            partial.rest()

    def _begin(self, at: Address, given: Address | None = None) -> _Partial:
        grid = self._levels[at.level].grid if at.level >= 0 else self._block_grid(~at.level)
        room = self._scratch.room(grid.tile_shape(at.key), self._dtype)
        if at.level >= 0:
            stored = self._sink.load_tile(at)
            if stored is not None:
                room.array[...] = stored
        else:
            self._load_block(at, room.array, given)
        partial = self._partial[at] = _Partial(room)
        return partial

    def _store(self, at: Address, tile: NDArray[Any]) -> None:
        # the turn of `at` is held, so what goes up the pyramid is what was stored last; turns are
        # only ever taken from a level to its blocks and to the next smaller one, so they cannot
        # block each other
        encoded = self._sink.encode_tile(at, tile)
        if not self._below[at.level]:
            self._store_encoded(at, encoded)
            return
        blocks = self._blocks[at.level]
        if blocks is None:
            self._store_encoded(at, encoded)
            del encoded
            self._hand_down(at, tile)
            return
        block = self._block_of(at, blocks)
        with self._turns(block):  # tiles of a block load each other
            self._store_encoded(at, encoded)
            del encoded
            self._give_block(block, at, tile)

    def _hand_down(self, at: Address, tile: NDArray[Any]) -> None:
        """Shrink a stored tile into the next smaller level."""
        blocks = self._blocks[at.level]
        if blocks is None:
            self._shrink_down(at.level, self._levels[at.level].grid.region(at.key).start, tile)
            return
        block = self._block_of(at, blocks)
        with self._turns(block):
            self._give_block(block, at, tile)

    def _store_encoded(self, at: Address, encoded: Any) -> None:
        if self._sink.caps.parallel_store:
            self._sink.store_tile(at, encoded)
        else:
            with self._store_lock:
                self._sink.store_tile(at, encoded)
        if self._stored is not None:
            self._stored([(at, encoded)])

    def _block_of(self, at: Address, blocks: TileGrid) -> Address:
        tile = self._levels[at.level].tile
        key = tuple(k * n // m for k, n, m in zip(at.key, tile, blocks.tile, strict=True))
        return Address(self._image, ~at.level, key)  # type: ignore[arg-type]

    def _give_block(self, block: Address, at: Address, tile: NDArray[Any]) -> None:
        """Put a stored tile into the block it is shrunk with; the block's turn is held."""
        grid = self._block_grid(~block.level)
        start = self._levels[at.level].grid.region(at.key).start
        spans = tuple(range(a, a + n) for a, n in zip(start, tile.shape, strict=True))
        (step,) = plan(grid, spans)  # type: ignore[arg-type]
        if step.whole:
            self._shrink_block(block, tile)
            return
        if block not in self._partial:
            self._begin(block, given=at)
        self._give(block, step, tile)

    def _shrink_block(self, at: Address, block: NDArray[Any]) -> None:
        start = self._block_grid(~at.level).region(at.key).start
        self._shrink_down(~at.level, start, block)

    def _shrink_down(self, level: int, start: Shape5, pixels: NDArray[Any]) -> None:
        below = self._below[level]
        smaller = shrink_all(pixels, list(below.values()), self._method)
        for (number, factor), small in zip(below.items(), smaller, strict=True):
            spans = tuple(
                range(a // f, a // f + n)
                for a, f, n in zip(start, (*factor, 1, 1), small.shape, strict=True)
            )
            for step in plan(self._levels[number].grid, spans):  # type: ignore[arg-type]
                self._put(number, step, small)

    def _block_grid(self, level: int) -> TileGrid:
        grid = self._blocks[level]
        assert grid is not None
        return grid

    def _load_block(self, at: Address, out: NDArray[Any], given: Address | None) -> None:
        """Fill a block with what is stored of it, but for the tile that will be given."""
        region = self._block_grid(~at.level).region(at.key)
        spans = tuple(range(a, b) for a, b in zip(region.start, region.stop, strict=True))
        for step in plan(self._levels[~at.level].grid, spans):  # type: ignore[arg-type]
            tile = Address(self._image, ~at.level, step.key)
            stored = None if tile == given else self._sink.load_tile(tile)
            if stored is not None:
                out[step.dst] = stored[step.src]


def _factor(large: Shape5, small: Shape5) -> tuple[int, int, int]:
    """Return how much smaller a level is than the one above, along Y, X, Z."""
    y, x, z = (-(-a // b) for a, b in zip(large[:3], small[:3], strict=True))
    for a, b, f in zip(large[:3], small[:3], (y, x, z), strict=True):
        if -(-a // f) != b:
            raise SpecError(f"a level of {large[:3]} pixels cannot be shrunk to {small[:3]}")
    return (y, x, z)


def _below(sink: Sink, levels: Sequence[Level]) -> list[dict[int, tuple[int, int, int]]]:
    """Return which levels each level is shrunk into, and by how much along Y, X, Z."""
    factors = getattr(sink, "factors", None)
    if factors is not None:
        return [dict(enumerate(factors, 1)), *({} for _ in levels[1:])]
    pairs = enumerate(pairwise(levels), 1)
    return [*({n: _factor(large.shape, small.shape)} for n, (large, small) in pairs), {}]


def _blocks(level: Level, below: dict[int, tuple[int, int, int]]) -> TileGrid | None:
    """Return the grid of the smallest groups of tiles that can be shrunk; None: single tiles."""
    y, x, z = (math.lcm(*sizes) for sizes in zip(level.tile[:3], *below.values(), strict=True))
    size = (y, x, z, *level.tile[3:])
    return None if size == level.tile else TileGrid(level.shape, size)


def _grown(size: Shape5, shape: Shape5, most: int) -> Shape5:
    """Return a multiple of `size` of at most so many pixels: longer along X, then Y, then Z."""
    grown = list(size)
    for axis in (1, 0, 2):
        while grown[axis] < shape[axis] and math.prod(grown) * 2 <= most:
            grown[axis] *= 2
    return tuple(grown)  # type: ignore[return-value]


def _picked(span: Span, item: Any) -> Span:
    """Return the positions of `span` that an index picks."""
    return np.asarray(span)[item] if isinstance(item, np.ndarray) else span[item]


def _where(step: TileCopy, shape: tuple[int, ...]) -> tuple[Any, ...]:
    if step.plain:
        return step.src
    # each position once, or the pixels given twice would be counted twice
    once = tuple(np.unique(p) if isinstance(p, np.ndarray) else p for p in step.src)
    return open_mesh(once, shape)


def _box(step: TileCopy) -> _Box | None:
    """Return the pixels of a step as a box, None where they are none."""
    if not step.plain or any(s.step not in (None, 1) for s in step.src):  # type: ignore[union-attr]
        return None
    return tuple((s.start, s.stop) for s in step.src)  # type: ignore[union-attr]


def _meet(one: _Box, other: _Box) -> bool:
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))
