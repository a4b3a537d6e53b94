"""5-D arrays shaped (y, x, z, c, t) over memory laid out T, C, Z, Y, X: planes are contiguous."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.core.region import Shape5


def empty(shape: Shape5, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an uninitialised array of `shape` (YXZCT) whose planes are contiguous."""
    y, x, z, c, t = shape
    try:
        return np.empty((t, c, z, y, x), dtype).transpose(3, 4, 2, 1, 0)
    except (MemoryError, ValueError) as exc:
        raise _too_large(shape, dtype) from exc


def zeros(shape: Shape5, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array of zeros of `shape` (YXZCT) whose planes are contiguous."""
    y, x, z, c, t = shape
    try:
        return np.zeros((t, c, z, y, x), dtype).transpose(3, 4, 2, 1, 0)
    except (MemoryError, ValueError) as exc:
        raise _too_large(shape, dtype) from exc


def _too_large(shape: Shape5, dtype: np.dtype[Any]) -> MemoryError:
    size = dtype.itemsize
    for n in shape:
        size *= n
    return MemoryError(
        f"{size / 2**30:,.1f} GiB do not fit into memory (YXZCT {shape}, {dtype.name}): read a "
        "part of the image, or go through it with tiles()"
    )
