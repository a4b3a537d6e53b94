"""Finish: complete an image that several processes have written, and move it into place."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.engine.pool import check_workers
from bioio_tk.engine.scratch import Scratch
from bioio_tk.engine.write import TileWriter
from bioio_tk.errors import SpecError, UnsupportedError
from bioio_tk.jobs.shared_store import forget_jobs, jobs_left
from bioio_tk.reader import check_path
from bioio_tk.target import FolderTarget

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from bioio_tk.core.tiling import TileKey
    from bioio_tk.engine.copy import Progress


def finish(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    max_workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make the pyramid and the metadata of an image laid out with ``mode="create"``.

    Call it once, after every process has closed its ``BioWriter(path, mode="r+")``. The image
    moves to its place when it is complete; regions nobody has written are 0.

    Parameters
    ----------
    path : str or Path
        The image, as given to `BioWriter`.
    overwrite : bool
        Replace the image that is there.
    max_workers : int, optional
        Threads, by default one per CPU this process may use.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes of the full resolution.

    Returns
    -------
    Path
        Where the image is.

    Raises
    ------
    FileNotFoundError
        No image was laid out there.
    TargetBusyError
        Another process is still at work on it.
    TargetExistsError
        There is an image already and `overwrite` is not set.
    """
    place = check_path(path)
    complete(place, overwrite=overwrite, workers=check_workers(max_workers), progress=progress)
    return place


def complete(
    place: Path,
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
    shrunk: bool = False,
    before: Callable[[Path], object] | None = None,
) -> None:
    """Do what `finish` does.

    Parameters
    ----------
    place, overwrite, workers, progress
        As there.
    shrunk : bool
        The smaller levels are there already.
    before : callable, optional
        Called with the folder of the image when it is complete, before it moves to its place.
    """
    row = registry.for_writing(place)
    if not row.tree:
        raise UnsupportedError(f"{place.name!r}: only an OME-Zarr is written by several processes")
    sink_class: Any = registry.load_sink(row)
    target = FolderTarget(place, overwrite=overwrite, leftover=True, foreign=sink_class.foreign)
    try:
        target.check_place()
        if not target.is_shared:
            raise SpecError(
                f"{str(target.partial)!r} was not laid out for several processes, but left by a "
                f"write that was interrupted: see 'bioio-tk recover {place}'"
            )
        _check_done(target.partial)
        sink = sink_class.reopen(target.partial, shared=False)
        scratch = Scratch(target.partial.parent)
        try:
            if not shrunk:
                tiles = TileWriter(sink, workers=workers, scratch=scratch, method=sink.downsample)
                sink.drop_smaller()
                tiles.shrink_stored(_counter(sink, progress))
            sink.finish()
        finally:
            sink.close()
            scratch.close()
        if before is not None:
            before(target.partial)
        forget_jobs(target.partial)
        target.unmark_shared()
        target.commit()
    finally:
        target.leave()


def _check_done(folder: Path) -> None:
    left = jobs_left(folder)
    if left:
        raise SpecError(
            f"{str(folder)!r} is not complete: of its jobs {', '.join(left[:20])}"
            f"{' …' if len(left) > 20 else ''} {'is' if len(left) == 1 else 'are'} not done: run "
            "them (again), then complete it"
        )


def _counter(sink: Any, progress: Progress | None) -> Any:
    """Return what counts the tiles done and tells the caller, one call at a time."""
    if progress is None:
        return None
    spec = sink.images[0]
    total = math.prod(spec.shape) * spec.dtype.itemsize
    lock, done = threading.Lock(), [0]

    def count(key: TileKey) -> None:
        with lock:
            done[0] += math.prod(spec.levels[0].grid.tile_shape(key)) * spec.dtype.itemsize
            progress(done[0], total)

    return count
