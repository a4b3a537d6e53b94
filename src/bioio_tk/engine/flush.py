"""Flusher: has the system send to the disk what it holds back, while the work goes on."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Flusher:
    """Flushes the file system of a folder, in a thread of its own: it may take minutes.

    Parameters
    ----------
    folder : Path
        What is written in it, and elsewhere on its file system, is flushed.

    Attributes
    ----------
    error : OSError or None
        What the disk has said when it could not store what the system had taken for it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.error: OSError | None = None
        self._free = threading.Lock()  # held as long as the thread is at work

    def begin(self, then: Callable[[], object]) -> bool:
        """Begin to flush what was written until now, and return at once.

        Parameters
        ----------
        then : callable
            Called when all of that is on the disk, in another thread; not if it could not be
            sent there.

        Returns
        -------
        bool
            Whether it was begun: not while it is still done, nor where the system cannot say
            when it is.
        """
        if not sys.platform.startswith("linux") or not self._free.acquire(blocking=False):
            return False
        try:
            threading.Thread(target=self._flush, args=(then,), daemon=True).start()
        except RuntimeError:  # the system has no thread left, or Python is about to end
            self._free.release()
            return False
        return True

    def _flush(self, then: Callable[[], object]) -> None:
        try:
            with suppress(OSError):
                ctypes.set_errno(0)
                if flush(self._folder):
                    then()
                elif (number := ctypes.get_errno()) in _LOST:
                    self.error = OSError(number, os.strerror(number))
        finally:
            self._free.release()


def flush(folder: Path) -> bool:
    """Wait until all that was written to the file system of a folder is on the disk.

    Returns
    -------
    bool
        Whether it is; not where the system cannot do that for one file system alone, or a disk
        has failed.

    References
    ----------
    syncfs(2): it waits for the disk, and since Linux 5.8 tells of errors.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        return False
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return bool(syncfs(fd) == 0)
    finally:
        os.close(fd)


def sync(path: Path) -> None:
    """Wait until a file or folder, and all else on its file system, is on the disk.

    Raises
    ------
    OSError
        The disk has failed.
    """
    ctypes.set_errno(0)
    if flush(path.parent):
        return
    number = ctypes.get_errno()
    if number:
        raise OSError(number, os.strerror(number), str(path))
    os.sync()  # where the system cannot do that for one file system alone
