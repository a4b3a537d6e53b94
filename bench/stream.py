"""The rows of ``python -m bench stream``: a camera's frames, streamed to OME-Zarr and OME-TIFF.

ome-writers has the same API as ours; it takes part with each of its engines. One thread that
writes the same frames into one file is the ceiling. What is written is compared after every turn:
the number of frames, and some of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bench.goals import (
    OURS,
    faster_than,
    number_against,
    number_at_least,
    number_at_most,
    share_of,
)
from bench.measure import Contestant
from bench.rows import Row
from bench.stream_slow import SLOWER, behind
from bench.stream_work import (
    OURS as OUR,
)
from bench.stream_work import (
    PLATE_SIDE,
    TIFF,
    ZARR,
    Job,
    first,
    paced,
    peers,
    plain_pwrite,
    plate,
    ring_name,
    streaming,
)

if TYPE_CHECKING:
    from bench.goals import Goal
    from bench.measure import Session

PEERS, PWRITE = "ome-writers", "pwrite"
COLUMNS = (OURS, PEERS, PWRITE)
PACKAGES = (
    "bioio-tk",
    "ome-writers",
    "tensorstore",
    "acquire-zarr",
    "zarr",
    "zarrs",
    "tifffile",
    "imagecodecs",
    "numcodecs",
    "numpy",
)
ABOUT = (
    "Frames are uint16, of a camera's noise; there are sixteen, which come in turn. The time is "
    "that of opening the stream, of all frames and of closing it. In memory: /dev/shm; on disk: "
    "the run's folder, whose earlier writes are down before a turn begins; synced: the time ends "
    "when everything is on the disk (syncfs), else what the system still holds back is nobody's. "
    "pwrite: one thread writes the same frames into one file. ome-writers keeps references to "
    "frames that wait, ours copies them. After each turn the number of frames is compared, and "
    "the first two, the middle one and the last two. × written: bytes handed to the system over "
    "those of the pixels."
)

LARGE, LARGE_ON_DISK, MANY = 60, 100, 20_000
PLACES = {  # ending of a row's name: words, and where it is written
    "shm": ("in memory", {}),
    "disk": ("on disk", {"disk": True, "frames": LARGE_ON_DISK}),
    "sync": ("on disk, synced", {"disk": True, "sync": True, "frames": LARGE_ON_DISK}),
}
SHARDED = {"chunk": 512, "shard": 4}
SAME = "ours, their level"
BUDGET = 256  # MB of frames that may wait


def _contestants(job: Job, theirs: dict[str, Session]) -> tuple[Contestant, ...]:
    return (
        Contestant(OURS, OURS, streaming(OUR, job)),
        *(Contestant(name, PEERS, session) for name, session in theirs.items()),
    )


def _engines(job: Job) -> dict[str, Session]:
    return {name: streaming(peer, job) for name, peer in peers(job.ending).items()}


def _row(key: str, title: str, job: Job, goals: tuple[Goal, ...], **more: object) -> Row:
    return Row(
        key,
        title,
        (
            *_contestants(job, _engines(job)),
            Contestant(PWRITE, PWRITE, plain_pwrite(replace(job, compression=None))),
        ),
        goals,
        files=(ring_name(job.side),),
        number="MB/s",
        **more,  # type: ignore[arg-type]
    )


def _raw_rows() -> list[Row]:
    """Uncompressed: as fast as files can be written."""
    rows = []
    kinds: tuple[tuple[str, str, Job, tuple[Goal, ...]], ...] = (
        (
            "zarr-frames",
            "OME-Zarr, a chunk per frame",
            Job(ZARR),
            (faster_than(PEERS, 1), share_of(PWRITE, 0.8, PWRITE)),
        ),
        (
            "zarr-shards",
            "OME-Zarr, chunks of 512² in shards of 4 × 4",
            Job(ZARR, **SHARDED),
            (faster_than(PEERS, 1), share_of(PWRITE, 0.95, PWRITE)),
        ),
        ("tiff", "OME-TIFF", Job(TIFF), (faster_than(PEERS, 2), share_of(PWRITE, 0.8, PWRITE))),
    )
    for key, title, job, goals in kinds:
        for place, (words, where) in PLACES.items():
            rows.append(
                _row(f"{key}-{place}", f"{title}, 2048², {words}", replace(job, **where), goals)
            )
    small = {"side": 512, "frames": 1000}
    for key, title, job, goals in (
        ("zarr-512", "OME-Zarr, a chunk per frame", Job(ZARR, **small), kinds[0][3]),
        ("tiff-512", "OME-TIFF", Job(TIFF, **small), kinds[2][3]),
    ):
        for place in ("shm", "disk"):
            words, where = PLACES[place]
            here = replace(job, **(where | small))
            rows.append(_row(f"{key}-{place}", f"{title}, 512², {words}", here, goals))
    return rows


def _compressed_rows() -> list[Row]:
    """Compressed in memory: the disk is not what they wait for."""
    rows = []
    for codec, level in (("zstd", 3), ("blosc-zstd", 3), ("blosc-lz4", 5)):  # theirs
        for key, words, kind in (
            ("frames", "a chunk per frame", {}),
            ("shards", "chunks of 512² in shards of 4 × 4", SHARDED),
        ):
            job = Job(ZARR, compression=codec, **kind)
            theirs = _engines(job)
            if codec == "zstd":
                del theirs["acquire-zarr"]  # which has Blosc only
            rows.append(
                Row(
                    f"{codec}-{key}",
                    f"OME-Zarr, {codec}, {words}",
                    (
                        *_contestants(job, theirs),
                        Contestant(SAME, "", streaming(OUR, replace(job, level=level))),
                    ),
                    (faster_than(PEERS, 2),),
                    files=(ring_name(job.side),),
                    repeats=3,
                    number="MB/s",
                )
            )
    job = Job(TIFF)
    lzw = {"tifffile, LZW": streaming(peers(TIFF)["tifffile"], replace(job, compression="lzw"))}
    for codec, least in (("deflate", 5), ("lzw", 2), ("zstd", 2)):
        rows.append(
            Row(
                f"tiff-{codec}",
                f"OME-TIFF, {codec}",
                _contestants(replace(job, compression=codec), lzw),
                (faster_than(PEERS, least),),
                files=(ring_name(job.side),),
                repeats=2,
                number="MB/s",
                extra=codec == "lzw",
                note="ome-writers compresses TIFF with LZW, and nothing else",
            )
        )
    return rows


def _time_shards() -> Row:
    job = Job(ZARR, side=1024, frames=128, shard_t=16)
    return Row(
        "shards-t",
        "OME-Zarr, a chunk per frame of 1024², 16 frames in a shard: bytes written",
        _contestants(job, _engines(job)),
        (number_at_most("× written", 1.05, "× written"), faster_than(PEERS, 1)),
        files=(ring_name(job.side),),
        repeats=3,
        number="× written",
    )


def _many_rows() -> list[Row]:
    """Small frames of which nobody knows how many there will be."""
    rows = []
    for ending, key, words, kind in (
        (TIFF, "tiff", "OME-TIFF", {}),
        (ZARR, "zarr", "OME-Zarr, a file per frame", {}),
        (ZARR, "zarr-shards", "OME-Zarr, 256 frames in a shard", {"shard_t": 256}),
    ):
        for metadata in (False, True):
            job = Job(ending, side=64, frames=MANY, unbounded=True, metadata=metadata, **kind)
            rows.append(_many(key + "-meta" * metadata, words, job))
    return rows


def _many(key: str, words: str, job: Job) -> Row:
    fewer = "ours, 20,000"
    # tensorstore writes the shard again for every frame, acquire-zarr may need 20 ms for one
    times = {"tensorstore": 0.1 if job.shard_t else 1, "acquire-zarr": 0.1, "tifffile": 1}
    names = ("tifffile",) if job.ending == TIFF else ("tensorstore", "acquire-zarr")
    theirs = {
        f"{name}, {MANY * times[name]:,.0f}": streaming(peer, job, times[name])
        for name, peer in peers(job.ending, *names).items()
    }
    return Row(
        f"many-{key}",
        f"{words}, 64², unbounded, 100,000 frames" + (" with metadata" if job.metadata else ""),
        (
            Contestant(OURS, OURS, streaming(OUR, job, 5)),
            Contestant(fewer, "", streaming(OUR, job)),
            *(Contestant(name, PEERS, session) for name, session in theirs.items()),
        ),
        (
            number_at_least("frames/s", 20_000, "frames/s"),
            number_against("frames/s", fewer, 0.9, "the rate of 20,000 frames"),
        ),
        files=(ring_name(job.side),),
        repeats=2,
        number="frames/s",
    )


def _plate_rows() -> list[Row]:
    rows = []
    for ending, key, words in ((TIFF, "tiff", "OME-TIFF"), (ZARR, "zarr", "OME-Zarr")):
        job = Job(ending, side=PLATE_SIDE)
        names = ("tifffile",) if ending == TIFF else ("tensorstore", "acquire-zarr")
        rows.append(
            Row(
                f"plate-{key}",
                f"{words}, a plate of 384 wells, two frames of 64² in each",
                (
                    Contestant(OURS, OURS, plate(OUR, job)),
                    *(
                        Contestant(name, PEERS, plate(peer, job))
                        for name, peer in peers(ending, *names).items()
                    ),
                ),
                (
                    number_at_most("s to open", 1, "s to open"),
                    number_at_most("s to close", 2, "s to close"),
                ),
                files=(ring_name(PLATE_SIDE),),
                repeats=1 if ending == TIFF else 3,
                once=ending == TIFF,
            )
        )
    return rows


def _paced_rows() -> list[Row]:
    """A camera of 100 frames a second, and a disk that is fast enough."""
    rows = []
    for ending, key, words in ((TIFF, "tiff", "OME-TIFF"), (ZARR, "zarr", "OME-Zarr")):
        for place, side, count, where in (
            ("shm", 1024, 1000, "in memory"),
            ("disk", 1024, 1000, "on disk"),
            ("large", 2048, 200, "in memory"),
        ):
            job = Job(ending, side=side, frames=count, fps=100, disk=place == "disk")
            names = ("tifffile",) if ending == TIFF else ("tensorstore", "acquire-zarr")
            rows.append(
                Row(
                    f"pace-{key}-{place}",
                    f"{words}, {count} frames of {side}², 100 a second, {where}: p99.9 of append",
                    (
                        Contestant(OURS, OURS, paced(OUR, job)),
                        *(
                            Contestant(name, PEERS, paced(peer, job))
                            for name, peer in peers(ending, *names).items()
                        ),
                    ),
                    (number_at_most("ms p99.9", 10, "ms p99.9"),),
                    files=(ring_name(side),),
                    repeats=1,
                    once=True,
                    number="ms p99.9",
                    note=(
                        "memory is at hand beforehand, as the first touch of pages may be slower "
                        "than such a camera where the machine is a virtual one"
                    ),
                )
            )
    return rows


def _behind_rows() -> list[Row]:
    """A camera of 30 frames a second, and a disk of a third of its rate."""
    rows = []
    for ending, key, words in ((TIFF, "tiff", "OME-TIFF"), (ZARR, "zarr", "OME-Zarr")):
        job = Job(ending, fps=30)
        for policy in ("block", "raise", "spill"):
            names = () if policy != "block" else peers(ending, "tensorstore", "acquire-zarr")
            if ending == TIFF and policy == "block":
                names = peers(TIFF)
            rows.append(
                Row(
                    f"behind-{key}-{policy}",
                    f"{words}, 60 s, the disk {SLOWER} times slower, {policy}: memory",
                    (
                        Contestant(OURS, OURS, behind(OUR, job, 60, **_policy(policy))),
                        *(
                            Contestant(f"{name}, 10 s", PEERS, behind(peers(ending)[name], job, 10))
                            for name in names
                        ),
                    ),
                    (number_at_most("MB grown", round(1.02 * BUDGET), "MB grown"),),
                    files=(ring_name(job.side),),
                    once=True,
                    number="MB grown",
                    note=(
                        f"how much the process grows; {BUDGET} MB of frames may wait, the rest is "
                        "for all else. The disk is /dev/shm, slowed down for the process by a "
                        "library that makes write() and its kin wait; with spill the rest waits "
                        "in a temporary file that is not slow. "
                        "ome-writers has no bound: it takes part for 10 s."
                    ),
                )
            )
    return rows


def _policy(policy: str) -> dict[str, object]:
    """How ours is told what to do when the disk is slower."""
    return {"backpressure": policy, "max_memory_bytes": BUDGET << 20}


def _start_rows() -> list[Row]:
    rows = []
    for ending, key, words in ((TIFF, "tiff", "OME-TIFF"), (ZARR, "zarr", "OME-Zarr")):
        job = Job(ending, side=512, frames=10)
        rows += [
            Row(
                f"first-{key}",
                f"{words}: import, open a process' first stream, ten frames of 512²",
                (
                    Contestant(OURS, OURS, first(OUR, job)),
                    *(Contestant(name, PEERS, first(p, job)) for name, p in peers(ending).items()),
                ),
                (faster_than(PEERS, 1),),
                files=(ring_name(512),),
                fresh=True,
                warm=False,
                extra=True,
            ),
            Row(
                f"short-{key}",
                f"{words}: ten frames of 512², any later stream",
                _contestants(job, _engines(job)),
                (faster_than(PEERS, 1),),
                files=(ring_name(512),),
                warm=False,
                extra=True,
            ),
        ]
    return rows


ROWS: tuple[Row, ...] = (
    *_raw_rows(),
    *_compressed_rows(),
    _time_shards(),
    *_many_rows(),
    *_plate_rows(),
    *_paced_rows(),
    *_behind_rows(),
    *_start_rows(),
)
