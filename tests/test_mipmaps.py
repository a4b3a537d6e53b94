"""Which resolutions and blocks a stack gets, against what Fiji wrote and a search of all blocks."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bioio_tk.core.mipmaps import propose, propose_bdv
from bioio_tk.errors import SpecError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "bdv"
sizes = st.tuples(st.integers(1, 500), st.integers(1, 5000), st.integers(1, 5000))
voxels = st.tuples(*[st.floats(0.05, 20)] * 3)


def factors(levels):
    return [level.factor for level in levels]


# (size Z, Y, X; voxel X, Y, Z; factors Z, Y, X), worked out by hand from BDV's rule
RULE = [
    ((50, 2048, 2048), (0.5, 0.5, 2.0), [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]),
    ((27, 226, 186), (1.0, 1.0, 10.0), [(1, 1, 1)]),
    ((6, 512, 512), (1.0, 1.0, 1.0), [(1, 1, 1), (2, 2, 2)]),
    ((256, 256, 256), None, [(1, 1, 1)]),
    ((1, 257, 3), None, [(1, 1, 1), (1, 2, 2)]),
    # 513 // 2 is 256: BDV rounds down where it decides, whatever the size it then writes
    ((1, 513, 513), None, [(1, 1, 1), (1, 2, 2)]),
    ((1, 514, 514), None, [(1, 1, 1), (1, 2, 2), (1, 4, 4)]),
    # a voxel just above twice the smallest is not halved yet, one of exactly twice it is
    ((600, 600, 600), (1.0, 1.0, 2.0), [(1, 1, 1), (2, 2, 2), (4, 4, 4)]),
    ((600, 600, 600), (1.0, 1.0, 2.1), [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]),
    # only the short axes may be halved and have no pixels left: all are
    ((1, 1, 1000), (4.0, 1.0, 1.0), [(1, 1, 1), (2, 2, 2), (4, 4, 4)]),
]


@pytest.mark.parametrize(("size", "voxel", "expected"), RULE)
def test_factors_are_those_of_bdv(size, voxel, expected):
    assert factors(propose_bdv(size, voxel)) == expected
    assert factors(propose(size, voxel, 2)) == expected


def test_blocks_of_bdv():
    # pybdv's example carries the tables of a Fiji export; mri-stack is one (both X, Y, Z there)
    assert [m.block for m in propose_bdv((6, 512, 512), None)] == [(8, 16, 32), (4, 32, 32)]
    assert [m.block for m in propose_bdv((27, 226, 186), (1.0, 1.0, 10.0))] == [(4, 32, 32)]
    # cubes, and X before Y before Z where one has to be longer
    assert [m.block for m in propose_bdv((200, 200, 200), None)] == [(16, 16, 16)]
    assert [m.block for m in propose_bdv((1, 200, 200), None)] == [(1, 64, 64)]
    assert [m.block for m in propose_bdv((2, 3, 3), None)] == [(2, 4, 512)]


@pytest.mark.parametrize("name", ["mri_stack/mri-stack", "pybdv_example/example"])
def test_files_of_fiji(name):
    h5py = pytest.importorskip("h5py")
    if not DATA.exists():
        pytest.skip("the shared data are not there")
    root = ET.fromstring((DATA / f"{name}.xml").read_bytes())
    setup = root.find("SequenceDescription/ViewSetups/ViewSetup")
    x, y, z = map(int, setup.findtext("size").split())
    voxel = tuple(map(float, setup.findtext("voxelSize/size").split()))
    levels = propose_bdv((z, y, x), voxel)
    with h5py.File(DATA / f"{name}.h5", locking=False) as file:
        resolutions, subdivisions = (
            file["s00"][key][()] for key in ("resolutions", "subdivisions")
        )
    np.testing.assert_array_equal([m.factor[::-1] for m in levels], resolutions)
    np.testing.assert_array_equal([m.block[::-1] for m in levels], subdivisions)


@pytest.mark.parametrize(
    ("size", "voxel", "itemsize", "block"),
    [
        ((64, 2048, 2048), None, 2, (16, 128, 128)),
        ((64, 2048, 2048), None, 1, (16, 128, 256)),
        ((64, 2048, 2048), None, 8, (16, 64, 64)),
        ((64, 2048, 2048), (0.5, 0.5, 2.0), 2, (16, 128, 128)),
        ((1, 2048, 2048), None, 2, (1, 512, 512)),
        ((50, 2048, 2048), (0.5, 0.5, 2.0), 2, (8, 128, 256)),  # 16 would store 64 planes
        ((5, 12, 18), None, 2, (8, 16, 24)),
        ((1, 1, 1), None, 2, (1, 1, 1)),
        ((64, 300, 300), None, 2, (16, 104, 104)),  # 128 would store 384 x 384
        ((12, 400, 520), None, 2, (4, 200, 176)),  # 16 and 8 would store 16 planes
    ],
)
def test_our_blocks(size, voxel, itemsize, block):
    assert propose(size, voxel, itemsize)[0].block == block


@given(sizes, voxels, st.sampled_from([1, 2, 4, 8]))
def test_what_every_block_is_like(size, voxel, itemsize):
    levels = propose(size, voxel, itemsize)
    assert factors(levels) == factors(propose_bdv(size, voxel))
    for level in levels:
        shape = level.shape(size)
        for side, length in zip(level.block, shape, strict=True):
            assert side & (side - 1) == 0 or side % 8 == 0
            assert side < 2 * length or side == 8
        assert level.block[0] <= 16
        pixels = math.prod(level.block)
        assert pixels * itemsize <= 2**19
        # The stack in blocks is not much more than the stack.
        z, y, x = zip(level.block, shape, strict=True)
        for side, length in (y, x):
            count = -(-length // side)
            assert count * side - length < 8 * count or side & (side - 1) == 0
            assert (count - 1) * side < length
        stored = -(-z[1] // z[0]) * z[0]
        assert stored <= z[1] * 1.125 or stored < z[1] + 4


@given(voxels, st.sampled_from([1, 2, 4, 8]))
def test_blocks_of_large_stacks_are_full_and_about_cubes(voxel, itemsize):
    block = propose((512, 65536, 65536), voxel, itemsize)[0].block
    assert math.prod(block) * itemsize == 2**19
    x, y, z = (side * length for side, length in zip(block[::-1], voxel, strict=True))
    assert max(x, y) <= 2 * min(x, y) or 1 in block[1:]
    # Z is as long as the others, or as long as it may be
    if block[0] < 16:
        assert z > min(x, y) / 2


@given(sizes, voxels)
def test_blocks_of_bdv_hold_as_much_as_they_may(size, voxel):
    for level in propose_bdv(size, voxel):
        assert math.prod(level.block) == 4096


@given(st.tuples(*[st.floats(0.2, 5)] * 3))
def test_blocks_of_bdv_are_the_best_there_are(voxel):
    """All ways to share 12 bits: none is nearer to a cube by more than BDV's rounding allows."""

    def spread(block):
        logs = [math.log2(side * length) for side, length in zip(block, voxel, strict=True)]
        return max(logs) - min(logs)

    found = propose_bdv((4096, 4096, 4096), voxel)[0].block[::-1]
    ways = (b for b in itertools.product(range(13), repeat=3) if sum(b) == 12)
    best = min(spread([1 << bit for bit in bits]) for bits in ways)
    assert spread(found) <= best + 0.05


@pytest.mark.parametrize(
    ("size", "voxel"),
    [
        ((0, 5, 5), None),
        ((5, 5), None),
        ((5, 5, 5), (1.0, 0.0, 1.0)),
        ((5, 5, 5), (1.0, -1.0, 1.0)),
        ((5, 5, 5), (1.0, float("nan"), 1.0)),
        ((5, 5, 5), (1.0, float("inf"), 1.0)),
        ((5, 5, 5), (1.0, 1.0)),
    ],
)
def test_what_is_no_stack(size, voxel):
    with pytest.raises(SpecError, match="3 positive sizes"):
        propose(size, voxel, 2)
