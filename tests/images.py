"""Images whose every pixel tells where it belongs, and plain ways to index and shrink them.

Nothing here comes from bioio_tk: these are the expected values.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """A shape (Y, X, Z, C, T), the samples of its pixels, and the tile size to write it in."""

    shape: tuple[int, int, int, int, int]
    samples: int = 1
    tile: int = 16


CASES = {
    "one-pixel": Case((1, 1, 1, 1, 1)),
    "one-tile": Case((16, 16, 1, 1, 1)),
    "ragged": Case((37, 21, 1, 1, 1)),
    "5d": Case((20, 18, 3, 2, 2)),
    "wide": Case((5, 211, 1, 2, 1)),
    "rgb": Case((19, 35, 2, 3, 1), samples=3),
}
NARROW = {"suite2p"}
"""Backends whose files hold one pixel type only: they have tests of their own."""
DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "bool"]


def coded(shape, dtype="u2", seed=0):
    """Return an image where pixels that could be mistaken for each other differ."""
    full = (*shape, 1, 1, 1, 1, 1)[:5]
    y, x, z, c, t = np.ogrid[tuple(slice(n) for n in full)]
    code = y * 31 + x * 7 + z * 1009 + c * 10007 + t * 20011 + seed * 77
    code = code.reshape(shape)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return (code * 2654435761 >> 7) % 2 == 1
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        if dtype.itemsize == 8:  # beyond what a float holds
            return (code.astype("u8") * np.uint64(2**40 + 1) + np.uint64(2**63)).view(dtype)
        return (code % (int(info.max) - int(info.min) + 1) + int(info.min)).astype(dtype)
    if dtype.kind == "c":
        return (code + 1j * (code % 97)).astype(dtype)
    return (code % 2039 - 300.5).astype(dtype)


# ------------------------------------------------------------------ indexing, in plain words


def positions(item, size):
    """Return the positions that one index picks along an axis of `size` pixels."""
    if isinstance(item, slice):
        return list(range(size))[item]
    if isinstance(item, (int, np.integer)):
        return [range(size)[item]]
    entries = list(item)
    if entries and isinstance(entries[0], (bool, np.bool_)):
        return [n for n, wanted in enumerate(entries) if wanted]
    return [range(size)[n] for n in entries]


def all_positions(key, shape):
    """Return the positions along each of the five axes; `...` and missing axes are whole."""
    items = list(key) if isinstance(key, tuple) else [key]
    dots = [n for n, item in enumerate(items) if item is Ellipsis]
    at = dots[0] if dots else len(items)
    items[at : at + len(dots)] = [slice(None)] * (5 - len(items) + len(dots))
    return [positions(item, size) for item, size in zip(items, shape, strict=True)]


def picked(image, key):
    """Return what a reader must give for `key`: outer indexing, then the rule of bfio."""
    pixels = image[np.ix_(*all_positions(key, image.shape))]
    while pixels.ndim > 2 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return pixels


def put(image, key, value):
    """Assign to `image` what a writer must store for `key`, one pixel after the other."""
    where = all_positions(key, image.shape)
    block = np.broadcast_to(value, [len(p) for p in where])
    for index in np.ndindex(*block.shape):
        image[tuple(p[i] for p, i in zip(where, index, strict=True))] = block[index]


# ------------------------------------------------------------------ pyramids, in plain words


def smaller(image, method="mean", by=2):
    """Return the next level, cell by cell: 2 x 2 pixels, fewer at the border."""
    y, x, *rest = image.shape
    out = np.zeros((-(-y // by), -(-x // by), *rest), image.dtype)
    for i, j, z, c, t in product(*(range(n) for n in out.shape)):
        cell = image[by * i : by * i + by, by * j : by * j + by, z, c, t]
        out[i, j, z, c, t] = _joined([p.item() for p in cell.ravel()], method, image.dtype.kind)
    return out


def _joined(values, method, kind):
    if method == "nearest":
        return values[0]
    if method == "max":
        return max(values)
    if method == "mode":
        counts = Counter(values)
        return min(v for v in values if counts[v] == max(counts.values()))
    if method == "median":
        ordered = sorted(values)
        values = [ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]]
    total, n = sum(values), len(values)
    if kind == "b":
        return 2 * total >= n
    return (2 * total + n) // (2 * n) if kind in "iu" else total / n  # half is rounded up


def shapes_of_levels(shape, count):
    """Return the sizes of `count` levels, or of fewer where a plane is one pixel before."""
    shapes = [tuple(shape)]
    while len(shapes) < count and max(shapes[-1][:2]) > 1:
        y, x, *rest = shapes[-1]
        shapes.append((-(-y // 2), -(-x // 2), *rest))
    return shapes
