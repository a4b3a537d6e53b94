"""BdvWriter: what it writes, read by h5py and ElementTree; what it refuses, and what stays then."""

from __future__ import annotations

import threading
from pathlib import Path
from xml.etree import ElementTree as ET

import h5py
import numpy as np
import pytest

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter
from bioio_tk.core.views import ViewId
from bioio_tk.errors import (
    BioIOWarning,
    ClosedError,
    PixelTypeError,
    RegionError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
    UnsupportedError,
)

SIZE = (7, 30, 41)
FULL = ((1, 1, 1),)


def coded(size=SIZE, dtype="u2", salt=0):
    """Return a stack in which every pixel tells where it is."""
    numbers = np.arange(np.prod(size), dtype=np.int64) * 2654435761 + salt
    return (numbers >> 7).astype(dtype).reshape(size)


def cells(path, view, level=0):
    with h5py.File(path, "r", locking=False) as file:
        found = file[f"t{view[0]:05d}/s{view[1]:02d}/{level}/cells"][()]
    return found.view(np.uint16) if found.dtype == np.int16 else found


def xml(path):
    return ET.parse(Path(path).with_suffix(".xml")).getroot()


def missing(path):
    return {(int(v.get("timepoint")), int(v.get("setup"))) for v in xml(path).iter("MissingView")}


def affines(path, time, setup):
    """Return name and numbers of all transforms of a view, in their order."""
    where = f".//ViewRegistration[@timepoint='{time}'][@setup='{setup}']/ViewTransform"
    return [
        (t.findtext("Name"), [float(n) for n in t.findtext("affine").split(" ")])
        for t in xml(path).iterfind(where)
    ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


# ------------------------------------------------------------------ what is written


def test_setups_are_counted_angles_first(path):
    counts = {"nilluminations": 2, "nchannels": 3, "ntiles": 2, "nangles": 2}
    with BdvWriter(path, FULL, **counts) as writer:
        assert writer.nsetups == 24
        stack = coded()
        writer.append_view(stack, illumination=1, channel=2, tile=0, angle=1)
        assert writer.views == (ViewId(0, 21),)
    np.testing.assert_array_equal(cells(path, (0, 21)), stack)
    (setup,) = xml(path).iter("ViewSetup")
    assert setup.findtext("id") == "21"
    found = {a.tag: a.text for a in setup.find("attributes")}
    assert found == {"illumination": "1", "channel": "2", "tile": "0", "angle": "1"}
    listed = {a.get("name"): len(a) for a in xml(path).iter("Attributes")}
    assert listed == {"illumination": 2, "channel": 3, "tile": 2, "angle": 2}


def test_every_view_is_there_as_soon_as_append_view_returns(path):
    with BdvWriter(path, FULL, nchannels=2) as writer:
        for number, (time, channel) in enumerate([(1, 0), (0, 1), (0, 0)], 1):
            writer.append_view(coded(salt=number), time=time, channel=channel)
            np.testing.assert_array_equal(cells(path, (time, channel)), coded(salt=number))
            registered = {
                (int(r.get("timepoint")), int(r.get("setup")))
                for r in xml(path).iter("ViewRegistration")
            }
            assert len(registered) == number
            assert (time, channel) in registered
            with BioReader(path.with_suffix(".xml")) as reader:
                assert sum(not view.missing for view in reader.views) == number
        assert writer.missing_views == (ViewId(1, 1),)
    assert missing(path) == {(1, 1)}


def test_defaults_are_what_bigdataviewer_proposes(path):
    stack = coded((20, 300, 620))
    with BdvWriter(path) as writer:
        writer.append_view(stack, voxel_size_xyz=(0.5, 0.5, 2), voxel_units="µm")
    with h5py.File(path) as file:
        # by hand: 620 > 256, the voxel is 4 times as long along Z; 310 > 256; 155
        assert file["s00/resolutions"][()].tolist() == [[1, 1, 1], [2, 2, 1], [4, 4, 2]]
        assert file["t00000/s00/0/cells"].compression == "gzip"
        assert file["t00000/s00/0/cells"].shuffle
        assert "dataType" not in file["s00"].attrs
        small = file["t00000/s00/2/cells"][()].view("u2")
    blocks = stack.reshape(10, 2, 75, 4, 155, 4).astype(float)
    np.testing.assert_array_equal(small, np.floor(blocks.mean((1, 3, 5)) + 0.5))
    setup = xml(path).find(".//ViewSetup")
    assert setup.findtext("size") == "620 300 20"
    assert setup.findtext("voxelSize/size") == "0.5 0.5 2.0"
    assert affines(path, 0, 0) == [("calibration", [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 4, 0])]


@pytest.mark.parametrize("compression", [None, "none", "gzip"])
def test_reduced_resolutions_alone_are_stored(path, compression):
    stack = coded((9, 33, 40))
    factors = ((1, 4, 4), (2, 8, 8))
    with BdvWriter(path, factors, ((2, 8, 8),), compression) as writer:
        writer.append_view(stack)
        with pytest.raises(RegionError, match="time"):
            writer.append_view(stack, time=-1)
    assert xml(path).findtext(".//ViewSetup/size") == "40 33 9"
    for level, by in enumerate(factors):
        np.testing.assert_array_equal(cells(path, (0, 0), level), means(stack, by))


def means(stack, factors):
    total, count = stack.astype(np.int64), np.ones(stack.shape, np.int64)
    for axis, by in enumerate(factors):
        edges = np.arange(0, stack.shape[axis], by)
        total, count = (np.add.reduceat(a, edges, axis) for a in (total, count))
    return ((2 * total + count) // (2 * count)).astype(stack.dtype)


@pytest.mark.parametrize("order", ["up", "down", "shuffled"])
@pytest.mark.parametrize("factors", [FULL, ((1, 1, 1), (1, 2, 2)), ((1, 1, 1), (4, 2, 2))])
def test_planes_in_any_order_are_the_stack(path, order, factors):
    stack = coded()
    planes = list(range(SIZE[0]))
    if order == "down":
        planes.reverse()
    elif order == "shuffled":
        np.random.default_rng(3).shuffle(planes)
    with BdvWriter(path, factors, ((4, 16, 16),)) as writer:
        writer.append_view(None, SIZE)
        assert writer.views == ()
        for z in planes:
            writer.append_plane(stack[z], z)
        assert writer.views == (ViewId(0, 0),), "all planes are there: the view is, too"
    for level, by in enumerate(factors):
        np.testing.assert_array_equal(cells(path, (0, 0), level), means(stack, by))


def test_blocks_in_any_order_are_the_stack(path):
    stack, rng = coded((13, 50, 44)), np.random.default_rng(5)
    cuts = [(0, 3, 4, 11, 13), (0, 17, 50), (0, 5, 30, 44)]
    boxes = [
        (z, y, x)
        for z in zip(cuts[0], cuts[0][1:], strict=False)
        for y in zip(cuts[1], cuts[1][1:], strict=False)
        for x in zip(cuts[2], cuts[2][1:], strict=False)
    ]
    rng.shuffle(boxes)
    factors = ((1, 1, 1), (2, 4, 4), (4, 8, 8))
    with BdvWriter(path, factors, ((4, 16, 16),), nangles=2) as writer:
        writer.append_view(None, stack.shape, angle=1)
        for (a, b), (c, d), (e, f) in boxes:
            writer.append_substack(stack[a:b, c:d, e:f], a, c, e, angle=1)
        assert writer.views == (ViewId(0, 1),)
    for level, by in enumerate(factors):
        np.testing.assert_array_equal(cells(path, (0, 1), level), means(stack, by))


def test_parts_that_overlap_the_last_one_counts_and_close_ends_the_stack(path):
    stack = coded()
    with BdvWriter(path, ((1, 1, 1), (1, 2, 2)), ((2, 8, 8),)) as writer:
        writer.append_view(None, SIZE)
        writer.append_substack(np.full((5, 30, 41), 9, np.uint16), 0)
        writer.append_substack(stack[2:], 2)
        writer.append_substack(stack[:2, :20], 0)
        assert writer.views == ()
    expected = stack.copy()
    expected[:2, 20:] = 9
    for level, by in enumerate([(1, 1, 1), (1, 2, 2)]):
        np.testing.assert_array_equal(cells(path, (0, 0), level), means(expected, by))


def test_what_never_came_of_a_stack_is_zero_also_after_an_error(path):
    stack = coded()
    with pytest.raises(RuntimeError, match="camera"), BdvWriter(path, FULL) as writer:  # noqa: PT012
        writer.append_view(None, SIZE)
        writer.append_plane(stack[1], 1)
        raise RuntimeError("the camera is gone")
    expected = np.zeros_like(stack)
    expected[1] = stack[1]
    np.testing.assert_array_equal(cells(path, (0, 0)), expected)


def test_room_that_nothing_came_into_is_an_empty_stack(path):
    with BdvWriter(path, FULL) as writer:
        writer.append_view(None, SIZE)
    np.testing.assert_array_equal(cells(path, (0, 0)), np.zeros(SIZE))


def test_a_view_written_again_is_replaced_by_the_new_one(path):
    with BdvWriter(path, FULL, nchannels=2) as writer:
        writer.append_view(coded(), channel=1)
        writer.append_view(coded((9, 8, 7), salt=5), channel=1, m_affine=np.eye(4)[:3] * 3)
        assert writer.views == (ViewId(0, 1),)
    np.testing.assert_array_equal(cells(path, (0, 1)), coded((9, 8, 7), salt=5))
    assert [name for name, _ in affines(path, 0, 1)] == ["manually defined", "calibration"]
    assert xml(path).findtext(".//ViewSetup/size") == "7 8 9"


def test_planes_of_one_pixel_and_of_two_axes(path):
    with BdvWriter(path, nchannels=2) as writer:
        writer.append_view(np.array([[7]], np.uint8))
        writer.append_view(coded((30, 41)), channel=1)
    assert cells(path, (0, 0)).tolist() == [[[7]]]
    np.testing.assert_array_equal(cells(path, (0, 1)), coded((30, 41))[None])


def test_lazy_stacks_are_computed_piece_by_piece(path, tmp_path):
    da = pytest.importorskip("dask.array")
    stack = coded((40, 64, 64))
    pieces = []

    def note(block):
        pieces.append(block.shape)
        return block

    lazy = da.from_array(stack, chunks=(8, 64, 64)).map_blocks(note, dtype="u2", meta=stack[:0])
    with h5py.File(tmp_path / "in.h5", "w") as file:
        given = file.create_dataset("x", data=stack)
        with BdvWriter(path, FULL, nchannels=2) as writer:
            writer.append_view(lazy, channel=0)
            writer.append_view(given, channel=1)
    assert set(pieces) == {(8, 64, 64)}
    for channel in (0, 1):
        np.testing.assert_array_equal(cells(path, (0, channel)), stack)


def test_a_reader_is_a_stack_too(path, tmp_path):
    from bioio_tk import imwrite

    stack = coded()
    imwrite(stack, tmp_path / "a.ome.tif", dim_order="ZYX")
    with BioReader(tmp_path / "a.ome.tif") as reader, BdvWriter(path, FULL) as writer:
        writer.append_view(reader)
    np.testing.assert_array_equal(cells(path, (0, 0)), stack)


def test_threads_write_views_and_planes_at_once(path):
    factors = ((1, 1, 1), (2, 2, 2))
    stacks = {(t, c): coded(salt=10 * t + c) for t in range(4) for c in range(3)}
    failed = []
    with BdvWriter(path, factors, ((2, 8, 8),), nchannels=3) as writer:

        def by_stack(time):
            for channel in (0, 1):
                writer.append_view(stacks[time, channel], time=time, channel=channel)

        def by_plane(time, planes):
            for z in planes:
                writer.append_plane(stacks[time, 2][z], z, time=time, channel=2)

        def guarded(work, *args):
            try:
                work(*args)
            except BaseException as exc:
                failed.append(exc)

        for time in range(4):
            writer.append_view(None, SIZE, time=time, channel=2)
        jobs = [(by_stack, t) for t in range(4)]
        jobs += [(by_plane, t, planes) for t in range(4) for planes in ((0, 2, 4, 6), (1, 3, 5))]
        threads = [threading.Thread(target=guarded, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failed
        assert len(writer.views) == 12
    for view, stack in stacks.items():
        for level, by in enumerate(factors):
            np.testing.assert_array_equal(cells(path, view, level), means(stack, by))


# ------------------------------------------------------------------ what is said of views


def test_affines_belong_to_one_view_to_the_last_bit(path):
    rng = np.random.default_rng(7)
    first, second, third = rng.normal(0, 1e4, (3, 3, 4)) * 1e-7
    with BdvWriter(path, FULL) as writer:
        for time, matrix in ((0, first), (1, second)):
            writer.append_view(coded(), time=time, m_affine=matrix, name_affine=f"t{time}",
                               calibration=(1, 1, 4))  # fmt: skip
        writer.append_affine(third, "stitched", time=1)
        np.testing.assert_array_equal(writer.read_affine(time=1), third)
        np.testing.assert_array_equal(writer.read_affine(time=1, index=1), second)
        writer.append_view(coded(), time=2)
    scaled = ("calibration", [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 4, 0])
    assert affines(path, 0, 0) == [("t0", first.ravel().tolist()), scaled]
    assert affines(path, 1, 0) == [
        ("stitched", third.ravel().tolist()),
        ("t1", second.ravel().tolist()),
        scaled,
    ]


def test_names_cameras_and_places_are_in_the_xml(path):
    with BdvWriter(path, FULL, nchannels=2, ntiles=2) as writer:
        writer.set_attribute_labels("channel", ("488", "561 & <GFP>"))
        writer.append_view(coded(), exposure_time=10, exposure_units="ms")
        writer.set_attribute("tile", 1, "right", location=(120, 0, -3.5))
        writer.write_xml("Orca", "DaXi", "2.1", "Müller")
        writer.append_view(coded(), tile=1)
    root = xml(path)
    names = [c.findtext("name") for c in root.iter("Channel")]
    assert names == ["488", "561 & <GFP>"]
    assert [t.findtext("location") for t in root.iter("Tile")] == [None, "120.0 0.0 -3.5"]
    assert [t.findtext("name") for t in root.iter("Tile")] == ["0", "right"]
    assert root.findtext("generatedBy/microscope/name") == "DaXi"
    assert root.findtext("generatedBy/microscope/user") == "Müller"
    cameras = [[e.text for e in c] for c in root.iter("camera")]
    assert cameras == [["Orca", "10", "ms"], ["Orca", "0", "s"]]


# ------------------------------------------------------------------ lazy pyramids


@pytest.mark.parametrize("compression", ["gzip", None])
def test_pyramids_made_later_equal_those_made_at_once(path, tmp_path, compression):
    factors = ((1, 1, 1), (2, 4, 4), (3, 8, 8))
    blocks = ((4, 16, 16), (2, 8, 8), (2, 8, 8))
    told = []
    with BdvWriter(path, FULL, blocks[:1], compression, nchannels=2) as writer:
        writer.append_view(coded((11, 50, 60)), time=1)
        writer.append_view(coded((11, 50, 60), salt=4), channel=1)
        writer.create_pyramids(
            factors[1:], blocks[1:], compression, progress=lambda *now: told.append(now)
        )
        writer.append_view(coded((11, 50, 60), salt=8))
    assert told[-1] == (2 * 11 * 50 * 60 * 2,) * 2
    for view, salt in (((1, 0), 0), ((0, 1), 4), ((0, 0), 8)):
        for level, by in enumerate(factors):
            found = cells(path, view, level)
            np.testing.assert_array_equal(found, means(coded((11, 50, 60), salt=salt), by))
    with h5py.File(path) as file:
        for setup in ("s00", "s01"):
            assert file[setup]["resolutions"][()].tolist() == [[1, 1, 1], [4, 4, 2], [8, 8, 3]]
            assert file[setup]["subdivisions"][()].tolist() == [[16, 16, 4], [8, 8, 2], [8, 8, 2]]


def test_pyramids_are_not_made_twice_nor_of_half_a_stack(path):
    with BdvWriter(path, FULL) as writer:
        writer.append_view(None, SIZE)
        with pytest.raises(SpecError, match="not complete"):
            writer.create_pyramids()
        for z in range(SIZE[0]):
            writer.append_plane(coded()[z], z)
        writer.create_pyramids(((1, 2, 2),))
        with pytest.raises(SpecError, match="already"):
            writer.create_pyramids(((1, 4, 4),))
        with pytest.raises(SpecError, match="already"):
            writer.create_pyramids(((1, 1, 1),))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"nchannels": 0}, SpecError, "at least 1"),
        ({"ntiles": 1.5}, SpecError, "ntiles=1.5"),
        ({"subsamp": ((1, 1),)}, SpecError, "subsamp"),
        ({"subsamp": ((1, 2, 2.5),)}, SpecError, "whole numbers"),
        ({"blockdim": ((0, 8, 8),)}, SpecError, "blockdim"),
        ({"subsamp": FULL, "blockdim": ((1, 8, 8), (1, 8, 8))}, SpecError, "2 blocks"),
        ({"compression": "jpeg"}, SpecError, "jpeg"),
        ({"compression_level": 11}, SpecError, "0 to 9"),
        ({"compression": None, "compression_level": 1}, SpecError, "level"),
        ({"dtype": "bool"}, PixelTypeError, "bool"),
        ({"dtype": "complex64"}, PixelTypeError, "complex64"),
        ({"downsample": "cubic"}, SpecError, "mean"),
        ({"cast": "round"}, SpecError, "clip"),
        ({"times_per_file": -1}, SpecError, "times_per_file"),
    ],
)
def test_what_makes_no_sense_is_said_and_leaves_nothing(tmp_path, arguments, error, says):
    with pytest.raises(error, match=says):
        BdvWriter(tmp_path / "a.h5", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.hdf5", "a", "a.tif"])
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(SpecError, match=r"NAME\.h5"):
        BdvWriter(tmp_path / name)


VIEW_ERRORS = [
    ({"stack": coded(dtype="u1")}, PixelTypeError, "uint8"),
    ({"stack": coded().astype(bool)}, PixelTypeError, "bool"),
    ({"stack": coded((2, 3, 4, 5))}, SpecError, "4 axes"),
    ({"stack": coded((3, 0, 4))}, SpecError, "length 0"),
    ({"stack": coded((6, 30, 41)), "time": 1}, SpecError, "share one size"),
    ({"stack": coded(), "channel": 2}, RegionError, "channel=2"),
    ({"stack": coded(), "tile": -1}, RegionError, "tile=-1"),
    ({"stack": coded(), "time": 1.5}, RegionError, "time"),
    ({"stack": coded(), "m_affine": np.eye(3)}, SpecError, "3, 4"),
    ({"stack": coded(), "m_affine": np.full((3, 4), np.nan)}, SpecError, "finite"),
    ({"stack": coded(), "voxel_size_xyz": (1, 2)}, SpecError, "three positive"),
    ({"stack": coded(), "voxel_size_xyz": (1, 0, 1)}, SpecError, "three positive"),
    ({"stack": coded(), "voxel_size_xyz": (2, 2, 2), "time": 1}, SpecError, "all of them share"),
    ({"stack": coded(), "calibration": "physical"}, SpecError, "auto"),
    ({"stack": None}, SpecError, "virtual_stack_dim"),
    ({"stack": None, "virtual_stack_dim": (1, 0, 2)}, SpecError, "virtual_stack_dim"),
    ({"stack": coded(), "virtual_stack_dim": SIZE}, SpecError, "virtual_stack_dim"),
]


@pytest.mark.parametrize(("arguments", "error", "says"), VIEW_ERRORS)
def test_a_view_that_does_not_fit_changes_nothing(path, arguments, error, says):
    with BdvWriter(path, FULL, nchannels=2) as writer:
        writer.append_view(coded())
        before = path.read_bytes(), path.with_suffix(".xml").read_bytes()
        with pytest.raises(error, match=says):
            writer.append_view(**arguments)
        assert (path.read_bytes(), path.with_suffix(".xml").read_bytes()) == before
        writer.append_view(coded(salt=1), channel=1)
    np.testing.assert_array_equal(cells(path, (0, 1)), coded(salt=1))


def test_parts_that_do_not_fit_change_nothing(path):
    with BdvWriter(path, FULL) as writer:
        with pytest.raises(SpecError, match="virtual_stack_dim"):
            writer.append_plane(coded()[0], 0)
        writer.append_view(None, SIZE)
        writer.append_plane(coded()[0], 0)
        for part, z, error in (
            (coded()[0][:-1], 1, SpecError),
            (coded()[0], 7, RegionError),
            (coded()[0], -1, RegionError),
            (coded()[0].astype("f4"), 1, PixelTypeError),
        ):
            with pytest.raises(error):
                writer.append_plane(part, z)
        for start in ((6, 0, 0), (0, 29, 0), (0, 0, 40)):
            with pytest.raises(RegionError, match="does not fit"):
                writer.append_substack(coded((2, 2, 2)), *start)
        with pytest.raises(SpecError, match="being written already"):
            writer.append_view(None, SIZE)
    expected = np.zeros(SIZE)
    expected[0] = coded()[0]
    np.testing.assert_array_equal(cells(path, (0, 0)), expected)


@pytest.mark.parametrize("there", ["a.h5", "a.xml"])
def test_an_existing_dataset_is_replaced_only_on_demand_and_late(path, there):
    old = path.with_name(there)
    old.write_bytes(b"precious")
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        BdvWriter(path)
    writer = BdvWriter(path, FULL, overwrite=True)
    with pytest.raises(PixelTypeError):
        writer.append_view(np.zeros(SIZE, bool))
    writer.close()
    assert old.read_bytes() == b"precious"
    with BdvWriter(path, FULL, overwrite=True) as writer:
        writer.append_view(coded())
    np.testing.assert_array_equal(cells(path, (0, 0)), coded())
    assert len(list(path.parent.iterdir())) == 2


def test_a_second_writer_is_refused(path):
    with BdvWriter(path, FULL) as writer:
        writer.append_view(coded())
        second = BdvWriter(path, FULL, overwrite=True)
        with pytest.raises(TargetBusyError):
            second.append_view(coded(salt=1))
        second.close()
        writer.append_view(coded(salt=2), time=1)
    np.testing.assert_array_equal(cells(path, (0, 0)), coded())
    np.testing.assert_array_equal(cells(path, (1, 0)), coded(salt=2))


def test_a_closed_writer_says_so(path):
    writer = BdvWriter(path, FULL)
    writer.append_view(coded())
    writer.close()
    writer.close()
    for call in (
        lambda: writer.append_view(coded()),
        lambda: writer.append_plane(coded()[0], 0),
        writer.create_pyramids,
        writer.write_xml,
    ):
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_a_writer_without_views_leaves_nothing(tmp_path):
    with BdvWriter(tmp_path / "a.xml"):
        pass
    assert not list(tmp_path.iterdir())


def test_casts_on_purpose(path):
    with BdvWriter(path, FULL, dtype="uint8", cast="clip") as writer:
        writer.append_view(np.array([[[-5, 3, 300]]], np.int32))
    assert cells(path, (0, 0)).tolist() == [[[0, 3, 255]]]


def test_compressions_that_fiji_cannot_read_come_with_a_warning(path):
    with pytest.warns(BioIOWarning, match="Fiji"), BdvWriter(path, FULL, None, "lzf") as writer:
        writer.append_view(coded())
    np.testing.assert_array_equal(cells(path, (0, 0)), coded())
    with h5py.File(path) as file:
        assert file["t00000/s00/0/cells"].compression == "lzf"


def test_what_is_dropped_of_the_full_resolution_is_not_given_twice(path):
    with BdvWriter(path, ((1, 2, 2),), ((1, 8, 8),)) as writer:
        writer.append_view(None, SIZE)
        writer.append_plane(coded()[0], 0)
        with pytest.raises(UnsupportedError, match="not stored"):
            writer.append_substack(coded((1, 3, 3)), 0)
