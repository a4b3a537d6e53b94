"""Notifier: tells listeners about frames, in a thread of its own, never in the camera's way."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bioio_tk.core.signals import interrupt_later
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXPANDED = "coords_expanded"
CHANGED = "coords_changed"
EVENTS = (EXPANDED, CHANGED)
_LINGER = 0.5
"""Seconds without a frame after which the thread ends; the next frame starts another one."""


class Teller(Protocol):
    """What knows the news about frames (`stream.coords.CoordTracker`)."""

    def next_expansion(self, frame: int) -> int | None:
        """Return the first frame from `frame` on with which the coordinates grow, if any."""
        ...

    def update(self, first: int, count: int = 1) -> Any:
        """Return what listeners are told about frames; has `is_high_water_mark`."""
        ...


class Failure(NamedTuple):
    """A listener that has raised.

    Attributes
    ----------
    event : str
        What it listens to.
    callback : callable
        The listener.
    error : BaseException
        The first one it raised since it was last asked.
    times : int
        How often it has raised since then.
    """

    event: str
    callback: Callable[[Any], object]
    error: BaseException
    times: int


class _Listener:
    """Who is told of what, from frame `since` on, and how he has failed."""

    __slots__ = ("callback", "event", "failure", "since")

    def __init__(self, event: str, callback: Callable[[Any], object], since: int) -> None:
        self.event = event
        self.callback = callback
        self.since = since
        self.failure: Failure | None = None


class _Run:
    """Frames with consecutive numbers that listeners have not heard of yet."""

    __slots__ = ("first", "stop", "together")

    def __init__(self, first: int, stop: int, *, together: bool) -> None:
        self.first = first
        self.stop = stop
        self.together = together


class Notifier:
    """Calls listeners, one after the other, in the order of the frames.

    What waits is a range of numbers, however long it is, so a slow listener costs no memory.
    Nothing is lost of ``coords_expanded``. Of ``coords_changed`` a listener that is more than
    `patience` frames behind hears only the latest.

    Parameters
    ----------
    teller : Teller
        Makes what the listeners are told.
    patience : int
        See above.
    """

    def __init__(self, teller: Teller, patience: int = 1000) -> None:
        self._teller = teller
        self._patience = patience
        self._listeners: tuple[_Listener, ...] = ()
        self._runs: deque[_Run] = deque()
        self._lock = threading.Lock()  # taken as it is: that cannot be interrupted half-way
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._busy = False
        self._waiting = False
        self._closing = False
        self._failed = False

    def on(self, event: str, callback: Callable[[Any], object], frames: int = 0) -> None:
        """Call `callback` with an update on every frame, or whenever the coordinates have grown.

        Parameters
        ----------
        event : {"coords_changed", "coords_expanded"}
            On every frame; or only when coordinates are reached that never were before.
        callback : callable
            Takes one argument. It is not called by the thread that appends, and no two of one
            notifier at the same time; it may use the stream.
        frames : int
            It hears nothing of the first so many frames.

        Raises
        ------
        SpecError
            There is no such event, or the callback cannot be called.
        """
        if event not in EVENTS:
            raise SpecError(f"there is no event {event!r}: choose one of {', '.join(EVENTS)}")
        if not callable(callback):
            raise SpecError(f"{callback!r:.60} cannot be called: give a function of one argument")
        with self._lock:
            self._listeners += (_Listener(event, callback, frames),)

    @property
    def listens(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._listeners)

    def tell(self, first: int, count: int = 1, *, together: bool = False) -> None:
        """Say that frames are there: called by who appends, and returns at once.

        Parameters
        ----------
        first, count : int
            ``first`` to ``first + count - 1``, in rising order from call to call.
        together : bool
            Listeners hear of them once, and only if the coordinates grow: they were skipped.
        """
        if not self._listeners:
            return
        with self._lock:
            last = self._runs[-1] if self._runs else None
            if last is not None and not (together or last.together) and last.stop == first:
                last.stop = first + count
            else:
                self._runs.append(_Run(first, first + count, together=together))
            if self._waiting:
                self._changed.notify_all()
            elif self._thread is None and not self._closing:
                self._start()

    def take_errors(self) -> list[Failure]:
        """Return which listeners have raised since the last call, each once."""
        if not self._failed:
            return []
        with self._lock:
            self._failed = False
            found = [one.failure for one in self._listeners if one.failure is not None]
            for one in self._listeners:
                one.failure = None
        return found

    def close(self) -> None:
        """Wait until the listeners have heard of all frames. Safe to call twice.

        Call it without a lock that a listener may want. A listener that calls it does not wait
        for itself: what is left is told after it has returned.
        """
        with self._lock:
            self._closing = True
            if self._thread is threading.current_thread():
                return
            self._changed.notify_all()
            while self._thread is not None:
                self._changed.wait()
            if self._busy:  # a listener that was called from here, below
                return
        self._deliver()  # what no thread could be started for

    # ------------------------------------------------------------------ in the thread

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name="bioio_tk-notify", daemon=True)
        # where the system has no thread left the next frame, or close(), tries
        with suppress(RuntimeError), interrupt_later():
            thread.start()
            self._thread = thread

    def _work(self) -> None:
        while True:
            self._deliver()
            with self._lock:
                if self._runs:
                    continue
                if not self._closing:
                    self._waiting = True
                    self._wait_a_while()
                    self._waiting = False
                if not self._runs:
                    self._thread = None
                    self._changed.notify_all()
                    return

    def _wait_a_while(self) -> None:
        until = time.monotonic() + _LINGER
        while not self._runs and not self._closing:
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _deliver(self) -> None:
        self._busy = True
        try:
            for first, count in self._take():
                update = self._teller.update(first, count)
                listeners = self._listeners
                self._call(listeners, CHANGED, first, update)
                if update.is_high_water_mark:
                    self._call(listeners, EXPANDED, first, update)
        finally:
            self._busy = False

    def _take(self) -> Iterator[tuple[int, int]]:
        """Yield what is to be told next: the first frame, and how many, as long as there are."""
        while True:
            with self._lock:
                if not self._runs:
                    return
                run = self._runs[0]
                if run.together:
                    del self._runs[0]
                    first, count = run.first, run.stop - run.first
                    expansion = self._teller.next_expansion(first)
                    if expansion is None or expansion >= run.stop:
                        continue
                else:
                    first, count = self._next(run), 1
                    run.first = min(first + 1, run.stop)
                    if run.first == run.stop:
                        del self._runs[0]
                    if first >= run.stop:
                        continue
            yield first, count

    def _next(self, run: _Run) -> int:
        """Return the next frame of a run that somebody wants to hear of; its end if there is none.

        Whoever hears of every frame is content with the last ones when he is far behind.
        """
        expansion = self._teller.next_expansion(run.first)
        grows = run.stop if expansion is None else min(expansion, run.stop)
        if all(listener.event == EXPANDED for listener in self._listeners):
            return grows
        behind = run.stop - run.first > self._patience
        return min(grows, run.stop - 1) if behind else run.first

    def _call(self, listeners: tuple[_Listener, ...], event: str, first: int, update: Any) -> None:
        for listener in listeners:
            if listener.event == event and first >= listener.since:
                try:
                    listener.callback(update)
                except BaseException as exc:  # a listener's own fault must not stop the others
                    self._note(listener, exc)

    def _note(self, listener: _Listener, error: BaseException) -> None:
        with self._lock:
            before = listener.failure
            first, times = (error, 0) if before is None else (before.error, before.times)
            listener.failure = Failure(listener.event, listener.callback, first, times + 1)
            self._failed = True
