"""ShiftedSource: a stack whose planes are moved against each other, on a canvas that holds all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.spec import PhysicalSize, Quantity
from bioio_tk.core.units import convert_length
from bioio_tk.engine import arrays
from bioio_tk.errors import SpecError
from bioio_tk.inputs.derived import Derived, derive, described

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from bioio_tk.core.spec import Address, ImageSpec
    from bioio_tk.lazy import LazyArray


class ShiftedSource(Derived):
    """An image with each plane along Z moved by whole pixels; where nothing lies it is 0.

    Parameters
    ----------
    origin : LazyArray
        The image as it was taken.
    shifts : sequence of (int, int)
        For each plane how far it moves down and to the right.
    """

    def __init__(self, origin: LazyArray, shifts: ArrayLike) -> None:
        moves = _checked(shifts, origin.spec.shape[2])
        before = np.maximum(0, -moves.min(axis=0))
        after = np.maximum(0, moves.max(axis=0))
        self._corners = moves + before
        self.made = f"planes moved by {moves.tolist()}"
        spec = origin.spec
        y, x, *rest = spec.shape
        shape: Any = (y + int(before[0] + after[0]), x + int(before[1] + after[1]), *rest)
        height, width, *_ = origin.reader.tile_shape
        tile: Any = (min(height, shape[0]), min(width, shape[1]), 1, 1, 1)
        position = _moved(spec, int(before[0]), int(before[1]))
        super().__init__(origin, described(origin, shape, tile, position=position))

    def read_tile(self, at: Address) -> NDArray[Any]:
        """Return the part of one plane that lies in a tile of the canvas."""
        region = self.images[0].levels[0].grid.region(at.key)
        out = arrays.zeros(region.shape, self.images[0].dtype)
        corner = self._corners[region.start[2]]  # tiles are one plane deep
        inside, box = [], []
        for a, b, at_pixel, size in zip(
            region.start, region.stop, corner.tolist(), self.origin.spec.shape, strict=False
        ):
            start, stop = max(a, at_pixel), min(b, at_pixel + size)
            if start >= stop:
                return out
            inside.append(slice(start - a, stop - a))
            box.append(slice(start - at_pixel, stop - at_pixel))
        out[tuple(inside)] = self.read((*box, *region.slices()[2:]))  # type: ignore[arg-type]
        return out


def with_axial_shifts(image: LazyArray, shifts: ArrayLike | None) -> LazyArray:
    """Return an image with the planes along Z moved by `shifts`; nothing is read.

    The canvas grows by as much as the planes move, so no pixel is lost, and the origin of the image
    moves with it.

    Parameters
    ----------
    image : LazyArray
        The image. One whose planes were moved before is taken as it was before that.
    shifts : (Z, 2) array of int, AxialShifts or None
        For each plane how far it moves down (Y) and to the right (X), or what
        ``axial_shifts(image)`` gives. None gives the image as it was taken.

    Returns
    -------
    LazyArray
        Y + pt + pb rows and X + pl + pr columns, where plane z begins ``shifts[z, 0] + pt`` rows
        and ``shifts[z, 1] + pl`` columns further in, all others 0.

    Raises
    ------
    SpecError
        There is not one pair of whole numbers for each plane.
    """
    image = _before(image)
    if shifts is None:
        return image
    moves = _checked(shifts, image.spec.shape[2])
    return derive(image, "planes were moved along Z", ShiftedSource, image, moves)


def _before(image: LazyArray) -> LazyArray:
    source: Any = image.view().source
    if not isinstance(source, ShiftedSource):
        return image
    if image.shape != tuple(source.images[0].shape["YXZCT".index(axis)] for axis in image.dims):
        raise SpecError(
            "a part of an image with moved planes was given: take the part before they are moved"
        )
    return source.origin


def _checked(shifts: ArrayLike, planes: int) -> NDArray[np.int64]:
    moves = np.asarray(shifts)
    if moves.shape != (planes, 2):
        raise SpecError(
            f"shifts of shape {moves.shape} were given for Z={planes}: give a pair (y, x) for each "
            "plane"
        )
    whole = moves.astype(np.int64) if moves.dtype.kind in "iuf" and np.isfinite(moves).all() else 0
    if not np.array_equal(whole, moves):
        raise SpecError("shifts must be whole numbers of pixels")
    return np.asarray(whole)


def _moved(spec: ImageSpec, rows: int, columns: int) -> PhysicalSize:
    """Return where the first pixel lies after rows and columns were added before it."""
    size, origin = spec.physical_size, spec.position
    return PhysicalSize(_back(origin.x, size.x, columns), _back(origin.y, size.y, rows), origin.z)


def _back(origin: Quantity | None, size: Quantity | None, count: int) -> Quantity | None:
    if not count or size is None:
        return origin
    if origin is None:
        return (-count * size[0], size[1])
    try:
        return (origin[0] - count * convert_length(size[0], size[1], origin[1]), origin[1])
    except SpecError:
        return None  # one of them is no length
