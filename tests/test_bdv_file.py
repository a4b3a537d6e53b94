"""The HDF5 side of a BDV dataset; what is written is read with h5py and with JHDF5."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from bdv_java import loaded
from hypothesis import given
from hypothesis import strategies as st
from images import coded

from bioio_tk.backends import base
from bioio_tk.backends._bdv_file import BdvFile, partition_files
from bioio_tk.backends._bdv_tree import Tree
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._hdf5_chunks import ChunkCodec
from bioio_tk.core.spec import Address
from bioio_tk.core.views import Mipmap, Scheme, ViewId
from bioio_tk.errors import (
    ClosedError,
    DamagedFileError,
    PixelTypeError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
    UnsupportedError,
)

h5py = pytest.importorskip("h5py")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE = (5, 37, 41)
FULL = Mipmap((1, 1, 1), (2, 16, 32))
HALF = Mipmap((1, 2, 2), (4, 16, 16))
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


def stack(view=(0, 0), size=SIZE, dtype="u2"):
    """Return the pixels of a view, Z, Y, X; each view has others."""
    return coded(size, dtype, seed=view[0] * 100 + view[1])


def scheme(dtype="u2", *mipmaps, **more):
    return Scheme(np.dtype(dtype), mipmaps or (FULL,), **more)


def picked(pixels, factor):
    """Return every so-manyth pixel: not what a pyramid has, but as good to tell levels apart."""
    return pixels[tuple(slice(None, None, f) for f in factor)]


def fill(sink, pixels, levels=None):
    """Store all tiles of some levels (all of them) of a sink."""
    factors = [(1, 1, 1), *[(z, y, x) for y, x, z in sink.factors]]
    for number in range(len(factors)) if levels is None else levels:
        image = picked(pixels, factors[number]).transpose(1, 2, 0)[..., None, None]
        grid = sink.images[0].levels[number].grid
        for key in grid.keys():  # noqa: SIM118 (no dict)
            at = Address(0, number, key)
            sink.store_tile(at, sink.encode_tile(at, image[grid.region(key).slices()]))


def put(file, view, pixels=None):
    pixels = stack(view) if pixels is None else pixels
    sink = file.begin_view(ViewId(*view), pixels.shape)
    fill(sink, pixels)
    sink.finish()


def seen(path, view=(0, 0), level=0, dtype="u2"):
    """Return the pixels of a view as h5py has them, in the type they were given in."""
    with h5py.File(path, "r") as file:
        data = file[f"t{view[0]:05d}/s{view[1]:02d}/{level}/cells"][...]
    return data.view("u2") if np.dtype(dtype) == np.uint16 else data


def same(path, views, level=0):
    for view in views:
        np.testing.assert_array_equal(seen(path, view, level), stack(view))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def file(tmp_path):
    with_setup = BdvFile.create(tmp_path / "x.h5")
    with_setup.add_setup(0, scheme())
    yield with_setup
    with_setup.close()


# ------------------------------------------------------------------ what is written


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_every_type_is_what_bdv_asks_for(tmp_path, dtype, compression):
    pixels = stack(dtype=dtype)
    path = tmp_path / "x.h5"
    file = BdvFile.create(path)
    file.add_setup(3, scheme(dtype, FULL, HALF, compression=compression))
    put(file, (7, 3), pixels)
    file.close()
    with h5py.File(path, "r") as found:
        said = found["s03"].attrs.get("dataType")
        assert said == (None if dtype == "u2" else np.dtype(dtype).name.encode())
        np.testing.assert_array_equal(found["s03/resolutions"], [[1, 1, 1], [2, 2, 1]])
        np.testing.assert_array_equal(found["s03/subdivisions"], [[32, 16, 2], [16, 16, 4]])
        assert found["s03/resolutions"].dtype == "<f8"
        assert found["s03/subdivisions"].dtype == "<i4"
        assert found["s03/resolutions"].maxshape == (None, 3)
        for level, factor in enumerate([(1, 1, 1), (1, 2, 2)]):
            data = found[f"t00007/s03/{level}/cells"]
            assert data.dtype == ("<i2" if dtype == "u2" else np.dtype(dtype).newbyteorder("<"))
            assert data.maxshape == (None, None, None)
            assert data.chunks == ((2, 16, 32), (4, 16, 16))[level]
            assert (data.compression, data.shuffle) == (
                ("gzip", True) if compression == "gzip" else (None, False)
            )
            expected = picked(pixels, factor)
            np.testing.assert_array_equal(data[...].view(pixels.dtype), expected)
            assert (data.fillvalue, data.attrs.keys()) == (0, set())


def test_no_chunk_is_longer_than_the_stack(tmp_path):
    path = tmp_path / "x.h5"
    file = BdvFile.create(path)
    file.add_setup(
        0, scheme("u1", Mipmap((1, 1, 1), (64, 64, 64)), Mipmap((2, 4, 4), (64, 64, 64)))
    )
    pixels = stack(size=(3, 1, 50), dtype="u1")
    put(file, (0, 0), pixels)
    file.close()
    with h5py.File(path, "r") as found:
        chunks = [found[f"t00000/s00/{level}/cells"].chunks for level in range(2)]
    assert chunks == [(3, 1, 50), (2, 1, 13)]
    np.testing.assert_array_equal(seen(path, dtype="u1"), pixels)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 4096, 4097, 5000])
def test_any_number_of_chunks(tmp_path, count):
    """An index has nodes of 64: of one level, of two, of three."""
    pixels = stack(size=(count, 2, 3), dtype="u1")
    path = tmp_path / "x.h5"
    file = BdvFile.create(path)
    file.add_setup(0, scheme("u1", Mipmap((1, 1, 1), (1, 2, 3)), compression="none"))
    put(file, (0, 0), pixels)
    file.close()
    np.testing.assert_array_equal(seen(path, dtype="u1"), pixels)
    with h5py.File(path, "r+") as found:  # and HDF5 can go on with it
        data = found["t00000/s00/0/cells"]
        data.resize((count + 70, 2, 3))
        data[count:] = 7
    expected = np.concatenate([pixels, np.full((70, 2, 3), 7, "u1")])
    np.testing.assert_array_equal(seen(path, dtype="u1"), expected)


def test_what_was_never_given_is_0(file):
    pixels = stack()
    sink = file.begin_view(ViewId(0, 0), SIZE)
    grid = sink.images[0].levels[0].grid
    expected = np.zeros(SIZE, "u2")
    image, left = pixels.transpose(1, 2, 0)[..., None, None], expected.transpose(1, 2, 0)
    for key in list(grid.keys())[1::3]:
        at, where = Address(0, 0, key), grid.region(key).slices()
        sink.store_tile(at, sink.encode_tile(at, image[where]))
        left[where[:3]] = image[where][..., 0, 0]
    assert sink.load_tile(Address(0, 0, (0, 0, 0, 0, 0))) is None
    sink.finish()
    file.add_setup(1, scheme())
    file.begin_view(ViewId(0, 1), SIZE).finish()  # nothing at all
    file.close()
    np.testing.assert_array_equal(seen(file.path), expected)
    assert not seen(file.path, (0, 1)).any()


def test_a_tile_given_again_is_the_last_one(file):
    sink = file.begin_view(ViewId(0, 0), SIZE)
    random = np.random.default_rng(0)
    at = Address(0, 0, (0, 0, 0, 0, 0))
    shape = sink.images[0].levels[0].tile
    for largest in (2, 60000, 2, 300):  # packed to few bytes, to many, to few
        tile = random.integers(0, largest, shape).astype("u2")
        sink.store_tile(at, sink.encode_tile(at, tile))
        np.testing.assert_array_equal(sink.load_tile(at), tile)
    sink.finish()
    file.close()
    depth, height, width = (2, 16, 32)
    found = seen(file.path)[:depth, :height, :width]
    np.testing.assert_array_equal(found, tile[..., 0, 0].transpose(2, 0, 1))


def test_without_the_full_resolution(tmp_path):
    path = tmp_path / "x.h5"
    file = BdvFile.create(path)
    quarter = Mipmap((2, 4, 4), (2, 8, 8))
    file.add_setup(0, scheme("u2", HALF, quarter))
    sink = file.begin_view(ViewId(0, 0), SIZE)
    assert [level.shape[:3] for level in sink.images[0].levels] == [
        (37, 41, 5), (19, 21, 5), (10, 11, 3),
    ]  # fmt: skip
    assert sink.factors == ((2, 2, 1), (4, 4, 2))
    at = Address(0, 0, (0, 0, 0, 0, 0))
    assert sink.load_tile(at) is None
    fill(sink, stack())
    with pytest.raises(UnsupportedError, match="full resolution"):
        sink.load_tile(at)
    sink.finish()
    assert file.shape(ViewId(0, 0)) == (5, 19, 21)
    with pytest.raises(UnsupportedError, match="full resolution"):
        file.begin_levels(ViewId(0, 0), SIZE, [FULL, HALF])
    file.close()
    np.testing.assert_array_equal(seen(path, level=0), picked(stack(), (1, 2, 2)))
    np.testing.assert_array_equal(seen(path, level=1), picked(stack(), (2, 4, 4)))
    with h5py.File(path, "r") as found:
        np.testing.assert_array_equal(found["s00/resolutions"], [[2, 2, 1], [4, 4, 2]])
        assert list(found["t00000/s00"]) == ["0", "1"]


def test_compressions_of_levels(tmp_path):
    path = tmp_path / "x.h5"
    file = BdvFile.create(path)
    file.add_setup(0, scheme("u2", FULL, HALF, compression="none", reduced_compression="gzip"))
    file.add_setup(1, scheme("u2", FULL, HALF, level=9))
    for setup in range(2):
        put(file, (0, setup))
    file.close()
    with h5py.File(path, "r") as found:
        names = [f"t00000/s{s:02d}/{level}/cells" for s in range(2) for level in range(2)]
        kinds = [(found[name].compression, found[name].compression_opts) for name in names]
    assert kinds == [(None, None), ("gzip", 1), ("gzip", 9), ("gzip", 9)]
    reopened = BdvFile.open(path, writable=False)
    assert [reopened.scheme(s).compression for s in range(2)] == ["none", "gzip"]
    assert reopened.scheme(0).reduced_compression == "gzip"
    assert reopened.scheme(1).level == 9
    reopened.close()


@pytest.mark.parametrize("name", ["lzf", "zstd"])
def test_what_fiji_cannot_read_is_written_all_the_same(tmp_path, name):
    if name != "lzf":
        pytest.importorskip("hdf5plugin")
    path = tmp_path / "x.h5"
    file = BdvFile.create(path)
    file.add_setup(0, scheme("u2", FULL, HALF, compression=name))  # who asks for it warns
    sink = file.begin_view(ViewId(0, 0), SIZE)
    fill(sink, stack())
    at = Address(0, 0, (0, 0, 0, 0, 0))
    expected = stack()[:2, :16, :32].transpose(1, 2, 0)[..., None, None]
    np.testing.assert_array_equal(sink.load_tile(at), expected)
    sink.finish()
    file.close()
    same(path, [(0, 0)])
    np.testing.assert_array_equal(seen(path, level=1), picked(stack(), (1, 2, 2)))
    reopened = BdvFile.open(path, writable=False)
    assert reopened.scheme(0).compression == name
    reopened.close()


def test_noise_that_lzf_cannot_pack_is_stored_as_it_is(tmp_path):
    path = tmp_path / "x.h5"
    pixels = np.random.default_rng(0).integers(0, 65536, SIZE).astype("u2")
    file = BdvFile.create(path)
    file.add_setup(0, scheme(compression="lzf"))
    put(file, (0, 0), pixels)
    file.close()
    np.testing.assert_array_equal(seen(path), pixels)


@given(
    dtype=st.sampled_from([*TYPES, ">u2", ">i4", ">f8", "c8", "c16", "?"]),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    seed=st.integers(0, 9),
)
def test_shuffled_chunks_are_those_of_hdf5(tmp_path, dtype, shape, seed):
    raw = np.random.default_rng(seed).integers(0, 256, np.dtype(dtype).itemsize * np.prod(shape))
    pixels = (raw % 2 if dtype == "?" else raw).astype("u1").view(dtype).reshape(shape)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("x", shape, dtype, chunks=shape, shuffle=True)
        data[...] = pixels
        data.flush()
        _, expected = data.id.read_direct_chunk((0, 0, 0))
    codec = ChunkCodec(shape, pixels.dtype, None, shuffle=True)
    found = np.asarray(codec.encode(pixels)).tobytes()
    stored = pixels.tobytes() if pixels.dtype.itemsize == 1 else expected
    assert found == stored
    assert codec.decode(expected).tobytes() == pixels.tobytes()


# ------------------------------------------------------------------ groups


def test_views_in_any_order(tmp_path):
    path = tmp_path / "x.h5"
    file = BdvFile.create(path)
    views = [(t, s) for t in (0, 1, 2, 99999, 100000, 123456) for s in (0, 7, 99, 100, 120)]
    small = (1, 2, 3)
    for setup in (120, 0, 99, 7, 100):
        file.add_setup(setup, scheme(compression="none"))
    for view in np.random.default_rng(1).permutation(views).tolist():
        put(file, view, stack(view, small))
    assert file.views() == tuple(map(tuple, sorted(views)))
    assert file.setups() == (0, 7, 99, 100, 120)
    file.close()
    for view in views:
        np.testing.assert_array_equal(seen(path, view), stack(view, small))
    with h5py.File(path, "r") as found:
        times = [name for name in found if name[0] == "t"]
        assert times == sorted(f"t{time:05d}" for time in (0, 1, 2, 99999, 100000, 123456))
        assert all(len(found[name]) == 5 for name in times)
    reopened = BdvFile.open(path, writable=False)
    assert reopened.views() == tuple(map(tuple, sorted(views)))
    assert reopened.shape(ViewId(123456, 120)) == small
    reopened.close()


NAMES = [f"t{n:05d}" for n in range(40)] + [f"s{n:02d}" for n in range(5)]
STEPS = st.lists(
    st.tuples(st.sampled_from(["link", "unlink", "reopen"]), st.sampled_from(NAMES),
              st.sampled_from([f"s{n:02d}" for n in range(30)])),
    min_size=1, max_size=120,
)  # fmt: skip


@given(steps=STEPS)
def test_groups_are_what_h5py_says_they_are(tmp_path, steps):
    path = tmp_path / "tree.h5"
    path.write_bytes(b"")
    file = RandomFile(path, writable=True)
    tree = Tree(file)
    expected = {}
    for number, (what, group, name) in enumerate(steps):
        if what == "reopen":
            tree = Tree(file)
            continue
        with tree.edit() as edit:
            if what == "link":
                edit.link((group, name), edit.add_group({f"n{number}": edit.add_group({})}))
                expected.setdefault(group, {})[name] = f"n{number}"
            else:
                edit.unlink((group, name))
                expected.get(group, {}).pop(name, None)
    file.close()
    with h5py.File(path, "r") as found:
        assert {g: {n: list(found[g][n]) for n in found[g]} for g in found} == {
            g: {n: [last] for n, last in members.items()} for g, members in expected.items()
        }
        for group, members in expected.items():  # by name, not only one after the other
            for name in (f"s{n:02d}" for n in range(30)):
                assert (f"{group}/{name}" in found) == (name in members)


def test_time_points_without_views_have_a_group(file):
    """Bio-Formats asks for the group of each time point up to the last one."""
    for time in (3, 1, 7):
        put(file, (time, 0))
        with h5py.File(file.path, "r") as found:
            there = [name for name in found if name[0] == "t"]
        assert there == [f"t{n:05d}" for n in range(len(there))]
    assert len(there) == 8
    assert file.views() == ((1, 0), (3, 0), (7, 0))
    put(file, (4, 0))
    put(file, (5000, 0))  # but not of thousands
    file.close()
    with h5py.File(file.path, "r") as found:
        assert len(found) == 1 + 8 + 1
        assert list(found["t00002"]) == []
    same(file.path, [(1, 0), (3, 0), (4, 0), (7, 0), (5000, 0)])


def test_time_points_without_views_have_a_group_where_readers_begin(tmp_path):
    file = BdvFile.create(tmp_path / "x.h5", times_per_file=2)
    file.add_setup(0, scheme())
    put(file, (3, 0))
    file.close()
    with h5py.File(file.path, "r") as found:
        assert list(found) == ["s00", "t00000", "t00001", "t00002", "t00003"]


def test_removing_a_file(tmp_path):
    path = tmp_path / "x.h5"
    mine = tmp_path / "x-77-77.h5"
    mine.write_bytes(b"mine")
    (tmp_path / "x-00.h5").write_bytes(b"mine, too")
    BdvFile.remove(path)
    file = BdvFile.create(path)
    with pytest.raises(TargetBusyError):
        BdvFile.remove(path)
    file.close()
    mine.unlink()
    BdvFile.remove(path)
    file = BdvFile.create(path, setups_per_file=1)
    file.add_setup(0, scheme())
    put(file, (0, 0))
    file.close()
    mine.write_bytes(b"mine")
    BdvFile.remove(path)
    assert sorted(there.name for there in tmp_path.iterdir()) == ["x-00.h5", "x-77-77.h5"]


def test_hdf5_goes_on_with_groups_of_ours(tmp_path):
    path = tmp_path / "x.h5"
    file = BdvFile.create(path)
    file.add_setup(0, scheme())
    for time in range(30):
        put(file, (time, 0))
    file.close()
    with h5py.File(path, "r+") as found:
        for n in range(100):
            found[f"t00003/x{n}"] = n
            found[f"t1{n:04d}/mine"] = n
        for time in range(0, 30, 2):
            del found[f"t{time:05d}"]
        found["s00"].attrs["dataType"] = "uint16"
    with h5py.File(path, "r") as found:
        assert [found[f"t00003/x{n}"][()] for n in range(100)] == list(range(100))
        assert [found[f"t1{n:04d}/mine"][()] for n in range(100)] == list(range(100))
        assert len(found) == 15 + 100 + 1
    same(path, [(time, 0) for time in range(1, 30, 2)])
    again = BdvFile.open(path, writable=True)  # and we with those of HDF5
    put(again, (2, 0))
    put(again, (3, 0), stack((9, 9)))
    again.close()
    same(path, [(2, 0), (5, 0)])
    np.testing.assert_array_equal(seen(path, (3, 0)), stack((9, 9)))
    with h5py.File(path, "r") as found:
        assert [found[f"t00003/x{n}"][()] for n in range(100)] == list(range(100))
        assert found["s00"].attrs["dataType"] == "uint16"


def test_java_reads_what_grew_in_any_order(tmp_path, java):
    path = tmp_path / "x.h5"
    file = BdvFile.create(path, times_per_file=50)
    views = [(t, s) for t in (*range(60), 100000) for s in (0, 3)]
    for setup in (3, 0):
        file.add_setup(setup, scheme())
    for view in np.random.default_rng(2).permutation(views).tolist():
        put(file, view)
    for view in views[::7]:
        file.remove_view(ViewId(*view))
    put(file, (1, 3), stack((8, 8)))
    file.close()
    with loaded(java, path) as dataset:
        for view in views:
            if view in views[::7]:
                assert not dataset.exists(view)
                continue
            expected = stack((8, 8)) if view == (1, 3) else stack(view)
            np.testing.assert_array_equal(dataset.pixels(view), expected)


# ------------------------------------------------------------------ views


def test_a_view_is_there_once_it_is_finished(file):
    sink = file.begin_view(ViewId(0, 0), SIZE)
    fill(sink, stack())
    assert not file.has(ViewId(0, 0))
    with h5py.File(file.path, "r") as found:
        assert list(found) == ["s00"]
    sink.finish()
    assert file.has(ViewId(0, 0))
    same(file.path, [(0, 0)])  # while the file is open
    sink.abort()
    sink.close()
    same(file.path, [(0, 0)])
    with pytest.raises(ClosedError):
        sink.load_tile(Address(0, 0, (0, 0, 0, 0, 0)))


def test_a_view_stays_until_its_successor_is_finished(file):
    put(file, (0, 0))
    other = stack((5, 5), (2, 50, 20))
    for end in ("abort", "close"):
        sink = file.begin_view(ViewId(0, 0), other.shape)
        fill(sink, other)
        getattr(sink, end)()
        same(file.path, [(0, 0)])
        assert file.shape(ViewId(0, 0)) == SIZE
    with h5py.File(file.path, "r") as before:
        put(file, (0, 0), other)
        old = before["t00000/s00/0/cells"][...].view("u2")
    np.testing.assert_array_equal(old, stack())  # who has it open reads on
    assert file.shape(ViewId(0, 0)) == other.shape
    file.close()
    np.testing.assert_array_equal(seen(file.path), other)


def test_what_was_not_finished_takes_no_room(tmp_path):
    sizes = []
    for number, ends in enumerate([(), ("abort",), ("abort", "close"), ("nothing",)]):
        file = BdvFile.create(tmp_path / f"{number}.h5")
        file.add_setup(0, scheme())
        put(file, (0, 0))
        for end in ends:
            sink = file.begin_view(ViewId(1, 0), SIZE)
            fill(sink, stack())
            if end != "nothing":
                getattr(sink, end)()
        file.close()
        same(file.path, [(0, 0)])
        sizes.append(file.path.stat().st_size)
    assert len(set(sizes)) == 1


def test_the_file_is_longer_than_it_has_to_be_while_it_is_written(file):
    """HDF5 looks at the length first, then at the end the file says it has, then at the root."""
    seen_before = (0, 0)
    for time in range(60):
        put(file, (time, 0))
        length, said = file.path.stat().st_size, end_of(file.path)
        root = int.from_bytes(file.path.read_bytes()[64:72], "little")
        assert length >= said > root
        if time > 2:
            assert seen_before[0] >= said
            assert seen_before[1] > root
        seen_before = (length, said)
    file.close()
    assert file.path.stat().st_size == end_of(file.path)


def end_of(path):
    """Return where a file says that it ends."""
    return int.from_bytes(path.read_bytes()[40:48], "little")


def test_a_view_that_is_given_up_harms_no_other(file):
    file.add_setup(1, scheme())
    one, other = (file.begin_view(ViewId(0, setup), SIZE) for setup in range(2))
    fill(one, stack())
    fill(other, stack((0, 1)))
    one.abort()
    put(file, (1, 0))
    other.finish()
    file.close()
    same(file.path, [(0, 1), (1, 0)])


def test_views_are_removed(file):
    for time in range(3):
        put(file, (time, 0))
    file.remove_view(ViewId(1, 0))
    assert file.views() == ((0, 0), (2, 0))
    with pytest.raises(SpecError, match="no view"):
        file.remove_view(ViewId(1, 0))
    put(file, (1, 0), stack((7, 7)))
    file.remove_view(ViewId(0, 0))
    file.close()
    np.testing.assert_array_equal(seen(file.path, (1, 0)), stack((7, 7)))
    same(file.path, [(2, 0)])
    with h5py.File(file.path, "r") as found:
        assert not list(found["t00000"])


def test_views_from_several_threads(tmp_path):
    path = tmp_path / "x.h5"
    file = BdvFile.create(path, times_per_file=3)
    for setup in range(4):
        file.add_setup(setup, scheme("u2", FULL, HALF))
    failures = []

    def write(setup):
        try:
            for time in range(8):
                put(file, (time, setup))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=write, args=(setup,)) for setup in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    file.close()
    same(path, product(range(8), range(4)))
    for view in product(range(8), range(4)):
        np.testing.assert_array_equal(seen(path, view, 1), picked(stack(view), (1, 2, 2)))


def test_it_is_what_the_engine_asks_for(file):
    sink: base.ViewSink = file.begin_view(ViewId(0, 0), SIZE)
    store: base.ViewStore = file
    assert sink.caps.parallel_store
    assert store.partitions == ()
    with pytest.raises(UnsupportedError):
        sink.grow(0, 2)


# ------------------------------------------------------------------ smaller resolutions later


@pytest.mark.parametrize("partitioned", [False, True])
def test_smaller_resolutions_come_later(tmp_path, partitioned):
    path = tmp_path / "x.h5"
    file = BdvFile.create(path, times_per_file=int(partitioned))
    file.add_setup(0, scheme("u2", FULL, compression="none"))
    for time in range(2):
        put(file, (time, 0))
    add_levels(file, [FULL, HALF, Mipmap((2, 4, 4), (1, 8, 8))], range(2))
    file.close()
    for time, (level, factor) in product(range(2), enumerate([(1, 1, 1), (1, 2, 2), (2, 4, 4)])):
        expected = picked(stack((time, 0)), factor)
        np.testing.assert_array_equal(seen(path, (time, 0), level), expected)
    for part in (path, *partition_files(path)):
        with h5py.File(part, "r") as found:
            np.testing.assert_array_equal(found["s00/resolutions"][2], [4, 4, 2])
    # others take their place
    again = BdvFile.open(path, writable=True)
    assert again.scheme(0).mipmaps[1].factor == (1, 2, 2)
    add_levels(again, [FULL, Mipmap((1, 4, 4), (4, 8, 8))], range(2))
    again.close()
    with h5py.File(path, "r") as found:
        assert list(found["t00001/s00"]) == ["0", "1"]
    np.testing.assert_array_equal(seen(path, (1, 0), 1), picked(stack((1, 0)), (1, 4, 4)))
    same(path, [(0, 0), (1, 0)])


def add_levels(file, mipmaps, times):
    for time in times:
        sink = file.begin_levels(ViewId(time, 0), SIZE, mipmaps)
        assert sink.factors == tuple((y, x, z) for z, y, x in (m.factor for m in mipmaps[1:]))
        grid = sink.images[0].levels[0].grid
        for key in grid.keys():  # noqa: SIM118 (no dict)
            expected = stack((time, 0)).transpose(1, 2, 0)[grid.region(key).slices()[:3]]
            found = sink.load_tile(Address(0, 0, key))
            np.testing.assert_array_equal(found[..., 0, 0], expected)
            with pytest.raises(UnsupportedError, match="stored already"):
                sink.encode_tile(Address(0, 0, key), found)
        fill(sink, stack((time, 0)), levels=range(1, len(mipmaps)))
        sink.finish()
    file.set_mipmaps(0, mipmaps)


def test_smaller_resolutions_are_those_of_the_view_that_is_there_now(file):
    put(file, (0, 0))
    add_levels(file, [FULL, HALF], [0])
    other = stack((6, 6))
    file.add_setup(0, file.scheme(0))
    put(file, (0, 0), other)
    sink = file.begin_levels(ViewId(0, 0), SIZE, [FULL, HALF])
    fill(sink, other, levels=[1])
    sink.finish()
    file.close()
    np.testing.assert_array_equal(seen(file.path), other)
    np.testing.assert_array_equal(seen(file.path, level=1), picked(other, (1, 2, 2)))


def test_smaller_resolutions_that_are_given_up(file):
    put(file, (0, 0))
    sink = file.begin_levels(ViewId(0, 0), SIZE, [FULL, HALF])
    fill(sink, stack(), levels=[1])
    sink.abort()
    for view, size in (((0, 0), (5, 37, 40)), ((3, 0), SIZE)):
        with pytest.raises(SpecError):
            file.begin_levels(ViewId(*view), size, [FULL, HALF])
    file.close()
    same(file.path, [(0, 0)])
    with h5py.File(file.path, "r") as found:
        assert list(found["t00000/s00"]) == ["0"]


# ------------------------------------------------------------------ partitions


def test_partitions_are_files_of_their_own(tmp_path):
    path = tmp_path / "a.b.h5"
    file = BdvFile.create(path, times_per_file=2, setups_per_file=3)
    for setup in range(5):
        file.add_setup(setup, scheme("u1", FULL, HALF))
    views = [view for view in product(range(3), range(5)) if view != (1, 4)]
    for view in views:
        put(file, view, stack(view, dtype="u1"))
    parts = file.partitions
    assert parts == (
        ("a.b-00-00.h5", (0, 1), (0, 1, 2)),
        ("a.b-00-01.h5", (0, 1), (3, 4)),
        ("a.b-01-00.h5", (2,), (0, 1, 2)),
        ("a.b-01-01.h5", (2,), (3, 4)),
    )
    file.close()
    moved = tmp_path / "moved"
    moved.mkdir()
    for there in (path, *partition_files(path)):
        there.rename(moved / there.name)
    path = moved / path.name
    for view in views:
        np.testing.assert_array_equal(seen(path, view, dtype="u1"), stack(view, dtype="u1"))
    for name, times, setups in parts:
        with h5py.File(moved / name, "r") as part:
            assert sorted(part) == sorted(
                [f"s{s:02d}" for s in setups] + [f"t{t:05d}" for t in times]
            )
            assert part[f"s{setups[0]:02d}"].attrs["dataType"] == b"uint8"
            np.testing.assert_array_equal(part[f"s{setups[0]:02d}/resolutions"][1], [2, 2, 1])
        view = (times[0], setups[0])
        found = seen(moved / name, view, dtype="u1")
        np.testing.assert_array_equal(found, stack(view, dtype="u1"))
    with h5py.File(path, "r") as master:
        link = master["t00002/s04/1"].get("cells", getlink=True)
        assert (link.filename, link.path) == ("a.b-01-01.h5", "/t00002/s04/1/cells")
    before = {there: digest(there) for there in moved.iterdir()}
    reader = BdvFile.open(path, writable=False)
    assert reader.views() == tuple(views)
    assert reader.shape(ViewId(2, 4)) == SIZE
    assert reader.scheme(4).dtype == np.uint8
    reader.close()
    assert {there: digest(there) for there in moved.iterdir()} == before


def test_partitions_of_another_dataset_stay(tmp_path):
    mine = tmp_path / "x-00-00.h5"
    mine.write_bytes(b"mine")
    with pytest.raises(TargetExistsError, match="x-00-00"):
        BdvFile.create(tmp_path / "x.h5", times_per_file=1)
    assert not (tmp_path / "x.h5").exists()
    BdvFile.create(tmp_path / "x.h5").close()
    assert mine.read_bytes() == b"mine"


def test_a_file_in_the_place_of_a_partition_stays(tmp_path):
    file = BdvFile.create(tmp_path / "x.h5", times_per_file=1)
    file.add_setup(0, scheme())
    put(file, (0, 0))
    mine = tmp_path / "x-01-00.h5"
    mine.write_bytes((tmp_path / "x-00-00.h5").read_bytes())  # of somebody else
    before = digest(mine)
    with pytest.raises(TargetExistsError, match="x-01-00"):
        file.begin_view(ViewId(1, 0), SIZE)
    put(file, (2, 0))
    file.close()
    assert digest(mine) == before
    same(file.path, [(0, 0), (2, 0)])


def test_a_view_of_a_partition_is_replaced_and_removed(tmp_path):
    path = tmp_path / "x.h5"
    file = BdvFile.create(path, times_per_file=1)
    file.add_setup(0, scheme())
    for time in range(2):
        put(file, (time, 0))
    put(file, (0, 0), stack((4, 4)))
    file.remove_view(ViewId(1, 0))
    file.close()
    np.testing.assert_array_equal(seen(path), stack((4, 4)))
    with h5py.File(tmp_path / "x-01-00.h5", "r") as part:
        assert "t00001/s00" not in part


# ------------------------------------------------------------------ what makes no sense


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (scheme("?"), PixelTypeError, "bool"),
        (scheme("f2"), PixelTypeError, "float16"),
        (scheme("c8"), PixelTypeError, "complex64"),
        (scheme(compression="jpeg"), SpecError, "jpeg"),
        (scheme(compression="none", level=3), SpecError, "no levels"),
        (scheme(level=10), SpecError, "0 to 9"),
        (scheme(compression="lzf", level=1), SpecError, "no levels"),
        (scheme(reduced_compression="jpeg"), SpecError, "jpeg"),
        (scheme("u2", Mipmap((1, 1, 1), (0, 4, 4))), SpecError, "block"),
        (scheme("u2", FULL, Mipmap((1, 0, 2), (4, 4, 4))), SpecError, "factor"),
        (scheme("u2", FULL, FULL), SpecError, "differ"),
        (scheme("u2", Mipmap((1, 1, 1), (2**12, 2**12, 2**8))), SpecError, "4 GB"),
        (Scheme(np.dtype("u2"), ()), SpecError, "at least one"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_a_byte_is_written(file, given, error, text):
    before = digest(file.path)
    with pytest.raises(error, match=text):
        file.add_setup(1, given)
    assert digest(file.path) == before
    assert file.setups() == (0,)


def test_setups_are_entered_once(file):
    before = digest(file.path)
    file.add_setup(0, scheme())
    assert digest(file.path) == before
    for other in (scheme("u1"), scheme("u2", FULL, HALF), scheme("u2", HALF)):
        with pytest.raises(SpecError, match="setup 0"):
            file.add_setup(0, other)
    with pytest.raises(SpecError, match="setup 5"):
        file.begin_view(ViewId(0, 5), SIZE)
    with pytest.raises(SpecError, match="-1"):
        file.add_setup(-1, scheme())
    for size in ((0, 4, 4), (4, 4), (1, 1, 1, 1)):
        with pytest.raises(SpecError, match="3 sizes"):
            file.begin_view(ViewId(0, 0), size)
    with pytest.raises(SpecError, match="time=-1"):
        file.begin_view(ViewId(-1, 0), SIZE)
    assert digest(file.path) == before


def test_later_stacks_may_be_packed_in_another_way(file):
    put(file, (0, 0))
    file.add_setup(0, scheme(compression="none"))
    with pytest.raises(SpecError, match="jpeg"):
        file.add_setup(0, scheme(compression="jpeg"))
    put(file, (1, 0))
    file.close()
    same(file.path, [(0, 0), (1, 0)])
    with h5py.File(file.path, "r") as found:
        kinds = [found[f"t{time:05d}/s00/0/cells"].compression for time in range(2)]
    assert kinds == ["gzip", None]


def test_files_that_are_there_stay(tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(b"mine")
    with pytest.raises(TargetExistsError, match="exists"):
        BdvFile.create(path)
    assert path.read_bytes() == b"mine"
    path.write_bytes(b"")
    BdvFile.create(path).close()
    with h5py.File(path, "r") as found:
        assert not list(found)
    with pytest.raises(FileNotFoundError):
        BdvFile.open(tmp_path / "none.h5", writable=True)
    with pytest.raises(FileNotFoundError):
        BdvFile.open(tmp_path / "none.h5", writable=False)
    with pytest.raises(FileNotFoundError):
        BdvFile.create(tmp_path / "none" / "x.h5")
    with pytest.raises(SpecError, match="times_per_file"):
        BdvFile.create(tmp_path / "y.h5", times_per_file=-1)
    assert sorted(there.name for there in tmp_path.iterdir()) == ["x.h5"]


def test_nothing_works_after_close(file):
    sink = file.begin_view(ViewId(0, 0), SIZE)
    file.close()
    file.close()
    at, tile = Address(0, 0, (0,) * 5), stack()[..., None, None]
    begin = lambda: file.begin_view(ViewId(0, 0), SIZE)  # noqa: E731
    for call in (file.flush, begin, lambda: sink.encode_tile(at, tile)):
        with pytest.raises(ClosedError):
            call()


# ------------------------------------------------------------------ files of others


def foreign(path, **options):
    """Make a file as npy2bdv does, with things of its own."""
    with h5py.File(path, "w", **options) as file:
        for setup in range(2):
            file[f"s{setup:02d}/resolutions"] = np.array([[1, 1, 1], [2, 2, 1]], "f8")
            file[f"s{setup:02d}/subdivisions"] = np.array([[32, 16, 2], [16, 16, 4]], "i4")
            for time in range(20):
                pixels = stack((time, setup)).view("i2")
                name = f"t{time:05d}/s{setup:02d}"
                chunks = (3, 7, 19) if time else None
                packed = "gzip" if time == 1 else None
                file.create_dataset(
                    f"{name}/0/cells", data=pixels, chunks=chunks, compression=packed
                )
                file[f"{name}/1/cells"] = picked(pixels, (1, 2, 2))
        file["s00"].attrs["mine"] = "kept"
        file["t00001"].attrs["exposure"] = 3.5
        file["notes/by me"] = [1, 2, 3]
        file["alias"] = h5py.SoftLink("/notes")
    return path


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"track_order": True}], ids=str)
def test_reading_changes_nothing(tmp_path, options):
    path = foreign(tmp_path / "x.h5", **options)
    before, changed = digest(path), path.stat().st_mtime_ns
    file = BdvFile.open(path, writable=False)
    assert file.setups() == (0, 1)
    assert file.views() == tuple(product(range(20), range(2)))
    assert file.shape(ViewId(3, 1)) == SIZE
    found = file.scheme(0)
    assert (found.dtype, [m.factor for m in found.mipmaps]) == (np.uint16, [(1, 1, 1), (1, 2, 2)])
    calls = (
        lambda: file.begin_view(ViewId(0, 0), SIZE),
        lambda: file.add_setup(5, scheme()),
        lambda: file.remove_view(ViewId(0, 0)),
        lambda: file.set_mipmaps(0, [FULL]),
    )
    for call in calls:
        with pytest.raises(SpecError, match="opened to read"):
            call()
    file.close()
    assert (digest(path), path.stat().st_mtime_ns) == (before, changed)


def test_files_of_others_are_written_on(tmp_path):
    path = foreign(tmp_path / "x.h5")
    file = BdvFile.open(path, writable=True)
    put(file, (1, 0), stack((9, 9)))
    put(file, (40, 1))
    file.remove_view(ViewId(7, 0))
    add_levels(file, [FULL, Mipmap((2, 4, 4), (2, 8, 8))], range(2, 6))
    assert file.scheme(1).mipmaps[1].factor == (1, 2, 2)
    file.close()
    np.testing.assert_array_equal(seen(path, (1, 0)), stack((9, 9)))
    there = [view for view in product(range(20), range(2)) if view not in ((1, 0), (7, 0))]
    same(path, [*there, (40, 1)])
    with h5py.File(path, "r") as found:
        assert "t00007/s00" not in found
        assert found["s00"].attrs["mine"] == "kept"
        assert found["t00001"].attrs["exposure"] == 3.5
        assert found["alias/by me"][...].tolist() == [1, 2, 3]
        np.testing.assert_array_equal(found["s00/resolutions"], [[1, 1, 1], [4, 4, 2]])
        np.testing.assert_array_equal(found["s01/resolutions"], [[1, 1, 1], [2, 2, 1]])
    np.testing.assert_array_equal(seen(path, (4, 0), 1), picked(stack((4, 0)), (2, 4, 4)))
    np.testing.assert_array_equal(seen(path, (4, 1), 1), picked(stack((4, 1)), (1, 2, 2)))


REAL = [
    *("bdv/mri_stack/mri-stack.h5", "bdv/pybdv_example/example.h5"),
    *("gen/bdv/npy2bdv_plain.h5", "gen/bdv/npy2bdv_gzip_pyramid.h5"),
]


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_written_on(tmp_path, name):
    """What Fiji, pybdv and npy2bdv have written stays, to the last pixel, beside what is new."""
    origin = SHARED / name
    if not origin.exists():
        pytest.skip(f"{origin} is not there")
    path = tmp_path / "x.h5"
    path.write_bytes(origin.read_bytes())
    path.chmod(0o644)
    reader = BdvFile.open(path, writable=False)
    setup, known = reader.setups()[0], set(reader.views())
    reader.close()
    assert digest(path) == digest(origin)
    file = BdvFile.open(path, writable=True)
    pixels = stack(dtype=file.scheme(setup).dtype)
    view = ViewId(max(view.time for view in known) + 1, setup)
    put(file, view, pixels)
    file.close()
    with h5py.File(path, "r") as found, h5py.File(origin, "r") as before:

        def check(name, node):
            for key, value in node.attrs.items():
                assert str(found[name].attrs[key]) == str(value)
            if isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf":
                np.testing.assert_array_equal(found[name], node)
            else:
                assert name in found

        before.visititems(check)
        levels = len(before[f"s{setup:02d}/resolutions"])
        assert len(found[f"t{view.time:05d}/s{setup:02d}"]) == levels
    np.testing.assert_array_equal(seen(path, view, dtype=pixels.dtype), pixels)
    again = BdvFile.open(path, writable=False)
    assert set(again.views()) == known | {view}
    again.close()


@pytest.mark.parametrize("options", [{"libver": "latest"}, {"userblock_size": 512}], ids=str)
def test_newer_layouts_are_not_changed(tmp_path, options):
    path = foreign(tmp_path / "x.h5", **options)
    before = digest(path)
    with pytest.raises(UnsupportedError, match="not changed"):
        BdvFile.open(path, writable=True)
    assert digest(path) == before


def test_groups_of_the_newer_kind_are_not_changed(tmp_path):
    path = foreign(tmp_path / "x.h5", track_order=True)
    before = digest(path)
    file = BdvFile.open(path, writable=True)
    sink = file.begin_view(ViewId(0, 0), SIZE)
    with pytest.raises(UnsupportedError, match="read but not changed"):
        sink.finish()
    file.close()
    assert digest(path) == before


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("left", [0, 7, 100, 5000])
def test_damaged_files(tmp_path, left, writable):
    path = foreign(tmp_path / "x.h5")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DamagedFileError, match=r"x\.h5"):
        BdvFile.open(path, writable=writable)
    path.write_bytes(b"something else" * 100)
    with pytest.raises(DamagedFileError, match=r"x\.h5"):
        BdvFile.open(path, writable=writable)


def test_nothing_is_added_to_a_file_whose_end_is_missing(tmp_path):
    path = foreign(tmp_path / "x.h5")
    path.write_bytes(path.read_bytes()[:-1])
    file = RandomFile(path, writable=True)
    with pytest.raises(DamagedFileError, match="its end is missing"):
        Tree(file)
    file.close()


def test_a_broken_chunk_is_named(tmp_path):
    path = tmp_path / "x.h5"
    file = BdvFile.create(path)
    file.add_setup(0, scheme())
    put(file, (0, 0))
    with h5py.File(path, "r") as found:
        at = found["t00000/s00/0/cells"].id.get_chunk_info_by_coord((2, 16, 32)).byte_offset
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"\0" * 20)
    sink = file.begin_levels(ViewId(0, 0), SIZE, [FULL, HALF])
    keys = list(sink.images[0].levels[0].grid.keys())
    with pytest.raises(DamagedFileError, match=r"\(2, 16, 32\)"):
        [sink.load_tile(Address(0, 0, key)) for key in keys]
    file.close()


# ------------------------------------------------------------------ two at once

BUSY = """
import sys
from pathlib import Path
from bioio_tk.backends._bdv_file import BdvFile
from bioio_tk.errors import TargetBusyError
try:
    BdvFile.open(Path(sys.argv[1]), writable=True)
except TargetBusyError as exc:
    print(exc)
else:
    sys.exit("two writers")
print(len(BdvFile.open(Path(sys.argv[1]), writable=False).views()))
"""
READ = """
import sys, h5py
with h5py.File(sys.argv[1], "r") as file:
    pixel = file["t00000/s00/0/cells"][1, 2, 3]
    print(sum(len(file[name]) for name in file if name[0] == "t"), pixel)
"""
WRITE = """
import sys, h5py
try:
    h5py.File(sys.argv[1], "r+")
except OSError as exc:
    print(exc)
else:
    sys.exit("two writers")
"""


def child(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the locks of Linux")
def test_one_writes_and_others_read(file):
    put(file, (0, 0))
    sink = file.begin_view(ViewId(1, 0), SIZE)
    fill(sink, stack((1, 0)))
    out = child(BUSY, file.path)
    assert "another program" in out
    assert out.endswith("\n1\n")
    assert child(READ, file.path) == f"1 {stack().view('i2')[1, 2, 3]}\n"
    assert "lock" in child(WRITE, file.path)
    with pytest.raises(TargetBusyError, match=r"x\.h5"):
        BdvFile.open(file.path, writable=True)
    sink.finish()
    assert child(READ, file.path) == f"2 {stack().view('i2')[1, 2, 3]}\n"
    file.close()
    BdvFile.open(file.path, writable=True).close()
    with h5py.File(file.path, "r+"), pytest.raises(TargetBusyError):
        BdvFile.open(file.path, writable=True)
