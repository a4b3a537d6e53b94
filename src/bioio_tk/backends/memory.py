"""The smallest backend there can be: tiles in a dict. Read this one first.

The file on disk holds nothing but the number of the image; the pixels stay in this process.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bioio_tk.backends.base import DEFAULTS, Caps, OpenOptions, StoreOptions
from bioio_tk.errors import DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.core.spec import Address, ImageSpec

_MAGIC = b"bioio_tk memory image "
_NUMBERS = count()
_IMAGES: dict[int, MemorySink] = {}


class MemorySource:
    """Read tiles back from the process-wide store."""

    caps: ClassVar[Caps] = Caps(costly_tiles=False)
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, options: OpenOptions = DEFAULTS) -> None:
        number = path.read_bytes().removeprefix(_MAGIC)
        try:
            self._sink = _IMAGES[int(number)]
        except (ValueError, KeyError):
            raise DamagedFileError(
                f"{str(path)!r} stands for an image in the memory of a process that has ended"
            ) from None
        self.images = self._sink.images

    def read_tile(self, at: Address) -> NDArray[Any]:
        tile = self._sink.load_tile(at)
        if tile is None:
            image = self.images[at.image]
            return np.zeros(image.levels[at.level].grid.tile_shape(at.key), image.dtype)
        return tile

    def ome_xml(self) -> str | None:
        from bioio_tk.meta import ome

        return ome.document(self.images, metadata=self._sink.options.metadata)

    def details(self, image: int, level: int) -> dict[str, Any]:
        return {"tile": self.images[image].levels[level].tile, "compression": "none"}

    def close(self) -> None:
        pass


class MemorySink:
    """Write tiles into the process-wide store."""

    caps: ClassVar[Caps] = Caps(parallel_store=True, grows=True)

    def __init__(self, path: Path, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        self.images = images
        self.options = options
        self._tiles: dict[Address, NDArray[Any]] = {}
        number = next(_NUMBERS)
        _IMAGES[number] = self
        path.write_bytes(_MAGIC + str(number).encode())

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        if options.compression not in (None, "none"):
            raise UnsupportedError(
                f"images in memory are not compressed (compression={options.compression!r} given)"
            )

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> NDArray[Any]:
        return tile.copy()

    def store_tile(self, at: Address, encoded: NDArray[Any]) -> None:
        self._tiles[at] = encoded

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        return self._tiles.get(at)

    def grow(self, image: int, t: int) -> None:
        images = list(self.images)
        images[image] = images[image].grown(t)
        self.images = tuple(images)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass
