"""Signals that end a program wait where an exception in the middle would leave harm behind."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Let Ctrl-C, and SIGTERM where Python handles it, wait until the end of the block.

    It is Python's main thread that is interrupted, whichever the system tells of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _later(signal.SIGINT), _later(signal.SIGTERM):
        yield


@contextmanager
def _later(number: int) -> Iterator[None]:
    before = signal.getsignal(number)
    if not callable(before):  # it is not Python that acts on it
        yield
        return
    came = False

    def note(_number: int, _frame: Any) -> None:
        nonlocal came
        came = True

    signal.signal(number, note)
    try:
        yield
    finally:
        signal.signal(number, before)
        if came:
            signal.raise_signal(number)
