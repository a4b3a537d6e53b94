"""Numbers as people read them, and back."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def files(paths: Iterable[str]) -> Iterator[str]:
    """Yield paths, in place of a pattern those that fit it."""
    for path in paths:
        # most shells have done this already; a file whose name looks like a pattern is a file
        if glob.has_magic(path) and not Path(path).exists():
            yield from sorted(glob.glob(path, recursive=True)) or [path]  # noqa: PTH207
        else:
            yield path


class ByteSize(click.ParamType[int]):
    """A size such as 200MB, 2GB or 1.5 GiB."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([\d.]+)\s*([kmgt]?)(i?)b?", str(value).strip().lower())
        try:
            if found is None:
                raise ValueError
            factor = 1024 ** "kmgt".index(found[2]) * 1024 if found[3] else _UNITS[found[2]]
            return int(float(found[1]) * factor)
        except ValueError:
            self.fail(f"{value!r} is no size; write for example 200MB or 2GB", param, ctx)


class _KeyValue(click.ParamType[Any]):
    """KEY=VALUE, the value as JSON where it is."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Return key and value."""
        if isinstance(value, tuple):
            return value
        key, sign, text = str(value).partition("=")
        if not sign or not key:
            self.fail(f"{value!r}: give KEY=VALUE, for example anon=true", param, ctx)
        try:
            return key, json.loads(text)
        except ValueError:
            return key, text


STORAGE_OPTION: dict[str, Any] = {
    "type": _KeyValue(),
    "multiple": True,
    "metavar": "KEY=VALUE",
    "help": "For a URL: what fsspec passes to the file system, for example anon=true; the value "
    "is read as JSON where it is. May be given several times.",
}
