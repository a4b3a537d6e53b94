"""What is left when a process that writes an OME-Zarr is killed, or the disk is full.

Real child processes, and zarr-python for what they leave behind. BIOIO_TK_KILLS sets how often a
child is killed; 20 for a release.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import oracles
import pytest
import zarr
from images import coded
from test_crash import closed_folder, finished, start  # noqa: F401 - closed_folder is a fixture
from test_folder_target import names, tree

from bioio_tk import BioReader, BioWriter
from bioio_tk.errors import BioIOError, TargetExistsError

KILLS = int(os.environ.get("BIOIO_TK_KILLS", "6"))
SHAPE = (208, 330, 2, 1, 1)
OLD = coded(SHAPE, seed=5)
HOW = {
    "shards": {"shards": 64, "pyramid": 3},
    "chunks": {"shards": False, "pyramid": 3},
    "0.4": {"ngff_version": "0.4"},
}


def old(path, **more):
    with BioWriter(path, image=OLD, chunks=32, **more):
        pass
    return tree(path)


# ------------------------------------------------------------------ kill -9

WRITE = """
    import json, os, sys
    import numpy as np
    from images import coded
    from bioio_tk import BioWriter

    path, seed, more = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    shape, tile = (208, 330, 2, 1, 1), 32
    image = coded(shape)
    print("start", flush=True)
    while True:
        with BioWriter(path, shape=shape, dtype="u2", chunks=tile, overwrite=True, max_workers=3,
                       **more) as bw:
            todo = [(y, x, z) for y in range(0, 208, 48) for x in range(0, 330, 64)
                    for z in range(2)]
            np.random.default_rng(seed).shuffle(todo)
            for y, x, z in todo:
                key = np.s_[y:y + 48, x:x + 64, z, 0, 0]
                bw[key] = image[key]
                print("tile", flush=True)
            print("close", flush=True)
        print("done", flush=True)
"""


@pytest.mark.parametrize("seed", range(KILLS))
def test_kill_9_at_any_moment_leaves_the_target_untouched_or_complete(tmp_path, seed):
    import json

    path = tmp_path / "image.ome.zarr"
    how, there = list(HOW.values())[seed % len(HOW)], seed // len(HOW) % 2
    before = old(path) if there else {}
    child = start(WRITE, path, seed, json.dumps(how))
    try:
        assert child.stdout.readline() == "start\n"
        time.sleep(float(np.random.default_rng(seed).uniform(0, 0.3)))
    finally:
        child.kill()
        said, errors = child.communicate()
    assert child.returncode == -signal.SIGKILL, errors
    check_left(path, before, said)
    allowed = {path.name, path.name + ".partial"}
    hidden = [n for n in names(tmp_path) if n not in allowed]
    assert all(n.startswith(f".{path.name}.") for n in hidden)
    partial = path.with_name(path.name + ".partial")
    if partial.exists():
        match = "interrupted" if not path.exists() else "overwrite=True"
        with pytest.raises(TargetExistsError, match=match):
            BioWriter(path, shape=(3, 3), dtype="u2")
    with BioWriter(path, shape=(3, 3), dtype="u2", overwrite=True) as bw:
        bw[...] = 1
    assert names(tmp_path) == [path.name]
    assert (oracles.zarr(path) == 1).all()


def check_left(path, before, said):
    """The target is as it was, or the new image in full; what is unfinished is no surprise."""
    new = coded(SHAPE)
    if "done\n" not in said and (not path.exists() or tree(path) == before):
        assert path.exists() == bool(before)
    else:
        assert "close\n" in said
        np.testing.assert_array_equal(oracles.zarr(path), new)
        with BioReader(path) as br:
            np.testing.assert_array_equal(br[...].reshape(SHAPE), new)
    partial = path.with_name(path.name + ".partial")
    if partial.exists() and ((partial / "zarr.json").exists() or (partial / ".zattrs").exists()):
        group = zarr.open_group(partial, mode="r")  # opens; what it lacks of pixels is 0 or cut
        assert group["0"].shape == (1, 1, 2, 208, 330)


COMMIT = """
    import os, shutil, signal, sys
    import numpy as np
    import bioio_tk.backends._store as store
    import bioio_tk.target as target
    from bioio_tk import BioWriter
    from images import coded

    path, moment, swap = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
    calls = [0]
    def dies(real):
        def call(*args, **kwargs):
            if calls[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            calls[0] += 1
            return real(*args, **kwargs)
        return call

    real_exchange = target.exchange
    bw = BioWriter(path, image=coded((208, 330, 2, 1, 1)), chunks=32, overwrite=True)
    bw[:] = coded((208, 330, 2, 1, 1))
    target.exchange = dies(real_exchange) if swap else lambda *_: False
    os.rename = dies(os.rename)
    os.unlink = dies(os.unlink)
    os.rmdir = dies(os.rmdir)
    store.remove_replaced = target.remove_replaced = dies(store.remove_replaced)
    commit = target.FolderTarget.commit
    bw.close()
    print(calls[0])
"""


@pytest.mark.parametrize("moment", [0, 1, 2, 3, 5, 40, 100, 10000])
def test_kill_9_while_it_is_moved_into_place_leaves_the_old_or_the_new(tmp_path, moment):
    path = tmp_path / "image.ome.zarr"
    before = old(path)
    child = start(COMMIT, path, moment, True)
    _, err = child.communicate(timeout=60)
    assert child.returncode == (0 if moment == 10000 else -signal.SIGKILL), err
    if tree(path) != before:
        np.testing.assert_array_equal(oracles.zarr(path), coded(SHAPE))
    with BioWriter(path, shape=(3, 3), dtype="u2", overwrite=True):
        pass
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("moment", [0, 1, 2, 3, 60])
def test_kill_9_between_two_moves_loses_neither(tmp_path, moment):
    """Where a system cannot swap two names there is a moment without any: both lie beside it."""
    path = tmp_path / "image.ome.zarr"
    before = old(path)
    child = start(COMMIT, path, moment, False)
    _, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, err
    trees = [tree(tmp_path / name) for name in names(tmp_path)]
    partial = path.with_name(path.name + ".partial")
    if path.exists():
        if tree(path) != before:
            np.testing.assert_array_equal(oracles.zarr(path), coded(SHAPE))
    else:
        assert moment in (1, 2)
        assert before in trees
        np.testing.assert_array_equal(oracles.zarr(partial), coded(SHAPE))
    with BioWriter(path, shape=(3, 3), dtype="u2", overwrite=True):
        pass
    assert names(tmp_path) == [path.name]


# ------------------------------------------------------------------ a full disk

FULL = """
    import json, os, resource, signal, sys
    from pathlib import Path
    import numpy as np
    import bioio_tk.engine.scratch as scratch
    from bioio_tk import BioWriter
    from bioio_tk.target import FolderTarget
    import bioio_tk.backends.zarr_write, bioio_tk.meta.ome

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit, how, path, more = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
    noise = np.random.default_rng(0).integers(0, 2**16, (512, 512)).astype("u2")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if how == "scratch":
        init = scratch.Scratch.__init__
        scratch.Scratch.__init__ = lambda self, folder: init(self, folder, 0)
    bw = BioWriter(path, shape=noise.shape, dtype="u2", overwrite=True, max_workers=4, **more)
    try:
        if how == "with":
            with bw:
                bw[...] = noise
        elif how == "scratch":
            with bw:
                bw[1:, 1:] = noise[1:, 1:]
        else:
            bw[1:, 1:] = noise[1:, 1:]
            bw.close()
    except OSError as exc:
        print(exc.errno)
        bw.abort()
        bw.discard()
        sys.exit(7)
"""


@pytest.mark.parametrize(
    ("limit", "how", "more"),
    [
        (0, "with", {"chunks": 128}),  # not even the metadata
        (900, "with", {"chunks": 128}),  # an array's, but no more
        (20_000, "with", {"chunks": 128}),  # a chunk
        (20_000, "with", {"chunks": 128, "ngff_version": "0.4", "compression": "none"}),
        (20_000, "close", {"chunks": 128, "pyramid": 3}),
        (100_000, "with", {"chunks": 128, "shards": 256}),  # a shard, not its first chunk
        (100_000, "close", {"chunks": 128, "shards": 256}),
        (131_100, "with", {"chunks": 128, "shards": 256, "compression": "none"}),  # its table
        (20_000, "scratch", {"chunks": 128}),
    ],
    ids=str,
)
def test_a_full_disk_is_an_os_error_and_leaves_the_target_as_it_was(tmp_path, limit, how, more):
    import json

    path = tmp_path / "image.ome.zarr"
    before = old(path)
    code, out, err = finished(FULL, limit, how, path, json.dumps(more))
    assert (code, out) == (7, "27\n"), err
    assert names(tmp_path) == [path.name]
    assert tree(path) == before


SMALL = """
    import os, sys
    from pathlib import Path
    import numpy as np
    from bioio_tk import BioWriter

    folder, shards = Path(sys.argv[1]), sys.argv[2] == "True"
    noise = np.random.default_rng(0).integers(0, 2**16, (2048, 2048)).astype("u2")
    path = folder / "image.ome.zarr"
    with BioWriter(path, image=noise[:50, :50], pyramid=2):
        pass
    def files():
        return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    before = files()
    try:
        with BioWriter(path, shape=noise.shape, dtype="u2", chunks=128, overwrite=True,
                       pyramid=3, shards=512 if shards else False) as bw:
            for y in range(0, 2048, 100):
                bw[y : y + 100] = noise[y : y + 100]
    except OSError as exc:
        print(exc.strerror, before == files(), os.listdir(folder))
"""


@pytest.mark.parametrize("shards", [True, False])
def test_a_small_disk_that_is_full_is_an_os_error(tmp_path, shards):
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    before = ["unshare", "-rm", "sh", "-c", mount, str(tmp_path)]
    if not shutil.which("unshare") or subprocess.call([*before, "true"]):
        pytest.skip("no small file system can be mounted here")
    code, out, err = finished(SMALL, tmp_path, shards, before=before)
    assert code == 0, err
    assert out == "No space left on device True ['image.ome.zarr']\n", err


def test_a_write_that_failed_can_be_told_from_one_that_did_not(tmp_path, monkeypatch):
    from bioio_tk.errors import ClosedError

    path = tmp_path / "image.ome.zarr"
    bw = BioWriter(path, shape=(64, 64), dtype="u2", chunks=32)
    bw[:32] = 1
    monkeypatch.setattr(os, "open", _fails(os.open))
    with pytest.raises(OSError, match="the disk is gone"):
        bw[32:] = 2
    monkeypatch.undo()
    with pytest.raises(ClosedError, match="failed before"):
        bw[:32] = 1
    with pytest.raises(ClosedError, match="not complete"):
        bw.close()
    assert names(tmp_path) == ["image.ome.zarr.partial"]
    bw.discard()
    assert names(tmp_path) == []


def _fails(real):
    def call(path, flags, *args, **kwargs):
        if flags & os.O_CREAT:
            raise OSError(5, "the disk is gone")
        return real(path, flags, *args, **kwargs)

    return call


# ------------------------------------------------------------------ what may not be written or read

NOBODY = """
    import os, sys
    from bioio_tk import BioReader, BioWriter, finish
    from bioio_tk.errors import BioIOError
    import bioio_tk.jobs.finish, shutil, tempfile

    # whom we are going to be may not be able to read our packages: all of them are loaded before
    warm = tempfile.mkdtemp()
    for more in ({}, {"group": "labels/a"}):
        with BioWriter(warm + "/a.ome.zarr", shape=(8, 8), dtype="u1", **more) as bw:
            bw[...] = 1
    with BioWriter(warm + "/b.ome.zarr", shape=(8, 8), dtype="u2") as bw:  # of another codec
        bw[...] = 1
    for name in ("/a.ome.zarr", "/b.ome.zarr"):
        with BioReader(warm + name) as br:
            br[:]
    with BioWriter(warm + "/a.ome.zarr", shape=(8, 8), dtype="u1", overwrite=True) as bw:
        bw[...] = 1
    shutil.rmtree(warm)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    path, group = sys.argv[1], sys.argv[2]
    try:
        if sys.argv[3] == "read":
            with BioReader(path) as br:
                br[:]
        else:
            size = (208, 330) if "labels" in group else (8, 8)
            with BioWriter(path, shape=size, dtype="u1", group=group, overwrite=True) as bw:
                bw[...] = 1
    except PermissionError as exc:
        print(exc)
        sys.exit(7)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("there", "group"), [("", ""), (None, ""), ("", "labels/cells"), ("0", "1"), (None, "1")]
)
def test_a_read_only_folder_is_a_permission_error(closed_folder, there, group):  # noqa: F811
    path = closed_folder / "image.ome.zarr"
    if there is not None:
        old(path, group=there)
    before = tree(closed_folder)
    code, out, err = finished(NOBODY, path, group, "write")
    assert code == 7, err
    assert str(closed_folder) in out
    assert tree(closed_folder) == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    "name", ["zarr.json", "0/zarr.json", "0/c/0/0/0/1/1", "OME/zarr.json", "0"]
)
def test_a_file_that_may_not_be_read_is_named(closed_folder, name):  # noqa: F811
    path = closed_folder / "image.ome.zarr"
    with BioWriter(path, image=OLD[..., 0, 0, 0], chunks=32):
        pass
    if name == "OME/zarr.json":  # nothing of it is needed for one image
        (path / "OME" / "METADATA.ome.xml").chmod(0)
        name = "OME/METADATA.ome.xml"
    (path / name).chmod(0)
    try:
        code, out, err = finished(NOBODY, path, "", "read")
    finally:
        (path / name).chmod(0o755)
    assert code == 7, err
    assert name in out


# ------------------------------------------------------------------ ends of another kind

ENDS = """
    import sys
    from bioio_tk import BioWriter

    path, how = sys.argv[1:]
    bw = BioWriter(path, shape=(64, 64), dtype="u2", chunks=32, overwrite=True)
    bw[:32] = 7
    if how == "forgotten":
        del bw
        sys.exit(7)
    if how == "global":
        sys.exit(7)
    with bw:
        raise KeyboardInterrupt
"""


@pytest.mark.parametrize("how", ["forgotten", "global", "ctrl-c"])
def test_a_process_that_ends_without_close_puts_nothing_half_done_in_place(tmp_path, how):
    path = tmp_path / "image.ome.zarr"
    before = old(path)
    code, _, err = finished(ENDS, path, how)
    assert code == (-signal.SIGINT if how == "ctrl-c" else 7), err
    assert "Exception ignored" not in err
    assert tree(path) == before
    partial = path.with_name(path.name + ".partial")
    assert partial.exists() == (how != "ctrl-c")
    if partial.exists():
        found = oracles.zarr(partial)
        assert (found[:32] == 7).all()
        assert not found[32:].any()
    with pytest.raises((BioIOError, FileNotFoundError)):
        BioWriter(tmp_path / "none" / "image.ome.zarr", shape=(3, 3), dtype="u1")
