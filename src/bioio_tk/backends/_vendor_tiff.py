"""TIFFs that are a part of something: of a plate, of positions, of a set only its vendor describes.

Asking must cost a plain TIFF nothing, nor take long in a folder of 100,000 files: the names that
the vendors' programs give tell nearly all, then a few fixed names are looked for.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_SUFFIXES = (".tif", ".tiff", ".stk")
"""Of the TIFFs that vendors put into sets; files in other formats may have alike names."""
_MOST_NAMES = 100_000
"""Files of a folder that are looked through for an index of any name (some 50 ms)."""
_MOST_CUTS = 8
"""Underscores in a name at which it is cut."""


@dataclass(frozen=True, slots=True)
class VendorSet:
    """What a TIFF is a part of.

    Attributes
    ----------
    kind : str
        Whose set it is, for people.
    index : Path
        The file that describes it; the TIFF where it is itself.
    """

    kind: str
    index: Path


def set_of(path: Path) -> VendorSet | None:
    """Return of which vendor's set a TIFF is a part, None for one that stands for itself."""
    name = path.name
    if name.lower().endswith((".ome.tif", ".ome.tiff")):
        return None  # OME-XML says what belongs together
    kind = _ALONE.get(path.suffix.lower())
    if kind is not None:
        return VendorSet(kind, path)
    if path.suffix.lower() not in _SUFFIXES:
        return None
    for kind, pattern, candidates in _SETS:
        if pattern.search(name):
            index = next((place for place in candidates(path) if place.is_file()), None)
            if index is not None:
                return VendorSet(kind, index)
    folder = path.parent.name
    if folder.endswith(".oif.files"):
        index = path.parent.with_name(folder.removesuffix(".files"))
        return VendorSet("Olympus FV1000", index) if index.is_file() else None
    return None


def _fixed(*names: str, path: Path) -> Iterator[Path]:
    """Yield where an index of one of these names would be: beside the TIFF, or above it."""
    for folder in (path.parent, path.parent.parent):
        yield from (folder / name for name in names)


def _named_alike(*endings: str, above: int = 0, path: Path) -> Iterator[Path]:
    """Yield where an index would be that is called as the TIFF begins, up to some underscore."""
    folders = [path.parent, *path.parents[1 : 1 + above]]
    start = path.stem
    for _ in range(_MOST_CUTS):
        for folder in folders:
            yield from (folder / f"{start}{ending}" for ending in endings)
        start, cut, _end = start.rpartition("_")
        if not cut:
            return


def _any_named(ending: str, path: Path) -> Iterator[Path]:
    """Yield the files of the folder that end like this: the user has named the index."""
    with os.scandir(path.parent) as entries:
        names = [e.name for e in islice(entries, _MOST_NAMES) if e.name.lower().endswith(ending)]
    yield from (path.parent / name for name in sorted(names))


_ALONE = {
    ".vsi": "CellSens VSI",  # an overview; the pixels are in other files
    ".flex": "Evotec Flex",  # the fields of a well
    ".bif": "Ventana .bif",  # tiles that overlap
}
"""TIFFs by suffix of which more is to be read than their pages."""

_I = re.IGNORECASE
_SETS: tuple[tuple[str, re.Pattern[str], Callable[[Path], Iterator[Path]]], ...] = (
    (
        "Metamorph",
        re.compile(r"_(w\d|s\d+[_.]|t\d+[_.])|\.stk$", _I),
        lambda path: _named_alike(".nd", ".ND", path=path),
    ),
    (
        "MetaXpress",
        re.compile(r"_[A-P]\d\d(_s\d+)?(_w\d+)?\w*(-\w+)*\.tiff?$", _I),
        lambda path: _named_alike(".HTD", ".htd", above=2, path=path),
    ),
    (
        "PerkinElmer Operetta",
        re.compile(r"^r\d\dc\d\df\d+|^\d{9}-\d+-\d+\.tiff?$|^\d{6}-\d+-\d+\.tiff?$", _I),
        lambda path: _fixed(
            *("Index.idx.xml", "Index.xml", "Index.ref.xml", "Index.flex.xml"), path=path
        ),
    ),
    ("InCell 1000/2000", re.compile(r"^[A-P] ?- ?\d+\(fld ", _I), partial(_any_named, ".xdce")),
    (
        "Olympus ScanR",
        re.compile(r"W\d{5}--P\d{5}--", _I),
        lambda path: _fixed("experiment_descriptor.xml", path=path),
    ),
    (
        "CellVoyager",
        re.compile(r"^W\d+F\d+T\d+Z\d+C\d+\.tiff?$", _I),
        lambda path: _fixed("MeasurementResult.xml", path=path),
    ),
    (
        "Prairie",
        re.compile(r"_Cycle\d+_.*\.tiff?$", _I),
        lambda path: _named_alike(".xml", path=path),
    ),
    (
        "Leica",
        re.compile(r"_ch\d+\.tiff?$", _I),
        lambda path: _named_alike(".lei", ".LEI", path=path),
    ),
    (
        "BD Pathway",
        re.compile(r" - n\d{6}\.tiff?$", _I),
        lambda path: _fixed("Experiment.exp", path=path),
    ),
    (
        "Micro-Manager",
        re.compile(r"^img_(\d{9}_|channel\d+_position\d+_time)", _I),
        lambda path: _fixed("metadata.txt", path=path),
    ),
)
"""Whose set, how its TIFFs are called, and where its index would be."""
