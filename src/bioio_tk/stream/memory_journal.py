"""MemoryJournal: the record of a stream that has no place on disk, and ends with its process."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from bioio_tk.core.acquisition import ImageRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bioio_tk.core.frames import FrameRoute


class MemoryJournal:
    """What `StreamJournal` does, without a file; it is its own `contents`."""

    def __init__(self) -> None:
        self._documents: dict[int, bytes] = {}
        self._skips: list[range] = []
        self._frames = 0

    def frames(self, start: int, stop: int, documents: Sequence[bytes | None] = ()) -> None:
        """Enter frames that are stored."""
        self._documents |= {n: text for n, text in enumerate(documents, start) if text}
        self._frames = stop

    def skipped(self, start: int, stop: int) -> None:
        """Enter frames that were skipped."""
        self._skips.append(range(start, stop))
        self._frames = stop

    def note(self, namespace: str, mapping: Mapping[str, Any]) -> None:
        """Do nothing: who notes it keeps it."""

    def contents(self) -> MemoryJournal:
        """Return what was entered until now."""
        return self

    def records(self, route: FrameRoute, opened: Iterable[int]) -> list[ImageRecord]:
        """Return what was recorded of each position that has an image."""
        planes = route.planes(self._frames)
        skips: dict[int, list[range]] = {}
        for skip in self._skips:
            for number in skip:
                position, plane = route.locate(number)
                skips.setdefault(position, []).append(range(plane, plane + 1))
        said: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for number in sorted(self._documents):
            position, plane = route.locate(number)
            said.setdefault(position, []).append((plane, json.loads(self._documents[number])))
        return [
            ImageRecord(p, planes[p], tuple(skips.get(p, ())), partial(iter, said.get(p, ())))
            for p in sorted(opened)
        ]

    def close(self) -> None:
        """Do nothing."""

    def remove(self) -> None:
        """Do nothing."""
