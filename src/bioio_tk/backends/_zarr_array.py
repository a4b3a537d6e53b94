"""ZarrArray: the chunks of one Zarr array, sharded or not, read from a Store."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from bioio_tk.backends._store import FolderStore
from bioio_tk.backends._zarr_codecs import crc32c
from bioio_tk.errors import BioIOError, DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from bioio_tk.backends._store import Store
    from bioio_tk.backends._zarr_meta import ArrayMeta, ShardIndex

Index: TypeAlias = tuple[int, ...]
Slices: TypeAlias = tuple[slice, ...]

EMPTY = 0xFFFF_FFFF_FFFF_FFFF
"""Offset and length of a chunk that is not in the shard."""
_LARGEST_CHUNK = 1 << 31
_WHOLE = 1 << 29
"""Bytes of pixels up to which a shard is taken in one piece."""
_TOGETHER = 1 << 20
"""Bytes of pixels of small chunks that are decoded by one call."""
_RUN = 1 << 26
"""Bytes that are read at once out of a shard."""
_GAP_NEAR, _GAP_FAR = 1 << 14, 1 << 19
"""Bytes worth reading for nothing where that saves a request: from a disk, over a network."""
_CACHED = 1 << 23
"""Bytes of shard tables that an array keeps."""


class Table(NamedTuple):
    """Where the chunks of a shard lie: (..., 2) offsets and lengths, and where they must end."""

    entries: NDArray[np.uint64]
    start: int
    stop: int

    def find(self, inner: Index) -> tuple[int, int] | None:
        """Return offset and length of a chunk, None where it is not there."""
        offset, length = self.entries[inner].tolist()
        return None if offset == EMPTY and length == EMPTY else (offset, length)


class _Piece(NamedTuple):
    """A chunk that a request touches: which it is, what of it is wanted, and where that goes."""

    inner: Index
    part: Slices
    place: Slices


_Stored: TypeAlias = tuple[int, int, _Piece]
"""Offset and length of a chunk in its shard, and what is wanted of it."""


def parse_table(index: ShardIndex, raw: bytes, size: int | None) -> Table:
    """Return the table of a shard.

    Parameters
    ----------
    index : ShardIndex
        How it is stored.
    raw : bytes
        Its bytes, with the checksum.
    size : int or None
        Bytes of the whole shard, where known.

    Raises
    ------
    DamagedFileError
        It is cut off, or its checksum differs.
    """
    if len(raw) != index.nbytes:
        raise DamagedFileError(f"its index should have {index.nbytes} bytes, {len(raw)} are there")
    body = raw
    if index.checked:
        body = raw[:-4]
        if crc32c(body) != int.from_bytes(raw[-4:], "little"):
            raise DamagedFileError("the checksum of its index differs")
    entries = np.frombuffer(body, index.dtype).astype(np.uint64).reshape(*index.counts, 2)
    end = 1 << 63 if size is None else size
    start = 0 if index.at_end else index.nbytes
    return Table(entries, start, end - index.nbytes if index.at_end else end)


def size_of(store: Store, key: str) -> int | None:
    """Return the size of a value that is there, None where that would cost a request."""
    if not isinstance(store, FolderStore):
        return None
    if store._folder >= 0:  # as the store reads: of the folder it opened, should it be replaced
        return os.stat(key, dir_fd=store._folder).st_size
    return os.stat(store.where(key)).st_size


class ZarrArray:
    """One array in a store. Any method from any thread.

    Parameters
    ----------
    store : Store
        Where it lies.
    path : str
        Its path in the store: "", "0", "a/b".
    meta : ArrayMeta
        What it says of itself.
    """

    def __init__(self, store: Store, path: str, meta: ArrayMeta) -> None:
        self.store = store
        self.path = path
        self.meta = meta
        self._codec = meta.codec
        self._dtype = meta.dtype
        self._chunks = meta.chunks
        self._prefix = (f"{path}/" if path else "") + meta.prefix
        self._separator = meta.separator
        self._index = meta.index
        self._counts = meta.index.counts if meta.index else ()
        self._tables: OrderedDict[Index, Table | None] = OrderedDict()
        self._tables_bytes = 0
        self._lock = threading.Lock()

    def key(self, index: Index) -> str:
        """Return the key of a chunk or shard in the store."""
        return self._prefix + self._separator.join(map(str, index))

    def read_chunk(self, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any] | None:
        """Return a whole chunk.

        Parameters
        ----------
        index : tuple of int
            Which chunk, along the axes of the array.
        out : ndarray, optional
            Where to put it, of the shape of a chunk.

        Returns
        -------
        ndarray or None
            The chunk with its full shape, also where the array ends within it, in native byte
            order; None where it is not stored: then all of it is the fill value.

        Raises
        ------
        DamagedFileError
            It is not what was written.
        """
        data = self._stored(index)
        if data is None:
            return None
        if out is None:
            out = np.empty(self._chunks, self._dtype)
        self._decode(data, index, None, out)
        return out

    def read_part(self, index: Index, part: Slices, out: NDArray[Any]) -> None:
        """Fill `out` with a part of a chunk (positive steps), or with the fill value."""
        data = self._stored(index)
        if data is None:
            out[...] = self.meta.fill
        else:
            self._decode(data, index, part, out)

    def read_shard(self, index: Index, part: Slices, out: NDArray[Any]) -> None:
        """Fill `out` with a part of a shard; only the chunks it touches are decoded.

        Parameters
        ----------
        index : tuple of int
            Which shard.
        part : tuple of slice
            Within the shard, positive steps.
        out : ndarray
            Of the shape of the part, any strides.

        Raises
        ------
        DamagedFileError
            The shard is not what was written.
        """
        assert self._index is not None
        pieces = list(self._pieces(part))
        size = self._codec.nbytes * math.prod(self._counts)
        if 2 * len(pieces) > self._in_array(index) and len(pieces) > 1 and size <= _WHOLE:
            self._read_whole(index, pieces, out)
        else:
            self._read_ranges(index, pieces, out)

    # --- one chunk -------------------------------------------------------------------------------

    def _stored(self, index: Index) -> Any:
        """Return the bytes of a chunk, None where it is not stored."""
        if self._index is None:
            return self.store.get(self._prefix + self._separator.join(map(str, index)))
        shard = tuple([i // n for i, n in zip(index, self._counts, strict=True)])
        table = self._table(shard)
        if table is None:
            return None
        found = table.find(tuple([i % n for i, n in zip(index, self._counts, strict=True)]))
        if found is None:
            return None
        offset, length = self._checked(shard, index, table, found)
        data = self.store.get_range(self.key(shard), offset, length)
        if data is None or len(data) != length:
            raise self._wrong(shard, index, "the shard ends before it does")
        return data

    def _decode(self, data: Any, index: Index, part: Slices | None, out: NDArray[Any]) -> None:
        codec = self._codec
        if codec.nbytes > _LARGEST_CHUNK:
            raise UnsupportedError(
                f"{self.store.where(self.path)}: a chunk of {codec.nbytes} bytes is too large, "
                "up to 2 GiB can be read: write the image anew with smaller chunks"
            )
        try:
            # an `out` as large as a chunk takes all of it, whatever the slices are called
            if (
                codec.direct
                and out.shape == self._chunks
                and out.flags.c_contiguous
                and out.dtype == self._dtype
            ):
                codec.fill(data, out)
            else:
                array = codec.decode(data, own=False)
                out[...] = array if part is None else array[part]
        except BioIOError as exc:
            raise self._named(exc, index) from exc

    def _named(self, exc: BioIOError, index: Index) -> BioIOError:
        shard = index
        if self._index is not None:
            shard = tuple(i // n for i, n in zip(index, self._counts, strict=True))
        where = self.store.where(self.key(shard))
        return type(exc)(f"{where}: chunk {index} cannot be read: {exc}")

    def _wrong(self, shard: Index, index: Index | None, why: str) -> DamagedFileError:
        chunk = "" if index is None else f"chunk {index} cannot be read: "
        return DamagedFileError(f"{self.store.where(self.key(shard))}: {chunk}{why}")

    # --- tables of shards ------------------------------------------------------------------------

    def _table(self, shard: Index) -> Table | None:
        """Return the table of a shard, None where there is no such shard."""
        with self._lock:
            if shard in self._tables:
                self._tables.move_to_end(shard)
                return self._tables[shard]
        assert self._index is not None
        key, count = self.key(shard), self._index.nbytes
        raw = self.store.get_range(key, -count if self._index.at_end else 0, count)
        if raw is None:
            if self.store.waits:
                self._keep(shard, None)
            return None
        return self._parsed(shard, raw, size_of(self.store, key))

    def _parsed(self, shard: Index, raw: bytes, size: int | None) -> Table:
        assert self._index is not None
        try:
            table = parse_table(self._index, raw, size)
        except DamagedFileError as exc:
            raise self._wrong(shard, None, str(exc)) from exc
        self._keep(shard, table)
        return table

    def _keep(self, shard: Index, table: Table | None) -> None:
        with self._lock:
            self._forget(shard)
            self._tables[shard] = table
            self._tables_bytes += _weight(table)
            while self._tables_bytes > _CACHED and len(self._tables) > 1:
                self._forget(next(iter(self._tables)))

    def _forget(self, shard: Index) -> None:
        if shard in self._tables:
            self._tables_bytes -= _weight(self._tables.pop(shard))

    def _checked(
        self, shard: Index, index: Index, table: Table, found: tuple[int, int]
    ) -> tuple[int, int]:
        offset, length = found
        # no codec makes much more of a chunk than it was: such a length is not worth an attempt
        if (
            offset < table.start
            or offset + length > table.stop
            or length > 2 * self._codec.nbytes + (1 << 20)
        ):
            raise self._wrong(
                shard, index, f"its {length} bytes from {offset} are outside of what the shard has"
            )
        return found

    # --- many chunks of a shard ------------------------------------------------------------------

    def _pieces(self, part: Slices) -> Iterator[_Piece]:
        """Cut a part of a shard into parts of its chunks."""
        axes = [_cuts(s, n, c) for s, n, c in zip(part, self._counts, self._chunks, strict=True)]
        for cuts in itertools.product(*axes):
            yield _Piece(*zip(*cuts, strict=True))

    def _in_array(self, shard: Index) -> int:
        """Return how many chunks of a shard are within the array."""
        return math.prod(
            max(0, min(n, total - i * n))
            for i, n, total in zip(shard, self._counts, self.meta.grid, strict=True)
        )

    def _global(self, shard: Index, inner: Index) -> Index:
        return tuple(s * n + i for s, n, i in zip(shard, self._counts, inner, strict=True))

    def _read_whole(self, shard: Index, pieces: list[_Piece], out: NDArray[Any]) -> None:
        assert self._index is not None
        data = self.store.get(self.key(shard))
        if data is None:
            out[...] = self.meta.fill
            return
        count = self._index.nbytes
        raw = data[-count:] if self._index.at_end else data[:count]
        table = self._parsed(shard, raw, len(data))
        stored = self._found(shard, table, pieces, out)
        self._decode_all(shard, self._cut(shard, memoryview(data), 0, stored), out)

    def _read_ranges(self, shard: Index, pieces: list[_Piece], out: NDArray[Any]) -> None:
        stored = self._found(shard, self._table(shard), pieces, out)
        gap = _GAP_FAR if self.store.waits else _GAP_NEAR
        self._decode_all(shard, self._frames(shard, _runs(stored, gap)), out)

    def _frames(
        self, shard: Index, runs: Iterable[list[_Stored]]
    ) -> Iterator[tuple[memoryview, _Piece]]:
        """Read pieces, those that lie close to one another at once."""
        for run in runs:
            start = run[0][0]
            stop = max(offset + length for offset, length, _ in run)
            data = self.store.get_range(self.key(shard), start, stop - start)
            yield from self._cut(shard, memoryview(data or b""), start, run)

    def _cut(
        self, shard: Index, view: memoryview, start: int, run: Iterable[_Stored]
    ) -> Iterator[tuple[memoryview, _Piece]]:
        """Cut pieces out of bytes of the file from `start`."""
        for offset, length, piece in run:
            frame = view[offset - start : offset - start + length]
            if len(frame) != length:
                index = self._global(shard, piece.inner)
                raise self._wrong(shard, index, "the shard ends before it does")
            yield frame, piece

    def _found(
        self, shard: Index, table: Table | None, pieces: list[_Piece], out: NDArray[Any]
    ) -> list[_Stored]:
        """Return where pieces lie, in the order of the file; fill in what is not stored."""
        stored: list[_Stored] = []
        for piece in pieces:
            found = None if table is None else table.find(piece.inner)
            if found is None or table is None:
                out[piece.place] = self.meta.fill
                continue
            index = self._global(shard, piece.inner)
            stored.append((*self._checked(shard, index, table, found), piece))
        stored.sort(key=lambda item: item[:2])
        return stored

    def _decode_all(
        self, shard: Index, frames: Iterator[tuple[memoryview, _Piece]], out: NDArray[Any]
    ) -> None:
        """Decode pieces, small ones several at a time."""
        most = max(1, _TOGETHER // max(1, self._codec.nbytes))
        while group := list(itertools.islice(frames, most)):
            chunks = None
            if len(group) > 1:
                chunks = self._codec.decode_many([frame for frame, _ in group])
            for i, (frame, piece) in enumerate(group):
                if chunks is not None:
                    out[piece.place] = chunks[i][piece.part]
                else:
                    index = self._global(shard, piece.inner)
                    self._decode(frame, index, piece.part, out[piece.place])


def _weight(table: Table | None) -> int:
    return 256 + (0 if table is None else table.entries.nbytes)


def _cuts(part: slice, count: int, chunk: int) -> list[tuple[int, slice, slice]]:
    """Cut a slice along one axis at the chunks: which chunk, what of it, where it goes.

    >>> _cuts(slice(3, 12, 2), 4, 4)
    [(0, slice(3, 4, 2), slice(0, 1, None)), (1, slice(1, 4, 2), slice(1, 3, None)), \
(2, slice(1, 4, 2), slice(3, 5, None))]
    """
    start, stop, step = part.indices(count * chunk)
    cuts = []
    done = 0
    while start < stop:
        i = start // chunk
        end = min(stop, (i + 1) * chunk)
        n = -(-(end - start) // step)
        cuts.append((i, slice(start - i * chunk, end - i * chunk, step), slice(done, done + n)))
        done += n
        start += n * step
    return cuts


def _runs(stored: list[_Stored], gap: int) -> Iterator[list[_Stored]]:
    """Put chunks that lie close to one another together."""
    run: list[_Stored] = []
    stop = 0
    for item in stored:
        offset, length, _ = item
        if run and (offset > stop + gap or offset + length - run[0][0] > _RUN):
            yield run
            run = []
        stop = offset + length
        run.append(item)
    if run:
        yield run
