"""The table of backends, and how a path finds its row: by content first, then by suffix."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bioio_tk.core.location import Url
from bioio_tk.errors import BackendMissingError, SpecError, UnknownFormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.backends.base import Sink, Source
    from bioio_tk.core.location import Location


@dataclass(frozen=True, slots=True)
class Backend:
    """One row: what a backend reads and writes, and where its code lives.

    Attributes
    ----------
    name : str
        What ``backend=`` takes.
    magic : tuple of bytes
        First bytes of the files it reads.
    suffixes : tuple of str
        Endings of the files it writes, the preferred one first.
    source, sink : str
        ``"module:Class"``, "" where it cannot read or write.
    extra : str
        pip extra that brings its packages.
    formats : str
        What it handles, in a few words for messages.
    marks : tuple of str
        Files of which one is in each folder it reads; empty where it reads files.
    packed : tuple of str
        Endings for which the folder it makes is packed into one file.
    """

    name: str
    magic: tuple[bytes, ...]
    suffixes: tuple[str, ...]
    source: str = ""
    sink: str = ""
    extra: str = ""
    formats: str = ""
    marks: tuple[str, ...] = ()
    packed: tuple[str, ...] = ()


# One row per backend, tried top to bottom.
BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="python",
        magic=(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"<?xml", b"<OME"),
        suffixes=(".ome.tif", ".ome.tiff", ".tif", ".tiff", ".ome.tf2", ".ome.tf8", ".ome.btf"),
        source="bioio_tk.backends.tiff_read:TiffSource",
        sink="bioio_tk.backends.tiff_write:TiffSink",
        formats="TIFF and OME-TIFF with its companion files",
    ),
    Backend(
        name="zarr",
        magic=(b"PK\3\4", b"PK\5\6"),
        suffixes=(".ome.zarr", ".zarr", ".ozx", ".zarr.zip", ".zip"),
        source="bioio_tk.backends.zarr_read:ZarrSource",
        sink="bioio_tk.backends.zarr_write:ZarrSink",
        formats="OME-Zarr and plain Zarr, as a folder, packed (.zip, .ozx) or remote",
        marks=("zarr.json", ".zattrs", ".zgroup", ".zarray"),
        packed=(".zip", ".ozx"),
    ),
    Backend(
        name="memory",
        magic=(b"bioio_tk memory image ",),
        suffixes=(".mem",),
        source="bioio_tk.backends.memory:MemorySource",
        sink="bioio_tk.backends.memory:MemorySink",
        formats="images in this process's memory",
    ),
)
_HEAD = 64


def for_reading(
    location: Location, name: str | None = None, options: dict[str, Any] | None = None
) -> Backend:
    """Return the backend that reads what is at `location`, or the one called `name`.

    Parameters
    ----------
    location : Path or Url
        A file, a folder or the address of either.
    name : str, optional
        Of the backend that is wanted.
    options : dict, optional
        Storage options for a Url.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    IsADirectoryError
        It is a folder that no backend reads.
    UnknownFormatError
        No backend recognises its content.
    """
    if isinstance(location, Url):
        return _named(name) if name is not None else _remote(location, options or {})
    path = location
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (each call counts here)
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise FileNotFoundError(_missing(path)) from None
    except (IsADirectoryError, PermissionError):
        if path.is_dir():
            return _folder(path, name)
        raise
    if name is not None:
        return _named(name)
    for row in BACKENDS:
        if path.name in row.marks:  # the metadata of a folder stand for the folder
            return row
    return _by_content(str(path), head)


def _missing(path: Path) -> str:
    """Return what to say of a file that is not there."""
    text = f"there is no file {str(path)!r}"
    left = path.with_name(f"{path.name}.partial")
    if left.exists():
        text += (
            f", but {left.name!r}, which is not complete: a program is still writing it or was "
            "interrupted; see 'bioio-tk recover' and 'bioio-tk finish'"
        )
    return text


def _folder(path: Path, name: str | None) -> Backend:
    marked = (row for row in _rows() if row.marks and row.source)
    for row in marked:
        if _marked(path, row) or _only_child(path, row) is not None:
            return row if name is None else _named(name)
    kinds = _list(row.formats for row in _rows() if row.marks and row.source)
    raise IsADirectoryError(
        f"{str(path)!r} is a folder; give the path of an image file in it, or of a folder that is "
        f"an image: {kinds}"
    )


def _marked(path: Path, row: Backend) -> bool:
    return any((path / mark).is_file() for mark in row.marks)


def _only_child(path: Path, row: Backend) -> Path | None:
    """Return the one image folder in `path`, None where there is none or several."""
    found = [p for p in path.iterdir() if p.name.lower().endswith(row.suffixes) and p.is_dir()]
    return found[0] if len(found) == 1 and _marked(found[0], row) else None


def resolve(location: Location, backend: Backend) -> Location:
    """Return where the image is: `location`, or the one image folder in the folder there."""
    if isinstance(location, Path) and location.name in backend.marks and location.is_file():
        return location.parent
    folder = bool(backend.marks) and isinstance(location, Path) and location.is_dir()
    if not folder or _marked(location, backend):  # type: ignore[arg-type]
        return location
    return _only_child(location, backend) or location  # type: ignore[arg-type]


def _remote(url: Url, options: dict[str, Any]) -> Backend:
    lower = url.name.lower()
    for row in _rows():
        if row.source and lower.endswith(row.suffixes) and row.name != "memory":
            return row
    inside = [row for row in BACKENDS if row.marks and _is_inside(url, row)]
    if inside:
        return inside[0]
    from bioio_tk.backends._store_url import UrlStore

    store = UrlStore(url, options)
    try:
        for row in _rows():
            if row.marks and any(v is not None for v in store.get_many(row.marks).values()):
                return row
        head = store.get_range("", 0, _HEAD)
        where = store.where()
    finally:
        store.close()
    if head is None:
        raise FileNotFoundError(f"there is nothing at {where!r}")
    return _by_content(where, head)


def _is_inside(url: Url, row: Backend) -> bool:
    return any(f"{suffix}/" in url.text.lower() for suffix in row.suffixes)


def _by_content(where: str, head: bytes) -> Backend:
    if not head:
        raise UnknownFormatError(f"{where!r} is empty (0 bytes)")
    for backend in _rows():
        if backend.source and head.startswith(backend.magic):
            return backend
    raise UnknownFormatError(
        f"{where!r} is in no format that can be read here (its first bytes are {head[:8]!r}); "
        f"these are: {_list(b.formats for b in BACKENDS if b.source and b.name != 'memory')}"
    )


def for_writing(location: Location, name: str | None = None) -> Backend:
    """Return the backend that writes files called like `location`, or the one called `name`."""
    if name is not None:
        backend = _named(name)
        if not backend.sink:
            raise UnsupportedError(f"the {backend.name!r} backend reads files, it writes none")
        return backend
    lower = location.name.lower()
    for backend in _rows():
        if backend.sink and lower.endswith(backend.suffixes):
            return backend
    known = [s for b in BACKENDS if b.sink and b.name != "memory" for s in b.suffixes]
    raise UnknownFormatError(
        f"{location.name!r} does not say which format to write: end it with one of "
        f"{', '.join(known)}"
    )


def load_source(backend: Backend) -> type[Source]:
    """Import and return the Source class of `backend`."""
    return cast("type[Source]", _load(backend, backend.source))


def load_sink(backend: Backend) -> type[Sink]:
    """Import and return the Sink class of `backend`."""
    return cast("type[Sink]", _load(backend, backend.sink))


def _named(name: str) -> Backend:
    for backend in _rows():
        if backend.name == str(name).lower():
            return backend
    raise SpecError(f"no backend is called {name!r}; there are {_list(b.name for b in BACKENDS)}")


def _rows() -> Iterator[Backend]:
    yield from BACKENDS
    # other packages may bring rows; asking for them takes milliseconds, so only when needed
    from importlib.metadata import entry_points

    for entry in entry_points(group="bioio_tk.backends"):
        yield entry.load()


def _list(items: Any) -> str:
    return ", ".join(str(item) for item in items)


def _load(backend: Backend, where: str) -> Any:
    module, _, name = where.partition(":")
    try:
        return getattr(import_module(module), name)
    except ImportError as exc:
        hint = f"bioio-tk[{backend.extra}]" if backend.extra else "bioio-tk"
        raise BackendMissingError(
            f"the {backend.name!r} backend needs the package {exc.name!r}, which is not installed: "
            f"pip install '{hint}'"
        ) from exc
