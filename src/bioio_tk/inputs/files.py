"""Which files a pattern or a glob stands for, and how they lie side by side."""

from __future__ import annotations

import glob
import math
import os
import warnings
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bioio_tk.core.pattern import Pattern, Value, natural
from bioio_tk.errors import BioIOWarning, SpecError
from bioio_tk.meta.ngff_axes import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Found(NamedTuple):
    """A file that matches a pattern, and the values of its fields."""

    path: Path
    values: dict[str, Value]


class Grid(NamedTuple):
    """Files side by side.

    Attributes
    ----------
    axes : str
        The axes along which they lie, slowest first: ``"TC"``.
    values : tuple of tuple
        For each of them what the fields say, in order.
    parts : tuple of (Path or None)
        The files, the last axis fastest; None where one is missing.
    """

    axes: str
    values: tuple[tuple[Value, ...], ...]
    parts: tuple[Path | None, ...]


def find_files(pattern: str | Pattern) -> list[Found]:
    """Return the files (and the folders that are images) that match a pattern.

    Parameters
    ----------
    pattern : str or Pattern
        A path with fields or wildcards, also in the names of folders; ``~`` is expanded. It
        may be relative.

    Returns
    -------
    list of Found
        In natural order.

    Raises
    ------
    FileNotFoundError
        Nothing matches.

    Warns
    -----
    BioIOWarning
        ``{t:d}`` takes names with one digit only, and there are others with more.
    """
    text = pattern.text if isinstance(pattern, Pattern) else os.fspath(pattern)
    wanted = Pattern(os.path.expanduser(text).replace(os.sep, "/"))  # noqa: PTH111 - keep the text
    names = [name.replace(os.sep, "/") for name in glob.glob(wanted.glob, recursive=True)]  # noqa: PTH207
    found = _matching(wanted, names)
    if not found:
        raise FileNotFoundError(f"no file matches {text!r}{_nearest(wanted, names)}")
    loose = wanted.loosened()
    others = len(_matching(loose, names)) - len(found) if loose != wanted else 0
    if others > 0:
        warnings.warn(
            f"{text!r} matches {len(found)} files; {others} more have longer numbers, which "
            f"{loose.text!r} would match",
            BioIOWarning,
            stacklevel=2,
        )
    return found


def _matching(pattern: Pattern, names: Iterable[str]) -> list[Found]:
    matches = ((name, pattern.match(name)) for name in sorted(names, key=natural))
    return [Found(Path(name), values) for name, values in matches if values is not None]


def _nearest(pattern: Pattern, names: Sequence[str]) -> str:
    if names:
        return f"; {min(names, key=natural)!r} comes near"
    folder = Path(pattern.glob.partition("*")[0].partition("?")[0] or ".")
    folder = folder if pattern.glob.startswith(f"{folder}/") else folder.parent
    return "" if folder.is_dir() else f": there is no folder {str(folder)!r}"


def list_files(text: str) -> list[Path]:
    """Return what matches a shell's wildcards, in natural order: ``img_*.tif``.

    Raises
    ------
    FileNotFoundError
        Nothing matches.
    """
    names = glob.glob(os.path.expanduser(text), recursive=True)  # noqa: PTH111, PTH207
    if not names:
        raise FileNotFoundError(f"no file matches {text!r}")
    return [Path(name) for name in sorted(names, key=natural)]


def axis_of(field: str) -> str | None:
    """Return the axis that a field stands for; None for one that is none of T, C, Z.

    >>> axis_of("t"), axis_of("channel"), axis_of("r")
    ('T', 'C', None)
    """
    letter = NAMES.get(field.lower(), "")
    return letter.upper() if letter in ("t", "c", "z") else None


def grid_of(
    found: Sequence[Found], fields: Sequence[str], text: str, *, allow_missing: bool = False
) -> Grid:
    """Return how files lie side by side, by the values of their fields.

    Parameters
    ----------
    found : sequence of Found
        The files.
    fields : sequence of str
        The fields of the pattern. Those called t, c and z (or time, channel, plane …) are axes;
        any other must have one value.
    text : str
        The pattern, for messages.
    allow_missing : bool
        What is missing becomes None.

    Raises
    ------
    SpecError
        A field is no axis, two files stand at one place, or one is missing.
    """
    axes = _axes(found, fields, text)
    order = sorted(axes, key="TCZ".index)
    where: dict[tuple[Value, ...], Path] = {}
    for path, values in found:
        place = tuple(values[axes[axis]] for axis in order)
        if place in where:
            raise SpecError(
                f"{str(where[place])!r} and {str(path)!r} are both "
                f"{_place([axes[a] for a in order], place)} of the pattern {text!r}"
            )
        where[place] = path
    columns = tuple(_column(axis, [place[i] for place in where]) for i, axis in enumerate(order))
    parts = tuple(where.get(place) for place in product(*columns))
    missing = [p for p in product(*columns) if p not in where]
    if missing and not allow_missing:
        names = [axes[a] for a in order]
        shown = "; ".join(_place(names, place) for place in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise SpecError(
            f"the files of {text!r} have no image for {shown}{more}: fill=0 takes black ones for "
            "what is missing"
        )
    return Grid("".join(order), columns, parts)


def _axes(found: Sequence[Found], fields: Sequence[str], text: str) -> dict[str, str]:
    """Return the field of each axis."""
    axes: dict[str, str] = {}
    for field in fields:
        axis = axis_of(field)
        if axis in axes:
            raise SpecError(
                f"the fields {axes[axis]!r} and {field!r} of the pattern {text!r} are both "
                f"the axis {axis}"
            )
        if axis is not None:
            axes[axis] = field
            continue
        values = sorted({file.values[field] for file in found}, key=natural)
        if len(values) > 1:
            shown = ", ".join(map(str, values[:4])) + (", …" if len(values) > 4 else "")
            raise SpecError(
                f"the field {field!r} of the pattern {text!r} has the values {shown}, and is none "
                "of the axes t, c, z: write one value in its place, or call it by its axis"
            )
    return axes


def _column(axis: str, values: Iterable[Value]) -> tuple[Value, ...]:
    """Return what an axis goes through.

    Numbers of T and Z count in even steps, so that a file that is missing is noticed; not where
    most would be missing: those numbers are dates, or heights.
    """
    distinct = sorted(set(values), key=natural)
    numbers = [v for v in distinct if isinstance(v, int)]
    if axis == "C" or len(numbers) < len(distinct) or len(numbers) < 3:
        return tuple(distinct)
    step = math.gcd(*(b - a for a, b in pairwise(numbers)))
    counted = range(numbers[0], numbers[-1] + 1, step)
    return tuple(distinct if len(counted) > 2 * len(numbers) else counted)


def _place(names: Sequence[str], place: Sequence[Value]) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(names, place, strict=True))
