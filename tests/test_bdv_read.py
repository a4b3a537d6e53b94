"""BigDataViewer datasets of any program through BioReader; pixels from h5py and NumPy."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import bdv_files as made
import h5py
import numpy as np
import pytest
import tifffile
import zarr

from bioio_tk import BioReader
from bioio_tk.api import describe
from bioio_tk.backends import _bdv_cells, _bdv_hdf5, registry
from bioio_tk.backends._bdv_scaleoffset import ScaleOffsetCodec
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends.bdv_read import BdvSource
from bioio_tk.core.spec import Address
from bioio_tk.core.views import ViewId
from bioio_tk.errors import (
    BackendMissingError,
    ClosedError,
    DamagedFileError,
    FormatError,
    UnsupportedError,
)
from conftest import open_files
from tests.command import run

TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
TYPES += ["float32", "float64"]


def sizes(br):
    """Return the size of a pixel along X, Y, Z."""
    return (br.physical_size_x, br.physical_size_y, br.physical_size_z)


def zyx(pixels):
    """Return Y, X, Z as Z, Y, X."""
    return pixels.reshape(*pixels.shape, *(1,) * (3 - pixels.ndim)).transpose(2, 0, 1)


def one(folder, stack, *, name="x", **options):
    """Write one stack with its XML; return the XML."""
    made.write_h5(folder / f"{name}.h5", {(0, 0): stack}, **options)
    xml = folder / f"{name}.xml"
    setup = made.setup_xml(0, stack.shape, {"channel": 0}, name="only")
    loader = made.hdf5_loader(f"{name}.h5")
    xml.write_text(made.spim_xml(setup, loader=loader, affines={(0, 0): [made.IDENTITY]}))
    return xml


# ------------------------------------------------------------------ pixels


@pytest.mark.parametrize("suffix", ["xml", "h5"])
def test_views_are_series_channels_and_times(tmp_path, suffix):
    stacks = made.write_simple(tmp_path)
    for series, tile in enumerate((0, 1)):
        with BioReader(tmp_path / f"x.{suffix}", series=series) as br:
            assert br.backend == "bdv"
            assert br.shape == (20, 24, 6, 2, 2)
            assert br.dtype == np.uint16
            assert br.n_series == 2
            for t in range(2):
                for c in range(2):
                    stack = stacks[t, 2 * tile + c]
                    np.testing.assert_array_equal(zyx(br[..., c, t]), stack)
            whole = br[:]
            np.testing.assert_array_equal(whole[:, :, 3, 1, 1], stacks[1, 2 * tile + 1][3])
            assert br.notes == ()


STORED = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "gzip and shuffle": {"compression": "gzip", "shuffle": True},
    "shuffle": {"shuffle": True},
    "lzf": {"compression": "lzf"},
    "fletcher32": {"fletcher32": True},
    "fiji": {"compression": "gzip", "compression_opts": 6, "scaleoffset": 0},
    "scale-offset": {"scaleoffset": 0},
    "unlimited": {"maxshape": (None, None, None)},
    "contiguous": {"block": None},
    "fill value": {"fillvalue": 7, "compression": "gzip"},
}


@pytest.mark.parametrize("large", [False, True], ids=["small blocks", "large blocks"])
@pytest.mark.parametrize("stored", STORED)
def test_every_way_of_storing(tmp_path, stored, large):
    shape, block = ((20, 131, 150), (16, 64, 64)) if large else ((6, 20, 24), (4, 8, 8))
    stack = made.coded(shape, 1)
    xml = one(tmp_path, stack, **{"block": block, **STORED[stored]})
    with BioReader(xml, max_workers=3) as br:
        np.testing.assert_array_equal(zyx(br[:]), stack)
        np.testing.assert_array_equal(zyx(br[5:17, 3:20, 2:5]), stack[2:5, 5:17, 3:20])
        np.testing.assert_array_equal(zyx(br[1::3, ::-2, [5, 0]]), stack[[5, 0], 1::3, ::-2])


@pytest.mark.parametrize("codec", ["Zstd", "Blosc", "LZ4"])
def test_filters_of_a_package_that_is_there(tmp_path, codec):
    plugin = pytest.importorskip("hdf5plugin")
    stack = made.coded((20, 70, 80), 1)
    xml = one(tmp_path, stack, block=(8, 32, 32), **getattr(plugin, codec)())
    with BioReader(xml) as br:
        assert br.details["compression"] == codec.lower()
        np.testing.assert_array_equal(zyx(br[:]), stack)


def test_filter_of_a_package_that_is_not_there(tmp_path, monkeypatch):
    xml = one(tmp_path, made.coded((6, 20, 24), 1), compression="lzf")
    without = SimpleNamespace(
        h5z=SimpleNamespace(filter_avail=lambda number: number < 256), version=h5py.version
    )
    monkeypatch.setattr(_bdv_cells, "library", lambda: without)
    with (
        BioReader(xml) as br,
        pytest.raises(BackendMissingError, match=r"with lzf.*pip install hdf5plugin"),
    ):
        br[:]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_pixel_types(tmp_path, dtype, named):
    stack = made.coded((5, 9, 11), 2, dtype)
    xml = one(tmp_path, stack, data_type=dtype if named else None, store=dtype)
    with BioReader(xml) as br:
        if dtype == "int16" and not named:
            assert br.dtype == np.uint16
            stack = stack.view(np.uint16)
        assert br.dtype == stack.dtype
        np.testing.assert_array_equal(zyx(br[:]), stack)


@pytest.mark.parametrize("value", [np.bytes_(b"uint16"), "uint16", np.array(["uint16"], "S6")])
def test_type_in_any_kind_of_text(tmp_path, value):
    stack = made.coded((5, 9, 11), 3)
    for store in ("uint16", "int16"):
        xml = one(tmp_path, stack, data_type=value, store=store)
        with BioReader(xml) as br:
            np.testing.assert_array_equal(zyx(br[:]), stack)
            assert br.dtype == np.uint16


def test_type_that_is_none_is_as_if_nothing_were_said(tmp_path):
    stack = made.coded((5, 9, 11), 3)
    with BioReader(one(tmp_path, stack, data_type="ushort", store="int16")) as br:
        assert any("'ushort', which is no such type" in note for note in br.notes)
        np.testing.assert_array_equal(zyx(br[:]), stack)


def test_type_that_is_not_what_is_stored(tmp_path):
    stack = made.coded((5, 9, 11), 3, np.float32)
    with BioReader(one(tmp_path, stack, data_type="uint16")) as br:
        assert any("stored as float32" in note for note in br.notes)
        np.testing.assert_array_equal(zyx(br[:]), stack)


def test_type_that_bdv_does_not_have(tmp_path):
    with pytest.raises(UnsupportedError, match="bool, which is none of"):
        BioReader(one(tmp_path, np.ones((3, 4, 5), bool), data_type="uint8"))


def test_big_endian_pixels(tmp_path):
    stack = made.coded((6, 20, 24), 4, np.uint32)
    xml = one(tmp_path, stack.astype(">u4"), data_type="uint32")
    with BioReader(xml) as br:
        assert br.dtype.isnative
        np.testing.assert_array_equal(zyx(br[:]), stack)


def test_blocks_never_written_hold_the_fill_value(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        made.tables(file, 0, [(1, 1, 1)], (4, 64, 64))
        cells = file.create_dataset(
            "t00000/s00/0/cells", (9, 100, 100), "i2", chunks=(4, 64, 64), fillvalue=7, shuffle=True
        )
        cells[4:8, 64:, :64] = 5
        want = cells[()]
    with BioReader(tmp_path / "x.h5") as br:
        np.testing.assert_array_equal(zyx(br[:]), want)


# what scale-offset does with each of these differs: constant, one code for the fill value, full
FIJI = {
    "constant": np.full((5, 9, 11), 300),
    "zeros": np.zeros((5, 9, 11)),
    "zeros and few others": np.where(np.arange(495).reshape(5, 9, 11) % 7, 0, 900),
    "two values": np.arange(495).reshape(5, 9, 11) % 2 + 65000,
    "8 bits": np.arange(495).reshape(5, 9, 11) % 255 + 3,
    "9 bits": np.arange(495).reshape(5, 9, 11) + 3,
    "all bits": np.arange(495).reshape(5, 9, 11) * 132,
}


@pytest.mark.parametrize("fill", [None, 0, 300])
@pytest.mark.parametrize("pixels", FIJI)
def test_scale_offset_is_what_the_library_reads(tmp_path, pixels, fill):
    for dtype in ("int16", "uint16", "uint8", "int32", "uint32", "int8"):
        stack = FIJI[pixels].astype(np.int64).astype(dtype)
        path = tmp_path / f"{dtype}.h5"
        options = {} if fill is None else {"fillvalue": np.array(fill).astype(dtype)}
        with h5py.File(path, "w") as file:
            made.tables(file, 0, [(1, 1, 1)], (4, 8, 8), dtype)
            cells = file.create_dataset(
                "t00000/s00/0/cells", data=stack, chunks=(4, 8, 8), scaleoffset=0, **options
            )
            want = cells[()]
        with BioReader(path) as br:
            np.testing.assert_array_equal(zyx(br[:]), want)
            np.testing.assert_array_equal(want, stack)


@pytest.mark.parametrize("bits", range(1, 33))
def test_scale_offset_of_any_number_of_bits(tmp_path, bits):
    rng = np.random.default_rng(bits)
    stack = rng.integers(0, max(1, (1 << bits) - 2), (4, 8, 8), np.uint32, endpoint=True)
    stack.flat[0], stack.flat[1] = 0, (1 << bits) - 2
    with h5py.File(tmp_path / "x.h5", "w") as file:
        made.tables(file, 0, [(1, 1, 1)], (4, 8, 8), "uint32")
        file.create_dataset("t00000/s00/0/cells", data=stack, chunks=(4, 8, 8), scaleoffset=0)
    with BioReader(tmp_path / "x.h5") as br:
        np.testing.assert_array_equal(zyx(br[:]), stack)


@pytest.mark.parametrize(("bits", "codes"), [(0, [0] * 8), (3, [0, 7, 1, 2, 3, 4, 5, 6])])
def test_scale_offset_without_a_fill_value(bits, codes):
    """As other programs write it, which h5py cannot; no code stands for anything else then."""
    text = "".join(f"{code:0{bits}b}" for code in codes) if bits else ""
    packed = int(text or "0", 2).to_bytes(bits, "big")
    data = struct.pack("<IBQ", bits, 8, 1000).ljust(21, b"\0") + packed
    codec = ScaleOffsetCodec((2, 2, 2), np.dtype("<u2"), None, deflate=False)
    assert codec.decode(data).ravel().tolist() == [1000 + code for code in codes]
    with pytest.raises(ValueError, match="do not hold 8 numbers"):
        codec.decode(data[:20])


def test_fijis_blocks_are_decoded_here(tmp_path, monkeypatch):
    """The library is not asked for them, so that several threads get on."""
    stack = made.coded((6, 20, 24), 1) >> 4
    xml = one(tmp_path, stack, **STORED["fiji"])
    monkeypatch.setattr(_bdv_cells.Cells, "_by_library", None)
    with BioReader(xml) as br:
        np.testing.assert_array_equal(zyx(br[:]), stack)


def test_a_broken_block_is_an_error_that_says_where(tmp_path):
    stack = made.coded((6, 20, 24), 1)
    xml = one(tmp_path, stack, compression="gzip")
    with h5py.File(tmp_path / "x.h5") as file:
        info = file["t00000/s00/0/cells"].id.get_chunk_info_by_coord((4, 8, 16))
    with (tmp_path / "x.h5").open("r+b") as file:
        file.seek(info.byte_offset + 10)
        file.write(b"\xff" * 20)
    with BioReader(xml) as br:
        np.testing.assert_array_equal(zyx(br[:, :, :4]), stack[:4])
        with pytest.raises(DamagedFileError, match=r"\(4, 8, 16\).*time point 0, setup 0"):
            br[:]


# ------------------------------------------------------------------ only what is needed


@pytest.fixture
def reads(monkeypatch):
    """The bytes that are read of blocks, in pieces; what the library reads is not counted."""
    found = []

    class Counting(RandomFile):
        def read(self, offset, count):
            found.append(count)
            return super().read(offset, count)

        def read_into(self, offset, buffer):
            found.append(buffer.nbytes)
            return super().read_into(offset, buffer)

    monkeypatch.setattr(_bdv_hdf5, "RandomFile", Counting)
    return found


def test_a_box_reads_only_its_blocks(tmp_path, reads):
    stack = made.coded((64, 192, 192), 1)
    xml = one(tmp_path, stack, block=(16, 64, 64), compression="gzip")
    with BioReader(xml) as br:
        np.testing.assert_array_equal(zyx(br[70:120, 64:130, 17:31]), stack[17:31, 70:120, 64:130])
    assert len(reads) == 2


def test_a_small_box_reads_only_its_small_blocks(tmp_path, reads):
    stack = made.coded((16, 128, 128), 1)
    xml = one(tmp_path, stack, block=(4, 16, 16), compression="gzip")
    with BioReader(xml) as br:
        np.testing.assert_array_equal(zyx(br[16:32, 32:64, 4:8]), stack[4:8, 16:32, 32:64])
    assert len(reads) == 2


def test_planes_of_uncompressed_blocks_are_read_alone(tmp_path, reads):
    stack = made.coded((16, 256, 256), 1)
    xml = one(tmp_path, stack, block=(8, 128, 128))
    with BioReader(xml) as br:
        np.testing.assert_array_equal(zyx(br[:, :, 9:11]), stack[9:11])
    assert reads == [2 * 128 * 128 * 2] * 4


def test_planes_of_small_blocks_are_kept_for_the_next(tmp_path, reads):
    stack = made.coded((8, 64, 64), 1)
    xml = one(tmp_path, stack, block=(4, 16, 16), compression="gzip")
    with BioReader(xml) as br:
        for z in range(4):
            np.testing.assert_array_equal(zyx(br[:, :, z])[0], stack[z])
    assert len(reads) == 16


def test_many_blocks_are_listed_only_when_many_are_wanted(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(_bdv_cells, "_FEW", 10)
    monkeypatch.setattr(_bdv_cells, "_SHARE", 4)
    stack = made.coded((8, 64, 64), 1)
    xml = one(tmp_path, stack, block=(4, 16, 16), compression="gzip")
    with BioReader(xml) as br:
        np.testing.assert_array_equal(zyx(br[:16, :16, :4]), stack[:4, :16, :16])
        assert not reads  # the library has looked for it
        np.testing.assert_array_equal(zyx(br[:]), stack)
        assert len(reads) == 32


# ------------------------------------------------------------------ levels


@pytest.mark.parametrize("rounding", ["ceil", "floor"])
def test_levels(tmp_path, rounding):
    stack = made.coded((7, 21, 27), 1)
    factors = [(1, 1, 1), (2, 2, 1), (4, 4, 2)]
    made.write_h5(tmp_path / "x.h5", {(0, 0): stack}, factors=factors)
    wanted = [made.reduced(stack, f[::-1]) for f in factors]
    if rounding == "floor":
        with h5py.File(tmp_path / "x.h5", "r+") as file:
            for level, (x, y, z) in enumerate(factors):
                wanted[level] = wanted[level][: 7 // z, : 21 // y, : 27 // x]
                file[f"t00000/s00/{level}"].pop("cells")
                file[f"t00000/s00/{level}/cells"] = wanted[level].view("i2")
    xml = tmp_path / "x.xml"
    setup = made.setup_xml(0, stack.shape, {"channel": 0})
    xml.write_text(made.spim_xml(setup, loader=made.hdf5_loader("x.h5")))
    with BioReader(xml) as br:
        assert br.levels == 3
        assert br.level_shapes == [(*w.shape[1:], w.shape[0], 1, 1) for w in wanted]
    for level, want in enumerate(wanted):
        with BioReader(xml, level=level) as br:
            np.testing.assert_array_equal(zyx(br[:]), want)
            assert br.details["factor"] == factors[level]
            x, y, z = factors[level]
            assert sizes(br) == ((0.5 * x, "µm"), (0.5 * y, "µm"), (2.0 * z, "µm"))


@pytest.mark.parametrize("rounding", ["ceil", "floor"])
def test_first_level_that_is_not_the_full_resolution(tmp_path, rounding):
    """As npy2bdv writes with subsamp=((1,4,4),(2,8,8)): what is stored, with its pixel size."""
    stack = made.coded((6, 20, 24), 1)
    made.write_h5(tmp_path / "x.h5", {(0, 0): stack}, factors=[(4, 4, 1), (8, 8, 2)])
    with h5py.File(tmp_path / "x.h5") as file:
        want = file["t00000/s00/0/cells"][()].view("u2")
    size = (6, 18, 22) if rounding == "ceil" else (6, 23, 27)
    setup = made.setup_xml(0, size, {"channel": 0})
    registered = {(0, 0): [made.IDENTITY]}
    loader = made.hdf5_loader("x.h5")
    (tmp_path / "x.xml").write_text(made.spim_xml(setup, loader=loader, affines=registered))
    with BioReader(tmp_path / "x.xml") as br:
        assert br.notes == ()
        assert br.shape == (5, 6, 6, 1, 1)
        np.testing.assert_array_equal(zyx(br[:]), want)
        assert sizes(br) == ((2.0, "µm"), (2.0, "µm"), (2.0, "µm"))
        assert br.level_shapes[1] == (3, 3, 3, 1, 1)
        assert br.views[0].shape == (*size[1:], 6, 1, 1)


def test_level_that_is_listed_and_not_there(tmp_path):
    stack = made.coded((6, 20, 24), 1)
    xml = one(tmp_path, stack, factors=[(1, 1, 1), (2, 2, 1)])
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        del file["t00000/s00/1"]
    with BioReader(xml) as br:
        assert br.levels == 1
        assert "level 1" in br.notes[0]


# ------------------------------------------------------------------ what the XML says


def test_names_sizes_and_affines(tmp_path):
    made.write_simple(tmp_path)
    with BioReader(tmp_path / "x.xml") as br:
        assert br.series_names == ["tile 0", "tile upper left"]
        assert br.channel_names == ["GFP", "RFP"]
        assert sizes(br) == ((0.5, "µm"), (0.5, "µm"), (2.0, "µm"))
        assert br.used_files == (tmp_path / "x.xml", tmp_path / "x.h5")
        assert br.original_metadata["setups"][1]["attributes"] == {"channel": 1, "tile": 0}
        assert br.original_metadata["attributes"]["channel"]["1"] == {"name": "RFP"}
        assert br.metadata.images[0].pixels.channels[1].name == "RFP"


def test_views_and_affines(tmp_path):
    made.write_simple(tmp_path)
    text = (tmp_path / "x.xml").read_text()
    first = '<ViewRegistration timepoint="1" setup="2"><ViewTransform type="affine"><Name>n</Name>'
    first += f"<affine>{made.IDENTITY}</affine></ViewTransform>"
    assert first in text
    shift, scale = "1 0 0 10 0 1 0 0 0 0 1 0.125", "2 0 0 0 0 2 0 0 0 0 4 0"
    both = first.replace(made.IDENTITY, shift)
    both += f'<ViewTransform type="affine"><affine>{scale}</affine></ViewTransform>'
    (tmp_path / "x.xml").write_text(text.replace(first, both))
    with BioReader(tmp_path / "x.xml") as br:
        assert len(br.views) == 8
        order = [(v.series, v.t, v.c) for v in br.views]
        assert order == sorted(order)
        (view,) = [v for v in br.views if (v.time, v.setup) == (1, 2)]
        assert (view.series, view.c, view.t) == (1, 0, 1)
        assert view.labels == {"channel": "GFP", "tile": "upper left"}
        assert view.attributes == {"channel": 0, "tile": 1}
        assert view.name == "setup 2"
        assert view.shape == (20, 24, 6, 1, 1)
        assert not view.missing
        assert [t.name for t in view.transforms] == ["n", ""]
        want = [[2, 0, 0, 10], [0, 2, 0, 0], [0, 0, 4, 0.125]]
        np.testing.assert_array_equal(br.affines[ViewId(1, 2)], want)
        np.testing.assert_array_equal(br.affines[1, 0], np.eye(4)[:3])


def test_other_formats_have_no_views(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), "u1"))
    with BioReader(tmp_path / "a.tif") as br:
        assert br.views == ()
        assert br.affines == {}


def test_setups_are_known_by_their_attributes_not_by_their_order(tmp_path):
    """Ids with gaps, in any order; the brief of npy2bdv's fault: another view, silently."""
    stacks = {(0, s): made.coded((4, 9, 11), s) for s in (7, 3, 100)}
    made.write_h5(tmp_path / "x.h5", stacks)
    setups = "".join(
        made.setup_xml(s, (4, 9, 11), {"angle": 5, "channel": c})
        for s, c in ((100, 4), (3, 9), (7, 2))
    )
    (tmp_path / "x.xml").write_text(made.spim_xml(setups, loader=made.hdf5_loader("x.h5")))
    with BioReader(tmp_path / "x.xml") as br:
        assert br.shape == (9, 11, 4, 3, 1)
        for c, setup in enumerate((7, 100, 3)):
            np.testing.assert_array_equal(zyx(br[..., c, 0]), stacks[0, setup])


def test_series_are_sorted_by_illumination_tile_and_angle(tmp_path):
    places = [(i, t, a) for i in range(2) for t in range(2) for a in range(2)]
    kinds = ("illumination", "tile", "angle")
    order = [5, 2, 7, 0, 3, 6, 1, 4]  # of the setups in the file
    stacks = {(0, s): made.coded((2, 5, 6), s) for s in range(8)}
    made.write_h5(tmp_path / "x.h5", stacks)
    setups = "".join(
        made.setup_xml(s, (2, 5, 6), dict(zip(kinds, places[n], strict=True)))
        for s, n in enumerate(order)
    )
    labels = {"angle": {0: "left", 1: "right"}, "tile": {0: "0", 1: "1"}}
    xml = made.spim_xml(setups, loader=made.hdf5_loader("x.h5"), labels=labels)
    (tmp_path / "x.xml").write_text(xml)
    with BioReader(tmp_path / "x.xml") as br:
        assert br.n_series == 8
        assert br.series_names[1] == "illumination 0, tile 0, angle right"
        assert [v.setup for v in br.views] == [order.index(n) for n in range(8)]
    for n in range(8):
        with BioReader(tmp_path / "x.xml", series=n) as br:
            np.testing.assert_array_equal(zyx(br[:]), stacks[0, order.index(n)])


def test_other_attributes_are_series_too_but_not_how_they_are_shown(tmp_path):
    stacks = {(0, s): made.coded((2, 5, 6), s) for s in range(4)}
    made.write_h5(tmp_path / "x.h5", stacks)
    setups = "".join(
        made.setup_xml(s, (2, 5, 6), {"channel": s % 2, "well": s // 2, "displaysettings": s})
        for s in range(4)
    )
    (tmp_path / "x.xml").write_text(made.spim_xml(setups, loader=made.hdf5_loader("x.h5")))
    with BioReader(tmp_path / "x.xml") as br:
        assert br.series_names == ["well 0", "well 1"]
        assert br.shape[3] == 2


def test_setups_that_differ_in_size_or_type_are_not_one_series(tmp_path):
    stacks = {(0, 0): made.coded((4, 9, 11), 0), (0, 1): made.coded((4, 9, 12), 1)}
    made.write_h5(tmp_path / "x.h5", stacks)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        made.tables(file, 2, [(1, 1, 1)], (4, 8, 8), "uint8")
        stacks[0, 2] = made.coded((4, 9, 11), 2, "u1")
        file["t00000/s02/0/cells"] = stacks[0, 2]
    setups = "".join(made.setup_xml(s, v.shape, {"channel": s}) for (_, s), v in stacks.items())
    (tmp_path / "x.xml").write_text(made.spim_xml(setups, loader=made.hdf5_loader("x.h5")))
    for series in range(3):
        with BioReader(tmp_path / "x.xml", series=series) as br:
            assert br.n_series == 3
            np.testing.assert_array_equal(zyx(br[:]), stacks[0, series])


TIMES = {
    "range": ('<Timepoints type="range"><first>3</first><last>5</last></Timepoints>', [3, 4, 5]),
    "pattern": (
        '<Timepoints type="pattern"><integerpattern>0-4:2,11</integerpattern></Timepoints>',
        [0, 2, 4, 11],
    ),
    "list": (
        (
            '<Timepoints type="list"><Timepoint><id>2</id></Timepoint><Timepoint><id>9</id>'
            "</Timepoint></Timepoints>"
        ),
        [2, 9],
    ),
}


@pytest.mark.parametrize("kind", TIMES)
def test_times_of_all_kinds(tmp_path, kind):
    text, times = TIMES[kind]
    stacks = {(t, 0): made.coded((3, 6, 7), t) for t in times}
    made.write_h5(tmp_path / "x.h5", stacks)
    setup = made.setup_xml(0, (3, 6, 7), {})
    xml = made.spim_xml(setup, loader=made.hdf5_loader("x.h5"), times=text)
    (tmp_path / "x.xml").write_text(xml)
    with BioReader(tmp_path / "x.xml") as br:
        assert br.shape[4] == len(times)
        for n, t in enumerate(times):
            np.testing.assert_array_equal(zyx(br[..., 0, n]), stacks[t, 0])
        assert [v.time for v in br.views] == times


UNITS = {
    "um": ((0.5, "µm"), ""),
    "micrometer": ((0.5, "µm"), ""),
    "mm": ((0.5, "mm"), ""),
    "px": ((0.5, "pixel"), ""),
    "": ((None, "µm"), "not said"),
    "furlong": ((None, "µm"), "'furlong'"),
}


@pytest.mark.parametrize("unit", UNITS)
def test_units_of_the_voxel_size(tmp_path, unit):
    size, note = UNITS[unit]
    xml = one(tmp_path, made.coded((3, 6, 7), 1))
    xml.write_text(xml.read_text().replace("<unit>um</unit>", f"<unit>{unit}</unit>"))
    with BioReader(xml) as br:
        assert sizes(br)[0] == size
        assert bool(br.notes) == bool(note)
        assert note in "".join(br.notes)


# ------------------------------------------------------------------ what is missing


def test_missing_views_read_as_0(tmp_path):
    stacks = {key: made.coded((4, 9, 11), sum(key)) for key in [(0, 0), (0, 1), (1, 0), (2, 1)]}
    made.write_h5(tmp_path / "x.h5", stacks)
    setups = "".join(made.setup_xml(s, (4, 9, 11), {"channel": s}) for s in range(2))
    times = '<Timepoints type="range"><first>0</first><last>2</last></Timepoints>'
    xml = made.spim_xml(
        setups,
        loader=made.hdf5_loader("x.h5"),
        times=times,
        missing=[(1, 1)],
        affines={key: [made.IDENTITY] for key in [*stacks, (2, 0)]},
    )
    (tmp_path / "x.xml").write_text(xml)
    with BioReader(tmp_path / "x.xml") as br:
        whole = br[:]
        for t in range(3):
            for c in range(2):
                want = stacks.get((t, c), np.zeros((4, 9, 11), "u2"))
                np.testing.assert_array_equal(zyx(whole[..., c, t]), want)
                np.testing.assert_array_equal(zyx(br[2:5, :, :, c, t]), want[:, 2:5])
        assert {(v.time, v.setup) for v in br.views if v.missing} == {(1, 1), (2, 0)}
        assert set(br.affines) == set(stacks)
        (note,) = br.notes
        assert note.startswith("1 view is not there, though the XML does not say so")


def test_setup_without_any_pixels(tmp_path):
    stack = made.coded((4, 9, 11), 1, "u1")
    made.write_h5(tmp_path / "x.h5", {(0, 0): stack}, data_type="uint8")
    setups = "".join(made.setup_xml(s, (4, 9, 11), {"channel": s}) for s in range(2))
    xml = made.spim_xml(setups, loader=made.hdf5_loader("x.h5"), missing=[(0, 1)])
    (tmp_path / "x.xml").write_text(xml)
    with BioReader(tmp_path / "x.xml") as br:
        assert br.shape == (9, 11, 4, 2, 1)
        np.testing.assert_array_equal(zyx(br[..., 0, 0]), stack)
        assert not br[..., 1, 0].any()


def test_view_that_is_said_to_be_missing_but_stored(tmp_path):
    stack = made.coded((4, 9, 11), 1)
    made.write_h5(tmp_path / "x.h5", {(0, 0): stack, (0, 1): stack})
    setups = "".join(made.setup_xml(s, (4, 9, 11), {"channel": s}) for s in range(2))
    xml = made.spim_xml(setups, loader=made.hdf5_loader("x.h5"), missing=[(0, 1)])
    (tmp_path / "x.xml").write_text(xml)
    with BioReader(tmp_path / "x.xml") as br:
        assert not br[..., 1, 0].any()
        assert any("said to be missing, but stored" in note for note in br.notes)


def test_views_that_the_xml_does_not_name(tmp_path):
    xml = one(tmp_path, made.coded((4, 9, 11), 1))
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["t00001/s00/0/cells"] = np.zeros((4, 9, 11), "i2")
    with BioReader(xml) as br:
        assert br.shape[4] == 1
        assert br.notes[0].startswith("1 view is stored, but not in the XML, and left out: time")


def test_stack_that_is_smaller_than_the_others_of_its_setup(tmp_path):
    made.write_h5(tmp_path / "x.h5", {(0, 0): made.coded((4, 9, 11), 1)})
    small = made.coded((3, 9, 8), 2)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.create_dataset("t00001/s00/0/cells", data=small.view("i2"), chunks=(2, 4, 4))
    with BioReader(tmp_path / "x.h5") as br:
        want = np.zeros((4, 9, 11), "u2")
        want[:3, :, :8] = small
        np.testing.assert_array_equal(zyx(br[..., 0, 1]), want)
        assert not br[:, 9:, :, 0, 1].any()


def test_what_is_not_there_is_0_whatever_was_in_memory(tmp_path):
    """Of stacks that are smaller than the others of their setup, and of missing views."""
    stack = made.coded((4, 9, 11), 1)
    made.write_h5(tmp_path / "x.h5", {(0, 0): stack, (2, 1): stack})
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["t00001/s00/0/cells"] = stack[:3, :8, :7].view("i2")
    write_n5(tmp_path / "x.n5", stack, "setup0/timepoint0/s0", N5["gzip"])
    write_n5(tmp_path / "x.n5", stack[:3, :8, :7], "setup0/timepoint1/s0", N5["gzip"])
    small = np.zeros_like(stack)
    small[:3, :8, :7] = stack[:3, :8, :7]
    for path in (tmp_path / "x.h5", n5_xml(tmp_path, (4, 9, 11), last=2)):
        with closing(BdvSource(path)) as source:
            for t, want in enumerate((stack, small, np.zeros_like(stack))):
                out = np.full((9, 11, 4, 1, 1), 7, np.uint16)
                grid = source.images[0].levels[0].grid
                for key in [key for key in grid.keys() if key[4] == t]:  # noqa: SIM118
                    where = grid.region(key).slices()
                    part = out[(*where[:4], slice(None))]
                    whole = tuple(slice(0, n) for n in part.shape)
                    assert source.read_part(Address(0, 0, key), whole, part)
                np.testing.assert_array_equal(zyx(out[..., 0, 0]), want)


def test_stack_that_is_larger_than_the_others_of_its_setup(tmp_path):
    made.write_h5(tmp_path / "x.h5", {(0, 0): made.coded((4, 9, 11), 1)})
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["t00001/s00/0/cells"] = np.zeros((4, 9, 12), "i2")
    with (
        BioReader(tmp_path / "x.h5") as br,
        pytest.raises(DamagedFileError, match=r"\(4, 9, 12\).*its setup is \(4, 9, 11\)"),
    ):
        br[..., 0, 1]


def test_size_that_the_xml_says_otherwise(tmp_path):
    xml = one(tmp_path, made.coded((4, 9, 11), 1))
    xml.write_text(xml.read_text().replace("<size>11 9 4</size>", "<size>11 9 5</size>"))
    with BioReader(xml) as br:
        assert br.shape == (9, 11, 4, 1, 1)
        assert "said to be (5, 9, 11)" in br.notes[0]


# ------------------------------------------------------------------ files


def test_missing_h5_names_where_it_was_looked_for(tmp_path):
    xml = one(tmp_path, made.coded((4, 9, 11), 1))
    (tmp_path / "x.h5").unlink()
    with pytest.raises(FileNotFoundError) as found:
        BioReader(xml)
    assert repr(str(tmp_path / "x.h5")) in str(found.value)
    assert repr(str(xml)) in str(found.value)


def test_pair_that_was_renamed(tmp_path):
    stack = made.coded((4, 9, 11), 1)
    one(tmp_path, stack)
    (tmp_path / "x.xml").rename(tmp_path / "y.xml")
    (tmp_path / "x.h5").rename(tmp_path / "y.h5")
    with BioReader(tmp_path / "y.xml") as br:
        np.testing.assert_array_equal(zyx(br[:]), stack)
        assert "'y.h5' is read" in br.notes[0]
    with BioReader(tmp_path / "y.h5") as br:
        assert sizes(br)[0] == (0.5, "µm")


def test_pair_that_is_not_in_its_place_yet(tmp_path):
    """As our writers leave it until it is whole; beside the dataset that it will replace."""
    old, new = made.coded((4, 9, 11), 1), made.coded((4, 9, 11), 2)
    one(tmp_path, new)
    for suffix in ("xml", "h5"):
        (tmp_path / f"x.{suffix}").rename(tmp_path / f"x.{suffix}.partial")
    one(tmp_path, old)
    with BioReader(tmp_path / "x.xml.partial") as br:
        np.testing.assert_array_equal(zyx(br[:]), new)
    with BioReader(tmp_path / "x.xml") as br:
        np.testing.assert_array_equal(zyx(br[:]), old)


def test_xml_of_another_h5_is_not_for_this_one(tmp_path):
    first, second = made.coded((4, 9, 11), 1), made.coded((4, 9, 11), 2)
    one(tmp_path, first)
    shutil.copy(tmp_path / "x.xml", tmp_path / "z.xml")
    made.write_h5(tmp_path / "z.h5", {(0, 0): second})
    with BioReader(tmp_path / "z.h5") as br:
        np.testing.assert_array_equal(zyx(br[:]), second)
        assert sizes(br)[0][0] is None
        assert "no XML describes" in br.notes[0]
    with BioReader(tmp_path / "z.xml") as br:
        np.testing.assert_array_equal(zyx(br[:]), first)


def test_h5_without_xml(tmp_path):
    stacks = {(t, s): made.coded((4, 9, 11), 5 * t + s) for t in (0, 4) for s in (0, 2)}
    made.write_h5(tmp_path / "x.h5", stacks)
    for series, setup in enumerate((0, 2)):
        with BioReader(tmp_path / "x.h5", series=series) as br:
            assert br.n_series == 2
            assert br.shape == (9, 11, 4, 1, 2)
            np.testing.assert_array_equal(zyx(br[..., 0, 1]), stacks[4, setup])
            assert "no XML describes this file" in br.notes[0]
            assert [v.setup for v in br.views] == [0, 0, 2, 2]


def partitioned(folder):
    """Write 2 files of a time point each, and one with links; return the stacks."""
    stacks = {(t, s): made.coded((6, 20, 24), 5 * t + s) for t in range(2) for s in range(2)}
    parts = ""
    with h5py.File(folder / "p.h5", "w") as main:
        for s in range(2):
            made.tables(main, s, [(1, 1, 1)], (4, 8, 8))
        for t in range(2):
            name = f"p-{t:02d}-00.h5"
            own = {key: stack for key, stack in stacks.items() if key[0] == t}
            made.write_h5(folder / name, own, compression="gzip")
            parts += (
                f'<partition><path type="relative">{name}</path><timepoints>{t}</timepoints>'
                "<setups>0 1</setups></partition>"
            )
            for s in range(2):
                where = f"t{t:05d}/s{s:02d}/0/cells"
                main[where] = h5py.ExternalLink(name, where)
    setups = "".join(made.setup_xml(s, (6, 20, 24), {"channel": s}) for s in range(2))
    times = '<Timepoints type="range"><first>0</first><last>1</last></Timepoints>'
    loader = made.hdf5_loader("p.h5", parts)
    (folder / "p.xml").write_text(made.spim_xml(setups, loader=loader, times=times))
    return stacks


def test_partitions(tmp_path, reads):
    stacks = partitioned(tmp_path)
    with BioReader(tmp_path / "p.xml") as br:
        whole = br[:]
        for (t, s), stack in stacks.items():
            np.testing.assert_array_equal(zyx(whole[..., s, t]), stack)
        names = {path.name for path in br.used_files}
        assert names == {"p.xml", "p.h5", "p-00-00.h5", "p-01-00.h5"}
    assert reads, "blocks of partitions are decoded here, too"


def test_one_partition_alone(tmp_path):
    stacks = partitioned(tmp_path)
    with BioReader(tmp_path / "p-01-00.h5", series=1) as br:
        assert br.shape == (20, 24, 6, 1, 1)
        np.testing.assert_array_equal(zyx(br[:]), stacks[1, 1])
        assert "part of 'p.xml'" in br.notes[0]


def test_partition_that_is_gone(tmp_path):
    stacks = partitioned(tmp_path)
    (tmp_path / "p-00-00.h5").unlink()
    with BioReader(tmp_path / "p.xml") as br:
        assert br.shape == (20, 24, 6, 2, 2)
        np.testing.assert_array_equal(zyx(br[..., 0, 1]), stacks[1, 0])
        with pytest.raises(FileNotFoundError, match=r"p-00-00\.h5.*put it beside"):
            br[..., 0, 0]
        assert any("p-00-00.h5" in note for note in br.notes)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.999])
def test_truncated_file(tmp_path, keep):
    xml = one(tmp_path, made.coded((6, 20, 24), 1))
    size = (tmp_path / "x.h5").stat().st_size
    os.truncate(tmp_path / "x.h5", int(size * keep))
    os.utime(tmp_path / "x.h5", (1, 1))  # long ago: nobody is writing it
    for path in (xml, tmp_path / "x.h5"):
        with pytest.raises(DamagedFileError, match=r"x\.h5.*truncated"):
            BioReader(path)


def test_xml_that_is_cut_short(tmp_path):
    xml = one(tmp_path, made.coded((4, 9, 11), 1))
    xml.write_text(xml.read_text()[:400])
    with pytest.raises(DamagedFileError, match=r"x\.xml"):
        BioReader(xml)


def test_loader_that_is_not_known(tmp_path):
    xml = one(tmp_path, made.coded((4, 9, 11), 1))
    xml.write_text(xml.read_text().replace("bdv.hdf5", "spimreconstruction.filemap2"))
    with pytest.raises(UnsupportedError, match=r"spimreconstruction\.filemap2"):
        BioReader(xml)


def test_use_after_close(tmp_path):
    br = BioReader(one(tmp_path, made.coded((4, 9, 11), 1)))
    br.close()
    br.close()
    with pytest.raises(ClosedError):
        br[:]


@pytest.mark.parametrize("stored", ["none", "gzip", "fiji", "lzf"])
@pytest.mark.parametrize("block", [(4, 16, 16), (16, 64, 64)])
def test_many_threads_at_once(tmp_path, stored, block):
    stack = made.coded((17, 130, 140), 1) >> 3
    xml = one(tmp_path, stack, block=block, **STORED[stored])
    boxes = [(7 * n % 90, 11 * n % 100, n % 12) for n in range(60)]
    with BioReader(xml, max_workers=4) as br, ThreadPoolExecutor(4) as pool:

        def differs(box):
            y, x, z = box
            got = zyx(br[y : y + 40, x : x + 37, z : z + 5])
            return (got != stack[z : z + 5, y : y + 40, x : x + 37]).any()

        assert not any(pool.map(differs, boxes))


def test_pickled_reader_has_the_same_views(tmp_path):
    stacks = made.write_simple(tmp_path)
    with BioReader(tmp_path / "x.h5", series=1) as br:
        text = pickle.dumps(br)
        views = br.views
    with pickle.loads(text) as again:
        assert again.backend == "bdv"
        assert again.views == views
        np.testing.assert_array_equal(zyx(again[..., 1, 0]), stacks[0, 3])


def test_no_file_stays_open(tmp_path):
    partitioned(tmp_path)
    with BioReader(tmp_path / "p.xml") as br:
        br[:]
    assert not open_files(tmp_path)


def test_many_views_keep_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(_bdv_hdf5, "_MOST_OPEN", 1)
    stacks = partitioned(tmp_path)
    with BioReader(tmp_path / "p.xml") as br:
        for (t, s), stack in [*stacks.items(), *stacks.items()]:
            np.testing.assert_array_equal(zyx(br[..., s, t]), stack)


WRITER = """
import sys, time
import h5py, numpy as np
with h5py.File(sys.argv[1], "w", libver="earliest", locking=False) as file:
    file["s00/resolutions"] = np.ones((1, 3))
    file["s00/subdivisions"] = np.full((1, 3), 8, np.int32)
    file["t00000/s00/0/cells"] = np.full((4, 9, 11), 7, np.int16)
    file.flush()
    print("there", flush=True)
    sys.stdin.readline()
    file["t00001/s00/0/cells"] = np.full((4, 9, 11), 8, np.int16)
    file.flush()
    print("more", flush=True)
    sys.stdin.readline()
"""


def test_file_that_another_process_is_writing(tmp_path):
    path = tmp_path / "x.h5"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert writer.stdout.readline() == "there\n"
        with BioReader(path) as early:
            assert early.shape == (9, 11, 4, 1, 1)
            assert (early[:] == 7).all()
            writer.stdin.write("\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "more\n"
            assert (early[1:3] == 7).all()
            with BioReader(path) as late:
                assert (late[..., 0, 1] == 8).all()
        writer.communicate("\n", timeout=20)
        assert writer.returncode == 0
    finally:
        writer.kill()
        writer.wait()


def test_what_is_left_tells_the_type_of_what_is_gone(tmp_path):
    stack = made.coded((6, 20, 24), 1, np.uint8)
    with h5py.File(tmp_path / "p.h5", "w") as main:
        made.tables(main, 0, [(1, 1, 1)], (4, 8, 8), "uint8")
        for t in range(3):
            main[f"t{t:05d}/s00/0/cells"] = h5py.ExternalLink(f"p-{t:02d}-00.h5", "cells")
    with h5py.File(tmp_path / "p-02-00.h5", "w") as file:
        file["cells"] = stack
    with BioReader(tmp_path / "p.h5") as br:
        assert br.dtype == np.uint8
        np.testing.assert_array_equal(zyx(br[..., 0, 2]), stack)
        with pytest.raises(FileNotFoundError, match=r"p-01-00\.h5"):
            br[..., 0, 1]


ADD = """
import sys
import h5py, numpy as np
with h5py.File(sys.argv[1] + "/p-02-00.h5", "w") as file:
    for s in range(2):
        file[f"t00002/s{s:02d}/0/cells"] = np.full((6, 20, 24), 9 + s, np.int16)
with h5py.File(sys.argv[1] + "/p.h5", "r+", locking=False) as file:
    for s in range(2):
        where = f"t00002/s{s:02d}/0/cells"
        file[where] = h5py.ExternalLink("p-02-00.h5", where)
"""


def test_partition_that_came_while_the_file_was_open(tmp_path):
    """The library itself only knows a file as it was when this process opened it first."""
    stacks = partitioned(tmp_path)
    xml = tmp_path / "p.xml"
    with BioReader(xml) as early:
        subprocess.run([sys.executable, "-c", ADD, str(tmp_path)], check=True, timeout=60)
        xml.write_text(xml.read_text().replace("<last>1</last>", "<last>2</last>"))
        with BioReader(xml) as late, BioReader(xml, series=0) as third:
            for br in (late, third):
                assert (br[..., 0, 2] == 9).all()
                assert (br[..., 1, 2] == 10).all()
                np.testing.assert_array_equal(zyx(br[..., 1, 0]), stacks[0, 1])
        np.testing.assert_array_equal(zyx(early[..., 1, 1]), stacks[1, 1])


OURS = """
import sys
import numpy as np
from bioio_tk.bdv import BdvWriter
with BdvWriter(sys.argv[1], nchannels=2, times_per_file=int(sys.argv[2])) as writer:
    for n in range(6):
        stack = np.full((5, 40, 50), n + 1, np.uint16)
        writer.append_view(stack, time=n // 2, channel=n % 2)
        print(n, flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("times_per_file", [0, 2])
def test_dataset_that_our_writer_is_writing(tmp_path, times_per_file):
    path = tmp_path / "x.xml"
    writer = subprocess.Popen(
        [sys.executable, "-c", OURS, str(path), str(times_per_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        kept = []
        for n in range(6):
            assert writer.stdout.readline() == f"{n}\n"
            br = BioReader(path)
            kept.append(br)
            there = [view for view in br.views if not view.missing]
            assert len(there) == n + 1
            for view in there:
                assert (br[..., view.c, view.t] == 2 * view.time + view.c + 1).all()
            writer.stdin.write("\n")
            writer.stdin.flush()
        for br in kept:
            assert br[0, 0, 0, 0, 0] == 1
            br.close()
        writer.communicate(timeout=20)
        assert writer.returncode == 0
    finally:
        writer.kill()
        writer.wait()


def test_file_that_this_process_has_open(tmp_path):
    xml = one(tmp_path, made.coded((4, 9, 11), 1))
    for locking in (True, False):
        with h5py.File(tmp_path / "x.h5", "r+", locking=locking) as file, BioReader(xml) as br:
            np.testing.assert_array_equal(zyx(br[:]), file["t00000/s00/0/cells"][()].view("u2"))


# ------------------------------------------------------------------ who reads it


def test_choice_and_its_reason(tmp_path):
    xml = one(tmp_path, made.coded((4, 9, 11), 1))
    for path in (xml, tmp_path / "x.h5"):
        choice = registry.choose(path)
        assert (choice.backend.name, choice.reason) == ("bdv", "content is BigDataViewer")
    xml.unlink()
    assert registry.choose(tmp_path / "x.h5").backend.name == "bdv"


def test_plain_hdf5_is_none_of_bdv(tmp_path):
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as file:
        file["mov"] = np.zeros((3, 8, 8), "u2")
        file["s00/other"] = 1
        file["t00000/other"] = 1
    assert registry.choose(path).backend.name == "hdf5"
    with pytest.raises(UnsupportedError, match="describes no view"):
        BioReader(path, backend="bdv")


def test_xml_of_something_else(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text("<note>no image</note>")
    with pytest.raises(FormatError):
        BioReader(path, backend="bdv")


def test_without_h5py(tmp_path, monkeypatch):
    xml = one(tmp_path, made.coded((4, 9, 11), 1))
    monkeypatch.setitem(sys.modules, "h5py", None)
    for path in (xml, tmp_path / "x.h5"):
        with pytest.raises(BackendMissingError, match=r"bioio-tk\[hdf5\]"):
            BioReader(path)
    xml.unlink()
    with pytest.raises(BackendMissingError, match=r"bioio-tk\[hdf5\]"):
        BioReader(tmp_path / "x.h5")


# ------------------------------------------------------------------ what is said of it


def test_info(tmp_path):
    made.write_simple(tmp_path, factors=[(1, 1, 1), (2, 2, 2)], compression="gzip")
    text = (tmp_path / "x.xml").read_text()
    at = 'timepoint="1" setup="3"'
    text = text.replace("<MissingViews>", f"<MissingViews><MissingView {at}/>")
    moved = f"<affine>{made.IDENTITY}</affine></ViewTransform>"
    scaled = "<affine>1 0 0 0 0 1 0 0 0 0 4 0</affine></ViewTransform>"
    text = text.replace(moved, scaled, 1)
    (tmp_path / "x.xml").write_text(text)
    out = run("info", tmp_path / "x.xml")[0]
    for line in (
        "x.xml: BigDataViewer HDF5, 2 images,",
        "read by bdv: content is BigDataViewer",
        "files: x.xml, x.h5",
        "8 views: 2 time points x 4 setups, 1 missing",
        "2 channels: GFP, RFP",
        "2 tiles: 0, upper left",
        "2 affines (n), of the first view: 1 0 0 0; 0 1 0 0; 0 0 4 0",
        "image 1 'tile upper left'",
        "size        X 24  Y 20  Z 6  C 2  T 2",
        "pixel size  X 0.5  Y 0.5  Z 2 µm",
        "stored as   blocks of 8 x 8 x 4, gzip",
        "levels      24 x 20 x 6, 12 x 10 x 3",
        "note: 1 view is said to be missing, but stored, and read as 0: time point 1 of setup 3",
    ):
        assert line in out
    info = describe(tmp_path / "x.xml").to_dict()["views"]
    assert (info["count"], info["missing"], info["times"], info["setups"]) == (8, 1, 2, 4)
    assert info["affine"] == ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 4, 0))
    assert describe(tmp_path / "x.xml", images=1).views.count == 8


def test_info_of_other_formats_has_no_views(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), "u1"))
    assert describe(tmp_path / "a.tif").views is None
    assert "view" not in run("info", tmp_path / "a.tif")[0]


# ------------------------------------------------------------------ OME-Zarr


def write_zarr(folder, pixels, *, axes="tczyx", levels=1):
    """Write an OME-Zarr 0.4 with zarr-python; every level is every second pixel of the last."""
    group = zarr.create_group(folder, zarr_format=2)
    datasets = []
    for level in range(levels):
        step = 1 << level
        part = pixels[..., ::step, ::step]
        array = group.create_array(
            str(level),
            shape=part.shape,
            dtype=part.dtype,
            chunks=(*(1,) * (part.ndim - 3), 3, 7, 8),
        )
        array[...] = part
        scale = [1.0] * (part.ndim - 3) + [2.0, 0.5 * step, 0.5 * step]
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    kinds = {"t": "time", "c": "channel"}
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": a, "type": kinds.get(a, "space")} for a in axes],
            "datasets": datasets,
        }
    ]


def zarr_xml(folder, groups, setups, *, version="3.0", last=1):
    """Write the XML over Zarr images; `groups` as they stand in it."""
    loader = (
        f'<ImageLoader format="bdv.multimg.zarr" version="{version}">'
        f'<zarr type="relative">{folder}</zarr><zgroups>{groups}</zgroups></ImageLoader>'
    )
    times = f'<Timepoints type="range"><first>0</first><last>{last}</last></Timepoints>'
    return made.spim_xml(setups, loader=loader, times=times)


def test_channels_and_times_of_ome_zarr(tmp_path):
    tiles = [made.coded((2, 3, 5, 20, 21), n) for n in range(2)]
    groups = setups = ""
    for n, pixels in enumerate(tiles):
        write_zarr(tmp_path / "store" / f"tile{n}.zarr", pixels, levels=2)
        for c in range(3):
            number = 3 * n + c
            setups += made.setup_xml(number, (5, 20, 21), {"tile": n, "channel": c})
            for t in range(2):
                groups += (
                    f'<zgroup setup="{number}" tp="{t}" path="tile{n}.zarr" indicies="[{c} {t}]"/>'
                )
    (tmp_path / "x.xml").write_text(zarr_xml("store", groups, setups))
    for n, pixels in enumerate(tiles):
        with BioReader(tmp_path / "x.xml", series=n) as br:
            assert br.shape == (20, 21, 5, 3, 2)
            np.testing.assert_array_equal(br[:].transpose(4, 3, 2, 0, 1), pixels)
            want = pixels[1, 2, 1:4, 5:12, 9:]
            np.testing.assert_array_equal(zyx(br[5:12, 9:, 1:4, 2, 1]), want)
            assert br.physical_size_z == (2.0, "µm")
            assert br.details["compression"] != "none"
        with BioReader(tmp_path / "x.xml", series=n, level=1) as br:
            want = pixels[..., ::2, ::2]
            np.testing.assert_array_equal(br[:].transpose(4, 3, 2, 0, 1), want)


def test_stacks_of_ome_zarr_as_version_1_names_them(tmp_path):
    stacks = [made.coded((5, 20, 21), n, np.uint8) for n in range(2)]
    groups = ""
    for t, stack in enumerate(stacks):
        write_zarr(tmp_path / "s" / "deep" / f"t{t}", stack, axes="zyx")
        groups += f'<zgroup setup="4" timepoint="{t}"><path>deep/t{t}</path></zgroup>'
    setup = made.setup_xml(4, (5, 20, 21), {"channel": 0})
    (tmp_path / "x.xml").write_text(zarr_xml("s", groups, setup, version="1.0"))
    with BioReader(tmp_path / "x.xml") as br:
        for t, stack in enumerate(stacks):
            np.testing.assert_array_equal(zyx(br[..., 0, t]), stack)
        assert {path.name for path in br.used_files} == {"x.xml", "t0", "t1"}


def test_ome_zarr_that_is_gone_or_too_small(tmp_path):
    write_zarr(tmp_path / "s" / "a", made.coded((2, 5, 20, 21), 1), axes="czyx")
    groups = '<zgroup setup="0" tp="0" path="a" indicies="[1]"/>'
    groups += '<zgroup setup="0" tp="1" path="gone" indicies="[1]"/>'
    groups += '<zgroup setup="0" tp="2" path="a" indicies="[2]"/>'
    setup = made.setup_xml(0, (5, 20, 21), {"channel": 0})
    (tmp_path / "x.xml").write_text(zarr_xml("s", groups, setup, last=3))
    with BioReader(tmp_path / "x.xml") as br:
        assert br[..., 0].any()
        with pytest.raises(FileNotFoundError, match="gone"):
            br[..., 0, 1]
        with pytest.raises(DamagedFileError, match="channel 2 of time point 0"):
            br[..., 0, 2]
        assert not br[..., 0, 3].any()
        assert br.views[3].missing
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(FileNotFoundError, match=r"x\.xml"):
        BioReader(tmp_path / "x.xml")


# ------------------------------------------------------------------ N5

N5 = {
    "raw": {"type": "raw"},
    "gzip": {"type": "gzip", "level": 6, "useZlib": False},
    "zlib": {"type": "gzip", "level": 6, "useZlib": True},
    "bzip2": {"type": "bzip2", "blockSize": 9},
    "xz": {"type": "xz", "preset": 1},
    "zstd": {"type": "zstd", "level": 3},
    "blosc": {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
}


def write_n5(folder, stack, name, compression, block=(4, 8, 8)):
    """Write a stack with TensorStore, whose axes are X, Y, Z."""
    import tensorstore

    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": str(folder / name)},
        "metadata": {
            "dimensions": stack.shape[::-1],
            "blockSize": block[::-1],
            "dataType": stack.dtype.name,
            "compression": compression,
        },
        "create": True,
    }
    tensorstore.open(spec).result()[...] = stack.T


def n5_xml(folder, shape, setups=1, last=0):
    loader = (
        '<ImageLoader format="bdv.n5" version="1.0"><n5 type="relative">x.n5</n5></ImageLoader>'
    )
    times = f'<Timepoints type="range"><first>0</first><last>{last}</last></Timepoints>'
    text = "".join(made.setup_xml(s, shape, {"channel": s}) for s in range(setups))
    (folder / "x.xml").write_text(made.spim_xml(text, loader=loader, times=times))
    return folder / "x.xml"


@pytest.mark.parametrize("packed", N5)
def test_n5_of_every_compression(tmp_path, packed):
    stack = made.coded((6, 20, 25), 1)
    write_n5(tmp_path / "x.n5", stack, "setup0/timepoint0/s0", N5[packed])
    attributes = '{"downsamplingFactors": [[1,1,1]], "dataType": "uint16"}'
    (tmp_path / "x.n5/setup0/attributes.json").write_text(attributes)
    with BioReader(n5_xml(tmp_path, stack.shape)) as br:
        assert br.details["compression"] == N5[packed]["type"]
        np.testing.assert_array_equal(zyx(br[:]), stack)
        np.testing.assert_array_equal(zyx(br[5:17, 3:20, 2:5]), stack[2:5, 5:17, 3:20])


def test_n5_as_lz4_java_packs_it(tmp_path):
    from imagecodecs import lz4_encode

    def frame(data, *, plain):
        body = data if plain else bytes(lz4_encode(data))
        head = struct.pack("<8sBIII", b"LZ4Block", 0x16 if plain else 0x26, len(body), len(data), 0)
        return head + body

    stack = made.coded((2, 3, 4), 1)
    where = tmp_path / "x.n5/setup0/timepoint0/s0"
    (where / "0/0").mkdir(parents=True)
    text = '{"dimensions":[4,3,2],"blockSize":[4,3,2],"dataType":"uint16",'
    text += '"compression":{"type":"lz4"}}'
    (where / "attributes.json").write_text(text)
    data = stack.astype(">u2").tobytes()
    packed = frame(data[:30], plain=False) + frame(data[30:], plain=True) + frame(b"", plain=True)
    (where / "0/0/0").write_bytes(struct.pack(">HH3I", 0, 3, 4, 3, 2) + packed)
    with BioReader(n5_xml(tmp_path, stack.shape)) as br:
        np.testing.assert_array_equal(zyx(br[:]), stack)


@pytest.mark.parametrize("dtype", TYPES)
def test_n5_of_every_type_and_level(tmp_path, dtype):
    stacks = {(t, s): made.coded((6, 20, 25), 3 * t + s, dtype) for t in range(2) for s in range(2)}
    for (t, s), stack in stacks.items():
        for level in range(2):
            part = stack[:, :: 1 + level, :: 1 + level]
            name = f"setup{s}/timepoint{t}/s{level}"
            write_n5(tmp_path / "x.n5", part, name, N5["gzip"])
        attributes = '{"downsamplingFactors": [[1,1,1],[2,2,1]]}'
        (tmp_path / f"x.n5/setup{s}/attributes.json").write_text(attributes)
    xml = n5_xml(tmp_path, (6, 20, 25), setups=2, last=2)
    for level in range(2):
        with BioReader(xml, level=level) as br:
            assert br.dtype == dtype
            assert br.details["factor"] == ((1, 1, 1), (2, 2, 1))[level]
            for (t, s), stack in stacks.items():
                want = stack[:, :: 1 + level, :: 1 + level]
                np.testing.assert_array_equal(zyx(br[..., s, t]), want)
            assert not br[..., 0, 2].any()
            assert len([v for v in br.views if v.missing]) == 2


def test_n5_that_is_not_whole(tmp_path):
    stack = made.coded((6, 20, 25), 1)
    write_n5(tmp_path / "x.n5", stack, "setup0/timepoint0/s0", N5["gzip"])
    where = tmp_path / "x.n5/setup0/timepoint0/s0"
    (where / "1/1/0").unlink()  # blocks of 0 are not written
    (where / "2/0/1").write_bytes((where / "2/0/1").read_bytes()[:40])
    with BioReader(n5_xml(tmp_path, stack.shape)) as br:
        want = stack.copy()
        want[:4, 8:16, 8:16] = 0
        np.testing.assert_array_equal(zyx(br[:, :, :4]), want[:4])
        with pytest.raises(DamagedFileError, match=r"s0.2.0.1"):
            br[:]
        br.close()
        with pytest.raises(ClosedError):
            br[:]
    (where / "attributes.json").write_text('{"dimensions": [5, 5]}')
    with pytest.raises(DamagedFileError, match=r"attributes\.json"):
        BioReader(tmp_path / "x.xml")
    (where / "attributes.json").write_text("{")
    with pytest.raises(DamagedFileError, match="no JSON"):
        BioReader(tmp_path / "x.xml")


def test_n5_of_a_compression_that_is_not_known(tmp_path):
    stack = made.coded((6, 20, 25), 1)
    write_n5(tmp_path / "x.n5", stack, "setup0/timepoint0/s0", N5["gzip"])
    where = tmp_path / "x.n5/setup0/timepoint0/s0/attributes.json"
    where.write_text(where.read_text().replace("gzip", "jpeg"))
    with pytest.raises(UnsupportedError, match="'jpeg'"):
        BioReader(n5_xml(tmp_path, stack.shape))


@pytest.mark.parametrize("locking", [None, False, True, "best-effort"])
def test_a_dataset_can_be_open_in_h5py_at_the_same_time(tmp_path, locking):
    from bioio_tk.bdv import BdvWriter

    path = tmp_path / "a.h5"
    stack = made.coded((3, 20, 21), 5)
    with BdvWriter(path) as writer:
        writer.append_view(stack)
    with h5py.File(path, "r", locking=locking) as file:
        with BioReader(path) as reader:
            np.testing.assert_array_equal(reader[...].transpose(2, 0, 1), stack)
        found = file["t00000/s00/0/cells"][()]
    np.testing.assert_array_equal(found.view(np.uint16), stack)
    with BioReader(path) as reader:
        with h5py.File(path) as file:  # as everybody opens it
            found = file["t00000/s00/0/cells"][()]
        np.testing.assert_array_equal(reader[...].transpose(2, 0, 1), stack)
    np.testing.assert_array_equal(found.view(np.uint16), stack)
