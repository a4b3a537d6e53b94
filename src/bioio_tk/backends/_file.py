"""RandomFile, UrlFile: bytes at an offset, from any thread, without a shared file position."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bioio_tk.backends._store_url import UrlStore
    from bioio_tk.core.location import Location, Url

_MOST_PARTS = 512
_FARTHEST = 1 << 62
"""An offset that no file has; the system refuses larger ones with an error of its own."""
BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""What to open every file with."""
_BLOCK = 1 << 16
"""A remote file is read in blocks of this size where little is wanted."""
_SMALL = 1 << 14
"""Reads up to this size are made a block: what is wanted next often lies beside it."""
_MOST_BLOCKS = 64
_FIRST = 2 * _BLOCK
"""What is fetched of a remote file at once: all directories of most, and a block behind them."""


class RandomFile:
    """A file read and written at explicit offsets; safe to share between threads.

    Parameters
    ----------
    path : Path
        An existing file.
    writable : bool
        Open for reading and writing instead of reading only.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | BINARY)

    @property
    def size(self) -> int:
        """Length of the file in bytes, as it is now."""
        return os.fstat(self._fd).st_size

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._fd

    def read(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; fewer only at the end of the file."""
        return pread(self._fd, count, offset)

    def read_into(self, offset: int, buffer: Any) -> int:
        """Fill a contiguous writable `buffer` from `offset`; return the number of bytes read."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and 0 <= offset < _FARTHEST:
            got = _pread_into(self._fd, view[done:], offset + done)
            if got == 0:
                break
            done += got
        return done

    def write(self, offset: int, data: Any) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        while len(view):
            done = _pwrite(self._fd, view, offset)
            offset += done
            view = view[done:]

    def write_many(self, offset: int, parts: Sequence[Any]) -> None:
        """Write several pieces one after the other, beginning at `offset`."""
        views = [memoryview(part).cast("B") for part in parts]
        for first in range(0, len(views), _MOST_PARTS):
            some = views[first : first + _MOST_PARTS]
            done = _pwrite_many(self._fd, some, offset)
            for view in some:  # what the system left over, where it took a part
                rest = view[min(done, len(view)) :]
                if rest:
                    self.write(offset + len(view) - len(rest), rest)
                done -= len(view) - len(rest)
                offset += len(view)

    def close(self) -> None:
        """Release the file; raise what the system reports only now (a full network disk)."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)


if hasattr(os, "pread"):
    _pread = os.pread

    def _pread_into(fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view], offset)

    def _pwrite(fd: int, view: memoryview, offset: int) -> int:
        return os.pwrite(fd, view, offset)

    def _pwrite_many(fd: int, views: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(fd, views, offset) if hasattr(os, "pwritev") else 0

else:  # Windows has no positional read; one position a process, so one at a time
    import threading

    _SEEK = threading.Lock()

    def _pread(fd: int, count: int, offset: int) -> bytes:
        with _SEEK:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, count)

    def _pread_into(fd: int, view: memoryview, offset: int) -> int:
        data = _pread(fd, len(view), offset)
        view[: len(data)] = data
        return len(data)

    def _pwrite(fd: int, view: memoryview, offset: int) -> int:
        with _SEEK:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, view)

    def _pwrite_many(fd: int, views: Sequence[memoryview], offset: int) -> int:
        return 0


def pread(fd: int, count: int, offset: int) -> bytes:
    """Return up to `count` bytes from `offset`; fewer only at the end of the file."""
    parts = []
    while count > 0 and 0 <= offset < _FARTHEST:
        part = _pread(fd, count, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pread_all(fd: int) -> bytes:
    """Return everything in an open file."""
    return pread(fd, os.fstat(fd).st_size, 0)


class UrlFile:
    """A remote file to read at explicit offsets; safe to share between threads.

    The first request fetches the start of the file (or its end) and learns its size. What is
    wanted in small pieces is fetched in larger blocks, of which the last few are kept; a large
    piece is one request.

    Parameters
    ----------
    url : Url
        An existing file.
    storage_options : dict, optional
        See `UrlStore`.
    tail : int
        Fetch so many bytes of the end of the file first, instead of its start.

    Raises
    ------
    FileNotFoundError
        The server has no such file.
    OSError
        It cannot be reached; all that `UrlStore` raises.
    """

    def __init__(
        self, url: Url, storage_options: dict[str, Any] | None = None, *, tail: int = 0
    ) -> None:
        from bioio_tk.backends._store_url import UrlStore
        from bioio_tk.core.location import Url

        self._store = UrlStore(url, storage_options)
        self.path = Url(self._store.where())  # for messages: without passwords and signatures
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        try:
            start, self._seed, self.size = _first(self._store, tail)
        except BaseException:
            self._store.close()
            raise
        self._seed_start = start

    def read(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; fewer only at the end of the file."""
        if count <= 0 or not 0 <= offset < self.size:
            return b""
        count = min(count, self.size - offset)
        begin = offset - self._seed_start
        if begin >= 0 and begin + count <= len(self._seed):
            return self._seed[begin : begin + count]
        first, last = offset // _BLOCK, (offset + count - 1) // _BLOCK
        with self._lock:
            near = range(first, last + 1) if last - first < 2 else ()
            parts = [self._kept(n) for n in near] or [None]
        if None in parts:
            if count > _SMALL:
                return self._fetch(offset, count)
            parts = self._load(first, last, parts)
        whole = b"".join(part for part in parts if part is not None)
        return whole[offset - first * _BLOCK :][:count]

    def read_into(self, offset: int, buffer: Any) -> int:
        """Fill a contiguous writable `buffer` from `offset`; return the number of bytes read."""
        view = memoryview(buffer).cast("B")
        data = self.read(offset, len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        self._store.close()

    def _kept(self, number: int) -> bytes | None:
        begin = number * _BLOCK - self._seed_start
        if 0 <= begin <= len(self._seed) - _BLOCK:
            return self._seed[begin : begin + _BLOCK]
        block = self._blocks.get(number)
        if block is not None:
            self._blocks.move_to_end(number)
        return block

    def _load(self, first: int, last: int, parts: list[bytes | None]) -> list[bytes | None]:
        """Return neighbouring blocks, of which those that are missing are one request."""
        lacking = [n for n, part in zip(range(first, last + 1), parts, strict=True) if part is None]
        start = lacking[0] * _BLOCK
        data = self._fetch(start, min((lacking[-1] + 1) * _BLOCK, self.size) - start)
        fresh = {n: data[n * _BLOCK - start :][:_BLOCK] for n in lacking}
        with self._lock:
            self._blocks.update(fresh)
            while len(self._blocks) > _MOST_BLOCKS:
                self._blocks.popitem(last=False)
        return [fresh.get(n, part) for n, part in zip(range(first, last + 1), parts, strict=True)]

    def _fetch(self, offset: int, count: int) -> bytes:
        data = self._store.get_range("", offset, count)
        if data is None or len(data) != count:
            raise OSError(
                f"{self._store.where()} was {self.size} bytes long when it was opened, and is no "
                "longer: it has been replaced or removed meanwhile"
            )
        return data


def _first(store: UrlStore, tail: int) -> tuple[int, bytes, int]:
    """Return the first piece fetched of a file: its offset, its bytes, and the file's size."""
    piece = store.fetch("", -tail, tail) if tail else store.fetch("", 0, _FIRST)
    if piece is None:
        raise FileNotFoundError(f"{store.where()}: there is no such file on the server")
    size = piece.size
    if size is None:  # an object store's answer does not say
        size = store.size("") if len(piece.data) == (tail or _FIRST) else len(piece.data)
    size = len(piece.data) if size is None else size
    return (max(0, size - tail) if tail else 0), piece.data, size


class Seekable(io.RawIOBase):
    """A file with a position over one without, for code that needs one; for one thread."""

    def __init__(self, file: AnyFile) -> None:
        super().__init__()
        self.name = str(file.path)
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            # both an OSError, as of a file, and a ValueError, as of bytes in memory
            raise io.UnsupportedOperation(f"{self.name} has no byte {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        done = self._file.read_into(self._at, buffer)
        self._at += done
        return done


AnyFile: TypeAlias = RandomFile | UrlFile


def open_random(location: Location, storage_options: dict[str, Any] | None = None) -> AnyFile:
    """Return an open file of this machine or of a server."""
    if isinstance(location, Path):
        return RandomFile(location)
    return UrlFile(location, storage_options)
