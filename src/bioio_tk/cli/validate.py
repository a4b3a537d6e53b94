"""``bioio-tk validate``: whether image files are what their format asks for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.text import plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.jobs.validate import ValidationReport


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--pixels", is_flag=True, help="Decode every chunk or tile, too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object a file.")
@click.pass_context
def command(ctx: click.Context, paths: tuple[str, ...], *, pixels: bool, as_json: bool) -> None:
    """Check that image files are what their format asks for.

    Each PATH is an OME-Zarr (a folder or a zip), an OME-TIFF or another TIFF. The exit code is 0
    where all are valid, warnings or not, and 1 where one has errors or cannot be read.
    """
    from bioio_tk.cli.main import error_text
    from bioio_tk.errors import BioIOError
    from bioio_tk.jobs.validate import validate

    found: list[dict[str, Any]] = []
    failed = False
    for path in paths:
        try:
            report = validate(path, pixels=pixels)
        except (BioIOError, OSError) as exc:
            if ctx.find_root().params.get("debug"):
                raise
            failed = True
            found.append({"path": path, "ok": False, "error": error_text(exc)})
            if not as_json:
                click.echo(f"Error: {path}: {error_text(exc)}", err=True)
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
    for problem in report.problems:
        where = f"{problem.where}: " if problem.where else ""
        yield f"  {problem.severity}: {where}{problem.message}"
