"""Many files as one image: what lies where is told by the names; nothing missing goes unnoticed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from images import coded

from bioio_tk.errors import BioIOWarning, DamagedFileError, RegionError, SpecError
from bioio_tk.inputs import stack as stack_room
from bioio_tk.inputs.files import find_files
from bioio_tk.inputs.open import open_input
from bioio_tk.reader import BioReader

FILES = Path("/proc/self/fd")
IMAGE = coded((20, 33, 3, 2, 4))  # Y, X, Z, C, T


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(name, pixels, **more):
    """Write a TIFF of planes with tifffile."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(name, np.ascontiguousarray(pixels), **more)


def planes(text, *, times=range(4), channels=("DAPI", "GFP"), first=0):
    for t in times:
        for c, name in enumerate(channels):
            for z in range(3):
                save(text.format(t=t + first, c=name, z=z), IMAGE[:, :, z, c, t])


def test_fields_say_where_each_file_lies(folder):
    planes("img_t{t:04d}_z{z}_c{c}.tif", first=8)
    image, owned = open_input("img_t{t:04d}_z{z:d}_c{c}.tif")
    assert (owned, image.shape) == (True, IMAGE.shape)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(
        image[3:9, ::-1, [2, 0], :, 1:3], IMAGE[3:9, ::-1, [2, 0], :, 1:3]
    )
    assert [c.name for c in image.spec.channels] == ["DAPI", "GFP"]
    assert len(image.reader.used_files) == 24
    assert "24 images along T, C, Z" in repr(image.reader)


def test_numbers_count_by_value_and_long_names_of_axes_are_known(folder):
    for t in (9, 10, 11):
        save(f"time{t}.tif", IMAGE[:, :, 0, 0, t - 9])
    image, _ = open_input("time{timepoint:d+}.tif")
    np.testing.assert_array_equal(image[:, :, 0, 0], IMAGE[:, :, 0, 0, :3])


def test_folders_have_fields_too_and_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    planes("data/t{t}/{c}/z{z}.tif")
    for text in ("~/data/t{t:d}/{c}/z{z:d}.tif", "./data/t{t:d}/{c}/z{z:d}.tif"):
        image, _ = open_input(text)
        np.testing.assert_array_equal(image, IMAGE)


def test_another_field_must_have_one_value(folder):
    for p in (1, 2):
        for t in range(2):
            save(f"p{p}_t{t}.tif", IMAGE[:, :, 0, 0, t])
    with pytest.raises(SpecError, match=r"field 'p' .* the values 1, 2, and is none of the axes"):
        open_input("p{p:d}_t{t:d}.tif")
    Path("p2_t0.tif").unlink()
    Path("p2_t1.tif").unlink()
    image, _ = open_input("p{p:d}_t{t:d}.tif")
    np.testing.assert_array_equal(image[:, :, 0, 0], IMAGE[:, :, 0, 0, :2])


def test_a_missing_combination_is_named_or_filled(folder):
    planes("t{t}_{c}_z{z}.tif")
    Path("t1_GFP_z2.tif").unlink()
    with pytest.raises(SpecError, match="no image for t=1, c=GFP, z=2: fill=0"):
        open_input("t{t:d}_{c}_z{z:d}.tif")
    image, _ = open_input("t{t:d}_{c}_z{z:d}.tif", fill=7)
    want = IMAGE.copy()
    want[:, :, 2, 1, 1] = 7
    np.testing.assert_array_equal(image, want)
    with pytest.raises(SpecError, match="-1"):
        open_input("t{t:d}_{c}_z{z:d}.tif", fill=-1)


@pytest.mark.parametrize(
    ("times", "missing"),
    [((0, 1, 3), "t=2"), ((0, 2, 6), "t=4"), ((1, 2, 3, 5, 6), "t=4")],
)
def test_a_time_point_that_is_nowhere_is_missing(folder, times, missing):
    for t in times:
        save(f"t{t}.tif", IMAGE[:, :, 0, 0, 0])
    with pytest.raises(SpecError, match=missing):
        open_input("t{t:d}.tif")


@pytest.mark.parametrize("times", [(0, 2, 4), (5, 6, 7), (20240101, 20240131, 20240302)])
def test_even_steps_and_dates_have_nothing_missing(folder, times):
    for k, t in enumerate(times):
        save(f"t{t}.tif", IMAGE[:, :, 0, 0, k])
    image, _ = open_input("t{t:d+}.tif")
    np.testing.assert_array_equal(image[:, :, 0, 0], IMAGE[:, :, 0, 0, :3])


def test_two_files_at_one_place_are_refused(folder):
    save("t1.tif", IMAGE[:, :, 0, 0, 0])
    save("t01.tif", IMAGE[:, :, 0, 0, 0])
    with pytest.raises(SpecError, match=r"'t0?1\.tif' and 't0?1.tif' are both t=1"):
        open_input("t{t:d+}.tif")


def test_one_digit_where_others_have_more_is_a_warning(folder):
    for t in range(9, 11):
        save(f"t{t}.tif", IMAGE[:, :, 0, 0, 0])
    with pytest.warns(BioIOWarning, match=r"matches 1 files; 1 more .*t\{t:d\+\}\.tif"):
        image, _ = open_input("t{t:d}.tif")
    assert image.shape[4] == 1


def test_lists_keep_their_order_and_wildcards_sort_as_people_do(folder):
    for t in (2, 10, 9):
        save(f"img_{t}.tif", np.full((4, 5), t, "u1"))
    image, _ = open_input("img_*.tif")
    assert image.compute()[0, 0, 0, 0].tolist() == [2, 9, 10]
    image, _ = open_input(["img_10.tif", Path("img_2.tif")], stack="z")
    assert image.compute()[0, 0, :, 0, 0].tolist() == [10, 2]
    image, _ = open_input("img_[29]*.tif", stack="c")
    assert image.compute()[0, 0, 0, :, 0].tolist() == [2, 9]


def test_a_file_that_is_called_like_a_pattern_is_that_file(folder):
    save("img_{t}[1].tif", np.full((4, 5), 3, "u1"))
    image, _ = open_input("img_{t}[1].tif")
    assert image.reader.backend == "python"
    assert image.compute().max() == 3


@pytest.mark.parametrize("axis", "tcz")
def test_files_of_several_planes_are_joined_end_to_end(folder, axis):
    at = "yxzct".index(axis)
    shape = IMAGE.shape
    cuts = {"t": [3, 1], "c": [1, 1], "z": [2, 1]}[axis]
    start = 0
    for k, n in enumerate(cuts):
        part = IMAGE[(slice(None),) * at + (slice(start, start + n),)]
        save(f"p{k}.ome.tif", part.transpose(4, 3, 2, 0, 1), metadata={"axes": "TCZYX"})
        start += n
    image, _ = open_input("p*.ome.tif", stack=axis)
    assert image.shape == shape
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(image)), IMAGE)


def test_large_tiles_that_do_not_fit_the_joints_are_cut(folder):
    zarr = pytest.importorskip("zarr")
    for k, n in enumerate((2, 5, 3)):
        array = zarr.create_array(
            f"p{k}.zarr", shape=(n, 8, 9), chunks=(4, 8, 9), dtype="u2",
            dimension_names=["z", "y", "x"],
        )  # fmt: skip
        array[:] = coded((n, 8, 9), seed=k)
    image, _ = open_input(["p0.zarr", "p1.zarr", "p2.zarr"], stack="z")
    want = np.concatenate([coded((n, 8, 9), seed=k) for k, n in enumerate((2, 5, 3))])
    np.testing.assert_array_equal(image.transpose("ZYXCT").squeeze(), want)


def test_files_with_other_tiles_than_the_first_are_read_all_the_same(folder):
    save("p0.tif", IMAGE[:, :, 0, 0, 0], tile=(16, 16))
    save("p1.tif", IMAGE[:, :, 0, 0, 1], rowsperstrip=3)
    save("p2.tif", IMAGE[:, :, 0, 0, 2], tile=(32, 16), compression="zlib")
    image, _ = open_input("p?.tif")
    np.testing.assert_array_equal(image[:, :, 0, 0], IMAGE[:, :, 0, 0, :3])
    np.testing.assert_array_equal(image[5:18, 7:, 0, 0, ::-1], IMAGE[5:18, 7:, 0, 0, 2::-1])


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (np.zeros((21, 33), "u2"), "Y=21 x X=33 .* uint16, and Y=20 x X=33"),
        (np.zeros((20, 33), "u1"), "uint8, and"),
        (np.zeros((2, 20, 33), "u2"), "=2 "),
    ],
)
def test_a_file_of_another_size_or_type_is_named_when_it_is_touched(folder, odd, says):
    for t in range(3):
        save(f"t{t}.tif", odd if t == 1 else IMAGE[:, :, 0, 0, t])
    image, _ = open_input("t{t:d}.tif")
    np.testing.assert_array_equal(image[..., 2].squeeze(), IMAGE[:, :, 0, 0, 2])
    with pytest.raises(SpecError, match=f"'t1.tif' does not fit the stack.*{says}"):
        image.compute()


def test_a_reader_that_does_not_fit_stays_open(folder):
    save("a.tif", IMAGE[..., 0, 0, 0])
    save("b.tif", IMAGE[:, :9, 0, 0, 0])
    with BioReader("a.tif") as one, BioReader("b.tif") as other:
        stack, _ = open_input([one, other])
        with stack, pytest.raises(SpecError, match="does not fit the stack"):
            stack.compute()
        np.testing.assert_array_equal(other[:], IMAGE[:, :9, 0, 0, 0])


def test_a_broken_file_is_named(folder):
    for t in range(3):
        save(f"t{t}.tif", IMAGE[:, :, 0, 0, t])
    Path("t1.tif").write_bytes(Path("t1.tif").read_bytes()[:100])
    image, _ = open_input("t{t:d}.tif")
    with pytest.raises(DamagedFileError, match=r"t1\.tif"):
        image.compute()


def test_many_files_are_not_all_open_at_once(folder, monkeypatch):
    monkeypatch.setattr(stack_room, "_MOST_OPEN", 3)
    for t in range(12):
        save(f"t{t}.tif", IMAGE[:, :, 0, 0, t % 4])
    opened = []
    real = BioReader.__init__

    def watched(self, path, *args, **more):
        opened.append(Path(path).name)
        real(self, path, *args, **more)

    monkeypatch.setattr(BioReader, "__init__", watched)
    before = len(list(FILES.iterdir())) if FILES.is_dir() else None
    image, _ = open_input("t{t:d+}.tif")
    assert opened == ["t0.tif"]
    for t in range(12):
        np.testing.assert_array_equal(image[..., t].squeeze(), IMAGE[:, :, 0, 0, t % 4])
        if before is not None:
            assert len(list(FILES.iterdir())) <= before + 3
    assert opened == ["t0.tif", *(f"t{t}.tif" for t in range(12))]
    image.close()
    if before is not None:
        assert len(list(FILES.iterdir())) == before


def test_arrays_and_readers_can_be_stacked(folder):
    save("a.tif", IMAGE[:, :, 0, 0, 0])
    with BioReader("a.tif") as reader:
        image, _ = open_input([reader, reader.array[:, :, 0], IMAGE[:, :, 0, 0, 3]])
        np.testing.assert_array_equal(image[:, :, 0, 0], IMAGE[:, :, 0, 0, [0, 0, 3]])
        image.close()
        assert reader[:].shape == (20, 33)  # not ours to close


def test_what_the_files_say_of_themselves_is_kept(folder):
    for t in range(3):
        save(
            f"t{t}.ome.tif", IMAGE[:, :, :, :, t].transpose(3, 2, 0, 1),
            metadata={
                "axes": "CZYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm",
                "Channel": {"Name": ["DAPI", "GFP"]},
            },
        )  # fmt: skip
    image, _ = open_input("t{t:d}.ome.tif")
    pixels = image.reader.metadata.images[0].pixels
    assert (pixels.size_t, pixels.size_c, pixels.physical_size_x) == (3, 2, 0.5)
    assert [c.name for c in pixels.channels] == ["DAPI", "GFP"]
    assert [c.name for c in image.spec.channels] == ["DAPI", "GFP"]


def test_channels_of_files_that_name_theirs_are_kept_in_order(folder):
    for c, name in enumerate(("DAPI", "GFP")):
        save(f"c{c}.ome.tif", IMAGE[:, :, :, c, 0].transpose(2, 0, 1),
             metadata={"axes": "ZYX", "Channel": {"Name": [name]}})  # fmt: skip
    image, _ = open_input("c{c:d}.ome.tif")
    assert [c.name for c in image.spec.channels] == ["DAPI", "GFP"]
    assert [c.name for c in image.reader.metadata.images[0].pixels.channels] == ["DAPI", "GFP"]


@pytest.mark.parametrize(
    ("src", "more", "error", "says"),
    [
        ("no_{t:d}.tif", {}, FileNotFoundError, "no file matches 'no_{t:d}.tif'"),
        ("nowhere/x_{t:d}.tif", {}, FileNotFoundError, "no folder 'nowhere'"),
        ("a_{t:ddd}.tif", {}, FileNotFoundError, "'a_0.tif' comes near"),
        ("no_*.tif", {}, FileNotFoundError, r"no file matches 'no_\*.tif'"),
        ("a_{t:d}_{t:d}.tif", {}, SpecError, "twice"),
        ("a_{t:d}.tif", {"stack": "z"}, SpecError, "leave stack= away"),
        ("a_*.tif", {"stack": "c,z"}, SpecError, "lie along one axis"),
        ("a_*.tif", {"stack": "q"}, SpecError, "name the axes t, c, z"),
        ("a_*.tif", {"fill": 0}, SpecError, "wildcards do not tell what is missing"),
        ("a_0.tif", {"stack": "t"}, SpecError, "are for several files"),
        (["a_0.tif", "gone.tif"], {}, FileNotFoundError, "gone.tif"),
    ],
)
def test_what_does_not_fit_is_said(folder, src, more, error, says):
    save("a_0.tif", IMAGE[:, :, 0, 0, 0])
    save("a_1.tif", IMAGE[:, :, 0, 0, 0])
    with pytest.raises(error, match=says):
        open_input(src, **more)[0].compute()


def test_found_files_come_with_their_values(folder):
    for name in ("r2_c10.tif", "r2_c9.tif", "r10_c1.tif", "other.tif"):
        Path(name).touch()
    assert [(p.name, v) for p, v in find_files("r{r:d+}_c{c:d+}.tif")] == [
        ("r2_c9.tif", {"r": 2, "c": 9}),
        ("r2_c10.tif", {"r": 2, "c": 10}),
        ("r10_c1.tif", {"r": 10, "c": 1}),
    ]


def test_reading_after_close_is_an_error_and_views_stay_inside(folder):
    planes("t{t}_{c}_z{z}.tif")
    image, _ = open_input("t{t:d}_{c}_z{z:d}.tif")
    with pytest.raises(RegionError):
        image[..., 4]
    image.close()
    image.close()
    with pytest.raises(ValueError, match="closed"):
        image.compute()
