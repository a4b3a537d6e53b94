"""``bioio-tk doctor``: what is installed here, and what would go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bioio_tk.core.text import size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.jobs.doctor import Checkup, Folder, Package


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """Say what is installed, what this process may use, and what would go wrong.

    Needs no network and starts no Java. The exit code is 1 where something that is installed is
    broken, else 0.
    """
    from bioio_tk.jobs.doctor import doctor

    found = doctor()
    click.echo(found.to_json() if as_json else "\n".join(_lines(found)))
    if not found.ok:
        ctx.exit(1)


def _lines(found: Checkup) -> Iterator[str]:
    yield _line("bioio-tk", found.version)
    yield _line("Python", f"{found.python} on {found.system}")
    yield _line("packages", ", ".join(map(_package, found.packages)))
    for extra in found.extras:
        state = ", ".join(map(_package, extra.packages))
        yield _line(f"[{extra.name}]", state)
    bioformats = next((place for place in found.java.bioformats if place.taken), None)
    yield _line("Bio-Formats", bioformats.version if bioformats and found.java.ok else "not usable")
    yield _line("CPUs", str(found.cpus))
    yield _line("memory", "unknown" if found.memory is None else size(found.memory))
    yield _line("open files", "any number" if found.open_files is None else str(found.open_files))
    yield _line("temporary", _folder(found.temp))
    yield _line("cache", _folder(found.cache))
    for name, codecs in found.codecs.items():
        yield _line(name, ", ".join(codec for codec, why in codecs.items() if not why))
    for note in found.notes:
        yield f"note: {note}"
    for problem in found.problems:
        yield f"BROKEN: {problem}"
    yield "All that is installed works." if found.ok else "Something is broken, see above."


def _line(name: str, text: str) -> str:
    return f"{name:12} {text}"


def _package(package: Package) -> str:
    state = "BROKEN" if package.problem else package.version or "not installed"
    return f"{package.name} {state}"


def _folder(folder: Folder) -> str:
    return f"{folder.path} ({folder.problem or size(folder.free) + ' free'})"
