"""select(): any key becomes positions along five axes; trim(): what is left of a shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import all_positions

from bioio_tk.core.index import select, trim
from bioio_tk.errors import RegionError

SHAPE = (7, 6, 5, 4, 3)


def chosen(selection):
    """Return the positions along each axis in the order the caller gets them."""
    lists = [list(map(int, span)) for span in selection.spans]
    return [p[::-1] if n in selection.flips else p for n, p in enumerate(lists)]


bounds = st.none() | st.integers(-12, 12)
slices = st.builds(slice, bounds, bounds, st.none() | st.integers(-9, 9).filter(bool))


@given(st.tuples(slices, slices, slices, slices, slices))
def test_slices_pick_what_a_list_would_give(key):
    assert chosen(select(key, SHAPE)) == all_positions(key, SHAPE)


@given(slices, st.integers(1, 40))
def test_ranges_always_ascend(item, size):
    span = select((item,), (size, 1, 1, 1, 1)).spans[0]
    assert span.step > 0
    assert list(span) == sorted(all_positions((item,), (size, 1, 1, 1, 1))[0])


@pytest.mark.parametrize(
    "key",
    [
        (),
        ...,
        5,
        -7,
        np.s_[..., 0],
        np.s_[1, ..., 0],
        np.s_[1, 2, 3, ..., 0],
        np.s_[1, 2, 3, 0, 1, ...],
        np.s_[::-1, ..., ::-2],
        np.s_[6::-3, 5:0:-1, :, 3:-5:-1],
        ([0, 2], (1, 1), np.array([-1, 0]), range(2), [True, False, True]),
        (np.uint8(3), np.int64(-1)),
        ([],),
        (np.array([], float),),
        (np.ones(7, bool), np.zeros(6, bool)),
        ([5, 4, 3],),
        ([2, 3, 4],),
        ([[1][0]],),
    ],
    ids=str,
)
def test_any_key_picks_what_plain_indexing_gives(key):
    assert chosen(select(key, SHAPE)) == all_positions(key, SHAPE)


def test_a_selection_knows_its_shape_and_its_ints():
    selection = select(np.s_[1, ::-2, [0, 1], :, -1], SHAPE)
    assert selection.shape == (1, 3, 2, 4, 1)
    assert selection.size == 24
    assert selection.ints == (0, 4)
    assert selection.flips == (1,)


def test_consecutive_positions_are_a_range_and_others_are_not():
    assert select(([2, 3, 4],), SHAPE).spans[0] == range(2, 5)
    assert select(([4],), SHAPE).spans[0] == range(4, 5)
    for item in ([4, 3], [2, 2], [2, 4]):
        assert isinstance(select((item,), SHAPE).spans[0], np.ndarray)


def test_flip_reverses_the_axes_of_negative_steps_only():
    block = np.arange(24).reshape(1, 3, 2, 4, 1)
    selection = select(np.s_[0, ::-2, :2, :, -1], SHAPE)
    np.testing.assert_array_equal(selection.flip(block), block[:, ::-1])
    assert select(..., SHAPE).flip(block) is block


@pytest.mark.parametrize(
    "key",
    [
        7,
        -8,
        (0,) * 6,
        (..., ...),
        "0",
        b"0",
        1.0,
        np.float64(1),
        None,
        True,
        np.True_,
        {0},
        ([7],),
        ([-8],),
        (np.array([200], np.uint8),),
        (np.array([2**63], np.uint64),),
        ([2**70],),
        ([0.0],),
        (["a"],),
        ([[0]],),
        ([[0], [1, 2]],),
        ([True] * 6,),
        ([True] * 8,),
        (np.zeros(0, bool),),
        (np.zeros((7, 6), bool),),
        (slice("a"),),
        (slice(0, 5, 0),),
        (slice(None, None, 1.5),),
    ],
    ids=repr,
)
def test_a_key_that_does_not_fit_is_a_region_error(key):
    with pytest.raises(RegionError) as caught:
        select(key, SHAPE)
    assert isinstance(caught.value, IndexError)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ((3, 4, 1, 1, 1), (3, 4)),
        ((1, 1, 1, 1, 1), (1, 1)),
        ((3, 1, 1, 1, 1), (3, 1)),
        ((3, 4, 1, 2, 1), (3, 4, 1, 2)),
        ((1, 1, 1, 1, 2), (1, 1, 1, 1, 2)),
        ((3, 4, 0, 1, 1), (3, 4, 0)),
        ((5,), (5,)),
    ],
)
def test_trim_drops_trailing_ones_but_never_below_two_axes(shape, want):
    assert trim(shape) == want
