"""Snapshot: a picture of the newest frame, replaced again and again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bioio_tk.engine.resample import area_mean
from bioio_tk.inputs.array import open_array
from bioio_tk.jobs.thumbnail import check_png, composite, encode_png

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Snapshot:
    """A PNG that always shows the newest frame it was given.

    Parameters
    ----------
    path : str or Path
        The picture, ``….png``. Whoever looks at it finds a whole one at every moment.
    size : int
        Length of the longer side in pixels; smaller frames are not enlarged.
    overwrite : bool
        Replace a picture that is there at first.

    Raises
    ------
    UnknownFormatError
        It has another suffix.
    TargetExistsError
        It exists.
    FileNotFoundError
        There is no such folder.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, size: int = 512, overwrite: bool = False
    ) -> None:
        self.path = check_png(path, overwrite=overwrite)
        self._size = size

    def show(self, frame: NDArray[Any]) -> None:
        """Make it show a frame (y, x)."""
        height, width = frame.shape
        scale = min(1.0, self._size / max(height, width))
        wanted = (max(1, round(height * scale)), max(1, round(width * scale)))
        with open_array(frame, "YX") as reader:
            shrunk = area_mean(
                reader._source,  # noqa: SLF001 (the engine works on tiles)
                reader.series,
                0,
                (0, slice(0, 1), 0),
                wanted,
                workers=1,
            )
        picture = encode_png(composite([shrunk[:, :, 0]], [(255, 255, 255)]))
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            part.write_bytes(picture)
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)
