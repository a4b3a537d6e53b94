"""Sum, mean, spread and extremes of an image, window by window: memory stays flat."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.engine.copy import copy

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.engine.copy import View


def reduce_view(view: View, how: str, axes: tuple[int, ...], *, workers: int) -> NDArray[Any]:
    """Return a view with some of its axes reduced to one number.

    Parameters
    ----------
    view : View
        What to reduce.
    how : {"sum", "mean", "std", "min", "max"}
        In what way; NaN counts, as in NumPy.
    axes : tuple of int
        Along which of Y, X, Z, C, T (0 to 4).
    workers : int
        Threads that read.

    Returns
    -------
    numpy.ndarray
        Axes Y, X, Z, C, T, of length 1 where they were reduced; the type is that of NumPy's
        result. Floats are added up in float64.
    """
    shape: Shape5 = tuple(  # type: ignore[assignment]
        1 if axis in axes else n for axis, n in enumerate(view.shape)
    )
    dtype = view.source.images[view.image].dtype
    tally = _KINDS[how](shape, dtype)
    lock = threading.Lock()

    def put(box: Slices5, pixels: NDArray[Any]) -> None:
        where = tuple(slice(0, 1) if axis in axes else s for axis, s in enumerate(box))
        part = tally.part(pixels, axes)
        with lock:
            tally.add(where, part)

    copy(view, put, view.stored(), workers=workers)
    result: NDArray[Any] = tally.result()
    return result


class _Sum:
    def __init__(self, shape: Shape5, dtype: np.dtype[Any]) -> None:
        self.dtype = np.zeros(1, dtype).sum().dtype
        self._type = np.result_type(dtype, "f8") if dtype.kind in "fc" else self.dtype
        self._sum = np.zeros(shape, self._type)

    def part(self, pixels: NDArray[Any], axes: tuple[int, ...]) -> Any:
        return pixels.sum(axis=axes, keepdims=True, dtype=self._type)

    def add(self, where: tuple[slice, ...], part: Any) -> None:
        self._sum[where] += part

    def result(self) -> NDArray[Any]:
        return self._sum.astype(self.dtype, copy=False)


class _Extreme:
    def __init__(
        self, shape: Shape5, dtype: np.dtype[Any], larger: Callable[..., NDArray[Any]]
    ) -> None:
        self._best = np.zeros(shape, dtype)
        self._none = np.ones(shape, bool)
        self._larger: Any = larger

    def part(self, pixels: NDArray[Any], axes: tuple[int, ...]) -> Any:
        return self._larger.reduce(pixels, axis=axes, keepdims=True)

    def add(self, where: tuple[slice, ...], part: Any) -> None:
        best = self._larger(self._best[where], part)
        self._best[where] = np.where(self._none[where], part, best)
        self._none[where] = False

    def result(self) -> NDArray[Any]:
        return self._best


class _Mean:
    def __init__(self, shape: Shape5, dtype: np.dtype[Any]) -> None:
        self.dtype = np.zeros(1, dtype).mean().dtype
        self._sum = np.zeros(shape, np.result_type(self.dtype, "f8"))
        self._count = np.zeros(shape, "i8")

    def part(self, pixels: NDArray[Any], axes: tuple[int, ...]) -> Any:
        return _size(pixels, axes), pixels.sum(axis=axes, keepdims=True, dtype=self._sum.dtype)

    def add(self, where: tuple[slice, ...], part: Any) -> None:
        count, total = part
        self._count[where] += count
        self._sum[where] += total

    def result(self) -> NDArray[Any]:
        return (self._sum / self._count).astype(self.dtype, copy=False)


class _Spread:
    """Counts, means and squared distances of parts, joined as Chan, Golub and LeVeque do.

    See "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """

    def __init__(self, shape: Shape5, dtype: np.dtype[Any]) -> None:
        self.dtype = np.zeros(1, dtype).std().dtype
        mean = np.zeros(1, dtype).mean().dtype
        self._mean = np.zeros(shape, np.result_type(mean, "f8"))
        self._squares = np.zeros(shape, "f8")
        self._count = np.zeros(shape, "i8")

    def part(self, pixels: NDArray[Any], axes: tuple[int, ...]) -> Any:
        mean = pixels.mean(axis=axes, keepdims=True, dtype=self._mean.dtype)
        squares = (np.abs(pixels - mean) ** 2).sum(axis=axes, keepdims=True)
        return _size(pixels, axes), mean, squares

    def add(self, where: tuple[slice, ...], part: Any) -> None:
        count, mean, squares = part
        before = self._count[where]
        share = count / (before + count)
        apart = mean - self._mean[where]
        self._squares[where] += squares + np.abs(apart) ** 2 * before * share
        self._mean[where] += apart * share
        self._count[where] += count

    def result(self) -> NDArray[Any]:
        return np.sqrt(self._squares / self._count).astype(self.dtype, copy=False)


def _size(pixels: NDArray[Any], axes: tuple[int, ...]) -> int:
    return math.prod(pixels.shape[axis] for axis in axes)


_KINDS: dict[str, Callable[[Shape5, np.dtype[Any]], Any]] = {
    "sum": _Sum,
    "mean": _Mean,
    "std": _Spread,
    "min": lambda shape, dtype: _Extreme(shape, dtype, np.minimum),
    "max": lambda shape, dtype: _Extreme(shape, dtype, np.maximum),
}
