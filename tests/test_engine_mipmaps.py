"""TileWriter over a MipmapSink: every level is made from the full resolution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import Store, write

from bioio_tk.core.downsample import METHODS, shrink, shrink_all
from bioio_tk.core.spec import ImageSpec, Level
from bioio_tk.engine import write as writing
from bioio_tk.engine.scratch import Scratch
from bioio_tk.engine.write import TileWriter

sizes = st.tuples(*[st.integers(1, 13)] * 3)
tiles = st.tuples(*[st.sampled_from([1, 2, 3, 4, 8])] * 3)
factor = st.tuples(*[st.sampled_from([1, 2, 3, 4, 5])] * 3)


def block_means(pixels, factors):
    """The definition: the mean of the pixels that are there in each cell, halves rounded up."""
    total, count = pixels.astype(np.int64), np.ones(pixels.shape, np.int64)
    for axis, by in enumerate(factors):
        edges = np.arange(0, pixels.shape[axis], by)
        total, count = (np.add.reduceat(a, edges, axis) for a in (total, count))
    return ((2 * total + count) // (2 * count)).astype(pixels.dtype)


class Mipmaps(Store):
    """Holds what it is given, and asks for levels of its own."""

    def __init__(self, size, tile, others, factors):
        shapes = [size, *([-(-n // f) for n, f in zip(size, by, strict=True)] for by in factors)]
        levels = tuple(
            Level((*shape, 1, 1), (*block, 1, 1))
            for shape, block in zip(shapes, [tile, *others], strict=True)
        )
        super().__init__(ImageSpec(np.dtype("u2"), levels))
        self.factors = tuple(factors)


@st.composite
def cases(draw):
    size = draw(sizes)
    factors = draw(st.lists(factor, min_size=1, max_size=3))
    others = [draw(tiles) for _ in factors]
    cut = [draw(st.integers(0, n)) for n in size]
    again = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in size]
    return size, draw(tiles), others, factors, cut, again, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=60)
@given(case=cases(), workers=st.sampled_from([1, 4]), blocks=st.booleans())
def test_levels_are_means_of_the_full_resolution(case, workers, blocks, tmp_path_factory):
    size, tile, others, factors, cut, again, seed = case
    pixels = np.random.default_rng(seed).integers(0, 2**16, size, np.uint16)
    sink = Mipmaps(size, tile, others, factors)
    scratch = Scratch(tmp_path_factory.getbasetemp())
    target = TileWriter(sink, workers=workers, scratch=scratch)
    with pytest.MonkeyPatch.context() as patch:
        if not blocks:
            patch.setattr(writing, "_LARGEST_UNIT", 0)
            patch.setattr(writing, "_UNIT", 0)
        # eight parts, in any case all of it; then a part of it anew
        for corner in np.ndindex(2, 2, 2):
            box = tuple(
                slice(c, None) if k else slice(0, c) for k, c in zip(corner, cut, strict=True)
            )
            if pixels[box].size:
                write(target, box, pixels[box][..., None, None])
        box = tuple(slice(a, b) for a, b in again)
        if pixels[box].size:
            pixels[box] = 65535 - pixels[box]
            write(target, box, pixels[box][..., None, None])
        target.flush()
    scratch.close()
    np.testing.assert_array_equal(sink.image(0)[..., 0, 0], pixels)
    for level, by in enumerate(factors, 1):
        np.testing.assert_array_equal(sink.image(level)[..., 0, 0], block_means(pixels, by))


def test_a_wide_write_goes_block_by_block_and_nothing_waits(tmp_path, monkeypatch):
    """The fast path is there: no tile is copied to wait for its neighbours."""
    sink = Mipmaps((64, 64, 16), (16, 16, 4), [(16, 16, 4)], [(2, 2, 8)])
    pixels = np.random.default_rng(1).integers(0, 2**16, (64, 64, 16), np.uint16)
    scratch = Scratch(tmp_path)
    target = TileWriter(sink, workers=2, scratch=scratch)
    begun = []
    begin = target._begin
    monkeypatch.setattr(target, "_begin", lambda at, given=None: begun.append(at) or begin(at))
    write(target, ..., pixels[..., None, None])
    target.flush()
    scratch.close()
    assert {at.level for at in begun} <= {1}
    np.testing.assert_array_equal(sink.image(0)[..., 0, 0], pixels)
    np.testing.assert_array_equal(sink.image(1)[..., 0, 0], block_means(pixels, (2, 2, 8)))


def test_stored_tiles_are_shrunk_into_every_level(tmp_path):
    size, factors = (21, 33, 9), [(2, 2, 1), (4, 4, 2), (6, 5, 3)]
    pixels = np.random.default_rng(2).integers(0, 2**16, size, np.uint16)
    sink = Mipmaps(size, (8, 8, 2), [(8, 8, 2)] * 3, factors)
    scratch = Scratch(tmp_path)
    first = TileWriter(sink, workers=2, scratch=scratch, shrinks=False)
    write(first, ..., pixels[..., None, None])
    assert not any(at.level for at in sink.tiles)
    TileWriter(sink, workers=2, scratch=scratch).shrink_stored()
    scratch.close()
    for level, by in enumerate(factors, 1):
        np.testing.assert_array_equal(sink.image(level)[..., 0, 0], block_means(pixels, by))


@given(
    size=sizes,
    factors=st.lists(factor, min_size=1, max_size=4),
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?"]),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 2**32 - 1),
)
def test_shrinking_at_once_equals_shrinking_one_by_one(size, factors, dtype, method, seed):
    raw = np.random.default_rng(seed).integers(0, 256, (*size, 1, 1, 8), np.uint8)
    kind = np.dtype(dtype)
    if kind.kind in "fb":
        pixels = raw.sum(-1, dtype=np.int64).astype(kind)
    else:
        pixels = raw[..., : kind.itemsize].copy().view(kind)[..., 0]
    found = shrink_all(pixels, factors, method)
    assert len(found) == len(factors)
    for small, by in zip(found, factors, strict=True):
        np.testing.assert_array_equal(small, shrink(pixels, by, method), strict=True)
