"""What a user gives as a stack: its size, its pixel type, and its pixels in pieces."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.dtype import as_pixels, pixel_dtype
from bioio_tk.engine.copy import copy
from bioio_tk.errors import PixelTypeError, SpecError
from bioio_tk.inputs.open import open_input

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.core.views import Shape3
    from bioio_tk.engine.copy import Progress
    from bioio_tk.lazy import LazyArray

TYPES: tuple[str, ...] = (
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float32", "float64"),
)
"""Pixel types that BigDataViewer reads."""


class Stack:
    """Pixels with the axes Z, Y, X (or Y, X for one plane).

    Parameters
    ----------
    given : array
        NumPy's, dask's, Zarr's, h5py's, or a `BioReader` or its lazy array with one channel and
        time point. NumPy's are taken as they are, all others in pieces.

    Raises
    ------
    SpecError
        It has another number of axes, or no pixels.
    """

    def __init__(self, given: Any) -> None:
        self._owned = False
        self._lazy: LazyArray | None = None
        self._pixels: NDArray[Any] | None = None
        if isinstance(given, np.ndarray | list | tuple | np.generic):
            self._pixels = _volume(_array(given))
            size: tuple[int, ...] = self._pixels.shape
            self.dtype = self._pixels.dtype
        else:
            size = self._open(given)
        self.size: Shape3 = (size[0], size[1], size[2])
        if 0 in self.size:
            raise SpecError(f"a stack of {self.size} pixels (Z, Y, X) has an axis of length 0")

    def _open(self, given: Any) -> tuple[int, ...]:
        axes = getattr(given, "ndim", None)
        lazy, self._owned = open_input(given, dims={2: "YX", 3: "ZYX"}.get(axes or 0))
        self._lazy = lazy
        self.dtype = lazy.dtype
        y, x, z, c, t = (len(pick) for pick in lazy.picks)
        if (c, t) != (1, 1):
            self.close()
            raise SpecError(
                f"a stack has the axes Z, Y, X; this has {c} channels and {t} time points: write "
                "each of them as a view of its own"
            )
        return (z, y, x)

    def hand_over(
        self,
        put: Callable[[Slices5, NDArray[Any]], object],
        tile: Shape5,
        *,
        dtype: np.dtype[Any],
        cast: str | None,
        workers: int,
        progress: Progress | None,
    ) -> None:
        """Give all pixels to `put`, as (box, pixels) with the axes Y, X, Z, C, T."""
        if self._pixels is not None:
            whole = tuple(slice(0, n) for n in (*self.size[1:], self.size[0], 1, 1))
            put(whole, in_five(as_pixels(self._pixels, dtype, cast)))  # type: ignore[arg-type]
            if progress is not None:
                progress(self._pixels.nbytes, self._pixels.nbytes)
            return
        lazy = self._lazy
        if lazy is None:
            raise SpecError("the stack is closed")
        copy(
            lazy.view(),
            lambda box, pixels: put(box, as_pixels(pixels, dtype, cast)),
            tile,
            workers=workers,
            progress=progress,
        )

    def check_apart(self, *files: Path) -> None:
        """Raise SpecError where the pixels are read from files that will be replaced."""
        if self._lazy is None:
            return
        for source, new in product(self._lazy.reader.used_files, files):
            if isinstance(source, Path) and new.exists() and source.samefile(new):
                raise SpecError(
                    f"the stack is read from {str(new)!r}, which would be replaced: give the new "
                    "dataset another name"
                )

    def close(self) -> None:
        """Let go of what was opened here. Safe to call twice."""
        if self._owned and self._lazy is not None:
            self._lazy.close()
        self._lazy = None


def in_five(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return pixels (z, y, x) with the axes Y, X, Z, C, T."""
    return pixels.transpose(1, 2, 0)[..., None, None]


def checked_type(given: Any) -> np.dtype[Any]:
    """Return a pixel type that BigDataViewer reads, in native byte order.

    Raises
    ------
    PixelTypeError
        It reads no such pixels.
    """
    dtype = pixel_dtype(np.dtype(given)).newbyteorder("=")
    if dtype.name not in TYPES:
        raise PixelTypeError(
            f"BigDataViewer reads no {dtype.name} pixels: convert them to one of {', '.join(TYPES)}"
        )
    return dtype


def _array(given: Any) -> NDArray[Any]:
    try:
        return np.asarray(given)
    except ValueError as exc:
        raise SpecError(f"a stack is an array with the axes Z, Y, X, this is none: {exc}") from exc


def _volume(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise SpecError(
            f"a stack has the axes Z, Y, X (or Y, X for a single plane); this has {array.ndim} "
            f"axes: {array.shape}"
        )
    return array
