"""Ledger: frames are stored in any order; this room knows up to which number all of them are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from heapq import heappop, heappush


class Ledger:
    """Takes note of what is stored and passes it on in order, each number once.

    Parameters
    ----------
    advance : callable
        ``advance(start, stop)``: all frames of this range, and all before it, are stored. One
        call at a time, in the thread of whoever reported the last piece; others that report
        meanwhile do not wait for it. What it raises is raised there, and it is not called again:
        it may have done a part of its work.
    """

    def __init__(self, advance: Callable[[int, int], object]) -> None:
        self._advance = advance
        self._lock = threading.Lock()
        self._ranges: list[tuple[int, int]] = []
        self._busy = False
        self.safe = 0
        """All frames below this number are stored and passed on."""

    def add(self, start: int, stop: int) -> None:
        """Take note of the frames [start, stop); some may have been reported before."""
        with self._lock:
            heappush(self._ranges, (start, stop))
            if self._busy:
                return
            self._busy = True
        while (reached := self._reached()) is not None:
            self._advance(self.safe, reached)
            self.safe = reached

    def _reached(self) -> int | None:
        """Return up to where everything is stored now; None, and not busy, for no further."""
        with self._lock:
            reached = self.safe
            while self._ranges and self._ranges[0][0] <= reached:
                reached = max(reached, heappop(self._ranges)[1])
            if reached == self.safe:
                self._busy = False
                return None
            return reached
