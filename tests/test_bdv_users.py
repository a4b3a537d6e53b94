"""What people do with BigDataViewer datasets from one program to the next: nothing gets lost."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import tifffile
from command import run

from bioio_tk import BioReader, convert
from bioio_tk.api import describe, recover
from bioio_tk.bdv import BdvWriter, write_zarr_xml
from bioio_tk.errors import SpecError, UnsupportedError

h5py = pytest.importorskip("h5py")

STAGE = [(0.0, 0.0), (900.0, 0.0), (0.0, 700.0)]  # µm along X, Y
VOXEL = 0.5


def stack(seed, shape=(4, 24, 32)):
    return np.random.default_rng(seed).integers(1, 4000, shape).astype("uint16")


@pytest.fixture
def positions(tmp_path):
    """An OME-TIFF of three positions, as microscopes write it: the stage is said per plane."""
    path = tmp_path / "positions.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        for number, (x, y) in enumerate(STAGE):
            planes = {"PositionX": [x] * 4, "PositionY": [y] * 4}
            units = {f"Position{axis}Unit": ["µm"] * 4 for axis in "XY"}
            sizes = {"PhysicalSizeX": VOXEL, "PhysicalSizeY": VOXEL, "PhysicalSizeZ": 2.0}
            tif.write(
                stack(number),
                photometric="minisblack",
                metadata={"axes": "ZYX", "Name": f"P{number}", "Plane": planes | units, **sizes},
            )
    return path


def moves(xml):
    """Return where each view is moved by all transforms together, by ElementTree and NumPy."""
    found = {}
    for view in ET.parse(xml).getroot().iter("ViewRegistration"):
        whole = np.eye(4)
        for text in view.iter("affine"):
            whole = whole @ np.vstack(
                [np.fromstring(text.text, sep=" ").reshape(3, 4), [0, 0, 0, 1]]
            )
        found[int(view.get("setup"))] = whole[:3, 3].tolist()
    return found


def test_one_position_of_several_is_where_the_stage_stood(tmp_path, positions):
    convert(positions, tmp_path / "all.xml")
    convert(positions, tmp_path / "one.xml", series=1)
    in_pixels = [[x / VOXEL, y / VOXEL, 0.0] for x, y in STAGE]
    assert list(moves(tmp_path / "all.xml").values()) == in_pixels
    assert list(moves(tmp_path / "one.xml").values()) == [in_pixels[1]]


def test_part_of_a_position_is_moved_on_by_where_the_part_begins(tmp_path, positions):
    convert(positions, tmp_path / "part.xml", series=1, select="x=10:20 y=4:24")
    assert list(moves(tmp_path / "part.xml").values()) == [[1800.0 + 10, 4.0, 0.0]]


def test_position_of_a_file_with_one_image(tmp_path, positions):
    convert(positions, tmp_path / "two.ome.tif", series=2)
    convert(tmp_path / "two.ome.tif", tmp_path / "two.xml")
    assert list(moves(tmp_path / "two.xml").values()) == [[0.0, 1400.0, 0.0]]


@pytest.mark.parametrize("series", [1, 2])
def test_xml_over_zarr_puts_an_image_where_the_stage_stood(tmp_path, positions, series):
    convert(positions, tmp_path / "z.ome.zarr", series=series, ngff_version="0.4")
    write_zarr_xml(tmp_path / "z.ome.zarr")
    x, y = STAGE[series]
    assert list(moves(tmp_path / "z.xml").values()) == [[x / VOXEL, y / VOXEL, 0.0]]


def test_xml_over_all_positions_of_a_store(tmp_path, positions):
    store = tmp_path / "all.ome.zarr"
    run("convert", positions, store, "--series", "all", "--ngff-version", "0.4", "--bdv-xml")
    want = [[x / VOXEL, y / VOXEL, 0.0] for x, y in STAGE]
    assert list(moves(tmp_path / "all.xml").values()) == want


def test_xml_over_several_stores_opens_from_their_folder(tmp_path, positions, monkeypatch):
    for series in (0, 1):
        convert(positions, tmp_path / f"{series}.ome.zarr", series=series, ngff_version="0.4")
    monkeypatch.chdir(tmp_path)
    write_zarr_xml(["0.ome.zarr", "1.ome.zarr"])
    for series in (0, 1):
        with BioReader("dataset.xml", series=series) as br:
            np.testing.assert_array_equal(br[...].transpose(2, 0, 1), stack(series))


def test_what_other_formats_do_not_keep_of_views_is_said(tmp_path):
    place = np.eye(3, 4)
    place[0, 3] = 25.0
    with BdvWriter(tmp_path / "x.h5", nchannels=2, ntiles=2) as writer:
        writer.append_view(stack(1))
        writer.append_view(stack(2), time=1, channel=1)
        writer.append_view(stack(3), tile=1, m_affine=place)
    first = convert(tmp_path / "x.xml", tmp_path / "first.ome.tif", series=0).notes
    assert any("2 views are missing, and 0" in note for note in first)
    assert not any("affines" in note for note in first)
    second = convert(tmp_path / "x.xml", tmp_path / "second.ome.tif", series=1, select="t=0").notes
    assert any("affines" in note for note in second)
    assert not any("missing" in note for note in second)
    again = convert(tmp_path / "x.xml", tmp_path / "again.xml")
    alone = convert(tmp_path / "x.xml", tmp_path / "alone.xml", series=1)
    for note in (*again.notes, *alone.notes):
        assert "affines" not in note
        assert "missing" not in note
    assert again.bytes_in == sum((tmp_path / f"x.{end}").stat().st_size for end in ("xml", "h5"))
    assert 25.0 in {move[0] for move in moves(tmp_path / "again.xml").values()}


def test_images_of_different_length_keep_what_their_source_says(tmp_path):
    source = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(source, ome=True) as tif:
        for name, times in (("long", 3), ("short", 2)):
            about = {"axes": "TZYX", "Name": name, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            pixels = stack(times, (times, 2, 24, 32))
            tif.write(pixels, photometric="minisblack", metadata=about)
    convert(source, tmp_path / "two.xml")
    with BioReader(tmp_path / "two.xml", series=1) as br:
        assert br.notes == ()
        assert br.shape == (24, 32, 2, 1, 3)
        assert [view.missing for view in br.views if view.series == 1] == [False, False, True]
        assert br.ps_z is None or br.ps_z[0] is None  # which the source did not know
        np.testing.assert_array_equal(
            br[:, :, :, 0, :2].squeeze().transpose(3, 2, 0, 1), stack(2, (2, 2, 24, 32))
        )


def test_verified_says_how_many_images_were_compared(tmp_path, positions):
    report = convert(positions, tmp_path / "all.xml", verify="full")
    assert report.verified == f"equal: all {4 * 24 * 32} pixels of each of 3 images"


def test_recover_of_what_is_whole_or_cannot_be_completed(tmp_path):
    with BdvWriter(tmp_path / "x.h5") as writer:
        writer.append_view(stack(1))
    for name in ("x.xml", "never.xml"):
        with pytest.raises(FileNotFoundError, match="nothing to recover"):
            recover(tmp_path / name)
    (tmp_path / "cut.xml.partial").mkdir()
    with pytest.raises(UnsupportedError, match="write it anew"):
        recover(tmp_path / "cut.xml")


def test_one_factor_that_would_drop_the_full_resolution(tmp_path):
    with pytest.raises(SpecError, match=r"\(\(1, 1, 1\), \(1, 2, 2\)\)"):
        BdvWriter(tmp_path / "x.h5", subsamp=(1, 2, 2))
    assert not list(tmp_path.iterdir())
    with BdvWriter(tmp_path / "x.h5", subsamp=((1, 2, 2),)) as writer:
        writer.append_view(stack(1))
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["t00000/s00/0/cells"].shape == (4, 12, 16)


def test_size_of_a_dataset_over_zarr_is_that_of_all_its_files(tmp_path, positions):
    convert(positions, tmp_path / "z.ome.zarr", series=0, ngff_version="0.4")
    write_zarr_xml(tmp_path / "z.ome.zarr")
    files = [tmp_path / "z.xml", *(f for f in (tmp_path / "z.ome.zarr").rglob("*") if f.is_file())]
    found = describe(tmp_path / "z.xml")
    assert (found.bytes, found.files) == (sum(f.stat().st_size for f in files), len(files))


def test_views_that_were_moved_are_not_all_listed(tmp_path):
    with BdvWriter(tmp_path / "x.h5") as writer:
        for time in range(11):
            writer.append_view(stack(time), time=time)
    words = ["bdv", "transform", str(tmp_path / "x.xml")]
    moved, _ = run(*words, "--translate", "1,2,3")
    assert "time 7 setup 0" in moved
    assert "time 8 setup 0" not in moved
    assert moved.endswith("  and 3 more: see --list\n")
    listed, _ = run(*words, "--list")
    assert listed.count("move 1 2 3") == 2 * 11  # itself, and all together
