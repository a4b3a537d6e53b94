"""Several processes write one OME-Zarr: the store equals that of one process, or nothing is there.

Real child processes; what they leave is read by zarr-python.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET

import numpy as np
import oracles
import pytest
import zarr
from images import coded
from test_folder_target import names, tree

from bioio_tk import BioReader, BioWriter, finish
from bioio_tk.api import recover
from bioio_tk.core.plate import Plate
from bioio_tk.errors import (
    ClosedError,
    PixelTypeError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
    UnsupportedError,
)

SHAPE = (150, 203, 5, 2, 1)
IMAGE = coded(SHAPE)
SAID = {
    "channel_names": ["DAPI", "GFP"], "physical_size_x": (0.25, "µm"), "name": "an image",
    "physical_size_y": (0.25, "µm"), "physical_size_z": (1.0, "µm"), "chunks": (32, 32, 2),
}  # fmt: skip


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip


def done(*children):
    """Wait for children; return what each has printed."""
    said = []
    for child in children:
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        said.append(out)
    return said


REGIONS = """
    import sys
    import numpy as np
    from bioio_tk import BioWriter
    from images import coded

    path, number, y, x, z, c = sys.argv[1], *map(int, sys.argv[2:])
    image = coded((150, 203, 5, 2, 1))
    with BioWriter(path, mode="r+", max_workers=2) as bw:
        assert bw.shape == image.shape and bw.dtype == image.dtype
        steps = [(a, b, d, e) for a in range(0, 150, y) for b in range(0, 203, x)
                 for d in range(0, 5, z) for e in range(0, 2, c)]
        print("ready", flush=True)
        sys.stdin.readline()  # all begin at once
        for a, b, d, e in steps[number::4]:
            key = np.s_[a:a + y, b:b + x, d:d + z, e:e + c]
            bw[key] = image[key]
"""


def four_processes(path, unit):
    children = [start(REGIONS, path, n, *unit) for n in range(4)]
    for child in children:
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
    for child in children:
        print(file=child.stdin, flush=True)
    done(*children)


def lay_out(path, **more):
    BioWriter(path, mode="create", shape=SHAPE, dtype="u2", **SAID, **more).close()


def documents(path):
    """Return all metadata of a store, as it stands there."""
    docs = ("zarr.json", ".zattrs", ".zarray", ".zgroup", ".xml")
    return {name: data for name, data in tree(path).items() if name.endswith(docs)}


def meaning(path):
    """Return the metadata of a store; the order of XML attributes means nothing."""
    return {
        name: ET.canonicalize(data) if name.endswith(".xml") else data
        for name, data in documents(path).items()
    }


@pytest.mark.parametrize(
    ("more", "unit"),
    [
        ({"shards": (64, 64, 4, 2)}, (64, 64, 4, 2)),
        ({"shards": (64, 96), "downsample": "nearest"}, (64, 96, 2, 1)),
        ({"shards": False}, (32, 32, 2, 1)),
        ({"shards": False, "pyramid_z": True}, (32, 32, 2, 1)),
        ({"shards": (64, 64, 2, 2), "pyramid_z": True, "downsample": "max"}, (128, 64, 2, 2)),
        ({"ngff_version": "0.4", "downsample": "median"}, (64, 32, 2, 1)),
    ],
    ids=str,
)
def test_four_processes_write_what_one_would(tmp_path, more, unit):
    one, many = tmp_path / "one.ome.zarr", tmp_path / "many.ome.zarr"
    with BioWriter(one, shape=SHAPE, dtype="u2", pyramid=3, **SAID, **more) as bw:
        bw[:] = IMAGE
    lay_out(many, pyramid=3, **more)
    four_processes(many, unit)
    assert names(tmp_path) == ["many.ome.zarr.partial", "one.ome.zarr"]
    assert finish(many, max_workers=2) == many
    assert names(tmp_path) == ["many.ome.zarr", "one.ome.zarr"]
    assert meaning(many) == meaning(one)
    np.testing.assert_array_equal(oracles.zarr(many), IMAGE)
    for level in range(1, 3):
        np.testing.assert_array_equal(oracles.zarr(many, level), oracles.zarr(one, level))
    assert tree(many).keys() == tree(one).keys()


def test_what_nobody_wrote_is_0_in_all_levels(tmp_path):
    path = tmp_path / "image.ome.zarr"
    lay_out(path, pyramid=2, shards=64)
    with BioWriter(path, mode="r+") as bw:
        bw[64:128, 64:128, :2, 1] = 1000
    finish(path)
    expected = np.zeros(SHAPE, "u2")
    expected[64:128, 64:128, :2, 1] = 1000
    np.testing.assert_array_equal(oracles.zarr(path), expected)
    np.testing.assert_array_equal(oracles.zarr(path, 1), expected[::2, ::2])


def test_a_region_can_be_written_again(tmp_path):
    path = tmp_path / "image.ome.zarr"
    lay_out(path, pyramid=2, shards=64)
    for value in (7, 0, 9, 8):
        with BioWriter(path, mode="r+") as bw:
            bw[...] = value
    with BioWriter(path, mode="r+") as bw:
        bw[:64] = 0
    finish(path)
    expected = np.full(SHAPE, 8, "u2")
    expected[:64] = 0
    np.testing.assert_array_equal(oracles.zarr(path), expected)
    np.testing.assert_array_equal(oracles.zarr(path, 1), expected[::2, ::2])


def test_a_process_that_was_killed_leaves_nothing_in_the_finished_store(tmp_path):
    path = tmp_path / "image.ome.zarr"
    lay_out(path, shards=64, pyramid=2)
    script = """
        import os, signal, sys, threading
        import numpy as np
        import bioio_tk.backends._store as store
        from bioio_tk import BioWriter
        from images import coded
        image = coded((150, 203, 5, 2, 1))
        how = sys.argv[2]
        real = os.replace
        def die(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "before it is moved":
            os.replace = die
        with BioWriter(sys.argv[1], mode="r+", max_workers=1) as bw:
            bw[:64] = image[:64] if how == "whole" else 3
            die()
    """
    for how in ("whole", "before it is moved"):
        child = start(script, path, how)
        assert child.wait(60) == -signal.SIGKILL, child.stderr.read()
        child.communicate()
        mark = "image.ome.zarr.partial/processes.0-0.part"
        left = [n for n in tree(tmp_path) if n.endswith(".part") and n != mark]
        assert bool(left) == (how != "whole")
        # what another process does now is not disturbed by it
        with BioWriter(path, mode="r+") as bw:
            bw[64:] = IMAGE[64:]
    finish(path)
    assert not [n for n in tree(tmp_path) if n.endswith(".part")]
    np.testing.assert_array_equal(oracles.zarr(path), IMAGE)


KILLED = """
    import os, signal, sys
    from bioio_tk import finish
    from bioio_tk.backends.zarr_write import ZarrSink

    real, seen = ZarrSink.store_tile, []
    def store(self, at, encoded):
        seen.append(at)
        if len(seen) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, at, encoded)
    ZarrSink.store_tile = store
    finish(sys.argv[1], max_workers=1)
"""


@pytest.mark.parametrize("shards", [64, False])
@pytest.mark.parametrize("moment", [2, 7])
def test_a_finish_that_was_killed_is_done_again(tmp_path, shards, moment):
    one, path = tmp_path / "one.ome.zarr", tmp_path / "image.ome.zarr"
    with BioWriter(one, shape=SHAPE, dtype="u2", pyramid=3, shards=shards, **SAID) as bw:
        bw[:] = IMAGE
    lay_out(path, pyramid=3, shards=shards)
    with BioWriter(path, mode="r+") as bw:
        bw[:] = IMAGE
    child = start(KILLED, path, moment)
    assert child.wait(60) == -signal.SIGKILL
    child.communicate()
    assert names(tmp_path) == ["image.ome.zarr.partial", "one.ome.zarr"]
    finish(path)
    assert meaning(path) == meaning(one)
    for level in range(3):
        np.testing.assert_array_equal(oracles.zarr(path, level), oracles.zarr(one, level))


# ------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize("shards", [64, False])
@pytest.mark.parametrize(
    ("key", "axis"),
    [
        (np.s_[10:64], "Y"), (np.s_[:63], "Y"), (np.s_[64:149], "Y"), (np.s_[5], "Y"),
        (np.s_[:, 100:], "X"), (np.s_[:, :200], "X"), (np.s_[:, :, :1], "Z"),
        (np.s_[:, :, 3:], "Z"),
        (np.s_[::2], "Y"), (np.s_[[0, 70]], "Y"), (np.s_[..., 1:4, 0, 0], "Z"),
    ],
    ids=str,
)  # fmt: skip
def test_an_unaligned_write_names_what_fits_and_writes_nothing(tmp_path, shards, key, axis):
    path = tmp_path / "image.ome.zarr"
    lay_out(path, shards=shards)
    before = tree(tmp_path)
    unit = 2 if axis == "Z" else shards or 32
    size = SHAPE["YXZCT".index(axis)]
    with BioWriter(path, mode="r+") as bw:
        with pytest.raises(SpecError, match=rf"{unit} pixels long along {axis}: .*, or at {size}"):
            bw[key] = 1
        bw[0:0] = 1  # no pixel at all is no unaligned one
        assert tree(tmp_path) == before
        bw[128:, 192:] = 5  # and the writer goes on
    finish(path)
    found = oracles.zarr(path)
    assert (found[128:, 192:] == 5).all()
    assert not found[:128].any()


def test_what_needs_a_layout_says_so_where_there_is_none(tmp_path):
    path = tmp_path / "image.ome.zarr"
    for act in (finish, lambda p: BioWriter(p, mode="r+")):
        with pytest.raises(FileNotFoundError, match="mode='create'"):
            act(path)
    assert names(tmp_path) == []
    lay_out(path)
    finish(path)
    before = tree(tmp_path)
    for act in (finish, lambda p: BioWriter(p, mode="r+")):
        with pytest.raises(FileNotFoundError, match="is complete"):
            act(path)
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        lay_out(path)
    assert tree(tmp_path) == before


def test_a_layout_is_not_laid_out_twice_or_written_by_one(tmp_path):
    path = tmp_path / "image.ome.zarr"
    lay_out(path)
    before = tree(tmp_path)
    for mode in ("create", "w"):
        with pytest.raises(TargetExistsError, match=r"overwrite=True.*bioio_tk\.finish"):
            BioWriter(path, mode=mode, shape=(3, 3), dtype="u1")
    assert tree(tmp_path) == before
    BioWriter(path, mode="create", shape=(3, 3), dtype="u1", overwrite=True).close()
    finish(path)
    assert oracles.zarr(path).shape == (3, 3, 1, 1, 1)


def test_the_layout_says_what_is_written(tmp_path):
    path = tmp_path / "image.ome.zarr"
    lay_out(path)
    with BioWriter(path, mode="r+") as bw:
        assert (bw.shape, bw.dtype) == (SHAPE, np.dtype("u2"))
        assert bw.channel_names == ["DAPI", "GFP"]
        with pytest.raises(PixelTypeError):
            bw[:64] = np.ones((64, 203, 5, 2, 1), "f4")
    with BioWriter(path, mode="r+", shape=SHAPE, dtype="u2"):
        pass
    for more in ({"shape": (150, 204, 5, 2, 1)}, {"dtype": "u1"}, {"Z": 4}):
        with pytest.raises(SpecError, match="laid out"):
            BioWriter(path, mode="r+", **more)
    finish(path)


def test_no_pixels_are_written_while_laying_out(tmp_path):
    path = tmp_path / "image.ome.zarr"
    bw = BioWriter(path, mode="create", shape=(64, 64), dtype="u2")
    with pytest.raises(SpecError, match=r"mode='r\+'"):
        bw[:] = 1
    assert names(tmp_path) == []
    bw.close()
    with pytest.raises((ClosedError, SpecError)):
        bw[:] = 1
    finish(path)
    assert not oracles.zarr(path).any()


def test_nothing_is_finished_while_a_process_writes(tmp_path):
    path = tmp_path / "image.ome.zarr"
    lay_out(path)
    script = """
        import sys
        from bioio_tk import BioWriter
        with BioWriter(sys.argv[1], mode="r+") as bw:
            bw[:32] = 5
            print("open", flush=True)
            sys.stdin.readline()
    """
    child = start(script, path)
    assert child.stdout.readline() == "open\n"
    for act in (
        finish,
        lambda p: BioWriter(p, image=IMAGE, overwrite=True),
        lambda p: BioWriter(p, mode="create", image=IMAGE, overwrite=True),
    ):
        with pytest.raises(TargetBusyError, match="another writer"):
            act(path)
    with BioWriter(path, mode="r+") as bw:
        bw[32:64] = 6
    child.stdin.write("\n")
    done(child)
    finish(path)
    found = oracles.zarr(path)
    assert (found[:32] == 5).all()
    assert (found[32:64] == 6).all()


def test_an_image_in_the_way_stays_until_it_may_be_replaced(tmp_path):
    path = tmp_path / "image.ome.zarr"
    lay_out(path)
    finish(path)
    before = tree(path)
    lay_out(path, overwrite=True)
    with BioWriter(path, mode="r+") as bw:
        bw[:] = IMAGE
    assert tree(path) == before
    called = []
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        finish(path, progress=lambda *n: called.append(n))
    assert not called
    assert tree(path) == before
    finish(path, overwrite=True, progress=lambda *n: called.append(n))
    np.testing.assert_array_equal(oracles.zarr(path), IMAGE)
    assert names(tmp_path) == [path.name]


def test_only_a_folder_is_written_by_several(tmp_path):
    for name, error in (("a.ome.tif", UnsupportedError), ("a.ozx", UnsupportedError)):
        with pytest.raises(error):
            BioWriter(tmp_path / name, mode="create", shape=(64, 64), dtype="u2").close()
        with pytest.raises((error, FileNotFoundError)):
            BioWriter(tmp_path / name, mode="r+")
    with pytest.raises(UnsupportedError, match="group"):
        BioWriter(
            tmp_path / "a.ome.zarr", mode="create", group="1", shape=(9, 9), dtype="u1"
        ).close()
    with pytest.raises(SpecError, match="choose"):
        BioWriter(tmp_path / "a.ome.zarr", mode="a", shape=(9, 9), dtype="u1")
    assert names(tmp_path) == []


# ------------------------------------------------------------------ one store of several images

ADD = """
    import sys
    import numpy as np
    from bioio_tk import BioWriter
    path, number, version, groups = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    print("ready", flush=True)
    sys.stdin.readline()
    for group in groups:
        size = (150, 203) if "labels" in group else (20, 30)
        with BioWriter(path, group=group, shape=size, dtype="u2", ngff_version=version) as bw:
            bw[:] = number + 1
"""


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", ["labels/{0}-{1}", "{0}{1}", "{1}/{0}/0", "A/1/{0}{1}"])
def test_images_that_processes_add_at_the_same_time_are_all_listed(tmp_path, kind, version):
    path = tmp_path / "store.ome.zarr"
    if kind.startswith("labels"):
        with BioWriter(path, image=IMAGE[..., :1, 0, 0], ngff_version=version):
            pass
    groups = [[kind.format(n, chr(65 + k)) for k in range(3)] for n in range(3)]
    children = [start(ADD, path, n, version, *mine) for n, mine in enumerate(groups)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        print(file=child.stdin, flush=True)
    done(*children)
    every = {group: n + 1 for n, mine in enumerate(groups) for group in mine}
    assert not [n for n in tree(path) if "partial" in n]
    assert listed(path) == set(every)
    for group, value in every.items():
        assert (oracles.zarr(path / group) == value).all()
    with BioReader(path) as br:
        if kind.startswith("labels"):
            assert {f"labels/{name}" for name in br.labels} == set(every)
            for name in br.labels:
                with br.labels[name] as labels:
                    assert (labels[:] == every[f"labels/{name}"]).all()
        else:
            assert br.n_series == 9


def listed(path):
    """Return the images that the metadata of a store list, as NGFF says where."""

    def attributes(place):
        found = zarr.open_group(path / place, mode="r").attrs.asdict()
        return found.get("ome", found)

    root = attributes("")
    if "plate" in root:
        wells = [well["path"] for well in root["plate"]["wells"]]
        return {f"{w}/{image['path']}" for w in wells for image in attributes(w)["well"]["images"]}
    if "multiscales" in root:
        return {f"labels/{name}" for name in attributes("labels")["labels"]}
    return set(attributes("OME")["series"])


def test_a_field_that_was_killed_before_it_was_listed_is_written_again(tmp_path):
    path = tmp_path / "plate.ome.zarr"
    script = """
        import os, signal, sys
        from bioio_tk import BioWriter
        from bioio_tk.backends.zarr_write import ZarrSink
        ZarrSink.register = staticmethod(lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        with BioWriter(sys.argv[1], group="A/1/0", shape=(9, 9), dtype="u1") as bw:
            bw[:] = 1
    """
    child = start(script, path)
    assert child.wait(60) == -signal.SIGKILL
    child.communicate()
    plate = Plate("mine", rows=("A", "B"), columns=("1", "2"))
    for more in ({"group": "B/2/0"}, {"group": "A/1/0", "overwrite": True}):
        with BioWriter(path, shape=(9, 9), dtype="u1", plate=plate, **more) as bw:
            bw[:] = 2
    assert listed(path) == {"A/1/0", "B/2/0"}
    assert (oracles.zarr(path / "A/1/0") == 2).all()


def test_documents_are_json_without_nan(tmp_path):
    path = tmp_path / "image.ome.zarr"
    lay_out(path, pyramid=2)
    finish(path)
    for name, data in documents(path).items():
        if not name.endswith(".xml"):
            json.loads(data, parse_constant=pytest.fail)


def test_finish_says_when_it_is_busy_with_itself(tmp_path):
    """A second finish() while the first is at work: one of them does it, the other is told."""
    path = tmp_path / "image.ome.zarr"
    lay_out(path, pyramid=2)
    script = """
        import sys, time
        from bioio_tk import finish
        def slow(done, total):
            print("at work", flush=True)
            sys.stdin.readline()
        finish(sys.argv[1], progress=slow, max_workers=1)
    """
    child = start(script, path)
    assert child.stdout.readline() == "at work\n"
    with pytest.raises(TargetBusyError):
        finish(path)
    child.stdin.write("\n" * 1000)
    done(child)
    assert names(tmp_path) == [path.name]


# ------------------------------------------------------------------ which kind of unfinished image


def test_finish_and_recover_each_take_their_own_kind(tmp_path):
    shared, stopped = tmp_path / "shared.ome.zarr", tmp_path / "stopped.ome.zarr"
    BioWriter(shared, mode="create", shape=(40, 50), dtype="u1", chunks=16).close()
    with BioWriter(shared, mode="r+") as bw:
        bw[:16] = 3
    bw = BioWriter(stopped, shape=(40, 50), dtype="u1", chunks=16)
    bw[:16] = 3
    with pytest.warns(ResourceWarning, match="never closed"):
        bw.__del__()
    for path in (shared, stopped):
        with pytest.raises(FileNotFoundError, match=r"partial.*not complete.*recover.*finish"):
            BioReader(path)
    with pytest.raises(SpecError, match="bioio-tk finish"):
        recover(shared)
    for use in (finish, lambda path: BioWriter(path, mode="r+")):
        with pytest.raises(SpecError, match="interrupted"):
            use(stopped)
    finish(shared)
    recover(stopped)
    want = np.zeros((40, 50), "u1")
    want[:16] = 3
    for path in (shared, stopped):
        np.testing.assert_array_equal(oracles.zarr(path)[:, :, 0, 0, 0], want)
    assert not [name for name in tree(tmp_path) if name.endswith(".part")]


def test_what_is_remembered_for_the_windows_is_little(tmp_path):
    with BioWriter(
        tmp_path / "a.ome.zarr", 1, shape=(64, 512, 64), dtype="u2", chunks=(64, 64, 64)
    ) as bw:
        bw[...] = np.random.default_rng(1).integers(0, 999, (64, 512, 64)).astype("u2")
        kept = sum(sample.nbytes for sample in bw._sink._samples.values())
    assert 0 < kept <= 8 * 64 * 64 * 4 * 2
