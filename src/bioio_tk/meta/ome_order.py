"""The order in which planes are taken, in the terms of OME: DimensionOrder, SizeZ, SizeC, SizeT."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bioio_tk.core.frames import FrameAxis, FrameOrder


class Group(NamedTuple):
    """Axes of an acquisition, the fastest first, that run along one axis of the image together."""

    letter: str
    axes: tuple[FrameAxis, ...]


def dimension_order(order: FrameOrder) -> str | None:
    """Return the DimensionOrder whose planes, one after the other, are those of an acquisition.

    Returns
    -------
    str or None
        Such as ``"XYZCT"``; None where there is none: with two cameras and three filters, which
        share C, and planes along Z taken in between.

    Examples
    --------
    >>> from bioio_tk.core.frames import FrameAxis, FrameOrder
    >>> dimension_order(FrameOrder((FrameAxis("T", 5), FrameAxis("Z", 3), FrameAxis("C", 2))))
    'XYCZT'
    >>> cameras = (FrameAxis("C", 3, 2), FrameAxis("Z", 5), FrameAxis("C", 2))
    >>> dimension_order(FrameOrder(cameras)) is None
    True
    """
    groups = _runs(order)
    if not all(map(_in_order, groups)):  # so is none whose letter has been there before
        return None
    return _completed([group.letter for group in groups])


def live_order(order: FrameOrder) -> str:
    """Return the DimensionOrder of an image that grows: `dimension_order` where there is one.

    Else an axis that comes back runs along the axis before it, as two channels after 5 positions
    along Z do as Z = 10: every plane is there, and T is right.
    """
    return _completed([group.letter for group in _joined(order)])


def live_sizes(order: FrameOrder, planes: int) -> dict[str, int]:
    """Return SizeZ, SizeC and SizeT of an image of `planes` planes in `live_order`.

    They are those of `FrameOrder.extent` where there is a `dimension_order`.
    """
    sizes = {"SizeZ": 1, "SizeC": 1, "SizeT": 1}
    groups = _joined(order)
    for group in groups:
        sizes[f"Size{group.letter}"] = math.prod(axis.size for axis in group.axes)
    if groups:
        slowest, name = order.axes[0], f"Size{groups[-1].letter}"
        first = min(max(1, -(-planes // order.cycle)), slowest.size)
        sizes[name] = sizes[name] // slowest.size * first
    return sizes


def _runs(order: FrameOrder) -> list[Group]:
    """Return the axes with more than one position, neighbours of one letter together."""
    groups: list[Group] = []
    for axis in reversed(order.axes):
        if axis.size == 1:
            continue
        if groups and groups[-1].letter == axis.letter:
            groups[-1] = Group(axis.letter, (*groups[-1].axes, axis))
        else:
            groups.append(Group(axis.letter, (axis,)))
    return groups


def _joined(order: FrameOrder) -> list[Group]:
    groups: list[Group] = []
    for group in _runs(order):
        if any(known.letter == group.letter for known in groups):
            last = groups[-1]
            groups[-1] = Group(last.letter, (*last.axes, *group.axes))
        else:
            groups.append(group)
    return groups


def _in_order(group: Group) -> bool:
    """Return whether the positions of a group are taken one after the other."""
    step = 1
    for axis in group.axes:
        if axis.step != step:
            return False
        step *= axis.size
    return True


def _completed(letters: list[str]) -> str:
    return "XY" + "".join(dict.fromkeys([*letters, *"ZCT"]))
