"""OME-Zarr that grows: right at every moment, for everybody who reads it.

Expected values are made with a plain loop over the frames; zarr-python and TensorStore read.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import ngff_peers
import numpy as np
import pytest
from images import DTYPES, coded, smaller
from oracles import open_files
from test_zarr_interop import groups, kind_of, with_method

from bioio_tk import BioReader
from bioio_tk.backends.base import StoreOptions
from bioio_tk.backends.zarr_stream import ZarrStore
from bioio_tk.core.acquisition import (
    AcquiredPosition,
    AcquisitionPlan,
    ImageRecord,
    StoredAxis,
)
from bioio_tk.core.frames import UNBOUNDED, FrameAxis, FrameOrder
from bioio_tk.core.plate import Plate
from bioio_tk.core.spec import Address, Channel, ImageSpec, Level, pyramid_levels
from bioio_tk.engine.scratch import Scratch
from bioio_tk.engine.write import TileWriter
from bioio_tk.errors import SpecError, UnsupportedError

zarr = pytest.importorskip("zarr")
tensorstore = pytest.importorskip("tensorstore")

LETTERS = {"t": "T", "c": "C", "z": "Z", "cam": "C", "y": "Y", "x": "X"}
KINDS = {"t": "time", "c": "channel", "cam": "other"}
HEIGHT, WIDTH = 10, 12
TILE = (HEIGHT, WIDTH, 1, 1, 1)
ENDLESS = (("t", None), ("c", 2))


# ------------------------------------------------------------------ what is recorded


def planned(axes=ENDLESS, *, stored=None, dtype="u2", tile=TILE, levels=1, frame=TILE[:2], **more):
    """Return a plan; `axes` are names and sizes, the slowest first, `stored` the names in order."""
    sizes = dict.fromkeys("ZCT", 1)
    found, steps = [], dict.fromkeys("ZCT", 1)
    for name, size in reversed(axes):
        letter = LETTERS[name]
        found.insert(0, FrameAxis(letter, size or UNBOUNDED, steps[letter]))
        steps[letter] *= size or UNBOUNDED
        sizes[letter] *= size or UNBOUNDED
    shape = (*frame, sizes["Z"], sizes["C"], sizes["T"])
    names = [*(stored or [name for name, _ in axes if not folded(name, axes)]), "y", "x"]
    letters = [
        StoredAxis(
            n, KINDS.get(n, "space"), LETTERS[n], {"t": "second"}.get(n) if n in KINDS else
            "micrometer", 0.5, 3.0 if n == "x" else None,
        )
        for n in names
    ]  # fmt: skip
    image = ImageSpec(np.dtype(dtype), pyramid_levels(shape, tile, levels, multiple=1))
    if sizes["C"] < 9:
        image = replace(image, channels=tuple(Channel(f"ch{n}") for n in range(sizes["C"])))
    return AcquisitionPlan(image, FrameOrder(tuple(found)), tuple(letters), **more)


def folded(name, axes):
    return name == "cam" and any(other == "c" for other, _ in axes)


def options(version="0.5", shards=None, compression="none", **more):
    extra = {"ngff_version": version, "shards": shards}
    return StoreOptions(compression=compression, extra=extra, **more)


def pictures(count, dtype="u2", frame=TILE[:2]):
    """Return frames (n, y, x), all different and without an all-zero one."""
    return np.moveaxis(coded((*frame, count), dtype), 2, 0).copy()


def expected(plan, axes, frames):
    """Return the stored array that holds the frames, by a plain loop; others are 0."""
    names = [axis.name for axis in plan.axes[:-2]]
    counts = [size for _, size in axes]
    inner = math.prod(counts[1:])
    if axes:
        cut = max(1, -(-len(frames) // inner))
        counts[0] = cut if counts[0] is None else min(cut, counts[0])
    places = [dict(zip((n for n, _ in axes), k, strict=True)) for k in np.ndindex(*counts)]
    for place in places:
        if "cam" in place and "cam" not in names:
            place["c"] += place.pop("cam") * dict(axes)["c"]
    shape = [max(place[name] for place in places) + 1 for name in names]
    out = np.zeros((*shape, *frames.shape[1:]), frames.dtype)
    for place, frame in zip(places, frames, strict=False):
        out[tuple(place[name] for name in names)] = frame
    return out


def seen_part(plan, axes, frames, whole):
    """Return `whole` where the first frames are: others may be there, and may not."""
    mask = expected(plan, axes, np.ones((len(frames), *frames.shape[1:]), bool))
    return np.where(mask, whole, np.zeros((), whole.dtype))


def tiles_of(plan, number, frame):
    """Return the tiles of a frame, cut by hand."""
    z, c, t = plan.order.key(number)
    height, width = plan.image.levels[0].tile[:2]
    return [
        (
            Address(0, 0, (y // height, x // width, z, c, t)),
            frame[y : y + height, x : x + width, None, None, None],
        )
        for y in range(0, frame.shape[0], height)
        for x in range(0, frame.shape[1], width)
    ]


def store_frame(sink, plan, number, frame):
    sink.store_tiles([(at, sink.encode_tile(at, px)) for at, px in tiles_of(plan, number, frame)])


def folder(tmp_path, name="run.ome.zarr"):
    path = tmp_path / name
    path.mkdir()
    return path


def record(planes, position=0, **more):
    return ImageRecord(position, planes, **more)


def recorded(path, plan, opts, frames, position=0):
    """Record one image, as a stream does, and return the store, finished and closed."""
    ZarrStore.check(plan, opts)
    store = ZarrStore(path, plan, opts)
    sink = store.open(position)
    for n, frame in enumerate(frames):
        store_frame(sink, plan, n, frame)
        sink.extend(n + 1)
    sink.settle(len(frames))
    store.finish([record(len(frames), position)], {})
    store.close()
    return store


def by_zarr(array):
    return zarr.open_array(str(array), mode="r")[...]


def by_tensorstore(array):
    """As `oracles.tensorstore`, which waits until nobody has the files open: here we have."""
    driver = "zarr3" if (array / "zarr.json").exists() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(array)}}
    return tensorstore.open(spec).result().read().result()


READERS = {"zarr": by_zarr, "tensorstore": by_tensorstore}
HOW = {
    "files": {},
    "0.4": {"version": "0.4"},
    "shards": {"shards": (HEIGHT, WIDTH, 1, 1, 4)},
    "shards-c": {"shards": (HEIGHT, WIDTH, 1, 2, 3)},
    "zstd": {"shards": (HEIGHT, WIDTH, 1, 1, 4), "compression": "zstd"},
}


def check_groups(path, version):
    """Let the schemas and models look at every group; return how many of each kind there are."""
    counts = {}
    for attributes in groups(path).values():
        said = {k: v for k, v in attributes.items() if k not in ("ome_writers", "note")}
        kind = kind_of(said)
        if kind is not None:
            ngff_peers.check(with_method(said), version, kind)
            counts[kind] = counts.get(kind, 0) + 1
    return counts


# ------------------------------------------------------------------ growing


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_sees_what_extend_says_at_once(tmp_path, how, reader):
    plan, frames = planned(), pictures(11)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(**HOW[how]))
    sink = store.open(0)
    assert READERS[reader](path / "0").shape == (1, 2, HEIGHT, WIDTH)
    for n, frame in enumerate(frames):
        store_frame(sink, plan, n, frame)
        sink.extend(n + 1)
        np.testing.assert_array_equal(
            READERS[reader](path / "0"), expected(plan, ENDLESS, frames[: n + 1])
        )
    store.finish([record(11)], {})
    store.close()
    np.testing.assert_array_equal(READERS[reader](path / "0"), expected(plan, ENDLESS, frames))
    if "shards" in HOW[how]:  # as every program reads them, and no longer as they grow
        codec = json.loads((path / "0" / "zarr.json").read_text())["codecs"][0]["configuration"]
        assert codec["index_location"] == "end"
        assert [c["name"] for c in codec["index_codecs"]] == ["bytes", "crc32c"]


AXES = {
    "plane": ((), None),
    "t": ((("t", None),), None),
    "z": ((("z", 4),), None),
    "endless z": ((("z", None),), None),
    "endless c": ((("c", None), ("z", 2)), None),
    "tcz": ((("t", 3), ("c", 2), ("z", 2)), None),
    "as acquired": ((("z", 2), ("t", 3), ("c", 2)), None),
    "ome order": ((("z", 2), ("t", 3), ("c", 2)), ["t", "c", "z"]),
    "any order": ((("t", None), ("c", 2), ("z", 2)), ["z", "c", "t"]),
    "cameras": ((("t", None), ("cam", 2)), None),
    "cameras and channels": ((("t", None), ("cam", 2), ("c", 3)), ["t", "c"]),
    "cameras slowest": ((("cam", 2), ("t", 2), ("c", 3)), ["t", "c"]),
}


@pytest.mark.parametrize("how", ["files", "shards", "0.4"])
@pytest.mark.parametrize("name", AXES)
def test_axes_in_any_order_stopped_inside_a_cycle(tmp_path, name, how):
    axes, stored = AXES[name]
    plan = planned(axes, stored=stored)
    count = 1 if not axes else min(7, math.prod(size or 9 for _, size in axes) - 1)
    frames = pictures(count)
    shards = tuple(n * k for n, k in zip(TILE, (1, 1, 2, 1, 2), strict=True))
    opts = {"files": options(), "0.4": options("0.4"), "shards": options(shards=shards)}[how]
    path = folder(tmp_path)
    store = ZarrStore(path, plan, opts)
    sink = store.open(0)
    for n, frame in enumerate(frames):
        store_frame(sink, plan, n, frame)
        sink.extend(n + 1)
        want = expected(plan, axes, frames[: n + 1])
        np.testing.assert_array_equal(by_zarr(path / "0"), want)
    sink.settle(count)
    store.finish([record(count)], {})
    store.close()
    group = zarr.open_group(str(path), mode="r")
    for read in READERS.values():
        np.testing.assert_array_equal(read(path / "0"), want)
    names = [axis.name for axis in plan.axes]
    attributes = group.attrs.asdict()
    (image,) = attributes.get("ome", attributes)["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == names
    assert [axis["type"] for axis in image["axes"]] == [KINDS.get(n, "space") for n in names]
    if how != "0.4":
        assert list(group["0"].metadata.dimension_names) == names
    steps = {s["type"]: s for s in image["datasets"][0]["coordinateTransformations"]}
    assert steps["scale"]["scale"] == [0.5] * len(names)
    assert steps["translation"]["translation"] == [0.0] * (len(names) - 1) + [3.0]


@pytest.mark.parametrize("compression", ["none", "zstd", "blosc-lz4", "blosc-zstd", "gzip"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pixel_types_and_codecs(tmp_path, dtype, compression):
    plan, frames = planned(dtype=dtype), pictures(5, dtype)
    for how in ("files", "shards", "0.4"):
        opts = options(compression=compression, **HOW[how])
        recorded(path := folder(tmp_path, f"{how}.ome.zarr"), plan, opts, frames)
        want = expected(plan, ENDLESS, frames)
        found = by_zarr(path / "0")
        assert found.dtype == frames.dtype
        np.testing.assert_array_equal(found, want)
        if compression == "none":
            np.testing.assert_array_equal(by_tensorstore(path / "0"), want)


@pytest.mark.parametrize("how", ["files", "shards", "pieces", "0.4"])
def test_threads_store_in_any_order(tmp_path, how):
    axes, tile, frame = (("t", None), ("c", 2)), TILE, (23, 30)
    opts = options(**HOW.get(how, {"shards": (20, 24, 1, 2, 3)}))
    plan = planned(axes, frame=frame, tile=tile)
    if how == "shards":
        opts = options(shards=(HEIGHT, WIDTH, 1, 1, 4))
    frames = pictures(40, frame=frame)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, opts)
    sink = store.open(0)
    order = np.random.default_rng(3).permutation(40)
    failures = []

    def work(numbers):
        try:
            for n in numbers:
                tiles = tiles_of(plan, n, frames[n])
                for some in (tiles[1:], tiles[:1]):
                    sink.store_tiles([(at, sink.encode_tile(at, px)) for at, px in some])
                for at, px in tiles:
                    np.testing.assert_array_equal(sink.load_tile(at), px)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(order[k::4],)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    sink.extend(40)
    for read in READERS.values():
        np.testing.assert_array_equal(read(path / "0"), expected(plan, axes, frames))
    store.finish([record(40)], {})
    store.close()
    for read in READERS.values():
        np.testing.assert_array_equal(read(path / "0"), expected(plan, axes, frames))


def test_chunks_longer_than_one_along_t(tmp_path):
    axes = (("t", None),)
    plan, frames = planned(axes, tile=(HEIGHT, WIDTH, 1, 1, 3)), pictures(7)
    for how in ("files", "0.4", "shards"):
        opts = options(
            **{**HOW[how], **({"shards": (HEIGHT, WIDTH, 1, 1, 6)} if how == "shards" else {})}
        )
        path = folder(tmp_path, f"{how}.ome.zarr")
        store = ZarrStore(path, plan, opts)
        sink = store.open(0)
        with_room = Scratch(tmp_path)
        writer = TileWriter(sink, workers=2, scratch=with_room)
        for n, frame in enumerate(frames):
            spans = (range(HEIGHT), range(WIDTH), range(1), range(1), range(n, n + 1))
            writer.write(spans, frame[:, :, None, None, None])
            if n % 3 == 2:
                sink.extend(n + 1)
                np.testing.assert_array_equal(by_zarr(path / "0"), frames[: n + 1])
        writer.flush()
        sink.extend(7)
        sink.settle(7)
        assert sink.images[0].shape == (HEIGHT, WIDTH, 1, 1, 7)
        assert sink.load_tile(Address(0, 0, (0, 0, 0, 0, 2))).shape == (HEIGHT, WIDTH, 1, 1, 1)
        store.finish([record(7)], {})
        store.close()
        with_room.close()
        for read in READERS.values():
            np.testing.assert_array_equal(read(path / "0"), frames)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("how", ["files", "shards", "0.4"])
def test_smaller_levels_are_listed_when_they_have_pixels(tmp_path, how, live):
    axes = (("t", None),)
    plan, frames = planned(axes, levels=3), pictures(5)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(**HOW[how]))
    sink = store.open(0)
    scratch = Scratch(tmp_path)
    writer = TileWriter(sink, workers=1, scratch=scratch, shrinks=live)

    def listed():
        attributes = zarr.open_group(str(path), mode="r").attrs.asdict()
        (image,) = attributes.get("ome", attributes)["multiscales"]
        return [dataset["path"] for dataset in image["datasets"]]

    assert listed() == ["0"]
    for n, frame in enumerate(frames):
        writer.write_tiles(tiles_of(plan, n, frame))
        sink.extend(n + 1)
        shapes = [by_zarr(path / str(level)).shape[0] for level in range(3)]
        assert shapes == [n + 1] * 3
        assert listed() == (["0", "1", "2"] if live else ["0"])
    sink.settle(5)
    if not live:
        TileWriter(sink, workers=2, scratch=scratch).shrink_stored()
    store.finish([record(5)], {})
    store.close()
    scratch.close()
    assert listed() == ["0", "1", "2"]
    want = frames
    for level in range(3):
        for read in READERS.values():
            np.testing.assert_array_equal(read(path / str(level)), want)
        five = np.moveaxis(want, 0, -1)[:, :, None, None, :]
        want = np.moveaxis(smaller(five)[:, :, 0, 0, :], -1, 0)


def test_black_frames_take_no_room_and_are_there(tmp_path):
    frames = pictures(8)
    frames[[1, 4, 5, 6, 7]] = 0
    plan = planned((("t", None),))
    for how in ("files", "shards"):
        path = folder(tmp_path, f"{how}.ome.zarr")
        recorded(path, plan, options(**HOW[how]), frames)
        np.testing.assert_array_equal(by_zarr(path / "0"), frames)
        chunks = [p for p in (path / "0" / "c").rglob("*") if p.is_file()]
        assert len(chunks) == {"files": 3, "shards": 1}[how]


def test_a_tile_stored_again_replaces_the_first(tmp_path):
    plan, frames = planned((("t", 6),)), pictures(6)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(shards=(HEIGHT, WIDTH, 1, 1, 3)))
    sink = store.open(0)
    for n in range(6):
        store_frame(sink, plan, n, frames[n] + 1)
    store_frame(sink, plan, 1, frames[1])
    store_frame(sink, plan, 4, np.zeros_like(frames[4]))
    sink.extend(6)
    want = frames + 1
    want[1], want[4] = frames[1], 0
    np.testing.assert_array_equal(by_zarr(path / "0"), want)
    store.finish([record(6)], {})
    store.close()
    for read in READERS.values():
        np.testing.assert_array_equal(read(path / "0"), want)


# ------------------------------------------------------------------ at every system call


class Calls:
    """Runs a check after every system call that changes something, and amid every long one."""

    CHANGING = ("open", "write", "pwrite", "pwritev", "replace", "truncate", "unlink", "mkdir")

    def __init__(self, monkeypatch, check):
        self.check, self.inside, self.count, self.nbytes = check, False, 0, 0
        for name in self.CHANGING:
            monkeypatch.setattr(os, name, self.watched(name, getattr(os, name)))

    def watched(self, name, real):
        def call(*args, **more):
            if self.inside:
                return real(*args, **more)
            if name in ("write", "pwrite", "pwritev"):
                result = self.torn(name, real, args)
            else:
                result = real(*args, **more)
            self.look()
            return result

        return call

    def look(self):
        self.inside = True
        try:
            self.check()
            self.count += 1
        finally:
            self.inside = False

    def torn(self, name, real, args):
        """Write in two steps, but for what is so small that the system does it in one."""
        data = b"".join(map(bytes, args[1])) if name == "pwritev" else bytes(args[1])
        self.nbytes += len(data)
        if len(data) <= 64:
            return real(*args)
        half = len(data) // 2
        if name == "write":
            real(args[0], data[:half])
            self.look()
            real(args[0], data[half:])
        else:
            os.lseek(args[0], 0, os.SEEK_CUR)
            pwrite = self.real_pwrite
            pwrite(args[0], data[:half], args[2])
            self.look()
            pwrite(args[0], data[half:], args[2] + half)
        return len(data)

    real_pwrite = staticmethod(os.pwrite)


@pytest.mark.parametrize("how", ["files", "0.4", "shards", "shards-c", "zstd"])
def test_after_and_amid_every_system_call_the_planes_are_there(tmp_path, monkeypatch, how):
    plan, frames = planned(), pictures(9)
    path = folder(tmp_path)
    claimed = 0
    store = ZarrStore(path, plan, options(**HOW[how]))
    document = path / "0" / (".zarray" if how == "0.4" else "zarr.json")

    def check():
        if not document.exists():
            return
        for read in READERS.values():
            whole = read(path / "0")
            want = expected(plan, ENDLESS, frames[:claimed])
            assert len(whole) in (len(want), len(want) + 1)
            np.testing.assert_array_equal(
                seen_part(plan, ENDLESS, frames[:claimed], whole[: len(want)]), want
            )
        if list(path.glob(".zattrs")) or (how != "0.4" and (path / "zarr.json").exists()):
            check_groups(path, "0.4" if how == "0.4" else "0.5")

    with monkeypatch.context() as patch:
        calls = Calls(patch, check)
        sink = store.open(0)
        for n, frame in enumerate(frames):
            store_frame(sink, plan, n, frame)
            sink.extend(n + 1)
            claimed = n + 1
        store.finish([record(9)], {"note": {"a": 1}})
        store.close()
    assert calls.count > 40


def test_no_write_is_amplified(tmp_path, monkeypatch):
    """Frames of 64 KiB in shards of 16 along t: 1.05 bytes are written for each of the data."""
    frame = (128, 256)
    plan = planned((("t", None),), frame=frame, tile=(*frame, 1, 1, 1))
    frames = pictures(48, frame=frame)
    path = folder(tmp_path)
    with monkeypatch.context() as patch:
        calls = Calls(patch, lambda: None)
        recorded(path, plan, options(shards=(*frame, 1, 1, 16)), frames)
    assert frames.nbytes < calls.nbytes < 1.05 * frames.nbytes
    stored = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    assert stored < 1.05 * frames.nbytes


# ------------------------------------------------------------------ faults

CHILD = r"""
    import os, sys
    import numpy as np
    from pathlib import Path
    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.backends.zarr_stream import ZarrStore
    from bioio_tk.core.acquisition import AcquisitionPlan, StoredAxis
    from bioio_tk.core.frames import UNBOUNDED, FrameAxis, FrameOrder
    from bioio_tk.core.spec import Address, ImageSpec, Level

    path, version, compression, shards = sys.argv[1:5]
    tile = (64, 64, 1, 1, 1)
    level = Level((64, 64, 1, 2, UNBOUNDED), tile)
    plan = AcquisitionPlan(
        ImageSpec(np.dtype("u2"), (level,)),
        FrameOrder((FrameAxis("T", UNBOUNDED), FrameAxis("C", 2))),
        tuple(StoredAxis(n, k, n.upper()) for n, k in
              (("t", "time"), ("c", "channel"), ("y", "space"), ("x", "space"))),
    )
    extra = {"ngff_version": version, "shards": eval(shards)}
    store = ZarrStore(Path(path), plan, StoreOptions(compression=compression, extra=extra))
    sink = store.open(0)
    for n in range(100000):
        z, c, t = plan.order.key(n)
        frame = np.random.default_rng(n).integers(1, 60000, (64, 64, 1, 1, 1), "u2")
        at = Address(0, 0, (0, 0, z, c, t))
        sink.store_tiles([(at, sink.encode_tile(at, frame))])
        sink.extend(n + 1)
        os.write(1, b"%d\n" % (n + 1))
"""


def child_plan():
    level = Level((64, 64, 1, 2, UNBOUNDED), (64, 64, 1, 1, 1))
    return planned(frame=(64, 64), tile=level.tile)


def check_killed(path, count):
    """Check the frames that the child said were seen, and that all else can be read."""
    for read in READERS.values():
        found = read(path / "0").reshape(-1, 64, 64)
        assert len(found) >= count
        for n in range(count):
            want = np.random.default_rng(n).integers(1, 60000, (64, 64, 1, 1, 1), "u2")[
                ..., 0, 0, 0
            ]
            np.testing.assert_array_equal(found[n], want)
    return len(found)


@pytest.mark.parametrize("how", [
    ("0.5", "none", "None"), ("0.4", "zstd", "None"), ("0.5", "none", "(64, 64, 1, 1, 16)"),
    ("0.5", "blosc-lz4", "(64, 64, 1, 2, 50)"), ("0.5", "none", "(64, 64, 1, 1, 300)"),
])  # fmt: skip
def test_kill_9_loses_nothing_and_the_store_can_be_finished(tmp_path, how):
    path = folder(tmp_path)
    words = [sys.executable, "-c", textwrap.dedent(CHILD), str(path), *how]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as child:
        try:
            for n in range(12):
                assert child.stdout.readline() == b"%d\n" % (n + 1)
            time.sleep(float(np.random.default_rng().uniform(0, 0.3)))
            os.kill(child.pid, signal.SIGKILL)
            said = child.stdout.read().split(b"\n")
        finally:
            child.kill()
        assert child.wait(30) == -signal.SIGKILL
    count = int(said[-2])
    assert count >= 12
    check_killed(path, count)
    safe = count - 3  # what a journal knows of may be less than what was seen
    opts = options(how[0], eval(how[2]), how[1])
    store = ZarrStore.reopen(path, child_plan(), opts, {0: safe})
    metadata = [(n, {"n": n}) for n in range(safe)]
    store.finish([record(safe, metadata=lambda: metadata)], {"run": {"killed": True}})
    store.close()
    assert check_killed(path, count) in (count, count + 1)
    assert not list(path.rglob("*.part"))
    attributes = zarr.open_group(str(path), mode="r").attrs.asdict()
    said = attributes["ome_writers"]["frame_metadata"]
    assert [entry["n"] for entry in said] == list(range(safe))
    assert attributes["run"] == {"killed": True}
    found = attributes.get("ome", attributes)["omero"]["channels"]
    for window in (channel["window"] for channel in found):
        assert 0 < window["start"] < 600 < 59000 < window["end"] < 60000
    with BioReader(path) as br:
        assert br.shape == (64, 64, 1, 2, -(-count // 2))


@pytest.mark.parametrize("harm", ["sealed", "unsealed", "half sealed", "cut off", "empty"])
def test_shards_are_mended_whatever_happened_to_their_end(tmp_path, harm):
    axes = (("t", None),)
    plan, frames = planned(axes), pictures(6)
    opts = options(shards=(HEIGHT, WIDTH, 1, 1, 8))
    path = folder(tmp_path)
    store = ZarrStore(path, plan, opts)
    sink = store.open(0)
    for n, frame in enumerate(frames):
        store_frame(sink, plan, n, frame)
        sink.extend(n + 1)
    if harm == "sealed":
        sink.finish()
    store.close()
    (shard,) = (path / "0" / "c").rglob("0/0/0")
    whole, nbytes = shard.read_bytes(), frames[0].nbytes
    want = frames.copy()
    if harm == "half sealed":
        shard.write_bytes(whole + whole[:50])
    elif harm == "cut off":  # the power was lost
        shard.write_bytes(whole[: -nbytes - 7])
        want[4:] = 0
    elif harm == "empty":
        shard.write_bytes(b"")
        want[:] = 0
    for _ in range(2):  # the second one may have been killed, too
        store = ZarrStore.reopen(path, plan, opts, {0: 6})
        store.finish([record(6)], {})
        store.close()
        for read in READERS.values():
            np.testing.assert_array_equal(read(path / "0"), want)
    assert shard.stat().st_size <= 128 + 6 * nbytes + 132


@pytest.mark.parametrize("how", ["files", "shards"])
@pytest.mark.parametrize("call", ["pwrite", "write", "replace"])
def test_a_full_disk_is_told_and_costs_nothing_else(tmp_path, monkeypatch, how, call):
    plan, frames = planned((("t", None),)), pictures(9)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(**HOW[how]))
    sink = store.open(0)
    for n in range(3):
        store_frame(sink, plan, n, frames[n])
        sink.extend(n + 1)

    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        failed = []
        for n in range(3, 9):
            try:
                store_frame(sink, plan, n, frames[n])
            except OSError as exc:
                failed.append(exc.errno)
    times = {  # in shards, frame 3 and its entry belong to a file that is there
        "files": {"pwrite": 0, "write": 6, "replace": 6},
        "shards": {"pwrite": 6, "write": 5, "replace": 5},
    }[how][call]
    assert failed == [errno.ENOSPC] * times
    for n in range(3, 9):
        store_frame(sink, plan, n, frames[n])
    sink.extend(9)
    store.finish([record(9)], {})
    store.close()
    for read in READERS.values():
        np.testing.assert_array_equal(read(path / "0"), frames)
    assert not list(path.rglob("*.part"))


def test_few_files_are_open_however_many_positions(tmp_path):
    count = 180
    positions = tuple(AcquiredPosition(f"p{n}") for n in range(count))
    plan = planned((("t", 4),), levels=2, positions=positions, several=True)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(shards=(HEIGHT, WIDTH, 1, 1, 4)))
    frames = pictures(4)
    most = 0
    sinks = {}
    for n in range(3):
        for position in range(count):
            sink = sinks.get(position) or sinks.setdefault(position, store.open(position))
            store_frame(sink, plan, n, frames[n] + position)
            sink.extend(n + 1)
            if position % 30 == 0:
                most = max(most, len(open_files(path)))
    assert 20 < most < 140
    for position in (0, 77, 179):
        np.testing.assert_array_equal(by_zarr(path / f"p{position}" / "0"), frames[:3] + position)
    store.finish([record(3, position) for position in range(count)], {})
    store.close()
    assert not open_files(path)
    for position in (0, 77, 179):
        np.testing.assert_array_equal(by_zarr(path / f"p{position}" / "0"), frames[:3] + position)


# ------------------------------------------------------------------ several images

UNSAFE = [
    "..", "../x", "a\\b", "a/b", "OME", "ome", "zarr.json", "", " ", ".", ".zattrs", "__x", "con",
    "Pos", "pos", "POS", "Größe µm", "位置", "e\u0301", "\u00e9", "x" * 300, "x" * 301, "\0",
    "\udcff",
    "c", "0", "labels", "trailing. ", "_",
]  # fmt: skip


def places_of(path):
    """Return the folders of all images, as they lie in a store, by the name in their metadata."""
    found = {}
    for group, attributes in groups(path).items():
        for image in attributes.get("ome", attributes).get("multiscales", ()):
            found.setdefault(image["name"], []).append(group)
    return found


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_names_that_are_no_paths_stay_inside_and_apart(tmp_path, version):
    positions = tuple(AcquiredPosition(name) for name in UNSAFE)
    plan = planned((("t", 2),), positions=positions, several=True)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(version))
    frames = pictures(2)
    for position in range(len(UNSAFE)):
        sink = store.open(position)
        for n in range(2):
            store_frame(sink, plan, n, frames[n] + 10 * position)
        sink.extend(2)
    store.finish([record(2, position) for position in range(len(UNSAFE))], {})
    store.close()
    assert [p.name for p in tmp_path.iterdir()] == ["run.ome.zarr"]
    assert check_groups(path, version) == {"layout": 1, "series": 1, "image": len(UNSAFE)}
    series = groups(path)["OME"]
    series = series.get("ome", series)["series"]
    assert len({name.casefold() for name in series}) == len(UNSAFE)
    assert sorted(p.name for p in path.iterdir() if p.is_dir()) == sorted([*series, "OME"])
    for position, name in enumerate(series):
        np.testing.assert_array_equal(by_zarr(path / name / "0"), frames + 10 * position)
    for kept in ("Pos", "Größe µm", "位置", "0", "c"):
        assert kept in series
    named = places_of(path)
    assert [group.strip("/") for group in named["../x"]] == [series[1]]
    with BioReader(path) as br:
        assert br.n_series == len(UNSAFE)


def well(name, row, column, **more):
    return AcquiredPosition(name, row=row, column=column, **more)


WELLS = (
    well("fov_0", "A", "1"), well("fov_0", "B", "12"), well("fov_1", "A", "1"),
    well("F", "A", "2", grid_row=0, grid_column=0), well("F", "A", "2", grid_row=0, grid_column=1),
    well("..", "B", "1"), well("f", "A", "2"), well("x y", "A b", "1"),
    well("F", "A", "3", grid_row=1, grid_column=1),
)  # fmt: skip
WELL_PATHS = ["A/1/fov0", "B/12/fov0", "A/1/fov1", "A/2/Fr0c0", "A/2/Fr0c1", "B/1/0", "A/2/f",
              "Ab/1/xy", "A/3/F"]  # fmt: skip


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_plate_lists_what_is_there_at_every_moment(tmp_path, version):
    plate = Plate("P 1", ("A", "B"), ("1", "2", "3", "12"))
    plan = planned((("c", 2),), positions=WELLS, several=True, plate=plate)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(version))
    frames = pictures(2)
    for position in range(len(WELLS)):
        sink = store.open(position)
        for n in range(2):
            store_frame(sink, plan, n, frames[n] + position)
            sink.extend(n + 1)
        counts = check_groups(path, version)
        assert counts["image"] == position + 1
        attributes = groups(path)["."]
        said = attributes.get("ome", attributes)["plate"]
        wells = {p.rsplit("/", 1)[0] for p in WELL_PATHS[: position + 1]}
        assert {w["path"] for w in said["wells"]} == wells
        rows, columns = [r["name"] for r in said["rows"]], [c["name"] for c in said["columns"]]
        for w in said["wells"]:
            assert w["path"] == f"{rows[w['rowIndex']]}/{columns[w['columnIndex']]}"
        module = f"v{version.replace('.', '')}"
        models = pytest.importorskip(f"ome_zarr_models.{module}.hcs")
        hcs = models.HCS.from_zarr(zarr.open_group(str(path), mode="r"))
        assert len(list(hcs.well_groups)) == len(wells)
    store.finish([record(2, position) for position in range(len(WELLS))], {"note": {"a": "b"}})
    store.close()
    assert check_groups(path, version)["image"] == len(WELLS)
    assert groups(path)["."]["note"] == {"a": "b"}
    for position, place in enumerate(WELL_PATHS):
        np.testing.assert_array_equal(by_zarr(path / place / "0"), frames + position)
    assert groups(path)["."].get("ome", groups(path)["."])["plate"]["field_count"] == 3
    with BioReader(path) as br:
        assert br.n_series == len(WELLS)
        assert br.plate.wells[0].path == "A/1"
    import ome_types

    xml = ome_types.from_xml((path / "OME/METADATA.ome.xml").read_bytes())
    assert len(xml.images) == len(WELLS)


def test_images_are_listed_in_the_order_of_positions_not_of_visits(tmp_path):
    plate = Plate("P", ("B", "A"), ("1", "2", "3", "12"))
    plan = planned((("t", 1),), positions=WELLS, several=True, plate=plate)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options())
    for position in (6, 2, 1, 4, 0, 3):
        store_frame(store.open(position), plan, 0, pictures(1)[0] + position)
    found = {group: about["ome"] for group, about in groups(path).items() if "ome" in about}
    assert [w["path"] for w in found["."]["plate"]["wells"]] == ["B/12", "A/1", "A/2"]
    fields = {w: [i["path"] for i in found[w]["well"]["images"]] for w in ("A/1", "A/2")}
    assert fields == {"A/1": ["fov0", "fov1"], "A/2": ["Fr0c0", "Fr0c1", "f"]}
    store.finish([record(1, position) for position in (6, 2, 1, 4, 0, 3)], {})
    store.close()
    for series, position in enumerate((1, 0, 2, 3, 4, 6)):
        with BioReader(path, series=series) as br:
            np.testing.assert_array_equal(np.squeeze(br[...]), pictures(1)[0] + position)
    import ome_types

    xml = ome_types.from_xml((path / "OME/METADATA.ome.xml").read_bytes())
    names = ["fov_0", "fov_0", "fov_1", "F", "F", "f"]
    assert [image.name for image in xml.images] == names


def test_positions_never_visited_leave_nothing(tmp_path):
    positions = tuple(AcquiredPosition(f"p{n}") for n in range(5))
    plan = planned((("t", 3),), positions=positions, several=True)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options())
    assert list(path.iterdir()) == []
    frames = pictures(3)
    for position, planes in ((3, 3), (1, 2)):
        sink = store.open(position)
        for n in range(planes):
            store_frame(sink, plan, n, frames[n])
        sink.extend(planes)
        sink.settle(planes)
    store.finish([record(3, 3), record(2, 1)], {})
    store.close()
    assert sorted(p.name for p in path.iterdir()) == ["OME", "p1", "p3", "zarr.json"]
    assert groups(path)["OME"]["ome"]["series"] == ["p1", "p3"]
    np.testing.assert_array_equal(by_zarr(path / "p3" / "0"), frames)
    np.testing.assert_array_equal(by_zarr(path / "p1" / "0"), frames[:2])


# ------------------------------------------------------------------ metadata


def test_frame_metadata_skipped_frames_and_notes(tmp_path):
    plan, frames = planned(), pictures(9)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options())
    sink = store.open(0)
    for n in (0, 1, 4, 5, 6, 7, 8):
        store_frame(sink, plan, n, frames[n])
    sink.extend(9)
    metadata = [
        (n, {"delta_t": n / 2, "deep": {"a": [n, "ü\n"]}, "nan": math.nan}) for n in (0, 5, 8)
    ]
    done = record(9, skipped=(range(2, 4),), metadata=lambda: iter(metadata))
    notes = {"run": {"frame_metadata": [], "who": "ü"}}
    store.finish([done], notes)
    store.close()
    for again in range(2):
        attributes = zarr.open_group(str(path), mode="r").attrs.asdict()
        said = attributes["ome_writers"]
        assert said["frame_metadata"] == [
            {
                "delta_t": n / 2,
                "deep": {"a": [n, "ü\n"]},
                "nan": None,
                "storage_index": [n // 2, n % 2],
            }
            for n in (0, 5, 8)
        ]
        assert said["skipped_frames"] == [[1, 0], [1, 1]]
        assert attributes["run"] == {"frame_metadata": [], "who": "ü"} if again == 0 else {"b": 2}
        assert attributes["ome"]["multiscales"][0]["name"] == "run"
        store.finish((), {**notes, "run": {"b": 2}})  # said after the end
    json.loads((path / "zarr.json").read_text(), parse_constant=pytest.fail)
    want = frames.copy()
    want[2:4] = 0
    np.testing.assert_array_equal(by_zarr(path / "0"), expected(plan, ENDLESS, want))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_get_and_update_metadata(tmp_path, version):
    positions = tuple(AcquiredPosition(f"p{n}") for n in range(2))
    plan = planned((("t", 2),), positions=positions, several=True)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(version))
    for position in range(2):
        sink = store.open(position)
        for n, frame in enumerate(pictures(2)):
            store_frame(sink, plan, n, frame)
        sink.extend(2)
    metadata = [(0, {"a": 1})]
    store.finish([record(2, p, metadata=lambda: metadata) for p in range(2)], {})
    store.close()
    found = store.get_metadata()
    assert list(found) == ["p0", "p1"]
    found["p1"]["mine"] = {"x": 3}
    assert "mine" not in store.get_metadata()["p1"]
    store.update_metadata({"p1": found["p1"]})
    attributes = groups(path)["p1"]
    assert attributes["mine"] == {"x": 3}
    assert attributes["ome_writers"]["frame_metadata"] == [{"a": 1, "storage_index": [0]}]
    assert "mine" not in groups(path)["p0"]
    with pytest.raises(KeyError, match="Unknown path: nope"):
        store.update_metadata({"p0": {"gone": 1}, "nope": {}})
    assert "gone" not in groups(path)["p0"]
    single = recorded(folder(tmp_path, "one.zarr"), planned((("t", 2),)), options(), pictures(2))
    assert list(single.get_metadata()) == ["."]


def test_windows_are_measured_from_frames_that_are_spread(tmp_path):
    axes = (("t", None), ("c", 2))
    plan = planned(axes, frame=(200, 150), tile=(200, 150, 1, 1, 1))
    path = folder(tmp_path)
    rng = np.random.default_rng(1)
    frames = rng.integers(100, 200, (80, 200, 150), "u2")
    frames[1::2] += 1000
    frames[[6, 7, 78, 79]] = 60000  # t = 3, 39: only 0, 1, 2, 4, 8, … are looked at
    recorded(path, plan, options(), frames)
    channels = groups(path)["."]["ome"]["omero"]["channels"]
    assert [c["label"] for c in channels] == ["ch0", "ch1"]
    for c, low in enumerate((100, 1100)):
        window = channels[c]["window"]
        assert (window["min"], window["max"]) == (0, 65535)
        assert low <= window["start"] < low + 5
        assert low + 95 < window["end"] < low + 100


def test_endless_channels_do_not_fill_the_memory(tmp_path):
    plan, count = planned((("c", None),)), 600
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(shards=(HEIGHT, WIDTH, 1, 100, 1)))
    sink = store.open(0)
    frame = pictures(1)[0]
    for n in range(count):
        store_frame(sink, plan, n, frame)
    sink.extend(count)
    assert len(sink._seen._values) <= 256
    store.finish([record(count)], {})
    store.close()
    assert by_zarr(path / "0").shape == (count, HEIGHT, WIDTH)
    assert len(groups(path)["."]["ome"]["omero"]["channels"]) == count


# ------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize(("plan", "opts", "error", "text"), [
    (planned(), options(compression="lzw"), SpecError, "lzw"),
    (planned(), options("0.6"), SpecError, "0.6"),
    (planned(), options("0.4", shards=TILE), SpecError, "shards need"),
    (planned(), options(shards=(HEIGHT, 7, 1, 1, 1)), SpecError, "no multiple"),
    (planned(), replace(options(), predictor=True), SpecError, "predictor"),
    (planned(), replace(options(), extra={"chunks": 3}), SpecError, "chunks"),
    (planned(dtype="f16"), options(), UnsupportedError, "float128"),
    (replace(planned(), axes=planned().axes[1:]), options(), SpecError, "'CYX'"),
    (replace(planned(), axes=planned().axes[::-1]), options(), SpecError, "'XYCT'"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_exists(plan, opts, error, text):
    with pytest.raises(error, match=text):
        ZarrStore.check(plan, opts)


def test_foreign_files_are_found(tmp_path):
    path = folder(tmp_path)
    plan = planned((("t", 2),))
    recorded(path, plan, options(), pictures(2))
    assert ZarrStore.foreign(path, plan, options()) is None
    (path / "notes.txt").write_text("mine")
    assert ZarrStore.foreign(path, plan, options()) == path / "notes.txt"


@pytest.mark.parametrize("how", HOW)
def test_our_own_reader_opens_what_still_grows(tmp_path, how):
    plan, frames = planned(), pictures(7)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(**HOW[how]))
    sink = store.open(0)
    for n, frame in enumerate(frames):
        store_frame(sink, plan, n, frame)
        sink.extend(n + 1)
        with BioReader(path) as br:
            found = br[...].reshape(HEIGHT, WIDTH, -1, order="F")
            np.testing.assert_array_equal(np.moveaxis(found, 2, 0)[: n + 1], frames[: n + 1])
    store.close()
