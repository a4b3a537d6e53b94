"""Target: a file grows beside the place it is meant for, and moves there when it is whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bioio_tk.errors import TargetBusyError, TargetExistsError

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be replaced there, which protects as well
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".partial"


class Target:
    """The file to be made at `path`; until then ``path + ".partial"``.

    Parameters
    ----------
    path : Path
        Where the finished file goes.
    overwrite : bool
        Replace what is at `path`, and what an interrupted write left beside it.
    leftover : bool
        Do not make a new file, take hold of the one an interrupted write has left.

    Raises
    ------
    TargetExistsError
        Something is there already and may not be replaced.
    TargetBusyError
        Another writer, in this process or another, is at work on it.
    """

    def __init__(self, path: Path, *, overwrite: bool, leftover: bool = False) -> None:
        self.path = path
        self.partial = partial_path(path)
        self._overwrite = overwrite
        self._fd = -1
        if leftover:
            self.adopt()
        else:
            self.check()

    def adopt(self) -> None:
        """Take hold of the unfinished file that an interrupted write has left.

        Raises
        ------
        FileNotFoundError
            There is none.
        TargetBusyError
            The writer is still at work on it.
        """
        try:
            fd = os.open(self.partial, os.O_RDWR)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"there is no unfinished file {str(self.partial)!r}: nothing to recover"
            ) from None
        try:
            self._lock(fd)
            self._same_file(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def check(self) -> None:
        """Raise where open() would, without touching anything."""
        if self.path.is_dir():
            raise IsADirectoryError(f"{str(self.path)!r} is a folder; give the path of a file")
        if not self._overwrite and self.path.exists():
            raise TargetExistsError(
                f"{str(self.path)!r} exists: choose another name, or pass overwrite=True to "
                "replace it once the new image is complete"
            )
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(self.path.parent)!r} to write {self.path.name!r} into"
            )
        if self.partial.exists():
            fd = os.open(self.partial, os.O_RDWR)
            try:
                self._lock(fd)
            finally:
                os.close(fd)
            if not self._overwrite:
                self._refuse_leftover()

    def open(self) -> None:
        """Create the empty partial file and hold it."""
        fd = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(fd)
            self._same_file(fd)
            if os.fstat(fd).st_size and not self._overwrite:
                self._refuse_leftover()
            os.ftruncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def commit(self) -> None:
        """Move the partial file into place; atomic for everyone who looks."""
        if self._overwrite:
            os.replace(self.partial, self.path)
        else:
            move_new(self.partial, self.path)
        self._release()

    def abort(self) -> None:
        """Remove the partial file; the place it was meant for stays as it is."""
        if self._fd >= 0:
            self.partial.unlink(missing_ok=True)
        self._release()

    def leave(self) -> None:
        """Let go of the partial file and leave it where it is, for recovery."""
        self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._unlock(fd)
            os.close(fd)

    def _refuse_leftover(self) -> None:
        raise TargetExistsError(
            f"{str(self.partial)!r} is left from a write that was interrupted: keep it with "
            f"'bioio-tk recover {self.path}', or pass overwrite=True to start anew"
        )

    def _lock(self, fd: int) -> None:
        if os.name == "nt":
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TargetBusyError(
                f"another writer is at work on {str(self.path)!r}: wait until it has closed it, "
                "or write to another name"
            ) from None
        except OSError:
            return  # a file system without locks

    def _unlock(self, fd: int) -> None:
        # said out loud, because a forked child still has the file open and with it the lock
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)

    def _same_file(self, fd: int) -> None:
        # between open and lock the other writer may have finished and moved its file away
        try:
            same = os.path.samestat(os.fstat(fd), os.stat(self.partial))
        except FileNotFoundError:
            same = False
        if not same:
            raise TargetBusyError(f"another writer has just finished {str(self.path)!r}")


def partial_path(path: Path) -> Path:
    """Return where the unfinished file of `path` lies."""
    return path.with_name(path.name + SUFFIX)


def move_new(source: Path, path: Path) -> None:
    """Rename `source` to `path`, which must not exist; TargetExistsError where it does."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise TargetExistsError(
            f"{str(path)!r} has come into being meanwhile; the new image is kept in {str(source)!r}"
        ) from None
    except (OSError, AttributeError):  # a file system without hard links
        if path.exists():
            raise TargetExistsError(f"{str(path)!r} exists; {str(source)!r} is kept") from None
        os.rename(source, path)
    else:
        source.unlink()
