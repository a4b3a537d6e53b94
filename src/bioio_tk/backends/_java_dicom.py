"""DICOM (PS3.10): elements and pixel data against the length of the file."""

from __future__ import annotations

import math
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bioio_tk.errors import UnsupportedError

if TYPE_CHECKING:
    from bioio_tk.backends._java_bytes import Bytes

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_PIXELS = (0x7FE0, 0x0010)
_SYNTAX, _TILED = (0x0002, 0x0010), (0x0048, 0x0006)
_FRAMES = (0x0028, 0x0008)
_SIZES = ((0x0028, 0x0002), (0x0028, 0x0010), (0x0028, 0x0011), (0x0028, 0x0100))
"""Samples, rows, columns, bits."""
_DEFAULTS = {_SYNTAX: "", _TILED: "", _FRAMES: 1, **dict.fromkeys(_SIZES, 1)}
_MOST = 20_000
"""Elements that are looked at: slides may have millions."""
_IMPLICIT, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
_BIG, _RLE = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"


class _EnoughError(Exception):
    """There are more elements than are worth the time."""


class _Elements:
    """The data elements from one place on, one after the other."""

    def __init__(self, file: Bytes, at: int) -> None:
        self.file, self.at = file, at
        self.order, self.explicit = "<", True
        self.left = _MOST

    def header(self) -> tuple[tuple[int, int], int]:
        """Return the tag and the length of the next element, and go to its value."""
        what = "a data element"
        self.left -= 1
        if self.left < 0:
            raise _EnoughError
        raw = self.file.all(self.at, 8, what)
        tag: tuple[int, int] = struct.unpack(self.order + "HH", raw[:4])
        self.at += 8
        if tag[0] == 0xFFFE or not self.explicit:
            return tag, struct.unpack(self.order + "I", raw[4:])[0]
        if raw[4:6] in _LONG:
            self.at += 4
            return tag, self.file.unpack(self.order + "I", self.at - 4, what)[0]
        return tag, struct.unpack(self.order + "H", raw[6:])[0]

    def skip(self, length: int, what: str) -> None:
        """Go past a value, an open sequence element by element."""
        if length != _UNDEFINED:
            self.file.need(self.at, length, what)
            self.at += length
            return
        open_ones = 1
        while open_ones:
            tag, length = self.header()
            if tag in (_ITEM_END, _END):
                open_ones -= 1
            elif length == _UNDEFINED:
                open_ones += 1
            else:
                self.skip(length, what)


def check(file: Bytes, version: str) -> None:
    """Raise where an element lies beyond the end, or Bio-Formats decodes the pixels wrongly."""
    if version.startswith("6.") and file.some(0, 4) in (b"II*\0", b"MM\0*"):
        raise file.too_new(version, "begins with a header of TIFF")
    if file.path.name.upper() == "DICOMDIR":  # a list of other files
        return
    with suppress(_EnoughError):
        _walk(_Elements(file, 132), version)


def _walk(elements: _Elements, version: str) -> None:
    file, found = elements.file, dict(_DEFAULTS)
    while elements.at + 8 <= file.size:
        if found[_SYNTAX] and file.some(elements.at, 2) != b"\2\0":
            if found[_SYNTAX] == _DEFLATED:
                return
            elements.order = ">" if found[_SYNTAX] == _BIG else "<"
            elements.explicit = found[_SYNTAX] != _IMPLICIT
        tag, length = elements.header()
        if tag == _PIXELS:
            _pixels(elements, length, found)
            return
        at = elements.at
        elements.skip(length, f"element ({tag[0]:04X},{tag[1]:04X})")
        if tag in found:
            found[tag] = _value(elements, tag, at, length)
            _refuse(file, version, tag, found[tag])
    raise file.damaged("it has no pixels")


def _value(elements: _Elements, tag: tuple[int, int], at: int, length: int) -> Any:
    raw = elements.file.some(at, length)
    if tag in _SIZES:
        return struct.unpack(elements.order + "H", raw)[0] if length == 2 else 1
    text = raw.decode("ascii", "replace").strip("\0 ")
    if tag == _FRAMES:
        return max(1, int(text)) if text.isdecimal() else 1
    return text


def _refuse(file: Bytes, version: str, tag: tuple[int, int], value: Any) -> None:
    if tag == _SYNTAX and value == _RLE:
        raise UnsupportedError(
            f"{str(file.path)!r} is compressed with RLE, of which Bio-Formats loses pixels: save "
            "it uncompressed first (in Python: d = pydicom.dcmread(path); d.decompress(); "
            "d.save_as(...))"
        )
    if tag == _TILED and version.startswith("6."):
        raise file.too_new(version, "is a slide stored in tiles")


def _pixels(elements: _Elements, length: int, found: dict[tuple[int, int], Any]) -> None:
    file, frames = elements.file, found[_FRAMES]
    if length != _UNDEFINED:
        file.need(elements.at, length, "the pixels")
        wanted = math.prod(found[tag] for tag in _SIZES) * frames // 8
        if length < wanted:
            raise file.damaged(f"its images need {wanted} bytes of pixels, {length} are there")
        return
    items = 0
    while True:
        tag, length = elements.header()
        if tag == _END:
            break
        if tag != _ITEM:
            raise file.damaged(f"its compressed pixels are broken at byte {elements.at}")
        file.need(elements.at, length, "a compressed frame")
        elements.at += length
        items += 1
    if items - 1 < frames:
        raise file.damaged(f"{items - 1} of {frames} compressed frames are there")
