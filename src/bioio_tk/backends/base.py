"""What a backend author implements: a Source to read, a Sink to write, or both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from bioio_tk.core.region import Slices5
from bioio_tk.core.spec import Address, ImageSpec


@dataclass(frozen=True, slots=True)
class Caps:
    """What the engine may do with a backend."""

    parallel_read: bool = True
    """read_tile() may run in several threads at once."""

    parallel_store: bool = False
    """store_tile() may run in several threads at once (else: one at a time)."""

    grows: bool = False
    """grow() works: the number of time points may be unknown at the start."""

    costly_tiles: bool = True
    """A tile is decoded whole even for a part of it: worth keeping for the next request."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a Sink stores what it is given; None means the backend's own default.

    Attributes
    ----------
    compression : str or None
        Name of the codec, ``"none"`` for raw.
    level : int or None
        Compression level, in the codec's own scale.
    predictor : bool or None
        Difference neighbouring pixels before compressing, where the codec allows it.
    metadata : ome_types.OME, str or None
        Metadata to carry over (an OME object or an OME-XML document); the geometry in it is
        replaced by that of the images stored.
    extra : dict
        Options of one backend only; an unknown one is a SpecError.
    """

    compression: str | None = None
    level: int | None = None
    predictor: bool | None = None
    metadata: Any = None
    extra: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """An open file to read. Only reads tiles; knows nothing of regions or threads.

    Attributes
    ----------
    images : tuple of ImageSpec
        The series of the file.
    notes : tuple of str
        What was wrong in the file and how it was understood all the same; one line each.
    """

    caps: ClassVar[Caps]
    images: tuple[ImageSpec, ...]
    notes: tuple[str, ...]

    def __init__(self, path: Path) -> None: ...

    def read_tile(self, at: Address) -> NDArray[Any]:
        """Return the tile, shaped (y, x, z, c, t), clipped at the image edge."""
        ...

    def ome_xml(self) -> str | None:
        """Return the OME-XML document of the file as it stands there, None where it has none."""
        ...

    def details(self, image: int, level: int) -> dict[str, Any]:
        """Return how a level is stored: ``tile``, ``compression`` and what else is worth saying.

        ``parts`` is True where a part of a tile can be read at the price of that part.
        """
        ...

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        ...


class PartSource(Source, Protocol):
    """A Source that can be faster when only a part of a tile is wanted, or where it goes."""

    def read_part(self, at: Address, part: Slices5, out: NDArray[Any]) -> bool:
        """Fill `out` with ``read_tile(at)[part]`` and return True, or return False.

        False means: nothing to gain here, take `read_tile`. Slices have positive steps.
        """
        ...


class PlaneSource(Source, Protocol):
    """A Source that reads a stack of small planes faster together than one by one."""

    def read_planes(
        self, image: int, level: int, planes: list[tuple[int, int, int]], out: NDArray[Any]
    ) -> bool:
        """Fill `out` (n, y, x) with the planes at (z, c, t) and return True, or return False."""
        ...


class Sink(Protocol):
    """A new file to write. The engine calls encode_tile in workers, then store_tile.

    The file at `path` exists already, empty, and stays where it is: putting the result into
    place is the caller's business.
    """

    caps: ClassVar[Caps]
    images: tuple[ImageSpec, ...]

    def __init__(
        self, path: Path, images: tuple[ImageSpec, ...], options: StoreOptions
    ) -> None: ...

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        """Raise SpecError or UnsupportedError where __init__ would, before any file exists."""
        ...

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Any:
        """Turn a whole (clipped) tile (y, x, z, c, t) into what store_tile takes. Any thread."""
        ...

    def store_tile(self, at: Address, encoded: Any) -> None:
        """Put one encoded tile into the file. A tile may be stored again; the last one counts."""
        ...

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        """Return a stored tile, clipped, or None if it was never stored. Any thread."""
        ...

    def grow(self, image: int, t: int) -> None:
        """Make room for `t` time points. Only called where caps.grows."""
        ...

    def finish(self) -> None:
        """Complete the file; called once, after the last tile and before close()."""
        ...

    def close(self) -> None:
        """Release the file. Safe to call twice; without finish() the file stays unfinished."""
        ...
