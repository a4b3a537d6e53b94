"""The XML of BigDataViewer: ours to other parsers, other programs' to ours, and edited."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from bdv_java import bio_formats, spimdata
from hypothesis import given, settings
from hypothesis import strategies as st

from bioio_tk.core.views import ViewAttribute, ViewId, ViewSetup, ViewTransform
from bioio_tk.errors import (
    DamagedFileError,
    FormatError,
    SpecError,
    TargetBusyError,
    UnsupportedError,
)
from bioio_tk.meta import bdv_edit, bdv_xml
from bioio_tk.meta.bdv import (
    HDF5,
    N5,
    ZARR,
    Loader,
    Partition,
    SpimDocument,
    SpimXml,
    ZarrImage,
    loader_path,
    parse,
    pattern,
    write_atomic,
)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SHIFT = (1.0, 0.0, 0.0, 10.0, 0.0, 1.0, 0.0, -2.5, 0.0, 0.0, 1.0, 1e-7)
SCALE = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.439, 0.0)
ORDER = {
    "SpimData": ["BasePath", "generatedBy", "SequenceDescription", "ViewRegistrations"],
    "SequenceDescription": ["ImageLoader", "ViewSetups", "Timepoints", "MissingViews"],
    "ViewSetups": ["ViewSetup", "Attributes"],
    "ViewSetup": ["id", "name", "size", "voxelSize", "camera", "attributes"],
    "voxelSize": ["unit", "size"],
    "ViewTransform": ["Name", "affine"],
}
NUMBERS = {"size", "affine", "timepoints", "setups", "first", "last", "id", "integerpattern"}


def strict(text):
    """Demand what BDV, BigStitcher and Bio-Formats need of an XML; return its tree."""
    assert text.startswith(b'<?xml version="1.0" encoding="UTF-8"?>\n')
    assert b"<SpimData" in text[:100]
    root = ET.fromstring(text)
    assert root.tag == "SpimData"
    assert root.attrib == {"version": "0.2"}
    for element in root.iter():
        wanted = ORDER.get(element.tag)
        if wanted:
            places = [wanted.index(child.tag) for child in element]
            assert places == sorted(places), element.tag
        if element.tag in NUMBERS:
            # no white space around, single blanks between: Java splits at it, Bio-Formats at one
            assert re.fullmatch(r"\S+( \S+)*", element.text), (element.tag, element.text)
    sequence = root.find("SequenceDescription")
    setups = [int(s.findtext("id")) for s in sequence.iterfind("ViewSetups/ViewSetup")]
    assert setups == sorted(set(setups))
    times = times_of(sequence.find("Timepoints"))
    assert times == sorted(set(times))
    listed = {
        values.get("name"): [int(value.findtext("id")) for value in values]
        for values in sequence.iterfind("ViewSetups/Attributes")
    }
    for ids in listed.values():
        assert len(ids) == len(set(ids))
    for setup in sequence.iterfind("ViewSetups/ViewSetup"):
        ids = {child.tag: int(child.text) for child in setup.find("attributes")}
        assert {"illumination", "channel", "tile", "angle"} <= set(ids)
        assert all(number in listed[kind] for kind, number in ids.items())
        assert setup.findtext("voxelSize/unit") not in ("", "px")
    missing = [ids_of(e) for e in sequence.iterfind("MissingViews/MissingView")]
    there = [ids_of(e) for e in root.iterfind("ViewRegistrations/ViewRegistration")]
    assert there == sorted(there)
    assert missing == sorted(missing)
    # every view once: registered or missing
    assert sorted(missing + there) == sorted(itertools.product(times, setups))
    for transform in root.iterfind("ViewRegistrations/ViewRegistration/ViewTransform"):
        assert transform.attrib == {"type": "affine"}
        assert len([float(word) for word in transform.findtext("affine").split(" ")]) == 12
    return root


def ids_of(element):
    return int(element.get("timepoint")), int(element.get("setup"))


def times_of(element):
    if element.get("type") == "range":
        return list(range(int(element.findtext("first")), int(element.findtext("last")) + 1))
    assert element.get("type") == "pattern"
    found = []
    for part in element.findtext("integerpattern").split(","):
        first, last, step = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part).groups()
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


def setup(number, **more):
    return ViewSetup(number, f"setup {number}", (3, 4, 5), (0.5, 0.5, 2.0), "µm", **more)


def small(loader=None, setups=2, times=2):
    xml = SpimXml(loader or Loader(HDF5, "x.h5"))
    for number in range(setups):
        xml.set_setup(setup(number, attributes={"channel": number}))
    for view in itertools.product(range(times), range(setups)):
        xml.set_view(ViewId(*view), [ViewTransform(SHIFT, "shift"), ViewTransform(SCALE, "cal")])
    return xml


# ------------------------------------------------------------------ written


def test_a_dataset_in_full(tmp_path):
    files = (Partition("x-00-00.h5", (0, 1), (0, 3)), Partition("x-01-00.h5", (2,), (0, 3)))
    xml = SpimXml(
        Loader(HDF5, "x.h5", partitions=files),
        created_by={
            "library": "bioio_tk",
            "library_version": "1.2",
            "microscope": "meso & spim",
            "microscope_version": "0.9",
            "user": "Zoë <z@a.org>",
        },
    )
    camera = {"name": "ORCA", "exposureTime": "0.02", "exposureUnits": "s"}
    ids = {"illumination": 1, "channel": 2, "tile": 3, "angle": 4, "displaysettings": 7}
    xml.set_setup(ViewSetup(3, "left", (3, 4, 5), (0.5, 0.25, 2.0), "um", ids, camera))
    xml.set_setup(ViewSetup(0, "", (1, 1, 1)))
    xml.set_setup(ViewSetup(1, "never written", (1, 1, 1)))
    xml.set_attribute("tile", ViewAttribute(3, "T3", {"location": "1.0 2.0 3.0"}))
    xml.set_attribute("channel", ViewAttribute(5, "561"))
    xml.set_view(ViewId(2, 3), [ViewTransform(SHIFT, "mine"), ViewTransform(SCALE, "calibration")])
    xml.set_view(ViewId(0, 0))
    text = xml.render()
    root = strict(text)
    path = tmp_path / "x.xml"
    path.write_bytes(text)
    seen = spimdata(path)  # as BDV's parser
    assert seen.file == tmp_path / "x.h5"
    assert seen.partitions == [
        (tmp_path / "x-00-00.h5", (0, 1), (0, 3)),
        (tmp_path / "x-01-00.h5", (2,), (0, 3)),
    ]
    assert seen.times == (0, 1, 2)
    assert seen.views == {(2, 3), (0, 0)}
    assert seen.sizes == {0: (1, 1, 1), 3: (5, 4, 3)}
    assert seen.voxels == {0: ("pixel", (1.0, 1.0, 1.0)), 3: ("um", (0.5, 0.25, 2.0))}
    assert seen.names == {0: None, 3: "left"}
    assert seen.attributes[3] == ids
    assert seen.attributes[0] == {"illumination": 0, "channel": 0, "tile": 0, "angle": 0}
    assert seen.labels["tile"] == {0: "0", 3: "T3"}
    assert seen.labels["channel"] == {0: "0", 2: "2", 5: "561"}
    assert [name for name, _ in seen.transforms[2, 3]] == ["mine", "calibration"]
    np.testing.assert_array_equal(
        seen.models[2, 3], [[1, 0, 0, 10], [0, 1, 0, -2.5], [0, 0, 2.439, 1e-7]]
    )
    assert seen.transforms[0, 0] == []
    made = root.find("generatedBy")
    assert (made.findtext("library"), made.find("library").get("version")) == ("bioio_tk", "1.2")
    assert [e.text for e in made.find("microscope")] == ["meso & spim", "0.9", "Zoë <z@a.org>"]
    element = root.findall(".//ViewSetup")[1].find("camera")
    assert {child.tag: child.text for child in element} == camera
    tile = root.findall(".//Tile")[1]
    assert tile.findtext("location") == "1.0 2.0 3.0"
    assert [e.get("type") for e in root.findall(".//path")] == ["relative", "relative"]


def test_nothing_yet_is_a_document_too():
    xml = SpimXml(Loader(HDF5, "x.h5"))
    assert times_of(strict(xml.render()).find(".//Timepoints")) == [0]
    xml.set_setup(setup(0))
    strict(xml.render())
    xml.set_times(3)
    assert times_of(strict(xml.render()).find(".//Timepoints")) == [0, 1, 2]


def test_a_view_that_comes_and_goes():
    xml = small()
    xml.drop_view(ViewId(1, 0))
    xml.drop_view(ViewId(1, 0))
    xml.drop_view(ViewId(7, 7))
    assert xml.missing == {(1, 0)}
    root = strict(xml.render())
    assert [ids_of(e) for e in root.iterfind(".//MissingView")] == [(1, 0)]
    xml.set_view(ViewId(0, 0))  # once more, and still one
    xml.drop_view(ViewId(0, 0))  # the last one of the setup
    root = strict(xml.render())
    assert [s.findtext("id") for s in root.iterfind(".//ViewSetup")] == ["1"]
    xml.set_view(ViewId(4, 0))
    root = strict(xml.render())
    assert xml.times == (0, 1, 2, 3, 4)
    assert xml.missing == {(0, 0), (1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (4, 1)}
    xml.drop_view(ViewId(4, 0))
    root = strict(xml.render())
    assert xml.times == (0, 1)
    assert root.find(".//MissingViews") is None


def test_a_view_set_again_has_the_new_transforms():
    xml = small()
    xml.render()
    xml.set_view(ViewId(0, 1), [ViewTransform(SCALE, "new")])
    root = strict(xml.render())
    names = [e.text for e in root.findall(".//ViewRegistration")[1].iter("Name")]
    assert names == ["new"]
    xml.set_setup(ViewSetup(1, "anew", (7, 8, 9)))
    root = strict(xml.render())
    assert [s.findtext("size") for s in root.iterfind(".//ViewSetup")] == ["5 4 3", "9 8 7"]
    xml.set_attribute("channel", ViewAttribute(1, "GFP"))
    xml.set_attribute("angle", ViewAttribute(0, "", {"degrees": "90.0"}))
    root = strict(xml.render())
    assert [e.findtext("name") for e in root.iter("Channel")] == ["0", "GFP"]
    assert [[child.text for child in e] for e in root.iter("Angle")] == [["0", "0", "90.0"]]
    xml.loader = Loader(HDF5, "y.h5", partitions=(Partition("y-00-00.h5", (0,), (0,)),))
    root = strict(xml.render())
    assert root.findtext(".//hdf5") == "y.h5"
    assert root.findtext(".//partition/timepoints") == "0"


@pytest.mark.parametrize(
    ("times", "expected", "kind"),
    [
        (2, [0, 1, 2, 3], "range"),  # view 3 is there all the same
        (6, [0, 1, 2, 3, 4, 5], "range"),
        (np.int64(5), [0, 1, 2, 3, 4], "range"),
        ([3, 4, 5], [3, 4, 5], "range"),
        ([9, 5, 7, 5], [3, 5, 7, 9], "pattern"),
        ((), [3], "range"),
        (np.array([0, 100]), [0, 3, 100], "pattern"),
    ],
)
def test_time_points(times, expected, kind):
    xml = SpimXml(Loader(HDF5, "x.h5"))
    xml.set_setup(setup(0))
    xml.set_view(ViewId(3, 0))
    xml.set_times(times)
    element = strict(xml.render()).find(".//Timepoints")
    assert (times_of(element), element.get("type")) == (expected, kind)
    assert parse(xml.render(), "x.xml").times == tuple(expected)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_patterns(numbers):
    text = pattern(sorted(numbers))
    element = ET.fromstring(f"<t type='pattern'><integerpattern>{text}</integerpattern></t>")
    assert times_of(element) == sorted(numbers)


@pytest.mark.parametrize("unit", ["", " ", "px", "PX", "pix", "pixels", "pixel"])
def test_a_unit_that_bio_formats_would_take_for_micrometers(unit):
    xml = SpimXml(Loader(HDF5, "x.h5"))
    xml.set_setup(ViewSetup(0, "", (1, 1, 1), (0.2, 0.2, 1.0), unit))
    xml.set_view(ViewId(0, 0))
    voxel = strict(xml.render()).find(".//voxelSize")
    assert (voxel.findtext("unit"), voxel.findtext("size")) == ("pixel", "0.2 0.2 1.0")


@pytest.mark.parametrize("unit", ["um", "µm", "micron", "nm", "mm", "furlong"])
def test_other_units_stay_as_they_are(unit):
    xml = SpimXml(Loader(HDF5, "x.h5"))
    xml.set_setup(ViewSetup(0, "", (1, 1, 1), (0.2, 0.2, 1.0), unit))
    xml.set_view(ViewId(0, 0))
    assert strict(xml.render()).findtext(".//unit") == unit


NAMES = st.text(st.characters(codec="utf-8", categories=None), max_size=12).filter(
    lambda text: re.fullmatch("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*", text)
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TRANSFORMS = st.builds(ViewTransform, st.lists(FLOATS, min_size=12, max_size=12).map(tuple), NAMES)
SETUPS = st.builds(
    ViewSetup,
    st.integers(0, 150),
    NAMES,
    st.tuples(*[st.integers(1, 2**31 - 1)] * 3),
    st.tuples(*[st.floats(1e-300, 1e300)] * 3),
    NAMES,
    st.dictionaries(
        st.sampled_from(["channel", "tile", "angle", "illumination", "displaysettings"]),
        st.integers(0, 5),
    ),
)


@settings(max_examples=100)
@given(
    st.lists(SETUPS, max_size=4, unique_by=lambda one: one.id),
    st.dictionaries(
        st.tuples(st.integers(0, 12), st.integers(0, 3)), st.lists(TRANSFORMS, max_size=3)
    ),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=5),
    NAMES,
    st.integers(0, 14),
)
def test_any_dataset_is_what_other_parsers_read(setups, views, dropped, name, count):
    xml = SpimXml(Loader(HDF5, "x.h5"), created_by={"library": name, "user": name})
    views = {ViewId(t, setups[n].id): given for (t, n), given in views.items() if n < len(setups)}
    xml.set_times(count)
    for one in setups:
        xml.set_setup(one)
    for view, transforms in views.items():
        xml.set_view(view, transforms)
        xml.render()
    for t, n in dropped:
        if n < len(setups):
            xml.drop_view(ViewId(t, setups[n].id))
            views.pop(ViewId(t, setups[n].id), None)
    text = xml.render()
    root = strict(text)
    assert (root.findtext(".//library") or "") == name
    shown = {view.setup for view in views}
    assert {int(s.findtext("id")) for s in root.iterfind(".//ViewSetup")} == shown
    for element in root.iterfind(".//ViewSetup"):
        one = next(s for s in setups if s.id == int(element.findtext("id")))
        assert (element.findtext("name") or "") == one.name
        assert element.findtext("size") == "{2} {1} {0}".format(*one.size)
        words = element.findtext("voxelSize/size").split(" ")
        assert tuple(map(float, words)) == one.voxel_size
        for kind, number in one.attributes.items():
            assert element.findtext(f"attributes/{kind}") == str(number)
    seen = {}
    for element in root.iterfind(".//ViewRegistration"):
        seen[ids_of(element)] = [
            (e.findtext("Name") or "", [float(word) for word in e.findtext("affine").split(" ")])
            for e in element
        ]
    wanted = {view: [(t.name, list(t.matrix)) for t in some] for view, some in views.items()}
    assert repr(seen) == repr({view: wanted[view] for view in seen})  # -0.0, too
    assert set(seen) == set(wanted)
    # and by our own reader
    data = parse(text, "x.xml")
    assert set(data.transforms) == set(views)
    for view, transforms in views.items():
        got = [t.matrix for t in data.transforms[view]]
        assert repr(got) == repr([t.matrix for t in transforms])
    assert data.missing == xml.missing
    assert set(data.setups) == shown
    assert not data.notes


def test_zarr(tmp_path):
    """Version 3.0 as BigStitcher's XmlIoAllenOMEZarrLoader writes and reads it."""
    images = {
        ViewId(1, 0): ZarrImage("a.zarr", (0, 1)),
        ViewId(0, 0): ZarrImage("a.zarr", (0, 0)),
        ViewId(0, 1): ZarrImage('tile "2".zarr'),
    }
    xml = small(Loader(ZARR, "my data.ome.zarr", images=images), times=2)
    xml.drop_view(ViewId(1, 1))
    text = xml.render()
    root = strict(text)
    loader = root.find(".//ImageLoader")
    assert loader.attrib == {"format": "bdv.multimg.zarr", "version": "3.0"}
    # resolved as a URI there
    assert (loader.findtext("zarr"), loader.find("zarr").attrib) == (
        "my%20data.ome.zarr",
        {"type": "relative"},
    )
    assert [group.attrib for group in loader.find("zgroups")] == [
        {"setup": "0", "tp": "0", "path": "a.zarr", "indicies": "0 0"},
        {"setup": "1", "tp": "0", "path": 'tile "2".zarr', "indicies": "[]"},
        {"setup": "0", "tp": "1", "path": "a.zarr", "indicies": "0 1"},
    ]
    data = parse(text, "x.xml")
    assert dict(data.loader.images) == images
    assert (data.loader.images[1, 0].c, data.loader.images[1, 0].t) == (0, 1)
    (tmp_path / "my data.ome.zarr").mkdir()
    assert loader_path(data, tmp_path / "x.xml") == tmp_path / "my data.ome.zarr"


def test_n5():
    loader = strict(small(Loader(N5, "x.n5")).render()).find(".//ImageLoader")
    assert loader.attrib == {"format": "bdv.n5", "version": "1.0"}
    assert (loader.findtext("n5"), loader.find("n5").get("type")) == ("x.n5", "relative")


def test_an_absolute_path():
    text = small(Loader(HDF5, "/data/a b.h5", "absolute")).render()
    element = strict(text).find(".//hdf5")
    assert (element.text, element.get("type")) == ("/data/a b.h5", "absolute")


@pytest.mark.parametrize("name", ["GFP & RFP.h5", "a < b > c.h5", "Zellkörper µm.h5", "a]]>&b.h5"])
def test_file_names_with_signs_of_xml(name, tmp_path):
    text = small(Loader(HDF5, name)).render()
    assert strict(text).findtext(".//hdf5") == name
    path = tmp_path / "x.xml"
    path.write_bytes(text)
    assert spimdata(path).file == tmp_path / name
    assert parse(text, "x").loader.path == name


def test_bio_formats_finds_a_file_with_signs_of_xml(java, tmp_path):
    h5py = pytest.importorskip("h5py")
    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    name = "GFP & RFP.h5"
    with h5py.File(tmp_path / name, "w") as file:
        file["s00/resolutions"] = np.ones((1, 3))
        file["s00/subdivisions"] = np.full((1, 3), 16, np.int32)
        file.create_dataset("t00000/s00/0/cells", data=image, chunks=image.shape)
    path = tmp_path / "GFP & RFP.xml"
    path.write_bytes(small(Loader(HDF5, name), 1, 1).render())
    with bio_formats(java, path) as reader:
        assert (reader.getSizeX(), reader.getSizeY(), reader.getSizeZ()) == (5, 4, 3)


def bad(**change):
    one = {"id": 0, "size": (3, 4, 5), "voxel_size": (1.0, 1.0, 1.0)} | change
    return lambda xml: xml.set_setup(ViewSetup(**one))


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (bad(name="a\x07b"), r"name of view setup 0 .*U\+0007, which XML cannot hold"),
        (bad(name="a\0"), r"U\+0000"),
        (bad(name="\ud800"), r"U\+D800"),
        (bad(voxel_unit="\x1b"), r"unit of view setup 0"),
        (bad(camera={"name": "\x01"}), r"name of the camera"),
        (bad(camera={"na me": "x"}), r"'na me' cannot be the name of an element"),
        (bad(attributes={"<b>": 1}), r"cannot be the name of an element"),
        (bad(attributes={"tile": -1}), r"tile of view setup 0 is -1"),
        (bad(attributes={"tile": 1.5}), r"is 1\.5"),
        (bad(size=(0, 4, 5)), r"size of view setup 0 is \(0, 4, 5\)"),
        (bad(size=(4, 5)), r"3 positive sizes"),
        (bad(voxel_size=(1.0, 0.0, 1.0)), r"voxel size of view setup 0"),
        (bad(voxel_size=(1.0, float("nan"), 1.0)), r"3 positive sizes"),
        (bad(id=-1), r"id of a view setup is -1"),
        (bad(id=2**31), r"id of a view setup is 2147483648"),
        (lambda x: x.set_attribute("channel", ViewAttribute(0, "\x02")), r"name of channel 0"),
        (lambda x: x.set_attribute("chan nel", ViewAttribute(0)), r"'chan nel'"),
        (lambda x: x.set_attribute("tile", ViewAttribute(0, "", {"location": "\0"})), "location"),
        (lambda x: x.set_view(ViewId(0, 9)), r"ViewId\(time=0, setup=9\).*set_setup first"),
        (lambda x: x.set_view(ViewId(-1, 0)), r"time point is -1"),
        (lambda x: x.set_view(ViewId(0, 0), [ViewTransform((1.0,))]), r"12 finite numbers"),
        (
            lambda x: x.set_view(ViewId(0, 0), [ViewTransform((float("inf"),) * 12, "far")]),
            r"transform 'far' is .*12 finite numbers",
        ),
        (lambda x: x.set_view(ViewId(0, 0), [ViewTransform(SHIFT, "\0")]), r"name of a transform"),
        (lambda x: x.set_times(-1), r"number of time points is -1"),
        (lambda x: x.set_times([0, -3]), r"time point is -3"),
        (lambda x: setattr(x, "loader", Loader("bdv.imaris", "x.ims")), r"'bdv.imaris' is not wri"),
        (lambda x: setattr(x, "loader", Loader(HDF5, "a\x0b.h5")), r"the path .*U\+000B"),
    ],
)
def test_what_such_an_xml_cannot_say(do, says):
    xml = small()
    before = xml.render()
    with pytest.raises(SpecError, match=says):
        do(xml)
    assert xml.render() == before


def test_names_of_microscope_and_user_are_checked():
    with pytest.raises(SpecError, match=r"the microscope version 'a\\x00'.*U\+0000"):
        SpimXml(Loader(HDF5, "x.h5"), created_by={"microscope_version": "a\0"})


def test_one_more_view_costs_no_other_view(monkeypatch):
    xml = small(setups=3, times=40)
    xml.render()
    asked = []
    for name in ("_transform", "_setup", "_loader"):
        real = getattr(bdv_xml, name)

        def counted(*given, real=real, name=name):
            asked.append(name)
            return real(*given)

        monkeypatch.setattr(bdv_xml, name, counted)
    joined = []
    real_views = xml._registrations_of

    def views_of(t):
        if t not in xml._registered:
            joined.append(t)
        return real_views(t)

    monkeypatch.setattr(xml, "_registrations_of", views_of)
    xml.set_view(ViewId(40, 1), [ViewTransform(SHIFT)])
    strict(xml.render())
    assert asked == ["_transform"]
    assert joined == [40]


# ------------------------------------------------------------------ read


BIGSTITCHER = """<?xml version="1.0" encoding="UTF-8"?>
<!-- by hand -->
<SpimData version="0.2">
  <BasePath type="relative">.</BasePath>
  <SequenceDescription>
    <ImageLoader format="bdv.hdf5">
      <hdf5 type="relative">dataset.h5</hdf5>
    </ImageLoader>
    <ViewSetups>
      <ViewSetup>
        <id>7</id>
        <size>  55 42
           6 </size>
        <voxelSize><unit>µm</unit><size>0.2 0.2 1.0</size></voxelSize>
        <attributes>
          <illumination>0</illumination> <!-- left -->
          <channel>1</channel>
          <tile> 2 </tile>
          <angle>3</angle>
        </attributes>
      </ViewSetup>
      <ViewSetup>
        <id>2</id>
        <name>first</name>
        <attributes><channel>0</channel></attributes>
      </ViewSetup>
      <Attributes name="illumination">
        <Illumination><id>0</id><name>L</name></Illumination>
      </Attributes>
      <Attributes name="channel">
        <Channel><id>0</id><name>488</name></Channel>
        <Channel><id>1</id><name>561</name></Channel>
      </Attributes>
      <Attributes name="tile">
        <Tile><id>2</id><name>T2</name><location>0.0 400.5 0.0</location></Tile>
      </Attributes>
      <Attributes name="angle">
        <Angle><id>3</id><name>90</name><axis>0.0 1.0 0.0</axis><degrees>90.0</degrees></Angle>
      </Attributes>
      <Attributes name="displaysettings">
        <Displaysettings>
          <id>1</id><name>d</name><Projection_Mode>sum</Projection_Mode>
          <min>0.0</min><max>255.0</max><isset>true</isset><color>255 0 0 255</color>
        </Displaysettings>
      </Attributes>
    </ViewSetups>
    <Timepoints type="pattern"><integerpattern>0-6:2, 9</integerpattern></Timepoints>
    <MissingViews>
      <MissingView timepoint="2" setup="7" />
      <MissingView timepoint="4" setup="7" />
      <MissingView timepoint="99" setup="7" />
      <MissingView timepoint="2" setup="99" />
    </MissingViews>
  </SequenceDescription>
  <ViewRegistrations>
    <ViewRegistration timepoint="0" setup="7">
      <ViewTransform type="affine">
        <Name>Stitching Transform</Name>
        <affine>1.0 0.0 0.0 10.5 0.0 1.0 0.0 0.0 0.0 0.0 1.0 -3.25E-5</affine>
      </ViewTransform>
      <ViewTransform type="affine">
        <affine>1.0 0.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0 0.0 5.0 0.0</affine>
      </ViewTransform>
    </ViewRegistration>
    <ViewRegistration timepoint="6" setup="7" />
  </ViewRegistrations>
  <ViewInterestPoints>
    <ViewInterestPointsFile timepoint="0" setup="7" label="beads" params="DOG &amp; (s=1.8)">
tpId_0_viewSetupId_7/beads</ViewInterestPointsFile>
  </ViewInterestPoints>
  <BoundingBoxes />
  <x:Notes xmlns:x="http://a.org/x" x:kind="mine"><![CDATA[<raw> & kept]]></x:Notes>
  <PointSpreadFunctions />
  <StitchingResults>
    <PairwiseResult view_setup_a="0,1" hash="3.5"><shift>1 2</shift></PairwiseResult>
  </StitchingResults>
  <IntensityAdjustments />
</SpimData>
<!-- the end -->
"""


def test_a_dataset_of_bigstitcher():
    data = parse(BIGSTITCHER, "dataset.xml")
    assert (data.loader.format, data.loader.path, data.loader.kind) == (
        "bdv.hdf5",
        "dataset.h5",
        "relative",
    )
    assert data.base_path == "."
    assert list(data.setups) == [7, 2]
    assert data.setups[7] == ViewSetup(
        7,
        "",
        (6, 42, 55),
        (0.2, 0.2, 1.0),
        "µm",
        {"illumination": 0, "channel": 1, "tile": 2, "angle": 3},
    )
    assert data.setups[2] == ViewSetup(2, "first", attributes={"channel": 0})
    assert {k: v.name for k, v in data.attributes["channel"].items()} == {0: "488", 1: "561"}
    assert data.attributes["tile"][2].properties == {"location": "0.0 400.5 0.0"}
    assert data.attributes["angle"][3].properties == {"axis": "0.0 1.0 0.0", "degrees": "90.0"}
    assert data.attributes["displaysettings"][1].properties["color"] == "255 0 0 255"
    assert data.times == (0, 2, 4, 6, 9)
    assert data.missing == {(2, 7), (4, 7)}
    first, second = data.transforms[ViewId(0, 7)]
    assert first.name == "Stitching Transform"
    assert first.matrix == (1, 0, 0, 10.5, 0, 1, 0, 0, 0, 0, 1, -3.25e-5)
    assert (second.name, second.matrix[10]) == ("", 5.0)
    assert data.transforms[ViewId(6, 7)] == ()
    assert data.notes == ("6 views are neither registered nor said to be missing",)
    assert parse(BIGSTITCHER.encode(), "dataset.xml") == data


@pytest.mark.parametrize("path", sorted((DATA).glob("**/bdv/**/*.xml")), ids=lambda p: p.stem)
def test_files_of_other_programs(path):
    data = parse(path.read_bytes(), str(path))
    root = ET.fromstring(path.read_bytes())
    assert loader_path(data, path) == path.with_suffix(".h5")
    assert data.notes == ()
    assert list(data.setups) == [int(e.findtext("id")) for e in root.iterfind(".//ViewSetup")]
    for element in root.iterfind(".//ViewRegistration"):
        numbers = [float(word) for word in element.findtext("ViewTransform/affine").split()]
        assert list(data.transforms[ids_of(element)][0].matrix) == numbers
    seen = spimdata(path)
    assert set(data.transforms) == seen.views
    assert data.times == seen.times
    assert {n: s.size[::-1] for n, s in data.setups.items()} == seen.sizes


def test_what_npy2bdv_says_of_camera_and_microscope():
    text = """<SpimData><generatedBy><library version="1.1.0">npy2bdv</library><microscope>
      <name>meso</name><version>0.5</version><user>me</user></microscope></generatedBy>
      <SequenceDescription><ImageLoader format="bdv.hdf5"><hdf5>x.h5</hdf5></ImageLoader>
      <ViewSetups>
      <ViewSetup><id>0</id><camera><name>c</name><exposureTime>0</exposureTime></camera></ViewSetup>
      </ViewSetups></SequenceDescription></SpimData>"""
    data = parse(text, "x")
    assert data.created_by == {
        "library": "npy2bdv",
        "library_version": "1.1.0",
        "microscope": "meso",
        "microscope_version": "0.5",
        "user": "me",
    }
    assert data.setups[0].camera == {"name": "c", "exposureTime": "0"}
    assert data.times == ()
    assert any("no <Timepoints>" in note for note in data.notes)
    assert any("no <ViewRegistrations>" in note for note in data.notes)


VOXEL = "<voxelSize>{}</voxelSize>"


def dataset(inside="", times="", registrations="", setups="<ViewSetup><id>0</id></ViewSetup>"):
    loader = (
        inside or '<ImageLoader format="bdv.hdf5"><hdf5 type="relative">x.h5</hdf5></ImageLoader>'
    )
    times = times or '<Timepoints type="range"><first>0</first><last>0</last></Timepoints>'
    return (
        f"<SpimData><SequenceDescription>{loader}<ViewSetups>{setups}</ViewSetups>{times}"
        f"</SequenceDescription><ViewRegistrations>{registrations}</ViewRegistrations></SpimData>"
    )


def point(number):
    return f"<Timepoint><id>{number}</id><name>x</name></Timepoint>"


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        ('<Timepoints type="range"><first>3</first><last> 5 </last></Timepoints>', (3, 4, 5)),
        ('<Timepoints type="pattern"><integerpattern>1,4 - 6</integerpattern></Timepoints>',
         (1, 4, 5, 6)),
        ('<Timepoints type="pattern"><integerpattern>9-2:3</integerpattern></Timepoints>',
         (3, 6, 9)),
        ('<Timepoints type="pattern"><integerpattern/></Timepoints>', (0,)),
        ('<Timepoints type="pattern"><integerpattern>5</integerpattern></Timepoints>', (5,)),
        (f'<Timepoints type="list">{"".join(map(point, (8, 2)))}</Timepoints>', (2, 8)),
        ("<Timepoints><first>0</first><last>1</last></Timepoints>", (0, 1)),
    ],
)  # fmt: skip
def test_time_points_of_all_kinds(element, expected):
    assert parse(dataset(times=element), "x").times == expected


@pytest.mark.parametrize(
    "element",
    [
        "<Timepoints><first>0</first></Timepoints>",
        "<Timepoints><first>a</first><last>1</last></Timepoints>",
        "<Timepoints><first>0</first><last>4000000000</last></Timepoints>",
        "<Timepoints><integerpattern>0-5:0</integerpattern></Timepoints>",
        "<Timepoints><integerpattern>0-4000000000</integerpattern></Timepoints>",
        "<Timepoints><integerpattern>a</integerpattern></Timepoints>",
        "<Timepoints><Timepoint><name>1</name></Timepoint></Timepoints>",
    ],
)
def test_time_points_that_make_no_sense(element):
    with pytest.raises(DamagedFileError, match=r"'x\.xml'.*time point"):
        parse(dataset(times=element), "x.xml")


@pytest.mark.parametrize(
    ("zgroup", "view", "image"),
    [
        ('<zgroup setup="3" tp="1" path="t.zarr" indicies="2 1"/>', (1, 3), ("t.zarr", (2, 1))),
        ('<zgroup setup="3" tp="1" path="t.zarr" indicies="[]"/>', (1, 3), ("t.zarr", ())),
        ('<zgroup setup="3" tp="1" path="t.zarr"/>', (1, 3), ("t.zarr", ())),
        ('<zgroup setup="3" timepoint="1"><path>t.zarr</path></zgroup>', (1, 3), ("t.zarr", ())),
    ],
)
def test_images_of_a_zarr_dataset_in_all_versions(zgroup, view, image):
    loader = (
        '<ImageLoader format="bdv.multimg.zarr" version="1.0">'
        '<zarr type="absolute">/d/x.zarr</zarr>'
        f"<zgroups>{zgroup}</zgroups></ImageLoader>"
    )
    found = parse(dataset(loader), "x").loader
    assert (found.format, found.version, found.path) == ("bdv.multimg.zarr", "1.0", "/d/x.zarr")
    assert dict(found.images) == {view: ZarrImage(*image)}


def test_partitions_are_read():
    loader = (
        '<ImageLoader format="bdv.hdf5"><hdf5 type="relative">x.h5</hdf5><partition>'
        '<path type="relative">x-00-00.h5</path><timepoints>0 1 2</timepoints>'
        "<setups>0 4</setups></partition></ImageLoader>"
    )
    assert parse(dataset(loader), "x").loader.partitions == (
        Partition("x-00-00.h5", (0, 1, 2), (0, 4)),
    )


IDENTITY = "1 0 0 0 0 1 0 0 0 0 1 0"


def transform_of(time, numbers):
    return (
        f'<ViewRegistration timepoint="{time}" setup="0"><ViewTransform type="affine">'
        f"<affine>{numbers}</affine></ViewTransform></ViewRegistration>"
    )


@pytest.mark.parametrize(
    ("inside", "note"),
    [
        ({"setups": "<ViewSetup><id>0</id><size>5 4</size></ViewSetup>"}, "the size of view setup"),
        (
            {"setups": f"<ViewSetup><id>0</id>{VOXEL.format('<size>a b c</size>')}</ViewSetup>"},
            "the voxel size of view setup 0 is 'a b c'",
        ),
        ({"setups": "<ViewSetup><id>0</id></ViewSetup>" * 2}, "there twice"),
        (
            {"setups": "<ViewSetup><id>0</id><attributes><tile>4</tile></attributes></ViewSetup>"},
            "tile 4 of view setup 0 is not in <Attributes>",
        ),
        (
            {"registrations": transform_of(0, "1 2 nan")},
            "a transform of time point 0, view setup 0 is '1 2 nan', not 12 numbers",
        ),
        (
            {"registrations": transform_of(0, " ".join(["1"] * 11 + ["nan"]))},
            "not 12 numbers",
        ),
        ({}, "1 view is neither registered nor said to be missing"),
        ({"registrations": transform_of(5, IDENTITY)}, "1 view is neither registered nor said"),
    ],
)
def test_what_is_wrong_is_noted(inside, note):
    data = parse(dataset(**inside), "x")
    assert any(note in one for one in data.notes), data.notes
    for view in data.transforms:
        assert np.array_equal(data.transforms[view][0].array, np.eye(4)[:3])


def test_latin_1_that_claims_to_be_utf_8():
    voxel = VOXEL.format("<unit>µm</unit>")
    text = dataset(setups=f"<ViewSetup><id>0</id>{voxel}</ViewSetup>")
    data = parse(b'<?xml version="1.0" encoding="UTF-8"?>' + text.encode("latin-1"), "x")
    assert data.setups[0].voxel_unit == "µm"
    assert any("Latin-1" in note for note in data.notes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings(encoding):
    text = dataset(setups="<ViewSetup><id>0</id><name>µ…</name></ViewSetup>")
    assert parse(text.encode(encoding), "x").setups[0].name == "µ…"


def test_a_document_cut_anywhere():
    whole = small().render()
    for end in range(0, len(whole) - 1, 7):
        with pytest.raises(DamagedFileError, match=r"'x\.xml'"):
            parse(whole[:end], "x.xml")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("<OME/>", FormatError, "<OME>.*<SpimData>"),
        ("<SpimData/>", DamagedFileError, "no <SequenceDescription>"),
        ("<SpimData><SequenceDescription/></SpimData>", DamagedFileError, "no <ImageLoader>"),
        ("\x89HDF\r\n", DamagedFileError, "no XML"),
        (b"\xff\xfe\xff", DamagedFileError, "no XML"),
        (
            '<!DOCTYPE a [<!ENTITY b "c">]><SpimData>&b;</SpimData>',
            DamagedFileError,
            "DOCTYPE.*remove it",
        ),
        ('<!DOCTYPE SpimData SYSTEM "file:///etc/passwd"><SpimData/>', DamagedFileError, "DOCTYPE"),
        ("<SpimData>&b;</SpimData>", DamagedFileError, "undefined entity"),
        ("<SpimData>" * 100_000, DamagedFileError, "nested too deep"),
        (
            dataset(setups="<ViewSetup><id>a</id></ViewSetup>"),
            DamagedFileError,
            "id of a view setup is 'a', not a whole number",
        ),
        (dataset(setups="<ViewSetup/>"), DamagedFileError, "id of a view setup is None"),
    ],
)
def test_what_is_no_dataset(text, error, says):
    with pytest.raises(error, match=says) as caught:
        parse(text, "x.xml")
    assert "x.xml" in str(caught.value)


def test_an_xml_bomb_is_not_even_read():
    nested = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    text = f'<!DOCTYPE SpimData [<!ENTITY e0 "ha">{nested}]><SpimData>&e9;</SpimData>'
    for encoding in ("utf-8", "utf-16"):
        with pytest.raises(DamagedFileError, match="DOCTYPE"):
            parse(text.encode(encoding), "x")


# ------------------------------------------------------------------ where the pixels are


@pytest.mark.parametrize(
    ("base", "element", "there", "expected"),
    [
        (".", '<hdf5 type="relative">x.h5</hdf5>', ["x.h5"], "x.h5"),
        (".", "<hdf5>x.h5</hdf5>", ["x.h5"], "x.h5"),
        (".", '<hdf5 type="relative"> sub/x.h5\n</hdf5>', ["sub/x.h5", "x.h5"], "sub/x.h5"),
        ("sub", '<hdf5 type="relative">x.h5</hdf5>', ["sub/x.h5", "x.h5"], "sub/x.h5"),
        (".", '<hdf5 type="relative">sub\\x.h5</hdf5>', ["sub/x.h5"], "sub/x.h5"),
        (".", '<hdf5 type="relative">my%20x.h5</hdf5>', ["my x.h5"], "my x.h5"),
        (".", "<hdf5>sub\\a%20b.h5</hdf5>", ["sub/a b.h5", "sub/a%20b.h5"], "sub/a%20b.h5"),
        (".", '<hdf5 type="relative">my%20x.h5</hdf5>', ["my x.h5", "my%20x.h5"], "my%20x.h5"),
        (".", '<hdf5 type="absolute">{root}/sub/x.h5</hdf5>', ["sub/x.h5", "x.h5"], "sub/x.h5"),
        (".", "<hdf5>{root}/sub/x.h5</hdf5>", ["sub/x.h5", "x.h5"], "sub/x.h5"),
        (".", "<hdf5>file:{root}/sub/x.h5</hdf5>", ["sub/x.h5", "x.h5"], "sub/x.h5"),
        (".", "<hdf5>file://{root}/sub/a%20x.h5</hdf5>", ["sub/a x.h5"], "sub/a x.h5"),
        ("{root}/sub", '<hdf5 type="relative">x.h5</hdf5>', ["sub/x.h5", "x.h5"], "sub/x.h5"),
        ("file:{root}/sub/", '<hdf5 type="relative">x.h5</hdf5>', ["sub/x.h5"], "sub/x.h5"),
        # of another computer: the one beside the XML
        (".", '<hdf5 type="absolute">/gone/x.h5</hdf5>', ["x.h5"], "x.h5"),
        (".", '<hdf5 type="absolute">D:\\data\\x.h5</hdf5>', ["x.h5"], "x.h5"),
        (".", "<hdf5>\\\\server\\data\\x.h5</hdf5>", ["x.h5"], "x.h5"),
        (".", '<hdf5 type="absolute">file:/C:/data/x.h5</hdf5>', ["x.h5"], "x.h5"),
        ("/gone", '<hdf5 type="relative">sub/x.h5</hdf5>', ["sub/x.h5"], "sub/x.h5"),
        ("C:\\gone", '<hdf5 type="relative">x.h5</hdf5>', ["x.h5"], "x.h5"),
        (".", '<hdf5 type="relative">old.h5</hdf5>', ["x.h5"], "old.h5"),
        # nowhere: where it should be
        (".", '<hdf5 type="relative">sub/x.h5</hdf5>', [], "sub/x.h5"),
        (".", "<hdf5>file:///C:/data/a%20b.h5</hdf5>", [], "C:/data/a b.h5"),
        (".", '<hdf5 type="absolute">{root}/sub/x.h5</hdf5>', [], "sub/x.h5"),
        (".", '<imaris type="relative">x.ims</imaris>', ["x.ims"], "x.ims"),
    ],
)  # fmt: skip
def test_where_the_file_is(base, element, there, expected, tmp_path):
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    loader = f'<ImageLoader format="f">{element}</ImageLoader>'.replace("{root}", str(tmp_path))
    text = dataset(loader).replace(
        "<Seq", f"<BasePath>{base}</BasePath><Seq".replace("{root}", str(tmp_path))
    )
    data = parse(text, "x")
    assert loader_path(data, tmp_path / "x.xml") == tmp_path / expected


@pytest.mark.parametrize(
    "loader",
    [
        "<ImageLoader format='f'><s3bucket>open</s3bucket><zarr>a/b.zarr</zarr></ImageLoader>",
        "<ImageLoader format='f'><n5 type='absolute'>https://a.org/x.n5</n5></ImageLoader>",
    ],
)
def test_what_is_elsewhere(loader, tmp_path):
    with pytest.raises(UnsupportedError, match=r"s3://open/a/b\.zarr|https://a\.org/x\.n5"):
        loader_path(parse(dataset(loader), "x"), tmp_path / "x.xml")


def test_no_file_at_all(tmp_path):
    with pytest.raises(DamagedFileError, match="does not say in which file"):
        loader_path(parse(dataset('<ImageLoader format="f"/>'), "x"), tmp_path / "x.xml")


# ------------------------------------------------------------------ edited


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "dataset.xml"
    path.write_text(BIGSTITCHER, encoding="utf-8")
    return SpimDocument.open(path)


def changed_lines(before, after):
    """Return the lines that went and those that came."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    return [x[2:] for x in lines if x[0] == "-"], [x[2:] for x in lines if x[0] == "+"]


def meaning(text):
    """Return everything a document says, but the spaces between its elements."""

    def of(element):
        words = (element.text or "").strip(), (element.tail or "").strip()
        return element.tag, dict(element.attrib), words, [of(child) for child in element]

    builder = ET.TreeBuilder(insert_comments=True, insert_pis=True)
    return of(ET.fromstring(text, ET.XMLParser(target=builder)))


def test_nothing_changed_says_the_same(document):
    text = document.render()
    assert meaning(text) == meaning(BIGSTITCHER)
    assert text.decode().startswith(
        '<?xml version="1.0" encoding="UTF-8"?>\n<!-- by hand -->\n<Spim'
    )
    assert text.decode().endswith("</SpimData>\n<!-- the end -->\n")
    gone, come = changed_lines(BIGSTITCHER, text.decode())
    # the same thing in another spelling
    assert [line.split("<![CDATA")[0] for line in gone] == [come[0].split("&lt;raw")[0]]
    assert not document.changed


def test_a_transform_more(document):
    view = ViewId(0, 7)
    before = document.render().decode()
    document.insert_transform(view, ViewTransform(SHIFT, "a & b"))
    line = '    <ViewRegistration timepoint="0" setup="7">\n'
    assert document.render().decode() == before.replace(
        line,
        f"""{line}      <ViewTransform type="affine">
        <Name>a &amp; b</Name>
        <affine>1.0 0.0 0.0 10.0 0.0 1.0 0.0 -2.5 0.0 0.0 1.0 1e-07</affine>
      </ViewTransform>
""",
    )
    document.insert_transform(view, ViewTransform(SCALE), 3)
    document.insert_transform(view, ViewTransform(SCALE, "second"), 1)
    names = ["a & b", "second", "Stitching Transform", "", ""]
    assert [t.name for t in document.data.transforms[view]] == names
    data = parse(document.render(), "x")
    assert data.transforms == document.data.transforms
    assert [t.name for t in data.transforms[view]] == names
    assert data.transforms[view][0].matrix == SHIFT
    assert document.changed
    for tag in ("<ViewTransform type", "</ViewTransform>"):
        indents = re.findall(f"^( *){tag}", document.render().decode(), re.MULTILINE)
        assert indents == [" " * 6] * 5


def test_transforms_replaced_and_removed(document):
    view = ViewId(0, 7)
    before = document.render().decode()
    document.replace_transform(view, 1, ViewTransform(SCALE))
    gone, come = changed_lines(before, document.render().decode())
    assert len(gone) == len(come) == 1
    assert document.data.transforms[view][1].matrix == SCALE
    document.remove_transform(view, 0)
    gone, _ = changed_lines(before, document.render().decode())
    assert len(gone) == 5
    document.remove_transform(view, 0)
    data = parse(document.render(), "x")
    assert data.transforms[view] == document.data.transforms[view] == ()
    with pytest.raises(SpecError, match=r"has 0 transforms, and none at 0"):
        document.remove_transform(view, 0)


def test_a_view_without_registration_gets_one(document):
    document.insert_transform(ViewId(4, 2), ViewTransform(SHIFT, "new"))
    document.insert_transform(ViewId(4, 2), ViewTransform(SCALE, "newer"))
    document.insert_transform(ViewId(6, 7), ViewTransform(SHIFT, "into an empty one"))
    root = ET.fromstring(document.render())
    seen = [ids_of(e) for e in root.iterfind(".//ViewRegistration")]
    assert seen == [(0, 7), (6, 7), (4, 2)]
    assert [len(e) for e in root.iterfind(".//ViewRegistration")] == [2, 1, 2]
    text = document.render().decode()
    assert '\n    <ViewRegistration timepoint="4" setup="2">\n      <ViewTransform type' in text
    assert text.count("\n    </ViewRegistration>\n") == 3


def test_size_and_missing_views(document):
    before = document.render().decode()
    document.set_size(7, (1, 2, 3))
    document.add_missing(ViewId(9, 7))
    document.add_missing(ViewId(9, 7))
    document.add_missing(ViewId(2, 7))  # is there
    gone, come = changed_lines(before, document.render().decode())
    assert [line.strip() for line in gone] == ["<size>  55 42", "6 </size>"]
    assert come == [
        "        <size>3 2 1</size>",
        '      <MissingView timepoint="9" setup="7" />',
    ]
    document.set_size(2, (4, 5, 6))
    data = parse(document.render(), "x")
    assert data.setups[7].size == document.data.setups[7].size == (1, 2, 3)
    assert data.setups[2].size == (4, 5, 6)
    assert data.missing == document.data.missing == {(2, 7), (4, 7), (9, 7)}


def test_missing_views_where_there_were_none(tmp_path):
    path = tmp_path / "x.xml"
    path.write_bytes(small(times=3).render())
    document = SpimDocument(path)
    document.add_missing(ViewId(1, 1))
    document.save()
    assert spimdata(path).missing == {(1, 1)}
    assert b"\n    <MissingViews>\n      <MissingView " in path.read_bytes()
    order = [e.tag for e in ET.fromstring(path.read_bytes()).find("SequenceDescription")]
    assert order == ["ImageLoader", "ViewSetups", "Timepoints", "MissingViews"]


def test_a_document_in_one_line_stays_one(tmp_path):
    path = tmp_path / "x.xml"
    one = '<ViewRegistration timepoint="0" setup="0"></ViewRegistration>'
    two = '<ViewTransform type="affine"><affine>' + "1 " * 11 + "1</affine></ViewTransform>"
    path.write_text(dataset(registrations=one.replace("></", f">{two}</")))
    document = SpimDocument(path)
    document.insert_transform(ViewId(0, 0), ViewTransform(SHIFT))
    document.insert_transform(ViewId(0, 0), ViewTransform(SHIFT), 2)
    document.remove_transform(ViewId(0, 0), 1)
    assert document.render().strip().count(b"\n") == 1  # after the declaration
    matrices = [t.matrix for t in parse(document.render(), "x").transforms[ViewId(0, 0)]]
    assert matrices == [SHIFT, SHIFT]


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda d: d.insert_transform(ViewId(0, 5), ViewTransform(SHIFT)), "no view setup 5.*2, 7"),
        (lambda d: d.insert_transform(ViewId(1, 7), ViewTransform(SHIFT)), "no time point 1.*0, 2"),
        (lambda d: d.insert_transform(ViewId(0, 7), ViewTransform(SHIFT), 3), "insert at 0 to 2"),
        (lambda d: d.insert_transform(ViewId(0, 7), ViewTransform(SHIFT), -1), "insert at 0 to 2"),
        (lambda d: d.insert_transform(ViewId(4, 2), ViewTransform((1.0,))), "12 finite numbers"),
        (lambda d: d.insert_transform(ViewId(0, 7), ViewTransform(SHIFT, "\0")), r"U\+0000"),
        (lambda d: d.replace_transform(ViewId(0, 7), 2, ViewTransform(SHIFT)), "none at 2"),
        (lambda d: d.replace_transform(ViewId(0, 7), 0, ViewTransform((0.0,))), "12 finite"),
        (lambda d: d.remove_transform(ViewId(0, 7), -1), "none at -1"),
        (lambda d: d.remove_transform(ViewId(0, 2), 0), "has 0 transforms"),
        (lambda d: d.set_size(5, (1, 1, 1)), "no view setup 5"),
        (lambda d: d.set_size(7, (1, 0, 1)), "3 positive sizes"),
        (lambda d: d.add_missing(ViewId(0, 5)), "no view setup 5"),
        (lambda d: d.add_missing(ViewId(1, 7)), "no time point 1"),
    ],
)
def test_what_cannot_be_edited(document, do, says):
    before = document.render()
    with pytest.raises(SpecError, match=says):
        do(document)
    assert document.render() == before
    assert not document.changed


def test_a_document_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.xml"):
        SpimDocument(tmp_path / "none.xml")


def test_backups_as_bigstitcher_has_them(tmp_path):
    path = tmp_path / "x.xml"
    path.write_bytes(small().render())
    versions = [path.read_bytes()]
    for n in range(7):
        document = SpimDocument.open(path)
        document.insert_transform(ViewId(0, 0), ViewTransform(SHIFT, f"number {n}"))
        document.save()
        versions.append(path.read_bytes())
    assert len(set(versions)) == 8
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["x.xml", *[f"x.xml~{n}" for n in range(1, 6)]]
    for n in range(1, 6):
        assert (tmp_path / f"x.xml~{n}").read_bytes() == versions[-1 - n]
    document.save(backup=False)
    assert (tmp_path / "x.xml~1").read_bytes() == versions[-2]
    document.save(tmp_path / "new.xml")
    assert (tmp_path / "new.xml").read_bytes() == path.read_bytes()
    assert not (tmp_path / "new.xml~1").exists()


def test_what_another_program_saved_meanwhile_is_not_lost(document):
    theirs = BIGSTITCHER.replace("10.5", "11.5").encode()
    document.insert_transform(ViewId(0, 7), ViewTransform(SHIFT))
    document.path.write_bytes(theirs)
    with pytest.raises(TargetBusyError, match=r"dataset\.xml' was changed by another program"):
        document.save(backup=False)
    assert document.path.read_bytes() == theirs
    document.save(document.path.with_name("mine.xml"))
    document.path.unlink()
    document.save()
    assert document.path.read_bytes() == document.render()
    document.save()


def test_a_gap_in_the_backups_is_filled(tmp_path):
    path = tmp_path / "x.xml"
    path.write_bytes(b"now")
    (tmp_path / "x.xml~1").write_bytes(b"one")
    (tmp_path / "x.xml~3").write_bytes(b"three")
    bdv_edit.back_up(path)
    found = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert found == {"x.xml": b"now", "x.xml~1": b"now", "x.xml~2": b"one", "x.xml~3": b"three"}


# ------------------------------------------------------------------ files


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "x.xml"
    write_atomic(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("write_bytes", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(*((Path, name) if name == "write_bytes" else (os, name)), full)
            with pytest.raises(OSError, match="No space"):
                write_atomic(path, b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["x.xml"]
        assert path.read_bytes() == b"old"


FULL = """
import resource, sys
from pathlib import Path
from bioio_tk.meta.bdv import SpimDocument
document = SpimDocument(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    document.save()
except OSError as exc:
    print(type(exc).__name__, end="")
"""


def test_no_room_on_the_disk(document):
    """A real one: files of this process may have 1000 bytes."""
    before = document.path.read_bytes()
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(document.path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert ran.stdout == "OSError"
    assert [p.name for p in document.path.parent.iterdir()] == ["dataset.xml"]
    assert document.path.read_bytes() == before


def test_a_link_stays_one_and_rights_stay_as_they_are(tmp_path):
    real, link = tmp_path / "real.xml", tmp_path / "link.xml"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_atomic(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_who_reads_sees_a_whole_file(tmp_path):
    path = tmp_path / "x.xml"
    texts = [bytes([65 + n]) * 300_000 for n in range(4)]
    write_atomic(path, texts[0])
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            seen = path.read_bytes()
            if seen not in texts:
                wrong.append(len(seen))

    reader = threading.Thread(target=read)
    reader.start()
    writers = [
        threading.Thread(target=lambda text=text: [write_atomic(path, text) for _ in range(20)])
        for text in texts[1:]
    ]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not wrong
    assert [p.name for p in tmp_path.iterdir()] == ["x.xml"]


CHILD = """
import sys
from pathlib import Path
from bioio_tk.core.views import ViewId, ViewSetup, ViewTransform
from bioio_tk.meta.bdv import HDF5, Loader, SpimXml, write_atomic
xml = SpimXml(Loader(HDF5, "x.h5"))
xml.set_setup(ViewSetup(0, "s", (1, 1, 1)))
for t in range(100_000):
    xml.set_view(ViewId(t, 0), [ViewTransform((1.0, 0, 0, t, 0, 1, 0, 0, 0, 0, 1, 0), "t")])
    write_atomic(Path(sys.argv[1]), xml.render())
    print(t, flush=True)
"""


def test_kill_at_any_moment_leaves_a_whole_document(tmp_path):
    for n in range(3):
        path = tmp_path / f"{n}.xml"
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            child.stdout.readline()
            time.sleep(0.05 + 0.037 * n)
        finally:
            child.send_signal(signal.SIGKILL)
            told = child.stdout.read().split()
            child.stdout.close()
        assert child.wait(20) == -signal.SIGKILL
        times = times_of(strict(path.read_bytes()).find(".//Timepoints"))
        assert len(times) >= len(told) >= 1
