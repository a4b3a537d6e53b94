"""Watcher: a running acquisition as any other process sees it, from its journal and its file."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bioio_tk.core.frames import UNBOUNDED
from bioio_tk.errors import ClosedError
from bioio_tk.reader import check_path
from bioio_tk.stream.coords import view_axes
from bioio_tk.stream.files import PlaneFiles
from bioio_tk.stream.journal import find_target, running
from bioio_tk.stream.recover import look
from bioio_tk.stream.view import StreamView

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.stream.recover import Left

_POLL = 0.02
"""Seconds between two looks at the journal while somebody waits for frames."""
_SPEED_OVER = 3.0
"""Throughput is that of so many seconds."""

State = Literal["running", "finished", "interrupted"]


def watch(path: str | os.PathLike[str]) -> Watcher:
    """Look at an acquisition while it is running, from this process or another one.

    Parameters
    ----------
    path : str or Path
        What is being written: the file or folder, or a file in it.

    Returns
    -------
    Watcher
        Use it in a ``with`` block, or close it.

    Raises
    ------
    FileNotFoundError
        No acquisition is running there, nor was one interrupted.
    DamagedFileError
        Its journal cannot be read.

    Examples
    --------
    >>> from bioio_tk import watch
    >>> with watch("run.ome.zarr") as run:                 # doctest: +SKIP
    ...     print(run.state, run.frames, run.view()[-1].mean())
    ...     for number, frame in run.new_frames(timeout=60):
    ...         show(frame)
    """
    given = check_path(path)
    target = find_target(given)
    if target is None:
        ended = f"; {str(given)!r} is complete, or no acquisition" if given.exists() else ""
        raise FileNotFoundError(f"no acquisition is running at {str(given)!r}{ended}")
    return Watcher(target)


class Watcher:
    """A running acquisition; see `watch`. For one thread.

    Attributes
    ----------
    path : Path
        The file or folder that is written.
    dims : tuple of str
        Names of the axes, in the order of acquisition, the slowest first.
    planned : int or None
        So many frames are going to come; None where nobody has said.
    dtype : numpy.dtype
        Pixel type.
    """

    def __init__(self, path: Path) -> None:
        self._left: Left = look(path)
        self._contents = self._left.contents
        self._frames = _FileFrames(self._left)
        settings, route = self._left.settings, self._left.layout.route
        self._axes = view_axes(settings.dimensions)
        self._seen: deque[tuple[float, int]] = deque()
        self.path = path
        self.dims = tuple(axis.name for axis in self._axes)
        self.planned = route.total if route.total < UNBOUNDED else None
        self.dtype = self._left.layout.plan.image.dtype
        self.refresh()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._frames.closed else self.state
        return f"<Watcher {self.path}: {state}, {self.frames} frames>"

    def close(self) -> None:
        """Close what is open. Safe to call twice; the acquisition is not touched."""
        self._frames.close()
        self._contents.close()

    # ------------------------------------------------------------------ how it is doing

    @property
    def state(self) -> State:
        """``running``, ``finished``, or ``interrupted``: its process is gone, see `recover`."""
        if not self._has_ended():
            if running(self.path):
                return "running"
            if not self._has_ended():  # between the two questions
                return "interrupted"
        return "finished"

    @property
    def running(self) -> bool:
        """More frames may come."""
        return self.state == "running"

    @property
    def frames(self) -> int:
        """So many frames, the first ones, can be read, those skipped counted."""
        return self._contents.frames

    @property
    def skipped(self) -> tuple[range, ...]:
        """Numbers of those of them that were skipped: they read as 0."""
        return self._contents.skipped

    @property
    def notes(self) -> dict[str, dict[str, Any]]:
        """What was said of the whole acquisition, by its namespace."""
        return self._contents.notes

    @property
    def fps(self) -> float:
        """Frames a second, as they came in the last few seconds; 0 at first."""
        (begin, before), (end, now) = self._seen[0], self._seen[-1]
        return (now - before) / (end - begin) if end > begin else 0.0

    @property
    def mb_per_second(self) -> float:
        """The same in MB (10⁶ bytes) of pixels."""
        y, x = self._left.layout.plan.image.shape[:2]
        return self.fps * y * x * self.dtype.itemsize / 1e6

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each of `dims` of what has come."""
        return self.view().shape

    def where(self, number: int) -> dict[str, Any]:
        """Return the place of a frame along the axes, by their names, as the user calls it."""
        indices = self._left.layout.route.indices(number)
        return {
            axis.name: index if axis.labels is None else axis.labels[index]
            for axis, index in zip(self._axes, indices, strict=False)
        }

    def _has_ended(self) -> bool:
        self._frames.check_open()
        return self._contents.gone or self._contents.replaced

    # ------------------------------------------------------------------ pixels

    def read(self, number: int) -> NDArray[Any]:
        """Return a frame (y, x) by its number in the order taken; 0 where it was skipped."""
        return self._frames.read(number)

    def view(self, *, dynamic_shape: bool = True, strict: bool = False) -> StreamView:
        """Return all that has come as one array, which grows; see `OMEStream.view`."""
        return StreamView(
            self._frames, self._axes, self.dtype, dynamic_shape=dynamic_shape, strict=strict
        )

    # ------------------------------------------------------------------ following it

    def refresh(self) -> bool:
        """Look what has come; return whether anything has."""
        self._frames.check_open()
        before = self.frames
        self._contents.refresh()
        now = time.monotonic()
        while len(self._seen) > 1 and now - self._seen[1][0] > _SPEED_OVER:
            self._seen.popleft()
        self._seen.append((now, self.frames))
        return self.frames > before

    def wait(self, frames: int, timeout: float | None = None) -> bool:
        """Wait until more than `frames` frames have come.

        Parameters
        ----------
        frames : int
            So many are known already.
        timeout : float, optional
            Wait no longer than so many seconds.

        Returns
        -------
        bool
            Whether there are: not when the acquisition has ended, or the time is over.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            at_work = self.running
            self.refresh()  # after the question: what came last must not be missed
            if self.frames > frames:
                return True
            if not at_work or (until is not None and time.monotonic() >= until):
                return False
            time.sleep(_POLL)

    def new_frames(
        self, start: int | None = None, timeout: float | None = None
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield number and pixels of each frame as it comes, until the acquisition ends.

        Parameters
        ----------
        start : int, optional
            The first one; by default the one that comes next. Those skipped are left out.
        timeout : float, optional
            End when no frame has come for so many seconds.
        """
        number = self.frames if start is None else start
        while self.wait(number, timeout):
            for n in range(number, self.frames):
                if not self._contents.was_skipped(n):
                    yield n, self.read(n)
                number = n + 1


class _FileFrames:
    """The frames of an acquisition that another process writes: what `StreamView` reads."""

    def __init__(self, left: Left) -> None:
        self._layout, self._contents = left.layout, left.contents
        self._files = PlaneFiles(left.layout, self._recorded)
        self.closed = False

    @property
    def frames_appended(self) -> int:
        """Frames that are there, those skipped included."""
        if not self.closed:
            self._contents.refresh()
        return self._contents.frames

    def read(self, n: int) -> NDArray[Any]:
        """Return frame `n` (y, x); zeros where it was skipped."""
        self.check_open()
        image, route = self._layout.plan.image, self._layout.route
        frames = self._contents.frames
        if n >= frames or self._contents.was_skipped(n):
            return np.zeros(image.shape[:2], image.dtype)
        position, plane = route.locate(n)
        return self._files.read(position, plane, route.planes(frames)[position])

    def check_open(self) -> None:
        """Raise ClosedError after `close`."""
        if self.closed:
            raise ClosedError("the watcher is closed: begin again with watch(path)")

    def close(self) -> None:
        self.closed = True
        self._files.close()

    def _recorded(self) -> list[int]:
        self._contents.refresh()
        return [record.position for record in self._contents.records(self._layout.route)]
