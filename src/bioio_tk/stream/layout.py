"""Layout: what settings mean in the terms of files and images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends.base import StoreOptions
from bioio_tk.core.acquisition import (
    AcquiredChannel,
    AcquiredPosition,
    AcquisitionPlan,
    StoredAxis,
)
from bioio_tk.core.frames import UNBOUNDED, FrameAxis, FrameOrder, FrameRoute
from bioio_tk.core.location import Url, locate
from bioio_tk.core.mipmaps import BLOCK_BYTES, propose
from bioio_tk.core.plate import Plate as CorePlate
from bioio_tk.core.spec import Channel as SpecChannel
from bioio_tk.core.spec import ImageSpec, Level, PhysicalSize, Quantity, pyramid_levels
from bioio_tk.core.stacks import voxel_of
from bioio_tk.core.units import convert_length
from bioio_tk.errors import SpecError, UnsupportedError
from bioio_tk.meta.ngff_axes import unit_symbol
from bioio_tk.stream.dimensions import Channel
from bioio_tk.stream.formats import BdvFormat, OmeTiffFormat, OmeZarrFormat, ScratchFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bioio_tk.core.region import Shape5
    from bioio_tk.stream.settings import AcquisitionSettings, Dimension

_STORES = {"ome-tiff": "tiff", "ome-zarr": "zarr", "bdv": "bdv", "scratch": "scratch"}
_KINDS = {"T": "time", "C": "channel", "Z": "space"}
_USUAL_UNITS = {"time": "s", "space": "µm"}

_SMALL_FRAME = 1 << 18
_SHARD = 1 << 20
_FEW_FRAMES = 4096
_MOST_CHUNKS = 1024
_ROWS = 16
"""Rows of a block of BigDataViewer are a multiple of this, so that they can be shrunk alone."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a stream is made from.

    Attributes
    ----------
    plan : AcquisitionPlan
        What is going to be recorded.
    route : FrameRoute
        Which position and plane each frame is.
    options : StoreOptions
        For the store.
    path : Path or None
        Where the output goes; None for one in memory.
    store : {"tiff", "zarr", "bdv", "scratch"}
        What kind of store.
    """

    plan: AcquisitionPlan
    route: FrameRoute
    options: StoreOptions
    path: Path | None
    store: str


def layout(settings: AcquisitionSettings) -> Layout:
    """Return what settings mean. Nothing on disk is looked at.

    Parameters
    ----------
    settings : AcquisitionSettings
        With its dimensions and pixel type set.

    Raises
    ------
    ValueError
        Something is missing, or contradicts something else (SpecError, pydantic.ValidationError).
    UnsupportedError
        The output would be on a server, or all positions in one TIFF.
    """
    settings.validate_stream_ready()
    path = _path(settings)
    axes = _Axes(settings)
    return Layout(
        plan=_plan(settings, axes),
        route=FrameRoute(
            tuple(dim.count or UNBOUNDED for dim in settings.dimensions[:-2]),
            settings.position_dimension_index,
        ),
        options=_options(settings, axes, path),
        path=path,
        store=_STORES[settings.format.name],
    )


def _path(settings: AcquisitionSettings) -> Path | None:
    form = settings.format
    if not settings.root_path:
        if isinstance(form, ScratchFormat):
            return None
        raise SpecError(f"root_path is required for {form.name} format.")
    if isinstance(form, OmeTiffFormat):
        several = len(settings.positions)
        if several > 1 and form.prefer_single_file == "always":
            raise UnsupportedError(
                f"prefer_single_file='always' with {several} positions is not supported: each "
                "position becomes a file of its own; give 'auto' or 'never'"
            )
    if not settings.output_path:
        raise SpecError(f"root_path={settings.root_path!r} has no name, only a suffix")
    path = locate(settings.output_path)
    if isinstance(path, Url):
        raise UnsupportedError(
            f"root_path={path.shown!r}: a stream is written to a folder of this machine or its "
            "network; convert the result to the server afterwards"
        )
    return path


class _Axes:
    """The axes of the images: which of Z, C, T each dimension runs along.

    Several dimensions along one letter are stored as one axis, the slowest of them with the
    largest steps: of two cameras and three filters, all filters of the first camera come first.
    """

    def __init__(self, settings: AcquisitionSettings) -> None:
        self.settings = settings
        self.y, self.x = settings.frame_dimensions
        self.letters = {dim.name: _letter(dim) for dim in settings.index_dimensions}
        self.parts: dict[str, list[Dimension]] = {}
        for dim in settings.index_dimensions:
            self.parts.setdefault(self.letters[dim.name], []).append(dim)

    @cached_property
    def order(self) -> FrameOrder:
        """In which order the planes of a position come."""
        steps: dict[str, int] = {}
        for parts in self.parts.values():
            step = 1
            for dim in reversed(parts):
                steps[dim.name] = step
                step *= dim.count or UNBOUNDED
        return FrameOrder(
            tuple(
                FrameAxis(self.letters[dim.name], dim.count or UNBOUNDED, steps[dim.name])
                for dim in self.settings.index_dimensions
            )
        )

    @property
    def shape(self) -> Shape5:
        """Size along Y, X, Z, C, T when all frames have come."""
        return (self.y.count or 1, self.x.count or 1, *self.order.sizes)

    @property
    def chunk(self) -> Shape5:
        """Size of a chunk, along Y, X, Z, C, T."""
        y, x = (
            min(dim.chunk_size or size, size)
            for dim, size in zip((self.y, self.x), self.shape[:2], strict=True)
        )
        z, c, t = (_joint(self.parts.get(letter, [])) for letter in "ZCT")
        return (y, x, z, c, t)

    @property
    def stored(self) -> tuple[StoredAxis, ...]:
        """The axes of arrays, in storage order."""
        axes: dict[str, StoredAxis] = {}
        for dim in self.settings.storage_index_dimensions:
            letter = self.letters[dim.name]
            if letter not in axes:
                axes[letter] = self._axis(letter)
        return (*axes.values(), _stored(self.y, "Y"), _stored(self.x, "X"))

    def _axis(self, letter: str) -> StoredAxis:
        """Return the axis that is stored for all dimensions along a letter."""
        parts = self.parts[letter]
        if len(parts) == 1:
            return _stored(parts[0], letter)
        named = [dim for dim in parts if dim.type == _KINDS[letter]]
        name = named[0].name if named else letter.lower()
        taken = {dim.name for dim in self.settings.dimensions} - {dim.name for dim in parts}
        while name in taken:
            name += "_"
        return StoredAxis(name, _KINDS[letter], letter)

    def quantity(self, letter: str, field: str) -> Quantity | None:
        """Return the scale or the translation along a letter, with its unit as OME writes it."""
        dims = {"Y": [self.y], "X": [self.x]}.get(letter) or self.parts.get(letter, [])
        if len(dims) != 1 or dims[0].type not in _USUAL_UNITS:
            return None
        value = getattr(_stored(dims[0], letter), field)
        return None if value is None else (value, _symbol(dims[0]))


def _letter(dim: Dimension) -> str:
    return {"time": "T", "space": "Z"}.get(dim.type or "", "C")


def _joint(parts: Sequence[Dimension]) -> int:
    """Return the size of a chunk along an axis that several dimensions share, the slowest first."""
    size = 1
    for dim in reversed(parts):
        count = dim.count or UNBOUNDED
        chunk = min(dim.chunk_size or 1, count)
        size *= chunk
        if chunk < count:
            break  # the next one's steps are longer than a chunk
    return size


def _stored(dim: Dimension, letter: str) -> StoredAxis:
    scale, translation = _spacing(dim)
    if scale is not None and scale <= 0:  # how those who do not know the size say so
        scale = None
    return StoredAxis(dim.name, dim.type or "other", letter, dim.unit, scale, translation)


def _spacing(dim: Dimension) -> tuple[float | None, float | None]:
    """Return scale and translation, where they are not given from evenly spaced coords."""
    values = [item for item in dim.coords or () if isinstance(item, float | int)]
    if dim.type not in _USUAL_UNITS or len(values) < 2 or len(values) < len(dim.coords or ()):
        return dim.scale, dim.translation
    step = (values[-1] - values[0]) / (len(values) - 1)
    even = [values[0] + n * step for n in range(len(values))]
    if dim.scale is not None or step <= 0 or not np.allclose(values, even, 1e-6, 1e-6 * step):
        return dim.scale, dim.translation
    return step, values[0] if dim.translation is None else dim.translation


def _symbol(dim: Dimension) -> str:
    """Return the unit of a dimension of space or time as OME writes it."""
    found = unit_symbol(dim.unit, dim.type) if dim.unit else None
    return found or _USUAL_UNITS[str(dim.type)]


def _plan(settings: AcquisitionSettings, axes: _Axes) -> AcquisitionPlan:
    channels = _channels(axes.parts.get("C", []))
    if isinstance(settings.format, BdvFormat):
        levels, _ = _mipmaps(settings, axes)
    else:
        levels = pyramid_levels(
            axes.shape,
            _tile(settings, axes),
            1 if settings.pyramid is None else settings.pyramid_levels,
            multiple=1,
        )
    image = ImageSpec(
        dtype=np.dtype(settings.dtype),
        levels=levels,
        channels=tuple(SpecChannel(channel.name, channel.color) for channel in channels),
        physical_size=PhysicalSize(*(axes.quantity(letter, "scale") for letter in "XYZ")),
        time_increment=axes.quantity("T", "scale"),
        position=PhysicalSize(*(axes.quantity(letter, "translation") for letter in "XYZ")),
    )
    return AcquisitionPlan(
        image=image,
        order=axes.order,
        axes=axes.stored,
        channels=channels,
        positions=_positions(settings, axes),
        several=settings.position_dimension_index is not None,
        plate=_plate(settings),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _tile(settings: AcquisitionSettings, axes: _Axes) -> Shape5:
    """Return the size of a tile: a chunk, of what TIFF can store of it."""
    y, x, *_ = chunk = axes.chunk
    if not isinstance(settings.format, OmeTiffFormat):
        return chunk
    if x < axes.shape[1]:  # tiles have sides of multiples of 16; what is of full width is a strip
        y, x = -(-y // 16) * 16, -(-x // 16) * 16
    return (y, x, 1, 1, 1)


def _mipmaps(
    settings: AcquisitionSettings, axes: _Axes
) -> tuple[tuple[Level, ...], tuple[tuple[int, int, int], ...]]:
    """Return the levels BigDataViewer likes, and the factors of the smaller ones along Y, X, Z."""
    y, x, z, c, t = axes.shape
    full = Level(axes.shape, _bdv_tile(settings, axes))
    if settings.pyramid is None or z >= UNBOUNDED:  # which the store refuses
        return (full,), ()
    voxel, _ = voxel_of(PhysicalSize(*(axes.quantity(letter, "scale") for letter in "XYZ")))
    itemsize, count = np.dtype(settings.dtype).itemsize, settings.pyramid_levels
    found = propose((z, y, x), voxel, itemsize, count)[1:]
    levels = []
    for mipmap in found:
        nz, ny, nx = mipmap.shape((z, y, x))
        bz, by, bx = (min(n, b) for n, b in zip((nz, ny, nx), mipmap.block, strict=True))
        levels.append(Level((ny, nx, nz, c, t), (by, bx, bz, 1, 1)))
    factors = tuple((m.factor[1], m.factor[2], m.factor[0]) for m in found)
    return (full, *levels), factors


def _bdv_tile(settings: AcquisitionSettings, axes: _Axes) -> Shape5:
    """Return the size of a tile: unless the user says it, rows of a plane as they lie in a frame.

    They are half a megabyte, which goes to the disk without being copied or put together first;
    and a block of whole rows is as good for a viewer as a square one when it shows planes.
    """
    height, width = axes.shape[:2]
    y, x, z, *_ = axes.chunk
    if axes.y.chunk_size is None and axes.x.chunk_size is None:
        bands = -(-height * width * np.dtype(settings.dtype).itemsize // BLOCK_BYTES)
        y = min(height, -(-height // bands // _ROWS) * _ROWS)
    packed = settings.compression not in (None, "none")
    return (y, x, z if packed else 1, 1, 1)


def _channels(parts: Sequence[Dimension]) -> tuple[AcquiredChannel, ...]:
    """Return what is known of each C; where cameras share it, they are "DAPI-cam0" and so on."""
    if not any(dim.coords for dim in parts) or any(dim.count is None for dim in parts):
        return ()
    main = next((n for n, dim in enumerate(parts) if dim.type == "channel"), len(parts) - 1)
    channels = []
    for items in product(*(_coordinates(dim) for dim in parts)):
        others = (item.name or "" for n, item in enumerate(items) if n != main)
        name = "-".join((items[main].name or "", *others))
        channels.append(replace(items[main], name=name))
    return tuple(channels)


def _coordinates(dim: Dimension) -> list[AcquiredChannel]:
    """Return what lies at each position of a dimension; a name at least."""
    if dim.coords:
        return [_acquired(item) for item in dim.coords]
    return [AcquiredChannel(f"{dim.name}{n}") for n in range(dim.count or 1)]


def _acquired(item: Any) -> AcquiredChannel:
    if not isinstance(item, Channel):
        return AcquiredChannel(f"{item:g}" if isinstance(item, float) else str(item))
    return AcquiredChannel(
        item.name,
        _rgba(item),
        item.excitation_wavelength_nm,
        item.emission_wavelength_nm,
        item.fluorophore,
    )


def _rgba(item: Channel) -> tuple[int, int, int, int] | None:
    if item.color is None:
        return None
    red, green, blue, *alpha = item.color.as_rgb_tuple(alpha=True)
    return (int(red), int(green), int(blue), round(alpha[0] * 255))


def _positions(settings: AcquisitionSettings, axes: _Axes) -> tuple[AcquiredPosition, ...]:
    depth = axes.parts.get("Z", [axes.x])[0]

    def micrometers(value: float | None, dim: Dimension) -> float | None:
        return None if value is None else convert_length(value, _symbol(dim), "µm")

    return tuple(
        AcquiredPosition(
            name=position.name,
            row=position.plate_row,
            column=position.plate_column,
            grid_row=position.grid_row,
            grid_column=position.grid_column,
            x_um=micrometers(position.x_coord, axes.x),
            y_um=micrometers(position.y_coord, axes.y),
            z_um=micrometers(position.z_coord, depth),
        )
        for position in settings.positions
    )


def _plate(settings: AcquisitionSettings) -> CorePlate | None:
    """Return the plate, with the rows and columns of all positions."""
    if settings.plate is None:
        return None
    plate = settings.plate.core()
    rows = dict.fromkeys((*plate.rows, *(p.plate_row or "" for p in settings.positions)))
    columns = dict.fromkeys((*plate.columns, *(p.plate_column or "" for p in settings.positions)))
    return replace(plate, rows=tuple(rows), columns=tuple(columns))


def _options(settings: AcquisitionSettings, axes: _Axes, path: Path | None) -> StoreOptions:
    return StoreOptions(
        compression=settings.compression or "none",
        level=settings.compression_level,
        downsample=settings.downsample,
        extra=_extra(settings, axes),
        name=path.name if path is not None else "",
    )


def _extra(settings: AcquisitionSettings, axes: _Axes) -> dict[str, Any]:
    form = settings.format
    if isinstance(form, OmeTiffFormat):
        return {
            "suffix": form.suffix,
            "single_file": form.single_file(len(settings.positions)),
            "multi_file_metadata": form.multi_file_metadata,
            "companion_file": form.companion_file,
        }
    if isinstance(form, OmeZarrFormat):
        return {"ngff_version": form.ngff_version, "shards": _shards(settings, axes)}
    if isinstance(form, BdvFormat):
        return {
            "factors": _mipmaps(settings, axes)[1],
            "depth": axes.chunk[2],
            "pyramid": settings.pyramid,
        }
    return {
        "max_memory_bytes": form.max_memory_bytes,
        "spill_to_disk": form.spill_to_disk,
        "settings": settings.model_dump(mode="json"),
    }


def _shards(settings: AcquisitionSettings, axes: _Axes) -> Shape5 | None:
    """Return the size of a shard along Y, X, Z, C, T; None for chunks that are files."""
    if not any(dim.shard_size_chunks for dim in settings.array_dimensions):
        version_05 = getattr(settings.format, "ngff_version", "") == "0.5"
        return _usual_shards(axes, np.dtype(settings.dtype).itemsize) if version_05 else None
    dims = {"Y": [axes.y], "X": [axes.x], **axes.parts}
    y, x, z, c, t = (
        chunk * math.prod(dim.shard_size_chunks or 1 for dim in dims.get(letter, []))
        for letter, chunk in zip("YXZCT", axes.chunk, strict=True)
    )
    return (y, x, z, c, t)


def _usual_shards(axes: _Axes, itemsize: int) -> Shape5 | None:
    """Return shards of about 1 MiB for an acquisition that would make thousands of small files.

    They run along the slowest axis that is long enough, else along the longest.
    """
    height, width = axes.shape[:2]
    size = height * width * itemsize
    if size > _SMALL_FRAME or axes.order.planes <= _FEW_FRAMES:
        return None
    chunk = axes.chunk
    down, across = -(-height // chunk[0]), -(-width // chunk[1])
    frames = max(1, min(_SHARD // size, _MOST_CHUNKS // (down * across)))
    whole = [axis for axis in axes.order.axes if axis.step == 1]
    fitting = (axis for axis in whole if axis.size >= frames)
    letter, length, _ = next(fitting, None) or max(reversed(whole), key=lambda axis: axis.size)
    along = "YXZCT".index(letter)
    count = min(frames // chunk[along], -(-length // chunk[along]))
    if count < 2:
        return None
    counts = [down, across, 1, 1, 1]
    counts[along] = count
    y, x, z, c, t = (n * side for n, side in zip(counts, chunk, strict=True))
    return (y, x, z, c, t)
