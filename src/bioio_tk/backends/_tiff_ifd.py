"""IfdReader: the directories of a TIFF file and their tables of offsets, read one by one.

tifffile explains what a page means; this room only finds, quickly and for any number of pages,
where its segments lie, and tells whether two pages are laid out alike.
Source: TIFF 6.0 section 2, BigTIFF design note.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.backends._file import AnyFile

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_SIZES |= {13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_MOST_TAGS = 4096
_AHEAD = 1 << 16

# what a page's pixels look like: two pages that agree in these are decoded alike
_LAYOUT = frozenset((
    256, 257, 258, 259, 262, 266, 277, 278, 284, 292, 317, 322, 323, 338, 339, 347, 529, 530, 532,
    32997, 32998, 34712, 42113,
))  # fmt: skip
# what says how pages belong together: descriptions, SubIFDs, and the private tags of vendors
_MEANING = frozenset((270, 330, 33628, 33629, 33630, 33631, 34412, 50838, 50839, 51123, 65426))
_CHECKED = _LAYOUT | _MEANING
_OFFSETS = (324, 273)
_COUNTS = (325, 279)
_SUBIFDS = 330
_MOST_SUBIFDS = 1024
_POINTERS = (4, 13, 16, 18)

Entry: TypeAlias = tuple[int, int, bytes]  # type, count, the 4 or 8 bytes of the value field


class Ifd(NamedTuple):
    """One directory: its entries by tag, and the offset of the next one."""

    offset: int
    entries: dict[int, Entry]
    next: int


class Twin(NamedTuple):
    """What all directories share that describe pages laid out alike, of one segment each."""

    size: int
    mask: int  # the bits that must agree
    pattern: int
    offset: tuple[int, int]  # where these two values stand
    length: tuple[int, int]
    order: Literal["little", "big"]


class IfdReader:
    """Reads directories of one file.

    Parameters
    ----------
    file : AnyFile
        The open file.

    Raises
    ------
    DamagedFileError
        It has no TIFF header.
    """

    def __init__(self, file: AnyFile) -> None:
        self._file = file
        head = file.read(0, 16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise DamagedFileError(f"{str(file.path)!r} has no TIFF header")
        self.order = order
        self._order: Literal["little", "big"] = "little" if order == "<" else "big"
        version = struct.unpack(order + "H", head[2:4])[0]
        self.big = version == 43
        if self.big and len(head) == 16:
            self.first = struct.unpack(order + "Q", head[8:])[0]
        elif version == 42:
            self.first = struct.unpack(order + "I", head[4:8])[0]
        else:
            raise DamagedFileError(f"{str(file.path)!r} has no TIFF header")
        self._count = struct.Struct(order + ("Q" if self.big else "H"))
        self._entry = struct.Struct(order + ("HHQ8s" if self.big else "HHI4s"))
        self._next = struct.Struct(order + ("Q" if self.big else "I"))
        self._block = (0, b"")
        self.broken = ""

    def chain(self) -> NDArray[np.int64]:
        """Return the offset of every directory in the file's chain.

        Where the chain cannot be followed to its end, `broken` says why.
        """
        found: list[int] = []
        seen: set[int] = set()
        offset = self.first
        while offset:
            if offset in seen:
                self.broken = f"directory {len(found)} points back to an earlier one"
                break
            data = self._ahead(offset, self._count.size)
            if len(data) < self._count.size:
                self.broken = f"directory {len(found)} lies beyond the end of the file"
                break
            (count,) = self._count.unpack(data)
            size = self._count.size + count * self._entry.size
            data = self._ahead(offset + size, self._next.size)
            if not 0 < count <= _MOST_TAGS or len(data) < self._next.size:
                self.broken = f"directory {len(found)} is cut off or no directory"
                break
            seen.add(offset)
            found.append(offset)
            (offset,) = self._next.unpack(data)
        return np.array(found, np.int64)

    def read(self, offset: int) -> Ifd:
        """Return the directory at `offset`."""
        data = self._file.read(offset, 1024)
        if len(data) < self._count.size:
            raise self._damaged(offset, "lies beyond the end of the file")
        (count,) = self._count.unpack_from(data)
        start = self._count.size
        stop = start + count * self._entry.size
        if not 0 < count <= _MOST_TAGS:
            raise self._damaged(offset, f"claims {count} entries")
        if stop + self._next.size > len(data):
            data = self._file.read(offset, stop + self._next.size)
            if len(data) < stop:
                raise self._damaged(offset, "is cut off")
        entries: dict[int, Entry] = {}
        for tag, kind, number, value in self._entry.iter_unpack(data[start:stop]):
            entries.setdefault(tag, (kind, number, value))  # where one comes twice, the first
        tail = data[stop : stop + self._next.size]
        following = self._next.unpack(tail)[0] if len(tail) == self._next.size else 0
        return Ifd(offset, entries, following)

    def twin(self, ifd: Ifd) -> Twin | None:
        """Return what recognises directories that differ from `ifd` only in where pixels are.

        None where a page has several segments, or they are listed elsewhere.
        """
        head, step, width = self._count.size, self._entry.size, self._next.size
        size = head + len(ifd.entries) * step
        data = self._file.read(ifd.offset, size)
        if self._count.unpack_from(data)[0] != len(ifd.entries) or len(data) < size:
            return None
        mask = bytearray(b"\xff" * size)
        spots = {}
        for number, (tag, kind, count, _) in enumerate(
            self._entry.iter_unpack(data[head : head + len(ifd.entries) * step])
        ):
            value = head + (number + 1) * step - width
            if tag in _OFFSETS or tag in _COUNTS:
                if count != 1 or kind not in _INTEGERS:
                    return None
                spots[tag] = (value, value + np.dtype(_INTEGERS[kind]).itemsize)
                mask[value : value + width] = bytes(width)
            elif tag not in _LAYOUT:
                mask[value - width : value + width] = bytes(2 * width)
        offset = next((spots[tag] for tag in _OFFSETS if tag in spots), None)
        length = next((spots[tag] for tag in _COUNTS if tag in spots), None)
        if offset is None or length is None:
            return None
        bits = int.from_bytes(mask, "big")
        return Twin(size, bits, int.from_bytes(data, "big") & bits, offset, length, self._order)

    def look(self, twin: Twin, offset: int) -> tuple[int, int] | None:
        """Return offset and length of the one segment of a twin's page; None where it is none."""
        data = self._file.read(offset, twin.size)
        if len(data) < twin.size or int.from_bytes(data, "big") & twin.mask != twin.pattern:
            return None
        (a, b), (c, d) = twin.offset, twin.length
        order = twin.order
        return int.from_bytes(data[a:b], order), int.from_bytes(data[c:d], order)

    def check(self, ifd: Ifd) -> None:
        """Raise DamagedFileError where a tag that matters lies beyond the end of the file.

        Without it, the page would be taken for something else than it is. SubIFDs that nobody
        can mean are refused too: tifffile would look for a page at each of them.
        """
        size = self._file.size
        for tag in _CHECKED & ifd.entries.keys():
            kind, number, value = ifd.entries[tag]
            length = _SIZES.get(kind, 0) * number
            if length > len(value) and self._next.unpack(value)[0] + length > size:
                raise self._damaged(ifd.offset, f"has its tag {tag} beyond the end of the file")
            if tag == _SUBIFDS and (number > _MOST_SUBIFDS or kind not in _POINTERS):
                raise self._damaged(ifd.offset, f"claims {number} SubIFDs of type {kind}")

    def layout(self, ifd: Ifd) -> tuple[tuple[int, int, int, bytes], ...]:
        """Return a value that is equal for pages that are decoded alike."""
        found = []
        for tag in sorted(_LAYOUT & ifd.entries.keys()):
            kind, number, value = ifd.entries[tag]
            size = _SIZES.get(kind, 1) * number
            if size > len(value) and size <= 1 << 20:
                value = self._file.read(self._next.unpack(value)[0], size)
            found.append((tag, kind, number, value[:size]))
        return tuple(found)

    def integers(self, ifd: Ifd, tags: tuple[int, ...]) -> NDArray[np.int64] | None:
        """Return the numbers of the first of `tags` that is there, None where none is."""
        for tag in tags:
            if tag in ifd.entries:
                return self._integers(ifd, tag)
        return None

    def segments(self, ifd: Ifd) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return offset and length of every tile or strip of a page."""
        offsets = self.integers(ifd, _OFFSETS)
        counts = self.integers(ifd, _COUNTS)
        if offsets is None or counts is None:
            raise self._damaged(ifd.offset, "does not say where its pixels are")
        return offsets, counts

    def number(self, ifd: Ifd, tag: int, default: int | None = None) -> int | None:
        """Return the number of a tag, `default` where it is not there.

        None where it holds several that are not all the same, or none that is a whole number.
        """
        entry = ifd.entries.get(tag)
        if entry is None:
            return default
        kind, count, value = entry
        if kind not in _INTEGERS:
            return None
        if count == 1:
            return int.from_bytes(value[: _SIZES[kind]], self._order)
        found = self._integers(ifd, tag)
        return int(found[0]) if len(found) and (found == found[0]).all() else None

    def text(self, ifd: Ifd, tag: int) -> str:
        """Return the text of a tag, "" where it is not there or no text."""
        kind, number, value = ifd.entries.get(tag, (2, 0, b""))
        if kind not in (1, 2, 7):
            return ""
        if number > len(value):
            start = self._next.unpack(value)[0]
            value = self._file.read(start, min(number, max(0, self._file.size - start)))
        data = value[:number].rstrip(b"\0")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data.decode("cp1252", "replace")

    def fraction(self, ifd: Ifd, tag: int) -> tuple[int, int] | None:
        """Return numerator and denominator of a tag, None where it is not there."""
        kind, number, value = ifd.entries.get(tag, (0, 0, b""))
        if kind != 5 or number != 1:
            return None
        if len(value) < 8:
            value = self._file.read(self._next.unpack(value)[0], 8)
        if len(value) < 8:
            return None
        above, below = struct.unpack(self.order + "II", value[:8])
        return above, below

    def subifds(self, ifd: Ifd) -> list[int]:
        """Return the offsets of the directories below a page."""
        found = self.integers(ifd, (_SUBIFDS,))
        return [] if found is None else found.tolist()

    def packed(self, ifd: Ifd, tag: int, values: NDArray[np.int64]) -> tuple[int, bytes]:
        """Return where the numbers of a tag stand in the file, and the bytes for other ones."""
        kind, number, value = ifd.entries[tag]
        data = values.astype(self.order + _INTEGERS[kind]).tobytes()
        if number * np.dtype(_INTEGERS[kind]).itemsize > len(value):
            return self._next.unpack(value)[0], data
        place = list(ifd.entries).index(tag)
        end = ifd.offset + self._count.size + (place + 1) * self._entry.size
        return end - len(value), data

    def _integers(self, ifd: Ifd, tag: int) -> NDArray[np.int64]:
        kind, number, value = ifd.entries[tag]
        if kind not in _INTEGERS:
            raise self._damaged(ifd.offset, f"has a tag {tag} of type {kind}")
        dtype = np.dtype(self.order + _INTEGERS[kind])
        size = number * dtype.itemsize
        if size > len(value):
            start = self._next.unpack(value)[0]
            if start + size > self._file.size:
                raise self._damaged(ifd.offset, f"claims {number} values for tag {tag}")
            value = self._file.read(start, size)
        return np.frombuffer(value[:size], dtype).astype(np.int64)

    def _ahead(self, offset: int, size: int) -> bytes:
        """Return a few bytes; directories are often neighbours, so read more than that."""
        start, block = self._block
        if not start <= offset <= start + len(block) - size:
            near = start <= offset < start + len(block) + _AHEAD
            block = self._file.read(offset, _AHEAD if near else 512)
            start, self._block = offset, (offset, block)
        return block[offset - start : offset - start + size]

    def _damaged(self, offset: int, what: str) -> DamagedFileError:
        return DamagedFileError(
            f"{str(self._file.path)!r} is damaged: the directory at byte {offset} {what}"
        )
