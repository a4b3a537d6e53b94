"""ImageSpec: everything about an image except its pixels. Address: where a tile lives."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from bioio_tk.core.region import Shape5
from bioio_tk.core.tiling import Span, TileGrid, TileKey
from bioio_tk.core.units import convert_length

Quantity: TypeAlias = tuple[float, str]
"""A value and its unit, the unit as OME writes it: ``(0.5, "µm")``."""


class Address(NamedTuple):
    """Where one tile lives in a file. `image` is the series."""

    image: int
    level: int
    key: TileKey


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of an image: its size and its tile size, in YXZCT."""

    shape: Shape5
    tile: Shape5

    @property
    def grid(self) -> TileGrid:
        """The tile grid of the level."""
        return TileGrid(self.shape, self.tile)


@dataclass(frozen=True, slots=True)
class Channel:
    """What is known of one channel. `color` is (red, green, blue, alpha), 0 to 255 each."""

    name: str | None = None
    color: tuple[int, int, int, int] | None = None


class PhysicalSize(NamedTuple):
    """Size of a pixel along X, Y, Z; None where unknown."""

    x: Quantity | None = None
    y: Quantity | None = None
    z: Quantity | None = None


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image (a series, a position, a BDV setup) with all its resolution levels.

    Attributes
    ----------
    dtype : numpy.dtype
        Pixel type in native byte order.
    levels : tuple of Level
        Full resolution first.
    name : str
        Name of the image, "" where it has none.
    channels : tuple of Channel
        One per C, or empty where nothing is known.
    samples : int
        Samples of a pixel stored together (3 for RGB); ``C`` is a multiple of it.
    physical_size : PhysicalSize
        Size of a pixel.
    time_increment : Quantity or None
        Time between two time points.
    position : PhysicalSize
        Where the first pixel lies, along X, Y, Z; None where unknown.
    """

    dtype: np.dtype[np.generic]
    levels: tuple[Level, ...]
    name: str = ""
    channels: tuple[Channel, ...] = ()
    samples: int = 1
    physical_size: PhysicalSize = PhysicalSize()
    time_increment: Quantity | None = None
    position: PhysicalSize = PhysicalSize()

    @property
    def shape(self) -> Shape5:
        """Size of the full resolution along Y, X, Z, C, T."""
        return self.levels[0].shape

    def grown(self, t: int) -> ImageSpec:
        """Return the same image with `t` time points."""
        levels = tuple(replace(v, shape=(*v.shape[:4], t)) for v in self.levels)
        return replace(self, levels=levels)


def at_level(spec: ImageSpec, level: int) -> ImageSpec:
    """Return `spec` as seen from one of its levels: fewer, larger pixels."""
    if level == 0:
        return spec
    y, x, z = (_zoom([v.shape[axis] for v in spec.levels[: level + 1]]) for axis in range(3))

    def grow(size: Quantity | None, by: float) -> Quantity | None:
        return None if size is None else (size[0] * by, size[1])

    size = spec.physical_size
    sizes = PhysicalSize(grow(size.x, x), grow(size.y, y), grow(size.z, z))
    return replace(spec, levels=spec.levels[level:], physical_size=sizes)


def picked(spec: ImageSpec, picks: tuple[Span, Span, Span, Span, Span]) -> ImageSpec:
    """Return `spec` as seen through a selection: pixel sizes, origin and channels follow it.

    Every second plane are twice as far apart, a crop begins further in, and only the channels
    that are left keep their names and colours. Where the steps differ, the distance is unknown.

    Parameters
    ----------
    spec : ImageSpec
        The whole image; only its full resolution counts.
    picks : tuple of 5 range or integer array
        Positions along Y, X, Z, C, T.
    """
    y, x, z, c, t = picks
    size, origin = spec.physical_size, spec.position
    along = {"x": (x, size.x, origin.x), "y": (y, size.y, origin.y), "z": (z, size.z, origin.z)}
    channels = tuple(spec.channels[int(k)] for k in c) if spec.channels else ()
    samples = spec.samples if _whole_pixels(c, spec.samples) else 1
    if any(channels[n] != channels[n - n % samples] for n in range(len(channels))):
        samples = 1  # stored like colours, but each has a name of its own
    levels = spec.levels[0]
    shape: Shape5 = (len(y), len(x), len(z), len(c), len(t))
    return replace(
        spec,
        levels=(Level(shape, levels.tile),),
        channels=channels,
        samples=samples,
        physical_size=PhysicalSize(**{a: stepped(q, p) for a, (p, q, _) in along.items()}),
        position=PhysicalSize(**{a: _moved(o, q, p) for a, (p, q, o) in along.items()}),
        time_increment=stepped(spec.time_increment, t),
    )


def stepped(size: Quantity | None, pick: Span) -> Quantity | None:
    """Return the distance of picked positions; None where it is not everywhere the same.

    >>> stepped((0.5, "µm"), range(0, 10, 2)), stepped((0.5, "µm"), np.array([0, 1, 5]))
    ((1.0, 'µm'), None)
    """
    if size is None or len(pick) < 2:
        return size
    if isinstance(pick, range):
        return (size[0] * abs(pick.step), size[1])
    steps = np.unique(np.diff(np.asarray(pick)))
    if len(steps) > 1 or steps[0] == 0:
        return None
    return (size[0] * abs(int(steps[0])), size[1])


def _moved(origin: Quantity | None, size: Quantity | None, pick: Span) -> Quantity | None:
    first = int(pick[0]) if len(pick) else 0
    if not first or size is None:
        return origin
    if origin is None:
        return (first * size[0], size[1])
    step = size[0]
    if origin[1] != size[1]:
        try:
            step = convert_length(step, size[1], origin[1])
        except ValueError:
            return None
    return (origin[0] + first * step, origin[1])


def _whole_pixels(pick: Span, samples: int) -> bool:
    """Return whether picked channels are whole pixels of several samples."""
    if samples == 1 or len(pick) % samples:
        return samples == 1
    groups = np.asarray(pick).reshape(-1, samples)
    return bool((groups == groups[:, :1] // samples * samples + np.arange(samples)).all())


def _zoom(sizes: list[int]) -> float:
    """Return how much larger the pixels of the last level are, by the sizes of all before it.

    >>> _zoom([9, 5, 3]), _zoom([155, 78, 38])
    (4.0, 4.0)
    """
    steps = [_factor(large, small) for large, small in pairwise(sizes)]
    if all(step.is_integer() for step in steps):
        return math.prod(steps)
    return _factor(sizes[0], sizes[-1])


def _factor(full: int, small: int) -> float:
    """Return how much larger the pixels of a level are: the whole number that was meant.

    >>> _factor(155, 78), _factor(155, 77), _factor(155, 60)
    (2.0, 2.0, 2.5833333333333335)
    """
    ratio = full / small
    if not ratio.is_integer():  # the last pixel of a row was left out, or is only half there
        for k in (1 << max(0, round(math.log2(ratio))), int(ratio), int(ratio) + 1):
            if k and small in (full // k, -(-full // k)):
                return float(k)
    return ratio


def pyramid_levels(
    shape: Shape5,
    tile: Shape5,
    count: int | None,
    *,
    voxel: tuple[float, float, float] | None = None,
    smallest: int = 256,
    multiple: int = 16,
) -> tuple[Level, ...]:
    """Return the full resolution and the levels below it, each half as large.

    Parameters
    ----------
    shape, tile : Shape5
        Size of the image and of its tiles; tiles of a level are no larger than it needs.
    count : int or None
        Levels in all; None goes down until a plane is no larger than `smallest`.
    voxel : (float, float, float), optional
        Size of a pixel along Y, X, Z, in one unit: the axis or axes along which it is smallest
        are halved, so that voxels become cubes. By default Y and X are halved, Z is not.
    smallest : int
        Where to stop, in pixels.
    multiple : int
        Tiles of small levels are this much, or a multiple of it.

    Examples
    --------
    >>> [v.shape[:2] for v in pyramid_levels((1025, 600, 1, 1, 1), (512, 512, 1, 1, 1), None)]
    [(1025, 600), (513, 300), (257, 150), (129, 75)]
    >>> stack = pyramid_levels((512, 512, 40, 1, 1), (64,) * 5, 4, voxel=(0.5, 0.5, 1.0))
    >>> [v.shape[:3] for v in stack]
    [(512, 512, 40), (256, 256, 40), (128, 128, 20), (64, 64, 10)]
    """
    levels = [Level(shape, tile)]
    sizes = voxel
    while len(levels) < count if count is not None else max(levels[-1].shape[:2]) > smallest:
        y, x, z, c, t = levels[-1].shape
        fy, fx, fz = _halved(sizes)
        smaller = (-(-y // fy), -(-x // fx), -(-z // fz), c, t)
        if sizes is not None:
            sizes = (sizes[0] * fy, sizes[1] * fx, sizes[2] * fz)
        if smaller == levels[-1].shape:
            break
        levels.append(Level(smaller, fit_tile(smaller, tile, multiple)))
    return tuple(levels)


def _halved(sizes: tuple[float, float, float] | None) -> tuple[int, int, int]:
    """Return the factor along Y, X, Z for pixels of these sizes."""
    if sizes is None:
        return (2, 2, 1)
    least = min(sizes) * math.sqrt(2)  # what lies within half a step counts as equal
    y, x, z = (2 if size < least else 1 for size in sizes)
    return (y, x, z)


def fit_tile(shape: Shape5, tile: Shape5, multiple: int = 16) -> Shape5:
    """Return `tile`, but no larger than a small image needs.

    >>> fit_tile((100, 3000, 1, 1, 1), (1024, 1024, 1, 1, 1))
    (112, 1024, 1, 1, 1)
    >>> fit_tile((100, 3000, 5, 1, 1), (1024, 1024, 8, 1, 1), multiple=1)
    (100, 1024, 5, 1, 1)
    """
    y, x = (min(n, -(-s // multiple) * multiple) for s, n in zip(shape[:2], tile[:2], strict=True))
    z, c, t = (min(s, n) for s, n in zip(shape[2:], tile[2:], strict=True))
    return (y, x, z, c, t)
