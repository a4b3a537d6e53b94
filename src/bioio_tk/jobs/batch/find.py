"""The images in folders: found by what is in the files, each set of files once."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bioio_tk.backends import registry
from bioio_tk.backends._kinds import HEAD, kind_of
from bioio_tk.errors import BackendMissingError, FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENOUGH = 1 << 28
"""Bytes beyond which a folder need not be measured further: it is large."""


class Found(NamedTuple):
    """An image on disk.

    Attributes
    ----------
    path : Path
        The file, or the folder of an OME-Zarr.
    inside : Path
        The folder it lies in, relative to where the search began.
    java : bool
        It is read through Bio-Formats.
    """

    path: Path
    inside: Path
    java: bool


def images(folder: Path, depth: float = 1, leave_out: Path | None = None) -> Iterator[Found]:
    """Yield the images in a folder, sorted by path.

    Parameters
    ----------
    folder : Path
        Where to look.
    depth : float
        How many floors of folders: 1 is the folder itself, infinity all of them.
    leave_out : Path, optional
        A folder in which nothing is looked for.
    """
    seen: set[Path] = set()
    for path in files(folder, depth, leave_out):
        found = look(path)
        if found is None:
            continue
        java, main = found
        if main in seen:  # another file of the same set
            continue
        seen.add(main)
        yield Found(main, path.parent.relative_to(folder), java)


def files(
    folder: Path,
    depth: float = 1,
    leave_out: Path | None = None,
    above: frozenset[Path] = frozenset(),
) -> Iterator[Path]:
    """Yield what may be an image in a folder: files, and folders that are an image.

    `above` are the folders it lies in: a link that leads to one of them would lead on for ever.
    """
    above |= {folder.resolve()}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        # hidden files, and what a conversion that is not complete has left
        if entry.name.startswith(".") or entry.name.endswith((".partial", ".partial.journal")):
            continue
        path = Path(entry.path)
        if not _is_dir(entry) or is_image_folder(path):
            yield path
        elif depth > 1 and path.resolve() not in (leave_out, *above):
            yield from files(path, depth - 1, leave_out, above)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; it will be said when it is opened
        return False


def is_image_folder(path: Path) -> bool:
    """Return whether a folder is an image, not one with images in it."""
    if any((path / mark).is_file() for mark in _marks()):
        return True
    return path.name.lower().endswith((".ome.zarr", ".zarr"))  # damaged, maybe: it will be told


@cache
def _marks() -> tuple[str, ...]:
    return tuple(mark for row in registry.rows() for mark in row.marks)


def look(path: Path) -> tuple[bool, Path] | None:
    """Return whether a file is read through Bio-Formats and the main file of its set.

    None for what is no image. What is called like an image but is none is one: it will fail, and
    the report will say why, which leaving it out would not.
    """
    try:
        choice = registry.choose(path)
    except BackendMissingError:
        return True, path
    except (FormatError, UnsupportedError, OSError):
        return (False, path) if _called_like_an_image(path) else None
    row = choice.backend
    if row.rest and not _known(path):
        return None
    if row.packed and not path.is_dir() and not path.name.lower().endswith(row.suffixes):
        return None  # any document of an office program is a zip
    return row.rest, registry.main_of(path, row)


def _known(path: Path) -> bool:
    """Return whether the content or the name is one that Bio-Formats claims."""
    with path.open("rb") as file:
        return kind_of(path.name, file.read(HEAD)) is not None or path.suffix.lower() in _tiffs()


def _called_like_an_image(path: Path) -> bool:
    return kind_of(path.name, b"") is not None or path.suffix.lower() in (*_tiffs(), ".zarr")


@cache
def _tiffs() -> tuple[str, ...]:
    first = registry.BACKENDS[0]
    return tuple(s for _, suffixes in registry.kinds(first) for s in suffixes if s.count(".") == 1)


def size_of(path: Path) -> int:
    """Return the bytes of a file or a folder, of a large folder only that it is large."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        total = 0
        for place, _, names in os.walk(path):
            for name in names:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 (many)
            if total > _ENOUGH:
                break
    except OSError:  # it will be said when it is opened
        return 0
    return total
