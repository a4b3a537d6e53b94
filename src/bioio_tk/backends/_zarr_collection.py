"""Several images in one store: the lists of series, of wells and fields, and of labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bioio_tk.backends._store import FolderStore, exclusive
from bioio_tk.backends._zarr_tree import OME_XML, Tree, group_documents, join
from bioio_tk.backends.base import OpenOptions
from bioio_tk.core.plate import Acquisition, Field, Plate, Well
from bioio_tk.errors import BioIOError, SpecError
from bioio_tk.meta import ngff

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bioio_tk.core.spec import ImageSpec


def register(root: Path, group: str, *, version: str, plate: Plate | None) -> None:
    """List an image that was put into a group of a store where readers look for it.

    Parameters
    ----------
    root : Path
        The store.
    group : str
        ``"labels/NAME"`` (also under an image), ``"NAME"`` for a series, ``"ROW/COLUMN/FIELD"``.
    version : str
        Of NGFF, for what is new.
    plate : Plate or None
        Name, rows, columns and acquisitions of the plate.
    """
    store = FolderStore(root)
    try:
        with exclusive(root):  # two processes may each have finished an image
            lists = _Lists(store, version)
            lists.check(group)
            parts = group.split("/")
            if "labels" in parts[:-1]:
                at = parts.index("labels")
                lists.add_labels("/".join(parts[:at]), parts[-1])
            elif len(parts) == 3:
                lists.add_field(parts[0], parts[1], parts[2], plate)
            else:
                lists.add_series(group)
    finally:
        store.close()


def register_all(
    root: Path, groups: Sequence[str], *, version: str, plate: Plate | None = None
) -> None:
    """List all images of a store at once: one by one, each would look at all before it.

    Parameters
    ----------
    root : Path
        The store, that nobody else works on.
    groups : sequence of str
        Names of the series; for a plate its own paths count.
    version : str
        Of NGFF.
    plate : Plate or None
        With all its wells and fields.
    """
    store = FolderStore(root)
    try:
        lists = _Lists(store, version)
        if plate is None:
            lists.put_series(list(groups))
        else:
            lists.put_plate(plate)
    finally:
        store.close()


def check(root: Path, group: str) -> None:
    """Raise SpecError where `register` would, before a pixel is written."""
    store = FolderStore(root)
    try:
        _Lists(store, "").check(group)
    finally:
        store.close()


def expected(root: Path, group: str) -> tuple[str | None, ImageSpec | None]:
    """Return what an image that is added to a store should be like.

    Returns
    -------
    version : str or None
        Of NGFF, None where there is no store yet.
    image : ImageSpec or None
        For labels: the image they belong to, of which they should have the levels,
        https://ngff.openmicroscopy.org/0.5/#labels-md, and the pixel size.
    """
    store = FolderStore(root)
    try:
        node = Tree(store).node("")
    finally:
        store.close()
    version = None if node is None else "0.4" if node.zarr_format == 2 else "0.5"
    parts = group.split("/")
    if "labels" not in parts[:-1] or node is None:
        return version, None
    from bioio_tk.backends.zarr_read import ZarrSource

    image = "/".join(parts[: parts.index("labels")])
    source = ZarrSource(root, OpenOptions(group=image))
    try:
        return version, source.images[0]
    finally:
        source.close()


class _Lists:
    def __init__(self, store: FolderStore, version: str) -> None:
        self._store = store
        self._tree = Tree(store)
        self._version = version

    def check(self, group: str) -> None:
        """Raise SpecError where the store holds something else."""
        parts = group.split("/")
        node = self._tree.node("")
        if node is not None and node.kind == "array":
            raise SpecError(f"{self._store.where()!r} is one array: nothing can be added to it")
        root = self.group("")
        if "labels" in parts[:-1]:
            image = "/".join(parts[: parts.index("labels")])
            if not self.group(image).multiscales:
                raise SpecError(
                    f"there is no image in {self._store.where(image)!r} to add labels to: write "
                    "the image first"
                )
            return
        if len(parts) == 3:
            _check_names(*parts)
        if len(parts) == 3 and (root.multiscales or root.layout is not None):
            raise SpecError(f"{self._store.where()!r} holds images and is no plate")
        if len(parts) == 1 and (root.multiscales or root.plate is not None):
            kind = "a plate" if root.plate is not None else "one image"
            raise SpecError(f"{self._store.where()!r} holds {kind}: no series can be added to it")

    def add_labels(self, image: str, name: str) -> None:
        place = join(image, "labels")
        names = list(self.group(place).labels)
        if name not in names:
            self._put(place, ngff.labels_attributes([*names, name], self._version))

    def add_series(self, name: str) -> None:
        """Add an image to the layout of bioformats2raw."""
        names = list(self.group("OME").series or self._found(name))
        if name not in names:
            names.append(name)
        self.put_series(names)

    def _found(self, new: str) -> list[str]:
        """Return the images that are there without a list of them."""
        from bioio_tk.backends.zarr_read import ZarrSource

        if self._tree.node("") is None:
            return []
        try:
            source = ZarrSource(self._store.root)
        except BioIOError:  # there are none
            return []
        try:
            return [path for path in source.images.paths if path != new]
        finally:
            source.close()

    def put_series(self, names: list[str]) -> None:
        """Write the list of all images."""
        self._write_xml(names)
        self._put("OME", ngff.series_attributes(names, self._version))
        self._put("", ngff.layout_attributes(self._version))

    def put_plate(self, plate: Plate) -> None:
        """Write the lists of all wells and fields."""
        for row in {well.row for well in plate.wells}:
            self._put(row, {})
        for well in plate.wells:
            self._put(well.path, ngff.well_attributes(well, self._version))
        self._put("", ngff.plate_attributes(plate, self._version))

    def add_field(self, row: str, column: str, name: str, given: Plate | None) -> None:
        plate = self.group("").plate or Plate()
        if given is not None:
            plate = replace(
                plate,
                name=given.name or plate.name,
                rows=_joined(given.rows, plate.rows),
                columns=_joined(given.columns, plate.columns),
                acquisitions=given.acquisitions or plate.acquisitions,
            )
        plate = replace(
            plate, rows=_joined(plate.rows, (row,)), columns=_joined(plate.columns, (column,))
        )
        well = Well(row, column)
        fields = list(self.group(well.path).well_images or ())
        if all(field.path != name for field in fields):
            fields.append(Field(name, _acquisition(given, row, column, name, plate.acquisitions)))
        well = replace(well, fields=tuple(sorted(fields, key=lambda f: _natural(f.path))))
        others = [w for w in plate.wells if w.path != well.path]
        wells = sorted(
            [*others, well],
            key=lambda w: (plate.rows.index(w.row), plate.columns.index(w.column)),
        )
        counted = [w if w is well else replace(w, fields=self._fields(w)) for w in wells]
        self._put(well.path, ngff.well_attributes(well, self._version))
        self._put(row, {})
        self._put("", ngff.plate_attributes(replace(plate, wells=tuple(counted)), self._version))

    def _fields(self, well: Well) -> tuple[Field, ...]:
        return self.group(well.path).well_images or ()

    def group(self, path: str) -> ngff.Group:
        node = self._tree.node(path)
        if node is None:
            return ngff.Group()
        return ngff.read_group(node.attributes, self._store.where(path))

    def _put(self, path: str, attributes: dict[str, Any]) -> None:
        """Write the attributes of a group; what it has besides stays."""
        node = self._tree.node(path)
        if node is not None:
            attributes = _merged(node.attributes, attributes)
        for name, document in group_documents(attributes, self._version).items():
            self._store.put(join(path, name), document)

    def _write_xml(self, names: list[str]) -> None:
        """Write one OME-XML document of all series, from those of each."""
        from bioio_tk.backends.zarr_read import ZarrSource
        from bioio_tk.meta import ome

        specs = []
        for name in names:
            source = ZarrSource(self._store.root / name)
            try:
                specs.append(source.images[0])
            finally:
                source.close()
        known = self._store.get(OME_XML)
        self._store.put(OME_XML, ome.document(specs, metadata=known).encode())


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of both, the new ones where both have one."""
    merged = {**old, **new}
    if isinstance(old.get("ome"), dict) and "ome" in new:
        merged["ome"] = {**old["ome"], **new["ome"]}
    return merged


def _check_names(row: str, column: str, field: str) -> None:
    """Raise SpecError where NGFF does not have such names."""
    well = Well(row, column, (Field(field),))
    ngff.plate_attributes(Plate(rows=(row,), columns=(column,), wells=(well,)), "0.5")
    ngff.well_attributes(well, "0.5")


def _joined(first: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of both; new ones where they belong in the order of people."""
    new = [name for name in more if name not in first]
    return tuple(sorted([*first, *new], key=_natural)) if new else first


def _natural(name: str) -> tuple[int, str]:
    """Order "2" before "10" and "B" before "AA"."""
    return (len(name), name)


def _acquisition(
    given: Plate | None, row: str, column: str, name: str, known: tuple[Acquisition, ...]
) -> int | None:
    for well in given.wells if given is not None else ():
        if (well.row, well.column) == (row, column):
            for field in well.fields:
                if field.path == name:
                    return field.acquisition
    return known[0].id if len(known) == 1 else None
