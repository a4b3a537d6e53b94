"""``bioio-tk demo``: all of it on a large image that is made on the spot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from bioio_tk.cli.text import ByteSize
from bioio_tk.core.text import duration, size
from bioio_tk.jobs.bar import Progress

_ROOM = 2.2  # of the size of the pixels, for source and copy; noise hardly compresses


@click.command()
@click.option(
    "--size",
    "nbytes",
    type=ByteSize(),
    default="2GB",
    help="How large, for example 200MB, 2GB or 16GB [2GB].",
)
@click.option("--keep", is_flag=True, help="Keep the two images.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to work in [a temporary one; the picture goes to the current folder].",
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def command(nbytes: int, *, keep: bool, out: Path | None, quiet: bool) -> None:
    """Try bioio-tk on a large image.

    Makes a field of cells with four channels as a microscope would store it, converts it to a
    tiled OME-TIFF with smaller resolutions, compares every pixel, and draws a picture. The two
    images are removed at the end.
    """
    from bioio_tk.cli.main import Interrupted

    with ExitStack() as stack:
        if out is None and not keep:
            name = tempfile.TemporaryDirectory(prefix="bioio-tk-demo-")
            folder = Path(stack.enter_context(name))
        elif out is None:
            folder = Path(tempfile.mkdtemp(prefix="bioio-tk-demo-"))
        else:
            out.mkdir(parents=True, exist_ok=True)
            folder = out
        source, target = folder / "cells-strips.ome.tif", folder / "cells.ome.tif"
        picture = (out or Path.cwd()) / "bioio-tk-demo.png"
        _check_room(folder, nbytes)
        try:
            _run(nbytes, source, target, picture, quiet=quiet)
        except KeyboardInterrupt:
            raise Interrupted("the images of the demo are removed") from None
        finally:
            if not keep:
                for path in (source, target):
                    path.unlink(missing_ok=True)
        click.echo(f"Kept {source} and {target}" if keep else "Removed the two images.")


def _check_room(folder: Path, nbytes: int) -> None:
    need, free = int(nbytes * _ROOM), shutil.disk_usage(folder).free
    if free < need:
        raise click.ClickException(
            f"the demo needs {size(need)} of disk in {str(folder)!r}, where {size(free)} are free: "
            "choose a smaller --size, or another folder with --out"
        )


def _run(nbytes: int, source: Path, target: Path, picture: Path, *, quiet: bool) -> None:
    from bioio_tk.jobs import demo
    from bioio_tk.jobs.cells import CHANNELS

    cells = demo.field(nbytes)
    total = demo.pixel_bytes(cells)
    names = ", ".join(name for name, _ in CHANNELS)
    click.echo(
        f"A field of cells: {cells.width} x {cells.height} pixels, {len(CHANNELS)} channels "
        f"({names}), {size(total)}, in {source.parent}"
    )

    began = time.perf_counter()
    with Progress("making  ", quiet=quiet) as progress:
        demo.write_source(cells, source, progress)
    seconds = time.perf_counter() - began
    _line("1 made", seconds, total, f"strips, deflate: {size(source.stat().st_size)}")

    report = _convert(source, target, quiet=quiet)
    memory = "" if report["peak_rss"] is None else f", peak memory {size(report['peak_rss'])}"
    what = f"tiles, {report['levels']} resolutions: {size(report['bytes_out'])}{memory}"
    _line("2 converted", report["seconds"], total, what)

    began = time.perf_counter()
    with Progress("checking", quiet=quiet) as progress:
        checked = demo.verify(cells, source, target, progress=progress)
    what = f"all {checked.pixels:,} pixels are equal; {checked.tiles} tiles read with tifffile too"
    _line("3 checked", time.perf_counter() - began, total, what)

    began = time.perf_counter()
    with Progress("drawing ", quiet=quiet) as progress:
        demo.draw(cells, target, picture, progress)
    click.echo(f"  {'4 drawn':<12}{duration(time.perf_counter() - began):>7}  {picture}")


def _line(step: str, seconds: float, total: int, what: str) -> None:
    click.echo(f"  {step:<12}{duration(seconds):>7}  {size(total / seconds):>7}/s  {what}")


def _convert(source: Path, target: Path, *, quiet: bool) -> dict[str, Any]:
    """Run ``bioio-tk convert`` as anyone would; in a process of its own, to see its memory."""
    given = [sys.executable, "-m", "bioio_tk", "convert", str(source), str(target)]
    given += ["--json", "--overwrite"] + (["--quiet"] if quiet else [])
    child = subprocess.Popen(given, stdout=subprocess.PIPE, text=True)  # noqa: S603 (our own words)
    try:
        text, _ = child.communicate()
    except BaseException:
        child.terminate()  # after a Ctrl-C it is at it already
        child.wait()
        raise
    if child.returncode:
        raise click.ClickException("the conversion failed")
    report: dict[str, Any] = json.loads(text)
    return report
