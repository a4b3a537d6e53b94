"""A row of the benchmark: who does what, and what is wanted of us."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.goals import Goal
from bench.measure import Case, Contestant

Truth = str | dict[str, str] | None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Parameters
    ----------
    key, title
        Name on the command line and text in the table.
    contestants
        Who takes part; ours is labelled ``ours``.
    goals
        What is wanted; none for a row that only informs.
    files
        Generated input files needed.
    expected
        The fingerprint that all contestants' pixels must have (or one per label).
    per
        Operations in one turn; the table shows the time of one.
    repeats
        Upper limit for slow rows.
    once
        Measure a single turn (no warm-up): for work of minutes.
    fresh
        A new process for every turn.
    memory
        The table shows peak memory instead of time.
    warm
        Have free memory at hand for some images' pixels; needless where little is allocated.
    tree
        The contestant may start processes; their memory counts too.
    note
        What to know when reading the row's numbers.
    number
        What the table shows instead of the time, of what the contestants measure themselves.
    extra
        Not a row of the specification's table.
    """

    key: str
    title: str
    contestants: tuple[Contestant, ...]
    goals: tuple[Goal, ...] = ()
    files: tuple[str, ...] = ()
    expected: Callable[[Case], Truth] = lambda case: None
    per: Callable[[Case], int] = lambda case: 1
    repeats: int = 99
    once: bool = False
    fresh: bool = False
    memory: bool = False
    warm: bool = True
    tree: bool = False
    note: str = ""
    number: str = ""
    extra: bool = False
