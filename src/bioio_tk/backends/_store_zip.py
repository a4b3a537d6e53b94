"""ZipStore: the entries of a zip archive, read where they lie. pack(): a folder -> archive."""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bioio_tk.backends._file import RandomFile, Seekable, UrlFile
from bioio_tk.errors import DamagedFileError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bioio_tk.backends._file import AnyFile
    from bioio_tk.core.location import Location

_TAIL = 1 << 17
"""Read of a remote archive at once: the longest comment there may be, and a small directory."""
_HEADER = struct.Struct("<4s22xHH")
"""What begins an entry: signature, lengths of its name and of what else is between it and data."""
_SPARE = 64
"""How much longer than in the directory the header of an entry may be without a second read."""
_ALONG = 1 << 16
"""Bytes up to which what lies between a header and what is wanted is read along."""
_ENCRYPTED = 0x1
_UNREADABLE = (
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    EOFError,
    NotImplementedError,
    OverflowError,
    LookupError,
)
"""What zipfile raises for a directory that makes no sense."""


class ZipStore:
    """The entries of a zip archive, to read; see `Store` for the methods.

    Stored entries are read in parts where they lie; deflated ones are decompressed whole.

    Parameters
    ----------
    file : Path or Url
        The archive.
    storage_options : dict, optional
        See `UrlStore`.

    Attributes
    ----------
    root_prefix : str
        The one folder in which everything lies, ``"x.ome.zarr/"``: it is left out of the keys.
        "" where there is none.

    Raises
    ------
    DamagedFileError
        It is no zip archive, or one that is cut off.
    """

    lists = True
    writable = False

    def __init__(self, file: Location, storage_options: dict[str, Any] | None = None) -> None:
        self.waits = not isinstance(file, Path)
        self._file: AnyFile
        if isinstance(file, Path):
            self._file = RandomFile(file)
        else:
            self._file = UrlFile(file, storage_options, tail=_TAIL)
        try:
            entries = self._directory()
        except BaseException:
            self._file.close()
            raise
        self.root_prefix = _only_folder(entries)
        root, cut = self.root_prefix, len(self.root_prefix)
        self._entries = {n[cut:]: info for n, info in entries.items() if n.startswith(root)}
        self._names = _tree(self._entries)
        self._starts: dict[str, int] = {}
        self._last: tuple[str, bytes] = ("", b"")
        self._lock = threading.Lock()

    def where(self, key: str = "") -> str:
        return f"{self._file.path}/{self.root_prefix}{key}".rstrip("/")

    def get(self, key: str) -> bytes | None:
        info = self._entry(key)
        if info is None:
            return None
        if info.compress_type == zipfile.ZIP_DEFLATED:
            return self._inflated(key, info)
        data = self._stored(key, info, 0, info.file_size)
        if zlib.crc32(data) != info.CRC:
            self._damaged(key, "its checksum is wrong")
        return data

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        return {key: self.get(key) for key in keys}

    def get_range(self, key: str, start: int, count: int) -> bytes | None:
        info = self._entry(key)
        if info is None:
            return None
        start = max(0, info.file_size + start) if start < 0 else start
        count = max(0, min(count, info.file_size - start))
        if info.compress_type == zipfile.ZIP_DEFLATED:
            return self._inflated(key, info)[start : start + count]
        return self._stored(key, info, start, count) if count else b""

    def names(self, prefix: str = "") -> list[str]:
        return list(self._names.get(prefix, ()))

    def put(self, key: str, value: Any) -> None:
        self._refuse(key)

    def put_file(self, key: str, path: Path) -> None:
        self._refuse(key)

    def delete(self, key: str) -> None:
        self._refuse(key)

    def clear(self) -> None:
        self._refuse("")

    def close(self) -> None:
        self._file.close()

    def _refuse(self, key: str) -> NoReturn:
        raise io.UnsupportedOperation(
            f"{self.where(key)}: a zip archive cannot be changed; write a new one"
        )

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        """Return the entries that are values; of several with one name the last."""
        try:
            with zipfile.ZipFile(Seekable(self._file)) as archive:
                entries = archive.infolist()
        except _UNREADABLE as exc:
            raise DamagedFileError(
                f"{str(self._file.path)!r} is no zip archive, or its end is missing: {exc}"
            ) from exc
        return {info.filename: info for info in entries if _is_value(info.filename)}

    def _entry(self, key: str) -> zipfile.ZipInfo | None:
        info = self._entries.get(key)
        if info is None:
            return None
        if info.flag_bits & _ENCRYPTED:
            raise UnsupportedError(f"{self.where(key)} is encrypted; unpack the archive first")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnsupportedError(
                f"{self.where(key)} is compressed with method {info.compress_type} of zip; unpack "
                "the archive first, then pack it without compression"
            )
        if info.header_offset + info.compress_size > self._file.size:
            self._damaged(key, "the archive ends before it does")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            self._damaged(key, "the archive contradicts itself about its length")
        return info

    def _stored(self, key: str, info: zipfile.ZipInfo, start: int, count: int) -> bytes:
        """Return bytes of an entry as they lie in the archive."""
        begin = self._starts.get(key)
        along = b""
        if begin is None:
            # a few bytes far behind the header are not worth all that is between them
            begin, along = self._find(key, info, start + count if start <= _ALONG else 0)
        have = along[start : start + count]
        if len(have) < count:
            have += self._file.read(begin + start + len(have), count - len(have))
        if len(have) < count:
            self._damaged(key, "the archive ends before it does")
        return have

    def _find(self, key: str, info: zipfile.ZipInfo, wanted: int) -> tuple[int, bytes]:
        """Return where the data of an entry begin and those that came along with its header."""
        length = _HEADER.size + len(info.filename.encode()) + len(info.extra) + _SPARE
        block = self._file.read(info.header_offset, length + wanted)
        if len(block) < _HEADER.size or block[:4] != b"PK\3\4":
            self._damaged(key, f"it does not begin at byte {info.header_offset}")
        _, name, extra = _HEADER.unpack_from(block)
        skip = _HEADER.size + name + extra
        self._starts[key] = begin = info.header_offset + skip
        return begin, block[skip : skip + info.compress_size]

    def _inflated(self, key: str, info: zipfile.ZipInfo) -> bytes:
        with self._lock:
            if self._last[0] == key:
                return self._last[1]
        packed = self._stored(key, info, 0, info.compress_size)
        try:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            data = inflate.decompress(packed, info.file_size + 1)  # never more than it claims
        except zlib.error as exc:
            raise DamagedFileError(f"{self.where(key)} is damaged: {exc}") from exc
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            self._damaged(key, "its length or checksum is wrong")
        with self._lock:  # parts of it are likely to be wanted next
            self._last = (key, data)
        return data

    def _damaged(self, key: str, why: str) -> NoReturn:
        raise DamagedFileError(f"{self.where(key)} is damaged: {why}")


def _is_value(name: str) -> bool:
    """Return whether the name of an entry is a key; one that leads out of the archive is not.

    >>> [_is_value(name) for name in ("0/c/1", "0/", "/etc/x", "../x", "__MACOSX/0/._c")]
    [True, False, False, False, False]
    """
    parts = name.split("/")
    return not ("\\" in name or {"", ".", ".."}.intersection(parts) or parts[0] == "__MACOSX")


def _only_folder(entries: Iterable[str]) -> str:
    tops = {name.partition("/")[:2] for name in entries if name != ".DS_Store"}
    top, slash = tops.pop() if len(tops) == 1 else ("", "")
    return f"{top}/" if slash else ""


def _tree(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the names right under each folder, sorted."""
    found: dict[str, set[str]] = {"": set()}
    for key in keys:
        path = key
        known = False
        while path and not known:
            folder, _, name = path.rpartition("/")
            known = folder in found
            found.setdefault(folder, set()).add(name)
            path = folder
    return {folder: sorted(names) for folder, names in found.items()}


def pack(folder: Path, target: Path) -> None:
    """Put all files of a folder into a zip archive as RFC-9 of NGFF wants it (``.ozx``).

    Nothing is compressed, ``zarr.json`` of the root comes first, then those of the folders
    below, level by level, then all other files. What is at `target` is replaced.

    Parameters
    ----------
    folder : Path
        The folder, its content becomes the root of the archive.
    target : Path
        The archive; removed again if anything goes wrong.

    Raises
    ------
    SpecError
        The folder is empty, or none.
    OSError
        What the system reports: a full disk, a file that cannot be read.
    """
    files = sorted(_files(folder), key=_rank) if folder.is_dir() else []
    if not files:
        raise SpecError(f"{str(folder)!r} is no folder with files in it: nothing to pack")
    try:
        with zipfile.ZipFile(target, "w", strict_timestamps=False) as archive:
            for name in files:
                archive.write(folder / name, name)
            archive.comment = _comment(folder)
    except BaseException:
        with suppress(OSError):
            target.unlink()
        raise


def _files(folder: Path) -> list[str]:
    def fail(exc: OSError) -> None:
        raise exc

    found = []
    for top, _, names in os.walk(folder, onerror=fail):
        inner = Path(top).relative_to(folder)
        found += [(inner / name).as_posix() for name in names]
    return found


def _rank(name: str) -> tuple[bool, int, str]:
    metadata = name.rpartition("/")[2] == "zarr.json"
    return not metadata, name.count("/") if metadata else 0, name


def _comment(folder: Path) -> bytes:
    """Return what the archive says of itself; nothing where no version is known."""
    try:
        attributes = json.loads((folder / "zarr.json").read_bytes())["attributes"]
        version = attributes["ome"]["version"]
    except (OSError, ValueError, LookupError, TypeError):
        return b""  # Zarr v2, or no image: RFC-9 does not speak of it
    said = {"ome": {"version": version, "zipFile": {"centralDirectory": {"jsonFirst": True}}}}
    return json.dumps(said).encode()
