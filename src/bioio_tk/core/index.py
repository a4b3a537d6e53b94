"""From a numpy-style key to a Selection: which positions along each axis, in which order."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bioio_tk.core.region import AXES, Shape5
from bioio_tk.errors import RegionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.tiling import Span

Key: TypeAlias = Any
"""Anything numpy takes between brackets, per axis (outer): ints, slices, ``...``, lists, arrays."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a key asks for.

    Attributes
    ----------
    spans : tuple of 5 range or integer array
        Wanted positions along Y, X, Z, C, T; ranges always ascend.
    flips : tuple of int
        Axes whose slice had a negative step: to be reversed after reading `spans`.
    ints : tuple of int
        Axes that were given as an int; they keep length 1.
    """

    spans: tuple[Span, Span, Span, Span, Span]
    flips: tuple[int, ...]
    ints: tuple[int, ...]

    @property
    def shape(self) -> Shape5:
        """Size of the result along Y, X, Z, C, T."""
        y, x, z, c, t = self.spans
        return (len(y), len(x), len(z), len(c), len(t))

    @property
    def size(self) -> int:
        """Number of pixels of the result."""
        y, x, z, c, t = self.shape
        return y * x * z * c * t

    def flip(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return `array` with the axes in `flips` reversed (a view)."""
        if not self.flips:
            return array
        turned: NDArray[Any] = array[
            tuple(slice(None, None, -1 if a in self.flips else 1) for a in range(5))
        ]
        return turned


def select(key: Key, shape: Shape5) -> Selection:
    """Translate `key` into a Selection.

    Per axis: an int (negative counts from the end), a slice with any step, a list, tuple, range
    or array of ints, a boolean mask as long as the axis; one ``...`` anywhere; missing axes are
    taken whole. Lists on several axes select their outer product.

    Raises
    ------
    RegionError
        Where an index does not fit; the text names the axis, the request and the size.

    Examples
    --------
    >>> select((0, slice(None, None, 2)), (4, 6, 1, 1, 1)).shape
    (1, 3, 1, 1, 1)
    >>> select((..., [0, 2], 0), (4, 6, 1, 3, 1)).shape
    (4, 6, 1, 2, 1)
    """
    spans: list[Span] = []
    flips: list[int] = []
    ints: list[int] = []
    for number, (axis, item, size) in enumerate(zip(AXES, _expand(key), shape, strict=True)):
        if isinstance(item, slice):
            span = _slice(axis, item, size)
            if span.step < 0:
                flips.append(number)
                span = span[::-1]
            spans.append(span)
        elif is_list(item):
            spans.append(_positions(axis, item, size))
        else:
            index = _int(axis, item, size)
            ints.append(number)
            spans.append(range(index, index + 1))
    return Selection(tuple(spans), tuple(flips), tuple(ints))  # type: ignore[arg-type]


def trim(shape: Sequence[int]) -> tuple[int, ...]:
    """Return `shape` without its trailing axes of length 1, but never below two axes.

    >>> trim((300, 400, 1, 1, 1)), trim((300, 1, 1, 2, 1)), trim((1, 1, 1, 1, 1))
    ((300, 400), (300, 1, 1, 2), (1, 1))
    """
    n = len(shape)
    while n > 2 and shape[n - 1] == 1:
        n -= 1
    return tuple(shape[:n])


def _expand(key: Key) -> tuple[Any, ...]:
    items = key if isinstance(key, tuple) else (key,)
    dots = sum(item is Ellipsis for item in items)
    if dots > 1:
        raise RegionError("an index can have only one ellipsis ('...')")
    if len(items) - dots > len(AXES):
        raise RegionError(
            f"too many indices: {len(items) - dots} given, an image has the 5 axes Y, X, Z, C, T"
        )
    fill = (slice(None),) * (len(AXES) - len(items) + dots)
    where = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    rest = tuple(i for i in items[where:] if not isinstance(i, EllipsisType))
    return (*items[:where], *fill, *rest)


def is_list(item: Any) -> bool:
    """Return True for an index that picks positions one by one: a list, an array, a mask."""
    if isinstance(item, np.ndarray):
        return item.ndim > 0
    return isinstance(item, (list, tuple, range)) or (
        hasattr(item, "__array__") and getattr(item, "ndim", 0) > 0
    )


def _refuse(axis: str, item: Any) -> RegionError:
    return RegionError(
        f"{axis} index {item!r:.60} is a {type(item).__name__}; an index along {axis} is an int, "
        "a slice, '...', a list or array of ints, or a boolean mask"
    )


def _int(axis: str, item: Any, size: int) -> int:
    if isinstance(item, (bool, np.bool_)) or item is None:
        raise _refuse(axis, item)
    try:
        index = operator.index(item)
    except TypeError:
        raise _refuse(axis, item) from None
    if not -size <= index < size:
        raise RegionError(
            f"{axis} index {index} is out of range: the image has {axis}={size} "
            f"(valid: {-size} to {size - 1})"
        )
    return index % size


def _slice(axis: str, item: slice, size: int) -> range:
    try:
        return range(*item.indices(size))
    except (TypeError, ValueError) as exc:
        raise RegionError(f"{axis} slice {item} cannot be used: {exc}") from None


def _positions(axis: str, item: Any, size: int) -> Span:
    try:
        array = np.asarray(item)
    except ValueError:  # a ragged list
        raise _refuse(axis, item) from None
    if array.size == 0 and array.dtype != bool:
        array = array.astype(np.intp)
    if array.ndim != 1:
        raise RegionError(f"{axis} index is an array with {array.ndim} axes; it must have one")
    if array.dtype == bool:
        if len(array) != size:
            raise RegionError(
                f"{axis} mask has {len(array)} entries, but the image has {axis}={size}"
            )
        array = np.flatnonzero(array)
    if array.dtype.kind not in "iu":
        raise _refuse(axis, item)
    wrong = (array < -size) | (array >= size)
    if wrong.any():
        raise RegionError(
            f"{axis} index {array[wrong][0]} is out of range: the image has {axis}={size} "
            f"(valid: {-size} to {size - 1})"
        )
    array = array.astype(np.intp)
    array = np.where(array < 0, array + size, array)
    if len(array) and (len(array) == 1 or (np.diff(array) == 1).all()):
        return range(int(array[0]), int(array[-1]) + 1)
    return array
