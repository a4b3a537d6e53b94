"""ChunkWriter: the chunks of one Zarr array, sharded or not, written into a Store.

A shard grows on disk: chunks are appended as they come, the table of where they lie stays in
memory and goes to the end of the file when the shard is complete.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._open_files import OpenFile, OpenFiles
from bioio_tk.backends._store import FolderStore, part_number
from bioio_tk.backends._zarr_array import EMPTY, Index, ZarrArray, parse_table, size_of
from bioio_tk.backends._zarr_codecs import Bytes, crc32c, scratch
from bioio_tk.backends._zarr_tree import DOCUMENTS
from bioio_tk.errors import BioIOError, ClosedError, DamagedFileError, PixelTypeError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bioio_tk.backends._file import RandomFile
    from bioio_tk.backends._store import Store
    from bioio_tk.backends._zarr_meta import ArrayMeta, ShardIndex

_KNOWN = 64
"""Complete shards of which the table is kept."""
_PIECE = 1 << 24
"""Bytes copied at once."""
_WASTE = 0.25
"""Part of a shard that may be bytes of replaced chunks."""
_counter = itertools.count()


class _Shard(OpenFile):
    """One shard: its file and the table of its chunks.

    Attributes
    ----------
    lock : threading.Condition
        Over all but `file` and `users`; told when a reader or writer is through.
    known : bool
        Whether there is such a shard in the store has been looked up.
    complete : bool
        It lies under its key in the store, with this table; nothing came after.
    gone : bool
        The writer has forgotten it: look it up again.
    entries : ndarray
        (chunks, 2) offsets and lengths.
    missing : ndarray of bool
        Chunks within the array that nothing was ever stored of.
    left : int
        How many these are; below 0 where chunks of a complete shard are replaced: then nobody
        knows when it is complete again but who calls `finish`.
    free : list of (int, int)
        Offsets and lengths of bytes nobody needs.
    end : int
        Where the next chunk goes.
    readers, writers : int
        Threads that are at the bytes just now.
    """

    def __init__(self, missing: NDArray[np.bool_]) -> None:
        super().__init__()  # `path` is where it grows while not complete, "" for no file yet
        self.lock = threading.Condition(threading.Lock())
        self.known = self.complete = self.gone = False
        self.entries = np.full((missing.size, 2), EMPTY, np.uint64)
        self.missing = missing.reshape(-1)
        self.left = int(np.count_nonzero(missing))
        self.free: list[tuple[int, int]] = []
        self.end = 0
        self.readers = self.writers = 0

    def found(self, entries: NDArray[np.uint64], start: int, end: int) -> None:
        """Take over the table of a shard that is in the store, its chunks from `start` on."""
        self.entries, self.end = entries, end
        self.missing[:] = False
        self.left = -1
        at = start
        for offset, length in self.live():
            if offset > at:
                self.free.append((at, offset - at))
            at = max(at, offset + length)
        self.known = self.complete = True

    def take(self, count: int, *, anew: bool = False) -> int:
        """Return where `count` bytes can go; with `anew` none of them were taken before."""
        # bytes that a reader may still be at must not change; those who come later see the table
        if self.readers == 0 and not anew:
            for i, (offset, length) in enumerate(self.free):
                if length >= count:
                    self.free[i] = (offset + count, length - count)
                    return offset
        offset = self.end
        self.end += count
        return offset

    def enter(self, i: int, offset: int, count: int) -> None:
        """Put a chunk into the table; (EMPTY, EMPTY) takes it out."""
        before, length = self.entries[i].tolist()
        if before != EMPTY:
            self.free.append((before, length))
        self.entries[i] = offset, count
        self.left -= int(self.missing[i])
        self.missing[i] = False

    def live(self) -> list[tuple[int, int]]:
        """Return offsets and lengths of all chunks that are there, in the order of the file."""
        there = self.entries[self.entries[:, 0] != EMPTY]
        return sorted((offset, length) for offset, length in there.tolist())


class ChunkWriter:
    """Writes the chunks of one array. Any method from any thread.

    Parameters
    ----------
    store : Store
        Where the array lies.
    path : str
        Its path in the store: "", "0", "a/b".
    meta : ArrayMeta
        What it says of itself.
    scratch : Path, optional
        A folder of this machine where the shards of a remote store grow.
    atomic : bool
        Others read or write the same store meanwhile: what has a key is always complete.
        False is faster, and for a folder that nobody else looks at yet.
    logged : bool
        Somebody takes down where chunks lie (see `trace`), so that others can go on with shards
        that are not complete: what was stored stays where it is.
    files : OpenFiles, optional
        Opens the shards that grow, where several writers share the files they may have open.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        meta: ArrayMeta,
        scratch: Path | None = None,
        *,
        atomic: bool = False,
        logged: bool = False,
        files: OpenFiles | None = None,
    ) -> None:
        self._store = store
        self.meta = meta
        self._array = ZarrArray(store, path, meta)
        self._atomic = atomic
        self._logged = logged
        self._folder = store if isinstance(store, FolderStore) else None
        self._scratch = scratch
        index = meta.index
        if index is not None:
            self._check_index(index)
            if self._folder is None and scratch is None:
                raise SpecError("shards of a remote store need a scratch folder to grow in")
        self._counts = index.counts if index else ()
        self._fill = np.array(meta.fill, meta.dtype).tobytes()
        self._lock = threading.Lock()
        """Over all below. A thread that holds it takes no lock of a shard."""
        self._shards: dict[Index, _Shard] = {}
        self._complete: OrderedDict[Index, None] = OrderedDict()
        self._files = OpenFiles() if files is None else files
        self._sent: set[Index] = set()
        self._closed = False

    def _check_index(self, index: ShardIndex) -> None:
        if not (index.at_end and index.checked and index.dtype == np.dtype("<u8")):
            raise SpecError("shards are written with a checked little-endian index at the end")

    # --- encoding --------------------------------------------------------------------------------

    def encode(self, chunk: NDArray[Any]) -> Bytes | None:
        """Return the bytes of a chunk, for `store`.

        Parameters
        ----------
        chunk : ndarray
            Pixels of the array's type; at the end of the array it may be clipped.

        Returns
        -------
        bytes-like or None
            None where each byte is that of the fill value: nothing needs to be stored. Raw
            pixels may share memory with `chunk`.
        """
        meta = self.meta
        if chunk.dtype != meta.dtype:
            raise PixelTypeError(f"pixels of type {chunk.dtype} were given, not {meta.dtype}")
        padded = chunk.shape != meta.chunks
        if padded:
            if len(chunk.shape) != len(meta.chunks) or any(
                n > c for n, c in zip(chunk.shape, meta.chunks, strict=True)
            ):
                raise SpecError(f"{chunk.shape} pixels do not fit a chunk of {meta.chunks}")
            whole = np.full(meta.chunks, meta.fill, meta.dtype)
            whole[tuple(slice(n) for n in chunk.shape)] = chunk
            chunk = whole
        if self._is_fill(chunk):
            return None
        if meta.codec.direct and not meta.codec.raw and not chunk.flags.c_contiguous:
            # a fresh array for every chunk would be memory that the system has to clear first
            room = scratch(chunk.nbytes).view(meta.dtype).reshape(meta.chunks)
            room[...] = chunk
            chunk = room
        return meta.codec.encode(chunk)

    def _is_fill(self, chunk: NDArray[Any]) -> bool:
        if chunk.size == 0:
            return True
        if chunk[(0,) * chunk.ndim].tobytes() != self._fill:
            return False
        if chunk[tuple(n // 2 for n in chunk.shape)].tobytes() != self._fill:
            return False
        itemsize = chunk.dtype.itemsize
        kind = np.dtype(f"u{min(itemsize, 8)}")
        if itemsize > 8:
            chunk = np.ascontiguousarray(chunk)
            bits = chunk.reshape(-1, 1).view(kind)
        else:
            bits = chunk.view(kind)
        return bool((bits == np.frombuffer(self._fill, kind)).all())

    # --- storing ---------------------------------------------------------------------------------

    def store(self, index: Index, encoded: Bytes | None) -> None:
        """Store what `encode` returned as chunk `index`; the last one counts, None removes it.

        Raises
        ------
        OSError
            The disk is full, the network gone. What was stored of this chunk before stays.
        """
        self._check_open()
        if self.meta.index is None:
            self._store_key(index, encoded)
            return
        key, inner = self._place(index)
        self._store_in_shard(key, [(inner, encoded)])

    def store_many(self, chunks: Sequence[tuple[Index, Bytes | None]]) -> None:
        """Store several chunks as `store` does; those of one shard in one piece."""
        self._check_open()
        if self.meta.index is None:
            for index, encoded in chunks:
                self._store_key(index, encoded)
            return
        by_shard: dict[Index, list[tuple[int, Bytes | None]]] = {}
        for index, encoded in chunks:
            key, inner = self._place(index)
            by_shard.setdefault(key, []).append((inner, encoded))
        for key, found in by_shard.items():
            self._store_in_shard(key, found)

    def _store_key(self, index: Index, encoded: Bytes | None) -> None:
        key = self._array.key(index)
        if encoded is None:
            if self._folder is not None or index in self._sent:
                self._store.delete(key)
                self._sent.discard(index)
        elif self._folder is None:
            self._store.put(key, encoded)
            self._sent.add(index)
        elif self._atomic:
            self._store.put(key, encoded)
        else:
            write_new(self._folder, self._folder.where(key), encoded)

    def load(self, index: Index) -> NDArray[Any] | None:
        """Return a chunk with its full shape; None where nothing is stored, so all is fill."""
        self._check_open()
        if self.meta.index is None:
            return self._array.read_chunk(index)
        key, inner = self._place(index)
        with self._held(key) as shard:
            offset, length = shard.entries[inner].tolist()
            if offset == EMPTY:
                return None
            complete = shard.complete
            shard.readers += 1
        try:
            if complete:
                data = self._store.get_range(self._array.key(key), offset, length)
            else:
                with self._files.use(shard) as file:
                    data = file.read(offset, length)
        finally:
            with shard.lock:
                shard.readers -= 1
                shard.lock.notify_all()
        try:
            return self.meta.codec.decode(data or b"")
        except BioIOError as exc:
            where = self._store.where(self._array.key(key))
            raise type(exc)(f"{where}: chunk {index} cannot be read: {exc}") from exc

    def trace(self, index: Index) -> list[int] | None:
        """Return where a chunk lies in its shard, None where it is nowhere (all is fill)."""
        key, inner = self._place(index)
        with self._held(key) as shard:
            offset, length = shard.entries[inner].tolist()
        return None if offset == EMPTY else [offset, length]

    def adopt(self, chunks: Mapping[Index, Any]) -> None:
        """Go on with what another writer, which is no more, has stored.

        Parameters
        ----------
        chunks : mapping
            What is known to be stored: index to what `trace` has said, or, where chunks are
            files, to None where there is none. All else is removed, but for chunks of complete
            shards.
        """
        assert self._folder is not None
        if self.meta.index is None:
            known = {
                self._folder.where(self._array.key(index))
                for index, what in chunks.items()
                if what is not None
            }
            self._remove_files(known)
            return
        shards: dict[Index, dict[int, Any]] = {}
        for index, what in chunks.items():
            key, inner = self._place(index)
            shards.setdefault(key, {})[inner] = what
        kept = {
            self._folder.where(self._array.key(key))
            for key in self._shard_keys()
            if self._adopt_shard(key, shards.get(key, {}))
        }
        self._remove_files(kept)

    def _adopt_shard(self, key: Index, chunks: dict[int, Any]) -> bool:
        """Take over a shard; return whether there is a file of it to keep."""
        path = Path(self._store.where(self._array.key(key)))
        size = path.stat().st_size if path.exists() else 0
        shard = _Shard(self._missing(key))
        if size:
            with suppress(DamagedFileError):  # it is not complete: it has no table yet
                self._look_up(key, shard)
        if shard.complete:
            self._complete.pop(key)  # looked up again when it is wanted
            return True
        for inner, what in chunks.items():
            offset, length = (EMPTY, EMPTY) if what is None else what
            if what is None or offset + length <= size:
                shard.enter(inner, offset, length)
                shard.end = max(shard.end, 0 if what is None else offset + length)
        shard.known, shard.path = True, str(path) if shard.end else ""
        if chunks:
            self._shards[key] = shard
        return bool(shard.path)

    def _shard_keys(self) -> Iterator[Index]:
        grid = zip(self.meta.grid, self._counts, strict=True)
        return itertools.product(*(range(-(-n // many)) for n, many in grid))

    def _remove_files(self, kept: set[str]) -> None:
        """Remove the files of the array but those to keep, and its document."""
        assert self._folder is not None
        root = self._folder.where(self._array.path)
        for place, _, names in os.walk(root):
            for name in names:
                path = f"{place}/{name}"
                if path not in kept and not (place == root and name in DOCUMENTS):
                    Path(path).unlink()

    def has(self, index: Index) -> bool:
        """Return whether there is something of a chunk where chunks are files, or in a shard."""
        if self.meta.index is not None:
            return self.trace(index) is not None
        return os.path.exists(self._store.where(self._array.key(index)))  # noqa: PTH110

    def finish(self) -> None:
        """Complete all shards; those that are complete already stay as they are."""
        self._check_open()
        with self._lock:
            keys = list(self._shards)
        for key in keys:
            self._finish(key, only_full=False)

    def close(self, *, keep: bool = False) -> None:
        """Release all files; remove what is not complete unless `keep`. Safe to call twice."""
        with self._lock:
            self._closed = True
            shards = list(self._shards.values())
            self._shards.clear()
            self._complete.clear()
        for shard in shards:
            with suppress(OSError):
                self._files.close(shard)
            if shard.path and not shard.complete and not keep:
                with suppress(OSError):
                    Path(shard.path).unlink()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the chunk writer is closed")

    # --- shards ----------------------------------------------------------------------------------

    def _place(self, index: Index) -> tuple[Index, int]:
        """Return the shard of a chunk, and the number of the chunk in it."""
        shard = tuple(i // n for i, n in zip(index, self._counts, strict=True))
        inner = 0
        for i, n in zip(index, self._counts, strict=True):
            inner = inner * n + i % n
        return shard, inner

    def _store_in_shard(self, key: Index, chunks: Sequence[tuple[int, Bytes | None]]) -> None:
        full = [(inner, encoded) for inner, encoded in chunks if encoded is not None]
        counts = [memoryview(encoded).nbytes for _, encoded in full]
        with self._held(key) as shard:
            for inner, encoded in chunks:
                if encoded is None:
                    if shard.entries[inner, 0] != EMPTY:
                        self._begin(key, shard)
                        self._record(shard, [inner], EMPTY, [EMPTY])
                    shard.enter(inner, EMPTY, EMPTY)
            if full:
                self._begin(key, shard)
                offset = shard.take(sum(counts), anew=self._logged)
                shard.writers += 1
        if full:
            stored = False
            try:
                with self._files.use(shard) as file:
                    self._write(file, offset, [encoded for _, encoded in full])
                self._record(shard, [inner for inner, _ in full], offset, counts)
                stored = True
            finally:
                with shard.lock:
                    shard.writers -= 1
                    shard.lock.notify_all()
                    if not stored:
                        shard.free.append((offset, sum(counts)))
                    for (inner, _), count in zip(full, counts, strict=True):
                        if stored:
                            shard.enter(inner, offset, count)
                            offset += count
        if shard.left == 0:
            self._finish(key, only_full=True)

    def _write(self, file: RandomFile, offset: int, parts: Sequence[Bytes]) -> None:
        """Write chunks one after the other."""
        file.write_many(offset, parts)

    def _record(
        self, shard: _Shard, inner: Sequence[int], offset: int, counts: Sequence[int]
    ) -> None:
        """Take down that chunks lie one after the other from `offset` on: nothing to do here."""

    @contextmanager
    def _held(self, key: Index) -> Iterator[_Shard]:
        """Hold the lock of a shard, and know what is in the store of it."""
        while True:
            with self._lock:
                shard = self._shards.get(key)
                if shard is None:
                    shard = self._shards[key] = _Shard(self._missing(key))
            with shard.lock:
                if shard.gone:
                    continue
                if not shard.known:
                    self._look_up(key, shard)
                yield shard
            break
        self._forget_some()

    def _missing(self, key: Index) -> NDArray[np.bool_]:
        missing = np.zeros(self._counts, bool)
        inside = zip(key, self._counts, self.meta.grid, strict=True)
        missing[tuple(slice(max(0, min(n, total - i * n))) for i, n, total in inside)] = True
        return missing

    def _look_up(self, key: Index, shard: _Shard) -> None:
        """Find out whether the store has the shard. Its lock is held."""
        index = self.meta.index
        assert index is not None
        name = self._array.key(key)
        # what a remote store has without us having sent it is not asked: it would cost a request
        asks = self._folder is not None or key in self._sent
        place = -index.nbytes if index.at_end else 0
        raw = self._store.get_range(name, place, index.nbytes) if asks else None
        if raw is None:
            shard.known = True
            return
        try:
            table = parse_table(index, raw, size_of(self._store, name))
            entries = table.entries.reshape(-1, 2)
            there = [e for e in entries.tolist() if e[0] != EMPTY]
            end = max((offset + length for offset, length in there), default=table.start)
            if end > table.stop:
                raise DamagedFileError("a chunk lies outside of what it has")
        except DamagedFileError as exc:
            raise DamagedFileError(f"{self._store.where(name)}: {exc}") from exc
        shard.found(entries, table.start, end)
        with self._lock:
            self._complete[key] = None

    def _begin(self, key: Index, shard: _Shard) -> None:
        """Make sure that the shard has a file to grow in. Its lock is held."""
        if not shard.complete and shard.path:
            return
        final = self._array.key(key)
        if self._folder is not None and not self._atomic:
            path = self._folder.where(final)
            if not shard.complete:
                os.close(self._folder.create(path))
        else:
            path = self._part(final)
            self._copy(final, path, shard.end if shard.complete else 0)
        shard.path = path
        shard.complete = False
        with self._lock:
            self._complete.pop(key, None)

    def _part(self, name: str) -> str:
        """Return the path of a new file for what will be `name`."""
        tail = f"{part_number()}-{next(_counter)}.part"
        if self._folder is not None:
            path = f"{self._folder.where(name)}.{tail}"
            self._folder.make_folder(path)
            return path
        assert self._scratch is not None
        return os.path.join(self._scratch, f"shard-{tail}")  # noqa: PTH118 - a str is wanted

    def _copy(self, name: str, path: str, count: int) -> None:
        """Make a new file of the first `count` bytes of a key."""
        with open(path, "xb") as file:  # noqa: PTH123 - a str is given
            for start in range(0, count, _PIECE):
                wanted = min(_PIECE, count - start)
                piece = self._store.get_range(name, start, wanted) or b""
                if len(piece) != wanted:
                    raise DamagedFileError(f"{self._store.where(name)}: the shard is cut off")
                file.write(piece)

    def _finish(self, key: Index, *, only_full: bool) -> None:
        """Complete a shard, unless it is so already."""
        with self._held(key) as shard:
            if only_full and (shard.left or shard.writers):
                return  # the last writer does it
            while shard.readers or shard.writers:
                shard.lock.wait()
            if shard.complete or shard.gone:
                return
            name = self._array.key(key)
            if shard.live():
                self._complete_file(name, shard)
                if self._folder is None:
                    self._sent.add(key)
                shard.path, shard.left, shard.complete = "", -1, True
                with self._lock:
                    self._complete[key] = None
            else:
                self._drop(name, key, shard)

    def _complete_file(self, name: str, shard: _Shard) -> None:
        live = shard.live()
        used = sum(length for _, length in live)
        if shard.end - used > _WASTE * shard.end and not self._logged:
            self._compact(name, shard, live)
        self._seal(shard)
        self._publish(name, shard)

    def _drop(self, name: str, key: Index, shard: _Shard) -> None:
        """Leave nothing of a shard without chunks."""
        if shard.path:
            self._files.close(shard)
            Path(shard.path).unlink()
            shard.path = ""
            if self._folder is not None or key in self._sent:
                self._store.delete(name)
            self._sent.discard(key)
        shard.gone = True
        with self._lock:
            self._shards.pop(key, None)

    def _seal(self, shard: _Shard) -> None:
        """Put the table at the end of the file."""
        table = shard.entries.astype("<u8").tobytes()
        table += crc32c(table).to_bytes(4, "little")
        with self._files.use(shard) as file:
            file.write(shard.end, table)
        self._files.close(shard)
        os.truncate(shard.path, shard.end + len(table))

    def _publish(self, name: str, shard: _Shard) -> None:
        """Move a sealed file to where its key is."""
        if self._folder is None:
            self._store.put_file(name, Path(shard.path))
        elif shard.path != self._folder.where(name):
            os.replace(shard.path, self._folder.where(name))

    def _compact(self, name: str, shard: _Shard, live: list[tuple[int, int]]) -> None:
        """Copy the chunks that count into a new file."""
        path = self._part(name)
        moved = {}
        end = 0
        try:
            with self._files.use(shard) as old, open(path, "xb") as new:  # noqa: PTH123
                for offset, length in live:
                    data = old.read(offset, length)
                    if len(data) != length:
                        raise DamagedFileError(f"{shard.path}: the shard is cut off")
                    new.write(data)
                    moved[offset] = end
                    end += length
            self._files.close(shard)
            if self._folder is not None and not self._atomic:
                # its place is taken at once: the old file has no table, so nobody can miss it
                os.replace(path, shard.path)
            else:
                Path(shard.path).unlink()
                shard.path = path
        except BaseException:
            with suppress(OSError):
                Path(path).unlink()
            raise
        for i, (offset, _) in enumerate(shard.entries.tolist()):
            if offset != EMPTY:
                shard.entries[i, 0] = moved[offset]
        shard.end, shard.free = end, []

    def _forget_some(self) -> None:
        """Keep the tables of the last few complete shards only."""
        while True:
            with self._lock:
                if len(self._complete) <= _KNOWN:
                    return
                key, _ = self._complete.popitem(last=False)
                shard = self._shards.get(key)
            if shard is None:
                continue
            with shard.lock:
                if shard.complete and not shard.readers:
                    shard.gone = True
                    with self._lock:
                        self._shards.pop(key, None)


def write_new(folder: FolderStore, path: str, data: Bytes) -> None:
    """Write a file in place; one that could not be written whole is removed."""
    view = memoryview(data).cast("B")
    fd = folder.create(path)
    try:
        try:
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
    except BaseException:
        with suppress(OSError):
            Path(path).unlink()
        raise
