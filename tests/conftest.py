"""What every test gets: backends to run over, a path to write to, and a check of what it left."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from images import CASES, NARROW

from bioio_tk.backends import _java_home, registry
from bioio_tk.backends.registry import BACKENDS
from bioio_tk.engine import pool
from bioio_tk.errors import BackendMissingError

WRITABLE = [row for row in BACKENDS if row.sink and row.name not in NARROW]

settings.register_profile(
    "suite",
    deadline=None,
    max_examples=int(os.environ.get("BIOIO_TK_EXAMPLES", "25")),
    derandomize="BIOIO_TK_EXAMPLES" not in os.environ,  # the same examples for everybody
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("suite")


def pytest_configure(config):
    """Let the tests use the Bio-Formats that is installed, but no memo nor archive of the user.

    A shell's background job ignores Ctrl-C, and so would every child that the tests interrupt.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = tempfile.TemporaryDirectory(prefix="bioio_tk-tests-")
    config.add_cleanup(folder.cleanup)
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME", "/none") + "/.cache")
    if not os.access(home if home.exists() else home.parent, os.W_OK):
        os.environ["XDG_CACHE_HOME"] = folder.name  # itkwasm is not imported without one
    try:
        jar = _java_home.find_jar()
    except BackendMissingError:
        return
    os.environ["BIOIO_TK_BIOFORMATS_JAR"] = str(jar.path)
    os.environ["BIOIO_TK_CACHE"] = folder.name


@pytest.fixture(scope="session")
def java():
    """Java with Bio-Formats, as any test may call it; the test is skipped where there is none."""
    missing = _java_home.missing()
    if missing is not None:
        pytest.skip(missing)
    from bioio_tk.backends import _java_vm

    found = _java_vm.java()
    own_hdf5_library(found)
    return found


def own_hdf5_library(java):
    """Let JHDF5 load a library of this process alone.

    It unpacks its own into the common temporary folder, and removes there what others have just
    unpacked: of several processes that begin at the same moment, some find none.
    """
    system = java("java.lang.System")
    if system.getProperty("native.libpath.jhdf5") or sys.platform != "linux":
        return
    name = f"native/jhdf5/{system.getProperty('os.arch')}-Linux/libjhdf5.so"
    stream = java("java.lang.ClassLoader").getSystemResourceAsStream(name)
    if stream is None:
        return
    folder = tempfile.mkdtemp(prefix="jhdf5-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder, "libjhdf5.so")
    library.write_bytes(bytes(stream.readAllBytes()))
    system.setProperty("native.libpath.jhdf5", str(library))


@pytest.fixture(params=WRITABLE, ids=lambda row: row.name)
def backend(request):
    """Each backend that writes; one that lacks something it needs is skipped."""
    missing = registry.missing(request.param)
    if missing is not None:
        pytest.skip(missing)
    return request.param


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """Each shape an image may have."""
    return CASES[request.param]


@pytest.fixture
def path(backend, tmp_path: Path) -> Path:
    """A place for an image of the backend; nothing is there."""
    return tmp_path / f"image{backend.suffixes[0]}"


@pytest.fixture
def stopped(monkeypatch):
    """An event that is set once a job of the pool has noted a failure: from then on it stops.

    Work that is to be cancelled waits for it. So it is certain that the thread that fails was
    heard, however late it gets a CPU.
    """
    event = threading.Event()
    fail = pool._Job._fail

    def noted(job, exc):
        fail(job, exc)
        event.set()

    monkeypatch.setattr(pool._Job, "_fail", noted)
    return event


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path):
    """Every test ends with no open file under tmp_path and no thread but those of the pool."""
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 5  # what is ending may still need a CPU for it
    while (open_files(tmp_path) or new_threads(before)) and time.monotonic() < until:
        time.sleep(0.005)
    assert not open_files(tmp_path), "the test left files open"
    assert not new_threads(before), "the test left threads"


def new_threads(before: set[threading.Thread]) -> list[str]:
    """Return the names of the threads that have come since, but for those that stay."""
    new = {t for t in threading.enumerate() if t not in before and t.is_alive()}
    # fsspec and zarr-python keep the threads of their event loops, and these those of executors
    known = ("bioio_tk", "fsspecIO", "asyncio_", "zarr_")
    return [t.name for t in new if not t.name.startswith(known)]


def open_files(folder: Path) -> list[str]:
    """Return the paths this process has open under `folder`."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists the folder
            found.append(str(entry.readlink()))
    return [name for name in found if name.startswith(str(folder))]
