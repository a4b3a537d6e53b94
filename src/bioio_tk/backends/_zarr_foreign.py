"""What in a folder is no part of a Zarr store: a folder with such a thing is never replaced."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bioio_tk.backends._store import MARKS

if TYPE_CHECKING:
    from collections.abc import Iterator

_DOCUMENTS = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}
_IGNORED = {".DS_Store", "Thumbs.db"}
_CHUNK = re.compile(r"c|[0-9]+|(c\.)?[0-9]+(\.[0-9]+)+")
_PART = re.compile(r".+\.[0-9]+-[0-9]+\.part")
"""Files that a process was about to put into place (`_store.FolderStore`, `_zarr_shards`)."""
_DEEPEST = 32


def foreign(folder: Path, *, begun: bool = False, depth: int = 0) -> Path | None:
    """Return something under `folder` that no Zarr store has; itself where it is none at all.

    Every name counts, also deep in the chunks of an array: who removes the folder has to look at
    each of them anyway. Links are never part of a store.

    Parameters
    ----------
    folder : Path
        Where to look.
    begun : bool
        The store may have been interrupted at any moment: groups and arrays may lack documents.
    """
    entries = _entries(folder)
    names = {entry.name for entry in entries}
    if depth > _DEEPEST or not (begun or _DOCUMENTS & names):
        return folder
    array = _is_array(folder, names)
    for entry in entries:
        path = folder / entry.name
        if _is_file(entry):
            known = entry.name in _DOCUMENTS | _IGNORED or _PART.fullmatch(entry.name)
            if not known and not (array and _CHUNK.fullmatch(entry.name)):
                return path
        elif entry.is_symlink() or (array and not _CHUNK.fullmatch(entry.name)):
            return path
        else:
            if array:
                found = _in_chunks(path, depth + 1)
            elif entry.name == "OME":
                found = _in_ome(path)
            else:
                found = foreign(path, begun=begun, depth=depth + 1)
            if found is not None:
                return found
    return None


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed had not yet put into place."""
    for path in _files(folder):
        if _PART.fullmatch(path.name) and not path.name.startswith(MARKS):
            path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            yield Path(place, name)


def _in_chunks(folder: Path, depth: int) -> Path | None:
    if depth > _DEEPEST:
        return folder
    for entry in _entries(folder):
        name, path = entry.name, folder / entry.name
        if entry.is_symlink() or not (
            _CHUNK.fullmatch(name)
            or (_is_file(entry) and (name in _IGNORED or _PART.fullmatch(name)))
        ):
            return path
        if not _is_file(entry):
            found = _in_chunks(path, depth + 1)
            if found is not None:
                return found
    return None


def _in_ome(folder: Path) -> Path | None:
    for entry in _entries(folder):
        name = entry.name
        known = name in _DOCUMENTS | _IGNORED or name == "METADATA.ome.xml" or _PART.fullmatch(name)
        if not known or not _is_file(entry):
            return folder / name
    return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # another process has just put it into place
        return []


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def _is_array(folder: Path, names: set[str]) -> bool:
    if ".zarray" in names:
        return True
    if "zarr.json" not in names:
        return False
    try:
        document = json.loads((folder / "zarr.json").read_bytes())
    except (ValueError, RecursionError, OSError):
        return False
    return isinstance(document, dict) and document.get("node_type") == "array"
