"""Pixel types: names, and conversions compared with Python's own exact numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bioio_tk.core.dtype import (
    CASTS,
    OME_TYPES,
    as_pixels,
    cast,
    check,
    from_ome_type,
    ome_type,
    pixel_dtype,
)
from bioio_tk.errors import PixelTypeError, SpecError

INTS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"]
FLOATS = ["f2", "f4", "f8"]
REALS = [*INTS, *FLOATS, "?"]
ALL = [*REALS, "c8", "c16"]


def arrays(dtypes: list[str]) -> st.SearchStrategy[np.ndarray]:
    return st.sampled_from(dtypes).flatmap(
        lambda d: hnp.arrays(
            np.dtype(d), hnp.array_shapes(max_dims=2, max_side=4), elements=_elements(d)
        )
    )


def _elements(d: str) -> st.SearchStrategy[Any]:
    usual = hnp.from_dtype(np.dtype(d))
    if d in INTS:
        info = np.iinfo(d)
        edges = [info.min, info.max, info.max // 2, info.max // 2 + 1, 0, 1]
        return usual | st.sampled_from([np.dtype(d).type(v) for v in edges])
    if d in FLOATS:
        edges = [0.0, 0.5, 1.0, 1.5, -0.5, 255.0, 255.5, 2047.5, math.nan, math.inf, -math.inf]
        return usual | st.sampled_from(edges).map(np.dtype(d).type)
    return usual


# -- names ----------------------------------------------------------------------------------------


def test_every_name_is_one_of_the_ome_model() -> None:
    from ome_types.model import PixelType

    assert set(OME_TYPES.values()) == {p.value for p in PixelType}
    for name, ome in OME_TYPES.items():
        assert ome_type(np.dtype(name)) == ome_type(np.dtype(name).newbyteorder()) == ome
        assert from_ome_type(ome) == from_ome_type(f" {ome.upper()}") == np.dtype(name)


def test_types_ome_does_not_know() -> None:
    for name in ("int64", "uint64", "float16"):
        assert ome_type(np.dtype(name)) is None
    assert from_ome_type("int64") is None


@pytest.mark.parametrize("given_", [*ALL, np.uint8, float, "uint16", ">u2", "<f8", np.dtype(">c8")])
def test_what_numpy_takes_is_taken_in_native_order(given_: Any) -> None:
    dtype = pixel_dtype(given_)
    assert dtype == np.dtype(given_).newbyteorder("=")
    assert dtype.isnative


@pytest.mark.parametrize(
    "wrong",
    [
        object,
        "O",
        str,
        "U4",
        "S3",
        "datetime64[s]",
        "m8[s]",
        [("a", "u1")],
        "(2,)u1",
        "V4",
        None,
        "nonsense",
        7,
        "u3",
        "u1,u1",
    ],
)
def test_what_cannot_be_a_pixel_is_refused(wrong: Any) -> None:
    with pytest.raises(PixelTypeError, match="pixel type"):
        pixel_dtype(wrong)


def test_check_ignores_byte_order_only() -> None:
    check(np.dtype(">u2"), np.dtype("<u2"))
    with pytest.raises(PixelTypeError) as caught:
        check(np.dtype("int64"), np.dtype("uint16"))
    assert str(caught.value) == (
        "pixels are int64, the image is uint16: convert them with array.astype('uint16') or pass "
        "cast='exact', 'clip', 'scale' or 'wrap'"
    )


# -- cast -----------------------------------------------------------------------------------------


def test_an_unknown_way_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match="exact, clip, scale, wrap"):
        cast(np.zeros(2, "u1"), np.dtype("u2"), "round")
    with pytest.raises(PixelTypeError):
        cast(np.array(["a"]), np.dtype("u2"), "wrap")


def _parts(value: Any) -> tuple[Any, Any]:
    """A pixel as two of Python's exact numbers; a float that is none of them stays a float."""
    item = value.item()
    pair = (item.real, item.imag)
    return tuple(Fraction(v) if v - v == 0 else v for v in pair)  # type: ignore[return-value]


def _equal(a: Any, b: Any) -> bool:
    return all(x == y or (x != x and y != y) for x, y in zip(_parts(a), _parts(b), strict=True))


def _representable(value: Any, dtype: np.dtype[Any]) -> bool:
    real, imag = _parts(value)
    if dtype.kind != "c" and imag != 0:
        return False
    if dtype.kind in "fc":
        part = np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype
        return all(_float_holds(v, part) for v in (real, imag))
    if not isinstance(real, Fraction) or real.denominator != 1:
        return False
    if dtype.kind == "b":
        return real in (0, 1)
    return bool(np.iinfo(dtype).min <= real <= np.iinfo(dtype).max)


def _float_holds(value: Any, dtype: np.dtype[Any]) -> bool:
    if not isinstance(value, Fraction) or value == 0:
        return True
    info = np.finfo(dtype)
    unit = max(math.floor(math.log2(abs(value))) - 1, int(info.minexp)) - int(info.nmant)
    steps = abs(value) / Fraction(2) ** unit
    return (
        steps.denominator == 1
        and _odd_part(steps.numerator) < 2 ** (int(info.nmant) + 1)
        and (abs(value) <= Fraction(float(info.max)))
    )


def _odd_part(n: int) -> int:
    return n // (n & -n)


@given(arrays(ALL), st.sampled_from(ALL))
def test_exact_keeps_every_value_or_says_which_it_cannot(array: np.ndarray, to: str) -> None:
    dtype = np.dtype(to)
    bad = [i for i in np.ndindex(*array.shape) if not _representable(array[i], dtype)]
    if bad:
        with pytest.raises(PixelTypeError) as caught:
            cast(array, dtype, "exact")
        assert f"{array[bad[0]].item()!r} at {bad[0]}" in str(caught.value)
    else:
        result = cast(array, dtype, "exact")
        assert result.dtype == dtype
        assert result.shape == array.shape
        assert all(_equal(a, b) for a, b in zip(array.flat, result.flat, strict=True))


@given(arrays(REALS), st.sampled_from([*INTS, "?"]))
def test_clip_rounds_half_to_even_and_stays_in_range(array: np.ndarray, to: str) -> None:
    dtype = np.dtype(to)
    low, high = (0, 1) if to == "?" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    result = cast(array, dtype, "clip")
    assert result.dtype == dtype
    for a, b in zip(array.flat, result.flat, strict=True):
        value = a.item()
        if value != value:
            expected = 0
        elif value - value != 0:
            expected = high if value > 0 else low
        else:
            expected = min(max(round(Fraction(value)), low), high)
        assert int(b) == expected


@given(arrays(REALS), st.sampled_from(FLOATS))
def test_clip_to_floats_ends_at_the_largest_one(array: np.ndarray, to: str) -> None:
    result = cast(array, np.dtype(to), "clip")
    limit = float(np.finfo(to).max)
    for a, b in zip(array.flat, result.flat, strict=True):
        with np.errstate(over="ignore"):
            expected = float(np.dtype(to).type(a))
        if math.isinf(expected) and not (a.dtype.kind == "f" and np.isinf(a)):
            expected = math.copysign(limit, expected)
        assert float(b) == expected or (math.isnan(expected) and np.isnan(b))


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    return (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


@given(arrays([*INTS, "?"]), st.sampled_from([*INTS, "?"]))
def test_scale_maps_the_whole_range_of_integers(array: np.ndarray, to: str) -> None:
    result = cast(array, np.dtype(to), "scale")
    (low, high), (low_t, high_t) = _range(array.dtype), _range(np.dtype(to))
    for a, b in zip(array.flat, result.flat, strict=True):
        share = Fraction(int(a) - low, high - low)
        assert int(b) == round(share * (high_t - low_t)) + low_t
    assert result.dtype == np.dtype(to)


@given(arrays(FLOATS), st.sampled_from([*INTS, "?"]))
def test_scale_maps_0_to_1_onto_the_whole_range(array: np.ndarray, to: str) -> None:
    dtype = np.dtype(to)
    result = cast(array, dtype, "scale")
    low, high = _range(dtype)
    for a, b in zip(array.flat, result.flat, strict=True):
        if np.isnan(a):
            assert int(b) == 0
        else:
            share = Fraction(min(max(float(a), 0.0), 1.0))
            # The product is rounded to 53 bits before it is rounded to an integer.
            assert abs(int(b) - low - share * (high - low)) <= Fraction(1, 2) + (high - low) / 2**53
            assert (share not in (0, 1)) or int(b) == low + share * (high - low)


@given(arrays([*INTS, "?"]), st.sampled_from(FLOATS))
def test_scale_of_integers_gives_0_to_1(array: np.ndarray, to: str) -> None:
    result = cast(array, np.dtype(to), "scale")
    low, high = _range(array.dtype)
    for a, b in zip(array.flat, result.flat, strict=True):
        expected = (int(a) - low) / (high - low)
        assert float(b) == pytest.approx(expected, rel=2e-3 if to == "f2" else 1e-6, abs=1e-4)
        assert 0 <= b <= 1


def test_scale_leaves_floats_as_they_are() -> None:
    array = np.array([0.25, 7.0, math.nan])
    np.testing.assert_array_equal(cast(array, np.dtype("f4"), "scale"), array.astype("f4"))


@given(arrays(ALL), st.sampled_from(ALL))
def test_wrap_is_numpys_unsafe_cast(array: np.ndarray, to: str) -> None:
    source = array.real if array.dtype.kind == "c" and to not in ("c8", "c16", "?") else array
    with np.errstate(all="ignore"):
        expected = source.astype(to, casting="unsafe")
    np.testing.assert_array_equal(cast(array, np.dtype(to), "wrap"), expected)


@pytest.mark.parametrize("how", ["clip", "scale"])
def test_complex_pixels_do_not_lose_a_part_silently(how: str) -> None:
    with pytest.raises(PixelTypeError, match=r"array\.real"):
        cast(np.zeros(2, "c8"), np.dtype("f4"), how)
    wide = cast(np.array([1e300 + 2j]), np.dtype("c8"), "clip")
    assert wide[0] == np.complex64(complex(np.finfo("f4").max, 2))


@pytest.mark.parametrize("how", CASTS)
def test_the_same_type_is_no_work_and_byte_order_is_none_either(how: str) -> None:
    array = np.arange(4, dtype=np.dtype("u2"))
    assert cast(array, np.dtype("u2"), how) is array
    swapped = cast(array.astype(">u2"), np.dtype("<u2"), how)
    np.testing.assert_array_equal(swapped, array)
    assert swapped.dtype.isnative


# -- as_pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (3, "u1", 3),
        (True, "u1", 1),
        (3.0, "u1", 3),
        (-0.0, "u1", 0),
        (1, "?", True),
        (2**64 - 1, "u8", 2**64 - 1),
        (-(2**63), "i8", -(2**63)),
        (0.1, "f4", np.float32(0.1)),
        (math.inf, "f2", math.inf),
        (2**53, "f8", 2.0**53),
        (1 + 2j, "c8", 1 + 2j),
        (2 + 0j, "u1", 2),
        (7, "c16", 7),
        ([1, 2.0, True], "i2", [1, 2, 1]),
        ([[1, 2], [3, 4]], "u2", [[1, 2], [3, 4]]),
        ((2**64 - 1, 0), "u8", [2**64 - 1, 0]),
        (range(3), "f4", [0, 1, 2]),
    ],
)
def test_pythons_numbers_are_taken_where_they_fit(value: Any, dtype: str, expected: Any) -> None:
    result = as_pixels(value, np.dtype(dtype))
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(result, np.array(expected, dtype))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (256, "u1"),
        (-1, "u2"),
        (0.5, "u1"),
        (math.nan, "i4"),
        (math.inf, "u8"),
        (2, "?"),
        (2**64, "u8"),
        (10**400, "f8"),
        (2**24 + 1, "f4"),
        (70000.0, "f2"),
        (1e39, "f4"),
        (1j, "f8"),
        ([1, 2, 300], "u1"),
    ],
)
def test_numbers_that_do_not_fit_are_named(value: Any, dtype: str) -> None:
    with pytest.raises(PixelTypeError, match=r"does not fit.*cast='clip'"):
        as_pixels(value, np.dtype(dtype))


@pytest.mark.parametrize(
    "value", [np.zeros(2), np.float64(1), np.int64(3), [np.int64(1)], [np.zeros(2), np.zeros(2)]]
)
def test_numpys_pixels_must_have_the_type(value: Any) -> None:
    with pytest.raises(PixelTypeError, match="the image is uint8"):
        as_pixels(value, np.dtype("u1"))
    np.testing.assert_array_equal(
        as_pixels(value, np.dtype("u1"), cast="exact"), np.asarray(value).astype("u1")
    )


def test_arrays_of_the_right_type_are_not_copied() -> None:
    array = np.arange(3, dtype=np.dtype("u2"))
    assert as_pixels(array, array.dtype) is array
    swapped = as_pixels(array.astype(">u2"), np.dtype("<u2"))
    assert swapped.dtype.isnative
    np.testing.assert_array_equal(swapped, array)


def test_anything_with_an_array_inside_counts_as_an_array() -> None:
    class Boxed:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.array([1, 2], "u2")

    np.testing.assert_array_equal(as_pixels(Boxed(), np.dtype("u2")), [1, 2])
    with pytest.raises(PixelTypeError):
        as_pixels(Boxed(), np.dtype("u1"))


def test_other_things_are_no_pixels() -> None:
    with pytest.raises(SpecError, match="ragged"):
        as_pixels([[1, 2], [3]], np.dtype("u1"))
    for wrong in ("12", None, object(), ["a"], [None]):
        with pytest.raises(PixelTypeError):
            as_pixels(wrong, np.dtype("u1"))


def test_pythons_numbers_can_be_cast_too() -> None:
    np.testing.assert_array_equal(as_pixels([-5, 300], np.dtype("u1"), cast="clip"), [0, 255])
    assert as_pixels(300, np.dtype("u1"), cast="wrap") == 300 - 256
