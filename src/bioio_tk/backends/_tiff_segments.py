"""Recipe: how the pixels of a page come out of its tiles and strips. Page: where those lie."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends import _tiff_bits24, _tiff_ycbcr
from bioio_tk.errors import DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from tifffile import TiffPage

    from bioio_tk.backends._file import AnyFile

_BAND = 1 << 21
"""Bytes of a band of rows: strips are read in bands of about this size."""
_PORTION = 1 << 20
"""Bytes of raw pixels read at a time where they have to be copied on."""
_MOST_SAMPLES = 65535
_HEADER = 8
"""Bytes of the header of a TIFF: no pixels lie before."""
_local = threading.local()

_DEFLATE = (8, 32946)
_ZSTD = (50000, 34926)


@dataclass(slots=True)
class Page:
    """One page of a file: its recipe and where its segments lie.

    `joined` is True where raw strips follow each other without a gap.
    """

    file: AnyFile
    recipe: Recipe
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    jpegtables: bytes | None = None
    jpegheader: bytes | None = None
    joined: bool = False


class Recipe:
    """How pages that are laid out alike are decoded.

    A page holds `planes` separate samples x `depth` x `length` x `width` x `samples` interleaved
    samples. It is read in virtual tiles of `tile` (y, x, z) pixels: the file's own tiles, or
    bands of its strips.

    Parameters
    ----------
    page : tifffile.TiffPage
        One of the pages.
    """

    def __init__(self, page: TiffPage) -> None:
        self.planes, self.depth, self.length, self.width, self.samples = page.shaped
        if page.dtype is None:
            raise UnsupportedError(
                f"pixels of {page.bitspersample} bits, sample format {page.sampleformat}, cannot "
                "be read"
            )
        self.dtype = np.dtype(page.dtype).newbyteorder("=")
        if self.dtype.kind not in "buifc":
            raise UnsupportedError(f"pixels of type {self.dtype} cannot be read")
        shape: tuple[Any, ...] = page.shaped  # a tag of the wrong type makes a float of a size
        whole = all(isinstance(n, (int, np.integer)) and n > 0 for n in shape)
        if not whole or self.planes * self.samples > _MOST_SAMPLES:
            raise DamagedFileError(
                f"a page claims to be {self.width} x {self.length} pixels of "
                f"{self.planes * self.samples} samples"
            )
        self.tiled = bool(page.is_tiled)
        self.compression = _name(page)
        ours = next((room for room in (_tiff_ycbcr, _tiff_bits24) if room.is_needed(page)), None)
        self._decode = page.decode if ours is None else ours.decoder(page)
        self._segment = self._segment_shape(page)
        depth, length, width = self._segment
        self._counts = (-(-self.depth // depth), -(-self.length // length), -(-self.width // width))
        self.segments = self.planes * self._counts[0] * self._counts[1] * self._counts[2]
        self._file_dtype = self._plain_dtype(page)
        self.raw = self._file_dtype is not None and page.compression == 1
        self.codec = _codec(page) if self._file_dtype is not None else None
        self._delta = self._file_dtype is not None and page.predictor == 2
        self.tile = self._virtual_tile()
        self.nbytes = self.dtype.itemsize
        for size in page.shaped:
            self.nbytes *= size

    def _segment_shape(self, page: TiffPage) -> tuple[int, int, int]:
        if self.tiled:
            shape = (page.tiledepth, page.tilelength, page.tilewidth)
        else:
            shape = (1, page.rowsperstrip, self.width)
        whole = all(isinstance(n, (int, np.integer)) for n in shape)
        if not whole or min(shape) < 1 or max(shape) > 1 << 31:
            raise DamagedFileError(f"a page claims tiles or strips of {shape[1:]} pixels")
        return shape

    def _plain_dtype(self, page: TiffPage) -> np.dtype[Any] | None:
        """Return the pixel type as stored, None where tifffile has to do the unpacking."""
        stored = np.dtype(page._dtype)
        plain = (
            page.fillorder == 1
            and page.sampleformat != 5  # complex integers
            and page.bitspersample == stored.itemsize * 8
            and stored.kind != "b"
            and not page.is_subsampled
            and not _tiff_ycbcr.is_needed(page)
            and (page.compression == 1 or _codec(page) is not None)
        )
        if not plain:
            return None
        order: Any = page.parent.byteorder
        dtype = stored.newbyteorder(order)
        native = dtype.isnative or dtype.itemsize == 1
        predicted = page.predictor != 1
        if predicted and not (page.predictor == 2 and native and stored.kind in "iu"):
            return None
        return dtype if page.compression != 1 or not predicted else None

    def _virtual_tile(self) -> tuple[int, int, int]:
        depth, length, width = self._segment
        if self.tiled:
            return (length, width, depth)
        row = max(1, self.width * self.samples * self.dtype.itemsize)
        rows = max(1, _BAND // row)
        if not self.raw:
            # a power of two of strips: then bands end where target tiles do
            rows = length << max(0, (rows // length).bit_length() - 1)
        return (min(rows, self.length), self.width, 1)

    @property
    def as_in_memory(self) -> bool:
        """True for raw strips in the machine's byte order."""
        native = self._file_dtype is not None and self._file_dtype.isnative
        return self.raw and native and not self.tiled

    @property
    def segment_shape(self) -> tuple[int, int]:
        """Height and width of a tile or strip of the file."""
        return self._segment[1], self._segment[2]

    def check(self, page: Page) -> None:
        """Raise DamagedFileError where a page has fewer segments than its size asks for."""
        if min(len(page.offsets), len(page.counts)) < self.segments:
            raise DamagedFileError(
                f"{str(page.file.path)!r} is damaged: a page of {self.width} x {self.length} "
                f"pixels needs {self.segments} {'tiles' if self.tiled else 'strips'}, the file "
                f"lists {min(len(page.offsets), len(page.counts))}"
            )

    # ------------------------------------------------------------------ pixels

    def fill(
        self,
        page: Page,
        corner: tuple[int, int, int],
        plane: int,
        part: tuple[slice, slice, slice, slice],
        out: NDArray[Any],
    ) -> None:
        """Fill `out` with a part of a virtual tile.

        Parameters
        ----------
        page : Page
            The page.
        corner : (int, int, int)
            First pixel of the tile, along Y, X, Z of the page.
        plane : int
            Number of the separate sample.
        part : 4 slice
            Wanted pixels of the tile along Y, X, Z and the interleaved samples.
        out : numpy.ndarray
            Shape (y, x, z, samples).
        """
        y, x, z = corner
        rows = range(y + part[0].start, y + part[0].stop, part[0].step or 1)
        columns = slice(x + part[1].start, x + part[1].stop, part[1].step)
        for number, depth in enumerate(range(part[2].start, part[2].stop, part[2].step or 1)):
            target = out[:, :, number]
            if self.raw:
                self._fill_raw(page, plane, z + depth, rows, columns, part[3], target)
            else:
                self._fill_decoded(page, plane, z + depth, rows, columns, part[3], target)

    def _pieces(
        self, plane: int, z: int, rows: range, column: int
    ) -> Iterator[tuple[int, int, int, slice]]:
        """Yield (segment, its first row, z inside it, which of `rows` it holds)."""
        depth, length, width = self._segment
        nd, nl, nw = self._counts
        base = (plane * nd + z // depth) * nl
        step = rows.step
        for r in range(rows[0] // length, rows[-1] // length + 1):
            low, high = r * length, min((r + 1) * length, self.length)
            first = max(0, -((rows.start - low) // step))
            stop = min(len(rows), (high - 1 - rows.start) // step + 1)
            if first < stop:
                yield (base + r) * nw + column // width, low, z % depth, slice(first, stop)

    def _fill_decoded(
        self,
        page: Page,
        plane: int,
        z: int,
        rows: range,
        columns: slice,
        samples: slice,
        out: NDArray[Any],
    ) -> None:
        left = columns.start // self._segment[2] * self._segment[2]
        inside = slice(columns.start - left, columns.stop - left, columns.step)
        for segment, low, d, which in self._pieces(plane, z, rows, columns.start):
            wanted = rows[which]
            target = out[which]
            local = slice(wanted[0] - low, wanted[-1] - low + 1, wanted.step)
            if int(page.offsets[segment]) == 0 or int(page.counts[segment]) == 0:
                target[...] = 0
                continue
            data = self._read_segment(page, segment)
            if self._decode_straight(data, segment, target, local, inside, samples):
                continue
            pixels = self._decoded(page, data, segment)
            # a codec says itself what it found; anything else than asked for is not this image
            found = pixels[d : d + 1, local, inside, samples]
            same = found.dtype.newbyteorder("=") == self.dtype or self.dtype == bool
            if not same or found.shape[1:] != target.shape:
                what = f"gives {pixels.shape[1:]} {pixels.dtype} pixels"
                raise self._damaged(page, segment, what)
            target[...] = found[0]

    def _decode_straight(
        self,
        data: bytes,
        segment: int,
        target: NDArray[Any],
        local: slice,
        inside: slice,
        samples: slice,
    ) -> bool:
        """Decode into `target` itself where it is one whole segment in memory order."""
        depth, length, width = self._segment
        whole = (
            self.codec is not None
            and depth == 1
            and target.shape == (length, width, self.samples)
            and (local.start, local.step or 1) == (0, 1)
            and (inside.start, inside.step or 1) == (0, 1)
            and (samples.start, samples.step or 1) == (0, 1)
            and target.flags.c_contiguous
            and self._file_dtype is not None
            and self._file_dtype.isnative
        )
        if not whole or self.codec is None:
            return False
        try:
            if self.codec(data, target.reshape(-1).view(np.uint8)) != target.nbytes:
                return False
        except Exception:  # the careful path finds out what is wrong and says so
            return False
        if self._delta:
            _undelta(target)
        return True

    def _decoded(self, page: Page, data: bytes, segment: int) -> NDArray[Any]:
        """Return a segment as (z, y, x, samples), valid until this thread's next call."""
        depth, length, width = self._segment
        row = segment // self._counts[2] % self._counts[1]
        if not self.tiled:
            length = min(length, self.length - row * length)
        shape = (depth, length, width, self.samples)
        if self.codec is not None and self._file_dtype is not None:
            size = depth * length * width * self.samples * self._file_dtype.itemsize
            buffer = _scratch(size)
            try:
                done = self.codec(data, buffer)
            except Exception:  # odd but legal streams: more pixels than the segment holds
                done = -1
            if done == size:
                pixels = buffer.view(self._file_dtype).reshape(shape)
                if self._delta:
                    _undelta(pixels)
                return pixels
        return self._decoded_by_tifffile(page, data, segment)

    def _decoded_by_tifffile(self, page: Page, data: bytes, segment: int) -> NDArray[Any]:
        try:
            pixels, _, _ = self._decode(
                data, segment, jpegtables=page.jpegtables, jpegheader=page.jpegheader
            )
        except NotImplementedError as exc:
            raise UnsupportedError(f"{str(page.file.path)!r} cannot be decoded: {exc}") from exc
        except Exception as exc:  # every codec has its own exception class
            raise self._damaged(page, segment, f"cannot be decoded: {_line(exc)}") from exc
        if pixels is None:
            raise self._damaged(page, segment, "is empty")
        return np.asarray(pixels)

    def _read_segment(self, page: Page, segment: int) -> bytes:
        offset, count = int(page.offsets[segment]), int(page.counts[segment])
        if not 0 < count <= page.file.size:
            raise self._damaged(page, segment, f"claims {count} bytes")
        data = page.file.read(offset, count) if offset >= _HEADER else b""
        if len(data) < count:
            raise self._damaged(page, segment, "lies beyond the end of the file")
        return data

    def _fill_raw(
        self,
        page: Page,
        plane: int,
        z: int,
        rows: range,
        columns: slice,
        samples: slice,
        out: NDArray[Any],
    ) -> None:
        """Read only the rows wanted, straight into `out` where it has the file's own order."""
        depth, length, width = self._segment
        dtype = self._file_dtype
        assert dtype is not None  # raw implies it
        row_bytes = width * self.samples * dtype.itemsize
        left = columns.start // width * width
        inside = slice(columns.start - left, columns.stop - left, columns.step)
        pieces = self._pieces(plane, z, rows, columns.start)
        if page.joined and not self.tiled and depth == 1:
            pieces = iter([self._whole_plane(plane, z, len(rows))])
        for segment, low, d, which in pieces:
            wanted, target = rows[which], out[which]
            start, stop = wanted[0] - low, wanted[-1] - low + 1
            offset, count = int(page.offsets[segment]), int(page.counts[segment])
            if offset == 0 or count == 0:
                target[...] = 0
                continue
            if count < self._raw_bytes(segment) and not page.joined and self.segments > 1:
                # what follows belongs to another segment; alone in the page, only its length is off
                self._fill_decoded(page, plane, z, wanted, columns, samples, target)
                continue
            offset += (d * length + start) * row_bytes
            if (
                (stop - start) == len(wanted)
                and target.shape == (stop - start, width, self.samples)
                and target.flags.c_contiguous
                and dtype.isnative
            ):
                self.read_exactly(page, segment, offset, target.reshape(-1).view(np.uint8))
                continue
            # in portions that stay in the processor's cache until they are copied on
            portion = max(1, _PORTION // row_bytes // wanted.step) * wanted.step
            for top in range(0, stop - start, portion):
                rows_now = min(portion, stop - start - top)
                pixels = self._raw_rows(
                    page, segment, offset + top * row_bytes, rows_now, row_bytes, inside
                )
                first = top // wanted.step
                pixels = pixels[:: wanted.step, :: inside.step or 1, samples]
                target[first : first + len(pixels)] = pixels

    def _raw_bytes(self, segment: int) -> int:
        """Return how long a raw segment has to be."""
        depth, length, width = self._segment
        if not self.tiled:
            length = min(length, self.length - segment % self._counts[1] * length)
        return depth * length * width * self.samples * self.dtype.itemsize

    def _raw_rows(
        self, page: Page, segment: int, offset: int, rows: int, row_bytes: int, inside: slice
    ) -> NDArray[Any]:
        """Return rows of the segment, cut to the columns `inside` without their step."""
        dtype = self._file_dtype
        assert dtype is not None
        pixel = self.samples * dtype.itemsize
        first, count = inside.start, inside.stop - inside.start
        if count * pixel * 8 > row_bytes:
            # one request for the whole rows is cheaper than many small ones
            size = rows * row_bytes
            last = (rows - 1) * row_bytes + inside.stop * pixel
            buffer = _scratch(size)
            self.read_exactly(page, segment, offset, buffer[:last])
            pixels = buffer.view(dtype).reshape(rows, row_bytes // pixel, self.samples)
            return pixels[:, inside.start : inside.stop]
        buffer = _scratch(rows * count * pixel)
        for row in range(rows):
            at = offset + row * row_bytes + first * pixel
            part = buffer[row * count * pixel : (row + 1) * count * pixel]
            self.read_exactly(page, segment, at, part)
        return buffer.view(dtype).reshape(rows, count, self.samples)

    def _whole_plane(self, plane: int, z: int, rows: int) -> tuple[int, int, int, slice]:
        segment = (plane * self._counts[0] + z) * self._counts[1]
        return segment, 0, 0, slice(0, rows)

    def read_exactly(
        self, page: Page, segment: int, offset: int, buffer: NDArray[np.uint8]
    ) -> None:
        """Fill `buffer` from the file; DamagedFileError, naming the segment, where it ends."""
        if offset < _HEADER or page.file.read_into(offset, buffer) < len(buffer):
            raise self._damaged(page, segment, "lies beyond the end of the file")

    def _damaged(self, page: Page, segment: int, what: str) -> DamagedFileError:
        kind = "tile" if self.tiled else "strip"
        return DamagedFileError(
            f"{str(page.file.path)!r} is damaged: {kind} {segment} at byte "
            f"{int(page.offsets[segment])} {what}"
        )


def _scratch(size: int) -> NDArray[np.uint8]:
    """Return `size` bytes that belong to this thread until it asks again.

    A fresh buffer for every tile would be given back to the system and faulted in anew each
    time, which costs as much as the decoding itself.
    """
    buffer: NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = np.empty(size, np.uint8)
        if size <= 1 << 26:
            _local.buffer = buffer
    return buffer[:size]


def _codec(page: TiffPage) -> Any:
    """Return a function (data, buffer) -> bytes decoded, None for codecs left to tifffile."""
    if page.compression in _DEFLATE:
        return _inflate
    if page.compression in _ZSTD:
        return _unzstd
    return None


def _inflate(data: bytes, out: NDArray[np.uint8]) -> int:
    from imagecodecs import deflate_decode

    return len(deflate_decode(data, out=out))


def _unzstd(data: bytes, out: NDArray[np.uint8]) -> int:
    from imagecodecs import zstd_decode

    return len(zstd_decode(data, out=out))


def _undelta(pixels: NDArray[Any]) -> None:
    from imagecodecs import delta_decode

    delta_decode(pixels, axis=-2, out=pixels)


def _name(page: TiffPage) -> str:
    return str(getattr(page.compression, "name", page.compression)).lower()


def _line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"[:160]
