"""The rows of ``python -m bench jobs``: whole tasks, from a file to a file.

As in the other suites every contestant has a process of its own and they take turns. What starts
programs (Bio-Formats' converter, and in those rows ours and bfio too) is timed from the start of
the program to its end. bioio_tk appears here through its public names, but where the engine's own
loop is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench import images, jobs_curve, jobs_inputs, jobs_peers
from bench.goals import (
    OURS,
    faster_than,
    faster_than_one,
    longer_by,
    no_longer_than,
    no_longer_than_slower,
    peak_below,
    peak_flat,
    scales,
)
from bench.jobs_inputs import SIZES, fake_truth, large, sizes_truth, small_count
from bench.jobs_peers import TIFF, ZARR, ours
from bench.measure import Contestant
from bench.rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.measure import Case, Session

COLUMNS = ("ours", "ngff-zarr", "bioio-conversion", "libvips", "bfio", "bfconvert", "reference")
PACKAGES = (
    "bioio-tk",
    "ngff-zarr",
    "bioio-conversion",
    "bioio-ome-tiff",
    "bfio",
    "pyvips",
    "distributed",
    "dask",
    "zarr",
    "tifffile",
    "imagecodecs",
    "isal",
    "numpy",
)
ABOUT = (
    "Everybody makes as large a pyramid and takes the compression that it takes by itself; TIFFs "
    "that are read are deflated at level 1 in tiles of 1024², stores are OME-Zarr 0.5 with "
    "Zstandard at level 1 in chunks of 1024². Peak memory is that of a process and all it starts, "
    "interpreter and libraries included."
)

THREE, STORE = "three.ome.tif", "three.ome.zarr"
THREE_BIG = "three-big.ome.tif"
FAKE = large(0.4, ".fake")
CZI = "mosaic.czi"
LARGEST = SIZES[-1]
SAME = 1.5  # GiB: the size whose memory that of the largest is held against
MEMORY = 300
ONE = "ours, 1 worker"
LEVELS = 6
NO_ZARR = "bfconvert writes no Zarr, and bfio no pyramid: it writes a fourth less."
FROM_TIFF = (
    "libvips and bfconvert have no Zarr: they read the same pixels from a TIFF. bfio makes no "
    "pyramid and so writes a fourth less; its loop over tiles is what its users write."
)
GENERATED = (
    "the large images are made of few different tiles, one in four a camera's picture, which lie "
    "on the disk once and are decoded and encoded every time"
)


def _pair(name: str, ending: str) -> tuple[Contestant, ...]:
    return (
        Contestant("reading only", "", jobs_peers.reading_only(name, ending)),
        Contestant("writing only", "", jobs_peers.writing_only(name, ending)),
        Contestant("bare reading", "", jobs_peers.bare_reading(name)),
        Contestant("bare writing", "", jobs_peers.bare_writing(name, ending)),
    )


def _overlap(key: str, title: str, name: str, ending: str) -> Row:
    return Row(
        key,
        title,
        (Contestant(OURS, OURS, ours(name, ending)), *_pair(name, ending)),
        (no_longer_than_slower(("reading only", "writing only"), 1.25, "the slower half"),),
        files=(name, THREE),
        expected=images.three_truth,
        repeats=5,
        note=(
            "reading only: the engine's own loop, and nothing done with the tiles; writing only: "
            "the pixels are in memory. bare: plain loops around the codec, in as many threads; of "
            "the writing one the smaller levels are there beforehand."
        ),
    )


# ------------------------------------------------------------------------- large and small ones

MOST = {"libvips": 6.0, "ngff-zarr": 1.5}  # GiB; beyond that it takes minutes or all the memory


def _sizes(key: str, title: str, source: str, ending: str, peer: str, session: Any) -> Row:
    """Images of all sizes: time and memory; ours is the largest."""
    contestants, truths, files = [], {}, []
    for size in reversed(SIZES):
        label = OURS if size == LARGEST else _of_size(OURS, size)
        column = OURS if size == LARGEST else ""
        contestants.append(Contestant(label, column, _with_room(ours, source, ending, size)))
        truths[label] = size
    for size in SIZES:
        files += [large(size, source), large(size, TIFF)]
        if size <= MOST[peer]:
            label = _of_size(peer, size)
            column = peer if size == MOST[peer] else ""
            contestants.append(Contestant(label, column, session(large(size, TIFF))))
            truths[label] = size
    return Row(
        key,
        title,
        tuple(contestants),
        (peak_below(MEMORY), peak_flat(_of_size(OURS, SAME), 1.2, f"that of {SAME} GiB")),
        files=tuple(dict.fromkeys(files)),
        expected=sizes_truth(truths),
        repeats=1,
        tree=True,
        memory=True,
        warm=False,
        note=GENERATED,
    )


def _of_size(name: str, size: float) -> str:
    return f"{name}, {size:g} GiB"


def _with_room(make: Callable[..., Session], source: str, ending: str, size: float) -> Session:
    session = make(large(size, source), ending)

    def guarded(case: Case) -> Any:
        jobs_inputs.room_for(case, jobs_inputs.pixel_bytes(size, case) // 4)
        return session(case)

    return guarded


def _small(key: str, title: str, ending: str) -> Row:
    return Row(
        key,
        title,
        (
            Contestant(OURS, OURS, jobs_peers.batch_ours(ending)),
            Contestant(ONE, "", jobs_peers.batch_ours(ending, 1)),
            Contestant("plain", "reference", jobs_peers.batch_plain(ending)),
        ),
        (faster_than_one(ONE, 3), longer_by(ONE, "plain", 8)),
        files=("small-files",),
        expected=jobs_inputs.small_truth,
        per=small_count,
        repeats=2,
        tree=True,
        warm=False,
        note=(
            "the time of one file. plain: tifffile reads each file whole and tifffile or "
            "zarr-python writes it, one after the other; what ours takes longer is with 1 worker."
        ),
    )


def _java_row(key: str, title: str, name: str, truth: Any, levels: int, note: str) -> Row:
    return Row(
        key,
        title,
        (
            Contestant(OURS, OURS, jobs_peers.ours_alone(name, ZARR)),
            Contestant("bfio", "bfio", jobs_peers.bfio_alone(name)),
            Contestant("bfconvert", "bfconvert", jobs_peers.bfconvert(name, levels)),
        ),
        (faster_than("bfconvert", 3), faster_than("bfio", 3)),
        files=(name,),
        expected=truth,
        repeats=3,
        tree=True,
        note=note + " " + NO_ZARR,
    )


# ------------------------------------------------------------------------------------- the rows

ROWS: tuple[Row, ...] = (
    Row(
        "tiff-to-zarr",
        "OME-TIFF to OME-Zarr with pyramid, 3 × {size}²",
        (
            Contestant(OURS, OURS, ours(THREE, ZARR)),
            Contestant("ngff-zarr", "ngff-zarr", jobs_peers.ngff_zarr(THREE)),
            Contestant("bioio-conversion", "bioio-conversion", jobs_peers.bioio_conversion(THREE)),
            *(
                Contestant(
                    f"bfio {one}", "bfio", jobs_peers.bfio_tiles(THREE, ZARR, ("python", one))
                )
                for one in ("zarr3", "zarr")
            ),
        ),
        (
            faster_than("ngff-zarr", 2),
            faster_than("bioio-conversion", 4),
            faster_than("bfio", 3, "bfio's tile loop"),
        ),
        files=(THREE,),
        expected=images.three_truth,
        repeats=3,
        tree=True,
        note=(
            "ngff-zarr runs with -m dask_bin_shrink --no-omero -c 1024; bfio makes no pyramid and "
            "so writes a fourth less."
        ),
    ),
    Row(
        "zarr-to-tiff",
        "OME-Zarr to OME-TIFF with pyramid, 3 × {size}²",
        (
            Contestant(OURS, OURS, ours(STORE, TIFF)),
            Contestant("libvips", "libvips", jobs_peers.pyvips(THREE)),
            Contestant("bfio", "bfio", jobs_peers.bfio_tiles(STORE, TIFF, ("zarr3", "python"))),
            Contestant("bfconvert", "bfconvert", jobs_peers.bfconvert(THREE, LEVELS)),
        ),
        (
            faster_than("libvips", 2),
            faster_than("bfio", 3, "bfio's tile loop"),
            faster_than("bfconvert", 5),
        ),
        files=(STORE, THREE),
        expected=images.three_truth,
        repeats=3,
        tree=True,
        note=FROM_TIFF,
    ),
    _java_row(
        "fake-to-zarr",
        ".fake of 0.4 GiB through Java to OME-Zarr with pyramid",
        FAKE,
        fake_truth(0.4),
        LEVELS,
        "whole processes, Python and Java started by each.",
    ),
    _java_row(
        "czi-to-zarr",
        "CZI of {size}² through Java to OME-Zarr with pyramid",
        CZI,
        images.camera_truth,
        LEVELS,
        "whole processes; a mosaic of 256² tiles, Zstandard.",
    ),
    _sizes(
        "sizes-zarr",
        f"OME-TIFF of {LARGEST:g} GiB to OME-Zarr with pyramid: peak memory",
        TIFF,
        ZARR,
        "ngff-zarr",
        jobs_peers.ngff_zarr,
    ),
    _sizes(
        "sizes-tiff",
        f"OME-Zarr of {LARGEST:g} GiB to OME-TIFF with pyramid: peak memory",
        ZARR,
        TIFF,
        "libvips",
        jobs_peers.pyvips,
    ),
    Row(
        "sizes-java",
        f".fake of {LARGEST:g} GiB through Java to OME-Zarr: peak memory, Java's included",
        (
            Contestant(OURS, OURS, _with_room(ours, ".fake", ZARR, LARGEST)),
            Contestant(_of_size(OURS, SAME), "", _with_room(ours, ".fake", ZARR, SAME)),
        ),
        (peak_flat(_of_size(OURS, SAME), 1.2, f"that of {SAME} GiB"),),
        expected=lambda case: {
            OURS: fake_truth(LARGEST)(case),
            _of_size(OURS, SAME): fake_truth(SAME)(case),
        },
        files=(large(LARGEST, ".fake"), large(SAME, ".fake")),
        once=True,
        memory=True,
        warm=False,
    ),
    _overlap("overlap-zarr", "OME-TIFF to OME-Zarr: the job and its halves", THREE, ZARR),
    _overlap("overlap-tiff", "OME-Zarr to OME-TIFF: the job and its halves", STORE, TIFF),
    _small("small-tiff", "a folder of 1 MB OME-TIFFs to OME-TIFF, {workers} workers", TIFF),
    _small("small-zarr", "the same to OME-Zarr", ZARR),
    Row(
        "cluster",
        "OME-TIFF to OME-Zarr on 4 Dask workers of one thread, 3 × {double}²",
        (
            Contestant(OURS, OURS, jobs_peers.on_cluster(THREE_BIG, 4)),
            Contestant("2 workers", "", jobs_peers.on_cluster(THREE_BIG, 2)),
            Contestant("1 worker", "", jobs_peers.on_cluster(THREE_BIG, 1)),
        ),
        (scales("2 workers", "1 worker", 1.7), scales(OURS, "2 workers", 1.7)),
        files=(THREE_BIG,),
        expected=lambda case: images.sampled_truth(THREE_BIG, case),
        repeats=2,
        tree=True,
        warm=False,
        note="the cluster runs beforehand; scheduler and client are on the same machine",
    ),
    Row(
        "lazy",
        "mean of one plane (25 chunks) of a generated dask array of 1 TB",
        (
            Contestant(OURS, OURS, jobs_peers.terabyte_plane(jobs_peers.plane_ours)),
            Contestant("dask", "reference", jobs_peers.terabyte_plane(jobs_peers.plane_dask)),
        ),
        (no_longer_than("dask", 2, "dask's own"),),
        expected=jobs_peers.terabyte_truth,
        warm=False,
        note="who computes another chunk, or one twice, counts as wrong",
    ),
    Row(
        "costs",
        "what journal, checksums and verifying cost: OME-TIFF to OME-Zarr, 3 × {size}²",
        (
            Contestant(OURS, OURS, ours(THREE, ZARR)),
            *(
                Contestant(f"without {part}", "", jobs_peers.ours_without(part, THREE, ZARR))
                for part in ("journal", "checksums")
            ),
            *(
                Contestant(f"verify={how}", "", ours(THREE, ZARR, verify=how))
                for how in ("sample", "full")
            ),
        ),
        (
            no_longer_than("without journal", 1.02, "without a journal"),
            no_longer_than("without checksums", 1.05, "without checksums"),
        ),
        files=(THREE,),
        expected=images.three_truth,
        extra=True,
    ),
    Row(
        "resume",
        "the rest of a conversion that was killed half-way",
        (
            Contestant(OURS, OURS, jobs_peers.resumed(THREE_BIG, ZARR)),
            Contestant("all of it", "reference", ours(THREE_BIG, ZARR)),
        ),
        (no_longer_than("all of it", 0.75, "all of it"),),
        files=(THREE_BIG,),
        expected=lambda case: images.sampled_truth(THREE_BIG, case),
        repeats=2,
        warm=False,
        extra=True,
    ),
)

figure = jobs_curve.figure
