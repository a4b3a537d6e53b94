"""Streams under stress: Ctrl-C at any moment, many threads, memory that has to suffice."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections import Counter

import numpy as np
import pytest
import zarr

from bioio_tk import (
    AcquisitionSettings,
    Dimension,
    Position,
    create_stream,
    dims_from_standard_axes,
)
from bioio_tk.core.spec import Address
from bioio_tk.engine.notify import Notifier
from bioio_tk.errors import BioIOWarning, ClosedError, StreamError

WAIT = 20


def settings_for(path, sizes, chunks=None, **options):
    sizes = sizes | {"y": 16, "x": 16}
    return AcquisitionSettings(
        root_path=str(path),
        dimensions=dims_from_standard_axes(sizes, chunk_shapes=chunks),
        dtype="uint16",
        **options,
    )


def frame(value):
    return np.full((16, 16), value, "u2")


CTRL_C = """
    import random, signal, sys
    import numpy as np
    import zarr
    from bioio_tk import AcquisitionSettings, create_stream, dims_from_standard_axes

    def interrupt(*_):
        raise KeyboardInterrupt

    deep, folder = sys.argv[1] == "deep", sys.argv[2]
    sys.setswitchinterval(1e-5)
    signal.signal(signal.SIGALRM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    random_ = random.Random(3)
    interrupted = 0
    for turn in range(70):
        path = f"{folder}/{turn}.ome.zarr"
        sizes = {"t": None, "y": 16, "x": 16}
        settings = AcquisitionSettings(
            root_path=path,
            dimensions=dims_from_standard_axes(sizes, chunk_shapes={"t": 4} if deep else None),
            dtype="uint16",
            max_workers=random_.choice([1, 3]),
            max_memory_bytes=random_.choice([4096, 1 << 20]),
        )
        stream = create_stream(settings)
        stream.append(np.full((16, 16), 1, "u2"))
        frames = random_.choice([1, 40, 400])
        try:
            signal.setitimer(signal.ITIMER_REAL, random_.uniform(1e-4, 0.02))
            while (n := stream._recorder.frames_appended) < frames:
                if random_.random() < 0.1:
                    stream.skip()
                else:
                    stream.append(np.full((16, 16), n + 1, "u2"))
            stream.close()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        stream.close()
        stats = stream.stats
        total = stats.frames_appended + stats.frames_skipped
        found = zarr.open_group(path, mode="r")["0"][:total, 0, 0]
        there = np.flatnonzero(found)
        assert (found[there] == there + 1).all(), (turn, found)
        assert total == len(found), (turn, stats)
        assert len(there) == stats.frames_appended == stats.frames_stored, (turn, stats)
    print(interrupted)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no timers there")
@pytest.mark.parametrize("mode", ["plain", "deep"])
def test_ctrl_c_at_any_moment_loses_nothing_that_was_taken(tmp_path, mode):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(CTRL_C), mode, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
    assert not list(tmp_path.glob("*.journal"))


def test_ctrl_c_between_taking_a_frame_and_waking_a_worker():
    """The frame counts as taken, so it has to be stored, and those after it."""
    from bioio_tk.engine.feed import Feed

    got = []
    line = Feed(
        (4, 4), np.dtype("u2"), lambda first, some: got.extend(some[:, 0, 0].tolist()),
        workers=1, budget=1 << 20,
    )  # fmt: skip

    def trace(where, event, _):
        if where.f_code.co_name != "give":
            return None
        if event == "line" and line.next == 1:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    line.slot()[...] = 7
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            line.give()
    finally:
        sys.settrace(before)
    for value in (8, 9):
        line.slot()[...] = value
        line.give()
    closing = threading.Thread(target=line.close, daemon=True)
    closing.start()
    closing.join(WAIT)
    assert got == [7, 8, 9]


def test_pieces_of_a_chunk_that_workers_store_at_the_same_time_are_all_counted(
    tmp_path, monkeypatch
):
    """A count that is lost keeps the frames from being safe until the stream is closed."""
    from bioio_tk.stream import image

    class Slow(Counter):
        def __setitem__(self, key, value):
            time.sleep(0.02)
            super().__setitem__(key, value)

    monkeypatch.setattr(image, "Counter", Slow)
    safe = []
    settings = settings_for(tmp_path / "a.ome.zarr", {"t": 4}, {"t": 4, "y": 8, "x": 8})
    with create_stream(settings) as stream:
        stream.append(frame(1))
        stream.flush()
        (found,) = stream._recorder._images.values()
        monkeypatch.setattr(found, "_stored", lambda start, _: safe.append(start))
        pieces = [Address(0, 0, (y, x, 0, 0, 0)) for y in range(2) for x in range(2)]
        start = threading.Barrier(4)

        def store(at):
            start.wait(WAIT)
            found._tiles_stored([(at, None)])

        workers = [threading.Thread(target=store, args=(at,)) for at in pieces]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(WAIT)
    assert safe == [0, 1, 2, 3]


def test_flush_ends_while_another_thread_goes_on():
    """It waits for the frames given so far, not for a moment in which nothing waits."""
    from bioio_tk.engine.feed import Feed

    given = threading.Semaphore(0)
    stop = threading.Event()

    def store(first, frames):  # one batch is only stored when there are frames after it
        assert stop.is_set() or given.acquire(timeout=WAIT)

    line = Feed((600, 1000), np.dtype("u2"), store, workers=1, budget=64 << 20)
    for _ in range(3):
        line.slot()
        line.give()
    flushed = threading.Event()

    def flush():
        line.drain()
        flushed.set()

    thread = threading.Thread(target=flush)
    thread.start()
    for _ in range(12):
        line.slot()
        line.give()
        given.release()
        if flushed.wait(0.05):
            break
    ended = flushed.is_set()
    stop.set()
    given.release()
    thread.join(WAIT)
    line.close()
    assert ended


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk", "pyramid", "share"),
    [
        ({"t": 4}, None, 32),
        ({"y": 8, "x": 8}, "live", 32),
        ({"y": 8, "x": 8}, None, 64),
        ({"t": 1}, "live", 64),
    ],
)
def test_frames_and_tiles_that_wait_share_the_memory(tmp_path, monkeypatch, chunk, pyramid, share):
    from bioio_tk.engine.scratch import Scratch

    most = []
    room = Scratch.room

    def watched(scratch, shape, dtype):
        found = room(scratch, shape, dtype)
        most.append(scratch._used)
        return found

    monkeypatch.setattr(Scratch, "room", watched)
    bound = 64 * 512
    settings = settings_for(
        tmp_path / "a.ome.zarr",
        {"t": 8, "c": 40},
        {"y": 16, "x": 16} | chunk,
        max_memory_bytes=bound,
        pyramid=pyramid,
        pyramid_levels=pyramid and 2,
    )
    with create_stream(settings) as stream:
        for n in range(320):
            stream.append(frame(n + 1))
        stats = stream.stats
    tiles = max(most, default=0)
    assert stats.memory_bytes <= stats.queue_capacity * 512 <= bound - tiles
    assert (tiles > 0) == (share < 64)
    assert stats.queue_capacity == share
    found = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")["0"][...]
    assert (found.reshape(320, -1) == np.arange(1, 321)[:, None]).all()


# --- what is said of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("where", [0, 3, 8])
def test_frames_stored_counts_frames_and_not_what_was_skipped(tmp_path, where, deep):
    chunks = {"t": 2} if deep else None
    settings = settings_for(tmp_path / "a.ome.zarr", {"t": 12}, chunks, max_workers=2)
    seen = []
    with create_stream(settings) as stream:
        for n in range(8):
            if n == where:
                stream.skip(frames=4)
            seen.append(stream.stats.frames_stored)
            stream.append(frame(n + 1))
        if where == 8:
            stream.skip(frames=4)
        stream.flush()
        seen.append(stream.stats.frames_stored)
        appended, skipped = stream.stats.frames_appended, stream.stats.frames_skipped
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert (seen[-1], appended, skipped) == (8, 8, 4)
    assert stream.stats.frames_stored == 8


def test_what_is_stored_never_goes_below_0_while_it_is_put_on_record(tmp_path, monkeypatch):
    from bioio_tk.stream.journal import StreamJournal

    seen = []
    skipped = StreamJournal.skipped

    def watched(journal, start, stop):
        skipped(journal, start, stop)
        seen.append(stream.stats.frames_stored)

    def frames(journal, *_):
        seen.append(stream.stats.frames_stored)
        raise OSError(28, "No space left on device")

    stream = create_stream(settings_for(tmp_path / "a.ome.zarr", {"t": 12}))
    monkeypatch.setattr(StreamJournal, "skipped", watched)
    monkeypatch.setattr(StreamJournal, "frames", frames)
    stream.skip(frames=5)
    stream.append(frame(1))
    with pytest.raises(StreamError, match="the first 0 of 1 frames are safe"):
        stream.flush()
    assert stream.stats.frames_stored == 0
    assert seen == [0, 0]
    monkeypatch.undo()
    with pytest.raises(StreamError, match="the first 0 of 1 frames are safe"):
        stream.close()


def test_frames_that_failed_once_are_not_put_on_record_without_their_metadata(
    tmp_path, monkeypatch
):
    """The disk is full for a moment, and another worker reports its frames after that."""
    from bioio_tk.stream.journal import StreamJournal

    entered = []
    given, failed = threading.Event(), threading.Event()

    def frames(journal, start, stop, documents=()):
        if not failed.is_set():
            assert given.wait(WAIT)
            failed.set()
            raise OSError(28, "No space left on device")
        entered.append((start, stop, list(documents)))

    from bioio_tk.backends.zarr_stream import GrowingZarr

    store_tiles = GrowingZarr.store_tiles

    def store(sink, tiles):
        if any(at.key[4] == 1 for at, _ in tiles):
            assert failed.wait(WAIT)  # the second frame is stored after the first has failed
        store_tiles(sink, tiles)

    monkeypatch.setattr(StreamJournal, "frames", frames)
    monkeypatch.setattr(GrowingZarr, "store_tiles", store)
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "a.ome.zarr"),
        dimensions=dims_from_standard_axes({"t": 4, "y": 1024, "x": 1024}),
        dtype="uint16",
        max_workers=2,
    )
    stream = create_stream(settings)
    for n in range(2):
        stream.append(np.full((1024, 1024), n, "u2"), frame_metadata={"n": n})
    given.set()
    with pytest.raises(StreamError, match="No space left"):
        stream.close()
    assert failed.is_set()
    assert entered == []


def test_a_stream_of_skipped_frames_alone_says_that_nothing_is_left(tmp_path):
    stream = create_stream(settings_for(tmp_path / "a.ome.zarr", {"t": 5}))
    stream.skip(frames=5)
    with pytest.warns(BioIOWarning, match="no frame with pixels"):
        stream.close()
    assert not list(tmp_path.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream.close()


def test_view_of_a_position_whose_first_frame_failed(tmp_path, monkeypatch):
    from bioio_tk.backends.zarr_stream import GrowingZarr

    store_tiles = GrowingZarr.store_tiles
    stored = []

    def store(sink, tiles):
        stored.append(sink)
        if sink is not stored[0]:
            raise OSError(28, "No space left on device")
        store_tiles(sink, tiles)

    monkeypatch.setattr(GrowingZarr, "store_tiles", store)
    plane = [Dimension(name=n, count=16, type="space") for n in "yx"]
    positions = Dimension(name="p", type="position", coords=[Position(name=n) for n in "AB"])
    stream = create_stream(
        AcquisitionSettings(
            root_path=str(tmp_path / "a.ome.zarr"),
            dimensions=[Dimension(name="t", count=2, type="time"), positions, *plane],
            dtype="uint16",
        )
    )
    view = stream.view()
    stream.append(frame(1))
    stream.flush()
    stream.append(frame(2))
    with pytest.raises(StreamError, match="the first 1 of 2 frames are safe"):
        stream.close()
    assert (view[0, 0] == 1).all()
    assert not view[0, 1].any()
    del view, stream
    gc.collect()  # what was raised knows the stream, and that has files open for its views


def test_what_is_noted_while_the_stream_is_closed_is_kept(tmp_path, monkeypatch):
    from bioio_tk.backends.zarr_stream import ZarrStore

    path = tmp_path / "a.ome.zarr"
    finish, close = ZarrStore.finish, ZarrStore.close
    written, noted = threading.Event(), threading.Event()

    def slowly(store, *args):
        finish(store, *args)
        written.set()

    def late(store):
        noted.wait(0.2)
        close(store)

    monkeypatch.setattr(ZarrStore, "finish", slowly)
    monkeypatch.setattr(ZarrStore, "close", late)
    stream = create_stream(settings_for(path, {"t": 1}))
    stream.append(frame(1))
    errors = []

    def note():
        try:
            assert written.wait(WAIT)
            stream.set_global_metadata("lab", {"dose": 3})
        except Exception as exc:
            errors.append(exc)
        noted.set()

    thread = threading.Thread(target=note)
    thread.start()
    stream.close()
    thread.join(WAIT)
    assert not errors
    assert json.loads((path / "zarr.json").read_text())["attributes"]["lab"] == {"dose": 3}


def test_a_listener_may_append_look_and_close(tmp_path):
    stream = create_stream(settings_for(tmp_path / "a.ome.zarr", {"t": 5}))
    view = stream.view()
    done = threading.Event()

    def listen(update):
        assert stream.stats.frames_appended == update.frame_number + 1
        assert (view[update.frame_number] == update.frame_number).all()
        if update.frame_number < 4:
            stream.append(frame(update.frame_number + 1))
        else:
            stream.close()
            done.set()

    stream.on("coords_changed", listen)
    stream.append(frame(0))
    assert done.wait(WAIT)
    stream.close()
    found = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")["0"][:, 0, 0]
    assert found.tolist() == [0, 1, 2, 3, 4]


def test_ctrl_c_while_the_thread_of_listeners_starts(monkeypatch):
    """close() must not wait for a thread that was never started."""
    from bioio_tk.engine import notify

    class Teller:
        def next_expansion(self, frame):
            return None

        def update(self, first, count=1):
            heard.append(first)
            return type("Update", (), {"is_high_water_mark": False})

    class Interrupted(threading.Thread):
        def start(self):
            raise KeyboardInterrupt

    heard = []
    line = Notifier(Teller())
    line.on("coords_changed", lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(notify.threading, "Thread", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            line.tell(0)
    closing = threading.Thread(target=line.close, daemon=True)
    closing.start()
    closing.join(WAIT)
    assert not closing.is_alive()
    assert heard == [0]


@pytest.mark.parametrize("full", [False, True])
def test_a_forgotten_stream_is_closed_also_when_its_own_worker_collects_it(
    tmp_path, monkeypatch, full
):
    from bioio_tk.backends.zarr_stream import GrowingZarr

    path = tmp_path / "a.ome.zarr"
    store_tiles = GrowingZarr.store_tiles
    forgotten = threading.Event()

    def store(sink, tiles):
        if tiles[0][0].key[4]:
            assert forgotten.wait(WAIT)
            gc.collect()
            if full:
                raise OSError(28, "No space left on device")
        store_tiles(sink, tiles)

    monkeypatch.setattr(GrowingZarr, "store_tiles", store)
    gc.disable()
    try:
        stream = create_stream(settings_for(path, {"t": None}, max_workers=1))
        stream.append(frame(1))
        stream.flush()
        for n in range(1, 4):
            stream.append(frame(n + 1))
        stream.itself = stream
        del stream
        forgotten.set()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")  # in the threads that collect it, and close it
            until = time.monotonic() + WAIT
            while path.with_name("a.ome.zarr.journal").exists():
                assert time.monotonic() < until
                time.sleep(0.005)
            while len(said) < 1 + full and time.monotonic() < until:
                time.sleep(0.005)
    finally:
        gc.enable()
    assert "was not closed" in str(said[0].message)
    assert len(said) == 1 + full
    if full:
        assert "No space left on device; the first 1 of 4 frames are safe" in str(said[1].message)
    found = zarr.open_group(path, mode="r")["0"][:, 0, 0].tolist()
    assert found == ([1] if full else [1, 2, 3, 4])


def test_close_by_another_thread_while_append_waits_for_room(tmp_path, monkeypatch):
    from bioio_tk.backends.zarr_stream import GrowingZarr

    gate = threading.Event()
    store_tiles = GrowingZarr.store_tiles

    def store(sink, tiles):
        assert gate.wait(WAIT)
        store_tiles(sink, tiles)

    monkeypatch.setattr(GrowingZarr, "store_tiles", store)
    path = tmp_path / "a.ome.zarr"
    stream = create_stream(settings_for(path, {"t": None}, max_memory_bytes=1024, max_workers=1))
    taken = []

    def camera():
        try:
            while True:
                taken.append(stream.append(frame(len(taken) + 1)).frame)
        except ClosedError:
            pass

    threads = [threading.Thread(target=camera), threading.Thread(target=stream.close)]
    threads[0].start()
    until = time.monotonic() + WAIT
    while stream.stats.queue_depth < 2 and time.monotonic() < until:
        time.sleep(0.001)
    threads[1].start()
    assert stream.stats.frames_stored == 0
    gate.set()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    found = zarr.open_group(path, mode="r")["0"][:, 0, 0].tolist()
    assert found == [n + 1 for n in taken]


def test_frames_are_spilled_beside_the_output_unless_told_otherwise(tmp_path, monkeypatch):
    from bioio_tk.backends.zarr_stream import GrowingZarr
    from bioio_tk.engine import feed

    gate, folders = threading.Event(), []
    store_tiles, temporary = GrowingZarr.store_tiles, feed.tempfile.TemporaryFile

    def store(sink, tiles):
        assert gate.wait(WAIT)
        store_tiles(sink, tiles)

    def watched(*args, **options):
        folders.append(options["dir"])
        return temporary(*args, **options)

    monkeypatch.setattr(GrowingZarr, "store_tiles", store)
    monkeypatch.setattr(feed.tempfile, "TemporaryFile", watched)
    (tmp_path / "other").mkdir()
    for spill_dir in (None, str(tmp_path / "other")):
        gate.clear()
        path = tmp_path / "out" / f"{len(folders)}.ome.zarr"
        options = {"max_memory_bytes": 1024, "backpressure": "spill", "spill_dir": spill_dir}
        with create_stream(settings_for(path, {"t": None}, **options)) as stream:
            for n in range(8):
                stream.append(frame(n + 1))
            gate.set()
        assert zarr.open_group(path, mode="r")["0"][:, 0, 0].tolist() == list(range(1, 9))
    assert folders == [tmp_path / "out", tmp_path / "other"]


def test_listeners_that_two_threads_add_first_are_both_told(tmp_path, monkeypatch):
    begun = threading.Barrier(2)
    heard = []
    init = Notifier.__init__

    def slowly(*args):
        time.sleep(0.05)
        init(*args)

    monkeypatch.setattr(Notifier, "__init__", slowly)
    with create_stream(settings_for(tmp_path / "a.ome.zarr", {"t": 1})) as stream:

        def listen(name):
            begun.wait(WAIT)
            stream.on("coords_changed", lambda _: heard.append(name))

        threads = [threading.Thread(target=listen, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        stream.append(frame(1))
    assert sorted(heard) == ["a", "b"]
