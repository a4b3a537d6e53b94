"""Lengths and times: any spelling of a unit to OME's own symbol, and from one unit to another."""

from __future__ import annotations

import unicodedata
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

# SI prefixes by symbol, with the name they have in a spelled-out unit.
_PREFIXES: tuple[tuple[str, str, int], ...] = (
    ("Y", "yotta", 24),
    ("Z", "zetta", 21),
    ("E", "exa", 18),
    ("P", "peta", 15),
    ("T", "tera", 12),
    ("G", "giga", 9),
    ("M", "mega", 6),
    ("k", "kilo", 3),
    ("h", "hecto", 2),
    ("da", "deca", 1),
    ("", "", 0),
    ("d", "deci", -1),
    ("c", "centi", -2),
    ("m", "milli", -3),
    ("µ", "micro", -6),
    ("n", "nano", -9),
    ("p", "pico", -12),
    ("f", "femto", -15),
    ("a", "atto", -18),
    ("z", "zepto", -21),
    ("y", "yocto", -24),
)

_INCH = Fraction("0.0254")

# Fractions, because 1 mm has to be exactly 1000 µm and 0.65 µm exactly 650 nm.
_METERS: dict[str, Fraction | None] = {
    **{f"{symbol}m": Fraction(10) ** power for symbol, _, power in _PREFIXES},
    "Å": Fraction(10) ** -10,
    "thou": _INCH / 1000,
    "li": _INCH / 12,
    "in": _INCH,
    "ft": _INCH * 12,
    "yd": _INCH * 36,
    "mi": _INCH * 63360,
    "ua": Fraction(149_597_870_700),
    "ly": Fraction(9_460_730_472_580_800),
    "pc": Fraction("3.0856775814913673e16"),
    "pt": _INCH / 72,
    # No length of their own: they depend on the image and on the stage.
    "pixel": None,
    "reference frame": None,
}

_SECONDS: dict[str, Fraction | None] = {
    **{f"{symbol}s": Fraction(10) ** power for symbol, _, power in _PREFIXES},
    "min": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}

LENGTH_UNITS: tuple[str, ...] = tuple(_METERS)
"""Every symbol of the OME 2016-06 enumeration ``UnitsLength``."""
TIME_UNITS: tuple[str, ...] = tuple(_SECONDS)
"""Every symbol of the OME 2016-06 enumeration ``UnitsTime``."""


def _names(symbols: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, str]:
    return {name: symbol for symbol, names in symbols for name in names}


_LENGTH_NAMES: dict[str, str] = {
    **{
        f"{prefix}{stem}": f"{symbol}m"
        for symbol, prefix, _ in _PREFIXES
        for stem in ("meter", "metre")
    },
    **_names(
        (
            ("dam", ("dekameter", "dekametre")),
            # Upper case is safe only where no other unit differs by case alone (mm and Mm).
            ("µm", ("um", "micron", "mu", "u")),
            ("nm", ("nm",)),
            ("cm", ("cm",)),
            ("km", ("km",)),
            ("Å", ("angstrom", "ångström", "ångstrom", "angström", "å", "a", "ang")),
            ("thou", ("thou", "mil", "thousandth")),
            ("li", ("line",)),
            ("in", ("in", "inch", "inches")),
            ("ft", ("ft", "foot", "feet")),
            ("yd", ("yd", "yard")),
            ("mi", ("mi", "mile")),
            ("ua", ("ua", "au", "astronomicalunit")),
            ("ly", ("ly", "lightyear")),
            ("pc", ("pc", "parsec")),
            ("pt", ("pt", "point")),
            ("pixel", ("pixel", "px", "pix")),
            ("reference frame", ("referenceframe",)),
        )
    ),
}

_TIME_NAMES: dict[str, str] = {
    **{f"{prefix}second": f"{symbol}s" for symbol, prefix, _ in _PREFIXES},
    **_names(
        (
            ("das", ("dekasecond",)),
            ("s", ("s", "sec")),
            ("ms", ("msec", "millisec")),
            ("µs", ("us", "usec", "microsec")),
            ("ns", ("ns", "nsec", "nanosec")),
            ("min", ("min", "minute")),
            ("h", ("h", "hr", "hour")),
            ("d", ("d", "day")),
        )
    ),
}


def length_unit(name: Any) -> str:
    """Return the symbol OME has for a unit of length.

    Parameters
    ----------
    name : str or enum member
        Any spelling: a symbol, a name in singular or plural and in any case, either micro sign;
        an enum member counts as its value.

    Raises
    ------
    SpecError
        No unit of length has that name.

    Examples
    --------
    >>> length_unit("um"), length_unit("Microns"), length_unit("NANOMETER")
    ('µm', 'µm', 'nm')
    """
    return _symbol(name, "length")


def time_unit(name: Any) -> str:
    """Return the symbol OME has for a unit of time; like `length_unit`.

    Examples
    --------
    >>> time_unit("seconds"), time_unit("msec"), time_unit("minute")
    ('s', 'ms', 'min')
    """
    return _symbol(name, "time")


def meters_per(unit: Any) -> float:
    """Return how many meters one `unit` is.

    Raises
    ------
    SpecError
        The unit is unknown, or is "pixel" or "reference frame", which have no fixed length.

    Examples
    --------
    >>> meters_per("mm"), meters_per("inch")
    (0.001, 0.0254)
    """
    return float(_factor(unit, "length"))


def seconds_per(unit: Any) -> float:
    """Return how many seconds one `unit` is.

    Examples
    --------
    >>> seconds_per("min")
    60.0
    """
    return float(_factor(unit, "time"))


def convert_length(value: float, unit: Any, to: Any) -> float:
    """Return a length given in `unit` in the unit `to`, rounded once.

    Raises
    ------
    SpecError
        One of the units is unknown, or they cannot be converted ("pixel", "reference frame").

    Examples
    --------
    >>> convert_length(0.65, "µm", "nm")
    650.0
    """
    return _convert(value, unit, to, "length")


def convert_time(value: float, unit: Any, to: Any) -> float:
    """Return a time given in `unit` in the unit `to`, rounded once.

    Examples
    --------
    >>> convert_time(1.5, "min", "s")
    90.0
    """
    return _convert(value, unit, to, "time")


_TABLES: Mapping[str, tuple[dict[str, Fraction | None], dict[str, str]]] = MappingProxyType(
    {"length": (_METERS, _LENGTH_NAMES), "time": (_SECONDS, _TIME_NAMES)}
)


def _symbol(name: Any, kind: str) -> str:
    text = getattr(name, "value", name)
    found = _lookup(text, kind) if isinstance(text, str) else None
    if found is None:
        fits = ", ".join(_TABLES[kind][0])
        raise SpecError(f"{name!r} is no unit of {kind}; give one of {fits}")
    return found


@lru_cache(maxsize=1024)
def _lookup(text: str, kind: str) -> str | None:
    factors, names = _TABLES[kind]
    # NFKC joins the spellings of one sign: the two micro signs, the Ångström sign, A + ring.
    plain = unicodedata.normalize("NFKC", text.replace("\\u00B5", "µ").replace("\\u00b5", "µ"))
    plain = plain.replace("μ", "µ").strip()
    if plain in factors:
        return plain
    # casefold() turns the micro sign into a Greek mu.
    spelled = plain.casefold().replace("μ", "u")
    spelled = "".join(spelled.split()).replace("_", "").replace("-", "").rstrip(".")
    for key in (spelled, spelled.removesuffix("s")):
        # A lone "s" stripped from a symbol must not turn "us" into "u" and so into a length.
        if key in names and (key == spelled or len(key) > 2):
            return names[key]
    return None


def _factor(unit: Any, kind: str) -> Fraction:
    symbol = _symbol(unit, kind)
    factor = _TABLES[kind][0][symbol]
    if factor is None:
        raise SpecError(
            f"{symbol!r} has no fixed {kind}: it depends on the image; "
            "give the value in a real unit such as 'µm'"
        )
    return factor


def _convert(value: float, unit: Any, to: Any, kind: str) -> float:
    source, target = _symbol(unit, kind), _symbol(to, kind)
    if source == target:
        return float(value)
    ratio = _factor(source, kind) / _factor(target, kind)
    number = float(value)
    if number - number != 0:  # infinite or not a number: nothing to compute exactly
        return number
    try:
        return float(Fraction(number) * ratio)
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")
