"""Parsed files, kept: a file that took long to understand opens quickly the next time.

A memo belongs to a path, the size and date of every file of the image (and of the folders they
lie in, where others may join them), and to the version of Bio-Formats. It lies in the
user's cache, never beside the image: to load one is to run what it says, so nobody else may write
there.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import _java_home

if TYPE_CHECKING:
    from bioio_tk.backends._java_vm import Java

_FORM = 2
"""Raised when what is stored changes."""

_STALE = 3600
"""Seconds after which a memo that is being written has been given up."""

_MOST = 1000
"""Memos to keep: those saved last."""


class Memo:
    """Where the parsed form of one file is kept, or will be.

    Attributes
    ----------
    notes : tuple of str
        What was found out about the file when it was parsed.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, java: Java, path: Path) -> None:
        self._java = java
        self._path = path
        key = f"{_FORM}|{java.started.version}|{java.started.java}|{path.absolute()}"
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._memo = _folder() / f"{name}.memo"
        self._list = self._memo.with_suffix(".json")

    def load(self) -> Any | None:
        """Return a reader of the file as it was kept, None where there is none that is valid."""
        if not self._valid():
            return None
        kryo = self._java("loci.formats.Memoizer$KryoDeser")()
        try:
            kryo.loadStart(self._java("java.io.File")(str(self._memo)))
            try:
                reader = kryo.loadReader()
            finally:
                kryo.loadStop()
            reader.reopenFile()
        except Exception:  # whatever is wrong with it, the file itself is there
            self.forget()
            return None
        return reader

    def can_be_saved(self) -> bool:
        """Return whether there is a place for it that nobody else may write to."""
        try:
            self._memo.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _private(self._memo.parent) and os.access(self._memo.parent, os.W_OK)
        except OSError:
            return False

    def save(self, reader: Any, began: int) -> bool:
        """Keep a reader; it is of no use afterwards. Return whether it was kept.

        Of files that have changed since parsing `began` (in ns since 1970) nothing is kept.
        """
        temporary = self._memo.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        kryo = self._java("loci.formats.Memoizer$KryoDeser")()
        try:
            used = {str(self._path.absolute()), *map(str, reader.getUsedFiles())}
            alone = self._java("loci.formats.FormatTools").CANNOT_GROUP
            if len(used) > 1 or reader.fileGroupOption(str(self._path)) != alone:
                used |= {str(Path(name).parent) for name in used}
            reader.close(True)
            files = [_mark(name) for name in sorted(used)]
            if any(date >= began for _, _, date in files):
                return False
            kryo.saveStart(self._java("java.io.File")(str(temporary)))
            try:
                kryo.saveReader(reader)
            finally:
                kryo.saveStop()
            self._list.unlink(missing_ok=True)
            os.replace(temporary, self._memo)
            temporary.write_text(json.dumps({"files": files, "notes": self.notes}))
            os.replace(temporary, self._list)
            _forget_old(self._memo.parent)
        except Exception:  # a full disk, a reader that cannot be kept: no memo
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return False
        return True

    def forget(self) -> None:
        """Remove what was kept."""
        for file in (self._list, self._memo):
            with suppress(OSError):
                file.unlink()

    def _valid(self) -> bool:
        try:
            if not _private(self._memo.parent):
                return False
            kept = json.loads(self._list.read_text())
            self.notes = tuple(map(str, kept["notes"]))
            return all(_mark(name) == [name, size, date] for name, size, date in kept["files"])
        except (OSError, ValueError, TypeError, KeyError):
            return False


def _folder() -> Path:
    return _java_home.cache_dir() / "memo"


def _mark(name: str) -> list[Any]:
    status = os.stat(name)
    return [name, status.st_size, status.st_mtime_ns]


def _private(folder: Path) -> bool:
    """Return whether only this user can write to a folder."""
    status = os.stat(folder)
    return not hasattr(os, "getuid") or (
        status.st_uid == os.getuid() and not status.st_mode & 0o022
    )


def _forget_old(folder: Path) -> None:
    memos = sorted(folder.glob("*.memo"), key=lambda file: file.stat().st_mtime_ns)
    for memo in memos[:-_MOST]:
        memo.with_suffix(".json").unlink(missing_ok=True)
        memo.unlink(missing_ok=True)
    for left in folder.glob("*.tmp"):  # of processes that were killed
        if time.time() - left.stat().st_mtime > _STALE:
            left.unlink(missing_ok=True)
