"""UrlStore: the values under a URL, through fsspec: HTTP servers, object stores, memory."""

from __future__ import annotations

import io
import os
import random
import re
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from bioio_tk.errors import (
    BackendMissingError,
    BioIOError,
    ClosedError,
    SpecError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from bioio_tk.core.location import Url

_T = TypeVar("_T")

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
}
"""What fsspec needs for a scheme besides itself."""
_TRANSPORT = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "urllib3"}
"""Packages whose exceptions speak of the connection, not of the value."""
_PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers after which asking again helps."""
_NOT_PASSING = ("Certificate", "InvalidURL", "InvalidUrl", "TooManyRedirects", "ParamValidation")
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_LONGEST = 10
"""How many times the timeout a request may take that does make progress."""
_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+|\*)\s*")
_INHERITED: list[_Link] = []
"""Connections of a parent process: not ours to close, so they are kept for ever."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a server, and how often to ask it again.

    Attributes
    ----------
    tries : int
        Requests in all until an answer.
    timeout : float
        Seconds without a byte after which a request is given up. One that makes progress may
        take ten times as long.
    pause : float
        Seconds before the second try; doubled, and up to a half longer, before each further one.
    """

    tries: int = 4
    timeout: float = 60.0
    pause: float = 0.2

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Patience:
        """Return what `options` say of it, and remove that from them."""
        given = {f.name: options.pop(f.name) for f in fields(cls) if f.name in options}
        for name, value in given.items():
            lowest = 0 if name == "pause" else 1e-3
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < lowest:
                raise SpecError(f"storage_options: {name}={value!r:.80} is no number it could be")
        return cls(**given)

    def rest(self, done: int) -> None:
        """Wait after the `done`-th try; not all threads for the same time."""
        time.sleep(self.pause * 2 ** (done - 1) * random.uniform(1, 1.5))  # noqa: S311


class Piece(NamedTuple):
    """Bytes of a value and, where the server said so, the length of the whole."""

    data: bytes
    size: int | None


class UrlStore:
    """The values under a URL; see `Store` for the methods.

    Any number of threads may ask at once: what waits for the network is fsspec's own loop.
    A passing failure (a cut connection, a server that is busy or does not answer) is tried
    again, then raised as an `OSError` that names the URL.

    Parameters
    ----------
    url : Url
        The folder; or a single file, whose key is "".
    storage_options : dict, optional
        For fsspec's file system: credentials, ``endpoint_url``, ``anon``, ``headers``; and
        ``tries``, ``timeout``, ``pause``, see `Patience`.

    Raises
    ------
    BackendMissingError
        fsspec, or what it needs for this kind of URL, is not installed.
    UnsupportedError
        fsspec does not know this kind of URL.
    SpecError
        The options do not fit.
    """

    def __init__(self, url: Url, storage_options: dict[str, Any] | None = None) -> None:
        self.url = url
        options = dict(storage_options or {})
        self._patience = Patience.taken_from(options)
        self._options = options
        self._http = url.scheme in ("http", "https")
        self.waits = url.scheme != "memory"
        self.lists = self.writable = not self._http
        self._shown = url.shown
        self._closed = False
        self._link = self._connect()

    def where(self, key: str = "") -> str:
        return f"{self._shown}/{key}".rstrip("/")

    def get(self, key: str) -> bytes | None:
        found = self.fetch(key)
        return None if found is None else found.data

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        wanted = list(dict.fromkeys(keys))
        link = self._reach()
        if link.loop is None or len(wanted) < 2:
            return {key: self.get(key) for key in wanted}

        async def together() -> list[Piece | BaseException]:
            import asyncio

            asked = (self._bounded(self._ask(link, key, None, 0)) for key in wanted)
            return await asyncio.gather(*asked, return_exceptions=True)

        return dict(zip(wanted, map(self._settle, wanted, link.wait(together)), strict=True))

    def get_range(self, key: str, start: int, count: int) -> bytes | None:
        found = self.fetch(key, start, count)
        return None if found is None else found.data

    def fetch(self, key: str, start: int | None = None, count: int = 0) -> Piece | None:
        """Return a value, or `count` bytes of it from `start`, in one request."""
        link = self._reach()
        if start is None or count > 0:
            return self._patiently(key, lambda: self._once(link, key, start, count))
        found = self._patiently(key, lambda: self._once(link, key, start, 1))  # is it there?
        return found and Piece(b"", found.size)

    def size(self, key: str) -> int | None:
        """Return the length of a value, None where there is none."""
        link, path = self._reach(), self._target(key)
        found = self._patiently(key, lambda: link.call("_info", "info", path))
        return None if found is None else int(found["size"])

    def names(self, prefix: str = "") -> list[str]:
        if not self.lists:
            raise io.UnsupportedOperation(
                f"{self.where(prefix)}: a web server has no list of files"
            )
        link, path = self._reach(), self._target(prefix)
        link.fs.invalidate_cache()
        found = self._patiently(prefix, lambda: link.call("_ls", "ls", path, detail=False))
        own = path.strip("/")
        inside = (str(name).strip("/") for name in found or ())
        return sorted({name.rpartition("/")[2] for name in inside if name != own})

    def put(self, key: str, value: Any) -> None:
        data = value if isinstance(value, bytes) else bytes(memoryview(value).cast("B"))
        self._change(key, "_pipe_file", "pipe_file", self._target(key), data)

    def put_file(self, key: str, path: Path) -> None:
        self._change(key, "_put_file", "put_file", str(path), self._target(key))
        path.unlink()

    def delete(self, key: str) -> None:
        with suppress(*_MISSING):
            self._change(key, "_rm_file", "rm_file", self._target(key))

    def clear(self) -> None:
        with suppress(*_MISSING):
            self._change("", "_rm", "rm", self._target(""), recursive=True)

    def close(self) -> None:
        self._closed = True
        self._link.close()

    def _change(self, key: str, *call: Any, **options: Any) -> None:
        if not self.writable:
            raise io.UnsupportedOperation(
                f"{self.where(key)}: a web server cannot be written to; write to a folder of this "
                "machine or to s3://, gs://"
            )
        link = self._reach()
        self._patiently(key, lambda: link.call(*call, **options), missing_is_none=False)

    # --- one request

    def _once(self, link: _Link, key: str, start: int | None, count: int) -> Piece:
        if link.loop is None:
            end = None if start is None or start < 0 else start + count
            data = link.fs.cat_file(self._target(key), start=start, end=end)
            return Piece(data if start is None or start >= 0 else data[:count], None)
        return link.wait(lambda: self._bounded(self._ask(link, key, start, count)))

    async def _ask(self, link: _Link, key: str, start: int | None, count: int) -> Piece:
        ask = self._ask_http if self._http else self._ask_other
        piece = await ask(link, self._target(key), start, count)
        if start is not None and start < 0:
            return Piece(piece.data[:count], piece.size)
        return piece

    async def _ask_http(self, link: _Link, url: str, start: int | None, count: int) -> Piece:
        import aiohttp

        options = dict(link.fs.kwargs)
        # a value packed for the way has neither the right length nor the right ranges
        options["headers"] = {**options.get("headers", {}), "Accept-Encoding": "identity"}
        if start is not None:
            span = f"{start}" if start < 0 else f"{start}-{start + count - 1}"
            options["headers"]["Range"] = f"bytes={span}"
        wait = self._patience.timeout
        options["timeout"] = aiohttp.ClientTimeout(None, sock_connect=wait, sock_read=wait)
        session = await link.fs.set_session()
        async with session.get(link.fs.encode_url(url), **options) as answer:
            if start is not None and answer.status == 206:
                data = await answer.read()
                return _whole_part(data, answer.headers.get("Content-Range", ""), start, count)
            if start is not None and answer.status == 416:
                return _nothing_there(answer.headers.get("Content-Range", ""), start)
            if answer.status == 200:
                return await _cut_out(answer, start, count)
            await answer.read()  # or the connection could not be used again
            raise _RefusedError(answer.status, answer.reason or "")

    async def _ask_other(self, link: _Link, path: str, start: int | None, count: int) -> Piece:
        end = None
        if start is None:
            # s3fs asks for the size first, unless it is asked for a range
            start = 0 if self.url.scheme in ("s3", "s3a") else None
        elif start >= 0:
            end = start + count
        try:
            return Piece(await link.fs._cat_file(path, start=start, end=end), None)
        except OSError as exc:
            if start is not None and _status(exc) == 416:
                return Piece(b"", None)
            raise

    async def _bounded(self, request: Awaitable[_T]) -> _T:
        import asyncio

        return await asyncio.wait_for(request, _LONGEST * self._patience.timeout)

    # --- when it fails

    def _patiently(
        self, key: str, attempt: Callable[[], _T], *, missing_is_none: bool = True
    ) -> _T | None:
        """Return what `attempt` does, tried again after a passing failure."""
        done = 0
        while True:
            try:
                return attempt()
            except (BioIOError, MemoryError):
                raise
            except Exception as exc:  # every file system has its own
                done += 1
                if missing_is_none and _is_missing(exc):
                    return None
                if not _is_passing(exc) or done >= self._patience.tries:
                    self._fail(key, exc, done)
            self._patience.rest(done)

    def _settle(self, key: str, found: Piece | BaseException) -> bytes | None:
        """Return what one of many requests gave; the ones that failed are made again."""
        if isinstance(found, Piece):
            return found.data
        if _is_missing(found):
            return None
        if isinstance(found, (BioIOError, MemoryError)):
            raise found
        if not _is_passing(found):
            self._fail(key, found, 1)
        return self.get(key)

    def _fail(self, key: str, exc: BaseException, tries: int) -> NoReturn:
        where, status = self.where(key), _status(exc)
        often = "" if tries == 1 else f"; tried {tries} times"
        if isinstance(exc, TimeoutError) or "Timeout" in _name(exc):
            wait = self._patience.timeout
            text = f"{where}: the server did not answer within {wait:g} s{often}"
            raise TimeoutError(text) from exc
        what = _reason(exc)
        if status in (401, 403) or isinstance(exc, PermissionError) or "Credentials" in _name(exc):
            public = "" if self._http else ", or anon=True for a public bucket"
            raise PermissionError(
                f"{where}: access is denied ({what}); give credentials in storage_options{public}"
            ) from exc
        if isinstance(exc, _MISSING):
            raise FileNotFoundError(f"{where}: there is no such place ({what})") from exc
        kind = ConnectionError if _is_passing(exc) else OSError
        raise kind(f"{where}: {what}{often}") from exc

    # --- the connection

    def _target(self, key: str) -> str:
        """Return what the file system calls a key."""
        root = self._link.root
        if not self._http:
            return f"{root}/{key}" if key else root
        from urllib.parse import quote

        head, mark, query = root.partition("?")
        return f"{head.rstrip('/')}/{quote(key)}{mark}{query}" if key else root

    def _reach(self) -> _Link:
        if self._closed:
            raise ClosedError(f"{self.where()} is closed")
        if self._link.pid != os.getpid():  # no lock: it may be the parent's, and held for ever
            _INHERITED.append(self._link)
            self._link = self._connect()
        return self._link

    def _connect(self) -> _Link:
        try:
            import fsspec
        except ImportError as exc:
            raise _install(self._shown, "fsspec") from exc
        options = self._options
        scheme = self.url.scheme
        if scheme in ("s3", "s3a"):
            options = {**options, "config_kwargs": self._s3_config()}
        try:
            kind = fsspec.get_filesystem_class(scheme)
        except ImportError as exc:
            raise _install(self._shown, _PACKAGES.get(scheme, scheme)) from exc
        except ValueError as exc:
            raise UnsupportedError(
                f"{self._shown}: {scheme}:// is no kind of address that can be read; http://, "
                "https://, s3:// and gs:// are"
            ) from exc
        try:
            if kind.async_impl:
                options = {**options, "asynchronous": True, "skip_instance_cache": True}
            fs, root = fsspec.core.url_to_fs(self.url.text, **options)
        except ImportError as exc:
            raise _install(self._shown, _PACKAGES.get(scheme, scheme)) from exc
        except (TypeError, ValueError) as exc:
            raise SpecError(f"{self._shown}: storage_options do not fit: {exc}") from exc
        return _Link(fs, root)

    def _s3_config(self) -> dict[str, Any]:
        """Return botocore's settings: it is we who try again, and more than ten at a time."""
        ours = {
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": 64,
            "connect_timeout": self._patience.timeout,
            "read_timeout": self._patience.timeout,
        }
        return {**ours, **self._options.get("config_kwargs", {})}


class _Link:
    """One process's connection to a server: a file system of fsspec and the loop it works in."""

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self.root = root
        self.pid = os.getpid()
        self.loop: Any = None
        self._session: Any = None
        self._lock = threading.Lock()
        self._finalizer: Any = None
        if fs.async_impl:
            from fsspec.asyn import get_loop

            self.loop = get_loop()
            with suppress(AttributeError):
                fs.retries = 1  # s3fs and gcsfs would try again by themselves

    def wait(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """Return what a request gives, made in fsspec's loop."""
        from fsspec.asyn import sync

        if self._session is None:
            with self._lock:
                if self._session is None:
                    self._session = sync(self.loop, self._open_session)
                    args = (self.loop, self._session, self.pid)
                    self._finalizer = weakref.finalize(self, _hang_up, *args)
        found: _T = sync(self.loop, request)
        return found

    def call(self, inside: str, outside: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the file system: its coroutine where it has them."""
        if self.loop is None:
            return getattr(self.fs, outside)(*args, **kwargs)
        return self.wait(lambda: getattr(self.fs, inside)(*args, **kwargs))

    def close(self) -> None:
        """Close all connections, unless they are a parent process's."""
        if self._finalizer is not None:
            self._finalizer()

    async def _open_session(self) -> Any:
        start = getattr(self.fs, "set_session", None) or getattr(self.fs, "_set_session", None)
        return True if start is None else await start()


def _hang_up(loop: Any, session: Any, pid: int) -> None:
    """Close a session in its loop; runs also when a store is forgotten, and at exit."""
    import asyncio

    if pid != os.getpid() or not hasattr(session, "close") or not loop.is_running():
        return
    closed = asyncio.run_coroutine_threadsafe(session.close(), loop)
    with suppress(RuntimeError):
        if asyncio.get_running_loop() is loop:  # forgotten things are collected in any thread
            return
    with suppress(Exception):  # there is nothing to lose any more
        closed.result(timeout=1)


class _RefusedError(OSError):
    """An HTTP answer that is no value."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}".rstrip())
        self.status = status


class _ShortError(ConnectionError):
    """Less arrived, or something else, than was asked for and is there."""


async def _cut_out(answer: Any, start: int | None, count: int) -> Piece:
    """Return what was asked for from an answer that gives the whole value."""
    encoded = "Content-Encoding" in answer.headers
    size = None if encoded else answer.content_length
    if start is None or start < 0:
        data = await answer.read()  # aiohttp compares the length
        return Piece(data if start is None else data[start:], len(data))
    end, at, found = start + count, 0, bytearray()
    async for block in answer.content.iter_any():
        found += block[max(0, start - at) : max(0, end - at)]
        at += len(block)
        if at >= end and size is not None:
            return Piece(bytes(found), size)
    return Piece(bytes(found), at)


def _whole_part(data: bytes, said: str, start: int, count: int) -> Piece:
    """Return a part of a value after making sure that it is all of what was asked for."""
    match = _CONTENT_RANGE.fullmatch(said)
    if match is None:
        raise _ShortError(f"the server sends a part but does not say which ({said!r:.60})")
    first, last = int(match[1]), int(match[2])
    size = None if match[3] == "*" else int(match[3])
    end = last + 1 if size is None else size
    if start < 0:
        right = (max(0, end + start), end - 1)
    else:
        right = (start, start + count - 1 if size is None else min(start + count, size) - 1)
    if (first, last) != right or len(data) != last - first + 1:
        raise _ShortError(
            f"the server sends {len(data)} bytes ({said}) where {right[1] - right[0] + 1} from "
            f"byte {right[0]} were asked for"
        )
    return Piece(data, size)


def _nothing_there(said: str, start: int) -> Piece:
    """Return the empty part behind the end of a value."""
    total = said.rpartition("/")[2].strip()
    size = int(total) if total.isdecimal() else None
    if size is not None and (start if start >= 0 else 0) < size:
        raise _ShortError(f"the server finds no byte {start} in a value of {size}")
    return Piece(b"", size)


def _is_missing(exc: BaseException) -> bool:
    return isinstance(exc, _MISSING) or _status(exc) in (404, 410)


def _is_passing(exc: BaseException) -> bool:
    """Return whether the same request may work a little later."""
    status = _status(exc)
    if status is not None and status >= 300:
        return status in _PASSING or status > 504
    if isinstance(exc, PermissionError) or any(word in _name(exc) for word in _NOT_PASSING):
        return False
    if "Credentials" in _name(exc):
        return False
    return isinstance(exc, (ConnectionError, TimeoutError)) or _package(exc) in _TRANSPORT


def _status(exc: BaseException | None) -> int | None:
    """Return the HTTP status behind an exception, None where there is none."""
    while exc is not None:
        response = getattr(exc, "response", None)
        if isinstance(response, dict):  # botocore's
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        elif isinstance(exc, _RefusedError):
            found = exc.status
        else:
            found = getattr(exc, "code", None) if _package(exc) == "gcsfs" else None
        if isinstance(found, int):
            return found
        exc = exc.__cause__
    return None


def _package(exc: BaseException) -> str:
    return type(exc).__module__.partition(".")[0]


def _name(exc: BaseException) -> str:
    return type(exc).__name__


def _reason(exc: BaseException) -> str:
    """Return what happened, in one line."""
    if isinstance(exc, _RefusedError):
        return f"the server answers {exc}"
    if "Payload" in _name(exc) or "Incomplete" in _name(exc):
        return "the connection was cut in the middle of the answer"
    system = getattr(exc, "os_error", None)  # aiohttp's, inside a longer one
    if isinstance(system, OSError):
        return f"the server cannot be reached ({system.strerror or system})"
    lines = [line for line in str(exc).splitlines() if line.strip()]
    return lines[0][:300] if lines else _name(exc)


def _install(where: str, package: str) -> BackendMissingError:
    extra = "" if package in ("fsspec", "aiohttp", "s3fs") else f" {package}"
    return BackendMissingError(
        f"{where}: remote files need the package {package}: pip install 'bioio-tk[remote]'{extra}"
    )
