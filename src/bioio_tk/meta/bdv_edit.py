"""Change a few things in the XML of a BigDataViewer dataset; everything else stays as it is."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from bioio_tk.core.text import plural
from bioio_tk.core.views import ViewId
from bioio_tk.errors import DamagedFileError, SpecError, TargetBusyError
from bioio_tk.meta.bdv_read import Tree, read, registrations, transforms
from bioio_tk.meta.bdv_xml import affine_text, check_text, size_text

if TYPE_CHECKING:
    from bioio_tk.core.views import Shape3, ViewTransform
    from bioio_tk.meta.bdv_values import SpimData

BACKUPS = 5
"""So many older versions stay beside the XML, as with BigStitcher."""


class SpimDocument:
    """The XML of a dataset, to be changed in places and written back.

    Attributes
    ----------
    path : Path
        Where it was read.
    data : SpimData
        What it says, with the changes made so far.
    changed : bool
        There are any.

    Raises
    ------
    DamagedFileError, FormatError
        As `parse`.
    FileNotFoundError
        It is not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._there = self.path.read_bytes()
        self._tree = Tree(self._there, str(path))
        self.data: SpimData = read(self._tree.root, str(path), self._tree.notes)
        self._registrations = registrations(self._tree.root, str(path))
        self._times = frozenset(self.data.times)
        self.changed = False

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SpimDocument:
        """Return the document at a path."""
        return cls(path)

    def insert_transform(self, view: ViewId, transform: ViewTransform, index: int = 0) -> None:
        """Give a view one more transform; at index 0 it is applied after all others.

        A view without registration gets one.

        Raises
        ------
        SpecError
            There is no such view, or the index is more than the number of its transforms.
        """
        self._check_view(view)
        element = self._registrations.get(view)
        there = [] if element is None else element.findall("ViewTransform")
        if not 0 <= index <= len(there):
            raise SpecError(
                f"{view} has {plural(len(there), 'transform')}: insert at 0 to {len(there)}, "
                f"not {index}"
            )
        new = _transform(transform)
        if element is None:
            element = self._register(view)
        place = list(element).index(there[index]) if index < len(there) else len(element)
        _insert(element, place, new, 3)
        self._changed(view, element)

    def replace_transform(self, view: ViewId, index: int, transform: ViewTransform) -> None:
        """Put another transform in the place of one.

        Raises
        ------
        SpecError
            There is no such view or transform.
        """
        element, old = self._find(view, index)
        new = _transform(transform)
        place = list(element).index(old)
        _remove(element, old)
        _insert(element, place, new, 3)
        self._changed(view, element)

    def remove_transform(self, view: ViewId, index: int) -> None:
        """Take a transform away.

        Raises
        ------
        SpecError
            There is no such view or transform.
        """
        element, old = self._find(view, index)
        _remove(element, old)
        self._changed(view, element)

    def set_size(self, setup: int, size: Shape3) -> None:
        """Say how large the full resolution of a setup is, along Z, Y, X.

        Raises
        ------
        SpecError
            There is no such setup, or it is no size.
        """
        text = size_text(size, f"of view setup {setup}")
        for element in self._tree.root.iterfind("SequenceDescription/ViewSetups/ViewSetup"):
            if int(element.findtext("id", "")) == setup:
                found = element.find("size")
                if found is None:
                    found = ET.Element("size")
                    _insert(element, _after(element, ("id", "name")), found, 4)
                found.text = text
                break
        else:
            raise SpecError(
                f"{str(self.path)!r} has no view setup {setup}; it has {_few(self.data.setups)}"
            )
        self.data.setups[setup] = replace(self.data.setups[setup], size=size)
        self.changed = True

    def add_missing(self, view: ViewId) -> None:
        """Say that a view has no pixels.

        Raises
        ------
        SpecError
            There is no such view.
        """
        self._check_view(view)
        if view in self.data.missing:
            return
        sequence = self._tree.root.find("SequenceDescription")
        if sequence is None:
            raise DamagedFileError(f"{str(self.path)!r} has no <SequenceDescription>")
        group = sequence.find("MissingViews")
        if group is None:
            group = ET.Element("MissingViews")
            _insert(sequence, _after(sequence, ("Timepoints",)), group, 2)
        _insert(group, len(group), ET.Element("MissingView", _numbers(view)), 3)
        self.data.missing |= {view}
        self.changed = True

    def render(self) -> bytes:
        """Return the whole document, in UTF-8."""
        tree = self._tree
        text = ET.tostring(tree.root, encoding="unicode")
        start = '<?xml version="1.0" encoding="UTF-8"?>\n'
        return f"{start}{tree.before}{text.rstrip()}\n{tree.after}".encode()

    def save(self, path: str | os.PathLike[str] | None = None, *, backup: bool = True) -> None:
        """Write the document, atomically.

        Parameters
        ----------
        path : path-like, optional
            Default: where it was read.
        backup : bool
            Keep what was there as ``X.xml~1``, what this was before as ``X.xml~2``, …

        Raises
        ------
        TargetBusyError
            Another program has changed the file since it was opened.
        OSError
            It cannot be written; what was there is still there.
        """
        target = self.path if path is None else Path(path)
        text = self.render()
        if target == self.path:
            self.check_unchanged()
        if backup:
            back_up(target)
        write_atomic(target, text)
        if target == self.path:
            self._there = text

    def check_unchanged(self) -> None:
        """Raise TargetBusyError where another program has changed the file since it was opened."""
        try:
            there = self.path.read_bytes()
        except FileNotFoundError:
            return
        if there != self._there:
            raise TargetBusyError(
                f"{str(self.path)!r} was changed by another program since it was opened, and those "
                "changes would be lost: open it anew and do yours again"
            )

    def _check_view(self, view: ViewId) -> None:
        if view.setup not in self.data.setups:
            raise SpecError(
                f"{str(self.path)!r} has no view setup {view.setup}; it has "
                f"{_few(self.data.setups)}"
            )
        if view.time not in self._times:
            raise SpecError(
                f"{str(self.path)!r} has no time point {view.time}; it has {_few(self.data.times)}"
            )

    def _find(self, view: ViewId, index: int) -> tuple[ET.Element, ET.Element]:
        self._check_view(view)
        element = self._registrations.get(view)
        there = [] if element is None else element.findall("ViewTransform")
        if element is None or not 0 <= index < len(there):
            raise SpecError(f"{view} has {plural(len(there), 'transform')}, and none at {index}")
        return element, there[index]

    def _register(self, view: ViewId) -> ET.Element:
        root = self._tree.root
        group = root.find("ViewRegistrations")
        if group is None:
            group = ET.Element("ViewRegistrations")
            _insert(root, _after(root, ("SequenceDescription",)), group, 1)
        element = ET.Element("ViewRegistration", _numbers(view))
        _insert(group, len(group), element, 2)
        self._registrations[view] = element
        return element

    def _changed(self, view: ViewId, element: ET.Element) -> None:
        self.data.transforms[view] = transforms(element, view, [])
        self.changed = True


def _few(numbers: object) -> str:
    listed = sorted(numbers)  # type: ignore[call-overload]
    if len(listed) > 8:
        return f"{listed[0]} … {listed[-1]} ({len(listed)} of them)"
    return ", ".join(map(str, listed)) or "none"


def _numbers(view: ViewId) -> dict[str, str]:
    return {"timepoint": str(view.time), "setup": str(view.setup)}


# -- elements -------------------------------------------------------------------------------------


def _transform(transform: ViewTransform) -> ET.Element:
    element = ET.Element("ViewTransform", {"type": "affine"})
    if transform.name:
        ET.SubElement(element, "Name").text = check_text(transform.name, "the name of a transform")
    ET.SubElement(element, "affine").text = affine_text(transform)
    return element


def _after(parent: ET.Element, tags: tuple[str, ...]) -> int:
    """Return the place behind the last child of these names."""
    return max((n + 1 for n, child in enumerate(parent) if child.tag in tags), default=0)


def _insert(parent: ET.Element, place: int, child: ET.Element, depth: int) -> None:
    """Put in a child, with line breaks and blanks as its neighbours have them."""
    pretty = True
    if not len(parent):
        parent.text, child.tail = "\n" + "  " * depth, "\n" + "  " * (depth - 1)
    else:
        lead = parent.text if not (parent.text or "").strip() else ""
        pretty = bool(lead)
        if place < len(parent):
            child.tail = lead
        else:
            child.tail, parent[-1].tail = parent[-1].tail, lead
    if pretty and len(child):
        ET.indent(child, level=depth)
    parent.insert(place, child)


def _remove(parent: ET.Element, child: ET.Element) -> None:
    place = list(parent).index(child)
    if place == len(parent) - 1:
        if place:
            parent[place - 1].tail = child.tail
        else:
            parent.text = None
    child.tail = None
    parent.remove(child)


# -- files ----------------------------------------------------------------------------------------


def back_up(path: Path) -> None:
    """Keep a file as ``NAME~1``, the one that was this as ``NAME~2``, up to `BACKUPS` of them.

    Raises
    ------
    OSError
        It cannot be copied; no version is lost but the oldest.
    """
    if not path.exists():
        return
    copy = _beside(path)
    try:
        shutil.copy2(path, copy)
        names = [path.with_name(f"{path.name}~{n}") for n in range(1, BACKUPS + 1)]
        kept = next((n for n, name in enumerate(names) if not name.exists()), BACKUPS - 1)
        for n in range(kept, 0, -1):
            os.replace(names[n - 1], names[n])
        os.replace(copy, names[0])
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, text: bytes) -> None:
    """Write a file in one step: whoever opens it has the old or the new one, never a part.

    Raises
    ------
    OSError
        It cannot be written; what was there is still there.
    """
    # A link stays one.
    path = Path(os.path.realpath(path))
    new = _beside(path)
    try:
        new.write_bytes(text)
        with suppress(OSError):
            shutil.copymode(path, new)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{secrets.token_hex(4)}.part")
