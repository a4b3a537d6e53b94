"""The IFormatReaders of one file: they are not thread-safe, so each serves one thread at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import _java_damage, _java_vm
from bioio_tk.backends._java_memo import Memo
from bioio_tk.backends._java_metadata import Metadata, collect
from bioio_tk.errors import ClosedError

if TYPE_CHECKING:
    from pathlib import Path

    from bioio_tk.backends._java_vm import Java

_SLOW = 0.3
"""Seconds of parsing from which the result is worth keeping: loading the first memo of a process
takes 0.1, and the first file that is parsed loads code as well."""

_MOST = 16
"""Readers of one file: each holds the file open and a copy of its metadata."""

_ALONE = {"ImarisHDFReader", "MINCReader", "VeecoReader"}
"""Readers whose library (NetCDF) hangs when several of them open at once."""

_opening = threading.Lock()
"""Bio-Formats opens one file at a time: some of its readers share state while they parse."""


class Reader:
    """An IFormatReader, and where in the file it stands."""

    def __init__(self, java_reader: Any) -> None:
        self.java = java_reader
        self._at = (-1, -1)

    def at(self, series: int, level: int) -> Any:
        """Return the IFormatReader, set to a series and resolution."""
        if self._at != (series, level):
            self._at = (-1, -1)
            self.java.setSeries(series)
            self.java.setResolution(level)
            self._at = (series, level)
        return self.java


class Readers:
    """As many readers of one file as threads want at once, up to a limit.

    Attributes
    ----------
    metadata : Metadata
        What the file says of its images, in OME's terms.
    name : str
        Class of the reader, "ZeissCZIReader".
    notes : tuple of str
        What is worth knowing of the file.
    """

    def __init__(self, path: Path) -> None:
        self._java: Java = _java_vm.java()
        self._path = path
        self._memo = Memo(self._java, path)
        self._idle: deque[Reader] = deque()
        self._closed = False
        first, self._kept = self._first()
        self.notes = self._memo.notes
        try:
            self.metadata = Metadata(self._java, first)
        except BaseException:
            _close(first)
            raise
        self._class = str(first.getClass().getName())
        self.name = self._class.rpartition(".")[2]
        self._free = threading.Semaphore(1 if self.name in _ALONE else _MOST)
        self._idle.append(Reader(first))

    def borrow(self) -> _Loan:
        """Lend a reader to the thread that asks: ``with readers.borrow() as reader:``."""
        return _Loan(self)

    def _take(self) -> Reader:
        if self._closed:
            raise ClosedError(f"the reader of {self._path.name!r} is closed")
        try:
            return self._idle.pop()  # the one used last
        except IndexError:
            return Reader(self._another())

    def close(self) -> None:
        """Close the readers; those at work now are closed when they have ended."""
        self._closed = True
        with suppress(IndexError):  # no lock: this may run while any is held, in a finaliser
            while True:
                _close(self._idle.pop().java)

    def _first(self) -> tuple[Any, bool]:
        """Return the first reader, and whether a memo stands for it."""
        with _opening:
            reader = self._memo.load()
            if reader is not None:
                return reader, True
            may_be_kept = self._memo.can_be_saved()
            began, now = time.perf_counter(), time.time_ns()
            _java_damage.before(self._path, self._java.started.version)
            opened = self._parsed()
            self._memo.notes = self._checked(opened)
            if not may_be_kept or time.perf_counter() - began < _SLOW:
                return opened.getReader(), False
            reader = self._memo.load() if self._memo.save(opened.getReader(), now) else None
            if reader is not None:
                return reader, True
            _close(opened)  # what was to be kept is of no use any more
            return self._parsed().getReader(), False

    def _parsed(self) -> Any:
        opened = self._java("loci.formats.ImageReader")()
        opened.setFlattenedResolutions(False)
        collect(self._java, opened)
        return self._open(opened)

    def _checked(self, opened: Any) -> tuple[str, ...]:
        """Return what is worth knowing of a file; raise where it would be read wrongly."""
        reader = opened.getReader()
        name = str(reader.getClass().getSimpleName())
        try:
            return _java_damage.check(self._path, name, reader, self._java.started.version)
        except BaseException:
            _close(opened)
            raise

    def _another(self) -> Any:
        with _opening:
            reader = self._memo.load() if self._kept else None
            if reader is None:
                reader = self._java(self._class)()
                reader.setFlattenedResolutions(False)
                self._open(reader)
            return reader

    def _open(self, reader: Any) -> Any:
        try:
            reader.setId(str(self._path))
        except BaseException:
            _close(reader)
            raise
        return reader


class _Loan:
    """A reader while it is lent: a class, as a generator would take three times as long."""

    __slots__ = ("_reader", "_readers")

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    def __enter__(self) -> Reader:
        self._readers._free.acquire()
        try:
            self._reader = self._readers._take()
        except BaseException:
            self._readers._free.release()
            raise
        return self._reader

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        readers = self._readers
        try:
            if kind is not None:
                _close(self._reader.java)  # an error may have left it anywhere in the file
                return
            readers._idle.append(self._reader)
            if readers._closed:
                readers.close()
        finally:
            readers._free.release()


def _close(java_reader: Any) -> None:
    if _java_vm.is_running():  # not in a forked child, nor when the interpreter ends
        _java_vm.enter()
        with suppress(Exception):  # of a file that was read there is nothing to lose any more
            java_reader.close()
