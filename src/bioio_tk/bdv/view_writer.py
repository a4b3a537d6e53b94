"""ViewWriter: one stack on its way into the file, whole or in parts."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, insort
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from bioio_tk.bdv.stack import in_five
from bioio_tk.engine.write import TileWriter
from bioio_tk.errors import BioIOError, ClosedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bioio_tk.core.downsample import Method
    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.core.views import Shape3
    from bioio_tk.engine.scratch import Scratch

_Span: TypeAlias = tuple[int, int]


class ViewWriter:
    """Takes the pixels of one view, from any thread, in any order.

    Parameters
    ----------
    sink : Sink
        Its place in the file.
    workers : int
        Threads that encode.
    scratch : Scratch
        Room for blocks that wait for their rest.
    method : Method
        How the smaller levels are made, see `core.downsample`.
    """

    def __init__(self, sink: Any, *, workers: int, scratch: Scratch, method: Method) -> None:
        self._sink = sink
        self._tiles = TileWriter(sink, workers=workers, scratch=scratch, method=method)
        self._given = _Given(sink.images[0].shape)
        self._gate = threading.Condition()
        self._busy = 0
        self._ended = False

    @property
    def tile(self) -> Shape5:
        """Size of the blocks of the full resolution along Y, X, Z, C, T."""
        tile: Shape5 = self._sink.images[0].levels[0].tile
        return tile

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type."""
        dtype: np.dtype[Any] = self._sink.images[0].dtype
        return dtype

    @property
    def is_whole(self) -> bool:
        """Every pixel was given."""
        with self._gate:
            return self._given.is_whole and not self._busy

    def put(self, box: Slices5, pixels: NDArray[Any]) -> None:
        """Write pixels (y, x, z, 1, 1) to a box of the full resolution.

        Raises
        ------
        ClosedError
            The stack is complete: another thread has given the last pixels of it.
        """
        with self._gate:
            if self._ended:  # they would wait for a rest that never comes
                raise ClosedError("the stack is complete: nothing in it can be given again")
            self._busy += 1
        try:
            self._tiles.write(tuple(range(s.start, s.stop) for s in box), pixels)  # type: ignore[arg-type]
        finally:
            with self._gate:
                self._busy -= 1
                self._gate.notify_all()
        with self._gate:
            self._given.add(box)

    def put_stack(self, start: Shape3, pixels: NDArray[Any]) -> None:
        """Write pixels (z, y, x) from `start` on."""
        (z, y, x), (nz, ny, nx) = start, pixels.shape
        one = slice(0, 1)
        box = (slice(y, y + ny), slice(x, x + nx), slice(z, z + nz), one, one)
        self.put(box, in_five(pixels))

    def end(self) -> None:
        """Store what waits; nothing more is taken. Safe to call twice."""
        with self._gate:
            self._ended = True
            self._gate.wait_for(lambda: not self._busy)
        self._tiles.flush()

    def finish(self) -> None:
        """Store what waits, and let readers see the view; pixels never given are 0."""
        self.end()
        self._sink.finish()
        self._sink.close()

    def abort(self) -> None:
        """Give up: what was there of the view before stays."""
        with suppress(OSError, BioIOError):  # there is an error already: the one to report
            self._sink.abort()


class _Given:
    """Which pixels of a view were given: exactly, as long as no part was given twice."""

    def __init__(self, shape: Shape5) -> None:
        y, x, z, *_ = shape
        self._missing = y * x * z
        self._boxes = _Boxes()

    @property
    def is_whole(self) -> bool:
        return self._missing == 0

    def add(self, box: Slices5) -> None:
        y, x, z = ((s.start, s.stop) for s in box[:3])
        if self._missing < 0 or self._boxes.holds((z, y, x)):
            return
        if self._boxes.meets((z, y, x)):
            self._missing = -1  # they overlap: single pixels are not counted, the user ends it
            return
        self._boxes.add((z, y, x))
        self._missing -= math.prod(stop - start for start, stop in (y, x, z))


class _Boxes:
    """Many boxes, of which few lie at the same place along the first axis, and so on."""

    def __init__(self) -> None:
        self._spans: list[_Span] = []  # along the first axis, ascending
        self._longest = 0
        self._inner: dict[_Span, _Boxes] = {}  # the other axes of those with that span

    def holds(self, box: tuple[_Span, ...]) -> bool:
        """Return whether the same box is there."""
        inner = self._inner.get(box[0])
        return inner is not None and (len(box) == 1 or inner.holds(box[1:]))

    def meets(self, box: tuple[_Span, ...]) -> bool:
        """Return whether a box has pixels that another one has."""
        (start, stop), *rest = box
        first = bisect_left(self._spans, (start - self._longest, 0))
        for n in range(first, len(self._spans)):
            span = self._spans[n]
            if span[0] >= stop:
                return False
            if span[1] > start and (not rest or self._inner[span].meets(tuple(rest))):
                return True
        return False

    def add(self, box: tuple[_Span, ...]) -> None:
        """Take in a box."""
        (start, stop), *rest = box
        inner = self._inner.get((start, stop))
        if inner is None:
            inner = self._inner[start, stop] = _Boxes()
            insort(self._spans, (start, stop))
            self._longest = max(self._longest, stop - start)
        if rest:
            inner.add(tuple(rest))
