"""What Bio-Formats says of an image, as ours: tiles, planes, plates."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from bioio_tk import BioReader
from bioio_tk.backends import _java_geometry, java_read
from bioio_tk.backends._java_geometry import Layout, settled, tile_of
from bioio_tk.core.plate import Field, Plate, Well
from bioio_tk.errors import DamagedFileError
from bioio_tk.jobs.collection import convert_series

sizes = st.integers(1, 20_000)


@given(sizes, sizes, sizes, sizes)
def test_a_tile_is_made_of_whole_stored_tiles(height, width, rows, columns):
    tile = tile_of((height, width), (rows, columns))
    for given_, best, size in zip(tile, (rows, columns), (height, width), strict=True):
        assert 1 <= given_ <= size
        assert given_ == size or given_ % best == 0


@pytest.mark.parametrize("best", [(0, 0), (-1, 256), (1, 0)])
def test_a_reader_that_names_no_tile_gets_one(best):
    height, width = tile_of((100, 100), best)
    assert 1 <= height <= 100
    assert 1 <= width <= 100


def layout(shape=(4000, 1000, 1, 1, 1), tile=(500, 1000, 1, 1, 1), dtype="<u2", samples=1, il=True):
    return Layout(shape, tile, np.dtype(dtype), samples, il)


class Rows:
    """An IFormatReader whose rows take as long as they are said to."""

    def __init__(self, monkeypatch, *seconds):
        self._now, self._left = 0.0, list(seconds)
        monkeypatch.setattr(_java_geometry.time, "perf_counter", lambda: self._now)

    def openBytes(self, plane, x, y, width, height):
        assert (plane, x, width, height) == (0, 0, 1000, 1)
        self._now += self._left.pop(0)


@pytest.mark.parametrize(
    ("seconds", "tile", "rows"),
    [
        ([0.0002], 500, 1048),  # rows are read alone: bands of a million pixels
        ([0.0002], 2000, 2000),  # … or as large as they are
        ([0.0002], 4000, 1048),  # … also where one piece was said to be the best
        ([0.06, 0.0002], 500, 1048),  # only the first one took long
        ([0.06, 0.06], 500, 4000),  # every row costs a plane
        ([0.9], 500, 4000),  # no code takes that long to load
    ],
)
def test_planes_are_read_whole_where_a_row_costs_as_much(monkeypatch, seconds, tile, rows):
    java = Rows(monkeypatch, *seconds)
    assert settled(java, layout(tile=(tile, 1000, 1, 1, 1))).tile == (rows, 1000, 1, 1, 1)
    assert not java._left


@pytest.mark.parametrize(
    "given_",
    [
        layout(tile=(256, 256, 1, 1, 1)),
        layout((200, 1000, 1, 1, 1), (100, 1000, 1, 1, 1)),
        layout((40_000, 10_000, 1, 1, 1), (100, 10_000, 1, 1, 1)),
    ],
    ids=["tiles", "small", "huge"],
)
def test_nothing_is_tried_where_it_does_not_matter(given_):
    assert settled(None, given_) == given_


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<f8", ">i4", "u1"])
@pytest.mark.parametrize("interleaved", [True, False])
def test_bytes_become_pixels(dtype, interleaved):
    image = np.arange(5 * 4 * 3).reshape(5, 4, 3).astype(dtype)
    raw = image if interleaved else image.transpose(2, 0, 1)
    found = layout((5, 4, 1, 3, 1), (5, 4, 1, 3, 1), dtype, 3, interleaved).pixels(
        raw.tobytes(), 5, 4
    )
    np.testing.assert_array_equal(found, image.reshape(5, 4, 1, 3, 1))
    assert found.dtype.isnative


def test_too_few_bytes_are_damage():
    with pytest.raises(DamagedFileError, match="39 bytes where 40 belong"):
        layout().pixels(b"x" * 39, 5, 4)


@pytest.mark.parametrize("compression", [None, "deflate", "packbits"])
@pytest.mark.parametrize("rows", [1, 50, 1200])
def test_however_a_plane_is_read_its_pixels_are_the_same(java, tmp_path, compression, rows):
    image = np.random.default_rng(3).integers(0, 50, (2, 1200, 900), "u2")
    path = tmp_path / "planes.tif"
    tifffile.imwrite(path, image, rowsperstrip=rows, compression=compression)
    with BioReader(path, backend="java") as br:
        for z, y, x in [(0, 1190, 3), (1, 0, 899), (1, 600, 450)]:
            found = br[y : y + 40, x : x + 40, :, :, z if br.T > 1 else 0]
            np.testing.assert_array_equal(found, image[z, y : y + 40, x : x + 40])
        whole = br[...].reshape(br.shape)
    np.testing.assert_array_equal(whole.reshape(1200, 900, 2).transpose(2, 0, 1), image)


def test_two_levels_that_settle_at_once_both_do(java, tmp_path, monkeypatch):
    path = tmp_path / "x&resolutions=2&sizeX=64&sizeY=64&resolutionScale=2.fake"
    path.write_bytes(b"fake")
    other = threading.Event()

    def slow(_java, given):
        if given.shape[0] == 64:
            other.wait(0.5)  # the other one comes only when this one is through
        else:
            other.set()
        return given.by_rows(7)

    monkeypatch.setattr(java_read, "settled", slow)
    with BioReader(path, backend="java") as br:
        source = br._source
        threads = [threading.Thread(target=source.settle, args=(0, level)) for level in (0, 1)]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        for thread in threads:
            thread.join()
        assert [level.tile[0] for level in source.images[0].levels] == [7, 7]


# ------------------------------------------------------------------ plates


def plate_file(folder, keys):
    path = folder / f"p&{keys}&sizeX=20&sizeY=16.fake"
    path.write_bytes(b"fake")
    return path


def plane(java, path, series):
    """Return the first plane of a series by plain calls."""
    reader = java("loci.formats.ImageReader")()
    try:
        reader.setId(str(path))
        reader.setSeries(series)
        return np.frombuffer(bytes(reader.openBytes(0)), "u1").reshape(16, 20)
    finally:
        reader.close()


def test_a_plate_is_described(java, tmp_path):
    path = plate_file(tmp_path, "plates=1&plateRows=2&plateCols=3&fields=2&plateAcqs=2")
    with BioReader(path, backend="java") as br:
        plate = br.plate
        assert br.n_series == 24
    assert (plate.rows, plate.columns) == (("A", "B"), ("1", "2", "3"))
    assert [well.path for well in plate.wells] == ["A/1", "A/2", "A/3", "B/1", "B/2", "B/3"]
    assert [[f.acquisition for f in well.fields] for well in plate.wells] == [[0, 0, 1, 1]] * 6
    assert len(plate.acquisitions) == 2
    assert plate.numbers == tuple(range(24))
    assert plate.series("B", "3", 2) == 22


def test_an_image_on_no_plate_has_none(java, tmp_path):
    path = plate_file(tmp_path, "series=2")
    with BioReader(path, backend="java") as br:
        assert br.plate is None
        assert br.series_names == ["p", "p 2"]


def test_a_plate_whose_images_come_in_another_order_is_converted(java, tmp_path, monkeypatch):
    path = plate_file(tmp_path, "series=4")
    fields = [
        (Field("0", None, 3), Field("1", None, 1)),
        (Field("0", None, 0), Field("1", None, 2)),
    ]
    wells = tuple(Well("A", str(n + 1), both) for n, both in enumerate(fields))
    plate = Plate("mixed", ("A",), ("1", "2"), wells)
    assert plate.numbers == (3, 1, 0, 2)
    assert plate.series("A", "2", 1) == 2
    monkeypatch.setattr(java_read, "plate_of", lambda _store: plate)
    target = tmp_path / "plate.ome.zarr"
    convert_series(path, target)
    for where, series in {"A/1/0": 3, "A/1/1": 1, "A/2/0": 0, "A/2/1": 2}.items():
        pixels = zarr.open_group(target, mode="r")[f"{where}/0"][0, 0, 0]
        np.testing.assert_array_equal(pixels, plane(java, path, series))


def test_images_that_lie_on_no_plate_are_not_lost(java, tmp_path, monkeypatch):
    path = plate_file(tmp_path, "series=3")
    plate = Plate("half", ("A",), ("1",), (Well("A", "1", (Field("0"), Field("1"))),))
    monkeypatch.setattr(java_read, "plate_of", lambda _store: plate)
    target = tmp_path / "series.ome.zarr"
    convert_series(path, target)
    store = zarr.open_group(target, mode="r")
    for series in range(3):
        np.testing.assert_array_equal(store[f"{series}/0"][0, 0, 0], plane(java, path, series))
