"""useq_to_acquisition_settings: what a sequence of useq-schema is going to record, as dimensions.

What is said here of the order of frames is how `useq.MDASequence` iterates: the product of its
axes, and the grid of a position's own sequence inside all of them.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from bioio_tk.errors import BackendMissingError, BioIOWarning, SpecError, UnsupportedError
from bioio_tk.stream.settings import (
    AcquisitionSettingsDict,
    Channel,
    Dimension,
    Plate,
    Position,
    StandardAxis,
)

if TYPE_CHECKING:
    import useq
    from useq._position import PositionBase


class Layout(NamedTuple):
    """How the dimensions are stored, and their units, each by the name of the dimension."""

    units: Mapping[str, tuple[float, str] | None]
    chunks: Mapping[str, int]
    shards: Mapping[str, int]


class Stop(NamedTuple):
    """A place where images are taken: number of the stage position, of the grid point there."""

    position: int | None
    point: int | None
    made: Position


def useq_to_acquisition_settings(
    seq: useq.MDASequence,
    image_width: int,
    image_height: int,
    *,
    units: Mapping[str, tuple[float, str] | None] | None = None,
    pixel_size_um: float | None = None,
    chunk_shapes: Mapping[str, int] | None = None,
    shard_shapes: Mapping[str, int] | None = None,
) -> AcquisitionSettingsDict:
    """Return the dimensions, and the plate, of what a useq-schema sequence records.

    The frames of ``seq``, in the order in which it yields its events, are the frames of the
    dimensions in their order: `OMEStream.append` puts each where it belongs. Stage positions,
    grids and wells become one dimension of positions.

    Parameters
    ----------
    seq : useq.MDASequence
        The sequence; useq-schema 0.9.2 or later (``pip install 'bioio-tk[useq]'``).
    image_width, image_height : int
        Size of a frame in pixels.
    units : mapping, optional
        Distance of two positions and unit, by dimension: ``{"t": (1.5, "minute")}``.
    pixel_size_um : float, optional
        Size of a pixel; 0, which Micro-Manager says where it does not know, is none.
    chunk_shapes, shard_shapes : mapping, optional
        Pixels of a chunk and chunks of a shard, by dimension (t, c, z, y, x).

    Returns
    -------
    dict
        ``dimensions`` and ``plate`` (None without wells) for `AcquisitionSettings`.

    Raises
    ------
    UnsupportedError
        (a NotImplementedError) The frames fill no regular array in that order: a z-stack in some
        channels only, a channel that skips time points, a position with times, channels or planes
        of its own, other axes between positions and grid, a grid of one position's own inside of
        channels or planes, a time without end that is not the first axis. Record these with an
        unbounded first dimension and the metadata of each frame.
    SpecError
        (a ValueError) ``seq`` is no such sequence.
    BackendMissingError
        (an ImportError) useq-schema is too old or not installed.

    Examples
    --------
    >>> import useq
    >>> seq = useq.MDASequence(channels=["DAPI", "GFP"], time_plan={"interval": 2, "loops": 5})
    >>> found = useq_to_acquisition_settings(seq, 512, 256, pixel_size_um=0.1)
    >>> [(dim.name, dim.count, dim.scale) for dim in found["dimensions"]]
    [('t', 5, 2.0), ('c', 2, 1.0), ('y', 256, 0.1), ('x', 512, 0.1)]
    """
    _check_type(seq)
    layout = Layout(units or {}, chunk_shapes or {}, shard_shapes or {})
    sizes = _sizes(seq)
    _check_regular(seq, sizes)
    stops = _unique(_stops(seq, sizes))
    dimensions = [
        StandardAxis.POSITION.to_dimension(coords=[stop.made for stop in stops])
        if axis == "p"
        else _dimension(seq, axis, sizes[axis], layout)
        for axis in _order(seq, sizes, stops)
    ]
    pixel = _pixel_size(pixel_size_um)
    for axis, count in (("y", image_height), ("x", image_width)):
        dimensions.append(_made(axis, count, layout, pixel, "micrometer"))
    return {"dimensions": dimensions, "plate": _plate(seq, stops)}


def dims_from_useq(
    seq: useq.MDASequence,
    image_width: int,
    image_height: int,
    *,
    units: Mapping[str, tuple[float, str] | None] | None = None,
    pixel_size_um: float | None = None,
    chunk_shapes: Mapping[str, int] | None = None,
    shard_shapes: Mapping[str, int] | None = None,
) -> list[Dimension]:
    """Return the dimensions that `useq_to_acquisition_settings` finds (deprecated)."""
    warnings.warn(
        "dims_from_useq is deprecated, as it loses the plate: use "
        "useq_to_acquisition_settings(...)['dimensions']",
        DeprecationWarning,
        stacklevel=2,
    )
    found = useq_to_acquisition_settings(
        seq,
        image_width,
        image_height,
        units=units,
        pixel_size_um=pixel_size_um,
        chunk_shapes=chunk_shapes,
        shard_shapes=shard_shapes,
    )
    return found["dimensions"]


# ------------------------------------------------------------------ what a sequence is


def _check_type(seq: object) -> None:
    try:
        import useq
    except ImportError as exc:
        text = "to read a sequence, useq-schema is needed: pip install 'bioio-tk[useq]'"
        raise BackendMissingError(text) from exc
    if "plate_row" not in useq.Position.model_fields:
        text = "this useq-schema is too old: pip install 'useq-schema>=0.9.2'"
        raise BackendMissingError(text)
    if not isinstance(seq, useq.MDASequence):
        raise SpecError(f"seq must be a useq.MDASequence, and this is a {type(seq).__name__}")


def _sizes(seq: useq.MDASequence) -> dict[str, int | None]:
    """Return the size of each axis that is used, the slowest first; None for one without end."""
    try:
        found: dict[str, int | None] = {str(axis): size for axis, size in seq.sizes.items()}
    except ZeroDivisionError:  # a duration, and no time between two frames
        finite = seq.model_copy(update={"time_plan": None})
        found = {str(axis): size for axis, size in finite.sizes.items()}
        found["t"] = None
    order = [str(axis) for axis in seq.axis_order]
    return {axis: found[axis] for axis in order if found[axis] != 0}


def _many(sizes: Mapping[str, int | None], axis: str) -> bool:
    return sizes.get(axis, 1) != 1


# ------------------------------------------------------------------ what fits an array

_RAGGED = "; record this with an unbounded first dimension and the metadata of each frame"


def _check_regular(seq: useq.MDASequence, sizes: Mapping[str, int | None]) -> None:
    """Raise UnsupportedError where the frames fill no regular array."""
    if None in list(sizes.values())[1:]:
        text = f"a time plan without end must be the slowest axis, not one of {_axes(seq)}"
        raise UnsupportedError(text + _RAGGED)
    _check_channels(seq, sizes)
    _check_positions(seq, sizes)
    if "p" in sizes and "g" in sizes:
        _check_grid(seq, sizes)


def _check_channels(seq: useq.MDASequence, sizes: Mapping[str, int | None]) -> None:
    if "c" not in sizes:
        return
    if _many(sizes, "z") and not all(channel.do_stack for channel in seq.channels):
        raise UnsupportedError(
            "Sequences with Channel.do_stack=False values are not supported: some channels would "
            "have fewer planes than others" + _RAGGED
        )
    if _many(sizes, "t") and any(channel.acquire_every != 1 for channel in seq.channels):
        raise UnsupportedError(
            "Sequences with Channel.acquire_every > 1 are not supported: some channels would have "
            "fewer time points than others" + _RAGGED
        )


def _check_positions(seq: useq.MDASequence, sizes: Mapping[str, int | None]) -> None:
    """Look at the sequences that positions have of their own."""
    for number, own in _own(seq, sizes):
        if own.time_plan or own.channels or own.z_plan:
            raise UnsupportedError(
                "Ragged dimensions detected: a sequence of a position's own may only contain a "
                f"grid_plan, and that of position {number} has times, channels or planes" + _RAGGED
            )
        if own.grid_plan and "g" not in own.used_axes:
            raise UnsupportedError(
                f"the grid of position {number} is none of the axes {own.axis_order} of its own "
                "sequence: give it axis_order='g'"
            )
        if own.autofocus_plan and own.grid_plan and _many(sizes, "g"):
            raise UnsupportedError(
                f"position {number} has a grid and an autofocus_plan of its own, and is visited "
                "once more for each point of the sequence's grid" + _RAGGED
            )
        if not own.grid_plan and not own.autofocus_plan and _many(sizes, "c"):
            raise UnsupportedError(
                f"useq takes only the first channel at position {number}, as its own sequence has "
                "no grid_plan: remove that sequence"
            )


def _own(
    seq: useq.MDASequence, sizes: Mapping[str, int | None]
) -> Iterator[tuple[int, useq.MDASequence]]:
    """Yield the positions that are visited and have a sequence of their own, by number."""
    if "p" in sizes:
        for number, position in enumerate(_positions(seq)):
            if position.sequence is not None:
                yield number, position.sequence


def _check_grid(seq: useq.MDASequence, sizes: Mapping[str, int | None]) -> None:
    if _plate_plan(seq) is not None:
        raise UnsupportedError(
            "WellPlatePlan with grid_plan is not supported. Use well_points_plan on the "
            "WellPlatePlan instead."
        )
    longer = [axis for axis in sizes if _many(sizes, axis)]
    if {"p", "g"} <= set(longer) and abs(longer.index("p") - longer.index("g")) != 1:
        raise UnsupportedError(
            f"axis_order {_axes(seq)} has non-adjacent position and grid axes, which make one "
            "dimension of positions: let p and g follow each other, as in 'tpgcz'" + _RAGGED
        )


def _axes(seq: useq.MDASequence) -> str:
    return repr("".join(str(axis) for axis in seq.axis_order))


# ------------------------------------------------------------------ positions


def _positions(seq: useq.MDASequence) -> list[useq.Position]:
    """Return the positions of the stage; a WellPlatePlan computes them whenever it is asked."""
    return list(seq.stage_positions)


def _plate_plan(seq: useq.MDASequence) -> useq.WellPlatePlan | None:
    import useq

    found = seq.stage_positions
    return found if isinstance(found, useq.WellPlatePlan) else None


def _stops(seq: useq.MDASequence, sizes: Mapping[str, int | None]) -> list[Stop]:
    """Return all places where images are taken, in the order of the visit."""
    plan = _plate_plan(seq)
    if "p" in sizes and plan is not None:
        return list(_well_stops(plan))
    grid = list(enumerate(seq.grid_plan or ())) if "g" in sizes else []
    if "p" not in sizes:
        return _grid_stops(seq, grid)
    positions = list(enumerate(_positions(seq)))
    if not grid:
        return [stop for p, position in positions for stop in _visit(p, position, None)]
    order = list(sizes)
    if order.index("g") < order.index("p"):
        pairs = [(p, point) for point in grid for p in positions]
    else:
        pairs = [(p, point) for p in positions for point in grid]
    return [stop for (p, position), point in pairs for stop in _visit(p, position, point)]


def _well_stops(plan: useq.WellPlatePlan) -> Iterator[Stop]:
    import useq

    points = plan.well_points_plan
    fields = [points] if isinstance(points, useq.RelativePosition) else list(points)
    for number, position in enumerate(plan):
        field = number % len(fields)
        row, column = _well(position)
        made = Position(
            name=f"fov{field}",
            plate_row=row,
            plate_column=column,
            **_cell(fields[field]),
            x_coord=position.x,
            y_coord=position.y,
        )
        yield Stop(number, field, made)


def _grid_stops(seq: useq.MDASequence, grid: Sequence[tuple[int, PositionBase]]) -> list[Stop]:
    """Return the points of a grid that is visited without stage positions."""
    import useq

    if len(seq.stage_positions) == 1:  # it is not visited, but lends its name
        (only,) = _positions(seq)
        position = useq.Position(name=only.name, plate_row=only.plate_row, plate_col=only.plate_col)
        return [_stop(0, position, point) for point in grid]
    return [_grid_stop(number, point) for number, point in grid]


def _grid_stop(number: int, point: PositionBase) -> Stop:
    made = Position(
        name=f"{number:04d}",
        **_cell(point),
        x_coord=point.x,
        y_coord=point.y,
        z_coord=point.z,
    )
    return Stop(None, number, made)


def _visit(
    number: int, position: useq.Position, point: tuple[int, PositionBase] | None
) -> list[Stop]:
    """Return where a position is visited, at one point of the sequence's grid if it has any."""
    own = position.sequence and position.sequence.grid_plan
    if own:
        if point is not None and point[0] != 0:
            return []  # its own grid takes the place of the sequence's, once
        return [_stop(number, position, place) for place in enumerate(own)]
    return [_stop(number, position, point)]


def _stop(number: int, position: useq.Position, point: tuple[int, PositionBase] | None) -> Stop:
    import useq

    row, column = _well(position)
    x, y = position.x, position.y
    at: PositionBase = position if point is None else point[1]
    if point is not None:
        near = isinstance(at, useq.RelativePosition)
        x, y = ((x or 0) + (at.x or 0), (y or 0) + (at.y or 0)) if near else (at.x, at.y)
    made = Position(
        name=position.name or str(number),
        plate_row=row,
        plate_column=column,
        x_coord=x,
        y_coord=y,
        z_coord=position.z,
        **_cell(at),
    )
    return Stop(number, None if point is None else point[0], made)


def _cell(at: PositionBase) -> dict[str, Any]:
    """Return the cell of a grid a position is said to be, if both of its numbers are."""
    if at.grid_row is None or at.grid_col is None:
        return {}
    return {"grid_row": at.grid_row, "grid_column": at.grid_col}


def _unique(stops: Sequence[Stop]) -> list[Stop]:
    """Give positions names that tell them apart, where they have no cell of a grid for that."""
    taken = Counter(_identity(stop) for stop in stops)
    several = len({stop.position for stop in stops}) > 1
    return [_named(stop, several, taken[_identity(stop)] > 1) for stop in stops]


def _identity(stop: Stop) -> tuple[Any, ...]:
    made = stop.made
    where = (made.plate_row, made.plate_column, made.grid_row, made.grid_column)
    return made.name, *where, stop.point if _free(stop) else None


def _free(stop: Stop) -> bool:
    """Return whether it is a point of a grid that has no cells."""
    return stop.point is not None and stop.made.grid_row is None


def _named(stop: Stop, several: bool, twice: bool) -> Stop:
    if stop.position is None or stop.made.name == f"fov{stop.point}":
        return stop  # grids and wells have names of their own
    ending = f"_p{stop.position:04d}" if twice or (several and _free(stop)) else ""
    ending += f"_g{stop.point:04d}" if _free(stop) else ""
    name = stop.made.name + ending
    return stop._replace(made=stop.made.model_copy(update={"name": name}))


def _well(position: useq.Position) -> tuple[str | None, str | None]:
    row, column = position.plate_row, position.plate_col
    if row is None and column is None:
        return None, None
    if row is None or column is None:
        warnings.warn(
            f"Position {position.name!r} has plate_row={row} and plate_col={column}: both must be "
            "set to name a well, and neither is used",
            BioIOWarning,
            stacklevel=2,
        )
        return None, None
    return _row_name(row), str(column + 1)


def _row_name(index: int) -> str:
    """Return A, B, … Z, AA, AB, … for 0, 1, …."""
    name = ""
    while index >= 0:
        name = chr(index % 26 + ord("A")) + name
        index = index // 26 - 1
    return name


def _plate(seq: useq.MDASequence, stops: Sequence[Stop]) -> Plate | None:
    """Return the plate the stops lie in, None if not all of them are in a well."""
    if not stops or any(stop.made.plate_row is None for stop in stops):
        return None
    plan = _plate_plan(seq)
    if plan is not None:
        return _plate_of(plan.plate.rows, plan.plate.columns, plan.plate.name or None)
    wells = [position for position in _positions(seq) if position.plate_row is not None]
    rows = max(position.plate_row or 0 for position in wells) + 1
    columns = max(position.plate_col or 0 for position in wells) + 1
    return _plate_of(rows, columns, None)


def _plate_of(rows: int, columns: int, name: str | None) -> Plate:
    return Plate(
        row_names=[_row_name(row) for row in range(rows)],
        column_names=[str(column + 1) for column in range(columns)],
        name=name,
    )


# ------------------------------------------------------------------ dimensions


def _order(
    seq: useq.MDASequence, sizes: Mapping[str, int | None], stops: Sequence[Stop]
) -> list[str]:
    """Return the axes but Y and X, the slowest first; "p" where the stops belong."""
    axes = [axis for axis in sizes if axis not in ("p", "g")]
    if not stops:
        return axes
    marks = [axis for axis in sizes if axis in ("p", "g")]
    longer = [axis for axis in marks if _many(sizes, axis)]
    mark = (longer or marks)[0]
    order = list(sizes)
    after = [axis for axis in axes if order.index(axis) > order.index(mark)]
    if _inner_grid(seq, sizes) and any(_many(sizes, axis) for axis in after):
        if _many(sizes, "p"):
            raise UnsupportedError(
                f"a position with a grid of its own takes all points of that for each of "
                f"{''.join(after)!r}, and only then the next position follows" + _RAGGED
            )
        return [*axes, "p"]
    at = len(axes) - len(after)
    return [*axes[:at], "p", *axes[at:]]


def _inner_grid(seq: useq.MDASequence, sizes: Mapping[str, int | None]) -> bool:
    """Return whether a position has a grid of its own of more than one point."""
    return any(own.grid_plan and own.sizes["g"] > 1 for _, own in _own(seq, sizes))


def _dimension(seq: useq.MDASequence, axis: str, size: int | None, layout: Layout) -> Dimension:
    if axis == "t":
        return _made(axis, size, layout, _interval(seq), "second")
    if axis == "z":
        return _made(axis, size, layout, _z_step(seq), "micrometer")
    made = _made(axis, size, layout, 1.0, None)
    made.coords = [Channel(name=name) for name in _channel_names(seq)]
    return made


def _made(
    axis: str, size: int | None, layout: Layout, scale: float | None, unit: str | None
) -> Dimension:
    given = layout.units.get(axis)
    if given:
        scale, unit = given
    standard = StandardAxis(axis)
    return Dimension(
        name=axis,
        count=size,
        type=standard.dimension_type(),
        chunk_size=layout.chunks.get(axis),
        shard_size_chunks=layout.shards.get(axis),
        scale=scale,
        unit=unit,
    )


def _channel_names(seq: useq.MDASequence) -> list[str]:
    """Return the names of the channels, with their group where it takes that to tell them apart."""
    taken = Counter(channel.config for channel in seq.channels)
    return [
        f"{channel.group}-{channel.config}" if taken[channel.config] > 1 else channel.config
        for channel in seq.channels
    ]


def _interval(seq: useq.MDASequence) -> float | None:
    """Return the time between two time points in seconds, None if it is not always the same."""
    plan: Any = seq.time_plan
    phases = getattr(plan, "phases", [plan])
    try:
        found = {phase.interval.total_seconds() for phase in phases}
    except ZeroDivisionError:  # a duration with a single time point
        return None
    return found.pop() or None if len(found) == 1 else None


def _z_step(seq: useq.MDASequence) -> float | None:
    """Return the distance of two planes in µm, None if it is not always the same."""
    plan: Any = seq.z_plan
    if hasattr(plan, "step"):
        return float(plan.step) or None
    steps = [after - before for before, after in pairwise(plan)]
    if not steps or not steps[0] or not all(math.isclose(step, steps[0]) for step in steps):
        return None
    return abs(float(steps[0]))


def _pixel_size(pixel_size_um: float | None) -> float | None:
    if pixel_size_um is not None and pixel_size_um < 0:
        warnings.warn(
            f"Invalid pixel_size_um={pixel_size_um}. Must be positive. Ignoring pixel size.",
            BioIOWarning,
            stacklevel=3,
        )
        return None
    return pixel_size_um or None
