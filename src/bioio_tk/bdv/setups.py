"""SetupGrid: which number a view setup has among all illuminations, channels, tiles and angles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.views import ATTRIBUTES, ViewAttribute
from bioio_tk.errors import RegionError, SpecError
from bioio_tk.meta.bdv import attribute_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class SetupGrid:
    """Counts the setups of a dataset, angles first, then tiles, channels and illuminations.

    Parameters
    ----------
    counts : mapping of str to int
        How many illuminations, channels, tiles and angles there are, at least one each.
    """

    def __init__(self, counts: Mapping[str, Any]) -> None:
        self.counts = {kind: _count(kind, counts[kind]) for kind in ATTRIBUTES}
        self._known: dict[tuple[str, int], ViewAttribute] = {}

    @property
    def size(self) -> int:
        """How many setups there may be."""
        total = 1
        for n in self.counts.values():
            total *= n
        return total

    def setup(self, places: Mapping[str, Any]) -> int:
        """Return the number of the setup at these places.

        Raises
        ------
        RegionError
            There are not so many illuminations, channels, tiles or angles.
        """
        number = 0
        for kind, count in self.counts.items():
            number = number * count + place(kind, places[kind], count)
        return number

    def attributes(self, setup: int) -> dict[str, int]:
        """Return where a setup is, the inverse of `setup`."""
        found = {}
        for kind, count in reversed(self.counts.items()):
            setup, found[kind] = divmod(setup, count)
        return {kind: found[kind] for kind in ATTRIBUTES}

    def describe(self, kind: str, number: Any, name: Any, properties: Mapping[str, Any]) -> None:
        """Say what one value of an attribute is called, and what else there is to say of it."""
        at = place(kind, number, self._of(kind))
        self._known[kind, at] = self._described(kind, at, name, properties)

    def _described(
        self, kind: str, at: int, name: Any, properties: Mapping[str, Any]
    ) -> ViewAttribute:
        """Return what will be known of one value; SpecError where the XML cannot hold it."""
        known = self.value(kind, at)
        said = {**known.properties, **{key: _text(key, v) for key, v in properties.items()}}
        value = ViewAttribute(at, known.name if name is None else str(name), said)
        attribute_text(kind, value)
        return value

    def label(self, kind: str, labels: Sequence[Any]) -> None:
        """Name all values of an attribute."""
        count = self._of(kind)
        if isinstance(labels, str) or len(labels) != count:
            raise SpecError(
                f"labels={labels!r:.60}: there are {count} values of {kind!r}, give a list of "
                f"{count} names"
            )
        values = [self._described(kind, number, name, {}) for number, name in enumerate(labels)]
        self._known.update({(kind, value.id): value for value in values})

    def value(self, kind: str, number: int) -> ViewAttribute:
        """Return what is known of one value of an attribute."""
        return self._known.get((kind, number)) or ViewAttribute(number, str(number))

    def _of(self, kind: Any) -> int:
        if kind not in self.counts:
            raise SpecError(f"attribute={kind!r}: choose one of {', '.join(ATTRIBUTES)}")
        return self.counts[kind]


def place(kind: str, value: Any, count: int | None) -> int:
    """Return an index as an int; RegionError where it is none, or there are not so many."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 0 or (count is not None and value >= count):
        most = "0, 1, 2, …" if count is None else "0" if count == 1 else f"0 to {count - 1}"
        raise RegionError(
            f"{kind}={value!r} is not there: give {most}"
            + ("" if count is None else f" (the dataset was opened with n{kind}s={count})")
        )
    return int(value)


def _count(kind: str, value: Any) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise SpecError(f"n{kind}s={value!r}: give how many there are, at least 1")
    return int(value)


def _text(key: str, value: Any) -> str:
    """Return a property as BDV has it: numbers with a space between."""
    if key in ("id", "name"):
        raise SpecError(f"{key}={value!r}: every value of an attribute has its {key} already")
    if isinstance(value, str):
        return value
    try:
        numbers = np.ravel(np.asarray(value, float))
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if not numbers.size or not np.isfinite(numbers).all():
        raise SpecError(f"{key}={value!r:.60}: give a text, a number or several numbers")
    return " ".join(repr(float(n)) for n in numbers)
