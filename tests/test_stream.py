"""Streams: what `append` promises, in every format that can grow. Others read what it wrote."""

from __future__ import annotations

import gc
import json
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from pydantic import ValidationError

from bioio_tk import (
    AcquisitionSettings,
    Channel,
    Dimension,
    Position,
    create_stream,
    dims_from_standard_axes,
)
from bioio_tk.errors import (
    BioIOWarning,
    ClosedError,
    OverrunError,
    PixelTypeError,
    RegionError,
    SpecError,
    StreamError,
    TargetBusyError,
    TargetExistsError,
)
from bioio_tk.stream.recorder import FrameAddress

WAIT = 20
SUFFIXES = (".ome.tiff", ".ome.zarr")
each_format = pytest.mark.parametrize("suffix", SUFFIXES)


def coded(number, shape=(12, 20), dtype="u2"):
    """Return a frame in which every pixel tells its place and the number of the frame."""
    y, x = np.indices(shape)
    return (number * 317 + y * 29 + x * 3).astype(dtype)


def settings_for(path, sizes, dtype="uint16", **options):
    sizes = {"y": 12, "x": 20} | dict(sizes)
    order = [k for k in sizes if k not in "yx"]
    sizes = {k: sizes[k] for k in (*order, "y", "x")}
    dims = options.pop("dimensions", None) or dims_from_standard_axes(
        sizes, chunk_shapes=options.pop("chunk_shapes", None)
    )
    return AcquisitionSettings(
        root_path=str(path), dimensions=dims, dtype=dtype, storage_order="acquisition", **options
    )


def pixels(path, position=None):
    """Return what others read: all planes of an image in the order they were taken."""
    if path.suffix == ".tiff":
        with tifffile.TiffFile(path) as file:
            return np.stack([page.asarray() for page in file.pages])
    group = zarr.open_group(path, mode="r")
    array = group["0"] if position is None else group[f"{position}/0"]
    return array[...].reshape(-1, *array.shape[-2:])


def append_all(stream, frames):
    for n in range(frames):
        stream.append(coded(n))


def files(path):
    return sorted(p.name for p in path.iterdir())


# --- frames --------------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_frames_arrive_in_order(tmp_path, suffix, compression):
    path = tmp_path / f"a{suffix}"
    with create_stream(
        settings_for(path, {"t": 4, "c": 2, "z": 3}, compression=compression)
    ) as stream:
        addresses = [stream.append(coded(n)) for n in range(24)]
    assert addresses[7] == FrameAddress(frame=7, position=0, z=1, c=0, t=1)
    assert np.array_equal(pixels(path), np.stack([coded(n) for n in range(24)]))
    assert files(tmp_path) == [path.name]


@each_format
def test_the_memory_of_a_frame_may_be_used_again(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    buffer = np.empty((12, 20), "u2")
    with create_stream(settings_for(path, {"t": 200})) as stream:
        for n in range(200):
            buffer[:] = coded(n)
            stream.append(buffer)
            buffer[:] = 9
    assert np.array_equal(pixels(path), np.stack([coded(n) for n in range(200)]))


@each_format
def test_a_lent_buffer_is_stored_without_a_copy(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with create_stream(settings_for(path, {"t": 20})) as stream:
        for n in range(20):
            buffer = stream.frame_buffer()
            assert buffer.shape == (12, 20)
            assert buffer.dtype == "u2"
            buffer[:] = coded(n)
            if n == 5:
                stream.skip(frames=1)  # the buffer stays lent
                continue
            if n == 9:
                stream.append(coded(n))  # who changes his mind may
                continue
            stream.append(buffer)
    wanted = [coded(n) for n in range(20)]
    found = pixels(path)
    assert np.array_equal(found[:5], wanted[:5])
    assert not found[5].any()
    assert np.array_equal(found[6:], wanted[6:])


@pytest.mark.parametrize(
    "made",
    [
        lambda a: a.astype(">u2"),
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: np.flip(np.flip(a, 0).copy(), 0),
        lambda a: memoryview(np.ascontiguousarray(a)),
        lambda a: a.copy().view(np.matrix) if hasattr(np, "matrix") else a,
    ],
)
@each_format
@pytest.mark.filterwarnings("ignore:.*matrix:PendingDeprecationWarning")
def test_any_layout_of_memory_is_taken(tmp_path, suffix, made):
    path = tmp_path / f"a{suffix}"
    with create_stream(settings_for(path, {"t": 3})) as stream:
        for n in range(3):
            stream.append(made(coded(n)))
    assert np.array_equal(pixels(path), np.stack([coded(n) for n in range(3)]))


@each_format
def test_a_wrong_frame_takes_no_place(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with create_stream(settings_for(path, {"t": 2})) as stream:
        stream.append(coded(0))
        for shape in ((12, 19), (13, 20), (1, 20), (1, 12, 20), (240,), ()):
            with pytest.raises(SpecError, match=r"frame 1 has the shape .* frames of \(12, 20\)"):
                stream.append(np.zeros(shape, "u2"))
        for dtype in ("u1", "i2", "f4", "u4", "bool", "i8"):
            with pytest.raises(PixelTypeError, match=f"{np.dtype(dtype)}.*opened for uint16"):
                stream.append(np.zeros((12, 20), dtype))
        assert stream.append(coded(1)).frame == 1
        with pytest.raises(IndexError, match="Cannot append frame: would exceed total of 2 frames"):
            stream.append(coded(2))
    assert np.array_equal(pixels(path), np.stack([coded(0), coded(1)]))


@each_format
def test_skipped_frames_are_on_record_and_read_as_0(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with create_stream(settings_for(path, {"t": 8})) as stream:
        stream.append(coded(0))
        stream.skip(frames=2)
        stream.append(coded(3), frame_metadata={"exposure_time": 0.5})
        with pytest.raises(IndexError, match="Cannot skip frames: would exceed total of 8"):
            stream.skip(frames=5)
        with pytest.raises(ValueError, match="frames must be positive, got 0"):
            stream.skip(frames=0)
        stream.append(coded(4))
        stream.skip(frames=3)
        with pytest.raises(RegionError, match="would exceed total of 8 frames"):
            stream.skip()
        assert stream.stats.frames_skipped == 5
    found = pixels(path)
    assert len(found) == 8
    for n in range(8):
        assert np.array_equal(found[n], coded(n) if n in (0, 3, 4) else np.zeros((12, 20)))
    if suffix == ".ome.zarr":
        said = json.loads((path / "zarr.json").read_text())["attributes"]["ome_writers"]
        assert said["skipped_frames"] == [[1], [2], [5], [6], [7]]
        assert said["frame_metadata"] == [{"exposure_time": 0.5, "storage_index": [3]}]
    else:
        xml = tifffile.tiffcomment(path)
        assert 'ExposureTime="0.5"' in xml
        assert "skipped" in xml.lower()


@each_format
@pytest.mark.parametrize("frames", [1, 5, 6, 7, 11])
def test_stopping_early_leaves_the_right_size(tmp_path, suffix, frames):
    path = tmp_path / f"a{suffix}"
    with create_stream(settings_for(path, {"t": 4, "c": 3})) as stream:
        for n in range(frames):
            stream.append(coded(n))
    times = -(-frames // 3)
    wanted = np.zeros((3 * times, 12, 20), "u2")
    wanted[:frames] = [coded(n) for n in range(frames)]
    assert np.array_equal(pixels(path), wanted)
    if suffix == ".ome.zarr":
        assert zarr.open_group(path, mode="r")["0"].shape == (times, 3, 12, 20)
    else:
        assert f'SizeT="{times}"' in tifffile.tiffcomment(path)


@each_format
@pytest.mark.parametrize("chunk", [{"t": 3}, {"t": 2, "c": 2}, {"c": 3}, {"y": 16, "x": 16}])
@pytest.mark.parametrize("count", [None, 5])
def test_chunks_of_several_frames(tmp_path, suffix, chunk, count):
    if suffix == ".ome.tiff" and "t" in chunk | {"t": 0} and set(chunk) & {"t", "c"}:
        pytest.skip("a TIFF has no chunks along t and c")
    path = tmp_path / f"a{suffix}"
    y, x = 40, 20
    settings = settings_for(
        path, {"t": count, "c": 2, "y": y, "x": x}, chunk_shapes={"y": y, "x": x} | chunk
    )
    with create_stream(settings) as stream:
        for n in range(8):
            if n == 5:
                stream.skip()
            else:
                stream.append(coded(n, (y, x)))
    wanted = np.stack([coded(n, (y, x)) * (n != 5) for n in range(8)])
    assert np.array_equal(pixels(path), wanted)


@each_format
@pytest.mark.parametrize("mode", ["live", "after"])
@pytest.mark.parametrize("chunk", [None, 32])
def test_pyramids_are_the_rounded_mean(tmp_path, suffix, mode, chunk):
    path = tmp_path / f"a{suffix}"
    shape = (70, 101)
    settings = settings_for(
        path,
        {"t": None, "c": 2, "y": shape[0], "x": shape[1]},
        chunk_shapes={"y": chunk, "x": chunk} if chunk else None,
        pyramid=mode,
        pyramid_levels=3,
    )
    with create_stream(settings) as stream:
        for n in range(6):
            stream.append(coded(n, shape))
    wanted = [coded(n, shape).astype(float) for n in range(6)]
    for level in range(3):
        for n in range(6):
            if suffix == ".ome.zarr":
                array = zarr.open_group(path, mode="r")[str(level)][n // 2, n % 2]
            else:
                with tifffile.TiffFile(path) as file:
                    page = file.pages[n]
                    array = (page.pages[level - 1] if level else page).asarray()
            assert np.array_equal(array, wanted[n]), (level, n)
        wanted = [halved(image) for image in wanted]


def halved(image):
    y, x = image.shape
    out = np.zeros((-(-y // 2), -(-x // 2)))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            cell = image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            out[i, j] = np.floor(cell.mean() + 0.5)
    return out


# --- positions -----------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("order", ["ptc", "tpc", "tcp"])
def test_positions_wherever_they_are_in_the_order(tmp_path, suffix, order):
    sizes = {"t": 2, "p": ["left", "right"], "c": 3}
    path = tmp_path / f"a{suffix}"
    settings = settings_for(path, {k: sizes[k] for k in order})
    frames = {}
    with create_stream(settings) as stream:
        for n, index in enumerate(
            np.ndindex(*(len(s) if isinstance(s, list) else s for s in (sizes[k] for k in order)))
        ):
            address = stream.append(coded(n))
            at = dict(zip(order, index, strict=True))
            assert address == FrameAddress(n, at["p"], 0, at["c"], at["t"])
            frames.setdefault(at["p"], []).append(coded(n))
    for number, name in enumerate(sizes["p"]):
        if suffix == ".ome.zarr":
            found = pixels(path, name)
        else:
            found = pixels(tmp_path / "a" / f"a_p{number:03}.ome.tiff")
        assert np.array_equal(found, np.stack(frames[number]))


@each_format
def test_a_position_that_was_not_visited_leaves_nothing(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with create_stream(settings_for(path, {"p": 3, "t": 4})) as stream:
        for n in range(6):
            stream.append(coded(n))
    if suffix == ".ome.zarr":
        group = zarr.open_group(path, mode="r")
        assert group["0/0"].shape[0] == 4
        assert group["1/0"].shape[0] == 2
        assert "2" not in group
        assert group["OME"].attrs["ome"]["series"] == ["0", "1"]
    else:
        assert files(tmp_path / "a") == ["a_p000.ome.tiff", "a_p001.ome.tiff"]
        assert len(pixels(tmp_path / "a" / "a_p001.ome.tiff")) == 2
        for number, times in ((0, 4), (1, 2)):
            xml = tifffile.tiffcomment(tmp_path / "a" / f"a_p00{number}.ome.tiff")
            assert xml.count("<Image ") == 2
            assert f'SizeT="{times}"' in xml


def test_unusual_axes_become_channels(tmp_path):
    dims = [
        Dimension(name="t", count=2, type="time"),
        Dimension(name="cam", count=2, type="other"),
        Dimension(name="c", coords=[Channel(name="DAPI"), Channel(name="GFP")]),
        Dimension(name="z", count=2, type="space"),
        Dimension(name="y", count=12, type="space"),
        Dimension(name="x", count=20, type="space"),
    ]
    for suffix in SUFFIXES:
        path = tmp_path / f"a{suffix}"
        settings = AcquisitionSettings(root_path=path, dimensions=dims, dtype="u2")
        with create_stream(settings) as stream:
            for n in range(16):
                stream.append(coded(n))
        wanted = np.stack([coded(n) for n in range(16)]).reshape(2, 4, 2, 12, 20)
        if suffix == ".ome.zarr":
            found = zarr.open_group(path, mode="r")["0"][...]
        else:
            found = pixels(path).reshape(2, 4, 2, 12, 20)
        assert np.array_equal(found, wanted)


# --- the end -------------------------------------------------------------------------------------


@each_format
def test_no_frame_leaves_nothing(tmp_path, suffix):
    path = tmp_path / "new" / f"a{suffix}"
    stream = create_stream(settings_for(path, {"t": 4}))
    assert path.exists()
    with pytest.warns(BioIOWarning, match="no frame with pixels"):
        stream.close()
    assert files(tmp_path) == []


@each_format
def test_what_exists_is_not_touched(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with create_stream(settings_for(path, {"t": 2})) as stream:
        stream.append(coded(1))
    before = pixels(path)
    with pytest.raises(FileExistsError, match="exists: choose another name, or pass overwrite"):
        create_stream(settings_for(path, {"t": 2}))
    assert np.array_equal(pixels(path), before)
    with create_stream(settings_for(path, {"t": 2}, overwrite=True)) as stream:
        stream.append(coded(2))
    assert np.array_equal(pixels(path)[0], coded(2))
    assert files(tmp_path) == [path.name]


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    path = tmp_path / "a.ome.zarr"
    path.mkdir()
    (path / "thesis.docx").write_bytes(b"three years")
    with pytest.raises(TargetExistsError, match=r"thesis\.docx"):
        create_stream(settings_for(path, {"t": 2}, overwrite=True))
    assert files(path) == ["thesis.docx"]
    assert files(tmp_path) == ["a.ome.zarr"]


@each_format
def test_two_streams_to_one_place(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with create_stream(settings_for(path, {"t": 3})) as stream:
        stream.append(coded(0))
        for overwrite in (False, True):
            with pytest.raises(TargetBusyError, match=r"is running|at work"):
                create_stream(settings_for(path, {"t": 3}, overwrite=overwrite))
        stream.append(coded(1))
    assert np.array_equal(pixels(path), np.stack([coded(0), coded(1)]))


@each_format
def test_an_error_in_the_loop_keeps_the_frames(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"

    def acquire():
        with create_stream(settings_for(path, {"t": 9})) as stream:
            append_all(stream, 4)
            raise ZeroDivisionError("the shutter is stuck")

    with pytest.raises(ZeroDivisionError, match="shutter"):
        acquire()
    assert np.array_equal(pixels(path), np.stack([coded(n) for n in range(4)]))


@each_format
def test_a_forgotten_stream_keeps_its_frames_and_says_so(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    stream = create_stream(settings_for(path, {"t": None}))
    stream.append(coded(0))
    with pytest.warns(UserWarning, match="OMEStream was not closed"):  # noqa: PT031
        del stream
        gc.collect()
    assert np.array_equal(pixels(path), coded(0)[None])


def test_closed_is_closed(tmp_path):
    stream = create_stream(settings_for(tmp_path / "a.ome.zarr", {"t": 3}))
    stream.append(coded(0))
    assert not stream.closed
    stream.close()
    stream.close()
    assert stream.closed
    for call in (lambda: stream.append(coded(1)), stream.skip, stream.frame_buffer):
        with pytest.raises(ClosedError, match="the stream is closed"):
            call()


# --- failures ------------------------------------------------------------------------------------


class Slow:
    """Holds the disk of a stream still, or breaks it."""

    def __init__(self, monkeypatch, sink_class):
        self.gate = threading.Event()
        self.gate.set()
        self.fail_at = None
        self.stored = 0
        store_tiles = sink_class.store_tiles

        def slowly(sink, tiles):
            assert self.gate.wait(WAIT)
            self.stored += len(tiles)
            if self.fail_at is not None and self.stored > self.fail_at:
                raise OSError(28, "No space left on device")
            store_tiles(sink, tiles)

        monkeypatch.setattr(sink_class, "store_tiles", slowly)


@pytest.fixture(params=SUFFIXES)
def slow(request, monkeypatch):
    if request.param == ".ome.tiff":
        from bioio_tk.backends.tiff_stream import GrowingTiff as Sink
    else:
        from bioio_tk.backends.zarr_stream import GrowingZarr as Sink
    found = Slow(monkeypatch, Sink)
    found.suffix = request.param
    return found


def test_a_failure_is_raised_with_the_number_of_safe_frames(tmp_path, slow):
    path = tmp_path / f"a{slow.suffix}"
    slow.fail_at = 3
    stream = create_stream(settings_for(path, {"t": None}, max_workers=1))
    for n in range(3):
        stream.append(coded(n))
        stream.flush()
    with pytest.raises(StreamError, match="No space left on device") as first:
        append_all(stream, 1_000_000)  # the failure is in a worker: some more may be taken first
    assert first.value.errno == 28
    assert "the first 3 of" in str(first.value)
    assert first.value.frames_safe == 3
    with pytest.raises(StreamError, match="the first 3 of"):
        stream.append(coded(0))
    with pytest.raises(StreamError, match="the first 3 of"):
        stream.close()
    assert np.array_equal(pixels(path), np.stack([coded(n) for n in range(3)]))
    assert files(tmp_path) == [path.name]


def test_a_failure_after_the_last_append_is_raised_by_close(tmp_path, slow):
    path = tmp_path / f"a{slow.suffix}"
    slow.fail_at = 1
    slow.gate.clear()
    stream = create_stream(settings_for(path, {"t": 100}, max_workers=1))
    stream.append(coded(0))
    slow.gate.set()
    stream.flush()
    slow.gate.clear()
    stream.append(coded(1))
    slow.gate.set()
    with pytest.raises(StreamError, match="the first 1 of 2 frames are safe"):
        stream.close()
    assert np.array_equal(pixels(path), coded(0)[None])


def test_a_full_queue_refuses_where_told_to(tmp_path, slow):
    path = tmp_path / f"a{slow.suffix}"
    slow.gate.clear()
    settings = settings_for(path, {"t": 20}, backpressure="raise", max_memory_bytes=4 * 480)
    with create_stream(settings) as stream:
        with pytest.raises(OverrunError, match="this frame was not taken"):
            append_all(stream, 20)
        taken = stream.stats.frames_appended
        assert taken == 4
        assert stream.stats.queue_depth == stream.stats.queue_high_water == 4
        slow.gate.set()
        stream.flush()
        assert stream.append(coded(taken)).frame == taken
    assert np.array_equal(pixels(path), np.stack([coded(n) for n in range(5)]))


def test_a_full_queue_spills_where_told_to(tmp_path, slow):
    path = tmp_path / "out" / f"a{slow.suffix}"
    (tmp_path / "spill").mkdir()
    slow.gate.clear()
    settings = settings_for(
        path,
        {"t": 50},
        backpressure="spill",
        max_memory_bytes=4 * 480,
        spill_dir=str(tmp_path / "spill"),
    )
    with create_stream(settings) as stream:
        for n in range(50):
            stream.append(coded(n), frame_metadata={"n": n})
        stats = stream.stats
        assert stats.queue_depth == 50
        assert stats.frames_spilled >= 45
        assert stats.memory_bytes <= 4 * 480
        assert np.array_equal(stream.view()[40], coded(40))
        slow.gate.set()
    assert np.array_equal(pixels(path), np.stack([coded(n) for n in range(50)]))
    assert files(tmp_path / "spill") == []


def test_sync_waits_for_the_disk_and_hears_of_its_faults(tmp_path, monkeypatch, slow):
    from bioio_tk.stream import recorder

    synced = []
    monkeypatch.setattr(recorder, "sync", synced.append)
    path = tmp_path / f"a{slow.suffix}"
    with create_stream(settings_for(path, {"t": 1}, sync=True)) as stream:
        stream.append(coded(0))
        assert synced == []
    assert synced == [path]

    def broken(place):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(recorder, "sync", broken)
    stream = create_stream(settings_for(path, {"t": 1}, sync=True, overwrite=True))
    stream.append(coded(0))
    with pytest.raises(StreamError, match="Input/output error"):
        stream.close()


def test_stats_tell_what_is_safe(tmp_path, slow):
    slow.gate.clear()
    with create_stream(settings_for(tmp_path / f"a{slow.suffix}", {"t": 9})) as stream:
        for n in range(4):
            stream.append(coded(n))
        assert stream.stats.frames_stored == 0
        assert stream.stats.queue_depth == 4
        slow.gate.set()
        stream.flush()
        stats = stream.stats
        assert (stats.frames_appended, stats.frames_stored, stats.queue_depth) == (4, 4, 0)
        assert stats.queue_high_water == 4
        assert stats.seconds > 0


# --- metadata, view, listeners -------------------------------------------------------------------


def test_metadata_that_json_cannot_hold_is_left_out_with_a_warning(tmp_path):
    path = tmp_path / "a.ome.zarr"
    with create_stream(settings_for(path, {"t": 3})) as stream:
        with pytest.warns(BioIOWarning, match=r"frame 0: JSON cannot hold 'lock'"):
            stream.append(
                coded(0), frame_metadata={"lock": threading.Lock(), "gain": np.float32(2)}
            )
        stream.append(coded(1), metadata={"gain": 3})
        with pytest.raises(SpecError, match="not both"):
            stream.append(coded(2), metadata={}, frame_metadata={})
    said = json.loads((path / "zarr.json").read_text())["attributes"]["ome_writers"]
    assert said["frame_metadata"] == [
        {"gain": 2, "storage_index": [0]},
        {"gain": 3, "storage_index": [1]},
    ]


@each_format
def test_global_metadata_before_and_after_close(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with create_stream(settings_for(path, {"t": 3})) as stream:
        stream.set_global_metadata("lab", {"user": "Ada"})
        stream.append(coded(0), frame_metadata={"delta_t": 1.5})
        stream.set_global_metadata("lab", {"user": "Grace"})
        for name in ("", "ome", "ome_writers", 3):
            with pytest.raises(ValueError, match=r"reserved|non-empty"):
                stream.set_global_metadata(name, {})
        with pytest.raises(ValueError, match="JSON"):
            stream.set_global_metadata("lab", {"thread": threading.Lock()})

    def read():
        if suffix == ".ome.zarr":
            return json.dumps(zarr.open_group(path, mode="r").attrs.asdict())
        return tifffile.tiffcomment(path)

    assert "Grace" in read()
    assert "Ada" not in read()
    assert "1.5" in read()
    stream.set_summary_metadata("after", {"note": "well done"})
    assert "well done" in read()
    assert "Grace" in read()
    assert "1.5" in read()
    assert np.array_equal(pixels(path)[0], coded(0))


@each_format
@pytest.mark.parametrize("deep", [False, True])
def test_view_of_a_running_stream(tmp_path, suffix, deep):
    if deep and suffix == ".ome.tiff":
        pytest.skip("a TIFF has no chunks along t")
    path = tmp_path / f"a{suffix}"
    settings = settings_for(path, {"t": 6, "p": 2}, chunk_shapes={"t": 4} if deep else None)
    with create_stream(settings) as stream:
        view = stream.view()
        for n in range(9):
            stream.append(coded(n))
            assert view.shape == (n // 2 + 1, min(n + 1, 2), 12, 20)
            assert np.array_equal(view[n // 2, n % 2], coded(n))
            assert np.array_equal(view[0, 0], coded(0))
        stream.flush()
        assert np.array_equal(view[:4, 1], np.stack([coded(n) for n in (1, 3, 5, 7)]))
        assert not view[5, 1].any()
        assert stream.view(dynamic_shape=False).shape == (6, 2, 12, 20)
    assert np.array_equal(view[:4, 1], np.stack([coded(n) for n in (1, 3, 5, 7)]))
    del stream, view  # who looks at a closed stream has its files open
    gc.collect()


def test_listeners_hear_of_frames_in_another_thread(tmp_path):
    heard, threads = [], set()

    def listen(update):
        heard.append((update.frame_number, update.is_high_water_mark))
        threads.add(threading.get_ident())

    def broken(update):
        raise ValueError("listener")

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with create_stream(settings_for(tmp_path / "a.ome.tiff", {"t": 3, "c": 2})) as stream:
            stream.append(coded(0))
            stream.on("coords_changed", listen)
            stream.on("coords_changed", broken)
            for n in range(1, 6):
                stream.append(coded(n))
            with pytest.raises(ValueError, match="no event 'frame'"):
                stream.on("frame", listen)
    assert heard == [(1, True), (2, True), (3, False), (4, True), (5, False)]
    assert threading.get_ident() not in threads
    assert any("has raised" in str(w.message) for w in shown)


def test_from_several_threads_every_frame_has_one_place(tmp_path):
    path = tmp_path / "a.ome.zarr"
    places = {}
    with create_stream(settings_for(path, {"t": 400})) as stream:

        def camera(k):
            for n in range(100):
                places[stream.append(coded(100 * k + n)).frame] = 100 * k + n

        threads = [threading.Thread(target=camera, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert sorted(places) == list(range(400))
    found = pixels(path)
    for frame, value in places.items():
        assert np.array_equal(found[frame], coded(value))


# --- settings are checked before anything exists -------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"dtype": ""}, ValueError, "dtype must be set"),
        ({"dtype": "complex256"}, (ValueError, NotImplementedError), "complex256"),
        ({"root_path": ""}, ValueError, "root_path is required"),
        ({"backpressure": "drop"}, ValidationError, "backpressure"),
        ({"compression": "lzw", "format": "ome-zarr"}, ValidationError, "lzw"),
    ],
)
def test_contradictions_leave_nothing(tmp_path, options, error, match):
    given = {"root_path": str(tmp_path / "a.ome.zarr"), "format": "ome-zarr", "dtype": "u2"}
    given |= {"dimensions": dims_from_standard_axes({"t": 2, "y": 4, "x": 4})} | options
    with pytest.raises(error, match=match):
        create_stream(AcquisitionSettings(**given))
    assert files(tmp_path) == []


def test_names_of_positions_that_are_no_paths(tmp_path):
    names = ["..", "../out", "a/b", "OME", "zarr.json", " ", "Ä", "ä"]
    dims = [
        Dimension(name="p", type="position", coords=[Position(name=n) for n in names]),
        Dimension(name="y", count=12, type="space"),
        Dimension(name="x", count=20, type="space"),
    ]
    path = tmp_path / "deep" / "a.ome.zarr"
    settings = AcquisitionSettings(root_path=path, dimensions=dims, dtype="u2")
    with create_stream(settings) as stream:
        for n in range(len(names)):
            stream.append(coded(n))
    assert files(tmp_path) == ["deep"]
    assert files(tmp_path / "deep") == ["a.ome.zarr"]
    group = zarr.open_group(path, mode="r")
    series = group["OME"].attrs["ome"]["series"]
    assert len({name.lower() for name in series}) == len(names)
    for n, place in enumerate(series):
        assert Path(place).name == place
        assert np.array_equal(np.squeeze(group[f"{place}/0"][...]), coded(n))
        assert group[place].attrs["ome"]["multiscales"][0]["name"] == names[n]
