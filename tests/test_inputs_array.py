"""Arrays of every library as images: the pixels are NumPy's, and only what is wanted is asked."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import coded

from bioio_tk.errors import ClosedError, FormatError, PixelTypeError, SpecError, UnsupportedError
from bioio_tk.inputs.open import open_input
from bioio_tk.reader import BioReader

SHAPE = (20, 33, 3, 2, 4)  # Y, X, Z, C, T
IMAGE = coded(SHAPE)
TCZYX = np.ascontiguousarray(IMAGE.transpose(4, 3, 2, 0, 1))


def numpy_array(_):
    return TCZYX


def fortran(_):
    return np.asfortranarray(TCZYX)


def big_endian(_):
    return TCZYX.astype(">u2")


def memmap(folder):
    np.save(folder / "a.npy", TCZYX)
    return np.load(folder / "a.npy", mmap_mode="r")


def dask_array(_):
    return pytest.importorskip("dask.array").from_array(TCZYX, chunks=(1, 2, 2, 16, 16))


def zarr_array(folder):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(
        folder / "a.zarr", shape=TCZYX.shape, dtype="u2", chunks=(1, 1, 2, 16, 16)
    )
    array[:] = TCZYX
    return array


def h5py_dataset(folder):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("g/mov", data=TCZYX, chunks=(1, 1, 2, 16, 16), compression="gzip")
    return h5py.File(folder / "a.h5", "r")["g/mov"]


def tensorstore_array(folder):
    zarr_array(folder)
    ts = pytest.importorskip("tensorstore")
    place = {"driver": "file", "path": str(folder / "a.zarr")}
    return ts.open({"driver": "zarr3", "kvstore": place}).result()


def xarray_array(_):
    return pytest.importorskip("xarray").DataArray(TCZYX, dims=tuple("tczyx"))


KINDS = [
    numpy_array, fortran, big_endian, memmap, dask_array, zarr_array, h5py_dataset,
    tensorstore_array, xarray_array,
]  # fmt: skip


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
class TestEveryKindOfArray:
    def test_has_the_pixels_of_numpy(self, make, tmp_path):
        image, owned = open_input(make(tmp_path))
        assert (owned, image.shape, image.dtype) == (True, SHAPE, np.dtype("u2"))
        np.testing.assert_array_equal(image, IMAGE)
        np.testing.assert_array_equal(image[3:9, ::-2, 1, [1, 0]], IMAGE[3:9, ::-2, 1, [1, 0]])
        np.testing.assert_array_equal(image.reader[2:19:3, 17:, 0:3:2], IMAGE[2:19:3, 17:, 0:3:2])
        image.close()
        with pytest.raises(ClosedError):
            image.compute()

    def test_can_be_read_by_threads(self, make, tmp_path):
        image, _ = open_input(make(tmp_path))
        with image, ThreadPoolExecutor(4) as pool:
            planes = list(pool.map(lambda t: np.asarray(image[..., t]), range(SHAPE[4])))
        np.testing.assert_array_equal(np.stack(planes, -1), IMAGE)

    def test_goes_to_another_process(self, make, tmp_path):
        image, _ = open_input(make(tmp_path))
        with image:
            sent = tmp_path / "sent"
            sent.write_bytes(pickle.dumps(image[:, 5:, :, 1]))
        # the child has nothing but the file
        code = (
            "import pickle, sys, numpy; a = pickle.load(open(sys.argv[1], 'rb'));"
            "numpy.save(sys.argv[2], a.compute())"
        )
        target = tmp_path / "got.npy"
        done = subprocess.run(
            [sys.executable, "-c", code, sent, target],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(target), IMAGE[:, 5:, :, 1])


def test_a_mapped_file_is_sent_as_its_name_whatever_is_picked_of_it(tmp_path):
    whole = memmap(tmp_path)
    part = whole[1:, :, ::-1, 3::2, 2:]
    image, _ = open_input(part)
    sent = pickle.dumps(image)
    assert len(sent) < 4000 < part.nbytes
    again = pickle.loads(sent)
    twice = pickle.loads(pickle.dumps(again))
    assert len(pickle.dumps(again)) < 4000
    want = TCZYX[1:, :, ::-1, 3::2, 2:].transpose(3, 4, 2, 1, 0)
    for got in (image, again, twice):
        np.testing.assert_array_equal(got, want)
    assert [p.name for p in image.reader.used_files] == ["a.npy"]


class Watched:
    """An array that says what was asked of it."""

    def __init__(self, pixels, chunks=None):
        self.pixels, self.asked = pixels, []
        self.shape, self.dtype = pixels.shape, pixels.dtype
        if chunks:
            self.chunks = chunks

    def __getitem__(self, key):
        self.asked.append(key)
        return self.pixels[key]


def test_chunks_are_tiles_and_nothing_is_asked_before_it_is_wanted():
    array = Watched(TCZYX, (2, 1, 1, 16, 32))
    image, _ = open_input(array)
    assert image.chunks == (16, 32, 1, 1, 2)
    view = image[:16, :32, 1, 1]
    assert array.asked == []
    np.testing.assert_array_equal(view[..., 0], IMAGE[:16, :32, 1, 1, 0])
    assert array.asked == [(slice(0, 2), slice(1, 2), slice(1, 2), slice(0, 16), slice(0, 32))]


def test_an_array_without_chunks_is_read_in_bands(monkeypatch):
    monkeypatch.setattr("bioio_tk.inputs.array._BAND", 33 * 2 * 8)
    image, _ = open_input(TCZYX)
    assert image.chunks == (8, 33, 1, 1, 1)
    np.testing.assert_array_equal(image, IMAGE)


@pytest.mark.parametrize(("ndim", "dims"), [(2, "YX"), (3, "TYX"), (4, "TZYX"), (5, "TCZYX")])
def test_axes_without_names_go_by_their_number(ndim, dims):
    array = np.arange(2**ndim, dtype="u1").reshape((2,) * (ndim - 2) + (1, 4))
    image, _ = open_input(array)
    sizes = dict(zip(dims, array.shape, strict=True))
    assert image.shape == tuple(sizes.get(axis, 1) for axis in "YXZCT")
    np.testing.assert_array_equal(image.transpose("TCZYX").squeeze(), array.squeeze())
    assert any("nothing names" in note for note in image.reader.notes) == (ndim > 2)


@given(data=st.data(), order=st.permutations("YXZCT"), count=st.integers(2, 5))
def test_dims_name_the_axes_in_any_order(data, order, count):
    dims = "".join(order)[:count]
    for axis in "YX":
        if axis not in dims:
            dims = dims + axis if len(dims) < 5 else dims
    if not set("YX") <= set(dims):
        return
    sizes = [data.draw(st.integers(1, 4)) for _ in dims]
    array = coded(tuple(sizes))
    image, _ = open_input(array, dims=data.draw(st.sampled_from([dims, dims.lower()])))
    np.testing.assert_array_equal(image.transpose("YXZCT"), np.asarray(image))
    picked = image.transpose(dims + "".join(a for a in "YXZCT" if a not in dims))
    np.testing.assert_array_equal(np.asarray(picked).reshape(array.shape), array)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: np.zeros(5), "has 1 axes; an image has 2 to 5"),
        (lambda _: np.zeros((1,) * 6), "has 6 axes; .*pick one of the others first"),
        (lambda _: np.zeros((5, 0, 3)), "has no pixels"),
        (lambda _: np.ma.zeros((4, 4)), "an image has no mask"),
        (lambda _: {"a": 1}, "does not say how large"),
        (lambda _: 7, "is no image; give a path"),
        (lambda _: None, "is no image; give a path"),
        (lambda _: [], "an empty list"),
        (lambda _: [1, 2], "1 in the list .a int. is no image"),
    ],
)
def test_what_is_no_image_is_refused_with_what_would_be(make, says):
    with pytest.raises(SpecError, match=says):
        open_input(make(None))


@pytest.mark.parametrize("dtype", [object, "U3", "M8[s]", [("a", "u1"), ("b", "u2")]])
def test_what_are_no_pixels_is_refused(dtype):
    with pytest.raises(PixelTypeError, match="cannot be a pixel type"):
        open_input(np.zeros((3, 3), dtype))


@pytest.mark.parametrize(
    ("dims", "says"),
    [
        ("TZYX", "names 4 axes, the array has 3"),
        ("TYY", "each at most once"),
        ("AYX", "one of the letters"),
        ("TZC", "has a Y and an X"),
        (3, "give a letter for each axis"),
    ],
)
def test_dims_that_do_not_fit_are_refused(dims, says):
    with pytest.raises(SpecError, match=says):
        open_input(np.zeros((2, 3, 4)), dims=dims)


def test_series_and_level_of_an_array_are_refused():
    with pytest.raises(SpecError, match="one image at one resolution"):
        open_input(TCZYX, series=1)


def test_an_array_that_fails_says_where(tmp_path):
    class Broken(Watched):
        def __getitem__(self, key):
            raise KeyError("no such chunk")

    image, _ = open_input(Broken(TCZYX, (1, 1, 1, 20, 33)))
    with pytest.raises(FormatError, match=r"Y=0:20, X=0:33, Z=1:2.*KeyError") as caught:
        image[:, :, 1, 0, 0].compute()
    assert isinstance(caught.value.__cause__, KeyError)


class Terabyte:
    """Pixels made when they are asked for: each plane is filled with its number."""

    shape, dtype, ndim = (500, 32768, 32768), np.dtype("u2"), 3

    def __init__(self):
        self.made = []

    def __getitem__(self, key):
        self.made.append(key)
        t, y, x = (range(n)[k] for n, k in zip(self.shape, key, strict=True))
        return np.broadcast_to(np.array(t, "u2")[:, None, None], (len(t), len(y), len(x)))


def test_the_mean_of_a_plane_of_a_dask_terabyte_makes_only_that_plane():
    da = pytest.importorskip("dask.array")
    pixels = Terabyte()
    image = da.from_array(pixels, chunks=(1, 4096, 4096), name=False, meta=np.zeros((0,) * 3, "u2"))
    assert image.nbytes > 10**12
    view, _ = open_input(image, dims="TYX")
    plane = view[:8192, :, 0, 0, 7]
    assert pixels.made == []
    assert plane.mean() == 7
    starts = sorted((k[0].start, k[1].start, k[2].start) for k in pixels.made)
    assert starts == [(7, y, x) for y in (0, 4096) for x in range(0, 32768, 4096)]


def test_xarray_says_sizes_units_origin_and_channels():
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(
        TCZYX[:, :, 0],
        dims=("time", "channel", "y", "x"),
        coords={
            "time": ("time", np.arange(4) * 0.5, {"units": "s"}),
            "channel": ["DAPI", "GFP"],
            "y": ("y", 10 + np.arange(20) * 0.25, {"units": "micrometer"}),
            "x": ("x", np.arange(33) * 250.0, {"units": "nm"}),
        },
        name="cells",
    )
    image, _ = open_input(array)
    np.testing.assert_array_equal(image, IMAGE[:, :, :1])
    spec = image.spec
    assert [c.name for c in spec.channels] == ["DAPI", "GFP"]
    assert spec.physical_size == ((250.0, "nm"), (0.25, "µm"), None)
    assert spec.position == (None, (10.0, "µm"), None)
    assert (spec.time_increment, spec.name) == ((0.5, "s"), "cells")


def test_xarray_coordinates_that_are_not_even_or_have_no_unit_are_noted():
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(
        np.zeros((3, 4), "u1"), dims=("y", "x"), coords={"y": [0.0, 1.0, 5.0], "x": [0, 2, 4, 6]}
    )
    image, _ = open_input(array)
    assert image.spec.physical_size == ((2.0, "reference frame"), None, None)
    notes = " ".join(image.reader.notes)
    assert "'y' are not evenly spaced" in notes
    assert "'x' have no unit" in notes


def test_names_of_zarr_and_hdf5_axes_count(tmp_path):
    zarr, h5py = pytest.importorskip("zarr"), pytest.importorskip("h5py")
    named = zarr.create_array(
        tmp_path / "b.zarr", shape=(2, 3, 4), dtype="u1", dimension_names=["z", "y", "x"]
    )
    assert open_input(named)[0].shape == (3, 4, 2, 1, 1)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        data = file.create_dataset("a", data=np.zeros((2, 3, 4), "u1"))
        for dim, label in zip(data.dims, "cyx", strict=True):
            dim.label = label
        assert open_input(data)[0].shape == (3, 4, 1, 2, 1)
    odd = zarr.create_array(
        tmp_path / "c.zarr", shape=(2, 3, 4), dtype="u1", dimension_names=["angle", "y", "x"]
    )
    with pytest.raises(UnsupportedError, match="axis 'angle'"):
        open_input(odd)
    assert open_input(odd, dims="CYX")[0].shape == (3, 4, 1, 2, 1)


def test_a_reader_of_an_array_is_a_reader(tmp_path):
    image, _ = open_input(TCZYX)
    with image.reader as reader:
        assert isinstance(reader, BioReader)
        assert (reader.backend, reader.n_series, reader.levels) == ("array", 1, 1)
        assert "numpy.ndarray of shape (4, 2, 3, 20, 33)" in repr(reader)
        assert dict(reader.labels) == {}
        assert (reader.plate, reader.used_files, reader.original_metadata) == (None, (), {})
        assert reader.metadata.images[0].pixels.size_z == 3
        tiles = np.zeros(SHAPE, "u2")
        for tile in reader.tiles(8):
            tiles[tile.slices] = tile.data.reshape(tiles[tile.slices].shape)
        np.testing.assert_array_equal(tiles, IMAGE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_reads_on(tmp_path):
    code = """
import os, sys, numpy as np
from bioio_tk.inputs.open import open_input
array = np.arange(4 * 50 * 60, dtype="u2").reshape(4, 50, 60)
image, _ = open_input(array)
assert (np.asarray(image.transpose("TYXZC")).squeeze() == array).all()
child = os.fork()
if not child:
    ok = (np.asarray(image.transpose("TYXZC")).squeeze() == array).all()
    os._exit(0 if ok else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
