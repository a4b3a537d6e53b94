"""``bioio-tk watch``: how a running acquisition is doing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from bioio_tk.core.text import plural
from bioio_tk.errors import BioIOError

if TYPE_CHECKING:
    from bioio_tk.stream.watch import Watcher


@click.command()
@click.argument("path")
@click.option("--png", metavar="OUT.PNG", help="Keep a picture of the newest frame there.")
@click.option("--size", type=click.IntRange(1), default=512, help="Its longer side [512].")
@click.option("--overwrite", is_flag=True, help="Replace a picture that is there.")
@click.option(
    "--interval",
    type=click.FloatRange(0.05),
    default=1.0,
    help="Seconds from one line to the next [1].",
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    path: str, png: str | None, *, size: int, overwrite: bool, interval: float, quiet: bool
) -> None:
    """Show how a running acquisition is doing, until it ends.

    PATH is what is being written, by whatever process. Each line says how many frames are safe in
    the file, how fast they come, and where the newest one was taken. Ends with an error when the
    acquisition was interrupted.
    """
    from bioio_tk.jobs.snapshot import Snapshot
    from bioio_tk.stream.watch import watch

    picture = None if png is None else Snapshot(png, size=size, overwrite=overwrite)
    with watch(path) as run:
        shown = -1
        while True:
            at_work = run.running
            run.refresh()
            if run.frames > shown:
                shown = run.frames
                if not quiet:
                    click.echo(_line(run))
                if picture is not None and shown:
                    picture.show(run.read(shown - 1))
            if not at_work:
                break
            until = time.monotonic() + interval
            run.wait(shown, interval)
            if run.running:
                time.sleep(max(0.0, until - time.monotonic()))
        _end(run, quiet=quiet)


def _taken(run: Watcher) -> int:
    return run.frames - sum(map(len, run.skipped))


def _line(run: Watcher) -> str:
    taken = _taken(run)
    text = plural(taken, "frame")
    if run.planned is not None:
        text = f"{taken} of {plural(run.planned, 'frame')}"
    if run.frames > taken:
        text += f", {run.frames - taken} skipped"
    if run.fps:
        text += f"  {run.fps:.1f} fps  {run.mb_per_second:.1f} MB/s"
    if run.frames:
        place = run.where(run.frames - 1)
        text += "".join(f"  {name} {value}" for name, value in place.items())
    return text


def _end(run: Watcher, *, quiet: bool) -> None:
    if run.state == "interrupted":
        raise BioIOError(
            f"the acquisition to {str(run.path)!r} was interrupted after "
            f"{plural(_taken(run), 'frame')}: complete it with 'bioio-tk recover {run.path}'"
        )
    if not quiet:
        click.echo(f"{run.path}: finished")
