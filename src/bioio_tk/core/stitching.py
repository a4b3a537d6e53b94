"""Where the files of a mosaic lie: lists, tables and stitching vectors become `Placed`."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bioio_tk.errors import FormatError, SpecError

# one line of the global positions that MIST, and the stitching plugins of WIPP, write
_VECTOR = re.compile(
    r"file:\s*(?P<file>[^;]+?)\s*;.*?\bposition:\s*\(\s*(?P<x>[^,()\s]+)\s*,\s*(?P<y>[^,()\s]+)\s*\)"
)
_COLUMNS = {"file": ("file", "filename", "path", "name"), "y": ("y",), "x": ("x",)}


class Placed(NamedTuple):
    """A file of a mosaic and where its first pixel goes."""

    path: Path
    y: int
    x: int


def read_positions(given: Any, folder: Any = None) -> list[Placed]:
    """Return where each file goes, moved so that the first row and column are 0.

    Parameters
    ----------
    given : sequence or path
        ``(file, y, x)`` or ``{"file": …, "y": …, "x": …}`` of each; or a text file: a table with
        these three columns (``.csv``, ``.tsv``), or a stitching vector, a line
        ``file: a.tif; corr: …; position: (x, y); grid: (column, row);`` for each.
    folder : path, optional
        Where files without a folder of their own lie; by default beside the text file.

    Raises
    ------
    SpecError, FormatError
        A position is no pair of numbers, or a line of the file says none; it is named.
    """
    if isinstance(given, (str, os.PathLike)):
        source = Path(given).expanduser()
        rows = _from_text(source)
        folder = source.parent if folder is None else folder
    elif isinstance(given, Iterable):
        rows = [(f"entry {n}", *_entry(entry, n)) for n, entry in enumerate(given)]
    else:
        raise SpecError(f"positions {given!r:.80}: give a list of (file, y, x), or a text file")
    base = Path("." if folder is None else folder).expanduser()
    placed = [_placed(base, *row) for row in rows]
    if not placed:
        raise SpecError("there are no positions, so there is nothing to assemble")
    top, left = min(p.y for p in placed), min(p.x for p in placed)
    return [Placed(p.path, p.y - top, p.x - left) for p in placed]


def _entry(entry: Any, number: int) -> tuple[Any, Any, Any]:
    if isinstance(entry, Mapping) and {"file", "y", "x"} <= set(entry):
        return entry["file"], entry["y"], entry["x"]
    if isinstance(entry, (tuple, list)) and len(entry) == 3:
        return entry[0], entry[1], entry[2]
    raise SpecError(f"entry {number}, {entry!r:.80}: give (file, y, x)")


def _placed(base: Path, where: str, file: Any, y: Any, x: Any) -> Placed:
    if not isinstance(file, (str, os.PathLike)) or not str(file).strip():
        raise SpecError(f"{where}: {file!r:.80} is no file name")
    return Placed(base / Path(file).expanduser(), _whole(where, "y", y), _whole(where, "x", x))


def _whole(where: str, axis: str, value: Any) -> int:
    try:
        return round(float(value))
    except (TypeError, ValueError, OverflowError):
        raise SpecError(f"{where}: {axis}={value!r:.40} is no number of pixels") from None


def _from_text(path: Path) -> list[tuple[str, Any, Any, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise FormatError(f"{str(path)!r} is no text: give a table or a stitching vector") from exc
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if any(_VECTOR.search(line) for _, line in lines[:1]):
        return [_from_vector(path, n, line) for n, line in lines]
    return _from_table(path, lines)


def _from_vector(path: Path, number: int, line: str) -> tuple[str, Any, Any, Any]:
    found = _VECTOR.search(line)
    if found is None:
        raise FormatError(
            f"{str(path)!r}, line {number}: {line.strip()!r:.80} is not "
            "'file: NAME; corr: …; position: (x, y); grid: …;'"
        )
    return f"{path.name}, line {number}", found["file"], found["y"], found["x"]


def _from_table(path: Path, lines: list[tuple[int, str]]) -> list[tuple[str, Any, Any, Any]]:
    header = lines[0][1] if lines else ""
    mark = next((m for m in "\t;" if m in header), ",")
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=mark), [])]
    where = {
        what: next((names.index(name) for name in known if name in names), None)
        for what, known in _COLUMNS.items()
    }
    missing = [what for what, at in where.items() if at is None]
    if missing:
        raise FormatError(
            f"{str(path)!r} has no column {missing[0]!r} (its first line: {header!r:.80}): a table "
            "of positions has the columns file, y and x"
        )
    rows = []
    for number, line in lines[1:]:
        cells = next(csv.reader([line], delimiter=mark))
        try:
            file, y, x = (cells[where[what] or 0].strip() for what in ("file", "y", "x"))
        except IndexError:
            raise FormatError(
                f"{str(path)!r}, line {number}: {line!r:.80} has fewer columns than the first line"
            ) from None
        rows.append((f"{path.name}, line {number}", file, y, x))
    return rows
