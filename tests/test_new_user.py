"""The first day with it: names of axes, sizes in the wrong order, what is no image."""

from __future__ import annotations

import doctest
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from test_cli import run

from bioio_tk import axial_shifts, convert, imread, imwrite, with_axial_shifts
from bioio_tk.errors import SpecError, TargetBusyError

SHAPE = (2, 3, 4, 20, 30)
IMAGE = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)  # TCZYX


@pytest.fixture
def cells(tmp_path):
    return imwrite(
        IMAGE,
        tmp_path / "cells.ome.tif",
        metadata={"dx": 0.5, "dy": 0.25, "dz": 2.0, "channel_names": ["DAPI", "actin", "tubulin"]},
    )


def test_axes_may_be_named_one_by_one_as_in_xarray(cells):
    with imread(cells) as image:
        np.testing.assert_array_equal(image.max(("Z", "Y")), IMAGE.max((2, 3)))
        np.testing.assert_array_equal(image.max(axis=()), IMAGE)
        with pytest.raises(IndexError, match="axis 'ZQ'"):
            image.max(("Z", "Q"))


def test_names_and_pixel_sizes_follow_what_is_selected(cells):
    with imread(cells) as image:
        assert image.channel_names == ["DAPI", "actin", "tubulin"]
        assert image.pixel_size() == (0.25, 0.5, 2.0)
        part = image[0, [2, 0], ::2, :, ::3]
        assert part.channel_names == ["tubulin", "DAPI"]
        assert part.pixel_size() == (0.25, 1.5, 4.0)
        assert part.pixel_size("nm") == (250, 1500, 4000)
        assert image[0, 1].channel_names == ["actin"]
    with imread(IMAGE) as plain:
        assert plain[:, :2].channel_names == [None, None]
        assert plain.pixel_size() == (None, None, None)


@pytest.mark.parametrize("given", [(1, 1, 1, 10, 15), (1, 1, 10, 15), (1, 1, 1, 1, 15)])
def test_chunks_in_the_order_of_the_store_are_refused_before_anything_is_written(
    cells, tmp_path, given
):
    target = tmp_path / "a.ome.zarr"
    turned = (*given[-2:], *given[-3::-1])
    with pytest.raises(SpecError, match=r"order is Y, X, Z, C, T") as caught:
        convert(cells, target, chunks=given)
    assert str(turned) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.ome.tif"]
    convert(cells, target, chunks=turned, pyramid=False)
    want = ((1,) * 5 + given)[-5:]
    assert zarr.open_group(target, mode="r")["0"].chunks == want


def test_chunks_of_one_row_are_written_where_they_are_meant(cells, tmp_path):
    convert(cells, tmp_path / "a.ome.zarr", chunks=(1, 30, 4), pyramid=False)
    array = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")["0"]
    assert array.chunks == (1, 1, 4, 1, 30)
    np.testing.assert_array_equal(array[:], IMAGE)


def test_shards_in_the_order_of_the_store_are_refused(cells, tmp_path):
    with pytest.raises(SpecError, match=r"shards=\(1, 1, 1, 16, 16\) is 1 along Y and 16 along T"):
        convert(cells, tmp_path / "a.ome.zarr", chunks=8, shards=(1, 1, 1, 16, 16))


@pytest.mark.parametrize("given", [b"cells.ome.tif", bytearray(b"II*"), io.BytesIO(b"II*\0")])
def test_bytes_and_open_files_are_no_generators(given):
    with pytest.raises(SpecError, match="is no image; give a path"):
        imread(given)


def test_a_folder_of_files_is_an_error_that_says_how_to_open_them(tmp_path):
    (tmp_path / "scans").mkdir()
    imwrite(IMAGE, tmp_path / "scans" / "a.tif")
    with pytest.raises(IsADirectoryError, match=r"scans.\*\.tif.*bioio-tk batch"):
        imread(tmp_path / "scans")


@pytest.mark.parametrize(
    "work",
    [
        lambda a: a.mean(),
        lambda a: a.mean(axis=0),
        lambda a: a.std(axis=(0, 2)),
        lambda a: a.sum(axis=1),
        lambda a: a.max(axis=2)[0] + 1,
        lambda a: a[:, [2, 0], 1].astype(float) / 2,
        lambda a: a.T > 100,
    ],
)
def test_an_image_may_be_given_to_dask_itself(cells, work):
    da = pytest.importorskip("dask.array")
    with imread(cells) as image:
        for lazy in (da.from_array(image), da.from_array(image, chunks=image.chunks)):
            found = work(lazy).compute(scheduler="sync")
            np.testing.assert_allclose(found, work(IMAGE))
            assert isinstance(found, np.ndarray | np.generic)


def test_pixels_are_read_as_another_type(cells):
    with imread(cells) as image:
        found = image[0, 1].astype("float32")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, tifffile.imread(cells)[0, 1])


@pytest.mark.parametrize(
    ("keyword", "message"),
    [("debug", "no keyword 'debug'$"), ("comression", "'comression'; was 'compression' meant?")],
)
def test_a_keyword_that_is_not_there_is_named(tmp_path, keyword, message):
    with pytest.raises(TypeError, match=message):
        imwrite(IMAGE, tmp_path / "a.ome.tif", **{keyword: True})
    assert not list(tmp_path.iterdir())


def test_shifts_are_applied_as_they_are_found():
    plane = np.random.default_rng(0).integers(0, 4000, (80, 90), np.uint16)
    pixels = np.stack([plane, np.roll(plane, (3, -5), (0, 1))])
    with imread(pixels, "ZYX") as image:
        found = axial_shifts(image)
        moved = np.asarray(with_axial_shifts(image, found).squeeze())
    assert moved.shape == (2, 83, 95)
    np.testing.assert_array_equal(moved[0][3:, :90], plane)
    np.testing.assert_array_equal(moved[1][:80, 5:], pixels[1])


def test_the_readme_runs_as_printed_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    examples = doctest.DocTestParser().get_doctest(readme, {}, "README.md", None, 0)
    told = io.StringIO()
    assert doctest.DocTestRunner().run(examples, out=told.write).failed == 0, told.getvalue()
    block = re.search(r"## On the command line\n\n```sh\n(.*?)```", readme, re.DOTALL).group(1)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert {line[0] for line in lines} == {"bioio-tk"}
    assert {"info", "convert", "batch", "verify"} <= {line[1] for line in lines}
    for line in lines:
        run(*line[1:])
    pixels = tifffile.imread("cells.ome.tif")
    np.testing.assert_array_equal(tifffile.imread("back.ome.tif"), pixels)
    np.testing.assert_array_equal(zarr.open_group("movie.ome.zarr", mode="r")["0"][:], pixels)
    one = zarr.open_group("converted/img_t001_c2.ome.zarr", mode="r")["0"][:]
    np.testing.assert_array_equal(one, pixels[1:, 2:])


@pytest.mark.parametrize("mode", ["sample", "full"])
@pytest.mark.parametrize("name", ["a.h5", "a.npy", "a.tif", "a.zarr", "a.ome.zarr", "a.suite2p"])
def test_every_format_can_be_verified_before_it_is_in_its_place(cells, tmp_path, name, mode):
    pytest.importorskip("h5py")
    target, plain = tmp_path / "out" / name, not name.startswith("a.ome")
    target.parent.mkdir()
    options = {"channels": [1, 2], "dtype": "int16", "ome": not plain, "verify": mode}
    report = convert(cells, target, **options)
    assert report.verified.startswith("equal")
    assert [p.name for p in target.parent.iterdir()] == [name]


def test_an_hdf5_file_that_is_being_written_is_said_to_be(tmp_path):
    pytest.importorskip("h5py")
    path = tmp_path / "busy.h5"
    code = (
        "import h5py, sys\n"
        f"file = h5py.File({str(path)!r}, 'w')\n"
        "file['mov'] = [[1, 2], [3, 4]]\n"
        "file.flush(); print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(TargetBusyError, match="is being written by another program: wait"):
            imread(path)
    finally:
        child.communicate(timeout=30)
    assert child.returncode == 0
    with imread(path) as image:
        np.testing.assert_array_equal(image.squeeze(), [[1, 2], [3, 4]])


@pytest.mark.parametrize("command", ["convert", "batch"])
def test_one_path_alone_is_not_taken_for_the_target(command):
    _, told = run(command, "cells.ome.tif", code=2)
    assert "one path was given, 'cells.ome.tif': give SRC and DST" in told
    assert "SRC... DST" in told
