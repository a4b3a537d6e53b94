"""What is in a BigDataViewer file, by whoever it was written: read with the library of HDF5."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from contextlib import contextmanager
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._bdv_layout import (
    CELLS,
    DATA_TYPE,
    PIXEL_TYPES,
    RESOLUTIONS,
    SUBDIVISIONS,
    view_path,
)
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._hdf5_chunks import DEFLATE, ChunkCodec, library
from bioio_tk.backends._hdf5_file import open_to_read, reading
from bioio_tk.core.views import Mipmap, Scheme, ViewId
from bioio_tk.errors import DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.core.views import Shape3

_TIME, _SETUP = re.compile(r"t(\d{5,})"), re.compile(r"s(\d{2,})")
_FILTERS = {
    DEFLATE: "gzip",
    307: "bzip2",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32015: "zstd",
    32026: "blosc2",
}
"""Numbers of filters, and what they are called."""
_MOST_OTHERS = 16
"""Files that are linked to and kept open: a dataset may have one for every time point."""
_TILE = 1 << 19
"""Bytes of a tile, where chunks are smaller."""
_ROW = 512
"""Pixels of a row that are worth reading at a time."""
_LISTED = (1, 14, 3)
"""Version of HDF5 from which on chunks are listed with their right places."""
_PLACE = np.dtype([("at", "i8"), ("size", "u4"), ("skipped", "u4")])
"""Where a chunk lies; of one that was never stored the size is 0."""


class StoredFile:
    """A file as it is when it is opened; what is written to it later is not seen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._where = repr(str(path))
        self._lock = threading.Lock()
        self._bytes = RandomFile(path)
        self._others: OrderedDict[str, StoredFile] = OrderedDict()  # the last used one last
        try:
            self._file = open_to_read(self._bytes, self._where)
        except BaseException:
            self._bytes.close()
            raise

    def views(self) -> list[ViewId]:
        """Return the views it has, by time and setup."""
        with self._reading():
            found = []
            for name in self._file:
                if time := _TIME.fullmatch(name):
                    group = self._file[name]
                    found += [
                        ViewId(int(time[1]), int(setup[1]))
                        for setup in map(_SETUP.fullmatch, group)
                        if setup and group.id.links.exists(f"{setup[0]}/0".encode())
                        and group.id.links.exists(f"{setup[0]}/0/{CELLS}".encode())
                    ]  # fmt: skip
            return sorted(found)

    def schemes(self, views: Sequence[ViewId]) -> dict[int, Scheme]:
        """Return how the stacks of its setups are stored; `views` are those that are there."""
        first = {view.setup: view for view in reversed(views)}
        with self._reading():
            names = [match for name in self._file if (match := _SETUP.fullmatch(name))]
            known = [match for match in names if RESOLUTIONS in self._file[match[0]]]
        return {int(match[1]): self._scheme(match[0], first.get(int(match[1]))) for match in known}

    def _scheme(self, name: str, view: ViewId | None) -> Scheme:
        with self._reading():
            group = self._file[name]
            factors = np.rint(group[RESOLUTIONS][...]).astype(int)[:, ::-1].tolist()
            blocks = group[SUBDIVISIONS][...].astype(int)[:, ::-1].tolist()
            said = group.attrs.get(DATA_TYPE)
        mipmaps = tuple(Mipmap((*f,), (*b,)) for f, b in zip(factors, blocks, strict=False))
        said = said.decode() if isinstance(said, bytes) else said
        # where nothing is said, it is uint16, as bits of int16
        dtype = np.dtype(said if said in PIXEL_TYPES else "uint16")
        compressions = [] if view is None else [self._compression(view, n) for n in range(2)]
        (full, level), (reduced, _) = ([*compressions, (None, None)] * 2)[:2]
        return Scheme(dtype, mipmaps, full, level, reduced)

    def _compression(self, view: ViewId, number: int) -> tuple[str | None, int | None]:
        with self._reading():
            there = self._file.get("/".join(view_path(*view, str(number))))
            if there is None:
                return None, None
        return self.level(view, number).compression

    def level(self, view: ViewId, number: int, dtype: np.dtype[Any] | None = None) -> StoredLevel:
        """Return a stored resolution of a view, whose pixels are to be read as `dtype`.

        One of another file can be loaded until some 16 further files were asked for theirs.
        """
        return self._level("/".join(view_path(*view, str(number), CELLS)), dtype)

    def _level(self, path: str, dtype: np.dtype[Any] | None) -> StoredLevel:
        with self._reading(f"{path} of {self._where}"):
            link = self._file.get(path, getlink=True)
            if not isinstance(link, library().ExternalLink):
                return StoredLevel(self._file[path], dtype, self._bytes, self._lock)
        return self._other(link.filename)._level(link.path, dtype)

    def _other(self, name: str) -> StoredFile:
        """Return a file that is linked to: the library would look for it with our bytes."""
        with self._lock:
            other = self._others.pop(name, None)
            if other is None:
                while len(self._others) >= _MOST_OTHERS:
                    self._others.popitem(last=False)[1].close()
                other = StoredFile(self._path.parent / name)
            self._others[name] = other
            return other

    def shapes(self, view: ViewId) -> tuple[Shape3, ...]:
        """Return the sizes of all resolutions of a view that are there, in their order."""
        found: list[Shape3] = []
        while True:
            path = "/".join(view_path(*view, str(len(found)), CELLS))
            with self._reading():
                there = self._file.get(path, getlink=True) is not None
            if not there:
                return tuple(found)
            found.append(self._level(path, None).shape)

    def linked_files(self) -> set[str]:
        """Return the names of the files that its views are in."""
        external = library().ExternalLink
        found = set()
        for view in self.views():
            with self._reading():
                link = self._file.get("/".join(view_path(*view, "0", CELLS)), getlink=True)
                if isinstance(link, external):
                    found.add(link.filename)
        return found

    def holds_no_view(self) -> bool:
        """Return whether there is nothing in it but what is said of setups."""
        with self._reading():
            return all(_SETUP.fullmatch(name) for name in self._file)

    def close(self) -> None:
        """Release it. Safe to call twice."""
        with self._lock:
            self._file.close()
        self._bytes.close()
        for other in self._others.values():
            other.close()

    @contextmanager
    def _reading(self, what: str = "") -> Iterator[None]:
        with self._lock:
            try:
                with reading(what or self._where, self._where):
                    yield
            except (KeyError, ValueError, TypeError) as exc:
                raise DamagedFileError(f"{what or self._where} cannot be read: {exc}") from exc


class StoredLevel:
    """A resolution of a view that is there already; nothing is stored in it.

    Attributes
    ----------
    shape : Shape3
        Its size.
    tile : Shape3
        What is loaded at once: a chunk, or several where they are small.
    """

    def __init__(
        self, data: Any, dtype: np.dtype[Any] | None, file: RandomFile, lock: threading.Lock
    ) -> None:
        self._data = data
        self._dtype = data.dtype.newbyteorder("=") if dtype is None else dtype
        self._file = file
        self._lock = lock
        self._name = data.name
        self.shape: Shape3 = data.shape
        self._chunk: Shape3 = data.chunks or (1, 1, 1)
        least = data.chunks or (1, 1, min(self.shape[2], _ROW))  # rows lie in one piece
        self.tile = _tile(self.shape, least, data.dtype.itemsize)
        self._places: NDArray[Any] | None = None
        # chunks as they lie in the file are unpacked without the library, which does one at a time
        self._codec = ChunkCodec.of(data)
        plist = data.id.get_create_plist()
        found = [plist.get_filter(n) for n in range(plist.get_nfilters())]
        names = [(_FILTERS[f[0]], f[2]) for f in found if f[0] in _FILTERS]
        self.compression: tuple[str, int | None] = ("none", None)
        if names:
            kind, values = names[0]
            self.compression = (kind, values[0] if kind == "gzip" and values else None)

    def encode(self, pixels: NDArray[Any]) -> Any:
        raise UnsupportedError("the full resolution is stored already, and not written again")

    def store(self, corner: tuple[int, int, int], encoded: Any) -> None:
        raise UnsupportedError("the full resolution is stored already, and not written again")

    def load(self, corner: tuple[int, int, int]) -> NDArray[Any] | None:
        sizes = zip(corner, self.tile, self.shape, strict=True)
        box = tuple(slice(a, min(a + n, end)) for a, n, end in sizes)
        if self._codec is None:
            with self._lock, reading(self._spoken(corner), str(self._file.path)):
                return self._native(self._data[box])
        if self.tile == self._chunk:
            return self._load_chunk(self._codec, corner)
        steps = [range(s.start, s.stop, n) for s, n in zip(box, self._chunk, strict=True)]
        out = None
        for z, y, x in product(*steps):
            pixels = self._load_chunk(self._codec, (z, y, x))
            if pixels is None:
                continue
            if out is None:
                out = np.zeros([s.stop - s.start for s in box], self._dtype)
            part = out[z - box[0].start :, y - box[1].start :, x - box[2].start :]
            within = tuple(map(slice, map(min, part.shape, pixels.shape)))
            part[within] = pixels[within]
        return out

    def _load_chunk(self, codec: ChunkCodec, corner: tuple[int, int, int]) -> NDArray[Any] | None:
        at, size, skipped = self._place(corner)
        if not size:
            return None
        try:
            return self._native(codec.decode(self._file.read(at, size), skipped))
        except ValueError as exc:
            raise DamagedFileError(f"{self._spoken(corner)} is broken: {exc}") from exc

    def _place(self, corner: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return where a chunk lies, its size (0 for none) and the filters it did not go through.

        The library walks all chunks to find one of them, so they are listed at once.
        """
        with self._lock, reading(self._spoken(corner), str(self._file.path)):
            if library().version.hdf5_version_tuple < _LISTED:
                found = self._data.id.get_chunk_info_by_coord(corner)
                at = found.byte_offset
                return (0, 0, 0) if at is None else (at, found.size, found.filter_mask)
            if self._places is None:
                self._places = self._list_chunks()
            key = tuple(a // n for a, n in zip(corner, self._chunk, strict=True))
            return self._places.item(key)  # type: ignore[no-any-return]

    def _list_chunks(self) -> NDArray[Any]:
        counts = [-(-n // m) for n, m in zip(self.shape, self._chunk, strict=True)]
        places = np.zeros(counts, _PLACE)

        def enter(info: Any) -> None:
            key = tuple(a // n for a, n in zip(info.chunk_offset, self._chunk, strict=True))
            if all(k < count for k, count in zip(key, counts, strict=True)):
                places[key] = (info.byte_offset, info.size, info.filter_mask)

        self._data.id.chunk_iter(enter)
        return places

    def _spoken(self, corner: tuple[int, int, int]) -> str:
        return f"the block at {corner} of {self._name!r} in {str(self._file.path)!r}"

    def _native(self, pixels: NDArray[Any]) -> NDArray[Any]:
        if self._dtype == np.uint16 and pixels.dtype.itemsize == 2:
            return pixels.astype(pixels.dtype.newbyteorder("="), copy=False).view(np.uint16)
        return pixels.astype(self._dtype, copy=False)


def _tile(shape: Shape3, chunk: Shape3, itemsize: int) -> Shape3:
    """Return how many whole chunks to load at once: about a cube, which fits under any factor."""
    sides = list(chunk)
    while prod(sides) * itemsize * 2 <= _TILE:
        short = [axis for axis in range(3) if sides[axis] < shape[axis]]
        if not short:
            break
        sides[min(short, key=lambda axis: sides[axis])] *= 2
    z, y, x = sides
    return (z, y, x)
