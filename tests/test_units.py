"""Units: every spelling leads to OME's symbol, and the numbers are those of the definitions."""

from __future__ import annotations

import contextlib
import enum
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bioio_tk.core.units import (
    LENGTH_UNITS,
    TIME_UNITS,
    convert_length,
    convert_time,
    length_unit,
    meters_per,
    seconds_per,
    time_unit,
)
from bioio_tk.errors import SpecError


@pytest.mark.parametrize(
    ("given_", "symbol"),
    [
        ("um", "\u00b5m"),
        ("UM", "\u00b5m"),
        ("\u00b5m", "\u00b5m"),
        ("\u03bcm", "\u00b5m"),
        (" \u03bcm ", "\u00b5m"),
        ("\\u00B5m", "\u00b5m"),
        ("micron", "\u00b5m"),
        ("Microns", "\u00b5m"),
        ("micrometer", "\u00b5m"),
        ("micrometres", "\u00b5m"),
        ("MICROMETER", "\u00b5m"),
        ("nm", "nm"),
        ("Nanometers", "nm"),
        ("mm", "mm"),
        ("Mm", "Mm"),
        ("pm", "pm"),
        ("Pm", "Pm"),
        ("m", "m"),
        ("metre", "m"),
        ("\u00c5", "\u00c5"),
        ("\u212b", "\u00c5"),
        ("A\u030a", "\u00c5"),
        ("angstrom", "\u00c5"),
        ("ANGSTROM", "\u00c5"),
        ("in", "in"),
        ("Inch", "in"),
        ("inches", "in"),
        ("pixel", "pixel"),
        ("PIXELS", "pixel"),
        ("reference frame", "reference frame"),
        ("REFERENCEFRAME", "reference frame"),
        ("reference_frame", "reference frame"),
        ("astronomical unit", "ua"),
        ("light year", "ly"),
    ],
)
def test_a_length_is_known_in_any_spelling(given_: str, symbol: str) -> None:
    assert length_unit(given_) == symbol


@pytest.mark.parametrize(
    ("given_", "symbol"),
    [
        ("s", "s"),
        ("sec", "s"),
        ("Seconds", "s"),
        ("ms", "ms"),
        ("Ms", "Ms"),
        ("msec", "ms"),
        ("milliseconds", "ms"),
        ("us", "\u00b5s"),
        ("\u03bcs", "\u00b5s"),
        ("min", "min"),
        ("Minutes", "min"),
        ("h", "h"),
        ("hours", "h"),
        ("days", "d"),
        ("as", "as"),
        ("das", "das"),
    ],
)
def test_a_time_is_known_in_any_spelling(given_: str, symbol: str) -> None:
    assert time_unit(given_) == symbol


def test_the_symbols_are_those_of_the_ome_model() -> None:
    from ome_types.model import UnitsLength, UnitsTime

    assert set(LENGTH_UNITS) == {u.value for u in UnitsLength}
    assert set(TIME_UNITS) == {u.value for u in UnitsTime}
    for length in UnitsLength:
        assert length_unit(length) == length_unit(length.name) == length.value
    for time in UnitsTime:
        assert time_unit(time) == time_unit(time.name) == time.value


def test_an_enum_member_counts_as_its_value() -> None:
    class Mine(enum.Enum):
        SMALL = "nanometer"

    assert length_unit(Mine.SMALL) == "nm"


@pytest.mark.parametrize("wrong", ["", "MM", "furlong", "us", "s", 3, None, "mum "[:-1] + "x"])
def test_what_is_no_length_is_refused_with_what_fits(wrong: object) -> None:
    with pytest.raises(SpecError, match=r"no unit of length.*mm.*reference frame"):
        length_unit(wrong)


@pytest.mark.parametrize("wrong", ["", "m", "um", "fortnight", None])
def test_what_is_no_time_is_refused(wrong: object) -> None:
    with pytest.raises(SpecError, match="no unit of time"):
        time_unit(wrong)


@pytest.mark.parametrize(
    ("unit", "meters"),
    [
        ("m", 1.0),
        ("km", 1e3),
        ("\u00b5m", 1e-6),
        ("ym", 1e-24),
        ("Ym", 1e24),
        ("\u00c5", 1e-10),
        ("in", 0.0254),
        ("thou", 2.54e-5),
        ("li", 0.0254 / 12),
        ("ft", 0.3048),
        ("yd", 0.9144),
        ("mi", 1609.344),
        ("ua", 149597870700.0),
        ("ly", 9460730472580800.0),
        ("pc", 3.0856775814913673e16),
        ("pt", 0.0254 / 72),
    ],
)
def test_lengths_in_meters(unit: str, meters: float) -> None:
    assert meters_per(unit) == pytest.approx(meters, rel=1e-15)


def test_conversions_are_rounded_once() -> None:
    assert convert_length(1, "mm", "um") == 1000.0
    assert convert_length(0.65, "um", "nm") == 650.0
    assert convert_length(325, "nm", "um") == 0.325
    assert convert_length(1, "in", "um") == 25400.0
    assert convert_time(1, "h", "s") == 3600.0
    assert seconds_per("d") == 86400.0


def test_pixels_and_the_reference_frame_have_no_length() -> None:
    assert convert_length(3, "pixel", "pixels") == 3.0
    assert convert_length(3, "reference frame", "REFERENCEFRAME") == 3.0
    for unit in ("pixel", "reference frame"):
        for a, b in ((unit, "um"), ("um", unit)):
            with pytest.raises(SpecError, match="no fixed length"):
                convert_length(1, a, b)
        with pytest.raises(SpecError, match="no fixed length"):
            meters_per(unit)


def test_infinite_and_missing_values_stay_what_they_are() -> None:
    assert convert_length(math.inf, "mm", "nm") == math.inf
    assert math.isnan(convert_length(math.nan, "mm", "nm"))
    assert convert_length(1e300, "Ym", "ym") == math.inf
    assert convert_length(-1e300, "Ym", "ym") == -math.inf


REAL = [u for u in LENGTH_UNITS if u not in ("pixel", "reference frame")]


@given(st.floats(1e-30, 1e30), st.sampled_from(REAL), st.sampled_from(REAL))
def test_there_and_back_is_the_same_length(value: float, a: str, b: str) -> None:
    assert convert_length(convert_length(value, a, b), b, a) == pytest.approx(value, rel=1e-15)


@given(st.text(max_size=12))
def test_no_text_at_all_ends_in_another_error(text: str) -> None:
    for parse, units in ((length_unit, LENGTH_UNITS), (time_unit, TIME_UNITS)):
        with contextlib.suppress(SpecError):
            assert parse(text) in units
