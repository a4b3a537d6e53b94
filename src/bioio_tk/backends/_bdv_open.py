"""How an HDF5 file is opened that another program may be writing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._hdf5_file import open_to_read
from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Result = TypeVar("Result")

_TRIES, _PAUSE = 5, 0.05
"""How often, and seconds after which, a file is opened that another program changes just now."""
_RECENT = 10
"""Seconds since the last change of a file that may still be written."""


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

    Through a file of ours: of one it has open already the library takes what it knows, however old
    that is, and it opens no file in two ways at the same time, whoever asks for that.

    Raises
    ------
    FileNotFoundError
        There is none.
    DamagedFileError
        It is cut short, or no HDF5; or it is just being changed, see `patiently`.
    """
    try:
        return open_to_read(RandomFile(path), repr(str(path)))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {str(path)!r}") from None
