"""Feed and Ledger: every frame is stored once, in bounded memory, and failures reach the caller."""

from __future__ import annotations

import os
import random
import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioio_tk.core.frames import UNBOUNDED, FrameAxis, FrameOrder, FrameRoute
from bioio_tk.engine.feed import Feed
from bioio_tk.errors import BackendError, OverrunError, SpecError
from bioio_tk.stream.ledger import Ledger

U2 = np.dtype("u2")
WAIT = 20  # seconds until a test that hangs gives up; nothing is measured


class Disk:
    """Takes batches and remembers a number from each frame; may be held, and may fail."""

    def __init__(self, fail_at=None):
        self.got = {}
        self.batches = []
        self.threads = set()
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Event()
        self.fail_at = fail_at
        self._lock = threading.Lock()

    def __call__(self, first, frames):
        self.arrived.set()
        assert self.gate.wait(WAIT)
        with self._lock:
            self.threads.add(threading.get_ident())
            self.batches.append(len(frames))
            for number, frame in enumerate(frames, first):
                if number == self.fail_at:
                    raise OSError(28, "No space left on device")
                assert number not in self.got, "stored twice"
                assert (frame == frame.flat[0]).all()
                self.got[number] = int(frame.flat[0])


def feed(disk, shape=(4, 6), **options):
    return Feed(shape, U2, disk, **{"workers": 3, "budget": 1 << 20, **options})


def give(feed, value):
    feed.slot()[...] = value
    return feed.give()


def give_all(feed, count):
    for value in range(count):
        give(feed, value)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 4), max_size=60),
    st.sampled_from([48, 200, 1000, 1 << 20]),
    st.integers(1, 4),
    st.sampled_from(["block", "spill"]),
)
def test_every_frame_is_stored_once_under_its_number(skips, budget, workers, policy):
    disk = Disk()
    line = feed(disk, budget=budget, workers=workers, policy=policy)
    wanted = {}
    for value, skip in enumerate(skips):
        number = give(line, value)
        assert number == max(wanted, default=-1) + 1 + (skips[value - 1] if value else 0)
        wanted[number] = value
        if skip:
            line.skip(skip)
    line.close()
    assert line.error is None
    assert disk.got == wanted
    stats = line.stats()
    assert (stats.taken, stats.stored, stats.waiting) == (len(skips), len(skips), 0)
    assert stats.nbytes <= max(budget, 2 * 48)


def test_small_frames_that_wait_are_stored_together():
    disk = Disk()
    disk.gate.clear()
    line = feed(disk, workers=1)
    give(line, 0)
    assert disk.arrived.wait(WAIT)
    for value in range(1, 101):
        give(line, value)
    disk.gate.set()
    line.close()
    assert disk.batches == [1, 100]


def test_large_frames_are_stored_by_several_workers():
    disk = Disk()
    barrier = threading.Barrier(3)

    def store(first, frames):
        barrier.wait(WAIT)  # only passes when three are at work at once
        disk(first, frames)

    line = Feed((600, 1000), U2, store, workers=3, budget=64 << 20)
    for value in range(6):
        give(line, value)
    line.close()
    assert disk.got == {n: n for n in range(6)}
    assert len(disk.threads) == 3


def test_no_more_memory_than_the_budget_and_append_waits_for_it():
    disk = Disk()
    disk.gate.clear()
    line = feed(disk, budget=48 * 8)
    done = threading.Event()

    def camera():
        for value in range(30):
            give(line, value)
        done.set()

    thread = threading.Thread(target=camera)
    thread.start()
    assert disk.arrived.wait(WAIT)
    while line.stats().waiting < 8:
        pass
    assert not done.wait(0.05)
    assert line.stats().waiting == line.stats().capacity == 8
    disk.gate.set()
    assert done.wait(WAIT)
    thread.join()
    line.close()
    stats = line.stats()
    assert disk.got == {n: n for n in range(30)}
    assert stats.most_waiting == 8
    assert stats.nbytes == 48 * 8
    assert stats.blocked > 0


def test_raise_refuses_a_frame_and_takes_it_later():
    disk = Disk()
    disk.gate.clear()
    line = feed(disk, budget=48 * 4, policy="raise")
    for value in range(4):
        give(line, value)
    with pytest.raises(OverrunError, match=r"4 frames wait for the disk.*this frame was not taken"):
        give(line, 4)
    assert line.next == 4
    disk.gate.set()
    line.drain()
    assert give(line, 4) == 4
    line.close()
    assert disk.got == {n: n for n in range(5)}


def test_spilled_frames_come_back_and_their_places_are_used_again(tmp_path):
    disk = Disk()
    line = feed(disk, budget=48 * 8, policy="spill", spill_folder=tmp_path)  # 4 for the way there
    for turn in range(3):
        disk.gate.clear()
        for value in range(20):
            give(line, 20 * turn + value)
        assert line.stats().spilled >= 12
        for number in (20 * turn, 20 * turn + 19):
            assert (line.peek(number) == number).all()
        disk.gate.set()
        line.drain()
        assert line.stats().spilled == 0
    assert line.stats().most_spilled <= 17  # of 60 frames
    assert line.stats().nbytes == 48 * 4
    line.close()
    assert disk.got == {n: n for n in range(60)}
    assert list(tmp_path.iterdir()) == []


def test_a_slot_that_is_asked_for_twice_is_the_same():
    disk = Disk()
    line = feed(disk)
    assert line.slot() is not None
    first = line.slot()
    line.slot()[...] = 7
    assert (first == 7).all()
    line.give()
    line.close()
    assert disk.got == {0: 7}


def test_a_failure_ends_the_work_and_frees_who_waits():
    disk = Disk(fail_at=2)
    line = feed(disk, budget=48 * 2, workers=1)
    with pytest.raises(OSError, match="No space left"):
        give_all(line, 50)
    line.close()
    assert isinstance(line.error, OSError)
    assert disk.got == {0: 0, 1: 1}


def test_peek_finds_what_waits_and_nothing_else():
    disk = Disk()
    disk.gate.clear()
    line = feed(disk, workers=1)
    for value in range(5):
        give(line, value + 10)
    line.skip(2)
    give(line, 99)
    assert [int(line.peek(n)[0, 0]) for n in range(5)] == [10, 11, 12, 13, 14]
    assert line.peek(5) is line.peek(6) is line.peek(8) is None
    assert line.peek(7)[3, 5] == 99
    disk.gate.set()
    line.drain()
    assert line.peek(0) is None
    line.close()


def test_a_frame_does_not_wait_for_the_next_one():
    disk = Disk()
    line = feed(disk)
    for value in range(200):
        give(line, value)
        if value % 7 == 0:
            for _ in range(WAIT * 1000):
                if value in disk.got:
                    break
                threading.Event().wait(0.001)
            assert value in disk.got
    line.close()


def test_forked_children_are_told():
    disk = Disk()
    line = feed(disk)
    give(line, 1)
    line.drain()
    child = os.fork()
    if child == 0:
        try:
            line.slot()
        except BackendError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    line.close()


def test_an_unknown_policy_is_refused():
    with pytest.raises(SpecError, match="'drop': choose one of block, raise, spill"):
        feed(Disk(), policy="drop")


# --- Ledger --------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.randoms())
def test_ledger_passes_everything_on_once_and_in_order(sizes, random_):
    passed = []
    ledger = Ledger(lambda start, stop: passed.append((start, stop)))
    edges = [0, *np.cumsum(sizes).tolist()]
    pieces = list(pairwise(edges))
    random_.shuffle(pieces)
    known = set()
    for start, stop in pieces:
        ledger.add(start, stop)
        known |= set(range(start, stop))
        assert ledger.safe == next(n for n in range(edges[-1] + 1) if n not in known)
    assert [a for a, _ in passed] == [0, *(b for _, b in passed[:-1])]
    assert passed[-1][1] == edges[-1]


def test_ledger_takes_what_was_reported_before():
    passed = []
    ledger = Ledger(lambda start, stop: passed.append((start, stop)))
    for piece in ((0, 3), (1, 2), (2, 5), (0, 5), (4, 6)):
        ledger.add(*piece)
    assert passed == [(0, 3), (3, 5), (5, 6)]


def test_ledger_from_many_threads():
    passed = []

    def advance(start, stop):
        passed.append((start, stop))

    ledger = Ledger(advance)
    numbers = list(range(2000))
    random.Random(0).shuffle(numbers)
    threads = [
        threading.Thread(target=lambda k=k: [ledger.add(n, n + 1) for n in numbers[k::8]])
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert ledger.safe == 2000
    assert [a for a, _ in passed] == [0, *(b for _, b in passed[:-1])]


def test_a_failing_advance_is_raised_and_nothing_is_passed_on_after_it():
    calls = []

    def advance(start, stop):
        calls.append((start, stop))
        if start:
            raise OSError("full")

    ledger = Ledger(advance)
    ledger.add(0, 2)
    with pytest.raises(OSError, match="full"):
        ledger.add(2, 3)
    ledger.add(3, 4)
    ledger.add(2, 3)
    assert ledger.safe == 2
    assert calls == [(0, 2), (2, 3)]


# --- the orders ----------------------------------------------------------------------------------

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(SIZES, st.data())
def test_route_against_nested_loops(sizes, data):
    axis = data.draw(st.sampled_from([None, *range(len(sizes))]))
    route = FrameRoute(tuple(sizes), axis)
    seen = [0] * (1 if axis is None else sizes[axis])
    for number, indices in enumerate(np.ndindex(*sizes)):
        position = 0 if axis is None else indices[axis]
        assert route.indices(number) == indices
        assert route.locate(number) == (position, seen[position])
        assert route.number(position, seen[position]) == number
        stay = route.stay(number)
        assert {route.locate(n)[0] for n in range(number, number + stay)} == {position}
        seen[position] += 1
        assert route.planes(number + 1) == tuple(seen)
    assert route.total == np.prod(sizes)


@given(st.permutations("TZC"), SIZES, st.integers(1, 3), st.integers(1, 3))
def test_order_against_nested_loops(letters, sizes, cameras, filters):
    letters = letters[: len(sizes)]
    axes = [FrameAxis(k, n) for k, n in zip(letters, sizes, strict=False)]
    if "C" in letters:  # two axes that share C, the slower one with the larger step
        at = letters.index("C")
        axes[at : at + 1] = [FrameAxis("C", cameras, filters), FrameAxis("C", filters)]
    order = FrameOrder(tuple(axes))
    reached = {"Z": 0, "C": 0, "T": 0}
    for number, indices in enumerate(np.ndindex(*(axis.size for axis in axes))):
        at = {"Z": 0, "C": 0, "T": 0}
        for axis, index in zip(axes, indices, strict=True):
            at[axis.letter] += index * axis.step
        assert order.key(number) == (at["Z"], at["C"], at["T"])
        assert order.plane(*order.key(number)) == number
        reached = {k: max(reached[k], at[k]) for k in reached}
        extent = dict(zip("ZCT", order.extent(number + 1), strict=True))
        slow = axes[0].letter
        assert extent[slow] >= reached[slow] + 1
        assert all(extent[k] == order.sizes["ZCT".index(k)] for k in "ZCT" if k != slow)
    assert order.extent(order.planes) == order.sizes


def test_an_axis_without_end():
    order = FrameOrder((FrameAxis("T", UNBOUNDED), FrameAxis("C", 2)))
    assert order.unbounded
    assert order.key(2_000_001) == (0, 1, 1_000_000)
    assert order.extent(3) == (1, 2, 2)
    route = FrameRoute((UNBOUNDED, 3, 2), 1)
    assert route.locate(6 * 10**9 + 3) == (1, 2 * 10**9 + 1)
