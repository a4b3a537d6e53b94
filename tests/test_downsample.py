"""Shrinking: every method against a plain loop over the cells with Python's exact numbers."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bioio_tk.core.downsample import METHODS, shrink
from bioio_tk.errors import SpecError

INTS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"]
DTYPES = [*INTS, "f2", "f4", "f8", "?", "c8"]


def cells(block: np.ndarray, factor: tuple[int, int, int]) -> dict[tuple[int, ...], list[Any]]:
    """The pixels of each cell, one by one."""
    found: dict[tuple[int, ...], list[Any]] = {}
    fy, fx, fz = factor
    ny, nx, nz, nc, nt = block.shape
    for t in range(nt):
        for c in range(nc):
            for z in range(nz):
                for y in range(ny):
                    for x in range(nx):
                        where = (y // fy, x // fx, z // fz, c, t)
                        found.setdefault(where, []).append(block[y, x, z, c, t])
    return found


def is_nan(v: Any) -> bool:
    return bool(v != v)


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def float_mean(pixels: list[Any]) -> float:
    if all(math.isfinite(p) for p in pixels):
        return float(sum(Fraction(float(p)) for p in pixels) / len(pixels))
    with np.errstate(all="ignore"):
        return float(sum(np.float64(p) for p in pixels if not math.isfinite(p)))


def expect_mean(pixels: list[Any], dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "b":
        return 2 * sum(bool(p) for p in pixels) >= len(pixels)
    if dtype.kind in "ui":
        return half_up(Fraction(sum(int(p) for p in pixels), len(pixels)))
    if dtype.kind == "c":
        return complex(float_mean([p.real for p in pixels]), float_mean([p.imag for p in pixels]))
    return float_mean(pixels)


def float_median(pixels: list[Any]) -> float:
    if any(is_nan(p) for p in pixels):
        return math.nan
    ranked = sorted(float(p) for p in pixels)
    return float_mean([ranked[(len(ranked) - 1) // 2], ranked[len(ranked) // 2]])


def expect_median(pixels: list[Any], dtype: np.dtype[Any]) -> Any:
    if dtype.kind in "uib":
        ranked = sorted(int(p) for p in pixels)
        n = len(ranked)
        return half_up(Fraction(ranked[(n - 1) // 2] + ranked[n // 2], 2))
    if dtype.kind == "c":
        return complex(
            float_median([p.real for p in pixels]), float_median([p.imag for p in pixels])
        )
    return float_median(pixels)


def key(p: Any) -> Any:
    """A sort key: NaN after everything, complex numbers by real part, then imaginary part."""
    v = p.item()
    if is_nan(v):
        return (True, 0.0, 0.0)
    return (False, v.real, v.imag) if isinstance(v, complex) else (False, v, 0.0)


def expect_mode(pixels: list[Any], dtype: np.dtype[Any]) -> Any:
    counts = Counter(key(p) for p in pixels)
    best = min(counts, key=lambda k: (-counts[k], k))
    return next(p for p in pixels if key(p) == best)


def expect_max(pixels: list[Any], dtype: np.dtype[Any]) -> Any:
    for p in pixels:
        if is_nan(p):
            return p
    return max(pixels, key=key)


def expect_nearest(pixels: list[Any], dtype: np.dtype[Any]) -> Any:
    return pixels[0]


EXPECT = {
    "mean": expect_mean,
    "median": expect_median,
    "mode": expect_mode,
    "max": expect_max,
    "nearest": expect_nearest,
}


def same(got: Any, wanted: Any, dtype: np.dtype[Any], method: str) -> bool:
    if dtype.kind == "c" and method in ("mean", "median"):
        part = np.dtype("f4")
        return same(got.real, wanted.real, part, method) and same(
            got.imag, wanted.imag, part, method
        )
    if dtype.kind == "c" and is_nan(got) and is_nan(wanted):
        return True
    if dtype.kind == "f" and method in ("mean", "median") and not is_nan(wanted):
        if not math.isfinite(wanted):
            return bool(got == wanted)
        # Rounding of the sum is relative to its largest term, not to what is left of it.
        return abs(float(got) - wanted) <= TOLERANCE[dtype.itemsize] * max(
            1.0, abs(wanted), SCALE.get("largest", 0.0)
        )
    return bool(got == wanted) or (is_nan(got) and is_nan(wanted))


TOLERANCE = {2: 2e-3, 4: 1e-6, 8: 1e-14}
SCALE: dict[str, float] = {}


def compare(block: np.ndarray, factor: tuple[int, int, int], method: str) -> None:
    result = shrink(block, factor, method)
    ny, nx, nz, nc, nt = block.shape
    fy, fx, fz = factor
    assert result.shape == (-(-ny // fy), -(-nx // fx), -(-nz // fz), nc, nt)
    assert result.dtype == block.dtype.newbyteorder("=")
    assert result.transpose(4, 3, 2, 0, 1).flags.c_contiguous
    for where, pixels in cells(block, factor).items():
        wanted = EXPECT[method](pixels, block.dtype)
        if block.dtype.kind in "fc":
            SCALE["largest"] = max(
                (abs(float(v)) for p in pixels for v in (p.real, p.imag) if math.isfinite(v)),
                default=0.0,
            )
        assert same(result[where], wanted, block.dtype, method), (where, pixels, wanted)


def values(d: str) -> st.SearchStrategy[Any]:
    """Few different values, so that ties happen, and all the extremes."""
    dtype = np.dtype(d)
    few = st.sampled_from([dtype.type(v) for v in (0, 1, 2, 3)])
    if dtype.kind in "ui":
        info = np.iinfo(dtype)
        edges = st.sampled_from([dtype.type(v) for v in (info.min, info.max, info.max - 1)])
        return few | edges | hnp.from_dtype(dtype)
    return few | hnp.from_dtype(dtype)


@st.composite
def blocks(draw: st.DrawFn, max_side: int = 7) -> np.ndarray:
    d = draw(st.sampled_from(DTYPES))
    side = st.integers(1, max_side)
    t, c, z, y, x = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(side),
        draw(side),
    )
    order = draw(st.sampled_from(["planes", "yxzct", "swapped", "cut", "reversed"]))
    if order == "yxzct":
        return draw(hnp.arrays(np.dtype(d), (y, x, z, c, t), elements=values(d)))
    pixels = draw(hnp.arrays(np.dtype(d), (t, c, z, y, x), elements=values(d)))
    if order == "swapped":
        pixels = pixels.astype(pixels.dtype.newbyteorder())
    elif order == "cut":
        wide = np.zeros((t, c, z, y, x + 3), d)
        wide[..., 1 : x + 1] = pixels
        pixels = wide[..., 1 : x + 1]
    elif order == "reversed":
        pixels = pixels[..., ::-1, ::-1]
    return pixels.transpose(3, 4, 2, 1, 0)


FACTORS = st.sampled_from(
    [
        (2, 2, 1),
        (2, 2, 2),
        (1, 1, 1),
        (3, 3, 1),
        (1, 2, 1),
        (2, 1, 1),
        (1, 1, 2),
        (4, 3, 2),
        (5, 9, 1),
    ]
)


@settings(max_examples=400, deadline=None)
@given(blocks(), FACTORS, st.sampled_from(METHODS))
def test_every_method_equals_the_plain_loop(
    block: np.ndarray, factor: tuple[int, int, int], method: str
) -> None:
    compare(block, factor, method)


@pytest.mark.parametrize("d", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_2x2_case_of_every_type_equals_the_plain_loop(
    d: str, method: str, data: st.DataObject
) -> None:
    y, x = data.draw(st.integers(2, 9)), data.draw(st.integers(2, 9))
    pixels = data.draw(hnp.arrays(np.dtype(d), (1, 1, 1, y, x), elements=values(d)))
    compare(pixels.transpose(3, 4, 2, 1, 0), (2, 2, 1), method)


@pytest.mark.parametrize("d", INTS)
def test_planes_taller_than_the_cached_strip(d: str) -> None:
    info = np.iinfo(d)
    rng = np.random.default_rng(1)
    pixels = rng.integers(info.min, info.max, (1, 2, 1, 601, 7), d, endpoint=True)
    whole = [[[int(v) for v in row] for row in plane] for plane in pixels[0, :, 0]]
    got = shrink(pixels.transpose(3, 4, 2, 1, 0), (2, 2, 1), "mean")
    for c, plane in enumerate(whole):
        for y in range(301):
            rows = plane[2 * y : 2 * y + 2]
            for x in range(4):
                cell = [v for row in rows for v in row[2 * x : 2 * x + 2]]
                assert got[y, x, 0, c, 0] == half_up(Fraction(sum(cell), len(cell)))


@pytest.mark.parametrize("d", INTS)
def test_extremes_do_not_overflow(d: str) -> None:
    info = np.iinfo(d)
    for v in (info.min, info.max):
        block = np.full((6, 6, 4, 1, 1), v, d)
        for method in METHODS:
            for factor in ((2, 2, 1), (3, 3, 1), (2, 2, 2), (6, 6, 4)):
                assert (shrink(block, factor, method) == v).all()


@pytest.mark.parametrize("d", ["f2", "f4", "f8"])
def test_the_largest_floats_do_not_overflow(d: str) -> None:
    top = np.finfo(d).max
    for factor in ((2, 2, 1), (4, 4, 1)):
        for method in ("mean", "median"):
            assert shrink(np.full((4, 4, 1, 1, 1), top, d), factor, method)[0, 0, 0, 0, 0] == top


def test_the_block_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    for d in ("u1", "u2", "f4", "u8"):
        block = rng.integers(0, 99, (9, 9, 1, 1, 1)).astype(d)
        before = block.copy()
        for method in METHODS:
            result = shrink(block, (1, 1, 1), method)
            assert not np.shares_memory(result, block)
            shrink(block, (2, 2, 1), method)
        np.testing.assert_array_equal(block, before)


def test_what_makes_no_sense_is_refused() -> None:
    block = np.zeros((2, 2, 1, 1, 1), "u1")
    with pytest.raises(SpecError, match="mean, nearest, mode, median, max"):
        shrink(block, (2, 2, 1), "average")
    for factor in ((0, 1, 1), (2, -1, 1), (2, 2)):
        with pytest.raises(SpecError, match="three positive integers"):
            shrink(block, factor, "mean")  # type: ignore[arg-type]
