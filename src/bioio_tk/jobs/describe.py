"""Describe: everything about the images in a file but their pixels, quickly."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.core.region import AXES
from bioio_tk.core.units import convert_length
from bioio_tk.errors import SpecError
from bioio_tk.reader import check_path

if TYPE_CHECKING:
    import os

    from bioio_tk.backends.base import Source
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import ImageSpec, Quantity


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """One resolution: its size, and how it is stored.

    Attributes
    ----------
    shape : tuple of 5 int
        Size along Y, X, Z, C, T.
    storage : str
        ``"tiles"`` or ``"strips"``, "" where the format has no such thing.
    tile : (int, int)
        Height and width of a tile or strip.
    compression : str
        Name of the codec.
    """

    shape: Shape5
    storage: str
    tile: tuple[int, int]
    compression: str


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """One image of a file.

    Attributes
    ----------
    series : int
        Its number, from 0.
    name : str
        "" for one without.
    dtype : str
        Pixel type.
    samples : int
        Samples of a pixel stored together: 3 for RGB.
    levels : tuple of LevelInfo
        Full resolution first.
    channels : tuple of dict
        ``name`` and ``color`` of each channel, None where unknown.
    pixel_size : dict
        Value and unit along ``x``, ``y``, ``z``; None where unknown.
    time_increment : (float, str) or None
        Time between two time points.
    pixel_bytes : int
        Size of the full resolution, uncompressed.
    """

    series: int
    name: str
    dtype: str
    samples: int
    levels: tuple[LevelInfo, ...]
    channels: tuple[dict[str, Any], ...]
    pixel_size: dict[str, Quantity | None]
    time_increment: Quantity | None
    pixel_bytes: int

    @property
    def shape(self) -> Shape5:
        """Size of the full resolution along Y, X, Z, C, T."""
        return self.levels[0].shape

    def pixel_size_um(self) -> dict[str, float | None]:
        """Return the pixel size along ``x``, ``y``, ``z`` in µm, None where it is no length."""

        def number(size: Quantity | None) -> float | None:
            try:
                return None if size is None else convert_length(size[0], size[1], "µm")
            except SpecError:
                return None

        return {axis: number(size) for axis, size in self.pixel_size.items()}


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What is in a file.

    Attributes
    ----------
    path : str
        The file.
    backend : str
        What reads it.
    bytes : int
        Size on disk.
    series : tuple of SeriesInfo
        Its images.
    notes : tuple of str
        What is wrong in it and how it was understood all the same.
    """

    path: str
    backend: str
    bytes: int
    series: tuple[SeriesInfo, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, texts, lists and dicts, as JSON takes them."""
        found = asdict(self)
        for series, info in zip(found["series"], self.series, strict=True):
            series["axes"] = AXES
            series["shape"] = info.shape
        return found


def describe(path: str | os.PathLike[str]) -> FileInfo:
    """Return what is in an image file, without reading pixels.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    FileInfo
        Its series, with levels, channels, pixel sizes and how they are stored.
    """
    place = check_path(path)
    row = registry.for_reading(place)
    source = registry.load_source(row)(place)
    try:
        return FileInfo(
            path=str(path),
            backend=row.name,
            bytes=place.stat().st_size,
            series=tuple(_series(source, n, spec) for n, spec in enumerate(source.images)),
            notes=tuple(source.notes),
        )
    finally:
        source.close()


def _series(source: Source, number: int, spec: ImageSpec) -> SeriesInfo:
    channels = [{"name": channel.name, "color": channel.color} for channel in spec.channels]
    size = spec.physical_size
    return SeriesInfo(
        series=number,
        name=spec.name,
        dtype=spec.dtype.name,
        samples=spec.samples,
        levels=tuple(_level(source, number, level, spec) for level in range(len(spec.levels))),
        channels=tuple(channels or [{"name": None, "color": None}] * spec.shape[3]),
        pixel_size={"x": size.x, "y": size.y, "z": size.z},
        time_increment=spec.time_increment,
        pixel_bytes=math.prod(spec.shape) * spec.dtype.itemsize,
    )


def _level(source: Source, number: int, level: int, spec: ImageSpec) -> LevelInfo:
    details = source.details(number, level)
    height, width = tuple(details.get("tile", spec.levels[level].tile))[:2]
    return LevelInfo(
        shape=spec.levels[level].shape,
        storage=str(details.get("storage", "")),
        tile=(int(height), int(width)),
        compression=str(details.get("compression", "")).removeprefix("adobe_"),
    )
