"""PlainPage: a page whose few tags say all, so that opening it need not wait for tifffile.

Most microscope images are such pages: whole samples of 8 to 128 bits, raw or in a codec of bytes.
Whatever is not as plain as that is None here and tifffile's business.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bioio_tk.backends._tiff_ifd import Ifd, IfdReader

_COMPRESSIONS = {1: "none", 8: "adobe_deflate", 32946: "deflate", 50000: "zstd"}
_KINDS = {1: "u", 2: "i", 3: "f", 6: "c"}
_BITS = {"u": (8, 16, 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64), "c": (64, 128)}
_GRAY_RGB_PALETTE = (0, 1, 2, 3)

# Everything a plain page may carry. A tag that is not here may change the meaning of others.
_KNOWN = frozenset((
    254, 256, 257, 258, 259, 262, 266, 269, 270, 271, 272, 273, 274, 277, 278, 279, 280, 281,
    282, 283, 284, 285, 296, 297, 305, 306, 315, 316, 317, 320, 322, 323, 324, 325, 330, 338,
    339, 33432, 65000, 65001,
))  # fmt: skip
_WRITERS = ("tifffile.py", "bioio_tk", "libvips", "ImageMagick", "OME Bio-Formats")


class PlainPage:
    """What `Recipe` asks of a page, with tifffile's names.

    Parameters
    ----------
    values : dict
        The attributes.
    full : callable
        Gives tifffile's page, for a segment that is not what it should be.
    """

    shaped: tuple[int, int, int, int, int]
    photometric: int
    planarconfig: int
    is_subsampled = False

    def __init__(self, values: dict[str, Any], full: Callable[[], Any]) -> None:
        self.__dict__.update(values)
        self._full = full

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decode a segment the careful way."""
        return self._full().decode(*args, **kwargs)


def plain_page(ifds: IfdReader, ifd: Ifd, full: Callable[[], Any]) -> PlainPage | None:
    """Return the page, or None where it is not plain."""
    if not ifd.entries.keys() <= _KNOWN:
        return None

    def one(tag: int, default: int | None = None) -> int | None:
        return ifds.number(ifd, tag, default)

    width, length, samples = one(256), one(257), one(277, 1)
    bits, form = one(258, 1), one(339, 1)
    compression, photometric = one(259, 1), one(262)
    planar, predictor = one(284, 1), one(317, 1)
    kind = _KINDS.get(form or 0, "")
    plain = (
        width
        and length
        and samples
        and bits in _BITS.get(kind, ())
        and compression in _COMPRESSIONS
        and photometric in _GRAY_RGB_PALETTE
        and planar in (1, 2)
        and predictor in (1, 2)
        and one(266, 1) == 1
    )
    if not plain or not width or not length or not samples or not bits or not compression:
        return None
    tile = (one(323), one(322)) if 322 in ifd.entries else None
    if tile is not None and not all(tile):
        return None
    rows = one(278, length) or 0
    dtype = np.dtype(f"{kind}{bits // 8}")
    together = planar == 1
    return PlainPage(
        {
            "shaped": (
                1 if together else samples, 1, length, width, samples if together else 1,
            ),
            "dtype": dtype,
            "_dtype": dtype,
            "is_tiled": tile is not None,
            "tiledepth": 1,
            "tilelength": tile[0] if tile else 0,
            "tilewidth": tile[1] if tile else 0,
            "rowsperstrip": min(rows, length),
            "compression": _Compression(compression),
            "photometric": photometric,
            "planarconfig": planar,
            "samplesperpixel": samples,
            "bitspersample": bits,
            "sampleformat": form,
            "predictor": predictor,
            "fillorder": 1,
            "parent": SimpleNamespace(byteorder=ifds.order),
        },
        full,
    )  # fmt: skip


class _Compression(int):
    """The number of a compression, and its name."""

    @property
    def name(self) -> str:
        return _COMPRESSIONS[int(self)]


def is_single(ifds: IfdReader, ifd: Ifd, page: PlainPage) -> bool:
    """Return whether a file holds nothing but this page, whichever way it is looked at."""
    if ifd.next or 330 in ifd.entries:
        return False
    if 305 in ifd.entries and not ifds.text(ifd, 305).startswith(_WRITERS):
        return False
    description = ifds.text(ifd, 270)
    if not description:
        return True
    if not description.startswith('{"shape":'):
        return False
    try:
        shape = json.loads(description)["shape"]
        return bool(math.prod(shape) == math.prod(page.shaped))
    except (ValueError, TypeError, KeyError, OverflowError):
        return False
