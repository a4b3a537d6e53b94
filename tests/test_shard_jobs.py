"""Jobs that know nothing of each other convert one image; their pixels are read by zarr-python.

Each job is a process of its own, as a scheduler of a cluster would start it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from functools import cache
from pathlib import Path

import gated
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import coded, smaller
from test_folder_target import names, tree
from test_zarr_processes import meaning

from bioio_tk import BioReader, BioWriter, finish
from bioio_tk.core.region import Region
from bioio_tk.errors import (
    DamagedFileError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
    UnsupportedError,
)
from bioio_tk.jobs.shards import finalize, parse_job, write_share
from bioio_tk.jobs.shared_store import SharedImage, regions

SHAPE = (150, 203, 5, 2, 1)
IMAGE = coded(SHAPE)
OPTIONS = {"channel_names": ["DAPI", "GFP"], "name": "an image", "chunks": (32, 32, 2),
           "shards": (64, 64, 2, 1), "pyramid": 3}  # fmt: skip
TESTS = str(Path(__file__).parent)

JOB = """
import json, sys
from pathlib import Path
import gated
from bioio_tk.jobs.shards import write_share

folder, job, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
lazy = gated.gated(folder / "image.npy", (32, 32, 1, 1, 1), folder / "gate", free=int(sys.argv[4]))
share = write_share(lazy, folder / "out.ome.zarr",
                    {"shape": (150, 203, 5, 2, 1), "dtype": "u2", **options}, job=job, workers=2,
                    memory=4096)
print(json.dumps([share.skipped, share.read_bytes, share.left]))
"""


@cache
def level_of(level):
    return IMAGE if level == 0 else smaller(level_of(level - 1))


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "image.npy", IMAGE)
    (tmp_path / "gate").mkdir()
    return tmp_path


def image_of(folder):
    return gated.gated(folder / "image.npy", (32, 32, 1, 1, 1), folder / "gate", free=10**9)


def begin(folder, job, free=10**9, options=OPTIONS):
    path = os.pathsep.join([TESTS, *(p for p in sys.path if p)])
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(folder), job, json.dumps(options), str(free)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(child):
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return json.loads(out)


def share(folder, job, **more):
    given = {"shape": SHAPE, "dtype": "u2", **OPTIONS, **more.pop("options", {})}
    return write_share(image_of(folder), folder / "out.ome.zarr", given, job=job, **more)


def check_image(path, one):
    """Compare the image with the one that a single process has written."""
    with BioWriter(one, shape=SHAPE, dtype="u2", **OPTIONS) as bw:
        bw[:] = IMAGE
    assert meaning(path) == meaning(one)
    assert tree(path).keys() == tree(one).keys()
    for level in range(3):
        np.testing.assert_array_equal(oracles.zarr(path, level), level_of(level))


def test_four_processes_one_of_them_killed(folder):
    target, gate = folder / "out.ome.zarr", folder / "gate"
    victim = begin(folder, "2/4", free=20)
    try:
        until = time.monotonic() + 60
        while gated.readers(gate).get(victim.pid, 0) <= 20:
            assert time.monotonic() < until
            assert victim.poll() is None
            time.sleep(0.01)
    finally:
        victim.send_signal(signal.SIGKILL)
        said = victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL, said
    children = [begin(folder, f"{n}/4") for n in (1, 3, 4)]
    said = [end(child) for child in children]
    assert [skipped for skipped, _, _ in said] == [False] * 3
    assert names(folder) == ["gate", "image.npy", "out.ome.zarr.partial"]
    with pytest.raises(SpecError, match="2/4 is not done"):
        finalize(target)
    with pytest.raises(SpecError, match="2/4 is not done"):
        finish(target)
    (gate / "open").touch()
    again = end(begin(folder, "2/4", free=20))
    assert again[0] is False
    assert again[2] == []
    assert sum(read for _, read, _ in said) + again[1] == IMAGE.nbytes  # nothing twice
    assert end(begin(folder, "3/4", free=0)) == [True, 0, []]
    spec, sums = finalize(target, workers=2)
    assert names(folder) == ["gate", "image.npy", "out.ome.zarr"]
    assert len(spec.levels) == 3
    assert sums == {
        f"t0 c{c} z{z}": f"crc32:{zlib.crc32(IMAGE[:, :, z, c, 0].tobytes()):08x}"
        for c in range(2)
        for z in range(5)
    }
    check_image(target, folder / "one.ome.zarr")


def test_all_begin_at_once(folder):
    children = [begin(folder, f"{n}/6") for n in range(1, 7)]
    said = [end(child) for child in children]
    assert sum(read for _, read, _ in said) == IMAGE.nbytes
    assert names(folder) == ["gate", "image.npy", "out.ome.zarr.partial"]
    finalize(folder / "out.ome.zarr")
    check_image(folder / "out.ome.zarr", folder / "one.ome.zarr")


def test_more_jobs_than_regions(folder):
    options = {"shards": (256, 256, 5, 2), "chunks": (64, 64)}
    left = [share(folder, f"{n}/5", options=options).left for n in range(5, 0, -1)]
    assert [len(found) for found in left] == [4, 3, 2, 1, 0]
    finalize(folder / "out.ome.zarr")
    np.testing.assert_array_equal(oracles.zarr(folder / "out.ome.zarr"), IMAGE)


def test_progress_is_that_of_the_job(folder):
    said = []
    done = share(folder, "1/2", progress=lambda *n: said.append(n))
    assert [n for n, _ in said] == sorted(n for n, _ in said)
    assert said[-1] == (done.read_bytes, done.read_bytes)
    assert 0 < done.read_bytes < IMAGE.nbytes


def test_a_job_that_does_not_fit(folder):
    share(folder, "1/2", record={"compression": "zstd"})
    before = tree(folder / "out.ome.zarr.partial")
    for more, what in [
        ({"job": "1/3"}, "jobs is 2 there, and 3 here"),
        ({"job": "2/2", "record": {"compression": "gzip"}}, "options is"),
    ]:
        with pytest.raises(SpecError, match=what):
            share(folder, **{"record": {"compression": "zstd"}, **more})
    part = image_of(folder)[::2]
    with pytest.raises(SpecError, match="selection is"):
        write_share(part, folder / "out.ome.zarr", {"shape": part.shape, "dtype": "u2"}, job="2/2",
                    record={"compression": "zstd"})  # fmt: skip
    assert tree(folder / "out.ome.zarr.partial") == before


def test_a_source_that_has_changed(tmp_path):
    source, target = tmp_path / "source.ome.tif", tmp_path / "out.ome.zarr"
    for seed in (0, 1):
        image = coded((90, 80), seed=seed)
        with BioWriter(source, image=image, overwrite=True) as bw:
            bw[:] = image
        os.utime(source, (seed, seed))
        with BioReader(source) as br:
            if not seed:
                write_share(br.array, target, {"like": br}, job="1/2")
                continue
            with pytest.raises(SpecError, match="source is"):
                write_share(br.array, target, {"like": br}, job="2/2")


@pytest.mark.parametrize("job", ["0/4", "5/4", "1/0", "3", "a/b", "-1/4", "1/1000000", None])
def test_no_such_job(folder, job):
    with pytest.raises(SpecError, match="shard_job="):
        share(folder, job)
    assert parse_job(" 4/4") == (4, 4)
    assert names(folder) == ["gate", "image.npy"]


@pytest.mark.parametrize("name", ["out.ome.tif", "out.npy", "out.ome.zarr.zip", "s3://b/o.zarr"])
def test_no_target_for_several_processes(folder, name):
    target = name if "://" in name else folder / name
    with pytest.raises(UnsupportedError, match=r"end the name with \.ome\.zarr"):
        write_share(image_of(folder), target, {"shape": SHAPE, "dtype": "u2"}, job="1/2")
    with pytest.raises(UnsupportedError, match=r"end the name with \.ome\.zarr"):
        finalize(target)
    assert names(folder) == ["gate", "image.npy"]


def test_what_is_in_the_way_stays(folder):
    target = folder / "out.ome.zarr"
    with BioWriter(target, image=IMAGE[:9, :9]) as bw:
        bw[:] = IMAGE[:9, :9]
    before = tree(folder)
    with pytest.raises(TargetExistsError):
        share(folder, "1/1")
    assert tree(folder).keys() == before.keys()
    share(folder, "1/1", options={"overwrite": True})
    with pytest.raises(TargetExistsError):
        finalize(target)
    finalize(target, overwrite=True)
    np.testing.assert_array_equal(oracles.zarr(target), IMAGE)


def test_an_image_laid_out_by_hand_or_left_by_a_crash(folder):
    target = folder / "out.ome.zarr"
    BioWriter(target, mode="create", shape=SHAPE, dtype="u2", **OPTIONS).close()
    with pytest.raises(SpecError, match="was begun by jobs that do not fit"):
        share(folder, "1/2")
    (folder / "out.ome.zarr.partial" / "processes.0-0.part").unlink()
    with pytest.raises(SpecError, match="not laid out for several processes"):
        share(folder, "1/2")


def test_finalize_without_jobs_or_while_one_is_at_work(folder):
    with pytest.raises(FileNotFoundError, match="no unfinished folder"):
        finalize(folder / "out.ome.zarr")
    share(folder, "1/1")
    with BioWriter(folder / "out.ome.zarr", mode="r+"), pytest.raises(TargetBusyError):
        finalize(folder / "out.ome.zarr")
    finalize(folder / "out.ome.zarr")
    with pytest.raises(FileNotFoundError, match="is complete"):
        finalize(folder / "out.ome.zarr")


def test_a_finalize_that_fails_can_be_repeated(folder):
    for n in (1, 2):
        share(folder, f"{n}/2")

    def fail(place):
        assert (place / "2" / "zarr.json").exists()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        finalize(folder / "out.ome.zarr", before=fail)
    _, sums = finalize(folder / "out.ome.zarr")
    assert len(sums) == 10
    check_image(folder / "out.ome.zarr", folder / "one.ome.zarr")


def test_nothing_is_stored_once_the_job_is_given_up(folder):
    target = folder / "out.ome.zarr"
    BioWriter(target, mode="create", shape=SHAPE, dtype="u2", **OPTIONS).close()
    with SharedImage(target) as image:
        image.target.unmark_shared()
        before = tree(image.target.partial)
        with pytest.raises(SpecError, match="given up"):
            image.fill(image_of(folder).view(), Region.whole(SHAPE))
        with pytest.raises(SpecError, match="given up"):
            image.shrink(1, Region.whole(SHAPE))
    assert tree(folder / "out.ome.zarr.partial") == before


def test_what_a_killed_job_leaves_beside_is_removed(folder):
    beside = folder / ".0123abcd.out.ome.zarr.partial"
    other = folder / ".0123abcd.my.ome.zarr.partial"
    for path in (beside, other):
        path.mkdir()
    share(folder, "1/1")
    finalize(folder / "out.ome.zarr")
    assert not beside.exists()
    assert other.exists()


def test_a_damaged_source_is_not_done(folder):
    (folder / "gate" / "bad").touch()
    share(folder, "1/2")
    with pytest.raises(DamagedFileError, match="is damaged"):
        share(folder, "2/2")
    with pytest.raises(SpecError, match="2/2 is not done"):
        finalize(folder / "out.ome.zarr")


sizes = st.tuples(*[st.integers(1, 40)] * 2, *[st.integers(1, 5)] * 3)
units = st.tuples(*[st.integers(1, 20)] * 2, *[st.integers(1, 5)] * 3)


@given(sizes, units, units, st.integers(1, 5000))
def test_regions_are_whole_units_and_cover_the_image_once(shape, stored, unit, most):
    seen = np.zeros(shape, int)
    for region in regions(shape, stored, unit, most):
        seen[region.slices()] += 1
        for a, b, n, size in zip(region.start, region.stop, unit, shape, strict=True):
            assert a % n == 0
            assert b % n == 0 or b == size
        inside = np.prod([min(n, s) for n, s in zip(unit, shape, strict=True)])
        assert np.prod(region.shape) <= max(4 * most, inside)
    assert (seen == 1).all()


def test_regions_hold_whole_tiles_of_the_source():
    found = list(regions((100, 100, 4, 1, 1), (20, 100, 1, 1, 1), (16, 16, 1, 1, 1), 8000))
    assert {(r.start[0], r.start[1]) for r in found} == {(0, 0), (80, 0)}


def test_nothing_here_needs_dask():
    code = "import sys, bioio_tk.jobs.shards, bioio_tk.jobs.cluster; print(*sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    ).stdout.split()  # fmt: skip
    assert not {"dask", "distributed"} & set(said)
