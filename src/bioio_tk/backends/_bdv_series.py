"""Which views are one image: channels as C, time points as T, all else as series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._bdv_pixels import Resolution, Stored
from bioio_tk.core.spec import Channel, ImageSpec, Level, PhysicalSize
from bioio_tk.core.units import length_unit
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bioio_tk.core.views import Shape3, ViewSetup
    from bioio_tk.meta.bdv_values import SpimData

_ORDER = ("illumination", "tile", "angle")
"""What series are sorted by first."""
_SHOWN = frozenset({"displaysettings"})
"""Attributes that say how a setup is shown, not what it is."""
_BLOCK = (16, 128, 128)
"""Of stacks that are not there."""


@dataclass(frozen=True, slots=True)
class Series:
    """Setups that differ in their channel alone.

    Attributes
    ----------
    setups : tuple of int
        Their ids, by channel.
    stored : Stored
        How they are stored.
    name : str
        Of what makes them differ from the other series.
    """

    setups: tuple[int, ...]
    stored: Stored
    name: str


def arrange(
    data: SpimData, look: Callable[[int], Stored | None], notes: list[str]
) -> tuple[Series, ...]:
    """Return the series of a dataset.

    Parameters
    ----------
    data : SpimData
        What is known of it.
    look : callable
        Returns how a setup is stored, None where nothing tells.
    notes : list of str
        Where to say what does not fit.
    """
    found = {setup: look(setup) for setup in data.setups}
    sizes = {data.setups[n].size: stored for n, stored in found.items() if stored is not None}
    groups: dict[Any, list[list[int]]] = {}
    ordered: list[list[int]] = []
    for setup in sorted(data.setups.values(), key=_rank):
        stored = found[setup.id]
        if stored is None:
            stored = found[setup.id] = _supposed(setup, sizes, notes)
        if stored is None:
            continue
        _check_size(setup, stored, notes)
        alike = groups.setdefault((_key(setup), _looks(stored)), [])
        if not alike or _channel(setup) in {_channel(data.setups[n]) for n in alike[-1]}:
            alike.append([])
            ordered.append(alike[-1])
        alike[-1].append(setup.id)
    varying = _varying([data.setups[setups[0]] for setups in ordered])
    return tuple(
        Series(tuple(setups), stored, _name(data, setups, varying))
        for setups in ordered
        if (stored := found[setups[0]]) is not None
    )


def describe(data: SpimData, series: Series, times: int, notes: list[str]) -> ImageSpec:
    """Return the image that a series is."""
    first = data.setups[series.setups[0]]
    itemsize = series.stored.dtype.itemsize
    levels = tuple(
        Level(_five(level.shape, len(series.setups), times), _five(level.tile(itemsize), 1, 1))
        for level in series.stored.levels
    )
    known = data.attributes.get("channel", {})
    ids = [_channel(data.setups[n]) for n in series.setups]
    names = [known[n].name if n in known else "" for n in ids]
    return ImageSpec(
        series.stored.dtype,
        levels,
        series.name,
        channels=tuple(Channel(name or None) for name in names) if any(names) else (),
        physical_size=_physical_size(first, series.stored.levels[0].factor, notes),
    )


def _five(sizes: Shape3, c: int, t: int) -> tuple[int, int, int, int, int]:
    z, y, x = sizes
    return (y, x, z, c, t)


def _channel(setup: ViewSetup) -> int | None:
    return setup.attributes.get("channel")


def _others(setup: ViewSetup) -> dict[str, int]:
    """Return the attributes that tell one series from another."""
    return {k: v for k, v in setup.attributes.items() if k != "channel" and k not in _SHOWN}


def _key(setup: ViewSetup) -> tuple[Any, ...]:
    others = _others(setup)
    first = tuple(others.pop(kind, 0) for kind in _ORDER)  # BigStitcher takes what is not said as 0
    return (*first, *sorted(others.items()))


def _rank(setup: ViewSetup) -> tuple[Any, ...]:
    channel = _channel(setup)
    return (_key(setup), -1 if channel is None else channel, setup.id)


def _looks(stored: Stored) -> tuple[Any, ...]:
    return (stored.dtype, *((level.shape, level.factor) for level in stored.levels))


def _supposed(
    setup: ViewSetup, sizes: dict[Shape3 | None, Stored], notes: list[str]
) -> Stored | None:
    """Return how a setup without any pixels would be stored."""
    if setup.size is None:
        notes.append(f"setup {setup.id} has neither pixels nor a size: it is left out")
        return None
    block = tuple(min(a, b) for a, b in zip(_BLOCK, setup.size, strict=True))
    alone = Resolution(setup.size, (1.0, 1.0, 1.0), block, "none")  # type: ignore[arg-type]
    return sizes.get(setup.size, Stored(np.dtype(np.uint16), (alone,)))


def _check_size(setup: ViewSetup, stored: Stored, notes: list[str]) -> None:
    if setup.size is None:
        return
    first = stored.levels[0]
    for said, there, factor in zip(setup.size, first.shape, first.factor, strict=True):
        if there not in (math.ceil(said / factor), max(1, int(said / factor))):
            notes.append(
                f"setup {setup.id} is said to be {setup.size} (Z, Y, X), but its stacks are "
                f"{first.shape} at 1:{factor:g}"
            )
            return


def _varying(setups: Sequence[ViewSetup]) -> tuple[str, ...]:
    """Return the attributes in which series differ."""
    values: dict[str, set[int | None]] = {}
    for kind in dict.fromkeys([*_ORDER, *sorted({k for s in setups for k in _others(s)})]):
        values[kind] = {_others(setup).get(kind) for setup in setups}
    return tuple(kind for kind, found in values.items() if len(found) > 1)


def _name(data: SpimData, setups: Sequence[int], varying: tuple[str, ...]) -> str:
    first = data.setups[setups[0]]
    parts = []
    for kind in varying:
        number = first.attributes.get(kind)
        if number is not None:
            attribute = data.attributes.get(kind, {}).get(number)
            label = (attribute.name if attribute else "") or str(number)
            parts.append(label if label.lower().startswith(kind) else f"{kind} {label}")
    if parts:
        return ", ".join(parts)
    return first.name if len({data.setups[n].name for n in setups}) == 1 else ""


def _physical_size(
    setup: ViewSetup, factor: tuple[float, float, float], notes: list[str]
) -> PhysicalSize:
    if setup.voxel_size is None:
        return PhysicalSize()
    try:
        unit = length_unit(setup.voxel_unit)
    except SpecError:
        said = f"{setup.voxel_unit!r}, which is none" if setup.voxel_unit else "not said"
        notes.append(f"the unit of the voxel size is {said}: pixel sizes are left out")
        return PhysicalSize()
    sizes = [
        (size * by, unit) if math.isfinite(size) and size > 0 else None
        for size, by in zip(setup.voxel_size, factor[::-1], strict=True)
    ]
    return PhysicalSize(*sizes)
