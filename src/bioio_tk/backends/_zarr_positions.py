"""Where the images of an acquisition lie in a store: paths that are safe, and the lists of them."""

from __future__ import annotations

import bisect
import json
import re
import shutil
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bioio_tk.backends._zarr_tree import group_documents, put_group
from bioio_tk.core.plate import Field, Plate, Well
from bioio_tk.meta import ngff

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bioio_tk.backends._store import FolderStore
    from bioio_tk.core.acquisition import AcquiredPosition, AcquisitionPlan

_UNSAFE = re.compile(r"[^\w .+-]")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9]")
_LONGEST = 64
_NO_WELLS = b'"wells": []'
_TAKEN = {"ome", "zarr.json", "labels", "con", "prn", "aux", "nul"}
"""What lies beside the images, and what Windows has no files of, in small letters."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the image of a position lies: its path, and in a plate the names of its well."""

    path: str
    row: str = ""
    column: str = ""
    field: str = ""


_latest: list[tuple[AcquisitionPlan, tuple[Place, ...]] | None] = [None]


def places(plan: AcquisitionPlan) -> tuple[Place, ...]:
    """Return where the images of all positions lie; no two paths differ in case alone.

    A single image is the root. Several are groups named as their positions are, as far as every
    file system and NGFF have such names.
    """
    known = _latest[0]
    if known is None or known[0] is not plan:  # it is asked for every position of a plan
        known = _latest[0] = (plan, _places(plan))
    return known[1]


def _places(plan: AcquisitionPlan) -> tuple[Place, ...]:
    if plan.plate is not None:
        return _fields(plan)
    if len(plan.positions) == 1:
        return (Place(""),)
    wanted = [_series_name(position) for position in plan.positions]
    return tuple(map(Place, _distinct(wanted, "_", _TAKEN)))


def _series_name(position: AcquiredPosition) -> str:
    name = position.name
    if position.grid_row is not None and position.grid_column is not None:
        name = f"{name}_{position.grid_row}_{position.grid_column}"
    return _safe(name)


def _safe(name: str) -> str:
    """Return a name that is a file's on every system, and a node's in Zarr."""
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", name))
    name = re.sub("^__+", "_", name[:_LONGEST].strip(" ."))  # Zarr has other plans for "__"
    return name or "_"


def _plain(name: str) -> str:
    return _NOT_PLAIN.sub("", name)[:_LONGEST]


def _distinct(names: Sequence[str], joint: str, taken: set[str] | None = None) -> list[str]:
    """Return the names, a number added to those that are there already."""
    used = set(taken or ())
    numbers: dict[str, int] = {}
    found = []
    for name in names:
        new, number = name, numbers.get(name.casefold(), 1)
        while new.casefold() in used:
            number += 1
            new = f"{name}{joint}{number}"
        numbers[name.casefold()] = number
        used.add(new.casefold())
        found.append(new)
    return found


def _fields(plan: AcquisitionPlan) -> tuple[Place, ...]:
    rows, columns = _axes(plan)
    wells: dict[tuple[str, str], list[int]] = {}
    for n, position in enumerate(plan.positions):
        wells.setdefault((position.row or "", position.column or ""), []).append(n)
    found: dict[int, Place] = {}
    for (row, column), numbers in wells.items():
        names = _field_names([plan.positions[n] for n in numbers])
        for n, name in zip(numbers, names, strict=True):
            place = Place("", rows[row], columns[column], name)
            found[n] = replace(place, path=f"{place.row}/{place.column}/{name}")
    return tuple(found[n] for n in range(len(plan.positions)))


def _axes(plan: AcquisitionPlan) -> tuple[dict[str, str], dict[str, str]]:
    """Return what the rows and the columns of a plate are called in the store."""
    plate = plan.plate or Plate()
    rows = (*plate.rows, *(p.row or "" for p in plan.positions))
    columns = (*plate.columns, *(p.column or "" for p in plan.positions))
    return _axis_names(rows, "r"), _axis_names(columns, "c")


def _axis_names(names: Sequence[str], letter: str) -> dict[str, str]:
    unique = list(dict.fromkeys(names))
    plain = [_plain(name) or f"{letter}{n}" for n, name in enumerate(unique)]
    return dict(zip(unique, _distinct(plain, "n"), strict=True))


def _field_names(positions: Sequence[AcquiredPosition]) -> list[str]:
    plain = [_plain(p.name) or str(n) for n, p in enumerate(positions)]
    counts = Counter(name.casefold() for name in plain)
    for n, position in enumerate(positions):
        if counts[plain[n].casefold()] > 1 and position.grid_row is not None:
            plain[n] = _plain(f"{plain[n]}r{position.grid_row}c{position.grid_column}")
    return _distinct(plain, "n")


class Lists:
    """The attributes of the groups around the images; they list those that are there.

    Parameters
    ----------
    plan : AcquisitionPlan
        The acquisition.
    found : sequence of Place
        Where its images lie.
    version : str
        Of NGFF.
    store : FolderStore
        Where they are written. Those of the root grow with every image: they are compact.
    """

    def __init__(
        self,
        plan: AcquisitionPlan,
        found: Sequence[Place],
        version: str,
        store: FolderStore,
    ) -> None:
        self._places, self._version, self._store = found, version, store
        self._opened: list[int] = []
        self._whole = None if plan.plate is None else _plate(plan, found)
        self._wells: dict[str, list[int]] = {}
        self._lines: list[tuple[int, bytes]] = []
        self._most = 0
        self._rows: set[str] = set()

    @property
    def opened(self) -> tuple[int, ...]:
        """The positions that are there, in the order of the series.

        That is the order of the positions, in a plate well by well.
        """
        if self._whole is None:
            return tuple(self._opened)
        return tuple(n for well in self._whole.wells for n in self._wells.get(well.path, ()))

    def add(self, position: int) -> None:
        """List an image that has just been made."""
        place = self._places[position]
        bisect.insort(self._opened, position)  # whatever comes first is not the first series
        if not place.path:
            return
        if self._whole is not None:
            self._add_field(position, place)
            self._put_plate()
            return
        self._put_series()
        if len(self._opened) == 1:
            self._put("", self.root())

    def remove(self, position: int) -> None:
        """Take an image off the lists that is not there any more; its well goes with the last."""
        place = self._places[position]
        self._opened.remove(position)
        if self._whole is None:
            self._put_series()
            return
        path = f"{place.row}/{place.column}"
        there = self._wells[path]
        there.remove(position)
        if there:
            self._put_well(path, place)
        else:
            del self._wells[path]
            self._lines.remove(self._numbered[path])
            left = any(other.startswith(f"{place.row}/") for other in self._wells)
            self._rows -= set() if left else {place.row}
            shutil.rmtree(self._store.where(path if left else place.row))
        self._most = max((len(some) for some in self._wells.values()), default=0)
        self._put_plate()

    def root(self) -> dict[str, Any]:
        """Return the attributes of the root that say where several images are."""
        if self._whole is None:
            return ngff.layout_attributes(self._version)
        return self._plate_with([json.loads(line) for _, line in self._lines])

    def _plate_with(self, wells: list[Any]) -> dict[str, Any]:
        document = dict(self._attributes.get("ome", self._attributes))
        document["plate"] = {**document["plate"], "wells": wells, "field_count": self._most}
        return {"ome": document} if "ome" in self._attributes else document

    @cached_property
    def _attributes(self) -> dict[str, Any]:
        """The attributes of the plate with all its wells: made once, for it takes long."""
        assert self._whole is not None
        return ngff.plate_attributes(self._whole, self._version)

    @cached_property
    def _numbered(self) -> dict[str, tuple[int, bytes]]:
        """Each well as the plate lists it, and its number there, by its path."""
        plate = self._attributes.get("ome", self._attributes)["plate"]
        wells = enumerate(plate["wells"])
        return {well["path"]: (n, json.dumps(well).encode()) for n, well in wells}

    def _put(self, path: str, attributes: dict[str, Any], *, compact: bool = False) -> None:
        put_group(self._store, path, attributes, self._version, compact=compact)

    def _put_series(self) -> None:
        paths = [self._places[n].path for n in self._opened]
        self._put("OME", ngff.series_attributes(paths, self._version), compact=True)

    def _put_well(self, path: str, place: Place) -> None:
        fields = tuple(Field(self._places[n].field) for n in self._wells[path])
        self._put(path, ngff.well_attributes(Well(place.row, place.column, fields), self._version))

    def _put_plate(self) -> None:
        """Write the attributes of the plate; each well was made text once, for there are many."""
        lines = b", ".join(line for _, line in self._lines)
        documents = group_documents(self._plate_with([]), self._version, compact=True)
        for name, document in documents.items():
            self._store.put(name, document.replace(_NO_WELLS, _NO_WELLS[:-1] + lines + b"]", 1))

    def _add_field(self, position: int, place: Place) -> None:
        path = f"{place.row}/{place.column}"
        there = self._wells.setdefault(path, [])
        if not there:
            bisect.insort(self._lines, self._numbered[path])
        bisect.insort(there, position)
        self._most = max(self._most, len(there))
        self._put_well(path, place)
        if place.row not in self._rows:
            self._rows.add(place.row)
            self._put(place.row, {})


def _plate(plan: AcquisitionPlan, found: Sequence[Place]) -> Plate:
    """Return the plate with all wells that will be visited, as they are called in the store."""
    rows, columns = (tuple(names.values()) for names in _axes(plan))
    fields: dict[tuple[str, str], list[Field]] = {}
    for place in found:
        fields.setdefault((place.row, place.column), []).append(Field(place.field))
    wells = [Well(row, column, tuple(some)) for (row, column), some in fields.items()]
    number = {name: n for n, name in enumerate(columns)}
    wells.sort(key=lambda well: (rows.index(well.row), number[well.column]))
    name = plan.plate.name if plan.plate is not None else ""
    return Plate(name, rows=rows, columns=columns, wells=tuple(wells))
