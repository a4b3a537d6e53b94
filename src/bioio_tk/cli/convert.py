"""``bioio-tk convert``: an image of any size to OME-TIFF, OME-Zarr and more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.progress import Progress
from bioio_tk.cli.text import STORAGE_OPTION, duration, plural, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.jobs.convert import ConvertReport


_MOST_IMAGES = 6
_ZARR_ONLY = ("chunks", "shards", "ngff_version")


class _Sizes(click.ParamType[Any]):
    """Pixels, or pixels along several axes."""

    name = "pixels"

    def __init__(self, most: int, axes: str, none: bool = False) -> None:
        self._most = most
        self._axes = axes
        self._none = none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if self._none and value.lower() == "none":
            return False
        try:
            sizes = tuple(int(part) for part in value.lower().split("x"))
        except ValueError:
            sizes = ()
        if not 1 <= len(sizes) <= self._most:
            example = f"give pixels, for example 512, or {self._axes}: 512x1024"
            self.fail(f"{value!r}: {example}", param, ctx)
        return sizes if len(sizes) > 1 else sizes[0]


_CHUNKS = "Y x X [x Z [x C [x T]]]"


@click.command()
@click.argument("src")
@click.argument("dst")
@click.option(
    "--series",
    default="0",
    metavar="N|all",
    help="Which image of SRC, from 0 [0]; all makes "
    "one OME-Zarr of all (a plate of a plate), or a TIFF for each: DST with _s0, _s1 … before "
    "the ending.",
)
@click.option("--level", type=int, default=0, help="Which resolution of SRC to begin with [0].")
@click.option(
    "--compression",
    metavar="NAME",
    help="TIFF: deflate [default], zstd, lzw, lzma, packbits, jpeg, jpeg2000, jpegxl, lerc or "
    "none. OME-Zarr: zstd [default], blosc-zstd, blosc-lz4, gzip or none.",
)
@click.option("--compression-level", type=int, help="Level or quality, in the codec's own scale.")
@click.option(
    "--predictor/--no-predictor",
    default=None,
    help="TIFF: store differences of neighbouring pixels [as suits the codec].",
)
@click.option(
    "--tile-size",
    type=_Sizes(2, "height x width"),
    default=1024,
    help="Height and width of tiles or chunks, a multiple of 16 [1024].",
)
@click.option(
    "--ngff-version", metavar="VERSION", help="OME-Zarr: 0.5 [default, Zarr 3] or 0.4 [Zarr 2]."
)
@click.option(
    "--chunks",
    type=_Sizes(5, _CHUNKS),
    help=f"OME-Zarr: size of the chunks, {_CHUNKS}, in place of --tile-size.",
)
@click.option(
    "--shards",
    type=_Sizes(5, _CHUNKS, none=True),
    help=f"OME-Zarr 0.5: size of the shards, {_CHUNKS}, a multiple of the chunks, or none "
    "[where there would be very many files].",
)
@click.option(
    "--pyramid/--no-pyramid", default=True, help="Add smaller resolutions for viewers [yes]."
)
@click.option(
    "--pyramid-z/--no-pyramid-z",
    default=False,
    help="OME-Zarr: shrink along Z as well, until pixels are cubes [no].",
)
@click.option(
    "--levels",
    type=click.IntRange(1),
    help="Number of resolutions, the full one included [down to 256 pixels].",
)
@click.option(
    "--downsample",
    metavar="METHOD",
    help="mean [default], mode [default for labels], nearest, median or max.",
)
@click.option("--dtype", metavar="TYPE", help="Pixel type to convert to, for example uint8.")
@click.option(
    "--cast",
    metavar="HOW",
    help="How to convert pixels: exact [default: stop where a "
    "value does not fit], clip, scale or wrap. scale takes the full range of the type, not that "
    "of the pixels, to the full range of the new one.",
)
@click.option(
    "--group",
    default="",
    metavar="PATH",
    help="OME-Zarr: add the image to the store DST, as labels/NAME, as a series NAME or as a "
    "field ROW/COLUMN/FIELD of a plate.",
)
@click.option(
    "--labels/--no-labels",
    default=True,
    help="OME-Zarr: copy the label images of SRC, too [yes].",
)
@click.option("--storage-option", "storage_options", **STORAGE_OPTION)
@click.option("--overwrite", is_flag=True, help="Replace DST, once the new image is complete.")
@click.option("--workers", "max_workers", type=click.IntRange(1), help="Threads [one per CPU].")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print a report as JSON, one line an image.")
def command(src: str, dst: str, **options: Any) -> None:
    """Convert the image SRC to DST, an OME-TIFF, an OME-Zarr or another format, whatever its size.

    The ending of DST says the format: .ome.tif, .ome.zarr, .ozx, .ics … SRC is anything that can be
    read, also a URL. Pixels stay exactly as they are and metadata are carried over. DST appears
    when it is complete; if anything goes wrong, nothing is left behind.
    """
    from bioio_tk.cli.main import Interrupted

    quiet, as_json = options.pop("quiet"), options.pop("as_json")
    pyramid, levels = options.pop("pyramid"), options.pop("levels")
    options["pyramid"] = levels if levels is not None and pyramid else pyramid
    options["storage_options"] = dict(options["storage_options"]) or None
    series = options.pop("series")
    _check_usage(dst, series, options)
    if levels is not None and not pyramid:
        raise click.UsageError("--no-pyramid and --levels: give one of them")
    try:
        with Progress(Path(dst).name, quiet=quiet) as progress:
            reports = _convert(src, dst, series, progress=progress, **options)
    except KeyboardInterrupt:
        raise Interrupted(_left(dst)) from None
    if as_json:
        click.echo("\n".join(report.to_json() for report in reports))
    elif not quiet:
        click.echo("\n".join(_summaries(reports)))


def _check_usage(dst: str, series: str, options: dict[str, Any]) -> None:
    """Refuse what has no place with the target, in the words of the command line."""
    if "{series}" in Path(dst).name and series != "all":
        raise click.UsageError(f"{dst!r}: {{series}} is for --series all")
    given = [name for name in _ZARR_ONLY if options[name] is not None]
    if not given:
        return
    from bioio_tk.backends import registry
    from bioio_tk.core.location import locate

    if not registry.for_writing(locate(dst)).marks:
        hint = "; for TIFF use --tile-size" if given[0] == "chunks" else ""
        raise click.UsageError(f"--{given[0].replace('_', '-')} is for OME-Zarr{hint}")


def _convert(src: str, dst: str, series: str, **options: Any) -> list[ConvertReport]:
    from bioio_tk.api import convert, convert_series

    if series == "all":
        return convert_series(src, dst, **options)
    try:
        number = int(series)
    except ValueError:
        raise click.UsageError(f"--series {series!r}: give a number from 0, or all") from None
    return [convert(src, dst, series=number, **options)]


def _left(dst: str) -> str:
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
    levels = plural(report.levels, "resolution")
    yield f"{where}: {x} x {y}{more}, {report.dtype}, {levels}{labels}"
    if not together:
        out = f"file {size(report.bytes_out)}" if report.bytes_out else "sent to a server"
        yield (
            f"  {size(report.pixel_bytes)} of pixels in {duration(report.seconds)} "
            f"({size(report.speed)}/s); {out}{_before(report)}{_memory(report)}"
        )
    for note in report.notes:
        yield f"  note: {note}"


def _before(report: ConvertReport) -> str:
    return f", before {size(report.bytes_in)}" if report.bytes_in else ""


def _memory(report: ConvertReport) -> str:
    return "" if report.peak_rss is None else f"; peak memory {size(report.peak_rss)}"
