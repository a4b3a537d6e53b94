"""A plane of any size as a small picture: every pixel counts, memory stays flat."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.index import select
from bioio_tk.engine.copy import cheap_parts, cut, pieces, windows
from bioio_tk.engine.pool import run
from bioio_tk.engine.read import read

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.backends.base import Source
    from bioio_tk.core.region import Slices5
    from bioio_tk.engine.copy import Progress

_PIECE = (1024, 1024, 1, 1, 1)
"""What is shrunk at a time: it fits into the CPU's cache."""


def area_mean(
    source: Source,
    image: int,
    level: int,
    plane: tuple[int, slice, int],
    size: tuple[int, int],
    *,
    workers: int,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return a plane shrunk to `size`: each new pixel is the mean of the area it covers.

    Parameters
    ----------
    source : Source
        The open file.
    image, level : int
        The image and its resolution.
    plane : (int, slice, int)
        Z, the channels (one, or the samples of RGB), and T.
    size : (int, int)
        Height and width of the result, no larger than the plane.
    workers : int
        Threads.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes.

    Returns
    -------
    numpy.ndarray
        Shape (height, width, channels); complex numbers as their magnitude, NaN as 0.
    """
    spec = source.images[image]
    full = spec.levels[level]
    z, channels, t = plane
    height, width, *_ = full.shape
    count = channels.stop - channels.start
    shape = (height, width, 1, count, 1)
    stored = (*full.tile[:2], 1, min(count, full.tile[3]), 1)
    split = cut(
        shape,
        stored,
        (1024, 1024, 1, count, 1),
        spec.dtype.itemsize,
        workers=workers if source.caps.parallel_read else 1,
        parts=cheap_parts(source, image, level),
    )
    out = np.zeros((*size, count), np.float32)
    lock = threading.Lock()
    done, total = 0, math.prod(shape) * spec.dtype.itemsize

    def add(box: Slices5) -> None:
        nonlocal done
        picked = slice(channels.start + box[3].start, channels.start + box[3].stop)
        where = select((box[0], box[1], z, picked, t), full.shape)
        pixels = read(source, image, level, where, workers=split.workers)
        for part in pieces(box, _PIECE):
            y, x, c = part[0], part[1], part[3].start
            piece = pixels[
                y.start - box[0].start : y.stop - box[0].start,
                x.start - box[1].start : x.stop - box[1].start,
                0,
                c - box[3].start,
                0,
            ]
            rows, flat = _shrunk(_real(piece), y.start, height, size[0])
            columns, small = _shrunk(np.ascontiguousarray(flat.T), x.start, width, size[1])
            with lock:
                out[rows, columns, c] += small.T
        with lock:
            done += pixels.nbytes
            if progress is not None:
                progress(done, total)

    run(add, windows(shape, split.window), split.at_once)
    return out


def _real(pixels: NDArray[Any]) -> NDArray[np.float32]:
    if pixels.dtype.kind == "c":
        pixels = np.abs(pixels)
    plain = pixels.astype(np.float32)
    if pixels.dtype.kind == "f":
        np.nan_to_num(plain, copy=False, nan=0.0)
    return plain


def _shrunk(
    pixels: NDArray[np.float32], start: int, size: int, bins: int
) -> tuple[slice, NDArray[np.float32]]:
    """Return which of `bins` equal parts of the first axis pixels touch, and what they add to each.

    A pixel on the border of two parts adds to both. (A matrix product would be shorter, but runs
    on threads of its own, which fight with ours.)

    >>> _shrunk(np.array([[3.0], [6.0], [9.0]], np.float32), 0, 3, 2)[1].tolist()
    [[4.0], [8.0]]
    """
    width = size / bins
    stop = start + len(pixels)
    first, last = int(start / width), min(bins, math.ceil(stop / width))
    out = np.empty((last - first, *pixels.shape[1:]), np.float32)
    for number in range(first, last):
        low = max(number * width, start) - start
        high = max(low, min((number + 1) * width, stop) - start)
        a, b = int(low), min(math.ceil(high), len(pixels))
        total = pixels[a:b].sum(axis=0, out=out[number - first])
        if b > a:
            total -= np.float32(low - a) * pixels[a]
            total -= np.float32(b - high) * pixels[b - 1]
    out *= np.float32(1 / width)
    return slice(first, last), out
