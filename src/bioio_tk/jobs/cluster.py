"""Cluster: one conversion, or a batch of them, on the workers of a Dask scheduler.

The client lays the image out and hands out regions; each worker opens the source itself, and
writes whole files of an OME-Zarr, or sends back compressed tiles of an OME-TIFF. A region that is
done twice, because a worker died or was thought to, is done the same way both times.
"""

from __future__ import annotations

import math
import pickle
import secrets
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from bioio_tk import __version__
from bioio_tk.backends import registry
from bioio_tk.core.location import Url, locate
from bioio_tk.core.region import Region
from bioio_tk.errors import (
    BackendError,
    BackendMissingError,
    BioIOError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
    UnsupportedError,
)
from bioio_tk.jobs import _cluster_tasks as tasks
from bioio_tk.jobs.finish import complete
from bioio_tk.jobs.shared_store import (
    LARGEST,
    SharedImage,
    local_zarr,
    regions,
    source_record,
)
from bioio_tk.target import FolderTarget
from bioio_tk.writer import BioWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from bioio_tk.core.checksum import PlaneSums
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.engine.copy import Progress
    from bioio_tk.lazy import LazyArray

T = TypeVar("T")

_SHARES = 8
"""Regions for each thread of the cluster, as far as their size allows."""
_LEAST = 4 << 20
"""Bytes of pixels below which a region is not worth a task."""
_SMALL = 16 << 20
"""Bytes of a level from which all smaller ones are made by one task."""
_SENT = 32 << 20
"""Bytes of pixels of a region whose tiles are sent back."""
_AHEAD = 2
"""Tasks handed out at a time, for each thread of the cluster."""
_CARRIED = 1 << 20
"""Bytes of a pickled source that go along with each task; more is put on the workers once."""
_LARGEST_SOURCE = 512 << 20
_NO_WORKER = 120.0
"""Seconds to wait for a worker, at the beginning and when all are gone."""
_POLL = 5.0
_LET_GO = 20.0
"""Seconds to wait for workers that have not noticed yet that a job is given up, or done."""


def on_cluster(
    lazy: LazyArray,
    target: Any,
    writer_options: dict[str, Any],
    *,
    client: Any,
    progress: Progress | None = None,
    memory: int | None = None,
    sums: PlaneSums | None = None,
    before: Callable[[Path], object] | None = None,
) -> ImageSpec:
    """Convert an image on the workers of a Dask cluster.

    Every worker has to see source and target under the same paths, and to have the same version
    of this package. A task that fails ends the job, and nothing is left; a worker that dies does
    not.

    Parameters
    ----------
    lazy : LazyArray
        What is converted.
    target : str or Path
        The OME-Zarr (a folder) or OME-TIFF to make.
    writer_options : dict
        Keywords for `BioWriter`.
    client : distributed.Client or str
        The cluster, or the address of its scheduler: ``"tcp://10.0.0.1:8786"``.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes, from this thread.
    memory : int, optional
        Bytes of pixels in flight in each task.
    sums : PlaneSums, optional
        Takes the checksums of the pixels as they are written.
    before : callable, optional
        For OME-Zarr: called with the folder of the image when it is complete, before it moves to
        its place.

    Returns
    -------
    ImageSpec
        The new image.

    Raises
    ------
    BackendMissingError
        The package 'distributed' is not installed.
    BackendError
        There is no scheduler or no worker, a worker does not see the files, or a task has ended
        several workers.
    UnsupportedError
        The target is neither an OME-Zarr in a folder nor an OME-TIFF, or the pixels are in the
        memory of this process only, and too many to be sent.
    """
    place = locate(target)
    tiff = not isinstance(place, Url) and _is_encoded_apart(place, writer_options)
    path: Any = place.absolute() if tiff else local_zarr(place, "client= (--cluster)")  # type: ignore[union-attr]
    with _connected(client) as dask, _carried(dask, lazy) as (key, payload):
        task = tasks.Task(
            version=__version__,
            key=key,
            target=str(path),
            source=source_record(lazy),
            cast=writer_options.get("cast"),
            memory=memory,
            sums=sums is not None,
        )
        job = _Job(dask, lazy, task, payload, sums, progress)
        if tiff:
            return _to_tiff(job, path, writer_options)
        return _to_zarr(job, path, writer_options, before)


def map_jobs(
    client: Any, func: Callable[[T], Any], jobs: Iterable[T]
) -> Generator[tuple[T, Any, Exception | None], None, None]:
    """Do jobs on a cluster, each as one task, and yield what became of each, as they end.

    A job on a worker that dies is done again on another one, so it has to leave nothing behind
    that would be in its own way.

    Parameters
    ----------
    client : distributed.Client or str
        The cluster, or the address of its scheduler.
    func : callable
        What does a job: a function that the workers can import.
    jobs : iterable
        What can be pickled.

    Yields
    ------
    job, result, error
        The error is None, or what `func` has raised; then there is no result.
    """
    with _connected(client) as dask:
        calls = _flight(dask, lambda job: (func, job), jobs)
        with closing(calls):
            for job, future in calls:
                result, error = None, None
                try:
                    result = _result(future)
                except Exception as exc:  # the caller is told of every one
                    error = exc
                yield job, result, error


# -- OME-Zarr -------------------------------------------------------------------------------------


def _to_zarr(
    job: _Job,
    path: Path,
    options: dict[str, Any],
    before: Callable[[Path], object] | None,
) -> ImageSpec:
    writer = BioWriter(path, mode="create", **options)
    try:
        writer.close()
    except BaseException:
        writer.abort()
        writer.discard()
        raise
    try:
        with SharedImage(path, smaller=True) as image:
            spec = image.spec
            plan = _smaller_levels(image)
            job.begin(job.nbytes + sum(nbytes for nbytes, _ in plan))
            found = job.regions(image.sink.unit(), LARGEST)
            with closing(job.on_source(tasks.fill, found)) as filled:
                for region, part in filled:
                    job.end(region, part)
            for nbytes, steps in plan:
                with closing(job.without_source(tasks.shrink, steps)) as shrunk:
                    for _ in shrunk:
                        job.count(nbytes // len(steps))
            job.all_done()
    except BaseException as exc:
        _give_up(path, exc)
        raise
    _complete(path, overwrite=bool(options.get("overwrite")), before=before)
    return spec


def _smaller_levels(image: SharedImage) -> list[tuple[int, list[list[tuple[int, Region]]]]]:
    """Return for each step down the bytes to read, and what its tasks make: (level, region)."""
    levels, itemsize = image.spec.levels, image.spec.dtype.itemsize
    found: list[tuple[int, list[list[tuple[int, Region]]]]] = []
    for number in range(1, len(levels)):
        nbytes = math.prod(levels[number - 1].shape) * itemsize
        if nbytes <= _SMALL:
            rest = [(n, Region.whole(levels[n].shape)) for n in range(number, len(levels))]
            return [*found, (nbytes, [rest])]
        shape = levels[number].shape
        most = LARGEST // (nbytes // (math.prod(shape) * itemsize)) // itemsize
        parts = regions(shape, levels[number].tile, image.sink.unit(number), most)
        found.append((nbytes, [[(number, region)] for region in parts]))
    return found


def _complete(path: Path, *, overwrite: bool, before: Callable[[Path], object] | None) -> None:
    """Move an image into place whose levels are all there."""
    try:
        for _ in _patience():  # a worker that lost its scheduler may not have let go yet
            with suppress(TargetBusyError):
                complete(path, overwrite=overwrite, shrunk=True, before=before)
                return
        complete(path, overwrite=overwrite, shrunk=True, before=before)
    except (TargetExistsError, TargetBusyError) as exc:
        exc.add_note(
            f"all pixels are written: bioio_tk.finish({str(path)!r}) completes the image later"
        )
        raise
    except BaseException as exc:
        _give_up(path, exc)
        raise


def _give_up(path: Path, exc: BaseException) -> None:
    """Remove an unfinished image, once no worker writes to it any more."""
    row = registry.for_writing(path)
    sink: Any = registry.load_sink(row)
    try:
        shared = FolderTarget(
            path, overwrite=True, leftover=True, foreign=sink.foreign, shared=True
        )
        with suppress(FileNotFoundError):
            shared.unmark_shared()  # tasks look at the mark before they store a tile
        shared.leave()
        for _ in _patience():
            with suppress(TargetBusyError):
                whole = FolderTarget(path, overwrite=True, leftover=True, foreign=sink.foreign)
                whole.abort()
                return
        shared.discard()
    except (BioIOError, OSError) as more:
        exc.add_note(f"what was written so far could not be removed: {more}")


def _patience() -> Iterator[None]:
    """Yield again and again while it is worth waiting."""
    end = time.monotonic() + _LET_GO
    while time.monotonic() < end:
        yield
        time.sleep(0.1)


# -- OME-TIFF -------------------------------------------------------------------------------------


def _is_encoded_apart(place: Any, options: dict[str, Any]) -> bool:
    """Return whether tiles of the format can be encoded without the file they go to."""
    sink = registry.load_sink(registry.for_writing(place, options.get("backend")))
    return hasattr(sink, "encoder")


def _to_tiff(job: _Job, path: Path, options: dict[str, Any]) -> ImageSpec:
    writer = BioWriter(path, **options)
    try:
        writer.start()
        spec, stored = writer._spec(), writer._tiles  # noqa: SLF001 (tiles have no public door)
        how = replace(writer._store_options(), metadata=None)  # noqa: SLF001
        job.task = replace(job.task, images=(spec,), options=how)
        job.begin(job.nbytes)
        found = job.regions(spec.levels[0].tile, _SENT)
        with closing(job.on_source(tasks.encode, found)) as encoded:
            for region, (whole, waiting, part) in encoded:
                for at, data in whole:
                    stored.store_encoded(at, data)
                for level, spans, pixels in waiting:
                    stored.write_at(level, spans, pixels)
                job.end(region, part)
        job.all_done()
    except BaseException:
        writer.abort()
        writer.discard()
        raise
    try:
        writer.close()
    except TargetExistsError:
        raise  # the new image is complete, and the message says where it is
    except BaseException:
        writer.abort()
        writer.discard()
        raise
    return spec


# -- tasks ----------------------------------------------------------------------------------------


class _Job:
    """One conversion: hands tasks out and counts what is done."""

    def __init__(
        self,
        dask: Any,
        lazy: LazyArray,
        task: tasks.Task,
        payload: Any,
        sums: PlaneSums | None,
        progress: Progress | None,
    ) -> None:
        self.task = task
        self._dask = dask
        self._payload = payload
        self._view = lazy.view()
        self._itemsize = lazy.dtype.itemsize
        self._sums = sums
        self._progress = progress
        self._work = self._done = 0
        self.nbytes = self._view.nbytes

    def regions(self, unit: Shape5, most: int) -> Iterator[Region]:
        """Return regions of the source in whole units, enough to keep the cluster busy."""
        share = self.nbytes // (_SHARES * max(1, _threads(self._dask)))
        size = max(min(share, most), min(_LEAST, most)) // self._itemsize
        return regions(self._view.shape, self._view.stored(), unit, size)

    def on_source(
        self, func: Any, parts: Iterable[Region]
    ) -> Generator[tuple[Region, Any], None, None]:
        """Do a task for each region, and yield what it returns."""
        calls = _flight(self._dask, lambda part: (func, self.task, self._payload, part), parts)
        with closing(calls):
            for part, future in calls:
                yield part, _result(future)

    def without_source(self, func: Any, items: Iterable[T]) -> Generator[T, None, None]:
        """Do a task for each item that needs nothing but what is stored."""
        calls = _flight(self._dask, lambda item: (func, self.task, item), items)
        with closing(calls):
            for item, future in calls:
                _result(future)
                yield item

    def begin(self, work: int) -> None:
        """Say how many bytes there are to read, those of the smaller levels included."""
        self._work = max(1, work)

    def end(self, region: Region, part: Any) -> None:
        """Take what has become of a region of the source."""
        if self._sums is not None:
            self._sums.merge(part)
        self.count(math.prod(region.shape) * self._itemsize)

    def count(self, nbytes: int) -> None:
        """Tell how much is done, as a part of the bytes of the source."""
        self._done += nbytes
        self._tell(min(self.nbytes * self._done // self._work, self.nbytes - 1))

    def all_done(self) -> None:
        """Tell that all is read; what is left to do takes no time."""
        self._tell(self.nbytes)

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self.nbytes)


def _flight(
    dask: Any, call: Callable[[T], tuple[Any, ...]], items: Iterable[T]
) -> Generator[tuple[T, Any], None, None]:
    """Yield items and their futures as these end, few of them on the way at any time."""
    import distributed

    wait: Any = distributed.wait  # without types
    flight: dict[Any, T] = {}
    source = iter(items)
    seen = time.monotonic()
    try:
        while True:
            threads = _threads(dask)
            for item in islice(source, max(0, _AHEAD * max(1, threads) - len(flight))):
                flight[dask.submit(*call(item), pure=False)] = item
            if not flight:
                return
            seen = time.monotonic() if threads else seen
            _check_waited(seen)
            try:
                with dask.as_current():
                    ended = wait(list(flight), timeout=_POLL, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            except distributed.CancelledError as exc:
                raise BackendError(_dropped(exc)) from exc
            for future in ended:
                yield flight.pop(future), future
    finally:
        if flight and dask.status == "running":
            with suppress(OSError, TimeoutError):  # the scheduler is gone, and they with it
                dask.cancel(list(flight))


def _threads(dask: Any) -> int:
    """Return how many threads the cluster has at the moment."""
    try:
        return sum(dask.nthreads().values())
    except (OSError, TimeoutError) as exc:
        raise BackendError(f"the scheduler of the cluster no longer answers: {exc}") from exc


def _check_waited(since: float) -> None:
    if time.monotonic() - since > _NO_WORKER:
        raise BackendError(
            f"the cluster has had no worker for {_NO_WORKER:.0f} s: start some with "
            "'dask worker SCHEDULER-ADDRESS'"
        )


def _dropped(exc: BaseException) -> str:
    return f"the cluster has dropped a task, or was shut down: {' '.join(str(exc).split())}"


def _result(future: Any) -> Any:
    """Return what a task has returned; what it raised is raised here."""
    from distributed import CancelledError, KilledWorker

    try:
        return future.result()
    except KilledWorker as exc:
        raise BackendError(
            f"a task has ended several workers, one after the other: {exc}. Most often a worker "
            "has too little memory: give each more, or fewer threads, or set memory="
        ) from exc
    except CancelledError as exc:
        raise BackendError(_dropped(exc)) from exc
    except ModuleNotFoundError as exc:
        raise BackendError(
            f"a worker cannot do its task: {exc}. Every worker needs the same version of bioio-tk "
            f"as this process ({__version__}), with the same extras"
        ) from exc


@contextmanager
def _connected(client: Any) -> Iterator[Any]:
    """Give the client of a cluster; one made from an address is closed at the end."""
    try:
        import distributed
    except ImportError as exc:
        raise BackendMissingError(
            "a cluster needs the package 'distributed': pip install 'bioio-tk[dask]'"
        ) from exc
    make: Any = distributed.Client  # without types
    if isinstance(client, make):
        if client.asynchronous:
            raise SpecError("client= is asynchronous: give one made with asynchronous=False")
        yield client
        return
    if not isinstance(client, str):
        raise SpecError(
            f"client={client!r:.80}: give a distributed.Client, or the address of a scheduler as "
            "'tcp://10.0.0.1:8786'"
        )
    try:
        made = make(client, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as exc:
        raise BackendError(
            f"no Dask scheduler answers at {client!r}: {exc}. 'dask scheduler' prints its address"
        ) from exc
    with made:
        yield made


@contextmanager
def _carried(dask: Any, lazy: LazyArray) -> Iterator[tuple[str, Any]]:
    """Give a name for the source and what each task gets of it; workers forget it afterwards."""
    try:
        payload: Any = pickle.dumps(lazy)
    except Exception as exc:  # whatever the objects in it raise
        raise UnsupportedError(
            f"the source cannot be sent to the workers of a cluster ({exc}): write it to a file "
            "first, and convert that"
        ) from exc
    if len(payload) > _LARGEST_SOURCE:
        raise UnsupportedError(
            f"the source is {len(payload) >> 20} MB of pixels in the memory of this process, which "
            "the workers of a cluster cannot see: write it to a file first, and convert that"
        )
    key = secrets.token_hex(8)
    if len(payload) > _CARRIED:
        payload = dask.scatter(payload, broadcast=True, hash=False)
    try:
        yield key, payload
    finally:
        with suppress(OSError, TimeoutError, RuntimeError):  # no worker is left to forget it
            dask.run(tasks.forget, key, on_error="ignore")
