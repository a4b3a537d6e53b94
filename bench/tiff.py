"""The rows of ``python -m bench tiff``: who does what, and what is wanted of us.

A contestant is asked for the same work as the others: open the file, hand over the pixels as one
array, close it; unless the row says that the reader is open beforehand. bioio_tk appears here
through its public names only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench import ceilings, images
from bench.goals import (
    OURS,
    faster_than,
    no_larger_than,
    no_longer_than,
    peak_below,
    peak_flat,
    share_of,
    within,
)
from bench.images import DEPTH, TILE
from bench.measure import Case, Contestant, Session, Work, Written, digest, once
from bench.rows import Row, Truth

if TYPE_CHECKING:
    from pathlib import Path

Array = NDArray[Any]

COLUMNS = ("ours", "tifffile", "bfio", "tensorstore", "pyvips", "reference")
PACKAGES = (
    "bioio-tk",
    "tifffile",
    "bfio",
    "tensorstore",
    "pyvips",
    "zarr",
    "imagecodecs",
    "isal",
    "numpy",
)
ABOUT = (
    "All contestants of a row read the same file: OME-TIFF, 1024 tiles, one plane per IFD, "
    "order XYZCT, deflate or zstd at level 1, written by tifffile."
)

TILES_PER_TURN = 16
SMALL_PER_TURN = 100
PLANES_PER_TURN = 100
REGION = 256
LEVELS = 5


# ---------------------------------------------------------------------------- whole images, read


def ours_read(name: str, workers: int | None = None) -> Session:
    """bioio_tk: all pixels of a file."""

    def work(case: Case) -> Array:
        from bioio_tk import BioReader

        with BioReader(case.file(name), max_workers=workers or case.workers) as reader:
            return reader.read()

    return once(work)


def tifffile_read(name: str) -> Session:
    """tifffile: all pixels of a file."""

    def work(case: Case) -> Any:
        import tifffile

        return tifffile.imread(case.file(name), maxworkers=case.workers)

    return once(work)


@contextlib.contextmanager
def bfio_open(case: Case, name: str, backend: str) -> Iterator[Any]:
    """A bfio reader that really has the asked-for backend: it changes it in silence."""
    import bfio

    with bfio.BioReader(case.file(name), max_workers=case.workers, backend=backend) as reader:
        if reader._backend_name != backend:
            raise TypeError(f"bfio took the backend {reader._backend_name}, not {backend}")
        yield reader


def bfio_read(name: str, backend: str) -> Session:
    """bfio: all pixels of a file."""

    def work(case: Case) -> Any:
        with bfio_open(case, name, backend) as reader:
            return reader[:]

    return once(work)


def tensorstore_read(name: str) -> Session:
    """TensorStore's own TIFF driver: all pixels of a file."""

    def work(case: Case) -> Any:
        import tensorstore

        spec = {
            "driver": "tiff",
            "kvstore": {"driver": "file", "path": str(case.file(name))},
            "context": {"data_copy_concurrency": {"limit": case.workers}},
        }
        return tensorstore.open(spec).result().read().result()

    return once(work)


def pyvips_read(name: str) -> Session:
    """pyvips: all pixels of a file (its threads are set when the process starts)."""

    def work(case: Case) -> Any:
        import pyvips

        return pyvips.Image.new_from_file(str(case.file(name))).numpy()

    return once(work)


def _readers(name: str) -> tuple[Contestant, ...]:
    return (
        Contestant(OURS, OURS, ours_read(name)),
        Contestant("tifffile", "tifffile", tifffile_read(name)),
        Contestant("bfio python", "bfio", bfio_read(name, "python")),
        Contestant("bfio tensorstore", "bfio", bfio_read(name, "tensorstore")),
        Contestant("tensorstore", "tensorstore", tensorstore_read(name)),
        Contestant("pyvips", "pyvips", pyvips_read(name)),
    )


# --------------------------------------------------------------------------------------- Z stack


def _ours_stack_by_planes(case: Case) -> Array:
    from bioio_tk import BioReader

    with BioReader(case.file("stack.ome.tif"), max_workers=case.workers) as reader:
        planes = np.empty((reader.Z, reader.Y, reader.X), reader.dtype)
        for z in range(reader.Z):
            planes[z] = reader[:, :, z, 0, 0]
    return np.moveaxis(planes, 0, -1)


def _tifffile_stack(case: Case, *, copy: bool) -> Array:
    import tifffile

    with tifffile.TiffFile(case.file("stack.ome.tif")) as tif:
        planes = tif.asarray(maxworkers=case.workers)
    array = planes.transpose(1, 2, 0)
    return np.ascontiguousarray(array) if copy else array


# --------------------------------------------------------------- single tiles, regions and planes


def _tile_corners(case: Case) -> list[tuple[int, int]]:
    """Tiles to read, each once: no cache of decoded tiles can help."""
    side = max(1, case.size // TILE)
    order = np.random.default_rng(0).permutation(side * side)[:TILES_PER_TURN]
    return [(int(i) // side * TILE, int(i) % side * TILE) for i in order]


def _region_corners(case: Case) -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, case.size - REGION, (case.regions, 2))
    return [(int(y), int(x)) for y, x in corners]


Cut = Callable[[int, int, int], Array]


def cutting(
    opened: Callable[[Case], contextlib.AbstractContextManager[Cut]],
    corners: Callable[[Case], list[tuple[int, int]]],
    side: int,
) -> Session:
    """Cut squares of ``side`` pixels out of an image that is open beforehand."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        places = corners(case)
        with opened(case) as cut:
            yield lambda: [cut(y, x, side) for y, x in places]

    return session


@contextlib.contextmanager
def _cut_ours(case: Case) -> Iterator[Cut]:
    from bioio_tk import BioReader

    with BioReader(case.file("deflate.ome.tif"), max_workers=case.workers) as reader:
        yield lambda y, x, side: reader[y : y + side, x : x + side, 0, 0, 0]


@contextlib.contextmanager
def _cut_bfio(case: Case, backend: str) -> Iterator[Cut]:
    with bfio_open(case, "deflate.ome.tif", backend) as reader:
        yield lambda y, x, side: reader[y : y + side, x : x + side, 0, 0, 0]


@contextlib.contextmanager
def _cut_zarr(case: Case) -> Iterator[Cut]:
    import tifffile
    import zarr

    with tifffile.imread(case.file("deflate.ome.tif"), aszarr=True) as store:
        array: Any = zarr.open(store, mode="r")
        yield lambda y, x, side: np.asarray(array[y : y + side, x : x + side])


@contextlib.contextmanager
def _cut_pyvips(case: Case) -> Iterator[Cut]:
    import pyvips

    image = pyvips.Image.new_from_file(str(case.file("deflate.ome.tif")))
    yield lambda y, x, side: image.crop(x, y, side, side).numpy()


@contextlib.contextmanager
def _cut_by_hand(case: Case) -> Iterator[Cut]:
    """``pread`` and decode of one whole tile: the least any reader must do for it."""
    import imagecodecs
    import tifffile

    with tifffile.TiffFile(case.file("deflate.ome.tif")) as tif:
        page = tif.pages.first
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    across = -(-case.size // TILE)
    with case.file("deflate.ome.tif").open("rb", buffering=0) as file:

        def cut(y: int, x: int, side: int) -> Array:
            offset, count = places[y // TILE * across + x // TILE]
            data = _pread(file, count, offset)
            tile = np.empty((TILE, TILE), "<u2")
            imagecodecs.deflate_decode(data, out=tile.reshape(-1).view(np.uint8).data)
            return tile[:side, :side]

        yield cut


def _pread(file: Any, count: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), count, offset)
    file.seek(offset)
    return bytes(file.read(count))


def _corners_truth(
    corners: Callable[[Case], list[tuple[int, int]]], side: int
) -> Callable[[Case], Truth]:
    def truth(case: Case) -> Truth:
        image = images.load_camera(case)
        return digest([image[y : y + side, x : x + side] for y, x in corners(case)])

    return truth


def _plane_choice(case: Case) -> list[int]:
    return [int(i) for i in np.random.default_rng(0).integers(0, case.planes, PLANES_PER_TURN)]


@contextlib.contextmanager
def _planes_ours(case: Case) -> Iterator[Work]:
    from bioio_tk import BioReader

    with BioReader(case.file("planes.ome.tif"), max_workers=case.workers) as reader:
        # the file's order is TCZ, slowest first
        zct = [(i % 50, i // 50 % 2, i // 100) for i in _plane_choice(case)]
        yield lambda: [reader[:, :, z, c, t] for z, c, t in zct]


@contextlib.contextmanager
def _planes_tifffile(case: Case) -> Iterator[Work]:
    import tifffile

    with tifffile.TiffFile(case.file("planes.ome.tif")) as tif:
        series = tif.series[0]
        yield lambda: [series.asarray(key=i) for i in _plane_choice(case)]


def _planes_truth(case: Case) -> Truth:
    import tifffile

    with tifffile.TiffFile(case.file("planes.ome.tif")) as tif:
        return digest([tif.pages[i].asarray() for i in _plane_choice(case)])


def _open_planes_ours(case: Case) -> str:
    from bioio_tk import BioReader

    with BioReader(case.file("planes.ome.tif"), max_workers=case.workers) as reader:
        return str((reader.T, reader.C, reader.Z, reader.Y, reader.X))


def _open_planes_tifffile(case: Case) -> str:
    import tifffile

    with tifffile.TiffFile(case.file("planes.ome.tif")) as tif:
        return str(tif.series[0].shape)


# ------------------------------------------------------------------------------------- writing


def ours_write(
    compression: str = "deflate", *, pyramid: int = 0, workers: int | None = None
) -> Session:
    """bioio_tk: write the test image in one statement."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        from bioio_tk import BioWriter

        image = images.load_camera(case)
        shape = (*image.shape, 1, 1, 1)

        def work() -> Written:
            path = case.output()
            with BioWriter(
                path,
                max_workers=workers or case.workers,
                shape=shape,
                dtype=image.dtype,
                compression=compression,
                pyramid=pyramid or False,
                overwrite=True,
            ) as writer:
                writer[:] = image.reshape(shape)
            return Written(path, levels=max(1, pyramid))

        yield work

    return session


@contextlib.contextmanager
def _write_bfio(case: Case) -> Iterator[Work]:
    import bfio

    image = images.load_camera(case)
    height, width = image.shape

    def work() -> Written:
        path = case.output()
        with bfio.BioWriter(
            path, max_workers=case.workers, backend="python", X=width, Y=height, dtype=image.dtype
        ) as writer:
            writer[:] = image.reshape(height, width, 1, 1, 1)
        return Written(path)

    yield work


@contextlib.contextmanager
def _write_tifffile(case: Case, level: int | None = None) -> Iterator[Work]:
    import tifffile

    image = images.load_camera(case)

    def work() -> Written:
        path = case.output()
        tifffile.imwrite(
            path,
            image,
            tile=(TILE, TILE),
            compression="zlib",
            compressionargs=None if level is None else {"level": level},
            maxworkers=case.workers,
        )
        return Written(path)

    yield work


def _write_pyvips(*, pyramid: bool) -> Session:
    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        import pyvips

        image = pyvips.Image.new_from_array(images.load_camera(case))

        def work() -> Written:
            path = case.output()
            image.tiffsave(
                str(path),
                tile=True,
                tile_width=TILE,
                tile_height=TILE,
                compression="deflate",
                pyramid=pyramid,
                subifd=pyramid,
            )
            return Written(path)

        yield work

    return session


# ------------------------------------------------------------------------------------ large copy


def _copy_ours(name: str) -> Session:
    def work(case: Case) -> Written:
        from bioio_tk import BioReader, BioWriter

        with (
            BioReader(case.file(name), max_workers=case.workers) as reader,
            BioWriter(
                case.output(),
                max_workers=case.workers,
                shape=(reader.Y, reader.X, 1, 1, 1),
                dtype=reader.dtype,
                compression="deflate",
                pyramid=False,
                overwrite=True,
            ) as writer,
        ):
            for y in range(0, reader.Y, TILE):
                for x in range(0, reader.X, TILE):
                    rows = slice(y, min(y + TILE, reader.Y))
                    columns = slice(x, min(x + TILE, reader.X))
                    writer[rows, columns, 0, 0, 0] = reader[rows, columns, 0, 0, 0]
        return Written(case.output(), sampled=True)

    return once(work)


def _copy_bfio(name: str) -> Session:
    def work(case: Case) -> Written:
        import bfio

        with bfio_open(case, name, "python") as reader:
            height, width = reader.Y, reader.X
            with bfio.BioWriter(
                case.output(),
                max_workers=case.workers,
                backend="python",
                X=width,
                Y=height,
                dtype=reader.dtype,
            ) as writer:
                for y in range(0, height, TILE):
                    for x in range(0, width, TILE):
                        rows = slice(y, min(y + TILE, height))
                        columns = slice(x, min(x + TILE, width))
                        tile = reader[rows, columns, 0:1, 0, 0]
                        writer[rows, columns, 0:1, 0, 0] = tile.reshape(*tile.shape[:2], 1, 1, 1)
        return Written(case.output(), sampled=True)

    return once(work)


def _copy_truth(case: Case) -> Truth:
    full = images.sampled_truth("big.ome.tif", case)
    quarter = images.sampled_truth("quarter.ome.tif", case)
    return {OURS: full, "ours, a quarter of it": quarter, "bfio, a quarter of it": quarter}


# ---------------------------------------------------------------------------- opening, small files

FACTS = ("dtype", "n_series", "level_shapes", "channel_names", "physical_size_x", "physical_size_y")


def _info_ours(path: Path) -> str:
    from bioio_tk import BioReader

    with BioReader(path) as reader:
        for fact in FACTS:
            getattr(reader, fact)
        return f"{reader.Y} {reader.X} {reader.Z} {np.dtype(reader.dtype).name}"


def _info_tifffile(path: Path) -> str:
    import tifffile

    with tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        sizes = dict(zip(series.axes, series.shape, strict=True))
        return f"{sizes['Y']} {sizes['X']} {sizes['Z']} {series.dtype.name}"


def _info_bfio(path: Path) -> str:
    import bfio

    with bfio.BioReader(path, backend="python") as reader:
        _ = (reader.channel_names, reader.physical_size_x, reader.physical_size_y)
        return f"{reader.Y} {reader.X} {reader.Z} {np.dtype(reader.dtype).name}"


def opening(module: str, info: Callable[[Path], str], *, warm: bool) -> Session:
    """Open the stack's file and ask for its facts, in a process that has imported ``module``.

    ``warm``: another file was opened before, so that everything loaded on demand is there.
    """

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        from importlib import import_module

        import_module(module)
        if warm:
            with contextlib.suppress(KeyError):  # the small file has no Z to tell
                info(case.file("small512.ome.tif" if module != "bfio" else "stack.ome.tif"))
        yield lambda: info(case.file("stack.ome.tif"))

    return session


def _import_ours(case: Case) -> None:
    import bioio_tk

    _ = (bioio_tk.BioReader, bioio_tk.BioWriter)


def _opening_truth(case: Case) -> Truth:
    return f"{TILE} {TILE} {DEPTH} uint16"


def ours_small(name: str) -> Session:
    """bioio_tk: open, read and close a small file, again and again."""

    def work(case: Case) -> list[Array]:
        from bioio_tk import BioReader

        found = []
        for _ in range(SMALL_PER_TURN):
            with BioReader(case.file(name), max_workers=case.workers) as reader:
                found.append(reader.read())
        return found

    return once(work)


def tifffile_small(name: str) -> Session:
    """tifffile: open, read and close a small file, again and again."""

    def work(case: Case) -> list[Array]:
        import tifffile

        return [tifffile.imread(case.file(name)) for _ in range(SMALL_PER_TURN)]

    return once(work)


def _small_truth(name: str) -> Callable[[Case], Truth]:
    def truth(case: Case) -> Truth:
        import tifffile

        return digest([tifffile.imread(case.file(name))] * SMALL_PER_TURN)

    return truth


def _small_row(name: str, what: str) -> Row:
    return Row(
        f"small-{name.removesuffix('.tif').removeprefix('small').replace('.', '-')}",
        f"open and read a small image, {what}",
        (
            Contestant(OURS, OURS, ours_small(name)),
            Contestant("tifffile", "tifffile", tifffile_small(name)),
        ),
        (faster_than("tifffile", 1),),
        files=(name,),
        expected=_small_truth(name),
        per=lambda case: SMALL_PER_TURN,
        warm=False,
        extra=True,
    )


# ------------------------------------------------------------------------------------- the rows

ROWS: tuple[Row, ...] = (
    Row(
        "read-deflate",
        "read, deflate 1024 tiles",
        (
            *_readers("deflate.ome.tif"),
            Contestant(
                "codec", "reference", ceilings.decoding("deflate.ome.tif", "deflate_decode")
            ),
        ),
        (
            faster_than("tifffile", 2.2),
            faster_than("bfio", 4),
            share_of("codec", 0.85, "codec"),
        ),
        files=("deflate.ome.tif",),
        expected=images.camera_truth,
    ),
    Row(
        "read-zstd",
        "read, zstd",
        (
            *_readers("zstd.ome.tif"),
            Contestant("codec", "reference", ceilings.decoding("zstd.ome.tif", "zstd_decode")),
        ),
        (faster_than("tifffile", 3),),
        files=("zstd.ome.tif",),
        expected=images.camera_truth,
    ),
    Row(
        "read-raw",
        "read, raw",
        (
            *_readers("raw.ome.tif"),
            Contestant("memcpy", "reference", ceilings.memcpy()),
            Contestant("memcpy, 1 thread", "", ceilings.memcpy(1)),
            Contestant("page cache", "", ceilings.cached_read("raw.ome.tif")),
        ),
        (faster_than("tifffile", 8), share_of("memcpy", 0.6, "memcpy")),
        files=("raw.ome.tif", "camera.npy"),
        expected=images.camera_truth,
    ),
    Row(
        "stack",
        "read a Z stack of 64 planes 1024²",
        (
            Contestant(OURS, OURS, ours_read("stack.ome.tif")),
            Contestant("ours, plane by plane", "reference", once(_ours_stack_by_planes)),
            Contestant("tifffile", "tifffile", once(partial(_tifffile_stack, copy=True))),
            Contestant("tifffile, not copied", "", once(partial(_tifffile_stack, copy=False))),
            Contestant("bfio python", "bfio", bfio_read("stack.ome.tif", "python")),
            Contestant("bfio tensorstore", "bfio", bfio_read("stack.ome.tif", "tensorstore")),
            Contestant("codec", "", ceilings.decoding("stack.ome.tif", "deflate_decode")),
        ),
        (
            faster_than("tifffile", 3, "tifffile + transpose"),
            faster_than("reference", 1, "plane by plane"),
        ),
        files=("stack.ome.tif",),
        expected=images.stack_truth,
    ),
    Row(
        "tile",
        "read one 1024² tile cold from an open reader",
        (
            Contestant(OURS, OURS, cutting(_cut_ours, _tile_corners, TILE)),
            Contestant("pread + decode", "reference", cutting(_cut_by_hand, _tile_corners, TILE)),
            Contestant("tifffile zarr", "tifffile", cutting(_cut_zarr, _tile_corners, TILE)),
            *(
                Contestant(
                    f"bfio {backend}",
                    "bfio",
                    cutting(partial(_cut_bfio, backend=backend), _tile_corners, TILE),
                )
                for backend in ("python", "tensorstore")
            ),
            Contestant("pyvips", "pyvips", cutting(_cut_pyvips, _tile_corners, TILE)),
        ),
        (no_longer_than("pread + decode", 1.3, "pread + decode"),),
        files=("deflate.ome.tif",),
        expected=_corners_truth(_tile_corners, TILE),
        per=lambda case: len(_tile_corners(case)),
    ),
    Row(
        "regions",
        "256² region at random positions",
        (
            Contestant(OURS, OURS, cutting(_cut_ours, _region_corners, REGION)),
            Contestant("tifffile zarr", "tifffile", cutting(_cut_zarr, _region_corners, REGION)),
            *(
                Contestant(
                    f"bfio {backend}",
                    "bfio",
                    cutting(partial(_cut_bfio, backend=backend), _region_corners, REGION),
                )
                for backend in ("python", "tensorstore")
            ),
            Contestant("pyvips", "pyvips", cutting(_cut_pyvips, _region_corners, REGION)),
        ),
        (faster_than("tifffile", 1, "tifffile's zarr store"), faster_than("bfio", 1)),
        files=("deflate.ome.tif",),
        expected=_corners_truth(_region_corners, REGION),
        per=lambda case: case.regions,
        repeats=3,
    ),
    Row(
        "write-deflate",
        "write, deflate",
        (
            Contestant(OURS, OURS, ours_write()),
            Contestant("tifffile", "tifffile", _write_tifffile),
            # its default level is 6; the others' is 1 or as fast as that
            Contestant("tifffile level 1", "tifffile", partial(_write_tifffile, level=1)),
            Contestant("bfio python", "bfio", _write_bfio),
            Contestant("pyvips", "pyvips", _write_pyvips(pyramid=False)),
            Contestant("codec", "reference", ceilings.encoding(ceilings.isal_deflate)),
            Contestant("codec libdeflate 1", "", ceilings.encoding(ceilings.libdeflate)),
            Contestant("ours, zstd", "", ours_write("zstd")),
            Contestant("ours, none", "", ours_write("none")),
            Contestant("same bytes raw", "", ceilings.file_write()),
        ),
        (
            faster_than("tifffile", 1.5),
            faster_than("bfio", 1.5),
            share_of("codec", 0.85, "codec"),
            no_larger_than("bfio"),
        ),
        files=("camera.npy",),
        expected=images.camera_truth,
    ),
    Row(
        "pyramid",
        "write with 5-level pyramid",
        (
            Contestant(OURS, OURS, ours_write(pyramid=LEVELS)),
            Contestant("without", "reference", ours_write()),
            Contestant("pyvips", "pyvips", _write_pyvips(pyramid=True)),
        ),
        (no_longer_than("without", 1.5, "without"),),
        files=("camera.npy",),
        expected=images.camera_truth,
    ),
    Row(
        "copy",
        "copy a {copy_gb:g} GB image tile by tile",
        (
            Contestant(OURS, OURS, _copy_ours("big.ome.tif")),
            Contestant("ours, a quarter of it", "reference", _copy_ours("quarter.ome.tif")),
            Contestant("bfio, a quarter of it", "bfio", _copy_bfio("quarter.ome.tif")),
        ),
        (peak_below(400), peak_flat("ours, a quarter of it", 1.15, "at a quarter")),
        files=("big.ome.tif", "quarter.ome.tif"),
        expected=_copy_truth,
        once=True,
        memory=True,
        warm=False,
    ),
    Row(
        "scale-read",
        "{workers} workers against 1, read deflate",
        (
            Contestant(OURS, OURS, ours_read("deflate.ome.tif")),
            Contestant("1 worker", "reference", ours_read("deflate.ome.tif", 1)),
            Contestant("codec", "", ceilings.decoding("deflate.ome.tif", "deflate_decode")),
            Contestant(
                "codec, 1 thread", "", ceilings.decoding("deflate.ome.tif", "deflate_decode", 1)
            ),
        ),
        (faster_than("reference", 2.5, "1 worker"),),
        files=("deflate.ome.tif",),
        expected=images.camera_truth,
    ),
    Row(
        "scale-write",
        "{workers} workers against 1, write deflate",
        (
            Contestant(OURS, OURS, ours_write()),
            Contestant("1 worker", "reference", ours_write(workers=1)),
            Contestant("codec", "", ceilings.encoding(ceilings.isal_deflate)),
            Contestant("codec, 1 thread", "", ceilings.encoding(ceilings.isal_deflate, 1)),
        ),
        (faster_than("reference", 2.5, "1 worker"),),
        files=("camera.npy",),
        expected=images.camera_truth,
    ),
    Row(
        "open",
        "open + info of an ordinary file",
        (
            Contestant(OURS, OURS, opening("bioio_tk", _info_ours, warm=True)),
            Contestant("tifffile", "tifffile", opening("tifffile", _info_tifffile, warm=True)),
            Contestant("bfio python", "bfio", opening("bfio", _info_bfio, warm=True)),
        ),
        (within(40),),
        files=("stack.ome.tif", "small512.ome.tif"),
        expected=_opening_truth,
        fresh=True,
        warm=False,
    ),
    Row(
        "open-first",
        "the same, first file after the package's import",
        (
            Contestant(OURS, OURS, opening("bioio_tk", _info_ours, warm=False)),
            Contestant("tifffile", "tifffile", opening("tifffile", _info_tifffile, warm=False)),
            Contestant("bfio python", "bfio", opening("bfio", _info_bfio, warm=False)),
            Contestant("import BioReader, BioWriter", "", once(_import_ours)),
        ),
        files=("stack.ome.tif",),
        expected=_opening_truth,
        fresh=True,
        warm=False,
        extra=True,
    ),
    _small_row("small64.tif", "64² plain"),
    _small_row("small512.tif", "512² plain"),
    _small_row("small512.ome.tif", "512² OME deflate"),
    Row(
        "planes-open",
        "open an OME-TIFF of {planes:,} planes",
        (
            Contestant(OURS, OURS, once(_open_planes_ours)),
            Contestant("tifffile", "tifffile", once(_open_planes_tifffile)),
        ),
        (no_longer_than("tifffile", 1.5, "tifffile"),),
        files=("planes.ome.tif",),
        expected=lambda case: str((case.planes // 100, 2, 50, 32, 32)),
        warm=False,
        extra=True,
    ),
    Row(
        "planes-read",
        "read a random plane of it",
        (
            Contestant(OURS, OURS, _planes_ours),
            Contestant("tifffile", "tifffile", _planes_tifffile),
        ),
        (within(1),),
        files=("planes.ome.tif",),
        expected=_planes_truth,
        per=lambda case: PLANES_PER_TURN,
        warm=False,
        extra=True,
    ),
)

CEILINGS = Row(
    "ceilings",
    "ceilings of this machine",
    (
        Contestant("memcpy, all workers", "", ceilings.memcpy()),
        Contestant("memcpy, 1 thread", "", ceilings.memcpy(1)),
        Contestant("page cache, all workers", "", ceilings.cached_read("raw.ome.tif")),
        Contestant("page cache, 1 thread", "", ceilings.cached_read("raw.ome.tif", 1)),
        Contestant("write to a file, 1 thread", "", ceilings.file_write()),
        Contestant(
            "decode deflate (libdeflate)",
            "",
            ceilings.decoding("deflate.ome.tif", "deflate_decode"),
        ),
        Contestant("decode zstd", "", ceilings.decoding("zstd.ome.tif", "zstd_decode")),
        Contestant("encode deflate (ISA-L 3)", "", ceilings.encoding(ceilings.isal_deflate)),
        Contestant("encode deflate (libdeflate 1)", "", ceilings.encoding(ceilings.libdeflate)),
        Contestant("encode zstd 1", "", ceilings.encoding(ceilings.zstd)),
    ),
    files=("camera.npy", "raw.ome.tif", "deflate.ome.tif", "zstd.ome.tif"),
)

# _serve finds its contestant by the row's key
ROWS = (CEILINGS, *ROWS)
