"""What we write, as Bio-Formats itself reads it: pixels, levels, and what is said of them."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from images import coded, smaller
from java_images import by_java, opened, series_count

from bioio_tk import BioWriter
from bioio_tk.backends.base import StoreOptions
from bioio_tk.backends.tiff_write import TiffSink
from bioio_tk.core.spec import Address, Channel, ImageSpec, Level, PhysicalSize

OME_TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"]
SHAPES = {"plane": (137, 101), "stack": (40, 50, 3), "5d": (33, 70, 3, 2, 2)}
DESCRIBED = {
    "name": "Zellen α",
    "channel_names": ["DAPI", "phalloïdin"],
    "channel_colors": [(0, 0, 255, 255), (255, 128, 0, 128)],
    "physical_size_x": (0.25, "µm"),
    "physical_size_y": (250.0, "nm"),
    "physical_size_z": (2.0, "mm"),
    "time_increment": (1.5, "s"),
}


def five(image):
    return image.reshape((*image.shape, 1, 1, 1, 1)[:5])


def check(java, path, image, levels=1, method="mean", series=0):
    """Compare all levels of a series; the smaller ones are computed anew."""
    with opened(java, path, series) as reader:
        assert int(reader.getResolutionCount()) == levels
    want = five(image)
    for level in range(levels):
        got = by_java(java, path, series, level)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
        want = smaller(want, method)


# ------------------------------------------------------------------ OME-TIFF


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", OME_TYPES)
def test_every_pixel_type_of_ome(java, tmp_path, dtype, shape):
    path = tmp_path / "image.ome.tif"
    image = coded(SHAPES[shape], dtype)
    with BioWriter(path, image=image, tile_size=32):
        pass
    check(java, path, image)
    with opened(java, path) as reader:
        assert str(reader.getFormat()) == "OME-TIFF"


def test_bool_pixels_are_0_and_1(java, tmp_path):
    path = tmp_path / "image.ome.tif"
    image = coded(SHAPES["5d"], "bool")
    with BioWriter(path, image=image, tile_size=32):
        pass
    np.testing.assert_array_equal(by_java(java, path).astype(bool), five(image))
    assert set(np.unique(by_java(java, path))) <= {0, 1}


@pytest.mark.parametrize("method", ["mean", "nearest", "max"])
@pytest.mark.parametrize("shape", SHAPES)
def test_levels_of_a_pyramid(java, tmp_path, shape, method):
    path = tmp_path / "image.ome.tif"
    image = coded(SHAPES[shape])
    with BioWriter(path, image=image, tile_size=16, pyramid=3, downsample=method):
        pass
    check(java, path, image, 3, method)


@pytest.mark.parametrize("dtype", ["i1", "u4", "f4", "f8"])
def test_levels_of_other_pixel_types(java, tmp_path, dtype):
    path = tmp_path / "image.ome.tif"
    image = coded(SHAPES["plane"], dtype)
    with BioWriter(path, image=image, tile_size=32, pyramid=3, downsample="nearest"):
        pass
    check(java, path, image, 3, "nearest")


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("samples", [3, 4])
def test_colours(java, tmp_path, samples, dtype, levels):
    path = tmp_path / "image.ome.tif"
    image = coded((61, 83, 2, samples), dtype)
    with BioWriter(path, image=image, samples_per_pixel=samples, tile_size=32, pyramid=levels,
                   downsample="nearest"):  # fmt: skip
        pass
    check(java, path, image, levels, "nearest")
    with opened(java, path) as reader:
        assert int(reader.getRGBChannelCount()) == samples
        assert int(reader.getEffectiveSizeC()) == 1


@pytest.mark.parametrize(
    ("compression", "predictor"),
    [
        ("none", False),
        ("deflate", False),
        ("deflate", True),
        ("lzw", False),
        ("lzw", True),
        ("zstd", False),
        ("zstd", True),
        ("packbits", False),
        ("jpeg2000", False),
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_compressions_that_bio_formats_knows(java, tmp_path, compression, predictor, dtype):
    if compression == "zstd" and java.started.version.startswith("6."):
        pytest.skip("Bio-Formats 6 knows no zstd in TIFF")
    path = tmp_path / "image.ome.tif"
    image = coded((70, 90, 2), dtype)
    with BioWriter(path, image=image, tile_size=32, compression=compression,
                   predictor=predictor or None, pyramid=2):  # fmt: skip
        pass
    check(java, path, image, 2)


@pytest.mark.parametrize("compression", ["lzma", "jpegxl", "lerc"])
def test_compressions_that_bio_formats_refuses(java, tmp_path, compression):
    """A list of what is not for it; if this fails, it has learned one: say so in the page."""
    path = tmp_path / "image.ome.tif"
    with BioWriter(path, image=coded((70, 90)), tile_size=32, compression=compression):
        pass
    with pytest.raises(Exception, match=r"Unable to find TiffCompres+ion"):
        by_java(java, path)


@pytest.mark.parametrize("bigtiff", [True, False])
def test_bigtiff_and_tiles_written_in_any_order(java, tmp_path, bigtiff):
    path = tmp_path / "image.ome.tif"
    image = coded((100, 130, 1, 2))
    corners = list(product(range(0, 100, 30), range(0, 130, 50), range(2)))
    np.random.default_rng(1).shuffle(corners)
    with BioWriter(path, shape=image.shape, dtype="u2", tile_size=32, bigtiff=bigtiff,
                   pyramid=2) as bw:  # fmt: skip
        for y, x, c in corners:
            bw[y : y + 30, x : x + 50, 0, c] = image[y : y + 30, x : x + 50, 0, c]
    assert path.read_bytes()[2] == (43 if bigtiff else 42)
    check(java, path, image, 2)


def test_what_describes_an_image(java, tmp_path):
    path = tmp_path / "image.ome.tif"
    with BioWriter(path, shape=(20, 30, 2, 2, 3), dtype="u2", **DESCRIBED) as bw:
        bw[...] = 1
    with opened(java, path) as reader:
        assert described(reader.getMetadataStore(), 2) == DESCRIBED
        assert valid(java, str(reader.getMetadataStore().dumpXML()))


def described(store, channels):
    """Return what an OME metadata store says of its first image."""

    def quantity(found):
        return float(found.value().doubleValue()), str(found.unit().getSymbol())

    colors = [store.getChannelColor(0, c) for c in range(channels)]
    return {
        "name": str(store.getImageName(0)),
        "channel_names": [str(store.getChannelName(0, c)) for c in range(channels)],
        "channel_colors": [
            tuple(int(n) for n in (c.getRed(), c.getGreen(), c.getBlue(), c.getAlpha()))
            for c in colors
        ],
        "physical_size_x": quantity(store.getPixelsPhysicalSizeX(0)),
        "physical_size_y": quantity(store.getPixelsPhysicalSizeY(0)),
        "physical_size_z": quantity(store.getPixelsPhysicalSizeZ(0)),
        "time_increment": quantity(store.getPixelsTimeIncrement(0)),
    }


def service(java):
    factory = java("loci.common.services.ServiceFactory")()
    return factory.getInstance(java("loci.formats.services.OMEXMLService"))


def valid(java, xml):
    """Return whether OME's own schema finds nothing wrong."""
    return bool(service(java).validateOMEXML(xml))


def test_the_check_of_the_schema_finds_faults(java, tmp_path):
    path = tmp_path / "image.ome.tif"
    with BioWriter(path, image=coded((20, 30))):
        pass
    xml = comment(path)
    assert valid(java, xml)
    assert not valid(java, xml.replace('SizeX="30"', 'SizeX="-1"'))


def comment(path):
    """Return the OME-XML document in a TIFF."""
    found = re.search(rb"<\?xml.*</OME>", path.read_bytes(), re.DOTALL)
    assert found
    return found.group().decode()


def several(path):
    """Write three images of different shapes and types, one with levels; return their pixels."""
    images = [coded((40, 60), "u1"), coded((70, 50, 2, 3), "u2"), coded((33, 31, 1, 1, 2), "f4")]
    specs, pixels = [], []
    for number, image in enumerate(images):
        full = five(image)
        levels = [full, smaller(full), smaller(smaller(full))][: 3 if number == 1 else 1]
        specs.append(
            ImageSpec(
                dtype=full.dtype,
                levels=tuple(Level(a.shape, (32, 32, 1, 1, 1)) for a in levels),
                name=f"image number {number}",
                channels=tuple(Channel(f"{number}-{c}") for c in range(full.shape[3])),
                physical_size=PhysicalSize((0.5 + number, "µm"), (1.0, "µm")),
            )
        )
        pixels.append(levels)
    path.write_bytes(b"")
    sink = TiffSink(path, tuple(specs), StoreOptions())
    for number, spec in enumerate(specs):
        for level, stored in enumerate(spec.levels):
            for key in stored.grid.keys():  # noqa: SIM118
                at = Address(number, level, key)
                part = pixels[number][level][stored.grid.region(key).slices()]
                sink.store_tile(at, sink.encode_tile(at, part))
    sink.finish()
    sink.close()
    return pixels


def test_several_series(java, tmp_path):
    path = tmp_path / "images.ome.tif"
    pixels = several(path)
    assert series_count(java, path) == 3
    for series, levels in enumerate(pixels):
        with opened(java, path, series) as reader:
            store = reader.getMetadataStore()
            assert str(store.getImageName(series)) == f"image number {series}"
            assert str(store.getChannelName(series, 0)) == f"{series}-0"
            assert float(store.getPixelsPhysicalSizeX(series).value()) == 0.5 + series
            assert int(reader.getResolutionCount()) == len(levels)
        for level, want in enumerate(levels):
            got = by_java(java, path, series, level)
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)


# ------------------------------------------------------------------ OME-Zarr


def test_bio_formats_comes_without_a_reader_of_zarr(java):
    """If this fails, it has got one: then our OME-Zarr is to be read with it here."""
    names = {str(c.getSimpleName()) for c in java("loci.formats.ImageReader")
             .getDefaultReaderClasses().getClasses()}  # fmt: skip
    assert "OMETiffReader" in names
    assert not [name for name in names if "zarr" in name.lower()]
    with pytest.raises(TypeError, match="not found"):
        java("loci.formats.in.ZarrReader")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", OME_TYPES)
def test_the_ome_xml_of_an_ome_zarr_is_bio_formats_own(java, tmp_path, dtype, version):
    path = tmp_path / "image.ome.zarr"
    shape = (20, 30, 3, 2, 4)
    with BioWriter(path, shape=shape, dtype=dtype, ngff_version=version, pyramid=2,
                   tile_size=16, **DESCRIBED) as bw:  # fmt: skip
        bw[...] = 1
    xml = (path / "OME" / "METADATA.ome.xml").read_text(encoding="utf-8")
    assert valid(java, xml)
    store = service(java).createOMEXMLMetadata(xml)
    assert described(store, 2) == DESCRIBED
    sizes = (store.getPixelsSizeY(0), store.getPixelsSizeX(0), store.getPixelsSizeZ(0),
             store.getPixelsSizeC(0), store.getPixelsSizeT(0))  # fmt: skip
    assert tuple(int(n.getValue()) for n in sizes) == shape
    names = {"u1": "uint8", "i1": "int8", "u2": "uint16", "i2": "int16", "u4": "uint32",
             "i4": "int32", "f4": "float", "f8": "double"}  # fmt: skip
    assert str(store.getPixelsType(0).getValue()) == names[dtype]


def test_the_ome_xml_of_several_series_in_an_ome_zarr(java, tmp_path):
    path = tmp_path / "images.ome.zarr"
    for number in range(3):
        with BioWriter(path, group=str(number), image=coded((20 + number, 30)), name=f"n{number}",
                       ngff_version="0.4"):  # fmt: skip
            pass
    xml = (path / "OME" / "METADATA.ome.xml").read_text(encoding="utf-8")
    assert valid(java, xml)
    store = service(java).createOMEXMLMetadata(xml)
    assert int(store.getImageCount()) == 3
    assert [str(store.getImageName(n)) for n in range(3)] == ["n0", "n1", "n2"]
    assert [int(store.getPixelsSizeY(n).getValue()) for n in range(3)] == [20, 21, 22]
