"""Cells: a field of tissue of any size, as a microscope would show it, made region by region.

Every pixel follows from its place alone, so that regions can be made in any order and on any
number of threads, and made again to check what was written.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CHANNELS: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("DAPI", (70, 120, 255)),
    ("Actin", (255, 70, 60)),
    ("Tubulin", (60, 220, 90)),
    ("CD31", (255, 190, 50)),
)
UM_PER_PIXEL = 0.325

_STAMP = 88  # pixels of the square a cell is drawn in
_PITCH = 52  # mean distance of cells
_LOOKS = 24
_GRID = 16  # slow fields are computed every so many pixels
_OFFSET, _READ_NOISE, _GAIN = 100.0, 4.0, 2.2
_NOISE = (1021, 2039)  # size of the noise pattern, which repeats
_WIDE = 2032
_BRIGHT = (2600.0, 1500.0, 1900.0, 3000.0)
_GLOW = (35.0, 90.0, 70.0, 45.0)  # out of focus, where there is tissue


class Cells:
    """A field of `height` x `width` pixels with four channels of uint16.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    seed : int
        Another number gives another field.
    """

    def __init__(self, height: int, width: int, seed: int = 7) -> None:
        self.height, self.width = height, width
        rng = np.random.default_rng(seed)
        self._salt = rng.integers(1, 2**62, dtype=np.uint64)
        self._tissue = _Waves(rng, 5200, 9)
        self._vessels = _Waves(rng, 3400, 7)
        self._capillaries = _Waves(rng, 760, 9)
        self._kinds = _Waves(rng, 2300, 8)
        self._stamps = _stamps(rng)
        noise = rng.standard_normal(_NOISE).astype(np.float32)
        self._noise = np.concatenate([noise, noise[:, :_WIDE]], axis=1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (len(CHANNELS), self.height, self.width)

    def pixels(self, channel: int, rows: slice, columns: slice) -> NDArray[np.uint16]:
        """Return a region of a channel."""
        counts = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.uint16)
        for left in range(columns.start, columns.stop, _WIDE):  # what fits into the CPU's cache
            right = min(left + _WIDE, columns.stop)
            ys, xs = np.arange(rows.start, rows.stop), np.arange(left, right)
            light = self._light(channel, ys, xs)
            sigma = light * np.float32(_GAIN)
            sigma += _READ_NOISE**2
            np.sqrt(sigma, out=sigma)
            start = (left + 701 * channel) % _NOISE[1]
            sigma *= self._noise[(ys + 313 * channel) % _NOISE[0], start : start + len(xs)]
            light += sigma
            light += _OFFSET  # far more than the noise of a dark pixel: never below 0
            counts[:, left - columns.start : right - columns.start] = light
        return counts

    def _light(self, channel: int, ys: NDArray[Any], xs: NDArray[Any]) -> NDArray[np.float32]:
        """Return how bright a region is, without noise."""
        points = _grid(ys)[:, None], _grid(xs)[None, :]
        density, vessels = _density(self._tissue(*points)), self._vessels(*points)
        lumen = _step((0.10 - np.abs(vessels)) / 0.02)
        glow = density * (1 - 0.9 * lumen) * _GLOW[channel]
        light = _between(glow.astype(np.float32), ys, xs)
        if channel == 3:
            wall = _ridge(_between(vessels, ys, xs), 0.115, 0.016)
            fine = _ridge(_between(self._capillaries(*points), ys, xs), 0, 0.045)
            fine *= _between(density * np.float32(0.55), ys, xs)
            wall += fine
            wall *= _BRIGHT[3]
        else:
            wall = np.zeros_like(light)
            for top, left, look, bright in self._places(channel, ys, xs):
                _stamp(wall, self._stamps[look][channel], top, left, bright)
            wall *= _BRIGHT[channel]
        light += wall
        return light

    def _places(self, channel: int, ys: Any, xs: Any) -> Iterator[tuple[int, int, int, float]]:
        """Yield corner in the region, look and brightness of each cell that reaches into it."""
        rows = np.arange((ys[0] - 2 * _STAMP) // _PITCH, ys[-1] // _PITCH + 2)[:, None]
        columns = np.arange((xs[0] - 2 * _STAMP) // _PITCH, xs[-1] // _PITCH + 2)[None, :]
        dice = [_hash(rows, columns, int(self._salt) + n) for n in range(5)]
        y = rows * _PITCH + (dice[0] * 38).astype(int) + (columns % 2) * (_PITCH // 2)
        x = columns * _PITCH + (dice[1] * 38).astype(int)
        there = dice[2] < _density(self._tissue(y, x)) * 1.05 - 0.08
        there &= np.abs(self._vessels(y, x)) > 0.13
        there &= (y + _STAMP > ys[0]) & (y <= ys[-1]) & (x + _STAMP > xs[0]) & (x <= xs[-1])
        tops = (y - ys[0])[there].tolist()
        lefts = (x - xs[0])[there].tolist()
        looks = (dice[3] * 8 * _LOOKS).astype(int)[there].tolist()
        bright = 0.45 + 0.55 * ((dice[4] + 0.37 * channel) % 1)
        if channel:  # cells of one kind keep together
            kind = _step(0.5 + 0.8 * self._kinds(y, x) + 0.3 * (dice[3] - 0.5))
            bright = bright * (0.22 + 0.78 * (kind if channel == 1 else 1 - kind))
        bright = bright[there].tolist()
        return zip(tops, lefts, looks, bright, strict=True)


class _Waves:
    """A smooth random field between about -1 and 1: a sum of plane waves."""

    def __init__(self, rng: np.random.Generator, length: float, count: int) -> None:
        angles = (np.arange(count) + rng.uniform(0, 1, count)) * (math.pi / count)
        waves = 2 * math.pi / (length * rng.uniform(0.6, 1.5, count))
        self._parts = [
            (float(w * math.sin(a)), float(w * math.cos(a)), float(p))
            for a, w, p in zip(angles, waves, rng.uniform(0, 2 * math.pi, count), strict=True)
        ]

    def __call__(self, y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.float32]:
        total: NDArray[np.float64] = np.zeros(np.broadcast_shapes(y.shape, x.shape))
        for along_y, along_x, phase in self._parts:
            total += np.sin(along_y * y + along_x * x + phase)
        total *= 1.4 / math.sqrt(len(self._parts))
        return total.astype(np.float32)


def _density(waves: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(0.12 + 0.88 * _step(waves * 0.9 + 0.75), np.float32)


def _ridge(values: NDArray[np.float32], at: float, width: float) -> NDArray[np.float32]:
    """Return a bell around where the values are `at` or ``-at``."""
    away = np.abs(values)
    away -= np.float32(at)
    away *= np.float32(1 / width)
    away *= -away
    bell: NDArray[np.float32] = np.exp(away, out=away)
    return bell


def _step(values: NDArray[Any]) -> NDArray[Any]:
    """Return 0 below 0, 1 above 1 and a smooth way between."""
    v = np.clip(values, 0, 1)
    smooth: NDArray[Any] = v * v * (3 - 2 * v)
    return smooth


def _grid(positions: NDArray[Any]) -> NDArray[Any]:
    """Return the coarse positions around a run of pixels."""
    return np.arange(positions[0] // _GRID, positions[-1] // _GRID + 2) * _GRID


def _between(
    coarse: NDArray[np.float32], ys: NDArray[Any], xs: NDArray[Any]
) -> NDArray[np.float32]:
    """Return the values at all pixels of a region from those at the coarse positions."""
    # no matrix product: its last bit depends on the size of the region
    across = _stretched(np.ascontiguousarray(coarse.T), xs)
    return _stretched(np.ascontiguousarray(across.T), ys)


def _stretched(coarse: NDArray[np.float32], positions: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows at all positions from those at the coarse ones."""
    share = (np.arange(_GRID) / _GRID).astype(np.float32)[:, None]
    steps: NDArray[np.float32] = coarse[:-1, None] * (1 - share)
    steps += coarse[1:, None] * share
    first = positions[0] % _GRID
    return steps.reshape(-1, coarse.shape[1])[first : first + len(positions)]


def _hash(rows: NDArray[Any], columns: NDArray[Any], salt: int) -> NDArray[np.float64]:
    """Return a number from 0 to 1 for each place, always the same one (splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = mixed ^ (columns.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F))
        mixed = mixed + np.uint64(salt % 2**64) * np.uint64(0xD6E8FEB86659FD93)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed / 2.0**64


# --- the looks of single cells -------------------------------------------------------------------


def _stamp(
    canvas: NDArray[np.float32], stamp: NDArray[np.float32], top: int, left: int, bright: float
) -> None:
    """Lay a cell onto the canvas; where cells overlap the brighter one shows."""
    y, x = max(0, top), max(0, left)
    area = canvas[y : top + _STAMP, x : left + _STAMP]
    part = stamp[y - top : y - top + area.shape[0], x - left : x - left + area.shape[1]]
    np.maximum(area, part * np.float32(bright), out=area)


def _stamps(rng: np.random.Generator) -> list[list[NDArray[np.float32]]]:
    """Return cells in eight orientations each: nucleus, cortex with fibres, filaments."""
    found = []
    for _ in range(_LOOKS):
        cell = _cell(rng)
        for turned in (cell, [part.T for part in cell]):
            for flipped in (turned, [part[::-1] for part in turned]):
                found.append([np.ascontiguousarray(part) for part in flipped])
                found.append([np.ascontiguousarray(part[:, ::-1]) for part in flipped])
    return found


def _cell(rng: np.random.Generator) -> list[NDArray[np.float32]]:
    axis = np.arange(_STAMP) - (_STAMP - 1) / 2
    y, x = axis[:, None], axis[None, :]
    turn = rng.uniform(0, math.pi)
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    angle = np.arctan2(v, u)

    long, short = rng.uniform(15, 19), rng.uniform(10.5, 14)
    nucleus = _step((1.08 - np.hypot(u / long, v / short)) / 0.22)
    texture = _blurred(rng, 2.2)
    chromatin = nucleus * (0.72 + 0.3 * texture)
    for _ in range(int(rng.integers(1, 4))):
        spot = np.hypot(u - rng.uniform(-7, 7), v - rng.uniform(-5, 5))
        chromatin = chromatin * (1 - 0.5 * np.exp(-((spot / 2.6) ** 2)))

    edge = 30.0 + sum(
        rng.uniform(0.5, 3.4) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5)
    )
    away = np.hypot(u * 0.86, v * 1.12) - edge
    inside = _step(-away / 4)
    cortex = np.exp(-((away / 1.9) ** 2)) * (0.75 + 0.25 * texture)
    fibre = rng.uniform(0, math.pi)
    stripes = 0.5 + 0.5 * np.sin(
        (x * math.sin(fibre) - y * math.cos(fibre)) * 1.25 + 2.0 * _blurred(rng, 7)
    )
    actin = cortex + inside * (0.10 + 0.33 * stripes**4)

    rays = 0.5 + 0.5 * np.cos(23 * angle + 3.2 * _blurred(rng, 6) + 0.12 * np.hypot(u, v))
    mesh = np.clip(rays**3 + 0.35 * _blurred(rng, 1.5), 0, 1.4)
    reach = np.exp(-(np.clip(np.hypot(u, v) - 15, 0, None) / 13))
    tubulin = inside * (1 - 0.75 * nucleus) * (0.14 + 0.95 * mesh * reach)
    return [np.clip(part, 0, 2).astype(np.float32) for part in (chromatin, actin, tubulin)]


def _blurred(rng: np.random.Generator, sigma: float) -> NDArray[np.float64]:
    """Return smooth noise of mean 0 and deviation 1."""
    waves = np.fft.fftfreq(_STAMP)
    keep = np.exp(-2 * (math.pi * sigma) ** 2 * (waves[:, None] ** 2 + waves[None, :] ** 2))
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((_STAMP, _STAMP))) * keep).real
    scaled: NDArray[np.float64] = (noise - noise.mean()) / noise.std()
    return scaled
