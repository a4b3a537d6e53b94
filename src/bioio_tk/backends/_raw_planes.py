"""RawPlanes: uncompressed planes one after the other in a file, written at their places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray

    from bioio_tk.backends._file import RandomFile
    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.spec import Address, ImageSpec


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


class GoesOn:
    """What a sink of raw planes needs to go on with an unfinished file: every pixel has its place.

    Its heirs keep in `_stored` which tiles were stored, and are made with (path, images, options).
    """

    _stored: set[Address]

    @classmethod
    def resume(
        cls,
        path: Path,
        images: tuple[ImageSpec, ...],
        options: StoreOptions,
        tiles: Mapping[Address, Any],
    ) -> Self:
        """Return a sink that goes on with an unfinished file which has these tiles."""
        sink: Any = cls
        made: Self = sink(path, images, options)
        made._stored.update(tiles)
        return made

    def holds(self, at: Address) -> bool:
        """Return whether a tile is there."""
        return at in self._stored

    def trace(self, at: Address, encoded: Any) -> int:
        """Return what the journal keeps of a tile: that it is there."""
        return 1

    def suspend(self) -> None:
        """Let go of the file as it is."""
        closing: Any = self
        closing.close()
