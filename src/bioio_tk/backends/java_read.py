"""BioFormatsSource: whatever Bio-Formats reads, through Java."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bioio_tk.backends._java_errors import translated
from bioio_tk.backends._java_geometry import (
    Layout,
    layout_of,
    plate_of,
    settled,
    spec_of,
)
from bioio_tk.backends._java_readers import Readers
from bioio_tk.backends.base import DEFAULTS, Caps, OpenOptions
from bioio_tk.core.spec import ImageSpec, Level
from bioio_tk.errors import UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.core.location import Location
    from bioio_tk.core.plate import Plate
    from bioio_tk.core.spec import Address


class BioFormatsSource:
    """An image file, and the files that belong to it, as Bio-Formats understands them."""

    caps: ClassVar[Caps] = Caps(forks=False)

    def __init__(self, location: Location, options: OpenOptions = DEFAULTS) -> None:
        if not isinstance(location, Path):
            raise UnsupportedError(
                f"{str(location)!r}: Bio-Formats reads files of this machine, not from a server: "
                "copy the file first"
            )
        if location.is_dir():
            raise UnsupportedError(
                f"{str(location)!r} is a folder, and Bio-Formats opens files: give it one of "
                "those in the folder"
            )
        self._where = str(location)
        with translated(self._where):
            self._readers = Readers(location.absolute())
        try:
            with translated(self._where), self._readers.borrow() as reader:
                count = int(reader.java.getSeriesCount())
                self.format = str(reader.java.getFormat())
            self.notes = self._readers.notes
            self._images = _Images(self, count)
            self.images: Sequence[ImageSpec] = self._images
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ pixels

    def settle(self, image: int, level: int) -> None:
        self._images.settle(image, level)

    def read_tile(self, at: Address) -> NDArray[Any]:
        level = self.images[at.image].levels[at.level]
        layout = self._images.layout(at.image, at.level)
        region = level.grid.region(at.key)
        (y, x, z, c, t), (y1, x1, *_) = region.start, region.stop
        with translated(self._where), self._readers.borrow() as reader:
            java = reader.at(at.image, at.level)
            plane = java.getIndex(z, c // layout.samples, t)
            found = java.openBytes(plane, x, y, x1 - x, y1 - y)
            return layout.pixels(found, y1 - y, x1 - x)

    # ------------------------------------------------------------------ about the file

    @property
    def plate(self) -> Plate | None:
        with translated(self._where):
            return plate_of(self._readers.metadata)

    def ome_xml(self) -> str | None:
        with translated(self._where):
            return str(self._readers.metadata.store.dumpXML())

    def original_metadata(self, image: int) -> dict[str, Any]:
        with translated(self._where), self._readers.borrow() as reader:
            java = reader.at(image, 0)
            found = {**dict(java.getGlobalMetadata()), **dict(java.getSeriesMetadata())}
            return {str(key): _plain(value) for key, value in sorted(found.items(), key=_by_name)}

    def used_files(self) -> tuple[Path, ...]:
        with translated(self._where), self._readers.borrow() as reader:
            return tuple(Path(str(name)) for name in reader.java.getUsedFiles())

    def details(self, image: int, level: int) -> dict[str, Any]:
        tile = self.images[image].levels[level].tile
        return {
            "storage": "tiles",
            "tile": tile[:2],
            "compression": "unknown",
            "format": self.format,
        }

    def close(self) -> None:
        self._readers.close()


class _Images(Sequence[ImageSpec]):
    """The series; each is looked at when it is first asked for."""

    def __init__(self, source: BioFormatsSource, count: int) -> None:
        self._source = source
        self._count = count
        self._found: dict[int, tuple[ImageSpec, tuple[Layout, ...]]] = {}
        self._settled: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(self._count))]
        return self._look(range(self._count)[number])[0]

    @property
    def names(self) -> list[str]:
        """The name of each image, without looking at it any further."""
        with translated(self._source._where):
            return [*self._source._readers.metadata.names, *[""] * self._count][: self._count]

    def layout(self, number: int, level: int) -> Layout:
        """Return how the pixels of a level arrive from Java."""
        return self._look(number)[1][level]

    def settle(self, number: int, level: int) -> None:
        """Choose the tile of a level by how its pixels are stored, once."""
        if (number, level) in self._settled:
            return
        self._look(number)
        source = self._source
        with translated(source._where), self._lock, source._readers.borrow() as reader:
            if (number, level) in self._settled:
                return
            spec, layouts = self._found[number]
            best = settled(reader.at(number, level), layouts[level])
            layouts = (*layouts[:level], best, *layouts[level + 1 :])
            levels = tuple(Level(layout.shape, layout.tile) for layout in layouts)
            self._found[number] = (replace(spec, levels=levels), layouts)
            self._settled.add((number, level))

    def _look(self, number: int) -> tuple[ImageSpec, tuple[Layout, ...]]:
        found = self._found.get(number)
        if found is not None:
            return found
        source = self._source
        with translated(source._where), self._lock, source._readers.borrow() as reader:
            if number not in self._found:
                java = reader.at(number, 0)
                name = source._readers.name
                layouts = tuple(
                    layout_of(reader.at(number, n), name) for n in range(java.getResolutionCount())
                )
                self._found[number] = (
                    spec_of(source._readers.metadata.image(number), layouts),
                    layouts,
                )
            return self._found[number]


def _plain(value: Any) -> Any:
    """Return a value of Java as one of Python."""
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    kind = str(value.getClass().getSimpleName())
    if kind == "Boolean":
        return bool(value)
    if kind in ("Byte", "Short", "Integer", "Long"):
        return int(value)
    if kind in ("Float", "Double"):
        return float(value)
    return str(value)


def _by_name(item: tuple[Any, Any]) -> str:
    return str(item[0])
