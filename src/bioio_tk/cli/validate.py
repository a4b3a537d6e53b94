"""``bioio-tk validate``: whether image files are what their format asks for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.text import STORAGE_OPTION, files
from bioio_tk.core.text import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bioio_tk.jobs.validate import Problem, ValidationReport


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--pixels", is_flag=True, help="Decode every chunk or tile, too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object a file.")
@click.option("--storage-option", "storage_options", **STORAGE_OPTION)
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[str, ...],
    *,
    pixels: bool,
    as_json: bool,
    storage_options: tuple[tuple[str, Any], ...],
) -> None:
    """Check that image files are what their format asks for.

    Each PATH is an OME-Zarr (a folder, a zip or a URL), an OME-TIFF or another TIFF, or a pattern
    such as "*.zarr". The exit code is 0 where all are valid, warnings or not, and 1 where one has
    errors or cannot be read.
    """
    from bioio_tk.cli.main import error_text, file_error
    from bioio_tk.errors import BioIOError
    from bioio_tk.jobs.validate import validate

    found: list[dict[str, Any]] = []
    failed = False
    for path in files(paths):
        try:
            report = validate(path, pixels=pixels, storage_options=dict(storage_options))
        except (BioIOError, OSError) as exc:
            if ctx.find_root().params.get("debug"):
                raise
            failed = True
            found.append({"path": path, "ok": False, "error": error_text(exc)})
            if not as_json:
                click.echo(f"Error: {file_error(path, exc)}", err=True)
            continue
        failed = failed or not report.ok
        found.append(report.to_dict())
        if not as_json:
            click.echo("\n".join(_lines(report)))
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    if failed:
        ctx.exit(1)


def _lines(report: ValidationReport) -> Iterator[str]:
    errors = sum(problem.severity == "error" for problem in report.problems)
    warnings = len(report.problems) - errors
    verdict = "valid" if report.ok else f"NOT valid, {plural(errors, 'error')}"
    more = f", {plural(warnings, 'warning')}" if warnings else ""
    unit = "chunk" if "Zarr" in report.format else "tile"
    read = "" if report.pixels is None else f", {plural(report.pixels, unit)} decoded"
    yield f"{report.path}: {report.format}, {verdict}{more}{read}"
    for (severity, _, message), same in _alike(report.problems).items():
        where = f"{same[0].where}: " if same[0].where else ""
        more = f" (and at {plural(len(same) - 1, 'more place')})" if len(same) > 1 else ""
        yield f"  {severity}: {where}{message}{more}"


def _alike(problems: Iterable[Problem]) -> dict[tuple[str, str, str], list[Problem]]:
    """Return problems by their line: a plate has the same warning for each of its images."""
    found: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        where = problem.where if problem.severity == "error" else ""
        found.setdefault((problem.severity, where, problem.message), []).append(problem)
    return found
