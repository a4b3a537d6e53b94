"""GrowingTiff: one OME-TIFF to which planes are appended while others read it."""

from __future__ import annotations

import threading
import uuid
import warnings
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bioio_tk.backends import _tiff_layout as tag
from bioio_tk.backends._tiff_chain import LiveText, Tables, TiffChain
from bioio_tk.backends._tiff_codecs import TileCodec
from bioio_tk.backends.base import Caps
from bioio_tk.backends.tiff_write import SOFTWARE, TILE_LIMIT, padded
from bioio_tk.core.spec import Level
from bioio_tk.errors import BioIOWarning, PixelTypeError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends._open_files import OpenFiles
    from bioio_tk.backends._tiff_codecs import Bytes
    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.acquisition import AcquisitionPlan
    from bioio_tk.core.frames import FrameOrder
    from bioio_tk.core.spec import Address, ImageSpec

_MULTIPLE = 16


class GrowingTiff:
    """One position: an OME-TIFF to which planes are appended. Made by `TiffStore.open`.

    Each plane is an IFD, in the order they are taken. Where a tile is as wide as the image it is
    a strip, of any height, so a frame that is one tile is one strip. Other tiles are as high and
    wide as the next multiple of 16. Smaller levels are the SubIFDs of their plane.

    As soon as one plane of a round of the slowest axis is there, all of the round are: readers
    take an image that is not full for another one. What was not stored is one shared tile of
    zeros.

    Attributes
    ----------
    planes : int
        How many planes readers see with their pixels.
    lost : int or None
        Number of the first plane that was stored and is no longer there.
    uuid : str
        Of the file.
    """

    caps: ClassVar[Caps] = Caps(parallel_read=True, parallel_store=True, grows=True)

    def __init__(
        self,
        path: Path,
        plan: AcquisitionPlan,
        position: int,
        options: StoreOptions,
        files: OpenFiles,
        *,
        again: int | None = None,
    ) -> None:
        from bioio_tk.meta.ome_stream import live_xml

        self.path = path
        self.uuid = str(uuid.uuid4())
        self.planes = 0
        self.lost: int | None = None
        self._plan = plan
        self._order: FrameOrder = plan.order
        self._codec = TileCodec(plan.image.dtype, 1, options)
        self._apart = self._codec.name == "none" and len(plan.positions) > 1
        levels = tuple(_stored_as(level, apart=self._apart) for level in plan.image.levels)
        self.images: tuple[ImageSpec, ...] = (replace(plan.image, levels=levels),)
        self._pages = [_page(plan.image, n, level, self._codec) for n, level in enumerate(levels)]
        self._places = [_Places(page) for page in self._pages]
        self._lone = [  # what is to be stored as it comes: a whole plane in one strip
            level.tile if page.strips and page.down == 1 else None
            for level, page in zip(levels, self._pages, strict=True)
        ]
        self._lock = threading.Lock()  # of places and of what is promised
        self._grow_lock = threading.Lock()  # of what is in the chain
        self._promised = 0  # planes whose tables are, or are just being, written
        self._blanks: dict[tuple[int, int], tuple[int, int]] = {}
        name = plan.positions[position].name
        text = LiveText(*live_xml(plan, position, name, uuid=self.uuid))
        replaces = plan.order.cycle > 1
        about = path, self._pages, text, SOFTWARE, files
        if again is None:
            self._chain = TiffChain(*about, replaces=replaces, apart=self._apart)
        else:
            self._chain, tables = TiffChain.reopen(*about, replaces=replaces, apart=self._apart)
            self._take_up(tables, again)

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        """Raise what `TiffStore.check` raises for such an image.

        Raises
        ------
        SpecError
            The image or the options make no sense.
        UnsupportedError
            TIFF, or the compression, cannot hold such pixels.
        """
        for spec in images:
            TileCodec(spec.dtype, 1, options)
            _check_geometry(spec)

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Bytes:
        """Compress a whole (clipped) tile. Any thread.

        Raw tiles that need no padding are not copied: store them before the pixels change.
        """
        if tile.dtype != self.images[0].dtype:
            raise PixelTypeError(f"the image is {self.images[0].dtype}, the tile {tile.dtype}")
        pixels = tile[:, :, 0, 0, 0]
        if tile.shape == self._lone[at.level]:
            return self._codec.encode(pixels)
        level = self.images[0].levels[at.level]
        shape = level.grid.tile_shape(at.key)
        if tile.shape != shape:
            raise SpecError(f"tile {at.key} has the shape {shape}, not {tile.shape}")
        if shape[:2] != level.tile[:2] and not self._pages[at.level].strips:
            pixels = padded(pixels, level.tile, edge=self._codec.lossy)
        return self._codec.encode(pixels)

    def store_tile(self, at: Address, encoded: Bytes) -> None:
        """Append the bytes of a tile. Any thread."""
        self.store_tiles([(at, encoded)])

    def store_tiles(self, tiles: Sequence[tuple[Address, Bytes]]) -> None:
        """Append the bytes of several tiles in one piece. Any thread, planes in any order."""
        offsets = self._chain.write([encoded for _, encoded in tiles])
        late = []
        with self._lock:
            for (at, encoded), offset in zip(tiles, offsets, strict=True):
                plane = self._order.plane(*at.key[2:])
                self._places[at.level].put(plane, at.key, offset, len(encoded))
                if plane < self._promised:
                    late.append((plane, at, (offset, len(encoded))))
        if late:
            self._enter(late)

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        """Return a stored tile, clipped, or None if it was never stored. Any thread."""
        plane = self._order.plane(*at.key[2:])
        with self._lock:
            offset, count = self._places[at.level].get(plane, at.key)
        if not count:
            return None
        level = self.images[0].levels[at.level]
        y, x = level.grid.tile_shape(at.key)[:2]
        height, width = (y, x) if self._pages[at.level].strips else level.tile[:2]
        pixels = self._codec.decode(self._chain.read(offset, count), height, width)
        return pixels[:y, :x, None, None, None]

    def extend(self, planes: int) -> None:
        """Let readers see the first `planes` planes of the order.

        What was not stored of them reads as 0.
        """
        from bioio_tk.meta.ome_stream import live_numbers

        with self._grow_lock:
            start, there = self.planes, self._chain.planes
            if planes <= start:
                return
            stop = planes if planes <= there else self._whole(planes)
            with self._lock:
                tables = [places.tables(start, planes) for places in self._places]
                self._promised = planes
            try:
                tables = [self._filled(n, table, stop - start) for n, table in enumerate(tables)]
                old = max(0, min(planes, there) - start)
                if old:
                    self._chain.replace(start, [table.cut(0, old) for table in tables])
                    self.planes += old
                if stop > there:
                    new = [table.cut(there - start, stop - start) for table in tables]
                    self._chain.append(new, live_numbers(self._plan, planes))
                    self.planes = planes
            finally:
                self._promised = self.planes

    def settle(self, planes: int) -> None:
        """Cut `images` to what `planes` planes need: no more will come."""
        self.extend(planes)
        size = self._order.extent(max(planes, self.planes))
        levels = tuple(
            Level((*level.shape[:2], *size), level.tile) for level in self.images[0].levels
        )
        self.images = (replace(self.images[0], levels=levels),)

    def grow(self, image: int, t: int) -> None:
        """Do nothing: there is room for all planes that come."""

    def finish(self) -> None:
        """Do nothing: the store completes all files together."""

    def part(self) -> None:
        """Prepare the file for documents of other files that refer to it; no more planes come."""
        with self._grow_lock:
            if self._apart and self._chain.planes == 1:
                tables = [places.tables(0, 1) for places in self._places]
                tables = [self._filled(n, table, 1) for n, table in enumerate(tables)]
                self._chain.part(tables)

    def describe(self, document: bytes) -> None:
        """Let the OME-XML of the file be another one."""
        self._chain.describe(document)

    def close(self) -> None:
        """Take no more tiles. Safe to call twice."""
        self._chain.close()

    def _enter(self, late: Sequence[tuple[int, Address, tuple[int, int]]]) -> None:
        """Enter tiles of planes that are in the chain already: those of smaller levels, mostly."""
        with self._grow_lock:
            for plane, at, where in late:
                if plane < self.planes:  # else what should have put it there has failed
                    tile = self._places[at.level].number(at.key)
                    self._chain.enter(plane, at.level, tile, where)

    def _whole(self, planes: int) -> int:
        """Return the planes of all rounds of which one of `planes` planes is."""
        return -(-planes // self._order.cycle) * self._order.cycle

    def _filled(self, level: int, table: Tables, planes: int) -> Tables:
        """Return a table of so many planes that has a tile of zeros where none was stored."""
        table = table.padded(planes)
        empty = table.counts == 0
        if not empty.any():
            return table
        blanks = [self._blank(level, tile) for tile in range(table.counts.shape[1])]
        offsets, counts = np.array(blanks, np.uint64).T
        return Tables(
            np.where(empty, offsets, table.offsets),
            np.where(empty, counts, table.counts).astype(np.uint32),
        )

    def _blank(self, level: int, tile: int) -> tuple[int, int]:
        """Return where a tile of zeros is, and its length; all of a size share it."""
        spec, page = self.images[0].levels[level], self._pages[level]
        height, width = spec.tile[:2]
        if page.strips:
            height, width = min(height, spec.shape[0] - tile * height), spec.shape[1]
        key = level, height
        if key not in self._blanks:
            if self._codec.name == "none":
                count = height * width * self.images[0].dtype.itemsize
                self._blanks[key] = self._chain.hole(count), count
            else:
                zeros = self._codec.encode(np.zeros((height, width), self.images[0].dtype))
                self._blanks[key] = self._chain.write([zeros])[0], len(zeros)
        return self._blanks[key]

    def _take_up(self, tables: Sequence[Tables], planes: int) -> None:
        """Go on with what is in the chain, of which `planes` planes are known to be there."""
        there = max(planes, self._stored(tables[0]))
        self.planes = self._promised = min(there, self._chain.planes)
        if self.planes < planes:
            self.lost = self.planes
            warnings.warn(
                f"{str(self.path)!r} has only {self.planes} of the {planes} planes that were "
                "stored: it was cut, or the machine has lost its power; the others read as 0 and "
                "are listed as missing",
                BioIOWarning,
                stacklevel=5,
            )
        for places, table in zip(self._places, tables, strict=True):
            places.load(table.cut(0, self.planes))

    def _stored(self, table: Tables) -> int:
        """Return how many planes there are before those that still wait for their pixels.

        These share one tile of zeros.
        """
        rows = table.offsets
        if self._order.cycle == 1 or not len(rows):
            return len(rows)
        waits = (rows == rows[-1]).all(axis=1)
        first = 0 if waits.all() else len(rows) - int(np.argmin(waits[::-1]))
        offset, count = int(rows[-1, -1]), int(table.counts[-1, -1])
        if first < len(rows) - 1 or not any(self._chain.read(offset, count)):
            return first
        return len(rows)


class _Places:
    """Where the tiles of one level are: 12 bytes a tile, for as many planes as have come."""

    def __init__(self, page: tag.Page) -> None:
        self._tiles, self._across = page.down * page.across, page.across
        self._offsets, self._counts = array("Q"), array("I")

    def number(self, key: Sequence[int]) -> int:
        """Return which tile of its plane it is."""
        return key[0] * self._across + key[1]

    def put(self, plane: int, key: Sequence[int], offset: int, count: int) -> None:
        """Remember where a tile is."""
        at = plane * self._tiles + self.number(key)
        self._reach(at + 1)
        self._offsets[at], self._counts[at] = offset, count

    def get(self, plane: int, key: Sequence[int]) -> tuple[int, int]:
        """Return offset and length of a tile, a length of 0 where it was never stored."""
        at = plane * self._tiles + self.number(key)
        return (self._offsets[at], self._counts[at]) if at < len(self._counts) else (0, 0)

    def tables(self, start: int, stop: int) -> Tables:
        """Return what is known of some planes."""
        self._reach(stop * self._tiles)
        some = slice(start * self._tiles, stop * self._tiles)
        shape = (stop - start, self._tiles)
        return Tables(
            np.frombuffer(self._offsets[some], np.uint64).reshape(shape),
            np.frombuffer(self._counts[some], np.uint32).reshape(shape),
        )

    def load(self, table: Tables) -> None:
        """Remember where all tiles of the first planes are."""
        self._offsets = array("Q", table.offsets.tobytes())
        self._counts = array("I", table.counts.tobytes())

    def _reach(self, count: int) -> None:
        lacking = count - len(self._counts)
        if lacking > 0:
            self._offsets.frombytes(bytes(8 * lacking))
            self._counts.frombytes(bytes(4 * lacking))


# --- how the pixels lie in the file --------------------------------------------------------------


def _check_geometry(spec: ImageSpec) -> None:
    shape = spec.shape
    if min(shape) < 1:
        raise SpecError(f"the image has the shape {shape} (Y, X, Z, C, T): give 1 or more")
    for index, level in enumerate(spec.levels):
        if level.shape[2:] != shape[2:] or min(level.shape) < 1:
            raise SpecError(
                f"level {index} has the shape {level.shape} (Y, X, Z, C, T): in TIFF all levels "
                f"have the Z, C, T of the first, {shape[2:]}; shrink along Y and X only"
            )
        y, x = _stored_as(level).tile[:2]
        if y * x * spec.dtype.itemsize >= TILE_LIMIT:
            raise SpecError(
                f"frames of {shape[0]} x {shape[1]} pixels of {spec.dtype} in pieces of {y} x {x} "
                "are 2 GB and more each, which TIFF readers cannot take: give the y and x "
                "dimensions a chunk_size, such as 4096"
            )


def _stored_as(level: Level, *, apart: bool = False) -> Level:
    """Return a level with the tiles that TIFF can have: of one plane, strips if they are wide.

    With `apart` a single row is a tile: a strip of it could not be parted, see `TiffChain.part`.
    """
    height, width = level.shape[:2]
    y, x = min(level.tile[0], height), min(level.tile[1], width)
    if _rounded(x) >= width and not (apart and height == 1):
        return Level(level.shape, (y, width, 1, 1, 1))
    return Level(level.shape, (_rounded(y), _rounded(x), 1, 1, 1))


def _rounded(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE


def _page(spec: ImageSpec, number: int, level: Level, codec: TileCodec) -> tag.Page:
    """Return the page of a level."""
    y, x = level.shape[:2]
    strips = level.tile[1] == x and level.tile[0] <= y
    tags = {
        tag.NEW_SUBFILE_TYPE: (min(number, 1),),
        tag.IMAGE_WIDTH: (x,),
        tag.IMAGE_LENGTH: (y,),
        **codec.tags,
        **tag.resolution(spec.physical_size, spec.shape[:2], (y, x)),
    }
    if strips:
        tags[tag.ROWS_PER_STRIP] = (level.tile[0],)
    else:
        tags |= {tag.TILE_LENGTH: (level.tile[0],), tag.TILE_WIDTH: (level.tile[1],)}
    return tag.Page(tags, *level.grid.counts[:2], strips=strips)
