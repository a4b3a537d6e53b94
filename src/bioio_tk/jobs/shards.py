"""Shards of a job: processes that know nothing of each other convert one image together.

For schedulers that only start processes (Slurm, LSF, PBS): each process gets a number, ``3/8``,
writes its share of the files of one OME-Zarr and notes in the unfinished store that it is done.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from bioio_tk.backends import registry
from bioio_tk.backends._store import SHARED_MARK, part_number
from bioio_tk.core.checksum import PlaneSums
from bioio_tk.engine.pool import check_workers
from bioio_tk.errors import BioIOError, SpecError, TargetBusyError, TargetExistsError
from bioio_tk.jobs.finish import complete
from bioio_tk.jobs.shared_store import (
    LARGEST,
    SharedImage,
    job_mark,
    jobs_left,
    local_zarr,
    regions,
    shared_document,
    source_record,
)
from bioio_tk.target import SUFFIX, FolderTarget, partial_path
from bioio_tk.writer import BioWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bioio_tk.core.region import Region
    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.engine.copy import Progress
    from bioio_tk.lazy import LazyArray

_JOB = re.compile(r"([0-9]+)/([0-9]+)")
_MOST_JOBS = 100_000
_SHARES = 4
"""Regions a job has at least, where the files of the store are small enough."""
_VERSION = 1
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds to wait for others that look at the same unfinished image."""


class Share(NamedTuple):
    """What became of one job of several.

    Attributes
    ----------
    spec : ImageSpec
        The image that all of them write.
    skipped : bool
        The job had been done before.
    read_bytes : int
        Bytes of pixels that were read.
    left : list of str
        The jobs that are not done yet, as ``"3/8"``.
    """

    spec: ImageSpec
    skipped: bool
    read_bytes: int
    left: list[str]


def write_share(
    lazy: LazyArray,
    target: Any,
    writer_options: dict[str, Any],
    *,
    job: str,
    record: dict[str, Any] | None = None,
    workers: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Share:
    """Write the share of one job; whoever comes first lays the image out.

    A job that is done is not done again; one that was killed is begun anew.

    Parameters
    ----------
    lazy : LazyArray
        What is converted.
    target : str or Path
        The OME-Zarr to make.
    writer_options : dict
        Keywords for `BioWriter`.
    job : str
        Which job of how many, counted from 1: ``"3/8"``.
    record : dict, optional
        What all jobs have to agree on, as JSON has it: the options.
    workers : int, optional
        Threads, by default one per CPU this process may use.
    memory : int, optional
        Bytes of pixels in flight.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes of this job.

    Returns
    -------
    Share
        What was done, and what is left to do.

    Raises
    ------
    SpecError
        `job` is no such thing, or the image was laid out by jobs of another source, of other
        options or of another number.
    UnsupportedError
        The target is no OME-Zarr in a folder.
    TargetExistsError
        The image is complete already, or an interrupted write of another kind is in the way.
    """
    number, jobs = parse_job(job)
    path = local_zarr(target, "shard_job=")
    wanted = _document(lazy, jobs, record)
    _lay_out(path, writer_options, wanted)
    with _joined(path, smaller=True) as image:
        spec, folder = image.spec, image.target.partial
        _check_same(folder, wanted)
    mark = job_mark(folder, number, jobs)
    if mark.exists():
        return Share(spec, True, 0, jobs_left(folder))
    sums = PlaneSums(spec.shape, spec.dtype)
    with _joined(path, workers=check_workers(workers)) as image:
        share = _share(lazy, image, number, jobs)
        steps = _Steps(share, lazy.dtype.itemsize, progress)
        for region in share:
            image.fill(
                lazy.view(),
                region,
                cast=writer_options.get("cast"),
                memory=memory,
                sums=sums,
                progress=steps.next(region),
            )
    _put(mark, {"checksums": sums.parts()})
    return Share(spec, False, steps.total, jobs_left(folder))


def finalize(
    target: Any,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    before: Callable[[Path], object] | None = None,
) -> tuple[ImageSpec, dict[str, str]]:
    """Complete what jobs have written: make the pyramid, move the image into place.

    Parameters
    ----------
    target : str or Path
        The OME-Zarr, as given to the jobs.
    overwrite : bool
        Replace the image that is there.
    workers : int, optional
        Threads, by default one per CPU this process may use.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes of the full resolution.
    before : callable, optional
        Called with the folder of the image when it is complete, before it moves to its place.

    Returns
    -------
    ImageSpec, dict
        The image, and the checksums of its planes as `core.checksum.PlaneSums` gives them.

    Raises
    ------
    SpecError
        Jobs are not done yet: the text says which.
    FileNotFoundError
        No job has begun, or the image is complete already.
    TargetBusyError
        A job is still at work.
    """
    path = local_zarr(target, "finalize=True")
    with _joined(path, smaller=True) as image:
        spec = image.spec
        checksums = _checksums(image.target.partial, spec)
    complete(
        path, overwrite=overwrite, workers=check_workers(workers), progress=progress, before=before
    )
    _tidy(path)
    return spec, checksums


def parse_job(job: str) -> tuple[int, int]:
    """Return the number of a job and how many there are.

    >>> parse_job("3/8")
    (3, 8)
    """
    found = _JOB.fullmatch(str(job).strip())
    if found is None:
        raise SpecError(f"shard_job={job!r}: say which job of how many, as '3/8'")
    number, jobs = map(int, found.groups())
    if not 1 <= number <= jobs <= _MOST_JOBS:
        raise SpecError(
            f"shard_job={job!r}: jobs are counted from 1: '1/{jobs}' to '{jobs}/{jobs}', and there "
            f"are no more than {_MOST_JOBS} (with Slurm: --array=1-{max(1, jobs)})"
        )
    return number, jobs


class _Steps:
    """Counts the bytes of a job over all its regions."""

    def __init__(self, share: list[Region], itemsize: int, progress: Progress | None) -> None:
        self._itemsize = itemsize
        self._progress = progress
        self._before = 0
        self.total = sum(map(self._size, share))

    def _size(self, region: Region) -> int:
        return math.prod(region.shape) * self._itemsize

    def next(self, region: Region) -> Progress | None:
        """Return what to call while this region is copied, after those before it."""
        progress, before = self._progress, self._before
        self._before += self._size(region)
        return None if progress is None else lambda done, _: progress(before + done, self.total)


def _share(lazy: LazyArray, image: SharedImage, number: int, jobs: int) -> list[Region]:
    """Return the regions of a job: neighbours, which mostly touch tiles of the source only once."""
    view = lazy.view()
    itemsize = lazy.dtype.itemsize
    most = min(LARGEST, view.nbytes // (jobs * _SHARES)) // itemsize
    found = list(regions(view.shape, view.stored(), image.sink.unit(), most))
    return found[len(found) * (number - 1) // jobs : len(found) * number // jobs]


def _document(lazy: LazyArray, jobs: int, record: dict[str, Any] | None) -> dict[str, Any]:
    """Return what all jobs of an image have to agree on."""
    picks = [
        [p.start, p.stop, p.step] if isinstance(p, range) else [int(n) for n in p]
        for p in lazy.picks
    ]
    document = {
        "version": _VERSION,
        "jobs": jobs,
        "source": [list(one) for one in source_record(lazy)],
        "series and level": [lazy.reader.series, lazy.reader.level],
        "selection": picks,
        "dtype": lazy.dtype.name,
        "options": record or {},
    }
    return json.loads(json.dumps(document))  # type: ignore[no-any-return]


def _check_same(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise where other jobs have laid the image out."""
    found = shared_document(folder)
    differs = [key for key, value in wanted.items() if found.get(key) != value]
    if differs:
        key = differs[0]
        raise SpecError(
            f"{str(folder)!r} was begun by jobs that do not fit this one: {key} is "
            f"{found.get(key)!r:.200} there, and {wanted[key]!r:.200} here. Give all jobs the same "
            "arguments; to begin anew, remove that folder first"
        )


def _lay_out(path: Path, options: dict[str, Any], document: dict[str, Any]) -> None:
    """Make the unfinished store, unless it is there.

    It is made under another name and appears with all that belongs to it, so that it does not
    matter how many do so at the same time, or are killed meanwhile.
    """
    partial = partial_path(path)
    if os.path.lexists(partial):
        return
    try:
        BioWriter(path, mode="create", **options)  # raises where something is wrong; makes nothing
    except (TargetExistsError, TargetBusyError):
        if os.path.lexists(partial):  # another job was faster
            return
        raise
    aside = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    folder = partial_path(aside)
    try:
        BioWriter(aside, mode="create", **options).close()
        _put(folder / SHARED_MARK, document)
        os.rename(folder, partial)
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _joined(path: Path, **more: Any) -> SharedImage:
    """Open the image; others who look whether they may replace it hold it for a moment."""
    for pause in _PAUSES:
        with suppress(TargetBusyError):
            return SharedImage(path, **more)
        time.sleep(pause)
    return SharedImage(path, **more)


def _put(path: Path, document: dict[str, Any]) -> None:
    """Write a document so that it is there as a whole or not at all."""
    part = path.with_name(f"{path.name}.{part_number()}-0.part")
    part.write_text(json.dumps(document))
    os.replace(part, path)


def _checksums(folder: Path, spec: ImageSpec) -> dict[str, str]:
    """Return the checksums of all planes whose jobs are done."""
    document = shared_document(folder)
    jobs = int(document.get("jobs", 0))
    sums = PlaneSums(spec.shape, spec.dtype)
    for number in range(1, jobs + 1):
        with suppress(FileNotFoundError):
            sums.merge(json.loads(job_mark(folder, number, jobs).read_bytes())["checksums"])
    return sums.result()


def _tidy(path: Path) -> None:
    """Remove what jobs have left that were killed while they laid the image out."""
    sink: Any = registry.load_sink(registry.for_writing(path))
    for folder in path.parent.glob(f".*.{path.name}.partial"):
        if re.fullmatch(r"\.[0-9a-f]{8}\..*", folder.name):
            aside = folder.with_name(folder.name.removesuffix(SUFFIX))
            with suppress(OSError, BioIOError):  # one that is at work has it
                FolderTarget(aside, overwrite=True, leftover=True, foreign=sink.foreign).abort()
