"""LiveWriter: the chunks of an array that others read while it grows, whatever happens to us.

A chunk that is a file is put into place when it is complete. A shard begins with its table, which
has no checksum. A chunk goes to the end of the shard first, and is then entered by one aligned
write of 16 bytes: whoever looks, and whenever the process ends, the chunks entered before are whole
and found. When a shard is full, the table goes to its end once more, with its checksum, as every
program reads it; the document of the array says so when all its shards are like that.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._store import FolderStore
from bioio_tk.backends._zarr_array import EMPTY
from bioio_tk.backends._zarr_codecs import Bytes, crc32c, scratch
from bioio_tk.backends._zarr_shards import ChunkWriter, write_new
from bioio_tk.backends._zarr_tree import DOCUMENTS
from bioio_tk.errors import PixelTypeError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bioio_tk.backends._open_files import OpenFiles
    from bioio_tk.backends._zarr_array import Index
    from bioio_tk.backends._zarr_meta import ArrayMeta, ShardIndex
    from bioio_tk.backends._zarr_shards import _Shard

_PAIR = struct.Struct("<QQ")
"""An entry of a table: offset and length."""
_ENTRY = _PAIR.size


class LiveWriter(ChunkWriter):
    """Writes the chunks of an array that is read meanwhile. Any method from any thread.

    Parameters
    ----------
    store : FolderStore
        Where the array lies: a folder of this machine.
    path : str
        Its path in the store.
    meta : ArrayMeta
        What it says of itself while it grows, with the size it may grow to.
    files : OpenFiles
        Opens the shards.
    """

    def __init__(self, store: FolderStore, path: str, meta: ArrayMeta, files: OpenFiles) -> None:
        super().__init__(store, path, meta, atomic=True, logged=True, files=files)
        self._root = store

    def _check_index(self, index: ShardIndex) -> None:
        if index.at_end or index.checked or index.dtype != np.dtype("<u8"):
            raise SpecError("shards that grow have an unchecked little-endian index at the start")

    def encode(self, chunk: NDArray[Any]) -> Bytes | NDArray[Any] | None:
        """Return what `store` takes for a chunk; raw pixels stay where they are until then."""
        if not self.meta.codec.raw or chunk.flags.c_contiguous or chunk.shape != self.meta.chunks:
            return super().encode(chunk)
        if chunk.dtype != self.meta.dtype:
            raise PixelTypeError(f"pixels of type {chunk.dtype} were given, not {self.meta.dtype}")
        return None if self._is_fill(chunk) else chunk

    def _store_key(self, index: Index, encoded: Bytes | NDArray[Any] | None) -> None:
        super()._store_key(index, None if encoded is None else _solid(encoded))

    def _write(self, file: RandomFile, offset: int, parts: Sequence[Bytes | NDArray[Any]]) -> None:
        """Write chunks one after the other; pieces of a frame through a small buffer."""
        if len(parts) == 1:
            file.write(offset, _solid(parts[0]))
        elif not any(
            isinstance(part, np.ndarray) and not part.flags.c_contiguous for part in parts
        ):
            file.write_many(offset, parts)
        else:
            for part in parts:  # what was just copied is still near the processor
                solid = _solid(part)
                file.write(offset, solid)
                offset += memoryview(solid).nbytes

    def _begin(self, key: Index, shard: _Shard) -> None:
        """Make sure that the shard has a file to grow in. Its lock is held."""
        if shard.path:
            return
        index = self.meta.index
        assert index is not None
        name = self._array.key(key)
        path = self._root.where(name)
        if not shard.complete:
            part = self._part(name)
            write_new(self._root, part, b"\xff" * index.nbytes)
            try:
                os.replace(part, path)
            except BaseException:
                with suppress(OSError):
                    Path(part).unlink()
                raise
            shard.end = index.nbytes
        shard.path, shard.complete = path, False
        with self._lock:
            self._complete.pop(key, None)

    def _record(
        self, shard: _Shard, inner: Sequence[int], offset: int, counts: Sequence[int]
    ) -> None:
        """Enter chunks into the table at the start of the file."""
        if len(inner) == 1:
            with self._files.use(shard) as file:
                file.write(_ENTRY * inner[0], _PAIR.pack(offset, counts[0]))
            return
        entries = np.empty((len(inner), 2), "<u8")
        entries[:, 1] = counts
        entries[:, 0] = offset
        entries[1:, 0] += np.cumsum(entries[:-1, 1])
        with self._files.use(shard) as file:
            if inner[-1] - inner[0] == len(inner) - 1 and list(inner) == sorted(inner):
                file.write(_ENTRY * inner[0], entries)
                return
            for i, entry in zip(inner, entries, strict=True):
                file.write(_ENTRY * i, entry)

    def close(self, *, keep: bool = True) -> None:
        """Release all files; what is there stays. Safe to call twice."""
        super().close(keep=keep)

    def mend(self) -> None:
        """Complete the shards that another writer, which is no more, has left."""
        if self.meta.index is None:
            return
        for folder, _, names in os.walk(self._root.where(self._array.path)):
            for name in names:
                if name not in DOCUMENTS:
                    self._mend(Path(folder, name), self.meta.index)

    @property
    def inherited(self) -> bool:
        """Whether there is a file of chunks, whoever has made it."""
        places = os.walk(self._root.where(self._array.path))
        return any(name not in DOCUMENTS for _, _, names in places for name in names)

    def _mend(self, path: Path, index: ShardIndex) -> None:
        """Put the table of a shard at its end, without what the shard does not have."""
        file = RandomFile(path, writable=True)
        try:
            size = file.size
            raw = file.read(0, index.nbytes)
            found = np.frombuffer(raw.ljust(index.nbytes, b"\xff"), "<u8").reshape(-1, 2)
            entries = _inside(found, size)
            table = entries.tobytes()
            if table != raw:
                file.write(0, table)
            there = entries[entries[:, 0] != EMPTY]
            end = int(there.sum(axis=1).max()) if len(there) else index.nbytes
            tail = table + crc32c(table).to_bytes(4, "little")
            if size != end + len(tail) or file.read(end, len(tail)) != tail:
                file.write(end, tail)
                os.truncate(path, end + len(tail))
        finally:
            file.close()


def _solid(part: Bytes | NDArray[Any]) -> Bytes | NDArray[Any]:
    """Return pixels in one piece, for a moment: the next ones take their place."""
    if not isinstance(part, np.ndarray) or part.flags.c_contiguous:
        return part
    room = scratch(part.nbytes).view(part.dtype).reshape(part.shape)
    room[...] = part
    return room


def _inside(entries: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Return a table in which no chunk lies outside of a file of `size` bytes."""
    kept = entries.copy()
    offsets, counts = entries[:, 0], entries[:, 1]
    kept[(offsets > size) | (counts > size) | (offsets + counts > size)] = EMPTY
    return kept
