"""Streams that are killed: every frame that counted as safe is there, with what was said of it."""

from __future__ import annotations

import contextlib
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
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import tifffile
import zarr
from command import run

from bioio_tk import AcquisitionSettings, BioReader, create_stream, watch
from bioio_tk.api import recover
from bioio_tk.errors import (
    ClosedError,
    DamagedFileError,
    RegionError,
    TargetBusyError,
    TargetExistsError,
)
from bioio_tk.meta.ome_absent import absent_planes
from bioio_tk.stream.recover import look

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
SHAPE = (24, 40)
POSITIONS = ("A", "B")
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"

STREAM = """
    import json, os, sys, threading, time
    import numpy as np
    from bioio_tk import AcquisitionSettings, create_stream

    settings, frames, pause, end = json.loads(sys.argv[1])
    y, x = np.indices((24, 40))
    stream = create_stream(AcquisitionSettings.model_validate(settings))
    stream.set_global_metadata("lab", {"operator": "me"})

    def tell():
        while True:
            print(stream.stats.frames_stored, flush=True)
            time.sleep(0.001)

    threading.Thread(target=tell, daemon=True).start()
    for n in range(frames):
        if n % 13 == 7:
            stream.skip()
        else:
            frame = (n * 317 + y * 29 + x * 3 + 1).astype("u2")
            stream.append(frame, frame_metadata={"delta_t": n / 4, "number": n})
        time.sleep(pause)
    if end == "close":
        stream.close()
        print("closed", flush=True)
        os._exit(0)
    stream.flush()
    time.sleep(60)
"""


def coded(number):
    """Return a frame as the child makes it; it has no pixel of 0."""
    y, x = np.indices(SHAPE)
    return (number * 317 + y * 29 + x * 3 + 1).astype("u2")


def skipped(number):
    return number % 13 == 7


def place(number):
    """Return position and plane of a frame, counted by hand: t, p, c."""
    t, rest = divmod(number, 4)
    p, c = divmod(rest, 2)
    return p, 2 * t + c


def settings_for(path, form="auto", t=None, t_options=(), yx=(), **options):
    dims = [
        {"name": "t", "count": t, "type": "time", **dict(t_options)},
        {"name": "p", "type": "position", "coords": list(POSITIONS)},
        {"name": "c", "count": 2, "type": "channel"},
        {"name": "y", "count": SHAPE[0], "type": "space", **dict(yx)},
        {"name": "x", "count": SHAPE[1], "type": "space", **dict(yx)},
    ]
    return {"root_path": str(path), "dimensions": dims, "dtype": "uint16", "format": form} | options


@contextlib.contextmanager
def streaming(settings, frames=2000, pause=0.0, end="wait"):
    """Run a child that streams; it is killed at the end of the block."""
    arguments = json.dumps([settings, frames, pause, end])
    command = [sys.executable, "-c", textwrap.dedent(STREAM), arguments]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as child:
        watchdog = threading.Timer(60, child.kill)
        watchdog.start()
        try:
            yield child
        finally:
            watchdog.cancel()
            child.kill()


def acknowledged(child, count):
    """Wait until `count` frames are safe."""
    for line in child.stdout:
        if line.strip().isdigit() and int(line) >= count:
            return
    raise AssertionError("the child ended before")


def killed(settings, count, delay=0.0, **options):
    """Stream, kill the child when about `count` frames are safe; return the numbers of these."""
    with streaming(settings, **options) as child:
        acknowledged(child, count)
        time.sleep(delay)
        child.kill()
        rest = child.stdout.read().split("\n")[:-1]
        assert child.wait() == -signal.SIGKILL
    stored = int(rest[-1]) if rest else count
    return [n for n in range(10 * stored + 10) if not skipped(n)][:stored]


def planes_in(path, position):
    """Return the planes of a position in the order t, c, read by others; none of one not there."""
    name = POSITIONS[position]
    if path.suffix == ".zarr":
        if not (path / name).exists():
            return np.zeros((0, *SHAPE), "u2")
        return zarr.open_group(path / name, mode="r")["0"][...].reshape(-1, *SHAPE)
    files = sorted(path.glob(f"*_p00{position}.*")) or sorted(path.glob(f"pos_{position}.dat"))
    if not files:
        return np.zeros((0, *SHAPE), "u2")
    if files[0].suffix == ".dat":
        return np.fromfile(files[0], "u2").reshape(-1, *SHAPE)
    with tifffile.TiffFile(files[0]) as file:
        # until it is complete a file knows of itself alone
        series = file.series[position if len(file.series) > 1 else 0]
        assert series.kind == "ome"
        pixels = series.levels[0].asarray().reshape(-1, *SHAPE)
    with tifffile.TiffFile(files[0], is_ome=False) as file:  # there may be one more than it says
        pages = [page.asarray() for page in file.pages[: len(pixels)]]
    np.testing.assert_array_equal(np.stack(pages), pixels)
    return pixels


def check_pixels(path, numbers):
    found = [planes_in(path, position) for position in range(len(POSITIONS))]
    for number in numbers:
        position, plane = place(number)
        np.testing.assert_array_equal(found[position][plane], coded(number), str(number))
    return found


def metadata_in(path, position):
    """Return {plane: (delta_t, number)} as others read it."""
    name = POSITIONS[position]
    if path.suffix == ".zarr":
        said = zarr.open_group(path / name, mode="r").attrs["ome_writers"]["frame_metadata"]
        return {
            2 * i["storage_index"][0] + i["storage_index"][1]: (i["delta_t"], i["number"])
            for i in said
        }
    if list(path.glob("*.dat")):
        lines = (path / "frame_metadata.jsonl").read_text().splitlines()
        said = [item for item in map(json.loads, lines) if item["_pos"] == position]
        return {2 * i["_idx"][0] + i["_idx"][1]: (i["delta_t"], i["number"]) for i in said}
    (file,) = path.glob(f"*_p00{position}.*")
    root = ET.fromstring(tifffile.tiffcomment(file).encode())
    pixels = root.findall(f"{OME}Image/{OME}Pixels")[position]
    values = {
        note.get("ID"): note.find(f"{OME}Value/{OME}M").text
        for note in root.iter(f"{OME}MapAnnotation")
    }
    found = {}
    for plane in pixels.findall(f"{OME}Plane"):
        at = 2 * int(plane.get("TheT")) + int(plane.get("TheC"))
        ref = plane.find(f"{OME}AnnotationRef")
        if plane.get("DeltaT") is not None:
            found[at] = (float(plane.get("DeltaT")), int(values[ref.get("ID")]))
    return found


def check_recovered(path, report, numbers):
    """Check what is there after `recover` against a plain loop over the frames."""
    assert report.finished
    frames = report.frames + report.skipped
    assert frames > max(numbers)
    taken = [n for n in range(frames) if not skipped(n)]
    assert report.skipped == frames - len(taken)
    found = check_pixels(path, taken)
    for position, pixels in enumerate(found):
        own = [n for n in range(frames) if place(n)[0] == position]
        assert len(pixels) >= -(-len(own) // 2) * 2  # whole cycles
        assert len(pixels) == 2 * report.images[position].shape[4]
        for plane in range(len(pixels)):
            number = 4 * (plane // 2) + 2 * position + plane % 2
            # what came after the last safe frame may be there, too, but whole
            late = plane >= len(own) and not pixels[plane].any()
            want = 0 if skipped(number) or late else coded(number)
            assert (pixels[plane] == want).all(), (position, plane)
        want = {place(n)[1]: (n / 4, n) for n in own if not skipped(n)}
        assert metadata_in(path, position) == want
    assert [image.planes for image in report.images] == [
        sum(place(n)[0] == position for n in range(frames)) for position in range(len(POSITIONS))
    ]


CASES = {
    "tiff": (".ome.tiff", {}),
    "tiff-bounded": (".ome.tiff", {"t": 500}),
    "tiff-deflate-tiles": (".ome.tiff", {"compression": "deflate", "yx": {"chunk_size": 16}}),
    "tiff-pyramid": (".ome.tiff", {"pyramid": "live", "pyramid_levels": 2}),
    "zarr": (".ome.zarr", {}),
    "zarr-bounded": (".ome.zarr", {"t": 500, "compression": "zstd"}),
    "zarr-0.4": (".ome.zarr", {"form": {"name": "ome-zarr", "ngff_version": "0.4"}}),
    "zarr-shards": (".ome.zarr", {"t_options": {"chunk_size": 1, "shard_size_chunks": 8}}),
    "zarr-deep": (".ome.zarr", {"t_options": {"chunk_size": 4}, "compression": "blosc-lz4"}),
    "zarr-pyramid": (".ome.zarr", {"pyramid": "after", "pyramid_levels": 2}),
    "scratch": ("", {"form": "scratch"}),
}


def output(tmp_path, suffix):
    return tmp_path / ("run" + ("" if suffix == ".ome.tiff" else suffix))


@pytest.mark.parametrize("case", CASES)
def test_what_was_safe_is_there_after_a_kill(tmp_path, case):
    suffix, options = CASES[case]
    random.seed(case)
    settings = settings_for(tmp_path / f"run{suffix}", **options)
    numbers = killed(settings, random.randrange(20, 300), delay=random.random() / 50)
    path = output(tmp_path, suffix)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, path.name + ".journal"]
    check_pixels(path, numbers)  # as it was left
    look = recover(path, dry_run=True)
    assert (look.finished, look.planned) == (False, 4 * 500 if options.get("t") else None)
    assert (tmp_path / (path.name + ".journal")).exists()
    report = recover(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]
    check_recovered(path, report, numbers)
    assert [image.planes for image in report.images] == [image.planes for image in look.images]
    with pytest.raises(FileNotFoundError, match="nothing to recover"):
        recover(path)
    if "pyramid" in case:
        half = planes_in(path, 0)[-1 if skipped(0) else 0].reshape(12, 2, 20, 2).mean(axis=(1, 3))
        file = path / "A" if suffix == ".ome.zarr" else next(path.glob("*_p000*"))
        with BioReader(file, level=1) as br:
            assert np.abs(br[:, :, 0, 0, 0].reshape(12, 20) - half).max() <= 0.5


def test_the_notes_on_the_acquisition_are_kept(tmp_path):
    path = tmp_path / "run.ome.zarr"
    killed(settings_for(path), 10)
    recover(path)
    assert zarr.open_group(path, mode="r").attrs["lab"] == {"operator": "me"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("suffix", [".ome.tiff", ".ome.zarr", ""])
def test_recover_may_be_killed_itself_and_done_again(tmp_path, suffix):
    """It is killed before the n-th file it opens, renames or removes, for several n."""
    given = tmp_path / "first"
    given.mkdir()
    form = "auto" if suffix else "scratch"
    numbers = killed(settings_for(given / f"run{suffix}", form), 30)
    code = """
        import os, shutil, sys
        import bioio_tk.stream.layout, bioio_tk.stream.settings
        from bioio_tk.api import recover
        from bioio_tk.backends import registry

        for store in ("tiff", "zarr", "scratch"):  # imported once, before the forks
            registry.load_stream_store(store)

        def attempt(path, most):
            child = os.fork()
            if child:
                return os.waitpid(child, 0)[1]
            left = [most]

            def hook(event, args):
                if event in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir"):
                    if str(args[0]).startswith(os.path.dirname(path)):
                        left[0] -= 1
                        if left[0] == 0:
                            os.kill(os.getpid(), 9)
            sys.addaudithook(hook)
            try:
                recover(path)
            except BaseException as exc:
                print(repr(exc), flush=True)
                os._exit(1)
            os._exit(0)

        folder, name, kills = sys.argv[1], sys.argv[2], 0
        most = 4  # the journal is looked for with the first of these
        while True:
            copy = os.path.join(os.path.dirname(folder), f"copy{most}")
            shutil.copytree(folder, copy)
            path = os.path.join(copy, name)
            status = attempt(path, most)
            if status == 0:
                break
            assert status == 9, status
            kills += 1
            assert attempt(path, 1 << 30) == 0, most
            most += 1 if most < 7 else 9
        print(kills)
    """
    path = output(given, suffix)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(given), path.name],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    copies = sorted(tmp_path.glob("copy*"))
    assert int(done.stdout) == len(copies) - 1 >= 3
    report = recover(path)
    for copy in copies:
        assert [p.name for p in copy.iterdir()] == [path.name]
        check_recovered(copy / path.name, report, numbers)


@pytest.mark.parametrize(
    ("case", "kill"), [("tiff-pyramid", 2), ("zarr-pyramid", 9), ("zarr-deep", 4), ("scratch", 3)]
)
def test_it_may_be_killed_while_it_closes(tmp_path, case, kill):
    """It is killed before the n-th file it opens, renames or removes in close()."""
    code = """
        import json, os, sys
        import numpy as np
        from bioio_tk import AcquisitionSettings, create_stream

        settings, kill = json.loads(sys.argv[1])
        y, x = np.indices((24, 40))
        stream = create_stream(AcquisitionSettings.model_validate(settings))
        for n in range(50):
            if n % 13 == 7:
                stream.skip()
            else:
                frame = (n * 317 + y * 29 + x * 3 + 1).astype("u2")
                stream.append(frame, frame_metadata={"delta_t": n / 4, "number": n})
        stream.flush()
        left = [kill]

        def hook(event, args):
            if event in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir"):
                if str(args[0]).startswith(os.path.dirname(settings["root_path"])):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), 9)

        sys.addaudithook(hook)
        stream.close()
    """
    suffix, options = CASES[case]
    settings = settings_for(tmp_path / f"run{suffix}", **options)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), json.dumps([settings, kill])],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    path = output(tmp_path, suffix)
    assert done.stderr == ""
    assert done.returncode == -signal.SIGKILL
    report = recover(path)
    # chunks that are not full are stored in close(), and only then noted
    assert report.frames + report.skipped in ((48, 50) if case == "zarr-deep" else (50,))
    check_recovered(path, report, [n for n in range(40) if not skipped(n)])


@pytest.mark.parametrize("case", ["tiff", "zarr", "scratch"])
def test_of_a_journal_that_lost_its_end_the_beginning_counts(tmp_path, case):
    suffix, options = CASES[case]
    numbers = killed(settings_for(tmp_path / f"run{suffix}", **options), 60)
    path = output(tmp_path, suffix)
    journal = tmp_path / (path.name + ".journal")
    data = journal.read_bytes()
    journal.write_bytes(data[: data.index(b"\n") + (len(data) - data.index(b"\n")) // 2])
    report = recover(path)
    assert 0 < report.frames < len(numbers)
    check_recovered(path, report, numbers[: report.frames])


@pytest.mark.parametrize("pyramid", [{}, {"pyramid": "after", "pyramid_levels": 2}])
def test_planes_that_the_journal_does_not_tell_of_are_not_called_missing(tmp_path, pyramid):
    killed(settings_for(tmp_path / "run.ome.tiff", **pyramid), 60)
    path = output(tmp_path, ".ome.tiff")
    journal = tmp_path / (path.name + ".journal")
    data = journal.read_bytes()
    first = data.index(b"\n")
    journal.write_bytes(data[: first + (len(data) - first) // 2])
    seen = [planes_in(path, position).any(axis=(1, 2)) for position in range(2)]
    report = recover(path)
    late = 0
    for position, image in enumerate(report.images):
        (file,) = path.glob(f"*_p00{position}.*")
        found = planes_in(path, position)
        assert len(found) == 2 * image.shape[4]
        if len(found) < len(seen[position]):  # a time point of which all that came was skipped
            assert len(found) + 2 == len(seen[position])
            assert skipped(4 * image.shape[4] + 2 * position)
            assert not seen[position][-2:].any()
        listed = absent_planes(tifffile.tiffcomment(file))[position].missing
        missing = {plane for gap in listed for plane in gap}
        assert missing.isdisjoint(np.flatnonzero(seen[position]).tolist())
        late += seen[position][image.planes :].sum()
        if pyramid:
            with BioReader(file, level=1, series=position) as br:
                small = np.moveaxis(br.read()[:, :, 0], (2, 3), (1, 0)).reshape(-1, 12, 20)
            half = found.reshape(-1, 12, 2, 20, 2).mean(axis=(2, 4))
            assert np.abs(small - half).max() <= 0.5
    assert late > 2


def test_a_running_acquisition_is_not_recovered(tmp_path):
    path = tmp_path / "run.ome.zarr"
    with streaming(settings_for(path), frames=40) as child:
        acknowledged(child, 10)
        for dry_run in (False, True):
            with pytest.raises(TargetBusyError, match=r"is still running: wait"):
                recover(path, dry_run=dry_run)
        found, said = run("recover", path, code=1)
        assert (found, "still running" in said) == ("", True)
        assert child.poll() is None


def test_another_stream_finds_what_a_killed_one_has_left(tmp_path):
    path = tmp_path / "run.ome.tiff"
    killed(settings_for(path), 10)
    with pytest.raises(TargetExistsError, match="bioio-tk recover"):
        create_stream(AcquisitionSettings.model_validate(settings_for(path)))
    report = recover(tmp_path / "run.journal")
    assert report.finished
    assert planes_in(tmp_path / "run", 0).any()


def test_it_may_have_been_moved(tmp_path):
    first, then = tmp_path / "first", tmp_path / "then"
    first.mkdir()
    numbers = killed(settings_for(first / "run.ome.zarr"), 25)
    first.rename(then)
    with watch(then / "run.ome.zarr") as seen:
        assert seen.state == "interrupted"
        np.testing.assert_array_equal(seen.read(numbers[-1]), coded(numbers[-1]))
    check_recovered(then / "run.ome.zarr", recover(then / "run.ome.zarr"), numbers)
    assert not first.exists()


def test_nothing_safe_nothing_recovered(tmp_path):
    path = tmp_path / "run.ome.zarr"
    numbers = killed(settings_for(path), 5)
    assert numbers
    journal = tmp_path / "run.ome.zarr.journal"
    head = journal.read_bytes().split(b"\n")[0] + b"\n"
    journal.write_bytes(head)
    with pytest.raises(DamagedFileError, match=r"no whole frame.*delete it and 'run\.ome\.zarr\.j"):
        recover(path)
    assert journal.read_bytes() == head
    shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match="put it back beside it"):
        recover(path)
    assert journal.read_bytes() == head
    journal.write_bytes(b"0" + head[1:])
    with pytest.raises(DamagedFileError, match="cannot be read"):
        recover(path)


def test_settings_that_make_no_sense(tmp_path):
    from bioio_tk.stream.journal import StreamJournal

    path = tmp_path / "run.ome.zarr"
    path.mkdir()
    StreamJournal(path, {"settings": {"dimensions": 3}, "created": ""}).close()
    with pytest.raises(DamagedFileError, match="does not say what was recorded"):
        recover(path)
    about = {"settings": settings_for(path), "created": "", "layout": "12345678"}
    StreamJournal(path, about, overwrite=True).close()
    with pytest.raises(DamagedFileError, match="lays such an acquisition out in another way"):
        recover(path)


def test_settings_with_all_there_is_survive(tmp_path):
    """Whatever the settings hold comes back from the journal as it was."""
    well = {"plate_row": "B", "plate_column": "3"}
    dims = [
        {"name": "t", "count": None, "type": "time", "unit": "second", "scale": 0.1},
        {
            "name": "p",
            "type": "position",
            "coords": [{"name": "a", "x_coord": 1 / 3, "y_coord": -7e-9, "z_coord": 5} | well],
        },
        {"name": "cam", "type": "other", "coords": ["left", "right"]},
        {
            "name": "c",
            "type": "channel",
            "coords": [
                {"name": "DAPI", "color": "#ff8000", "excitation_wavelength_nm": 405},
                {"name": "GFP", "color": (0, 255, 0, 0.5), "fluorophore": "EGFP"},
            ],
        },
        {"name": "z", "type": "space", "coords": [0.0, 0.7, 1.4], "unit": "nm"},
        {"name": "y", "count": 24, "type": "space", "scale": 0.325, "chunk_size": 12},
        {"name": "x", "count": 40, "type": "space", "translation": 1e5, "shard_size_chunks": 2},
    ]
    settings = AcquisitionSettings.model_validate(
        {
            "root_path": str(tmp_path / "run.ome.zarr"),
            "dimensions": dims,
            "dtype": "float32",
            "plate": {"row_names": ["A", "B"], "column_names": ["3"], "name": "p"},
            "storage_order": ["t", "p", "z", "cam", "c", "y", "x"],
            "compression": "blosc-zstd",
        }
    )
    frame = np.full(SHAPE, 1.5, "f4")
    with create_stream(settings) as stream:
        for _ in range(13):
            stream.append(frame)
        stream.flush()
        left = look(tmp_path / "run.ome.zarr")
        with contextlib.closing(left.contents):
            assert left.contents.frames == 13
            assert left.layout == stream._layout
            kept, given = (s.model_dump(mode="json") for s in (left.settings, stream.settings))
            assert kept == given


def test_the_command_says_what_there_is(tmp_path):
    path = tmp_path / "run.ome.zarr"
    killed(settings_for(path, t=500), 40)
    found, _ = run("recover", path, "--dry-run")
    report = recover(path, dry_run=True)
    assert f"{report.frames} of 2000 frames, {report.skipped} skipped, uint16" in found
    assert f"  A: X 40  Y 24  Z 1  C 2  T {report.images[0].shape[4]}, " in found
    assert "nothing was changed" in found
    found, _ = run("recover", path, "--json")
    said = json.loads(found)
    assert (said["frames"], said["finished"]) == (report.frames, True)
    assert [image["position"] for image in said["images"]] == ["A", "B"]


# ------------------------------------------------------------------ looking from outside


@pytest.mark.parametrize("case", ["tiff", "zarr-shards", "scratch"])
def test_a_running_acquisition_is_watched_from_another_process(tmp_path, case):
    suffix, options = CASES[case]
    settings = settings_for(tmp_path / f"run{suffix}", **options)
    path = output(tmp_path, suffix)
    with streaming(settings, frames=150, pause=0.004, end="close") as child:
        acknowledged(child, 5)
        with watch(path) as late, watch(path) as seen:
            assert (seen.state, seen.running, seen.planned) == ("running", True, None)
            assert (seen.dims, seen.dtype) == (("t", "p", "c", "y", "x"), np.dtype("u2"))
            first = seen.frames
            view = seen.view()
            shape = view.shape
            assert first >= 5
            numbers = []
            for number, frame in seen.new_frames(start=0, timeout=30):
                np.testing.assert_array_equal(frame, coded(number), str(number))
                numbers.append(number)
            assert numbers == [n for n in range(150) if not skipped(n)]
            assert (seen.state, seen.frames) == ("finished", 150)
            assert view.shape[0] > shape[0]
            assert view.shape == seen.shape == (38, 2, 2, *SHAPE)
            np.testing.assert_array_equal(view[2, 1, 0], coded(10))
            assert not view[1, 1, 1].any()
            assert seen.skipped == tuple(range(n, n + 1) for n in range(7, 150, 13))
            assert seen.where(11) == {"t": 2, "p": "B", "c": 1}
            assert seen.fps > 10
            assert seen.notes == {"lab": {"operator": "me"}}
            assert not seen.wait(150, timeout=0)
            with pytest.raises(RegionError):
                view[99]
            for number in range(140, 147):  # opens what is complete now
                late.refresh()
                want = 0 if skipped(number) else coded(number)
                assert (late.read(number) == want).all(), number
        assert child.wait() == 0
    with pytest.raises(FileNotFoundError, match="no acquisition is running"):
        watch(path)


@pytest.mark.parametrize("name", ["run.ome.tiff", "run.ome.zarr"])
def test_a_frame_can_be_read_as_soon_as_it_is_safe(tmp_path, name):
    path = tmp_path / name
    zarr_options = {"shard_size_chunks": 4} if name.endswith("zarr") else {}
    dims = [
        {"name": "t", "count": None, "type": "time"},
        {"name": "z", "count": 8, "type": "space", "chunk_size": 1, **zarr_options},
        {"name": "y", "count": SHAPE[0], "type": "space"},
        {"name": "x", "count": SHAPE[1], "type": "space"},
    ]
    settings = {"root_path": str(path), "dimensions": dims, "dtype": "uint16"}
    with create_stream(AcquisitionSettings.model_validate(settings)) as stream, watch(path) as seen:
        for number in range(20):
            stream.append(coded(number))
            stream.flush()
            assert seen.wait(number, timeout=10)
            np.testing.assert_array_equal(seen.read(number), coded(number), str(number))
            np.testing.assert_array_equal(seen.view()[number // 8, number % 8], coded(number))
        with pytest.raises(RegionError):
            seen.view(strict=True)[3]
    assert "closed" in repr(seen)
    for use in (lambda: seen.read(0), lambda: seen.state, seen.refresh):
        with pytest.raises(ClosedError):
            use()


def test_a_position_that_was_skipped_has_no_file_and_reads_as_0(tmp_path):
    settings = AcquisitionSettings.model_validate(settings_for(tmp_path / "run.ome.tiff"))
    with create_stream(settings) as stream, watch(tmp_path / "run.ome.tiff") as seen:
        stream.append(coded(0))
        stream.append(coded(1))
        stream.skip(frames=2)
        assert seen.wait(3, timeout=10)
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["run_p000.ome.tiff"]
        assert not seen.read(2).any()
        np.testing.assert_array_equal(seen.view()[0, :, :, 5, 7], [[167, 484], [0, 0]])


def test_waiting_for_frames_ends(tmp_path):
    path = tmp_path / "run.ome.zarr"
    with streaming(settings_for(path), frames=20) as child:
        acknowledged(child, 18)
        with watch(path) as seen:
            assert seen.wait(10, timeout=30)
            assert not seen.wait(20, timeout=0.05)
            assert list(seen.new_frames(timeout=0.05)) == []
            child.kill()
            child.wait()
            assert not seen.wait(20)
            assert seen.state == "interrupted"


def test_the_command_follows_until_the_end(tmp_path):
    path, png = tmp_path / "run.ome.zarr", tmp_path / "newest.png"
    with streaming(settings_for(path, t=30), frames=120, pause=0.005, end="close") as child:
        acknowledged(child, 1)
        found, _ = run("watch", path, "--interval", "0.1", "--png", png)
        assert child.wait() == 0
    lines = found.splitlines()
    assert lines[-1] == f"{path}: finished"
    assert lines[-2].startswith("111 of 120 frames, 9 skipped")
    assert lines[-2].endswith("t 29  p B  c 1")
    assert len(lines) > 3
    assert " fps  " in lines[-2]
    from PIL import Image

    with Image.open(png) as picture:
        assert picture.size == (40, 24)
        assert picture.getextrema()[0] == (0, 255)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["newest.png", "run.ome.zarr"]


def test_the_command_says_when_it_was_interrupted(tmp_path):
    path = tmp_path / "run.ome.zarr"
    killed(settings_for(path), 20)
    _, said = run("watch", path, "--interval", "0.1", code=1)
    assert "was interrupted after" in said
    assert f"bioio-tk recover {path}" in said
    _, said = run("watch", tmp_path / "none.ome.zarr", code=1)
    assert "no acquisition is running" in said
    (tmp_path / "a.png").touch()
    _, said = run("watch", path, "--png", tmp_path / "a.png", code=1)
    assert "--overwrite" in said
