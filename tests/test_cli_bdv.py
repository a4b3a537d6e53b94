"""``bioio-tk bdv``: datasets of other writers get resolutions, say what is missing, are moved."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from bdv_java import loaded
from command import run

import bioio_tk
from bioio_tk import BioReader, BioWriter
from bioio_tk.api import add_pyramid, transform_views, view_transforms
from bioio_tk.backends.base import Caps
from bioio_tk.bdv.pyramid import make_levels, nested
from bioio_tk.core.spec import ImageSpec, Level
from bioio_tk.core.views import Mipmap, ViewId
from bioio_tk.errors import SpecError, TargetBusyError, UnsupportedError

h5py = pytest.importorskip("h5py")

SIZE = (11, 70, 90)
VIEWS = [(t, s) for t in range(2) for s in range(4)]


def stack(view, size=SIZE, dtype="uint16"):
    time_point, setup = view
    rng = np.random.default_rng(10 * time_point + setup)
    top = {"f": 1}.get(np.dtype(dtype).kind, 250)
    return (rng.random(size) * top).astype(dtype)


def dataset(folder, views=VIEWS, dtype="uint16", *, listed=(), registered=None, link=False, **more):
    """Write a dataset as Fiji does, of two channels and two tiles; return the XML."""
    file = folder / "data.h5"
    registered = views if registered is None else registered
    with h5py.File(file, "w") as f:
        for setup in range(4):
            group = f.create_group(f"s{setup:02d}")
            group["resolutions"] = np.array([[1.0, 1, 1]])
            group["subdivisions"] = np.array([[32, 16, 8]], "i4")
            if dtype != "uint16":
                group.attrs["dataType"] = dtype
        for view in views:
            store(f, folder, view, dtype, link=link, **more)
    (folder / "data.xml").write_text(document(listed, registered))
    return folder / "data.xml"


def store(f, folder, view, dtype, *, link=False, size=SIZE):
    name = "t{:05d}/s{:02d}/0/cells".format(*view)
    pixels = stack(view, size, dtype)
    pixels = pixels.view("int16") if dtype == "uint16" else pixels
    how = {"chunks": (8, 16, 32), "maxshape": (None,) * 3}
    if size != LARGE:  # which would take its time
        how["compression"] = "gzip"
    if not link:
        f.create_dataset(name, data=pixels, **how)
        return
    with h5py.File(folder / f"data-{view[0]:02d}-00.h5", "a") as part:
        part.create_dataset(name, data=pixels, **how)
    f[name] = h5py.ExternalLink(f"data-{view[0]:02d}-00.h5", name)


def document(listed, registered):
    setups = "".join(
        f"<ViewSetup><id>{s}</id><name>setup {s}</name><size>90 70 11</size>"
        f"<voxelSize><unit>µm</unit><size>0.5 0.5 1.5</size></voxelSize>"
        f"<attributes><illumination>0</illumination><channel>{s // 2}</channel>"
        f"<tile>{s % 2}</tile><angle>0</angle></attributes></ViewSetup>"
        for s in range(4)
    )
    names = "".join(
        f'<Attributes name="{kind.lower()}">'
        + "".join(f"<{kind}><id>{n}</id><name>{kind} {n}</name></{kind}>" for n in range(count))
        + "</Attributes>"
        for kind, count in {"Illumination": 1, "Channel": 2, "Tile": 2, "Angle": 1}.items()
    )
    missing = "".join(f'<MissingView timepoint="{t}" setup="{s}"/>' for t, s in listed)
    views = "".join(
        f'<ViewRegistration timepoint="{t}" setup="{s}"><ViewTransform type="affine">'
        "<Name>calibration</Name><affine>1 0 0 0 0 1 0 0 0 0 3 0</affine></ViewTransform>"
        "</ViewRegistration>"
        for t, s in registered
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<SpimData version="0.2">'
        '<BasePath type="relative">.</BasePath><SequenceDescription>'
        '<ImageLoader format="bdv.hdf5"><hdf5 type="relative">data.h5</hdf5></ImageLoader>'
        f'<ViewSetups>{setups}{names}</ViewSetups><Timepoints type="range"><first>0</first>'
        f"<last>1</last></Timepoints><MissingViews>{missing}</MissingViews></SequenceDescription>"
        f"<ViewRegistrations>{views}</ViewRegistrations>"
        '<StitchingResults><PairwiseResult hash="1">kept</PairwiseResult></StitchingResults>'
        "</SpimData>"
    )


def mean(pixels, factor):
    """The mean of each cell of the pixels that are there, integers rounded half up."""
    sums, counts = pixels.astype(float), np.ones(pixels.shape)
    for axis, f in enumerate(factor):
        edges = range(0, pixels.shape[axis], f)
        sums = np.add.reduceat(sums, edges, axis)
        counts = np.add.reduceat(counts, edges, axis)
    value = sums / counts
    return (value if pixels.dtype.kind == "f" else np.floor(value + 0.5)).astype(pixels.dtype)


def check_levels(
    folder, factors, views=VIEWS, dtype="uint16", size=SIZE, block=(8, 16, 32), more=False
):
    """Compare all resolutions of all views, and the tables of their setups, with NumPy's."""
    with h5py.File(folder / "data.h5", "r") as f:
        for setup in {s for _, s in views}:
            table = f[f"s{setup:02d}/resolutions"]
            np.testing.assert_array_equal(table[...][:, ::-1], factors)
            assert f[f"s{setup:02d}/subdivisions"].shape == (len(factors), 3)
            assert f[f"s{setup:02d}/subdivisions"][0].tolist() == list(block[::-1])
        for view in views:
            name = "t{:05d}/s{:02d}".format(*view)
            assert more or sorted(f[name]) == [str(n) for n in range(len(factors))]
            for n, factor in enumerate(factors):
                stored = f[f"{name}/{n}/cells"][...]
                stored = stored.astype("i2").view("u2") if dtype == "uint16" else stored
                wanted = mean(stack(view, size, dtype), factor)
                if np.dtype(dtype).kind == "f":
                    np.testing.assert_allclose(stored, wanted, rtol=1e-5)
                else:
                    np.testing.assert_array_equal(stored, wanted)


# ------------------------------------------------------------------ pyramid

LEVELS = ("--subsamp", "1x2x2", "--subsamp", "3x4x4")
FACTORS = [(1, 1, 1), (1, 2, 2), (3, 4, 4)]


@pytest.mark.parametrize("dtype", ["uint16", "uint8", "float32"])
def test_all_views_get_the_resolutions(tmp_path, dtype):
    views = VIEWS[:3]
    xml = dataset(tmp_path, views, dtype)
    said, _ = run("bdv", "pyramid", xml, *LEVELS)
    assert f"{tmp_path / 'data.h5'}: smaller resolutions of 3 views\n" in said
    assert "1 of 1x1x1, 2x2x1, 4x4x3 pixels" in said
    check_levels(tmp_path, FACTORS, views, dtype)
    with BioReader(xml) as br:
        assert [level[:3] for level in br.level_shapes] == [(70, 90, 11), (35, 45, 11), (18, 23, 4)]


@pytest.mark.parametrize(
    "how",
    [
        {},  # in one piece
        {"chunks": (8, 16, 32), "scaleoffset": 0, "compression": "gzip"},  # as Fiji does
        {"chunks": (1, 70, 90), "shuffle": True, "compression": "gzip"},
        {"chunks": (5, 13, 29), "fletcher32": True},
        {"chunks": (2, 200, 200), "maxshape": (None, None, None)},  # larger than the stack
        {"chunks": (8, 16, 32), "dtype": ">i2"},
    ],
)
def test_pyramids_of_stacks_however_they_are_stored(tmp_path, how):
    dataset(tmp_path, VIEWS[:1])
    with h5py.File(tmp_path / "data.h5", "a") as f:
        del f["t00000/s00/0/cells"]
        f.create_dataset("t00000/s00/0/cells", data=stack((0, 0)).view("int16"), **how)
        if how:
            f["s00/subdivisions"][...] = how["chunks"][::-1]
    run("bdv", "pyramid", tmp_path / "data.h5", *LEVELS)
    check_levels(tmp_path, FACTORS, VIEWS[:1], block=how.get("chunks", (8, 16, 32)))


def test_pyramids_of_a_stack_with_empty_blocks(tmp_path):
    dataset(tmp_path, VIEWS[:1])
    pixels = np.zeros((20, 300, 400), "uint16")
    pixels[9:14, 150:290, 30:100] = 7
    with h5py.File(tmp_path / "data.h5", "a") as f:
        del f["t00000/s00/0/cells"]
        cells = f.create_dataset("t00000/s00/0/cells", pixels.shape, "i2", chunks=(8, 16, 32))
        cells[9:14, 150:290, 30:100] = 7
    run("bdv", "pyramid", tmp_path / "data.h5", *LEVELS)
    with h5py.File(tmp_path / "data.h5", "r") as f:
        for n, factor in enumerate(FACTORS):
            np.testing.assert_array_equal(f[f"t00000/s00/{n}/cells"], mean(pixels, factor))


def test_pyramids_as_bigdataviewer_proposes_them(tmp_path):
    size = (9, 30, 600)
    dataset(tmp_path, VIEWS[:1], size=size)
    said, _ = run("bdv", "pyramid", tmp_path / "data.h5", "--json")
    report = json.loads(said)
    assert report["made"] == [{"time": 0, "setup": 0}]
    # voxels 0.5 x 0.5 x 1.5: X and Y first, then Z too; until no axis is longer than 256
    check_levels(tmp_path, [(1, 1, 1), (1, 2, 2), (2, 4, 4)], VIEWS[:1], size=size)
    again, _ = run("bdv", "pyramid", tmp_path / "data.h5")
    assert "of 0 views, 1 view had them already" in again


def test_pyramids_of_partitioned_files(tmp_path):
    dataset(tmp_path, VIEWS[:5], link=True)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("data-*.h5")}
    assert len(before) == 2
    run("bdv", "pyramid", tmp_path / "data.xml", *LEVELS, "--quiet")
    check_levels(tmp_path, FACTORS, VIEWS[:5])


def test_bigdataviewer_reads_the_new_resolutions(java, tmp_path):
    dataset(tmp_path, VIEWS[:2])
    run("bdv", "pyramid", tmp_path / "data.xml", *LEVELS)
    with loaded(java, tmp_path / "data.h5") as loader:
        for view in VIEWS[:2]:
            found = [tuple(map(int, factor)) for factor in loader.factors(view[1])]
            assert found == [factor[::-1] for factor in FACTORS]
            for n, factor in enumerate(FACTORS):
                np.testing.assert_array_equal(loader.pixels(view, n), mean(stack(view), factor))


LARGE = (24, 150, 160)
"""A stack of several tiles."""


def test_a_pyramid_that_was_stopped_is_gone_on_with(tmp_path):
    xml = dataset(tmp_path, size=LARGE)
    told = []

    def stop(done, total):
        told.append((done, total))
        if done > 0.55 * total:
            raise KeyboardInterrupt

    subsamp = FACTORS[1:]
    with pytest.raises(KeyboardInterrupt):
        add_pyramid(xml, subsamp, progress=stop, max_workers=1)
    one = int(np.prod(LARGE)) * 2
    assert {total for _, total in told} == {len(VIEWS) * one}
    with h5py.File(tmp_path / "data.h5", "r") as f:  # for readers it is what it was
        assert f["s00/resolutions"].shape == (1, 3)
        for view in VIEWS:
            name = "t{:05d}/s{:02d}/0/cells".format(*view)
            np.testing.assert_array_equal(f[name][...].view("uint16"), stack(view, LARGE))
    with BioReader(xml) as br:
        assert br.levels == 1
        np.testing.assert_array_equal(
            br.read(C=[0], T=[0]).squeeze(), stack((0, 0), LARGE).transpose(1, 2, 0)
        )
    told.clear()
    report = add_pyramid(xml, subsamp, progress=lambda *at: told.append(at))
    assert len(report.left) == 4
    assert len(report.made) == 4
    assert told[-1] == (4 * one, 4 * one)
    assert told[0][0] < one
    assert told == sorted(set(told))
    check_levels(tmp_path, FACTORS, size=LARGE)


CHILD = """
import sys
from bioio_tk.jobs.bdv_pyramid import add_pyramid

def tell(done, total):
    print(done, total, flush=True)
    sys.stdin.readline()

add_pyramid(sys.argv[1], ((1, 2, 2), (3, 4, 4)), progress=tell, max_workers=1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize(("share", "delay"), [(0.1, 0), (0.3, 0.002), (0.6, 0.005)])
def test_kill_9_while_resolutions_are_made(tmp_path, share, delay):
    xml = dataset(tmp_path, size=LARGE)
    env = {**os.environ, "PYTHONPATH": str(Path(bioio_tk.__file__).parents[1])}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(xml)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    watchdog = threading.Timer(60, child.kill)
    watchdog.start()
    try:
        done = total = 0
        while not total or done < share * total:  # it waits for a line after each of its own
            done, total = map(int, child.stdout.readline().split())
            child.stdin.write("\n")
            child.stdin.flush()
        if delay:  # on and on, for as long as one view takes: through its end
            child.stdin.write("\n" * 6)
            child.stdin.flush()
            time.sleep(delay)
        else:
            with pytest.raises(TargetBusyError):
                add_pyramid(xml)
    finally:
        child.kill()
        watchdog.cancel()
        child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL
    with BioReader(xml) as br:
        views = br.views
    for view in views:
        with BioReader(xml, series=view.series) as br:
            np.testing.assert_array_equal(
                br.read(C=[view.c], T=[view.t]).squeeze(),
                stack((view.time, view.setup), LARGE).transpose(1, 2, 0),
            )
    report = add_pyramid(xml, FACTORS[1:])
    assert len(report.left) + len(report.made) == len(VIEWS)
    assert int(share * len(VIEWS)) <= len(report.left) < len(VIEWS)
    check_levels(tmp_path, FACTORS, size=LARGE)


FULL = """
import os, resource, sys
from bioio_tk.cli.main import main

room = os.path.getsize(sys.argv[1]) + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
main(["bdv", "pyramid", sys.argv[1], "--subsamp", "1x2x2", "--subsamp", "3x4x4"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit for files")
@pytest.mark.parametrize("room", [0, 1000, 300_000])
def test_a_disk_that_is_full(tmp_path, room):
    dataset(tmp_path, size=LARGE)
    env = {**os.environ, "PYTHONPATH": str(Path(bioio_tk.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "data.h5", str(room)],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    check_levels(tmp_path, FACTORS[:1], size=LARGE, more=True)
    add_pyramid(tmp_path / "data.xml", FACTORS[1:])
    check_levels(tmp_path, FACTORS, size=LARGE)


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bioio_tk.jobs.bdv_pyramid.add_pyramid", stopped)
    _, wrong = run("bdv", "pyramid", dataset(tmp_path, VIEWS[:1]), code=130)
    assert "the same command goes on where it stopped" in wrong


def test_resolutions_that_are_there_stay(tmp_path):
    xml = dataset(tmp_path, VIEWS[:2])
    run("bdv", "pyramid", xml, *LEVELS)
    before = (tmp_path / "data.h5").read_bytes()
    _, wrong = run("bdv", "pyramid", xml, "--subsamp", "2x2x2", code=1)
    assert "setup 0 has the smaller resolutions [(1, 2, 2), (3, 4, 4)] (Z, Y, X) already" in wrong
    run("bdv", "pyramid", xml, *LEVELS)
    run("bdv", "pyramid", xml)
    assert (tmp_path / "data.h5").read_bytes() == before
    with h5py.File(tmp_path / "data.h5", "a") as f:  # another program adds a view without them
        store(f, tmp_path, (1, 0), "uint16")
    said, _ = run("bdv", "pyramid", xml)
    assert "of 1 view, 2 views had them already" in said
    check_levels(tmp_path, FACTORS, [*VIEWS[:2], (1, 0)])


def test_resolutions_that_cannot_be_made(tmp_path):
    xml = dataset(tmp_path, VIEWS[:1])
    before = (tmp_path / "data.h5").read_bytes()
    _, wrong = run("bdv", "pyramid", xml, "--subsamp", "1x1x1", code=1)
    assert "smaller resolutions only" in wrong
    _, wrong = run("bdv", "pyramid", xml, "--subsamp", "2x2", code=1)
    assert "along Z, Y, X" in wrong
    _, wrong = run("bdv", "pyramid", xml, "--compression", "jpeg", code=1)
    assert "choose one of gzip, none" in wrong
    assert (tmp_path / "data.h5").read_bytes() == before
    _, wrong = run("bdv", "pyramid", tmp_path / "nothing.xml", code=1)
    assert "there is no file" in wrong
    (tmp_path / "other.h5").write_bytes(b"no HDF5 at all")
    _, wrong = run("bdv", "pyramid", tmp_path / "other.h5", code=1)
    assert "other.h5" in wrong
    with h5py.File(tmp_path / "data.h5", "a") as f:
        f["s00/resolutions"][...] = [[2.0, 2, 1]]
    _, wrong = run("bdv", "pyramid", xml, *LEVELS, code=1)
    assert "are made from the full resolution only" in wrong
    with pytest.raises(UnsupportedError, match="is a URL"):
        add_pyramid("s3://bucket/data.xml")


def test_no_pyramid_for_other_formats(tmp_path):
    with BioWriter(tmp_path / "a.ome.zarr", image=np.ones((8, 9), "u1"), ngff_version="0.4"):
        pass
    run("bdv", "xml", tmp_path / "a.ome.zarr")
    _, wrong = run("bdv", "pyramid", tmp_path / "a.xml", code=1)
    assert "keeps its pixels as 'bdv.multimg.zarr'" in wrong


# ------------------------------------------------------------------ missing


def missing_in(xml):
    root = ET.parse(xml).getroot()
    return {
        (int(m.get("timepoint")), int(m.get("setup")))
        for m in root.iterfind("SequenceDescription/MissingViews/MissingView")
    }


def test_what_is_missing_is_found_and_written_down(tmp_path):
    there = [v for v in VIEWS if v not in [(0, 1), (1, 2), (1, 3)]]
    xml = dataset(tmp_path, there, listed=[(1, 3)])
    old = xml.read_text()
    said, _ = run("bdv", "missing", xml, code=1)
    assert f"{xml}: 3 of 8 views missing" in said
    assert "  listed in the XML: time 1 setup 3\n" in said
    assert "  not listed in the XML: time 0 setup 1, time 1 setup 2\n" in said
    assert xml.read_text() == old
    said, _ = run("bdv", "missing", tmp_path / "data.h5", "--fix")
    assert "  now listed in the XML: time 0 setup 1, time 1 setup 2\n" in said
    assert missing_in(xml) == {(0, 1), (1, 2), (1, 3)}
    assert (tmp_path / "data.xml~1").read_text() == old
    said, _ = run("bdv", "missing", xml, "--json")
    report = json.loads(said)
    assert (report["ok"], report["absent"], report["views"]) == (True, [], 8)
    assert report["listed"] == [
        {"time": 0, "setup": 1},
        {"time": 1, "setup": 2},
        {"time": 1, "setup": 3},
    ]
    again = xml.read_text()
    run("bdv", "missing", xml, "--fix")  # nothing to do, so nothing is written
    assert xml.read_text() == again
    assert not (tmp_path / "data.xml~2").exists()


def test_nothing_is_missing(tmp_path):
    said, _ = run("bdv", "missing", dataset(tmp_path))
    assert said == f"{tmp_path / 'data.xml'}: none of 8 views missing\n"


def test_views_without_a_place_get_one(tmp_path):
    xml = dataset(tmp_path, registered=VIEWS[1:])
    said, _ = run("bdv", "missing", xml, code=1)
    assert "  have no place in the world: time 0 setup 0\n" in said
    assert "see --fix" in said
    run("bdv", "missing", xml, "--fix")
    registration = ET.parse(xml).find(
        "ViewRegistrations/ViewRegistration[@timepoint='0'][@setup='0']"
    )
    numbers = [float(n) for n in registration.findtext("ViewTransform/affine").split()]
    assert numbers == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 3, 0]
    run("bdv", "missing", xml)


def test_missing_without_an_xml(tmp_path):
    dataset(tmp_path).unlink()
    _, wrong = run("bdv", "missing", tmp_path / "data.h5", code=1)
    assert "there is no XML beside" in wrong
    (tmp_path / "data.xml").write_text("<SpimData")
    _, wrong = run("bdv", "missing", tmp_path / "data.xml", code=1)
    assert "is no XML or was cut short" in wrong


# ------------------------------------------------------------------ transform


def registered(xml, view):
    """Names and matrices of a view, as they stand in the XML."""
    found = ET.parse(xml).find(
        "ViewRegistrations/ViewRegistration[@timepoint='{}'][@setup='{}']".format(*view)
    )
    return [
        (t.findtext("Name"), [float(n) for n in t.findtext("affine").split()])
        for t in found.iterfind("ViewTransform")
    ]


CALIBRATION = ("calibration", [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 3, 0])


def test_a_new_transform_is_applied_last(tmp_path):
    xml = dataset(tmp_path)
    old = xml.read_text()
    said, _ = run(
        "bdv",
        "transform",
        xml,
        "--translate=-5,2.5,0",
        "--name",
        "stage",
        "--tile",
        1,
        "--time",
        "0",
    )
    assert f"{xml}: 2 views, 2 changed" in said
    assert "time 0 setup 1 (illumination Illumination 0, channel Channel 0, tile Tile 1" in said
    assert "    0 stage: move -5 2.5 0\n    1 calibration: scale 1 1 3\n" in said
    assert "    together: scale 1 1 3, move -5 2.5 0\n" in said
    for view in VIEWS:
        moved = [("stage", [1, 0, 0, -5, 0, 1, 0, 2.5, 0, 0, 1, 0])]
        wanted = [*(moved if view in [(0, 1), (0, 3)] else []), CALIBRATION]
        assert registered(xml, view) == wanted
    assert (tmp_path / "data.xml~1").read_text() == old
    assert ET.parse(xml).findtext("StitchingResults/PairwiseResult") == "kept"
    run("bdv", "transform", xml, "--scale", "2", "--setup", "1", "--time", "0")
    with BioReader(xml) as br:
        # pixel (x, y, z) -> calibration, then stage, then scale
        np.testing.assert_array_equal(
            br.affines[0, 1], [[2, 0, 0, -10], [0, 2, 0, 5], [0, 0, 6, 0]]
        )
        np.testing.assert_array_equal(br.affines[0, 0], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0]])


def test_transforms_by_twelve_numbers_and_away_again(tmp_path):
    xml = dataset(tmp_path)
    numbers = [0.0, -1, 0, 100.125, 1, 0, 0, 1e-7, 0, 0, 1, 12345.123456789]
    run("bdv", "transform", xml, "--affine", " ".join(map(repr, numbers)), "--channel", "1")
    assert registered(xml, (1, 2)) == [("manually defined", numbers), CALIBRATION]
    assert registered(xml, (1, 1)) == [CALIBRATION]
    said, _ = run("bdv", "transform", xml, "--remove", "manually defined")
    assert "8 views, 4 changed" in said
    assert all(registered(xml, view) == [CALIBRATION] for view in VIEWS)
    run("bdv", "transform", xml, "--remove", "0", "--setup", "0,2:4", "--time", "1")
    run("bdv", "transform", xml, "--scale", "2", "--name", "twice", "--setup", "1")
    run("bdv", "transform", xml, "--remove", "calibration", "--setup", "1")
    twice = [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0]
    assert registered(xml, (0, 1)) == registered(xml, (1, 1)) == [("twice", twice)]
    with_none = {view for view in VIEWS if registered(xml, view) == []}
    assert with_none == {(1, 0), (1, 2), (1, 3)}


def test_the_list_changes_nothing(tmp_path):
    xml = dataset(tmp_path, listed=[(1, 3)])
    before = xml.read_text()
    said, _ = run("bdv", "transform", tmp_path / "data.h5", "--list")
    assert said.count("    0 calibration: scale 1 1 3\n") == 7
    said, _ = run("bdv", "transform", xml, "--list", "--json", "--setup", "3")
    report = json.loads(said)
    (view,) = report["views"]
    assert (view["time"], view["setup"], view["name"]) == (0, 3, "setup 3")
    assert view["attributes"]["tile"] == "Tile 1"
    assert view["transforms"] == [
        {"matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 3, 0], "name": "calibration"}
    ]
    assert view["affine"] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0]]
    assert xml.read_text() == before
    assert not list(tmp_path.glob("*~*"))


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "give one of --translate, --scale, --affine and --remove, or --list"),
        (["--translate", "1,2,3", "--scale", "2"], 2, "give one of"),
        (["--list", "--scale", "2"], 2, "--list changes nothing, and --scale does"),
        (["--translate", "1,2"], 2, "give 3 numbers"),
        (["--affine", "1,2,x"], 2, "give 12 numbers"),
        (["--scale", "2", "--tile", "x"], 2, "give ids from 0"),
        (["--scale", "0"], 1, "makes the views flat"),
        (["--scale", "nan"], 1, "give three numbers"),
        (["--scale", "2", "--tile", "7"], 1, "there is no such view; there are those of tile 0, 1"),
        (["--scale", "2", "--time", "0", "--setup", "0", "--tile", "1"], 1, "no view is left"),
        (["--remove", "Stitching"], 1, "none of 8 views has it; there are: 'calibration'"),
        (["--remove", "3"], 1, "none of 8 views has it"),
        (["--remove", "0", "--name", "x"], 1, "is for a new transform"),
    ],
)
def test_transforms_that_make_no_sense(tmp_path, words, code, text):
    xml = dataset(tmp_path)
    before = xml.read_text()
    _, wrong = run("bdv", "transform", xml, *words, code=code)
    assert text in " ".join(wrong.split())
    assert xml.read_text() == before
    assert not list(tmp_path.glob("*~*"))


def test_transforms_in_python(tmp_path):
    xml = dataset(tmp_path)
    report = transform_views(xml, affine=np.eye(3, 4), name="nothing", channel=[0, 1], tile=0)
    assert report.changed == 4
    assert [t.name for t in report.views[0].transforms] == ["nothing", "calibration"]
    for wrong in (
        {"affine": np.eye(3)},
        {"affine": "x"},
        {"translate": 1},
        {"scale": (1, 2)},
        {"scale": 2, "time": "x"},
        {"scale": 2, "time": 0.5},
    ):
        with pytest.raises(SpecError):
            transform_views(xml, **wrong)
    with pytest.raises(TypeError, match="no keyword 'tiles'"):
        view_transforms(xml, tiles=0)


# ------------------------------------------------------------------ xml, and the command itself


def test_an_xml_over_stores(tmp_path):
    for n in range(2):
        with BioWriter(
            tmp_path / f"{n}.zarr", image=np.full((8, 9, 2, 3, 1), n, "u1"), ngff_version="0.4"
        ):
            pass
    stores = [tmp_path / f"{n}.zarr" for n in range(2)]
    said, _ = run("bdv", "xml", *stores)
    assert said == f"{tmp_path / 'dataset.xml'}: 2 tiles, 3 channels, 1 time point\n"
    _, wrong = run("bdv", "xml", *stores, code=1)
    assert "exists" in wrong
    assert "--overwrite" in wrong
    run("bdv", "xml", *stores, "--overwrite")
    run("bdv", "xml", stores[0], "--output", tmp_path / "one.xml")
    assert (tmp_path / "one.xml").exists()


def test_the_command_helps():
    said, _ = run("bdv", "--help")
    assert all(word in said for word in ("pyramid", "missing", "transform", "xml"))
    assert "bdv" in run("--help")[0]


def test_an_image_under_an_xml_that_is_gone(tmp_path):
    for n in range(3):
        with BioWriter(
            tmp_path / f"{n}.zarr", image=np.full((8, 9, 2, 1, 2), n, "u1"), ngff_version="0.4"
        ):
            pass
    run("bdv", "xml", *(tmp_path / f"{n}.zarr" for n in range(3)))
    shutil.rmtree(tmp_path / "1.zarr")
    said, _ = run("bdv", "missing", tmp_path / "dataset.xml", code=1)
    assert "not listed in the XML: time 0 setup 1, time 1 setup 1\n" in said
    run("bdv", "missing", tmp_path / "dataset.xml", "--fix")
    assert missing_in(tmp_path / "dataset.xml") == {(0, 1), (1, 1)}
    run("bdv", "missing", tmp_path / "dataset.xml")


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    ("tile", "counts", "cells", "nests"),
    [
        ((16, 128, 128), (3, 9, 11), [(16, 8, 8), (8, 4, 4), (4, 2, 2)], True),
        ((1, 512, 512), (40, 3, 5), [(32, 4, 4), (6, 1, 1)], False),
        ((4, 64, 64), (5, 7, 9), [], True),
    ],
)
def test_tiles_of_a_smaller_one_follow_each_other(tile, counts, cells, nests):
    (depth, height, width), (z, y, x) = tile, counts
    shape = (y * height - 3, x * width - 5, z * depth, 1, 1)
    level = Level(shape, (height, width, depth, 1, 1))
    keys = list(nested(ImageSpec(np.dtype("u2"), (level,)), cells))
    assert sorted(keys) == sorted(level.grid.keys())
    for cell in cells if nests else cells[:1]:
        inside = [(kz // cell[0], ky // cell[1], kx // cell[2]) for ky, kx, kz, _, _ in keys]
        changes = sum(a != b for a, b in itertools.pairwise(inside))
        assert changes == len(set(inside)) - 1  # no cell again after another one


class Recorded:
    """A store of one stack, a sink of its smaller resolutions, that notes what is read."""

    caps = Caps(parallel_store=True)

    def __init__(self, size, mipmaps):
        levels = []
        for mipmap in mipmaps:
            (dz, dy, dx), (bz, by, bx) = mipmap.shape(size), mipmap.block
            levels.append(Level((dy, dx, dz, 1, 1), (by, bx, bz, 1, 1)))
        self.images = (ImageSpec(np.dtype("u2"), tuple(levels)),)
        self.factors = tuple((fy, fx, fz) for fz, fy, fx in (m.factor for m in mipmaps[1:]))
        self.size = size
        self.read = []
        self.ended = []

    def shape(self, view):
        return self.size

    def begin_levels(self, view, size, mipmaps, compression, level):
        return self

    def load_tile(self, at):
        if at.level:
            return None
        self.read.append(at.key)
        return np.zeros(self.images[0].levels[0].grid.tile_shape(at.key), "u2")

    def encode_tile(self, at, tile):
        return tile

    def store_tile(self, at, tile):
        pass

    def finish(self):
        self.ended.append("finish")

    def close(self):
        self.ended.append("close")


def test_a_stack_is_walked_by_its_largest_cells(tmp_path):
    factors = [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]
    mipmaps = [Mipmap(factor, (4, 16, 16)) for factor in factors]
    store = Recorded((19, 200, 300), mipmaps)
    make_levels(
        store,
        ViewId(0, 0),
        mipmaps,
        compression="gzip",
        level=None,
        workers=1,
        scratch_folder=tmp_path,
    )
    assert sorted(store.read) == sorted(store.images[0].levels[0].grid.keys())
    assert store.ended == ["finish", "close"]
    for fz, fy, fx in factors[1:]:  # tiles below one tile of each level are read together
        cells = [(ky // fy, kx // fx, kz // fz) for ky, kx, kz, _, _ in store.read]
        assert sum(a != b for a, b in itertools.pairwise(cells)) == len(set(cells)) - 1


MEASURED = """
import sys, threading, time
from bioio_tk.jobs.bdv_pyramid import add_pyramid

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

add_pyramid(sys.argv[1])
before, most, ended = resident(), [0], []

def watch():
    while not ended:
        most[0] = max(most[0], resident())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
report = add_pyramid(sys.argv[2], ((2, 2, 2), (4, 4, 4), (8, 8, 8)), max_workers=4)
ended.append(1)
thread.join()
print(report.pixel_bytes, most[0] - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_stack(tmp_path):
    for name, planes in (("small", 8), ("large", 160)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["s00/resolutions"] = np.array([[1.0, 1, 1]])
            f["s00/subdivisions"] = np.array([[256, 256, 4]], "i4")
            cells = f.create_dataset(
                "t00000/s00/0/cells", (planes, 1024, 1024), "i2", chunks=(4, 256, 256)
            )
            band = np.arange(8 * 1024 * 1024, dtype="i2").reshape(8, 1024, 1024)
            for z in range(0, planes, 8):
                cells[z : z + 8] = band
    env = {**os.environ, "PYTHONPATH": str(Path(bioio_tk.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "small.h5", tmp_path / "large.h5"],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    size, extra = map(int, done.stdout.split())
    assert size == 160 << 21
    assert extra < 64 << 20
