"""The XML of a BigDataViewer dataset that grows view by view."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote

from bioio_tk.core.views import ATTRIBUTES, ViewAttribute, ViewId, ViewSetup, ViewTransform
from bioio_tk.errors import SpecError
from bioio_tk.meta.bdv_values import HDF5, N5, ZARR, Loader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TEXT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_QUOTED = _TEXT | str.maketrans({'"': "&quot;", "\n": "&#10;", "\t": "&#9;"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# Bio-Formats takes what it does not know for µm.
_PIXEL = frozenset({"", "px", "pix", "pixels"})


class SpimXml:
    """Writes the XML of a dataset, over and over while views are added.

    It has the order of elements and the spaces that BigDataViewer, BigStitcher and Bio-Formats
    need. View setups without any view are left out; the views of the others that are not there
    are listed as missing.

    Parameters
    ----------
    loader : Loader
        Where the pixels are; can be set anew.
    created_by : mapping of str to str
        As `SpimData.created_by`.

    Raises
    ------
    SpecError
        From every method: a value that cannot stand in such an XML.
    """

    def __init__(self, loader: Loader, *, created_by: Mapping[str, str] | None = None) -> None:
        self._head = b""
        self.created_by = created_by or {}
        self._setups: dict[int, ViewSetup] = {}
        self._setup_texts: dict[int, str] = {}
        self._attributes: dict[str, dict[int, str]] = {kind: {} for kind in ATTRIBUTES}
        self._wanted: int | tuple[int, ...] = 0
        # What is long is kept in pieces, one for each time point.
        self._views: dict[int, dict[int, str]] = {}
        self._counts: dict[int, int] = {}
        self._registered: dict[int, bytes] = {}
        self._missing: dict[int, bytes] = {}
        self._head = b""
        self.loader = loader

    @property
    def loader(self) -> Loader:
        """Where the pixels are."""
        return self._loader

    @loader.setter
    def loader(self, loader: Loader) -> None:
        self._loader_text = _loader(loader)
        self._loader = loader
        self._head = b""

    @property
    def created_by(self) -> Mapping[str, str]:
        """As `SpimData.created_by`."""
        return self._creators

    @created_by.setter
    def created_by(self, said: Mapping[str, str]) -> None:
        self._created_by = _created_by(said)
        self._creators = dict(said)
        self._head = b""

    def set_setup(self, setup: ViewSetup) -> None:
        """Say what the views of a setup have in common, anew if it is known."""
        self._setup_texts[setup.id] = _setup(setup)
        self._setups[setup.id] = setup
        self._head = b""

    def set_attribute(self, kind: str, attribute: ViewAttribute) -> None:
        """Say what a channel, tile, … is called; those that nothing is said of have their id."""
        text = attribute_text(kind, attribute)
        self._attributes.setdefault(kind, {})[attribute.id] = text
        self._head = b""

    def set_times(self, times: int | Iterable[int]) -> None:
        """Say which time points there are: so many from 0, or their ids.

        Those of views belong to them in any case. Without this it is all up to the last of these.
        Bio-Formats shows all of them only where none is left out: rather have missing views than
        ids with gaps.
        """
        if isinstance(times, Iterable):
            self._wanted = tuple(_whole(time, "a time point") for time in times)
        else:
            self._wanted = _whole(times, "the number of time points")

    def set_view(self, view: ViewId, transforms: Sequence[ViewTransform] = ()) -> None:
        """Say that a view is there, and where in the world; the last transform is applied first."""
        if view.setup not in self._setups:
            raise SpecError(f"{view} is of a view setup that nothing was said of: set_setup first")
        _whole(view.time, "a time point")
        text = "".join(_transform(transform) for transform in transforms)
        views = self._views.setdefault(view.time, {})
        if view.setup not in views:
            self._count(view, 1)
        views[view.setup] = (
            f'    <ViewRegistration timepoint="{view.time}" setup="{view.setup}">\n'
            f"{text}    </ViewRegistration>\n"
        )
        self._registered.pop(view.time, None)

    def drop_view(self, view: ViewId) -> None:
        """Say that a view is not there any more; one that never was changes nothing."""
        if self._views.get(view.time, {}).pop(view.setup, None) is not None:
            self._count(view, -1)
            self._registered.pop(view.time, None)
            if not self._views[view.time]:
                del self._views[view.time]

    def _count(self, view: ViewId, more: int) -> None:
        before = self._counts.get(view.setup, 0)
        self._counts[view.setup] = before + more
        self._missing.pop(view.time, None)
        if not before or not self._counts[view.setup]:
            # A setup comes or goes, and with it the missing views of all time points.
            self._missing.clear()
            self._head = b""

    @property
    def times(self) -> tuple[int, ...]:
        """Ids of the time points."""
        last = max(self._views, default=0)
        if isinstance(self._wanted, int):
            return tuple(range(max(self._wanted, last + 1)))
        return tuple(sorted({*self._wanted, *self._views} or {0}))

    @property
    def missing(self) -> frozenset[ViewId]:
        """The views that are not there, of the setups that have any."""
        setups = self._listed()
        return frozenset(
            ViewId(time, setup)
            for time in self.times
            for setup in setups
            if setup not in self._views.get(time, ())
        )

    def render(self) -> bytes:
        """Return the whole document, in UTF-8."""
        if not self._head:
            self._head = "".join(self._before_times()).encode()
        times = self.times
        setups = self._listed()
        missing = b"".join([self._missing_of(time, setups) for time in times])
        return b"".join(
            (
                self._head,
                _times(times).encode(),
                b"    <MissingViews>\n%b    </MissingViews>\n" % missing if missing else b"",
                b"  </SequenceDescription>\n  <ViewRegistrations>\n",
                *[self._registrations_of(time) for time in times],
                b"  </ViewRegistrations>\n</SpimData>\n",
            )
        )

    def _listed(self) -> list[int]:
        return sorted(setup for setup, count in self._counts.items() if count)

    def _before_times(self) -> Iterator[str]:
        setups = self._listed()
        # Bio-Formats looks for <SpimData within the first 100 bytes.
        yield '<?xml version="1.0" encoding="UTF-8"?>\n<SpimData version="0.2">\n'
        yield '  <BasePath type="relative">.</BasePath>\n'
        yield self._created_by
        yield f"  <SequenceDescription>\n{self._loader_text}    <ViewSetups>\n"
        # Bio-Formats overlooks an id that is less than the number of setups before it.
        yield from (self._setup_texts[number] for number in setups)
        kinds = dict.fromkeys(self._attributes)
        kinds.update(dict.fromkeys(k for n in setups for k in self._setups[n].attributes))
        for kind in kinds:
            yield from self._attribute_list(kind, setups)
        yield "    </ViewSetups>\n"

    def _attribute_list(self, kind: str, setups: list[int]) -> Iterator[str]:
        known = dict(self._attributes.get(kind, {}))
        for number in setups:
            attributes = self._setups[number].attributes
            used = attributes.get(kind, 0 if kind in ATTRIBUTES else None)
            if used is not None and used not in known:
                known[used] = attribute_text(kind, ViewAttribute(used))
        yield f'      <Attributes name="{kind}">\n'
        yield from (known[number] for number in sorted(known))
        yield "      </Attributes>\n"

    def _missing_of(self, time: int, setups: list[int]) -> bytes:
        text = self._missing.get(time)
        if text is None:
            there = self._views.get(time, {})
            text = "".join(
                f'      <MissingView timepoint="{time}" setup="{setup}" />\n'
                for setup in setups
                if setup not in there
            ).encode()
            self._missing[time] = text
        return text

    def _registrations_of(self, time: int) -> bytes:
        text = self._registered.get(time)
        if text is None:
            views = self._views.get(time, {})
            text = "".join(views[setup] for setup in sorted(views)).encode()
            self._registered[time] = text
        return text


# -- pieces ---------------------------------------------------------------------------------------


def check_text(text: str, what: str) -> str:
    """Return the same text.

    Raises
    ------
    SpecError
        It has a character that XML cannot hold.
    """
    found = _FORBIDDEN.search(text)
    if found:
        raise SpecError(
            f"{what} {text!r} has the character U+{ord(found[0]):04X}, which XML cannot hold: "
            "leave it out"
        )
    return text


def _escaped(text: str, what: str) -> str:
    return check_text(text, what).translate(_TEXT)


def _in_one_piece(text: str, what: str) -> str:
    """Return text for an element that Bio-Formats reads: of several pieces it takes the last."""
    plain = check_text(text, what)
    pieces = plain != plain.translate(_TEXT) and "\r" not in plain and "]]>" not in plain
    return f"<![CDATA[{plain}]]>" if pieces else plain.translate(_TEXT)


def _quoted(text: str, what: str) -> str:
    return check_text(text, what).translate(_QUOTED)


def _tag(name: str) -> str:
    """Return the name of an attribute with a capital letter, as its elements have it."""
    if not _NAME.fullmatch(name):
        raise SpecError(f"{name!r} cannot be the name of an element: give letters and digits")
    return name[0].upper() + name[1:]


def _whole(number: int, what: str) -> int:
    if not 0 <= number < 2**31 or number != int(number):
        raise SpecError(f"{what} is {number!r}: give a whole number from 0 (Java's have 31 bits)")
    return int(number)


def _element(tag: str, text: str, what: str, indent: int) -> str:
    return f"{' ' * indent}<{tag}>{_escaped(text, what)}</{tag}>\n"


def _created_by(said: Mapping[str, str]) -> str:
    out = []
    if "library" in said:
        version = _quoted(said.get("library_version", ""), "the version of the library")
        name = _escaped(said["library"], "the name of the library")
        out.append(f'    <library version="{version}">{name}</library>\n')
    keys = {"microscope": "name", "microscope_version": "version", "user": "user"}
    inside = [
        _element(tag, said[key], f"the {key.replace('_', ' ')}", 6)
        for key, tag in keys.items()
        if key in said
    ]
    if inside:
        out.append(f"    <microscope>\n{''.join(inside)}    </microscope>\n")
    return f"  <generatedBy>\n{''.join(out)}  </generatedBy>\n" if out else ""


def _loader(loader: Loader) -> str:
    forms = {HDF5: ("hdf5", ""), N5: ("n5", ' version="1.0"'), ZARR: ("zarr", ' version="3.0"')}
    if loader.format not in forms:
        raise SpecError(f"{loader.format!r} is not written; {', '.join(forms)} are")
    tag, version = forms[loader.format]
    # Readers of HDF5 take the path as it is, those of the others as part of a URI.
    as_is = loader.format == HDF5 or loader.kind != "relative"
    path = loader.path if as_is else quote(loader.path)
    return (
        f'    <ImageLoader format="{loader.format}"{version}>\n'
        f'      <{tag} type="{loader.kind}">{_in_one_piece(path, "the path")}</{tag}>\n'
        f"{_partitions(loader)}{_zarr_images(loader)}"
        "    </ImageLoader>\n"
    )


def _partitions(loader: Loader) -> str:
    return "".join(
        f'      <partition>\n        <path type="{loader.kind}">'
        f"{_escaped(one.path, 'the path')}</path>\n"
        f"        <timepoints>{_words(one.times)}</timepoints>\n"
        f"        <setups>{_words(one.setups)}</setups>\n      </partition>\n"
        for one in loader.partitions
    )


def _zarr_images(loader: Loader) -> str:
    if loader.format != ZARR:
        return ""
    groups = "".join(
        f'        <zgroup setup="{view.setup}" tp="{view.time}" '
        f'path="{_quoted(image.path, "the path")}" indicies="{_words(image.indices) or "[]"}"/>\n'
        for view, image in sorted(loader.images.items())
    )
    return f"      <zgroups>\n{groups}      </zgroups>\n"


def _words(numbers: Iterable[float]) -> str:
    return " ".join(map(str, numbers))


def _setup(setup: ViewSetup) -> str:
    what = f"of view setup {_whole(setup.id, 'the id of a view setup')}"
    out = [f"      <ViewSetup>\n        <id>{int(setup.id)}</id>\n"]
    if setup.name:
        out.append(_element("name", setup.name, f"the name {what}", 8))
    if setup.size is not None:
        out.append(f"        <size>{size_text(setup.size, what)}</size>\n")
    unit = "pixel" if setup.voxel_unit.strip().lower() in _PIXEL else setup.voxel_unit
    voxel = [float(length) for length in setup.voxel_size or (1, 1, 1)]
    if len(voxel) != 3 or not all(0 < length < math.inf for length in voxel):
        raise SpecError(f"the voxel size {what} is {tuple(voxel)}: give 3 positive sizes, X, Y, Z")
    # Single spaces, no line break: Bio-Formats splits there.
    out.append(
        f"        <voxelSize>\n{_element('unit', unit, f'the unit {what}', 10)}"
        f"          <size>{_words(voxel)}</size>\n        </voxelSize>\n"
    )
    camera = "".join(
        _element(key, text, f"the {key} of the camera {what}", 10)
        for key, text in setup.camera.items()
        if _tag(key)
    )
    if camera:
        out.append(f"        <camera>\n{camera}        </camera>\n")
    # BigStitcher takes one of the four that is not said for 0, others may not.
    out.append("        <attributes>\n")
    for kind, number in {**dict.fromkeys(ATTRIBUTES, 0), **setup.attributes}.items():
        _tag(kind)
        out.append(f"          <{kind}>{_whole(number, f'the {kind} {what}')}</{kind}>\n")
    out.append("        </attributes>\n      </ViewSetup>\n")
    return "".join(out)


def size_text(size: Sequence[int], what: str) -> str:
    """Return a size along Z, Y, X as the XML has it: X, Y, Z."""
    if len(size) != 3 or not all(n >= 1 and n == int(n) for n in size):
        raise SpecError(f"the size {what} is {tuple(size)}: give 3 positive sizes, Z, Y, X")
    return _words(int(n) for n in reversed(size))


def attribute_text(kind: str, attribute: ViewAttribute) -> str:
    """Return the element of one value of an attribute.

    Raises
    ------
    SpecError
        It cannot be written.
    """
    tag = _tag(kind)
    what = f"{kind} {_whole(attribute.id, f'the id of a value of {kind}')}"
    properties = "".join(
        _element(key, text, f"the {key} of {what}", 10)
        for key, text in attribute.properties.items()
        if _tag(key)
    )
    name = attribute.name or str(attribute.id)
    return (
        f"        <{tag}>\n          <id>{int(attribute.id)}</id>\n"
        f"{_element('name', name, f'the name of {what}', 10)}{properties}        </{tag}>\n"
    )


def _times(times: tuple[int, ...]) -> str:
    first, last = times[0], times[-1]
    if last - first + 1 == len(times):
        inside = f"      <first>{first}</first>\n      <last>{last}</last>\n"
        return f'    <Timepoints type="range">\n{inside}    </Timepoints>\n'
    inside = f"      <integerpattern>{pattern(times)}</integerpattern>\n"
    return f'    <Timepoints type="pattern">\n{inside}    </Timepoints>\n'


def pattern(numbers: Sequence[int]) -> str:
    """Return ascending numbers as ranges, in the way BigStitcher does.

    >>> pattern([0, 1, 2, 7, 10, 20, 30])
    '0-2,7,10-30:10'
    """
    parts = []
    n = 0
    while n < len(numbers):
        step = numbers[n + 1] - numbers[n] if n + 1 < len(numbers) else 0
        end = n
        while end + 1 < len(numbers) and numbers[end + 1] - numbers[end] == step:
            end += 1
        if end - n < 2:
            parts.append(str(numbers[n]))
            n += 1
        else:
            parts.append(f"{numbers[n]}-{numbers[end]}{'' if step == 1 else f':{step}'}")
            n = end + 1
    return ",".join(parts)


def _transform(transform: ViewTransform) -> str:
    return (
        f'      <ViewTransform type="affine">\n{_name_of(transform)}'
        f"        <affine>{affine_text(transform)}</affine>\n      </ViewTransform>\n"
    )


def _name_of(transform: ViewTransform) -> str:
    what = "the name of a transform"
    return _element("Name", transform.name, what, 8) if transform.name else ""


def affine_text(transform: ViewTransform) -> str:
    """Return the 12 numbers of a transform, so that they can be read back to the last bit."""
    numbers = [float(number) for number in transform.matrix]
    if len(numbers) != 12 or not all(map(math.isfinite, numbers)):
        raise SpecError(
            f"the transform {transform.name!r} is {tuple(numbers)}: give 12 finite numbers, "
            "3 rows of 4"
        )
    return _words(numbers)
