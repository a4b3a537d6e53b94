"""ReducedSource: an image with axes joined to one position: a projection, a mean, a sum."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bioio_tk.core.dtype import as_pixels, pixel_dtype
from bioio_tk.core.region import AXES
from bioio_tk.core.spec import Channel
from bioio_tk.errors import BioIOError, SpecError
from bioio_tk.inputs.derived import Derived, described, stored_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import DTypeLike, NDArray

    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.core.spec import Address
    from bioio_tk.core.tiling import Span
    from bioio_tk.lazy import LazyArray

HOW = ("max", "min", "mean", "sum", "std", "median")
"""Ways to join pixels."""

_BLOCK = 16 << 20
"""Bytes read at a time for a tile, more only where one tile of the file is larger."""
_WHOLE = 64 << 20
"""The same where all pixels to join are needed at once."""


class _Joined(Protocol):
    """Joins blocks that come one after the other."""

    def add(self, block: NDArray[Any], axes: tuple[int, ...]) -> None: ...

    def result(self) -> NDArray[Any]: ...


class ReducedSource(Derived):
    """An image in which some axes have become one position long.

    Parameters
    ----------
    origin : LazyArray
        The pixels to join.
    how : str or callable
        One of `HOW`, or a function called as ``how(pixels, axis=axes)`` as those of NumPy are.
    axes : str
        Letters of the axes to join.
    dtype : numpy.dtype, optional
        Pixel type of the result, see `result_dtype`.
    cast : str, optional
        How to convert where that does not hold all values, see `core.dtype.cast`.
    workers : int
        Threads to read with, where there are fewer tiles than threads.
    """

    def __init__(
        self,
        origin: LazyArray,
        how: Any,
        axes: str,
        dtype: Any = None,
        cast: str | None = None,
        workers: int = 1,
    ) -> None:
        self._how = how
        self._joined = tuple(AXES.index(axis) for axis in axes)
        self._cast = cast or "exact"
        self._wanted = None if dtype is None else pixel_dtype(dtype)
        whole = origin.spec.shape
        shape: Any = tuple(1 if n in self._joined else size for n, size in enumerate(whole))
        self._whole = whole
        self._step = self._steps(origin)
        tile: Any = tuple(min(n, m) for n, m in zip(self._step, shape, strict=True))
        channels = _one_channel(origin.spec.channels) if "C" in axes else None
        super().__init__(origin, described(origin, shape, tile, channels=channels))
        tiles = math.prod(self.images[0].levels[0].grid.counts)
        self._workers = max(1, -(-workers // tiles))
        kind, given = self._kind(origin.spec.dtype)
        self.images = (described(origin, shape, tile, dtype=kind, channels=channels),)
        self._ready = given

    def _kind(self, dtype: np.dtype[Any]) -> tuple[np.dtype[Any], dict[Any, NDArray[Any]]]:
        """Return the pixel type of the result, and what had to be computed to know it."""
        if not callable(self._how):
            count = math.prod(self._whole[n] for n in self._joined)
            wanted = result_dtype(self._how, dtype, count)
            return self._wanted or wanted, {}
        first = (0, 0, 0, 0, 0)
        result = self._read(first)
        kind = pixel_dtype(result.dtype)
        return self._wanted or kind, {first: self._typed(result, self._wanted or kind)}

    def _steps(self, origin: LazyArray) -> Shape5:
        """Return the size of the blocks that are read: whole tiles of the file, where that fits."""
        stored, whole, item = stored_tile(origin), self._whole, origin.dtype.itemsize
        step = [
            min(n, -(-m // s) * s)
            for n, m, s in zip(whole, (1024, 1024, 1, 1, 1), stored, strict=True)
        ]
        at_once = callable(self._how) or self._how == "median"
        # deviations are kept as float64, three times over
        budget = _WHOLE if at_once else _BLOCK // 4 if self._how == "std" else _BLOCK
        if at_once:
            for n in self._joined:
                step[n] = whole[n]
            for n in (2, 3, 4, 0, 1):
                while n not in self._joined and step[n] > 1 and math.prod(step) * item > budget:
                    step[n] = -(-step[n] // 2)
        for n in self._joined:
            while step[n] < whole[n] and 2 * math.prod(step) * item <= budget:
                step[n] = min(whole[n], 2 * step[n])
        return tuple(step)  # type: ignore[return-value]

    def picks(self) -> tuple[Span, Span, Span, Span, Span]:
        """Return the first position of what is joined: the one that stays."""
        return tuple(  # type: ignore[return-value]
            p[:1] if n in self._joined and n > 1 else p for n, p in enumerate(self.origin.picks)
        )

    def read_tile(self, at: Address) -> NDArray[Any]:
        """Return all that lies behind a tile, joined."""
        ready = self._ready.pop(at.key, None)
        if ready is not None:
            return ready
        return self._typed(self._read(at.key), self.images[0].dtype)

    def _read(self, key: Any) -> NDArray[Any]:
        region = self.images[0].levels[0].grid.region(key)
        if callable(self._how):
            box = [slice(0, n) for n in self._whole]
            for n in set(range(5)) - set(self._joined):
                box[n] = region.slices()[n]
            pixels = self.read(tuple(box), self._workers)  # type: ignore[arg-type]
            return self._called(self._how, pixels, region.shape)
        joined = _joined(self._how, self.origin.spec.dtype)
        for box5 in self._boxes(region.slices()):
            joined.add(self.read(box5, self._workers), self._joined)
        return joined.result()

    def _boxes(self, kept: Slices5) -> Iterator[Slices5]:
        """Yield the blocks that become one tile."""
        spans = [
            [slice(a, min(a + step, n)) for a in range(0, n, step)] if axis in self._joined else [s]
            for axis, (s, n, step) in enumerate(zip(kept, self._whole, self._step, strict=True))
        ]
        for t, c, z, y, x in product(*(spans[n] for n in (4, 3, 2, 0, 1))):
            yield (y, x, z, c, t)

    def _called(self, f: Callable[..., Any], pixels: NDArray[Any], shape: Shape5) -> NDArray[Any]:
        axis = self._joined if len(self._joined) > 1 else self._joined[0]
        try:
            result = np.asarray(f(pixels, axis=axis))
        except Exception as exc:
            raise BioIOError(
                f"the function failed on an array of {pixels.shape} pixels (Y, X, Z, C, T), with "
                f"axis={axis}: {type(exc).__name__}: {exc}"
            ) from exc
        kept = tuple(n for axis, n in enumerate(shape) if axis not in self._joined)
        if result.shape not in (kept, shape):
            raise SpecError(
                f"the function made {result.shape} of {pixels.shape} pixels with axis={axis}: it "
                f"must return {kept}, as numpy.max(pixels, axis={axis}) does"
            )
        return result.reshape(shape)

    def _typed(self, result: NDArray[Any], wanted: np.dtype[Any]) -> NDArray[Any]:
        if result.dtype == wanted:
            return result
        if wanted.kind in "fc":
            return result.astype(wanted)
        if result.dtype.kind == "f" and wanted.kind in "iu":
            result = np.rint(result)
        return as_pixels(result, wanted, self._cast)


def _one_channel(channels: tuple[Channel, ...]) -> tuple[Channel, ...]:
    """Return the channel that several become: all their names, in white."""
    if len(channels) < 2 or None in (names := [channel.name for channel in channels]):
        return channels[:1]
    return (Channel(" + ".join(map(str, names)), (255, 255, 255, 255)),)


def result_dtype(how: str, dtype: DTypeLike, count: int) -> np.dtype[Any]:
    """Return the pixel type that joining `count` pixels gives.

    The largest, smallest, mean and middle of whole numbers are of their own type, the mean and
    the middle rounded (half to even). A sum has 32 bits where those hold any sum, else 64, and is
    a float where none is sure to hold it. A standard deviation is a float.

    >>> result_dtype("mean", "uint8", 9), result_dtype("sum", "uint8", 9)
    (dtype('uint8'), dtype('uint32'))
    """
    kind = np.dtype(dtype)
    if how == "std":
        narrow = kind.itemsize <= 2 or kind == np.float32
        return np.dtype(np.float32 if narrow else np.float64)
    if how == "sum":
        return _sum_dtype(kind, count)
    if kind.kind == "b" and how in ("mean", "median"):
        return np.dtype(np.float32)
    return kind


def _sum_dtype(kind: np.dtype[Any], count: int) -> np.dtype[Any]:
    if kind.kind == "c":
        return np.dtype(np.complex128)
    if kind.kind == "f" or kind.itemsize == 8:
        return np.dtype(np.float64)
    if kind.kind in "bu":
        most = count if kind.kind == "b" else count * int(np.iinfo(kind).max)
        return np.dtype(np.uint32 if most < 2**32 else np.uint64)
    return np.dtype(np.int32 if count * -int(np.iinfo(kind).min) < 2**31 else np.int64)


def _joined(how: str, dtype: np.dtype[Any]) -> _Joined:
    if how in ("max", "min"):
        return _Extreme(np.maximum if how == "max" else np.minimum)
    if how == "std":
        return _Spread()
    if how == "median":
        return _Middle()
    return _Total(dtype, mean=how == "mean")


class _Extreme:
    def __init__(self, choose: np.ufunc) -> None:
        self._choose = choose
        self._found: NDArray[Any] | None = None

    def add(self, block: NDArray[Any], axes: tuple[int, ...]) -> None:
        best = self._choose.reduce(block, axis=axes, keepdims=True)
        self._found = best if self._found is None else self._choose(self._found, best)

    def result(self) -> NDArray[Any]:
        return np.asarray(self._found)


class _Total:
    """Whole numbers of up to 32 bits are summed exactly."""

    def __init__(self, dtype: np.dtype[Any], *, mean: bool) -> None:
        wide = {"b": np.uint64, "u": np.uint64, "i": np.int64, "f": np.float64, "c": np.complex128}
        exact = dtype.kind not in "iu" or dtype.itemsize < 8
        self._wide = wide[dtype.kind] if exact else np.float64
        self._mean = mean
        self._count = 0
        self._sum: Any = 0

    def add(self, block: NDArray[Any], axes: tuple[int, ...]) -> None:
        self._count += math.prod(block.shape[n] for n in axes)
        self._sum = np.add.reduce(block, axis=axes, dtype=self._wide, keepdims=True) + self._sum

    def result(self) -> NDArray[Any]:
        return np.asarray(self._sum / self._count if self._mean else self._sum)


class _Spread:
    """Standard deviation of all pixels (ddof=0): means and squares of parts, joined as they come.

    After Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", Stanford STAN-CS-79-773 (1979): no large numbers are subtracted from each other.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, block: NDArray[Any], axes: tuple[int, ...]) -> None:
        count = math.prod(block.shape[n] for n in axes)
        mean = block.mean(axis=axes, dtype=np.float64, keepdims=True)
        off = block - mean
        squares = np.add.reduce(off * off, axis=axes, keepdims=True)
        both = self._count + count
        apart = mean - self._mean
        self._squares = self._squares + squares + apart * apart * (self._count * count / both)
        self._mean = self._mean + apart * (count / both)
        self._count = both

    def result(self) -> NDArray[Any]:
        return np.asarray(np.sqrt(self._squares / self._count))


class _Middle:
    """Needs all pixels in one block."""

    def add(self, block: NDArray[Any], axes: tuple[int, ...]) -> None:
        if block.dtype.kind == "b":
            block = block.astype(np.uint8)
        self._found = np.median(block, axis=axes, keepdims=True)

    def result(self) -> NDArray[Any]:
        return np.asarray(self._found)
