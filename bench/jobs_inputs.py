"""Input files of the suite of conversion jobs: folders of small files, and very large images.

An image of 24 GiB takes a hundred megabytes here. In a TIFF the entries of its tile table share a
few real tiles, in a store the files of its chunks are hard links to a few real ones, and the
pixels of a ``.fake`` are made up by Bio-Formats. Whoever converts one has every tile to decode and
to encode all the same: one in four is a camera's picture, the others are black, as the most part
of a slide is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import images, vendor
from bench.images import TILE
from bench.measure import Case, digest, digest_of_all, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

GIB = 1 << 30
SIZES = (0.1, 0.4, 1.5, 6.0, 24.0)  # GiB of pixels
KINDS = 4  # different tiles of pixels in a large image
DETAIL_EVERY = 4
SMALL_FILES = 500
SMALL = (512, 1024)  # 1 MB of uint16
FULL = 4096  # from this size of the case on, large images are as large as they are called
FAKE_BOX = 10


# ----------------------------------------------------------------------------- large images


def pixel_bytes(gibibytes: float, case: Case) -> int:
    """Bytes of pixels of the image called so; in a quick run a 64th of what it is called."""
    return int(gibibytes * GIB) if case.size >= FULL else int(gibibytes * GIB) // 64


def side(gibibytes: float, case: Case) -> int:
    """Side in pixels of a square uint16 image of about so many bytes, in whole tiles."""
    return max(1, round((pixel_bytes(gibibytes, case) / 2) ** 0.5 / TILE)) * TILE


def large(gibibytes: float, ending: str) -> str:
    """Name of the large image of this size."""
    return f"gib-{gibibytes:g}{ending}"


def _tiles() -> list[NDArray[np.uint16]]:
    """The tiles that a large image consists of: a black one, and some of a camera's picture."""
    detail = images.camera((TILE, KINDS * TILE), seed=2)
    pieces = [np.ascontiguousarray(detail[:, i * TILE : (i + 1) * TILE]) for i in range(KINDS)]
    return [np.zeros((TILE, TILE), np.uint16), *pieces]


def _choice(count: int) -> Iterator[int]:
    for i in range(count):
        yield 1 + i // DETAIL_EVERY % KINDS if i % DETAIL_EVERY == 0 else 0


def _make_large_tiff(gibibytes: float) -> Callable[[Path, Case], None]:
    def make(path: Path, case: Case) -> None:
        from imagecodecs import deflate_encode

        segments = [bytes(deflate_encode(tile.tobytes(), 1)) for tile in _tiles()]
        edge = side(gibibytes, case)
        choice = list(_choice((edge // TILE) ** 2))
        images._write_shared_tiles(path, edge, segments, choice)

    return make


def _make_large_store(gibibytes: float) -> Callable[[Path, Case], None]:
    def make(path: Path, case: Case) -> None:
        from imagecodecs import zstd_encode

        edge = side(gibibytes, case)
        images.create_store(path, (1, 1, 1, edge, edge), "plain")
        chunks = path / "0" / "c" / "0" / "0" / "0"
        originals = []
        for i, tile in enumerate(_tiles()):
            originals.append(path / f"tile-{i}")
            originals[-1].write_bytes(zstd_encode(tile.tobytes(), 1))
        across = edge // TILE
        for place, kind in enumerate(_choice(across * across)):
            y, x = divmod(place, across)
            (chunks / str(y)).mkdir(parents=True, exist_ok=True)
            os.link(originals[kind], chunks / str(y) / str(x))
        for original in originals:
            original.unlink()

    return make


def large_truth(gibibytes: float) -> Callable[[Case], str]:
    """Fingerprint of some tiles of a large image."""
    name = large(gibibytes, ".ome.tif")
    return lambda case: images.sampled_truth(name, case)


def sizes_truth(labels: dict[str, float]) -> Callable[[Case], dict[str, str]]:
    """Fingerprints by the label of whoever converts an image of that size."""
    return lambda case: {label: large_truth(size)(case) for label, size in labels.items()}


# ------------------------------------------------------------------------------ Bio-Formats


def _make_fake(gibibytes: float) -> Callable[[Path, Case], None]:
    """Write an ini file of the format .fake, whose pixels Bio-Formats makes up."""

    def make(path: Path, case: Case) -> None:
        edge = side(gibibytes, case)
        path.write_text("#", encoding="utf-8")
        lines = (f"sizeX = {edge}", f"sizeY = {edge}", "sizeC = 1", "pixelType = uint16")
        ini = path.with_name(path.name.removeprefix("making-") + ".ini")
        ini.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return make


def fake_tile(y: int, x: int) -> NDArray[np.uint16]:
    """A tile of what FakeReader shows: the number of the column, under boxes with zeros."""
    row = np.arange(x, x + TILE).astype(np.uint16)
    tile = np.tile(row, (TILE, 1))
    if y == 0 and x == 0:
        tile[:FAKE_BOX, : 5 * FAKE_BOX] = 0
    return tile


def fake_truth(gibibytes: float) -> Callable[[Case], str]:
    """Fingerprint of some tiles of a fake image."""

    def truth(case: Case) -> str:
        edge = side(gibibytes, case)
        places = (divmod(i, edge // TILE) for i in sample((edge // TILE) ** 2))
        tiles = [fake_tile(y * TILE, x * TILE) for y, x in places]
        return f"{(edge, edge)} {digest(tiles)}"

    return truth


# -------------------------------------------------------------------------------- small files


def small_pixels(number: int) -> NDArray[np.uint16]:
    """Pixels of a small file."""
    rows = 8 * (number % 64)
    block: NDArray[np.uint16] = _small_block()[rows : rows + SMALL[0]]
    return np.roll(block, number, axis=1)


_kept: list[NDArray[np.uint16]] = []


def _small_block() -> NDArray[np.uint16]:
    if not _kept:
        _kept.append(images.camera((2 * SMALL[0], SMALL[1]), seed=6))
    return _kept[0]


def small_count(case: Case) -> int:
    """How many small files there are."""
    return SMALL_FILES if case.size >= FULL else SMALL_FILES // 10


def _make_small_files(path: Path, case: Case) -> None:
    """A folder of uncompressed OME-TIFFs of one plane, as an acquisition leaves them."""
    import tifffile

    path.mkdir()
    for number in range(small_count(case)):
        tifffile.imwrite(
            path / f"img_t{number:03d}.ome.tif",
            small_pixels(number),
            ome=True,
            metadata={"axes": "YX", "PhysicalSizeX": 0.325, "PhysicalSizeY": 0.325},
            photometric="minisblack",
        )


def small_truth(case: Case) -> str:
    """Fingerprint of a folder with as many files as there are small ones, in the same order."""
    return digest_of_all([str(digest([small_pixels(i)])) for i in range(small_count(case))])


# ----------------------------------------------------------------------------------- the rest


def room_for(case: Case, needed: int) -> None:
    """Raise if the disk has not the room that a contestant's output takes."""
    free = shutil.disk_usage(case.folder).free
    if free < needed:
        raise OSError(f"{free / GIB:.0f} GiB are free, {needed / GIB:.0f} GiB are needed")


def forget(path: Path) -> None:
    """Remove what a contestant left."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _register() -> None:
    made: dict[str, Any] = {"small-files": _make_small_files}
    for size in SIZES:
        made[large(size, ".ome.tif")] = _make_large_tiff(size)
        made[large(size, ".ome.zarr")] = _make_large_store(size)
        made[large(size, ".fake")] = _make_fake(size)
    images.MAKERS.update(made)


assert vendor.MOSAIC_TILE  # the CZI is of its making
_register()
