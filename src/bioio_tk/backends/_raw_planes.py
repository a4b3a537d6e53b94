"""RawPlanes: uncompressed planes one after the other in a file, written at their places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.backends._file import RandomFile


class RawPlanes:
    """The planes of a file; any number of threads may store and load.

    Parameters
    ----------
    file : RandomFile
        Open for writing. It is made as long as its planes: what is never stored reads as 0.
    start : int
        Where the first plane begins.
    shape : (int, int, int)
        Planes, rows, columns.
    dtype : numpy.dtype
        Pixel type as it is stored.
    """

    def __init__(
        self, file: RandomFile, start: int, shape: tuple[int, int, int], dtype: np.dtype[Any]
    ) -> None:
        self._file = file
        self._start = start
        self._dtype = dtype
        self._count, self._height, self._width = shape
        self.end = self._at(self._count, 0, 0)
        if file.size < self.end:  # else it is gone on with
            file.write(self.end - 1, b"\0")

    def _at(self, plane: int, y: int, x: int) -> int:
        rows = plane * self._height + y
        return self._start + (rows * self._width + x) * self._dtype.itemsize

    def store(self, plane: int, y: int, x: int, pixels: NDArray[Any]) -> None:
        """Write contiguous pixels (rows, columns) of the stored type at a place."""
        if pixels.shape[1] == self._width:
            self._file.write(self._at(plane, y, 0), pixels.reshape(-1).view(np.uint8))
            return
        for row in range(len(pixels)):
            self._file.write(self._at(plane, y + row, x), pixels[row].view(np.uint8))

    def load(self, plane: int, y: int, x: int, out: NDArray[Any]) -> None:
        """Fill contiguous `out` (rows, columns) of the stored type from a place."""
        for row in range(len(out)):
            line = out[row].view(np.uint8)
            if self._file.read_into(self._at(plane, y + row, x), line) < len(line):
                raise DamagedFileError(
                    f"{str(self._file.path)!r} has become shorter while it was written"
                )
