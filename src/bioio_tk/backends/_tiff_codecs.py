"""How the pixels of a TIFF tile become bytes and back: which codecs there are, and what fits."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import imagecodecs
import numpy as np

from bioio_tk.backends import _tiff_layout as tag
from bioio_tk.errors import BackendError, DamagedFileError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bioio_tk.backends.base import StoreOptions

Bytes: TypeAlias = "bytes | bytearray | memoryview[int] | NDArray[np.uint8]"

_local = threading.local()
_KEEP = 1 << 26
"""Bytes up to which a thread keeps its buffer."""

NO_PREDICTOR, HORIZONTAL, FLOATING_POINT = 1, 2, 3

_SIZES = {"u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16), "b": (1,)}
_FORMAT = {"u": 1, "b": 1, "i": 2, "f": 3, "c": 6}


@dataclass(frozen=True, slots=True)
class Codec:
    """One compression as TIFF knows it.

    Attributes
    ----------
    name : str
        What ``compression=`` takes.
    compression : int
        Value of the Compression tag.
    levels : tuple of (int, int, str) or None
        Lowest and highest level and what it means; None where there is nothing to choose.
    level : int or None
        The level where none is given.
    dtypes : tuple of str
        The pixel types it takes; empty for a codec of bytes, which takes all.
    samples : tuple of int
        The samples a pixel may have; empty for any number.
    predicts : bool
        Readers undo a predictor after it.
    tail : bool
        Every reader stops where the stream ends, whatever bytes follow within the tile.
    tags : dict
        Further tags a page needs.
    """

    name: str
    compression: int
    levels: tuple[int, int, str] | None = None
    level: int | None = None
    dtypes: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()
    predicts: bool = False
    tail: bool = False
    whole_level: bool = True
    tags: tuple[tuple[int, tuple[int, ...]], ...] = ()


_LERC_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
_SPEED = "faster to smaller"

CODECS: tuple[Codec, ...] = (
    Codec("none", 1),
    Codec("deflate", 8, (0, 12, _SPEED), 3, predicts=True, tail=True),
    Codec("zstd", 50000, (1, 22, _SPEED), 1, predicts=True),
    Codec("lzw", 5, predicts=True, tail=True),
    Codec("packbits", 32773),
    Codec("lzma", 34925, (0, 9, _SPEED), 6, predicts=True),
    Codec("jpeg", 7, (1, 100, "quality"), 90, ("uint8",), (1, 3), tail=True),
    Codec(
        "jpeg2000", 34712, (1, 1000, "signal to noise in dB; without it lossless"), None,
        ("uint8", "int8", "uint16", "int16"), (1, 3, 4), tail=True, whole_level=False,
    ),
    Codec(
        "jpegxl", 50002, (1, 99, "quality; without it lossless"), None,
        ("uint8", "uint16"), (1, 3, 4), tail=True,
    ),
    Codec(
        "lerc", 34887, (0, 2**31, "largest error of a pixel"), 0,
        _LERC_TYPES, tail=True, whole_level=False, tags=((tag.LERC_PARAMETERS, (4, 0)),),
    ),
)  # fmt: skip
_BY_NAME = {codec.name: codec for codec in CODECS}
_BY_NAME |= {
    alias: _BY_NAME[name]
    for name, aliases in (
        ("none", ("raw", "uncompressed")),
        ("deflate", ("zlib", "adobe_deflate")),
        ("zstd", ("zstandard",)),
        ("jpeg", ("jpg",)),
        ("jpeg2000", ("jpeg_2000", "j2k", "jp2")),
        ("jpegxl", ("jpeg_xl", "jxl")),
    )
    for alias in aliases
}


class TileCodec:
    """Turns the tiles of one image into bytes and back. Safe to share between threads.

    Parameters
    ----------
    dtype : numpy.dtype
        Pixel type.
    samples : int
        Samples of a pixel.
    options : StoreOptions
        Of these `compression`, `level` and `predictor` count.

    Attributes
    ----------
    tail : bool
        What is stored may be followed by other bytes within a tile and still reads right.
    tags : dict
        The tags of a page that say how it is encoded.

    Raises
    ------
    SpecError
        There is no such compression or level.
    UnsupportedError
        The compression cannot hold such pixels.
    """

    def __init__(self, dtype: np.dtype[Any], samples: int, options: StoreOptions) -> None:
        codec = find(options.compression)
        if dtype.kind not in _SIZES or dtype.itemsize not in _SIZES[dtype.kind]:
            raise UnsupportedError(
                f"TIFF cannot hold {dtype} pixels: it takes bool, integers, float16 to float64, "
                "complex64 and complex128"
            )
        _check_fit(codec, dtype, samples)
        self.name = codec.name
        self.tail = codec.tail
        self.lossy = codec.name == "jpeg" or (codec.level is None and options.level is not None)
        self._level = _level(codec, options.level)
        self._predictor = _predictor(codec, dtype, predict=bool(options.predictor))
        # bool goes down as bytes of 0 and 1: Bio-Formats 7.3 garbles tiles of single bits where
        # the image is no multiple of 8 wide. The OME-XML says that bool was meant.
        stored = np.dtype(np.uint8) if dtype.kind == "b" else dtype
        self._given = dtype
        self._dtype = stored.newbyteorder("<")
        self._samples = samples
        bits = 8 * dtype.itemsize
        self.tags: tag.Tags = {
            tag.COMPRESSION: (codec.compression,),
            tag.BITS_PER_SAMPLE: (bits,) * samples,
            tag.SAMPLE_FORMAT: (_FORMAT[dtype.kind],) * samples,
            **tag.samples_tags(samples, jpeg=codec.name == "jpeg"),
            **dict(codec.tags),
        }
        if self._predictor != NO_PREDICTOR:
            self.tags[tag.PREDICTOR] = (self._predictor,)
        self._bytes_in = partial(_ENCODERS[codec.name], self._level)
        self._bytes_out = _DECODERS[codec.name]

    def encode(self, pixels: NDArray[Any]) -> Bytes:
        """Return the bytes of a whole tile (y, x) or (y, x, samples).

        Raw pixels that lie in memory as TIFF wants them are not copied: what is returned then
        shares memory with `pixels`.
        """
        if pixels.dtype.kind == "b":
            pixels = pixels.view(np.uint8)
        elif pixels.dtype != self._dtype:
            pixels = pixels.astype(self._dtype)
        if self._predictor == HORIZONTAL:
            pixels = imagecodecs.delta_encode(pixels, axis=1)
        elif self._predictor == FLOATING_POINT:
            pixels = imagecodecs.floatpred_encode(pixels, axis=1)
        try:
            return self._bytes_in(pixels if self.name == "none" else _together(pixels))
        except BackendError:
            raise
        except (RuntimeError, ValueError) as exc:
            raise BackendError(f"{self.name} could not compress a tile: {exc}") from exc

    def decode(self, data: Bytes, height: int, width: int) -> NDArray[Any]:
        """Return the tile of `height` x `width` pixels that `encode` made `data` of."""
        shape = (height, width) if self._samples == 1 else (height, width, self._samples)
        out = np.empty(shape, self._dtype)
        try:
            self._bytes_out(data, out)
        except (RuntimeError, ValueError) as exc:
            raise DamagedFileError(f"a stored tile is not what {self.name} wrote: {exc}") from exc
        if self._predictor == HORIZONTAL:
            imagecodecs.delta_decode(out, axis=1, out=out)
        elif self._predictor == FLOATING_POINT:
            out = imagecodecs.floatpred_decode(out, axis=1)
        return out.view(self._given) if self._given.kind == "b" else out


def _together(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return pixels without gaps, in a buffer of this thread's that the next call takes again.

    A fresh array for every tile would be memory that the system has to clear first.
    """
    if pixels.flags.c_contiguous:
        return pixels
    buffer: NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < pixels.nbytes:
        buffer = np.empty(pixels.nbytes, np.uint8)
        if pixels.nbytes <= _KEEP:
            _local.buffer = buffer
    out = buffer[: pixels.nbytes].view(pixels.dtype).reshape(pixels.shape)
    out[...] = pixels
    return out


def find(name: str | None) -> Codec:
    """Return the codec called `name` in any case; None is the default, deflate."""
    codec = _BY_NAME.get("deflate" if name is None else str(name).lower())
    if codec is None:
        names = ", ".join(codec.name for codec in CODECS)
        raise SpecError(f"compression={name!r} is not known to TIFF; give one of {names}")
    return codec


def _check_fit(codec: Codec, dtype: np.dtype[Any], samples: int) -> None:
    if codec.dtypes and dtype.name not in codec.dtypes:
        raise UnsupportedError(
            f"compression {codec.name!r} cannot hold {dtype.name} pixels, only "
            f"{', '.join(codec.dtypes)}: convert the pixels, or choose 'deflate' or 'zstd'"
        )
    if codec.samples and samples not in codec.samples:
        raise UnsupportedError(
            f"compression {codec.name!r} cannot hold {samples} samples a pixel, only "
            f"{' or '.join(map(str, codec.samples))}: choose 'deflate' or 'zstd'"
        )


def _level(codec: Codec, level: Any) -> Any:
    if level is None:
        return codec.level
    if codec.levels is None:
        raise SpecError(f"compression {codec.name!r} has no levels, but level={level!r} was given")
    low, high, meaning = codec.levels
    kinds = (int, np.integer) if codec.whole_level else (int, float, np.integer, np.floating)
    if isinstance(level, bool) or not isinstance(level, kinds) or not low <= level <= high:
        raise SpecError(
            f"level={level!r} does not fit compression {codec.name!r}: "
            f"give {low} to {high} ({meaning})"
        )
    return level


def _predictor(codec: Codec, dtype: np.dtype[Any], *, predict: bool) -> int:
    if not predict:
        return NO_PREDICTOR
    if not codec.predicts:
        fits = ", ".join(repr(codec.name) for codec in CODECS if codec.predicts)
        raise SpecError(
            f"predictor=True has no place with compression {codec.name!r}; it goes with {fits}"
        )
    if dtype.kind in "bc":
        raise UnsupportedError(
            f"TIFF has no predictor for {dtype.name} pixels: leave it out, or set predictor=False"
        )
    return FLOATING_POINT if dtype.kind == "f" else HORIZONTAL


# --- the codecs ----------------------------------------------------------------------------------
# Each encoder takes a level and a contiguous array; each decoder fills a contiguous array. All of
# them let other threads run meanwhile.


def _flat(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return pixels.reshape(-1).view(np.uint8)


def _deflate(level: int, pixels: NDArray[Any]) -> Bytes:
    """Levels up to 3 are those of igzip: faster than any of libdeflate's at the size of its 1."""
    if level > 3:
        return _made(imagecodecs.deflate_encode(_flat(pixels), level))
    try:
        from isal import isal_zlib
    except ImportError:  # there is no build for this platform
        return _made(imagecodecs.deflate_encode(_flat(pixels), 1))
    return isal_zlib.compress(_flat(pixels), level)


def _made(data: Any) -> Bytes:
    """Give the type back that imagecodecs loses."""
    made: Bytes = data
    return made


def _image_encoder(encode: Callable[..., Any], level: Any, pixels: NDArray[Any]) -> Bytes:
    return _made(encode(pixels, level))


def _jpeg(level: int, pixels: NDArray[Any]) -> Bytes:
    if pixels.ndim == 2:
        return _made(imagecodecs.jpeg8_encode(pixels, level))
    return _made(
        imagecodecs.jpeg8_encode(
            pixels, level, colorspace="RGB", outcolorspace="YCBCR", subsampling=(2, 2)
        )
    )


def _jpeg2000(level: float | None, pixels: NDArray[Any]) -> Bytes:
    return _made(
        imagecodecs.jpeg2k_encode(
            pixels, level, codecformat="J2K", reversible=level is None, numthreads=1
        )
    )


def _jpegxl(level: int | None, pixels: NDArray[Any]) -> Bytes:
    if level is None:
        return _made(imagecodecs.jpegxl_encode(pixels, lossless=True, numthreads=1))
    return _made(imagecodecs.jpegxl_encode(pixels, level, numthreads=1))


def _lerc(level: float, pixels: NDArray[Any]) -> Bytes:
    if pixels.dtype.kind == "f" and np.isnan(pixels).any():
        raise UnsupportedError(
            "compression 'lerc' cannot hold NaN: replace these pixels, or choose 'deflate'"
        )
    return _made(imagecodecs.lerc_encode(pixels, level))


def _packbits(_: None, pixels: NDArray[Any]) -> Bytes:
    # rows are packed one by one (TIFF 6.0, section 9)
    rows = _flat(pixels).reshape(len(pixels), -1)
    return _made(imagecodecs.packbits_encode(rows, axis=-1))


def _raw(_: None, pixels: NDArray[Any]) -> Bytes:
    return _flat(np.ascontiguousarray(pixels))


def _copy(data: Bytes, out: NDArray[Any]) -> None:
    _flat(out)[:] = np.frombuffer(data, np.uint8)


def _fill(decode: Callable[..., Any], data: Bytes, out: NDArray[Any]) -> None:
    """Let a codec of bytes decode straight into `out`."""
    made = decode(data, out=_flat(out))
    if len(made) != out.nbytes:
        raise ValueError(f"{len(made)} bytes instead of {out.nbytes}")


def _fill_image(decode: Callable[..., Any], data: Bytes, out: NDArray[Any]) -> None:
    decode(data, out=out)


_ENCODERS: dict[str, Callable[[Any, NDArray[Any]], Bytes]] = {
    "none": _raw,
    "deflate": _deflate,
    "zstd": lambda level, pixels: _made(imagecodecs.zstd_encode(_flat(pixels), level)),
    "lzw": lambda _, pixels: _made(imagecodecs.lzw_encode(_flat(pixels))),
    "packbits": _packbits,
    "lzma": lambda level, pixels: _made(imagecodecs.lzma_encode(_flat(pixels), level)),
    "jpeg": _jpeg,
    "jpeg2000": _jpeg2000,
    "jpegxl": _jpegxl,
    "lerc": _lerc,
}
_DECODERS: dict[str, Callable[[Bytes, NDArray[Any]], None]] = {
    "none": _copy,
    "deflate": partial(_fill, imagecodecs.deflate_decode),
    "zstd": partial(_fill, imagecodecs.zstd_decode),
    "lzw": partial(_fill, imagecodecs.lzw_decode),
    "packbits": partial(_fill, imagecodecs.packbits_decode),
    "lzma": partial(_fill, imagecodecs.lzma_decode),
    "jpeg": partial(_fill_image, imagecodecs.jpeg8_decode),
    "jpeg2000": partial(_fill_image, partial(imagecodecs.jpeg2k_decode, numthreads=1)),
    "jpegxl": partial(_fill_image, partial(imagecodecs.jpegxl_decode, numthreads=1)),
    "lerc": partial(_fill_image, imagecodecs.lerc_decode),
}
