"""Target: a file grows beside its place, is held against others, and moves there when whole."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from bioio_tk.errors import TargetBusyError, TargetExistsError
from bioio_tk.target import Target, move_new, partial_path


@pytest.fixture
def place(tmp_path):
    return tmp_path / "image.ome.tif"


def begun(place, text=b"new", **more):
    target = Target(place, **({"overwrite": False} | more))
    target.open()
    target.partial.write_bytes(text)
    return target


def names(place):
    return sorted(p.name for p in place.parent.iterdir())


def test_nothing_exists_before_open_and_a_partial_file_after_it(place):
    target = Target(place, overwrite=False)
    assert names(place) == []
    target.open()
    assert names(place) == ["image.ome.tif.partial"]
    assert partial_path(place) == target.partial
    target.abort()
    assert names(place) == []


def test_commit_puts_the_file_in_its_place(place):
    begun(place).commit()
    assert names(place) == ["image.ome.tif"]
    assert place.read_bytes() == b"new"


def test_commit_replaces_only_where_it_was_asked_to(place):
    target = begun(place)
    place.write_bytes(b"of somebody else")
    with pytest.raises(TargetExistsError, match="has come into being meanwhile"):
        target.commit()
    assert place.read_bytes() == b"of somebody else"
    assert target.partial.read_bytes() == b"new"
    target.leave()
    replacing = begun(place, overwrite=True)
    replacing.commit()
    assert place.read_bytes() == b"new"


@pytest.mark.parametrize("there", [None, b"old"])
def test_abort_leaves_the_place_as_it_was(place, there):
    if there:
        place.write_bytes(there)
    target = begun(place, overwrite=True)
    target.abort()
    target.abort()
    assert names(place) == (["image.ome.tif"] if there else [])
    assert not there or place.read_bytes() == there


def test_an_abort_before_open_removes_nothing(place):
    partial_path(place).write_bytes(b"left by another")
    target = Target(place, overwrite=True)
    target.abort()
    assert partial_path(place).read_bytes() == b"left by another"


def test_leave_keeps_the_partial_file(place):
    target = begun(place)
    target.leave()
    target.abort()
    assert names(place) == ["image.ome.tif.partial"]


def test_what_an_interrupted_write_left_is_not_thrown_away_unasked(place):
    begun(place).leave()
    with pytest.raises(TargetExistsError, match="recover"):
        Target(place, overwrite=False)
    assert partial_path(place).read_bytes() == b"new"
    target = Target(place, overwrite=True)
    target.open()
    assert partial_path(place).read_bytes() == b""
    target.abort()


def test_what_is_left_between_the_check_and_open_is_not_thrown_away_either(place):
    late = Target(place, overwrite=False)
    begun(place).leave()
    with pytest.raises(TargetExistsError, match="recover"):
        late.open()
    assert partial_path(place).read_bytes() == b"new"


@pytest.mark.parametrize("overwrite", [False, True])
def test_one_writer_at_a_time(place, overwrite):
    late = Target(place, overwrite=overwrite)
    first = begun(place)
    for attempt in (lambda: Target(place, overwrite=overwrite), late.open):
        with pytest.raises(TargetBusyError, match="another writer is at work"):
            attempt()
    assert first.partial.read_bytes() == b"new"
    first.commit()


def test_one_writer_at_a_time_across_processes(place):
    script = """
        import sys
        from pathlib import Path
        from bioio_tk.target import Target

        target = Target(Path(sys.argv[1]), overwrite=True)
        target.open()
        print("open", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout.readline() == "open\n"
        with pytest.raises(TargetBusyError):
            Target(place, overwrite=True)
        child.kill()
    target = Target(place, overwrite=True)  # a dead process holds nothing
    target.open()
    target.abort()


def test_the_next_writer_may_begin_as_soon_as_one_has_ended(place):
    for end in (Target.abort, Target.commit, Target.leave):
        end(begun(place, overwrite=True))
        begun(place, overwrite=True).abort()


def test_who_opened_a_file_that_was_moved_away_meanwhile_starts_no_writing_into_it(
    place, monkeypatch
):
    late = Target(place, overwrite=True)
    first = begun(place)
    real = Target._lock

    def finish_first_then_lock(self, fd):
        first.commit()
        monkeypatch.setattr(Target, "_lock", real)
        real(self, fd)

    monkeypatch.setattr(Target, "_lock", finish_first_then_lock)
    with pytest.raises(TargetBusyError, match="has just finished"):
        late.open()
    assert place.read_bytes() == b"new"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_hold_the_target_after_its_parent_let_go(place):
    target = begun(place)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    try:
        target.leave()
        Target(place, overwrite=True).check()
    finally:
        os.close(write_end)
        os.close(read_end)
        os.waitpid(pid, 0)


def test_move_new_works_without_hard_links_too(place, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    source = place.with_name("a")
    source.write_bytes(b"new")
    move_new(source, place)
    assert names(place) == ["image.ome.tif"]
    source.write_bytes(b"newer")
    with pytest.raises(TargetExistsError):
        move_new(source, place)
    assert (place.read_bytes(), source.read_bytes()) == (b"new", b"newer")
