"""The journal of a stream: what is in it at every byte, who holds it, and what it costs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import zlib

import pytest

from bioio_tk.core.frames import UNBOUNDED, FrameRoute
from bioio_tk.engine import record as records
from bioio_tk.errors import (
    ClosedError,
    DamagedFileError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
)
from bioio_tk.stream import journal as journals
from bioio_tk.stream.journal import StreamJournal, find_target, load, running

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
ABOUT = {"settings": {"dtype": "uint16"}, "created": "2026-11-21T12:00:00+00:00"}


def said(number):
    return {"delta_t": number / 10, "text": f"Größe {number}\n,][{{"}


def said_json(number):
    return json.dumps(said(number), ensure_ascii=number % 2 == 0).encode()


def left(journal):
    """Let go of a journal as a kill does; return where it is."""
    journal.close()
    return journal.path


def lines_of(path):
    """Return the whole lines of a journal, read by other means."""
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        if line[:8].lower() != b"%08x" % zlib.crc32(line[9:]):
            break
        found.append(json.loads(line[9:]))
    return found


@contextlib.contextmanager
def child(code, *args):
    """Run Python code until it says 'ready', and for as long as the block lasts."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    with subprocess.Popen(
        command, env=ENV, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            watchdog.cancel()
            process.kill()


HOLDS = """
    import sys
    from pathlib import Path
    from bioio_tk.stream.journal import StreamJournal
    journal = StreamJournal(Path(sys.argv[1]), {"settings": {}})
    journal.frames(0, 3)
    print("ready", flush=True)
    sys.stdin.readline()
"""


# ------------------------------------------------------------------ what is in it


def test_what_is_entered_is_read(tmp_path):
    target = tmp_path / "a.ome.tiff"
    journal = StreamJournal(target, ABOUT)
    journal.frames(0, 2)
    journal.frames(2, 5, [said_json(2), None, said_json(4)])
    journal.note("lab", {"microscope": "old", "n": [1, 2]})
    journal.skipped(5, 8)
    journal.frames(8, 9, [None])
    journal.note("lab", {"microscope": "new"})
    journal.frames(9, 10, [said_json(9)])
    found = journal.contents()
    assert found.about == ABOUT
    assert found.frames == 10
    assert found.skipped == (range(5, 8),)
    assert [found.was_skipped(n) for n in range(10)] == [5 <= n < 8 for n in range(10)]
    assert found.notes == {"lab": {"microscope": "new"}}
    assert list(found.metadata()) == [(n, said(n)) for n in (2, 4, 9)]
    assert not found.restarted
    assert found.certain == 10
    assert journal.path == tmp_path / "a.ome.tiff.journal"
    assert journal.nbytes == journal.path.stat().st_size
    head, *rest = lines_of(journal.path)
    assert head["about"] == ABOUT
    assert rest[0] == ["f", 0, 2]
    assert rest[1][:3] == ["f", 2, 5]
    assert rest[1][4:] == [said(2), None, said(4)]
    found.close()
    journal.remove()
    assert not list(tmp_path.iterdir())


def test_frames_count_up_to_the_first_that_is_missing(tmp_path):
    journal = StreamJournal(tmp_path / "a.ome.zarr", ABOUT)
    found = journal.contents()
    seen = []
    journal.skipped(7, 9)  # before the frames in front of them are stored
    for start, stop in [(0, 3), (5, 6), (3, 5), (6, 7), (9, 10)]:
        journal.frames(start, stop, [said_json(n) for n in range(start, stop)])
        assert found.refresh()
        seen.append((found.frames, found.skipped))
        assert all(n < found.frames for n, _ in found.metadata())
    assert seen == [(3, ()), (3, ()), (6, ()), (9, (range(7, 9),)), (10, (range(7, 9),))]
    assert not found.refresh()
    assert found.restarted is False


def test_documents_may_be_printed_over_several_lines(tmp_path):
    journal = StreamJournal(tmp_path / "a.ome.zarr", ABOUT)
    journal.frames(0, 2, [json.dumps(said(n), indent=2).encode() for n in range(2)])
    journal.frames(2, 3, [said_json(2)])
    with contextlib.closing(journal.contents()) as found:
        assert list(found.metadata()) == [(n, said(n)) for n in range(3)]


def test_an_empty_document_is_not_none(tmp_path):
    journal = StreamJournal(tmp_path / "a.ome.zarr", ABOUT)
    journal.frames(0, 3, [b"{}", b"null", b'{"a": null}'])
    with contextlib.closing(journal.contents()) as found:
        assert list(found.metadata()) == [(0, {}), (2, {"a": None})]


def test_documents_for_other_frames_are_refused(tmp_path):
    journal = StreamJournal(tmp_path / "a.ome.zarr", ABOUT)
    with pytest.raises(SpecError, match="1 documents for 2 frames"):
        journal.frames(0, 2, [b"{}"])
    assert journal.contents().frames == 0


def small(target):
    journal = StreamJournal(target, {"settings": {}})
    journal.frames(0, 2, [said_json(0), None])
    journal.skipped(2, 3)
    journal.note("lab", {"a": 1})
    journal.frames(3, 4, [said_json(3)])
    return left(journal)


def expected(lines):
    """What whole lines say, counted by hand."""
    frames, skips, notes, documents = 0, (), {}, []
    for item in lines[1:]:
        if item[0] == "n":
            notes[item[1]] = item[2]
            continue
        frames = item[2]
        if item[0] == "s":
            skips = (range(item[1], item[2]),)
        elif len(item) > 3:
            documents += [(n, d) for n, d in enumerate(item[4:], item[1]) if d is not None]
    return frames, skips, notes, documents


def test_a_journal_cut_off_at_any_byte_holds_up_to_there(tmp_path):
    target = tmp_path / "a.ome.tiff"
    path = small(target)
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for size in range(len(data)):
        path.write_bytes(data[:size])
        if size < first:
            with pytest.raises(DamagedFileError, match=r"cannot be read.*'a\.ome\.tiff'"):
                load(target)
            continue
        found = load(target)
        seen = found.frames, found.skipped, found.notes, list(found.metadata())
        assert seen == expected(lines_of(path)), size
        found.close()


def test_a_journal_with_a_wrong_byte_holds_up_to_there(tmp_path):
    target = tmp_path / "a.ome.tiff"
    path = small(target)
    data = path.read_bytes()
    for at in range(data.index(b"\n") + 1, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        found = load(target)
        seen = found.frames, found.skipped, found.notes, list(found.metadata())
        assert seen == expected(lines_of(path)), at
        changed = at - data.rfind(b"\n", 0, at) > 9  # not the checksum, which may be in capitals
        assert len(lines_of(path)) == data[:at].count(b"\n") or not changed
        found.close()


def test_a_journal_of_another_version_says_so(tmp_path):
    target = tmp_path / "a.ome.tiff"
    text = json.dumps({"stream": 2, "bioio_tk": "99.1", "about": {}}).encode()
    (tmp_path / "a.ome.tiff.journal").write_bytes(b"%08x %b\n" % (zlib.crc32(text), text))
    with pytest.raises(DamagedFileError, match=r"bioio_tk 99\.1, which is newer"):
        load(target)


def test_no_journal(tmp_path):
    with pytest.raises(FileNotFoundError, match="no acquisition is running there"):
        load(tmp_path / "a.ome.tiff")
    with pytest.raises(FileNotFoundError, match="no acquisition is running there"):
        StreamJournal.adopt(tmp_path / "a.ome.tiff")
    assert not running(tmp_path / "a.ome.tiff")


def test_threads_enter_whole_lines(tmp_path):
    journal = StreamJournal(tmp_path / "a.ome.tiff", ABOUT)

    def enter(first):
        for n in range(first, 800, 4):
            journal.frames(n, n + 1, [said_json(n)])

    threads = [threading.Thread(target=enter, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with contextlib.closing(journal.contents()) as found:
        assert found.frames == 800
        assert dict(found.metadata()) == {n: said(n) for n in range(800)}


# ------------------------------------------------------------------ by position


@pytest.mark.parametrize(
    ("sizes", "axis"),
    [
        ((30,), None),
        ((6, 5), None),
        ((5, 3, 4), 1),
        ((4, 15), 0),
        ((15, 4), 1),
        ((UNBOUNDED, 7), 1),
    ],
)
def test_records_are_those_of_a_plain_loop(tmp_path, sizes, axis):
    route = FrameRoute(sizes, axis)
    positions = 1 if axis is None else sizes[axis]
    random.seed(str(sizes))
    journal = StreamJournal(tmp_path / "a.ome.tiff", ABOUT)
    want = [{"planes": 0, "skipped": set(), "said": []} for _ in range(positions)]
    total, number = min(50, math.prod(sizes)), 0
    while number < total:
        stop = min(total, number + random.choice([1, 1, 2, 5, 9]))
        skip = random.random() < 0.4
        documents = [None if skip or n % 3 == 0 else said_json(n) for n in range(number, stop)]
        if skip:
            journal.skipped(number, stop)
        else:
            journal.frames(number, stop, documents)
        for n in range(number, stop):
            at = dict(zip(range(len(sizes)), route.indices(n), strict=True))
            of = want[0 if axis is None else at[axis]]
            if skip:
                of["skipped"].add(of["planes"])
            elif n % 3:
                of["said"].append((of["planes"], said(n)))
            of["planes"] += 1
        number = stop
    with contextlib.closing(journal.contents()) as found:
        seen = found.records(route)
        visited = [p for p, w in enumerate(want) if w["planes"] > len(w["skipped"])]
        assert [record.position for record in seen] == visited
        for record in seen:
            of = want[record.position]
            assert record.planes == of["planes"]
            assert {n for span in record.skipped for n in span} == of["skipped"]
            assert list(record.metadata()) == of["said"]
            assert list(record.metadata()) == of["said"]
        assert [r.position for r in found.records(route, range(positions))] == [*range(positions)]


def test_documents_can_be_read_after_the_journal_was_removed(tmp_path):
    journal = StreamJournal(tmp_path / "a.ome.tiff", ABOUT)
    journal.frames(0, 2, [said_json(0), said_json(1)])
    found = journal.contents()
    (record,) = found.records(FrameRoute((UNBOUNDED,)))
    journal.remove()
    assert list(record.metadata()) == [(0, said(0)), (1, said(1))]
    assert found.gone
    found.close()


def test_reading_the_documents_takes_no_memory(tmp_path):
    journal = StreamJournal(tmp_path / "a.ome.tiff", ABOUT)
    text = json.dumps({"text": "x" * 2000}).encode()
    for n in range(0, 4000, 8):
        journal.frames(n, n + 8, [text] * 8)
    assert journal.nbytes > 8e6
    with contextlib.closing(journal.contents()) as found:
        tracemalloc.start()
        found_records = found.records(FrameRoute((UNBOUNDED, 400), 1))
        count = sum(1 for record in found_records for _ in record.metadata())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert count == 4000
    assert peak < 1e6


# ------------------------------------------------------------------ who holds it


def test_only_one_stream_in_a_process(tmp_path):
    target = tmp_path / "a.ome.tiff"
    journal = StreamJournal(target, ABOUT)
    journal.frames(0, 1)
    for overwrite in (False, True):
        with pytest.raises(TargetBusyError, match=r"another writer is at work on .*a\.ome\.tiff"):
            StreamJournal(target, ABOUT, overwrite=overwrite)
    with pytest.raises(TargetBusyError):
        StreamJournal.adopt(target)
    assert running(target)
    assert journal.contents().frames == 1
    journal.frames(1, 2)
    assert journal.contents().frames == 2
    journal.remove()
    journal.remove()
    assert not running(target)
    StreamJournal(target, ABOUT).remove()


def test_only_one_stream_of_several_processes(tmp_path):
    target = tmp_path / "a.ome.tiff"
    with child(HOLDS, target) as process:
        assert running(target)
        with pytest.raises(TargetBusyError):
            StreamJournal(target, ABOUT, overwrite=True)
        assert load(target).frames == 3
        process.kill()
        process.wait()
        assert not running(target)
        with pytest.raises(TargetExistsError, match=r"whose 'a\.ome\.tiff' is gone.*overwrite"):
            StreamJournal(target, ABOUT)
        assert load(target).frames == 3
        fresh = StreamJournal(target, ABOUT, overwrite=True)
        assert fresh.contents().frames == 0
        fresh.remove()
    assert not list(tmp_path.iterdir())


def test_the_record_of_a_killed_process_can_be_taken_up(tmp_path):
    target = tmp_path / "a.ome.tiff"
    path = small(target)
    before = path.read_bytes()
    journal = StreamJournal.adopt(target)
    assert running(target)
    assert path.read_bytes() == before
    with pytest.raises(TargetBusyError):
        StreamJournal.adopt(target)
    journal.close()
    assert path.read_bytes() == before
    StreamJournal.adopt(target).remove()
    assert not path.exists()


def test_who_looks_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    path = small(tmp_path / "a.ome.tiff")
    with path.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        waited = []

        def sleep(seconds):
            waited.append(seconds)
            fcntl.flock(looking, fcntl.LOCK_UN)

        monkeypatch.setattr("bioio_tk.stream.journal.time.sleep", sleep)
        StreamJournal.adopt(tmp_path / "a.ome.tiff").close()
    assert len(waited) == 1


def test_a_record_that_is_removed_while_it_is_opened(tmp_path, monkeypatch):
    """The other stream ends between the moment its record is opened and that of the lock."""
    target = tmp_path / "a.ome.tiff"
    real = journals.lock

    def removed_first(fd, path):
        monkeypatch.setattr(journals, "lock", real)
        path.with_name(path.name + ".journal").unlink()
        real(fd, path)

    monkeypatch.setattr(journals, "lock", removed_first)
    journal = StreamJournal(target, ABOUT)
    journal.frames(0, 3)
    assert running(target)
    assert load(target).frames == 3
    journal.close()
    monkeypatch.setattr(journals, "lock", removed_first)
    with pytest.raises(FileNotFoundError):
        StreamJournal.adopt(target)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_neither_keeps_nor_breaks_the_lock(tmp_path):
    code = """
        import os, sys, time
        from pathlib import Path
        from bioio_tk.stream.journal import StreamJournal, running
        target = Path(sys.argv[1])
        journal = StreamJournal(target, {"settings": {}})
        child = os.fork()
        if not child:
            sys.stdin.close()
            time.sleep(60)
            os._exit(0)
        other = os.fork()
        if not other:
            del journal
            os._exit(0)
        assert os.waitpid(other, 0)[1] == 0
        assert running(target)
        journal.frames(0, 5)
        print("ready", flush=True)
        print(child, flush=True)
        sys.stdin.readline()
    """
    target = tmp_path / "a.ome.tiff"
    with child(code, target) as process:
        forked = int(process.stdout.readline())
        try:
            assert running(target)
            assert load(target).frames == 5
            process.kill()
            process.wait()
            os.kill(forked, 0)  # it lives, and has nothing to do with the lock
            assert not running(target)
        finally:
            os.kill(forked, signal.SIGKILL)


def test_a_file_of_somebody_else_stays(tmp_path):
    target = tmp_path / "a.ome.tiff"
    path = tmp_path / "a.ome.tiff.journal"
    for content in (b"my notes\n", b"0" * 500, b'{"stream": 1}\n'):
        path.write_bytes(content)
        for overwrite in (False, True):
            with pytest.raises(TargetExistsError, match="in the way"):
                StreamJournal(target, ABOUT, overwrite=overwrite)
        assert path.read_bytes() == content
        assert find_target(target) is None


def test_a_journal_that_cannot_be_read_is_not_replaced(tmp_path):
    target = tmp_path / "a.ome.tiff"
    path = small(target)
    data = path.read_bytes()
    path.write_bytes(data[:30] + b"?" + data[31:])
    with pytest.raises(TargetExistsError, match=r"whose 'a\.ome\.tiff' is gone: remove it"):
        StreamJournal(target, ABOUT)
    target.touch()
    with pytest.raises(TargetExistsError, match="recover"):
        StreamJournal(target, ABOUT)
    StreamJournal(target, ABOUT, overwrite=True).remove()


def test_an_empty_or_torn_first_line_is_nobodys(tmp_path):
    target = tmp_path / "a.ome.tiff"
    path = small(target)
    first = path.read_bytes().split(b"\n")[0]
    for content in (b"", first[:20], first):
        path.write_bytes(content)
        journal = StreamJournal(target, ABOUT)
        assert journal.contents().about == ABOUT
        journal.close()


def test_the_working_folder_may_change(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    journal = StreamJournal(Path("a.ome.tiff"), ABOUT)
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    journal.frames(0, 4)
    assert journal.contents().frames == 4
    journal.remove()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_closed(tmp_path):
    journal = StreamJournal(tmp_path / "a.ome.tiff", ABOUT)
    journal.close()
    journal.close()
    with pytest.raises(ClosedError):
        journal.frames(0, 1)


def test_find_target(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    StreamJournal(folder, ABOUT).close()
    (folder / "run_p000.ome.tiff").touch()
    for given in ("run", "run.journal", "run.ome.tiff", "run.OME.TIF", "run/run_p000.ome.tiff"):
        assert find_target(tmp_path / given) == folder, given
    for given in ("other", "ru", "run/b/c", "run.ome.png"):
        assert find_target(tmp_path / given) is None, given


# ------------------------------------------------------------------ disks and machines


def test_a_full_disk_leaves_whole_lines_and_more_can_follow(tmp_path):
    code = """
        import resource, sys
        from pathlib import Path
        from bioio_tk.stream.journal import StreamJournal
        journal = StreamJournal(Path(sys.argv[1]), {"settings": {}})
        journal.frames(0, 1, [b'{"n": 0}'])
        full = journal.nbytes + 500
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
        for k in range(2):
            try:
                journal.frames(1, 2, [b'{"n": "%b"}' % (b"x" * 1000)])
            except OSError as exc:
                print("refused" if journal.nbytes == journal.path.stat().st_size else "torn")
        journal.frames(1, 2, [b'{"n": 1}'])
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        journal.frames(2, 3, [b'{"n": 2}'])
    """
    pytest.importorskip("resource")
    target = tmp_path / "a.ome.tiff"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(target)],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\nrefused\n", "")
    with contextlib.closing(load(target)) as found:
        assert list(found.metadata()) == [(n, {"n": n}) for n in range(3)]


def test_a_line_that_cannot_be_cut_off_at_once_is_cut_off_later(tmp_path, monkeypatch):
    journal = StreamJournal(tmp_path / "a.ome.tiff", ABOUT)
    journal.frames(0, 1)
    write = os.write

    def half(fd, data):
        if len(data) > 10:
            write(fd, data[:10])
        raise OSError(28, "no space left")

    def never(fd, size):
        raise OSError(5, "no such luck")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", half)
        broken.setattr(os, "ftruncate", never)
        with pytest.raises(OSError, match="no space"):
            journal.frames(1, 2)
        with pytest.raises(OSError, match="luck"):
            journal.frames(1, 2)
    assert load(journal.target).frames == 1
    found = journal.contents()
    journal.frames(1, 2)
    assert found.refresh()
    assert found.frames == 2
    assert len(lines_of(journal.path)) == 3
    found.close()


def test_a_reader_sees_what_replaced_a_torn_line(tmp_path):
    journal = StreamJournal(tmp_path / "a.ome.tiff", ABOUT)
    journal.frames(0, 1)
    found = journal.contents()
    size = journal.nbytes
    with journal.path.open("ab") as file:
        file.write(b"0123abcd [torn")
    assert not found.refresh()
    os.truncate(journal.path, size)
    journal.frames(1, 3)
    assert found.refresh()
    assert found.frames == 3
    assert not found.replaced
    left(journal)
    StreamJournal(journal.target, ABOUT, overwrite=True).close()
    assert found.replaced
    found.close()


def test_after_a_restart_of_the_machine_it_is_known_what_is_certain(tmp_path, monkeypatch):
    class AtOnce:
        def __init__(self, folder):
            pass

        def begin(self, then):
            then()

    monkeypatch.setattr(records, "Flusher", AtOnce)
    monkeypatch.setattr("bioio_tk.stream.journal.boot", lambda: "before")
    target = tmp_path / "a.ome.tiff"
    journal = StreamJournal(target, ABOUT)
    journal.frames(0, 4)
    monkeypatch.setattr(records, "_SYNC_EVERY", 0.0)
    journal.frames(4, 6)
    monkeypatch.setattr(records, "_SYNC_EVERY", 1000.0)
    journal.frames(6, 9)
    left(journal)
    found = load(target)
    assert (found.frames, found.certain, found.restarted) == (9, 9, False)
    monkeypatch.setattr("bioio_tk.stream.journal.boot", lambda: "after")
    found = load(target)
    assert (found.frames, found.certain, found.restarted) == (9, 6, True)
    assert lines_of(journal.path)[3] == {"synced": 0} | lines_of(journal.path)[3]
