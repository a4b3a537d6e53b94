"""map_tiles, reduce, assemble and stack against NumPy and plain loops; files read by tifffile."""

from __future__ import annotations

import subprocess
import sys
import threading
from itertools import product
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from images import coded

import bioio_tk
from bioio_tk import BioReader, BioWriter
from bioio_tk.errors import (
    BioIOError,
    FormatError,
    OutOfMemoryError,
    PixelTypeError,
    SpecError,
    TargetExistsError,
)
from bioio_tk.jobs.tiles import assemble, map_tiles, reduce, stack

SHAPE = (90, 70, 3, 2, 2)  # Y, X, Z, C, T


def make(path, image, *, tile=(32, 48), **metadata):
    """Write an image (Y, X, Z, C, T) with tifffile."""
    full = image.reshape((*image.shape, 1, 1, 1)[:5])
    tifffile.imwrite(
        path, full.transpose(4, 3, 2, 0, 1), metadata={"axes": "TCZYX", **metadata}, tile=tile
    )
    return path


def stored(path):
    """Read an image as Y, X, Z, C, T with tifffile."""
    with tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        pixels, axes = series.asarray(squeeze=False), series.get_axes(squeeze=False)
    pixels = pixels.transpose(np.argsort(["TCZYXS".index(a) for a in axes]))
    return (
        pixels[..., 0].transpose(3, 4, 2, 1, 0) if "S" in axes else pixels.transpose(3, 4, 2, 1, 0)
    )


def looped(f, image, tile, overlap, mode):
    """Apply a function to a plane as a loop does: pad with NumPy, cut, crop."""
    (h, w), (oy, ox) = tile, overlap
    padded = np.pad(image, ((oy, oy), (ox, ox)), mode=mode)
    out = None
    for y, x in product(range(0, image.shape[0], h), range(0, image.shape[1], w)):
        b, r = min(y + h, image.shape[0]), min(x + w, image.shape[1])
        result = f(padded[y : b + 2 * oy, x : r + 2 * ox])
        out = np.empty(image.shape, result.dtype) if out is None else out
        out[y:b, x:r] = result[oy : oy + b - y, ox : ox + r - x]
    return out


def smooth(tile):
    """Return a function of each pixel's neighbours and of the whole tile."""
    wide = np.pad(tile.astype("i8"), 2, mode="edge")
    around = sum(
        wide[2 + dy : 2 + dy + tile.shape[0], 2 + dx : 2 + dx + tile.shape[1]]
        for dy, dx in ((0, 0), (-2, 1), (1, 2), (0, -1))
    )
    return (around + tile.shape[0] * 1000 + tile.shape[1]).astype("i4")


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    tile=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    overlap=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    mode=st.sampled_from(["reflect", "symmetric", "edge", "constant"]),
    workers=st.integers(1, 3),
)
def test_the_result_is_that_of_a_loop_over_the_padded_plane(size, tile, overlap, mode, workers):
    if mode == "reflect":  # where NumPy pads by more than the image, versions differ
        overlap = tuple(min(o, max(0, n - 1)) for o, n in zip(overlap, size, strict=True))
    image = coded(size, "u2")
    found = map_tiles(smooth, image, tile=tile, overlap=overlap, mode=mode, workers=workers)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, looped(smooth, image, tile, overlap, mode))


@pytest.mark.parametrize("ending", [".ome.tif", ".ome.zarr"])
def test_five_axes_from_file_to_file_plane_by_plane(tmp_path, ending):
    image = coded(SHAPE, "u2")
    src = make(tmp_path / "in.ome.tif", image, PhysicalSizeX=0.5, Channel={"Name": ["a", "b"]})
    told = []
    out = map_tiles(
        smooth,
        src,
        tmp_path / f"out{ending}",
        tile=(40, 33),
        overlap=(3, 2),
        mode="symmetric",
        tile_size=32,
        compression="zstd",
        progress=lambda done, total: told.append((done, total)),
    )
    assert out == tmp_path / f"out{ending}"
    if ending == ".ome.tif":
        found = stored(out)
    else:
        found = zarr.open_group(out, mode="r")["0"][:].transpose(3, 4, 2, 1, 0)
    for z, c, t in np.ndindex(SHAPE[2:]):
        wanted = looped(smooth, image[..., z, c, t], (40, 33), (3, 2), "symmetric")
        np.testing.assert_array_equal(found[..., z, c, t], wanted)
    assert told[-1] == (image.size * 4, image.size * 4)
    with BioReader(out) as br:
        assert (br.channel_names, br.ps_x) == (["a", "b"], (0.5, "µm"))


@pytest.mark.parametrize("axes", ["ZYX", "YXC", "TYX", "YXZCT", "XY"])
def test_the_function_sees_the_axes_asked_for(axes):
    image = coded(SHAPE, "u2")
    seen = []

    def f(tile):
        seen.append(tile.shape)
        return tile.astype("f4") - tile.mean(dtype="f8")

    found = map_tiles(f, image.transpose(4, 3, 2, 0, 1), tile=50, axes=axes, dims="TCZYX")
    letters = dict(zip("YXZCT", SHAPE, strict=True))
    assert len(seen) == 4 * np.prod([n for a, n in letters.items() if a not in axes])
    assert seen[0] == tuple(50 if a in "YX" else letters[a] for a in axes)
    wanted = np.empty(SHAPE, "f4")
    steps = [50 if a in "YX" else n if a in axes else 1 for a, n in letters.items()]
    for corner in product(*(range(0, n, s) for n, s in zip(SHAPE, steps, strict=True))):
        box = tuple(slice(a, a + s) for a, s in zip(corner, steps, strict=True))
        wanted[box] = image[box].astype("f4") - image[box].mean(dtype="f8")
    np.testing.assert_allclose(found.transpose(3, 4, 2, 1, 0), wanted, rtol=1e-6)


def test_the_function_may_write_into_what_it_is_given():
    image = coded((40, 30), "u2")

    def f(tile):
        tile[:] = 7
        return tile

    assert (map_tiles(f, image, tile=16, overlap=2) == 7).all()
    np.testing.assert_array_equal(image, coded((40, 30), "u2"))


def test_each_tile_is_computed_once_also_the_first(tmp_path):
    image, seen, lock = coded((100, 90), "u2"), [], threading.Lock()

    def f(tile):
        with lock:
            seen.append(int(tile[0, 0]))
        return tile

    map_tiles(f, image, tmp_path / "out.ome.tif", tile=32, tile_size=48, pyramid=3)
    assert sorted(seen) == sorted(int(v) for v in image[::32, ::32].ravel())


def test_a_selection_and_its_metadata(tmp_path):
    image = coded(SHAPE, "u2")
    src = make(tmp_path / "in.ome.tif", image, PhysicalSizeZ=2.0, Channel={"Name": ["a", "b"]})
    out = map_tiles(np.negative, src, tmp_path / "o.ome.tif", select="c=1 z=::2 y=10:80", tile=33)
    np.testing.assert_array_equal(stored(out), -image[10:80, :, ::2, 1:])
    with BioReader(out) as br:
        assert (br.channel_names, br.ps_z) == (["b"], (4.0, "µm"))


def test_what_is_said_of_single_planes_follows_the_selection(tmp_path):
    image = coded((20, 30, 4), "u2")
    exposures = {"ExposureTime": [0.1, 0.2, 0.3, 0.4], "ExposureTimeUnit": ["s"] * 4}
    src = make(tmp_path / "in.ome.tif", image, Plane=exposures)
    map_tiles(np.negative, src, tmp_path / "m.ome.tif", select="z=3,1")
    reduce(src, "max", tmp_path / "r.ome.tif", select="z=2:")
    for name, wanted in (("m", {"0": "0.4", "1": "0.2"}), ("r", {"0": "0.3"})):
        xml = ET.fromstring(tifffile.tiffcomment(tmp_path / f"{name}.ome.tif"))
        planes = [e for e in xml.iter() if e.tag.endswith("}Plane")]
        assert {e.get("TheZ"): e.get("ExposureTime") for e in planes} == wanted


def test_lazy_arrays_keep_their_axes(tmp_path):
    image = coded(SHAPE, "u2")
    with BioReader(make(tmp_path / "in.ome.tif", image)) as br:
        part = br.array[5:60, :, ::-1, 1]
        np.testing.assert_array_equal(
            map_tiles(lambda a: a + 1, part, tile=20), image[5:60, :, ::-1, 1] + 1
        )
        np.testing.assert_array_equal(map_tiles(lambda a: a, br, tile=20), image)
        assert br[0, 0, 0, 0, 0] == image[0, 0, 0, 0, 0]  # what was given stays open


def test_into_a_writer_of_ones_own(tmp_path):
    image = coded((60, 50, 2), "u2")
    with BioWriter(tmp_path / "o.ome.tif", tile_size=16) as bw:
        assert map_tiles(lambda a: a / 2, image, bw, dims="YXZ", tile=24) is bw
    np.testing.assert_array_equal(stored(tmp_path / "o.ome.tif")[..., 0, 0], image / 2)


def test_a_writer_of_another_shape_is_refused(tmp_path):
    with BioWriter(tmp_path / "o.ome.tif", shape=(5, 5), dtype="u2") as bw:
        with pytest.raises(SpecError, match=r"\(5, 5, 1, 1, 1\).*\(6, 5, 1, 1, 1\)"):
            map_tiles(lambda a: a, coded((6, 5)), bw)
        bw[:] = 1


def test_the_pixel_type_is_that_of_the_first_tile_or_the_one_asked_for(tmp_path):
    image = coded((40, 30), "u2")
    assert map_tiles(lambda a: a > 500, image, tile=16).dtype == bool
    asked = map_tiles(lambda a: a * 1.0, image, tile=16, dtype="uint16")
    assert asked.dtype == np.uint16
    np.testing.assert_array_equal(asked, image)
    with pytest.raises(PixelTypeError, match=r"0\.5"):
        map_tiles(lambda a: a + 0.5, image, tmp_path / "o.ome.tif", tile=16, dtype="uint16")
    clipped = map_tiles(lambda a: a * 100.0, image, tile=16, dtype="uint16", cast="clip")
    np.testing.assert_array_equal(clipped, (image * 100.0).clip(0, 65535).astype("u2"))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ what goes wrong


def nothing_left(folder, *known):
    """Check that a folder holds what was there before and no more."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(known)


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_function_that_raises_is_named_with_its_tile(tmp_path, first, workers):
    image = coded((64, 48), "u2")
    cause = ZeroDivisionError("no luck")

    def f(tile):
        if first or tile[0, 0] == image[32, 16]:
            raise cause
        return tile

    where = "y=0:16, x=0:16, z=0" if first else "y=32:48, x=16:32, z=0"
    with pytest.raises(BioIOError, match=f"{where}.*ZeroDivisionError: no luck") as caught:
        map_tiles(f, image, tmp_path / "o.ome.tif", tile=16, workers=workers)
    assert caught.value.__cause__ is cause
    nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("f", "kind", "text"),
    [
        (lambda a: a[1:], SpecError, r"given an array of \(20, 20\).*returned one of \(19, 20\)"),
        (
            lambda a: a.astype("f4") if a[8, 8] > 400 else a,
            PixelTypeError,
            "float32.*uint16.*dtype=",
        ),
        (lambda a: a.ravel(), SpecError, r"returned one of \(400,\)"),
        (lambda a: np.full(a.shape, None), SpecError, "y=0:16, x=0:16"),
        (lambda a: a.astype("U3"), SpecError, "y=0:16, x=0:16"),
    ],
    ids=["shape", "another-type", "axes", "objects", "text"],
)
def test_results_that_are_no_image(tmp_path, f, kind, text):
    with pytest.raises(kind, match=text):
        map_tiles(f, coded((64, 48), "u2"), tmp_path / "o.ome.tif", tile=16, overlap=2)
    nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tile": 0}, "tile=0"),
        ({"tile": (3, 4, 5)}, "tile="),
        ({"tile": True}, "tile=True"),
        ({"overlap": -1}, "overlap -1"),
        ({"mode": "wrap"}, "mode='wrap': choose one of reflect"),
        ({"axes": "YZ"}, "axes='YZ'"),
        ({"axes": "YXX"}, "axes='YXX'"),
        ({"cval": 0.5}, "0.5"),
        ({"exists": "skip"}, "skip"),
        ({"dtype": "U3"}, "U3"),
        ({"cast": "nonsense", "dtype": "u1"}, "nonsense"),
        ({"select": "q=1"}, "'q' is no axis"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, text):
    with pytest.raises(SpecError, match=text):
        map_tiles(lambda a: a, coded((20, 20), "u2"), tmp_path / "o.ome.tif", **options)
    nothing_left(tmp_path)


def test_unknown_options_and_those_for_a_file_where_there_is_none(tmp_path):
    image = coded((20, 20))
    with pytest.raises(TypeError, match="'nonsense' is no option"):
        map_tiles(lambda a: a, image, tmp_path / "o.ome.tif", nonsense=1)
    with pytest.raises(SpecError, match="compression= is for the file"):
        map_tiles(lambda a: a, image, compression="zstd")
    with pytest.raises(OutOfMemoryError, match="1600000 bytes, more than memory=1048576"):
        map_tiles(lambda a: a * 1.0, np.zeros((400, 500), "u1"), memory=1 << 20)


def test_what_is_there_is_replaced_only_if_that_is_said(tmp_path):
    src = make(tmp_path / "in.ome.tif", coded((20, 20), "u2"))
    out = tmp_path / "o.ome.tif"
    out.write_bytes(b"precious")
    with pytest.raises(TargetExistsError):
        map_tiles(lambda a: a + 1, src, out)
    assert out.read_bytes() == b"precious"
    map_tiles(lambda a: a + 1, src, out, exists="replace")
    np.testing.assert_array_equal(stored(out)[..., 0, 0, 0], coded((20, 20), "u2") + 1)
    nothing_left(tmp_path, "in.ome.tif", "o.ome.tif")


def test_what_was_computed_is_not_taken_for_a_conversion(tmp_path):
    src = make(tmp_path / "in.ome.tif", coded((20, 20, 3), "u2"))
    outs = [map_tiles(smooth, src, tmp_path / "m.ome.tif", overlap=2, metadata={"lab": "ours"})]
    outs.append(reduce(src, "max", tmp_path / "r.ome.tif"))
    outs.append(assemble([(src, 0, 0)], tmp_path / "a.ome.tif"))
    said = ["map_tiles(smooth, ", "reduce(max, axis='z')", "assemble(1 files, blend='last'"]
    for out, words in zip(outs, said, strict=True):
        assert words in tifffile.tiffcomment(out)
        before = out.read_bytes()
        with pytest.raises((SpecError, TargetExistsError)):
            bioio_tk.convert(src, out, exists="skip")
        assert out.read_bytes() == before
    assert "ours" in tifffile.tiffcomment(outs[0])


def test_the_source_is_no_target(tmp_path):
    src = make(tmp_path / "in.ome.tif", coded((20, 20), "u2"))
    with pytest.raises(SpecError, match="is the source itself"):
        map_tiles(lambda a: a, src, src, overwrite=True)
    np.testing.assert_array_equal(stored(src)[..., 0, 0, 0], coded((20, 20), "u2"))


def test_memory_bounds_how_many_tiles_are_in_work(tmp_path):
    at_work, most, lock = [0], [0], threading.Lock()
    enough = threading.Event()

    def f(tile):
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        enough.wait(0.005)
        with lock:
            at_work[0] -= 1
        return tile

    image = np.zeros((2048, 2048), "u2")
    out = tmp_path / "o.ome.tif"
    map_tiles(f, image, out, tile=512, tile_size=512, workers=12, memory=4 << 20, pyramid=False)
    assert most[0] <= 4  # half a MiB each; convert leaves half of the memory to the writer


# ------------------------------------------------------------------ reduce


NUMPY = {"max": np.max, "min": np.min, "mean": np.mean, "sum": np.sum, "std": np.std}


@pytest.mark.parametrize("how", [*NUMPY, "median"])
@pytest.mark.parametrize("axis", ["z", "t", "yx", "zct", "x", "yxzct"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_joining_is_what_numpy_does(how, axis, dtype):
    image = coded((37, 21, 5, 2, 3), dtype)
    f = NUMPY.get(how, np.median)
    axes = tuple("yxzct".index(a) for a in axis)
    wanted = f(image.astype("f8"), axis=axes)
    found = reduce(image, how, axis=axis, dims="YXZCT", workers=2)
    assert found.shape == wanted.shape
    if how in ("max", "min"):
        assert found.dtype == image.dtype
        np.testing.assert_array_equal(found, wanted)
    elif how == "sum":
        assert found.dtype == {"u1": "u4", "i2": "i4", "f4": "f8"}[dtype]
        np.testing.assert_array_equal(found, wanted)
    elif how == "std" or dtype == "f4":
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    else:
        assert found.dtype == image.dtype
        np.testing.assert_array_equal(found, np.rint(wanted))


def test_blocks_are_joined_as_one(monkeypatch, tmp_path):
    from bioio_tk.inputs import reduced

    image = coded((60, 50, 11), "u2")
    src = make(tmp_path / "in.ome.tif", image)
    monkeypatch.setattr(reduced, "_BLOCK", 60 * 50 * 2 * 3)  # a few planes at a time
    monkeypatch.setattr(reduced, "_WHOLE", 4000)
    read, sizes = reduced.ReducedSource.read, []

    def noted(self, box, workers=1):
        pixels = read(self, box, workers)
        sizes.append(pixels.nbytes)
        return pixels

    monkeypatch.setattr(reduced.ReducedSource, "read", noted)
    for how, f in {**NUMPY, "median": np.median}.items():
        for axis in ("z", "y", "yxz"):
            axes = tuple("yxz".index(a) for a in axis)
            wanted = f(image.astype("f8"), axis=axes)
            sizes.clear()
            found = np.squeeze(reduce(src, how, axis=axis, dtype="f8"))
            if how != "median":
                assert max(sizes) <= 60 * 50 * 2 * 3
            elif axis == "z":
                assert max(sizes) <= 4000
            np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=f"{how} {axis}")


def test_rounding_and_types_of_means():
    image = np.array([[[1, 2]], [[2, 3]], [[1, 3]], [[2, 6]]], "u1")  # T, Y, X
    assert reduce(image, "mean", axis="t").tolist() == [[2, 4]]  # 1.5 and 3.5: half to even
    assert reduce(image, "mean", axis="t", dtype="f4").tolist() == [[1.5, 3.5]]
    assert reduce(image > 1, "mean", axis="t").tolist() == [[0.5, 1.0]]
    assert reduce(image, "median", axis="t", dtype="f4").tolist() == [[1.5, 3.0]]
    assert reduce(image > 1, "max", axis="t").dtype == bool
    with pytest.raises(PixelTypeError, match="560"):
        reduce(image * 40, "sum", axis="t", dtype="u1")
    clipped = reduce(image * 40, "sum", axis="t", dtype="u1", cast="clip")
    assert clipped.tolist() == [[240, 255]]
    big = np.full((3, 1, 1), 2**63 + 2**20, "u8")
    assert reduce(big, "sum", axis="t")[0, 0] == 3.0 * (2**63 + 2**20)
    many = np.full((7, 100, 100), 65535, "u2")
    assert reduce(many, "sum", axis="tyx").item() == 70000 * 65535
    assert reduce(np.full((3, 1, 2), 1e38, "f4"), "mean", axis="t").tolist() == [
        [np.float32(1e38)] * 2
    ]


def test_a_spread_of_large_numbers_is_exact():
    image = (1e9 + coded((8, 8, 40), "f8") % 3).transpose(2, 0, 1)
    np.testing.assert_allclose(reduce(image, "std", axis="t"), image.std(axis=0), rtol=1e-9)


def test_a_function_of_ones_own(tmp_path):
    image = coded(SHAPE, "u2")
    src = make(tmp_path / "in.ome.tif", image)

    def f(pixels, axis):
        return np.percentile(pixels, 30, axis=axis)

    out = reduce(src, f, tmp_path / "o.ome.tif", axis="zt")
    np.testing.assert_allclose(
        stored(out), np.percentile(image, 30, axis=(2, 4), keepdims=True), rtol=1e-12
    )
    with pytest.raises(BioIOError, match="axis=2: KeyError") as caught:
        reduce(src, lambda pixels, axis: {}[axis])
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(SpecError, match="must return"):
        reduce(src, lambda pixels, axis: pixels)


def test_a_projection_in_a_file_keeps_its_metadata(tmp_path):
    image = coded(SHAPE, "u2")
    metadata = {"PhysicalSizeX": 0.5, "PhysicalSizeZ": 2.0, "Channel": {"Name": ["a", "b"]}}
    src = make(tmp_path / "in.ome.tif", image, **metadata)
    out = reduce(src, "max", tmp_path / "z.ome.tif", axis="z", pyramid=2)
    np.testing.assert_array_equal(stored(out), image.max(axis=2, keepdims=True))
    with BioReader(out) as br:
        assert br.shape == (90, 70, 1, 2, 2)
        assert (br.channel_names, br.ps_x, br.levels) == (["a", "b"], (0.5, "µm"), 2)
    out = reduce(src, "sum", tmp_path / "c.ome.zarr", axis="c", select="z=1")
    found = zarr.open_group(out, mode="r")["0"][:]
    np.testing.assert_array_equal(found[:, 0, 0], image[:, :, 1].sum(axis=2).transpose(2, 0, 1))
    with BioReader(out) as br:
        assert br.shape == (90, 70, 1, 1, 2)
        assert br.channel_names == ["a + b"]


@pytest.mark.parametrize(
    ("how", "options", "text"),
    [
        ("mode", {}, "how='mode': choose one of max"),
        ("max", {"axis": "q"}, "axis='q'"),
        ("max", {"axis": ""}, "axis=''"),
        ("max", {"axis": "zz"}, "axis='zz'"),
        ("max", {"axis": 2}, "axis=2"),
    ],
)
def test_joins_that_make_no_sense(how, options, text):
    with pytest.raises(SpecError, match=text):
        reduce(coded((5, 6)), how, **options)


def test_complex_pixels_have_no_median():
    with pytest.raises(SpecError, match="complex64"):
        reduce(coded((5, 6), "c8"), "median", axis="y")


# ------------------------------------------------------------------ assemble


PLACES = [("a.tif", -3, 5), ("b.tif", 20, 30), ("c.tif", 41, -7), ("a.tif", 60, 44)]


@pytest.fixture
def files(tmp_path):
    """Three overlapping files of different sizes; their pixels by name."""
    sizes = {"a.tif": (40, 33), "b.tif": (30, 45), "c.tif": (37, 51)}
    images = {n: coded(size, "u2", seed=k) for k, (n, size) in enumerate(sizes.items())}
    for name, image in images.items():
        make(tmp_path / name, image, tile=(16, 16))
    return images


def mosaic(images, places, blend, fill):
    """Put images on a canvas pixel by pixel, in order."""
    top, left = min(y for _, y, _ in places), min(x for _, _, x in places)
    bottom = max(y + images[n].shape[0] for n, y, _ in places)
    right = max(x + images[n].shape[1] for n, _, x in places)
    out = np.full((bottom - top, right - left), fill, "u2")
    for y, x in np.ndindex(out.shape):
        seen = [
            int(images[n][y + top - b, x + left - r])
            for n, b, r in places
            if 0 <= y + top - b < images[n].shape[0] and 0 <= x + left - r < images[n].shape[1]
        ]
        if seen:
            out[y, x] = {
                "last": lambda s: s[-1],
                "first": lambda s: s[0],
                "max": max,
                "min": min,
                "mean": lambda s: round(sum(s) / len(s)),
            }[blend](seen)
    return out


@pytest.mark.parametrize("blend", ["last", "first", "max", "min", "mean"])
@pytest.mark.parametrize("tile", [16, 1024])
def test_a_mosaic_is_what_a_canvas_shows(tmp_path, files, blend, tile, monkeypatch):
    from bioio_tk.inputs import mosaic as room

    monkeypatch.setattr(room, "_TILE", tile)
    monkeypatch.setattr(room, "_LARGEST", 10000)
    found = assemble(PLACES, folder=tmp_path, blend=blend, fill=9, workers=3)
    np.testing.assert_array_equal(found, mosaic(files, PLACES, blend, 9))


def test_a_stitching_vector_as_mist_writes_it(tmp_path, files):
    vector = tmp_path / "img-global-positions-1.txt"
    vector.write_text(
        "".join(
            f"file: {n}; corr: 0.93; position: ({x}, {y}); grid: ({k}, 0);\n"
            for k, (n, y, x) in enumerate(PLACES)
        )
    )
    out = assemble(vector, tmp_path / "m.ome.tif", tile_size=32)
    assert out == tmp_path / "m.ome.tif"
    np.testing.assert_array_equal(stored(out)[..., 0, 0, 0], mosaic(files, PLACES, "last", 0))


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_of_positions(tmp_path, files, mark):
    table = tmp_path / "places.csv"
    rows = [("X", "Name", "y", "note"), *((x, n, float(y), "") for n, y, x in PLACES)]
    table.write_text("\n".join(mark.join(map(str, row)) for row in rows) + "\n\n")
    np.testing.assert_array_equal(assemble(str(table)), mosaic(files, PLACES, "last", 0))


def test_positions_as_dicts_and_paths(tmp_path, files):
    places = [{"file": tmp_path / n, "y": y, "x": x, "grid": 0} for n, y, x in PLACES]
    np.testing.assert_array_equal(assemble(places), mosaic(files, PLACES, "last", 0))


def test_files_with_many_planes(tmp_path):
    image = coded((50, 60, 2, 3, 2), "u1")
    make(tmp_path / "l.ome.tif", image[:, :35], Channel={"Name": ["a", "b", "c"]})
    make(tmp_path / "r.ome.tif", image[:, 25:])
    places = [(tmp_path / "l.ome.tif", 100, 100), (tmp_path / "r.ome.tif", 100, 125)]
    out = assemble(places, tmp_path / "m.ome.zarr", chunks=20)
    found = zarr.open_group(out, mode="r")["0"][:].transpose(3, 4, 2, 1, 0)
    np.testing.assert_array_equal(found, image)
    with BioReader(out) as br:
        assert br.channel_names == ["a", "b", "c"]


def test_files_that_do_not_fit_together_are_named(tmp_path, files):
    make(tmp_path / "d.tif", coded((20, 20), "u1"))
    with pytest.raises(SpecError, match=r"d\.tif.*uint8.*a\.tif.*uint16"):
        assemble([*PLACES, ("d.tif", 0, 0)], tmp_path / "m.ome.tif", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"e\.tif"):
        assemble([*PLACES, ("e.tif", 0, 0)], tmp_path / "m.ome.tif", folder=tmp_path)
    nothing_left(tmp_path, "a.tif", "b.tif", "c.tif", "d.tif")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file: a.tif; position: (0, 0);\nfile: b.tif; oops\n", "line 2"),
        ("file: a.tif; position: (0, north);\n", "line 1: y='north'"),
        ("file,x\na.tif,0\n", "no column 'y'"),
        ("file,y,x\na.tif,0\n", "line 2.*fewer columns"),
        ("file,y,x\na.tif,0,nan\n", "line 2: x='nan'"),
        ("file,y,x\n", "no positions"),
        ("", "no column 'file'"),
    ],
)
def test_positions_that_cannot_be_read(tmp_path, files, text, words):
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises((SpecError, FormatError), match=words):
        assemble(tmp_path / "v.txt", tmp_path / "m.ome.tif")


@pytest.mark.parametrize(
    ("positions", "options", "words"),
    [
        ([("a.tif", 0)], {}, "entry 0"),
        ([("a.tif", 0, "q")], {}, "entry 0: x='q'"),
        ([(7, 0, 0)], {}, "entry 0: 7 is no file"),
        ([], {}, "no positions"),
        (7, {}, "positions 7"),
        (PLACES, {"blend": "add"}, "blend='add'"),
        (PLACES, {"fill": -1}, "-1"),
    ],
)
def test_mosaics_that_make_no_sense(tmp_path, files, positions, options, words):
    with pytest.raises(SpecError, match=words):
        assemble(positions, tmp_path / "m.ome.tif", folder=tmp_path, **options)
    nothing_left(tmp_path, *files)


# ------------------------------------------------------------------ stack


def test_files_one_after_the_other(tmp_path):
    image = coded((30, 20, 4), "u2")
    for z in range(4):
        make(tmp_path / f"z{z}.tif", image[..., z])
    out = stack([tmp_path / f"z{z}.tif" for z in range(4)], tmp_path / "o.ome.tif", axis="z")
    assert isinstance(out, Path)
    np.testing.assert_array_equal(stored(out)[..., 0, 0], image)


# ------------------------------------------------------------------ real files

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


STACKS = [
    "ome-tiff/multi-channel-z-series.ome.tif",
    "ome-tiff/multifile_master/multifile-Z1.ome.tiff",
    "ome-tiff/z-series.ome.tif",
    "imagej-tiff/mri-stack-calibrated.tif",
    "gen/tifffile/ome_XYTCZ.ome.tif",
    "gen/bioformats/plain.ome.tif",
]


@pytest.mark.parametrize("name", STACKS)
def test_real_stacks(tmp_path, name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"../shared/data has no {name}")
    image = stored(path)
    out = reduce(path, "max", tmp_path / "o.ome.tif", axis="z")
    np.testing.assert_array_equal(stored(out), image.max(axis=2, keepdims=True))
    found = map_tiles(lambda a: a, path, tile=100, overlap=5, axes="ZYX")
    np.testing.assert_array_equal(found.reshape(image.shape), image)


# ------------------------------------------------------------------ a process that is killed

SLOW = """
import sys, time
import numpy as np
from bioio_tk import map_tiles

def slow(tile):
    print("tile", flush=True)
    time.sleep(0.05)
    return tile + 1

image = np.zeros((640, 640), "uint16")
map_tiles(slow, image, sys.argv[1], tile=32, tile_size=32, workers=2, exists="replace")
"""


@pytest.mark.parametrize("ending", [".ome.tif", ".ome.zarr"])
def test_a_killed_process_leaves_nothing_at_the_name_and_no_obstacle(tmp_path, ending):
    out = tmp_path / f"out{ending}"
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(out)], stdout=subprocess.PIPE)
    try:
        for _ in range(20):
            assert child.stdout.readline() == b"tile\n"
    finally:
        child.kill()
        child.wait(30)
        child.stdout.close()
    assert not out.exists()
    map_tiles(lambda a: a + 1, np.zeros((640, 640), "u2"), out, tile=32, exists="replace")
    with BioReader(out) as br:
        assert (br[:] == 1).all()
    nothing_left(tmp_path, out.name)
