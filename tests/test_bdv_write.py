"""Writing BigDataViewer through BioWriter, imwrite and convert.

Pixels are read by h5py, the XML by ElementTree; expected values come from NumPy and plain loops.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import tifffile
from images import coded

import bioio_tk
from bioio_tk import BioReader, BioWriter, batch, convert, imwrite, target
from bioio_tk.backends import registry
from bioio_tk.errors import (
    BioIOWarning,
    PixelTypeError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
    UnsupportedError,
)

h5py = pytest.importorskip("h5py")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(bioio_tk.__file__).parents[1])}
SHAPE = (70, 83, 9, 2, 3)
"""Y, X, Z, C, T."""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "x.xml"


# ------------------------------------------------------------------ reading it without bioio_tk


class Dataset:
    """A dataset as the XML says it, and its HDF5 file."""

    def __init__(self, xml, stack):
        self.root = ET.parse(xml).getroot()
        name = self.root.findtext("SequenceDescription/ImageLoader/hdf5")
        self.file = stack.enter_context(h5py.File(xml.with_name(name), "r", locking=False))
        self.setups = {int(e.findtext("id")): e for e in self.root.iter("ViewSetup")}

    @property
    def times(self):
        first, last = (int(self.root.findtext(f".//Timepoints/{n}")) for n in ("first", "last"))
        return range(first, last + 1)

    @property
    def missing(self):
        found = self.root.iterfind(".//MissingViews/MissingView")
        return {(int(e.get("timepoint")), int(e.get("setup"))) for e in found}

    def names(self, kind):
        (found,) = (e for e in self.root.iter("Attributes") if e.get("name") == kind)
        return {int(e.findtext("id")): e.findtext("name") for e in found}

    def attributes(self, setup):
        return {e.tag: int(e.text) for e in self.setups[setup].find("attributes")}

    def sizes(self, setup):
        return [int(n) for n in self.setups[setup].findtext("size").split()]

    def voxel(self, setup):
        found = self.setups[setup].find("voxelSize")
        return [float(n) for n in found.findtext("size").split()], found.findtext("unit")

    def transforms(self, t, setup):
        (found,) = (
            e
            for e in self.root.iter("ViewRegistration")
            if (int(e.get("timepoint")), int(e.get("setup"))) == (t, setup)
        )
        return {
            e.findtext("Name"): np.array(e.findtext("affine").split(), float).reshape(3, 4)
            for e in found.iterfind("ViewTransform")
        }

    def world(self, t, setup, point):
        """Return where a pixel (x, y, z) lies: the last transform is applied first."""
        point = np.array(point, float)
        for matrix in reversed(self.transforms(t, setup).values()):
            point = matrix[:, :3] @ point + matrix[:, 3]
        return point.tolist()

    def factors(self, setup):
        return self.file[f"s{setup:02d}/resolutions"][()].astype(int).tolist()

    def blocks(self, setup):
        return self.file[f"s{setup:02d}/subdivisions"][()].tolist()

    def cells(self, t, setup, level=0):
        return self.file[f"t{t:05d}/s{setup:02d}/{level}/cells"]

    def pixels(self, t, setup, level=0):
        """Return a stack (z, y, x) in its own type."""
        pixels = self.cells(t, setup, level)[()]
        said = self.file[f"s{setup:02d}"].attrs.get("dataType")
        if said is None:
            assert pixels.dtype == "i2"
            return pixels.view("u2")
        assert pixels.dtype == (said.decode() if isinstance(said, bytes) else said)
        return pixels


@pytest.fixture
def opened():
    with ExitStack() as stack:
        yield lambda xml: Dataset(xml, stack)


def block_mean(pixels, factor):
    """Return the mean of each block (fewer pixels at the border), integers rounded half up."""
    out = np.zeros([-(-n // f) for n, f in zip(pixels.shape, factor, strict=True)], pixels.dtype)
    for at in np.ndindex(*out.shape):
        cut = tuple(slice(a * f, a * f + f) for a, f in zip(at, factor, strict=True))
        values = pixels[cut].ravel().tolist()  # Python's own numbers: none is too large
        n, total = len(values), sum(values)
        out[at] = (2 * total + n) // (2 * n) if pixels.dtype.kind in "iu" else total / n
    return out


def stacks(image):
    """Yield t, c and the stack (z, y, x) of each view of an image Y, X, Z, C, T."""
    for t, c in np.ndindex(image.shape[4], image.shape[3]):
        yield t, c, image[:, :, :, c, t].transpose(2, 0, 1)


def near(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-9)


# ------------------------------------------------------------------ pixels


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_view_and_level_is_in_the_file(home, opened, dtype):
    image = coded((33, 45, 7, 2, 2), dtype)
    with BioWriter(home, image=image, pyramid=3, pyramid_z=True, max_workers=2):
        pass
    data = opened(home)
    assert list(data.times) == [0, 1]
    assert sorted(data.setups) == [0, 1]
    assert data.factors(1) == [[1, 1, 1], [2, 2, 2], [4, 4, 4]]
    for t, c, stack in stacks(image):
        for level, factor in enumerate((1, 2, 4)):
            found = data.pixels(t, c, level)
            assert found.dtype == stack.dtype
            np.testing.assert_array_equal(found, block_mean(stack, (factor,) * 3))


@pytest.mark.parametrize(
    ("shape", "voxel", "factors"),
    [
        ((60, 520, 12), (0.5, 0.5, 2.0), [[1, 1, 1], [2, 2, 1], [4, 4, 2]]),
        ((40, 600, 5), (0.5, 2.0, 4.0), [[1, 1, 1], [2, 1, 1], [4, 2, 1]]),
    ],
    ids=str,
)
def test_pyramids_follow_the_rule_of_bigdataviewer(home, opened, shape, voxel, factors):
    image = coded(shape, "u2")
    sizes = {f"physical_size_{a}": (n, "µm") for a, n in zip("xyz", voxel, strict=True)}
    with BioWriter(home, image=image, **sizes):
        pass
    data = opened(home)
    assert data.factors(0) == factors
    stack = image.transpose(2, 0, 1)
    for level, factor in enumerate(factors):
        found = data.pixels(0, 0, level)
        np.testing.assert_array_equal(found, block_mean(stack, factor[::-1]))


@pytest.mark.parametrize(
    ("given", "levels", "chunks"),
    [
        ({"pyramid": False}, 1, None),
        ({"pyramid": 2}, 2, None),
        ({"pyramid": False, "chunks": (32, 48, 4)}, 1, (4, 32, 48)),
        ({"pyramid": 2, "tile_size": (16, 64)}, 2, (1, 16, 64)),
        ({"pyramid": False, "compression": "none"}, 1, None),
    ],
    ids=str,
)
def test_levels_blocks_and_compression_as_asked(home, opened, given, levels, chunks):
    image = coded(SHAPE)
    with BioWriter(home, image=image, **given):
        pass
    data = opened(home)
    assert len(data.factors(0)) == levels
    cells = data.cells(0, 0)
    assert chunks in (None, cells.chunks)
    raw = given.get("compression") == "none"
    assert (cells.compression, cells.shuffle) == ((None, False) if raw else ("gzip", True))
    assert cells.maxshape == (None, None, None)
    for t, c, stack in stacks(image):
        np.testing.assert_array_equal(data.pixels(t, c), stack)


def test_a_compression_that_fiji_cannot_read_is_warned_of(home, opened):
    image = coded((20, 30, 3))
    with pytest.warns(BioIOWarning, match="Fiji"), BioWriter(home, image=image, compression="lzf"):
        pass
    np.testing.assert_array_equal(opened(home).pixels(0, 0), image.transpose(2, 0, 1))


def test_planes_in_any_order_are_their_views(home, opened):
    image = coded(SHAPE)
    with BioWriter(home, shape=SHAPE, dtype="u2") as bw:
        for z, c, t in sorted(
            np.ndindex(*SHAPE[2:]), key=lambda p: (p[0] * 7 + p[1] * 3 + p[2]) % 5
        ):
            bw[:, :, z, c, t] = image[:, :, z, c, t]
    data = opened(home)
    for t, c, stack in stacks(image):
        np.testing.assert_array_equal(data.pixels(t, c), stack)


def test_views_never_written_are_there_and_zero(home, opened):
    with BioWriter(home, shape=(20, 30, 2, 2, 2), dtype="u1") as bw:
        bw[:, :, :, 1, 0] = 7
    data = opened(home)
    assert data.missing == set()
    assert [int(data.pixels(t, s).max()) for t in range(2) for s in range(2)] == [0, 7, 0, 0]


# ------------------------------------------------------------------ what the XML says


def test_the_xml_says_sizes_names_and_where_it_lies(home, opened):
    with BioWriter(
        home,
        shape=SHAPE,
        dtype="u2",
        name="embryo",
        channel_names=["GFP", "mCherry"],
        physical_size_x=(0.5, "µm"),
        physical_size_y=(500, "nm"),
        physical_size_z=(2.0, "µm"),
    ) as bw:
        bw[...] = coded(SHAPE)
    data = opened(home)
    assert data.root.findtext("SequenceDescription/ImageLoader/hdf5") == "x.h5"
    assert data.names("channel") == {0: "GFP", 1: "mCherry"}
    assert data.names("tile") == {0: "embryo"}
    for setup in (0, 1):
        assert data.attributes(setup) == {
            "illumination": 0,
            "channel": setup,
            "tile": 0,
            "angle": 0,
        }
        assert data.sizes(setup) == [83, 70, 9]
        assert data.voxel(setup) == ([0.5, 0.5, 2.0], "µm")
        for t in data.times:
            assert list(data.transforms(t, setup)) == ["calibration"]
            near(data.transforms(t, setup)["calibration"], np.diag([1, 1, 4, 0])[:3])
    assert len(list(data.root.iter("ViewRegistration"))) == 6


def test_pixels_of_unknown_size_are_cubes(home, opened):
    with BioWriter(home, image=coded((20, 30, 3))):
        pass
    data = opened(home)
    assert data.voxel(0) == ([1, 1, 1], "pixel")
    near(data.transforms(0, 0)["calibration"], np.eye(4)[:3])


@pytest.mark.parametrize(
    ("sizes", "voxel", "unit"),
    [
        ([(2, "mm"), (1, "mm"), None], [2, 1, 2], "mm"),
        ([(1, "cm"), (1, "cm"), (2, "cm")], [1e4, 1e4, 2e4], "µm"),
        ([(1, "pixel"), (1, "pixel"), (3, "pixel")], [1, 1, 3], "pixel"),
        ([None, None, (3, "µm")], [3, 3, 3], "µm"),
    ],
    ids=str,
)
def test_voxels_have_one_unit(home, opened, sizes, voxel, unit):
    given = {f"physical_size_{a}": s for a, s in zip("xyz", sizes, strict=True) if s is not None}
    with BioWriter(home, image=coded((20, 30, 3)), **given):
        pass
    data = opened(home)
    assert data.voxel(0) == (voxel, unit)
    near(np.diag(data.transforms(0, 0)["calibration"]), np.array(voxel) / min(voxel))


def test_all_that_is_known_of_an_image_comes_back(home):
    said = {
        "name": "Zellen α",
        "channel_names": ["DAPI", None],
        "channel_colors": [(0, 0, 255, 255), None],
        "physical_size_x": (0.25, "µm"),
        "physical_size_y": (250.0, "nm"),
        "physical_size_z": (2.0, "mm"),
        "time_increment": (1.5, "s"),
    }
    with BioWriter(home, image=coded((20, 30, 3, 2)), **said):
        pass
    with BioReader(home) as br:
        assert {key: getattr(br, key) for key in said} == said


def test_what_somebody_changed_in_the_xml_counts(home):
    with BioWriter(
        home,
        image=coded((20, 30, 3, 2)),
        channel_names=["DAPI", "GFP"],
        channel_colors=["#0000ff", "#00ff00"],
        physical_size_x=(0.25, "µm"),
    ):
        pass
    text = home.read_text(encoding="utf-8").replace(">GFP<", ">YFP<").replace("0.25", "0.5")
    home.write_text(text, encoding="utf-8")
    with BioReader(home) as br:
        assert br.channel_names == ["DAPI", "YFP"]
        assert br.channel_colors == [(0, 0, 255, 255), (0, 255, 0, 255)]
        assert br.physical_size_x == (0.5, "µm")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [("</OME>", "</", "left out"), ('SizeX="30"', 'SizeX="31"', "changed since")],
)
def test_what_does_not_fit_the_stacks_any_more_is_left_out(home, old, new, says):
    image = coded((20, 30, 3))
    with BioWriter(home, image=image, name="n"):
        pass
    with h5py.File(home.with_suffix(".h5"), "r+") as file:
        text = file["ome_xml"][0].decode()
        assert old in text
        del file["ome_xml"]
        file["ome_xml"] = np.array([text.replace(old, new).encode()])
    with BioReader(home) as br:
        assert any(says in note for note in br.notes)
        assert br.channel_names == ["0"]
        np.testing.assert_array_equal(br[...], image)


# ------------------------------------------------------------------ the files


def test_files_grow_aside_and_come_together(home):
    with BioWriter(home, image=coded(SHAPE)) as bw:
        bw[:, :, 0, 0, 0] = 1
        assert [p.name for p in home.parent.iterdir()] == ["x.xml.partial"]
    assert sorted(p.name for p in home.parent.iterdir()) == ["x.h5", "x.xml"]


def test_both_files_are_looked_for_before_anything_is_written(home):
    image = coded((20, 30))
    home.with_suffix(".h5").write_bytes(b"mine")
    with pytest.raises(TargetExistsError, match=r"x\.h5.*overwrite=True"):
        BioWriter(home, image=image)
    home.write_text("mine too")
    with pytest.raises(TargetExistsError, match=r"x\.xml' and '.*x\.h5'"):
        BioWriter(home, image=image)
    assert sorted(p.name for p in home.parent.iterdir()) == ["x.h5", "x.xml"]
    assert home.with_suffix(".h5").read_bytes() == b"mine"
    home.with_suffix(".h5").unlink()
    home.unlink()
    home.with_suffix(".h5").mkdir()
    with pytest.raises(IsADirectoryError, match=r"x\.h5"):
        BioWriter(home, image=image, overwrite=True)


@pytest.mark.parametrize("ending", [".h5", ".xml"])
def test_files_that_come_up_meanwhile_stay_as_they_are(home, ending):
    bw = BioWriter(home, image=coded((20, 30)))
    bw[...] = 1
    mine = home.with_suffix(ending)
    mine.write_bytes(b"mine")
    with pytest.raises(TargetExistsError, match=rf"x\{ending}.*kept in .*x\.xml\.partial"):
        bw.close()
    assert mine.read_bytes() == b"mine"
    kept = home.with_name("x.xml.partial")
    assert sorted(home.parent.iterdir()) == sorted([mine, kept])
    assert sorted(p.name for p in kept.iterdir()) == ["x.h5", "x.xml"]
    with BioReader(kept / "x.xml") as br:  # moved by hand it is whole
        assert (br[...] == 1).all()


def test_an_image_is_replaced_only_when_the_new_one_is_complete(home):
    old, new = coded((20, 30)), coded((25, 35), seed=3)
    with BioWriter(home, image=old):
        pass
    with pytest.raises(ZeroDivisionError), BioWriter(home, image=new, overwrite=True) as bw:
        bw[...] = new / 0 if not new.size else 1 // 0
    with BioReader(home) as br:
        np.testing.assert_array_equal(br[...], old)
    assert sorted(p.name for p in home.parent.iterdir()) == ["x.h5", "x.xml"]
    with BioReader(home) as br:
        with BioWriter(home, image=new, overwrite=True):
            pass
        np.testing.assert_array_equal(br[...], old)  # the open one is still that of before
    with BioReader(home) as br:
        np.testing.assert_array_equal(br[...], new)


FULL = """
import resource, signal, sys
import numpy as np
from bioio_tk import BioWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    with BioWriter(sys.argv[1], shape=(256, 256, 8), dtype="u2", compression="none") as bw:
        bw[...] = 7
except OSError as exc:
    print(type(exc).__name__, exc.errno)
"""


def test_a_full_disk_is_said_and_leaves_nothing(home):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(home)],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
        check=True,
    )
    assert done.stdout.split() == ["OSError", "27"], done.stdout + done.stderr
    assert not list(home.parent.iterdir())


KILLED = """
import os, sys, time
import numpy as np
from bioio_tk import BioWriter
bw = BioWriter(sys.argv[1], shape=(64, 64, 4, 1, 50), dtype="u2", max_workers=2)
for t in range(25):
    bw[..., t] = t
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_writer_leaves_nothing_that_looks_whole(home):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(home)],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    try:
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(TargetBusyError):
            BioWriter(home, shape=(4, 4), dtype="u1")
    finally:
        child.send_signal(signal.SIGKILL)
        assert child.wait(20) == -signal.SIGKILL
        child.stdout.close()
    assert [p.name for p in home.parent.iterdir()] == ["x.xml.partial"]
    with pytest.raises(FileNotFoundError, match="not complete"):
        BioReader(home)
    with pytest.raises(TargetExistsError, match="interrupted"):
        BioWriter(home, shape=(4, 4), dtype="u1")
    with BioWriter(home, image=coded((20, 30)), overwrite=True):
        pass
    assert sorted(p.name for p in home.parent.iterdir()) == ["x.h5", "x.xml"]


def test_what_is_not_ours_in_an_unfinished_folder_is_never_removed(home):
    folder = home.with_name("x.xml.partial")
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    with pytest.raises(TargetExistsError, match=r"thesis\.txt"):
        BioWriter(home, shape=(4, 4), dtype="u1", overwrite=True)
    assert (folder / "thesis.txt").read_text() == "all of it"


def test_what_others_name_is_put_into_place_before_them(home, monkeypatch):
    seen = []
    move = target.move_new
    monkeypatch.setattr(target, "move_new", lambda a, b: (seen.append(b.name), move(a, b)))
    with BioWriter(home, image=coded((20, 30, 1, 1, 2)), times_per_file=1):
        pass
    assert seen == ["x-00-00.h5", "x-01-00.h5", "x.h5", "x.xml"]


@pytest.mark.parametrize(
    ("name", "backend"), [("a.xml", "bdv"), ("a.ome.xml", "java"), ("a.h5", "hdf5")]
)
def test_the_ending_says_the_format(name, backend):
    assert registry.for_writing(Path(name)).name == backend


@pytest.mark.parametrize(
    ("given", "made"),
    [("Y.h5", "Y.xml"), ("Y.a.H5", "Y.a.xml"), ("Y", "Y.xml"), ("Y.a", "Y.a.xml")],
)
def test_a_name_of_hdf5_stands_for_the_pair(tmp_path, opened, given, made):
    image = coded((20, 30, 3))
    with BioWriter(tmp_path / given, image=image, backend="bdv") as bw:
        assert bw.path == tmp_path / made
    np.testing.assert_array_equal(opened(tmp_path / made).pixels(0, 0), image.transpose(2, 0, 1))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".h5", ".xml"]
    with BioWriter(tmp_path / "z.h5", image=image):  # else it is plain HDF5
        pass
    assert not (tmp_path / "z.xml").exists()


def test_stacks_spread_over_several_files(home, opened):
    image = coded((20, 30, 3, 2, 5))
    with BioWriter(home, image=image, times_per_file=2, setups_per_file=1):
        pass
    names = [f"x-{t:02d}-{s:02d}.h5" for t in range(3) for s in range(2)]
    assert sorted(p.name for p in home.parent.iterdir()) == [*names, "x.h5", "x.xml"]
    moved = home.parent / "elsewhere"
    moved.mkdir()
    for file in list(home.parent.glob("x*")):
        file.rename(moved / file.name)
    data = opened(moved / "x.xml")
    parts = {
        e.findtext("path"): (e.findtext("timepoints"), e.findtext("setups"))
        for e in data.root.iter("partition")
    }
    assert parts["x-01-01.h5"] == ("2 3", "1")
    assert sorted(parts) == names
    assert isinstance(data.file["t00003/s01/0"].get("cells", getlink=True), h5py.ExternalLink)
    for t, c, stack in stacks(image):
        np.testing.assert_array_equal(data.pixels(t, c), stack)
    with BioReader(moved / "x.xml") as br:
        np.testing.assert_array_equal(br[...], image)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"dtype": "bool"}, UnsupportedError, "no pixels of type bool"),
        ({"dtype": "f2"}, UnsupportedError, "float16"),
        ({"dtype": "c8"}, UnsupportedError, "complex64"),
        ({"C": 3, "samples_per_pixel": 3}, UnsupportedError, "no colour images"),
        ({"chunks": (8, 8, 1, 2), "C": 2}, SpecError, "one channel and time point"),
        ({"chunks": (8, 8, 1, 1, 2), "T": 2}, SpecError, "one channel and time point"),
        ({"compression": "jpeg"}, SpecError, "jpeg"),
        ({"compression_level": 30}, SpecError, "30"),
        ({"predictor": False}, SpecError, "predictor"),
        ({"shards": 64}, SpecError, "shards"),
        ({"dataset_name": "mov"}, SpecError, "dataset_name"),
        ({"bigtiff": True}, SpecError, "bigtiff"),
        ({"times_per_file": -1}, SpecError, "times_per_file=-1"),
        ({"setups_per_file": 1.5}, SpecError, r"setups_per_file=1\.5"),
        ({"mode": "create"}, UnsupportedError, "OME-Zarr"),
        ({"group": "0"}, UnsupportedError, "OME-Zarr"),
    ],
    ids=str,
)
def test_what_cannot_be_stored_is_said_before_a_file_exists(home, given, error, says):
    with pytest.raises(error, match=says):
        BioWriter(home, **({"X": 30, "Y": 20, "dtype": "u2"} | given))
    assert not list(home.parent.iterdir())


def test_another_pixel_type_is_converted_on_purpose(home, opened):
    with pytest.raises(PixelTypeError), BioWriter(home, X=3, Y=2, dtype="u1") as bw:
        bw[...] = np.full((2, 3), 300)
    with BioWriter(home, X=3, Y=2, dtype="u1", cast="clip") as bw:
        bw[...] = np.full((2, 3), 300)
    assert opened(home).pixels(0, 0).tolist() == [[[255] * 3] * 2]


def test_a_server_and_a_journal_are_refused_or_done_without(tmp_path):
    with pytest.raises(UnsupportedError, match="URL"):
        BioWriter("memory://a/x.xml", shape=(4, 4), dtype="u1")
    report = convert(coded((20, 30)), tmp_path / "x.xml", dims="YX", resume=True)
    assert report.status == "done"


# ------------------------------------------------------------------ imwrite, convert


def test_imwrite_makes_a_pyramid_unless_told_otherwise(tmp_path, opened):
    image = coded((300, 280), "u1")
    assert imwrite(image, tmp_path / "a.xml") == tmp_path / "a.xml"
    assert imwrite(image, tmp_path / "b.xml", pyramid=False) == tmp_path / "b.xml"
    made = imwrite(image, tmp_path / "folder", ext="xml")
    assert [len(opened(tmp_path / f"{n}.xml").factors(0)) for n in "ab"] == [2, 1]
    data = opened(made)
    assert len(data.factors(0)) == 2
    np.testing.assert_array_equal(data.pixels(0, 0)[0], image)


def test_a_tiff_becomes_a_dataset(tmp_path, opened):
    image = coded((40, 50, 4, 2, 2))
    source = tmp_path / "a.ome.tif"
    with BioWriter(source, image=image, channel_names=["A", "B"], name="cells"):
        pass
    report = convert(source, tmp_path / "x.xml", verify="full", t=slice(1, 2), x=slice(10, 50))
    assert "equal" in report.verified
    files = (tmp_path / "x.xml", tmp_path / "x.h5")
    assert report.bytes_out == sum(p.stat().st_size for p in files)
    data = opened(tmp_path / "x.xml")
    assert (list(data.times), data.names("channel")) == ([0], {0: "A", 1: "B"})
    for c in range(2):
        np.testing.assert_array_equal(data.pixels(0, c), image[:, 10:, :, c, 1].transpose(2, 0, 1))


def test_colours_become_channels(tmp_path, opened):
    image = coded((40, 50, 1, 3), "u1")
    source = tmp_path / "a.ome.tif"
    with BioWriter(source, image=image, samples_per_pixel=3):
        pass
    convert(source, tmp_path / "x.xml", verify="full")
    data = opened(tmp_path / "x.xml")
    assert data.names("channel") == {0: "red", 1: "green", 2: "blue"}
    for c in range(3):
        np.testing.assert_array_equal(data.pixels(0, c)[0], image[:, :, 0, c])


def test_a_pyramid_can_be_kept_as_it_is(tmp_path, opened):
    source = tmp_path / "a.ome.zarr"
    with BioWriter(source, image=coded((100, 90, 4)), pyramid=3, downsample="max"):
        pass
    convert(source, tmp_path / "x.xml", levels="keep")
    data = opened(tmp_path / "x.xml")
    assert data.factors(0) == [[1, 1, 1], [2, 2, 1], [4, 4, 1]]
    for level in range(3):
        with BioReader(source, level=level) as br:
            np.testing.assert_array_equal(data.pixels(0, 0, level), br[...].transpose(2, 0, 1))


def test_what_is_the_same_is_skipped(tmp_path):
    source = tmp_path / "a.ome.tif"
    with BioWriter(source, image=coded((40, 50))):
        pass
    home = tmp_path / "x.xml"
    convert(source, home)
    before = home.stat().st_mtime_ns
    assert convert(source, home, exists="skip").status == "skipped"
    with pytest.raises(TargetExistsError, match="other options"):
        convert(source, home, exists="skip", compression="none")
    assert home.stat().st_mtime_ns == before


def test_a_plan_writes_nothing(tmp_path):
    report = convert(coded((300, 280)), tmp_path / "x.xml", dims="YX", dry_run=True)
    assert report.plan["resolutions"][1]["shape"] == [150, 140, 1, 1, 1]
    assert report.plan["estimated_bytes"] > 10_000
    assert not list(tmp_path.iterdir())


def test_the_source_is_not_written_over(tmp_path):
    plain = tmp_path / "x.h5"
    with BioWriter(plain, image=coded((20, 30))):
        pass
    before = plain.read_bytes()
    with pytest.raises(SpecError, match=r"x\.h5' is the source itself"):
        convert(plain, tmp_path / "x.xml", overwrite=True)
    assert plain.read_bytes() == before


# ------------------------------------------------------------------ several images


def several(path, places, *, sizes=(40, 50), channels=("A", "B"), times=(2,)):
    """Write an OME-Zarr with an image for each place (µm, Y and X); return the pixels."""
    images = []
    for number, (y, x) in enumerate(places):
        count = times[number % len(times)]
        images.append(coded((*sizes, 3, len(channels), count), seed=number))
        with BioWriter(
            path,
            image=images[-1],
            name=f"field {number}",
            channel_names=list(channels),
            group=str(number),
            **{f"physical_size_{axis}": (0.5 if axis != "z" else 1.0, "µm") for axis in "xyz"},
        ):
            pass
        attributes = path / str(number) / "zarr.json"
        found = json.loads(attributes.read_text())
        (level,) = found["attributes"]["ome"]["multiscales"][0]["datasets"]
        moved = {"type": "translation", "translation": [0, 0, 0, y, x]}
        level["coordinateTransformations"].append(moved)
        attributes.write_text(json.dumps(found))
    return images


def test_all_images_of_a_source_are_tiles_of_one_dataset(tmp_path, opened):
    images = several(tmp_path / "a.zarr", [(0, 0), (0, 20), (15, 0)])
    report = convert(tmp_path / "a.zarr", tmp_path / "x.xml", verify="full")
    assert "3 images" in " ".join(report.notes)
    assert len(report.parts) == 3
    data = opened(tmp_path / "x.xml")
    assert sorted(data.setups) == list(range(6))
    assert data.names("channel") == {0: "A", 1: "B"}
    assert data.names("tile") == {0: "field 0", 1: "field 1", 2: "field 2"}
    for setup in data.setups:
        channel, tile = divmod(setup, 3)
        assert data.attributes(setup) == {
            "illumination": 0,
            "channel": channel,
            "tile": tile,
            "angle": 0,
        }
        place = ([0, 0, 0], [40, 0, 0], [0, 30, 0])[tile]  # in units of half a µm
        near(data.world(1, setup, (0, 0, 0)), place)
        near(data.world(0, setup, (1, 2, 3)), [place[0] + 1, place[1] + 2, place[2] + 6])
        for t in range(2):
            stack = images[tile][:, :, :, channel, t].transpose(2, 0, 1)
            np.testing.assert_array_equal(data.pixels(t, setup), stack)
    with BioReader(tmp_path / "x.xml", series=2) as br:
        assert br.n_series == 3
        np.testing.assert_array_equal(br[...], images[2])
    assert convert(tmp_path / "a.zarr", tmp_path / "x.xml", exists="skip").status == "skipped"
    for other in ({"compression": "none"}, {"series": 0}, {"c": 0}):
        with pytest.raises(TargetExistsError, match="was made with other"):
            convert(tmp_path / "a.zarr", tmp_path / "x.xml", exists="skip", **other)


def test_tiles_have_pyramids_and_times_of_their_own(tmp_path, opened):
    images = several(
        tmp_path / "a.zarr", [(0, 0), (0, 9)], channels="A", times=(3, 1), sizes=(9, 70)
    )
    convert(tmp_path / "a.zarr", tmp_path / "x.xml", levels=3, verify="full")
    data = opened(tmp_path / "x.xml")
    assert data.missing == {(1, 1), (2, 1)}
    for setup, t in ((0, 0), (0, 2), (1, 0)):
        stack = images[setup][:, :, :, 0, t].transpose(2, 0, 1)
        for level, factor in enumerate((1, 2, 4)):
            found = data.pixels(t, setup, level)
            np.testing.assert_array_equal(found, block_mean(stack, (1, factor, factor)))


def test_tiles_lie_where_the_stage_stood(tmp_path, opened):
    source = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(source, ome=True) as tif:
        for number, unit in enumerate(("µm", "mm", "reference frame")):
            plane = {
                "PositionX": [2.0 * number] * 3,
                "PositionXUnit": [unit] * 3,
                "PositionY": [-1.0] * 3,
                "PositionYUnit": [unit] * 3,
            }
            size = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
            tif.write(
                np.full((3, 20, 30), number, "u2"),
                photometric="minisblack",
                metadata={"axes": "ZYX", "Plane": plane, **size},
            )
    convert(source, tmp_path / "x.xml", y=slice(4, 20))
    data = opened(tmp_path / "x.xml")
    near(data.world(0, 0, (0, 0, 0)), [0, -2 + 4, 0])  # in units of half a µm
    near(data.world(0, 1, (0, 0, 1)), [4000, -2000 + 4, 4])
    near(data.world(0, 2, (0, 0, 0)), [0, 4, 0])  # nobody knows where that is
    assert data.root.findall(".//Tile/location")[1].text.split() == ["4000.0", "-1996.0", "0.0"]


def test_what_is_given_holds_for_all_tiles(tmp_path, opened):
    several(tmp_path / "a.zarr", [(0, 0), (0, 20)])
    given = {"channel_names": ["X", "Y"], "dz": 2.0, "sample": "fly 7"}
    convert(tmp_path / "a.zarr", tmp_path / "x.xml", metadata=given, z=slice(0, 2))
    data = opened(tmp_path / "x.xml")
    assert data.names("channel") == {0: "X", 1: "Y"}
    for setup in data.setups:
        assert data.voxel(setup) == ([0.5, 0.5, 2.0], "µm")
        assert data.sizes(setup) == [50, 40, 2]
    assert b"fly 7" in data.file["ome_xml"][0]
    with BioReader(tmp_path / "x.xml", series=1) as br:
        assert br.name == "field 1"
        assert br.channel_names == ["X", "Y"]


def test_one_image_of_several_is_taken_where_it_is_named(tmp_path, opened):
    images = several(tmp_path / "a.zarr", [(0, 0), (0, 20)])
    convert(tmp_path / "a.zarr", tmp_path / "x.xml", series=1)
    with BioReader(tmp_path / "a.zarr") as br:  # an open reader stands at one
        convert(br, tmp_path / "y.xml")
    for name, number in (("x", 1), ("y", 0)):
        data = opened(tmp_path / f"{name}.xml")
        assert sorted(data.setups) == [0, 1]
        np.testing.assert_array_equal(
            data.pixels(0, 1), images[number][:, :, :, 1, 0].transpose(2, 0, 1)
        )


def test_images_of_another_kind_are_left_out_with_a_note(tmp_path, opened):
    several(tmp_path / "a.zarr", [(0, 0), (0, 20)])
    with BioWriter(tmp_path / "a.zarr", image=coded((10, 11), "u1"), group="2"):
        pass  # as the label of a slide
    report = convert(tmp_path / "a.zarr", tmp_path / "x.xml")
    assert any("series 2" in note and "left out" in note for note in report.notes)
    assert len(opened(tmp_path / "x.xml").setups) == 4


@pytest.mark.parametrize(
    "given",
    [
        {"dry_run": True},
        {"resume": True},
        {"levels": "keep"},
        {"register_z": True},
        {"metadata": "<OME/>"},
    ],
    ids=str,
)
def test_what_is_done_with_single_images_says_so(tmp_path, given):
    several(tmp_path / "a.zarr", [(0, 0), (0, 20)])
    with pytest.raises(UnsupportedError, match="series="):
        convert(tmp_path / "a.zarr", tmp_path / "x.xml", **given)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_if_one_of_several_images_fails_nothing_is_left(tmp_path):
    images = several(tmp_path / "a.zarr", [(0, 0), (0, 20)])
    chunk = next(p for p in sorted((tmp_path / "a.zarr" / "1").rglob("*/c/**/*")) if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-7])
    home = tmp_path / "x.xml"
    with pytest.raises(ValueError, match=r"a\.zarr|damaged|checksum|broken"):
        convert(tmp_path / "a.zarr", home)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    imwrite(images[0], home, dim_order="YXZCT")
    before = home.read_bytes()
    with pytest.raises(ValueError, match=r"a\.zarr|damaged|checksum|broken"):
        convert(tmp_path / "a.zarr", home, overwrite=True)
    assert home.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "x.h5", "x.xml"]


# ------------------------------------------------------------------ from one dataset to another


SCENE = """<?xml version="1.0" encoding="UTF-8"?>
<SpimData version="0.2"><BasePath type="relative">.</BasePath>
<generatedBy><library version="3">someone</library>
<microscope><name>mesoSPIM</name><version>5</version><user>Ada</user></microscope></generatedBy>
<SequenceDescription><ImageLoader format="bdv.hdf5"><hdf5 type="relative">scene.h5</hdf5>
</ImageLoader><ViewSetups>{setups}
<Attributes name="illumination"><Illumination><id>0</id><name>left</name></Illumination>
<Illumination><id>1</id><name>right</name></Illumination></Attributes>
<Attributes name="channel"><Channel><id>3</id><name>488</name></Channel>
<Channel><id>7</id><name>561</name></Channel></Attributes>
<Attributes name="tile"><Tile><id>5</id><name>T5</name><location>1.0 2.0 3.0</location></Tile>
<Tile><id>6</id><name>T6</name></Tile></Attributes>
<Attributes name="angle"><Angle><id>2</id><name>45</name><axis>0 1 0</axis><degrees>45.0</degrees>
</Angle></Attributes></ViewSetups>
<Timepoints type="pattern"><integerpattern>2,4,6</integerpattern></Timepoints>
<MissingViews><MissingView timepoint="4" setup="11"/></MissingViews></SequenceDescription>
<ViewRegistrations>{views}</ViewRegistrations></SpimData>
"""
SETUPS = {10: (0, 3, 5), 11: (0, 7, 5), 20: (1, 3, 5), 21: (1, 7, 5), 30: (0, 3, 6), 31: (0, 7, 6)}
"""Illumination, channel and tile by the id of a setup."""


def scene(folder):
    """Write a dataset as BigStitcher has them, by hand; return its pixels."""
    setups, views, pixels = [], [], {}
    with h5py.File(folder / "scene.h5", "w") as file:
        for setup, (ill, channel, tile) in SETUPS.items():
            size = (4, 20, 30) if tile == 5 else (3, 16, 18)  # Z, Y, X
            group = file.create_group(f"s{setup:02d}")
            group["resolutions"] = np.array([[1.0, 1, 1], [2, 2, 1]])
            group["subdivisions"] = np.array([[16, 16, 4], [16, 16, 4]], "i4")
            setups.append(
                f"<ViewSetup><id>{setup}</id><name>view {setup}</name><size>"
                f"{size[2]} {size[1]} {size[0]}</size><voxelSize><unit>µm</unit><size>0.4 0.4 1.2"
                f"</size></voxelSize><camera><name>Orca {ill}</name><exposureTime>0.05"
                "</exposureTime><exposureUnits>s</exposureUnits></camera><attributes>"
                f"<illumination>{ill}</illumination><channel>{channel}</channel><tile>{tile}</tile>"
                "<angle>2</angle></attributes></ViewSetup>"
            )
            for t in (2, 4, 6):
                if (t, setup) == (4, 11):
                    continue
                affine = f"1.0 0.1 0.0 {t * 10 + setup}.123456789012 0 1 0 -4.5 0 0 1 0.25"
                views.append(
                    f'<ViewRegistration timepoint="{t}" setup="{setup}">'
                    f'<ViewTransform type="affine"><Name>Stitching</Name><affine>{affine}</affine>'
                    '</ViewTransform><ViewTransform type="affine"><Name>calibration</Name><affine>'
                    "1 0 0 0 0 1 0 0 0 0 3.0 0</affine></ViewTransform></ViewRegistration>"
                )
                stack = coded(size, "u2", seed=t * 100 + setup)
                pixels[t, setup] = stack
                small = block_mean(stack, (1, 2, 2))
                for level, data in enumerate((stack, small)):
                    file.create_dataset(
                        f"t{t:05d}/s{setup:02d}/{level}/cells", data=data.view("i2"), chunks=True
                    )
    text = SCENE.format(setups="".join(setups), views="".join(views))
    (folder / "scene.xml").write_text(text, encoding="utf-8")
    return pixels


def test_a_dataset_loses_nothing_on_its_way_into_another(tmp_path, opened):
    pixels = scene(tmp_path)
    convert(tmp_path / "scene.xml", tmp_path / "x.xml", verify="full")
    old, new = opened(tmp_path / "scene.xml"), opened(tmp_path / "x.xml")
    assert sorted(new.setups) == sorted(SETUPS)
    text = new.root.find(".//Timepoints")
    assert text.get("type") != "range"
    assert {int(e.get("timepoint")) for e in new.root.iter("ViewRegistration")} == {2, 4, 6}
    assert new.missing == {(4, 11)}
    for kind in ("illumination", "channel", "tile", "angle"):
        assert new.names(kind) == old.names(kind)
    for setup in SETUPS:
        assert new.attributes(setup) == old.attributes(setup)
        assert new.sizes(setup) == old.sizes(setup)
        assert new.voxel(setup) == old.voxel(setup)
        for path in ("name", "camera/name", "camera/exposureTime", "camera/exposureUnits"):
            assert new.setups[setup].findtext(path) == old.setups[setup].findtext(path)
    for (t, setup), stack in pixels.items():
        np.testing.assert_array_equal(new.pixels(t, setup), stack)
        before, after = old.transforms(t, setup), new.transforms(t, setup)
        assert list(after) == ["Stitching", "calibration"]
        for name, matrix in before.items():
            assert after[name].tolist() == matrix.tolist()  # to the last bit
    assert "t00004/s11" not in new.file
    for path in (".//Tile/location", ".//Angle/axis", ".//Angle/degrees", ".//microscope/name"):
        assert new.root.findtext(path).split() == old.root.findtext(path).split()


def test_a_part_of_a_dataset_lies_where_it_was(tmp_path, opened):
    pixels = scene(tmp_path)
    convert(
        tmp_path / "scene.xml",
        tmp_path / "x.xml",
        series=0,
        t=slice(1, 3),
        x=slice(4, 30, 2),
        y=slice(10, 20),
        z=slice(1, 4),
    )
    old, new = opened(tmp_path / "scene.xml"), opened(tmp_path / "x.xml")
    kept = sorted(new.setups)
    assert len(kept) == 2
    assert new.missing <= {(4, 11)}
    assert new.voxel(kept[0]) == ([0.8, 0.4, 1.2], "µm")
    for setup in kept:
        for t in (4, 6):
            if (t, setup) in new.missing:
                continue
            stack = pixels[t, setup][1:4, 10:20, 4:30:2]
            np.testing.assert_array_equal(new.pixels(t, setup), stack)
            for x, y, z in ((0, 0, 0), (3, 2, 1)):
                there = old.world(t, setup, (4 + 2 * x, 10 + y, 1 + z))
                near(new.world(t, setup, (x, y, z)), there)


def test_a_smaller_resolution_lies_where_it_was(tmp_path, opened):
    scene(tmp_path)
    convert(tmp_path / "scene.xml", tmp_path / "x.xml", series=0, level=1)
    old, new = opened(tmp_path / "scene.xml"), opened(tmp_path / "x.xml")
    (setup, *_) = sorted(new.setups)
    assert new.sizes(setup) == [15, 10, 4]
    # the middle of a pixel is between those of the four it was made from
    near(new.world(2, setup, (3, 4, 1)), old.world(2, setup, (6.5, 8.5, 1)))


def test_channels_and_times_stay_in_the_order_of_their_ids(tmp_path):
    scene(tmp_path)
    for picks in ({"t": [2, 0]}, {"c": [1, 0]}):
        with pytest.raises(SpecError, match="ascending order"):
            convert(tmp_path / "scene.xml", tmp_path / "x.xml", series=0, **picks)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene.h5", "scene.xml"]


def test_an_image_of_a_dataset_goes_into_other_formats(tmp_path):
    pixels = scene(tmp_path)
    with BioReader(tmp_path / "scene.xml") as br:
        count = br.n_series
    assert count == 3
    for number in range(count):
        target = tmp_path / f"{number}.ome.zarr"
        convert(tmp_path / "scene.xml", target, series=number, verify="full")
        with BioReader(target) as br, BioReader(tmp_path / "scene.xml", series=number) as source:
            view = next(v for v in source.views if (v.series, v.t, v.c) == (number, 2, 0))
            stack = pixels[view.time, view.setup]
            np.testing.assert_array_equal(br[..., 0, 2], stack.transpose(1, 2, 0))


def test_a_batch_takes_a_dataset_once(tmp_path, opened):
    images = {}
    (tmp_path / "in").mkdir()
    for name, more in (("a", {}), ("b", {"times_per_file": 1})):
        images[name] = coded((20, 30, 2, 1, 2), seed=ord(name))
        with BioWriter(tmp_path / "in" / f"{name}.xml", image=images[name], **more):
            pass
    with BioWriter(tmp_path / "in" / "c.h5", image=images["a"]):  # no dataset
        pass
    batch(tmp_path / "in", tmp_path / "out", ext=".xml", report=None)
    made = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert made == ["a.h5", "a.xml", "b.h5", "b.xml", "c.h5", "c.xml"]
    data = opened(tmp_path / "out" / "b.xml")
    np.testing.assert_array_equal(data.pixels(1, 0), images["b"][:, :, :, 0, 1].transpose(2, 0, 1))


# ------------------------------------------------------------------ the command line


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "bioio_tk", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_converts(tmp_path, opened):
    images = several(tmp_path / "a.zarr", [(0, 0), (0, 20)])
    said = command(
        "convert", tmp_path / "a.zarr", tmp_path / "x.xml", "--chunks", "16x32", "--json"
    )
    assert json.loads(said)["target"] == str(tmp_path / "x.xml")
    data = opened(tmp_path / "x.xml")
    assert len(data.setups) == 4
    assert data.cells(0, 0).chunks == (1, 16, 32)
    np.testing.assert_array_equal(data.pixels(1, 3), images[1][:, :, :, 1, 1].transpose(2, 0, 1))
    command("convert", tmp_path / "a.zarr", tmp_path / "y.xml", "--series", "1", "--quiet")
    assert len(opened(tmp_path / "y.xml").setups) == 2


def test_much_ome_xml_has_room(home):
    """An attribute of HDF5 holds no more than 64 KB."""
    names = [f"channel {n} " + "x" * 2000 for n in range(50)]
    with BioWriter(home, shape=(8, 8, 1, 50), dtype="uint8", channel_names=names) as writer:
        writer[:] = np.arange(8 * 8 * 50, dtype=np.uint8).reshape(8, 8, 1, 50)
    with h5py.File(home.with_suffix(".h5")) as file:
        document = file["ome_xml"][0].decode()
    assert len(document) > 100_000
    found = [c.get("Name") for c in ET.fromstring(document).iter() if c.tag.endswith("}Channel")]
    assert found == names
    with BioReader(home) as reader:
        assert reader.channel_names == names
