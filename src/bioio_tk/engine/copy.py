"""Copy an image from a Source piece by piece: each tile is decoded once, memory stays flat."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from bioio_tk.core.index import Selection
from bioio_tk.engine.pool import run
from bioio_tk.engine.read import read, settle

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.backends.base import Source
    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.core.tiling import Span
    from bioio_tk.engine.read import OwnTiles

Progress: TypeAlias = Callable[[int, int], object]
"""Called with (bytes done, bytes in all)."""

_BUDGET = 128 << 20
"""Bytes of pixels in flight, all windows together; more only where one window needs it."""
_WIDEST = 192 << 20
"""A band of strips larger than this is taken in thinner bands, which fill target tiles in parts."""
_SMALL = 1 << 20
_LARGE = 16 << 20


class Split(NamedTuple):
    """How an image is cut for copying.

    Attributes
    ----------
    window : Shape5
        Size of a window in YXZCT.
    at_once : int
        Windows in work at the same time.
    workers : int
        Threads for each of them.
    """

    window: Shape5
    at_once: int
    workers: int


class View(NamedTuple):
    """What is copied: an image, or what is picked of it.

    Attributes
    ----------
    source : Source
        The open file.
    image, level : int
        Which of its images and resolutions.
    picks : tuple of 5 range or integer array
        Positions along Y, X, Z, C, T, in the order wanted; ranges may descend.
    """

    source: Source
    image: int
    level: int
    picks: tuple[Span, Span, Span, Span, Span]

    @classmethod
    def whole(cls, source: Source, image: int, level: int) -> View:
        """Return all of a level."""
        shape = source.images[image].levels[level].shape
        return cls(source, image, level, tuple(map(range, shape)))  # type: ignore[arg-type]

    @property
    def shape(self) -> Shape5:
        """Size along Y, X, Z, C, T."""
        return tuple(map(len, self.picks))  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return math.prod(self.shape) * self.source.images[self.image].dtype.itemsize

    def read(self, box: Slices5, workers: int, cache: OwnTiles | None = None) -> NDArray[Any]:
        """Return the pixels of a box of the view, shaped (y, x, z, c, t)."""
        spans, flips = [], []
        for axis, (pick, part) in enumerate(zip(self.picks, box, strict=True)):
            span = pick[part]
            if isinstance(span, range) and span.step < 0:
                span = span[::-1]
                flips.append(axis)
            spans.append(span)
        selection = Selection(tuple(spans), tuple(flips), ())  # type: ignore[arg-type]
        where = (self.source, self.image, self.level)
        return read(*where, selection, workers=workers, cache=cache)

    def stored(self) -> Shape5:
        """Return how many positions of the view lie in one tile of the file, along each axis."""
        tile = self.source.images[self.image].levels[self.level].tile
        return tuple(map(_positions_in, self.picks, tile))  # type: ignore[return-value]

    def offset(self) -> Shape5:
        """Return how far into a tile of the file the view begins, along each axis."""
        tile = self.source.images[self.image].levels[self.level].tile
        return tuple(  # type: ignore[return-value]
            p.start % n if isinstance(p, range) and p.step == 1 and len(p) else 0
            for p, n in zip(self.picks, tile, strict=True)
        )


def copy(  # noqa: PLR0913 (who copies decides on all of it)
    view: View,
    put: Callable[[Slices5, NDArray[Any]], object],
    tile: Shape5,
    *,
    workers: int,
    progress: Progress | None = None,
    memory: int | None = None,
    window: Shape5 | None = None,
    skip: Callable[[Slices5], bool] | None = None,
    done: Callable[[Slices5, NDArray[Any]], object] | None = None,
) -> None:
    """Hand all pixels of a view to `put`, in pieces that fit the tiles of the target.

    Parameters
    ----------
    view : View
        What to copy.
    put : callable
        Takes a box and its pixels (y, x, z, c, t); called from several threads at once.
    tile : Shape5
        Tile of the target in YXZCT.
    workers : int
        Threads in all.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes after each window, from the thread that has
        finished it, one call at a time; `done` grows, and the last call has ``done == total``.
        What it raises ends the copy.
    memory : int, optional
        Bytes of pixels in flight, all windows together; more only where one window needs it.
    window : Shape5, optional
        Size of the windows, as `Split.window`; by default they are chosen to fit both sides.
    skip : callable, optional
        Takes the box of a window; True where it need not be copied.
    done : callable, optional
        Takes the box and the pixels of a window that `put` has taken, from any thread.
    """
    settle(view.source, view.image, view.level)
    split = split_of(view, tile, workers=workers, memory=memory, window=window)
    tally = _Tally(view.nbytes, progress)
    itemsize = view.source.images[view.image].dtype.itemsize

    def move(box: Slices5) -> None:
        if skip is not None and skip(box):
            tally.add(math.prod(s.stop - s.start for s in box) * itemsize)
            return
        pixels = view.read(box, split.workers)

        def hand_over(part: Slices5) -> None:
            inside = tuple(
                slice(s.start - b.start, s.stop - b.start) for s, b in zip(part, box, strict=True)
            )
            put(part, pixels[inside])

        run(hand_over, pieces(box, tile), split.workers)
        if done is not None:
            done(box, pixels)
        tally.add(pixels.nbytes)

    run(move, windows(view.shape, split.window, view.offset()), split.at_once)


def split_of(
    view: View,
    tile: Shape5,
    *,
    workers: int,
    memory: int | None = None,
    window: Shape5 | None = None,
) -> Split:
    """Return how a view is cut for copying to tiles of size `tile`, see `copy`."""
    caps, itemsize = view.source.caps, view.source.images[view.image].dtype.itemsize
    workers = workers if caps.parallel_read else 1
    if window is not None:
        room = math.prod(window) * itemsize
        at_once = max(1, min(workers, (_BUDGET if memory is None else memory) // max(1, room)))
        return Split(window, at_once, -(-workers // at_once))
    return cut(
        view.shape,
        view.stored(),
        tile,
        itemsize,
        workers=workers,
        parts=cheap_parts(view.source, view.image, view.level),
        memory=memory,
    )


def cut(
    shape: Shape5,
    stored: Shape5,
    tile: Shape5,
    itemsize: int,
    *,
    workers: int,
    parts: bool = False,
    memory: int | None = None,
) -> Split:
    """Choose windows that hold whole tiles of the source and, where that fits, of the target.

    Parameters
    ----------
    shape : Shape5
        Size of the image.
    stored, tile : Shape5
        Tiles of the source and of the target.
    itemsize : int
        Bytes of a sample.
    workers : int
        Threads in all.
    parts : bool
        A part of a source tile costs no more than that part: its tiles need no regard.
    memory : int, optional
        Bytes of pixels in flight, where they are bounded more tightly than usual.
    """
    budget = max(_BUDGET, 2 * workers * math.prod(tile) * itemsize)
    widest = _WIDEST
    if memory is not None:
        budget, widest = memory, min(widest, memory)
    height, width, *_ = shape
    if parts:
        y, x = min(tile[0], height), min(tile[1], width)
    else:
        y, x = (_common(s, t, n) for s, t, n in zip(stored, tile, (height, width), strict=False))
    z, t = (
        min(tile[i], shape[i]) if parts else _common(stored[i], tile[i], shape[i]) for i in (2, 4)
    )
    c = min(max(stored[3], tile[3]), shape[3])
    if y * x * z * c * t * itemsize > budget:  # tiles of the target are then filled in parts
        z, t = (1, 1) if parts else (min(stored[2], shape[2]), min(stored[4], shape[4]))
    sample = z * c * t * itemsize
    # raw rows are read best in long runs; of small tiles several together, each costs a call
    enough = min(_LARGE, budget // workers) if parts else _SMALL
    while y * x * sample < enough and (y < height or x < width):
        if x < width and (parts or x <= y or y == height):
            x = min(2 * x, width)
        else:
            y = min(2 * y, height)
    if y * x * sample > widest:
        rows = 1 if parts else min(stored[0], height)
        y = min(height, rows * max(1, _LARGE // (rows * x * sample)))
    at_once = max(1, min(workers, budget // (y * x * sample)))
    return Split((y, x, z, c, t), at_once, -(-workers // at_once))


def windows(shape: Shape5, window: Shape5, offset: Shape5 = (0, 0, 0, 0, 0)) -> Iterator[Slices5]:
    """Yield the windows of an image plane by plane, T outermost.

    In a plane they follow a Z-order curve: neighbours in both directions come soon after each
    other, so that tiles of the smaller levels fill up one after the other and few are waiting.
    The first window of an axis is shorter by `offset`: an image that begins inside a tile of the
    file is cut where the tiles of the file are.
    """
    ys, xs, zs, cs, ts = (
        _spans(n, w, before % w) for n, w, before in zip(shape, window, offset, strict=True)
    )
    for t, c, z in product(ts, cs, zs):
        for y, x in _z_order(len(ys), len(xs)):
            yield (ys[y], xs[x], z, c, t)


def _spans(size: int, length: int, before: int) -> list[slice]:
    """Return the parts of an axis that windows cut it into.

    >>> _spans(10, 4, 1)
    [slice(0, 3, None), slice(3, 7, None), slice(7, 10, None)]
    """
    starts = range(-before, size, length)
    return [slice(max(0, k), min(k + length, size)) for k in starts]


def pieces(box: Slices5, tile: Shape5) -> Iterator[Slices5]:
    """Yield the parts into which the borders of a tile grid cut `box`."""
    spans = [
        [
            slice(max(s.start, k * n), min(s.stop, (k + 1) * n))
            for k in range(s.start // n, -(-s.stop // n))
        ]
        for s, n in zip(box, tile, strict=True)
    ]
    ys, xs, zs, cs, ts = spans
    for t, c, z, y, x in product(ts, cs, zs, ys, xs):
        yield (y, x, z, c, t)


class _Tally:
    """Counts what is done and tells the caller, one call at a time."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._lock = threading.Lock()
        self._done = 0
        self._total = total
        self._progress = progress

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)


def _positions_in(pick: Span, tile: int) -> int:
    """Return how many picked positions lie in one tile of the file."""
    if not len(pick):
        return 1
    if not isinstance(pick, range):
        return min(tile, len(pick))
    return max(1, min(tile // abs(pick.step), len(pick))) if abs(pick.step) > 1 else tile


def _common(stored: int, tile: int, size: int) -> int:
    """Return a length that is whole in tiles of the source and, if that is not long, the target."""
    if stored >= size:
        return size
    joint = math.lcm(stored, tile)
    if joint > 2 * max(stored, tile):
        joint = stored * max(1, tile // stored)
    return min(joint, size)


def _z_order(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield (row, column) of a grid, square by square.

    >>> list(_z_order(2, 3))
    [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2)]
    """
    size = 1 << max(0, (max(rows, columns) - 1).bit_length())
    todo = [(0, 0, size)]
    while todo:
        y, x, size = todo.pop()
        if y >= rows or x >= columns:
            continue
        if size == 1:
            yield y, x
            continue
        half = size // 2
        todo += [(y + a, x + b, half) for a, b in ((half, half), (half, 0), (0, half), (0, 0))]


def cheap_parts(source: Source, image: int, level: int) -> bool:
    """Return whether a part of a tile can be read at the price of that part."""
    return not source.caps.costly_tiles or bool(source.details(image, level).get("parts"))
