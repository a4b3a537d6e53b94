"""The pool: run() and ordered() share work, bound it, and never lose an error or hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from bioio_tk.engine import pool
from bioio_tk.engine.pool import Turns, check_workers, cpus_available, ordered, run
from bioio_tk.errors import SpecError

WAIT = 20  # seconds until a test that hangs gives up; nothing is measured


@pytest.fixture
def ctrl_c():
    """Let SIGINT raise KeyboardInterrupt here; a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


class Panic(BaseException):
    """What some extension modules raise: no Exception."""


def on_a_helper():
    return threading.current_thread().name.startswith("bioio_tk")


class Meeting:
    """A function that returns only once it runs in `count` threads at the same time."""

    def __init__(self, count):
        self._barrier = threading.Barrier(count)

    def __call__(self, _=None):
        self._barrier.wait(WAIT)


# ------------------------------------------------------------------ run


@pytest.mark.parametrize("workers", [1, 2, 4, 64])
@pytest.mark.parametrize("batch", [1, 3, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 100])
def test_run_does_every_item_once(workers, batch, count):
    done = []
    run(done.append, iter(range(count)), workers, batch)
    assert sorted(done) == list(range(count))


def test_run_works_in_as_many_threads_as_asked():
    run(Meeting(4), range(4), 4)


def test_run_never_works_on_more_items_than_workers():
    lock, live, most = threading.Lock(), 0, 0

    def work(_):
        nonlocal live, most
        with lock:
            live += 1
            most = max(most, live)
        time.sleep(0.001)
        with lock:
            live -= 1

    run(work, range(60), 3)
    assert most <= 3


def test_run_takes_items_only_when_it_works_on_them():
    taken, done = [], []

    def items():
        for n in range(50):
            taken.append(n)
            assert len(taken) - len(done) <= 2 * 4
            yield n

    run(done.append, items(), 4)
    assert len(done) == 50


def in_a_thread(call):
    """Call from a thread that is not the main one, which would leave all work to helpers."""
    failed = []

    def guarded():
        try:
            call()
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("kind", [OSError, MemoryError, Panic, SystemExit])
@pytest.mark.parametrize("helper", [False, True])
def test_an_error_in_any_thread_arrives_in_the_caller(kind, helper):
    meet = Meeting(2)

    def work(_):
        meet()
        if on_a_helper() == helper:
            raise kind("disk gone")

    with pytest.raises(kind, match="disk gone"):
        in_a_thread(lambda: run(work, range(2), 2))


@pytest.mark.parametrize("workers", [1, 4])
def test_an_error_cancels_what_has_not_begun(workers, stopped):
    done = []

    def work(n):
        if n == 5:
            raise OSError("disk gone")
        assert n < 5 or stopped.wait(WAIT), "nobody has failed"
        done.append(n)

    with pytest.raises(OSError, match="disk gone"):
        run(work, range(10_000), workers)
    assert len(done) < 5 + workers


def test_an_error_is_raised_after_the_items_in_work_have_ended():
    meet, release, ended = Meeting(2), threading.Event(), []

    def work(_):
        meet()
        if on_a_helper():
            release.wait(WAIT)
            ended.append(1)
        else:
            threading.Timer(0.05, release.set).start()
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        in_a_thread(lambda: run(work, range(2), 2))
    assert ended == [1]


@pytest.mark.parametrize("kind", [OSError, Panic])
@pytest.mark.parametrize("good", [0, 1, 7, 30])
def test_an_error_of_the_items_themselves_arrives(kind, good):
    def items():
        yield from range(good)
        raise kind("no more tiles")

    with pytest.raises(kind, match="no more tiles"):
        run(lambda _: None, items(), 4)


def test_ctrl_c_in_the_caller_stops_the_helpers_and_comes_before_other_errors():
    meet, begun = Meeting(3), []

    def work(n):
        begun.append(n)
        if n < 3:
            meet()
            if on_a_helper():
                raise OSError("disk gone")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_a_thread(lambda: run(work, range(1000), 3))
    assert len(begun) < 1000


def test_the_main_thread_holds_nothing_while_others_can_work():
    """Ctrl-C arrives there, at any moment: with a lock just taken, it would stay taken."""
    seen = []
    run(lambda _: seen.append(threading.current_thread()), range(100), 4)
    assert len(seen) == 100
    assert threading.main_thread() not in seen
    seen.clear()
    run(lambda _: seen.append(threading.current_thread()), range(1), 4)  # not worth a thread
    assert seen == [threading.main_thread()]


def test_ctrl_c_while_the_caller_waits_is_raised_once_the_helper_has_ended(ctrl_c):
    meet, ended = Meeting(2), threading.Event()

    def work(n):
        meet()
        if n == 0:
            time.sleep(0.1)  # the other item has ended, and the caller waits for this one
            ctrl_c()
            time.sleep(0.1)
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        run(work, range(2), 2)
    assert ended.is_set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("way", ["run", "ordered"])
def test_ctrl_c_while_a_thread_starts_leaves_no_thread_that_nobody_ends(number, way):
    """An executor that is interrupted there forgets the thread, and Python waits for it forever."""
    script = f"""
        import signal, threading, time
        from bioio_tk.engine import pool

        def handler(*_):
            raise KeyboardInterrupt

        signal.signal({int(number)}, handler)
        real, done, came = threading.Event.wait, [], []

        def wait(event, timeout=None):  # Thread.start waits for the thread to have begun
            if not came:
                came.append(1)
                signal.raise_signal({int(number)})
            return real(event, timeout)

        def work(n):
            time.sleep(0.001)
            done.append(n)
            return n

        threading.Event.wait = wait
        try:
            if {way!r} == "run":
                pool.run(work, range(1000), 3)
            else:
                list(pool.ordered(work, range(1000), 3))
        except KeyboardInterrupt:
            print(len(done) < 1000, signal.getsignal({int(number)}) is handler)
        ended = len(done)
        time.sleep(0.02)
        print(len(done) == ended)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (child.returncode, child.stdout) == (0, "True True\nTrue\n"), child.stderr


def test_a_second_ctrl_c_does_not_wait(ctrl_c):
    meet, release = Meeting(2), threading.Event()

    def work(n):
        meet()
        if n == 0:
            for _ in range(2):
                time.sleep(0.1)
                ctrl_c()
            release.wait(WAIT)

    try:
        with pytest.raises(KeyboardInterrupt):
            run(work, range(2), 2)
        assert not release.is_set()
    finally:
        release.set()


def test_nested_runs_do_not_block_each_other():
    done, lock = [0], threading.Lock()

    def leaf(_):
        with lock:
            done[0] += 1

    def branch(depth):
        if depth:
            run(lambda _: branch(depth - 1), range(4), 64)
        else:
            leaf(None)

    run(lambda _: branch(4), range(8), 64)
    assert done == [8 * 4**4]


def test_a_run_goes_on_while_every_thread_of_the_pool_is_busy(monkeypatch):
    monkeypatch.setattr(pool, "_executor", None)
    release, busy = threading.Event(), threading.Semaphore(0)

    def block():
        busy.release()
        release.wait(WAIT)

    futures = [pool._submit(block) for _ in range(pool._MOST_HELPERS)]
    for _ in futures:
        busy.acquire()
    done = []
    run(done.append, range(100), 4)
    assert list(ordered(lambda n: n, range(5), 3)) == list(range(5))
    release.set()
    pool._executor.shutdown()
    assert len(done) == 100


def test_a_system_without_more_threads_makes_it_slower_not_wrong(monkeypatch):
    monkeypatch.setattr(pool, "_executor", None)
    real, started = threading.Thread.start, []

    def start(thread):
        if len(started) >= 2 and thread.name.startswith("bioio_tk"):
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(30):
        done = []

        def work(n, done=done):
            time.sleep(0.0005)
            done.append(n)

        run(work, range(20), 8)
        assert sorted(done) == list(range(20)), "run() returned while an item was in work"
    assert list(ordered(lambda n: n * n, range(20), 6)) == [n * n for n in range(20)]
    pool._executor.shutdown()


def test_work_that_got_no_thread_of_its_own_is_not_begun_by_another_one_unnoticed(monkeypatch):
    """The pool has queued it before it finds that no thread can be started."""
    monkeypatch.setattr(pool, "_executor", None)
    release, begun, ended = threading.Event(), threading.Event(), []
    blocker = pool._submit(release.wait, WAIT)
    real = threading.Thread.start

    def start(thread):
        if thread.name.startswith("bioio_tk"):
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)

    def work(n):
        if on_a_helper():
            begun.set()
            time.sleep(0.3)
        elif n == 0:
            release.set()  # the one thread there is becomes free, and looks for work
            begun.wait(0.3)
        ended.append(n)

    run(work, range(2), 2)
    assert sorted(ended) == [0, 1], "run() returned while an item was in work"
    blocker.result(WAIT)
    pool._executor.shutdown()


def test_at_exit_when_no_thread_can_be_had_the_caller_works_alone():
    script = """
        import atexit
        from bioio_tk.engine.pool import ordered, run

        def late():
            done = []
            run(done.append, range(20), 4)
            print(sorted(done) == list(range(20)), list(ordered(str, range(3), 2)))

        run(print, range(2), 2)
        atexit.register(late)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == "True ['0', '1', '2']"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_a_pool_of_its_own():
    run(Meeting(3), range(3), 3)
    pid = os.fork()
    if pid == 0:
        try:
            run(Meeting(3), range(3), 3)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ------------------------------------------------------------------ ordered


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_ordered_keeps_the_order_whichever_ends_first(ahead, count):
    def work(n):
        time.sleep(0.001 * (n % 3))
        return n * n

    assert list(ordered(work, iter(range(count)), ahead)) == [n * n for n in range(count)]


def test_ordered_works_ahead_but_not_further():
    taken = []

    def items():
        for n in range(50):
            taken.append(n)
            yield n

    for n, got in enumerate(ordered(lambda n: n, items(), 3)):
        assert got == n
        assert len(taken) <= n + 4
    assert len(taken) == 50


def test_ordered_really_works_ahead():
    second = threading.Event()

    def work(n):
        if n == 1:
            second.set()
        return n

    results = ordered(work, range(3), 2)
    assert next(results) == 0
    assert second.wait(WAIT)
    results.close()


@pytest.mark.parametrize("kind", [OSError, Panic])
def test_an_error_comes_in_its_turn_and_ends_it(kind):
    done = []

    def work(n):
        if n == 3:
            raise kind("disk gone")
        done.append(n)
        return n

    results = ordered(work, range(1000), 4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(kind, match="disk gone"):
        next(results)
    assert len(done) < 20


def test_leaving_the_loop_early_cancels_the_rest():
    done = []

    def work(n):
        time.sleep(0.001)
        done.append(n)
        return n

    for n in ordered(work, range(1000), 5):
        if n == 3:
            break
    ended = len(done)
    assert ended <= 3 + 1 + 6
    time.sleep(0.02)
    assert len(done) == ended, "something went on behind the caller's back"


def test_ordered_inside_ordered_inside_run_does_not_block():
    def inner(n):
        return sum(ordered(lambda m: m, range(n), 8))

    totals = []
    run(lambda _: totals.append(list(ordered(inner, range(20), 8))), range(30), 64)
    assert totals == [[n * (n - 1) // 2 for n in range(20)]] * 30


# ------------------------------------------------------------------ turns


def test_a_turn_is_held_by_one_thread_at_a_time():
    turns, inside, clash = Turns(), dict.fromkeys("ab", 0), []

    def work(n):
        key = "ab"[n % 2]
        with turns(key):
            inside[key] += 1
            time.sleep(0.0005)
            if inside[key] != 1:
                clash.append(key)
            inside[key] -= 1

    run(work, range(60), 8)
    assert not clash


def test_turns_of_different_keys_do_not_wait_for_each_other():
    turns, meet = Turns(), Meeting(4)

    def work(n):
        with turns(n):
            meet()

    run(work, range(4), 4)


def test_a_turn_is_given_back_after_an_error_and_forgotten():
    turns = Turns()
    for _ in range(3):
        with pytest.raises(OSError, match="x"), turns("a"):
            raise OSError("x")
    assert not turns._locks


# ------------------------------------------------------------------ how many


def test_workers_default_to_the_cpus_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cpus_available() == 1
        assert check_workers(None) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= cpus_available() <= len(allowed)


@pytest.mark.parametrize("quota", [0.5, 1.0, 2.5, None])
def test_the_quota_of_a_container_counts(monkeypatch, quota):
    monkeypatch.setattr(pool, "_cgroup_cpus", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cpus_available() == {0.5: 1, 1.0: 1, 2.5: 3, None: 8}[quota]


@pytest.mark.parametrize("given", [0, -1, 1.5, "4", True])
def test_a_number_of_workers_that_makes_no_sense(given):
    with pytest.raises(SpecError, match="max_workers"):
        check_workers(given)
