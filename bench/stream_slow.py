"""A camera that is faster than the disk: memory, and what append does about it.

A slow disk is made by a small C library that is loaded before the C library into a process of the
stream's own (LD_PRELOAD): whoever writes, be it Python, C++ or Rust, waits as long as a disk of
that speed would make it wait. Without a C compiler these rows are not measured.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import stream_work
from bench.measure import MIB, Case, Session, Work, Written, reset_peak, rss_now, rss_peak
from bench.stream_work import FULL, OURS, RING, Job, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOWER = 3  # times that the disk is slower than the camera
SOURCE = Path(__file__).with_name("slow_disk.c")


def behind(peer: Peer, job: Job, seconds: float, **options: Any) -> Session:
    """A camera of ``job.fps``, for so long, and a disk at a third of its rate.

    The options are those that only our settings have.
    """

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        lasting = seconds if case.size >= FULL else seconds / 10
        rate = job.fps * job.frame_bytes
        path = stream_work.output(job, case)
        if options.get("backpressure") == "spill":
            options["spill_dir"] = str(case.folder)  # which is not slow
        library = _library(case)
        stream_work.need(path.parent, round(rate * lasting))
        told = {"peer": asdict(peer), "job": asdict(job)}
        told |= {"folder": str(case.folder), "size": case.size, "workers": case.workers}
        told |= {"path": str(path), "seconds": lasting, "options": options}
        environment = os.environ | {
            "LD_PRELOAD": str(library),
            "SLOW_DISK_FOLDER": str(path.parent),
            "SLOW_DISK_RATE": str(rate / SLOWER),
        }

        def work() -> Written:
            command = [sys.executable, "-m", "bench.stream_slow", json.dumps(told)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(done.stderr.strip().rpartition("\n")[2] or "it was killed")
            numbers = json.loads(done.stdout.strip().rpartition("\n")[2])
            return Written(path, numbers=numbers, checked=True)

        try:
            yield work
        except BaseException:
            stream_work.forget(path)
            raise

    return session


def _library(case: Case) -> Path:
    """The compiled slow disk."""
    library = case.file("slow_disk.so")
    if not library.exists():
        compiler = shutil.which("cc")
        if compiler is None:
            raise OSError("there is no C compiler, which the slow disk needs")
        made = case.output(".so")
        flags = ["-O2", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, "-o", made, SOURCE, "-ldl"], check=True)
        made.rename(library)
    return library


def _run(told: dict[str, Any]) -> dict[str, float]:
    """Body of the slow process."""
    peer, job = Peer(**told["peer"]), Job(**told["job"])
    case = Case(Path(told["folder"]), size=told["size"], workers=told["workers"])
    path, ring = Path(told["path"]), stream_work.frames(case, job.side)
    count = round(told["seconds"] * job.fps)
    if peer == OURS:  # stops when the time is over, at whatever frame that is
        lasting, job = told["seconds"], replace(job, unbounded=True)
    else:
        lasting, job = math.inf, replace(job, frames=count)
        case = replace(case, size=FULL)
    plan = stream_work.settings(peer, job, case, path, **told["options"])
    stream_work.warm_up(peer, job, case)
    reset_peak()
    before = _with_frames_of_the_camera(ring)
    stream = import_module(peer.package).create_stream(plan)
    run = stream_work.pace(
        stream, ring, job.fps, count, seconds=lasting, fresh=True, refusal=_refusal(peer)
    )
    begun = time.perf_counter()
    stream.close()
    closing = time.perf_counter() - begun
    grown = ((rss_peak() or before) - before) / MIB
    stream_work.check(path, job, len(run.kept), lambda n: ring[run.kept[n] % RING])
    return {
        "MB grown": grown,
        **stream_work.spread(run.took),
        "frames": len(run.kept),
        "late frames": run.late,
        "refused frames": len(run.took) - len(run.kept),
        "s to close": closing,
    }


def _with_frames_of_the_camera(ring: list[Any]) -> int:
    """Resident memory while the camera holds two frames: these are not the stream's."""
    frames = [frame.copy() for frame in ring[:2]]
    before = rss_now() or 0
    del frames
    return before


def _refusal(peer: Peer) -> tuple[type[Exception], ...]:
    """What a stream raises when it has no room for a frame; ome-writers knows no such thing."""
    if peer != OURS:
        return ()
    from bioio_tk.errors import OverrunError

    return (OverrunError,)


if __name__ == "__main__":
    print(json.dumps(_run(json.loads(sys.argv[1]))))
