"""Integers of 24 bits, in the byte order of the file.

As libtiff, GDAL and Bio-Formats store and read them. tifffile takes them for a stream of bits,
which is another order in little-endian files, and is off by a factor of 256 in big-endian ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from tifffile import TiffPage


def is_needed(page: TiffPage) -> bool:
    """Return whether a page has such pixels."""
    if page.bitspersample != 24:
        return False
    from tifffile import TIFF

    return bool(
        page.sampleformat in (1, 2)
        and page.dtype is not None
        and np.dtype(page.dtype).itemsize == 4
        and page.predictor == 1
        and (page.compression == 1 or page.compression in TIFF.DECOMPRESSORS)
        and page.compression not in TIFF.IMAGE_COMPRESSIONS
        and not page.is_subsampled
    )


def decoder(page: TiffPage) -> Callable[..., tuple[NDArray[Any], None, None]]:
    """Return a function that decodes a segment, called like the one of ``TiffPage.decode``."""
    from tifffile import TIFF

    decompress = None if page.compression == 1 else TIFF.DECOMPRESSORS[page.compression]
    samples = page.shaped[-1]
    strips = 1 if page.is_tiled else -(-page.imagelength // page.rowsperstrip)
    low_first = page.parent.byteorder == "<"
    signed = page.sampleformat == 2

    def decode(data: bytes, segment: int, **_: Any) -> tuple[NDArray[Any], None, None]:
        if page.is_tiled:
            shape = (page.tiledepth, page.tilelength, page.tilewidth, samples)
        else:
            start = segment % strips * page.rowsperstrip
            rows = min(page.rowsperstrip, page.imagelength - start)
            shape = (1, rows, page.imagewidth, samples)
        size = 3 * shape[0] * shape[1] * shape[2] * shape[3]
        if page.fillorder == 2:
            import imagecodecs

            data = imagecodecs.bitorder_decode(data)
        if decompress is not None:
            data = decompress(data, out=size)
        if len(data) < size:
            raise ValueError(f"holds {len(data)} bytes of {size}")
        triples = np.frombuffer(data, np.uint8, size).reshape(*shape, 3)
        words = np.zeros((*shape, 4), np.uint8)
        words[..., 1:] = triples if low_first else triples[..., ::-1]
        pixels = words.view("<i4" if signed else "<u4")[..., 0] >> 8
        return pixels.astype(page.dtype), None, None

    return decode
