"""TiffSink: writes OME-TIFF whose file is a valid TIFF from its first tile on."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

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
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends._tiff_codecs import Bytes
    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import Address, ImageSpec

SOFTWARE = "bioio_tk"
"""What the Software tag of a file says."""

CLASSIC_LIMIT = 2**32
"""A classic TIFF cannot point behind this many bytes."""

CLASSIC_AIM = 3 * 2**30
"""Above this raw size a file becomes BigTIFF: pixels that do not compress grow a little, and
tiles that are stored again leave gaps."""

_TILE_LIMIT = 2**31  # readers count the bytes of a tile in 32 bits, many of them signed


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

    def __init__(
        self, path: Path, images: tuple[ImageSpec, ...], options: StoreOptions
    ) -> None:
        from bioio_tk.meta.ome import document

        self.images = images
        plan = _plan(images, options)
        text = document(images, metadata=options.metadata, tiff=True).encode() + b"\0"
        layout = _lay_out(images, plan, text)
        self._codecs = plan.codecs
        self._tables = layout.tables
        self._limit = 2**63 if plan.big else CLASSIC_LIMIT
        self._entry = "little", 8 if plan.big else 4
        self._offsets = array("Q", bytes(8 * layout.tiles))
        self._counts = array("I", bytes(4 * layout.tiles))
        self._turns = bytearray(layout.tiles)  # how often a tile was stored, modulo 256
        self._space = _Space(layout.size)
        self._down = layout.size  # the file is at least so long
        self._lock = threading.Lock()
        self._closed = False
        self._file = RandomFile(path, writable=True)
        try:
            self._begin(layout)
        except BaseException:
            self._file.close()
            raise

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

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Bytes:
        """Compress a whole (clipped) tile. Any thread.

        Raw tiles that need no padding are not copied: store them before the pixels change.
        """
        self._check_open()
        spec = self.images[at.image]
        level = spec.levels[at.level]
        shape = level.grid.tile_shape(at.key)
        if tile.shape != shape:
            raise SpecError(f"tile {at.key} has the shape {shape}, not {tile.shape}")
        if tile.dtype != spec.dtype:
            raise PixelTypeError(f"the image is {spec.dtype}, the tile {tile.dtype}")
        pixels = tile[:, :, 0, 0, 0] if spec.samples == 1 else tile[:, :, 0, :, 0]
        codec = self._codecs[at.image]
        if shape[:2] != level.tile[:2]:
            pixels = _padded(pixels, level.tile, edge=codec.lossy)
        return codec.encode(pixels)

    def store_tile(self, at: Address, encoded: Bytes) -> None:
        """Append the bytes of a tile and enter them in the table. Any thread."""
        index, *entries = self._places(at)
        count = len(encoded)
        with self._lock:
            self._check_open()
            offset = self._space.take(count, self._limit)
        if offset < 0:
            raise UnsupportedError(
                f"{str(self._file.path)!r} would pass the 4 GB of a classic TIFF: write it anew "
                "with extra={'bigtiff': True}. What was stored so far is whole."
            )
        try:
            self._file.write(offset, encoded)
        except BaseException:
            with self._lock:
                self._space.give(offset, count)
            raise
        with self._lock:
            self._check_open()
            self._down = max(self._down, offset + count)
            self._enter(index, offset, count, *entries)

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        """Return a stored tile, clipped, or None if it was never stored. Any thread."""
        index, *_ = self._places(at)
        data = self._read(index)
        if data is None:
            return None
        level = self.images[at.image].levels[at.level]
        y, x, *_ = level.grid.tile_shape(at.key)
        pixels = self._codecs[at.image].decode(data, *level.tile[:2])[:y, :x]
        return pixels[:, :, None, None, None] if pixels.ndim == 2 else pixels[:, :, None, :, None]

    def grow(self, image: int, t: int) -> None:
        """Refuse: the planes of a TIFF are laid down when it is created."""
        raise UnsupportedError(
            f"a TIFF cannot grow to {t} time points while it is written: give the number of time "
            "points at the start, or write OME-Zarr"
        )

    def close(self) -> None:
        """Release the file; all is on its way to the disk already. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._file.close()

    def _begin(self, layout: tag.Layout) -> None:
        # the header goes last: without it the file is not taken for a TIFF that is whole
        self._file.write(layout.size - 1, b"\0")  # the tables; zeros take no room on the disk
        self._file.write(len(layout.header), layout.body)
        self._file.write(0, layout.header)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the TIFF is closed, it takes and gives no more tiles")

    def _places(self, at: Address) -> tuple[int, int, int]:
        table = self._tables[at.image][at.level]
        spec = self.images[at.image]
        _, _, z, c, _ = spec.levels[at.level].shape
        ky, kx, kz, kc, kt = at.key
        plane = (kt * (c // spec.samples) + kc) * z + kz
        return table.places(plane, ky * table.across + kx)

    def _enter(self, index: int, offset: int, count: int, offset_at: int, count_at: int) -> None:
        """Enter a tile whose bytes are down, so that no moment shows anything but old or new.

        Offset and count are two writes. Between them the tile has the bytes of one of the two
        and some that follow in the file, or, where a reader could stumble over these, none.
        """
        old_offset, old_count = self._offsets[index], self._counts[index]
        tail = self._codecs_tail(index)
        if old_count == 0:
            self._put(offset_at, offset)
            self._put_count(count_at, count)
        elif old_count == count:
            self._put(offset_at, offset)
        elif not tail:
            self._put_count(count_at, 0)
            self._put(offset_at, offset)
            self._put_count(count_at, count)
        elif old_count > count:
            self._reach(offset + old_count)
            self._put(offset_at, offset)
            self._put_count(count_at, count)
        else:
            self._reach(old_offset + count)
            self._put_count(count_at, count)
            self._put(offset_at, offset)
        self._offsets[index], self._counts[index] = offset, count
        self._turns[index] = (self._turns[index] + 1) % 256
        if old_count:
            self._space.give(old_offset, old_count)
