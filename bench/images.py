"""Input files of the benchmark: generated once per run, deterministic, made without bioio_tk.

All shared TIFF files are OME-TIFF with 1024 tiles, one plane per IFD in the order XYZCT, written
by tifffile: the one kind that every contestant accepts (bfio's Python backend refuses other
tiles, and any OME-XML whose order is not XYZCT, which includes tifffile's own). All Zarr stores
are OME-Zarr 0.5 with the five axes t, c, z, y, x, Zstandard at level 1, written by zarr-python.
"""

from __future__ import annotations

import math
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.measure import Case, Written, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TILE = 1024
DEPTH = 64
STACK5 = (4, 3, 8, 1024, 1024)  # T, C, Z, Y, X
LEVELS = 6
STRIPE = 256
DETAIL_EVERY = 16  # one tile in so many of the big image holds pixels, the others are black

Image = NDArray[np.uint16]


# ------------------------------------------------------------------------------------- pixels


def camera(shape: tuple[int, int], seed: int = 0) -> Image:
    """Picture of a fluorescence camera: photon noise around 100 counts and soft blobs.

    Rows are drawn in stripes with a random stream each, so that threads can share the work
    and the result does not depend on how many there are.
    """
    height = shape[0]
    light = _blobs(shape, np.random.default_rng(seed))
    image = np.empty(shape, np.uint16)
    starts = range(0, height, STRIPE)
    streams = np.random.SeedSequence(seed).spawn(len(starts))

    def draw(start: int, stream: np.random.SeedSequence) -> None:
        rows = slice(start, min(start + STRIPE, height))
        image[rows] = np.random.Generator(np.random.SFC64(stream)).poisson(light[rows])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(draw, starts, streams))
    return image


def _blobs(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    height, width = shape
    light = np.full(shape, 100, np.float32)
    for _ in range(max(4, height * width // 110_000)):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        sigma, bright = rng.uniform(6, 40), rng.uniform(50, 1500)
        rows = np.arange(max(0, int(y - 4 * sigma)), min(height, int(y + 4 * sigma)))
        columns = np.arange(max(0, int(x - 4 * sigma)), min(width, int(x + 4 * sigma)))
        down = np.exp(-((rows - y) ** 2) / (2 * sigma**2)).astype(np.float32)
        across = np.exp(-((columns - x) ** 2) / (2 * sigma**2)).astype(np.float32)
        if len(rows) and len(columns):
            light[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += (
                np.float32(bright) * down[:, None] * across
            )
    return light


def load_camera(case: Case) -> Image:
    """The 2-D test image, in memory."""
    image: Image = np.load(case.file("camera.npy"))
    return image


def load_stack(case: Case) -> Image:
    """The Z stack's planes, (Z, Y, X), in memory."""
    image: Image = np.load(case.file("stack.npy"))
    return image


# -------------------------------------------------------------------------------------- files


def ome_xml(y: int, x: int, z: int = 1, c: int = 1) -> str:
    """OME-XML of a uint16 image in the order XYZCT."""
    channels = "".join(
        f'<Channel ID="Channel:0:{i}" Name="{name}" SamplesPerPixel="1"/>'
        for i, name in enumerate(("DAPI", "GFP", "RFP")[:c])
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:schemaLocation="http://www.openmicroscopy.org/Schemas/OME/2016-06 '
        'http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd">'
        '<Image ID="Image:0" Name="bench"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
        f'Type="uint16" SizeX="{x}" SizeY="{y}" SizeZ="{z}" SizeC="{c}" SizeT="1" '
        'BigEndian="false" PhysicalSizeX="0.325" PhysicalSizeXUnit="µm" '
        'PhysicalSizeY="0.325" PhysicalSizeYUnit="µm">'
        f'{channels}<TiffData IFD="0" PlaneCount="{z * c}"/></Pixels></Image></OME>'
    )


def _tiled(path: Path, planes: Image, compression: str | None) -> None:
    import tifffile

    y, x = planes.shape[-2:]
    tifffile.imwrite(
        path,
        planes,
        tile=(TILE, TILE),
        compression=compression,
        compressionargs={"level": 1} if compression else None,  # bfio's and most writers' level
        photometric="minisblack",
        description=ome_xml(y, x, planes.size // (y * x)).encode(),
        metadata=None,
    )


def three_planes(case: Case) -> Iterator[Image]:
    """The three channels of the image to convert, one after the other."""
    image = load_camera(case)
    for channel in range(3):
        yield np.roll(image, 1000 * channel, axis=1)


def big_planes(case: Case) -> Iterator[Image]:
    """The same twice as wide and high."""
    for plane in three_planes(case):
        yield np.tile(plane, (2, 2))


def _make_channels(
    planes: Callable[[Case], Iterator[Image]], factor: int
) -> Callable[[Path, Case], None]:
    def make(path: Path, case: Case) -> None:
        import tifffile

        side = case.size * factor
        with tifffile.TiffWriter(path, bigtiff=True) as tif:
            for index, plane in enumerate(planes(case)):
                tif.write(
                    plane,
                    tile=(TILE, TILE),
                    compression="zlib",
                    compressionargs={"level": 1},
                    photometric="minisblack",
                    description=None if index else ome_xml(side, side, c=3).encode(),
                    metadata=None,
                )

    return make


def ngff_attributes(levels: int = 1, channels: int = 1) -> dict[str, Any]:
    """Group attributes of an OME-Zarr 0.5 image, every level half the size of the one before."""
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    datasets = []
    for level in range(levels):
        scale = [1.0, 1.0, 1.0, 0.325 * 2**level, 0.325 * 2**level]
        transform = {"type": "scale", "scale": scale}
        datasets.append({"path": str(level), "coordinateTransformations": [transform]})
    names = ("DAPI", "GFP", "RFP")[:channels]
    window = {"min": 0, "max": 65535, "start": 0, "end": 2000}
    omero = [{"label": n, "color": "FFFFFF", "active": True, "window": window} for n in names]
    image = {"name": "bench", "axes": axes, "datasets": datasets}
    return {"ome": {"version": "0.5", "multiscales": [image], "omero": {"channels": omero}}}


CHUNKS = {  # by the kind of store: chunks, shards
    "plain": ((1, 1, 1, 1024, 1024), None),
    "sharded": ((1, 1, 1, 256, 256), (1, 1, 1, 2048, 2048)),
    "stack": ((1, 1, 1, 256, 256), (1, 1, 4, 1024, 1024)),
    "small": ((1, 1, 1, 256, 256), None),
}


def create_store(
    path: Path, shape: tuple[int, ...], kind: str, levels: int = 1, name: str = "0"
) -> Any:
    """Lay out a store with zarr-python; the array of the largest level (or that of ``name``)."""
    import zarr
    from zarr.codecs import ZstdCodec

    chunks, shards = CHUNKS[kind]
    group = zarr.open_group(path, mode="a", zarr_format=3)
    group.attrs.update(ngff_attributes(levels, shape[1]))
    return group.create_array(
        name,
        shape=shape,
        dtype="uint16",
        chunks=chunks,
        shards=shards,
        compressors=ZstdCodec(level=1),
        dimension_names=tuple("tczyx"),
        overwrite=True,
    )


def _make_camera_store(kind: str, levels: int = 1) -> Callable[[Path, Case], None]:
    def make(path: Path, case: Case) -> None:
        image = load_camera(case)
        for level in range(levels):
            array = create_store(path, (1, 1, 1, *image.shape), kind, levels, str(level))
            array[0, 0, 0] = image
            image = image[::2, ::2]

    return make


def _make_channels_store(
    planes: Callable[[Case], Iterator[Image]], factor: int
) -> Callable[[Path, Case], None]:
    def make(path: Path, case: Case) -> None:
        side = case.size * factor
        array = create_store(path, (1, 3, 1, side, side), "plain")
        for channel, plane in enumerate(planes(case)):
            array[0, channel, 0] = plane

    return make


def _make_stack5(path: Path, case: Case) -> None:
    np.save(path, camera((math.prod(STACK5[:4]), STACK5[4]), seed=4).reshape(STACK5))


def _make_stack5_store(kind: str) -> Callable[[Path, Case], None]:
    def make(path: Path, case: Case) -> None:
        create_store(path, STACK5, kind)[...] = load_stack5(case)

    return make


def load_stack5(case: Case) -> Image:
    """The 5-D stack, (T, C, Z, Y, X), in memory."""
    image: Image = np.load(case.file("stack5.npy"))
    return image


def _camera_file(compression: str | None) -> Callable[[Path, Case], None]:
    return lambda path, case: _tiled(path, load_camera(case), compression)


def _make_camera(path: Path, case: Case) -> None:
    np.save(path, camera((case.size, case.size)))


def _make_stack(path: Path, case: Case) -> None:
    planes = camera((DEPTH * TILE, TILE), seed=1)
    np.save(path, planes.reshape(DEPTH, TILE, TILE))


def _make_stack_file(path: Path, case: Case) -> None:
    _tiled(path, load_stack(case), "zlib")


def _make_small(size: int, compression: str | None) -> Callable[[Path, Case], None]:
    def make(path: Path, case: Case) -> None:
        import tifffile

        tifffile.imwrite(path, camera((size, size), seed=size), compression=compression)

    return make


def _make_planes(path: Path, case: Case) -> None:
    """A long time series with its planes compressed one by one, as an acquisition leaves it."""
    import tifffile

    planes = camera((case.planes * 32, 32), seed=3).reshape(case.planes // 100, 2, 50, 32, 32)
    tifffile.imwrite(
        path,
        planes,
        ome=True,
        metadata={"axes": "TCZYX"},
        compression="zlib",
        compressionargs={"level": 1},
        photometric="minisblack",
    )


def copy_side(gigabytes: float) -> int:
    """Side in pixels of a square uint16 image of so many bytes, in whole tiles."""
    return max(1, math.ceil(math.sqrt(gigabytes * 1e9 / 2) / TILE)) * TILE


def _make_big(share: float) -> Callable[[Path, Case], None]:
    """A huge image in a small file: the entries of its tile table share a few real tiles.

    Unlike a sparse file, in which a reader has nothing to decode, and which bfio cannot read,
    it makes every contestant decode and encode every tile.
    """

    def make(path: Path, case: Case) -> None:
        from imagecodecs import deflate_encode

        side = copy_side(case.copy_gb * share)
        detail = camera((TILE, 4 * TILE), seed=2)
        tiles = [np.zeros((TILE, TILE), np.uint16)]
        tiles += [detail[:, i * TILE : (i + 1) * TILE] for i in range(4)]
        segments = [bytes(deflate_encode(tile.tobytes(), 1)) for tile in tiles]
        count = (side // TILE) ** 2
        choice = [1 + i // DETAIL_EVERY % 4 if i % DETAIL_EVERY == 0 else 0 for i in range(count)]
        _write_shared_tiles(path, side, segments, choice)

    return make


def _write_shared_tiles(path: Path, side: int, segments: list[bytes], choice: list[int]) -> None:
    """Write a one-page BigTIFF whose tile ``i`` is ``segments[choice[i]]`` (TIFF 6.0, sec. 15)."""
    short, long, long8, text = 3, 4, 16, 2
    places = []
    with path.open("wb") as file:
        file.write(bytes(16))
        for segment in segments:
            places.append(file.tell())
            file.write(segment)
            file.write(bytes(-file.tell() % 8))
        offsets = file.tell()
        file.write(np.array([places[i] for i in choice], "<u8").tobytes())
        counts = file.tell()
        file.write(np.array([len(segments[i]) for i in choice], "<u8").tobytes())
        xml = ome_xml(side, side).encode() + b"\0"
        description = file.tell()
        file.write(xml)
        file.write(bytes(-file.tell() % 8))
        ifd = file.tell()
        # a table of one entry lives in the entry itself
        one = choice[0]
        table = (offsets, counts) if len(choice) > 1 else (places[one], len(segments[one]))
        tags = [
            (256, long, 1, side),
            (257, long, 1, side),
            (258, short, 1, 16),
            (259, short, 1, 8),
            (262, short, 1, 1),
            (270, text, len(xml), description),
            (277, short, 1, 1),
            (322, short, 1, TILE),
            (323, short, 1, TILE),
            (324, long8, len(choice), table[0]),
            (325, long8, len(choice), table[1]),
            (339, short, 1, 1),
        ]
        file.write(struct.pack("<Q", len(tags)))
        for tag in tags:
            file.write(struct.pack("<HHQQ", *tag))
        file.write(struct.pack("<Q", 0))
        file.seek(0)
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, ifd))


MAKERS: dict[str, Callable[[Path, Case], None]] = {
    "camera.npy": _make_camera,
    "stack.npy": _make_stack,
    "deflate.ome.tif": _camera_file("zlib"),
    "zstd.ome.tif": _camera_file("zstd"),
    "raw.ome.tif": _camera_file(None),
    "stack.ome.tif": _make_stack_file,
    "small64.tif": _make_small(64, None),
    "small512.tif": _make_small(512, None),
    "small512.ome.tif": _make_small(512, "zlib"),
    "planes.ome.tif": _make_planes,
    "big.ome.tif": _make_big(1.0),
    "quarter.ome.tif": _make_big(0.25),
    "stack5.npy": _make_stack5,
    "plain.ome.zarr": _make_camera_store("plain"),
    "sharded.ome.zarr": _make_camera_store("sharded"),
    "levels.ome.zarr": _make_camera_store("small", LEVELS),
    "stack5-plain.ome.zarr": _make_stack5_store("plain"),
    "stack5-sharded.ome.zarr": _make_stack5_store("stack"),
    "three.ome.tif": _make_channels(three_planes, 1),
    "three.ome.zarr": _make_channels_store(three_planes, 1),
    "three-big.ome.tif": _make_channels(big_planes, 2),
    "three-big.ome.zarr": _make_channels_store(big_planes, 2),
}
NEEDS = {
    "deflate.ome.tif": ("camera.npy",),
    "zstd.ome.tif": ("camera.npy",),
    "raw.ome.tif": ("camera.npy",),
    "stack.ome.tif": ("stack.npy",),
    "plain.ome.zarr": ("camera.npy",),
    "sharded.ome.zarr": ("camera.npy",),
    "levels.ome.zarr": ("camera.npy",),
    "stack5-plain.ome.zarr": ("stack5.npy",),
    "stack5-sharded.ome.zarr": ("stack5.npy",),
    "three.ome.tif": ("camera.npy",),
    "three.ome.zarr": ("camera.npy",),
    "three-big.ome.tif": ("camera.npy",),
    "three-big.ome.zarr": ("camera.npy",),
}


def ensure(case: Case, names: tuple[str, ...]) -> None:
    """Make the named input files, and what they are made of, unless they are there."""
    for name in names:
        path = case.file(name)
        if path.exists():
            continue
        ensure(case, NEEDS.get(name, ()))
        unfinished = path.with_name("making-" + name)
        MAKERS[name](unfinished, case)
        unfinished.rename(path)


# -------------------------------------------------------------------------------------- truths


def camera_truth(case: Case) -> str | None:
    """Fingerprint of the 2-D test image."""
    return digest(load_camera(case))


def stack_truth(case: Case) -> str | None:
    """Fingerprint of the Z stack as Y,X,Z."""
    return digest(np.moveaxis(load_stack(case), 0, -1))


def stack5_truth(case: Case) -> str | None:
    """Fingerprint of the 5-D stack in the order T, C, Z, Y, X."""
    return digest(load_stack5(case))


def stack5_planes_truth(case: Case) -> str | None:
    """Fingerprint of the same as a written store has it, plane by plane."""
    return digest(list(load_stack5(case).reshape(-1, *STACK5[-2:])))


def three_truth(case: Case) -> str | None:
    """Fingerprint of the image to convert."""
    return digest(list(three_planes(case)))


def file_truth(name: str) -> Callable[[Case], str | None]:
    """Fingerprint of a file as tifffile reads it."""
    return lambda case: digest(Written(case.file(name)))


def sampled_truth(name: str, case: Case) -> str:
    """Fingerprint of some tiles of a file, as tifffile reads them."""
    return str(digest(Written(case.file(name), sampled=True)))
