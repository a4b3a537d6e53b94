"""Worker processes: one job at a time, replaced when they die, gone when nobody wants them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from contextlib import suppress
from pathlib import Path

import pytest

from bioio_tk.engine.processes import Processes, Threads, check_sendable
from bioio_tk.errors import BackendError, SpecError

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
WORK = """
import os, signal, sys, time
from pathlib import Path

def work(job, tell):
    what, value = job
    if what == "double":
        return 2 * value
    if what == "tell":
        time.sleep(0.15)
        tell(1, 2)
        return os.getpid()
    if what == "print":
        print("this must not get into the pipe", flush=True)
        os.write(1, b"nor this")
        return sys.stdin.read()
    if what == "raise":
        raise KeyError(value)
    if what == "die":
        sys.stderr.write("out of luck\\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(7)
    if what == "wait":
        try:
            Path(value).write_text(str(os.getpid()))
            while True:
                time.sleep(0.01)
        finally:
            Path(value + ".tidied").write_text("yes")
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A function that a worker can import, from a path that only this process knows."""
    (tmp_path / "work_for_test.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("work_for_test", None)
    from work_for_test import work

    return work


def ended(side, jobs):
    with side:
        for number, job in enumerate(jobs):
            side.give(number, job)
        return {e.key: e for e in side.events() if e.kind not in ("started", "moved")}


@pytest.mark.parametrize("kind", [Processes, Threads])
def test_every_job_is_done_once(work, kind):
    found = ended(kind(work, 3), [("double", n) for n in range(20)])
    assert {key: event.value for key, event in found.items()} == {n: 2 * n for n in range(20)}


def test_jobs_run_in_other_processes_and_tell_how_far_they_are(work):
    with Processes(work, 2) as side:
        side.give("a", ("tell", None))
        events = list(side.events())
    assert [event.kind for event in events] == ["started", "moved", "done"]
    assert events[1].value == (1, 2)
    assert events[2].value != os.getpid()


def test_what_a_job_prints_or_reads_does_not_disturb_the_pipes(work):
    found = ended(Processes(work, 1), [("print", None), ("double", 4)])
    assert (found[0].value, found[1].value) == ("", 8)


def test_a_worker_that_dies_takes_one_job_with_it_and_is_replaced(work):
    jobs = [("double", 1), ("die", None), ("double", 3), ("exit", None), ("double", 5)]
    found = ended(Processes(work, 1), jobs)
    assert [found[n].kind for n in range(5)] == ["done", "died", "done", "died", "done"]
    assert "SIGKILL" in found[1].value
    assert "out of luck" in found[1].value
    assert "exit code 7" in found[3].value


def test_a_function_that_raises_fails_its_job_only(work):
    found = ended(Processes(work, 1), [("raise", "no such"), ("double", 3)])
    assert found[0].kind == "failed"
    assert "KeyError: 'no such'" in found[0].value
    assert found[1].value == 6


def test_a_job_can_be_given_again_while_others_are_in_work(work):
    with Processes(work, 1) as side:
        side.give("a", ("exit", None))
        kinds = []
        for event in side.events():
            kinds.append(event.kind)
            if event.kind == "died":
                side.give("a", ("double", 2))
    assert kinds == ["started", "died", "started", "done"]


def gone(pid):
    """Wait until a process is gone; a zombie, whose parent will ask for it, is gone."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def wait_for(path, child=None):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return path.read_text()
        assert child is None or child.poll() is None, child.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{path} did not come")


def test_leaving_early_interrupts_what_is_in_work_and_lets_it_tidy_up(work, tmp_path):
    path = tmp_path / "pid"
    pid = 0
    with suppress(KeyboardInterrupt), Processes(work, 1) as side:
        side.give("a", ("wait", str(path)))
        pid = int(wait_for(path))
        raise KeyboardInterrupt
    assert gone(pid)
    assert (tmp_path / "pid.tidied").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_starter_that_is_killed_leaves_no_worker_and_they_tidy_up(work, tmp_path):
    path = tmp_path / "pid"
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from work_for_test import work
        from bioio_tk.engine.processes import Processes
        with Processes(work, 1) as side:
            side.give("a", ("wait", {str(path)!r}))
            list(side.events())
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=ENV, stderr=subprocess.PIPE, text=True
    )
    try:
        pid = int(wait_for(path, child))
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=20)
    finally:
        child.kill()
    assert gone(pid)
    assert (tmp_path / "pid.tidied").exists()


def test_what_cannot_be_sent_is_said_before_anything_starts(work):
    with pytest.raises(SpecError, match="processes=0"):
        check_sendable(lambda: None)
    with pytest.raises(SpecError, match="processes=0"), Processes(work, 1) as side:
        side.give("a", ("double", lambda: None))


def test_a_job_of_a_class_that_only_the_starter_knows_fails_alone(work, monkeypatch):
    monkeypatch.setitem(sys.modules, "only_here", types.ModuleType("only_here"))
    sys.modules["only_here"].Known = type("Known", (), {"__module__": "only_here"})
    jobs = [sys.modules["only_here"].Known(), ("double", 4)]
    found = ended(Processes(work, 1), jobs)
    assert [found[key].kind for key in (0, 1)] == ["failed", "done"]
    assert "only_here" in found[0].value
    assert found[1].value == 8


def test_where_no_worker_can_start_that_is_the_error(work, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(BackendError, match="processes=0"):
        ended(Processes(work, 2), [("double", 1)])


def test_a_worker_that_cannot_import_the_function_is_the_error(work, tmp_path):
    (tmp_path / "work_for_test.py").write_text("raise RuntimeError('not here')")
    with pytest.raises(BackendError, match="not here"):
        ended(Processes(work, 1), [("double", 1)])
