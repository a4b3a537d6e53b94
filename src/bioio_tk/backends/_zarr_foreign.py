"""What in a folder is no part of a Zarr store: a folder with such a thing is never replaced."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_DOCUMENTS = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}
_ARRAYS = {".zarray"}
_CHUNK = re.compile(r"c|[0-9]+|(c\.)?[0-9]+(\.[0-9]+)+|[^/]*\.part")
_IGNORED = {".DS_Store", "Thumbs.db"}
_DEEPEST = 32


def foreign(folder: Path, depth: int = 0) -> Path | None:
    """Return something under `folder` that no Zarr store has; itself where it is none at all.

    Looks into groups, but not into the chunks of arrays: of these only the names right in the
    array count, for there may be millions.
    """
    names = {entry.name: entry for entry in os.scandir(folder)}
    if not _DOCUMENTS & names.keys() or depth > _DEEPEST:
        return folder
    array = _is_array(folder, names)
    for name, entry in names.items():
        if name in _DOCUMENTS or name in _IGNORED:
            continue
        path = folder / name
        if array:
            if not _CHUNK.fullmatch(name):
                return path
        elif not entry.is_dir(follow_symlinks=False):
            if (folder.name, name) != ("OME", "METADATA.ome.xml"):
                return path
        else:
            found = _ome(path) if name == "OME" else foreign(path, depth + 1)
            if found is not None:
                return found
    return None


def _ome(folder: Path) -> Path | None:
    for name in os.listdir(folder):  # noqa: PTH208
        if name not in _DOCUMENTS and name not in _IGNORED and name != "METADATA.ome.xml":
            return folder / name
    return None


def _is_array(folder: Path, names: dict[str, os.DirEntry[str]]) -> bool:
    if _ARRAYS & names.keys():
        return True
    if "zarr.json" not in names:
        return False
    return b'"array"' in (folder / "zarr.json").read_bytes()
