"""``bioio-tk bdv``: BigDataViewer datasets, changed in place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.options import Sizes
from bioio_tk.core.text import duration, plural, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bioio_tk.core.views import ViewId
    from bioio_tk.jobs.bdv import MissingReport, TransformReport, ViewPlace
    from bioio_tk.jobs.bdv_pyramid import PyramidReport

_JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
_MOST = 8
_DIGITS = 6
"""Of numbers in tables."""


class _Numbers(click.ParamType[Any]):
    """Whole numbers: 0,2:5."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a tuple of ints."""
        if not isinstance(value, str):
            return value
        found: list[int] = []
        try:
            for part in value.split(","):
                first, sign, last = part.partition(":")
                found += range(int(first), int(last)) if sign else [int(first)]
        except ValueError:
            found = []
        if not found:
            self.fail(f"{value!r}: give ids from 0, as in 0,2 or 0:5 (the end not included)")
        return tuple(found)


class _Reals(click.ParamType[Any]):
    """Numbers, with commas or blanks between them."""

    name = "reals"

    def __init__(self, *counts: int) -> None:
        self._counts = counts

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a tuple of floats."""
        if not isinstance(value, str):
            return value
        try:
            found = tuple(float(word) for word in value.replace(",", " ").split())
        except ValueError:
            found = ()
        if len(found) not in self._counts:
            counts = " or ".join(map(str, self._counts))
            self.fail(f"{value!r}: give {counts} numbers, with commas between them", param, ctx)
        return found


def _selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that pick views."""
    for kind in ("illumination", "angle", "tile", "channel", "setup", "time"):
        command = click.option(
            f"--{kind}",
            type=_Numbers(),
            metavar="N,N|A:B",
            help=f"Views of these {kind}s, by their ids [all].",
        )(command)
    return command


@click.group()
def command() -> None:
    """Complete, check and move the views of a BigDataViewer dataset, of any writer.

    FILE is the XML, or the HDF5 file beside it.
    """


@command.command()
@click.argument("path", metavar="FILE")
@click.option(
    "--subsamp",
    multiple=True,
    type=Sizes(3, "Z x Y x X"),
    metavar="ZxYxX",
    help="Pixels that become one, once for each new resolution: --subsamp 1x2x2 --subsamp 2x4x4 "
    "[as BigDataViewer proposes].",
)
@click.option(
    "--blockdim",
    multiple=True,
    type=Sizes(3, "Z x Y x X"),
    metavar="ZxYxX",
    help="Their blocks, or one for all [about 512 KiB].",
)
@click.option("--compression", default="gzip", help="gzip [default] or none.")
@click.option("--compression-level", type=int, help="0 to 9 for gzip [1].")
@click.option("--workers", "max_workers", type=click.IntRange(1), help="Threads [one per CPU].")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@_JSON
def pyramid(path: str, *, quiet: bool, as_json: bool, **options: Any) -> None:
    """Add smaller resolutions to all views of a dataset, in place.

    It can be interrupted at any time: the dataset stays as good as it was, and the same command
    goes on where it stopped.
    """
    from bioio_tk.cli.main import Interrupted
    from bioio_tk.jobs.bar import Progress
    from bioio_tk.jobs.bdv_pyramid import add_pyramid

    for name in ("subsamp", "blockdim"):
        options[name] = options[name] or None
    try:
        with Progress(Path(path).name, quiet=quiet) as progress:
            report = add_pyramid(path, **options, progress=progress)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{path!r} is as good as before; the same command goes on where it stopped"
        ) from None
    if as_json:
        click.echo(report.to_json())
    elif not quiet:
        click.echo("\n".join(_made(report)))


def _made(report: PyramidReport) -> Iterator[str]:
    left = f", {plural(len(report.left), 'view')} had them already" if report.left else ""
    yield f"{report.path}: smaller resolutions of {plural(len(report.made), 'view')}{left}"
    alike: dict[tuple[Any, ...], list[int]] = {}
    for setup, factors in report.levels.items():
        alike.setdefault(factors, []).append(setup)
    for factors, setups in alike.items():
        of = "" if len(alike) == 1 else f" (setups {_listed(setups)})"
        yield f"  1 of {', '.join('x'.join(map(str, f[::-1])) for f in factors)} pixels{of}"
    if report.made:
        speed = size(report.pixel_bytes / max(report.seconds, 1e-9))
        yield f"  {size(report.pixel_bytes)} in {duration(report.seconds)} ({speed}/s)"


@command.command()
@click.argument("path", metavar="FILE")
@click.option("--fix", is_flag=True, help="Write it into the XML; the old one becomes X.xml~1.")
@_JSON
@click.pass_context
def missing(ctx: click.Context, path: str, *, fix: bool, as_json: bool) -> None:
    """Say which views have no pixels, and whether the XML says so.

    A dataset with views that are neither there nor listed as missing does not open in
    BigDataViewer. The exit code is 1 where the XML is wrong.
    """
    from bioio_tk.jobs.bdv import missing_views

    report = missing_views(path, fix=fix)
    click.echo(report.to_json() if as_json else "\n".join(_lost(report)))
    if not report.ok:
        ctx.exit(1)


def _lost(report: MissingReport) -> Iterator[str]:
    count = len(report.listed) + len(report.absent)
    yield f"{report.path}: {count or 'none'} of {plural(report.views, 'view')} missing"
    now = "now" if report.fixed else "not"
    if report.listed:
        yield f"  listed in the XML: {_views(report.listed)}"
    if report.absent:
        yield f"  {now} listed in the XML: {_views(report.absent)}"
    if report.unregistered:
        what = "got a place by their voxel size" if report.fixed else "have no place in the world"
        yield f"  {what}: {_views(report.unregistered)}"
    if not report.ok:
        yield "  BigDataViewer does not open it like this: see --fix"
    for note in report.notes:
        yield f"  note: {note}"


def _views(views: tuple[ViewId, ...]) -> str:
    named = ", ".join(f"time {view.time} setup {view.setup}" for view in views[:_MOST])
    return named + (f" and {len(views) - _MOST} more" if len(views) > _MOST else "")


def _listed(numbers: list[int]) -> str:
    more = " …" if len(numbers) > _MOST else ""
    return ", ".join(map(str, numbers[:_MOST])) + more


@command.command()
@click.argument("path", metavar="FILE")
@click.option("--list", "only_list", is_flag=True, help="Change nothing, print a table.")
@click.option("--translate", type=_Reals(3), metavar="X,Y,Z", help="Move by so much.")
@click.option("--scale", type=_Reals(1, 3), metavar="S|X,Y,Z", help="Scale by so much.")
@click.option("--affine", type=_Reals(12), metavar="12 NUMBERS", help="3 rows of 4, as in the XML.")
@click.option("--remove", metavar="NAME|N", help="Take one away, by name or place (0: the newest).")
@click.option("--name", help="What the new one is called [manually defined].")
@_selection
@_JSON
def transform(path: str, *, only_list: bool, as_json: bool, **options: Any) -> None:
    """Move or scale views in the world, or show where they lie.

    A new transform is applied after all others, in the units of the world. No pixel is changed.
    What the XML was before becomes X.xml~1. Give numbers that begin with a minus sign like
    --translate=-5,0,0.
    """
    from bioio_tk.jobs.bdv import transform_views, view_transforms

    kinds = ("translate", "scale", "affine", "remove", "name")
    given = {name: options.pop(name) for name in kinds}
    chosen = {name: value for name, value in given.items() if value is not None}
    if only_list:
        if chosen:
            raise click.UsageError(f"--list changes nothing, and --{next(iter(chosen))} does")
        report = view_transforms(path, **options)
    else:
        if len(chosen.keys() - {"name"}) != 1:
            raise click.UsageError(
                "give one of --translate, --scale, --affine and --remove, or --list"
            )
        report = transform_views(path, **_plain(chosen), **options)
    click.echo(report.to_json() if as_json else "\n".join(_where(report)))


def _plain(chosen: dict[str, Any]) -> dict[str, Any]:
    remove, scale = chosen.get("remove"), chosen.get("scale")
    if remove is not None and remove.isdecimal():
        return {**chosen, "remove": int(remove)}
    if scale is not None and len(scale) == 1:
        return {**chosen, "scale": scale[0]}
    return chosen


def _where(report: TransformReport) -> Iterator[str]:
    what = f", {report.changed} changed" if report.changed else ""
    yield f"{report.path}: {plural(len(report.views), 'view')}{what}"
    shown = report.views[:_MOST] if report.changed else report.views
    for view in shown:
        yield f"  {_place(view)}"
        for number, one in enumerate(view.transforms):
            yield f"    {number} {one.name or '(no name)'}: {_matrix(one.array.tolist())}"
        if len(view.transforms) > 1:
            yield f"    together: {_matrix(view.affine)}"
        elif not view.transforms:
            yield "    no transform"
    if len(shown) < len(report.views):
        yield f"  and {len(report.views) - len(shown)} more: see --list"


def _place(view: ViewPlace) -> str:
    said = view.attributes.items()
    of = ", ".join(name if name.startswith(f"{kind} ") else f"{kind} {name}" for kind, name in said)
    return f"time {view.time} setup {view.setup} ({of})"


def _matrix(rows: list[list[float]]) -> str:
    """Return a transform in a few words where it is a plain one."""
    diagonal = [rows[d][d] for d in range(3)]
    shift = [row[3] for row in rows]
    rest = [row[d] for n, row in enumerate(rows) for d in range(3) if n != d]
    if any(rest):
        return "  ".join(" ".join(_number(n) for n in row) for row in rows)
    scaled = f"scale {' '.join(map(_number, diagonal))}" if set(diagonal) != {1} else ""
    moved = f"move {' '.join(map(_number, shift))}" if any(shift) else ""
    return ", ".join(filter(None, (scaled, moved))) or "nothing"


def _number(value: float) -> str:
    return f"{value:.{_DIGITS}g}"


@command.command()
@click.argument("stores", nargs=-1, required=True, metavar="STORE...")
@click.option("--output", "path", metavar="FILE.xml", help="The XML [beside the store].")
@click.option("--overwrite", is_flag=True, help="Replace an XML; it becomes X.xml~1.")
def xml(stores: tuple[str, ...], *, path: str | None, overwrite: bool) -> None:
    """Lay an XML over OME-Zarr, so that BigDataViewer and BigStitcher open it as it is.

    STORE is an OME-Zarr 0.4 with one image or several; several stores lie side by side. Each image
    is a tile. No pixel is copied.
    """
    from bioio_tk.bdv.zarr import write_zarr_xml
    from bioio_tk.meta.bdv import parse

    made = write_zarr_xml(list(stores), path, overwrite=overwrite)
    data = parse(made.read_bytes(), str(made))
    tiles = plural(len(data.attributes["tile"]), "tile")
    channels = plural(len(data.attributes["channel"]), "channel")
    click.echo(f"{made}: {tiles}, {channels}, {plural(len(data.times), 'time point')}")
