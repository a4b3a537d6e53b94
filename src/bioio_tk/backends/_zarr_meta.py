"""What a Zarr array says of itself: ``zarr.json`` (v3) and ``.zarray`` (v2), read and written."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bioio_tk.backends._zarr_codecs import ChunkCodec, Document, chain_v2, chain_v3
from bioio_tk.errors import BioIOError, DamagedFileError, UnsupportedError

_LARGEST = 1 << 63
_MAX_INDEX = 1 << 28
"""Bytes that the index of a shard may have."""

TYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64", "complex64", "complex128",
    )
}  # fmt: skip
"""The pixel types of Zarr v3 that NumPy has."""


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """How the table of a shard is stored.

    Attributes
    ----------
    counts : tuple of int
        Chunks of a shard along each axis.
    dtype : numpy.dtype
        Type of its numbers: 8 bytes, little or big endian.
    checked : bool
        A CRC-32C follows.
    at_end : bool
        It lies at the end of the shard, not at its start.
    """

    counts: tuple[int, ...]
    dtype: np.dtype[np.uint64]
    checked: bool
    at_end: bool

    @property
    def nbytes(self) -> int:
        """Size of the table with its checksum."""
        return 16 * math.prod(self.counts) + 4 * self.checked


@dataclass(frozen=True, slots=True)
class ArrayMeta:
    """All that has to be known of a Zarr array to read and write its chunks.

    Attributes
    ----------
    zarr_format : int
        2 or 3.
    shape : tuple of int
        Size of the array.
    chunks : tuple of int
        What is decoded at once; in a shard the inner chunk.
    shards : tuple of int or None
        What one key holds where that is more than a chunk.
    dtype : numpy.dtype
        Pixel type in native byte order.
    fill : numpy.generic
        Value of what is not stored; 0 where the file does not say.
    codec : ChunkCodec
        Turns a chunk into bytes and back.
    dimension_names : tuple of (str or None), or None
        Names of the axes (v3).
    attributes : dict
        v3: those of the array; v2: empty, ``.zattrs`` is another file.
    compression : str
        Short name for people: ``"zstd"``, ``"blosc-lz4"``, ``"none"``.
    prefix, separator : str
        What makes a key of an index.
    index : ShardIndex or None
        The table of a shard.
    """

    zarr_format: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: np.dtype[Any]
    fill: Any
    codec: ChunkCodec
    dimension_names: tuple[str | None, ...] | None
    attributes: dict[str, Any]
    compression: str
    prefix: str
    separator: str
    index: ShardIndex | None = None

    def key(self, index: Sequence[int]) -> str:
        """Return the key of a chunk (of a shard, where there are shards) within the array."""
        return self.prefix + self.separator.join(map(str, index))

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))


def read_meta(zarr_json: bytes | None, zarray: bytes | None, where: str) -> ArrayMeta:
    """Return what is said of an array.

    Parameters
    ----------
    zarr_json, zarray : bytes or None
        Content of ``zarr.json`` or of ``.zarray``; the former counts where both are there.
    where : str
        Path or URL of the array, for messages.

    Raises
    ------
    DamagedFileError
        A field is missing or makes no sense.
    UnsupportedError
        The array uses something that is not known here.

    References
    ----------
    https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html and .../v2/v2.0.html
    """
    name = "zarr.json" if zarr_json is not None else ".zarray"
    content = zarr_json if zarr_json is not None else zarray
    try:
        if content is None:
            raise DamagedFileError("there is none")
        document = _object(content)
        return _read_v3(document) if zarr_json is not None else _read_v2(document)
    except BioIOError as exc:
        raise type(exc)(f"{where}/{name}: {exc}") from exc


def _object(content: bytes) -> Document:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise DamagedFileError(f"it is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise DamagedFileError("it is not a JSON object")
    return document


def _get(document: Document, field: str, kind: type | tuple[type, ...], what: str) -> Any:
    if field not in document:
        raise DamagedFileError(f'"{field}" is missing')
    value = document[field]
    if not isinstance(value, kind):
        raise DamagedFileError(f'"{field}" is {_short(value)}, not {what}')
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 80 else f"{text[:77]}..."


def _sizes(document: Document, field: str, least: int, count: int | None = None) -> tuple[int, ...]:
    value = _get(document, field, list, "a list of whole numbers")
    for n in value:
        if isinstance(n, bool) or not isinstance(n, int) or not least <= n < _LARGEST:
            raise DamagedFileError(
                f'"{field}" is {_short(value)}: {n!r} is not a whole number from {least} to 2^63'
            )
    if not value:
        raise DamagedFileError(f'"{field}" is empty: an image has at least one axis')
    if count is not None and len(value) != count:
        raise DamagedFileError(f'"{field}" has {len(value)} numbers, "shape" has {count}')
    return tuple(value)


def _compression(codec: ChunkCodec) -> str:
    return "+".join(n for n in codec.names if n not in ("transpose", "crc32c")) or "none"


# --- v2 ------------------------------------------------------------------------------------------


def _read_v2(document: Document) -> ArrayMeta:
    if document.get("zarr_format") != 2:
        raise DamagedFileError(f'"zarr_format" is {document.get("zarr_format")!r}, not 2')
    shape = _sizes(document, "shape", 0)
    chunks = _sizes(document, "chunks", 1, len(shape))
    stored = _dtype_v2(document)
    separator = document.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise DamagedFileError(f'"dimension_separator" is {separator!r}, neither "." nor "/"')
    codec = chain_v2(chunks, stored, document)
    return ArrayMeta(
        zarr_format=2,
        shape=shape,
        chunks=chunks,
        shards=None,
        dtype=codec.dtype,
        fill=_fill(document.get("fill_value"), stored),
        codec=codec,
        dimension_names=None,
        attributes={},
        compression=_compression(codec),
        prefix="",
        separator=separator,
    )


def _dtype_v2(document: Document) -> np.dtype[Any]:
    said = _get(document, "dtype", (str, list), 'a type like "<u2"')
    if isinstance(said, list):
        raise UnsupportedError("its pixels are structures of several fields: only numbers are read")
    try:
        dtype: np.dtype[Any] = np.dtype(said)
    except (TypeError, ValueError, SyntaxError) as exc:
        raise DamagedFileError(f'"dtype" is {said!r}: {exc}') from exc
    if dtype.newbyteorder("=") not in TYPES.values():
        raise UnsupportedError(f"its pixels are of type {said!r}: only numbers and bool are read")
    return dtype


# --- v3 ------------------------------------------------------------------------------------------

_FIELDS = {
    "zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding",
    "fill_value", "codecs", "attributes", "dimension_names", "storage_transformers",
    "consolidated_metadata",
}  # fmt: skip


def _read_v3(document: Document) -> ArrayMeta:
    if document.get("zarr_format") != 3:
        raise DamagedFileError(f'"zarr_format" is {document.get("zarr_format")!r}, not 3')
    if document.get("node_type") != "array":
        raise DamagedFileError(f'"node_type" is {document.get("node_type")!r}, not "array"')
    _check_extensions(document)
    shape = _sizes(document, "shape", 0)
    dtype = _dtype_v3(document)
    outer = _grid(document, len(shape))
    prefix, separator = _key_encoding(document)
    steps = [_named(c, "codecs") for c in _get(document, "codecs", list, "a list of codecs")]
    shards, chunks, index = None, outer, None
    if any(name == "sharding_indexed" for name, _ in steps):
        if len(steps) > 1:
            others = ", ".join(n for n, _ in steps if n != "sharding_indexed")
            raise UnsupportedError(f"its shards are encoded once more as a whole, with {others}")
        shards = outer
        chunks, steps, index = _sharding(steps[0][1], outer)
    codec = chain_v3(chunks, dtype, steps)
    if "fill_value" not in document:
        raise DamagedFileError('"fill_value" is missing')
    return ArrayMeta(
        zarr_format=3,
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype=dtype,
        fill=_fill(document["fill_value"], dtype),
        codec=codec,
        dimension_names=_dimension_names(document, len(shape)),
        attributes=_get({"attributes": {}, **document}, "attributes", dict, "an object"),
        compression=_compression(codec),
        prefix=prefix,
        separator=separator,
        index=index,
    )


def _check_extensions(document: Document) -> None:
    if document.get("storage_transformers"):
        raise UnsupportedError("it has storage_transformers, which are not known here")
    for name, value in document.items():
        if name not in _FIELDS and not (
            isinstance(value, dict) and value.get("must_understand") is False
        ):
            raise UnsupportedError(f"it needs the extension {name!r}, which is not known here")


def _named(value: Any, field: str) -> tuple[str, Document]:
    """Return name and configuration of what v3 writes as an object, or as a name alone."""
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise DamagedFileError(f'"{field}" is {_short(value)}: it has no "name"')
    config = value.get("configuration") or {}
    if not isinstance(config, dict):
        raise DamagedFileError(f'"{field}" has the configuration {_short(config)}, not an object')
    return value["name"], config


def _dtype_v3(document: Document) -> np.dtype[Any]:
    name, _ = _named(_get(document, "data_type", (str, dict), "a type"), "data_type")
    if name not in TYPES:
        raise UnsupportedError(
            f"its pixels are of type {name!r}; what is read is {', '.join(TYPES)}"
        )
    return TYPES[name]


def _grid(document: Document, ndim: int) -> tuple[int, ...]:
    name, config = _named(_get(document, "chunk_grid", (str, dict), "an object"), "chunk_grid")
    if name != "regular":
        raise UnsupportedError(f"its chunk grid is {name!r}: only regular grids are read")
    return _sizes(config, "chunk_shape", 1, ndim)


def _key_encoding(document: Document) -> tuple[str, str]:
    said = _get(document, "chunk_key_encoding", (str, dict), "an object")
    name, config = _named(said, "chunk_key_encoding")
    if name not in ("default", "v2"):
        raise UnsupportedError(f"its chunks are named by {name!r}: known are default and v2")
    separator = config.get("separator", "/" if name == "default" else ".")
    if separator not in (".", "/"):
        raise DamagedFileError(f'"separator" is {separator!r}, neither "." nor "/"')
    return (f"c{separator}" if name == "default" else ""), separator


def _sharding(
    config: Document, outer: tuple[int, ...]
) -> tuple[tuple[int, ...], list[tuple[str, Document]], ShardIndex]:
    chunks = _sizes(config, "chunk_shape", 1, len(outer))
    if any(n % c for n, c in zip(outer, chunks, strict=True)):
        raise DamagedFileError(f"shards of {outer} are no multiple of their chunks of {chunks}")
    steps = [_named(c, "codecs") for c in _get(config, "codecs", list, "a list of codecs")]
    if any(name == "sharding_indexed" for name, _ in steps):
        raise UnsupportedError("its shards hold shards: only one level of them is read")
    given = _get(config, "index_codecs", list, "a list of codecs")
    names = [_named(c, "index_codecs") for c in given]
    if [n for n, _ in names] not in (["bytes"], ["bytes", "crc32c"]):
        said = ", ".join(n for n, _ in names)
        raise UnsupportedError(f"the index of its shards is stored with {said}")
    endian = names[0][1].get("endian", "little")
    if endian not in ("little", "big"):
        raise DamagedFileError(f'"endian" of the shard index is {endian!r}')
    place = config.get("index_location", "end")
    if place not in ("start", "end"):
        raise DamagedFileError(f'"index_location" is {place!r}, neither "start" nor "end"')
    index = ShardIndex(
        counts=tuple(n // c for n, c in zip(outer, chunks, strict=True)),
        dtype=np.dtype("<u8" if endian == "little" else ">u8"),
        checked=len(names) == 2,
        at_end=place == "end",
    )
    if index.nbytes > _MAX_INDEX:
        raise UnsupportedError(f"its shards hold {math.prod(index.counts)} chunks each: too many")
    return chunks, steps, index


def _dimension_names(document: Document, ndim: int) -> tuple[str | None, ...] | None:
    names = document.get("dimension_names")
    if names is None:
        return None
    if (
        not isinstance(names, list)
        or len(names) != ndim
        or not all(n is None or isinstance(n, str) for n in names)
    ):
        raise DamagedFileError(f'"dimension_names" is {_short(names)}, not {ndim} names')
    return tuple(names)


# --- fill value ----------------------------------------------------------------------------------


def _fill(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return a fill value as a scalar of `dtype` in native byte order."""
    native = dtype.newbyteorder("=")
    try:
        if value is None:
            return native.type(0)
        if native.kind == "c" and isinstance(value, list) and len(value) == 2:
            part = np.dtype(f"f{native.itemsize // 2}")
            return np.array([_real(v, part) for v in value], part).view(native)[0]
        if isinstance(value, str) and native.kind in "biuc":
            return _text(value, dtype)
        return _real(value, native)
    except (ValueError, TypeError, OverflowError, binascii.Error) as exc:
        raise DamagedFileError(f'"fill_value" {_short(value)} is not of type {native}') from exc


def _real(value: Any, native: np.dtype[Any]) -> Any:
    if isinstance(value, str) and native.kind == "f":
        if value.startswith("0x"):
            raw = bytes.fromhex(value[2:])
            return np.frombuffer(raw, native.newbyteorder(">"), 1).astype(native)[0]
        if value in ("NaN", "Infinity", "-Infinity"):
            return native.type(float(value))
        return _text(value, native.newbyteorder("<"))
    if not isinstance(value, (int, float)):
        raise TypeError(value)
    if native.kind in "iu" and isinstance(value, float):
        if not value.is_integer():
            raise ValueError(value)
        value = int(value)
    if native.kind == "b" and value not in (0, 1):
        raise ValueError(value)
    if native.kind in "iu" and not np.iinfo(native).min <= value <= np.iinfo(native).max:
        raise OverflowError(value)
    with np.errstate(over="ignore"):
        return native.type(value)


def _text(value: str, dtype: np.dtype[Any]) -> Any:
    """Understand a number in quotes, or the bytes of one pixel in base64 (v2)."""
    native = dtype.newbyteorder("=")
    if value == "":
        return native.type(0)
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) == dtype.itemsize and not value.isdigit():
        return np.frombuffer(raw, dtype).astype(native)[0]
    return native.type(float(value) if native.kind == "f" else int(value))


# --- writing -------------------------------------------------------------------------------------


def write_meta_v3(
    shape: Sequence[int],
    chunks: Sequence[int],
    shards: Sequence[int] | None,
    dtype: np.dtype[Any],
    codecs: list[Document],
    dimension_names: Sequence[str | None] | None = None,
    attributes: Mapping[str, Any] | None = None,
    *,
    live: bool = False,
) -> bytes:
    """Return the ``zarr.json`` of an array filled with 0.

    Parameters
    ----------
    shape, chunks : sequence of int
        Size of the array, and of what is decoded at once.
    shards : sequence of int or None
        Size of what is one file, a multiple of `chunks`; None stores each chunk as a file.
    dtype : numpy.dtype
        Pixel type.
    codecs : list of dict
        From `codec_documents`.
    dimension_names : sequence of str, optional
        Names of the axes.
    attributes : mapping, optional
        Anything that is JSON.
    live : bool
        The table of a shard is at its start and has no checksum, so that one chunk is entered by
        one small write; else it is at the end and has one, which every program reads.
    """
    outer = chunks
    if shards is not None:
        outer = shards
        index = [{"name": "bytes", "configuration": {"endian": "little"}}]
        index += [] if live else [{"name": "crc32c"}]
        config = {
            "chunk_shape": [int(n) for n in chunks],
            "codecs": codecs,
            "index_codecs": index,
            "index_location": "start" if live else "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": config}]
    fill: Any = [0.0, 0.0] if dtype.kind == "c" else 0.0 if dtype.kind == "f" else 0
    document: Document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [int(n) for n in shape],
        "data_type": dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [int(n) for n in outer]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if dtype.kind == "b" else fill,
        "codecs": codecs,
        "attributes": dict(attributes or {}),
        "storage_transformers": [],
    }
    if dimension_names is not None:
        document["dimension_names"] = list(dimension_names)
    return _json(document)


def write_meta_v2(
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: np.dtype[Any],
    codecs: tuple[None, Document | None],
    separator: str = "/",
) -> bytes:
    """Return the ``.zarray`` of an array filled with 0; parameters as in `write_meta_v3`.

    Parameters
    ----------
    shape, chunks : sequence of int
        Size of the array and of its chunks.
    dtype : numpy.dtype
        Pixel type.
    codecs : (None, dict or None)
        Filters and compressor, from `codec_documents`.
    separator : str
        ``"/"`` makes folders, as NGFF wants it.
    """
    fill: Any = [0.0, 0.0] if dtype.kind == "c" else 0.0 if dtype.kind == "f" else 0
    document = {
        "zarr_format": 2,
        "shape": [int(n) for n in shape],
        "chunks": [int(n) for n in chunks],
        "dtype": dtype.newbyteorder("<").str,
        "fill_value": False if dtype.kind == "b" else fill,
        "order": "C",
        "filters": codecs[0],
        "compressor": codecs[1],
        "dimension_separator": separator,
    }
    return _json(document)


def _json(document: Document) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False).encode()
