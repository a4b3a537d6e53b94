"""Every pixel type, compression, way to make a pyramid and layout of a dataset, in all mixtures.

What `BdvWriter` writes is read with h5py, with our reader, and with the calls that BigDataViewer
makes of JHDF5; what Bio-Formats can show, with its reader, too. Expected pixels come from plain
loops.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from bdv_java import NATIVE, bio_formats, by_bio_formats, loaded, spimdata

from bioio_tk import BioReader
from bioio_tk.backends import _java_home

h5py = pytest.importorskip("h5py")
bdv = pytest.importorskip("bioio_tk.bdv")

SIZE = (3, 11, 18)
FACTORS = ((1, 1, 1), (1, 2, 2), (2, 4, 4))
BLOCKS = ((2, 4, 8), (2, 4, 4), (2, 2, 4))
VOXEL = (0.4, 0.4, 1.0)
SHEAR = ((1.0, 0.0, 0.1234567890123456, 7.0), (0.0, 1.0, 0.0, -1e-7), (0.0, 0.0, 1.0, 1 / 3))


class Layout(NamedTuple):
    """What a dataset consists of.

    Attributes
    ----------
    axis : str
        What tells its setups apart.
    setups, times : int
        How many there are.
    views : tuple
        (time point, setup) of those that are written, in that order.
    options : tuple
        (name, value) of the writer's.
    affine : bool
        The views lie somewhere.
    """

    axis: str
    setups: int
    times: int
    views: tuple[tuple[int, int], ...]
    options: tuple[tuple[str, int], ...] = ()
    affine: bool = False


LAYOUTS = {
    "complete": Layout("channel", 2, 2, tuple(product((0, 1), (0, 1)))),
    "missing views": Layout("tile", 2, 3, ((2, 1), (0, 1), (0, 0))),  # nothing at time point 1
    "partitioned": Layout("channel", 2, 2, tuple(product((0, 1), (0, 1))),
                          (("times_per_file", 1), ("setups_per_file", 1))),
    "tiles with affines": Layout("tile", 3, 1, ((0, 0), (0, 1), (0, 2)), affine=True),
}  # fmt: skip


@cache
def stack(dtype, view):
    """Return pixels over the whole range of a type; sums of floats among them are exact."""
    dtype, random = np.dtype(dtype), np.random.default_rng(view)
    if dtype.kind == "f":
        return (random.integers(-(2**22), 2**22, SIZE) / 256).astype(dtype)
    info = np.iinfo(dtype)
    least, most = int(info.min), int(info.max)
    if dtype == np.uint32 and sum(view) % 2 == 0:
        most = 2**31 - 1  # Bio-Formats calls them int32
    image = random.integers(least, most, SIZE, dtype, endpoint=True)
    image[:2, :2, :2] = least  # means at the very ends
    image[-2:, -2:, -2:] = most
    image[2, :2, :2] = [[least, most], [least + 1, most]]
    half = -1 if least else 0
    image[2, 2:4, :2] = [[half, half + 1]] * 2
    return image


@cache
def level(dtype, view, factor):
    """Return the mean of each block of a stack, of the pixels that are there at the border."""
    full = stack(dtype, view)
    shape = [math.ceil(n / f) for n, f in zip(SIZE, factor, strict=True)]
    small = np.zeros(shape, dtype)
    for at in product(*map(range, shape)):
        box = tuple(slice(i * f, (i + 1) * f) for i, f in zip(at, factor, strict=True))
        pixels = full[box].ravel().tolist()
        if small.dtype.kind == "f":
            small[at] = math.fsum(pixels) / len(pixels)
        else:
            small[at] = math.floor(Fraction(sum(pixels), len(pixels)) + Fraction(1, 2))
    return small


def check_pixels(got, dtype, view, factor):
    want = level(dtype, view, factor)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if want.dtype.kind == "f":
        np.testing.assert_array_max_ulp(got, want, 1)
    else:
        np.testing.assert_array_equal(got, want)


def test_the_expected_means():
    """Half goes up, below zero too; a border block has fewer pixels."""
    assert level("i1", (0, 0), (1, 1, 1)).min() == -128
    ends = {"i1": (-128, 127), "u8": (0, 2**64 - 1), "i8": (-(2**63), 2**63 - 1)}
    for dtype, (least, most) in ends.items():
        small = level(dtype, (0, 0), (2, 2, 2))
        assert (small[0, 0, 0], small[-1, -1, -1]) == (least, most)
    assert level("i1", (0, 0), (1, 2, 2))[2, :2, 0].tolist() == [0, 0]  # of -1/4 and of -1/2
    assert level("u1", (0, 0), (1, 2, 2))[2, :2, 0].tolist() == [128, 1]  # of 127.75 and of 1/2


# ------------------------------------------------------------------ writing


def place(layout, setup):
    """Return what the writer is told of a setup."""
    told: dict[str, Any] = {layout.axis: setup, "voxel_size_xyz": VOXEL, "voxel_units": "µm"}
    if layout.affine:
        matrix = np.array(SHEAR)
        matrix[0, 3] += 20 * setup
        told |= {"m_affine": matrix, "name_affine": f"grid {setup}", "calibration": (1, 1, 2.5)}
    return told


def write(path, dtype, compression, pyramid, layout):
    levels = len(FACTORS) if pyramid == "on the fly" else 1
    options = {f"n{layout.axis}s": layout.setups} | dict(layout.options)
    with bdv.BdvWriter(path, subsamp=FACTORS[:levels], blockdim=BLOCKS[:levels],
                       compression=compression, **options) as writer:  # fmt: skip
        for time, setup in layout.views:
            writer.append_view(stack(dtype, (time, setup)), time=time, **place(layout, setup))
        if pyramid == "lazy":
            writer.create_pyramids(FACTORS[1:], BLOCKS[1:], compression=compression)


# ------------------------------------------------------------------ reading


def check_h5py(path, dtype, compression, factors, layout):
    name = np.dtype(dtype).name
    with h5py.File(path, "r", locking=False) as file:
        for setup in range(layout.setups):
            group = file[f"s{setup:02d}"]
            assert group["resolutions"].dtype == "f8"
            assert group["subdivisions"].dtype == "i4"
            assert group["resolutions"][()].tolist() == [list(f[::-1]) for f in factors]
            blocks = BLOCKS[: len(factors)]
            assert group["subdivisions"][()].tolist() == [list(b[::-1]) for b in blocks]
            label = group.attrs.get("dataType")
            assert label == (None if name == "uint16" else np.bytes_(name))
        for view in product(range(layout.times), range(layout.setups)):
            time, setup = view
            at = f"t{time:05d}/s{setup:02d}"
            assert (at in file) == (view in layout.views)
            for number, factor in enumerate(factors if view in layout.views else ()):
                data = file[f"{at}/{number}/cells"]
                assert data.maxshape == (None, None, None)
                assert data.chunks == BLOCKS[number]
                filters = (data.compression, data.shuffle)
                assert filters == (("gzip", True) if compression == "gzip" else (None, False))
                assert data.dtype == ("i2" if name == "uint16" else dtype)
                check_pixels(data[()].view(dtype), dtype, view, factor)


def check_reader(path, dtype, factors, layout):
    with BioReader(path) as reader:
        found = {(view.time, view.setup): view for view in reader.views}
        affines, count = reader.affines, reader.n_series
        assert (reader.dtype, reader.levels) == (dtype, len(factors))
        full = reader[...].reshape(reader.shape)
    assert set(found) == set(product(range(layout.times), range(layout.setups)))
    assert {key for key, view in found.items() if not view.missing} == set(layout.views)
    assert set(affines) == set(layout.views)
    for key in layout.views:
        np.testing.assert_array_equal(affines[key], model(layout, key[1]))
    for series, number in product(range(count), range(len(factors))):
        pixels = full
        if (series, number) != (0, 0):
            with BioReader(path, series=series, level=number) as reader:
                pixels = reader[...].reshape(reader.shape)
        for key, view in found.items():
            if view.series == series:
                got = pixels[:, :, :, view.c, view.t].transpose(2, 0, 1)
                if view.missing:
                    assert not got.any()
                else:
                    check_pixels(got, dtype, key, factors[number])


def model(layout, setup):
    """Return where the pixels of a setup are meant to lie."""
    step = np.diag([1, 1, 2.5, 1.0])  # of the voxels: the longest over the shortest
    if not layout.affine:
        return step[:3]
    matrix = place(layout, setup)["m_affine"]
    return np.vstack([matrix, (0, 0, 0, 1)])[:3] @ step


def check_xml(path, layout):
    found = spimdata(path.with_suffix(".xml"))
    assert found.file == path
    assert found.views == set(layout.views)
    assert found.times == tuple(range(layout.times))
    assert found.sizes == dict.fromkeys(range(layout.setups), SIZE[::-1])
    assert found.voxels == dict.fromkeys(range(layout.setups), ("µm", VOXEL))
    for setup, attributes in found.attributes.items():
        assert attributes == dict.fromkeys(attributes, 0) | {layout.axis: setup}
        assert set(attributes) == {"illumination", "channel", "tile", "angle"}
    for view in layout.views:
        names = [f"grid {view[1]}"] if layout.affine else []
        assert [name for name, _ in found.transforms[view]] == [*names, "calibration"]
        np.testing.assert_array_equal(found.models[view], model(layout, view[1]))
    parts = [(t, s) for _, times, setups in found.partitions for t in times for s in setups]
    if layout.options:
        assert sorted(parts) == sorted(layout.views)
        assert all(file.is_file() and file.parent == path.parent for file, _, _ in found.partitions)
        assert len({file for file, _, _ in found.partitions}) == len(layout.views)
    else:
        assert not parts


def check_bigdataviewer(java, path, dtype, factors, layout):
    name = np.dtype(dtype).name
    with loaded(java, path) as loader:
        for setup in range(layout.setups):
            assert loader.type(setup) == (None if name == "uint16" else name)
            assert loader.factors(setup) == [tuple(map(float, f[::-1])) for f in factors]
            assert loader.blocks(setup) == [b[::-1] for b in BLOCKS[: len(factors)]]
        for view in product(range(layout.times), range(layout.setups)):
            assert loader.exists(view) == (view in layout.views)
        for view, (number, factor) in product(layout.views, enumerate(factors)):
            assert loader.chunk(view, number) == BLOCKS[number][::-1]
            check_pixels(loader.pixels(view, number), dtype, view, factor)


SHOWN = {"int8": "uint8", "uint8": "uint8", "int16": "uint16", "uint16": "uint16",
         "int32": "int32", "uint32": "int32"}  # fmt: skip
"""What Bio-Formats calls the pixels of a type; the bits are those that were written."""


def check_bio_formats(java, path, dtype, factors, layout):
    tools = java("loci.formats.FormatTools")
    with bio_formats(java, path) as reader:
        assert str(tools.getPixelTypeString(reader.getPixelType())) == SHOWN[np.dtype(dtype).name]
        channels = layout.setups if layout.axis == "channel" else 1
        assert int(reader.getSizeC()) == channels
        assert int(reader.getSizeT()) == layout.times
        assert int(reader.getSeriesCount()) == layout.setups // channels
        assert int(reader.getResolutionCount()) == len(factors)
        for view, (number, factor) in product(layout.views, enumerate(factors)):
            if dtype == "u4" and sum(view) % 2:
                continue  # beyond what it can show
            series, c = divmod(view[1], channels)
            got = by_bio_formats(reader, dtype, series, c, view[0], number)
            check_pixels(got, dtype, view, factor)


@pytest.fixture(scope="session")
def java_or_none():
    """Java with Bio-Formats, None where there is none: the other readers are asked all the same."""
    if _java_home.missing() is not None:
        return None
    from bioio_tk.backends import _java_vm

    return _java_vm.java()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pyramid", ["none", "on the fly", "lazy"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("name", NATIVE)
def test_written_and_read(java_or_none, tmp_path, name, compression, pyramid, layout):
    path, dtype, layout = tmp_path / "x.h5", NATIVE[name][1], LAYOUTS[layout]
    factors = FACTORS[:1] if pyramid == "none" else FACTORS
    write(path, dtype, compression, pyramid, layout)
    check_h5py(path, dtype, compression, factors, layout)
    check_xml(path, layout)
    check_reader(path.with_suffix(".xml"), dtype, factors, layout)
    if java_or_none is not None:
        check_bigdataviewer(java_or_none, path, dtype, factors, layout)
        if name in SHOWN and pyramid != "on the fly":  # a lazy one leaves the same
            check_bio_formats(java_or_none, path, dtype, factors, layout)
