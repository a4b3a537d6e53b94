"""A bar with percent, speed and time left, on a terminal, for what takes more than a second."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bioio_tk.core.text import duration, size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self, TextIO

    from bioio_tk.engine.copy import Progress as Tell
    from bioio_tk.jobs.options import Options

_PATIENCE = 1.0  # seconds without a bar
_PAUSE = 0.1  # seconds between two pictures of it


class Progress:
    """Call it with (bytes done, bytes in all).

    Parameters
    ----------
    label : str
        What is being done.
    quiet : bool
        Draw nothing.
    stream : file, optional
        Where to draw, stderr by default; nothing is drawn where it is no terminal.
    """

    def __init__(self, label: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._on = not quiet and self._stream.isatty()
        self._began = self._last = time.monotonic()
        self._drawn = 0

    def __call__(self, done: int, total: int) -> None:
        """Draw the bar, if it is time to."""
        if not self._on:
            return
        now = time.monotonic()
        end = done >= total
        if now - self._began < _PATIENCE or (now - self._last < _PAUSE and not end):
            return
        self._last = now
        self._draw(self._line(done, total, now - self._began))

    def _line(self, done: int, total: int, seconds: float) -> str:
        share = done / total if total else 1.0
        left = seconds / share - seconds if share else 0.0
        after = f"{share:4.0%}  {size(done / seconds)}/s  "
        after += f"{duration(left)} left" if share < 1 else f"in {duration(seconds)}"
        columns = shutil.get_terminal_size().columns
        width = min(40, columns - len(self._label) - len(after) - 6)
        bar = ""
        if width >= 8:
            full = int(width * share)
            bar = f" [{'#' * full}{'.' * (width - full)}]"
        return f"{self._label}{bar} {after}"[: columns - 1]

    def _draw(self, line: str) -> None:
        self._stream.write("\r" + line.ljust(self._drawn))
        self._stream.flush()
        self._drawn = len(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()


@contextmanager
def shown(options: Options, label: str) -> Iterator[Tell | None]:
    """Yield what to call as work goes on, for all who want to know; None where nobody does."""
    tells: list[Tell] = []
    if options.progress is not None:
        tells.append(options.progress)
    if options.told is not None:
        tells.append(_Share(options.told))
    with Progress(label, quiet=not options.show_progress) as bar:
        if options.show_progress:
            tells.append(bar)
        if not tells:
            yield None
            return

        def tell(done: int, total: int) -> None:
            for one in tells:
                one(done, total)

        yield tell


class _Share:
    """Calls a function with the share that is done, once for each percent."""

    def __init__(self, told: object) -> None:
        self._told = told
        self._last = -1
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        share = done / total if total else 1.0
        with self._lock:
            if int(share * 100) == self._last:
                return
            self._last = int(share * 100)
            self._told(share)  # type: ignore[operator]
