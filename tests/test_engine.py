"""The engine over doubles that break, count or insist: read(), TileCache, TileWriter."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import all_positions, coded, put, smaller

from bioio_tk.backends.base import Caps
from bioio_tk.core.index import select
from bioio_tk.core.spec import Address, ImageSpec, pyramid_levels
from bioio_tk.engine import read as reading
from bioio_tk.engine import write as writing
from bioio_tk.engine.read import OwnTiles, TileCache, read
from bioio_tk.engine.scratch import Scratch
from bioio_tk.engine.write import TileWriter

SHAPE = (50, 37, 2, 1, 1)
TILE = (16, 16, 1, 1, 1)
WAIT = 20  # seconds until a test that hangs gives up; nothing is measured


def described(shape=SHAPE, tile=TILE, levels=1, dtype="u2"):
    return ImageSpec(np.dtype(dtype), pyramid_levels(shape, tile, levels))


class Store:
    """Source and Sink in one: tiles in a dict, and a note of everything that was asked."""

    caps = Caps(parallel_store=True)

    def __init__(self, spec=None, image=None):
        self.images = (spec or described(),)
        self.tiles = {}
        self.read = Counter()
        self.encoded = Counter()
        self.stored = Counter()
        self.loaded = Counter()
        if image is not None:
            grid = self.images[0].levels[0].grid
            for key in sorted(grid.keys()):
                self.tiles[Address(0, 0, key)] = image[grid.region(key).slices()].copy()

    def read_tile(self, at):
        self.read[at] += 1
        return self.tiles[at]

    def encode_tile(self, at, tile):
        self.encoded[at] += 1
        assert tile.shape == self.images[0].levels[at.level].grid.tile_shape(at.key)
        return tile.copy()

    def store_tile(self, at, encoded):
        self.stored[at] += 1
        self.tiles[at] = encoded

    def load_tile(self, at):
        self.loaded[at] += 1
        return self.tiles.get(at)

    def image(self, level=0):
        """Put the tiles together; what was never stored is 0."""
        grid = self.images[0].levels[level].grid
        out = np.zeros(grid.shape, self.images[0].dtype)
        for at, tile in self.tiles.items():
            if at.level == level:
                out[grid.region(at.key).slices()] = tile
        return out


@pytest.fixture
def scratch(tmp_path):
    made = Scratch(tmp_path)
    yield made
    made.close()


def write(target, key, value):
    selection = select(key, target._levels[0].shape)
    target.write(selection.spans, np.broadcast_to(value, selection.shape))


# ------------------------------------------------------------------ reading


class Broken(Store):
    """Breaks at one tile and says how many others it was asked for."""

    def __init__(self, *args, stopped):
        super().__init__(*args)
        self._stopped = stopped

    def read_tile(self, at):
        self.read[at] += 1
        if at.key[:3] == (1, 1, 0):
            raise OSError("disk gone")
        assert at.key[0] < 8 or self._stopped.wait(WAIT), "nobody has failed"
        return super().read_tile(at)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_tile_that_cannot_be_read_is_an_error_in_the_caller(workers, monkeypatch, stopped):
    monkeypatch.setattr(reading, "_SMALL", 0)
    shape = (320, 320, 1, 1, 1)
    source = Broken(described(shape), coded(shape), stopped=stopped)
    with pytest.raises(OSError, match="disk gone"):
        read(source, 0, 0, select(..., shape), workers=workers)
    # the first 8 of 20 rows at most, and a tile more of each worker
    assert sum(source.read.values()) <= 160 + workers, "the rest was not cancelled"


@pytest.mark.parametrize("costly", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
@given(data=st.data())
def test_read_gathers_any_selection(monkeypatch, costly, parallel, data):
    monkeypatch.setattr(reading, "_SMALL", 0)
    image = coded(SHAPE)
    source = Store(image=image)
    source.caps = Caps(parallel_read=parallel, costly_tiles=costly)
    cache = TileCache(3)
    for _ in range(3):
        rows = data.draw(st.lists(st.integers(0, 49), min_size=1, max_size=5))
        key = data.draw(
            st.sampled_from([np.s_[::-3, 4:20], np.s_[5], (rows,), np.s_[..., 1, 0, 0]])
        )
        got = read(source, 0, 0, select(key, SHAPE), workers=3, cache=cache)
        np.testing.assert_array_equal(got, image[np.ix_(*all_positions(key, SHAPE))])


def test_a_source_that_reads_one_at_a_time_is_not_asked_twice_at_once(monkeypatch):
    monkeypatch.setattr(reading, "_SMALL", 0)

    class Touchy(Store):
        caps = Caps(parallel_read=False)
        inside = 0

        def read_tile(self, at):
            self.inside += 1
            assert self.inside == 1
            time.sleep(0.001)
            self.inside -= 1
            return super().read_tile(at)

    read(Touchy(image=coded(SHAPE)), 0, 0, select(..., SHAPE), workers=4)


def test_tiles_read_in_parts_are_decoded_once():
    image = coded(SHAPE)
    source, cache = Store(image=image), TileCache(8)
    for y in range(16):
        got = read(source, 0, 0, select(np.s_[y, :, 0], SHAPE), workers=2, cache=cache)
        np.testing.assert_array_equal(got[..., 0, 0, 0], image[y : y + 1, :, 0, 0, 0])
    assert set(source.read.values()) == {1}


def test_whole_tiles_do_not_push_others_out_of_the_cache():
    source, cache = Store(image=coded(SHAPE)), TileCache(8)
    read(source, 0, 0, select(np.s_[:32, :32], SHAPE), workers=1, cache=cache)
    assert not cache._tiles


def test_tiles_that_cost_nothing_are_not_kept():
    source, cache = Store(image=coded(SHAPE)), TileCache(8)
    source.caps = Caps(costly_tiles=False)
    read(source, 0, 0, select(np.s_[:3, :3], SHAPE), workers=1, cache=cache)
    assert not cache._tiles


class Parts(Store):
    """Has a fast path for parts, and uses it or not as told."""

    willing = True
    parts = 0

    def read_part(self, at, part, out):
        if self.willing:
            self.parts += 1
            out[...] = self.tiles[at][part]
        return self.willing


@pytest.mark.parametrize("willing", [False, True])
@pytest.mark.parametrize("costly", [False, True])
@pytest.mark.parametrize("key", [np.s_[...], np.s_[3:40:2, ::-1], ([4, 2, 49],)], ids=str)
def test_the_fast_path_gives_the_same_pixels(willing, costly, key):
    image = coded(SHAPE)
    source = Parts(image=image)
    source.willing, source.caps = willing, Caps(costly_tiles=costly)
    got = read(source, 0, 0, select(key, SHAPE), workers=2, cache=TileCache(2))
    np.testing.assert_array_equal(got, image[np.ix_(*all_positions(key, SHAPE))])
    lists = isinstance(key, tuple) and isinstance(key[0], list)
    assert bool(source.parts) == (willing and not lists)


class Planes(Store):
    """Has a fast path for stacks of planes, and uses it or not as told."""

    willing = True
    asked = 0

    def read_planes(self, image, level, planes, out):
        assert out.flags.c_contiguous
        self.asked += 1
        for n, (z, c, t) in enumerate(planes):
            out[n] = self.image(level)[:, :, z, c, t] if self.willing else 99
        return self.willing


@pytest.mark.parametrize("willing", [False, True])
@pytest.mark.parametrize(
    ("key", "stack"),
    [
        (np.s_[...], True),
        (np.s_[..., ::-1, [1, 0, 1], :], True),
        (np.s_[::-1, ::-1, 1:], True),
        (np.s_[:, :, 0, 0, 0], False),
        (np.s_[1:], False),
        (np.s_[::2], False),
        (np.s_[:, :-1], False),
        (([3, 1, 2],), False),
        ((slice(None), [0, 2]), False),
        ((list(range(20)),), True),
    ],
    ids=str,
)
def test_a_stack_of_whole_planes_gives_the_same_pixels(willing, key, stack):
    shape = (20, 18, 3, 2, 2)
    image = coded(shape)
    source = Planes(described(shape), image)
    source.willing = willing
    got = read(source, 0, 0, select(key, shape), workers=2, cache=TileCache(2))
    np.testing.assert_array_equal(got, image[np.ix_(*all_positions(key, shape))])
    assert bool(source.asked) == stack


# ------------------------------------------------------------------ the cache


def tile(n, size=10):
    return np.full((size, 1, 1, 1, 1), n, "u1")


def place(n, level=0):
    return Address(0, level, (n, 0, 0, 0, 0))


def test_the_cache_keeps_the_tiles_used_last():
    cache = TileCache(3)
    for n in range(3):
        cache.put(place(n), tile(n))
    assert cache.get(place(0))[0, 0, 0, 0, 0] == 0
    cache.put(place(3), tile(3))
    assert cache.get(place(1)) is None
    for n in (0, 2, 3):
        assert (cache.get(place(n)) == n).all()


def test_the_cache_is_bounded_in_bytes_too():
    cache = TileCache(100, size=35)
    for n in range(10):
        cache.put(place(n), tile(n))
        assert cache._bytes == sum(t.nbytes for t in cache._tiles.values()) <= 35
    assert [n for n in range(10) if cache.get(place(n)) is not None] == [7, 8, 9]
    cache.put(place(50), tile(1, size=36))
    assert cache.get(place(50)) is None
    assert cache.get(place(9)) is not None


def test_the_cache_tells_tiles_apart_by_image_level_and_place():
    cache = TileCache(100)
    addresses = [
        Address(image, level, key)
        for image in range(2)
        for level in range(2)
        for key in [(0, 1, 0, 0, 0), (1, 0, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0,) * 5]
    ]
    for n, at in enumerate(addresses):
        cache.put(at, tile(n))
    for n, at in enumerate(addresses):
        assert (cache.get(at) == n).all()


def test_putting_a_tile_twice_does_not_count_it_twice():
    cache = TileCache(5, size=100)
    for _ in range(30):
        cache.put(place(1), tile(1))
    assert cache._bytes == 10


@pytest.fixture
def shared(monkeypatch):
    """A cache of its own for the test, in place of the one all readers share."""
    monkeypatch.setattr(reading, "_shared", TileCache(100))
    reading._gone.clear()
    return reading._shared


def test_readers_share_the_cache_but_not_their_tiles(shared):
    one, other = OwnTiles(), OwnTiles()
    one.put(place(1), tile(1))
    assert other.get(place(1)) is None
    other.put(place(1), tile(2))
    assert (one.get(place(1)) == 1).all()
    assert (other.get(place(1)) == 2).all()
    assert shared._bytes == 20
    one.clear()
    assert one.get(place(1)) is None
    assert (other.get(place(1)) == 2).all()
    assert shared._bytes == 10


def test_the_tiles_of_a_forgotten_reader_go_with_the_next_one_that_comes(shared):
    one, other = OwnTiles(), OwnTiles()
    for n in range(5):
        one.put(place(n), tile(n))
    del one
    gc.collect()
    other.put(place(1), tile(1))
    assert [at for _, at in shared._tiles] == [place(1)]
    assert shared._bytes == 10


def test_a_reader_may_be_forgotten_while_the_cache_is_locked(shared):
    one = OwnTiles()
    one.put(place(1), tile(1))
    with shared._lock:  # the collector runs where it likes
        del one
        gc.collect()


# ------------------------------------------------------------------ writing: how often


def test_whole_tiles_are_stored_once_and_nothing_is_loaded(scratch):
    store = Store()
    target = TileWriter(store, workers=3, scratch=scratch)
    write(target, ..., coded(SHAPE))
    assert set(store.stored.values()) == {1}
    assert len(store.stored) == store.images[0].levels[0].grid.counts[0] * 3 * 2
    assert not store.loaded
    target.flush()
    assert set(store.stored.values()) == {1}
    np.testing.assert_array_equal(store.image(), coded(SHAPE))


@pytest.mark.parametrize("levels", [1, 3])
def test_a_tile_given_in_parts_is_stored_once_when_it_is_full(scratch, levels):
    store = Store(described(levels=levels))
    target = TileWriter(store, workers=2, scratch=scratch)
    image = coded(SHAPE)
    for y in range(0, 50, 5):
        for key in (np.s_[y : y + 5, :20], np.s_[y : y + 5, [25, 21, 36, 20, *range(22, 25)]]):
            write(target, key, image[np.ix_(*all_positions(key, SHAPE))])
        write(target, np.s_[y : y + 5, 26:36:3], image[y : y + 5, 26:36:3])
    assert max(at.key[1] for at in store.stored if at.level == 0) == 0, "the others are not full"
    rest = [x for x in range(26, 36) if (x - 26) % 3]
    write(target, (slice(None), rest), image[:, rest])
    assert len([at for at in store.stored if at.level == 0]) == 4 * 3 * 2
    target.flush()
    assert set(store.stored.values()) == {1}
    np.testing.assert_array_equal(store.image(), image)


def test_positions_given_twice_do_not_fill_a_tile_too_early(scratch):
    store = Store()
    target = TileWriter(store, workers=1, scratch=scratch)
    image = coded(SHAPE)
    write(target, ([0, 0, 1, 1, *range(12)], slice(0, 16), 0), 1)  # 16 rows, but 12 of them twice
    assert not store.stored
    for y in range(16):
        write(target, np.s_[y, :16, 0], image[y : y + 1, :16, :1])
    assert list(store.stored.values()) == [1]
    np.testing.assert_array_equal(store.image()[:16, :16, 0], image[:16, :16, 0])


@pytest.mark.parametrize(
    "rows",
    [
        [np.s_[0:8], np.s_[4:12]],
        [np.s_[0:12], np.s_[4:8]],
        [np.s_[0:8], np.s_[0:4], np.s_[0:4]],
        [np.s_[0:15:2], np.s_[15:16]],
        [np.s_[1:16:2], np.s_[0:1]],
        [np.s_[n : n + 1] for n in range(12)] + [np.s_[0:4]],
        [np.s_[0:4], np.s_[0:5], np.s_[0:4], np.s_[0:3]],
    ],
    ids=str,
)
def test_a_tile_is_not_taken_for_full_while_a_pixel_is_missing(scratch, rows):
    store, image = Store(), coded(SHAPE)
    target = TileWriter(store, workers=1, scratch=scratch)
    for part in rows:
        write(target, (part, slice(0, 16), 0), image[part, :16, :1])
    assert not store.stored
    missing = sorted(set(range(16)) - {y for part in rows for y in range(16)[part]})
    for y in missing[:-1]:
        write(target, np.s_[y, :16, 0], image[y : y + 1, :16, :1])
    assert not store.stored
    write(target, np.s_[missing[-1], :16, 0], image[missing[-1] :, :16, :1][:1])
    assert list(store.stored.values()) == [1]
    np.testing.assert_array_equal(store.image()[:16, :16, 0], image[:16, :16, 0])


def test_pixels_given_again_do_not_fill_a_tile(scratch):
    store = Store()
    target = TileWriter(store, workers=1, scratch=scratch)
    for _ in range(40):
        write(target, np.s_[3, :16, 0], 7)
    assert not store.stored
    target.flush()
    assert list(store.stored.values()) == [1]


def test_a_tile_completed_later_is_loaded_once_and_keeps_what_was_there(scratch):
    store = Store()
    target = TileWriter(store, workers=1, scratch=scratch)
    image = coded(SHAPE)
    write(target, ..., image)
    for y in range(3, 9):
        write(target, np.s_[y, 2:5, 0], 9)
    target.flush()
    image[3:9, 2:5, 0] = 9
    np.testing.assert_array_equal(store.image(), image)
    assert sum(store.loaded.values()) == 1
    assert sum(store.stored.values()) == 4 * 3 * 2 + 1


def test_a_whole_tile_makes_its_waiting_parts_void(scratch):
    store = Store()
    target = TileWriter(store, workers=1, scratch=scratch)
    write(target, np.s_[:16, :5, 0], 1)
    write(target, np.s_[:16, :16, 0], 2)
    target.flush()
    assert (store.image()[:16, :16, 0] == 2).all()
    assert sum(store.stored.values()) == 1
    assert scratch._used == 0


@pytest.mark.parametrize("levels", [1, 4])
def test_all_scratch_is_given_back(tmp_path, levels):
    scratch = Scratch(tmp_path, budget=3000)
    store = Store(described(levels=levels))
    target = TileWriter(store, workers=2, scratch=scratch)
    ends = []
    for _ in range(2):
        rng = np.random.default_rng(0)
        for _ in range(30):
            y, x = rng.integers(0, 36, 2)
            write(target, np.s_[y : y + 9, x : x + 20], 3)
        target.flush()
        assert scratch._used == 0
        ends.append(scratch._end)
    assert ends[0] == ends[1] > 0  # the second time it needed nothing new
    scratch.close()


def test_what_waits_for_its_other_parts_costs_no_memory_beyond_the_budget(tmp_path):
    scratch = Scratch(tmp_path, budget=1 << 20)
    shape = (256, 256, 200, 1, 1)
    store = Store(described(shape, (256, 256, 1, 1, 1)))
    target = TileWriter(store, workers=1, scratch=scratch)
    for z in range(200):
        write(target, np.s_[0, :, z], z)
    held = list(target._partial.values())
    bytes_in_memory = sum(room.nbytes for p in held for room in p.rooms if not room.spilled)
    assert len(held) == 200
    assert bytes_in_memory <= 1 << 20
    target.flush()
    assert (store.image()[0, :, :, 0, 0] == np.arange(200)).all()
    scratch.close()


# ------------------------------------------------------------------ writing: what


@pytest.mark.parametrize("budget", [0, 2000, 1 << 27])
@given(data=st.data())
def test_any_writes_end_as_in_numpy_and_the_pyramid_is_that_of_the_result(tmp_path, budget, data):
    """A pyramid made in one pass while tiles come and go equals one made from scratch."""
    image = np.zeros((40, 37, 1, 1, 1), "u2")
    store = Store(described(image.shape, levels=3))
    with closing(Scratch(tmp_path, budget=budget)) as scratch:
        target = TileWriter(store, workers=2, scratch=scratch)
        for number in range(data.draw(st.integers(1, 6))):
            y, x = data.draw(st.integers(0, 39)), data.draw(st.integers(0, 36))
            h, w = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
            key = np.s_[y : y + h : data.draw(st.sampled_from([1, 1, 2])), x : x + w]
            value = coded([len(p) for p in all_positions(key, image.shape)], seed=number)
            put(image, key, value)
            write(target, key, value)
        target.flush()
    for level in range(3):
        np.testing.assert_array_equal(store.image(level), image)
        image = smaller(image)


@pytest.mark.parametrize("method", ["mean", "nearest", "mode", "median", "max"])
def test_every_method_reaches_the_pyramid(scratch, method):
    store = Store(described(levels=3, dtype="u1"))
    image = coded(SHAPE, "u1") % 7
    target = TileWriter(store, workers=2, scratch=scratch, method=method)
    write(target, ..., image)
    target.flush()
    np.testing.assert_array_equal(store.image(1), smaller(image, method))
    np.testing.assert_array_equal(store.image(2), smaller(smaller(image, method), method))


def test_a_pyramid_is_stored_in_one_pass(scratch):
    store = Store(described((256, 256, 1, 1, 1), levels=5))
    target = TileWriter(store, workers=1, scratch=scratch)
    write(target, ..., coded((256, 256, 1, 1, 1)))
    assert Counter(at.level for at in store.stored) == {0: 256, 1: 64, 2: 16, 3: 4, 4: 1}
    assert set(store.stored.values()) == {1}
    assert not any(at.level == 0 for at in store.loaded)
    assert not target._partial


# ------------------------------------------------------------------ writing: when it breaks


class Fails(Store):
    """Fails at one tile, in one of the three steps; the rows from the 9th on wait for that."""

    def __init__(self, step, key, stopped, **more):
        super().__init__(**more)
        self._step, self._key, self._stopped = step, key, stopped

    def _maybe(self, step, at):
        if step == self._step and at == self._key:
            raise OSError(f"{step} failed")
        assert at.key[0] < 8 or self._stopped.wait(WAIT), "nobody has failed"

    def encode_tile(self, at, tile):
        self._maybe("encode", at)
        return super().encode_tile(at, tile)

    def store_tile(self, at, encoded):
        self._maybe("store", at)
        super().store_tile(at, encoded)

    def load_tile(self, at):
        self._maybe("load", at)
        return super().load_tile(at)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("step", ["encode", "store"])
def test_a_tile_that_cannot_be_stored_is_an_error_in_the_caller(
    scratch, workers, parallel, level, step, stopped, monkeypatch
):
    monkeypatch.setattr(writing, "_UNIT", 0)  # tile by tile
    shape = (320, 320, 1, 1, 1)
    at = Address(0, level, (1, 1, 0, 0, 0))
    store = Fails(step, at, stopped, spec=described(shape, levels=2))
    store.caps = Caps(parallel_store=parallel)
    target = TileWriter(store, workers=workers, scratch=scratch)
    with pytest.raises(OSError, match=f"{step} failed"):
        write(target, ..., coded(shape))
    # the first 8 of 20 rows at most with what they make below, and what each worker has in hand
    assert sum(store.stored.values()) <= 160 + 40 + 2 * workers, "the rest was not cancelled"
    write(target, np.s_[:16, :16], 0)  # no lock is left behind


@pytest.mark.parametrize("step", ["encode", "store", "load"])
def test_a_partial_tile_that_cannot_be_stored_is_an_error_too(scratch, step, stopped):
    store = Fails(step, Address(0, 0, (0, 1, 0, 0, 0)), stopped)
    target = TileWriter(store, workers=2, scratch=scratch)
    with pytest.raises(OSError, match=f"{step} failed"):  # noqa: PT012
        write(target, np.s_[1:-1, 1:-1], 3)
        target.flush()


@pytest.mark.parametrize("parallel", [False, True])
def test_tiles_are_stored_one_at_a_time_unless_the_backend_allows_more(scratch, parallel):
    inside, most, lock = 0, 0, threading.Lock()
    gate = threading.Barrier(3)

    class Touchy(Store):
        caps = Caps(parallel_store=parallel)

        def store_tile(self, at, encoded):
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            if parallel and at.key[:3] in ((0, 0, 0), (0, 1, 0), (0, 2, 0)):
                gate.wait(20)  # only where three are inside at once does this return
            time.sleep(0.002)
            with lock:
                inside -= 1
            super().store_tile(at, encoded)

    TileWriter(Touchy(), workers=3, scratch=scratch).write(select(..., SHAPE).spans, coded(SHAPE))
    assert (most == 1) != parallel


def test_no_more_tiles_are_in_work_than_there_are_workers(scratch):
    live, most, lock = 0, 0, threading.Lock()

    class Watched(Store):
        def encode_tile(self, at, pixels):
            nonlocal live, most
            with lock:
                live += 1
                most = max(most, live)
            time.sleep(0.001)
            return super().encode_tile(at, pixels)

        def store_tile(self, at, encoded):
            nonlocal live
            super().store_tile(at, encoded)
            with lock:
                live -= 1

    TileWriter(Watched(), workers=2, scratch=scratch).write(select(..., SHAPE).spans, coded(SHAPE))
    assert 1 <= most <= 2


def test_threads_that_fill_one_tile_together_store_it_once(tmp_path):
    """Without a turn for each tile they would begin it twice and lose each other's pixels."""
    for attempt in range(20):
        scratch = Scratch(tmp_path)
        store = Slow(described((64, 64, 1, 1, 1), (64, 64, 1, 1, 1)))
        target = TileWriter(store, workers=1, scratch=scratch)
        image = coded((64, 64, 1, 1, 1), seed=attempt)
        gate = threading.Barrier(4)

        def rows(first, gate=gate, target=target, image=image):
            gate.wait()
            for y in range(first, 64, 4):
                write(target, np.s_[y], image[y : y + 1])

        threads = [threading.Thread(target=rows, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        target.flush()
        scratch.close()
        np.testing.assert_array_equal(store.image(), image)
        assert list(store.stored.values()) == [1]


class Slow(Store):
    """Takes its time to say that it has no such tile."""

    def load_tile(self, at):
        time.sleep(0.001)
        return super().load_tile(at)


def test_threads_that_write_the_same_whole_tile_leave_one_value_in_all_levels(scratch):
    store = Slow(described((32, 32, 1, 1, 1), levels=2))
    target = TileWriter(store, workers=1, scratch=scratch)

    def values(first):
        for n in range(first, 60, 3):
            write(target, ..., n * 100)

    threads = [threading.Thread(target=values, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    target.flush()
    np.testing.assert_array_equal(store.image(1), smaller(store.image(0)))


@given(st.data())
def test_whole_tiles_given_together_are_as_each_written_alone(data):
    shape = (data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)), 1, 2, 3)
    image = coded(shape, "u2")
    together, alone = (Store(described(shape, levels=3)) for _ in range(2))
    together.store_tiles = lambda tiles: [together.store_tile(at, e) for at, e in tiles]
    grid = together.images[0].levels[0].grid
    keys = data.draw(st.permutations(sorted(grid.keys())))
    cut = data.draw(st.integers(0, len(keys)))
    with closing(Scratch(Path())) as scratch:
        writer = TileWriter(together, workers=1, scratch=scratch)
        for some in (keys[:cut], keys[cut:]):
            tiles = [(Address(0, 0, key), image[grid.region(key).slices()]) for key in some]
            writer.write_tiles(tiles)
            for at, tile in tiles:
                assert np.array_equal(writer.load_tile(at), tile)
        writer.flush()
        slow = TileWriter(alone, workers=1, scratch=scratch)
        slow.write(tuple(range(n) for n in shape), image)
        slow.flush()
    assert together.tiles.keys() == alone.tiles.keys()
    for at, tile in alone.tiles.items():
        assert np.array_equal(together.tiles[at], tile), at


def test_a_tile_that_waits_for_its_rest_can_be_looked_at():
    store = Store()
    with closing(Scratch(Path())) as scratch:
        writer = TileWriter(store, workers=1, scratch=scratch)
        at = Address(0, 0, (0, 0, 0, 0, 0))
        assert writer.load_tile(at) is None
        writer.write(
            (range(3), range(4), range(1), range(1), range(1)), coded((3, 4, 1, 1, 1), "u2")
        )
        found = writer.load_tile(at)
        assert np.array_equal(found[:3, :4], coded((3, 4, 1, 1, 1), "u2"))
        assert not found[3:].any()
        found[:] = 1  # a copy
        assert not writer.load_tile(at)[3:].any()
