"""Description: what a user says of a view, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.views import ViewTransform
from bioio_tk.errors import RegionError, SpecError
from bioio_tk.meta.bdv import check_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.views import Point3, Shape3

CALIBRATION = "calibration"
"""What the transform is called that makes voxels cubes."""
PIXEL = "pixel"
"""The unit of voxels of unknown size."""


@dataclass(frozen=True, slots=True)
class Description:
    """All of a view but its pixels.

    Attributes
    ----------
    size : Shape3
        Along Z, Y, X.
    voxel_size : Point3
        Along X, Y, Z.
    voxel_unit : str
        Its unit.
    transforms : tuple of ViewTransform
        The last one is applied first.
    exposure : tuple of str
        Exposure time and its unit.
    """

    size: Shape3
    voxel_size: Point3
    voxel_unit: str
    transforms: tuple[ViewTransform, ...]
    exposure: tuple[str, str]


def label(value: Any, what: str) -> str:
    """Return a word of the user as text that the XML can hold, "" for None.

    Raises
    ------
    SpecError
        It has a character that XML cannot hold.
    """
    return "" if value is None else check_text(str(value), what)


def affine(matrix: Any, name: Any) -> ViewTransform:
    """Return a transform.

    Raises
    ------
    SpecError
        It is none, or its name cannot be written.
    """
    called = label(name, "name_affine")
    try:
        return ViewTransform.of(matrix, called)
    except (ValueError, TypeError) as exc:
        raise SpecError(f"m_affine: {exc}; give an array of shape (3, 4)") from exc


def calibrated(how: Any, voxel_size: Point3) -> tuple[ViewTransform, ...]:
    """Return the transform that pixels begin with, none for None."""
    if how is None:
        return ()
    if isinstance(how, str):
        if how != "auto":
            raise SpecError(f"calibration={how!r}: give three numbers along X, Y, Z, or 'auto'")
        least = min(voxel_size)
        x, y, z = (length / least for length in voxel_size)
    else:
        x, y, z = lengths("calibration", how)
    return (ViewTransform((x, 0.0, 0.0, 0.0, 0.0, y, 0.0, 0.0, 0.0, 0.0, z, 0.0), CALIBRATION),)


def lengths(name: str, value: Any) -> Point3:
    """Return three positive numbers along X, Y, Z."""
    try:
        found = [float(n) for n in value]
    except (TypeError, ValueError):
        found = []
    if len(found) != 3 or not all(math.isfinite(n) and n > 0 for n in found):
        raise SpecError(f"{name}={value!r:.80}: give three positive numbers along X, Y, Z")
    return (found[0], found[1], found[2])


def dimensions(value: Sequence[int] | None) -> Shape3:
    """Return the size of a virtual stack along Z, Y, X."""
    try:
        given = list(value)  # type: ignore[arg-type]
        found = [int(n) for n in given]
    except (TypeError, ValueError):
        given, found = [], []
    if found != given or len(found) != 3 or min(found) < 1:
        raise SpecError(
            f"virtual_stack_dim={value!r}: give the size along Z, Y, X of the stack that comes in "
            "parts, such as (100, 2048, 2048)"
        )
    return (found[0], found[1], found[2])


def picked(transforms: Sequence[ViewTransform], index: Any, view: str) -> NDArray[np.float64]:
    """Return one of the transforms of a view, shape (3, 4)."""
    if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
        raise SpecError(f"index={index!r}: give the number of a transform, counted from 0")
    if not 0 <= index < len(transforms):
        raise RegionError(f"index={index}: {view} has {len(transforms)} transform(s), from 0 on")
    return transforms[int(index)].array
