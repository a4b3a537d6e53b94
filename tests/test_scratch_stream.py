"""Scratch: planes in memory or in plain files; NumPy and json read what is there."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bioio_tk import AcquisitionSettings, Dimension, Position, create_stream, errors
from bioio_tk.backends import scratch_stream
from bioio_tk.backends.base import StoreOptions
from bioio_tk.backends.scratch_stream import ScratchStore
from bioio_tk.core.acquisition import AcquiredPosition, AcquisitionPlan, ImageRecord
from bioio_tk.core.frames import UNBOUNDED, FrameAxis, FrameOrder
from bioio_tk.core.spec import Address, ImageSpec, Level

Y, X = 5, 7


def plan(*sizes, dtype="uint16", positions=1, levels=1):
    """Return a plan over T, C, Z: as many of them as there are sizes; None has no end."""
    axes = tuple(FrameAxis(a, n or UNBOUNDED) for a, n in zip("TCZ", sizes, strict=False))
    order = FrameOrder(axes)
    shape = (Y, X, *order.sizes)
    level = Level(shape, (4, 4, 1, 1, 2))
    return AcquisitionPlan(
        image=ImageSpec(np.dtype(dtype), (level,) * levels),
        order=order,
        axes=(),
        positions=tuple(AcquiredPosition(str(k)) for k in range(positions)),
    )


def options(**extra):
    return StoreOptions(extra=extra)


def planes(count, dtype="uint16", seed=0):
    found = np.random.default_rng(seed).integers(1, 250, (count, Y, X))
    return found.astype(dtype)


def put(image, order, numbers, pixels):
    """Store planes, given by their numbers, as the engine does."""
    tiles = []
    for n in numbers:
        z, c, t = order.key(n)
        at = Address(0, 0, (0, 0, z, c, t))
        tiles.append((at, image.encode_tile(at, pixels[n][:, :, None, None, None])))
    image.store_tiles(tiles)


def loaded(image, order, n):
    z, c, t = order.key(n)
    tile = image.load_tile(Address(0, 0, (0, 0, z, c, t)))
    return None if tile is None else tile[:, :, 0, 0, 0]


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def stored(folder, position=0):
    """Read the array of a position as who knows nothing but the manifest."""
    about = manifest(folder)
    shape = tuple(about["position_shapes"][position])
    return np.memmap(folder / f"pos_{position}.dat", about["dtype"], "r", shape=shape)


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "complex64"])
def test_planes_lie_one_after_the_other_in_the_order_taken(tmp_path, dtype):
    about, pixels = plan(3, 2, 4, dtype=dtype), planes(24, dtype)
    store = ScratchStore(tmp_path, about, options())
    image = store.open(0)
    numbers = list(range(24))
    random.Random(3).shuffle(numbers)
    for start in range(0, 24, 5):
        put(image, about.order, numbers[start : start + 5], pixels)
    image.extend(24)
    store.finish([ImageRecord(0, 24)], {})
    store.close()
    assert (tmp_path / "pos_0.dat").read_bytes() == pixels.tobytes()
    assert manifest(tmp_path)["position_shapes"] == [[3, 2, 4, Y, X]]
    np.testing.assert_array_equal(stored(tmp_path), pixels.reshape(3, 2, 4, Y, X))
    assert manifest(tmp_path)["byte_order"] == sys.byteorder


@pytest.mark.parametrize("where", ["memory", "folder", "spilled"])
def test_planes_may_lie_in_memory_in_any_way(tmp_path, where):
    about, pixels = plan(4), planes(4)[:, ::-1, ::-1]
    folder = tmp_path if where == "folder" else None
    more = {"max_memory_bytes": 100} if where == "spilled" else {}
    store = ScratchStore(folder, plan(None), options(**more))
    image = store.open(0)
    put(image, about.order, range(4), pixels)
    for n in range(4):
        np.testing.assert_array_equal(loaded(image, about.order, n), pixels[n])
    store.close()


def test_a_tile_is_a_plane_whatever_the_settings_say(tmp_path):
    store = ScratchStore(tmp_path, plan(None, 2), options())
    assert store.open(0).images[0].levels[0].tile == (Y, X, 1, 1, 1)
    assert store.open(0) is store.open(0)
    store.close()


def test_the_file_has_whole_cycles_and_the_manifest_never_more_than_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch_stream, "_PATIENCE", 0.0)
    about, pixels = plan(None, 3), planes(10)
    store = ScratchStore(tmp_path, about, options())
    image = store.open(0)
    assert manifest(tmp_path)["position_shapes"] == [None]
    for n in range(10):
        put(image, about.order, [n], pixels)
        image.extend(n + 1)
        cycles = -(-(n + 1) // 3)
        assert (tmp_path / "pos_0.dat").stat().st_size == cycles * 3 * pixels[0].nbytes
        wanted = np.zeros((cycles * 3, Y, X), "uint16")
        wanted[: n + 1] = pixels[: n + 1]
        np.testing.assert_array_equal(stored(tmp_path), wanted.reshape(cycles, 3, Y, X))
        assert manifest(tmp_path)["position_planes"] == [n + 1]
    store.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "pos_0.dat"]


def test_the_manifest_is_not_written_for_every_frame_but_is_right_in_the_end(tmp_path, monkeypatch):
    about, pixels, written = plan(None), planes(50), []
    monkeypatch.setattr(scratch_stream, "_PATIENCE", 1000.0)
    replaced = os.replace
    monkeypatch.setattr(os, "replace", lambda *a: (written.append(a), replaced(*a)))
    store = ScratchStore(tmp_path, about, options())
    image = store.open(0)
    for n in range(50):
        put(image, about.order, [n], pixels)
        image.extend(n + 1)
    assert len(written) == 1
    store.close()  # without finish(): as when the stream has failed
    assert manifest(tmp_path)["position_shapes"] == [[50, Y, X]]
    store.close()
    assert len(written) == 2


def test_stopped_early_only_the_slowest_axis_is_cut(tmp_path):
    about, pixels = plan(5, 2, 2), planes(20)
    store = ScratchStore(tmp_path, about, options())
    image = store.open(0)
    put(image, about.order, [0, 1, 2, 3, 4, 9], pixels)  # 9 is past what counts in the end
    image.extend(5)
    image.settle(5)
    assert image.images[0].shape == (Y, X, 2, 2, 2)
    store.finish([ImageRecord(0, 5)], {})
    store.close()
    wanted = np.zeros((8, Y, X), "uint16")
    wanted[:5] = pixels[:5]
    assert (tmp_path / "pos_0.dat").stat().st_size == wanted.nbytes
    np.testing.assert_array_equal(stored(tmp_path), wanted.reshape(2, 2, 2, Y, X))
    assert manifest(tmp_path)["position_planes"] == [5]


def test_positions_that_nobody_visited_leave_nothing(tmp_path):
    about, pixels = plan(2, positions=3), planes(2)
    store = ScratchStore(tmp_path, about, options())
    image = store.open(1)
    put(image, about.order, [0], pixels)
    image.extend(1)
    image.settle(1)
    store.finish([ImageRecord(1, 1)], {})
    store.close()
    assert manifest(tmp_path)["position_shapes"] == [None, [1, Y, X], None]
    assert manifest(tmp_path)["position_planes"] == [0, 1, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "pos_1.dat"]


def test_what_was_skipped_reads_as_0_and_is_listed(tmp_path):
    about, pixels = plan(6), planes(6)
    store = ScratchStore(tmp_path, about, options())
    image = store.open(0)
    put(image, about.order, [0, 3, 5], pixels)
    image.extend(6)
    store.finish([ImageRecord(0, 6, (range(1, 3), range(4, 5)))], {})
    assert not loaded(image, about.order, 1).any()
    store.close()
    wanted = pixels.copy()
    wanted[[1, 2, 4]] = 0
    np.testing.assert_array_equal(stored(tmp_path), wanted)
    assert manifest(tmp_path)["skipped"] == {"0": [[1, 3], [4, 5]]}


def test_what_was_said_of_frames_is_a_line_for_each(tmp_path):
    about = plan(3, 2, positions=2)
    store = ScratchStore(tmp_path, about, options())
    for position in range(2):
        store.open(position).extend(6)
    said = {0: {"delta_t": 0.5}, 3: {"µ": ["é", None], "deep": {"a": 1}}}
    records = [
        ImageRecord(0, 6, metadata=said.items),
        ImageRecord(1, 6, metadata=lambda: [(5, {"last": True})]),
    ]
    store.finish(records, {"lab": {"who": "me"}})
    store.close()
    lines = (tmp_path / "frame_metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"_pos": 0, "_idx": [0, 0], "delta_t": 0.5},
        {"_pos": 0, "_idx": [1, 1], "µ": ["é", None], "deep": {"a": 1}},
        {"_pos": 1, "_idx": [2, 1], "last": True},
    ]
    store.finish((), {"lab": {"who": "you"}})  # said after close
    assert manifest(tmp_path)["global_metadata"] == {"lab": {"who": "you"}}
    assert manifest(tmp_path)["position_planes"] == [6, 6]
    assert len((tmp_path / "frame_metadata.jsonl").read_text().splitlines()) == 3
    assert store.get_metadata() is None


def test_the_settings_are_in_the_manifest(tmp_path):
    ScratchStore(tmp_path, plan(2), options(settings={"dimensions": [1, 2], "dtype": "u2"}))
    assert manifest(tmp_path)["dimensions"] == [1, 2]
    assert manifest(tmp_path)["dtype"] == "uint16"


def test_it_can_be_looked_at_after_close_and_takes_no_more(tmp_path):
    about, pixels = plan(2), planes(2)
    store = ScratchStore(tmp_path, about, options())
    image = store.open(0)
    put(image, about.order, [0], pixels)
    image.extend(1)
    store.close()
    store.close()
    np.testing.assert_array_equal(loaded(image, about.order, 0), pixels[0])
    with pytest.raises(errors.ClosedError, match=r"pos_0.dat.*takes no more"):
        put(image, about.order, [1], pixels)


def test_what_another_process_left_is_taken_up(tmp_path):
    about, pixels = plan(None, 2, positions=2), planes(5)
    store = ScratchStore(tmp_path, about, options())
    image = store.open(1)
    put(image, about.order, range(5), pixels)
    image.extend(5)
    del store, image  # as after kill -9: no close
    again = ScratchStore.reopen(tmp_path, about, options(), {1: 5})
    again.open(1).settle(5)
    again.finish([ImageRecord(1, 5)], {"n": {}})
    again.close()
    assert manifest(tmp_path)["position_shapes"] == [None, [3, 2, Y, X]]
    np.testing.assert_array_equal(stored(tmp_path, 1).reshape(6, Y, X)[:5], pixels)


def test_threads_store_planes_in_any_order(tmp_path):
    about, pixels = plan(None, 3), planes(300)
    store = ScratchStore(tmp_path, about, options())
    image = store.open(0)
    numbers = list(range(300))
    random.Random(1).shuffle(numbers)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: put(image, about.order, [n], pixels), numbers))
    image.extend(300)
    store.close()
    np.testing.assert_array_equal(stored(tmp_path).reshape(300, Y, X), pixels)


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    store = ScratchStore(tmp_path, plan(2), options())
    before = (tmp_path / "manifest.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            store.finish((), {"n": {}})
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


# ------------------------------------------------------------------ whose folder


def test_what_is_not_ours_is_found(tmp_path):
    assert ScratchStore.foreign(tmp_path) is None
    store = ScratchStore(tmp_path, plan(2), options())
    store.open(0).extend(1)
    store.close()
    assert ScratchStore.foreign(tmp_path, plan(2), options()) is None
    for name in ("notes.txt", "pos_0.dat.bak", "pos_a.dat"):
        (tmp_path / name).write_text("mine")
        assert ScratchStore.foreign(tmp_path) == tmp_path / name
        (tmp_path / name).unlink()
    (tmp_path / "pos_9.dat").mkdir()
    assert ScratchStore.foreign(tmp_path) == tmp_path / "pos_9.dat"


@pytest.mark.parametrize("text", [None, "{", "[]", '{"name": "another program"}', "3"])
def test_a_manifest_of_another_program_is_not_ours(tmp_path, text):
    (tmp_path / "pos_0.dat").write_bytes(b"pixels")
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    assert ScratchStore.foreign(tmp_path) is not None


# ------------------------------------------------------------------ memory


def test_in_memory_nothing_is_written_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    about, pixels = plan(None, 2, positions=2), planes(2000)
    store = ScratchStore(None, about, options())
    first, second = store.open(0), store.open(1)
    put(first, about.order, range(0, 2000, 2), pixels)
    put(second, about.order, range(1, 2000, 2), pixels)
    store.finish([ImageRecord(0, 2000)], {})
    store.close()
    for n in range(2000):
        image, other = (second, first) if n % 2 else (first, second)
        np.testing.assert_array_equal(loaded(image, about.order, n), pixels[n])
        kept = loaded(other, about.order, n)
        assert kept is None or not kept.any()
    assert not list(tmp_path.iterdir())


def test_what_is_loaded_is_a_copy():
    about, pixels = plan(None), planes(1)
    image = ScratchStore(None, about, options()).open(0)
    put(image, about.order, [0], pixels)
    loaded(image, about.order, 0)[...] = 0
    np.testing.assert_array_equal(loaded(image, about.order, 0), pixels[0])
    wanted = pixels[0].copy()
    pixels[0] = 0  # the engine uses its memory again
    np.testing.assert_array_equal(loaded(image, about.order, 0), wanted)


def test_growing_moves_nothing(monkeypatch):
    monkeypatch.setattr(scratch_stream, "_BLOCK", 4 * Y * X * 2)
    about, pixels = plan(None), planes(40)
    image = ScratchStore(None, about, options()).open(0)
    put(image, about.order, [0], pixels)
    (home,) = image._kept._blocks.values()
    for n in range(1, 40):
        put(image, about.order, [n], pixels)
    assert image._kept._blocks[0] is home
    assert {block.nbytes for block in image._kept._blocks.values()} == {4 * Y * X * 2}
    for n in range(40):
        np.testing.assert_array_equal(loaded(image, about.order, n), pixels[n])


def test_beyond_the_limit_it_goes_on_in_a_file_that_is_gone_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    about, pixels = plan(None, positions=2), planes(100)
    limit = 20 * pixels[0].nbytes
    store = ScratchStore(None, about, options(max_memory_bytes=limit))
    images = [store.open(0), store.open(1)]
    numbers = list(range(100))
    random.Random(2).shuffle(numbers)
    for n in numbers:
        put(images[n % 2], about.order, [n], pixels)
    homes = [home for image in images for home in image._kept._blocks.values()]
    held = sum(home.nbytes for home in homes if isinstance(home, np.ndarray))
    assert 0 < held <= limit
    assert not list(tmp_path.iterdir())  # it has no name that could be left behind
    for n in range(100):
        np.testing.assert_array_equal(loaded(images[n % 2], about.order, n), pixels[n])
    store.close()
    np.testing.assert_array_equal(loaded(images[1], about.order, 99), pixels[99])


def test_an_acquisition_larger_than_the_memory_says_where_it_goes():
    size = 10 * Y * X * 2
    with pytest.warns(errors.BioIOWarning, match="goes to a temporary file in"):
        ScratchStore(None, plan(11), options(max_memory_bytes=size))
    ScratchStore(None, plan(10), options(max_memory_bytes=size))


def test_an_acquisition_that_may_not_go_to_disk_is_refused_at_once():
    size = 10 * Y * X * 2
    with pytest.raises(MemoryError, match="exceeding max_memory_bytes=700") as caught:
        ScratchStore(None, plan(11), options(max_memory_bytes=size, spill_to_disk=False))
    assert isinstance(caught.value, errors.BioIOError)
    ScratchStore(None, plan(10), options(max_memory_bytes=size, spill_to_disk=False))


def test_without_an_end_the_first_plane_too_many_is_refused():
    about, pixels = plan(None), planes(12)
    size = 10 * pixels[0].nbytes
    store = ScratchStore(None, about, options(max_memory_bytes=size, spill_to_disk=False))
    image = store.open(0)
    put(image, about.order, range(10), pixels)
    with pytest.raises(errors.OutOfMemoryError, match="give a root_path"):
        put(image, about.order, [10], pixels)
    np.testing.assert_array_equal(loaded(image, about.order, 9), pixels[9])


def test_what_it_cannot_do_is_said_before_anything_is_made():
    ScratchStore.check(plan(3), options(max_memory_bytes=1, spill_to_disk=True, settings={}))
    with pytest.raises(errors.SpecError, match=r"'colour'.*max_memory_bytes"):
        ScratchStore.check(plan(3), options(colour=1))
    with pytest.raises(errors.UnsupportedError, match="no smaller levels"):
        ScratchStore.check(plan(3, levels=2), options())


# ------------------------------------------------------------------ as a stream


def settings(root_path="", **more):
    dims = [
        Dimension(name="t", count=more.pop("t", 3), type="time"),
        Dimension(name="p", type="position", coords=[Position(name="A"), Position(name="B")]),
        Dimension(name="c", type="channel", coords=["DAPI", "GFP"]),
        Dimension(name="y", count=Y, type="space"),
        Dimension(name="x", count=X, type="space"),
    ]
    return AcquisitionSettings(
        root_path=root_path, dimensions=dims, dtype="uint16", format="scratch", **more
    )


@pytest.mark.parametrize("where", ["memory", "folder"])
@pytest.mark.parametrize("t", [3, None])
def test_a_stream_can_be_looked_at_all_the_time(tmp_path, where, t):
    pixels = planes(12).reshape(3, 2, 2, Y, X)
    root = tmp_path / "run" if where == "folder" else ""
    changes = []
    with create_stream(settings(root, t=t)) as stream:
        view = stream.view()
        view.coords_changed.connect(lambda: changes.append(view.shape))
        for n, at in enumerate(np.ndindex(3, 2, 2)):
            if n == 7:
                stream.skip()
                continue
            stream.append(pixels[at], frame_metadata={"n": n})
            np.testing.assert_array_equal(view[at], pixels[at])
        assert view.shape == pixels.shape
    pixels[1, 1, 1] = 0
    np.testing.assert_array_equal(view[...], pixels)
    assert len(changes) == 5  # at frames 0, 1, 2, 4, 8
    assert view.coords["p"] == ["A", "B"]
    if where == "folder":
        for p in range(2):
            np.testing.assert_array_equal(stored(root, p), pixels[:, p])
        lines = (root / "frame_metadata.jsonl").read_text().splitlines()
        assert len(lines) == 11
        assert manifest(root)["skipped"] == {"1": [[3, 4]]}


def test_a_listener_may_append_to_the_stream_and_close_it():
    heard, pixels = [], planes(2)
    stream = create_stream(settings(t=None))

    def again(update):
        heard.append(update.frame_number)
        if update.frame_number < 8:
            stream.append(pixels[1])
        else:
            stream.close()

    stream.on("coords_changed", again)
    stream.append(pixels[0])
    until = threading.Event()
    for _ in range(2000):
        if stream.closed:
            break
        until.wait(0.01)
    ended = threading.Thread(target=stream.close, daemon=True)
    ended.start()
    ended.join(20)
    assert not ended.is_alive()
    assert heard == list(range(9))
    assert stream.view().shape == (3, 2, 2, Y, X)


def test_overwrite_replaces_what_is_ours_and_nothing_else(tmp_path):
    root, pixels = tmp_path / "run", planes(2)

    def run(**more):
        with create_stream(settings(root, **more)) as stream:
            stream.append(pixels[0])

    run()
    before = (root / "manifest.json").read_bytes()
    with pytest.raises(FileExistsError):
        run()
    assert (root / "manifest.json").read_bytes() == before
    run(overwrite=True)
    (root / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        run(overwrite=True)
    assert (root / "notes.txt").read_text() == "mine"
    assert (root / "pos_0.dat").exists()


CAMERA = """
import sys
import numpy as np
from bioio_tk import AcquisitionSettings, Dimension, create_stream
dims = [Dimension(name="t", count=None, type="time"), Dimension(name="c", count=2, type="channel")]
dims += [Dimension(name=n, count=64, type="space") for n in "yx"]
settings = AcquisitionSettings(
    root_path=sys.argv[1], dimensions=dims, dtype="uint16", format="scratch"
)
stream = create_stream(settings)
"""


def child(code, *args, **more):
    return subprocess.Popen(
        [sys.executable, "-c", CAMERA + code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_what_is_stored_survives_kill_9(tmp_path):
    code = (
        "for n in range(10**6):\n"
        "    stream.append(np.full((64, 64), n % 60000 + 1, 'uint16'))\n"
        "    if n == 40:\n"
        "        stream.flush()\n"
        "        print('down', flush=True)\n"
    )
    camera = child(code, tmp_path / "run")
    killer = threading.Timer(60, camera.kill)
    killer.start()
    try:
        assert camera.stdout.readline() == "down\n", camera.stderr.read()
        camera.send_signal(signal.SIGKILL)
        camera.communicate(timeout=60)
    finally:
        killer.cancel()
    assert camera.returncode == -signal.SIGKILL
    about = manifest(tmp_path / "run")
    assert about["dtype"] == "uint16"
    pixels = np.fromfile(tmp_path / "run" / "pos_0.dat", "uint16")
    assert pixels.size % (2 * 64 * 64) == 0  # whole cycles: the size tells the shape
    frames = pixels.reshape(-1, 64 * 64)
    assert len(frames) >= 41
    for n in range(41):
        assert (frames[n] == n + 1).all()
    shape = about["position_shapes"][0]
    assert shape is None or shape[0] * 2 <= len(frames)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the system has no such limit")
def test_a_full_disk_is_an_error_and_no_crash(tmp_path):
    code = (
        "import resource, bioio_tk.errors as errors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10 * 8192, 10 * 8192))\n"
        "try:\n"
        "    for n in range(30):\n"
        "        stream.append(np.full((64, 64), n + 1, 'uint16'))\n"
        "        if n < 5: stream.flush()\n"
        "    stream.close()\n"
        "except errors.StreamError as exc:\n"
        "    print(exc.frames_safe)\n"
        "    try:\n"
        "        stream.close()\n"
        "    except errors.StreamError:\n"
        "        pass\n"
    )
    camera = child(code, tmp_path / "run")
    out, err = camera.communicate(timeout=60)
    assert camera.returncode == 0, err
    assert 5 <= int(out) <= 10
    frames = np.fromfile(tmp_path / "run" / "pos_0.dat", "uint16").reshape(-1, 64 * 64)
    for n in range(int(out)):
        assert (frames[n] == n + 1).all()
