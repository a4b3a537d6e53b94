"""``bioio-tk formats``: what can be read and written here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.backends.registry import Backend

_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Format:
    """A format, and who reads and writes it.

    Attributes
    ----------
    format : str
        Its name.
    suffixes : tuple of str
        Of its files, with the dot.
    reads : str
        The backend that reads it.
    writes : tuple of str
        Suffixes that the same backend writes.
    missing : str or None
        What must be installed before it can be read here, and how.
    """

    format: str
    suffixes: tuple[str, ...]
    reads: str
    writes: tuple[str, ...]
    missing: str | None


@click.command()
@click.argument("words", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object a format.")
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...], *, as_json: bool) -> None:
    """Show which formats can be read and written here.

    With a NAME only the formats with that in their name or suffix: "czi", ".nd2", "zeiss", or the
    name of a file. What is missing on this machine is said with the line that installs it.
    """
    from bioio_tk.backends import registry

    rows = [row for row in registry.rows() if row.source and row.name != "memory"]
    every = [item for row in rows for item in _formats(row)]
    found = [item for item in every if all(_fits(item, word.lower()) for word in words)]
    if not found and len(words) == 1:
        ending = f".{words[0].lower().rpartition('.')[2]}"
        found = [item for item in every if "." in words[0] and ending in item.suffixes]
    if as_json:
        click.echo(json.dumps([asdict(item) for item in found], indent=2, ensure_ascii=False))
    elif found:
        click.echo("\n".join(_lines(found)))
    if not found:
        click.echo(f"Error: no format is called {' '.join(words)!r}", err=True)
        ctx.exit(1)


def _formats(row: Backend) -> Iterator[Format]:
    from bioio_tk.backends import registry

    lacking = registry.missing(row)
    written = row.suffixes if row.sink else ()
    kinds = registry.kinds(row)
    taken: set[str] = set()
    for name, suffixes in kinds:
        writes = tuple(s for s in suffixes if s in written and s not in taken)
        taken.update(writes)
        yield Format(name, suffixes, row.name, writes, lacking)


def _fits(item: Format, word: str) -> bool:
    """Return whether a word is in the name of a format, or is a suffix of it."""
    return word in item.format.lower() or f".{word.lstrip('*').lstrip('.')}" in item.suffixes


def _lines(found: list[Format]) -> Iterator[str]:
    width = min(_WIDTH, max(len(item.format) for item in found))
    for item in found:
        writes = f"; writes {' '.join(item.writes)}" if item.writes else ""
        suffixes = " ".join(item.suffixes)
        yield f"{item.format:<{width}}  {item.reads:<6}  {suffixes}{writes}"
    lacking = {item.reads: item.missing for item in found if item.missing is not None}
    for backend, why in lacking.items():
        yield ""
        yield f"{backend} cannot read here yet: {why}"
