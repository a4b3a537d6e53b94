"""The contract: what every backend in the table must do. No test here names a format.

Expected values come from NumPy, a plain loop or a reader of somebody else (`oracles`).
"""

from __future__ import annotations

import gc
import os
import pickle
import threading
from functools import partial
from itertools import count, product

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import CASES, DTYPES, all_positions, coded, picked, put, shapes_of_levels, smaller

from bioio_tk import BioReader, BioWriter
from bioio_tk.backends.registry import load_sink, load_source
from bioio_tk.core.spec import Address
from bioio_tk.errors import (
    BackendError,
    ClosedError,
    PixelTypeError,
    ReadOnlyError,
    RegionError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
    UnsupportedError,
)
from conftest import open_files

_fresh = count()
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def fresh(path):
    """Return another path, for tests that make several files."""
    return path.with_name(f"{next(_fresh)}-{path.name}")


def content(path):
    """Return all bytes of a file, or of the files of a folder."""
    if path.is_dir():
        return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {name: path.with_name(name).read_bytes() for name in oracles.files_of(path)}


def writer(path, case, dtype="u2", **more):
    given = {"max_workers": 3, "tile_size": case.tile, "samples_per_pixel": case.samples} | more
    return begun(path, shape=case.shape, dtype=dtype, **given)


def begun(path, **given):
    """Return a writer; skip the test where its format may refuse such an image, and does."""
    try:
        return BioWriter(path, **given)
    except UnsupportedError as exc:  # refused, not garbled
        dtype = given["dtype"] if "dtype" in given else given["image"].dtype
        samples = given.get("samples_per_pixel", 1)
        if not oracles.may_refuse(path, dtype, samples, given.get("pyramid")):
            raise
        assert not path.exists()
        assert not path.with_name(f"{path.name}.partial").exists()
        pytest.skip(f"refused: {exc}")


def stored(path, case, dtype="u2", **more):
    """Write a coded image; return it."""
    image = coded(case.shape, dtype)
    with writer(path, case, dtype, **more) as bw:
        bw[...] = image
    return image


def whole(path, **more):
    """Return all pixels, with five axes."""
    with BioReader(path, **more) as br:
        return br[...].reshape(br.shape)


def same(path, image, backend, level=0):
    """Check the pixels with our reader and with somebody else's."""
    np.testing.assert_array_equal(whole(path, level=level), image)
    other = getattr(oracles, backend.name)(path, level)
    if other is not None:
        np.testing.assert_array_equal(other.reshape(image.shape), image)
        # a format may hold bool as bytes of 0 and 1
        assert other.dtype == image.dtype or (image.dtype == bool and other.dtype == np.uint8)


# ------------------------------------------------------------------ whole images


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_image_comes_back(backend, path, case, dtype):
    image = stored(path, case, dtype)
    with BioReader(path) as br:
        assert (br.shape, br.dtype, br.samples_per_pixel) == (
            case.shape,
            np.dtype(dtype),
            case.samples,
        )
        assert br.dtype.isnative
    same(path, image, backend)


def test_there_is_an_outside_reader_for_every_backend(backend):
    assert callable(getattr(oracles, backend.name))


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_does_not_change_pixels(path, case, workers):
    image = stored(path, case, max_workers=workers)
    np.testing.assert_array_equal(whole(path, max_workers=1), image)
    np.testing.assert_array_equal(whole(path, max_workers=4), image)


@pytest.mark.parametrize("tile", [16, 32, (16, 48), (64, 16), 1024])
def test_tiles_of_any_size(backend, path, tile):
    image = coded((70, 83, 1, 2, 1))
    with BioWriter(path, image=image, tile_size=tile):
        pass
    same(path, image, backend)


def test_a_result_has_contiguous_planes(path):
    stored(path, CASES["5d"])
    with BioReader(path) as br:
        pixels = br[...]
        assert pixels[:, :, 1, 1, 1].flags.c_contiguous
        part = br[3:11, 2:9]
        assert part[:, :, 2, 0, 1].flags.c_contiguous
        pixels[...] = 0  # the caller's own memory
        assert pixels.flags.writeable
        assert br[...].any()


def test_a_result_is_nobody_elses_memory(path):
    image = stored(path, CASES["ragged"])
    with BioReader(path) as br:
        br[3, 4][...] = 9
        br[:20, :20][...] = 9
        np.testing.assert_array_equal(br[...], image[..., 0, 0, 0])
    np.testing.assert_array_equal(whole(path), image)


# ------------------------------------------------------------------ reading any region


def items(size):
    """Return a strategy for whatever may stand between brackets for one axis."""
    ints = st.integers(-size, size - 1)
    bounds = st.none() | st.integers(-size - 2, size + 2)
    steps = st.none() | st.sampled_from([1, 2, 3, 7, -1, -2, -5])
    masks = st.lists(st.booleans(), min_size=size, max_size=size)
    return st.one_of(
        ints,
        ints.map(np.int64),
        st.builds(slice, bounds, bounds, steps),
        st.builds(slice, bounds, bounds, steps),
        st.lists(ints, max_size=7),
        st.lists(ints, min_size=1, max_size=7).map(tuple),
        st.lists(ints, max_size=7).map(lambda v: np.array(v, np.int32)),
        masks,
        masks.map(np.array),
        st.just(range(size)),
    )


@st.composite
def keys(draw, shape, *, unique=False):
    """Return a strategy for a key: up to five items, an ellipsis somewhere, or one bare item."""
    given = [draw(items(size)) for size in shape]
    if unique:  # where a position given twice would make the expected value a matter of order
        pairs = zip(given, shape, strict=True)
        given = [item if _once(item, n) else slice(None) for item, n in pairs]
    cut = draw(st.integers(0, 5))
    style = draw(st.sampled_from(["all", "few", "dots", "bare"]))
    if style == "few":
        return tuple(given[:cut])
    if style == "dots":
        last = draw(st.integers(cut, 5))
        return (*given[:cut], Ellipsis, *given[last:])
    if style == "bare" and not isinstance(given[0], tuple):
        return given[0]
    return tuple(given)


def _once(item, size):
    where = all_positions((item, ...), (size, 1, 1, 1, 1))[0]
    return len(set(where)) == len(where)


@given(data=st.data())
def test_any_key_reads_what_plain_indexing_gives(path, case, data):
    image = coded(case.shape)
    if not path.exists():
        stored(path, case)
    key = data.draw(keys(case.shape))
    want = picked(image, key)
    with BioReader(path, max_workers=2) as br:
        got = br[key]
    assert got.shape == want.shape
    np.testing.assert_array_equal(got, want)


@given(data=st.data())
def test_many_keys_on_one_reader_do_not_disturb_each_other(path, data):
    case = CASES["5d"]
    image = coded(case.shape)
    if not path.exists():
        stored(path, case)
    with BioReader(path, max_workers=2) as br:
        for key in data.draw(st.lists(keys(case.shape), min_size=2, max_size=6)):
            np.testing.assert_array_equal(br[key], picked(image, key))


def test_an_int_keeps_its_axis_and_trailing_ones_go(path):
    image = stored(path, CASES["5d"])
    with BioReader(path) as br:
        assert br[5].shape == (1, 18, 3, 2, 2)
        assert br[:, :, 0, 0, 0].shape == (20, 18)
        assert br[:, 5, 0, 0, 0].shape == (20, 1)
        assert br[5, 5, 0, 0, 0].shape == (1, 1)
        assert br[..., 1, :, 0].shape == (20, 18, 1, 2)
        assert br[3:3].shape == (0, 18, 3, 2, 2)
        np.testing.assert_array_equal(br[:, :, 1, 0, 1], image[:, :, 1, 0, 1])


def test_read_takes_ranges_for_xyz_and_positions_for_ct(path):
    image = stored(path, CASES["5d"])
    with BioReader(path) as br:
        got = br.read(X=[2, 9], Y=(1, 20), Z=[0, 3], C=[1], T=(1, 0))
        np.testing.assert_array_equal(got, image[1:20, 2:9, 0:3, 1:2, [1, 0]])
        np.testing.assert_array_equal(br.read(), image)
        np.testing.assert_array_equal(br.read(Z=1, C=0, T=0), image[:, :, 1, 0, 0])
        np.testing.assert_array_equal(br.read(X=slice(None, None, -3)), image[:, ::-3])
        np.testing.assert_array_equal(br.read(Z=np.int64(2), T=[1]), image[:, :, 2:3, :, 1])


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ((20,), "Y index 20 is out of range: the image has Y=20"),
        ((0, -19), "X index -19 .*X=18"),
        ((0, 0, [0, 3]), "Z index 3 .*Z=3"),
        ((0, 0, 0, np.array([-3])), "C index -3 .*C=2"),
        ((..., [True]), "T mask has 1 entries, but the image has T=2"),
        ((np.zeros(0, bool),), "Y mask has 0 entries"),
        ((0, 0, 0, 0, 0, 0), "6 given"),
        ((..., 0, ...), "only one ellipsis"),
        ((1.5,), "Y index 1.5 is a float"),
        ((True,), "Y index True is a bool"),
        ((None,), "Y index None"),
        (("a",), "Y index 'a' is a str"),
        (([1.5, 2],), "Y index .* is a list"),
        (([[1], [1, 2]],), "Y index .* is a list"),
        (([[1, 2]],), "2 axes"),
        ((slice(None, None, 0),), "Y slice .*zero"),
        ((slice(0.5, 3),), "Y slice"),
    ],
    ids=str,
)
def test_a_key_that_does_not_fit_is_a_region_error(path, key, says):
    case = CASES["5d"]
    stored(path, case)
    with BioReader(path) as br, pytest.raises(RegionError, match=says):
        br[key]
    other = fresh(path)
    with pytest.raises(RegionError, match=says), writer(other, case) as bw:
        bw[key] = 1
    assert not list(path.parent.glob(f"{other.name}*"))


# ------------------------------------------------------------------ writing any region


def pieces(shape, height, width):
    """Return the corners of the pieces of an image, one by one."""
    y, x, z, c, t = shape
    corners = product(range(0, y, height), range(0, x, width), range(z), range(c), range(t))
    for a, b, k, i, n in corners:
        yield (slice(a, a + height), slice(b, b + width), k, i, n)


@pytest.mark.parametrize("order", ["in order", "backwards", "random"])
def test_writing_in_odd_pieces_equals_writing_at_once(backend, path, case, order):
    image = coded(case.shape)
    todo = list(pieces(case.shape, 5, 7))
    if order == "backwards":
        todo.reverse()
    if order == "random":
        np.random.default_rng(5).shuffle(todo)
    with writer(path, case) as bw:
        for key in todo:
            bw[key] = picked(image, key)
    same(path, image, backend)


@given(data=st.data())
def test_any_sequence_of_writes_ends_as_in_numpy(backend, path, case, data):
    """Unaligned, overlapping, again, with steps, lists and masks, whole and in parts."""
    path = fresh(path)
    image = np.zeros(case.shape, "u2")
    with writer(path, case) as bw:
        for number in range(data.draw(st.integers(1, 5))):
            key = data.draw(keys(case.shape, unique=True))
            block = [len(p) for p in all_positions(key, case.shape)]
            value = coded(block, "u2", seed=number + 1)
            put(image, key, value)
            bw[key] = value
    same(path, image, backend)


def test_a_position_given_twice_takes_the_last_value(backend, path):
    case = CASES["ragged"]
    image = np.zeros(case.shape, "u2")
    with writer(path, case) as bw:
        bw[[3, 3, 20, 3]] = coded((4, 21, 1, 1, 1))
    put(image, [3, 3, 20, 3], coded((4, 21, 1, 1, 1)))
    same(path, image, backend)


def test_several_threads_write_one_image(backend, path, case):
    image = coded(case.shape)
    todo = list(pieces(case.shape, 6, 10))  # several in each tile, from several threads
    np.random.default_rng(1).shuffle(todo)
    with writer(path, case) as bw:

        def work(mine):
            for key in mine:
                bw[key] = picked(image, key)

        together([lambda n=n: work(todo[n::6]) for n in range(6)])
    same(path, image, backend)


def together(jobs):
    """Run the jobs in threads that start at the same moment; raise what one of them raises."""
    gate, errors = threading.Barrier(len(jobs)), []

    def call(job):
        gate.wait()
        try:
            job()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=call, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_that_write_the_same_tile_row_by_row_lose_nothing(backend, path):
    image = coded((64, 16, 1, 1, 1))
    with BioWriter(path, shape=image.shape, dtype="u2", tile_size=64, max_workers=2) as bw:

        def rows(first):
            for y in range(first, 64, 8):
                bw[y] = image[y]

        together([lambda n=n: rows(n) for n in range(8)])
    same(path, image, backend)


def test_pixels_never_written_are_zero(backend, path, case):
    image = np.zeros(case.shape, "u2")
    with writer(path, case) as bw:
        bw[-1, -1, -1, -1, -1] = 9
    image[-1, -1, -1, -1, -1] = 9
    same(path, image, backend)


def test_an_image_without_pixels_written_is_all_zero(backend, path):
    with BioWriter(path, X=40, Y=30, Z=2, dtype="f4", tile_size=16):
        pass
    same(path, np.zeros((30, 40, 2, 1, 1), "f4"), backend)


def test_rewriting_counts_the_last_value(backend, path, case):
    image = coded(case.shape)
    with writer(path, case) as bw:
        bw[...] = image
        bw[...] = image + 1
        bw[1:, :3] = 7
        bw[0, 0, 0, 0, 0] = 3
    image = image + 1
    image[1:, :3] = 7
    image[0, 0, 0, 0, 0] = 3
    same(path, image, backend)


def test_write_places_an_array_at_its_first_pixel(backend, path):
    case = CASES["5d"]
    image = np.zeros(case.shape, "u2")
    with writer(path, case) as bw:
        bw.write(np.full((4, 5), 1, "u2"))
        bw.write(np.full((4, 5), 2, "u2"), Y=7, X=[13], Z=2, C=1, T=1)
        bw.write(np.full((2, 3, 1, 1, 2), 3, "u2"), Y=18, X=(0, 3), T=[1, 0])
        with pytest.raises(RegionError, match="5 pixels from X=14 on do not fit"):
            bw.write(np.zeros((4, 5), "u2"), X=14)
        with pytest.raises(RegionError, match="Y=-1"):
            bw.write(np.zeros((4, 5), "u2"), Y=-1)
    image[:4, :5, 0, 0, 0] = 1
    image[7:11, 13:, 2, 1, 1] = 2
    image[18:, :3, 0, 0] = 3
    same(path, image, backend)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (np.s_[...], ()),
        (np.s_[...], (20, 18)),
        (np.s_[...], (20, 18, 1, 2)),
        (np.s_[...], (20, 1, 3, 1, 2)),
        (np.s_[:, :, 0, 1, 1], (20, 18)),
        (np.s_[:, :, 0, 1, 1], (1, 18)),
        (np.s_[:, :, 0, 1, 1], (18,)),
        (np.s_[3, :, :, 0], (18, 3, 2)),
        (np.s_[3, :, :, 0], (1, 18, 3, 1, 2)),
        (np.s_[3, 4, :, :, 0], (3, 2)),
        (np.s_[::2, ::-3, [2, 0], 1, :], (10, 6, 2, 2)),
        (np.s_[2:9, 5, 0, 0, 0], (7, 1)),
        (np.s_[2:9, 5, 0, 0, 0], (7,)),
    ],
    ids=str,
)
def test_values_broadcast_as_in_numpy(backend, path, key, shape):
    case = CASES["5d"]
    value = coded((*shape, 1, 1, 1, 1, 1)[:5]).reshape(shape)
    image = np.zeros(case.shape, "u2")
    with writer(path, case) as bw:
        bw[key] = value
    for at in np.ndindex(*case.shape):
        image[at] = _broadcast_value(value, key, at, case.shape)
    same(path, image, backend)


def _broadcast_value(value, key, at, shape):
    """Return what the pixel `at` must hold: by position in `key`, axis by axis."""
    where = all_positions(key, shape)
    if any(a not in p for a, p in zip(at, where, strict=True)):
        return 0
    index = [p.index(a) for a, p in zip(at, where, strict=True)]
    lengths = [len(p) for p in where]
    full = key if isinstance(key, tuple) else (key,)
    kept = [n for n in range(5) if n >= len(full) or not isinstance(full[n], int)]
    for axes in (range(value.ndim), kept[len(kept) - value.ndim :]):  # our own rule, then NumPy's
        pairs = list(zip(value.shape, axes, strict=True))
        if all(n in (1, lengths[a]) for n, a in pairs):
            return value[tuple(0 if n == 1 else index[a] for n, a in pairs)]
    raise AssertionError("the test's own table is wrong")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (np.s_[:, :, 0, 0, 0], (18, 20)),
        (np.s_[:, :, 0, 0, 0], (20, 17)),
        (np.s_[...], (20, 18, 2)),
        (np.s_[:5], (6, 18)),
        (np.s_[...], (20, 18, 3, 2, 2, 1, 2)),
    ],
)
def test_values_of_a_wrong_shape_are_refused_before_a_byte_is_written(path, key, shape):
    with pytest.raises(SpecError, match="do not fit"), writer(path, CASES["5d"]) as bw:
        bw[key] = np.zeros(shape, "u2")
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    "value", [np.zeros((20, 18), "i4"), np.float32(1), -1, 1.5, 70000, [[0.5]]]
)
def test_values_of_a_wrong_type_are_refused_before_a_byte_is_written(path, value):
    with pytest.raises(PixelTypeError), writer(path, CASES["5d"]) as bw:
        bw[:, :, 0, 0, 0] = value
    assert not list(path.parent.iterdir())


def test_other_byte_orders_and_memory_layouts_are_stored_right(backend, path):
    case = CASES["5d"]
    image = coded(case.shape)
    for pixels in (image.astype(">u2"), np.asfortranarray(image), image[::-1, ::-1][::-1, ::-1]):
        path = fresh(path)
        with writer(path, case) as bw:
            bw[...] = pixels
        same(path, image, backend)


def test_cast_converts_on_purpose(backend, path):
    with BioWriter(path, shape=(4, 4), dtype="u1", cast="clip") as bw:
        bw[...] = np.full((4, 4), 300.7)
    same(path, np.full((4, 4, 1, 1, 1), 255, "u1"), backend)


# ------------------------------------------------------------------ pyramids


@pytest.mark.parametrize("dtype", ["u1", "i2", "u8", "f4", "bool"])
def test_pyramid_levels_are_means_of_the_one_above(backend, path, case, dtype):
    image = stored(path, case, dtype, pyramid=3)
    check_pyramid(path, image, backend, 3)


@pytest.mark.parametrize("method", ["nearest", "mode", "median", "max"])
def test_pyramids_of_other_methods(backend, path, method):
    image = coded((37, 21, 1, 2, 1), "u1") % 5
    with begun(path, image=image, tile_size=16, pyramid=4, downsample=method):
        pass
    check_pyramid(path, image, backend, 4, method)


def check_pyramid(path, image, backend, levels, method="mean"):
    shapes = shapes_of_levels(image.shape, levels)
    with BioReader(path) as br:
        assert br.level_shapes == shapes
    direct = hasattr(load_sink(backend), "factors")  # each level from the full resolution
    want = image
    for level in range(len(shapes)):
        same(path, want, backend, level)
        want = smaller(image, method, 2 << level) if direct else smaller(want, method)


@pytest.mark.parametrize("seed", range(4))
def test_a_pyramid_is_right_after_rewriting_parts(backend, path, seed):
    rng = np.random.default_rng(seed)
    image = np.zeros((53, 71, 1, 2, 1), "u2")
    with begun(path, shape=image.shape, dtype="u2", tile_size=16, pyramid=4) as bw:
        for number in range(12):
            y, x = rng.integers(0, 50, 2)
            h, w = rng.integers(1, 40, 2)
            key = np.s_[y : y + h, x : x + w, :, number % 2 : 2]
            value = coded(image[key].shape, "u2", seed=number)
            bw[key] = value
            image[key] = value
    check_pyramid(path, image, backend, 4)


def test_a_pyramid_of_a_rewritten_image_is_that_of_the_last_pixels(backend, path):
    image = coded((48, 32, 1, 1, 1))
    with begun(path, shape=image.shape, dtype="u2", tile_size=16, pyramid=3) as bw:
        bw[...] = coded(image.shape, seed=4)
        bw[...] = image
        bw[20:23, 5:9] = 7
    image[20:23, 5:9] = 7
    check_pyramid(path, image, backend, 3)


def test_threads_make_one_pyramid(backend, path):
    image = coded((96, 96, 1, 1, 1))
    todo = list(pieces(image.shape, 16, 16))
    with begun(path, shape=image.shape, dtype="u2", tile_size=16, pyramid=4) as bw:

        def work(mine):
            for key in mine:
                bw[key] = picked(image, key)

        together([lambda n=n: work(todo[n::8]) for n in range(8)])
    check_pyramid(path, image, backend, 4)


def test_a_level_is_an_image_of_its_own(path):
    image = coded((300, 290, 1, 1, 1))
    with begun(path, image=image, pyramid=True, tile_size=64, physical_size_x=(0.5, "µm")):
        pass
    with BioReader(path, level=-1) as br:
        assert (br.level, br.levels, br.shape) == (1, 2, (150, 145, 1, 1, 1))
        assert br.physical_size_x == (1.0, "µm")
        np.testing.assert_array_equal(br[3:9, ::-2], smaller(image)[3:9, ::-2, 0, 0, 0])
    with pytest.raises(SpecError, match="level=2 does not exist; there are 2"):
        BioReader(path, level=2)
    with pytest.raises(SpecError, match="series=1 does not exist; there are 1"):
        BioReader(path, series=1)


# ------------------------------------------------------------------ parts and tiles of a backend


@given(data=st.data())
def test_a_part_of_a_tile_equals_the_same_part_of_the_whole_tile(backend, path, case, data):
    """The fast path of a backend skips work; it must not be another algorithm."""
    stored(path, case) if not path.exists() else None
    source = load_source(backend)(path)
    try:
        if not hasattr(source, "read_part"):
            return
        grid = source.images[0].levels[0].grid
        key = data.draw(st.sampled_from(sorted(grid.keys())))
        at = Address(0, 0, key)
        part = tuple(data.draw(parts(n)) for n in grid.tile_shape(key))
        want = source.read_tile(at)[part]
        out = np.zeros(want.shape, want.dtype)
        if source.read_part(at, part, out):
            np.testing.assert_array_equal(out, want)
    finally:
        source.close()


@st.composite
def parts(draw, size):
    start = draw(st.integers(0, size - 1))
    return slice(start, draw(st.integers(start + 1, size)), draw(st.sampled_from([1, 1, 2, 3])))


@given(data=st.data())
def test_planes_read_together_equal_planes_read_one_by_one(backend, path, case, data):
    image = coded(case.shape)
    stored(path, case, compression="none") if not path.exists() else None
    source = load_source(backend)(path)
    try:
        if not hasattr(source, "read_planes"):
            return
        z, c, t = (st.integers(0, n - 1) for n in case.shape[2:])
        planes = data.draw(st.lists(st.tuples(z, c, t), min_size=1, max_size=9))
        out = np.zeros((len(planes), *case.shape[:2]), image.dtype)
        if source.read_planes(0, 0, planes, out):
            for got, (z, c, t) in zip(out, planes, strict=True):
                np.testing.assert_array_equal(got, image[:, :, z, c, t])
    finally:
        source.close()


def test_tiles_cover_the_image_once(backend, path, case):
    image = stored(path, case)
    source = load_source(backend)(path)
    try:
        grid = source.images[0].levels[0].grid
        seen = np.zeros(case.shape, int)
        for key in sorted(grid.keys()):
            where = grid.region(key).slices()
            np.testing.assert_array_equal(source.read_tile(Address(0, 0, key)), image[where])
            seen[where] += 1
        assert (seen == 1).all()
    finally:
        source.close()


# ------------------------------------------------------------------ sharing a reader


def test_a_reader_shared_by_threads_gives_each_its_own_region(path):
    case = CASES["5d"]._replace(shape=(70, 90, 3, 2, 2))
    image = stored(path, case)
    with BioReader(path, max_workers=4) as br:

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(40):
                y, x = rng.integers(0, 60, 2)
                h, w, step = rng.integers(1, 50), rng.integers(1, 50), rng.integers(1, 4)
                key = np.s_[y : y + h : step, x : x + w, rng.integers(3), :, rng.integers(2)]
                np.testing.assert_array_equal(br[key], picked(image, key))

        together([partial(work, n) for n in range(8)])


def test_a_reader_can_be_pickled(path):
    image = stored(path, CASES["ragged"], pyramid=2)
    with BioReader(path, max_workers=2, level=1) as br:
        with pickle.loads(pickle.dumps(br)) as twin:
            assert (twin.level, twin.max_workers, twin.shape) == (1, 2, br.shape)
            np.testing.assert_array_equal(twin[...], smaller(image)[..., 0, 0, 0])
        br.close()
        copy = pickle.loads(pickle.dumps(br))
        with pytest.raises(ClosedError):
            copy[0]


@FORKS
def test_a_reader_is_right_in_a_forked_child_while_the_parent_reads_in_threads(path):
    case = CASES["ragged"]._replace(shape=(150, 140, 1, 3, 1))
    image = stored(path, case)
    stop = threading.Event()
    with BioReader(path, max_workers=4) as br:

        def work():
            while not stop.is_set():
                br[...]

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            codes = [in_child(lambda: right_or_refused(br, image)) for _ in range(5)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert codes == [0] * 5
        np.testing.assert_array_equal(br[:, :, 0, 2, 0], image[:, :, 0, 2, 0])


def right_or_refused(br, image):
    """Return whether a reader gives the image, or says that it cannot be used in this process."""
    try:
        return np.array_equal(br[...], image[..., 0])
    except BackendError:
        return not load_source(br._choice.backend).caps.forks


def in_child(check):
    """Fork, let the child check something, and return 0 where it was so."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ------------------------------------------------------------------ closing


def test_closing_lets_go_of_the_file_while_the_reader_lives(path):
    stored(path, CASES["5d"])
    br = BioReader(path)
    br[0]
    br.close()
    br.close()
    assert not open_files(path.parent)
    for use in (lambda: br[0], br.read, br.array.compute, lambda: next(br.tiles(16))):
        with pytest.raises(ClosedError, match=r"the reader of '.*' is closed"):
            use()
    assert br.shape == CASES["5d"].shape
    assert "closed" in repr(br)


def test_a_reader_forgotten_without_close_keeps_no_file_open(path):
    stored(path, CASES["ragged"])
    BioReader(path)[0]
    gc.collect()
    assert not open_files(path.parent)


def test_a_closed_writer_says_so(path):
    bw = writer(path, CASES["ragged"])
    bw[0] = 1
    bw.close()
    bw.close()
    bw.abort()
    for use in (lambda: bw.write(np.zeros((1, 1), "u2")), lambda: bw.__setitem__(0, 1)):
        with pytest.raises(ClosedError, match=r"the writer of '.*' is closed"):
            use()
    assert whole(path)[0].all()
    assert not open_files(path.parent)


def test_a_pickled_reader_whose_file_is_gone_says_so_when_it_is_used(path):
    """Not when it is unpickled: that would end the workers of a pool, one after the other."""
    stored(path, CASES["ragged"])
    with BioReader(path) as br:
        pickled = pickle.dumps(br)
    path.rename(fresh(path))
    twin = pickle.loads(pickled)
    for use in (lambda: twin.shape, lambda: twin[0, 0], lambda: twin.ome_xml, lambda: repr(twin)):
        with pytest.raises(FileNotFoundError, match="there is no"):
            use()
    twin.close()
    with pytest.raises(AttributeError):
        BioReader.__getattr__(twin, "__array_interface__")


def test_a_writer_cannot_be_pickled(path):
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(writer(path, CASES["ragged"]))


# ------------------------------------------------------------------ the target


class Stop(Exception):
    """What goes wrong in the body of a `with`."""


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("written", [False, True])
def test_an_exception_in_the_body_leaves_the_target_as_it_was(path, written, kind):
    with pytest.raises(kind), writer(path, CASES["5d"]) as bw:  # noqa: PT012
        if written:
            bw[...] = 1
        raise kind
    assert not list(path.parent.iterdir())
    image = stored(path, CASES["ragged"])
    before = content(path)
    with pytest.raises(kind), writer(path, CASES["5d"], overwrite=True) as bw:  # noqa: PT012
        if written:
            bw[...] = 1
        raise kind
    assert content(path) == before
    assert sorted(p.name for p in path.parent.iterdir()) == oracles.files_of(path)
    np.testing.assert_array_equal(whole(path), image)


def test_the_target_is_untouched_until_the_writer_is_closed(path):
    image = stored(path, CASES["ragged"])
    before = content(path)
    with writer(path, CASES["5d"], overwrite=True) as bw:
        bw[...] = 5
        assert content(path) == before
        np.testing.assert_array_equal(whole(path), image)
    assert (whole(path) == 5).all()
    assert sorted(p.name for p in path.parent.iterdir()) == oracles.files_of(path)


def test_an_existing_file_is_not_replaced_unless_asked(path):
    image = stored(path, CASES["ragged"])
    with pytest.raises(TargetExistsError, match=r"exists.*overwrite=True"):
        writer(path, CASES["5d"])
    np.testing.assert_array_equal(whole(path), image)
    with pytest.raises(FileExistsError):
        writer(path, CASES["5d"])


def test_a_reader_goes_on_with_the_old_file_while_it_is_replaced(path):
    image = stored(path, CASES["5d"])
    with BioReader(path) as br:
        with writer(path, CASES["5d"], overwrite=True) as bw:
            bw[...] = 5
        np.testing.assert_array_equal(br[...], image)


def test_two_writers_do_not_work_on_one_target(path):
    image = coded(CASES["ragged"].shape)
    with writer(path, CASES["ragged"]) as first:
        first[:20] = image[:20]
        for more in ({}, {"overwrite": True}):
            with pytest.raises(TargetBusyError, match="another writer is at work"):
                writer(path, CASES["ragged"], **more)
        first[20:] = image[20:]
    np.testing.assert_array_equal(whole(path), image)


def test_of_two_writers_opened_before_the_first_pixel_one_loses(path):
    first, second = writer(path, CASES["ragged"]), writer(path, CASES["ragged"])
    first[...] = 1
    with pytest.raises(TargetBusyError):
        second[...] = 2
    first.close()
    with pytest.raises(TargetExistsError):  # noqa: PT012
        second[...] = 2
        second.close()
    assert (whole(path) == 1).all()


def test_a_folder_that_is_missing_or_a_folder_as_target(path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        writer(path.parent / "none" / path.name, CASES["ragged"])
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        writer(path, CASES["ragged"])
    with pytest.raises(IsADirectoryError):
        BioReader(path)


def test_a_missing_or_empty_file_is_said_at_once(backend, path):
    for name in (None, backend.name):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            BioReader(path, backend=name)
    path.touch()
    with pytest.raises(ValueError, match=r"empty|damaged|no TIFF|memory"):
        BioReader(path)


# ------------------------------------------------------------------ describing an image


def test_an_unknown_keyword_is_a_type_error(path):
    with pytest.raises(TypeError, match="unknown keyword 'chanel_names'"):
        writer(path, CASES["ragged"], chanel_names=["a"])
    with pytest.raises(TypeError):
        BioReader(path, foo=1)


def test_properties_can_be_set_until_the_first_pixel(path):
    with BioWriter(path, tile_size=16) as bw:
        bw.X, bw.y, bw.Z, bw.c, bw.T = 20, 30, 2, 3, 1
        bw.dtype = ">i2"
        bw.channel_names = ["a", "b", "c"]
        bw.ps_x = (0.5, "um")
        assert (bw.shape, bw.dtype, bw.cnames) == (
            (30, 20, 2, 3, 1),
            np.dtype("i2"),
            ["a", "b", "c"],
        )
        assert not bw.read_only
        bw[0, 0, 0, 0, 0] = 1
        assert bw.read_only
        for name, value in [
            ("X", 5),
            ("dtype", "u1"),
            ("cnames", []),
            ("ps_x", None),
            ("name", ""),
        ]:
            with pytest.raises(ReadOnlyError, match="cannot be set any more"):
                setattr(bw, name, value)
        assert bw.shape == (30, 20, 2, 3, 1)


def test_properties_of_a_reader_cannot_be_set(path):
    stored(path, CASES["ragged"])
    with BioReader(path) as br:
        for name in ("X", "dtype", "channel_names", "physical_size_x", "metadata"):
            with pytest.raises(ReadOnlyError):
                setattr(br, name, 1)


DESCRIBED = {
    "name": "Zellen α",
    "channel_names": ["DAPI", None, "phalloïdin"],
    "channel_colors": [(0, 0, 255, 255), None, (255, 0, 0, 128)],
    "physical_size_x": (0.25, "µm"),
    "physical_size_y": (250.0, "nm"),
    "physical_size_z": (2.0, "mm"),
    "time_increment": (1.5, "s"),
}


def test_what_describes_an_image_comes_back(path):
    with BioWriter(path, shape=(4, 5, 1, 3, 2), dtype="u1", **DESCRIBED) as bw:
        bw[0] = 1
        assert {key: getattr(bw, key) for key in DESCRIBED} == DESCRIBED
    with BioReader(path) as br:
        assert {key: getattr(br, key) for key in DESCRIBED} == DESCRIBED
        assert br.pixel_size("nm") == (250.0, 250.0, 2e6)
        assert br.series_names == ["Zellen α"]
        pixels = br.metadata.images[0].pixels
        assert (pixels.size_x, pixels.size_y, pixels.size_c, pixels.size_t) == (5, 4, 3, 2)
        assert [c.name for c in pixels.channels] == DESCRIBED["channel_names"]


def test_an_image_of_which_nothing_is_said_says_so(path):
    stored(path, CASES["5d"])
    with BioReader(path) as br:
        assert br.channel_names == [None, None]
        assert br.channel_colors == [None, None]
        assert br.physical_size_x == (None, "µm")
        assert br.pixel_size() == (None, None, None)
        assert br.time_increment is None


def test_image_gives_shape_type_and_pixels(backend, path):
    image = coded((30, 20, 2), "i2")
    with BioWriter(path, image=image, tile_size=16) as bw:
        assert (bw.shape, bw.dtype) == ((30, 20, 2, 1, 1), np.dtype("i2"))
    same(path, image[..., None, None], backend)


def test_image_is_only_a_pattern_where_something_is_written(backend, path):
    image = coded((30, 20), "i2")
    with BioWriter(path, image=image, tile_size=16) as bw:
        bw[:5] = np.int16(3)
    want = np.zeros((30, 20, 1, 1, 1), "i2")
    want[:5] = 3
    same(path, want, backend)


def test_the_first_array_gives_shape_and_type(backend, path):
    image = coded((30, 20, 1, 2), "f4")
    with BioWriter(path, tile_size=16) as bw:
        bw[:] = image
    same(path, image[..., None], backend)
    with pytest.raises(SpecError, match="the size of the image is not known"):
        BioWriter(fresh(path))[:3] = image


def test_like_takes_everything_but_the_pixels(backend, path):
    shape = (30, 20, 1, 3, 2)
    with BioWriter(path, shape=shape, dtype="i2", tile_size=16, **DESCRIBED) as bw:
        bw[...] = coded(shape, "i2")
    other = fresh(path)
    with BioReader(path) as br, BioWriter(other, like=br, tile_size=16) as bw:
        assert (bw.shape, bw.dtype) == (shape, np.dtype("i2"))
        bw[...] = br[...][::-1]
    same(other, coded(shape, "i2")[::-1], backend)
    with BioReader(other) as br:
        assert {key: getattr(br, key) for key in DESCRIBED} == DESCRIBED


@pytest.mark.parametrize("how", ["keyword", "attribute"])
@pytest.mark.parametrize("kind", ["like", "metadata"])
def test_a_copied_header_may_get_fewer_channels(path, how, kind):
    with BioWriter(path, shape=(8, 9, 1, 3), dtype="u1", channel_names=["a", "b", "c"]) as bw:
        bw[0] = 1
    with BioReader(path) as br:
        header = {"like": br} if kind == "like" else {"metadata": br.metadata}
        if how == "keyword":
            bw = BioWriter(fresh(path), **header, C=1, dtype="f4")
        else:
            bw = BioWriter(fresh(path), **header)
            bw.C = 1
            bw.dtype = "f4"
        with bw:
            assert (bw.channel_names, bw.dtype, bw.C) == (["a"], np.dtype("f4"), 1)
            bw[...] = np.zeros((8, 9), "f4")
    with BioReader(bw.path) as br:
        assert (br.C, br.channel_names) == (1, ["a"])


def test_names_given_on_purpose_must_fit(path):
    with pytest.raises(SpecError, match="channel_names has 2 entries, but the image has C=3"):
        BioWriter(path, shape=(8, 9, 1, 3), channel_names=["a", "b"])
    bw = BioWriter(path, shape=(8, 9, 1, 2), dtype="u1", channel_names=["a", "b"])
    bw.C = 1
    with pytest.raises(SpecError, match="channel_names has 2 entries"):
        bw[0] = 1
    assert not list(path.parent.iterdir())


def test_metadata_are_carried_over(path):
    from ome_types import OME
    from ome_types.model import Experimenter, Image, Pixels

    pixels = Pixels(
        dimension_order="XYZCT", type="uint8", size_x=9, size_y=8, size_z=1, size_c=1, size_t=1
    )
    people = [Experimenter(last_name="Curie", id="Experimenter:0")]
    ome = OME(experimenters=people, images=[Image(pixels=pixels, name="radium")])
    with BioWriter(path, metadata=ome) as bw:
        assert (bw.shape, bw.dtype, bw.name) == ((8, 9, 1, 1, 1), np.dtype("u1"), "radium")
        bw[0] = 1
    with BioReader(path) as br:
        assert br.metadata.experimenters[0].last_name == "Curie"
        assert br.name == "radium"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"X": 0}, "X=0"),
        ({"X": 1.5}, "X=1.5"),
        ({"X": True}, "X=True"),
        ({"shape": (1,) * 6}, "up to 5"),
        ({"dtype": "U4"}, "pixel type"),
        ({"tile_size": 17}, "multiple of 16"),
        ({"tile_size": None}, "multiple of 16"),
        ({"tile_size": 32.0}, "multiple of 16"),
        ({"pyramid": 0}, "pyramid=0"),
        ({"downsample": "sum"}, "nearest"),
        ({"cast": "round"}, "clip"),
        ({"max_workers": 0}, "max_workers=0"),
        ({"physical_size_x": (1, "parsecs-ish")}, "unit"),
        ({"physical_size_x": 0.5}, "value, unit"),
        ({"physical_size_x": (-1, "µm")}, "positive"),
        ({"channel_names": "abc"}, "list"),
        ({"channel_colors": ["#12"]}, "colour"),
        ({"samples_per_pixel": 2}, "multiple of samples_per_pixel=2"),
        ({"compression": "zip9000"}, "compress"),
        ({"backend": "nonsense"}, "no backend is called"),
    ],
    ids=str,
)
def test_an_argument_that_makes_no_sense_is_said_and_leaves_nothing(path, given, says):
    with pytest.raises((SpecError, NotImplementedError), match=says):
        BioWriter(path, **({"shape": (8, 9, 1, 3, 1), "dtype": "u1"} | given))
    assert not list(path.parent.iterdir())
