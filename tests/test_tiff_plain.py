"""TIFF without OME-XML: a hyperstack for ImageJ; and Zarr without NGFF."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import tifffile
import zarr
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.backends import _tiff_hyperstack
from bioio_tk.errors import SpecError, UnsupportedError

FIVE = coded((37, 50, 3, 2, 4))  # Y, X, Z, C, T
WAYS = [
    {},
    {"bigtiff": True},
    {"compression": "deflate"},
    {"compression": "deflate", "predictor": True, "bigtiff": True},
    {"compression": "lzw"},
]


def write(path, image, **more):
    with BioWriter(path, image=image, ome=False, **({"tile_size": 16, "max_workers": 3} | more)):
        pass


def blocks(path):
    """Return the first byte and the length of the pixels of each page."""
    with tifffile.TiffFile(path) as tif:
        return [(page.dataoffsets, page.databytecounts) for page in tif.pages]


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_tifffile_takes_it_for_a_hyperstack_of_imagej(tmp_path, way, dtype):
    image = FIVE.astype(dtype)
    write(tmp_path / "a.tif", image, **way)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert (tif.is_imagej, tif.is_ome, tif.is_bigtiff) == (True, False, "bigtiff" in way)
        assert (tif.series[0].axes, len(tif.pages)) == ("TZCYX", 24)
        np.testing.assert_array_equal(tif.asarray(), image.transpose(4, 2, 3, 0, 1))
        for number in (0, 7, 23):  # and each page by itself
            t, z, c = np.unravel_index(number, (4, 3, 2))
            np.testing.assert_array_equal(tif.pages[number].asarray(), image[:, :, z, c, t])
            assert not tif.pages[number].is_tiled
    with BioReader(tmp_path / "a.tif") as br:
        assert br.shape == image.shape
        np.testing.assert_array_equal(br[...], image)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    "shape", [(5, 6), (5, 6, 4), (5, 6, 1, 3), (5, 6, 1, 1, 7), (5, 6, 2, 1, 7)]
)
def test_axes_of_one_are_no_axes(tmp_path, shape, way):
    image = coded(shape)
    write(tmp_path / "a.tif", image, **way)
    with BioReader(tmp_path / "a.tif") as br:
        assert br.shape == (*shape, 1, 1, 1)[:5]
        np.testing.assert_array_equal(br[...].reshape(image.shape), image)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_colours_stay_together(tmp_path, compression):
    image = coded((37, 50, 2, 3), "u1")
    write(tmp_path / "a.tif", image, samples_per_pixel=3, compression=compression)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.series[0].axes == "ZYXS"
        np.testing.assert_array_equal(tif.asarray(), image.transpose(2, 0, 1, 3))
    with BioReader(tmp_path / "a.tif") as br:
        assert br.samples_per_pixel == 3
        np.testing.assert_array_equal(br[...], image)


def test_pixels_lie_in_one_block_one_plane_after_the_other(tmp_path):
    """ImageJ takes the first offset and the number of images, and asks no further."""
    write(tmp_path / "a.tif", FIVE)
    found = blocks(tmp_path / "a.tif")
    plane = 37 * 50 * 2
    first = found[0][0][0]
    assert found == [((first + n * plane,), (plane,)) for n in range(24)]
    data = (tmp_path / "a.tif").read_bytes()[first : first + 24 * plane]
    np.testing.assert_array_equal(
        np.frombuffer(data, "<u2").reshape(4, 3, 2, 37, 50), FIVE.transpose(4, 2, 3, 0, 1)
    )


def test_what_imagej_can_say_is_said(tmp_path):
    given = {
        "physical_size_x": (0.5, "µm"),
        "physical_size_y": (0.25, "µm"),
        "physical_size_z": (2000, "nm"),
        "time_increment": (50, "ms"),
        "channel_names": ["a", "µ"],
    }
    write(tmp_path / "a.tif", FIVE, **given)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        said = tif.imagej_metadata
        assert {k: said[k] for k in ("images", "channels", "slices", "frames", "hyperstack")} == {
            "images": 24,
            "channels": 2,
            "slices": 3,
            "frames": 4,
            "hyperstack": True,
        }
        assert (said["unit"], said["spacing"], said["finterval"]) == ("um", 2.0, 0.05)
        assert json.loads(said["Info"])["channel_names"] == ["a", "µ"]
        tags = tif.pages[-1].tags
        assert (tags[282].value, tags[283].value, tags[296].value) == ((2, 1), (4, 1), 1)
    with BioReader(tmp_path / "a.tif") as br:
        assert br.pixel_size() == (0.25, 0.5, 2.0)
        assert br.time_increment == (0.05, "s")


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_pixels_never_written_are_zero(tmp_path, way):
    image = np.zeros((37, 50, 2, 2, 2), "u2")
    with BioWriter(
        tmp_path / "a.tif", shape=image.shape, dtype="u2", ome=False, tile_size=16, **way
    ) as bw:
        bw[3, 4, 1, 0, 1] = image[3, 4, 1, 0, 1] = 9
        bw[30:, :, 0, 1, 0] = image[30:, :, 0, 1, 0] = 7
        bw[31, :, 0, 1, 0] = image[31, :, 0, 1, 0] = 5
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "a.tif"), image.transpose(4, 2, 3, 0, 1)
    )


def test_beyond_4_gb_there_is_one_directory_as_in_imagejs_own_files(tmp_path, monkeypatch):
    monkeypatch.setattr(_tiff_hyperstack, "_LIMIT", 60_000)  # bytes, instead
    write(tmp_path / "a.tif", FIVE)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert len(tif.pages) == 1
        np.testing.assert_array_equal(tif.asarray(), FIVE.transpose(4, 2, 3, 0, 1))
    with BioReader(tmp_path / "a.tif") as br:
        np.testing.assert_array_equal(br[...], FIVE)
    with pytest.raises(UnsupportedError, match="bigtiff=True"):
        write(tmp_path / "b.tif", coded(FIVE.shape, "f8"), compression="packbits")
    assert not (tmp_path / "b.tif").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a hole in a file takes its room")
def test_planes_beyond_4_gb_are_read_by_others(tmp_path):
    path, band = tmp_path / "a.tif", coded((16, 8192, 1, 1, 1), "u2")
    with BioWriter(path, X=8192, Y=8192, Z=34, dtype="u2", ome=False) as bw:
        bw[8000:8016, :, 33] = band
    assert path.stat().st_size > 2**32
    with tifffile.TiffFile(path) as tif:
        assert (tif.is_imagej, tif.is_bigtiff) == (True, False)
    mapped = tifffile.memmap(path, mode="r")
    assert mapped.shape == (34, 8192, 8192)
    np.testing.assert_array_equal(mapped[33, 8000:8016], band[:, :, 0, 0, 0])
    assert not mapped[33, 8016:].any()
    del mapped
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[8000:8016, :, 33], band[:, :, 0, 0, 0])


def test_packed_planes_that_have_no_room_for_their_directories_are_not_left_out(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(_tiff_hyperstack, "_LIMIT", 4500)
    with pytest.raises(UnsupportedError, match="bigtiff=True"):
        write(tmp_path / "a.tif", np.zeros((16, 16, 40), "u1"), compression="deflate")
    assert not (tmp_path / "a.tif").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dtype": "c8"}, "complex64"),
        ({"dtype": "u8"}, "uint64"),
        ({"dtype": "bool"}, "bool"),
        ({"pyramid": 2}, "smaller resolutions"),
        ({"samples_per_pixel": 3, "C": 3, "dtype": "u2"}, "RGB"),
        ({"ngff_version": "0.5"}, "ngff_version"),
        ({"compression": "zip9000"}, "compress"),
        ({"bigtiff": "yes"}, "bigtiff"),
        ({"mode": "create"}, "image of its own"),
        ({"group": "x"}, r"image of its own|OME-Zarr"),
    ],
    ids=str,
)
def test_what_imagej_does_not_know_is_said_and_leaves_nothing(tmp_path, given, says):
    with pytest.raises((SpecError, UnsupportedError), match=says):
        BioWriter(tmp_path / "a.tif", **({"X": 40, "Y": 50, "dtype": "u1", "ome": False} | given))
    assert not list(tmp_path.iterdir())


def test_bio_formats_reads_the_same(tmp_path, java):
    for number, way in enumerate(WAYS):
        path = tmp_path / f"{number}.tif"
        write(path, FIVE, physical_size_x=(0.5, "µm"), physical_size_y=(0.5, "µm"), **way)
        with BioReader(path, backend="java") as br:
            assert (br.shape, br.physical_size_x) == (FIVE.shape, (0.5, "µm"))
            np.testing.assert_array_equal(br[...], FIVE)


# ------------------------------------------------------------------ Zarr


@pytest.mark.parametrize(
    "given", [{}, {"ngff_version": "0.4"}, {"chunks": 16, "shards": 64}], ids=str
)
def test_zarr_without_ngff_is_one_array(tmp_path, given):
    write(tmp_path / "a.zarr", FIVE, physical_size_x=(500, "nm"), channel_names=["a", "b"], **given)
    array = zarr.open(tmp_path / "a.zarr", mode="r")
    np.testing.assert_array_equal(array[...], FIVE.transpose(4, 3, 2, 0, 1))
    attributes = dict(array.attrs)
    assert (attributes["dx"], attributes["channel_names"]) == (0.5, ["a", "b"])
    v2 = "ngff_version" in given
    assert attributes.get("_ARRAY_DIMENSIONS") == (list("tczyx") if v2 else None)
    assert not any("ome" in name or "multiscales" in name for name in attributes)
    with BioReader(tmp_path / "a.zarr") as br:
        np.testing.assert_array_equal(br[...], FIVE)
        assert (br.physical_size_x, br.channel_names) == ((0.5, "µm"), ["a", "b"])
    write(tmp_path / "a.zarr", FIVE[:9], overwrite=True)
    assert zarr.open(tmp_path / "a.zarr", mode="r").shape == (4, 2, 3, 9, 50)


def test_zarr_without_ngff_has_no_pyramid(tmp_path):
    with pytest.raises(UnsupportedError, match="smaller resolutions"):
        write(tmp_path / "a.zarr", FIVE, pyramid=2)
    assert not list(tmp_path.iterdir())
