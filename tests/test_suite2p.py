"""Suite2p: folders as it and others leave them are read, what is written is as it wants it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.backends import registry
from bioio_tk.errors import (
    DamagedFileError,
    PixelTypeError,
    SpecError,
    TargetExistsError,
    UnknownFormatError,
    UnsupportedError,
)

FIVE = coded((9, 11, 3, 2, 4), "i2")  # Y, X, Z, C, T


def movie(folder, *, plane=0, channel=0, name="data.bin", frames=4):
    """Leave a movie as Suite2p does: raw int16."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.ascontiguousarray(FIVE[:, :, plane, channel, :frames].transpose(2, 0, 1))
    (folder / name).write_bytes(pixels.astype("<i2").tobytes())


def ops(folder, **more):
    said = {"Ly": 9, "Lx": 11, "nframes": 4, "fs": 8.0} | more
    np.save(folder / "ops.npy", {k: v for k, v in said.items() if v is not None})


def raw(path):
    """Return a movie, read by its size alone."""
    return np.fromfile(path, "<i2").reshape(-1, 9, 11)


def whole(path, **more):
    with BioReader(path, **more) as br:
        return br[...].reshape(br.shape)


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("given", ["", "ops.npy", "data.bin"])
def test_a_folder_of_one_plane_its_ops_and_its_movie_are_one_image(tmp_path, given):
    movie(tmp_path / "x")
    ops(tmp_path / "x", dx=0.5, dy=0.25, dz=3.0, save_path=Path("/somewhere"))
    with BioReader(tmp_path / "x" / given) as br:
        assert (br.backend, br.shape, br.dtype) == ("suite2p", (9, 11, 1, 1, 4), np.dtype("i2"))
        np.testing.assert_array_equal(br[...], FIVE[:, :, :1, :1])
        np.testing.assert_array_equal(
            br[2:7:2, ::-3, 0, 0, [3, 1]], FIVE[2:7:2, ::-3, :1, :1, [3, 1]]
        )
        assert br.pixel_size() == (0.25, 0.5, 3.0)
        assert br.time_increment == (0.125, "s")
        assert br.notes == ()


@pytest.mark.parametrize("name", ["plane{0}", "zplane{1:02d}_tp00001-00006", "Plane{1}_stitched"])
def test_folders_of_planes_make_z_in_the_order_of_their_numbers(tmp_path, name):
    root = tmp_path / "suite2p"
    for plane in range(3):
        folder = root / name.format(plane, plane + 9)
        movie(folder, plane=plane, name="data_raw.bin")
        movie(folder, plane=plane, channel=1, name="data_chan2.bin")
        ops(folder)
    (root / "combined").mkdir()
    ops(root / "combined")
    np.testing.assert_array_equal(whole(root), FIVE)
    np.testing.assert_array_equal(whole(tmp_path), FIVE)  # the one image in it


def test_the_registered_movie_comes_before_the_raw_one(tmp_path):
    for name, plane in (("data.bin", 1), ("data_raw.bin", 2)):
        movie(tmp_path / "x", plane=plane, name=name)
    for name, plane in (("data_chan2.bin", 1), ("data_chan2_raw.bin", 2)):
        movie(tmp_path / "x", plane=plane, channel=1, name=name)
    ops(tmp_path / "x")
    with BioReader(tmp_path / "x") as br:
        assert br.series_names == ["data", "data_raw"]
    np.testing.assert_array_equal(whole(tmp_path / "x"), FIVE[:, :, 1:2])
    np.testing.assert_array_equal(whole(tmp_path / "x", series=1), FIVE[:, :, 2:])
    np.testing.assert_array_equal(whole(tmp_path / "x" / "data_raw.bin"), FIVE[:, :, 2:])
    np.testing.assert_array_equal(whole(tmp_path / "x" / "data_chan2.bin"), FIVE[:, :, 1:2, 1:])


def test_a_movie_of_any_name_beside_ops_is_read(tmp_path):
    movie(tmp_path / "x", name="mine.bin")
    ops(tmp_path / "x")
    np.testing.assert_array_equal(whole(tmp_path / "x" / "mine.bin"), FIVE[:, :, :1, :1])
    np.testing.assert_array_equal(whole(tmp_path / "x"), FIVE[:, :, :1, :1])


def test_what_does_not_agree_is_said(tmp_path):
    movie(tmp_path / "x", frames=3)
    ops(tmp_path / "x")
    with (tmp_path / "x/data.bin").open("ab") as file:
        file.write(b"123")
    with BioReader(tmp_path / "x") as br:
        assert br.T == 3
        assert any("3 frames, ops.npy tells of 4" in note for note in br.notes)
        assert any("middle of a frame" in note for note in br.notes)
    movie(tmp_path / "y/plane0")
    movie(tmp_path / "y/plane1", frames=3)
    for n in (0, 1):
        ops(tmp_path / f"y/plane{n}", nframes=None)
    with BioReader(tmp_path / "y") as br:
        assert br.T == 3
        assert any("3 to 4 frames" in note for note in br.notes)


def test_broken_folders_are_said(tmp_path):
    folder = tmp_path / "x"
    movie(folder)
    with pytest.raises(UnknownFormatError):
        BioReader(folder / "data.bin")  # nothing says how large a frame is
    with pytest.raises(DamagedFileError, match=r"ops\.npy' is missing"):
        BioReader(folder / "data.bin", backend="suite2p")
    for bad in ({"Ly": None}, {"Lx": 0}, {"Lx": "wide"}):
        ops(folder, **bad)
        with pytest.raises(DamagedFileError, match="Ly and Lx"):
            BioReader(folder)
    ops(folder, Ly=5000, Lx=5000)
    with pytest.raises(DamagedFileError, match="one frame has 50000000"):
        BioReader(folder)
    np.save(folder / "ops.npy", np.arange(4))
    with pytest.raises(DamagedFileError, match="not an object"):
        BioReader(folder)
    np.save(folder / "ops.npy", [1, 2])
    with pytest.raises(DamagedFileError, match=r"no dictionary|not an object"):
        BioReader(folder)
    ops(folder)
    (folder / "data.bin").unlink()
    with pytest.raises(DamagedFileError, match="holds no movie"):
        BioReader(folder)
    for name in ("plane1_a", "plane1_b"):
        movie(tmp_path / "z" / name)
        ops(tmp_path / "z" / name)
    with pytest.raises(UnsupportedError, match="plane 1 more than once"):
        BioReader(tmp_path / "z")


# ------------------------------------------------------------------ writing


@pytest.mark.parametrize("name", ["x.suite2p", "suite2p", "x/data_raw.bin"])
@pytest.mark.parametrize("planes", [1, 3])
def test_movies_and_ops_are_as_suite2p_wants_them(tmp_path, name, planes):
    image = FIVE[:, :, :planes]
    with BioWriter(
        tmp_path / name,
        image=image,
        tile_size=16,
        max_workers=3,
        physical_size_x=(0.5, "µm"),
        physical_size_y=(500, "nm"),
        physical_size_z=(4, "µm"),
        time_increment=(100, "ms"),
        channel_names=["a", "b"],
    ):
        pass
    root = tmp_path / name.removesuffix("/data_raw.bin")
    assert [p.name for p in tmp_path.iterdir()] == [root.name]
    for plane in range(planes):
        folder = root if planes == 1 else root / f"plane{plane}"
        assert sorted(p.name for p in folder.glob("*.*")) == [
            "data_chan2.bin",
            "data_raw.bin",
            "ops.npy",
        ]
        for channel, file in enumerate(("data_raw.bin", "data_chan2.bin")):
            np.testing.assert_array_equal(
                raw(folder / file), image[:, :, plane, channel].transpose(2, 0, 1)
            )
        said = np.load(folder / "ops.npy", allow_pickle=True).item()
        want = {
            "Ly": 9,
            "Lx": 11,
            "nframes": 4,
            "nframes_chan1": 4,
            "nframes_chan2": 4,
            "nplanes": planes,
            "nchannels": 2,
            "functional_chan": 1,
            "fs": 10.0,
            "dx": 0.5,
            "dy": 0.5,
            "dz": 4.0,
            "umPerPixX": 0.5,
            "z_step": 4.0,
            "pixel_resolution": (0.5, 0.5),
            "plane": plane + 1,
            "raw_file": str(folder / "data_raw.bin"),
            "chan2_file": str(folder / "data_chan2.bin"),
            "ops_path": str(folder / "ops.npy"),
        }
        assert {key: said[key] for key in want} == want
        kinds = (int, float, str, bool, tuple, list)
        assert all(type(value) in kinds for value in said.values())
    with BioReader(root) as br:
        np.testing.assert_array_equal(br[...].reshape(image.shape), image)
        assert br.channel_names == ["a", "b"]
        assert br.physical_size_y == (500.0, "nm")


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i4", "u8"])
def test_integers_that_fit_are_stored(tmp_path, dtype):
    image = (coded((9, 11, 1, 1, 4)) % 100).astype(dtype)
    with BioWriter(tmp_path / "x.suite2p", image=image):
        pass
    np.testing.assert_array_equal(
        raw(tmp_path / "x.suite2p/data_raw.bin"), image[:, :, 0, 0].transpose(2, 0, 1)
    )


@pytest.mark.parametrize(("dtype", "value"), [("u2", 32768), ("i4", -32769), ("u8", 2**40)])
def test_a_value_that_does_not_fit_is_named_with_its_place(tmp_path, dtype, value):
    image = np.zeros((40, 50, 2, 2, 3), dtype)
    image[33, 21, 1, 0, 2] = value
    given = {"shape": image.shape, "dtype": dtype, "tile_size": 16}
    says = f"value {value} at t=2, c=0, z=1, y=33, x=21 does"
    with (
        pytest.raises(PixelTypeError, match=says),
        BioWriter(tmp_path / "x.suite2p", **given) as bw,
    ):
        bw[...] = image
    assert not list(tmp_path.iterdir())


def test_cast_says_what_becomes_of_values_that_do_not_fit(tmp_path):
    image = coded((9, 11, 1, 1, 4)) + np.uint16(30000)
    with BioWriter(tmp_path / "x.suite2p", shape=image.shape, dtype="i2", cast="clip") as bw:
        bw[...] = image
    want = np.minimum(image, 32767)[:, :, 0, 0].transpose(2, 0, 1)
    np.testing.assert_array_equal(raw(tmp_path / "x.suite2p/data_raw.bin"), want)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dtype": "f4"}, "dtype='int16' with cast="),
        ({"shape": (9, 11, 1, 3)}, "C=3"),
        ({"compression": "gzip"}, "compress"),
        ({"predictor": True}, "compress"),
        ({"pyramid": 2, "shape": (90, 90)}, "smaller resolutions"),
        ({"chunks": 16}, "chunks"),
        ({"mode": "create"}, "only OME-Zarr can"),
        ({"group": "A"}, "OME-Zarr"),
    ],
    ids=str,
)
def test_what_suite2p_cannot_do_is_said_and_leaves_nothing(tmp_path, given, says):
    with pytest.raises((SpecError, UnsupportedError), match=says):
        BioWriter(tmp_path / "x.suite2p", **({"shape": (9, 11), "dtype": "i2"} | given))
    assert not list(tmp_path.iterdir())


def test_only_what_we_wrote_is_replaced(tmp_path):
    path = tmp_path / "x.suite2p"
    with BioWriter(path, image=FIVE):
        pass
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        BioWriter(path, image=FIVE)
    with BioWriter(path, image=FIVE[:, :, :1, :1], overwrite=True):
        pass
    assert sorted(p.name for p in path.iterdir()) == ["data_raw.bin", "ops.npy"]
    np.save(path / "F.npy", np.zeros(3))  # Suite2p has been at work
    with pytest.raises(TargetExistsError, match=r"F\.npy"):
        BioWriter(path, image=FIVE, overwrite=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(IsADirectoryError, match="nothing in it is touched"):
        BioWriter(tmp_path / "mine/data_raw.bin", image=FIVE, overwrite=True)
    assert (path / "F.npy").exists()


def test_the_name_of_another_binary_says_no_format(tmp_path):
    with pytest.raises(UnknownFormatError, match=r"data_raw\.bin"):
        BioWriter(tmp_path / "x.bin", image=FIVE)
    assert registry.for_writing(tmp_path / "a" / "data_raw.bin").name == "suite2p"
