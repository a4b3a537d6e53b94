"""What is left out to be quick: every shortcut gives what the long way gives."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bioio_tk import BioWriter
from bioio_tk.backends import _tiff_layout
from bioio_tk.backends._store import FolderStore
from bioio_tk.backends.base import StoreOptions
from bioio_tk.backends.tiff_write import TiffSink
from bioio_tk.backends.zarr_write import ZarrSink
from bioio_tk.core.spec import Address, ImageSpec, Level, PhysicalSize, picked, stepped
from bioio_tk.engine.processes import Processes
from bioio_tk.errors import BioIOError, UnsupportedError
from bioio_tk.jobs.report import file_sizes

ranges = st.builds(
    lambda start, count, step: range(start, start + count * step, step),
    st.integers(40, 60),
    st.integers(1, 9),
    st.sampled_from([-4, -1, 1, 2, 5]),
)


# ------------------------------------------------------------------ selections


@given(ranges, st.floats(0.01, 100))
def test_a_range_is_as_far_apart_as_its_positions(pick, size):
    assert stepped((size, "µm"), pick) == stepped((size, "µm"), np.array(pick))


@given(st.tuples(*[ranges] * 5), st.sampled_from([1, 2, 3]))
def test_ranges_and_lists_see_the_same_image(picks, samples):
    size = PhysicalSize((0.5, "µm"), (0.25, "µm"), (2.0, "µm"))
    spec = ImageSpec(
        np.dtype(np.uint8),
        (Level((100, 100, 100, 120, 100), (16, 16, 1, samples, 1)),),
        samples=samples,
        physical_size=size,
        time_increment=(3.0, "s"),
    )
    assert picked(spec, picks) == picked(spec, tuple(map(np.array, picks)))


@given(st.integers(0, 30), st.integers(0, 9), st.sampled_from([1, 2, 3, 4]))
def test_whole_pixels_are_told_from_their_parts(start, count, samples):
    spec = ImageSpec(
        np.dtype(np.uint8), (Level((9, 9, 1, 48, 1), (16, 16, 1, samples, 1)),), samples=samples
    )
    channels = range(start, start + count)
    seen = picked(spec, (range(9), range(9), range(1), channels, range(1)))
    whole = count % samples == 0 and (start % samples == 0 or count == 0)
    assert seen.samples == (samples if whole else 1)


# ------------------------------------------------------------------ folders and documents


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), max_size=9))
def test_folders_are_made_as_the_system_makes_them(tmp_path_factory, keys):
    ours, theirs = (tmp_path_factory.mktemp("store") / "s" for _ in range(2))
    store = FolderStore(ours)
    for key in keys:
        store.make_folder(f"{ours}/{'/'.join(key)}/file")
        theirs.joinpath(*key).mkdir(parents=True, exist_ok=True)
    assert _tree(ours) == _tree(theirs)
    store.close()


@pytest.mark.parametrize("removed", ["a/b/c", "a/b", "a", ""])
def test_folders_that_somebody_removed_are_made_again(tmp_path, removed):
    store = FolderStore(tmp_path / "s")
    store.put("a/b/c/one", b"1")
    shutil.rmtree(tmp_path / "s" / removed)
    store.put("a/b/c/d/two", b"2")
    assert (tmp_path / "s/a/b/c/d/two").read_bytes() == b"2"
    store.close()


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_bytes(b"mine")
    store = FolderStore(tmp_path / "s")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        store.put("a/b/c", b"1")
    assert (tmp_path / "s/a").read_bytes() == b"mine"
    store.close()


def _tree(root):
    return sorted(os.path.relpath(place, root) for place, _, _ in os.walk(root))


def _image(dtype="uint16", size=(40, 50)):
    levels = (
        Level((*size, 2, 2, 1), (16, 32, 1, 1, 1)),
        Level((20, 25, 2, 2, 1), (16, 32) + (1,) * 3),
    )
    return ImageSpec(np.dtype(dtype), levels, name="cells", physical_size=PhysicalSize((0.5, "µm")))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("label", [None, {}])
def test_metadata_written_once_are_those_written_twice(tmp_path, version, label):
    extra = {"ngff_version": version} | ({} if label is None else {"label": label})
    options = StoreOptions(extra=extra, downsample="nearest")
    spec, found = _image(), []
    pixels = np.arange(16 * 32, dtype=np.uint16).reshape(16, 32, 1, 1, 1)
    for once in (True, False):
        sink = ZarrSink(tmp_path / str(once), (spec,), options)
        sink.store_tile(at := Address(0, 0, (0, 0, 0, 0, 0)), sink.encode_tile(at, pixels))
        assert sink._described
        sink._described = once
        sink.finish()
        sink.close()
        files = [p for p in (tmp_path / str(once)).rglob("*") if p.is_file()]
        found.append({p.relative_to(tmp_path / str(once)): p.read_bytes() for p in files})
    assert found[0] == found[1]
    if label is None and version == "0.5":  # what is measured is written at the end
        document = json.loads((tmp_path / "True/zarr.json").read_bytes())
        window = document["attributes"]["ome"]["omero"]["channels"][0]["window"]
        assert window["end"] == pytest.approx(np.percentile(pixels, 99.9))


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
@pytest.mark.parametrize("shards", [None, 32, 48, 64, (32, 64, 2), 17, 0, False])
@pytest.mark.parametrize("how", [(None, None), ("zstd", 3), ("zstd", 99), ("rar", None)])
def test_what_is_checked_beforehand_is_what_the_sink_refuses(tmp_path, version, shards, how):
    given = {"ngff_version": version} | ({} if shards is None else {"shards": shards})
    options = StoreOptions(*how, extra=given)
    assert _said(lambda: ZarrSink.check((_image(),), options)) == _said(
        lambda: ZarrSink(tmp_path / "s", (_image(),), options).close()
    )


def _said(func):
    try:
        func()
    except BioIOError as exc:
        return type(exc), str(exc)
    return None


def test_what_is_set_after_the_check_is_checked_before_anything_is_touched(tmp_path):
    left = tmp_path / "a.ome.tif.partial"
    left.write_bytes(b"of an interrupted write")
    options = {"dtype": "uint8", "compression": "jpeg", "overwrite": True}
    writer = BioWriter(tmp_path / "a.ome.tif", shape=(32, 32), **options)
    writer.dtype = "uint16"
    with pytest.raises(UnsupportedError, match="jpeg"):
        writer[...] = np.zeros((32, 32), np.uint16)
    assert [path.name for path in tmp_path.iterdir()] == [left.name]
    assert left.read_bytes() == b"of an interrupted write"


def test_nothing_is_checked_twice(tmp_path, monkeypatch):
    calls = []
    check = TiffSink.check.__func__
    monkeypatch.setattr(
        TiffSink, "check", classmethod(lambda cls, *a: (calls.append(a), check(cls, *a))[1])
    )
    with BioWriter(tmp_path / "a.ome.tif", shape=(32, 32), dtype="uint8") as writer:
        writer[...] = np.zeros((32, 32), np.uint8)
    assert len(calls) == 1


@given(st.floats(1e-9, 1e3), st.sampled_from(["µm", "mm", "Å"]), st.integers(1, 9))
def test_a_density_that_is_remembered_is_the_one_that_is_worked_out(size, unit, factor):
    one = _tiff_layout._per_centimetre
    known, worked_out = one((size, unit), 64 * factor, 64), one.__wrapped__
    assert known == worked_out((size, unit), 64 * factor, 64)
    if known is not None:
        meters = {"µm": 1e-6, "mm": 1e-3, "Å": 1e-10}[unit]
        assert known[0] / known[1] == pytest.approx(1 / (size * meters * 100 * factor), rel=1e-6)


def test_each_axis_has_its_own_density():
    size = PhysicalSize((0.5, "µm"), (0.25, "µm"))
    tags = _tiff_layout.resolution(size, (100, 300), (50, 75))
    x, y = tags[_tiff_layout.X_RESOLUTION], tags[_tiff_layout.Y_RESOLUTION]
    assert (x[0] / x[1], y[0] / y[1]) == (5000, 20000)  # pixels of 2 and 0.5 µm


# ------------------------------------------------------------------ around a job


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for place, count in (("a/1", 10), ("a/b/2", 200), ("a/b/3", 0), ("other/4", 5000)):
        (tmp_path / place).write_bytes(bytes(count))
    (tmp_path / "a/link").symlink_to(tmp_path / "other")
    assert sorted(file_sizes(tmp_path / "a")) == [0, 10, 200]
    assert list(file_sizes(tmp_path / "nothing")) == []


@pytest.mark.parametrize(("given", "seen"), [(None, "1"), ("3", "3")])
def test_a_worker_process_starts_no_threads_of_its_own(monkeypatch, given, seen):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", given)
    with Processes(os.getenv, 1) as workers:
        workers.give(0, "OPENBLAS_NUM_THREADS")
        ended = [event.value for event in workers.events() if event.kind == "done"]
    assert ended == [seen]
