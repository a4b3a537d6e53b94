"""TiffChain: a BigTIFF whose chain of IFDs grows while others read it."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bioio_tk.backends import _tiff_layout as tag
from bioio_tk.backends._open_files import OpenFile
from bioio_tk.backends._tiff_ifd import IfdReader
from bioio_tk.errors import ClosedError, DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends._file import RandomFile
    from bioio_tk.backends._open_files import OpenFiles
    from bioio_tk.backends._tiff_codecs import Bytes

_PAGE = 4096
"""A write within a page of the system is done as a whole or not at all."""
_LARGE = 1 << 16
"""Pieces from this size on begin with a page: then no page has to be touched twice."""
_HEADER = 16
_TEXTS = (tag.IMAGE_DESCRIPTION, tag.SOFTWARE)
_GAP = bytes(2 * tag.ALIGN)


class LiveText(NamedTuple):
    """A document in which some numbers can be changed in place.

    Attributes
    ----------
    data : bytes
        The document, with these numbers written in as many digits as there are.
    fields : mapping of str to (int, int)
        Where they stand and how many digits they have, by name.
    """

    data: bytes
    fields: Mapping[str, tuple[int, int]]


class Tables(NamedTuple):
    """Where the tiles of some planes are at one level: arrays (planes, tiles)."""

    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint32]

    @classmethod
    def nothing(cls, tiles: int, planes: int = 0) -> Tables:
        """Return tables of planes of which no tile is stored."""
        return cls(np.zeros((planes, tiles), np.uint64), np.zeros((planes, tiles), np.uint32))

    def cut(self, start: int, stop: int) -> Tables:
        """Return the tables of some of the planes."""
        return Tables(self.offsets[start:stop], self.counts[start:stop])

    def padded(self, planes: int) -> Tables:
        """Return tables of so many planes, the further ones with nothing in them."""
        more = planes - len(self.counts)
        if not more:
            return self
        rest = Tables.nothing(self.counts.shape[1], more)
        return Tables(
            np.concatenate((self.offsets, rest.offsets)), np.concatenate((self.counts, rest.counts))
        )


class TiffChain:
    """A BigTIFF to which pixels are appended, and then, whole planes at a time, their IFDs.

    The IFD of the first plane and the document lie at the start of the file; there is no header
    before they are down. Pixels follow as they come. New IFDs are appended in one piece, then
    the pointer to them is written, then the numbers in the document: so the file is valid at
    every moment, and the document never speaks of a plane that is not in the chain. A plane that
    is there before its pixels has a tile of zeros, until `replace` says where its own are.

    Parameters
    ----------
    path : Path
        An existing, empty file.
    pages : sequence of Page
        The levels of each plane.
    text : LiveText
        The document.
    software : str
        For the Software tag.
    files : OpenFiles
        Who opens the file.
    replaces : bool
        Planes will be there before their pixels.
    apart : bool
        Documents of other files will refer to this one: no two planes of one piece may touch.
        tifffile (2026.3) looks for planes that do in the file that refers, not in this one.

    Attributes
    ----------
    planes : int
        How many are in the chain.
    """

    def __init__(
        self,
        path: Path,
        pages: Sequence[tag.Page],
        text: LiveText,
        software: str,
        files: OpenFiles,
        *,
        replaces: bool = False,
        apart: bool = False,
    ) -> None:
        self.path = path
        self.planes = 0
        self._files = files
        self._at = OpenFile(path)
        self._text = text
        self._software = software.encode() + b"\0"
        self._first = _Stamp(tag.stamp(pages, _TEXTS))
        self._other = _Stamp(tag.stamp(pages), paged=replaces)
        self._pages = pages
        self._touch = not apart and all(page.down * page.across == 1 for page in pages)
        self._text_at = _align(_HEADER + self._first.step, _PAGE)
        self._room_lock = threading.Lock()  # of where the file ends, not of what is written there
        self._chain_lock = threading.Lock()
        self._end = _align(self._text_at + len(text.data) + 1 + len(self._software), _PAGE)
        self._description = _HEADER + self._first.texts[0]  # count and offset of the document
        self._next = 0  # where the pointer of the last IFD stands
        # blocks of IFDs that lie side by side: number of the first plane, and where they begin
        self._firsts, self._starts = array("Q"), array("Q")
        self._owed: list[tuple[int, bytes]] = []  # to be written as soon as the chain is so long
        self._is_parted = False
        self._closed = False

    @classmethod
    def reopen(
        cls,
        path: Path,
        pages: Sequence[tag.Page],
        text: LiveText,
        software: str,
        files: OpenFiles,
        *,
        replaces: bool = False,
        apart: bool = False,
    ) -> tuple[TiffChain, list[Tables]]:
        """Return the chain that lies in a file, with the tables of its planes.

        Where a machine has lost its power the end of the file may be missing: then the chain
        ends with the last plane that is whole.

        Raises
        ------
        DamagedFileError
            The file is no such chain.
        """
        chain = cls(path, pages, text, software, files, replaces=replaces, apart=apart)
        with files.use(chain._at) as file:
            chain._end = max(chain._end, _align(file.size + 1, _PAGE))
            head = file.read(0, _HEADER)
            if not any(head):  # it ended before its first plane
                return chain, [Tables.nothing(page.down * page.across) for page in pages]
            return chain, chain._take_up(file, pages)

    def write(self, parts: Sequence[Bytes]) -> list[int]:
        """Append pieces and return where each begins. Any thread."""
        views: list[Bytes] = []
        places: list[int] = []
        size = 0
        room = 0
        for part in parts:
            if room:
                views.append(_GAP[:room])
            places.append(size)
            views.append(part)
            taken = self._room(len(part))
            room = taken - len(part)
            size += taken
        offset = self._take(size)
        with self._files.use(self._at) as file:
            if len(views) == 1:
                file.write(offset, views[0])
            else:
                file.write_many(offset, views)
        return [offset + place for place in places]

    def hole(self, count: int) -> int:
        """Return where so many zeros are that take no room on most disks."""
        offset = self._take(self._room(count))
        with self._files.use(self._at) as file:
            file.write(offset + count - 1, b"\0")
        return offset

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes that were written.

        Raises
        ------
        DamagedFileError
            They are no longer there.
        """
        with self._files.use(self._at) as file:
            data = file.read(offset, count)
        if len(data) < count:
            raise DamagedFileError(
                f"{str(self.path)!r} was cut while it was written: a tile of {count} bytes has "
                f"only {len(data)} left"
            )
        return data

    def append(self, tables: Sequence[Tables], numbers: Mapping[str, int]) -> None:
        """Append the IFDs of further planes, then write numbers into the document.

        Parameters
        ----------
        tables : sequence of Tables
            Where the tiles of these planes are, by level.
        numbers : mapping of str to int
            What the document says as soon as they are there.
        """
        with self._chain_lock:
            self._check_open()
            if not self.planes:
                self._begin(tables, numbers)
                return
            self._owed = self._patches(numbers)
            self._link(tables)
            with self._files.use(self._at) as file:
                self._say(file)

    def replace(self, first: int, tables: Sequence[Tables]) -> None:
        """Say anew where the tiles are of planes that were appended together, from `first` on."""
        with self._chain_lock:
            self._check_open()
            stop = first + len(tables[0].counts)
            start = self._place(first)
            following = 0 if stop == self.planes else self._place(stop) + self._other.start
            with self._files.use(self._at) as file:
                file.write(start, self._other.block(start, tables, following))
                self._say(file)

    def enter(self, plane: int, level: int, tile: int, where: tuple[int, int]) -> None:
        """Say anew where one tile is, by offset and byte count."""
        with self._chain_lock:
            self._check_open()
            place = self._place(plane)
            stamp = self._other if plane else self._first
            with self._files.use(self._at) as file:
                for at, data in stamp.entry(level, tile, where):
                    file.write(place + at, data)

    def describe(self, document: bytes) -> None:
        """Let the document be another one; also when the chain is closed."""
        data = document + b"\0"
        with self._chain_lock, self._files.use(self._at) as file:
            with self._room_lock:
                at = _align(max(self._end, file.size), tag.ALIGN)
                self._end = at + len(data)
            file.write(at, data)
            file.write(self._description, _text_entry(len(data), at))

    def part(self, tables: Sequence[Tables]) -> None:
        """Tell of a lone plane anew, the last row of each strip that is all of a level apart.

        Where one piece holds all pixels there is nothing else that keeps them from touching.
        Only the last row is copied; the IFD that was there stays where it is, and `reopen` goes
        back to it. No more planes may follow.

        Parameters
        ----------
        tables : sequence of Tables
            Where the tiles of the plane are, by level; not compressed.
        """
        if self._is_parted:
            return
        parts = [self._parted(*level) for level in zip(self._pages, tables, strict=True)]
        stamp = _Stamp(tag.stamp([page for page, _ in parts], _TEXTS))
        with self._chain_lock, self._files.use(self._at) as file:
            start = self._take(stamp.step)
            block = stamp.block(start, [table for _, table in parts])
            for old, new in zip(self._first.texts, stamp.texts, strict=True):
                block[new : new + 16] = file.read(_HEADER + old, 16)
            file.write(start, block)
            file.write(8, (start + stamp.start).to_bytes(8, "little"))
            self._description = start + stamp.texts[0]
            self._is_parted = True

    def _parted(self, page: tag.Page, table: Tables) -> tuple[tag.Page, Tables]:
        """Return a page whose last row is a strip of its own, and where the two strips are."""
        if page.down * page.across > 1 or not page.strips:
            return page, table
        rows = page.tags[tag.IMAGE_LENGTH][0]
        offset, count = int(table.offsets[0, 0]), int(table.counts[0, 0])
        body = count - count // rows
        last = self.write([self.read(offset + body, count - body)])[0]
        page = page._replace(tags={**page.tags, tag.ROWS_PER_STRIP: (rows - 1,)}, down=2)
        return page, Tables(
            np.array([[offset, last]], np.uint64), np.array([[body, count - body]], np.uint32)
        )

    def close(self) -> None:
        """Take no more pixels."""
        self._closed = True

    def _take(self, size: int, align: int = tag.ALIGN) -> int:
        with self._room_lock:
            self._check_open()
            start = _align(self._end, _PAGE if size >= _LARGE else align)
            self._end = start + size
        return start

    def _room(self, count: int) -> int:
        """Return what so many bytes take.

        Where the tiles of a plane touch, readers may take those of all planes in one piece.
        """
        return _align(count if self._touch else count + 1, tag.ALIGN)

    def _link(self, tables: Sequence[Tables]) -> None:
        """Append IFDs and let the last one before them point there."""
        count = len(tables[0].counts)
        start = self._take(count * self._other.step, self._other.align)
        with self._files.use(self._at) as file:
            file.write(start, self._other.block(start, tables))
            file.write(self._next, (start + self._other.start).to_bytes(8, "little"))
        self._firsts.append(self.planes)
        self._starts.append(start)
        self.planes += count
        self._set_next()

    def _begin(self, tables: Sequence[Tables], numbers: Mapping[str, int]) -> None:
        """Write the first IFDs, the document, and at last the header."""
        count = len(tables[0].counts)
        text = bytearray(self._text.data)
        for at, data in self._patches(numbers):
            text[at - self._text_at : at - self._text_at + len(data)] = data
        size = (count - 1) * self._other.step
        start = self._take(size, self._other.align) if size else 0
        head = self._head(tables, start, len(text) + 1)
        gap = bytes(self._text_at - _HEADER - len(head))
        with self._files.use(self._at) as file:
            if size:
                rest = [table.cut(1, count) for table in tables]
                file.write(start, self._other.block(start, rest))
            file.write_many(_HEADER, [head, gap, text, b"\0", self._software])
            file.write(0, tag.header(_HEADER + self._first.start))
        self._firsts.append(0)
        self._starts.append(_HEADER)
        if size:
            self._firsts.append(1)
            self._starts.append(start)
        self.planes = count
        self._set_next()

    def _head(self, tables: Sequence[Tables], following: int, count: int) -> bytearray:
        """Return the first IFD with both texts; `following` is where further planes begin."""
        pointer = following + self._other.start if following else 0
        head = self._first.block(_HEADER, [table.cut(0, 1) for table in tables], pointer)
        entries = (count, self._text_at), (len(self._software), self._text_at + count)
        for field, entry in zip(self._first.texts, entries, strict=True):
            head[field : field + 16] = _text_entry(*entry)
        return head

    def _say(self, file: RandomFile) -> None:
        """Write the numbers into the document that it does not say yet."""
        for at, data in self._owed:
            file.write(at, data)
        self._owed = []

    def _place(self, plane: int) -> int:
        """Return where what belongs to a plane begins."""
        block = bisect_right(self._firsts, plane) - 1
        return self._starts[block] + (plane - self._firsts[block]) * self._other.step

    def _set_next(self) -> None:
        stamp = self._other if self.planes > 1 else self._first
        self._next = self._place(self.planes - 1) + stamp.next

    def _patches(self, numbers: Mapping[str, int]) -> list[tuple[int, bytes]]:
        """Return what has to be written where, so that the document says these numbers.

        One piece; the sizes in it come before the count of planes, so that there is room for all
        that are counted also where the system stops half-way, between two of its pages.
        """
        if not self._text.fields:
            return []
        first, piece = self._piece
        text = bytearray(piece)
        for name, (at, digits) in self._text.fields.items():
            text[at - first : at - first + digits] = b"%0*d" % (digits, numbers[name])
        return [(self._text_at + first, bytes(text))]

    @cached_property
    def _piece(self) -> tuple[int, bytes]:
        """The part of the document with numbers that change: where it begins, and what it says."""
        spans = self._text.fields.values()
        first, last = min(at for at, _ in spans), max(at + digits for at, digits in spans)
        return first, bytes(self._text.data[first:last])

    def _take_up(self, file: RandomFile, pages: Sequence[tag.Page]) -> list[Tables]:
        """Go on with the chain in a file."""
        reader = IfdReader(file)
        begun = tag.header(_HEADER + self._first.start)
        parted = file.read(0, _HEADER) != begun
        reader.first = _HEADER + self._first.start
        found = reader.chain()
        tables: list[Tables] = []
        if reader.big and len(found) and (not parted or len(found) == 1):
            with suppress(DamagedFileError):
                tables = read_tables(reader, found, [page.down * page.across for page in pages])
        head = file.read(_HEADER, self._first.step)
        if not tables or head != self._as_begun(head, found, tables):
            raise DamagedFileError(
                f"{str(self.path)!r} is not what this stream wrote: "
                f"{reader.broken or 'its first directory is of another image'}"
            )
        whole = np.all([(t.offsets + t.counts <= file.size).all(axis=1) for t in tables], axis=0)
        kept = int(np.argmin(whole)) if not whole.all() else len(whole)
        if not kept:
            raise DamagedFileError(f"{str(self.path)!r} has been cut before its first plane")
        field = self._first.texts[0]
        if head[field : field + 16] != _text_entry(len(self._text.data) + 1, self._text_at):
            self._text = LiveText(b"", {})  # it was finished before
        self.planes = kept
        self._firsts = array("Q", range(kept))
        self._starts = array("Q", [_HEADER, *(found[1:kept] - self._other.start).tolist()])
        self._set_next()
        if reader.broken or kept < len(found):
            file.write(self._next, bytes(8))
        if parted:
            file.write(0, begun)
        return [table.cut(0, kept) for table in tables]

    def _as_begun(
        self, head: bytes, found: NDArray[np.int64], tables: Sequence[Tables]
    ) -> bytearray:
        """Return what the first IFD is if `head`, which is there, is one of this chain."""
        made = self._first.block(_HEADER, [table.cut(0, 1) for table in tables])
        for field, size in (*((text, 16) for text in self._first.texts), (self._first.next, 8)):
            made[field : field + size] = head[field : field + size]
        return made

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the TIFF is closed: it takes no more pixels")


class _Stamp:
    """Stamps out the IFDs of many planes at once.

    With `paged` those of a plane begin where no entry can lie across the border of two pages of
    the system, so that each can be changed later, as a whole or not at all.
    """

    def __init__(self, made: tag.Stamp, *, paged: bool = False) -> None:
        self.start, self.next, self.texts = made.start, made.next, made.texts
        step = len(made.data)
        if paged:
            step = min(_align(step, _PAGE), 1 << (step - 1).bit_length())
        self.step = step
        self.align = min(step, _PAGE) if paged else tag.ALIGN
        self._data = made.data.ljust(step, b"\0")
        self._moves = made.moves
        self._slots = made.slots
        names, kinds, offsets = ["next"], ["<u8"], [made.next]
        for number, (field, _) in enumerate(made.moves):
            names.append(f"move{number}")
            kinds.append("<u8")
            offsets.append(field)
        for level, slots in enumerate(made.slots):
            names += f"offsets{level}", f"counts{level}"
            kinds += f"({slots.tiles},)<u8", f"({slots.tiles},)<u4"
            offsets += slots.offsets, slots.counts
        self._record = np.dtype(
            {"names": names, "formats": kinds, "offsets": offsets, "itemsize": self.step}
        )

    def block(self, start: int, tables: Sequence[Tables], following: int = 0) -> bytearray:
        """Return the IFDs of planes, to lie at `start`; the last one points to `following`."""
        count = len(tables[0].counts)
        out = bytearray(self._data) * count
        records = np.frombuffer(out, self._record)
        places = start + self.step * np.arange(count, dtype=np.int64)
        records["next"][:-1] = places[1:] + self.start
        records["next"][-1] = following
        for number, (_, to) in enumerate(self._moves):
            records[f"move{number}"] = places + to
        for level, table in enumerate(tables):
            records[f"offsets{level}"] = table.offsets
            records[f"counts{level}"] = table.counts
        return out

    def entry(self, level: int, tile: int, where: tuple[int, int]) -> list[tuple[int, bytes]]:
        """Return what to write where, so that a tile is found; one piece if it is the only one."""
        slots = self._slots[level]
        offset, count = where[0].to_bytes(8, "little"), where[1].to_bytes(4, "little")
        if slots.tiles == 1:
            between = self._data[slots.offsets + 8 : slots.counts]
            return [(slots.offsets, offset + between + count)]
        return [(slots.counts + 4 * tile, count), (slots.offsets + 8 * tile, offset)]


def read_tables(reader: IfdReader, chain: NDArray[np.int64], tiles: Sequence[int]) -> list[Tables]:
    """Return where the tiles of all planes are.

    Parameters
    ----------
    reader : IfdReader
        Of the file.
    chain : array of int
        The IFDs.
    tiles : sequence of int
        Tiles of a plane, by level.

    Raises
    ------
    DamagedFileError
        An IFD is another one.
    """
    found = [Tables.nothing(count, len(chain)) for count in tiles]
    # most are alike and have one tile: those are told by their bytes
    twin = reader.twin(reader.read(int(chain[-1]))) if len(tiles) == 1 else None
    for plane, at in enumerate(chain.tolist()):
        seen = None if twin is None else reader.look(twin, at)
        if seen is not None:
            found[0].offsets[plane], found[0].counts[plane] = seen
            continue
        ifd = reader.read(at)
        for level, place in enumerate([at, *reader.subifds(ifd)]):
            offsets, counts = reader.segments(reader.read(place) if level else ifd)
            if level >= len(tiles) or len(offsets) != tiles[level]:
                raise DamagedFileError(
                    f"the directory of plane {plane} at byte {at} is not one of this stream"
                )
            found[level].offsets[plane], found[level].counts[plane] = offsets, counts
    return found


def _text_entry(count: int, offset: int) -> bytes:
    """Return count and offset of a text as they stand in an IFD, side by side."""
    return count.to_bytes(8, "little") + offset.to_bytes(8, "little")


def _align(number: int, to: int) -> int:
    return -(-number // to) * to
