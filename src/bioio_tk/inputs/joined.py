"""JoinedSource: the images of one file as a single one, each below the one before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends.base import Caps
from bioio_tk.core.spec import Address, Level
from bioio_tk.engine.copy import View
from bioio_tk.errors import SpecError
from bioio_tk.lazy import LazyArray
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class JoinedSource:
    """All images of a file, joined along Y.

    Parameters
    ----------
    reader : BioReader
        The open file; all its images have one width, depth, number of channels and of times.
    """

    def __init__(self, reader: BioReader) -> None:
        self._source: Any = reader._source  # noqa: SLF001
        self.notes = reader.notes
        self.in_memory = bool(getattr(self._source, "in_memory", False))
        self.caps = Caps(parallel_read=self._source.caps.parallel_read)
        images = self._source.images
        first = images[0]
        for number, spec in enumerate(images):
            if spec.shape[1:] != first.shape[1:] or spec.dtype != first.dtype:
                raise SpecError(
                    f"image {number} of {reader.path.name!r} has X, Z, C, T = {spec.shape[1:]} of "
                    f"{spec.dtype}, the first one {first.shape[1:]} of {first.dtype}: images that "
                    "differ cannot be joined along Y; use roi_mode='separate'"
                )
        heights = [spec.shape[0] for spec in images]
        self._starts = np.concatenate([[0], np.cumsum(heights)])
        shape = (int(self._starts[-1]), *first.shape[1:])
        tile = (min(first.levels[0].tile[0], shape[0]), *first.levels[0].tile[1:])
        self.images = (replace(first, levels=(Level(shape, tile),)),)

    def read_tile(self, at: Address) -> NDArray[Any]:
        """Return a tile, put together of the images it touches."""
        spec = self.images[0]
        region = spec.levels[0].grid.region(at.key)
        out = np.empty(spec.levels[0].grid.tile_shape(at.key), spec.dtype)
        across = tuple(map(slice, region.start[1:], region.stop[1:]))
        for number, start in enumerate(self._starts[:-1]):
            top = max(region.start[0], int(start))
            bottom = min(region.stop[0], int(self._starts[number + 1]))
            if top < bottom:
                box: Any = (slice(top - int(start), bottom - int(start)), *across)
                part = View.whole(self._source, number, 0).read(box, 1)
                out[top - region.start[0] : bottom - region.start[0]] = part
        return out

    def ome_xml(self) -> str | None:
        """Return None: a document of several images does not describe one."""
        return None

    def used_files(self) -> tuple[Path, ...]:
        """Return the files that are read."""
        found = getattr(self._source, "used_files", None)
        return () if found is None else found()

    def details(self, image: int, level: int) -> dict[str, Any]:
        """Return how the first image is stored."""
        found: dict[str, Any] = self._source.details(0, 0)
        return found

    def close(self) -> None:
        """Do nothing: the file belongs to its reader."""


def joined(reader: BioReader) -> LazyArray:
    """Return all images of a file as one, each below the one before."""
    over = BioReader._over(  # noqa: SLF001
        reader.path, "joined", "its images are joined along Y", JoinedSource, reader
    )
    return LazyArray(over, "TCZYX")
