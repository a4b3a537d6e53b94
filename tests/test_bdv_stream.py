"""Streams to BigDataViewer: right for h5py and a plain look at the XML, also while they grow."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from command import run
from test_stream_recover import ENV, acknowledged, streaming

from bioio_tk import AcquisitionSettings, BdvFormat, BioReader, create_stream, watch
from bioio_tk.api import recover
from bioio_tk.backends import bdv_stream
from bioio_tk.backends._file import RandomFile
from bioio_tk.errors import (
    BackendError,
    BioIOWarning,
    FormatError,
    PixelTypeError,
    StreamError,
    TargetExistsError,
    UnsupportedError,
)

h5py = pytest.importorskip("h5py")

SHAPE = (24, 40)
DEPTH = 5
TYPES = (
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float32", "float64"),
)


def coded(number, shape=SHAPE, dtype="u2"):
    """Return a frame; as the children of test_stream_recover make it, no pixel of it is 0."""
    y, x = np.indices(shape)
    return (number * 317 + y * 29 + x * 3 + 1).astype(dtype)


def dims(*, t=3, positions=("A", "B"), c=2, z=DEPTH, shape=SHAPE, order="tpcz", z_=(), yx=()):
    """Return dimensions as JSON has them; no positions, channels or planes for None."""
    scale = {"scale": 0.5, "unit": "um"}
    known = {
        "t": {"name": "t", "count": t, "type": "time"},
        "p": {"name": "p", "type": "position", "coords": list(positions or ())},
        "c": {"name": "c", "type": "channel", "coords": [f"ch{n}" for n in range(c or 0)]},
        "z": {"name": "z", "count": z, "type": "space", "scale": 2, "unit": "um", **dict(z_)},
    }
    wanted = {"t": t != 0, "p": positions, "c": c, "z": z}
    return [
        *(known[letter] for letter in order if wanted[letter]),
        {"name": "y", "count": shape[0], "type": "space", **scale, **dict(yx)},
        {"name": "x", "count": shape[1], "type": "space", **scale, **dict(yx)},
    ]


def opened(path, dimensions, dtype="uint16", **options):
    return create_stream(
        AcquisitionSettings.model_validate(
            {"root_path": str(path), "dimensions": dimensions, "dtype": dtype, **options}
        )
    )


def place(number, order="tpcz", p=2, c=2, z=DEPTH):
    """Return time point, setup and plane of a frame, counted by hand."""
    sizes = {"p": p, "c": c, "z": z}
    at = {}
    for letter in reversed(order[1:]):
        number, at[letter] = divmod(number, sizes[letter])
    at[order[0]] = number
    return at["t"], at["c"] * p + at["p"], at["z"]


def stacks_in(path, dtype="u2"):
    """Return every stack of every level by (t, setup, level), read by h5py."""
    found = {}
    with h5py.File(path.with_suffix(".h5"), "r", locking=False) as file:
        for t in (name for name in file if name[0] == "t"):
            for s, group in file[t].items():
                for level in group:
                    pixels = group[level]["cells"][()].view(dtype)
                    found[int(t[1:]), int(s[1:]), int(level)] = pixels
    return found


def spim(path):
    """Return what the XML says, by nothing but ElementTree, as plain values."""
    root = ET.fromstring(path.read_bytes())
    sequence = root.find("SequenceDescription")
    setups = {int(node.findtext("id")): node for node in sequence.iterfind("ViewSetups/ViewSetup")}
    first, last = (int(sequence.findtext(f"Timepoints/{end}")) for end in ("first", "last"))

    def views(where):
        nodes = where.iter("MissingView" if where is sequence else "ViewRegistration")
        return [(int(node.get("timepoint")), int(node.get("setup"))) for node in nodes]

    registered = views(root.find("ViewRegistrations"))
    every = set(itertools.product(range(first, last + 1), setups))
    # every view is either missing or registered, and none twice
    assert sorted(registered + views(sequence)) == sorted(every)
    assert sequence.findtext("ImageLoader/hdf5") == path.with_suffix(".h5").name
    return root, setups, registered, last + 1


def check(path, frames, *, skipped=(), order="tpcz", p=2, c=2, late=False, **more):
    """Check that exactly these frames are there, in the HDF5 and in the XML.

    Where it was killed, `late`, the frames that follow may be there, too, at least in part.
    """
    z = more.get("z", DEPTH)
    found = stacks_in(path)
    whole = {key: stack.copy() for key, stack in found.items()}
    for number in range(frames, frames + 100 if late else frames):
        t, setup, plane = place(number, order, p, c, z)
        stack = found.get((t, setup, 0))
        if stack is not None:
            came = stack[plane] == coded(number)
            assert (came | (stack[plane] == 0)).all()
            stack[plane] = 0
    want = {}
    for number in range(frames):
        if number not in skipped:
            t, setup, plane = place(number, order, p, c, z)
            stack = want.setdefault((t, setup), np.zeros((z, *more.get("shape", SHAPE)), "u2"))
            stack[plane] = coded(number, stack.shape[1:])
    assert {key[:2] for key in found} == set(want)
    for (t, setup), stack in want.items():
        assert (found[t, setup, 0] == stack).all(), (t, setup)
    _, _, registered, _ = spim(path)
    assert sorted(registered) == sorted(want)
    return whole


def block_means(pixels, factors):
    """The definition: the mean of the pixels that are there in each cell, halves rounded up."""
    total, count = pixels.astype(np.int64), np.ones(pixels.shape, np.int64)
    for axis, by in enumerate(factors):
        edges = np.arange(0, pixels.shape[axis], by)
        total, count = (np.add.reduceat(a, edges, axis) for a in (total, count))
    return ((2 * total + count) // (2 * count)).astype(pixels.dtype)


def check_levels(path, found, levels):
    """Check that all stacks of a setup have its levels, each made from the full resolution."""
    with h5py.File(path.with_suffix(".h5"), "r") as file:
        for t, setup, _ in [key for key in found if key[2] == 0]:
            factors = file[f"s{setup:02d}/resolutions"][()].astype(int)[:, ::-1]
            assert len(factors) == levels
            assert file[f"s{setup:02d}/subdivisions"].shape == (levels, 3)
            for number in range(1, levels):
                want = block_means(found[t, setup, 0], factors[number])
                assert (found[t, setup, number] == want).all(), (t, setup, number)
    assert {key[2] for key in found} == set(range(levels))


# --- what is written -----------------------------------------------------------------------------

CASES = {
    "raw": {},
    "gzip": {"compression": "gzip"},
    "gzip-9": {"compression": "gzip", "compression_level": 9},
    "live": {"pyramid": "live", "pyramid_levels": 3},
    "live-gzip": {"pyramid": "live", "pyramid_levels": 3, "compression": "gzip"},
    "after": {"pyramid": "after", "pyramid_levels": 3},
    "after-gzip": {"pyramid": "after", "pyramid_levels": 3, "compression": "gzip"},
}
CHUNKS = {
    "default": {},
    "deep": {"z_": {"chunk_size": 2}},
    "small": {"yx": {"chunk_size": 7}},  # the index of a stack has several nodes
    "small-deep": {"z_": {"chunk_size": 3}, "yx": {"chunk_size": 16}},
}


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("case", CASES)
def test_frames_levels_and_xml(tmp_path, case, chunks):
    path = tmp_path / "x.xml"
    skipped = {3, 17, 18, 19, 45, 46, 47, 48, 49}
    with opened(path, dims(t=None, **CHUNKS[chunks]), **CASES[case]) as stream:
        for number in range(53):
            if number in skipped:
                stream.skip()
            else:
                stream.append(coded(number))
    found = check(path, 53, skipped=skipped)
    check_levels(path, found, CASES[case].get("pyramid_levels", 1))
    root, setups, registered, times = spim(path)
    assert times == 3
    assert (2, 2) not in registered  # all of its planes were skipped
    assert [(n, node.findtext("name")) for n, node in setups.items()] == [
        (0, "A, ch0"),
        (1, "B, ch0"),
        (2, "A, ch1"),
        (3, "B, ch1"),
    ]
    for number, node in setups.items():
        assert node.findtext("size") == "40 24 5"
        assert node.findtext("voxelSize/size") == "0.5 0.5 2.0"
        assert node.findtext("voxelSize/unit") == "µm"
        said = {item.tag: int(item.text) for item in node.find("attributes")}
        assert said == {
            "illumination": 0,
            "channel": number // 2,
            "tile": number % 2,
            "angle": 0,
        }
    named = {
        node.tag: [item.findtext("name") for item in root.iter(node.tag)]
        for node in root.iterfind(".//Attributes/*")
    }
    assert named["Channel"] == ["ch0", "ch1"]
    assert named["Tile"] == ["A", "B"]
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["x.h5", "x.xml"]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_no_two_chunks_share_a_place_when_all_is_done(tmp_path, compression):
    """While it grows they may, in nothing but zeros: who deletes a stack would free it twice."""
    path = tmp_path / "x.xml"
    with opened(path, dims(yx={"chunk_size": 7}), compression=compression) as stream:
        for number in range(47):
            stream.skip() if number % 4 == 1 else stream.append(coded(number))
    places = []
    with h5py.File(tmp_path / "x.h5", "r") as file:

        def visit(name, node):
            if name.endswith("cells"):
                node.id.chunk_iter(lambda chunk: places.append((chunk.byte_offset, chunk.size)))

        file.visititems(visit)
    assert len(places) > 100
    assert compression or {size for _, size in places} == {7 * 7 * 2}  # whole also at the border
    ends = [place + size for place, size in sorted(places)]
    starts = [place for place, _ in sorted(places)]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


@pytest.mark.parametrize("dtype", TYPES)
def test_pixel_types(tmp_path, dtype):
    path = tmp_path / "x.xml"
    low, high = (0, 1) if dtype[0] == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    rng = np.random.default_rng(3)
    frames = rng.uniform(low, high, (4, *SHAPE)).astype(dtype)
    frames[0, 0, :2] = low, high
    with opened(path, dims(t=2, positions=None, c=None, z=2), dtype) as stream:
        for frame in frames:
            stream.append(frame)
    with h5py.File(tmp_path / "x.h5", "r") as file:
        # uint16 the old way: int16 bits, which every BigDataViewer reads
        stored = np.dtype("i2" if dtype == "uint16" else dtype)
        assert file["t00001/s00/0/cells"].dtype == stored
        said = file["s00"].attrs.get("dataType")
        assert said is None if dtype == "uint16" else said in (dtype, dtype.encode())
    found = stacks_in(path, dtype)
    assert (np.concatenate([found[0, 0, 0], found[1, 0, 0]]) == frames).all()


@pytest.mark.parametrize("order", ["tpzc", "ptcz", "tzpc", "tczp"])
@pytest.mark.parametrize("case", ["raw", "live-gzip"])
def test_any_order_of_acquisition(tmp_path, order, case):
    path = tmp_path / "x.xml"
    positions = 2 if order[0] != "p" else 3  # the last one is never visited
    dimensions = dims(t=2 if order[0] == "p" else 3, positions="ABC"[:positions], order=order)
    frames = 2 * 2 * 2 * DEPTH - (0 if order[0] == "p" else 4)
    with opened(path, dimensions, **CASES[case]) as stream:
        for number in range(frames):
            stream.append(coded(number))
    want = {}
    for number in range(frames):
        rest, at = number, {}
        sizes = {"p": positions, "c": 2, "z": DEPTH, "t": 2}
        for letter in reversed(order[1:]):
            rest, at[letter] = divmod(rest, sizes[letter])
        at[order[0]] = rest
        key = (at["t"], at["c"] * positions + at["p"])
        want.setdefault(key, np.zeros((DEPTH, *SHAPE), "u2"))[at["z"]] = coded(number)
    found = stacks_in(path)
    assert {key[:2] for key in found} == set(want)
    assert all((found[*key, 0] == stack).all() for key, stack in want.items())
    _, setups, registered, _ = spim(path)
    assert set(registered) == set(want)
    assert {n % positions for n in setups} == {0, 1}


def test_a_stack_that_was_stopped_early_is_cut(tmp_path):
    path = tmp_path / "x.xml"
    dimensions = dims(t=0, positions=None, z=100, order="zc", z_={"chunk_size": 4})
    with opened(path, dimensions, pyramid="live", pyramid_levels=3) as stream:
        for number in range(13):
            stream.append(coded(number))
    found = stacks_in(path)
    assert found[0, 0, 0].shape == (7, *SHAPE)  # the last plane only of the first channel
    for number in range(13):
        z, c = divmod(number, 2)
        assert (found[0, c, 0][z] == coded(number)).all()
    assert (found[0, 1, 0][6] == 0).all()
    check_levels(path, found, 3)
    _, setups, _, _ = spim(path)
    assert {node.findtext("size") for node in setups.values()} == {"40 24 7"}
    with BioReader(path) as br:
        assert br.shape == (24, 40, 7, 2, 1)
        assert (br[:, :, 5, 1, 0].reshape(SHAPE) == coded(11)).all()


def test_time_points_of_which_all_was_skipped(tmp_path):
    path = tmp_path / "x.xml"
    with opened(path, dims(t=None)) as stream:
        for number in range(20):
            stream.append(coded(number))
        stream.skip(frames=33)
    check(path, 20)
    assert spim(path)[3] == 3
    with BioReader(path) as br:
        assert br.shape == (*SHAPE, DEPTH, 2, 3)
        assert not br[:, :, :, :, 1:].any()


def test_two_dimensional_time_lapse(tmp_path):
    path = tmp_path / "x.xml"
    with opened(path, dims(t=None, positions=None, c=None, z=None)) as stream:
        for number in range(120):
            stream.append(coded(number))
    check(path, 120, p=1, c=1, z=1)
    with BioReader(path) as br:
        assert br.shape == (*SHAPE, 1, 1, 120)
        assert (br[0, 0].ravel() == [coded(n)[0, 0] for n in range(120)]).all()


def test_cameras_are_channels(tmp_path):
    path = tmp_path / "x.xml"
    dimensions = dims(t=2, positions=None, z=None)
    dimensions.insert(1, {"name": "cam", "count": 2, "type": "other"})
    with opened(path, dimensions) as stream:
        for number in range(8):
            stream.append(coded(number))
    check(path, 8, p=1, c=4, z=1)
    root, _, _, _ = spim(path)
    names = [node.findtext("name") for node in root.iter("Channel")]
    assert names == ["ch0-cam0", "ch1-cam0", "ch0-cam1", "ch1-cam1"]


def test_stacks_are_forgotten_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(bdv_stream, "_MOST_OPEN", 2)
    path = tmp_path / "x.xml"
    dimensions = dims(order="tzpc", z_={"chunk_size": 3}, yx={"chunk_size": 9})
    with opened(path, dimensions, pyramid="live", pyramid_levels=2) as stream:
        for number in range(60):
            stream.append(coded(number))
    found = check(path, 60, order="tzpc")
    check_levels(path, found, 2)


def test_a_chunk_that_is_given_plane_by_plane_leaves_others_alone(tmp_path, monkeypatch):
    """A stack found again does not take the zeros that all share for its own."""
    monkeypatch.setattr(bdv_stream, "_MOST_OPEN", 1)
    path = tmp_path / "x.xml"
    with opened(path, dims(t=2, order="tzpc", z_={"chunk_size": DEPTH})) as stream:
        for number in range(20):
            stream.append(coded(number))
            stream.flush()
            check_planes(path, number + 1, order="tzpc")


def check_planes(path, frames, order="tpcz"):
    """Check that these frames are there, and that no other plane has a pixel."""
    found = stacks_in(path)
    for number in range(frames):
        t, setup, z = place(number, order)
        assert (found[t, setup, 0][z] == coded(number)).all(), number
        found[t, setup, 0][z] = 0
    assert not any(stack.any() for (_, _, level), stack in found.items() if level == 0)


# --- where the tiles are -------------------------------------------------------------------------


def affines(root):
    """Return the transforms of each view: name and numbers."""
    return {
        (int(view.get("timepoint")), int(view.get("setup"))): [
            (node.findtext("Name"), [float(n) for n in node.findtext("affine").split()])
            for node in view.iterfind("ViewTransform")
        ]
        for view in root.iter("ViewRegistration")
    }


def test_stage_coordinates_are_translations(tmp_path):
    path = tmp_path / "x.xml"
    dimensions = dims(t=2, c=None, z_={"translation": 10})
    dimensions[1]["coords"] = [
        {"name": "A", "x_coord": 100, "y_coord": -7.5, "z_coord": 3},
        {"name": "B", "x_coord": 101.25, "y_coord": 0},
    ]
    with opened(path, dimensions) as stream:
        for number in range(20):
            stream.append(coded(number))
    root, _, _, _ = spim(path)
    calibration = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 4, 0]  # voxels of 0.5, 0.5, 2 µm
    found = affines(root)
    assert set(found) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for (_, setup), transforms in found.items():
        (_, moved), (name, scaled) = transforms  # the last one is applied first
        assert (name, scaled) == ("calibration", calibration)
        # in units of the smallest side of a voxel, as BigStitcher has it
        x, y, z = [(200, -15, 26), (202.5, 0, 20)][setup]
        assert moved == [1, 0, 0, x, 0, 1, 0, y, 0, 0, 1, z]
    places = [node.findtext("location") for node in root.iter("Tile")]
    assert [[float(n) for n in text.split()] for text in places] == [[200, -15, 26], [202.5, 0, 20]]
    with BioReader(path) as br:
        assert br.n_series == 2
        assert {view.series for view in br.views} == {0, 1}


def test_without_the_size_of_a_pixel_nobody_knows_where_tiles_are(tmp_path):
    dimensions = dims(t=1, c=None, z=None)
    dimensions[1]["coords"] = [{"name": n, "x_coord": 5, "y_coord": 6} for n in "AB"]
    for dim in dimensions[-2:]:
        del dim["scale"]
    with pytest.warns(BioIOWarning, match="give the dimensions y and x a scale"):
        stream = opened(tmp_path / "x.xml", dimensions)
    with stream:
        stream.append(coded(0))
    root, setups, _, _ = spim(tmp_path / "x.xml")
    assert setups[0].findtext("voxelSize/unit") == "pixel"
    assert [name for name, _ in affines(root)[0, 0]] == ["calibration"]


# --- what is known besides ------------------------------------------------------------------------


def ome_of(path):
    with h5py.File(path.with_suffix(".h5"), "r") as file:
        return file["ome_xml"][0].decode()


def test_what_bigdataviewer_has_no_words_for_is_kept(tmp_path):
    path = tmp_path / "x.xml"
    with opened(path, dims(t=40)) as stream:
        stream.set_global_metadata("lab", {"operator": "Ada"})
        for number in range(800):  # more than an attribute of HDF5 holds
            stream.append(coded(number), frame_metadata={"delta_t": number / 4, "laser": "é488"})
        before = stream.get_metadata()
    assert before.startswith("<?xml")
    xml = ome_of(path)
    assert xml.count("é488") == 800
    assert 'DeltaT="199.75"' in xml
    assert "Ada" in xml
    stream.set_global_metadata("lab", {"operator": "Eve"})
    assert "Eve" in ome_of(path)
    assert "Ada" not in ome_of(path)
    check(path, 800)
    with BioReader(path) as br:
        assert br.channel_names == ["ch0", "ch1"]


def test_the_xml_can_be_replaced(tmp_path):
    path = tmp_path / "x.xml"
    with opened(path, dims(t=1, positions=None, c=None)) as stream:
        stream.append(coded(0))
        with pytest.raises(BackendError, match="has to be closed before"):
            stream.update_metadata(stream.get_metadata())
    text = stream.get_metadata()
    assert text == path.read_text("utf-8")
    stream.update_metadata(text.replace("<SequenceDescription>", "<SequenceDescription><!-- -->"))
    assert "<!-- -->" in path.read_text("utf-8")
    with pytest.raises(TypeError, match="text of an XML"):
        stream.update_metadata({})
    with pytest.raises(FormatError):
        stream.update_metadata("<OME/>")
    assert "<!-- -->" in path.read_text("utf-8")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dimensions", "options", "error", "match"),
    [
        (dims(z=None, order="zt"), {}, None, ""),
        (dims(t=0, positions=None, c=None, z=None), {}, None, ""),
        (
            [{"name": "z", "count": None, "type": "space"}, *dims(t=0, positions=0, c=0, z=0)],
            {},
            UnsupportedError,
            "number of planes",
        ),
        (
            [{"name": "cam", "count": None, "type": "other"}, *dims(t=0, positions=0, c=0, z=0)],
            {},
            UnsupportedError,
            "number of channels",
        ),
        (dims(), {"dtype": "bool"}, PixelTypeError, "no pixels of type bool"),
        (dims(), {"dtype": "complex64"}, PixelTypeError, "no pixels of type complex64"),
        (dims(), {"compression": "zstd"}, ValueError, "not supported for BigDataViewer"),
        (dims(positions=("A", "B\x07")), {}, ValueError, "U\\+0007"),
        (
            [
                {
                    "name": "p",
                    "type": "position",
                    "coords": [{"name": "A", "plate_row": "A", "plate_column": "1"}],
                },
                *dims(t=0, positions=0),
            ],
            {"plate": {"row_names": ["A"], "column_names": ["1"]}},
            UnsupportedError,
            "knows no plates",
        ),
        (dims(), {"format": "bdv", "root_path": "a.ome.zarr"}, ValueError, "contradicts"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    tmp_path, monkeypatch, dimensions, options, error, match
):
    monkeypatch.chdir(tmp_path)
    given = {"dtype": "uint16", "root_path": "x.xml", **options}
    if error is None:
        create_stream(AcquisitionSettings.model_validate({**given, "dimensions": dimensions}))
        return
    with pytest.raises(error, match=match):
        create_stream(AcquisitionSettings.model_validate({**given, "dimensions": dimensions}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("root", ["x.xml", "x.h5", "x", "x.XML", "x.ome.xml"])
def test_names(tmp_path, root):
    names = {"x.XML": ("x.XML", "x.h5"), "x.ome.xml": ("x.ome.xml", "x.ome.h5")}
    xml, h5 = names.get(root, ("x.xml", "x.h5"))
    with opened(tmp_path / root, dims(t=1), format="bdv") as stream:
        stream.append(coded(0))
    assert stream.path == tmp_path / xml
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([xml, h5])
    spim(tmp_path / xml)


def test_the_format(tmp_path):
    assert BdvFormat().suffix == ".xml"
    with pytest.raises(ValueError, match="that of OME-Zarr"):
        BdvFormat(suffix=".zarr")
    for name in ("bdv", "BigDataViewer", {"name": "bdv"}, BdvFormat()):
        settings = AcquisitionSettings.model_validate(
            {"root_path": str(tmp_path / "x"), "dimensions": dims(), "format": name}
        )
        assert settings.output_path == str(tmp_path / "x.xml")


@pytest.mark.parametrize("there", ["x.xml", "x.h5"])
def test_what_is_there_is_replaced_only_if_asked(tmp_path, there):
    (tmp_path / there).write_bytes(b"something")
    with pytest.raises(TargetExistsError, match=there):
        opened(tmp_path / "x.xml", dims())
    assert [entry.name for entry in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_bytes() == b"something"
    with opened(tmp_path / "x.xml", dims(), overwrite=True) as stream:
        for number in range(30):
            stream.append(coded(number))
    check(tmp_path / "x.xml", 30)


def test_without_a_frame_nothing_is_left(tmp_path):
    with (
        pytest.warns(BioIOWarning, match="no frame with pixels"),
        opened(tmp_path / "x.xml", dims()) as stream,
    ):
        stream.skip(frames=3)
    assert list(tmp_path.iterdir()) == []


def test_the_file_with_the_pixels_is_missed(tmp_path):
    stream = opened(tmp_path / "x.xml", dims(t=None))
    stream.append(coded(0))
    stream.flush()
    (tmp_path / "x.h5").rename(tmp_path / "moved.h5")
    with pytest.raises(StreamError, match="removed or moved"):
        stream.close()


# --- while it grows -------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_frame_can_be_read_as_soon_as_it_is_safe(tmp_path, compression):
    path = tmp_path / "x.xml"
    stream = opened(path, dims(t=None, z_={"chunk_size": 2}), compression=compression)
    with stream:
        for number in range(33):
            stream.append(coded(number))
            stream.flush()
            # a block that is packed waits for its second plane
            safe = stream.stats.frames_stored
            assert safe == number + 1 - (compression == "gzip" and number % DEPTH in (0, 2))
            check_planes(path, safe)
            with watch(path) as run_:
                assert run_.frames == safe
                if safe:
                    assert (run_.read(safe - 1) == coded(safe - 1)).all()
            if number % 8 == 5:
                _, _, registered, _ = spim(path)
                assert set(registered) <= {key[:2] for key in stacks_in(path)}
    check(path, 33)


def test_the_view_reads_what_waits_and_what_is_stored(tmp_path):
    with opened(tmp_path / "x.xml", dims(), compression="gzip", pyramid="after") as stream:
        view = stream.view()
        for number in range(37):
            stream.append(coded(number))
            assert (stream.view()[number // 20, number // 10 % 2, number // 5 % 2, number % 5]
                    == coded(number)).all()  # fmt: skip
    assert view.shape == (2, 2, 2, 5, *SHAPE)
    assert (view[1, 1, 0, 4] == coded(34)).all()
    assert not view[1, 1, 1, 4].any()


READER = """
    import itertools, json, os, sys, time
    import h5py, numpy as np

    path, until = sys.argv[1:]
    y, x = np.indices((24, 40))

    def opened():
        for _ in range(20):  # HDF5 looks how long the file is before it reads how long it should be
            try:
                return h5py.File(path, "r", locking=False)
            except OSError as exc:
                assert "truncated file" in str(exc), exc
        raise AssertionError("cannot be opened")

    looked = planes = 0
    while not os.path.exists(until):
        with opened() as file:
            time.sleep(0.02)  # more comes while it is open
            for t, s in itertools.product([n for n in file if n[0] == "t"], ["s00", "s03"]):
                if s not in file[t]:
                    continue
                stack = file[t][s]["0/cells"][()].view("u2")
                for z, plane in enumerate(stack):
                    number = ((int(t[1:]) * 2 + int(s[1:]) % 2) * 2 + int(s[1:]) // 2) * 5 + z
                    want = (number * 317 + y * 29 + x * 3 + 1).astype("u2")
                    assert ((plane == want) | (plane == 0)).all(), number
                    planes += bool((plane == want).all())
        looked += 1
    print(json.dumps([looked, planes]))
"""


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_another_process_reads_it_with_h5py_all_the_time(tmp_path, compression):
    path, until = tmp_path / "x.xml", tmp_path / "until"
    options = {"compression": compression, "pyramid": "live", "pyramid_levels": 2}
    with opened(path, dims(t=None, yx={"chunk_size": 8}), **options) as stream:
        stream.append(coded(0))
        stream.flush()
        command = [sys.executable, "-c", textwrap.dedent(READER), path.with_suffix(".h5"), until]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for number in range(1, 400):
                stream.append(coded(number))
                time.sleep(0.002)
            until.touch()
            said = child.communicate(timeout=30)[0]
    assert child.returncode == 0
    looked, planes = json.loads(said)
    assert looked > 2
    assert planes > 10


def test_the_xml_is_not_written_for_each_of_many_stacks(tmp_path, monkeypatch):
    written, before = [], bdv_stream.write_atomic

    def slowly(path, document):
        written.append(len(document))
        time.sleep(0.02)
        before(path, document)

    monkeypatch.setattr(bdv_stream, "write_atomic", slowly)
    path = tmp_path / "x.xml"
    start = time.monotonic()
    with opened(path, dims(t=None, positions=None, c=None, z=None)) as stream:
        for number in range(200):
            stream.append(coded(number))
            stream.flush()
        seconds = time.monotonic() - start
    # at most a fifth of the time, the first and the last one aside
    assert len(written) <= 2 + seconds / 5 / 0.02
    check(path, 200, p=1, c=1, z=1)


def test_an_xml_that_cannot_be_written_ends_the_stream(tmp_path, monkeypatch):
    before = bdv_stream.write_atomic

    def failing(path, document):
        raise OSError(28, "No space left on device")

    stream = opened(tmp_path / "x.xml", dims())
    for number in range(10):
        stream.append(coded(number))
    stream.flush()
    monkeypatch.setattr(bdv_stream, "write_atomic", failing)

    def go_on():
        for number in range(10, 60):
            stream.append(coded(number))
            stream.flush()

    with pytest.raises(StreamError, match="No space left") as failed:
        go_on()
    with pytest.raises(StreamError):
        stream.close()
    assert failed.value.frames_safe >= 10
    monkeypatch.setattr(bdv_stream, "write_atomic", before)
    report = recover(tmp_path / "x.xml")
    assert report.frames >= failed.value.frames_safe
    check(tmp_path / "x.xml", report.frames, late=True)


def test_a_plane_that_cannot_be_written_is_not_named_in_the_index(tmp_path, monkeypatch):
    path = tmp_path / "x.xml"
    stream = opened(path, dims())
    for number in range(12):
        stream.append(coded(number))
    stream.flush()

    def failing(file, offset, parts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RandomFile, "write_many", failing)
    stream.append(coded(12))
    with pytest.raises(StreamError, match="No space left"):
        stream.flush()
    check_planes(path, 12)
    with pytest.raises(StreamError):
        stream.close()
    check(path, 12)


def superblock_end(path):
    """Return where the file ends as its superblock says (II.A: version 0)."""
    data = path.with_suffix(".h5").read_bytes()[:64]
    assert data[8] == 0
    return int.from_bytes(data[40:48], "little")


def test_the_file_ends_behind_its_last_plane(tmp_path):
    path, other = tmp_path / "x.xml", tmp_path / "y.xml"
    dimensions = dims(t=None, positions=None, c=None, z=300)
    settings = settings_for(other, dimensions)
    with opened(path, dimensions) as stream:
        for number in range(10):
            stream.append(coded(number))
        stream.flush()
        long = path.with_suffix(".h5").stat().st_size
        assert long >= superblock_end(path) > 300 * 24 * 40 * 2
    killed(settings, 10)
    assert other.with_suffix(".h5").stat().st_size >= superblock_end(other) > 300 * 24 * 40 * 2
    planes = recover(other).images[0].planes
    for name, frames in ((path, 10), (other, planes)):
        size = name.with_suffix(".h5").stat().st_size
        assert size == superblock_end(name)
        # a page for each chunk, the index, and what is said of it all
        assert size < (frames + 20) * 4096 * (1 + 24 * 40 * 2 // 4096) + 100_000


def test_what_others_have_added_to_the_file_stays(tmp_path):
    path = tmp_path / "x.xml"
    safe = killed(settings_for(path, dims(t=None)), 30)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["notes"] = np.arange(1, 5000)
    recover(path)
    with h5py.File(tmp_path / "x.h5", "r") as file:
        assert (file["notes"][()] == np.arange(1, 5000)).all()
    found = stacks_in(path)
    for number in [n for n in range(safe + 5) if not skipped(n)][:safe]:
        t, setup, z = place(number)
        assert (found[t, setup, 0][z] == coded(number)).all()


def test_who_is_at_work_on_a_stack_keeps_it(tmp_path, monkeypatch):
    """A stack that is forgotten while it is written to is not read anew by others."""
    monkeypatch.setattr(bdv_stream, "_MOST_OPEN", 1)
    path = tmp_path / "x.xml"
    stream = opened(path, dims(t=None, z_={"chunk_size": DEPTH}))
    store = stream._recorder.store
    stream.append(coded(0))
    stream.flush()
    held = store.view(0, 0, 0)
    for number in range(1, 12):  # another stack in between
        stream.append(coded(number))
    stream.flush()
    assert store.view(0, 0, 0) is held
    stream.close()


# --- killed ---------------------------------------------------------------------------------------


def killed(settings, count, delay=0.0, **options):
    """Stream, kill the child when about `count` frames are safe; return how many surely are."""
    with streaming(settings, **options) as child:
        acknowledged(child, count)
        time.sleep(delay)
        child.kill()
        rest = child.stdout.read().split("\n")[:-1]
        assert child.wait() == -signal.SIGKILL
    numbers = [int(line) for line in rest if line.strip().isdigit()]
    return numbers[-1] if numbers else count


def skipped(number):
    """Return whether the child of test_stream_recover skips a frame."""
    return number % 13 == 7


def settings_for(path, dimensions, **options):
    return {"root_path": str(path), "dimensions": dimensions, "dtype": "uint16", **options}


def check_killed(path, safe):
    """Check that what was safe is there, for h5py, and then that recover makes it whole."""
    numbers = [n for n in range(10 * safe + 10) if not skipped(n)][:safe]
    found = stacks_in(path)
    for number in numbers:
        t, setup, z = place(number)
        assert (found[t, setup, 0][z] == coded(number)).all(), number
    spim(path)
    report = recover(path)
    assert report.finished
    assert report.frames >= safe
    total = report.frames + report.skipped
    found = check(path, total, skipped={n for n in range(total) if skipped(n)}, late=True)
    assert not path.with_name("x.xml.journal").exists()
    with BioReader(path) as br:
        assert (br[:, :, 0, 0, 0].reshape(SHAPE) == coded(0)).all()
    return found


@pytest.mark.parametrize(
    ("case", "chunks", "count", "delay"),
    [
        ("raw", "default", 1, 0),
        ("raw", "deep", 60, 0.003),
        ("gzip", "small", 30, 0.01),
        ("gzip", "deep", 24, 0.002),
        ("live", "small-deep", 55, 0.005),
        ("live-gzip", "default", 40, 0.001),
        ("after", "deep", 44, 0.007),
        ("after-gzip", "small", 21, 0.004),
    ],
)
def test_killed(tmp_path, case, chunks, count, delay):
    path = tmp_path / "x.xml"
    dimensions = dims(t=None, **CHUNKS[chunks])
    safe = killed(settings_for(path, dimensions, **CASES[case]), count, delay)
    found = check_killed(path, safe)
    check_levels(path, found, CASES[case].get("pyramid_levels", 1))
    assert "delta_t" in ome_of(path) or "DeltaT" in ome_of(path)


@pytest.mark.parametrize("case", ["raw", "live-gzip"])
def test_recovering_may_be_interrupted_at_every_step(tmp_path, case, monkeypatch):
    """What it writes goes through the same tree; each of its changes is left undone once."""
    from bioio_tk.backends._bdv_tree import Tree

    path = tmp_path / "x.xml"
    safe = killed(settings_for(path, dims(t=None), **CASES[case]), 33)
    before = Tree.edit
    for fatal in itertools.count():
        steps = itertools.count()

        def edit(tree, fatal=fatal, steps=steps):
            if next(steps) == fatal:
                raise KeyboardInterrupt
            return before(tree)

        monkeypatch.setattr(Tree, "edit", edit)
        try:
            report = recover(path)
        except KeyboardInterrupt:
            continue
        finally:
            monkeypatch.setattr(Tree, "edit", before)
        break
    assert fatal > 3
    assert report.frames >= safe
    total = report.frames + report.skipped
    found = check(path, total, skipped={n for n in range(total) if skipped(n)}, late=True)
    check_levels(path, found, CASES[case].get("pyramid_levels", 1))


def test_the_command_recovers_by_the_name_of_either_file(tmp_path):
    path = tmp_path / "x.xml"
    killed(settings_for(path, dims(t=None)), 12)
    run("recover", tmp_path / "x.h5")
    assert not path.with_name("x.xml.journal").exists()
    spim(path)


FULL = """
    import json, resource, signal, sys
    import numpy as np
    from bioio_tk import AcquisitionSettings, create_stream
    from bioio_tk.errors import StreamError

    settings, most = json.loads(sys.argv[1])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    y, x = np.indices((24, 40))
    stream = create_stream(AcquisitionSettings.model_validate(settings))
    try:
        for n in range(10_000):
            stream.append((n * 317 + y * 29 + x * 3 + 1).astype("u2"))
    except StreamError as exc:
        first = exc
    try:
        stream.close()
    except StreamError as exc:
        print(exc.frames_safe, exc.errno)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no such limit")
@pytest.mark.parametrize("case", ["raw", "live-gzip"])
def test_full_disk(tmp_path, case):
    path = tmp_path / "x.xml"
    given = json.dumps([settings_for(path, dims(t=None), **CASES[case]), 900_000])
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FULL), given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENV, check=False)
    assert done.returncode == 0, done.stderr
    safe, number = map(int, done.stdout.split())
    assert safe > 10
    assert number == 27  # EFBIG
    found = stacks_in(path)
    for n in range(safe):
        t, setup, z = place(n)
        assert (found[t, setup, 0][z] == coded(n)).all()
    spim(path)
    frames = safe
    if path.with_name("x.xml.journal").exists():  # else there was room to complete it
        frames = recover(path).frames
    assert frames >= safe
    check(path, frames, late=True)
