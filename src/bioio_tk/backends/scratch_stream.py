"""ScratchStore: an acquisition as plain planes one after the other, in memory or in files.

A folder of it holds ``pos_0.dat``, ``pos_1.dat`` …: the planes of each position in the order they
were taken, raw, in the byte order of the machine; ``manifest.json``: the settings, and in
``position_shapes`` the size of each file's array, which is null for a position that was never
visited; and ``frame_metadata.jsonl``: a line for each frame of which something was said. Each file
is as long as whole cycles of the slowest axis need, so its size alone tells the shape of the array.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from bioio_tk import __version__
from bioio_tk.backends._file import BINARY, RandomFile
from bioio_tk.backends.base import Caps
from bioio_tk.core.spec import Level
from bioio_tk.errors import BioIOWarning, ClosedError, OutOfMemoryError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.acquisition import AcquisitionPlan, ImageRecord
    from bioio_tk.core.frames import FrameOrder
    from bioio_tk.core.spec import Address, ImageSpec

MANIFEST = "manifest.json"
METADATA = "frame_metadata.jsonl"
_OURS = re.compile(r"manifest\.json|frame_metadata\.jsonl|pos_\d+\.dat|\.[a-z_.]+\.part")
_BLOCK = 4 << 20
"""Planes in memory are kept in blocks of about this size: nothing moves when more come."""
_MEMORY = 4 << 30
_PATIENCE = 1.0
"""Seconds between two manifests while frames come."""
_EXTRA = {"max_memory_bytes", "spill_to_disk", "settings"}


class _Planes(Protocol):
    """Where the planes of one position are kept."""

    def store(self, first: int, planes: Sequence[NDArray[Any]]) -> None:
        """Keep planes (y, x) with consecutive numbers."""
        ...

    def load(self, plane: int) -> NDArray[Any] | None:
        """Return a copy of a plane (y, x); None, or zeros, where none was kept."""
        ...

    def reach(self, planes: int) -> None:
        """Be as long as the first so many planes need, or longer."""
        ...

    def cut(self, planes: int) -> None:
        """Be as long as they need, and no longer."""
        ...

    def close(self) -> None:
        """Release what is open; what is kept can still be loaded."""
        ...


class ScratchStore:
    """All positions of one acquisition.

    Parameters
    ----------
    path : Path or None
        An empty folder; None keeps everything in memory, and beyond ``max_memory_bytes`` in a
        temporary file, until the store is dropped.
    plan : AcquisitionPlan
        What is going to be recorded.
    options : StoreOptions
        In `extra`: ``max_memory_bytes``, ``spill_to_disk``, and ``settings``, a mapping that
        goes into the manifest. It is not compressed, whatever `compression` says.
    """

    raw_planes: ClassVar[bool] = True
    """What `image_path` says is no image: planes one after the other."""

    def __init__(self, path: Path | None, plan: AcquisitionPlan, options: StoreOptions) -> None:
        self._path = path
        self._plan = plan
        self._options = options
        self._images: dict[int, ScratchImage] = {}
        most = options.extra.get("max_memory_bytes", _MEMORY)
        spills = options.extra.get("spill_to_disk", True)
        self._memory = _Memory(most, spills=spills)
        if path is None:
            self._check_memory(most, spills=spills)
        self._manifest = _Manifest(path, plan, dict(options.extra.get("settings") or {}))

    @staticmethod
    def is_folder(plan: AcquisitionPlan, options: StoreOptions) -> bool:
        """Return True: it goes into a folder."""
        return True

    @staticmethod
    def foreign(
        folder: Path, plan: AcquisitionPlan | None = None, options: StoreOptions | None = None
    ) -> Path | None:
        """Return something in a folder that no store of this kind has written, or None."""
        names = sorted(entry.name for entry in os.scandir(folder))
        for name in names:
            if not _OURS.fullmatch(name) or (folder / name).is_dir():
                return folder / name
        if names and not _is_manifest(folder / MANIFEST):
            return folder / names[0]
        return None

    @classmethod
    def check(cls, plan: AcquisitionPlan, options: StoreOptions) -> None:
        unknown = set(options.extra) - _EXTRA
        if unknown:
            raise SpecError(f"scratch has no option {min(unknown)!r}: it knows {sorted(_EXTRA)}")
        if len(plan.image.levels) > 1:
            raise UnsupportedError(
                "scratch keeps no smaller levels: leave the pyramid out, or choose ome-tiff or "
                "ome-zarr"
            )

    @classmethod
    def reopen(
        cls, path: Path, plan: AcquisitionPlan, options: StoreOptions, planes: Mapping[int, int]
    ) -> ScratchStore:
        store = cls(path, plan, options)
        for position, count in planes.items():
            store.open(position)
            store._manifest.planes[position] = count
        return store

    @staticmethod
    def image_path(path: Path, plan: AcquisitionPlan, options: StoreOptions, position: int) -> Path:
        """Return the file with the planes of a position."""
        return path / f"pos_{position}.dat"

    anchor = image_path

    def open(self, position: int) -> ScratchImage:
        known = self._images.get(position)
        if known is not None:
            return known
        image, order = self._plan.image, self._plan.order
        planes: _Planes
        if self._path is None:
            planes = _Blocks(self._memory, image.shape[:2], image.dtype, order.planes)
        else:
            file = self.image_path(self._path, self._plan, self._options, position)
            planes = _PlaneFile(file, image, order)
        opened = ScratchImage(planes, image, order, partial(self._manifest.grown, position))
        self._images[position] = opened
        return opened

    def finish(
        self, records: Sequence[ImageRecord], notes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._manifest.notes = dict(notes)
        for record in records:
            self._manifest.planes[record.position] = record.planes
            self._manifest.skipped[record.position] = record.skipped
        if records and self._path is not None:
            self._write_metadata(records)
        self._manifest.write()

    def get_metadata(self) -> None:
        """Return None: the format has none of its own."""

    def update_metadata(self, metadata: Any) -> None:
        """Do nothing; see `get_metadata`."""

    def close(self) -> None:
        for image in self._images.values():
            image.close()
        self._manifest.complete()

    # ------------------------------------------------------------------ inside

    def _check_memory(self, most: int, *, spills: bool) -> None:
        image, order = self._plan.image, self._plan.order
        if order.unbounded:
            return
        needed = order.planes * len(self._plan.positions) * _plane_bytes(image)
        if needed <= most:
            return
        if not spills:
            raise _too_large(needed, most)
        warnings.warn(
            f"the acquisition takes {needed / 1e9:.2f} GB, and may take {most / 1e9:.2f} GB of "
            f"memory: the rest goes to a temporary file in {tempfile.gettempdir()!r}; give a "
            "root_path to say where it goes, or a larger max_memory_bytes",
            BioIOWarning,
            stacklevel=5,
        )

    def _write_metadata(self, records: Sequence[ImageRecord]) -> None:
        sizes = [axis.size for axis in self._plan.order.axes]

        def lines() -> Iterator[str]:
            for record in records:
                for plane, said in record.metadata():
                    place = {"_pos": record.position, "_idx": _indices(plane, sizes)}
                    yield json.dumps(place | said) + "\n"

        written = lines()
        first = next(written, None)
        if first is not None:
            self._manifest.replace(METADATA, chain([first], written))


class _Manifest:
    """What is told of the files beside them; does nothing where there are none.

    Parameters
    ----------
    folder : Path or None
        Where it goes.
    plan : AcquisitionPlan
        What is recorded.
    settings : dict
        Goes into it as it is.
    """

    def __init__(
        self, folder: Path | None, plan: AcquisitionPlan, settings: dict[str, Any]
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._settings = settings
        self._written = -_PATIENCE
        self._stale = False
        self.planes: dict[int, int] = {}
        """Planes of each position that readers may see."""
        self.skipped: dict[int, tuple[range, ...]] = {}
        self.notes: dict[str, Any] = {}
        if folder is not None and not (folder / MANIFEST).exists():
            self.write()

    def grown(self, position: int, planes: int) -> None:
        """Take note of planes; they are written now and then, for files tell their size."""
        self.planes[position] = planes
        self._stale = True
        if time.monotonic() - self._written >= _PATIENCE:
            self.write()

    def complete(self) -> None:
        """Write what was not written yet."""
        if self._stale:
            self.write()

    def write(self) -> None:
        """Bring the file up to date."""
        self._stale = False
        if self._folder is None:
            return
        positions = range(len(self._plan.positions))
        document = {
            "version": __version__,
            **self._settings,
            "dtype": self._plan.image.dtype.name,
            "byte_order": sys.byteorder,
            "position_shapes": [self._shape(position) for position in positions],
            "position_planes": [self.planes.get(position, 0) for position in positions],
            "skipped": {
                str(position): [[r.start, r.stop] for r in ranges]
                for position, ranges in sorted(self.skipped.items())
                if ranges
            },
            "global_metadata": self.notes,
        }
        self.replace(MANIFEST, [json.dumps(document)])
        self._written = time.monotonic()

    def replace(self, name: str, lines: Iterable[str]) -> None:
        """Write a file so that there is the old one or the new one at every moment."""
        if self._folder is None:
            return
        part = self._folder / f".{name}.part"
        try:
            with part.open("w", encoding="utf-8") as file:
                file.writelines(lines)
            os.replace(part, self._folder / name)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise

    def _shape(self, position: int) -> list[int] | None:
        """Return the size of the array in a file, in the order taken; None where none is."""
        planes, order = self.planes.get(position, 0), self._plan.order
        if not planes:
            return None
        sizes = [axis.size for axis in order.axes]
        if sizes:
            sizes[0] = min(sizes[0], -(-planes // order.cycle))
        return [*sizes, *self._plan.image.shape[:2]]


class ScratchImage:
    """The planes of one position, a tile being a plane."""

    caps: ClassVar[Caps] = Caps(
        parallel_store=True, pyramids=False, costly_tiles=False, tile_multiple=1
    )

    def __init__(
        self, kept: _Planes, image: ImageSpec, order: FrameOrder, grown: Callable[[int], object]
    ) -> None:
        y, x = image.shape[:2]
        level = Level(image.shape, (y, x, 1, 1, 1))
        self.images: tuple[ImageSpec, ...] = (replace(image, levels=(level,)),)
        self.planes = 0
        self._kept = kept
        self._order = order
        self._grown = grown

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> NDArray[Any]:
        return tile[:, :, 0, 0, 0]

    def store_tile(self, at: Address, encoded: NDArray[Any]) -> None:
        self.store_tiles([(at, encoded)])

    def store_tiles(self, tiles: Sequence[tuple[Address, NDArray[Any]]]) -> None:
        planes = sorted(
            ((self._order.plane(*at.key[2:]), pixels) for at, pixels in tiles),
            key=lambda found: found[0],
        )
        first = 0
        for k in range(1, len(planes) + 1):  # runs of consecutive planes are stored together
            if k == len(planes) or planes[k][0] != planes[k - 1][0] + 1:
                self._kept.store(planes[first][0], [pixels for _, pixels in planes[first:k]])
                first = k

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        plane = self._kept.load(self._order.plane(*at.key[2:]))
        return None if plane is None else plane[:, :, None, None, None]

    def extend(self, planes: int) -> None:
        self._kept.reach(planes)
        self.planes = planes
        self._grown(planes)

    def settle(self, planes: int) -> None:
        y, x = self.images[0].shape[:2]
        level = Level((y, x, *self._order.extent(planes)), (y, x, 1, 1, 1))
        self.images = (replace(self.images[0], levels=(level,)),)
        self._kept.cut(planes)
        self.planes = planes
        self._grown(planes)

    def grow(self, image: int, t: int) -> None:
        """Do nothing: there is room for all that may come."""

    def finish(self) -> None:
        """Do nothing: the store does it for all images."""

    def close(self) -> None:
        self._kept.close()


class _PlaneFile:
    """The planes of one position in a file of their own."""

    def __init__(self, path: Path, image: ImageSpec, order: FrameOrder) -> None:
        self._path = path
        self._shape, self._dtype = image.shape[:2], image.dtype
        self._plane = _plane_bytes(image)
        self._cycle, self._most = order.cycle, order.planes
        self._lock = threading.Lock()
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | BINARY, 0o666))
        self._file: RandomFile | None = RandomFile(path, writable=True)
        self._size = self._file.size

    def store(self, first: int, planes: Sequence[NDArray[Any]]) -> None:
        self.reach(first + len(planes))
        self._opened().write_many(
            first * self._plane, [np.ascontiguousarray(plane) for plane in planes]
        )

    def load(self, plane: int) -> NDArray[Any] | None:
        file = self._file or RandomFile(self._path)
        pixels = np.zeros(self._shape, self._dtype)
        file.read_into(plane * self._plane, pixels)
        if file is not self._file:
            file.close()
        return pixels

    def reach(self, planes: int) -> None:
        """Make the file longer before pixels are written: what is between them reads as 0."""
        size = self._needed(planes)
        if size > self._size:
            with self._lock:
                if size > self._size:
                    os.ftruncate(self._opened().fileno(), size)
                    self._size = size

    def cut(self, planes: int) -> None:
        size = self._needed(planes)
        with self._lock:
            os.ftruncate(self._opened().fileno(), size)
            self._size = size

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _needed(self, planes: int) -> int:
        return -(-planes // self._cycle) * self._cycle * self._plane

    def _opened(self) -> RandomFile:
        if self._file is None:
            raise ClosedError(f"{str(self._path)!r} is closed: it takes no more planes")
        return self._file


class _Memory:
    """Blocks of memory, up to a limit, and beyond it room in a temporary file.

    Without that file the limit counts the planes that are kept, for a block takes memory only as
    it is filled.
    """

    def __init__(self, most: int, *, spills: bool) -> None:
        self.most = most
        self.spills = spills
        self._used = 0
        self._end = 0
        self._lock = threading.Lock()
        self._file: RandomFile | None = None

    def take(self, nbytes: int) -> bool:
        """Return whether there is memory for a new block; it is taken then."""
        with self._lock:
            fits = self._used + nbytes <= self.most
            if self.spills and fits:
                self._used += nbytes
            return fits or not self.spills

    def fill(self, nbytes: int) -> None:
        """Count planes where there is no file to go on in; OutOfMemoryError if they do not fit."""
        if self.spills:
            return
        with self._lock:
            if self._used + nbytes > self.most:
                raise _too_large(self._used + nbytes, self.most)
            self._used += nbytes

    def spill(self, nbytes: int) -> tuple[RandomFile, int]:
        """Return the temporary file, and where in it there is room for a block."""
        with self._lock:
            if self._file is None:
                fd, name = tempfile.mkstemp(prefix="bioio_tk-scratch-")
                os.close(fd)
                self._file = RandomFile(Path(name), writable=True)
                with suppress(OSError):  # it is gone when its last descriptor is
                    Path(name).unlink()
            start = self._end
            self._end += nbytes
            os.ftruncate(self._file.fileno(), self._end)
            return self._file, start


class _Blocks:
    """The planes of one position in blocks of memory, or of the temporary file."""

    def __init__(
        self, memory: _Memory, shape: tuple[int, int], dtype: np.dtype[Any], planes: int
    ) -> None:
        self._memory = memory
        self._shape, self._dtype = shape, dtype
        self._plane = max(1, math.prod(shape) * dtype.itemsize)
        size = min(_BLOCK, memory.most // 8)
        self._count = max(1, min(size // self._plane, planes))
        self._blocks: dict[int, NDArray[Any] | tuple[RandomFile, int]] = {}
        self._lock = threading.Lock()

    def store(self, first: int, planes: Sequence[NDArray[Any]]) -> None:
        self._memory.fill(len(planes) * self._plane)
        for number, pixels in enumerate(planes, first):
            block, place = divmod(number, self._count)
            home = self._blocks.get(block)
            if home is None:
                home = self._new(block)
            if isinstance(home, np.ndarray):
                home[place] = pixels
            else:
                file, start = home
                file.write(start + place * self._plane, np.ascontiguousarray(pixels))

    def load(self, plane: int) -> NDArray[Any] | None:
        block, place = divmod(plane, self._count)
        home = self._blocks.get(block)
        if home is None:
            return None
        if isinstance(home, np.ndarray):
            kept: NDArray[Any] = home[place].copy()
            return kept
        pixels = np.zeros(self._shape, self._dtype)
        home[0].read_into(home[1] + place * self._plane, pixels)
        return pixels

    def reach(self, planes: int) -> None:
        """Do nothing: what is in no block is 0."""

    def cut(self, planes: int) -> None:
        """Do nothing: see `reach`."""

    def close(self) -> None:
        """Do nothing: it can be looked at as long as the stream is there."""

    def _new(self, block: int) -> NDArray[Any] | tuple[RandomFile, int]:
        with self._lock:
            home = self._blocks.get(block)
            if home is None:
                nbytes = self._count * self._plane
                if self._memory.take(nbytes):
                    home = np.zeros((self._count, *self._shape), self._dtype)
                else:
                    home = self._memory.spill(nbytes)
                self._blocks[block] = home
            return home


def _plane_bytes(image: ImageSpec) -> int:
    return math.prod(image.shape[:2]) * image.dtype.itemsize


def _indices(plane: int, sizes: Sequence[int]) -> list[int]:
    """Return where a plane lies along each axis.

    >>> _indices(7, (5, 3, 2))
    [1, 0, 1]
    """
    found = []
    for size in reversed(sizes):
        plane, index = divmod(plane, size)
        found.append(index)
    return found[::-1]


def _is_manifest(path: Path) -> bool:
    try:
        return "position_shapes" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _too_large(needed: int, most: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"the acquisition takes {needed / 1e9:.3g} GB of memory, exceeding max_memory_bytes="
        f"{most} ({most / 1e9:.3g} GB): give a root_path for its frames, allow spill_to_disk, or "
        "raise max_memory_bytes"
    )
