"""Batches of equal, padded tiles of the first plane: the documented bfio tile iterator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.engine.pool import ordered
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bioio_tk.reader import BioReader

_COLUMN = 1024  # width of the strip that one batch may come from


def maximum_batch_size(height: int, tile_size: Any, tile_stride: Any = None) -> int:
    """Return the most tiles of a batch for an image `height` pixels high."""
    tile = _pair("tile_size", tile_size)
    stride = tile if tile_stride is None else _pair("tile_stride", tile_stride)
    across = max((_COLUMN - (tile[1] - stride[1]) / 2) // stride[1], 1)
    return int(across * math.ceil(height / stride[0]))


def batches(
    reader: BioReader, tile_size: Any, tile_stride: Any, batch_size: Any, channels: Any
) -> Iterator[tuple[NDArray[Any], tuple[list[list[int]], ...]]]:
    """Yield (images, index) as `BioReader.__call__` documents it."""
    tile = _pair("tile_size", tile_size)
    stride = tile if tile_stride is None else _pair("tile_stride", tile_stride)
    most = maximum_batch_size(reader.Y, tile, stride)
    if batch_size is None:
        batch_size = min(32, most)
    elif isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SpecError(f"batch_size={batch_size!r}: give a whole number of 1 or more")
    elif batch_size > most:
        raise SpecError(f"batch_size={batch_size} is too large, the most is {most} here")
    mirrored = not set(tile) & set(stride)
    offset = [(t - s) // 2 if mirrored else 0 for t, s in zip(tile, stride, strict=True)]
    ys = range(-offset[0], reader.Y, stride[0])
    xs = range(-offset[1], reader.X, stride[1])
    corners = [(y, x) for x in xs for y in ys]
    picked = list(channels)
    groups = [corners[n : n + batch_size] for n in range(0, len(corners), batch_size)]

    def load(group: list[tuple[int, int]]) -> tuple[NDArray[Any], tuple[list[list[int]], ...]]:
        images = np.empty((len(group), tile[0], tile[1], len(picked)), reader.dtype)
        for image, (y, x) in zip(images, group, strict=True):
            image[...] = _padded(reader, y, x, tile, picked, mirrored=mirrored)
        index: tuple[list[list[int]], ...] = (
            [[x, x + tile[1]] for _, x in group],
            [[y, y + tile[0]] for y, _ in group],
            [[0, 1] for _ in group],
            [list(picked) for _ in group],
            [[0] for _ in group],
        )
        return images, index

    return ordered(load, groups, ahead=2)


def _padded(
    reader: BioReader, y: int, x: int, tile: tuple[int, int], channels: list[int], *, mirrored: bool
) -> NDArray[Any]:
    """Return one tile (y, x, channels) whose corner may lie outside the image."""
    rows, inside_y = _positions(y, tile[0], reader.Y, mirrored=mirrored)
    columns, inside_x = _positions(x, tile[1], reader.X, mirrored=mirrored)
    top, left = min(rows), min(columns)
    pixels = reader[top : max(rows) + 1, left : max(columns) + 1, 0, channels, 0]
    pixels = pixels.reshape(pixels.shape[0], pixels.shape[1], len(channels))
    padded = pixels[np.ix_([r - top for r in rows], [c - left for c in columns])]
    if not mirrored:
        padded[~np.outer(inside_y, inside_x)] = 0
    return padded


def _positions(
    start: int, count: int, size: int, *, mirrored: bool
) -> tuple[list[int], list[bool]]:
    """Return for each of `count` positions the pixel that fills it, and whether it is inside."""
    inside = [0 <= p < size for p in range(start, start + count)]
    if mirrored:  # ... 1 0 | 0 1 2 | 2 1 ...
        turn = [p % (2 * size) for p in range(start, start + count)]
        return [p if p < size else 2 * size - 1 - p for p in turn], inside
    return [min(max(p, 0), size - 1) for p in range(start, start + count)], inside


def _pair(what: str, value: Any) -> tuple[int, int]:
    try:
        height, width = (int(n) for n in value)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise SpecError(f"{what}={value!r}: give [height, width] in pixels, 1 or more each")
    return height, width
