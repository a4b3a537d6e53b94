"""Chunks of HDF5 without the library: it works one call at a time, this in any thread."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.errors import BackendMissingError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFLATE, SHUFFLE = 1, 2
"""Numbers of filters in HDF5."""
LEVEL = 1
_WORDS: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
"""Sizes of numbers whose bytes are parted faster by arithmetic."""
_FAST = 3
"""Levels up to this are those of igzip."""


def missing() -> str | None:
    """Return what must be installed before HDF5 can be read or written, None for nothing."""
    from importlib.util import find_spec

    if find_spec("h5py") is not None:
        return None
    return "HDF5 needs the package 'h5py', which is not installed: pip install 'bioio-tk[hdf5]'"


def library() -> Any:
    """Import and return h5py."""
    try:
        import h5py
    except ImportError as exc:
        raise BackendMissingError(missing() or f"the package 'h5py' is broken: {exc}") from exc
    return h5py


class ChunkCodec:
    """Packs and unpacks whole chunks.

    Parameters
    ----------
    shape : tuple of int
        Of a chunk.
    dtype : numpy.dtype
        As it is stored, with its byte order.
    level : int or None
        Of deflate; None for no compression.
    shuffle : bool
        Bytes of equal weight lie together.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], level: int | None, *, shuffle: bool
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._level = level
        self._filter = shuffle
        self._shuffle = shuffle and dtype.itemsize > 1

    @classmethod
    def of(cls, dataset: Any) -> ChunkCodec | None:
        """Return the codec of an open dataset, None where only the library knows its filters."""
        plist = dataset.id.get_create_plist()
        filters = [plist.get_filter(n)[0] for n in range(plist.get_nfilters())]
        if dataset.chunks is None or filters not in ([], [SHUFFLE], [DEFLATE], [SHUFFLE, DEFLATE]):
            return None
        level = LEVEL if DEFLATE in filters else None
        return cls(dataset.chunks, dataset.dtype, level, shuffle=SHUFFLE in filters)

    def encode(self, pixels: NDArray[Any]) -> Any:
        """Return the bytes of a chunk; `pixels` may be smaller, at the border."""
        if pixels.shape != self.shape:
            whole = np.zeros(self.shape, self.dtype)
            whole[tuple(slice(n) for n in pixels.shape)] = pixels
            pixels = whole
        data = np.ascontiguousarray(pixels, self.dtype).reshape(-1).view(np.uint8)
        if self._shuffle:
            data = _shuffled(data, self.dtype.itemsize)
        return data if self._level is None else _deflate(data, self._level)

    def decode(self, data: bytes, skipped: int = 0) -> NDArray[Any]:
        """Return the pixels of a chunk.

        Parameters
        ----------
        data : bytes
            As stored.
        skipped : int
            The filters that were not used for it: a bit for each, in their order.

        Raises
        ------
        ValueError
            The bytes are broken.
        """
        size = math.prod(self.shape) * self.dtype.itemsize
        if self._level is not None and not skipped >> int(self._filter) & 1:
            flat = _inflated_to(data, size)
        else:
            flat = np.frombuffer(data, np.uint8)
        if len(flat) != size:
            raise ValueError(f"{len(flat)} bytes instead of {size}")
        if self._shuffle and not skipped & 1:
            flat = _unshuffled(flat, self.dtype.itemsize)
        return flat.view(self.dtype).reshape(self.shape)


def compression_of(name: str | None, level: Any) -> int | None:
    """Return the level of deflate that a compression means, None for raw chunks.

    Raises
    ------
    SpecError
        HDF5 is not written so.
    """
    kind = "gzip" if name is None else str(name).lower()
    if kind not in ("gzip", "deflate", "zlib", "none"):
        raise SpecError(f"compression={name!r}: HDF5 is written with 'gzip' or 'none'")
    if kind == "none":
        if level is not None:
            raise SpecError(f"compression 'none' has no levels, but level={level!r} was given")
        return None
    if level is None:
        return LEVEL
    if isinstance(level, bool) or not isinstance(level, (int, np.integer)) or not 0 <= level <= 9:
        raise SpecError(f"level={level!r} does not fit compression 'gzip': give 0 to 9")
    return int(level)


def _shuffled(data: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the bytes of numbers in another order: first all first ones, then all second."""
    if size not in _WORDS:
        return np.ascontiguousarray(data.reshape(-1, size).T).reshape(-1)
    words = data.view(_WORDS[size])
    planes = np.empty((size, len(words)), np.uint8)
    for n, plane in enumerate(planes):  # 2 to 4 times as fast as the transpose
        np.right_shift(words, words.dtype.type(8 * n), out=plane, casting="unsafe")
    return planes.reshape(-1)


def _unshuffled(data: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Undo `_shuffled`."""
    planes = data.reshape(size, -1)
    if size not in _WORDS:
        numbers = np.empty(planes.shape[::-1], np.uint8)
        for n, plane in enumerate(planes):
            numbers[:, n] = plane
        return numbers.reshape(-1)
    words = planes[-1].astype(_WORDS[size])
    for plane in planes[-2::-1]:  # up to 18 times as fast as the transpose
        words <<= 8
        words |= plane
    flat: NDArray[np.uint8] = words.view(np.uint8)
    return flat


def _deflate(data: NDArray[np.uint8], level: int) -> bytes:
    if level <= _FAST:
        try:
            from isal import isal_zlib
        except ImportError:  # there is no build for this platform
            return zlib.compress(data, level)
        packed: bytes = isal_zlib.compress(data, level)
        return packed
    return zlib.compress(data, level)


def inflate(data: bytes) -> bytes:
    """Return what deflate has packed; ValueError where the bytes are broken."""
    try:
        from isal import isal_zlib
    except ImportError:
        return _inflated(zlib, data)
    return _inflated(isal_zlib, data)


def _inflated_to(data: bytes, size: int) -> NDArray[np.uint8]:
    """Return what deflate has packed, where its size is known: twice as fast as `inflate`."""
    import imagecodecs

    out = np.empty(size, np.uint8)
    try:
        return out[: len(imagecodecs.deflate_decode(data, out=out))]
    except Exception as exc:  # an error of its own
        raise ValueError(f"it does not unpack to {size} bytes ({exc})") from exc


def _inflated(module: Any, data: bytes) -> bytes:
    try:
        found: bytes = module.decompress(data)
    except Exception as exc:  # each library has an error of its own
        raise ValueError(str(exc)) from exc
    return found
