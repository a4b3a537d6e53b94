"""What the contestants of the streaming suite do: a camera's frames, streamed, timed, compared.

bioio_tk and ome-writers have one API: who streams is a matter of which package is imported. A
camera gives the same few frames over and over, as making new ones would cost more than writing
them; nobody changes a frame after it was handed over (ome-writers keeps references to frames that
wait, bioio_tk copies them).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import shutil
import time
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench import images
from bench.measure import MIB, Case, Session, Work, Written, open_tensorstore, warm_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

MEMORY = Path("/dev/shm")  # a file system without a disk
RING = 16
FULL = 8192  # of the option --size: smaller ones are for trying whether everything runs
BYTES = 2  # of a pixel
ZARR, TIFF = ".ome.zarr", ".ome.tiff"
PLANES = 2  # of each well
TENTHS = 10
PLATE_SIDE = 64


@dataclass(frozen=True, slots=True)
class Job:
    """What is streamed, where to, and how it is stored.

    Attributes
    ----------
    side, frames
        Of a frame in pixels, and how many there are.
    chunk, shard, shard_t
        Side of a chunk in pixels (0: the frame's), chunks of a shard along y and x, and along t.
    compression, level
        Name of the codec; ours takes a level, too.
    unbounded, metadata
        The number of frames is not told beforehand; every frame comes with metadata.
    disk, sync
        Write to the run's folder rather than to memory; the time includes getting it down.
    fps
        Frames a second of a camera that does not wait; 0: as fast as they are taken.
    """

    ending: str
    side: int = 2048
    frames: int = 60
    chunk: int = 0
    shard: int = 0
    shard_t: int = 0
    compression: str | None = None
    level: int | None = None
    unbounded: bool = False
    metadata: bool = False
    disk: bool = False
    sync: bool = False
    fps: float = 0

    def count(self, case: Case) -> int:
        """Frames in a run of this size."""
        return self.frames if case.size >= FULL else max(10, self.frames // 10)

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame."""
        return self.side**2 * BYTES


@dataclass(frozen=True, slots=True)
class Peer:
    """Who streams: a package, and which of its engines by name (None: its own choice)."""

    package: str
    engine: str | None = None


OURS = Peer("bioio_tk")
ENGINES = {  # of ome-writers
    ZARR: ("tensorstore", "acquire-zarr", "zarrs-python", "zarr-python"),
    TIFF: ("tifffile",),
}


def peers(ending: str, *names: str) -> dict[str, Peer]:
    """ome-writers with its engines for a format, all or the named ones, by their labels."""
    return {name: Peer("ome_writers", name) for name in names or ENGINES[ending]}


# -------------------------------------------------------------------------------------- frames


def ring_name(side: int) -> str:
    """Name of the file with a camera's frames."""
    return f"ring{side}.npy"


def _make_ring(side: int) -> Any:
    def make(path: Path, case: Case) -> None:
        np.save(path, images.camera((RING * side, side), seed=side).reshape(RING, side, side))

    return make


images.MAKERS.update({ring_name(side): _make_ring(side) for side in (64, 512, 1024, 2048)})


@cache
def _frames(file: Path) -> list[NDArray[np.uint16]]:
    return list(np.load(file))


def frames(case: Case, side: int) -> list[NDArray[np.uint16]]:
    """A camera's frames, in memory."""
    return _frames(case.file(ring_name(side)))


def said(number: int) -> dict[str, Any]:
    """What a microscope says of a frame."""
    return {
        "delta_t": number * 0.01,
        "exposure_time": 0.01,
        "position_x": 1.5 * number,
        "position_y": -2.25,
        "position_z": 10.0,
        "camera": "simulated",
        "temperature": -20.125,
    }


# -------------------------------------------------------------------------------------- places


def output(job: Job, case: Case) -> Path:
    """Where this process may write to; what a killed one left in memory goes first."""
    if job.disk:
        return case.output(job.ending)
    if not MEMORY.is_dir():
        raise OSError(f"there is no {MEMORY}")
    for left in MEMORY.glob("bioio-bench-*"):
        pid = left.name.split("-")[2].partition(".")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            forget(left)
    return MEMORY / f"bioio-bench-{os.getpid()}{job.ending}"


def forget(path: Path) -> None:
    """Remove an output, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def need(folder: Path, size: int) -> None:
    """Raise unless there is room for so many bytes and a fifth more."""
    free = shutil.disk_usage(folder).free
    if free < 1.2 * size:
        raise OSError(f"{folder} has {free / MIB:,.0f} MB free, the run needs {size / MIB:,.0f}")


def settle(path: Path) -> None:
    """Wait until all that was written to the file system of a path is on the disk."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        os.sync()
        return
    file = os.open(path, os.O_RDONLY)
    try:
        if libc.syncfs(file):
            raise OSError(ctypes.get_errno(), "syncfs failed", str(path))
    finally:
        os.close(file)


def bytes_written() -> int:
    """Bytes this process has handed to the system so far (memory maps do not count)."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar"):
            return int(line.split()[1])
    raise OSError("/proc/self/io does not tell")


# ------------------------------------------------------------------------------------ settings


def settings(peer: Peer, job: Job, case: Case, path: Path, **options: Any) -> Any:
    """AcquisitionSettings of one image; the options are those that only ours has."""
    package = import_module(peer.package)
    chunk = {"chunk_size": job.chunk or None, "shard_size_chunks": job.shard or None}
    along_t = {"shard_size_chunks": job.shard_t, "chunk_size": 1} if job.shard_t else {}
    dimensions = [
        package.Dimension(
            name="t", count=None if job.unbounded else job.count(case), type="time", **along_t
        ),
        *(
            package.Dimension(
                name=name, count=job.side, type="space", unit="micrometer", scale=0.325, **chunk
            )
            for name in "yx"
        ),
    ]
    if peer == OURS:
        options |= {"max_workers": case.workers, "compression_level": job.level}
    return package.AcquisitionSettings(
        root_path=str(path),
        dimensions=dimensions,
        dtype="uint16",
        format=_format(peer, job),
        compression=job.compression,
        overwrite=True,
        **options,
    )


def _format(peer: Peer, job: Job) -> Any:
    name = "ome-zarr" if job.ending == ZARR else "ome-tiff"
    return {"name": name, "backend": peer.engine} if peer.engine else name


def wells(case: Case) -> int:
    """Wells of the plate."""
    return 384 if case.size >= FULL else 24


def plate_settings(peer: Peer, job: Job, case: Case, path: Path) -> Any:
    """AcquisitionSettings of a whole plate, one position per well."""
    package = import_module(peer.package)
    plate = package.Plate.from_standard_wells(wells(case))
    positions = [
        package.Position(name=f"{row}{column}", plate_row=row, plate_column=column)
        for row in plate.row_names
        for column in plate.column_names
    ]
    return package.AcquisitionSettings(
        root_path=str(path),
        dimensions=[
            package.Dimension(name="p", type="position", coords=positions),
            package.Dimension(name="c", count=PLANES, type="channel"),
            package.Dimension(name="y", count=job.side, type="space"),
            package.Dimension(name="x", count=job.side, type="space"),
        ],
        dtype="uint16",
        format=_format(peer, job),
        plate=plate,
        overwrite=True,
    )


# --------------------------------------------------------------------------------- whole streams


def streaming(peer: Peer, job: Job, times: float = 1.0) -> Session:
    """Open a stream, append all frames, close it; ``times`` as many as the job's."""
    job = replace(job, frames=round(job.frames * times))

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        ring, count, path = frames(case, job.side), job.count(case), output(job, case)
        import_module(peer.package)
        with _ready(path, job, count):

            def work() -> Written:
                already, start = bytes_written(), time.perf_counter()
                plan = settings(peer, job, case, path)
                stream = import_module(peer.package).create_stream(plan)
                stamps = _append(stream, ring, count, job)
                stream.close()
                if job.sync:
                    settle(path)
                seconds = time.perf_counter() - start
                size = count * job.frame_bytes
                numbers = {
                    "frames/s": count / seconds,
                    "MB/s": size / seconds / 1e6,
                    "× written": (bytes_written() - already) / size,
                }
                if len(stamps) > TENTHS:
                    numbers["last/first tenth"] = _flatness(stamps)
                return Written(path, numbers=numbers, checked=True)

            yield work
            check(path, job, count, in_turn(ring))

    return session


@contextlib.contextmanager
def _ready(path: Path, job: Job, count: int) -> Iterator[None]:
    """Room for an output, and nobody's writes under way; a failure leaves nothing."""
    need(path.parent, count * job.frame_bytes)
    if job.disk:
        settle(path.parent)
    try:
        yield
    except BaseException:
        forget(path)
        raise


def _append(stream: Any, ring: list[Any], count: int, job: Job) -> list[float]:
    """Append all frames; the time before each tenth of them and at the end."""
    stamps = []
    for tenth in range(TENTHS):
        stamps.append(time.perf_counter())
        numbers = range(count * tenth // TENTHS, count * (tenth + 1) // TENTHS)
        if job.metadata:
            for n in numbers:
                stream.append(ring[n % RING], frame_metadata=said(n))
        else:
            for n in numbers:
                stream.append(ring[n % RING])
    stamps.append(time.perf_counter())
    return stamps


def _flatness(stamps: list[float]) -> float:
    """Rate of appending in the last tenth over that in the first."""
    return (stamps[1] - stamps[0]) / max(stamps[-1] - stamps[-2], 1e-9)


def plain_pwrite(job: Job) -> Session:
    """The same frames into one file, by one thread: the ceiling."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        ring, count, path = frames(case, job.side), job.count(case), output(job, case)
        with _ready(path, job, count):

            def work() -> Written:
                start = time.perf_counter()
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                try:
                    for n in range(count):
                        if os.pwrite(file, ring[n % RING], n * job.frame_bytes) < job.frame_bytes:
                            raise OSError("a frame was written in part")
                finally:
                    os.close(file)
                if job.sync:
                    settle(path)
                seconds = time.perf_counter() - start
                speed = {"MB/s": count * job.frame_bytes / seconds / 1e6}
                return Written(path, numbers=speed | {"frames/s": count / seconds}, checked=True)

            yield work

    return session


# ------------------------------------------------------------------------------------ the plate


def plate(peer: Peer, job: Job) -> Session:
    """A plate: how long opening and closing take."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        ring, path = frames(case, job.side), output(job, case)
        package = import_module(peer.package)
        plan = plate_settings(peer, job, case, path)
        count = wells(case) * PLANES

        def work() -> Written:
            start = time.perf_counter()
            stream = package.create_stream(plan)
            opened = time.perf_counter()
            for n in range(count):
                stream.append(ring[n % RING])
            appended = time.perf_counter()
            stream.close()
            closed = time.perf_counter()
            numbers = {
                "s to open": opened - start,
                "s to append": appended - opened,
                "s to close": closed - appended,
            }
            return Written(Path(plan.output_path), numbers=numbers, checked=True)

        with _ready(Path(plan.output_path), job, count):
            yield work
            check_plate(Path(plan.output_path), job, wells(case), ring)

    return session


def warm_up(peer: Peer, job: Job, case: Case) -> None:
    """Stream two frames somewhere else: what a package loads and starts is there afterwards."""
    path = case.output("-warm" + job.ending)
    two = replace(job, frames=2, unbounded=False)
    plan = settings(peer, two, replace(case, size=FULL), path)
    with import_module(peer.package).create_stream(plan) as stream:
        for frame in frames(case, job.side)[:2]:
            stream.append(frame)
    forget(path)


# ------------------------------------------------------------------------------ a paced camera


def paced(peer: Peer, job: Job) -> Session:
    """A camera that gives so many frames a second: how long each append takes."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        ring, count, path = frames(case, job.side), job.count(case), output(job, case)
        package = import_module(peer.package)
        warm_up(peer, job, case)
        with _ready(path, job, count):
            warm_memory(count * job.frame_bytes)

            def work() -> Written:
                stream = package.create_stream(settings(peer, job, case, path))
                run = pace(stream, ring, job.fps, count)
                start = time.perf_counter()
                stream.close()
                numbers = spread(run.took) | {"late frames": run.late}
                numbers["s to close"] = time.perf_counter() - start
                return Written(path, numbers=numbers, checked=True)

            yield work
            check(path, job, count, in_turn(ring))

    return session


class Paced(NamedTuple):
    """What became of a camera's frames.

    Attributes
    ----------
    took
        Seconds each append took.
    kept
        Numbers of the frames that were not refused.
    late
        How many came after the next one was due. A camera waits for nobody; here a late frame is
        appended all the same.
    """

    took: list[float]
    kept: list[int]
    late: int


def pace(
    stream: Any,
    ring: list[Any],
    fps: float,
    count: int,
    *,
    seconds: float = math.inf,
    fresh: bool = False,
    refusal: tuple[type[Exception], ...] = (),
) -> Paced:
    """Append a camera's frames at its rate, for so many seconds at the most.

    ``fresh`` frames lie in memory of their own each, as those of most drivers do.
    """
    took, kept, late = [], [], 0
    start = time.perf_counter()
    for n in range(count):
        due, now = start + n / fps, time.perf_counter()
        if now - start > seconds:
            break
        if due > now:
            time.sleep(due - now)
        elif now - due > 1 / fps:
            late += 1
        frame = ring[n % RING].copy() if fresh else ring[n % RING]
        before = time.perf_counter()
        with contextlib.suppress(*refusal):
            stream.append(frame)
            kept.append(n)
        took.append(time.perf_counter() - before)
    return Paced(took, kept, late)


def spread(took: list[float]) -> dict[str, float]:
    """Percentiles of durations in milliseconds."""
    several = np.percentile(took, [50, 99, 99.9, 100]) * 1e3
    names = ("ms p50", "ms p99", "ms p99.9", "ms max")
    return dict(zip(names, map(float, several), strict=True))


# ----------------------------------------------------------------------------- the first stream


def first(peer: Peer, job: Job) -> Session:
    """Import the package and open a stream, in a process that has done neither."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        ring, count, path = frames(case, job.side), job.count(case), output(job, case)
        with _ready(path, job, count):

            def work() -> Written:
                start = time.perf_counter()
                create = import_module(peer.package).create_stream
                plan = settings(peer, job, case, path)
                imported = time.perf_counter()
                stream = create(plan)
                opened = time.perf_counter()
                _append(stream, ring, count, job)
                stream.close()
                numbers = {
                    "ms to import": (imported - start) * 1e3,
                    "ms to open": (opened - imported) * 1e3,
                    "ms for the rest": (time.perf_counter() - opened) * 1e3,
                }
                return Written(path, numbers=numbers, checked=True)

            yield work
            check(path, job, count, in_turn(ring))

    return session


# --------------------------------------------------------------------------------- equal pixels


def in_turn(ring: list[Any]) -> Callable[[int], Any]:
    """The frame that a camera gives as its n-th."""
    return lambda n: ring[n % RING]


def check(path: Path, job: Job, count: int, frame: Callable[[int], Any]) -> None:
    """Raise unless an output has all frames; the first, the middle and the last are compared."""
    picks = sorted({0, 1, count // 2, count - 2, count - 1})
    if job.ending == ZARR:
        array = open_tensorstore(path / "0")
        found = array.shape[0]
        pixels = [array[n].read().result() for n in picks if n < found]
    else:
        import tifffile

        with tifffile.TiffFile(path) as tif:
            found = len(tif.pages)
            pixels = [tif.pages[n].asarray() for n in picks if n < found]
    if found != count:
        raise ValueError(f"{found} frames of {count} were written")
    _compare(picks, pixels, frame)


def check_plate(path: Path, job: Job, count: int, ring: list[Any]) -> None:
    """The same for a plate: the first and the last well."""
    if job.ending == ZARR:
        found = {group.parent.parent: group for group in path.glob("*/*/*/0")}
        rows = sorted({place.parent.name for place in found})
        last = max(int(place.name) for place in found)
        places = [path / "A" / "1", path / rows[-1] / str(last)]
        pixels = [open_tensorstore(found[place])[1].read().result() for place in places]
    else:
        import tifffile

        found = dict(enumerate(sorted(path.glob("*" + TIFF))))
        pixels = []
        for file in (found[0], found[len(found) - 1]):
            with tifffile.TiffFile(file) as tif:
                pixels.append(tif.pages[1].asarray())
    if len(found) != count:
        raise ValueError(f"{len(found)} positions of {count} were written")
    _compare([1, count * PLANES - 1], pixels, in_turn(ring))


def _compare(picks: list[int], pixels: list[Any], frame: Callable[[int], Any]) -> None:
    for n, plane in zip(picks, pixels, strict=True):
        if not np.array_equal(plane, frame(n)):
            raise ValueError(f"frame {n} has other pixels")
