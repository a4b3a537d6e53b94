"""Generators of planes and of tiles: read once, in any order, complete or an error."""

from __future__ import annotations

import pickle
import tempfile
import threading
from itertools import product

import numpy as np
import pytest
from images import coded

from bioio_tk.engine.copy import copy
from bioio_tk.errors import (
    ClosedError,
    PixelTypeError,
    RegionError,
    SpecError,
    UnsupportedError,
)
from bioio_tk.inputs import stream as room
from bioio_tk.inputs.open import open_input

SHAPE = (20, 33, 3, 2, 4)  # Y, X, Z, C, T
IMAGE = coded(SHAPE)
TCZYX = np.ascontiguousarray(IMAGE.transpose(4, 3, 2, 0, 1))


def copied(image, tile=(16, 16, 1, 1, 1), workers=4):
    """Return what the engine copies of an image."""
    view = image.view()
    out = np.zeros(view.shape, image.dtype)
    copy(view, out.__setitem__, tile, workers=workers)
    return out


def planes(order="TCZ"):
    """Yield planes in an order, the last axis fastest."""
    sizes = dict(zip("YXZCT", SHAPE, strict=True))
    for at in product(*(range(sizes[axis]) for axis in order)):
        k = dict(zip(order, at, strict=True))
        yield IMAGE[:, :, k["Z"], k["C"], k["T"]].copy()


@pytest.mark.parametrize("order", ["TCZ", "TZC", "ZCT", "CTZ"])
@pytest.mark.parametrize("workers", [1, 4])
def test_planes_in_the_order_that_dims_say(order, workers):
    sizes = dict(zip("YXZCT", SHAPE, strict=True))
    dims = f"{order}YX"
    image, owned = open_input(
        planes(order), shape=[sizes[axis] for axis in dims], dtype="u2", dims=dims, workers=workers
    )
    assert (owned, image.shape) == (True, SHAPE)
    with image:
        np.testing.assert_array_equal(copied(image, workers=workers), IMAGE)


def test_planes_of_three_axes_are_time_points_unless_dims_say_otherwise():
    image, _ = open_input(iter(IMAGE[:, :, 0, 0].transpose(2, 0, 1)), shape=(4, 20, 33))
    assert (image.shape, image.dtype) == ((20, 33, 1, 1, 4), np.dtype("u2"))
    np.testing.assert_array_equal(image[:, :, 0, 0], IMAGE[:, :, 0, 0])


def test_blocks_may_be_larger_than_planes():
    image, _ = open_input((block for block in TCZYX), shape=TCZYX.shape)
    np.testing.assert_array_equal(copied(image), IMAGE)


def test_a_generator_that_fills_one_buffer_again_and_again_is_read_right():
    def same_buffer():
        buffer = np.empty((20, 33), "u2")
        for plane in planes():
            buffer[:] = plane
            yield buffer

    image, _ = open_input(same_buffer(), shape=TCZYX.shape)
    np.testing.assert_array_equal(image, IMAGE)


def test_little_is_drawn_ahead_of_what_is_wanted():
    drawn = []
    image, _ = open_input((drawn.append(k) or p for k, p in enumerate(planes())), shape=TCZYX.shape)
    assert drawn == [0]
    np.testing.assert_array_equal(image[:, :, :2, 0, 0], IMAGE[:, :, :2, 0, 0])
    assert drawn == [0, 1]


@pytest.mark.parametrize("kind", ["Tile", "pairs", "tczyx"])
def test_tiles_in_any_order(kind):
    source, _ = open_input(TCZYX)
    tiles = list(source.reader.tiles(16, overlap=3 if kind == "Tile" else 0))
    np.random.default_rng(1).shuffle(tiles)
    dims, shape = None, SHAPE
    if kind == "pairs":
        tiles = [(t.slices, t.data) for t in tiles]
    if kind == "tczyx":
        dims, shape = "TCZYX", TCZYX.shape
        tiles = [((s := t.slices)[4:] + s[3:4] + s[2:3] + s[:2], t.data) for t in tiles]
    image, _ = open_input(iter(tiles), shape=shape, dims=dims)
    np.testing.assert_array_equal(copied(image), IMAGE)


def test_tiles_of_odd_sizes_with_whole_axes_and_ints():
    def parts():
        yield (slice(0, 7), slice(None), 0), IMAGE[:7, :, 0]
        yield (slice(7, 20), slice(0, 30), 0), IMAGE[7:, :30, 0]
        yield (slice(0, 20), slice(None), slice(1, 3)), IMAGE[:, :, 1:]
        yield (slice(7, 20), slice(30, 33), 0), IMAGE[7:, 30:, 0]

    image, _ = open_input(parts(), shape=SHAPE)
    np.testing.assert_array_equal(copied(image), IMAGE)


def test_what_waits_for_long_goes_to_a_temporary_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real = room.Scratch
    monkeypatch.setattr(room, "Scratch", lambda folder: real(folder, budget=3000))
    image, _ = open_input(planes("ZCT"), shape=(3, 2, 4, 20, 33), dims="ZCTYX")
    np.testing.assert_array_equal(copied(image), IMAGE)
    image.close()
    assert list(tmp_path.iterdir()) == []


def test_what_was_read_is_forgotten_and_cannot_be_read_again():
    image, _ = open_input(planes(), shape=TCZYX.shape)
    stream = image.view().source._stream
    np.testing.assert_array_equal(image, IMAGE)
    assert stream._waiting == {}
    with pytest.raises(SpecError, match="can be read once"):
        image.compute()


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (23, "ended after 23 planes: the one at Y=0, X=0, Z=2, C=1, T=3 is missing"),
        (25, "gives more than the 24 blocks"),
    ],
)
def test_too_few_and_too_many_planes_are_errors(count, says):
    many = [*planes(), *planes()][:count]
    image, _ = open_input(iter(many), shape=TCZYX.shape)
    with pytest.raises(SpecError, match=says):
        copied(image)


def test_too_few_too_many_and_double_tiles_are_errors():
    source, _ = open_input(TCZYX)
    tiles = [(t.slices, t.data) for t in source.reader.tiles(16)]
    for wrong, says in [
        (tiles[:-1], r"ended after \d+ tiles: the one at Y=16, X=32, Z=2, C=1, T=3"),
        ([*tiles, tiles[0]], "twice|more than"),
        ([tiles[1], *tiles], "at Y=0:16, X=16:32.* twice: tile number 2"),
    ]:
        image, _ = open_input(iter(wrong), shape=SHAPE)
        with pytest.raises(SpecError, match=says):
            copied(image)


@pytest.mark.parametrize(
    ("item", "error", "says"),
    [
        (np.zeros((20, 32), "u2"), SpecError, r"item 2 .* shape \(20, 32\)"),
        (np.zeros((20, 33), "f4"), PixelTypeError, "pixels are float32, the image is uint16"),
        ("plane", SpecError, "item 2 of the generator is a str"),
        (np.zeros((2, 20, 33), "u2"), SpecError, "item 2"),
    ],
)
def test_a_wrong_plane_says_which(item, error, says):
    image, _ = open_input(iter([*list(planes())[:2], item]), shape=TCZYX.shape)
    with pytest.raises(error, match=says):
        copied(image)


@pytest.mark.parametrize(
    ("item", "error", "says"),
    [
        ((slice(0, 30), slice(0, 16)), RegionError, "tile 1 lies at slice.0, 30"),
        ((slice(0, 16, 2),), RegionError, "tile 1 lies at"),
        ((slice(0, 16),) * 6, RegionError, "6 slices, the image 2 axes"),
        ((-1,), RegionError, "lies at -1"),
        ((slice(0, 16), slice(0, 15)), SpecError, r"shape \(16, 16\); its slices are \(16, 15\)"),
    ],
)
def test_a_wrong_tile_says_which(item, error, says):
    ok = ((slice(16, 20), slice(0, 33)), np.zeros((4, 33), "u2"))
    image, _ = open_input(iter([ok, (item, np.zeros((16, 16), "u2"))]), shape=(20, 33))
    with pytest.raises(error, match=says):
        image.compute()


def test_without_a_shape_or_without_anything_it_says_so():
    with pytest.raises(SpecError, match="give shape= and dtype="):
        open_input(planes())
    with pytest.raises(SpecError, match="gives nothing"):
        open_input(iter([]), shape=(20, 33))
    with pytest.raises(SpecError, match=r"item 0 .* \(20, 33\) was expected"):
        open_input(iter([np.zeros((20, 34))]), shape=(2, 20, 33))


def test_an_error_of_the_generator_arrives_each_time():
    def failing():
        yield IMAGE[:, :, 0, 0, 0]
        raise ZeroDivisionError("the camera")

    image, _ = open_input(failing(), shape=TCZYX.shape)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="the camera"):
            image[:, :, 1, 0, 0].compute()


def test_closing_ends_the_generator():
    ended = []

    def watched():
        try:
            yield from planes()
        finally:
            ended.append(threading.get_ident())

    image, _ = open_input(watched(), shape=TCZYX.shape)
    image[:, :, 0, 0, 0].compute()
    image.close()
    image.close()
    assert len(ended) == 1
    with pytest.raises(ClosedError):
        image.compute()


def test_a_generator_does_not_travel():
    image, _ = open_input(planes(), shape=TCZYX.shape)
    with pytest.raises(UnsupportedError, match="cannot go to another process"):
        pickle.dumps(image)
