"""``bioio-tk metadata``: names, colours and pixel sizes, changed in place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.text import STORAGE_OPTION

if TYPE_CHECKING:
    from bioio_tk.jobs.metadata import MetadataReport

_QUANTITY = re.compile(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(.*?)\s*")
_ONE = re.compile(r"(channel_name|channel_color)\.(\d+)")
_DEFAULT_UNITS = {"time_increment": "s"}
_SERIES = click.option("--series", type=click.IntRange(0), default=0, help="Which image [0].")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Show or change names, colours and pixel sizes; no pixel is rewritten.

    Keys are name, channel_names, channel_colors, physical_size_x, physical_size_y,
    physical_size_z and time_increment; channel_name.0 and channel_color.0 are those of one
    channel, counted from 0.
    """


@command.command()
@click.argument("path", metavar="FILE")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@_SERIES
@_JSON
@click.option("--storage-option", "--storage-options", "storage_options", **STORAGE_OPTION)
def get(
    path: str,
    keys: tuple[str, ...],
    *,
    series: int,
    as_json: bool,
    storage_options: tuple[tuple[str, Any], ...],
) -> None:
    """Show what is known of an image, or some of it, whatever its format.

    One value alone is printed as it is; several have their key before them.
    """
    from bioio_tk.jobs.metadata import get_metadata

    found = get_metadata(path, series=series, storage_options=dict(storage_options))
    wanted = {key: _look_up(found, key) for key in keys or found}
    if as_json:
        click.echo(json.dumps(wanted, ensure_ascii=False))
    elif len(keys) == 1:
        click.echo(_text(keys[0], wanted[keys[0]]))
    else:
        click.echo("\n".join(f"{key}: {_text(key, value)}" for key, value in wanted.items()))


@command.command("set")
@click.argument("path", metavar="FILE")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@_SERIES
@_JSON
def set_(path: str, pairs: tuple[str, ...], *, series: int, as_json: bool) -> None:
    """Change an OME-TIFF or OME-Zarr where it lies, in no time, however large it is.

    For example: channel_names=DAPI,GFP channel_name.2="far red" channel_color.0=#0000ff
    physical_size_x=0.65um time_increment=30s name="cells". A length without a unit is in µm, a
    time in s; nothing after the = means "not known".
    """
    from bioio_tk.jobs.metadata import set_metadata

    values: dict[str, Any] = {}
    for pair in pairs:
        _take(values, pair)
    _tell(set_metadata(path, series=series, **values), as_json=as_json)


@command.command()
@click.argument("path", metavar="FILE")
@click.option("--set", "new", metavar="FILE.xml", help="Put this document in its place.")
@_JSON
@click.option("--storage-option", "--storage-options", "storage_options", **STORAGE_OPTION)
@click.pass_context
def xml(
    ctx: click.Context,
    /,
    path: str,
    *,
    new: str | None,
    as_json: bool,
    storage_options: tuple[tuple[str, Any], ...],
) -> None:
    """Print the OME-XML of a file, or put another document into its place."""
    from bioio_tk.jobs.metadata import ome_xml, set_ome_xml

    if new is not None:
        _tell(set_ome_xml(path, Path(new).read_bytes()), as_json=as_json)
        return
    found = ome_xml(path, storage_options=dict(storage_options))
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    elif found is None:
        click.echo(f"{path} has no OME-XML.", err=True)
        ctx.exit(1)
    else:
        click.echo(found)


def _tell(report: MetadataReport, *, as_json: bool) -> None:
    if as_json:
        click.echo(report.to_json())
        return
    for file in report.files:
        click.echo(f"{file}: changed")
    for note in report.notes:
        click.echo(f"  note: {note}")


def _look_up(found: dict[str, Any], key: str) -> Any:
    one = _ONE.fullmatch(key)
    if one is not None:
        values = found[f"{one[1]}s"]
        if int(one[2]) < len(values):
            return values[int(one[2])]
        raise click.UsageError(f"{key}: there are the channels 0 to {len(values) - 1}")
    if key not in found:
        raise click.UsageError(f"{key!r} is none of {', '.join(found)}")
    return found[key]


def _take(values: dict[str, Any], pair: str) -> None:
    """Enter KEY=VALUE into the keywords of `set_metadata`."""
    key, sign, text = pair.partition("=")
    if not sign:
        raise click.UsageError(f"{pair!r}: give KEY=VALUE, for example name=cells")
    one = _ONE.fullmatch(key)
    if one is not None:
        several = values.setdefault(f"{one[1]}s", {})
        if not isinstance(several, dict):
            several = values[f"{one[1]}s"] = dict(enumerate(several))
        several[int(one[2])] = text or None
    elif key in ("channel_names", "channel_colors"):
        listed = [part.strip() or None for part in text.split(",")]
        values[key] = dict(enumerate(listed)) | values[key] if key in values else listed
    elif key.startswith("physical_size_") or key == "time_increment":
        values[key] = _quantity(key, text)
    else:
        values[key] = text or None


def _quantity(key: str, text: str) -> tuple[float, str] | None:
    if not text.strip():
        return None
    found = _QUANTITY.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        return float(found[1]), found[2] or _DEFAULT_UNITS.get(key, "µm")
    except ValueError:
        raise click.UsageError(f"{key}={text!r}: give a number and a unit, as in 0.65um") from None


def _text(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ",".join(_text(key, part) for part in value)
    if isinstance(value, tuple) and len(value) == 2:
        return f"{value[0]:g} {value[1]}"
    if isinstance(value, tuple):
        return "#" + "".join(f"{part:02x}" for part in value[: 3 if value[3] == 255 else 4])
    return str(value)
