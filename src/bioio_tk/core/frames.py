"""FrameOrder: the order in which a microscope takes the planes of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

UNBOUNDED = 1 << 40
"""Size of an axis of which nobody knows the end."""


class FrameAxis(NamedTuple):
    """One axis of an acquisition.

    Attributes
    ----------
    letter : str
        The axis of the image it runs along: Z, C or T.
    size : int
        Its positions; `UNBOUNDED` for the slowest one if nobody knows.
    step : int
        How far one of its positions goes along `letter`: 1, unless several axes share it, as two
        cameras and three filters share C.
    """

    letter: str
    size: int
    step: int = 1


@dataclass(frozen=True)
class FrameOrder:
    """The order in which the planes of one image are taken.

    Parameters
    ----------
    axes : tuple of FrameAxis
        The slowest first. Where several share a letter, the slowest of them has the largest step.

    Examples
    --------
    >>> order = FrameOrder((FrameAxis("T", 5), FrameAxis("Z", 3), FrameAxis("C", 2)))
    >>> order.key(7), order.plane(0, 1, 1), order.extent(7)
    ((0, 1, 1), 7, (3, 2, 2))
    """

    axes: tuple[FrameAxis, ...]

    @cached_property
    def cycle(self) -> int:
        """Planes that are taken before the slowest axis moves on."""
        return math.prod(axis.size for axis in self.axes[1:])

    @property
    def planes(self) -> int:
        """Planes in all, `UNBOUNDED` or more where nobody knows."""
        return math.prod(axis.size for axis in self.axes)

    @property
    def unbounded(self) -> bool:
        """Nobody knows how many planes there will be."""
        return bool(self.axes) and self.axes[0].size >= UNBOUNDED

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Size along Z, C, T when all planes are taken."""
        return self._sizes([axis.size for axis in self.axes])

    def key(self, plane: int) -> tuple[int, int, int]:
        """Return the position along Z, C, T of a plane, by its number."""
        z = c = t = 0
        for letter, size, step in reversed(self.axes):
            plane, index = divmod(plane, size)
            if letter == "T":
                t += index * step
            elif letter == "C":
                c += index * step
            else:
                z += index * step
        return z, c, t

    def plane(self, z: int, c: int, t: int) -> int:
        """Return the number of the plane at a position along Z, C, T."""
        at = {"Z": z, "C": c, "T": t}
        number = 0
        for letter, size, step in self.axes:
            index = at[letter] // step
            number = number * size + (index if size >= UNBOUNDED else index % size)
        return number

    def extent(self, planes: int) -> tuple[int, int, int]:
        """Return the size along Z, C, T of the image that holds the first `planes` planes.

        Only the slowest axis is cut: of all others everything is there as soon as it moves on.
        """
        if not self.axes:
            return (1, 1, 1)
        first = max(1, -(-planes // self.cycle))
        return self._sizes([min(first, self.axes[0].size), *(axis.size for axis in self.axes[1:])])

    def _sizes(self, counts: list[int]) -> tuple[int, int, int]:
        size = {"Z": 1, "C": 1, "T": 1}
        for axis, count in zip(self.axes, counts, strict=True):
            size[axis.letter] += (count - 1) * axis.step
        return size["Z"], size["C"], size["T"]


@dataclass(frozen=True)
class FrameRoute:
    """Which position and which plane the frames of an acquisition belong to, in the order taken.

    Parameters
    ----------
    sizes : tuple of int
        Of all axes but Y and X, the slowest first, the positions among them; the first may be
        `UNBOUNDED`.
    position_axis : int or None
        Which of them runs over the positions.

    Examples
    --------
    >>> route = FrameRoute((4, 2, 3), position_axis=1)  # time, position, channel
    >>> route.locate(10), route.number(1, 4)
    ((1, 4), 10)
    """

    sizes: tuple[int, ...]
    position_axis: int | None = None

    @cached_property
    def total(self) -> int:
        """Frames in all, `UNBOUNDED` or more where nobody knows."""
        return math.prod(self.sizes)

    @cached_property
    def _steps(self) -> tuple[int, int]:
        """Return the number of positions, and the frames taken at one before the next."""
        if self.position_axis is None:
            return 1, 1
        return self.sizes[self.position_axis], math.prod(self.sizes[self.position_axis + 1 :])

    def locate(self, number: int) -> tuple[int, int]:
        """Return the position of a frame, and the number of its plane there."""
        positions, inner = self._steps
        if positions == 1:
            return 0, number
        outer, rest = divmod(number, positions * inner)
        position, plane = divmod(rest, inner)
        return position, outer * inner + plane

    def stay(self, number: int) -> int:
        """Return how many frames from `number` on are taken before the position changes."""
        positions, inner = self._steps
        return self.total - number if positions == 1 else inner - number % inner

    def number(self, position: int, plane: int) -> int:
        """Return the number of the frame that is a plane of a position."""
        positions, inner = self._steps
        outer, rest = divmod(plane, inner)
        return (outer * positions + position) * inner + rest

    def planes(self, frames: int) -> tuple[int, ...]:
        """Return how many planes each position has when `frames` were taken."""
        positions, inner = self._steps
        outer, rest = divmod(frames, positions * inner)
        return tuple(outer * inner + min(max(rest - p * inner, 0), inner) for p in range(positions))

    def indices(self, number: int) -> tuple[int, ...]:
        """Return the position of a frame along each axis."""
        found = []
        for size in reversed(self.sizes):
            number, index = divmod(number, size)
            found.append(index)
        return tuple(reversed(found))
