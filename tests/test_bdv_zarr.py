"""The XML over OME-Zarr: that BigStitcher's loader would open it, and finds the right pixels."""

import json
import re
import shutil
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from bdv_java import Spim, read_registrations, read_setups, time_points

import bioio_tk
from bioio_tk import BioReader, BioWriter
from bioio_tk.api import convert_series
from bioio_tk.bdv.zarr import write_zarr_xml
from bioio_tk.errors import BioIOWarning, SpecError, TargetExistsError, UnsupportedError

zarr = pytest.importorskip("zarr")

URI = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=@/%]+")  # a relative one that java.net.URI takes
MUM = "µm"


class Loader:
    """What BigStitcher's loader does with an XML, with zarr-python in place of N5.

    Facts from XmlIoAllenOMEZarrLoader, AllenOMEZarrLoader, AllenOMEZarrProperties (2025 and 2026),
    from N5ZarrReader, which opens no folder that is no Zarr group, and from spimdata.
    """

    def __init__(self, xml):
        text = Path(xml).read_bytes()
        root = ET.fromstring(text)
        assert root.tag == "SpimData"
        base = Path(xml).resolve().parent / root.findtext("BasePath")
        sequence = root.find("SequenceDescription")
        loader = sequence.find("ImageLoader")
        assert loader.attrib == {"format": "bdv.multimg.zarr", "version": "3.0"}
        place = loader.find("zarr")
        assert place.get("type") == "relative"
        assert URI.fullmatch(place.text), place.text
        assert not urlsplit(place.text).scheme
        self.folder = base / unquote(place.text)
        assert (self.folder / ".zgroup").is_file()
        self.entries = {}
        for group in loader.find("zgroups"):
            assert set(group.attrib) == {"setup", "tp", "path", "indicies"}
            words = group.get("indicies")
            indices = [] if words == "[]" else [int(word) for word in words.split(" ")]
            view = (int(group.get("tp")), int(group.get("setup")))
            assert view not in self.entries
            self.entries[view] = (group.get("path"), indices)
        self.setups = {
            int(s.findtext("id")): s for s in sequence.find("ViewSetups") if s.tag == "ViewSetup"
        }
        self.names = {
            group.get("name"): {int(e.findtext("id")): e.findtext("name") for e in group}
            for group in sequence.iterfind("ViewSetups/Attributes")
        }
        points = sequence.find("Timepoints")
        assert points.get("type") == "range"
        first, last = int(points.findtext("first")), int(points.findtext("last"))
        self.missing = {
            (int(m.get("timepoint")), int(m.get("setup")))
            for m in sequence.iterfind("MissingViews/MissingView")
        }
        self.views = [
            (t, s)
            for t in range(first, last + 1)
            for s in self.setups
            if (t, s) not in self.missing
        ]
        self.transforms = {}
        for one in root.iterfind("ViewRegistrations/ViewRegistration"):
            view = (int(one.get("timepoint")), int(one.get("setup")))
            self.transforms[view] = [
                (t.findtext("Name"), np.array(t.findtext("affine").split(" "), float).reshape(3, 4))
                for t in one.iterfind("ViewTransform[@type='affine']")
            ]
        found = Spim(self.folder)  # what the parser of BigDataViewer asks of any such XML
        read_setups(sequence.find("ViewSetups"), found)
        found.times = time_points(points)
        read_registrations(root.find("ViewRegistrations"), found)
        assert set(found.models) == set(self.views)
        self.check()

    def check(self):
        """What makes the loader, or BigDataViewer, throw."""
        for setup in self.setups.values():
            for attribute in setup.find("attributes"):
                assert int(attribute.text) in self.names[attribute.tag]
            assert {a.tag for a in setup.find("attributes")} == {
                "illumination",
                "channel",
                "tile",
                "angle",
            }
        assert set(self.views) == set(self.entries)
        for time, setup in self.views:
            assert self.transforms[time, setup]
            x, y, z = map(int, self.setups[setup].findtext("size").split(" "))
            assert self.volume(time, setup, 0).shape == (z, y, x)
            self.factors(time, setup)

    def multiscale(self, time, setup):
        path, _ = self.entries[time, setup]
        group = self.folder / path if path else self.folder
        assert (group / ".zgroup").is_file()
        return json.loads((group / ".zattrs").read_text())["multiscales"][0], group

    def volume(self, time, setup, level):
        """What is seen of a view: the axes come fastest first, and above 3 one position counts."""
        _, group = self.multiscale(time, setup)
        array = zarr.open_array(group / str(level), mode="r", zarr_format=2)
        indices = self.entries[time, setup][1]
        if not indices:
            assert all(n == 1 for n in array.shape[:-3])
        else:
            assert len(indices) == array.ndim - 3
        return array[tuple(reversed(indices))] if indices else array[(0,) * (array.ndim - 3)]

    def factors(self, time, setup):
        """Factors along X, Y, Z of each level; the strictest loader of 2026."""
        multiscale, _ = self.multiscale(time, setup)
        steps = [
            {s["type"]: s[s["type"]] for s in d["coordinateTransformations"]}
            for d in multiscale["datasets"]
        ]
        assert [d["path"] for d in multiscale["datasets"]] == [str(n) for n in range(len(steps))]
        scales = [np.array(s["scale"])[::-1][:3] for s in steps]
        factors = [np.round(scale / scales[0], 4) for scale in scales]
        origin = None  # the first translation that is met
        for scale, factor, step in zip(scales, factors, steps, strict=True):
            if "translation" not in step:
                continue
            shift = np.array(step["translation"])[::-1][:3]
            if origin is None:
                origin = shift
                continue
            for d in range(3):
                if abs(factor[d] - 1) >= 0.01:
                    moved = (shift[d] - origin[d]) / scales[0][d]
                    assert abs(moved - (factor[d] - 1) / 2) < 0.01, (scale, shift)
        return [tuple(map(float, f)) for f in factors]


def pixels(shape, dtype="uint16", seed=1):
    top = 200 if np.dtype(dtype).kind != "f" else 1
    return (np.random.default_rng(seed).random(shape) * top).astype(dtype)


def store(path, shape=(13, 17, 6, 2, 3), dtype="uint16", seed=1, **more):
    """Write an image (Y, X, Z, C, T); return its pixels."""
    image = pixels(shape, dtype, seed)
    more = {"ngff_version": "0.4", "pyramid": 3, "pyramid_z": True, **more}
    with BioWriter(path, image=image, **more):
        pass
    return image


SIZES = {
    "physical_size_x": (0.5, MUM),
    "physical_size_y": (0.5, MUM),
    "physical_size_z": (1.25, MUM),
}


def test_one_image_with_channels_and_times(tmp_path):
    image = store(tmp_path / "cells.ome.zarr", channel_names=["DAPI", "GFP"], name="cells", **SIZES)
    xml = write_zarr_xml(tmp_path / "cells.ome.zarr")
    assert xml == tmp_path / "cells.xml"
    loader = Loader(xml)
    assert loader.views == [(t, s) for t in range(3) for s in range(2)]
    for t, s in loader.views:
        np.testing.assert_array_equal(loader.volume(t, s, 0), image[..., s, t].transpose(2, 0, 1))
    assert loader.factors(0, 0) == [(1, 1, 1), (2, 2, 1), (4, 4, 2)]
    assert loader.names == {
        "illumination": {0: "0"},
        "channel": {0: "DAPI", 1: "GFP"},
        "tile": {0: "cells"},
        "angle": {0: "0"},
    }
    setup = loader.setups[1]
    assert setup.findtext("name") == "cells GFP"
    assert setup.findtext("voxelSize/unit") == MUM
    assert setup.findtext("voxelSize/size") == "0.5 0.5 1.25"
    ((name, matrix),) = loader.transforms[2, 1]
    assert name == "calibration"
    np.testing.assert_array_equal(matrix, np.hstack([np.diag([1, 1, 2.5]), np.zeros((3, 1))]))


def test_tiles_lie_where_they_were_taken(tmp_path):
    for n, (x, unit) in enumerate([(100.0, MUM), (0.1055, "mm"), (111.0, MUM)]):
        store(
            tmp_path / f"tile {n}.zarr",
            shape=(13, 17, 6, 1, 1),
            seed=n,
            name=f"position {n}",
            **SIZES,
        )
        document = tmp_path / f"tile {n}.zarr" / ".zattrs"
        attributes = json.loads(document.read_text())
        for axis in attributes["multiscales"][0]["axes"][2:]:
            axis["unit"] = {"mm": "millimeter", MUM: "micrometer"}[unit]
        micrometers = {"mm": 1e-3, MUM: 1}[unit]
        for dataset in attributes["multiscales"][0]["datasets"]:
            steps = dataset["coordinateTransformations"]
            scale = steps[0]["scale"]
            scale[2:] = [s * micrometers for s in scale[2:]]
            shift = [v * micrometers for v in steps[1]["translation"]]
            shift[4] += x
            shift[2] += 5 * micrometers
            steps[1]["translation"] = shift
        document.write_text(json.dumps(attributes))
    folders = [tmp_path / f"tile {n}.zarr" for n in range(3)]
    xml = write_zarr_xml(folders)
    assert xml == tmp_path / "dataset.xml"
    assert json.loads((tmp_path / ".zgroup").read_text()) == {"zarr_format": 2}
    loader = Loader(xml)
    assert loader.names["tile"] == {n: f"position {n}" for n in range(3)}
    for n, x in enumerate([100.0, 105.5, 111.0]):
        np.testing.assert_array_equal(
            loader.volume(0, n, 0),
            pixels((13, 17, 6, 1, 1), seed=n)[..., 0, 0].transpose(2, 0, 1),
        )
        (moved, translation), (scaled, calibration) = loader.transforms[0, n]
        assert (moved, scaled) == ("translation", "calibration")
        np.testing.assert_allclose(np.diag(calibration), [1, 1, 2.5])
        np.testing.assert_array_equal(translation[:, :3], np.eye(3))
        np.testing.assert_allclose(translation[:, 3], [2 * x, 0, 10])


def test_several_images_in_a_store(tmp_path):
    path = tmp_path / "fields.ome.zarr"
    images = [store(path, shape=(9, 11, 4, n + 1, 2 - n), seed=n, group=f"{n}") for n in range(2)]
    loader = Loader(write_zarr_xml(path))
    # channel 0 of both, then channel 1 of the second; the second has one time point alone
    assert sorted(loader.setups) == [0, 1, 3]
    assert loader.missing == {(1, 1), (1, 3)}
    assert [e.findtext("attributes/tile") for e in loader.setups.values()] == ["0", "1", "1"]
    assert [e.findtext("attributes/channel") for e in loader.setups.values()] == ["0", "0", "1"]
    for (t, s), (tile, c) in {(0, 0): (0, 0), (1, 0): (0, 0), (0, 3): (1, 1)}.items():
        np.testing.assert_array_equal(
            loader.volume(t, s, 0), images[tile][..., c, t].transpose(2, 0, 1)
        )


def test_fields_of_a_plate_and_single_images_of_a_store(tmp_path):
    path = tmp_path / "plate.ome.zarr"
    images = [store(path, shape=(9, 11, 1, 1, 1), seed=n, group=f"A/{n + 1}/0") for n in range(2)]
    loader = Loader(write_zarr_xml(path))
    assert {entry[0] for entry in loader.entries.values()} == {"A/1/0", "A/2/0"}
    np.testing.assert_array_equal(loader.volume(0, 1, 0)[0], images[1][..., 0, 0, 0])
    xml = write_zarr_xml(path / "A" / "2" / "0", overwrite=True)
    assert xml == tmp_path / "plate.xml"  # nothing foreign in the store
    np.testing.assert_array_equal(Loader(xml).volume(0, 0, 0)[0], images[1][..., 0, 0, 0])
    both = write_zarr_xml([path / "A" / "1" / "0", path / "A" / "2" / "0"], tmp_path / "b.xml")
    np.testing.assert_array_equal(Loader(both).volume(0, 1, 0)[0], images[1][..., 0, 0, 0])


@pytest.mark.parametrize("axes", ["zyx", "czyx", "tzyx", "tczyx", "ctzyx"])
def test_axes_of_other_writers(tmp_path, axes):
    sizes = {"t": 3, "c": 2, "z": 4, "y": 5, "x": 6}
    image = pixels([sizes[a] for a in axes])
    foreign(tmp_path / "a.zarr", image, axes)
    loader = Loader(write_zarr_xml(tmp_path / "a.zarr"))
    for t in range(3 if "t" in axes else 1):
        for c in range(2 if "c" in axes else 1):
            at = tuple({"t": t, "c": c}[a] for a in axes[:-3])
            np.testing.assert_array_equal(loader.volume(t, c, 0), image[at])
    assert len(loader.views) == (3 if "t" in axes else 1) * (2 if "c" in axes else 1)


def foreign(path, image, axes, dataset="0", version="0.4", **more):
    """Write an image as other programs do."""
    zarr_format = 2 if version < "0.5" else 3
    group = zarr.create_group(path, zarr_format=zarr_format)
    array = group.create_array(dataset, shape=image.shape, dtype=image.dtype)
    array[...] = image
    kinds = {"t": "time", "c": "channel"}
    multiscale = {
        "version": version,
        "axes": [{"name": a, "type": kinds.get(a, "space")} for a in axes],
        "datasets": [
            {
                "path": dataset,
                "coordinateTransformations": [{"type": "scale", "scale": [1.0] * len(axes)}],
            }
        ],
        **more,
    }
    group.attrs.update(
        {"multiscales": [multiscale]}
        if zarr_format == 2
        else {"ome": {"version": version, "multiscales": [multiscale]}}
    )


@pytest.mark.parametrize(
    ("dtype", "axes", "more", "text"),
    [
        ("u2", "zyx", {"version": "0.5"}, "is OME-Zarr 0.5, and BigStitcher opens OME-Zarr 0.4"),
        ("u2", "cyx", {}, "has the axes c y x, and BigStitcher needs Z, Y, X"),
        ("u2", "zcyx", {}, "has the axes z c y x, and BigStitcher needs Z, Y, X"),
        ("?", "zyx", {}, "has bool pixels"),
        ("f2", "zyx", {}, "has float16 pixels"),
        ("u2", "zyx", {"dataset": "s0"}, "has its resolutions in 's0' …"),
    ],
)
def test_what_bigstitcher_cannot_open(tmp_path, dtype, axes, more, text):
    image = pixels((3, 4, 5, 6)[: len(axes)], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr-python
        foreign(tmp_path / "a.zarr", image, axes, **more)
    with pytest.raises(UnsupportedError) as error:
        write_zarr_xml(tmp_path / "a.zarr")
    assert text in str(error.value)
    assert "bioio-tk convert a.zarr NEW.ome.zarr --series all --ngff-version 0.4" in str(
        error.value
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_the_copy_that_is_advised_can_be_opened(tmp_path):
    image = pixels((3, 5, 6), "uint16")
    foreign(tmp_path / "a.zarr", image, "cyx", version="0.5")
    bioio_tk.convert(tmp_path / "a.zarr", tmp_path / "b.ome.zarr", ngff_version="0.4")
    loader = Loader(write_zarr_xml(tmp_path / "b.ome.zarr"))
    np.testing.assert_array_equal(loader.volume(0, 2, 0), image[2:])


def test_a_bare_array_and_other_things(tmp_path):
    zarr.create_array(tmp_path / "bare.zarr", shape=(3, 4, 5), dtype="u1", zarr_format=2)
    with pytest.raises(UnsupportedError, match="a Zarr array without OME metadata"):
        write_zarr_xml(tmp_path / "bare.zarr")
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    with pytest.raises(UnsupportedError, match="is no folder"):
        write_zarr_xml(tmp_path / "a.tif")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_zarr_xml(tmp_path / "not there.zarr")
    with pytest.raises(UnsupportedError, match="is a URL"):
        write_zarr_xml("s3://bucket/a.ome.zarr")
    with pytest.raises(SpecError, match="at least one"):
        write_zarr_xml([])
    assert not list(tmp_path.glob("*.xml"))


def test_levels_that_are_no_means(tmp_path):
    store(tmp_path / "nearest.zarr", downsample="nearest", **SIZES)
    Loader(write_zarr_xml(tmp_path / "nearest.zarr"))  # no translation at all: taken for means
    document = tmp_path / "nearest.zarr" / ".zattrs"
    attributes = json.loads(document.read_text())
    for dataset in attributes["multiscales"][0]["datasets"]:
        dataset["coordinateTransformations"].append({"type": "translation", "translation": [7] * 5})
    document.write_text(json.dumps(attributes))
    with pytest.warns(BioIOWarning, match="no means of the full one"):
        write_zarr_xml(tmp_path / "nearest.zarr", overwrite=True)


@pytest.mark.parametrize(
    ("axis", "by", "warns"), [(2, 0.2, True), (4, -0.2, True), (3, 0.01, False)]
)
def test_levels_that_are_shifted_along_one_axis(tmp_path, axis, by, warns):
    store(tmp_path / "a.zarr")
    document = tmp_path / "a.zarr" / ".zattrs"
    attributes = json.loads(document.read_text())
    steps = attributes["multiscales"][0]["datasets"][2]["coordinateTransformations"]
    steps[1]["translation"][axis] += by
    document.write_text(json.dumps(attributes))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        write_zarr_xml(tmp_path / "a.zarr")
    assert [w.category for w in seen] == [BioIOWarning] * warns


def test_images_that_lie_here_and_there(tmp_path):
    folders = [tmp_path / "one" / "a.zarr", tmp_path / "two" / "b.zarr"]
    for folder in folders:
        folder.parent.mkdir()
        store(folder, shape=(5, 6, 2, 1, 1))
    with pytest.raises(SpecError, match="put them side by side"):
        write_zarr_xml(folders)
    with pytest.raises(SpecError, match="given twice"):
        write_zarr_xml([folders[0], folders[0]])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    assert [p.name for p in folders[0].parent.iterdir()] == ["a.zarr"]


def test_names_with_blanks_and_other_letters(tmp_path):
    folder = tmp_path / "zweite Färbung #2 100%"
    folder.mkdir()
    image = store(folder / "Zellen & mehr.ome.zarr", shape=(5, 6, 2, 1, 1), name="<a> & b")
    loader = Loader(write_zarr_xml(folder / "Zellen & mehr.ome.zarr"))
    np.testing.assert_array_equal(loader.volume(0, 0, 0), image[..., 0, 0].transpose(2, 0, 1))
    assert loader.names["tile"] == {0: "<a> & b"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    xml = write_zarr_xml(folder / "Zellen & mehr.ome.zarr", elsewhere / "a.xml")
    np.testing.assert_array_equal(Loader(xml).volume(0, 0, 0), image[..., 0, 0].transpose(2, 0, 1))


def test_the_dataset_can_be_moved(tmp_path):
    (tmp_path / "a").mkdir()
    image = store(tmp_path / "a" / "x.zarr", shape=(5, 6, 2, 1, 1))
    write_zarr_xml(tmp_path / "a" / "x.zarr")
    shutil.move(tmp_path / "a", tmp_path / "b")
    loader = Loader(tmp_path / "b" / "x.xml")
    np.testing.assert_array_equal(loader.volume(0, 0, 0), image[..., 0, 0].transpose(2, 0, 1))


def test_an_xml_that_is_there_stays(tmp_path):
    store(tmp_path / "x.zarr", shape=(5, 6, 2, 1, 1))
    (tmp_path / "x.xml").write_text("days of stitching")
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        write_zarr_xml(tmp_path / "x.zarr")
    assert (tmp_path / "x.xml").read_text() == "days of stitching"
    Loader(write_zarr_xml(tmp_path / "x.zarr", overwrite=True))
    assert (tmp_path / "x.xml~1").read_text() == "days of stitching"
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_zarr_xml(tmp_path / "x.zarr", tmp_path / "nowhere" / "x.xml")
    with pytest.raises(IsADirectoryError):
        write_zarr_xml(tmp_path / "x.zarr", tmp_path)


def test_sizes_that_are_not_known(tmp_path):
    store(tmp_path / "a.zarr", shape=(5, 6, 2, 1, 1))
    store(
        tmp_path / "b.zarr",
        shape=(5, 6, 1, 1, 1),
        physical_size_x=(250, "nm"),
        physical_size_y=(500, "nm"),
    )
    loader = Loader(write_zarr_xml([tmp_path / "a.zarr", tmp_path / "b.zarr"]))
    assert loader.setups[0].findtext("voxelSize/unit") == "pixel"
    np.testing.assert_array_equal(loader.transforms[0, 0][0][1], np.eye(3, 4))
    # a single plane is as thick as its pixels are wide
    assert loader.setups[1].findtext("voxelSize/size") == "0.25 0.5 0.25"
    np.testing.assert_array_equal(np.diag(loader.transforms[0, 1][0][1]), [1, 2, 1])


def test_our_reader_sees_the_same_views(tmp_path):
    image = store(tmp_path / "cells.ome.zarr", channel_names=["DAPI", "GFP"], **SIZES)
    xml = write_zarr_xml(tmp_path / "cells.ome.zarr")
    with BioReader(xml) as br:
        np.testing.assert_array_equal(br[:], image)
        assert br.channel_names == ["DAPI", "GFP"]
        assert {(v.time, v.setup) for v in br.views} == set(Loader(xml).views)
        assert {tuple(view) for view in br.affines} == set(Loader(xml).views)
        for view, affine in br.affines.items():
            np.testing.assert_array_equal(affine, Loader(xml).transforms[tuple(view)][0][1])


def test_our_reader_sees_tiles_as_series(tmp_path):
    images = [
        store(tmp_path / f"{n}.zarr", shape=(9, 11, 4, n + 1, 3 - n), seed=n) for n in range(3)
    ]
    xml = write_zarr_xml([tmp_path / f"{n}.zarr" for n in range(3)])
    with BioReader(xml) as br:
        assert br.n_series == 3
        views = {(v.time, v.setup): v for v in br.views if not v.missing}
    assert set(views) == set(Loader(xml).views)
    for view in views.values():
        with BioReader(xml, series=view.series) as br:
            tile, c = view.attributes["tile"], view.attributes["channel"]
            np.testing.assert_array_equal(
                br.read(C=[view.c], T=[view.t]).squeeze(), images[tile][..., c, view.time]
            )


@pytest.mark.parametrize("axes", ["zyx", "tzyx", "czyx", "ctzyx"])
def test_our_reader_knows_the_axes_of_other_writers(tmp_path, axes):
    sizes = {"t": 3, "c": 2, "z": 4, "y": 5, "x": 6}
    image = pixels([sizes[a] for a in axes])
    foreign(tmp_path / "a.zarr", image, axes)
    with BioReader(write_zarr_xml(tmp_path / "a.zarr")) as br:
        for t in range(br.shape[4]):
            for c in range(br.shape[3]):
                at = tuple({"t": t, "c": c}[a] for a in axes[:-3])
                np.testing.assert_array_equal(
                    br.read(C=[c], T=[t]).reshape(5, 6, 4), image[at].transpose(1, 2, 0)
                )


# ------------------------------------------------------------------ convert


def test_convert_writes_the_xml(tmp_path):
    image = store(tmp_path / "a.ome.zarr", ngff_version="0.5", **SIZES)
    report = bioio_tk.convert(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", bdv_xml=True)
    assert report.notes == ("BigDataViewer and BigStitcher open it with 'b.xml'",)
    loader = Loader(tmp_path / "b.xml")
    for t, s in loader.views:
        np.testing.assert_array_equal(loader.volume(t, s, 0), image[..., s, t].transpose(2, 0, 1))


def test_convert_of_all_images_writes_one_xml(tmp_path):
    images = [
        store(tmp_path / "a.ome.zarr", shape=(9, 11, 4, 1, 1), seed=n, group=f"{n}")
        for n in range(3)
    ]
    convert_series(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", bdv_xml=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.zarr", "b.ome.zarr", "b.xml"]
    loader = Loader(tmp_path / "b.xml")
    for n in range(3):
        np.testing.assert_array_equal(
            loader.volume(0, n, 0), images[n][..., 0, 0].transpose(2, 0, 1)
        )


def test_convert_leaves_an_xml_that_is_there(tmp_path):
    store(tmp_path / "a.ome.zarr", shape=(5, 6, 2, 1, 1))
    (tmp_path / "b.xml").write_text("days of stitching")
    with pytest.raises(TargetExistsError, match=r"b\.xml"):
        bioio_tk.convert(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", bdv_xml=True)
    with pytest.raises(TargetExistsError, match=r"b\.xml"):
        bioio_tk.convert(
            tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", bdv_xml=True, exists="skip"
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.zarr", "b.xml"]
    bioio_tk.convert(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", bdv_xml=True, overwrite=True)
    Loader(tmp_path / "b.xml")
    assert (tmp_path / "b.xml~1").read_text() == "days of stitching"


def test_convert_skips_and_completes(tmp_path):
    store(tmp_path / "a.ome.zarr", shape=(5, 6, 2, 1, 1))
    what = {"bdv_xml": True, "exists": "skip"}
    bioio_tk.convert(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", **what)
    (tmp_path / "b.xml").write_text("stitched")
    report = bioio_tk.convert(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", **what)
    assert (report.status, (tmp_path / "b.xml").read_text()) == ("skipped", "stitched")
    (tmp_path / "b.xml").unlink()
    report = bioio_tk.convert(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", **what)
    assert report.status == "skipped"
    Loader(tmp_path / "b.xml")


@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("b.ome.tif", {}, "end its name with .ome.zarr"),
        ("b.ozx", {}, "end its name with .ome.zarr"),
        ("b.ome.zarr", {"ngff_version": "0.5"}, "BigStitcher opens OME-Zarr 0.4"),
        ("b.ome.zarr", {"ome": False}, "needs the OME metadata"),
        ("b.ome.zarr", {"group": "1"}, "bioio-tk bdv xml STORE"),
        ("b.ome.zarr", {"shard_job": "1/2"}, "bioio-tk bdv xml STORE"),
        ("b.ome.zarr", {"dtype": "bool", "cast": "clip"}, "has bool pixels"),
    ],
)
def test_convert_says_at_once_what_cannot_be(tmp_path, name, more, text):
    store(tmp_path / "a.ome.zarr", shape=(5, 6, 2, 1, 1))
    with pytest.raises((SpecError, UnsupportedError), match=text):
        bioio_tk.convert(tmp_path / "a.ome.zarr", tmp_path / name, bdv_xml=True, **more)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.zarr"]


def test_links_stay_links(tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    image = store(tmp_path / "far" / "away" / "x.zarr", shape=(5, 6, 2, 1, 1))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "x.zarr").symlink_to(tmp_path / "far" / "away" / "x.zarr")
    xml = write_zarr_xml(tmp_path / "here" / "x.zarr")
    assert xml == tmp_path / "here" / "x.xml"
    assert ET.parse(xml).findtext("SequenceDescription/ImageLoader/zarr") == "x.zarr"
    (tmp_path / "linked").symlink_to(tmp_path / "far")
    other = write_zarr_xml(tmp_path / "here" / "x.zarr", tmp_path / "linked" / "x.xml")
    for path in (xml, other):
        loader = Loader(path)
        np.testing.assert_array_equal(loader.volume(0, 0, 0), image[..., 0, 0].transpose(2, 0, 1))


def test_a_path_from_the_working_folder(tmp_path, monkeypatch):
    image = store(tmp_path / "x.zarr", shape=(5, 6, 2, 1, 1))
    monkeypatch.chdir(tmp_path)
    xml = write_zarr_xml("x.zarr", "y.xml")
    np.testing.assert_array_equal(Loader(xml).volume(0, 0, 0), image[..., 0, 0].transpose(2, 0, 1))
    assert ET.parse(xml).findtext("SequenceDescription/ImageLoader/zarr") == "x.zarr"


def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch):
    store(tmp_path / "x.zarr", shape=(5, 6, 2, 1, 1))

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("bioio_tk.bdv.zarr.write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        write_zarr_xml(tmp_path / "x.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]
