"""Going on after a crash: real processes, killed anywhere, and somebody else's reader for the end.

A process that has all modules loaded forks one for each run: they start at once, and each dies by
itself. BIOIO_TK_KILLS sets how often each kind of file is killed; 20 for a release.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
import time
import zlib

import numpy as np
import oracles
import pytest
import tifffile

from bioio_tk import BioReader, BioWriter
from bioio_tk.core.checksum import PlaneSums
from bioio_tk.engine import record as records
from bioio_tk.engine.copy import View
from bioio_tk.errors import TargetBusyError
from bioio_tk.jobs import journal as journals
from bioio_tk.jobs.journal import Journal
from bioio_tk.jobs.recover import recover
from bioio_tk.jobs.transfer import transfer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill")

KILLS = int(os.environ.get("BIOIO_TK_KILLS", "2"))
PLANES, HEIGHT, WIDTH, TILE = 20, 128, 192, 64
READS = PLANES * (HEIGHT // TILE) * (WIDTH // TILE)
WHOLE = [[0, HEIGHT], [0, WIDTH], [0, PLANES], [0, 1], [0, 1]]
CROP = [[5, 128], [3, 190], [0, PLANES], [0, 1], [0, 1]]

SERVER = """
    import errno, json, mmap, os, signal, sys, threading

    import bioio_tk
    from bioio_tk import BioReader, BioWriter
    from bioio_tk.backends import tiff_read, tiff_write, zarr_write, _tiff_stored, _zarr_foreign
    from bioio_tk.core.checksum import PlaneSums
    from bioio_tk.engine.copy import View
    from bioio_tk.jobs.journal import Journal
    from bioio_tk.jobs.transfer import transfer

    counter, lock = mmap.mmap(-1, 8), threading.Lock()


    def die():
        os.kill(os.getpid(), signal.SIGKILL)


    def count_reads(source, limit):
        real = source.read_tile

        def read_tile(at):
            with lock:
                done = int.from_bytes(counter[:8], "little") + 1
                counter[:8] = done.to_bytes(8, "little")
                if limit is not None and done >= limit:
                    die()
            return real(at)

        source.read_tile = read_tile
        source.read_part = lambda at, part, out: False
        source.read_planes = lambda image, level, planes, out: False


    def count_bytes(limit, full):
        left = [limit]
        real = {name: getattr(os, name) for name in ("write", "pwrite", "pwritev")}

        def taken(view):
            size = memoryview(view).nbytes
            with lock:
                left[0] -= size
                return size if left[0] >= 0 else max(0, size + left[0])

        def stop(whole):
            if whole:
                return
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")
            die()

        def write(fd, data):
            if fd < 3:
                return real["write"](fd, data)
            view = memoryview(data).cast("B")
            n = taken(view)
            done = real["write"](fd, view[:n]) if n else 0
            stop(n == len(view))
            return done

        def pwrite(fd, data, offset):
            view = memoryview(data).cast("B")
            n = taken(view)
            done = real["pwrite"](fd, view[:n], offset) if n else 0
            stop(n == len(view))
            return done

        def pwritev(fd, views, offset):
            return sum(pwrite(fd, v, offset) for v in views[:1])

        os.write, os.pwrite, os.pwritev = write, pwrite, pwritev


    def convert(job):
        done = bioio_tk.convert(
            job["src"], job["target"], resume=True, progress=teller(job), workers=3,
            **job["options"],
        )
        return {"checksums": done.checksums, "notes": done.notes}


    def teller(job):
        def tell(done, total):
            if job.get("part") is not None and done >= job["part"] * total:
                die()

        return tell


    def run(job):
        if job.get("convert"):
            return convert(job)
        with BioReader(job["src"], 3) as reader:
            count_reads(reader._source, job.get("reads"))
            if job.get("bytes") is not None:
                count_bytes(job["bytes"], job.get("full"))
            picks = tuple(range(a, b) for a, b in job["box"])
            view = View(reader._source, 0, 0, picks)
            keeps = Journal(job["target"], job["about"], resume=job.get("resume", True))
            writer = BioWriter(
                job["target"], 3, shape=view.shape, dtype=reader.dtype, journal=keeps,
                **job["options"],
            )
            sums = PlaneSums(view.shape, reader.dtype)
            limits = {"progress": teller(job), "memory": job.get("memory")}
            done = transfer(view, writer, workers=3, sums=sums, **limits)
            return done._asdict()


    from pathlib import Path

    for line in sys.stdin:
        job = json.loads(line)
        job["target"] = Path(job["target"])
        counter[:8] = bytes(8)
        answer, mine = os.pipe()
        child = os.fork()
        if not child:
            os.close(answer)
            signal.alarm(60)
            try:
                said = {"done": run(job)}
            except BaseException as exc:
                notes = getattr(exc, "__notes__", [])
                said = {"error": type(exc).__name__, "text": str(exc), "notes": notes}
            with open(mine, "w") as file:
                json.dump(said, file)
                file.flush()
                os._exit(0)
        os.close(mine)
        with open(answer) as file:
            text = file.read()
        _, status = os.waitpid(child, 0)
        found = json.loads(text) if text else {}
        found["exit"] = os.waitstatus_to_exitcode(status)
        found["reads"] = int.from_bytes(counter[:8], "little")
        print(json.dumps(found), flush=True)
"""

CASES = {
    "tiff": ("a.ome.tif", WHOLE, {"tile_size": 64}),
    "tiff of raw strips": ("b.ome.tif", WHOLE, {"tile_size": 256, "compression": "none"}),
    "tiff of a crop": ("c.ome.tif", CROP, {"tile_size": 48, "compression": "zstd"}),
    "zarr": ("d.ome.zarr", WHOLE, {"tile_size": 64}),
    "zarr of a crop": ("e.ome.zarr", CROP, {"tile_size": 80, "ngff_version": "0.4"}),
    "shards": ("f.ome.zarr", WHOLE, {"chunks": [64, 64, 1], "shards": [128, 192, 20]}),
    "shards of a crop": (
        "g.ome.zarr",
        CROP,
        {"chunks": [48, 80, 3], "shards": [96, 160, 6], "compression": "none"},
    ),
    "z": ("h.ome.zarr", WHOLE, {"chunks": [64, 64, 1], "pyramid_z": True}),
    "shards and z": (
        "i.ome.zarr",
        CROP,
        {"chunks": [64, 64, 3], "shards": [128, 128, 6], "pyramid_z": True},
    ),
    "packed": ("j.ozx", WHOLE, {"tile_size": 128}),
}
MICRONS = {f"physical_size_{axis}": (1.0, "µm") for axis in "xyz"}


@pytest.fixture(scope="module")
def server():
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        text=True,
    )
    yield child
    child.stdin.close()
    assert child.wait(timeout=60) == 0
    child.stdout.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "source.tif"
    # whole numbers, so that all means are exact in binary; some planes and corners are all 0
    pixels = np.random.default_rng(7).integers(0, 4096, (PLANES, HEIGHT, WIDTH)).astype("f4")
    pixels[3], pixels[:, :64, :64], pixels[15:17, 64:] = 0, 0, 0
    tifffile.imwrite(path, pixels, tile=(TILE, TILE), compression="zlib", metadata={"axes": "ZYX"})
    return path, pixels.transpose(1, 2, 0)[..., None, None]


class Runner:
    """Runs one kind of conversion in processes of its own."""

    def __init__(self, server, source, folder, case):
        name, self.box, options = CASES[case]
        self.server, self.source, self.target = server, source[0], folder / name
        self.options = {"pyramid": 3, **MICRONS, **options}
        self.about = {"source": "the same"}
        self.pixels = source[1][tuple(slice(*span) for span in self.box)]

    def __call__(self, **how):
        given = {"options": {**self.options, **how.pop("options", {})}}
        if how.get("convert"):  # these it takes from the source
            given["options"] = {k: v for k, v in given["options"].items() if k not in MICRONS}
        job = {"src": str(self.source), "target": str(self.target), "box": self.box}
        job |= {"about": self.about, **given, **how}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    @property
    def partial(self):
        return self.target.with_name(self.target.name + ".partial")

    @property
    def journal(self):
        return self.target.with_name(self.target.name + ".partial.journal")

    def left(self):
        return sorted(path.name for path in self.target.parent.iterdir())

    def check(self, found):
        """See that the image is there, whole, right, and nothing else."""
        assert "done" in found, found
        assert self.left() == [self.target.name]
        wanted = self.pixels
        read = oracles.python if self.target.suffix == ".tif" else oracles.zarr
        for level in range(3):
            np.testing.assert_array_equal(read(self.target, level), wanted)
            wanted = halved(wanted, axes=(0, 1, 2) if "pyramid_z" in self.options else (0, 1))
        assert found["done"]["levels"] == 3
        assert found["done"]["checksums"] == {
            f"t0 c0 z{z}": f"crc32:{zlib.crc32(self.pixels[:, :, z].tobytes()):08x}"
            for z in range(PLANES)
        }
        assert found["done"]["read_bytes"] + found["done"]["resumed"] == self.pixels.nbytes

    def metadata(self):
        if self.target.suffix == ".tif":
            with tifffile.TiffFile(self.target) as tif:
                return [page.description for page in tif.pages] + [
                    tag.value
                    for tag in tif.pages[0].tags
                    if "Tile" not in tag.name and tag.name != "SubIFDs"
                ]
        if self.target.is_file():
            import zipfile

            with zipfile.ZipFile(self.target) as file:
                return {n: file.read(n) for n in file.namelist() if is_document(n)}
        found = (path for path in self.target.rglob("*") if is_document(path.name))
        return {str(path.relative_to(self.target)): path.read_bytes() for path in found}

    def remove(self):
        shutil.rmtree(self.target) if self.target.is_dir() else self.target.unlink()


def is_document(name):
    return name.endswith(("zarr.json", ".zarray", ".zattrs", ".zgroup", ".xml"))


def halved(pixels, axes):
    for axis in axes:
        starts = np.arange(0, pixels.shape[axis], 2)
        sums = np.add.reduceat(pixels.astype("f8"), starts, axis)
        counts = np.minimum(2, pixels.shape[axis] - starts)
        pixels = (sums / np.expand_dims(counts, tuple(range(1, 5 - axis)))).astype("f4")
    return pixels


@pytest.fixture
def runner(request, server, source, tmp_path):
    return Runner(server, source, tmp_path, getattr(request, "param", "tiff"))


each_case = pytest.mark.parametrize("runner", CASES, indirect=True)
files = pytest.mark.parametrize("runner", ["tiff", "zarr", "shards"], indirect=True)


# ------------------------------------------------------------------ kill -9


@each_case
def test_a_killed_run_is_gone_on_with(runner):
    found = runner(reads=None)
    runner.check(found)
    whole, metadata = found["reads"], runner.metadata()
    runner.remove()
    dice = random.Random(str(runner.target.name))
    again = []
    for _ in range(KILLS):
        first = runner(reads=dice.randint(1, whole))
        assert first["exit"] == -9
        assert not runner.target.exists()
        second = runner()
        runner.check(second)
        assert runner.metadata() == metadata
        again.append((first["reads"] + second["reads"] - whole) / whole)
        runner.remove()
    assert sum(again) / KILLS < 0.4
    assert max(again) < 0.6


@each_case
def test_a_run_killed_at_any_byte_again_and_again_is_gone_on_with(runner):
    dice = random.Random("bytes" + runner.target.name)
    total = runner.pixels.nbytes  # compressed or not: about what is written with the pyramid
    for _ in range(-(-KILLS // 2)):
        for _ in range(2):
            found = runner(bytes=int(total * dice.random() ** 2))
            if found["exit"] == 0:
                break
        else:
            found = runner()
        runner.check(found)
        runner.remove()


@files
def test_what_a_killed_run_has_done_is_not_read_again(runner):
    assert runner(reads=READS - 6)["exit"] == -9  # within the last plane
    found = runner()
    runner.check(found)
    assert found["reads"] <= 4 * 6  # three planes in work at once, and a part of one
    assert found["done"]["resumed"] >= runner.pixels.nbytes * (PLANES - 4) // PLANES


@files
def test_convert_goes_on_and_writes_the_same(runner):
    found = runner(convert=True)
    document = ome_xml_of(runner.target)
    sums = found["done"]["checksums"]
    runner.remove()
    assert runner(convert=True, part=0.6)["exit"] == -9
    time.sleep(1.1)  # what is written says when that was, in seconds
    before = snapshot(runner.partial)
    found = runner(convert=True, options={"pyramid": 2})
    assert found["error"] == "SpecError"
    assert snapshot(runner.partial) == before
    found = runner(convert=True)
    assert found["done"]["checksums"] == sums
    assert runner.left() == [runner.target.name]
    read = oracles.python if runner.target.suffix == ".tif" else oracles.zarr
    np.testing.assert_array_equal(read(runner.target), runner.pixels)
    when = re.compile(r'<M K="when">[^<]*</M>|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]*Z')
    assert when.sub("", ome_xml_of(runner.target)) == when.sub("", document)


@pytest.mark.parametrize("runner", ["shards of a crop"], indirect=True)
def test_less_memory_than_before_makes_no_difference(runner):
    runner(part=0.8)
    found = runner(memory=40_000)  # by itself it would read in smaller pieces
    runner.check(found)
    assert found["done"]["resumed"] >= 0.5 * runner.pixels.nbytes


@pytest.mark.parametrize("runner", ["zarr of a crop"], indirect=True)
def test_tiles_that_are_done_are_not_written_again(runner):
    # its windows end within tiles, so what is read again touches tiles that are done
    runner(part=0.6)
    done = [
        runner.partial.joinpath(*map(str, (level, t, c, z, y, x)))
        for y, x, z, c, t, level, what in (x for x in lines_of(runner.journal)[1:] if len(x) == 7)
        if what is not None
    ]
    before = {path: path.stat().st_mtime_ns for path in done}
    assert len(before) > 40
    runner.check(runner())
    moved = {runner.target / path.relative_to(runner.partial): path for path in done}
    assert {path: new.stat().st_mtime_ns for new, path in moved.items()} == before


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
def test_formats_without_tiles_are_gone_on_with(runner, name):
    runner.target = runner.target.with_name(name)
    options = {"pyramid": 1} | ({} if name == "a.npy" else {"ome": False})
    assert runner(reads=READS - 6, options=options)["exit"] == -9
    found = runner(options=options)
    assert "done" in found, found
    assert found["reads"] <= 5 * 6
    assert runner.left() == [name]
    stored = np.load(runner.target) if name == "a.npy" else tifffile.imread(runner.target)
    np.testing.assert_array_equal(stored, runner.pixels[..., 0, 0].transpose(2, 0, 1))


# ------------------------------------------------------------------ what does not fit


@files
def test_another_source_is_refused(runner):
    runner(reads=READS // 2)
    before = snapshot(runner.partial), runner.journal.read_bytes()
    runner.about = {"source": "changed since"}
    found = runner()
    assert found["error"] == "SpecError"
    for text in ("source", "the same", "changed since", "overwrite=True", "recover"):
        assert text in found["text"]
    assert (snapshot(runner.partial), runner.journal.read_bytes()) == before
    runner.check(runner(resume=False, options={"overwrite": True}))  # begins anew


@files
def test_other_options_are_refused_and_named(runner):
    runner(reads=READS // 2)
    found = runner(options={"compression": "none"})
    assert found["error"] == "SpecError"
    assert "another compression" in found["text"]
    found = runner(options={"tile_size": 32} if "chunks" not in runner.options else {"pyramid": 2})
    assert found["error"] == "SpecError"
    assert "another levels" in found["text"]
    runner.check(runner())


def test_another_version_is_refused(runner):
    runner(reads=READS // 2)
    head, rest = lines_of(runner.journal)[0], lines_of(runner.journal)[1:]
    write_lines(runner.journal, [head | {"bioio_tk": "0.0.1"}, *rest])
    found = runner()
    assert found["error"] == "SpecError"
    assert "bioio_tk 0.0.1" in found["text"]


def test_a_journal_that_cannot_be_read_is_refused(runner):
    runner(reads=READS // 2)
    data = runner.journal.read_bytes()
    for damaged in (b"", b"\x00" * 40, data[10:], b"x" + data[1:]):
        runner.journal.write_bytes(damaged)
        found = runner()
        assert found["error"] == "SpecError", damaged[:20]
        assert "cannot be read" in found["text"]


@files
def test_lines_behind_a_damaged_one_do_not_count(runner):
    runner(reads=READS - 6)
    data = runner.journal.read_bytes()
    lines = data.split(b"\n")
    middle = len(lines) // 2
    lines[middle] = lines[middle].replace(b",", b";", 1)
    runner.journal.write_bytes(b"\n".join(lines))
    found = runner()
    runner.check(found)
    assert READS // 4 < found["reads"] < READS * 3 // 4


def test_a_last_line_cut_off_does_not_count(runner):
    runner(reads=READS - 6)
    runner.journal.write_bytes(runner.journal.read_bytes()[:-7])
    found = runner()
    runner.check(found)
    assert found["reads"] <= 5 * 6


@files
def test_another_head_is_refused(runner):
    runner(reads=READS // 2)
    if runner.partial.is_dir():
        document = runner.partial / "1/zarr.json"
        document.write_bytes(document.read_bytes().replace(b'"float32"', b'"float64"'))
    else:
        with runner.partial.open("r+b") as file:
            file.seek(300)
            byte = file.read(1)
            file.seek(300)
            file.write(bytes([byte[0] ^ 1]))
    found = runner()
    assert found["error"] == "DamagedFileError"
    assert "overwrite=True" in found["text"]
    assert runner.partial.exists()


# ------------------------------------------------------------------ what is lost


@pytest.mark.parametrize("runner", ["zarr", "shards", "z", "shards and z"], indirect=True)
@pytest.mark.parametrize("level", ["0", "1"])
def test_a_lost_file_is_made_again(runner, level):
    runner(part=0.8)
    chunks = sorted(p for p in (runner.partial / level / "c").rglob("*") if p.is_file())
    chunks[len(chunks) // 2].unlink()
    runner.check(runner())


def test_a_file_cut_off_is_completed(runner):
    runner(reads=READS - 6)
    os.truncate(runner.partial, runner.partial.stat().st_size * 2 // 3)
    found = runner()
    runner.check(found)
    assert found["reads"] > 5 * 6


def test_a_lost_unfinished_file_is_begun_anew(runner):
    runner(reads=READS // 2)
    runner.partial.unlink()
    found = runner()
    runner.check(found)
    assert found["reads"] == READS


def test_a_leftover_without_a_journal_is_refused(runner):
    runner(reads=READS // 2)
    runner.journal.unlink()
    before = snapshot(runner.partial)
    found = runner()
    assert found["error"] == "TargetExistsError"
    assert "recover" in found["text"]
    assert "overwrite=True" in found["text"]
    assert snapshot(runner.partial) == before


@pytest.mark.parametrize("runner", ["tiff", "zarr"], indirect=True)
def test_a_journal_does_not_outlive_the_file_it_is_of(runner, source):
    runner(reads=READS // 2)
    assert runner.journal.exists()
    options = {k: v for k, v in runner.options.items() if k != "pyramid"}
    other = np.ones_like(runner.pixels)
    writer = BioWriter(runner.target, 1, image=other, overwrite=True, **options)
    writer[:, :, :2, 0, 0] = other[:, :, :2, 0, 0]
    assert not runner.journal.exists()
    writer.abort()
    runner(reads=READS // 2)
    recover(runner.target)
    assert runner.left() == [runner.target.name]


@files
def test_a_leftover_with_a_journal_says_how_to_go_on(runner):
    runner(reads=READS // 2)
    found = runner(resume=False)
    assert found["error"] == "TargetExistsError"
    assert "resume=True (--resume)" in found["text"]
    runner.check(runner())


# ------------------------------------------------------------------ the machine went down


def test_after_a_restart_of_the_machine_only_what_was_on_the_disk_counts(runner):
    runner(reads=READS - 6)
    head, *rest = lines_of(runner.journal)
    half = rest[: len(rest) // 2]
    head["boot"] = "before"
    synced = {"synced": len(text_of([head, *half]))}
    write_lines(runner.journal, [head, *rest[: len(rest) * 3 // 4], synced, *rest[len(half) :]])
    found = runner()
    runner.check(found)
    # half of the lines, which are of 1 to 3 planes; 3/4 if the mark did not count, else all
    assert READS // 3 < found["reads"] < READS * 5 // 6


def test_after_a_restart_nothing_counts_that_may_not_be_on_the_disk(runner):
    runner(reads=READS - 6)
    head, *rest = lines_of(runner.journal)
    write_lines(runner.journal, [head | {"boot": "before"}, *rest])
    found = runner()
    runner.check(found)
    assert found["reads"] == READS


def test_the_disk_is_asked_for_what_the_journal_says_is_there(source, tmp_path, monkeypatch):
    path, target = source[0], tmp_path / "out.ome.tif"
    record, sizes = tmp_path / "out.ome.tif.partial.journal", []
    monkeypatch.setattr(records, "_SYNC_EVERY", 0.0)
    said = []

    class AtOnce:
        def __init__(self, folder):
            assert folder == tmp_path

        def begin(self, then):
            sizes.append(record.stat().st_size)
            then()

    monkeypatch.setattr(records, "Flusher", AtOnce)

    def look(done, total):
        said[:] = lines_of(record)

    with BioReader(path, 1) as reader:
        give(reader, target, workers=1, progress=look)
    synced = [item["synced"] for item in said if isinstance(item, dict) and "synced" in item]
    assert len(synced) >= PLANES
    assert all(size <= there for size, there in zip(synced, sizes, strict=False))
    assert synced == sorted(synced)


# ------------------------------------------------------------------ failures that are told


def give(reader, target, *, workers=2, resume=True, progress=None, **options):
    view = View.whole(reader._source, 0, 0)
    keeps = Journal(target, {}, resume=resume)
    options = {"tile_size": 64, "pyramid": 3, **options}
    writer = BioWriter(target, workers, like=reader, journal=keeps, **options)
    return transfer(
        view,
        writer,
        workers=workers,
        progress=progress,
        sums=PlaneSums(view.shape, reader.dtype),
    )


class Stop:
    """Raises when so much is done."""

    def __init__(self, error, part=0.5):
        self.error, self.part = error, part

    def __call__(self, done, total):
        if done > self.part * total:
            raise self.error


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr", "s.ome.zarr"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_keeps_what_is_done_where_that_was_wished(source, tmp_path, name, error):
    path, pixels = source
    target = tmp_path / name
    options = {"shards": [128, 192, 20]} if name.startswith("s") else {}
    with BioReader(path, 2) as reader:
        with pytest.raises(error) as caught:
            give(reader, target, progress=Stop(error()), **options)
        (note,) = caught.value.__notes__
        assert "resume=True (--resume)" in note
        assert not target.exists()
        done = give(reader, target, **options)
        assert 0.4 * pixels.nbytes < done.resumed < 0.7 * pixels.nbytes
        read = oracles.python if name.endswith(".tif") else oracles.zarr
        np.testing.assert_array_equal(read(target), pixels)
        np.testing.assert_array_equal(read(target, 1), halved(pixels, (0, 1)))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
def test_an_interrupted_run_leaves_nothing_where_that_was_not_wished(source, tmp_path, name):
    with (
        BioReader(source[0], 2) as reader,
        pytest.raises(KeyboardInterrupt) as caught,
    ):
        give(reader, tmp_path / name, resume=False, progress=Stop(KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == []
    assert not getattr(caught.value, "__notes__", None)


@files
def test_a_full_disk_is_told_and_gone_on_from(runner):
    found = runner(bytes=runner.pixels.nbytes // 2, full=True)
    assert found["error"] == "OSError"
    assert os.strerror(errno.ENOSPC) in found["text"]
    assert "--resume" in found["notes"][0]
    found = runner()
    runner.check(found)
    assert found["done"]["resumed"] > 0


def test_two_cannot_go_on_with_the_same(runner):
    runner(reads=READS // 2)
    before = snapshot(runner.partial)
    held = os.open(runner.partial, os.O_RDWR)
    try:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        found = runner()
        assert found["error"] == "TargetBusyError"
        assert snapshot(runner.partial) == before
    finally:
        os.close(held)
    runner.check(runner())


def test_a_run_at_work_is_not_disturbed(source, tmp_path):
    target = tmp_path / "a.ome.tif"
    tried = []

    def second(done, total):
        if not tried:
            for resume in (True, False):
                with BioReader(source[0], 1) as other, pytest.raises(TargetBusyError):
                    give(other, target, resume=resume, overwrite=True)
            tried.append(done)

    with BioReader(source[0], 1) as reader:
        give(reader, target, progress=second)
    assert tried
    np.testing.assert_array_equal(oracles.python(target), source[1])


def test_what_was_there_before_stays_until_all_is_done(runner):
    runner.target.write_bytes(b"precious")
    assert runner(reads=READS // 2)["error"] == "TargetExistsError"
    assert runner.left() == [runner.target.name]
    assert runner(reads=READS // 2, options={"overwrite": True})["exit"] == -9
    assert runner.target.read_bytes() == b"precious"
    found = runner(options={"overwrite": True})
    runner.check(found)
    assert found["reads"] < READS


def test_where_it_cannot_be_gone_on_the_report_says_why(source, tmp_path):
    store = tmp_path / "a.ome.zarr"
    with BioReader(source[0], 1) as reader:
        assert give(reader, store).note == ""
        done = give(reader, store, group="labels/cells", dtype="u2", cast="exact", pyramid=1)
    assert "cannot be resumed" in done.note
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.zarr"]


def test_labels_of_an_interrupted_run_are_copied_again(runner):
    name, runner.box, options = CASES["zarr"]
    runner.target = runner.target.with_name(name)
    runner.options |= options
    runner(reads=READS - 6)
    for kind in ("nuclei", "cells.partial"):
        folder = runner.partial / "labels" / kind
        folder.mkdir(parents=True)
        (folder / "zarr.json").write_text("{}")
    runner.check(runner())
    assert not (runner.target / "labels").exists()


def test_the_time_of_the_first_run_is_kept(tmp_path, monkeypatch):
    target = tmp_path / "a.ome.tif"
    monkeypatch.setattr(journals, "_now", lambda: "2020-01-02T03:04:05Z")
    first = Journal(target, {})
    first.begin({})
    first.close()
    monkeypatch.setattr(journals, "_now", lambda: "2030-01-02T03:04:05Z")
    assert Journal(target, {}, resume=True).began == "2020-01-02T03:04:05Z"
    assert Journal(target, {}).began == "2030-01-02T03:04:05Z"


# ------------------------------------------------------------------ reading the record ourselves


def lines_of(path):
    found = []
    for line in path.read_bytes().splitlines():
        crc, _, text = line.partition(b" ")
        assert int(crc, 16) == zlib.crc32(text)
        found.append(json.loads(text))
    return found


def text_of(items):
    texts = [json.dumps(item, separators=(",", ":")).encode() for item in items]
    return b"".join(b"%08x %b\n" % (zlib.crc32(text), text) for text in texts)


def write_lines(path, items):
    path.write_bytes(text_of(items))


def ome_xml_of(path):
    if path.is_dir():
        return (path / "OME/METADATA.ome.xml").read_text()
    with tifffile.TiffFile(path) as tif:
        return tif.pages[0].description


def snapshot(path):
    if path.is_file():
        return path.read_bytes()
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
