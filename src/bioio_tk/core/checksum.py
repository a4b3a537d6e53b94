"""Checksums of planes whose pixels come in pieces, in any order, from several threads.

The checksum of a plane is the CRC-32 of its pixels row by row, little-endian, as zlib, gzip and
PNG have it: ``zlib.crc32(plane.tobytes())``. A CRC is linear: the one of a whole is the XOR of
those of its parts, each moved on by the bytes that come after it. So nothing has to be kept of a
piece but one number a plane.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.core.region import Shape5, Slices5

Part: TypeAlias = dict[str, tuple[int, int]]
"""What pieces add to the planes they touch: the name of the plane to (CRC so far, pixels)."""

PREFIX = "crc32:"
"""What a checksum begins with, eight hexadecimal digits follow."""

_POLYNOMIAL = 0xEDB88320  # of CRC-32, its lowest bit that of the highest power
_ONE = 1 << 31
_MASK = 0xFFFFFFFF


def plane_name(t: int, c: int, z: int) -> str:
    """Return what a plane is called in a report.

    >>> plane_name(0, 2, 11)
    't0 c2 z11'
    """
    return f"t{t} c{c} z{z}"


class PlaneSums:
    """The checksum of each plane of an image, from pieces that together are the image.

    Each pixel is to be given once. All methods may be called from several threads.

    Parameters
    ----------
    shape : Shape5
        Size along Y, X, Z, C, T in pixels.
    dtype : numpy.dtype
        Pixel type; its byte order does not matter.

    Examples
    --------
    >>> image = np.arange(12, dtype="uint16").reshape(3, 4, 1, 1, 1)
    >>> sums = PlaneSums(image.shape, image.dtype)
    >>> for rows in (slice(1, 3), slice(0, 1)):
    ...     sums.add((rows, slice(0, 4), *[slice(0, 1)] * 3), image[rows])
    >>> sums.result() == {"t0 c0 z0": f"crc32:{zlib.crc32(image.tobytes()):08x}"}
    True
    """

    def __init__(self, shape: Shape5, dtype: Any) -> None:
        self._shape = shape
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._lock = threading.Lock()
        self._sums: Part = {}

    def part(self, box: Slices5, pixels: NDArray[Any]) -> Part:
        """Return what a piece adds; nothing changes.

        Parameters
        ----------
        box : Slices5
            Where the piece lies, along Y, X, Z, C, T.
        pixels : numpy.ndarray
            Its pixels, shaped (y, x, z, c, t).

        Returns
        -------
        dict
            For `merge`, in this process or another; JSON can hold it.
        """
        ys, xs, zs, cs, ts = box
        height, width = self._shape[:2]
        row = width * self._dtype.itemsize
        after = (height - ys.stop) * row + (width - xs.stop) * self._dtype.itemsize
        size = (ys.stop - ys.start) * (xs.stop - xs.start)
        found: Part = {}
        for t, c, z in product(*(range(s.stop - s.start) for s in (ts, cs, zs))):
            plane = np.ascontiguousarray(pixels[:, :, z, c, t], self._dtype)
            crc = _times(_power(after), _crc_of_rows(plane, row))
            found[plane_name(t + ts.start, c + cs.start, z + zs.start)] = (crc, size)
        return found

    def merge(self, part: Mapping[str, Sequence[int]]) -> None:
        """Add what `part` has returned, or `parts` of another one."""
        with self._lock:
            for name, (crc, pixels) in part.items():
                before = self._sums.get(name, (0, 0))
                self._sums[name] = (before[0] ^ crc, before[1] + pixels)

    def add(self, box: Slices5, pixels: NDArray[Any]) -> None:
        """Add a piece, see `part`."""
        self.merge(self.part(box, pixels))

    def parts(self) -> Part:
        """Return all that was added so far, for `merge` into another one."""
        with self._lock:
            return dict(self._sums)

    def result(self) -> dict[str, str]:
        """Return the checksum of each plane that is complete, T outermost, then C, then Z.

        Returns
        -------
        dict
            Such as ``{"t0 c0 z0": "crc32:0f1e2d3c"}``.
        """
        y, x, z, c, t = self._shape
        known = self.parts()
        start = _zeros(y * x * self._dtype.itemsize)
        found = {}
        for at in product(range(t), range(c), range(z)):
            name = plane_name(*at)
            crc, pixels = known.get(name, (0, 0))
            if pixels == y * x:
                found[name] = f"{PREFIX}{crc ^ start:08x}"
        return found


def check_sums(sums: Any, shape: Shape5) -> dict[str, str]:
    """Return recorded checksums, the planes in the order of `PlaneSums.result`.

    Raises
    ------
    SpecError
        They are none, of another kind, or not those of all planes of an image of this shape.
    """
    _, _, z, c, t = shape
    names = [plane_name(*at) for at in product(range(t), range(c), range(z))]
    whole = isinstance(sums, Mapping) and set(sums) == set(names)
    if not whole or not all(isinstance(v, str) and v.startswith(PREFIX) for v in sums.values()):
        raise SpecError(
            f"the checksums are not the {PREFIX}… of each plane of an image of {t} x {c} x {z} "
            "(T, C, Z)"
        )
    return {name: sums[name] for name in names}


# -- arithmetic: polynomials over GF(2), modulo that of CRC-32 ------------------------------------


def _crc_of_rows(plane: NDArray[Any], stride: int) -> int:
    """Return the CRC of rows that begin `stride` bytes apart, the gaps and all before being 0."""
    crc32 = _crc32()
    data = memoryview(plane.reshape(-1).view(np.uint8))
    height, length = plane.shape[0], plane.shape[1] * plane.itemsize
    if length == stride or height == 1:
        return crc32(data, _MASK) ^ _MASK
    if not length:
        return 0
    # started with all bits set, it is linear: without what zlib adds for zeros at the beginning
    rows = np.fromiter(
        (crc32(data[at : at + length], _MASK) for at in range(0, len(data), length)),
        np.uint32,
        height,
    )
    sums = np.zeros(1 << (height - 1).bit_length(), np.uint32)
    np.bitwise_xor(rows, np.uint32(_MASK), out=sums[len(sums) - height :])
    step = stride
    while len(sums) > 1:  # neighbours together: half as many, twice as far apart
        sums = _moved(sums[0::2], step) ^ sums[1::2]
        step *= 2
    return int(sums[0])


@lru_cache(maxsize=1)
def _crc32() -> Callable[..., int]:
    try:
        from isal import isal_zlib
    except ImportError:  # pragma: no cover - a processor that there is no wheel for
        return zlib.crc32
    fast: Callable[..., int] = isal_zlib.crc32  # the same numbers, ten times as fast
    return fast


def _moved(sums: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    """Return each CRC as it is after `count` more bytes of zeros."""
    first, second, third, fourth = _tables(count)
    found: NDArray[np.uint32] = (
        first[sums & 255] ^ second[sums >> 8 & 255] ^ third[sums >> 16 & 255] ^ fourth[sums >> 24]
    )
    return found


@lru_cache(maxsize=256)
def _tables(count: int) -> NDArray[np.uint32]:
    """Return what each byte of a CRC becomes after `count` bytes of zeros, (4, 256)."""
    power = _power(count)
    bits = [_times(power, 1 << bit) for bit in range(32)]
    tables = np.zeros((4, 256), np.uint32)
    for byte, bit in product(range(4), range(8)):
        size = 1 << bit
        tables[byte, size : 2 * size] = tables[byte, :size] ^ np.uint32(bits[8 * byte + bit])
    return tables


@lru_cache(maxsize=4096)
def _power(count: int) -> int:
    """Return x to the number of bits in `count` bytes."""
    found, square = _ONE, _ONE >> 8
    while count:
        if count & 1:
            found = _times(found, square)
        square = _times(square, square)
        count >>= 1
    return found


def _times(one: int, other: int) -> int:
    found = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            found ^= other
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return found


def _zeros(count: int) -> int:
    """Return the CRC of so many bytes of zeros.

    >>> _zeros(1000) == zlib.crc32(bytes(1000))
    True
    """
    return _times(_power(count), _MASK) ^ _MASK
