"""Any source, any selection, any target: what comes out is what NumPy takes of what went in.

Sources are written, and targets read, by tifffile, zarr, h5py and NumPy.
"""

from __future__ import annotations

import itertools

import dask.array as da
import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bioio_tk import BioReader, convert
from bioio_tk.errors import BioIOError, SpecError, TargetExistsError
from bioio_tk.jobs import options

AXES = "TCZYX"
OME = {"metadata": {"axes": AXES}, "ome": True, "photometric": "minisblack"}
DTYPES = ("u1", "u2", "i2", "i4", "f4", "f8")
_numbers = itertools.count()


def pixels_of(shape, dtype, seed):
    """Return random pixels, TCZYX; of floats whole numbers, so that any format holds them."""
    values = np.random.default_rng(seed).integers(0, 120, shape)
    return values.astype(dtype)


# ------------------------------------------------------------------ sources, all given as TCZYX


def from_array(_, image, draw):
    how = draw(st.sampled_from(["C", "F", "big endian", "flipped", "read only", "memmap"]))
    if how == "big endian":
        return image.astype(image.dtype.newbyteorder(">")), {"dims": AXES}
    if how == "flipped":
        return image[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1], {"dims": AXES}
    if how == "F":
        return np.asfortranarray(image), {"dims": AXES}
    image = image.copy()
    image.flags.writeable = how != "read only"
    return image, {"dims": AXES}


def from_moved_axes(_, image, draw):
    order = draw(st.permutations(range(5)))
    return image.transpose(order), {"dims": "".join(AXES[k] for k in order)}


def from_dask(_, image, draw):
    chunks = tuple(draw(st.integers(1, max(1, n))) for n in image.shape)
    return da.from_array(image, chunks=chunks), {"dims": AXES}


def from_zarr_array(path, image, draw):
    chunks = tuple(draw(st.integers(1, max(1, n))) for n in image.shape)
    array = zarr.create_array(path / "in.zarr", shape=image.shape, dtype=image.dtype, chunks=chunks)
    array[...] = image
    return array, {"dims": AXES}


def from_zarr_folder(path, image, draw):
    from_zarr_array(path, image, draw)
    return path / "in.zarr", {"dims": AXES}


def from_h5(path, image, draw):
    chunks = draw(st.sampled_from([None, True, tuple(max(1, n // 2) for n in image.shape)]))
    packed = draw(st.booleans()) and chunks is not None
    with h5py.File(path / "in.h5", "w") as file:
        data = file.create_dataset(
            "some/where",
            data=image.astype(image.dtype.newbyteorder(draw(st.sampled_from("<>")))),
            chunks=chunks,
            compression="gzip" if packed else None,
            shuffle=packed and draw(st.booleans()),
        )
        data.attrs["dims"] = AXES
    return path / "in.h5", {}


def from_npy(path, image, draw):
    if draw(st.booleans()):
        image = np.asfortranarray(image)
    order = draw(st.sampled_from("<>"))
    np.save(path / "in.npy", image.astype(image.dtype.newbyteorder(order)))
    return path / "in.npy", {"dims": AXES}


def from_tiff(path, image, draw):
    how = draw(
        st.sampled_from(
            [
                {},
                {"rowsperstrip": 3},
                {"rowsperstrip": 5, "compression": "zlib"},
                {"tile": (16, 32)},
                {"tile": (32, 16), "compression": "zlib", "predictor": True},
                {"compression": "lzw", "rowsperstrip": 1},
            ]
        )
    )
    order, big = draw(st.sampled_from("<>")), draw(st.booleans())
    kind = {"byteorder": order, "bigtiff": big}
    tifffile.imwrite(path / "in.ome.tif", image, **OME, **kind, **how)
    return path / "in.ome.tif", {}


def from_rgb(path, image, draw):
    if image.shape[1] != 3 or image.dtype != np.uint8:  # all that ImageJ takes
        return from_tiff(path, image, draw)
    order, planar = draw(st.sampled_from([("TZYXS", "contig"), ("TZSYX", "separate")]))
    pixels = image.transpose([AXES.index(axis.replace("S", "C")) for axis in order])
    how = draw(st.sampled_from([{}, {"tile": (16, 16), "compression": "zlib"}]))
    kind = {"metadata": {"axes": order}, "photometric": "rgb", "planarconfig": planar}
    tifffile.imwrite(path / "in.ome.tif", pixels, ome=True, **kind, **how)
    return path / "in.ome.tif", {}


def from_planes(_, image, __):
    planes = (plane for plane in image.reshape(-1, *image.shape[-2:]))
    return planes, {"dims": AXES, "shape": image.shape}


def from_tiles(_, image, draw):
    cut = [max(1, draw(st.integers(n // 2, n))) for n in image.shape]
    spans = [
        [slice(a, min(a + k, n)) for a in range(0, n, k)]
        for n, k in zip(image.shape, cut, strict=True)
    ]
    tiles = [(key, image[key]) for key in itertools.product(*spans)]
    if draw(st.booleans()):  # the first one says how large the others are
        tiles[1:] = reversed(tiles[1:])
    return iter(tiles), {"dims": AXES, "shape": image.shape}


def from_stack(path, image, draw):
    axis = draw(st.sampled_from("TCZ"))
    parts = []
    for n, part in enumerate(np.split(image, image.shape[AXES.index(axis)], AXES.index(axis))):
        tifffile.imwrite(path / f"in{n}.ome.tif", part, **OME)
        parts.append(path / f"in{n}.ome.tif" if draw(st.booleans()) else part)
    return parts, {"dims": AXES, "stack": axis.lower()}


SOURCES = [
    *(from_array, from_moved_axes, from_dask, from_zarr_array, from_zarr_folder, from_h5),
    *(from_npy, from_tiff, from_rgb, from_planes, from_tiles, from_stack),
]
ONCE = (from_planes, from_tiles)

# ------------------------------------------------------------------ targets, read as TCZYX


def read_tiff(path, shape):
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes = series.get_axes(squeeze=False)
        pixels = series.asarray(squeeze=False)
    order = [axes.index(a) for a in "TCSZYX" if a in axes]
    order += sorted(set(range(pixels.ndim)) - set(order))
    return pixels.transpose(order).reshape(shape)  # axes that are not named are 1 long


def read_zarr(path, shape):
    return zarr.open_group(path, mode="r")["0"][...]


def read_bare(path, shape):
    return zarr.open_array(path, mode="r")[...]


def read_h5(path, shape):
    with h5py.File(path, "r") as file:
        pixels = file["mov"][...]
    return pixels[:, None] if pixels.ndim == 4 else pixels


def read_npy(path, shape):
    return np.load(path).reshape(shape)


def read_bin(path, shape):
    t, c, z, y, x = shape
    out = np.empty(shape, "i2")
    for plane, channel in np.ndindex(z, c):
        folder = path if z == 1 else path / f"plane{plane}"
        name = ("data_raw.bin", "data_chan2.bin")[channel]
        out[:, channel, plane] = np.fromfile(folder / name, "<i2").reshape(t, y, x)
    return out


TARGETS = {
    "ome.tif": (".ome.tif", {}, read_tiff),
    "packed ome.tif": (".ome.tif", {"compression": "zstd", "tile_size": 16}, read_tiff),
    "small tiles": (".ome.tif", {"compression": "none", "tile_size": (16, 32)}, read_tiff),
    "imagej": (".tif", {"ome": False, "compression": "none"}, read_tiff),
    "packed imagej": (".tif", {"ome": False, "compression": "zlib", "tile_size": 16}, read_tiff),
    "zarr": (".ome.zarr", {"tile_size": 16}, read_zarr),
    "zarr 0.4": (".ome.zarr", {"ngff_version": "0.4", "tile_size": 16}, read_zarr),
    "deep chunks": (".ome.zarr", {"chunks": (16, 16, 3, 1, 2), "shards": False}, read_zarr),
    "shards": (".ome.zarr", {"chunks": (8, 8, 2, 1, 1), "shards": (32, 16, 4, 2, 2)}, read_zarr),
    "bare zarr": (".zarr", {"ome": False, "tile_size": 16}, read_bare),
    "h5": (".h5", {"tile_size": 16}, read_h5),
    "h5 chunks": (".h5", {"chunks": (9, 7, 2, 1, 2), "compression": "none"}, read_h5),
    "npy": (".npy", {"tile_size": 16}, read_npy),
    "bin": (".suite2p", {"tile_size": 16}, read_bin),
}


# ------------------------------------------------------------------ selections


@st.composite
def items(draw, size):
    """What is selected of an axis: as `convert` takes it."""
    place = st.integers(-size, size - 1)
    kind = draw(st.sampled_from(["all", "all", "slice", "list", "number"]))
    if kind == "all":
        return slice(None)
    if kind == "number":
        return draw(place)
    if kind == "list":
        return draw(st.lists(place, min_size=1, max_size=size + 1))
    step = draw(st.sampled_from([None, 1, 2, 3, -1, -2]))
    edge = st.one_of(st.none(), st.integers(-size - 1, size + 1))
    return slice(draw(edge), draw(edge), step)


def taken(image, select):
    """Return what NumPy takes; every axis stays."""
    for axis, item in select.items():
        part = [item] if isinstance(item, int) else item
        image = image[(slice(None),) * AXES.index(axis) + (part,)]
    return image


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch):
    """Let a budget be smaller than any image here, so that it is copied in many windows."""
    monkeypatch.setattr(options, "_LEAST", 1)


@settings(suppress_health_check=list(HealthCheck), max_examples=3 * settings().max_examples)
@given(data=st.data())
def test_what_is_selected_arrives(data, tmp_path_factory):
    draw = data.draw
    path = tmp_path_factory.mktemp(f"any{next(_numbers)}")
    shape = tuple(draw(st.integers(1, most)) for most in (3, 3, 4, 45, 45))
    image = pixels_of(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
    make = draw(st.sampled_from(SOURCES))
    src, more = make(path, image, draw)
    select = {axis: draw(items(n)) for axis, n in zip(AXES, shape, strict=True)}
    name = draw(st.sampled_from(sorted(TARGETS)))
    ending, how, read = TARGETS[name]
    memory = draw(st.sampled_from([None, 1, 20_000]))
    workers = draw(st.integers(1, 4))
    expected = taken(image, select)
    dst = path / f"out{ending}"
    told = []

    def run():
        return convert(
            src,
            dst,
            select=select,
            memory=memory,
            workers=workers,
            progress=lambda *at: told.append(at),
            **more,
            **how,
        )

    if not expected.size:
        with pytest.raises(BioIOError, match="selects nothing"):
            run()
        assert not dst.exists()
        return
    if name == "bin" and (expected.shape[1] > 2 or image.dtype.kind == "f"):
        with pytest.raises(BioIOError, match="Suite2p"):
            run()
        assert not dst.exists()
        return
    report = run()
    found = read(dst, expected.shape)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == (np.int16 if name == "bin" else image.dtype)
    assert told[-1] == (expected.nbytes, expected.nbytes)
    assert report.dtype == image.dtype.name
    assert sorted(p.name for p in path.iterdir() if p.name.startswith("out")) == [dst.name]


def every_level(path):
    """Return the pixels of each level of an OME-TIFF or OME-Zarr."""
    if path.is_dir():
        group = zarr.open_group(path, mode="r")
        return [group[name][...] for name in sorted(group.array_keys())]
    with tifffile.TiffFile(path) as file:
        return [level.asarray() for level in file.series[0].levels]


class Stopped(BaseException):
    """Ends a conversion as Ctrl-C does."""


@settings(suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_stopped_anywhere_and_resumed_is_the_same(data, tmp_path_factory):
    draw = data.draw
    path = tmp_path_factory.mktemp(f"any{next(_numbers)}")
    shape = tuple(draw(st.integers(1, most)) for most in (2, 2, 4, 70, 70))
    image = pixels_of(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
    image *= draw(st.sampled_from([0, 1, 1, 1]))
    tile = draw(st.sampled_from([(16, 16), (32, 64), (64, 16)]))
    tifffile.imwrite(path / "in.ome.tif", image, tile=tile, **OME)
    select = {axis: draw(items(n)) for axis, n in zip(AXES, shape, strict=True)}
    expected = taken(image, select)
    assume(expected.size)
    name = draw(st.sampled_from(["zarr", "zarr 0.4", "deep chunks", "shards", "small tiles"]))
    ending, how, read = TARGETS[name]
    deep = ending == ".ome.zarr" and draw(st.booleans())
    how = {**how, "levels": draw(st.integers(1, 3)), "pyramid_z": deep, "select": select}
    source, dst, whole = path / "in.ome.tif", path / f"out{ending}", path / f"whole{ending}"

    for _ in range(draw(st.integers(1, 3))):
        share = draw(st.floats(0, 1))

        def stop(done, total, share=share):
            if done >= share * total:
                raise Stopped

        memory, workers = draw(st.sampled_from([1, 30_000])), draw(st.integers(1, 3))
        stopped = {"progress": stop, "memory": memory, "workers": workers}
        with pytest.raises(Stopped):
            convert(source, dst, resume=True, **stopped, **how)
        assert not dst.exists()
    report = convert(source, dst, resume=True, workers=draw(st.integers(1, 3)), **how)
    once = convert(source, whole, **how)
    np.testing.assert_array_equal(read(dst, expected.shape), expected)
    assert report.checksums == once.checksums
    for found, wanted in zip(every_level(dst), every_level(whole), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert sorted(p.name for p in path.iterdir()) == sorted(["in.ome.tif", dst.name, whole.name])


@pytest.mark.parametrize("tenths", [3, 5, 8])
def test_smaller_levels_have_what_was_waiting_for_them_when_it_was_stopped(tmp_path, tenths):
    image = pixels_of((70, 70), "u2", 1)
    tifffile.imwrite(tmp_path / "in.ome.tif", image, tile=(16, 16), photometric="minisblack")
    convert(tmp_path / "in.ome.tif", tmp_path / "whole.ome.zarr", tile_size=16, levels=3)

    def stop(done, total):
        if done >= tenths * total / 10:
            raise Stopped

    more = {"resume": True, "tile_size": 16, "levels": 3, "memory": 1, "workers": 1}
    with pytest.raises(Stopped):
        convert(tmp_path / "in.ome.tif", tmp_path / "out.ome.zarr", progress=stop, **more)
    convert(tmp_path / "in.ome.tif", tmp_path / "out.ome.zarr", **more)
    pairs = zip(*(every_level(tmp_path / f"{n}.ome.zarr") for n in ("out", "whole")), strict=True)
    for found, wanted in pairs:
        np.testing.assert_array_equal(found, wanted)


@settings(suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_jobs_in_any_order_make_what_one_makes(data, tmp_path_factory):
    draw = data.draw
    path = tmp_path_factory.mktemp(f"any{next(_numbers)}")
    shape = tuple(draw(st.integers(1, most)) for most in (2, 2, 4, 70, 70))
    image = pixels_of(shape, draw(st.sampled_from(DTYPES[1:])), draw(st.integers(0, 99)))
    np.save(path / "in.npy", image)
    select = {axis: draw(items(n)) for axis, n in zip(AXES, shape, strict=True)}
    expected = taken(image, select)
    assume(expected.size)
    name = draw(st.sampled_from(["zarr", "zarr 0.4", "deep chunks", "shards"]))
    ending, how, read = TARGETS[name]
    how = {**how, "levels": draw(st.integers(1, 3)), "select": select, "dims": AXES}
    how["pyramid_z"] = draw(st.booleans())
    other = draw(st.sampled_from(["as it is", "clip", "exact"]))
    if other != "as it is":
        how |= {"dtype": "u1" if other == "clip" else "f8", "cast": other}
        image += 200  # more than some pixels can be
        np.save(path / "in.npy", image)
        expected = taken(image, select).clip(0, 255 if other == "clip" else None)
    source, dst, whole = path / "in.npy", path / f"out{ending}", path / f"whole{ending}"
    jobs = draw(st.integers(1, 5))
    numbers = [*draw(st.permutations(range(1, jobs + 1))), draw(st.integers(1, jobs))]
    for number in numbers:  # the last one is done again
        assert not dst.exists()
        convert(source, dst, shard_job=f"{number}/{jobs}", workers=draw(st.integers(1, 3)), **how)
    report = convert(source, dst, finalize=True, **how)
    once = convert(source, whole, **how)
    np.testing.assert_array_equal(read(dst, expected.shape), expected)
    assert report.checksums == once.checksums
    for found, wanted in zip(every_level(dst), every_level(whole), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert sorted(p.name for p in path.iterdir()) == sorted(["in.npy", dst.name, whole.name])


# ------------------------------------------------------------------ what is the same, and what not


def skipped(src, dst, **more):
    """Return whether a second conversion takes what is there for what it would make."""
    try:
        return convert(src, dst, exists="skip", **more).status == "skipped"
    except TargetExistsError:
        return False


@pytest.fixture
def planes(tmp_path):
    """Four planes in files ``g_T_C.tif``, two of them in one file, and all in ``all.npy``."""
    image = pixels_of((2, 2, 1, 20, 30), "u2", 1)
    for t, c in np.ndindex(2, 2):
        tifffile.imwrite(tmp_path / f"g_{t}_{c}.tif", image[t, c, 0])
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as writer:
        writer.write(image[0, 0, 0])
        writer.write(image[1, 1, 0])
    np.save(tmp_path / "all.npy", image)
    return tmp_path


def test_a_part_of_a_mapped_file_is_not_taken_for_another_one(planes):
    mapped = np.load(planes / "all.npy", mmap_mode="r")
    assert not skipped(mapped[0], planes / "out.npy", dims="CZYX")
    assert not skipped(mapped[1], planes / "out.npy", dims="CZYX")


def test_an_array_beside_files_is_not_known_by_the_files(planes):
    array = np.zeros((20, 30), "u2")
    assert not skipped([planes / "g_0_0.tif", array], planes / "out.npy")
    assert not skipped([planes / "g_0_0.tif", array + 1], planes / "out.npy")


def test_the_same_files_in_another_order_of_axes_are_another_image(planes):
    one, other = (str(planes / name) for name in ("g_{t:d}_{c:d}.tif", "g_{c:d}_{t:d}.tif"))
    assert not skipped(one, planes / "out.npy")
    assert skipped(one, planes / "out.npy")
    assert not skipped(other, planes / "out.npy")


def test_another_series_of_stacked_files_is_another_image(planes):
    for series, same in ((0, False), (0, True), (1, False)):
        assert skipped([planes / "two.ome.tif"], planes / "out.npy", series=series) is same


def test_a_stack_of_readers_is_not_written_over_its_own_files(planes):
    path = planes / "g_0_0.tif"
    with BioReader(path) as reader, pytest.raises(SpecError, match="is the source itself"):
        convert([reader], path, overwrite=True)
    assert tifffile.imread(planes / "g_0_0.tif").shape == (20, 30)


def test_levels_that_are_kept_are_in_the_plan_and_no_work_for_several(tmp_path):
    image = pixels_of((1, 1, 1, 40, 60), "u2", 1)
    with tifffile.TiffWriter(tmp_path / "in.ome.tif") as writer:
        writer.write(image[0, 0, 0], subifds=1, tile=(16, 16))
        writer.write(image[0, 0, 0, :20, :30], subfiletype=1, tile=(16, 16))
    more = {"levels": "keep", "exists": "error"}
    report = convert(tmp_path / "in.ome.tif", tmp_path / "out.ome.zarr", dry_run=True, **more)
    assert [tuple(r["shape"][:2]) for r in report.plan["resolutions"]] == [(40, 60), (20, 30)]
    with pytest.raises(SpecError, match="which one process does"):
        convert(tmp_path / "in.ome.tif", tmp_path / "out.ome.zarr", shard_job="1/2", **more)
    assert [p.name for p in tmp_path.iterdir()] == ["in.ome.tif"]
