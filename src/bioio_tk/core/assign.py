"""Where an array that is to be written goes: broadcast to a selection, or put at a place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.index import Selection, trim
from bioio_tk.errors import RegionError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def spread(pixels: NDArray[Any], selection: Selection) -> NDArray[Any]:
    """Return `pixels` in the full 5-D shape of the selection.

    An array shaped as reading gives it (an int keeps length 1, trailing ones dropped) fits as it
    is; else numpy's rule (ints drop their axis, broadcasting from the last axis); else missing
    axes are added at the end.
    """
    want = selection.shape
    padded = pixels.shape + (1,) * (5 - pixels.ndim)
    if pixels.ndim <= 5 and (pixels.shape == trim(want) or padded == want):
        return pixels.reshape(want)
    kept = [axis for axis in range(5) if axis not in selection.ints]
    try:
        whole = np.broadcast_to(pixels, [want[axis] for axis in kept])
        return whole.reshape(want)
    except ValueError:
        pass
    try:
        return np.broadcast_to(pixels.reshape(padded), want)
    except ValueError:
        raise SpecError(
            f"pixels of shape {pixels.shape} do not fit the region Y, X, Z, C, T = {want}"
        ) from None


def place(axis: str, start: Any, count: int, size: int) -> Any:
    """Return the index along one axis for `count` pixels that start at `start`."""
    if start is None:
        start = 0
    if isinstance(start, (list, tuple, np.ndarray)):
        if len(start) == 1:
            start = start[0]
        elif len(start) == count and axis in "CT":
            return list(start)
        elif len(start) == 2 and start[1] - start[0] == count:
            start = start[0]
        else:
            raise RegionError(f"{axis}={start!r} does not fit an array with {count} along {axis}")
    try:
        first = start.__index__()
    except AttributeError:
        raise RegionError(f"{axis}={start!r}: give the first position as an int") from None
    if first < 0 or first + count > size:
        raise RegionError(
            f"{count} pixels from {axis}={first} on do not fit: the image has {axis}={size}"
        )
    return slice(first, first + count)
