"""Names, tables and pixel types of BigDataViewer's HDF5 files, and how their chunks are packed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from bioio_tk.backends._hdf5_chunks import DEFLATE, SHUFFLE, ChunkCodec, compression_of, library
from bioio_tk.core.spec import ImageSpec, Level
from bioio_tk.core.views import FOREIGN_COMPRESSIONS
from bioio_tk.errors import BackendMissingError, PixelTypeError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.views import Mipmap, Scheme, Shape3

DATA_TYPE = "dataType"
RESOLUTIONS, SUBDIVISIONS, CELLS = "resolutions", "subdivisions", "cells"
PIXEL_TYPES = (
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float32", "float64"),
)
FULL: Shape3 = (1, 1, 1)
"""The factor of the full resolution."""
_LARGEST_CHUNK = 2**32 - 1
_LARGEST_CELL = 2**31

Filter: TypeAlias = tuple[int, int, tuple[int, ...], bytes]
"""Number, flags, values and name of what is done to chunks."""
Packed: TypeAlias = tuple[int, Any]
"""The filters that were not used for a chunk, a bit for each, and its bytes."""


def has_full(scheme: Scheme) -> bool:
    """Return whether the full resolution is stored, and not only smaller ones."""
    return scheme.mipmaps[0].factor == FULL


def check_scheme(scheme: Scheme) -> None:
    """Raise an error that says what makes no sense. Whoever asks warns: see `tell_foreign`.

    Raises
    ------
    SpecError
        A resolution or a compression does not fit.
    PixelTypeError
        BigDataViewer has no such pixels.
    BackendMissingError
        The package for a compression is not installed.
    """
    if scheme.dtype.name not in PIXEL_TYPES:
        raise PixelTypeError(
            f"BigDataViewer has no pixels of type {scheme.dtype.name}; there are "
            f"{', '.join(PIXEL_TYPES)}"
        )
    check_mipmaps(scheme.mipmaps, scheme.dtype)
    for number in range(2):
        compression_at(scheme, number)


def compression_at(scheme: Scheme, number: int) -> tuple[str, int | None]:
    """Return name and level of the compression of a stored resolution."""
    full = number == 0 or scheme.reduced_compression is None
    kind = str((scheme.compression if full else scheme.reduced_compression) or "gzip").lower()
    level = scheme.level if full or kind == str(scheme.compression or "gzip").lower() else None
    if kind in FOREIGN_COMPRESSIONS:
        _options(kind, level)
        return kind, level
    found = compression_of(kind, level)
    return ("none" if found is None else "gzip"), found


def check_mipmaps(mipmaps: Sequence[Mipmap], dtype: np.dtype[Any]) -> None:
    """Raise SpecError where resolutions cannot be those of a stack."""
    if not mipmaps:
        raise SpecError("a stack has at least one resolution, none was given")
    for mipmap in mipmaps:
        for name, sizes in (("subsampling factor", mipmap.factor), ("block", mipmap.block)):
            if any(n < 1 or int(n) != n for n in sizes):
                raise SpecError(f"a {name} is 3 whole numbers (Z, Y, X) from 1, not {sizes}")
        if int(np.prod(mipmap.block, dtype=object)) * dtype.itemsize > _LARGEST_CHUNK:
            raise SpecError(f"a block is smaller than 4 GB, {mipmap.block} is not: make it smaller")
        if int(np.prod(mipmap.factor, dtype=object)) >= _LARGEST_CELL:
            raise SpecError(
                f"a pixel cannot be made of {mipmap.factor} pixels (Z, Y, X): give smaller factors"
            )
    factors = [mipmap.factor for mipmap in mipmaps]
    if len(set(factors)) < len(factors):
        raise SpecError(f"resolutions differ in their factors, these do not all: {factors}")


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that pixels have in the file: uint16 the old way, as bits of int16."""
    return np.dtype("<i2") if dtype == np.uint16 else dtype.newbyteorder("<")


def view_path(time: int, setup: int, *rest: str) -> tuple[str, ...]:
    """Return where a view is."""
    return (f"t{time:05d}", f"s{setup:02d}", *rest)


def setup_path(setup: int) -> str:
    """Return where the tables of a setup are."""
    return f"s{setup:02d}"


def resolutions(mipmaps: Sequence[Mipmap]) -> NDArray[np.float64]:
    """Return the table of factors: a row for each, X, Y, Z."""
    return np.array([mipmap.factor[::-1] for mipmap in mipmaps], "<f8")


def subdivisions(mipmaps: Sequence[Mipmap]) -> NDArray[np.int32]:
    """Return the table of blocks: a row for each, X, Y, Z."""
    return np.array([mipmap.block[::-1] for mipmap in mipmaps], "<i4")


def chunk_of(mipmap: Mipmap, size: Shape3) -> Shape3:
    """Return the chunk of a resolution of a stack of `size`: a block, no larger than needed."""
    z, y, x = (min(b, n) for b, n in zip(mipmap.block, mipmap.shape(size), strict=True))
    return (z, y, x)


def image_of(size: Shape3, dtype: np.dtype[Any], mipmaps: Sequence[Mipmap]) -> ImageSpec:
    """Return a stack as an image of the engine: Y, X, Z, and the full resolution in any case."""
    levels = [_level(mipmap.shape(size), chunk_of(mipmap, size)) for mipmap in mipmaps]
    if mipmaps[0].factor != FULL:
        first = tuple(min(n, b) for n, b in zip(size, mipmaps[0].block, strict=True))
        levels.insert(0, _level(size, first))  # type: ignore[arg-type]
    return ImageSpec(dtype, tuple(levels))


def factors_of(scheme: Scheme) -> tuple[tuple[int, int, int], ...]:
    """Return how many pixels one of each smaller resolution is made from, along Y, X, Z."""
    some = scheme.mipmaps[1:] if has_full(scheme) else scheme.mipmaps
    return tuple((y, x, z) for z, y, x in (mipmap.factor for mipmap in some))


def _level(shape: Shape3, chunk: Shape3) -> Level:
    (z, y, x), (cz, cy, cx) = shape, chunk
    return Level((y, x, z, 1, 1), (cy, cx, cz, 1, 1))


class Codec(Protocol):
    """Packs chunks and unpacks them, in any thread."""

    filters: tuple[Filter, ...]

    def encode(self, pixels: NDArray[Any]) -> Packed:
        """Return a chunk of pixels (z, y, x), which may be smaller at the border, packed."""
        ...

    def decode(self, packed: Packed) -> NDArray[Any]:
        """Return the pixels of a whole chunk; ValueError if its bytes are broken."""
        ...


class OwnCodec:
    """Raw chunks, and those that are shuffled and deflated."""

    def __init__(self, chunk: Shape3, dtype: np.dtype[Any], level: int | None) -> None:
        self._codec = ChunkCodec(chunk, dtype.newbyteorder("<"), level, shuffle=level is not None)
        shuffle = (SHUFFLE, 1, (dtype.itemsize,), b"shuffle")
        deflate = (DEFLATE, 1, (level or 0,), b"deflate")
        self.filters: tuple[Filter, ...] = () if level is None else (shuffle, deflate)

    def encode(self, pixels: NDArray[Any]) -> Packed:
        return 0, self._codec.encode(pixels)

    def decode(self, packed: Packed) -> NDArray[Any]:
        skipped, data = packed
        return self._codec.decode(data, skipped)


class LibraryCodec:
    """Chunks that are packed by the library of HDF5, in a file of its own in memory."""

    def __init__(self, chunk: Shape3, dtype: np.dtype[Any], name: str, level: int | None) -> None:
        h5py = library()
        self._lock = threading.Lock()
        self._dtype = dtype
        self._file = h5py.File(f"{name} {id(self)}", "w", driver="core", backing_store=False)
        self._data = self._file.create_dataset(
            CELLS, chunk, dtype.newbyteorder("<"), chunks=chunk, **_options(name, level)
        )
        plist = self._data.id.get_create_plist()
        found = [plist.get_filter(n) for n in range(plist.get_nfilters())]
        self.filters: tuple[Filter, ...] = tuple(
            (number, flags, tuple(values), label) for number, flags, values, label in found
        )

    def encode(self, pixels: NDArray[Any]) -> Packed:
        whole = np.zeros(self._data.chunks, self._dtype)
        whole[tuple(slice(n) for n in pixels.shape)] = pixels
        with self._lock:
            self._data[...] = whole
            self._data.id.flush()
            skipped, data = self._data.id.read_direct_chunk((0, 0, 0))
        return skipped, data

    def decode(self, packed: Packed) -> NDArray[Any]:
        skipped, data = packed
        with self._lock:
            self._data.id.write_direct_chunk((0, 0, 0), data, skipped)
            try:
                pixels: NDArray[Any] = self._data[...].astype(self._dtype, copy=False)
            except (OSError, RuntimeError) as exc:
                raise ValueError(str(exc)) from exc
        return pixels


def codec_of(name: str, level: int | None, chunk: Shape3, dtype: np.dtype[Any]) -> Codec:
    """Return what packs chunks for a compression."""
    if name in FOREIGN_COMPRESSIONS:
        return LibraryCodec(chunk, dtype, name, level)
    return OwnCodec(chunk, dtype, level)


def _options(name: str, level: int | None) -> dict[str, Any]:
    """Return how h5py is told of a compression."""
    if name == "lzf":
        if level is not None:
            raise SpecError(f"compression 'lzf' has no levels, but level={level!r} was given")
        return {"compression": "lzf", "shuffle": True}
    try:
        import hdf5plugin
    except ImportError as exc:
        raise BackendMissingError(
            f"compression={name!r} needs the package 'hdf5plugin', which is not installed: pip "
            "install hdf5plugin, or take compression='gzip'"
        ) from exc
    kinds: dict[str, Any] = {
        "zstd": (hdf5plugin.Zstd, "clevel"),
        "blosc": (hdf5plugin.Blosc, "clevel"),
        "blosc2": (hdf5plugin.Blosc2, "clevel"),
        "lz4": (hdf5plugin.LZ4, None),
        "bitshuffle": (hdf5plugin.Bitshuffle, None),
        "bzip2": (hdf5plugin.BZip2, "blocksize"),
    }
    make, option = kinds[name]
    if level is None:
        return dict(make())
    if option is None:
        raise SpecError(f"compression {name!r} has no levels, but level={level!r} was given")
    return dict(make(**{option: level}))
