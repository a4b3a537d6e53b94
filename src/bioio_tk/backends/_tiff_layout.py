"""Where everything lies in a TIFF file: header, IFDs, text and tile tables, before any pixel."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from bioio_tk.core.units import meters_per
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.spec import PhysicalSize, Quantity

ALIGN = 16
"""Tiles start at multiples of this, so that raw ones can be mapped as arrays of any type."""

NEW_SUBFILE_TYPE, IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE = 254, 256, 257, 258
COMPRESSION, PHOTOMETRIC, IMAGE_DESCRIPTION, SAMPLES_PER_PIXEL = 259, 262, 270, 277
X_RESOLUTION, Y_RESOLUTION, PLANAR_CONFIG, RESOLUTION_UNIT, SOFTWARE = 282, 283, 284, 296, 305
PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTE_COUNTS = 317, 322, 323, 324, 325
STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_BYTE_COUNTS = 273, 278, 279
SUB_IFDS, EXTRA_SAMPLES, SAMPLE_FORMAT, YCBCR_SUB_SAMPLING = 330, 338, 339, 530
REFERENCE_BLACK_WHITE, LERC_PARAMETERS = 532, 50674

_ASCII, _SHORT, _LONG, _RATIONAL, _IFD, _LONG8, _IFD8 = 2, 3, 4, 5, 13, 16, 18
_LONGS = {NEW_SUBFILE_TYPE, IMAGE_WIDTH, IMAGE_LENGTH, TILE_WIDTH, TILE_LENGTH, LERC_PARAMETERS}
_LONGS |= {ROWS_PER_STRIP}
_RATIONALS = {X_RESOLUTION, Y_RESOLUTION, REFERENCE_BLACK_WHITE}
_COUNT_WIDTH = 4  # byte counts are LONG in BigTIFF too: no tile comes near 4 GB

Tags: TypeAlias = dict[int, tuple[int, ...]]
"""Values by tag; rationals as numerator, denominator, numerator, …"""


class Page(NamedTuple):
    """One resolution of every plane of an image: its tags and its tiles.

    Tiles not stored yet have no offset, or, with `blank`, share a piece of so many zeros.
    With `strips` the tiles are strips.
    """

    tags: Tags
    down: int  # tiles along Y
    across: int  # tiles along X
    blank: int = 0
    strips: bool = False

    @property
    def where(self) -> tuple[int, int]:
        """The tags that say where its tiles are, and how long."""
        return (
            (STRIP_OFFSETS, STRIP_BYTE_COUNTS) if self.strips else (TILE_OFFSETS, TILE_BYTE_COUNTS)
        )


class Entry(NamedTuple):
    """The number of a tile within the file, and where its offset and its byte count stand.

    `between` are the bytes between the two where they stand side by side.
    """

    tile: int
    offset_at: int
    count_at: int
    between: bytes


class Table(NamedTuple):
    """Where the tile table of one resolution of an image lies, and how its tiles are counted.

    `tiles` are the tiles of a plane, `first` is the number of its first one within the file.
    """

    first: int
    tiles: int
    across: int
    width: int  # of an offset
    offsets: int
    offsets_step: int  # from plane to plane
    counts: int
    counts_step: int
    between: bytes

    def entry(self, plane: int, tile: int) -> Entry:
        """Return what belongs to a tile of a plane."""
        return Entry(
            self.first + plane * self.tiles + tile,
            self.offsets + plane * self.offsets_step + tile * self.width,
            self.counts + plane * self.counts_step + tile * _COUNT_WIDTH,
            self.between,
        )


class Layout(NamedTuple):
    """A laid out file.

    Attributes
    ----------
    header : bytes
        The first bytes: they make a reader take the file for a TIFF.
    body : memoryview
        IFDs and text, right behind the header.
    fills : tuple of (int, bytes)
        What stands in the tables, with its offset; the rest of them is zero.
    size : int
        Where tiles may begin. Between `body` and here lie the tables and the blank tile.
    tables : tuple of tuple of Table
        By image and level.
    tiles : int
        Number of tiles in all tables.
    """

    header: bytes
    body: memoryview
    fills: tuple[tuple[int, bytes], ...]
    size: int
    tables: tuple[tuple[Table, ...], ...]
    tiles: int


class _Flavour(NamedTuple):
    """What differs between classic TIFF and BigTIFF."""

    header: bytes
    head: str  # of an IFD: the number of its entries
    entry: str  # tag, type, count
    entry_size: int
    width: int  # of an offset, and of a value that fits into an entry
    ifd: int
    long: int


_CLASSIC = _Flavour(struct.pack("<2sHI", b"II", 42, 8), "<H", "<HHI", 12, 4, _IFD, _LONG)
_BIG = _Flavour(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16), "<Q", "<HHQ", 20, 8, _IFD8, _LONG8)


class _Value(NamedTuple):
    kind: int
    count: int  # type: ignore[assignment]  # it hides tuple.count, which nobody calls
    size: int
    data: bytes  # empty for a table, which lies elsewhere


class _Ifd(NamedTuple):
    """An IFD with the values too long for its entries behind it."""

    start: int
    data: bytes
    places: dict[int, int]  # tag -> its value if that fits into the entry, else the field for it
    moves: list[tuple[int, int]]  # (field, what it points to)
    next: int  # the field for the next IFD


class _Field(NamedTuple):
    """A field in the IFDs of every plane; it holds ``start + plane * step``."""

    at: int
    start: int
    step: int


def lay_out(
    images: Sequence[tuple[int, Sequence[Page]]],
    description: bytes,
    software: bytes,
    *,
    big: bool,
) -> Layout:
    """Lay out the images: each plane an IFD in the main chain, its smaller levels its SubIFDs.

    Parameters
    ----------
    images : sequence of (int, sequence of Page)
        Number of planes of each image, and its levels, full resolution first.
    description, software : bytes
        Text of the first IFD, NUL-terminated.
    big : bool
        BigTIFF instead of classic TIFF.
    """
    flavour = _BIG if big else _CLASSIC
    templates = [_ifds(pages, flavour) for _, pages in images]
    strides = [sum(len(ifd.data) for ifd in ifds) for ifds in templates]
    # the first IFD has two entries more than its equals: they grow towards the header, and all
    # that follows them lies where it does in the other planes
    starts = [len(flavour.header) + 2 * flavour.entry_size]
    for (planes, _), stride in zip(images, strides, strict=True):
        starts.append(starts[-1] + planes * stride)
    text = starts[-1]
    out = np.zeros(text + len(description) + len(software), np.uint8)
    out[text:] = np.frombuffer(description + software, np.uint8)

    blank = _align(len(out), ALIGN)
    end = blank + _align(max(page.blank for _, pages in images for page in pages), ALIGN)
    tiles = 0
    fills: list[tuple[int, bytes]] = []
    tables: list[tuple[Table, ...]] = []
    for number, ((planes, pages), ifds) in enumerate(zip(images, templates, strict=True)):
        start, stride = starts[number], strides[number]
        block = out[start : start + planes * stride].reshape(planes, stride)
        block[:] = np.frombuffer(b"".join(ifd.data for ifd in ifds), np.uint8)
        fields = [_Field(at, start + to, stride) for ifd in ifds for at, to in ifd.moves]
        fields.append(_Field(ifds[0].next, start + stride, stride))
        row: list[Table] = []
        for page, ifd in zip(pages, ifds, strict=True):
            count = page.down * page.across
            spots: list[int] = []
            for tag, width, value in (
                (TILE_OFFSETS, flavour.width, blank if page.blank else 0),
                (TILE_BYTE_COUNTS, _COUNT_WIDTH, page.blank),
            ):
                entry = value.to_bytes(width, "little")
                if count * width <= flavour.width:
                    spots += (start + ifd.places[tag], stride)
                    fields.append(
                        _Field(spots[-2] - start, int.from_bytes(entry * count, "little"), 0)
                    )
                else:
                    spots += (end, count * width)
                    fields.append(_Field(ifd.places[tag], end, count * width))
                    end = _align(end + planes * count * width, 8)
                    if value:
                        fills.append((spots[-2], entry * (planes * count)))
            at = spots[0], spots[1], spots[2], spots[3], _between(count, flavour)
            row.append(Table(tiles, count, page.across, flavour.width, *at))
            tiles += planes * count
        tables.append(tuple(row))
        _fill(block, fields, flavour.width)
        if number + 1 == len(images):
            block[-1, ifds[0].next : ifds[0].next + flavour.width] = 0
    _begin(out, starts[0], (text, description), (text + len(description), software), flavour)
    body = memoryview(out)[len(flavour.header) :]
    return Layout(flavour.header, body, tuple(fills), _align(end, ALIGN), tuple(tables), tiles)


def _between(tiles: int, flavour: _Flavour) -> bytes:
    """Return what stands between offset and byte count of a lone tile: both are in the IFD."""
    return struct.pack(flavour.entry, TILE_BYTE_COUNTS, _LONG, 1) if tiles == 1 else b""


def head_size(images: Sequence[tuple[int, Sequence[Page]]], text: int) -> int:
    """Return about how many bytes the head of a BigTIFF takes, never too few."""
    total = 1024 + text
    for planes, pages in images:
        for page in pages:
            values = sum(8 * (len(numbers) + 1) for numbers in page.tags.values())
            table = page.down * page.across * 12
            total += planes * (128 + 20 * len(page.tags) + values + table)
    return total


class Slots(NamedTuple):
    """Where the offsets and the byte counts of the tiles of one resolution stand."""

    tiles: int
    offsets: int
    counts: int


class Stamp(NamedTuple):
    """The IFDs of one plane of a BigTIFF with their tile tables right behind them.

    Wherever it is put down, at a multiple of 16, the pointers in it have to be filled in.

    Attributes
    ----------
    data : bytes
        As it is with all of them 0.
    start : int
        Where the IFD of the full resolution begins.
    next : int
        The field for the next IFD. It never lies across the border of two pages of the system,
        so it is written as a whole or not at all.
    moves : tuple of (int, int)
        Field, and what it points to, both counted from the start of the data.
    slots : tuple of Slots
        The tile tables, by level.
    texts : tuple of int
        Where the count of a text stands; its offset follows it.
    """

    data: bytes
    start: int
    next: int
    moves: tuple[tuple[int, int], ...]
    slots: tuple[Slots, ...]
    texts: tuple[int, ...]


def stamp(pages: Sequence[Page], texts: tuple[int, ...] = ()) -> Stamp:
    """Return the IFDs of one plane, the main one with entries for some texts."""
    tables = 2 + (len(pages) > 1)  # offsets, byte counts, SubIFDs
    entries = len(pages[0].tags) + tables + len(texts)
    start = _BIG.entry_size * entries % 8
    ifds = _ifds(pages, _BIG, start, texts)
    data = bytearray(start) + b"".join(ifd.data for ifd in ifds)
    moves = [move for ifd in ifds for move in ifd.moves]
    slots = []
    for page, ifd in zip(pages, ifds, strict=True):
        tiles = page.down * page.across
        at = []
        for tag, width in zip(page.where, (_BIG.width, _COUNT_WIDTH), strict=True):
            at.append(ifd.places[tag])
            if tiles * width > _BIG.width:
                data += bytes(-len(data) % 8)
                moves.append((ifd.places[tag], len(data)))
                at[-1] = len(data)
                data += bytes(tiles * width)
        slots.append(Slots(tiles, *at))
    data += bytes(-len(data) % ALIGN)
    counts = tuple(ifds[0].places[tag] - _BIG.width for tag in texts)
    return Stamp(bytes(data), start, ifds[0].next, tuple(moves), tuple(slots), counts)


def header(first: int) -> bytes:
    """Return the first bytes of a BigTIFF whose first IFD is at `first`."""
    return _BIG.header[:8] + first.to_bytes(_BIG.width, "little")


def _ifds(
    pages: Sequence[Page], flavour: _Flavour, start: int = 0, texts: tuple[int, ...] = ()
) -> list[_Ifd]:
    """Lay out the IFDs of one plane, as if `start` bytes lay before them in the file."""
    ifds: list[_Ifd] = []
    for level, page in enumerate(pages):
        children = 0 if level else len(pages) - 1
        ifds.append(_ifd(page, start, children, flavour, () if level else texts))
        start += len(ifds[-1].data)
    return [_join(ifds, flavour), *ifds[1:]]


def _join(ifds: list[_Ifd], flavour: _Flavour) -> _Ifd:
    """Return the first IFD, its SUB_IFDS pointing to the others."""
    main = ifds[0]
    if len(ifds) > 1:
        at = main.places[SUB_IFDS]
        if len(ifds) > 2:
            at = dict(main.moves)[at]
        fields = [(at + i * flavour.width, ifd.start) for i, ifd in enumerate(ifds[1:])]
        main = main._replace(moves=[*main.moves, *fields])
    return main


def _ifd(
    page: Page, start: int, children: int, flavour: _Flavour, texts: tuple[int, ...] = ()
) -> _Ifd:
    tiles = page.down * page.across
    values = {tag: _value(tag, numbers) for tag, numbers in page.tags.items()}
    offsets, counts = page.where
    values[offsets] = _Value(flavour.long, tiles, tiles * flavour.width, b"")
    values[counts] = _Value(_LONG, tiles, tiles * _COUNT_WIDTH, b"")
    values.update((tag, _Value(_ASCII, 0, 0, b"")) for tag in texts)
    if children:
        size = children * flavour.width
        values[SUB_IFDS] = _Value(flavour.ifd, children, size, bytes(size))
    data = bytearray(struct.pack(flavour.head, len(values)))
    next_field = len(data) + len(values) * flavour.entry_size
    behind = bytearray(_align(next_field + flavour.width, 8) - next_field)
    places: dict[int, int] = {}
    moves: list[tuple[int, int]] = []
    for tag, value in sorted(values.items()):
        data += struct.pack(flavour.entry, tag, value.kind, value.count)
        places[tag] = start + len(data)
        inline = b""
        if value.size <= flavour.width:
            inline = value.data
        elif value.data:
            moves.append((places[tag], start + next_field + len(behind)))
            behind += value.data.ljust(_align(value.size, 8), b"\0")
        data += inline.ljust(flavour.width, b"\0")
    return _Ifd(start, bytes(data + behind), places, moves, start + next_field)


def _value(tag: int, numbers: tuple[int, ...]) -> _Value:
    if tag in _RATIONALS:
        data = struct.pack(f"<{len(numbers)}I", *numbers)
        return _Value(_RATIONAL, len(numbers) // 2, len(data), data)
    kind, letter = (_LONG, "I") if tag in _LONGS else (_SHORT, "H")
    data = struct.pack(f"<{len(numbers)}{letter}", *numbers)
    return _Value(kind, len(numbers), len(data), data)


def _fill(block: NDArray[np.uint8], fields: list[_Field], width: int) -> None:
    """Write the fields into the IFDs of all planes at once."""
    planes = np.arange(len(block), dtype=np.int64)
    for field in fields:
        numbers = (field.start + field.step * planes).astype(f"<u{width}")
        block[:, field.at : field.at + width] = numbers.view(np.uint8).reshape(-1, width)


def _begin(
    out: NDArray[np.uint8],
    start: int,
    description: tuple[int, bytes],
    software: tuple[int, bytes],
    flavour: _Flavour,
) -> None:
    """Put the header down and turn the IFD at `start` into the first one, with the texts."""
    head = struct.calcsize(flavour.head)
    size = flavour.entry_size
    (count,) = struct.unpack_from(flavour.head, out, start)
    old = out[start + head : start + head + count * size].tobytes()
    entries = [old[i : i + size] for i in range(0, len(old), size)]
    for tag, (at, text) in ((IMAGE_DESCRIPTION, description), (SOFTWARE, software)):
        value = text if len(text) <= flavour.width else at.to_bytes(flavour.width, "little")
        entry = struct.pack(flavour.entry, tag, _ASCII, len(text))
        entries.append(entry + value.ljust(flavour.width, b"\0"))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    first = struct.pack(flavour.head, len(entries)) + b"".join(entries)
    at = len(flavour.header)
    out[:at] = np.frombuffer(flavour.header, np.uint8)
    out[at : at + len(first)] = np.frombuffer(first, np.uint8)


def _align(number: int, to: int) -> int:
    return -(-number // to) * to


# --- resolution ----------------------------------------------------------------------------------

_UINT32 = 2**32 - 1
_NO_LENGTH = ("pixel", "reference frame")


def resolution(size: PhysicalSize, full: tuple[int, int], level: tuple[int, int]) -> Tags:
    """Return the resolution tags of a level: pixels per centimetre along X and Y.

    Sizes in pixels (or in a reference frame) give 1 without a unit. Where a size is unknown, or
    is not what 32 bits can express, there are no tags rather than wrong ones.

    Parameters
    ----------
    size : PhysicalSize
        Size of a pixel at full resolution.
    full, level : (int, int)
        Height and width of the full resolution and of this level, in pixels.

    References
    ----------
    TIFF 6.0, section 8, XResolution, YResolution and ResolutionUnit.
    """
    if size.x is None or size.y is None:
        return {}
    if size.x[1] in _NO_LENGTH or size.y[1] in _NO_LENGTH:
        return {X_RESOLUTION: (1, 1), Y_RESOLUTION: (1, 1), RESOLUTION_UNIT: (1,)}
    x = _per_centimetre(size.x, full[1], level[1])
    y = _per_centimetre(size.y, full[0], level[0])
    if x is None or y is None:
        return {}
    return {X_RESOLUTION: x, Y_RESOLUTION: y, RESOLUTION_UNIT: (3,)}


def _shrunk(full: int, level: int) -> Fraction:
    """Return how many pixels of the full resolution one of the level stands for."""
    factor = max(1, round(full / level))
    if level in (full // factor, -(-full // factor)):
        return Fraction(factor)  # the last pixel of an odd size stands for fewer
    return Fraction(full, level)


@lru_cache(maxsize=256)
def _per_centimetre(size: Quantity, full: int, level: int) -> tuple[int, int] | None:
    """Return the pixels of a level in a centimetre, None where 32 bits cannot express them."""
    value = float(size[0])
    if not math.isfinite(value) or value <= 0:
        return None
    try:
        meters = meters_per(size[1])
    except SpecError:
        return None
    # what was written in decimal is meant: 0.1 is 1/10, not the binary number next to it
    scale = Fraction(repr(value)) * Fraction(repr(meters))
    density = 1 / (scale * 100 * _shrunk(full, level))
    if density > 1:
        inverse = (1 / density).limit_denominator(_UINT32)
        pair = (inverse.denominator, inverse.numerator)
    else:
        nearest = density.limit_denominator(_UINT32)
        pair = (nearest.numerator, nearest.denominator)
    return pair if min(pair) > 0 else None


def samples_tags(samples: int, *, jpeg: bool) -> Tags:
    """Return the tags that say what the samples of a pixel are.

    Three or four samples are red, green, blue and alpha; other numbers are shades of grey.
    """
    tags: dict[int, Any] = {SAMPLES_PER_PIXEL: (samples,), PLANAR_CONFIG: (1,), PHOTOMETRIC: (1,)}
    if samples in (3, 4):
        tags[PHOTOMETRIC] = (2,)
        if samples == 4:
            tags[EXTRA_SAMPLES] = (2,)
        if jpeg:  # inside a JPEG stream colours are YCbCr, the two colour parts at half the size
            tags[PHOTOMETRIC] = (6,)
            tags[YCBCR_SUB_SAMPLING] = (2, 2)
            tags[REFERENCE_BLACK_WHITE] = (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)
    elif samples > 1:
        tags[EXTRA_SAMPLES] = (0,) * (samples - 1)
    return tags
