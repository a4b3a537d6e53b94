"""Signals that Java needs for itself.

Java marks places in its code by memory that may not be read, and goes on from the SIGSEGV this
gives. Where `faulthandler` is switched on or off after Java has started, it takes that signal away
(pytest does so), and the next such place ends the process. So what Java had set up is put back.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

_JAVAS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL")
_LARGEST = 512
"""Bytes, more than the struct sigaction of any system has."""


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
