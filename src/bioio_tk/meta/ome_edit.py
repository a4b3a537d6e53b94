"""Change a few values in an OME-XML document; every other byte of it stays as it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from bioio_tk.core.units import convert_length, convert_time
from bioio_tk.errors import FormatError, UnsupportedError
from bioio_tk.meta.ome import packed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bioio_tk.core.spec import Quantity

_TAG = re.compile(rb"<[^\s/>]+(?:\s+[^\s=/>]+\s*=\s*(?:\"[^\"]*\"|'[^']*'))*\s*/?>")
_ATTRIBUTE = re.compile(rb"\s+([^\s=/>]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
_YEAR = re.compile(r"/OME/(\d{4})-\d\d")
_UNITS_SINCE = 2015  # before, a length is in microns and a time in seconds
_COLORS_SINCE = 2011  # before, a colour is no attribute, or has alpha first
_LENGTHS = {f"physical_size_{axis}": f"PhysicalSize{axis.upper()}" for axis in "xyz"}
NUMBERS = {**_LENGTHS, "time_increment": "TimeIncrement"}
"""What is one number with a unit: our name of it and OME's."""


class _Element(NamedTuple):
    """A start tag: its name as written, its attributes, and where it begins."""

    name: str
    attributes: dict[str, str]
    at: int


class _Image(NamedTuple):
    image: _Element
    pixels: _Element
    channels: list[_Element]


def edit(xml: bytes, number: int, changes: Mapping[str, Any]) -> bytes:
    """Return a document with other values for one of its images.

    Parameters
    ----------
    xml : bytes
        OME-XML of any year since 2010.
    number : int
        Which of its images with pixels, from 0.
    changes : mapping
        ``name``; ``physical_size_x`` …, ``time_increment``: a value and its unit, or None where
        it is not known; ``channel_names``, ``channel_colors``: number of the channel to its name
        or its (red, green, blue, alpha), None for none.

    Raises
    ------
    FormatError
        It is no well-formed XML, or has no such image.
    UnsupportedError
        It is of a year that has no place for a value.
    """
    scan = _Scan(xml)
    if number >= len(scan.images):
        raise FormatError(
            f"the OME-XML has {len(scan.images)} images with pixels, and none of number {number}"
        )
    if scan.old:
        raise UnsupportedError(
            "the OME-XML is older than 2010 and has other names for all of this: convert the "
            "image to a new file, and change that"
        )
    if changes.get("channel_colors") and scan.year < _COLORS_SINCE:
        raise UnsupportedError(
            f"the OME-XML is of {scan.year} and has no place for colours: convert the image"
        )
    patches = sorted(_patches(xml, scan, scan.images[number], changes), reverse=True)
    for start, stop, new in patches:
        xml = xml[:start] + new + xml[stop:]
    return xml


class _Scan:
    """Where the tags are that matter."""

    def __init__(self, xml: bytes) -> None:
        self.images: list[_Image] = []
        self.year = 0
        self.old = False
        self.encoding = "utf-8"
        self._path: list[str] = []
        self._image: _Element | None = None
        self._pixels: _Element | None = None
        self._channels: list[_Element] = []
        parser = self._parser = expat.ParserCreate()
        parser.XmlDeclHandler = self._declare
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        try:
            parser.Parse(xml, True)
        except (expat.ExpatError, LookupError, ValueError) as exc:
            raise FormatError(
                f"the OME-XML is no well-formed XML ({exc}), so nothing was changed: put a whole "
                "new document in its place, or convert the image"
            ) from exc

    def _declare(self, version: str, encoding: str | None, standalone: int) -> None:
        self.encoding = encoding or "utf-8"
        if self.encoding.lower().startswith(("utf-16", "ucs", "utf-32")):
            raise ValueError(f"it is in {self.encoding}")

    def _refuse(self, *_: object) -> None:
        raise ValueError("it has a DOCTYPE")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        local = name.rpartition(":")[2]
        self._path.append(local)
        if len(self._path) == 1:
            found = _YEAR.search(" ".join(attributes.values()))
            self.year = int(found[1]) if found else 0
            self.old = self.year < 2010
        element = _Element(name, attributes, self._parser.CurrentByteIndex)
        path = self._path[1:]
        if path == ["Image"]:
            self._image, self._pixels, self._channels = element, None, []
        elif path == ["Image", "Pixels"] and self._pixels is None:
            self._pixels = element
        elif path == ["Image", "Pixels", "Channel"]:
            self._channels.append(element)

    def _end(self, name: str) -> None:
        if self._path[1:] == ["Image"] and self._image is not None and self._pixels is not None:
            self.images.append(_Image(self._image, self._pixels, self._channels))
        self._path.pop()


def _patches(
    xml: bytes, scan: _Scan, image: _Image, changes: Mapping[str, Any]
) -> Iterator[tuple[int, int, bytes]]:
    """Yield (start, stop, new bytes)."""
    if "name" in changes:
        yield _patch(xml, scan, image.image, {"Name": changes["name"] or None})
    values: dict[str, str | None] = {}
    for key, name in NUMBERS.items():
        if key in changes:
            values |= _number(name, changes[key], scan.year)
    names, colors = (changes.get(key) or {} for key in ("channel_names", "channel_colors"))
    wanted = {
        n: ({"Name": names[n]} if n in names else {})
        | ({"Color": colors[n] and packed(colors[n])} if n in colors else {})
        for n in {*names, *colors}
    }
    have = len(image.channels)
    fresh = _new_channels(scan, image, wanted) if any(n >= have for n in wanted) else b""
    if values or fresh:
        start, stop, tag = _patch(xml, scan, image.pixels, values)
        if fresh and tag.endswith(b"/>"):
            tag, fresh = tag[:-2] + b">", fresh + f"</{image.pixels.name}>".encode()
        yield start, stop, tag + fresh
    for n, element in enumerate(image.channels):
        if n in wanted:
            yield _patch(xml, scan, element, wanted[n])


def _patch(
    xml: bytes, scan: _Scan, element: _Element, values: Mapping[str, str | None]
) -> tuple[int, int, bytes]:
    found = _TAG.match(xml, element.at)
    if found is None:  # what expat takes for a tag is one
        raise FormatError(f"the OME-XML has an odd tag at byte {element.at}: nothing was changed")
    tag = found[0]
    for name, value in values.items():
        encoded = b"" if value is None else b" " + _attribute(name, value, scan.encoding)
        there = next((m for m in _ATTRIBUTE.finditer(tag) if m[1] == name.encode()), None)
        if there is not None:
            tag = tag[: there.start()] + encoded + tag[there.end() :]
        elif encoded:
            end = len(tag) - (2 if tag.endswith(b"/>") else 1)
            tag = tag[:end].rstrip() + encoded + tag[end:]
    return element.at, found.end(), tag


def _attribute(name: str, value: str, encoding: str) -> bytes:
    text = f"{name}={quoteattr(value)}"
    return text.encode(encoding, "xmlcharrefreplace")


def _number(name: str, value: Quantity | None, year: int) -> dict[str, str | None]:
    if year >= _UNITS_SINCE:
        if value is None:
            return {name: None, f"{name}Unit": None}
        return {name: repr(float(value[0])), f"{name}Unit": value[1]}
    if value is None:
        return {name: None}
    convert, unit = (convert_time, "s") if name == "TimeIncrement" else (convert_length, "µm")
    return {name: repr(convert(value[0], value[1], unit))}


def _new_channels(
    scan: _Scan, image: _Image, wanted: Mapping[int, Mapping[str, str | None]]
) -> bytes:
    """Return Channel elements for an image that has none of its own."""
    if image.channels:
        raise FormatError(
            f"the OME-XML has {len(image.channels)} Channel elements and no channel "
            f"{max(wanted)}: nothing was changed"
        )
    prefix = image.pixels.name.rpartition(":")[0]
    name = f"{prefix}:Channel" if prefix else "Channel"
    own = image.pixels.attributes.get("ID", "").rpartition(":")[2] or "0"
    samples = {"SamplesPerPixel": "1"}
    text = b""
    for n in range(int(image.pixels.attributes.get("SizeC", "1"))):
        given = {k: v for k, v in wanted.get(n, {}).items() if v is not None}
        values = {"ID": f"Channel:{own}:{n}", **samples, **given}
        text += b" ".join(
            [f"<{name}".encode(), *(_attribute(k, v, scan.encoding) for k, v in values.items())]
        )
        text += b"/>"
    return text
