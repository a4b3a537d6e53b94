"""From settings to images: which frame is which plane, sizes, units, chunks, shards, paths."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from bioio_tk.core.acquisition import AcquiredChannel, AcquiredPosition, StoredAxis
from bioio_tk.core.frames import UNBOUNDED
from bioio_tk.stream.layout import layout
from bioio_tk.stream.settings import (
    AcquisitionSettings,
    Channel,
    Dimension,
    OmeTiffFormat,
    OmeZarrFormat,
    Plate,
    Position,
    dims_from_standard_axes,
)

FRAME = [Dimension(name="y", count=48), Dimension(name="x", count=64)]


def laid(dims=(), root_path="a.ome.zarr", frame=FRAME, dtype="uint16", **others):
    return layout(
        AcquisitionSettings(root_path=root_path, dimensions=[*dims, *frame], dtype=dtype, **others)
    )


def axis(name, count=2, kind=None, **others):
    return Dimension(name=name, count=count, type=kind, **others)


# --- which frame is which plane --------------------------------------------------------------

# (names of the dimensions and their sizes, which of them share an axis: slowest first)
ORDERS = {
    "tcz": [("t", 3), ("c", 2), ("z", 4)],
    "ztc": [("z", 4), ("t", 3), ("c", 2)],
    "ptcz": [("p", 2), ("t", 3), ("c", 2), ("z", 4)],
    "tpcz": [("t", 3), ("p", 2), ("c", 2), ("z", 4)],
    "tczp": [("t", 3), ("c", 2), ("z", 2), ("p", 3)],
    "cameras first": [("cam", 2), ("t", 2), ("p", 2), ("c", 3), ("z", 2)],
    "cameras last": [("t", 2), ("p", 2), ("c", 3), ("z", 2), ("cam", 2)],
    "two others": [("t", 2), ("angle", 3), ("cam", 2)],
    "one other": [("angle", 3), ("z", 2)],
    "frame": [],
    "positions": [("p", 3)],
}
LETTERS = {"t": "T", "z": "Z", "c": "C", "cam": "C", "angle": "C"}


@pytest.mark.parametrize("case", ORDERS)
@pytest.mark.parametrize("root", ["a.zarr", "a.tif"])
def test_each_frame_goes_where_a_plain_loop_puts_it(case, root):
    axes = ORDERS[case]
    others = ("cam", "angle")
    found = laid([axis(n, s, "other" if n in others else None) for n, s in axes], root)
    sizes = {"Z": 1, "C": 1, "T": 1}
    for name, size in axes:
        if name != "p":
            sizes[LETTERS[name]] *= size
    plan, route = found.plan, found.route
    assert plan.image.shape == (48, 64, sizes["Z"], sizes["C"], sizes["T"])
    seen = set()
    planes = dict.fromkeys(range(len(plan.positions)), 0)
    for number, index in enumerate(itertools.product(*(range(size) for _, size in axes))):
        at, position = {"Z": 0, "C": 0, "T": 0}, 0
        for (name, size), i in zip(axes, index, strict=True):
            if name == "p":
                position = i
            else:
                at[LETTERS[name]] = at[LETTERS[name]] * size + i
        where = (position, at["Z"], at["C"], at["T"])
        there, plane = route.locate(number)
        assert (there, *plan.order.key(plane)) == where
        assert plane == planes[there]
        assert route.indices(number) == index
        planes[there] += 1
        seen.add(where)
    assert len(seen) == route.total == len(plan.positions) * plan.order.planes
    assert plan.several == any(name == "p" for name, _ in axes)


def test_an_acquisition_without_end():
    found = laid([axis("t", None), axis("p", 2), axis("c", 3)])
    assert found.route.sizes == (UNBOUNDED, 2, 3)
    assert found.route.position_axis == 1
    assert found.route.total >= UNBOUNDED
    assert found.plan.order.unbounded
    assert found.plan.image.shape == (48, 64, 1, 3, UNBOUNDED)
    assert found.plan.order.extent(7) == (1, 3, 3)


def test_one_frame():
    found = laid()
    assert (found.route.sizes, found.route.total, found.plan.order.axes) == ((), 1, ())
    assert not found.plan.several
    assert found.plan.positions == (AcquiredPosition("0"),)
    assert [a.name for a in found.plan.axes] == ["y", "x"]


# --- stored axes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "names"),
    [("ome", "tczyx"), ("acquisition", "zctyx"), (["c", "t", "z", "y", "x"], "ctzyx")],
)
def test_stored_axes_are_in_storage_order(order, names):
    found = laid([axis("z"), axis("c"), axis("t")], storage_order=order)
    assert "".join(a.name for a in found.plan.axes) == names
    assert "".join(a.letter for a in found.plan.axes) == names.upper()


def test_stored_axes_say_what_the_user_said():
    found = laid(
        [
            axis("time", None, "time", unit="ms", scale=20, translation=5),
            axis("angle", 3, "other", unit="degree", scale=120.0),
        ],
        frame=[
            Dimension(name="row", type="space", count=4, unit="nm", scale=650),
            Dimension(name="col", type="space", count=4, unit="mm", scale=0.5, translation=-1),
        ],
    )
    assert found.plan.axes == (
        StoredAxis("time", "time", "T", "millisecond", 20.0, 5.0),
        StoredAxis("angle", "other", "C", "degree", 120.0, None),
        StoredAxis("row", "space", "Y", "nanometer", 650.0, None),
        StoredAxis("col", "space", "X", "millimeter", 0.5, -1.0),
    )
    image = found.plan.image
    assert image.physical_size == ((0.5, "mm"), (650.0, "nm"), None)
    assert image.position == ((-1.0, "mm"), None, None)
    assert image.time_increment == (20.0, "ms")


def test_axes_that_share_a_letter_are_stored_as_one():
    dims = [axis("t"), axis("cam", 2, "other", scale=3.0), axis("z", 3), axis("c", 2)]
    assert [(a.name, a.kind, a.letter, a.scale) for a in laid(dims).plan.axes[:-2]] == [
        ("t", "time", "T", None), ("c", "channel", "C", None), ("z", "space", "Z", None),
    ]  # fmt: skip
    stored = laid(dims, storage_order="acquisition").plan.axes
    assert [a.name for a in stored] == ["t", "c", "z", "y", "x"]
    others = laid([axis("cam", 2, "other"), axis("angle", 2, "other")]).plan.axes
    assert [(a.name, a.kind) for a in others[:-2]] == [("c", "channel")]
    taken = laid([axis("cam", 2, "other"), axis("angle", 2, "other"), axis("c", 2, "time")])
    assert sorted(a.name for a in taken.plan.axes) == ["c", "c_", "x", "y"]


def test_coords_at_equal_distances_are_a_scale():
    def spaced(coords, **others):
        z = laid([Dimension(name="z", coords=coords, **others)]).plan.axes[0]
        return z.scale, z.translation

    assert spaced([2.0, 2.5, 3.0]) == (0.5, 2.0)
    assert spaced([0.1, 0.2, 0.3]) == (pytest.approx(0.1), 0.1)
    assert spaced([2.0, 2.5, 3.1]) == (None, None)
    assert spaced([3.0, 2.0]) == (None, None)
    assert spaced([3.0]) == (None, None)
    assert spaced(["top", "low"]) == (None, None)
    assert spaced([2.0, 2.5], scale=4.0) == (4.0, None)
    assert spaced([2.0, 2.5], translation=1.0) == (0.5, 1.0)


def test_sizes_without_a_unit_are_micrometers_and_seconds():
    frame = [Dimension(name=n, count=4, scale=0.5) for n in "yx"]
    found = laid([axis("t", scale=2.0), axis("z", scale=-1.0)], frame=frame).plan
    assert found.image.physical_size == ((0.5, "µm"), (0.5, "µm"), None)
    assert found.image.time_increment == (2.0, "s")
    assert found.axes[0].unit is None


# --- channels, positions, plates -------------------------------------------------------------


def test_channels():
    coords = [
        Channel(name="G", color="#00ff0080", excitation_wavelength_nm=488,
                emission_wavelength_nm=510.5, fluorophore="GFP"),
        "BF",
    ]  # fmt: skip
    plan = laid([Dimension(name="c", coords=coords)]).plan
    assert plan.channels == (
        AcquiredChannel("G", (0, 255, 0, 128), 488, 510.5, "GFP"), AcquiredChannel("BF")
    )  # fmt: skip
    assert [(c.name, c.color) for c in plan.image.channels] == [
        ("G", (0, 255, 0, 128)),
        ("BF", None),
    ]
    assert laid([axis("c", 3)]).plan.channels == ()
    assert laid([axis("c", None)]).plan.channels == ()


@pytest.mark.parametrize(
    "camera", [{"count": 2}, {"coords": ["left", "right"]}, {"coords": [1, 2]}]
)
@pytest.mark.parametrize("first", [True, False])
def test_channels_of_several_cameras(camera, first):
    cam = Dimension(name="cam", type="other", **camera)
    red = Channel(name="R", color="red", emission_wavelength_nm=600)
    channel = Dimension(name="c", coords=[red, "G", "B"])
    plan = laid([cam, channel] if first else [channel, cam]).plan
    labels = {"count": ["cam0", "cam1"]}.get(next(iter(camera)))
    labels = labels or [str(label) for label in camera["coords"]]
    pairs = itertools.product(labels, "RGB") if first else itertools.product("RGB", labels)
    names = ["-".join(reversed(pair) if first else pair) for pair in pairs]
    assert [c.name for c in plan.channels] == names
    assert len(plan.channels) == plan.image.shape[3]
    for item in plan.channels:
        assert (item.emission_nm == 600) == item.name.startswith("R")
        assert (item.color == (255, 0, 0, 255)) == item.name.startswith("R")


def test_cameras_alone_are_channels_by_name():
    plan = laid([Dimension(name="cam", type="other", coords=["left", "right"])]).plan
    assert [c.name for c in plan.channels] == ["left", "right"]
    assert plan.axes[0].kind == "other"


def test_positions_are_in_micrometers():
    where = Position(name="a", grid_row=1, grid_column=2, x_coord=1500, y_coord=0.5, z_coord=2)
    frame = [Dimension(name="y", count=4, unit="mm"), Dimension(name="x", count=4, unit="nm")]
    dims = [Dimension(name="p", coords=[where, "b"])]
    assert laid(dims, frame=frame).plan.positions == (
        AcquiredPosition("a", None, None, 1, 2, 1.5, 500.0, 0.002), AcquiredPosition("b")
    )  # fmt: skip
    deep = [*dims, axis("z", 3, unit="mm")]
    assert laid(deep, frame=frame).plan.positions[0].z_um == 2000.0


def test_a_plate_has_the_rows_of_all_positions():
    coords = [Position(name="0", plate_row=r, plate_column=c) for r, c in ("A2", "C1", "A9")]
    with pytest.warns(UserWarning, match="not in the plate definition"):
        plate = laid(
            [Dimension(name="p", coords=coords)],
            plate=Plate(name="s", row_names=["A", "B"], column_names=["1", "2"]),
        ).plan.plate
    assert (plate.name, plate.rows, plate.columns) == ("s", ("A", "B", "C"), ("1", "2", "9"))
    assert laid().plan.plate is None


# --- chunks, shards, levels ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "chunks", "tile"),
    [
        ("a.zarr", {}, (48, 64, 1, 1, 1)),
        ("a.zarr", {"y": 20, "x": 100, "t": 4, "z": 9}, (20, 64, 3, 1, 4)),
        ("a.tif", {}, (48, 64, 1, 1, 1)),
        ("a.tif", {"t": 4, "z": 3}, (48, 64, 1, 1, 1)),
        ("a.tif", {"y": 20}, (20, 64, 1, 1, 1)),
        ("a.tif", {"y": 20, "x": 30}, (32, 32, 1, 1, 1)),
        ("", {}, (48, 64, 1, 1, 1)),
    ],
)
def test_chunks(root, chunks, tile):
    dims = dims_from_standard_axes({"t": None, "c": 2, "z": 3, "y": 48, "x": 64}, chunks)
    assert laid(root_path=root, frame=dims).plan.image.levels[0].tile == tile


@pytest.mark.parametrize(
    ("cam", "c", "chunk"), [(1, 1, 1), (1, 2, 2), (1, 3, 3), (2, 3, 6), (2, 2, 2), (None, 3, 3)]
)
def test_chunks_along_an_axis_of_two(cam, c, chunk):
    dims = [axis("cam", 2, "other", chunk_size=cam), axis("t"), axis("c", 3, chunk_size=c)]
    assert laid(dims).plan.image.levels[0].tile == (48, 64, 1, chunk, 1)


def test_shards_are_whole_chunks():
    sizes = {"t": None, "c": 2, "z": 3, "y": 48, "x": 64}
    dims = dims_from_standard_axes(sizes, {"t": 2, "x": 16}, {"t": 5, "x": 4})
    assert laid(frame=dims).options.extra["shards"] == (48, 64, 1, 1, 10)
    assert laid(frame=dims_from_standard_axes({**sizes, "t": 9})).options.extra["shards"] is None


@pytest.mark.parametrize(
    ("sizes", "chunks", "dtype", "shards"),
    [
        ({"t": None, "y": 64, "x": 64}, {}, "u2", (64, 64, 1, 1, 128)),
        ({"t": None, "y": 64, "x": 64}, {"t": 3}, "u2", (64, 64, 1, 1, 126)),
        ({"t": None, "c": 3, "y": 64, "x": 64}, {}, "u2", (64, 64, 1, 1, 128)),
        ({"t": None, "y": 8, "x": 8}, {}, "u1", (8, 8, 1, 1, 1024)),
        ({"t": None, "y": 60, "x": 64}, {"y": 32, "x": 4}, "u1", (64, 64, 1, 1, 32)),
        ({"t": None, "y": 512, "x": 512}, {}, "u1", (512, 512, 1, 1, 4)),
        ({"t": None, "y": 512, "x": 513}, {}, "u1", None),
        ({"t": None, "y": 64, "x": 64}, {"t": 100}, "u2", None),
        ({"t": 4096, "y": 64, "x": 64}, {}, "u2", None),
        ({"t": 4097, "y": 64, "x": 64}, {}, "u2", (64, 64, 1, 1, 128)),
        ({"p": 5000, "t": 3, "y": 64, "x": 64}, {}, "u2", None),
        ({"c": 2, "t": 3000, "y": 64, "x": 64}, {}, "u2", (64, 64, 1, 1, 128)),
        ({"z": 5000, "t": 3, "y": 64, "x": 64}, {}, "u2", (64, 64, 128, 1, 1)),
        ({"t": 80, "z": 80, "y": 64, "x": 64}, {}, "u2", (64, 64, 80, 1, 1)),
        ({"t": 80, "z": 90, "c": 2, "y": 64, "x": 64}, {"z": 4}, "u2", (64, 64, 92, 1, 1)),
        ({"t": 80, "z": 80, "y": 64, "x": 64}, {"z": 80}, "u2", None),
        ({"t": 200, "z": 5000, "y": 64, "x": 64}, {}, "u2", (64, 64, 1, 1, 128)),
    ],
)
def test_thousands_of_small_frames_are_put_into_shards(sizes, chunks, dtype, shards):
    dims = dims_from_standard_axes(sizes, chunks)
    assert laid(frame=dims, dtype=dtype).options.extra["shards"] == shards
    old = laid(frame=dims, dtype=dtype, format=OmeZarrFormat(ngff_version="0.4"))
    assert old.options.extra == {"ngff_version": "0.4", "shards": None}


def test_shards_do_not_run_along_an_axis_in_leaps():
    dims = [axis("cam", 5000, "other"), axis("c", 2), axis("t", 3), *dims_from_standard_axes(
        {"y": 64, "x": 64})]  # fmt: skip
    assert laid(frame=dims).options.extra["shards"] == (64, 64, 1, 1, 3)


def test_levels():
    frame = [Dimension(name="y", count=1025, chunk_size=512), Dimension(name="x", count=600)]
    dims = [axis("t", None), axis("z", 5)]
    assert len(laid(dims, frame=frame).plan.image.levels) == 1
    levels = laid(dims, frame=frame, pyramid="after").plan.image.levels
    assert [(v.shape, v.tile[:2]) for v in levels] == [
        ((1025, 600, 5, 1, UNBOUNDED), (512, 600)),
        ((513, 300, 5, 1, UNBOUNDED), (512, 300)),
        ((257, 150, 5, 1, UNBOUNDED), (257, 150)),
        ((129, 75, 5, 1, UNBOUNDED), (129, 75)),
    ]
    found = laid(dims, frame=frame, pyramid="live", pyramid_levels=2, downsample="max")
    assert len(found.plan.image.levels) == 2
    assert found.options.downsample == "max"


# --- paths and options -----------------------------------------------------------------------


def test_where_it_goes(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    found = laid(root_path="~/run.tif")
    assert (found.path, found.store) == (tmp_path / "run.tif", "tiff")
    found = laid([axis("p", 2)], "run.ome.tif")
    assert (found.path, found.options.name) == (Path("run"), "run")
    assert found.options.extra == {
        "suffix": ".ome.tif", "single_file": False, "multi_file_metadata": "redundant",
        "companion_file": "companion.ome",
    }  # fmt: skip
    assert laid().store == "zarr"
    assert laid(root_path="").path is None
    scratch = laid(root_path=tmp_path / "q", format="memory")
    assert (scratch.path, scratch.store) == (tmp_path / "q", "scratch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"root_path": "", "format": "zarr"}, ValueError, "is required for ome-zarr format"),
        ({"root_path": "", "format": "tiff"}, ValueError, "is required for ome-tiff format"),
        ({"root_path": ".ome.tif", "dims": [axis("p")]}, ValueError, "has no name, only a suffix"),
        ({"root_path": "s3://bucket/a.zarr"}, NotImplementedError, "s3://bucket/a.zarr"),
        ({"root_path": "a", "dims": [axis("p")],
          "format": OmeTiffFormat(prefer_single_file="always")},
         NotImplementedError, "2 positions"),
    ],
)  # fmt: skip
def test_what_cannot_be_written(given, error, text):
    with pytest.raises(error, match=text):
        laid(**given)


def test_settings_are_checked_again():
    settings = AcquisitionSettings(root_path="a.zarr", dimensions=FRAME, dtype="u1")
    for update in ({"root_path": "a.tif"}, {"compression": "lzw"}, {"dtype": "object"}):
        with pytest.raises(ValidationError):
            layout(settings.model_copy(update=update))
    with pytest.raises(ValueError, match="dimensions must be set"):
        layout(AcquisitionSettings(root_path="a.zarr", dtype="u1"))


def test_options():
    found = laid(compression="zstd", compression_level=7)
    assert (found.options.compression, found.options.level) == ("zstd", 7)
    assert (laid().options.compression, laid().options.level) == ("none", None)
    scratch = laid(root_path="").options.extra
    assert (scratch["max_memory_bytes"], scratch["spill_to_disk"]) == (4 << 30, True)
    assert scratch["settings"]["dimensions"][1]["name"] == "x"
    assert laid(dtype=">f4").plan.image.dtype == np.dtype("float32")


def test_it_was_begun_now():
    begun = datetime.fromisoformat(laid().plan.created)
    assert begun.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - begun) < timedelta(seconds=60)
