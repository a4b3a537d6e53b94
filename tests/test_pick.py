"""What people write of a selection: text, from 0 and from 1."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bioio_tk.core.pick import one_based, ordered, parse, positions
from bioio_tk.errors import RegionError, SpecError


def taken(item, size):
    """Return the positions that numpy takes for an item, a list of ints and slices one by one."""
    items = item if isinstance(item, list) else [item]
    return [int(p) for part in items for p in np.atleast_1d(np.arange(size)[part])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("c=0,2 z=10:20 t=::2 y=0:512", {"C": [0, 2], "Z": slice(10, 20), "T": slice(None, None, 2),
                                         "Y": slice(0, 512)}),
        ("Z=-1", {"Z": [-1]}),
        ("x = 3:; y=:4", {"X": slice(3, None), "Y": slice(None, 4)}),
        ("z=5,0:2,7", {"Z": [5, slice(0, 2), 7]}),
        ("", {}),
        (None, {}),
        ({"z": slice(1, 3), "C": [1]}, {"Z": slice(1, 3), "C": [1]}),
        ({"t": "0:3"}, {"T": slice(0, 3)}),
    ],
)  # fmt: skip
def test_text_is_understood(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("q=1", "'q' is no axis"),
        ("z=1 z=2", "given twice"),
        ("z=a", "z='a'"),
        ("z=1:2:3:4", "z='1:2:3:4'"),
        ("hello", "'hello' is not understood"),
        ("z=1,,2", "z=''"),
        ({"zz": 1}, "'zz' is no axis"),
    ],
)
def test_what_is_no_selection_is_refused(text, word):
    with pytest.raises(SpecError, match=re.escape(word)):
        parse(text)


@given(
    size=st.integers(1, 12),
    items=st.lists(
        st.one_of(
            st.integers(-14, 14),
            st.builds(
                slice,
                st.none() | st.integers(-14, 14),
                st.none() | st.integers(-14, 14),
                st.sampled_from([None, 1, 2, 3, -1, -2]),
            ),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_positions_are_those_of_numpy(size, items):
    try:
        expected = taken(items, size)
    except IndexError:
        expected = None
    if not expected:
        with pytest.raises(RegionError, match="Z"):
            positions("Z", items, size)
    else:
        assert positions("Z", items, size) == expected


def test_a_slice_stays_one_and_an_empty_one_is_an_error():
    assert positions("Z", slice(2, 9), 5) == slice(2, 9)
    with pytest.raises(RegionError, match=r"Z=7:9 selects nothing: the image has Z=5"):
        positions("Z", slice(7, 9), 5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, [6]),
        (np.int64(7), [6]),
        ([1, 7, 3], [0, 6, 2]),
        ((2, 2, 1), [1, 1, 0]),
        (range(1, 4), [0, 1, 2]),
        (np.array([4, 2]), [3, 1]),
        ("1,7", [0, 6]),
        ("2:4", [1, 2, 3]),
        ("1:7:3", [0, 3, 6]),
        (":2,6:", [0, 1, 5, 6]),
        (slice(2, 4), [1, 2, 3]),
    ],
)
def test_counted_from_1(value, expected):
    assert one_based("planes", value, "Z", 7) == expected


@pytest.mark.parametrize("value", [0, 8, -1, [1, 8], "0", "3:9", [], range(0)])
def test_counted_from_1_and_inside(value):
    with pytest.raises(RegionError, match=r"planes.*the image has Z=7"):
        one_based("planes", value, "Z", 7)


@pytest.mark.parametrize("value", [True, 1.5, ["a"], "a", "1:2:0", [1.0]])
def test_counted_from_1_with_numbers(value):
    with pytest.raises(SpecError):
        one_based("planes", value, "Z", 7)


@given(st.permutations(range(6)))
def test_an_order_is_a_permutation(order):
    planes = [3, 1, 9, 9, 2, 0]
    assert ordered(order, planes) == [planes[n] for n in order]
    assert ordered(",".join(map(str, order)), planes) == ordered(order, planes)


@pytest.mark.parametrize("order", [[0, 0], [1], [0, 2], [0, 1, 2], ["a", "b"], "a,b", 3])
def test_an_order_names_each_plane_once(order):
    with pytest.raises(SpecError, match="order"):
        ordered(order, [4, 5])


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (True, "Z index True"),
        ([True, False, True], "Z index True"),  # a mask; numbers 1, 0, 1 are other planes
        (np.array([True, False]), "Z index"),
        (slice(0, 3, 0), "Z=0:3:0: slice step cannot be zero"),
        ([0, slice("a", 3)], "Z=a:3"),
        (1.5, "Z index 1.5"),
        (None, "Z index None"),
    ],
)
def test_what_is_no_position_is_refused(item, says):
    with pytest.raises(RegionError, match=re.escape(says)):
        positions("Z", item, 3)


@pytest.mark.parametrize("select", [5, ["z=1"], b"z=1"])
def test_a_selection_is_text_or_a_mapping(select):
    with pytest.raises(SpecError, match="give text such as"):
        parse(select)
