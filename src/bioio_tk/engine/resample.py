"""A plane of any size as a small picture: every pixel counts, memory stays flat."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.index import select
from bioio_tk.engine.copy import cheap_parts, cut, windows
from bioio_tk.engine.pool import run
from bioio_tk.engine.read import read

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.backends.base import Source
    from bioio_tk.core.region import Slices5
    from bioio_tk.engine.copy import Progress


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
        ys, xs, _, cs, _ = box
        picked = slice(channels.start + cs.start, channels.start + cs.stop)
        where = select((ys, xs, z, picked, t), full.shape)
        pixels = read(source, image, level, where, workers=split.workers)
        rows, down = _weights(ys, height, size[0])
        columns, across = _weights(xs, width, size[1])
        for number in range(cs.stop - cs.start):
            part = down @ _real(pixels[:, :, 0, number, 0]) @ across.T
            with lock:
                out[rows, columns, cs.start + number] += part
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


def _weights(span: slice, size: int, bins: int) -> tuple[slice, NDArray[np.float32]]:
    """Return which of `bins` equal parts of an axis a span touches, and how its pixels add to them.

    >>> _weights(slice(0, 3), 3, 2)[1].round(2).tolist()
    [[0.67, 0.33, 0.0], [0.0, 0.33, 0.67]]
    """
    width = size / bins
    first, last = int(span.start / width), min(bins, math.ceil(span.stop / width))
    pixels = np.arange(span.start, span.stop)
    edges = np.arange(first, last)[:, None] * width
    share = np.minimum(pixels + 1, edges + width) - np.maximum(pixels, edges)
    return slice(first, last), (np.maximum(share, 0) / width).astype(np.float32)
