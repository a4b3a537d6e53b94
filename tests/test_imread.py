"""imread and what its lazy array can do, against NumPy, dask and xarray."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from images import coded

import bioio_tk
from bioio_tk import imread
from bioio_tk.errors import ClosedError, RegionError, SpecError
from bioio_tk.lazy import LazyArray

SHAPE = (40, 50, 3, 2, 4)  # Y, X, Z, C, T
IMAGE = coded(SHAPE)
TCZYX = np.ascontiguousarray(IMAGE.transpose(4, 3, 2, 0, 1))
FILES = Path("/proc/self/fd")


@pytest.fixture
def path(tmp_path):
    """Return an OME-TIFF with everything, written by tifffile."""
    name = tmp_path / "cells.ome.tif"
    tifffile.imwrite(
        name, TCZYX, tile=(16, 16),
        metadata={
            "axes": "TCZYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 250, "PhysicalSizeYUnit": "nm",
            "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": "µm", "TimeIncrement": 1.5,
            "TimeIncrementUnit": "s", "Channel": {"Name": ["DAPI", "GFP"]},
        },
    )  # fmt: skip
    return name


def test_it_is_a_five_dimensional_array_of_the_file(path):
    with imread(path) as image:
        assert isinstance(image, LazyArray)
        assert (image.shape, image.dims, image.ndim) == (TCZYX.shape, "TCZYX", 5)
        assert (image.dtype, image.chunks, len(image)) == (TCZYX.dtype, (1, 1, 1, 16, 16), 4)
        np.testing.assert_array_equal(image, TCZYX)
        np.testing.assert_array_equal(image[1, :, ::-1, 5], TCZYX[1, :, ::-1, 5])
    with pytest.raises(ClosedError):
        image.compute()


@pytest.mark.parametrize("dims", ["TCZYX", "YXZCT", "ctzyx"])
def test_axes_come_in_the_order_of_dims(path, dims):
    with imread(path, dims) as image:
        want = IMAGE.transpose(["YXZCT".index(axis) for axis in dims.upper()])
        assert image.dims == dims.upper()
        np.testing.assert_array_equal(image, want)


def test_axes_of_length_one_may_be_left_out(path, tmp_path):
    tifffile.imwrite(tmp_path / "z.tif", TCZYX[0, 0], imagej=True, metadata={"axes": "ZYX"})
    with imread(tmp_path / "z.tif", "ZYX") as image:
        np.testing.assert_array_equal(image, TCZYX[0, 0])
    with pytest.raises(SpecError, match="leaves T out, of which the image has 4"):
        imread(path, "CZYX")
    for dims in ("TCZYXX", "TCZYQ", "", 5):
        with pytest.raises(SpecError, match="each of T, C, Z, Y, X at most once"):
            imread(path, dims)


def test_squeeze_and_channel(path):
    with imread(path, channel=1) as image:
        assert image.shape == (4, 1, 3, 40, 50)
        np.testing.assert_array_equal(image, TCZYX[:, 1:2])
        assert [c.name for c in image.spec.channels] == ["GFP"]
    with imread(path, channel=0, squeeze=True) as image:
        assert image.dims == "TZYX"
        np.testing.assert_array_equal(image, TCZYX[:, 0])
    for channel, error in (
        (2, RegionError),
        (-1, RegionError),
        (1.5, SpecError),
        (True, SpecError),
    ):
        with pytest.raises(error, match=f"channel={channel}"):
            imread(path, channel=channel)


def test_an_unknown_keyword_is_a_type_error(path):
    with pytest.raises(TypeError, match="chanel"):
        imread(path, chanel=1)


def test_series_and_level_are_counted_from_zero(tmp_path):
    name = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(name, ome=True) as file:
        for seed in range(2):
            full = coded((64, 64), seed=seed)
            file.write(full, subifds=1, tile=(16, 16))
            file.write(full[::2, ::2], subfiletype=1, tile=(16, 16))
    with imread(name, "YX", 1) as image:
        np.testing.assert_array_equal(image, coded((64, 64), seed=1))
    with imread(name, "YX", series=1, level=1) as image:
        np.testing.assert_array_equal(image, coded((64, 64), seed=1)[::2, ::2])
    with pytest.raises(SpecError, match="series=2 does not exist"):
        imread(name, series=2)


def test_many_files_are_one_array(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for t in range(4):
        for c in range(2):
            tifffile.imwrite(f"img_t{t:04d}_c{c}.tif", TCZYX[t, c, 0])
    with imread("img_t{t:04d}_c{c}.tif") as image:
        np.testing.assert_array_equal(image, TCZYX[:, :, :1])
    with imread("img_t0001_*.tif", stack="c") as image:
        np.testing.assert_array_equal(image, TCZYX[1:2, :, :1])
    with imread(["img_t0002_c0.tif", "img_t0000_c0.tif"], "TYX") as image:
        np.testing.assert_array_equal(image, TCZYX[[2, 0], 0, 0])


def test_arrays_are_named_by_dims_if_there_are_as_many():
    np.testing.assert_array_equal(imread(TCZYX), TCZYX)
    np.testing.assert_array_equal(imread(IMAGE, "YXZCT"), IMAGE)
    assert imread(TCZYX[0, 0]).shape == (3, 1, 1, 40, 50)
    assert imread(TCZYX[0, 0], "ZYX").shape == (3, 40, 50)
    assert imread(TCZYX[0, 0], "ZYX").reader.Z == 3
    assert imread([TCZYX[0, 0, 0], TCZYX[1, 0, 0]], "TYX").shape == (2, 40, 50)
    generator = (plane for plane in TCZYX[0, 0])
    assert imread(generator, "ZYX", shape=(3, 40, 50)).reader.Z == 3
    with pytest.raises(SpecError, match="names 4 axes, the array has 3"):
        imread(TCZYX[0, 0], "TZYX")
    again = imread(imread(TCZYX)[1:, 0], "TZYX")
    np.testing.assert_array_equal(again, TCZYX[1:, 0])
    with pytest.raises(SpecError, match="no longer there"):
        imread(imread(TCZYX)[1:, 0])


def test_iteration_transposing_and_squeezing_are_as_in_numpy():
    image = imread(TCZYX)
    for got, want in zip(image, TCZYX, strict=True):
        assert isinstance(got, LazyArray)
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(image.T, TCZYX.T)
    np.testing.assert_array_equal(image[0].transpose(2, 0, 3, 1), TCZYX[0].transpose(2, 0, 3, 1))
    np.testing.assert_array_equal(image.transpose("YXTCZ"), TCZYX.transpose(3, 4, 0, 1, 2))
    np.testing.assert_array_equal(image[:1, :, 1:2].squeeze(), TCZYX[0, :, 1])
    for axes in ("YX", (0, 1, 2, 3, 3), "TCZYQ"):
        with pytest.raises((SpecError, RegionError)):
            image.transpose(axes)
    with pytest.raises(TypeError):
        iter(image[0, 0, 0, 0, 0])


# ------------------------------------------------------------------ numbers of all pixels


@pytest.mark.parametrize("dtype", ["bool", "u1", "i2", "u4", "i8", "f2", "f4", "f8", "c8"])
@pytest.mark.parametrize("how", ["sum", "mean", "std", "min", "max"])
def test_reductions_are_those_of_numpy(dtype, how):
    pixels = coded((21, 33, 2, 3, 2), dtype).transpose(4, 3, 2, 0, 1)
    if pixels.dtype.kind in "iu":
        pixels = pixels % 101  # no sum overflows float64's whole numbers
    if dtype == "f2":
        pixels = pixels % 5  # its sums soon are infinite
    image = imread(np.ascontiguousarray(pixels))
    for axis in (None, 0, -1, (0, 2), (3, 4), (0, 1, 2, 3, 4)):
        exact = pixels.astype({"f": "f8", "c": "c16"}.get(pixels.dtype.kind, pixels.dtype))
        want = getattr(exact, how)(axis=axis)
        got = getattr(image, how)(axis=axis)
        assert got.dtype == getattr(np.zeros(2, pixels.dtype), how)().dtype
        assert np.shape(got) == np.shape(want)
        close = {"f2": 1e-3, "f4": 1e-6, "c8": 1e-6}.get(dtype, 1e-12)
        np.testing.assert_allclose(got, want, rtol=close, atol=close * 100)


@given(data=st.data())
def test_reductions_of_views_by_name_and_number(data):
    key = data.draw(
        st.sampled_from([(), (1,), (..., slice(None, None, -3)), ([2, 0],), (0, 1, slice(1, 2))])
    )
    view, want = imread(TCZYX)[key], TCZYX[key]
    chosen = data.draw(st.sets(st.integers(0, want.ndim - 1), min_size=1))
    names = "".join(view.dims[k] for k in chosen)
    for axis in (tuple(chosen), names, names.lower()):
        np.testing.assert_array_equal(view.max(axis), want.max(tuple(chosen)))
        got = view.sum(axis, keepdims=True)
        np.testing.assert_array_equal(got, want.sum(tuple(chosen), keepdims=True))


def test_numpy_functions_take_a_lazy_array(path):
    with imread(path) as image:
        assert np.mean(image) == pytest.approx(TCZYX.mean())
        assert (np.max(image), np.min(image)) == (TCZYX.max(), TCZYX.min())
        np.testing.assert_array_equal(np.sum(image, axis=0), TCZYX.sum(0))
        assert np.std(image) == pytest.approx(TCZYX.std())


def test_nan_is_not_lost():
    pixels = np.ones((3, 40, 50), "f4")
    pixels[1, 3, 4] = np.nan
    image = imread(pixels, "ZYX")
    assert all(np.isnan(getattr(image, how)()) for how in ("sum", "mean", "min", "max", "std"))
    np.testing.assert_array_equal(image.max((1, 2)), [1, np.nan, 1])


def test_reductions_read_piece_by_piece():
    largest = []

    class Pixels:
        shape, dtype, chunks = (64, 2048, 2048), np.dtype("u2"), (1, 512, 512)

        def __getitem__(self, key):
            sizes = [len(range(n)[k]) for n, k in zip(self.shape, key, strict=True)]
            largest.append(np.prod(sizes))
            return np.full(sizes, key[0].start, "u2")

    image = imread(Pixels(), "ZYX")
    assert image[:8].mean() == 3.5
    assert image[:8].max("Z")[::512, ::512].tolist() == [[7] * 4] * 4
    assert max(largest) == 512 * 512
    assert len(largest) == 2 * 8 * 16


def test_reductions_that_make_no_sense_are_refused():
    image = imread(TCZYX)
    with pytest.raises(SpecError, match="without pixels"):
        image[:0].max()
    for axis in (5, -6, "Q", "TT", (0, 0), 1.5):
        with pytest.raises(RegionError, match="axis"):
            image.mean(axis)
    with pytest.raises(SpecError, match="has no dtype="):
        image.mean(dtype="f4")
    with pytest.raises(TypeError, match="wheer"):
        image.mean(wheer=1)


# ------------------------------------------------------------------ dask and xarray


def test_to_dask_runs_on_a_cluster_of_processes(path, tmp_path):
    """In a child of its own, so that its workers import nothing of the tests."""
    pytest.importorskip("distributed")
    np.save(tmp_path / "want.npy", TCZYX.astype("u8").sum(axis=(0, 2)))
    code = """
import sys, numpy as np
from bioio_tk import imread
if __name__ == "__main__":
    import distributed
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=None, processes=True
    ) as cluster, distributed.Client(cluster), imread(sys.argv[1]) as image:
        got = image.to_dask().astype("u8").sum(axis=(0, 2)).compute()
        np.testing.assert_array_equal(got, np.load(sys.argv[2]))
        # a dask array as an image is computed on the cluster
        back = imread(image.to_dask() + 1)
        np.testing.assert_array_equal(back[1, 0], np.asarray(image[1, 0]) + 1)
"""
    run(tmp_path, code, path, tmp_path / "want.npy")


def run(folder, code, *args):
    script = folder / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script, *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_blocks_of_a_crop_begin_where_the_tiles_of_the_file_do(path):
    pytest.importorskip("dask.array")
    with imread(path) as image:
        assert image.to_dask().chunks == (
            (1,) * 4,
            (1,) * 2,
            (1,) * 3,
            (16, 16, 8),
            (16, 16, 16, 2),
        )
        lazy = image[0, 0, 0, 10:, 17:].to_dask()
        assert lazy.chunks == ((6, 16, 8), (15, 16, 2))
        np.testing.assert_array_equal(lazy.compute(scheduler="sync"), TCZYX[0, 0, 0, 10:, 17:])
        lazy = image[0, 0, ::2, ::3].to_dask(chunks=(1, 7, -1))
        assert lazy.chunks[1:] == ((7, 7), (50,))
        np.testing.assert_array_equal(lazy.compute(scheduler="sync"), TCZYX[0, 0, ::2, ::3])


def test_the_graph_of_a_terabyte_is_made_and_read_at_once():
    pytest.importorskip("dask.array")
    asked = []

    class Huge:
        shape, dtype, chunks = (500, 32768, 32768), np.dtype("u2"), (1, 1024, 1024)

        def __getitem__(self, key):
            asked.append(key[0].start)
            return np.full(
                [len(range(n)[k]) for n, k in zip(self.shape, key, strict=True)], 3, "u2"
            )

    lazy = imread(Huge(), "ZYX").to_dask()
    assert lazy.npartitions == 500 * 32 * 32
    assert lazy[400, -300:, :300].sum().compute(scheduler="sync") == 3 * 300 * 300
    assert asked == [400]


def test_to_xarray_has_names_sizes_and_units(path):
    pytest.importorskip("xarray")
    import dask

    with imread(path) as image, dask.config.set(scheduler="sync"):
        array = image[:, ::-1, ::2, 10:].to_xarray()
        assert array.dims == ("T", "C", "Z", "Y", "X")
        assert array.coords["C"].values.tolist() == ["GFP", "DAPI"]
        assert array.coords["T"].values.tolist() == [0, 1.5, 3, 4.5]
        assert array.coords["Z"].values.tolist() == [0, 4]
        assert array.coords["Y"].values[:3].tolist() == [2500, 2750, 3000]
        assert array.coords["X"].values[-1] == 24.5
        units = {k: v.attrs.get("units") for k, v in array.coords.items()}
        assert units == {"T": "s", "C": None, "Z": "µm", "Y": "nm", "X": "µm"}
        assert array.sel(C="GFP", T=3).dims == ("Z", "Y", "X")
        np.testing.assert_array_equal(array.sel(C="GFP", T=3), TCZYX[2, 1, ::2, 10:])
        # and back: what the coordinates say is understood
        again = imread(array).spec
        assert again.physical_size == ((0.5, "µm"), (250.0, "nm"), (4.0, "µm"))
        assert again.position.y == (2500.0, "nm")
        assert again.time_increment == (1.5, "s")
        assert [c.name for c in again.channels] == ["GFP", "DAPI"]


def test_coordinates_begin_where_the_image_lies():
    xarray = pytest.importorskip("xarray")
    coords = {"y": ("y", 10 + np.arange(40) * 0.5, {"units": "µm"})}
    array = xarray.DataArray(TCZYX[0, 0, 0], dims=("y", "x"), coords=coords)
    got = imread(array)[..., 4::2, :].to_xarray().coords["Y"]
    assert got.values[:3].tolist() == [12, 13, 14]
    assert got.attrs == {"units": "µm"}


def test_to_xarray_of_a_file_that_knows_nothing_has_no_coordinates(tmp_path):
    pytest.importorskip("xarray")
    tifffile.imwrite(tmp_path / "a.tif", TCZYX[0, 0, 0])
    with imread(tmp_path / "a.tif") as image:
        assert dict(image.to_xarray().coords) == {}


def test_metadata_are_those_of_what_is_selected(path):
    with imread(path) as image:
        pixels = image[1:, 1:, ::2, 10:].metadata.images[0].pixels
    assert [c.name for c in pixels.channels] == ["GFP"]
    assert (pixels.size_t, pixels.size_z, pixels.size_y, pixels.size_x) == (3, 2, 30, 50)
    assert (pixels.physical_size_z, pixels.physical_size_x) == (4.0, 0.5)


# ------------------------------------------------------------------ the file


@pytest.mark.skipif(not FILES.is_dir(), reason="no /proc here")
def test_a_forgotten_array_closes_its_file(path):
    gc.collect()
    before = len(list(FILES.iterdir()))
    for _ in range(5):
        image = imread(path)
        part = image[0, 1]
        part.compute()
        del image
        assert part.compute().shape == (3, 40, 50)  # a view keeps it open
        del part
    assert len(list(FILES.iterdir())) == before


@pytest.mark.skipif(not FILES.is_dir(), reason="no /proc here")
def test_a_file_is_closed_where_imread_fails(path):
    before = len(list(FILES.iterdir()))
    for more in ({"dims": "CZYX"}, {"channel": 7}, {"series": 3}):
        with pytest.raises((SpecError, RegionError)):
            imread(path, **more)
    assert len(list(FILES.iterdir())) == before


def test_the_package_offers_it():
    assert bioio_tk.imread is imread
    assert {"imread", "imwrite"} <= set(dir(bioio_tk))
