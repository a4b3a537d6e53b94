"""What every test gets: backends to run over, a path to write to, and a check of what it left."""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from images import CASES, NARROW

from bioio_tk.backends import _java_home, registry
from bioio_tk.backends.registry import BACKENDS
from bioio_tk.errors import BackendMissingError

WRITABLE = [row for row in BACKENDS if row.sink and row.name not in NARROW]

settings.register_profile(
    "suite",
    deadline=None,
    max_examples=int(os.environ.get("BIOIO_TK_EXAMPLES", "25")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("suite")


def pytest_configure(config):
    """Let the tests use the Bio-Formats that is installed, but no memo nor archive of the user."""
    try:
        jar = _java_home.find_jar()
    except BackendMissingError:
        return
    os.environ["BIOIO_TK_BIOFORMATS_JAR"] = str(jar.path)
    folder = tempfile.TemporaryDirectory(prefix="bioio_tk-tests-")
    os.environ["BIOIO_TK_CACHE"] = folder.name
    config.add_cleanup(folder.cleanup)


@pytest.fixture(scope="session")
def java():
    """Java with Bio-Formats, as any test may call it; the test is skipped where there is none."""
    missing = _java_home.missing()
    if missing is not None:
        pytest.skip(missing)
    from bioio_tk.backends import _java_vm

    return _java_vm.java()


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


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path):
    """Every test ends with no open file under tmp_path and no thread but those of the pool."""
    before = set(threading.enumerate())
    yield
    assert not open_files(tmp_path), "the test left files open"
    new = {t for t in threading.enumerate() if t not in before and t.is_alive()}
    # fsspec and zarr-python keep the threads of their event loops, and these those of executors
    known = ("bioio_tk", "fsspecIO", "asyncio_", "zarr_")
    assert not [t.name for t in new if not t.name.startswith(known)]


def open_files(folder: Path) -> list[str]:
    """Return the paths this process has open under `folder`."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists the folder
            found.append(str(entry.readlink()))
    return [name for name in found if name.startswith(str(folder))]
