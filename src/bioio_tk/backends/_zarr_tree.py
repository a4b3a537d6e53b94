"""The groups and arrays of a Zarr store: what lies where, read once."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends._store import FolderStore, Store
from bioio_tk.core.location import Url
from bioio_tk.errors import DamagedFileError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bioio_tk.backends.base import OpenOptions
    from bioio_tk.core.location import Location

PACKED = (".zip", ".ozx")
OME_XML = "OME/METADATA.ome.xml"
DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


@dataclass(frozen=True, slots=True)
class Node:
    """A group or an array.

    Attributes
    ----------
    path : str
        Where it lies in the store, "" for the root.
    kind : str
        ``"group"`` or ``"array"``.
    zarr_format : int
        2 or 3.
    attributes : dict
        Its user attributes.
    document : bytes
        The metadata document as it stands in the store.
    """

    path: str
    kind: str
    zarr_format: int
    attributes: dict[str, Any] = field(default_factory=dict)
    document: bytes = b""


class Tree:
    """Looks nodes up in a store and remembers them.

    Parameters
    ----------
    store : Store
        Where they are.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._nodes: dict[str, Node | None] = {}

    def node(self, path: str) -> Node | None:
        """Return what lies at a path, None where nothing does."""
        return self.nodes([path])[path]

    def nodes(self, paths: Iterable[str]) -> dict[str, Node | None]:
        """Return what lies at several paths; asked for together where requests wait."""
        wanted = list(dict.fromkeys(paths))
        new = [path for path in wanted if path not in self._nodes]
        if self.store.waits or len(new) > 1:
            keys = [join(path, name) for path in new for name in self._names(path)]
            found = self._get_many(keys)
        else:
            found = {}
        for path in new:
            self._nodes[path] = self._load(path, found)
        return {path: self._nodes[path] for path in wanted}

    def _get_many(self, keys: list[str]) -> dict[str, bytes | None]:
        """Return documents, of which most are not there.

        Servers that do not let everybody list what they have deny what is missing. Where all is
        denied, the error counts; for chunks it always does.
        """
        try:
            return self.store.get_many(keys)
        except PermissionError:
            found: dict[str, bytes | None] = {}
            for key in keys:
                with suppress(PermissionError):
                    found[key] = self.store.get(key)
            if not any(data is not None for data in found.values()):
                raise
            return {key: found.get(key) for key in keys}

    def _names(self, path: str) -> tuple[str, ...]:
        """Return the documents that may be there: a store does not mix its formats by level."""
        above = self._nodes.get(path.rpartition("/")[0]) if path else None
        if above is None:
            return DOCUMENTS
        return DOCUMENTS[:1] if above.zarr_format == 3 else DOCUMENTS[1:]

    def _load(self, path: str, found: dict[str, bytes | None]) -> Node | None:
        def get(name: str) -> bytes | None:
            key = join(path, name)
            return found[key] if key in found else self.store.get(key)

        names = self._names(path)
        for name in (*names, *(n for n in DOCUMENTS if n not in names)):
            if name == ".zattrs":
                continue
            data = get(name)
            if data is not None:
                return self._node(path, name, data, get)
        data = get(".zattrs")
        if data is None:
            return None
        attributes = parse(data, self.store.where(join(path, ".zattrs")))
        return Node(path, "group", 2, attributes)

    def _node(self, path: str, name: str, data: bytes, get: Any) -> Node:
        where = self.store.where(join(path, name))
        document = parse(data, where)
        if name == "zarr.json":
            if document.get("zarr_format") != 3 or document.get("node_type") not in (
                "array",
                "group",
            ):
                raise DamagedFileError(
                    f"{where!r} says neither that it is a group nor an array of Zarr 3"
                )
            attributes = document.get("attributes") or {}
            if not isinstance(attributes, dict):
                raise DamagedFileError(f"{where!r}: attributes are no JSON object")
            return Node(path, document["node_type"], 3, attributes, data)
        extra = get(".zattrs")
        attributes = {}
        if extra is not None:
            attributes = parse(extra, self.store.where(join(path, ".zattrs")))
        return Node(path, "array" if name == ".zarray" else "group", 2, attributes, data)


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Return a JSON object; DamagedFileError where there is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise DamagedFileError(f"{where!r} is damaged, it is no JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise DamagedFileError(f"{where!r} is damaged: it holds no JSON object")
    return document


def join(path: str, name: str) -> str:
    """Return the key of `name` under `path`.

    >>> join("", "zarr.json"), join("A/1", "0")
    ('zarr.json', 'A/1/0')
    """
    return f"{path}/{name}" if path else name


def open_store(location: Location, options: OpenOptions) -> tuple[Store, str]:
    """Open what lies at a location; return the store and the path of the node to begin with."""
    group = options.group
    if group and any(part in ("", ".", "..") for part in group.split("/")):
        raise SpecError(f"group={group!r} is no path inside a store")
    if isinstance(location, Path):
        if location.is_dir():
            return FolderStore(location), group
        from bioio_tk.backends._store_zip import ZipStore

        return ZipStore(location), group
    from bioio_tk.backends._store_url import UrlStore

    if location.name.lower().endswith(PACKED):
        from bioio_tk.backends._store_zip import ZipStore

        return ZipStore(location, options.storage_options), group
    return UrlStore(location, options.storage_options), group


def new_store(location: Location, storage_options: dict[str, Any]) -> Store:
    """Return the store to write to at a location."""
    if not isinstance(location, Url):
        return FolderStore(location)
    from bioio_tk.backends._store_url import UrlStore

    store = UrlStore(location, storage_options)
    if not store.writable:
        store.close()
        raise UnsupportedError(
            f"{str(location)!r} cannot be written to: a web server only gives; write to a folder, "
            "or to s3:// or gs://"
        )
    return store


def put_group(
    store: Store, path: str, attributes: dict[str, Any], version: str, *, compact: bool = False
) -> None:
    """Write the files that make a folder a Zarr group; see `group_documents`."""
    for name, document in group_documents(attributes, version, compact=compact).items():
        store.put(join(path, name), document)


def group_documents(
    attributes: dict[str, Any], version: str, *, compact: bool = False
) -> dict[str, bytes]:
    """Return the files that make a folder a Zarr group with these attributes.

    With `compact` they are made several times as fast, and read less easily by people.
    """
    if version != "0.4":
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        return {"zarr.json": to_json(document, compact=compact)}
    found = {".zgroup": to_json({"zarr_format": 2})}
    if attributes:
        found[".zattrs"] = to_json(attributes, compact=compact)
    return found


def to_json(document: dict[str, Any], *, compact: bool = False) -> bytes:
    """Return a document, unless `compact` as people can read it."""
    indent = None if compact else 2
    return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False).encode()
