"""How an HDF5 file is opened that another program may be writing, or this process has open."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from bioio_tk.backends._file import RandomFile, Seekable
from bioio_tk.backends._hdf5_chunks import library
from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Callable

State: TypeAlias = tuple[int, int, int, int]
"""Device, number, size and time of the last change of a file."""
Result = TypeVar("Result")

_TRIES, _PAUSE = 5, 0.05
"""How often, and seconds after which, a file is opened that another program changes just now."""
_RECENT = 10
"""Seconds since the last change of a file that may still be written."""
_ours: dict[int, State] = {}
"""In which state a file was when it was opened here, by the number that the library has for it."""


def patiently(path: Path, read: Callable[[], Result]) -> Result:
    """Return what `read` returns; where another program changes the file just now, try again.

    Raises
    ------
    DamagedFileError
        It is broken, and was so before.
    """
    left = _TRIES
    while True:
        left -= 1
        try:
            return read()
        except DamagedFileError:
            if not left or time.time() - path.stat().st_mtime > _RECENT:
                raise
            time.sleep(_PAUSE)


def open_now(path: Path) -> Any:
    """Return the open file as it is now, for reading.

    The library takes what it knows of a file that it has open already, however old that is: then
    the file is opened beside that.

    Raises
    ------
    FileNotFoundError
        There is none.
    DamagedFileError
        It is cut short, or no HDF5; or it is just being changed, see `patiently`.
    """
    h5py = library()
    try:
        state = state_of(path)
        file = _opened(h5py, path, state)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {str(path)!r}") from None
    except (OSError, RuntimeError, KeyError) as exc:
        raise DamagedFileError(f"{str(path)!r} cannot be opened as HDF5: {exc}") from exc
    _ours[file.id.id] = state
    return file


def state_of(path: Path) -> State:
    """Return what changes when a file does."""
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def state_then(file: Any) -> State | None:
    """Return what the state of a file was when it was opened here."""
    return _ours.get(file.id.id)


def _opened(h5py: Any, path: Path, state: State) -> Any:
    if _is_old(h5py, path, state):
        return h5py.File(Seekable(RandomFile(path)), "r")
    # as the user's own programs open it, for in one process all must do it alike; without a lock
    # where somebody writes further views and holds one
    for locking in (None, False, "best-effort"):
        try:
            return h5py.File(path, "r", locking=locking)
        except OSError as exc:
            if not _is_about_locks(exc):
                raise
    return h5py.File(path, "r", locking=True)


def _is_about_locks(exc: OSError) -> bool:
    said = str(exc)
    return isinstance(exc, BlockingIOError) or "lock" in said


def _is_old(h5py: Any, path: Path, state: State) -> bool:
    """Return whether this process reads the file already, and not as it is now."""
    there = h5py.h5f.get_obj_ids(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)
    for number in set(_ours).difference(file.id for file in there):
        _ours.pop(number, None)
    same = [file for file in there if _is_same(file.name, path)]
    if any(file.get_intent() & h5py.h5f.ACC_RDWR for file in same):
        return False  # what is written here is known
    return any(_ours.get(file.id) != state for file in same)


def _is_same(name: bytes, path: Path) -> bool:
    try:
        return path.samefile(os.fsdecode(name))
    except (OSError, ValueError):
        return False
