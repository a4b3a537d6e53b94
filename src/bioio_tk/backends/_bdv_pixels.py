"""Where the pixels of views come from: what each loader of BigDataViewer gives to a Source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.core.views import Shape3, ViewId

Box: TypeAlias = tuple[slice, slice, slice]
"""Positions along Z, Y, X: starts and stops, no steps."""

SMALL = 1 << 16
"""Bytes of a block below which several are read together, by one thread at a time."""
_PIECE = 1 << 21
"""Bytes that are then read at once."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """One resolution of a setup as it is stored; sizes along Z, Y, X.

    Attributes
    ----------
    shape : Shape3
        Size of the stacks.
    factor : tuple of 3 float
        Pixels of the full resolution that are one pixel of it.
    block : Shape3 or None
        Size of its chunks; None where it lies in one piece.
    compression : str
        Name of the codec.
    """

    shape: Shape3
    factor: tuple[float, float, float]
    block: Shape3 | None
    compression: str

    def tile(self, itemsize: int) -> Shape3:
        """Return what to read at once: a block, several small ones, or a band of rows."""
        z, y, x = self.block or (1, 1, self.shape[2])
        if self.block is not None and z * y * x * itemsize >= SMALL:
            return (z, y, x)
        while x < self.shape[2] and z * y * x * itemsize < _PIECE:
            x *= 2
        while y < self.shape[1] and z * y * x * itemsize < _PIECE:
            y *= 2
        return (z, y, x)


@dataclass(frozen=True, slots=True)
class Stored:
    """How the stacks of a setup are stored: their pixel type and resolutions."""

    dtype: np.dtype[Any]
    levels: tuple[Resolution, ...]


class Pixels(Protocol):
    """The pixels of a dataset, by view and resolution. All methods from any thread.

    Attributes
    ----------
    format : str
        What the whole is called.
    notes : list of str
        What was found wrong so far.
    """

    format: str
    notes: list[str]

    def setups(self) -> tuple[int, ...]:
        """Return the ids of the setups that are stored."""
        ...

    def views(self) -> frozenset[ViewId]:
        """Return the views that are stored."""
        ...

    def stored(self, setup: int) -> Stored | None:
        """Return how the stacks of a setup are stored; None where nothing tells."""
        ...

    def read(self, view: ViewId, level: int, box: Box, out: NDArray[Any]) -> None:
        """Fill `out` (z, y, x), of the setup's type, with the pixels of a box."""
        ...

    def parts(self, setup: int, level: int) -> bool:
        """Return whether a part of a tile is read at the price of that part."""
        ...

    def path(self, view: ViewId, level: int) -> str:
        """Return where a level of a view lies."""
        ...

    def used_files(self) -> tuple[Path, ...]:
        """Return the files the pixels are in."""
        ...

    def close(self) -> None:
        """Release the files. Safe to call twice."""
        ...
