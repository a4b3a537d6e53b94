"""``bioio-tk recover``: keep what an interrupted write or acquisition has left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bioio_tk.core.text import plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.jobs.recover import Plane, RecoverReport
    from bioio_tk.stream.recover import StreamReport

_MOST = 8


@click.command()
@click.argument("path")
@click.option("--overwrite", is_flag=True, help="Replace the file that is there.")
@click.option("--dry-run", is_flag=True, help="Only say what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(path: str, *, overwrite: bool, dry_run: bool, as_json: bool) -> None:
    """Keep what an interrupted write or acquisition has left.

    PATH is the file or OME-Zarr that was to be written, or what was left, with .partial at the
    end of its name. It is moved to its place; what was not yet written reads as 0. (Chunks of an
    OME-Zarr that are all 0 are never stored, so they count as missing.)

    Of an acquisition it is the file or folder that the frames went to. It stays where it is; its
    sizes and metadata are completed.
    """
    from bioio_tk.api import recover
    from bioio_tk.stream.recover import StreamReport

    report = recover(path, overwrite=overwrite, dry_run=dry_run)
    if as_json:
        click.echo(report.to_json())
        return
    lines = _of_stream(report) if isinstance(report, StreamReport) else _lines(report)
    click.echo("\n".join(lines))


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


def _of_stream(report: StreamReport) -> Iterator[str]:
    of_all = "" if report.planned is None else f" of {report.planned}"
    skipped = f", {report.skipped} skipped" if report.skipped else ""
    yield f"{report.target}: {report.frames}{of_all} frames{skipped}, {report.dtype}"
    for image in report.images[:_MOST]:
        y, x, z, c, t = image.shape
        missing = z * c * t - image.planes
        left = f", {missing} not taken any more" if missing else ""
        left += f", {image.skipped} skipped" if image.skipped else ""
        yield (
            f"  {image.position}: X {x}  Y {y}  Z {z}  C {c}  T {t}, "
            f"{plural(image.planes - image.skipped, 'plane')}{left}"
        )
    if len(report.images) > _MOST:
        yield f"  and {plural(len(report.images) - _MOST, 'position')} more"
    if report.uncertain:
        yield (
            f"  the machine was started anew since: the last {plural(report.uncertain, 'frame')} "
            "may not have reached the disk before; look at them"
        )
    if not report.finished:
        yield "  nothing was changed (--dry-run)"


def _named(planes: tuple[Plane, ...]) -> str:
    if not planes:
        return ""
    first = ", ".join(f"Z {p.z} C {p.c} T {p.t}" for p in planes[:_MOST])
    return f": {first}" + (" …" if len(planes) > _MOST else "")
