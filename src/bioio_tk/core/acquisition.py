"""AcquisitionPlan: what a microscope is going to record, in the terms of files and images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bioio_tk.core.frames import FrameOrder
from bioio_tk.core.plate import Plate
from bioio_tk.core.region import Shape5
from bioio_tk.core.spec import ImageSpec


@dataclass(frozen=True, slots=True)
class StoredAxis:
    """One axis of the stored arrays.

    Attributes
    ----------
    name : str
        As the user calls it: "t", "cam".
    kind : str
        ``time``, ``channel``, ``space`` or what else the user said.
    letter : str
        The axis of the image it is: one of Y, X, Z, C, T.
    unit : str or None
        As NGFF spells it: ``micrometer``, ``second``.
    scale, translation : float or None
        Distance of two positions, and where the first one lies.
    """

    name: str
    kind: str
    letter: str
    unit: str | None = None
    scale: float | None = None
    translation: float | None = None


@dataclass(frozen=True, slots=True)
class AcquiredChannel:
    """One channel. `color` is (red, green, blue, alpha), 0 to 255 each; wavelengths in nm."""

    name: str | None = None
    color: tuple[int, int, int, int] | None = None
    excitation_nm: float | None = None
    emission_nm: float | None = None
    fluorophore: str | None = None


@dataclass(frozen=True, slots=True)
class AcquiredPosition:
    """One position of the stage: its name, its well, its cell in a grid, its place in µm."""

    name: str
    row: str | None = None
    column: str | None = None
    grid_row: int | None = None
    grid_column: int | None = None
    x_um: float | None = None
    y_um: float | None = None
    z_um: float | None = None


@dataclass(frozen=True, slots=True)
class AcquisitionPlan:
    """All that is known before the first frame.

    Attributes
    ----------
    image : ImageSpec
        The image of each position, with room for all planes that may come (`UNBOUNDED` along an
        axis without end), with its levels, channels, pixel size and origin; its name is "".
    order : FrameOrder
        In which order the planes of one position come.
    axes : tuple of StoredAxis
        Axes of the arrays where a format stores arrays: in storage order, Y and X last.
    channels : tuple of AcquiredChannel
        One per C, or empty.
    positions : tuple of AcquiredPosition
        At least one; `several` says whether the user spoke of positions at all.
    several : bool
        There is an axis of positions, be it of one.
    plate : Plate or None
        Name, rows and columns.
    created : str
        When the acquisition was begun, in UTC: ``2026-11-21T12:00:00+00:00``.
    """

    image: ImageSpec
    order: FrameOrder
    axes: tuple[StoredAxis, ...]
    channels: tuple[AcquiredChannel, ...] = ()
    positions: tuple[AcquiredPosition, ...] = (AcquiredPosition("0"),)
    several: bool = False
    plate: Plate | None = None
    created: str = ""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What was recorded of one position.

    Attributes
    ----------
    position : int
        Its number in the plan.
    planes : int
        How many planes came, those skipped included; the first ones of the order.
    skipped : tuple of range
        Numbers of the planes that were skipped.
    metadata : callable
        Returns an iterable over (number of a plane, what was said of it), the number rising.
    documents : callable or None
        The same as JSON, as it was written down, where somebody has that.
    """

    position: int
    planes: int
    skipped: tuple[range, ...] = ()
    metadata: Callable[[], Iterable[tuple[int, dict[str, Any]]]] = tuple
    documents: Callable[[], Iterable[tuple[int, bytes]]] | None = None

    def shape(self, plan: AcquisitionPlan) -> Shape5:
        """Return the size of the image that holds the planes."""
        y, x = plan.image.shape[:2]
        return (y, x, *plan.order.extent(self.planes))
