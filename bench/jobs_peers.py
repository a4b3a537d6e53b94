"""Who takes part in the suite of conversion jobs: bioio_tk, its peers, and the ceilings."""

from __future__ import annotations

import contextlib
import inspect
import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import ceilings
from bench.images import TILE
from bench.jobs_inputs import FULL, forget, small_count
from bench.measure import Case, Session, Work, Written, once
from bench.tiff import bfio_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

ZARR, TIFF = ".ome.zarr", ".ome.tif"


def written(path: Path, case: Case, name: str, *, pyramid: bool = True) -> Written:
    """What a contestant has made of an input file: of the large ones some tiles are compared."""
    levels = 2 if pyramid and case.size >= FULL else 1
    return Written(path, sampled=name.startswith(("gib-", "three-big")), levels=levels)


# ------------------------------------------------------------------------------------- ours


def workers(case: Case, count: int | None = None) -> dict[str, int]:
    """The keyword for the number of threads, as this version of convert calls it."""
    from bioio_tk import convert

    name = "workers" if "workers" in inspect.signature(convert).parameters else "max_workers"
    return {name: count or case.workers}


def ours(name: str, ending: str, count: int | None = None, **options: Any) -> Session:
    """bioio_tk: convert a file, with a pyramid."""

    def work(case: Case) -> Written:
        from bioio_tk import convert

        path = case.output(ending)
        convert(case.file(name), path, overwrite=True, **workers(case, count), **options)
        return written(path, case, name)

    return once(work)


def ours_without(part: str, name: str, ending: str) -> Session:
    """bioio_tk: convert without a part of the work that it does unasked."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        from bioio_tk.jobs import convert as room

        # a process has one contestant: nobody else's work is changed
        replaced = {"journal": "_journal", "checksums": "PlaneSums"}[part]
        getattr(room, replaced)  # raises where the work is done elsewhere by now
        setattr(room, replaced, lambda *arguments: None)
        with ours(name, ending)(case) as work:
            yield work

    return session


OURS_ALONE = """
import json, sys
from bioio_tk import convert
convert(sys.argv[1], sys.argv[2], overwrite=True, **json.loads(sys.argv[3]))
"""


def ours_alone(name: str, ending: str, **options: Any) -> Session:
    """bioio_tk in a process of its own, from the start of Python to its end."""

    def command(case: Case, path: Path) -> list[str]:
        import json

        keywords = json.dumps(workers(case) | options)
        return [sys.executable, "-c", OURS_ALONE, str(case.file(name)), str(path), keywords]

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        from bioio_tk.jobs import java

        java.warm()  # as "bioio-tk java install" has done
        with process(name, ending, command)(case) as work:
            yield work

    return session


def process(
    name: str, ending: str, command: Callable[[Case, Path], list[str]], *, pyramid: bool = True
) -> Session:
    """Run a program that converts a file, from its start to its end."""

    def work(case: Case) -> Written:
        path = case.output(ending)
        forget(path)
        _run(command(case, path))
        return written(path, case, name, pyramid=pyramid)

    return once(work)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-150:]}")


def _environment() -> dict[str, str]:
    # an installed package has its modules compiled, which a source folder may lack
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


# ---------------------------------------------------------------------------------- the peers


def bfio_tiles(name: str, ending: str, backends: tuple[str, str]) -> Session:
    """bfio: tile by tile, in the loop that its documentation and its users write."""

    def work(case: Case) -> Written:
        path = case.output(ending)
        with bfio_open(case, name, backends[0]) as reader:
            _bfio_loop(reader, path, backends[1], case.workers)
        return Written(path, sampled=name.startswith("gib-"))

    return once(work)


def _bfio_loop(reader: Any, path: Path, backend: str, threads: int) -> None:
    import bfio

    with bfio.BioWriter(
        path,
        max_workers=threads,
        backend=backend,
        X=reader.X,
        Y=reader.Y,
        C=reader.C,
        dtype=reader.dtype,
    ) as writer:
        for c in range(reader.C):
            for y in range(0, reader.Y, TILE):
                for x in range(0, reader.X, TILE):
                    rows, columns = slice(y, y + TILE), slice(x, x + TILE)
                    tile = reader[rows, columns, 0:1, c : c + 1, 0:1]
                    shape = (*tile.shape[:2], 1, 1, 1)
                    writer[rows, columns, 0:1, c : c + 1, 0:1] = tile.reshape(shape)


BFIO_ALONE = """
import sys
from pathlib import Path
import jpype
jpype.startJVM(sys.argv[4], classpath=[sys.argv[5]])
import bfio
from bench.jobs_peers import _bfio_loop
source, target, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
with bfio.BioReader(source, max_workers=threads, backend="bioformats") as reader:
    assert reader._backend_name == "bioformats", reader._backend_name
    _bfio_loop(reader, target, "zarr3", threads)
"""


def bfio_alone(name: str) -> Session:
    """bfio with Bio-Formats, in a process of its own: to an OME-Zarr, tile by tile."""

    def command(case: Case, path: Path) -> list[str]:
        java, jar = _java()
        more = [str(case.file(name)), str(path), str(case.workers), str(java.library), str(jar)]
        return [sys.executable, "-c", BFIO_ALONE, *more]

    return process(name, ZARR, command, pyramid=False)


def _java() -> tuple[Any, Path]:
    """The Java and the Bio-Formats that bioio_tk takes."""
    from bioio_tk.backends import _java_home

    return _java_home.find_jvm(), _java_home.find_jar().path


def bfconvert(name: str, levels: int) -> Session:
    """Bio-Formats' own converter: to a deflated OME-TIFF; it writes no Zarr."""

    def command(case: Case, path: Path) -> list[str]:
        java, jar = _java()
        options = ["-overwrite", "-no-upgrade", "-bigtiff", "-compression", "zlib"]
        options += ["-tilex", str(TILE), "-tiley", str(TILE)]
        if levels > 1:
            options += ["-pyramid-resolutions", str(levels), "-pyramid-scale", "2"]
        program = java.home / "bin" / ("java.exe" if os.name == "nt" else "java")
        tool = [str(program), "-cp", str(jar), "loci.formats.tools.ImageConverter"]
        return [*tool, *options, str(case.file(name)), str(path)]

    return process(name, TIFF, command)


def ngff_zarr(name: str) -> Session:
    """ngff-zarr's command with the options that make it fastest."""

    def work(case: Case) -> Written:
        import dask
        from ngff_zarr.cli import main

        path = case.output(ZARR)
        options = ["-q", "-m", "dask_bin_shrink", "--no-omero", "-c", "1024"]
        with dask.config.set(num_workers=case.workers):
            main(["-i", str(case.file(name)), "-o", str(path), *options])
        return written(path, case, name)

    return once(work)


def bioio_conversion(name: str) -> Session:
    """bioio-conversion, as its command calls it."""

    def work(case: Case) -> Written:
        from bioio_conversion.converters import OmeZarrConverter

        path = case.output(ZARR)
        OmeZarrConverter(
            source=str(case.file(name)),
            destination=str(path.parent),
            name=path.name.removesuffix(ZARR),
            n_workers=case.workers,
        ).convert()
        return written(path, case, name)

    return once(work)


def pyvips(name: str) -> Session:
    """libvips: TIFF to a TIFF with a pyramid; it streams."""

    def work(case: Case) -> Written:
        import pyvips as vips

        path = case.output()
        vips.Image.new_from_file(str(case.file(name)), n=-1, access="sequential").tiffsave(
            str(path),
            tile=True,
            tile_width=TILE,
            tile_height=TILE,
            compression="deflate",
            level=1,
            pyramid=True,
            subifd=True,
            bigtiff=True,
        )
        return written(path, case, name)

    return once(work)


# -------------------------------------------------------------------------------- the ceilings


def reading_only(name: str, ending: str) -> Session:
    """bioio_tk: what converting reads, in the same pieces, and nothing done with them."""

    def work(case: Case) -> None:
        from bioio_tk import BioReader
        from bioio_tk.engine.copy import View, copy

        with BioReader(case.file(name), case.workers) as reader:
            view = View.whole(reader._source, 0, 0)
            tile = (TILE, TILE, 1, 1, 1)
            copy(view, lambda box, pixels: None, tile, workers=case.workers)

    del ending
    return once(work)


def writing_only(name: str, ending: str) -> Session:
    """bioio_tk: what converting writes, with the pixels in memory."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        from bioio_tk import BioReader, BioWriter

        def work() -> Written:
            path = case.output(ending)
            options = {"pyramid": True, "overwrite": True}
            with BioWriter(path, case.workers, like=reader, **options) as writer:
                writer[...] = pixels
            return written(path, case, name)

        with BioReader(case.file(name), case.workers) as reader:
            pixels = reader[...]
            yield work

    return session


def bare_reading(name: str) -> Session:
    """Decode all tiles or chunks of a file, in a bare loop, into the same few buffers."""
    return ceilings.decoding(name, "deflate_decode") if name.endswith(TIFF) else _chunks(name)


def _chunks(name: str) -> Session:
    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        import imagecodecs

        paths = [p for p in (case.file(name) / "0" / "c").rglob("*") if p.is_file()]
        buffers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(case.workers):
            buffers.put(np.ones(TILE * TILE * 2, np.uint8))

        def one(path: Path) -> None:
            buffer = buffers.get()
            imagecodecs.zstd_decode(path.read_bytes(), out=buffer)
            buffers.put(buffer)

        with ThreadPoolExecutor(case.workers) as pool:
            yield lambda: ceilings._drain(pool.map(one, paths))

    return session


def bare_writing(name: str, ending: str) -> Session:
    """Encode all tiles of all levels, in a bare loop, and write each to a file or to one file.

    The smaller levels are there beforehand. The codec is what ours writes by itself.
    """

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        import tifffile

        encode = ceilings.isal_deflate if ending == TIFF else ceilings.zstd
        tiles = list(_all_tiles(tifffile.imread(case.file(name.replace(ZARR, TIFF)))))
        folder = case.output("-bare")

        def one(item: tuple[int, NDArray[Any]], file: Any) -> None:
            number, tile = item
            encoded = encode(tile)
            if file is None:
                (folder / str(number)).write_bytes(encoded)
            else:  # where it lies does not matter here
                os.pwrite(file.fileno(), encoded, number * TILE * TILE * 2)

        def work() -> None:
            forget(folder)
            folder.mkdir()
            with contextlib.ExitStack() as stack:
                file = None
                if ending == TIFF:
                    file = stack.enter_context((folder / "all").open("wb"))
                ceilings._drain(pool.map(partial(one, file=file), enumerate(tiles)))

        with ThreadPoolExecutor(case.workers) as pool:
            yield work
        forget(folder)

    return session


def _all_tiles(planes: NDArray[Any]) -> Iterator[NDArray[Any]]:
    while True:
        for plane in planes.reshape(-1, *planes.shape[-2:]):
            for y in range(0, len(plane), TILE):
                for x in range(0, len(plane), TILE):
                    yield np.ascontiguousarray(plane[y : y + TILE, x : x + TILE])
        if planes.shape[-1] <= 256:
            return
        planes = planes[..., ::2, ::2]


# --------------------------------------------------------------------------------- small files


def batch_ours(ending: str, count: int | None = None) -> Session:
    """bioio_tk: all files of a folder."""

    def work(case: Case) -> Written:
        from bioio_tk import batch

        folder = case.output("-batch")
        forget(folder)
        batch(case.file("small-files"), folder, ext=ending, workers=count or case.workers)
        return Written(folder, many=ending)

    return once(work)


def batch_plain(ending: str, count: int | None = None) -> Session:
    """tifffile, or tifffile and zarr-python: read each file whole and write it, in a loop."""
    write = _plain_tiff if ending == TIFF else _plain_zarr

    def work(case: Case) -> Written:
        import tifffile

        folder = case.output("-plain")
        forget(folder)
        folder.mkdir()
        for path in sorted(case.file("small-files").iterdir())[: small_count(case)]:
            write(folder / path.name.replace(TIFF, ending), tifffile.imread(path))
        return Written(folder, many=ending)

    del count
    return once(work)


def _plain_tiff(path: Path, pixels: NDArray[Any]) -> None:
    import tifffile

    tifffile.imwrite(
        path,
        pixels,
        ome=True,
        metadata={"axes": "YX", "PhysicalSizeX": 0.325, "PhysicalSizeY": 0.325},
        tile=(TILE, TILE),
        compression="zlib",
        compressionargs={"level": 1},
        photometric="minisblack",
    )


def _plain_zarr(path: Path, pixels: NDArray[Any]) -> None:
    from bench.images import create_store

    array = create_store(path, (1, 1, 1, *pixels.shape), "plain")
    array[0, 0, 0] = pixels


# --------------------------------------------------------------------------------- on a cluster


def on_cluster(name: str, count: int) -> Session:
    """bioio_tk on a Dask cluster of so many processes of one thread, which runs beforehand."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        from distributed import Client, LocalCluster

        from bioio_tk import convert

        def work() -> Written:
            path = case.output(ZARR)
            convert(case.file(name), path, overwrite=True, client=client, **workers(case, 1))
            return written(path, case, name)

        options: dict[str, Any] = {"threads_per_worker": 1, "processes": True}
        with (
            LocalCluster(n_workers=count, dashboard_address=None, **options) as cluster,
            Client(cluster) as client,
        ):
            client.wait_for_workers(count)
            client.run(_ready)
            yield work

    return session


def _ready() -> None:
    """Import what a worker needs, as it has after its first task."""
    import bioio_tk

    bioio_tk.convert  # noqa: B018


# --------------------------------------------------------------------------------------- lazy

TERABYTE = (100, 4, 50, 5120, 5120)  # T, C, Z, Y, X of uint16: 1.05 TB
PLANE = (42, 2, 17)  # T, C, Z


def terabyte_plane(open_array: Callable[[Any], Any]) -> Session:
    """Take the mean of one plane of a generated dask array; tell which chunks were computed."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        import dask.array as da

        computed: list[tuple[int, ...]] = []

        def block(block_id: tuple[int, ...]) -> NDArray[np.uint16]:
            computed.append(block_id)
            return np.full((1, 1, 1, TILE, TILE), sum(block_id), np.uint16)

        chunks = tuple((1,) * n for n in TERABYTE[:3]) + ((TILE,) * 5,) * 2
        array = da.map_blocks(block, chunks=chunks, dtype=np.uint16, meta=np.empty((0,) * 5, "u2"))

        def work() -> str:
            computed.clear()
            mean = float(open_array(array))
            return f"{len(computed)} chunks of {len(set(computed))}, mean {mean:g}"

        yield work

    return session


def terabyte_truth(case: Case) -> str:
    """What whoever takes no chunk twice, and no other, says."""
    return f"25 chunks of 25, mean {sum(PLANE) + 4:g}"


def plane_ours(array: Any) -> float:
    """bioio_tk's mean of the plane."""
    from bioio_tk import imread

    return float(imread(array, dims="TCZYX")[PLANE].mean())


def plane_dask(array: Any) -> float:
    """dask's own mean of the plane."""
    return float(array[PLANE].mean().compute())


# ------------------------------------------------------------------------------------- resuming

INTERRUPTED = """
import json, os, signal, sys
from bioio_tk import convert
def tell(done, total):
    if 2 * done >= total:
        os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], resume=True, progress=tell, **json.loads(sys.argv[3]))
"""


def resumed(name: str, ending: str) -> Session:
    """bioio_tk: the rest of a conversion that was killed half-way."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        import json

        from bioio_tk import convert

        path = case.output(ending)
        for left in path.parent.glob(f"*{path.name}*"):
            forget(left)
        arguments = [str(case.file(name)), str(path), json.dumps(workers(case))]
        code = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, *arguments], check=False, env=_environment()
        ).returncode
        if code != -9 or path.exists():
            raise RuntimeError(f"the first half ended with {code}, not killed")

        def work() -> Written:
            convert(case.file(name), path, resume=True, **workers(case))
            return written(path, case, name)

        yield work

    return session
