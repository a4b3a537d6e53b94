"""Arrays of NumPy: what numpy.save has written is read, what is written numpy.load opens."""

from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import pytest
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.errors import (
    DamagedFileError,
    PixelTypeError,
    SpecError,
    UnknownFormatError,
    UnsupportedError,
)

FIVE = coded((9, 11, 3, 2, 4))  # Y, X, Z, C, T
STORED = FIVE.transpose(4, 3, 2, 0, 1)


def whole(path, **more):
    with BioReader(path, **more) as br:
        return br[...].reshape(br.shape)


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<u2", ">i4", "<f4", "?", "<c8"])
def test_what_numpy_saves_is_read(tmp_path, dtype, order, version):
    array = np.array(STORED.astype(dtype), order=order)
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version)
    with BioReader(tmp_path / "a.npy") as br:
        assert (br.shape, br.dtype.isnative) == (FIVE.shape, True)
        np.testing.assert_array_equal(br[...], FIVE.astype(dtype))
        np.testing.assert_array_equal(
            br[2:7:2, ::-3, 1, 0, [3, 0]], FIVE[2:7:2, ::-3, 1:2, :1, [3, 0]].astype(dtype)
        )


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        (None, (4, 5, 3, 2, 1)),
        ("TZYX", (4, 5, 3, 1, 2)),
        ("CTYX", (4, 5, 1, 2, 3)),
        ("ZCXY", (5, 4, 2, 3, 1)),
        ("yxzc", (2, 3, 4, 5, 1)),
    ],
)
def test_dims_say_what_the_axes_are(tmp_path, dims, shape):
    array = coded((2, 3, 4, 5))
    np.save(tmp_path / "a.npy", array)
    letters = (dims or "CZYX").upper()
    want = np.einsum(f"{letters}->{''.join(a for a in 'YXZCT' if a in letters)}", array)
    with BioReader(tmp_path / "a.npy", dims=dims) as br:
        assert br.shape == shape
        np.testing.assert_array_equal(br[...].ravel(), want.ravel())
        assert any("dims=" in note for note in br.notes) == (dims is None)


def test_a_plane_is_read_without_a_note(tmp_path):
    np.save(tmp_path / "a.npy", coded((4, 5)))
    with BioReader(tmp_path / "a.npy") as br:
        assert (br.shape, br.notes) == ((4, 5, 1, 1, 1), ())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_packed_arrays_are_series_and_data_is_the_first(tmp_path, save):
    other, data = coded((4, 5), "u1"), coded((3, 4, 5), "f4")
    save(tmp_path / "a.npz", other=other, data=data, line=np.arange(3), text=np.array("x"))
    with BioReader(tmp_path / "a.npz") as br:
        assert br.series_names == ["data", "other"]
        np.testing.assert_array_equal(br[...], data.transpose(1, 2, 0))
    np.testing.assert_array_equal(whole(tmp_path / "a.npz", series=1)[..., 0, 0, 0], other)
    np.testing.assert_array_equal(whole(tmp_path / "a.npz", group="other")[..., 0, 0, 0], other)
    with pytest.raises(SpecError, match="no image 'none'; there are 'other', 'data'"):
        BioReader(tmp_path / "a.npz", group="none")


def test_an_npz_that_is_called_npy_is_read_with_its_metadata(tmp_path):
    data = coded((6, 2, 4, 5), "i2")
    said = {"dims": ["T", "Z", "Y", "X"], "dx": 0.5, "dy": 0.25, "dz": 4.0, "fs": 10.0}
    np.savez(tmp_path / "a.npz", data=data, metadata=np.array(said, dtype=object))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with BioReader(tmp_path / "a.npy") as br:
        assert br.shape == (4, 5, 2, 1, 6)
        assert br.pixel_size() == (0.25, 0.5, 4.0)  # y, x, z
        assert br.time_increment == (0.1, "s")
        np.testing.assert_array_equal(br[..., 0, :], data.transpose(2, 3, 1, 0)[:, :, :, None])


class Bomb:
    """What a pickle may do to who loads it."""

    def __reduce__(self):
        return (os.mkdir, (self.where,))

    def __init__(self, where):
        self.where = str(where)


def test_no_code_of_a_file_is_run(tmp_path):
    said = {"dx": 2.0, "bad": Bomb(tmp_path / "boom")}
    np.savez(tmp_path / "a.npz", data=coded((4, 5)), metadata=np.array(said, dtype=object))
    with BioReader(tmp_path / "a.npz") as br:
        assert br.physical_size_x == (2.0, "µm")
    assert not (tmp_path / "boom").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))  # it would have
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("kept", [3, 8, 40, 128, 128 + 7])
def test_an_array_that_is_cut_off_is_said(tmp_path, kept):
    np.save(tmp_path / "a.npy", coded((4, 5)))
    os.truncate(tmp_path / "a.npy", kept)
    with pytest.raises((DamagedFileError, UnknownFormatError), match=r"cut off|header|format"):
        BioReader(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3),
        np.zeros((1,) * 6),
        np.zeros((0, 3)),
        np.array(["a", "b"]),
        np.array([[{}]], dtype=object),
        np.zeros((2, 2), "u1,u2"),
        np.zeros((2, 2), "M8[s]"),
    ],
    ids=str,
)
def test_an_array_that_is_no_image_is_said(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UnsupportedError, match=r"axes|no image"):
        BioReader(tmp_path / "a.npy")


def test_a_packed_file_without_an_image_or_broken_is_said(tmp_path):
    np.savez(tmp_path / "a.npz", line=np.arange(3))
    with pytest.raises(UnsupportedError, match="no array of 2 to 5 axes"):
        BioReader(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", a=np.random.default_rng(1).random((40, 40)))
    data = bytearray((tmp_path / "b.npz").read_bytes())
    data[3000] ^= 255
    (tmp_path / "b.npz").write_bytes(data)
    with pytest.raises(DamagedFileError, match="cannot be read"):
        BioReader(tmp_path / "b.npz")


def test_what_is_added_behind_an_array_is_not_taken_for_metadata(tmp_path):
    np.save(tmp_path / "a.npy", coded((4, 5)))
    for tail in (
        b"garbage",
        b"<?xml version='1.0'?><OME",
        b"<OME><Image><Pixels SizeX='9'/></Image></OME>",
    ):
        data = (tmp_path / "a.npy").read_bytes()[: 128 + 40]
        (tmp_path / "a.npy").write_bytes(data + tail)
        with BioReader(tmp_path / "a.npy") as br:
            np.testing.assert_array_equal(br[...], coded((4, 5)))
            assert br.ome_xml is None or "4" in br.ome_xml


# ------------------------------------------------------------------ writing


@pytest.mark.parametrize(
    ("shape", "stored"),
    [
        ((4, 5, 1, 1, 1), (4, 5)),
        ((4, 5, 3, 1, 1), (3, 4, 5)),
        ((4, 5, 1, 2, 1), (2, 1, 4, 5)),
        ((4, 5, 1, 1, 2), (2, 1, 1, 4, 5)),
        ((1, 1, 1, 1, 1), (1, 1)),
    ],
)
def test_leading_axes_of_one_are_left_out_and_the_rank_says_which(tmp_path, shape, stored):
    image = coded(shape, "f4")
    with BioWriter(tmp_path / "a.npy", image=image, channel_names=["x"] * shape[3]):
        pass
    array = np.load(tmp_path / "a.npy")
    assert array.shape == stored
    np.testing.assert_array_equal(
        array.reshape(shape[4], shape[3], shape[2], *shape[:2]), image.transpose(4, 3, 2, 0, 1)
    )
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), array)
    np.testing.assert_array_equal(whole(tmp_path / "a.npy"), image)


def test_without_ome_the_file_is_what_numpy_writes(tmp_path):
    with BioWriter(tmp_path / "a.npy", image=FIVE, ome=False, tile_size=16):
        pass
    np.save(tmp_path / "b.npy", STORED)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"compression": "gzip"}, "compress"),
        ({"compression_level": 3}, "compress"),
        ({"predictor": True}, "compress"),
        ({"dataset_name": "x"}, "dataset_name"),
        ({"bigtiff": True}, "bigtiff"),
        ({"pyramid": 2}, "smaller resolutions"),
    ],
    ids=str,
)
def test_what_an_array_cannot_do_is_said_and_leaves_nothing(tmp_path, given, says):
    with pytest.raises((SpecError, UnsupportedError), match=says):
        BioWriter(tmp_path / "a.npy", shape=(40, 50), dtype="u1", **given)
    assert not list(tmp_path.iterdir())


def test_packed_arrays_are_not_written(tmp_path):
    with pytest.raises(UnsupportedError, match=r"\.npy"):
        BioWriter(tmp_path / "a.npz", shape=(4, 5), dtype="u1")
    with (
        pytest.raises(PixelTypeError),
        BioWriter(tmp_path / "a.npy", shape=(4, 5), dtype="u1") as bw,
    ):
        bw[...] = np.full((4, 5), 300)
    assert not list(tmp_path.iterdir())


def test_a_zarr_in_a_zip_file_is_still_one(tmp_path):
    with BioWriter(tmp_path / "a.ozx", image=coded((4, 5))):
        pass
    assert zipfile.is_zipfile(tmp_path / "a.ozx")
    with BioReader(tmp_path / "a.ozx") as br:
        assert br.backend == "zarr"


def test_tiles_narrower_than_the_image_go_to_their_rows(tmp_path):
    image = coded((70, 83, 2, 1, 3), "u4")
    with BioWriter(tmp_path / "a.npy", image=image, tile_size=(32, 16), max_workers=3):
        pass
    got = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(got, image.transpose(4, 3, 2, 0, 1))
