"""``bioio-tk thumbnail``: a small picture."""

from __future__ import annotations

from typing import Any

import click

from bioio_tk.cli.text import STORAGE_OPTION
from bioio_tk.jobs.bar import Progress


@click.command()
@click.argument("path")
@click.argument("png", metavar="OUT.PNG")
@click.option("--size", type=click.IntRange(1), default=512, help="Longer side in pixels [512].")
@click.option("--series", type=int, default=0, help="Which image of the file, from 0 [0].")
@click.option("--z", type=int, help="Which focal plane, from 0 [the middle one].")
@click.option("--t", type=int, default=0, help="Which time point, from 0 [0].")
@click.option(
    "--channel",
    "channels",
    type=int,
    multiple=True,
    help="Which channel, from 0; may be given several times [the first seven].",
)
@click.option("--legend", is_flag=True, help="Add channel names and a scale bar.")
@click.option("--storage-option", "storage_options", **STORAGE_OPTION)
@click.option("--overwrite", is_flag=True, help="Replace OUT.PNG.")
@click.option("--workers", "max_workers", type=click.IntRange(1), help="Threads [one per CPU].")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(path: str, png: str, **options: Any) -> None:
    """Make a small PNG picture of an image, whatever its size.

    Channels are shown together, each in its colour and stretched so that it can be seen; RGB is
    shown as it is.
    """
    quiet = options.pop("quiet")
    options["channels"] = options["channels"] or None
    options["storage_options"] = dict(options["storage_options"]) or None
    from bioio_tk.api import thumbnail

    with Progress("reading", quiet=quiet) as progress:
        picture = thumbnail(path, png, progress=progress, **options)
    if not quiet:
        height, width, _ = picture.pixels.shape
        shown = ", ".join(name for name, _ in picture.channels)
        click.echo(f"{png}: {width} x {height}" + (f", {shown}" if shown else ""))
