"""HDF5: what h5py and others have written is read, what is written h5py reads."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.backends import registry
from bioio_tk.backends._hdf5_chunks import ChunkCodec
from bioio_tk.errors import DamagedFileError, SpecError, UnsupportedError

h5py = pytest.importorskip("h5py")
MOVIE = coded((5, 3, 70, 90), "u2")  # T, Z, Y, X
FIVE = MOVIE.transpose(2, 3, 1, 0)[:, :, :, None]


def make(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, given in datasets.items():
            array, options = given if isinstance(given, tuple) else (given, {})
            file.create_dataset(name, data=array, **options)
    return path


# ------------------------------------------------------------------ reading

LAYOUTS = [
    {},
    {"chunks": (1, 1, 70, 90)},
    {"chunks": (1, 1, 64, 64), "compression": "gzip"},
    {"chunks": (5, 3, 33, 41), "compression": "gzip", "compression_opts": 9, "shuffle": True},
    {"chunks": (2, 2, 70, 90), "shuffle": True},
    {"chunks": (5, 3, 33, 41), "compression": "gzip", "fletcher32": True},
    {"chunks": (1, 1, 4, 8), "compression": "gzip"},
]


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "i1", ">f8", "<f4", "?", "<c8"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_h5py_writes_is_read(tmp_path, layout, dtype):
    pixels = MOVIE.astype(dtype)
    path = make(tmp_path / "a.h5", mov=(pixels, layout))
    with BioReader(path, max_workers=3) as br:
        assert br.shape == FIVE.shape
        np.testing.assert_array_equal(br[...], FIVE.astype(dtype))
        np.testing.assert_array_equal(
            br[31:35, 5:80:7, 2, 0, 1:4], FIVE.astype(dtype)[31:35, 5:80:7, 2:, :, 1:4]
        )


def test_large_chunks_are_decoded_without_the_library(tmp_path, monkeypatch):
    path = make(tmp_path / "a.h5", mov=(MOVIE, LAYOUTS[3]))
    seen = []
    decode = ChunkCodec.decode
    monkeypatch.setattr(
        ChunkCodec, "decode", lambda *a: (seen.append(threading.get_ident()), decode(*a))[1]
    )
    with BioReader(path, max_workers=2) as br:
        np.testing.assert_array_equal(br[...], FIVE)
    assert len(seen) == 9


@pytest.mark.parametrize("size", [0, 512])
def test_chunks_never_written_have_the_fill_value_and_user_blocks_are_minded(tmp_path, size):
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=size) as file:
        data = file.create_dataset(
            "mov", (2, 300, 300), "u2", chunks=(1, 150, 150), fillvalue=7, compression="gzip"
        )
        data[1, 150:, :150] = 9
    want = np.full((2, 300, 300), 7)
    want[1, 150:, :150] = 9
    with BioReader(tmp_path / "a.h5", backend="hdf5") as br:
        np.testing.assert_array_equal(br[:, :, 0, 0, :], want.transpose(1, 2, 0)[:, :, None, None])


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        ({"dims": ["T", "Z", "Y", "X"]}, "TZYX"),
        ({"dims": "CZYX"}, "CZYX"),
        ({"dims": np.array([b"z", b"c", b"y", b"x"])}, "ZCYX"),
        ({"axistags": json.dumps({"axes": [{"key": k} for k in "tyxc"]})}, "TYXC"),
        ({"labels": "zyxt"}, "ZYXT"),
        ({"dims": ["a", "b", "c", "d"]}, "TZYX"),
        ({}, "TZYX"),
    ],
    ids=str,
)
def test_the_dataset_names_its_axes(tmp_path, names, axes):
    array = coded((3, 4, 5, 6))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("mov", data=array)
        for name, value in names.items():
            if name == "labels":
                for at, label in enumerate(value):
                    data.dims[at].label = label
            else:
                data.attrs[name] = value
    want = np.einsum(f"{axes}->{''.join(a for a in 'YXZCT' if a in axes)}", array)
    with BioReader(tmp_path / "a.h5") as br:
        assert br.shape == tuple(array.shape[axes.index(a)] if a in axes else 1 for a in "YXZCT")
        np.testing.assert_array_equal(br[...].ravel(), want.ravel())
        assert any("dims=" in note for note in br.notes) == (
            axes[0] == "T"
            and set(names) <= {"dims"}
            and list(names.get("dims", "")) != list("TZYX")
        )
    with BioReader(tmp_path / "a.h5", dims="XYZC") as br:  # the user knows better
        assert br.shape == (4, 3, 5, 6, 1)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((4, 5), "YX"), ((3, 4, 5), "TYX"), ((2, 3, 4, 5), "TZYX"), ((1, 2, 3, 4, 5), "TCZYX")],
)
def test_axes_without_names_are_those_of_calcium_imaging(tmp_path, shape, axes):
    path = make(tmp_path / "a.h5", data=coded(shape))
    with BioReader(path) as br:
        assert br.shape == tuple(shape[axes.index(a)] if a in axes else 1 for a in "YXZCT")


def test_the_movie_comes_first_then_the_larger_ones(tmp_path):
    small, large, mov = coded((2, 3)), coded((9, 8, 7)), coded((2, 4, 4))
    path = make(
        tmp_path / "a.h5",
        zz=large,
        aa=small,
        line=np.arange(3),
        text=np.bytes_("x"),
        **{"deep/er": small + 1, "mov": mov},
    )
    with BioReader(path) as br:
        assert br.series_names == ["mov", "zz", "aa", "deep/er"]
        np.testing.assert_array_equal(br[..., 0, 0, :], mov.transpose(1, 2, 0)[:, :, None, None])
    with BioReader(path, group="deep/er") as br:
        np.testing.assert_array_equal(br[...], small + 1)
    with BioReader(path, group="deep") as br:
        assert br.series_names == ["deep/er"]
    with pytest.raises(SpecError, match="no 'nothing'; its images are"):
        BioReader(path, group="nothing")
    with pytest.raises(UnsupportedError, match="2 to 5 axes of numbers in 'line'"):
        BioReader(path, group="line")


def test_the_attributes_of_calcium_imaging_are_understood(tmp_path):
    path = make(tmp_path / "a.h5", mov=MOVIE)
    with h5py.File(path, "a") as file:
        file.attrs.update(
            {
                "dx": 0.5,
                "dy": "0.25",
                "dz": 4,
                "fs": 20.0,
                "channel_names": "['GCaMP']",
                "note": "x",
            }
        )
    with BioReader(path) as br:
        assert br.pixel_size() == (0.25, 0.5, 4.0)  # y, x, z
        assert br.time_increment == (0.05, "s")
        assert br.channel_names == ["GCaMP"]
        assert br.original_metadata["note"] == "x"


def break_second_chunk(path):
    """Put zeros into the middle of a compressed chunk."""
    with h5py.File(path) as file:
        place = file["mov"].id.get_chunk_info_by_coord((1, 0, 0))
    data = bytearray(path.read_bytes())
    data[place.byte_offset + 900 : place.byte_offset + 960] = bytes(60)
    path.write_bytes(data)


def test_a_broken_chunk_is_named(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 4000, (2, 200, 200)).astype("u2")
    path = make(tmp_path / "a.h5", mov=(pixels, {"chunks": (1, 200, 200), "compression": "gzip"}))
    break_second_chunk(path)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[..., 0], pixels[0])
        with pytest.raises(DamagedFileError, match=r"chunk at \(1, 0, 0\) of 'mov' .* is broken"):
            br[..., 1]


def test_a_small_chunk_that_is_broken_is_no_compression_that_is_missing(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 4000, (2, 64, 64)).astype("u2")
    path = make(tmp_path / "a.h5", mov=(pixels, {"chunks": (1, 64, 64), "compression": "gzip"}))
    break_second_chunk(path)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[..., 0], pixels[0])
        with pytest.raises(DamagedFileError, match=r"at \(1, 0, 0\) of 'mov' in .* cannot be read"):
            br[..., 1]


@pytest.mark.parametrize("kept", [8, 100, 900, -50])
def test_a_file_that_is_cut_off_is_said(tmp_path, kept):
    path = make(tmp_path / "a.h5", mov=(MOVIE, LAYOUTS[2]))
    data = path.read_bytes()
    path.write_bytes(data[:kept])
    with pytest.raises(DamagedFileError, match="cannot be opened as HDF5"):
        BioReader(path)


def test_no_image_at_all_is_said(tmp_path):
    path = make(tmp_path / "a.h5", line=np.arange(4), empty=np.zeros((0, 3)))
    with pytest.raises(UnsupportedError, match="no dataset of 2 to 5 axes"):
        BioReader(path)


def test_who_reads_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr("bioio_tk.backends._java_home.missing", lambda: None)
    make(tmp_path / "a.h5", mov=MOVIE)
    for name, reader in {
        "a.h5": "hdf5",
        "b": "hdf5",
        "b.ims": "java",
        "b.ch5": "java",
        "b.hdf": "hdf5",
    }.items():
        (tmp_path / name).write_bytes((tmp_path / "a.h5").read_bytes())
        assert registry.choose(tmp_path / name).backend.name == reader, name
    (tmp_path / "a.xml").write_text("<SpimData/>")  # then it is a part of BigDataViewer's
    assert registry.choose(tmp_path / "a.h5").backend.name == "bdv"
    (tmp_path / "a.xml").write_text("<other/>")  # then Bio-Formats may know what it is a part of
    assert registry.choose(tmp_path / "a.h5").backend.name == "java"
    monkeypatch.setattr("bioio_tk.backends._java_home.missing", lambda: "no Java")
    assert registry.choose(tmp_path / "a.h5").backend.name == "hdf5"


def test_without_h5py_the_error_says_what_to_install(tmp_path):
    make(tmp_path / "a.h5", mov=MOVIE)
    code = (
        "import sys; sys.modules['h5py'] = None\n"
        "from bioio_tk import BioReader, BioWriter\n"
        "from bioio_tk.errors import BackendMissingError\n"
        "write = lambda p: BioWriter(p.replace('a.h5', 'b.h5'), shape=(4, 5), dtype='u1')\n"
        "for use in (BioReader, write):\n"
        "    try:\n"
        "        use(sys.argv[1])\n"
        "    except BackendMissingError as exc:\n"
        "        print(exc)\n"
    )
    args = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "a.h5")]
    child = subprocess.run(args, capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.count("h5py") == 2, child.stdout
    assert child.stdout.count("pip install 'bioio-tk[hdf5]'") == 2


# ------------------------------------------------------------------ writing


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"compression": "none"},
        {"compression_level": 9},
        {"predictor": False},
        {"compression_level": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_h5py_reads_what_is_written(tmp_path, given, dtype):
    image = coded((70, 90, 3, 1, 5), dtype)
    with BioWriter(tmp_path / "a.h5", image=image, tile_size=64, max_workers=3, **given):
        pass
    with h5py.File(tmp_path / "a.h5") as file:
        data = file["mov"]
        np.testing.assert_array_equal(data[()], image[:, :, :, 0].transpose(3, 2, 0, 1))
        assert (data.dtype, data.chunks, data.maxshape[0]) == (image.dtype, (1, 1, 64, 64), None)
        packed = given.get("compression") != "none"
        assert data.compression == ("gzip" if packed else None)
        assert data.shuffle == (packed and given.get("predictor", True))
        assert list(data.attrs["dims"]) == list("TZYX")


def test_channels_make_five_axes_and_metadata_go_along(tmp_path):
    image = coded((20, 30, 2, 3, 1))
    with BioWriter(
        tmp_path / "a.h5",
        image=image,
        dataset_name="exp/raw",
        channel_names=["a", "b", "µ"],
        physical_size_x=(500, "nm"),
        physical_size_z=(2, "µm"),
        time_increment=(50, "ms"),
    ):
        pass
    with h5py.File(tmp_path / "a.h5") as file:
        data = file["exp/raw"]
        np.testing.assert_array_equal(data[()], image.transpose(4, 3, 2, 0, 1))
        assert list(data.attrs["dims"]) == list("TCZYX")
        said = dict(file.attrs)
        assert (said["dx"], said["dz"], said["fs"], said["finterval"]) == (0.5, 2.0, 20.0, 0.05)
        assert json.loads(said["channel_names"]) == ["a", "b", "µ"]
        assert "<OME" in data.attrs["ome_xml"]


def test_without_ome_there_is_no_document(tmp_path):
    with BioWriter(tmp_path / "a.h5", image=MOVIE[0, 0], ome=False):
        pass
    with h5py.File(tmp_path / "a.h5") as file:
        assert "ome_xml" not in file["mov"].attrs


def test_a_document_larger_than_an_attribute_may_be_is_kept(tmp_path):
    """Compact attributes end at 64 KB."""
    names = [f"channel {n} " + "x" * 200 for n in range(900)]
    with BioWriter(tmp_path / "a.h5", shape=(4, 4, 1, 900), dtype="u1", channel_names=names) as bw:
        bw[0, 0, 0, 5, 0] = 1
    with BioReader(tmp_path / "a.h5") as br:
        assert br.channel_names == names
        assert br[0, 0, 0, 5, 0] == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"compression": "zstd"}, "'gzip' or 'none'"),
        ({"compression_level": 10}, "0 to 9"),
        ({"compression": "none", "compression_level": 1}, "no levels"),
        ({"dataset_name": ""}, "dataset_name"),
        ({"dataset_name": "a//b"}, "dataset_name"),
        ({"dataset_name": 7}, "dataset_name"),
        ({"shards": 512}, "shards"),
        ({"pyramid": 2}, "smaller resolutions"),
        ({"tile_size": 65536, "dtype": "u8", "shape": (65536, 65536)}, "4 GB"),
    ],
    ids=str,
)
def test_what_hdf5_cannot_do_is_said_and_leaves_nothing(tmp_path, given, says):
    with pytest.raises((SpecError, UnsupportedError), match=says):
        BioWriter(tmp_path / "a.h5", **({"shape": (40, 50), "dtype": "u1"} | given))
    assert not list(tmp_path.iterdir())


def test_a_write_that_is_killed_leaves_nothing_at_its_place(tmp_path):
    path = tmp_path / "a.h5"
    code = (
        "import os, signal, sys, numpy as np\n"
        "from bioio_tk import BioWriter\n"
        "bw = BioWriter(sys.argv[1], shape=(512, 512, 1, 1, 9), dtype='u2')\n"
        "bw[..., :4] = np.ones((512, 512, 1, 1, 4), 'u2')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False)
    assert child.returncode == -9
    assert not path.exists()
    assert Path(f"{path}.partial").exists()
    with BioWriter(path, image=MOVIE[0, 0], overwrite=True):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["mov"][0, 0], MOVIE[0, 0])


def test_a_disk_that_is_full_is_said_and_leaves_nothing_at_its_place(tmp_path):
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from bioio_tk import BioWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    with BioWriter(sys.argv[1], image=np.random.default_rng(1).random((600, 600))):\n"
        "        pass\n"
        "except OSError as exc:\n"
        "    print('said', type(exc).__name__)\n"
    )
    for name in ("a.h5", "a.npy", "a.tif"):
        path = tmp_path / name
        args = [sys.executable, "-c", code.replace("image=", "ome=False, image="), str(path)]
        child = subprocess.run(args, capture_output=True, text=True, timeout=60, check=False)
        assert child.returncode == 0, child.stderr
        assert "said" in child.stdout, name
        assert not path.exists()


@pytest.mark.parametrize("skipped", [0, 1, 2, 3])
def test_filters_that_were_skipped_for_a_chunk_are_not_undone(tmp_path, skipped):
    pixels = coded((200, 200))
    data = pixels.tobytes()
    if not skipped & 1:
        data = np.frombuffer(data, "u1").reshape(-1, 2).T.tobytes()
    if not skipped & 2:
        data = zlib.compress(data)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        options = {"chunks": (200, 200), "shuffle": True, "compression": "gzip"}
        made = file.create_dataset("mov", (200, 200), "u2", **options)
        made.id.write_direct_chunk((0, 0), data, skipped)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["mov"][()], pixels)  # as the library sees it
    with BioReader(tmp_path / "a.h5") as br:
        np.testing.assert_array_equal(br[...], pixels)
