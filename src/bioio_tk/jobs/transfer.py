"""Transfer: all pixels of a view into a writer, so that what was done once stays done."""

from __future__ import annotations

import errno
import math
import threading
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from bioio_tk.core.dtype import as_pixels
from bioio_tk.core.spec import Address
from bioio_tk.core.tiling import TileGrid
from bioio_tk.engine.copy import copy, split_of
from bioio_tk.engine.read import settle
from bioio_tk.errors import TargetExistsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.checksum import PlaneSums
    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.engine.copy import Progress, View
    from bioio_tk.jobs.journal import Journal
    from bioio_tk.writer import BioWriter

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Errors of a disk that takes no more; Windows knows no quota."""


class Transferred(NamedTuple):
    """What a transfer did.

    Attributes
    ----------
    levels : int
        Resolutions of the new image.
    read_bytes : int
        Bytes of pixels that were read.
    checksums : dict of str
        By plane, where sums were wanted, else empty.
    resumed : int
        Bytes of pixels that an earlier run had stored already, and were not read again.
    note : str
        Why the transfer could not have been resumed, "" where it could.
    """

    levels: int
    read_bytes: int
    checksums: dict[str, str]
    resumed: int
    note: str = ""


def transfer(
    view: View,
    writer: BioWriter,
    *,
    workers: int,
    progress: Progress | None = None,
    memory: int | None = None,
    sums: PlaneSums | None = None,
    smaller: Sequence[View] = (),
) -> Transferred:
    """Copy a view into a new image, complete it and put it into place.

    If it fails or is interrupted nothing is left, unless the writer keeps a journal that says
    ``resume=True``: then what is done stays, and the next such transfer goes on with it. A
    journal also lets a transfer be resumed whose process was killed.

    Parameters
    ----------
    view : View
        What to copy.
    writer : BioWriter
        An image of the same shape, nothing written yet; it is closed in any case.
    workers : int
        Threads in all.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes, see `engine.copy.copy`.
    memory : int, optional
        Bytes of pixels in flight.
    sums : PlaneSums, optional
        Takes the checksums of the pixels as they are written.
    smaller : sequence of View
        The smaller levels, where they are copied as they are.

    Raises
    ------
    SpecError
        The journal of the interrupted run is of another source, or of other options.
    """
    try:
        moved = _Moved(view, writer, sums)
        moved.run(workers=workers, progress=progress, memory=memory)
        for level, part in enumerate(smaller, 1):
            copy(
                part,
                partial(writer._put_level, level),  # noqa: SLF001
                writer._spec().levels[level].tile,  # noqa: SLF001
                workers=workers,
                memory=memory,
            )
    except BaseException as exc:
        _give_up(writer, exc)
        raise
    try:
        writer.close()
    except TargetExistsError:
        raise  # the new image is complete, and the message says where it is
    except BaseException as exc:
        _give_up(writer, exc)
        writer.discard()
        raise
    checksums = {} if sums is None else sums.result()
    return Transferred(moved.levels, moved.read, checksums, moved.skipped, writer.journal_note)


class _Moved:
    """A copy that counts what it reads, and leaves out what is there already."""

    def __init__(self, view: View, writer: BioWriter, sums: PlaneSums | None) -> None:
        self._view = view
        self._writer = writer
        self._sums = sums
        self._journal = cast("Journal | None", writer.journal)
        self._lock = threading.Lock()
        self._itemsize = view.source.images[view.image].dtype.itemsize
        self.levels = 0
        self.read = self.skipped = 0

    def run(self, *, workers: int, progress: Progress | None, memory: int | None) -> None:
        """Copy all that is not there yet."""
        view, writer, journal = self._view, self._writer, self._journal
        spec = writer._spec()  # noqa: SLF001 (the engine works on tiles, which have no public door)
        self.levels = len(spec.levels)
        self._grid = TileGrid(spec.shape, spec.levels[0].tile)
        window: Shape5 | None = None
        skip: Callable[[Slices5], bool] | None = None
        settle(view.source, view.image, view.level)  # or its tiles may be others than they seem
        if journal is not None:
            window = split_of(view, self._grid.tile, workers=workers, memory=memory).window
            journal.window = window
            writer.start()
            window = journal.window  # that of the run to go on with, so that its windows fit
            skip = self._skip if journal.tiles else None
        copy(
            view,
            writer.__setitem__,
            self._grid.tile,
            workers=workers,
            progress=progress,
            memory=memory,
            window=window,
            skip=skip,
            done=self._done,
        )

    def _skip(self, box: Slices5) -> bool:
        """Return whether a window is stored already, and its part of the checksums is known."""
        journal = self._journal
        if journal is None or not self._stored(box):
            return False
        if self._sums is not None:
            part = journal.part(box)
            if part is None:
                return False
            self._sums.merge(part)
        with self._lock:
            self.skipped += math.prod(s.stop - s.start for s in box) * self._itemsize
        return True

    def _stored(self, box: Slices5) -> bool:
        spans = [
            range(s.start // n, -(-s.stop // n)) for s, n in zip(box, self._grid.tile, strict=True)
        ]
        tiles = self._journal.tiles if self._journal is not None else ()
        return all(Address(0, 0, key) in tiles for key in product(*spans))  # type: ignore[arg-type]

    def _done(self, box: Slices5, pixels: NDArray[Any]) -> None:
        part = None
        if self._sums is not None:
            stored = as_pixels(pixels, self._writer.dtype, self._writer._cast)  # noqa: SLF001
            part = self._sums.part(box, stored)
            self._sums.merge(part)
        if self._journal is not None and part is not None:
            self._journal.window_done(box, part)
        with self._lock:
            self.read += pixels.nbytes


def _give_up(writer: BioWriter, exc: BaseException) -> None:
    """Leave what is done to the next run where that was wished for, else leave nothing."""
    if isinstance(exc, OSError) and exc.errno in _FULL and exc.filename is None:
        exc.filename = str(writer.path)  # a bare "no space left" does not say which disk
    journal = cast("Journal | None", writer.journal)
    if journal is None or not journal.resume:
        writer.abort()
    elif writer.suspend():
        exc.add_note(
            f"what is done so far is kept in {str(journal.partial)!r}: once the cause is gone, the "
            "same command with resume=True (--resume) goes on there"
        )
