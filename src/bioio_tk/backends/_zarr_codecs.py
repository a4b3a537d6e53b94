"""How the pixels of a Zarr chunk become bytes and back: the codecs of Zarr v2 and v3.

Everything common goes through imagecodecs, which lets other threads run meanwhile and decodes
into memory that is there already; whatever else there is goes through numcodecs, imported only
when a file asks for it.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import struct
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import imagecodecs
import numpy as np

from bioio_tk.errors import (
    BackendMissingError,
    BioIOError,
    DamagedFileError,
    SpecError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

Bytes: TypeAlias = "bytes | bytearray | memoryview[int] | NDArray[np.uint8]"
Document: TypeAlias = dict[str, Any]
"""A codec as JSON has it: ``{"name", "configuration"}`` (v3) or ``{"id", ...}`` (v2)."""

_KEEP = 1 << 26
"""Bytes up to which a thread keeps its buffer."""
_local = threading.local()


def scratch(count: int) -> NDArray[np.uint8]:
    """Return `count` bytes that belong to this thread until it asks for them again."""
    buffer: NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < count:
        buffer = np.empty(count, np.uint8)
        if count <= _KEEP:
            _local.buffer = buffer
    return buffer[:count]


# --- bytes to bytes ------------------------------------------------------------------------------
# A decoder is given the bytes and an array of uint8 to fill. It returns how many it filled, or
# the decoded bytes where they are elsewhere. It must not make more of them than the array holds:
# that would be a decompression bomb.


@dataclass(frozen=True, slots=True)
class BytesCodec:
    """One step between bytes and bytes.

    Attributes
    ----------
    name : str
        What the field calls it.
    decode : callable
        See above.
    encode : callable
        Contiguous array to bytes.
    """

    name: str
    decode: Callable[[Any, NDArray[np.uint8]], int | Bytes]
    encode: Callable[[NDArray[Any]], Bytes]


def _flat(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the memory of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8)


def _zstd_decode(data: Any, out: NDArray[np.uint8]) -> int:
    return len(imagecodecs.zstd_decode(data, out=out))


def _zstd_encode(level: int, array: NDArray[Any]) -> Bytes:
    made: bytes = imagecodecs.zstd_encode(_flat(array), level)
    return made


_BLOSC_HEADER = struct.Struct("<4B3I")
_BLOSC_SNAPPY = 2


def _blosc_decode(data: Any, out: NDArray[np.uint8]) -> int:
    # c-blosc trusts the lengths in its header: they are checked first
    if len(data) < _BLOSC_HEADER.size:
        raise ValueError(f"{len(data)} bytes are too few for a header")
    _, _, flags, _, size, _, stored = _BLOSC_HEADER.unpack_from(data)
    if stored > len(data):
        raise ValueError(f"{stored} bytes were written, {len(data)} are there")
    if size > len(out):
        raise ValueError(f"{size} bytes come out of it, at most {len(out)} should")
    try:
        return len(imagecodecs.blosc_decode(data, numthreads=1, out=out))
    except RuntimeError as exc:
        if flags >> 5 == _BLOSC_SNAPPY:
            raise UnsupportedError(
                "the chunks are compressed with blosc-snappy, which no current library reads: "
                "write them anew with the program that made them, with zstd"
            ) from exc
        raise


def _blosc_encode(
    compressor: str, level: int, shuffle: int, size: int, block: int, array: NDArray[Any]
) -> Bytes:
    flat = _flat(array)
    if size > 1 and len(flat) % size == 0:  # imagecodecs takes the type size from the array
        flat = flat.view(f"V{size}")
    made: bytes = imagecodecs.blosc_encode(
        flat, level, compressor=compressor, shuffle=shuffle, blocksize=block, numthreads=1
    )
    return made


def _gzip_decode(data: Any, out: NDArray[np.uint8]) -> int | Bytes:
    count = len(imagecodecs.gzip_decode(data, out=out))
    if count == len(out):
        return count
    with gzip.open(_reader(data)) as file:  # more than one member
        return file.read(len(out) + 1)


def _reader(data: Any) -> Any:
    import io

    return io.BytesIO(data)


def _deflate_encode(bits: int, level: int, array: NDArray[Any]) -> Bytes:
    """Levels up to 3 are those of igzip: faster than any of libdeflate's at the size of its 1."""
    made: bytes
    if level <= 3:
        try:
            from isal import isal_zlib
        except ImportError:  # there is no build for this platform
            level = max(level, 1)
        else:
            made = isal_zlib.compress(_flat(array), max(level, 0), bits)
            return made
    encode = imagecodecs.gzip_encode if bits == _GZIP else imagecodecs.deflate_encode
    made = encode(_flat(array), level)
    return made


_GZIP, _ZLIB = 31, 15


def _zlib_decode(data: Any, out: NDArray[np.uint8]) -> int:
    return len(imagecodecs.deflate_decode(data, out=out))


def _lz4_decode(data: Any, out: NDArray[np.uint8]) -> int:
    return len(imagecodecs.lz4_decode(data, header=True, out=out))


def _lz4_encode(level: int, array: NDArray[Any]) -> Bytes:
    made: bytes = imagecodecs.lz4_encode(_flat(array), level, header=True)
    return made


def _bz2_decode(data: Any, out: NDArray[np.uint8]) -> Bytes:
    return _ended(bz2.BZ2Decompressor(), data, len(out))


def _lzma_decode(options: Document, data: Any, out: NDArray[np.uint8]) -> Bytes:
    how = {"format": options.get("format", lzma.FORMAT_XZ)}
    if how["format"] == lzma.FORMAT_RAW:
        how["filters"] = options.get("filters")
        return lzma.LZMADecompressor(**how).decompress(data, len(out) + 1)
    return _ended(lzma.LZMADecompressor(**how), data, len(out))


def _ended(decoder: Any, data: Any, count: int) -> Bytes:
    """Decode one stream: `count` bytes or one too many, so that the caller sees it."""
    made: bytes = decoder.decompress(data, count + 1)
    if not decoder.eof and len(made) <= count:
        raise ValueError("the stream is cut off")
    return made


def crc32c(data: Any) -> int:
    """Return the CRC-32C of any buffer."""
    import google_crc32c

    value: int = google_crc32c.value(np.frombuffer(data, np.uint8))
    return value


def _crc32c_decode(data: Any, out: NDArray[np.uint8]) -> Bytes:
    body, tail = memoryview(data)[:-4], memoryview(data)[-4:]
    if len(tail) < 4 or crc32c(body) != int.from_bytes(tail, "little"):
        raise ValueError("its checksum differs")
    return body


def _crc32c_encode(array: NDArray[Any]) -> Bytes:
    flat = _flat(array)
    return flat.tobytes() + crc32c(flat).to_bytes(4, "little")


def _general_decode(codec: Any, data: Any, out: NDArray[np.uint8]) -> Bytes:
    made = codec.decode(data)
    if isinstance(made, np.ndarray):
        return made.ravel(order="A").view(np.uint8)
    kept: Bytes = made
    return kept


def _general_encode(codec: Any, array: NDArray[Any]) -> Bytes:
    return np.frombuffer(codec.encode(array), np.uint8)


# --- numcodecs -----------------------------------------------------------------------------------

_PACKAGES = {"pcodec": "pcodec", "zfpy": "zfpy", "msgpack2": "msgpack", "crc32c": "google-crc32c"}
"""What to install for a codec of numcodecs that needs more than numcodecs."""


def _general(config: Document, said: str) -> Any:
    """Return the codec of numcodecs or imagecodecs that a v2 document describes."""
    import numcodecs

    name = config["id"]
    if name.startswith("imagecodecs_"):
        import imagecodecs.numcodecs as more

        more.register_codecs(verbose=False)
    try:
        return numcodecs.get_codec(dict(config))
    except (ValueError, ImportError) as exc:
        known = numcodecs.registry.codec_registry
        if name in known and not isinstance(exc, ImportError):
            raise _bad(said, f"{exc}") from exc
        package = _PACKAGES.get(name)
        hint = f": install it with pip install {package}" if package else ""
        raise UnsupportedError(
            f"the chunks are compressed with {said!r}, which is not known here{hint}"
        ) from exc
    except (TypeError, KeyError, AttributeError) as exc:
        raise _bad(said, f"{exc}") from exc


def _bad(said: str, why: str) -> DamagedFileError:
    return DamagedFileError(f"the codec {said!r} is configured wrongly: {why}")


# --- array to array ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArrayCodec:
    """One step between arrays and arrays; `shape` and `dtype` are those it encodes to."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    decode: Callable[[NDArray[Any]], NDArray[Any]]
    encode: Callable[[NDArray[Any]], NDArray[Any]]


def _transpose(order: Sequence[int], shape: tuple[int, ...], dtype: np.dtype[Any]) -> ArrayCodec:
    back = tuple(np.argsort(order).tolist())
    return ArrayCodec(
        "transpose",
        tuple(shape[i] for i in order),
        dtype,
        partial(np.transpose, axes=back),
        partial(np.transpose, axes=tuple(order)),
    )


def _order(config: Document, ndim: int) -> tuple[int, ...]:
    order = config.get("order")
    if order == "C":  # both words were in drafts of the specification
        return tuple(range(ndim))
    if order == "F":
        return tuple(reversed(range(ndim)))
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(map(str, range(ndim))):
        raise _bad("transpose", f"order {order!r} does not name each of {ndim} axes once")
    return tuple(order)


_DTYPE_OPTION = {"fixedscaleoffset": "dtype", "quantize": "dtype", "astype": "decode_dtype"}
"""Where the pixel type goes that a v3 document may leave out."""
_STORED_OPTION = {"delta": "astype", "fixedscaleoffset": "astype", "astype": "encode_dtype"}
_ARRAY_CODECS = ("delta", "bitround", "fixedscaleoffset", "quantize", "packbits", "astype")


def _array_codec(
    config: Document, said: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> ArrayCodec:
    """Return a codec of numcodecs that makes arrays of arrays, as zarr-python uses them."""
    name = config["id"]
    if name in _DTYPE_OPTION:
        config = {_DTYPE_OPTION[name]: dtype.str, **config}
    codec = _general(config, said)
    stored, size = dtype, shape
    option = config.get(_STORED_OPTION.get(name, ""))
    if option:
        try:
            stored = np.dtype(option)
        except TypeError as exc:
            raise _bad(said, str(exc)) from exc
    if name == "packbits":
        stored, size = np.dtype(np.uint8), (1 + -(-math.prod(shape) // 8),)

    def decode(array: NDArray[Any]) -> NDArray[Any]:
        made = np.asarray(codec.decode(np.ascontiguousarray(array)))
        return made.view(dtype).reshape(shape)

    def encode(array: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(codec.encode(np.ascontiguousarray(array))).reshape(size)

    return ArrayCodec(said, size, stored, decode, encode)


# --- the chain -----------------------------------------------------------------------------------


class ChunkCodec:
    """Turns the chunks of one array into bytes and back. Safe to share between threads.

    Parameters
    ----------
    shape : tuple of int
        Size of a chunk.
    dtype : numpy.dtype
        Pixel type in native byte order.
    arrays : sequence of ArrayCodec
        Steps before there are bytes, as in writing.
    order : str
        Byte order of what is stored: ``"<"`` or ``">"``.
    squeeze : sequence of BytesCodec
        Steps after there are bytes, as in writing.
    packer : object, optional
        A codec of numcodecs that makes bytes of arrays, in place of the plain bytes.

    Attributes
    ----------
    direct : bool
        `fill` works: what is stored is, decoded, a C-contiguous array in native byte order.
    nbytes : int
        Size of a chunk in memory.
    raw : bool
        A chunk is stored as it lies in memory.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        arrays: Iterable[ArrayCodec],
        order: Literal["<", ">", "="],
        squeeze: Iterable[BytesCodec],
        packer: Any = None,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * dtype.itemsize
        self._arrays = tuple(arrays)
        self._squeeze = tuple(squeeze)
        self._packer = packer
        last = self._arrays[-1] if self._arrays else None
        self._stored_shape = last.shape if last else shape
        self._stored = (last.dtype if last else dtype).newbyteorder(order)
        self._stored_bytes = math.prod(self._stored_shape) * self._stored.itemsize
        self.direct = not self._arrays and packer is None and self._stored == dtype
        self.raw = self.direct and not self._squeeze
        # where bytes are compressed twice, the first result may be a little longer than the chunk
        self._bound = max(self.nbytes, self._stored_bytes) * 9 // 8 + (1 << 16)
        self._only = self._squeeze[0] if len(self._squeeze) == 1 else None
        self._joins = self.direct and self._only is not None and self._only.name == "zstd"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all steps that compress."""
        made = (self._packer.codec_id,) if self._packer is not None else ()
        return (*(a.name for a in self._arrays), *made, *(c.name for c in self._squeeze))

    def fill(self, data: Any, out: NDArray[Any]) -> None:
        """Decode a whole chunk into a C-contiguous native array; only where `direct`.

        Raises
        ------
        DamagedFileError
            `data` is not a whole chunk.
        """
        flat = _flat(out)
        try:
            if self._only is not None:
                made = self._only.decode(data, flat)
            else:
                made = self._unsqueeze(data, flat)
            if made is flat or (type(made) is int and made == len(flat)):
                return
            flat[:] = self._checked(made)
        except Exception as exc:  # codecs raise whatever they like
            raise self._damage(exc) from exc

    def decode_many(self, frames: Sequence[Any]) -> NDArray[Any] | None:
        """Return several chunks decoded by one call; None where that cannot be.

        One long call lets other threads run, where many short ones would have them wait for the
        interpreter's lock. Only Zstandard knows where a frame ends; each must say that it holds a
        whole chunk.

        Parameters
        ----------
        frames : sequence of bytes-like
            What is stored of each chunk.

        Returns
        -------
        ndarray or None
            (chunks, ...), this thread's until it decodes again. None: take them one by one, which
            also tells which of them is damaged.
        """
        if not self._joins or any(_content_size(frame) != self.nbytes for frame in frames):
            return None
        room = scratch(len(frames) * self.nbytes)
        try:
            made = imagecodecs.zstd_decode(b"".join(frames), out=room)
        except Exception:  # the slow way says what is wrong
            return None
        if len(made) != len(room):
            return None
        return room.view(self.dtype).reshape(len(frames), *self.shape)

    def decode(self, data: Any, *, own: bool = True) -> NDArray[Any]:
        """Return the chunk `data` was made of.

        Parameters
        ----------
        data : bytes-like
            What is stored.
        own : bool
            False: the array may be this thread's scratch memory or `data` itself, in any byte
            order and with any strides; good until the next chunk.

        Raises
        ------
        DamagedFileError
            `data` is not a whole chunk.
        """
        if own and self.direct:
            out = np.empty(self.shape, self.dtype)
            self.fill(data, out)
            return out
        try:
            array = self._decode(data)
        except Exception as exc:  # codecs raise whatever they like
            raise self._damage(exc) from exc
        return np.array(array, self.dtype, order="C", copy=True) if own else array

    def encode(self, array: NDArray[Any]) -> Bytes:
        """Return the bytes of a whole chunk; may share memory with `array` where not compressed."""
        for step in self._arrays:
            array = step.encode(array)
        if self._packer is not None:
            array = np.frombuffer(self._packer.encode(np.ascontiguousarray(array)), np.uint8)
        else:
            array = np.ascontiguousarray(array, self._stored)
        if not self._squeeze:
            return _flat(array)
        data: Bytes = self._squeeze[0].encode(array)
        for codec in self._squeeze[1:]:
            data = codec.encode(np.frombuffer(data, np.uint8))
        return data

    def _decode(self, data: Any) -> NDArray[Any]:
        if self._packer is not None:
            for codec in reversed(self._squeeze):
                data = self._bounded(codec, data)
            array = np.asarray(self._packer.decode(bytes(data)))
            array = array.view(self._stored.newbyteorder("=")).reshape(self._stored_shape)
        else:
            made = self._unsqueeze(data, scratch(self._stored_bytes) if self._squeeze else None)
            flat = self._checked(made)
            array = flat.view(self._stored).reshape(self._stored_shape)
        for step in reversed(self._arrays):
            array = step.decode(array)
        if array.shape != self.shape:
            raise ValueError(f"an array of {array.shape} came out of it, not of {self.shape}")
        return array

    def _unsqueeze(self, data: Any, out: NDArray[np.uint8] | None) -> Any:
        """Undo all steps between bytes and bytes, the last of them into `out` where it can."""
        for codec in self._squeeze[:0:-1]:
            data = self._bounded(codec, data)
        if not self._squeeze:
            return data
        assert out is not None
        made = self._squeeze[0].decode(data, out)
        if type(made) is not int:
            return made
        return out if made == len(out) else out[:made]

    def _bounded(self, codec: BytesCodec, data: Any) -> Any:
        room = np.empty(self._bound, np.uint8)
        made = codec.decode(data, room)
        made = room[:made] if type(made) is int else made
        if len(made) > self._bound:  # type: ignore[arg-type]
            raise ValueError(f"more than {self._bound} bytes came out of it")
        return made

    def _checked(self, made: Any) -> NDArray[np.uint8]:
        count = made if type(made) is int else memoryview(made).nbytes
        if count != self._stored_bytes:
            raise ValueError(f"{count} bytes came out of it, {self._stored_bytes} should")
        return np.frombuffer(made, np.uint8)

    def _damage(self, exc: Exception) -> Exception:
        if isinstance(exc, (BioIOError, MemoryError)):
            return exc
        if isinstance(exc, ImportError):  # no fault of the file
            return BackendMissingError(f"a codec cannot be loaded: {exc}")
        names = " and ".join(self.names) or "raw"
        return DamagedFileError(f"the chunk is not what {names} wrote: {exc}")


def _content_size(data: Any) -> int:
    """Return how many bytes a Zstandard frame says that it holds, -1 where it does not say.

    RFC 8878, section 3.1.1.1.
    """
    head = bytes(data[:18])
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    flags = head[4]
    single = flags >> 5 & 1
    size = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    if not size or len(head) < start + size:
        return -1
    return int.from_bytes(head[start : start + size], "little") + (256 if size == 2 else 0)


# --- documents to codecs -------------------------------------------------------------------------

_SHUFFLE = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}


def _bytes_codec(config: Document, said: str, itemsize: int) -> BytesCodec:
    """Return the step a v2 document describes."""
    name = config["id"]
    level = _number(config, "level", 1, said)
    if name == "zstd":
        encode: Callable[[NDArray[Any]], Bytes] = partial(_zstd_encode, level)
        if config.get("checksum"):
            encode = partial(_late_encode, {"id": "zstd", "level": level, "checksum": True})
        return BytesCodec("zstd", _zstd_decode, encode)
    if name == "blosc":
        return _blosc(config, said, itemsize)
    if name == "gzip":
        return BytesCodec("gzip", _gzip_decode, partial(_deflate_encode, _GZIP, level))
    if name == "zlib":
        return BytesCodec("zlib", _zlib_decode, partial(_deflate_encode, _ZLIB, level))
    if name == "lz4":
        speed = _number(config, "acceleration", 1, said)
        return BytesCodec("lz4", _lz4_decode, partial(_lz4_encode, speed))
    return _rare_codec(config, said, itemsize)


def _rare_codec(config: Document, said: str, itemsize: int) -> BytesCodec:
    name = config["id"]
    if name == "crc32c" and config.get("location", "end") == "end":
        return BytesCodec("crc32c", _crc32c_decode, _crc32c_encode)
    if name == "shuffle":
        config = {"elementsize": itemsize, **{k: v for k, v in config.items() if v is not None}}
    codec = _general(config, said)
    encode = partial(_general_encode, codec)
    if name == "bz2":
        return BytesCodec("bz2", _bz2_decode, encode)
    if name == "lzma":
        return BytesCodec("lzma", partial(_lzma_decode, config), encode)
    return BytesCodec(name, partial(_general_decode, codec), encode)


def _late_encode(config: Document, array: NDArray[Any]) -> Bytes:
    return _general_encode(_general(config, config["id"]), array)


def _blosc(config: Document, said: str, itemsize: int) -> BytesCodec:
    cname = config.get("cname", "lz4")
    if cname not in ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd"):
        raise _bad(said, f"cname {cname!r} is not known to blosc")
    shuffle = config.get("shuffle", 1)
    shuffle = _SHUFFLE.get(shuffle, shuffle) if isinstance(shuffle, str) else shuffle
    if shuffle == -1:  # v2: by the pixels
        shuffle = 2 if itemsize == 1 else 1
    if shuffle not in (0, 1, 2):
        raise _bad(said, f"shuffle {shuffle!r} is not known to blosc")
    size = _number(config, "typesize", itemsize, said)
    level = _number(config, "clevel", 5, said)
    block = _number(config, "blocksize", 0, said)
    encode = partial(_blosc_encode, cname, level, shuffle, size, block)
    return BytesCodec(f"blosc-{cname}", _blosc_decode, encode)


def _number(config: Document, name: str, default: int, said: str) -> int:
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(said, f"{name} is {value!r}, not a whole number")
    return value


def chain_v2(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    document: Document,
) -> ChunkCodec:
    """Return the codec that a ``.zarray`` describes.

    Parameters
    ----------
    shape : tuple of int
        Size of a chunk.
    dtype : numpy.dtype
        Pixel type in the byte order of the file.
    document : dict
        Of it ``order``, ``filters`` and ``compressor`` count.

    Raises
    ------
    UnsupportedError
        A codec is not known.
    DamagedFileError
        A codec is described wrongly.
    """
    native = dtype.newbyteorder("=")
    order = document.get("order", "C")
    if order not in ("C", "F"):
        raise DamagedFileError(f'"order" is {order!r}, neither "C" nor "F"')
    arrays = []
    if order == "F" and len(shape) > 1:
        arrays.append(_transpose(tuple(reversed(range(len(shape)))), shape, native))
    steps = document.get("filters") or []
    if not isinstance(steps, list):
        raise DamagedFileError(f'"filters" is {steps!r}, not a list')
    if document.get("compressor") is not None:
        steps = [*steps, document["compressor"]]
    squeeze = []
    for step in steps:
        if not isinstance(step, dict) or not isinstance(step.get("id"), str):
            raise DamagedFileError(f'{step!r} is not a codec: it has no "id"')
        squeeze.append(_bytes_codec(step, step["id"], dtype.itemsize))
    return ChunkCodec(shape, native, arrays, _byteorder(dtype), squeeze)


def _byteorder(dtype: np.dtype[Any]) -> Literal["<", ">"]:
    return "<" if dtype.newbyteorder("<") == dtype else ">"


def chain_v3(
    shape: tuple[int, ...], dtype: np.dtype[Any], steps: Sequence[tuple[str, Document]]
) -> ChunkCodec:
    """Return the codec that the ``codecs`` of a ``zarr.json`` describe.

    Parameters
    ----------
    shape : tuple of int
        Size of a chunk.
    dtype : numpy.dtype
        Pixel type in native byte order.
    steps : sequence of (str, dict)
        Names and configurations; none of them is sharding.

    Raises
    ------
    UnsupportedError
        A codec is not known.
    DamagedFileError
        Codecs are described wrongly or follow one another in an order that makes no sense.
    """
    arrays: list[ArrayCodec] = []
    squeeze: list[BytesCodec] = []
    order: Literal["<", ">", "="] | None = None
    packer: Any = None
    size, kind = shape, dtype
    for said, config in steps:
        name = said.removeprefix("numcodecs.")
        v2: Document = {**config, "id": name}
        packs = name == "bytes" or name in ("pcodec", "zfpy")
        if order is None and (packs or name.startswith("imagecodecs_")):
            packer = None if name == "bytes" else _general(v2, said)
            order = _endian(config) if name == "bytes" else "="
        elif name == "transpose" or name in _ARRAY_CODECS:
            if order is not None:
                raise DamagedFileError(f"the codec {said!r} takes arrays, but comes after bytes")
            if name == "transpose":
                arrays.append(_transpose(_order(config, len(size)), size, kind))
            else:
                arrays.append(_array_codec(v2, said, size, kind))
            size, kind = arrays[-1].shape, arrays[-1].dtype
        elif packs:
            raise DamagedFileError(f"the codec {said!r} takes arrays, but comes after bytes")
        elif order is None and name in _KNOWN_BYTES:
            raise DamagedFileError(f"the codec {said!r} takes bytes, but no codec makes them")
        else:
            squeeze.append(_bytes_codec(v2, said, kind.itemsize))
    if order is None:
        raise DamagedFileError('"codecs" has no codec that makes bytes of arrays')
    return ChunkCodec(shape, dtype, arrays, order, squeeze, packer)


_KNOWN_BYTES = ("zstd", "gzip", "zlib", "blosc", "lz4", "crc32c", "bz2", "lzma", "shuffle")


def _endian(config: Document) -> Literal["<", ">"]:
    endian = config.get("endian", "little")
    if endian not in ("little", "big"):
        raise _bad("bytes", f'endian is {endian!r}, neither "little" nor "big"')
    return "<" if endian == "little" else ">"


# --- what is written -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compression:
    """What ``compression=`` may say: its name, lowest, highest and usual level."""

    name: str
    low: int = 0
    high: int = 0
    usual: int = 0


COMPRESSIONS = (
    Compression("zstd", 1, 22, 1),
    Compression("blosc-zstd", 1, 9, 1),
    Compression("blosc-lz4", 1, 9, 5),
    Compression("gzip", 1, 9, 3),
    Compression("none"),
)
_BY_NAME = {item.name: item for item in COMPRESSIONS}
_BY_NAME |= {"raw": _BY_NAME["none"], "uncompressed": _BY_NAME["none"]}
_BY_NAME |= {"zstandard": _BY_NAME["zstd"], "blosc": _BY_NAME["blosc-zstd"]}


def codec_documents(name: str | None, level: int | None, dtype: np.dtype[Any], v: int) -> Any:
    """Return how the chunks are to be stored, as JSON.

    Parameters
    ----------
    name : str or None
        One of `COMPRESSIONS`; None is blosc-zstd, which sorts the bytes of pixels first, and zstd
        for pixels of one byte, and where a level is given.
    level : int or None
        In the codec's own scale; None is the usual one.
    dtype : numpy.dtype
        Pixel type.
    v : int
        Version of the Zarr format, 2 or 3.

    Returns
    -------
    list of dict, or (None, dict or None)
        For v3 the ``codecs``, for v2 the ``filters`` and the ``compressor``.

    Raises
    ------
    SpecError
        There is no such compression or level.
    """
    # of noisy uint16 the sorted bytes are a quarter smaller, and compressed twice as fast
    usual = "zstd" if dtype.itemsize == 1 or level is not None else "blosc-zstd"
    found = _BY_NAME.get(usual if name is None else str(name).lower())
    if found is None:
        names = ", ".join(item.name for item in COMPRESSIONS)
        raise SpecError(f"compression={name!r} is not known to OME-Zarr; give one of {names}")
    level = _level(found, level)
    order = {} if dtype.itemsize == 1 else {"configuration": {"endian": "little"}}
    codecs: list[Document] = [{"name": "bytes", **order}]
    options: Document | None = None
    if found.name in ("zstd", "gzip"):
        options = {"id": found.name, "level": level}
        if v == 3 and found.name == "zstd":
            options["checksum"] = False
    elif found.name != "none":
        options = _blosc_options(found.name.removeprefix("blosc-"), level, dtype, v)
    if v == 2:
        return None, options
    if options is not None:
        codecs.append({"name": options.pop("id"), "configuration": options})
    return codecs


def _blosc_options(cname: str, level: int, dtype: np.dtype[Any], v: int) -> Document:
    # noisy uint16: lz4 finds next to nothing in shuffled bytes, in shuffled bits it does
    shuffle = "bitshuffle" if cname == "lz4" or dtype.itemsize == 1 else "shuffle"
    options: Document = {"id": "blosc", "cname": cname, "clevel": level, "blocksize": 0}
    if v == 2:
        return {**options, "shuffle": _SHUFFLE[shuffle]}
    return {**options, "shuffle": shuffle, "typesize": dtype.itemsize}


def _level(found: Compression, level: Any) -> int:
    if level is None:
        return found.usual
    if found.high == 0:
        raise SpecError(f"compression {found.name!r} has no levels, but level={level!r} was given")
    whole = isinstance(level, (int, np.integer)) and not isinstance(level, bool)
    if not whole or not found.low <= level <= found.high:
        raise SpecError(
            f"level={level!r} does not fit compression {found.name!r}: "
            f"give {found.low} to {found.high} (faster to smaller)"
        )
    return int(level)
