"""OpenFiles: many files to write, of which only so many are open at the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from bioio_tk.backends._file import RandomFile

if TYPE_CHECKING:
    import os

_MOST = 64


class OpenFile:
    """A file that `OpenFiles` opens when it is wanted.

    Attributes
    ----------
    path : str or Path
        Where it lies.
    file : RandomFile or None
        The file, while it is open.
    users : int
        Threads that are at it.
    """

    def __init__(self, path: str | os.PathLike[str] = "") -> None:
        self.path = path
        self.file: RandomFile | None = None
        self.users = 0


class OpenFiles:
    """Files that are written to now and then, a few of which are open at any time.

    A plate has more positions than a process may have files. Any method from any thread; one may
    be shared by the writers of many images.

    Parameters
    ----------
    most : int
        How many are open at once, unless more are in use.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: OrderedDict[int, OpenFile] = OrderedDict()  # used last, last

    def use(self, wanted: OpenFile) -> _Use:
        """Return a context that gives a file, open for reading and writing."""
        return _Use(self, wanted)

    def take(self, wanted: OpenFile) -> RandomFile:
        """Open a file, and leave it so until it is given back."""
        with self._lock:
            if wanted.file is None:
                wanted.file = RandomFile(Path(wanted.path), writable=True)
                self._open[id(wanted)] = wanted
            else:
                self._open.move_to_end(id(wanted))
            wanted.users += 1
            file = wanted.file
            idle = self._idle(self._most) if len(self._open) > self._most else ()
        for old in idle:
            old.close()
        return file

    def give(self, wanted: OpenFile) -> None:
        """Give back what was taken."""
        with self._lock:
            wanted.users -= 1
            idle = self._idle(self._most) if len(self._open) > self._most else ()
        for old in idle:
            old.close()

    def close(self, wanted: OpenFile) -> None:
        """Close a file that nobody is at."""
        with self._lock:
            file, wanted.file = wanted.file, None
            self._open.pop(id(wanted), None)
        if file is not None:
            file.close()

    def close_all(self) -> None:
        """Keep no file open any more: those still wanted are opened each time. Safe twice."""
        with self._lock:
            self._most = 0
            idle = self._idle(0)
        for file in idle:
            file.close()

    def _idle(self, keep: int) -> list[RandomFile]:
        """Take files out that were not used for the longest time. The lock is held."""
        idle: list[RandomFile] = []
        for number, opened in list(self._open.items()):
            if len(self._open) <= keep:
                break
            if opened.users == 0 and opened.file is not None:
                idle.append(opened.file)
                opened.file = None
                del self._open[number]
        return idle


class _Use:
    """A file of `OpenFiles` while somebody is at it; a generator would take longer than a write."""

    __slots__ = ("_files", "_wanted")

    def __init__(self, files: OpenFiles, wanted: OpenFile) -> None:
        self._files, self._wanted = files, wanted

    def __enter__(self) -> RandomFile:
        return self._files.take(self._wanted)

    def __exit__(self, *_: object) -> None:
        self._files.give(self._wanted)
