"""Conversions on a Dask cluster: the image equals that of one process, or nothing is there.

A real scheduler and real workers, processes of their own on loopback; what they write is read by
zarr-python and tifffile.
"""

from __future__ import annotations

import json
import operator
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from functools import cache
from pathlib import Path

import gated
import numpy as np
import oracles
import pytest
import tifffile
import zarr
from images import coded, shapes_of_levels, smaller
from test_folder_target import names, tree
from test_zarr_processes import meaning

from bioio_tk import BioReader, BioWriter
from bioio_tk.core.checksum import PlaneSums
from bioio_tk.errors import (
    BackendError,
    DamagedFileError,
    FormatError,
    PixelTypeError,
    SpecError,
    TargetExistsError,
    UnsupportedError,
)
from bioio_tk.inputs.open import open_input
from bioio_tk.jobs import _cluster_tasks, cluster
from bioio_tk.jobs.cluster import map_jobs, on_cluster

distributed = pytest.importorskip("distributed", reason="the extra 'dask' is not installed")

SHAPE = (150, 203, 5, 2, 1)
IMAGE = coded(SHAPE)
SAID = {"channel_names": ["DAPI", "GFP"], "physical_size_x": (0.25, "µm"), "name": "an image"}
TESTS = str(Path(__file__).parent)


def start(folder, what, *arguments):
    """Start a part of a cluster; what it says goes to a file."""
    path = os.pathsep.join([TESTS, *(p for p in sys.path if p)])
    env = os.environ | {"PYTHONPATH": path, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "20s"}
    with (folder / f"{what}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{what}", "--no-dashboard",
             "--scheduler-file", str(folder / "scheduler.json"), *map(str, arguments)],
            env=env, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip


def worker(folder):
    return start(folder, "dask_worker", "--nthreads", 1, "--no-nanny", "--host", "127.0.0.1",
                 "--local-directory", folder, "--memory-limit", 0)  # fmt: skip


def stop(*children):
    """Kill parts of a cluster; asked to end, they wait for each other."""
    for child in children:
        child.kill()
    for child in children:
        child.wait(60)


def until(condition, what):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.01)


def address(folder):
    """Return the address of the scheduler; None until its file is there, and whole."""
    try:
        return json.loads((folder / "scheduler.json").read_text())["address"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a running cluster of two single-threaded workers."""
    folder = tmp_path_factory.mktemp("cluster")
    scheduler = start(folder, "dask_scheduler", "--host", "127.0.0.1", "--port", 0, "--no-show")
    workers = [worker(folder), worker(folder)]
    try:
        until(lambda: address(folder), "the start of the scheduler")
        yield folder
    finally:
        stop(*workers, scheduler)


@pytest.fixture(scope="module")
def client(place):
    with distributed.Client(address(place), set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def small(monkeypatch):
    """Let regions be small, so that a small image has many."""
    monkeypatch.setattr(cluster, "_LEAST", 1)
    monkeypatch.setattr(cluster, "LARGEST", 1 << 15)
    monkeypatch.setattr(cluster, "_SENT", 1 << 15)
    monkeypatch.setattr(cluster, "_SMALL", 1 << 13)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.ome.tif"
    with BioWriter(path, image=IMAGE, tile_size=32, **SAID) as bw:
        bw[:] = IMAGE
    return path


def check_levels(read, levels):
    """Compare all levels with the image, shrunk cell by cell."""
    for level in range(levels):
        np.testing.assert_array_equal(read(level), level_of(level))


@cache
def level_of(level):
    return IMAGE if level == 0 else smaller(level_of(level - 1))


ZARRS = [
    {"chunks": (32, 32, 2), "shards": (64, 64, 4, 2)},
    {"chunks": (32, 48), "shards": False, "ngff_version": "0.4"},
    {"chunks": (25, 31, 3), "shards": (50, 93, 3), "pyramid_z": True, "downsample": "max"},
]


@pytest.mark.parametrize("more", ZARRS, ids=str)
def test_a_store_equals_that_of_one_process(tmp_path, source, client, small, more):
    one, many = tmp_path / "one.ome.zarr", tmp_path / "many.ome.zarr"
    said = []
    with BioReader(source) as br:
        options = {"like": br, "pyramid": 3, **more}
        with BioWriter(one, **options) as bw:
            bw[:] = IMAGE
        spec = on_cluster(br.array, many, options, client=client,
                          progress=lambda *n: said.append(n))  # fmt: skip
    assert names(tmp_path) == ["many.ome.zarr", "one.ome.zarr", "source.ome.tif"]
    assert len(spec.levels) == 3
    assert meaning(many) == meaning(one)
    assert tree(many).keys() == tree(one).keys()
    np.testing.assert_array_equal(oracles.zarr(many), IMAGE)
    for level in range(3):
        np.testing.assert_array_equal(oracles.zarr(many, level), oracles.zarr(one, level))
    if "pyramid_z" not in more:
        check_levels(lambda level: oracles.zarr(many, level), 3)
    assert [n for n, _ in said] == sorted(n for n, _ in said)
    assert len(said) > 10
    assert said[-1] == (IMAGE.nbytes, IMAGE.nbytes)


@pytest.mark.parametrize("more", [{}, {"compression": "none"}], ids=str)
def test_tiles_of_a_tiff_are_encoded_by_the_workers(tmp_path, source, client, small, more):
    target = tmp_path / "many.ome.tif"
    sums = PlaneSums(SHAPE, IMAGE.dtype)
    with BioReader(source) as br:
        options = {"like": br, "pyramid": 4, "tile_size": 32, **more}
        on_cluster(br.array, target, options, client=client, sums=sums)
    assert names(tmp_path) == ["many.ome.tif", "source.ome.tif"]
    check_levels(lambda level: oracles.python(target, level), 4)
    with tifffile.TiffFile(target) as file:
        assert [v.shape[-2:] for v in file.series[0].levels] == [
            v[:2] for v in shapes_of_levels(SHAPE, 4)
        ]
        assert file.pages[0].tile == (32, 32)
    with BioReader(target) as br:
        assert br.channel_names == ["DAPI", "GFP"]
        assert br.physical_size_x == (0.25, "µm")
    assert sums.result() == {
        f"t0 c{c} z{z}": f"crc32:{zlib.crc32(IMAGE[:, :, z, c, 0].tobytes()):08x}"
        for c in range(2)
        for z in range(5)
    }


def test_checksums_and_a_selection_and_a_cast(tmp_path, source, client, small):
    target = tmp_path / "part.ome.zarr"
    wanted = IMAGE[10:140:3, ::-2, [4, 0]]
    stored = np.clip(wanted, 0, 255).astype("u1")
    sums = PlaneSums(stored.shape, stored.dtype)
    with BioReader(source) as br:
        part = br.array[10:140:3, ::-2][:, :, [4, 0]]
        options = {"shape": wanted.shape, "dtype": "u1", "chunks": 16, "shards": False}
        on_cluster(part, target, {**options, "cast": "clip"}, client=client, sums=sums)
    np.testing.assert_array_equal(oracles.zarr(target), np.clip(wanted, 0, 255))
    planes = {name: f"{zlib.crc32(stored[:, :, z, c, 0].tobytes()):08x}"
              for z in range(2) for c in range(2) for name in [f"t0 c{c} z{z}"]}  # fmt: skip
    assert {name: text.removeprefix("crc32:") for name, text in sums.result().items()} == planes


def test_an_address_and_a_path_from_here(tmp_path, source, client, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with BioReader(source.name) as br:
        on_cluster(br.array, "out.ome.zarr", {"like": br}, client=client.scheduler.address)
    np.testing.assert_array_equal(oracles.zarr(tmp_path / "out.ome.zarr"), IMAGE)


def test_a_worker_that_is_killed(tmp_path, place, client, small):
    np.save(tmp_path / "image.npy", IMAGE)
    folder, target = tmp_path / "gate", tmp_path / "out.ome.zarr"
    folder.mkdir()
    victim = worker(place)
    failed = []
    try:
        client.wait_for_workers(3, timeout=60)

        def kill():
            try:  # in the middle: some tiles are written, and it waits for the next one
                until(lambda: gated.readers(folder).get(victim.pid, 0) > 3, "work of the victim")
                until(lambda: list(tmp_path.glob("*.partial/0/**/*.part")), "half a shard")
                victim.send_signal(signal.SIGKILL)
                victim.wait(10)
            except BaseException as exc:
                failed.append(exc)
            finally:
                (folder / "open").touch()

        killer = threading.Thread(target=kill)
        killer.start()
        lazy = gated.gated(tmp_path / "image.npy", (32, 32, 1, 1, 1), folder, free=3)
        sums = PlaneSums(SHAPE, IMAGE.dtype)
        options = {"shape": SHAPE, "dtype": "u2", "chunks": (16, 16), "shards": (32, 64, 2),
                   "pyramid": 3, **SAID}  # fmt: skip
        on_cluster(lazy, target, options, client=client, sums=sums, memory=2048)
        killer.join(60)
    finally:
        stop(victim)
    assert not failed
    assert victim.returncode == -signal.SIGKILL
    assert len(gated.readers(folder)) == 3
    one = tmp_path / "one.ome.zarr"
    with BioWriter(one, **options) as bw:
        bw[:] = IMAGE
    assert tree(target).keys() == tree(one).keys()  # no part of a file is left either
    assert meaning(target) == meaning(one)
    check_levels(lambda level: oracles.zarr(target, level), 3)
    assert len(sums.result()) == 10
    assert sums.result()["t0 c1 z4"] == f"crc32:{zlib.crc32(IMAGE[:, :, 4, 1, 0].tobytes()):08x}"


@pytest.mark.parametrize("name", ["out.ome.zarr", "out.ome.tif"])
def test_a_damaged_source_leaves_nothing(tmp_path, client, small, name):
    np.save(tmp_path / "image.npy", IMAGE)
    folder = tmp_path / "gate"
    folder.mkdir()
    (folder / "open").touch()
    (folder / "bad").touch()
    lazy = gated.gated(tmp_path / "image.npy", (16, 16, 1, 1, 1), folder, free=0)
    with pytest.raises(DamagedFileError, match=r"tile \(9, 12, 4, 1, 0\) is damaged"):
        on_cluster(lazy, tmp_path / name, {"shape": SHAPE, "dtype": "u2", "tile_size": 32},
                   client=client)  # fmt: skip
    assert names(tmp_path) == ["gate", "image.npy"]


def test_ctrl_c_leaves_nothing(tmp_path, client, small):
    np.save(tmp_path / "image.npy", IMAGE)
    folder = tmp_path / "gate"
    folder.mkdir()
    lazy = gated.gated(tmp_path / "image.npy", (32, 32, 1, 1, 1), folder, free=20)

    def interrupt(_done, _total):
        (folder / "open").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_cluster(lazy, tmp_path / "out.ome.zarr",
                   {"shape": SHAPE, "dtype": "u2", "chunks": 16, "shards": False},
                   client=client, progress=interrupt)  # fmt: skip
    assert names(tmp_path) == ["gate", "image.npy"]
    assert client.submit(sum, (1, 2), pure=False).result(timeout=60) == 3  # the cluster lives on


def test_what_a_worker_does_not_see(tmp_path, client, monkeypatch):
    """The worker is asked for a file that is there only for the client."""
    path = tmp_path / "seen.ome.tif"
    with BioWriter(path, image=IMAGE, **SAID) as bw:
        bw[:] = IMAGE
    with BioReader(path) as br:
        lazy, record = br.array, cluster.source_record(br.array)
        monkeypatch.setattr(cluster, "source_record", lambda _: record)
        path.unlink()
        with pytest.raises(BackendError, match=r"worker on .*does not find.*seen\.ome\.tif.*share"):
            on_cluster(lazy, tmp_path / "out.ome.zarr", {"like": br}, client=client)
        assert names(tmp_path) == []
        other = coded((9, 9))
        with BioWriter(path, image=other) as bw:
            bw[:] = other
        with pytest.raises(FormatError, match=r"worker on .* sees another file"):
            on_cluster(lazy, tmp_path / "out.ome.zarr", {"like": br}, client=client)
    assert names(tmp_path) == ["seen.ome.tif"]


def test_a_target_that_a_worker_does_not_see(tmp_path, source):
    with BioReader(source) as br:
        task = _cluster_tasks.Task("", "", str(tmp_path / "x.ome.zarr"), (), None, None, False)
        task = cluster.replace(task, version=cluster.__version__)
        with pytest.raises(BackendError, match=r"does not find.*x\.ome\.zarr\.partial"):
            _cluster_tasks.shrink(task, [(1, None)])
        with pytest.raises(BackendError, match="same version"):
            _cluster_tasks.shrink(cluster.replace(task, version="0.0.1"), [])
        assert br.shape == SHAPE


def test_what_cannot_be_done_is_said_before_anything_exists(tmp_path, source, client, monkeypatch):
    before = names(tmp_path)
    with BioReader(source) as br:
        for target in ("out.npy", "out.ome.zarr.zip", "s3://bucket/out.ome.zarr"):
            with pytest.raises(UnsupportedError, match=r"client=|only"):
                on_cluster(br.array, tmp_path / target if "//" not in target else target,
                           {"like": br}, client=client)  # fmt: skip
        with pytest.raises(SpecError, match="address of a scheduler"):
            on_cluster(br.array, tmp_path / "out.ome.zarr", {"like": br}, client=3)
        with pytest.raises(PixelTypeError):
            on_cluster(br.array, tmp_path / "out.ome.zarr",
                       {"like": br, "dtype": "u1", "cast": "exact"}, client=client)  # fmt: skip
        (tmp_path / "there.ome.zarr").mkdir()
        zarr.open_group(tmp_path / "there.ome.zarr", mode="w")
        with pytest.raises(TargetExistsError):
            on_cluster(br.array, tmp_path / "there.ome.zarr", {"like": br}, client=client)
        shutil.rmtree(tmp_path / "there.ome.zarr")
        monkeypatch.setattr(cluster, "_LARGEST_SOURCE", 10)
        with pytest.raises(UnsupportedError, match="write it to a file first"):
            on_cluster(br.array, tmp_path / "out.ome.zarr", {"like": br}, client=client)
    assert names(tmp_path) == before


def test_a_source_in_memory_is_sent_once(tmp_path, client, monkeypatch, small):
    monkeypatch.setattr(cluster, "_CARRIED", 10)
    lazy, _ = open_input(np.ascontiguousarray(IMAGE.transpose(4, 3, 2, 0, 1)), dims="TCZYX")
    options = {"shape": SHAPE, "dtype": "u2", "chunks": 32, "shards": False}
    on_cluster(lazy, tmp_path / "out.ome.zarr", options, client=client)
    np.testing.assert_array_equal(oracles.zarr(tmp_path / "out.ome.zarr"), IMAGE)


def test_a_cluster_without_workers(tmp_path, source, monkeypatch):
    monkeypatch.setattr(cluster, "_NO_WORKER", 0.2)
    monkeypatch.setattr(cluster, "_POLL", 0.1)
    scheduler = start(tmp_path, "dask_scheduler", "--host", "127.0.0.1", "--port", 0, "--no-show")
    try:
        until(lambda: address(tmp_path), "the start of the scheduler")
        with BioReader(source) as br, pytest.raises(BackendError, match="has had no worker"):
            on_cluster(br.array, tmp_path / "out.ome.zarr", {"like": br}, client=address(tmp_path))
    finally:
        stop(scheduler)
    assert [n for n in names(tmp_path) if "out" in n] == []


def test_a_batch_goes_on_after_a_failure(client):
    divide = operator.methodcaller("__rfloordiv__", 12)
    found = list(map_jobs(client, divide, [1, 2, 0, 3]))
    assert {job: result for job, result, error in found if error is None} == {1: 12, 2: 6, 3: 4}
    assert [(job, type(error)) for job, _, error in found if error] == [(0, ZeroDivisionError)]
