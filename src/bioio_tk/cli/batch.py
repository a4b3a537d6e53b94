"""``bioio-tk batch``: many images as one job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bioio_tk.cli.bars import Bars
from bioio_tk.cli.main import as_typed
from bioio_tk.cli.options import OPTIONS, check_both, given, option
from bioio_tk.core.text import duration, plural, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bioio_tk.jobs.batch.batch import BatchProgress, BatchReport

_MOST_LISTED = 10
BATCH: dict[str, dict[str, Any]] = {
    "pattern": {
        "metavar": "PATTERN",
        "help": "Convert what fits it in the folder SRC: 'img_r{r:d+}_t{t:ddd}.tif'.",
    },
    "recursive": {
        "is_flag": True,
        "help": "Look into the folders in SRC, too, and lay the results out like them.",
    },
    "depth": {"type": int, "help": "How many floors of folders to look in; 1 is SRC itself."},
    "ext": {
        "metavar": ".EXT",
        "help": "Ending of the new files: .ome.zarr [default], .ome.tif [default with --split] …",
    },
    "name": {
        "metavar": "TEMPLATE",
        "help": "Their names: '{folder}_{name}', also {suffix}, {number}, the fields of the "
        "pattern, and {t} {c} {z} {s} with --split.",
    },
    "stack": {
        "metavar": "AXES",
        "help": "Files of the pattern that differ only in these are one image: c,z,t.",
    },
    "split": {"metavar": "AXES", "help": "Each of these gets a file of its own: t,c,z,series."},
    "retries": {
        "type": click.IntRange(0),
        "default": 0,
        "help": "Further attempts at what may pass, never at a damaged file [0].",
    },
    "processes": {
        "type": click.IntRange(0),
        "help": "Convert that many at a time, each in a process of its own; 0: all in this one "
        "[as suits number and size].",
    },
    "report": {
        "metavar": "FILE",
        "default": "report.jsonl",
        "help": "Where each job gets a line of JSON as soon as it has ended, or none "
        "[report.jsonl in DST].",
    },
}
_NOT_HERE = {
    *("output_name", "output_suffix", "roi", "roi_mode", "shard_job", "finalize"),
    *("target_chunk_mb",),
}
"""Options of a conversion that are for a single one."""


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    shared = {n: o for n, o in OPTIONS.items() if n not in _NOT_HERE and n not in BATCH}
    for name, about in reversed((BATCH | shared).items()):
        command = option(name, **about)(command)
    return command


@click.command()
@click.argument("src", nargs=-1, metavar="SRC...")
@click.argument("dst")
@_options
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(src: tuple[str, ...], dst: str, **options: Any) -> None:
    """Convert many images SRC into the folder DST; where one fails, the others go on.

    SRC is a folder, several files, a glob, a file pattern such as 'img_t{t:ddd}_c{c:d}.tif', or a
    table of jobs (CSV or TSV) with the columns src, dst and any option of convert. The exit code
    is 0 where all went well and 1 where something failed; what and why stands in report.jsonl.
    With --exists skip a second run does what is missing.
    """
    from bioio_tk.api import batch
    from bioio_tk.cli.main import Interrupted

    check_both(src, dst)
    quiet, as_json = options.pop("quiet"), options.pop("as_json")
    kept = given(options)
    kept["report"] = None if options["report"].lower() == "none" else options["report"]
    if options["processes"] is not None:
        kept["processes"] = options["processes"]
    kept["series"] = _series(options["series"])
    source = src[0] if len(src) == 1 else list(src)
    with Bars(quiet=quiet or as_json) as bars:
        try:
            report = batch(source, dst, progress=bars, **kept)
        except KeyboardInterrupt:
            raise Interrupted(_so_far(bars.last)) from None
    if as_json:
        click.echo(report.to_json())
    else:
        for line in _summary(report, quiet=quiet):
            click.echo(line, err=quiet)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _series(text: str | None) -> Any:
    if text is None or text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise click.UsageError(f"--series {text!r}: give a number from 0, or all") from None


def _so_far(state: BatchProgress | None) -> str:
    done = 0 if state is None else state.files_done - state.files_failed
    total = "" if state is None else f" of {state.files}"
    return (
        f"{done}{total} files are complete, nothing unfinished was left; --exists skip goes on "
        "with the others"
    )


def _summary(report: BatchReport, *, quiet: bool) -> Iterator[str]:
    if quiet:  # else it was said when it happened
        failed = [entry for entry in report.entries if entry.status == "failed"]
        for entry in failed[:_MOST_LISTED]:
            yield f"failed: {entry.source}: {as_typed(entry.error)}"
        if len(failed) > _MOST_LISTED:
            yield f"and {len(failed) - _MOST_LISTED} more failed, see the report"
        return
    if report.planned:
        for entry in report.entries:
            if entry.status == "planned":
                yield f"{entry.source} -> {entry.target} ({size(entry.pixel_bytes)} of pixels)"
    counts = [(report.done, "converted"), (report.planned, "planned")]
    counts += [(report.skipped, "skipped"), (report.failed, "failed")]
    said = ", ".join(f"{count} {what}" for count, what in counts if count)
    speed = report.pixel_bytes / max(report.seconds, 1e-9)
    more = f"; {size(report.pixel_bytes)} of pixels ({size(speed)}/s)" if report.done else ""
    files = plural(len(report.entries), "image")
    yield f"{files}: {said} in {duration(report.seconds)}{more}"
