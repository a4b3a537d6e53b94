"""Doing the jobs of a batch: how many at a time, where, and what becomes of each."""

from __future__ import annotations

import glob
import os
import string
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.core.location import Url, locate
from bioio_tk.engine import processes as engine
from bioio_tk.errors import (
    BackendError,
    BackendMissingError,
    BioIOError,
    FormatError,
    SpecError,
    TargetExistsError,
    UnsupportedError,
)
from bioio_tk.jobs.batch.job import BatchEntry, Job
from bioio_tk.target import SUFFIX, FolderTarget, Target, journal_path, partial_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator

    from bioio_tk.engine.copy import Progress
    from bioio_tk.jobs.report import ConvertReport

_SMALL = 64 << 20
"""Bytes of a file up to which one thread does it: its beginning and end are most of the work."""
_AT_ONCE = 2
"""Large files at a time: while one begins or ends the other keeps the threads busy."""
_MOST_JAVAS = 2
"""Worker processes with a Java each: one takes a second to start and much memory."""
_PER_FILE = 0.02
_PER_SECOND = 100e6
"""Seconds and bytes: a guess at what a job takes, to see whether processes are worth it."""
_WORTH = 2.0
"""Seconds of work from which on starting processes pays: each takes a third of one."""


# -- one job --------------------------------------------------------------------------------------


def run_job(job: Job, tell: Progress | None = None) -> BatchEntry:
    """Do one job and return what became of it; no error leaves it, but Ctrl-C does.

    Anything can call it that can send a job to another process: it needs nothing but the job.
    """
    began = time.perf_counter()
    try:
        entry = _planned(job) if job.options.get("dry_run") else _done(job, tell)
    except Exception as exc:  # whatever it is, the report says it and the others go on
        entry = failure(job, exc)
    return replace(entry, seconds=round(time.perf_counter() - began, 4))


def _done(job: Job, tell: Progress | None) -> BatchEntry:
    from bioio_tk.jobs.batch.split import split_into
    from bioio_tk.jobs.collection import convert_series
    from bioio_tk.jobs.convert import convert

    options = dict(job.options)
    _make_folder(job.target, options)
    if job.split:
        reports = split_into(job.source, job.template, job.split, progress=tell, **options)
    elif options.get("series") == "all":
        reports = convert_series(job.source, job.target, **options, progress=tell)
    else:
        reports = [convert(job.source, job.target, **options, progress=tell)]
    states = {report.status for report in reports}
    one = len(reports) == 1
    notes = dict.fromkeys(note for report in reports for note in report.notes)
    return BatchEntry(
        source=job.source,
        target=reports[0].target,
        status=states.pop() if len(states) == 1 else "done",
        bytes_in=reports[0].bytes_in,
        bytes_out=sum(report.bytes_out for report in reports),
        pixel_bytes=sum(report.pixel_bytes for report in reports if report.status != "skipped"),
        checksums=reports[0].checksums if one else _by_target(reports),
        notes=tuple(notes),
        targets=() if one else tuple(dict.fromkeys(report.target for report in reports)),
    )


def _planned(job: Job) -> BatchEntry:
    """Plan a job; a folder that is not there yet, which a batch makes, is no error."""
    parent = str(Path(job.template or job.target).parent)
    if isinstance(locate(job.target), Url) or Path(parent).exists():
        return _done(job, None)
    with tempfile.TemporaryDirectory() as folder:
        target, template = (text.replace(parent, folder, 1) for text in (job.target, job.template))
        entry = _done(replace(job, target=target, template=template), None)
        targets = tuple(text.replace(folder, parent, 1) for text in entry.targets)
        return replace(entry, target=job.target, targets=targets, checksums=None)


def _by_target(reports: list[ConvertReport]) -> dict[str, Any]:
    return {f"{r.target}/{r.group}" if r.group else r.target: r.checksums for r in reports}


def _make_folder(target: str, options: dict[str, Any]) -> None:
    if not options.get("dry_run") and not isinstance(locate(target), Url):
        parent = Path(target).parent
        if not parent.is_dir():
            parent.mkdir(parents=True, exist_ok=True)


def failure(job: Job, exc: BaseException) -> BatchEntry:
    """Return the entry of a job that failed."""
    text = " ".join(str(exc).split())
    if isinstance(exc, OSError) and exc.strerror and not isinstance(exc, BioIOError):
        text = f"{exc.strerror}: {exc.filename!r}" if exc.filename else exc.strerror
    if not isinstance(exc, (BioIOError, OSError, MemoryError)):
        text = f"{type(exc).__name__}: {text}"  # not one of ours: its text alone says little
    return BatchEntry(
        source=job.source,
        target=job.target,
        status="failed",
        error=text or type(exc).__name__,
        kind=type(exc).__name__,
        may_pass=_may_pass(exc),
    )


_STAYS = (
    *(BackendMissingError, UnsupportedError, FormatError, SpecError, TargetExistsError),
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, FileExistsError),
)


def _may_pass(exc: BaseException) -> bool:
    """Return whether another attempt may do better: not for a file that is damaged or not there."""
    return isinstance(exc, (OSError, BackendError, MemoryError)) and not isinstance(exc, _STAYS)


# -- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lane:
    """Jobs that are done in the same way.

    Attributes
    ----------
    jobs : tuple of Job
        Which.
    at_once : int
        How many at a time.
    threads : int
        Threads for each.
    apart : bool
        In processes of their own.
    """

    jobs: tuple[Job, ...]
    at_once: int
    threads: int
    apart: bool


def lanes(jobs: list[Job], workers: int, processes: int | None) -> list[Lane]:
    """Return how to do the jobs with no more than `workers` threads in all.

    Small files are done side by side with a thread each, large ones one or two at a time with
    many; what Bio-Formats reads in few processes, each of which starts a Java.
    """
    if processes is not None:
        at_once = max(1, min(processes or min(workers, _AT_ONCE), len(jobs)))
        return [_lane(jobs, at_once, workers, apart=processes > 0)]
    apart = engine.can_start() and _seconds(jobs) > _WORTH
    small = [job for job in jobs if job.size <= _SMALL and not job.java and not job.template]
    java = [job for job in jobs if job.java]
    chosen = {job.number for job in (*small, *java)}
    large = [job for job in jobs if job.number not in chosen]
    parts = ((java, _MOST_JAVAS), (large, _AT_ONCE), (small, workers))
    return [
        _lane(part, min(most, workers, len(part)), workers, apart=apart)
        for part, most in parts
        if part
    ]


def _lane(jobs: list[Job], at_once: int, workers: int, *, apart: bool) -> Lane:
    return Lane(tuple(jobs), at_once, max(1, workers // at_once), apart)


def _seconds(jobs: list[Job]) -> float:
    return sum(_PER_FILE + job.size / _PER_SECOND for job in jobs)


def do(
    lane: Lane,
    *,
    memory: int | None,
    retries: int,
    told: Callable[[Job, str, Any], object],
) -> Generator[tuple[Job, BatchEntry]]:
    """Do the jobs of a lane and yield what became of each, as they end.

    Parameters
    ----------
    lane : Lane
        The jobs.
    memory : int, optional
        Bytes for all that is in work at a time.
    retries : int
        Further attempts at what may pass; they come after everything else.
    told : callable
        Called with a job and ``"started"``, None or ``"moved"``, (done, total).
    """
    side: Any = engine.Processes if lane.apart else engine.Threads
    jobs = {job.number: _fitted(job, lane, memory) for job in lane.jobs}
    attempts = dict.fromkeys(jobs, 1)
    before = {number: set(_unfinished(job)) for number, job in jobs.items()}
    left = set(jobs)
    try:
        with side(run_job, lane.at_once) as workers:
            for number, job in jobs.items():
                workers.give(number, job)
            for event in workers.events():
                job = jobs[event.key]
                if event.kind in ("started", "moved"):
                    told(job, event.kind, event.value)
                    continue
                if event.kind == "died":
                    job = jobs[event.key] = _after_death(job, before[event.key])
                entry = _entry(job, event)
                if entry.may_pass and attempts[event.key] <= retries:
                    attempts[event.key] += 1
                    workers.give(event.key, job)
                    continue
                left.discard(event.key)
                yield job, replace(entry, attempts=attempts[event.key])
    except BaseException:
        for number in left:  # a worker that was interrupted at an odd moment has not tidied up
            _after_death(jobs[number], before[number])
        raise


def _fitted(job: Job, lane: Lane, memory: int | None) -> Job:
    """Return a job with its share of threads and memory."""
    options = {**job.options, "workers": lane.threads}
    if memory is not None and not {"memory", "target_chunk_mb"} & set(options):
        options["memory"] = max(1 << 20, memory // lane.at_once)
    return replace(job, options=options)


def _entry(job: Job, event: Any) -> BatchEntry:
    if event.kind == "done":
        entry: BatchEntry = event.value
        return entry
    if event.kind == "died":
        return failure(job, BackendError(event.value))
    return failure(job, RuntimeError(event.value))


def _unfinished(job: Job) -> list[Path]:
    """Return the places whose image is not complete, of those that a job writes."""
    if isinstance(locate(job.target), Url):
        return []
    if not job.split:
        path = Path(job.target)
        # a name that is too long is not there either, and fails as a job
        return [path] if os.path.lexists(partial_path(path)) else []
    parts = string.Formatter().parse(job.template.replace("_s{s}", "{s}"))
    pattern = "".join(glob.escape(text) + ("*" if field else "") for text, field, _, _ in parts)
    found = glob.glob(pattern + SUFFIX)  # noqa: PTH207 (it is a whole path)
    return [Path(name.removesuffix(SUFFIX)) for name in found]


def _after_death(job: Job, before: Collection[Path]) -> Job:
    """Remove what a worker that died has left, and return the job as it is to be tried again.

    What was there before is someone else's, and what has a journal can be gone on with.
    """
    for path in _unfinished(job):
        if path in before:
            continue
        if journal_path(path).exists():
            job = replace(job, options={**job.options, "resume": True})
            continue
        with suppress(OSError, BioIOError):  # the next attempt will say what is there
            _leftover(path).abort()
    return job


def _leftover(path: Path) -> Target:
    if not partial_path(path).is_dir():
        return Target(path, overwrite=False, leftover=True)
    sink: Any = registry.load_sink(registry.for_writing(path))
    return FolderTarget(path, overwrite=False, leftover=True, foreign=sink.foreign)


def on_cluster(
    client: Any, jobs: list[Job], retries: int, memory: int | None = None
) -> Generator[tuple[Job, BatchEntry]]:
    """Do jobs on the workers of a Dask cluster, each as one task with a thread; see `do`.

    A worker does as many tasks at a time as it has threads.
    """
    from bioio_tk.jobs.cluster import map_jobs

    jobs = [_fitted(job, Lane((), 1, 1, apart=True), memory) for job in jobs]
    todo = [(job, frozenset(_unfinished(job))) for job in jobs]
    attempt = 1
    while todo:
        again = []
        for task, entry, error in map_jobs(client, run_elsewhere, todo):
            ended: BatchEntry = failure(task[0], error) if error is not None else entry
            if ended.may_pass and attempt <= retries:
                again.append(task)
            else:
                yield task[0], replace(ended, attempts=attempt)
        todo, attempt = again, attempt + 1


def run_elsewhere(task: tuple[Job, frozenset[Path]]) -> BatchEntry:
    """Do a job that a worker which died may have begun; see `run_job`.

    With the job come the places where something unfinished was before the batch began.
    """
    job, before = task
    return run_job(_after_death(job, before))
