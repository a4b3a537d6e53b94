"""A camera that runs for hours: ``python -m bench soak --minutes 15 --gb 100 --folder F``.

Streams one output after the other, OME-TIFF and OME-Zarr by turns, as fast as they take the frames
or at a given rate. Each is compared with what the camera gave, then removed, so that a small disk
(or /dev/shm) will do. Resident memory is sampled every second; its slope is that of a straight
line through all samples after the first outputs, when everything is loaded. It ends when both the
time and the amount are reached.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import images
from bench.measure import MIB, Case, rss_now
from bench.report import usable_cores
from bench.stream_work import (
    OURS,
    RING,
    TIFF,
    ZARR,
    Job,
    check,
    forget,
    in_turn,
    ring_name,
    said,
    settings,
)
from bench.stream_work import frames as stream_frames

HOUR = 3600.0
FORMATS = {"both": (TIFF, ZARR), "tiff": (TIFF, TIFF), "zarr": (ZARR, ZARR)}
SETTLED = 24  # outputs after which everything is loaded: one of every kind was there


@dataclass(slots=True)
class Output:
    """One output: when it was begun and done, how long appends took, what is wrong with it.

    ``waiting`` is the most frames that waited at once; ``rest``, ``files`` and ``threads`` are the
    memory and what is open when the output is gone.
    """

    job: Job
    begun: float
    appended: float = 0.0
    done: float = 0.0
    longest: float = 0.0
    dropped: int = 0
    waiting: int = 0
    rest: int = 0
    files: int = 0
    threads: int = 0
    wrong: str = ""


@dataclass(slots=True)
class Memory:
    """Samples (seconds since the start, bytes) of this process's resident memory."""

    samples: list[tuple[float, int]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def watch(self, start: float) -> None:
        """Take a sample every second until told to stop."""
        while not self._stop.wait(1.0):
            self.samples.append((time.perf_counter() - start, rss_now() or 0))

    def stop(self) -> None:
        """End the watching."""
        self._stop.set()


def main(argv: list[str] | None = None) -> int:
    """Run, print the table, and return 0 if no frame was lost or wrong."""
    options = _parser().parse_args(argv)
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bioio-soak-", dir=folder) as name:
        case = Case(Path(name), workers=options.workers)
        images.ensure(case, (ring_name(options.side),))
        outputs, memory = _run(options, case)
    text = _table(options, outputs, memory)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return int(any(one.wrong or one.dropped for one in outputs))


def _run(options: argparse.Namespace, case: Case) -> tuple[list[Output], Memory]:
    import numpy as np

    ring = list(np.load(case.file(ring_name(options.side))))
    frames = _frames_each(options, case)
    memory, outputs, start = Memory(), [], time.perf_counter()
    watcher = threading.Thread(target=memory.watch, args=(start,), daemon=True)
    watcher.start()
    checker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        while True:
            passed, written = time.perf_counter() - start, _bytes(outputs)
            if passed >= options.minutes * 60 and written >= options.gb * 1e9:
                break
            one = Output(_job(options, len(outputs), frames), passed)
            outputs.append(one)
            _stream(one, case, ring, start, checker)
            _say(one, written, len(outputs))
    except Exception as error:  # the table shows what was before it
        one.wrong, one.dropped = f"{type(error).__name__}: {error}", one.job.frames
        one.done = time.perf_counter() - start
    finally:
        checker.shutdown()
        memory.stop()
        watcher.join()
    return outputs, memory


def _frames_each(options: argparse.Namespace, case: Case) -> int:
    """Frames of an output: as large as asked for, and no larger than half of what is free."""
    size = options.side**2 * 2
    free = shutil.disk_usage(case.folder).free
    return max(RING, int(min(options.each_gb * 1e9, free / 2)) // size)


def _job(options: argparse.Namespace, number: int, frames: int) -> Job:
    """OME-TIFF and OME-Zarr by turns; every third pair with metadata, every fourth compressed."""
    ending = FORMATS[options.format][number % 2]
    pair = number // 2
    zstd = options.mixed and pair % 4 == 3
    return Job(
        ending,
        side=options.side,
        frames=frames,
        unbounded=pair % 2 == 1,
        metadata=options.mixed and pair % 3 == 2,
        compression="zstd" if zstd else None,
        fps=options.fps,
    )


def _stream(found: Output, case: Case, ring: list[Any], start: float, checker: Executor) -> None:
    """Stream an output, compare it, remove it."""
    from bioio_tk import create_stream

    job = found.job
    path = case.output(job.ending)
    stream = create_stream(settings(OURS, job, case, path))
    begun = time.perf_counter()
    for n in range(job.frames):
        if job.fps:
            time.sleep(max(0.0, begun + n / job.fps - time.perf_counter()))
        before = time.perf_counter()
        stream.append(ring[n % RING], frame_metadata=said(n) if job.metadata else None)
        found.longest = max(found.longest, time.perf_counter() - before)
    found.appended = time.perf_counter() - start
    stream.close()
    found.done = time.perf_counter() - start
    found.waiting = stream.stats.queue_high_water
    found.dropped = job.frames - stream.stats.frames_stored
    try:
        checker.submit(_compare, path, job, case).result()
    except Exception as error:  # what is wrong with one output is told in the table
        found.wrong = f"{type(error).__name__}: {error}"
    forget(path)
    del stream
    gc.collect()
    found.rest = rss_now() or 0
    found.files = len(list(Path("/proc/self/fd").iterdir()))
    found.threads = threading.active_count()


def _compare(path: Path, job: Job, case: Case) -> None:
    """Raise if an output is wrong; in a process of its own, as readers keep memory of theirs."""
    ring = stream_frames(case, job.side)
    check(path, job, job.frames, in_turn(ring))
    left = [one.name for one in path.parent.iterdir() if one.name.startswith(path.name + ".")]
    if left:
        raise ValueError(f"left beside the output: {', '.join(left)}")


def _bytes(outputs: list[Output]) -> int:
    return sum(one.job.frames * one.job.frame_bytes for one in outputs)


def _say(one: Output, written: int, number: int) -> None:
    size = one.job.frames * one.job.frame_bytes
    speed = size / (one.done - one.begun) / 1e6
    state = one.wrong or "right"
    print(
        f"{number:4} {one.job.ending:10} {(written + size) / 1e9:8.1f} GB in all, {speed:6.0f} "
        f"MB/s, {(rss_now() or 0) / MIB:5.0f} MB, {state}",
        file=sys.stderr,
        flush=True,
    )


# ----------------------------------------------------------------------------------- the report


def _table(options: argparse.Namespace, outputs: list[Output], memory: Memory) -> str:
    written, lasted = _bytes(outputs), outputs[-1].done
    rate = f"{options.fps:g} frames a second" if options.fps else "as fast as they were taken"
    lines = [
        (
            f"{written / 1e9:.1f} GB in {len(outputs)} outputs of {outputs[0].job.frames:,} frames "
            f"of {options.side}² uint16, {rate}, {lasted / 60:.1f} minutes, {usable_cores()} "
            f"cores, {options.workers} workers."
        ),
        "",
        "| format | outputs | frames | GB | MB/s | longest append ms | waited | dropped | wrong |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for ending in (TIFF, ZARR):
        lines.append(_line(ending, [one for one in outputs if one.job.ending == ending]))
    lines += ["", *_flatness(outputs, memory)]
    lines += [f"- output {n}: {one.wrong}" for n, one in enumerate(outputs) if one.wrong]
    return "\n".join(lines)


def _line(ending: str, outputs: list[Output]) -> str:
    if not outputs:
        return f"| {ending} | 0 | | | | | | | |"
    speeds = [one.job.frames * one.job.frame_bytes / (one.done - one.begun) for one in outputs]
    cells = (
        ending,
        f"{len(outputs)}",
        f"{sum(one.job.frames for one in outputs):,}",
        f"{_bytes(outputs) / 1e9:.1f}",
        f"{statistics.median(speeds) / 1e6:,.0f}",
        f"{max(one.longest for one in outputs) * 1e3:.1f}",
        f"{max(one.waiting for one in outputs)} frames",
        f"{sum(one.dropped for one in outputs)}",
        f"{sum(bool(one.wrong) for one in outputs)}",
    )
    return "| " + " | ".join(cells) + " |"


def _flatness(outputs: list[Output], memory: Memory) -> list[str]:
    """Memory by tenths of the run, its slope once everything is loaded, and what is left open."""
    later = outputs[SETTLED:]
    samples = [one for one in memory.samples if later and one[0] >= later[0].begun]
    if len(later) < 2 or len(samples) < 20:
        return ["The run was too short for a slope of its memory."]
    sizes = [size / MIB for _, size in samples]
    parts = [sizes[i * len(sizes) // 10 : (i + 1) * len(sizes) // 10] for i in range(10)]
    # between two outputs nothing waits: what leaks shows best there
    resting = [(one.done, one.rest) for one in later]
    tenths = ", ".join(f"{statistics.median(part):.0f}" for part in parts)
    return [
        (
            f"Resident memory in MB, medians of tenths after the first {SETTLED} outputs: "
            f"{tenths}; peak of the run {max(size for _, size in memory.samples) / MIB:.0f}. Slope "
            f"{_slope(samples):+.1f} MB per hour of {len(samples)} samples, {_slope(resting):+.1f} "
            f"between outputs, from {later[0].rest / MIB:.1f} MB to {later[-1].rest / MIB:.1f} MB."
        ),
        "",
        (
            f"Open after an output: {_range([one.files for one in later])} files, "
            f"{_range([one.threads for one in later])} threads."
        ),
        "",
    ]


def _slope(samples: list[tuple[float, int]]) -> float:
    """MB per hour of samples (seconds, bytes)."""
    if len(samples) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*samples, strict=True)).slope * HOUR / MIB


def _range(counts: list[int]) -> str:
    return f"{min(counts)} to {max(counts)}, at last {counts[-1]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15, help="run at least so long")
    parser.add_argument("--gb", type=float, default=100, help="write at least so much")
    parser.add_argument("--each-gb", type=float, default=2, help="size of one output")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--side", type=int, default=2048, choices=(512, 1024, 2048))
    parser.add_argument("--fps", type=float, default=0, help="of the camera; 0: as fast as it goes")
    parser.add_argument("--format", choices=FORMATS, default="both")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument(
        "--mixed", action="store_true", help="some outputs compressed, some with metadata"
    )
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    return parser
