"""Tally: progress of several images as that of one task."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bioio_tk.engine.copy import Progress


class Tally:
    """Tells of several images as of one task.

    How large all are is only known at the last one: opening thousands of fields just to add their
    sizes up would take longer than a small plate. Until then those to come count as the present.
    """

    def __init__(self, progress: Progress | None, count: int) -> None:
        self._progress = progress
        self._left = count
        self._before = self._size = 0

    def one(self) -> Progress | None:
        """Return what to call for the next image."""
        self._before += self._size
        self._size = 0
        self._left -= 1
        progress = self._progress
        if progress is None:
            return None

        def tell(done: int, total: int) -> None:
            self._size = total
            progress(self._before + done, self._before + total * (1 + self._left))

        return tell
