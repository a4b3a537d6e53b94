"""Validate: what is good has no problem, and each kind of damage has its own."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from ngff_peers import JUNK, places, spoiled

from bioio_tk.cli.validate import command
from bioio_tk.errors import BioIOError, SpecError, UnknownFormatError
from bioio_tk.jobs.upgrade import upgrade
from bioio_tk.jobs.validate import validate

zarr = pytest.importorskip("zarr")
tifffile = pytest.importorskip("tifffile")

SHARED = Path(__file__).parents[2] / "shared" / "data"
AXES = [
    {"name": "c", "type": "channel"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]
XML = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:{n}"><Pixels ID="Pixels:{n}" DimensionOrder="XYZCT" Type="uint16" '
    'SizeX="{x}" SizeY="40" SizeZ="1" SizeC="2" SizeT="1"><MetadataOnly/></Pixels></Image></OME>'
)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Not here: zarr-python closes what it reads in threads of its own."""


class Store:
    """A store made by zarr-python, whose documents can be spoiled."""

    def __init__(self, path, version):
        self.path, self.version = path, version
        self.three = version == "0.5"
        self.group = zarr.create_group(path, zarr_format=3 if self.three else 2)

    def attributes(self, group, **found):
        inner = {"ome": {"version": "0.5", **found}} if self.three else found
        group.attrs.update(inner)

    def stated(self, entry):
        return entry if self.three else {"version": self.version, **entry}

    def image(self, group, dtype="u2", shape=(2, 40, 50), **more):
        levels = (shape, (shape[0], 20, 25))
        names = {"dimension_names": ["c", "y", "x"]} if self.three else {}
        for name, size in zip("01", levels, strict=True):
            array = group.create_array(
                name, shape=size, chunks=(1, 16, 16), dtype=dtype, fill_value=0, **names
            )
            array[...] = np.arange(np.prod(size)).reshape(size).astype(dtype)
        datasets = [
            {"path": name, "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, f, f]},
                {"type": "translation", "translation": [0.0, f / 2, f / 2]}]}
            for name, f in (("0", 0.5), ("1", 1.0))
        ]  # fmt: skip
        entry = self.stated({"name": "im", "axes": AXES, "datasets": datasets})
        window = {"min": 0, "max": 255, "start": 0, "end": 99}
        channels = [{"label": k, "color": "00FF00", "window": window} for k in "ab"]
        self.attributes(group, multiscales=[entry], omero={"channels": channels}, **more)

    def labels(self, group, dtype="i4"):
        labels = group.create_group("labels")
        self.attributes(labels, labels=["cells"])
        self.image(labels.create_group("cells"), dtype, **{"image-label": self.stated({})})

    def change(self, path, change, name=None):
        """Rewrite a document: `change` gets it (and under v3 the attributes of a group)."""
        name = name or ("zarr.json" if self.three else ".zattrs")
        file = self.path / path / name
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    def ome(self, path, change):
        self.change(path, lambda d: change(d["attributes"]["ome"] if self.three else d))

    def array(self, path, change):
        self.change(path, change, None if self.three else ".zarray")

    def plate(self):
        self.attributes(self.group, plate={
            "version": self.version, "name": "P", "rows": [{"name": "A"}, {"name": "B"}],
            "columns": [{"name": "1"}], "acquisitions": [{"id": 0}],
            "wells": [{"path": f"{r}/1", "rowIndex": i, "columnIndex": 0}
                      for i, r in enumerate("AB")]})  # fmt: skip
        for row in "AB":
            well = self.group.create_group(f"{row}/1")
            images = [{"path": "0", "acquisition": 0}]
            self.attributes(well, well=self.stated({"images": images}))
            self.image(well.create_group("0"))

    def layout(self):
        self.attributes(self.group, **{"bioformats2raw.layout": 3})
        self.attributes(self.group.create_group("OME"), series=["0"])
        self.image(self.group.create_group("0"))
        (self.path / "OME" / "METADATA.ome.xml").write_text(XML.format(n=0, x=50))


@pytest.fixture(params=["0.4", "0.5"])
def store(request, tmp_path):
    return Store(tmp_path / "x.ome.zarr", request.param)


def problems(path, severity=None, **options):
    found = validate(path, **options).problems
    return [p.message for p in found if severity in (None, p.severity)]


# -- what is good ---------------------------------------------------------------------------------


def test_a_good_image(store):
    store.image(store.group)
    store.labels(store.group)
    report = validate(store.path, pixels=True)
    assert report.problems == ()
    assert report.ok
    assert report.format == f"OME-Zarr {store.version}"
    # 2 channels x (3 x 4 + 2 x 2) chunks, twice
    assert report.pixels == 2 * 2 * (12 + 4)
    assert validate(store.path).pixels is None
    yaozarrs = pytest.importorskip("yaozarrs")
    yaozarrs.validate_ome_uri(str(store.path))


def test_a_good_plate_and_its_wells(store):
    store.plate()
    report = validate(store.path, pixels=True)
    assert report.problems == ()
    assert report.pixels == 2 * 2 * (12 + 4)
    assert validate(store.path / "A" / "1").problems == ()


def test_a_good_layout(store):
    store.layout()
    assert validate(store.path, pixels=True).problems == ()
    assert validate(store.path, pixels=True).pixels == 2 * (12 + 4)


def test_a_missing_chunk_is_no_problem(store):
    store.image(store.group)
    key = "0/c/0/0/0" if store.three else "0/0.0.0"
    (store.path / key).unlink()
    report = validate(store.path, pixels=True)
    assert (report.problems, report.pixels) == ((), 2 * 16 - 1)


def test_a_zip_is_looked_into(store, tmp_path):
    store.image(store.group)
    packed = shutil.make_archive(str(tmp_path / "y"), "zip", store.path)
    shutil.move(packed, tmp_path / "y.ozx")
    report = validate(tmp_path / "y.ozx", pixels=True)
    assert (report.problems, report.pixels) == ((), 32)


def test_a_remote_store(store):
    fsspec = pytest.importorskip("fsspec")
    store.image(store.group)
    memory = fsspec.filesystem("memory")
    memory.put(str(store.path), "/validate/x.ome.zarr", recursive=True)
    try:
        report = validate("memory://validate/x.ome.zarr", pixels=True)
        assert (report.problems, report.pixels) == ((), 32)
    finally:
        memory.rm("/validate", recursive=True)


def test_a_plain_array_is_only_warned_of(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(8, 8), dtype="u1")
    assert validate(tmp_path / "a.zarr").format == "Zarr"
    assert validate(tmp_path / "a.zarr").ok
    zarr.create_group(tmp_path / "g.zarr", zarr_format=2)
    report = validate(tmp_path / "g.zarr")
    assert report.ok
    assert [p.message for p in report.problems] == ["there are no OME metadata"]


# -- what is wrong with an image ------------------------------------------------------------------


def first(ome):
    return ome["multiscales"][0]


def steps(ome):
    return first(ome)["datasets"][0]["coordinateTransformations"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda o: first(o)["axes"].reverse(), "order has to be"),
        (lambda o: first(o)["axes"][1].update(type="time"), "1 axes of space"),
        (lambda o: first(o)["axes"][1].update(name="x"), "same name"),
        (lambda o: first(o).pop("datasets"), '"datasets"'),
        (lambda o: first(o)["datasets"][0].update(path="../0"), "leads out"),
        (lambda o: first(o)["datasets"][0].update(path="9"), "not there"),
        (lambda o: first(o)["datasets"][1].update(path="0"), "twice"),
        (lambda o: first(o)["datasets"][0].pop("coordinateTransformations"), "'0' has no coord"),
        (lambda o: steps(o).reverse(), "translation, scale"),
        (lambda o: steps(o).append(steps(o)[0]), "scale, translation, scale"),
        (lambda o: steps(o)[0].update(scale=[1.0, 1.0]), "list of 3"),
        (lambda o: steps(o)[0].update(scale=[1.0, 0.0, 1.0]), "above 0"),
        (lambda o: steps(o)[1].update(translation=[0, 0, "1"]), "of numbers"),
        (lambda o: first(o)["datasets"].reverse(), "is larger than"),
        (lambda o: o["omero"]["channels"][1].update(color="#00FF00"), "channel 1: the colour"),
        (lambda o: o["omero"]["channels"][1].pop("window"), "channel 1: the window"),
        (lambda o: o["omero"].update(channels={}), "list of channels"),
    ],
)
def test_metadata_against_the_specification(store, change, text):
    store.image(store.group)
    store.ome("", change)
    report = validate(store.path)
    assert not report.ok
    errors = problems(store.path, "error")
    assert any(text in message for message in errors), errors
    assert len(errors) <= 3  # the order of axes concerns both arrays, too


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda o: first(o)["axes"][1].pop("unit"), "no unit is given for the axis y"),
        (lambda o: o["omero"]["channels"].pop(), "omero describes 1 channels, the image has 2"),
        (lambda o: o["omero"]["channels"][0].update(label=3), "label"),
        (lambda o: first(o)["axes"][1].update(unit="furlong"), "furlong"),
    ],
)
def test_advice_is_a_warning(store, change, text):
    store.image(store.group)
    store.ome("", change)
    assert validate(store.path).ok
    (message,) = problems(store.path, "warning")
    assert text in message


def test_arrays_that_do_not_fit(store):
    store.image(store.group)
    kind = {"data_type": "float32"} if store.three else {"dtype": "<f4"}
    store.array("1", lambda d: d.update(kind))
    assert any("'1' has float32 pixels" in m for m in problems(store.path, "error"))


def test_an_array_of_other_rank(store):
    store.image(store.group)
    shutil.rmtree(store.path / "1")
    store.group.create_array("1", shape=(20, 25), dtype="u2", chunks=(8, 8))
    assert problems(store.path, "error") == ["the array has 2 axes, the image 3"]


def test_names_of_the_array(tmp_path):
    store = Store(tmp_path / "x.ome.zarr", "0.5")
    store.image(store.group)
    store.array("0", lambda d: d.update(dimension_names=["z", "y", "x"]))
    store.array("1", lambda d: d.pop("dimension_names"))
    assert "('z', 'y', 'x')" in problems(store.path, "error")[0]
    assert "no dimension_names" in problems(store.path, "warning")[0]


@pytest.mark.parametrize(
    ("version", "actual", "text"),
    [("0.4", "0.5", "asks for Zarr 3"), ("0.5", "0.4", 'under "ome"')],
)
def test_ngff_in_the_wrong_zarr(tmp_path, version, actual, text):
    store = Store(tmp_path / "x.ome.zarr", version)
    store.three, zarr_format = actual == "0.5", store.three
    store.version = actual
    names = {"dimension_names": list("cyx")} if zarr_format else {}
    for name in "01":
        store.group.create_array(name, shape=(2, 40, 50), dtype="u1", chunks=(1, 16, 16), **names)
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
    entry = store.stated({"name": "im", "axes": AXES, "datasets": datasets})
    store.attributes(store.group, multiscales=[entry])
    (message,) = problems(store.path, "error")
    assert text in message


@pytest.mark.parametrize("text", ["{", "[]", "", "null"])
def test_documents_that_are_no_json(store, text):
    store.image(store.group)
    for path in ("0", ""):
        name = "zarr.json" if store.three else (".zarray" if path else ".zattrs")
        (store.path / path / name).write_text(text)
        (message, *_) = problems(store.path, "error")
        assert "JSON" in message
        assert str(store.path) not in message or name in message


def test_a_damaged_chunk_needs_the_pixels(store):
    store.image(store.group)
    key = "0/c/1/2/3" if store.three else "0/1.2.3"
    (store.path / key).write_bytes(b"\0" * 7)
    assert validate(store.path).ok
    report = validate(store.path, pixels=True)
    assert not report.ok
    (problem,) = report.problems
    assert problem.where == "0"
    assert "(1, 2, 3)" in problem.message


def test_no_metadata_where_some_should_be(tmp_path):
    store = Store(tmp_path / "x.ome.zarr", "0.5")
    store.plate()
    store.change("A/1/0", lambda d: d["attributes"].update(ome=None))
    (problem,) = [p for p in validate(store.path).problems if p.severity == "error"]
    assert problem.where == "A/1/0"
    assert "multiscales" in problem.message


@given(st.data())
def test_whatever_stands_there_is_reported(tmp_path_factory, data):
    """Never an exception, and nothing odd passes for what it is not."""
    version = data.draw(st.sampled_from(["0.4", "0.5"]))
    store = Store(tmp_path_factory.mktemp("s") / "x.ome.zarr", version)
    data.draw(st.sampled_from([store.plate, store.layout]))()
    files = sorted(store.path.rglob("zarr.json" if store.three else ".z[a]*"))
    file = data.draw(st.sampled_from(files))
    document = json.loads(file.read_text())
    place = data.draw(st.sampled_from([*places(document)] or [None]))
    if place is not None:
        document = spoiled(document, place, data.draw(JUNK))
    file.write_text(json.dumps(document))
    report = validate(store.path, pixels=False)
    assert all(p.severity in ("error", "warning") for p in report.problems)
    for dry_run in (True, False):
        with contextlib.suppress(BioIOError):
            upgrade(store.path, dry_run=dry_run)


# -- what is wrong with what holds images ---------------------------------------------------------


def test_labels(store):
    store.image(store.group)
    store.labels(store.group, "f4")
    store.ome("labels/cells", lambda o: o.pop("image-label"))
    store.ome("labels", lambda o: o["labels"].append("more"))
    found = problems(store.path, "error")
    for text in ("float32", "image-label", "listed as a label image, but it is not there"):
        assert any(text in message for message in found), found


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda p: p["wells"].append({"path": "B/2", "rowIndex": 1, "columnIndex": 1}),
            "not there",
        ),
        (lambda p: p["wells"][0].pop("rowIndex"), "rowIndex"),
        (lambda p: p["wells"][0].update(path="../A/1"), "leads out"),
        (lambda p: p.update(wells=[]), "no wells"),
        (lambda p: p["rows"].append({"name": "A b"}), "letters and digits"),
        (lambda p: p.update(acquisitions=[{"id": 7}]), "acquisition 0"),
    ],
)
def test_plates(store, change, text):
    store.plate()
    store.ome("", lambda o: change(o["plate"]))
    found = problems(store.path, "error")
    assert any(text in message for message in found), found


def test_wells(store):
    store.plate()
    store.ome("A/1", lambda o: o["well"]["images"].append({"path": "1"}))
    store.ome("B/1", lambda o: o.pop("well"))
    found = [(p.where, p.message) for p in validate(store.path).problems if p.severity == "error"]
    assert [where for where, _ in found] == ["A/1/1", "B/1"]
    assert "field" in found[0][1]
    assert "well" in found[1][1]


def test_layouts(store):
    store.layout()
    xml = store.path / "OME" / "METADATA.ome.xml"
    xml.write_text(XML.format(n=0, x=51))
    (message,) = problems(store.path, "error")
    assert "51" in message
    xml.write_text("<OME")
    assert len(problems(store.path, "error")) == 1
    xml.unlink()
    assert problems(store.path, "error") == []
    assert "OME-XML" in problems(store.path, "warning")[0]
    store.ome("OME", lambda o: o["series"].append("1"))
    (message,) = problems(store.path, "error")
    assert "listed as an image, but it is not there" in message
    xml.write_text(XML.format(n=0, x=50))
    assert any("1 images, the store has 2" in m for m in problems(store.path, "error"))
    store.ome("", lambda o: o.update({"bioformats2raw.layout": 2}))
    assert any("only 3" in m for m in problems(store.path, "error"))


def test_a_layout_that_counts_its_images(store):
    store.layout()
    shutil.rmtree(store.path / "OME")
    assert problems(store.path, "error") == []
    shutil.rmtree(store.path / "0" / "0")
    assert any("not there" in m for m in problems(store.path, "error"))


# -- TIFF -----------------------------------------------------------------------------------------


def tiff(path, **options):
    data = np.arange(3 * 64 * 80, dtype="u2").reshape(3, 64, 80)
    options = {"tile": (32, 32), "compression": "zlib", "photometric": "minisblack", **options}
    tifffile.imwrite(path, data, **options)
    return path


def test_good_tiffs(tmp_path):
    report = validate(tiff(tmp_path / "a.ome.tif"), pixels=True)
    assert (report.problems, report.ok, report.format) == ((), True, "OME-TIFF")
    assert report.pixels == 3 * 2 * 3
    report = validate(tiff(tmp_path / "b.tif", metadata=None), pixels=True)
    assert (report.problems, report.format) == ((), "TIFF")


def test_a_tile_outside_the_file(tmp_path):
    path = tiff(tmp_path / "a.ome.tif")
    with tifffile.TiffFile(path) as tif:
        last = max(page.dataoffsets[-1] for page in tif.pages)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[1].tags["TileOffsets"]
        position = tag.valueoffset
    assert last < len(data)
    spoiled = bytearray(data)
    spoiled[position : position + 4] = (len(data) - 1).to_bytes(4, "little")
    path.write_bytes(spoiled)
    found = [p for p in validate(path).problems if p.severity == "error"]
    assert [p.where for p in found] == ["page 1"]
    assert "1 of 6 tiles do not lie in the file: 0" in found[0].message


def test_a_damaged_tile_needs_the_pixels(tmp_path):
    path = tiff(tmp_path / "a.ome.tif")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[2].dataoffsets[0]
    spoiled = bytearray(path.read_bytes())
    spoiled[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(spoiled)
    assert validate(path).ok
    (problem,) = validate(path, pixels=True).problems
    assert (problem.severity, problem.where) == ("error", "image 0, level 0")


def test_ome_xml_against_its_schema(tmp_path):
    pytest.importorskip("lxml")
    path = tiff(tmp_path / "a.ome.tif")
    data = path.read_bytes()
    assert b'ID="Pixels:0"' in data
    path.write_bytes(data.replace(b'ID="Pixels:0"', b'ID="Pixels_0"'))
    (problem,) = [p for p in validate(path).problems if p.severity == "error"]
    assert problem.where == "OME-XML"
    assert "Pixels_0" in problem.message


def test_a_tiff_that_does_not_open(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0\xff")
    report = validate(tmp_path / "a.tif")
    assert not report.ok
    assert report.problems[0].severity == "error"


# -- what is neither, and the command line --------------------------------------------------------


def test_what_is_no_image(tmp_path):
    with pytest.raises(FileNotFoundError):
        validate(tmp_path / "none.ome.zarr")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UnknownFormatError):
        validate(tmp_path / "a.txt")
    (tmp_path / "a.mem").write_bytes(b"bioio_tk memory image 1")
    with pytest.raises(SpecError, match="can be validated"):
        validate(tmp_path / "a.mem")


def test_command(store, tmp_path):
    store.image(store.group)
    run = CliRunner()
    result = run.invoke(command, [str(store.path)])
    assert (result.exit_code, result.output) == (
        0, f"{store.path}: OME-Zarr {store.version}, valid\n")  # fmt: skip
    store.ome("", lambda o: first(o)["axes"][1].pop("unit"))
    result = run.invoke(command, [str(store.path), "--pixels"])
    assert result.exit_code == 0
    assert "valid, 1 warning, 32 chunks decoded" in result.output
    store.ome("", lambda o: first(o)["datasets"][0].update(path="9"))
    result = run.invoke(command, [str(store.path), str(tmp_path / "none.tif")])
    assert result.exit_code == 1
    assert "NOT valid, 1 error" in result.output
    assert "none.tif" in result.output
    result = run.invoke(command, [str(store.path), str(tmp_path / "none.tif"), "--json"])
    good, missing = json.loads(result.output)
    assert result.exit_code == 1
    assert good["ok"] is False
    assert {problem["severity"] for problem in good["problems"]} == {"error", "warning"}
    assert "none.tif" in missing["error"]


def test_one_pixel_needs_no_unit(store):
    store.image(store.group, shape=(1, 40, 50))
    store.ome("", lambda o: first(o)["axes"][0].update(type="time"))
    store.ome("", lambda o: o.pop("omero"))
    assert problems(store.path) == []
    store.ome("", lambda o: first(o)["axes"][1].pop("unit"))
    assert problems(store.path) == ["no unit is given for the axis y"]
    store.ome("", lambda o: first(o)["axes"][2].pop("unit"))
    assert problems(store.path) == ["no unit is given for the axes y, x"]


def test_the_same_warning_of_many_images_is_one_line(store, tmp_path):
    store.plate()
    for row in "AB":
        store.ome(f"{row}/1/0", lambda o: first(o)["axes"][1].pop("unit"))
    result = CliRunner().invoke(command, [str(tmp_path / "*.zarr")])
    title, line = result.output.splitlines()
    assert title == f"{store.path}: OME-Zarr {store.version}, valid, 2 warnings"
    assert line == "  warning: A/1/0: no unit is given for the axis y (and at 1 more place)"
    result = CliRunner().invoke(command, [str(store.path), "--json"])
    assert len(json.loads(result.output)[0]["problems"]) == 2


# -- real files -----------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collection of real files is not here")
@pytest.mark.parametrize(
    ("name", "ok"),
    [
        ("ome-zarr/5d_dataset_v4.ome.zarr", True),
        ("ome-zarr/coins_bf2raw.ome.zarr", True),
        ("ome-zarr/image-02.zarr", True),
        ("ome-zarr/invalid-image-03.zarr", False),
        ("ome-zarr/mobie_blobs.ome.zarr", True),
        ("ome-zarr/omezarrpy_v2.zarr", True),
        ("ome-zarr/pyramid_v4.zarr", True),
        ("gen/zarr/acquire_v05.zarr", True),
        ("gen/zarr/broken_chunk.ome.zarr", False),
        ("gen/zarr/broken_json.ome.zarr", False),
        ("gen/zarr/broken_no_array_meta.ome.zarr", False),
        ("gen/zarr/missing_chunk.ome.zarr", True),
        ("gen/zarr/ngffzarr_v05_sharded.ome.zarr", True),
        ("gen/zarr/omezarrpy_v05.ome.zarr", True),
        ("gen/zarr/zarrpy_v04_dot_bigendian_uncompressed.ome.zarr", True),
    ],
)
def test_real_files(name, ok):
    report = validate(SHARED / name, pixels=True)
    assert report.ok == ok, report.problems
