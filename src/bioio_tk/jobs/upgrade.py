"""Upgrade: the metadata of an OME-Zarr 0.1 to 0.4 (Zarr 2) to 0.5 (Zarr 3), pixels untouched."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.backends._zarr_tree import join, parse, to_json
from bioio_tk.core.location import locate
from bioio_tk.errors import DamagedFileError, SpecError, UnknownFormatError, UnsupportedError
from bioio_tk.jobs._upgrade_documents import array_document, array_shape, group_attributes
from bioio_tk.meta import ngff

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_OLD = (".zmetadata", ".zgroup", ".zarray", ".zattrs")
_NEW = "zarr.json"
_DEEPEST = 3
"""How far below the root of its store an image lies: row, column, field of a plate."""


@dataclass(frozen=True, slots=True)
class UpgradeReport:
    """What was done to a store.

    Attributes
    ----------
    path : str
        The store.
    before, after : str
        Version of OME-Zarr.
    groups, arrays : int
        How many of them have new metadata.
    removed : int
        Old metadata files that were removed.
    changed : bool
        False with ``dry_run`` and for a store that needed nothing.
    notes : tuple of str
        What was missing or wrong in the old metadata and how it was understood.
    """

    path: str
    before: str
    after: str
    groups: int
    arrays: int
    removed: int
    changed: bool
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


@dataclass(slots=True)
class _Node:
    """A folder with Zarr 2 metadata, or one that only leads to such."""

    array: dict[str, Any] | None
    attributes: dict[str, Any]


def upgrade(
    path: str | os.PathLike[str],
    *,
    to: str = "0.5",
    dry_run: bool = False,
    keep_old: bool = False,
) -> UpgradeReport:
    """Give an OME-Zarr 0.1 to 0.4 the metadata of 0.5, in place; no pixel is read or written.

    The new metadata are written beside the old ones, that of the root last, and only then the
    old ones are removed, those of the root first. So the store opens at every moment, as the old
    or as the new one, and where the work was cut off it can simply be done again.

    Parameters
    ----------
    path : path
        A folder: the root of the store, or one that holds a single store.
    to : {"0.5"}
        The version wanted.
    dry_run : bool
        Only say what would be done.
    keep_old : bool
        Leave the old metadata beside the new ones, for programs that know only these.

    Returns
    -------
    UpgradeReport

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`.
    IsADirectoryError
        It is a folder that is no store, and holds none or several.
    SpecError
        `to` is something else, or `path` is inside a larger store.
    UnknownFormatError
        There is no OME-Zarr.
    DamagedFileError
        Metadata are damaged, or an array that they name is missing.
    UnsupportedError
        An array cannot be described in Zarr 3 (its pixel type, its codec), or the store is remote
        or packed. Nothing was changed.
    """
    root = _root(path, to)
    notes: list[str] = []
    if (root / _NEW).is_file():
        return _already(root, notes, dry_run=dry_run, keep_old=keep_old)
    nodes = dict(_walk(root, ""))
    documents, before = _documents(root, nodes, notes)
    old = list(_old_files(root, nodes))
    arrays = sum(node.array is not None for node in nodes.values())
    if not dry_run:
        _write(root, documents)
        if not keep_old:
            _remove(old)
    return UpgradeReport(
        path=str(root),
        before=before,
        after=to,
        groups=len(nodes) - arrays,
        arrays=arrays,
        removed=0 if dry_run or keep_old else len(old),
        changed=not dry_run,
        notes=tuple(dict.fromkeys(notes)),
    )


def _root(path: str | os.PathLike[str], to: str) -> Path:
    if to != "0.5":
        raise SpecError(f"to={to!r}: a store can be upgraded to OME-Zarr 0.5")
    location = locate(path)
    if isinstance(location, Path) and location.is_dir():
        for above in location.absolute().parents[:_DEEPEST]:
            if (above / ".zgroup").is_file():
                raise SpecError(
                    f"{str(location)!r} is a part of {str(above)!r}: upgrade that store"
                )
    # a folder without metadata of its own must not get any: they would hide the store in it
    row = registry.for_reading(location, "zarr")
    root = registry.resolve(location, row)
    if not isinstance(root, Path):
        raise UnsupportedError(
            f"{str(root)!r} is remote: only a folder of this machine can be upgraded"
        )
    if not root.is_dir():
        raise UnsupportedError(
            f"{str(root)!r} is no folder: unpack a zip first, or write a new one with convert"
        )
    return root


def _already(root: Path, notes: list[str], *, dry_run: bool, keep_old: bool) -> UpgradeReport:
    """Return the report of a store with new metadata, old ones beside them removed."""
    document = parse((root / _NEW).read_bytes(), str(root / _NEW))
    attributes = document.get("attributes")
    group = ngff.read_group(attributes if isinstance(attributes, dict) else {}, str(root))
    if not group.version:
        raise UnknownFormatError(f"{str(root)!r} is a Zarr 3 store without OME metadata")
    nodes = dict(_walk(root, ""))
    bare = [path for path in nodes if not (root / path / _NEW).is_file()]
    if bare:
        raise DamagedFileError(
            f"{str(root)!r} has metadata of Zarr 3, but {bare[0]!r} in it only those of Zarr 2"
        )
    old = list(_old_files(root, nodes))
    stays = keep_old or dry_run
    if old and stays:
        fate = "are kept" if keep_old else "would be removed"
        notes.append(f"old metadata files beside the new ones {fate}: {len(old)}")
    if not stays:
        _remove(old)
    return UpgradeReport(
        path=str(root),
        before=group.version,
        after=group.version,
        groups=0,
        arrays=0,
        removed=0 if stays else len(old),
        changed=bool(old) and not stays,
        notes=tuple(notes),
    )


# -- what is there --------------------------------------------------------------------------------


def _walk(folder: Path, path: str) -> Iterator[tuple[str, _Node]]:
    """Yield every group and array, the outer ones first; folders of chunks are not entered."""
    array, attributes = (_load(folder / name) for name in (".zarray", ".zattrs"))
    group = (folder / ".zgroup").is_file()
    here = (path, _Node(array, attributes or {}))
    if array is not None:
        yield here
        return
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    below = [found for name in names for found in _walk(folder / name, join(path, name))]
    if group or attributes is not None or below:
        yield here
    yield from below


def _load(path: Path) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return parse(data, str(path))


def _old_files(root: Path, nodes: Mapping[str, _Node]) -> Iterator[Path]:
    for path in nodes:
        for name in _OLD:
            if (root / path / name).is_file():
                yield root / path / name


# -- what is to be there --------------------------------------------------------------------------


def _documents(
    root: Path, nodes: Mapping[str, _Node], notes: list[str]
) -> tuple[dict[str, bytes], str]:
    """Return the new metadata of every node, and the version of the old ones."""
    if not nodes:
        raise UnknownFormatError(f"{str(root)!r} is no Zarr store: there is no .zgroup in it")
    shapes = {
        path: array_shape(node.array, str(root / path))[0]
        for path, node in nodes.items()
        if node.array is not None
    }
    names: dict[str, list[str]] = {}
    versions: list[str] = []
    documents: dict[str, dict[str, Any]] = {}
    for path, node in nodes.items():
        if node.array is not None:
            continue
        where = str(root / path)
        group = ngff.read_group(node.attributes, where)
        notes += [f"{path or '.'}: {note}" for note in group.notes]
        if group.version:
            versions.insert(0 if group.multiscales else len(versions), group.version)
        inside = {p[len(path) + 1 :] if path else p: s for p, s in shapes.items() if _in(p, path)}
        attributes = group_attributes(node.attributes, group, inside, where)
        _same(group, ngff.read_group(attributes, where), where)
        for image in (attributes.get("ome") or {}).get("multiscales", ()):
            for dataset in image["datasets"]:
                key = ngff.inner_path(dataset["path"], "dataset", where)
                names[join(path, key)] = [axis["name"] for axis in image["axes"]]
        documents[path] = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    if not versions:
        raise UnknownFormatError(f"{str(root)!r} is a Zarr store without OME metadata")
    for path, node in nodes.items():
        if node.array is not None:
            document = array_document(
                node.array, node.attributes, names.get(path), str(root / path)
            )
            documents[path] = document
    return {path: to_json(document) for path, document in documents.items()}, versions[0]


def _in(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")


def _same(old: ngff.Group, new: ngff.Group, where: str) -> None:
    """Check that the new metadata say what the old ones did."""
    for a, b in zip(old.multiscales, new.multiscales, strict=True):
        kept = [d.path for d in a.datasets] == [d.path for d in b.datasets]
        known = [(d.scale, d.translation) for d in a.datasets if d.scale is not None]
        if known and len(known) == len(a.datasets):
            kept = kept and known == [(d.scale, d.translation) for d in b.datasets]
        if not kept or (a.axes is not None and a.axes != b.axes and all(x.type for x in a.axes)):
            raise UnsupportedError(f"{where!r}: the image cannot be described in version 0.5")
    for key in ("channels", "windows", "well_images", "labels", "series", "layout"):
        if getattr(old, key) != getattr(new, key):
            raise UnsupportedError(f"{where!r}: {key} cannot be described in version 0.5")
    if (old.plate and old.plate.wells) != (new.plate and new.plate.wells):
        raise UnsupportedError(f"{where!r}: the plate cannot be described in version 0.5")


# -- doing it -------------------------------------------------------------------------------------


def _write(root: Path, documents: Mapping[str, bytes]) -> None:
    """Write the new metadata, the innermost first; all of them or, after an error, none."""
    written: list[Path] = []
    try:
        for path in sorted(documents, key=lambda p: (-p.count("/") if p else 1, p)):
            target = root / path / _NEW
            written.append(target)
            put_file(target, documents[path])
    except BaseException:
        for target in reversed(written):
            with suppress(OSError):
                target.unlink()
        raise


def put_file(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, also after a power cut, or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # pragma: no cover - there is no such thing
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(old: list[Path]) -> None:
    """Remove old metadata, in the order of `_walk`: that of the root first."""
    for path in old:
        path.unlink(missing_ok=True)
