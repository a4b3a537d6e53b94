"""``bioio-tk info``: what is in image files."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.text import plural, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.jobs.describe import FileInfo, LevelInfo, SeriesInfo

_MOST_CHANNELS = 12


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object a file.")
@click.pass_context
def command(ctx: click.Context, paths: tuple[str, ...], *, as_json: bool) -> None:
    """Show what is in image files.

    For every image in each PATH (a file, or a pattern such as "*.tif"): size, pixel type,
    channels, pixel size, resolutions, and how it is stored. A file that cannot be read is
    reported, and the others are shown all the same; the exit code is then 1.
    """
    from bioio_tk.api import describe
    from bioio_tk.cli.main import error_text
    from bioio_tk.errors import BioIOError

    found: list[dict[str, Any]] = []
    failed = False
    for number, path in enumerate(_files(paths)):
        try:
            info = describe(path)
        except (BioIOError, OSError) as exc:
            if ctx.find_root().params.get("debug"):
                raise
            failed = True
            found.append({"path": path, "error": error_text(exc)})
            if not as_json:
                click.echo(f"Error: {path}: {error_text(exc)}", err=True)
            continue
        found.append(info.to_dict())
        if not as_json:
            click.echo(("\n" if number else "") + "\n".join(_lines(info)))
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    if failed:
        ctx.exit(1)


def _files(paths: tuple[str, ...]) -> Iterator[str]:
    for path in paths:
        # most shells have done this already; a file whose name looks like a pattern is a file
        if glob.has_magic(path) and not Path(path).exists():
            yield from sorted(glob.glob(path, recursive=True)) or [path]  # noqa: PTH207
        else:
            yield path


def _lines(info: FileInfo) -> Iterator[str]:
    images = plural(len(info.series), "image")
    yield f"{info.path}: {images}, {size(info.bytes)} on disk"
    for series in info.series:
        name = f" {series.name!r}" if series.name else ""
        yield f"  image {series.series}{name}"
        for label, text in _rows(series):
            yield f"    {label:<12}{text}"
    for note in info.notes:
        yield f"  note: {note}"


def _rows(series: SeriesInfo) -> Iterator[tuple[str, str]]:
    y, x, z, c, t = series.shape
    yield "size", f"X {x}  Y {y}  Z {z}  C {c}  T {t}"
    rgb = f", {series.samples} samples a pixel" if series.samples > 1 else ""
    yield "pixels", f"{series.dtype}{rgb}, {size(series.pixel_bytes)} uncompressed"
    yield "pixel size", _pixel_size(series)
    if series.time_increment is not None:
        yield "time step", "{:g} {}".format(*series.time_increment)
    if any(channel["name"] for channel in series.channels):
        names = [channel["name"] or "-" for channel in series.channels[:: series.samples]]
        more = f" and {len(names) - _MOST_CHANNELS} more" if len(names) > _MOST_CHANNELS else ""
        yield "channels", ", ".join(names[:_MOST_CHANNELS]) + more
    yield "stored as", _stored(series.levels[0])
    if len(series.levels) > 1:
        yield "levels", ", ".join(f"{v.shape[1]} x {v.shape[0]}" for v in series.levels)


def _pixel_size(series: SeriesInfo) -> str:
    um = series.pixel_size_um()
    parts = [f"{axis.upper()} {um[axis]:.6g}" for axis in "xyz" if um[axis] is not None]
    if parts:
        return "  ".join(parts) + " µm"
    raw = [f"{axis.upper()} {v[0]:g} {v[1]}" for axis, v in series.pixel_size.items() if v]
    return "  ".join(raw) or "unknown"


def _stored(level: LevelInfo) -> str:
    height, width = level.tile
    shape = f"{width} x {height}"
    if level.storage == "strips":
        shape = plural(height, "row")
    kind = level.storage or "tiles"
    codec = "uncompressed" if level.compression in ("none", "") else level.compression
    return f"{kind} of {shape}, {codec}"
