"""Draft: an image being described, property by property, before its first pixel is written."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.dtype import from_ome_type, pixel_dtype
from bioio_tk.core.region import AXES, Shape5
from bioio_tk.core.spec import (
    Channel,
    ImageSpec,
    PhysicalSize,
    Quantity,
    fit_tile,
    pyramid_levels,
)
from bioio_tk.core.units import convert_length, length_unit, time_unit
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bioio_tk.base import BioBase

ALIASES = {
    "x": "X",
    "y": "Y",
    "z": "Z",
    "c": "C",
    "t": "T",
    "cnames": "channel_names",
    "spp": "samples_per_pixel",
    "ps_x": "physical_size_x",
    "ps_y": "physical_size_y",
    "ps_z": "physical_size_z",
}
PROPERTIES = (
    *AXES,
    "shape",
    "dtype",
    "samples_per_pixel",
    "name",
    "channel_names",
    "channel_colors",
    "physical_size_x",
    "physical_size_y",
    "physical_size_z",
    "time_increment",
    "metadata",
)
"""What can be set of a writer."""


@dataclass
class Draft:
    """What is known so far of the image to be written; None where nothing was said."""

    sizes: dict[str, int] = field(default_factory=dict)
    dtype: np.dtype[Any] | None = None
    samples: int = 1
    name: str = ""
    channel_names: list[str | None] | None = None
    channel_colors: list[tuple[int, int, int, int] | None] | None = None
    physical: dict[str, Quantity] = field(default_factory=dict)
    time_increment: Quantity | None = None
    position: PhysicalSize = PhysicalSize()
    metadata: Any = None

    @property
    def shape(self) -> Shape5:
        """Size along Y, X, Z, C, T; 1 where nothing was said."""
        sizes = dict(self.sizes)
        if "C" not in sizes and self.channel_names:
            sizes["C"] = len(self.channel_names) * self.samples
        elif "C" not in sizes:
            sizes["C"] = self.samples
        y, x, z, c, t = (sizes.get(axis, 1) for axis in AXES)
        return (y, x, z, c, t)

    def set(self, name: str, value: Any) -> None:
        """Set one property; SpecError where the value makes no sense."""
        name = ALIASES.get(name, name)
        if name in AXES:
            self.sizes[name] = _size(name, value)
        elif name == "shape":
            self.set_shape(value)
        elif name == "dtype":
            self.dtype = pixel_dtype(value)
        elif name == "samples_per_pixel":
            self.samples = _size(name, value)
        elif name == "name":
            self.name = str(value)
        elif name == "channel_names":
            self.channel_names = None if value is None else [_text(v) for v in _listed(name, value)]
        elif name == "channel_colors":
            self.channel_colors = None if value is None else [color(v) for v in value]
        elif name.startswith("physical_size_"):
            self._set_physical(name[-1], value)
        elif name == "time_increment":
            self.time_increment = None if value is None else _quantity(name, value, time_unit)
        else:
            self.set_metadata(value)

    def set_shape(self, shape: Any) -> None:
        """Set Y, X, Z, C, T from a sequence of up to 5 numbers; 1 for those left out."""
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        if not 1 <= len(sizes) <= 5:
            raise SpecError(f"shape {shape!r}: give up to 5 sizes in the order Y, X, Z, C, T")
        for axis, size in zip(AXES, (*sizes, *([1] * (5 - len(sizes)))), strict=True):
            self.sizes[axis] = _size(axis, size)

    def set_metadata(self, metadata: Any) -> None:
        """Take over what an OME object (or an OME-XML document) says of its first image."""
        from bioio_tk.meta import ome

        self.metadata = metadata
        if metadata is None:
            return
        xml = metadata if isinstance(metadata, (str, bytes)) else _to_xml(metadata)
        document = ome.read_document(xml)
        if not document.images:
            raise SpecError("the metadata describe no image (OME without an Image element)")
        image = document.images[0]
        self.sizes = {
            "Y": image.size_y,
            "X": image.size_x,
            "Z": image.size_z,
            "C": image.size_c,
            "T": image.size_t,
        }
        known = image.stored_dtype or from_ome_type(image.type)
        self.dtype = self.dtype if known is None else np.dtype(known)
        self.name = image.name or ""
        samples = {channel.samples for channel in image.channels}
        self.samples = samples.pop() if len(samples) == 1 else 1
        if len(image.channels) * self.samples == image.size_c:
            self.channel_names = [channel.name for channel in image.channels]
            self.channel_colors = [channel.color for channel in image.channels]
        sizes = zip("xyz", image.physical_size, strict=True)
        self.physical = {axis: size for axis, size in sizes if size is not None}
        self.time_increment = image.time_increment

    def set_like(self, other: BioBase) -> None:
        """Take over everything but the pixels from another image."""
        from bioio_tk.meta import ome

        spec = other._spec()  # noqa: SLF001
        xml = getattr(other, "ome_xml", None)
        if xml is not None:
            number = getattr(other, "series", 0)
            several = getattr(other, "n_series", 1) > 1
            self.metadata = ome.single(xml, number) if several else xml
        self.set_shape(spec.levels[0].shape)
        self.dtype = spec.dtype
        self.samples = spec.samples
        self.name = spec.name
        if spec.channels:
            self.channel_names = [c.name for c in spec.channels[:: spec.samples]]
            self.channel_colors = [c.color for c in spec.channels[:: spec.samples]]
        sizes = zip("xyz", spec.physical_size, strict=True)
        self.physical = {axis: size for axis, size in sizes if size is not None}
        self.time_increment = spec.time_increment
        self.position = spec.position

    def set_defaults(self, spec: ImageSpec) -> None:
        """Take sizes and position of pixels from an image that shows the same, where not given."""
        for axis, size in zip("xyz", spec.physical_size, strict=True):
            if size is not None:
                self.physical.setdefault(axis, size)
        self.time_increment = self.time_increment or spec.time_increment
        if not any(self.position):
            self.position = spec.position

    def take_array(self, array: Any) -> None:
        """Take shape and pixel type from an array with axes Y, X[, Z[, C[, T]]]."""
        if array.ndim > 5 or array.ndim < 1:
            raise SpecError(f"an image has 2 to 5 axes (Y, X, Z, C, T), the array has {array.ndim}")
        self.set_shape(array.shape)
        self.dtype = pixel_dtype(array.dtype)

    def spec(
        self,
        tile: tuple[int, ...],
        levels: int | None,
        *,
        multiple: int = 16,
        shrink_z: bool = False,
    ) -> ImageSpec:
        """Return the finished description.

        Parameters
        ----------
        tile : tuple of 2 to 5 int
            Tile size along Y, X[, Z[, C[, T]]]; 1 for those left out.
        levels : int or None
            Resolutions in all; None for as many as make sense.
        multiple : int
            Tiles of images smaller than a tile are a multiple of this.
        shrink_z : bool
            Shrink along Z as well, where planes are as close together as pixels.
        """
        shape = self.shape
        if shape[3] % self.samples:
            raise SpecError(
                f"C={shape[3]} is no multiple of samples_per_pixel={self.samples}: every RGB "
                "channel counts as 3 in C"
            )
        given = (*tile, *(1, self.samples, 1)[len(tile) - 2 :])
        if given[3] % self.samples:
            raise SpecError(
                f"tiles of {given[3]} channels do not hold whole pixels of {self.samples} samples"
            )
        grid = fit_tile(shape, given, multiple)  # type: ignore[arg-type]
        voxel = self._voxel() if shrink_z else None
        return ImageSpec(
            dtype=np.dtype(np.uint8) if self.dtype is None else self.dtype,
            levels=pyramid_levels(shape, grid, levels, voxel=voxel, multiple=multiple),
            name=self.name,
            channels=self._channels(shape[3]),
            samples=self.samples,
            physical_size=PhysicalSize(*(self.physical.get(axis) for axis in "xyz")),
            time_increment=self.time_increment,
            position=self.position,
        )

    def _voxel(self) -> tuple[float, float, float]:
        """Return the size of a pixel along Y, X, Z in one unit; 1 where it is not known."""
        sizes = []
        for axis in "yxz":
            size = self.physical.get(axis)
            try:
                sizes.append(1.0 if size is None else convert_length(size[0], size[1], "µm"))
            except SpecError:
                sizes.append(1.0)
        return (sizes[0], sizes[1], sizes[2])

    def _channels(self, count: int) -> tuple[Channel, ...]:
        names = _spread("channel_names", self.channel_names, count, self.samples)
        colors = _spread("channel_colors", self.channel_colors, count, self.samples)
        if names is None and colors is None:
            return ()
        return tuple(
            Channel(name, tint)
            for name, tint in zip(names or [None] * count, colors or [None] * count, strict=True)
        )

    def _set_physical(self, axis: str, value: Any) -> None:
        if value is None or (isinstance(value, tuple) and value[:1] == (None,)):
            self.physical.pop(axis, None)
        else:
            self.physical[axis] = _quantity(f"physical_size_{axis}", value, length_unit)


def color(value: Any) -> tuple[int, int, int, int] | None:
    """Return (red, green, blue, alpha) from such a tuple, from three numbers or ``"#rrggbb"``."""
    if value is None:
        return None
    if isinstance(value, str):
        digits = value.removeprefix("#")
        try:
            value = tuple(bytes.fromhex(digits))
        except ValueError:
            value = ()
    parts = tuple(value)
    if len(parts) == 3:
        parts = (*parts, 255)
    if len(parts) != 4 or any(not 0 <= int(p) <= 255 for p in parts):
        raise SpecError(
            f"colour {value!r}: give (red, green, blue[, alpha]), 0 to 255, or '#rrggbb'"
        )
    red, green, blue, alpha = (int(p) for p in parts)
    return (red, green, blue, alpha)


def _size(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise SpecError(f"{name}={value!r}: give a whole number of 1 or more")
    return number


def _listed(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        raise SpecError(f"{name}={value!r}: give a list with one name for each channel")
    return list(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _quantity(name: str, value: Any, unit_of: Any) -> Quantity:
    try:
        number, unit = value
        number = float(number)
    except (TypeError, ValueError):
        raise SpecError(f"{name}={value!r}: give (value, unit), e.g. (0.5, 'µm')") from None
    if not (np.isfinite(number) and number > 0):
        raise SpecError(f"{name}={value!r}: the value must be positive and finite")
    return (number, unit_of(unit))


def _spread(name: str, values: list[Any] | None, count: int, samples: int) -> list[Any] | None:
    """Return one value for each C; those of RGB channels are given once or for each sample."""
    if values is None:
        return None
    if len(values) == count:
        return values
    if len(values) * samples == count:
        return [v for v in values for _ in range(samples)]
    raise SpecError(f"{name} has {len(values)} entries, but the image has C={count}")


def _to_xml(metadata: Any) -> str:
    try:
        return str(metadata.to_xml())
    except AttributeError:
        raise SpecError(
            f"metadata is a {type(metadata).__name__}: give an ome_types.OME object or an OME-XML "
            "document, or like=reader"
        ) from None
