"""The rows of ``python -m bench zarr``: OME-Zarr, and what turns TIFF into it and back.

As in the TIFF suite a contestant opens the store, hands over the pixels as one array and closes
it, unless the row says that the reader is open beforehand. bioio_tk appears here through its
public names only. Arrays are compared in the stores' order T, C, Z, Y, X.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench import images
from bench.bare_zarr import BareArray
from bench.goals import (
    OURS,
    faster_than,
    faster_than_one,
    peak_below,
    reads_no_more_than,
)
from bench.images import CHUNKS, LEVELS, STACK5
from bench.measure import Case, Contestant, Session, Work, Written, digest, once, open_tensorstore
from bench.rows import Row, Truth
from bench.tiff import bfio_open

if TYPE_CHECKING:
    from pathlib import Path

Array = NDArray[Any]

COLUMNS = ("ours", "zarr-python", "zarrs", "tensorstore", "bfio", "others", "reference")
PACKAGES = (
    "bioio-tk",
    "zarr",
    "zarrs",
    "tensorstore",
    "bfio",
    "ngff-zarr",
    "bioio-conversion",
    "bioio-ome-tiff",
    "ome-zarr",
    "pyvips",
    "tifffile",
    "imagecodecs",
    "numcodecs",
    "numpy",
)
ABOUT = (
    "Stores are OME-Zarr 0.5 with axes t, c, z, y, x and Zstandard at level 1, unless a note says "
    "otherwise; those that are read were written by zarr-python. TensorStore has as many threads "
    "for copies as for files, no cache, and does not wait for the disk (file_io_sync off, as "
    "nobody else waits); zarr-python has threading.max_workers set, zarrs too. bare is a "
    "plain loop: files, imagecodecs' Zstandard and copies, in as many threads."
)

TILE = 256  # chunk of the stores with levels
REGION = 1024
OPENS_PER_TURN = 20
TILE_AT = (slice(512, 768), slice(256, 512))  # Y, X of the tile read after opening
BFIO_READS = "bfio's tensorstore backend returns Y, X, T, C, Z; that is put right for it."
BFIO_WRITES = "bfio has no sharding: it writes 1024² chunks, unsharded, in both formats of Zarr."


def _tczyx(array: Any) -> Array:
    """Y, X[, Z[, C[, T]]] in the order of the stores."""
    return np.asarray(array).transpose(*range(array.ndim - 1, 1, -1), 0, 1)


def _zarr_python(case: Case, pipeline: str) -> Any:
    """zarr-python with the given codec pipeline and our number of threads."""
    import zarr

    names = {
        "zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline",
        "zarrs": "zarrs.ZarrsCodecPipeline",
    }
    if pipeline == "zarrs":
        import zarrs  # noqa: F401
    zarr.config.set({"codec_pipeline.path": names[pipeline], "threading.max_workers": case.workers})
    return zarr


# ------------------------------------------------------------------------- whole images, read


def ours_read(name: str) -> Session:
    """bioio_tk: all pixels of a store."""

    def work(case: Case) -> Array:
        from bioio_tk import BioReader

        with BioReader(case.file(name), max_workers=case.workers) as reader:
            return _tczyx(reader[...])

    return once(work)


def zarr_read(name: str, pipeline: str) -> Session:
    """zarr-python: all pixels of a store."""

    def work(case: Case) -> Any:
        zarr = _zarr_python(case, pipeline)
        return zarr.open_group(case.file(name), mode="r")["0"][...]

    return once(work)


def tensorstore_read(name: str) -> Session:
    """TensorStore: all pixels of a store."""

    def work(case: Case) -> Any:
        return open_tensorstore(case.file(name) / "0", case.workers).read().result()

    return once(work)


def bfio_read(name: str, backend: str) -> Session:
    """bfio: all pixels of a store."""

    def work(case: Case) -> Array:
        with bfio_open(case, name, backend) as reader:
            pixels = reader[:]
            if backend == "tensorstore" and pixels.ndim == 5:
                return np.moveaxis(pixels, (0, 1), (3, 4))
            return _tczyx(pixels)

    return once(work)


def bare_read(name: str) -> Session:
    """The bare loop: all pixels of a store."""
    return once(lambda case: BareArray(case.file(name) / "0", case.workers).read())


def _readers(name: str) -> tuple[Contestant, ...]:
    return (
        Contestant(OURS, OURS, ours_read(name)),
        Contestant("zarr-python", "zarr-python", zarr_read(name, "zarr-python")),
        Contestant("zarrs", "zarrs", zarr_read(name, "zarrs")),
        Contestant("tensorstore", "tensorstore", tensorstore_read(name)),
        Contestant("bfio zarr3", "bfio", bfio_read(name, "zarr3")),
        Contestant("bfio tensorstore", "bfio", bfio_read(name, "tensorstore")),
        Contestant("bare", "reference", bare_read(name)),
    )


def _read_row(
    key: str,
    title: str,
    name: str,
    zarr_python: float,
    truth: Callable[[Case], Truth],
    note: str = "",
) -> Row:
    return Row(
        key,
        title,
        _readers(name),
        (
            faster_than("zarr-python", zarr_python),
            faster_than("tensorstore", 1.2),
            faster_than("bfio", 3),
        ),
        files=(name,),
        expected=truth,
        note=note,
    )


# ------------------------------------------------------------------------------------ regions


def _corners(case: Case) -> list[tuple[int, int]]:
    """Places that cross shards and share no chunk, so that nothing can be kept."""
    first = 1500 if case.size > 4096 else case.size // 5
    places = range(first, case.size - REGION - 256, 2048)
    shift = np.random.default_rng(0).integers(0, 256, (len(places), len(places), 2))
    return [
        (int(y + shift[i, j, 0]), int(x + shift[i, j, 1]))
        for i, y in enumerate(places)
        for j, x in enumerate(places)
    ]


Cut = Callable[[slice, slice], Array]


def cutting(opened: Callable[[Case], contextlib.AbstractContextManager[Cut]]) -> Session:
    """Cut squares out of a store that is open beforehand."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        places = _corners(case)
        with opened(case) as cut:
            yield lambda: [cut(slice(y, y + REGION), slice(x, x + REGION)) for y, x in places]

    return session


@contextlib.contextmanager
def _cut_ours(case: Case) -> Iterator[Cut]:
    from bioio_tk import BioReader

    with BioReader(case.file("sharded.ome.zarr"), max_workers=case.workers) as reader:
        yield lambda y, x: reader[y, x, 0, 0, 0]


@contextlib.contextmanager
def _cut_zarr(case: Case, pipeline: str) -> Iterator[Cut]:
    zarr = _zarr_python(case, pipeline)
    array = zarr.open_group(case.file("sharded.ome.zarr"), mode="r")["0"]
    yield lambda y, x: array[0, 0, 0, y, x]


@contextlib.contextmanager
def _cut_tensorstore(case: Case) -> Iterator[Cut]:
    array = open_tensorstore(case.file("sharded.ome.zarr") / "0", case.workers)
    yield lambda y, x: array[0, 0, 0, y, x].read().result()


@contextlib.contextmanager
def _cut_bfio(case: Case, backend: str) -> Iterator[Cut]:
    with bfio_open(case, "sharded.ome.zarr", backend) as reader:
        yield lambda y, x: reader[y, x, 0, 0, 0]


@contextlib.contextmanager
def _cut_bare(case: Case) -> Iterator[Cut]:
    array = BareArray(case.file("sharded.ome.zarr") / "0", case.workers)
    one = (0, 1)
    yield lambda y, x: array.read((one, one, one, (y.start, y.stop), (x.start, x.stop)))


def _regions_truth(case: Case) -> Truth:
    image = images.load_camera(case)
    return digest([image[y : y + REGION, x : x + REGION] for y, x in _corners(case)])


# ------------------------------------------------------------------------------------ writing

Load = Callable[[Case], Array]


def _camera5(case: Case) -> Array:
    return images.load_camera(case)[None, None, None]


def writing(load: Load, write: Callable[[Case, Path, Array], None]) -> Session:
    """Write an image that is in memory, (T, C, Z, Y, X), to a new store."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        pixels = load(case)

        def work() -> Written:
            path = case.output(".ome.zarr")
            write(case, path, pixels)
            return Written(path)

        yield work

    return session


def _write_ours(case: Case, path: Path, pixels: Array, *, kind: str) -> None:
    from bioio_tk import BioWriter

    image = pixels.transpose(3, 4, 2, 1, 0)
    # ours are in the order of its arrays: Y, X, Z, C, T
    chunks, shards = (size and (*size[3:], *size[2::-1]) for size in CHUNKS[kind])
    with BioWriter(
        path,
        max_workers=case.workers,
        shape=image.shape,
        dtype=image.dtype,
        chunks=chunks,
        shards=shards or False,
        compression="zstd",
        compression_level=1,
        overwrite=True,
    ) as writer:
        writer[...] = image


def _write_zarr(case: Case, path: Path, pixels: Array, *, kind: str, pipeline: str) -> None:
    _zarr_python(case, pipeline)
    images.create_store(path, pixels.shape, kind)[...] = pixels


def _layout(path: Path, pixels: Array, kind: str) -> dict[str, Any]:
    """Write the group's metadata and return that of its array: no zarr-python in between."""
    chunks, shards = CHUNKS[kind]
    codecs: list[dict[str, Any]] = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
    ]
    if shards:
        index = [codecs[0], {"name": "crc32c"}]
        inner = {"chunk_shape": chunks, "codecs": codecs, "index_codecs": index}
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": images.ngff_attributes(1, pixels.shape[1]),
    }
    path.mkdir()
    (path / "zarr.json").write_text(json.dumps(group), encoding="utf-8")
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": pixels.shape,
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shards or chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "dimension_names": list("tczyx"),
    }


def _write_tensorstore(
    case: Case, path: Path, pixels: Array, *, kind: str, sync: bool = False, transact: bool = False
) -> None:
    import tensorstore

    metadata = _layout(path, pixels, kind)
    # TensorStore writes these two itself
    for key in ("zarr_format", "node_type"):
        del metadata[key]
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path / "0")},
        "metadata": metadata,
        "context": {
            "cache_pool": {"total_bytes_limit": 0},
            "data_copy_concurrency": {"limit": case.workers},
            "file_io_concurrency": {"limit": case.workers},
            "file_io_sync": sync,
        },
    }
    array = tensorstore.open(spec, create=True).result()
    if not transact:
        array.write(pixels).result()
        return
    with tensorstore.Transaction() as transaction:
        array.with_transaction(transaction).write(pixels).result()


def _write_bfio(case: Case, path: Path, pixels: Array, *, backend: str) -> None:
    import bfio

    t, c, z, y, x = pixels.shape
    with bfio.BioWriter(
        path,
        max_workers=case.workers,
        backend=backend,
        X=x,
        Y=y,
        Z=z,
        C=c,
        T=t,
        dtype=pixels.dtype,
    ) as writer:
        writer[:] = pixels.transpose(3, 4, 2, 1, 0)


def _write_bare(case: Case, path: Path, pixels: Array, *, kind: str) -> None:
    metadata = _layout(path, pixels, kind)
    (path / "0").mkdir()
    (path / "0" / "zarr.json").write_text(json.dumps(metadata), encoding="utf-8")
    BareArray(path / "0", case.workers).write(pixels)


def _writers(load: Load, kind: str) -> tuple[Contestant, ...]:
    def one(
        label: str, column: str, write: Callable[..., None], *, counts: bool = True, **options: Any
    ) -> Contestant:
        return Contestant(label, column, writing(load, partial(write, **options)), counts)

    return (
        one(OURS, OURS, _write_ours, kind=kind),
        *(
            one(name, name, _write_zarr, kind=kind, pipeline=name)
            for name in ("zarr-python", "zarrs")
        ),
        one("tensorstore", "tensorstore", _write_tensorstore, kind=kind),
        one(
            "tensorstore transaction",
            "tensorstore",
            _write_tensorstore,
            kind=kind,
            transact=True,
        ),
        one("tensorstore, waiting for the disk", "", _write_tensorstore, kind=kind, sync=True),
        one("bfio zarr3", "bfio", _write_bfio, backend="zarr3"),
        one("bfio zarr", "bfio", _write_bfio, backend="zarr"),
        one("bare", "reference", _write_bare, kind=kind),
    )


def _write_row(
    key: str, title: str, load: Load, kind: str, files: tuple[str, ...], truth: Any, **options: Any
) -> Row:
    return Row(
        key,
        title,
        _writers(load, kind),
        (faster_than("zarr-python", 2), faster_than("tensorstore", 1), faster_than("bfio", 3)),
        files=files,
        expected=truth,
        **options,
    )


# ------------------------------------------------------------------------------------ opening

Look = Callable[["Path", bool], Any]


def _look_ours(path: Path, tile: bool) -> Any:
    from bioio_tk import BioReader

    with BioReader(path) as reader:
        if tile:
            return reader[(*TILE_AT, 0, 0, 0)]
        assert len(reader.level_shapes) == LEVELS
        return str((reader.T, reader.C, reader.Z, reader.Y, reader.X))


def _look_zarr(path: Path, tile: bool) -> Any:
    import zarr

    group = zarr.open_group(path, mode="r")
    datasets = group.attrs["ome"]["multiscales"][0]["datasets"]
    array = group[datasets[0]["path"]]
    if tile:
        return array[(0, 0, 0, *TILE_AT)]
    assert len([group[one["path"]].shape for one in datasets]) == LEVELS
    return str(tuple(array.shape))


def _look_tensorstore(path: Path, tile: bool) -> Any:
    if tile:
        return open_tensorstore(path / "0")[(0, 0, 0, *TILE_AT)].read().result()
    arrays = [open_tensorstore(path / str(level)) for level in range(LEVELS)]
    return str(tuple(arrays[0].shape))


def _look_bfio(path: Path, tile: bool) -> Any:
    import bfio

    with bfio.BioReader(path, backend="zarr3") as reader:
        if tile:
            return reader[(*TILE_AT, 0, 0, 0)]
        return str((reader.T, reader.C, reader.Z, reader.Y, reader.X))


def _look_ngff_zarr(path: Path, tile: bool) -> Any:
    from ngff_zarr import from_ngff_zarr

    levels = from_ngff_zarr(str(path)).images
    if tile:
        return np.asarray(levels[0].data[(0, 0, 0, *TILE_AT)])
    assert len(levels) == LEVELS
    return str(tuple(levels[0].data.shape))


def _look_ome_zarr_py(path: Path, tile: bool) -> Any:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    levels = next(iter(Reader(parse_url(str(path)))())).data
    if tile:
        return np.asarray(levels[0][(0, 0, 0, *TILE_AT)])
    assert len(levels) == LEVELS
    return str(tuple(levels[0].shape))


LOOKS: dict[str, tuple[str, str, Look]] = {  # by label: column, module, function
    OURS: (OURS, "bioio_tk", _look_ours),
    "zarr-python": ("zarr-python", "zarr", _look_zarr),
    "tensorstore": ("tensorstore", "tensorstore", _look_tensorstore),
    "bfio": ("bfio", "bfio", _look_bfio),
    "ngff-zarr": ("others", "ngff_zarr", _look_ngff_zarr),
    "ome-zarr-py": ("others", "ome_zarr.reader", _look_ome_zarr_py),
}


def opening(module: str, look: Look, *, tile: bool, first: bool) -> Session:
    """Open a store and ask for its shape or for a tile, in a process that has the imports.

    ``first``: the very first store of a process, otherwise many, one after the other.
    """

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        from importlib import import_module

        import_module(module)
        path = case.file("levels.ome.zarr")
        if first:
            yield lambda: look(path, tile)
            return
        look(path, tile)
        yield lambda: [look(path, tile) for _ in range(OPENS_PER_TURN)][-1]

    return session


def _open_row(key: str, title: str, *, tile: bool = False, first: bool = False) -> Row:
    def truth(case: Case) -> Truth:
        if tile:
            return digest(images.load_camera(case)[TILE_AT])
        return str((1, 1, 1, case.size, case.size))

    return Row(
        key,
        title,
        tuple(
            Contestant(label, column, opening(module, look, tile=tile, first=first))
            for label, (column, module, look) in LOOKS.items()
        ),
        () if first else tuple(faster_than_one(label, 1) for label in LOOKS if label != OURS),
        files=("levels.ome.zarr",),
        expected=truth,
        per=lambda case: 1 if first else OPENS_PER_TURN,
        repeats=3 if first else 99,
        fresh=first,
        warm=False,
        extra=True,
        note="" if tile or first else "tensorstore is told which arrays there are; bfio opens one.",
    )


# ---------------------------------------------------------------------------------- conversion


def _written(path: Path, case: Case, name: str) -> Written:
    # a pyramid of at least two levels; how many is up to the contestant, of a small image none
    return Written(path, sampled="big" in name, levels=2 if case.size > 4096 else 1)


def ours_convert(name: str, ending: str) -> Session:
    """bioio_tk: convert with a pyramid."""

    def work(case: Case) -> Written:
        from bioio_tk import convert

        path = case.output(ending)
        convert(case.file(name), path, pyramid=True, max_workers=case.workers, overwrite=True)
        return _written(path, case, name)

    return once(work)


def ngff_zarr_convert(name: str) -> Session:
    """ngff-zarr's command with the options that make it fastest."""

    def work(case: Case) -> Written:
        import dask
        from ngff_zarr.cli import main

        path = case.output(".ome.zarr")
        options = ["-q", "-m", "dask_bin_shrink", "--no-omero", "-c", "1024"]
        with dask.config.set(num_workers=case.workers):
            main(["-i", str(case.file(name)), "-o", str(path), *options])
        return _written(path, case, name)

    return once(work)


def bioio_convert(name: str) -> Session:
    """bioio-conversion, as its command calls it."""

    def work(case: Case) -> Written:
        from bioio_conversion.converters import OmeZarrConverter

        path = case.output(".ome.zarr")
        OmeZarrConverter(
            source=str(case.file(name)),
            destination=str(path.parent),
            name=path.name.removesuffix(".ome.zarr"),
            n_workers=case.workers,
        ).convert()
        return _written(path, case, name)

    return once(work)


def bfio_convert(name: str, ending: str, backends: tuple[str, str]) -> Session:
    """bfio: plane by plane; it has no pyramids."""

    def work(case: Case) -> Written:
        import bfio

        path = case.output(ending)
        with (
            bfio_open(case, name, backends[0]) as reader,
            bfio.BioWriter(
                path,
                max_workers=case.workers,
                backend=backends[1],
                X=reader.X,
                Y=reader.Y,
                C=reader.C,
                dtype=reader.dtype,
            ) as writer,
        ):
            for c in range(reader.C):
                plane = reader[:, :, 0:1, c : c + 1, 0:1]
                writer[:, :, 0:1, c : c + 1, 0:1] = plane.reshape(reader.Y, reader.X, 1, 1, 1)
        return Written(path)

    return once(work)


def pyvips_convert(name: str) -> Session:
    """libvips: TIFF to a TIFF with a pyramid; it streams."""

    def work(case: Case) -> Written:
        import pyvips

        path = case.output()
        pyvips.Image.new_from_file(str(case.file(name)), n=-1, access="sequential").tiffsave(
            str(path),
            tile=True,
            tile_width=images.TILE,
            tile_height=images.TILE,
            compression="deflate",
            level=1,
            pyramid=True,
            subifd=True,
            bigtiff=True,
        )
        return _written(path, case, name)

    return once(work)


def _big_truth(case: Case) -> Truth:
    return digest(Written(case.file("three-big.ome.tif"), sampled=True))


CONVERT_NOTE = (
    "as large a pyramid and the compression each makes by itself. Peak memory is that of "
    "the process and those it starts, interpreter and imports included."
)

# ------------------------------------------------------------------------------------- the rows

ROWS: tuple[Row, ...] = (
    _write_row(
        "write-plain",
        "write zstd, chunks 1024², unsharded",
        _camera5,
        "plain",
        ("camera.npy",),
        images.camera_truth,
    ),
    _write_row(
        "write-sharded",
        "write zstd, chunks 256² in shards 2048²",
        _camera5,
        "sharded",
        ("camera.npy",),
        images.camera_truth,
        note=BFIO_WRITES,
    ),
    _write_row(
        "write-stack-plain",
        "write a 5-D stack, zstd, unsharded",
        images.load_stack5,
        "plain",
        ("stack5.npy",),
        images.stack5_planes_truth,
    ),
    _write_row(
        "write-stack-sharded",
        "write a 5-D stack, chunks 256² in shards of four planes 1024²",
        images.load_stack5,
        "stack",
        ("stack5.npy",),
        images.stack5_planes_truth,
        note=BFIO_WRITES,
    ),
    _read_row(
        "read-plain",
        "read zstd, chunks 1024², unsharded",
        "plain.ome.zarr",
        2,
        images.camera_truth,
    ),
    _read_row(
        "read-sharded",
        "read zstd, chunks 256² in shards 2048²",
        "sharded.ome.zarr",
        6,
        images.camera_truth,
    ),
    _read_row(
        "read-stack-plain",
        f"read a 5-D stack {' × '.join(map(str, STACK5))} (T C Z Y X), unsharded",
        "stack5-plain.ome.zarr",
        2,
        images.stack5_truth,
        BFIO_READS,
    ),
    _read_row(
        "read-stack-sharded",
        "read a 5-D stack, chunks 256² in shards of four planes 1024²",
        "stack5-sharded.ome.zarr",
        6,
        images.stack5_truth,
        BFIO_READS,
    ),
    Row(
        "region",
        "one unaligned 1024² region of the sharded store",
        (
            Contestant(OURS, OURS, cutting(_cut_ours)),
            *(
                Contestant(name, name, cutting(partial(_cut_zarr, pipeline=name)))
                for name in ("zarr-python", "zarrs")
            ),
            Contestant("tensorstore", "tensorstore", cutting(_cut_tensorstore)),
            *(
                Contestant(f"bfio {name}", "bfio", cutting(partial(_cut_bfio, backend=name)))
                for name in ("zarr3", "tensorstore")
            ),
            Contestant("bare", "reference", cutting(_cut_bare)),
        ),
        (
            faster_than("tensorstore", 1),
            reads_no_more_than("bare", 1.02, "its chunks and indexes"),
        ),
        files=("sharded.ome.zarr",),
        expected=_regions_truth,
        per=lambda case: len(_corners(case)),
        note=(
            "the reader is open beforehand; the regions share no chunk. bare reads just the "
            "chunks that a region touches and the indexes of their shards."
        ),
    ),
    _open_row("open", f"open a store of {LEVELS} levels, ask for its shape"),
    _open_row("open-tile", "open it and read one 256² tile", tile=True),
    _open_row(
        "open-first", "open it and read one tile, first store of a process", tile=True, first=True
    ),
    Row(
        "tiff-to-zarr",
        "OME-TIFF to OME-Zarr with pyramid, 3 × {size}²",
        (
            Contestant(OURS, OURS, ours_convert("three.ome.tif", ".ome.zarr")),
            Contestant("ngff-zarr", "others", ngff_zarr_convert("three.ome.tif")),
            Contestant("bioio-conversion", "others", bioio_convert("three.ome.tif")),
            Contestant(
                "bfio, no pyramid",
                "bfio",
                bfio_convert("three.ome.tif", ".ome.zarr", ("python", "zarr3")),
                counts=False,
            ),
        ),
        (
            faster_than_one("ngff-zarr", 2),
            faster_than_one("bioio-conversion", 4),
            peak_below(300),
        ),
        files=("three.ome.tif",),
        expected=images.three_truth,
        repeats=3,
        tree=True,
        note=CONVERT_NOTE + " ngff-zarr runs with -m dask_bin_shrink --no-omero -c 1024.",
    ),
    Row(
        "tiff-to-zarr-big",
        "the same, 3 × {double}²: peak memory",
        (
            Contestant(OURS, OURS, ours_convert("three-big.ome.tif", ".ome.zarr")),
            Contestant("ngff-zarr", "others", ngff_zarr_convert("three-big.ome.tif")),
        ),
        (peak_below(300),),
        files=("three-big.ome.tif",),
        expected=_big_truth,
        once=True,
        tree=True,
        memory=True,
        warm=False,
    ),
    Row(
        "zarr-to-tiff",
        "OME-Zarr to OME-TIFF with pyramid, 3 × {size}²",
        (
            Contestant(OURS, OURS, ours_convert("three.ome.zarr", ".ome.tif")),
            Contestant(
                "bfio, no pyramid",
                "bfio",
                bfio_convert("three.ome.zarr", ".ome.tif", ("zarr3", "python")),
            ),
            Contestant("pyvips, from TIFF", "others", pyvips_convert("three.ome.tif")),
        ),
        (
            faster_than_one("bfio, no pyramid", 2),
            faster_than_one("pyvips, from TIFF", 4),
            peak_below(300),
        ),
        files=("three.ome.zarr", "three.ome.tif"),
        expected=images.three_truth,
        repeats=3,
        tree=True,
        note=(
            CONVERT_NOTE + " bfio makes no pyramid, libvips has no Zarr: the one writes a third "
            "less, the other reads the same pixels from a TIFF (deflate, tiles of 1024²)."
        ),
    ),
    Row(
        "zarr-to-tiff-big",
        "the same, 3 × {double}²: peak memory",
        (
            Contestant(OURS, OURS, ours_convert("three-big.ome.zarr", ".ome.tif")),
            Contestant("pyvips, from TIFF", "others", pyvips_convert("three-big.ome.tif")),
        ),
        (peak_below(300),),
        files=("three-big.ome.zarr", "three-big.ome.tif"),
        expected=_big_truth,
        once=True,
        tree=True,
        memory=True,
        warm=False,
    ),
)
