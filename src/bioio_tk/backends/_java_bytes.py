"""A file as its bytes: what lies beyond its end is an error that says so."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

from bioio_tk.errors import DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self


class Bytes:
    """An open file, to look at a few places of it.

    Attributes
    ----------
    path : Path
        The file.
    size : int
        Its length in bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115 (closed by close())
        self.size = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def some(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes: fewer where the file ends."""
        if start < 0 or start >= self.size:
            return b""
        self._file.seek(start)
        return self._file.read(min(length, self.size - start)) or b""

    def all(self, start: int, length: int, what: str) -> bytes:
        """Return `length` bytes of `what`; DamagedFileError where the file ends before."""
        self.need(start, length, what)
        return self.some(start, length)

    def need(self, start: int, length: int, what: str) -> None:
        """Raise DamagedFileError unless `length` bytes of `what` lie in the file."""
        if start < 0 or length < 0:
            raise self.damaged(f"{what} lies at byte {start}, {length} bytes long")
        if start + length > self.size:
            raise DamagedFileError(
                f"{str(self.path)!r} is cut off: {what} ends at byte {start + length}, the file "
                f"has {self.size}: copy it again from where it came from"
            )

    def unpack(self, form: str, start: int, what: str) -> tuple[Any, ...]:
        """Return numbers as `struct` describes them."""
        return struct.unpack(form, self.all(start, struct.calcsize(form), what))

    def damaged(self, what: str) -> DamagedFileError:
        """Return the error to raise for what makes no sense."""
        return DamagedFileError(
            f"{str(self.path)!r} is damaged: {what}: copy it again from where it came from"
        )

    def too_new(self, version: str, what: str) -> UnsupportedError:
        """Return the error to raise for what this version of Bio-Formats gets wrong."""
        return UnsupportedError(
            f"{str(self.path)!r} {what}, which Bio-Formats {version} reads wrongly: run "
            "'bioio-tk java install' for a newer one"
        )
