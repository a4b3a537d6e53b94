"""YCbCr pixels that no JPEG codec turns into RGB: luma blocks with shared chroma, as RGB.

Source: TIFF 6.0 section 21. The arithmetic is the usual 16-bit fixed point, so that the colours
are those of libtiff's RGBA interface to the last bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from tifffile import TiffPage

_YCBCR = 6
_COEFFICIENTS, _SUBSAMPLING, _REFERENCE = 529, 530, 532
_JPEGS = (6, 7, 34892, 33007)
_SHIFT = 16


def is_needed(page: TiffPage) -> bool:
    """Return whether the pixels of a page are YCbCr that is ours to convert."""
    if page.photometric != _YCBCR:
        return False
    from tifffile import TIFF

    return bool(
        page.compression not in _JPEGS
        and page.compression not in TIFF.IMAGE_COMPRESSIONS
        and page.bitspersample == 8
        and page.samplesperpixel == 3
        and page.planarconfig == 1
        and page.predictor == 1
        and page.sampleformat == 1
    )


def decoder(page: TiffPage) -> Callable[..., tuple[NDArray[np.uint8], None, None]]:
    """Return a function that decodes a segment, called like the one of ``TiffPage.decode``."""
    from tifffile import TIFF

    across, down = _blocks(page)
    luma, red, blue, green_red, green_blue = _tables(page)
    decompress = None if page.compression == 1 else TIFF.DECOMPRESSORS[page.compression]
    reverse = page.fillorder == 2
    strips = -(-page.imagelength // page.rowsperstrip) if not page.is_tiled else 1

    def decode(data: bytes, segment: int, **_: Any) -> tuple[NDArray[np.uint8], None, None]:
        if page.is_tiled:
            length, width = page.tilelength, page.tilewidth
        else:
            start = segment % strips * page.rowsperstrip
            length, width = min(page.rowsperstrip, page.imagelength - start), page.imagewidth
        rows, columns = -(-length // down), -(-width // across)
        size = rows * columns * (down * across + 2)
        if reverse:
            import imagecodecs

            data = imagecodecs.bitorder_decode(data)
        if decompress is not None:
            data = decompress(data, out=size)
        if len(data) < size:
            raise ValueError(f"holds {len(data)} bytes of {size}")
        units = np.frombuffer(data, np.uint8, size).reshape(rows, columns, -1)
        y = luma[units[..., :-2]].reshape(rows, columns, down, across)
        cb, cr = (units[..., n, None, None] for n in (-2, -1))
        pixels = np.empty((rows, down, columns, across, 3), np.uint8)
        for sample, chroma in enumerate(
            (red[cr], (green_red[cr] + green_blue[cb]) >> _SHIFT, blue[cb])
        ):
            rgb = np.clip(y + chroma, 0, 255)
            pixels[..., sample] = rgb.transpose(0, 2, 1, 3)
        whole = pixels.reshape(1, rows * down, columns * across, 3)
        return whole[:, :length, :width], None, None

    return decode


def _blocks(page: TiffPage) -> tuple[int, int]:
    """Return how many luma samples share a chroma sample, across and down."""
    value = page.tags.valueof(_SUBSAMPLING, (2, 2))
    if not isinstance(value, tuple) or len(value) != 2 or not set(value) <= {1, 2, 4}:
        raise DamagedFileError(f"YCbCrSubSampling {value!r:.40} is none of 1, 2, 4")
    return value


def _tables(page: TiffPage) -> tuple[NDArray[np.int32], ...]:
    """Return what a value of Y, Cr, Cb, and Cr and Cb for green adds to a colour."""
    red, green, blue = _rationals(page, _COEFFICIENTS, (0.299, 0.587, 0.114))
    reference = _rationals(page, _REFERENCE, (0, 255, 128, 255, 128, 255))
    if not green:
        raise DamagedFileError("YCbCrCoefficients give green no weight")
    codes = np.arange(256.0)
    y = _full_range(codes, reference[0], reference[1], 255)
    cb = _full_range(codes, reference[2], reference[3], 127)
    cr = _full_range(codes, reference[4], reference[5], 127)
    half = 1 << _SHIFT - 1
    from_cr, from_cb = 2 - 2 * red, 2 - 2 * blue
    return (
        y,
        _fixed(from_cr) * cr + half >> _SHIFT,
        _fixed(from_cb) * cb + half >> _SHIFT,
        -_fixed(red * from_cr / green) * cr,
        -_fixed(blue * from_cb / green) * cb + half,
    )


def _full_range(codes: NDArray[Any], black: float, white: float, top: int) -> NDArray[np.int32]:
    values = (codes - black) * top / ((white - black) or 1)
    return np.clip(values, -4096, 4096).astype(np.int32)


def _fixed(value: float) -> np.int32:
    return np.int32(min(max(value, 0.0), 2.0) * (1 << _SHIFT) + 0.5)


def _rationals(page: TiffPage, tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
    value = page.tags.valueof(tag)
    if value is None:
        return default
    try:
        if len(value) == 2 * len(default):
            value = [n / d for n, d in zip(value[::2], value[1::2], strict=True)]
        numbers = tuple(float(v) for v in value)
    except (TypeError, ValueError, ZeroDivisionError):
        numbers = ()
    if len(numbers) != len(default) or not all(math.isfinite(v) for v in numbers):
        raise DamagedFileError(f"tag {tag} is {value!r:.60}")
    return numbers
