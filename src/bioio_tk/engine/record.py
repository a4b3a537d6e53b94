"""Record: a file of lines that only grows, from which a later process learns what was done.

Each line is appended in one piece: a checksum and JSON. A line that was cut off, or changed, and
all after it, do not count.

What a process has written is safe when that process dies, but not when the machine does: the
system may not have sent it to the disk. So every minute the system is told to, beside the work,
and a line says up to where the record holds in that case, too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.engine.flush import Flusher
from bioio_tk.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SYNC_EVERY = 60.0
"""Seconds after which the system is told to send to the disk what it holds back."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Record:
    """The end of a record, where lines are added.

    Parameters
    ----------
    fd : int
        The file, open for appending; it belongs to the record from now on.
    folder : Path
        Where it lies, with all that it tells of.
    """

    def __init__(self, fd: int, folder: Path) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        self._flusher = Flusher(folder)
        self._torn = False
        self.size = os.fstat(fd).st_size
        """Length of what was written whole, in bytes."""

    @property
    def error(self) -> OSError | None:
        """What the disk has said when it could not store what had been written before."""
        return self._flusher.error

    def append(self, data: bytes) -> None:
        """Add lines, all of them or none. Any thread.

        Raises
        ------
        OSError
            What the system says (a full disk); more can be added when there is room again.
        """
        with self._lock:
            self._write(data)
            size = self.size
            due = time.monotonic() - self._synced > _SYNC_EVERY
            if due:
                self._synced = time.monotonic()
        if due:
            self._flusher.begin(lambda: self._note_synced(size))

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def let_go(self) -> None:
        """Close the file in a forked process, where another thread may have had the lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            raise ClosedError("the record is closed: nothing can be entered any more")
        # a line that was cut off would end the record for whoever reads it
        if self._torn:
            os.ftruncate(self._fd, self.size)
        self._torn = True
        try:
            write_all(self._fd, data)
        except OSError:
            with suppress(OSError):  # else the next one tries again
                os.ftruncate(self._fd, self.size)
                self._torn = False
            raise
        self._torn = False
        self.size += len(data)

    def _note_synced(self, size: int) -> None:
        """Enter that all which the first `size` bytes of the record tell of is on the disk."""
        with self._lock:
            if self._fd < 0:
                return
            self._write(line({"synced": size}))
            fd = os.dup(self._fd)
        try:
            os.fsync(fd)  # not while others wait for the lock
        finally:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.let_go()


def line(item: Any) -> bytes:
    """Return what JSON can hold as a line of a record."""
    return sealed(json.dumps(item, ensure_ascii=True, separators=(",", ":")).encode())


def sealed(text: bytes) -> bytes:
    """Return JSON text, which must not contain a line break, as a line of a record."""
    return b"%08x %b\n" % (zlib.crc32(text), text)


def whole_lines(found: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield where each line ends, and its JSON text, up to the first that is not whole."""
    end = 0
    for one in found:
        text = one[9:-1]
        try:
            good = one.endswith(b"\n") and int(one[:8], 16) == zlib.crc32(text)
        except ValueError:
            good = False
        if not good:
            return
        end += len(one)
        yield end, text


def write_all(fd: int, data: bytes) -> None:
    """Write in one piece, but where the disk is full: that raises when a part may be written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def boot() -> str | None:
    """Return what names the time since the machine was started, None where nobody knows."""
    if sys.platform == "darwin":
        return _boot_of_mac()
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return None


def _boot_of_mac() -> str | None:
    import ctypes

    found = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(64)
    libc = ctypes.CDLL(None)
    failed = libc.sysctlbyname(b"kern.bootsessionuuid", found, ctypes.byref(size), None, 0)
    return None if failed else found.value.decode()
