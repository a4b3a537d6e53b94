"""Dimension: one axis of an acquisition, with its channels or positions."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from operator import index
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    model_validator,
)
from pydantic_extra_types.color import Color

from bioio_tk.errors import UnsupportedError
from bioio_tk.meta.ngff_axes import LENGTH_WORDS, TIME_WORDS, unit_symbol
from bioio_tk.stream.model import Model

DimensionType: TypeAlias = Literal["space", "time", "channel", "position", "other"]
Name: TypeAlias = Annotated[str, Field(min_length=1)]

_WORDS = {"space": LENGTH_WORDS, "time": TIME_WORDS}
_MEASURES = {"space": "length", "time": "time"}


class StandardAxis(str, Enum):  # noqa: UP042 - its str() is known to other programs
    """The axes everybody calls the same, with the type and the unit they usually have."""

    X = "x"
    Y = "y"
    Z = "z"
    CHANNEL = "c"
    TIME = "t"
    POSITION = "p"

    def dimension_type(self) -> DimensionType:
        """Return the type of such a dimension."""
        return _TYPES[self.value]

    def unit(self) -> str | None:
        """Return its unit, as NGFF writes it: micrometer, second or None."""
        return {"space": "micrometer", "time": "second"}.get(self.dimension_type())

    def to_dimension(
        self,
        *,
        count: int | None = None,
        coords: Sequence[Any] | None = None,
        chunk_size: int | None = None,
        shard_size_chunks: int | None = None,
        scale: float | None = None,
    ) -> Dimension:
        """Return a dimension of this name, type and unit; see `Dimension`."""
        return Dimension(
            name=self.value,
            count=count,
            coords=None if coords is None else list(coords),
            type=self.dimension_type(),
            unit=self.unit(),
            chunk_size=chunk_size,
            shard_size_chunks=shard_size_chunks,
            scale=scale,
        )


_TYPES: dict[str, DimensionType] = {
    "x": "space",
    "y": "space",
    "z": "space",
    "c": "channel",
    "t": "time",
    "p": "position",
}


class Channel(Model):
    """One channel; a plain string stands for one that has only a name.

    Parameters
    ----------
    name : str
        What it is called.
    excitation_wavelength_nm, emission_wavelength_nm : float or None
        In nanometers.
    fluorophore : str or None
        Name of the dye.
    color : pydantic_extra_types.color.Color or None
        How to show it: a name, ``"#00ff00"`` or 3 or 4 numbers (red, green, blue 0 to 255, alpha
        0 to 1).
    """

    name: Name
    excitation_wavelength_nm: PositiveInt | PositiveFloat | None = None
    emission_wavelength_nm: PositiveInt | PositiveFloat | None = None
    fluorophore: str | None = None
    color: Color | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data


class Position(Model):
    """One position of the stage; a plain string stands for one that has only a name.

    Parameters
    ----------
    name : str
        What it is called, unlike every other one of the same well and cell of the grid.
    plate_row, plate_column : str or None
        Names of the row and the column of its well; both or none.
    grid_row, grid_column : int or None
        Its cell, where positions form a grid; both or none.
    x_coord, y_coord, z_coord : float or None
        Where it is, in the unit of the space dimensions (micrometers where these have none).
    """

    name: Name
    plate_row: str | None = None
    plate_column: str | None = None
    grid_row: int | None = None
    grid_column: int | None = None
    x_coord: FiniteFloat | None = None
    y_coord: FiniteFloat | None = None
    z_coord: FiniteFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _check_pairs(self) -> Position:
        if (self.plate_row is None) != (self.plate_column is None):
            raise ValueError("plate_row and plate_column must both be set or both be None")
        if (self.grid_row is None) != (self.grid_column is None):
            raise ValueError("grid_row and grid_column must both be set or both be None")
        return self


def _unlike_channels(channels: list[Channel]) -> list[Channel]:
    if len({channel.name for channel in channels}) < len(channels):
        raise ValueError("Channel names must be unique.")
    return channels


def _unlike_positions(positions: list[Position]) -> list[Position]:
    counts = Counter((p.plate_row, p.plate_column, p.grid_row, p.grid_column, p.name)
                     for p in positions)  # fmt: skip
    twice = [key for key, count in counts.items() if count > 1]
    if not twice:
        return positions
    row, column, grid_row, grid_column, _ = group = twice[0]
    places = [] if row is None else [f'well ("{row}", "{column}")']
    if grid_row is not None:
        places.append(f"grid position ({grid_row}, {grid_column})")
    if not places:
        raise ValueError("All positions without row/column must have unique names.")
    names = [key[-1] for key in twice if key[:-1] == group[:-1]]
    raise ValueError(
        "Position names must be unique within each group. "
        f"Duplicate names in {', '.join(places)}: {names}"
    )


_as_channels: TypeAdapter[list[Channel]] = TypeAdapter(
    Annotated[list[Channel], AfterValidator(_unlike_channels)]
)
_as_positions: TypeAdapter[list[Position]] = TypeAdapter(
    Annotated[list[Position], AfterValidator(_unlike_positions)]
)


class Dimension(Model):
    """One axis of an acquisition.

    Parameters
    ----------
    name : str
        Any, best one of x, y, z, c, t, p.
    count : int or None
        Positions along it; None where nobody knows, for the first dimension only. By default as
        many as there are `coords`.
    type : {"space", "time", "channel", "position", "other"} or None
        None finds it out: from `Channel` or `Position` objects in `coords`, from the unit, from
        the name.
    coords : list of (str, float, Channel or Position), optional
        What lies at each position: names of channels or positions, distances, times.
    chunk_size : int, optional
        Positions in a chunk; by default all of the last two dimensions, 1 of the others.
    shard_size_chunks : int, optional
        Chunks in a shard (OME-Zarr 0.5).
    unit : str, optional
        Any spelling of a unit of length or time, kept as NGFF writes it (``"um"`` becomes
        ``"micrometer"``); anything for other types.
    scale : float, optional
        Distance of two positions, in `unit`: the size of a pixel, the time between two frames.
    translation : float, optional
        Where the first one lies, in `unit`.

    Examples
    --------
    >>> time = Dimension(name="t", count=5, unit="ms", scale=20)
    >>> time.type, time.unit
    ('time', 'millisecond')
    >>> Dimension(name="c", coords=["DAPI", "FITC"]).count
    2
    """

    name: Name
    count: PositiveInt | None = None
    type: DimensionType | None = None
    coords: list[str | float | Channel | Position] | None = None
    chunk_size: PositiveInt | None = None
    shard_size_chunks: PositiveInt | None = None
    unit: str | None = None
    scale: FiniteFloat | None = None
    translation: FiniteFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        coords, unit = _listed(data.get("coords")), data.get("unit")
        kind = data.get("type")
        if kind is None:
            kind = _suggested(data.get("name"), coords, unit)
        if kind == "position":
            coords = _numbered(coords, data.get("count"))
        if coords is not None:
            data["count"] = _counted(coords, data.get("count"))
            data["coords"] = _fitting(coords, kind)
        if isinstance(unit, str):
            data["unit"] = _ngff_unit(unit, kind)
        data["type"] = kind
        return data


class PositionDimension(Dimension):
    """Deprecated: a `Dimension` of type ``"position"``, its coords given as ``positions``."""

    name: Name = "p"
    type: Literal["position"] = "position"
    coords: list[Position] | None = None  # type: ignore[assignment]

    def model_post_init(self, _context: Any) -> None:
        """Warn: there is a better way."""
        warnings.warn(
            "PositionDimension is deprecated. "
            "Use Dimension(name='p', type='position', coords=[...]) instead.",
            DeprecationWarning,
            stacklevel=3,
        )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = {"name": "p", "type": "position", **data}
        positions = data.pop("positions", None)
        return data if positions is None else {**data, "coords": positions}


def dims_from_standard_axes(
    sizes: Mapping[str, int | Sequence[str | Position] | None],
    chunk_shapes: Mapping[str | StandardAxis, int] | None = None,
    shard_shapes: Mapping[str | StandardAxis, int] | None = None,
) -> list[Dimension]:
    """Return the dimensions of an acquisition along the usual axes.

    Parameters
    ----------
    sizes : mapping
        Size of each axis (x, y, z, c, t, p), slowest first; None for one without end. Positions
        and channels may be given by name.
    chunk_shapes : mapping, optional
        Positions in a chunk; by default all along x and y, 1 along the others.
    shard_shapes : mapping, optional
        Chunks in a shard; by default there are no shards.

    Raises
    ------
    ValueError
        An axis is none of the six; or a size is neither a number nor a list of names.

    Examples
    --------
    >>> [d.name for d in dims_from_standard_axes({"t": None, "p": ["A", "B"], "y": 64, "x": 64})]
    ['t', 'p', 'y', 'x']
    """
    axes = _standard(sizes)
    chunks, shards = dict(chunk_shapes or {}), dict(shard_shapes or {})
    _standard(chunks)
    _standard(shards)
    dims = []
    for axis in axes:
        count, named = _counted_or_named(axis, sizes[axis.value])
        usual = (count or 1) if axis in (StandardAxis.X, StandardAxis.Y) else 1
        dims.append(
            axis.to_dimension(
                count=count,
                coords=named,
                chunk_size=chunks.get(axis, None if axis is StandardAxis.POSITION else usual),
                shard_size_chunks=shards.get(axis),
            )
        )
    return dims


def _standard(given: Iterable[str]) -> list[StandardAxis]:
    try:
        return [StandardAxis(axis) for axis in given]
    except ValueError as exc:
        allowed = [axis.value for axis in StandardAxis]
        raise ValueError(
            f"Standard axes names must be one of {allowed}. Got: {list(given)}"
        ) from exc


def _counted_or_named(axis: StandardAxis, size: Any) -> tuple[int | None, list[Any] | None]:
    """Return a size as a number, or as a list of names."""
    if size is None:
        return None, None
    try:
        return index(size), None  # NumPy's integers, too
    except TypeError:
        if isinstance(size, Iterable) and not isinstance(size, str):
            return None, list(size)
    raise ValueError(
        f"size of {axis.value!r} is {size!r}: give a whole number, None for one without end, or a "
        "list of names"
    )


def _listed(coords: Any) -> list[Any] | None:
    if coords is None:
        return None
    if isinstance(coords, str):
        raise ValueError(f"`coords` must be an iterable type: give coords=[{coords!r}].")
    try:
        return list(coords)
    except TypeError:
        raise ValueError("`coords` must be an iterable type.") from None


def _suggested(name: Any, coords: list[Any] | None, unit: Any) -> DimensionType | None:
    """Return the type that coords, unit or name speak of."""
    from_coords: DimensionType | None = None
    if any(isinstance(item, Channel) for item in coords or ()):
        from_coords = "channel"
    elif any(isinstance(item, Position) for item in coords or ()):
        from_coords = "position"
    from_unit = _measured(unit) if isinstance(unit, str) else None
    if from_coords and from_unit:
        raise ValueError(
            f"Conflicting dimension type inference: coords suggests type='{from_coords}' but unit "
            f"suggests type='{from_unit}'. Please specify an explicit `type` or remove the "
            "conflicting field."
        )
    return from_coords or from_unit or _usual(name, coords)


def _measured(unit: str) -> DimensionType | None:
    kinds: tuple[DimensionType, ...] = ("space", "time")
    return next((kind for kind in kinds if _word(unit, kind)), None)


def _usual(name: Any, coords: list[Any] | None) -> DimensionType | None:
    """Return the type that goes with a name, unless the coords are something else."""
    kind = _TYPES.get(name.lower()) if isinstance(name, str) else None
    if kind in ("channel", "position") and coords is not None:
        return kind if all(isinstance(item, str | Mapping) for item in coords) else None
    return kind


def _numbered(coords: list[Any] | None, count: Any) -> list[Any] | None:
    """Return the positions, by their numbers where they have no names."""
    if coords is None and count is None:
        raise UnsupportedError(
            "Unbounded position dimensions (count=None) are not yet implemented. "
            "Please provide explicit coords or a finite count."
        )
    if coords is None:
        return [str(n) for n in range(count)] if isinstance(count, int) and count > 0 else None
    if not coords:
        raise UnsupportedError(
            "Empty coords for position dimensions are not yet implemented. Please provide "
            "explicit position names or use count to auto-generate."
        )
    return coords


def _counted(coords: list[Any], count: Any) -> Any:
    if count is None:
        return len(coords)
    if len(coords) != count:
        raise ValueError(f"Length of coords ({len(coords)}) does not match count ({count}).")
    return count


def _fitting(coords: list[Any], kind: Any) -> list[Any]:
    """Return the coords as channels or positions where they are."""
    for model, wanted in ((Channel, "channel"), (Position, "position")):
        if not any(isinstance(item, model) for item in coords):
            continue
        if not all(isinstance(item, str | model) for item in coords):
            raise ValueError(f"May not mix {model.__name__} objects with other coord types.")
        if kind != wanted:
            raise ValueError(
                f"{model.__name__} objects in coords require type='{wanted}', got type='{kind}'"
            )
    if kind == "channel":
        return [*_as_channels.validate_python(coords)]
    if kind == "position":
        return [*_as_positions.validate_python(coords)]
    return coords


def _ngff_unit(unit: str, kind: Any) -> str:
    """Return a unit as NGFF writes it, those of other types as they are."""
    if kind not in _WORDS:
        return unit
    word = _word(unit, kind)
    if word is None:
        known = [name for pair in _WORDS[kind].items() for name in pair]
        raise ValueError(
            f"Unrecognized unit of {_MEASURES[kind]}: {unit!r}.\n  "
            f"Recognized units of {_MEASURES[kind]} include: {known}"
        )
    return word


def _word(unit: str, kind: str) -> str | None:
    return _WORDS[kind].get(unit_symbol(unit, kind) or "")
