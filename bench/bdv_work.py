"""What the contestants of the BigDataViewer suite do: views written, shrunk and read.

npy2bdv, ours in its way (`bioio_tk.compat.npy2bdv`) and ours have one API: who works is a matter of
which `BdvWriter` is opened. Plain h5py is what its users would write by hand. After every turn
h5py reads all views, and NumPy makes the smaller resolutions anew.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import images
from bench.measure import MIB, Case, Session, Work, Written, digest, warm_memory
from bench.stream_work import FULL, MEMORY, forget, need, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

ONE = (1, 1, 1)
BLOCK = (4, 256, 256)
NAME = "x.h5"
SHAPE = (32, 1024, 2048)  # Z, Y, X of a view
MORE = 16  # planes by which views may differ
STACK = "bdv-stack.npy"
CACHE = 256 * MIB  # of h5py, where planes come into blocks that are deeper
SLAB = 16  # planes that plain h5py shrinks at a time
BOXES, SIDE = 16, 64
OURS, COMPAT, THEIRS = "bioio_tk.bdv", "bioio_tk.compat.npy2bdv", "npy2bdv"
PRECISION = {OURS: 0, COMPAT: 1, THEIRS: 1}  # npy2bdv and its like cut the mean off

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """Which views are written, and how.

    Attributes
    ----------
    grid
        How many there are of each kind; all that is not named is one.
    shape
        Of each view (Z, Y, X).
    factors, blocks
        Of the resolutions; the first block does for all.
    compression
        None or "gzip".
    later
        Factors and blocks of gzipped resolutions that are made afterwards.
    planes, placed
        Plane by plane; each view with an affine transform.
    defaults
        Factors, blocks and compression are left to the writer.
    memory
        Write to memory rather than to the run's folder.
    cold
        Memory as the system gives it; else as much as is written is at hand beforehand.
    """

    grid: tuple[tuple[str, int], ...] = (("time", 1), ("channel", 2))
    shape: Shape = SHAPE
    factors: tuple[Shape, ...] = (ONE,)
    blocks: tuple[Shape, ...] = (BLOCK,)
    compression: str | None = None
    later: tuple[tuple[Shape, Shape], ...] = ()
    planes: bool = False
    placed: bool = False
    defaults: bool = False
    memory: bool = False
    cold: bool = False

    def fitted(self, case: Case) -> Job:
        """The same in a run of this size."""
        if case.size >= FULL:
            return self
        z, y, x = self.shape
        if z * y * x > 1 << 20:
            z, y, x = z // 2, y // 2, x // 2
        return replace(
            self, shape=(z, y, x), grid=tuple((kind, min(n, 10)) for kind, n in self.grid)
        )

    def places(self) -> list[dict[str, int]]:
        """Time point and attributes of every view."""
        kinds = [kind for kind, _ in self.grid]
        numbers = product(*(range(n) for _, n in self.grid))
        return [dict(zip(kinds, one, strict=True)) for one in numbers]

    def counts(self) -> dict[str, int]:
        """How many attributes there are, as the writers want to know."""
        return {f"n{kind}s": n for kind, n in self.grid if kind != "time"}

    def path(self, place: Mapping[str, int]) -> str:
        """Where a view is in the file, by the numbers of npy2bdv and ours."""
        setup, known = 0, dict(self.grid)
        for kind in ("illumination", "channel", "tile", "angle"):
            setup = setup * known.get(kind, 1) + place.get(kind, 0)
        return f"t{place.get('time', 0):05d}/s{setup:02d}"

    @property
    def levels(self) -> tuple[tuple[Shape, Shape], ...]:
        """Factors and blocks of all resolutions, those made later too."""
        blocks = (*self.blocks, *[self.blocks[0]] * len(self.factors))[: len(self.factors)]
        return (*zip(self.factors, blocks, strict=True), *self.later)

    @property
    def view_bytes(self) -> int:
        """Bytes of a view's pixels."""
        return math.prod(self.shape) * 2

    @property
    def nbytes(self) -> int:
        """Bytes of all views' pixels."""
        return self.view_bytes * len(self.places())


def views(job: Job) -> Callable[[Case], int]:
    """How many views a job has in a run of some size."""
    return lambda case: len(job.fitted(case).places())


# -------------------------------------------------------------------------------------- pixels


def _make_stack(path: Path, case: Case) -> None:
    z, y, x = Job().fitted(case).shape
    planes = z + MORE
    np.save(path, images.camera((planes * y, x), seed=7).reshape(planes, y, x))


images.MAKERS[STACK] = _make_stack


@cache
def _camera(file: Path) -> NDArray[np.uint16]:
    pixels: NDArray[np.uint16] = np.load(file)
    return pixels


def stacks(case: Case, job: Job) -> list[NDArray[np.uint16]]:
    """The pixels of every view; each begins a plane deeper than the one before."""
    camera = _camera(case.file(STACK))
    z, y, x = job.shape
    count = min(MORE, len(job.places()))
    if all(n <= m for n, m in zip((z + count, y, x), camera.shape, strict=True)):
        camera = np.ascontiguousarray(camera[:, :y, :x])
    else:  # larger ones are made of the same pixels again and again
        camera = np.resize(camera, (z + count, y, x))
    return [camera[n % count :][:z] for n in range(len(job.places()))]


def shrunk(stack: NDArray[np.uint16], factor: Shape) -> NDArray[np.uint16]:
    """Mean of each block of a stack, rounded half up; its sizes are multiples of the factors."""
    if factor == ONE:
        return stack
    fz, fy, fx = factor
    total = np.zeros(tuple(n // f for n, f in zip(stack.shape, factor, strict=True)), np.uint32)
    for z, y, x in product(range(fz), range(fy), range(fx)):
        total += stack[z::fz, y::fy, x::fx]
    count = math.prod(factor)
    return ((total + count // 2) // count).astype(np.uint16)


# -------------------------------------------------------------------------------------- writing


def writing(name: str, job: Job, *, timed: str = "all") -> Session:
    """Write all views with a `BdvWriter`; ``timed="later"``: only what comes afterwards."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        fitted = job.fitted(case)
        pixels = stacks(case, fitted)
        _warm_up(name, replace(fitted, memory=False), case)
        with _folder(fitted, case) as folder, contextlib.ExitStack() as stack:
            writer = None
            if timed == "later":
                writer = _open(name, folder, fitted, case)
                stack.callback(writer.close)
                _append(writer, fitted, pixels)
                settle(folder)

            def work() -> Written:
                stack.pop_all()
                start = time.perf_counter()
                mine = writer or _open(name, folder, fitted, case)
                if writer is None:
                    _append(mine, fitted, pixels)
                _finish(mine, fitted)
                return Written(folder, checked=True, numbers=_rates(fitted, start))

            yield work
            check(folder, fitted, pixels, PRECISION[name])

    return session


def _rates(job: Job, start: float) -> dict[str, float]:
    """Views and megabytes of pixels a second since then."""
    seconds = time.perf_counter() - start
    return {"views/s": len(job.places()) / seconds, "MB/s": job.nbytes / seconds / 1e6}


def _open(name: str, folder: Path, job: Job, case: Case) -> Any:
    options: dict[str, Any] = job.counts()
    if not job.defaults:
        options |= {"subsamp": job.factors, "blockdim": job.blocks, "compression": job.compression}
    if name == OURS:
        options["max_workers"] = case.workers
    return import_module(name).BdvWriter(str(folder / NAME), **options)


def _append(writer: Any, job: Job, pixels: list[NDArray[np.uint16]]) -> None:
    for place, stack in zip(job.places(), pixels, strict=True):
        more: dict[str, Any] = {}
        if job.placed:
            more["m_affine"] = np.eye(3, 4)
            more["m_affine"][:, 3] = place["tile"] * 100.0
        if not job.planes:
            writer.append_view(stack, **place, **more)
            continue
        writer.append_view(None, virtual_stack_dim=stack.shape, **place, **more)
        for z, plane in enumerate(stack):
            writer.append_plane(plane, z=z, **place)


def _finish(writer: Any, job: Job) -> None:
    if job.later:
        factors, blocks = zip(*job.later, strict=True)
        writer.create_pyramids(subsamp=factors, blockdim=blocks, compression="gzip")
    writer.write_xml()
    writer.close()


@cache
def _warm_up(name: str, job: Job, case: Case) -> None:
    """Write a little of it somewhere else: what a package loads and starts is there afterwards."""
    factors = [factor for factor, _ in job.levels]
    z, y, x = (max(sizes) for sizes in zip(*factors, strict=True))
    small = replace(job, grid=(("time", 1), ("tile", 1)), shape=(4 * z, 16 * y, 16 * x))
    with _folder(small, case) as folder:
        writer = _open(name, folder, small, case)
        _append(writer, small, [np.ones(small.shape, np.uint16)])
        _finish(writer, small)
        forget(folder)


@contextlib.contextmanager
def _folder(job: Job, case: Case) -> Iterator[Path]:
    """An empty folder with room for the views, and nobody's writes under way."""
    folder = case.output(".bdv")
    if job.memory:
        if not MEMORY.is_dir():
            raise OSError(f"there is no {MEMORY}")
        for left in MEMORY.glob("bioio-bench-*.bdv"):
            if not Path("/proc", left.stem.rpartition("-")[2]).exists():
                forget(left)
        folder = MEMORY / f"bioio-bench-{os.getpid()}.bdv"
    forget(folder)
    need(folder.parent, 1.2 * job.nbytes)
    if not job.memory:
        settle(folder.parent)
    if not job.cold:  # for the pixels in the page cache, and for a copy of a view
        warm_memory(job.nbytes + job.view_bytes)
    folder.mkdir()
    try:
        yield folder
    except BaseException:
        forget(folder)
        raise


def plain(job: Job, *, timed: str = "all") -> Session:
    """The same datasets with plain h5py and NumPy; without an XML."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        import h5py

        fitted = job.fitted(case)
        pixels = stacks(case, fitted)
        room = {"rdcc_nbytes": CACHE} if fitted.planes else {}
        with _folder(fitted, case) as folder, contextlib.ExitStack() as stack:
            file = h5py.File(folder / NAME, "w", locking=False, **room)
            stack.callback(file.close)
            if timed == "later":
                _plain_views(file, fitted, pixels)
                settle(folder)

            def work() -> Written:
                start = time.perf_counter()
                if timed != "later":
                    _plain_views(file, fitted, pixels)
                _plain_later(file, fitted)
                file.close()
                return Written(folder, checked=True, numbers=_rates(fitted, start))

            yield work
            check(folder, fitted, pixels, 0, document=False)

    return session


def _plain_views(file: Any, job: Job, pixels: list[NDArray[np.uint16]]) -> None:
    for place, stack in zip(job.places(), pixels, strict=True):
        made = []
        for number, (factor, block) in enumerate(job.levels[: len(job.factors)]):
            path = f"{job.path(place)}/{number}/cells"
            kind = {"chunks": block, "compression": job.compression, "maxshape": (None,) * 3}
            if job.planes:
                shape = tuple(n // f for n, f in zip(job.shape, factor, strict=True))
                made.append((factor, file.create_dataset(path, shape, np.int16, **kind)))
            else:
                file.create_dataset(path, data=shrunk(stack, factor).view(np.int16), **kind)
        for z in range(len(stack)):
            for factor, dataset in made:
                dataset[z] = shrunk(stack[z : z + 1], factor)[0].view(np.int16)
        file.flush()


def _plain_later(file: Any, job: Job) -> None:
    for place in job.places():
        full = file[f"{job.path(place)}/0/cells"]
        for number, (factor, block) in enumerate(job.later, len(job.factors)):
            level = file.create_dataset(
                f"{job.path(place)}/{number}/cells",
                tuple(n // f for n, f in zip(job.shape, factor, strict=True)),
                np.int16,
                chunks=block,
                compression="gzip",
                maxshape=(None,) * 3,
            )
            deep = max(1, block[0]) * factor[0]
            slab = max(deep, SLAB // deep * deep)
            for z in range(0, job.shape[0], slab):
                part = shrunk(full[z : z + slab].view(np.uint16), factor)
                start = z // factor[0]
                level[start : start + len(part)] = part.view(np.int16)


# --------------------------------------------------------------------------------- equal pixels


def check(
    folder: Path,
    job: Job,
    pixels: list[NDArray[np.uint16]],
    precision: int,
    *,
    document: bool = True,
) -> None:
    """Raise unless all views are there; of the last one all resolutions are compared."""
    import h5py

    with h5py.File(folder / NAME, "r", locking=False) as file:
        found = [f"{t}/{s}" for t in file if t[0] == "t" for s in file[t]]
        wanted = [job.path(place) for place in job.places()]
        if sorted(found) != sorted(wanted):
            raise ValueError(f"{len(found)} views of {len(wanted)} were written")
        for path, stack in zip(wanted, pixels, strict=True):
            if not np.array_equal(file[f"{path}/0/cells"][()].view(np.uint16), stack):
                raise ValueError(f"{path} has other pixels")
        for number, (factor, _) in enumerate([] if job.defaults else job.levels):
            level = file[f"{wanted[-1]}/{number}/cells"][()].view(np.uint16)
            truth = _truth(job, factor, pixels[-1])
            if level.shape != truth.shape:
                raise ValueError(f"resolution {number} has the shape {level.shape}")
            if np.abs(level.astype(np.int32) - truth).max() > (precision if number else 0):
                raise ValueError(f"resolution {number} has other pixels")
    text = (folder / NAME).with_suffix(".xml").read_text() if document else ""
    if document and text.count("</ViewRegistration>") != len(wanted):
        raise ValueError("the XML has not all views")


_TRUTHS: dict[tuple[Job, Shape], NDArray[np.uint16]] = {}


def _truth(job: Job, factor: Shape, stack: NDArray[np.uint16]) -> NDArray[np.uint16]:
    if factor == ONE:
        return stack
    if (job, factor) not in _TRUTHS:
        _TRUTHS[job, factor] = shrunk(stack, factor)
    return _TRUTHS[job, factor]


# -------------------------------------------------------------------------------------- reading


def dataset_name(compression: str | None) -> str:
    """Name of the folder of a dataset to read."""
    return f"bdv-{compression or 'raw'}"


READ = Job(grid=(("time", 1),))


def _make_dataset(compression: str | None) -> Callable[[Path, Case], None]:
    """A dataset of one view, as npy2bdv writes it."""

    def make(path: Path, case: Case) -> None:
        job = replace(READ.fitted(case), compression=compression)
        path.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            writer = _open(THEIRS, path, job, case)
            _append(writer, job, stacks(case, job))
            _finish(writer, job)

    return make


for _kind in (None, "gzip"):
    images.MAKERS[dataset_name(_kind)] = _make_dataset(_kind)
    images.NEEDS[dataset_name(_kind)] = (STACK,)


def view_truth(case: Case) -> str | None:
    """Fingerprint of the view to read."""
    return digest(stacks(case, READ.fitted(case))[0])


def boxes(case: Case) -> list[tuple[slice, slice, slice]]:
    """Where the boxes to read are: anywhere in the view."""
    rng = np.random.default_rng(3)
    shape = READ.fitted(case).shape
    sides = [min(SIDE, n) for n in shape]
    found = []
    for _ in range(BOXES):
        starts = [int(rng.integers(0, n - m + 1)) for n, m in zip(shape, sides, strict=True)]
        z, y, x = (slice(a, a + m) for a, m in zip(starts, sides, strict=True))
        found.append((z, y, x))
    return found


def boxes_truth(case: Case) -> str | None:
    """Fingerprint of the boxes."""
    stack = stacks(case, READ.fitted(case))[0]
    return digest([stack[box] for box in boxes(case)])


def reading(name: str, compression: str | None, *, parts: bool = False) -> Session:
    """Read the view, or boxes of it, with a `BdvEditor` that is open."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        path = case.file(dataset_name(compression)) / NAME
        options = {"max_workers": case.workers} if name == OURS else {}
        editor = import_module(name).BdvEditor(str(path), mode="r", **options)
        places = boxes(case)

        def work() -> Any:
            if not parts:
                return editor.read_view()
            if name == OURS:
                return [editor.read_view(z=z, y=y, x=x) for z, y, x in places]
            return [editor.read_view()[box] for box in places]

        try:
            yield work
        finally:
            # its finalize() would write the XML anew
            (editor._file_object_h5 if name == THEIRS else editor).close()

    return session


def plain_reading(compression: str | None, *, parts: bool = False) -> Session:
    """The same with h5py's slicing."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        import h5py

        with h5py.File(case.file(dataset_name(compression)) / NAME, "r", locking=False) as file:
            dataset = file["t00000/s00/0/cells"]
            places = boxes(case)

            def work() -> Any:
                if parts:
                    return [dataset[box].view(np.uint16) for box in places]
                return dataset[()].view(np.uint16)

            yield work

    return session


def bare_reading(compression: str | None) -> Session:
    """Nothing but the chunks that the boxes touch, one after the other; where they are is known."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        import h5py
        from isal import isal_zlib

        path = case.file(dataset_name(compression)) / NAME
        with h5py.File(path, "r", locking=False) as file:
            dataset = file["t00000/s00/0/cells"]
            shape = dataset.chunks
            chunks = [[_chunk(dataset, at) for at in _touched(b, shape)] for b in boxes(case)]

        def work() -> Any:
            found = []
            with path.open("rb", buffering=0) as raw:
                for box, touched in zip(boxes(case), chunks, strict=True):
                    out = np.empty([s.stop - s.start for s in box], np.uint16)
                    for at, offset, size in touched:
                        data: Any = os.pread(raw.fileno(), size, offset)
                        if compression:
                            data = isal_zlib.decompress(data)
                        _copy(np.frombuffer(data, np.uint16).reshape(shape), at, box, out)
                    found.append(out)
            return found

        yield work

    return session


def _touched(box: tuple[slice, ...], chunk: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Where the chunks begin that a box touches."""
    spans = [range(s.start // n * n, s.stop, n) for s, n in zip(box, chunk, strict=True)]
    return list(product(*spans))


def _chunk(dataset: Any, at: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    info = dataset.id.get_chunk_info_by_coord(at)
    return at, info.byte_offset, info.size


def _copy(
    chunk: NDArray[np.uint16],
    at: tuple[int, ...],
    box: tuple[slice, ...],
    out: NDArray[np.uint16],
) -> None:
    """Copy what a chunk and a box share."""
    inside, outside = [], []
    for start, size, part in zip(at, chunk.shape, box, strict=True):
        first, last = max(start, part.start), min(start + size, part.stop)
        inside.append(slice(first - start, last - start))
        outside.append(slice(first - part.start, last - part.start))
    out[tuple(outside)] = chunk[tuple(inside)]
