"""Outcomes as Markdown: the table of goals, the ceilings, every contestant's numbers."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from bench.goals import OURS, Outcomes, best
from bench.measure import MIB, Case, Outcome

NO = "**no**"
REASON = 80  # characters of a failure that fit a cell


def usable_cores() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def heading(suite: Any, case: Case, repeats: int) -> str:
    """What was measured, on what, with what."""
    versions = [f"{name} {_version(name)}" for name in suite.PACKAGES]
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return (
        f"{usable_cores()} usable cores of {os.cpu_count()} ({_processor()}, "
        f"{platform.system()}{load}), {case.workers} workers, image {case.size}² uint16, "
        f"{repeats} turns each, warm page cache. Python {platform.python_version()}; "
        + ", ".join(versions)
        + ".\n\nTimes are medians of alternating turns, every contestant in its own process; "
        "all pixels were compared (of the largest images, some tiles). Ratios are of these "
        f"medians. {suite.ABOUT} "
        "reference: the ceiling or the other way of ours that the goal names."
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # our own package may be run from its source folder
        with contextlib.suppress(ImportError, AttributeError):
            return str(import_module(name.replace("-", "_")).__version__)
        return "(not installed)"


def table(suite: Any, results: dict[str, tuple[Any, Outcomes]], case: Case) -> str:
    """The table of work, contestants, ratios and goals."""
    columns = suite.COLUMNS
    lines = [
        "| work | " + " | ".join(columns) + " | ratio | wanted | met? |",
        "|---|" + "---|" * (len(columns) + 3),
    ]
    divided = False
    for row, outcomes in results.values():
        if row.key == "ceilings":
            continue
        if row.extra and not divided and len(lines) > 2:
            lines.append("| *also* |" + " |" * (len(columns) + 3))
            divided = True
        cells = [_cell(row, outcomes, column) for column in columns]
        title = title_of(row, case)
        lines.append(f"| {title} | " + " | ".join((*cells, *verdict(row, outcomes))) + " |")
    notes = [f"- {title_of(row, case)}: {row.note}" for row, _ in results.values() if row.note]
    return "\n".join(lines + ([""] if notes else []) + notes)


def title_of(row: Any, case: Case) -> str:
    """A row's text with this run's sizes in it."""
    return str(row.title).format(
        copy_gb=case.copy_gb,
        planes=case.planes,
        workers=case.workers,
        size=case.size,
        double=2 * case.size,
    )


def verdict(row: Any, outcomes: Outcomes) -> tuple[str, str, str]:
    """The cells ratio, wanted and met?."""
    if not row.goals:
        return "", "", ""
    ratios, unmet, unknown = [], [], []
    for goal in row.goals:
        value = goal.value(outcomes)
        if value is None:
            unknown.append(goal.wanted)
        else:
            ratios.append(goal.show(value))
            if not goal.met(value):
                unmet.append(goal.wanted)
    wanted = ", ".join(goal.wanted for goal in row.goals)
    if unmet or not outcomes[OURS].ok:
        met = NO + (f": {', '.join(unmet)}" if unmet and len(row.goals) > 1 else "")
    else:
        met = "yes"
    if unknown and outcomes[OURS].ok:
        met += f" (not measured: {', '.join(unknown)})"
    return ", ".join(ratios) or "–", wanted, met


def _cell(row: Any, outcomes: Outcomes, column: str) -> str:
    there = [one for one in outcomes.values() if one.column == column]
    if not there:
        return "–"
    winner = best(outcomes, column)
    if winner is None:
        return _failure(there[0], REASON)
    text = _told(row, winner)
    # say which one it was, where the column's name does not
    return text if winner.label == column else f"{text} ({winner.label.removeprefix(column + ' ')})"


def _told(row: Any, one: Outcome) -> str:
    """What the row is about: a number of its own, memory, or time."""
    number = one.number(row.number)
    if number is not None:
        return f"{_rounded(number)} {row.number}"
    return memory(one.peak) if row.memory else duration(one.median)


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _failure(one: Outcome, most: int = 1000) -> str:
    """The reason; of a long one the exception's name and the end, where libraries put the point."""
    text = (one.failed or "nothing measured").replace("|", "/")
    if len(text) > most:
        name = text.partition(":")[0]
        text = f"{name}: … {text[len(name) - most :]}"
    return f"failed: {text}"


def ceilings(outcomes: Outcomes, case: Case) -> str:
    """The machine's ceilings as MB/s of pixels."""
    lines = ["| ceiling | time | MB/s of pixels |", "|---|---|---|"]
    for one in outcomes.values():
        if one.ok:
            speed = case.size**2 * 2 / one.median / 1e6
            lines.append(f"| {one.label} | {duration(one.median)} | {speed:,.0f} |")
        else:
            lines.append(f"| {one.label} | {_failure(one)} | |")
    return "\n".join(lines)


def details(results: dict[str, tuple[Any, Outcomes]]) -> str:
    """Every contestant of every row: spread of times, ratios, memory, size of the file."""
    # what contestants measure themselves has a column where there is any
    more = any(one.numbers for _, outcomes in results.values() for one in outcomes.values())
    lines = [
        (
            "| row | contestant | median | best | worst | ours is faster × | by best times × "
            "| peak MB | before MB | read MB | file MB |" + (" numbers |" if more else "")
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|" + ("---|" if more else ""),
    ]
    for row, outcomes in results.values():
        if row.key == "ceilings":
            continue
        ours = outcomes[OURS]
        for one in outcomes.values():
            cells = (*_details(one, ours), *((_numbers(one),) if more else ()))
            lines.append(f"| {row.key} | {one.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _details(one: Outcome, ours: Outcome) -> tuple[str, ...]:
    if not one.ok:
        return (_failure(one), *("",) * 8)
    against = ("", "")
    if ours.ok and one is not ours:
        against = (f"{one.median / ours.median:.2f}", f"{min(one.times) / min(ours.times):.2f}")
    return (
        duration(one.median),
        duration(min(one.times)),
        duration(max(one.times)),
        *against,
        f"{one.peak / MIB:.0f}" if one.peak else "",
        f"{one.before / MIB:.0f}" if one.before else "",
        f"{one.read / 1e6:.2f}" if one.read else "",
        f"{one.size / 1e6:.2f}" if one.size else "",
    )


def _numbers(one: Outcome) -> str:
    """What a contestant has measured itself, by its units."""
    return ", ".join(f"{_rounded(one.number(name) or 0)} {name}" for name in one.numbers)


def duration(seconds: float) -> str:
    """A time with three digits and a fitting unit."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def memory(size: int | None) -> str:
    """A number of bytes in MB."""
    return "?" if size is None else f"{size / MIB:.0f} MB"


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
