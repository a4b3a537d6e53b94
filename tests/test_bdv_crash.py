"""A BDV file when its writer is killed, and when the disk is full; read with h5py.

Every state that a writer can leave is looked at by writing again what it has written, one write
less each time; and real child processes are killed. BIOIO_TK_KILLS sets how often; 20 for a
release.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from bioio_tk.backends import _bdv_tree
from bioio_tk.backends._bdv_file import BdvFile, partition_files
from bioio_tk.backends._file import RandomFile
from bioio_tk.core.spec import Address
from bioio_tk.core.views import Mipmap, Scheme, ViewId

h5py = pytest.importorskip("h5py")

KILLS = int(os.environ.get("BIOIO_TK_KILLS", "6"))
SIZE = (3, 20, 24)
MIPMAPS = (Mipmap((1, 1, 1), (2, 16, 16)), Mipmap((1, 2, 2), (2, 16, 16)))


def stack(view, version=0):
    """Return the pixels of a view; each version of each view has others."""
    pixels = np.arange(np.prod(SIZE)).reshape(SIZE)
    return (pixels * 7 + view[0] * 1000 + view[1] * 10 + version * 3).astype("u2")


def put(file, view, version=0):
    pixels = stack(view, version)
    sink = file.begin_view(ViewId(*view), SIZE)
    for number, level in enumerate(sink.images[0].levels):
        image = (pixels[:, ::2, ::2] if number else pixels).transpose(1, 2, 0)[..., None, None]
        for key in level.grid.keys():  # noqa: SIM118 (no dict)
            at = Address(0, number, key)
            sink.store_tile(at, sink.encode_tile(at, image[level.grid.region(key).slices()]))
    sink.finish()


def versions(path, most=3):
    """Return which version of each view is in a file, all of it; fail where one is not whole."""
    found = {}
    with h5py.File(path, "r", locking=False) as file:
        for name in (name for name in file if name[0] == "t"):
            for setup in file[name]:
                view = (int(name[1:]), int(setup[1:]))
                levels = [file[f"{name}/{setup}/{n}/cells"][...].view("u2") for n in range(2)]
                (found[view],) = (
                    n
                    for n in range(most)
                    if (stack(view, n) == levels[0]).all()
                    and (stack(view, n)[:, ::2, ::2] == levels[1]).all()
                )
        for setup in (name for name in file if name[0] == "s"):
            file[f"{setup}/resolutions"][...], file[f"{setup}/subdivisions"][...]
    return found


# ------------------------------------------------------------------ every state there can be


class Log:
    """Takes down what is written to files, and what is cut off them."""

    def __init__(self, monkeypatch):
        self.steps = []
        write, cut = RandomFile.write, os.ftruncate

        def logged_write(file, offset, data):
            self.steps.append((file.path, offset, bytes(data)))
            write(file, offset, data)

        def logged_cut(fd, length):
            path = next(p for p, *_ in self.steps if os.path.samestat(p.stat(), os.fstat(fd)))
            self.steps.append((path, None, length))
            cut(fd, length)

        monkeypatch.setattr(RandomFile, "write", logged_write)
        monkeypatch.setattr(_bdv_tree.os, "ftruncate", logged_cut)

    def replay(self, folder):
        """Do it again in another folder; yield after each step how many were done.

        A write may end half-way: each is done by halves, but for those of the few bytes that the
        system never interrupts.
        """
        for number, (path, offset, data) in enumerate(self.steps):
            with (folder / path.name).open("r+b" if number else "w+b") as file:
                if offset is None:
                    file.truncate(data)
                    yield number + 1
                    continue
                file.seek(offset)
                for some in (data[: len(data) // 2], data) if len(data) > 64 else (data,):
                    file.seek(offset)
                    file.write(some)
                    file.flush()
                    yield number + (len(some) == len(data))


@pytest.mark.parametrize("times_per_file", [0, 2])
def test_every_state_holds_all_finished_views(tmp_path, monkeypatch, times_per_file):
    log = Log(monkeypatch)
    file = BdvFile.create(tmp_path / "x.h5", times_per_file=times_per_file)
    states = [(0, {}), (len(log.steps), {})]  # how many writes it took, what is there then

    def reached(change, **more):
        states.append((len(log.steps), {**states[-1][1], **more.get("views", {})}))
        for view in more.get("removed", ()):
            del states[-1][1][view]

    for setup in range(2):
        file.add_setup(setup, Scheme(np.dtype("u2"), MIPMAPS, "gzip" if setup else "none"))
    for view in [(0, 0), (0, 1), (3, 1), (1, 0), (2, 0), (11, 1)]:
        put(file, view)
        reached("new", views={view: 0})
    put(file, (1, 0), 1)
    reached("replaced", views={(1, 0): 1})
    sink = file.begin_view(ViewId(5, 1), SIZE)
    at = Address(0, 0, (0, 0, 0, 0, 0))
    sink.store_tile(at, sink.encode_tile(at, np.ones((16, 16, 2, 1, 1), "u2")))
    sink.abort()
    file.remove_view(ViewId(0, 1))
    reached("removed", removed=[(0, 1)])
    put(file, (0, 1), 2)
    reached("again", views={(0, 1): 2})
    file.close()

    again = tmp_path / "again"
    again.mkdir()
    for there in (tmp_path / "x.h5", *partition_files(tmp_path / "x.h5")):
        (again / there.name).touch()
    first = states[1][0]  # before that it is no HDF5 file yet
    known, looked = states[0][1], 0
    for done in log.replay(again):
        if done < first:
            continue
        before = [views for steps, views in states if steps <= done][-1]
        after = next((views for steps, views in states if steps > done), before)
        found = versions(again / "x.h5")
        assert found in (before, after), f"after {done} writes"
        looked += 1
        known = found
    assert known == states[-1][1]
    assert looked > 60


# ------------------------------------------------------------------ kill -9


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


WRITE = """
    import os, sys
    from pathlib import Path
    import numpy as np
    from bioio_tk.backends._bdv_file import BdvFile
    from bioio_tk.core.spec import Address
    from bioio_tk.core.views import Mipmap, Scheme, ViewId

    SIZE = (3, 20, 24)
    mipmaps = (Mipmap((1, 1, 1), (2, 16, 16)), Mipmap((1, 2, 2), (2, 16, 16)))
    path, times_per_file, most = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    file = BdvFile.create(path, times_per_file=times_per_file)
    for setup in range(3):
        file.add_setup(setup, Scheme(np.dtype("u2"), mipmaps, "gzip" if setup else "none"))
    pixels = np.arange(np.prod(SIZE)).reshape(SIZE)
    for n in range(10**9):
        time, setup = n // 3 % most, n % 3
        version = n // (3 * most) % 3
        stack = (pixels * 7 + time * 1000 + setup * 10 + version * 3).astype("u2")
        sink = file.begin_view(ViewId(time, setup), SIZE)
        for number, level in enumerate(sink.images[0].levels):
            image = (stack[:, ::2, ::2] if number else stack).transpose(1, 2, 0)[..., None, None]
            for key in level.grid.keys():
                at = Address(0, number, key)
                sink.store_tile(at, sink.encode_tile(at, image[level.grid.region(key).slices()]))
        sink.finish()
        os.write(1, b"%d %d %d\\n" % (time, setup, version))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
@pytest.mark.parametrize(("times_per_file", "most"), [(0, 10**6), (4, 10**6), (0, 3)])
def test_a_killed_writer_leaves_all_finished_views(tmp_path, times_per_file, most):
    choose = random.Random(most + times_per_file)
    for kill in range(max(2, KILLS // 3)):
        path = tmp_path / f"{kill}.h5"
        child = start(WRITE, path, times_per_file, most)
        guard = threading.Timer(60, child.kill)
        guard.start()
        lines = [child.stdout.readline() for _ in range(choose.randrange(1, 40))]
        time.sleep(choose.random() * 0.02)
        child.kill()
        with child.stdout, child.stderr:  # not communicate(), which misses what readline() kept
            out, err = child.stdout.read(), child.stderr.read()
        guard.cancel()
        assert child.wait() == -signal.SIGKILL, err.decode()
        done = {}
        for line in b"".join([*lines, out]).splitlines():
            t, s, version = map(int, line.split())
            done[t, s] = version
        found = versions(path)
        # the last one may be there before it was said
        different = {view for view in found if found[view] != done.get(view)}
        assert set(done) <= set(found)
        assert len(different) <= 1, different
        # and somebody can go on
        again = BdvFile.open(path, writable=True)
        assert set(again.views()) == set(found)
        put(again, (0, 0), 2)
        again.close()
        assert versions(path) == {**found, (0, 0): 2}


# ------------------------------------------------------------------ a full disk

FULL = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from bioio_tk.backends._bdv_file import BdvFile
    from bioio_tk.core.spec import Address
    from bioio_tk.core.views import Mipmap, Scheme, ViewId

    limit = int(sys.argv[2])
    file = BdvFile.create(Path(sys.argv[1]))
    file.add_setup(0, Scheme(np.dtype("u2"), (Mipmap((1, 1, 1), (2, 16, 16)),), "none"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    tile = np.full((16, 16, 2, 1, 1), 7, "u2")
    done = 0
    for time in range(10000):
        sink = file.begin_view(ViewId(time, 0), (2, 32, 16))
        try:
            for key in sink.images[0].levels[0].grid.keys():
                at = Address(0, 0, key)
                sink.store_tile(at, sink.encode_tile(at, tile))
            sink.finish()
        except OSError as exc:
            sink.abort()
            assert file.views() == tuple((n, 0) for n in range(done)), file.views()
            print(done, type(exc).__name__, exc.errno)
            break
        done += 1
    try:  # nothing fits any more, and nothing of what is there is lost by that
        file.add_setup(1, Scheme(np.dtype("u1"), (Mipmap((1, 1, 1), (2, 16, 16)),) * 1, "none"))
    except OSError:
        pass
    file.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of Linux")
@pytest.mark.parametrize("limit", [9_000, 50_000, *range(60_000, 60_000 + 9 * 1100, 1100)])
def test_a_full_disk_is_an_error_and_all_finished_views_stay(tmp_path, limit):
    child = start(FULL, tmp_path / "x.h5", limit)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err.decode()
    done, error, _ = out.decode().split()
    assert error == "OSError"
    with h5py.File(tmp_path / "x.h5", "r") as file:
        times = [name for name in file if name[0] == "t"]
        assert len(times) == int(done)
        assert all((file[f"{name}/s00/0/cells"][...] == 7).all() for name in times)
    assert (tmp_path / "x.h5").stat().st_size <= limit
