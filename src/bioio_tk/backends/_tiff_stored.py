"""What an interrupted writer has left of a TIFF of ours: which tiles are there, and filling up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioio_tk.backends import _tiff_layout as tag
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._tiff_codecs import CODECS, TileCodec
from bioio_tk.backends._tiff_ifd import Ifd, IfdReader
from bioio_tk.backends.base import StoreOptions
from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_KINDS = {1: "u", 2: "i", 3: "f", 6: "c"}


class _Table(NamedTuple):
    """The tiles of a page: where they lie, how long they are, which are stored."""

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    stored: NDArray[np.bool_]


def stored_tiles(path: Path) -> list[NDArray[np.bool_]]:
    """Return for each level which tiles are in the file, as a table of planes x tiles."""
    file = RandomFile(path)
    try:
        ifds = IfdReader(file)
        return [
            np.array([_table(ifds, page, blank).stored for page in pages])
            for pages, blank in _levels(ifds)
        ]
    finally:
        file.close()


def fill_up(path: Path) -> None:
    """Let every tile that is not stored be one shared tile of zeros, as `TiffSink.finish` does."""
    file = RandomFile(path, writable=True)
    try:
        ifds = IfdReader(file)
        for pages, blank in _levels(ifds):
            missing = [(page, _table(ifds, page, blank)) for page in pages]
            missing = [(page, table) for page, table in missing if (table.counts == 0).any()]
            if not missing:
                continue
            encoded = _zeros(ifds, pages[0])
            offset = -(-file.size // tag.ALIGN) * tag.ALIGN
            file.write(offset, encoded)
            for page, table in missing:
                empty = table.counts == 0
                offsets = np.where(empty, offset, table.offsets)
                counts = np.where(empty, len(encoded), table.counts)
                file.write(*ifds.packed(page, tag.TILE_OFFSETS, offsets))
                file.write(*ifds.packed(page, tag.TILE_BYTE_COUNTS, counts))
    finally:
        file.close()


def check_head(file: RandomFile, layout: tag.Layout) -> None:
    """Raise where a file does not begin as it was laid out, but for its tables.

    Raises
    ------
    DamagedFileError
        It was begun otherwise, or its beginning was changed.
    """
    wanted = np.frombuffer(layout.header + bytes(layout.body), np.uint8).copy()
    found = np.frombuffer(file.read(0, len(wanted)), np.uint8).copy()
    same = len(found) == len(wanted) and file.size >= layout.size
    if same:
        for start, size in _fields(layout):
            wanted[start : start + size] = found[start : start + size]
        same = bool((wanted == found).all())
    if not same:
        raise DamagedFileError(
            f"{str(file.path)!r} does not begin as the image that is to be written: another one "
            "was begun there, or it is damaged; begin anew with overwrite=True"
        )


def read_tables(
    file: RandomFile, layout: tag.Layout
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return offset and length of every tile of a file, as its tables have them."""
    offsets = np.zeros(layout.tiles, np.int64)
    counts = np.zeros(layout.tiles, np.int64)
    for table, planes in _tables(layout):
        for plane in range(planes):
            first = table.entry(plane, 0)
            mine = slice(first.tile, first.tile + table.tiles)
            data = file.read(first.offset_at, table.tiles * table.width)
            offsets[mine] = np.frombuffer(data, f"<u{table.width}")
            counts[mine] = np.frombuffer(file.read(first.count_at, 4 * table.tiles), "<u4")
    return offsets, counts


def _tables(layout: tag.Layout) -> Iterator[tuple[tag.Table, int]]:
    """Yield each table and the number of planes in it."""
    tables = [table for row in layout.tables for table in row]
    ends = [*(table.first for table in tables[1:]), layout.tiles]
    for table, end in zip(tables, ends, strict=True):
        yield table, (end - table.first) // table.tiles


def _fields(layout: tag.Layout) -> Iterator[tuple[int, int]]:
    """Yield where in the head tables lie, of planes of so few tiles that the IFD holds them."""
    end = len(layout.header) + len(layout.body)
    for table, planes in _tables(layout):
        for plane in range(planes):
            first = table.entry(plane, 0)
            if first.offset_at < end:
                yield first.offset_at, table.tiles * table.width
            if first.count_at < end:
                yield first.count_at, table.tiles * 4


def _levels(ifds: IfdReader) -> list[tuple[tuple[Ifd, ...], int]]:
    """Return the pages of each level, and where the zeros for tiles not stored lie."""
    planes = [_plane(ifds, int(offset)) for offset in ifds.chain()]
    blank = _blank(ifds, planes[0]) if planes else 0
    return [(pages, blank) for pages in zip(*planes, strict=True)]


def _plane(ifds: IfdReader, offset: int) -> list[Ifd]:
    plane = ifds.read(offset)
    return [plane, *(ifds.read(below) for below in ifds.subifds(plane))]


def _table(ifds: IfdReader, page: Ifd, blank: int) -> _Table:
    offsets, counts = ifds.segments(page)
    return _Table(offsets, counts, (counts > 0) & (offsets > 0) & (offsets != blank))


def _blank(ifds: IfdReader, pages: list[Ifd]) -> int:
    """Return where the zeros lie that stand for raw tiles not stored, 0 where there are none."""
    _, count, value = pages[0].entries.get(tag.SOFTWARE, (0, 0, b""))
    if count <= len(value) or not any(_has_blank(ifds, page) for page in pages):
        return 0
    end = int.from_bytes(value, "little") + count
    return -(-end // tag.ALIGN) * tag.ALIGN  # behind the last text, see `_tiff_layout.lay_out`


def _has_blank(ifds: IfdReader, page: Ifd) -> bool:
    # the same question as `tiff_write._blank` asks
    across = _first(ifds, page, tag.IMAGE_WIDTH) <= _first(ifds, page, tag.TILE_WIDTH)
    return across and _first(ifds, page, tag.COMPRESSION) == 1


def _zeros(ifds: IfdReader, page: Ifd) -> bytes:
    """Return a tile of zeros as the page stores it; a predictor makes no difference to them."""
    kind = _KINDS.get(_first(ifds, page, tag.SAMPLE_FORMAT), "u")
    dtype = np.dtype(f"{kind}{_first(ifds, page, tag.BITS_PER_SAMPLE) // 8}")
    samples = _first(ifds, page, tag.SAMPLES_PER_PIXEL)
    number = _first(ifds, page, tag.COMPRESSION)
    name = next(codec.name for codec in CODECS if codec.compression == number)
    height, width = _first(ifds, page, tag.TILE_LENGTH), _first(ifds, page, tag.TILE_WIDTH)
    shape = (height, width) if samples == 1 else (height, width, samples)
    codec = TileCodec(dtype, samples, StoreOptions(compression=name))
    encoded: Any = codec.encode(np.zeros(shape, dtype))
    return bytes(memoryview(encoded).cast("B"))


def _first(ifds: IfdReader, page: Ifd, number: int) -> int:
    found = ifds.integers(page, (number,))
    return 0 if found is None or not len(found) else int(found[0])
