"""TiffSink: writes OME-TIFF whose file is a valid TIFF from its first tile on."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from bioio_tk import __version__
from bioio_tk.backends import _tiff_layout as tag
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._tiff_codecs import TileCodec
from bioio_tk.backends.base import Caps
from bioio_tk.errors import (
    ClosedError,
    DamagedFileError,
    PixelTypeError,
    SpecError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends._tiff_codecs import Bytes
    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import Address, ImageSpec, Level

SOFTWARE = f"bioio_tk {__version__}"
"""What the Software tag of a file says."""

CLASSIC_LIMIT = 2**32
"""A classic TIFF cannot point behind this many bytes."""

CLASSIC_AIM = 3 * 2**30
"""Above this raw size a file becomes BigTIFF: pixels that do not compress grow a little, and
tiles that are stored again leave gaps."""

TILE_LIMIT = 2**31
"""Readers count the bytes of a tile in 32 bits, many of them signed."""


_PAGE = 4096  # a write within a page of the system is done as a whole or not at all
_ENTRY_LOCKS = 64  # one would make threads queue behind each other's writes to the tables


class TiffSink:
    """A new OME-TIFF.

    All IFDs, the OME-XML and empty tile tables are laid down first; tiles are appended, and
    enter the tables when they are down. Whenever the process ends, the file opens, what was
    stored reads right and the rest reads as 0.

    Each plane is an IFD, of `ImageSpec.samples` channels; planes follow each other Z fastest,
    then C, then T, then image. Smaller levels are the SubIFDs of their plane.

    Parameters
    ----------
    path : Path
        An existing, empty file.
    images : tuple of ImageSpec
        What is to be stored.
    options : StoreOptions
        How. Compressions are ``deflate`` (the default), ``none``, ``zstd``, ``lzw``,
        ``packbits``, ``lzma``, ``jpeg``, ``jpeg2000``, ``jpegxl`` and ``lerc``. `extra` may hold
        ``bigtiff``: True or False instead of as the size demands.

    Raises
    ------
    SpecError
        The images or options make no sense.
    UnsupportedError
        TIFF, or the compression, cannot hold such images.
    """

    caps: ClassVar[Caps] = Caps(parallel_read=True, parallel_store=True, grows=False)

    def __init__(self, path: Path, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        from bioio_tk.meta.ome import document

        self.images = images
        plan = _plan(images, options)
        text = document(images, metadata=options.metadata, tiff=True).encode() + b"\0"
        software = SOFTWARE.encode() + b"\0"
        layout = tag.lay_out(plan.pages, text, software, big=plan.big)
        self._codecs = plan.codecs
        self._tables = layout.tables
        self._limit = 2**63 if plan.big else CLASSIC_LIMIT
        self._width = 8 if plan.big else 4
        self._offsets = array("Q", bytes(8 * layout.tiles))
        self._counts = array("I", bytes(4 * layout.tiles))
        self._turns = bytearray(layout.tiles)  # how often a tile was stored, modulo 256
        self._space = _Space(layout.size)
        self._down = layout.size  # the file is at least so long
        self._lock = threading.Lock()  # of the space, not of what is written there
        self._entry_locks = tuple(threading.Lock() for _ in range(_ENTRY_LOCKS))
        self._closed = False
        self._file = RandomFile(path, writable=True)
        try:
            self._begin(layout)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def variant(cls, extra: Mapping[str, Any]) -> type[Any]:
        """Return the class that writes with such options: ImageJ's TIFF for ``ome=False``."""
        if extra.get("ome", True):
            return cls
        from bioio_tk.backends._tiff_hyperstack import HyperstackSink

        return HyperstackSink

    @classmethod
    def resume(
        cls,
        path: Path,
        images: tuple[ImageSpec, ...],
        options: StoreOptions,
        tiles: Mapping[Address, Any],
    ) -> TiffSink:
        """Return a sink that goes on with an unfinished file.

        New tiles follow the last that is in the tables. Tiles that are there but not in `tiles`
        are not known to be whole: they are stored again.

        Raises
        ------
        DamagedFileError
            The file does not begin as one of these images and options does.
        """
        return _ResumedTiff(path, images, options, tiles)

    def holds(self, at: Address) -> bool:
        """Return whether a tile is in the tables."""
        return self._counts[self._entry(at).tile] > 0

    def trace(self, at: Address, encoded: Any) -> int:
        """Return what `resume` has to know of a tile: nothing."""
        return 1

    def suspend(self) -> None:
        """Release the file as it is."""
        self.close()

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        """Raise what the constructor would raise for such images and options.

        Raises
        ------
        SpecError
            The images or options make no sense.
        UnsupportedError
            TIFF, or the compression, cannot hold such images.
        """
        _plan(images, options)

    @staticmethod
    def encoder(images: tuple[ImageSpec, ...], options: StoreOptions) -> TiffEncoder:
        """Return what compresses the tiles of such a file without being it."""
        return TiffEncoder(images, options)

    @staticmethod
    def stored(path: Path) -> list[NDArray[np.bool_]]:
        """Return for each level which tiles a file has that was left unfinished.

        Each is a table of planes x tiles; planes follow each other as said above, tiles run
        along X, then Y.
        """
        from bioio_tk.backends._tiff_stored import stored_tiles

        return stored_tiles(path)

    @staticmethod
    def fill_up(path: Path) -> None:
        """Do what `finish` would have done for such a file."""
        from bioio_tk.backends._tiff_stored import fill_up

        fill_up(path)

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Bytes:
        """Compress a whole (clipped) tile. Any thread.

        Raw tiles that need no padding are not copied: store them before the pixels change.
        """
        self._check_open()
        return _encoded(self.images[at.image], self._codecs[at.image], at, tile)

    def store_tile(self, at: Address, encoded: Bytes) -> None:
        """Append the bytes of a tile and enter them in the table. Any thread."""
        offset = self._append(encoded)
        entry = self._entry(at)
        with self._entry_locks[entry.tile % _ENTRY_LOCKS]:
            self._enter(entry, offset, len(encoded), tail=self._codecs[at.image].tail)

    def _append(self, encoded: Bytes) -> int:
        """Write bytes where there is room and return where that is."""
        count = len(encoded)
        with self._lock:
            self._check_open()
            offset = self._space.take(count, self._limit)
        if offset is None:
            raise UnsupportedError(
                f"{str(self._file.path)!r} would pass the 4 GB of a classic TIFF: write it anew "
                "with extra={'bigtiff': True}; what was stored so far is whole"
            )
        try:
            self._file.write(offset, encoded)
        except BaseException:
            with self._lock:
                self._space.give(offset, count)
            raise
        # two threads may make this smaller than it could be, but never larger than it is
        self._down = max(self._down, offset + count)
        self._check_open()
        return offset

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        """Return a stored tile, clipped, or None if it was never stored. Any thread."""
        data = self._read(self._entry(at).tile)
        if data is None:
            return None
        level = self.images[at.image].levels[at.level]
        y, x, *_ = level.grid.tile_shape(at.key)
        pixels = self._codecs[at.image].decode(data, *level.tile[:2])[:y, :x]
        return pixels[:, :, None, None, None] if pixels.ndim == 2 else pixels[:, :, None, :, None]

    def grow(self, image: int, t: int) -> None:
        """Refuse: the planes of a TIFF are laid down when it is created."""
        raise UnsupportedError(
            f"a TIFF cannot grow to {t} time points while it is written: give their number at "
            "the start, or write OME-Zarr"
        )

    def finish(self) -> None:
        """Let every tile that was never stored be one shared tile of zeros.

        TIFF 6.0 knows no empty entries; libtiff, and all that is built on it, refuses them.
        """
        self._check_open()
        for number, spec in enumerate(self.images):
            for level, table in zip(spec.levels, self._tables[number], strict=True):
                if not _blank(spec, level, self._codecs[number]):  # else the layout has one
                    self._fill_up(number, level, table)

    def _fill_up(self, image: int, level: Level, table: tag.Table) -> None:
        spec = self.images[image]
        planes = spec.shape[2] * (spec.shape[3] // spec.samples) * spec.shape[4]
        mine = slice(table.first, table.first + planes * table.tiles)
        offsets = np.frombuffer(self._offsets, np.uint64)[mine].reshape(planes, table.tiles)
        counts = np.frombuffer(self._counts, np.uint32)[mine].reshape(planes, table.tiles)
        empty = counts == 0
        if not empty.any():
            return
        shape = level.tile[:2] if spec.samples == 1 else (*level.tile[:2], spec.samples)
        encoded = self._codecs[image].encode(np.zeros(shape, spec.dtype))
        offset = self._append(encoded)
        offsets[empty], counts[empty] = offset, len(encoded)
        for plane in np.flatnonzero(empty.any(axis=1)).tolist():
            first = table.entry(plane, 0)
            rows = offsets[plane].astype(f"<u{self._width}"), counts[plane].astype("<u4")
            self._file.write(first.offset_at, rows[0])
            self._file.write(first.count_at, rows[1])

    def close(self) -> None:
        """Release the file; everything has been handed to the system already. Safe twice."""
        with self._lock:
            self._closed = True
            self._file.close()

    def _begin(self, layout: tag.Layout) -> None:
        # The header goes last: a file without one is not taken for a TIFF. Of the tables most is
        # zero, which needs no more than the file's length.
        self._file.write(layout.size - 1, b"\0")
        for offset, data in layout.fills:
            self._file.write(offset, data)
        self._file.write(len(layout.header), layout.body)
        self._file.write(0, layout.header)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the TIFF is closed: it neither takes nor gives tiles any more")

    def _entry(self, at: Address) -> tag.Entry:
        table = self._tables[at.image][at.level]
        spec = self.images[at.image]
        _, _, z, c, _ = spec.levels[0].shape
        ky, kx, kz, kc, kt = at.key
        plane = (kt * (c // spec.samples) + kc) * z + kz
        return table.entry(plane, ky * table.across + kx)

    def _enter(self, entry: tag.Entry, offset: int, count: int, *, tail: bool) -> None:
        """Put a tile whose bytes are down into the table; the lock of its entry is held.

        Offset and count are one write where they stand side by side, in the IFD of a plane of
        one tile, else two. Between these the tile is the old or the new one with bytes behind it
        that belong to others, or no tile where readers would mind such bytes.
        """
        old_offset, old_count = self._offsets[entry.tile], self._counts[entry.tile]
        new = offset.to_bytes(self._width, "little"), count.to_bytes(4, "little")
        steps = [(entry.offset_at, new[0]), (entry.count_at, new[1])]
        if old_count == count:
            steps.pop()
        elif entry.between and entry.offset_at // _PAGE == (entry.count_at + 3) // _PAGE:
            steps = [(entry.offset_at, entry.between.join(new))]
        elif old_count and not tail:
            steps.insert(0, (entry.count_at, bytes(4)))
        elif old_count and count > old_count:
            steps.reverse()
            self._reach(old_offset + count)
        elif old_count:
            self._reach(offset + old_count)
        for where, data in steps:
            self._file.write(where, data)
        self._offsets[entry.tile], self._counts[entry.tile] = offset, count
        self._turns[entry.tile] = (self._turns[entry.tile] + 1) % 256
        if old_count:
            with self._lock:
                self._space.give(old_offset, old_count)

    def _reach(self, end: int) -> None:
        """Make the file at least `end` bytes long, without touching a byte that is spoken for."""
        if end <= self._down:
            return
        with self._lock:  # held while writing: what is passed over is free to be taken afterwards
            last = max(end - 1, self._space.end)
            self._file.write(last, b"\0")
            self._space.reach(last + 1)
        self._down = max(self._down, last + 1)

    def _read(self, tile: int) -> bytes | None:
        while True:
            with self._entry_locks[tile % _ENTRY_LOCKS]:
                self._check_open()
                offset, count, turn = self._offsets[tile], self._counts[tile], self._turns[tile]
            if count == 0:
                return None
            data = self._file.read(offset, count)
            if self._turns[tile] == turn:  # else it moved, and its place may be another tile's
                break
        if len(data) < count:
            raise DamagedFileError(
                f"{str(self._file.path)!r} was cut while it was written: a tile of {count} bytes "
                f"has only {len(data)} left"
            )
        return data


class _ResumedTiff(TiffSink):
    """An OME-TIFF that was begun by a process that is no more."""

    def __init__(
        self,
        path: Path,
        images: tuple[ImageSpec, ...],
        options: StoreOptions,
        tiles: Mapping[Address, Any],
    ) -> None:
        self._tiles = tiles
        super().__init__(path, images, options)

    def _begin(self, layout: tag.Layout) -> None:
        from bioio_tk.backends._tiff_stored import check_head, read_tables

        check_head(self._file, layout)
        offsets, counts = read_tables(self._file, layout)
        ends = offsets + (counts // tag.ALIGN + 1) * tag.ALIGN  # see _room()
        end = int(ends.max(initial=layout.size, where=offsets >= layout.size))
        size = self._file.size
        for at in self._tiles:
            tile = self._entry(at).tile
            offset, count = int(offsets[tile]), int(counts[tile])
            if offset >= layout.size and 0 < count <= size - offset:  # else it was not stored
                self._offsets[tile], self._counts[tile] = offset, count
        self._space = _Space(end)
        self._down = size


class TiffEncoder:
    """Compresses the tiles of an OME-TIFF that another process stores.

    Parameters
    ----------
    images, options
        As for `TiffSink`.
    """

    def __init__(self, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        self.images = images
        self._codecs = _plan(images, options).codecs

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Bytes:
        """Do what `TiffSink.encode_tile` does."""
        return _encoded(self.images[at.image], self._codecs[at.image], at, tile)


class _Space:
    """Which bytes of a file are free: all from `end` on, and what was given back before it."""

    def __init__(self, end: int) -> None:
        self.end = end
        self._by_offset: list[tuple[int, int]] = []  # (offset, size), never touching each other
        self._by_size: list[tuple[int, int]] = []  # (size, offset)

    def take(self, count: int, limit: int) -> int | None:
        """Return the offset of `count` bytes that are free from now on no more, below `limit`."""
        size = _room(count)
        fit = bisect_left(self._by_size, (size, 0))
        if fit < len(self._by_size):
            room, offset = self._by_size[fit]
            if offset + count > limit:
                return None
            self._remove(offset, room)
            if room > size:
                self._add(offset + size, room - size)
            return offset
        last = self._by_offset[-1] if self._by_offset else (0, 0)
        start = last[0] if sum(last) == self.end else self.end
        if start + count > limit:
            return None
        if start < self.end:
            self._remove(*last)
        self.end = start + size
        return start

    def give(self, offset: int, count: int) -> None:
        """Take back what `take` gave."""
        size = _room(count)
        at = bisect_left(self._by_offset, (offset, 0))
        if at < len(self._by_offset) and self._by_offset[at][0] == offset + size:
            size += self._by_offset[at][1]
            self._remove(*self._by_offset[at])
        if at and sum(self._by_offset[at - 1]) == offset:
            offset, before = self._by_offset[at - 1]
            size += before
            self._remove(offset, before)
        self._add(offset, size)

    def reach(self, end: int) -> None:
        """Move the end up; what was passed over is free."""
        count = end - self.end
        self.give(self.end, count)
        self.end += _room(count)

    def _add(self, offset: int, size: int) -> None:
        insort(self._by_offset, (offset, size))
        insort(self._by_size, (size, offset))

    def _remove(self, offset: int, size: int) -> None:
        del self._by_offset[bisect_left(self._by_offset, (offset, size))]
        del self._by_size[bisect_left(self._by_size, (size, offset))]


def _room(count: int) -> int:
    """Return what `count` bytes take: at least one more, so that no tile touches the next.

    Where they touch, readers take them together in one piece, and some (tifffile 2026.3 is one)
    do so as well for planes whose tiles lie otherwise, or past a tile that is just being stored.
    """
    return (count // tag.ALIGN + 1) * tag.ALIGN


def _encoded(spec: ImageSpec, codec: TileCodec, at: Address, tile: NDArray[Any]) -> Bytes:
    """Compress a whole (clipped) tile."""
    level = spec.levels[at.level]
    shape = level.grid.tile_shape(at.key)
    if tile.shape != shape:
        raise SpecError(f"tile {at.key} has the shape {shape}, not {tile.shape}")
    if tile.dtype != spec.dtype:
        raise PixelTypeError(f"the image is {spec.dtype}, the tile {tile.dtype}")
    pixels = tile[:, :, 0, 0, 0] if spec.samples == 1 else tile[:, :, 0, :, 0]
    if shape[:2] != level.tile[:2]:
        pixels = padded(pixels, level.tile, edge=codec.lossy)
    return codec.encode(pixels)


def padded(pixels: NDArray[Any], tile: Shape5, *, edge: bool) -> NDArray[Any]:
    """Return the pixels of a tile at the border, filled up to the size of a whole one.

    With `edge` the last pixels are repeated: a sharp step to 0 would spoil its neighbours in
    codecs that are not lossless.
    """
    y, x = pixels.shape[:2]
    out = np.zeros((*tile[:2], *pixels.shape[2:]), pixels.dtype)
    out[:y, :x] = pixels
    if edge:
        out[:y, x:] = out[:y, x - 1 : x]
        out[y:] = out[y - 1 : y]
    return out


# --- what is checked and decided before there is a file ------------------------------------------


class _Plan(NamedTuple):
    codecs: tuple[TileCodec, ...]
    pages: list[tuple[int, list[tag.Page]]]
    big: bool


def _plan(images: tuple[ImageSpec, ...], options: StoreOptions) -> _Plan:
    for name in options.extra:
        if name != "bigtiff":
            raise SpecError(f"TIFF has no option {name!r}; there is 'bigtiff' (True or False)")
    big = options.extra.get("bigtiff")
    if big not in (None, True, False):
        raise SpecError(f"bigtiff={big!r}: give True, False, or leave it out")
    if not images:
        raise SpecError("there is no image to store: a TIFF has at least one")
    for number, spec in enumerate(images):
        _check_geometry(number, spec)
    codecs = tuple(TileCodec(spec.dtype, spec.samples, options) for spec in images)
    pages = [_pages(spec, codec) for spec, codec in zip(images, codecs, strict=True)]
    planes = sum(count for count, _ in pages)
    head = tag.head_size(pages, text=4096 + 512 * planes)
    if big is None:
        big = head + sum(map(_raw_size, images)) > CLASSIC_AIM
    elif not big and head > CLASSIC_LIMIT:
        raise UnsupportedError(
            f"a classic TIFF cannot hold {planes} planes of this size: leave bigtiff=False out"
        )
    return _Plan(codecs, pages, bool(big))


def _check_geometry(number: int, spec: ImageSpec) -> None:
    shape, samples = spec.shape, spec.samples
    if min(shape) < 1:
        raise SpecError(f"image {number} has the shape {shape} (Y, X, Z, C, T): give 1 or more")
    if not 1 <= samples < 2**16 or shape[3] % samples:
        raise SpecError(
            f"image {number} has {samples} samples a pixel and {shape[3]} channels: the channels "
            "must be a multiple of the samples"
        )
    for index, level in enumerate(spec.levels):
        where = f"level {index} of image {number}"
        if level.shape[2:] != shape[2:] or min(level.shape) < 1:
            raise SpecError(
                f"{where} has the shape {level.shape} (Y, X, Z, C, T): in TIFF all levels have "
                f"the Z, C, T of the first, {shape[2:]}; shrink along Y and X only"
            )
        y, x, *rest = level.tile
        if rest != [1, samples, 1] or min(y, x) < 16 or y % 16 or x % 16:
            raise SpecError(
                f"{where} has the tile {level.tile} (Y, X, Z, C, T): a TIFF tile is a multiple "
                f"of 16 high and wide, and (1, {samples}, 1) along Z, C, T"
            )
        if y * x * samples * spec.dtype.itemsize >= TILE_LIMIT:
            raise SpecError(f"{where} has tiles of 2 GB and more: make them smaller")


def _pages(spec: ImageSpec, codec: TileCodec) -> tuple[int, list[tag.Page]]:
    """Return the number of planes and the page of each level."""
    _, _, z, c, t = spec.shape
    pages = []
    for number, level in enumerate(spec.levels):
        y, x = level.shape[:2]
        tags = {
            tag.NEW_SUBFILE_TYPE: (min(number, 1),),
            tag.IMAGE_WIDTH: (x,),
            tag.IMAGE_LENGTH: (y,),
            tag.TILE_WIDTH: (level.tile[1],),
            tag.TILE_LENGTH: (level.tile[0],),
            **codec.tags,
            **tag.resolution(spec.physical_size, spec.shape[:2], (y, x)),
        }
        pages.append(tag.Page(tags, *level.grid.counts[:2], _blank(spec, level, codec)))
    return z * (c // spec.samples) * t, pages


def _blank(spec: ImageSpec, level: Level, codec: TileCodec) -> int:
    """Return the bytes of a tile that stands for those not stored, 0 where none is needed.

    Readers (tifffile and Bio-Formats among them) take raw tiles as wide as the image from where
    the first one begins without asking whether there is one, so there has to be one.
    """
    if codec.name != "none" or level.grid.counts[1] > 1:
        return 0
    return level.tile[0] * level.tile[1] * spec.samples * spec.dtype.itemsize


def _raw_size(spec: ImageSpec) -> int:
    total = 0
    for level in spec.levels:
        y, x, z, c, t = level.grid.counts
        total += y * x * z * c * t * level.tile[0] * level.tile[1] * spec.samples
    return total * spec.dtype.itemsize
