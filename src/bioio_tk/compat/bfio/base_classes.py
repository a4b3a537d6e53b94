"""What bfio's reader and writer have in common: its names for the properties of an image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from bioio_tk.base import BioBase as _BioBase
from bioio_tk.batches import maximum_batch_size
from bioio_tk.core.dtype import from_ome_type
from bioio_tk.core.region import AXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import numpy as np
    from ome_types import OME

    from bioio_tk.core.region import Shape5


class Shape(tuple[int, int, int, int, int]):
    """Y, X, Z, C, T; equal to any shape that differs only in trailing axes of length 1.

    bfio up to 2.1 gave five numbers, later ones leave trailing 1s out. So both
    ``y, x, z, c, t = br.shape`` and ``br.shape == br[:].shape`` work.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple) and _bare(self) == _bare(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(_bare(self))


class Names(list["str | None"]):
    """The names of the channels; calling it is how bfio 1.x got and set them."""

    _give: Callable[[Any], None]

    def __init__(self, names: Iterable[str | None], give: Callable[[Any], None]) -> None:
        super().__init__(names)
        self._give = give

    def __call__(self, cnames: Any = None) -> list[str | None]:
        """Set the names, if there are any given, and return them."""
        if cnames is None:
            return list(self)
        self._give(cnames)
        return list(cnames)

    def __reduce__(self) -> Any:
        return list, (list(self),)


class Size(tuple[Any, Any]):  # noqa: SLOT001 - a tuple cannot have slots that hold something
    """``(value, unit)`` of a pixel; calling it is how bfio 1.x got and set it."""

    _give: Callable[[Any], None]

    def __call__(self, psize: float | None = None, units: Any = None) -> tuple[Any, ...]:
        """Set the size, if there is one given, and return it."""
        if psize is None:
            return tuple(self)
        self._give((psize, units))
        return (psize, units)

    def __reduce__(self) -> Any:
        return tuple, (tuple(self),)


class BioBase(_BioBase):
    """bfio's names for the properties of an image."""

    _TILE_SIZE = 1024
    _CHUNK_SIZE: int | None = None
    _workers: int

    # ------------------------------------------------------------------ as in bfio 2

    @property
    def shape(self) -> Shape5:
        """Size along Y, X, Z, C, T; trailing axes of length 1 do not matter in comparisons."""
        return Shape(self._get_shape())

    @shape.setter
    def shape(self, value: Any) -> None:
        # bfio leaves the axes that are not named as they are
        for axis, size in zip(AXES, value, strict=False):
            self._set(axis, size)

    @property
    def channel_names(self) -> list[str | None]:
        """Name of each channel, None for a channel without one."""
        channels = self._spec().channels
        names = [c.name for c in channels] if channels else [None] * self.C
        return Names(names, lambda value: self._set("channel_names", value))

    @channel_names.setter
    def channel_names(self, value: Any) -> None:
        self._set("channel_names", value)

    @property
    def physical_size_x(self) -> Any:
        """Width of a pixel as ``(value, ome_types.model.UnitsLength)``; value None if unknown."""
        return self._size("x")

    @physical_size_x.setter
    def physical_size_x(self, value: Any) -> None:
        self._set("physical_size_x", value)

    @property
    def physical_size_y(self) -> Any:
        """Height of a pixel as ``(value, ome_types.model.UnitsLength)``; value None if unknown."""
        return self._size("y")

    @physical_size_y.setter
    def physical_size_y(self, value: Any) -> None:
        self._set("physical_size_y", value)

    @property
    def physical_size_z(self) -> Any:
        """Distance of planes as ``(value, ome_types.model.UnitsLength)``; value None if unknown."""
        return self._size("z")

    @physical_size_z.setter
    def physical_size_z(self, value: Any) -> None:
        self._set("physical_size_z", value)

    cnames = channel_names
    ps_x, ps_y, ps_z = physical_size_x, physical_size_y, physical_size_z

    def _size(self, axis: str) -> Size:
        from ome_types.model import UnitsLength

        quantity = getattr(self._spec().physical_size, axis)
        value, unit = (None, "µm") if quantity is None else quantity
        size = Size((value, UnitsLength(unit)))
        size._give = lambda given: self._set(f"physical_size_{axis}", given)  # noqa: SLF001
        return size

    @property
    def max_workers(self) -> int:
        """Threads to work with; may be changed at any time."""
        return self._workers

    @max_workers.setter
    def max_workers(self, value: int | None) -> None:
        self._workers = workers(value)

    _max_workers = max_workers

    def maximum_batch_size(self, tile_size: Any, tile_stride: Any = None) -> int:
        """Return the most tiles that ``br(tile_size, ...)`` gives at a time."""
        return maximum_batch_size(self.Y, tile_size, tile_stride)

    # ------------------------------------------------------------------ as in bfio 1 and 2.0

    def num_x(self, X: int | None = None) -> int:
        """Return the width; a writer's can be set."""
        return self._number("X", X)

    def num_y(self, Y: int | None = None) -> int:
        """Return the height; a writer's can be set."""
        return self._number("Y", Y)

    def num_z(self, Z: int | None = None) -> int:
        """Return the number of focal planes; a writer's can be set."""
        return self._number("Z", Z)

    def num_c(self, C: int | None = None) -> int:
        """Return the number of channels; a writer's can be set."""
        return self._number("C", C)

    def num_t(self, T: int | None = None) -> int:
        """Return the number of time points; a writer's can be set."""
        return self._number("T", T)

    def _number(self, axis: str, value: int | None) -> int:
        if value is not None:
            self._set(axis, value)
        return self.shape[AXES.index(axis)]

    def pixel_type(self, dtype: Any = None) -> np.dtype[Any]:
        """Return the pixel type; a writer's can be set, by OME's name (``"float"``) or numpy's."""
        if dtype is not None:
            known = from_ome_type(dtype) if isinstance(dtype, str) else None
            self._set("dtype", dtype if known is None else known)
        return self.dtype

    def read_metadata(self, update: bool = False) -> OME:
        """Return the metadata as an ``ome_types.OME`` object; `update` makes no difference."""
        return self.metadata

    def close_image(self) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        raise NotImplementedError  # the reader and the writer each have one

    # ------------------------------------------------------------------ private names in use

    @property
    def _file_path(self) -> Path:
        return cast("Path", self.path)  # bfio knows no URLs

    @property
    def _metadata(self) -> OME:
        return self.metadata

    @property
    def _DIMS(self) -> dict[str, int]:
        return dict(zip(AXES, self.shape, strict=True))


def workers(value: Any) -> int:
    """Return a number of threads; bfio took 0 and less for no threads besides the caller's."""
    from bioio_tk.engine.pool import check_workers

    return check_workers(None if value is None else max(1, math.floor(value)))


def _bare(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    n = len(shape)
    while n and shape[n - 1] == 1:
        n -= 1
    return tuple(shape[:n])
