"""``bioio-tk finish``: complete an OME-Zarr that several processes have written."""

from __future__ import annotations

from pathlib import Path

import click

from bioio_tk.jobs.bar import Progress


@click.command()
@click.argument("path")
@click.option("--overwrite", is_flag=True, help="Replace the image that is there.")
@click.option("--workers", "max_workers", type=click.IntRange(1), help="Threads [one per CPU].")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(path: str, *, overwrite: bool, max_workers: int | None, quiet: bool) -> None:
    """Complete an OME-Zarr that several processes have written.

    PATH is the image as it was given to BioWriter. Call this once, when every process is through:
    it makes the smaller resolutions and moves the image to its place. What nobody has written
    is 0.
    """
    from bioio_tk.api import describe, finish
    from bioio_tk.cli.main import Interrupted

    try:
        with Progress(Path(path).name, quiet=quiet) as progress:
            place = finish(path, overwrite=overwrite, max_workers=max_workers, progress=progress)
    except KeyboardInterrupt:
        raise Interrupted(f"{path!r} is not complete yet; call finish again") from None
    if not quiet:
        (series,) = describe(place, images=1).series
        levels = ", ".join(f"{level.shape[1]} x {level.shape[0]}" for level in series.levels)
        click.echo(f"{place}: {levels}")
