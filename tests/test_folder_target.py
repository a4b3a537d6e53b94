"""FolderTarget: what is no Zarr store is never touched; what is one is there before or after."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from fuzz_zarr import write_image
from images import coded

from bioio_tk import BioReader, BioWriter, finish, target
from bioio_tk.backends import _store
from bioio_tk.errors import SpecError, TargetBusyError, TargetExistsError

OLD = coded((40, 50), seed=1)
NEW = coded((30, 35), seed=2)


def tree(folder):
    """Return everything under a folder: bytes of files, where links lead; nothing is followed."""
    found = {}
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *names)):
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"-> {path.readlink()}"
            else:
                found[key] = None if path.is_dir() else path.read_bytes()
    return found


def old(path, **more):
    made = path.with_name("made.ome.zarr") if path.name.endswith(".partial") else path
    method = "nearest" if "labels" in more.get("group", "") else "mean"
    with BioWriter(made, image=OLD, chunks=16, pyramid=2, downsample=method, **more):
        pass
    made.rename(path)
    return path


def replace(path, **more):
    with BioWriter(path, image=NEW, chunks=16, overwrite=True, **more):
        pass


def pixels(path):
    return zarr.open_array(path / "0", mode="r")[0, 0, 0]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# ------------------------------------------------------------------ never touched


def empty(path):
    path.mkdir()


def photos(path):
    path.mkdir()
    (path / "photo.jpg").write_bytes(b"\xff\xd8")


def photos_below(path):
    (path / "2024" / "may").mkdir(parents=True)
    (path / "2024" / "may" / "photo.jpg").write_bytes(b"\xff\xd8")


def checkout(path):
    path.mkdir()
    (path / "README.md").write_text("mine")
    for name in ("objects/ab", "refs"):
        (path / ".git" / name).mkdir(parents=True)
    (path / ".git" / "objects" / "ab" / "0123").write_bytes(b"\0")


def with_notes(place):
    def make(path):
        old(path)
        (path / place).parent.mkdir(parents=True, exist_ok=True)
        (path / place).write_text("three years of work")

    return make


def with_notes_in_plate(path):
    old(path, group="A/1/0")
    (path / "A" / "1" / "notes.txt").write_text("three years of work")


def with_link(place):
    def make(path):
        elsewhere = path.parent / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "0").write_bytes(b"precious")
        old(path)
        if (path / place).is_dir():
            shutil.rmtree(path / place)
        else:
            (path / place).unlink(missing_ok=True)
        (path / place).symlink_to(elsewhere, target_is_directory=True)

    return make


def group_named_array(path):
    """The word "array" in the attributes of a group does not make an array of it."""
    group = zarr.open_group(path, mode="w", zarr_format=3, attributes={"a": "array"})
    group.create_group("0")
    (path / "0" / "7").write_text("three years of work")


def linked(path):
    old(path.parent / "store.ome.zarr")
    path.symlink_to(path.parent / "store.ome.zarr", target_is_directory=True)


def dangling(path):
    path.symlink_to(path.parent / "nothing")


def file(path):
    path.write_bytes(b"a file")


def damaged(path):
    old(path)
    (path / "zarr.json").unlink()
    (path / "notes.txt").write_text("mine")


UNTOUCHED = {
    "empty": empty,
    "photos": photos,
    "photos below": photos_below,
    "git": checkout,
    "notes at the root": with_notes("notes.txt"),
    "notes in OME": with_notes("OME/notes.txt"),
    "notes in a folder of their own": with_notes("docs/notes.txt"),
    "notes in an array": with_notes("0/notes.txt"),
    "notes among chunks": with_notes("0/c/0/0/0/1/notes.txt"),
    "notes in a well": with_notes_in_plate,
    "link in a group": with_link("more"),
    "link for an array": with_link("1"),
    "link for chunks": with_link("0/c"),
    "link for a chunk": with_link("0/c/0/0/0/0/1"),
    "link for OME": with_link("OME"),
    "no array": group_named_array,
    "linked store": linked,
    "dangling link": dangling,
    "file": file,
    "damaged": damaged,
}


@pytest.mark.parametrize("kind", UNTOUCHED)
def test_what_is_no_zarr_store_is_never_touched(tmp_path, kind):
    path = tmp_path / "image.ome.zarr"
    UNTOUCHED[kind](path)
    before = tree(tmp_path)
    for more in ({}, {"mode": "create"}):
        with pytest.raises((TargetExistsError, IsADirectoryError), match=r"image\.ome\.zarr"):
            BioWriter(path, image=NEW, overwrite=True, **more)
    with pytest.raises((TargetExistsError, IsADirectoryError), match=r"image\.ome\.zarr"):
        BioWriter(path, image=NEW)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", UNTOUCHED)
def test_what_comes_while_the_image_is_written_is_not_touched_either(tmp_path, kind):
    if kind == "linked store":
        pytest.skip("makes a store beside itself")
    path = tmp_path / "image.ome.zarr"
    bw = BioWriter(path, image=NEW, chunks=16, overwrite=True)
    bw[:] = NEW
    here = tmp_path / "here"
    here.mkdir()
    UNTOUCHED[kind](here / path.name)
    shutil.copytree(here, tmp_path, symlinks=True, dirs_exist_ok=True)
    before = tree(path) if path.is_dir() else path.lstat().st_ino
    with pytest.raises((TargetExistsError, IsADirectoryError), match=r"image\.ome\.zarr"):
        bw.close()
    assert (tree(path) if path.is_dir() else path.lstat().st_ino) == before
    partial = path.with_name(path.name + ".partial")
    np.testing.assert_array_equal(pixels(partial), NEW)


@pytest.mark.parametrize("kind", [k for k in UNTOUCHED if k not in ("empty", "dangling link")])
def test_a_foreign_thing_where_the_unfinished_image_would_be_is_not_touched(tmp_path, kind):
    path = tmp_path / "image.ome.zarr"
    UNTOUCHED[kind](tmp_path / "image.ome.zarr.partial")
    before = tree(tmp_path)
    for overwrite in (False, True):
        for mode in ("w", "create"):
            with pytest.raises((TargetExistsError, NotADirectoryError), match="partial"):
                BioWriter(path, image=NEW, overwrite=overwrite, mode=mode)
    assert tree(tmp_path) == before


def test_what_comes_between_where_the_unfinished_image_would_be_is_not_touched(tmp_path):
    path = tmp_path / "image.ome.zarr"
    bw = BioWriter(path, image=NEW, overwrite=True)
    photos_below(tmp_path / "image.ome.zarr.partial")
    before = tree(tmp_path)
    with pytest.raises(TargetExistsError, match=r"photo\.jpg"):
        bw[:] = NEW
    bw.abort()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "dangling link", "linked store"])
def test_nothing_but_a_folder_is_finished_or_written_on(tmp_path, kind):
    path = tmp_path / "image.ome.zarr"
    UNTOUCHED[kind](tmp_path / "image.ome.zarr.partial")
    before = tree(tmp_path)
    for act in (finish, lambda p: BioWriter(p, mode="r+")):
        with pytest.raises(FileNotFoundError, match="partial"):
            act(path)
    assert tree(tmp_path) == before


GROUPS = ["labels/cells", "1", "A/1/0"]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", ["photos", "photos below", "git", "damaged", "file"])
def test_no_group_is_put_into_a_folder_that_is_no_store(tmp_path, kind, group):
    path = tmp_path / "image.ome.zarr"
    UNTOUCHED[kind](path)
    before = tree(tmp_path)
    with pytest.raises((SpecError, OSError)):
        BioWriter(path, image=NEW, group=group, overwrite=True).close()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_with_something_foreign_is_not_replaced(tmp_path, group):
    path = tmp_path / "image.ome.zarr"
    if group.startswith("labels"):
        old(path)
    old(path, group=group)
    (path / group / "notes.txt").write_text("three years of work")
    before = tree(tmp_path)
    with pytest.raises(TargetExistsError, match="notes"):
        replace(path, group=group)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("there", "group"),
    [
        ("", "1"), ("", "0"), ("", "A/1/0"), ("A/1/0", "1"), ("0", "A/1/0"), ("A/1/0", "A"),
        ("", "OME"), ("", "labels"), ("", "a.partial"), ("", ".hidden"), ("", "a/../b/c"),
        ("", "x/labels/y/z"), ("", "zarr.json"),
    ],
)  # fmt: skip
def test_a_group_that_does_not_fit_the_store_is_refused_before_anything_is_written(
    tmp_path, there, group
):
    path = old(tmp_path / "image.ome.zarr", group=there)
    before = tree(tmp_path)
    with pytest.raises(SpecError):
        BioWriter(path, image=NEW, group=group, overwrite=True)
    assert tree(tmp_path) == before


def test_nothing_is_added_to_an_array(tmp_path):
    path = tmp_path / "array.zarr"
    zarr.create_array(path, data=OLD)
    before = tree(tmp_path)
    for group in GROUPS:
        with pytest.raises(SpecError, match="one array"):
            BioWriter(path, image=NEW, group=group)
    assert tree(tmp_path) == before


# ------------------------------------------------------------------ replaced


@pytest.mark.parametrize(
    "kind", ["ours", "packed in shards", "foreign 2", "foreign 3", "foreign, an array? 3", "plate"]
)
@pytest.mark.parametrize("swap", [True, False])
def test_a_store_is_replaced_where_it_was_asked_for(tmp_path, monkeypatch, kind, swap):
    path = tmp_path / "image.ome.zarr"
    if kind.startswith("foreign"):
        write_image(path, int(kind[-1]))
        if "array" in kind:  # the word in the attributes of a group makes no array of it
            zarr.open_group(path).attrs["type"] = "array"
    else:
        old(path, group="A/1/0" if kind == "plate" else "", shards=32)
    (path / ".DS_Store").write_bytes(b"of a Mac")
    if not swap:
        monkeypatch.setattr(target, "exchange", lambda *_: False)
    replace(path)
    assert names(tmp_path) == [path.name]
    np.testing.assert_array_equal(pixels(path), NEW)


def test_a_move_that_fails_puts_the_old_store_back(tmp_path, monkeypatch):
    path = old(tmp_path / "image.ome.zarr")
    before = tree(path)
    monkeypatch.setattr(target, "exchange", lambda *_: False)
    real, calls = os.rename, []

    def rename(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise OSError(5, "the disk is gone")
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="the disk is gone"):
        replace(path)
    assert tree(path) == before
    np.testing.assert_array_equal(pixels(path.with_name(path.name + ".partial")), NEW)


def test_what_an_interrupted_write_left_at_any_moment_can_be_overwritten(tmp_path):
    """Also before its root says that it is a store, and with files that wait to be renamed."""
    path = tmp_path / "image.ome.zarr"
    partial = tmp_path / "image.ome.zarr.partial"
    for left in (["0/zarr.json"], ["0/"], ["0/zarr.json.12-34.part"], ["zarr.json.12-34.part"],
                 ["0/zarr.json", "1/zarr.json", "OME/METADATA.ome.xml.1-2.part"]):  # fmt: skip
        for name in left:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                (partial / name).mkdir()
            else:
                (partial / name).write_bytes(b'{"node_type": "array"}')
        with pytest.raises(TargetExistsError, match=r"overwrite=True.*"):
            BioWriter(path, image=NEW)
        replace(path)
        assert names(tmp_path) == [path.name]
        shutil.rmtree(path)


# ------------------------------------------------------------------ readers of what is replaced


def test_readers_go_on_with_the_old_pixels_and_the_last_one_removes_them(tmp_path):
    path = old(tmp_path / "image.ome.zarr")
    with BioReader(path, max_workers=2) as one:
        with BioReader(path, level=1) as other:
            replace(path)
            hidden = [n for n in names(tmp_path) if n != path.name]
            assert len(hidden) == 1
            assert hidden[0].startswith(".image.ome.zarr.")
            np.testing.assert_array_equal(one[:], OLD)
            assert other[:].shape == (20, 25)
            with BioReader(path) as new:
                np.testing.assert_array_equal(new[:], NEW)
        assert len(names(tmp_path)) == 2
        np.testing.assert_array_equal(one[5:], OLD[5:])
    assert names(tmp_path) == [path.name]


def test_a_store_that_is_replaced_before_it_is_locked_is_opened_anew(tmp_path, monkeypatch):
    path = old(tmp_path / "image.ome.zarr")
    real, calls = _store._lock_shared, []

    def late(folder):
        calls.append(folder)
        if len(calls) == 1:
            replace(path)
        return real(folder)

    monkeypatch.setattr(_store, "_lock_shared", late)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:], NEW)
    assert len(calls) > 1
    assert names(tmp_path) == [path.name]


def test_what_a_reader_without_a_lock_misses_is_never_0(tmp_path, monkeypatch):
    path = old(tmp_path / "image.ome.zarr")
    monkeypatch.setattr(_store, "_lock_shared", lambda folder: False)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:], OLD)
        shutil.rmtree(path / "0" / "c")
        assert not br[0, 0].any()  # the store stands where it stood: chunks that are not there
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError, match="removed while it was being read"):
            br[:]


def test_a_store_is_replaced_again_and_again_under_a_reader(tmp_path):
    path = old(tmp_path / "image.ome.zarr")
    readers = []
    for n in range(4):
        readers.append(BioReader(path))
        with BioWriter(path, image=OLD + np.uint16(n + 1), chunks=16, overwrite=True):
            pass
    for n, reader in enumerate(readers):
        np.testing.assert_array_equal(reader[:], OLD + np.uint16(n))
        reader.close()
    assert names(tmp_path) == [path.name]


READ_ON = """
    import sys
    from bioio_tk import BioReader
    br = BioReader(sys.argv[1])
    print("open", flush=True)
    sys.stdin.readline()
    print(int(br[:].astype(int).sum()), flush=True)
    sys.stdin.readline()
    br.close()
"""


def child(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip


def test_a_reader_in_another_process_reads_on_and_one_that_is_killed_is_swept_up(tmp_path):
    path = old(tmp_path / "image.ome.zarr")
    # looks like ours, but the number is not its own: a folder that somebody has copied
    (tmp_path / ".image.ome.zarr.5.replaced").mkdir()
    (tmp_path / ".image.ome.zarr.6.replaced").symlink_to(tmp_path, target_is_directory=True)
    kept = [".image.ome.zarr.5.replaced", ".image.ome.zarr.6.replaced", path.name]
    with child(READ_ON, path) as reader:
        assert reader.stdout.readline() == "open\n"
        replace(path)
        assert len(names(tmp_path)) == len(kept) + 1
        print("go", file=reader.stdin, flush=True)
        assert int(reader.stdout.readline()) == int(OLD.astype(int).sum())
        replace(path)  # the second time the reader is still at work
        assert len(names(tmp_path)) == len(kept) + 1
        reader.kill()
    np.testing.assert_array_equal(pixels(path), NEW)
    assert len(names(tmp_path)) == len(kept) + 1
    replace(path)
    assert names(tmp_path) == kept


def test_a_reader_that_ends_in_another_process_removes_what_was_replaced(tmp_path):
    path = old(tmp_path / "image.ome.zarr")
    with child(READ_ON, path) as reader:
        assert reader.stdout.readline() == "open\n"
        replace(path)
        reader.communicate("go\nend\n", timeout=30)
        assert reader.returncode == 0
    assert names(tmp_path) == [path.name]


def test_readers_never_meet_half_a_store_while_it_is_replaced(tmp_path):
    path = old(tmp_path / "image.ome.zarr")
    sums = {int(OLD.astype(int).sum()), int(NEW.astype(int).sum())}
    seen, stop = set(), threading.Event()

    def look():
        while not stop.is_set():
            with BioReader(path, max_workers=1) as br:
                seen.add(int(br[:].astype(int).sum()))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for t in threads:
        t.start()
    try:
        until, turns = time.monotonic() + 60, 0
        while (turns < 20 or seen != sums) and time.monotonic() < until:
            turns += 1
            replace(path)
            with BioWriter(path, image=OLD, chunks=16, overwrite=True):
                pass
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert seen == sums
    assert names(tmp_path) == [path.name]


# ------------------------------------------------------------------ two writers


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_two_writers_of_one_target(tmp_path, group):
    path = tmp_path / "image.ome.zarr"
    if group.startswith("labels"):
        old(path)
    one = BioWriter(path, image=OLD, group=group)
    one[:] = OLD
    for overwrite in (False, True):
        with pytest.raises(TargetBusyError, match="another writer"):
            BioWriter(path, image=NEW, group=group, overwrite=overwrite)
    one.close()
    with pytest.raises(TargetExistsError):
        BioWriter(path, image=NEW, group=group)
    np.testing.assert_array_equal(pixels(path / group), OLD)
