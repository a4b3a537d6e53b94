"""Stores: the bytes of files as they are, wherever they lie, and errors that say where and what."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import multiprocessing
import os
import random
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import WebServer, nginx, s3

from bioio_tk.backends import _store_url
from bioio_tk.backends._file import UrlFile
from bioio_tk.backends._store import FolderStore
from bioio_tk.backends._store_url import UrlStore
from bioio_tk.backends._store_zip import ZipStore, pack
from bioio_tk.core.location import Url
from bioio_tk.errors import (
    BackendMissingError,
    ClosedError,
    DamagedFileError,
    SpecError,
    UnsupportedError,
)

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

_RANDOM = random.Random(3)
VALUES = {
    "zarr.json": b'{"zarr_format": 3}',
    "0/zarr.json": b'{"a": 1}' * 900,
    "0/c/0/0": _RANDOM.randbytes(100_000),
    "0/c/0/1": bytes(70_000),
    "0/c/1/0": b"",
    "0/a b#?%20+é": b"an odd name",
    "1/.zattrs": b"{}",
}
QUICK = {"pause": 0.0, "timeout": 30.0}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A folder with VALUES in it."""
    root = tmp_path_factory.mktemp("tree") / "x.ome.zarr"
    for key, value in VALUES.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(value)
    return root


@pytest.fixture
def web(tmp_path):
    """A web server of tmp_path."""
    with WebServer(tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server():
    with s3() as options:
        yield options


@pytest.fixture
def s3_options(s3_server):
    """storage_options for a bucket "plates"; it is empty."""
    pytest.importorskip("s3fs")
    yield s3_server
    store = UrlStore(Url("s3://plates"), s3_server)
    for name in _all_keys(store):
        store.delete(name)
    store.close()


def _all_keys(store, folder="") -> list[str]:
    found = []
    for name in store.names(folder):
        path = f"{folder}/{name}".lstrip("/")
        below = _all_keys(store, path)
        found += below or [path]
    return found


def _zip(tree: Path, target: Path, method: int, top: str = "") -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for key, value in VALUES.items():
            archive.writestr(top + key, value, method)
    return target


KINDS = ["folder", "http", "http ignores ranges", "nginx", "s3", "memory"]
KINDS += ["zip", "zip deflated", "zip in a folder", "zip http", "zip s3"]


@pytest.fixture(params=KINDS)
def store(request, tree, tmp_path):
    """A store of each kind with VALUES in it."""
    kind = request.param
    if kind == "folder":
        yield FolderStore(tree)
    elif kind.startswith("http"):
        with WebServer(tree) as server:
            server.faults["*"] = "ignore" if "ignores" in kind else None
            found = UrlStore(Url(server.url), QUICK)
            yield found
            found.close()
    elif kind == "nginx":
        with nginx(tree, tmp_path / "nginx") as url:
            found = UrlStore(Url(url), QUICK)
            yield found
            found.close()
    elif kind == "s3":
        found = UrlStore(Url("s3://plates/x.ome.zarr"), request.getfixturevalue("s3_options"))
        for key, value in VALUES.items():
            found.put(key, value)
        yield found
        found.close()
    elif kind == "memory":
        found = UrlStore(Url("memory://test_stores/x.ome.zarr"))
        for key, value in VALUES.items():
            found.put(key, value)
        yield found
        for key in VALUES:
            found.delete(key)
        found.close()
    elif kind == "zip http":
        _zip(tree, tmp_path / "x.zip", zipfile.ZIP_STORED)
        with WebServer(tmp_path) as server:
            found = ZipStore(Url(f"{server.url}/x.zip"), QUICK)
            yield found
            found.close()
    elif kind == "zip s3":
        options = request.getfixturevalue("s3_options")
        upload = UrlStore(Url("s3://plates"), options)
        upload.put_file("x.zip", _zip(tree, tmp_path / "x.zip", zipfile.ZIP_STORED))
        upload.close()
        found = ZipStore(Url("s3://plates/x.zip"), options)
        yield found
        found.close()
    else:
        method = zipfile.ZIP_DEFLATED if "deflated" in kind else zipfile.ZIP_STORED
        top = "x.ome.zarr/" if "in a folder" in kind else ""
        found = ZipStore(_zip(tree, tmp_path / "x.zip", method, top))
        assert found.root_prefix == top
        yield found
        found.close()


# --- every store


def test_values(store):
    for key, value in VALUES.items():
        assert store.get(key) == value
    assert store.get("nothing") is None
    assert store.get("0/c/9/9") is None
    if not (isinstance(store, UrlStore) and store.url.scheme == "http"):
        assert store.get("zarr.json/x") is None  # a web server may say what it likes
        assert store.get("0/c") is None
    assert store.get_many([*VALUES, "nothing"]) == {**VALUES, "nothing": None}
    assert store.get_many([]) == {}


def test_ranges(store):
    for key in ("0/c/0/0", "0/zarr.json", "zarr.json", "0/c/1/0"):
        value = VALUES[key]
        size = len(value)
        for start, count in [(0, 10), (5, 1), (size - 3, 3), (size - 3, 30), (70_000, 20_000)]:
            if start >= 0:
                assert store.get_range(key, start, count) == value[start : start + count]
        assert store.get_range(key, size, 10) == b""
        assert store.get_range(key, size + 5, 10) == b""
        assert store.get_range(key, 0, 0) == b""
        assert store.get_range(key, -8, 8) == value[-8:]
        assert store.get_range(key, -8, 3) == value[-8:][:3]
        assert store.get_range(key, -size - 20, size + 20) == value
    assert store.get_range("nothing", 0, 5) is None
    assert store.get_range("nothing", -5, 5) is None
    assert store.get_range("nothing", 0, 0) is None


def test_names(store):
    if not store.lists:
        with pytest.raises(io.UnsupportedOperation, match=store.where()):
            store.names()
        return
    assert store.names() == ["0", "1", "zarr.json"]
    assert store.names("0") == sorted(["a b#?%20+é", "c", "zarr.json"])
    assert store.names("0/c") == ["0", "1"]
    assert store.names("0/c/0") == ["0", "1"]
    assert store.names("nothing") == []
    assert store.names("zarr.json") == []


def test_writing(store, tmp_path):
    local = tmp_path / "local"
    local.write_bytes(b"from a file")
    if not store.writable:
        for change in (
            lambda: store.put("new", b""),
            lambda: store.put_file("new", local),
            lambda: store.delete("zarr.json"),
        ):
            with pytest.raises(OSError, match="cannot be"):
                change()
        assert local.exists()
        assert store.get("zarr.json") == VALUES["zarr.json"]
        return
    keys = ["new/1", "new/2", "new/3"]
    try:
        store.put("new/1", b"one")
        store.put("new/1", bytearray(b"two"))
        store.put("new/2", memoryview(b"abcdef")[::1])
        store.put_file("new/3", local)
        assert not local.exists()
        assert store.get_many(keys) == {
            keys[0]: b"two",
            keys[1]: b"abcdef",
            keys[2]: b"from a file",
        }
        assert store.names("new") == ["1", "2", "3"]
    finally:
        for key in keys:
            store.delete(key)
    store.delete(keys[0])
    assert store.get(keys[0]) is None


def test_where(store):
    assert store.where("0/zarr.json").endswith("/0/zarr.json")
    assert not store.where().endswith("/")


@given(data=st.data())
def test_any_range(store, data):
    key = data.draw(st.sampled_from(list(VALUES)))
    size = len(VALUES[key])
    start = data.draw(st.integers(-size - 3, size + 3))
    count = data.draw(st.integers(1, 90_000) if start >= 0 else st.integers(1, -start))
    expected = VALUES[key][max(0, size + start) if start < 0 else start :][:count]
    assert store.get_range(key, start, count) == expected


def test_threads(store):
    wrong = []

    def work(seed):
        rng = random.Random(seed)
        for _ in range(15):
            key = rng.choice(list(VALUES))
            start = rng.randrange(0, 60_000)
            if store.get_range(key, start, 900) != VALUES[key][start : start + 900]:
                wrong.append(key)
            if store.get(key) != VALUES[key]:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(n,), name="bioio_tk test") for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- web servers


@pytest.fixture
def far(web, tmp_path):
    """A store of the web server, with the files "a" (1000 bytes) and "b"."""
    (tmp_path / "a").write_bytes(bytes(range(250)) * 4)
    (tmp_path / "b").write_bytes(b"the other")
    found = UrlStore(Url(web.url), QUICK)
    yield found
    found.close()


def test_one_request_each(far, web):
    far.get("a")
    far.get_range("a", 10, 10)
    far.get_range("a", -10, 10)
    far.get_range("a", 5000, 10)
    assert web.log == [
        ("GET", "/a", None),
        ("GET", "/a", "bytes=10-19"),
        ("GET", "/a", "bytes=-10"),
        ("GET", "/a", "bytes=5000-5009"),
    ]
    web.forget()
    far.get("missing")
    assert web.counts == {"/missing": 1}
    assert all(headers["Accept-Encoding"] == "identity" for headers in web.headers)


def test_many_at_once(far, web, tmp_path):
    for n in range(40):
        (tmp_path / f"v{n}").write_bytes(b"%d" % n)
    web.together = 5
    assert far.get_many(f"v{n}" for n in range(41)) == {
        **{f"v{n}": b"%d" % n for n in range(40)},
        "v40": None,
    }
    assert web.most > 4  # and no more than the machine is busy with otherwise
    assert set(web.counts.values()) == {1}


def test_threads_ask_at_the_same_time(far, web):
    web.together = 5
    threads = [
        threading.Thread(target=far.get, args=("a",), name="bioio_tk test") for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert web.most > 4


PASSING = [500, 502, 503, 504, 429, 408, "cut", "long", "wrong", "less", "mute"]


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_a_passing_failure_is_tried_again(far, web, fault):
    web.fault("/a", fault, fault, fault)
    assert far.get_range("a", 100, 50) == bytes(range(100, 150))
    assert web.counts == {"/a": 4}
    web.fault("/a", fault)
    assert far.get_range("a", -50, 50) == bytes(range(200, 250))
    web.forget()
    web.fault("/a", fault)
    assert far.get_many(["b", "a"])["b"] == b"the other"


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_a_lasting_failure_names_the_url(far, web, fault):
    web.faults["/a"] = fault
    with pytest.raises(ConnectionError) as caught:
        far.get_range("a", 100, 50)
    assert far.where("a") in str(caught.value)
    assert "tried 4 times" in str(caught.value)
    if isinstance(fault, int):
        assert str(fault) in str(caught.value)
    assert web.counts == {"/a": 4}
    if fault not in ("wrong", "less", "mute"):  # those need a range
        with pytest.raises(ConnectionError, match=far.where("a")):
            far.get_many(["b", "a"])
        with pytest.raises(ConnectionError, match=far.where("a")):
            far.get("a")


@pytest.mark.parametrize("fault", ["cut", "long"])
def test_half_a_body_is_never_the_whole(far, web, fault):
    for ignore in (True, False):
        web.faults["/a"] = fault
        with pytest.raises(ConnectionError, match="cut in the middle"):
            _ = far.get("a") if ignore else far.get_range("a", -700, 700)


@pytest.mark.parametrize("status", [401, 403])
def test_access_denied(far, web, status):
    web.faults["/a"] = status
    with pytest.raises(PermissionError, match=rf"{far.where('a')}.*{status}.*storage_options"):
        far.get("a")
    assert web.counts == {"/a": 1}


@pytest.mark.parametrize("status", [400, 405, 418, 501])
def test_other_answers(far, web, status):
    web.faults["/a"] = status
    with pytest.raises(OSError, match=rf"{far.where('a')}.* {status} ") as caught:
        far.get("a")
    assert not isinstance(caught.value, (ConnectionError, PermissionError))
    assert web.counts == {"/a": 1}


@pytest.mark.parametrize("status", [404, 410])
def test_not_there(far, web, status):
    web.faults["/a"] = status
    assert far.get("a") is None
    assert far.get_many(["a", "b"]) == {"a": None, "b": b"the other"}


def test_a_slow_server(web, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    patient = UrlStore(Url(web.url), {"timeout": 0.5, "tries": 50, "pause": 0.0})
    web.fault("/a", "slow")
    assert patient.get("a") == b"abc"
    assert web.counts["/a"] > 1
    patient.close()
    far = UrlStore(Url(web.url), {"timeout": 0.1, "tries": 2, "pause": 0.0})
    web.faults["/a"] = "slow"
    with pytest.raises(TimeoutError, match=rf"{web.url}/a: .*within 0.1 s; tried 2 times"):
        far.get("a")
    with pytest.raises(TimeoutError, match=f"{web.url}/a"):
        far.get_many(["a", "b"])
    far.close()


def test_nobody_listens(tmp_path):
    with WebServer(tmp_path) as server:
        url = server.url
    far = UrlStore(Url(url), QUICK)
    with pytest.raises(ConnectionError, match=rf"{url}/a: .*cannot be reached.*tried 4 times"):
        far.get("a")
    far.close()


def test_pauses_grow_and_end(far, web, monkeypatch):
    rests = []
    monkeypatch.setattr(_store_url.time, "sleep", rests.append)
    store = UrlStore(far.url, {"tries": 5})
    web.faults["/a"] = 500
    with pytest.raises(ConnectionError, match="tried 5 times"):
        store.get("a")
    store.close()
    assert len(rests) == 4
    for done, rest in enumerate(rests):
        assert 0.2 * 2**done <= rest <= 0.3 * 2**done


def test_a_server_that_ignores_ranges_is_not_read_to_the_end(far, web, tmp_path):
    (tmp_path / "big").write_bytes(bytes(30_000_000))
    web.faults["*"] = "ignore"
    assert far.get_range("big", 10, 5) == bytes(5)
    far.close()
    assert web.sent < 20_000_000


@pytest.mark.parametrize("sizes", [(100, 1000), (1000, 100), (1,) * 1100, (12, 1, 1087)], ids=str)
def test_a_whole_value_arrives_in_pieces_of_any_size(sizes):
    value = _RANDOM.randbytes(1100)

    class Answer:
        headers: ClassVar = {}
        content_length = None

        @property
        def content(self):
            return self

        async def iter_any(self):
            at = 0
            for size in sizes:
                yield value[at : at + size]
                at += size

    for start, count in [(0, 5), (10, 5), (99, 3), (500, 9999), (1100, 3)]:
        piece = asyncio.run(_store_url._cut_out(Answer(), start, count))
        assert piece == (value[start : start + count], 1100)


def test_secrets_stay_secret(web, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    url = web.url.replace("://", "://me:hidden@") + "?signature=hidden/too"
    far = UrlStore(Url(url), QUICK)
    assert far.get("a") == b"abc"
    web.faults["/a"] = 500
    with pytest.raises(ConnectionError) as caught:
        far.get("a")
    assert "hidden" not in str(caught.value)
    assert "hidden" not in far.where("a")
    far.close()


def test_headers_reach_the_server(web, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    far = UrlStore(Url(web.url), {"headers": {"Authorization": "Bearer x"}, **QUICK})
    assert far.get_range("a", 1, 1) == b"b"
    assert web.headers[0]["Authorization"] == "Bearer x"
    far.close()


# --- S3


def test_s3_requests(s3_options, monkeypatch):
    botocore = pytest.importorskip("aiobotocore.httpsession")
    asked = []
    send = botocore.AIOHTTPSession.send

    async def count(self, request):
        asked.append((request.method, request.url.partition("plates")[2]))
        return await send(self, request)

    monkeypatch.setattr(botocore.AIOHTTPSession, "send", count)
    store = UrlStore(Url("s3://plates/x"), s3_options)
    store.put("a", b"0123456789")
    store.put("empty", b"")
    asked.clear()
    assert store.get("a") == b"0123456789"
    assert store.get_range("a", 2, 3) == b"234"
    assert store.get_range("a", -2, 2) == b"89"
    assert store.get("empty") == b""
    assert store.get("missing") is None
    assert asked == [("GET", f"/x/{name}") for name in ("a", "a", "a", "empty", "missing")]
    store.close()


def test_s3_sees_what_others_write(s3_options):
    one, two = (UrlStore(Url("s3://plates/x"), s3_options) for _ in range(2))
    assert one.names() == []
    two.put("a", b"1")
    assert one.names() == ["a"]
    two.put("b", b"1")
    assert one.names() == ["a", "b"]
    one.close()
    two.close()


def test_s3_without_a_bucket(s3_options):
    store = UrlStore(Url("s3://nobody/x"), s3_options)
    assert store.get("a") is None
    with pytest.raises(FileNotFoundError, match="s3://nobody/x/a"):
        store.put("a", b"1")
    store.close()


@pytest.mark.parametrize(("status", "kind"), [(503, ConnectionError), (403, PermissionError)])
def test_s3_failures(web, tmp_path, status, kind):
    pytest.importorskip("s3fs")
    options = {"key": "me", "secret": "me", "endpoint_url": web.url, **QUICK}
    options["client_kwargs"] = {"region_name": "us-east-1"}
    store = UrlStore(Url("s3://plates/x"), options)
    web.faults["*"] = status
    for attempt in (lambda: store.get("a"), lambda: store.get_range("a", -9, 9)):
        web.log.clear()
        with pytest.raises(kind, match="s3://plates/x/a"):
            attempt()
        assert len(web.log) == (4 if kind is ConnectionError else 1)
    store.close()


def test_s3_slow(web, tmp_path):
    pytest.importorskip("s3fs")
    options = {"key": "me", "secret": "me", "endpoint_url": web.url}
    options["client_kwargs"] = {"region_name": "us-east-1"}
    options |= {"tries": 2, "pause": 0.0, "timeout": 0.1}
    store = UrlStore(Url("s3://plates"), options)
    web.faults["*"] = "slow"
    with pytest.raises(TimeoutError, match=r"s3://plates/a: .*within 0.1 s; tried 2 times"):
        store.get("a")
    store.close()


def test_s3_body_cut(web, tmp_path):
    pytest.importorskip("s3fs")
    (tmp_path / "plates").mkdir()
    (tmp_path / "plates" / "a").write_bytes(bytes(range(200)))
    options = {"key": "me", "secret": "me", "endpoint_url": web.url, **QUICK}
    options["client_kwargs"] = {"region_name": "us-east-1"}
    store = UrlStore(Url("s3://plates"), options)
    web.fault("/plates/a", "cut", "cut")
    assert store.get("a") == bytes(range(200))
    web.faults["/plates/a"] = "cut"
    with pytest.raises(ConnectionError, match=r"s3://plates/a: .*tried 4 times"):
        store.get_range("a", 10, 100)
    store.close()


# --- what is not installed, and what makes no sense


@pytest.mark.parametrize(
    ("url", "missing", "says"),
    [
        ("s3://bucket/x", "fsspec", r"fsspec: pip install 'bioio-tk\[remote\]'$"),
        ("s3://bucket/x", "s3fs", r"s3fs: pip install 'bioio-tk\[remote\]'$"),
        ("gs://bucket/x", "gcsfs", r"gcsfs: pip install 'bioio-tk\[remote\]' gcsfs$"),
        ("https://host/x", "aiohttp", r"aiohttp: pip install 'bioio-tk\[remote\]'$"),
    ],
)
def test_missing_packages(url, missing, says):
    code = (
        "import sys; sys.modules[sys.argv[2]] = None\n"
        "from bioio_tk.backends._store_url import UrlStore\n"
        "from bioio_tk.core.location import Url\n"
        "try: UrlStore(Url(sys.argv[1]))\n"
        "except ImportError as exc: print(type(exc).__name__, exc)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, url, missing], capture_output=True, text=True, check=True
    )
    kind, _, text = run.stdout.strip().partition(" ")
    assert kind == BackendMissingError.__name__
    assert text.startswith(url)
    assert __import__("re").search(says, text), text


def test_unknown_scheme():
    with pytest.raises(UnsupportedError, match="gopher://host/x: gopher://"):
        UrlStore(Url("gopher://host/x"))


@pytest.mark.parametrize("options", [{"tries": 0}, {"timeout": "soon"}, {"pause": -1}])
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=next(iter(options))):
        UrlStore(Url("http://host/x"), options)


def test_options_are_not_changed():
    options = {"tries": 2, "timeout": 3}
    UrlStore(Url("memory://x"), options).close()
    assert options == {"tries": 2, "timeout": 3}


# --- processes, ends


def _in_child(store, answers):
    answers.put(store.get("a"))
    answers.put(store.get_many(["b", "missing"]))
    store.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork(far, web):
    assert far.get("b") == b"the other"  # the loop and a connection exist
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_child, args=(far, answers), daemon=True)
    child.start()
    try:
        assert answers.get(timeout=20) == bytes(range(250)) * 4
        assert answers.get(timeout=20) == {"b": b"the other", "missing": None}
        child.join(20)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
        answers.close()
        answers.join_thread()
    assert far.get("b") == b"the other"


def test_closed(far):
    far.get("b")
    far.close()
    far.close()
    with pytest.raises(ClosedError):
        far.get("b")


@pytest.mark.parametrize("close", ["store.close()", "del store; gc.collect()", "pass"])
def test_no_connection_is_left_open(far, web, close):
    code = (
        "import gc, sys\n"
        "from bioio_tk.backends._store_url import UrlStore\n"
        "from bioio_tk.core.location import Url\n"
        "store = UrlStore(Url(sys.argv[1]))\n"
        "assert store.get('b') == b'the other'\n"
        f"{close}\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code, web.url],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_store_forgotten_in_the_loop_itself(far):
    from fsspec.asyn import get_loop

    holder = [UrlStore(far.url, QUICK)]
    assert holder[0].get("b") == b"the other"
    session = holder[0]._link._session
    took = []

    def forget():
        begin = time.monotonic()
        holder.clear()
        took.append(time.monotonic() - begin)

    get_loop().call_soon_threadsafe(forget)
    deadline = time.monotonic() + 20
    while not session.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert session.closed
    assert took[0] < 0.9  # the loop does not wait for itself


def test_sockets_are_closed(far):
    far.get("b")
    before = _sockets()
    store = UrlStore(far.url, QUICK)
    store.get("b")
    assert len(_sockets()) > len(before)
    store.close()
    gc.collect()
    deadline = time.monotonic() + 20  # the server's ends of them close in its own threads
    while len(_sockets()) > len(before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(_sockets()) <= len(before)


def _sockets() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(str(entry.readlink()))
    return [name for name in found if name.startswith("socket:")]


# --- zip


def test_zip_requests(web, tmp_path, tree):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for n in range(50):
            archive.writestr(f"0/c/{n}", _RANDOM.randbytes(40_000))
        archive.writestr("zarr.json", b"{}")
    store = ZipStore(Url(f"{web.url}/x.zip"), QUICK)
    assert web.counts["/x.zip"] == 1
    for n in range(10):
        web.forget()
        assert len(store.get(f"0/c/{n}")) == 40_000
        assert web.counts["/x.zip"] == 1
        web.forget()
        store.get_range(f"0/c/{n}", 10_000, 20_000)
        assert web.counts["/x.zip"] == 1
    assert all(method == "GET" for method, _, _ in web.log)
    store.close()


def test_zip_ends_of_large_entries(web, tmp_path):
    """As of shards, whose index stands at the end."""
    value = _RANDOM.randbytes(3_000_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", value)
        archive.writestr("after", bytes(200_000))
    store = ZipStore(Url(f"{web.url}/x.zip"), QUICK)
    web.forget()
    web.sent = 0
    assert store.get_range("a", -20, 20) == value[-20:]
    assert store.get_range("a", 1_500_000, 20_000) == value[1_500_000:1_520_000]
    assert len(web.log) == 3  # the header, once
    assert web.sent < 200_000
    store.close()


def test_zip_large_directory_is_two_requests(web, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("data", bytes(500_000))
        for n in range(6000):
            archive.writestr(f"0/c/{n:06}", b"x")
        archive.comment = b"a comment"
    store = ZipStore(Url(f"{web.url}/x.zip"), QUICK)
    assert web.counts["/x.zip"] == 2
    assert len(store.names("0/c")) == 6000
    store.close()


def test_zip_names_are_fast(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for n in range(30_000):
            archive.writestr(f"{n % 10}/c/{n}", b"")
    begin = time.process_time()
    store = ZipStore(tmp_path / "x.zip")
    for _ in range(200):
        assert len(store.names("3/c")) == 3000
    assert time.process_time() - begin < 5
    store.close()


def test_zip_of_a_server_that_fails(web, tmp_path, tree):
    _zip(tree, tmp_path / "x.zip", zipfile.ZIP_STORED)
    web.fault("/x.zip", 503, "cut")
    store = ZipStore(Url(f"{web.url}/x.zip"), QUICK)
    (tmp_path / "x.zip").write_bytes(b"replaced by something short")
    with pytest.raises(OSError, match=f"{web.url}/x.zip.*replaced or removed"):
        store.get("0/c/0/0")
    store.close()
    with pytest.raises(FileNotFoundError, match=f"{web.url}/no.zip"):
        ZipStore(Url(f"{web.url}/no.zip"), QUICK)


def test_zip_is_safe(tmp_path):
    names = ["/etc/passwd", "../up", "a/../../b", "a\\b", "a//b", "./a", "__MACOSX/._x", "good"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, name)
        archive.mkdir("empty")
    store = ZipStore(tmp_path / "x.zip")
    assert store.names() == ["good"]
    assert [store.get(name) for name in names] == [None] * 7 + [b"good"]
    assert store.get("empty/") is None
    store.close()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_the_last_of_two_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", b"old")
        archive.writestr("b", b"b")
        archive.writestr("a", b"newer")
    store = ZipStore(tmp_path / "x.zip")
    assert store.get("a") == b"newer"
    assert store.names() == ["a", "b"]
    store.close()


def test_zip_root_prefix(tmp_path):
    for names, prefix in [
        (["x/a", "x/b/c", "__MACOSX/x/._a", ".DS_Store"], "x/"),
        (["x/a", "y/a"], ""),
        (["x/a", "zarr.json"], ""),
        (["a"], ""),
        ([], ""),
    ]:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name in names:
                archive.writestr(name, name)
        store = ZipStore(tmp_path / "x.zip")
        assert store.root_prefix == prefix
        if prefix:
            assert store.get("a") == b"x/a"
            assert store.names() == ["a", "b"]
            assert store.where("a") == f"{tmp_path}/x.zip/x/a"
        store.close()


def test_zip64(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        with archive.open(zipfile.ZipInfo("big"), "w", force_zip64=True) as entry:
            entry.write(VALUES["0/c/0/0"])
        archive.writestr("small", b"small")
    store = ZipStore(tmp_path / "x.zip")
    assert store.get_range("big", 70_000, 9) == VALUES["0/c/0/0"][70_000:70_009]
    assert store.get("big") == VALUES["0/c/0/0"]
    store.close()


def _zipped(tmp_path, method=zipfile.ZIP_STORED) -> bytearray:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("a", b"0123456789" * 50)
        archive.writestr("b", b"unharmed")
    return bytearray((tmp_path / "x.zip").read_bytes())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_damaged_data(tmp_path, method):
    data = _zipped(tmp_path, method)
    data[31 + 8] ^= 0xFF
    (tmp_path / "x.zip").write_bytes(data)
    store = ZipStore(tmp_path / "x.zip")
    with pytest.raises(DamagedFileError, match=r"x\.zip/a is damaged"):
        store.get("a")
    assert store.get("b") == b"unharmed"
    store.close()


def test_zip_wrong_places(tmp_path):
    data = _zipped(tmp_path)
    data[0:4] = b"nope"
    (tmp_path / "x.zip").write_bytes(data)
    store = ZipStore(tmp_path / "x.zip")
    with pytest.raises(DamagedFileError, match=r"x\.zip/a is damaged"):
        store.get("a")
    with pytest.raises(DamagedFileError, match=r"x\.zip/a is damaged"):
        store.get_range("a", 3, 4)
    store.close()


@pytest.mark.parametrize("field", ["sizes", "packed size", "offset", "size of deflated"])
def test_zip_absurd_numbers(tmp_path, field):
    method = zipfile.ZIP_DEFLATED if "deflated" in field else zipfile.ZIP_STORED
    data = _zipped(tmp_path, method)
    at = data.index(b"PK\1\2")
    if field in ("sizes", "packed size"):
        data[at + 20 : at + 24] = struct.pack("<I", 0x7FFFFFF0)
    if field in ("sizes", "size of deflated"):
        data[at + 24 : at + 28] = struct.pack("<I", 0x7FFFFFF0)
    if field == "offset":
        data[at + 42 : at + 46] = struct.pack("<I", 0x7FFFFFF0)
    (tmp_path / "x.zip").write_bytes(data)
    store = ZipStore(tmp_path / "x.zip")
    with pytest.raises(DamagedFileError, match=r"x\.zip/a is damaged"):
        store.get("a")
    store.close()


def test_zip_larger_than_memory(tmp_path):
    _zipped(tmp_path)
    store = ZipStore(tmp_path / "x.zip")
    store._entries["a"].file_size = store._entries["a"].compress_size = 1 << 60
    with pytest.raises(DamagedFileError, match=r"x\.zip/a is damaged"):
        store.get("a")
    store.close()


def test_zip_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(50_000_000))
    store = ZipStore(tmp_path / "x.zip")
    store._entries["a"].file_size = 100  # 50 kB that would become 50 MB
    tracemalloc.start()
    with pytest.raises(DamagedFileError, match=r"x\.zip/a is damaged"):
        store.get("a")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    store.close()


def test_zip_cut_off_anywhere(tmp_path):
    whole = bytes(_zipped(tmp_path))
    for end in range(len(whole)):
        (tmp_path / "x.zip").write_bytes(whole[:end])
        with pytest.raises(DamagedFileError, match=r"x\.zip"):
            ZipStore(tmp_path / "x.zip")


@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_zip_any_byte_wrong(tmp_path, at, value):
    data = _zipped(tmp_path)
    data[at % len(data)] = value
    (tmp_path / "x.zip").write_bytes(data)
    try:
        store = ZipStore(tmp_path / "x.zip")
    except DamagedFileError:
        return
    try:
        for key, right in (("a", b"0123456789" * 50), ("b", b"unharmed")):
            with suppress(DamagedFileError, UnsupportedError):
                assert store.get(key) in (right, None)
    finally:
        store.close()


def test_zip_methods_and_passwords(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", b"abc" * 100, zipfile.ZIP_BZIP2)
    store = ZipStore(tmp_path / "x.zip")
    with pytest.raises(UnsupportedError, match=r"x\.zip/a is compressed with method 12"):
        store.get("a")
    store.close()
    data = _zipped(tmp_path)
    at = data.index(b"PK\1\2")
    data[at + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    store = ZipStore(tmp_path / "x.zip")
    with pytest.raises(UnsupportedError, match=r"x\.zip/a is encrypted"):
        store.get_range("a", 0, 5)
    store.close()


# --- pack


def test_pack(tmp_path):
    root = tmp_path / "x.ome.zarr"
    meta = {"zarr_format": 3, "attributes": {"ome": {"version": "0.5"}}}
    files = {
        "0/c/0": _RANDOM.randbytes(3_000_000),
        "A/1/zarr.json": b"{}",
        "A/1/0/zarr.json": b"{}",
        "B/zarr.json": b"{}",
        "A/zarr.json": b"{}",
        "OME/METADATA.ome.xml": b"<OME/>",
        "zarr.json": json.dumps(meta).encode(),
    }
    for key, value in files.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(value)
    os.utime(root / "zarr.json", (0, 0))  # before there was zip
    target = tmp_path / "x.ozx"
    target.write_bytes(b"")
    pack(root, target)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert {i.filename: archive.read(i) for i in archive.infolist()} == files
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
        by_place = sorted(archive.infolist(), key=lambda i: i.header_offset)
        assert by_place == archive.infolist()
        assert [i.filename for i in by_place][:5] == [
            "zarr.json",
            "A/zarr.json",
            "B/zarr.json",
            "A/1/zarr.json",
            "A/1/0/zarr.json",
        ]
        assert json.loads(archive.comment) == {
            "ome": {"version": "0.5", "zipFile": {"centralDirectory": {"jsonFirst": True}}}
        }
    store = ZipStore(target)
    assert store.root_prefix == ""
    for key, value in files.items():
        assert store.get(key) == value
    store.close()


def test_pack_is_what_others_read(tmp_path):
    rfc9 = pytest.importorskip("ngff_zarr.rfc9_zip")
    root = tmp_path / "x.ome.zarr"
    root.mkdir()
    meta = {"zarr_format": 3, "attributes": {"ome": {"version": "0.5"}}}
    (root / "zarr.json").write_text(json.dumps(meta))
    pack(root, tmp_path / "x.ozx")
    assert rfc9.read_ozx_version(tmp_path / "x.ozx") == "0.5"


def test_pack_without_a_version(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ".zgroup").write_text("{}")
    pack(tmp_path / "x", tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.namelist() == [".zgroup"]
        assert archive.comment == b""


def test_pack_leaves_nothing_half_done(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    for n in range(3):
        (tmp_path / "x" / f"{n}").write_bytes(b"x")
    write = zipfile.ZipFile.write

    def fail(self, path, name):
        if name == "2":
            raise OSError(28, "No space left on device")
        write(self, path, name)

    monkeypatch.setattr(zipfile.ZipFile, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        pack(tmp_path / "x", tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "missing"):
        with pytest.raises(SpecError, match=nothing):
            pack(tmp_path / nothing, tmp_path / "y.zip")
    assert not (tmp_path / "y.zip").exists()


# --- UrlFile


def test_url_file(web, tmp_path):
    data = _RANDOM.randbytes(1_000_000)
    (tmp_path / "f").write_bytes(data)
    file = UrlFile(Url(f"{web.url}/f"), QUICK)
    assert file.size == len(data)
    assert file.read(0, 40_000) == data[:40_000]
    assert file.read(60_000, 71_072) == data[60_000:131_072]
    assert web.log == [("GET", "/f", "bytes=0-131071")]
    web.forget()
    assert file.read(131_000, 100) == data[131_000:131_100]  # the first half of it is there
    assert web.log == [("GET", "/f", "bytes=131072-196607")]
    web.forget()
    assert file.read(200_000, 100) == data[200_000:200_100]
    assert file.read(250_000, 12_000) == data[250_000:262_000]
    assert web.log == [("GET", "/f", "bytes=196608-262143")]
    web.forget()
    assert file.read(262_100, 100) == data[262_100:262_200]  # half of it is there
    assert web.log == [("GET", "/f", "bytes=262144-327679")]
    web.forget()
    buffer = bytearray(300_000)
    assert file.read_into(500_001, buffer) == 300_000
    assert buffer == data[500_001:800_001]
    assert web.log == [("GET", "/f", "bytes=500001-800000")]
    web.forget()
    assert file.read(999_990, 100) == data[999_990:]
    assert file.read(1_000_000, 5) == file.read(-5, 5) == file.read(1 << 70, 5) == b""
    assert file.read_into(999_998, bytearray(5)) == 2
    assert len(web.log) == 1
    file.close()
    file.close()


@given(data=st.data())
def test_url_file_any_read(tmp_path, data):
    content = _RANDOM.randbytes(data.draw(st.sampled_from([0, 10, 131_072, 131_073, 300_000])))
    (tmp_path / "f").write_bytes(content)
    with WebServer(tmp_path) as web:
        web.faults["*"] = data.draw(st.sampled_from([None, "ignore", "endless", "ignore, endless"]))
        tail = data.draw(st.sampled_from([0, 1000, 1 << 17]))
        file = UrlFile(Url(f"{web.url}/f"), QUICK, tail=tail)
        assert file.size == len(content)
        for _ in range(6):
            offset = data.draw(st.integers(0, len(content) + 10))
            count = data.draw(st.sampled_from([1, 100, 16_384, 16_385, 65_536, 140_000]))
            assert file.read(offset, count) == content[offset : offset + count]
        file.close()


def test_url_file_keeps_few_blocks(web, tmp_path):
    (tmp_path / "f").write_bytes(bytes(10_000_000))
    file = UrlFile(Url(f"{web.url}/f"), QUICK)
    for offset in range(0, 10_000_000, 65_536):
        file.read(offset, 10)
    assert len(file._blocks) <= 64
    file.close()


def test_url_file_errors(web, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{web.url}/f"):
        UrlFile(Url(f"{web.url}/f"), QUICK)
    (tmp_path / "f").write_bytes(bytes(200_000))
    web.faults["/f"] = 500
    with pytest.raises(ConnectionError, match=f"{web.url}/f"):
        UrlFile(Url(f"{web.url}/f"), QUICK)
    web.faults["/f"] = None
    file = UrlFile(Url(f"{web.url}/f"), QUICK)
    (tmp_path / "f").write_bytes(bytes(150_000))
    with pytest.raises(OSError, match=f"{web.url}/f.*no longer"):
        file.read(140_000, 50_000)
    file.close()
