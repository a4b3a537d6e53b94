"""``bioio-tk upgrade``: the metadata of an older OME-Zarr to version 0.5, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bioio_tk.core.text import plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.jobs.upgrade import UpgradeReport


@click.command()
@click.argument("path")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--keep-old", is_flag=True, help="Leave the old metadata beside the new ones.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(path: str, *, dry_run: bool, keep_old: bool, as_json: bool) -> None:
    """Bring an OME-Zarr 0.1 to 0.4 to version 0.5.

    PATH is the folder of the store, or one that holds a single store. Only its metadata change (to
    those of Zarr 3), no pixel does, so it takes a moment whatever the size. If it is interrupted,
    the store still opens, and the same command completes the work.
    """
    from bioio_tk.jobs.upgrade import upgrade

    report = upgrade(path, dry_run=dry_run, keep_old=keep_old)
    click.echo(report.to_json() if as_json else "\n".join(_lines(report, dry_run=dry_run)))


def _lines(report: UpgradeReport, *, dry_run: bool) -> Iterator[str]:
    if report.before == report.after:
        files = plural(report.removed, "old metadata file")
        done = f", {files} removed" if report.removed else ""
        if not report.removed and not report.notes:
            done = ", nothing to do"
        yield f"{report.path}: OME-Zarr {report.after} already{done}"
    else:
        groups, arrays = plural(report.groups, "group"), plural(report.arrays, "array")
        yield f"{report.path}: OME-Zarr {report.before} to {report.after}, {groups}, {arrays}"
    if dry_run:
        yield "  nothing was changed (--dry-run)"
    for note in report.notes:
        yield f"  note: {note}"
