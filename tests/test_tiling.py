"""TileGrid and plan(): every wanted pixel is copied exactly once, from the tile it lies in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import coded

from bioio_tk.core.region import Region
from bioio_tk.core.spec import Level, fit_tile, pyramid_levels
from bioio_tk.core.tiling import TileGrid, copy_pixels, plan
from bioio_tk.errors import RegionError

shapes = st.tuples(*[st.integers(1, n) for n in (19, 17, 5, 3, 3)])
tiles = st.tuples(*[st.integers(1, n) for n in (8, 20, 3, 2, 2)])


@st.composite
def spans(draw, shape, *, lists=True):
    chosen = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        stop = draw(st.integers(0, size))
        ranges = st.just(range(start, stop, draw(st.integers(1, 9))))
        picks = st.lists(st.integers(0, size - 1), max_size=6).map(lambda v: np.array(v, np.intp))
        chosen.append(draw(ranges | picks if lists else ranges))
    return tuple(chosen)


@given(st.data(), shapes, tiles)
def test_a_plan_gathers_what_outer_indexing_gives(data, shape, tile):
    wanted = data.draw(spans(shape))
    grid, image = TileGrid(shape, tile), coded(shape, "i4")
    out = np.full([len(s) for s in wanted], -1, "i4")
    for step in plan(grid, wanted):
        copy_pixels(
            out, step.dst, image[grid.region(step.key).slices()], step.src, plain=step.plain
        )
    np.testing.assert_array_equal(out, image[np.ix_(*[list(s) for s in wanted])])


@given(st.data(), shapes, tiles)
def test_a_plan_touches_each_wanted_pixel_and_each_tile_once(data, shape, tile):
    wanted = data.draw(spans(shape))
    grid = TileGrid(shape, tile)
    hits = np.zeros([len(s) for s in wanted], int)
    steps = list(plan(grid, wanted))
    for step in steps:
        one = np.ones(grid.tile_shape(step.key), int)
        before = hits.sum()
        copy_pixels(count := np.zeros_like(hits), step.dst, one, step.src, plain=step.plain)
        hits += count
        assert hits.sum() > before, "a tile without a wanted pixel"
    assert (hits == 1).all()
    assert len({step.key for step in steps}) == len(steps)


@given(st.data(), shapes, tiles)
def test_whole_means_all_of_the_tile_in_order(data, shape, tile):
    wanted = data.draw(spans(shape))
    grid = TileGrid(shape, tile)
    for step in plan(grid, wanted):
        number = np.arange(np.prod(grid.tile_shape(step.key))).reshape(grid.tile_shape(step.key))
        got = number
        for axis, item in enumerate(step.src):
            got = got[(slice(None),) * axis + (item,)]
        exact = got.shape == number.shape and bool((got == number).all())
        if step.whole:
            assert exact
            assert step.plain
        elif step.plain:
            assert not exact, "a whole tile would be taken for a part"


@given(st.data(), shapes, tiles)
def test_a_plan_scatters_what_outer_assignment_gives(data, shape, tile):
    wanted = tuple(s if isinstance(s, range) else np.unique(s) for s in data.draw(spans(shape)))
    grid = TileGrid(shape, tile)
    block = coded([len(s) for s in wanted], "i4", seed=3)
    image, want = np.zeros(shape, "i4"), np.zeros(shape, "i4")
    want[np.ix_(*[list(s) for s in wanted])] = block
    for step in plan(grid, wanted):
        part = image[grid.region(step.key).slices()]
        copy_pixels(part, step.src, block, step.dst, plain=step.plain)
    np.testing.assert_array_equal(image, want)


@given(shapes, tiles)
def test_keys_are_all_tiles_x_fastest_t_slowest(shape, tile):
    grid = TileGrid(shape, tile)
    keys = list(grid.keys())
    assert keys == sorted(keys, key=lambda k: (k[4], k[3], k[2], k[0], k[1]))
    seen = np.zeros(shape, int)
    for key in keys:
        region = grid.region(key)
        assert region.shape == grid.tile_shape(key)
        seen[region.slices()] += 1
    assert (seen == 1).all()
    assert len(keys) == np.prod(grid.counts)


@given(st.data(), shapes, tiles)
def test_a_plan_goes_through_the_tiles_in_the_order_of_the_keys(data, shape, tile):
    wanted = data.draw(spans(shape))
    keys = [step.key for step in plan(TileGrid(shape, tile), wanted)]
    assert keys == sorted(keys, key=lambda k: (k[4], k[3], k[2], k[0], k[1]))


@pytest.mark.parametrize(
    ("start", "stop"), [((-1, 0, 0, 0, 0), (1,) * 5), ((0,) * 5, (1, 1, 0, 1, 1))]
)
def test_a_region_is_neither_negative_nor_empty(start, stop):
    with pytest.raises(RegionError, match="is empty or negative"):
        Region(start, stop)


def test_a_whole_region_cuts_the_whole_image():
    region = Region.whole((3, 4, 5, 6, 7))
    assert region.shape == (3, 4, 5, 6, 7)
    assert region.slices() == tuple(slice(0, n) for n in (3, 4, 5, 6, 7))


# ------------------------------------------------------------------ sizes of levels and tiles


def test_levels_halve_until_a_plane_is_small():
    levels = pyramid_levels((1025, 600, 7, 2, 3), (512, 512, 1, 1, 1), None)
    assert [v.shape for v in levels] == [
        (1025, 600, 7, 2, 3),
        (513, 300, 7, 2, 3),
        (257, 150, 7, 2, 3),
        (129, 75, 7, 2, 3),
    ]
    assert [v.tile[:2] for v in levels] == [(512, 512), (512, 304), (272, 160), (144, 80)]


def test_levels_stop_at_one_pixel_and_at_the_number_asked_for():
    assert len(pyramid_levels((5, 3, 9, 1, 1), (16, 16, 1, 1, 1), 99)) == 4
    assert len(pyramid_levels((5, 3, 9, 1, 1), (16, 16, 1, 1, 1), 2)) == 2
    assert len(pyramid_levels((256, 256, 1, 1, 1), (256, 256, 1, 1, 1), None)) == 1
    assert len(pyramid_levels((257, 1, 1, 1, 1), (256, 256, 1, 1, 1), None)) == 2
    one = pyramid_levels((9, 9, 9, 1, 1), (16, 16, 1, 1, 1), 1)
    assert one == (Level((9, 9, 9, 1, 1), (16, 16, 1, 1, 1)),)


def test_levels_may_shrink_along_z_too():
    levels = pyramid_levels((8, 8, 5, 1, 1), (16, 16, 1, 1, 1), 3, voxel=(1, 1, 1))
    assert [v.shape[:3] for v in levels] == [(8, 8, 5), (4, 4, 3), (2, 2, 2)]


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_tile_is_no_larger_than_a_small_image_needs(y, x):
    tile = fit_tile((y, x, 3, 1, 1), (1024, 512, 1, 1, 1))
    for n, size, most in zip(tile[:2], (y, x), (1024, 512), strict=True):
        assert n % 16 == 0
        assert n == most or 0 <= n - size < 16
    assert tile[2:] == (1, 1, 1)


@given(st.data(), shapes, tiles, st.integers(1, 5))
def test_rows_walked_abreast_are_the_same_steps_in_another_order(data, shape, tile, abreast):
    wanted = data.draw(spans(shape))
    grid = TileGrid(shape, tile)
    one_by_one = {step.key: step for step in plan(grid, wanted)}
    steps = list(plan(grid, wanted, abreast))
    assert len(steps) == len(one_by_one)
    for step in steps:
        assert str(step) == str(one_by_one[step.key])
