"""Store: keys to bytes, what Zarr calls a store. FolderStore: the files under a folder."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from bioio_tk.backends._file import BINARY, pread, pread_all

try:
    import fcntl
except ImportError:  # Windows: a folder with an open file cannot be replaced there
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


SHARED_MARK = "processes.0-0.part"
"""A file in an unfinished image that several processes write; gone when it is finished."""

_MOST_KNOWN = 1 << 14
"""Folders that a store remembers to have made."""

MARKS = "processes."
"""What the names of that file, and of others that say what the processes have done, begin with."""


def part_number() -> str:
    """Return digits that no other process has, not even one of the same number elsewhere."""
    return f"{os.getpid()}{secrets.randbelow(10**12):012}"


class Store(Protocol):
    """Keys ("0/c/1/2", never a leading or double slash) to bytes; any method from any thread.

    What is not there is None (a missing chunk is no error); whatever else goes wrong is an
    exception that names the file or the URL: `OSError` and its heirs.

    Attributes
    ----------
    waits : bool
        Each request waits for a network: worth many at once, and few in all.
    lists : bool
        `names` works; a plain web server cannot tell what it has.
    writable : bool
        `put` and `delete` work.
    """

    waits: bool
    lists: bool
    writable: bool

    def where(self, key: str = "") -> str:
        """Return path or URL of a key, for messages."""
        ...

    def get(self, key: str) -> bytes | None:
        """Return the whole value, None where there is none."""
        ...

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Return several (small) values, in one round trip where requests wait."""
        ...

    def get_range(self, key: str, start: int, count: int) -> bytes | None:
        """Return up to `count` bytes from `start`, fewer only where the value ends.

        A negative `start` counts from the end: ``get_range(key, -20, 20)`` is the last 20 bytes
        (the whole value where it is shorter).
        """
        ...

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of files and folders right under a folder, sorted; [] for none."""
        ...

    def put(self, key: str, value: Any) -> None:
        """Store a value (any buffer) so that readers see the old or the new one, never a part."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Make the local file at `path` the value of `key`; the file is gone afterwards."""
        ...

    def delete(self, key: str) -> None:
        """Remove a value; nothing happens where there is none."""
        ...

    def clear(self) -> None:
        """Remove everything."""
        ...

    def close(self) -> None:
        """Release what is held. Safe to call twice."""
        ...


class FolderStore:
    """The files under a folder of this machine.

    Parameters
    ----------
    root : Path
        The folder. It need not exist yet.
    """

    waits = False
    lists = True
    writable = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = f"{root}/"
        self._known: set[str] = set()
        self._known_lock = threading.Lock()
        self._pid = os.getpid()
        self._folder, self._locked = _open_folder(root)

    def where(self, key: str = "") -> str:
        return f"{self._prefix}{key}".rstrip("/")

    def get(self, key: str) -> bytes | None:
        fd = self._open(key)
        if fd is None:
            return None
        try:
            return pread_all(fd)
        except IsADirectoryError:
            return None
        finally:
            os.close(fd)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        return {key: self.get(key) for key in keys}

    def get_range(self, key: str, start: int, count: int) -> bytes | None:
        fd = self._open(key)
        if fd is None:
            return None
        try:
            if start < 0:
                start = max(0, os.fstat(fd).st_size + start)
            return pread(fd, count, start)
        finally:
            os.close(fd)

    def names(self, prefix: str = "") -> list[str]:
        try:
            return sorted(os.listdir(self._prefix + prefix))  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return []

    def put(self, key: str, value: Any) -> None:
        path = self._prefix + key
        part = f"{path}.{part_number()}-{threading.get_ident()}.part"
        fd = self.create(part)
        try:
            view = memoryview(value).cast("B")
            try:
                while view:
                    view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)  # noqa: PTH108
            raise

    def put_file(self, key: str, path: Path) -> None:
        self.make_folder(self._prefix + key)
        os.replace(path, self._prefix + key)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._prefix + key)  # noqa: PTH108

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def close(self) -> None:
        folder, self._folder = self._folder, -1
        if folder >= 0 and self._pid != os.getpid():
            os.close(folder)  # in a forked child: the lock is the parent's
        elif folder >= 0:
            _leave_folder(self.root, folder)

    def __del__(self) -> None:
        folder, self._folder = getattr(self, "_folder", -1), -1
        if folder >= 0:
            os.close(folder)

    def create(self, path: str) -> int:
        """Return a descriptor of a new file at `path`, its folder made where need be."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | BINARY
        self.make_folder(path)
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:  # somebody has removed the folder
            self._forget()
            self.make_folder(path)
            return os.open(path, flags, 0o666)

    def make_folder(self, path: str) -> None:
        """Make the folder that `path` lies in."""
        folder = os.path.dirname(path)  # noqa: PTH120 (each call counts here)
        if folder in self._known:
            return
        try:
            self._make(folder)
        except FileNotFoundError:  # somebody has removed one that it lies in
            self._forget()
            self._make(folder)

    def _make(self, folder: str) -> None:
        """Make a folder, and those it lies in, without a look at those that are known."""
        if folder in self._known:
            return
        if folder.startswith(self._prefix):
            self._make(os.path.dirname(folder))  # noqa: PTH120
            with suppress(FileExistsError):
                os.mkdir(folder)  # noqa: PTH102
        else:
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        with self._known_lock:
            if len(self._known) >= _MOST_KNOWN:  # an acquisition makes folders for days
                self._known.clear()
            self._known.add(folder)

    def _forget(self) -> None:
        with self._known_lock:
            self._known.clear()

    def _open(self, key: str) -> int | None:
        try:
            if self._folder >= 0:
                return os.open(key or ".", os.O_RDONLY | BINARY, dir_fd=self._folder)
            return os.open(self._prefix + key, os.O_RDONLY | BINARY)
        except ValueError:  # no file can have such a name: a zero byte, half a character
            return None
        except (FileNotFoundError, NotADirectoryError):
            if self._folder >= 0 and not self._in_place():
                raise FileNotFoundError(
                    f"{str(self.root)!r} was removed while it was being read"
                ) from None
            return None
        except OSError as exc:
            exc.filename = self._prefix + key
            raise

    def _in_place(self) -> bool:
        """Return whether the folder is whole, so that what is not there never was."""
        if self._locked:
            return os.fstat(self._folder).st_nlink > 0
        self._locked = _lock_shared(self._folder)
        return _is_at(self.root, self._folder)


# --- a folder that is replaced while others read it ----------------------------------------------
# A file that is replaced lives on for those who have it open. For a folder the same is done by
# hand: readers hold a shared lock on it; who replaces it moves it aside, and the last one who has
# it open removes it.


def _open_folder(root: Path) -> tuple[int, bool]:
    """Return a descriptor of the folder, -1 for none, and whether there is a shared lock on it."""
    if os.name == "nt" or not hasattr(os, "O_DIRECTORY"):
        return -1, False
    while True:
        try:
            folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | BINARY)
        except (FileNotFoundError, NotADirectoryError):
            return -1, False
        locked = _lock_shared(folder)
        if _is_at(root, folder):
            return folder, locked
        _leave_folder(root, folder)  # replaced before it was locked: it may be half removed


def _lock_shared(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # a file system without locks, or its writer at work
        return False
    return True


def _leave_folder(root: Path, folder: int) -> None:
    """Close a folder, and remove it where it was replaced and this was the last one."""
    try:
        with suppress(OSError):  # first: who moves it aside after the look finds no lock then
            fcntl.flock(folder, fcntl.LOCK_UN)
        remove_replaced(root, folder)
    finally:
        os.close(folder)


def _is_at(path: Path, folder: int) -> bool:
    try:
        return os.path.samestat(os.fstat(folder), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def replaced_path(path: Path, folder: int) -> Path:
    """Return where a folder that was at `path` is put when another takes its place."""
    return path.with_name(f".{path.name}.{os.fstat(folder).st_ino}.replaced")


def remove_replaced(path: Path, folder: int) -> None:
    """Remove a folder that was replaced, unless another process still reads it."""
    aside = replaced_path(path, folder)
    with suppress(OSError):
        if os.path.samestat(os.fstat(folder), os.stat(aside)):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for entry in list(aside.iterdir()):  # what is said of it last: somebody may just look
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def remove_all_replaced(path: Path) -> None:
    """Remove folders that were at `path` and that nobody reads: the last reader was killed."""
    if os.name == "nt":
        return
    first, last = f".{path.name}.", ".replaced"
    for name in os.listdir(path.absolute().parent):  # noqa: PTH208
        if not (name.startswith(first) and name.endswith(last)):
            continue
        with suppress(OSError):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            folder = os.open(path.with_name(name), flags)
            try:
                remove_replaced(path, folder)  # the number in the name must be that of the folder
            finally:
                os.close(folder)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time change what `folder` lists.

    The lock is a file beside it, there only as long as somebody holds it: readers may hold
    locks on the folder itself, and on the one it lies in.
    """
    path = folder.absolute().with_name(f".{folder.name}.lock")
    fd = -1 if os.name == "nt" else _lock_file(path)
    try:
        yield
    finally:
        if fd >= 0:
            with suppress(OSError):
                path.unlink()  # before it is unlocked: who waits for it looks again
            os.close(fd)


def _lock_file(path: Path) -> int:
    """Return a descriptor of the locked file, -1 where there can be none."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | BINARY, 0o666)
        except OSError:
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            return fd
        if _is_at(path, fd):
            return fd
        os.close(fd)
