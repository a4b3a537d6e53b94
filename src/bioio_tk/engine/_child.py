"""A worker process: takes jobs from its standard input, does them one by one, tells how they went.

It is started as a plain Python that runs `main`, not by `multiprocessing`: that imports the script
of the user again, which without ``if __name__ == "__main__"`` starts everything once more, and
does not work from ``python -c`` or a notebook at all.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
import threading
import time
import traceback
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE = 10.0
"""Seconds a worker has for tidying up when it is told to end."""
_PAUSE = 0.1  # seconds between two reports of how far a job is
_LENGTH = struct.Struct("<Q")


def send(pipe: IO[bytes], message: Any) -> None:
    """Write one object to a pipe."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read one object from a pipe; EOFError when the other side has closed it or died."""
    return _read(_message(pipe))


def _message(pipe: IO[bytes]) -> bytes:
    head = pipe.read(_LENGTH.size)
    size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 1
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _read(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301 (from the process that we started, or it from us)


def main() -> None:
    """Work until the pipe is closed; the first object in it is the function to call."""
    take, give = _own_pipes()
    _Interrupt.install()
    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        func = receive(take)
        send(give, ("ready", None))
        inbox: SimpleQueue[bytes | None] = SimpleQueue()
        busy = threading.Event()
        threading.Thread(target=_listen, args=(take, inbox, busy), daemon=True).start()
        while (message := inbox.get()) is not None:
            busy.set()
            answer = _do(func, message, _Tell(give))
            busy.clear()
            send(give, answer)


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Take standard input and output away, so that nothing else reads or prints into them."""
    take, give = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(take, "rb"), os.fdopen(give, "wb")


def _listen(take: IO[bytes], inbox: SimpleQueue[bytes | None], busy: threading.Event) -> None:
    """Pass jobs on. The end of the pipe means that the starter has closed it, or is gone."""
    while True:
        try:
            inbox.put(_message(take))
        except (EOFError, OSError):
            break
    inbox.put(None)
    if busy.is_set():
        _Interrupt.main_thread()
    time.sleep(GRACE)
    os._exit(1)  # what cannot be interrupted


def _do(func: Callable[..., Any], message: bytes, tell: _Tell) -> tuple[str, Any]:
    try:
        return ("done", func(_read(message), tell))
    except Exception:  # a bug in func, which returns what went wrong; or a class not known here
        return ("failed", traceback.format_exc())


class _Tell:
    """Reports how far a job is, not too often."""

    def __init__(self, give: IO[bytes]) -> None:
        self._give = give
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last >= _PAUSE:
                self._last = now
                send(self._give, ("moved", (done, total)))


class _Interrupt:
    """How a worker is interrupted: not by Ctrl-C, which its starter gets and acts on."""

    _came = False

    @classmethod
    def install(cls) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, cls._stop)

    @classmethod
    def _stop(cls, *_: object) -> None:
        if not cls._came:  # a second one would interrupt the tidying up
            cls._came = True
            raise KeyboardInterrupt

    @staticmethod
    def main_thread() -> None:
        if sys.platform == "win32":
            import _thread

            _thread.interrupt_main(signal.SIGTERM)
        else:  # only a real signal ends a wait in the main thread
            ident = threading.main_thread().ident
            if ident is not None:
                signal.pthread_kill(ident, signal.SIGTERM)
