"""Real servers on loopback: a web server that can misbehave, nginx, and an S3 server."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter, defaultdict, deque
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


class WebServer:
    """An HTTP server of the files in a folder, with range requests.

    Attributes
    ----------
    url : str
        Where it is.
    log : list of (method, path, value of the Range header)
        What it was asked.
    faults : dict
        Path ("*" for any) to what to do with each request, or a queue of what to do next:

        =================  =====================================================
        a number           answer with this status
        "slow"             wait for 5 s
        "cut"              send half of the body, then hang up
        "long"             promise more than the body is long
        "ignore"           send all where a range is wanted
        "endless"          do not say how long the body is
        "ignore, endless"  both
        "wrong"            send a range one byte further
        "less"             send one byte less of a range, and say so
        "mute"             do not say which range is sent
        =================  =====================================================
    together : int
        How many requests have to be under way at once before the first of them is answered.
    most : int
        The most requests that were under way at once.
    sent : int
        Bytes that clients have taken.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[tuple[str, str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: dict[str, object] = defaultdict(lambda: None)
        self.together = 0
        self.busy = self.most = self.sent = 0
        self.lock = threading.Lock()
        self._release = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, name="web server"
        )

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._release.set()
        self._server.shutdown()
        self._server.drop_all()
        self._server.server_close()
        self._thread.join()

    @property
    def counts(self) -> Counter[str]:
        """Requests per path."""
        with self.lock:
            return Counter(path for _, path, _ in self.log)

    def forget(self) -> None:
        """Begin a new log, without faults."""
        with self.lock:
            self.log.clear()
            self.headers.clear()
            self.faults.clear()
            self.most = 0

    def fault(self, path: str, *what: object) -> None:
        """Do each of `what` once for the requests of a path that come next."""
        self.faults[path] = deque(what)

    def next_fault(self, path: str) -> object:
        with self.lock:
            found = self.faults[path] or self.faults["*"]
            if isinstance(found, deque):
                return found.popleft() if found else None
            return found

    def gather(self) -> None:
        """Wait until as many requests as `together` have been under way at once."""
        until = time.monotonic() + 20
        while self.most < self.together and time.monotonic() < until:
            self.wait(0.005)

    def wait(self, seconds: float) -> None:
        self._release.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128
    owner: WebServer

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.sockets: set[socket.socket] = set()

    def process_request(self, request, address):
        self.sockets.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request):
        self.sockets.discard(request)
        super().shutdown_request(request)

    def drop_all(self) -> None:
        for connection in list(self.sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, address):
        pass  # the client has gone


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets
    server: _Server

    def log_message(self, *args):
        pass

    def do_GET(self):
        owner = self.server.owner
        with owner.lock:
            owner.busy += 1
            owner.most = max(owner.most, owner.busy)
        try:
            self._answer(owner)
        finally:
            with owner.lock:
                owner.busy -= 1

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self, owner: WebServer) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range")
        with owner.lock:
            owner.log.append((self.command, path, asked))
            owner.headers.append(dict(self.headers))
        fault = owner.next_fault(path)
        owner.gather()
        if fault == "slow":
            owner.wait(5)
        if isinstance(fault, int):
            self._send(fault, b"a page of the server's own")
            return
        try:
            body = (owner.root / path.lstrip("/")).read_bytes()
        except OSError:
            self._send(404, b"no such file")
            return
        if asked is None or fault in ("ignore", "ignore, endless"):
            self._send(200, body, fault)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        if first == "":
            start, stop = max(0, len(body) - int(last)), len(body)
        else:
            start, stop = int(first), min(len(body), int(last) + 1 if last else len(body))
        if start >= stop:
            self._send(416, b"", None, f"bytes */{len(body)}")
            return
        if fault == "wrong":
            start, stop = start + 1, stop + 1
        if fault == "less":
            stop -= 1
        said = None if fault == "mute" else f"bytes {start}-{stop - 1}/{len(body)}"
        self._send(206, body[start:stop], fault, said)

    def _send(self, status, body, fault=None, content_range=None):
        self.send_response(status)
        if content_range:
            self.send_header("Content-Range", content_range)
        if "endless" not in str(fault):
            self.send_header("Content-Length", str(len(body) + 7 * (fault == "long")))
        else:
            self.send_header("Connection", "close")
        if fault in ("cut", "long"):
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            body = memoryview(body[: len(body) // 2] if fault == "cut" else body)
            while body:
                # counted first: once it is written the test goes on and looks
                self.server.owner.sent += len(body[: 1 << 18])
                self.wfile.write(body[: 1 << 18])
                body = body[1 << 18 :]


@contextmanager
def nginx(root: Path, folder: Path):
    """Run nginx for the files under `root`; its own files are in `folder`. Yield the URL."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log {folder}/access.log; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    process = subprocess.Popen(
        [program, "-c", str(config), "-e", str(folder / "error.log")], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "error.log").read_text()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def s3():
    """Run an S3 server with a bucket called "plates"; yield storage_options for it."""
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _name_threads(server)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        host, port = server.get_host_and_port()
        # what earlier servers of this process were given is in the same memory
        reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset, timeout=60).close()
        options = {
            "key": "me",
            "secret": "me",
            "endpoint_url": f"http://{host}:{port}",
            "client_kwargs": {"region_name": "us-east-1"},
            "pause": 0.0,
        }
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=options["endpoint_url"],
            aws_access_key_id="me",
            aws_secret_access_key="me",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="plates")
        client.close()
        yield options
    finally:
        server.stop()


def _name_threads(server) -> None:
    """Give the threads of a moto server names that the check of leftovers knows."""
    server._thread.name = "bioio_tk S3 server"
    inner = server._server.process_request_thread

    def named(*args):
        threading.current_thread().name = "bioio_tk S3 request"
        inner(*args)

    server._server.process_request_thread = named
