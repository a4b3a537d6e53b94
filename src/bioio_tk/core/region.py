"""Region: an axis-aligned 5-D box in YXZCT pixel coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bioio_tk.errors import RegionError

Shape5: TypeAlias = tuple[int, int, int, int, int]
Slices5: TypeAlias = tuple[slice, slice, slice, slice, slice]

AXES = "YXZCT"


@dataclass(frozen=True, slots=True)
class Region:
    """A half-open box ``start <= index < stop`` along Y, X, Z, C, T.

    Parameters
    ----------
    start, stop : tuple of 5 int
        Corners in pixels, in YXZCT order. Never negative, never empty.
    """

    start: Shape5
    stop: Shape5

    def __post_init__(self) -> None:
        for axis, lo, hi in zip(AXES, self.start, self.stop, strict=True):
            if not 0 <= lo < hi:
                raise RegionError(f"{axis} range {lo}:{hi} is empty or negative")

    @classmethod
    def whole(cls, shape: Shape5) -> Region:
        """Return the region that covers an image of `shape`."""
        return cls((0, 0, 0, 0, 0), shape)

    @property
    def shape(self) -> Shape5:
        """Size along Y, X, Z, C, T in pixels."""
        y, x, z, c, t = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return (y, x, z, c, t)

    def slices(self) -> Slices5:
        """Return the slices that cut this box out of the whole image."""
        y, x, z, c, t = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return (y, x, z, c, t)
