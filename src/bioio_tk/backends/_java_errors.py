"""What Java throws, as errors of ours: the file, and Java's reason in one line."""

from __future__ import annotations

import errno
import re
from typing import Any

from bioio_tk.backends import _java_vm
from bioio_tk.errors import (
    BackendError,
    BioIOError,
    DamagedFileError,
    FormatError,
    OutOfMemoryError,
    UnknownFormatError,
    UnsupportedError,
)

_MOST = 300
_DEEPEST = 10
"""Causes of causes that are looked at."""

_NO_LIBRARY = {
    "ClassNotFoundException",
    "DependencyException",
    "NoClassDefFoundError",
    "UnsatisfiedLinkError",
}
_NOT_THERE = re.compile(
    r"\bfiles? (was |were )?not found|could not find .*(file|\.\w{2,4}\b)|\bmissing .*\bfile\b"
    r"|\bfile\b.* missing|\bfile\b.* does not exist",
    re.IGNORECASE,
)
_NOT_ABLE = re.compile(r"\bunsupported\b|\bnot (\w+ )?supported|too large", re.IGNORECASE)
_OF_SYSTEM = {  # what Java adds to the name of a file, from the system's own list
    "permission denied": errno.EACCES,
    "operation not permitted": errno.EPERM,
    "too many open files": errno.EMFILE,
    "is a directory": errno.EISDIR,
    "input/output error": errno.EIO,
    "no space left on device": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.ENOSPC,
    "read-only file system": errno.EROFS,
    "file too large": errno.EFBIG,
    "stale file handle": errno.ESTALE if hasattr(errno, "ESTALE") else errno.EIO,
}


class translated:  # noqa: N801 (a context manager; as a generator it would cost a tile too much)
    """Raise what Java throws in the block as an error about a file.

    Whatever calls Java stands in such a block.

    Parameters
    ----------
    where : str
        The file.

    Raises
    ------
    BackendError
        This process was forked from one where Java ran; the block is not entered.
    """

    __slots__ = ("_where",)

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        _java_vm.enter()

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        if not isinstance(exc, Exception) or isinstance(exc, (BioIOError, OSError, MemoryError)):
            return
        _java_vm.check_end()
        error = error_of(exc, self._where)
        if error is not None:
            raise error from exc


def error_of(exc: Exception, where: str) -> Exception | None:
    """Return the error to raise for an exception of Java; None for one of Python."""
    import jpype

    if isinstance(exc, jpype.JVMNotRunning):
        return BackendError(f"Java has ended: {where!r} cannot be read any more")
    if not isinstance(exc, jpype.JException):
        return None
    chain = _causes(exc)
    names = [_name(one) for one in chain]
    if "OutOfMemoryError" in names:
        return OutOfMemoryError(
            f"{where!r}: Java has not enough memory ({reason(chain[-1])}): read a smaller region "
            "or with fewer workers, or give Java more: bioio_tk.start(heap_mb=…) before the first "
            "image, or BIOIO_TK_JAVA_HEAP_MB"
        )
    if any(name in _NO_LIBRARY for name in names):
        return UnsupportedError(
            f"{where!r} needs a library that is not here with Bio-Formats: {reason(chain[-1])}"
        )
    for one, name in zip(chain, names, strict=True):
        error = _known(where, name, reason(one))
        if error is not None:
            return error
    if names[0] in ("FormatException", "EnumException", "EnumerationException"):
        return FormatError(f"{where!r} cannot be read by Bio-Formats: {_story(chain)}")
    return DamagedFileError(
        f"{where!r} cannot be read, it may be cut off or corrupt: {_story(chain)}"
    )


def reason(exc: Any) -> str:
    """Return what an exception of Java says, in one line."""
    text = " ".join(str(exc.getMessage() or "").split())
    return (f"{_name(exc)}: {text}" if text else _name(exc))[:_MOST]


def _known(where: str, name: str, text: str) -> Exception | None:
    """Return the error for an exception that says what is wrong."""
    system = _system_error(where, text) if name.endswith(("IOException", "Exception")) else None
    if system is not None:
        return system
    if name in ("FileNotFoundException", "NoSuchFileException"):
        return _not_found(where, text)
    if name == "UnknownFormatException":
        return UnknownFormatError(f"{where!r} is in no format that Bio-Formats knows")
    if name in ("FormatException", "IOException") and _NOT_THERE.search(text):
        return FileNotFoundError(
            f"{where!r}: a file that belongs to it is not there: {text}. Keep all files of an "
            "image together, under the names they were given"
        )
    if name in ("UnsupportedCompressionException", "UnsupportedOperationException"):
        return UnsupportedError(f"{where!r}: {text}")
    if name == "FormatException" and _NOT_ABLE.search(text):
        return UnsupportedError(f"{where!r}: Bio-Formats cannot read this: {text}")
    return None


def _system_error(where: str, text: str) -> OSError | None:
    lower = text.lower()
    for words, number in _OF_SYSTEM.items():
        if f"({words})" in lower or lower.endswith(words):
            return OSError(number, text, where)  # of the class that fits the number
    return None


def _not_found(where: str, text: str) -> FileNotFoundError:
    named = re.search(r"^\w+: (.+) \(No such file or directory\)$", text)
    missing = named.group(1) if named else ""
    if not missing or missing == where:
        return FileNotFoundError(f"{where!r}: {text}")
    return FileNotFoundError(
        f"{where!r} needs the file {missing!r}, which is not there: keep all files of an image "
        "together, under the names they were given"
    )


def _causes(exc: Any) -> list[Any]:
    """Return an exception of Java, its cause, and so on."""
    chain = [exc]
    while len(chain) < _DEEPEST:
        cause = chain[-1].getCause()
        if cause is None:
            break
        chain.append(cause)
    return chain


def _story(chain: list[Any]) -> str:
    """Return what an exception says, and what the first one in the row of causes did."""
    first, last = reason(chain[0]), reason(chain[-1])
    return first if len(chain) == 1 or last.partition(": ")[2] in first else f"{first} ({last})"


def _name(exc: Any) -> str:
    return str(exc.getClass().getSimpleName())
