"""BioReader beyond the contract: tiles(), choosing a backend, arguments, what it says of itself."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.engine import read as reading
from bioio_tk.engine.tiles import Tile
from bioio_tk.errors import ClosedError, RegionError, SpecError, UnknownFormatError

SHAPE = (50, 37, 2, 3, 1)
IMAGE = coded(SHAPE)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.ome.tif"
    with BioWriter(path, image=IMAGE, tile_size=16, pyramid=2):
        pass
    return path


@pytest.fixture
def reader(path):
    with BioReader(path, max_workers=3) as br:
        yield br


# ------------------------------------------------------------------ tiles


@pytest.mark.parametrize(
    "size", [16, (20, 7), (64, 64, 2), (16, 16, 2, 3, 1), np.int64(16)], ids=str
)
@pytest.mark.parametrize("overlap", [0, 3, (0, 100), np.int32(2)], ids=str)
@pytest.mark.parametrize("order", ["TCZYX", "YXZCT", "XYTZC"])
def test_tiles_cover_the_image_once_and_show_their_surroundings(reader, size, overlap, order):
    out, hits = np.zeros(SHAPE, "u2"), np.zeros(SHAPE, int)
    around = (overlap, overlap) if np.ndim(overlap) == 0 else overlap
    for tile in reader.tiles(size, overlap=overlap, order=order):
        outer = list(tile.slices)
        for axis, more in enumerate(around):
            own = tile.slices[axis]
            outer[axis] = slice(max(0, own.start - more), min(SHAPE[axis], own.stop + more))
        want = IMAGE[tuple(outer)]
        np.testing.assert_array_equal(tile.data.reshape(want.shape), want)
        core = tile.crop(tile.data)
        hits[tile.slices] += 1
        out[tile.slices] = core.reshape(hits[tile.slices].shape)
    assert (hits == 1).all()
    np.testing.assert_array_equal(out, IMAGE)


def test_tiles_come_in_the_order_asked_for(reader):
    def corners(order):
        return [tuple(s.start for s in tile.slices) for tile in reader.tiles(32, order=order)]

    assert corners("TCZYX")[:4] == [
        (0, 0, 0, 0, 0),
        (0, 32, 0, 0, 0),
        (32, 0, 0, 0, 0),
        (32, 32, 0, 0, 0),
    ]
    assert corners("YXTCZ")[:3] == [(0, 0, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0)]


def test_a_filter_by_tiles_gives_what_it_gives_on_the_whole_image(path, tmp_path):
    def spread(plane):  # each pixel the largest of its 3 x 3 neighbours
        padded = np.pad(plane, [(1, 1), (1, 1)] + [(0, 0)] * (plane.ndim - 2))
        h, w = plane.shape[:2]
        return np.max([padded[i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=0)

    other = tmp_path / "b.ome.tif"
    with BioReader(path) as br, BioWriter(other, like=br, tile_size=32) as bw:
        for tile in br.tiles(16, overlap=1):
            bw[tile.slices] = tile.crop(spread(tile.data))
    with BioReader(other) as br:
        np.testing.assert_array_equal(br[...], spread(IMAGE)[..., 0])


def test_crop_takes_results_with_fewer_axes_too():
    inner = (slice(1, 4), slice(2, 5), slice(0, 1), slice(0, 3))
    tile = Tile((slice(0, 3),) * 5, np.zeros((6, 7, 1, 3)), inner)
    assert tile.crop(np.zeros((6, 7))).shape == (3, 3)
    assert tile.crop(tile.data).shape == (3, 3, 1, 3)


def test_tiles_may_be_left_early_and_taken_from_threads(reader):
    for tile in reader.tiles(16):
        assert tile.data.shape == (16, 16)
        break
    sums = []

    def work():
        sums.append(sum(int(tile.data.sum()) for tile in reader.tiles(16)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [int(IMAGE.sum())] * 4


def test_closing_in_the_middle_of_tiles_is_an_error_not_a_hang(path):
    br = BioReader(path, max_workers=2)
    tiles = br.tiles(16)
    next(tiles)
    br.close()
    with pytest.raises((ClosedError, OSError)):
        list(tiles)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "16", (), (16, 0), (16, 1.5), (1,) * 6, None])
def test_a_window_that_makes_no_sense(reader, size):
    with pytest.raises(SpecError, match="tile size"):
        reader.tiles(size)


@pytest.mark.parametrize("overlap", [-1, 1.5, True, (1,), (1, 2, 3), "1", None])
def test_an_overlap_that_makes_no_sense(reader, overlap):
    with pytest.raises(SpecError, match="overlap"):
        reader.tiles(16, overlap=overlap)


@pytest.mark.parametrize("order", ["TCZY", "TCZYXX", "tczyx "])
def test_an_order_that_names_not_each_axis_once(reader, order):
    with pytest.raises(SpecError, match="must name each of Y, X, Z, C, T once"):
        list(reader.tiles(16, order=order))


def test_closing_gives_the_memory_of_decoded_tiles_back(path):
    before = reading._shared._bytes
    br = BioReader(path)
    np.testing.assert_array_equal(br[3:7, 2:5], IMAGE[3:7, 2:5, ..., 0])
    assert reading._shared._bytes > before
    br.close()
    assert reading._shared._bytes <= before


# ------------------------------------------------------------------ read()


@pytest.mark.parametrize(
    "given",
    [
        {"X": [0, 38]},
        {"X": [5, 3]},
        {"Y": (-1, 3)},
        {"Z": [0, 1, 2]},
        {"X": 37},
        {"C": [3]},
        {"C": (0, 3)},
        {"T": 1},
        {"Y": [0.5, 3]},
        {"X": "0"},
    ],
    ids=str,
)
def test_read_out_of_range_is_a_region_error_that_names_the_axis(reader, given):
    with pytest.raises(RegionError, match=next(iter(given))):
        reader.read(**given)


def test_read_takes_one_position_in_a_list(reader):
    np.testing.assert_array_equal(reader.read(Y=[3], X=[4]), IMAGE[3:4, 4:5, ..., 0])
    np.testing.assert_array_equal(
        reader.read(Y=np.array([3, 9, 4]), Z=0, C=0), IMAGE[[3, 9, 4], :, 0, 0, 0]
    )


# ------------------------------------------------------------------ opening


def test_a_path_may_be_text_or_hold_a_tilde(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    for given in (str(path), path, "~/a.ome.tif", Path("~/a.ome.tif")):
        with BioReader(given) as br:
            assert br.shape == SHAPE
            assert br.path == path


@pytest.mark.parametrize("given", [None, 5, "", b"a.tif", ["a.tif"], object()])
def test_what_is_no_path_is_said_so(given):
    for opened in (BioReader, BioWriter):
        with pytest.raises(SpecError, match="is no path"):
            opened(given)


def test_the_content_decides_not_the_name(path):
    other = path.with_name("a.dat")
    path.rename(other)
    with BioReader(other) as br:
        np.testing.assert_array_equal(br[...], IMAGE[..., 0])


@pytest.mark.parametrize("content", [b"hello world, this is text", b"\0" * 100, b"II"])
def test_a_file_in_no_known_format_is_said_at_once(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(UnknownFormatError, match=r"first bytes are.*these are: TIFF"):
        BioReader(path)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"series": 1}, "series=1 does not exist; there are 1"),
        ({"series": -2}, "series=-2"),
        ({"series": "0"}, "series='0'"),
        ({"series": True}, "series=True"),
        ({"level": 2}, "level=2 does not exist; there are 2 .0: 37 x 50, 1: 19 x 25"),
        ({"level": 0.5}, "level=0.5"),
        ({"backend": "nonsense"}, "no backend is called 'nonsense'; there are python"),
        ({"max_workers": 0}, "max_workers=0"),
    ],
    ids=str,
)
def test_an_argument_that_makes_no_sense_leaves_no_file_open(path, given, says):
    with pytest.raises(SpecError, match=says):
        BioReader(path, **given)


def test_series_and_level_may_be_numpy_ints_and_negative(path):
    with BioReader(path, series=np.int64(-1), level=np.uint8(1), max_workers=np.int64(2)) as br:
        assert (br.series, br.level, br.max_workers, br.shape[:2]) == (0, 1, 2, (25, 19))


# ------------------------------------------------------------------ what it says


def test_a_reader_tells_its_shape_in_every_way(reader):
    assert (reader.Y, reader.X, reader.Z, reader.C, reader.T) == SHAPE
    assert (reader.y, reader.x, reader.z, reader.c, reader.t) == SHAPE
    assert (reader.ndim, reader.bpp, reader.bytes_per_pixel, reader.spp) == (5, 2, 2, 1)
    assert (reader.n_series, reader.levels, reader.read_only) == (1, 2, True)
    assert reader.level_shapes == [SHAPE, (25, 19, 2, 3, 1)]
    assert reader.tile_shape == (16, 16, 1, 1, 1)
    assert reader.details["compression"]
    assert repr(reader) == (
        "<BioReader 'a.ome.tif' Y=50, X=37, Z=2, C=3, T=1 uint16 "
        "(level 0 of 2, python: content is TIFF)>"
    )
    assert BioReader.image_size(reader.path) == (37, 50)


def test_metadata_can_be_read_after_close(path):
    br = BioReader(path)
    xml = br.ome_xml
    br.close()
    assert br.metadata.images[0].pixels.size_x == 37
    assert br.ome_xml == xml


def test_a_read_that_does_not_fit_into_memory_says_how_large_it_is(tmp_path):
    path = tmp_path / "a.ome.tif"
    with BioWriter(path, shape=(2**17, 2**17, 1, 64), dtype="f8") as bw:
        bw[0, 0, 0, 0, 0] = 1
    with BioReader(path) as br:
        with pytest.raises(MemoryError, match=r"8,192.0 GiB do not fit into memory"):
            br[...]
        assert br[0, 0, 0, 0, 0] == 1
        assert not br[-3:, -3:, 0, -1].any()
