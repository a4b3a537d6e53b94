"""Which views an image becomes: what their setups are called, and where in the world they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from bioio_tk.core.units import convert_length
from bioio_tk.core.views import (
    ATTRIBUTES,
    Point3,
    ViewAttribute,
    ViewId,
    ViewSetup,
    ViewTransform,
)
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bioio_tk.core.spec import ImageSpec, PhysicalSize, Quantity

CALIBRATION = "calibration"
"""Name of the transform that makes cubes of the voxels."""
POSITION = "position"
"""Name of the transform that puts an image where its microscope says."""
_KEPT_UNITS = ("nm", "µm", "mm")
"""Those that every reader of such files knows."""


class Stack(NamedTuple):
    """One stack of an image: its channel and time point."""

    image: int
    c: int
    t: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Which view each stack of the images is, and what is said of it.

    Attributes
    ----------
    setups : mapping of (int, int) to ViewSetup
        Of each image and channel.
    times : tuple of int
        The id of each time point, ascending.
    attributes : mapping of str to tuple of ViewAttribute
        All values of each attribute that the setups have.
    transforms : mapping of Stack to tuple of ViewTransform
        From the pixels of a stack to the world; the last one is applied first.
    missing : frozenset of Stack
        Stacks that are not there: they are not stored, and read as 0.
    created_by : mapping of str to str
        The program and the microscope, as the XML says it.
    """

    setups: Mapping[tuple[int, int], ViewSetup]
    times: tuple[int, ...]
    attributes: Mapping[str, tuple[ViewAttribute, ...]]
    transforms: Mapping[Stack, tuple[ViewTransform, ...]] = field(default_factory=dict)
    missing: frozenset[Stack] = frozenset()
    created_by: Mapping[str, str] = field(default_factory=dict)

    def view(self, stack: Stack) -> ViewId:
        """Return the ids of a stack."""
        return ViewId(self.times[stack.t], self.setups[stack.image, stack.c].id)


def layout_of(images: Sequence[ImageSpec]) -> Layout:
    """Return the views of images that say nothing of views: each image is a tile.

    Channels of equal names are one channel. Where the position of an image is known it is put
    there, in units of the smallest side of its voxels, as the voxels are.
    """
    channels = [_channels(spec) for spec in images]
    known = {key: n for n, key in enumerate(dict.fromkeys(k for keys in channels for k in keys))}
    setups: dict[tuple[int, int], ViewSetup] = {}
    transforms: dict[Stack, tuple[ViewTransform, ...]] = {}
    tiles = []
    for number, spec in enumerate(images):
        voxel, unit = voxel_of(spec.physical_size)
        placed = _placed(spec.position, voxel, unit)
        tiles.append(_tile(number, spec.name, placed))
        y, x, z, _, t = spec.shape
        for channel, key in enumerate(channels[number]):
            setup = known[key] * len(images) + number
            setups[number, channel] = ViewSetup(
                id=setup,
                name=", ".join(part for part in (spec.name, key[0]) if part) or f"setup {setup}",
                size=(z, y, x),
                voxel_size=voxel,
                voxel_unit=unit,
                attributes=dict(zip(ATTRIBUTES, (0, known[key], number, 0), strict=True)),
            )
            transforms |= {Stack(number, channel, n): placed for n in range(t)}
    attributes = {
        "illumination": (ViewAttribute(0, "0"),),
        "channel": tuple(ViewAttribute(n, key[0] or str(n)) for key, n in known.items()),
        "tile": tuple(tiles),
        "angle": (ViewAttribute(0, "0"),),
    }
    times = tuple(range(max(spec.shape[4] for spec in images)))
    return Layout(setups, times, attributes, transforms)


def voxel_of(size: PhysicalSize) -> tuple[Point3, str]:
    """Return the size of a voxel along X, Y, Z and its one unit; cubes of 1 pixel where unknown.

    What is not known along one axis is taken to be as along the others.

    >>> from bioio_tk.core.spec import PhysicalSize
    >>> voxel_of(PhysicalSize((0.5, "µm"), (500.0, "nm"), (2.0, "µm")))
    ((0.5, 0.5, 2.0), 'µm')
    >>> voxel_of(PhysicalSize())
    ((1.0, 1.0, 1.0), 'pixel')
    """
    known = [given for given in size if given is not None]
    if not known:
        return (1.0, 1.0, 1.0), "pixel"
    unit = known[0][1]
    for wanted in (unit if unit in _KEPT_UNITS else "µm", unit):
        try:
            x, y, z = (_length(given or known[0], wanted) for given in size)
        except SpecError:  # pixels, or units of the stage
            continue
        return (x, y, z), wanted
    return (1.0, 1.0, 1.0), "pixel"


def calibration(voxel: Point3) -> ViewTransform:
    """Return the transform that makes cubes of voxels, the smallest side of which becomes 1."""
    x, y, z = (side / min(voxel) for side in voxel)
    return ViewTransform((x, 0.0, 0.0, 0.0, 0.0, y, 0.0, 0.0, 0.0, 0.0, z, 0.0), CALIBRATION)


def _length(given: Quantity, unit: str) -> float:
    value, of = given
    return float(value) if of == unit else convert_length(value, of, unit)


def _placed(position: PhysicalSize, voxel: Point3, unit: str) -> tuple[ViewTransform, ...]:
    """Return the transforms of all stacks of an image."""
    scaled = calibration(voxel)
    if not any(position):
        return (scaled,)
    try:
        places = [_length(given, unit) if given is not None else 0.0 for given in position]
    except SpecError:  # the size of a pixel is not known in units of the stage
        return (scaled,)
    x, y, z = (place / min(voxel) for place in places)
    moved = ViewTransform((1.0, 0.0, 0.0, x, 0.0, 1.0, 0.0, y, 0.0, 0.0, 1.0, z), POSITION)
    return (moved, scaled)


def _tile(number: int, name: str, placed: tuple[ViewTransform, ...]) -> ViewAttribute:
    if len(placed) == 1:
        return ViewAttribute(number, name or str(number))
    x, y, z = (repr(placed[0].matrix[n]) for n in (3, 7, 11))
    return ViewAttribute(number, name or str(number), {"location": f"{x} {y} {z}"})


def _channels(spec: ImageSpec) -> list[tuple[str, int]]:
    """Return what tells the channels of an image apart: the name, and the how many-th of it."""
    count = spec.shape[3]
    names = [channel.name or "" for channel in spec.channels] or [""] * count
    return [(name, names[:n].count(name)) for n, name in enumerate(names)]
