"""RandomFile: bytes at an offset, from any thread, without a shared file position."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_FARTHEST = 1 << 62
"""An offset that no file has; the system refuses larger ones with an error of its own."""
_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class RandomFile:
    """A file read and written at explicit offsets; safe to share between threads.

    Parameters
    ----------
    path : Path
        An existing file.
    writable : bool
        Open for reading and writing instead of reading only.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | _BINARY)

    @property
    def size(self) -> int:
        """Length of the file in bytes, as it is now."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; fewer only at the end of the file."""
        parts = []
        while count > 0 and 0 <= offset < _FARTHEST:
            part = _pread(self._fd, count, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, offset: int, buffer: Any) -> int:
        """Fill a contiguous writable `buffer` from `offset`; return the number of bytes read."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and 0 <= offset < _FARTHEST:
            got = _pread_into(self._fd, view[done:], offset + done)
            if got == 0:
                break
            done += got
        return done

    def write(self, offset: int, data: Any) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        while len(view):
            done = _pwrite(self._fd, view, offset)
            offset += done
            view = view[done:]

    def close(self) -> None:
        """Release the file; raise what the system reports only now (a full network disk)."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)


if hasattr(os, "pread"):
    _pread = os.pread

    def _pread_into(fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view], offset)

    def _pwrite(fd: int, view: memoryview, offset: int) -> int:
        return os.pwrite(fd, view, offset)

else:  # Windows has no positional read; one position a process, so one at a time
    import threading

    _SEEK = threading.Lock()

    def _pread(fd: int, count: int, offset: int) -> bytes:
        with _SEEK:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, count)

    def _pread_into(fd: int, view: memoryview, offset: int) -> int:
        data = _pread(fd, len(view), offset)
        view[: len(data)] = data
        return len(data)

    def _pwrite(fd: int, view: memoryview, offset: int) -> int:
        with _SEEK:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, view)
