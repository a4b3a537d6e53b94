"""``bioio-tk info``: what is in image files."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.text import STORAGE_OPTION, files
from bioio_tk.core.text import plural, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bioio_tk.jobs.describe import FileInfo, LevelInfo, PlateInfo, SeriesInfo, ViewsInfo

_MOST_CHANNELS = 12
_MOST_NAMES = 4


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object a file.")
@click.option(
    "--images",
    type=click.IntRange(1),
    help="How many images of a file to show [all of a TIFF, the first 6 of an OME-Zarr or a "
    "plate, the first 100 of other formats].",
)
@click.option(
    "--original-metadata",
    is_flag=True,
    help="Show also what the vendor wrote: tags, attributes, settings of the microscope.",
)
@click.option("--storage-option", "storage_options", **STORAGE_OPTION)
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[str, ...],
    *,
    as_json: bool,
    images: int | None,
    original_metadata: bool,
    storage_options: tuple[tuple[str, Any], ...],
) -> None:
    """Show what is in image files.

    For every image in each PATH (a file, an OME-Zarr folder or zip, a URL, or a pattern such as
    "*.tif"): size, pixel type, channels, pixel size, resolutions, and how it is stored; for an
    OME-Zarr also plate and labels, for BigDataViewer the views. A file that cannot be read is
    reported, and the others are shown all the same; the exit code is then 1.
    """
    from bioio_tk.api import describe
    from bioio_tk.cli.main import error_text, file_error
    from bioio_tk.errors import BioIOError

    found: list[dict[str, Any]] = []
    failed = False
    for number, path in enumerate(files(paths)):
        try:
            info = describe(
                path,
                images=images,
                original_metadata=original_metadata,
                storage_options=dict(storage_options),
            )
        except (BioIOError, OSError) as exc:
            if ctx.find_root().params.get("debug"):
                raise
            failed = True
            found.append({"path": path, "error": error_text(exc)})
            if not as_json:
                click.echo(f"Error: {file_error(path, exc)}", err=True)
            continue
        found.append(info.to_dict())
        if not as_json:
            click.echo(("\n" if number else "") + "\n".join(_lines(info)))
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    if failed:
        ctx.exit(1)


def _lines(info: FileInfo) -> Iterator[str]:
    yield f"{info.path}: {', '.join(_title(info))}"
    yield f"  read by {info.backend}: {info.backend_reason}"
    if info.used_files:
        yield f"  {_used(info)}"
    if info.plate is not None:
        yield f"  {_plate(info.plate)}"
    yield from (f"  {line}" for line in _views(info.views))
    for series in info.series:
        place = f" at {series.path}" if info.layout in ("series", "plate", "labels") else ""
        name = f" {series.name!r}" if series.name else ""
        yield f"  image {series.series}{name}{place}"
        for label, text in _rows(series):
            yield f"    {label:<12}{text}"
    if info.images > len(info.series):
        yield f"  and {info.images - len(info.series)} more"
    for note in info.notes:
        yield f"  note: {note}"
    if info.original_metadata is not None:
        yield "  original metadata"
        for name, value in info.original_metadata.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"    {name}: {' '.join(text.split())}"


def _title(info: FileInfo) -> Iterator[str]:
    """Yield what the whole is: its format and layout, how many images, how large."""
    if info.layout:
        first = info.series[0]
        ngff = f"OME-Zarr {first.ngff_version}" if first.ngff_version else "Zarr"
        yield f"{ngff} (Zarr {first.zarr_format}), {info.layout}"
    if info.format:
        yield info.format
    yield plural(info.images, "image")
    if info.bytes is not None:
        several = info.layout or info.used_files
        files = f" in {plural(info.files, 'file')}" if several and info.files else ""
        yield f"{size(info.bytes)} on disk{files}"
    elif "://" not in info.path:
        yield "more than 10000 files"


def _used(info: FileInfo) -> str:
    """Return the names of the first few files that belong to the image."""
    names = [re.split(r"[\\/]", path)[-1] for path in info.used_files[:_MOST_NAMES]]
    left = len(info.used_files) - len(names)
    return f"files: {', '.join(names)}" + (f" and {left} more" if left > 0 else "")


def _plate(plate: PlateInfo) -> str:
    name = f" {plate.name!r}" if plate.name else ""
    rows, columns = plural(len(plate.rows), "row"), plural(len(plate.columns), "column")
    wells = plural(plate.wells, "well") + " with images"
    return f"plate{name}: {rows} x {columns}, {wells}, {plural(plate.fields, 'field')} a well"


def _views(views: ViewsInfo | None) -> Iterator[str]:
    """Yield what is to be said of the views of a BigDataViewer dataset."""
    if views is None:
        return
    missing = f", {views.missing} missing" if views.missing else ""
    times, setups = plural(views.times, "time point"), plural(views.setups, "setup")
    yield f"{plural(views.count, 'view')}: {times} x {setups}{missing}"
    for kind, names in views.attributes.items():
        yield f"{plural(len(names), kind)}: {_listed(names)}"
    if views.affine is None:
        yield "no transforms"
        return
    named = [name for name in views.transforms if name]
    said = f" ({', '.join(named)})" if named else ""
    rows = "; ".join(" ".join(f"{number:g}" for number in row) for row in views.affine)
    yield f"{plural(views.affines, 'affine')}{said}, of the first view: {rows}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_CHANNELS} more" if len(names) > _MOST_CHANNELS else ""
    return ", ".join(names[:_MOST_CHANNELS]) + more


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
        yield "channels", _listed(names)
    if series.zarr_format is not None:
        yield from _arrays(series)
        return
    said = series.levels[0].compression != "unknown"
    yield "stored as" if said else "read in", _stored(series.levels[0])
    if len(series.levels) > 1:
        yield "levels", ", ".join(_level_size(v, series) for v in series.levels)


def _level_size(level: LevelInfo, series: SeriesInfo) -> str:
    z = f" x {level.shape[2]}" if series.levels[-1].shape[2] != series.shape[2] else ""
    return f"{level.shape[1]} x {level.shape[0]}{z}"


def _arrays(series: SeriesInfo) -> Iterator[tuple[str, str]]:
    """Yield the Zarr arrays of an image, and its labels."""
    yield "axes", " ".join(series.stored_axes)
    for number, level in enumerate(series.levels):
        z = f" x {level.shape[2]}" if level.shape[2] != series.shape[2] else ""
        shards = f", shards {_sizes(level.shard)}" if level.shard else ""
        name = level.path.rpartition("/")[2]
        yield (
            f"level {number}",
            f"{level.shape[1]} x {level.shape[0]}{z}"
            + (f" in {name!r}" if name and name != str(number) else "")
            + f": chunks {_sizes(level.chunk)}{shards}, {_codec(level)}",
        )
    for labels in series.labels:
        shapes = ", ".join(f"{v.shape[1]} x {v.shape[0]}" for v in labels.levels)
        yield "labels", f"{labels.name}, {labels.dtype}, {shapes}"


def _sizes(sizes: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, sizes or ()))


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
    elif level.chunk:
        shape = _sizes(level.chunk[::-1])
    kind = level.storage or "tiles"
    codec = "" if level.compression == "unknown" else f", {_codec(level)}"
    return f"{kind} of {shape}{codec}"


def _codec(level: LevelInfo) -> str:
    return "uncompressed" if level.compression in ("none", "") else level.compression
