"""StoredViews: an HDF5 file as h5py sees it, for code that looks into `_file_object_h5`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._hdf5_file import open_to_read

if TYPE_CHECKING:
    from pathlib import Path


class StoredViews:
    """The file of a dataset, to read; what has changed since is seen with the next `now`.

    Parameters
    ----------
    path : Path
        Of the file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes: RandomFile | None = None
        self._file: Any = None
        self._stale = True

    def changed(self) -> None:
        """Say that the file is another one now."""
        self._stale = True

    def now(self) -> Any:
        """Return the `h5py.File` as it is now; None where there is no file."""
        if self._stale and self._path.exists():
            self.close()
            self._bytes = RandomFile(self._path)
            self._file = open_to_read(self._bytes, repr(str(self._path)))
            self._stale = False
        return self._file

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        if self._bytes is not None:
            if self._file is not None:
                self._file.close()
            self._bytes.close()
            self._bytes = None
