"""Batch: many conversions as one job, which goes on where one of them fails."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bioio_tk.core.location import Url, locate
from bioio_tk.engine import processes as engine
from bioio_tk.engine.pool import check_workers
from bioio_tk.errors import SpecError
from bioio_tk.jobs.batch import run as batch_run
from bioio_tk.jobs.batch.job import SPLIT_FIELDS, BatchEntry, Job
from bioio_tk.jobs.batch.plan import Layout, axes_of, depth_of, plan
from bioio_tk.jobs.batch.split import split_into
from bioio_tk.jobs.batch.table import SUFFIXES
from bioio_tk.jobs.convert import convert, options_of
from bioio_tk.jobs.options import check_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from types import TracebackType
    from typing import Self

    from bioio_tk.engine.copy import Progress
    from bioio_tk.jobs.report import ConvertReport

REPORT = "report.jsonl"
_OURS = {
    *("src", "dst", "ext", "stack", "output_name", "output_suffix", "shape", "workers"),
    *("max_workers", "client", "shard_job", "finalize", "roi", "roi_mode", "progress"),
    *("progress_callback", "show_progress", "dry_run"),
}
"""Keywords of `convert` that a batch says itself, or that make no sense for many files."""
_OF_SPLIT = ("workers", "max_workers", "dry_run")
"""Of these, what is for a single image, too."""


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is.

    Attributes
    ----------
    files, files_done, files_failed : int
        How many there are, how many have ended, how many of these failed.
    bytes_done, bytes_total : int
        Bytes of the sources.
    running : tuple of (str, float)
        What is in work: the source, and the share of it that is done.
    ended : BatchEntry or None
        The job that has just ended, where it is that which is told.
    """

    files: int
    files_done: int
    files_failed: int
    bytes_done: int
    bytes_total: int
    running: tuple[tuple[str, float], ...]
    ended: BatchEntry | None = None


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What became of a batch.

    Attributes
    ----------
    entries : tuple of BatchEntry
        One for each job, in the order of the sources.
    seconds : float
        Time it took.
    """

    entries: tuple[BatchEntry, ...] = ()
    seconds: float = 0.0
    _counts: Counter[str] = field(init=False, repr=False, default_factory=Counter)

    def __post_init__(self) -> None:
        self._counts.update(entry.status for entry in self.entries)

    @property
    def done(self) -> int:
        """How many images were converted."""
        return self._counts["done"]

    @property
    def failed(self) -> int:
        """How many could not be."""
        return self._counts["failed"]

    @property
    def skipped(self) -> int:
        """How many were there already."""
        return self._counts["skipped"]

    @property
    def planned(self) -> int:
        """How many would be converted, of a dry run."""
        return self._counts["planned"]

    @property
    def ok(self) -> bool:
        """Whether none failed."""
        return not self.failed

    @property
    def bytes_in(self) -> int:
        """Bytes of the sources that were converted."""
        return sum(entry.bytes_in for entry in self.entries if entry.status == "done")

    @property
    def bytes_out(self) -> int:
        """Bytes of the files that were made."""
        return sum(entry.bytes_out for entry in self.entries if entry.status == "done")

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the pixels that were converted, uncompressed."""
        return sum(entry.pixel_bytes for entry in self.entries if entry.status == "done")

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        names = ("done", "failed", "skipped", "planned", "seconds")
        sizes = ("bytes_in", "bytes_out", "pixel_bytes")
        found = {name: getattr(self, name) for name in (*names, *sizes)}
        return json.dumps({**found, "entries": list(map(as_dict, self.entries))})


def as_dict(entry: BatchEntry) -> dict[str, Any]:
    """Return an entry as the report has it."""
    found = asdict(entry)
    found.pop("may_pass")
    return found


def batch(  # noqa: PLR0913 (a face: every option by its name)
    src: Any,
    dst: str | os.PathLike[str] | None = None,
    *,
    pattern: str | None = None,
    recursive: bool = False,
    depth: int | None = None,
    ext: str | None = None,
    name: str | None = None,
    stack: str | Iterable[str] | None = None,
    split: str | Iterable[str] | None = None,
    retries: int = 0,
    workers: int | None = None,
    processes: int | None = None,
    memory: int | None = None,
    report: str | os.PathLike[str] | None = REPORT,
    dry_run: bool = False,
    client: Any = None,
    progress: Callable[[BatchProgress], object] | None = None,
    **options: Any,
) -> BatchReport:
    """Convert many images; where one cannot be converted, the others still are.

    Everything that can be checked is checked before the first image is opened. Then the images
    are converted side by side, small ones in processes of their own with a thread each, large ones
    with all threads. Each appears when it is complete, and gets its line in the report at once.
    Ctrl-C ends all of it, and leaves nothing unfinished; ``exists="skip"`` goes on later.

    Parameters
    ----------
    src : str, Path or list of them
        * A folder: every image in it, found by what is in the files. Of files that belong together
          as a vendor's set it is the set, once.
        * A glob: ``"plates/*/*.czi"``.
        * A list of any of these, of files and of URLs.
        * A table of jobs, CSV or TSV, with columns ``src``, ``dst`` and any keyword of `convert`;
          relative paths in it are relative to it, and an empty cell is an option not given.
        * A file pattern: ``"scans/img_r{r:d+}_t{t:ddd}_c{c:d}.tif"``.
    dst : str or Path
        The folder of the new images, made where it is not there. A table may do without.
    pattern : str, optional
        File pattern for the names in the folder `src`: what fits is converted.
    recursive : bool
        Look into the folders in `src`, too, and lay the results out like them.
    depth : int, optional
        How many floors of folders to look in: 1 is `src` itself.
    ext : str, optional
        Ending of the new files, ``".ome.zarr"`` by default, and ``".ome.tif"`` with `split`.
    name : str, optional
        Their names without the ending, ``"{name}"`` by default. Fields are ``{name}``, ``{suffix}``
        and ``{folder}`` of the source, ``{number}`` of the job, those of the pattern, and
        ``{t} {c} {z} {s}`` of `split`; with formats as in Python: ``"{folder}_{number:04d}"``.
    stack : str, optional
        ``"c,z,t"``: files of the pattern that differ only in these fields become one image.
    split : str, optional
        ``"t,c,z,series"``: each of these gets a file of its own, by default
        ``{name}_c{c}_t{t}_z{z}_s{s}``, counted from 0.
    retries : int
        Further attempts at what may pass, such as an error of the network or a worker process
        that died; never at a damaged file.
    workers : int, optional
        Threads in all, by default one per CPU this process may use.
    processes : int, optional
        Convert that many images at a time, each in a process of its own; 0 is in this process. By
        default it depends on how many there are and how large.
    memory : int, optional
        Bytes for all images in work together; with `client` for each.
    report : str or Path, optional
        Where each job gets a line of JSON when it has ended; lines are added to what is there. A
        bare name lies in `dst`. None writes none, a dry run neither.
    dry_run : bool
        Open every image and say what would be done, but write nothing.
    client : distributed.Client or str, optional
        A Dask cluster; each image is converted by a thread of one of its workers.
    progress : callable, optional
        Called with a `BatchProgress`, from the thread of the caller. What it raises ends the batch.
    **options
        As for `convert`.

    Returns
    -------
    BatchReport
        What became of each. That some failed is no exception: see ``.ok``.

    Raises
    ------
    SpecError
        Nothing to do, an option or a table that makes no sense, or two images that would be
        written to the same place; nothing was converted.
    BackendError
        No worker process can be started here.

    Examples
    --------
    >>> from bioio_tk import batch
    >>> report = batch("scans", "converted", recursive=True, exists="skip")  # doctest: +SKIP
    >>> [entry.error for entry in report.entries if entry.status == "failed"]  # doctest: +SKIP
    """
    threads = check_workers(workers)
    check_memory(memory)
    _check_count("retries", retries, 0)
    if processes is not None:
        _check_count("processes", processes, 0)
    layout = _layout(dst, pattern, depth_of(recursive, depth), ext, name, stack, split)
    jobs = plan(src, layout, _known(options), convert_options())
    if dry_run:
        jobs = [_dry(job) for job in jobs]
    _check_options(jobs)
    board = _Board(jobs, progress)
    began = time.perf_counter()
    with _Lines(None if dry_run else _report_path(report, src, dst)) as lines:
        if client is not None:
            ended = batch_run.on_cluster(client, jobs, retries, memory)
            _collect(ended, lines, board)
        else:
            if processes is None and not _can_be_sent(jobs):
                processes = 0
            for lane in batch_run.lanes(jobs, threads, processes):
                ended = batch_run.do(lane, memory=memory, retries=retries, told=board.moved)
                _collect(ended, lines, board)
    entries = tuple(board.entries[job.number] for job in jobs)
    return BatchReport(entries, round(time.perf_counter() - began, 3))


def split(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    split: str | Iterable[str] = "t,c,z,series",
    ext: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[ConvertReport]:
    """Convert one image to several files: one for each plane, channel, time point or series.

    Parameters
    ----------
    src : str or Path
        The image.
    dst : str or Path
        The folder of the files.
    split, ext, name
        As for `batch`.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes, all files together.
    **options
        As for `convert`.

    Returns
    -------
    list of ConvertReport
        One for each file.
    """
    layout = _layout(dst, None, 1, ext, name, None, split)
    if not layout.split:
        raise SpecError("split= is empty: name what to split by, for example 'c,t'")
    here = {key: options.pop(key) for key in _OF_SPLIT if key in options}
    (job,) = plan([src], layout, _known(options, "split"), convert_options())
    job.options.update(here)
    return split_into(job.source, job.template, job.split, progress=progress, **job.options)


def convert_options() -> dict[str, inspect.Parameter]:
    """Return the keywords of `convert` that a batch, or a row of a table, takes."""
    found = inspect.signature(convert).parameters
    return {name: option for name, option in found.items() if name not in _OURS}


def _layout(
    dst: Any, pattern: str | None, depth: float, ext: str | None, name: Any, stack: Any, split: Any
) -> Layout:
    axes = axes_of("split", split, SPLIT_FIELDS)
    ending = ext or (".ome.tif" if axes else ".ome.zarr")
    return Layout(
        dst=None if dst is None else locate(dst),
        pattern=pattern,
        depth=depth,
        ext="." + ending.lstrip("."),
        name=name,
        stack=axes_of("stack", stack, "tcz"),
        split=axes,
    )


def _check_count(name: str, value: Any, least: int) -> None:
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or value < least:
        raise SpecError(f"{name}={value!r}: give a whole number from {least}")


def _known(options: dict[str, Any], face: str = "batch") -> dict[str, Any]:
    """Return the options; TypeError for one that there is not."""
    known = convert_options()
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{face}() has no keyword {name!r}{hint}")
    return options


def _dry(job: Job) -> Job:
    return replace(job, options={**job.options, "dry_run": True})


def _check_options(jobs: list[Job]) -> None:
    """Raise for options that make no sense with any image."""
    seen: list[dict[str, Any]] = []
    for job in jobs:
        if job.options not in seen[-1:]:
            options_of(**{**job.options, "series": None})
            seen.append(job.options)


def _can_be_sent(jobs: list[Job]) -> bool:
    try:
        engine.check_sendable([job.options for job in jobs])
    except SpecError:
        return False
    return True


def _report_path(report: Any, src: Any, dst: Any) -> Path | None:
    if report is None:
        return None
    path = Path(report).expanduser()
    if path.name != str(report):
        return path
    if dst is not None and not isinstance(place := locate(dst), Url):
        return place / path
    table = isinstance(src, (str, os.PathLike)) and str(src).lower().endswith(SUFFIXES)
    return Path(src).parent / path if table else path


def _collect(ended: Generator[tuple[Job, BatchEntry]], lines: _Lines, board: _Board) -> None:
    with closing(ended):
        for job, entry in ended:
            lines.add(entry)
            board.ended(job, entry)


class _Lines:
    """The report as it grows: a line for each job, whole and on its way to disk at once."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def add(self, entry: BatchEntry) -> None:
        if self._file is None:
            return
        when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        found = {"when": when, **as_dict(entry)}
        try:
            line = json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # a name that is no text: escaped, or nobody could read the file
            line = json.dumps(found).encode()
        # one call for the whole line: who reads it meanwhile finds no half of one
        self._file.write(line + b"\n")

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab+", buffering=0)
        if self._file.tell():  # a line that a crash has cut stays alone
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


class _Board:
    """What is in work and what has ended, told to the caller."""

    def __init__(self, jobs: list[Job], progress: Callable[[BatchProgress], object] | None) -> None:
        self.entries: dict[int, BatchEntry] = {}
        self._progress = progress
        self._weights = {job.number: max(1, job.size) for job in jobs}
        self._total = sum(self._weights.values())
        self._bytes = 0
        self._failed = 0
        self._running: dict[int, tuple[str, float]] = {}

    def moved(self, job: Job, kind: str, value: Any) -> None:
        """Note that a job has begun, or how far it is."""
        share = value[0] / max(1, value[1]) if kind == "moved" else 0.0
        self._running[job.number] = (job.source, share)
        self._tell(None)

    def ended(self, job: Job, entry: BatchEntry) -> None:
        """Note that a job has ended."""
        self.entries[job.number] = entry
        self._running.pop(job.number, None)
        self._bytes += self._weights[job.number]
        self._failed += entry.status == "failed"
        self._tell(entry)

    def _tell(self, ended: BatchEntry | None) -> None:
        if self._progress is None:
            return
        parts = sum(share * self._weights[n] for n, (_, share) in self._running.items())
        state = BatchProgress(
            files=len(self._weights),
            files_done=len(self.entries),
            files_failed=self._failed,
            bytes_done=int(self._bytes + parts),
            bytes_total=self._total,
            running=tuple(self._running.values()),
            ended=ended,
        )
        self._progress(state)
