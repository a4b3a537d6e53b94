"""What is left when a process is killed, the disk is full or the folder cannot be written.

Real child processes, and somebody else's reader (tifffile) for what they leave behind.
BIOIO_TK_KILLS sets how often a child is killed; 20 for a release.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

import numpy as np
import oracles
import pytest
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.errors import TargetExistsError

KILLS = int(os.environ.get("BIOIO_TK_KILLS", "6"))
SHAPE = (208, 330, 2, 1, 1)
TILE = 32


def start(script, *arguments, before=()):
    """Run a script in a child process, which waits where it reads its stdin."""
    return subprocess.Popen(
        [*before, sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        text=True,
    )


def finished(script, *arguments, **more):
    """Run a script to its end; return its exit code and what it printed."""
    child = start(script, *arguments, **more)
    try:
        out, err = child.communicate(timeout=120)
    finally:
        child.kill()  # nothing, unless it hangs
    return child.returncode, out, err


# ------------------------------------------------------------------ kill -9

WRITE = """
    import os, sys, threading
    import numpy as np
    from images import coded
    from bioio_tk import BioWriter

    path, seed, pyramid, compression, rounds = sys.argv[1:]
    shape, tile = (208, 330, 2, 1, 1), 32
    rng = np.random.default_rng(int(seed))
    bw = BioWriter(path, shape=shape, dtype="u2", tile_size=tile, overwrite=True,
                   pyramid=int(pyramid), compression=compression, max_workers=2)
    todo = [(r, y, x, z) for r in range(int(rounds)) for y in range(0, 208, tile)
            for x in range(0, 330, tile) for z in range(2)]
    half = len(todo) // int(rounds)
    for r in range(int(rounds)):
        part = todo[r * half:(r + 1) * half]
        rng.shuffle(part)

        def work(mine, r=r):
            image = coded(shape, seed=r)
            for _, y, x, z in mine:
                key = np.s_[y:y + tile, x:x + tile, z, 0, 0]
                bw[key] = image[key]
                os.write(1, f"{r} {y} {x} {z}\\n".encode())  # only now is it said to be stored

        threads = [threading.Thread(target=work, args=(part[n::3],)) for n in range(3)]
        for t in threads: t.start()
        for t in threads: t.join()
    os.write(1, b"end\\n")
    sys.stdin.read()
"""


@pytest.mark.parametrize("seed", range(KILLS))
def test_kill_9_at_any_moment_leaves_the_target_and_every_stored_tile(tmp_path, seed):
    path = tmp_path / "image.ome.tif"
    if seed % 2:
        path.write_bytes(b"what was here before")
    pyramid, rounds = (1, 3) if seed % 3 else (3, 1)
    compression = ["deflate", "none", "zstd"][seed // 2 % 3]
    tiles = -(-SHAPE[0] // TILE) * -(-SHAPE[1] // TILE) * 2
    moment = int(np.random.default_rng(seed).integers(1, tiles * rounds * 4 // 5))
    reports = killed_after(moment, path, seed, pyramid, compression, rounds)
    assert len(reports) >= moment
    if seed % 2:
        assert path.read_bytes() == b"what was here before"
    else:
        assert not path.exists()
    # zstd minds bytes behind a tile: one that is being written anew is no tile for a moment
    lost = 3 if compression == "zstd" and rounds > 1 else 0  # by three threads
    check_partial(path.with_name(path.name + ".partial"), reports, rounds, pyramid, lost)


def killed_after(moment, *arguments):
    """Kill a writing child after so many reports; return all reports it made until its end."""
    child = start(WRITE, *arguments)
    try:
        lines = []
        for line in child.stdout:
            lines.append(line)
            if len(lines) == moment:
                os.kill(child.pid, signal.SIGKILL)
        errors = child.stderr.read()
        assert child.wait() == -signal.SIGKILL, errors
    finally:
        child.kill()
        child.communicate()
    if lines and not lines[-1].endswith("\n"):
        lines.pop()  # cut off in the middle
    return [tuple(map(int, line.split())) for line in lines if line != "end\n"]


def check_partial(partial, reports, rounds, pyramid, lost=0):
    """Every tile reported is there but for `lost`; any other is there or 0; nothing is torn."""
    images = [coded(SHAPE, seed=r) for r in range(rounds)]
    last = {}
    for r, y, x, z in reports:
        last[y, x, z] = max(r, last.get((y, x, z), -1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = oracles.python(partial)
        for level in range(1, pyramid):
            oracles.python(partial, level)
    with BioReader(partial) as br:
        np.testing.assert_array_equal(br[...].reshape(SHAPE), found)
        assert br.levels == pyramid
    for y in range(0, SHAPE[0], TILE):
        for x in range(0, SHAPE[1], TILE):
            for z in range(2):
                key = np.s_[y : y + TILE, x : x + TILE, z]
                least = last.get((y, x, z), -1)
                allowed = [image[key] for image in images[max(least, 0) :]]
                if least < 0 or (lost and not found[key].any()):
                    lost -= least >= 0
                    allowed.append(np.zeros_like(found[key]))
                assert any(np.array_equal(found[key], a) for a in allowed), (y, x, z, least)


def test_what_a_killed_writer_left_is_kept_until_overwritten(tmp_path):
    path = tmp_path / "image.ome.tif"
    reports = killed_after(5, path, 0, 1, "deflate", 1)
    with pytest.raises(TargetExistsError, match="left from a write that was interrupted"):
        BioWriter(path, shape=SHAPE, dtype="u2")
    check_partial(path.with_name(path.name + ".partial"), reports, 1, 1)
    with BioWriter(path, shape=(3, 3), dtype="u2", overwrite=True) as bw:
        bw[...] = 1
    assert [p.name for p in tmp_path.iterdir()] == ["image.ome.tif"]


# ------------------------------------------------------------------ a full disk

FULL = """
    import resource, signal, sys
    import numpy as np
    from bioio_tk import BioWriter

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit, how, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    noise = np.random.default_rng(0).integers(0, 2**16, (1024, 1024)).astype("u2")
    bw = BioWriter(path, shape=noise.shape, dtype="u2", tile_size=128, overwrite=True,
                   max_workers=4, pyramid=3)
    try:
        if how == "with":
            with bw:
                bw[...] = noise
        elif how == "close":
            bw[1:-1, 1:-1] = noise[1:-1, 1:-1]
            bw.close()
        else:
            for y in range(0, 1024, 100):
                bw[y:y + 100] = noise[y:y + 100]
    except OSError as exc:
        print(exc.errno)
        if how != "with":
            bw.abort() if how == "abort" else None
        sys.exit(7)
"""


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("how", ["with", "abort"])
@pytest.mark.parametrize("limit", [0, 100, 5000, 100_000, 1_500_000])
def test_a_full_disk_is_an_os_error_and_leaves_the_target_as_it_was(tmp_path, there, how, limit):
    path = tmp_path / "image.ome.tif"
    if there:
        path.write_bytes(b"what was here before")
    code, out, err = finished(FULL, limit, how, path)
    assert (code, out) == (7, "27\n"), err
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if there else [])
    assert not there or path.read_bytes() == b"what was here before"


def test_a_disk_that_is_full_at_close_is_an_os_error_there(tmp_path):
    path = tmp_path / "image.ome.tif"
    code, out, err = finished(FULL, 1_700_000, "close", path)
    assert (code, out) == (7, "27\n"), err
    assert not path.exists()


SMALL = """
    import os, sys
    from pathlib import Path
    import numpy as np
    from bioio_tk import BioWriter
    from bioio_tk.engine.scratch import Scratch

    folder, how = Path(sys.argv[1]), sys.argv[2]
    noise = np.random.default_rng(0).integers(0, 2**16, (2048, 2048)).astype("u2")
    old = folder / "image.ome.tif"
    old.write_bytes(b"what was here before")
    try:
        if how == "scratch":
            scratch, rooms = Scratch(folder, budget=0), []
            while True:
                rooms.append(scratch.room((256, 256, 1, 1, 1), np.dtype("u2")))
                rooms[-1].array[...] = len(rooms)
        with BioWriter(old, shape=noise.shape, dtype="u2", tile_size=128, overwrite=True) as bw:
            for y in range(0, 2048, 64 if how == "halves" else 128):
                bw[y : y + 64] = noise[y : y + 64]
    except OSError as exc:
        print(exc.strerror, old.read_bytes().decode(), sorted(os.listdir(folder), reverse=True))
        if how == "scratch":
            print(len(rooms) > 3, all((r.array == n).all() for n, r in enumerate(rooms, 1)))
"""


@pytest.mark.parametrize("how", ["halves", "parts that wait", "scratch"])
def test_a_small_disk_that_is_full_is_an_os_error_not_a_crash(tmp_path, how):
    """On a real file system, where a mapped page without room would kill the process (SIGBUS)."""
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    namespace = ["unshare", "-rm", "sh", "-c"]
    before = [*namespace, mount, str(tmp_path)]
    if not shutil.which("unshare") or subprocess.call([*before, "true"]):
        pytest.skip("no small file system can be mounted here")
    code, out, err = finished(SMALL, tmp_path, how, before=before)
    assert code == 0, err
    left = ["image.ome.tif"]
    if how == "parts that wait":  # until close(), which leaves what there is to recover()
        left = ["image.ome.tif.partial", *left]
    said = f"No space left on device what was here before {left}"
    assert out.splitlines() == ([said, "True True"] if how == "scratch" else [said]), err


# ------------------------------------------------------------------ a folder that cannot be written

NOBODY = """
    import os, sys
    from bioio_tk import BioReader, BioWriter
    import bioio_tk.backends.tiff_write, bioio_tk.meta.ome, tifffile

    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    bw = BioWriter(sys.argv[1], shape=(8, 8), dtype="u1")
    try:
        with bw:
            bw[...] = 1
    except PermissionError as exc:
        print(sorted(os.listdir(os.path.dirname(sys.argv[1]))))
        sys.exit(7)
"""


@pytest.fixture
def closed_folder(tmp_path):
    """A folder nobody but its owner may write to."""
    folder = Path(tempfile.mkdtemp(prefix="bioio_tk-test-"))
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_a_permission_error(closed_folder):
    path = closed_folder / "image.ome.tif"
    if os.getuid() == 0:  # root may write anywhere, so a child that is somebody else tries
        code, out, err = finished(NOBODY, path)
        assert (code, out) == (7, "[]\n"), err
        return
    bw = BioWriter(path, shape=(8, 8), dtype="u1")
    with pytest.raises(PermissionError), bw:
        bw[...] = 1
    assert not list(closed_folder.iterdir())


# ------------------------------------------------------------------ ends of another kind

ENDS = """
    import sys
    import numpy as np
    from bioio_tk import BioWriter

    path, how = sys.argv[1:]
    if how == "in a generator":
        def writing():
            with BioWriter(path, shape=(64, 64), dtype="u2", tile_size=32) as bw:
                bw[:32] = 7
                yield
        g = writing()
        next(g)
        sys.exit(7)
    bw = BioWriter(path, shape=(64, 64), dtype="u2", tile_size=32)
    bw[:32] = 7
    if how == "forgotten":
        del bw
        sys.exit(7)
    if how == "global":
        sys.exit(7)
    with bw:
        sys.exit(7)
"""


@pytest.mark.parametrize("how", ["forgotten", "global", "exit in with", "in a generator"])
def test_a_process_that_ends_without_close_puts_nothing_half_done_in_place(tmp_path, how):
    path = tmp_path / "image.ome.tif"
    code, _, err = finished(ENDS, path, how)
    assert code == 7, err
    assert not path.exists()
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    partial = path.with_name(path.name + ".partial")
    if how in ("forgotten", "global"):
        found = oracles.python(partial)
        assert (found[:32] == 7).all()
        assert not found[32:].any()
    else:
        assert not partial.exists()


CTRL_C = """
    import itertools, os, signal, sys, threading
    import numpy as np
    from bioio_tk import BioWriter
    from bioio_tk.backends.tiff_write import TiffSink
    from bioio_tk.engine import pool

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    real, settle, calls, number = TiffSink.encode_tile, pool._settle, [], itertools.count(1)
    heard = threading.Event()

    def encode(self, at, tile):
        calls.append(at)
        n = next(number)
        if n == 20:
            os.kill(os.getpid(), signal.SIGINT)
        if n >= 20:
            heard.wait(60)  # the main thread may not have had a CPU yet
        return real(self, at, tile)

    def settled(*args, **more):
        heard.set()
        settle(*args, **more)

    TiffSink.encode_tile, pool._settle = encode, settled
    with BioWriter(sys.argv[1], shape=(2048, 2048), dtype="u2", tile_size=32,
                   max_workers=4, overwrite=True) as bw:
        try:
            bw[...] = np.zeros((2048, 2048), "u2")
        finally:
            print(len(calls) < 40)
"""


def test_ctrl_c_in_the_middle_of_a_write_leaves_the_target_as_it_was(tmp_path):
    path = tmp_path / "image.ome.tif"
    path.write_bytes(b"what was here before")
    code, out, err = finished(CTRL_C, path)
    assert (code, out) == (-signal.SIGINT, "True\n"), err
    assert "KeyboardInterrupt" in err
    assert path.read_bytes() == b"what was here before"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
