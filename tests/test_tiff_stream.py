"""OME-TIFF that grows: what others see of it at every moment, and what is left of it."""

from __future__ import annotations

import logging
import os
import random
import re
import subprocess
import sys
import textwrap
import threading
import warnings
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import ome_types
import pytest
import tifffile
from images import coded, smaller
from java_images import by_java, opened, series_count
from lxml import etree

import bioio_tk
from bioio_tk import BioReader
from bioio_tk.backends import _open_files, tiff_stream
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends.base import StoreOptions
from bioio_tk.backends.tiff_stream import TiffStore
from bioio_tk.core.acquisition import (
    AcquiredChannel,
    AcquiredPosition,
    AcquisitionPlan,
    ImageRecord,
)
from bioio_tk.core.frames import UNBOUNDED, FrameAxis, FrameOrder
from bioio_tk.core.plate import Plate
from bioio_tk.core.spec import Address, ImageSpec, PhysicalSize, pyramid_levels
from bioio_tk.errors import (
    BackendError,
    BioIOError,
    ClosedError,
    DamagedFileError,
    PixelTypeError,
    SpecError,
    TargetExistsError,
    UnsupportedError,
)
from bioio_tk.meta.ome_absent import absent_planes

SCHEMA = etree.XMLSchema(etree.parse(Path(ome_types.__file__).parent / "ome-2016-06.xsd"))
RAW = StoreOptions(compression="none")


def acquisition(
    axes=(("T", UNBOUNDED),),
    size=(20, 30),
    dtype="u2",
    tile=None,
    levels=1,
    positions=("0",),
    **more,
):
    """Return a plan; axes are (letter, size) or (letter, size, step), the slowest first."""
    order = FrameOrder(tuple(FrameAxis(*axis) for axis in axes))
    shape = (*size, *order.sizes)
    made = pyramid_levels(shape, (*(tile or size), 1, 1, 1), levels, multiple=1)
    return AcquisitionPlan(
        replace(ImageSpec(np.dtype(dtype), made), **more.pop("image", {})),
        order,
        (),
        positions=tuple(AcquiredPosition(name) for name in positions),
        several=len(positions) > 1,
        created="2026-11-21T12:00:00+00:00",
        **more,
    )


def frames(plan, count, seed=0):
    """Return the frames of an acquisition, (n, y, x)."""
    made = coded((*plan.image.shape[:2], count), plan.image.dtype, seed)
    return np.moveaxis(made, 2, 0)


def tiles(sink, plan, plane, frame, level=0):
    """Return all tiles of a plane with their addresses."""
    found = sink.images[0].levels[level]
    for ky, kx in np.ndindex(found.grid.counts[:2]):
        at = Address(0, level, (ky, kx, *plan.order.key(plane)))
        region = found.grid.region(at.key)
        (y0, x0), (y1, x1) = region.start[:2], region.stop[:2]
        yield at, np.ascontiguousarray(frame[y0:y1, x0:x1])[:, :, None, None, None]


def store(sink, plan, plane, frame, level=0):
    sink.store_tiles(
        [(at, sink.encode_tile(at, tile)) for at, tile in tiles(sink, plan, plane, frame, level)]
    )


def begin(path, plan, options=RAW):
    if TiffStore.is_folder(plan, options):
        path.mkdir()
    else:
        path.touch()
    return TiffStore(path, plan, options)


def record(path, plan, images, options=RAW, *, notes=(), metadata=None, skipped=()):
    """Write a whole acquisition: the frames of each position one after the other."""
    whole = begin(path, plan, options)
    records = []
    for position, some in images.items():
        sink = whole.open(position)
        for plane, frame in enumerate(some):
            if plane not in skipped:
                store(sink, plan, plane, frame)
            sink.extend(plane + 1)
        sink.settle(len(some))
        said = (metadata or {}).get(position, ())
        gaps = tuple(range(n, n + 1) for n in skipped)
        records.append(ImageRecord(position, len(some), gaps, lambda said=said: iter(said)))
    whole.finish(records, dict(notes))
    whole.close()
    return whole


@contextmanager
def without_complaint(but="nothing else"):
    """Fail where tifffile says that something is wrong, but for one thing."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda entry: said.append(entry.getMessage())
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
    assert not [text for text in said if but not in text]


def by_tifffile(path, series=0, level=0, but="nothing else"):
    """Return all pixels as Y, X, Z, C, T."""
    with without_complaint(but), tifffile.TiffFile(path) as tif:
        assert tif.is_ome
        found = tif.series[series].levels[level]
        axes = found.get_axes(squeeze=False)
        image = found.asarray(squeeze=False)
        image = image.reshape(found.get_shape(squeeze=False))
    for axis in [a for a in axes if a not in "TCZYX"]:
        image = image.squeeze(axes.index(axis))
        axes = axes.replace(axis, "")
    for axis in "TCZYX":
        if axis not in axes:
            image, axes = image[None], axis + axes
    return image.transpose([axes.index(axis) for axis in "YXZCT"])


def expected(plan, some, missing=()):
    """Return Y, X, Z, C, T of frames in the order taken, by plain counting."""
    sizes = [axis.size for axis in plan.order.axes]
    if sizes:
        inner = int(np.prod(sizes[1:]))
        sizes[0] = -(-len(some) // inner)
    letters = [axis.letter for axis in plan.order.axes]
    steps = [axis.step for axis in plan.order.axes]
    full = {"Z": 1, "C": 1, "T": 1}
    for letter, size, step in zip(letters, sizes, steps, strict=True):
        full[letter] += (size - 1) * step
    image = np.zeros((*plan.image.shape[:2], *full.values()), plan.image.dtype)
    for number, index in enumerate(product(*map(range, sizes))):
        at = {"Z": 0, "C": 0, "T": 0}
        for letter, step, k in zip(letters, steps, index, strict=True):
            at[letter] += k * step
        if number < len(some) and number not in missing:
            image[:, :, at["Z"], at["C"], at["T"]] = some[number]
    return image


def ome_xml(path):
    with tifffile.TiffFile(path) as tif:
        return tif.pages[0].description


def valid(text):
    """Return the tree of a document that the schema of OME accepts."""
    tree = etree.fromstring(text.encode() if isinstance(text, str) else text)
    SCHEMA.assertValid(tree)
    return tree


def sizes(tree):
    """Return SizeZ, SizeC, SizeT and PlaneCount of the first image."""
    pixels = next(tree.iter("{*}Pixels"))
    found = [int(pixels.get(f"Size{axis}")) for axis in "ZCT"]
    return (*found, int(next(pixels.iter("{*}TiffData")).get("PlaneCount")))


# ------------------------------------------------------------------ pixels

ORDERS = {
    "t": (("T", UNBOUNDED),),
    "tcz": (("T", UNBOUNDED), ("C", 2), ("Z", 3)),
    "tzc": (("T", UNBOUNDED), ("Z", 3), ("C", 2)),
    "ctz": (("C", 3), ("T", 2), ("Z", 2)),
    "zc": (("Z", 4), ("C", 3)),
    "plane": (),
    "cameras": (("T", 2), ("C", 2, 2), ("Z", 2), ("C", 2)),
}
TILES = {"strip": None, "strips": (8, 30), "tiles": (16, 16), "odd tiles": (7, 13)}
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "bool"]


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_reads_right_by_everyone(tmp_path, order):
    plan = acquisition(ORDERS[order])
    count = 1 if order == "plane" else min(14, plan.order.planes)
    some = frames(plan, count)
    path = tmp_path / "a.ome.tiff"
    record(path, plan, {0: some})
    want = expected(plan, some)
    np.testing.assert_array_equal(by_tifffile(path), want)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br.read().reshape(want.shape), want)
    valid(ome_xml(path))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "zstd"])
@pytest.mark.parametrize("dtype", [*TYPES, "u8", "i8", "f2", "c8", "c16"])
def test_every_pixel_type_and_compression(tmp_path, dtype, compression, tile):
    plan = acquisition(ORDERS["tcz"], dtype=dtype, tile=TILES[tile])
    some = frames(plan, 8)
    path = tmp_path / "a.ome.tiff"
    record(path, plan, {0: some}, StoreOptions(compression=compression), skipped=(2,))
    want = expected(plan, some, missing=(2,))
    np.testing.assert_array_equal(by_tifffile(path).astype(dtype), want)
    with BioReader(path) as br:
        assert br.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(br.read().reshape(want.shape), want)


@pytest.mark.parametrize("predictor", [True, False])
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_predictor(tmp_path, dtype, predictor):
    plan = acquisition(dtype=dtype)
    some = frames(plan, 3)
    path = tmp_path / "a.ome.tiff"
    options = StoreOptions(compression="deflate", level=9, predictor=predictor)
    record(path, plan, {0: some}, options)
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, some))
    with tifffile.TiffFile(path) as tif:
        assert (tif.pages[0].predictor != 1) == predictor


def test_a_frame_is_one_strip_and_chunks_are_strips_or_tiles(tmp_path):
    found = {}
    for name, tile in TILES.items():
        plan = acquisition(tile=tile)
        path = tmp_path / f"{name}.ome.tiff"
        record(path, plan, {0: frames(plan, 2)})
        with tifffile.TiffFile(path) as tif:
            page = tif.pages[1]
            found[name] = (page.is_tiled, page.chunks, len(page.dataoffsets))
            assert tif.is_bigtiff
            assert tif.byteorder == "<"
    assert found == {
        "strip": (False, (20, 30), 1),
        "strips": (False, (8, 30), 3),
        "tiles": (True, (16, 16), 4),
        "odd tiles": (True, (16, 16), 4),
    }


@pytest.mark.parametrize("order", [*ORDERS])
@pytest.mark.parametrize("tile", ["strip", "tiles"])
def test_bio_formats_reads_every_order(java, tmp_path, order, tile):
    plan = acquisition(ORDERS[order], tile=TILES[tile])
    count = 1 if order == "plane" else min(11, plan.order.planes)
    some = frames(plan, count)
    path = tmp_path / "a.ome.tiff"
    record(path, plan, {0: some}, skipped=(4,))
    np.testing.assert_array_equal(by_java(java, path), expected(plan, some, missing=(4,)))


@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "zstd"])
@pytest.mark.parametrize("dtype", TYPES)
def test_bio_formats_reads_every_pixel_type(java, tmp_path, dtype, compression):
    for tile in ("strip", "tiles"):
        plan = acquisition(ORDERS["tcz"], dtype=dtype, tile=TILES[tile])
        some = frames(plan, 6)
        path = tmp_path / f"{tile}.ome.tiff"
        record(path, plan, {0: some}, StoreOptions(compression=compression))
        np.testing.assert_array_equal(by_java(java, path).astype(dtype), expected(plan, some))


def test_what_is_known_of_the_image_is_in_the_file(java, tmp_path):
    size = PhysicalSize((0.5, "µm"), (0.25, "µm"), (2.0, "µm"))
    channels = (AcquiredChannel("DAPI", (0, 0, 255, 255), 405, 450), AcquiredChannel("α"))
    plan = acquisition(
        ORDERS["tcz"], image={"physical_size": size}, channels=channels, positions=("here",)
    )
    path = tmp_path / "a.ome.tiff"
    said = [(1, {"delta_t": 0.5, "position_x": 3.0, "who": "me"})]
    record(path, plan, {0: frames(plan, 6)}, notes={"lab": {"a": [1]}}, metadata={0: said})
    tree = valid(ome_xml(path))
    plane = next(tree.iter("{*}Plane"))
    assert (plane.get("TheZ"), plane.get("DeltaT")) == ("1", "0.5")
    with tifffile.TiffFile(path) as tif:
        assert tif.pages[0].resolution == (20000.0, 40000.0)
        assert tif.pages[3].tags["XResolution"].value == tif.pages[0].tags["XResolution"].value
        assert tif.pages[0].software.startswith("bioio_tk")
    with opened(java, path) as reader:
        store = reader.getMetadataStore()
        assert str(store.getChannelName(0, 1)) == "α"
        assert str(store.getImageName(0)) == "here"


# ------------------------------------------------------------------ growing


@pytest.mark.parametrize("axes", ["t", "tcz"])
@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_planes_stored_by_threads_in_any_order(tmp_path, axes, compression):
    plan = acquisition(ORDERS[axes], tile=(16, 16))
    some = frames(plan, 60)
    path = tmp_path / "a.ome.tiff"
    whole = begin(path, plan, StoreOptions(compression=compression))
    sink = whole.open(0)
    numbers = list(range(60))
    random.Random(3).shuffle(numbers)
    done, failed, lock = set(), [], threading.Lock()

    def work():
        try:
            while True:
                with lock:
                    if not numbers:
                        return
                    plane = numbers.pop()
                store(sink, plan, plane, some[plane])
                with lock:
                    done.add(plane)
                    ready = next(n for n in range(61) if n not in done)
                    sink.extend(ready)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert sink.planes == 60
    whole.finish([ImageRecord(0, 60)], {})
    whole.close()
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, some))


def test_nothing_is_seen_before_it_is_said(tmp_path):
    plan = acquisition(ORDERS["tcz"])
    some = frames(plan, 12)
    path = tmp_path / "a.ome.tiff"
    sink = begin(path, plan).open(0)
    store(sink, plan, 0, some[0])
    with pytest.raises(tifffile.TiffFileError):
        tifffile.TiffFile(path)
    sink.extend(1)
    for plane in range(1, 12):
        store(sink, plan, plane, some[plane])
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, some[:1]))
    sink.extend(8)
    sink.extend(3)
    assert sink.planes == 8
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, some[:8]))


@pytest.mark.parametrize("tile", TILES)
def test_a_stored_tile_is_given_back_before_and_after_it_is_seen(tmp_path, tile):
    plan = acquisition(ORDERS["tcz"], tile=TILES[tile])
    some = frames(plan, 4)
    sink = begin(tmp_path / "a.ome.tiff", plan, StoreOptions(compression="zstd")).open(0)
    store(sink, plan, 3, some[3])
    for _ in range(2):
        for at, tile in tiles(sink, plan, 3, some[3]):
            np.testing.assert_array_equal(sink.load_tile(at), tile)
        assert sink.load_tile(Address(0, 0, (0, 0, *plan.order.key(1)))) is None
        assert sink.load_tile(Address(0, 0, (0, 0, *plan.order.key(90)))) is None
        sink.extend(4)


@pytest.mark.parametrize("order", ["t", "tcz", "tzc", "ctz", "zc"])
def test_bio_formats_reads_what_is_still_growing(java, tmp_path, order):
    plan = acquisition(ORDERS[order])
    some = frames(plan, 11)
    path = tmp_path / "a.ome.tiff"
    whole = begin(path, plan)
    sink = whole.open(0)
    for plane, frame in enumerate(some):
        store(sink, plan, plane, frame)
        sink.extend(plane + 1)
        if plane % 5 == 0:
            want = expected(plan, some[: plane + 1])
            np.testing.assert_array_equal(by_java(java, path), want)
            with BioReader(path) as br:
                np.testing.assert_array_equal(br.read().reshape(want.shape), want)
    whole.close()


def test_no_file_stays_open_after_the_end(tmp_path):
    plan = acquisition()
    some = frames(plan, 2)
    whole = record(tmp_path / "a.ome.tiff", plan, {0: some})
    at = Address(0, 0, (0, 0, *plan.order.key(1)))
    np.testing.assert_array_equal(whole.open(0).load_tile(at)[:, :, 0, 0, 0], some[1])
    whole.finish((), {"n": {"a": 1}})
    whole.update_metadata(whole.get_metadata())
    here = f"/proc/{os.getpid()}/fd"
    if not Path(here).exists():
        pytest.skip("the system does not tell which files are open")
    assert not [f for f in Path(here).iterdir() if "a.ome.tiff" in os.path.realpath(f)]


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_planes_that_never_came_share_one_strip(tmp_path, compression):
    plan = acquisition(size=(64, 64), dtype="f4")
    some = frames(plan, 50)
    path = tmp_path / "a.ome.tiff"
    gaps = tuple(range(5, 45))
    record(path, plan, {0: some}, StoreOptions(compression=compression), skipped=gaps)
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, some, missing=gaps))
    with tifffile.TiffFile(path) as tif:
        offsets = [page.dataoffsets[0] for page in tif.pages]
    assert len(set(offsets)) == 11


def test_the_last_strip_of_zeros_is_as_short_as_the_last_strip(tmp_path):
    plan = acquisition(tile=TILES["strips"])
    path = tmp_path / "a.ome.tiff"
    record(path, plan, {0: frames(plan, 3)}, skipped=(1,))
    with tifffile.TiffFile(path) as tif:
        assert [page.databytecounts for page in tif.pages] == [(480, 480, 240)] * 3


@pytest.mark.parametrize("levels", [1, 2])
def test_what_is_changed_later_lies_within_a_page_of_the_system(tmp_path, levels):
    """A process that is killed while it writes has written whole pages."""
    plan = acquisition((("T", UNBOUNDED), ("Z", 60)), levels=levels)
    path = tmp_path / "a.ome.tiff"
    sink = begin(path, plan).open(0)
    store(sink, plan, 0, frames(plan, 1)[0])
    sink.extend(1)
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 60
        tags = [page.aspage().tags for page in list(tif.pages)[1:]]
        if levels > 1:
            tags += [page.aspage().pages[0].aspage().tags for page in list(tif.pages)[1:]]
    for found in tags:
        first, last = found["StripOffsets"].valueoffset, found["StripByteCounts"].valueoffset + 3
        assert first // 4096 == last // 4096


@pytest.mark.parametrize("count", range(1, 14))
def test_stopped_at_any_moment_of_a_round(java, tmp_path, count):
    plan = acquisition(ORDERS["tcz"])
    some = frames(plan, count)
    path = tmp_path / "a.ome.tiff"
    record(path, plan, {0: some})
    want = expected(plan, some)
    np.testing.assert_array_equal(by_tifffile(path), want)
    np.testing.assert_array_equal(by_java(java, path), want)
    tree = valid(ome_xml(path))
    assert sizes(tree) == (*want.shape[2:], want[0, 0].size)


def test_stopped_where_the_channels_are_slowest(java, tmp_path):
    plan = acquisition(ORDERS["ctz"], channels=tuple(AcquiredChannel(f"c{n}") for n in range(3)))
    some = frames(plan, 5)
    path = tmp_path / "a.ome.tiff"
    record(path, plan, {0: some})
    want = expected(plan, some)
    assert want.shape[3] == 2
    np.testing.assert_array_equal(by_tifffile(path), want)
    np.testing.assert_array_equal(by_java(java, path), want)


def test_images_are_cut_to_what_came(tmp_path):
    plan = acquisition(ORDERS["tcz"], levels=2)
    sink = begin(tmp_path / "a.ome.tiff", plan).open(0)
    assert sink.images[0].shape == (20, 30, 3, 2, UNBOUNDED)
    store(sink, plan, 0, frames(plan, 1)[0])
    sink.extend(1)
    sink.settle(8)
    assert [level.shape for level in sink.images[0].levels] == [
        (20, 30, 3, 2, 2),
        (10, 15, 3, 2, 2),
    ]


# ------------------------------------------------------------------ pyramids


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("compression", ["none", "deflate", "zstd"])
@pytest.mark.parametrize("tile", ["strip", "strips", "tiles"])
def test_pyramid_while_it_grows_or_afterwards(tmp_path, tile, compression, live):
    plan = acquisition(ORDERS["tcz"], size=(45, 70), tile=TILES[tile] and (16, 16), levels=3)
    some = frames(plan, 8)
    small = [expected(plan, some)]
    for _ in range(2):
        small.append(smaller(small[-1], "mean"))
    path = tmp_path / "a.ome.tiff"
    whole = begin(path, plan, StoreOptions(compression=compression))
    sink = whole.open(0)

    def shrink(plane):
        for level in (1, 2):
            z, c, t = plan.order.key(plane)
            store(sink, plan, plane, small[level][:, :, z, c, t], level)

    for plane in range(8):
        store(sink, plan, plane, some[plane])
        if live:
            shrink(plane)
        sink.extend(plane + 1)
    if not live:
        for level in (1, 2):
            assert not by_tifffile(path, level=level).any()
        sink.settle(8)
        for plane in range(8):
            shrink(plane)
    whole.finish([ImageRecord(0, 8)], {})
    whole.close()
    for level in range(3):
        np.testing.assert_array_equal(by_tifffile(path, level=level), small[level])
    with BioReader(path, level=2) as br:
        np.testing.assert_array_equal(br.read().reshape(small[2].shape), small[2])


def test_bio_formats_reads_the_pyramid(java, tmp_path):
    plan = acquisition(ORDERS["tcz"], size=(45, 70), levels=2)
    some = frames(plan, 6)
    small = smaller(expected(plan, some), "mean")
    path = tmp_path / "a.ome.tiff"
    whole = begin(path, plan)
    sink = whole.open(0)
    for plane in range(6):
        store(sink, plan, plane, some[plane])
        store(sink, plan, plane, small[(..., *plan.order.key(plane))], 1)
        sink.extend(plane + 1)
    whole.finish([ImageRecord(0, 6)], {})
    whole.close()
    np.testing.assert_array_equal(by_java(java, path, level=1), small)


# ------------------------------------------------------------------ every moment


class Recorded(RandomFile):
    """A file that remembers what was written; what goes past a page may come in pieces."""

    log: list = []  # noqa: RUF012 (one for the test)

    def write(self, offset, data):
        super().write(offset, data)
        self.note(offset, bytes(data))

    def write_many(self, offset, parts):
        super().write_many(offset, parts)
        for part in parts:
            self.note(offset, bytes(part))
            offset += len(part)

    def note(self, offset, data):
        while data:
            here = 4096 - offset % 4096
            self.log.append((offset, data[:here]))
            offset, data = offset + here, data[here:]


@pytest.mark.parametrize(
    ("axes", "tile", "compression", "channels"),
    [
        ("t", "strip", "none", ()),
        ("t", "tiles", "deflate", ()),
        ("tcz", "strip", "none", ("a", "b")),
        ("tcz", "tiles", "none", ()),
        ("tzc", "strip", "deflate", ("x" * 3000, "y" * 3000)),
        ("cameras", "strip", "none", ()),
    ],
)
def test_the_file_is_right_after_every_write(
    tmp_path, monkeypatch, axes, tile, compression, channels
):
    monkeypatch.setattr(_open_files, "RandomFile", Recorded)
    monkeypatch.setattr(Recorded, "log", [])
    known = tuple(AcquiredChannel(name) for name in channels)
    plan = acquisition(ORDERS[axes], tile=TILES[tile], channels=known)
    some = frames(plan, 11)
    gone = {4}
    path = tmp_path / "a.ome.tiff"
    whole = begin(path, plan, StoreOptions(compression=compression))
    sink = whole.open(0)
    marks = {}
    for plane, ready in enumerate([1, 1, 3, 3, 3, 6, 7, 8, 8, 8, 11]):
        if plane not in gone:
            store(sink, plan, plane, some[plane])
        sink.extend(ready)
        marks[len(Recorded.log)] = ready
    sink.settle(11)
    whole.finish([ImageRecord(0, 11)], {"n": {"a": 1}})
    whole.close()
    log = Recorded.log
    assert len(log) > 25

    copy, safe, seen, image = tmp_path / "copy.ome.tiff", 0, set(), bytearray()
    for number, (offset, data) in enumerate(log, 1):
        image.extend(bytes(max(0, offset + len(data) - len(image))))
        image[offset : offset + len(data)] = data
        safe = marks.get(number, safe)
        if not any(image[:8]):
            assert safe == 0
            continue
        copy.write_bytes(image)
        planes = check_moment(copy, some, safe, gone)
        seen.add(planes)
    assert max(seen) >= 11
    want = expected(plan, some, missing=gone)
    np.testing.assert_array_equal(by_tifffile(copy), want)


def check_moment(path, some, safe, gone):
    """Check a file between two writes; return how many planes its document tells of."""
    with without_complaint(), tifffile.TiffFile(path) as tif:
        tree = valid(tif.pages[0].description)
        z, c, t, count = sizes(tree)
        torn = False
        if len(list(tree.iter("{*}TiffData"))) == 1:
            # Bio-Formats fails where more are counted than there is room for
            assert count in (z * c * t, z * c * (t - 1))
            torn = count < z * c * t
        assert len(tif.pages) >= z * c * t >= safe
        for plane, page in enumerate(tif.pages):
            pixels = page.asarray()
            want = [np.zeros_like(pixels)]
            if plane < len(some) and plane not in gone:
                want = [some[plane]] if plane < safe else [some[plane], *want]
            assert any(np.array_equal(pixels, one) for one in want), (plane, safe)
    image = by_tifffile(path, but="is missing" if torn else "nothing else")
    assert image.size == z * c * t * some[0].size
    return z * c * t


CHILD = """
import os, sys, resource, signal
from pathlib import Path
import numpy as np
from bioio_tk.backends.base import StoreOptions
from bioio_tk.backends.tiff_stream import TiffStore
from bioio_tk.core.acquisition import *
from bioio_tk.core.frames import *
from bioio_tk.core.spec import Address, ImageSpec, Level

def plan(inner, tile):
    order = FrameOrder((FrameAxis("T", UNBOUNDED), FrameAxis("Z", inner)))
    spec = ImageSpec(np.dtype("u2"), (Level((64, 96, inner, 1, UNBOUNDED), (*tile, 1, 1, 1)),))
    return AcquisitionPlan(spec, order, (), created="2026-11-21T12:00:00+00:00")

def frame(plane):
    return (np.arange(64 * 96).reshape(64, 96) + plane * 7).astype("u2")

def stream(path, inner, tile, compression, frames):
    Path(path).touch()
    about = plan(inner, tile)
    sink = TiffStore(Path(path), about, StoreOptions(compression=compression)).open(0)
    grid = sink.images[0].levels[0].grid
    for plane in range(frames):
        pixels = frame(plane)
        tiles = []
        for ky, kx in np.ndindex(grid.counts[:2]):
            at = Address(0, 0, (ky, kx, *about.order.key(plane)))
            region = grid.region(at.key).slices()[:2]
            tiles.append((at, sink.encode_tile(at, pixels[region][:, :, None, None, None])))
        sink.store_tiles(tiles)
        sink.extend(plane + 1)
        os.write(1, b"%d\\n" % (plane + 1))
"""


def in_child(code, *, kill_after=None):
    """Run code after CHILD; return exit code, frames it has said to be safe, and its errors."""
    environment = {**os.environ, "PYTHONPATH": str(Path(bioio_tk.__file__).parents[1])}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    late = threading.Timer(60, child.kill)
    late.start()
    safe = 0
    try:
        for line in child.stdout:  # what it has said before it was killed counts, too
            safe = int(line)
            if safe == kill_after:
                child.kill()
        err = child.stderr.read()
        child.wait(10)
    finally:
        late.cancel()
        late.join(10)
        child.kill()
        child.stdout.close()
        child.stderr.close()
    return child.returncode, safe, err


def child_frame(plane):
    return (np.arange(64 * 96).reshape(64, 96) + plane * 7).astype("u2")


def check_left(path, safe, inner, tile, compression):
    """Check what an interrupted process has left, complete it, and check it again."""
    with without_complaint(), tifffile.TiffFile(path) as tif:
        valid(tif.pages[0].description)
        assert len(tif.pages) >= safe
        for plane in range(safe):
            np.testing.assert_array_equal(tif.pages[plane].asarray(), child_frame(plane))
    plan = acquisition((("T", UNBOUNDED), ("Z", inner)), size=(64, 96), tile=tile)
    again = TiffStore.reopen(path, plan, StoreOptions(compression=compression), {0: safe})
    sink = again.open(0)
    assert safe <= sink.planes <= safe + 1
    sink.settle(sink.planes)
    again.finish([ImageRecord(0, sink.planes)], {"a": {"b": 1}})
    again.close()
    want = expected(plan, [child_frame(n) for n in range(sink.planes)])
    np.testing.assert_array_equal(by_tifffile(path), want)
    valid(ome_xml(path))


@pytest.mark.parametrize(
    ("inner", "tile", "compression"),
    [
        (1, (64, 96), "none"),
        (3, (64, 96), "none"),
        (1, (32, 32), "deflate"),
        (5, (16, 96), "zstd"),
    ],
)
def test_killed_at_any_moment(tmp_path, inner, tile, compression):
    path = tmp_path / "a.ome.tiff"
    after = random.Random(str((inner, tile))).randrange(5, 120)
    code, safe, err = in_child(
        f"stream({str(path)!r}, {inner}, {tile}, {compression!r}, 10**9)", kill_after=after
    )
    assert code == -9, err
    check_left(path, safe, inner, tile, compression)


@pytest.mark.parametrize(("inner", "limit"), [(1, 300_000), (4, 300_001), (1, 9000), (1, 2000)])
def test_full_disk(tmp_path, inner, limit):
    path = tmp_path / "a.ome.tiff"
    code, safe, err = in_child(
        f"""
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            stream({str(path)!r}, {inner}, (64, 96), "none", 1000)
        except OSError as exc:
            sys.exit(7)
        """
    )
    assert code == 7, err
    if limit < 64 * 96 * 2:
        assert safe == 0
        with pytest.raises(tifffile.TiffFileError):
            tifffile.TiffFile(path)
        return
    assert safe >= 300_000 // (64 * 96 * 2) - 3
    check_left(path, safe, inner, (64, 96), "none")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    """Whichever write fails, planes that were seen stay, and the next extend goes on."""
    plan = acquisition(ORDERS["tcz"], levels=2)
    some = frames(plan, 9)
    path = tmp_path / "a.ome.tiff"
    whole = begin(path, plan)
    sink = whole.open(0)
    real = RandomFile.write
    for plane in range(9):
        store(sink, plan, plane, some[plane])
        for fail in range(4):  # the first writes of extend, one after the other
            left = [fail]

            def write(self, offset, data, left=left):
                if left[0] == 0:
                    raise OSError(28, "No space left on device")
                left[0] -= 1
                real(self, offset, data)

            monkeypatch.setattr(RandomFile, "write", write)
            with suppress(OSError):  # there may be fewer writes
                sink.extend(plane + 1)
            monkeypatch.setattr(RandomFile, "write", real)
            if plane:
                got = by_tifffile(path)
                for k in range(plane):
                    z, c, t = k % 3, k // 3 % 2, k // 6
                    np.testing.assert_array_equal(got[:, :, z, c, t], some[k])
        sink.extend(plane + 1)
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, some))
    whole.finish([ImageRecord(0, 9)], {})
    whole.close()
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, some))


# ------------------------------------------------------------------ several positions

PLACES = ("A", "B/../x", "ü")


def written(tmp_path, kind="redundant", **more):
    extra = {"multi_file_metadata": kind, **more}
    plan = acquisition(ORDERS["tcz"], positions=PLACES)
    images = {p: frames(plan, n, seed=p) for p, n in ((0, 8), (2, 6), (1, 6))}
    said = {p: [(n, {"exposure_time": 1.5, "of": f"{p}-{n}"}) for n in range(2)] for p in images}
    path = tmp_path / "run"
    options = StoreOptions(compression="none", extra=extra)
    return path, plan, images, record(path, plan, images, options, notes={"n": {"a": 1}},
                                      metadata=said)  # fmt: skip


@pytest.mark.parametrize("kind", tiff_stream.METADATA)
def test_several_positions(java, tmp_path, kind):
    path, plan, images, _ = written(tmp_path, kind)
    names = [f"run_p{n:03}.ome.tiff" for n in range(3)]
    others = ["companion.ome"] if kind == "companion-file" else []
    assert sorted(f.name for f in path.iterdir()) == sorted(names + others)
    moved = tmp_path / "elsewhere"
    path.rename(moved)
    start = moved / names[0]
    assert series_count(java, start) == 3
    for position, some in images.items():
        np.testing.assert_array_equal(by_java(java, start, series=position), expected(plan, some))
    for number, name in enumerate(names):
        with BioReader(moved / name, series=number) as br:
            want = expected(plan, images[number])
            np.testing.assert_array_equal(br.read().reshape(want.shape), want)
    if not others:
        for position, some in images.items():
            np.testing.assert_array_equal(
                by_tifffile(moved / names[0], series=position), expected(plan, some)
            )


# tifffile (2026.3) takes planes that touch from the file it was given, whichever they are in
@pytest.mark.filterwarnings("ignore:.*reading array from closed file")
@pytest.mark.parametrize(
    ("compression", "kind"),
    [("zstd", "redundant"), *(("none", kind) for kind in tiff_stream.METADATA)],
)
@pytest.mark.parametrize("count", [7, 2, 1])
def test_each_file_of_a_set_shows_the_pixels_of_all(java, tmp_path, count, compression, kind):
    for number, (size, levels) in enumerate([((20, 30), 1), ((1, 48), 1), ((4, 32), 3)]):
        plan = acquisition(size=size, levels=levels, positions=PLACES)
        images = {p: frames(plan, count, seed=p) for p in range(3)}
        path = tmp_path / f"run{number}"
        extra = {"multi_file_metadata": kind}
        whole = begin(path, plan, StoreOptions(compression=compression, extra=extra))
        names = [f"run{number}_p{p:03}.ome.tiff" for p in range(3)]
        want = {}
        for level in range(levels):
            for p, some in images.items():
                above = want.get((p, level - 1))
                want[p, level] = expected(plan, some) if above is None else smaller(above, "mean")
        for p, plane in product(range(3), range(count)):
            sink = whole.open(p)
            for level in range(levels):
                store(sink, plan, plane, want[p, level][..., 0, 0, plane], level)
            sink.extend(plane + 1)
            if plane == 0:
                for level in range(levels):
                    got = by_tifffile(path / names[p], level=level)
                    np.testing.assert_array_equal(got, want[p, level][..., :1])
        whole.finish([ImageRecord(p, count) for p in range(3)], {})
        whole.close()
        whole.finish((), {"n": {"a": 1}})
        for (p, level), pixels in want.items():
            with BioReader(path / names[p], series=p, level=level) as br:
                np.testing.assert_array_equal(br.read().reshape(pixels.shape), pixels)
            got = by_java(java, path / names[1], series=p, level=level)
            np.testing.assert_array_equal(got, pixels)
        full = {"redundant": names, "master-tiff": names[:1], "companion-file": []}[kind]
        for name, (p, level) in product(full, want):
            assert '"n"' in ome_xml(path / name)
            got = by_tifffile(path / name, series=p, level=level)
            np.testing.assert_array_equal(got, want[p, level], f"{name} {p} {level}")
        for p, name in enumerate(names):
            with tifffile.TiffFile(path / name) as tif:
                pages = [page.asarray().reshape(size) for page in tif.pages]
            np.testing.assert_array_equal(pages, images[p])


def test_a_plane_that_was_skipped_does_not_touch_the_next(tmp_path):
    plan = acquisition(size=(16, 32), positions=PLACES)
    images = {p: frames(plan, 2, seed=p) for p in range(3)}
    path = tmp_path / "run"
    record(path, plan, images, skipped=(0,))
    for file, p in product(sorted(path.iterdir()), range(3)):
        want = expected(plan, images[p], missing=(0,))
        np.testing.assert_array_equal(by_tifffile(file, series=p), want)


@pytest.mark.parametrize("count", [1, 4])
def test_a_file_alone_can_be_mapped_into_memory(tmp_path, count):
    plan = acquisition(size=(16, 32))
    some = frames(plan, count)
    path = tmp_path / "a.ome.tiff"
    whole = begin(path, plan)
    sink = whole.open(0)
    for plane in range(count):
        store(sink, plan, plane, some[plane])
    sink.extend(count)
    whole.finish([ImageRecord(0, count)], {})
    whole.close()
    np.testing.assert_array_equal(tifffile.memmap(path, mode="r"), some.squeeze())


@pytest.mark.filterwarnings("ignore:.*reading array from closed file")
def test_a_set_of_single_planes_is_right_after_every_write(tmp_path, monkeypatch):
    log = []

    class Named(Recorded):
        def note(self, offset, data):
            before = len(Recorded.log)
            super().note(offset, data)
            log.extend((self.path.name, *entry) for entry in Recorded.log[before:])

    monkeypatch.setattr(_open_files, "RandomFile", Named)
    monkeypatch.setattr(Recorded, "log", [])
    plan = acquisition(positions=PLACES)
    images = {p: frames(plan, 1, seed=p) for p in range(3)}
    record(tmp_path / "run", plan, images)
    monkeypatch.undo()
    copies, alone, together = tmp_path / "copies", set(), 0
    copies.mkdir()
    held = {f"run_p00{p}.ome.tiff": bytearray() for p in range(3)}
    for name, offset, data in log:
        held[name].extend(bytes(max(0, offset + len(data) - len(held[name]))))
        held[name][offset : offset + len(data)] = data
        (copies / name).write_bytes(held[name])
        begun = [p for p, some in enumerate(held.values()) if any(some[:8])]
        for p in begun:
            file = copies / f"run_p00{p}.ome.tiff"
            with tifffile.TiffFile(file) as tif:
                np.testing.assert_array_equal(tif.pages[0].asarray(), images[p][0])
            count = len(list(valid(ome_xml(file)).iter("{*}Image")))
            for series in range(count):
                want = images[series if count > 1 else p]
                got = by_tifffile(file, series=series)
                np.testing.assert_array_equal(got, expected(plan, want))
            alone |= {p} if count == 1 else set()
            together += count == 3
    assert alone == {0, 1, 2}
    assert together > 3


@pytest.mark.filterwarnings("ignore:.*reading array from closed file")
@pytest.mark.parametrize("levels", [1, 2])
def test_a_set_of_single_planes_is_taken_up_again(tmp_path, levels):
    plan = acquisition(positions=PLACES, levels=levels)
    images = {p: frames(plan, 1, seed=p) for p in range(3)}
    path = tmp_path / "run"
    record(path, plan, images)
    size = (path / "run_p001.ome.tiff").stat().st_size
    for _ in range(2):
        whole = TiffStore.reopen(path, plan, RAW, dict.fromkeys(images, 1))
        for p, some in images.items():
            at = Address(0, 0, (0, 0, *plan.order.key(0)))
            np.testing.assert_array_equal(whole.open(p).load_tile(at)[:, :, 0, 0, 0], some[0])
        whole.finish([ImageRecord(p, 1) for p in range(3)], {"n": {"a": 1}})
        whole.close()
        for name, p in product(sorted(path.iterdir()), range(3)):
            np.testing.assert_array_equal(by_tifffile(name, series=p), expected(plan, images[p]))
    assert (path / "run_p001.ome.tiff").stat().st_size < size + 20000
    whole = TiffStore.reopen(path, plan, RAW, dict.fromkeys(images, 1))
    some = frames(plan, 2, seed=1)
    store(whole.open(1), plan, 1, some[1])
    whole.open(1).extend(2)
    np.testing.assert_array_equal(by_tifffile(path / "run_p001.ome.tiff"), expected(plan, some))


def test_a_position_that_nobody_told_of_is_kept_where_it_has_a_plane(tmp_path):
    """Its process was killed after the plane could be seen, and before it said so."""
    plan = acquisition(positions=PLACES)
    path = tmp_path / "run"
    whole = begin(path, plan)
    for p in range(2):
        store(whole.open(p), plan, 0, frames(plan, 1, seed=p)[0])
        whole.open(p).extend(1)
    whole.close()
    other = path / "run_p002.ome.tiff"
    other.write_bytes(b"mine")
    again = TiffStore.reopen(path, plan, RAW, {0: 1})
    again.finish([ImageRecord(0, 1)], {})
    again.close()
    for p in range(2):
        want = expected(plan, frames(plan, 1, seed=p))
        np.testing.assert_array_equal(by_tifffile(path / f"run_p00{p}.ome.tiff", series=p), want)
    assert other.read_bytes() == b"mine"


@pytest.mark.parametrize("kind", tiff_stream.METADATA)
def test_the_metadata_of_all_positions_are_kept(tmp_path, kind):
    path, *_ = written(tmp_path, kind)
    texts = {f.name: f.read_text() for f in path.glob("*.ome")}
    texts |= {f.name: ome_xml(f) for f in sorted(path.glob("*.tiff"))}
    full = {name: text for name, text in texts.items() if "BinaryOnly" not in text}
    for text in texts.values():
        valid(text)
    said = [set(re.findall(r'<M K="of">(.*?)</M>', text)) for text in full.values()]
    everything = {f"{p}-{n}" for p in range(3) for n in range(2)}
    if kind == "redundant":
        assert len(full) == 3
        assert said == [{f"{p}-0", f"{p}-1"} for p in range(3)]
    else:
        assert said == [everything]
        short = [text for name, text in texts.items() if name not in full]
        assert len(short) == (2 if kind == "master-tiff" else 3)
        holder = next(iter(full))
        assert all(f'MetadataFile="{holder}"' in text for text in short)
        uuid = re.search(r'UUID="(urn:uuid:[^"]+)"', full[holder])[1]
        assert all(f'UUID="{uuid}"' in text.split("<BinaryOnly")[1] for text in short)
    assert len({re.search(r'UUID="([^"]+)"', text)[1] for text in texts.values()}) == len(texts)
    assert all('Namespace="n"' in text for text in full.values())


def test_a_position_that_was_never_visited_leaves_nothing(tmp_path):
    plan = acquisition(positions=PLACES)
    path = tmp_path / "run"
    record(path, plan, {1: frames(plan, 2)})
    assert [f.name for f in path.iterdir()] == ["run_p001.ome.tiff"]
    np.testing.assert_array_equal(
        by_tifffile(path / "run_p001.ome.tiff"), expected(plan, frames(plan, 2))
    )


def test_a_position_without_a_visible_plane_leaves_nothing(tmp_path):
    plan = acquisition(positions=PLACES)
    path = tmp_path / "run"
    whole = begin(path, plan)
    store(whole.open(0), plan, 0, frames(plan, 1)[0])
    whole.close()
    assert list(path.iterdir()) == []
    single = acquisition()
    alone = tmp_path / "a.ome.tiff"
    whole = begin(alone, single)
    store(whole.open(0), single, 0, frames(single, 1)[0])
    whole.close()
    whole.close()
    assert alone.stat().st_size == 0


def test_one_position_in_a_folder(tmp_path):
    plan = acquisition()
    path = tmp_path / "run"
    options = StoreOptions(compression="none", extra={"single_file": False, "suffix": ".tif"})
    record(path, plan, {0: frames(plan, 2)}, options)
    np.testing.assert_array_equal(
        by_tifffile(path / "run_p000.tif"), expected(plan, frames(plan, 2))
    )


def test_a_file_that_somebody_else_has_put_there_is_not_touched(tmp_path):
    plan = acquisition(positions=PLACES)
    whole = begin(tmp_path / "run", plan)
    other = tmp_path / "run" / "run_p001.ome.tiff"
    other.write_bytes(b"mine")
    with pytest.raises(TargetExistsError, match="something else has written it"):
        whole.open(1)
    whole.close()
    assert other.read_bytes() == b"mine"


def test_what_is_foreign_in_a_folder(tmp_path):
    path, plan, *_ = written(tmp_path, "companion-file")
    options = StoreOptions(extra={"multi_file_metadata": "companion-file"})
    assert TiffStore.foreign(path, plan, options) is None
    for name in ("notes.txt", "run_p1.ome.tiff", "other_p001.ome.tiff"):
        (path / name).touch()
        assert TiffStore.foreign(path, plan, options) == path / name
        (path / name).unlink()
    (path / "run_p007.ome.tiff").mkdir()
    assert TiffStore.foreign(path, plan, options) == path / "run_p007.ome.tiff"


def test_a_plate_of_384_positions_is_little_work(tmp_path, monkeypatch):
    wells = [(row, f"{col}") for row in "ABCDEFGHIJKLMNOP" for col in range(1, 25)]
    plan = acquisition(size=(8, 8), positions=[r + c for r, c in wells])
    plan = replace(
        plan,
        positions=tuple(AcquiredPosition(r + c, r, c) for r, c in wells),
        plate=Plate("p", tuple("ABCDEFGHIJKLMNOP"), tuple(map(str, range(1, 25)))),
    )
    files = []

    class Counted(RandomFile):
        now = most = writes = 0

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            files.append(self.path)
            Counted.now += 1
            Counted.most = max(Counted.most, Counted.now)

        def write(self, offset, data):
            Counted.writes += 1
            super().write(offset, data)

        def close(self):
            Counted.now -= self._fd >= 0
            super().close()

    monkeypatch.setattr(_open_files, "RandomFile", Counted)
    path = tmp_path / "run"
    some = frames(plan, 2)
    whole = begin(path, plan)
    for plane in range(2):
        for position in range(384):
            sink = whole.open(position)
            store(sink, plan, plane, some[plane])
            sink.extend(plane + 1)
    assert Counted.writes <= 384 * 8
    before = Counted.writes
    whole.finish([ImageRecord(p, 2) for p in range(384)], {})
    whole.close()
    assert Counted.writes - before == 2 * 384
    assert Counted.most <= 140
    assert Counted.now == 0
    np.testing.assert_array_equal(
        by_tifffile(path / "run_p383.ome.tiff", series=383), expected(plan, some)
    )


# ------------------------------------------------------------------ metadata, again


def test_notes_may_change_after_the_end(tmp_path):
    path, _, _, whole = written(tmp_path, "companion-file")
    whole.finish((), {"n": {"a": 2}, "x>y": {"b": "ü"}})
    text = (path / "companion.ome").read_text()
    tree = valid(text)
    spaces = [a.get("Namespace") for a in tree.iter("{*}MapAnnotation")]
    assert spaces.count("n") == len([s for s in spaces if s.startswith("x")]) == 1, spaces[-3:]
    assert '<M K="a">2</M>' in text
    assert text.count('<M K="of">') == 6
    for file in path.glob("*.tiff"):
        assert "BinaryOnly" in ome_xml(file)
        assert "Annotation" not in ome_xml(file)


def test_notes_where_there_were_none(tmp_path):
    plan = acquisition()
    path = tmp_path / "a.ome.tiff"
    whole = record(path, plan, {0: frames(plan, 2)})
    assert "Annotation" not in ome_xml(path)
    for value in (1, 2):
        whole.finish((), {"n": {"a": value}})
        tree = valid(ome_xml(path))
        assert [m.text for m in tree.iter("{*}M")] == [str(value)]
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, frames(plan, 2)))


@pytest.mark.parametrize("kind", tiff_stream.METADATA)
def test_metadata_out_and_in_again(tmp_path, kind):
    _path, _, images, whole = written(tmp_path, kind)
    found = whole.get_metadata()
    full = {"redundant": {0, 1, 2}, "master-tiff": {0}, "companion-file": {-1}}[kind]
    assert set(found) == {*images, *full}
    for position, ome in found.items():
        assert isinstance(ome, ome_types.OME)
        assert (ome.binary_only is None) == (position in full)
    holder = min(full)
    found[holder].images[1].name = "renamed"
    whole.update_metadata(found)
    assert whole.get_metadata()[holder].images[1].name == "renamed"
    whole.finish((), {"n": {"a": 5}})
    again = whole.get_metadata()[holder]
    assert again.images[1].name == "renamed"
    notes = [a for a in again.structured_annotations if a.namespace == "n"]
    assert len(notes) == 1


def test_metadata_while_it_runs(tmp_path):
    plan = acquisition(ORDERS["tcz"])
    whole = begin(tmp_path / "a.ome.tiff", plan)
    assert whole.get_metadata() == {}
    store(whole.open(0), plan, 0, frames(plan, 1)[0])
    whole.open(0).extend(1)
    pixels = whole.get_metadata()[0].images[0].pixels
    assert (pixels.size_z, pixels.size_c, pixels.size_t) == (3, 2, 1)
    with pytest.raises(BackendError, match="closed before"):
        whole.update_metadata({})


def test_metadata_that_do_not_fit(tmp_path):
    plan = acquisition()
    whole = record(tmp_path / "a.ome.tiff", plan, {0: frames(plan, 1)})
    with pytest.raises(TypeError, match=r"Expected dict\[int, ome_types.model.OME\] metadata, got"):
        whole.update_metadata([1])
    with pytest.raises(TypeError, match=r"Expected ome_types.model.OME for position 0, got"):
        whole.update_metadata({0: "<OME/>"})
    with pytest.raises(KeyError, match="Unknown position index: 4"):
        whole.update_metadata({4: ome_types.OME()})


# ------------------------------------------------------------------ taken up again


def interrupted(path, plan, count, options=RAW, *, ready=None):
    """Write frames and leave the file as a killed process would."""
    sink = begin(path, plan, options).open(0)
    for plane, frame in enumerate(frames(plan, count)):
        store(sink, plan, plane, frame)
        sink.extend(plane + 1 if ready is None else min(ready, plane + 1))
    return sink


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("known", [0, 3, 8])
@pytest.mark.parametrize("axes", ["t", "tcz"])
def test_taken_up_again_with_all_that_could_be_seen(tmp_path, axes, known, levels):
    plan = acquisition(ORDERS[axes], levels=levels)
    path = tmp_path / "a.ome.tiff"
    interrupted(path, plan, 9, ready=8)
    whole = TiffStore.reopen(path, plan, RAW, {0: known})
    sink = whole.open(0)
    assert sink.planes == 8
    some = frames(plan, 10)
    for plane in range(8):
        for at, tile in tiles(sink, plan, plane, some[plane]):
            np.testing.assert_array_equal(sink.load_tile(at), tile)
    assert sink.load_tile(Address(0, 0, (0, 0, *plan.order.key(8)))) is None
    store(sink, plan, 8, some[8])
    store(sink, plan, 9, some[9])
    sink.extend(10)
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, some))
    sink.settle(10)
    if levels == 2:
        small = smaller(expected(plan, some), "mean")
        for plane in range(10):
            store(sink, plan, plane, small[(..., *plan.order.key(plane))], 1)
    whole.finish([ImageRecord(0, 10)], {})
    whole.close()
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, some))
    if levels == 2:
        np.testing.assert_array_equal(by_tifffile(path, level=1), small)


def test_taken_up_before_the_first_plane_was_seen(tmp_path):
    plan = acquisition()
    path = tmp_path / "a.ome.tiff"
    interrupted(path, plan, 3, ready=0)
    whole = TiffStore.reopen(path, plan, RAW, {0: 0})
    assert whole.open(0).planes == 0
    whole.close()
    assert path.stat().st_size == 0


def test_taken_up_where_the_last_plane_of_a_round_is_black(tmp_path):
    plan = acquisition((("T", UNBOUNDED), ("Z", 2)))
    path = tmp_path / "a.ome.tiff"
    sink = begin(path, plan).open(0)
    for plane in range(4):
        store(sink, plan, plane, np.zeros((20, 30), "u2"))
        sink.extend(plane + 1)
    assert TiffStore.reopen(path, plan, RAW, {0: 4}).open(0).planes == 4


def test_taken_up_after_it_was_finished(tmp_path):
    plan = acquisition(ORDERS["tcz"])
    path = tmp_path / "a.ome.tiff"
    record(path, plan, {0: frames(plan, 7)}, notes={"n": {"a": 1}})
    whole = TiffStore.reopen(path, plan, RAW, {0: 7})
    whole.open(0).settle(7)
    whole.finish([ImageRecord(0, 7)], {"n": {"a": 2}})
    whole.close()
    np.testing.assert_array_equal(by_tifffile(path), expected(plan, frames(plan, 7)))
    assert '<M K="a">2</M>' in ome_xml(path)


@pytest.mark.parametrize("other", ["tifffile", "classic", "size", "compression"])
def test_a_file_that_is_none_of_ours_is_not_taken_up(tmp_path, other):
    plan = acquisition()
    path = tmp_path / "a.ome.tiff"
    if other in ("tifffile", "classic"):
        tifffile.imwrite(path, frames(plan, 3), bigtiff=other == "tifffile")
    elif other == "size":
        wide = acquisition(size=(20, 31))
        interrupted(path, wide, 3).close()
    else:
        interrupted(path, plan, 3, StoreOptions(compression="zstd")).close()
    before = path.read_bytes()
    with pytest.raises(DamagedFileError, match="not what this stream wrote"):
        TiffStore.reopen(path, plan, RAW, {0: 3})
    assert path.read_bytes() == before


@pytest.mark.parametrize("axes", ["t", "tcz"])
def test_a_file_that_was_cut_anywhere(tmp_path, axes):
    """As after a loss of power: what is whole stays, the rest is said to be missing."""
    plan = acquisition(ORDERS[axes])
    some = frames(plan, 8)
    path = tmp_path / "a.ome.tiff"
    whole = interrupted(path, plan, 8)
    whole.close()
    data = path.read_bytes()
    kept = set()
    for size in range(len(data) - 1, 4000, -777):
        path.write_bytes(data[:size])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            again = None
            with suppress(DamagedFileError):
                again = TiffStore.reopen(path, plan, RAW, {0: 8})
        if again is None:
            kept.add(None)
            assert size < 12000
            continue
        sink = again.open(0)
        planes = sink.planes
        with without_complaint(), tifffile.TiffFile(path) as tif:
            assert len(tif.pages) >= planes
        if planes < 8:
            assert f"only {planes} of the 8" in str(said[0].message)
        sink.settle(8)
        again.finish([ImageRecord(0, 8)], {})
        again.close()
        got, want = by_tifffile(path), expected(plan, some, missing=range(planes, 8))
        np.testing.assert_array_equal(got, want)
        missing = absent_planes(ome_xml(path))[0].missing
        assert [n for gap in missing for n in gap if n < 8] == list(range(planes, 8))
        kept.add(planes)
    assert {1, 5, 7, None} <= kept


# ------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize(
    ("plan", "options", "error", "text"),
    [
        ({}, {"compression": "blosc"}, SpecError, "not known to TIFF"),
        ({}, {"extra": {"shards": 1}}, SpecError, "no option 'shards'"),
        ({}, {"extra": {"multi_file_metadata": "x"}}, SpecError, "choose one of redundant"),
        ({}, {"extra": {"companion_file": "../x"}}, SpecError, "without a folder"),
        ({}, {"extra": {"suffix": ""}}, SpecError, "name of a file"),
        ({"positions": "ab"}, {"extra": {"single_file": True}}, UnsupportedError, "2 positions"),
        ({"size": (40000, 40000)}, {}, SpecError, "chunk_size"),
        ({"dtype": "u2", "image": {"samples": 3}}, {}, UnsupportedError, "one sample"),
    ],
)  # fmt: skip
def test_what_tiff_cannot_hold_is_said_before_there_is_a_file(tmp_path, plan, options, error, text):
    made, given = acquisition(**plan), StoreOptions(**options)
    with pytest.raises(error, match=text) as caught:
        TiffStore.check(made, given)
    assert isinstance(caught.value, BioIOError)
    with pytest.raises(error, match=text):
        TiffStore(tmp_path / "none", made, given)
    assert not list(tmp_path.iterdir())


def test_frames_that_do_not_fit(tmp_path):
    plan = acquisition()
    whole = begin(tmp_path / "a.ome.tiff", plan)
    sink = whole.open(0)
    at = Address(0, 0, (0, 0, 0, 0, 0))
    with pytest.raises(SpecError, match="has the shape"):
        sink.encode_tile(at, np.zeros((20, 31, 1, 1, 1), "u2"))
    with pytest.raises(PixelTypeError, match="the tile float32"):
        sink.encode_tile(at, np.zeros((20, 30, 1, 1, 1), "f4"))
    sink.close()
    with pytest.raises(ClosedError):
        sink.store_tile(at, b"x" * 1200)
