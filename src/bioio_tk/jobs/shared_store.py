"""One OME-Zarr that several processes write: laid out, filled and shrunk region by region.

A region is a whole number of files of the store, so that two processes never meet in one, and a
region that is written twice is written the same way.
"""

from __future__ import annotations

import json
import math
import os
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bioio_tk.backends import registry
from bioio_tk.backends._store import MARKS, SHARED_MARK
from bioio_tk.core.dtype import as_pixels
from bioio_tk.core.location import Url, locate
from bioio_tk.core.region import Region
from bioio_tk.engine.copy import copy
from bioio_tk.engine.scratch import Scratch
from bioio_tk.engine.write import TileWriter
from bioio_tk.errors import FormatError, SpecError, UnsupportedError
from bioio_tk.target import FolderTarget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.checksum import PlaneSums
    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.engine.copy import Progress, View
    from bioio_tk.lazy import LazyArray

LARGEST = 64 << 20
"""Bytes of pixels that one region has, unless one file of the store has more."""
_GROWTH = (2, 3, 4)  # Z, C, T: along these a region grows once it has whole planes


class SharedImage:
    """An image laid out with ``mode="create"`` that others work on as well.

    Parameters
    ----------
    path : Path
        Where the finished image goes.
    workers : int
        Threads.
    smaller : bool
        The smaller levels are to be made; else only the full resolution is written.

    Raises
    ------
    FileNotFoundError
        No image was laid out there, or this machine does not see it.
    TargetBusyError
        It is just being completed.
    SpecError
        It was not laid out for several processes.
    """

    def __init__(self, path: Path, *, workers: int = 1, smaller: bool = False) -> None:
        row = registry.for_writing(path)
        sink_class: Any = registry.load_sink(row)
        self._workers = workers
        self.target = FolderTarget(
            path, overwrite=False, leftover=True, foreign=sink_class.foreign, shared=True
        )
        try:
            self.check_shared()
            self.sink = sink_class.reopen(self.target.partial, shared=True, smaller=smaller)
        except BaseException:
            self.target.leave()
            raise
        self._scratch = Scratch(path.parent)
        self._tiles = TileWriter(
            self.sink, workers=workers, scratch=self._scratch, method=self.sink.downsample
        )

    @property
    def spec(self) -> ImageSpec:
        """What was laid out."""
        return self.sink.images[0]  # type: ignore[no-any-return]

    def check_shared(self) -> None:
        """Raise where the image is not, or no more, written by several processes."""
        if not self.target.is_shared:
            raise SpecError(
                f"{str(self.target.partial)!r} was not laid out for several processes, or the job "
                "that did so has been given up"
            )

    def fill(
        self,
        view: View,
        region: Region,
        *,
        cast: str | None = None,
        memory: int | None = None,
        sums: PlaneSums | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Copy a region of a view to the same place in the image."""
        check_fits(view.shape, self.spec)

        def put(box: Slices5, pixels: NDArray[Any]) -> None:
            self.check_shared()  # who has given up removes the folder: nothing may come into it
            pixels = as_pixels(pixels, self.spec.dtype, cast)
            spans: Any = tuple(range(s.start, s.stop) for s in moved(box, region))
            self._tiles.write(spans, pixels)

        def done(box: Slices5, pixels: NDArray[Any]) -> None:
            if sums is not None:
                sums.add(moved(box, region), as_pixels(pixels, self.spec.dtype, cast))

        copy(
            within(view, region),
            put,
            self.spec.levels[0].tile,
            workers=self._workers,
            memory=memory,
            progress=progress,
            done=done,
        )

    def shrink(self, level: int, region: Region) -> None:
        """Make a region of a smaller level from what is stored of the level above."""
        self.check_shared()
        self._tiles.shrink_into(level, region)

    def close(self) -> None:
        """Let go of the image. Safe to call twice."""
        self.sink.close()
        self._scratch.close()
        self.target.leave()

    def __enter__(self) -> SharedImage:
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        try:
            if exc_type is None:
                self._tiles.flush()
                self.sink.finish()
        finally:
            self.close()


class SourceRecord(NamedTuple):
    """What a file was when the job began: who sees another one must not go on.

    Attributes
    ----------
    path : str
        The file or folder.
    size, mtime : int
        Bytes, and nanoseconds since 1970; 0 for a folder and for what is on a server.
    """

    path: str
    size: int
    mtime: int


def source_record(lazy: LazyArray) -> tuple[SourceRecord, ...]:
    """Return which files an image is read from, and what they are now."""
    found = []
    for place in lazy.reader.used_files:
        if isinstance(place, Url):
            found.append(SourceRecord(place.shown, 0, 0))
            continue
        info = os.stat(place)
        plain = not Path(place).is_dir()
        path = str(Path(place).absolute())
        found.append(SourceRecord(path, info.st_size * plain, info.st_mtime_ns * plain))
    return tuple(found)


def local_zarr(target: Any, what: str) -> Path:
    """Return the path of an OME-Zarr that several processes can write, absolute.

    Raises
    ------
    UnsupportedError
        The target is something else; `what` says for which argument that matters.
    """
    place = locate(target)
    row = registry.for_writing(place)
    packed = place.name.lower().endswith(row.packed) if row.packed else False
    if isinstance(place, Url) or not row.tree or packed:
        raise UnsupportedError(
            f"{what} writes an OME-Zarr in a folder that every process sees, not {str(place)!r}: "
            "end the name with .ome.zarr, and convert or pack the result afterwards"
        )
    return place.absolute()


def regions(shape: Shape5, stored: Shape5, unit: Shape5, most: int) -> Iterator[Region]:
    """Yield regions that together are an image; T outermost, X fastest.

    Parameters
    ----------
    shape : Shape5
        Size of the image.
    stored : Shape5
        Tiles of the source: where they are not much larger, regions hold whole ones.
    unit : Shape5
        Size of a file of the target: regions hold whole ones.
    most : int
        Pixels a region has at most, or four times as many where a tile of the source has; more
        only where one unit has.

    Examples
    --------
    >>> [r.start[:2] for r in regions((8, 8, 1, 1, 1), (1, 1, 1, 1, 1), (2, 4, 1, 1, 1), 16)]
    [(0, 0), (0, 4), (4, 0), (4, 4)]
    """
    size = [_whole_units(s, u, n) for s, u, n in zip(stored, unit, shape, strict=True)]
    if math.prod(size) > 4 * most:
        size = [min(u, n) for u, n in zip(unit, shape, strict=True)]
    while True:
        axis = _next_axis(size, shape)
        if axis is None or 2 * math.prod(size) > most:
            break
        size[axis] = min(2 * size[axis], shape[axis])
    starts = [range(0, n, step) for n, step in zip(shape, size, strict=True)]
    ys, xs, zs, cs, ts = starts
    for t, c, z, y, x in product(ts, cs, zs, ys, xs):
        start: Shape5 = (y, x, z, c, t)
        stop = tuple(min(a + k, n) for a, k, n in zip(start, size, shape, strict=True))
        yield Region(start, stop)  # type: ignore[arg-type]


def _whole_units(stored: int, unit: int, size: int) -> int:
    """Return a length of whole units that holds whole tiles of the source, if that is not long."""
    joint = math.lcm(stored, unit)
    if stored >= size or joint > 4 * max(stored, unit):
        joint = unit * max(1, stored // unit)
    return size if stored >= size else min(joint, size)


def _next_axis(size: Sequence[int], shape: Shape5) -> int | None:
    """Return the axis to make a region longer along: planes first, as square as can be."""
    open_axes = [axis for axis in (1, 0) if size[axis] < shape[axis]]
    if open_axes:
        return min(open_axes, key=lambda axis: size[axis])
    return next((axis for axis in _GROWTH if size[axis] < shape[axis]), None)


def within(view: View, region: Region) -> View:
    """Return a region of a view."""
    picks = tuple(pick[part] for pick, part in zip(view.picks, region.slices(), strict=True))
    return view._replace(picks=picks)  # type: ignore[arg-type]


def moved(box: Slices5, region: Region) -> Slices5:
    """Return where a box of a region lies in the image."""
    return tuple(  # type: ignore[return-value]
        slice(s.start + a, s.stop + a) for s, a in zip(box, region.start, strict=True)
    )


def check_fits(shape: Shape5, spec: ImageSpec) -> None:
    """Raise where a source is no longer what the image was laid out for."""
    if shape != spec.shape:
        raise FormatError(
            f"the source has the shape {shape} (Y, X, Z, C, T), and the image was laid out with "
            f"{spec.shape}: the source has changed since, or another file has its name here"
        )


def check_source(expected: tuple[SourceRecord, ...], lazy: LazyArray, where: str) -> None:
    """Raise where a source is not the one that the job began with."""
    for then, now in zip(expected, source_record(lazy), strict=False):
        if then != now:
            raise FormatError(
                f"{where} sees another file at {then.path!r} than the job began with "
                f"({now.size} bytes, not {then.size}, or another date): every process must see "
                "the same file system, and nothing may change the source meanwhile"
            )


def job_mark(folder: Path, job: int, jobs: int) -> Path:
    """Return the file in an unfinished image that says that one of several jobs is done."""
    return folder / f"{MARKS}{job}-{jobs}.part"


def jobs_left(folder: Path) -> list[str]:
    """Return which of the jobs that share an unfinished image are not done: ``["3/8"]``.

    Where it is shared in another way there are none.
    """
    jobs = int(shared_document(folder).get("jobs", 0))
    done = (job_mark(folder, job, jobs) for job in range(1, jobs + 1))
    return [f"{job}/{jobs}" for job, mark in enumerate(done, 1) if not mark.exists()]


def shared_document(folder: Path) -> dict[str, Any]:
    """Return what was written down when an image was laid out for several jobs, {} for nothing."""
    text = (folder / SHARED_MARK).read_bytes()
    document = json.loads(text) if text else {}
    return document if isinstance(document, dict) else {}


def forget_jobs(folder: Path) -> None:
    """Remove what jobs have written down of themselves; all of them are done."""
    (folder / SHARED_MARK).write_bytes(b"")  # first: else jobs would seem to be missing
    for path in folder.iterdir():
        if path.name.startswith(MARKS) and path.name != SHARED_MARK:
            path.unlink()
