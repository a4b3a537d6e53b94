"""HDF5 files as the library has them: how they are opened, and its errors as ours."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends._file import Seekable
from bioio_tk.backends._hdf5_chunks import library
from bioio_tk.errors import BackendError, BioIOError, DamagedFileError, TargetBusyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.backends._file import AnyFile


def open_to_read(
    what: Path | AnyFile, where: str, *, locking: bool | str = "best-effort", **options: Any
) -> Any:
    """Open a file and return it.

    Parameters
    ----------
    what : Path, RandomFile or UrlFile
        A path is opened by the library itself. Of one file that it has open already, it only ever
        sees what it saw first; an open file of ours is looked at anew.
    where : str
        What to call it in messages.
    locking : bool or str
        As the library has it.
    options : Any
        Of `h5py.File`.

    Raises
    ------
    TargetBusyError
        Another program is writing it.
    DamagedFileError
        It is no HDF5 file, or not a whole one.
    """
    h5py = library()
    try:
        if isinstance(what, Path):
            return h5py.File(what, "r", locking=locking, **options)
        return h5py.File(Seekable(what), "r", **options)
    except (OSError, RuntimeError, KeyError) as exc:
        if isinstance(exc, BlockingIOError) or "unable to lock" in str(exc):
            raise TargetBusyError(
                f"{where} is being written by another program: wait until that is done"
            ) from exc
        raise DamagedFileError(f"{where} cannot be opened as HDF5: {exc}") from exc


@contextmanager
def reading(what: str, where: str) -> Iterator[None]:
    """Turn what the library says while it reads `what` of the file `where` into errors of ours."""
    try:
        yield
    except BioIOError:
        raise
    except (OSError, RuntimeError) as exc:
        said = str(exc).lower()
        if "filter" in said and "returned failure" not in said:
            raise BackendError(
                f"{where} is compressed in a way that h5py does not know alone: "
                f"pip install hdf5plugin, and import it before ({exc})"
            ) from exc
        raise DamagedFileError(f"{what} cannot be read: {exc}") from exc


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn what the library says of a disk that is full, or gone, into what the system says."""
    try:
        yield
    except RuntimeError as exc:
        raise OSError(f"{name!r} cannot be written: {exc}") from exc
