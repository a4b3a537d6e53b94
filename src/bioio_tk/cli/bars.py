"""Bars for a batch: one for all of it and one for each running file; plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

from bioio_tk.cli.main import as_typed
from bioio_tk.core.text import duration, size

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self, TextIO

    from bioio_tk.jobs.batch.batch import BatchProgress
    from bioio_tk.jobs.batch.job import BatchEntry

_PATIENCE = 0.5  # seconds without a bar
_PAUSE = 0.1  # seconds between two pictures of them
_MOST = 8
"""Running files that are shown."""


class Bars:
    """Call it with a `BatchProgress`.

    On a terminal the bars stay below what is printed about files that failed. Where there is no
    terminal each file that has ended is a line.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    stream : file, optional
        Where to draw, stderr by default.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._terminal = self._stream.isatty()
        self._began = self._last = time.monotonic()
        self._drawn = 0
        self.last: BatchProgress | None = None

    def __call__(self, state: BatchProgress) -> None:
        """Show how far the batch is."""
        self.last = state
        if self._quiet:
            return
        if state.ended is not None:
            self._say(state, state.ended)
        now = time.monotonic()
        if not self._terminal or now - self._began < _PATIENCE:
            return
        if now - self._last >= _PAUSE or state.files_done == state.files:
            self._last = now
            self._draw(self.picture(state, now - self._began, shutil.get_terminal_size().columns))

    def _say(self, state: BatchProgress, entry: BatchEntry) -> None:
        """Print a line about a file that has ended: of each, or on a terminal of failures only."""
        if self._terminal and entry.status != "failed":
            return
        self._clear()
        count = f"[{state.files_done}/{state.files}]"
        if entry.status == "failed":
            self._stream.write(f"{count} failed: {entry.source}: {as_typed(entry.error)}\n")
        else:
            took = duration(entry.seconds)
            self._stream.write(f"{count} {entry.status}: {entry.target} ({took})\n")
        self._stream.flush()

    def picture(self, state: BatchProgress, seconds: float, columns: int) -> list[str]:
        """Return the bars as lines no longer than the terminal is wide."""
        share = state.bytes_done / max(1, state.bytes_total)
        left = seconds / share - seconds if share else 0.0
        failed = f", {state.files_failed} failed" if state.files_failed else ""
        after = (
            f"{share:4.0%}  {state.files_done}/{state.files} files{failed}, "
            f"{size(state.bytes_done)}  {size(state.bytes_done / max(seconds, 1e-9))}/s  "
            f"{duration(left)} left"
        )
        lines = [_bar("all", share, after, columns)]
        for source, part in state.running[:_MOST]:
            lines.append(_bar(_short(source, columns // 2), part, f"{part:4.0%}", columns))
        if len(state.running) > _MOST:
            lines.append(f"and {len(state.running) - _MOST} more")
        return lines

    def _draw(self, lines: list[str]) -> None:
        self._clear()
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()
        self._drawn = len(lines)

    def _clear(self) -> None:
        if self._drawn:  # up, and away with everything from there
            self._stream.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._clear()
        self._stream.flush()


def _bar(label: str, share: float, after: str, columns: int) -> str:
    width = min(30, columns - len(label) - len(after) - 6)
    if width < 8:
        return f"{label} {after}"[: columns - 1]
    full = min(width, int(width * share))
    return f"{label} [{'#' * full}{'.' * (width - full)}] {after}"[: columns - 1]


def _short(text: str, most: int) -> str:
    """Return the end of a path, which tells more than its beginning.

    >>> _short("/data/plate/A01.czi", 10)
    '…e/A01.czi'
    """
    return text if len(text) <= most else "…" + text[-(most - 1) :]
