"""A night in a facility: odd files in a folder, disks that fill up, terminals that are closed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from bioio_tk.api import batch, convert
from bioio_tk.engine import processes
from bioio_tk.errors import BackendError, UnsupportedError
from bioio_tk.jobs import transfer

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX only")


def image(path, seed=0, shape=(40, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(0, 60_000, shape).astype(np.uint16)
    tifffile.imwrite(path, data)
    return data


def level0(path):
    return zarr.open_group(path, mode="r")["0"][:].squeeze()


def by_name(report):
    return {Path(entry.source).name: entry for entry in report.entries}


@POSIX
def test_a_pipe_in_a_folder_is_told_and_not_waited_for(tmp_path):
    data = image(tmp_path / "in" / "a.tif")
    os.mkfifo(tmp_path / "in" / "pipe.tif")
    with pytest.raises(UnsupportedError, match=r"pipe\.tif' is a pipe"):
        convert(tmp_path / "in" / "pipe.tif", tmp_path / "x.ome.tif")
    found = by_name(batch(tmp_path / "in", tmp_path / "out", processes=0))
    assert found["pipe.tif"].error.count("is a pipe") == 1
    assert found["a.tif"].status == "done"
    assert np.array_equal(level0(tmp_path / "out" / "a.ome.zarr"), data)


@POSIX
def test_links_that_lead_back_are_followed_once(tmp_path):
    image(tmp_path / "in" / "a.tif")
    image(tmp_path / "far" / "b.tif", 1)
    (tmp_path / "in" / "loop").symlink_to(".")
    (tmp_path / "in" / "up").symlink_to("..")
    (tmp_path / "in" / "self.tif").symlink_to("self.tif")
    (tmp_path / "in" / "other").symlink_to(tmp_path / "far")
    report = batch(tmp_path / "in", tmp_path / "out", recursive=True, processes=0)
    done = [Path(e.target).relative_to(tmp_path / "out") for e in report.entries if not e.error]
    # up leads to the folder above, which has a way back to where the search began
    assert {Path("a.ome.zarr"), Path("other/b.ome.zarr"), Path("up/far/b.ome.zarr")} == set(done)
    assert "symbolic links" in by_name(report)["self.tif"].error


@POSIX
def test_a_name_that_is_too_long_fails_alone(tmp_path):
    image(tmp_path / "in" / ("L" * 245 + ".tif"))
    image(tmp_path / "in" / "a.tif")
    report = batch(tmp_path / "in", tmp_path / "out", processes=0)
    assert [entry.status for entry in report.entries] == ["failed", "done"]
    assert "name too long" in report.entries[0].error


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are Linux only")
def test_a_name_that_is_no_text_leaves_the_report_readable(tmp_path):
    image(tmp_path / "a.tif")
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"bad\xff.tif")
    (tmp_path / "a.tif").rename(tmp_path / "in" / name)
    image(tmp_path / "in" / "\u00fc.tif")
    assert batch(tmp_path / "in", tmp_path / "out", processes=0).ok
    text = (tmp_path / "out" / "report.jsonl").read_text(encoding="utf-8")
    found = [Path(json.loads(line)["source"]).name for line in text.splitlines()]
    assert sorted(found) == [name, "\u00fc.tif"]
    assert "\u00fc.tif" in text  # what is text stays readable


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    image(tmp_path / "a.tif")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(transfer, "copy", full)
    with pytest.raises(OSError, match=r"o\.ome\.tif") as caught:
        convert(tmp_path / "a.tif", tmp_path / "o.ome.tif")
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_a_source_that_changes_while_it_is_read_is_told(tmp_path):
    image(tmp_path / "a.tif")

    def touch(done, total):
        os.utime(tmp_path / "a.tif", ns=(1, 1))

    report = convert(tmp_path / "a.tif", tmp_path / "o.ome.tif", progress=touch)
    assert [note for note in report.notes if "changed while it was read" in note]
    again = convert(tmp_path / "a.tif", tmp_path / "p.ome.tif")
    assert not [note for note in again.notes if "changed" in note]


@pytest.mark.parametrize("able", [0, 1])
def test_fewer_threads_than_wished_for(monkeypatch, able):
    left = [able]
    start = threading.Thread.start

    def scarce(thread):
        if thread.name.startswith("Thread-") and "_serve" in thread.name:
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    side = processes.Threads(lambda job, _: job * 2, 4)
    if not able:
        with pytest.raises(BackendError, match="no thread can be started"):
            side.__enter__()
        return
    with side:
        for key in range(3):
            side.give(key, key)
        found = [event.value for event in side.events() if event.kind == "done"]
    assert found == [0, 2, 4]


_SLOW = """
import signal, sys, time
ignores = sys.argv[3] == "nohup"  # whatever the shell that runs the tests has said
signal.signal(signal.SIGHUP, signal.SIG_IGN if ignores else signal.SIG_DFL)
from bioio_tk.engine import copy
read = copy.View.read
def slow(*args, **options):
    print("reading", flush=True)
    time.sleep(0.3)
    return read(*args, **options)
copy.View.read = slow
from bioio_tk.cli.main import main
main(["convert", sys.argv[1], sys.argv[2], "--workers", "1", "--tile-size", "16"])
"""


@POSIX
@pytest.mark.parametrize("how", ["plain", "nohup"])
def test_a_terminal_that_is_closed_leaves_nothing(tmp_path, how):
    data = image(tmp_path / "in" / "a.tif", shape=(8, 40, 50))
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "o.ome.zarr"
    child = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(tmp_path / "in" / "a.tif"), str(target), how],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "reading\n"
        child.send_signal(signal.SIGHUP)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
    if how == "nohup":
        assert child.returncode == 0, said
        assert np.array_equal(level0(target), data)
        return
    assert child.returncode == 128 + signal.SIGHUP, said
    assert "nothing unfinished was left" in said
    assert not list((tmp_path / "out").iterdir())
