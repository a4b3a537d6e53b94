"""TiffSource: TIFF files of every kind, without Java."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends import _tiff_ome, _tiff_series
from bioio_tk.backends._tiff_files import TiffHandle
from bioio_tk.backends.base import DEFAULTS, Caps, OpenOptions
from bioio_tk.core.location import Url
from bioio_tk.errors import DamagedFileError, FormatError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends._tiff_series import Image
    from bioio_tk.core.location import Location
    from bioio_tk.core.region import Slices5
    from bioio_tk.core.spec import Address, ImageSpec


_PAGES_TO_CHECK = 64
_TO_KEEP = 1 << 26
"""Bytes of a decoded tile up to which it is worth keeping for the next request."""


class TiffSource:
    """A TIFF file, or a set of them that an OME-XML document ties together."""

    def __init__(self, location: Location, options: OpenOptions = DEFAULTS) -> None:
        self.caps = Caps(waits=isinstance(location, Url))
        self._files = _tiff_ome.FileSet(location, options.storage_options)
        try:
            self._images, self._xml, self.notes = self._read()
        except BaseException:
            self._files.close()
            raise
        self.images: tuple[ImageSpec, ...] = tuple(image.spec for image in self._images)

    def _read(self) -> tuple[list[Image], str | None, tuple[str, ...]]:
        notes: list[str] = []
        xml = self._files.ome_xml()
        notes += self._files.notes
        if xml is not None:
            try:
                images, found = _tiff_ome.read_images(self._files, xml)
            except FormatError as exc:
                if self._files.only_xml or isinstance(
                    exc, (_tiff_ome.OutsideError, DamagedFileError)
                ):
                    raise
                notes.append(f"the OME-XML is not usable, the TIFF's own structure is: {exc}")
                xml = None
            else:
                return images, xml, (*notes, *found)
        handle = self._files.own
        single = _tiff_series.read_single(handle)
        if single is not None:
            return [single], xml, tuple(notes)
        _refuse_cut_off(handle)
        return _tiff_series.read_series(handle), xml, tuple(notes)

    def read_tile(self, at: Address) -> NDArray[Any]:
        image = self._images[at.image]
        level = image.spec.levels[at.level]
        y, x, z, c, t = level.grid.tile_shape(at.key)
        part = (slice(0, y), slice(0, x), slice(0, z), slice(0, c), slice(0, t))
        try:
            # samples innermost, as in the file, where pixels are interleaved
            out = np.empty((t, z, y, x, c), image.spec.dtype).transpose(2, 3, 1, 4, 0)
            image.layers[at.level].fill(at, part, out, level)
        except (MemoryError, OverflowError) as exc:
            raise self._too_large(at) from exc
        return out

    def read_part(self, at: Address, part: Slices5, out: NDArray[Any]) -> bool:
        image = self._images[at.image]
        layer = image.layers[at.level]
        level = image.spec.levels[at.level]
        if not layer.recipe.raw:
            shape = level.grid.tile_shape(at.key)
            if math.prod(shape) * out.itemsize <= _TO_KEEP and any(
                s.start != 0 or s.stop != n or (s.step or 1) != 1
                for s, n in zip(part, shape, strict=True)
            ):
                return False  # a tile that must be decoded whole is better kept
        try:
            layer.fill(at, part, out, level)
        except (MemoryError, OverflowError) as exc:
            raise self._too_large(at) from exc
        return True

    def read_planes(
        self, image: int, level: int, planes: list[tuple[int, int, int]], out: NDArray[Any]
    ) -> bool:
        return self._images[image].layers[level].fill_planes(planes, out)

    def _too_large(self, at: Address) -> UnsupportedError:
        tile = self._images[at.image].spec.levels[at.level].tile
        return UnsupportedError(
            f"{str(self._files.path)!r}: a tile of {tile[1]} x {tile[0]} pixels does not fit into "
            "memory, and can only be decoded whole"
        )

    def ome_xml(self) -> str | None:
        return self._xml

    def original_metadata(self, image: int) -> dict[str, Any]:
        return {} if self._files.only_xml else self._files.own.tags()

    def used_files(self) -> tuple[Path, ...]:
        return self._files.used_files()

    def details(self, image: int, level: int) -> dict[str, Any]:
        recipe = self._images[image].layers[level].recipe
        return {
            "storage": "tiles" if recipe.tiled else "strips",
            "tile": recipe.segment_shape,
            "compression": recipe.compression,
            "interleaved": recipe.samples > 1,
            "bigtiff": self._files.own_is_big,
            "parts": recipe.raw,
        }

    def close(self) -> None:
        self._files.close()


def _refuse_cut_off(handle: TiffHandle) -> None:
    """Refuse a file that ends in the middle, where pages would silently be missing.

    Nor is one for us whose directories run in a circle: tifffile would follow them for ever.
    """
    chain, broken = handle.chain, handle.ifds.broken
    if handle.file.size >= 1 << 32 and (handle.tif.is_ndpi or handle.tif.is_lsm):
        return  # their directories have a format of their own beyond 4 GB
    for offset in chain[:_PAGES_TO_CHECK].tolist():
        handle.ifds.check(handle.ifds.read(offset))
    if broken:
        raise DamagedFileError(
            f"{str(handle.path)!r} is cut off: {broken} ({len(chain)} before it)"
        )
