"""``bioio-tk verify``: whether two images have the same pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.text import STORAGE_OPTION, ByteSize
from bioio_tk.core.text import duration
from bioio_tk.jobs.bar import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.jobs.verify import VerifyReport

_MOST_REASONS = 10


class _Series(click.ParamType[Any]):
    """A number, or one for each of the two files."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        parts = value.split(",")
        if not 1 <= len(parts) <= 2 or not all(part.strip().isdecimal() for part in parts):
            self.fail(f"{value!r}: give a number from 0, or one for each file: 2,0", param, ctx)
        numbers = tuple(int(part) for part in parts)
        return numbers if len(numbers) == 2 else numbers[0]


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="[B]", required=False)
@click.option(
    "--series",
    type=_Series(),
    metavar="N[,M]",
    help="Which image of A, from 0, and of B [all, where both have as many].",
)
@click.option("--level", type=click.IntRange(0), default=0, help="Which resolution [0].")
@click.option(
    "--select",
    metavar="TEXT",
    help='What of A is compared with B, as for convert: "c=0,2 z=10:20 t=::2" [all].',
)
@click.option(
    "--mode",
    type=click.Choice(("full", "sample")),
    default="full",
    help="full: every pixel [default]; sample: some tiles of every plane, always the same ones.",
)
@click.option(
    "--checksums",
    metavar="FILE",
    help="In place of B: what convert --json has printed when A was made.",
)
@click.option("--workers", type=click.IntRange(1), help="Threads [one per CPU].")
@click.option("--memory", type=ByteSize(), metavar="SIZE", help="For pixels, such as 500MB.")
@click.option("--storage-option", "--storage-options", "storage_options", **STORAGE_OPTION)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def command(
    ctx: click.Context, /, a: str, b: str | None, *, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Check that the images A and B have the same pixels, bit by bit.

    Both are read piece by piece, so their size does not matter. In place of B the checksums will
    do that convert has reported. The exit code is 0 where they are equal, and 1 where they differ
    or one of them is damaged.
    """
    from bioio_tk.jobs.verify import verify

    options["storage_options"] = dict(options["storage_options"]) or None
    if (b is None) == (options["checksums"] is None):
        raise click.UsageError("give two images, or one and --checksums")
    if b is None:
        refused = [f"--{name}" for name in ("select", "level") if options[name]]
        refused += ["--mode sample"] if options["mode"] == "sample" else []
        if refused:
            raise click.UsageError(f"{refused[0]} needs B: checksums are of whole planes")
    with Progress(Path(a).name, quiet=quiet) as progress:
        report = verify(a, b, progress=progress, **options)
    if as_json:
        click.echo(report.to_json())
    elif not quiet:
        click.echo("\n".join(_lines(report)))
    if not report.equal:
        ctx.exit(1)


def _lines(report: VerifyReport) -> Iterator[str]:
    names = report.a if not report.b else f"{report.a}, {report.b}"
    yield f"{names}: {report.summary} ({duration(report.seconds)})"
    if report.first_difference is not None and report.reasons:
        yield f"  {report.pixels}"
    for reason in report.reasons[1:_MOST_REASONS]:
        yield f"  {reason}"
    if len(report.reasons) > _MOST_REASONS:
        yield f"  and {len(report.reasons) - _MOST_REASONS} more"
    for note in report.notes:
        yield f"  note: {note}"
