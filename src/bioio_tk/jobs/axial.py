"""Axial registration: how far each plane of a stack lies beside the one before."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioio_tk.errors import BioIOWarning, RegionError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.engine.copy import Progress, View
    from bioio_tk.lazy import LazyArray

SHIFTS = "plane_shifts"
PARAMS = "plane_shifts_params"
"""Names in metadata, as mbo_utilities has them."""

_CLEARLY = 1.2
"""How much higher a peak beyond the radius must be to be taken for the true one."""


@dataclass(frozen=True, eq=False)
class AxialShifts:
    """How far each plane has to be moved to lie on the first one.

    Attributes
    ----------
    shifts : numpy.ndarray of int, (Z, 2)
        For each plane how far it moves down (Y) and to the right (X); plane 0 stays.
    peaks : numpy.ndarray of float, (Z,)
        How clear each was found, 0 to 1: the height of the peak of phase correlation, 1 for plane
        0, which nothing is compared with.
    borders : tuple of int
        Planes whose peak lies on the border of what was searched, or beyond it: they have moved
        further, and all planes behind them with them.
    empty : tuple of int
        Planes without contrast, taken to lie where the one before lies.
    params : dict
        How it was done.
    """

    shifts: NDArray[np.int64]
    peaks: NDArray[np.float64]
    borders: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.shifts, dtype, copy=copy)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to look at before the shifts are applied; one line each."""
        found = []
        if self.borders:
            radius = self.params.get("max_reg_xy")
            found.append(
                f"axial registration: the shift of plane {_listed(self.borders)} (from 0) lies on "
                f"the border of what was searched or beyond: raise max_reg_xy={radius}"
            )
        if self.empty:
            found.append(
                f"axial registration: plane {_listed(self.empty)} (from 0) has no contrast and was "
                "not moved against the one before"
            )
        return tuple(found)

    def picked(self, planes: Any) -> AxialShifts:
        """Return the shifts of some planes, counted from the first of them.

        Parameters
        ----------
        planes : slice or sequence of int
            Positions along Z.
        """
        rows = np.arange(len(self.shifts))[planes]
        if not rows.size:
            raise RegionError(f"planes {planes!r:.60}: none of {len(self.shifts)} is picked")
        return AxialShifts(
            self.shifts[rows] - self.shifts[rows[0]],
            self.peaks[rows],
            tuple(n for n, z in enumerate(rows.tolist()) if z in self.borders),
            tuple(n for n, z in enumerate(rows.tolist()) if z in self.empty),
            dict(self.params),
        )

    def to_metadata(self) -> dict[str, Any]:
        """Return the shifts as metadata of an image, in types that JSON has."""
        return {
            SHIFTS: self.shifts.tolist(),
            PARAMS: {
                **self.params,
                "peaks": [round(float(p), 4) for p in self.peaks],
                "borders": list(self.borders),
                "empty": list(self.empty),
            },
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], planes: int | None = None) -> AxialShifts:
        """Return the shifts that `to_metadata` put there.

        Parameters
        ----------
        metadata : mapping
            Metadata with ``plane_shifts``.
        planes : int, optional
            How many planes there must be.

        Raises
        ------
        SpecError
            There are none, or they are no pair of whole numbers for each plane.
        """
        shifts = _valid(metadata.get(SHIFTS), planes)
        given = metadata.get(PARAMS)
        params = dict(given) if isinstance(given, Mapping) else {}
        peaks = params.pop("peaks", None) or [float("nan")] * len(shifts)
        borders, empty = (tuple(params.pop(name, ())) for name in ("borders", "empty"))
        return cls(shifts, np.asarray(peaks, np.float64), borders, empty, params)


def validate_axial_shifts(metadata: Mapping[str, Any], planes: int) -> bool:
    """Return whether metadata hold axial shifts that fit an image of so many planes."""
    try:
        AxialShifts.from_metadata(metadata, planes)
    except SpecError:
        return False
    return True


def axial_shifts(
    image: LazyArray,
    *,
    max_frames: int = 200,
    chunk_frames: int = 10,
    max_reg_xy: int = 30,
    smooth_sigma: float = 1.15,
    channel: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AxialShifts:
    """Measure how far the planes of a stack lie beside each other, in whole pixels.

    Of each plane the mean over time is compared with that of the plane before by phase correlation
    (Kuglin and Hines, 1975), and the shifts are added up. Memory holds a few planes.

    Parameters
    ----------
    image : LazyArray
        The stack; see `bioio_tk.imread`.
    max_frames : int
        Time points to average, evenly spaced.
    chunk_frames : int
        Time points read at a time.
    max_reg_xy : int
        Furthest a plane may lie beside the one before, in pixels along Y and X.
    smooth_sigma : float
        Width in pixels over which the correlation is smoothed; 0 for not at all.
    channel : int
        Which channel to look at, from 0.
    workers : int, optional
        Threads to read with.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes.

    Returns
    -------
    AxialShifts
        With `shifts` for `bioio_tk.with_axial_shifts`.

    Warns
    -----
    BioIOWarning
        A peak lies on the border of what was searched or beyond; the planes are named.

    Examples
    --------
    >>> found = axial_shifts(imread("stack.ome.tif"))                     # doctest: +SKIP
    >>> straight = with_axial_shifts(imread("stack.ome.tif"), found.shifts)  # doctest: +SKIP
    """
    _check_count("max_frames", max_frames)
    _check_count("chunk_frames", chunk_frames)
    _check_count("max_reg_xy", max_reg_xy)
    view = image.view()
    height, width, planes, channels, frames = view.shape
    if not 0 <= channel < channels:
        raise RegionError(f"channel={channel} does not exist: the image has C={channels}")
    times = np.unique(np.linspace(0, frames - 1, min(frames, max_frames)).round().astype(int))
    search = _Search(height, width, max_reg_xy, smooth_sigma)
    mean = _Mean(view, channel, times, chunk_frames, progress)
    steps = np.zeros((planes, 2), np.int64)
    peaks = np.ones(planes)
    empty, borders = [], []
    before: NDArray[Any] | None = None
    for z in range(planes):
        spectrum = search.spectrum(
            mean(z, image.reader.max_workers if workers is None else workers)
        )
        if spectrum is None:
            empty.append(z)
            peaks[z] = 0.0
        elif before is not None:
            found = search.shift(before, spectrum)
            steps[z], peaks[z] = found.step, found.clear
            if found.at_border:
                borders.append(z)
        before = before if spectrum is None else spectrum
    shifts = AxialShifts(
        np.cumsum(steps, axis=0),
        peaks,
        tuple(borders),
        tuple(empty),
        {
            "max_frames": max_frames,
            "chunk_frames": chunk_frames,
            "max_reg_xy": max_reg_xy,
            "smooth_sigma": smooth_sigma,
            "channel": channel,
            "frames": len(times),
        },
    )
    if borders:
        warnings.warn(shifts.notes[0], BioIOWarning, stacklevel=2)
    return shifts


class _Mean:
    """Gives the mean of each plane over some time points, read a few at a time."""

    def __init__(
        self,
        view: View,
        channel: int,
        times: NDArray[np.intp],
        chunk: int,
        progress: Progress | None,
    ) -> None:
        # of the view a view: the one channel, and the time points to look at
        y, x, z, c, t = view.picks
        here = np.asarray(t)[times]
        self._view = view._replace(picks=(y, x, z, c[channel : channel + 1], here))
        self._chunk = chunk
        self._progress = progress
        self._done = 0

    def __call__(self, z: int, workers: int) -> NDArray[np.float64]:
        height, width, *_, frames = self._view.shape
        total = np.zeros((height, width))
        for start in range(0, frames, self._chunk):
            stop = min(frames, start + self._chunk)
            box = (
                slice(0, height),
                slice(0, width),
                slice(z, z + 1),
                slice(0, 1),
                slice(start, stop),
            )
            pixels = self._view.read(box, workers)
            total += pixels.sum(axis=(2, 3, 4), dtype=np.float64)
            self._done += pixels.nbytes
            if self._progress is not None:
                self._progress(self._done, self._view.nbytes)
        return total / frames


class _Step(NamedTuple):
    """How far a plane is moved, how clear that is, and whether it may have to be moved further."""

    step: tuple[int, int]
    clear: float
    at_border: bool


class _Search:
    """Phase correlation of two planes, within a radius."""

    def __init__(self, height: int, width: int, radius: int, sigma: float) -> None:
        # further than half the image a shift cannot be told from one the other way
        self._radius = tuple(min(radius, (n - 1) // 2) for n in (height, width))
        self._shape = (height, width)
        self._taper = np.outer(*(_taper(n) for n in self._shape))
        fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
        self._smooth = np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2))
        weight = np.fft.irfft2(self._smooth, self._shape)
        self._highest = float(weight.max())

    def spectrum(self, plane: NDArray[np.float64]) -> NDArray[np.complex128] | None:
        """Return the spectrum of a plane whose borders fade out; None where it is all the same."""
        plane = np.nan_to_num(plane, copy=False, posinf=0.0, neginf=0.0)
        low, high = plane.min(), plane.max()
        if low == high:
            return None
        # the largest is 1: no product of two overflows
        return np.fft.rfft2((plane - plane.mean()) / (high - low) * self._taper)

    def shift(self, before: NDArray[np.complex128], plane: NDArray[np.complex128]) -> _Step:
        """Return how far a plane has to be moved to lie on the one before."""
        cross = before * plane.conj()
        size = np.abs(cross)
        np.divide(cross, size, out=cross, where=size > 0)
        found = np.fft.irfft2(cross * self._smooth, self._shape)
        ry, rx = self._radius
        near = np.roll(found, (ry, rx), axis=(0, 1))[: 2 * ry + 1, : 2 * rx + 1]
        peak = float(near.max())
        dy, dx = (int(n) for n in np.unravel_index(int(near.argmax()), near.shape))
        at_border = (ry > 0 and dy in (0, 2 * ry)) or (rx > 0 and dx in (0, 2 * rx))
        beyond = float(found.max()) > _CLEARLY * peak
        clear = min(1.0, max(0.0, peak / self._highest))
        return _Step((dy - ry, dx - rx), clear, at_border or beyond)


def _taper(size: int) -> NDArray[np.float64]:
    """Return weights that fade to 0 over an eighth of an axis at both ends.

    Without them the jump from one border of a plane to the other, which the Fourier transform sees
    at the same place in all planes, would speak for a shift of 0.
    """
    fade = max(1, size // 8)
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    return np.asarray(np.sin(np.pi / 2 * np.minimum(1.0, distance / fade)) ** 2)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{name}={value!r}: give a whole number of 1 or more")


def _valid(shifts: Any, planes: int | None) -> NDArray[np.int64]:
    if shifts is None:
        raise SpecError(f"there are no axial shifts in the metadata (no {SHIFTS!r})")
    try:
        rows = np.asarray(shifts, np.float64)
        whole = rows.astype(np.int64) if np.isfinite(rows).all() else np.empty(0, np.int64)
    except (TypeError, ValueError):
        rows, whole = np.empty(0), np.empty(1, np.int64)
    if rows.ndim != 2 or rows.shape[1:] != (2,) or not np.array_equal(rows, whole):
        raise SpecError(
            f"{SHIFTS}={shifts!r:.80}: give a pair of whole numbers (y, x) for each plane"
        )
    if planes is not None and len(rows) != planes:
        raise SpecError(f"{SHIFTS} has {len(rows)} planes, the image has Z={planes}")
    return whole


def _listed(planes: tuple[int, ...]) -> str:
    return ", ".join(map(str, planes))
