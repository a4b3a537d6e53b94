"""CoordUpdate: how far along each axis an acquisition has come, by the names of the axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class CoordUpdate:
    """What a listener is told about frames that were appended or skipped.

    Attributes
    ----------
    max_coords : mapping of str to sequence
        For each axis the coordinates reached so far: names of channels and positions, or numbers.
    current_indices : mapping of str to int
        Where the last of the frames lies along each axis, 0 along Y and X.
    frame_number : int
        Number of the last of the frames, from 0, positions and all.
    is_high_water_mark : bool
        With these frames `max_coords` has grown.
    """

    max_coords: Mapping[str, Sequence[Any]]
    current_indices: Mapping[str, int]
    frame_number: int
    is_high_water_mark: bool


class ViewAxis(NamedTuple):
    """One axis of an acquisition, as who looks at it knows it.

    Attributes
    ----------
    name : str
        As the user calls it.
    size : int or None
        None where nobody knows; only the first one.
    labels : tuple or None
        A name or a number for each index; None where they are just counted.
    """

    name: str
    size: int | None
    labels: tuple[Any, ...] | None = None


def view_axes(dimensions: Iterable[Any]) -> tuple[ViewAxis, ...]:
    """Return the axes of an acquisition from its `Dimension`s, in the order of acquisition."""
    axes = []
    for dimension in dimensions:
        coords = dimension.coords
        labels = tuple(getattr(c, "name", c) for c in coords) if coords else None
        axes.append(ViewAxis(dimension.name, dimension.count, labels))
    return tuple(axes)


class CoordTracker:
    """Says which coordinates the first so many frames have reached.

    It remembers nothing, so that it costs nothing while nobody asks: frames come in the order of
    the axes, and from their number follows all the rest.

    Parameters
    ----------
    axes : sequence of ViewAxis
        All axes, the slowest first, Y and X last.

    Examples
    --------
    >>> axes = (ViewAxis("t", None), ViewAxis("c", 2, ("DAPI", "GFP")), ViewAxis("y", 8))
    >>> tracker = CoordTracker((*axes, ViewAxis("x", 9)))
    >>> tracker.reached(1), tracker.reached(3)
    ((1, 1), (2, 2))
    >>> tracker.coords(1)
    {'t': range(0, 1), 'c': ['DAPI'], 'y': range(0, 8), 'x': range(0, 9)}
    """

    def __init__(self, axes: Sequence[ViewAxis]) -> None:
        self.axes = tuple(axes)
        self._sizes = tuple(axis.size for axis in self.axes[:-2])
        self.steps = tuple(
            math.prod(size or 1 for size in self._sizes[k + 1 :]) for k in range(len(self._sizes))
        )
        """Frames from one index of an axis to the next; of all axes but Y and X."""

    def reached(self, frames: int) -> tuple[int, ...]:
        """Return the size along each axis but Y and X that the first `frames` frames reach."""
        return tuple(
            -(-frames // step) if size is None else min(size, -(-frames // step))
            for size, step in zip(self._sizes, self.steps, strict=True)
        )

    def coords(self, frames: int) -> dict[str, Sequence[Any]]:
        """Return the coordinates that the first `frames` frames reach, by the name of the axis."""
        return self.named((*self.reached(frames), *(axis.size or 0 for axis in self.axes[-2:])))

    def named(self, shape: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Return the first coordinates of each axis, by its name."""
        return {
            axis.name: range(size) if axis.labels is None else list(axis.labels[:size])
            for axis, size in zip(self.axes, shape, strict=True)
        }

    def indices(self, frame: int) -> dict[str, int]:
        """Return where a frame lies along each axis, by its name."""
        found = {}
        for axis, step in zip(self.axes, self.steps, strict=False):
            found[axis.name], frame = divmod(frame, step)
        return found | {axis.name: 0 for axis in self.axes[-2:]}

    def next_expansion(self, frame: int) -> int | None:
        """Return the first frame from `frame` on with which the coordinates grow, if there is."""
        found = None
        for size, step in zip(self._sizes, self.steps, strict=True):
            index = -(-frame // step)
            if size is None or index < size:
                found = index * step if found is None else min(found, index * step)
        if not self._sizes and frame == 0:
            return 0
        return found

    def update(self, first: int, count: int = 1) -> CoordUpdate:
        """Return what is new with frames `first` to ``first + count - 1``."""
        last = first + count - 1
        expansion = self.next_expansion(first)
        return CoordUpdate(
            max_coords=self.coords(last + 1),
            current_indices=self.indices(last),
            frame_number=last,
            is_high_water_mark=expansion is not None and expansion <= last,
        )
