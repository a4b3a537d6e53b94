"""recover for OME-Zarr: what a killed writer has left is counted right and reads right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import google_crc32c
import numpy as np
import pytest
import zarr
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.api import recover
from bioio_tk.errors import DamagedFileError, TargetBusyError, TargetExistsError
from bioio_tk.target import partial_path

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def left_behind(path, image, boxes, **options):
    """Write some boxes and leave the folder as a kill would."""
    bw = BioWriter(path, shape=image.shape, dtype=image.dtype, **options)
    for box in boxes:
        bw[box] = image[box]
    bw._tiles.flush()
    return bw


def kill(bw):
    """Let go of everything without the clean-up of close()."""
    for writer in bw._sink._writers:
        for shard in writer._shards.values():
            if shard.file is not None:
                shard.file.close()
            shard.path = ""  # close() would remove it
    bw._state = "closed"
    bw._let_go()
    bw._target.leave()
    bw._scratch.close()


def pixels(path, level="0"):
    """Return an array as Y, X, Z, C, T, read by zarr-python."""
    return zarr.open_group(path, mode="r")[level][:].transpose(3, 4, 2, 1, 0)


def listed(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(("version", "shards"), [("0.4", None), ("0.5", None), ("0.5", (64, 64))])
def test_what_is_counted_and_what_is_read(tmp_path, version, shards):
    image = coded((64, 80, 2, 2, 2)) + np.uint16(1)
    path = tmp_path / "a.ome.zarr"
    boxes = [np.s_[:, :, 1:2, 0:1, 1:2], np.s_[32:64, 0:32, 0:1, 1:2, 0:1]]
    given = {} if shards is None else {"shards": shards}
    kill(left_behind(path, image, boxes, chunks=32, ngff_version=version, **given))
    assert listed(tmp_path) == ["a.ome.zarr.partial"]
    if shards:  # the single chunk lies in a shard that was never completed
        want = np.zeros_like(image)
        want[boxes[0]] = image[boxes[0]]
        count = 6
    else:
        want = np.zeros_like(image)
        for box in boxes:
            want[box] = image[box]
        count = 7
    look = recover(path, dry_run=True)
    assert listed(tmp_path) == ["a.ome.zarr.partial"]
    report = recover(path)
    assert report.tiles == look.tiles == ((count, 8 * 2 * 3),)
    assert report.complete == ((1, 0, 1),)
    assert (report.shape, report.dtype, report.planes) == (image.shape, "uint16", 8)
    assert (look.moved, report.moved, report.whole) == (False, True, False)
    assert listed(tmp_path) == ["a.ome.zarr"]
    np.testing.assert_array_equal(pixels(path), want)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:], want)


def test_a_chunk_of_several_planes_counts_for_each(tmp_path):
    image = coded((32, 32, 5, 3, 1)) + np.uint16(1)
    path = tmp_path / "a.ome.zarr"
    box = np.s_[:, :, 2:4, 1:2]
    kill(left_behind(path, image, [box], chunks=(16, 16, 2)))
    report = recover(path)
    assert report.complete == ((2, 1, 0), (3, 1, 0))
    assert report.tiles == ((8, 15 * 4),)
    np.testing.assert_array_equal(pixels(path)[box], image[box])


def test_samples_of_rgb_are_one_plane(tmp_path):
    image = coded((32, 32, 1, 6, 1), "u1")
    image[image == 0] = 1
    path = tmp_path / "a.ome.zarr"
    kill(left_behind(path, image, [np.s_[:, :, :, 3:6]], chunks=16, samples_per_pixel=3))
    report = recover(path)
    assert report.planes == 2
    assert report.complete == ((0, 3, 0),)
    assert report.tiles == ((4, 8),)


@pytest.mark.parametrize("compression", ["none", "zstd", "blosc-lz4", "gzip"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_chunk_cut_off_is_dropped(tmp_path, compression, version):
    image = coded((64, 64, 1, 1, 1)) + np.uint16(1)
    path = tmp_path / "a.ome.zarr"
    options = {"compression": compression, "ngff_version": version, "chunks": 32}
    kill(left_behind(path, image, [np.s_[:]], **options))
    prefix = "0/c" if version == "0.5" else "0"
    file = partial_path(path) / prefix / "0/0/0/1/0"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    (file.parent / "1.123-4.part").write_bytes(b"x")
    look = recover(path, dry_run=True)
    assert look.tiles == ((3, 4),)
    assert file.exists()
    assert recover(path).tiles == ((3, 4),)
    want = image.copy()
    want[32:, :32] = 0
    np.testing.assert_array_equal(pixels(path), want)
    assert not [p for p in path.rglob("*") if p.name.endswith(".part")]


def test_chunks_of_a_whole_shard_are_counted_one_by_one(tmp_path):
    image = coded((64, 96, 1, 1, 1)) + np.uint16(1)
    image[32:, :32] = 0  # never stored
    path = tmp_path / "a.ome.zarr"
    kill(left_behind(path, image, [np.s_[:]], chunks=32, shards=64))
    report = recover(path)
    assert report.tiles == ((5, 6),)
    np.testing.assert_array_equal(pixels(path), image)


def test_a_shard_that_lacks_a_chunk_is_dropped(tmp_path):
    image = coded((64, 64, 1, 1, 1)) + np.uint16(1)
    path = tmp_path / "a.ome.zarr"
    kill(left_behind(path, image, [np.s_[:]], chunks=64, shards=64))
    (file,) = (p for p in (partial_path(path) / "0/c").rglob("*") if p.is_file())
    table = np.array([[0, 1 << 20]], "<u8").tobytes()
    checksum = google_crc32c.value(table).to_bytes(4, "little")
    file.write_bytes(file.read_bytes()[: -len(table) - 4] + table + checksum)
    with pytest.raises(DamagedFileError, match="no tile"):
        recover(path)


def test_labels_that_were_being_copied_are_dropped(tmp_path):
    image = coded((64, 64, 1, 1, 1)) + np.uint16(1)
    path = tmp_path / "a.ome.zarr"
    kill(left_behind(path, image, [np.s_[:]], chunks=32))
    BioWriter(
        partial_path(path), backend="zarr", group="labels/done", image=image[:, :, 0, 0, 0]
    ).close()
    label = BioWriter(
        partial_path(path), backend="zarr", group="labels/begun", image=image[:, :, 0, 0, 0]
    )
    with label._busy():
        pass
    kill(label)
    recover(path)
    assert listed(path / "labels") == ["done", "zarr.json"]
    with BioReader(path) as br:
        assert list(br.labels) == ["done"]


def test_a_shard_without_a_good_index_is_dropped(tmp_path):
    image = coded((64, 128, 1, 1, 1)) + np.uint16(1)
    path = tmp_path / "a.ome.zarr"
    kill(left_behind(path, image, [np.s_[:]], chunks=32, shards=64))
    first, second = sorted(p for p in (partial_path(path) / "0/c").rglob("*") if p.is_file())
    data = bytearray(second.read_bytes())
    data[-10] ^= 1
    second.write_bytes(data)
    report = recover(path)
    assert report.tiles == ((4, 8),)
    assert first.name == "0"
    want = image.copy()
    want[:, 64:] = 0
    np.testing.assert_array_equal(pixels(path), want)


def test_levels_are_counted_each(tmp_path):
    image = coded((64, 64, 1, 1, 1)) + np.uint16(1)
    path = tmp_path / "a.ome.zarr"
    kill(left_behind(path, image, [np.s_[:, :32]], chunks=16, pyramid=2))
    report = recover(path)
    assert report.tiles == ((8, 16), (2, 4))
    found = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    assert "window" in found["omero"]["channels"][0]


def test_nothing_to_recover(tmp_path):
    path = tmp_path / "a.ome.zarr"
    with pytest.raises(FileNotFoundError, match="nothing to recover"):
        recover(path)
    image = np.zeros((32, 32), "u1")
    bw = BioWriter(path, image=image)
    with bw._busy():
        pass
    kill(bw)
    with pytest.raises(DamagedFileError, match="no tile"):
        recover(path)
    assert partial_path(path).is_dir()
    for name in ("b.ome.zarr", "c.ome.zarr"):
        partial_path(tmp_path / name).mkdir()
    (partial_path(tmp_path / "c.ome.zarr") / "0").mkdir()
    for name in ("b.ome.zarr", "c.ome.zarr"):
        with pytest.raises(DamagedFileError, match="no image that could be recovered"):
            recover(tmp_path / name)


def test_the_target_is_protected(tmp_path):
    image = coded((32, 32, 1, 1, 1)) + np.uint16(1)
    path = tmp_path / "a.ome.zarr"
    kill(left_behind(path, image, [np.s_[:]], chunks=16))
    part = partial_path(path) / "0/c/0/0/0/0/0.1-2.part"
    part.write_bytes(b"")
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OSError, match=r"exists|no image"):
            recover(path, overwrite=overwrite)
    assert listed(tmp_path) == ["a.ome.zarr", "a.ome.zarr.partial"]
    assert (path / "notes.txt").read_text() == "mine"
    assert part.exists()  # nothing was touched
    (path / "notes.txt").unlink()
    path.rmdir()
    zarr.create_array(path, shape=(3,), dtype="u1")[:] = 1
    with pytest.raises(TargetExistsError):
        recover(path)
    recover(path, overwrite=True)
    np.testing.assert_array_equal(pixels(path), image)
    assert listed(tmp_path) == ["a.ome.zarr"]


def test_a_packed_image_is_packed(tmp_path):
    image = coded((32, 32, 1, 1, 1)) + np.uint16(1)
    path = tmp_path / "a.ozx"
    kill(left_behind(path, image, [np.s_[:]], chunks=16))
    assert recover(path).whole
    assert listed(tmp_path) == ["a.ozx"]
    with zarr.storage.ZipStore(path, mode="r") as store:
        np.testing.assert_array_equal(pixels(store), image)


def test_after_a_real_kill(tmp_path):
    path = tmp_path / "a.ome.zarr"
    code = f"""
        import numpy as np, time
        from bioio_tk import BioWriter
        bw = BioWriter({str(path)!r}, shape=(512, 512), dtype="u2", chunks=64, pyramid=True)
        for y in range(0, 384, 64):
            bw[y:y + 64] = np.full((64, 512), y + 1, "u2")
        print("written", flush=True)
        time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=ENV, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "written\n"
    with pytest.raises(TargetBusyError):
        recover(path)
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.stdout.close()
    time.sleep(0.05)
    report = recover(partial_path(path))
    stored, count = report.tiles[0]
    assert (stored, count) == (48, 64)
    want = np.zeros((512, 512), "u2")
    for y in range(0, 384, 64):
        want[y : y + 64] = y + 1
    np.testing.assert_array_equal(pixels(path)[..., 0, 0, 0], want)
