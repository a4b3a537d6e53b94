"""IfdReader: the directories of a TIFF file and their tables of offsets, read one by one.

tifffile explains what a page means; this room only finds, quickly and for any number of pages,
where its segments lie, and tells whether two pages are laid out alike.
Source: TIFF 6.0 section 2, BigTIFF design note.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.backends._file import RandomFile

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_SIZES |= {13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_MOST_TAGS = 4096
_AHEAD = 1 << 16

# what a page's pixels look like: two pages that agree in these are decoded alike
_LAYOUT = frozenset(
    (256, 257, 258, 259, 262, 266, 277, 278, 284, 292, 317, 322, 323, 338, 339, 347, 529)
    + (530, 532, 32997, 32998, 34712, 42113)
)
_OFFSETS = (324, 273)
_COUNTS = (325, 279)
_SUBIFDS = 330

Entry: TypeAlias = tuple[int, int, bytes]  # type, count, the 4 or 8 bytes of the value field


class Ifd(NamedTuple):
    """One directory: its entries by tag, and the offset of the next one."""

    offset: int
    entries: dict[int, Entry]
    next: int


class IfdReader:
    """Reads directories of one file.

    Parameters
    ----------
    file : RandomFile
        The open file.

    Raises
    ------
    DamagedFileError
        It has no TIFF header.
    """

    def __init__(self, file: RandomFile) -> None:
        self._file = file
        head = file.read(0, 16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise DamagedFileError(f"{str(file.path)!r} has no TIFF header")
        self.order = order
        version = struct.unpack(order + "H", head[2:4])[0]
        self.big = version == 43
        if self.big and len(head) == 16:
            self._first = struct.unpack(order + "Q", head[8:])[0]
        elif version == 42:
            self._first = struct.unpack(order + "I", head[4:8])[0]
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
        offset = self._first
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
        entries = {
            tag: (kind, number, value)
            for tag, kind, number, value in self._entry.iter_unpack(data[start:stop])
        }
        tail = data[stop : stop + self._next.size]
        following = self._next.unpack(tail)[0] if len(tail) == self._next.size else 0
        return Ifd(offset, entries, following)

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

    def subifds(self, ifd: Ifd) -> list[int]:
        """Return the offsets of the directories below a page."""
        found = self.integers(ifd, (_SUBIFDS,))
        return [] if found is None else found.tolist()

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
