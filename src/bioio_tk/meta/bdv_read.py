"""The XML of a BigDataViewer dataset, of whatever program, to plain values."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.parsers import expat

from bioio_tk.core.text import plural
from bioio_tk.core.views import ViewAttribute, ViewId, ViewSetup, ViewTransform
from bioio_tk.errors import DamagedFileError, FormatError, UnsupportedError
from bioio_tk.meta.bdv_values import Loader, Partition, SpimData, ZarrImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bioio_tk.core.views import Point3

_MAX_DEPTH = 200
_MAX_TIMES = 1_000_000
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_Number = TypeVar("_Number", int, float)


def parse(text: str | bytes, where: str) -> SpimData:
    """Return what the XML of a dataset says, tolerantly; `SpimData.notes` has what was wrong.

    Parameters
    ----------
    text : str or bytes
        The document.
    where : str
        Its file, for messages.

    Raises
    ------
    DamagedFileError
        It is no XML, cut short, has a DOCTYPE, or lacks what no reader can do without.
    FormatError
        It is the XML of something else.
    """
    tree = Tree(text, where)
    return read(tree.root, where, tree.notes)


class Tree:
    """A document as a tree of elements, with its comments; names keep their prefixes.

    Attributes
    ----------
    root : Element
        ``SpimData``.
    before, after : str
        Comments outside it.
    notes : list of str
        What was wrong.
    """

    def __init__(self, text: str | bytes, where: str) -> None:
        self.notes: list[str] = []
        try:
            self._read(text)
        except expat.ExpatError as exc:
            raise DamagedFileError(
                f"{where!r} is no XML or was cut short: {exc}; BigStitcher keeps older versions "
                "beside it ('….xml~1')"
            ) from exc
        except _RefusedError as exc:
            raise DamagedFileError(f"{where!r} {exc}") from exc
        if self.root.tag != "SpimData":
            raise FormatError(
                f"{where!r} has <{self.root.tag}>, where the XML of BigDataViewer has <SpimData>"
            )

    def _read(self, text: str | bytes) -> None:
        if isinstance(text, str):
            self._grow(text.removeprefix("\ufeff").encode(errors="replace"), "UTF-8")
            return
        try:
            self._grow(text, None)
        except expat.ExpatError as exc:
            if exc.code != expat.errors.codes[expat.errors.XML_ERROR_INVALID_TOKEN]:
                raise
            # Java may write in the encoding of Windows what it declares as UTF-8: µ is one byte.
            try:
                self._grow(text, "ISO-8859-1")
            except expat.ExpatError:
                raise exc from None
            self.notes.append("not all of it is UTF-8: read as Latin-1")

    def _grow(self, data: bytes, encoding: str | None) -> None:
        builder = ET.TreeBuilder(insert_comments=True, insert_pis=True)
        parser = expat.ParserCreate(encoding)
        parser.buffer_text = True
        outside: tuple[list[str], list[str]] = ([], [])
        depth = ended = 0

        def start(tag: str, attributes: dict[str, str]) -> None:
            nonlocal depth
            depth += 1
            if depth > _MAX_DEPTH:
                raise _RefusedError("is nested too deep to be a dataset of BigDataViewer")
            builder.start(tag, attributes)

        def end(tag: str) -> None:
            nonlocal depth, ended
            depth -= 1
            ended = ended or not depth
            builder.end(tag)

        def comment(content: str) -> None:
            if depth:
                builder.comment(content)
            else:
                outside[ended].append(f"<!--{content}-->\n")

        parser.StartElementHandler = start
        parser.EndElementHandler = end
        parser.CharacterDataHandler = builder.data
        parser.CommentHandler = comment
        parser.ProcessingInstructionHandler = builder.pi
        parser.StartDoctypeDeclHandler = _refuse
        parser.Parse(data, True)
        self.root = builder.close()
        self.before, self.after = ("".join(part) for part in outside)


class _RefusedError(Exception):
    pass


def _refuse(*_: Any) -> None:
    raise _RefusedError(
        "has a DOCTYPE, which no dataset of BigDataViewer has and which is never read: remove it"
    )


def read(root: ET.Element, where: str, notes: Iterable[str] = ()) -> SpimData:
    """Return what a tree says; like `parse`."""
    reading = _Reading(where, [*notes])
    sequence = root.find("SequenceDescription")
    if sequence is None:
        raise DamagedFileError(
            f"{where!r} has no <SequenceDescription>, which says what the dataset consists of"
        )
    data = SpimData(_loader(sequence.find("ImageLoader"), reading))
    data.base_path = _text(root, "BasePath") or "."
    data.created_by = _created_by(root.find("generatedBy"))
    for element in sequence.iterfind("ViewSetups/ViewSetup"):
        setup = _setup(element, reading)
        if setup.id in data.setups:
            reading.notes.append(f"view setup {setup.id} is there twice: the last one counts")
        data.setups[setup.id] = setup
    data.attributes = _attributes(sequence, data.setups, reading)
    data.transforms = dict(_registrations(root, reading))
    data.times = _times(sequence.find("Timepoints"), data.transforms, reading)
    listed = _view_ids(sequence.iterfind("MissingViews/MissingView"), reading)
    times = set(data.times)
    data.missing = frozenset(v for v in listed if v.time in times and v.setup in data.setups)
    lost = len(data.times) * len(data.setups) - len(data.missing)
    lost -= sum(
        v.time in times and v.setup in data.setups and v not in data.missing
        for v in data.transforms
    )
    if lost:
        reading.notes.append(
            f"{plural(lost, 'view is', 'views are')} neither registered nor said to be missing"
        )
    data.notes = tuple(dict.fromkeys(reading.notes))
    return data


class _Reading:
    """Where numbers come from, and what was wrong with them."""

    def __init__(self, where: str, notes: list[str]) -> None:
        self.where = where
        self.notes = notes

    def whole(self, text: str | None, what: str) -> int:
        try:
            return int(text or "")
        except ValueError as exc:
            raise DamagedFileError(
                f"{self.where!r}: {what} is {_short(text)}, not a whole number"
            ) from exc

    def wholes(self, text: str | None, what: str) -> tuple[int, ...]:
        return tuple(self.whole(word, what) for word in (text or "").split())

    def several(
        self, text: str | None, number: Callable[[str], _Number], count: int, what: str
    ) -> tuple[_Number, ...] | None:
        """Return finite numbers, or None and a note where it is something else."""
        try:
            numbers = tuple(number(word) for word in (text or "").split())
        except ValueError:
            numbers = ()
        if len(numbers) == count and all(map(math.isfinite, numbers)):
            return numbers
        self.notes.append(f"{what} is {_short(text)}, not {count} numbers: not used")
        return None


def _short(text: str | None) -> str:
    return repr(text if text is None or len(text) < 60 else text[:57] + "…")


def _text(parent: ET.Element | None, tag: str) -> str:
    return ("" if parent is None else parent.findtext(tag) or "").strip()


def _children(parent: ET.Element | None) -> list[ET.Element]:
    """Return the elements in an element, without its comments."""
    # To ElementTree a comment is an element whose name is a function.
    children: list[Any] = [] if parent is None else list(parent)
    return [child for child in children if isinstance(child.tag, str)]


# -- where the pixels are -------------------------------------------------------------------------


def _loader(element: ET.Element | None, reading: _Reading) -> Loader:
    if element is None:
        raise DamagedFileError(
            f"{reading.where!r} has no <ImageLoader>, which says where the pixels are"
        )
    elements = _children(element)
    main = next((c for c in elements if c.tag in ("hdf5", "n5", "zarr")), None)
    if main is None:
        main = next((child for child in elements if (child.text or "").strip()), None)
    path = "" if main is None else (main.text or "").strip()
    bucket = _text(element, "s3bucket")
    if bucket:
        path = f"s3://{bucket}/{path.lstrip('/')}"
    kind = None if main is None or bucket else main.get("type")
    return Loader(
        format=element.get("format", ""),
        path=path,
        kind=kind or ("absolute" if _is_absolute(path) else "relative"),
        partitions=tuple(_partition(child, reading) for child in element.iterfind("partition")),
        images=dict(_zarr_image(g, reading) for g in element.iterfind("zgroups/zgroup")),
        version=element.get("version", ""),
    )


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or bool(_URL.match(path) or _WINDOWS.match(path))


def _partition(element: ET.Element, reading: _Reading) -> Partition:
    return Partition(
        _text(element, "path"),
        reading.wholes(element.findtext("timepoints"), "a time point of a partition"),
        reading.wholes(element.findtext("setups"), "a view setup of a partition"),
    )


def _zarr_image(element: ET.Element, reading: _Reading) -> tuple[ViewId, ZarrImage]:
    # Version 1.0 says "timepoint" and has the path in a child; the misspelling is theirs.
    time = element.get("tp", element.get("timepoint"))
    view = ViewId(
        reading.whole(time, "the time point of a <zgroup>"),
        reading.whole(element.get("setup"), "the view setup of a <zgroup>"),
    )
    words = element.get("indicies", element.get("indices", "")).strip("[] ").replace(",", " ")
    indices = reading.wholes(words, "an index of a <zgroup>")
    return view, ZarrImage(element.get("path") or _text(element, "path"), indices)


def loader_path(data: SpimData, xml_path: Path) -> Path:
    """Return where the pixels of a dataset are: a file or a folder.

    Paths of other computers (absolute ones, those of Windows, file URIs) are taken as they are
    where they fit; else the file of the same name beside the XML, where there is one.

    Parameters
    ----------
    data : SpimData
        Of the XML.
    xml_path : Path
        The XML.

    Returns
    -------
    path : Path
        What exists, else where it should be.

    Raises
    ------
    DamagedFileError
        The XML names no file.
    UnsupportedError
        The pixels are not in a local file.
    """
    folder = xml_path.parent
    loader = data.loader
    if not loader.path:
        raise DamagedFileError(f"{str(xml_path)!r} does not say in which file the pixels are")
    bases = [*_local(data.base_path, [folder]), folder]
    places = _local(loader.path, bases if loader.kind == "relative" else [folder])
    places.append(folder / PureWindowsPath(unquote(loader.path)).name)
    # Path.exists() raises for what is no name here.
    return next((place for place in places if os.path.exists(place)), places[0])  # noqa: PTH110


def _local(path: str, bases: list[Path]) -> list[Path]:
    """Return what a path can mean, the likeliest first."""
    if _URL.match(path) and not _WINDOWS.match(path):
        parts = urlsplit(path)
        if parts.scheme.lower() != "file":
            raise UnsupportedError(
                f"the pixels of this dataset are at {path!r}: copy them here and write their "
                "place into the <ImageLoader> of the XML"
            )
        local = unquote(parts.path)
        # file:///C:/data
        path = local[1:] if _WINDOWS.match(local[1:]) else local
    meant = [path, path.replace("\\", "/"), unquote(path.replace("\\", "/"))]
    # "/" begins a path of this computer, whatever it is said to be relative to.
    return [base / one for base in bases for one in dict.fromkeys(meant)]


def _created_by(element: ET.Element | None) -> dict[str, str]:
    if element is None:
        return {}
    library, microscope = element.find("library"), element.find("microscope")
    found = {
        "library": _text(element, "library"),
        "library_version": "" if library is None else library.get("version", ""),
        "microscope": _text(microscope, "name"),
        "microscope_version": _text(microscope, "version"),
        "user": _text(microscope, "user"),
    }
    return {key: value for key, value in found.items() if value}


# -- what there is --------------------------------------------------------------------------------


def _setup(element: ET.Element, reading: _Reading) -> ViewSetup:
    number = reading.whole(element.findtext("id"), "the id of a view setup")
    what = f"of view setup {number}"
    size = voxel_size = None
    if element.find("size") is not None:
        size = reading.several(element.findtext("size"), int, 3, f"the size {what}")
    voxel = element.find("voxelSize")
    if voxel is not None:
        voxel_size = reading.several(voxel.findtext("size"), float, 3, f"the voxel size {what}")
    return ViewSetup(
        number,
        _text(element, "name"),
        None if size is None else (size[2], size[1], size[0]),
        None if voxel_size is None else _point(voxel_size),
        _text(voxel, "unit"),
        {
            child.tag: reading.whole(child.text, f"the {child.tag} {what}")
            for child in _children(element.find("attributes"))
        },
        {child.tag: (child.text or "").strip() for child in _children(element.find("camera"))},
    )


def _point(numbers: tuple[float, ...]) -> Point3:
    return (numbers[0], numbers[1], numbers[2])


def _attributes(
    sequence: ET.Element, setups: dict[int, ViewSetup], reading: _Reading
) -> dict[str, dict[int, ViewAttribute]]:
    found: dict[str, dict[int, ViewAttribute]] = {}
    for group in sequence.iterfind("ViewSetups/Attributes"):
        kind = group.get("name", "")
        values = found.setdefault(kind, {})
        for element in _children(group):
            number = reading.whole(element.findtext("id"), f"the id of a {kind}")
            properties = {
                child.tag: (child.text or "").strip()
                for child in _children(element)
                if child.tag not in ("id", "name")
            }
            values[number] = ViewAttribute(number, _text(element, "name"), properties)
    for setup in setups.values():
        for kind, number in setup.attributes.items():
            if number not in found.setdefault(kind, {}):
                found[kind][number] = ViewAttribute(number)
                reading.notes.append(
                    f"{kind} {number} of view setup {setup.id} is not in <Attributes>"
                )
    return found


def _times(
    element: ET.Element | None, registered: Iterable[ViewId], reading: _Reading
) -> tuple[int, ...]:
    if element is None:
        reading.notes.append("no <Timepoints>: the time points are those of the registered views")
        return tuple(sorted({view.time for view in registered}))
    pattern = element.findtext("integerpattern")
    if pattern is not None:
        return _pattern(pattern, reading)
    if element.find("first") is not None:
        first = reading.whole(element.findtext("first"), "the first time point")
        last = reading.whole(element.findtext("last"), "the last time point")
        return tuple(_range(first, last, 1, reading))
    ids = [
        reading.whole(point.findtext("id"), "the id of a time point")
        for point in element.iterfind("Timepoint")
    ]
    return tuple(sorted(set(ids)))


def _pattern(text: str, reading: _Reading) -> tuple[int, ...]:
    """Return the numbers of "0-10:2,15": ranges with a step."""
    found: set[int] = set()
    for part in (text.strip() or "0").split(","):
        words = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", "".join(part.split()))
        step = int(words[3] or 1) if words else 0
        if words is None or not step:
            raise DamagedFileError(
                f"{reading.where!r}: the time points are {_short(text)}, which is no list of "
                "numbers and ranges like '0-10:2,15'"
            )
        first = int(words[1])
        last = int(words[2] or first)
        # A range may run downwards: 10-0:2 is not 0-10:2 where the step does not fit.
        found.update(_range(first, last, step if last >= first else -step, reading))
    return tuple(sorted(found))


def _range(first: int, last: int, step: int, reading: _Reading) -> range:
    numbers = range(first, last + (1 if step > 0 else -1), step)
    if len(numbers) > _MAX_TIMES:
        raise DamagedFileError(
            f"{reading.where!r}: time points {first} to {last} are more than a dataset has"
        )
    return numbers


# -- where it is in the world ---------------------------------------------------------------------


def view_id(element: ET.Element, reading: _Reading) -> ViewId:
    """Return which view an element is about."""
    return ViewId(
        reading.whole(element.get("timepoint"), f"the time point of a <{element.tag}>"),
        reading.whole(element.get("setup"), f"the view setup of a <{element.tag}>"),
    )


def _view_ids(elements: Iterable[ET.Element], reading: _Reading) -> list[ViewId]:
    return [view_id(element, reading) for element in elements]


def registrations(root: ET.Element, where: str) -> dict[ViewId, ET.Element]:
    """Return the element of each registered view; of several the last one counts."""
    reading = _Reading(where, [])
    elements = root.iterfind("ViewRegistrations/ViewRegistration")
    return {view_id(element, reading): element for element in elements}


def _registrations(
    root: ET.Element, reading: _Reading
) -> Iterable[tuple[ViewId, tuple[ViewTransform, ...]]]:
    if root.find("ViewRegistrations") is None:
        reading.notes.append("no <ViewRegistrations>: where the views are is not known")
    for element in root.iterfind("ViewRegistrations/ViewRegistration"):
        view = view_id(element, reading)
        yield view, transforms(element, view, reading.notes)


def transforms(element: ET.Element, view: ViewId, notes: list[str]) -> tuple[ViewTransform, ...]:
    """Return the transforms of a registration, the last one to be applied first.

    One that cannot be read changes nothing, but keeps its place.
    """
    reading = _Reading("", notes)
    found = []
    for child in element.iterfind("ViewTransform"):
        what = f"a transform of time point {view.time}, view setup {view.setup}"
        numbers = reading.several(child.findtext("affine"), float, 12, what)
        found.append(ViewTransform(numbers or _NOTHING, _text(child, "Name")))
    return tuple(found)


_NOTHING = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
