"""``bioio-tk convert``: an image of any size to OME-TIFF, OME-Zarr and more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.main import Interrupted, as_typed
from bioio_tk.cli.options import check_both, conversion, given
from bioio_tk.core.text import duration, plural, size
from bioio_tk.jobs.bar import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.jobs.report import ConvertReport


_MOST_IMAGES = 6
_ZARR_ONLY = ("chunks", "shards", "ngff_version", "bdv_xml")


@click.command()
@click.argument("src", nargs=-1, metavar="SRC...")
@click.argument("dst")
@conversion
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print a report as JSON, one line an image.")
def command(src: tuple[str, ...], dst: str, **options: Any) -> None:
    """Convert the image SRC to DST, an OME-TIFF, an OME-Zarr or another format, whatever its size.

    The ending of DST says the format: .ome.tif, .ome.zarr, .ozx, .h5, .xml (BigDataViewer), .npy,
    .ics … SRC is anything that can be read, also a URL; several files, or a pattern such as
    'img_t{t}_c{c}.tif', are put together. Pixels stay exactly as they are and metadata are carried
    over. DST appears when it is complete; if anything goes wrong, nothing is left behind.
    """
    check_both(src, dst)
    quiet, as_json = options.pop("quiet"), options.pop("as_json")
    series = options.pop("series")
    kept = given(options)
    _check_usage(dst, series, kept)
    source = src[0] if len(src) == 1 else list(src)
    try:
        with Progress(Path(dst).name, quiet=quiet) as progress:
            reports = _convert(source, dst, series, progress=progress, **kept)
    except KeyboardInterrupt as exc:
        raise Interrupted(_left(dst, getattr(exc, "__notes__", []), kept)) from None
    if as_json:
        click.echo("\n".join(report.to_json() for report in reports))
    elif not quiet:
        click.echo("\n".join(_summaries(reports)))


def _check_usage(dst: str, series: str | None, options: dict[str, Any]) -> None:
    """Refuse what has no place with the target, in the words of the command line."""
    if "{series}" in Path(dst).name and series != "all":
        raise click.UsageError(f"{dst!r}: {{series}} is for --series all")
    if options.get("pyramid") is False and "levels" in options:
        raise click.UsageError("--no-pyramid and --levels: give one of them")
    only = [name for name in _ZARR_ONLY if options.get(name) is not None]
    if not only or options.get("ext"):
        return
    from bioio_tk.backends import registry
    from bioio_tk.core.location import locate

    row = registry.for_writing(locate(dst))
    if row.gathers:  # BigDataViewer has blocks, but no shards
        only = [name for name in only if name != "chunks"]
    if only and not row.marks:
        hint = "; for TIFF use --tile-size" if only[0] == "chunks" else ""
        raise click.UsageError(f"--{only[0].replace('_', '-')} is for OME-Zarr{hint}")


def _convert(src: Any, dst: str, series: str | None, **options: Any) -> list[ConvertReport]:
    from bioio_tk.api import convert, convert_series

    if series == "all":
        return convert_series(src, dst, **options)
    try:
        number = None if series is None else int(series)
    except ValueError:
        raise click.UsageError(f"--series {series!r}: give a number from 0, or all") from None
    if "roi_mode" in options or "roi" in options:
        report = convert(src, dst, series=number or None, **options)
        return list(report.parts) or [report]
    return [convert(src, dst, series=number, **options)]


def _left(dst: str, notes: list[str], options: dict[str, Any]) -> str:
    """Say what an interrupted conversion has left; what can be gone on with, a note tells."""
    if notes:
        return f"{dst!r} is as it was before; {as_typed(notes[0])}"
    if "shard_job" in options:
        return f"the other parts of {dst!r} are not touched: do this one again"
    partial = Path(dst + ".partial")
    if partial.exists():
        return f"{dst!r} is as it was before; {str(partial)!r} was left and can be deleted"
    return f"{dst!r} is as it was before, nothing unfinished was left"


def _summaries(reports: list[ConvertReport]) -> Iterator[str]:
    first = reports[0]
    together = len(reports) > 1 and all(report.target == first.target for report in reports)
    for report in reports[: _MOST_IMAGES if together else None]:
        yield from _summary(report, together=together)
    if not together:
        return
    if len(reports) > _MOST_IMAGES:
        yield f"  and {len(reports) - _MOST_IMAGES} more"
    if first.status == "skipped":  # all of them are
        return
    pixels, seconds, out = (
        sum(getattr(report, name) for report in reports)
        for name in ("pixel_bytes", "seconds", "bytes_out")
    )
    yield (
        f"{first.target}: {len(reports)} images, {size(pixels)} of pixels in {duration(seconds)} "
        f"({size(pixels / max(seconds, 1e-9))}/s); {size(out)}{_before(first)}"
        f"{_memory(reports[-1])}"
    )


def _summary(report: ConvertReport, *, together: bool) -> Iterator[str]:
    y, x, z, c, t = report.shape
    more = "".join(f", {axis} {n}" for axis, n in (("Z", z), ("C", c), ("T", t)) if n > 1)
    where = f"{report.target}/{report.group}" if report.group else report.target
    labels = f", with labels {', '.join(report.labels)}" if report.labels else ""
    if report.status == "skipped":
        yield f"{where}: skipped, it was made from the same source with the same options"
        return
    levels = plural(report.levels, "resolution")
    yield f"{where}: {x} x {y}{more}, {report.dtype}, {levels}{labels}"
    if report.status == "planned":
        yield from _planned(report)
    elif report.status == "partial":
        yield f"  {size(report.pixel_bytes)} of pixels in {duration(report.seconds)}"
    elif not together:
        out = f"file {size(report.bytes_out)}" if report.bytes_out else "sent to a server"
        yield (
            f"  {size(report.pixel_bytes)} of pixels in {duration(report.seconds)} "
            f"({size(report.speed)}/s); {out}{_before(report)}{_memory(report)}"
        )
    if report.verified:
        yield f"  verified: {report.verified}"
    for note in report.notes:
        yield f"  note: {as_typed(note)}"


def _planned(report: ConvertReport) -> Iterator[str]:
    plan = report.plan
    for level in plan["resolutions"]:
        y, x, *_ = level["shape"]
        yield f"  {x} x {y} in tiles of {level['tile'][1]} x {level['tile'][0]}"
    room = "" if plan["free_bytes"] is None else f"; {size(plan['free_bytes'])} are free there"
    yield (
        f"  nothing was written: {size(plan['pixel_bytes'])} of pixels would become about "
        f"{size(plan['estimated_bytes'])} in about {duration(plan['estimated_seconds'])} "
        f"(a sample of {size(plan['sampled_bytes'])} was converted){room}"
    )


def _before(report: ConvertReport) -> str:
    return f", before {size(report.bytes_in)}" if report.bytes_in else ""


def _memory(report: ConvertReport) -> str:
    return "" if report.peak_rss is None else f"; peak memory {size(report.peak_rss)}"
