"""Making a block of pixels smaller: one pixel out of every cell of neighbouring ones."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

Method: TypeAlias = "str | Callable[[NDArray[Any], tuple[int, int, int]], NDArray[Any]]"
"""One of METHODS, or a function that does what `shrink` does, of a block and a factor."""
METHODS: tuple[str, ...] = ("mean", "nearest", "mode", "median", "max")
"""The methods `shrink` knows."""

# Above this many pixels in a cell, 32-bit floats are summed in 64 bits.
_FEW = 8
# Bytes of pixels that are worth working on at a time: they stay in the cache.
_CACHED = 1 << 21
# Rows handled at a time by the fast mean: what it works on then stays in the cache.
_CACHED_ROWS = 128


def shrink(block: NDArray[Any], factor: tuple[int, int, int], method: str) -> NDArray[Any]:
    """Return a block with one pixel for every cell of ``factor`` pixels along Y, X, Z.

    Parameters
    ----------
    block : ndarray
        Pixels, shaped (y, x, z, c, t).
    factor : tuple of 3 int
        Size of a cell along Y, X, Z. Cells at the far border use the pixels that are there, so
        the result has ``ceil(n / f)`` pixels along an axis.
    method : {"mean", "nearest", "mode", "median", "max"}
        * ``"mean"``: integers are rounded half up, exactly; bool is the majority, ties True;
        * ``"nearest"``: the first pixel of the cell;
        * ``"mode"``: the most frequent value, the smallest one of several (for labels: no value
          is invented). NaN counts as one value, larger than all others;
        * ``"median"``: for an even number of pixels the mean of the middle two, integers
          rounded half up; NaN if there is one in the cell;
        * ``"max"``: the largest value; NaN if there is one in the cell.

        Mean and median of complex pixels are those of the real and of the imaginary parts.

    Returns
    -------
    ndarray
        New pixels of the same type in native byte order, shaped (y, x, z, c, t) over memory in
        the order T, C, Z, Y, X.

    Raises
    ------
    SpecError
        There is no such method, or a factor is not a positive integer.

    Examples
    --------
    >>> block = np.array([[1, 2], [3, 5]], "uint8").reshape(2, 2, 1, 1, 1)
    >>> shrink(block, (2, 2, 1), "mean").ravel()
    array([3], dtype=uint8)
    """
    if method not in METHODS:
        raise SpecError(f"method {method!r}: there is none; give one of {', '.join(METHODS)}")
    sizes: Sequence[int] = factor
    if len(sizes) != 3 or any(f < 1 for f in sizes):
        raise SpecError(f"factor {factor!r}: give three positive integers for Y, X and Z")
    fy, fx, fz = factor
    pixels = block.transpose(4, 3, 2, 0, 1)
    if not pixels.dtype.isnative:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    t, c, z, y, x = pixels.shape
    out = np.empty((t, c, -(-z // fz), -(-y // fy), -(-x // fx)), pixels.dtype)
    if method == "nearest":
        np.copyto(out, pixels[:, :, ::fz, ::fy, ::fx])
    else:
        shrinker = {"mean": _mean, "mode": _mode, "median": _median, "max": _max}[method]
        # Full cells and those cut off at the border have different numbers of pixels: each of
        # the up to 8 parts of the block consists of equal cells.
        for (sz, nz, oz), (sy, ny, oy), (sx, nx, ox) in product(
            _parts(z, fz), _parts(y, fy), _parts(x, fx)
        ):
            shrinker(pixels[:, :, sz, sy, sx], (nz, ny, nx), out[:, :, oz, oy, ox])
    return out.transpose(3, 4, 2, 1, 0)


def shrink_all(
    block: NDArray[Any], factors: Sequence[tuple[int, int, int]], method: Method
) -> list[NDArray[Any]]:
    """Return what `shrink` makes of a block, for several factors at once.

    Parameters
    ----------
    block : ndarray
        Pixels, shaped (y, x, z, c, t).
    factors : sequence of (int, int, int)
        Size of the cells along Y, X, Z.
    method : Method
        See `shrink`; or a function in its place.
    """
    if callable(method):
        return [method(block, factor) for factor in factors]
    pixels = block.transpose(4, 3, 2, 0, 1)
    whole = pixels.dtype.kind in "iu" and pixels.dtype.itemsize < 8 and pixels.dtype.isnative
    cells = [(fz, fy, fx) for fy, fx, fz in factors]
    if method != "mean" or not whole or len(cells) < 2 or not _nested(cells):
        return [shrink(block, factor, method) for factor in factors]
    means = _means(pixels, cells)
    return [mean.transpose(3, 4, 2, 1, 0) for mean in means]


def _nested(cells: Sequence[tuple[int, int, int]]) -> bool:
    """Return whether each cell is made of whole cells of the one before."""
    return all(a > 0 and b % a == 0 for pair in pairwise(cells) for a, b in zip(*pair, strict=True))


def _means(pixels: NDArray[Any], cells: Sequence[tuple[int, int, int]]) -> list[NDArray[Any]]:
    """Return the means of nested cells of integers: sums of cells are sums of smaller ones.

    Band by band, so that what is worked on stays in the cache.
    """
    t, c, z, y, x = pixels.shape
    largest = cells[-1]
    dtype = _accumulator(pixels.dtype, math.prod(largest))
    means = [
        np.empty((t, c, -(-z // fz), -(-y // fy), -(-x // fx)), pixels.dtype)
        for fz, fy, fx in cells
    ]
    deep, high = largest[:2]
    row = max(1, t * c * x * pixels.dtype.itemsize)
    high *= max(1, _CACHED // (deep * high * row))
    if high >= y:
        deep *= max(1, _CACHED // max(1, deep * y * row))
    for first, top in product(range(0, z, deep), range(0, y, high)):
        band = pixels[:, :, first : first + deep, top : top + high]
        outs = [
            mean[:, :, first // fz : -(-(first + deep) // fz), top // fy : -(-(top + high) // fy)]
            for mean, (fz, fy, _) in zip(means, cells, strict=True)
        ]
        _means_of_band(band, cells, dtype, outs)
    return means


def _means_of_band(
    pixels: NDArray[Any],
    cells: Sequence[tuple[int, int, int]],
    dtype: np.dtype[Any],
    outs: Sequence[NDArray[Any]],
) -> None:
    sizes = pixels.shape[2:]
    total, before = pixels, (1, 1, 1)
    for cell, out in zip(cells, outs, strict=True):
        step = tuple(a // b for a, b in zip(cell, before, strict=True))
        total, before = _sums(total, step, dtype), cell  # type: ignore[arg-type]
        along = [_parts(n, f) for n, f in zip(sizes, cell, strict=True)]
        for (_, nz, oz), (_, ny, oy), (_, nx, ox) in product(*along):
            _divide(total[:, :, oz, oy, ox].copy(), nz * ny * nx, out[:, :, oz, oy, ox])


def _sums(a: NDArray[Any], cell: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the sum of each cell, those cut off at the border too."""
    t, c, *sizes = a.shape
    parts = list(product(*(_parts(n, f) for n, f in zip(sizes, cell, strict=True))))
    if len(parts) == 1 and cell == tuple(n for _, n, _ in parts[0]):
        return _sum(a, cell, dtype).astype(dtype, copy=False)
    total = np.empty((t, c, *(-(-n // f) for n, f in zip(sizes, cell, strict=True))), dtype)
    for (sz, nz, oz), (sy, ny, oy), (sx, nx, ox) in parts:
        total[:, :, oz, oy, ox] = _sum(a[:, :, sz, sy, sx], (nz, ny, nx), dtype)
    return total


def _parts(size: int, factor: int) -> list[tuple[slice, int, slice]]:
    """Return the stretches of equal cells of an axis: where, cell size, where they go."""
    cells, rest = divmod(size, factor)
    parts = []
    if cells:
        parts.append((slice(0, cells * factor), factor, slice(0, cells)))
    if rest:
        parts.append((slice(cells * factor, size), rest, slice(cells, cells + 1)))
    return parts


def _members(a: NDArray[Any], cell: tuple[int, int, int]) -> list[NDArray[Any]]:
    """Return the first pixels of all cells, the second ones, and so on."""
    nz, ny, nx = cell
    return [a[:, :, k::nz, i::ny, j::nx] for k, i, j in product(range(nz), range(ny), range(nx))]


# -- mean -----------------------------------------------------------------------------------------


def _mean(a: NDArray[Any], cell: tuple[int, int, int], out: NDArray[Any]) -> None:
    kind, size = a.dtype.kind, a.dtype.itemsize
    n = cell[0] * cell[1] * cell[2]
    if n == 1:
        np.copyto(out, a)
    elif kind == "c":
        _mean(a.real, cell, out.real)
        _mean(a.imag, cell, out.imag)
    elif kind == "b":
        total = _sum(a, cell, np.dtype(np.uint64))
        np.greater_equal(total * np.uint64(2), n, out=out)
    elif kind == "f":
        _mean_float(a, cell, out)
    elif size == 8:
        _mean_64(a, cell, out)
    elif cell == (1, 2, 2) and size <= 2 and a.strides[-1] == size and a.shape[-2] >= _CACHED_ROWS:
        _mean_2x2(a, out)
    else:
        total = _sum(a, cell, _accumulator(a.dtype, n))
        _divide(total, n, out)


def _accumulator(dtype: np.dtype[Any], n: int) -> np.dtype[Any]:
    """Return the smallest integer type that holds the sum of n pixels and the rounding."""
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    for size in (2, 4, 8):
        wide = np.dtype(f"{dtype.kind}{size}")
        info = np.iinfo(wide)
        if info.min <= low * n and high * n + n // 2 <= info.max:
            return wide
    raise SpecError(f"a cell of {n} pixels is too large: shrink in steps of smaller factors")


def _sum(a: NDArray[Any], cell: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Sum of each cell: rows first, because whole rows add up fastest."""
    nz, ny, nx = cell
    parts = [a[:, :, k::nz, i::ny, :] for k, i in product(range(nz), range(ny))]
    rows: NDArray[Any] = parts[0]
    if len(parts) > 1:
        rows = np.add(parts[0], parts[1], dtype=dtype)
        for part in parts[2:]:
            np.add(rows, part, out=rows)
    if nx == 1:
        return rows
    total: NDArray[Any] = np.add(rows[..., 0::nx], rows[..., 1::nx], dtype=dtype)
    for j in range(2, nx):
        np.add(total, rows[..., j::nx], out=total)
    return total


def _divide(total: NDArray[Any], n: int, out: NDArray[Any]) -> None:
    """Divide integer sums by n, rounding half up."""
    np.add(total, total.dtype.type(n // 2), out=total)
    if n & (n - 1) == 0:
        np.right_shift(total, total.dtype.type(n.bit_length() - 1), out=total)
    else:
        np.floor_divide(total, total.dtype.type(n), out=total)
    np.copyto(out, total, casting="unsafe")


def _mean_2x2(a: NDArray[Any], out: NDArray[Any]) -> None:
    """Do the common case, 8 and 16 bit: two neighbours in X are read as one wider number."""
    size = a.dtype.itemsize
    bits = size * 8
    pair = np.dtype(f"u{size * 2}").type
    low = pair(2**bits - 1)
    # Signed numbers are moved up by half their range to become unsigned, and back at the end:
    # rounding half up does not mind.
    shift = 2 ** (bits - 1) if a.dtype.kind == "i" else 0
    both = pair(shift | shift << bits)
    rows = out.shape[-2]
    step = min(rows, _CACHED_ROWS)
    width = out.shape[-1]
    upper, total, work = (np.empty((step, width), pair) for _ in range(3))
    for plane, target in _planes(a, out):
        for start in range(0, rows, step):
            m = min(step, rows - start)
            u, s, w = upper[:m], total[:m], work[:m]
            first, second = (plane[2 * start + i : 2 * (start + m) : 2].view(pair) for i in (0, 1))
            if shift:
                np.bitwise_xor(first, both, out=u)
                first = u
            np.bitwise_and(first, low, out=s)
            np.right_shift(first, pair(bits), out=w)
            np.add(s, w, out=s)
            if shift:
                np.bitwise_xor(second, both, out=u)
                second = u
            np.bitwise_and(second, low, out=w)
            np.add(s, w, out=s)
            np.right_shift(second, pair(bits), out=w)
            np.add(s, w, out=s)
            np.add(s, pair(2), out=s)
            np.right_shift(s, pair(2), out=s)
            if shift:
                np.subtract(s, pair(shift), out=s)  # wraps round, as two's complement does
            np.copyto(target[start : start + m], s, casting="unsafe")


def _planes(a: NDArray[Any], out: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    return [(a[i], out[i]) for i in np.ndindex(*a.shape[:3])]


def _mean_64(a: NDArray[Any], cell: tuple[int, int, int], out: NDArray[Any]) -> None:
    """64-bit integers: the sum has more than 64 bits, so upper and lower halves are summed."""
    n = cell[0] * cell[1] * cell[2]
    if n >= 2**31:
        raise SpecError(f"a cell of {n} pixels is too large: shrink in steps of smaller factors")
    u64 = np.dtype(np.uint64)
    count, half = np.uint64(n), np.uint64(32)
    unsigned = a.astype(np.uint64)  # negative numbers wrap round
    sign = np.uint64(2**63 if a.dtype.kind == "i" else 0)
    unsigned ^= sign
    high = _sum(unsigned >> half, cell, u64)
    low = _sum(unsigned & np.uint64(2**32 - 1), cell, u64) + np.uint64(n // 2)
    quotient, rest = np.divmod(high, count)
    mean = (quotient << half) + ((rest << half) + low) // count
    np.copyto(out, (mean ^ sign).view(a.dtype))


def _mean_float(a: NDArray[Any], cell: tuple[int, int, int], out: NDArray[Any]) -> None:
    n = cell[0] * cell[1] * cell[2]
    wide = np.dtype(np.float64) if n > _FEW else np.promote_types(a.dtype, np.float32)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        mean = _sum(a, cell, wide)
        mean = np.multiply(mean, wide.type(1 / n)) if n & (n - 1) == 0 else mean / wide.type(n)
        if not np.isfinite(mean).all():
            # The sum was too large, or there is a NaN or an infinity: small parts tell.
            parts = a / wide.type(n)
            mean = np.where(np.isfinite(mean), mean, _sum(parts, cell, wide))
        np.copyto(out, mean, casting="unsafe")


# -- order: max, median, mode ---------------------------------------------------------------------


def _max(a: NDArray[Any], cell: tuple[int, int, int], out: NDArray[Any]) -> None:
    members = _members(a, cell)
    if len(members) == 1:
        np.copyto(out, members[0])
        return
    np.maximum(members[0], members[1], out=out)
    for member in members[2:]:
        np.maximum(out, member, out=out)


def _median(a: NDArray[Any], cell: tuple[int, int, int], out: NDArray[Any]) -> None:
    if a.dtype.kind == "c":
        _median(a.real, cell, out.real)
        _median(a.imag, cell, out.imag)
        return
    members = _members(a, cell)
    n = len(members)
    if n == 1:
        np.copyto(out, members[0])
        return
    if n == 2:
        below, above = np.minimum(*members), np.maximum(*members)
    elif n == 4:
        p, q, r, s = members
        # Without the smallest and the largest one, two are left, in either order.
        first = np.maximum(np.minimum(p, q), np.minimum(r, s))
        second = np.minimum(np.maximum(p, q), np.maximum(r, s))
        below, above = np.minimum(first, second), np.maximum(first, second)
    else:
        ranked = _ranked(members)
        below, above = ranked[..., (n - 1) // 2], ranked[..., n // 2]
        if a.dtype.kind == "f":  # sorted to the end
            above = np.where(np.isnan(ranked[..., -1]), ranked[..., -1], above)
            below = np.where(np.isnan(above), above, below)
    np.copyto(out, _middle(below, above), casting="unsafe")


def _middle(below: NDArray[Any], above: NDArray[Any]) -> NDArray[Any]:
    """Mean of two numbers, the larger one second; integers rounded half up, never overflowing."""
    kind, size = below.dtype.kind, below.dtype.itemsize
    if kind == "b":
        return above
    if kind == "f":
        wide = np.promote_types(below.dtype, np.float32)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            mean: NDArray[Any] = (below.astype(wide) + above) / wide.type(2)
            halves = below / wide.type(2) + above / wide.type(2)
            return np.where(np.isfinite(mean), mean, halves)
    unsigned = np.dtype(f"u{size}")
    low = below.astype(unsigned)
    gap = above.astype(unsigned) - low
    one = unsigned.type(1)
    middle: NDArray[Any] = low + (gap >> one) + (gap & one)
    return middle.astype(below.dtype)


def _mode(a: NDArray[Any], cell: tuple[int, int, int], out: NDArray[Any]) -> None:
    members = _members(a, cell)
    n = len(members)
    if n == 1:
        np.copyto(out, members[0])
    elif a.dtype.kind in "fc":  # minimum() and maximum() would spread a NaN over its cell
        np.copyto(out, _most_frequent(_ranked(members)))
    elif n == 2:
        np.minimum(members[0], members[1], out=out)
    elif n == 4:
        _mode_of_4(members, out)
    else:
        np.copyto(out, _most_frequent(_ranked(members)))


def _mode_of_4(members: list[NDArray[Any]], out: NDArray[Any]) -> None:
    """Sort the four pixels of every cell with five comparisons, then look for neighbours."""
    p, q, r, s = members
    p, q = np.minimum(p, q), np.maximum(p, q)
    r, s = np.minimum(r, s), np.maximum(r, s)
    p, r = np.minimum(p, r), np.maximum(p, r)
    q, s = np.minimum(q, s), np.maximum(q, s)
    q, r = np.minimum(q, r), np.maximum(q, r)
    # A pair of the smallest wins against any other pair; without a pair the smallest wins too.
    later = p != q
    middle = later & (q == r)
    last = later & (q != r) & (r == s)
    np.copyto(out, p)
    np.copyto(out, q, where=middle)
    np.copyto(out, r, where=last)


def _ranked(members: list[NDArray[Any]]) -> NDArray[Any]:
    """Return the pixels of every cell in ascending order along a new last axis, NaN last."""
    ranked = np.stack(members, axis=-1)
    ranked.sort(axis=-1)
    return ranked


def _most_frequent(ranked: NDArray[Any]) -> NDArray[Any]:
    best = ranked[..., 0].copy()
    best_run = np.ones(best.shape, np.uint32)
    run = best_run.copy()
    floating = ranked.dtype.kind in "fc"
    for k in range(1, ranked.shape[-1]):
        value, before = ranked[..., k], ranked[..., k - 1]
        same = value == before
        if floating:
            same |= np.isnan(value) & np.isnan(before)
        run = np.where(same, run + np.uint32(1), np.uint32(1))
        # Strictly more, so the smaller value stays where two are equally frequent.
        better = run > best_run
        np.copyto(best, value, where=better)
        np.maximum(best_run, run, out=best_run)
    return best
