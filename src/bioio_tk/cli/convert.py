"""``bioio-tk convert``: an image of any size to OME-TIFF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.progress import Progress
from bioio_tk.cli.text import duration, plural, size

if TYPE_CHECKING:
    from bioio_tk.jobs.convert import ConvertReport


class _Tile(click.ParamType[Any]):
    """Pixels, or height x width."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            sizes = tuple(int(part) for part in str(value).lower().split("x"))
        except ValueError:
            sizes = ()
        if len(sizes) not in (1, 2):
            example = "give pixels, for example 512, or height x width: 512x1024"
            self.fail(f"{value!r}: {example}", param, ctx)
        return sizes if len(sizes) == 2 else sizes[0]


@click.command()
@click.argument("src")
@click.argument("dst")
@click.option(
    "--series",
    default="0",
    metavar="N|all",
    help="Which image of SRC, from 0 [0]; all "
    "writes a file for each: DST with _s0, _s1 … before the ending.",
)
@click.option("--level", type=int, default=0, help="Which resolution of SRC to begin with [0].")
@click.option(
    "--compression",
    metavar="NAME",
    help="deflate [default], zstd, lzw, lzma, packbits, jpeg, jpeg2000, jpegxl, lerc or none.",
)
@click.option("--compression-level", type=int, help="Level or quality, in the codec's own scale.")
@click.option(
    "--predictor/--no-predictor",
    default=None,
    help="Store differences of neighbouring pixels [as suits the codec].",
)
@click.option("--tile-size", type=_Tile(), default=1024, help="Multiple of 16 [1024].")
@click.option(
    "--pyramid/--no-pyramid", default=True, help="Add smaller resolutions for viewers [yes]."
)
@click.option(
    "--levels",
    type=click.IntRange(1),
    help="Number of resolutions, the full one included [down to 256 pixels].",
)
@click.option(
    "--downsample",
    metavar="METHOD",
    default="mean",
    help="mean [default], nearest, mode (for labels), median or max.",
)
@click.option("--dtype", metavar="TYPE", help="Pixel type to convert to, for example uint8.")
@click.option(
    "--cast",
    metavar="HOW",
    help="How to convert pixels: exact [default: stop where a "
    "value does not fit], clip, scale or wrap.",
)
@click.option("--overwrite", is_flag=True, help="Replace DST, once the new image is complete.")
@click.option("--workers", "max_workers", type=int, help="Threads [one per CPU].")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print a report as JSON, one line a file.")
def command(src: str, dst: str, **options: Any) -> None:
    """Convert the image SRC to the OME-TIFF DST, whatever its size.

    Pixels stay exactly as they are and metadata are carried over. DST appears when it is
    complete; if anything goes wrong, nothing is left behind.
    """
    from bioio_tk.cli.main import Interrupted

    quiet, as_json = options.pop("quiet"), options.pop("as_json")
    pyramid, levels = options.pop("pyramid"), options.pop("levels")
    options["pyramid"] = levels if levels is not None and pyramid else pyramid
    series = options.pop("series")
    try:
        with Progress(Path(dst).name, quiet=quiet) as progress:
            reports = _convert(src, dst, series, progress=progress, **options)
    except KeyboardInterrupt:
        raise Interrupted(_left(dst)) from None
    for report in reports:
        if as_json:
            click.echo(report.to_json())
        elif not quiet:
            click.echo("\n".join(_summary(report)))


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


def _summary(report: ConvertReport) -> list[str]:
    y, x, z, c, t = report.shape
    more = "".join(f", {axis} {n}" for axis, n in (("Z", z), ("C", c), ("T", t)) if n > 1)
    lines = [
        f"{report.target}: {x} x {y}{more}, {report.dtype}, {plural(report.levels, 'resolution')}",
        f"  {size(report.pixel_bytes)} of pixels in {duration(report.seconds)} "
        f"({size(report.speed)}/s); file {size(report.bytes_out)}, before {size(report.bytes_in)}"
        + ("" if report.peak_rss is None else f"; peak memory {size(report.peak_rss)}"),
    ]
    return lines + [f"  note: {note}" for note in report.notes]
