"""What a sequence of useq-schema becomes: every frame has to land where its event says.

Truth is the list of events that useq yields itself, and where it has no opinion (names, units)
ome-writers, whose users we take over, wherever that puts all frames in their places.
"""

from __future__ import annotations

import importlib
import itertools
import math
import subprocess
import sys
import warnings

import pytest

from bioio_tk.errors import BackendMissingError, BioIOWarning, SpecError, UnsupportedError

useq = pytest.importorskip("useq", reason="useq-schema is not installed")

from bioio_tk.stream.settings import AcquisitionSettings  # noqa: E402
from bioio_tk.stream.useq import dims_from_useq, useq_to_acquisition_settings  # noqa: E402

Sequence, At = useq.MDASequence, useq.Position
GRID = {"rows": 1, "columns": 2}


def plate(points=None, wells=((0, 1), (0, 1))):
    fields = {} if points is None else {"well_points_plan": points}
    return useq.WellPlatePlan(
        plate="96-well", a1_center_xy=(10, 20), selected_wells=wells, **fields
    )


TIMES = {
    "": None,
    "t3": {"interval": 0.1, "loops": 3},
    "t1": {"interval": 1, "loops": 1},
    "phases": [{"interval": 0, "loops": 2}, {"interval": 0.5, "loops": 2}],
}
CHANNELS = {
    "": None,
    "c1": ["DAPI"],
    "c2": ["DAPI", "Cy5"],
    "groups": [{"config": "on", "group": "A"}, {"config": "on", "group": "B"}],
}
DEPTHS = {"": None, "z3": {"range": 2, "step": 1}, "z1": {"absolute": [5]}}
PLACES = {
    "": None,
    "p1": [(1, 2)],
    "p2": [(1, 2), (5, 6)],
    "same name": [At(x=0, y=0, name="a"), At(x=1, y=1, name="a")],
    "own grid": [At(x=1, y=2, name="a", sequence=Sequence(grid_plan=GRID))],
    "one has a grid": [At(x=1, y=2, sequence=Sequence(grid_plan=GRID)), At(x=9, y=8)],
    "absolute grid": [
        At(
            name="a",
            sequence=Sequence(
                grid_plan=useq.GridFromEdges(
                    fov_width=50, fov_height=50, left=0, right=100, top=0, bottom=50
                )
            ),
        )
    ],
    "two grids": [
        At(x=1, y=2, sequence=Sequence(grid_plan=GRID)),
        At(x=9, y=9, sequence=Sequence(grid_plan={"rows": 2, "columns": 1})),
    ],
    "wells by hand": [
        At(x=0, y=0, plate_row=0, plate_col=1, name="w"),
        At(x=1, y=1, plate_row=2, plate_col=1, name="w"),
    ],
    "plate": plate(useq.GridRowsColumns(rows=1, columns=2)),
    "plate, at random": plate(useq.RandomPoints(num_points=3, random_seed=3)),
    "focus": [
        At(
            x=0,
            y=0,
            sequence=Sequence(
                autofocus_plan={"autofocus_motor_offset": 5, "axes": ("p",)}, grid_plan=GRID
            ),
        ),
        At(x=9, y=9),
    ],
    "empty sequence": [At(x=0, y=0, sequence=Sequence(axis_order="tpgcz")), At(x=9, y=9)],
}
GRIDS = {
    "": None,
    "g2": GRID,
    "spiral": {"rows": 2, "columns": 2, "mode": "spiral"},
    "random": useq.RandomPoints(num_points=3, random_seed=3),
    "g1": {"rows": 1, "columns": 1},
}
ORDERS = ["tpgcz", "pgtcz", "gptcz", "tcpgz", "ptgcz", "czpgt", "tgpzc", "tpcz", "gtcz", "zc"]


@pytest.fixture(scope="module")
def recorded():
    """Some of all sequences these make, with the events that take an image."""
    pairs = ((seq, frames(seq)) for seq in sequences())
    return [(seq, events) for seq, events in pairs if events]


def sequences():
    plans = (TIMES, CHANNELS, DEPTHS, PLACES, GRIDS)
    names = ("time_plan", "channels", "z_plan", "stage_positions", "grid_plan")
    everything = list(itertools.product(ORDERS, *plans))
    for number, (order, *picked) in enumerate(everything):
        if number % 19:  # all of them take minutes
            continue
        given = {name: plan[pick] for name, plan, pick in zip(names, plans, picked, strict=True)}
        kept = {name: value for name, value in given.items() if value is not None}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield Sequence(axis_order=order, **kept)
            except ValueError:  # useq refuses it itself
                continue


def frames(seq):
    """The events that take an image."""
    return [event for event in seq if isinstance(event.action, useq.AcquireImage)]


def misplaced(dims, events):
    """Return the number of the first frame that lands elsewhere than its event says, or None."""
    names = [dim.name for dim in dims[:-2]]
    sizes = [dim.count for dim in dims[:-2]]
    if math.prod(sizes) != len(events):
        return min(math.prod(sizes), len(events))
    for number, indices in enumerate(itertools.product(*map(range, sizes))):
        event = events[number]
        at = dict(zip(names, indices, strict=True))
        place = (event.x_pos, event.y_pos)
        if "p" in at:
            position = dims[names.index("p")].coords[at.pop("p")]
            if place != (position.x_coord, position.y_coord):
                return number
        elif place != (None, None):
            return number
        if any(event.index.get(name) != index for name, index in at.items()):
            return number
    return None


def test_every_frame_lands_where_its_event_says(recorded):
    taken = refused = 0
    for seq, events in recorded:
        try:
            found = useq_to_acquisition_settings(seq, 4, 3)
        except UnsupportedError:
            refused += 1
            continue
        settings = AcquisitionSettings(**found, dtype="u2", format="scratch")
        assert settings.shape[-2:] == (3, 4)
        assert misplaced(found["dimensions"], events) is None, seq
        taken += 1
    assert taken > 1000
    assert refused > 200


def rounded(dims):
    """What dims say, without what ome-writers makes up where a distance is not known."""
    said = []
    for dim in dims:
        fields = dim.model_dump()
        if fields["name"] in ("t", "z") and fields["scale"] in (None, 0, 1):
            fields["scale"] = None
        said.append(fields)
    return said


def test_the_same_as_ome_writers_where_that_is_right(recorded):
    theirs = pytest.importorskip("ome_writers", reason="ome-writers is not installed")
    same = wrong = 0
    for seq, events in recorded:
        if seq.grid_plan and "g" not in seq.axis_order:
            continue  # useq does not visit that grid, and they name its cells
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                want = theirs.useq_to_acquisition_settings(seq, 4, 3, pixel_size_um=0.5)
        except (NotImplementedError, ValueError):
            continue
        if misplaced(want["dimensions"], events) is not None:
            wrong += 1
            continue
        found = useq_to_acquisition_settings(seq, 4, 3, pixel_size_um=0.5)
        assert rounded(found["dimensions"]) == rounded(want["dimensions"]), seq
        if "p" in [dim.name for dim in want["dimensions"]]:
            plates = [made and made.model_dump() for made in (found["plate"], want["plate"])]
            assert plates[0] == plates[1]
        same += 1
    assert same > 400
    assert wrong > 50  # else the sequences are too simple to show anything


# ------------------------------------------------------------------ names, units, plates


def positions(**plans):
    found = useq_to_acquisition_settings(Sequence(**plans), 4, 3)
    return next(dim.coords for dim in found["dimensions"] if dim.name == "p")


def dimension(name, *, units=None, **plans):
    found = useq_to_acquisition_settings(Sequence(**plans), 4, 3, units=units)
    return next(dim for dim in found["dimensions"] if dim.name == name)


def test_names_of_positions():
    random = useq.RandomPoints(num_points=2, random_seed=1)
    both = [At(x=0, y=0, name="a"), At(x=9, y=9)]
    named = {
        "number": positions(stage_positions=[(0, 0), (1, 1)]),
        "given": positions(stage_positions=both),
        "twice": positions(stage_positions=[both[0], both[0].replace(x=3)]),
        "grid": positions(grid_plan=GRID),
        "both": positions(stage_positions=both, grid_plan=GRID),
        "random": positions(stage_positions=both, grid_plan=random),
        "random first": positions(stage_positions=both, grid_plan=random, axis_order="gptcz"),
        "lent": positions(stage_positions=both[:1], grid_plan=random, axis_order="gc"),
        "one random": positions(stage_positions=both[:1], grid_plan=random),
        "wells": positions(stage_positions=plate(useq.GridRowsColumns(rows=1, columns=2))),
    }
    assert {kind: [at.name for at in found] for kind, found in named.items()} == {
        "number": ["0", "1"],
        "given": ["a", "1"],
        "twice": ["a_p0000", "a_p0001"],
        "grid": ["0000", "0001"],
        "both": ["a", "a", "1", "1"],
        "random": ["a_p0000_g0000", "a_p0000_g0001", "1_p0001_g0000", "1_p0001_g0001"],
        "random first": ["a_p0000_g0000", "1_p0001_g0000", "a_p0000_g0001", "1_p0001_g0001"],
        "lent": ["a_g0000", "a_g0001"],
        "one random": ["a_g0000", "a_g0001"],
        "wells": ["fov0", "fov1", "fov0", "fov1"],
    }
    assert [(at.grid_row, at.grid_column) for at in named["both"]] == [(0, 0), (0, 1)] * 2
    assert [(at.plate_row, at.plate_column) for at in named["wells"]] == [("A", "1")] * 2 + [
        ("B", "2")
    ] * 2


def test_half_a_cell_is_none():
    at = positions(stage_positions=[At(x=0, y=0, grid_row=3), (1, 1)])[0]
    assert (at.grid_row, at.grid_column) == (None, None)


def test_coordinates_of_a_position():
    at = At(x=1.5, y=-2, z=30, name="a")
    (found,) = positions(stage_positions=[at])
    assert (found.x_coord, found.y_coord, found.z_coord) == (1.5, -2, 30)
    grid = positions(stage_positions=[at], grid_plan={"rows": 1, "columns": 2, "fov_width": 10})
    assert [(p.x_coord, p.y_coord, p.z_coord) for p in grid] == [(-3.5, -2, 30), (6.5, -2, 30)]


@pytest.mark.parametrize(
    ("plan", "scale"),
    [
        ({"interval": 1.5, "loops": 3}, 1.5),
        ({"interval": 0, "loops": 3}, None),
        ({"duration": 4, "loops": 3}, 2),
        ({"duration": 4, "loops": 1}, None),
        ([{"interval": 2, "loops": 2}, {"interval": 2, "loops": 3}], 2),
        ([{"interval": 2, "loops": 2}, {"interval": 3, "loops": 3}], None),
    ],
)
def test_time_between_frames(plan, scale):
    found = dimension("t", time_plan=plan)
    assert (found.scale, found.unit) == (scale, "second")


@pytest.mark.parametrize(
    ("plan", "scale"),
    [
        ({"range": 3, "step": 0.25}, 0.25),
        ({"top": 4, "bottom": 1, "step": 0.5}, 0.5),
        ({"above": 4, "below": 1, "step": 0.5, "go_up": False}, 0.5),
        ({"absolute": [3, 2.5, 2]}, 0.5),
        ({"relative": [-1, 0, 2]}, None),
        ({"absolute": [7]}, None),
    ],
)
def test_distance_of_planes(plan, scale):
    found = dimension("z", z_plan=plan)
    assert (found.scale, found.unit) == (scale, "micrometer")


def test_units_of_the_caller():
    loops = {"interval": 1, "loops": 3}
    found = dimension("t", time_plan=loops, units={"t": (0.5, "minute"), "z": None})
    assert (found.scale, found.unit) == (0.5, "minute")
    found = dimension("x", time_plan=loops, units={"x": (3.0, "nanometer")})
    assert (found.scale, found.unit) == (3, "nanometer")


def test_chunks_and_shards():
    seq = Sequence(time_plan={"interval": 1, "loops": 8}, channels=["a"])
    found = useq_to_acquisition_settings(
        seq, 64, 32, chunk_shapes={"t": 2, "y": 16}, shard_shapes={"t": 4, "x": 1}
    )
    stored = {d.name: (d.chunk_size, d.shard_size_chunks) for d in found["dimensions"]}
    assert stored == {"t": (2, 4), "c": (None, None), "y": (16, None), "x": (None, 1)}


@pytest.mark.parametrize("unknown", [None, 0, 0.0])
def test_a_pixel_size_that_is_not_known(unknown):
    found = useq_to_acquisition_settings(Sequence(channels=["a"]), 4, 3, pixel_size_um=unknown)
    assert [dim.scale for dim in found["dimensions"][-2:]] == [None, None]


def test_a_pixel_size_that_makes_no_sense():
    with pytest.warns(BioIOWarning, match=r"Invalid pixel_size_um=-1.*must be positive|-1"):
        found = useq_to_acquisition_settings(Sequence(channels=["a"]), 4, 3, pixel_size_um=-1)
    assert found["dimensions"][-1].scale is None


def test_channels_of_two_groups():
    found = dimension("c", channels=CHANNELS["groups"])
    assert [channel.name for channel in found.coords] == ["A-on", "B-on"]


def test_plates():
    seq = Sequence(stage_positions=plate())
    found = useq_to_acquisition_settings(seq, 4, 3)["plate"]
    assert (found.name, len(found.row_names), found.column_names[-1]) == ("96-well", 8, "12")
    seq = Sequence(stage_positions=[At(plate_row=27, plate_col=2), At(plate_row=0, plate_col=0)])
    found = useq_to_acquisition_settings(seq, 4, 3)["plate"]
    assert (found.row_names[-3:], found.column_names) == (["Z", "AA", "AB"], ["1", "2", "3"])


def test_no_plate_where_a_position_is_in_no_well():
    seq = Sequence(stage_positions=[At(x=0, plate_row=1, plate_col=2), At(x=1)])
    found = useq_to_acquisition_settings(seq, 4, 3)
    assert found["plate"] is None
    AcquisitionSettings(**found, dtype="u2", format="scratch")
    with pytest.warns(BioIOWarning, match="'b'.*plate_col"):
        found = useq_to_acquisition_settings(
            Sequence(stage_positions=[At(name="b", plate_row=1)]), 4, 3
        )
    assert found["plate"] is None


def test_a_time_without_end():
    endless = useq.TIntervalDuration(interval=0, duration=3)
    seq = Sequence(time_plan=endless, channels=["a", "b"], z_plan={"range": 2, "step": 1})
    found = useq_to_acquisition_settings(seq, 4, 3)["dimensions"]
    assert [(dim.name, dim.count) for dim in found][:3] == [("t", None), ("c", 2), ("z", 3)]
    inside = seq.replace(stage_positions=[(0, 0), (1, 1)], axis_order="ptcz")
    with pytest.raises(UnsupportedError, match=r"slowest axis.*'ptcz'"):
        useq_to_acquisition_settings(inside, 4, 3)


# ------------------------------------------------------------------ what fits no array

LOOPS = {"interval": 0.1, "loops": 4}
STACK = {"range": 4, "step": 1.0}
TWO = [(0, 0), (9, 9)]


@pytest.mark.parametrize(
    ("plans", "match"),
    [
        (
            {"channels": ["a", {"config": "b", "do_stack": False}], "z_plan": STACK},
            "do_stack=False",
        ),
        ({"channels": ["a", {"config": "b", "acquire_every": 2}], "time_plan": LOOPS}, "acquire_e"),
        ({"channels": [{"config": "b", "acquire_every": 2}], "time_plan": LOOPS}, "acquire_every"),
        ({"stage_positions": [At(sequence=Sequence(z_plan=STACK))]}, "Ragged dimensions detected"),
        ({"stage_positions": [At(sequence=Sequence(channels=["b"]))]}, "Ragged dimensions detect"),
        (
            {"stage_positions": TWO, "grid_plan": GRID, "time_plan": LOOPS, "axis_order": "gtp"},
            "non-adjacent position and grid axes",
        ),
        ({"stage_positions": plate(), "grid_plan": GRID}, "WellPlatePlan with grid_plan is not"),
        (
            {"stage_positions": PLACES["one has a grid"], "channels": ["a", "b"]},
            "grid of its own takes all points of that for each of 'c'",
        ),
        (
            {"stage_positions": PLACES["focus"], "grid_plan": GRID},
            "once more for each point",
        ),
        (
            {
                "stage_positions": [At(x=0, sequence=Sequence(grid_plan=GRID, axis_order="tc"))],
                "channels": ["a"],
            },
            "none of the axes",
        ),
    ],
)
def test_ragged_sequences(plans, match):
    with pytest.raises(NotImplementedError, match=match):
        useq_to_acquisition_settings(Sequence(**plans), 4, 3)


@pytest.mark.parametrize(
    "plans",
    [
        {"channels": [{"config": "b", "acquire_every": 2}]},
        {"channels": ["a", {"config": "b", "do_stack": False}]},
        {"stage_positions": TWO, "time_plan": LOOPS, "axis_order": "ptgcz"},
    ],
)
def test_what_does_no_harm_is_taken(plans):
    seq = Sequence(**plans)
    found = useq_to_acquisition_settings(seq, 4, 3)["dimensions"]
    assert misplaced(found, frames(seq)) is None


# ------------------------------------------------------------------ around it


def test_deprecated_name():
    seq = Sequence(channels=["a"], time_plan=LOOPS)
    with pytest.warns(DeprecationWarning, match="useq_to_acquisition_settings"):
        found = dims_from_useq(seq, 4, 3)
    assert [dim.name for dim in found] == ["t", "c", "y", "x"]


def test_what_is_no_sequence():
    with pytest.raises(SpecError, match=r"must be a useq\.MDASequence, and this is a dict"):
        useq_to_acquisition_settings({}, 4, 3)


def test_without_useq(monkeypatch):
    seq = Sequence(channels=["a"])
    monkeypatch.setitem(sys.modules, "useq", None)
    with pytest.raises(BackendMissingError, match=r"pip install 'bioio-tk\[useq\]'"):
        useq_to_acquisition_settings(seq, 4, 3)


def test_an_old_useq(monkeypatch):
    seq = Sequence(channels=["a"])
    monkeypatch.setattr(useq, "Position", AcquisitionSettings)
    with pytest.raises(BackendMissingError, match=r"useq-schema>=0\.9\.2"):
        useq_to_acquisition_settings(seq, 4, 3)


def test_useq_is_imported_when_it_is_needed():
    code = (
        "import sys, bioio_tk.stream.useq as own; "
        "sys.exit('useq' in sys.modules or not own.dims_from_useq)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0


def test_compat_has_all_names_of_ome_writers():
    theirs = pytest.importorskip("ome_writers", reason="ome-writers is not installed")
    ours = importlib.import_module("bioio_tk.compat.ome_writers")
    assert set(theirs.__all__) == set(ours.__all__)
    assert all(getattr(ours, name).__module__.startswith("bioio_tk")
               for name in ours.__all__ if name != "__version__")  # fmt: skip
