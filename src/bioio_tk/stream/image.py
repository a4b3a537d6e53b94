"""StreamImage: the planes of one position on their way into its file, and back for a live view."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.region import Region
from bioio_tk.core.spec import Address
from bioio_tk.engine.write import TileWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from bioio_tk.backends.base import GrowingSink
    from bioio_tk.core.frames import FrameOrder
    from bioio_tk.engine.scratch import Scratch

_AXES = {"Z": 0, "C": 1, "T": 2}


class StreamImage:
    """One position.

    Parameters
    ----------
    sink : GrowingSink
        Where its tiles go.
    order : FrameOrder
        Which plane is which.
    scratch : Scratch
        Room for tiles that are deeper than a plane, until they are full.
    stored : callable
        ``stored(start, stop)``: planes whose pixels are all in the file; any thread.
    method : str
        How smaller levels are made.
    live : bool
        Make them as the planes come; else `make_levels` does it afterwards.
    """

    def __init__(
        self,
        sink: GrowingSink,
        order: FrameOrder,
        *,
        scratch: Scratch,
        stored: Callable[[int, int], object],
        method: str,
        live: bool,
    ) -> None:
        self.sink = sink
        self._order = order
        self._scratch = scratch
        self._stored = stored
        self._method = method
        level = sink.images[0].levels[0]
        self._deep = level.tile[2:] != (1, 1, 1)
        self._depth = level.tile[2:]
        self._planned = level.shape
        counts = level.grid.counts
        self._pieces = [
            (ky, kx, *(slice(k * n, min(k * n + n, s)) for k, n, s in spans))
            for ky, kx in np.ndindex(counts[:2])
            for spans in [zip((ky, kx), level.tile[:2], level.shape[:2], strict=True)]
        ]
        self._down: Counter[tuple[int, int, int]] = Counter()
        self._down_lock = threading.Lock()
        self._counts = self._deep  # which tiles are stored says which planes are
        self._writer = TileWriter(
            sink,
            workers=1,
            scratch=scratch,
            method=method,
            stored=self._tiles_stored if self._deep else None,
            shrinks=live,
        )

    def write(self, plane: int, frames: NDArray[Any]) -> None:
        """Store frames (n, y, x) as the planes from number `plane` on."""
        if self._deep:
            for first, letter, some in self._runs(plane, frames):
                self._write_run(first, letter, some)
            return
        tiles = []
        five = frames[:, :, :, None, None, None]
        for n in range(len(frames)):
            z, c, t = self._order.key(plane + n)
            tiles += [
                (Address(0, 0, (ky, kx, z, c, t)), five[n, rows, columns])
                for ky, kx, rows, columns in self._pieces
            ]
        self._writer.write_tiles(tiles)
        self._stored(plane, plane + len(frames))

    def skip(self, start: int, stop: int) -> None:
        """Leave planes out: in tiles that others share they are 0, or these would never be full."""
        if self._deep:
            y, x = self.sink.images[0].shape[:2]
            nothing = np.broadcast_to(np.zeros((), self.sink.images[0].dtype), (1, y, x))
            for plane in range(start, stop):
                self._write_run(self._order.key(plane), "T", nothing)

    def read(self, plane: int) -> NDArray[Any]:
        """Return a plane (y, x) as it is now; 0 where nothing was stored."""
        spec = self.sink.images[0]
        out = np.zeros(spec.shape[:2], spec.dtype)
        z, c, t = (k for k in self._order.key(plane))
        (kz, iz), (kc, ic), (kt, it) = (
            divmod(k, n) for k, n in zip((z, c, t), self._depth, strict=True)
        )
        for ky, kx, rows, columns in self._pieces:
            tile = self._writer.load_tile(Address(0, 0, (ky, kx, kz, kc, kt)))
            if tile is not None:
                out[rows, columns] = tile[:, :, iz, ic, it]
        return out

    def flush(self) -> None:
        """Store the tiles that are not full; what was never given of them is 0."""
        self._counts = False
        self._writer.flush()

    def settle(self, planes: int, workers: int) -> None:
        """Say that no more planes will come.

        A stack that ends earlier than was planned may end within what is one plane of a smaller
        level: that was made as if the rest were 0, and is made again.
        """
        self.sink.settle(planes)
        full, *smaller = self.sink.images[0].levels
        writer = TileWriter(self.sink, workers=workers, scratch=self._scratch, method=self._method)
        for number, level in enumerate(smaller, 1):
            z = level.shape[2]
            if full.shape[2] != self._planned[2] and z < full.shape[2]:
                start = (0, 0, z - 1, 0, 0)
                writer.shrink_into(number, Region(start, level.shape))

    def make_levels(self, planes: int, workers: int) -> None:
        """Make the smaller levels of an image that has got all its planes."""
        self.sink.settle(planes)
        writer = TileWriter(self.sink, workers=workers, scratch=self._scratch, method=self._method)
        writer.shrink_stored()

    def _tiles_stored(self, tiles: Sequence[tuple[Address, Any]]) -> None:
        for at, _ in tiles:
            if at.level or not self._counts:
                continue
            key = at.key[2:]
            with self._down_lock:
                self._down[key] += 1
                whole = self._down[key] == len(self._pieces)
                if whole:
                    del self._down[key]
            if whole:
                sizes = self.sink.images[0].shape[2:]
                spans = (
                    range(k * n, min(k * n + n, size))
                    for k, n, size in zip(key, self._depth, sizes, strict=True)
                )
                for z, c, t in product(*spans):
                    number = self._order.plane(z, c, t)
                    self._stored(number, number + 1)

    def _write_run(self, key: tuple[int, int, int], letter: str, frames: NDArray[Any]) -> None:
        y, x = frames.shape[1:]
        axis = _AXES[letter]
        spans = [range(k, k + 1) for k in key]
        spans[axis] = range(key[axis], key[axis] + len(frames))
        shape = [1, 1, 1]
        shape[axis] = len(frames)
        data = np.moveaxis(frames, 0, 2).reshape(y, x, *shape)
        self._writer.write((range(y), range(x), *spans), data)  # type: ignore[arg-type]

    def _runs(
        self, plane: int, frames: NDArray[Any]
    ) -> list[tuple[tuple[int, int, int], str, NDArray[Any]]]:
        """Cut frames into pieces that follow each other along one axis: first key, axis, frames."""
        axes = self._order.axes
        if not axes:
            return [((0, 0, 0), "T", frames)]
        letter, size, step = axes[-1]
        together = size if step == 1 else 1
        runs, start = [], 0
        while start < len(frames):
            stop = min(len(frames), start + together - (plane + start) % together)
            runs.append((self._order.key(plane + start), letter, frames[start:stop]))
            start = stop
        return runs
