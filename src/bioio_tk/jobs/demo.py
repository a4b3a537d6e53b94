"""The steps of the demo: make a large source file, check a copy of it, draw a picture of both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioio_tk.engine.copy import View, copy
from bioio_tk.engine.pool import check_workers, ordered
from bioio_tk.errors import DamagedFileError
from bioio_tk.jobs.cells import CHANNELS, UM_PER_PIXEL, Cells
from bioio_tk.jobs.legend import add_legend
from bioio_tk.jobs.thumbnail import composite, encode_png, render
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.core.region import Slices5
    from bioio_tk.engine.copy import Progress

_ROWS = 64
"""Rows of a strip of the source."""
_BAND = 4 * _ROWS
_PANEL = 640


class Checked(NamedTuple):
    """What `verify` has compared.

    Attributes
    ----------
    pixels : int
        Pixels equal in source and copy, both read with `BioReader`.
    tiles : int
        Tiles of the copy, read with tifffile, that are equal to what was generated.
    """

    pixels: int
    tiles: int


def field(nbytes: int) -> Cells:
    """Return a square field of cells with about so many bytes of pixels."""
    side = max(64, round(math.sqrt(nbytes / (2 * len(CHANNELS)))))
    return Cells(side, side)


def pixel_bytes(cells: Cells) -> int:
    """Return the size of all pixels."""
    return 2 * math.prod(cells.shape)


def write_source(cells: Cells, path: Path, progress: Progress | None = None) -> None:
    """Write the field as many microscopes do: an OME-TIFF of deflated strips, no pyramid."""
    from tifffile import TiffWriter

    workers = check_workers(None)
    total, done = pixel_bytes(cells), 0
    bands = [(c, y) for c in range(len(CHANNELS)) for y in range(0, cells.height, _BAND)]

    def strips() -> Iterator[bytes]:
        nonlocal done
        for size, encoded in ordered(lambda band: _band(cells, *band), bands, ahead=2 * workers):
            yield from encoded
            done += size
            if progress is not None:
                progress(done, total)

    with TiffWriter(path, bigtiff=True, ome=True) as writer:
        writer.write(
            strips(),
            shape=cells.shape,
            dtype=np.uint16,
            photometric="minisblack",
            rowsperstrip=_ROWS,
            compression="zlib",
            metadata={
                "axes": "CYX",
                "Name": "a field of cells",
                "Channel": {
                    "Name": [name for name, _ in CHANNELS],
                    "Color": [_packed(color) for _, color in CHANNELS],
                },
                "PhysicalSizeX": UM_PER_PIXEL,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": UM_PER_PIXEL,
                "PhysicalSizeYUnit": "µm",
            },
        )


def verify(
    cells: Cells, source: Path, target: Path, *, tiles: int = 24, progress: Progress | None = None
) -> Checked:
    """Compare every pixel of a copy with its source, and some tiles with what was generated.

    Raises
    ------
    DamagedFileError
        A pixel differs.
    """
    workers = check_workers(None)
    with BioReader(source, workers) as before, BioReader(target, 1) as after:

        def compare(box: Slices5, pixels: NDArray[Any]) -> None:
            if not np.array_equal(after[box].reshape(pixels.shape), pixels):
                raise DamagedFileError(f"the copy differs from its source in {box}")

        copy(
            View.whole(before._source, 0, 0),  # noqa: SLF001 (the engine works on tiles)
            compare,
            after.tile_shape,
            workers=workers,
            progress=progress,
        )
        count = math.prod(before.shape)
    return Checked(count, _check_tiles(cells, target, tiles))


def draw(cells: Cells, path: Path, picture: Path, progress: Progress | None = None) -> None:
    """Write a picture of the whole field beside a part of it at full resolution."""
    whole = render(path, size=_PANEL, progress=progress)
    side = min(_PANEL, cells.height)
    top, left = _busiest(whole.pixels, cells.height, side)
    colors = [color for _, color in CHANNELS]
    with BioReader(path) as reader:
        part = reader[top : top + side, left : left + side].reshape(side, side, -1)
    detail = composite([part[:, :, c].astype(np.float32) for c in range(len(colors))], colors)
    overview = _framed(whole.pixels, cells.height, (top, left, side))
    panels = [
        add_legend(overview, list(CHANNELS), UM_PER_PIXEL * cells.width / overview.shape[1]),
        add_legend(detail, [], UM_PER_PIXEL),
    ]
    height = max(panel.shape[0] for panel in panels)
    panels = [np.pad(p, ((0, height - p.shape[0]), (0, 0), (0, 0))) for p in panels]
    gap = np.zeros((height, 8, 3), np.uint8)
    picture.write_bytes(encode_png(np.concatenate([panels[0], gap, panels[1]], axis=1)))


def _band(cells: Cells, channel: int, top: int) -> tuple[int, list[bytes]]:
    """Return the size of a few strips, and their bytes."""
    from imagecodecs import deflate_encode

    bottom = min(top + _BAND, cells.height)
    pixels = cells.pixels(channel, slice(top, bottom), slice(0, cells.width))
    starts = range(0, bottom - top, _ROWS)
    strips: list[Any] = [pixels[y : y + _ROWS] for y in starts]
    return pixels.nbytes, [bytes(deflate_encode(strip, level=1)) for strip in strips]


def _check_tiles(cells: Cells, path: Path, count: int) -> int:
    from tifffile import TiffFile

    rng = np.random.default_rng(1)
    with TiffFile(path) as tif:
        pages = tif.series[0].pages
        for _ in range(count):
            channel = int(rng.integers(len(CHANNELS)))
            page: Any = pages[channel]
            height, width = page.keyframe.tilelength, page.keyframe.tilewidth
            across = -(-cells.width // width)
            number = int(rng.integers(-(-cells.height // height) * across))
            tif.filehandle.seek(page.dataoffsets[number])
            data = tif.filehandle.read(page.databytecounts[number])
            top, left = number // across * height, number % across * width
            rows = slice(top, min(top + height, cells.height))
            columns = slice(left, min(left + width, cells.width))
            found = page.keyframe.decode(data, number)[0].reshape(height, width)
            found = found[: rows.stop - top, : columns.stop - left]
            if not np.array_equal(found, cells.pixels(channel, rows, columns)):
                raise DamagedFileError(f"tile {number} of channel {channel} is not as it was made")
    return count


def _busiest(picture: NDArray[np.uint8], full: int, side: int) -> tuple[int, int]:
    """Return the corner of the square of `side` pixels where the picture shows most colours."""
    scale = picture.shape[0] / full
    n = max(1, round(side * scale))
    light = np.pad(picture.astype(float).min(axis=2) + picture.std(axis=2), ((1, 0), (1, 0)))
    sums = light.cumsum(0).cumsum(1)
    boxes = sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]
    y, x = np.unravel_index(int(np.argmax(boxes)), boxes.shape)
    most = full - side
    return min(most, int(y / scale)), min(most, int(x / scale))


def _framed(
    picture: NDArray[np.uint8], full: int, square: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Return the picture with a white frame around a square given in pixels of the full image."""
    top, left, side = (round(n * picture.shape[0] / full) for n in square)
    framed = picture.copy()
    for shade, grow in ((0, 3), (255, 2), (255, 1), (0, 0)):
        y, x = max(0, top - grow), max(0, left - grow)
        bottom = min(framed.shape[0] - 1, top + side + grow)
        right = min(framed.shape[1] - 1, left + side + grow)
        framed[[y, bottom], x : right + 1] = shade
        framed[y : bottom + 1, [x, right]] = shade
    return framed


def _packed(color: tuple[int, int, int]) -> int:
    """Return a colour as OME-XML has it: a signed number of four bytes, red first."""
    return int.from_bytes(bytes((*color, 255)), "big", signed=True)
