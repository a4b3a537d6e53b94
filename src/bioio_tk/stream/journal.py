"""StreamJournal: the record beside a running stream, ``NAME.journal``.

It says what is recorded, which frames are safe in the file, what was said of them, and which were
skipped. The stream removes it when everything is in the file; one that is left tells of a process
that was killed, and `bioio_tk.recover` writes from it what the file still lacks. As long as the
stream lives it holds a lock on it, so that two cannot write to one place, and others can see
whether it still runs.

A line (see `engine.record`) is one of

* ``{"stream": 1, "id": …, "bioio_tk": …, "boot": …, "about": {…}}``, the first
* ``["f", start, stop]``: these frames are safe
* ``["f", start, stop, [length, …], {…}, null, …]``: so they are, with what was said of each
* ``["s", start, stop]``: these frames were skipped
* ``["n", namespace, {…}]``: what was said of the acquisition
* ``{"synced": size}``: what the first bytes of the record tell of has reached the disk
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from bioio_tk import __version__
from bioio_tk.backends._file import BINARY, RandomFile
from bioio_tk.core.acquisition import ImageRecord
from bioio_tk.core.frames import FrameRoute
from bioio_tk.engine.record import Record, boot, line, sealed, whole_lines
from bioio_tk.errors import DamagedFileError, SpecError, TargetBusyError, TargetExistsError
from bioio_tk.target import JOURNAL, lock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1
_FIRST = re.compile(rb'[0-9a-f]{8} \{"stream":')
_FRAMES = re.compile(rb'\["f",(\d+),(\d+)(?:,\[([\d,]+)\],|\])')
_SPAN = re.compile(rb'\["s",(\d+),(\d+)\]')
_PATIENCE = (0.002, 0.01, 0.05, 0.2)
"""Seconds to wait for a lock: who looks whether a stream runs has it for a moment."""
_BLOCK = 1 << 16
_SPARSE = 4
"""Bytes of the record that are read at once, where one in so many is wanted."""
_SUFFIXES = (".ome.tiff", ".ome.tif", ".ome.zarr", ".tiff", ".tif", ".zarr")

_decode = json.JSONDecoder().decode
_open: weakref.WeakSet[StreamJournal] = weakref.WeakSet()


class StreamJournal:
    """The record of a running stream.

    Parameters
    ----------
    target : Path
        The file or folder that is written; the record lies beside it.
    about : mapping
        What is recorded: ``settings`` as JSON, ``created``. JSON has to hold it.
    overwrite : bool
        Replace the record that a killed process has left.

    Raises
    ------
    TargetBusyError
        Another stream, in this process or another, is at work on the same target.
    TargetExistsError
        A killed process has left a record, or there is another file of its name.
    """

    def __init__(self, target: Path, about: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.target = target.absolute()  # whoever changes the working folder changes nothing here
        self.path = journal_of(self.target)
        head = {
            "stream": _FORMAT,
            "id": uuid.uuid4().hex,
            "bioio_tk": __version__,
            "boot": boot(),
            "about": dict(about),
        }
        first = line(head)
        self._fd = _hold(self.target, overwrite=overwrite)
        try:
            os.ftruncate(self._fd, 0)
            self._record = Record(self._fd, self.path.parent)
            self._record.append(first)
        except BaseException:
            self.remove()
            raise
        _open.add(self)

    @classmethod
    def adopt(cls, target: Path) -> StreamJournal:
        """Return the record that a killed process has left, locked.

        Raises
        ------
        FileNotFoundError
            There is none.
        TargetBusyError
            The stream is still running.
        """
        self = cls.__new__(cls)
        self.target = target.absolute()
        self.path = journal_of(self.target)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | BINARY)
        except FileNotFoundError:
            raise _nothing(self.path) from None
        try:
            _lock_patiently(self._fd, self.target)
            if not _same(self._fd, self.path):
                raise _nothing(self.path)
            self._record = Record(self._fd, self.path.parent)
        except BaseException:
            fd, self._fd = self._fd, -1
            os.close(fd)
            raise
        _open.add(self)
        return self

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._record.size

    @property
    def error(self) -> OSError | None:
        """What the disk has said when it could not store what had been written before."""
        return self._record.error

    def frames(self, start: int, stop: int, documents: Sequence[bytes | None] = ()) -> None:
        """Enter frames that are safe in the file. Any thread.

        Parameters
        ----------
        start, stop : int
            Their numbers, in the order taken; of several calls the later has the larger ones.
        documents : sequence of bytes or None
            What was said of each, as JSON; nothing for none of them.

        Raises
        ------
        OSError
            What the system says (a full disk); they are not entered then.
        """
        if not any(documents):
            self._record.append(sealed(b'["f",%d,%d]' % (start, stop)))
            return
        if len(documents) != stop - start:
            raise SpecError(f"{len(documents)} documents for {stop - start} frames")
        texts = [document or b"null" for document in documents]
        lengths = b",".join([b"%d" % len(text) for text in texts])
        text = b'["f",%d,%d,[%b],%b]' % (start, stop, lengths, b",".join(texts))
        # outside of a string, which cannot hold one, a line break is as good as a blank
        self._record.append(sealed(text.replace(b"\n", b" ")))

    def skipped(self, start: int, stop: int) -> None:
        """Enter frames that were skipped. Any thread."""
        self._record.append(sealed(b'["s",%d,%d]' % (start, stop)))

    def note(self, namespace: str, mapping: Mapping[str, Any]) -> None:
        """Enter what is said of the acquisition; it replaces what was said in this namespace."""
        self._record.append(line(["n", namespace, dict(mapping)]))

    def contents(self) -> JournalContents:
        """Return what was entered until now."""
        return load(self.target)

    def close(self) -> None:
        """Let go of the record and leave it where it is. Safe to call twice."""
        _open.discard(self)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _unlock(fd)
            self._release(fd)

    def remove(self) -> None:
        """Remove the record: all it tells of is in the file."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        _open.discard(self)
        if os.name == "nt":  # which removes no open file
            self._release(fd)
            self.path.unlink(missing_ok=True)
            return
        try:
            if _same(fd, self.path):
                self.path.unlink(missing_ok=True)
        finally:
            _unlock(fd)
            self._release(fd)

    def _release(self, fd: int) -> None:
        record = getattr(self, "_record", None)
        if record is None:
            os.close(fd)
        else:
            record.close()

    def let_go(self) -> None:
        """Close the file in a forked process, to which it does not belong; the lock stays."""
        self._fd = -1
        self._record.let_go()


class JournalContents:
    """What a record says, from its beginning to the first line that is not whole.

    Parameters
    ----------
    target : Path
        The file or folder it tells of.

    Attributes
    ----------
    about : dict
        What the stream was begun with.
    version : str
        Of the bioio_tk that has written it.
    restarted : bool
        The machine was started anew since, so that not all of it may have reached the disk.

    Raises
    ------
    FileNotFoundError
        There is no record.
    DamagedFileError
        It cannot be read.
    """

    def __init__(self, target: Path) -> None:
        self.target = target.absolute()
        self.path = journal_of(self.target)
        self._file = _opened(self.path)
        self._seal = self._file.read(0, 8)
        self._read = 0
        self._tally = _Tally()
        self._skips: tuple[range, ...] = ()
        self._skips_at = 0
        head = self._head()
        self.about: dict[str, Any] = head["about"]
        self.version = str(head.get("bioio_tk"))
        self.restarted = head.get("boot") is None or head["boot"] != boot()
        self.refresh()

    @property
    def frames(self) -> int:
        """So many frames, the first ones, are safe in the file or were skipped."""
        return self._tally.frames

    @property
    def skipped(self) -> tuple[range, ...]:
        """Numbers of those frames that were skipped."""
        if self._skips_at != self._read:
            found = sorted(self._tally.skips)
            self._skips = _joined(range(start, min(stop, self.frames)) for start, stop in found)
            self._skips_at = self._read
        return self._skips

    def was_skipped(self, number: int) -> bool:
        """Return whether a frame was skipped."""
        skips = self.skipped
        at = bisect_right(skips, number, key=lambda span: span.start)
        return at > 0 and number in skips[at - 1]

    @property
    def notes(self) -> dict[str, dict[str, Any]]:
        """What was said of the acquisition, by its namespace."""
        return self._tally.notes

    @property
    def certain(self) -> int:
        """So many of the frames had reached the disk before the machine was started anew."""
        if not self.restarted:
            return self.frames
        tally = _Tally()
        for end, text in self._lines(0):
            if end > self._tally.durable:
                break
            tally.take(text)
        return tally.frames

    @property
    def replaced(self) -> bool:
        """Another stream has begun a record in the place of this one."""
        return self._file.read(0, 8) != self._seal

    @property
    def gone(self) -> bool:
        """The record was removed: the stream has ended well."""
        return not _same(self._file.fileno(), self.path)

    def refresh(self) -> bool:
        """Read what was added since; return whether anything was."""
        before = self._read
        if self._file.size <= before:
            return False
        for end, text in self._lines(before):
            self._tally.take(text)
            self._read = before + end
        return self._read > before

    def metadata(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number of a frame and what was said of it, the number rising."""
        for number, offset, length in self._documents():
            yield number, _decode(self.bytes_at(offset, length).decode())

    def records(self, route: FrameRoute, opened: Iterable[int] | None = None) -> list[ImageRecord]:
        """Return what was recorded of each position.

        Parameters
        ----------
        route : FrameRoute
            Where the frames belong.
        opened : iterable of int, optional
            Positions that have an image; by default those with a frame that was not skipped.
        """
        index = _Index(self, route)
        planes = route.planes(self.frames)
        skips: dict[int, list[range]] = {}
        for skip in self.skipped:
            first, last = route.planes(skip.start), route.planes(skip.stop)
            for position, (a, b) in enumerate(zip(first, last, strict=True)):
                if b > a:
                    skips.setdefault(position, []).append(range(a, b))
        if opened is None:
            opened = (
                p for p, n in enumerate(planes) if n > sum(len(skip) for skip in skips.get(p, ()))
            )
        return [index.record(p, planes[p], _joined(skips.get(p, ()))) for p in sorted(opened)]

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        self._file.close()

    def _head(self) -> dict[str, Any]:
        for _, text in self._lines(0):
            head = json.loads(text)
            if isinstance(head, dict) and isinstance(head.get("about"), dict):
                if head.get("stream") == _FORMAT:
                    return head
                raise DamagedFileError(
                    f"{str(self.path)!r} was written by bioio_tk {head.get('bioio_tk')}, which "
                    f"is newer than this one, {__version__}: use that"
                )
            break
        raise DamagedFileError(
            f"{str(self.path)!r} cannot be read, so nobody knows what is in {self.target.name!r}: "
            "look at that with the program you use for such images; then remove the record"
        )

    def _lines(self, start: int) -> Iterator[tuple[int, bytes]]:
        # what was read ahead before may have been cut off since: each time a new buffer
        with open(self._file.fileno(), "rb", closefd=False) as file:
            file.seek(start)
            yield from whole_lines(file)

    def _documents(self) -> Iterator[tuple[int, int, int]]:
        """Yield number of the frame, offset and length of each document."""
        begin = 0
        for end, text in self._lines(0):
            if end > self._read:
                return
            found = _FRAMES.match(text)
            if found and found[3]:
                offset = begin + 9 + found.end()
                for number, length in enumerate(map(int, found[3].split(b",")), int(found[1])):
                    if length != 4 and number < self.frames:  # which would be "null"
                        yield number, offset, length
                    offset += length + 1
            begin = end

    def bytes_at(self, offset: int, count: int) -> bytes:
        """Return a piece of the record."""
        return self._file.read(offset, count)


class _Tally:
    """What the lines that were taken say together."""

    def __init__(self) -> None:
        self.frames = 0
        self.skips: list[tuple[int, int]] = []
        self.notes: dict[str, dict[str, Any]] = {}
        self.durable = 0
        self._ahead: list[tuple[int, int]] = []

    def take(self, text: bytes) -> None:
        if found := _FRAMES.match(text):
            self._reach(int(found[1]), int(found[2]))
        elif found := _SPAN.match(text):
            self.skips.append((int(found[1]), int(found[2])))
            self._reach(*self.skips[-1])
        else:
            item = json.loads(text)
            if isinstance(item, list):
                self.notes[item[1]] = item[2]
            else:
                self.durable = max(self.durable, item.get("synced", 0))

    def _reach(self, start: int, stop: int) -> None:
        # frames that are skipped may be entered before those in front of them are stored
        heappush(self._ahead, (start, stop))
        while self._ahead and self._ahead[0][0] <= self.frames:
            self.frames = max(self.frames, heappop(self._ahead)[1])


_Places = tuple["array[int]", "array[int]", "array[int]"]
"""Planes, and offset and length of the document of each."""
_NO_PLACES: _Places = (array("Q"), array("Q"), array("L"))


class _Index:
    """Where the documents of each position are, found in one pass when they are first wanted."""

    def __init__(self, contents: JournalContents, route: FrameRoute) -> None:
        self._contents = contents
        self._route = route
        self._found: dict[int, _Places] | None = None

    def record(self, position: int, planes: int, skipped: tuple[range, ...]) -> ImageRecord:
        """Return what was recorded of a position, with what this finds."""
        return ImageRecord(
            position,
            planes,
            skipped,
            lambda: ((plane, _decode(text.decode())) for plane, text in self._read(position)),
            lambda: self._read(position),
        )

    def _read(self, position: int) -> Iterator[tuple[int, bytes]]:
        if self._found is None:
            self._found = self._pass()
        planes, offsets, lengths = self._found.get(position, _NO_PLACES)
        # one read for many, unless what is between them belongs to other positions
        span = offsets[-1] + lengths[-1] - offsets[0] if offsets else 0
        least = _BLOCK if sum(lengths) * _SPARSE > span else 0
        held, begin = b"", 0
        for plane, offset, length in zip(planes, offsets, lengths, strict=True):
            at = offset - begin
            if at + length > len(held):
                held, begin, at = self._contents.bytes_at(offset, max(length, least)), offset, 0
            yield plane, held[at : at + length]

    def _pass(self) -> dict[int, _Places]:
        found: dict[int, _Places] = {}
        locate = self._route.locate
        for number, offset, length in self._contents._documents():  # noqa: SLF001
            position, plane = locate(number)
            places = found.get(position)
            if places is None:
                places = found[position] = (array("Q"), array("Q"), array("L"))
            places[0].append(plane)
            places[1].append(offset)
            places[2].append(length)
        return found


def journal_of(target: Path) -> Path:
    """Return where the record of a stream to `target` lies."""
    return target.with_name(target.name + JOURNAL)


def load(target: Path) -> JournalContents:
    """Return what the record of a stream to `target` says; see `JournalContents`."""
    return JournalContents(target)


def running(target: Path) -> bool:
    """Return whether a stream is at work on `target`.

    Where the file system has no locks nobody knows: True as long as there is a record.
    """
    try:
        fd = os.open(journal_of(target), os.O_RDONLY | BINARY)
    except FileNotFoundError:
        return False
    try:
        if os.name == "nt":
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False
    finally:
        os.close(fd)


def find_target(path: Path) -> Path | None:
    """Return the target whose record lies beside `path`, None where there is none.

    `path` is the target, its record, what the user called it (``a.ome.tiff`` for a folder ``a``
    of several files), or one of the files in it, or beside it.
    """
    candidates = [path, path.with_name(path.name.removesuffix(JOURNAL)), path.parent]
    name = path.name.lower()
    candidates += [path.with_name(path.name[: -len(s)]) for s in _SUFFIXES if name.endswith(s)]
    if name.endswith(".h5"):
        candidates.append(path.with_suffix(".xml"))  # of BigDataViewer
    for candidate in candidates:
        if candidate.name and _FIRST.match(_beginning(journal_of(candidate))):
            return candidate
    return None


def _opened(path: Path) -> RandomFile:
    try:
        return RandomFile(path)
    except FileNotFoundError:
        raise _nothing(path) from None


def _nothing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"there is no {str(path)!r}: no acquisition is running there, and none was interrupted"
    )


def _hold(target: Path, *, overwrite: bool) -> int:
    """Return the record of a target, locked, its old content still in it."""
    path = journal_of(target)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | BINARY, 0o666)
        try:
            _lock_patiently(fd, target)
            if _same(fd, path):  # else the other stream has just ended and removed its record
                _check_replaceable(target, overwrite=overwrite)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _check_replaceable(target: Path, *, overwrite: bool) -> None:
    path = journal_of(target)
    begin = _beginning(path)
    if not begin:
        return
    if not _FIRST.match(begin):
        raise TargetExistsError(
            f"{str(path)!r} is in the way: the record of the acquisition goes there; move that "
            "file away, or choose another name"
        )
    with path.open("rb") as file:
        whole = file.readline().endswith(b"\n")  # else killed before anything else was written
    if whole and not overwrite and not target.exists():
        raise TargetExistsError(
            f"{str(path)!r} is left from an acquisition whose {target.name!r} is gone: remove it, "
            "or pass overwrite=True"
        )
    if whole and not overwrite:
        raise TargetExistsError(
            f"{str(path)!r} is left from an acquisition to {target.name!r} that was interrupted: "
            f"complete that with 'bioio-tk recover {target}', choose another name, or pass "
            "overwrite=True to begin anew"
        )


def _lock_patiently(fd: int, target: Path) -> None:
    for pause in _PATIENCE:
        try:
            lock(fd, target)
        except TargetBusyError:
            time.sleep(pause)
        else:
            return
    lock(fd, target)


def _unlock(fd: int) -> None:
    # said out loud, because a forked child still has the file open and with it the lock
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return b""


def _joined(ranges: Iterable[range]) -> tuple[range, ...]:
    """Return ranges in order as few as can be."""
    found: list[range] = []
    for one in ranges:
        if not one:
            continue
        if found and one.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(one.stop, found[-1].stop))
        else:
            found.append(one)
    return tuple(found)


def _forked() -> None:
    for journal in list(_open):
        journal.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
