"""Thumbnail: a small picture of an image of any size, as PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from bioio_tk.engine.pool import check_workers
from bioio_tk.engine.resample import area_mean
from bioio_tk.errors import RegionError, SpecError, TargetExistsError, UnknownFormatError
from bioio_tk.jobs.legend import add_legend
from bioio_tk.reader import BioReader, check_path

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.engine.copy import Progress

Color: TypeAlias = tuple[int, int, int]

_MOST_CHANNELS = 7
_PAIR: tuple[Color, ...] = ((0, 255, 80), (255, 40, 255))
_COLORS: tuple[Color, ...] = (
    (60, 110, 255),
    (40, 220, 60),
    (255, 60, 50),
    (255, 200, 40),
    (40, 220, 220),
    (240, 70, 240),
    (200, 200, 200),
)
_DARKEST, _BRIGHTEST = 1.0, 99.7  # percentiles shown as black and as full colour


class Picture(NamedTuple):
    """A picture and what it shows.

    Attributes
    ----------
    pixels : numpy.ndarray
        Shape (height, width, 3), uint8.
    channels : list of (str, Color)
        Name and colour of the channels shown, empty for RGB.
    um_per_pixel : float or None
        Size of its pixels.
    """

    pixels: NDArray[np.uint8]
    channels: list[tuple[str, Color]]
    um_per_pixel: float | None


def thumbnail(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    legend: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Picture:
    """Write a small picture of an image as PNG.

    Parameters
    ----------
    src : str or Path
        The image, also a folder or a URL.
    dst : str or Path
        The picture, ``….png``.
    legend : bool
        Add a strip with the names of the channels and a scale bar.
    overwrite : bool
        Replace the picture that is there.
    **options
        As for `render`.

    Returns
    -------
    Picture
        What was written.
    """
    target = check_png(dst, overwrite=overwrite)
    picture = render(src, **options)
    if legend:
        framed = add_legend(picture.pixels, picture.channels, picture.um_per_pixel)
        picture = picture._replace(pixels=framed)
    target.write_bytes(encode_png(picture.pixels))
    return picture


def render(  # noqa: PLR0913 (a face: every option by its name)
    src: str | os.PathLike[str],
    *,
    size: int = 512,
    series: int = 0,
    z: int | None = None,
    t: int = 0,
    channels: Sequence[int] | None = None,
    storage_options: dict[str, Any] | None = None,
    max_workers: int | None = None,
    progress: Progress | None = None,
) -> Picture:
    """Return a small picture of a plane, in bounded memory.

    The smallest resolution that suffices is read; each pixel of the picture is the mean of the
    area it covers. Channels are stretched between two percentiles and added in their colours;
    RGB of 8 bits stays as it is.

    Parameters
    ----------
    src : str or Path
        The image, also a folder or a URL.
    size : int
        Length of the longer side in pixels; smaller images are not enlarged.
    series : int
        Which image of the file.
    z : int, optional
        Which focal plane; the middle one by default.
    t : int
        Which time point.
    channels : sequence of int, optional
        Channels to show; the first seven by default.
    storage_options : dict, optional
        For a URL: what fsspec passes to the file system.
    max_workers : int, optional
        Threads.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes.
    """
    if isinstance(size, bool) or size < 1:
        raise SpecError(f"size={size!r}: give the longer side in pixels, 1 or more")
    workers = check_workers(max_workers)
    with BioReader(src, workers, series=series, storage_options=storage_options) as full:
        height, width, depth, _, times = full.shape
        z = _inside("z", depth // 2 if z is None else z, depth)
        t = _inside("t", t, times)
        scale = min(1.0, size / max(height, width))
        wanted = (max(1, round(height * scale)), max(1, round(width * scale)))
        level = _level(full, wanted)
        planes = _planes(full, channels)
        small_z = z * full.level_shapes[level][2] // depth
        tell = _Sum(progress, len(planes))
        means = [
            area_mean(
                full._source,  # noqa: SLF001 (the engine works on tiles)
                full.series,
                level,
                (small_z, plane, t),
                wanted,
                workers=workers,
                progress=tell.part(number),
            )
            for number, plane in enumerate(planes)
        ]
        um = full.pixel_size("µm").x
        um_per_pixel = None if um is None else um * width / wanted[1]
        if full.samples_per_pixel in (3, 4):
            return Picture(_true_color(means[0], full.dtype), [], um_per_pixel)
        numbers = [plane.start for plane in planes]
        colors = _colors(full, numbers)
        names = [full.channel_names[c] or f"channel {c}" for c in numbers]
        if full.C == 1 and full.channel_names[0] is None:
            names = [""]
        pixels = composite([part[:, :, 0] for part in means], colors)
        shown = [(name, color) for name, color in zip(names, colors, strict=True) if name]
        return Picture(pixels, shown, um_per_pixel)


def check_png(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return where a picture goes; raise where it cannot."""
    target = check_path(path)
    if target.suffix.lower() != ".png":
        raise UnknownFormatError(f"{target.name!r}: a thumbnail is a PNG, end its name with .png")
    if not overwrite and target.exists():
        raise TargetExistsError(f"{str(target)!r} exists: pass overwrite=True to replace it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(target.parent)!r} to write into")
    return target


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    from imagecodecs import png_encode

    return bytes(png_encode(np.ascontiguousarray(pixels), level=6))


class _Sum:
    """Makes one progress of several equal parts."""

    def __init__(self, progress: Progress | None, parts: int) -> None:
        self._progress = progress
        self._parts = parts

    def part(self, number: int) -> Progress | None:
        tell = self._progress
        if tell is None:
            return None
        return lambda done, total: tell(number * total + done, self._parts * total)


def _inside(name: str, value: int, size: int) -> int:
    if not -size <= value < size:
        raise RegionError(f"{name}={value} does not exist: the image has {name.upper()}={size}")
    return value % size


def _level(reader: BioReader, wanted: tuple[int, int]) -> int:
    """Return the smallest resolution that is no smaller than the picture."""
    enough = [
        number
        for number, shape in enumerate(reader.level_shapes)
        if shape[0] >= wanted[0] and shape[1] >= wanted[1]
    ]
    return min(enough, key=lambda number: reader.level_shapes[number][0])


def _planes(reader: BioReader, channels: Sequence[int] | None) -> list[slice]:
    """Return the channels to show, those of an RGB pixel together."""
    samples = reader.samples_per_pixel
    if samples in (3, 4):
        first = 0 if channels is None else _inside("c", channels[0], reader.C)
        first -= first % samples
        return [slice(first, first + samples)]
    picked = range(min(reader.C, _MOST_CHANNELS)) if channels is None else channels
    if not picked:
        raise SpecError("channels: give at least one")
    numbers = [_inside("c", c, reader.C) for c in picked]
    return [slice(c, c + 1) for c in numbers]


def _colors(reader: BioReader, numbers: Sequence[int]) -> list[Color]:
    """Return the colours of the channels, others where they could not be told apart."""
    if len(numbers) == 1:
        return [(255, 255, 255)]
    given = [reader.channel_colors[c] for c in numbers]
    own = [color[:3] for color in given if color is not None and max(color[:3]) > 0]
    if len(set(own)) == len(numbers):
        return own
    defaults = _PAIR if len(numbers) == 2 else _COLORS
    return [defaults[n % len(defaults)] for n in range(len(numbers))]


def composite(planes: Sequence[NDArray[np.float32]], colors: Sequence[Color]) -> NDArray[np.uint8]:
    """Return channels stretched between two percentiles and added in their colours."""
    total = np.zeros((*planes[0].shape, 3), np.float32)
    for plane, color in zip(planes, colors, strict=True):
        total += _stretched(plane)[:, :, None] * np.array(color, np.float32)
    # where channels lie over each other much of the picture would be white
    bright = float(np.percentile(total.max(axis=2), _BRIGHTEST))
    if len(planes) > 1 and bright > 255:
        total *= max(0.65, 255 / bright)
    return np.clip(total + 0.5, 0, 255).astype(np.uint8)


def _stretched(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return brightness from 0 to 1 between the two percentiles."""
    low, high = (float(p) for p in np.percentile(plane, (_DARKEST, _BRIGHTEST)))
    if not high > low:  # less than one pixel in a hundred differs
        low, high = float(plane.min()), float(plane.max())
    if not high > low:
        return np.zeros_like(plane)
    stretched: NDArray[np.float32] = np.clip((plane - low) / (high - low), 0, 1)
    return stretched


def _true_color(pixels: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    rgb = pixels[:, :, :3]
    if dtype != np.uint8:
        high = float(np.percentile(rgb, 99.9)) or 1.0  # all three alike, so that hues stay
        rgb = np.clip(rgb * (255 / high), 0, 255)
    return (rgb + 0.5).astype(np.uint8)
