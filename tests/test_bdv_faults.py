"""BigDataViewer datasets when something goes wrong, each time in a process of its own.

What is left is read with h5py, a strict reader of the XML, and only then with ours.
BIOIO_TK_KILLS sets how often processes are killed; 300 for a release.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from bdv_java import loaded, spimdata

import bioio_tk
from bioio_tk import AcquisitionSettings, BioReader, BioWriter, create_stream
from bioio_tk.api import add_pyramid, recover
from bioio_tk.backends import _java_home
from bioio_tk.bdv import BdvEditor, BdvWriter
from bioio_tk.errors import TargetBusyError

h5py = pytest.importorskip("h5py")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed")

KILLS = int(os.environ.get("BIOIO_TK_KILLS", "20"))
SIZE = (6, 40, 44)
LEVELS = ((1, 1, 1), (1, 2, 2), (2, 4, 3))
BLOCK = ((2, 16, 16),)
SETUPS = 4

# One process imports all that is needed, and then makes a child for each job: to begin with that
# takes no time, and hundreds can be killed. A job says what it does, line by line, in JSON.
NURSERY = """
    import faulthandler, json, os, random, resource, signal, sys, threading, time, warnings
    from pathlib import Path
    import h5py
    import numpy as np
    import bioio_tk.backends.bdv_read, bioio_tk.backends.bdv_stream, bioio_tk.backends.bdv_write
    import bioio_tk.bdv.editor, bioio_tk.cli.main, bioio_tk.jobs.bdv_pyramid, bioio_tk.jobs.convert
    from bioio_tk import AcquisitionSettings, BioReader, BioWriter, create_stream
    from bioio_tk.backends._file import RandomFile
    from bioio_tk.backends._bdv_file import BdvFile
    from bioio_tk.bdv import BdvEditor, BdvWriter
    from bioio_tk.core.views import Mipmap, Scheme
    from bioio_tk.engine.pool import Turns
    from bioio_tk.errors import BioIOError, ClosedError, SpecError, StreamError

    SIZE, SETUPS = (6, 40, 44), 4
    LEVELS = ((1, 1, 1), (1, 2, 2), (2, 4, 3))
    BLOCK = ((2, 16, 16),)

    def stack(t, s):
        numbers = np.arange(np.prod(SIZE)).reshape(SIZE) * 2654435761
        return ((numbers + t * 1000003 + s * 7919) >> 7).astype("u2")

    def say(*words):
        os.write(1, (json.dumps(words) + "\\n").encode())

    def at(t, s):
        return {"time": t, "channel": s // 2, "tile": s % 2}

    def opened(path, how, **more):
        levels = LEVELS[:1] if how.get("lazy") else LEVELS
        return BdvWriter(
            path, levels, BLOCK, how["compression"], nchannels=2, ntiles=2,
            max_workers=how.get("workers", 2), times_per_file=how.get("times_per_file", 0),
            setups_per_file=how.get("setups_per_file", 0), **more)

    def put(writer, t, s, way):
        pixels, where = stack(t, s), at(t, s)
        if way == "append_view":
            writer.append_view(pixels, **where)
            return
        writer.append_view(None, SIZE, **where)
        if way == "append_plane":
            for z in range(SIZE[0]):
                writer.append_plane(pixels[z], z, **where)
        else:
            for y in range(0, SIZE[1], 20):
                writer.append_substack(pixels[:, y : y + 20], 0, y, **where)

    def move(writer, t, s, number):
        matrix = np.eye(3, 4)
        matrix[0, 3] = number
        writer.append_affine(matrix, f"moved {number}", **at(t, s))

    def stop_after(kind, name, every):
        # Ctrl-C comes with each so manyth call of a method, when that has done its work
        method, calls = getattr(kind, name), []

        def stopping(self, *given):
            method(self, *given)
            calls.append(name)
            if len(calls) % every == 0:
                signal.raise_signal(signal.SIGINT)

        setattr(kind, name, stopping)

    def job(code, given):
        pid = os.fork()
        if pid:
            _, status = os.waitpid(pid, 0)
            say("ended", os.waitstatus_to_exitcode(status))
            return
        patience = 30 + int(os.environ.get("BIOIO_TK_KILLS", "0"))
        faulthandler.dump_traceback_later(patience, exit=True)  # what hangs says where
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("pid", os.getpid())
        try:
            exec(compile(code, "job", "exec"), {**globals(), "given": given})
        except BaseException:
            import traceback
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say("ready")
    for line in sys.stdin:
        job(*json.loads(line))
"""


class Nursery:
    """Starts jobs, one after the other."""

    def __init__(self, folder):
        self._pid = None
        self._errors = (folder / "stderr").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(NURSERY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(Path(bioio_tk.__file__).parents[1])},
        )
        assert self.line() == ["ready"]

    def line(self):
        text = self._process.stdout.readline()
        assert text, f"the process has ended: {self.errors()}"
        found = json.loads(text)
        if found[0] == "ended":
            self._pid = None
        return found

    def errors(self):
        self._errors.seek(0)
        return self._errors.read().decode()

    def start(self, code, given):
        if self._pid is not None:  # of a test that failed
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self.rest()
        self._errors.truncate(0)
        job = json.dumps((textwrap.dedent(code), given)) + "\n"
        self._process.stdin.write(job.encode())
        self._process.stdin.flush()
        word, pid = self.line()
        assert word == "pid"
        self._pid = pid
        return pid

    def rest(self):
        """Return what a job says until it ends, and how it ended."""
        said = []
        while (line := self.line())[0] != "ended":
            said.append(line)
        return said, line[1]

    def run(self, code, given, wanted=0):
        self.start(code, given)
        said, code = self.rest()
        assert code == wanted, (code, said, self.errors())
        return said

    def killed(self, code, given, steps, delay, number=signal.SIGKILL):
        """Start a job and kill it a moment after it has said so many lines; return all it said."""
        pid = self.start(code, given)
        said = []
        while len(said) < steps:
            said.append(self.line())
            assert said[-1][0] != "ended", (said, self.errors())
        time.sleep(delay)
        os.kill(pid, number)
        rest, code = self.rest()
        assert code == -signal.SIGKILL, (code, said, rest, self.errors())
        return said + rest

    def close(self):
        self._process.kill()
        self._process.communicate(timeout=30)
        self._errors.close()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    found = Nursery(tmp_path_factory.mktemp("nursery"))
    yield found
    found.close()


# ------------------------------------------------------------------ what has to be there


@cache
def stack(t, s):
    if t == 7:  # of which nothing is given
        return np.zeros(SIZE, "u2")
    numbers = np.arange(np.prod(SIZE)).reshape(SIZE) * 2654435761
    return ((numbers + t * 1000003 + s * 7919) >> 7).astype("u2")


@cache
def level(t, s, factor):
    """Return a stack by blocks: their mean, rounded half up."""
    total, count = stack(t, s).astype(np.int64), np.ones(SIZE, np.int64)
    for axis, f in enumerate(factor):
        starts = range(0, SIZE[axis], f)
        total = np.add.reduceat(total, starts, axis)
        count = np.add.reduceat(count, starts, axis)
    return ((2 * total + count) // (2 * count)).astype("u2")


def views_in(path):
    """Return the views in an HDF5 file; each is whole, at every level its setup has."""
    found = set()
    with h5py.File(path, "r", locking=False) as file:
        for name in (name for name in file if name[0] == "t"):
            for setup in file[name]:
                t, s = int(name[1:]), int(setup[1:])
                factors = file[f"{setup}/resolutions"][()][:, ::-1].astype(int)
                for number, factor in enumerate(map(tuple, factors.tolist())):
                    pixels = file[f"{name}/{setup}/{number}/cells"][()].view("u2")
                    assert (pixels == level(t, s, factor)).all(), (t, s, number)
                found.add((t, s))
    return found


def check(xml, done, moved=(), *, more=0):
    """Check that all views of `done` are there, and what they were moved by; return the views.

    As many as `more` may be in the HDF5 file only: they were not said to be there.
    """
    found = spimdata(xml)
    there = views_in(found.file)
    assert set(done) <= found.views <= there
    assert len(there - found.views) <= more
    assert found.missing == set(product(found.times, found.sizes)) - found.views
    for (t, s), names in dict(moved).items():
        steps = [name for name, _ in found.transforms[t, s] if name.startswith("moved")]
        assert steps[-len(names) :] == [f"moved {n}" for n in reversed(names)]
    with BioReader(xml) as reader:
        ours = {(v.time, v.setup) for v in reader.views if not v.missing}
        assert ours == found.views
        assert set(reader.affines) == ours
        series = {v.series for v in reader.views}
        places = {(v.series, v.c, v.t): (v.time, v.setup) for v in reader.views}
    for number in series:
        with BioReader(xml, series=number) as reader:
            pixels = reader.read()  # Y X Z C T
            pixels = pixels.reshape(*reader.shape)
            for (n, c, t), view in places.items():
                if n == number:
                    wanted = stack(*view) if view in ours else np.zeros(SIZE)
                    assert (pixels[..., c, t].transpose(2, 0, 1) == wanted).all(), view
    return found.views


def told(said):
    """Return what a job has done, of the dataset it was at last: (path, views, moves, phase)."""
    path, done, moved, phase = None, [], {}, "begin"
    for word, *rest in said:
        if word == "dataset":
            path, done, moved = Path(rest[0]), [], {}
        elif word == "view":
            done.append(tuple(rest))
        elif word == "moved":
            moved.setdefault(tuple(rest[:2]), []).append(rest[2])
        elif word == "begin":
            phase = rest[0]
    return path, done, moved, phase


# ------------------------------------------------------------------ kill -9

WRITE = """
    # dataset after dataset, all there is to do with one
    folder, how, seed = Path(given["folder"]), given["how"], given["seed"]

    def views_of(writer, s, pick, times):
        for t in times:
            way = pick.choice(["append_view", "append_plane", "append_substack"])
            say("begin", way)
            put(writer, t, s, way)
            say("view", t, s)
            if pick.random() < 0.3:
                for number in range(1, 3):
                    say("begin", "append_affine")
                    move(writer, t, s, number)
                    say("moved", t, s, number)

    def all_of(writer, pick, times):
        setups = [s for s in range(SETUPS) if pick.random() < 0.9] or [0]
        seeds = [random.Random(pick.random()) for _ in setups]
        if how["threads"] == 1:
            for t in times:
                for s in setups:
                    views_of(writer, s, pick, [t])
            return
        threads = [threading.Thread(target=views_of, args=(writer, s, p, times))
                   for s, p in zip(setups, seeds)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for number in range(10**9):
        pick = random.Random(seed + number)
        path = folder / f"{number}.h5"
        say("dataset", str(path))
        say("begin", "create")
        with opened(path, how) as writer:
            all_of(writer, pick, range(pick.randrange(1, 4)))
            say("begin", "write_xml")
            writer.write_xml(camera_name="cam", user_name="somebody")
            if pick.random() < 0.5:
                say("begin", "create_pyramids")
                writer.create_pyramids(LEVELS[1:], BLOCK)
                say("pyramids")
                all_of(writer, pick, [5])
            for s in range(2):  # nothing of these is given: they are 0
                writer.append_view(None, SIZE, **at(7, s))
            say("begin", "close")
        say("closed")
"""
HOWS = [
    {"compression": "gzip", "threads": 1},
    {"compression": "none", "threads": 1},
    {"compression": "gzip", "threads": 4},
    {"compression": "none", "threads": 4, "times_per_file": 2},
    {"compression": "gzip", "threads": 1, "times_per_file": 1, "setups_per_file": 2},
    {"compression": "gzip", "threads": 1, "lazy": True},
    {"compression": "none", "threads": 4, "lazy": True},
]


def go_on(xml, views):
    """Do with a dataset whose writer was killed what an editor does."""
    with BdvEditor(xml) as editor:
        (t, s), *_ = sorted(views)
        view = next(v for v in editor.views if (v.time, v.setup) == (t, s))
        editor.append_affine(np.eye(3, 4), "edited", t, **view.attributes)
        editor.create_pyramids(LEVELS[1:], BLOCK)
    found = spimdata(xml)
    assert found.transforms[t, s][0][0] == "edited"
    assert {len(rows(found.file, setup)) for _, setup in views} == {len(LEVELS)}


def rows(path, setup):
    with h5py.File(path, "r", locking=False) as file:
        return file[f"s{setup:02d}/resolutions"][()]


def test_kill_9_at_any_moment(tmp_path, nursery):
    phases = Counter()
    for kill in range(KILLS):
        how, choose = HOWS[kill % len(HOWS)], random.Random(kill)
        folder = tmp_path / str(kill)
        folder.mkdir()
        given = {"folder": str(folder), "how": how, "seed": kill}
        said = nursery.killed(WRITE, given, choose.randrange(2, 80), choose.random() * 0.006)
        path, done, moved, phase = told(said)
        phases[phase] += 1
        xml = path.with_suffix(".xml")
        if not done and not xml.exists():  # it had just begun
            continue
        views = check(xml, done, moved, more=how["threads"])
        if "lazy" not in how or said[-1][0] == "pyramids":
            assert {len(rows(path, setup)) for _, setup in views} == {len(LEVELS)}
        go_on(xml, views)
        check(xml, done, more=how["threads"])
        if path.stem != "0":  # the one before was closed
            check(path.with_name(f"{int(path.stem) - 1}.xml"), [])
        shutil.rmtree(folder)
    print(dict(phases))


# ------------------------------------------------------------------ Ctrl-C

STORM = """
    # whoever is interrupted here tries the same again
    def interrupt(*_):
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    def again(writer, t, s, way):
        if way == "append_view":
            put(writer, t, s, way)
            return
        try:  # some planes may be there, and are given again
            if (t, s) not in begun:
                writer.append_view(None, SIZE, **at(t, s))
            begun.setdefault((t, s), 0)
            for z in range(begun[t, s], SIZE[0]):
                writer.append_plane(stack(t, s)[z], z, **at(t, s))
                begun[t, s] = z + 1
        except SpecError as exc:
            if "one stack after the other" in str(exc):
                begun.setdefault((t, s), 0)  # there is room for it
            elif "is not there yet" in str(exc):
                begun.pop((t, s))  # it was interrupted with its last plane: all come again
            elif "is complete" in str(exc):
                return
            else:
                raise
            again(writer, t, s, way)

    armed, done, begun = [], set(), {}
    if given.get("every"):  # at the very moment when something was written, or a block locked
        stop_after(RandomFile, "write", given["every"])
        stop_after(Turns, "_enter", given["every"])

    signal.signal(signal.SIGINT, interrupt)
    path = Path(given["folder"]) / "x.h5"
    writer = opened(path, given["how"])
    say("dataset", str(path))
    closed = False
    while not closed:
        try:
            armed.append(True)
            for n in range(24):
                t, s = n // SETUPS, n % SETUPS
                if (t, s) not in done:
                    again(writer, t, s, given["way"])
                    done.add((t, s))
            writer.close()
            closed = True
            armed.clear()
        except KeyboardInterrupt:
            say("interrupted")
            if len(done) == 24:
                closed = True
                writer.close()
    for view in sorted(done):
        say("view", *view)
    say("closed")
"""


def storm(nursery, code, given, choose):
    """Run a job and interrupt it again and again; return what it said."""
    pid = nursery.start(code, given)
    said, over = [], threading.Event()

    def interrupt():
        with suppress(ProcessLookupError):
            while not over.wait(choose.random() * 0.02):
                os.kill(pid, signal.SIGINT)

    said.append(nursery.line())
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        while said[-1][0] not in ("closed", "ended"):
            said.append(nursery.line())
    finally:
        over.set()
        thread.join()
        if said[-1][0] != "ended":
            status = nursery.rest()
    assert said[-1] == ["closed"], (said[-5:], nursery.errors())
    assert status == ([], 0), nursery.errors()
    return said


@pytest.mark.parametrize("number", range(max(3, KILLS // 6)))
def test_ctrl_c_again_and_again(tmp_path, nursery, number):
    how = HOWS[(0, 1, 4)[number // 3 % 3]]
    given = {"folder": str(tmp_path), "how": {**how, "workers": 1 + number % 4}}
    given["way"] = ("append_plane", "append_view", "append_substack")[number % 3]
    said = storm(nursery, STORM, given, random.Random(number))
    path, done, *_ = told(said)
    assert ["interrupted"] in said
    assert len(done) == 24
    assert check(path.with_suffix(".xml"), done) == set(done)


@pytest.mark.parametrize("way", ["append_view", "append_plane"])
@pytest.mark.parametrize("every", [61, 97])
def test_ctrl_c_while_something_is_written(tmp_path, nursery, way, every):
    for number in (1, 3):
        folder = tmp_path / str(number)
        folder.mkdir()
        given = {"folder": str(folder), "how": {**HOWS[number], "workers": 1}, "way": way}
        said = nursery.run(STORM, {**given, "every": every})
        path, done, *_ = told(said)
        assert said.count(["interrupted"]) > 3
        assert check(path.with_suffix(".xml"), done) == set(product(range(6), range(SETUPS)))


TABLES = """
    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    file = BdvFile.create(Path(given["folder"]) / "x.h5")
    stop_after(RandomFile, "write", given["every"])
    for setup in range(60):
        scheme = Scheme(np.dtype("u1"), (Mipmap((1, 1, 1), (1, 8, 8 + setup)),))
        while setup not in file.setups():
            try:
                file.add_setup(setup, scheme)
            except KeyboardInterrupt:
                say("interrupted")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file.close()
"""


@pytest.mark.parametrize("every", [3, 4, 5])
def test_ctrl_c_between_the_file_and_what_is_known_of_it(tmp_path, nursery, every):
    said = nursery.run(TABLES, {"folder": str(tmp_path), "every": every})
    assert said.count(["interrupted"]) > 5
    with h5py.File(tmp_path / "x.h5") as file:
        blocks = [file[f"s{setup:02d}/subdivisions"][()].tolist() for setup in range(60)]
    assert blocks == [[[8 + setup, 8, 1]] for setup in range(60)]


# ------------------------------------------------------------------ two at once

HOLD = """
    path = Path(given["folder"]) / "x.h5"
    writer = opened(path, given["how"])
    say("dataset", str(path))
    n = 0
    while True:
        t, s = n // SETUPS, n % SETUPS
        writer.append_view(stack(t, s), **at(t, s))
        say("view", t, s)
        n += 1
        while n >= given["most"] and not os.path.exists(given["go"]):
            time.sleep(0.002)
        if n >= given["most"]:
            break
    writer.append_view(stack(5, 0), **at(5, 0))
    say("view", 5, 0)
    writer.close()
    say("closed")
"""


def settings_of(xml, **more):
    dims = [
        {"name": "t", "count": 2, "type": "time"},
        {"name": "y", "count": SIZE[1], "type": "space"},
        {"name": "x", "count": SIZE[2], "type": "space"},
    ]
    return AcquisitionSettings.model_validate(
        {"root_path": str(xml), "dimensions": dims, "dtype": "uint16", **more}
    )


def write_stack(xml):
    with BdvWriter(xml, overwrite=True) as writer:
        writer.append_view(stack(0, 0))


def write_image(xml):
    with BioWriter(xml, overwrite=True) as writer:
        writer.shape, writer.dtype = (*SIZE[1:], SIZE[0], 1, 1), np.uint16
        writer[:] = stack(0, 0).transpose(1, 2, 0)


def write_stream(xml):
    with create_stream(settings_of(xml, overwrite=True)) as stream:
        for _ in range(2):
            stream.append(stack(0, 0)[0])


def edit(change):
    def changed(xml):
        with BdvEditor(xml) as editor:
            change(editor)

    return changed


OTHERS = {
    "BdvWriter": write_stack,
    "BioWriter": write_image,
    "stream": write_stream,
    "crop": edit(lambda editor: editor.crop_view(((1, -1), None, None))),
    "pyramids": edit(lambda editor: editor.create_pyramids(LEVELS[1:], BLOCK)),
    "affine": edit(lambda editor: editor.append_affine(np.eye(3, 4), "moved 7")),
    "add_pyramid": lambda xml: add_pyramid(xml, LEVELS[1:]),
}


@pytest.mark.parametrize("times_per_file", [0, 1])
def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(
    tmp_path, nursery, times_per_file
):
    how = {"compression": "gzip", "lazy": True, "times_per_file": times_per_file}
    given = {"folder": str(tmp_path), "how": how, "most": 6, "go": str(tmp_path / "go")}
    pid = nursery.start(HOLD, given)
    said = [nursery.line() for _ in range(7)]
    path, done, *_ = told(said)
    xml = path.with_suffix(".xml")
    for name, other in OTHERS.items():
        with pytest.raises(TargetBusyError, match=r"x\.(h5|xml)"):
            pytest.fail(f"{name}: {other(xml)}")
        assert check(xml, done) == set(done)
    (tmp_path / "go").touch()
    rest, status = nursery.rest()
    assert (rest, status) == ([["view", 5, 0], ["closed"]], 0), nursery.errors()
    (tmp_path / "go").unlink()
    assert check(xml, [*done, (5, 0)]) == {*done, (5, 0)}
    for name, other in OTHERS.items():
        home = tmp_path / name
        home.mkdir()
        given["folder"] = str(home)
        pid = nursery.start(HOLD, given)
        said = [nursery.line() for _ in range(7)]
        os.kill(pid, signal.SIGKILL)
        nursery.rest()
        other(home / "x.xml")


# ------------------------------------------------------------------ kill -9 of those that change

CHANGE = """
    import shutil
    folder, number = Path(given["folder"]), 0
    while True:
        home = folder / str(number)
        home.mkdir()
        for file in Path(given["dataset"]).iterdir():
            shutil.copy(file, home)
        xml = str(home / "x.xml")
        say("dataset", xml)
        if given["what"] == "pyramids":
            with BdvEditor(xml) as editor:
                say("begin", "create_pyramids")
                editor.create_pyramids(LEVELS[1:], BLOCK)
        elif given["what"] == "command":
            levels = [a for f in LEVELS[1:] for a in ("--subsamp", "x".join(map(str, f)))]
            say("begin", "bioio-tk bdv pyramid")
            sys.stdout = open(os.devnull, "w")
            try:
                bioio_tk.cli.main.main(["bdv", "pyramid", xml, *levels])
            except SystemExit as exc:
                assert not exc.code
        elif given["what"] == "affines":
            with BdvEditor(xml) as editor:
                for n in range(1, 9):
                    say("begin", "append_affine")
                    move(editor, 1, 2, n)
                    say("moved", 1, 2, n)
        else:
            raise ValueError(given["what"])
        say("closed")
        number += 1
"""


@pytest.fixture(scope="module")
def java_or_none():
    if _java_home.missing() is not None:
        return None
    from bioio_tk.backends import _java_vm

    java = _java_vm.java()
    try:
        java("hdf.hdf5lib.H5")
    except TypeError:  # a Bio-Formats without HDF5
        return None
    return java


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Make a dataset of two time points without smaller resolutions."""
    home = tmp_path_factory.mktemp("dataset")
    with BdvWriter(home / "x.h5", LEVELS[:1], BLOCK, nchannels=2, ntiles=2) as writer:
        for t, s in product(range(3), range(SETUPS)):
            writer.append_view(stack(t, s), time=t, channel=s // 2, tile=s % 2)
    return home


CROP = """
    # a process that ends when so many stacks are cut, or when all are and the XML knows nothing yet
    import shutil
    import bioio_tk.bdv.editor as module
    folder = Path(given["folder"])
    for file in Path(given["dataset"]).iterdir():
        shutil.copy(file, folder)
    finish, done = module.ViewWriter.finish, []

    def counted(writer):
        if len(done) == given["after"]:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(finish(writer))

    def never(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    module.ViewWriter.finish, module.SpimDocument.save = counted, never
    BdvEditor(folder / "x.xml").crop_view(((4, -4), (0, 30), (1, 5)), channel=0, tile=1)
"""


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_crop_that_is_killed_cuts_all_time_points_or_none(tmp_path, nursery, dataset, after):
    given = {"folder": str(tmp_path), "dataset": str(dataset), "after": after}
    assert nursery.run(CROP, given, -signal.SIGKILL) == []
    with h5py.File(tmp_path / "x.h5") as file:
        for t, s in product(range(3), range(SETUPS)):
            cut = s == 1 and after == 3
            box = (slice(1, 5), slice(30), slice(4, 40)) if cut else ...
            found = file[f"t{t:05d}/s{s:02d}/0/cells"][()].view("u2")
            np.testing.assert_array_equal(found, stack(t, s)[box])
    with BdvEditor(tmp_path / "x.xml") as editor:
        for t, s in product(range(3), range(SETUPS)):
            assert editor.read_view(t, channel=s // 2, tile=s % 2).size


@pytest.mark.parametrize("what", ["pyramids", "command", "affines"])
def test_kill_9_while_a_dataset_is_changed(tmp_path, nursery, dataset, what):
    every = set(product(range(3), range(SETUPS)))
    phases = Counter()
    for kill in range(max(2, KILLS // 10)):
        choose = random.Random(kill)
        folder = tmp_path / str(kill)
        folder.mkdir()
        given = {"folder": str(folder), "dataset": str(dataset), "what": what}
        said = nursery.killed(CHANGE, given, choose.randrange(2, 9), choose.random() * 0.04)
        xml, _, moved, phase = told(said)
        phases[phase if said[-1][0] != "closed" else "closed"] += 1
        assert check(xml, every, moved) == every
        go_on(xml, every)
        assert check(xml, every) == every
        shutil.rmtree(folder)
    print(dict(phases))


# ------------------------------------------------------------------ readers beside a writer

ENDLESS = """
    path = Path(given["folder"]) / "x.h5"
    writer = opened(path, given["how"])
    say("dataset", str(path))
    for n in range(10**9):
        t, s = n // SETUPS, n % SETUPS
        t += t >= 7  # which is another one, see stack()
        writer.append_view(stack(t, s), **at(t, s))
        if n < 8:
            say("view", t, s)
        time.sleep(0.001)
"""


@pytest.mark.parametrize("how", [HOWS[0], HOWS[3]], ids=["one file", "partitions"])
def test_readers_see_finished_views_while_others_come(tmp_path, nursery, how, java_or_none):
    how = {"compression": how["compression"], "times_per_file": how.get("times_per_file", 0)}
    pid = nursery.start(ENDLESS, {"folder": str(tmp_path), "how": how})
    path, done, *_ = told([nursery.line() for _ in range(9)])
    xml = path.with_suffix(".xml")
    most = 0
    for number in range(max(10, KILLS)):
        t, s = done[number % len(done)]
        for locking in ({}, {"locking": False}):
            with h5py.File(path, "r", **locking) as file:
                found = file[f"t{t:05d}/s{s:02d}/1/cells"][()].view("u2")
            assert (found == level(t, s, LEVELS[1])).all()
        with BioReader(xml) as reader:
            view = next(v for v in reader.views if (v.time, v.setup) == (t, s))
            most = max(most, sum(not v.missing for v in reader.views))
        with BioReader(xml, series=view.series) as reader:
            found = reader.read(C=[view.c], T=[view.t]).squeeze()
        assert (found.transpose(2, 0, 1) == stack(t, s)).all()
        if java_or_none is not None:
            with loaded(java_or_none, path) as loader:
                assert (loader.pixels((t, s), 2) == level(t, s, LEVELS[2])).all()
        assert set(done) <= spimdata(xml).views
    assert most > len(done)  # it did go on meanwhile
    os.kill(pid, signal.SIGKILL)
    said, status = nursery.rest()
    assert (said, status) == ([], -signal.SIGKILL), nursery.errors()
    check(xml, done, more=1)


# ------------------------------------------------------------------ the disk

FULL = """
    path = Path(given["folder"]) / "x.h5"
    writer = opened(path, given["how"])
    failed = 0
    for n in range(16):
        t, s = n // SETUPS, n % SETUPS
        if n in (3, 9):
            # what it takes: the file may be longer ahead of time
            size = max(len(file.read_bytes().rstrip(b"\\0")) for file in path.parent.glob("*.h5"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + given["room"], -1))
        while True:
            try:
                put(writer, t, s, given["way"] if n % 2 else "append_view")
                say("view", t, s)
                break
            except OSError as exc:
                say("failed", type(exc).__name__, str(exc), len(writer.views), n)
                resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
                given["way"] = "append_view"
                if (t, s) in [(v.time, v.setup) for v in writer._virtual]:
                    for z in range(SIZE[0]):
                        writer.append_plane(stack(t, s)[z], z, **at(t, s))
                    say("view", t, s)
                    break
    writer.close()
"""


@pytest.mark.parametrize("way", ["append_view", "append_plane"])
@pytest.mark.parametrize("room", [0, 20_000])
def test_a_full_disk_loses_nothing_and_the_writer_goes_on(tmp_path, nursery, way, room):
    for number, how in enumerate((HOWS[0], HOWS[1], HOWS[3])):
        folder = tmp_path / str(number)
        folder.mkdir()
        said = nursery.run(FULL, {"folder": str(folder), "how": how, "room": room, "way": way})
        failures = [rest for word, *rest in said if word == "failed"]
        assert failures, (how, said)
        for name, text, views, n in failures:
            assert name == "OSError"
            assert "File too large" in text
            assert str(folder) in text
            assert views == n
        done = {tuple(rest) for word, *rest in said if word == "view"}
        assert check(folder / "x.xml", done) == done == set(product(range(4), range(SETUPS)))


SHUT = """
    # nothing can be made in the folder any more, but what is open can be written
    path = Path(given["folder"]) / "x.h5"

    def shut(closed):
        if os.getuid() == 0:  # to whom nothing is forbidden: somebody else for a while
            os.seteuid(65534 if closed else 0)
        else:
            path.parent.chmod(0o555 if closed else 0o755)

    writer = opened(path, {"compression": "gzip"})
    for s in range(2):
        put(writer, 0, s, "append_view")
    for call in (lambda: put(writer, 0, 2, "append_view"), lambda: move(writer, 0, 0, 1),
                 lambda: writer.write_xml(camera_name="x")):
        shut(True)
        try:
            call()
        except OSError as exc:
            say("failed", type(exc).__name__, str(exc))
        finally:
            shut(False)
        say("files", sorted(file.name for file in path.parent.iterdir()))
    os.kill(os.getpid(), signal.SIGKILL) if given["kill"] else put(writer, 0, 2, "append_view")
    put(writer, 1, 0, "append_view")
    writer.close()
"""


@pytest.mark.parametrize("kill", [False, True])
def test_an_xml_that_cannot_be_written_stays_as_it_was(tmp_path, nursery, kill):
    given = {"folder": str(tmp_path), "kill": kill}
    said = nursery.run(SHUT, given, -signal.SIGKILL if kill else 0)
    failures = [rest for word, *rest in said if word == "failed"]
    assert len(failures) == 3
    for name, text in failures:
        assert name == "PermissionError"
        assert "x.xml" in text
    assert {tuple(rest[0]) for word, *rest in said if word == "files"} == {("x.h5", "x.xml")}
    wanted = {(0, 0), (0, 1)} if kill else {(0, 0), (0, 1), (0, 2), (1, 0)}
    assert check(tmp_path / "x.xml", wanted, more=1) == wanted


# ------------------------------------------------------------------ the family

FAMILY = """
    folder, what, number = Path(given["folder"]), given["what"], 0
    image = np.stack([[stack(t, s) for s in range(SETUPS)] for t in range(3)])
    image = image.transpose(3, 4, 2, 1, 0)
    if what == "convert":
        with BioWriter(folder / "in.ome.tiff") as writer:
            writer.shape, writer.dtype = image.shape, image.dtype
            writer[:] = image
    while True:
        home = folder / str(number)
        home.mkdir()
        xml = home / "x.xml"
        say("dataset", str(xml))
        if what == "BioWriter":
            with BioWriter(xml) as writer:
                writer.shape, writer.dtype = image.shape, image.dtype
                for t in range(3):
                    writer[..., t : t + 1] = image[..., t : t + 1]
                    say("begin", "BioWriter")
        elif what == "convert":
            say("begin", "convert")
            bioio_tk.jobs.convert.convert(folder / "in.ome.tiff", xml)
        say("whole")
        number += 1
"""


@pytest.mark.parametrize("what", ["BioWriter", "convert"])
def test_a_killed_writer_of_images_leaves_nothing_in_its_place(tmp_path, nursery, what):
    for kill in range(max(2, KILLS // 10)):
        choose = random.Random(kill)
        folder = tmp_path / str(kill)
        folder.mkdir()
        given = {"folder": str(folder), "what": what}
        said = nursery.killed(FAMILY, given, choose.randrange(1, 9), choose.random() * 0.1)
        xml = Path([rest for word, *rest in said if word == "dataset"][-1][0])
        there = {file.name for file in xml.parent.iterdir()}
        if "x.xml" in there or said[-1] == ["whole"]:  # it was put into place, whole
            assert {"x.xml", "x.h5"} <= there
            with BioReader(xml) as reader:
                pixels = reader.read()
            for t, s in product(range(3), range(SETUPS)):
                assert (pixels[..., s, t].transpose(2, 0, 1) == stack(t, s)).all()
        else:  # the HDF5 file goes there first, and the XML, which is what one opens, last
            assert there <= {"x.xml.partial", "x.xml.partial.journal", "x.h5"}, there
        shutil.rmtree(folder)


STREAM = """
    folder, number = Path(given["folder"]), 0
    dims = [{"name": "t", "count": None, "type": "time"}, {"name": "c", "count": 2},
            {"name": "z", "count": SIZE[0], "type": "space"},
            {"name": "y", "count": SIZE[1], "type": "space"},
            {"name": "x", "count": SIZE[2], "type": "space"}]
    dims[1]["type"] = "channel"
    xml = folder / "x.xml"
    say("dataset", str(xml))
    stream = create_stream(AcquisitionSettings.model_validate({
        "root_path": str(xml), "dimensions": dims, "dtype": "uint16", **given["more"]}))
    for n in range(10**9):
        t, s, z = n // (2 * SIZE[0]), n // SIZE[0] % 2, n % SIZE[0]
        stream.append(stack(t + 8 * (t >= 7), s)[z])
        if n % 5 == 0:
            stream.flush()
            say("frames", n + 1)
"""


@pytest.mark.parametrize("more", [{}, {"compression": "gzip"}], ids=["raw", "gzip"])
def test_a_killed_stream_keeps_all_frames_it_was_told_of(tmp_path, nursery, more):
    for kill in range(max(2, KILLS // 10)):
        choose = random.Random(kill)
        folder = tmp_path / str(kill)
        folder.mkdir()
        given = {"folder": str(folder), "more": more}
        said = nursery.killed(STREAM, given, choose.randrange(2, 20), choose.random() * 0.02)
        count = [rest for word, *rest in said if word == "frames"][-1][0]
        xml = folder / "x.xml"
        for whole in (False, True):  # as it lies, and then completed
            with h5py.File(xml.with_suffix(".h5"), "r", locking=False) as file:
                for n in range(count):
                    t, s, z = n // (2 * SIZE[0]), n // SIZE[0] % 2, n % SIZE[0]
                    found = file[f"t{t:05d}/s{s:02d}/0/cells"][z].view("u2")
                    assert (found == stack(t + 8 * (t >= 7), s)[z]).all(), (n, count)
            if not whole:
                assert recover(xml).frames >= count
        spimdata(xml)


# ------------------------------------------------------------------ damage

LOOK = """
    # what a reader and an editor make of a file; whoever hangs or crashes says nothing
    def look(home, views):
        try:
            with BioReader(home / "x.xml") as reader:
                found = reader.views
            for view in found:
                with BioReader(home / "x.xml", series=view.series) as reader:
                    pixels = reader.read(C=[view.c], T=[view.t]).squeeze().transpose(2, 0, 1)
                wanted = 0 if view.missing else stack(view.time, view.setup)
                if not (pixels == wanted).all():
                    return "other pixels"
            with BdvEditor(home / "x.xml") as editor:
                editor.create_pyramids(LEVELS[1:], BLOCK)
                editor.crop_view(((1, -1), None, None))
        except (BioIOError, OSError) as exc:
            return type(exc).__name__
        return "right"

    for home in given["homes"]:
        say("found", look(Path(home), given["views"]))
"""


@pytest.mark.parametrize("name", ["x.h5", "x-00-00.h5", "x.xml"])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_damage_is_an_error_of_ours(tmp_path, nursery, name, how):
    whole = tmp_path / "whole"
    whole.mkdir()
    per_file = 1 if name == "x-00-00.h5" else 0
    with BdvWriter(whole / "x.h5", LEVELS[:1], BLOCK, times_per_file=per_file) as writer:
        for t in range(2):
            writer.append_view(stack(t, 0), time=t)
    size = len((whole / name).read_bytes().rstrip(b"\0"))
    homes = []
    for number in range(12):
        home = tmp_path / str(number)
        shutil.copytree(whole, home)
        data = bytearray((home / name).read_bytes())
        at = number * size // 12 + 17
        data[at] ^= 0xFF
        (home / name).write_bytes(data[:at] if how == "cut" else data)
        os.utime(home / name, (1, 1))  # nobody is writing it, so nobody has to look again
        homes.append(str(home))
    said = nursery.run(LOOK, {"homes": homes, "views": 2})
    found = Counter(word for _, word in said)
    assert sum(found.values()) == len(homes)
    if how == "cut":
        assert set(found) <= {"DamagedFileError", "UnknownFormatError", "FormatError"}
    assert "other pixels" not in found


def test_partitions_that_are_gone(tmp_path, nursery):
    with BdvWriter(tmp_path / "x.h5", LEVELS[:1], BLOCK, times_per_file=1) as writer:
        for t in range(2):
            writer.append_view(stack(t, 0), time=t)
    (tmp_path / "x-01-00.h5").unlink()
    with BioReader(tmp_path / "x.xml") as reader:
        assert (reader.read(T=[0]).squeeze().transpose(2, 0, 1) == stack(0, 0)).all()
        with pytest.raises(FileNotFoundError, match=r"x-01-00\.h5"):
            reader.read(T=[1])
