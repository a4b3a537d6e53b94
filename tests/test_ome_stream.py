"""OME-XML of an acquisition: valid for OME's schema, and what other programs read out of it."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import ome_types
import pytest
import tifffile
from images import coded
from java_images import by_java, opened

from bioio_tk.core.acquisition import (
    AcquiredChannel,
    AcquiredPosition,
    AcquisitionPlan,
    ImageRecord,
)
from bioio_tk.core.frames import UNBOUNDED, FrameAxis, FrameOrder
from bioio_tk.core.plate import Plate
from bioio_tk.core.spec import ImageSpec, Level, PhysicalSize
from bioio_tk.errors import SpecError
from bioio_tk.meta.ome_absent import Absent, absent_planes
from bioio_tk.meta.ome_stream import (
    StreamDocument,
    StreamImage,
    live_numbers,
    live_xml,
    stream_xml,
)

etree = pytest.importorskip("lxml.etree")

NS = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
SCHEMA = etree.XMLSchema(etree.parse(Path(ome_types.__file__).parent / "ome-2016-06.xsd"))
UUIDS = [f"urn:uuid:00000000-0000-4000-8000-00000000000{n}" for n in range(4)]
Y, X = 6, 5

# name -> axes, the slowest first: letter, size, step, and whether DimensionOrder can say it
ORDERS = {
    "none": ((), True),
    "t": ((("T", 5, 1),), True),
    "tcz": ((("T", 3, 1), ("C", 2, 1), ("Z", 4, 1)), True),
    "tzc": ((("T", 3, 1), ("Z", 4, 1), ("C", 2, 1)), True),
    "czt": ((("C", 2, 1), ("Z", 3, 1), ("T", 4, 1)), True),
    "zt": ((("Z", 3, 1), ("T", 4, 1)), True),
    "one of each": ((("T", 1, 1), ("C", 1, 1)), True),
    "one plane": ((("C", 1, 1), ("Z", 1, 1)), True),
    "one time": ((("T", 1, 1), ("C", 2, 1), ("Z", 2, 1)), True),
    "one camera": ((("T", 2, 1), ("C", 3, 1), ("Z", 2, 1), ("C", 1, 1)), True),
    "three share C": ((("C", 2, 6), ("C", 3, 2), ("C", 2, 1), ("T", 2, 1)), True),
    "one channel amid": ((("T", 3, 1), ("C", 1, 1), ("Z", 2, 1)), True),
    "cameras beside channels": ((("T", 2, 1), ("C", 2, 3), ("C", 3, 1), ("Z", 2, 1)), True),
    "cameras fastest": ((("T", 2, 1), ("C", 3, 2), ("Z", 4, 1), ("C", 2, 1)), False),
    "cameras slowest": ((("C", 2, 3), ("T", 4, 1), ("C", 3, 1)), False),
    "both": ((("C", 2, 2), ("T", 3, 1), ("Z", 2, 1), ("C", 2, 1)), False),
}


def plan(axes=(("T", 3, 1),), dtype="uint16", **more):
    order = FrameOrder(tuple(FrameAxis(*axis) for axis in axes))
    image = {k: more.pop(k) for k in ("physical_size", "time_increment", "position") if k in more}
    spec = ImageSpec(np.dtype(dtype), (Level((Y, X, *order.sizes), (Y, X, 1, 1, 1)),), **image)
    return AcquisitionPlan(spec, order, (), created="2026-11-21T12:00:00+00:00", **more)


def document(of, images=None, notes=None, *, tiff=False, **more):
    """Make a document, have OME's schema check it, and return its root and its text."""
    if images is None:
        images = [StreamImage(ImageRecord(0, of.order.planes), "image")]
    xml = stream_xml(of, images, notes or {}, uuid=UUIDS[0], tiff=tiff, **more)
    return valid(xml), xml


def valid(xml):
    root = etree.fromstring(xml)
    assert SCHEMA.validate(root), f"{SCHEMA.error_log}\n{xml[:3000]}"
    ids = [e.get("ID") for e in root.iter() if isinstance(e.tag, str) and not e.tag.endswith("Ref")]
    ids = [i for i in ids if i is not None]
    assert len(set(ids)) == len(ids)
    refs = {e.get("ID") for e in root.iter() if isinstance(e.tag, str) and e.tag.endswith("Ref")}
    assert refs <= set(ids)
    return root


def frames(axes):
    """Yield each frame of an acquisition, in the order taken, with its (z, c, t): a plain loop."""
    for number, indices in enumerate(product(*(range(size) for _, size, _ in axes))):
        at = {"Z": 0, "C": 0, "T": 0}
        for (letter, _, step), index in zip(axes, indices, strict=True):
            at[letter] += index * step
        yield number, (at["Z"], at["C"], at["T"])


def frame(number):
    return coded((Y, X), "uint16") + np.uint16(100 * number + 1)


def expected(axes, taken):
    """Return the image, YXZCT: as many rounds of the slowest axis as were begun."""
    every = list(frames(axes))
    cycle = len(every) // (axes[0][1] if axes else 1)
    begun = every[: -(-taken // cycle) * cycle]
    shape = [max(at[k] for _, at in begun) + 1 for k in range(3)]
    image = np.zeros((Y, X, *shape), "uint16")
    for number, (z, c, t) in begun:
        if number < taken:
            image[:, :, z, c, t] = frame(number)
    return image


def by_tifffile(path, series=0):
    with tifffile.TiffFile(path) as file:
        found = file.series[series]
        axes, pixels = found.axes, found.asarray()
    for letter in "TCZ":
        if letter not in axes:
            axes, pixels = letter + axes, pixels[None]
    return pixels.transpose([axes.index(letter) for letter in "YXZCT"])


def write(path, xml, count, taken, offset=0):
    """Write `count` directories, those after `taken` black."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for n in range(count):
            file.write(
                frame(n + offset) if n < taken else np.zeros((Y, X), "uint16"),
                description=xml if n == 0 else None,
                metadata=None,
                contiguous=False,
            )


# -- which plane is where -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
def test_planes_are_where_others_look_for_them(java, tmp_path, name):
    axes, legal = ORDERS[name]
    of = plan(axes)
    count = of.order.planes
    root, xml = document(of, tiff=True)
    assert len(root.findall(f".//{NS}TiffData")) == (1 if legal else count)
    path = tmp_path / "image.ome.tiff"
    write(path, xml, count, count)
    np.testing.assert_array_equal(by_tifffile(path), expected(axes, count))
    np.testing.assert_array_equal(by_java(java, path), expected(axes, count))


@pytest.mark.parametrize("name", ["tcz", "czt", "cameras fastest", "cameras slowest"])
def test_an_acquisition_that_was_stopped(java, tmp_path, name):
    axes, _ = ORDERS[name]
    taken = len(list(frames(axes))) // 2 + 1
    image = expected(axes, taken)
    count = image[0, 0].size
    assert count > taken or name == "cameras slowest"
    root, xml = document(plan(axes), [StreamImage(ImageRecord(0, taken), "image")], tiff=True)
    path = tmp_path / "image.ome.tiff"
    write(path, xml, count, taken)
    np.testing.assert_array_equal(by_tifffile(path), image)
    np.testing.assert_array_equal(by_java(java, path), image)
    assert len(root.findall(f".//{NS}Channel")) == image.shape[3]


@pytest.mark.parametrize("name", ORDERS)
def test_an_image_that_grows(java, tmp_path, name):
    axes, legal = ORDERS[name]
    endless = (("T", UNBOUNDED, 1), *axes[1:]) if axes and axes[0][0] == "T" else axes
    of = plan(endless)
    xml, places = live_xml(of, 0, "live", uuid=UUIDS[0])
    total = len(list(frames(axes)))
    for taken in sorted({1, total // 2 + 1, total}):
        numbers = live_numbers(of, taken)
        patched = bytearray(xml)
        for key, (start, length) in places.items():
            assert length == 10
            patched[start : start + length] = f"{numbers[key]:010}".encode()
        assert len(patched) == len(xml)
        valid(bytes(patched))
        path = tmp_path / f"{taken}.ome.tiff"
        write(path, bytes(patched), numbers["PlaneCount"], taken)
        image = expected(axes, taken)
        for got in (by_tifffile(path), by_java(java, path)):
            if legal:
                np.testing.assert_array_equal(got, image)
            else:  # nothing is missing, and time is right
                assert sorted(got[0, 0].ravel()) == sorted(image[0, 0].ravel())
                if axes[0][0] == "T":
                    assert got.shape[4] == image.shape[4]
                    assert sorted(got[0, 0, ..., -1].ravel()) == sorted(
                        image[0, 0, ..., -1].ravel()
                    )


def test_the_first_live_document_is_of_one_round():
    xml, places = live_xml(plan(ORDERS["tcz"][0]), 0, "live", uuid=UUIDS[0])
    (pixels,) = valid(xml).iter(f"{NS}Pixels")
    assert [int(pixels.get(f"Size{axis}")) for axis in "XYZCT"] == [X, Y, 4, 2, 1]
    start, length = places["PlaneCount"]
    assert xml[start : start + length] == b"0000000008"


def test_channels_in_a_live_document_are_as_many_as_it_says():
    named = (AcquiredChannel("a"), AcquiredChannel("b"))
    for name, count in (("tcz", 2), ("czt", 0)):  # where C itself grows there are none yet
        xml, _ = live_xml(plan(ORDERS[name][0], channels=named), 0, "live", uuid=UUIDS[0])
        assert len(valid(xml).findall(f".//{NS}Channel")) == count


@pytest.mark.parametrize("how", ["redundant", "master", "companion"])
def test_several_files(java, tmp_path, how):
    of = plan((("T", 3, 1),), positions=(AcquiredPosition("a"), AcquiredPosition("b")))
    names = ["x_p000.ome.tiff", "x_p001.ome.tiff"]
    images = [
        StreamImage(ImageRecord(n, 3 - n), f"at {n}", names[n], UUIDS[n + 1]) for n in range(2)
    ]
    full = {"redundant": {0, 1}, "master": {0}, "companion": set()}[how]
    main = ("companion.ome", UUIDS[3]) if how == "companion" else (names[0], UUIDS[1])
    for n, name in enumerate(names):
        refer = None if n in full else main
        xml = stream_xml(of, images, {}, uuid=UUIDS[n + 1], tiff=True, binary_only=refer)
        valid(xml)
        write(tmp_path / name, xml, 3 - n, 3 - n, 10 * n)
    if how == "companion":
        xml = stream_xml(of, images, {}, uuid=UUIDS[3], tiff=True)
        valid(xml)
        (tmp_path / "companion.ome").write_bytes(xml)
    for n in range(2):
        image = np.stack([frame(k + 10 * n) for k in range(3 - n)], -1)[:, :, None, None]
        np.testing.assert_array_equal(by_java(java, tmp_path / names[0], n), image)
        np.testing.assert_array_equal(by_java(java, tmp_path / names[1], n), image)
        if how == "redundant":
            np.testing.assert_array_equal(by_tifffile(tmp_path / names[0], n), image)


def test_several_images_in_one_file(tmp_path):
    of = plan((("T", 2, 1),), positions=(AcquiredPosition("a"), AcquiredPosition("b")))
    images = [StreamImage(ImageRecord(n, 2), f"at {n}", first_ifd=2 * n) for n in range(2)]
    _, xml = document(of, images, tiff=True)
    path = tmp_path / "image.ome.tiff"
    write(path, xml, 4, 4)
    for n in range(2):
        image = np.stack([frame(2 * n), frame(2 * n + 1)], -1)[:, :, None, None]
        np.testing.assert_array_equal(by_tifffile(path, n), image)


def test_several_images_whose_order_has_no_name(java, tmp_path):
    axes, _ = ORDERS["cameras slowest"]
    of = plan(axes, positions=(AcquiredPosition("a"), AcquiredPosition("b")))
    images = [StreamImage(ImageRecord(n, 24), f"at {n}", first_ifd=24 * n) for n in range(2)]
    _, xml = document(of, images, tiff=True)
    path = tmp_path / "image.ome.tiff"
    write(path, xml, 48, 48)
    for n in range(2):
        image = expected(axes, 24) + np.uint16(24 * 100 * n)
        np.testing.assert_array_equal(by_java(java, path, n), image)


# -- what is said of an image ---------------------------------------------------------------------


@pytest.fixture
def rich():
    return plan(
        (("T", 3, 1), ("C", 2, 1)),
        physical_size=PhysicalSize((0.1, "µm"), (100.0, "nm"), (0.5, "µm")),
        time_increment=(1500.0, "ms"),
        channels=(
            AcquiredChannel("DAPI <1>", (0, 0, 255, 255), 358.0, 461.5, "Hoechst"),
            AcquiredChannel("plain"),
        ),
        positions=(
            AcquiredPosition("left", "B", "2", x_um=10.5, y_um=-3.0, z_um=0.0),
            AcquiredPosition("right", "C", "1", x_um=20.0),
            AcquiredPosition("again", "B", "2"),
        ),
        plate=Plate("screen", ("A", "B", "C"), ("1", "2")),
    )


def test_everything_known_of_an_acquisition(rich):
    images = [StreamImage(ImageRecord(n, 6), p.name) for n, p in enumerate(rich.positions)]
    _, xml = document(rich, images)
    ome = ome_types.from_xml(xml)
    assert ome.uuid == UUIDS[0]
    assert [image.name for image in ome.images] == ["left", "right", "again"]
    first = ome.images[0]
    assert first.acquisition_date.isoformat() == "2026-11-21T12:00:00+00:00"
    pixels = first.pixels
    assert (pixels.physical_size_x, pixels.physical_size_x_unit.value) == (0.1, "µm")
    assert (pixels.physical_size_y, pixels.physical_size_y_unit.value) == (100.0, "nm")
    assert (pixels.physical_size_z, pixels.physical_size_z_unit.value) == (0.5, "µm")
    assert (pixels.time_increment, pixels.time_increment_unit.value) == (1500.0, "ms")
    assert (pixels.type.value, pixels.significant_bits, pixels.big_endian) == ("uint16", 16, False)
    known, plain = pixels.channels
    assert (known.name, known.fluor, known.samples_per_pixel) == ("DAPI <1>", "Hoechst", 1)
    assert (known.excitation_wavelength, known.excitation_wavelength_unit.value) == (358.0, "nm")
    assert (known.emission_wavelength, known.emission_wavelength_unit.value) == (461.5, "nm")
    assert known.color.as_rgb_tuple(alpha=False) == (0, 0, 255)
    assert (plain.name, plain.excitation_wavelength, plain.fluor) == ("plain", None, None)
    label = first.stage_label
    assert (label.name, label.x, label.y, label.z) == ("left", 10.5, -3.0, 0.0)
    assert {label.x_unit.value, label.y_unit.value, label.z_unit.value} == {"µm"}
    assert (ome.images[1].stage_label.x, ome.images[1].stage_label.y) == (20.0, None)
    assert ome.images[2].stage_label is None


def test_units_stand_only_where_there_is_a_value(rich):
    images = [StreamImage(ImageRecord(2, 6), "image")]
    root, _ = document(rich, images)
    plain = root.findall(f".//{NS}Channel")[1]
    assert set(plain.attrib) == {"ID", "Name", "SamplesPerPixel"}
    for element in root.iter():
        for name in element.attrib:
            if name.endswith("Unit"):
                assert name.removesuffix("Unit") in element.attrib


def test_the_stage_stands_in_the_first_plane(rich, java, tmp_path):
    """That is where programs which stitch look for it."""
    said = {0: [], 1: [(2, {"delta_t": 1.0}), (3, {"position_x": 5.0})], 2: []}
    records = [ImageRecord(n, 6, (), lambda n=n: said[n]) for n in range(3)]
    root, xml = document(rich, [StreamImage(r, "image", first_ifd=0) for r in records], tiff=True)
    planes = [i.findall(f".//{NS}Plane") for i in root.findall(f"{NS}Image")]
    assert [len(p) for p in planes] == [1, 3, 0]
    assert dict(planes[0][0].attrib) == {
        "TheZ": "0",
        "TheC": "0",
        "TheT": "0",
        "PositionX": "10.5",
        "PositionY": "-3.0",
        "PositionZ": "0.0",
        **{f"Position{axis}Unit": "µm" for axis in "XYZ"},
    }
    assert [p.get("TheT") for p in planes[1]] == ["0", "1", "1"]
    # what the camera's program said of a frame counts more than the list of positions
    assert [p.get("PositionX") for p in planes[1]] == ["20.0", "20.0", "5.0"]
    path = tmp_path / "image.ome.tiff"
    write(path, xml, 6, 6)
    with opened(java, path, 0) as reader:
        store = reader.getMetadataStore()
        micron = java.units.MICROMETER if hasattr(java, "units") else None
        x = store.getPlanePositionX(0, 0)
        assert float(x.value().doubleValue()) == 10.5
        assert str(x.unit().getSymbol()) == "µm"
        assert micron is None or x.unit() == micron


def test_wells(rich, java, tmp_path):
    images = [StreamImage(ImageRecord(n, 6), p.name) for n, p in enumerate(rich.positions)]
    root, xml = document(rich, images, tiff=True)
    (plate,) = root.findall(f"{NS}Plate")
    assert (plate.get("Name"), plate.get("Rows"), plate.get("Columns")) == ("screen", "3", "2")
    assert plate.get("RowNamingConvention") == "letter"
    assert plate.get("ColumnNamingConvention") == "number"
    plate = ome_types.from_xml(xml).plates[0]
    wells = {(w.row, w.column): [s.image_ref.id for s in w.well_samples] for w in plate.wells}
    assert wells == {(1, 1): ["Image:0", "Image:2"], (2, 0): ["Image:1"]}
    sample = plate.wells[0].well_samples[0]
    assert (sample.position_x, sample.position_x_unit.value) == (10.5, "µm")
    run = plate.plate_acquisitions[0]
    assert (run.maximum_field_count, len(run.well_sample_refs)) == (2, 3)
    assert run.start_time.isoformat() == "2026-11-21T12:00:00+00:00"
    path = tmp_path / "image.ome.tiff"
    write(path, xml, 6, 6)
    with opened(java, path, 0) as reader:
        store = reader.getMetadataStore()
        assert (int(store.getWellCount(0)), int(store.getPlateRows(0).getValue())) == (2, 3)
        assert str(store.getWellSampleImageRef(0, 0, 1)) == "Image:2"


def test_wells_of_images_that_came_in_another_order(rich):
    images = [StreamImage(ImageRecord(n, 6), "image") for n in (1, 0)]
    _, xml = document(rich, images)
    wells = ome_types.from_xml(xml).plates[0].wells
    found = {(w.row, w.column): [s.image_ref.id for s in w.well_samples] for w in wells}
    assert found == {(2, 0): ["Image:0"], (1, 1): ["Image:1"]}


def test_a_well_outside_the_plate_is_kept():
    where = (AcquiredPosition("a", "Z", "7"), AcquiredPosition("b", "A", "1"))
    of = plan(positions=where, plate=Plate("", ("A", "*"), ("1",)))
    root, _ = document(of, [StreamImage(ImageRecord(n, 3), "") for n in range(2)])
    (plate,) = root.findall(f"{NS}Plate")
    assert (plate.get("Rows"), plate.get("Columns")) == ("3", "2")
    assert "RowNamingConvention" not in plate.attrib  # of "*" nobody could tell
    assert [(w.get("Row"), w.get("Column")) for w in plate.findall(f"{NS}Well")] == [
        ("2", "1"),
        ("0", "0"),
    ]


def test_the_origin_of_the_image_and_the_stage(rich):
    """There is one StageLabel: it has the origin, and the planes have the stage."""
    more = {"position": PhysicalSize((2.0, "µm"), (0.0, "µm"), None)}
    of = plan(positions=(AcquiredPosition("a", x_um=7.0),), **more)
    root, _ = document(of)
    (label,) = root.iter(f"{NS}StageLabel")
    assert (label.get("Name"), label.get("X"), label.get("XUnit")) == ("image origin", "2.0", "µm")
    (plane,) = root.iter(f"{NS}Plane")
    assert plane.get("PositionX") == "7.0"


OME_NAMES = {
    **{name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32")},
    "float32": "float",
    "float64": "double",
    "complex64": "complex",
    "complex128": "double-complex",
    # OME has no names for these
    "float16": "float",
    "int64": "double",
    "uint64": "double",
    "bool": "uint8",
}


@pytest.mark.parametrize("dtype", OME_NAMES)
def test_pixel_types(dtype):
    root, xml = document(plan(dtype=dtype), tiff=True)
    live, _ = live_xml(plan(dtype=dtype), 0, "live", uuid=UUIDS[0])
    for tree in (root, valid(live)):
        (pixels,) = tree.iter(f"{NS}Pixels")
        assert pixels.get("Type") == OME_NAMES[dtype]
        values = [m.text for m in tree.iter(f"{NS}M") if m.get("K") == "dtype"]
        stored = dtype in ("float16", "int64", "uint64", "bool")
        assert values == ([dtype] if stored else [])
        assert len(tree.findall(f"{NS}Image/{NS}AnnotationRef")) == stored
    ome_types.from_xml(xml)


def test_a_pixel_type_nobody_has():
    with pytest.raises(SpecError, match="no pixel type for datetime64"):
        document(plan(dtype="datetime64[s]"))


# -- what is said of planes -----------------------------------------------------------------------


def test_metadata_of_frames():
    said = [
        (0, {"delta_t": 0.25, "exposure_time": 0.01, "camera": "A", "gain": 3}),
        (1, {"delta_t": 1}),
        (
            4,
            {
                "position_x": 1.5,
                "position_y": -2,
                "position_z": 0.0,
                "nested": {"a": [1, None, True]},
                "on": True,
                "é": "µ & <b> \"quoted\" 'single'",
            },
        ),
    ]
    of = plan((("T", 3, 1), ("C", 2, 1)))
    record = ImageRecord(0, 6, (), lambda: said)
    root, xml = document(of, [StreamImage(record, "image")])
    planes = {(p.the_t, p.the_c): p for p in ome_types.from_xml(xml).images[0].pixels.planes}
    assert set(planes) == {(0, 0), (0, 1), (2, 0)}
    first, second, third = (planes[at] for at in ((0, 0), (0, 1), (2, 0)))
    assert (first.delta_t, first.delta_t_unit.value) == (0.25, "s")
    assert (first.exposure_time, first.exposure_time_unit.value) == (0.01, "s")
    assert (second.delta_t, second.exposure_time, second.annotation_refs) == (1.0, None, [])
    assert (third.position_x, third.position_y, third.position_z) == (1.5, -2.0, 0.0)
    assert third.position_x_unit.value == "µm"
    notes = {a.get("ID"): a for a in root.iter(f"{NS}MapAnnotation")}
    assert len(notes) == 2

    def pairs(plane):
        (ref,) = plane.annotation_refs
        return {m.get("K"): m.text for m in notes[ref.id].iter(f"{NS}M")}

    assert pairs(first) == {"camera": "A", "gain": "3"}
    found = pairs(third)
    assert json.loads(found.pop("nested")) == {"a": [1, None, True]}
    assert found == {"on": "true", "é": "µ & <b> \"quoted\" 'single'"}


def test_numbers_that_are_none_are_kept_as_text():
    said = [(0, {"delta_t": "NaN", "exposure_time": float("inf"), "position_x": 10**400})]
    record = ImageRecord(0, 3, (), lambda: said)
    root, _ = document(plan(), [StreamImage(record, "image")])
    (plane,) = root.iter(f"{NS}Plane")
    assert set(plane.attrib) == {"TheZ", "TheC", "TheT"}
    found = {m.get("K"): m.text for m in root.iter(f"{NS}M")}
    assert found["delta_t"] == "NaN"
    assert int(found["position_x"]) == 10**400


def test_metadata_of_frames_that_are_not_there_stay_out():
    record = ImageRecord(0, 2, (), lambda: [(1, {"a": 1}), (2, {"a": 2})])
    root, _ = document(plan(), [StreamImage(record, "image")])
    assert [p.get("TheT") for p in root.iter(f"{NS}Plane")] == ["1"]
    assert len(list(root.iter(f"{NS}MapAnnotation"))) == 1


def test_planes_of_some_positions_only():
    of = plan(positions=tuple(AcquiredPosition(f"{n}") for n in range(3)))

    def said(n):
        return lambda: [(k, {"delta_t": float(k), "who": f"{n}.{k}"}) for k in range(3)]

    order = [2, 0, 1]  # as they were visited
    images = [StreamImage(ImageRecord(n, 3, (), said(n)), f"{n}") for n in order]
    documents = StreamDocument(of, images, {"ns": {"key": [1]}}, tiff=False)
    for n in range(3):
        root = valid(documents.xml(uuid=UUIDS[n], planes_of={n}))
        found = [len(image.findall(f".//{NS}Plane")) for image in root.findall(f"{NS}Image")]
        assert found == [3 if k == n else 0 for k in order]
        who = [m.text for m in root.iter(f"{NS}M") if m.get("K") == "who"]
        assert who == [f"{n}.{k}" for k in range(3)]
        assert root.get("UUID") == UUIDS[n]
    whole = valid(documents.xml(uuid=UUIDS[3]))
    assert len(list(whole.iter(f"{NS}Plane"))) == 9
    assert len(list(whole.iter(f"{NS}MapAnnotation"))) == 10


def test_notes_on_the_whole_acquisition():
    values = {"summary": {"a": [1, 2.5, None]}, "text": "ü<&>", "number": 3}
    root, _ = document(plan(), notes={"my/ns": values, "other": {}})
    notes = {a.get("Namespace"): a for a in root.iter(f"{NS}MapAnnotation")}
    assert set(notes) == {"my/ns", "other"}
    found = {m.get("K"): json.loads(m.text) for m in notes["my/ns"].iter(f"{NS}M")}
    assert found == values


@pytest.mark.parametrize(
    ("record", "expect"),
    [
        (ImageRecord(0, 6), Absent()),
        (ImageRecord(0, 5), Absent((), (range(5, 6),))),
        (ImageRecord(0, 6, (range(1, 2),)), Absent((range(1, 2),))),
        (
            ImageRecord(0, 3, (range(1), range(2, 3))),
            Absent((range(1), range(2, 3)), (range(3, 4),)),
        ),
        (ImageRecord(0, 6, (range(2, 6),)), Absent((range(2, 6),))),
    ],
)
def test_planes_without_pixels_are_listed(record, expect):
    of = plan((("T", 3, 1), ("C", 2, 1)))
    images = [StreamImage(record, "image"), StreamImage(ImageRecord(0, 6), "whole")]
    root, xml = document(of, images)
    assert absent_planes(xml) == (expect, Absent())
    texts = {m.get("K"): m.text for m in root.iter(f"{NS}M")}
    if not any(expect):
        assert texts == {}
        return
    for key, ranges in expect._asdict().items():  # as a person reads it
        numbers = [n for r in ranges for n in r]
        shown = texts.get(key, "")
        parts = [[int(n) for n in part.split("-")] for part in shown.split(", ") if part]
        assert [n for p in parts for n in range(p[0], p[-1] + 1)] == numbers
    assert texts["order"] == "T C"


# -- text -----------------------------------------------------------------------------------------

NASTY = "a\tb\nc\rd & <e> \"f\" 'g' ]]> é µ 🔬 \x7f \x85 \xa0 \u2028 "


def test_text_comes_back_as_it_was():
    record = ImageRecord(0, 3, (), lambda: [(0, {NASTY: NASTY})])
    of = plan(
        channels=(AcquiredChannel(NASTY, fluorophore=NASTY),),
        positions=(AcquiredPosition(NASTY, "A", "1", x_um=1.0),),
        plate=Plate(NASTY, ("A",), ("1",)),
    )
    image = StreamImage(record, NASTY, NASTY, UUIDS[1])
    root, _ = document(of, [image], {"ns": {NASTY: NASTY}}, tiff=True)

    def one(path, attribute):
        (element,) = root.findall(path)
        return element.get(attribute)

    assert one(f"{NS}Image", "Name") == NASTY
    assert one(f".//{NS}Channel", "Name") == one(f".//{NS}Channel", "Fluor") == NASTY
    assert one(f"{NS}Plate", "Name") == NASTY
    assert one(f".//{NS}UUID", "FileName") == NASTY
    assert one(f".//{NS}StageLabel", "Name") == NASTY
    said, note = root.iter(f"{NS}M")
    assert said.get("K") == note.get("K") == said.text == json.loads(note.text) == NASTY


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "a%",
        "a%20b",
        "1:b",
        "a:b",
        "x#y#z",
        "é µ",
        "http://[",
        "//x:y",
        NASTY,
        "%41",
        "\ud800",
    ],
)
def test_any_namespace_is_one_for_the_schema(name):
    root, _ = document(plan(), notes={name: {"k": 1}})
    (note,) = root.iter(f"{NS}MapAnnotation")
    assert unquote(note.get("Namespace"), errors="surrogatepass") == name


@pytest.mark.parametrize("name", ["pymmcore_plus", "http://a.org/b?c=d#e", "urn", "my/ns-1.0"])
def test_a_namespace_that_is_a_uri_stays_as_it_is(name):
    root, _ = document(plan(), notes={name: {}})
    (note,) = root.iter(f"{NS}MapAnnotation")
    assert note.get("Namespace") == name


def test_what_xml_cannot_hold_is_spelled_out():
    bad = "a\x00b\x1bc\ud800d\uffffe"
    record = ImageRecord(0, 3, (), lambda: [(0, {"k": bad})])
    root, _ = document(plan(), [StreamImage(record, bad)])
    shown = r"a\u0000b\u001bc\ud800d\uffffe"
    assert root.find(f"{NS}Image").get("Name") == shown
    assert [m.text for m in root.iter(f"{NS}M")] == [shown]
    xml, places = live_xml(plan(), 0, bad + ' SizeT="9"', uuid=UUIDS[0])
    valid(xml)
    for start, length in places.values():
        assert re.fullmatch(rb"\d{10}", xml[start : start + length])
        assert xml[start - 1 : start] == xml[start + length : start + length + 1] == b'"'


def test_a_reference_to_the_file_with_the_document():
    root, xml = document(plan(), binary_only=("a & b.ome", UUIDS[1].removeprefix("urn:uuid:")))
    (child,) = root
    assert child.tag == f"{NS}BinaryOnly"
    assert dict(child.attrib) == {"MetadataFile": "a & b.ome", "UUID": UUIDS[1]}
    assert ome_types.from_xml(xml).binary_only.metadata_file == "a & b.ome"


def test_without_tiff_the_document_stands_alone():
    root, _ = document(plan())
    assert len(root.findall(f".//{NS}MetadataOnly")) == 1
    assert not root.findall(f".//{NS}TiffData")
