"""Windows of an image in a given order: what `BioReader.tiles` walks through."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.region import AXES, Shape5, Slices5
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tile:
    """One window of an image and its pixels.

    Attributes
    ----------
    slices : tuple of 5 slice
        Where the window lies, along Y, X, Z, C, T, without the overlap: ``bw[tile.slices] = …``.
    data : numpy.ndarray
        Its pixels, with the overlap on every side where the image goes on; trailing axes of
        length 1 dropped.
    inner : tuple of slice
        Where the window lies in `data`.
    """

    slices: Slices5
    data: NDArray[Any]
    inner: tuple[slice, ...]

    def crop(self, result: NDArray[Any]) -> NDArray[Any]:
        """Cut the overlap away from `result`, an array as large as `data` in Y and X."""
        return result[self.inner[: result.ndim]]


def check_size(size: Any) -> Shape5:
    """Return the window as YXZCT: an int is a square plane, a sequence the leading axes."""
    sizes = _counts(size, least=1)
    if not 1 <= len(sizes) <= 5:
        raise SpecError(
            f"tile size {size!r}: give a whole number of pixels, or one for each of Y, X, Z, C, T"
        )
    y, x, z, c, t = (*sizes, *([1] * 5))[:5]
    return (y, x, z, c, t)


def check_overlap(overlap: Any) -> tuple[int, int]:
    """Return the overlap along Y and X."""
    sizes = _counts(overlap, least=0)
    if len(sizes) != 2:
        raise SpecError(f"overlap {overlap!r}: give pixels, 0 or more, or a pair for Y and X")
    return (sizes[0], sizes[1])


def _counts(given: Any, least: int) -> tuple[int, ...]:
    """Return whole numbers of at least `least`, a single one twice; () for anything else."""
    try:
        many = (given, given) if np.ndim(given) == 0 else tuple(given)
        counts = tuple(-1 if isinstance(n, (bool, np.bool_)) else operator.index(n) for n in many)
    except (TypeError, ValueError):
        return ()
    return counts if all(n >= least for n in counts) else ()


def windows(shape: Shape5, size: Shape5, order: str) -> Iterator[Slices5]:
    """Yield the windows of an image, the last axis of `order` fastest."""
    if sorted(order) != sorted(AXES):
        raise SpecError(f"order {order!r} must name each of Y, X, Z, C, T once, e.g. 'TCZYX'")
    where = [AXES.index(axis) for axis in order]
    steps = [range(0, shape[axis], size[axis]) for axis in where]
    for starts in product(*steps):
        box: list[slice] = [slice(0, 1)] * 5
        for axis, start in zip(where, starts, strict=True):
            box[axis] = slice(start, min(start + size[axis], shape[axis]))
        yield (box[0], box[1], box[2], box[3], box[4])


def widen(box: Slices5, overlap: tuple[int, int], shape: Shape5) -> tuple[Slices5, Slices5]:
    """Return the window grown by `overlap` pixels in Y and X, and where the old one lies in it."""
    outer, inner = list(box), [slice(0, s.stop - s.start) for s in box]
    for axis, extra in enumerate(overlap):
        start = max(0, box[axis].start - extra)
        outer[axis] = slice(start, min(shape[axis], box[axis].stop + extra))
        inner[axis] = slice(box[axis].start - start, box[axis].stop - start)
    return tuple(outer), tuple(inner)  # type: ignore[return-value]
