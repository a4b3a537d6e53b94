"""Scratch: room for tiles that are not full yet, in memory first, then in a temporary file."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.engine import arrays

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from bioio_tk.core.region import Shape5

_MAPPED = 256 << 20
"""Most bytes of one mapping of the file, unless a tile is larger."""


class Room:
    """A zeroed array to fill; `spilled` where it lives in the file. Give it back with free()."""

    __slots__ = ("array", "nbytes", "pages", "start")

    def __init__(self, array: NDArray[Any], pages: mmap.mmap | None = None, start: int = 0) -> None:
        self.array = array
        self.nbytes = array.nbytes
        self.start = start
        self.pages = pages

    @property
    def spilled(self) -> bool:
        """True where the pixels live in the file."""
        return self.pages is not None

    def rest(self) -> None:
        """Let the system take the memory back until the array is touched again."""
        if self.pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.pages.madvise(mmap.MADV_DONTNEED, self.start, _whole_pages(self.nbytes))


class Scratch:
    """Hands out zeroed arrays; keeps no more than `budget` bytes of them in memory.

    Parameters
    ----------
    folder : Path
        Where the temporary file goes, if one is needed: beside the file being written, where
        there must be room for it anyway.
    budget : int
        Bytes to keep in memory.
    """

    def __init__(self, folder: Path, budget: int = 128 << 20) -> None:
        self._folder = folder
        self._budget = budget
        self._lock = threading.Lock()
        self._used = 0
        self._file: BinaryIO | None = None
        self._end = 0
        self._newest: mmap.mmap | None = None
        self._taken = 0
        self._free: dict[int, list[tuple[mmap.mmap, int]]] = {}

    def room(self, shape: Shape5, dtype: np.dtype[Any]) -> Room:
        """Return a zeroed array of `shape` (YXZCT)."""
        size = int(np.prod(shape)) * dtype.itemsize
        with self._lock:
            if self._used + size <= self._budget:
                self._used += size
                return Room(arrays.zeros(shape, dtype))
            pages, start, used_before = self._pages(size)
        flat = np.frombuffer(pages, dtype, size // dtype.itemsize, start)
        if used_before:
            flat[:] = 0
        y, x, z, c, t = shape
        return Room(flat.reshape(t, c, z, y, x).transpose(3, 4, 2, 1, 0), pages, start)

    def free(self, room: Room) -> None:
        """Take an array back; nobody may use it any more."""
        with self._lock:
            if room.pages is not None:
                if self._file is None:  # closed: nothing is handed out any more
                    return
                place = room.pages, room.start
                self._free.setdefault(_whole_pages(room.nbytes), []).append(place)
            else:
                self._used -= room.nbytes

    def close(self) -> None:
        """Drop the file. Arrays still in use stay valid."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._newest = None
            self._free.clear()

    def _pages(self, size: int) -> tuple[mmap.mmap, int, bool]:
        """Return a mapping, where there is room in it, and whether that was used before."""
        length = _whole_pages(size)
        free = self._free.get(length)
        if free:
            return *free.pop(), True
        if self._newest is None or self._taken + length > len(self._newest):
            self._newest, self._taken = self._mapped(length), 0
        start = self._taken
        self._taken += length
        return self._newest, start, False

    def _mapped(self, least: int) -> mmap.mmap:
        """Return more of the file, as much as there was.

        Each mapping keeps a file open: thousands of tiles cannot have one each.
        """
        if self._file is None:
            # it lives as long as the scratch, and is gone when its last mapping is
            self._file = tempfile.TemporaryFile(  # noqa: SIM115
                dir=self._folder, prefix=".bioio_tk-"
            )
        start = self._end
        length = max(least, min(start, _MAPPED))
        if hasattr(os, "posix_fallocate"):
            # reserve it: a full disk is an OSError here, and a crash of the process in a mapping
            os.posix_fallocate(self._file.fileno(), start, length)
        else:
            self._file.seek(start)
            self._file.write(bytes(length))
            self._file.flush()
        self._end += length
        return mmap.mmap(self._file.fileno(), length, offset=start)


def _whole_pages(size: int) -> int:
    grain = mmap.ALLOCATIONGRANULARITY
    return -(-size // grain) * grain
