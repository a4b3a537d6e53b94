"""Axes of NGFF: which array axis is our Y, X, Z, C or T, and the words NGFF has for units."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from bioio_tk.core.spec import PhysicalSize, Quantity
from bioio_tk.core.units import LENGTH_UNITS, TIME_UNITS, convert_length, convert_time
from bioio_tk.errors import FormatError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LETTERS = "yxzct"
"""Our axes, in our order."""

AxisOrder: TypeAlias = tuple[int | None, int | None, int | None, int | None, int | None]
"""For each of Y, X, Z, C, T the axis of the array, None for one it does not have."""

AXIS_KINDS: Mapping[str, str] = MappingProxyType(
    {"y": "space", "x": "space", "z": "space", "c": "channel", "t": "time"}
)
"""The NGFF type of each axis."""

NAMES: Mapping[str, str] = MappingProxyType(
    {
        **{letter: letter for letter in LETTERS},
        **dict.fromkeys(("ch", "chan", "channel", "channels", "wavelength", "band"), "c"),
        **dict.fromkeys(("time", "times", "timepoint", "timepoints", "frame", "frames"), "t"),
        **dict.fromkeys(("depth", "plane", "planes", "slice", "slices"), "z"),
        **dict.fromkeys(("height", "row", "rows"), "y"),
        **dict.fromkeys(("width", "column", "columns", "col", "cols"), "x"),
    }
)
"""What axes are called, in small letters, to the letter they are."""

# The units NGFF lists, https://ngff.openmicroscopy.org/0.5/#axes-md; not all of OME's are there.
_SI = (
    ("Y", "yotta"),
    ("Z", "zetta"),
    ("E", "exa"),
    ("P", "peta"),
    ("T", "tera"),
    ("G", "giga"),
    ("M", "mega"),
    ("k", "kilo"),
    ("h", "hecto"),
    ("", ""),
    ("d", "deci"),
    ("c", "centi"),
    ("m", "milli"),
    ("µ", "micro"),
    ("n", "nano"),
    ("p", "pico"),
    ("f", "femto"),
    ("a", "atto"),
    ("z", "zepto"),
    ("y", "yocto"),
)
LENGTH_WORDS: Mapping[str, str] = MappingProxyType(
    {
        **{f"{symbol}m": f"{prefix}meter" for symbol, prefix in _SI},
        "Å": "angstrom",
        "in": "inch",
        "ft": "foot",
        "yd": "yard",
        "mi": "mile",
        "pc": "parsec",
    }
)
"""OME symbol of a unit of length to the word NGFF has for it."""
TIME_WORDS: Mapping[str, str] = MappingProxyType(
    {
        **{f"{symbol}s": f"{prefix}second" for symbol, prefix in _SI},
        "min": "minute",
        "h": "hour",
        "d": "day",
    }
)
"""OME symbol of a unit of time to the word NGFF has for it."""

UNITLESS = "reference frame"
"""OME's unit for a length in a unit nobody has named."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an image.

    Attributes
    ----------
    name : str
        As the file has it.
    type : str or None
        "space", "time", "channel" or a word of somebody's own.
    unit : str or None
        OME's symbol ("µm", "s") where the unit is known, else what the file says.
    """

    name: str
    type: str | None = None
    unit: str | None = None


class Sizes(NamedTuple):
    """Size of a pixel, time between two time points, and where the first pixel's centre lies."""

    physical_size: PhysicalSize
    time_increment: Quantity | None
    position: PhysicalSize


def unit_symbol(word: str, kind: str | None) -> str | None:
    """Return OME's symbol of a unit in any spelling; None where there is none.

    Parameters
    ----------
    word : str
        ``"micrometer"``.
    kind : str or None
        Type of the axis; only "space" and "time" have units of ours.

    Examples
    --------
    >>> unit_symbol("micrometer", "space"), unit_symbol("minute", "time")
    ('µm', 'min')
    """
    from bioio_tk.core.units import length_unit, time_unit

    find = {"space": length_unit, "time": time_unit}.get(kind or "")
    try:
        return find(word) if find else None
    except SpecError:
        return None


def ome_unit(axis: Axis) -> str | None:
    """Return the unit of an axis as OME writes it, None where it has none that OME knows."""
    kind = axis.type or AXIS_KINDS.get(NAMES.get(axis.name.lower(), ""))
    known = {"space": LENGTH_UNITS, "time": TIME_UNITS}.get(kind or "", ())
    return axis.unit if axis.unit in known else None


def unit_word(value: float, unit: str, kind: str) -> tuple[float, str | None]:
    """Return a length or a time with a unit that NGFF lists, None for one without.

    >>> unit_word(0.5, "µm", "space"), unit_word(1.0, "pixel", "space")
    ((0.5, 'micrometer'), (1.0, None))
    """
    words = LENGTH_WORDS if kind == "space" else TIME_WORDS
    if unit in words:
        return value, words[unit]
    if kind == "space" and unit in LENGTH_UNITS and unit not in ("pixel", UNITLESS):
        return convert_length(value, unit, "µm"), words["µm"]
    if kind == "time" and unit in TIME_UNITS:
        return convert_time(value, unit, "s"), words["s"]
    return value, None


def yxzct(
    axes: Sequence[Axis] | None,
    ndim: int,
    *,
    dims: str | None = None,
    dimension_names: Sequence[str | None] | None = None,
    shape: Sequence[int] | None = None,
    notes: list[str] | None = None,
) -> AxisOrder:
    """Return which axis of an array is Y, X, Z, C and T; None for one that it does not have.

    What is told first counts: `dims`, then `axes`, then `dimension_names`, then the usual order
    of so many axes (YX, ZYX, CZYX, TCZYX).

    Parameters
    ----------
    axes : sequence of Axis or None
        The axes NGFF gives, by name first, then by type: space axes are Z, Y, X, in this order.
        One of a type of its own (cameras, angles) is C where there are no channels.
    ndim : int
        Axes of the array.
    dims : str or None
        The user's word: one letter of YXZCT for each axis, slowest first.
    dimension_names : sequence of (str or None) or None
        Names in the array's own metadata (Zarr v3).
    shape : sequence of int or None
        Size of the array: an unknown axis of length 1 is left out.
    notes : list of str or None
        Where to say what had to be guessed.

    Raises
    ------
    SpecError
        `dims` does not fit the array.
    FormatError
        `axes` do not fit the array.
    UnsupportedError
        An axis is none of Y, X, Z, C, T; or it is not known which is which.

    Examples
    --------
    >>> yxzct([Axis("c", "channel"), Axis("y", "space"), Axis("x", "space")], 3)
    (1, 2, None, 0, None)
    >>> yxzct(None, 4, dims="TZYX")
    (2, 3, 1, None, 0)
    """
    said = notes if notes is not None else []
    if dims is not None:
        return _order(_given(dims, ndim))
    if axes is not None:
        if len(axes) != ndim:
            names = ", ".join(axis.name for axis in axes)
            raise FormatError(
                f"the metadata names {len(axes)} axes ({names}), the array has {ndim}; "
                "dims= can tell what they are"
            )
        return _by_name(axes, shape, said, ngff=True)
    known = [NAMES.get(name.lower()) if name else None for name in dimension_names or ()]
    if dimension_names and len(known) == ndim and any(known):
        return _by_name([Axis(name or "") for name in dimension_names], shape, said)
    return _order(_usual(ndim, said))


def pixel_sizes(
    axes: Sequence[Axis] | None,
    order: AxisOrder,
    scale: Sequence[float] | None,
    translation: Sequence[float] | None,
    notes: list[str] | None = None,
) -> Sizes:
    """Return what the scale and the translation of a level say about its pixels.

    A scale of 1 without a unit is what a file has that knows nothing: it counts as unknown.

    Parameters
    ----------
    axes : sequence of Axis or None
        Their units.
    order : AxisOrder
        From `yxzct`.
    scale, translation : sequence of float or None
        One for each axis of the array.
    notes : list of str or None
        Where to say what had to be guessed.
    """
    said = notes if notes is not None else []
    units = [ome_unit(axis) for axis in axes] if axes is not None else None

    def length(at: int | None, values: Sequence[float] | None, unknown: float) -> Quantity | None:
        if at is None or values is None or at >= len(values):
            return None
        unit = units[at] if units is not None and at < len(units) else None
        return None if unit is None and values[at] == unknown else (values[at], unit or UNITLESS)

    y, x, z, _, t = order
    size = PhysicalSize(*(length(at, scale, 1.0) for at in (x, y, z)))
    moved = translation if translation is not None and any(translation) else None
    position = PhysicalSize(*(length(at, moved, 0.0) for at in (x, y, z)))
    if any(q is not None and q[1] == UNITLESS for q in (*size, *position)):
        said.append("sizes have no known unit of length: they are in an arbitrary one")
    step = length(t, scale, 1.0)
    if step is not None and step[1] not in TIME_UNITS:
        said.append(f"a time step of {step[0]:g} has no known unit of time and was left out")
        step = None
    return Sizes(size, step, position)


def _given(dims: str, ndim: int) -> Sequence[str | None]:
    letters = dims.lower()
    if set(letters) - set(LETTERS) or len(set(letters)) != len(letters):
        raise SpecError(
            f"dims={dims!r}: give each axis one of the letters Y, X, Z, C, T, each at most once"
        )
    if len(letters) != ndim:
        raise SpecError(f"dims={dims!r} names {len(letters)} axes, the array has {ndim}")
    if not {"y", "x"} <= set(letters):
        raise SpecError(f"dims={dims!r}: an image has a Y and an X")
    return letters


def _usual(ndim: int, said: list[str]) -> Sequence[str | None]:
    if not 2 <= ndim <= 5:
        raise UnsupportedError(
            f"an array with {ndim} axes whose names are not known; "
            "an image has 2 to 5, and dims= can name them, as in dims='TZYX'"
        )
    usual = "tczyx"[-ndim:]
    if ndim > 2:
        said.append(
            f"nothing names the {ndim} axes: taken as {usual.upper()}; dims= tells otherwise"
        )
    return usual


def _by_name(
    axes: Sequence[Axis], shape: Sequence[int] | None, said: list[str], *, ngff: bool = False
) -> AxisOrder:
    found: list[str | None] = [None] * len(axes)
    _fill(found, [axis.name.lower() if axis.name.lower() in LETTERS else "" for axis in axes])
    _fill(found, [NAMES.get(axis.name.lower(), "") for axis in axes])
    for kind, letters in (("space", "xyz"), ("channel", "c"), ("time", "t")):
        free = [letter for letter in letters if letter not in found]
        for i in reversed(range(len(axes))):
            if free and found[i] is None and axes[i].type == kind:
                found[i] = free.pop(0)
                said.append(f"axis {axes[i].name!r} ({kind}) is taken as {found[i]}".rstrip())
    unknown = [i for i, letter in enumerate(found) if letter is None]
    long = [i for i in unknown if shape is None or shape[i] != 1]
    for i in unknown:
        if ngff and long == [i] and _stands_for_channels(axes[i], found):
            found[i] = "c"
            said.append(f"axis {axes[i].name!r} (type {axes[i].type}) is taken as C")
        else:
            _leave_out(axes[i], shape[i] if shape is not None else None, said)
    return _order(found)


def _stands_for_channels(axis: Axis, found: Sequence[str | None]) -> bool:
    """Return whether an axis of a kind of its own is where NGFF would have the channels.

    Of 2 to 5 axes, 2 or 3 are of space, one may be of time, and one more "channel" or a custom or
    null type: cameras, angles. It is never one of space, so never a Z.
    """
    return axis.type not in AXIS_KINDS.values() and "c" not in found and {"y", "x"} <= {*found}


def _fill(found: list[str | None], letters: Sequence[str]) -> None:
    for i, letter in enumerate(letters):
        if letter and found[i] is None and letter not in found:
            found[i] = letter


def _leave_out(axis: Axis, size: int | None, said: list[str]) -> None:
    if size != 1:
        long = "" if size is None else f", {size} long,"
        raise UnsupportedError(
            f"axis {axis.name!r} (type {axis.type}){long} is none of Y, X, Z, C, T; "
            "say what the axes are with dims=, as in dims='TZYX'"
        )
    said.append(f"axis {axis.name!r} of length 1 is left out")


def _order(letters: Sequence[str | None]) -> AxisOrder:
    y, x, z, c, t = (letters.index(k) if k in letters else None for k in LETTERS)
    return y, x, z, c, t
