"""Run contestants by turns in child processes: times, peak memory, and proof of equal pixels.

Every contestant of a row lives in a process of its own, so that a peer that aborts, hangs or
leaks harms nobody, and so that its peak memory is its own. The parent gives the turns
(A B C A B C ...), so that whatever disturbs the machine disturbs all alike. The first turn is not
timed: it warms the page cache and the imports, and its pixels are hashed for comparison.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

MIB = 1 << 20
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SAMPLED_TILES = 64
SAMPLE = 1024  # side of a sampled tile, that of all tiled files here
WARM_IMAGES = 3  # an image's pixels in, out, and encoded or in the page cache


@dataclass(frozen=True, slots=True)
class Case:
    """What one run of the benchmark is about; handed to every contestant."""

    folder: Path
    size: int = 8192
    workers: int = 4
    copy_gb: float = 16.0
    regions: int = 1000
    planes: int = 50_000
    data: Path = DATA

    def file(self, name: str) -> Path:
        """Path of a generated input file."""
        return self.folder / name

    def output(self, ending: str = ".ome.tif") -> Path:
        """Path this process may write to; one per process, overwritten at every turn."""
        return self.folder / f"out-{os.getpid()}{ending}"


Work = Callable[[], Any]
Session = Callable[[Case], AbstractContextManager[Work]]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way of doing a row's work.

    Parameters
    ----------
    label
        Unique within its row.
    column
        The column of the table it competes in; the best of a column is shown. An empty column
        keeps it to the table of details.
    session
        Context manager entered before every turn (not timed) that yields the timed work.
    counts
        Whether it may decide a goal set against its column.
    """

    label: str
    column: str
    session: Session
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Written:
    """Result of a contestant that wrote a file or a store: read back, then deleted.

    Files are read by tifffile, folders (OME-Zarr or a plain Zarr array) by TensorStore.
    ``sampled`` compares some tiles instead of all pixels, for files larger than memory;
    ``levels`` is how many resolution levels the file must have. ``many`` is the ending of the
    files or stores of a folder that holds one image each. ``numbers`` are what the contestant has
    measured itself, by their units; of what is ``checked`` its session compares the pixels.
    """

    path: Path
    sampled: bool = False
    levels: int = 1
    many: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    checked: bool = False

    def all(self) -> list[Path]:
        """The images in the folder, by name."""
        return sorted(path for path in self.path.iterdir() if path.name.endswith(self.many))

    def size(self) -> int:
        """Bytes on disk."""
        if not self.path.is_dir():
            return self.path.stat().st_size
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def remove(self) -> None:
        """Make room for the next turn."""
        shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()


@dataclass(slots=True)
class Outcome:
    """What was measured of one contestant; times in seconds per operation, memory in bytes."""

    label: str
    column: str
    counts: bool = True
    times: list[float] = field(default_factory=list)
    peak: int | None = None
    before: int | None = None
    size: int | None = None
    read: int | None = None
    digest: str | None = None
    numbers: dict[str, list[float]] = field(default_factory=dict)
    failed: str | None = None

    @property
    def ok(self) -> bool:
        """True if it was measured and its pixels were right."""
        return self.failed is None and bool(self.times)

    @property
    def out(self) -> bool:
        """True once it has failed: it takes no more turns."""
        return self.failed is not None

    @property
    def median(self) -> float:
        """Median time in seconds."""
        return statistics.median(self.times)

    def number(self, name: str) -> float | None:
        """Median of what the contestant has measured itself, or None."""
        return statistics.median(self.numbers[name]) if name in self.numbers else None


def once(work: Callable[[Case], Any]) -> Session:
    """Make a session of a function that needs no preparation."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        yield lambda: work(case)

    return session


# --------------------------------------------------------------------------- memory of a process


def rss_now() -> int | None:
    """Resident memory of this process in bytes, or None where the system does not tell."""
    return _status("VmRSS") or _psutil_rss()


def rss_peak() -> int | None:
    """High-water mark of this process's resident memory in bytes.

    ``ru_maxrss`` is the fallback only: on Linux a spawned child inherits its parent's.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return _psutil_rss()
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def reset_peak() -> None:
    """Forget the high-water mark so far (imports, preparation), where the system can."""
    with contextlib.suppress(OSError), Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")


def warm_memory(size: int) -> None:
    """Touch ``size`` bytes and give them back, so that free memory is at hand.

    In a virtual machine whose host takes free memory back after a moment, the first touch costs
    ten times as much as the next; without this a turn measures how long ago memory was free.
    """
    np.ones(size, np.uint8)


@contextlib.contextmanager
def children_memory(*, watched: bool) -> Iterator[list[int]]:
    """Memory of the processes this one starts, summed; a list whose maximum is the peak.

    Shared pages are divided among those who share them (PSS), so that nothing counts twice.
    """
    sizes = [0]
    if not watched:
        yield sizes
        return
    import psutil

    stop = threading.Event()

    def watch() -> None:
        myself = psutil.Process()
        while not stop.wait(0.05):
            total = 0
            for child in myself.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    info = child.memory_full_info()
                    total += getattr(info, "pss", info.rss)
            sizes.append(total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        stop.set()
        thread.join()


def bytes_read() -> int | None:
    """Bytes this process has asked the system for so far, from the page cache or not."""
    with contextlib.suppress(OSError), Path("/proc/self/io").open() as file:
        return int(file.readline().split()[1])  # rchar
    return None


def _status(name: str) -> int | None:
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return None


def _psutil_rss() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


# ------------------------------------------------------------------------------- equal pixels


def digest(result: Any) -> str | None:
    """Fingerprint of a contestant's pixels: dtype, shape without length-1 axes, and values.

    Text stands for itself, lists are hashed item by item, what was written is read back.
    None means that there is nothing to compare (ceilings).
    """
    if result is None or isinstance(result, str):
        return result
    if isinstance(result, Written):
        if result.checked:
            return None
        if result.many:
            return digest_of_all([_digest_one(Written(path)) for path in result.all()])
        return _digest_one(result)
    total = hashlib.blake2b(digest_size=16)
    for array in result if isinstance(result, list) else [result]:
        _add(total, array)
    return total.hexdigest()


def digest_of_all(digests: list[str]) -> str:
    """Fingerprint of many images, from theirs."""
    return hashlib.blake2b("\n".join(digests).encode(), digest_size=16).hexdigest()


def _digest_one(written: Written) -> str:
    return _digest_store(written) if written.path.is_dir() else _digest_file(written)


def _add(total: Any, array: NDArray[Any]) -> None:
    array = np.asarray(array).squeeze()
    total.update(f"{array.dtype.newbyteorder('<').str} {array.shape}".encode())
    # planes first: a Y,X,Z view of plane-contiguous memory hashes without a slow transposition
    planes = np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]
    for plane in planes:
        total.update(np.ascontiguousarray(plane, dtype=array.dtype.newbyteorder("<")).data)


def _digest_file(written: Written) -> str:
    import tifffile

    with tifffile.TiffFile(written.path) as tif:
        levels = len(tif.series[0].levels)
        if levels < written.levels:
            raise ValueError(f"the file has {levels} levels, not {written.levels}")
        if not written.sampled:
            pixels = tif.asarray()
            if written.levels > 1:
                _check_last(pixels, tif.series[0].levels[-1].asarray())
            return str(digest(_planes(pixels)))
        pages = tif.series[0].levels[0].pages
        page = pages[0].aspage()
        each = len(page.dataoffsets)
        tiles = []
        for place in sample(each * len(pages)):
            page, index = pages[place // each].aspage(), place % each
            tif.filehandle.seek(page.dataoffsets[index])
            data = tif.filehandle.read(page.databytecounts[index])
            tile = page.decode(data, index)[0]
            blank = np.zeros((page.tilelength, page.tilewidth), page.dtype)
            tiles.append(blank if tile is None else tile)
        return f"{page.shape} {digest(tiles)}"


def _check_last(pixels: NDArray[Any], smallest: NDArray[Any]) -> None:
    """Raise if the smallest level cannot be the same picture: another shape, black parts."""
    shrunk = pixels.shape[-1] / smallest.shape[-1]
    if smallest.ndim != pixels.ndim or shrunk < 2:
        raise ValueError(f"level of {smallest.shape} of an image of {pixels.shape}")
    light, less = float(pixels.mean()), float(smallest.mean())
    if abs(light - less) > 0.05 * light:
        raise ValueError(f"the smallest level has a mean of {less:.1f}, the image of {light:.1f}")


def _planes(array: NDArray[Any]) -> list[NDArray[Any]]:
    return list(array.reshape(-1, *array.shape[-2:]))


def sample(count: int) -> list[int]:
    """Numbers of the tiles to compare of so many."""
    return sorted({i * (count - 1) // (SAMPLED_TILES - 1) for i in range(SAMPLED_TILES)})


def _digest_store(written: Written) -> str:
    """Fingerprint of a store's largest level, the same as that of a file with these planes."""
    paths = level_paths(written.path)
    if len(paths) < written.levels:
        raise ValueError(f"the store has {len(paths)} levels, not {written.levels}")
    array = open_tensorstore(paths[0])
    if not written.sampled:
        pixels = array.read().result()
        if written.levels > 1:
            _check_last(pixels, open_tensorstore(paths[-1]).read().result())
        return str(digest(_planes(pixels)))
    *outer, height, width = array.shape
    down, across = -(-height // SAMPLE), -(-width // SAMPLE)
    tiles = []
    for place in sample(down * across * math.prod(outer)):
        plane, rest = divmod(place, down * across)
        y, x = (SAMPLE * i for i in divmod(rest, across))
        at = tuple(int(i) for i in np.unravel_index(plane, outer)) if outer else ()
        tiles.append(array[(*at, slice(y, y + SAMPLE), slice(x, x + SAMPLE))].read().result())
    return f"{(height, width)} {digest(tiles)}"


def level_paths(path: Path) -> list[Path]:
    """Folders of the arrays of an OME-Zarr image, largest first, or of a plain array."""
    for name in ("zarr.json", ".zattrs"):
        if (path / name).exists():
            found = json.loads((path / name).read_text(encoding="utf-8"))
            found = found.get("attributes", found)
            images = found.get("ome", found).get("multiscales")
            if images:
                return [path / level["path"] for level in images[0]["datasets"]]
            if found.get("ome", found).get("bioformats2raw.layout"):
                return level_paths(path / "0")
    return [path]


def open_tensorstore(path: Path, workers: int | None = None) -> Any:
    """An array of a local store with TensorStore, without its cache."""
    import tensorstore

    context: dict[str, Any] = {"cache_pool": {"total_bytes_limit": 0}}
    if workers:
        context |= {
            "data_copy_concurrency": {"limit": workers},
            "file_io_concurrency": {"limit": workers},
        }
    spec = {
        "driver": "zarr3" if (path / "zarr.json").exists() else "zarr",
        "kvstore": {"driver": "file", "path": str(path)},
        "context": context,
    }
    return tensorstore.open(spec, open=True).result()


# ------------------------------------------------------------------------------ the child's side


def _serve(pipe: Connection, suite: str, row_key: str, label: str, case: Case, log: str) -> None:
    """Body of a child process: take turns until told to stop."""
    # what a library prints is kept out of the table, but kept
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    for name in ("VIPS_CONCURRENCY", "RAYON_NUM_THREADS"):
        os.environ[name] = str(case.workers)
    from importlib import import_module

    row = next(row for row in import_module(f"bench.{suite}").ROWS if row.key == row_key)
    contestant = next(one for one in row.contestants if one.label == label)
    while (command := pipe.recv()) != "stop":
        try:
            pipe.send(_turn(contestant, case, row, compare=command == "compare"))
        except BaseException as error:  # whatever a peer raises is its result
            traceback.print_exc()
            pipe.send({"failed": _reason(error, case)})


def _turn(contestant: Contestant, case: Case, row: Any, *, compare: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    with contestant.session(case) as work, children_memory(watched=row.tree) as children:
        gc.collect()
        if row.warm:
            warm_memory(WARM_IMAGES * case.size**2 * 2)
        reset_peak()
        answer["before"] = rss_now()
        already = bytes_read()
        start = time.perf_counter()
        result = work()
        answer["seconds"] = time.perf_counter() - start
        if already is not None:
            answer["read"] = (bytes_read() or already) - already
        peak = rss_peak()
        answer["peak"] = None if peak is None else peak + max(children)
    if isinstance(result, Written):
        answer["size"] = result.size()
        answer["numbers"] = dict(result.numbers)
    if compare:
        answer["digest"] = digest(result)
    if isinstance(result, Written):
        result.remove()
    return answer


def _reason(error: BaseException, case: Case) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {error.name}"
    text = " ".join(str(error).split()) or "no message"
    # without the run's folder, and without the spec that TensorStore appends
    text = text.replace(f"{case.folder}{os.sep}", "").partition(" [")[0]
    return f"{type(error).__name__}: {text}"[:200]


# ----------------------------------------------------------------------------- the parent's side


class Child:
    """A contestant's process, seen from the parent."""

    def __init__(self, suite: str, row: Any, contestant: Contestant, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        log = case.folder / "children.log"
        self._process = context.Process(
            target=_serve,
            args=(theirs, suite, row.key, contestant.label, case, str(log)),
            daemon=not row.tree,  # a daemon may not have children
        )
        self._process.start()
        theirs.close()

    def turn(self, command: str, timeout: float) -> dict[str, Any]:
        """Let it work once; an abort or a hang comes back as a failure."""
        try:
            self._pipe.send(command)
            if not self._pipe.poll(timeout):
                self.stop(kill=True)
                return {"failed": f"no answer in {timeout:.0f} s"}
            answer: dict[str, Any] = self._pipe.recv()
            return answer
        except (EOFError, OSError):
            self._process.join(10)
            return {"failed": f"the process died with exit code {self._process.exitcode}"}

    def stop(self, *, kill: bool = False) -> None:
        """End the process, by force if it does not go by itself."""
        if not kill:
            with contextlib.suppress(OSError):
                self._pipe.send("stop")
            self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


def alternate(
    suite: str,
    row: Any,
    case: Case,
    repeats: int,
    *,
    timeout: float,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Outcome]:
    """Measure all contestants of a row by turns.

    Returns
    -------
    dict
        An outcome per label, in the row's order; times are per operation (``row.per``).
    """
    outcomes = {one.label: Outcome(one.label, one.column, one.counts) for one in row.contestants}
    children: dict[str, Child] = {}
    try:
        for turn in range(1 if row.once else repeats + 1):
            for one in row.contestants:
                outcome = outcomes[one.label]
                if outcome.out:
                    continue
                if one.label not in children:
                    children[one.label] = Child(suite, row, one, case)
                answer = children[one.label].turn("time" if turn else "compare", timeout)
                fine = _note(outcome, answer, timed=row.once or turn > 0, per=row.per(case))
                if not fine:
                    say(f"  {one.label}: failed: {outcome.failed}")
                if not fine or row.fresh:
                    # a fresh process per turn is what makes an opening cold
                    children.pop(one.label).stop(kill=not fine)
            if turn == 0:
                _judge(outcomes, row.expected(case))
    finally:
        for child in children.values():
            child.stop()
    return outcomes


def _note(outcome: Outcome, answer: dict[str, Any], *, timed: bool, per: int) -> bool:
    """Enter a turn's answer; False if it was a failure."""
    if "failed" in answer:
        outcome.failed = answer["failed"]
        return False
    if timed:
        outcome.times.append(answer["seconds"] / per)
        for name, number in answer.get("numbers", {}).items():
            outcome.numbers.setdefault(name, []).append(number)
        if "read" in answer:  # the least of all turns: the first one also imports
            reads = answer["read"] // per
            outcome.read = reads if outcome.read is None else min(reads, outcome.read)
    # memory and pixels are those of the first turn, before caches and pools have grown
    if outcome.peak is None:
        outcome.peak, outcome.before = answer["peak"], answer["before"]
        outcome.size = answer.get("size")
        outcome.digest = answer.get("digest")
    return True


def _judge(outcomes: dict[str, Outcome], expected: str | dict[str, str] | None) -> None:
    """Strike out whoever has other pixels than the row's truth."""
    for outcome in outcomes.values():
        truth = expected.get(outcome.label) if isinstance(expected, dict) else expected
        if not outcome.out and outcome.digest not in (None, truth) and truth is not None:
            outcome.failed = "wrong pixels"


def quicker(case: Case) -> Case:
    """The same case, small enough for a minute: to see that everything runs, not for numbers."""
    return replace(case, size=min(case.size, 2048), copy_gb=1.0, regions=100, planes=2000)
