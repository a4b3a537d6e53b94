"""The threads: run() shares work between the caller and helpers, ordered() works ahead."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bioio_tk.core.signals import interrupt_later
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
R = TypeVar("R")

_MOST_HELPERS = 64
_PATIENCE = 0.05
"""Seconds after which work that no thread has begun is done by who wants it."""
_executor: ThreadPoolExecutor | None = None
_executor_lock = threading.Lock()


def cpus_available() -> int:
    """Return how many CPUs this process may use: affinity and the container's quota count."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        count = os.cpu_count() or 1
    quota = _cgroup_cpus()
    return max(1, min(count, math.ceil(quota)) if quota else count)


def check_workers(max_workers: int | None) -> int:
    """Return the number of workers to use; None means as many as there are CPUs to use."""
    if max_workers is None:
        return min(cpus_available(), _MOST_HELPERS)
    whole = hasattr(max_workers, "__index__") and not isinstance(max_workers, bool)
    if not whole or max_workers < 1:
        raise SpecError(
            f"max_workers={max_workers!r}: give a whole number of 1 or more, or None for one "
            "worker per CPU"
        )
    return min(int(max_workers), _MOST_HELPERS)


def run(func: Callable[[T], object], items: Iterable[T], workers: int, batch: int = 1) -> None:
    """Call ``func(item)`` for every item, no more than `workers` of them at a time.

    A caller that is a worker itself works too, so a call from inside a worker, or while every
    thread is busy, goes on without waiting for one. The main thread leaves several items to the
    others: it is where Ctrl-C arrives, at any moment, and what it holds then (the lock of a tile)
    could stay held. Items are taken `batch` at a time, for work that is small against the price
    of handing it out.

    The first exception stops the rest and is raised here, after the items in work have ended.
    """
    if workers <= 1:
        for item in items:
            func(item)
        return
    source = iter(items)
    ahead = list(islice(source, (workers - 1) * batch + 1))
    able = min(workers, math.ceil(len(ahead) / batch))
    if able < 2:
        for item in ahead:
            func(item)
        return
    job = _Job(func, chain(ahead, source), batch)
    leaves = threading.current_thread() is threading.main_thread()
    helpers = able if leaves else able - 1
    futures: list[Future[None]] = []
    interrupted = True
    try:
        with interrupt_later():
            futures += [f for _ in range(helpers) if (f := _submit(job.work)) is not None]
        if leaves and futures:
            _leave_to(futures)
        job.work()  # what is left: nothing, unless no helper could begin
        interrupted = False
    finally:  # Ctrl-C in the caller: helpers must not go on behind its back
        job.stop = job.stop or interrupted
        _settle(futures, job, interrupted=interrupted)
    if job.error is not None:
        raise job.error


def ordered(func: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Yield ``func(item)`` in order while up to `ahead` further results are being made.

    Leaving the loop early cancels what has not started.
    """
    flight: deque[Future[R] | None] = deque()
    waiting: deque[T] = deque()
    source = iter(items)
    try:
        while True:
            for item in islice(source, max(1, ahead + 1 - len(flight))):
                waiting.append(item)
                with interrupt_later():
                    flight.append(_submit(func, item) if ahead > 0 else None)
            if not flight:
                return
            future, item = flight.popleft(), waiting.popleft()
            # a result nobody has begun is made here: waiting could be waiting for oneself
            yield func(item) if future is None or _cancelled(future) else _result(future)
    finally:
        _settle([future for future in flight if future is not None])


def run_apart(func: Callable[[], object]) -> None:
    """Call ``func()`` where Ctrl-C does not arrive: in a helper, if the caller is the main thread.

    A Ctrl-C meanwhile is raised here when the work has ended; a second one at once, and then it
    goes on alone.
    """
    leaves = threading.current_thread() is threading.main_thread()
    future = None
    if leaves:
        with interrupt_later():
            future = _submit(func)
    if future is None:
        func()
        return
    interrupted = True
    try:
        _leave_to([future])
        if _cancelled(future):  # no helper could begin
            func()
        else:
            _result(future)
        interrupted = False
    finally:
        _settle([future], interrupted=interrupted)


def begin(func: Callable[[], object]) -> None:
    """Have a helper call ``func()``, and do not wait; Python does before it ends."""
    with interrupt_later():
        _submit(func)


class Turns:
    """One lock per key, made when it is first wanted and forgotten when nobody wants it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[Any, list[Any]] = {}

    def __call__(self, key: Any) -> _Turn:
        """Return a context manager that holds the lock of `key`."""
        return _Turn(self, key)

    def _enter(self, key: Any) -> None:
        with self._mutex:
            entry = self._locks.get(key)
            if entry is None:
                entry = self._locks[key] = [threading.Lock(), 0]
            entry[1] += 1
        entry[0].acquire()

    def _leave(self, key: Any) -> None:
        with self._mutex:
            entry = self._locks[key]
            entry[0].release()
            entry[1] -= 1
            if not entry[1]:
                del self._locks[key]


class _Turn:
    __slots__ = ("_key", "_turns")

    def __init__(self, turns: Turns, key: Any) -> None:
        self._turns, self._key = turns, key

    def __enter__(self) -> None:
        self._turns._enter(self._key)

    def __exit__(self, *_: object) -> None:
        self._turns._leave(self._key)


class _Job(Generic[T]):
    """Items that several threads take from; the first failure ends it for all."""

    def __init__(self, func: Callable[[T], object], items: Iterator[T], batch: int) -> None:
        self._func = func
        self._items = items
        self._batch = batch
        self._lock = threading.Lock()
        self.error: BaseException | None = None
        self.stop = False

    def work(self) -> None:
        while batch := self._take():
            for item in batch:
                if self.stop:
                    return
                try:
                    self._func(item)
                except BaseException as exc:  # whatever it is, the caller gets it
                    self._fail(exc)
                    if not isinstance(exc, Exception):
                        raise  # in the caller this is Ctrl-C, which comes before any other error
                    return

    def _take(self) -> list[T]:
        with self._lock:
            if self.stop:
                return []
            try:
                return list(islice(self._items, self._batch))
            except BaseException as exc:
                self.stop = True
                self.error = self.error or exc
                if not isinstance(exc, Exception):
                    raise
                return []

    def _fail(self, exc: BaseException) -> None:
        with self._lock:
            self.stop = True
            self.error = self.error or exc


def _submit(func: Callable[..., R], *args: Any) -> Future[R] | None:
    """Hand work to a helper thread; None where no thread can be had.

    That is so when the interpreter is ending, and where the system has no thread left to give.
    Ctrl-C must not arrive meanwhile: an executor that is interrupted while it starts a thread
    forgets it, and the interpreter, which waits for all threads, never ends.
    """
    global _executor
    future: Future[R] = Future()
    try:
        with _executor_lock:
            if _executor is None:
                _executor = ThreadPoolExecutor(_MOST_HELPERS, thread_name_prefix="bioio_tk")
            _executor.submit(_fulfil, future, func, *args)
    except RuntimeError:
        # the work may stand in the queue all the same, and a thread that exists have begun it
        return None if future.cancel() else future
    return future


# Futures are looked at where Ctrl-C does not arrive: a lock of theirs that was taken at that very
# moment would stay taken, and the helper wait for ever.


def _leave_to(futures: list[Future[Any]]) -> None:
    """Wait until a helper finds no more work, or until it is clear that none can begin."""
    while True:
        with interrupt_later():
            if wait(futures, timeout=_PATIENCE, return_when=FIRST_COMPLETED).done:
                return
            if not any(future.running() for future in futures):
                return


def _cancelled(future: Future[Any]) -> bool:
    """Cancel work; False where it has begun."""
    with interrupt_later():
        return future.cancel()


def _ended(future: Future[Any]) -> bool:
    """Cancel work, or wait a moment for it; return whether it has ended."""
    with interrupt_later():
        return future.cancel() or bool(wait([future], timeout=_PATIENCE).done)


def _result(future: Future[R]) -> R:
    """Wait for what was begun."""
    while not _ended(future):
        pass
    with interrupt_later():
        return future.result()


def _fulfil(future: Future[R], func: Callable[..., R], *args: Any) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(func(*args))
        except BaseException as exc:
            future.set_exception(exc)


def _settle(
    futures: Iterable[Future[Any]], job: _Job[Any] | None = None, *, interrupted: bool = False
) -> None:
    """Wait for what has begun and cancel the rest.

    A Ctrl-C meanwhile is raised afterwards, so that nothing goes on behind the caller's back; a
    second one at once, also where the first one came before (`interrupted`).
    """
    interrupt: BaseException | None = None
    for future in futures:
        ended = False
        while not ended:
            try:
                ended = _ended(future)
            except BaseException as exc:
                if interrupted or interrupt is not None:
                    raise
                interrupt = exc
                if job is not None:
                    job.stop = True
    if interrupt is not None:
        raise interrupt


def _after_fork() -> None:
    # a child has none of its parent's threads, and may have its locks in any state
    global _executor, _executor_lock
    _executor = None
    _executor_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _cgroup_cpus() -> float | None:
    """Return the quota of the container, read once: asking takes longer than opening a file."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None
