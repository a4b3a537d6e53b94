"""The ImageDescription of a TIFF, read and replaced in place; no pixel is touched.

New text and a new copy of the first directory go to the end of the file, then the one number in
the header that says where that directory is becomes the new one. So the file is the old or the
new one at every moment, whatever happens, and what was appended in vain harms nobody.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._tiff_ifd import Entry, IfdReader
from bioio_tk.errors import DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

_DESCRIPTION = 270
_ASCII = 2
_CLASSIC_LIMIT = 2**32
_ALIGN = 16


class TiffComment:
    """The first ImageDescription of a TIFF.

    Parameters
    ----------
    path : Path
        The file.
    writable : bool
        Open it for `replace`.

    Raises
    ------
    DamagedFileError
        It is no TIFF.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self._file = RandomFile(path, writable=writable)
        try:
            self._reader = IfdReader(self._file)
            self._ifd = self._reader.read(self._reader.first)
        except BaseException:
            self._file.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor of the file, for a lock on it."""
        return self._file.fileno()

    def read(self) -> bytes:
        """Return the text without the zeros at its end, empty where there is none."""
        _, count, value = self._ifd.entries.get(_DESCRIPTION, (_ASCII, 0, b""))
        if count > len(value):
            value = self._file.read(self._offset(value), count)
            if len(value) < count:
                raise DamagedFileError(
                    f"{str(self._file.path)!r} is damaged: its ImageDescription lies beyond the "
                    "end of the file"
                )
        return value[:count].rstrip(b"\0")

    def replace(self, text: bytes) -> None:
        """Put another text in the place of this one.

        Raises
        ------
        UnsupportedError
            A classic TIFF has no room below 4 GB.
        OSError
            The disk is full; the file is as it was.
        """
        text += b"\0"
        size = self._file.size
        start = -(-size // _ALIGN) * _ALIGN
        ifd_at = start + -(-len(text) // _ALIGN) * _ALIGN
        ifd = self._directory(start, text)
        if not self._reader.big and ifd_at + len(ifd) > _CLASSIC_LIMIT:
            raise UnsupportedError(
                f"{str(self._file.path)!r} is a classic TIFF, which has no room beyond 4 GB for "
                "new metadata: convert it to a new file with them"
            )
        try:
            self._file.write(start, text.ljust(ifd_at - start, b"\0") + ifd)
            os.fsync(self._file.fileno())
        except BaseException:
            os.ftruncate(self._file.fileno(), size)
            raise
        width = 8 if self._reader.big else 4
        self._file.write(width, self._pack(width, ifd_at))
        os.fsync(self._file.fileno())
        self._ifd = self._reader.read(ifd_at)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _directory(self, start: int, text: bytes) -> bytes:
        """Return the first directory with another description."""
        width = 8 if self._reader.big else 4
        inside = text.ljust(width, b"\0") if len(text) <= width else self._pack(width, start)
        entries: dict[int, Entry] = {**self._ifd.entries, _DESCRIPTION: (_ASCII, len(text), inside)}
        order = self._reader.order
        head = struct.pack(order + ("Q" if self._reader.big else "H"), len(entries))
        form = order + ("HHQ8s" if self._reader.big else "HHI4s")
        body = b"".join(struct.pack(form, tag, *entries[tag]) for tag in sorted(entries))
        return head + body + self._pack(width, self._ifd.next)

    def _pack(self, width: int, number: int) -> bytes:
        return struct.pack(self._reader.order + ("Q" if width == 8 else "I"), number)

    def _offset(self, value: bytes) -> int:
        return int(struct.unpack(self._reader.order + ("Q" if self._reader.big else "I"), value)[0])
