"""Formats that Bio-Formats writes, read by others: by hand, pydicom, imagecodecs, Pillow.

What every backend must do is in test_contract, which writes OME-XML with this one.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import coded

from bioio_tk import BioReader, BioWriter, convert
from bioio_tk.backends import _java_home, java_write, registry
from bioio_tk.backends.base import StoreOptions
from bioio_tk.backends.java_write import BioFormatsSink
from bioio_tk.core.spec import Address, ImageSpec, Level
from bioio_tk.errors import (
    BackendError,
    BackendMissingError,
    ClosedError,
    OutOfMemoryError,
    PixelTypeError,
    SpecError,
    TargetExistsError,
    UnknownFormatError,
    UnsupportedError,
)
from conftest import open_files

pytestmark = pytest.mark.usefixtures("java")


def write(path, image, samples=1, **more):
    """Write an image, tile by tile, the last tile first."""
    if path.suffix == ".dcm" and version() < 7:
        pytest.skip("this Bio-Formats does not write DICOM")
    tile = more.pop("tile_size", 16)
    with BioWriter(
        path,
        shape=image.shape,
        dtype=image.dtype,
        samples_per_pixel=samples,
        tile_size=tile,
        **more,
    ) as bw:
        for y in reversed(range(0, image.shape[0], tile)):
            for x in reversed(range(0, image.shape[1], tile)):
                bw[y : y + tile, x : x + tile] = image[y : y + tile, x : x + tile]


def version():
    """Return the first number of the version of Bio-Formats that runs."""
    return int(java_write._java_vm.java().started.version.split(".")[0])


def planes(image, samples=1):
    """Return the planes of an image (n, y, x, s): Z fastest, then C, then T."""
    _, _, z, c, t = image.shape
    return np.array(
        [
            image[:, :, k, i : i + samples, n]
            for n in range(t)
            for i in range(0, c, samples)
            for k in range(z)
        ]
    )


# ------------------------------------------------------------------ readers of somebody else


def ome_xml(path, shape, samples):
    return planes(oracles.ome_xml(path), samples)


def ics(path, shape, samples):
    return planes(oracles.ics(path), samples)


def dicom(path, shape, samples):
    import pydicom

    found = pydicom.dcmread(path)
    assert (found.Rows, found.Columns, int(found.get("NumberOfFrames", 1))) == shape[:3]
    assert found.PhotometricInterpretation == ("RGB" if samples == 3 else "MONOCHROME2")
    return found.pixel_array.reshape(-1, *shape[:2], samples)


def jpeg2000(path, shape, samples):
    import imagecodecs

    return imagecodecs.jpeg2k_decode(path.read_bytes()).reshape(-1, *shape[:2], samples)


def avi(path, shape, samples):
    """Read the frames of an uncompressed AVI: rows from below, blue first, padded to 4 bytes."""
    found = dict(enumerate(chunks(path.read_bytes(), 12)))
    (head,) = [data for name, data in found.values() if name == b"avih"]
    (form,) = [data for name, data in found.values() if name == b"strf"]
    frames = [data for name, data in found.values() if name == b"00db"]
    width, height, _, bits, compression = struct.unpack_from("<iihhI", form, 4)
    assert struct.unpack_from("<I", head, 16) == (len(frames),)
    assert (width, height, bits, compression) == (shape[1], shape[0], 8 * samples, 0)
    if samples == 1:  # the palette is grey
        palette = np.frombuffer(form, np.uint8, 1024, 40).reshape(256, 4)
        assert (palette[:, :3] == np.arange(256)[:, None]).all()
    pixels = np.array([np.frombuffer(frame, np.uint8) for frame in frames])
    return pixels.reshape(-1, height, width, samples)[:, ::-1, :, ::-1]


def chunks(data, start):
    """Yield (name, data) of what is in a RIFF file, also inside of lists."""
    while start + 8 <= len(data):
        name, size = data[start : start + 4], struct.unpack_from("<I", data, start + 4)[0]
        if name == b"LIST":
            yield from chunks(data[start + 12 : start + 8 + size], 0)
        else:
            yield name, data[start + 8 : start + 8 + size]
        start += 8 + size + size % 2


def png(path, shape, samples):
    """Read the frames of an (animated) PNG without filters, and its first one with Pillow."""
    from PIL import Image

    data, at, frames = path.read_bytes(), 8, []
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size) == (zlib.crc32(name + body),)
        if name == b"IHDR":
            width, height, depth, color = struct.unpack_from(">IIBB", body)
            assert (width, height, color) == (shape[1], shape[0], 2 if samples == 3 else 0)
        elif name == b"acTL":
            count = struct.unpack_from(">I", body)[0]
        elif name in (b"IDAT", b"fdAT"):
            rows = zlib.decompress(body[4 * (name == b"fdAT") :])
            rows = np.frombuffer(rows, np.uint8).reshape(height, -1)
            assert not rows[:, 0].any()  # of each row the number of its filter
            frames.append(np.ascontiguousarray(rows[:, 1:]).view(f">u{depth // 8}"))
        at += 12 + size
    assert (name, count) == (b"IEND", len(frames))
    pixels = oracles.native(np.array(frames)).reshape(-1, height, width, samples)
    with Image.open(path) as image:
        assert image.size == (width, height)
        if depth == 8 or samples == 1:  # others it makes 8 bits
            np.testing.assert_array_equal(np.asarray(image).reshape(pixels[0].shape), pixels[0])
    return pixels


class Kind(NamedTuple):
    """A format: who else reads it, and what it holds."""

    read: object
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    rgb: tuple[tuple[int, ...], ...] = ()


FULL = ((20, 18, 3, 2, 2), (37, 21, 1, 1, 1), (5, 211, 1, 3, 1), (1, 1, 1, 1, 1))
INTS = ("u1", "i1", "u2", "i2")
KINDS = {
    ".ome": Kind(ome_xml, (*INTS, "u4", "i4", "f4"), FULL),
    ".ome.xml": Kind(ome_xml, ("u2",), FULL[:1]),
    ".ics": Kind(ics, (*INTS, "f4"), FULL),
    ".dcm": Kind(
        dicom,
        (*INTS, "u4", "i4"),
        ((20, 18, 3, 1, 1), (37, 21, 1, 1, 1), (1, 1, 1, 1, 1)),
        ((20, 35, 2, 3, 1), (19, 35, 1, 3, 1)),
    ),
    ".jp2": Kind(
        jpeg2000, ("u1", "u2"), ((20, 18, 1, 1, 1), (137, 121, 1, 1, 1)), ((19, 35, 1, 3, 1),)
    ),
    ".png": Kind(
        png,
        ("u1", "u2"),
        ((20, 18, 3, 1, 1), (37, 21, 1, 1, 4), (1, 1, 1, 1, 1)),
        ((19, 35, 2, 3, 1),),
    ),
    ".avi": Kind(avi, ("u1",), ((20, 16, 3, 1, 1), (37, 4, 1, 1, 4)), ((19, 36, 1, 3, 2),)),
}
HELD = [
    pytest.param(suffix, shape, samples, dtype, id=f"{suffix}-{'x'.join(map(str, shape))}-{dtype}")
    for suffix, kind in KINDS.items()
    for samples, shapes in ((1, kind.shapes), (3, kind.rgb))
    for shape in shapes
    for dtype in kind.dtypes
]


def test_each_ending_that_is_written_is_tested_here():
    row = next(row for row in registry.BACKENDS if row.name == "java")
    assert set(row.suffixes) == set(java_write.SUFFIXES) == set(KINDS)


@pytest.mark.parametrize(("suffix", "shape", "samples", "dtype"), HELD)
def test_pixels_reach_others_and_come_back(tmp_path, suffix, shape, samples, dtype):
    path, image = tmp_path / f"image{suffix}", coded(shape, dtype)
    write(path, image, samples)
    found = KINDS[suffix].read(path, shape, samples)
    np.testing.assert_array_equal(found, planes(image, samples))
    assert found.dtype == image.dtype
    with BioReader(path, backend="java") as br:
        assert (br.dtype, br.samples_per_pixel) == (image.dtype, samples)
        pixels = br[...].reshape(br.shape)
    np.testing.assert_array_equal(planes(pixels, samples), planes(image, samples))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".ome", ".ics"])
def test_axes_come_back_as_they_were(tmp_path, suffix):
    image = coded((20, 18, 3, 2, 4), "u2")
    write(tmp_path / f"image{suffix}", image)
    with BioReader(tmp_path / f"image{suffix}") as br:
        assert br.backend == "java"
        assert br.shape == image.shape
        np.testing.assert_array_equal(br[...], image)


def test_a_dicom_that_is_a_tiff_as_well_is_read_as_dicom(tmp_path):
    image = coded((20, 18, 3, 1, 1), "u2")
    write(tmp_path / "a.dcm", image, physical_size_x=(0.5, "µm"), physical_size_z=(2.0, "µm"))
    assert (tmp_path / "a.dcm").read_bytes()[:4] == b"II*\0"
    with BioReader(tmp_path / "a.dcm") as br:
        assert (br.backend, br.shape) == ("java", image.shape)
        np.testing.assert_array_equal(br[...], image[..., 0, 0])


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("samples", [1, 3])
def test_jpeg_2000_loses_nothing_of_noise(tmp_path, dtype, samples):
    shape = (131, 77, 1, samples, 1)
    noise = np.random.default_rng(1).integers(0, 2 ** (8 * int(dtype[1])), shape).astype(dtype)
    write(tmp_path / "a.jp2", noise, samples, compression="jpeg2000")
    np.testing.assert_array_equal(
        jpeg2000(tmp_path / "a.jp2", shape, samples), planes(noise, samples)
    )


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_compressions_of_ome_xml(tmp_path, compression):
    image = np.zeros((64, 64, 1, 2, 1), "u2")
    write(tmp_path / "a.ome", image, compression=compression)
    np.testing.assert_array_equal(oracles.ome_xml(tmp_path / "a.ome"), image)
    assert ((tmp_path / "a.ome").stat().st_size > image.nbytes) == (compression == "none")


@pytest.mark.parametrize("rows", [1, 3, 7, 36, 37])
def test_a_plane_handed_over_in_bands_is_the_same(tmp_path, monkeypatch, rows):
    image = coded((37, 21, 2, 2, 1), "u2")
    monkeypatch.setattr(java_write, "_BAND", rows * 21 * 2)
    write(tmp_path / "a.ics", image)
    np.testing.assert_array_equal(oracles.ics(tmp_path / "a.ics"), image)


@given(data=st.data())
def test_rows_of_a_plane_are_put_together_from_tiles(tmp_path, data):
    """Of the temporary file alone: any tile size, any rows, any tiles missing."""
    shape = data.draw(st.tuples(*[st.integers(1, n) for n in (40, 40, 3, 2, 2)]))
    tile = (data.draw(st.integers(1, 45)), data.draw(st.integers(1, 45)), 1, 1, 1)
    level = Level(shape, tile)
    spec = ImageSpec(np.dtype("u2"), (level,))
    image = coded(shape, "u2")
    tiles = java_write._Tiles(tmp_path, level, spec)
    try:
        want = np.zeros_like(image)
        for key in sorted(level.grid.keys()):
            if data.draw(st.booleans()):
                where = level.grid.region(key).slices()
                tiles.put(
                    Address(0, 0, key), np.ascontiguousarray(image[where][:, :, 0, :, 0], "<u2")
                )
                want[where] = image[where]
        first = data.draw(st.integers(0, shape[0] - 1))
        last = data.draw(st.integers(first + 1, shape[0]))
        for number, plane in enumerate(planes(want)):
            np.testing.assert_array_equal(tiles.rows(number, first, last), plane[first:last])
    finally:
        tiles.close()


def test_java_gets_as_many_bytes_as_there_are(java):
    buffers = java_write._Buffers()
    for size in (8, 8, 3, 8):
        pixels = coded((size, 1), "u2").view("<u2")
        assert bytes(buffers.of(pixels)) == pixels.tobytes()


def test_the_name_means_nothing_special_to_bio_formats_afterwards(java, tmp_path):
    write(tmp_path / "a.ics", coded((8, 9, 1, 1, 1)))
    assert str(java("loci.common.Location").getMappedId("a.ics")) == "a.ics"


# ------------------------------------------------------------------ metadata


DESCRIBED = {
    "name": "Zellen α <&>",
    "channel_names": ["DAPI < & > \"'", "phalloïdin"],
    "physical_size_x": (0.25, "µm"),
    "physical_size_y": (500.0, "nm"),
    "physical_size_z": (0.002, "mm"),
    "time_increment": (1500.0, "ms"),
}


def test_what_describes_an_image_is_in_the_ome_xml(tmp_path):
    write(tmp_path / "a.ome", coded((8, 9, 2, 2, 2)), **DESCRIBED)
    root = ET.parse(tmp_path / "a.ome").getroot()
    (image,) = root.iter(oracles.OME + "Image")
    (pixels,) = root.iter(oracles.OME + "Pixels")
    assert image.get("Name") == DESCRIBED["name"]
    names = [c.get("Name") for c in pixels.findall(oracles.OME + "Channel")]
    assert names == DESCRIBED["channel_names"]
    for axis, key in zip("XYZ", ("x", "y", "z"), strict=True):
        found = (float(pixels.get(f"PhysicalSize{axis}")), pixels.get(f"PhysicalSize{axis}Unit"))
        assert found == DESCRIBED[f"physical_size_{key}"]
    found = (float(pixels.get("TimeIncrement")), pixels.get("TimeIncrementUnit"))
    assert found == DESCRIBED["time_increment"]


def test_text_that_means_something_in_xml_survives(tmp_path):
    from ome_types import OME, from_xml
    from ome_types.model import (
        CommentAnnotation,
        Experimenter,
        Image,
        MapAnnotation,
        Pixels,
        StructuredAnnotations,
        XMLAnnotation,
    )

    text = "a < b & c > d ]]> é 'q' \"r\" &amp; &#38; <x/>"
    pixels = Pixels(
        dimension_order="XYZCT", type="uint8", size_x=9, size_y=8, size_z=1, size_c=1, size_t=1
    )
    ome = OME(
        images=[Image(name=text, description=text, pixels=pixels)],
        experimenters=[Experimenter(last_name=text, id="Experimenter:0")],
        structured_annotations=StructuredAnnotations(
            comment_annotations=[CommentAnnotation(id="Annotation:1", value=text)],
            map_annotations=[MapAnnotation(id="Annotation:2", value={"k < & >": text})],
            xml_annotations=[
                XMLAnnotation(
                    id="Annotation:3", value="<a b='1 &amp; 2'><c>3 &lt; 4 &amp; 5</c></a>"
                )
            ],
        ),
    )
    image = coded((8, 9, 1, 1, 1), "u1")
    with BioWriter(tmp_path / "a.ome", metadata=ome) as bw:
        bw[...] = image
    np.testing.assert_array_equal(oracles.ome_xml(tmp_path / "a.ome"), image)
    raw = re.sub(rb"<BinData.*?</BinData>", b"<MetadataOnly/>", (tmp_path / "a.ome").read_bytes())
    found = from_xml(raw.decode(), validate=True)
    assert (found.images[0].name, found.experimenters[0].last_name) == (text, text)
    # between tags Bio-Formats opens only what is escaped once more
    twice = text.replace("&", "&amp;").replace("<", "&lt;").replace("]]>", "]]&gt;")
    notes = found.structured_annotations
    assert found.images[0].description == twice
    assert notes.comment_annotations[0].value == twice
    assert notes.map_annotations[0].value["k < & >"] == twice
    inner = re.search(rb"<c>(.*)</c>", raw)
    assert inner[1] == b"3 &amp;lt; 4 &amp;amp; 5"
    with BioReader(tmp_path / "a.ome") as br:
        assert br.metadata.images[0].description == text
        assert br.metadata.experimenters[0].last_name == text
        notes = br.metadata.structured_annotations
        assert notes.comment_annotations[0].value == text
        assert notes.map_annotations[0].value["k < & >"] == text


def test_pixel_sizes_are_in_an_ics(tmp_path):
    write(tmp_path / "a.ics", coded((8, 9, 2, 2, 2)), **DESCRIBED)
    header = (tmp_path / "a.ics").read_bytes().split(b"\nend\n")[0]
    fields = dict(oracles.ics_fields(header))
    assert fields["filename"] == ["a.ics"]
    assert fields["layout", "order"] == ["bits", "x", "y", "z", "t", "ch"]
    scale = [float(v) for v in fields["parameter", "scale"]]
    assert scale[1:5] == pytest.approx([0.25, 0.5, 2.0, 1.5])
    units = ["bits", "micrometers", "micrometers", "micrometers", "seconds"]
    assert fields["parameter", "units"] == units
    with BioReader(tmp_path / "a.ics") as br:
        assert br.pixel_size() == pytest.approx((0.5, 0.25, 2.0))  # y, x, z


@pytest.mark.parametrize("known", ["", "x", "y", "z", "xy", "xz", "xyz"])
def test_an_ics_claims_no_pixel_size_that_nobody_knows(tmp_path, known):
    sizes = {f"physical_size_{axis}": (0.5, "µm") for axis in known}
    image = coded((8, 9, 2, 2, 2))
    write(tmp_path / "a.ics", image, **sizes)
    header = (tmp_path / "a.ics").read_bytes().split(b"\nend\n")[0]
    units = dict(oracles.ics_fields(header))["parameter", "units"][1:4]
    assert units == ["micrometers" if axis in known else "undefined" for axis in "xyz"]
    with BioReader(tmp_path / "a.ics") as br:
        assert br.pixel_size() == tuple(0.5 if axis in known else None for axis in "yxz")
    np.testing.assert_array_equal(oracles.ics(tmp_path / "a.ics"), image)


def test_pixel_sizes_and_channels_are_in_a_dicom(tmp_path):
    import pydicom

    more = DESCRIBED | {"channel_names": ["phalloïdin α"]}
    write(tmp_path / "a.dcm", coded((20, 18, 3, 1, 1)), **more)
    found = pydicom.dcmread(tmp_path / "a.dcm")
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(v) for v in measures.PixelSpacing] == pytest.approx([0.00025, 0.0005])
    assert float(measures.SpacingBetweenSlices) == pytest.approx(0.002)
    assert found.OpticalPathSequence[0].OpticalPathDescription == "phallo?din ?"
    positions = [
        float(frame.PlanePositionSlideSequence[0].ZOffsetInSlideCoordinateSystem)
        for frame in found.PerFrameFunctionalGroupsSequence
    ]
    assert positions == sorted(set(positions))


# ------------------------------------------------------------------ conversions


def test_ome_tiff_to_ics_to_ome_tiff(tmp_path):
    import tifffile

    image = coded((70, 83, 3, 2, 2), "u2")
    with BioWriter(tmp_path / "a.ome.tif", image=image, physical_size_x=(0.5, "µm")):
        pass
    report = convert(tmp_path / "a.ome.tif", tmp_path / "b.ics")
    assert (report.levels, report.shape) == (1, image.shape)
    np.testing.assert_array_equal(oracles.ics(tmp_path / "b.ics"), image)
    convert(tmp_path / "b.ics", tmp_path / "c.ome.tif", pyramid=False)
    with tifffile.TiffFile(tmp_path / "c.ome.tif") as tif:
        series = tif.series[0]
        axes = series.axes.replace("Q", "C")  # Bio-Formats says that they are of a lifetime
        np.testing.assert_array_equal(oracles.yxzct(series.asarray(), axes), image)


def test_a_large_image_is_converted_without_its_pyramid(tmp_path):
    image = coded((600, 700, 1, 1, 1), "u2")
    with BioWriter(tmp_path / "a.ome.tif", image=image, pyramid=True, tile_size=256):
        pass
    assert convert(tmp_path / "a.ome.tif", tmp_path / "b.ome").levels == 1
    np.testing.assert_array_equal(oracles.ome_xml(tmp_path / "b.ome"), image)
    with pytest.raises(UnsupportedError, match="smaller resolutions"):
        convert(tmp_path / "a.ome.tif", tmp_path / "c.ome", pyramid=2)
    assert not list(tmp_path.glob("c.ome*"))


# ------------------------------------------------------------------ what is refused


REFUSED = [
    ("a.ics", (8, 9), "u4", {}, "ICS is written with pixels of uint8.*not uint32"),
    ("a.ics", (8, 9), "f8", {}, "not float64: convert them"),
    ("a.ics", (8, 9, 1, 3), "u1", {"samples_per_pixel": 3}, "1 samples a pixel, not 3"),
    ("a.ics", (8, 9), "u1", {"compression": "deflate"}, "compression='deflate'.*none"),
    ("a.ics", (8, 9), "u1", {"pyramid": 2}, "no smaller resolutions"),
    ("a.ome", (8, 9), "u8", {}, "not uint64"),
    ("a.ome", (8, 9), "bool", {}, "not bool"),
    ("a.ome", (8, 9), "u1", {"compression": "jpeg"}, "deflate, none"),
    ("a.dcm", (8, 9, 1, 2), "u1", {}, "DICOM has no place for C=2"),
    ("a.dcm", (8, 9, 1, 1, 2), "u1", {}, "DICOM has no place for T=2"),
    ("a.dcm", (8, 9, 1, 6), "u1", {"samples_per_pixel": 3}, "no place for C=2 of RGB"),
    ("a.dcm", (8, 65536), "u1", {}, "at most 65535 pixels"),
    ("a.dcm", (32768, 32768, 2), "u1", {}, "DICOM ends at 2 GB"),
    ("a.dcm", (7, 9, 2), "u1", {}, "pads a plane of 63 bytes"),
    ("a.jp2", (8, 9, 2), "u1", {}, "JPEG 2000 has no place for Z=2"),
    ("a.jp2", (8, 9), "i2", {}, "uint8, uint16, not int16"),
    ("a.jp2", (8, 9), "u1", {"compression_level": 5}, "has no level"),
    ("a.png", (8, 9, 1, 2), "u1", {}, "PNG has no place for C=2"),
    ("a.png", (8, 9, 2, 1, 2), "u1", {}, "both Z=2 and T=2"),
    ("a.png", (8, 9), "u1", {"predictor": True}, "has no predictor"),
    ("a.avi", (8, 9), "u1", {}, "X is a multiple of 4, and it is 9: leave 1 columns out"),
    ("a.avi", (8, 8), "u2", {}, "AVI is written with pixels of uint8, not uint16"),
    ("a.ome", (70000, 70000), "u1", {}, "a plane of 70000 x 70000 pixels has 4.9 GB"),
    ("a.ome", (8, 9), "u1", {"bigtiff": True}, "no option 'bigtiff'"),
]


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "more", "says"), REFUSED, ids=lambda v: str(v)[:40]
)
def test_what_does_not_fit_is_refused_before_a_file_exists(
    tmp_path, name, shape, dtype, more, says
):
    with pytest.raises((UnsupportedError, SpecError), match=says):
        BioWriter(tmp_path / name, shape=shape, dtype=dtype, **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.ome.tif", "always written by bioio_tk itself: leave backend= out"),
        ("a.TIFF", "always written by bioio_tk itself"),
        ("a.ome.zarr", "always written by bioio_tk itself"),
        ("a.ids", "one file: end the name with .ics"),
        ("a.czi", r"end the name with one of \.ome"),
        ("ome", r"end the name with one of \.ome"),
    ],
)
def test_a_name_of_another_format_is_refused(tmp_path, name, says):
    with pytest.raises(UnsupportedError, match=says):
        BioWriter(tmp_path / name, shape=(8, 9), dtype="u1", backend="java")
    assert not list(tmp_path.iterdir())


def test_an_ome_tiff_is_ours_where_nobody_is_asked_for(tmp_path):
    assert registry.for_writing(tmp_path / "a.ome.tif").name == "python"
    assert registry.for_writing(tmp_path / "a.OME.XML").name == "java"
    with pytest.raises(UnknownFormatError, match=r"\.ics"):
        registry.for_writing(tmp_path / "a.czi")


def test_without_java_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(java_write._java_vm, "is_running", lambda: False)
    monkeypatch.setattr(_java_home, "missing", lambda: "there is no Java: install it so")
    with pytest.raises(
        BackendMissingError, match=r"'a.ics' is written by Bio-Formats: .*install it so"
    ):
        BioWriter(tmp_path / "a.ics", shape=(8, 9), dtype="u1")
    assert not list(tmp_path.iterdir())


def test_a_bio_formats_without_the_writer_is_named(tmp_path, monkeypatch):
    broken = java_write._FORMATS[".ics"]
    monkeypatch.setitem(
        java_write._FORMATS, ".ics", java_write.replace(broken, writer="NoSuchWriter")
    )
    with (
        pytest.raises(UnsupportedError, match=r"Bio-Formats \d.* does not write ICS"),
        BioWriter(tmp_path / "a.ics", shape=(8, 9), dtype="u1") as bw,
    ):
        bw[...] = 1
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ the sink itself


def sink(folder, shape=(40, 40, 2, 1, 1), **more):
    path = folder / "a.ics.partial"
    path.touch()
    spec = ImageSpec(np.dtype("u2"), (Level(shape, (16, 16, 1, 1, 1)),))
    return BioFormatsSink(path, (spec,), StoreOptions(name="a.ics", **more)), path


def test_tiles_are_loaded_as_they_were_stored_last(tmp_path):
    made, _ = sink(tmp_path)
    at, edge = Address(0, 0, (1, 1, 1, 0, 0)), Address(0, 0, (2, 2, 1, 0, 0))
    assert made.load_tile(at) is None
    for seed in (1, 2):
        tile = coded((16, 16, 1, 1, 1), seed=seed)
        made.store_tile(at, made.encode_tile(at, tile))
        np.testing.assert_array_equal(made.load_tile(at), tile)
    tile = coded((8, 8, 1, 1, 1))
    made.store_tile(edge, made.encode_tile(edge, tile))
    np.testing.assert_array_equal(made.load_tile(edge), tile)
    assert made.load_tile(edge).dtype.isnative
    assert made.load_tile(Address(0, 0, (1, 1, 0, 0, 0))) is None
    with pytest.raises(SpecError, match="shape"):
        made.encode_tile(edge, coded((16, 16, 1, 1, 1)))
    with pytest.raises(PixelTypeError, match="uint16"):
        made.encode_tile(edge, coded((8, 8, 1, 1, 1), "u1"))
    with pytest.raises(UnsupportedError, match="cannot grow"):
        made.grow(0, 5)
    made.close()
    made.close()
    with pytest.raises(ClosedError):
        made.load_tile(edge)


def test_what_waits_lies_in_a_file_that_has_no_name(tmp_path):
    made, path = sink(tmp_path)
    at = Address(0, 0, (0, 0, 0, 0, 0))
    made.store_tile(at, made.encode_tile(at, coded((16, 16, 1, 1, 1))))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size == 0  # nothing that looks whole
    made.close()
    assert not open_files(tmp_path)


def test_options_of_other_formats_and_several_images_are_refused(tmp_path):
    spec = ImageSpec(np.dtype("u2"), (Level((8, 9, 1, 1, 1), (16, 16, 1, 1, 1)),))
    with pytest.raises(UnsupportedError, match="one image, not 2"):
        BioFormatsSink.check((spec, spec), StoreOptions(name="a.ics"))
    with pytest.raises(SpecError, match="no option 'chunks'"):
        BioFormatsSink.check((spec,), StoreOptions(name="a.ics", extra={"chunks": 5}))
    deep = ImageSpec(np.dtype("u2"), (Level((8, 9, 2, 1, 1), (16, 16, 2, 1, 1)),))
    with pytest.raises(SpecError, match="along Z, C, T"):
        BioFormatsSink.check((deep,), StoreOptions(name="a.ics"))


# ------------------------------------------------------------------ when it fails


def failing(monkeypatch, exc):
    """Let Bio-Formats fail at the second plane."""
    real = java_write._Buffers.of

    def of(self, pixels, calls=[]):  # noqa: B006 (it counts)
        calls.append(1)
        if len(calls) > 1:
            raise exc
        return real(self, pixels)

    monkeypatch.setattr(java_write._Buffers, "of", of)


@pytest.mark.parametrize(
    ("thrown", "kind", "says"),
    [
        ("java.io.IOException", OSError, "No space left on device"),
        ("java.lang.OutOfMemoryError", OutOfMemoryError, "heap_mb"),
        (
            "loci.formats.FormatException",
            BackendError,
            "cannot be written by Bio-Formats: .*No space",
        ),
        ("java.lang.RuntimeException", BackendError, "cannot be written by Bio-Formats"),
    ],
)
@pytest.mark.parametrize("suffix", [".ome", ".ics", ".avi"])
def test_what_java_throws_is_said_and_nothing_looks_whole(
    java, tmp_path, monkeypatch, suffix, thrown, kind, says
):
    failing(monkeypatch, java(thrown)("No space left on device"))
    path = tmp_path / f"a{suffix}"
    bw = BioWriter(path, shape=(8, 8, 2), dtype="u1")
    bw[...] = 1
    with pytest.raises(kind, match=says) as caught:
        bw.close()
    assert isinstance(caught.value.__cause__, Exception)
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [f"{path.name}.partial"]
    assert not open_files(tmp_path)
    with pytest.raises(TargetExistsError, match="partial"):
        BioWriter(path, shape=(8, 8), dtype="u1")
    monkeypatch.undo()
    write(path, coded((8, 8, 2, 1, 1), "u1"), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    np.testing.assert_array_equal(
        KINDS[suffix].read(path, (8, 8, 2, 1, 1), 1), planes(coded((8, 8, 2, 1, 1), "u1"))
    )


def test_a_conversion_that_fails_leaves_nothing(java, tmp_path, monkeypatch):
    with BioWriter(tmp_path / "a.ome.tif", image=coded((8, 8, 2), "u1")):
        pass
    failing(monkeypatch, java("java.io.IOException")("gone"))
    with pytest.raises(OSError, match="gone"):
        convert(tmp_path / "a.ome.tif", tmp_path / "b.ics")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.tif"]


def test_an_interrupt_at_the_end_is_not_swallowed(tmp_path, monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    bw = BioWriter(tmp_path / "a.ics", shape=(8, 8, 2), dtype="u1")
    bw[...] = 1
    with pytest.raises(KeyboardInterrupt):
        bw.close()
    assert not (tmp_path / "a.ics").exists()
    assert not open_files(tmp_path)


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path, monkeypatch):
    path, image = tmp_path / "a.ics", coded((8, 9, 2, 1, 1), "u1")
    write(path, image)
    before = path.read_bytes()
    failing(monkeypatch, RuntimeError("stop"))
    with pytest.raises(RuntimeError, match="stop"):
        write(path, image[::-1], overwrite=True)
    assert path.read_bytes() == before


# ------------------------------------------------------------------ names, threads, processes


@pytest.mark.parametrize("name", ["Zellen α β.ics", "a b%20#;&[1]{2}.ome", "ICS.ICS", "x.OME.XML"])
def test_names_of_any_kind(tmp_path, name):
    image = coded((8, 9, 2, 1, 1), "u2")
    write(tmp_path / name, image)
    read = oracles.ics if name.lower().endswith(".ics") else oracles.ome_xml
    np.testing.assert_array_equal(read(tmp_path / name), image)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_file_of_the_same_name_in_the_working_folder_is_left_alone(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "a.ics").write_bytes(b"mine")
    monkeypatch.chdir(here)
    image = coded((8, 9, 2, 1, 1), "u2")
    write(there / "a.ics", image)
    np.testing.assert_array_equal(oracles.ics(there / "a.ics"), image)
    assert (here / "a.ics").read_bytes() == b"mine"
    write(Path("b.ics"), image)
    np.testing.assert_array_equal(oracles.ics(here / "b.ics"), image)


@pytest.mark.parametrize("suffix", [".ome", ".ics", ".dcm"])
def test_files_of_one_name_are_written_at_the_same_time(tmp_path, suffix):
    """Bio-Formats knows them by their name; each thread must mean its own."""
    images, errors = [coded((64, 64, 3, 1, 1), seed=n) for n in range(4)], []
    write(tmp_path / f"first{suffix}", images[0])
    gate = threading.Barrier(4)

    def work(number):
        try:
            folder = tmp_path / str(number)
            folder.mkdir()
            for _ in range(3):
                gate.wait(60)
                write(folder / f"a{suffix}", images[number], overwrite=True)
        except BaseException as exc:
            errors.append(exc)
            gate.abort()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for number, image in enumerate(images):
        found = KINDS[suffix].read(tmp_path / str(number) / f"a{suffix}", image.shape, 1)
        np.testing.assert_array_equal(found, planes(image))


CHILD = """
import sys, json, resource
import numpy as np
from bioio_tk import BioWriter
path, planes = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
plane = rng.integers(0, 60000, (1024, 1024)).astype("u2")
with BioWriter(path, shape=(1024, 1024, planes), dtype="u2", tile_size=256) as bw:
    for z in range(planes):
        bw[:, :, z] = plane + z
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def child(*args, **more):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **more,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_memory_does_not_grow_with_the_image(tmp_path):
    env = os.environ | {"BIOIO_TK_JAVA_HEAP_MB": "64"}
    few = int(child(tmp_path / "few.ics", 2, env=env).stdout)
    many = int(child(tmp_path / "many.ics", 150, env=env).stdout)  # 300 MB of pixels
    assert many < few + 120


def test_nothing_is_printed_by_a_write_and_the_process_ends(tmp_path):
    done = child(tmp_path / "a.ome", 1)
    assert json.loads(done.stdout) > 0
    assert done.stderr == ""
