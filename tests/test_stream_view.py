"""A running acquisition as an array, and who is told how far it has come: NumPy is the truth."""

import gc
import random
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from bioio_tk import errors
from bioio_tk.engine import notify
from bioio_tk.engine.notify import Notifier
from bioio_tk.stream.coords import CoordTracker, CoordUpdate, ViewAxis, view_axes
from bioio_tk.stream.view import CoordsSignal, StreamView

NAMES = "tpczyx"
LABELS = {"p": ("a1", "b2", "c3"), "c": ("DAPI", "GFP")}


class Film:
    """Frames of which the first so many are there; remembers which were read."""

    def __init__(self, array, appended=None):
        self.planes = array.reshape(-1, *array.shape[-2:])
        self.frames_appended = len(self.planes) if appended is None else appended
        self.reads = []

    def read(self, n):
        assert n < self.frames_appended
        self.reads.append(n)
        return self.planes[n]


def film(shape=(4, 3, 2, 5, 6), appended=None, dims="tpcyx", unbounded=False, **view):
    """Return an array, a film of it and the view of that."""
    array = np.random.default_rng(1).integers(1, 60_000, shape, "uint16")
    sizes = [None, *shape[1:]] if unbounded else shape
    axes = [ViewAxis(n, size, LABELS.get(n)) for n, size in zip(dims, sizes, strict=True)]
    frames = Film(array, appended)
    return array, frames, StreamView(frames, axes, array.dtype, **view)


# ------------------------------------------------------------------ indexing


def random_item(rng, n):
    kind = rng.randrange(9)
    if kind == 0:
        return rng.randrange(-n, n)
    if kind == 1:
        return np.int64(rng.randrange(-n, n))
    if kind == 2:
        ends = [None, *range(-n - 1, n + 2)]
        return slice(rng.choice(ends), rng.choice(ends), rng.choice([None, 1, 2, -1, -2]))
    if kind == 3:
        return [rng.randrange(-n, n) for _ in range(2)]
    if kind == 4:
        return np.array([rng.random() < 0.5 for _ in range(n)])
    if kind == 5:
        return np.array([[rng.randrange(n), rng.randrange(-n, n)]] * 2)
    return slice(None)


def random_key(rng, shape):
    count = rng.randrange(len(shape) + 1)
    key = [random_item(rng, n) for n in shape[:count]]
    if rng.random() < 0.4:
        left = rng.randrange(len(shape) - count + 1)
        tail = [random_item(rng, n) for n in shape[len(shape) - left :]]
        key = [*key, ..., *tail]
    if rng.random() < 0.3:
        key.insert(rng.randrange(len(key) + 1), None)
    if rng.random() < 0.05:
        key.append(rng.choice([True, np.bool_(False)]))
    return tuple(key)


@pytest.mark.parametrize("shape", [(4, 3, 2, 5, 6), (7, 5, 6), (5, 6), (1, 3, 1, 2, 4, 3)])
def test_every_key_gives_what_numpy_gives(shape):
    array, _, view = film(shape, dims=NAMES[-len(shape) :])
    rng = random.Random(sum(shape))
    tried = 0
    for _ in range(1500):
        key = random_key(rng, shape)
        try:
            wanted = array[key]
        except IndexError:
            with pytest.raises(IndexError):
                view[key]
            continue
        got = view[key]
        assert np.shape(got) == wanted.shape, key
        np.testing.assert_array_equal(got, wanted, err_msg=str(key))
        assert got.dtype == wanted.dtype
        tried += 1
    assert tried > 700


@pytest.mark.parametrize(
    "key",
    [
        np.s_[[True, False, True, False]],
        np.s_[np.array(2)],
        np.s_[(0, 1), 1],
        np.s_[range(1, 3), ..., 0],
        np.s_[[]],
        np.s_[0, 0, 0, [[True] * 6] * 5],
        np.s_[:, [[True, False]] * 3],
        np.s_[:, 0, 0, 3, 4],
        np.s_[2, 1, 1, 3, 4],
        np.s_[..., None],
        np.s_[np.uint8(3), ::-1, 0, ::-2, 5:0:-1],
    ],
    ids=str,
)
def test_keys_of_every_kind(key):
    array, _, view = film()
    np.testing.assert_array_equal(view[key], array[key])
    assert type(view[key]) is type(array[key])


def test_what_is_read_is_a_copy():
    array, frames, view = film()
    before = array.copy()
    view[0, 0, 0][...] = 7
    view[...][...] = 7
    np.testing.assert_array_equal(frames.planes.reshape(array.shape), before)
    assert view[:].flags.writeable


@pytest.mark.parametrize(
    ("key", "reads"),
    [
        (np.s_[1, 2, 1], [11]),
        (np.s_[1, 2, :, 2:4], [10, 11]),
        (np.s_[[3, 0], 1, 0], [20, 2]),
        (np.s_[-1, 0, 0, 3], [18]),
        (np.s_[:, 0, 0, 3, 3], [0, 6, 12, 18]),
        (np.s_[0, 0, 0, [1, 1, 2], 3], [0]),
        (np.s_[2:2], []),
        (np.s_[0, 0, 0, 2:2], []),
    ],
    ids=str,
)
def test_only_the_frames_asked_for_are_read_and_each_once(key, reads):
    _, frames, view = film()
    _ = view[key]
    assert frames.reads == reads


def test_one_frame_of_a_stream_without_end_costs_nothing_more():
    class Endless:
        frames_appended = 10**15

        def read(self, n):
            return np.full((4, 4), n % 251, "uint8")

    axes = [ViewAxis("t", None), ViewAxis("c", 2), ViewAxis("y", 4), ViewAxis("x", 4)]
    view = StreamView(Endless(), axes, np.dtype("uint8"))
    assert view.shape == (5 * 10**14, 2, 4, 4)
    assert view[-1, 1, 0, 0] == (10**15 - 1) % 251
    assert view[3, 0].max() == 6
    assert view.coords["t"] == range(5 * 10**14)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (np.s_[4], "t index 4 is out of bounds: the view has t=4"),
        (np.s_[0, -4], "p index -4 is out of bounds: the view has p=3"),
        (np.s_[..., 6], "x index 6 is out of bounds"),
        (np.s_[[0, 9]], "t index 9 is out of bounds"),
        (np.s_[0.5], r"t index 0.5 is a float: give an int, a slice"),
        (np.s_["c"], "t index 'c' is a str"),
        (np.s_[[0.5]], "t index"),
        (np.s_[[[1], [1, 2]]], "differ in length"),
        (np.s_[..., 0, ...], "only one ellipsis"),
        (np.s_[0, 0, 0, 0, 0, 0], "too many indices for array: 6 were given"),
        (np.s_[[True, False]], "t mask has the shape"),
        (np.s_[np.ones((4, 2), bool)], "t, p mask has the shape"),
        (np.s_[::0], "t slice .* cannot be used: slice step cannot be zero"),
        (np.s_["a":"b"], "t slice .* cannot be used"),
    ],
    ids=str,
)
def test_a_wrong_key_says_which_axis_and_what_fits(key, text):
    _, frames, view = film()
    with pytest.raises(errors.RegionError, match=text):
        view[key]
    assert not frames.reads


# ------------------------------------------------------------------ as an array


def test_it_has_what_arrays_have():
    array, _, view = film()
    assert view.dims == ("t", "p", "c", "y", "x")
    assert (view.shape, view.ndim, view.size, view.nbytes) == (
        array.shape,
        array.ndim,
        array.size,
        array.nbytes,
    )
    assert view.dtype == array.dtype
    assert len(view) == 4
    assert "StreamView" in repr(view)
    assert "(4, 3, 2, 5, 6)" in repr(view)
    np.testing.assert_array_equal(np.asarray(view), array)
    assert np.array(view, dtype="float32").dtype == np.float32
    np.testing.assert_array_equal(view.astype("int64"), array.astype("int64"))
    for one, wanted in zip(view, array, strict=True):
        np.testing.assert_array_equal(one, wanted)
    np.testing.assert_array_equal(np.max(view, axis=0), array.max(axis=0))


def test_it_is_read_only_and_cannot_be_had_without_a_copy():
    _, _, view = film()
    with pytest.raises(TypeError):
        view[0] = 1
    with pytest.raises(ValueError, match="new array"):
        np.asarray(view, copy=False)


# ------------------------------------------------------------------ while it grows


@pytest.mark.parametrize("unbounded", [False, True])
def test_the_shape_is_what_was_reached(unbounded):
    array, frames, view = film(unbounded=unbounded, appended=0)
    assert view.shape == (0, 0, 0, 5, 6)
    assert len(view) == 0
    assert np.asarray(view).shape == view.shape
    visited = list(np.ndindex(array.shape[:3]))
    for n in range(1, len(visited) + 1):
        frames.frames_appended = n
        live = tuple(len({at[axis] for at in visited[:n]}) for axis in range(3))
        assert view.shape == (*live, 5, 6)
        assert view.coords == {
            "t": range(live[0]),
            "p": list(LABELS["p"][: live[1]]),
            "c": list(LABELS["c"][: live[2]]),
            "y": range(5),
            "x": range(6),
        }
        wanted = array.copy()
        for at in visited[n:]:
            wanted[at] = 0
        cut = tuple(slice(0, size) for size in live)
        np.testing.assert_array_equal(view[...], wanted[cut])
        np.testing.assert_array_equal(view[-1, :, ::-1], wanted[cut][-1, :, ::-1])


def test_what_was_planned_is_0_until_it_comes_unless_one_is_strict():
    array, frames, view = film(appended=7)
    strict = StreamView(frames, view._axes, array.dtype, strict=True)
    assert view.shape == strict.shape == (2, 3, 2, 5, 6)
    np.testing.assert_array_equal(view[1, 0, 0], array[1, 0, 0])
    np.testing.assert_array_equal(strict[1, 0, 0], array[1, 0, 0])
    assert not view[3, 2, 1].any()
    assert not view[[1, 3], 2].any()
    assert not view[3, 0, 0, 2, 2]
    for key in (np.s_[2], np.s_[[0, 2]], np.s_[3, 0, 0, 2, 2]):
        with pytest.raises(IndexError, match="out of bounds: the view has t=2 so far"):
            strict[key]
    assert view[5:].shape == strict[5:].shape == (0, 3, 2, 5, 6)
    np.testing.assert_array_equal(view[-2, 0, 0], array[0, 0, 0])  # from what is there
    np.testing.assert_array_equal(view[[-2, -1], 0, 0], array[:2, 0, 0])
    for key in (-3, [0, -3]):
        with pytest.raises(IndexError, match="t=2 so far"):
            view[key]


def test_the_planned_shape_is_there_from_the_start():
    array, frames, view = film(appended=1, dynamic_shape=False, strict=True)
    assert view.shape == array.shape
    assert view.coords["p"] == list(LABELS["p"])
    np.testing.assert_array_equal(view[0, 0, 0], array[0, 0, 0])
    assert not view[-1, -1, -1].any()
    assert frames.reads == [0]
    with pytest.raises(IndexError):
        view[4]


def test_without_an_end_the_shape_is_what_came_in_either_case():
    _, frames, view = film(appended=7, dynamic_shape=False, unbounded=True)
    assert view.shape == (2, 3, 2, 5, 6)
    frames.frames_appended = 1
    assert view.shape == (1, 3, 2, 5, 6)
    with pytest.raises(IndexError):
        view[1]


# ------------------------------------------------------------------ its signal


def test_nobody_is_told_anything_before_a_function_is_connected():
    asked = []
    _, _, view = film(subscribe=asked.append)
    _ = view.coords_changed, view.shape
    assert asked == []
    heard = []
    assert view.coords_changed.connect(lambda: heard.append(view.shape)) is not None
    view.coords_changed.connect(lambda: None)
    assert len(asked) == 1
    asked[0]("an update")
    assert heard == [view.shape]


def test_a_view_whose_shape_never_changes_does_not_subscribe():
    asked = []
    _, _, view = film(subscribe=asked.append, dynamic_shape=False)
    view.coords_changed.connect(lambda: None)
    assert asked == []


def test_a_signal_calls_all_and_reports_the_first_error():
    signal, heard = CoordsSignal(), []

    @signal.connect
    def fails():
        heard.append("fails")
        raise RuntimeError("no window")

    @signal.connect
    def works():
        heard.append("works")

    with pytest.raises(RuntimeError, match="no window"):
        signal.emit()
    assert heard == ["fails", "works"]
    signal.disconnect(fails)
    signal.emit()
    assert heard == ["fails", "works", "works"]
    with pytest.raises(ValueError, match="not in list"):
        signal.disconnect(fails)


# ------------------------------------------------------------------ coordinates


def tracked(sizes, labels=()):
    labels = dict(labels)
    named = [ViewAxis(f"d{k}", size, labels.get(k)) for k, size in enumerate(sizes)]
    return CoordTracker((*named, ViewAxis("y", 3), ViewAxis("x", 4)))


@pytest.mark.parametrize("sizes", [(3, 2), (None, 2), (2, 3, 4), (None,), (None, 1, 3), (1,), ()])
def test_coordinates_are_those_that_were_visited(sizes):
    tracker = tracked(sizes)
    visited = list(np.ndindex(tuple(size or 5 for size in sizes)))
    seen = [set() for _ in sizes]
    grew = []
    for n, at in enumerate(visited):
        grew.append(any(k not in s for k, s in zip(at, seen, strict=True)) or n == 0)
        for k, s in zip(at, seen, strict=True):
            s.add(k)
        update = tracker.update(n)
        assert isinstance(update, CoordUpdate)
        assert update.frame_number == n
        assert update.current_indices == {f"d{k}": i for k, i in enumerate(at)} | {"y": 0, "x": 0}
        assert update.max_coords == {
            **{f"d{k}": range(len(s)) for k, s in enumerate(seen)},
            "y": range(3),
            "x": range(4),
        }
        assert update.is_high_water_mark == grew[n]
    for n in range(len(visited)):
        found = tracker.next_expansion(n)
        if any(grew[n:]):
            assert found == n + grew[n:].index(True)
        elif None in sizes:
            assert found >= len(visited)
        else:
            assert found is None
    for first in range(len(visited)):
        for stop in range(first + 1, len(visited) + 1):
            update = tracker.update(first, stop - first)
            assert update.is_high_water_mark == any(grew[first:stop])
            assert update.frame_number == stop - 1


def test_axes_are_named_as_channels_positions_and_numbers_are():
    dims = [
        SimpleNamespace(name="p", count=2, coords=[SimpleNamespace(name="A1"), "B2"]),
        SimpleNamespace(name="z", count=2, coords=[0.5, 1.5]),
        SimpleNamespace(name="y", count=3, coords=None),
        SimpleNamespace(name="x", count=4, coords=[]),
    ]
    tracker = CoordTracker(view_axes(dims))
    assert tracker.coords(1) == {"p": ["A1"], "z": [0.5], "y": range(3), "x": range(4)}
    assert tracker.coords(3)["p"] == ["A1", "B2"]


def test_an_update_cannot_be_changed():
    update = tracked((2,)).update(0)
    with pytest.raises(AttributeError):
        update.frame_number = 5


# ------------------------------------------------------------------ listeners


@pytest.fixture
def notifier():
    made = Notifier(tracked((3, 2)))
    yield made
    made.close()


def test_listeners_hear_of_frames_in_order_in_one_other_thread(notifier):
    heard, threads = [], set()

    def changed(update):
        threads.add(threading.current_thread())
        heard.append(("changed", update.frame_number, update.is_high_water_mark))

    def expanded(update):
        threads.add(threading.current_thread())
        heard.append(("expanded", update.frame_number))

    notifier.on("coords_changed", changed)
    notifier.on("coords_expanded", expanded)
    for n in range(6):
        notifier.tell(n)
    notifier.close()
    grows = [True, True, True, False, True, False]  # of 3 times 2 channels
    wanted = []
    for n in range(6):
        wanted.append(("changed", n, grows[n]))
        wanted += [("expanded", n)] * grows[n]
    assert heard == wanted
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_close_waits_for_a_slow_listener_and_appending_does_not():
    notifier, heard = Notifier(tracked((None,))), []

    def slow(update):
        time.sleep(0.002)
        heard.append(update.frame_number)

    notifier.on("coords_expanded", slow)
    for n in range(200):
        notifier.tell(n)
    assert len(heard) < 200  # they are heard of behind the back of who appends
    notifier.close()
    assert heard == list(range(200))
    notifier.close()


def test_who_is_far_behind_hears_the_latest_and_every_growth():
    go_on, changes, growths = threading.Event(), [], []
    notifier = Notifier(tracked((3, 1000)), patience=10)

    def slow(update):
        changes.append(update.frame_number)
        assert go_on.wait(20)

    notifier.on("coords_changed", slow)
    notifier.on("coords_expanded", lambda update: growths.append(update.frame_number))
    for n in range(3000):
        notifier.tell(n)
    go_on.set()
    notifier.close()
    assert growths == [*range(1000), 1000, 2000]
    assert changes == sorted(set(changes))
    assert {1000, 2000, 2999} <= set(changes)
    assert len(changes) < 1100


def test_what_waits_takes_no_memory():
    go_on = threading.Event()
    notifier = Notifier(tracked((None, 2)))
    notifier.on("coords_expanded", lambda _update: go_on.wait(20))
    for n in range(50_000):
        notifier.tell(n)
    assert len(notifier._runs) <= 2
    notifier._listeners = ()  # or it would be told of each
    go_on.set()
    notifier.close()


def test_a_listener_that_fails_stops_nobody_and_is_reported_once(notifier):
    heard = []

    def fails(update):
        raise ValueError(f"frame {update.frame_number}")

    def leaves(_update):
        sys.exit(3)

    notifier.on("coords_changed", fails)
    notifier.on("coords_changed", leaves)
    notifier.on("coords_changed", lambda update: heard.append(update.frame_number))
    for n in range(4):
        notifier.tell(n)
    notifier.close()
    assert heard == [0, 1, 2, 3]
    first, second = notifier.take_errors()
    assert (first.event, first.callback, first.times) == ("coords_changed", fails, 4)
    assert isinstance(first.error, ValueError)
    assert str(first.error) == "frame 0"
    assert isinstance(second.error, SystemExit)
    assert notifier.take_errors() == []
    notifier.tell(4)
    notifier._deliver()
    assert [failure.times for failure in notifier.take_errors()] == [1, 1]


def test_a_listener_may_append_and_close():
    notifier, heard = Notifier(tracked((None,))), []

    def again(update):
        heard.append(update.frame_number)
        if update.frame_number < 5:
            notifier.tell(update.frame_number + 1)
        else:
            notifier.close()

    notifier.on("coords_changed", again)
    notifier.tell(0)
    ended = threading.Thread(target=notifier.close, daemon=True)
    ended.start()
    ended.join(20)
    assert not ended.is_alive()
    assert heard == [0, 1, 2, 3, 4, 5]


def test_who_comes_late_hears_only_what_comes_after(notifier):
    go_on, early, late = threading.Event(), [], []

    def first(update):
        assert go_on.wait(20)
        early.append(update.frame_number)

    notifier.on("coords_changed", first)
    for n in range(3):
        notifier.tell(n)
    notifier.on("coords_changed", lambda update: late.append(update.frame_number), 3)
    for n in range(3, 6):
        notifier.tell(n)
    go_on.set()
    notifier.close()
    assert early == [0, 1, 2, 3, 4, 5]
    assert late == [3, 4, 5]


def test_frames_that_were_skipped_are_told_once_and_only_if_the_coordinates_grow():
    go_on, heard = threading.Event(), []
    notifier = Notifier(tracked((4, 3)))

    def hears(update):
        assert go_on.wait(20)
        heard.append(update.frame_number)

    notifier.on("coords_changed", hears)
    notifier.tell(0)
    notifier.tell(1, 3, together=True)  # up to frame 3, a new time point
    notifier.tell(4, 2, together=True)  # nothing new
    notifier.tell(6)
    notifier.tell(7)
    go_on.set()
    notifier.close()
    assert heard == [0, 3, 6, 7]


def test_a_thread_that_waits_hears_of_the_next_frame():
    notifier, heard = Notifier(tracked((None,))), threading.Semaphore(0)
    notifier.on("coords_changed", lambda _update: heard.release())
    for n in range(3):
        notifier.tell(n)
        assert heard.acquire(timeout=20)
        time.sleep(0.02)  # it has nothing to do, and waits
    notifier.close()


def test_the_thread_ends_when_nothing_comes_and_another_one_begins(monkeypatch):
    monkeypatch.setattr(notify, "_LINGER", 0.01)
    notifier, heard, told = Notifier(tracked((None,))), [], threading.Semaphore(0)

    def hears(update):
        heard.append((update.frame_number, threading.current_thread()))
        told.release()

    notifier.on("coords_changed", hears)
    notifier.tell(0)
    assert told.acquire(timeout=20)
    heard[0][1].join(20)
    assert not heard[0][1].is_alive()
    notifier.tell(1)
    notifier.close()
    assert [n for n, _ in heard] == [0, 1]


def test_it_can_be_forgotten(monkeypatch):
    monkeypatch.setattr(notify, "_LINGER", 0.01)
    notifier, threads = Notifier(tracked((None,))), []
    notifier.on("coords_changed", lambda _update: threads.append(threading.current_thread()))
    notifier.tell(0)
    while not threads:
        time.sleep(0.001)
    threads[0].join(20)
    there = weakref.ref(notifier)
    del notifier
    gc.collect()
    assert there() is None


def test_where_no_thread_can_start_close_tells(monkeypatch):
    def refuse(_self):
        raise RuntimeError("can't start new thread")

    notifier, heard = Notifier(tracked((None,))), []

    def hears(update):
        heard.append(("begins", update.frame_number))
        notifier.close()
        heard.append(("ends", update.frame_number))

    notifier.on("coords_changed", hears)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    notifier.tell(0)
    notifier.tell(1)
    notifier.close()
    assert heard == [("begins", 0), ("ends", 0), ("begins", 1), ("ends", 1)]


@pytest.mark.parametrize(("event", "callback"), [("changed", print), ("coords_changed", "print")])
def test_an_event_that_does_not_exist_or_what_cannot_be_called(notifier, event, callback):
    with pytest.raises(errors.SpecError, match=r"coords_expanded|cannot be called"):
        notifier.on(event, callback)
    assert not notifier.listens
