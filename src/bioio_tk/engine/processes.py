"""Jobs done side by side: in processes of our own, which threads cannot slow down, or in threads.

Small files are mostly Python, of which one runs at a time in a process, so threads gain nothing
there. A worker process that dies (out of memory, a codec that crashes) takes its one job with it
and is replaced. Workers end when their starter does, however that ends: their pipe closes.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from bioio_tk.engine._child import GRACE, receive, send
from bioio_tk.errors import BackendError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

_TAIL = 2000  # bytes of what a worker has written to stderr that are looked at when it died


class Event(NamedTuple):
    """Something that happened to a job.

    Attributes
    ----------
    key : Any
        Which job, as it was given.
    kind : str
        ``"started"``; ``"moved"``; ``"done"``; ``"failed"``: its function raised; ``"died"``: the
        process that did it is gone.
    value : Any
        Of "moved" (done, total), of "done" what the function returned, of "failed" and "died" why.
    """

    key: Any
    kind: Literal["started", "moved", "done", "failed", "died", "broken"]
    value: Any = None


class _Stopped(BaseException):
    """Ends a job in a thread; no Exception, so that nobody takes it for a failure of the job."""


class _Side:
    """What both kinds of workers have in common: threads that take jobs from a queue.

    Parameters
    ----------
    func : callable
        Called as ``func(job, tell)``; it may call ``tell(done, total)``, from any thread.
    count : int
        Jobs at a time.
    """

    def __init__(self, func: Callable[..., Any], count: int) -> None:
        self._func = func
        self._jobs: SimpleQueue[tuple[Any, Any] | None] = SimpleQueue()
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._open = 0
        self._stop = False
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]

    def give(self, key: Any, job: Any) -> None:
        """Add a job; also while others are in work."""
        self._open += 1
        self._jobs.put((key, job))

    def events(self) -> Iterator[Event]:
        """Yield what happens, until every job that was given has ended."""
        while self._open:
            event = _get(self._events)
            if event.kind == "broken":
                raise event.value
            if event.kind not in ("started", "moved"):
                self._open -= 1
            yield event

    def __enter__(self) -> Self:
        started: list[threading.Thread] = []
        for thread in self._threads:
            try:
                thread.start()
            except RuntimeError as exc:  # the system gives no more: fewer will do
                if not started:
                    raise BackendError(
                        f"no thread can be started here ({exc}): this process has too little "
                        "memory left, or may not have more threads (ulimit -v, ulimit -u)"
                    ) from exc
                break
            started.append(thread)
        self._threads = started
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._stop = True
        for _ in self._threads:
            self._jobs.put(None)
        self._end()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while (item := self._jobs.get()) is not None and not self._stop:
            key, job = item
            self._events.put(Event(key, "started"))
            try:
                self._events.put(self._one(key, job))
            except _Stopped:
                return
            except BaseException as exc:  # whatever it is, the caller gets it
                self._events.put(Event(key, "broken", exc))
                return

    def _one(self, key: Any, job: Any) -> Event:
        """Do a job; in a thread of ours."""
        raise NotImplementedError  # processes and threads each have one

    def _end(self) -> None:
        """Interrupt what is in work."""


def _get(queue: SimpleQueue[Event]) -> Event:
    """Wait for an event; on Windows Ctrl-C ends no wait that has no end."""
    patience = 0.2 if os.name == "nt" else None
    while True:
        with suppress(Empty):
            return queue.get(timeout=patience)


class Threads(_Side):
    """Does jobs in threads of this process."""

    def _one(self, key: Any, job: Any) -> Event:
        def tell(done: int, total: int) -> None:
            if self._stop:
                raise _Stopped
            self._events.put(Event(key, "moved", (done, total)))

        return Event(key, "done", self._func(job, tell))


class Processes(_Side):
    """Does jobs in worker processes.

    Parameters
    ----------
    func : callable
        As for threads; of a module, so that the workers can import it.
    count : int
        Processes; each is started when there is a job for it, and does one at a time.

    Raises
    ------
    BackendError
        From `events`: no worker can be started here.
    """

    def __init__(self, func: Callable[..., Any], count: int) -> None:
        super().__init__(func, count)
        self._lock = threading.Lock()
        self._children: set[_Child] = set()
        self._local = threading.local()

    def give(self, key: Any, job: Any) -> None:
        """Add a job; SpecError where it cannot be sent to another process."""
        check_sendable(job)
        super().give(key, job)

    def _one(self, key: Any, job: Any) -> Event:
        child = getattr(self._local, "child", None) or self._new()
        try:
            send(child.take, job)
            while True:
                kind, value = receive(child.give)
                if kind != "moved":
                    return Event(key, kind, value)
                self._events.put(Event(key, "moved", value))
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            if self._stop:
                raise _Stopped from None
            self._local.child = None
            with self._lock:
                self._children.discard(child)
            return Event(key, "died", child.epitaph())

    def _new(self) -> _Child:
        with self._lock:  # so that none is started behind the back of _end
            if self._stop:
                raise _Stopped
            child = _Child()
            self._children.add(child)
        try:
            send(child.take, self._func)
            receive(child.give)
        except (EOFError, OSError):
            if self._stop:
                raise _Stopped from None
            raise BackendError(
                f"worker processes do not start here ({child.epitaph()}): do the work in this "
                "process, with processes=0"
            ) from None
        self._local.child = child
        return child

    def _end(self) -> None:
        with self._lock:
            children = list(self._children)
        try:
            for child in children:
                child.hang_up()
            for child in children:
                child.wait()
        finally:  # a second Ctrl-C does not wait
            for child in children:
                child.kill()


def check_sendable(job: Any) -> None:
    """Raise SpecError for what cannot be sent to another process."""
    try:
        pickle.dumps(job)
    except (TypeError, AttributeError, pickle.PicklingError) as exc:
        raise SpecError(
            f"an option cannot be sent to a worker process ({exc}): use processes=0"
        ) from exc


def can_start() -> bool:
    """Return whether there is a Python to start: not where one is built into another program."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


class _Child:
    """A worker process as seen from here."""

    def __init__(self) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed in _close)
        # the same path as here: what this process can import, the worker can, too
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            "from bioio_tk.engine._child import main; main()"
        )
        try:
            self._process = subprocess.Popen(  # noqa: S603 (this very Python)
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=_surroundings(),
            )
        except OSError as exc:
            self._log.close()
            raise BackendError(
                f"no worker process can be started ({exc}): do the work in this process, with "
                "processes=0"
            ) from exc
        self.take: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        self.give: IO[bytes] = self._process.stdout  # type: ignore[assignment]

    def hang_up(self) -> None:
        """Close its pipe: it ends at once, or after it has put away what it was doing."""
        with suppress(OSError, ValueError):
            self.take.close()

    def wait(self) -> None:
        """Wait until it has ended, but not for ever."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE + 1)

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._close()

    def epitaph(self) -> str:
        """Return what it died of."""
        self.hang_up()
        self.wait()
        self._process.kill()
        code = self._process.wait()
        self._log.seek(0, 2)
        self._log.seek(max(0, self._log.tell() - _TAIL))
        lines = self._log.read().decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        self._close()
        return _cause(code) + (f"; it said: {said}" if said else "")

    def _close(self) -> None:
        self.hang_up()
        self.give.close()
        self._log.close()


def _surroundings() -> dict[str, str]:
    """Return the environment of a worker: as here, but NumPy starts no threads of its own.

    A worker does one thing at a time; BLAS would start a thread for each CPU in each of them.
    """
    return {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **os.environ}


def _cause(code: int) -> str:
    """Return what an exit code means.

    >>> _cause(1), _cause(-11)
    ('the worker process ended with exit code 1', 'the worker process was ended by SIGSEGV')
    """
    if code >= 0:
        return f"the worker process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    more = ": the system may have run out of memory" if name == "SIGKILL" else ""
    return f"the worker process was ended by {name}{more}"
