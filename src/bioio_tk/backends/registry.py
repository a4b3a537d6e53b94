"""The table of backends, and how a path finds its row: by content first, then by suffix."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from bioio_tk.errors import BackendMissingError, SpecError, UnknownFormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bioio_tk.backends.base import Sink, Source


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
    """

    name: str
    magic: tuple[bytes, ...]
    suffixes: tuple[str, ...]
    source: str = ""
    sink: str = ""
    extra: str = ""
    formats: str = ""


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
        name="memory",
        magic=(b"bioio_tk memory image ",),
        suffixes=(".mem",),
        source="bioio_tk.backends.memory:MemorySource",
        sink="bioio_tk.backends.memory:MemorySink",
        formats="images in this process's memory",
    ),
)
_HEAD = 64


def for_reading(path: Path, name: str | None = None) -> Backend:
    """Return the backend that reads the file at `path`, or the one called `name`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    IsADirectoryError
        It is a folder that no backend reads.
    UnknownFormatError
        No backend recognises its content.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (each call counts here)
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {str(path)!r}") from None
    except (IsADirectoryError, PermissionError):
        if path.is_dir():
            raise IsADirectoryError(
                f"{str(path)!r} is a folder; give the path of an image file in it"
            ) from None
        raise
    if name is not None:
        return _named(name)
    if not head:
        raise UnknownFormatError(f"{str(path)!r} is empty (0 bytes)")
    for backend in _rows():
        if backend.source and head.startswith(backend.magic):
            return backend
    raise UnknownFormatError(
        f"{str(path)!r} is in no format that can be read here (its first bytes are {head[:8]!r}); "
        f"these are: {_list(b.formats for b in BACKENDS if b.source)}"
    )


def for_writing(path: Path, name: str | None = None) -> Backend:
    """Return the backend that writes files called like `path`, or the one called `name`."""
    if name is not None:
        backend = _named(name)
        if not backend.sink:
            raise UnsupportedError(f"the {backend.name!r} backend reads files, it writes none")
        return backend
    lower = path.name.lower()
    for backend in _rows():
        if backend.sink and lower.endswith(backend.suffixes):
            return backend
    known = [s for b in BACKENDS if b.sink and b.name != "memory" for s in b.suffixes]
    raise UnknownFormatError(
        f"{path.name!r} does not say which format to write: end it with one of {', '.join(known)}"
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
