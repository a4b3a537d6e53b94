"""Formats of one header and raw pixels: how long the file must be, from what the header says.

DV and MRC2014, NRRD, NIfTI-1, FITS 4.0, SPE 2.x, ICS 1 and 2; the few numbers with which HDF5,
ND2 and LIF say where they end; OME-XML and HTD, whose pixels are elsewhere.
"""

from __future__ import annotations

import glob
import math
import re
import struct
from typing import TYPE_CHECKING

from bioio_tk.errors import UnsupportedError

if TYPE_CHECKING:
    from bioio_tk.backends._java_bytes import Bytes

_PIXELS = "the pixels"
_TEXT = 1 << 20
_FITS_BLOCK = 2880
_MRC = {0: 1, 1: 2, 2: 4, 5: 1, 6: 2, 7: 4, 16: 3}
"""Bytes of a pixel by mode; 3 and 4 are complex."""
_NRRD = (
    (1, r"(signed |unsigned |u)?char|u?int8(_t)?"),
    (2, r"((signed |unsigned )?short( int)?)|ushort|u?int16(_t)?"),
    (4, r"(signed |unsigned |u)?int|u?int32(_t)?|float"),
    (8, r"(signed |unsigned )?long long( int)?|u?longlong|u?int64(_t)?|double"),
)


def dv(file: Bytes, version: str) -> None:
    """DeltaVision: the stack that its header describes."""
    order = "<" if file.unpack("<h", 96, "the header") == (-16224,) else ">"
    (extended,) = file.unpack(order + "i", 92, "the header")
    _stack(file, order, 1024 + max(0, extended))


def mrc(file: Bytes, version: str) -> None:
    """MRC: the stack that its header describes."""
    order = ">" if file.some(212, 2) == b"\x11\x11" else "<"
    (extended,) = file.unpack(order + "i", 92, "the header")
    _stack(file, order, 1024 + max(0, extended))


def _stack(file: Bytes, order: str, start: int) -> None:
    x, y, z, mode = file.unpack(order + "4i", 0, "the header")
    if mode in (3, 4):
        raise UnsupportedError(
            f"{str(file.path)!r} holds complex numbers (mode {mode}), which Bio-Formats reads "
            "wrongly: use a reader made for them (mrc, mrcfile)"
        )
    if min(x, y, z) < 1 or mode not in _MRC:
        raise file.damaged(f"its header claims {x} x {y} x {z} pixels of mode {mode}")
    file.need(start, x * y * z * _MRC[mode], _PIXELS)


def nrrd(file: Bytes, version: str) -> None:
    """NRRD: raw pixels behind the header; compressed and detached ones are not looked at."""
    head, found, _ = file.some(0, _TEXT).partition(b"\n\n")
    if not found:
        head, found, _ = file.some(0, _TEXT).partition(b"\r\n\r\n")
    if not found:
        if b"data file" in head or b"datafile" in head:
            return
        raise file.damaged("its header has no end")
    lines = head.decode("latin-1").splitlines()
    fields = dict(line.lower().split(": ", 1) for line in lines if ": " in line and line[0] != "#")
    each = [n for n, names in _NRRD if re.fullmatch(names, fields.get("type", "").strip())]
    sizes = fields.get("sizes", "").split()
    raw = fields.get("encoding", "").strip() == "raw"
    if not raw or not each or "data file" in fields or "datafile" in fields:
        return
    if not sizes or not all(n.isdigit() for n in sizes):
        raise file.damaged(f"its header gives the sizes {' '.join(sizes)!r}")
    file.need(len(head) + len(found), math.prod(map(int, sizes)) * each[0], _PIXELS)


def nifti(file: Bytes, version: str) -> None:
    """NIfTI-1 in one file."""
    order = "<" if file.unpack("<i", 0, "the header") == (348,) else ">"
    dims = file.unpack(order + "8h", 40, "the header")
    (bits,) = file.unpack(order + "h", 72, "the header")
    (start,) = file.unpack(order + "f", 108, "the header")
    sizes = dims[1 : dims[0] + 1]
    if not 1 <= dims[0] <= 7 or min(sizes) < 1 or bits < 1 or not 348 <= start < 1e9:
        raise file.damaged(f"its header claims an image of {sizes} pixels of {bits} bits")
    file.need(int(start), math.prod(sizes) * bits // 8, _PIXELS)


def fits(file: Bytes, version: str) -> None:
    """FITS: the first image."""
    cards: dict[str, str] = {}
    at = 0
    while "END" not in cards:
        if at > _TEXT:
            raise file.damaged("its header has no end")
        block = file.all(at, _FITS_BLOCK, "the header")
        at += _FITS_BLOCK
        for n in range(0, _FITS_BLOCK, 80):
            card = block[n : n + 80].decode("latin-1")
            cards.setdefault(card[:8].strip(), card[10:].split("/")[0].strip())
    try:
        axes = [int(cards[f"NAXIS{n + 1}"]) for n in range(int(cards["NAXIS"]))]
        each = abs(int(cards["BITPIX"])) // 8
    except (KeyError, ValueError) as exc:
        raise file.damaged("its header does not say how large the image is") from exc
    if axes:
        file.need(at, math.prod(axes) * each, _PIXELS)


def spe(file: Bytes, version: str) -> None:
    """Princeton Instruments: all frames."""
    (kind,) = file.unpack("<h", 108, "the header")
    (x,), (y,) = file.unpack("<H", 42, "the header"), file.unpack("<H", 656, "the header")
    (frames,) = file.unpack("<i", 1446, "the header")
    each = {0: 4, 1: 4, 2: 2, 3: 2, 5: 8, 6: 1, 8: 4}.get(kind)
    if each is None or min(x, y) < 1:
        raise file.damaged(f"its header claims {x} x {y} pixels of type {kind}")
    file.need(4100, x * y * max(1, frames) * each, _PIXELS)


def ics(file: Bytes, version: str) -> None:
    """ICS: the header is whole, and raw pixels are all there, in the .ids file for version 1."""
    from bioio_tk.backends._java_bytes import Bytes

    text = file.some(0, _TEXT).replace(b"\r\n", b"\n")
    fields: dict[str, list[str]] = {}
    for line in text.split(b"\nend\n")[0].decode("latin-1").split("\n"):
        words = line.replace("\t", " ").split()
        if len(words) > 1:
            fields[" ".join(words[:2])] = words[2:]
    if "ics_version 2.0" in fields:
        start = text.find(b"\nend\n") + 5
        if start < 5:
            raise file.damaged("its header has no end")
        _ics_pixels(file, start, fields)
        return
    if not text.endswith(b"\n") or "layout sizes" not in fields:
        raise file.damaged("its header is not whole")
    for suffix in (".ids", ".IDS"):
        pixels = file.path.with_suffix(suffix)
        if pixels.exists():
            with Bytes(pixels) as other:
                _ics_pixels(other, 0, fields)
            return
    if not _is_beside(file, ".[iI][dD][sS]*"):
        raise FileNotFoundError(
            f"{str(file.path)!r} is only the header of an image: its pixels, "
            f"{file.path.with_suffix('.ids').name!r}, are missing beside it"
        )


def ids(file: Bytes) -> None:
    """IDS: the header of the pixels is there."""
    if not _is_beside(file, ".[iI][cC][sS]"):
        raise FileNotFoundError(
            f"{str(file.path)!r} is only the pixels of an image: its header, "
            f"{file.path.with_suffix('.ics').name!r}, is missing beside it"
        )


def _is_beside(file: Bytes, ending: str) -> bool:
    """Return whether there is a file of the same name but for its ending, a pattern."""
    return any(file.path.parent.glob(glob.escape(file.path.stem) + ending))


def _ics_pixels(file: Bytes, start: int, fields: dict[str, list[str]]) -> None:
    if fields.get("representation compression", ["uncompressed"])[0] != "uncompressed":
        return
    sizes = fields.get("layout sizes", [])
    if not sizes or not all(n.isdigit() for n in sizes):
        raise file.damaged("its header does not say how large the image is")
    bits, *rest = map(int, sizes)
    if bits > 8 and "representation byte_order" not in fields:
        raise file.damaged("its header does not say in which order the bytes are")
    file.need(start, math.prod(rest) * bits // 8, _PIXELS)


def hdf5(file: Bytes, version: str) -> None:
    """HDF5: the end of the file as its superblock has it."""
    (form,) = file.unpack("B", 8, "the header")
    if form in (0, 1):
        (wide,) = file.unpack("B", 13, "the header")
        at = 24 + (4 if form == 1 else 0) + 2 * wide
    else:
        (wide,) = file.unpack("B", 9, "the header")
        at = 12 + 2 * wide
    end = int.from_bytes(file.all(at, wide, "the header"), "little")
    file.need(0, end, "its last block")


_ND2_MAP = b"ND2 CHUNK MAP SIGNATURE 0000001!"


def nd2(file: Bytes, version: str) -> None:
    """ND2: the map of its blocks, at the end of the file."""
    tail = file.some(max(0, file.size - (1 << 16)), 1 << 16)
    found = tail.rfind(_ND2_MAP)
    if found < 0 or found + 40 > len(tail):
        raise file.damaged("the map of its blocks is missing at its end, where it is cut off")
    (at,) = struct.unpack_from("<Q", tail, found + 32)
    magic, name, length = file.unpack("<IIQ", at, "the map of its blocks")
    if magic != 0x0ABECEDA:
        raise file.damaged("the map of its blocks is broken")
    data = file.all(at + 16 + name, length, "the map of its blocks")
    place = 0
    while (bang := data.find(b"!", place)) >= 0 and bang + 17 <= len(data):
        if data[place : bang + 1] == _ND2_MAP:
            return
        start, size = struct.unpack_from("<QQ", data, bang + 1)
        file.need(start, size, "a block of the image")
        place = bang + 17


_LIF_MARK = 0x70


def lif(file: Bytes, version: str) -> None:
    """LIF: every block of memory that its XML names."""
    _, _, star, letters = file.unpack("<IIBI", 0, "the header")
    if star != 0x2A:
        raise file.damaged("its header is broken")
    text = file.all(13, 2 * letters, "the description of its images").decode("utf-16-le", "replace")
    at, there = 13 + 2 * letters, set()
    while at + 8 <= file.size and file.unpack("<I", at, "a block of pixels") == (_LIF_MARK,):
        wide = 4 if file.some(at + 13, 1) == b"*" else 8
        size = int.from_bytes(file.all(at + 9, wide, "a block of pixels"), "little")
        (letters,) = file.unpack("<I", at + 10 + wide, "a block of pixels")
        at += 14 + wide
        there.add(file.all(at, 2 * letters, "a block of pixels").decode("utf-16-le", "replace"))
        at += 2 * letters
        file.need(at, size, "a block of pixels")
        at += size
    for tag in re.findall(r"<Memory\b[^>]*>", text):
        size_of = re.search(r'\bSize="(\d+)"', tag)
        name = re.search(r'\bMemoryBlockID="([^"]+)"', tag)
        if name and size_of and int(size_of[1]) and name[1] not in there:
            raise file.damaged(f"the pixels {name[1]!r} are missing, where it is cut off")


def ome_xml(file: Bytes, version: str) -> None:
    """OME-XML: it holds pixels; those that it does not hold Bio-Formats would show black."""
    mark = b"BinData"
    for at in range(0, file.size, _TEXT):
        if mark in file.some(at, _TEXT + len(mark)):
            return
    text = file.some(0, _TEXT).decode(errors="replace")
    named = re.search(r'\bFileName="([^"]+)"', text)
    raise UnsupportedError(
        f"{str(file.path)!r} holds no pixels, only a description of them"
        + (f": they are in other files, open {named[1]!r} instead" if named else "")
    )


def htd(file: Bytes, version: str) -> None:
    """Index of a MetaXpress plate: it has planes."""
    none = re.search(rb'^"ZSteps",\s*0\s*$', file.some(0, _TEXT), re.MULTILINE)
    if none and not any(file.path.parent.glob("*.[pP][nN][lL]")):  # CellWorx counts otherwise
        raise UnsupportedError(
            f"{str(file.path)!r} says that its images have 0 steps in Z, with which Bio-Formats "
            "cannot read them: open the TIFFs of the plate one by one, with backend='python'"
        )
