"""Flusher: has the system send to the disk what it holds back, while the work goes on."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Flusher:
    """Flushes the file system of a folder, in a thread of its own: it may take minutes.

    Parameters
    ----------
    folder : Path
        What is written in it, and elsewhere on its file system, is flushed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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
                if flush(self._folder):
                    then()
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
