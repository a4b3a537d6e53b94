"""The table of backends, and how a path finds its row: by content first, then by suffix."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bioio_tk.backends import _kinds, _vendor_tiff
from bioio_tk.core.location import Url
from bioio_tk.errors import (
    BackendMissingError,
    FormatError,
    SpecError,
    UnknownFormatError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from bioio_tk.backends.base import (
        GrowingStore,
        OpenOptions,
        Sink,
        Source,
        Started,
        ViewStore,
    )
    from bioio_tk.core.location import Location


_PIPE = (
    "{!r} is a pipe: an image is read here and there, which a pipe cannot do; write it to a file "
    "first"
)


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
    content : str
        What it reads, in a word.
    aliases : tuple of str
        Other names that ``backend=`` takes.
    kinds : str
        ``"module:NAME"`` of the formats it reads: pairs of a name and its suffixes, without dots.
    missing : str
        ``"module:function"`` that says, without importing much, what must be installed before it
        can read, and how; None where nothing is missing.
    rest : bool
        It is for the files that no other backend reads.
    start : str
        ``"module:function"`` that starts what it runs on; "" where there is nothing to start.
    edits : str
        Where metadata can be changed in place: in the ``"description"`` of a file, in the
        ``"attributes"`` of a folder; "" where they cannot.
    tree : bool
        Its folders may hold several images (series, labels, plates), go to a server, and be
        written by several processes.
    container : bool
        Other formats are made of such files, too: one whose name says so is not for it.
    parts : tuple of str
        Endings of files that are for it where one of `marks` lies beside them.
    remote : bool
        It reads what lies on a server.
    beside : tuple of str
        Endings of further files that are made beside the one that is named, and belong to it. A
        name that ends so stands for the image of that name.
    gathers : bool
        All images of a source go into one file of it, as parts of one scene.
    main : str
        ``"module:function"`` that says which file to open for the image that a file is a part of;
        "" where it is the file itself.
    documents : tuple of bytes
        What the XML documents hold near their beginning that are for it.
    knows : str
        ``"module:function"`` that says which of the files with its first bytes are for it; "" for
        all of them.
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
    content: str = ""
    aliases: tuple[str, ...] = ()
    kinds: str = ""
    missing: str = ""
    rest: bool = False
    start: str = ""
    edits: str = ""
    tree: bool = False
    container: bool = False
    parts: tuple[str, ...] = ()
    remote: bool = True
    beside: tuple[str, ...] = ()
    gathers: bool = False
    documents: tuple[bytes, ...] = ()
    knows: str = ""
    main: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend for a file, and why it is that one.

    Attributes
    ----------
    backend : Backend
        Its row.
    reason : str
        In a few words.
    notes : tuple of str
        What another backend would have done better, were it installed.
    otherwise : Choice or None
        What reads at least this file, where the backend cannot open the set it belongs to.
    """

    backend: Backend
    reason: str
    notes: tuple[str, ...] = ()
    otherwise: Choice | None = None


# One row per backend, tried top to bottom.
STREAMS = {
    "tiff": "bioio_tk.backends.tiff_stream:TiffStore",
    "zarr": "bioio_tk.backends.zarr_stream:ZarrStore",
    "bdv": "bioio_tk.backends.bdv_stream:BdvStore",
    "scratch": "bioio_tk.backends.scratch_stream:ScratchStore",
}
"""What stores frames as they come (`GrowingStore`), by the name of the format."""

VIEWS = "bioio_tk.backends._bdv_file:BdvFile"
"""What stores views (`ViewStore`)."""

BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="python",
        magic=(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"<?xml", b"<OME"),
        suffixes=(".ome.tif", ".ome.tiff", ".tif", ".tiff", ".ome.tf2", ".ome.tf8", ".ome.btf"),
        source="bioio_tk.backends.tiff_read:TiffSource",
        sink="bioio_tk.backends.tiff_write:TiffSink",
        formats="TIFF and OME-TIFF with its companion files",
        content="TIFF",
        kinds="bioio_tk.backends._kinds:TIFF",
        edits="description",
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
        content="Zarr",
        kinds="bioio_tk.backends._kinds:ZARR",
        edits="attributes",
        tree=True,
    ),
    Backend(
        name="bdv",
        magic=(b"\x89HDF\r\n\x1a\n",),
        suffixes=(".xml",),
        source="bioio_tk.backends.bdv_read:BdvSource",
        sink="bioio_tk.backends.bdv_write:BdvSink",
        extra="hdf5",
        formats="BigDataViewer (XML with HDF5, N5 or OME-Zarr)",
        content="BigDataViewer",
        kinds="bioio_tk.backends._kinds:BDV",
        missing="bioio_tk.backends._hdf5_chunks:missing",
        remote=False,
        documents=(b"<SpimData",),
        knows="bioio_tk.backends._bdv_found:is_bdv",
        main="bioio_tk.backends._bdv_found:main_of",
        beside=(".h5",),
        gathers=True,
    ),
    Backend(
        name="hdf5",
        magic=(b"\x89HDF\r\n\x1a\n",),
        suffixes=(".h5", ".hdf5", ".hdf"),
        source="bioio_tk.backends.hdf5_read:Hdf5Source",
        sink="bioio_tk.backends.hdf5_write:Hdf5Sink",
        extra="hdf5",
        formats="HDF5 with an image in a dataset",
        content="HDF5",
        missing="bioio_tk.backends._hdf5_chunks:missing",
        container=True,
    ),
    Backend(
        name="npy",
        magic=(b"\x93NUMPY", b"PK\3\4"),
        suffixes=(".npy", ".npz"),
        source="bioio_tk.backends.npy_read:NpySource",
        sink="bioio_tk.backends.npy_write:NpySink",
        formats="arrays of NumPy",
        content="an array of NumPy",
        remote=False,
    ),
    Backend(
        name="suite2p",
        magic=(),
        suffixes=(".suite2p", "suite2p", "data_raw.bin"),
        source="bioio_tk.backends.suite2p_read:Suite2pSource",
        sink="bioio_tk.backends.suite2p_write:Suite2pSink",
        formats="Suite2p binaries (a folder of .bin and ops.npy)",
        marks=("ops.npy", "plane0/ops.npy", "*[pP]lane*/ops.npy"),
        content="Suite2p binaries",
        kinds="bioio_tk.backends._kinds:SUITE2P",
        parts=(".bin",),
        remote=False,
    ),
    Backend(
        name="java",
        magic=(),
        suffixes=(".ome", ".ome.xml", ".ics", ".dcm", ".jp2", ".png", ".avi"),
        source="bioio_tk.backends.java_read:BioFormatsSource",
        sink="bioio_tk.backends.java_write:BioFormatsSink",
        extra="java",
        formats="what Bio-Formats reads ('bioio-tk formats' lists it)",
        content="what Bio-Formats reads",
        aliases=("bioformats", "bio-formats"),
        kinds="bioio_tk.backends._java_suffixes:KINDS",
        missing="bioio_tk.backends._java_home:missing",
        rest=True,
        start="bioio_tk.backends._java_vm:start",
    ),
    Backend(
        name="memory",
        magic=(b"bioio_tk memory image ",),
        suffixes=(".mem",),
        source="bioio_tk.backends.memory:MemorySource",
        sink="bioio_tk.backends.memory:MemorySink",
        formats="images in this process's memory",
        content="an image in memory",
    ),
)
_XML_HEAD = 1 << 16
_PIXELS = re.compile(rb"BinData|</(?:\w+:)?Pixels")
_XML_MOST = 1 << 26
"""Bytes of an XML document in which the first pixels are looked for."""


def for_reading(
    location: Location, name: str | None = None, options: dict[str, Any] | None = None
) -> Backend:
    """Return the backend that reads what is at `location`, see `choose`."""
    return choose(location, name, options).backend


def choose(
    location: Location, name: str | None = None, options: dict[str, Any] | None = None
) -> Choice:
    """Return the backend that reads what is at `location`, or the one called `name`, and why.

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
    BackendMissingError
        The backend that reads this format is not installed; the message says how to.
    """
    if isinstance(location, Url):
        return _asked(name) if name is not None else _remote(location, options or {})
    path = location
    try:
        with open(path, "rb", buffering=0, opener=_at_once) as file:
            if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
                raise UnsupportedError(_PIPE.format(str(path)))
            head = file.read(_kinds.HEAD)
    except FileNotFoundError:
        raise FileNotFoundError(_missing(path)) from None
    except (IsADirectoryError, PermissionError):
        if path.is_dir():
            return _folder(path, name)
        raise
    if name is not None:
        return _asked(name)
    for row in BACKENDS:
        if path.name in row.marks:  # the metadata of a folder stand for the folder
            return Choice(row, f"{path.name} stands for its folder")
        if row.parts and path.name.lower().endswith(row.parts) and _marked(path.parent, row):
            return Choice(row, f"{path.name} lies beside what describes it")
    return _by_content(path, str(path), head)


def _at_once(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes into would be waited for without end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _asked(name: str) -> Choice:
    return Choice(_named(name), "asked for")


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


def _folder(path: Path, name: str | None) -> Choice:
    marked = (row for row in _rows() if row.marks and row.source)
    for row in marked:
        if _marked(path, row) or _only_child(path, row) is not None:
            return Choice(row, f"the folder is {row.content}") if name is None else _asked(name)
    kinds = _list(row.formats for row in _rows() if row.marks and row.source)
    raise IsADirectoryError(
        f"{str(path)!r} is a folder; give the path of an image file in it, a pattern for several "
        f"({str(path / '*.tif')!r}), or a folder that is an image: {kinds}; "
        "'bioio-tk batch' converts all images of a folder"
    )


def _marked(path: Path, row: Backend) -> bool:
    found = (path.glob(m) if "*" in m else (path / m,) for m in row.marks)
    return any(mark.is_file() for marks in found for mark in marks)


def _only_child(path: Path, row: Backend) -> Path | None:
    """Return the one image folder in `path`, None where there is none or several."""
    found = [p for p in path.iterdir() if p.name.lower().endswith(row.suffixes) and p.is_dir()]
    return found[0] if len(found) == 1 and _marked(found[0], row) else None


def resolve(location: Location, backend: Backend) -> Location:
    """Return where the image is: `location`, or the one image folder in the folder there.

    Of a TIFF that belongs to a vendor's set it is the file that describes the set.
    """
    if backend.rest and isinstance(location, Path):
        found = _vendor_tiff.set_of(location)
        return location if found is None else found.index
    if isinstance(location, Path) and location.name in backend.marks and location.is_file():
        return location.parent
    folder = bool(backend.marks) and isinstance(location, Path) and location.is_dir()
    if not folder or _marked(location, backend):  # type: ignore[arg-type]
        return location
    return _only_child(location, backend) or location  # type: ignore[arg-type]


def main_of(path: Path, backend: Backend) -> Path:
    """Return the file to open for the image that a file is a part of."""
    if backend.main:
        found: Path = _attribute(backend.main)(path)
        return found
    main = resolve(path, backend)
    return main if isinstance(main, Path) else path


def _remote(url: Url, options: dict[str, Any]) -> Choice:
    lower = url.name.lower()
    for row in _rows():
        remote = row.source and row.remote and row.name != "memory" and not row.rest
        if remote and lower.endswith(row.suffixes):
            return Choice(row, "its name says so")
    inside = [row for row in BACKENDS if row.tree and _is_inside(url, row)]
    if inside:
        return Choice(inside[0], f"it is a part of {inside[0].content}")
    from bioio_tk.backends._store_url import UrlStore

    store = UrlStore(url, options)
    try:
        for row in _rows():
            if row.tree and any(v is not None for v in store.get_many(row.marks).values()):
                return Choice(row, f"the folder is {row.content}")
        head = store.get_range("", 0, _kinds.HEAD)
        where = store.where()
    finally:
        store.close()
    if head is None:
        raise FileNotFoundError(f"there is nothing at {where!r}")
    return _by_content(url, where, head)


def _is_inside(url: Url, row: Backend) -> bool:
    return any(f"{suffix}/" in url.text.lower() for suffix in row.suffixes)


def _by_content(location: Location, where: str, head: bytes) -> Choice:
    if not head:
        raise UnknownFormatError(f"{where!r} is empty (0 bytes)")
    if _kinds.is_dicom(location.name, head):  # which may begin with the header of a TIFF
        return _rest(location, where, head, "DICOM")
    fitting = _with_magic(BACKENDS, head) or _with_magic(_rows(), head)
    named = [row for row in fitting if location.name.lower().endswith(row.suffixes)]
    special = [row for row in fitting if row.knows]
    for backend in (*special, *named, *fitting):
        if backend.container and _is_of_others(location, backend, head):
            continue
        if backend.knows and not _attribute(backend.knows)(location):
            continue
        if backend is not BACKENDS[0] or isinstance(location, Url):
            return Choice(backend, f"content is {backend.content or backend.formats}")
        return _tiff_or_xml(location, where, head)
    if isinstance(location, Path) and _kinds.is_xml(head):  # after white space or a mark of Unicode
        return _tiff_or_xml(location, where, head)
    return _rest(location, where, head, _kinds.kind_of(location.name, head))


def _with_magic(rows: Iterable[Backend], head: bytes) -> list[Backend]:
    return [row for row in rows if row.source and head.startswith(row.magic)]


def _is_of_others(location: Location, backend: Backend, head: bytes) -> bool:
    """Return whether a container (HDF5) is a format that Bio-Formats knows, and can be asked."""
    if not location.name.lower().endswith(backend.suffixes):
        return _kinds.kind_of(location.name, head) not in (None, "HDF5")
    described = isinstance(location, Path) and location.with_suffix(".xml").is_file()
    rest = next((row for row in BACKENDS if row.rest), None)
    return described and rest is not None and missing(rest) is None


def _tiff_or_xml(path: Path, where: str, head: bytes) -> Choice:
    """Return who reads a TIFF or an XML document: ours, unless there is more to it."""
    ours = BACKENDS[0]
    if not _kinds.is_xml(head):
        return _tiff(path, ours)
    with path.open("rb") as file:
        head = file.read(_XML_HEAD)
        if b"<OME" in head or b":OME" in head:
            if _keeps_pixels(head, file):
                return _rest(path, where, head, "OME-XML")
            return Choice(ours, "content is OME-XML, the pixels are in TIFFs")
    for row in BACKENDS:
        if any(root in head for root in row.documents):
            return Choice(row, f"content is {row.content}")
    return _rest(path, where, head, _kinds.xml_kind(path.name, head))


def _keeps_pixels(head: bytes, file: Any) -> bool:
    """Return whether the pixels of an OME-XML document are in it, not in TIFFs."""
    window, seen = head, len(head)
    while window and seen < _XML_MOST:
        found = _PIXELS.search(window)
        if found is not None:
            return found[0] == b"BinData"
        piece = file.read(1 << 20)
        seen += len(piece)
        window = window[-64:] + piece if piece else b""
    return False


def _tiff(path: Path, ours: Backend) -> Choice:
    alone = Choice(ours, f"content is {ours.content}")
    found = _vendor_tiff.set_of(path)
    rest = next((row for row in BACKENDS if row.rest), None)
    if found is None or rest is None:
        return alone
    see = "" if found.index == path else f" (see {found.index.name!r})"
    lacking = missing(rest)
    if lacking is None:
        return Choice(rest, f"a TIFF of {found.kind}{see}", otherwise=alone)
    note = (
        f"{path.name!r} is a TIFF of {found.kind}{see}: this file alone is read; all that belongs "
        f"to it (positions, wells, channels) is read through Bio-Formats: {lacking}"
    )
    return replace(alone, notes=(note,))


def _rest(location: Location, where: str, head: bytes, kind: str | None) -> Choice:
    """Return the backend for what no other one reads, where it may be an image at all."""
    rest = next((row for row in _rows() if row.rest), None)
    lacking = None if rest is None else missing(rest)
    if rest is not None and kind is not None:
        if lacking is not None:
            raise BackendMissingError(
                f"{where!r} seems to be {kind!r}, which is read through Bio-Formats: {lacking}"
            )
        return Choice(rest, f"{kind} is read through Bio-Formats")
    unlikely = isinstance(location, Url) or _kinds.is_other(location.name, head)
    if rest is not None and lacking is None and not unlikely:
        return Choice(rest, "no other backend knows the content")
    more = "" if lacking is None or unlikely else f"; Bio-Formats may know it: {lacking}"
    raise UnknownFormatError(
        f"{where!r} is in no format that can be read here (its first bytes are {head[:8]!r}); "
        f"these are: {_list(b.formats for b in BACKENDS if b.source and b.name != 'memory')}{more}"
    )


def missing(backend: Backend) -> str | None:
    """Return what must be installed before a backend can read, and how; None for nothing."""
    if not backend.missing:
        return None
    found: str | None = _attribute(backend.missing)()
    return found


def kinds(backend: Backend) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the formats a backend reads: each name, with the suffixes its files have."""
    if not backend.kinds:
        return ((backend.content or backend.formats, backend.suffixes),) if backend.source else ()
    found = _attribute(backend.kinds)
    return tuple((name, tuple(f".{s}" for s in suffixes.split())) for name, suffixes in found)


def for_writing(location: Location, name: str | None = None) -> Backend:
    """Return the backend that writes files called like `location`, or the one called `name`."""
    if name is not None:
        backend = _named(name)
        if not backend.sink:
            raise UnsupportedError(f"the {backend.name!r} backend reads files, it writes none")
        return backend
    lower = location.name.lower()
    found = _by_suffix(lower, BACKENDS) or _by_suffix(lower, _rows())
    if found is not None:
        return found
    if lower.endswith(".bin"):
        raise UnknownFormatError(
            f"{location.name!r}: a Suite2p binary is called data_raw.bin, and the folder that it "
            "lies in is made with it: give 'FOLDER/data_raw.bin', or 'NAME.suite2p' for the folder"
        )
    known = [s for b in BACKENDS if b.sink and b.name != "memory" for s in b.suffixes]
    raise UnknownFormatError(
        f"{location.name!r} does not say which format to write: end it with one of "
        f"{', '.join(known)}"
    )


def _by_suffix(name: str, rows: Iterable[Backend]) -> Backend | None:
    """Return the backend that writes a name; ".ome.xml" is another one's than ".xml"."""
    longest, found = 0, None
    for row in rows:
        fitting = [len(s) for s in row.suffixes if row.sink and name.endswith(s)]
        if max(fitting, default=0) > longest:
            longest, found = max(fitting), row
    return found


def home(location: Location, backend: Backend) -> Location:
    """Return what is made at a location: for a part of a folder, or of several files, the whole."""
    if isinstance(location, Path) and location.name.lower().endswith(backend.parts or ("/",)):
        return location.absolute().parent
    lower = location.name.lower()
    if isinstance(location, Path) and backend.beside and not lower.endswith(backend.suffixes):
        stem = location.stem if lower.endswith(backend.beside) else location.name
        return location.with_name(stem + backend.suffixes[0])
    return location


def files_of(location: Location, backend: Backend) -> tuple[Location, ...]:
    """Return the files that are made for an image at a location, the one that is opened first."""
    if isinstance(location, Url):
        return (location,)
    return (location, *(location.with_suffix(ending) for ending in backend.beside))


def open_source(choice: Choice, location: Location, options: OpenOptions) -> tuple[Choice, Source]:
    """Open what is at `location`; return also the choice that stands, which may be the other one.

    A TIFF of a vendor's set that is broken or not complete opens alone, with a note.
    """
    row = choice.backend
    try:
        return choice, load_source(row)(resolve(location, row), options)
    except (FormatError, BackendMissingError, UnsupportedError, FileNotFoundError) as exc:
        alone = choice.otherwise
        if alone is None:
            raise
        note = f"{choice.reason}, but it cannot be opened so, and this file alone is read: {exc}"
        row = alone.backend
        source = load_source(row)(resolve(location, row), options)
        return replace(alone, notes=(*alone.notes, note)), source


def start(name: str, **options: Any) -> Started:
    """Start what the backend called `name` runs on."""
    backend = _named(name)
    if not backend.start:
        raise SpecError(f"the {backend.name!r} backend needs no start")
    return cast("Started", _load(backend, backend.start)(**options))


def load_source(backend: Backend) -> type[Source]:
    """Import and return the Source class of `backend`."""
    return cast("type[Source]", _load(backend, backend.source))


def load_sink(backend: Backend, extra: Mapping[str, Any] | None = None) -> type[Sink]:
    """Import and return the Sink class of `backend`, for ``StoreOptions.extra``."""
    found = _load(backend, backend.sink)
    variant = getattr(found, "variant", None)
    return cast("type[Sink]", found if variant is None else variant(extra or {}))


def load_view_store() -> type[ViewStore]:
    """Import and return the class of the files that views of BigDataViewer are written to."""
    found: type[ViewStore] = _attribute(VIEWS)
    return found


def load_stream_store(name: str) -> type[GrowingStore]:
    """Import and return the class that stores streams in a format: tiff, zarr or scratch."""
    found: type[GrowingStore] = _attribute(STREAMS[name])
    return found


def _named(name: str) -> Backend:
    for backend in _rows():
        if str(name).lower() in (backend.name, *backend.aliases):
            return backend
    raise SpecError(f"no backend is called {name!r}; there are {_list(b.name for b in BACKENDS)}")


def rows() -> tuple[Backend, ...]:
    """Return all backends, those of other packages too."""
    return tuple(_rows())


def _rows() -> Iterator[Backend]:
    yield from BACKENDS
    # other packages may bring rows; asking for them takes milliseconds, so only when needed
    from importlib.metadata import entry_points

    for entry in entry_points(group="bioio_tk.backends"):
        yield entry.load()


def _list(items: Any) -> str:
    return ", ".join(str(item) for item in items)


def _load(backend: Backend, where: str) -> Any:
    try:
        return _attribute(where)
    except ImportError as exc:
        hint = f"bioio-tk[{backend.extra}]" if backend.extra else "bioio-tk"
        raise BackendMissingError(
            f"the {backend.name!r} backend needs the package {exc.name!r}, which is not installed: "
            f"pip install '{hint}'"
        ) from exc


def _attribute(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
