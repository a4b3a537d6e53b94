"""The rows of ``python -m bench bdv``: stacks of a light-sheet microscope, to BigDataViewer's HDF5.

npy2bdv is what its users have; code written for it also runs on ``compat.npy2bdv``, which takes
part as a contestant of its own. Plain h5py with the same chunks is the ceiling where nothing is
compressed. Everything that is written is read with h5py and compared after every turn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bench import bdv_work as do
from bench.bdv_work import COMPAT, ONE, SHAPE, STACK, THEIRS, Job, dataset_name
from bench.goals import (
    OURS,
    faster_than,
    grown_below,
    no_larger_than,
    reads_no_more_than,
    share_of,
)
from bench.measure import Contestant
from bench.rows import Row

if TYPE_CHECKING:
    from bench.goals import Goal

PLAINLY = "h5py: data.view(int16) into create_dataset, and a flush after each view"
FACE, PEER, PLAIN = "compat.npy2bdv", "npy2bdv", "h5py"
COLUMNS = (OURS, FACE, PEER, PLAIN)
PACKAGES = ("bioio-tk", "npy2bdv", "h5py", "scikit-image", "isal", "imagecodecs", "numpy")
ABOUT = (
    "Stacks are uint16, a camera's photon noise over soft blobs, of 32 × 1024 × 2048 pixels where "
    "nothing else is said; the time is that of opening the writer, of all views, of the XML and "
    "of closing. Blocks, resolutions and compression are npy2bdv's in every contestant, gzip as "
    "each has it by itself (npy2bdv and h5py: level 4, ours: level 1 after a byte shuffle). ours "
    "and compat.npy2bdv put each view into the file and the XML as it comes, npy2bdv writes the "
    "XML at the end, h5py none (it flushes after every view). Output goes to the run's folder, "
    "whose earlier writes are down before a turn begins, in the rows that say so to /dev/shm. "
    "After each turn h5py reads all views; of the last one the smaller resolutions are compared, "
    "too, where npy2bdv may be one less, as it cuts means off."
)

CAMERA = Job(grid=(("time", 2),), shape=(50, 2048, 2048))
TWO = Job()
DEEP = "ours, 4 times as deep"
DEFAULTS = "ours, its own defaults"
LATER = (((2, 4, 4), (8, 64, 64)), ((4, 8, 8), (8, 64, 64)))
PYRAMID = (ONE, (2, 4, 4), (4, 8, 8))


def _contestants(job: Job, timed: str = "all") -> tuple[Contestant, ...]:
    return (
        Contestant(OURS, OURS, do.writing(do.OURS, job, timed=timed)),
        Contestant(FACE, FACE, do.writing(COMPAT, job, timed=timed)),
        Contestant(PEER, PEER, do.writing(THEIRS, job, timed=timed)),
        Contestant(PLAIN, PLAIN, do.plain(job, timed=timed)),
    )


def _row(key: str, title: str, job: Job, *goals: Goal, repeats: int = 5, note: str = "") -> Row:
    return Row(
        key,
        title,
        _contestants(job),
        goals,
        files=(STACK,),
        repeats=repeats,
        note=note,
        extra=job.memory,
    )


def _raw_rows() -> list[Row]:
    goals = (faster_than(PEER, 2.5), share_of(PLAIN, 0.9, PLAIN))
    title = "`append_view`, raw, 2 views of 50 × 2048 × 2048"
    return [
        _row("raw", title, CAMERA, *goals, note=PLAINLY),
        replace(
            _row("raw-cold", f"{title}, memory as it comes", replace(CAMERA, cold=True), *goals),
            warm=False,
            extra=True,
            note=(
                "in the other rows as much memory is at hand as is written, since in a virtual "
                "machine its first touch may cost more than all else"
            ),
        ),
        _row("raw-shm", f"{title}, in memory", replace(CAMERA, memory=True), *goals),
    ]


def _gzip_row() -> Row:
    job = replace(TWO, compression="gzip")
    goals = (faster_than(PEER, 5), no_larger_than(PEER))
    return _row("gzip", "`append_view`, gzip, 2 views", job, *goals, repeats=3)


def _levels_rows() -> list[Row]:
    job = replace(TWO, factors=PYRAMID)
    note = "h5py: sums of integers with NumPy"
    goal = faster_than(PEER, 4)
    return [
        _row("levels", "raw with 3 levels, 2 views", job, goal, note=note),
        _row(
            "levels-shm", "raw with 3 levels, 2 views, in memory", replace(job, memory=True), goal
        ),
    ]


def _plane_rows() -> list[Row]:
    deep = replace(TWO, grid=(("time", 1),), planes=True)
    return [
        _row(
            "planes-gzip",
            "by plane, gzip, default blocks (4, 256, 256)",
            replace(deep, compression="gzip", shape=(16, *SHAPE[1:])),
            faster_than(PEER, 10),
            repeats=3,
            note="one view of 16 planes; h5py has a chunk cache of 256 MiB",
        ),
        _row(
            "planes-levels",
            "by plane with 2 more levels, raw (example 6a)",
            replace(
                deep,
                grid=TWO.grid,
                factors=(ONE, (1, 4, 4), (1, 8, 8)),
                blocks=((1, 128, 128),),
            ),
            faster_than(PEER, 2.5),
        ),
    ]


def _later_rows() -> list[Row]:
    job = replace(TWO, later=LATER)
    deep = replace(job, grid=(("time", 1),), shape=(4 * SHAPE[0], *SHAPE[1:]))
    return [
        _row(
            "later",
            "raw, then `create_pyramids` with gzip (example 5.2)",
            job,
            faster_than(PEER, 3),
            grown_below(64),
            repeats=3,
        ),
        Row(
            "later-only",
            "`create_pyramids` alone (example 5.2): time and memory",
            (
                *_contestants(job, "later"),
                Contestant(DEEP, "", do.writing(do.OURS, deep, timed="later")),
            ),
            (faster_than(PEER, 3), grown_below(64, DEEP)),
            files=(STACK,),
            repeats=3,
            note="extra memory: of the larger of two views of 134 MB and one of 537 MB",
        ),
    ]


def _read_rows() -> list[Row]:
    rows = []
    for kind, words in ((None, "raw"), ("gzip", "gzip")):
        rows.append(
            Row(
                f"read-{words}",
                f"`read_view`, {words}",
                (
                    Contestant(OURS, OURS, do.reading(do.OURS, kind)),
                    Contestant(FACE, FACE, do.reading(COMPAT, kind)),
                    Contestant(PEER, PEER, do.reading(THEIRS, kind)),
                    Contestant(PLAIN, PLAIN, do.plain_reading(kind)),
                ),
                (faster_than(PEER, 2),),
                files=(STACK, dataset_name(kind)),
                expected=do.view_truth,
                note="a file of npy2bdv's, the editor is open",
            )
        )
    for kind, words in ((None, "raw"), ("gzip", "gzip")):
        rows.append(
            Row(
                f"box-{words}",
                f"a 64³ box of a large stack, {words}",
                (
                    Contestant(OURS, OURS, do.reading(do.OURS, kind, parts=True)),
                    Contestant(PEER, PEER, do.reading(THEIRS, kind, parts=True)),
                    Contestant(PLAIN, PLAIN, do.plain_reading(kind, parts=True)),
                    Contestant("bare", "", do.bare_reading(kind)),
                ),
                (reads_no_more_than("bare", 1.02, "the chunks it touches"), faster_than(PLAIN, 1)),
                files=(STACK, dataset_name(kind)),
                expected=do.boxes_truth,
                per=lambda case: do.BOXES,
                warm=False,
                note=(
                    "where the stack is not as deep, all of its planes; npy2bdv reads whole views; "
                    "bare: the chunks alone, in one thread, whose places are known beforehand"
                ),
            )
        )
    return rows


def _example_rows() -> list[Row]:
    every = (("time", 2), ("illumination", 2), ("channel", 2), ("angle", 2))
    first = Job(every, (16, 512, 1024))
    tiles = Job((("tile", 8),), (16, 512, 1024), placed=True)
    many = Job((("time", 100), ("channel", 10)), (8, 64, 64), blocks=((8, 64, 64),))
    return [
        Row(
            "example-1",
            "example 1: 16 views of 16 × 512 × 1024, raw",
            (
                *_contestants(first),
                Contestant(DEFAULTS, "", do.writing(do.OURS, replace(first, defaults=True))),
            ),
            (faster_than(PEER, 1),),
            files=(STACK,),
            extra=True,
            note="its own defaults are gzip and the resolutions that BigDataViewer proposes",
        ),
        Row(
            "example-3.1",
            "example 3.1: 8 tiles of 16 × 512 × 1024 with affines, raw",
            _contestants(tiles),
            (faster_than(PEER, 1),),
            files=(STACK,),
            extra=True,
        ),
        Row(
            "many",
            "1000 views of 8 × 64 × 64, raw: views a second",
            _contestants(many),
            (faster_than(PEER, 1),),
            files=(STACK,),
            per=do.views(many),
            number="views/s",
            repeats=3,
            warm=False,
            extra=True,
            note="ours puts each of them into the XML as it comes: a file renamed for every view",
        ),
    ]


ROWS: tuple[Row, ...] = (
    *(row for row in (*_raw_rows(), *_levels_rows()) if not row.extra),
    _gzip_row(),
    *_plane_rows(),
    *_later_rows(),
    *_read_rows(),
    *(row for row in (*_raw_rows(), *_levels_rows()) if row.extra),
    *_example_rows(),
)
