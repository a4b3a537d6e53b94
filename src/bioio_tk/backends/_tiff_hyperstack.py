"""HyperstackSink: a TIFF as ImageJ writes it, without OME-XML."""

from __future__ import annotations

import json
import struct
import threading
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bioio_tk import __version__
from bioio_tk.backends import _described
from bioio_tk.backends import _tiff_layout as tag
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._raw_planes import RawPlanes
from bioio_tk.backends._tiff_codecs import TileCodec
from bioio_tk.backends.base import Caps
from bioio_tk.core.units import convert_length, convert_time
from bioio_tk.errors import SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.spec import Address, ImageSpec, Quantity

_TYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""Pixels that ImageJ knows."""
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTE_COUNTS = 273, 278, 279
_LIMIT = 2**32
_BIG_FROM = 3 * 2**30
"""Raw size from which a compressed file becomes a BigTIFF: pixels may grow a little."""
_UINT32 = 2**32 - 1


class HyperstackSink:
    """A new TIFF for ImageJ and Fiji: the planes follow each other C fastest, then Z, then T.

    Uncompressed (the default) they lie one behind the other in one block, which is how ImageJ
    reads a stack; beyond 4 GB that is all there is, with one directory, as in its own files.
    Compressed they are strips. What makes a reader take it for a TIFF is written last.

    Of `options` the compressions of TIFF count, and in `extra` ``bigtiff``.
    """

    caps: ClassVar[Caps] = Caps(
        parallel_store=True, pyramids=False, tile_multiple=1, whole_rows=True
    )

    def __init__(
        self,
        path: Path,
        images: tuple[ImageSpec, ...],
        options: StoreOptions,
        tiles: Mapping[Address, Any] | None = None,
    ) -> None:
        self.images = images
        (spec,) = images
        y, x, z, c, t = spec.shape
        self._samples = spec.samples
        self._planes = z * (c // spec.samples) * t
        self._rows = spec.levels[0].tile[0]
        self._codec = _codec(spec, options)
        self._raw = self._codec.name == "none"
        self._text = _description(spec)
        size = self._planes * y * x * spec.samples * spec.dtype.itemsize
        self._big = _is_big(spec, size, options, raw=self._raw)
        self._strips = 1 if self._raw else -(-y // self._rows)
        self._table: dict[int, tuple[int, int]] = {}
        self._stored: set[Address] = set(tiles or ())
        self._lock = threading.Lock()
        start = self._first_size()
        self._start = self._end = -(-start // tag.ALIGN) * tag.ALIGN
        self._file = RandomFile(path, writable=True)
        try:
            if self._raw:
                stored = spec.dtype.newbyteorder("<")
                shape = (self._planes, y, x * spec.samples)
                self._places = RawPlanes(self._file, self._start, shape, stored)
                self._end = self._places.end
            elif tiles:
                self._table = {self._strip(at): (int(w[0]), int(w[1])) for at, w in tiles.items()}
                self._end = max(sum(place) for place in self._table.values())
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        for name in options.extra:
            if name not in ("bigtiff", "ome"):
                raise SpecError(f"a TIFF without OME-XML has no option {name!r}")
        if len(images) != 1:
            raise SpecError("a TIFF for ImageJ holds one image")
        (spec,) = images
        if min(spec.shape) < 1:
            raise SpecError(f"the shape {spec.shape} (Y, X, Z, C, T) has an axis of length 0")
        if len(spec.levels) > 1:
            raise UnsupportedError(
                "ImageJ knows no smaller resolutions: leave pyramid out, or leave ome=False out"
            )
        if spec.dtype.name not in _TYPES:
            raise UnsupportedError(
                f"ImageJ knows pixels of {', '.join(_TYPES)}, not {spec.dtype.name}: convert them "
                "(dtype= with cast=), or leave ome=False out"
            )
        if spec.samples not in (1, 3) or (spec.samples == 3 and spec.dtype != np.uint8):
            raise UnsupportedError(
                "ImageJ knows pixels of one sample, and RGB of uint8: leave ome=False out"
            )
        _codec(spec, options)
        size = int(np.prod(spec.shape, dtype=object)) * spec.dtype.itemsize
        _is_big(spec, size, options, raw=_codec(spec, options).name == "none")

    @classmethod
    def resume(
        cls,
        path: Path,
        images: tuple[ImageSpec, ...],
        options: StoreOptions,
        tiles: Mapping[Address, Any],
    ) -> HyperstackSink:
        return cls(path, images, options, tiles)

    def holds(self, at: Address) -> bool:
        return at in self._stored

    def trace(self, at: Address, encoded: Any) -> Any:
        return 1 if self._raw else list(self._table[self._strip(at)])

    def suspend(self) -> None:
        self.close()

    # ------------------------------------------------------------------ pixels

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Any:
        pixels = tile[:, :, 0, 0, 0] if self._samples == 1 else tile[:, :, 0, :, 0]
        if not self._raw:
            return self._codec.encode(pixels)
        stored = np.ascontiguousarray(pixels, self.images[0].dtype.newbyteorder("<"))
        return stored.reshape(len(stored), -1)

    def store_tile(self, at: Address, encoded: Any) -> None:
        if self._raw:
            self._places.store(*self._place(at), encoded)
        else:
            self._table[self._strip(at)] = self._append(encoded)
        self._stored.add(at)

    def _append(self, data: Any) -> tuple[int, int]:
        with self._lock:
            offset = self._end
            self._end += len(data)
        if not self._big and self._end > _LIMIT:
            raise self._full()
        self._file.write(offset, data)
        return offset, len(data)

    def _full(self) -> UnsupportedError:
        return UnsupportedError(
            f"{str(self._file.path)!r} would pass the 4 GB of a classic TIFF: write it anew "
            "with bigtiff=True"
        )

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        if at not in self._stored:
            return None
        y, x, *_ = self.images[0].levels[0].grid.tile_shape(at.key)
        if self._raw:
            rows = np.empty((y, x * self._samples), self.images[0].dtype.newbyteorder("<"))
            self._places.load(*self._place(at), rows)
            pixels = rows.reshape(y, x, self._samples)
        else:
            data = self._file.read(*self._table[self._strip(at)])
            pixels = self._codec.decode(data, y, x).reshape(y, x, self._samples)
        return pixels[:, :, None, :, None].astype(self.images[0].dtype, copy=False)

    def _plane(self, at: Address) -> int:
        _, _, z, c, _ = self.images[0].shape
        _, _, kz, kc, kt = at.key
        return (kt * z + kz) * (c // self._samples) + kc

    def _place(self, at: Address) -> tuple[int, int, int]:
        ky, kx, *_ = at.key
        return self._plane(at), ky * self._rows, kx * self._samples

    def _strip(self, at: Address) -> int:
        return self._plane(at) * self._strips + at.key[0]

    def grow(self, image: int, t: int) -> None:
        raise UnsupportedError(f"the number of time points is fixed at the start, not {t} later")

    # ------------------------------------------------------------------ directories

    def finish(self) -> None:
        width = 8 if self._big else 4
        self._end = -(-self._end // 8) * 8
        places = self._directories()
        first = next(places)
        # a number of a classic TIFF cannot say where planes beyond 4 GB lie
        rest = list(places) if self._big or self._end <= _LIMIT else []
        if self._end + sum(map(len, rest)) > _LIMIT and not self._big:
            if not self._raw:
                raise self._full()
            rest = []  # as ImageJ does: the block of planes is found without
        at = self._end
        for number, data in enumerate(rest):
            after = at + len(data) if number + 1 < len(rest) else 0
            self._file.write(at, self._linked(data, at, after))
            at += len(data)
        head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16)
        if not self._big:
            head = struct.pack("<2sHI", b"II", 42, 8)
        first = self._linked(first, 2 * width, self._end if rest else 0)
        self._file.write(len(head), first)
        self._file.write(0, head)  # only now it is a TIFF

    def _first_size(self) -> int:
        """Return where the first directory, which lies before the pixels, ends."""
        return (16 if self._big else 8) + len(self._directory([0] * self._strips, text=True))

    def _directories(self) -> Iterator[bytes]:
        """Yield the directory of each plane."""
        blank = self._blanks()
        for plane in range(self._planes):
            first = plane * self._strips
            if self._raw:
                places = [(self._start + plane * self._plane_bytes, self._plane_bytes)]
            else:
                numbers = range(first, first + self._strips)
                places = [self._table.get(n) or blank[n - first] for n in numbers]
            yield self._directory(*zip(*places, strict=True), text=plane == 0)

    @property
    def _plane_bytes(self) -> int:
        y, x, *_ = self.images[0].shape
        return y * x * self._samples * self.images[0].dtype.itemsize

    def _blanks(self) -> list[tuple[int, int]]:
        """Return for each strip of a plane where one of zeros lies, where one is needed."""
        if self._raw or len(self._table) == self._planes * self._strips:
            return []
        y, x, *_ = self.images[0].shape
        made: dict[int, tuple[int, int]] = {}
        heights = [min(self._rows, y - n * self._rows) for n in range(self._strips)]
        for height in set(heights):
            shape = (height, x) if self._samples == 1 else (height, x, self._samples)
            made[height] = self._append(self._codec.encode(np.zeros(shape, self.images[0].dtype)))
        self._end = -(-self._end // 8) * 8
        return [made[height] for height in heights]

    def _directory(self, offsets: Any, counts: Any = None, *, text: bool) -> bytes:
        """Return a directory as if it lay at 0, and followed by none."""
        spec = self.images[0]
        y, x, *_ = spec.shape
        values = {code: tag._value(code, numbers) for code, numbers in self._codec.tags.items()}
        for code, number in (
            (tag.NEW_SUBFILE_TYPE, 0),
            (tag.IMAGE_WIDTH, x),
            (tag.IMAGE_LENGTH, y),
        ):
            values[code] = tag._value(code, (number,))
        flavour = tag._BIG if self._big else tag._CLASSIC
        letter = "Q" if self._big else "I"
        rows = y if self._raw else self._rows
        for code, numbers in (
            (_STRIP_OFFSETS, offsets),
            (_STRIP_BYTE_COUNTS, counts or offsets),
            (_ROWS_PER_STRIP, (rows,)),
        ):
            data = struct.pack(f"<{len(numbers)}{letter}", *numbers)
            values[code] = tag._Value(flavour.long, len(numbers), len(data), data)
        for code, numbers in _resolution(spec).items():
            values[code] = tag._value(code, numbers)
        if text:
            values |= self._texts()
        return _packed(values, flavour)

    def _texts(self) -> dict[int, Any]:
        software = f"bioio_tk {__version__}".encode() + b"\0"
        pairs = {tag.IMAGE_DESCRIPTION: (2, self._text), tag.SOFTWARE: (2, software)}
        info = json.dumps(_described.flat(self.images[0])).encode("utf-16-le")
        # ImageJ's own metadata: how long each piece is, then a table of kinds, then the pieces
        kinds = b"JIJI" + b"ofni" + struct.pack("<I", 1)
        found = {code: tag._Value(kind, len(d), len(d), d) for code, (kind, d) in pairs.items()}
        lengths = struct.pack("<2I", len(kinds), len(info))
        found[50838] = tag._Value(4, 2, len(lengths), lengths)
        found[50839] = tag._Value(1, len(kinds + info), len(kinds + info), kinds + info)
        return found

    def _linked(self, data: bytes, at: int, after: int) -> bytes:
        """Return a directory that lies at `at` and is followed by the one at `after`."""
        flavour = tag._BIG if self._big else tag._CLASSIC
        out = bytearray(data)
        head = struct.calcsize(flavour.head)
        (count,) = struct.unpack_from(flavour.head, out)
        letter = "<Q" if self._big else "<I"
        for number in range(count):
            entry = head + number * flavour.entry_size
            _, kind, length = struct.unpack_from(flavour.entry, out, entry)
            if length * _WIDTHS[kind] > flavour.width:
                field = entry + struct.calcsize(flavour.entry)
                (inside,) = struct.unpack_from(letter, out, field)
                struct.pack_into(letter, out, field, inside + at)
        struct.pack_into(letter, out, head + count * flavour.entry_size, after)
        return bytes(out)

    def close(self) -> None:
        self._file.close()


_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 16: 8}
"""Bytes of a value of each type."""


def _packed(values: dict[int, Any], flavour: Any) -> bytes:
    """Return a directory with the values too long for its entries behind it."""
    data = bytearray(struct.pack(flavour.head, len(values)))
    begin = len(data) + len(values) * flavour.entry_size + flavour.width
    behind = bytearray(-begin % 8)
    for code, value in sorted(values.items()):
        data += struct.pack(flavour.entry, code, value.kind, value.count)
        inline = value.data
        if len(inline) > flavour.width:
            inline = (begin + len(behind)).to_bytes(flavour.width, "little")
            behind += value.data + bytes(-len(value.data) % 8)
        data += inline.ljust(flavour.width, b"\0")
    return bytes(data + bytes(flavour.width) + behind)


def _codec(spec: ImageSpec, options: StoreOptions) -> TileCodec:
    from dataclasses import replace

    return TileCodec(
        spec.dtype, spec.samples, replace(options, compression=options.compression or "none")
    )


def _is_big(spec: ImageSpec, size: int, options: StoreOptions, *, raw: bool) -> bool:
    """Return whether the file is a BigTIFF, which ImageJ itself does not read."""
    given = options.extra.get("bigtiff")
    if given not in (None, True, False):
        raise SpecError(f"bigtiff={given!r}: give True, False, or leave it out")
    if given is not None:
        plane = size // max(1, spec.shape[2] * spec.shape[3] * spec.shape[4] // spec.samples)
        if not given and plane >= _LIMIT:
            raise UnsupportedError(
                "a plane of 4 GB does not fit into a classic TIFF: leave bigtiff=False out"
            )
        return bool(given)
    y, x, *_ = spec.shape
    return y * x * spec.samples * spec.dtype.itemsize >= _BIG_FROM if raw else size >= _BIG_FROM


def _description(spec: ImageSpec) -> bytes:
    """Return what ImageJ finds its hyperstacks by."""
    _, _, z, c, t = spec.shape
    c //= spec.samples
    lines = ["ImageJ=1.54f", f"images={z * c * t}"]
    lines += [f"{name}={n}" for name, n in (("channels", c), ("slices", z), ("frames", t)) if n > 1]
    if sum(n > 1 for n in (z, c, t)) > 1 or c > 1:
        lines.append("hyperstack=true")
        lines.append("mode=composite" if c > 1 else "mode=grayscale")
    size = spec.physical_size
    if _in(size.x) is not None and _in(size.y) is not None:
        lines.append("unit=um")
    spacing = _in(size.z)
    if spacing is not None:
        lines.append(f"spacing={spacing!r}")
    if spec.time_increment is not None:
        try:
            seconds = convert_time(*spec.time_increment, "s")
        except SpecError:
            seconds = 0.0
        if seconds:
            lines.append(f"finterval={seconds!r}")
    return "\n".join([*lines, "loop=false", ""]).encode("latin-1") + b"\0"


def _resolution(spec: ImageSpec) -> tag.Tags:
    """Return pixels per unit, as ImageJ takes them: the unit is in its description."""
    x, y = _in(spec.physical_size.x), _in(spec.physical_size.y)
    if x is None or y is None:
        return {}
    found: tag.Tags = {tag.RESOLUTION_UNIT: (1,)}
    for code, size in ((tag.X_RESOLUTION, x), (tag.Y_RESOLUTION, y)):
        exact = Fraction(repr(size))
        density = 1 / exact
        if density > 1:
            inverse = exact.limit_denominator(_UINT32)
            density = 1 / inverse if inverse else Fraction(_UINT32)
        else:
            density = density.limit_denominator(_UINT32)
        if not 0 < density.numerator <= _UINT32 or density.denominator > _UINT32:
            return {}
        found[code] = (density.numerator, density.denominator)
    return found


def _in(size: Quantity | None) -> float | None:
    """Return a size in µm; None where it is not known, or not one."""
    try:
        return None if size is None else convert_length(size[0], size[1], "µm")
    except SpecError:
        return None
