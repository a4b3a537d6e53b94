"""Files that fit a pattern, in groups: those that differ only in what is stacked are one image."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from bioio_tk.core.pattern import Pattern, natural
from bioio_tk.errors import SpecError
from bioio_tk.jobs.batch.job import stem
from bioio_tk.meta.ngff_axes import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class Group(NamedTuple):
    """Files that become one image, or a single one.

    Attributes
    ----------
    source : str
        Path of the file, or the pattern of the files.
    name : str
        What the result is called after, with an ending.
    inside : str
        Folder it lies in, relative to where the search began.
    values : dict
        What the fields stand for that all of its files share.
    """

    source: str
    name: str
    inside: str
    values: dict[str, Any]


def groups(
    folder: Path, pattern: str, paths: Iterable[Path], stack: tuple[str, ...]
) -> Iterator[Group]:
    """Yield the groups of the files that fit a pattern, in natural order of their names.

    Parameters
    ----------
    folder : Path
        Where the search began.
    pattern : str
        As `Pattern` takes it. With folders in it it is for paths relative to `folder`, without
        for names in any folder.
    paths : iterable of Path
        The files there are.
    stack : tuple of str
        Fields along which files are one image; without any each file is one.
    """
    parsed = Pattern(pattern)
    axes = {field: NAMES.get(field.lower(), field) for field in parsed.fields}
    missing = next((axis for axis in stack if axis not in axes.values()), None)
    if missing is not None:
        known = ", ".join(parsed.fields) or "none"
        raise SpecError(
            f"stack={','.join(stack)!r}: the pattern {pattern!r} has no field {missing!r}; its "
            f"fields are {known}"
        )
    found: dict[tuple[str, str], Group] = {}
    for path in sorted(paths, key=natural):
        relative = path.relative_to(folder)
        whole = "/" in pattern
        place = folder if whole else path.parent
        name = relative.as_posix() if whole else path.name
        values = parsed.match(name)
        if values is None:
            continue
        inside = "." if whole else relative.parent.as_posix()
        if not stack:
            found[inside, name] = Group(str(path), path.name, inside, values)
            continue
        shared = {field: value for field, value in values.items() if axes[field] not in stack}
        fixed = parsed.fixed(name, shared)
        source = str(place).replace("{", "{{").replace("}", "}}") + "/" + fixed
        title = _title(fixed, place.name)
        found.setdefault((inside, fixed), Group(source, title, inside, shared))
    yield from found.values()


def _title(pattern: str, otherwise: str) -> str:
    """Return a name for what is stacked: the pattern without its fields and what introduces them.

    >>> _title("well/img_r001_t{t:ddd}_c{c}.ome.tif", "plate"), _title("{t:d}.tif", "plate")
    ('img_r001.tif', 'plate.tif')
    """
    last = pattern.rpartition("/")[2]
    left = re.sub(r"(?:(?<![A-Za-z0-9])[A-Za-z]*|[_\-. ]+)\{[^{}]*\}", "", stem(last) + "|")
    left = left.rstrip("|").strip("_-. ")
    return (left or otherwise) + ".tif"
