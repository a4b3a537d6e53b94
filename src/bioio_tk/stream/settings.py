"""AcquisitionSettings: what is going to be recorded, where to and how."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bioio_tk.core.dtype import pixel_dtype
from bioio_tk.errors import BioIOWarning, PixelTypeError, SpecError
from bioio_tk.stream.dimensions import (
    Channel,
    Dimension,
    DimensionType,
    Position,
    PositionDimension,
    StandardAxis,
    dims_from_standard_axes,
)
from bioio_tk.stream.formats import (
    SPOKEN,
    BdvFormat,
    Compression,
    Format,
    OmeTiffFormat,
    OmeZarrFormat,
    ScratchFormat,
    contradiction,
    format_called,
    split_suffix,
    suffix_format,
)
from bioio_tk.stream.model import Model
from bioio_tk.stream.plate import Plate

__all__ = [
    "AcquisitionSettings",
    "AcquisitionSettingsDict",
    "BdvFormat",
    "Channel",
    "Dimension",
    "DimensionType",
    "OmeTiffFormat",
    "OmeZarrFormat",
    "Plate",
    "Position",
    "PositionDimension",
    "ScratchFormat",
    "StandardAxis",
    "dims_from_standard_axes",
]

_MOST = 5


class AcquisitionSettingsDict(TypedDict):
    """The part of the settings that a description of an experiment knows."""

    dimensions: list[Dimension]
    plate: Plate | None


def _checked_dimensions(dims: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
    if not dims:
        return dims
    kinds = Counter(dim.type for dim in dims)
    if kinds["position"] > 1:
        raise ValueError("Only one position dimension is allowed.")
    if any(dim.count is None for dim in dims[1:]):
        raise ValueError("Only the first dimension may be unbounded (count=None).")
    number = len(dims) - kinds["position"]
    if number < 2:
        raise ValueError("At least 2 non-position dimensions are required (usually Y and X).")
    # what is of type "other" shares the axis of the channels
    alone = int(kinds["other"] > 0 and not kinds["channel"])
    if number > _MOST and number - kinds["other"] + alone > _MOST:
        raise ValueError(
            "At most 5 non-position dimensions are allowed for both OME-Zarr and OME-TIFF, "
            f"got {number}. (Further ones of type='other', such as several cameras, are stored "
            "along the channel axis.)"
        )
    names = Counter(dim.name for dim in dims)
    if len(names) < len(dims):
        twice = [name for name, count in names.items() if count > 1]
        raise ValueError(f"Dimension names must be unique, duplicates: {twice}")
    frame = tuple(_in_frame(dim) for dim in dims[-2:])
    if any(dim.count is None for dim in frame):
        raise ValueError("The last two dimensions are those of a frame: their count must be given.")
    return (*dims[:-2], *frame)


def _in_frame(dim: Dimension) -> Dimension:
    if dim.type == "space":
        return dim
    if dim.type is not None:
        raise ValueError(
            "The last two dimensions must be spatial dimensions (type='space'). "
            f"{dim.name!r} is of type {dim.type!r}: give the dimensions from the slowest to the "
            "fastest, Y and X at the end."
        )
    warnings.warn(
        "The last two dimensions are expected to have type='space'. Setting type='space' for "
        f"non-standard dimension name '{dim.name}'.",
        BioIOWarning,
        stacklevel=5,
    )
    return Dimension(**{**dict(dim), "type": "space"})


def _listed_dimensions(given: Any) -> Any:
    if isinstance(given, Mapping) or (
        isinstance(given, Sequence) and any(isinstance(dim, str | Sequence) for dim in given)
    ):
        raise ValueError(
            "dimensions are a list of Dimension, such as [Dimension(name='t', count=5), ...]; for "
            "sizes along the usual axes give dims_from_standard_axes({'t': 5, 'y': 64, 'x': 64})"
        )
    return given


def _checked_dtype(given: Any) -> Any:
    if isinstance(given, str) and not given:
        return given
    try:
        return pixel_dtype(given).name
    except PixelTypeError as exc:
        raise ValueError(f"Invalid dtype: {given!r}: {exc}") from exc


def _path_text(given: Any) -> str:
    if given is None:
        return ""
    return os.fsdecode(given) if isinstance(given, bytes | os.PathLike) else str(given)


def _maybe_path_text(given: Any) -> str | None:
    return None if given is None else _path_text(given)


class AcquisitionSettings(Model):
    """All that `create_stream` has to know.

    Parameters
    ----------
    root_path : str or Path
        Where the output goes; without a known suffix the format's own is added. Empty only for
        the scratch format.
    dimensions : sequence of Dimension
        The axes in the order of acquisition, the slowest first, at last the two of a frame (Y, X).
        May be set later.
    dtype : str
        Pixel type: bool, integers, floats, complex. May be set later.
    format : str, dict or format
        ``"ome-tiff"``, ``"ome-zarr"``, ``"bdv"``, ``"scratch"``, ``"auto"`` (by the suffix), or
        an `OmeTiffFormat`, `OmeZarrFormat`, `BdvFormat` or `ScratchFormat`.
    compression : str or None
        None stores raw pixels; else ``"zstd"``, for OME-Zarr ``"blosc-zstd"``, ``"blosc-lz4"``,
        ``"gzip"``, for OME-TIFF ``"deflate"``, ``"lzw"`` and what else `BioWriter` takes, for
        BigDataViewer ``"gzip"``.
    compression_level : int or None
        In the codec's own scale; None is the usual one.
    storage_order : {"ome", "acquisition"} or list of str
        Order of the axes of stored arrays: time, channel, z (``"ome"``), as they are acquired, or
        as listed.
    plate : Plate or None
        Makes a well plate of the positions, which then need a row and a column.
    overwrite : bool
        Replace what is there.
    pyramid : {"live", "after"} or None
        Make smaller levels while frames come or when the stream is closed.
    pyramid_levels : int or None
        Levels, the full resolution included; None until a plane is no larger than 256 pixels.
    downsample : {"mean", "nearest", "mode", "median", "max"}
        How pixels of a smaller level come about.
    backpressure : {"block", "raise", "spill"}
        When frames come faster than they are stored: wait, raise an error, or keep them in a
        temporary file.
    max_memory_bytes : int
        Memory that frames may take until they are stored, in bytes. Where chunks are longer than
        a frame, half of it is for chunks that wait for their rest.
    spill_dir : str or None
        Folder of the temporary file; None is the one of the output.
    max_workers : int or None
        Threads that compress and write; None fits the machine.
    sync : bool
        `close` returns when everything has reached the disk, not just the system; it takes as
        long as the disk does.

    Raises
    ------
    pydantic.ValidationError
        A value, or a combination of them, makes no sense; it is a ValueError.
    NotImplementedError
        The number of positions is not known.

    Examples
    --------
    >>> settings = AcquisitionSettings(
    ...     root_path="run.ome.zarr",
    ...     dimensions=dims_from_standard_axes({"t": None, "c": 2, "y": 512, "x": 512}),
    ...     dtype="uint16",
    ... )
    >>> settings.is_unbounded, settings.format.name
    (True, 'ome-zarr')
    """

    root_path: Annotated[str, BeforeValidator(_path_text)] = ""
    dimensions: Annotated[
        tuple[Dimension, ...],
        BeforeValidator(_listed_dimensions),
        AfterValidator(_checked_dimensions),
    ] = ()
    dtype: Annotated[str, BeforeValidator(_checked_dtype)] = ""
    format: Format = "auto"  # type: ignore[assignment]
    compression: Compression | None = None
    storage_order: Literal["acquisition", "ome"] | list[str] = "ome"
    plate: Plate | None = None
    overwrite: bool = False
    compression_level: int | None = None
    pyramid: Literal["live", "after"] | None = None
    pyramid_levels: PositiveInt | None = None
    downsample: Literal["mean", "nearest", "mode", "median", "max"] = "mean"
    backpressure: Literal["block", "raise", "spill"] = "block"
    max_memory_bytes: PositiveInt = 256 << 20
    spill_dir: Annotated[str | None, BeforeValidator(_maybe_path_text)] = None
    max_workers: PositiveInt | None = None
    sync: bool = False

    @property
    def output_path(self) -> str:
        """Where the output goes: a file, or a folder where there are several."""
        self._dims("output_path")
        return self.format.get_output_path(self.root_path, num_positions=len(self.positions))

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Size along each dimension, None without end."""
        return tuple(dim.count for dim in self._dims("shape"))

    @property
    def is_unbounded(self) -> bool:
        """Nobody knows how many frames will come."""
        return self._dims("is_unbounded")[0].count is None

    @property
    def num_frames(self) -> int | None:
        """Frames in all, None where nobody knows."""
        total = 1
        for dim in self._dims("num_frames")[:-2]:
            if dim.count is None:
                return None
            total *= dim.count
        return total

    @property
    def positions(self) -> tuple[Position, ...]:
        """The positions in order of acquisition; one called "0" where none were given."""
        index = self._position_index("positions")
        coords = None if index is None else self.dimensions[index].coords
        found = tuple(item for item in coords or () if isinstance(item, Position))
        return found or (Position(name="0"),)

    @property
    def position_dimension_index(self) -> int | None:
        """Number of the dimension that runs over the positions."""
        return self._position_index("position_dimension_index")

    @property
    def frame_dimensions(self) -> tuple[Dimension, ...]:
        """The two dimensions of a frame, Y and X."""
        return self._dims("frame_dimensions")[-2:]

    @property
    def index_dimensions(self) -> tuple[Dimension, ...]:
        """All others but the positions, in order of acquisition."""
        dims = self._dims("index_dimensions")[:-2]
        return tuple(dim for dim in dims if dim.type != "position")

    @property
    def array_dimensions(self) -> tuple[Dimension, ...]:
        """All but the positions, in order of acquisition."""
        dims = self._dims("array_dimensions")
        return tuple(dim for dim in dims if dim.type != "position")

    @property
    def storage_index_dimensions(self) -> tuple[Dimension, ...]:
        """`index_dimensions` in storage order."""
        self._dims("storage_index_dimensions")
        dims, order = self.index_dimensions, self.storage_order
        if isinstance(order, list):
            return tuple(sorted(dims, key=lambda dim: order.index(dim.name)))
        if order == "acquisition" or self.format.name == "scratch":
            return dims
        return tuple(sorted(dims, key=_ngff_rank if self.format.name == "ome-zarr" else _ome_rank))

    @property
    def storage_index_permutation(self) -> tuple[int, ...] | None:
        """Where each of `storage_index_dimensions` is acquired; None where nothing moves."""
        self._dims("storage_index_permutation")
        names = [dim.name for dim in self.index_dimensions]
        order = tuple(names.index(dim.name) for dim in self.storage_index_dimensions)
        return None if order == tuple(range(len(order))) else order

    @property
    def array_storage_dimensions(self) -> tuple[Dimension, ...]:
        """`array_dimensions` in storage order."""
        self._dims("array_storage_dimensions")
        return self.storage_index_dimensions + self.frame_dimensions

    def validate_stream_ready(self) -> Literal[True]:
        """Raise unless all is known that a stream needs, and fits together.

        Raises
        ------
        ValueError
            What is missing, or what contradicts what.
        """
        if not self.dimensions:
            raise SpecError("settings.dimensions must be set before creating a stream")
        if not self.dtype:
            raise SpecError("settings.dtype must be set before creating a stream")
        # a copy with model_copy(update=...) has not been checked yet
        type(self).model_validate(dict(self), context={"ready": True})
        return True

    @model_validator(mode="before")
    @classmethod
    def _choose_format(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if "backend" in data:
            raise ValueError(
                "`backend` is no longer a top-level field in AcquisitionSettings. Please specify "
                "backend within the `format` field, or pass the backend name directly as the "
                "`format` value."
            )
        root, chosen = _path_text(data.get("root_path")), data.get("format", "auto")
        if isinstance(chosen, str) and chosen.lower() == "auto":
            chosen = _format_of(root)
        if isinstance(chosen, str | Mapping):
            chosen = format_called(chosen, root)
        return {**data, "format": chosen}

    @field_validator("storage_order")
    @classmethod
    def _check_names(cls, order: str | list[str]) -> str | list[str]:
        if isinstance(order, list) and len(set(order)) < len(order):
            raise ValueError(f"storage_order {order!r} names a dimension twice")
        return order

    @model_validator(mode="after")
    def _check_together(self, info: ValidationInfo) -> AcquisitionSettings:
        _check_compression(self)
        if self.dimensions:
            _check_order(self)
            _check_plate(self, warn=not (info.context or {}).get("ready"))
        if not (info.context or {}).get("assigned"):  # what is set next may well cure it
            _check_path(self)
            _check_options(self)
        return self

    def _dims(self, wanted: str) -> tuple[Dimension, ...]:
        if not self.dimensions:
            raise SpecError(f"Cannot access '{wanted}': dimensions has not been set yet.")
        return self.dimensions

    def _position_index(self, wanted: str) -> int | None:
        dims = self._dims(wanted)[:-2]
        return next((n for n, dim in enumerate(dims) if dim.type == "position"), None)


def _format_of(root: str) -> str:
    if not root:
        return "scratch"
    found = suffix_format(split_suffix(root)[1])
    if found is None:
        warnings.warn(
            f"Output format could not be inferred from root_path {root!r}: OME-Zarr is taken. "
            "Specify it (format='ome-zarr', 'ome-tiff' or 'bdv'), or give root_path a suffix.",
            BioIOWarning,
            stacklevel=4,
        )
    return found or "ome-zarr"


def _check_compression(settings: AcquisitionSettings) -> None:
    form, given = settings.format, settings.compression
    if given is None or isinstance(form, ScratchFormat) or given in form.compressions:
        return
    raise ValueError(
        f"Compression '{given}' is not supported for {SPOKEN[form.name]}. "
        f"Supported: {form.compressions}."
    )


def _check_order(settings: AcquisitionSettings) -> None:
    order = settings.storage_order
    if not isinstance(order, list):
        return
    names = [dim.name for dim in settings.dimensions]
    if order[-2:] != names[-2:]:
        raise ValueError("storage_order may not (yet) permute the last two dimensions.")
    index = settings.position_dimension_index
    if set(order) | ({names[index]} if index is not None else set()) != set(names):
        raise ValueError(
            f"storage_order names {order!r} don't match acquisition dimension names {names}"
        )


def _check_plate(settings: AcquisitionSettings, *, warn: bool) -> None:
    plate = settings.plate
    if plate is None:
        return
    if settings.position_dimension_index is None:
        raise ValueError("Plate mode requires a position dimension in dimensions.")
    homeless = [p.name for p in settings.positions if not p.plate_row or not p.plate_column]
    if homeless:
        raise ValueError(
            "All positions must have row and column for plate mode. "
            f"Missing row/column for positions: {homeless}"
        )
    strange = [
        position.name
        for position in settings.positions
        if position.plate_row not in plate.row_names
        or position.plate_column not in plate.column_names
    ]
    if strange and warn:
        warnings.warn(
            "Some positions have row/column values not in the plate definition: "
            f"{strange}. Rows and columns that are missing there are added.",
            BioIOWarning,
            stacklevel=4,
        )


def _check_path(settings: AcquisitionSettings) -> None:
    wrong = contradiction(settings.format.name, settings.root_path)
    if wrong is not None:
        raise ValueError(wrong)


def _check_options(settings: AcquisitionSettings) -> None:
    form = settings.format
    if settings.compression_level is not None and settings.compression in (None, "none"):
        raise ValueError(
            f"compression_level={settings.compression_level} says nothing without a compression"
        )
    if settings.pyramid_levels is not None and settings.pyramid is None:
        raise ValueError(
            f"pyramid_levels={settings.pyramid_levels} needs pyramid='live' or 'after'"
        )
    if settings.pyramid is not None and isinstance(form, ScratchFormat):
        raise ValueError(
            "a pyramid is for OME-TIFF, OME-Zarr and BigDataViewer, not for the scratch format"
        )
    if settings.spill_dir is not None and settings.backpressure != "spill":
        raise ValueError(f"spill_dir={settings.spill_dir!r} needs backpressure='spill'")
    if isinstance(form, OmeZarrFormat) and form.ngff_version == "0.4":
        sharded = [dim.name for dim in settings.dimensions if dim.shard_size_chunks is not None]
        if sharded:
            raise ValueError(
                f"shard_size_chunks of {sharded}: shards need ngff_version='0.5'; Zarr v2, which "
                "0.4 rests on, has none"
            )


def _ngff_rank(dim: Dimension) -> tuple[int, int]:
    """Sort time, channel, anything else, space: what is not of space comes first in NGFF."""
    rank = {"time": 0, "channel": 1, "space": 3}.get(dim.type or "", 2)
    return rank, {"z": 0, "y": 1, "x": 2}.get(dim.name, -1) if rank == 3 else 0


def _ome_rank(dim: Dimension) -> int:
    """Sort anything else behind Z, C and T, which OME-TIFF takes in any order."""
    return 0 if dim.name.lower() in ("t", "c", "z") else 1
