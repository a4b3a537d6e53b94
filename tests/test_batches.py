"""The documented tile iterator of bfio: equal, padded tiles of the first plane, in batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.batches import maximum_batch_size
from bioio_tk.errors import SpecError

IMAGE = coded((75, 133, 2, 3, 2))


@pytest.fixture
def reader(tmp_path):
    path = tmp_path / "a.mem"
    with BioWriter(path, image=IMAGE, tile_size=32):
        pass
    with BioReader(path) as br:
        yield br


def tile_at(plane, y, x, height, width, mirrored):
    """Return one padded tile, pixel by pixel."""
    rows, columns = plane.shape
    out = np.zeros((height, width), plane.dtype)
    for i in range(height):
        for j in range(width):
            r, c = y + i, x + j
            if mirrored:
                r, c = reflected(r, rows), reflected(c, columns)
            if 0 <= r < rows and 0 <= c < columns:
                out[i, j] = plane[r, c]
    return out


def reflected(n, size):
    while not 0 <= n < size:
        n = -1 - n if n < 0 else 2 * size - 1 - n
    return n


@pytest.mark.parametrize(
    ("tile", "stride"),
    [
        ((32, 32), None),
        ((32, 32), (32, 32)),
        ((32, 48), (32, 20)),
        ((40, 40), (24, 20)),
        ((41, 41), (20, 20)),
        ((200, 300), (64, 64)),
        ((7, 9), (30, 50)),
    ],
    ids=str,
)
def test_tiles_are_those_of_a_plain_loop(reader, tile, stride):
    down, right = stride or tile
    mirrored = not set(tile) & {down, right}
    top = (tile[0] - down) // 2 if mirrored else 0
    left = (tile[1] - right) // 2 if mirrored else 0
    corners = [(y, x) for x in range(-left, 133, right) for y in range(-top, 75, down)]
    seen = []
    for images, (xs, ys, zs, cs, ts) in reader(tile, stride):
        assert images.shape[1:] == (*tile, 1)
        assert images.dtype == IMAGE.dtype
        assert len(images) == len(xs) == len(ys) == len(zs) == len(cs) == len(ts)
        for n, image in enumerate(images):
            (x, x_end), (y, y_end) = xs[n], ys[n]
            assert (y_end - y, x_end - x) == tile
            assert (zs[n], cs[n], ts[n]) == ([0, 1], [0], [0])
            want = tile_at(IMAGE[:, :, 0, 0, 0], y, x, *tile, mirrored)
            np.testing.assert_array_equal(image[..., 0], want)
            seen.append((y, x))
    assert seen == corners


def test_batches_have_the_size_asked_for_and_the_last_one_is_smaller(reader):
    sizes = [len(images) for images, _ in reader([16, 16], batch_size=7)]
    tiles = math.ceil(75 / 16) * math.ceil(133 / 16)
    assert sizes == [7] * (tiles // 7) + ([tiles % 7] if tiles % 7 else [])
    assert max(len(images) for images, _ in reader([4, 4])) == 32


def test_channels_can_be_chosen(reader):
    for images, (xs, ys, _, cs, _) in reader([32, 32], channels=[2, 0]):
        assert images.shape[-1] == 2
        assert cs[0] == [2, 0]
        y, x = ys[0][0], xs[0][0]
        part = IMAGE[y : y + 32, x : x + 32, 0, :, 0]
        np.testing.assert_array_equal(images[0, : len(part), : part.shape[1], 0], part[..., 2])
        np.testing.assert_array_equal(images[0, : len(part), : part.shape[1], 1], part[..., 0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_lies_outside_is_zero_next_to_any_pixel(tmp_path, value):
    path = tmp_path / "a.mem"
    with BioWriter(path, image=np.full((20, 20), value, "f4"), tile_size=16):
        pass
    with BioReader(path) as br:
        for images, (xs, ys, *_) in br([16, 16]):
            for image, (x, _), (y, _) in zip(images, xs, ys, strict=True):
                inside = np.zeros((16, 16), bool)
                inside[: 20 - y, : 20 - x] = True
                assert (image[~inside] == 0).all()
                assert not np.isfinite(image[inside]).any()


def test_the_most_tiles_of_a_batch(reader):
    assert reader.maximum_batch_size([32, 32]) == 32 * math.ceil(75 / 32)
    assert reader.maximum_batch_size([2000, 2000]) == 1
    assert maximum_batch_size(75, (64, 64), (32, 32)) == math.floor((1024 - 16) / 32) * 3
    with pytest.raises(SpecError, match="batch_size=97 is too large, the most is 96"):
        reader([32, 32], batch_size=97)


@pytest.mark.parametrize("tile", [5, [5], [0, 5], [5, -1], "ab", [5, 5, 5], None, [5, "a"]])
def test_a_tile_size_that_makes_no_sense(reader, tile):
    with pytest.raises(SpecError, match="tile_size"):
        reader(tile)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "3"])
def test_a_batch_size_that_makes_no_sense(reader, size):
    with pytest.raises(SpecError, match="batch_size"):
        reader([32, 32], batch_size=size)


def test_a_reader_is_not_iterated_directly(reader):
    with pytest.raises(SpecError, match=r"br\.tiles\(1024\)"):
        iter(reader)


def test_leaving_the_loop_early_is_fine(reader):
    for images, _ in reader([8, 8], batch_size=3):
        assert len(images) == 3
        break
    np.testing.assert_array_equal(reader[0, 0], IMAGE[:1, :1])
