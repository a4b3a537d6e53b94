"""batch: many images as one job; every good one is right, every bad one is told."""

from __future__ import annotations

import inspect
import io
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner

from bioio_tk.api import batch, convert, split
from bioio_tk.cli.bars import Bars
from bioio_tk.cli.batch import command
from bioio_tk.errors import BackendError, DamagedFileError, SpecError
from bioio_tk.jobs.batch import run as batch_run
from bioio_tk.jobs.batch.batch import BatchProgress
from bioio_tk.jobs.batch.job import BatchEntry, Job

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ENV = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
CLI = [sys.executable, "-m", "bioio_tk", "batch"]


def image(path, seed=0, shape=(40, 50), **options):
    """Write an image of noise and return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(0, 60_000, shape, dtype="u2")
    axes = "TCZYX"[-len(shape) :] if len(shape) != 3 else "ZYX"
    metadata = {"axes": options.pop("axes", axes)}
    tifffile.imwrite(path, data, metadata=metadata, photometric="minisblack", **options)
    return data


def level0(path):
    """Return the pixels of an OME-Zarr as zarr-python reads them."""
    return zarr.open_group(path, mode="r")["0"][...]


def same(path, data):
    return np.array_equal(np.squeeze(level0(path)), np.squeeze(data))


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).iterdir())


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# ------------------------------------------------------------------------------- what is found


def test_a_folder_is_converted_and_what_is_damaged_is_told(tmp_path):
    good = {f"a{n}": image(tmp_path / "in" / f"a{n}.ome.tif", n) for n in range(3)}
    (tmp_path / "in" / "bad.tif").write_bytes(b"no image" * 8)
    (tmp_path / "in" / "empty.tif").write_bytes(b"")
    (tmp_path / "in" / "notes.txt").write_text("read me")
    (tmp_path / "in" / ".hidden.tif").write_bytes(b"no image")
    (tmp_path / "in" / "x.ome.tif.partial").write_bytes(b"II*\0")
    report = batch(tmp_path / "in", tmp_path / "out")
    assert (report.done, report.failed, report.skipped, report.ok) == (3, 2, 0, False)
    assert all(same(tmp_path / "out" / f"{name}.ome.zarr", data) for name, data in good.items())
    assert names(tmp_path / "out") == ["a0.ome.zarr", "a1.ome.zarr", "a2.ome.zarr", "report.jsonl"]
    failed = {Path(e.source).name: e for e in report.entries if e.status == "failed"}
    assert set(failed) == {"bad.tif", "empty.tif"}
    assert "bad.tif" in failed["bad.tif"].error
    assert "0 bytes" in failed["empty.tif"].error
    assert failed["bad.tif"].kind == "UnknownFormatError"


def test_content_counts_and_not_the_name(tmp_path):
    data = image(tmp_path / "in" / "scan.tif")
    (tmp_path / "in" / "scan.tif").rename(tmp_path / "in" / "scan.img1")
    (tmp_path / "in" / "table.docx").write_bytes(b"PK\3\4" + bytes(200))
    report = batch(tmp_path / "in", tmp_path / "out")
    assert [Path(e.target).name for e in report.entries] == ["scan.ome.zarr"]
    assert same(tmp_path / "out" / "scan.ome.zarr", data)


def test_recursive_keeps_the_tree_and_leaves_its_own_results_out(tmp_path):
    one = image(tmp_path / "a.tif", 1)
    two = image(tmp_path / "p" / "q" / "a.tif", 2)
    for _ in range(2):
        report = batch(tmp_path, tmp_path / "out", recursive=True, exists="replace")
        assert report.done == len(report.entries) == 2
    assert same(tmp_path / "out" / "a.ome.zarr", one)
    assert same(tmp_path / "out" / "p" / "q" / "a.ome.zarr", two)
    assert len(batch(tmp_path, tmp_path / "o2", depth=1).entries) == 1
    found = batch(tmp_path, tmp_path / "o3", depth=2, dry_run=True).entries
    assert {Path(entry.source).parent.name for entry in found} == {tmp_path.name, "out", "o2"}


def test_into_the_folder_of_the_sources_twice(tmp_path):
    image(tmp_path / "a.tif")
    image(tmp_path / "b.tif")
    assert batch(tmp_path, tmp_path).done == 2
    again = batch(tmp_path, tmp_path, exists="skip")
    assert (again.done, again.skipped, again.failed) == (0, 2, 0)


def test_an_ome_zarr_is_one_image_and_not_a_folder_of_images(tmp_path):
    data = image(tmp_path / "a.tif")
    (tmp_path / "in").mkdir()
    convert(tmp_path / "a.tif", tmp_path / "in" / "a.ome.zarr")
    report = batch(tmp_path / "in", tmp_path / "out", ext=".ome.tif", recursive=True)
    assert report.done == len(report.entries) == 1
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "a.ome.tif"), data)


def test_globs_lists_and_files_that_are_not_there(tmp_path):
    image(tmp_path / "in" / "a1.tif")
    image(tmp_path / "in" / "a2.tif")
    image(tmp_path / "in" / "b.tif")
    assert batch(tmp_path / "in" / "a*.tif", tmp_path / "o1").done == 2
    given = [tmp_path / "in" / "a1.tif", str(tmp_path / "in" / "b*.tif"), tmp_path / "gone.tif"]
    report = batch(given, tmp_path / "o2", retries=3)
    assert [e.status for e in report.entries] == ["done", "done", "failed"]
    assert (report.entries[2].kind, report.entries[2].attempts) == ("FileNotFoundError", 1)


def test_nothing_to_do_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    for src in (tmp_path / "in", tmp_path / "*.tif", []):
        with pytest.raises(SpecError, match="there is no image"):
            batch(src, tmp_path / "out")
    with pytest.raises(SpecError, match="convert\\(\\)"):
        batch(np.zeros((3, 3)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------- tables


def test_a_table_with_options_for_each_row(tmp_path):
    one = image(tmp_path / "in" / "a.tif", 1, (2, 3, 40, 50))
    two = image(tmp_path / "in" / "b.tif", 2)
    (tmp_path / "jobs.csv").write_text(
        "src,dst,channels,compression,pyramid\n"
        "in/a.tif,out/first.ome.tif,2,zstd,\n"
        "in/b.tif,out,,,false\n"
    )
    report = batch(tmp_path / "jobs.csv", tile_size=32)
    assert report.done == 2, report.entries
    with tifffile.TiffFile(tmp_path / "out" / "first.ome.tif") as tif:
        assert np.array_equal(np.squeeze(tif.asarray()), one[1])
        assert tif.pages[0].compression.name == "ZSTD"
        assert tif.pages[0].tilewidth == 32
    assert same(tmp_path / "out" / "b.ome.zarr", two)
    assert len(lines(tmp_path / "report.jsonl")) == 2


@pytest.mark.parametrize("sign", [";", "\t"])
def test_other_separators(tmp_path, sign):
    image(tmp_path / "a.tif")
    name = "jobs.tsv" if sign == "\t" else "jobs.csv"
    text = sign.join(["src", "tile_size"]) + "\n" + sign.join(["a.tif", "32x48"]) + "\n\n"
    (tmp_path / name).write_text("\ufeff" + text)
    report = batch(tmp_path / name, tmp_path / "out", ext="tif", report=None)
    assert report.ok
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as tif:
        assert (tif.pages[0].tilelength, tif.pages[0].tilewidth) == (32, 48)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("src,compresion\na.tif,zstd\n", "row 1: column 'compresion'.*'compression'"),
        ("source,dst\na.tif,b\n", "no column 'src'"),
        ("src,dst\na.tif,b\n,c\n", "row 3: column 'src' is empty"),
        ("src,level\na.tif,\na.tif,high\n", "row 3, column 'level': 'high'"),
        ("src,overwrite\na.tif,maybe\n", "row 2, column 'overwrite': 'maybe'"),
        ("src,level\na.tif,1,2\n", "row 2: there are more cells"),
        ("src,src\na.tif,b\n", "two columns 'src'"),
        ("src\n", "has no jobs"),
        ("src\na.tif\n", "row 2: column 'dst'"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_before_anything_starts(tmp_path, text, message):
    image(tmp_path / "a.tif")
    (tmp_path / "jobs.csv").write_text(text)
    with pytest.raises(SpecError, match=message):
        batch(tmp_path / "jobs.csv", None if "'dst'" in message else tmp_path / "out")
    assert names(tmp_path) == ["a.tif", "jobs.csv"]


# ------------------------------------------------------------------------------ stack and split


def test_a_pattern_stacks_what_differs_in_the_axes_named(tmp_path):
    data = {
        (r, t, c): image(tmp_path / "in" / f"img_r{r:03}_t{t}_c{c}.tif", 100 * r + 10 * t + c)
        for r in (1, 12)
        for t in range(3)
        for c in range(2)
    }
    image(tmp_path / "in" / "other.tif")
    pattern = "img_r{r:ddd}_t{t:d}_c{c:d}.tif"
    report = batch(tmp_path / "in", tmp_path / "out", pattern=pattern, stack="c,t")
    assert report.done == len(report.entries) == 2, report.entries
    for r in (1, 12):
        want = np.stack([np.stack([data[r, t, c] for c in range(2)]) for t in range(3)])
        assert same(tmp_path / "out" / f"img_r{r:03}.ome.zarr", want)
    named = batch(
        tmp_path / "in" / pattern, tmp_path / "o2", stack="t", name="site{r}-{c}", ext=".ome.tif"
    )
    assert named.done == 4
    found = tifffile.imread(tmp_path / "o2" / "site12-1.ome.tif")
    assert np.array_equal(found, np.stack([data[12, t, 1] for t in range(3)]))


def test_a_pattern_without_stack_gives_names(tmp_path):
    data = {n: image(tmp_path / "in" / f"img_t{n:02}.tif", n) for n in (3, 10)}
    batch(tmp_path / "in" / "img_t{t:dd}.tif", tmp_path / "out", name="frame{t:04d}")
    assert names(tmp_path / "out")[:2] == ["frame0003.ome.zarr", "frame0010.ome.zarr"]
    assert same(tmp_path / "out" / "frame0010.ome.zarr", data[10])


def test_axes_may_be_called_by_their_names(tmp_path):
    data = [image(tmp_path / "in" / f"a_{name}.tif", n) for n, name in enumerate(("DAPI", "GFP"))]
    report = batch(tmp_path / "in" / "a_{channel:c+}.tif", tmp_path / "out", stack="c")
    assert report.done == 1, report.entries
    assert same(tmp_path / "out" / "a.ome.zarr", np.stack(data))


def test_a_hole_in_a_stack_fails_that_one(tmp_path):
    for r, t, c in [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (2, 0, 1)]:
        image(tmp_path / "in" / f"r{r}_t{t}_c{c}.tif", shape=(20, 20))
    src = tmp_path / "in" / "r{r:d}_t{t:d}_c{c:d}.tif"
    report = batch(src, tmp_path / "out", stack="t,c")
    assert [e.status for e in report.entries] == ["failed", "done"]
    assert batch(src, tmp_path / "o2", stack="t,c", fill=0).done == 2


def test_split_names_and_pixels(tmp_path):
    data = image(tmp_path / "in" / "base.ome.tif", 5, (2, 3, 4, 20, 30))
    report = batch(tmp_path / "in", tmp_path / "out", split="t,c,z,series")
    (entry,) = report.entries
    assert (entry.status, len(entry.targets)) == ("done", 24)
    for t in range(2):
        for c in range(3):
            for z in range(4):
                path = tmp_path / "out" / f"base_c{c}_t{t}_z{z}.ome.tif"
                assert str(path) in entry.targets
                assert np.array_equal(tifffile.imread(path), data[t, c, z])


def test_split_by_a_template_of_a_selection(tmp_path):
    data = image(tmp_path / "in" / "a{1}.ome.tif", 5, (2, 3, 20, 30))
    options = {"split": "c", "name": "{name}-{c:02d}", "select": "z=1:3", "ext": ".ome.zarr"}
    report = batch(tmp_path / "in", tmp_path / "out", **options)
    assert report.done == 1, report.entries
    assert names(tmp_path / "out") == ["a{1}-00.ome.zarr", "a{1}-01.ome.zarr", "report.jsonl"]
    assert same(tmp_path / "out" / "a{1}-01.ome.zarr", data[1, 1:3])
    again = batch(tmp_path / "in", tmp_path / "out", **options)
    assert again.entries[0].kind == "TargetExistsError"
    assert batch(tmp_path / "in", tmp_path / "out", **options, exists="skip").skipped == 1


def test_split_of_series(tmp_path):
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as writer:
        data = [np.full((20, 30 + n), n, "u1") for n in range(2)]
        for pixels in data:
            writer.write(pixels, metadata={"axes": "YX"}, photometric="minisblack")
    reports = split(tmp_path / "two.ome.tif", tmp_path / "out")
    assert [Path(r.target).name for r in reports] == [
        "two_c0_t0_z0_s0.ome.tif",
        "two_c0_t0_z0_s1.ome.tif",
    ]
    for report, pixels in zip(reports, data, strict=True):
        assert np.array_equal(tifffile.imread(report.target), pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "c,t", "name": "{name}_{c}"}, "no field {t}"),
        ({"split": "c,x"}, "each of c, t, z, series"),
        ({"split": "c", "stack": "t"}, "give one"),
        ({"stack": "t"}, "needs a file pattern"),
        ({"pattern": "a{n:d}.tif", "stack": "t"}, "no field 't'"),
        ({"pattern": "b{n:d}.tif"}, "that fits the pattern"),
        ({"name": "{nome}"}, "{nome} is not known"),
        ({"name": "{name"}, "name="),
        ({"ext": ".nonsense"}, "end it with one of"),
        ({"depth": 0}, "depth=0"),
        ({"retries": -1}, "retries=-1"),
        ({"exists": "maybe"}, "exists='maybe'"),
        ({"name": "same"}, "would both become"),
        ({"levels": 0}, "levels=0"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_starts(tmp_path, options, message):
    image(tmp_path / "in" / "a1.tif")
    image(tmp_path / "in" / "a2.tif")
    with pytest.raises(ValueError, match=message):
        batch(tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_no_source_is_written_over(tmp_path):
    image(tmp_path / "a.ome.tif")
    image(tmp_path / "b.tif")
    (tmp_path / "b").mkdir()
    before = (tmp_path / "a.ome.tif").read_bytes()
    with pytest.raises(SpecError, match="the source itself"):
        batch([tmp_path / "a.ome.tif"], tmp_path, ext=".ome.tif", exists="replace")
    (tmp_path / "jobs.csv").write_text("src,dst\nb.tif,a.ome.tif\na.ome.tif,c.ome.tif\n")
    with pytest.raises(SpecError, match="a source, too"):
        batch(tmp_path / "jobs.csv", exists="replace")
    (tmp_path / "jobs.csv").write_text("src,dst\nb.tif,c.zarr\na.ome.tif,c.zarr/x.zarr\n")
    with pytest.raises(SpecError, match="another result"):
        batch(tmp_path / "jobs.csv", exists="replace")
    assert (tmp_path / "a.ome.tif").read_bytes() == before


def test_an_unknown_keyword_is_a_type_error(tmp_path):
    with pytest.raises(TypeError, match="did you mean 'compression'"):
        batch(tmp_path, tmp_path / "out", compresion="zstd")


# -------------------------------------------------------------------------- going on, trying again


def test_a_second_run_does_what_is_missing_only(tmp_path):
    for n in range(4):
        image(tmp_path / "in" / f"a{n}.tif", n)
    assert batch(tmp_path / "in" / "a[01].tif", tmp_path / "out").done == 2
    before = (tmp_path / "out" / "a0.ome.zarr" / "zarr.json").stat().st_mtime_ns
    again = batch(tmp_path / "in", tmp_path / "out", exists="skip")
    assert [e.status for e in again.entries] == ["skipped", "skipped", "done", "done"]
    assert (tmp_path / "out" / "a0.ome.zarr" / "zarr.json").stat().st_mtime_ns == before
    assert len(lines(tmp_path / "out" / "report.jsonl")) == 6
    third = batch(tmp_path / "in", tmp_path / "out")
    assert {e.kind for e in third.entries} == {"TargetExistsError"}


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(OSError(5, "flaky"), 3), (BackendError("flaky"), 3), (DamagedFileError("broken"), 1)],
)
def test_only_what_may_pass_is_tried_again(tmp_path, monkeypatch, error, attempts):
    image(tmp_path / "a.tif")
    tried = []

    def fail(job, tell):
        tried.append(job.source)
        raise error

    monkeypatch.setattr(batch_run, "_done", fail)
    report = batch([tmp_path / "a.tif"], tmp_path / "out", retries=2, processes=0)
    assert (len(tried), report.entries[0].attempts) == (attempts, attempts)
    assert report.entries[0].error in ("flaky", "broken")


KILLER = """
import os, signal
from pathlib import Path
from bioio_tk.jobs.batch.run import run_job as real

def run_job(job, tell=None):
    mark = Path(job.source + ".tried")
    if job.source.endswith("1.tif") and not mark.exists():
        mark.touch()
        Path(job.target + ".partial").write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    return real(job, tell)
"""


@pytest.mark.parametrize("retries", [0, 1])
def test_a_worker_that_dies_fails_one_job_and_leaves_nothing(tmp_path, monkeypatch, retries):
    (tmp_path / "killer_for_test.py").write_text(KILLER)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("killer_for_test", None)
    import killer_for_test

    monkeypatch.setattr(batch_run, "run_job", killer_for_test.run_job)
    data = [image(tmp_path / "in" / f"a{n}.tif", n) for n in range(3)]
    report = batch(
        tmp_path / "in" / "*.tif", tmp_path / "out", ext=".tif", processes=1, retries=retries
    )
    entry = report.entries[1]
    assert [report.entries[n].status for n in (0, 2)] == ["done", "done"]
    if retries:
        assert (entry.status, entry.attempts) == ("done", 2)
        assert np.array_equal(tifffile.imread(tmp_path / "out" / "a1.tif"), data[1])
    else:
        assert entry.status == "failed"
        assert "SIGKILL" in entry.error
    assert not list((tmp_path / "out").glob("*.partial"))


def test_what_a_dead_worker_leaves_of_a_split_image_is_found(tmp_path):
    job = Job(0, "a", "b", split=("c",), template=str(tmp_path / "a[1]_c{c:02d}_s{s}.tif"))
    for name in ("a[1]_c00.tif.partial", "a[1]_c01_s1.tif.partial", "b_c00.tif.partial"):
        (tmp_path / name).write_bytes(b"half")
    found = batch_run._unfinished(job)
    assert sorted(path.name for path in found) == ["a[1]_c00.tif", "a[1]_c01_s1.tif"]


def test_on_a_cluster_what_a_dead_worker_has_begun_is_begun_anew(tmp_path, monkeypatch):
    data = [image(tmp_path / "in" / f"a{n}.tif", n) for n in range(2)]
    tried = []

    def map_jobs(client, func, tasks):
        """Stand in for a cluster: the first task dies once, and leaves a half-written file."""
        for task in tasks:
            tried.append(client)
            if len(tried) == 1:
                (tmp_path / "out").mkdir(exist_ok=True)
                Path(task[0].target + ".partial").write_bytes(b"half of it")
                yield task, None, BackendError("the worker died")
            else:
                yield task, func(pickle.loads(pickle.dumps(task))), None

    monkeypatch.setattr("bioio_tk.jobs.cluster.map_jobs", map_jobs)
    for retries in (0, 1):
        tried.clear()
        if retries:
            shutil.rmtree(tmp_path / "out")
        report = batch(
            tmp_path / "in", tmp_path / "out", ext="tif", client="tcp://x:1", retries=retries
        )
        assert [e.attempts for e in report.entries] == [1 + retries, 1]
        assert report.failed == 1 - retries
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "a0.tif"), data[0])
    assert tried == ["tcp://x:1"] * 3


def test_a_leftover_of_someone_else_stays(tmp_path, monkeypatch):
    (tmp_path / "killer_for_test.py").write_text(KILLER.replace('.write_bytes(b"half of it")', ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("killer_for_test", None)
    import killer_for_test

    monkeypatch.setattr(batch_run, "run_job", killer_for_test.run_job)
    image(tmp_path / "in" / "a1.tif")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a1.tif.partial").write_bytes(b"of another program")
    report = batch(tmp_path / "in", tmp_path / "out", ext=".tif", processes=1)
    assert report.failed == 1
    assert (tmp_path / "out" / "a1.tif.partial").read_bytes() == b"of another program"


def test_a_line_that_a_crash_has_cut_does_not_spoil_the_next(tmp_path):
    image(tmp_path / "in" / "a.tif")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.jsonl").write_text('{"source": "x"}\n{"sour')
    batch(tmp_path / "in", tmp_path / "out")
    found = (tmp_path / "out" / "report.jsonl").read_text().split("\n")
    assert found[:2] == ['{"source": "x"}', '{"sour']
    assert json.loads(found[2])["status"] == "done"
    assert found[3:] == [""]


def test_the_report_is_there_while_it_runs(tmp_path):
    for n in range(3):
        image(tmp_path / "in" / f"a{n}.tif", n)
    seen = []

    def look(state):
        if state.ended is not None:
            seen.append([line["source"] for line in lines(tmp_path / "r" / "log.jsonl")])
            assert seen[-1][-1] == state.ended.source

    report = batch(
        tmp_path / "in", tmp_path / "out", report=tmp_path / "r" / "log.jsonl", progress=look
    )
    assert [len(sources) for sources in seen] == [1, 2, 3]
    assert report.to_json().count('"done"') == 1 + 3
    line = lines(tmp_path / "r" / "log.jsonl")[0]
    source = Path(line["source"])
    assert line["bytes_in"] == source.stat().st_size
    assert (line["status"], line["attempts"], line["pixel_bytes"]) == ("done", 1, 4000)


def test_a_dry_run_writes_nothing(tmp_path):
    image(tmp_path / "in" / "a.tif", shape=(2, 20, 30), axes="CYX")
    (tmp_path / "in" / "bad.tif").write_bytes(b"bad")
    for options in ({}, {"split": "c"}):
        report = batch(tmp_path / "in", tmp_path / "out", dry_run=True, **options)
        assert [e.status for e in report.entries] == ["planned", "failed"]
        assert report.entries[0].target.startswith(str(tmp_path / "out" / "a"))
    assert names(tmp_path) == ["in"]


def test_progress_grows_to_the_end_and_what_it_raises_ends_the_batch(tmp_path):
    for n in range(3):
        image(tmp_path / "in" / f"a{n}.tif", n)
    states = []
    batch(tmp_path / "in", tmp_path / "out", progress=states.append)
    last = states[-1]
    assert (last.files_done, last.files, last.bytes_done) == (3, 3, last.bytes_total)
    assert last.bytes_total == sum(p.stat().st_size for p in (tmp_path / "in").iterdir())

    def stop(state):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        batch(tmp_path / "in", tmp_path / "o2", progress=stop)
    assert not list((tmp_path / "o2").glob("*.partial"))


# ------------------------------------------------------------------------------------- processes


def test_processes_give_the_same_files_as_threads(tmp_path):
    data = {f"a{n}": image(tmp_path / "in" / f"a{n}.tif", n, (3, 70, 50)) for n in range(4)}
    (tmp_path / "in" / "bad.tif").write_bytes(b"bad")
    report = batch(tmp_path / "in", tmp_path / "out", processes=2, metadata={"dz": 2.0})
    assert (report.done, report.failed) == (4, 1)
    assert all(same(tmp_path / "out" / f"{name}.ome.zarr", pixels) for name, pixels in data.items())


def test_an_option_that_cannot_be_sent_stays_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_run, "_WORTH", 0)
    image(tmp_path / "in" / "a.tif")
    assert batch(tmp_path / "in", tmp_path / "out", metadata={"f": lambda: None}).entries
    with pytest.raises(SpecError, match="processes=0"):
        batch(tmp_path / "in", tmp_path / "o2", processes=1, metadata={"f": lambda: None})


SCRIPT = """
from bioio_tk import batch
report = batch({src!r}, {dst!r}, processes=2)
open({mark!r}, "a").write(f"{{report.done}} ")
"""


@pytest.mark.parametrize("way", ["script", "-c"])
def test_a_script_without_a_main_guard_runs_once(tmp_path, way):
    for n in range(3):
        image(tmp_path / "in" / f"a{n}.tif", n)
    code = SCRIPT.format(
        src=str(tmp_path / "in"), dst=str(tmp_path / "out"), mark=str(tmp_path / "mark")
    )
    (tmp_path / "script.py").write_text(code)
    args = ["-c", code] if way == "-c" else [str(tmp_path / "script.py")]
    done = subprocess.run([sys.executable, *args], env=ENV, check=False, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "mark").read_text() == "3 "


def jobs(count, size, **more):
    return [Job(n, f"s{n}", f"t{n}", size=size, **more) for n in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
@pytest.mark.parametrize("processes", [None, 0, 3])
def test_never_more_threads_than_asked_for(workers, processes):
    mixed = jobs(500, 1 << 20) + jobs(3, 1 << 32) + jobs(9, 1 << 20, java=True)
    mixed = [Job(n, "s", "t", size=job.size, java=job.java) for n, job in enumerate(mixed)]
    found = batch_run.lanes(mixed, workers, processes)
    assert sorted(job.number for lane in found for job in lane.jobs) == list(range(512))
    for lane in found:
        assert lane.at_once * lane.threads <= max(workers, processes or 0)
        if processes is None and lane.jobs[0].java:
            assert lane.at_once <= 2
        if processes is None and lane.jobs[0].size >= 1 << 32:
            assert lane.threads >= workers // 2
    if processes is None:
        assert len(found) == 3
        assert found[-1].at_once == workers
        assert all(lane.apart for lane in found)


def test_few_small_files_start_no_process():
    assert [lane.apart for lane in batch_run.lanes(jobs(5, 1 << 20), 4, None)] == [False]


def test_memory_is_shared_by_what_is_in_work(tmp_path, monkeypatch):
    seen = []

    def note(job, tell):
        seen.append(job.options["memory"])
        return BatchEntry(job.source, job.target, "done")

    monkeypatch.setattr(batch_run, "_done", note)
    for n in range(4):
        image(tmp_path / "in" / f"a{n}.tif", n)
    batch(tmp_path / "in", tmp_path / "out", processes=0, workers=2, memory=64 << 20)
    assert seen == [32 << 20] * 4


# ----------------------------------------------------------------------------------- command line


def run(*args):
    return CliRunner().invoke(command, [str(a) for a in args], standalone_mode=False)


def cli(*args, **more):
    return subprocess.run(
        [*CLI, *map(str, args)],
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **more,
    )


def test_the_exit_code_says_whether_all_went_well(tmp_path):
    data = image(tmp_path / "in" / "a.tif")
    done = cli(tmp_path / "in", tmp_path / "out", "--ext", ".ome.tif", "--compression", "none")
    assert (done.returncode, done.stderr.count("done:")) == (0, 1), done.stderr
    assert "1 image: 1 converted" in done.stdout
    with tifffile.TiffFile(tmp_path / "out" / "a.ome.tif") as tif:
        assert np.array_equal(tif.asarray(), data)
        assert tif.pages[0].compression == 1
    (tmp_path / "in" / "bad.tif").write_bytes(b"bad")
    again = ("--ext", ".ome.tif", "--compression", "none", "--exists", "skip", "--json")
    done = cli(tmp_path / "in", tmp_path / "out", *again)
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    said = json.loads(done.stdout)
    assert (said["done"], said["failed"], said["skipped"]) == (0, 1, 1)
    assert "bad.tif" in said["entries"][1]["error"]
    quiet = cli(tmp_path / "in", tmp_path / "o2", "--quiet")
    assert (quiet.returncode, quiet.stdout) == (1, "")
    assert quiet.stderr.count("bad.tif") >= 1
    assert cli(tmp_path / "none", tmp_path / "o3").returncode == 1
    assert cli(tmp_path / "in").returncode == 2


def test_every_option_is_a_keyword_of_the_same_name():
    keywords = {
        name
        for function in (batch, convert)
        for name, option in inspect.signature(function).parameters.items()
        if option.kind == option.KEYWORD_ONLY
    }
    options = {p.name: p for p in command.params if isinstance(p, click.Option)}
    ours = {"quiet", "as_json"}
    assert set(options) - ours <= keywords
    own = set(inspect.signature(batch).parameters) - {"src", "dst", "options", "progress"}
    assert own <= set(options)
    for name, option in options.items():
        spelled = f"--{name.replace('_', '-')}"
        assert name in ours or spelled in option.opts, spelled


def test_options_reach_the_conversion(tmp_path):
    data = image(tmp_path / "in" / "a_1.tif", shape=(2, 3, 20, 30))
    done = run(
        *(tmp_path / "in", tmp_path / "out", "--pattern", "a_{n:d}.tif", "--name", "{n}-{number}"),
        *("--select", "c=1", "--planes", "2:3", "--retries", 2, "--processes", 0, "--workers", 1),
        *("--report", "none", "--no-pyramid", "--quiet"),
    )
    assert done.exit_code == 0, done.exception or done.output
    assert names(tmp_path / "out") == ["1-0.ome.zarr"]
    assert same(tmp_path / "out" / "1-0.ome.zarr", data[1, 1:3])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_batch_leaves_nothing_unfinished(tmp_path, number, code):
    data = image(tmp_path / "a.tif", 1, (300, 400), compression="zlib")
    (tmp_path / "in").mkdir()
    many = 2000  # more than can be done until the signal arrives, however late that is
    for n in range(many):
        os.link(tmp_path / "a.tif", tmp_path / "in" / f"a{n:04}.tif")
    out = tmp_path / "out"
    child = subprocess.Popen(
        [*CLI, str(tmp_path / "in"), str(out), "--processes", "2"],
        env=ENV,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            if (out / "report.jsonl").exists() and (out / "report.jsonl").stat().st_size:
                break
            time.sleep(0.01)
        child.send_signal(number)
        _, said = child.communicate(timeout=40)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == code
    assert "--exists skip" in said
    made = {p.name for p in out.iterdir()} - {"report.jsonl"}
    assert 0 < len(made) < many
    assert not [name for name in made if not name.endswith(".ome.zarr")]
    assert all(same(out / name, data) for name in sorted(made)[:2])
    told = {Path(line["target"]).name for line in lines(out / "report.jsonl")}
    assert told <= made
    # complete, but the answer did not come any more, or was not looked at
    assert all(same(out / name, data) for name in made - told)


# ------------------------------------------------------------------------------------------- bars


def state(**more):
    given = {
        "files": 20,
        "files_done": 7,
        "files_failed": 1,
        "bytes_done": 35_000_000,
        "bytes_total": 100_000_000,
        "running": (("/data/plate 1/A01.czi", 0.5), ("/data/b.tif", 0.0)),
    }
    return BatchProgress(**{**given, **more})


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_bars_fit_the_terminal(columns):
    drawn = Bars(stream=io.StringIO()).picture(state(), 10.0, columns)
    assert len(drawn) == 3
    assert all(len(line) < columns for line in drawn)
    if columns == 200:
        assert "35%  7/20 files, 1 failed, 35.0 MB  3.5 MB/s  19 s left" in drawn[0]
        assert "A01.czi" in drawn[1]
        assert "50%" in drawn[1]


def test_many_running_files_are_counted():
    many = tuple((f"{n}.tif", 0.1) for n in range(30))
    drawn = Bars(stream=io.StringIO()).picture(state(running=many), 1.0, 80)
    assert (len(drawn), drawn[-1]) == (10, "and 22 more")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_only_failures_are_lines(monkeypatch):
    stream = Terminal()
    with Bars(stream=stream) as bars:
        bars._began -= 10
        bars._last -= 10
        bars(state())
        bars(state(ended=BatchEntry("a.tif", "a.zarr", "done")))
        bars(state(ended=BatchEntry("b.tif", "b.zarr", "failed", error="no image")))
    text = stream.getvalue()
    assert "failed: b.tif: no image" in text
    assert "a.zarr" not in text
    assert text.endswith(("\x1b[3F\x1b[J", "no image\n"))


def test_elsewhere_every_file_is_a_line_and_quiet_is_quiet():
    stream = io.StringIO()
    with Bars(stream=stream) as bars:
        bars(state())
        bars(state(ended=BatchEntry("a.tif", "a.zarr", "done", seconds=0.25)))
    assert stream.getvalue() == "[7/20] done: a.zarr (0.2 s)\n"
    stream = Terminal()
    with Bars(quiet=True, stream=stream) as bars:
        bars._began -= 10
        bars(state(ended=BatchEntry("b.tif", "b.zarr", "failed", error="no image")))
    assert stream.getvalue() == ""


# ------------------------------------------------------------------------------------- real files


def gray_images():
    """Yield real files of one gray image, with its pixels along T, C, Z, Y, X by tifffile."""
    for path in sorted((DATA / "gen" / "tifffile").glob("[cdlo]*_*.tif")):
        try:
            with tifffile.TiffFile(path) as tif:
                series = tif.series
                axes = series[0].axes
                gray = len(series) == 1 and series[0].dtype.kind in "u" and "S" not in axes
                if not gray or set(axes) - set("TCZYX") or path.stat().st_size < 1000:
                    continue
                pixels = series[0].asarray()
        except Exception:  # the truth cannot be read of this one
            continue
        order = [axes.index(axis) for axis in "TCZYX" if axis in axes]
        yield path, np.squeeze(pixels.transpose(order))


@pytest.mark.skipif(not (DATA / "MANIFEST.json").exists(), reason="the shared data are not there")
def test_twenty_real_files_two_of_them_corrupt(tmp_path):
    chosen = dict(itertools.islice(gray_images(), 20))
    assert len(chosen) == 20
    source = tmp_path / "in"
    source.mkdir()
    for path in chosen:
        (source / path.name).write_bytes(path.read_bytes())
    cut, broken = (source / list(chosen)[n].name for n in (3, 11))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 3])
    broken.write_bytes(b"\0" * 64 + broken.read_bytes()[64:])
    done = cli(source, tmp_path / "out", "--processes", "2")
    assert done.returncode == 1, done.stderr
    report = {Path(line["source"]).name: line for line in lines(tmp_path / "out" / "report.jsonl")}
    assert len(report) == 20
    failed = {name for name, line in report.items() if line["status"] == "failed"}
    assert failed == {cut.name, broken.name}
    assert all(report[name]["error"] for name in failed)
    for path, want in chosen.items():
        line = report[path.name]
        if path.name in failed:
            assert not Path(line["target"]).exists()
            continue
        found = np.squeeze(level0(line["target"]))
        assert found.dtype == want.dtype
        assert np.array_equal(found, want), path.name
