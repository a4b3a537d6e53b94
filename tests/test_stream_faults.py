"""Streams when something goes wrong: each time in a process of its own, others read what is left.

What `kill -9` leaves is tested in test_stream_recover.py, too.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from test_bdv_stream import ome_of, stacks_in

from bioio_tk import AcquisitionSettings, create_stream
from bioio_tk.api import recover
from bioio_tk.errors import (
    BackendError,
    BioIOWarning,
    OverrunError,
    PixelTypeError,
    RegionError,
    SpecError,
    StreamError,
    TargetBusyError,
    TargetExistsError,
)

SHAPE = (32, 40)
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
FORMATS = {
    "tiff": (".ome.tiff", {}),
    "zarr": (".ome.zarr", {}),
    "shards": (".ome.zarr", {"t": {"chunk_size": 1, "shard_size_chunks": 8}}),
    "zarr-0.4": (".ome.zarr", {"format": {"name": "ome-zarr", "ngff_version": "0.4"}}),
    "scratch": ("", {"format": "scratch"}),
    "bdv": (".xml", {}),
}
PACKED = {
    "tiff-deflate": (".ome.tiff", {"compression": "deflate"}),
    "zarr-zstd": (".ome.zarr", {"compression": "zstd"}),
    "shards-zstd": (".ome.zarr", {"compression": "zstd", **FORMATS["shards"][1]}),
    "zarr-0.4-zstd": (".ome.zarr", {"compression": "zstd", **FORMATS["zarr-0.4"][1]}),
}
CHILD = """
    import json, os, resource, signal, sys, threading, time, warnings
    import numpy as np
    from bioio_tk import AcquisitionSettings, create_stream
    from bioio_tk.errors import BackendError, ClosedError, StreamError

    def coded(number, shape=(32, 40)):
        y, x = np.indices(shape)
        return (number * 317 + y * 29 + x * 3 + 1).astype("u2")

    def opened(settings):
        return create_stream(AcquisitionSettings.model_validate(settings))

    def say(*words):
        os.write(1, (json.dumps(words) + "\\n").encode())

    given = json.loads(sys.argv[1])
"""


def coded(number, shape=SHAPE):
    """Return a frame as the children make it; it has no pixel of 0 at first."""
    y, x = np.indices(shape)
    return (number * 317 + y * 29 + x * 3 + 1).astype("u2")


def target(folder, name):
    return folder / f"{name}{ {**FORMATS, **PACKED}[name][0] }"


def settings_for(path, name, count=None, **options):
    """Return settings as JSON has them."""
    more = dict({**FORMATS, **PACKED}[name][1])
    shape = options.pop("shape", SHAPE)
    dims = [
        {"name": "t", "count": count, "type": "time", **more.pop("t", {})},
        {"name": "y", "count": shape[0], "type": "space"},
        {"name": "x", "count": shape[1], "type": "space"},
    ]
    return {"root_path": str(path), "dimensions": dims, "dtype": "uint16", **more, **options}


def child(code, given, *, code_wanted=0, environment=None):
    """Run code in a process of its own; return what it has said, line by line, and its stderr."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CHILD) + textwrap.dedent(code)]
    done = subprocess.run(
        [*command, json.dumps(given)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    assert done.returncode == code_wanted, (done.returncode, done.stdout, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def planes_in(path):
    """Return the planes, read by others."""
    if path.name.endswith(".ome.tiff"):
        with tifffile.TiffFile(path) as file:
            return np.stack([page.asarray() for page in file.pages])
    if path.name.endswith(".ome.zarr"):
        return zarr.open_group(path, mode="r")["0"][...].reshape(-1, *SHAPE)
    if path.suffix == ".xml":
        found = stacks_in(path)
        nothing = np.zeros((1, *SHAPE), "u2")  # a stack of which all was skipped is not there
        return np.concatenate([found.get((t, 0, 0), nothing) for t in range(max(found)[0] + 1)])
    return np.fromfile(path / "pos_0.dat", "u2").reshape(-1, *SHAPE)


def numbers_in(path):
    """Return what was said of the frames, the number of each, read by others."""
    if path.name.endswith(".ome.tiff"):
        root = ET.fromstring(tifffile.tiffcomment(path).encode())
        return [int(m.text) for m in root.iter(f"{OME}M") if m.get("K") == "n"]
    if path.name.endswith(".ome.zarr"):
        said = zarr.open_group(path, mode="r").attrs["ome_writers"]["frame_metadata"]
        assert [item["storage_index"] for item in said] == [[item["n"]] for item in said]
    elif path.suffix == ".xml":
        root = ET.fromstring(ome_of(path))
        return [int(m.text) for m in root.iter(f"{OME}M") if m.get("K") == "n"]
    else:
        said = map(json.loads, (path / "frame_metadata.jsonl").read_text().splitlines())
    return [item["n"] for item in said]


def check(path, count, *, skipped=(), said=True):
    """Check that exactly the first `count` frames are there, with what was said of them."""
    found = planes_in(path)
    assert len(found) == count
    for number, pixels in enumerate(found):
        want = 0 if number in skipped else coded(number)
        assert (pixels == want).all(), number
    if said:
        assert numbers_in(path) == [n for n in range(count) if n not in skipped]


def check_safe(path, safe):
    """Check that the first `safe` frames are there as they lie, and with metadata after recover."""
    found = planes_in(path)
    assert len(found) >= safe
    for number in range(safe):
        assert (found[number] == coded(number)).all(), number
    report = recover(path)
    assert report.frames >= safe
    found = planes_in(path)
    for number in range(report.frames):
        assert (found[number] == coded(number)).all(), number
    assert numbers_in(path) == list(range(report.frames))
    files = {path.name, path.with_suffix(".h5").name} if path.suffix == ".xml" else {path.name}
    assert {entry.name for entry in path.parent.iterdir()} == files


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FORMATS, *PACKED])
def test_bad_input_takes_no_place(tmp_path, name):
    path = target(tmp_path, name)
    settings = AcquisitionSettings.model_validate(settings_for(path, name, 9))
    buffer = np.zeros(SHAPE, "u2")
    with create_stream(settings) as stream:
        for number in range(6):
            buffer[:] = coded(number)
            given = buffer if number % 2 else np.repeat(buffer, 2, axis=1)[:, ::2]
            stream.append(given, frame_metadata={"n": number})
            buffer[:] = 7
            given[:] = 7
            for wrong in (buffer[:-1], buffer[:1], buffer[None], buffer.T, np.zeros((), "u2")):
                with pytest.raises(SpecError, match=f"frame {number + 1} has the shape"):
                    stream.append(wrong)
            for kind in ("u1", "i2", "f4", "u4", "?"):
                with pytest.raises(PixelTypeError, match=r"it was not taken; give frame\.astype"):
                    stream.append(buffer.astype(kind))
        with pytest.raises(RegionError, match="Cannot skip frames"):
            stream.skip(frames=4)
        with pytest.raises(SpecError, match="frames must be positive, got 0"):
            stream.skip(frames=0)
        stream.skip(frames=1)
        for number in (7, 8):
            stream.append(coded(number), frame_metadata={"n": number})
        for call in (lambda: stream.append(buffer), stream.skip):
            with pytest.raises(RegionError, match="would exceed total of 9 frames"):
                call()
        with pytest.raises(TargetExistsError if os.name == "nt" else TargetBusyError):
            create_stream(settings)
    check(path, 9, skipped=(6,))
    with pytest.raises(TargetExistsError, match=r"choose another name, or pass overwrite=True"):
        create_stream(settings)
    check(path, 9, skipped=(6,))


def test_metadata_of_any_kind(tmp_path):
    class Broken(dict):
        def items(self):
            raise RuntimeError("not today")

    path = tmp_path / "a.ome.zarr"
    endless: list[object] = []
    endless.append(endless)
    deep: dict[str, object] = {}
    for _ in range(3000):
        deep = {"a": deep}
    stream = create_stream(AcquisitionSettings.model_validate(settings_for(path, "zarr")))
    with stream:
        for number, odd in enumerate((endless, deep, object(), {1, object()}, b"\xff")):
            with pytest.warns(BioIOWarning, match="JSON cannot hold"):
                stream.append(coded(number), frame_metadata={"odd": odd, "n": number})
        for wrong, error in (([1], SpecError), ("n", SpecError), (Broken(n=5), RuntimeError)):
            with pytest.raises(error):
                stream.append(coded(5), frame_metadata=wrong)
        stream.append(coded(5), frame_metadata={"n": 5})
    check(path, 6)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("place", ["x" * 300, "file/a", "d/" * 3000 + "a"])
def test_a_place_where_nothing_can_be(tmp_path, name, place):
    (tmp_path / "file").write_bytes(b"of somebody")
    path = tmp_path / f"{place}{FORMATS[name][0]}"
    with pytest.raises(OSError, match=r"too long|Not a directory|is a file, and"):
        create_stream(AcquisitionSettings.model_validate(settings_for(path, name)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"of somebody"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs rights that can be given up")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    """As root, to whom nothing is forbidden, a child becomes somebody else first."""
    code = """
    def go(settings, folder):
        try:
            opened(settings)
        except PermissionError as exc:
            say(folder in str(exc))

    for good, _, _ in given:
        with opened(good) as stream:
            stream.append(coded(0), frame_metadata={"n": 0})
    if os.geteuid() == 0:
        os.setgroups([])
        os.setuid(65534)
    for _, settings, folder in given:
        go(settings, folder)
    """
    given = []
    open_, shut = tmp_path / "open", tmp_path / "shut"
    shut.mkdir()
    for name in FORMATS:
        good = settings_for(target(open_, name), name)
        given.append((good, settings_for(target(shut, name), name), str(shut)))
    shut.chmod(0o555)
    for folder in (shut, *shut.parents):  # to be seen by anybody
        if folder.is_relative_to("/tmp") and folder != Path("/tmp") and os.geteuid() == 0:
            folder.chmod(folder.stat().st_mode | 0o055)
    said, _ = child(code, given)
    assert said == [[True]] * len(FORMATS)
    assert not list(shut.iterdir())


# --- the disk ------------------------------------------------------------------------------------


def test_full_disk(tmp_path):
    """A file may not be longer than so: the one with the pixels, or the journal."""
    code = """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for settings, limit, words in given:
        stream = opened(settings)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        failure = None
        number = 0
        while failure is None and number < 20000:
            if number == 5:
                stream.flush()
            try:
                stream.append(coded(number), frame_metadata={"n": number, "text": "x" * words})
            except StreamError as exc:
                failure = exc
            number += 1
        try:
            stream.append(coded(0))
        except StreamError as exc:
            again = exc is failure
        try:
            stream.close()
            closing = None
        except StreamError as exc:
            closing = exc
        stream.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        say(str(failure), failure.errno, again, str(closing), closing.frames_safe)
    """
    cases = [
        ("tiff", 300_000, 0),
        ("tiff", 100_000, 3000),
        ("tiff-deflate", 60_000, 0),
        ("zarr", 50_000, 3000),
        ("shards", 100_000, 3000),
        ("zarr-0.4-zstd", 50_000, 3000),
        ("scratch", 300_000, 0),
    ]
    paths = [target(tmp_path / str(n), name) for n, (name, _, _) in enumerate(cases)]
    given = [
        (settings_for(path, name), limit, words)
        for path, (name, limit, words) in zip(paths, cases, strict=True)
    ]
    said, _ = child(code, given)
    assert len(said) == len(cases)
    for path, (failure, number, again, closing, safe) in zip(paths, said, strict=True):
        assert number == errno.EFBIG
        assert again
        assert f"the stream into '{path}' has failed: [Errno 27] File too large; the first " in (
            failure
        )
        assert f"the first {safe} of " in closing
        assert safe >= 5
        if path.with_name(f"{path.name}.journal").exists():
            assert f"'bioio-tk recover {path}'" in closing
            check_safe(path, safe)
        else:
            found = planes_in(path)  # what nobody could enter into the journal may be there, too
            assert all((found[n] == coded(n)).all() for n in range(len(found)))
            assert len(found) >= safe
            assert numbers_in(path) == list(range(safe))


def test_what_is_removed_while_it_is_written(tmp_path):
    """Whoever writes to an open file that was removed gets no error from the system."""
    code = """
    import shutil
    for settings, path in given:
        stream = opened(settings)
        for number in range(20):
            stream.append(coded(number))
        stream.flush()
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        try:
            for number in range(20, 40):
                stream.append(coded(number))
        except StreamError:
            pass
        try:
            stream.close()
        except StreamError as exc:
            say(str(exc), exc.frames_safe)
    """
    names = [name for name in FORMATS if name != "bdv"]  # of which the XML is written again
    paths = [target(tmp_path, name) for name in names]
    given = [(settings_for(p, n), str(p)) for p, n in zip(paths, names, strict=True)]
    said, _ = child(code, given)
    assert len(said) == len(names)
    for path, (text, safe) in zip(paths, said, strict=True):
        assert str(path) in text
        assert "the first 0 of " in text
        assert safe == 0


def test_a_file_of_several_that_is_removed(tmp_path):
    code = """
    stream = opened(given[0])
    for number in range(30):
        stream.append(coded(number))
    stream.flush()
    os.unlink(given[1])
    try:
        stream.close()
    except StreamError as exc:
        say(str(exc), exc.frames_safe)
    """
    path = tmp_path / "a.ome.tiff"
    settings = settings_for(path, "tiff")
    position = {"name": "p", "type": "position", "coords": ["one", "two"]}
    settings["dimensions"].insert(1, position)
    gone = tmp_path / "a" / "a_p001.ome.tiff"
    said, _ = child(code, [settings, str(gone)])
    ((text, safe),) = said
    assert f"'{gone}' was removed or moved while it was written" in text
    assert "if it was moved, move it back, and complete its metadata with" in text
    assert safe == 1  # frame 1 is the first of this position
    assert len(planes_in(tmp_path / "a" / "a_p000.ome.tiff")) == 15


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory as Linux counts it")
def test_memory_is_bounded_where_the_disk_is_slow(tmp_path):
    code = """
    from bioio_tk.backends.tiff_stream import GrowingTiff
    from bioio_tk.errors import OverrunError
    store = GrowingTiff.store_tiles

    def slowly(self, tiles):
        time.sleep(0.004 * len(tiles))
        store(self, tiles)

    def memory():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

    GrowingTiff.store_tiles = slowly
    frame = np.arange(512 * 1024, dtype="u2").reshape(512, 1024)
    for settings in given:
        before = most = memory()
        refused = 0
        with opened(settings) as stream:
            for number in range(120):
                frame[0, 0] = number
                try:
                    stream.append(frame)
                except OverrunError:
                    refused += 1
                most = max(most, memory())
        say(most - before, refused, stream.stats.spill_high_water)
    """
    policies = ("raise", "block", "spill")
    paths = [tmp_path / f"{policy}.ome.tiff" for policy in policies]
    given = [
        settings_for(
            path,
            "tiff",
            shape=(512, 1024),
            backpressure=policy,
            max_memory_bytes=8 << 20,
            max_workers=2,
        )
        for path, policy in zip(paths, policies, strict=True)
    ]
    said, _ = child(code, given)
    for path, policy, (grown, refused, spilled) in zip(paths, policies, said, strict=True):
        assert grown < 30 << 20  # of 120 MB
        with tifffile.TiffFile(path) as file:
            numbers = [int(page.asarray()[0, 0]) for page in file.pages]
        if policy == "raise":
            assert refused > 50
            assert numbers == sorted(set(numbers))
            assert len(numbers) == 120 - refused
        else:
            assert refused == 0
            assert numbers == list(range(120))
        assert (spilled > 20) == (policy == "spill")


# --- the process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_killed_while_it_closes(tmp_path, name):
    code = """
    stream = opened(given)
    for number in range(400):
        stream.append(coded(number), frame_metadata={"n": number})
    say(stream.stats.frames_stored)
    stream.close()
    say(400)
    """
    path = target(tmp_path, name)
    command = [sys.executable, "-c", textwrap.dedent(CHILD) + textwrap.dedent(code)]
    chance = random.Random(name)
    with subprocess.Popen(
        [*command, json.dumps(settings_for(path, name))], stdout=subprocess.PIPE, text=True
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        first = process.stdout.readline()
        threading.Event().wait(chance.random() * 0.03)
        process.kill()
        said = [json.loads(line)[0] for line in [first, *process.stdout]]
        watchdog.cancel()
    safe = said[-1]
    if not path.with_name(f"{path.name}.journal").exists():
        check(path, 400)
    elif safe:
        check_safe(path, safe)
    else:
        assert path.exists()


ENDS = {
    "sys.exit": ("sys.exit(3)", 3, 500),
    "an exception": ("1 / 0", 1, 500),
    "SIGTERM": ("signal.raise_signal(signal.SIGTERM)", 4, 500),
    "os._exit": ("os._exit(5)", 5, None),
}


@pytest.mark.parametrize(("how", "name"), list(zip(ENDS, FORMATS, strict=False)))
def test_a_forgotten_stream_at_the_end_of_the_program(tmp_path, how, name):
    end, code_wanted, count = ENDS[how]
    code = f"""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    stream = opened(given)
    for number in range(500):
        stream.append(coded(number), frame_metadata={{"n": number}})
        if number == 100:
            stream.flush()
            say(stream.stats.frames_stored)
    {end}
    """
    path = target(tmp_path, name)
    said, _ = child(code, settings_for(path, name), code_wanted=code_wanted)
    if count is None:
        assert said[0][0] == 101
        check_safe(path, 101)
    else:
        check(path, count)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_exception_in_the_loop(tmp_path):
    code = """
    for settings in given:
        try:
            with opened(settings) as stream:
                for number in range(100):
                    stream.append(coded(number), frame_metadata={"n": number})
                raise KeyError("the stage is stuck")
        except KeyError as exc:
            say(str(exc))
    """
    paths = [target(tmp_path, name) for name in FORMATS]
    said, _ = child(code, [settings_for(p, n) for p, n in zip(paths, FORMATS, strict=True)])
    assert said == [["'the stage is stuck'"]] * len(FORMATS)
    for path in paths:
        check(path, 100)


def test_ctrl_c_at_any_moment_neither_loses_nor_doubles_a_frame(tmp_path):
    code = """
    import random
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    chance = random.Random(4)
    soon = lambda: signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.0006 + 1e-6)
    never = lambda: signal.setitimer(signal.ITIMER_REAL, 0)

    def interrupted(call):
        try:
            try:
                soon()
                call()
            finally:
                never()
        except KeyboardInterrupt:
            return True
        return False

    def give(number):
        if number % 11 == 3:
            stream.skip()
        else:
            stream.append(coded(number), frame_metadata={"n": number})

    for settings in given:
        stream = opened(settings)
        number = hits = 0
        while number < 400:
            before = repr(stream)
            hits += interrupted(lambda: give(number))
            number += repr(stream) != before
        for _ in range(3):
            hits += interrupted(stream.close)
        stream.close()
        say(hits, stream.closed, stream.stats.frames_stored)
    """
    cases = [
        ("tiff", {"max_memory_bytes": 6000}),
        ("zarr", {}),
        ("shards", {"max_memory_bytes": 6000, "backpressure": "spill"}),
    ]
    paths = [target(tmp_path, name) for name, _ in cases]
    given = [settings_for(p, n, **more) for p, (n, more) in zip(paths, cases, strict=True)]
    said, _ = child(code, given)
    skipped = range(3, 400, 11)
    for path, (hits, closed, stored) in zip(paths, said, strict=True):
        assert hits
        assert closed
        assert stored == 400 - len(skipped)
        check(path, 400, skipped=skipped)


def test_a_signal_handler_that_closes(tmp_path):
    """It may come in the middle of `append`, which cannot wait for itself."""
    code = """
    for settings in given:
        stream = opened(settings)
        errors = []

        def close(*_):
            try:
                stream.close()
            except BackendError as exc:
                errors.append(str(exc))
                signal.setitimer(signal.ITIMER_REAL, 0.0007)

        signal.signal(signal.SIGALRM, close)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        number = 0
        while not stream.closed:
            try:
                stream.append(coded(number), frame_metadata={"n": number})
                number += 1
            except ClosedError:
                break
        stream.close()
        say(stream.stats.frames_stored, number, errors[:1])
    """
    paths = [target(tmp_path, name) for name in FORMATS]
    said, _ = child(code, [settings_for(p, n) for p, n in zip(paths, FORMATS, strict=True)])
    for path, (stored, number, errors) in zip(paths, said, strict=True):
        assert stored == number
        assert all("let that raise an exception instead" in text for text in errors)
        check(path, number)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_in_the_middle(tmp_path):
    """The child can do nothing to the stream, and cannot hang on it."""
    code = """
    for settings in given:
        stream = opened(settings)
        for number in range(50):
            stream.append(coded(number), frame_metadata={"n": number})
        pid = os.fork()
        if not pid:
            signal.alarm(20)
            texts = []
            for call in (
                lambda: stream.append(coded(0)),
                stream.frame_buffer,
                stream.skip,
                stream.flush,
                lambda: stream.stats,
                lambda: stream.set_global_metadata("mine", {"a": 1}),
            ):
                try:
                    call()
                except BackendError as exc:
                    texts.append("opened before a fork" in str(exc))
            stream.close()
            say(texts)
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        for number in range(50, 100):
            stream.append(coded(number), frame_metadata={"n": number})
        stream.close()
    """
    paths = [target(tmp_path, name) for name in FORMATS]
    said, _ = child(code, [settings_for(p, n) for p, n in zip(paths, FORMATS, strict=True)])
    assert said == [[[True] * 6]] * len(FORMATS)
    for path in paths:
        check(path, 100)


def test_threads_that_append_while_others_close(tmp_path):
    code = """
    for settings in given:
        stream = opened(settings)
        turn = threading.Lock()
        ends, took = [], []

        def give():
            try:
                while True:
                    with turn:
                        number = len(took)
                        stream.append(coded(number), frame_metadata={"n": number})
                        took.append(number)
            except Exception as exc:
                ends.append(type(exc).__name__)

        givers = [threading.Thread(target=give) for _ in range(3)]
        closers = [threading.Thread(target=stream.close) for _ in range(2)]
        for thread in givers:
            thread.start()
        time.sleep(0.05)
        for thread in closers:
            thread.start()
        for thread in (*givers, *closers):
            thread.join(20)
        say(len(took), ends, stream.stats.frames_stored)
    """
    paths = [target(tmp_path, name) for name in FORMATS]
    said, _ = child(code, [settings_for(p, n) for p, n in zip(paths, FORMATS, strict=True)])
    for path, (took, ends, stored) in zip(paths, said, strict=True):
        assert ends == ["ClosedError"] * 3
        assert took == stored > 0
        check(path, took)


def test_two_processes_and_one_place(tmp_path):
    code = """
    for settings in given:
        for overwrite in (False, True):
            try:
                opened({**settings, "overwrite": overwrite})
            except Exception as exc:
                say(type(exc).__name__)
    """
    paths = [target(tmp_path, name) for name in FORMATS]
    given = [settings_for(p, n) for p, n in zip(paths, FORMATS, strict=True)]
    streams = [create_stream(AcquisitionSettings.model_validate(one)) for one in given]
    for number in range(50):
        for stream in streams:
            stream.append(coded(number), frame_metadata={"n": number})
    said, _ = child(code, given)
    assert said == [["TargetBusyError"]] * 2 * len(FORMATS)
    for stream, path in zip(streams, paths, strict=True):
        stream.append(coded(50), frame_metadata={"n": 50})
        stream.close()
        check(path, 51)


def test_a_system_that_has_no_thread_left(tmp_path, monkeypatch):
    def refused(self):
        raise RuntimeError("can't start new thread")

    path = tmp_path / "a.ome.tiff"
    stream = create_stream(AcquisitionSettings.model_validate(settings_for(path, "tiff")))
    monkeypatch.setattr(threading.Thread, "start", refused)
    stream.append(coded(0))
    with pytest.raises(StreamError, match=r"no thread to give .* the first 0 of 1 frames are safe"):
        stream.append(coded(1))
    with pytest.raises(StreamError, match="no thread to give"):
        stream.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says so")
def test_a_disk_that_fails_late(tmp_path, monkeypatch):
    """The system has taken everything, and learns only later that it cannot be stored."""

    def failing(folder):
        ctypes.set_errno(errno.EIO)
        return False

    def on():
        for number in range(5, 5000):
            stream.append(coded(number), frame_metadata={"n": number})

    path = tmp_path / "a.ome.tiff"
    stream = create_stream(AcquisitionSettings.model_validate(settings_for(path, "tiff")))
    for number in range(5):
        stream.append(coded(number), frame_metadata={"n": number})
    stream.flush()
    monkeypatch.setattr("bioio_tk.engine.flush.flush", failing)
    monkeypatch.setattr("bioio_tk.engine.record._SYNC_EVERY", 0.0)
    monkeypatch.setattr("bioio_tk.stream.recorder._LOOK_EVERY", 0.0)
    with pytest.raises(StreamError, match="Input/output error"):
        on()
    with pytest.raises(StreamError, match="Input/output error") as info:
        stream.close()
    assert info.value.errno == errno.EIO
    assert info.value.frames_safe >= 5
    assert numbers_in(path) == list(range(info.value.frames_safe))
    found = planes_in(path)
    assert all((found[n] == coded(n)).all() for n in range(info.value.frames_safe))


def test_a_refused_frame_may_be_skipped(tmp_path):
    """`backpressure="raise"`: what the caller does about it is on record."""
    path = tmp_path / "a.ome.zarr"
    settings = settings_for(path, "zarr", backpressure="raise", max_memory_bytes=1)
    refused = []
    with create_stream(AcquisitionSettings.model_validate(settings)) as stream:
        for number in range(300):
            try:
                stream.append(coded(number), frame_metadata={"n": number})
            except OverrunError:
                stream.skip()
                refused.append(number)
    assert refused
    check(path, 300, skipped=refused)


def test_a_call_within_a_call_is_refused(tmp_path):
    class Given:
        def __array__(self, dtype=None, copy=None):
            stream.append(coded(1))
            return coded(0)

    path = tmp_path / "a.ome.tiff"
    stream = create_stream(AcquisitionSettings.model_validate(settings_for(path, "tiff")))
    with stream:
        with pytest.raises(BackendError, match="in the middle of another call"):
            stream.append(Given())
        stream.append(coded(0), frame_metadata={"n": 0})
    check(path, 1)
