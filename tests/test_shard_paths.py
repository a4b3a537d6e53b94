"""Shards read and written as one piece: the same pixels as tile by tile, whatever is asked for.

Expected values are NumPy's, and zarr-python's of what was written.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import all_positions, coded, picked
from oracles import yxzct

from bioio_tk import BioReader, BioWriter
from bioio_tk.backends.zarr_read import ZarrSource
from bioio_tk.backends.zarr_write import ZarrSink
from bioio_tk.engine import read, write


@st.composite
def layouts(draw):
    """Return a shape, chunks and shards along Y, X, Z, C, T."""
    chunk = [
        draw(st.integers(2, 7)),  # 1 with more along T than there is: taken for a wrong order
        draw(st.integers(1, 7)),
        *draw(st.tuples(*[st.integers(1, 2)] * 3)),
    ]
    shard = [n * draw(st.integers(1, 3)) for n in chunk]
    shape = [
        draw(st.integers(1, 24)),
        draw(st.integers(1, 24)),
        *draw(st.tuples(*[st.integers(1, 3)] * 3)),
    ]
    return tuple(shape), tuple(chunk), tuple(shard)


def keys(shape):
    """Return an index of five parts that is not empty."""

    def item(size):
        run = st.slices(size).filter(lambda s: len(range(*s.indices(size))) > 0)
        return run | st.lists(st.integers(-size, size - 1), min_size=1, max_size=4)

    return st.tuples(*(item(size) for size in shape))


@pytest.fixture
def calls(monkeypatch):
    """Count what goes shard by shard."""
    seen = {"read": 0, "written": 0}
    read_shard, store_tiles = ZarrSource.read_shard, ZarrSink.store_tiles

    def counted_read(self, *args):
        seen["read"] += 1
        read_shard(self, *args)

    def counted_store(self, tiles):
        seen["written"] += 1
        store_tiles(self, tiles)

    monkeypatch.setattr(ZarrSource, "read_shard", counted_read)
    monkeypatch.setattr(ZarrSink, "store_tiles", counted_store)
    return seen


@given(data=st.data(), layout=layouts(), workers=st.sampled_from([1, 3]))
def test_reading_by_shards_equals_numpy(tmp_path, calls, data, layout, workers):
    shape, chunk, shard = layout
    image = coded(shape)
    path = tmp_path / "a.ome.zarr"
    with BioWriter(path, image=image, chunks=chunk, shards=shard, overwrite=True):
        pass
    key = data.draw(keys(shape))
    with pytest.MonkeyPatch.context() as patch, BioReader(path, workers) as br:
        patch.setattr(read, "_FEW", 0)
        before = calls["read"]
        found = br[key]
        np.testing.assert_array_equal(found, picked(image, key))
        assert calls["read"] > before or any(len(p) == 0 for p in all_positions(key, shape))


@given(data=st.data(), layout=layouts(), workers=st.sampled_from([1, 3]), pyramid=st.integers(1, 3))
def test_writing_by_shards_equals_writing_by_tiles(tmp_path, data, layout, workers, pyramid):
    import zarr

    shape, chunk, shard = layout
    image, key = coded(shape), data.draw(keys(shape))
    want = image.copy()
    want[np.ix_(*all_positions(key, shape))] = 7
    found = []
    for name, largest in (("shards", write._LARGEST_UNIT), ("tiles", 0)):
        path = tmp_path / f"{name}.ome.zarr"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(write, "_LARGEST_UNIT", largest)
            with BioWriter(
                path,
                workers,
                shape=shape,
                dtype="u2",
                chunks=chunk,
                shards=shard,
                pyramid=pyramid,
                overwrite=True,
            ) as bw:
                bw[...] = image
                bw[key] = 7
        group = zarr.open_group(path, mode="r")
        levels = len(group.attrs["ome"]["multiscales"][0]["datasets"])
        found.append([yxzct(group[str(n)][...], "TCZYX") for n in range(levels)])
        shutil.rmtree(path)
    np.testing.assert_array_equal(found[0][0], want)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_large_write_does_go_shard_by_shard(tmp_path, calls):
    image = coded((200, 200))
    with BioWriter(tmp_path / "a.ome.zarr", 2, image=image, chunks=(10, 10), shards=(40, 40)):
        pass
    assert calls["written"] == 25
    with BioReader(tmp_path / "a.ome.zarr", 2) as br:
        np.testing.assert_array_equal(br[:], image)
    assert calls["read"] == 25
