"""A source whose tiles are read from an .npy file, and wait where a test wants them to.

Not a test: the workers of the clusters in `test_cluster.py` import it as well.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from bioio_tk.backends.base import Caps
from bioio_tk.core.spec import ImageSpec, Level
from bioio_tk.errors import DamagedFileError
from bioio_tk.lazy import LazyArray
from bioio_tk.reader import BioReader

_LONGEST = 60


class Gated:
    """Tiles of an array (Y, X, Z, C, T); a process that has read `free` of them waits.

    Every process notes in `folder` which tiles it was asked for; who waits does so until there is
    a file ``open`` there. Where there is a file ``bad`` the last tile is damaged.
    """

    caps = Caps(costly_tiles=False)
    notes = ()

    def __init__(self, array, tile, folder, free):
        self._pixels = np.load(array)
        self._folder, self._free, self._read = Path(folder), free, 0
        self.images = (ImageSpec(self._pixels.dtype, (Level(self._pixels.shape, tile),)),)

    def read_tile(self, at):
        grid = self.images[0].levels[0].grid
        self._read += 1
        mark = self._folder / f"{os.getpid()}.{self._read}"
        mark.write_text(str(at.key))
        if (self._folder / "bad").exists() and at.key == tuple(n - 1 for n in grid.counts):
            raise DamagedFileError(f"gated.npy: tile {at.key} is damaged")
        if self._read > self._free:
            end = time.monotonic() + _LONGEST
            while not (self._folder / "open").exists():
                if time.monotonic() > end:
                    raise TimeoutError("nobody has opened the gate")
                time.sleep(0.01)
        region = grid.region(at.key)
        return np.ascontiguousarray(self._pixels[region.slices()])

    def ome_xml(self):
        return None

    def details(self, image, level):
        return {"tile": self.images[image].levels[level].tile, "compression": "none"}

    def close(self):
        pass


def gated(array, tile, folder, free):
    """Return the image as `on_cluster` takes it."""
    reader = BioReader._over(Path(array), "gated", "for a test", Gated, str(array), tile,
                             str(folder), free)  # fmt: skip
    return LazyArray(reader)


def readers(folder):
    """Return the processes that have been asked for a tile, and how many each."""
    found = {}
    for path in Path(folder).iterdir():
        pid, _, number = path.name.partition(".")
        if number.isdecimal():
            found[int(pid)] = max(found.get(int(pid), 0), int(number))
    return found
