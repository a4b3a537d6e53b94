"""What a row must reach, as values: a number taken from the outcomes, and a limit for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.measure import MIB, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "ours"
NOISE = 0.05  # "no slower" within what two runs of the same code differ by

Outcomes = dict[str, Outcome]


def best(outcomes: Outcomes, column: str) -> Outcome | None:
    """The fastest contestant of a column that was measured and may decide a goal."""
    able = [one for one in outcomes.values() if one.column == column and one.ok and one.counts]
    return min(able, key=lambda one: one.median, default=None)


@dataclass(frozen=True, slots=True)
class Goal:
    """One wanted number.

    Parameters
    ----------
    wanted
        The limit in words, for the table.
    value
        The number reached, or None if someone it depends on was not measured.
    met
        Whether that number will do.
    show
        The number in words, for the table.
    """

    wanted: str
    value: Callable[[Outcomes], float | None]
    met: Callable[[float], bool]
    show: Callable[[float], str]


def faster_than(column: str, least: float, name: str = "") -> Goal:
    """Speed of ours over the best of a column; ``name`` is what the table calls it."""
    return Goal(
        f"≥ {least:g}× {name or column}",
        _speed_against(column),
        lambda value: value >= least * (1 - (NOISE if least == 1 else 0)),
        lambda value: f"{value:.2f}× {name or column}",
    )


def faster_than_one(label: str, least: float) -> Goal:
    """Speed of ours over that of one contestant, by its label."""
    return Goal(
        f"≥ {least:g}× {label}",
        _speed_against_label(label),
        lambda value: value >= least * (1 - (NOISE if least == 1 else 0)),
        lambda value: f"{value:.2f}× {label}",
    )


def reads_no_more_than(label: str, most: float, name: str) -> Goal:
    """Bytes we read over those one contestant reads, by its label."""

    def value(outcomes: Outcomes) -> float | None:
        other = outcomes[label]
        if not other.ok or not other.read:
            return None
        read = other.read
        return _ours(outcomes, lambda one: (one.read or 0) / read)

    return Goal(
        f"reads ≤ {most:g}× {name}",
        value,
        lambda reached: 0 < reached <= most,
        lambda reached: f"reads {reached:.2f}× {name}",
    )


def share_of(ceiling: str, least: float, name: str) -> Goal:
    """Speed of ours as a share of a ceiling's, by its label."""
    return Goal(
        f"≥ {least:g} of {name}",
        _speed_against_label(ceiling),
        lambda value: value >= least,
        lambda value: f"{value:.2f} of {name}",
    )


def no_longer_than(label: str, most: float, name: str) -> Goal:
    """Time of ours over that of one contestant, by its label."""

    def value(outcomes: Outcomes) -> float | None:
        speed = _speed_against_label(label)(outcomes)
        return None if speed is None else 1 / speed

    return Goal(
        f"≤ {most:g}× {name}",
        value,
        lambda reached: reached <= most,
        lambda reached: f"{reached:.2f}× {name}",
    )


def no_longer_than_slower(labels: tuple[str, str], most: float, name: str) -> Goal:
    """Time of ours over that of the slower of two contestants, by their labels."""

    def value(outcomes: Outcomes) -> float | None:
        others = [outcomes[label] for label in labels]
        if not all(one.ok for one in others):
            return None
        slower = max(one.median for one in others)
        return _ours(outcomes, lambda one: one.median / slower)

    return Goal(
        f"≤ {most:g}× {name}",
        value,
        lambda reached: reached <= most,
        lambda reached: f"{reached:.2f}× {name}",
    )


def scales(label: str, over: str, least: float) -> Goal:
    """Speed of one contestant over that of another, by their labels."""

    def value(outcomes: Outcomes) -> float | None:
        one, other = outcomes[label], outcomes[over]
        return other.median / one.median if one.ok and other.ok else None

    return Goal(
        f"{label} ≥ {least:g}× {over}",
        value,
        lambda reached: reached >= least,
        lambda reached: f"{reached:.2f}× {over}",
    )


def longer_by(label: str, over: str, most: float) -> Goal:
    """Milliseconds that one contestant takes longer than another, by their labels."""

    def value(outcomes: Outcomes) -> float | None:
        one, other = outcomes[label], outcomes[over]
        return (one.median - other.median) * 1e3 if one.ok and other.ok else None

    return Goal(
        f"{label} ≤ {over} + {most:g} ms",
        value,
        lambda reached: reached <= most,
        lambda reached: f"{reached:+.2f} ms",
    )


def within(milliseconds: float) -> Goal:
    """Time of ours in absolute terms."""
    return Goal(
        f"≤ {milliseconds:g} ms",
        lambda outcomes: _ours(outcomes, lambda one: one.median * 1e3),
        lambda value: value <= milliseconds,
        lambda value: f"{value:.2f} ms",
    )


def no_larger_than(column: str) -> Goal:
    """Size of our file over that of the smallest file of a column."""

    def value(outcomes: Outcomes) -> float | None:
        sizes = [one.size for one in outcomes.values() if one.column == column and one.ok]
        smallest = min((size for size in sizes if size), default=None)
        if smallest is None:
            return None
        return _ours(outcomes, lambda one: (one.size or 0) / smallest)

    return Goal(
        f"file ≤ {column}'s",
        value,
        lambda reached: reached <= 1.0,
        lambda reached: f"{reached:.3f} of {column}'s size",
    )


def peak_below(mebibytes: float) -> Goal:
    """High-water mark of our whole process, interpreter and libraries included."""
    return Goal(
        f"peak < {mebibytes:g} MB",
        lambda outcomes: _ours(outcomes, lambda one: (one.peak or 0) / MIB),
        lambda value: 0 < value < mebibytes,
        lambda value: f"{value:.0f} MB",
    )


def peak_flat(label: str, most: float, name: str) -> Goal:
    """Peak memory of ours over that of another run of ours, with a smaller image."""

    def value(outcomes: Outcomes) -> float | None:
        other = outcomes[label]
        if not other.ok or not other.peak:
            return None
        peak = other.peak
        return _ours(outcomes, lambda one: (one.peak or 0) / peak)

    return Goal(
        f"≤ {most:g}× {name}",
        value,
        lambda reached: 0 < reached <= most,
        lambda reached: f"{reached:.2f}× {name}",
    )


def grown_below(mebibytes: float, *labels: str) -> Goal:
    """Memory that a turn adds to what the process held before: ours, or another run of it."""

    def value(outcomes: Outcomes) -> float | None:
        runs = [outcomes[label] for label in (OURS, *labels)]
        grown = [one.peak - one.before for one in runs if one.ok and one.peak and one.before]
        return max(grown) / MIB if len(grown) == len(runs) else None

    return Goal(
        f"extra memory ≤ {mebibytes:g} MB",
        value,
        lambda reached: reached <= mebibytes,
        lambda reached: f"{reached:.0f} MB more",
    )


def number_at_most(name: str, most: float, words: str) -> Goal:
    """A number that ours has measured itself, by its name."""
    return Goal(
        f"{words} ≤ {most:g}",
        lambda outcomes: outcomes[OURS].number(name),
        lambda value: value <= most,
        lambda value: f"{words} {value:.3g}",
    )


def number_at_least(name: str, least: float, words: str) -> Goal:
    """The same, where more is better."""
    return Goal(
        f"≥ {least:,g} {words}",
        lambda outcomes: outcomes[OURS].number(name),
        lambda value: value >= least,
        lambda value: f"{value:,.0f} {words}",
    )


def number_against(name: str, label: str, least: float, words: str) -> Goal:
    """A number of ours over the same of one contestant, by its label."""

    def value(outcomes: Outcomes) -> float | None:
        ours, other = outcomes[OURS].number(name), outcomes[label].number(name)
        return ours / other if ours is not None and other else None

    return Goal(
        f"≥ {least:g}× {words}",
        value,
        lambda reached: reached >= least,
        lambda reached: f"{reached:.2f}× {words}",
    )


def _ours(outcomes: Outcomes, number: Callable[[Outcome], float]) -> float | None:
    ours = outcomes[OURS]
    return number(ours) if ours.ok else None


def _speed_against(column: str) -> Callable[[Outcomes], float | None]:
    def value(outcomes: Outcomes) -> float | None:
        other = best(outcomes, column)
        if other is None:
            return None
        return _ours(outcomes, lambda one: other.median / one.median)

    return value


def _speed_against_label(label: str) -> Callable[[Outcomes], float | None]:
    def value(outcomes: Outcomes) -> float | None:
        other = outcomes[label]
        return _ours(outcomes, lambda one: other.median / one.median) if other.ok else None

    return value
