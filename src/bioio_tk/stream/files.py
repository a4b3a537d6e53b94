"""PlaneFiles: the planes of an acquisition, read from its files as anybody else would."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends import registry
from bioio_tk.backends._file import RandomFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.reader import BioReader
    from bioio_tk.stream.layout import Layout

_MOST_OPEN = 16
"""Files of positions that are kept open."""


class PlaneFiles:
    """Reads what lies at the place of an acquisition, be it finished or still growing.

    Parameters
    ----------
    layout : Layout
        What is recorded, and where. For one thread at a time.
    recorded : callable
        Returns the positions that have an image, in order; called when the acquisition has ended:
        each of several files speaks of all of them then.
    """

    def __init__(self, layout: Layout, recorded: Callable[[], Sequence[int]]) -> None:
        self._layout = layout
        self._recorded = recorded
        self._store: Any = registry.load_stream_store(layout.store)
        self._open: OrderedDict[int, tuple[int, BioReader]] = OrderedDict()

    def read(self, position: int, plane: int, known: int) -> NDArray[Any]:
        """Return a plane (y, x) of a position.

        Parameters
        ----------
        position, plane : int
            Which one; it has to be there.
        known : int
            So many planes of the position are there. A file that was opened before this plane was
            there is opened anew: what a reader remembers of it may be older.
        """
        plan = self._layout.plan
        if getattr(self._store, "raw_planes", False):
            return self._read_raw(position, plane)
        direct = getattr(self._store, "read_plane", None)
        if direct is not None:
            found: NDArray[Any] = direct(self._layout.path, plan, position, plane)
            return found
        z, c, t = plan.order.key(plane)
        reader = self._reader(position, plane, known)
        pixels: NDArray[Any] = reader[:, :, z : z + 1, c : c + 1, t : t + 1]
        return pixels.reshape(plan.image.shape[:2])

    def close(self) -> None:
        """Close all files. Safe to call twice."""
        while self._open:
            self._open.popitem()[1][1].close()

    def _place(self, position: int) -> Path:
        layout = self._layout
        place: Path = self._store.image_path(layout.path, layout.plan, layout.options, position)
        return place

    def _reader(self, position: int, plane: int, known: int) -> BioReader:
        """Return a reader that was opened when a plane was there already."""
        before, reader = self._open.pop(position, (0, None))
        if reader is None or plane >= before:
            if reader is not None:
                reader.close()
            before, reader = known, self._opened(position)
        self._open[position] = before, reader
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1][1].close()
        return reader

    def _opened(self, position: int) -> BioReader:
        from bioio_tk.reader import BioReader  # which is not needed while nobody looks

        place = self._place(position)
        reader = BioReader(place)
        number = self._recorded().index(position) if reader.n_series > 1 else 0
        if number:
            reader.close()
            reader = BioReader(place, series=number)
        return reader

    def _read_raw(self, position: int, plane: int) -> NDArray[Any]:
        image = self._layout.plan.image
        pixels = np.zeros(image.shape[:2], image.dtype)
        with closing(RandomFile(self._place(position))) as file:
            file.read_into(plane * pixels.nbytes, pixels)
        return pixels
