"""From what people write of a selection to an index for each axis: 0-based or 1-based."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bioio_tk.errors import RegionError, SpecError

AXES_TCZYX = "TCZYX"
_PART = re.compile(r"([a-zA-Z]+)\s*=\s*(\S+)")


def parse(select: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is selected of each axis.

    Parameters
    ----------
    select : str or mapping
        ``"c=0,2 z=10:20 t=::2 y=0:512"``: 0-based and half open as in Python, several positions
        or ranges of an axis separated by commas. Or a mapping from the letters of axes to ints,
        slices, lists or such text.

    Returns
    -------
    dict
        From T, C, Z, Y, X to a slice, or a list of ints and slices in the order given.

    Raises
    ------
    SpecError
        An axis is unknown or given twice, or the text cannot be understood.

    Examples
    --------
    >>> parse("c=0,2 z=10:20 t=::2")
    {'C': [0, 2], 'Z': slice(10, 20, None), 'T': slice(None, None, 2)}
    """
    if select is None:
        return {}
    if not isinstance(select, (str, Mapping)):
        raise SpecError(
            f"select={select!r:.60}: give text such as 'c=0,2 z=10:20', or a dict such as "
            "{'z': slice(10, 20)}"
        )
    pairs = list(select.items()) if isinstance(select, Mapping) else _words(select)
    chosen: dict[str, Any] = {}
    for name, value in pairs:
        axis = str(name).upper()
        if axis not in AXES_TCZYX or len(axis) != 1:
            raise SpecError(f"select: {name!r} is no axis; the axes are t, c, z, y, x")
        if axis in chosen:
            raise SpecError(f"select: {name} is given twice: give its positions with commas")
        chosen[axis] = _items(axis, value) if isinstance(value, str) else value
    return chosen


def _words(text: str) -> list[tuple[str, str]]:
    rest = _PART.sub("", text)
    if rest.strip(" ;"):
        raise SpecError(
            f"select={text!r}: {rest.strip()!r} is not understood; write for example "
            "'c=0,2 z=10:20 t=::2 y=0:512'"
        )
    return [(found[1], found[2].rstrip(";")) for found in _PART.finditer(text)]


def _items(axis: str, text: str) -> Any:
    parts = [_item(axis, part) for part in text.split(",")]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], slice) else parts


def _item(axis: str, text: str) -> int | slice:
    try:
        if ":" not in text:
            return int(text)
        numbers = [int(part) if part.strip() else None for part in text.split(":")]
        if len(numbers) > 3:
            raise ValueError
        return slice(*numbers)
    except ValueError:
        raise SpecError(
            f"{axis.lower()}={text!r} is neither a number nor a range such as 10:20 or ::2"
        ) from None


def positions(axis: str, item: Any, size: int) -> Any:
    """Return what numpy takes for one axis: a slice, or a list of positions.

    Raises
    ------
    RegionError
        A position is outside the axis, or nothing is selected.
    """
    if isinstance(item, slice):
        if not _along(axis, item, size) and size:
            raise RegionError(f"{axis}={_shown(item)} selects nothing: the image has {axis}={size}")
        return item
    several = isinstance(item, Iterable) and not isinstance(item, str)
    found: list[int] = []
    for part in item if several else [item]:
        if isinstance(part, slice):
            found += _along(axis, part, size)
            continue
        found.append(_position(axis, part, size))
    if not found:
        raise RegionError(f"{axis}: nothing is selected; the image has {axis}={size}")
    return found


def _along(axis: str, item: slice, size: int) -> range:
    try:
        return range(*item.indices(size))
    except (TypeError, ValueError) as exc:
        raise RegionError(f"{axis}={_shown(item)}: {exc}") from None


def _position(axis: str, value: Any, size: int) -> int:
    try:
        if isinstance(value, bool):  # of a mask, which numbers 0 and 1 would not be
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise RegionError(
            f"{axis} index {value!r:.60}: give an int, a slice or a list of these"
        ) from None
    if not -size <= number < size:
        raise RegionError(
            f"{axis} index {number} is out of range: the image has {axis}={size} (valid: "
            f"{-size} to {size - 1})"
        )
    return number % size


def _shown(item: slice) -> str:
    parts = ["" if n is None else str(n) for n in (item.start, item.stop)]
    return ":".join(parts if item.step is None else [*parts, str(item.step)])


def one_based(name: str, value: Any, axis: str, size: int) -> list[int]:
    """Return the 0-based positions of what is counted from 1.

    Parameters
    ----------
    name : str
        Of the keyword, for messages: ``"planes"``.
    value : int, str, or iterable of int
        ``7``, ``[1, 7, 14]``, ``range(1, 101)``, or text: ``"1,7,14"``, ``"1:100"`` and
        ``"1:100:2"``, where the end belongs to it.
    axis, size
        The axis and its length.

    Examples
    --------
    >>> one_based("planes", [1, 3], "Z", 5), one_based("planes", "2:4", "Z", 5)
    ([0, 2], [1, 2, 3])
    """
    numbers = _counted(name, value, size)
    if not numbers:
        raise RegionError(f"{name}={value!r} selects nothing: the image has {axis}={size}")
    for number in numbers:
        if not 1 <= number <= size:
            raise RegionError(
                f"{name}={number} is out of range: {name} are counted from 1, and the image has "
                f"{axis}={size} (valid: 1 to {size})"
            )
    return [number - 1 for number in numbers]


def _counted(name: str, value: Any, size: int) -> list[int]:
    if isinstance(value, str):
        found: list[int] = []
        for part in value.split(","):
            item = _item(name, part)
            found += [item] if isinstance(item, int) else _closed(item, size)
        return found
    if isinstance(value, slice):
        return list(_closed(value, size))
    several = isinstance(value, Iterable)
    try:
        if isinstance(value, bool):
            raise TypeError
        return [operator.index(number) for number in (value if several else [value])]
    except TypeError:
        raise SpecError(
            f"{name}={value!r:.60}: give a number counted from 1, a list of them, or text such as "
            "'1,7,14' or '1:100'"
        ) from None


def _closed(item: slice, size: int) -> range:
    step = 1 if item.step is None else item.step
    if step < 1:
        raise SpecError(f"{_shown(item)}: the step must be 1 or more")
    start = 1 if item.start is None else item.start
    stop = size if item.stop is None else item.stop
    return range(start, stop + 1, step)


def ordered(order: Any, planes: list[int]) -> list[int]:
    """Return `planes` in another order.

    Parameters
    ----------
    order : iterable of int or str
        For each place the number, from 0, of the plane that comes there.

    Examples
    --------
    >>> ordered([2, 0, 1], [0, 4, 8])
    [8, 0, 4]
    """
    try:
        given = order.split(",") if isinstance(order, str) else order
        numbers = [int(part) if isinstance(part, str) else operator.index(part) for part in given]
    except (TypeError, ValueError):
        raise SpecError(f"order={order!r:.60}: give the numbers 0 to {len(planes) - 1}") from None
    if sorted(numbers) != list(range(len(planes))):
        raise SpecError(
            f"order={list(numbers)!r:.60} must name each of the {len(planes)} planes once, counted "
            "from 0"
        )
    return [planes[number] for number in numbers]
