"""What TiffSink writes, as outside readers (tifffile, Pillow) see it."""

from __future__ import annotations

import io
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bioio_tk.backends import tiff_write
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._tiff_codecs import CODECS
from bioio_tk.backends._tiff_layout import resolution
from bioio_tk.backends.base import StoreOptions
from bioio_tk.backends.tiff_write import TiffSink, _Space
from bioio_tk.core.spec import Address, ImageSpec, Level, PhysicalSize
from bioio_tk.errors import (
    BioIOError,
    ClosedError,
    DamagedFileError,
    PixelTypeError,
    SpecError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float16", "float32", "float64")
DTYPES = ("bool", *INTEGERS, *FLOATS, "complex64", "complex128")
OF_BYTES = ("none", "deflate", "zstd", "lzw", "packbits", "lzma")
PREDICTING = ("deflate", "zstd", "lzw", "lzma")


@pytest.fixture(autouse=True)
def plain_xml(monkeypatch: pytest.MonkeyPatch) -> None:
    """OME-XML has its own tests: here a text that costs nothing stands in for it."""
    room = types.ModuleType("bioio_tk.meta.ome")
    room.document = lambda images, *, metadata=None, tiff=False: "<OME>µ</OME>"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bioio_tk.meta.ome", room)


def make_spec(
    dtype: str = "uint16",
    shape: tuple[int, ...] = (50, 70, 1, 1, 1),
    tile: tuple[int, int] = (32, 48),
    *,
    samples: int = 1,
    levels: int = 1,
    size: PhysicalSize = PhysicalSize(),  # noqa: B008
) -> ImageSpec:
    all_levels = []
    for _ in range(levels):
        all_levels.append(Level(shape, (*tile, 1, samples, 1)))  # type: ignore[arg-type]
        shape = (-(-shape[0] // 2), -(-shape[1] // 2), *shape[2:])
    return ImageSpec(np.dtype(dtype), tuple(all_levels), samples=samples, physical_size=size)


def pixels_of(spec: ImageSpec, level: int = 0, seed: int = 0) -> NDArray[Any]:
    """Pixels that differ everywhere, with the extremes of the type among them."""
    rng = np.random.default_rng(seed)
    y, x, z, c, t = spec.levels[level].shape
    shape, dtype = (t, c, z, y, x), spec.dtype
    if dtype.kind == "b":
        out = rng.integers(0, 2, shape).astype(bool)
    elif dtype.kind in "ui":
        info = np.iinfo(dtype.name)
        out = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        out[..., 0, :2] = [info.min, info.max][:x]
    else:
        out = rng.normal(0, 1000, shape).astype(dtype)
        out[..., 0, :4] = [0.0, -0.0, np.inf, -np.inf][:x]
        if dtype.kind == "c":
            out.imag = rng.normal(0, 10, shape)
    return out.transpose(3, 4, 2, 1, 0)


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def addresses(spec: ImageSpec, image: int = 0) -> Iterator[Address]:
    for number, level in enumerate(spec.levels):
        for key in level.grid.keys():  # noqa: SIM118
            yield Address(image, number, key)


def store(sink: TiffSink, at: Address, pixels: NDArray[Any]) -> None:
    region = sink.images[at.image].levels[at.level].grid.region(at.key)
    sink.store_tile(at, sink.encode_tile(at, pixels[region.slices()]))


def write(path: Path, *specs: ImageSpec, seed: int = 0, **options: Any) -> list[list[NDArray[Any]]]:
    """Write all of `specs`; check load_tile on the way; return the pixels by image and level."""
    sink = TiffSink(empty(path), specs, StoreOptions(**options))
    every = [[pixels_of(s, i, seed) for i in range(len(s.levels))] for s in specs]
    for image, spec in enumerate(specs):
        for at in addresses(spec, image):
            assert sink.load_tile(at) is None
            store(sink, at, every[image][at.level])
        for at in addresses(spec, image):
            expected = every[image][at.level][spec.levels[at.level].grid.region(at.key).slices()]
            got = sink.load_tile(at)
            assert got is not None
            assert got.dtype == spec.dtype
            assert got.flags.writeable
            if options.get("compression") != "jpeg":
                np.testing.assert_array_equal(got, expected)
    sink.close()
    return every


def planes_of(pixels: NDArray[Any], samples: int = 1) -> Iterator[NDArray[Any]]:
    """Planes in file order: Z fastest, then channel groups, then T."""
    _, _, z, c, t = pixels.shape
    for kt, kc, kz in product(range(t), range(0, c, samples), range(z)):
        yield (
            pixels[:, :, kz, kc : kc + samples, kt].squeeze(2)
            if samples == 1
            else pixels[:, :, kz, kc : kc + samples, kt]
        )


def check(path: Path, every: list[list[NDArray[Any]]], samples: int = 1) -> None:
    """Compare the file, read with tifffile, with the pixels."""
    with tifffile.TiffFile(path) as tif:
        pages = iter(list(tif.pages))
        for levels in every:
            for plane in zip(*(planes_of(p, samples) for p in levels), strict=True):
                page = next(pages)
                below: Any = page.pages or []
                assert len(below) == len(levels) - 1
                for number, (got, expected) in enumerate(zip([page, *below], plane, strict=True)):
                    array = got.asarray()
                    # bool is stored as bytes of 0 and 1
                    assert array.dtype == (np.uint8 if expected.dtype == bool else expected.dtype)
                    np.testing.assert_array_equal(array, expected)
                    assert got.is_tiled
                    assert got.subfiletype == min(number, 1)
        assert next(pages, None) is None


def page0(path: Path) -> Any:
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        _ = [tag.value for tag in page.tags]  # type: ignore[union-attr]
        return page


# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", OF_BYTES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_reads_back_with_every_codec_of_bytes(
    tmp_path: Path, dtype: str, compression: str, big: bool
) -> None:
    path = tmp_path / "a.ome.tif"
    every = write(path, make_spec(dtype), compression=compression, extra={"bigtiff": big})
    check(path, every)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_bigtiff == big


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("compression", PREDICTING)
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_predictor(tmp_path: Path, dtype: str, compression: str, samples: int) -> None:
    path = tmp_path / "a.ome.tif"
    spec = make_spec(dtype, (50, 70, 1, samples, 1), samples=samples)
    every = write(path, spec, compression=compression, predictor=True)
    check(path, every, samples)
    assert page0(path).predictor == (3 if dtype.startswith("float") else 2)


@pytest.mark.parametrize("samples", [1, 3, 4])
@pytest.mark.parametrize("compression", ["jpeg2000", "jpegxl", "lerc"])
def test_codecs_of_images_are_lossless_unless_asked(
    tmp_path: Path, compression: str, samples: int
) -> None:
    codec = next(c for c in CODECS if c.name == compression)
    for dtype in codec.dtypes:
        path = tmp_path / f"{dtype}.ome.tif"
        spec = make_spec(dtype, (50, 70, 1, samples, 1), samples=samples)
        every = write(path, spec, compression=compression)
        check(path, every, samples)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("compression", "level", "error"), [("jpeg", 95, 12), ("jpeg2000", 40, 20), ("jpegxl", 90, 12)]
)
def test_lossy_codecs_come_close_up_to_the_ragged_edge(
    tmp_path: Path, compression: str, level: int, error: int, samples: int
) -> None:
    spec = make_spec("uint8", (50, 70, 1, samples, 1), samples=samples)
    yy, xx, cc = np.mgrid[:50, :70, :samples]
    smooth = (200 - yy - xx // 2 - 9 * cc).astype("uint8")[:, :, None, :, None]
    options = StoreOptions(compression=compression, level=level)
    sink = TiffSink(empty(tmp_path / "a.tif"), (spec,), options)
    for at in addresses(spec):
        store(sink, at, smooth)
        got = sink.load_tile(at)
        assert got is not None
        region = spec.levels[0].grid.region(at.key)
        assert got.shape == region.shape
        assert np.abs(got.astype(int) - smooth[region.slices()]).max() <= error
    sink.close()
    read = tifffile.imread(tmp_path / "a.tif").reshape(50, 70, samples).astype(int)
    assert np.abs(read - smooth[:, :, 0, :, 0]).max() <= error


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(("compression", "level"), [("jpeg", 10), ("jpeg2000", 30), ("jpegxl", 20)])
def test_a_bright_image_does_not_suffer_from_what_is_beyond_its_edge(
    tmp_path: Path, compression: str, level: int, samples: int
) -> None:
    path = tmp_path / "a.tif"
    spec = make_spec("uint8", (20, 19, 1, samples, 1), samples=samples)
    sink = TiffSink(empty(path), (spec,), StoreOptions(compression=compression, level=level))
    store(sink, Address(0, 0, (0, 0, 0, 0, 0)), np.full(spec.shape, 200, np.uint8))
    sink.close()
    assert np.abs(tifffile.imread(path).astype(int) - 200).max() <= 5


def test_packbits_packs_rows_one_by_one(tmp_path: Path) -> None:
    """TIFF 6.0, section 9: a run never goes from one row into the next."""
    spec = make_spec("uint16", (16, 16, 1, 1, 1), (16, 16))
    options = StoreOptions(compression="packbits")
    sink = TiffSink(empty(tmp_path / "a.tif"), (spec,), options)
    packed = sink.encode_tile(Address(0, 0, (0, 0, 0, 0, 0)), np.zeros(spec.shape, np.uint16))
    sink.close()
    assert bytes(packed) == bytes([257 - 32, 0]) * 16


def test_lerc_keeps_the_error_asked_for(tmp_path: Path) -> None:
    spec = make_spec("float32")
    pixels = np.random.default_rng(1).normal(size=(50, 70, 1, 1, 1)).astype("float32")
    options = StoreOptions(compression="lerc", level=0.25)  # type: ignore[arg-type]
    with_loss = TiffSink(empty(tmp_path / "a.tif"), (spec,), options)
    for at in addresses(spec):
        store(with_loss, at, pixels)
    with_loss.close()
    read = tifffile.imread(tmp_path / "a.tif")
    assert 0.01 < np.abs(read - pixels[:, :, 0, 0, 0]).max() <= 0.25


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int64"])
@pytest.mark.parametrize("samples", [2, 3, 4, 5])
def test_samples_are_interleaved(tmp_path: Path, samples: int, dtype: str) -> None:
    path = tmp_path / "a.ome.tif"
    spec = make_spec(dtype, (33, 49, 2, 2 * samples, 2), samples=samples, levels=2)
    every = write(path, spec)
    check(path, every, samples)
    page = page0(path)
    assert (page.samplesperpixel, page.planarconfig) == (samples, 1)
    assert page.photometric == (2 if samples in (3, 4) else 1)
    assert page.extrasamples == {2: (0,), 3: (), 4: (2,), 5: (0,) * 4}[samples]


@pytest.mark.parametrize("compression", ["none", "deflate", "lzw", "packbits", "jpeg"])
@pytest.mark.parametrize(
    ("dtype", "samples"), [("bool", 1), ("uint8", 1), ("uint16", 1), ("float32", 1), ("uint8", 3)]
)
def test_pillow_agrees(tmp_path: Path, dtype: str, samples: int, compression: str) -> None:
    if compression == "jpeg" and dtype != "uint8":
        pytest.skip("jpeg holds uint8 only")
    path = tmp_path / "a.tif"
    spec = make_spec(dtype, (50, 70, 2, samples, 1), samples=samples)
    every = write(path, spec, compression=compression)
    planes = list(planes_of(every[0][0], samples))
    with Image.open(path) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
        for number, plane in enumerate(planes):
            image.seek(number)
            got = np.asarray(image)
            if compression == "jpeg":
                assert abs(got.mean() - plane.mean()) < 5  # noise in, noise out
            else:
                np.testing.assert_array_equal(got, plane)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_levels_are_sub_ifds_of_every_plane(tmp_path: Path, levels: int, big: bool) -> None:
    path = tmp_path / "a.ome.tif"
    specs = (
        make_spec("uint16", (130, 200, 2, 3, 2), (16, 32), levels=levels),
        make_spec("float32", (17, 16, 3, 1, 1), (32, 16)),
        make_spec("uint8", (40, 40, 1, 6, 1), (16, 16), samples=3, levels=levels),
    )
    every = write(path, *specs, extra={"bigtiff": big}, compression="zstd")
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 12 + 3 + 2
        assert all(not page.is_reduced for page in tif.pages)  # type: ignore[union-attr]
        got = [[level.asarray() for level in [p, *(p.pages or [])]] for p in tif.pages]
    want = []
    for spec, pixels in zip(specs, every, strict=True):
        want += list(zip(*(planes_of(p, spec.samples) for p in pixels), strict=True))
    for mine, theirs in zip(got, want, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(*[st.integers(1, 70)] * 2, *[st.integers(1, 3)] * 3),
    tile=st.tuples(*[st.sampled_from([16, 32, 48])] * 2),
    samples=st.integers(1, 4),
    levels=st.integers(1, 3),
    dtype=st.sampled_from(["uint8", "int16", "float64", "complex64"]),
    compression=st.sampled_from(OF_BYTES),
    big=st.booleans(),
)
def test_any_geometry(
    tmp_path: Path,
    shape: tuple[int, ...],
    tile: tuple[int, int],
    samples: int,
    levels: int,
    dtype: str,
    compression: str,
    big: bool,
) -> None:
    path = tmp_path / "a.ome.tif"
    y, x, z, c, t = shape
    spec = make_spec(dtype, (y, x, z, c * samples, t), tile, samples=samples, levels=levels)
    every = write(path, spec, compression=compression, extra={"bigtiff": big})
    check(path, every, samples)


@pytest.mark.parametrize("level", range(13))
def test_deflate_levels(tmp_path: Path, level: int) -> None:
    path = tmp_path / "a.tif"
    check(path, write(path, make_spec(), compression="deflate", level=level))


def test_deflate_without_isal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    path = tmp_path / "a.tif"
    check(path, write(path, make_spec()))


def test_raw_tiles_are_not_copied(tmp_path: Path) -> None:
    spec = make_spec("uint16", (32, 48, 1, 1, 1))
    sink = TiffSink(empty(tmp_path / "a.tif"), (spec,), StoreOptions(compression="none"))
    pixels = pixels_of(spec)
    encoded = sink.encode_tile(Address(0, 0, (0, 0, 0, 0, 0)), pixels)
    assert np.shares_memory(np.asarray(encoded), pixels)
    sink.close()


# --- structure -----------------------------------------------------------------------------------


@pytest.mark.parametrize("big", [False, True])
def test_a_file_without_tiles_is_whole_and_reads_as_zero(tmp_path: Path, big: bool) -> None:
    path = tmp_path / "a.ome.tif"
    specs = (make_spec("uint16", (50, 70, 2, 3, 1), levels=3), make_spec("int8", (5, 5, 1, 1, 1)))
    sink = TiffSink(empty(path), specs, StoreOptions(extra={"bigtiff": big}))
    with tifffile.TiffFile(path) as tif:  # while the sink is open
        assert len(tif.pages) == 7
        for page in tif.pages:
            for level in [page, *(page.pages or [])]:
                assert not level.asarray().any()
                assert set(level.dataoffsets) | set(level.databytecounts) == {0}
        assert tif.pages[0].description == "<OME>µ</OME>"  # type: ignore[union-attr]
        assert tif.pages[0].software == tiff_write.SOFTWARE  # type: ignore[union-attr]
        assert not {270, 305} & {tag.code for tag in tif.pages[1].tags}  # type: ignore[union-attr]
    sink.close()


def test_single_tiles_in_a_sea_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    spec = make_spec("uint16", (100, 100, 2, 2, 1), (16, 16))
    pixels = pixels_of(spec)
    expected = np.zeros_like(pixels)
    sink = TiffSink(empty(path), (spec,), StoreOptions())
    for key in [(0, 0, 1, 0, 0), (6, 6, 0, 1, 0), (3, 2, 1, 1, 0)]:
        store(sink, Address(0, 0, key), pixels)
        where = spec.levels[0].grid.region(key).slices()
        expected[where] = pixels[where]
    sink.close()
    check(path, [[expected]])


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", ["none", "deflate"])
@pytest.mark.parametrize("shape", [(32, 32), (64, 32), (96, 32), (96, 20), (20, 20), (20, 90)])
@pytest.mark.parametrize("dtype", ["bool", "uint16"])
def test_planes_stored_in_part_or_in_any_order(
    tmp_path: Path, dtype: str, shape: tuple[int, int], compression: str, big: bool
) -> None:
    """Where a plane is one column of raw tiles, readers like to take it as one piece."""
    path = tmp_path / "a.tif"
    spec = make_spec(dtype, (*shape, 5, 1, 1), (32, 32))
    pixels = pixels_of(spec)
    expected = np.zeros_like(pixels)
    options = StoreOptions(compression=compression, extra={"bigtiff": big})
    sink = TiffSink(empty(path), (spec,), options)
    order = [at for at in addresses(spec) if at.key[2] == 0]
    order += [at for at in addresses(spec) if at.key[2] == 2][::-1]
    order += [at for at in addresses(spec) if at.key[2] == 4][-1:]
    for at in order:
        store(sink, at, pixels)
        where = spec.levels[0].grid.region(at.key).slices()
        expected[where] = pixels[where]
    assert sink.load_tile(Address(0, 0, (0, 0, 1, 0, 0))) is None
    sink.close()
    check(path, [[expected]])
    np.testing.assert_array_equal(tifffile.imread(path), expected[:, :, :, 0, 0].transpose(2, 0, 1))
    if compression == "none" and dtype == "uint16" and shape[1] <= 32 and not big:
        with Image.open(path) as image:  # its libtiff takes tiles without an offset for an error
            image.seek(3)
            assert not np.asarray(image).any()


def test_tags_are_sorted_and_nothing_is_pointed_to_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    size = PhysicalSize((0.5, "µm"), (0.5, "µm"), None)
    spec = make_spec("uint8", (90, 90, 2, 3, 2), (16, 16), samples=3, levels=3, size=size)
    for big in (False, True):
        write(path, spec, extra={"bigtiff": big}, compression="jpeg")
        taken: dict[int, tuple[Any, ...]] = {}
        with tifffile.TiffFile(path) as tif:
            for page in tif.pages:
                for level in [page, *(page.pages or [])]:
                    codes = [tag.code for tag in level.tags]
                    assert codes == sorted(codes)
                    for tag in level.tags:
                        assert tag.valueoffset % 2 == 0
                        assert tag.valueoffset not in taken
                        taken[tag.valueoffset] = (level.index, tag.code)
                    assert all(o % 16 == 0 for o in level.dataoffsets)


def test_fifty_thousand_planes(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    spec = make_spec("uint16", (64, 64, 50, 10, 100), (64, 64))
    sink = TiffSink(empty(path), (spec,), StoreOptions())
    key = (0, 0, 49, 9, 99)
    tile = np.full((64, 64, 1, 1, 1), 7, np.uint16)
    sink.store_tile(Address(0, 0, key), sink.encode_tile(Address(0, 0, key), tile))
    sink.close()
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 50_000
        assert (tif.pages[49_999].asarray() == 7).all()
        assert not any(tif.pages[i].asarray().any() for i in (0, 49_998))


@pytest.mark.parametrize(
    ("size", "big"), [(40_000, False), (16 * 2400, False), (16 * 2600, True), (70_000, True)]
)
def test_big_tiff_where_it_may_be_needed(tmp_path: Path, size: int, big: bool) -> None:
    spec = make_spec("uint16", (size, size, 1, 1, 1), (1024, 1024))
    path = tmp_path / "a.tif"
    if size == 40_000:
        with pytest.raises(SpecError, match="bigtiff='yes'"):
            TiffSink.check((spec,), StoreOptions(extra={"bigtiff": "yes"}))
    sink = TiffSink(empty(path), (spec,), StoreOptions())
    sink.close()
    raw = (-(-size // 1024) * 1024) ** 2 * 2
    assert (raw > 3 * 2**30) == big or raw < 2**32
    with tifffile.TiffFile(path) as tif:
        assert tif.is_bigtiff == (raw > 3 * 2**30 - 2**20)
    assert path.stat().st_blocks * 512 < 2**20 if hasattr(path.stat(), "st_blocks") else True


def test_a_classic_file_that_runs_full_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_write, "CLASSIC_LIMIT", 15_000)
    path = tmp_path / "a.tif"
    spec = make_spec("uint16", (96, 96, 1, 1, 1), (48, 48))
    pixels = pixels_of(spec)
    options = StoreOptions(compression="none", extra={"bigtiff": False})
    sink = TiffSink(empty(path), (spec,), options)
    expected = np.zeros_like(pixels)
    first, *_ = addresses(spec)
    failed = 0
    for at in addresses(spec):
        try:
            store(sink, at, pixels)
        except UnsupportedError as error:
            failed += 1
            assert "bigtiff" in str(error)  # noqa: PT017
        else:
            where = spec.levels[0].grid.region(at.key).slices()
            expected[where] = pixels[where]
    assert 0 < failed < 4
    with pytest.raises(UnsupportedError):
        store(sink, first, pixels)
    sink.close()
    check(path, [[expected]])
    assert path.stat().st_size <= 15_000


# --- resolution ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [
        (0.5, "µm", (20_000, 1)),
        (0.1, "µm", (100_000, 1)),
        (0.325, "µm", (400_000, 13)),
        (1, "mm", (10, 1)),
        (1, "cm", (1, 1)),
        (2, "m", (1, 200)),
        (1, "Mm", (1, 100_000_000)),
        (1, "in", (50, 127)),
        (1.5, "nm", (20_000_000, 3)),
    ],
)
def test_resolution_is_exact(
    tmp_path: Path, size: float, unit: str, expected: tuple[int, int]
) -> None:
    both = PhysicalSize((size, unit), (2 * size, unit), None)
    path = tmp_path / "a.tif"
    write(path, make_spec(shape=(43, 1001, 1, 1, 1), levels=2, size=both))
    tags = page0(path).tags
    assert tags[282].value == expected
    assert tags[296].value == 3
    x, y = (t.value[0] / t.value[1] for t in (tags[282], tags[283]))
    assert y == pytest.approx(x / 2, rel=1e-9)
    with tifffile.TiffFile(path) as tif:
        small = tif.pages[0].pages[0].tags  # type: ignore[union-attr,index]
        assert small[282].value[0] / small[282].value[1] == pytest.approx(x / 2, rel=1e-9)


@pytest.mark.parametrize("unit", ["pixel", "reference frame"])
def test_no_resolution_unit_without_a_length(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "a.tif"
    write(path, make_spec(size=PhysicalSize((0.1, unit), (0.1, unit), None)))
    tags = page0(path).tags
    assert (tags[282].value, tags[283].value, tags[296].value) == ((1, 1), (1, 1), 1)


def test_an_unknown_size_leaves_the_resolution_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for size in (PhysicalSize(), PhysicalSize((1.0, "µm")), PhysicalSize((1, "?"), (1, "?"))):
        write(path, make_spec(size=size))
        assert not {282, 283, 296} & {tag.code for tag in page0(path).tags}


@given(
    value=st.floats(allow_nan=True, allow_infinity=True) | st.floats(1e-30, 1e30),
    unit=st.sampled_from(["ym", "pm", "Å", "nm", "µm", "m", "Ym", "li", "pt", "pc", "pixel"]),
    level=st.integers(1, 2**31),
)
def test_no_size_overflows(value: float, unit: str, level: int) -> None:
    tags = resolution(PhysicalSize((value, unit), (value, unit)), (2**31, 2**31), (level, level))
    for numbers in tags.values():
        assert all(0 < n < 2**32 for n in numbers)


# --- tiles stored again, and ends at any moment --------------------------------------------------


class Recorder:
    """Remembers every write to the file, in order, and which tile was then being stored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes: list[tuple[int, bytes]] = []
        original = RandomFile.write

        def write_and_tell(file: RandomFile, offset: int, data: Any) -> None:
            self.writes.append((offset, bytes(memoryview(data).cast("B"))))
            original(file, offset, data)

        monkeypatch.setattr(RandomFile, "write", write_and_tell)


def noise(shape: tuple[int, ...], share: float, seed: int, dtype: str) -> NDArray[Any]:
    """Pixels of which `share` is noise: how well a codec does with them can be chosen."""
    rng = np.random.default_rng(seed)
    out = np.full(shape, seed % 200 + 1, dtype)
    rows = int(shape[0] * share)
    out[:rows] = rng.integers(1, 250, (rows, *shape[1:])).astype(dtype)
    return out


def replay(writes: list[tuple[int, bytes]]) -> Iterator[bytes]:
    content = bytearray()
    for offset, data in writes:
        if len(content) < offset + len(data):
            content.extend(bytes(offset + len(data) - len(content)))
        content[offset : offset + len(data)] = data
        yield bytes(content)


SHARES = (0.5, 0.9, 0.1, 0.6, 0.6, 1.0, 0.0, 0.3, 0.2, 0.95)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("tiles", [1, 2, 3])
@pytest.mark.parametrize("compression", [c.name for c in CODECS if c.name != "jpeg"])
def test_a_file_cut_at_any_write_holds_old_or_new_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, tiles: int, big: bool
) -> None:
    spec = make_spec("uint8", (32, 32 * tiles, 1, 1, 1), (32, 32))
    recorder = Recorder(monkeypatch)
    options = StoreOptions(compression=compression, extra={"bigtiff": big})
    sink = TiffSink(empty(tmp_path / "a.tif"), (spec,), options)
    head = len(recorder.writes)
    now = np.zeros((32, 32 * tiles), np.uint8)
    steps: list[tuple[int, NDArray[Any], NDArray[Any]]] = []
    for number, share in enumerate(SHARES * tiles):
        tile = (number * 7 + number // 5) % tiles
        x = slice(32 * tile, 32 * tile + 32)
        new = now.copy()
        new[:, x] = noise((32, 32), share, number, "uint8")
        at = Address(0, 0, (0, tile, 0, 0, 0))
        sink.store_tile(at, sink.encode_tile(at, new[:, x, None, None, None]))
        steps.append((len(recorder.writes), now, new))
        now = new
    sink.close()
    tail = sink._codecs[0].tail or compression == "none"
    states = list(replay(recorder.writes))
    assert states[-1] == (tmp_path / "a.tif").read_bytes()
    assert all(not s.startswith((b"II*\0", b"II+\0")) for s in states[: head - 1])
    with tifffile.TiffFile(io.BytesIO(states[head - 1])) as tif:
        assert not tif.pages[0].asarray().any()
    begin = head
    for end, old, new in steps:
        for state in states[begin:end]:
            with tifffile.TiffFile(io.BytesIO(state)) as tif:
                page = tif.pages[0]
                got = page.asarray()
                pairs = zip(page.dataoffsets, page.databytecounts, strict=True)
                assert all(a + n <= len(state) for a, n in pairs if a and n)
            for left in range(0, 32 * tiles, 32):
                part = np.s_[:, left : left + 32]
                fits = [old[part], new[part]] + ([] if tail else [np.zeros((32, 32), np.uint8)])
                assert any(np.array_equal(got[part], a) for a in fits)
        assert np.array_equal(got, new)
        begin = end


def test_the_head_is_down_before_any_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    spec = make_spec("uint16", (200, 200, 3, 2, 1), (32, 32), levels=3)
    sink = TiffSink(empty(tmp_path / "a.tif"), (spec,), StoreOptions())
    assert recorder.writes[-1][0] == 0  # the header comes last
    head = (tmp_path / "a.tif").stat().st_size
    count = len(recorder.writes)
    pixels = [pixels_of(spec, i) for i in range(3)]
    for at in addresses(spec):
        store(sink, at, pixels[at.level])
    sink.close()
    later = recorder.writes[count:]
    assert len(later) == 3 * sum(1 for _ in addresses(spec))
    for (where, _), *entries in zip(later[::3], later[1::3], later[2::3], strict=True):
        assert where >= head
        assert all(offset < head and len(data) == 4 for offset, data in entries)


@pytest.mark.parametrize("tiles", [1, 2, 5])
@pytest.mark.parametrize("compression", ["none", "deflate", "zstd"])
def test_storing_again_does_not_let_the_file_grow(
    tmp_path: Path, compression: str, tiles: int
) -> None:
    path = tmp_path / "a.tif"
    spec = make_spec("uint8", (64, 64 * tiles, 1, 1, 1), (64, 64))
    sink = TiffSink(empty(path), (spec,), StoreOptions(compression=compression))
    head = path.stat().st_size
    rng = np.random.default_rng(0)
    for number in range(100 * tiles):
        at = Address(0, 0, (0, number % tiles, 0, 0, 0))
        tile = noise((64, 64, 1, 1, 1), rng.random(), number, "uint8")
        sink.store_tile(at, sink.encode_tile(at, tile))
        got = sink.load_tile(at)
        np.testing.assert_array_equal(got, tile)
    sink.close()
    assert path.stat().st_size - head < (1.6 * tiles + 2) * 4200
    assert np.array_equal(tifffile.imread(path)[:, -64:], tile[:, :, 0, 0, 0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 400)), max_size=120))
def test_space_never_gives_out_a_byte_twice(steps: list[tuple[int, int]]) -> None:
    space = _Space(64)
    live: dict[int, tuple[int, int]] = {}
    for name, count in steps:
        offset = space.take(count, 2**40)
        assert offset is not None
        assert offset >= 64
        assert offset % 16 == 0
        for other, size in live.values():
            assert offset + count < other or other + size < offset
        if name in live:
            space.give(*live[name])
        live[name] = (offset, count)
        if count % 50 == 0:
            space.reach(space.end + count)
    used = sum(size // 16 * 16 + 16 for _, size in live.values())
    assert used + sum(size for _, size in space._by_offset) == space.end - 64
    assert sorted((s, o) for o, s in space._by_offset) == space._by_size
    touching = zip(space._by_offset, space._by_offset[1:], strict=False)
    assert all(a + n < b for (a, n), (b, _) in touching)


def test_a_failed_write_leaves_the_old_tile_and_its_room_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    spec = make_spec("uint8", (32, 32, 1, 1, 1), (32, 32))
    sink = TiffSink(empty(path), (spec,), StoreOptions())
    at = Address(0, 0, (0, 0, 0, 0, 0))
    old, new = (noise((32, 32, 1, 1, 1), 1.0, seed, "uint8") for seed in (1, 2))
    store(sink, at, old)
    end = sink._space.end

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for _ in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(RandomFile, "write", full)
            with pytest.raises(OSError, match="No space"):
                store(sink, at, new)
    got = sink.load_tile(at)
    np.testing.assert_array_equal(got, old)
    store(sink, at, new)
    sink.close()
    assert sink._space.end <= end + 1100
    assert np.array_equal(tifffile.imread(path), new[:, :, 0, 0, 0])


def test_making_the_file_longer_spares_what_another_thread_is_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    spec = make_spec("uint8", (32, 96, 1, 1, 1), (32, 32))
    sink = TiffSink(empty(path), (spec,), StoreOptions())
    at = Address(0, 0, (0, 0, 0, 0, 0))
    store(sink, at, noise((32, 96, 1, 1, 1), 1.0, 1, "uint8"))
    count = sink._counts[0]
    original = RandomFile.write
    others: list[Any] = []

    def write_together(file: RandomFile, offset: int, data: Any) -> None:
        if not others:  # meanwhile another thread has got its place, and is half done with it
            others.append(sink._space.take(3 * count, 2**32))
            original(file, others[0], b"\xaa" * count * 2)
        original(file, offset, data)

    monkeypatch.setattr(RandomFile, "write", write_together)
    store(sink, at, noise((32, 96, 1, 1, 1), 0.0, 2, "uint8"))  # smaller, at the end of the file
    content = path.read_bytes()
    assert content[others[0] : others[0] + 2 * count] == b"\xaa" * count * 2
    assert len(content) > sink._offsets[0] + count  # the old count fits behind the new offset
    sink.close()


def test_a_tile_that_moves_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("uint8", (32, 64, 1, 1, 1), (32, 32))
    sink = TiffSink(empty(tmp_path / "a.tif"), (spec,), StoreOptions(compression="none"))
    first, second = addresses(spec)
    old, new, other = (np.full((32, 32, 1, 1, 1), n, np.uint8) for n in (1, 2, 3))
    store(sink, first, old)
    original = RandomFile.read

    def read_late(file: RandomFile, offset: int, count: int) -> bytes:
        monkeypatch.setattr(RandomFile, "read", original)
        for at, tile in ((first, new), (second, other)):  # the second takes the place left free
            sink.store_tile(at, sink.encode_tile(at, tile))
        return original(file, offset, count)

    monkeypatch.setattr(RandomFile, "read", read_late)
    np.testing.assert_array_equal(sink.load_tile(first), new)
    sink.close()


def test_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    spec = make_spec("uint16", (128, 128, 4, 3, 1), (16, 16))
    sink = TiffSink(empty(path), (spec,), StoreOptions(compression="zstd"))
    rounds = [pixels_of(spec, seed=s) // np.uint16(7 ** (s % 4)) for s in range(5)]
    stop = threading.Event()

    def look() -> int:
        looked = 0
        rng = np.random.default_rng()
        every = list(addresses(spec))
        while not stop.is_set():
            at = every[rng.integers(len(every))]
            got = sink.load_tile(at)
            where = spec.levels[0].grid.region(at.key).slices()
            assert got is None or any(np.array_equal(got, r[where]) for r in rounds)
            looked += 1
        return looked

    with ThreadPoolExecutor(6) as pool:
        lookers = [pool.submit(look) for _ in range(2)]
        for pixels in rounds:
            list(pool.map(lambda at, p=pixels: store(sink, at, p), addresses(spec)))
        stop.set()
        assert all(looker.result() > 0 for looker in lookers)
    sink.close()
    check(path, [[rounds[-1]]])


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "options", "error", "text"),
    [
        ({}, {"compression": "gzip9"}, SpecError, "none, deflate, zstd, lzw, packbits, lzma, jpeg"),
        ({}, {"extra": {"chunks": 3}}, SpecError, "'chunks'.*'bigtiff'"),
        ({}, {"level": 13}, SpecError, "level=13.*0 to 12"),
        ({}, {"level": 1.5}, SpecError, "level=1.5"),
        ({}, {"level": True}, SpecError, "level=True"),
        ({}, {"compression": "lzw", "level": 2}, SpecError, "no levels"),
        ({}, {"compression": "zstd", "level": 0}, SpecError, "1 to 22"),
        ({}, {"compression": "jpeg"}, UnsupportedError, "uint16 pixels, only uint8"),
        ({}, {"compression": "none", "predictor": True}, SpecError, "'deflate', 'zstd', 'lzw'"),
        ({}, {"compression": "packbits", "predictor": True}, SpecError, "predictor"),
        ({"dtype": "bool"}, {"predictor": True}, UnsupportedError, "bool"),
        ({"dtype": "complex64"}, {"predictor": True}, UnsupportedError, "complex64"),
        ({"dtype": "float16"}, {"compression": "lerc"}, UnsupportedError, "float16"),
        ({"dtype": "M8[s]"}, {}, UnsupportedError, "datetime64"),
        ({"shape": (9, 9, 1, 4, 1), "samples": 3}, {}, SpecError, "multiple of the samples"),
        (
            {"dtype": "uint8", "shape": (9, 9, 1, 4, 1), "samples": 4},
            {"compression": "jpeg"},
            UnsupportedError,
            "4 samples",
        ),
        ({"tile": (32, 40)}, {}, SpecError, r"tile \(32, 40, 1, 1, 1\)"),
        ({"tile": (0, 16)}, {}, SpecError, "multiple of 16"),
        ({"tile": (2**15, 2**15)}, {}, SpecError, "2 GB"),
    ],
)
def test_refusals_come_before_there_is_a_file(
    tmp_path: Path,
    spec: dict[str, Any],
    options: dict[str, Any],
    error: type[BioIOError],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        TiffSink.check((make_spec(**spec),), StoreOptions(**options))
    path = empty(tmp_path / "a.tif")
    with pytest.raises(error, match=text):
        TiffSink(path, (make_spec(**spec),), StoreOptions(**options))
    assert path.stat().st_size == 0


def test_levels_must_keep_the_planes() -> None:
    levels = (
        Level((64, 64, 4, 1, 1), (16, 16, 1, 1, 1)),
        Level((32, 32, 2, 1, 1), (16, 16, 1, 1, 1)),
    )
    with pytest.raises(SpecError, match=r"level 1 of image 0.*shrink along Y and X only"):
        TiffSink.check((ImageSpec(np.dtype("uint8"), levels),), StoreOptions())
    with pytest.raises(SpecError, match="no image"):
        TiffSink.check((), StoreOptions())


def test_wrong_tiles_are_refused(tmp_path: Path) -> None:
    sink = TiffSink(empty(tmp_path / "a.tif"), (make_spec(),), StoreOptions())
    at = Address(0, 0, (1, 1, 0, 0, 0))
    with pytest.raises(SpecError, match=r"\(18, 22, 1, 1, 1\), not \(32, 48, 1, 1, 1\)"):
        sink.encode_tile(at, np.zeros((32, 48, 1, 1, 1), np.uint16))
    with pytest.raises(PixelTypeError, match=r"uint16.*uint8"):
        sink.encode_tile(at, np.zeros((18, 22, 1, 1, 1), np.uint8))
    with pytest.raises(UnsupportedError, match="cannot grow"):
        sink.grow(0, 5)
    sink.close()


def test_lerc_refuses_nan_instead_of_losing_it(tmp_path: Path) -> None:
    sink = TiffSink(
        empty(tmp_path / "a.tif"), (make_spec("float32"),), StoreOptions(compression="lerc")
    )
    tile = np.full((32, 48, 1, 1, 1), np.nan, np.float32)
    with pytest.raises(UnsupportedError, match="NaN"):
        sink.encode_tile(Address(0, 0, (0, 0, 0, 0, 0)), tile)
    sink.close()


def test_closed(tmp_path: Path) -> None:
    sink = TiffSink(empty(tmp_path / "a.tif"), (make_spec(),), StoreOptions())
    at = Address(0, 0, (0, 0, 0, 0, 0))
    tile = np.zeros((32, 48, 1, 1, 1), np.uint16)
    encoded = sink.encode_tile(at, tile)
    sink.close()
    sink.close()
    for use in (
        lambda: sink.encode_tile(at, tile),
        lambda: sink.store_tile(at, encoded),
        lambda: sink.load_tile(at),
    ):
        with pytest.raises(ClosedError):
            use()


def test_a_file_damaged_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    spec = make_spec()
    sink = TiffSink(empty(path), (spec,), StoreOptions())
    at = Address(0, 0, (0, 0, 0, 0, 0))
    head = path.stat().st_size
    store(sink, at, pixels_of(spec))
    content = path.read_bytes()
    path.write_bytes(content[:head] + b"\xff" * (len(content) - head))
    with pytest.raises(DamagedFileError, match="deflate"):
        sink.load_tile(at)
    with path.open("r+b") as file:
        file.truncate(head + 5)
    with pytest.raises(DamagedFileError, match="cut"):
        sink.load_tile(at)
    sink.close()


# --- with the real OME-XML -----------------------------------------------------------------------


def test_ome_xml_matches_the_ifds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bioio_tk.meta.ome")
    pytest.importorskip("bioio_tk.meta.ome", exc_type=ImportError)
    path = tmp_path / "a.ome.tif"
    size = PhysicalSize((0.5, "µm"), (0.25, "µm"), (2.0, "µm"))
    specs = (
        make_spec("uint16", (50, 70, 2, 3, 4), levels=2, size=size),
        make_spec("uint8", (40, 30, 2, 6, 1), samples=3),
    )
    every = write(path, *specs)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome
        ET.fromstring(tif.pages[0].description)  # type: ignore[union-attr]
        assert len(tif.series) == 2
        first, second = tif.series
        axes = ["TCZYX".index(a) for a in first.axes]
        assert axes == sorted(axes)
        assert len(first.levels) == 2
        for level, pixels in zip(first.levels, every[0], strict=True):
            np.testing.assert_array_equal(level.asarray(), pixels.transpose(4, 3, 2, 0, 1))
        y, x, z, c, t = every[1][0].shape
        got = second.asarray().reshape(t, c // 3, z, y, x, 3)
        expected = every[1][0].reshape(y, x, z, c // 3, 3, t).transpose(5, 3, 2, 0, 1, 4)
        np.testing.assert_array_equal(got, expected)
