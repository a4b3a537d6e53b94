"""BioBase: what a reader and a writer have in common, the properties of a 5-D image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioio_tk.core.spec import ImageSpec, PhysicalSize, Quantity

if TYPE_CHECKING:
    from ome_types import OME

    from bioio_tk.core.location import Location
    from bioio_tk.core.region import Shape5


class PixelSize(NamedTuple):
    """Size of a pixel along Y, X, Z as plain numbers; None where unknown."""

    y: float | None
    x: float | None
    z: float | None


def plain_size(size: PhysicalSize, unit: str) -> PixelSize:
    """Return the size of a pixel in one unit; None where it is unknown or is not a length."""
    from bioio_tk.core.units import convert_length, length_unit
    from bioio_tk.errors import SpecError

    wanted = length_unit(unit)

    def number(quantity: Quantity | None) -> float | None:
        if quantity is None:
            return None
        try:
            return convert_length(quantity[0], quantity[1], wanted)
        except SpecError:
            return None  # "pixel" and "reference frame" are no lengths

    convert_length(1.0, "µm", wanted)  # an unusable target unit is an error of the caller
    return PixelSize(number(size.y), number(size.x), number(size.z))


class BioBase:
    """An image with the axes Y, X, Z, C, T; base of `BioReader` and `BioWriter`.

    Every property can be read at any time. A writer's can also be set, as attribute or keyword,
    until its first pixel is written; a reader's never.
    """

    _path: Location

    # ------------------------------------------------------------------ geometry

    @property
    def shape(self) -> Shape5:
        """Size along Y, X, Z, C, T in pixels."""
        return self._get_shape()

    @shape.setter
    def shape(self, value: Any) -> None:
        self._set("shape", value)

    @property
    def Y(self) -> int:
        """Height of a plane in pixels."""
        return self.shape[0]

    @Y.setter
    def Y(self, value: int) -> None:
        self._set("Y", value)

    @property
    def X(self) -> int:
        """Width of a plane in pixels."""
        return self.shape[1]

    @X.setter
    def X(self, value: int) -> None:
        self._set("X", value)

    @property
    def Z(self) -> int:
        """Number of focal planes."""
        return self.shape[2]

    @Z.setter
    def Z(self, value: int) -> None:
        self._set("Z", value)

    @property
    def C(self) -> int:
        """Number of channels; the samples of RGB count as channels."""
        return self.shape[3]

    @C.setter
    def C(self, value: int) -> None:
        self._set("C", value)

    @property
    def T(self) -> int:
        """Number of time points."""
        return self.shape[4]

    @T.setter
    def T(self, value: int) -> None:
        self._set("T", value)

    y, x, z, c, t = Y, X, Z, C, T

    @property
    def ndim(self) -> int:
        """Number of axes: always 5."""
        return 5

    # ------------------------------------------------------------------ pixels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type, in the machine's byte order."""
        return self._spec().dtype

    @dtype.setter
    def dtype(self, value: Any) -> None:
        self._set("dtype", value)

    @property
    def samples_per_pixel(self) -> int:
        """Samples of a pixel stored together: 3 for RGB, 1 for everything else."""
        return self._spec().samples

    @samples_per_pixel.setter
    def samples_per_pixel(self, value: int) -> None:
        self._set("samples_per_pixel", value)

    spp = samples_per_pixel

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of one sample of one pixel."""
        return self.dtype.itemsize

    @property
    def bpp(self) -> int:
        """Same as `bytes_per_pixel`."""
        return self.bytes_per_pixel

    # ------------------------------------------------------------------ what the image shows

    @property
    def name(self) -> str:
        """Name of the image, "" where it has none."""
        return self._spec().name

    @name.setter
    def name(self, value: str) -> None:
        self._set("name", value)

    @property
    def channel_names(self) -> list[str | None]:
        """Name of each channel, None for a channel without one; as many as `C`."""
        channels = self._spec().channels
        return [c.name for c in channels] if channels else [None] * self.C

    @channel_names.setter
    def channel_names(self, value: Any) -> None:
        self._set("channel_names", value)

    cnames = channel_names

    @property
    def channel_colors(self) -> list[tuple[int, int, int, int] | None]:
        """Colour of each channel as (red, green, blue, alpha), None where it has none."""
        channels = self._spec().channels
        return [c.color for c in channels] if channels else [None] * self.C

    @channel_colors.setter
    def channel_colors(self, value: Any) -> None:
        self._set("channel_colors", value)

    @property
    def physical_size_x(self) -> tuple[float | None, str]:
        """Width of a pixel as ``(value, unit)``; the value is None where it is unknown."""
        return _given(self._spec().physical_size.x)

    @physical_size_x.setter
    def physical_size_x(self, value: Any) -> None:
        self._set("physical_size_x", value)

    @property
    def physical_size_y(self) -> tuple[float | None, str]:
        """Height of a pixel as ``(value, unit)``; the value is None where it is unknown."""
        return _given(self._spec().physical_size.y)

    @physical_size_y.setter
    def physical_size_y(self, value: Any) -> None:
        self._set("physical_size_y", value)

    @property
    def physical_size_z(self) -> tuple[float | None, str]:
        """Distance of two focal planes as ``(value, unit)``; None where it is unknown."""
        return _given(self._spec().physical_size.z)

    @physical_size_z.setter
    def physical_size_z(self, value: Any) -> None:
        self._set("physical_size_z", value)

    ps_x, ps_y, ps_z = physical_size_x, physical_size_y, physical_size_z

    @property
    def time_increment(self) -> Quantity | None:
        """Time between two time points as ``(value, unit)``, None where it is unknown."""
        return self._spec().time_increment

    @time_increment.setter
    def time_increment(self, value: Any) -> None:
        self._set("time_increment", value)

    def pixel_size(self, unit: str = "µm") -> PixelSize:
        """Return the size of a pixel along Y, X, Z as plain numbers.

        Parameters
        ----------
        unit : str
            Unit of the result, e.g. ``"µm"``, ``"um"``, ``"nm"``, ``"mm"``.

        Returns
        -------
        PixelSize
            Fields `y`, `x`, `z`; None where the size is unknown or is not a length.
        """
        return plain_size(self._spec().physical_size, unit)

    @property
    def metadata(self) -> OME:
        """All metadata as an `ome_types.OME` object."""
        return self._get_metadata()

    @metadata.setter
    def metadata(self, value: Any) -> None:
        self._set("metadata", value)

    @property
    def read_only(self) -> bool:
        """True where the properties can no longer be set."""
        return True

    @property
    def path(self) -> Location:
        """The file or folder; a `Url` where it is remote."""
        return self._path

    # ------------------------------------------------------------------ for the two heirs

    def _spec(self) -> ImageSpec:
        raise NotImplementedError  # BioReader and BioWriter each have one

    def _get_shape(self) -> Shape5:
        return self._spec().levels[0].shape

    def _get_metadata(self) -> OME:
        raise NotImplementedError  # BioReader and BioWriter each have one

    def _set(self, name: str, value: Any) -> None:
        raise NotImplementedError  # BioReader and BioWriter each have one


def _given(quantity: Quantity | None) -> tuple[float | None, str]:
    return (None, "µm") if quantity is None else quantity
