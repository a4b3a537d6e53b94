"""NGFF metadata: documents of all versions against what stands in them, ours against others."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ngff_peers import JUNK, check, places, spoiled

from bioio_tk.core.plate import Acquisition, Field, Plate, Well
from bioio_tk.core.spec import Channel, ImageSpec, Level, PhysicalSize, pyramid_levels
from bioio_tk.errors import BioIOError, DamagedFileError, FormatError, SpecError, UnsupportedError
from bioio_tk.meta import ngff
from bioio_tk.meta.ngff import Axis

SHARED = Path(__file__).parents[2] / "shared" / "data"
VERSIONS = ("0.4", "0.5")
TCZYX = [
    {"name": "t", "type": "time"},
    {"name": "c", "type": "channel"},
    {"name": "z", "type": "space"},
    {"name": "y", "type": "space"},
    {"name": "x", "type": "space"},
]


def spec(shape=(155, 300, 3, 2, 4), dtype="u2", levels=3, **known):
    return ImageSpec(np.dtype(dtype), pyramid_levels(shape, (64, 64, 1, 1, 1), levels), **known)


def image(axes=TCZYX, datasets=None, version="0.4", **more):
    entry = {"axes": axes, "datasets": datasets or [{"path": "0"}], "version": version, **more}
    return {"multiscales": [{k: v for k, v in entry.items() if v is not None}]}


def read(attributes):
    return ngff.read_group(json.loads(json.dumps(attributes)), "here")


def scale(*values):
    return {"type": "scale", "scale": list(values)}


def move(*values):
    return {"type": "translation", "translation": list(values)}


# -- what we write, as others see it --------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("axes", ["yx", "zyx", "cyx", "tyx", "czyx", "tzyx", "tcyx", "tczyx"])
@pytest.mark.parametrize("levels", [1, 3])
def test_images_are_accepted(version, axes, levels):
    sizes = {"z": 5, "c": 2, "t": 3}
    shape = (100, 90, *(sizes[k] if k in axes else 1 for k in "zct"))
    paths = [f"s{i}" for i in range(levels)]
    written = ngff.image_attributes(
        spec(shape, levels=levels), version=version, axes=axes, paths=paths, method="mean"
    )
    check(written, version, "image")
    found = read(written).multiscales[0]
    assert [axis.name for axis in found.axes] == list(axes)
    assert [dataset.path for dataset in found.datasets] == paths
    notes = []
    order = ngff.yxzct(found.axes, len(axes), notes=notes)
    assert [axes[i] if i is not None else None for i in order] == [
        k if k in axes else None for k in "yxzct"
    ]
    assert notes == []


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_in_full(version):
    """Word for word what the specification says of such an image."""
    known = spec(
        (155, 300, 3, 2, 4),
        name="cells",
        channels=(Channel("DAPI", (0, 0, 255, 255)), Channel()),
        physical_size=PhysicalSize((0.5, "µm"), (0.25, "µm"), (2.0, "nm")),
        time_increment=(2.0, "min"),
        position=PhysicalSize((0.01, "mm"), None, (4.0, "nm")),
    )
    written = ngff.image_attributes(
        known,
        version=version,
        paths=["0", "1", "2"],
        method="mean",
        windows=[(0, 4095, 5, 99), (math.nan, 1, 0, 1)],
    )
    check(written, version, "image")
    inner = written["ome"] if version == "0.5" else written
    entry = inner["multiscales"][0]
    assert entry["name"] == "cells"
    assert entry["type"] == "mean"
    assert entry["axes"] == [
        {"name": "t", "type": "time", "unit": "minute"},
        {"name": "c", "type": "channel"},
        {"name": "z", "type": "space", "unit": "nanometer"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    # 155 -> 78 -> 39 rows: the factor is 2 although the last row is only half there
    assert entry["datasets"] == [
        {"path": "0", "coordinateTransformations": [
            scale(2.0, 1.0, 2.0, 0.25, 0.5), move(0.0, 0.0, 4.0, 0.0, 10.0)]},
        {"path": "1", "coordinateTransformations": [
            scale(2.0, 1.0, 2.0, 0.5, 1.0), move(0.0, 0.0, 4.0, 0.125, 10.25)]},
        {"path": "2", "coordinateTransformations": [
            scale(2.0, 1.0, 2.0, 1.0, 2.0), move(0.0, 0.0, 4.0, 0.375, 10.75)]},
    ]  # fmt: skip
    first, second = inner["omero"]["channels"]
    assert (first["label"], first["color"], first["active"]) == ("DAPI", "0000FF", True)
    assert first["window"] == {"min": 0, "max": 4095, "start": 5, "end": 99}
    assert "label" not in second
    assert second["window"] == {"min": 0, "max": 65535, "start": 0, "end": 65535}
    assert inner["omero"]["rdefs"] == {"model": "color", "defaultZ": 1, "defaultT": 0}
    assert (entry.get("version"), inner.get("version")) == (
        ("0.4", None) if version == "0.4" else (None, "0.5")
    )


def test_the_first_pixel_of_each_cell_is_not_shifted():
    written = ngff.image_attributes(spec(), version="0.5", paths=["0", "1", "2"], method="nearest")
    for dataset in written["ome"]["multiscales"][0]["datasets"]:
        assert [step["type"] for step in dataset["coordinateTransformations"]] == ["scale"]


def test_without_sizes_there_is_no_unit():
    written = ngff.image_attributes(spec(levels=1), version="0.4", paths=["0"], method="")
    entry = written["multiscales"][0]
    assert entry["axes"] == TCZYX
    assert entry["datasets"][0]["coordinateTransformations"] == [scale(1.0, 1.0, 1.0, 1.0, 1.0)]
    assert "type" not in entry
    assert "metadata" not in entry


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_size_that_is_none_is_not_written(value):
    known = spec(
        levels=1,
        physical_size=PhysicalSize((value, "µm"), (0.5, "µm")),
        time_increment=(value, "s"),
    )
    written = ngff.image_attributes(known, version="0.5", paths=["0"], method="mean")
    check(written, "0.5", "image")
    entry = written["ome"]["multiscales"][0]
    assert entry["axes"][4] == {"name": "x", "type": "space"}
    assert entry["axes"][0] == {"name": "t", "type": "time"}
    assert entry["datasets"][0]["coordinateTransformations"][0] == scale(1.0, 1.0, 1.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((2.0, "pixel"), (2.0, None)),
        ((2.0, "reference frame"), (2.0, None)),
        ((2.0, "thou"), (50.8, "micrometer")),
        ((2.0, "dam"), (2e7, "micrometer")),
        ((2.0, "in"), (2.0, "inch")),
        ((2.0, "Å"), (2.0, "angstrom")),
    ],
)
def test_units_ngff_does_not_list(size, expected):
    known = spec(levels=1, physical_size=PhysicalSize(x=size))
    entry = ngff.image_attributes(known, version="0.4", paths=["0"], method="")["multiscales"][0]
    x = entry["datasets"][0]["coordinateTransformations"][0]["scale"][4]
    assert (pytest.approx(x), entry["axes"][4].get("unit")) == expected


def test_every_unit_of_ngff_is_known():
    """Against the lists in yaozarrs, which are those of the specification."""
    from typing import get_args

    from yaozarrs import _axis

    for words, kind, table in (
        (get_args(_axis.ValidSpaceUnit), "space", "LENGTH_WORDS"),
        (get_args(_axis.ValidTimeUnit), "time", "TIME_WORDS"),
    ):
        from bioio_tk.meta import ngff_axes

        assert sorted(getattr(ngff_axes, table).values()) == sorted(words)
        for word in words:
            symbol = ngff.unit_symbol(word, kind)
            assert ngff.unit_word(3.0, symbol, kind) == (3.0, word)
    assert ngff.unit_symbol("kilosecond", "time") == "ks"
    assert ngff.unit_symbol("megameter", "space") == "Mm"
    assert ngff.unit_symbol("minute", "space") is None


@pytest.mark.parametrize(
    ("dtype", "window"),
    [
        ("u1", (0, 255)),
        ("i1", (-128, 127)),
        ("u2", (0, 65535)),
        ("i2", (-32768, 32767)),
        ("f4", (0, 1)),
        ("?", (0, 1)),
        ("c8", (0, 1)),
    ],
)
def test_windows_of_pixel_types(dtype, window):
    written = ngff.image_attributes(
        spec(dtype=dtype, levels=1), version="0.5", paths=["0"], method=""
    )
    low, high = window
    for channel in written["ome"]["omero"]["channels"]:
        assert channel["window"] == {"min": low, "max": high, "start": low, "end": high}


@pytest.mark.parametrize(
    ("count", "samples", "colors", "model"),
    [
        (1, 1, ["FFFFFF"], "greyscale"),
        (2, 1, ["FF00FF", "00FF00"], "color"),
        (3, 3, ["FF0000", "00FF00", "0000FF"], "color"),
        (4, 1, ["00FFFF", "FFFF00", "FF00FF", "FF0000"], "color"),
        (7, 1, ["00FFFF", "FFFF00", "FF00FF", "FF0000", "00FF00", "0000FF", "00FFFF"], "color"),
    ],
)
def test_colours_of_channels_without_one(count, samples, colors, model):
    known = ImageSpec(
        np.dtype("u1"), (Level((8, 8, 1, count, 1), (8, 8, 1, 1, 1)),), samples=samples
    )
    omero = ngff.image_attributes(known, version="0.4", paths=["0"], method="")["omero"]
    assert [channel["color"] for channel in omero["channels"]] == colors
    assert [channel["active"] for channel in omero["channels"]] == [i < 6 for i in range(count)]
    assert omero["rdefs"]["model"] == model


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_are_accepted(version):
    written = ngff.label_attributes(
        spec((64, 64, 1, 1, 1), dtype="i4", levels=1),
        version=version,
        axes="yx",
        paths=["0"],
        colors={1: (255, 0, 0, 128), 0: (0, 0, 0, 0)},
        properties={1: {"area": np.float32(2.5), "bad": math.nan, "label-value": 7}},
    )
    check(written, version, "label")
    label = (written["ome"] if version == "0.5" else written)["image-label"]
    assert label["colors"][1] == {"label-value": 1, "rgba": [255, 0, 0, 128]}
    assert label["properties"] == [
        {"label-value": 0},
        {"label-value": 1, "area": 2.5, "bad": None},
    ]
    assert label["source"] == {"image": "../../"}
    assert read(written).image_label == label
    check(ngff.labels_attributes(["cells", "nuclei"], version), version, "labels")
    assert read(ngff.labels_attributes(["a", "b"], version)).labels == ("a", "b")


@pytest.mark.parametrize("version", VERSIONS)
def test_plates_are_accepted(version):
    wells = (
        Well("B", "3", (Field("0", 0), Field("1", 0), Field("2", 5))),
        Well("A", "1", (Field("0"),)),
    )
    plate = Plate(
        "P", ("A", "B"), ("1", "2", "3"), wells, (Acquisition(0, "first"), Acquisition(5))
    )
    written = ngff.plate_attributes(plate, version)
    check(written, version, "plate")
    inner = (written["ome"] if version == "0.5" else written)["plate"]
    assert inner["wells"] == [
        {"path": "B/3", "rowIndex": 1, "columnIndex": 2},
        {"path": "A/1", "rowIndex": 0, "columnIndex": 0},
    ]
    assert inner["field_count"] == 3
    assert [run["maximumfieldcount"] for run in inner["acquisitions"]] == [2, 1]
    found = read(written)
    assert (found.plate.name, found.plate.rows, found.plate.columns) == (
        "P", ("A", "B"), ("1", "2", "3"))  # fmt: skip
    assert found.plate.wells == (Well("B", "3"), Well("A", "1"))
    assert found.plate.acquisitions == plate.acquisitions
    assert found.notes == ()
    for well in wells:
        written = ngff.well_attributes(well, version)
        check(written, version, "well")
        assert read(written).well_images == well.fields


@pytest.mark.parametrize("version", VERSIONS)
def test_layouts_are_accepted(version):
    layout, series = ngff.layout_attributes(version), ngff.series_attributes(["0", "1"], version)
    check(layout, version, "layout")
    check(series, version, "series")
    assert read(layout).layout == 3
    assert read(series).series == ("0", "1")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ngff.image_attributes(spec(), version="0.3", paths=["0"], method=""), "0.4 and"),
        (lambda: ngff.image_attributes(spec(), version="0.5", paths=["0"], method=""), "3 levels"),
        (lambda: ngff.image_attributes(spec(), version="0.5", axes="czyx", paths="012", method=""),
         "4 T"),
        (lambda: ngff.image_attributes(spec(), version="0.5", axes="xyzct", paths="012", method=""),
         "order tczyx"),
        (lambda: ngff.label_attributes(spec(dtype="f4"), version="0.5", paths="012"), "float32"),
        (lambda: ngff.label_attributes(spec(), version="0.5", paths="012", colors={1: (1, 2, 3)}),
         "alpha"),
        (lambda: ngff.label_attributes(
            spec(), version="0.5", paths="012", colors={1: (1, 2, 3, 256)}), "0 to 255"),
        (lambda: ngff.plate_attributes(Plate(), "0.5"), "at least one well"),
        (lambda: ngff.plate_attributes(Plate("", ("A",), ("1",), (Well("B", "1"),)), "0.5"), "'B'"),
        (lambda: ngff.plate_attributes(Plate("", ("A/",), ("1",), (Well("A/", "1"),)), "0.5"),
         "letters and digits"),
        (lambda: ngff.plate_attributes(Plate("", ("A",), ("1", "1"), (Well("A", "1"),)), "0.5"),
         "two columns"),
        (lambda: ngff.plate_attributes(Plate("", ("A",), ("1",), (Well("A", "1"),) * 2), "0.5"),
         "twice"),
        (lambda: ngff.well_attributes(Well("A", "1"), "0.5"), "no field"),
        (lambda: ngff.well_attributes(Well("A", "1", (Field("../0"),)), "0.5"), "letters"),
        (lambda: ngff.labels_attributes([], "0.6"), "0.6"),
    ],
)  # fmt: skip
def test_what_cannot_be_written(call, text):
    with pytest.raises(SpecError, match=text):
        call()


QUANTITY = st.tuples(st.floats(1e-6, 1e6), st.sampled_from(["µm", "nm", "mm", "Å", "in"]))
NAMES = st.none() | st.text(max_size=8)
COLORS = st.none() | st.tuples(*[st.integers(0, 255)] * 3).map(lambda rgb: (*rgb, 255))


@given(
    version=st.sampled_from(VERSIONS),
    name=st.text(max_size=12),
    channels=st.lists(st.builds(Channel, NAMES, COLORS), min_size=1, max_size=4),
    sizes=st.tuples(*[st.none() | QUANTITY] * 3),
    time=st.none() | st.tuples(st.floats(1e-3, 1e3), st.sampled_from(["s", "ms", "min", "h"])),
    method=st.sampled_from(["mean", "nearest", "mode"]),
)
def test_what_is_written_is_read_again(version, name, channels, sizes, time, method):
    known = spec(
        (100, 90, 2, len(channels), 3),
        levels=2,
        name=name,
        channels=tuple(channels),
        physical_size=PhysicalSize(*sizes),
        time_increment=time,
    )
    written = ngff.image_attributes(known, version=version, paths=["a", "b/c"], method=method)
    check(written, version, "image")
    group = read(written)
    found = group.multiscales[0]
    assert (group.version, found.version, found.name, found.type) == (
        version, version, name, method)  # fmt: skip
    assert group.notes == ()
    assert [channel.name for channel in group.channels] == [c.name for c in channels]
    for own, other in zip(channels, group.channels, strict=True):
        assert own.color in (None, other.color)
    full = found.datasets[0].scale
    for axis, size in ((4, sizes[0]), (3, sizes[1]), (2, sizes[2]), (0, time)):
        unit = ngff.ome_unit(found.axes[axis])
        assert (full[axis], unit) == (size if size is not None else (1.0, None))
    assert found.datasets[1].scale == (*full[:3], full[3] * 2, full[4] * 2)


# -- documents of others --------------------------------------------------------------------------


def test_version_0_1_and_0_2():
    for version in ("0.1", "0.2"):
        group = read(image(None, [{"path": "s0"}, {"path": "s1"}], version, name="x"))
        found = group.multiscales[0]
        assert (group.version, found.name, found.axes) == (version, "x", None)
        assert [d.path for d in found.datasets] == ["s0", "s1"]
        assert found.datasets[0].scale is None
        assert group.notes == ()
    notes = []
    order = ngff.yxzct(None, 5, notes=notes)
    assert order == (3, 4, 2, 1, 0)
    assert "TCZYX" in notes[0]


def test_version_0_3():
    group = read(image(["c", "y", "x"], version="0.3"))
    assert group.multiscales[0].axes == (
        Axis("c", "channel"), Axis("y", "space"), Axis("x", "space"))  # fmt: skip
    assert group.version == "0.3"
    assert group.notes == ()


def test_versions_0_4_and_0_5_fold_the_transformation_of_the_group():
    axes = [{"name": "y", "type": "space", "unit": "micrometer"}, {"name": "x", "type": "space"}]
    levels = [
        {"path": "0", "coordinateTransformations": [scale(2, 3), move(1, 10)]},
        {"path": "1", "coordinateTransformations": [scale(4, 6)]},
        {"path": "2"},
    ]
    outer = [scale(0.5, 10), move(100, 0)]
    old = image(axes, levels, coordinateTransformations=outer)
    new = {"ome": {"version": "0.5", **old}}
    for document in (old, new):
        found = read(document).multiscales[0]
        # by hand: position = outer scale * (scale * index + move) + outer move
        assert found.datasets[0].scale == (1.0, 30.0)
        assert found.datasets[0].translation == (100.5, 100.0)
        assert (found.datasets[1].scale, found.datasets[1].translation) == ((2, 60), (100, 0))
        assert (found.datasets[2].scale, found.datasets[2].translation) == ((0.5, 10), (100, 0))
        assert [axis.unit for axis in found.axes] == ["µm", None]
    assert read(new).version == "0.5"


def test_omero_as_others_write_it():
    document = image()
    window = {"min": 0, "max": 255, "start": 3, "end": 99}
    document["omero"] = {
        "channels": [
            {"label": "a", "color": "00FF80", "window": window},
            {"label": 1, "color": "#0f8", "window": {"start": 1, "end": 5}},
            {"color": "00ff8040"},
            {"color": "green", "window": {"min": 0}},
            {"window": {"min": 0, "max": 1, "start": 0, "end": "x"}},
        ],
        "rdefs": {"defaultZ": 12, "defaultT": 1.0, "model": "color"},
    }
    group = read(document)
    assert group.channels == (
        Channel("a", (0, 255, 128, 255)),
        Channel("1", (0, 255, 136, 255)),
        Channel(None, (0, 255, 128, 64)),
        Channel(),
        Channel(),
    )
    assert group.windows == ((0, 255, 3, 99), (1, 5, 1, 5), None, None, None)
    assert (group.default_z, group.default_t) == (12, 1)
    notes = " ".join(group.notes)
    for text in ("label", "'green'", "window"):
        assert text in notes


@pytest.mark.parametrize(
    ("document", "version", "note"),
    [
        (image(version=None), "0.4", "no version"),
        (image(["y", "x"], version=None), "0.3", "no version"),
        (image(None, version=None), "0.1", "no version"),
        ({"ome": image(version=None)}, "0.5", "no version"),
        ({"ome": {"version": "0.5-dev-spatialdata", **image(version=None)}}, "0.5", "spatialdata"),
        ({"ome": {"version": "0.6", **image(version=None)}}, "0.5", "newer than 0.5"),
        (image(version="v4"), "0.4", "unknown"),
        (image(["y", "x"]), "0.4", "plain names"),
        (image(None), "0.4", "not named"),
        (image([{"name": "y", "type": "space", "unit": "furlong"}, {"name": "x"}]), "0.4", "furl"),
        (image(coordinateTransformations=[scale(1, 2)]), "0.4", "5 numbers"),
        (image(coordinateTransformations=[scale(1, 1, 1, 1, 0)]), "0.4", "above 0"),
        (image(coordinateTransformations=[{"type": "affine"}]), "0.4", "'affine'"),
        (image(coordinateTransformations={"type": "scale"}), "0.4", "was ignored"),
        ({**image(), "omero": {"channels": "x"}}, "0.4", "omero"),
        ({**image(), "labels": "x"}, "0.4", '"labels"'),
        ({**image(), "well": "A1"}, "0.4", '"well" is a text'),
        ({"bioformats2raw.layout": "3"}, "0.4", "layout"),
        ({"labels": ["a", "a"]}, "0.4", "twice"),
    ],
)
def test_sloppy_documents_are_read_and_noted(document, version, note):
    group = read(document)
    assert group.version == version
    assert note in " ".join(group.notes)


def test_a_group_without_anything():
    for document in ({}, {"version": "7", "encoding-type": "anndata"}, {"author": "me"}):
        assert read(document) == ngff.Group()


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"ome": []}, '"ome" is an empty list'),
        ({"multiscales": {}}, "has to be a list"),
        ({"multiscales": []}, "no image"),
        ({"multiscales": ["0"]}, "not an object"),
        ({"multiscales": [{"version": "0.4"}]}, '"datasets"'),
        (image(datasets=["0"]), "not an object"),
        (image(datasets=[{"path": 0}]), "not a string"),
        (image(datasets=[{}]), "not a string"),
        (image("tczyx"), '"axes" is a text'),
        (image([{"name": 1}]), "has to have a name"),
        (image(["y", "x", "x"]), "same name: y, x, x"),
        (image(list("abcdef")), "6 axes"),
        ({"plate": {"wells": "A/1"}}, '"wells"'),
        ({"plate": {"wells": [{"path": "A1"}]}}, "ROW/COLUMN"),
        ({"plate": {"wells": [{"rowIndex": 0, "columnIndex": 0}]}}, "no path"),
        ({"well": {}}, '"images"'),
    ],
)
def test_documents_that_would_be_read_wrongly(document, text):
    with pytest.raises(FormatError, match=text) as caught:
        read(document)
    assert "here" in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["/0", "../0", "0/../../1", "a\\b", "a//b", "s3://x/y", "C:/x", "", "/", ".", "./", "\0"],
)
@pytest.mark.parametrize(
    "document",
    [
        lambda p: image(datasets=[{"path": p}]),
        lambda p: {"labels": [p]},
        lambda p: {"series": [p]},
        lambda p: {"well": {"images": [{"path": p}]}},
        lambda p: {"plate": {"rows": [], "columns": [], "wells": [{"path": p}]}},
    ],
)
def test_paths_stay_in_the_store(document, path):
    with pytest.raises(DamagedFileError, match="leads"):
        read(document(path))


def test_harmless_paths():
    assert read({"series": ["./0/", "a/./b", "..a"]}).series == ("0", "a/b", "..a")


def test_plates_of_older_versions():
    plate = {
        "rows": [{"name": "A"}, {"name": 2}],
        "columns": [{"name": "01"}],
        "wells": [{"path": "A/01"}, {"path": "2/01"}, {"path": "A/01"}, {"path": "C/7"}],
        "acquisitions": [{"id": 3, "name": "x"}, {"name": "none"}, {"id": 1.0}],
        "version": "0.1",
    }
    group = read({"plate": plate})
    assert group.version == "0.1"
    assert group.plate == Plate(
        "",
        ("A", "2", "C"),
        ("01", "7"),
        (Well("A", "01"), Well("2", "01"), Well("C", "7")),
        (Acquisition(3, "x"), Acquisition(1)),
    )
    assert len(group.notes) == 5
    plate["wells"] = [{"rowIndex": 1, "columnIndex": 0}, {"row_index": 0, "column_index": 0}]
    assert [w.path for w in read({"plate": plate}).plate.wells] == ["2/01", "A/01"]
    plate["wells"] = [{"path": "A/01", "rowIndex": 1, "columnIndex": 0}]
    found = read({"plate": plate})
    assert [w.path for w in found.plate.wells] == ["A/01"]
    assert "do not agree" in " ".join(found.notes)


FULL = {
    **image(coordinateTransformations=[scale(1, 1, 1, 1, 1)]),
    "omero": {"channels": [{"color": "FF0000", "window": {"start": 0}}], "rdefs": {}},
    "plate": {"rows": [], "columns": [], "wells": [{"path": "A/1"}], "acquisitions": [{"id": 0}]},
    "well": {"images": [{"path": "0", "acquisition": 0}]},
    "labels": ["a"],
    "series": ["0"],
    "bioformats2raw.layout": 3,
    "image-label": {},
}


@given(st.sampled_from(list(places(FULL))), JUNK, st.booleans())
@settings(max_examples=300)
def test_whatever_stands_there_is_read_or_refused(place, junk, new):
    document = spoiled(FULL, place, junk)
    with contextlib.suppress(BioIOError):
        group = ngff.read_group({"ome": document} if new else document, "here")
        assert all(isinstance(note, str) for note in group.notes)


@given(JUNK)
def test_junk_is_read_or_refused(junk):
    with contextlib.suppress(BioIOError):
        ngff.read_group(junk if isinstance(junk, dict) else {"ome": junk}, "here")


# -- axes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("yx", (0, 1, None, None, None)),
        ("xyzct", (1, 0, 2, 3, 4)),
        ("TCZYX", (3, 4, 2, 1, 0)),
        ("cxzyt", (3, 1, 2, 0, 4)),
        (["time", "channel", "y", "x"], (2, 3, None, 1, 0)),
        (["depth", "height", "width"], (1, 2, 0, None, None)),
        ([("i", "space"), ("j", "space"), ("k", "space")], (1, 2, 0, None, None)),
        ([("i", "space"), ("y", "space"), ("k", "space")], (1, 2, 0, None, None)),
        (
            [("when", "time"), ("dye", "channel"), ("y", "space"), ("x", "space")],
            (2, 3, None, 1, 0),
        ),
        # a name that is one letter of ours beats a word for the same
        ([("channel", "channel"), ("t", "time"), ("y", None), ("x", None)], (2, 3, None, 0, 1)),
        ([("z", "space"), ("y", "space")], (1, None, 0, None, None)),
    ],
)
def test_axes_by_name_and_type(axes, expected):
    axes = [Axis(*axis) if isinstance(axis, tuple) else Axis(axis) for axis in axes]
    assert ngff.yxzct(axes, len(axes)) == expected


def test_the_word_of_the_user_counts_most():
    axes = [Axis("c"), Axis("y"), Axis("x")]
    assert ngff.yxzct(axes, 3, dims="zyx") == (1, 2, 0, None, None)
    for dims, text in (("TZYX", "4 axes"), ("QYX", "letters"), ("YYX", "once"), ("TZC", "an X")):
        with pytest.raises(SpecError, match=text):
            ngff.yxzct(axes, 3, dims=dims)


def test_names_of_the_array_come_after_those_of_ngff():
    axes = [Axis("t"), Axis("y"), Axis("x")]
    notes = []
    for told in (axes, None):
        names = ["z" if told else "t", "y", "x"]
        order = ngff.yxzct(told, 3, dimension_names=names, notes=notes)
        assert (order, notes) == ((1, 2, None, None, 0), [])
    order = ngff.yxzct(None, 3, dimension_names=["dim_0", "dim_1", None], notes=notes)
    assert order == (1, 2, 0, None, None)
    assert "ZYX" in notes[0]


@pytest.mark.parametrize("kind", ["angle", "other", None])
def test_an_axis_of_its_own_kind_stands_for_channels(kind):
    """NGFF: of 2 to 5 axes, one may be "channel" or, in its place, a custom or null type."""
    axes = [Axis("t", "time"), Axis("phase", kind), Axis("y"), Axis("x")]
    for shape in ((3, 2, 8, 9), None):
        notes = []
        assert ngff.yxzct(axes, 4, shape=shape, notes=notes) == (2, 3, None, 1, 0)
        assert notes == [f"axis 'phase' (type {kind}) is taken as C"]
    notes = []
    assert ngff.yxzct(axes, 4, shape=(3, 1, 8, 9), notes=notes) == (2, 3, None, None, 0)
    assert notes == ["axis 'phase' of length 1 is left out"]
    both = [*axes[:2], Axis("cam", "other"), *axes[2:]]
    notes = []
    assert ngff.yxzct(both, 5, shape=(3, 1, 2, 8, 9), notes=notes) == (3, 4, None, 2, 0)
    assert notes == [
        "axis 'phase' of length 1 is left out",
        "axis 'cam' (type other) is taken as C",
    ]


@pytest.mark.parametrize(
    ("axes", "unknown"),
    [
        ([("phase", "angle"), ("cam", "other"), ("y", None), ("x", None)], "phase"),
        ([("c", "channel"), ("phase", "angle"), ("y", None), ("x", None)], "phase"),
        ([("t", "time"), ("lag", "time"), ("y", None), ("x", None)], "lag"),
        ([("c", "channel"), ("dye", "channel"), ("y", None), ("x", None)], "dye"),
        ([(k, "space") for k in "wzyx"], "w"),
        ([("phase", "angle"), ("up", None), ("x", "space")], "phase"),
        ([("up", None), ("x", "space")], "up"),  # of an image without a Y it may as well be that
        ([("t", "time"), ("z", None), ("phase", "angle"), ("y", None)], "phase"),
    ],
)
def test_an_unknown_axis(axes, unknown):
    axes = [Axis(*axis) for axis in axes]
    for shape in ((2, 3, 8, 9)[-len(axes) :], None):
        with pytest.raises(UnsupportedError, match=rf"'{unknown}'.*dims="):
            ngff.yxzct(axes, len(axes), shape=shape)


def test_a_name_of_the_array_alone_stands_for_no_channels():
    with pytest.raises(UnsupportedError, match=r"'phase'.*dims="):
        ngff.yxzct(None, 3, dimension_names=["phase", "y", "x"])


def test_axes_that_do_not_fit():
    with pytest.raises(FormatError, match="3 axes"):
        ngff.yxzct([Axis("phase", "angle"), Axis("y"), Axis("x")], 4)


def test_so_many_axes_have_no_usual_order():
    for ndim in (0, 1, 6):
        with pytest.raises(UnsupportedError, match="2 to 5"):
            ngff.yxzct(None, ndim)


@given(st.permutations("tczyx"), st.integers(2, 5))
def test_any_order_of_axes(letters, count):
    letters = letters[:count]
    order = ngff.yxzct([Axis(k) for k in letters], count)
    for letter, axis in zip("yxzct", order, strict=True):
        assert axis == (letters.index(letter) if letter in letters else None)


def test_sizes_and_positions():
    axes = (
        Axis("t", "time", "s"),
        Axis("z", "space"),
        Axis("y", None, "nm"),
        Axis("x", "space", "q"),
    )
    notes = []
    order = ngff.yxzct(axes, 4)
    size, step, position = ngff.pixel_sizes(axes, order, (2, 1, 3, 4), (0, 5, 0, 0), notes)
    assert size == PhysicalSize((4, "reference frame"), (3, "nm"), None)
    assert step == (2, "s")
    assert position == PhysicalSize(None, (0, "nm"), (5, "reference frame"))
    assert "unit of length" in notes[0]
    nothing = ngff.pixel_sizes(axes, order, None, (0, 0, 0, 0))
    assert nothing == (PhysicalSize(), None, PhysicalSize())
    notes = []
    axes = (Axis("t"), Axis("y"), Axis("x"))
    order = ngff.yxzct(axes, 3)
    assert ngff.pixel_sizes(axes, order, (1, 1, 1), None, notes)[1] is None
    assert notes == []
    assert ngff.pixel_sizes(axes, order, (2, 1, 1), None, notes)[1] is None
    assert "unit of time" in notes[0]


def test_as_many_channels_as_the_image_has():
    a, b = Channel("a"), Channel("b")
    assert ngff.fit_channels((a, b), 1) == (a,)
    assert ngff.fit_channels((a, b), 3) == (a, b, Channel())
    assert ngff.fit_channels((), 3) == ()


# -- real files -----------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collection of real files is not here")
@pytest.mark.parametrize(
    ("name", "version", "axes", "scales"),
    [
        ("ome-zarr/5d_dataset_v4.ome.zarr/.zattrs", "0.4", "tczyx", [(1,) * 5, (1, 1, 2, 2, 2)]),
        ("ome-zarr/mobie_blobs.ome.zarr/.zattrs", "0.4", "yx", [(1, 1)]),
        ("ome-zarr/omezarrpy_v2.zarr/.zattrs", "0.2", None, [None]),
        ("ome-zarr/bioformats-zarr/data.zarr/0/.zattrs", "0.1", None, [None, None]),
        ("ome-zarr/blobs_image_v05.ome.zarr/zarr.json", "0.5", "cyx", [(1, 1, 1)]),
        ("ome-zarr/pyramid_v4.zarr/.zattrs", "0.4", "zyx", [(1, 1, 1), (2, 2, 2), (2, 4, 4)]),
        ("gen/bfio/bfio_zarr.ome.zarr/zarr.json", "0.5", "tczyx", [None]),
        ("gen/zarr/acquire_v05.zarr/zarr.json", "0.5", "tczyx",
         [(1,) * 5, (1, 1, 2, 2, 2), (1, 1, 4, 2, 2)]),
    ],
)  # fmt: skip
def test_real_files(name, version, axes, scales):
    document = json.loads((SHARED / name).read_text())
    group = ngff.read_group(document.get("attributes", document), name)
    found = group.multiscales[0]
    assert group.version == version
    assert (None if found.axes is None else "".join(a.name for a in found.axes)) == axes
    assert [d.scale for d in found.datasets] == scales
