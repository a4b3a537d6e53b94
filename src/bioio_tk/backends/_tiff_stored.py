"""Count the tiles that a TIFF of ours holds, which an interrupted writer may have left short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bioio_tk.backends import _tiff_layout as tag
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._tiff_ifd import Ifd, IfdReader

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


_ASKED = (tag.IMAGE_WIDTH, tag.TILE_WIDTH, tag.COMPRESSION, tag.BITS_PER_SAMPLE)


def stored_tiles(path: Path) -> list[NDArray[np.bool_]]:
    """Return for each level which tiles are in the file, as a table of planes x tiles."""
    file = RandomFile(path)
    try:
        ifds = IfdReader(file)
        planes = [_levels(ifds, int(offset)) for offset in ifds.chain()]
        blank = _blank(ifds, planes[0]) if planes else 0
        return [
            np.array([_stored(ifds, page, blank) for page in pages])
            for pages in zip(*planes, strict=True)
        ]
    finally:
        file.close()


def _levels(ifds: IfdReader, offset: int) -> list[Ifd]:
    plane = ifds.read(offset)
    return [plane, *(ifds.read(below) for below in ifds.subifds(plane))]


def _stored(ifds: IfdReader, page: Ifd, blank: int) -> NDArray[np.bool_]:
    offsets, counts = ifds.segments(page)
    return (counts > 0) & (offsets > 0) & (offsets != blank)


def _blank(ifds: IfdReader, pages: list[Ifd]) -> int:
    """Return where the zeros lie that stand for raw tiles not stored, 0 where there are none."""
    _, count, value = pages[0].entries.get(tag.SOFTWARE, (0, 0, b""))
    if count <= len(value) or not any(_has_blank(ifds, page) for page in pages):
        return 0
    end = int.from_bytes(value, "little" if ifds.order == "<" else "big") + count
    return -(-end // tag.ALIGN) * tag.ALIGN  # behind the last text, see `_tiff_layout.lay_out`


def _has_blank(ifds: IfdReader, page: Ifd) -> bool:
    # the same question as `tiff_write._blank` asks
    width, tile, compression, bits = (ifds.integers(page, (number,)) for number in _ASKED)
    if width is None or tile is None or compression is None or bits is None:
        return False
    return bool(width[0] <= tile[0] and compression[0] == 1 and bits[0] > 1)
