"""Metadata follow what is selected, and an image says what it was made from."""

import json
import os
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import ome_types
import pytest
import tifffile
import zarr
from lxml import etree

from bioio_tk import BioReader, convert, imwrite
from bioio_tk.errors import TargetExistsError

SCHEMA = etree.XMLSchema(etree.parse(Path(ome_types.__file__).parent / "ome-2016-06.xsd"))
NS = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
T, C, Z, Y, X = 4, 3, 6, 64, 80
IMAGE = np.arange(T * C * Z * Y * X, dtype=np.uint32).reshape(T, C, Z, Y, X).astype("u2")
DOCUMENT = f"""<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
 <Instrument ID="Instrument:0"><Detector ID="Detector:0:0" Model="camera"/></Instrument>
 <Image ID="Image:0" Name="cells"><Description>two fish</Description>
  <StageLabel Name="here" X="100" XUnit="mm" Y="7" YUnit="reference frame"/>
  <Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="{X}" SizeY="{Y}" SizeZ="{Z}"
   SizeC="{C}" SizeT="{T}" PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="0.25"
   PhysicalSizeYUnit="µm" PhysicalSizeZ="2" TimeIncrement="3" BigEndian="false">
   <Channel ID="Channel:0:0" Name="DAPI" Color="65535" EmissionWavelength="450"><DetectorSettings
    ID="Detector:0:0" Gain="1"/></Channel>
   <Channel ID="Channel:0:1" Name="GFP" Color="16711935" EmissionWavelength="510"/>
   <Channel ID="Channel:0:2" Name="RFP" Color="-16776961" EmissionWavelength="600"/>
   <TiffData IFD="0" PlaneCount="{T * C * Z}"/>
   {"".join(f'<Plane TheZ="{z}" TheC="{c}" TheT="{t}" DeltaT="{100 * t + 10 * c + z}"/>'
            for t in range(T) for c in range(C) for z in range(Z))}
  </Pixels><ROIRef ID="ROI:0"/><ROIRef ID="ROI:1"/><ROIRef ID="ROI:2"/></Image>
 <ROI ID="ROI:0"><Union><Rectangle ID="Shape:0:0" X="20" Y="30" Width="10" Height="8" TheZ="3"/>
  <Point ID="Shape:0:1" X="8" Y="16" TheZ="0"/></Union></ROI>
 <ROI ID="ROI:1"><Union><Polygon ID="Shape:1:0" Points="10,20 30,40 12.5,16" TheC="2" TheT="1"/>
 </Union></ROI>
 <ROI ID="ROI:2"><Union><Line ID="Shape:2:0" X1="1" Y1="2" X2="3" Y2="4" TheC="1"/></Union></ROI>
</OME>"""  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return an OME-TIFF with much to say."""
    path = tmp_path_factory.mktemp("in") / "cells.ome.tif"
    with tifffile.TiffWriter(path, ome=False) as file:
        file.write(
            IMAGE.reshape(-1, Y, X),
            description=DOCUMENT.encode(),
            metadata=None,
            photometric="minisblack",
        )
    with tifffile.TiffFile(path) as file:
        assert file.series[0].axes == "TCZYX"
    return path


def document(path):
    """Return the OME-XML of a TIFF, read by tifffile, after checking it against the schema."""
    with tifffile.TiffFile(path) as file:
        xml = file.ome_metadata
    SCHEMA.assertValid(etree.fromstring(xml.encode()))
    return ET.fromstring(xml.encode())


def attributes(root, name, *wanted):
    return [tuple(e.get(w) for w in wanted) for e in root.iter(NS + name)]


def test_a_selection_takes_its_metadata_along(tmp_path, source):
    convert(source, tmp_path / "a.ome.tif", select="c=2,0 z=1:6:2 t=1: y=16:48 x=8::2")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        np.testing.assert_array_equal(file.asarray(), IMAGE[1:, [2, 0]][:, :, 1:6:2, 16:48, 8::2])
    root = document(tmp_path / "a.ome.tif")
    (pixels,) = root.iter(NS + "Pixels")
    assert {name: pixels.get(name) for name in (
        "SizeX", "SizeZ", "PhysicalSizeX", "PhysicalSizeXUnit", "PhysicalSizeY", "PhysicalSizeZ",
        "TimeIncrement",
    )} == {
        "SizeX": "36", "SizeZ": "3", "PhysicalSizeX": "1000.0", "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": "0.25", "PhysicalSizeZ": "4.0", "TimeIncrement": "3.0",
    }  # fmt: skip
    assert attributes(root, "Channel", "Name", "Color", "EmissionWavelength") == [
        ("RFP", "-16776961", "600"),
        ("DAPI", "65535", "450"),
    ]
    assert len(list(root.iter(NS + "DetectorSettings"))) == 1
    planes = attributes(root, "Plane", "TheZ", "TheC", "TheT", "DeltaT")
    expected = {
        (str(z), str(c), str(t)): 100 * (t + 1) + 10 * (2, 0)[c] + (1, 3, 5)[z]
        for t in range(3) for c in range(2) for z in range(3)
    }  # fmt: skip
    assert {plane[:3]: float(plane[3]) for plane in planes} == expected
    # 8 pixels of 500 nm further along X; along Y the unit is the stage's own, which stays
    assert attributes(root, "StageLabel", "Name", "X", "XUnit", "Y") == [
        ("here", "100.004", "mm", "7")
    ]
    # x - 8, every second; y - 16
    assert attributes(root, "Rectangle", "X", "Y", "Width", "Height", "TheZ") == [
        ("6.0", "14.0", "5.0", "8.0", "1")
    ]
    assert attributes(root, "Point", "X") == []  # its plane is gone
    assert attributes(root, "Line", "X1") == []
    assert attributes(root, "Polygon", "Points", "TheC", "TheT") == [
        ("1.0,4.0 11.0,24.0 2.25,0.0", "0", "0")
    ]
    assert attributes(root, "ROIRef", "ID") == [("ROI:0",), ("ROI:1",)]
    assert [e.text for e in root.iter(NS + "Description")] == ["two fish"]


@pytest.mark.parametrize(
    ("select", "size", "increment"),
    [
        ("z=0,1,5 t=0,1,3", None, None),
        ("z=4 t=2", "2.0", "3.0"),
        ("z=5:0:-1 t=3,2", "2.0", "3.0"),
        ("z=::3 t=0,3", "6.0", "9.0"),
    ],
)
def test_distances_that_are_not_one_are_not_told(tmp_path, source, select, size, increment):
    convert(source, tmp_path / "a.ome.tif", select=select)
    (pixels,) = document(tmp_path / "a.ome.tif").iter(NS + "Pixels")
    assert (pixels.get("PhysicalSizeZ"), pixels.get("TimeIncrement")) == (size, increment)


def test_a_crop_moves_the_origin_there_and_back(tmp_path, source):
    convert(source, tmp_path / "a.ome.zarr", select="z=2: y=16: x=10:")
    (multiscale,) = zarr.open(tmp_path / "a.ome.zarr", mode="r").attrs["ome"]["multiscales"]
    moved = multiscale["datasets"][0]["coordinateTransformations"][1]
    assert moved == {"type": "translation", "translation": [0.0, 0.0, 4.0, 4.0, 5000.0]}
    plain = tmp_path / "plain.tif"
    imwrite(IMAGE[0, 0], plain, dim_order="ZYX", metadata={"dx": 0.5, "dy": 0.5, "dz": 2})
    convert(plain, tmp_path / "b.ome.tif", select="z=1:4 x=6:")
    root = document(tmp_path / "b.ome.tif")
    assert attributes(root, "StageLabel", "X", "XUnit", "Y", "Z") == [("3.0", "µm", None, "2.0")]
    convert(tmp_path / "b.ome.tif", tmp_path / "c.ome.zarr", select="x=2:")
    (multiscale,) = zarr.open(tmp_path / "c.ome.zarr", mode="r").attrs["ome"]["multiscales"]
    moved = multiscale["datasets"][0]["coordinateTransformations"][1]
    assert moved["translation"][-3:] == [2.0, 0.0, 4.0]
    convert(tmp_path / "c.ome.zarr", tmp_path / "d.ome.tif")
    root = document(tmp_path / "d.ome.tif")
    assert attributes(root, "StageLabel", "X", "Y", "Z") == [("4.0", "0.0", "2.0")]


def test_pixels_of_several_samples_stay_whole_or_become_channels(tmp_path):
    rgb = np.arange(40 * 50 * 3, dtype=np.uint16).reshape(40, 50, 3).astype("u1")
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    convert(tmp_path / "rgb.tif", tmp_path / "a.ome.tif", select="y=3:20")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        np.testing.assert_array_equal(file.asarray(), rgb[3:20])
        assert file.pages[0].samplesperpixel == 3
    convert(tmp_path / "rgb.tif", tmp_path / "b.ome.tif", select="c=2,1")
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as file:
        np.testing.assert_array_equal(file.asarray(), rgb[..., [2, 1]].transpose(2, 0, 1))


def steps(path):
    """Return what a TIFF says of how it was made."""
    return [
        {m.get("K"): m.text for m in annotation.iter(NS + "M")}
        for annotation in document(path).iter(NS + "MapAnnotation")
        if annotation.get("Namespace") == "bioio_tk/provenance"
    ]


def test_an_image_says_how_it_was_made(tmp_path, source):
    convert(source, tmp_path / "a.ome.tif", select="z=1:3", compression="zstd")
    (first,) = steps(tmp_path / "a.ome.tif")
    assert first["source"] == "cells.ome.tif"
    assert first["selection"] == "z=1:3"
    assert json.loads(first["options"]) == {"compression": "zstd"}
    convert(tmp_path / "a.ome.tif", tmp_path / "b.ome.zarr")
    convert(tmp_path / "b.ome.zarr", tmp_path / "c.ome.tif", planes=2)
    assert [step["source"] for step in steps(tmp_path / "c.ome.tif")] == [
        "cells.ome.tif", "a.ome.tif", "b.ome.zarr",
    ]  # fmt: skip
    assert steps(tmp_path / "c.ome.tif")[0] == first


@pytest.mark.parametrize("ending", [".ome.tif", ".ome.zarr", ".h5"])
def test_an_image_is_skipped_only_where_it_is_the_same(tmp_path, source, ending):
    shutil.copy2(source, tmp_path / "in.ome.tif")
    target = tmp_path / f"a{ending}"
    options = {"select": "z=1:3", "exists": "skip"}
    assert convert(tmp_path / "in.ome.tif", target, **options).status == "done"
    mark = target / "zarr.json" if target.is_dir() else target
    before = mark.stat().st_mtime_ns
    assert convert(tmp_path / "in.ome.tif", target, **options).status == "skipped"
    assert mark.stat().st_mtime_ns == before
    with pytest.raises(TargetExistsError, match="other selection"):
        convert(tmp_path / "in.ome.tif", target, select="z=2:3", exists="skip")
    with pytest.raises(TargetExistsError, match="other options"):
        convert(tmp_path / "in.ome.tif", target, **options, dtype="uint32")
    os.utime(tmp_path / "in.ome.tif", ns=(1, 1))
    with pytest.raises(TargetExistsError, match="another source, or one that has changed"):
        convert(tmp_path / "in.ome.tif", target, **options)
    assert mark.stat().st_mtime_ns == before
    assert (
        convert(tmp_path / "in.ome.tif", target, select="z=1:3", exists="replace").status == "done"
    )
    assert convert(tmp_path / "in.ome.tif", target, **options).status == "skipped"


def test_what_does_not_say_where_it_is_from_is_not_skipped(tmp_path, source):
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE[0, 0, 0])
    (tmp_path / "b.ome.tif").write_text("no image")
    for name in ("a", "b"):
        with pytest.raises(TargetExistsError, match="does not say what it was made from"):
            convert(source, tmp_path / f"{name}.ome.tif", exists="skip")
    imwrite(IMAGE, tmp_path / "c.ome.tif")
    with pytest.raises(TargetExistsError, match="pixels come from memory"):
        imwrite(IMAGE, tmp_path / "c.ome.tif", exists="skip")


def test_a_dry_run_writes_nothing_and_says_what_would_be(tmp_path, source):
    report = convert(source, tmp_path / "a.ome.zarr", select="t=:2", dry_run=True)
    assert report.status == "planned"
    assert not list(tmp_path.iterdir())
    assert report.plan["pixel_bytes"] == 2 * C * Z * Y * X * 2
    assert report.plan["resolutions"][0]["shape"] == [Y, X, Z, C, 2]
    done = convert(source, tmp_path / "a.ome.zarr", select="t=:2")
    estimated = report.plan["estimated_bytes"]
    assert 0.5 * done.bytes_out < estimated < 2 * done.bytes_out
    with pytest.raises(TargetExistsError):
        convert(source, tmp_path / "a.ome.zarr", dry_run=True)


def test_checksums_are_those_of_the_planes(tmp_path, source):
    import zlib

    report = convert(source, tmp_path / "a.ome.tif", select="z=1,4", target_chunk_mb=0.002)
    assert report.checksums == {
        f"t{t} c{c} z{z}": f"crc32:{zlib.crc32(IMAGE[t, c, old].tobytes()):08x}"
        for t in range(T) for c in range(C) for z, old in enumerate((1, 4))
    }  # fmt: skip


def test_the_origin_is_read_back(tmp_path, source):
    convert(source, tmp_path / "a.ome.zarr", select="y=16:")
    with BioReader(tmp_path / "a.ome.zarr") as reader:
        assert reader._spec().position.y == (4.0, "µm")
