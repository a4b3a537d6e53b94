"""Cells: one stack at one resolution in an HDF5 file, read without the library where possible."""

from __future__ import annotations

import threading
from contextlib import suppress
from importlib import import_module
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioio_tk.backends._bdv_pixels import SMALL
from bioio_tk.backends._bdv_scaleoffset import ScaleOffsetCodec
from bioio_tk.backends._hdf5_chunks import ChunkCodec, library
from bioio_tk.errors import BackendMissingError, DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from bioio_tk.backends._bdv_pixels import Box
    from bioio_tk.backends._file import RandomFile

_LISTED = (1, 14, 3)
"""Version of HDF5 from which on chunks are listed with their right places."""
_FEW = 1 << 14
"""Chunks of a stack up to which they are listed as soon as one is wanted."""
_SHARE = 50
"""Otherwise when this part of them was wanted already."""
_NAMES = {1: "gzip", 2: "", 3: "fletcher32", 4: "szip", 5: "n-bit", 6: "scale-offset"}
_NAMES |= {32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd"}
_NAMES |= {32026: "blosc2"}
"""Filters by their number in HDF5."""
_BUILT_IN = 256
"""Numbers of filters from here on are those of plugins."""


_KEEP = 1 << 24
"""Bytes up to which a thread keeps its buffer."""
_local = threading.local()


class Step(NamedTuple):
    """What of one chunk goes where, along one axis."""

    chunk: int
    src: slice
    dst: slice


class _Table(NamedTuple):
    """Where the chunks lie in the file: arrays of the shape of their grid; offset -1 is none."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    skipped: NDArray[np.uint32]


class Cells:
    """A dataset of a stack. `read` may be called by any thread.

    Parameters
    ----------
    data : h5py.Dataset
        Z, Y, X.
    owner : h5py.File
        The file it is in, which has to stay open.
    file : RandomFile or None
        The same for reading chunks; None where they are not where the library says.
    where : str
        What messages call it.
    calling : callable
        Gives the context in which the library is called.
    turn : Lock
        Held by the one thread that decodes small chunks: several would wait for each other.
    """

    def __init__(
        self,
        data: Any,
        owner: Any,
        file: RandomFile | None,
        where: str,
        calling: Callable[[str], AbstractContextManager[None]],
        turn: threading.Lock,
    ) -> None:
        self.shape: tuple[int, ...] = data.shape
        self.dtype: np.dtype[Any] = data.dtype
        self.block: tuple[int, ...] | None = data.chunks
        self._data, self._owner, self._file, self._where = data, owner, file, where
        self._calling, self._turn = calling, turn
        codec = ScaleOffsetCodec.of(data) or ChunkCodec.of(data) if self.block else None
        direct = file is not None and library().version.hdf5_version_tuple >= _LISTED
        self._filters = _filters(data)
        self._raw = not self._filters
        self._small = prod(self.block or ()) * self.dtype.itemsize < SMALL
        self._codec = codec if direct and not (self._raw and self._small) else None
        if any(number >= _BUILT_IN for number, _ in self._filters):
            with suppress(ImportError):
                import_module("hdf5plugin")  # makes its filters known
        self._grid = tuple(-(-n // b) for n, b in zip(self.shape, self.block or (1,), strict=False))
        self._table: _Table | None = None
        self._asked = 0

    @property
    def compression(self) -> str:
        """What the pixels went through, the last first."""
        return ", ".join(name for _, name in reversed(self._filters) if name) or "none"

    @property
    def in_parts(self) -> bool:
        """Whether any part is read at the price of that part."""
        return self.block is None or (self._raw and self._codec is not None)

    def read(self, box: Box, out: NDArray[Any]) -> None:
        """Fill `out` (z, y, x) with the pixels of a box; what is beyond the stack is 0."""
        inside: Any = tuple(
            slice(b.start, min(b.stop, n)) for b, n in zip(box, self.shape, strict=True)
        )
        if any(i.stop < b.stop for i, b in zip(inside, box, strict=True)):
            out[...] = 0
            if any(i.stop <= i.start for i in inside):
                return
            out = out[tuple(slice(i.stop - i.start) for i in inside)]
        steps = [along(i, n) for i, n in zip(inside, self.block or self.shape, strict=True)]
        table = self._listed(prod(map(len, steps)))
        if table is None:
            self._by_library(inside, out)
        elif not self._small:
            self._by_chunks(table, steps, out)
        elif self._turn.acquire(blocking=False):
            try:
                self._by_chunks(table, steps, out)
            finally:
                self._turn.release()
        else:  # while one thread decodes, the library can work in another
            self._by_library(inside, out)

    def _by_library(self, inside: Box, out: NDArray[Any]) -> None:
        corner = tuple(part.start for part in inside)
        for number, name in self._filters:
            if not library().h5z.filter_avail(number):
                raise BackendMissingError(
                    f"{self._where} is compressed with {name or number}, which needs a package "
                    "that is not installed: pip install hdf5plugin"
                )
        with self._calling(f"what lies at {corner} (Z, Y, X) of {self._where}"):
            pixels = self._data[inside]
        out[...] = self._typed(pixels, out.dtype)

    def _by_chunks(self, table: _Table, steps: list[list[Step]], out: NDArray[Any]) -> None:
        for z, y, x in product(*steps):
            pixels = self._chunk(table, z, y, x)
            out[z.dst, y.dst, x.dst] = self._typed(pixels, out.dtype)

    def _typed(self, pixels: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return pixels in the byte order of the machine, their bits taken for `dtype`."""
        native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        return native.view(dtype)

    def _chunk(self, table: _Table, z: Step, y: Step, x: Step) -> NDArray[Any]:
        key = (z.chunk, y.chunk, x.chunk)
        offset = table.offsets.item(key)
        if offset < 0:
            return np.full((1, 1, 1), self._data.fillvalue, self.dtype)
        try:
            if self._raw:
                return self._rows(offset, z.src, y.src)[:, :, x.src]
            data = self._file.read(offset, table.sizes.item(key))  # type: ignore[union-attr]
            whole = self._codec.decode(data, table.skipped.item(key))  # type: ignore[union-attr]
        except ValueError as exc:
            corner = tuple(k * n for k, n in zip(key, self.block or (), strict=True))
            raise DamagedFileError(
                f"the chunk at {corner} (Z, Y, X) of {self._where} is broken: {exc}"
            ) from exc
        return whole[z.src, y.src, x.src]

    def _rows(self, offset: int, z: slice, y: slice) -> NDArray[Any]:
        """Return rows of some planes of an uncompressed chunk."""
        _, height, width = self.block or ()
        planes, row = z.stop - z.start, width * self.dtype.itemsize
        few = 2 * (y.stop - y.start) < height  # else what lies between costs less than asking again
        first, rows = (y.start, y.stop - y.start) if few else (0, height)
        size = rows * row if few else planes * height * row
        buffer = _scratch(planes * rows * row)  # taken out of it before this thread reads again
        got, offset = 0, offset + (z.start * height + first) * row
        for n in range(planes if few else 1):
            part = buffer[n * size : (n + 1) * size]
            got += self._file.read_into(offset + n * height * row, part)  # type: ignore[union-attr]
        if got != len(buffer):
            raise ValueError(f"the file ends after {got} of {len(buffer)} bytes")
        found = buffer.view(self.dtype).reshape(planes, rows, width)
        return found[:, y.start - first : y.stop - first]

    def _listed(self, wanted: int) -> _Table | None:
        """Return where the chunks lie; None where the library is to be asked for these few."""
        if self._codec is None or self._table is not None:
            return self._table
        self._asked += wanted
        count = prod(self._grid)
        if count > _FEW and self._asked * _SHARE < count:
            return None
        infos: list[Any] = []
        with self._calling(f"the list of the chunks of {self._where}"):
            self._data.id.chunk_iter(infos.append)
        self._table = self._tabled(infos)
        return self._table

    def _tabled(self, infos: list[Any]) -> _Table:
        offsets = np.full(self._grid, -1, np.int64)
        sizes = np.zeros(self._grid, np.int64)
        skipped = np.zeros(self._grid, np.uint32)
        if infos:
            places = np.array([info.chunk_offset for info in infos]) // np.array(self.block)
            known = (places < self._grid).all(axis=1)
            at = tuple(places[known].T)
            offsets[at] = np.array([info.byte_offset for info in infos])[known]
            sizes[at] = np.array([info.size for info in infos])[known]
            skipped[at] = np.array([info.filter_mask for info in infos])[known]
        return _Table(offsets, sizes, skipped)


def _scratch(count: int) -> NDArray[np.uint8]:
    """Return so many bytes that belong to this thread until it asks for them again."""
    buffer: NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < count:
        buffer = np.empty(count, np.uint8)
        if count <= _KEEP:
            _local.buffer = buffer
    return buffer[:count]


def _filters(data: Any) -> list[tuple[int, str]]:
    """Return number and name of each filter of a dataset; "" for what compresses nothing."""
    plist = data.id.get_create_plist()
    found = [plist.get_filter(n) for n in range(plist.get_nfilters())]
    return [(f[0], _NAMES.get(f[0], f[3].decode("utf-8", "replace").strip("\0"))) for f in found]


def along(span: slice, n: int) -> list[Step]:
    """Return which chunks of `n` pixels a span touches."""
    steps = []
    for k in range(span.start // n, -(-span.stop // n)):
        low, a = k * n, max(span.start, k * n)
        b = min(span.stop, low + n)
        steps.append(Step(k, slice(a - low, b - low), slice(a - span.start, b - span.start)))
    return steps
