"""Flushing beside the work: it never waits, and says what is on the disk only when it is."""

import ctypes
import os
import sys
import threading

import pytest

from bioio_tk.engine import flush as flushing
from bioio_tk.engine.flush import Flusher, flush

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="syncfs is of Linux")


def test_a_file_system_is_flushed(tmp_path):
    (tmp_path / "file").write_bytes(b"pixels")
    assert flush(tmp_path)


def test_it_goes_on_beside_the_work_one_time_after_the_other(tmp_path, monkeypatch):
    go_on, said, told = threading.Event(), [], threading.Semaphore(0)

    def slow(folder):
        said.append(folder)
        return go_on.wait(20)

    def then():
        said.append("on the disk")
        told.release()

    monkeypatch.setattr(flushing, "flush", slow)
    flusher = Flusher(tmp_path)
    assert flusher.begin(then)
    assert not flusher.begin(then)  # the first one is still at it
    assert "on the disk" not in said
    go_on.set()
    assert told.acquire(timeout=20)
    for _ in range(1000):  # the thread is about to end
        if flusher.begin(then):
            break
        threading.Event().wait(0.01)
    assert told.acquire(timeout=20)
    assert said == [tmp_path, "on the disk"] * 2


@pytest.mark.parametrize("trouble", ["it says no", "it raises"])
def test_nothing_is_said_of_what_could_not_be_flushed(trouble, tmp_path, monkeypatch):
    ended, said = threading.Event(), []

    def broken(folder):
        ended.set()
        if trouble == "it raises":
            raise OSError("the folder is gone")
        return False

    monkeypatch.setattr(flushing, "flush", broken)
    flusher = Flusher(tmp_path)
    assert flusher.begin(lambda: said.append("on the disk"))
    assert ended.wait(20)
    assert flusher._free.acquire(timeout=20)  # the thread has let go
    assert said == []


def test_sync_waits_for_one_file_system_and_tells_of_its_faults(tmp_path, monkeypatch):
    from bioio_tk.engine import flush as flushing

    asked = []
    monkeypatch.setattr(flushing, "flush", lambda folder: asked.append(folder) or True)
    flushing.sync(tmp_path / "a")
    assert asked == [tmp_path]

    def failed(folder):
        ctypes.set_errno(5)
        return False

    monkeypatch.setattr(flushing, "flush", failed)
    with pytest.raises(OSError, match="Input/output error"):
        flushing.sync(tmp_path / "a")
    monkeypatch.setattr(flushing, "flush", lambda folder: False)
    monkeypatch.setattr(os, "sync", lambda: asked.append("all"))
    flushing.sync(tmp_path / "a")
    assert asked[-1] == "all"
