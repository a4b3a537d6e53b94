"""Signals that Java needs for itself, and one that it must not get.

Java marks places in its code by memory that may not be read, and goes on from the SIGSEGV this
gives. Where `faulthandler` is switched on or off after Java has started, it takes that signal away
(pytest does so), and the next such place ends the process. So what Java had set up is put back.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_JAVAS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL")
_LARGEST = 512
"""Bytes, more than the struct sigaction of any system has."""


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Let Ctrl-C wait: JPype that is interrupted while it makes its classes cannot be used again.

    It is Python's main thread that is interrupted, whichever the system tells of the signal.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    came = False

    def note(_number: int, _frame: Any) -> None:
        nonlocal came
        came = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


class Handlers:
    """What Java, which runs, does at the signals it needs."""

    def __init__(self) -> None:
        import faulthandler

        self._is_enabled = faulthandler.is_enabled
        self._enabled = self._is_enabled()
        self._kept: list[tuple[int, Any]] = []
        if sys.platform == "win32":  # has no such signals
            return
        import ctypes

        self._sigaction = ctypes.CDLL(None).sigaction
        for number in (int(signal.Signals[name]) for name in _JAVAS):
            action = ctypes.create_string_buffer(_LARGEST)
            if self._sigaction(number, None, action) == 0:
                self._kept.append((number, action))

    def check(self) -> None:
        """Put back what `faulthandler` has taken away, if it has."""
        if self._is_enabled() != self._enabled:
            self.put_back()

    def put_back(self) -> None:
        """Let the signals be Java's again."""
        self._enabled = self._is_enabled()
        for number, action in self._kept:
            self._sigaction(number, action, None)
