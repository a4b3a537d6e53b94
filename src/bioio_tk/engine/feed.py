"""Feed: frames wait here, in bounded memory, until workers have stored them."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from bioio_tk.core.signals import interrupt_later
from bioio_tk.errors import BackendError, OverrunError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

POLICIES = ("block", "raise", "spill")
_SLAB = 1 << 20
"""Bytes of small frames that wait, and are stored, together."""
_MOST_TOGETHER = 512
_PIECE = 1 << 18
"""Bytes of a spilled frame that are read at once."""
_PATIENCE = 0.1
"""Seconds that Ctrl-C may wait for a lock."""
_RECENT = 1.0
"""Seconds over which the throughput of just now is measured."""


@dataclass(frozen=True, slots=True)
class FeedStats:
    """What a feed has done so far.

    Attributes
    ----------
    taken, stored : int
        Frames that were taken, and of these the ones that workers have stored.
    waiting, most_waiting : int
        Frames in memory or spilled, now and at the worst moment.
    capacity : int
        Frames that find room in memory.
    spilled, most_spilled : int
        Frames in the spill file, now and at the worst moment.
    nbytes : int
        Bytes of memory the feed has taken for frames; it never gives it back before its end.
    blocked : float
        Seconds that `slot` has waited for room.
    seconds : float
        Since the first frame.
    fps : float
        Frames stored a second, over the last second or so.
    """

    taken: int
    stored: int
    waiting: int
    most_waiting: int
    capacity: int
    spilled: int
    most_spilled: int
    nbytes: int
    blocked: float
    seconds: float
    fps: float


class _Slab:
    """Room for a few frames with consecutive numbers.

    Attributes
    ----------
    first : int
        Number of the frame in the first place.
    size : int
        Places that will be used; less than there are where the next number is another one.
    taken, freed : int
        Places that a worker has begun with, and is through with.
    spilled : list of int
        Places in the spill file, for frames that are there and not in `array`.
    """

    __slots__ = ("array", "first", "freed", "size", "spilled", "taken")

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.begin(0)

    def begin(self, first: int) -> None:
        self.first = first
        self.size = len(self.array)
        self.taken = self.freed = 0
        self.spilled: list[int] = []


class Feed:
    """Takes frames from one thread at a time and has workers store them.

    Frames lie in slabs: a large frame has one for itself, small ones share. A worker takes what
    is there of a slab as one batch, so the faster small frames come, the more are stored at once.

    Parameters
    ----------
    shape : (int, int)
        Height and width of a frame.
    dtype : numpy.dtype
        Pixel type.
    store : callable
        ``store(first, frames)`` stores frames (n, y, x) with consecutive numbers; called by
        workers, the batches in any order. The frames are overwritten once it has returned.
    workers : int
        How many threads store.
    budget : int
        Bytes of frames that may wait in memory, and of those on their way to a spill file and
        back; room for two frames is always taken.
    policy : {"block", "raise", "spill"}
        What to do when that is full: wait, refuse the frame, or put it into a temporary file.
    spill_folder : Path, optional
        Where that file goes; by default where the system has its temporary files.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        store: Callable[[int, NDArray[Any]], object],
        *,
        workers: int,
        budget: int,
        policy: str = "block",
        spill_folder: Path | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise SpecError(f"backpressure={policy!r}: choose one of {', '.join(POLICIES)}")
        self._shape, self._dtype = shape, dtype
        self._store = store
        self._workers = workers
        frame = max(1, shape[0] * shape[1] * dtype.itemsize)
        if policy == "spill":  # a frame on its way to the file, and one of each worker from it
            budget -= (workers + 1) * frame
        together = max(1, min(_SLAB // frame, _MOST_TOGETHER, budget // (2 * frame)))
        self._places = together
        self._most = max(2, budget // (together * frame))  # slabs
        self._policy = policy
        self._spill = _Spill(frame, spill_folder) if policy == "spill" else None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        """Over all below, but for `_tail`, which belongs to whoever gives frames."""
        self._fed = threading.Condition(self._lock)
        self._freed = threading.Condition(self._lock)
        self._free: list[_Slab] = []
        self._slabs = 0
        self._queue: deque[_Slab] = deque()  # of which not everything is taken
        self._working: set[_Slab] = set()
        # the slab that is being filled, how much of it is, the next number, how many frames were
        # given: changed at once, so that Ctrl-C in between cannot leave a frame that has no
        # number, or a number no frame
        self._tail: tuple[_Slab | None, int, int, int] = (None, 0, 0, 0)
        self._threads: list[threading.Thread] = []
        self._idle = self._stored = self._most_waiting = 0
        self._blocked = 0.0
        self._began = 0.0
        self._marks: deque[tuple[float, int]] = deque()
        self._ending = False
        self.error: BaseException | None = None
        """What has ended the work of the workers; nothing is stored after it."""

    # ------------------------------------------------------------------ giving

    @property
    def next(self) -> int:
        """The number of the next frame."""
        return self._tail[2]

    @property
    def _taken(self) -> int:
        return self._tail[3]

    def slot(self) -> NDArray[Any]:
        """Return where to put the pixels of the next frame, (y, x); then call `give`.

        Calling it again without `give` returns the same place.

        Raises
        ------
        OverrunError
            There is no room, and the policy is to refuse.
        OSError
            There is none in the spill file either.
        """
        if self._pid != os.getpid():
            raise BackendError(
                "this stream was opened before a fork: its threads are the parent's; open one "
                "in this process"
            )
        slab, filled, _, _ = self._tail
        if slab is None or filled == slab.size:
            slab, filled = self._fresh(), 0
        return slab.array[filled]  # type: ignore[no-any-return]

    def give(self) -> int:
        """Hand the frame in the slot over to the workers, and return its number."""
        slab, filled, number, taken = self._tail
        assert slab is not None
        if self._is_stage(slab):
            with interrupt_later():
                self._give_spilled(slab)
            return number
        if not taken:
            self._began = time.perf_counter()
        self._tail = (slab, filled + 1, number + 1, taken + 1)
        waiting = taken + 1 - self._stored
        self._most_waiting = max(self._most_waiting, waiting)
        # waking a worker costs more than copying a small frame: one is enough while what waits
        # is not a slab more than what it is at
        if self._idle and (self._idle == len(self._threads) or filled + 1 == slab.size):
            with self._lock:
                self._fed.notify()
        elif len(self._threads) < self._workers and (not self._threads or filled + 1 == slab.size):
            self._hire()
        return number

    def skip(self, count: int) -> int:
        """Leave out the next `count` numbers; return the first of them."""
        slab, filled, number, taken = self._tail
        with interrupt_later(), self._lock:
            if slab is not None and 0 < filled < slab.size:
                self._seal(slab, filled)
            if slab is not None and not filled:  # it was lent, and nothing is in it yet
                slab.first = number + count
            self._tail = (None if filled else slab, 0, number + count, taken)
        return number

    def _fresh(self) -> _Slab:
        """Begin an empty slab for the frames to come, and return it."""
        start = time.perf_counter()
        waited = False
        while True:
            # a Condition that is interrupted while it waits may be left without its lock
            with interrupt_later(), self._lock:
                if self.error is not None:
                    raise self.error
                slab = self._find()
                if slab is None and self._policy == "block":
                    waited = True
                    self._freed.wait(_PATIENCE)
                    continue
                slab = slab or self._stage()
                slab.begin(self.next)
                self._tail = (slab, 0, self.next, self._taken)
                if not self._is_stage(slab):  # else when it is in the file
                    self._queue.append(slab)
                if waited:
                    self._blocked += time.perf_counter() - start
                return slab

    def _stage(self) -> _Slab:
        """Return where a frame lies until it is in the spill file."""
        if self._spill is None:
            raise OverrunError(
                f"{self._taken - self._stored} frames wait for the disk, and there is no room for "
                "another one (backpressure='raise'): this frame was not taken; give it again, or "
                "skip() it"
            )
        if self._spill.stage is None:
            self._spill.stage = _Slab(np.empty((1, *self._shape), self._dtype))
        return self._spill.stage

    def _find(self) -> _Slab | None:
        if self._free:
            return self._free.pop()  # the last one used: its memory is warm
        if self._slabs < self._most:
            self._slabs += 1
            return _Slab(np.empty((self._places, *self._shape), self._dtype))
        return None

    def _is_stage(self, slab: _Slab) -> bool:
        return self._spill is not None and slab is self._spill.stage

    def _give_spilled(self, stage: _Slab) -> None:
        assert self._spill is not None
        _, _, number, taken = self._tail
        place = self._spill.put(stage.array)
        slab = _Slab(stage.array[:0])
        slab.begin(number)
        slab.size, slab.spilled = 1, [place]
        with self._lock:
            self._queue.append(slab)
            self._tail = (None, 0, number + 1, taken + 1)
            self._most_waiting = max(self._most_waiting, taken + 1 - self._stored)
            self._fed.notify()

    def _seal(self, slab: _Slab, filled: int) -> None:
        """Say that no more frames will come into a slab. The lock is held."""
        slab.size = filled
        if slab.taken == filled and slab in self._queue:
            self._queue.remove(slab)
        self._release(slab, 0)
        self._fed.notify()

    def _hire(self) -> None:
        thread = threading.Thread(target=self._work, name="bioio_tk feed", daemon=True)
        try:
            with interrupt_later(), self._lock:
                thread.start()
                self._threads.append(thread)
        except RuntimeError as exc:
            if self._threads:
                return  # the system has no more threads to give: those there are do it
            error = BackendError(
                "the system has no thread to give that would store frames: end other programs, "
                "or raise the limit of processes (ulimit -u)"
            )
            error.__cause__ = exc
            self.fail(error)

    # ------------------------------------------------------------------ storing

    def _work(self) -> None:
        room: NDArray[Any] | None = None
        while True:
            with self._lock:
                # counted as idle before the last look: who gives a frame after it sees that
                self._idle += 1
                while (batch := self._take()) is None:
                    if self._ending or self.error is not None:
                        return
                    self._fed.wait()
                self._idle -= 1
            slab, start, stop = batch
            try:
                frames = slab.array[start:stop]
                if slab.spilled:
                    assert self._spill is not None
                    if room is None:  # one for each worker, used over and over
                        room = np.empty((1, *self._shape), self._dtype)
                    frames = self._spill.get(slab.spilled[0], room)
                self._store(slab.first + start, frames)
            except BaseException as exc:  # whatever it is, who gives frames has to hear of it
                self.fail(exc)
                return
            self._done(slab, start, stop)

    def _take(self) -> tuple[_Slab, int, int] | None:
        """Return the next batch. The lock is held."""
        if self.error is not None or not self._queue:
            return None
        slab = self._queue[0]
        tail, filled, _, _ = self._tail
        start, stop = slab.taken, filled if slab is tail else slab.size
        if start == stop:
            return None  # of the slab that is being filled
        slab.taken = stop
        if stop == slab.size:
            self._queue.popleft()
        self._working.add(slab)
        return slab, start, stop

    def _done(self, slab: _Slab, start: int, stop: int) -> None:
        now = time.perf_counter()
        with self._lock:
            self._stored += stop - start
            self._marks.append((now, self._stored))
            while self._marks[0][0] < now - _RECENT and len(self._marks) > 2:
                self._marks.popleft()
            if slab.spilled and self._spill is not None:
                self._spill.free(slab.spilled[0])
            self._release(slab, stop - start)

    def _release(self, slab: _Slab, count: int) -> None:
        """Take places back; the lock is held."""
        slab.freed += count
        if slab.freed == slab.taken:
            self._working.discard(slab)
        if slab.freed == slab.size:
            if not slab.spilled:
                self._free.append(slab)
            self._freed.notify_all()
        elif self._stored == self._taken:
            self._freed.notify_all()

    def fail(self, exc: BaseException) -> None:
        """End the work: nothing more is stored, and who gives frames hears of it."""
        with self._lock:
            self.error = self.error or exc
            self._fed.notify_all()
            self._freed.notify_all()

    # ------------------------------------------------------------------ looking

    def peek(self, number: int) -> NDArray[Any] | None:
        """Return a copy of a frame that waits, or is just being stored; None for any other."""
        with self._lock:
            tail, filled, _, _ = self._tail
            for slab in (*self._working, *self._queue):
                place = number - slab.first
                if 0 <= place < (filled if slab is tail else slab.size):
                    if slab.spilled:
                        assert self._spill is not None
                        return self._spill.get(slab.spilled[0], np.empty(self._shape, self._dtype))
                    return slab.array[place].copy()  # type: ignore[no-any-return]
        return None

    def works_here(self) -> bool:
        """Return whether the caller is one of the workers."""
        return threading.current_thread() in self._threads

    def stats(self) -> FeedStats:
        """Return what was done so far; any thread, at any time."""
        with self._lock:
            marks = list(self._marks)
            spill = self._spill
            now = time.perf_counter()
            return FeedStats(
                taken=self._taken,
                stored=self._stored,
                waiting=self._taken - self._stored,
                most_waiting=self._most_waiting,
                capacity=self._most * self._places,
                spilled=spill.used if spill else 0,
                most_spilled=spill.most if spill else 0,
                nbytes=self._slabs
                * self._places
                * self._shape[0]
                * self._shape[1]
                * self._dtype.itemsize,
                blocked=self._blocked,
                seconds=now - self._began if self._taken else 0.0,
                fps=_rate(marks, now),
            )

    # ------------------------------------------------------------------ ending

    def drain(self) -> None:
        """Wait until every frame given so far is stored, or storing has failed.

        Others may give frames meanwhile.
        """
        until = self.next
        if self._taken and not self._threads:  # Ctrl-C came before there was one
            self._hire()
        while True:
            with interrupt_later(), self._lock:
                if self._reached(until) or self.error is not None:
                    return
                self._fed.notify_all()
                self._freed.wait(_PATIENCE)

    def _reached(self, number: int) -> bool:
        """Return whether all frames before a number are stored; the lock is held."""
        return all(
            slab.first >= number or (slab.freed == slab.taken and slab.first + slab.taken >= number)
            for slab in (*self._working, *self._queue)
        )

    def close(self) -> None:
        """Store what waits, then end the threads. Safe to call twice; never raises `error`."""
        if self._pid != os.getpid():
            return
        self.drain()
        with self._lock:
            self._ending = True
            self._fed.notify_all()
        for thread in self._threads:
            while thread.is_alive():
                with interrupt_later():
                    thread.join(_PATIENCE)
        with self._lock:
            self._free.clear()
            self._queue.clear()
            self._working.clear()
            if self._spill is not None:
                self._spill.close()


class _Spill:
    """A temporary file of frames."""

    def __init__(self, frame: int, folder: Path | None) -> None:
        self._frame = frame
        self._folder = folder
        self._file: BinaryIO | None = None
        self._free: list[int] = []
        self._lock = threading.Lock()
        self.stage: _Slab | None = None
        self.places = self.used = self.most = 0

    def put(self, frame: NDArray[Any]) -> int:
        """Write a frame and return its place."""
        with self._lock:
            if self._file is None:
                self._file = tempfile.TemporaryFile(  # noqa: SIM115
                    dir=self._folder, prefix=".bioio_tk-spill-"
                )
            place = self._free.pop() if self._free else self.places
            self.places = max(self.places, place + 1)
        try:
            view = memoryview(frame).cast("B")
            offset = place * self._frame
            while view:
                done = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[done:], offset + done
        except BaseException:
            self._free.append(place)
            raise
        with self._lock:
            self.used += 1
            self.most = max(self.most, self.used)
        return place

    def get(self, place: int, out: NDArray[Any]) -> NDArray[Any]:
        """Read a frame into `out`, and return that."""
        assert self._file is not None
        view, offset = memoryview(out).cast("B"), place * self._frame
        while view:
            piece = os.pread(self._file.fileno(), min(_PIECE, len(view)), offset)
            if not piece:
                raise OSError(errno.EIO, "the spill file has lost a frame")
            view[: len(piece)] = piece
            view, offset = view[len(piece) :], offset + len(piece)
        return out

    def free(self, place: int) -> None:
        """Let the place be used again."""
        with self._lock:
            self._free.append(place)
            self.used -= 1

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _rate(marks: list[tuple[float, int]], now: float) -> float:
    if len(marks) < 2 or marks[-1][0] < now - 2 * _RECENT:
        return 0.0
    (start, before), (stop, after) = marks[0], marks[-1]
    return (after - before) / max(stop - start, 1e-9)
