"""Changes: what a user has changed in the attributes of an image that is still being written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = frozenset(
    ("ome", "multiscales", "omero", "plate", "well", "bioformats2raw.layout", "ome_writers")
)
"""Attributes of a group that have a meaning."""
_FIXED = frozenset(("axes", "datasets", "coordinateTransformations", "version", "path"))
"""What the arrays are, wherever it is said: nobody else knows that."""
_GONE = object()

Path = tuple[str | int, ...]


class Changes:
    """Differences of attributes, to be made again in what is written later.

    What has no meaning for NGFF is the user's: it is added, replaced and removed as he does it.
    Of the rest, what he may say is kept: names, labels, colours, shown ranges, and what is new.
    """

    def __init__(self) -> None:
        self._made: dict[Path, Any] = {}

    def note(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Take note of all that differs."""
        self._made.update(_differences(before, after))

    def made_in(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Return attributes with the changes."""
        made = list(self._made.items())
        for path, value in made:
            attributes = _with(attributes, path, value)
        return attributes


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    for key in [*after, *(key for key in before if key not in after)]:
        if key not in OWN:
            value = after.get(key, _GONE)
            if value is _GONE or before.get(key, _GONE) != value:
                yield (key,), value
        elif key in before and key in after:
            yield from _inside((key,), before[key], after[key])


def _inside(path: Path, before: Any, after: Any) -> Iterator[tuple[Path, Any]]:
    """Yield the changes of something with a meaning that leave it what it is."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in after.items():
            if key in before and key not in _FIXED:
                yield from _inside((*path, key), before[key], value)
            elif key not in before and key not in OWN and key not in _FIXED:
                yield (*path, key), value
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) == len(after):
            for n, (old, new) in enumerate(zip(before, after, strict=True)):
                yield from _inside((*path, n), old, new)
    elif before != after and _kind(before) == _kind(after):
        yield path, after


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _with(where: Any, path: Path, value: Any) -> Any:
    """Return a dict or a list with another value somewhere inside, where it has such a place."""
    step, rest = path[0], path[1:]
    if isinstance(where, dict) and isinstance(step, str):
        if value is _GONE:
            return {key: old for key, old in where.items() if key != step}
        if not rest or step in where:
            return {**where, step: _with(where[step], rest, value) if rest else value}
    elif isinstance(where, list) and isinstance(step, int) and step < len(where):
        new = _with(where[step], rest, value) if rest else value
        return [*where[:step], new, *where[step + 1 :]]
    return where
