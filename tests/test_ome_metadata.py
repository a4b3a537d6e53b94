"""OME-XML: what we write is valid for OME's own schema, what we read is what others read."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import ome_types
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xsdata.exceptions import ParserError

from bioio_tk.core.spec import Channel, ImageSpec, Level, PhysicalSize
from bioio_tk.errors import FormatError, SpecError
from bioio_tk.meta import repair
from bioio_tk.meta.ome import (
    ORDERS,
    OmeChannel,
    TiffData,
    default_ome,
    document,
    read_document,
    to_ome,
)

etree = pytest.importorskip("lxml.etree")

NS = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
SCHEMA = etree.XMLSchema(etree.parse(Path(ome_types.__file__).parent / "ome-2016-06.xsd"))
DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real files is not here")


def valid(xml: str) -> Any:
    """Parse with lxml, check against OME's schema, return the root."""
    root = etree.fromstring(xml.encode())
    assert SCHEMA.validate(root), f"{SCHEMA.error_log}\n{xml[:3000]}"
    return root


def spec(
    shape: tuple[int, int, int, int, int] = (4, 5, 1, 1, 1), dtype: str = "uint16", **more: Any
) -> ImageSpec:
    tile = (shape[0], shape[1], 1, more.get("samples", 1), 1)
    return ImageSpec(np.dtype(dtype), (Level(shape, tile),), **more)


def pixels(attributes: str = "", inside: str = "", image: str = "", after: str = "") -> str:
    """A small document; what is in `attributes` replaces the defaults."""
    usual = {
        "ID": "Pixels:0",
        "DimensionOrder": "XYZCT",
        "Type": "uint8",
        "SizeX": "5",
        "SizeY": "4",
        "SizeZ": "1",
        "SizeC": "1",
        "SizeT": "1",
    }
    for key in re.findall(r"([\w]+)=", attributes):
        usual.pop(key, None)
    text = " ".join(f'{k}="{v}"' for k, v in usual.items())
    return (
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f"{image}<Pixels {text} {attributes}>{inside}</Pixels></Image>{after}</OME>"
    )


# -- reading --------------------------------------------------------------------------------------


def test_everything_asked_for_is_read() -> None:
    document_ = read_document(
        '<?xml version="1.0" encoding="UTF-8"?><!-- a comment -->'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:7" Name="first"><Pixels ID="Pixels:0" DimensionOrder="XYTZC" '
        'Type="int16" BigEndian="true" SizeX="5" SizeY="4" SizeZ="3" SizeC="4" SizeT="2" '
        'PhysicalSizeX="0.5" PhysicalSizeY="500" PhysicalSizeYUnit="nm" TimeIncrement="2.5" '
        'TimeIncrementUnit="min"><Channel ID="Channel:0:0" Name="RGB" SamplesPerPixel="3"/>'
        '<Channel ID="Channel:0:1" Color="-16776961"/><TiffData IFD="2" FirstZ="1" FirstC="0" '
        'FirstT="1" PlaneCount="3"><UUID FileName="a.ome.tif">urn:uuid:2</UUID></TiffData>'
        '<TiffData/></Pixels></Image><Image ID="Image:8"><Pixels ID="Pixels:1" SizeX="1" '
        'SizeY="1" SizeZ="1" SizeC="1" SizeT="1" DimensionOrder="XYZCT" Type="float"/></Image>'
        "</OME>"
    )
    assert document_.root_uuid == "urn:uuid:1"
    assert document_.notes == ()
    first, second = document_.images
    assert (first.name, first.id, first.type, first.order) == ("first", "Image:7", "int16", "XYTZC")
    assert (first.size_x, first.size_y, first.size_z, first.size_c, first.size_t) == (5, 4, 3, 4, 2)
    assert first.big_endian is True
    assert first.channels == (
        OmeChannel("RGB", None, 3),
        OmeChannel(None, (255, 0, 0, 255), 1),
    )
    assert first.physical_size == PhysicalSize((0.5, "µm"), (500.0, "nm"), None)
    assert first.time_increment == (2.5, "min")
    assert first.tiff_data == (TiffData(1, 0, 1, 2, 3, "urn:uuid:2", "a.ome.tif"), TiffData())
    assert (second.name, second.big_endian, second.channels) == ("", None, (OmeChannel(),))


NAMESPACES = [
    "http://www.openmicroscopy.org/XMLschemas/OME/FC/ome.xsd",
    "http://www.openmicroscopy.org/Schemas/OME/2008-02",
    "http://www.openmicroscopy.org/Schemas/OME/2010-06",
    "http://www.openmicroscopy.org/Schemas/OME/2013-06",
    "http://www.openmicroscopy.org/Schemas/OME/2015-01",
    "http://www.openmicroscopy.org/Schemas/ome/2016-06",
    "",
]


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("prefix", ["", "ome:", "OME:"])
def test_any_year_and_any_prefix(namespace: str, prefix: str) -> None:
    declared = f'xmlns{":" if prefix else ""}{prefix[:-1]}="{namespace}"' if namespace else ""
    xml = pixels('Type="uint16" SizeZ="3"').replace(
        'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"', declared
    )
    for name in ("OME", "Image", "Pixels"):
        xml = xml.replace(f"<{name}", f"<{prefix}{name}").replace(f"</{name}", f"</{prefix}{name}")
    image = read_document(xml).images[0]
    assert (image.size_x, image.size_z, image.type) == (5, 3, "uint16")
    full = to_ome(xml).images[0].pixels
    assert (full.size_x, full.size_z, full.type.value) == (5, 3, "uint16")


def test_the_document_of_2003() -> None:
    image = read_document(
        '<OME xmlns="http://www.openmicroscopy.org/XMLschemas/OME/FC/ome.xsd"><Image Name="old" '
        'PixelSizeX="0.2" PixelSizeY="0.3" TimeIncrement="2"><ChannelInfo Name="DAPI" '
        'SamplesPerPixel="1"/><Pixels DimensionOrder="XYZCT" PixelType="Uint16" SizeX="2" '
        'SizeY="3" SizeZ="4" SizeC="1" SizeT="1"><TiffData IFD="1" NumPlanes="4"/></Pixels>'
        "</Image></OME>"
    ).images[0]
    assert image.type == "uint16"
    assert image.physical_size == PhysicalSize((0.2, "µm"), (0.3, "µm"), None)
    assert image.time_increment == (2.0, "s")
    assert image.channels == (OmeChannel("DAPI"),)
    assert image.tiff_data == (TiffData(ifd=1, plane_count=4),)


GOOD = pixels(inside='<Channel ID="Channel:0:0" Name="µ-tubulin 中"/>')


@pytest.mark.parametrize(
    "given_",
    [
        GOOD,
        GOOD.encode(),
        "\ufeff" + GOOD,
        b"\xef\xbb\xbf" + GOOD.encode(),
        "  \n" + GOOD + "\n\0\0\0",
        GOOD + "\0garbage <x",
        GOOD + "<more/>",
        '<?xml version="1.0" encoding="ascii"?>' + GOOD,
        b'<?xml version="1.0" encoding="UTF-8"?>' + GOOD.encode(),
        b'<?xml version="1.0" encoding="no-such"?>' + GOOD.encode(),
        b'<?xml version="1.0" encoding="UTF-16"?>' + GOOD.encode(),
        GOOD.encode("utf-16"),
        GOOD.encode("utf-16-le"),
        GOOD.encode("utf-16-be"),
        "<!-- <OME> & co -->" + GOOD,
        "\r\nDescription: " + GOOD,
    ],
)
def test_what_is_around_the_document_does_not_matter(given_: str | bytes) -> None:
    image = read_document(given_).images[0]
    assert image.size_x == 5
    assert image.channels[0].name == "µ-tubulin 中"


def test_bytes_in_another_encoding_than_declared() -> None:
    xml = '<?xml version="1.0" encoding="UTF-8"?>' + pixels(
        'PhysicalSizeX="2" PhysicalSizeXUnit="µm"', '<Channel ID="Channel:0:0" Name="ß"/>'
    )
    read = read_document(xml.encode("latin-1"))
    assert read.images[0].physical_size.x == (2.0, "µm")
    assert read.images[0].channels[0].name == "ß"
    assert any("Latin-1" in note for note in read.notes)


@pytest.mark.parametrize(
    ("attributes", "field", "value", "note"),
    [
        ('PhysicalSizeX="2" PhysicalSizeXUnit="um"', "x", (2.0, "µm"), "read as 'µm'"),
        ('PhysicalSizeX="2" PhysicalSizeXUnit="\u03bcm"', "x", (2.0, "µm"), "read as 'µm'"),
        ('PhysicalSizeX="2" PhysicalSizeXUnit="Âµm"', "x", (2.0, "µm"), "read as 'µm'"),
        ('PhysicalSizeX="2" PhysicalSizeXUnit="Î¼m"', "x", (2.0, "µm"), "read as 'µm'"),
        ('PhysicalSizeX="2" PhysicalSizeXUnit="\ufffdm"', "x", (2.0, "µm"), "read as 'µm'"),
        ('PhysicalSizeX="2" PhysicalSizeXUnit="Ã…"', "x", (2.0, "Å"), "read as 'Å'"),
        ('PhysicalSizeX="2" PhysicalSizeXUnit="smoot"', "x", None, "no unit"),
        ('PhysicalSizeX="2" PhysicalSizeXUnit="pixel"', "x", (2.0, "pixel"), None),
        ('PhysicalSizeX="0"', "x", None, "makes no sense"),
        ('PhysicalSizeX="-1"', "x", None, "makes no sense"),
        ('PhysicalSizeX="NaN"', "x", None, "makes no sense"),
        ('PhysicalSizeX="Infinity"', "x", None, "makes no sense"),
        ('PhysicalSizeX="INF"', "x", None, "makes no sense"),
        ('PhysicalSizeX="1e999"', "x", None, "makes no sense"),
        ('PhysicalSizeX="wide"', "x", None, "makes no sense"),
        ('PhysicalSizeX=""', "x", None, None),
        ('PhysicalSizeX="0,325"', "x", (0.325, "µm"), "read as 0.325"),
        ('TimeIncrement="0"', "time_increment", None, None),
        ('TimeIncrement="-3"', "time_increment", None, "makes no sense"),
        ('TimeIncrement="3" TimeIncrementUnit="sec"', "time_increment", (3.0, "s"), "read as 's'"),
        ('SizeZ="3.0"', "size_z", 3, "read as 3"),
        ('SizeZ="three"', "size_z", 1, "taken as 1"),
        ('SizeT="0"', "size_t", 1, "taken as 1"),
        ('SizeC="-2"', "size_c", 1, "taken as 1"),
        ('SizeX="nan"', "size_x", 0, "left to the pixels"),
        ('SizeX=""', "size_x", 0, "left to the pixels"),
        (f'SizeX="{"9" * 5000}"', "size_x", 0, "left to the pixels"),
        ('DimensionOrder="xyczt"', "order", "XYCZT", None),
        ('DimensionOrder="ZYX"', "order", "XYZCT", "taken as XYZCT"),
        ('Type="UInt16"', "type", "uint16", None),
        ('Type="rgb"', "type", "rgb", None),
    ],
)
def test_what_is_wrong_is_mended_and_noted(
    attributes: str, field: str, value: Any, note: str | None
) -> None:
    read = read_document(pixels(attributes))
    image = read.images[0]
    assert getattr(image.physical_size if field == "x" else image, field) == value
    if note is None:
        assert read.notes == ()
    else:
        assert any(note in line for line in read.notes), read.notes
        assert all("\n" not in line for line in read.notes)


def test_channels_are_made_to_fit() -> None:
    one = '<Channel ID="Channel:0:0" Name="a"/>'
    assert read_document(pixels('SizeC="3"')).images[0].channels == (OmeChannel(),) * 3
    few = read_document(pixels('SizeC="3"', one))
    assert few.images[0].channels == (OmeChannel("a"), OmeChannel(), OmeChannel())
    assert "2 of 3 channels" in few.notes[0]
    many = read_document(pixels('SizeC="1"', one * 3))
    assert many.images[0].channels == (OmeChannel("a"),)
    assert "more samples" in many.notes[0]
    huge = read_document(pixels(f'SizeC="{10**15 - 1}"'))
    assert len(huge.images[0].channels) < 10**6


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        ('Name="a & b"', "a & b"),
        ('Name="a &amp; b & c"', "a & b & c"),
        ('Name="5 &micro;m"', "5 µm"),
        ('Name="&foo;"', "&foo;"),
        ('Name="a&#0;b&#x1f;c"', "abc"),
        ('Name="a\x01b\x1fc"', "abc"),
        ('Name="a<b"', "a<b"),
        ('Name="a<b & c"', "a<b & c"),
        ('Name="a\0b"', "ab"),
    ],
)
def test_text_that_is_no_xml_is_read_as_meant(broken: str, name: str) -> None:
    xml = pixels(
        inside=f'<Channel ID="Channel:0:0" {broken}/>', image="<!-- & <b> --><X><![CDATA[&]]></X>"
    )
    read = read_document(xml)
    assert read.images[0].channels[0].name == name
    assert read.notes
    assert to_ome(xml).images[0].pixels.channels[0].name == name
    assert valid(document([spec()], metadata=xml)).find(f".//{NS}Channel").get("Name") == name


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "no xml",
        "<OME",
        "<OME/>",
        "<OME></OME",
        "<foo/>",
        GOOD[: len(GOOD) // 2],
        GOOD[:-3],
        "<OME><Image/></OME>",
        b"",
        b"\xff\xfe",
        b"\0\0\0",
        "<OME><Image></OME>",
        GOOD.replace("SizeX", "SizeY", 1),
        "<" * 10000,
        "<!--" * 10000,
        "&" * 10000,
        "<OME " + 'a="&' * 1000,
        "<html><body/></html>",
    ],
)
def test_what_is_no_document_is_a_format_error(bad: str | bytes) -> None:
    with pytest.raises(FormatError):
        read_document(bad)
    with pytest.raises(FormatError):
        to_ome(bad)


BOMB = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))


@pytest.mark.parametrize(
    "prologue",
    [
        "<!DOCTYPE OME>",
        f'<!DOCTYPE OME [<!ENTITY a0 "ha">{BOMB}]>',
        '<!DOCTYPE OME SYSTEM "http://127.0.0.1:9/x.dtd">',
        '<!DOCTYPE OME [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE OME [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]>',
    ],
)
def test_documents_that_declare_entities_are_refused(prologue: str) -> None:
    xml = prologue + pixels(inside='<Channel ID="Channel:0:0" Name="&x;&a11;"/>')
    for read in (read_document, to_ome, lambda x: document([spec()], metadata=x)):
        with pytest.raises(FormatError, match="DOCTYPE"):
            read(xml)


def test_absurd_documents_do_not_hang() -> None:
    deep = "<a>" * 100_000
    for xml in (f"<OME>{deep}", pixels(after=deep), pixels(after="<X>" + deep)):
        for read in (read_document, to_ome):
            with pytest.raises(FormatError, match="deeper"):
                read(xml)
    start = time.process_time()
    long = read_document(pixels(inside=f'<Channel ID="Channel:0:0" Name="{"x" * 10_000_000}"/>'))
    assert len(long.images[0].channels[0].name or "") == 10_000_000
    with pytest.raises(FormatError):
        read_document("<OME>" + "&<!--" * 200_000)
    urn = "urn:lsid:" + "a." * 5000
    valid(document([spec()], metadata=pixels(after=f'<Instrument ID="{urn}"/>')))
    assert time.process_time() - start < 20


def test_a_file_of_50000_planes_is_read_quickly() -> None:
    data = "".join(
        f'<TiffData IFD="{i}" FirstZ="{i}" FirstC="0" FirstT="0" PlaneCount="1"/>'
        for i in range(50_000)
    )
    xml = pixels('SizeZ="50000"', data)
    start = time.process_time()
    image = read_document(xml).images[0]
    assert time.process_time() - start < 2  # a fifth of a second on a quiet machine
    assert image.tiff_data[49_999] == TiffData(49_999, 0, 0, 49_999, 1)


def test_reading_does_not_load_the_full_model() -> None:
    code = (
        "import sys, bioio_tk.meta.ome as m; m.read_document(sys.argv[1]);"
        "sys.exit('ome_types' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, GOOD], check=False).returncode == 0


def test_elements_elsewhere_are_not_taken_for_images() -> None:
    after = (
        '<StructuredAnnotations><XMLAnnotation ID="Annotation:0"><Value><Image><Pixels SizeX="9"/>'
        "</Image></Value></XMLAnnotation></StructuredAnnotations>"
    )
    assert len(read_document(pixels(after=after)).images) == 1
    assert len(valid(document([spec()], metadata=pixels(after=after))).findall(f"{NS}Image")) == 1


def test_a_document_that_only_names_another_file() -> None:
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><BinaryOnly '
        'MetadataFile="main.ome.tif" UUID="urn:uuid:64ab19c6-e378-43dc-9c9d-d57f0e776d20"/></OME>'
    )
    read = read_document(xml)
    assert (read.images, read.metadata_only_file) == ((), "main.ome.tif")
    assert to_ome(xml).binary_only.metadata_file == "main.ome.tif"
    assert valid(document([spec()], metadata=xml)).find(f"{NS}BinaryOnly") is None


@given(st.text() | st.binary())
def test_nothing_ends_in_another_error(given_: str | bytes) -> None:
    with contextlib.suppress(FormatError):
        read_document(given_)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_documents_are_read_or_refused(data: st.DataObject) -> None:
    xml = document([spec((4, 5, 2, 3, 1), name="a", channels=(Channel("x"),) * 3)], tiff=True)
    at = data.draw(st.integers(0, len(xml)))
    cut = data.draw(st.integers(0, 40))
    broken = xml[:at] + data.draw(st.text(max_size=5)) + xml[at + cut :]
    with contextlib.suppress(FormatError):
        read_document(broken)
        valid(document([spec()], metadata=broken))


# -- writing --------------------------------------------------------------------------------------

TYPES = {
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "float32": "float",
    "float64": "double",
    "complex64": "complex",
    "complex128": "double-complex",
    "bool": "uint8",
    "float16": "float",
    "int64": "double",
    "uint64": "double",
}
UNNAMED = ("bool", "int64", "uint64", "float16")
"""Types whose name is kept in an annotation, because Type says something else."""
LENGTHS = [u.value for u in ome_types.model.UnitsLength]
TIMES = [u.value for u in ome_types.model.UnitsTime]

names = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("&<>\"'\0\x01\x1f\t\n\r\ufffe\ud800 "),
    max_size=30,
) | st.sampled_from(["x" * 5000, "🔬🧬", "中文", "]]>", "<!--", "&amp;", "\u202e", "e\u0301"])
sizes = st.integers(1, 9)
values = st.floats() | st.sampled_from([0.65, 1.0, 0.0, -1.0, 5e-324, 1.7e308])


@st.composite
def specs(draw: st.DrawFn) -> ImageSpec:
    samples = draw(st.sampled_from([1, 1, 1, 2, 3, 4]))
    c = samples * draw(st.integers(1, 3))
    shape = (draw(sizes), draw(sizes), draw(sizes), c, draw(sizes))
    length = st.none() | st.tuples(values, st.sampled_from([*LENGTHS, "um", "micron", "μm"]))
    color = st.none() | st.tuples(*[st.integers(0, 255)] * 4)
    channels = st.builds(Channel, st.none() | names, color)
    return spec(
        shape,
        draw(st.sampled_from(list(TYPES))),
        name=draw(names),
        samples=samples,
        channels=tuple(draw(st.lists(channels, min_size=c, max_size=c)))
        if draw(st.booleans())
        else (),
        physical_size=PhysicalSize(draw(length), draw(length), draw(length)),
        time_increment=draw(st.none() | st.tuples(values, st.sampled_from([*TIMES, "sec", "us"]))),
    )


def clean(text: str) -> str:
    """What XML 1.0 can hold of a text: its Char production, one character at a time."""
    return "".join(
        c
        if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
        else "\ufffd"
        for c in text
    )


def check_geometry(root: Any, images: list[ImageSpec], tiff: bool) -> None:
    """Compare a parsed document with the specs, element by element."""
    elements = root.findall(f"{NS}Image")
    assert len(elements) == len(images)
    ifd = 0
    for element, image in zip(elements, images, strict=True):
        p = element.find(f"{NS}Pixels")
        y, x, z, c, t = image.shape
        assert [p.get(f"Size{a}") for a in "XYZCT"] == [str(n) for n in (x, y, z, c, t)]
        assert p.get("Type") == TYPES[image.dtype.name]
        assert p.get("DimensionOrder") == "XYZCT"
        assert p.get("BigEndian") == "false"
        assert p.get("Interleaved") == ("true" if image.samples > 1 else None)
        channels = p.findall(f"{NS}Channel")
        assert len(channels) == c // image.samples
        assert all(ch.get("SamplesPerPixel") == str(image.samples) for ch in channels)
        data = p.findall(f"{NS}TiffData")
        if tiff:
            count = z * t * (c // image.samples)
            assert [dict(d.attrib) for d in data] == [
                {
                    "IFD": str(ifd),
                    "PlaneCount": str(count),
                    "FirstZ": "0",
                    "FirstC": "0",
                    "FirstT": "0",
                }
            ]
            ifd += count
        else:
            assert not data
            assert p.find(f"{NS}MetadataOnly") is not None
        assert p.find(f"{NS}BinData") is None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(specs(), min_size=1, max_size=3), st.booleans(), names)
def test_what_is_written_is_valid_and_says_what_was_given(
    images: list[ImageSpec], tiff: bool, creator: str
) -> None:
    root = valid(document(images, tiff=tiff, creator=creator))
    check_geometry(root, images, tiff)
    assert root.get("Creator") == clean(creator)
    for element, image in zip(root.findall(f"{NS}Image"), images, strict=True):
        assert element.get("Name", "") == clean(image.name)
        p = element.find(f"{NS}Pixels")
        for axis, quantity in zip("XYZ", image.physical_size, strict=True):
            if quantity is None or not 1e-37 <= quantity[0] < float("inf"):
                assert p.get(f"PhysicalSize{axis}") is None
            else:
                assert float(p.get(f"PhysicalSize{axis}")) == quantity[0]
                assert p.get(f"PhysicalSize{axis}Unit") in LENGTHS
        for n, channel in enumerate(p.findall(f"{NS}Channel")):
            given_ = (image.channels or (Channel(),) * 99)[n * image.samples]
            assert channel.get("Name") == (clean(given_.name) if given_.name else None)
            if given_.color is not None:
                packed = int(np.frombuffer(bytes(given_.color), ">i4")[0])
                assert channel.get("Color") == str(packed)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(specs(), min_size=1, max_size=2), st.booleans())
def test_ome_types_reads_what_is_written(images: list[ImageSpec], tiff: bool) -> None:
    ome = to_ome(document(images, tiff=tiff))
    for image, found in zip(images, ome.images, strict=True):
        p = found.pixels
        assert (p.size_y, p.size_x, p.size_z, p.size_c, p.size_t) == image.shape
        for channel, given_ in zip(p.channels, image.channels[:: image.samples], strict=False):
            if given_.color is not None:
                rgba = channel.color.as_rgb_tuple(alpha=True)
                assert tuple(rgba[:3]) == given_.color[:3]
                assert round(rgba[3] * 255) == given_.color[3]


@settings(max_examples=100, deadline=None)
@given(specs())
def test_reading_back_gives_what_was_written(image: ImageSpec) -> None:
    read = read_document(document([image], tiff=True))
    assert read.notes == ()
    found = read.images[0]
    assert (found.size_y, found.size_x, found.size_z, found.size_c, found.size_t) == image.shape
    assert found.stored_dtype == (image.dtype.name if image.dtype.name in UNNAMED else None)
    assert sum(c.samples for c in found.channels) == found.size_c


@pytest.mark.parametrize("samples", [1, 3])
def test_tifffile_finds_every_plane_where_the_document_says(tmp_path: Path, samples: int) -> None:
    # A layout written by tifffile, page after page, with our document; read by tifffile.
    path = tmp_path / "a.ome.tif"
    shapes = [(6, 7, 3, 2 * samples, 2), (5, 4, 2, samples, 3)]
    images = [spec(s, "uint8", samples=samples) for s in shapes]
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 255, s, "uint8") for s in shapes]
    with tifffile.TiffWriter(path) as out:
        text: str | None = document(images, tiff=True)
        for array in arrays:
            _, _, z, c, t = array.shape
            for it in range(t):
                for ic in range(0, c, samples):
                    for iz in range(z):
                        page = array[:, :, iz, ic : ic + samples, it]
                        out.write(
                            page if samples > 1 else page[..., 0],
                            photometric="rgb" if samples > 1 else "minisblack",
                            description=(text or "").encode() or None,
                            metadata=None,
                            contiguous=False,
                        )
                        text = None
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome
        for series, array in zip(tif.series, arrays, strict=True):
            got = series.asarray()
            axes = series.axes
            # T, channel, Z, Y, X and the samples, whatever tifffile left out or squeezed.
            full = [a for a in "TCZYXS" if a not in axes]
            got = got.reshape((1,) * len(full) + got.shape)
            order = "".join(full) + axes
            got = got.transpose([order.index(a) for a in "TCZYXS"])
            t, c, z, y, x, s = got.shape
            wanted = array.reshape(y, x, z, c, s, t).transpose(5, 3, 2, 0, 1, 4)
            np.testing.assert_array_equal(got, wanted)


def test_a_small_document_takes_no_time() -> None:
    images = [spec((64, 64, 3, 2, 4), channels=(Channel("a"), Channel("b")))]
    document(images)
    best = min(_timed(lambda: document(images, tiff=True)) for _ in range(20))
    assert best < 0.005  # about 0.2 ms on a quiet machine


def _timed(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def test_wrong_specs_are_refused() -> None:
    with pytest.raises(SpecError, match="no unit of length"):
        document([spec(physical_size=PhysicalSize((1.0, "smoot")))])
    with pytest.raises(SpecError, match="0 to 255"):
        document([spec(channels=(Channel("a", (256, 0, 0, 0)),))])
    with pytest.raises(SpecError, match=r"give an ome_types\.OME"):
        document([spec()], metadata=3)  # type: ignore[arg-type]


def test_default_metadata() -> None:
    ome = default_ome([spec((4, 5, 2, 3, 1), name="a"), spec(name="b")])
    assert isinstance(ome, ome_types.OME)
    assert [i.name for i in ome.images] == ["a", "b"]
    assert ome.images[0].pixels.size_c == len(ome.images[0].pixels.channels) == 3


# -- carrying over --------------------------------------------------------------------------------

RICH = """<?xml version="1.0"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" Creator="someone"
 UUID="urn:uuid:64ab19c6-e378-43dc-9c9d-d57f0e776d20">
 <Dataset ID="Dataset:0"><ImageRef ID="Image:0"/><ImageRef ID="Image:1"/></Dataset>
 <Plate ID="Plate:0"><Well ID="Well:0" Row="0" Column="0">
  <WellSample ID="WellSample:0" Index="0"><ImageRef ID="Image:0"/></WellSample>
  <WellSample ID="WellSample:1" Index="1"><ImageRef ID="Image:1"/></WellSample></Well></Plate>
 <Experimenter ID="Experimenter:0" LastName="Lovelace"/>
 <Instrument ID="Instrument:0"><Laser ID="LightSource:0" Power="3"/>
  <Detector ID="Detector:0" Model="EM &amp; CCD"/>
  <Objective ID="Objective:0" NominalMagnification="20" LensNA="0.8"/></Instrument>
 <Image ID="Image:0" Name="source"><AcquisitionDate>2019-06-27T18:33:40.619</AcquisitionDate>
  <ExperimenterRef ID="Experimenter:0"/><Description>Two
lines</Description><InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0"/>
  <StageLabel Name="here" X="1.5" XUnit="mm"/>
  <Pixels ID="Pixels:9" DimensionOrder="XYCZT" Type="uint16" SignificantBits="12" SizeX="100"
   SizeY="80" SizeZ="3" SizeC="2" SizeT="2" PhysicalSizeX="0.65" PhysicalSizeXUnit="um"
   BigEndian="true">
   <Channel ID="Channel:x" Name="DAPI" Color="65535" EmissionWavelength="461" Fluor="DAPI">
    <LightSourceSettings ID="LightSource:0"/><DetectorSettings ID="Detector:0" Gain="2"/></Channel>
   <Channel ID="Channel:y" Name="GFP" ExcitationWavelength="488"/>
   <BinData BigEndian="false" Length="4">AAAA</BinData>
   <Plane TheZ="0" TheC="0" TheT="0" ExposureTime="10" ExposureTimeUnit="ms" PositionX="5"/>
   <Plane TheZ="2" TheC="1" TheT="1" DeltaT="3"><HashSHA1>
    0123456789012345678901234567890123456789</HashSHA1></Plane>
  </Pixels><ROIRef ID="ROI:0"/><AnnotationRef ID="Annotation:0"/></Image>
 <Image ID="Image:1" Name="other"><Pixels ID="Pixels:1" DimensionOrder="XYZCT" Type="uint8"
  SizeX="1" SizeY="1" SizeZ="1" SizeC="1" SizeT="1"><Channel ID="Channel:z"/><MetadataOnly/>
  </Pixels><ROIRef ID="ROI:1"/></Image>
 <StructuredAnnotations><MapAnnotation ID="Annotation:0" Namespace="some/where"><Value>
  <M K="key">value</M></Value></MapAnnotation><XMLAnnotation ID="Annotation:1"><Value>
  <foo xmlns="urn:x" a="1"><bar>text</bar></foo></Value></XMLAnnotation></StructuredAnnotations>
 <ROI ID="ROI:0"><Union><Rectangle ID="Shape:0" X="1" Y="2" Width="3" Height="4"/></Union></ROI>
 <ROI ID="ROI:1"><Union><Point ID="Shape:1" X="1" Y="2"/></Union></ROI>
</OME>"""


def test_the_source_of_these_tests_is_valid() -> None:
    valid(RICH.replace('XUnit="um"', 'XUnit="µm"'))


@pytest.mark.parametrize("as_object", [False, True])
def test_metadata_is_carried_over(as_object: bool) -> None:
    metadata: Any = RICH.replace('XUnit="um"', 'XUnit="µm"')
    if as_object:
        metadata = ome_types.from_xml(metadata.encode())
        before = metadata.model_dump(), metadata.model_fields_set.copy()
    images = [spec((40, 50, 2, 2, 1), name="new"), spec((3, 3, 1, 1, 1))]
    root = valid(document(images, metadata=metadata, tiff=True))
    if as_object:
        assert (metadata.model_dump(), metadata.model_fields_set) == before
    check_geometry(root, images, tiff=True)
    assert root.get("UUID") is None
    assert root.get("Creator") == "bioio_tk"
    first = root.find(f"{NS}Image")
    assert first.get("Name") == "new"
    assert first.findtext(f"{NS}AcquisitionDate").startswith("2019-06-27T18:33:40.619")
    assert first.findtext(f"{NS}Description") == "Two\nlines"
    assert first.find(f"{NS}StageLabel").get("XUnit") == "mm"
    p = first.find(f"{NS}Pixels")
    assert p.get("SignificantBits") == "12"
    assert (p.get("PhysicalSizeX"), p.get("PhysicalSizeXUnit")) == ("0.65", "µm")
    dapi, gfp = p.findall(f"{NS}Channel")
    assert (dapi.get("Name"), dapi.get("Color"), dapi.get("Fluor")) == ("DAPI", "65535", "DAPI")
    assert float(dapi.get("EmissionWavelength")) == 461
    assert dapi.find(f"{NS}DetectorSettings").get("ID") == "Detector:0"
    assert float(gfp.get("ExcitationWavelength")) == 488
    (plane,) = p.findall(f"{NS}Plane")  # Z 2 and T 1 are gone
    assert (float(plane.get("ExposureTime")), plane.get("ExposureTimeUnit")) == (10, "ms")
    assert root.find(f".//{NS}Detector").get("Model") == "EM & CCD"
    assert root.find(f".//{NS}Rectangle").get("Width") in ("3", "3.0")
    assert root.find(f".//{NS}M").text == "value"
    assert root.find(".//{urn:x}bar").text == "text"
    assert len(root.findall(f".//{NS}WellSample/{NS}ImageRef")) == 2


def test_specs_win_over_metadata() -> None:
    image = spec(
        (4, 5, 1, 3, 1),
        "uint8",
        channels=(Channel("red", (255, 0, 0, 255)), Channel(), Channel("third")),
        physical_size=PhysicalSize((2.0, "nm")),
    )
    p = valid(document([image], metadata=RICH)).find(f"{NS}Image/{NS}Pixels")
    assert [c.get("Name") for c in p.findall(f"{NS}Channel")] == ["red", "GFP", "third"]
    assert [c.get("Color") for c in p.findall(f"{NS}Channel")] == ["-16776961", None, None]
    assert (p.get("PhysicalSizeX"), p.get("PhysicalSizeXUnit")) == ("2.0", "nm")
    assert p.get("SignificantBits") == "8"


def test_fewer_images_take_their_references_along() -> None:
    root = valid(document([spec()], metadata=RICH))
    assert "Image:1" not in etree.tostring(root, encoding="unicode")
    assert len(root.findall(f"{NS}Image")) == 1
    assert len(root.findall(f".//{NS}WellSample")) == 2


def test_more_images_are_added() -> None:
    images = [spec(name="a"), spec(name="b"), spec((2, 2, 2, 2, 2), name="c")]
    root = valid(document(images, metadata=RICH, tiff=True))
    assert [i.get("Name") for i in root.findall(f"{NS}Image")] == ["a", "b", "c"]
    check_geometry(root, images, tiff=True)


def test_a_colour_channel_becomes_three_and_three_become_one() -> None:
    rgb = pixels(
        'SizeC="3"',
        '<Channel ID="Channel:0:0" Name="RGB" SamplesPerPixel="3"><LightPath/></Channel>',
    )
    root = valid(document([spec((4, 5, 1, 3, 1), "uint8")], metadata=rgb))
    assert len(root.findall(f".//{NS}Channel")) == 3
    back = valid(
        document(
            [spec((4, 5, 1, 3, 1), "uint8", samples=3)],
            metadata=document(
                [
                    spec(
                        (4, 5, 1, 3, 1),
                        "uint8",
                        channels=(Channel("r"), Channel("g"), Channel("b")),
                    )
                ]
            ),
        )
    )
    (channel,) = back.findall(f".//{NS}Channel")
    assert (channel.get("Name"), channel.get("SamplesPerPixel")) == ("r", "3")


def test_the_noted_type_does_not_outlive_the_pixels_it_was_for() -> None:
    xml = document([spec(dtype="int64")])
    assert read_document(xml).images[0].stored_dtype == "int64"
    again = document([spec(dtype="uint64")], metadata=xml)
    valid(again)
    assert read_document(again).images[0].stored_dtype == "uint64"
    other = document([spec(dtype="uint8")], metadata=again)
    valid(other)
    assert read_document(other).images[0].stored_dtype is None
    assert "pixel-type" not in other


DAMAGE = [
    ('ID="Instrument:0"', 'ID="Microscope 1"'),
    ('ID="Detector:0" Model', 'ID="Cam" Model'),
    ('<ExperimenterRef ID="Experimenter:0"/>', '<ExperimenterRef ID="Experimenter:99"/>'),
    ('<ObjectiveSettings ID="Objective:0"/>', '<ObjectiveSettings ID="Objective:5"/>'),
    ('ID="Shape:1"', 'ID="Shape:0"'),
    ('ID="Image:1"', 'ID="Image:0"'),
    ('<StageLabel Name="here"', "<StageLabel"),
    ('Power="3"', 'Power="3" Colour="red" xmlns:q="urn:q" q:z="1"'),
    ("<Union>", "<Unknown/><Union>"),
    ('Width="3"', 'Width="wide"'),
    ("2019-06-27T18:33:40.619", "27/06/2019"),
    ('Fluor="DAPI"', 'AcquisitionMode="Nonsense" ContrastMethod="fluorescence"'),
    ('EmissionWavelength="461"', 'EmissionWavelength="0"'),
    ('ExposureTimeUnit="ms"', 'ExposureTimeUnit="blink"'),
    ('TheZ="0" TheC="0"', 'TheZ="0.0" TheC="-1"'),
    ('Namespace="some/where"', 'Namespace="some where"'),
    ("AAAA", "not base64!"),
    ('<foo xmlns="urn:x" a="1">', '<Channel><Pixels/></Channel><foo xmlns="urn:x" a="1">'),
    (' ID="Image:0" Name', " Name"),
    ("<InstrumentRef", "<ROIRef ID='ROI:0'/><InstrumentRef"),
    ('<M K="key">value</M>', '<M>value</M><M K="k"/>'),
    ('Color="65535"', 'Color="4294967295"'),
]


@pytest.mark.parametrize(("good", "bad"), DAMAGE)
def test_metadata_that_is_not_valid_is_made_valid(good: str, bad: str) -> None:
    assert good in RICH
    xml = RICH.replace(good, bad, 1)
    root = valid(document([spec((40, 50, 2, 2, 1)), spec()], metadata=xml))
    assert root.find(f".//{NS}Rectangle") is not None or "wide" in bad
    assert isinstance(to_ome(xml), ome_types.OME)


def test_what_the_parser_takes_for_an_element_of_ome_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which classes it knows depends on what was read before in the process."""
    strict = ome_types.from_xml

    def knowing(document: bytes, **given: Any) -> ome_types.OME:
        # nor may it know the classes of other packages
        assert given["parser_kwargs"]["context"].models_package == "ome_types"
        if "config" not in given["parser_kwargs"]:
            raise ParserError("Unknown property Channel:Pixels")
        return strict(document, **given)

    monkeypatch.setattr(ome_types, "from_xml", knowing)
    found = to_ome(RICH)
    assert [len(image.pixels.channels) for image in found.images] == [2, 1]


def test_references_follow_an_id_that_had_to_change() -> None:
    xml = RICH.replace('"Detector:0"', '"Cam 1"').replace('"Instrument:0"', '"Scope"')
    root = valid(document([spec((4, 5, 1, 2, 1))], metadata=xml))
    assert root.find(f".//{NS}Detector").get("ID") == "Detector:Cam1"
    assert root.find(f".//{NS}DetectorSettings").get("ID") == "Detector:Cam1"
    assert root.find(f".//{NS}InstrumentRef").get("ID") == root.find(f"{NS}Instrument").get("ID")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(specs(), min_size=1, max_size=3), st.booleans(), st.data())
def test_any_specs_with_any_damage_give_a_valid_document(
    images: list[ImageSpec], tiff: bool, data: st.DataObject
) -> None:
    xml = RICH
    for good, bad in data.draw(st.lists(st.sampled_from(DAMAGE), max_size=6, unique=True)):
        xml = xml.replace(good, bad, 1)
    check_geometry(valid(document(images, metadata=xml, tiff=tiff)), images, tiff)


def test_orders_are_those_of_the_schema() -> None:
    assert set(ORDERS) == {o.value for o in ome_types.model.Pixels_DimensionOrder}


def test_a_full_model_needs_a_type_and_a_size() -> None:
    for xml in (pixels('Type="rgb"'), pixels('SizeX="-1"')):
        with pytest.raises(FormatError, match="has no valid"):
            to_ome(xml)
        valid(document([spec()], metadata=xml))


def test_old_documents_are_carried_over_without_the_stylesheets_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = RICH.replace("2016-06", "2013-06").replace(' XUnit="mm"', "")
    with_style = valid(document([spec((4, 5, 1, 2, 1))], metadata=old))
    assert with_style.find(f".//{NS}Rectangle") is not None
    monkeypatch.setattr(repair, "_upgraded", lambda *_: None)
    root = valid(document([spec((4, 5, 1, 2, 1))], metadata=old))
    assert root.find(f".//{NS}Detector").get("Model") == "EM & CCD"


# -- real files -----------------------------------------------------------------------------------


def real_documents() -> list[Any]:
    found = []
    for folder in ("ome-xml", "ome-tiff", "gen/tifffile"):
        for path in sorted((DATA / folder).rglob("*")):
            if path.name.endswith((".ome.xml", ".ome.tif", ".ome.tiff")):
                found.append(pytest.param(path, id=path.name))
    return found or [pytest.param(None, id="absent")]


def text_of(path: Path) -> bytes:
    if path.suffix == ".xml":
        return path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        return tif.pages.first.description.encode()


@needs_data
@pytest.mark.parametrize("path", real_documents())
def test_the_documents_of_real_files(path: Path) -> None:
    xml = text_of(path)
    if path.name.startswith(("omexml_broken", "omexml_empty")):
        with pytest.raises(FormatError):
            read_document(xml)
        return
    read = read_document(xml)
    if read.metadata_only_file is not None:
        assert path.with_name(read.metadata_only_file).is_file()
        return
    source = etree.fromstring(xml, etree.XMLParser(recover=True))
    local = Counter(etree.QName(e).localname for e in source.iter(etree.Element))
    for image, element in zip(read.images, source.findall("{*}Image/{*}Pixels"), strict=True):
        for axis in "XYZCT":
            assert getattr(image, f"size_{axis.lower()}") == int(element.get(f"Size{axis}"))
        assert image.order == element.get("DimensionOrder")
        assert image.type == element.get("Type")
        assert [d.ifd for d in image.tiff_data] == [
            int(d.get("IFD")) if d.get("IFD") else None for d in element.findall("{*}TiffData")
        ]
        assert [c.name for c in image.channels][: len(element.findall("{*}Channel"))] == [
            c.get("Name") for c in element.findall("{*}Channel")
        ]
    dtypes = {ome: name for name, ome in list(TYPES.items())[:10]} | {"bit": "bool"}
    images = [
        spec(
            (i.size_y, i.size_x, i.size_z, i.size_c, i.size_t),
            dtypes[i.type],
            samples=i.channels[0].samples,
        )
        for i in read.images
    ]
    for tiff in (True, False):
        root = valid(document(images, metadata=xml, tiff=tiff))
        check_geometry(root, images, tiff)
        after = Counter(etree.QName(e).localname for e in root.iter(etree.Element))
        lost = {
            name: n - after[name]
            for name, n in local.items()
            if after[name] < n and name not in ("TiffData", "UUID", "BinData", "Plane")
        }
        assert not lost, lost
    ome = to_ome(xml)
    assert len(ome.images) == len(read.images)
    valid(document(images, metadata=ome, tiff=True))
    for k in range(len(images)):
        valid(document(images[:k] or images * 2, metadata=xml))
