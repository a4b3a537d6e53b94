"""Input files of the Java suite: vendors' formats, made large without bioio_tk or Bio-Formats.

CZI are written by pylibCZIrw. Nobody writes LIF and ND2, so a real file of each is enlarged: its
header, metadata and order of blocks stay, the numbers that give the size are edited, and the
blocks of pixels are exchanged for larger ones. liffile and nd2 read the results.
"""

from __future__ import annotations

import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import images
from bench.measure import Case, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MOSAIC_TILE = 256
LIF = "lif/LeicaLASX_wavelength-sweep_example.lif"
LIF_PLANES = (2, 10, 11)  # T, wavelengths, Z of its last image
ND2 = "nd2/example-timelapse.nd2"
ND2_PLANES = 53
SIDE = 1024  # of a plane of the enlarged LIF
ND2_SIDE = 2048


def real(case: Case, name: str) -> Path:
    """Return a real file of the shared data."""
    path = case.data / name
    if not path.exists():
        raise FileNotFoundError(f"no {name} in {case.data}: give the folder with --data")
    return path


# ------------------------------------------------------------------------------------- TIFF


def _tiff(**options: Any) -> Callable[[Path, Case], None]:
    def make(path: Path, case: Case) -> None:
        import tifffile

        image = images.load_camera(case)
        chosen = {"compression": "zlib", "compressionargs": {"level": 1}} | options
        if chosen.get("rowsperstrip") == -1:
            chosen["rowsperstrip"] = len(image)
        tifffile.imwrite(
            path,
            image,
            photometric="minisblack",
            description=images.ome_xml(*image.shape).encode(),
            metadata=None,
            **chosen,
        )

    return make


def _many_planes(path: Path, case: Case) -> None:
    """An OME-TIFF of thousands of small planes, each with its own entry in the OME-XML."""
    import tifffile

    count = case.planes // 10
    pixels = images.camera((count * 64, 64), seed=5).reshape(count, 64, 64)
    tifffile.imwrite(path, pixels, ome=True, metadata={"axes": "TYX"}, photometric="minisblack")


# -------------------------------------------------------------------------------------- CZI


def _mosaic(tile: int, compression: str) -> Callable[[Path, Case], None]:
    def make(path: Path, case: Case) -> None:
        from pylibCZIrw import czi

        image = images.load_camera(case)
        with czi.create_czi(str(path), exist_ok=True, compression_options=compression) as file:
            for y, x in _corners(image.shape, tile):
                piece = np.ascontiguousarray(image[y : y + tile, x : x + tile])
                file.write(data=piece[..., None], location=(x, y))

    return make


def _corners(shape: tuple[int, ...], tile: int) -> Iterator[tuple[int, int]]:
    for y in range(0, shape[0], tile):
        for x in range(0, shape[1], tile):
            yield y, x


# -------------------------------------------------------------------------------------- LIF


def _make_lif(path: Path, case: Case) -> None:
    """Give the last image of the file planes of SIDE x SIDE, and drop the pixels of the others."""
    data = real(case, LIF).read_bytes()
    length = struct.unpack_from("<I", data, 9)[0]
    xml = data[13 : 13 + 2 * length].decode("utf-16-le")
    blocks = list(_lif_blocks(data, 13 + 2 * length))
    name, _ = blocks[-1]
    begin = xml.index('Name="x_y_z_t_lambdaEmi"')
    pixels = lif_pixels(case)
    head, last = xml[:begin], xml[begin:]
    factor = SIDE // 64
    last = last.replace('NumberOfElements="64"', f'NumberOfElements="{SIDE}"')
    last = re.sub(
        r'(DimID="(\d)" [^>]*BytesInc=")(\d+)"',
        lambda m: f'{m[1]}{int(m[3]) * {"1": 1, "2": factor}.get(m[2], factor**2)}"',
        last,
    )
    last = last.replace(
        f'<Memory Size="901120" MemoryBlockID="{name}"',
        f'<Memory Size="{pixels.nbytes}" MemoryBlockID="{name}"',
    )
    with path.open("wb") as file:
        text = (head + last).encode("utf-16-le")
        file.write(struct.pack("<IIBI", 0x70, len(text) + 5, 0x2A, len(text) // 2) + text)
        for block, content in blocks[:-1]:
            _lif_block(file, block, content)
        _lif_block(file, name, pixels)


def _lif_blocks(data: bytes, at: int) -> Iterator[tuple[str, bytes]]:
    while at < len(data):
        magic, _, star, size, star2, length = struct.unpack_from("<IIBQBI", data, at)
        if (magic, star, star2) != (0x70, 0x2A, 0x2A):
            raise ValueError(f"no block of a LIF file at byte {at}")
        at += 22
        name = data[at : at + 2 * length].decode("utf-16-le")
        at += 2 * length
        yield name, data[at : at + size]
        at += size


def _lif_block(file: Any, name: str, content: Any) -> None:
    text = name.encode("utf-16-le")
    size = memoryview(content).nbytes
    file.write(struct.pack("<IIBQBI", 0x70, len(text) + 14, 0x2A, size, 0x2A, len(name)) + text)
    file.write(content)


def lif_pixels(case: Case) -> NDArray[np.uint8]:
    """The pixels of the enlarged LIF, (T, wavelengths, Z, Y, X)."""
    t, c, z = LIF_PLANES
    count = t * c * z
    image = images.camera((SIDE, SIDE), seed=6).astype(np.uint8)
    planes = np.stack([np.roll(image, 7 * i, 1) for i in range(count)])
    return planes.reshape(t, c, z, SIDE, SIDE)


def lif_truth(case: Case) -> str | None:
    """Fingerprint of the enlarged LIF as T, Z, Y, X; Bio-Formats takes wavelengths for times."""
    t, c, z = LIF_PLANES
    return digest(lif_pixels(case).reshape(t * c, z, SIDE, SIDE))


# -------------------------------------------------------------------------------------- ND2

_ND2_MAGIC = 0x0ABECEDA
_ND2_PAGE = 4096
_ND2_TABLE = b"ND2 FILEMAP SIGNATURE NAME 0001!"
_ND2_END = b"ND2 CHUNK MAP SIGNATURE 0000001!"


def _make_nd2(*, compressed: bool) -> Callable[[Path, Case], None]:
    """Copy all chunks of a real file; the planes become larger, and the table of chunks new."""

    def make(path: Path, case: Case) -> None:
        data = real(case, ND2).read_bytes()
        table = _nd2_table(data)
        order = sorted(table, key=lambda name: table[name])
        entries = []
        with ThreadPoolExecutor(case.workers) as pool, path.open("wb") as file:
            planes = pool.map(lambda i: _nd2_plane(i, compressed=compressed), range(ND2_PLANES))
            file.write(data[: min(table.values())])
            for name in order:
                content = _nd2_chunk(data, table[name])
                if name.startswith(b"ImageDataSeq|"):
                    content = content[:8] + next(planes)
                elif name == b"ImageAttributesLV!":
                    content = _nd2_resized(content, compressed=compressed)
                entries.append((name, _nd2_write(file, name, content), len(content)))
            listed = b"".join(name + struct.pack("<QQ", *rest) for name, *rest in entries)
            file.write(bytes(-file.tell() % _ND2_PAGE))
            _nd2_write(file, _ND2_TABLE, listed + _ND2_END + struct.pack("<Q", file.tell()))

    return make


def _nd2_table(data: bytes) -> dict[bytes, int]:
    """Return where each chunk of a file lies."""
    at = _nd2_start(data, struct.unpack("<Q", data[-8:])[0])
    found = {}
    while True:
        end = data.index(b"!", at) + 1
        name = data[at:end]
        if name == _ND2_END:
            return found
        found[name] = struct.unpack_from("<Q", data, end)[0]
        at = end + 16


def _nd2_start(data: bytes, at: int) -> int:
    magic, shift = struct.unpack_from("<II", data, at)
    if magic != _ND2_MAGIC:
        raise ValueError(f"no chunk of an ND2 file at byte {at}")
    return int(at + 16 + shift)


def _nd2_chunk(data: bytes, at: int) -> bytes:
    start = _nd2_start(data, at)
    return data[start : start + struct.unpack_from("<Q", data, at + 8)[0]]


def _nd2_write(file: Any, name: bytes, content: bytes) -> int:
    """Write a chunk at the next page; return where it lies."""
    file.write(bytes(-file.tell() % _ND2_PAGE))
    at = int(file.tell())
    shift = _ND2_PAGE - 24  # of a plane the first 8 bytes are a date: its pixels begin a page
    file.write(struct.pack("<IIQ", _ND2_MAGIC, shift, len(content)) + name.ljust(shift, b"\0"))
    file.write(content)
    return at


def _nd2_resized(content: bytes, *, compressed: bool) -> bytes:
    values = {
        "uiWidth": ND2_SIDE,
        "uiWidthBytes": 2 * ND2_SIDE,
        "uiHeight": ND2_SIDE,
        "uiTileWidth": ND2_SIDE,
        "uiTileHeight": ND2_SIDE,
        "eCompression": 0 if compressed else 2,
    }
    result = bytearray(content)
    for name, value in values.items():
        text = bytes([len(name) + 1]) + (name + "\0").encode("utf-16-le")
        struct.pack_into("<I", result, content.index(text) + len(text), value)
    return bytes(result)


def _nd2_plane(number: int, *, compressed: bool) -> bytes:
    pixels = np.roll(images.camera((ND2_SIDE, ND2_SIDE), seed=8), 11 * number, 1).tobytes()
    return zlib.compress(pixels, 1) if compressed else pixels


def nd2_truth(case: Case) -> str | None:
    """Fingerprint of the enlarged ND2 as T, Y, X."""
    image = images.camera((ND2_SIDE, ND2_SIDE), seed=8)
    return digest(np.stack([np.roll(image, 11 * i, 1) for i in range(ND2_PLANES)]))


# ------------------------------------------------------------------------------------- table

images.MAKERS.update(
    {
        "strips.ome.tif": _tiff(rowsperstrip=64),
        "small-tiles.ome.tif": _tiff(tile=(256, 256)),
        "one-strip.ome.tif": _tiff(rowsperstrip=-1),
        "many.ome.tif": _many_planes,
        "mosaic.czi": _mosaic(MOSAIC_TILE, "zstd1:ExplicitLevel=1"),
        "many.czi": _mosaic(64, "uncompressed:"),
        "large.lif": _make_lif,
        "raw.nd2": _make_nd2(compressed=False),
        "deflate.nd2": _make_nd2(compressed=True),
    }
)
for _name in ("strips.ome.tif", "small-tiles.ome.tif", "one-strip.ome.tif"):
    images.NEEDS[_name] = ("camera.npy",)
for _name in ("mosaic.czi", "many.czi"):
    images.NEEDS[_name] = ("camera.npy",)
