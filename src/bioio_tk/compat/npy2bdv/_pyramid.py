"""How npy2bdv makes a smaller resolution, to the last bit of its values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_AXES = (2, 3, 4)
"""Z, Y, X of pixels that lie T, C, Z, Y, X."""
_FEW = 1 << 16
"""Up to so many pixels in a cell, 16-bit ones are summed in 32 bits."""


def padded_mean(block: NDArray[Any], factor: tuple[int, int, int]) -> NDArray[Any]:
    """Return a block with one pixel for every cell: its sum over the size of a *whole* cell.

    So a cell that is cut off at the border is the darker the less is left of it, as if zeros
    followed, and integers are cut off, not rounded. `bioio_tk.bdv` does neither; this is for code
    whose tests hold these values.

    Parameters
    ----------
    block : ndarray
        Pixels, shaped (y, x, z, c, t): unsigned integers of up to 16 bits, or floats.
    factor : tuple of 3 int
        Size of a cell along Y, X, Z.

    Returns
    -------
    ndarray
        Pixels of the same type, shaped (y, x, z, c, t).

    Examples
    --------
    >>> row = np.array([7, 8, 9], "uint8").reshape(1, 3, 1, 1, 1)
    >>> padded_mean(row, (1, 2, 1)).ravel().tolist()
    [7, 4]
    """
    pixels = block.transpose(4, 3, 2, 0, 1)
    y, x, z = factor
    small = (_mean_of_floats if pixels.dtype.kind == "f" else _mean)(pixels, (z, y, x))
    return small.transpose(3, 4, 2, 1, 0)


def _mean(pixels: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    cell = int(np.prod(factors))
    total = pixels
    for axis, factor in zip(_AXES, factors, strict=True):
        total = _summed(total, axis, factor, np.dtype(np.uint32 if cell <= _FEW else np.uint64))
    means: NDArray[Any] = (total // total.dtype.type(cell)).astype(pixels.dtype)
    return means


def _summed(pixels: NDArray[Any], axis: int, factor: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return sums of `factor` neighbours along an axis; the last one may have fewer of them."""
    before = (slice(None),) * axis
    total = pixels[(*before, slice(0, None, factor))].astype(dtype)
    for k in range(1, factor):
        part = pixels[(*before, slice(k, None, factor))]
        total[(*before, slice(part.shape[axis]))] += part
    return total


def _mean_of_floats(pixels: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    """Let NumPy add in the order in which it adds for npy2bdv: another one has other last bits.

    That order is another one where there is a single cell along an axis, so there are always two.
    """
    sizes = pixels.shape[2:]
    cells = [-(-n // f) for n, f in zip(sizes, factors, strict=True)]
    room = [max(n, 2) for n in cells]
    full = (n * f for n, f in zip(room, factors, strict=True))
    padded = np.zeros((*pixels.shape[:2], *full), pixels.dtype)
    z, y, x = sizes
    padded[:, :, :z, :y, :x] = pixels
    split = (size for pair in zip(room, factors, strict=True) for size in pair)
    blocks = padded.reshape(*pixels.shape[:2], *split).transpose(0, 1, 2, 4, 6, 3, 5, 7)
    means: NDArray[Any] = blocks.mean(axis=(5, 6, 7))
    z, y, x = cells
    return means[:, :, :z, :y, :x]
