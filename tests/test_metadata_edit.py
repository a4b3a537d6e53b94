"""metadata get|set|xml: values change where the file lies, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import ome_types
import pytest
import tifffile
import xmlschema
import zarr
from click.testing import CliRunner
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.backends._file import RandomFile
from bioio_tk.cli.metadata import command
from bioio_tk.errors import (
    FormatError,
    SpecError,
    TargetBusyError,
    UnknownFormatError,
    UnsupportedError,
)
from bioio_tk.jobs.metadata import get_metadata, ome_xml, set_metadata, set_ome_xml

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
NS = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
SCHEMA = xmlschema.XMLSchema(Path(ome_types.__file__).parent / "ome-2016-06.xsd")
ALL = {
    "name": "cells <1> & \"two\" 'µ'",
    "channel_names": ["DAPI", "GFP & co", "Cy5"],
    "channel_colors": [(0, 0, 255), "#00ff00", (255, 0, 0, 255)],
    "physical_size_x": (0.65, "µm"),
    "physical_size_y": (650, "nm"),
    "physical_size_z": (2, "micron"),
    "time_increment": (1.5, "min"),
}
SHAPE = (70, 90, 2, 3, 2)


def written(path, shape=SHAPE, dtype="u2", **options):
    with BioWriter(path, shape=shape, dtype=dtype, tile_size=32, **options) as bw:
        bw[:] = coded(shape, dtype)
    return path


def by_tifffile(path, shape=SHAPE, **options):
    data = np.ascontiguousarray(coded(shape).transpose(4, 2, 3, 0, 1))
    tifffile.imwrite(
        path,
        data,
        ome=True,
        metadata={"axes": "TZCYX", "PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "mm"},
        tile=(32, 32),
        photometric="minisblack",
        **options,
    )
    return path


def segments(path):
    """A digest of every tile of every page and level, as they stand in the file."""
    found = []
    with tifffile.TiffFile(path) as tif:
        for page in tif.pages:
            for level in (page, *(page.pages or ())):
                for at, count in zip(level.dataoffsets, level.databytecounts, strict=True):
                    tif.filehandle.seek(at)
                    found.append(hashlib.sha256(tif.filehandle.read(count)).hexdigest())
    return found


def consolidate(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that are no part of a Zarr
        zarr.consolidate_metadata(path, **options)


def chunks(folder):
    names = ("zarr.json", ".zattrs", ".zarray", ".zgroup", ".zmetadata", "METADATA.ome.xml")
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in names
    }


def pixels_of(xml, number=0):
    return ET.fromstring(xml).findall(f"{NS}Image")[number].find(f"{NS}Pixels")


# ------------------------------------------------------------------ TIFF


@pytest.mark.parametrize(
    "make",
    [
        written,
        by_tifffile,
        lambda p: by_tifffile(p, byteorder=">"),
        lambda p: by_tifffile(p, bigtiff=True),
        lambda p: by_tifffile(p, bigtiff=True, byteorder=">"),
    ],
)
def test_everything_of_a_tiff(tmp_path, make):
    path = make(tmp_path / "a.ome.tif")
    before = segments(path)
    old = tifffile.TiffFile(path)
    tags = {t.code: t.value for t in old.pages[0].tags if t.code != 270}
    planes = old.asarray()
    old.close()
    size = path.stat().st_size
    report = set_metadata(path, **ALL)
    assert report.files == (str(path),)
    assert path.stat().st_size < size + 20_000
    assert segments(path) == before
    with tifffile.TiffFile(path) as tif:
        assert {t.code: t.value for t in tif.pages[0].tags if t.code != 270} == tags
        xml = tif.ome_metadata
        tag = tif.pages[0].tags[270]
        tif.filehandle.seek(tag.valueoffset + tag.count - 1)
        assert tif.filehandle.read(1) == b"\0"  # as TIFF 6.0 asks for
        assert (tif.asarray() == planes).all()
        assert len(tif.pages) == 12
    SCHEMA.validate(xml)
    pixels = pixels_of(xml)
    assert {k: v for k, v in pixels.attrib.items() if "Physical" in k or "Time" in k} == {
        "PhysicalSizeX": "0.65", "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": "650.0", "PhysicalSizeYUnit": "nm",
        "PhysicalSizeZ": "2.0", "PhysicalSizeZUnit": "µm",
        "TimeIncrement": "1.5", "TimeIncrementUnit": "min",
    }  # fmt: skip
    assert ET.fromstring(xml).find(f"{NS}Image").get("Name") == ALL["name"]
    channels = pixels.findall(f"{NS}Channel")
    assert [c.get("Name") for c in channels] == ALL["channel_names"]
    assert [int(c.get("Color")) for c in channels] == [65535, 16711935, -16776961]
    got = get_metadata(path)
    assert got["channel_colors"] == [(0, 0, 255, 255), (0, 255, 0, 255), (255, 0, 0, 255)]
    assert got["physical_size_y"] == (650.0, "nm")


def test_only_what_was_named_changes(tmp_path):
    path = by_tifffile(tmp_path / "a.ome.tif")
    with tifffile.TiffFile(path) as tif:
        before = tif.ome_metadata
    set_metadata(path, channel_names={1: "GFP"})
    with tifffile.TiffFile(path) as tif:
        after = tif.ome_metadata
    assert after.count(' Name="GFP"') == 1
    assert after.replace(' Name="GFP"', "") == before
    assert pixels_of(after).findall(f"{NS}Channel")[1].get("Name") == "GFP"
    set_metadata(path, physical_size_x=None, channel_names={1: None})
    with tifffile.TiffFile(path) as tif:
        last = tif.ome_metadata
    assert "PhysicalSizeX" not in last
    assert "GFP" not in last
    assert get_metadata(path)["physical_size_x"] is None


def document(attributes="", channels="", year="2016-06", head="", prefix=""):
    ns = f"http://www.openmicroscopy.org/Schemas/OME/{year}"
    p = f"{prefix}:" if prefix else ""
    xmlns = f"xmlns:{prefix}" if prefix else "xmlns"
    return (
        f'{head}<{p}OME {xmlns}="{ns}"><!-- kept --><{p}Image ID="Image:7" Name=\'old\'>'
        f'<{p}Description>Name="x" &lt;</{p}Description>'
        f'<{p}Pixels ID="Pixels:7" DimensionOrder="XYZCT" Type="uint16" SizeX="40" SizeY="30" '
        f'SizeZ="1" SizeC="2" SizeT="1" {attributes}>{channels}<{p}TiffData/></{p}Pixels>'
        f"</{p}Image></{p}OME>"
    )


def with_document(path, xml):
    with tifffile.TiffWriter(path) as tif:
        for c in range(2):
            tif.write(
                coded((30, 40), seed=c), description=xml.encode() if c == 0 else None, metadata=None
            )
    return path


def described(path):
    with tifffile.TiffFile(path) as tif:
        return tif.pages[0].description


@pytest.mark.parametrize("prefix", ["", "OME"])
def test_channels_that_nobody_described_are_added(tmp_path, prefix):
    xml = document(prefix=prefix)
    path = with_document(tmp_path / "a.ome.tif", xml)
    set_metadata(path, channel_names=["a", "b"])
    SCHEMA.validate(described(path))
    assert "<!-- kept -->" in described(path)
    assert [c.get("Name") for c in pixels_of(described(path))[:2]] == ["a", "b"]
    assert get_metadata(path)["channel_names"] == ["a", "b"]
    assert (tifffile.imread(path, key=1) == coded((30, 40), seed=1)).all()


def test_an_old_document_is_changed_in_its_own_units(tmp_path):
    path = with_document(tmp_path / "a.ome.tif", document('PhysicalSizeX="3.0"', year="2013-06"))
    set_metadata(path, physical_size_x=(650, "nm"), time_increment=(2, "min"))
    pixels = ET.fromstring(described(path))[0][1]
    assert pixels.get("PhysicalSizeX") == "0.65"
    assert pixels.get("TimeIncrement") == "120.0"
    assert "Unit" not in described(path)


def test_values_inside_other_values_are_left_alone(tmp_path):
    channels = (
        '<Channel ID="Channel:7:0" SamplesPerPixel="1" Fluor=\' Name="no"\' Name = "old"/>'
        '<Channel ID="Channel:7:1" SamplesPerPixel="1"></Channel>'
    )
    head = "<?xml version='1.0' encoding='UTF-8'?>\n<!-- Ä -->"
    path = with_document(tmp_path / "a.ome.tif", document("", channels, head=head))
    before = described(path)
    set_metadata(path, channel_names=["new", "second"], name="x")
    after = described(path)
    assert after == (
        before.replace('Name = "old"', 'Name="new"')
        .replace("Name='old'", 'Name="x"')
        .replace('SamplesPerPixel="1"></', 'SamplesPerPixel="1" Name="second"></')
    )


def test_images_of_a_file_are_told_apart(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        for k in range(3):
            tif.write(coded((20, 30 + k)), metadata={"axes": "YX", "Name": f"n{k}"})
    set_metadata(path, series=1, name="middle", physical_size_x=(5, "mm"))
    with BioReader(path) as br:
        assert br.series_names == ["n0", "middle", "n2"]
    assert [get_metadata(path, series=k)["physical_size_x"] for k in range(3)] == [
        None, (5.0, "mm"), None,
    ]  # fmt: skip


def test_every_file_of_a_set_is_changed(tmp_path):
    uuids = [f"urn:uuid:00000000-0000-4000-8000-00000000000{k}" for k in range(2)]
    data = "".join(
        f'<TiffData FirstC="{k}" IFD="0" PlaneCount="1"><UUID FileName="c{k}.ome.tif">{u}</UUID>'
        "</TiffData>"
        for k, u in enumerate(uuids)
    )
    for k, uuid in enumerate(uuids):
        xml = document().replace("<TiffData/>", data).replace("<OME ", f'<OME UUID="{uuid}" ')
        tifffile.imwrite(
            tmp_path / f"c{k}.ome.tif", coded((30, 40), seed=k), description=xml, metadata=None
        )
    report = set_metadata(tmp_path / "c1.ome.tif", channel_names=["a", "b"])
    assert sorted(report.files) == [str(tmp_path / f"c{k}.ome.tif") for k in range(2)]
    for k, uuid in enumerate(uuids):
        path = tmp_path / f"c{k}.ome.tif"
        assert get_metadata(path)["channel_names"] == ["a", "b"]
        assert f'UUID="{uuid}"' in described(path)
        assert (tifffile.imread(path, is_ome=False) == coded((30, 40), seed=k)).all()


@pytest.mark.parametrize("through", ["set.companion.ome", "c0.ome.tif"])
def test_a_companion_file_is_changed(tmp_path, through):
    uuid = "urn:uuid:00000000-0000-4000-8000-000000000001"
    data = (
        f'<TiffData FirstC="0" IFD="0" PlaneCount="2"><UUID FileName="c0.ome.tif">{uuid}</UUID>'
        "</TiffData>"
    )
    companion = tmp_path / "set.companion.ome"
    companion.write_text(document().replace("<TiffData/>", data))
    only = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="{uuid}"><BinaryOnly MetadataFile="set.companion.ome" UUID="{uuid}"/></OME>'
    )
    tiff = with_document(tmp_path / "c0.ome.tif", only)
    digest = hashlib.sha256(tiff.read_bytes()).digest()
    report = set_metadata(tmp_path / through, name="new")
    assert report.files == (str(companion),)
    assert 'Name="new"' in companion.read_text()
    assert hashlib.sha256(tiff.read_bytes()).digest() == digest
    assert get_metadata(tiff)["name"] == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c0.ome.tif", "set.companion.ome"]


# ------------------------------------------------------------------ OME-Zarr


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_everything_of_a_zarr(tmp_path, version):
    path = written(
        tmp_path / "a.ome.zarr",
        (300, 280, 2, 3, 2),
        pyramid=3,
        ngff_version=version,
        physical_size_x=(1, "nm"),
    )
    before = chunks(path)
    file = path / ("zarr.json" if version == "0.5" else ".zattrs")
    document = json.loads(file.read_bytes())
    attributes = document["attributes"] if version == "0.5" else document
    attributes["mine"] = {"kept": [1, 2]}
    file.write_text(json.dumps(document))
    if version == "0.4":
        consolidate(path, zarr_format=2)
    set_metadata(path, **ALL)
    assert chunks(path) == before
    for consolidated in (False, True) if version == "0.4" else (False,):
        group = zarr.open_group(path, mode="r", use_consolidated=consolidated)
        assert group.attrs["mine"] == {"kept": [1, 2]}
        ome = group.attrs["ome"] if version == "0.5" else group.attrs
        image = ome["multiscales"][0]
        assert image["name"] == ALL["name"]
        units = {a["name"]: a.get("unit") for a in image["axes"]}
        assert units == {
            "t": "minute", "c": None, "z": "micrometer", "y": "nanometer", "x": "micrometer",
        }  # fmt: skip
        scales = [d["coordinateTransformations"][0]["scale"] for d in image["datasets"]]
        assert scales == [[1.5, 1, 2, 650 * f, 0.65 * f] for f in (1, 2, 4)]
        shifts = [d["coordinateTransformations"][1]["translation"] for d in image["datasets"][1:]]
        assert np.allclose(shifts, [[0, 0, 0, 325, 0.325], [0, 0, 0, 975, 0.975]])
        assert [c["label"] for c in ome["omero"]["channels"]] == ALL["channel_names"]
        assert [c["color"] for c in ome["omero"]["channels"]] == ["0000FF", "00FF00", "FF0000"]
        assert all("window" in c for c in ome["omero"]["channels"])
    got = get_metadata(path)
    assert got["physical_size_x"] == (0.65, "µm")
    assert got["time_increment"] == (1.5, "min")
    if (path / "OME/METADATA.ome.xml").exists():
        xml = (path / "OME/METADATA.ome.xml").read_text()
        SCHEMA.validate(xml)
        assert pixels_of(xml).get("PhysicalSizeY") == "650.0"
    from ome_zarr_models.v04 import Image as Image04
    from ome_zarr_models.v05 import Image as Image05

    zarr_format = 3 if version == "0.5" else 2
    group = zarr.open_group(path, mode="r", zarr_format=zarr_format, use_consolidated=False)
    (Image05 if version == "0.5" else Image04).from_zarr(group)


def test_where_an_image_lies_stays(tmp_path):
    path = written(tmp_path / "a.ome.zarr", (300, 280, 1, 1, 1), pyramid=2)
    file = path / "zarr.json"
    document = json.loads(file.read_bytes())
    image = document["attributes"]["ome"]["multiscales"][0]
    for axis in image["axes"][-2:]:
        axis["unit"] = "micrometer"
    for level, dataset in enumerate(image["datasets"]):
        shift = [0.0] * (len(image["axes"]) - 2) + [100.0, 200.0]
        if level:
            shift = [0.0] * (len(image["axes"]) - 2) + [100.5, 200.5]
        scale = dataset["coordinateTransformations"][0]
        dataset["coordinateTransformations"] = [
            scale, {"type": "translation", "translation": shift},
        ]  # fmt: skip
    file.write_text(json.dumps(document))
    set_metadata(path, physical_size_x=(500, "nm"), physical_size_y=(3, "um"))
    image = json.loads(file.read_bytes())["attributes"]["ome"]["multiscales"][0]
    shifts = [d["coordinateTransformations"][1]["translation"][-2:] for d in image["datasets"]]
    assert np.allclose(shifts, [[100, 200_000], [101.5, 200_250]])


def test_a_series_of_a_store(tmp_path):
    path = tmp_path / "a.ome.zarr"
    for k in range(2):
        written(path, (40, 50, 1, 2, 1), group=str(k), name=f"n{k}")
    consolidate(path)
    own = path / "1/OME/METADATA.ome.xml"
    own.parent.mkdir(exist_ok=True)
    if not own.exists():
        own.write_text(document().replace("'old'", "'n1'"))
    set_metadata(path, series=1, name="new", channel_names={0: "DAPI"})
    assert [i.get("Name") for i in ET.parse(own).iter(f"{NS}Image")] == ["new"]
    assert [get_metadata(path, series=k)["name"] for k in range(2)] == ["n0", "new"]
    group = zarr.open_group(path, mode="r", use_consolidated=True)
    assert group["1"].attrs["ome"]["multiscales"][0]["name"] == "new"
    root = json.loads((path / "zarr.json").read_bytes())
    copied = root["consolidated_metadata"]["metadata"]["1"]["attributes"]["ome"]
    assert copied["multiscales"][0]["name"] == "new"
    names = [i.get("Name") for i in ET.parse(path / "OME/METADATA.ome.xml").iter(f"{NS}Image")]
    assert names == ["n0", "new"]
    with pytest.raises(SpecError, match="is a part of"):
        set_metadata(path / "1", name="x")


# ------------------------------------------------------------------ what is refused


def unchanged(path, call, error, match):
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    before = {p: p.read_bytes() for p in files}
    with pytest.raises(error, match=match):
        call()
    after = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    assert {p: p.read_bytes() for p in after} == before


BAD = [
    ({"physical_size_x": (-1, "µm")}, "must be positive"),
    ({"physical_size_x": (float("nan"), "µm")}, "must be positive"),
    ({"physical_size_x": (1, "parrot")}, "no unit of length"),
    ({"physical_size_x": 3}, "give .value, unit."),
    ({"time_increment": (1, "µm")}, "no unit of time"),
    ({"channel_names": ["a", "b"]}, "has 2 entries, but the image has C=3"),
    ({"channel_names": {3: "a"}}, "no channel 3, only 0 to 2"),
    ({"channel_names": "abc"}, "give a list"),
    ({"channel_colors": ["#12345"] * 3}, "colour"),
    ({"name": "a\0b"}, "no file can hold"),
    ({"name": "a\ud800"}, "no file can hold"),
    ({"sizes": 3}, "'sizes' cannot be set"),
    ({}, "nothing to change"),
]


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
@pytest.mark.parametrize(("values", "match"), BAD, ids=[m for _, m in BAD])
def test_nonsense_is_refused_before_anything_is_touched(tmp_path, name, values, match):
    path = written(tmp_path / name, (20, 30, 1, 3, 1))
    unchanged(path, lambda: set_metadata(path, **{"name": "good"} | values if values else {}),
              SpecError, match)  # fmt: skip


def test_files_that_cannot_be_changed(tmp_path):
    plain = tmp_path / "plain.tif"
    tifffile.imwrite(plain, coded((20, 30)))
    unchanged(
        plain, lambda: set_metadata(plain, name="x"), UnsupportedError, "convert it to an OME"
    )
    packed = written(tmp_path / "a.zarr.zip", (20, 30, 1, 1, 1))
    unchanged(packed, lambda: set_metadata(packed, name="x"), UnsupportedError, "unpack it")
    zarr.create_array(tmp_path / "bare.zarr", data=coded((20, 30)))
    bare = tmp_path / "bare.zarr"
    unchanged(bare, lambda: set_metadata(bare, name="x"), UnsupportedError, "no OME metadata")
    text = tmp_path / "a.txt"
    text.write_text("hello")
    with pytest.raises(UnknownFormatError):
        set_metadata(text, name="x")
    with pytest.raises(UnsupportedError, match="is remote"):
        set_metadata("http://127.0.0.1:9/a.ome.zarr", name="x")
    odd = with_document(tmp_path / "odd.ome.tif", document().replace("&lt;", "&nbsp; <"))
    unchanged(odd, lambda: set_metadata(odd, name="x"), FormatError, "cannot be read")


def test_a_writer_at_work_is_not_disturbed(tmp_path):
    for name in ("a.ome.tif", "a.ome.zarr"):
        path = written(tmp_path / name, (20, 30, 1, 1, 1))
        with BioWriter(path, shape=(20, 30), dtype="u2", overwrite=True) as bw:
            bw[:] = coded((20, 30))
            unchanged(path, lambda p=path: set_metadata(p, name="x"), TargetBusyError, "at work")
        set_metadata(path, name="x")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_file(tmp_path):
    path = written(tmp_path / "a.ome.tif", (20, 30, 1, 1, 1))
    path.chmod(0o444)
    unchanged(path, lambda: set_metadata(path, name="x"), PermissionError, "denied")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = written(tmp_path / "a.ome.tif", (20, 30, 1, 1, 1))
    real = RandomFile.write

    def full(self, offset, data):
        real(self, offset, bytes(data)[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RandomFile, "write", full)
    unchanged(path, lambda: set_metadata(path, name="x"), OSError, "No space")


# ------------------------------------------------------------------ size, and crashes


def test_a_large_file_is_hardly_written_to(tmp_path, monkeypatch):
    path = tmp_path / "large.ome.tif"
    with BioWriter(path, shape=(70_000, 75_000), dtype="u2", compression="none", tile_size=4096,
                   ) as bw:  # fmt: skip
        bw[:10, :10] = 7
    with path.open("r+b") as file:
        file.truncate(10 << 30)
    assert path.stat().st_blocks * 512 < 1 << 30
    count = []
    real = RandomFile.write
    monkeypatch.setattr(
        RandomFile, "write", lambda s, at, data: (count.append(len(data)), real(s, at, data))
    )
    set_metadata(path, name="new")
    assert 0 < sum(count) < 20_000
    assert get_metadata(path)["name"] == "new"
    with tifffile.TiffFile(path) as tif:
        assert tif.pages[0].shape == (70_000, 75_000)


CHILD = """
    import sys
    from bioio_tk.jobs.metadata import set_metadata
    for k in range(100_000):
        set_metadata(sys.argv[1], name="n" * (k % 300 + 1), physical_size_x=(k % 300 + 1, "nm"))
        print(k, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
def test_killed_at_any_moment_it_is_the_old_or_the_new(tmp_path, name):
    path = written(tmp_path / name, (40, 50, 1, 2, 1))
    before = segments(path) if path.is_file() else chunks(path)
    rng = random.Random(name)
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CHILD), str(path)],
            stdout=subprocess.PIPE,
            env=ENV,
        )
        try:
            assert child.stdout.readline()
            time.sleep(rng.random() * 0.05)
        finally:
            child.send_signal(signal.SIGKILL)
            child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL
        got = get_metadata(path)
        if name.endswith("tif"):
            assert got["physical_size_x"] == (len(got["name"]), "nm")
            assert segments(path) == before
            with tifffile.TiffFile(path) as tif:
                SCHEMA.validate(tif.ome_metadata)
        else:
            left = {k: v for k, v in chunks(path).items() if not k.endswith(".part")}
            assert left == before
            assert set(got["name"]) == {"n"}
    set_metadata(path, name="last")
    assert get_metadata(path)["name"] == "last"


# ------------------------------------------------------------------ the document


def test_a_whole_document_is_replaced(tmp_path):
    path = by_tifffile(tmp_path / "a.ome.tif")
    xml = ome_xml(path)
    with tifffile.TiffFile(path) as tif:
        assert xml == tif.ome_metadata
    more = xml.replace("</OME>", "<Project ID='Project:1'/></OME>")
    set_ome_xml(path, more)
    assert ome_xml(path) == more
    for bad in (
        xml.replace('SizeX="90"', 'SizeX="91"'),
        xml.replace("<TiffData", '<TiffData FirstZ="1"', 1),
        xml.replace('Type="uint16"', 'Type="int16"'),
    ):
        assert bad != xml
        unchanged(path, lambda b=bad: set_ome_xml(path, b), SpecError, "OME-XML")
    unchanged(path, lambda: set_ome_xml(path, "<html/>"), FormatError, "not OME-XML")
    store = written(tmp_path / "a.ome.zarr")
    store_xml = document().replace('SizeX="40" SizeY="30"', 'SizeX="90" SizeY="70"')
    store_xml = store_xml.replace('SizeZ="1" SizeC="2" SizeT="1"', 'SizeZ="2" SizeC="3" SizeT="2"')
    set_ome_xml(store, store_xml)
    assert (store / "OME/METADATA.ome.xml").read_text() == store_xml


# ------------------------------------------------------------------ the command


def run(*words, code=0):
    done = CliRunner().invoke(command, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def test_the_command(tmp_path):
    path = written(tmp_path / "a.ome.tif", (20, 30, 1, 3, 1))
    out = run(
        *(
            "set",
            path,
            "channel_names=DAPI,GFP,",
            "channel_name.2=far, red",
            "physical_size_x=.65um",
        ),
        *("physical_size_z=2", "time_increment=30", "channel_color.0=#0000ff", "name=my cells"),
    )
    assert out == f"{path}: changed\n"
    with tifffile.TiffFile(path) as tif:
        pixels = pixels_of(tif.ome_metadata)
    assert [c.get("Name") for c in pixels.findall(f"{NS}Channel")] == ["DAPI", "GFP", "far, red"]
    assert pixels.get("PhysicalSizeZUnit") == "µm"
    assert pixels.get("TimeIncrement") == "30.0"
    assert run("get", path, "physical_size_x") == "0.65 µm\n"
    assert run("get", path, "channel_name.1", "name") == "channel_name.1: GFP\nname: my cells\n"
    assert json.loads(run("get", "--json", path, "channel_color.0")) == {
        "channel_color.0": [0, 0, 255, 255]
    }
    assert run("get", path).splitlines()[2] == "channel_colors: #0000ff,,"
    run("set", path, "physical_size_x=")
    assert run("get", path, "physical_size_x") == "\n"
    assert json.loads(run("set", "--json", path, "name=x"))["files"] == [str(path)]
    xml = run("xml", path)
    new = tmp_path / "new.xml"
    new.write_text(xml.strip().replace('Name="x"', 'Name="from a file"'))
    run("xml", path, "--set", new)
    assert run("get", path, "name") == "from a file\n"
    for wrong in (("set", path, "name"), ("set", path, "physical_size_x=a lot"),
                  ("get", path, "colour"), ("get", path, "channel_name.7")):  # fmt: skip
        run(*wrong, code=2)
    plain = tmp_path / "plain.tif"
    tifffile.imwrite(plain, coded((20, 30)))
    run("xml", plain, code=1)


@pytest.mark.parametrize("make", [written, lambda p: by_tifffile(p, bigtiff=True, byteorder=">")])
def test_bio_formats_reads_the_result(tmp_path, java, make):
    path = make(tmp_path / "a.ome.tif")
    set_metadata(path, **ALL)
    with BioReader(path, backend="java") as br:
        assert br.channel_names == ALL["channel_names"]
        assert br.physical_size_x == (0.65, "µm")
        assert br.name == ALL["name"]
        assert (br[:, :, 1, 2, 1] == coded(SHAPE)[:, :, 1, 2, 1]).all()
