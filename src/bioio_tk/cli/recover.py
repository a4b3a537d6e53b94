"""``bioio-tk recover``: keep what an interrupted write has left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bioio_tk.core.text import plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.jobs.recover import Plane, RecoverReport

_MOST = 8


@click.command()
@click.argument("path")
@click.option("--overwrite", is_flag=True, help="Replace the file that is there.")
@click.option("--dry-run", is_flag=True, help="Only say what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(path: str, *, overwrite: bool, dry_run: bool, as_json: bool) -> None:
    """Keep what an interrupted write has left.

    PATH is the file or OME-Zarr that was to be written, or what was left, with .partial at the
    end of its name. It is moved to its place; what was not yet written reads as 0. (Chunks of an
    OME-Zarr that are all 0 are never stored, so they count as missing.)
    """
    from bioio_tk.api import recover

    report = recover(path, overwrite=overwrite, dry_run=dry_run)
    click.echo(report.to_json() if as_json else "\n".join(_lines(report)))


def _lines(report: RecoverReport) -> Iterator[str]:
    y, x, z, c, t = report.shape
    place = report.target if report.moved else report.partial
    yield f"{place}: X {x}  Y {y}  Z {z}  C {c}  T {t}, {report.dtype}"
    stored, count = report.tiles[0]
    yield f"  {stored} of {plural(count, 'tile')} stored ({stored / count:.1%})"
    if len(report.complete) == report.planes:
        yield f"  {plural(report.planes, 'plane')}: complete"
    elif report.planes > 1:
        yield f"  {len(report.complete)} of {plural(report.planes, 'plane')} complete" + _named(
            report.complete
        )
    if any(a < b for a, b in report.tiles[1:]):
        yield "  the smaller resolutions are not complete; 'bioio-tk convert' makes them anew"
    if not report.moved:
        yield "  nothing was moved (--dry-run)"


def _named(planes: tuple[Plane, ...]) -> str:
    if not planes:
        return ""
    first = ", ".join(f"Z {p.z} C {p.c} T {p.t}" for p in planes[:_MOST])
    return f": {first}" + (" …" if len(planes) > _MOST else "")
