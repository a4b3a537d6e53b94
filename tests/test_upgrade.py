"""Upgrade: the new metadata describe the same pixels, and no crash loses a store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from ngff_peers import check

from bioio_tk import BioReader
from bioio_tk.cli.upgrade import command
from bioio_tk.errors import (
    DamagedFileError,
    FormatError,
    SpecError,
    UnknownFormatError,
    UnsupportedError,
)
from bioio_tk.jobs import upgrade as module
from bioio_tk.jobs.upgrade import upgrade

zarr = pytest.importorskip("zarr")
numcodecs = pytest.importorskip("numcodecs")

SHARED = Path(__file__).parents[2] / "shared" / "data"
OLD = {".zgroup", ".zattrs", ".zarray", ".zmetadata"}
AXES = [
    {"name": "c", "type": "channel"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Not here: zarr-python and TensorStore close what they read in threads of their own."""


def pixels(shape, dtype="u2", seed=0):
    values = np.random.default_rng(seed).integers(0, 200, shape)
    return values.astype(dtype)


def array(group, name, data, **options):
    options = {"chunks": (1, 16, 16), "compressors": numcodecs.Zstd(1), "fill_value": 0, **options}
    stored = group.create_array(name, shape=data.shape, dtype=data.dtype, **options)
    stored[...] = data
    return stored


def multiscales(version="0.4", axes=AXES, paths=("0", "1"), transform=True):
    entry = {"version": version, "name": "im", "datasets": [{"path": p} for p in paths]}
    if axes is not None:
        entry["axes"] = axes
    if transform:
        for level, dataset in enumerate(entry["datasets"]):
            step = {"type": "scale", "scale": [1.0, 0.5 * 2**level, 0.5 * 2**level]}
            dataset["coordinateTransformations"] = [step]
    return [entry]


def image(group, **options):
    """Fill a group with an image of two levels; return the pixels of both."""
    full = pixels((2, 40, 50), seed=len(group.path))
    levels = (full, full[:, ::2, ::2])
    for name, level in zip("01", levels, strict=True):
        array(group, name, level, **options)
    window = {"min": 0, "max": 255, "start": 0, "end": 99}
    channels = [{"label": k, "color": "00FF00", "window": window, "active": True} for k in "ab"]
    group.attrs.update(
        {"multiscales": multiscales(), "omero": {"channels": channels, "version": "0.4"}, "mine": 1}
    )
    return levels


def new_store(path):
    return zarr.create_group(path, zarr_format=2)


def contents(path):
    """Return all files of a store that are no metadata, with their bytes."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(Path(path).rglob("*"))
        if file.is_file() and file.name not in OLD | {"zarr.json"}
    }


def names(path):
    return {file.name for file in Path(path).rglob("*") if file.is_file()} & (OLD | {"zarr.json"})


def attributes(path):
    return json.loads((Path(path) / "zarr.json").read_text())["attributes"]


def tensorstore(path):
    ts = pytest.importorskip("tensorstore")
    kvstore = {"driver": "file", "path": str(path)}
    return ts.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()


def test_an_image(tmp_path):
    path = tmp_path / "im.ome.zarr"
    levels = image(new_store(path))
    before = contents(path)
    report = upgrade(path)
    assert (report.before, report.after, report.changed) == ("0.4", "0.5", True)
    assert (report.groups, report.arrays, report.removed) == (1, 2, 6)
    assert contents(path) == before
    assert names(path) == {"zarr.json"}
    check_image(attributes(path))
    found = attributes(path)
    assert found["mine"] == 1
    assert found["ome"]["version"] == "0.5"
    assert "version" not in found["ome"]["multiscales"][0]
    assert found["ome"]["multiscales"][0]["axes"] == AXES
    group = zarr.open_group(path, mode="r")
    for name, level in zip("01", levels, strict=True):
        assert group[name].metadata.zarr_format == 3
        assert group[name].metadata.dimension_names == ("c", "y", "x")
        np.testing.assert_array_equal(group[name][...], level)
        np.testing.assert_array_equal(tensorstore(path / name), level)
    models = pytest.importorskip("ome_zarr_models.v05")
    models.Image.from_zarr(group)


CODECS = {
    "raw": {"compressors": None},
    "zstd": {"compressors": numcodecs.Zstd(3, checksum=True)},
    "gzip": {"compressors": numcodecs.GZip(5)},
    "blosc": {"compressors": numcodecs.Blosc("lz4", 5, 1)},
    "bitshuffle": {"compressors": numcodecs.Blosc("zstd", 3, 2)},
    "noshuffle": {"compressors": numcodecs.Blosc("zlib", 3, 0)},
    "autoshuffle": {"compressors": numcodecs.Blosc("lz4hc", 3, -1)},
    "zlib": {"compressors": numcodecs.Zlib(1)},
    "bz2": {"compressors": numcodecs.BZ2(1)},
    "lz4": {"compressors": numcodecs.LZ4()},
    "lzma": {"compressors": numcodecs.LZMA()},
    "nested": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "fortran": {"order": "F"},
    "fortran_raw": {"order": "F", "compressors": None},
}
ONLY_ZARR_PYTHON = {"zlib", "bz2", "lz4", "lzma"}


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "|u1", "<f4", ">f8", "|b1", "<i8"])
def test_every_codec_and_pixel_type(tmp_path, codec, dtype):
    path = tmp_path / "im.ome.zarr"
    group = new_store(path)
    data = pixels((2, 40, 50)).astype(dtype)
    array(group, "0", data, **CODECS[codec])
    group.attrs["multiscales"] = multiscales(paths=["0"])
    stored = json.loads((path / "0" / ".zarray").read_text())
    assert stored["dtype"] == dtype
    upgrade(path)
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["0"][...], data)
    if codec not in ONLY_ZARR_PYTHON:
        np.testing.assert_array_equal(tensorstore(path / "0"), data)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("dtype", ["<u2", ">i4", "|u1"])
@pytest.mark.parametrize("order", "CF")
def test_delta(tmp_path, dtype, order):
    path = tmp_path / "im.ome.zarr"
    group = new_store(path)
    data = pixels((2, 40, 50)).astype(dtype)
    array(group, "0", data, filters=[numcodecs.Delta(dtype)], order=order)
    group.attrs["multiscales"] = multiscales(paths=["0"])
    upgrade(path)
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["0"][...], data)


@pytest.mark.parametrize(
    ("dtype", "old", "new"),
    [
        ("<u2", None, 0),
        ("<u2", 7, 7),
        ("<u2", "7", 7),
        ("<i2", -3, -3),
        ("<f4", "NaN", "NaN"),
        ("<f4", "-Infinity", "-Infinity"),
        ("<f8", 0.5, 0.5),
        ("<f8", None, 0),
        ("|b1", 1, True),
        ("|b1", None, False),
        ("<c8", None, [0.0, 0.0]),
        ("<c8", [1.5, 0.0], [1.5, 0.0]),
    ],
)
def test_fill_values_of_missing_chunks(tmp_path, dtype, old, new):
    path = tmp_path / "im.ome.zarr"
    group = new_store(path)
    group.create_array("0", shape=(2, 40, 50), dtype=dtype, chunks=(1, 16, 16))
    group.attrs["multiscales"] = multiscales(paths=["0"])
    document = json.loads((path / "0" / ".zarray").read_text())
    document["fill_value"] = int(old) if old == "7" else old
    (path / "0" / ".zarray").write_text(json.dumps(document))
    expected = zarr.open_array(path / "0", mode="r", zarr_format=2)[...]
    document["fill_value"] = old
    (path / "0" / ".zarray").write_text(json.dumps(document))
    upgrade(path)
    assert json.loads((path / "0" / "zarr.json").read_text())["fill_value"] == new
    np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[...], expected)
    np.testing.assert_array_equal(tensorstore(path / "0"), expected)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("dtype", [["r", "|u1"], ["g", "|u1"]], "pixels of type"),
        ("dtype", "<U4", "pixels of type"),
        ("dtype", "<f16", "pixels of type"),
        ("compressor", {"id": "imagecodecs_jpeg2k"}, "imagecodecs_jpeg2k"),
        ("filters", [{"id": "vlen-utf8"}], "vlen-utf8"),
        ("fill_value", 70000, "70000"),
        ("fill_value", -1, "-1"),
        ("fill_value", "x", "'x'"),
        ("dimension_separator", "-", "dimension_separator"),
        ("shape", None, "shape"),
        ("chunks", [1, 0, 16], "chunks"),
    ],
)
def test_what_zarr_3_has_no_words_for(tmp_path, key, value, text):
    path = tmp_path / "im.ome.zarr"
    levels = image(new_store(path))
    document = json.loads((path / "1" / ".zarray").read_text())
    (path / "1" / ".zarray").write_text(json.dumps({**document, key: value}))
    with pytest.raises((UnsupportedError, DamagedFileError), match=text) as caught:
        upgrade(path)
    assert str(path / "1") in str(caught.value)
    assert "zarr.json" not in names(path)
    np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[...], levels[0])


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3"])
def test_older_versions(tmp_path, version):
    path = tmp_path / "im.ome.zarr"
    group = new_store(path)
    axes = ["c", "y", "x"] if version == "0.3" else None
    data = pixels((2, 40, 50))
    array(group, "0", data)
    array(group, "1", data[:, ::2, ::2])
    group.attrs["multiscales"] = multiscales(version, axes, transform=False)
    report = upgrade(path)
    assert report.before == version
    found = attributes(path)
    check_image(found)
    entry = found["ome"]["multiscales"][0]
    first = {"name": "c", "type": "channel"}
    if version != "0.3":  # without names three axes are ZYX
        first = {"name": "z", "type": "space"}
    assert entry["axes"][0] == first
    assert [d["coordinateTransformations"][0]["scale"] for d in entry["datasets"]] == [
        [1, 1, 1], [1, 2, 2]]  # fmt: skip
    np.testing.assert_array_equal(tensorstore(path / "0"), data)


def check_image(found):
    """Check without the keys that the strict schema wants and the specification does not."""
    for entry in found["ome"]["multiscales"]:
        entry.setdefault("name", "")
        entry.setdefault("type", "")
        entry.setdefault("metadata", {})
    check(found, "0.5", "image")


def test_a_plate(tmp_path):
    path = tmp_path / "plate.ome.zarr"
    root = new_store(path)
    root.attrs["plate"] = {
        "version": "0.1",
        "name": "P",
        "rows": [{"name": "A"}, {"name": "B"}],
        "columns": [{"name": "1"}],
        "wells": [{"path": "A/1"}, {"path": "B/1", "note": "x"}],
    }
    expected = {}
    for row in "AB":
        well = root.create_group(f"{row}/1")
        well.attrs["well"] = {"version": "0.1", "images": [{"path": "0", "acquisition": 0}]}
        expected[row] = image(well.create_group("0"))
        labels = well["0"].create_group("labels")
        labels.attrs["labels"] = ["cells"]
        cells = labels.create_group("cells")
        array(cells, "0", pixels((2, 40, 50)))
        cells.attrs["multiscales"] = multiscales(paths=["0"])
        cells.attrs["image-label"] = {"version": "0.4", "colors": [{"label-value": 1}]}
    zarr.consolidate_metadata(path, zarr_format=2)
    report = upgrade(path)
    assert (report.groups, report.arrays) == (1 + 2 * (1 + 1 + 1 + 1 + 1), 2 * 3)
    assert names(path) == {"zarr.json"}
    check(attributes(path), "0.5", "plate")
    assert attributes(path)["ome"]["plate"]["wells"] == [
        {"path": "A/1", "rowIndex": 0, "columnIndex": 0},
        {"path": "B/1", "rowIndex": 1, "columnIndex": 0, "note": "x"},
    ]
    group = zarr.open_group(path, mode="r")
    for row in "AB":
        check(attributes(path / row / "1"), "0.5", "well")
        check(attributes(path / row / "1" / "0" / "labels"), "0.5", "labels")
        np.testing.assert_array_equal(group[f"{row}/1/0/0"][...], expected[row][0])
    import yaozarrs

    yaozarrs.validate_ome_uri(str(path))


def test_a_bioformats2raw_layout(tmp_path):
    path = tmp_path / "two.ome.zarr"
    root = new_store(path)
    root.attrs["bioformats2raw.layout"] = 3
    ome = root.create_group("OME")
    ome.attrs["series"] = ["0", "1"]
    (path / "OME" / "METADATA.ome.xml").write_text("<OME/>")
    expected = [image(root.create_group(name)) for name in "01"]
    report = upgrade(path)
    assert report.before == "0.4"
    check(attributes(path), "0.5", "layout")
    check(attributes(path / "OME"), "0.5", "series")
    assert (path / "OME" / "METADATA.ome.xml").read_text() == "<OME/>"
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["1/1"][...], expected[1][1])


def test_groups_without_a_document_of_their_own(tmp_path):
    path = tmp_path / "im.ome.zarr"
    root = new_store(path)
    data = pixels((2, 40, 50))
    array(root.create_group("scale0"), "image", data)
    root.attrs["multiscales"] = multiscales(paths=["scale0/image"])
    (path / "scale0" / ".zgroup").unlink()
    upgrade(path)
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["scale0/image"][...], data)


def test_transformations_0_5_has_no_words_for(tmp_path):
    path = tmp_path / "im.ome.zarr"
    image(root := new_store(path))
    entry = multiscales()[0]
    entry["coordinateTransformations"] = [{"type": "translation", "translation": [0, 5, 6]}]
    entry["datasets"][1]["coordinateTransformations"].insert(0, {"type": "identity"})
    root.attrs["multiscales"] = [entry]
    upgrade(path)
    found = attributes(path)
    check_image(found)
    entry = found["ome"]["multiscales"][0]
    one = {"type": "scale", "scale": [1, 1, 1]}
    move = {"type": "translation", "translation": [0, 5, 6]}
    assert entry["coordinateTransformations"] == [one, move]
    steps = entry["datasets"][1]["coordinateTransformations"]
    assert steps == [one]


@pytest.mark.parametrize(
    "values", [None, "x", [1, 1], [1, 2, "2"], [1, 0, 1], [1, 2, float("inf")]]
)
def test_a_scale_that_is_none_is_made_from_the_sizes(tmp_path, values):
    path = tmp_path / "im.ome.zarr"
    image(root := new_store(path))
    entry = multiscales()[0]
    entry["datasets"][1]["coordinateTransformations"] = [{"type": "scale", "scale": values}]
    root.attrs["multiscales"] = [entry]
    report = upgrade(path)
    assert any("scale was ignored" in note for note in report.notes)
    found = attributes(path)
    check_image(found)
    (step,) = found["ome"]["multiscales"][0]["datasets"][1]["coordinateTransformations"]
    assert step == {"type": "scale", "scale": [1, 2, 2]}


@pytest.mark.parametrize(
    ("key", "value"), [("cname", float("inf")), ("clevel", -1), ("shuffle", 7)]
)
def test_settings_only_a_writer_needs(tmp_path, key, value):
    path = tmp_path / "im.ome.zarr"
    levels = image(new_store(path), compressors=numcodecs.Blosc("lz4", 5, 1))
    document = json.loads((path / "0" / ".zarray").read_text())
    document["compressor"][key] = value
    (path / "0" / ".zarray").write_text(json.dumps(document))
    upgrade(path)
    np.testing.assert_array_equal(tensorstore(path / "0"), levels[0])
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["0"][...], levels[0])


def test_only_saying_it(tmp_path):
    path = tmp_path / "im.ome.zarr"
    image(new_store(path))
    report = upgrade(path, dry_run=True)
    assert (report.changed, report.groups, report.arrays, report.removed) == (False, 1, 2, 0)
    assert "zarr.json" not in names(path)


def test_keeping_the_old(tmp_path):
    path = tmp_path / "im.ome.zarr"
    levels = image(new_store(path))
    report = upgrade(path, keep_old=True)
    assert report.removed == 0
    assert names(path) == {"zarr.json", ".zgroup", ".zattrs", ".zarray"}
    for zarr_format in (2, 3):
        group = zarr.open_group(path, mode="r", zarr_format=zarr_format)
        np.testing.assert_array_equal(group["0"][...], levels[0])
    again = upgrade(path, keep_old=True)
    assert (again.changed, again.removed) == (False, 0)
    assert again.notes == ("old metadata files beside the new ones are kept: 6",)
    again = upgrade(path, dry_run=True)
    assert (again.changed, again.removed) == (False, 0)
    assert again.notes == ("old metadata files beside the new ones would be removed: 6",)
    again = upgrade(path)
    assert again.notes == ()
    assert (again.changed, again.removed, again.before) == (True, 6, "0.5")
    assert names(path) == {"zarr.json"}
    again = upgrade(path)
    assert (again.changed, again.removed) == (False, 0)


def test_what_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        upgrade(tmp_path / "none")
    (tmp_path / "file.zip").write_bytes(b"PK")
    with pytest.raises(UnsupportedError, match="no folder"):
        upgrade(tmp_path / "file.zip")
    with pytest.raises(UnsupportedError, match="remote"):
        upgrade("s3://bucket/x.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        upgrade(tmp_path / "empty")
    plain = new_store(tmp_path / "plain.zarr")
    array(plain, "0", pixels((2, 40, 50)))
    with pytest.raises(UnknownFormatError, match="without OME"):
        upgrade(tmp_path / "plain.zarr")
    zarr.create_group(tmp_path / "v3.zarr", zarr_format=3)
    with pytest.raises(UnknownFormatError, match="without OME"):
        upgrade(tmp_path / "v3.zarr")
    path = tmp_path / "im.ome.zarr"
    image(new_store(path).create_group("0"))
    for inner in ("0", "0/labels", "0/labels/cells"):
        (path / inner).mkdir(exist_ok=True)
        with pytest.raises(SpecError, match="upgrade that store"):
            upgrade(path / inner)
    with pytest.raises(SpecError, match=r"0\.6"):
        upgrade(path, to="0.6")
    (path / "0" / ".zattrs").write_text('{"a": ')
    with pytest.raises(DamagedFileError, match="no JSON"):
        upgrade(path)


def test_a_folder_that_holds_a_store(tmp_path):
    levels = image(new_store(tmp_path / "data.zarr"))
    (tmp_path / "METADATA.ome.xml").touch()
    report = upgrade(tmp_path)
    assert report.path == str(tmp_path / "data.zarr")
    assert {p.name for p in tmp_path.iterdir()} == {"data.zarr", "METADATA.ome.xml"}
    assert names(tmp_path / "data.zarr") == {"zarr.json"}
    with BioReader(tmp_path) as br:
        np.testing.assert_array_equal(br[:, :, 0, :, 0][:, :, 0], np.moveaxis(levels[0], 0, -1))


def test_a_folder_that_holds_several_stores_is_left_alone(tmp_path):
    for name in ("a.zarr", "b.zarr"):
        image(new_store(tmp_path / name))
    with pytest.raises(IsADirectoryError):
        upgrade(tmp_path)
    assert names(tmp_path / "a.zarr") == {".zgroup", ".zattrs", ".zarray"}
    assert {p.name for p in tmp_path.iterdir()} == {"a.zarr", "b.zarr"}


def test_a_missing_array(tmp_path):
    path = tmp_path / "im.ome.zarr"
    image(new_store(path))
    shutil.rmtree(path / "1")
    with pytest.raises(DamagedFileError, match="no array '1'"):
        upgrade(path)
    assert "zarr.json" not in names(path)


# -- crashes --------------------------------------------------------------------------------------


def two_levels_deep(path):
    root = new_store(path)
    root.attrs["bioformats2raw.layout"] = 3
    root.create_group("OME").attrs["series"] = ["0"]
    levels = image(root.create_group("0"))
    zarr.consolidate_metadata(path, zarr_format=2)
    return levels


@pytest.mark.filterwarnings("ignore:Both zarr.json")
@pytest.mark.parametrize("keep_old", [True, False])
def test_killed_at_any_moment_the_store_opens(tmp_path, monkeypatch, keep_old):
    """A copy is taken before each change, as a crash would leave the store."""
    path = tmp_path / "im.ome.zarr"
    levels = two_levels_deep(path)
    copies = []

    def snapshot():
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(path, copies[-1])

    def before(call):
        def changed(*args, **kwargs):
            snapshot()
            return call(*args, **kwargs)

        return changed

    monkeypatch.setattr(module.os, "replace", before(module.os.replace))
    monkeypatch.setattr(Path, "unlink", before(Path.unlink))
    upgrade(path, keep_old=keep_old)
    monkeypatch.undo()
    snapshot()
    # five documents, then (here) eleven old files, then the end
    assert len(copies) == (5 if keep_old else 5 + 11) + 1
    formats = []
    for copy in copies:
        group = zarr.open_group(copy, mode="r")
        formats.append(group.metadata.zarr_format)
        for name, level in zip(("0/0", "0/1"), levels, strict=True):
            np.testing.assert_array_equal(group[name][...], level)
        inner = group["0"].attrs.asdict()
        assert (inner["ome"] if formats[-1] == 3 else inner)["multiscales"][0]["name"] == "im"
        # and where it was cut off, doing it again completes it
        upgrade(copy, keep_old=keep_old)
        assert names(copy) == names(path)
        assert contents(copy) == contents(path)
        for file in path.rglob("zarr.json"):
            assert (copy / file.relative_to(path)).read_bytes() == file.read_bytes()
    # first old, then new, and never back
    assert formats == sorted(formats)
    assert (formats[0], formats[-1]) == (2, 3)


@pytest.mark.parametrize("step", range(5))
def test_a_full_disk_leaves_the_store_as_it_was(tmp_path, monkeypatch, step):
    path = tmp_path / "im.ome.zarr"
    two_levels_deep(path)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    calls = []
    fsync = module.os.fsync

    def full(fd):
        calls.append(fd)
        if len(calls) == 2 * step + 1:  # the file of this step (each has one for its folder, too)
            raise OSError(28, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        upgrade(path)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_the_root_comes_last_and_its_old_metadata_go_first(tmp_path, monkeypatch):
    path = tmp_path / "im.ome.zarr"
    two_levels_deep(path)
    order = []
    replace, unlink = module.os.replace, Path.unlink
    monkeypatch.setattr(module.os, "replace", lambda a, b: (order.append(b), replace(a, b))[1])
    monkeypatch.setattr(
        Path, "unlink", lambda self, **kw: (order.append(self), unlink(self, **kw))[1]
    )
    upgrade(path)
    relative = [str(p.relative_to(path)) for p in order]
    assert relative[:5] == [
        "0/0/zarr.json", "0/1/zarr.json", "0/zarr.json", "OME/zarr.json", "zarr.json"]  # fmt: skip
    assert set(relative[5:8]) == {".zmetadata", ".zgroup", ".zattrs"}
    assert all("/" in name for name in relative[8:])


# -- command line ---------------------------------------------------------------------------------


def test_command(tmp_path):
    path = tmp_path / "im.ome.zarr"
    image(new_store(path))
    result = CliRunner().invoke(command, [str(path), "--dry-run"])
    assert result.exit_code == 0
    assert "0.4" in result.output
    assert "dry-run" in result.output
    assert "zarr.json" not in names(path)
    result = CliRunner().invoke(command, [str(path), "--keep-old", "--json"])
    report = json.loads(result.output)
    assert (report["after"], report["changed"], report["arrays"]) == ("0.5", True, 2)
    assert ".zgroup" in names(path)
    for option in ("--keep-old", "--dry-run"):
        result = CliRunner().invoke(command, [str(path), option])
        assert "0.5 already\n" in result.output
        assert "old metadata files beside the new ones" in result.output
    result = CliRunner().invoke(command, [str(path)])
    assert result.exit_code == 0
    assert "6 old metadata files removed" in result.output
    assert names(path) == {"zarr.json"}
    result = CliRunner().invoke(command, [str(path)])
    assert "nothing to do" in result.output


# -- real files -----------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collection of real files is not here")
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.filterwarnings("ignore:Warning. Space axis unit 'pixel'")
@pytest.mark.filterwarnings("ignore:Found an empty list of filters")
@pytest.mark.parametrize(
    "name",
    [
        "ome-zarr/5d_dataset_v4.ome.zarr",
        "ome-zarr/bioformats-zarr/data.zarr",
        "ome-zarr/coins_bf2raw.ome.zarr",
        "ome-zarr/image-02.zarr",
        "ome-zarr/mobie_blobs.ome.zarr",
        "ome-zarr/omezarrpy_v2.zarr",
        "ome-zarr/pyramid_v4.zarr",
        "gen/zarr/ngffzarr_v04.ome.zarr",
        "gen/zarr/omezarrpy_v04.ome.zarr",
        "gen/zarr/zarrpy_v04_blosc_slash.ome.zarr",
        "gen/zarr/zarrpy_v04_dot_bigendian_uncompressed.ome.zarr",
        "gen/zarr/missing_chunk.ome.zarr",
    ],
)
def test_real_files(tmp_path, name):
    path = tmp_path / "x.zarr"
    shutil.copytree(SHARED / name, path)
    folders = [p.parent for p in path.rglob(".zarray")]
    expected = {p: zarr.open_array(p, mode="r", zarr_format=2)[...] for p in folders}
    assert expected
    upgrade(path)
    assert names(path) == {"zarr.json"}
    for folder, data in expected.items():
        np.testing.assert_array_equal(zarr.open_array(folder, mode="r")[...], data)
    for document in path.rglob("zarr.json"):
        found = json.loads(document.read_text())
        if found["node_type"] == "group" and "multiscales" in found["attributes"].get("ome", {}):
            check_image(found["attributes"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collection of real files is not here")
@pytest.mark.parametrize("name", ["broken_json", "broken_no_array_meta"])
def test_real_damage(tmp_path, name):
    path = tmp_path / "x.zarr"
    shutil.copytree(SHARED / f"gen/zarr/{name}.ome.zarr", path)
    with pytest.raises(FormatError):
        upgrade(path)
    assert "zarr.json" not in names(path)
