"""LazyArray: numpy's own rule for indexing, and nothing is read until it is wanted."""

from __future__ import annotations

import builtins
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.errors import BackendMissingError, RegionError, SpecError
from bioio_tk.lazy import LazyArray

SHAPE = (20, 18, 3, 2, 4)
IMAGE = coded(SHAPE)


@pytest.fixture
def reader(tmp_path):
    path = tmp_path / "a.mem"
    with BioWriter(path, image=IMAGE, tile_size=16):
        pass
    with BioReader(path) as br:
        yield br


def ordered_as(dims):
    return IMAGE.transpose(["YXZCT".index(axis) for axis in dims])


@pytest.mark.parametrize("dims", ["YXZCT", "TCZYX", "ZTXCY", "tczyx"])
def test_axes_come_in_any_order(reader, dims):
    view, want = LazyArray(reader, dims), ordered_as(dims.upper())
    assert (view.shape, view.dims, view.ndim, view.size) == (want.shape, dims.upper(), 5, want.size)
    assert (view.dtype, view.nbytes, len(view)) == (want.dtype, want.nbytes, len(want))
    np.testing.assert_array_equal(view, want)


@pytest.mark.parametrize("dims", ["YXZC", "YXZCTT", "YXZCC", "", "abcde"])
def test_an_order_that_names_not_each_axis_once_is_refused(reader, dims):
    with pytest.raises(SpecError, match="must name each of Y, X, Z, C, T once"):
        LazyArray(reader, dims)


@st.composite
def basic(draw, shape):
    """Return ints and slices with an ellipsis somewhere, and perhaps one list or mask."""
    bounds = st.none() | st.integers(-9, 9)
    key = []
    for size in shape:
        slices = st.builds(slice, bounds, bounds, st.none() | st.sampled_from([1, 2, -1, -3]))
        key.append(draw(slices | slices | st.integers(-size, size - 1) if size else slices))
    cut, last = draw(st.integers(0, len(key))), len(key)
    if draw(st.booleans()):
        last = draw(st.integers(cut, len(key)))
        return (*key[:cut], ..., *key[last:])
    return tuple(key[:cut])


@given(data=st.data(), dims=st.permutations("YXZCT"))
def test_any_chain_of_basic_keys_is_as_in_numpy(reader, data, dims):
    view, want = LazyArray(reader, "".join(dims)), ordered_as(dims)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(basic(want.shape))
        view, want = view[key], np.asarray(want[key])
        assert view.shape == want.shape
        got = np.asarray(view)
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, want)


@given(data=st.data())
def test_one_axis_may_be_picked_with_a_list_or_a_mask(reader, data):
    axis = data.draw(st.integers(0, 4))
    n = SHAPE[axis]
    item = data.draw(
        st.lists(st.integers(-n, n - 1), max_size=5)
        | st.lists(st.booleans(), min_size=n, max_size=n)
    )
    kind = np.array(item, bool if item and item[0] in (True, False) and len(item) == n else int)
    key = (slice(None),) * axis + (kind,)
    np.testing.assert_array_equal(reader.array[key], IMAGE[key])
    again = reader.array[::-1][key]
    np.testing.assert_array_equal(again[..., ::2], IMAGE[::-1][key][..., ::2])


def test_a_list_then_an_int_then_a_slice(reader):
    view = reader.array[:, :, [2, 0]][..., 1, :][::-2, 3]
    np.testing.assert_array_equal(view, IMAGE[:, :, [2, 0]][..., 1, :][::-2, 3])
    assert view.dims == "YZT"


def test_a_view_without_axes_is_an_array_of_one_number(reader):
    view = reader.array[1, 2, 0, 1, 3]
    assert (view.shape, view.ndim, view.size, view.dims) == ((), 0, 1, "")
    got = np.asarray(view)
    assert isinstance(got, np.ndarray)
    assert got.shape == ()
    assert got == IMAGE[1, 2, 0, 1, 3]
    assert int(view.compute()) == IMAGE[1, 2, 0, 1, 3]
    with pytest.raises(TypeError, match="without axes"):
        len(view)


def test_nothing_is_read_before_it_is_wanted(reader, monkeypatch):
    view = reader.array[3:9, ..., 0]

    def refuse(*_, **__):
        raise AssertionError("pixels were read")

    monkeypatch.setattr(type(reader), "_read5", refuse)
    view = view[::2, [1, 3], 0]
    assert view.shape == (3, 2, 2)
    assert repr(view) == "<LazyArray YXC (3, 2, 2) uint16>"
    with pytest.raises(AssertionError, match="pixels were read"):
        np.asarray(view)


def test_only_what_is_wanted_is_read(reader, monkeypatch):
    asked = []
    real = type(reader)._read5
    monkeypatch.setattr(
        type(reader), "_read5", lambda self, s: asked.append(s.shape) or real(self, s)
    )
    reader.array[3:9, 5, :, 1, ::-1].compute()
    assert asked == [(6, 1, 3, 1, 4)]


def test_asarray_takes_a_type_but_cannot_avoid_a_copy(reader):
    assert np.asarray(reader.array[0, 0], dtype="f8").dtype == np.float64
    with pytest.raises(ValueError, match="reading them makes an array"):
        np.array(reader.array, copy=False)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (20, "Y index 20 is out of range: the array has Y=20"),
        ((0, 0, -4), "Z index -4"),
        ((0,) * 6, "6 indices for an array with 5 axes"),
        ((..., ...), "indices for an array"),
        (([0], [1]), "pick one axis at a time"),
        (True, "Y index True"),
        (1.5, "Y index 1.5"),
        (np.array(1.5), "Y index"),
        ("a", "Y index 'a'"),
        ([20], "Y index .20.*out of bounds"),
        ([0.5], "Y index"),
        ([True] * 3, "Y index.*boolean"),
        ([[0, 1]], "2 axes"),
        ([[0], [1, 2]], "Y index"),
        (slice(0.5, 2), "Y index"),
        (slice(None, None, 0), "Y index"),
    ],
    ids=str,
)
def test_an_index_that_does_not_fit_is_a_region_error(reader, key, says):
    with pytest.raises(RegionError, match=says):
        reader.array[key]


def test_chunks_are_the_tiles_of_the_file(reader):
    assert reader.array.chunks == (16, 16, 1, 1, 1)
    assert LazyArray(reader, "TCZYX")[0, :, :, 3:7].chunks == (1, 1, 4, 16)
    assert reader.array[:0].chunks[0] == 1


def test_a_view_can_be_pickled(tmp_path):
    path = tmp_path / "a.ome.tif"
    with BioWriter(path, image=IMAGE, tile_size=16):
        pass
    with BioReader(path) as br:
        view = pickle.loads(pickle.dumps(br.array[::-3, 5]))
        np.testing.assert_array_equal(view, IMAGE[::-3, 5])
        view._reader.close()


def test_to_dask_and_to_xarray_give_the_same_pixels(reader):
    dask = pytest.importorskip("dask")
    pytest.importorskip("dask.array")
    pytest.importorskip("xarray")
    view = LazyArray(reader, "TCZYX")[1, :, ::-1]
    blocks = view.to_dask()
    assert blocks.chunks[-1] == (16, 2)
    named = view.to_xarray()
    assert named.dims == ("C", "Z", "Y", "X")
    with ThreadPoolExecutor(4) as pool, dask.config.set(pool=pool):
        np.testing.assert_array_equal(blocks[..., ::2, 3].compute(), np.asarray(view)[..., ::2, 3])
        np.testing.assert_array_equal(named.isel(C=1, Y=slice(3, 9)), np.asarray(view)[1, :, 3:9])


@pytest.mark.parametrize(("name", "method"), [("dask", "to_dask"), ("xarray", "to_xarray")])
def test_a_missing_package_is_named_with_what_to_install(reader, monkeypatch, name, method):
    real = builtins.__import__

    def without(module, *args, **more):
        if module.split(".")[0] == name:
            raise ImportError(module)
        return real(module, *args, **more)

    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendMissingError, match=rf"'{name}': pip install 'bioio-tk\[dask\]'"):
        getattr(reader.array, method)()
