"""Code written for npy2bdv 1.0 and 1.1 runs on `bioio_tk.compat.npy2bdv`, with the same values.

Expected pixels come from NumPy and from plain loops, and what is in the files from h5py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

h5py = pytest.importorskip("h5py")

from bdv_readers import check_all_readers  # noqa: E402

import bioio_tk.compat.npy2bdv as npy2bdv  # noqa: E402
from bioio_tk.backends import _java_home  # noqa: E402
from bioio_tk.compat.npy2bdv import _writer  # noqa: E402
from bioio_tk.compat.npy2bdv._pyramid import padded_mean  # noqa: E402
from bioio_tk.errors import BioIOError  # noqa: E402

ORDER = ("illumination", "channel", "tile", "angle")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder of one's own, with relative names, as its users do."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def coded(shape, number=0, dtype="uint16"):
    """A stack in which no two pixels of a neighbourhood are the same, up to the largest values."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    wide = z * 7919 + y * 613 + x * 31 + number * 4001
    if np.dtype(dtype).kind == "f":
        return (np.sin(wide) * 1000).astype(dtype)
    return (wide % (np.iinfo(dtype).max + 1)).astype(dtype)


def cells(name, time=0, setup=0, level=0):
    """What h5py finds of a view, uint16 as the numbers that are meant."""
    with h5py.File(name, "r", locking=False) as file:
        stored = file[f"t{time:05}/s{setup:02}/{level}/cells"][()]
    return stored.view(np.uint16) if stored.dtype == np.int16 else stored


def level(stack, factor):
    """One resolution, by its definition: zeros behind the border, and whole numbers cut off."""
    sizes = [-(-n // f) for n, f in zip(stack.shape, factor, strict=True)]
    small = np.empty(sizes, np.float64)
    for at in np.ndindex(*sizes):
        box = tuple(slice(i * f, (i + 1) * f) for i, f in zip(at, factor, strict=True))
        small[at] = stack[box].sum(dtype=np.float64) / np.prod(factor)
    return small.astype(stack.dtype)


def write(name, stack, **options):
    writer = npy2bdv.BdvWriter(name, **options)
    writer.append_view(stack)
    writer.write_xml()
    writer.close()


def numbers(text):
    return [float(number) for number in text.split()]


def affines(name, time=0, setup=0):
    """The transforms of a view as they stand in the XML: [(name, 12 numbers)]."""
    for view in ET.parse(name).iterfind(".//ViewRegistration"):
        if (int(view.get("timepoint")), int(view.get("setup"))) == (time, setup):
            return [(t.findtext("Name"), numbers(t.findtext("affine"))) for t in view]
    return None


# -- the smaller resolutions ----------------------------------------------------------------------

SIZES = st.tuples(*[st.integers(1, 13)] * 3)
FACTORS = st.tuples(*[st.integers(1, 6)] * 3)


def shrunk(stack, factor):
    z, y, x = factor
    small = padded_mean(stack.transpose(1, 2, 0)[..., None, None], (y, x, z))
    return small[..., 0, 0].transpose(2, 0, 1)


@given(size=SIZES, factor=FACTORS, dtype=st.sampled_from(["uint8", "uint16"]))
def test_the_mean_of_whole_numbers(size, factor, dtype):
    stack = coded(size, 3, dtype)
    small = shrunk(stack, factor)
    assert small.dtype == stack.dtype
    assert np.array_equal(small, level(stack, factor))


@given(size=SIZES, factor=FACTORS)
def test_the_mean_of_floats(size, factor):
    stack = coded(size, 3, "float32")
    small = shrunk(stack, factor)
    assert small.dtype == stack.dtype
    assert np.allclose(small, level(stack, factor), rtol=1e-4, atol=1e-3)


def test_large_cells_do_not_overflow():
    stack = np.full((64, 64, 64), 65535, np.uint16)
    assert shrunk(stack, (64, 64, 64)).ravel().tolist() == [65535]
    stack = np.full((65, 33, 33), 65535, np.uint16)  # more than fits in 32 bits
    assert shrunk(stack, (65, 33, 33)).ravel().tolist() == [65535]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_same_bits_as_scikit_image(dtype):
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(7)
    for _ in range(40):
        factor = tuple(int(f) for f in rng.integers(1, 9, 3))
        size = tuple(int(n) for n in rng.integers(10, 30, 3))  # two cells or more
        stack = (rng.normal(0, 1, size) * 200).astype(dtype)
        expected = transform.downscale_local_mean(stack, factor).astype(dtype)
        assert np.array_equal(shrunk(stack, factor), expected)


def test_float_levels_have_the_same_bits_in_the_file():
    """Also at the border, where a block has a single cell across: another order of additions."""
    transform = pytest.importorskip("skimage.transform")
    stack = np.random.default_rng(3).normal(0, 1000, (8, 34, 34)).astype(np.float32)
    factors = ((1, 1, 1), (2, 2, 2), (4, 4, 4))
    for number in range(1, 3):
        used = (factors[0], factors[number])
        write("a.h5", stack, subsamp=used, blockdim=((4, 16, 16),), dtype="float32", overwrite=True)
        expected = transform.downscale_local_mean(stack, factors[number])
        assert np.array_equal(cells("a.h5", level=1), expected)


LEVELS = ((1, 1, 1), (2, 2, 2), (3, 4, 5))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("how", ["view", "planes", "substacks", "later"])
def test_levels_have_its_values(dtype, how):
    stack = coded((11, 33, 35), 2, dtype)
    subsamp = tuple((1, y, x) for _, y, x in LEVELS) if how == "planes" else LEVELS
    later = how == "later"
    writer = npy2bdv.BdvWriter(
        "a.h5",
        subsamp=subsamp[:1] if later else subsamp,
        blockdim=((4, 16, 16),),
        dtype=dtype,
    )
    if how in ("view", "later"):
        writer.append_view(stack)
    else:
        writer.append_view(stack=None, virtual_stack_dim=stack.shape)
    if how == "planes":
        for z in (3, 0, 1, 2, *range(10, 3, -1)):
            writer.append_plane(stack[z], z)
    if how == "substacks":
        for z, y, x in product((0, 5), (17, 0), (0, 9)):
            part = stack[z : z + 5 if z == 0 else None, y : y + 17, x : 9 if x == 0 else None]
            writer.append_substack(part, z, y, x)
    if later:
        writer.create_pyramids(subsamp=subsamp[1:], blockdim=((4, 16, 16), (2, 8, 8)))
    writer.write_xml()
    writer.close()
    for number, factor in enumerate(subsamp):
        stored = cells("a.h5", level=number)
        expected = level(stack, factor)
        assert stored.dtype == expected.dtype
        if dtype == "float32":
            assert np.allclose(stored, expected, rtol=1e-4, atol=1e-3)
        else:
            assert np.array_equal(stored, expected)
    editor = npy2bdv.BdvEditor("a.xml")
    for number in range(3):
        assert np.array_equal(editor.read_view(ilevel=number), cells("a.h5", level=number))
    editor.finalize()


def test_without_the_full_resolution():
    stack = coded((9, 33, 40))
    factors = ((1, 4, 4), (2, 8, 8))
    write("a.h5", stack, subsamp=factors, blockdim=((4, 8, 8),), compression="gzip")
    for number, factor in enumerate(factors):
        assert np.array_equal(cells("a.h5", level=number), level(stack, factor))
    assert ET.parse("a.xml").findtext(".//ViewSetup/size") == "40 33 9"
    with h5py.File("a.h5", "r") as file:
        assert file["s00/resolutions"][()].tolist() == [[4, 4, 1], [8, 8, 2]]


def test_later_levels_have_a_compression_of_their_own():
    writer = npy2bdv.BdvWriter("a.h5", nchannels=2)
    writer.append_view(coded((8, 32, 32)), channel=1)  # the other one never comes
    writer.create_pyramids(
        subsamp=((2, 2, 2), (4, 4, 4)), blockdim=((4, 16, 16), (2, 8, 8)), compression="gzip"
    )
    assert writer.nlevels == 3
    assert np.array_equal(writer.subsamp, [[1, 1, 1], [2, 2, 2], [4, 4, 4]])
    writer.write_xml()
    writer.close()
    with h5py.File("a.h5", "r") as file:
        view = file["t00000/s01"]
        assert [view[f"{n}/cells"].compression for n in range(3)] == [None, "gzip", "gzip"]
        assert [view[f"{n}/cells"].chunks for n in range(3)][1:] == [(4, 16, 16), (2, 8, 8)]
        assert file["s01/subdivisions"][()].tolist()[1:] == [[16, 16, 4], [8, 8, 2]]


# -- views ----------------------------------------------------------------------------------------


@pytest.fixture
def many():
    """Views of two time points and of all attributes, written in the order of its examples."""
    counts = {"illumination": 2, "channel": 3, "tile": 2, "angle": 2}
    writer = npy2bdv.BdvWriter(
        "many.h5", nilluminations=2, nchannels=3, ntiles=2, nangles=2, blockdim=((4, 16, 16),)
    )
    stacks = {}
    for number, (t, c, i, tile, a) in enumerate(
        product(range(2), range(3), range(2), range(2), range(2))
    ):
        places = {"illumination": i, "channel": c, "tile": tile, "angle": a}
        stacks[t, *(places[name] for name in ORDER)] = coded((5, 20, 30), number)
        writer.append_view(
            stacks[t, *(places[name] for name in ORDER)],
            time=t,
            voxel_size_xyz=(1, 1, 4),
            **places,
        )
    writer.write_xml()
    writer.close()
    return counts, stacks


def test_each_view_is_where_npy2bdv_has_it(many):
    counts, stacks = many
    for (t, *places), stack in stacks.items():
        setup = int(np.ravel_multi_index(places, [counts[name] for name in ORDER]))
        assert np.array_equal(cells("many.h5", t, setup), stack)
    with h5py.File("many.h5", "r") as file:
        assert file["t00000/s00/0/cells"].dtype == np.int16
        assert file["t00000/s00/0/cells"].chunks == (4, 16, 16)
        assert file["t00000/s00/0/cells"].compression is None
        assert "dataType" not in file["s00"].attrs
        assert file["s23/resolutions"][()].tolist() == [[1, 1, 1]]
        assert file["s23/subdivisions"][()].tolist() == [[16, 16, 4]]


def test_the_editor_reads_them(many):
    _, stacks = many
    editor = npy2bdv.BdvEditor("many.h5", mode="r")
    assert editor.get_attribute_count() == (2, 2, 3, 2, 2)
    assert (editor.ntimes, editor.nilluminations, editor.nchannels) == (2, 2, 3)
    assert (editor.ntiles, editor.nangles, editor.nsetups) == (2, 2, 24)
    assert editor.dtype == np.uint16
    for (t, *places), stack in stacks.items():
        view = dict(zip(ORDER, places, strict=True))
        read = editor.read_view(t, *places)
        assert read.dtype == np.uint16
        assert np.array_equal(read, stack)
        plane = editor.read_view(time=t, **view, z=3)
        assert plane.shape == (20, 30)
        assert np.array_equal(plane, stack[3])
        assert editor.get_view_property("voxel_size", **view) == (1.0, 1.0, 4.0)
        assert editor.get_view_property("view_shape", *places) == (30, 20, 5)
    assert all(isinstance(n, int) for n in editor.get_view_property("view_shape"))
    editor.finalize()


def test_the_xml_says_what_its_xml_says():
    writer = npy2bdv.BdvWriter("a.h5", nchannels=2, ntiles=2)
    writer.set_attribute_labels("channel", ("488", "561"))
    writer.append_view(
        coded((4, 16, 20)),
        channel=1,
        voxel_size_xyz=(0.5, 0.5, 2),
        voxel_units="um",
        calibration=(1, 1, 4),
        exposure_time=10,
        exposure_units="ms",
    )
    writer.write_xml(
        camera_name="cam", microscope_name="scope", microscope_version="2.0", user_name="me"
    )
    writer.close()
    root = ET.parse("a.xml").getroot()
    said = {
        "BasePath": ".",
        "generatedBy/microscope/name": "scope",
        "generatedBy/microscope/version": "2.0",
        "generatedBy/microscope/user": "me",
        "SequenceDescription/ImageLoader/hdf5": "a.h5",
        ".//ViewSetup/id": "2",
        ".//ViewSetup/name": "setup 2",
        ".//ViewSetup/size": "20 16 4",
        ".//ViewSetup/voxelSize/unit": "um",
        ".//ViewSetup/camera/name": "cam",
        ".//ViewSetup/camera/exposureTime": "10",
        ".//ViewSetup/camera/exposureUnits": "ms",
        ".//ViewSetup/attributes/channel": "1",
        ".//ViewSetup/attributes/tile": "0",
        ".//Timepoints/first": "0",
        ".//Timepoints/last": "0",
    }
    assert {path: root.findtext(path) for path in said} == said
    assert numbers(root.findtext(".//voxelSize/size")) == [0.5, 0.5, 2]
    assert len(root.findall(".//ViewSetup")) == 1  # those never written are not listed
    labels = [name.text for name in root.iterfind(".//Attributes[@name='channel']/Channel/name")]
    assert labels == ["488", "561"]
    assert [n.text for n in root.iterfind(".//Attributes[@name='tile']/Tile/id")] == ["0", "1"]
    assert affines("a.xml", 0, 2) == [("calibration", [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 4, 0])]
    assert not root.findall(".//MissingView")  # nothing is missing of those that are listed


def test_defaults_of_the_xml():
    write("a.h5", coded((4, 16, 20)))
    root = ET.parse("a.xml").getroot()
    assert root.findtext(".//voxelSize/unit") == "pixel"
    assert root.findtext(".//camera/name") == root.findtext(".//microscope/name") == "default"
    assert root.findtext(".//microscope/version") == "0.0"
    assert root.findtext(".//microscope/user") == "user"
    assert root.findtext(".//camera/exposureTime") == "0"
    assert affines("a.xml") == [("calibration", [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0])]


def test_time_points_in_any_order_and_with_gaps():
    writer = npy2bdv.BdvWriter("a.h5")
    for t in (2, 0):
        writer.append_view(coded((4, 8, 8), t), time=t)
    assert writer.ntimes == 3
    writer.write_xml()
    writer.close()
    assert '<MissingView timepoint="1" setup="0" />' in Path("a.xml").read_text()
    editor = npy2bdv.BdvEditor("a.h5")
    assert editor.ntimes == 3
    for t in (2, 0):
        assert np.array_equal(editor.read_view(time=t), coded((4, 8, 8), t))
    with pytest.raises(KeyError, match="time"):
        editor.read_view(time=1)
    with pytest.raises(KeyError):
        editor.read_view(ilevel=1)
    editor.finalize()


def test_a_view_written_again_is_replaced():
    writer = npy2bdv.BdvWriter("a.h5")
    writer.append_view(coded((4, 8, 8)))
    writer.append_view(coded((6, 9, 8), 1))
    writer.write_xml()
    writer.close()
    assert np.array_equal(cells("a.h5"), coded((6, 9, 8), 1))
    assert ET.parse("a.xml").findtext(".//ViewSetup/size") == "8 9 6"


def test_one_size_for_all_times_of_a_setup():
    writer = npy2bdv.BdvWriter("a.h5", nchannels=2)
    writer.append_view(coded((4, 8, 8)))
    writer.append_view(coded((6, 8, 8)), channel=1)
    writer.append_view(coded((5, 8, 8)))
    with pytest.raises(ValueError, match="one size"):
        writer.append_view(coded((4, 8, 8)), time=1)
    with pytest.raises(ValueError, match="one size"):
        writer.append_view(stack=None, virtual_stack_dim=(4, 8, 8), time=1)
    writer.append_view(coded((5, 8, 8), 9), time=1)
    writer.write_xml()
    writer.close()
    assert np.array_equal(cells("a.h5", 1), coded((5, 8, 8), 9))


def test_a_virtual_stack_that_is_never_filled_is_a_view_of_zeros():
    writer = npy2bdv.BdvWriter("a.h5", ntiles=2)
    writer.append_view(stack=None, virtual_stack_dim=(4, 16, 20), tile=1)
    writer.write_xml()
    root = ET.parse("a.xml").getroot()
    writer.close()
    assert [v.get("setup") for v in root.iterfind(".//ViewRegistration")] == ["1"]
    assert root.findtext(".//ViewSetup/size") == "20 16 4"
    assert not cells("a.h5", setup=1).any()


@pytest.mark.parametrize("slab", [1 << 26, 1000])
def test_planes_that_come_after_the_xml(slab, monkeypatch):
    monkeypatch.setattr(_writer, "_SLAB", slab)  # two planes
    stack = coded((6, 16, 16))
    writer = npy2bdv.BdvWriter("a.h5", subsamp=((1, 1, 1), (1, 2, 2)), blockdim=((4, 8, 8),))
    writer.append_view(stack=None, virtual_stack_dim=stack.shape)
    for z in range(3):
        writer.append_plane(stack[z], z=z)
    writer.write_xml()
    for z in range(3, 6):
        writer.append_plane(stack[z], z=z)
    writer.append_plane(stack[1][::-1], z=1)  # once more, as something else
    writer.write_xml()
    writer.close()
    stack[1] = stack[1][::-1].copy()
    assert np.array_equal(cells("a.h5"), stack)
    assert np.array_equal(cells("a.h5", level=1), level(stack, (1, 2, 2)))


def test_a_view_that_is_complete_keeps_its_place_when_planes_change():
    writer = npy2bdv.BdvWriter("a.h5")
    size = {"voxel_size_xyz": (1, 1, 3), "exposure_time": 7}
    writer.append_view(
        stack=None, virtual_stack_dim=STACK.shape, m_affine=MATRIX, name_affine="stage", **size
    )
    writer.append_substack(STACK, z_start=0)
    writer.write_xml()
    writer.append_affine(2 * MATRIX, "later")
    before = affines("a.xml")
    writer.append_plane(STACK[0][::-1], z=2)
    assert np.array_equal(cells("a.h5"), STACK)  # until the next XML, or the end
    writer.append_affine(3 * MATRIX, "still later")
    writer.close()
    assert affines("a.xml") == [("still later", (3 * MATRIX).ravel().tolist()), *before]
    assert [name for name, _ in before] == ["later", "stage", "calibration"]
    assert np.array_equal(cells("a.h5")[2], STACK[0][::-1])
    assert np.array_equal(np.delete(cells("a.h5"), 2, 0), np.delete(STACK, 2, 0))
    root = ET.parse("a.xml").getroot()
    assert numbers(root.findtext(".//voxelSize/size")) == [1, 1, 3]
    assert root.findtext(".//exposureTime") == "7"


def test_a_virtual_stack_begun_anew():
    writer = npy2bdv.BdvWriter("a.h5")
    writer.append_view(stack=None, virtual_stack_dim=(2, 5, 5))
    writer.append_plane(coded((2, 5, 5))[0], z=0)
    writer.append_view(stack=None, virtual_stack_dim=STACK.shape)
    writer.append_substack(STACK, z_start=0)
    writer.append_view(stack=None, virtual_stack_dim=STACK.shape, time=1)
    writer.append_view(STACK + 1, time=1)
    writer.write_xml()
    writer.close()
    assert np.array_equal(cells("a.h5"), STACK)
    assert np.array_equal(cells("a.h5", 1), STACK + 1)


def test_planes_after_the_xml_where_the_full_resolution_is_not_stored():
    writer = npy2bdv.BdvWriter("a.h5", subsamp=((1, 2, 2),), blockdim=((4, 8, 8),))
    writer.append_view(stack=None, virtual_stack_dim=STACK.shape)
    for z, plane in enumerate(STACK):
        writer.append_plane(plane, z=z)
        if z == 1:
            writer.write_xml()
    writer.write_xml()
    writer.close()
    assert np.array_equal(cells("a.h5"), level(STACK, (1, 2, 2)))


def test_the_last_voxel_size_of_a_setup_counts():
    writer = npy2bdv.BdvWriter("a.h5")
    writer.append_view(stack=None, virtual_stack_dim=STACK.shape, voxel_size_xyz=(1, 1, 2))
    said = {"voxel_size_xyz": (1, 1, 3), "voxel_units": "nm", "exposure_time": 5}
    writer.append_view(STACK, time=1, calibration=(1, 1, -3), **said)
    writer.append_substack(STACK, z_start=0)  # complete after the other one
    writer.write_xml()
    writer.close()
    root = ET.parse("a.xml").getroot()
    assert numbers(root.findtext(".//voxelSize/size")) == [1, 1, 3]
    assert root.findtext(".//voxelSize/unit") == "nm"
    assert root.findtext(".//exposureTime") == "5"
    assert [affines("a.xml", t)[0][1][10] for t in range(2)] == [1, -3]  # that is of the view


def test_one_level_without_the_comma():
    writer = npy2bdv.BdvWriter("a.h5", nchannels=2)
    writer.append_view(coded((8, 16, 16)))
    writer.create_pyramids(subsamp=((2, 4, 4)), blockdim=((4, 8, 8)))
    writer.append_view(coded((8, 16, 16), 1), time=1)  # has it, too
    writer.append_view(coded((8, 16, 16), 2), channel=1)  # and so has another setup
    writer.write_xml()
    writer.close()
    for number, (t, s) in enumerate(((0, 0), (1, 0), (0, 1))):
        expected = level(coded((8, 16, 16), number), (2, 4, 4))
        assert np.array_equal(cells("a.h5", t, s, 1), expected)
    assert writer.chunks == ((4, 256, 256), (4, 8, 8))


def test_from_several_threads():
    writer = npy2bdv.BdvWriter("a.h5", ntiles=12)
    stacks = [coded((4, 24, 24), tile) for tile in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda tile: writer.append_view(stacks[tile], tile=tile), range(12)))
    writer.write_xml()
    writer.close()
    editor = npy2bdv.BdvEditor("a.xml", mode="r")
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda tile: editor.read_view(tile=tile), range(12)))
    editor.finalize()
    for tile, stack in enumerate(stacks):
        assert np.array_equal(read[tile], stack)
        assert np.array_equal(cells("a.h5", 0, tile), stack)


def test_indices_count_from_the_end_as_in_numpy():
    writer = npy2bdv.BdvWriter("a.h5", nchannels=3)
    writer.append_view(stack=None, virtual_stack_dim=(4, 8, 8), channel=-1)
    writer.append_plane(coded((4, 8, 8))[2], z=-1, channel=-1)
    writer.write_xml()
    writer.close()
    assert np.array_equal(cells("a.h5", setup=2)[3], coded((4, 8, 8))[2])


# -- pixel types ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_other_pixel_types_say_so(dtype):
    stack = coded((8, 32, 33), 1, dtype)
    write("a.h5", stack, dtype=dtype)
    with h5py.File("a.h5", "r") as file:
        assert file["s00"].attrs["dataType"] == dtype.encode()
    assert cells("a.h5").dtype == dtype
    assert np.array_equal(cells("a.h5"), stack)
    editor = npy2bdv.BdvEditor("a.xml")
    assert editor.dtype == dtype
    assert editor.read_view().dtype == dtype
    editor.finalize()


SMALL = (2, 4, 4)
LOSSY = [
    ("uint16", np.full(SMALL, 70000, np.int64), 70000 - 65536),
    ("uint16", np.full(SMALL, 1.5), 1),
    ("uint8", np.full(SMALL, 300, np.uint16), 44),
    ("float32", np.full(SMALL, 2**24 + 1, np.int64), 2**24),
]
KEPT = [
    ("uint16", np.full(SMALL, 65535, np.uint16)),
    ("uint16", np.full(SMALL, 1000, np.int64)),
    ("uint16", np.full(SMALL, 1000.0)),
    ("uint16", np.full(SMALL, 7, np.uint16).astype(">u2")),
    ("uint8", np.full(SMALL, 255, np.uint16)),
    ("float32", np.full(SMALL, np.nan)),
]


@pytest.mark.parametrize(("dtype", "stack", "value"), LOSSY)
def test_a_cast_that_changes_values_warns(dtype, stack, value):
    for name, virtual in (("a.h5", False), ("b.h5", True)):
        writer = npy2bdv.BdvWriter(name, dtype=dtype)
        if virtual:
            writer.append_view(stack=None, virtual_stack_dim=SMALL)
            with pytest.warns(UserWarning, match=dtype) as seen:
                writer.append_plane(stack[0], z=0)
            with pytest.warns(UserWarning, match=dtype):
                writer.append_substack(stack[1:], z_start=1)
        else:
            with pytest.warns(UserWarning, match=dtype) as seen:
                writer.append_view(stack)
        assert seen[0].filename == __file__  # it points to the line that gave the pixels
        writer.write_xml()
        writer.close()
        assert (cells(name) == value).all()


@pytest.mark.parametrize(("dtype", "stack"), KEPT)
def test_a_cast_that_changes_nothing_is_silent(dtype, stack):
    write("a.h5", stack, dtype=dtype)
    assert np.array_equal(cells("a.h5"), stack, equal_nan=True)


# -- affine transforms ----------------------------------------------------------------------------

MATRIX = np.array([[1, 0.25, -10, 12345.123456789], [0, 1, 0, 1.2e-7], [0, 0, 1, 0.1]])


def test_affines_of_writing_and_later():
    writer = npy2bdv.BdvWriter("a.h5", ntiles=2)
    place = MATRIX.copy()
    for tile in range(2):
        place[0, 3] = tile
        writer.append_view(coded((4, 8, 8)), tile=tile, m_affine=place, name_affine=f"at {tile}")
    writer.write_xml()
    writer.append_affine(MATRIX, "later", 0, 0, 0, 1)
    writer.append_affine(m_affine=2 * MATRIX, tile=1)
    assert np.array_equal(writer.read_affine(tile=1, index=1), MATRIX)
    writer.close()
    expected = MATRIX.copy()
    expected[0, 3] = 1
    names = ["Appended affine transformation using npy2bdv.", "later", "at 1", "calibration"]
    assert [name for name, _ in affines("a.xml", 0, 1)] == names
    assert affines("a.xml", 0, 1)[2][1] == expected.ravel().tolist()
    editor = npy2bdv.BdvEditor("a.h5")
    for index, matrix in enumerate((2 * MATRIX, MATRIX, expected, np.eye(3, 4))):
        read = editor.read_affine(tile=1, index=index)
        assert read.shape == (3, 4)
        assert np.array_equal(read, matrix)  # every digit
    assert editor.read_affine(0, 0, 0, 0, 0, 0)[0, 3] == 0
    editor.append_affine(3 * MATRIX, "edited", tile=0)
    assert affines("a.xml", 0, 0)[0] == ("edited", (3 * MATRIX).ravel().tolist())  # at once
    editor.finalize()


def test_the_xml_written_again_keeps_what_was_appended():
    writer = npy2bdv.BdvWriter("a.h5")
    writer.append_view(coded((4, 8, 8)))
    writer.write_xml()
    writer.append_affine(MATRIX, "later")
    writer.append_view(coded((4, 8, 8)), time=1)
    writer.write_xml()
    writer.append_affine(MATRIX, "and this", time=1)
    writer.close()
    assert [name for name, _ in affines("a.xml", 0)] == ["later", "calibration"]
    assert [name for name, _ in affines("a.xml", 1)] == ["and this", "calibration"]


def test_each_time_has_its_own_affine():
    writer = npy2bdv.BdvWriter("a.h5")
    for t in range(3):
        matrix = np.eye(3, 4)
        matrix[0, 3] = 100 * t
        writer.append_view(coded((4, 8, 8)), time=t, m_affine=None if t == 2 else matrix)
    writer.write_xml()
    writer.close()
    assert [affines("a.xml", t)[0][1][3] for t in range(2)] == [0, 100]
    # one that is given none has that of its setup, as npy2bdv has it
    assert affines("a.xml", 2)[0][1][3] == 100


def test_an_affine_given_last_is_that_of_the_times_before():
    writer = npy2bdv.BdvWriter("a.h5", nchannels=2)
    writer.append_view(coded((4, 8, 8)))
    writer.append_view(coded((4, 8, 8)), channel=1)
    writer.append_view(coded((4, 8, 8)), time=2, m_affine=2 * MATRIX)
    writer.append_view(coded((4, 8, 8)), time=1, m_affine=MATRIX, name_affine="stage")
    writer.write_xml()
    writer.close()
    assert affines("a.xml", 0) == affines("a.xml", 1)
    assert affines("a.xml", 0)[0] == ("stage", MATRIX.ravel().tolist())
    assert [name for name, _ in affines("a.xml", 0)] == ["stage", "calibration"]
    assert affines("a.xml", 2)[0][1] == (2 * MATRIX).ravel().tolist()
    assert [name for name, _ in affines("a.xml", 0, 1)] == ["calibration"]


# -- the editor -----------------------------------------------------------------------------------


def test_cropping(many):
    _, stacks = many
    editor = npy2bdv.BdvEditor("many.xml")
    where = {"illumination": 1, "channel": 2, "tile": 0, "angle": 1}
    editor.crop_view(bbox_xyz=((3, -3), (2, -2), (1, -1)), **where)
    editor.crop_view(((5, None), None, None), angle=1)
    editor.crop_view(angle=0)  # a border of one pixel along X and Y
    assert editor.read_view(**where).shape == (3, 16, 24)
    assert editor.get_view_property("view_shape", **where) == (24, 16, 3)
    editor.finalize()
    for t in range(2):
        assert np.array_equal(cells("many.h5", t, 21), stacks[t, 1, 2, 0, 1][1:-1, 2:-2, 3:-3])
        assert np.array_equal(cells("many.h5", t, 1), stacks[t, 0, 0, 0, 1][:, :, 5:])
        assert np.array_equal(cells("many.h5", t, 0), stacks[t, 0, 0, 0, 0][:, 1:-1, 1:-1])
        assert np.array_equal(cells("many.h5", t, 2), stacks[t, 0, 0, 1, 0])
    sizes = {s.findtext("id"): s.findtext("size") for s in ET.parse("many.xml").iter("ViewSetup")}
    assert (sizes["21"], sizes["1"], sizes["0"], sizes["2"]) == (
        *("24 16 3", "25 20 5", "28 18 5"),
        "30 20 5",
    )
    assert Path("many.xml~1").exists()


def test_finalize_keeps_the_xml_before():
    write("a.h5", coded((4, 8, 8)))
    before = Path("a.xml").read_bytes()
    editor = npy2bdv.BdvEditor("a.xml")
    editor.append_affine(MATRIX)
    editor.finalize()
    backups = sorted(Path().glob("a.xml~*"))
    assert backups
    assert backups[-1].read_bytes() == before


def test_reading_never_writes(many):
    before = {name: Path(name).read_bytes() for name in ("many.h5", "many.xml")}
    editor = npy2bdv.BdvEditor("many.h5", mode="r")
    editor.read_view(time=1)
    editor.read_affine()
    editor.get_view_property("voxel_size")
    with pytest.raises(ValueError, match="r"):
        editor.crop_view()
    with pytest.raises(BioIOError):
        editor.append_affine(MATRIX)
    editor.finalize()
    assert {name: Path(name).read_bytes() for name in before} == before
    assert sorted(path.name for path in Path().iterdir()) == ["many.h5", "many.xml"]


def test_several_xmls_for_one_file():
    write("a.h5", coded((4, 8, 8)))
    Path("b.xml").write_bytes(Path("a.xml").read_bytes())
    for name in ("a.xml", "b.xml", "a.h5"):
        editor = npy2bdv.BdvEditor(name, "r")
        assert np.array_equal(editor.read_view(), coded((4, 8, 8)))
        assert str(editor.filename_h5) == "a.h5"
        assert editor.filename_xml == ("a.xml" if name == "a.h5" else name)
        editor.finalize()


FIJI = """<?xml version="1.0" encoding="UTF-8"?>
<SpimData version="0.2">
  <BasePath type="relative">.</BasePath>
  <SequenceDescription>
    <ImageLoader format="bdv.hdf5"><hdf5 type="relative">f.h5</hdf5></ImageLoader>
    <ViewSetups>
      <ViewSetup><id>4</id><size>5 4 3</size>
        <attributes><channel>7</channel></attributes></ViewSetup>
      <ViewSetup><id>2</id><size>5 4 3</size>
        <voxelSize><unit>um</unit><size>0.5 0.5 2.0</size></voxelSize>
        <attributes><channel>3</channel></attributes></ViewSetup>
      <Attributes name="channel">
        <Channel><id>3</id></Channel><Channel><id>7</id><name>561</name></Channel>
      </Attributes>
    </ViewSetups>
    <Timepoints type="pattern"><integerpattern>0-2</integerpattern></Timepoints>
    <MissingViews><MissingView timepoint="1" setup="4"/></MissingViews>
  </SequenceDescription>
  <ViewRegistrations>
%s
  </ViewRegistrations>
</SpimData>
"""


def test_a_file_of_another_program():
    """Setups in another order, ids of its own, one attribute, times as a pattern."""
    present = [(t, s) for t in range(3) for s in (2, 4) if (t, s) != (1, 4)]
    one = "1 0 0 0 0 1 0 0 0 0 4 0"
    registrations = [
        f'<ViewRegistration timepoint="{t}" setup="{s}"><ViewTransform type="affine">'
        f"<affine>{one}</affine></ViewTransform></ViewRegistration>"
        for t, s in present
    ]
    Path("f.xml").write_text(FIJI % "\n".join(registrations))
    with h5py.File("f.h5", "w") as file:
        for s in (2, 4):
            file[f"s{s:02}/resolutions"] = np.ones((1, 3))
            file[f"s{s:02}/subdivisions"] = np.full((1, 3), 4, np.int32)
        for t, s in present:
            file[f"t{t:05}/s{s:02}/0/cells"] = coded((3, 4, 5), 10 * t + s).view(np.int16)
    editor = npy2bdv.BdvEditor("f.xml")
    assert editor.get_attribute_count() == (3, 1, 2, 1, 1)
    assert np.array_equal(editor.read_view(time=2, channel=0), coded((3, 4, 5), 22))
    assert np.array_equal(editor.read_view(time=2, channel=1), coded((3, 4, 5), 24))
    assert np.array_equal(editor.read_view(time=2, channel=-1), coded((3, 4, 5), 24))
    assert editor.get_view_property("voxel_size", channel=0) == (0.5, 0.5, 2.0)
    assert np.array_equal(editor.read_affine(time=2, channel=1), np.diag([1, 1, 4, 1])[:3])
    editor.crop_view((None, None, (1, None)), channel=1)
    editor.finalize()
    assert cells("f.h5", 2, 4).shape == (2, 4, 5)
    assert cells("f.h5", 2, 2).shape == (3, 4, 5)


# -- what is an error -----------------------------------------------------------------------------

WRONG_WRITERS = [
    {"nilluminations": 0},
    {"nchannels": 0},
    {"ntiles": 0},
    {"nangles": 0},
    {"compression": "zip"},
    {"subsamp": ((1, 1, 1), (1, 2, 2.5))},
    {"dtype": "uint32"},
    {"dtype": "float64"},
]


@pytest.mark.parametrize("options", WRONG_WRITERS, ids=str)
def test_a_writer_that_makes_no_sense(options):
    with pytest.raises(AssertionError) as caught:
        npy2bdv.BdvWriter("a.h5", **options)
    assert isinstance(caught.value, BioIOError)
    assert not list(Path().iterdir())


STACK = coded((4, 8, 9))
WRONG_CALLS = {
    "two axes": lambda w: w.append_view(STACK[0]),
    "calibration": lambda w: w.append_view(STACK, calibration=(1, 1)),
    "voxel size": lambda w: w.append_view(STACK, voxel_size_xyz=(1, 1)),
    "no size": lambda w: w.append_view(stack=None),
    "plane of no stack": lambda w: w.append_plane(STACK[0], z=0, channel=1),
    "block of no stack": lambda w: w.append_substack(STACK, z_start=0, channel=1),
    "another plane": lambda w: w.append_plane(STACK[0, 1:], z=0, time=7),
    "z too large": lambda w: w.append_plane(STACK[0], z=4, time=7),
    "block beyond z": lambda w: w.append_substack(STACK, z_start=1, time=7),
    "block beyond y": lambda w: w.append_substack(STACK, z_start=0, y_start=1, time=7),
    "block beyond x": lambda w: w.append_substack(STACK, z_start=0, x_start=1, time=7),
    "no attribute": lambda w: w.set_attribute_labels("laser", ("a", "b")),
    "one label": lambda w: w.set_attribute_labels("channel", ("a",)),
    "factor 1": lambda w: w.create_pyramids(((1, 1, 1),), ((4, 8, 8),)),
    "unknown compression": lambda w: w.create_pyramids(compression="zip"),
    "no such view": lambda w: w.append_affine(MATRIX, time=3),
    "no such affine": lambda w: w.read_affine(index=5),
    "no matrix": lambda w: w.append_affine(MATRIX[:2]),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_call_that_makes_no_sense(name):
    writer = npy2bdv.BdvWriter("a.h5", nchannels=2)
    writer.append_view(STACK)
    writer.append_view(stack=None, virtual_stack_dim=STACK.shape, time=7)
    writer.write_xml()
    with pytest.raises(AssertionError) as caught:
        WRONG_CALLS[name](writer)
    assert isinstance(caught.value, BioIOError)
    assert len(str(caught.value)) > 20
    writer.close()
    assert np.array_equal(cells("a.h5"), STACK)
    with h5py.File("a.h5", "r") as file:
        assert {t: list(file[t]) for t in file if t[0] == "t" and len(file[t])} == {
            "t00000": ["s00"],
            "t00007": ["s00"],
        }


def test_levels_that_are_there_already():
    writer = npy2bdv.BdvWriter("a.h5", subsamp=((1, 1, 1), (1, 2, 2)))
    writer.append_view(STACK)
    with pytest.raises(AssertionError, match="resolutions"):
        writer.create_pyramids()
    with pytest.raises(IndexError):
        writer.append_view(STACK, channel=1)
    writer.close()


def test_an_xml_without_time_points():
    writer = npy2bdv.BdvWriter("a.h5")
    with pytest.raises(AssertionError, match="time"):
        writer.write_xml()
    writer.close()


def test_what_the_editor_refuses(many):
    editor = npy2bdv.BdvEditor("many.xml")
    with pytest.raises(ValueError, match="z"):
        editor.read_view(z=-1)
    with pytest.raises(ValueError, match="resolution"):
        editor.crop_view(ilevel=1)
    with pytest.raises(IndexError) as caught:
        editor.read_view(channel=3)
    assert isinstance(caught.value, KeyError)
    assert str(caught.value)[0] not in "'\""  # a text, not the representation of one
    for wrong in (
        lambda: editor.get_view_property("colour"),
        lambda: editor.read_affine(time=9),
        lambda: editor.read_affine(index=1),
        lambda: editor.append_affine(MATRIX[:, :3]),
    ):
        with pytest.raises(AssertionError):
            wrong()
    editor.finalize()
    for missing in ("none.h5", "none.xml"):
        with pytest.raises(AssertionError, match="none"):
            npy2bdv.BdvEditor(missing)
    Path("bad.xml").write_text("<SpimData><Sequence")
    with pytest.raises(ValueError, match=r"bad\.xml"):
        npy2bdv.BdvEditor("bad.xml")


def test_existing_files_are_refused():
    write("a.h5", STACK)
    before = Path("a.h5").read_bytes()
    for name in ("a.h5", "a.xml"):
        with pytest.raises(FileExistsError, match=r"a\.h5"):
            npy2bdv.BdvWriter(name)
    assert Path("a.h5").read_bytes() == before
    write("a.h5", STACK + 1, overwrite=True)
    assert np.array_equal(cells("a.h5"), STACK + 1)


def test_an_xml_that_is_left_over_does_no_harm():
    write("a.h5", STACK)
    Path("a.h5").unlink()
    left = Path("a.xml").read_bytes()
    write("a.h5", STACK + 1)
    assert np.array_equal(cells("a.h5"), STACK + 1)
    assert Path("a.xml~1").read_bytes() == left  # it may have registrations


def test_more_blocks_than_resolutions():
    write("a.h5", STACK, blockdim=((2, 4, 4), (4, 8, 8)))
    with h5py.File("a.h5", "r") as file:
        assert file["s00/subdivisions"][()].tolist() == [[4, 4, 2]]


def test_nothing_is_printed(capfd):
    write("a.h5", STACK, subsamp=((1, 1, 1), (1, 2, 2)), blockdim=((4, 8, 8),))
    write("a.h5", STACK, overwrite=True)
    writer = npy2bdv.BdvWriter("b.h5")
    writer.append_view(STACK)
    writer.append_view(STACK)
    writer.create_pyramids(((1, 2, 2),), ((4, 8, 8),))
    writer.write_xml()
    writer.close()
    assert capfd.readouterr() == ("", "")


def test_lzf_is_stored_and_warned_of():
    with pytest.warns(UserWarning, match="Fiji"):
        write("a.h5", STACK, compression="lzf")
    assert np.array_equal(cells("a.h5"), STACK)


# -- names of all versions ------------------------------------------------------------------------


def test_names_of_older_versions():
    writer = npy2bdv.BdvWriter("a.h5", nchannels=2, subsamp_zyx=((1, 1, 1), (1, 2, 2)))
    writer.append_view(stack=None, virtual_stack_dim=STACK.shape, time=0, channel=1)
    for z in range(4):
        writer.append_plane(plane=STACK[z], plane_index=z, time=0, channel=1)
    writer.write_xml_file(ntimes=3, camera_name="cam")
    writer.close()
    root = ET.parse("a.xml").getroot()
    assert root.findtext(".//Timepoints/last") == "2"
    assert len(root.findall(".//MissingView")) == 2
    assert root.findtext(".//camera/name") == "cam"
    assert np.array_equal(cells("a.h5", 0, 1), STACK)
    assert np.array_equal(cells("a.h5", 0, 1, 1), level(STACK, (1, 2, 2)))


@pytest.mark.parametrize("call", ["write_xml_file(2)", "write_xml(ntimes=2)"])
def test_the_number_of_time_points_may_be_said(call):
    writer = npy2bdv.BdvWriter("a.h5")
    for t in range(2):
        writer.append_view(STACK, time=t)
    eval(f"writer.{call}", {"writer": writer})
    writer.close()
    assert ET.parse("a.xml").findtext(".//Timepoints/last") == "1"


def test_attributes_that_programs_look_at():
    write("a.h5", STACK)  # which is replaced
    writer = npy2bdv.BdvWriter(
        "./a.h5",
        subsamp=((1, 1, 1), (1, 2, 2)),
        nchannels=2,
        ntiles=3,
        compression="gzip",
        overwrite=True,
    )
    assert (writer.filename_h5, writer.filename_xml) == ("./a.h5", "./a.xml")
    assert writer._file_object_h5 is None
    assert (writer.nsetups, writer.nchannels, writer.ntiles, writer.ntimes) == (6, 2, 3, 0)
    assert (writer.nilluminations, writer.nangles, writer.nlevels) == (1, 1, 2)
    assert writer.compression == "gzip"
    assert writer.dtype == np.uint16
    assert np.array_equal(writer.subsamp, [[1, 1, 1], [1, 2, 2]])
    assert writer.chunks == ((4, 256, 256), (4, 256, 256))
    assert writer.attribute_counts == {"illumination": 1, "channel": 2, "angle": 1, "tile": 3}
    writer.append_view(STACK, channel=1, voxel_size_xyz=(1, 2, 3), m_affine=MATRIX)
    assert writer.stack_shapes == {3: (4, 8, 9)}
    assert writer.voxel_size_xyz == {3: (1, 2, 3)}
    assert np.array_equal(writer.affine_matrices[3], MATRIX)
    assert writer.setup_id_present == [[False, False, False, True, False, False]]
    assert writer.virtual_stacks is False
    writer._file_object_h5.flush()
    assert writer._file_object_h5["t00000/s03/0/cells"].shape == (4, 8, 9)
    writer.append_view(STACK, time=1, channel=1)
    file = writer._file_object_h5
    assert np.array_equal(file["t00001/s03/0/cells"][()].view("u2"), STACK)
    writer.write_xml()
    writer.close()
    assert not file  # closed
    editor = npy2bdv.BdvEditor("a.h5")
    assert editor._file_object_h5["t00000/s03/1/cells"].compression == "gzip"
    assert editor.nsetups == 6  # of which one was written
    editor.crop_view(((2, None), None, None), channel=-1)
    assert editor._file_object_h5["t00001/s03/0/cells"].shape == (4, 8, 7)
    editor.append_affine(MATRIX, channel=1, time=1)
    editor.finalize()
    assert affines("a.xml", 1, 3)[0][0] == "Appended affine transformation using npy2bdv."
    assert npy2bdv.BdvWriter.__version__ == npy2bdv.BdvEditor.__version__


PROGRAM = """
import sys
import bioio_tk.compat.npy2bdv
sys.modules["npy2bdv"] = bioio_tk.compat.npy2bdv

import npy2bdv
from npy2bdv import BdvWriter
from npy2bdv.npy2bdv import BdvEditor
import npy2bdv.npy2bdv
import numpy as np

writer = BdvWriter("lent.h5")
writer.append_view(np.full((2, 3, 4), 7, "uint16"))
writer.write_xml()
writer.close()
assert npy2bdv.npy2bdv.BdvEditor is npy2bdv.BdvEditor is BdvEditor
print(BdvEditor("lent.h5").read_view().sum())
"""


def run(program, **options):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env=environ,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        **options,
    )


def test_code_that_cannot_be_changed(tmp_path):
    done = run(PROGRAM, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(7 * 24)), done.stderr


KILLED = """
import os, signal
import numpy as np
import bioio_tk.compat.npy2bdv as npy2bdv

writer = npy2bdv.BdvWriter("a.h5")
for t in range(5):
    writer.append_view(np.full((4, 64, 64), t + 1, "uint16"), time=t)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_program_leaves_its_views(tmp_path):
    assert run(KILLED, cwd=tmp_path).returncode == -signal.SIGKILL
    for t in range(5):
        assert (cells("a.h5", t) == t + 1).all()
    registered = ET.parse("a.xml").findall(".//ViewRegistration")
    assert [view.get("timepoint") for view in registered] == ["0", "1", "2", "3", "4"]


def test_another_hand_in_the_xml_before_close():
    """Programs add what they know to the XML once it is written, and close the writer later."""
    writer = npy2bdv.BdvWriter("a.h5")
    writer.append_view(STACK)
    writer.write_xml()
    tree = ET.parse("a.xml")
    ET.SubElement(tree.getroot(), "MyLab").text = "mine"
    tree.write("a.xml")
    writer.close()
    assert ET.parse("a.xml").findtext("MyLab") == "mine"


# -- the numbered examples of its notebook --------------------------------------------------------

BLOB = np.array(
    [
        [
            [59_000 * np.exp(-((y - 20) ** 2 + (x - 30) ** 2) / (200 + 40 * z)) for x in range(64)]
            for y in range(41)
        ]
        for z in range(7)
    ]
)
"""Floats, as the notebook has them; they lose their fractions."""
WHOLE = BLOB.astype(np.uint16)


def finished(writer, **said):
    writer.write_xml_file(**said)
    writer.close()


def example_1(name):
    writer = npy2bdv.BdvWriter(name, nchannels=2, nilluminations=2, nangles=2, subsamp=((1, 1, 1),))
    for attribute, labels in (("channel", ("488", "561")), ("angle", ("0", "90"))):
        writer.set_attribute_labels(attribute, labels)
    stacks = {}
    for t, c, i, a in product(range(2), repeat=4):
        stacks[t, ((i * 2) + c) * 2 + a] = WHOLE // (1 + t + 2 * c + 4 * i + 8 * a)
        writer.append_view(
            stacks[t, ((i * 2) + c) * 2 + a], time=t, channel=c, illumination=i, angle=a
        )
    finished(writer, ntimes=2)
    return stacks


def example_2(name):
    writer = npy2bdv.BdvWriter(name, nchannels=2, subsamp=((1, 1, 1),))
    for c, t in product(range(2), range(4)):
        writer.append_view(BLOB, time=t, channel=c)
    finished(writer, ntimes=4)
    return dict.fromkeys(product(range(4), range(2)), WHOLE)


def example_3(name):
    unshear = np.array(((1.0, 0.0, -10, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)))
    writer = npy2bdv.BdvWriter(name, nchannels=1, subsamp=((1, 1, 1),))
    writer.append_view(BLOB, m_affine=unshear, name_affine="unshear", calibration=(1, 1, 1))
    finished(writer, ntimes=1)
    assert affines(name.replace("h5", "xml"))[0] == ("unshear", unshear.ravel().tolist())
    return {(0, 0): WHOLE}


def example_3_1(name):
    """Tiles by one matrix that is changed; two are missing."""
    matrix = np.eye(3, 4)
    writer = npy2bdv.BdvWriter(name, ntiles=8)
    stacks = {}
    for tile in (0, 3, 4, 5, 6, 7):
        y, x = tile // 4 * 20, tile % 4 * 16
        matrix[:2, 3] = x, y
        part = BLOB[:, y : y + 20, x : x + 16]
        writer.append_view(part, tile=tile, m_affine=matrix, name_affine=f"tile {tile}")
        stacks[0, tile] = part.astype(np.uint16)
    finished(writer, ntimes=1)
    for tile in (0, 3, 4, 5, 6, 7):
        expected = [1, 0, 0, tile % 4 * 16, 0, 1, 0, tile // 4 * 20, 0, 0, 1, 0]
        assert affines(name.replace("h5", "xml"), 0, tile)[0] == (f"tile {tile}", expected)
    return stacks


def example_4(name):
    writer = npy2bdv.BdvWriter(name, nchannels=1, subsamp=((1, 1, 1),))
    writer.append_view(
        BLOB,
        voxel_size_xyz=(1, 1, 5),
        voxel_units="um",
        exposure_time=10,
        exposure_units="ms",
    )
    finished(writer, camera_name="Orca", microscope_name="Superscope", user_name="me")
    root = ET.parse(name.replace("h5", "xml")).getroot()
    assert numbers(root.findtext(".//voxelSize/size")) == [1, 1, 5]
    assert [part.text for part in root.find(".//camera")] == ["Orca", "10", "ms"]
    return {(0, 0): WHOLE}


def example_5_1(name):
    writer = npy2bdv.BdvWriter(
        name, subsamp=((1, 4, 4), (2, 8, 8)), blockdim=((8, 16, 16),), compression="gzip"
    )
    writer.append_view(WHOLE)
    finished(writer)
    return {(0, 0): level(WHOLE, (1, 4, 4))}


def example_5_2(name):
    writer = npy2bdv.BdvWriter(name, nchannels=2, subsamp=((1, 1, 1),))
    for c in range(2):
        writer.append_view(BLOB, channel=c)
    writer.create_pyramids(
        subsamp=((2, 4, 4), (4, 8, 8)), blockdim=((4, 16, 16), (4, 8, 8)), compression="gzip"
    )
    finished(writer)
    for number, factor in enumerate(((1, 1, 1), (2, 4, 4), (4, 8, 8))):
        assert np.array_equal(cells(name, 0, 1, number), level(WHOLE, factor))
    return {(0, 0): WHOLE, (0, 1): WHOLE}


def by_plane(name, **options):
    writer = npy2bdv.BdvWriter(name, nchannels=2, **options)
    for c in range(2):
        writer.append_view(stack=None, virtual_stack_dim=BLOB.shape, time=0, channel=c)
        for z, plane in enumerate(BLOB):
            writer.append_plane(plane=plane, z=z, time=0, channel=c)
    finished(writer, ntimes=1)
    return {(0, 0): WHOLE, (0, 1): WHOLE}


def example_6_1(name):
    return by_plane(name, blockdim=((1, 256, 256),))


def example_6a(name):
    return by_plane(name, blockdim=((1, 16, 16),), subsamp=((1, 1, 1), (1, 4, 4), (1, 8, 8)))


def example_6_2(name):
    writer = npy2bdv.BdvWriter(name, subsamp=((1, 1, 1), (2, 4, 4)), blockdim=((4, 32, 32),))
    writer.append_view(stack=None, virtual_stack_dim=BLOB.shape)
    for z in range(0, 7, 3):
        writer.append_substack(BLOB[z : z + 3], z_start=z)
    finished(writer)
    assert np.array_equal(cells(name, level=1), level(WHOLE, (2, 4, 4)))
    return {(0, 0): WHOLE}


def example_7(name):
    writer = npy2bdv.BdvWriter(name, nchannels=2, subsamp=((1, 1, 1),))
    writer.append_view(BLOB, time=0, channel=0)
    writer.append_view(BLOB, time=1, channel=1)
    finished(writer, ntimes=2)
    return {(0, 0): WHOLE, (1, 1): WHOLE}


def example_8(name):
    writer = npy2bdv.BdvWriter(name, nchannels=2, subsamp=((1, 1, 1),))
    for n in range(2):
        writer.append_view(stack=None, virtual_stack_dim=BLOB.shape, time=n, channel=n)
    for (z, plane), n in product(enumerate(BLOB), range(2)):
        writer.append_plane(plane=plane, plane_index=z, time=n, channel=n)
    finished(writer, ntimes=2)
    return {(0, 0): WHOLE, (1, 1): WHOLE}


EXAMPLES = {name: make for name, make in list(globals().items()) if name.startswith("example_")}


@pytest.fixture(scope="session")
def java_or_none():
    """Java with Bio-Formats, None where there is none: the other readers are asked all the same."""
    if _java_home.missing() is not None:
        return None
    from bioio_tk.backends import _java_vm

    return _java_vm.java()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_its_notebook(name, here, java_or_none):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fractions are lost, and it says so
        stacks = EXAMPLES[name](f"{name}.h5")
    for (time, setup), stack in stacks.items():
        assert np.array_equal(cells(f"{name}.h5", time, setup), stack)
    check_all_readers(here / f"{name}.xml", java_or_none)
    with npy2bdv.BdvEditor(f"{name}.xml", mode="r") as editor:
        for view in editor.views:
            if not view.missing:
                read = editor.read_view(time=view.time, **view.attributes)
                assert np.array_equal(read, stacks[view.time, view.setup])
