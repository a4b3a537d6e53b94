"""Chunks as Fiji writes them: integers less their minimum, in as few bits as they need.

The layout is that of ``H5Zscaleoffset.c`` of the HDF5 library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._hdf5_chunks import inflate

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALE_OFFSET = 6
"""Number of the filter in HDF5."""
_HEAD = 21
"""Bytes before the packed numbers."""
_INTEGER_SCALE, _INTEGER_CLASS = 2, 0


class ScaleOffsetCodec:
    """Unpacks whole chunks that went through scale-offset first, then perhaps through deflate.

    Parameters
    ----------
    shape : tuple of int
        Of a chunk.
    dtype : numpy.dtype
        Integers, as they are stored.
    fill : int or None
        What the code of ones stands for; None where it is a number like the others.
    deflate : bool
        The packed numbers are compressed.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: int | None, *, deflate: bool
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._fill = fill
        self._deflate = deflate
        self._unsigned = np.dtype(f"u{dtype.itemsize}")

    @classmethod
    def of(cls, dataset: Any) -> ScaleOffsetCodec | None:
        """Return the codec of an open dataset, None where it is stored in another way."""
        plist = dataset.id.get_create_plist()
        filters = [plist.get_filter(n) for n in range(plist.get_nfilters())]
        if [f[0] for f in filters] not in ([SCALE_OFFSET], [SCALE_OFFSET, 1]):
            return None
        said = filters[0][2]
        kind, number = said[0], said[3]
        plain = kind == _INTEGER_SCALE and number == _INTEGER_CLASS and dataset.dtype.kind in "iu"
        if not plain or dataset.dtype.itemsize > 4 or dataset.dtype.byteorder == ">":
            return None
        fill = int(dataset.fillvalue) if said[7] else None
        return cls(dataset.chunks, dataset.dtype, fill, deflate=len(filters) > 1)

    def decode(self, data: bytes, skipped: int = 0) -> NDArray[Any]:
        """Return the pixels of a chunk, see `ChunkCodec.decode`.

        Raises
        ------
        ValueError
            The bytes are broken.
        """
        if self._deflate and not skipped & 2:
            data = inflate(data)
        count = 1
        for n in self.shape:
            count *= n
        if skipped & 1:
            return np.frombuffer(data, self.dtype, count).reshape(self.shape)
        return self._unpacked(data, count).view(self.dtype).reshape(self.shape)

    def _unpacked(self, data: bytes, count: int) -> NDArray[Any]:
        bits = int.from_bytes(data[:4], "little")
        whole = 8 * self.dtype.itemsize
        if len(data) < _HEAD + -(-count * min(bits, whole) // 8):
            raise ValueError(f"{len(data)} bytes do not hold {count} numbers of {bits} bits")
        if bits >= whole:
            return np.frombuffer(data, self._unsigned, count, _HEAD)
        least = int.from_bytes(data[5 : 5 + min(data[4], 8)], "little") & (1 << whole) - 1
        codes = _codes(data, bits, count, self._unsigned)
        pixels: NDArray[Any] = codes + self._unsigned.type(least)
        if self._fill is not None:
            blank = codes == (1 << bits) - 1
            if blank.any():
                pixels[blank] = self._fill & (1 << whole) - 1
        return pixels


def _codes(data: bytes, bits: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers of so many bits each, the highest bit first."""
    from imagecodecs import packints_decode

    if not bits:
        return np.zeros(count, dtype)
    if bits == 16:  # whole numbers would be taken for the machine's own
        return np.frombuffer(data, ">u2", count, _HEAD).astype(dtype)
    held = "u1" if bits <= 8 else "u2" if bits <= 16 else "u4"
    packed = data[_HEAD : _HEAD + -(-count * bits // 8)]
    codes: NDArray[Any] = packints_decode(packed, held, bits)[:count]
    return codes.astype(dtype, copy=False)
