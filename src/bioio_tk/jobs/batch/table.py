"""Tables of jobs: CSV or TSV, a row for each, with a column for every option that differs."""

from __future__ import annotations

import csv
import difflib
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bioio_tk.core.location import Url, locate
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUFFIXES = (".csv", ".tsv")
_SIZES = re.compile(r"\d+(x\d+)+")


class Row(NamedTuple):
    """One row of a table.

    Attributes
    ----------
    source : str
        Path or URL; relative paths are relative to the table.
    target : str or None
        Likewise; None where the row has none.
    options : dict
        Keywords of `convert`.
    where : str
        Which row of which table, for messages.
    """

    source: str
    target: str | None
    options: dict[str, Any]
    where: str


def read_table(path: Path, options: dict[str, inspect.Parameter]) -> list[Row]:
    """Return the jobs of a table.

    Parameters
    ----------
    path : Path
        The table: CSV with commas or semicolons, or TSV. The first line names the columns: ``src``,
        ``dst`` and options. An empty cell is an option that is not given.
    options : dict
        The options there are, by name.

    Raises
    ------
    SpecError
        A column or a value that cannot be understood; the message names row and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise SpecError(f"{str(path)!r} is no table in UTF-8: {exc}") from exc
    head = text.partition("\n")[0]
    sign = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    rows = csv.DictReader(text.splitlines(), delimiter=sign, strict=True)
    columns = [column.strip() for column in rows.fieldnames or ()]
    _check_columns(path, columns, options)
    rows.fieldnames = columns
    try:
        found = list(_rows(path, rows, options))
    except csv.Error as exc:
        raise SpecError(f"{str(path)!r}, line {rows.line_num}: {exc}") from exc
    if not found:
        raise SpecError(f"{str(path)!r} has no jobs: below the names of the columns goes one a row")
    return found


def _check_columns(path: Path, columns: list[str], options: dict[str, Any]) -> None:
    if "src" not in columns:
        raise SpecError(
            f"{str(path)!r} has no column 'src' (it has {', '.join(map(repr, columns)) or 'none'}):"
            " the first line names the columns src, dst and options of convert"
        )
    twice = next((c for c in columns if columns.count(c) > 1), None)
    if twice is not None:
        raise SpecError(f"{str(path)!r}, row 1: there are two columns {twice!r}")
    for column in columns:
        if column not in ("src", "dst", *options):
            near = difflib.get_close_matches(column, ("src", "dst", *options), 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(options)}"
            raise SpecError(f"{str(path)!r}, row 1: column {column!r} is no option{hint}")


def _rows(
    path: Path, rows: csv.DictReader[str], options: dict[str, inspect.Parameter]
) -> Iterator[Row]:
    for row in rows:
        where = f"{str(path)!r}, row {rows.line_num}"
        if None in row:
            raise SpecError(f"{where}: there are more cells than columns")
        cells = {column: (cell or "").strip() for column, cell in row.items()}
        if not any(cells.values()):
            continue
        source, target = cells.pop("src"), cells.pop("dst", "")
        if not source:
            raise SpecError(f"{where}: column 'src' is empty")
        given = {
            column: value(cell, options[column], f"{where}, column {column!r}")
            for column, cell in cells.items()
            if cell
        }
        beside = _beside(path)
        yield Row(beside(source), beside(target) if target else None, given, where)


def _beside(table: Path) -> Callable[[str], str]:
    """Return what makes a path of a table: a relative one is relative to the table."""

    def path(text: str) -> str:
        found = locate(text)
        return str(found) if isinstance(found, Url) else str(table.parent / found)

    return path


def value(text: str, option: inspect.Parameter, where: str) -> Any:
    """Return the value that a cell means; SpecError where the option cannot be that.

    Numbers, true, false, none and JSON lists are what they look like, 512x1024 is two numbers,
    and everything else is text.
    """
    kinds = {kind.partition("[")[0].strip() for kind in str(option.annotation).split("|")}
    found = _literal(text)
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        wanted = {"int", "float"} if isinstance(found, int) else {"float"}
        if "str" in kinds and not kinds & wanted:
            return text  # a version: 0.5
    allowed = _ALLOWED.get(type(found), set())
    if kinds & allowed or kinds & {"Any", "object"} or found is None:
        return found
    raise SpecError(f"{where}: {text!r} does not fit; it takes {option.annotation}")


_ALLOWED: dict[type, set[str]] = {
    bool: {"bool"},
    int: {"int", "float"},
    float: {"float"},
    str: {"str", "os.PathLike", "Path"},
    tuple: {"tuple", "Sequence", "list", "Iterable"},
    list: {"tuple", "Sequence", "list", "Iterable"},
    dict: {"dict", "Mapping"},
}


def _literal(text: str) -> Any:
    if _SIZES.fullmatch(text.lower()):
        return tuple(map(int, text.lower().split("x")))
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return None if text.lower() in ("none", "null") else text
