"""convert and info with OME-Zarr: both ways, several series, plates, labels, all or nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
import zarr
from images import coded
from PIL import Image
from test_cli import run

from bioio_tk import BioReader, BioWriter, convert
from bioio_tk.api import convert_series, describe
from bioio_tk.backends import _zarr_collection as collection
from bioio_tk.backends.zarr_read import ZarrSource
from bioio_tk.cli.text import STORAGE_OPTION
from bioio_tk.core.plate import Acquisition, Field, Plate, Well
from bioio_tk.errors import DamagedFileError, SpecError, TargetExistsError, UnsupportedError
from bioio_tk.target import partial_path


def pixels(path, level="0"):
    """Return an array as Y, X, Z, C, T, read by zarr-python."""
    return zarr.open_group(path, mode="r")[level][:].transpose(3, 4, 2, 1, 0)


def unpacked(path, folder):
    """Return the folder of a store that may be packed."""
    if path.is_dir():
        return path
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def attributes(path):
    found = dict(zarr.open_group(path, mode="r").attrs)
    return found.get("ome", found)


def listed(folder):
    return sorted(p.name for p in folder.iterdir())


def tiff(path, *images):
    """Write images (Y, X, Z, C, T) with tifffile."""
    with tifffile.TiffWriter(path, ome=True) as writer:
        for n, image in enumerate(images):
            writer.write(
                image.transpose(4, 3, 2, 0, 1),
                photometric="minisblack",
                metadata={
                    "axes": "TCZYX",
                    "Name": f"image {n}",
                    "PhysicalSizeX": 0.5,
                    "PhysicalSizeXUnit": "µm",
                    "Channel": {"Name": [f"c{i}" for i in range(image.shape[3])]},
                },
            )
    return path


def read_tiff(path, series=0):
    with tifffile.TiffFile(path) as tif:
        found = tif.series[series]
        array = found.asarray(squeeze=False)
        order = [found.get_axes(squeeze=False).index(axis) for axis in "YXZCT"]
        rest = [axis for axis in range(array.ndim) if axis not in order]
        array = array.transpose(*order, *rest)
        return array.reshape(array.shape[:5])


PLATE = Plate(
    "screen",
    ("A", "B", "C"),
    ("1", "2", "10"),
    (
        Well("A", "2", (Field("0", 3), Field("1", 3))),
        Well("B", "1", (Field("0", 3),)),
        Well("B", "10", (Field("0", 3), Field("1", 3))),
    ),
    (Acquisition(3, "monday"),),
)


def plate_of(path, plate=PLATE, **options):
    """Write a plate, one image after the other; return the pixels by path."""
    images = {}
    for n, place in enumerate(plate.paths):
        image = coded((40 + n, 50, 1, 2, 1)) + np.uint16(n)
        with BioWriter(path, image=image, group=place, plate=plate, name=place, **options):
            images[place] = image
    return images


def labelled(path, **options):
    """Write an image with two label images, one of them with colours and properties."""
    image = coded((70, 90, 2, 1, 1))
    nuclei = (coded((70, 90, 2, 1, 1)) // 7 % 5).astype("u1")
    with BioWriter(path, image=image, pyramid=2, **options):
        pass
    mode = {"downsample": "mode"}
    label = {"colors": {1: (255, 0, 9, 255), 2: (1, 2, 3, 4)}, "properties": {2: {"area": 7.5}}}
    with BioWriter(
        path, image=nuclei, group="labels/nuclei", label=label, pyramid=2, **mode, **options
    ):
        pass
    with BioWriter(path, image=nuclei[:, :, :1] * 2, group="labels/cells", pyramid=1, **options):
        pass
    return image, nuclei


# ------------------------------------------------------------------ one image


@pytest.mark.parametrize("version", [None, "0.4"])
def test_tiff_to_zarr_and_back(tmp_path, version):
    image = coded((150, 170, 3, 2, 2))
    source = tiff(tmp_path / "a.ome.tif", image)
    report = convert(source, tmp_path / "b.ome.zarr", ngff_version=version, chunks=(64, 48, 2))
    assert (report.shape, report.levels, report.group, report.labels) == (image.shape, 1, "", ())
    assert report.bytes_out == sum(
        p.stat().st_size for p in (tmp_path / "b.ome.zarr").rglob("*") if p.is_file()
    )
    array = zarr.open_group(tmp_path / "b.ome.zarr", mode="r")["0"]
    assert array.chunks == (1, 1, 2, 64, 48)
    assert array.metadata.zarr_format == (2 if version else 3)
    np.testing.assert_array_equal(pixels(tmp_path / "b.ome.zarr"), image)
    found = attributes(tmp_path / "b.ome.zarr")
    assert [c["label"] for c in found["omero"]["channels"]] == ["c0", "c1"]
    scale = found["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale[-1] == 0.5
    convert(tmp_path / "b.ome.zarr", tmp_path / "c.ome.tif", tile_size=64)
    np.testing.assert_array_equal(read_tiff(tmp_path / "c.ome.tif"), image)
    with BioReader(tmp_path / "c.ome.tif") as br:
        assert (br.name, br.channel_names, br.pixel_size("µm").x) == ("image 0", ["c0", "c1"], 0.5)


def test_options_of_the_command_line(tmp_path):
    image = coded((150, 170, 1, 1, 1))
    source = tiff(tmp_path / "a.ome.tif", image)
    target = tmp_path / "b.ome.zarr"
    run("convert", source, target, "--chunks", "32", "--shards", "64x96", "--levels", 2)
    array = zarr.open_group(target, mode="r")["0"]
    assert (array.chunks[-2:], array.shards[-2:]) == ((32, 32), (64, 96))
    assert pixels(target, "1").shape[:2] == (75, 85)
    run("convert", source, target, "--overwrite", "--chunks", "16x32x1x1x1", "--shards", "none")
    array = zarr.open_group(target, mode="r")["0"]
    assert (array.chunks[-2:], array.shards) == ((16, 32), None)
    run("convert", source, target, "--group", "labels/a", "--compression", "gzip", "--dtype", "u2")
    np.testing.assert_array_equal(pixels(target / "labels/a"), image)
    assert attributes(target / "labels")["labels"] == ["a"]
    for bad in ("1x2x3x4x5x6", "wide"):
        _, said = run("convert", source, tmp_path / "c.zarr", "--chunks", bad, code=2)
        assert "Y x X" in said
    run("convert", source, tmp_path / "c.zarr", "--storage-option", "anon", code=2)
    run("convert", source, tmp_path / "c.zarr", "--shards", "none", "--ngff-version", "0.4")
    assert (tmp_path / "c.zarr/.zattrs").exists()


def test_values_of_the_command_line(tmp_path, monkeypatch):
    read = STORAGE_OPTION["type"].convert
    for text, pair in [
        ("anon=true", ("anon", True)),
        ("key=a=b", ("key", "a=b")),
        (
            'client_kwargs={"endpoint_url": "http://x"}',
            ("client_kwargs", {"endpoint_url": "http://x"}),
        ),
    ]:
        assert read(text, None, None) == pair
    monkeypatch.setattr("bioio_tk.backends.zarr_write._MANY_FILES", 4)
    source = tiff(tmp_path / "a.ome.tif", coded((128, 128, 1, 1, 1)))
    for words, shards in [((), (64, 64)), (("--shards", "none"), None)]:
        run("convert", source, tmp_path / "b.zarr", "--chunks", 32, "--overwrite", *words)
        found = zarr.open_group(tmp_path / "b.zarr", mode="r")["0"].shards
        assert (found and found[-2:]) == shards


def test_a_segmentation_becomes_labels(tmp_path):
    image = coded((600, 300, 1, 1, 1)) % np.uint16(7)
    source = tiff(tmp_path / "a.ome.tif", image)
    run("convert", source, tmp_path / "b.ome.zarr")
    run("convert", source, tmp_path / "b.ome.zarr", "--group", "labels/a")
    label = tmp_path / "b.ome.zarr/labels/a"
    np.testing.assert_array_equal(pixels(label), image)
    assert "image-label" in attributes(label)
    assert pixels(label, "1").max() <= 6
    assert len(attributes(label)["multiscales"][0]["datasets"]) == 3
    assert pixels(tmp_path / "b.ome.zarr", "2").shape == pixels(label, "2").shape


def test_depth_is_shrunk_on_request(tmp_path):
    image = coded((64, 64, 8, 1, 1))
    with BioWriter(
        tmp_path / "a.ome.tif",
        image=image,
        physical_size_x=(1, "µm"),
        physical_size_y=(1, "µm"),
        physical_size_z=(1, "µm"),
    ):
        pass
    target = tmp_path / "b.ome.zarr"
    run("convert", tmp_path / "a.ome.tif", target, "--levels", 2, "--pyramid-z")
    assert pixels(target, "1").shape[:3] == (32, 32, 4)
    run("convert", tmp_path / "a.ome.tif", target, "--levels", 2, "--overwrite")
    assert pixels(target, "1").shape[:3] == (32, 32, 8)


def test_storage_options_are_read_as_json(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    image = coded((40, 50, 1, 1, 1))
    source = tiff(tmp_path / "a.ome.tif", image)
    url = "memory://test_convert_zarr/a.ome.zarr"
    said, _ = run("convert", source, url, "--storage-option", "skip_instance_cache=true")
    assert said.startswith(f"{url}: 50 x 40")
    run("convert", url, tmp_path / "b.ome.tif")
    np.testing.assert_array_equal(read_tiff(tmp_path / "b.ome.tif"), image)
    said, _ = run("info", url)
    assert said.startswith(f"{url}: OME-Zarr 0.5 (Zarr 3), image, 1 image\n")
    with pytest.raises(UnsupportedError, match="single images"):
        convert_series(
            tiff(tmp_path / "two.ome.tif", image, image), "memory://test_convert_zarr/b.ome.zarr"
        )
    fsspec.filesystem("memory").rm("/test_convert_zarr", recursive=True)


# ------------------------------------------------------------------ series


@pytest.mark.parametrize("name", ["b.ome.zarr", "b.ozx"])
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_all_series_into_one_store(tmp_path, name, version):
    images = [coded((40, 50, 1, 2, 1)), coded((30, 20, 2, 1, 1), "u1"), coded((9, 8, 1, 1, 1))]
    source = tiff(tmp_path / "a.ome.tif", *images)
    target = tmp_path / name
    said, _ = run("convert", source, target, "--series", "all", "--ngff-version", version)
    assert f"{target}: 3 images" in said
    assert "only number" not in said
    assert listed(tmp_path) == ["a.ome.tif", name]
    store = unpacked(target, tmp_path / "unpacked")
    assert attributes(store)["bioformats2raw.layout"] == 3
    assert attributes(store / "OME")["series"] == ["0", "1", "2"]
    for n, image in enumerate(images):
        np.testing.assert_array_equal(pixels(store / str(n)), image)
    with BioReader(target) as br:
        assert br.series_names == ["image 0", "image 1", "image 2"]
    convert_series(target, tmp_path / "back.ome.tif")
    for n, image in enumerate(images):
        np.testing.assert_array_equal(read_tiff(tmp_path / f"back_s{n}.ome.tif"), image)


def test_all_of_one_is_simply_that_image(tmp_path):
    source = tiff(tmp_path / "a.ome.tif", coded((9, 8, 1, 1, 1)))
    (report,) = convert_series(source, tmp_path / "b.ome.zarr")
    assert report.group == ""
    assert "multiscales" in attributes(tmp_path / "b.ome.zarr")


def test_each_into_a_store_of_its_own(tmp_path):
    images = [coded((40, 50, 1, 1, 1)), coded((30, 20, 1, 1, 1))]
    convert_series(tiff(tmp_path / "a.ome.tif", *images), tmp_path / "b{series}.ome.zarr")
    for n, image in enumerate(images):
        np.testing.assert_array_equal(pixels(tmp_path / f"b{n}.ome.zarr"), image)


# ------------------------------------------------------------------ plates


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_plate_stays_a_plate(tmp_path, version):
    images = plate_of(tmp_path / "a.ome.zarr")
    done = []
    reports = convert_series(
        tmp_path / "a.ome.zarr",
        tmp_path / "b.ome.zarr",
        ngff_version=version,
        progress=lambda *said: done.append(said),
    )
    assert [report.group for report in reports] == list(PLATE.paths)
    assert all(report.target == str(tmp_path / "b.ome.zarr") for report in reports)
    found = attributes(tmp_path / "b.ome.zarr")["plate"]
    assert found["name"] == "screen"
    assert [row["name"] for row in found["rows"]] == ["A", "B", "C"]
    assert [column["name"] for column in found["columns"]] == ["1", "2", "10"]
    assert [well["path"] for well in found["wells"]] == ["A/2", "B/1", "B/10"]
    assert [run["id"] for run in found["acquisitions"]] == [3]
    well = attributes(tmp_path / "b.ome.zarr/B/10")["well"]
    assert [field["path"] for field in well["images"]] == ["0", "1"]
    assert {field["acquisition"] for field in well["images"]} == {3}
    for place, image in images.items():
        np.testing.assert_array_equal(pixels(tmp_path / "b.ome.zarr" / place), image)
    total = sum(image.nbytes for image in images.values())
    assert done[-1] == (total, total)
    assert [d for d, _ in done] == sorted(d for d, _ in done)
    assert all(0 < d <= t for d, t in done)


def test_lists_written_at_once_are_those_written_one_by_one(tmp_path):
    plate_of(tmp_path / "a.ome.zarr")
    lists = {
        str(path.relative_to(tmp_path / "a.ome.zarr")): json.loads(path.read_text())
        for depth in ("", "*/", "*/*/")
        for path in (tmp_path / "a.ome.zarr").glob(f"{depth}zarr.json")
    }
    for name in lists:
        (tmp_path / "a.ome.zarr" / name).unlink()
    collection.register_all(tmp_path / "a.ome.zarr", PLATE.paths, version="0.5", plate=PLATE)
    for name, document in lists.items():
        assert json.loads((tmp_path / "a.ome.zarr" / name).read_text()) == document
    assert len(lists) == 1 + 2 + 3


def test_a_plate_is_read_once_however_large(tmp_path, monkeypatch):
    plate_of(tmp_path / "a.ome.zarr")
    opened = []
    monkeypatch.setattr(
        ZarrSource,
        "_plate_images",
        lambda self, *a, f=ZarrSource._plate_images: opened.append(1) or f(self, *a),
    )
    monkeypatch.setattr(collection, "register", None)  # looks at every well, for each image
    convert_series(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr")
    assert len(opened) == 1


# ------------------------------------------------------------------ labels


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("method", [None, "nearest"])
def test_labels_come_along(tmp_path, version, method):
    image, nuclei = labelled(tmp_path / "a.ome.zarr")
    done = []
    report = convert(
        tmp_path / "a.ome.zarr",
        tmp_path / "b.ome.zarr",
        ngff_version=version,
        pyramid=2,
        downsample=method,
        progress=lambda *said: done.append(said),
    )
    assert report.labels == ("nuclei", "cells")
    target = tmp_path / "b.ome.zarr"
    np.testing.assert_array_equal(pixels(target), image)
    np.testing.assert_array_equal(pixels(target / "labels/nuclei"), nuclei)
    np.testing.assert_array_equal(pixels(target / "labels/cells"), nuclei[:, :, :1] * 2)
    assert attributes(target / "labels")["labels"] == ["nuclei", "cells"]
    small = pixels(target / "labels/nuclei", "1")
    if method == "nearest":
        blocks = [nuclei[y::2, x::2] for y in (0, 1) for x in (0, 1)]
        assert any(np.array_equal(small, block) for block in blocks)
    else:
        blocks = nuclei.reshape(35, 2, 45, 2, 2, 1, 1).swapaxes(1, 2).reshape(35, 45, 4, 2, 1, 1)
        counts = np.stack([(blocks == value).sum(axis=2) for value in range(5)])
        chosen = np.take_along_axis(counts, small[None].astype(int), axis=0)[0]
        np.testing.assert_array_equal(chosen, counts.max(axis=0))
    label = attributes(target / "labels/nuclei")["image-label"]
    colors = {entry["label-value"]: entry.get("rgba") for entry in label["colors"]}
    assert colors == {1: [255, 0, 9, 255], 2: [1, 2, 3, 4]}
    assert {"label-value": 2, "area": 7.5} in label["properties"]
    total = image.nbytes + nuclei.nbytes + nuclei[:, :, :1].nbytes
    assert done[-1] == (total, total)
    assert [d for d, _ in done] == sorted(d for d, _ in done)
    assert listed(tmp_path) == ["a.ome.zarr", "b.ome.zarr"]


def test_labels_that_are_not_wanted_or_cannot_be_kept(tmp_path):
    labelled(tmp_path / "a.ome.zarr")
    said, _ = run("convert", tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", "--no-labels")
    assert "with labels" not in said
    assert not (tmp_path / "b.ome.zarr/labels").exists()
    said, _ = run("convert", tmp_path / "a.ome.zarr", tmp_path / "b.ome.tif")
    assert "note: labels were not copied (nuclei, cells): only OME-Zarr keeps them" in said
    if find_spec("fsspec"):
        report = convert(tmp_path / "a.ome.zarr", "memory://test_no_labels/b.ome.zarr")
        assert any("cannot be sent to a server" in note for note in report.notes)
    report = convert(tmp_path / "a.ome.zarr", tmp_path / "c.ome.zarr", level=1)
    assert report.labels == ("nuclei",)
    assert any("'cells' were not copied: they have no level 1" in note for note in report.notes)
    np.testing.assert_array_equal(
        pixels(tmp_path / "c.ome.zarr/labels/nuclei"),
        pixels(tmp_path / "a.ome.zarr/labels/nuclei", "1"),
    )


def test_labels_in_a_group_and_in_a_packed_store(tmp_path):
    image, nuclei = labelled(tmp_path / "a.ome.zarr")
    convert(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", group="A/1/0")
    np.testing.assert_array_equal(pixels(tmp_path / "b.ome.zarr/A/1/0/labels/nuclei"), nuclei)
    assert attributes(tmp_path / "b.ome.zarr")["plate"]["wells"][0]["path"] == "A/1"
    run("convert", tmp_path / "b.ome.zarr", tmp_path / "c.ozx", "--series", "all")
    store = unpacked(tmp_path / "c.ozx", tmp_path / "unpacked")
    np.testing.assert_array_equal(pixels(store / "A/1/0/labels/nuclei"), nuclei)
    convert(tmp_path / "c.ozx", tmp_path / "d.ome.zarr")
    np.testing.assert_array_equal(pixels(tmp_path / "d.ome.zarr/labels/nuclei"), nuclei)
    np.testing.assert_array_equal(pixels(tmp_path / "d.ome.zarr"), image)


# ------------------------------------------------------------------ all or nothing


def old_store(path):
    zarr.create_array(path, shape=(3,), dtype="u1")[:] = 7


def damage(path):
    """Cut a chunk of an image off."""
    chunk = next(p for p in (path / "0/c").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:5])


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("where", ["B/10/1", "A/2/0/labels/n"])
@pytest.mark.parametrize("name", ["b.ome.zarr", "b.ozx"])
def test_a_damaged_field_leaves_nothing(tmp_path, there, where, name):
    images = plate_of(tmp_path / "a.ome.zarr")
    with BioWriter(
        tmp_path / "a.ome.zarr", image=images["A/2/0"][:, :, 0, 0], group="A/2/0/labels/n"
    ):
        pass
    damage(tmp_path / "a.ome.zarr" / where)
    target = tmp_path / name
    if there and name == "b.ome.zarr":
        old_store(target)
    elif there:
        target.write_bytes(b"old")
    before = listed(tmp_path)
    with pytest.raises(DamagedFileError):
        convert_series(tmp_path / "a.ome.zarr", target, overwrite=True)
    if "labels" in where:
        with pytest.raises(DamagedFileError):
            convert(tmp_path / "a.ome.zarr", target, overwrite=True)
    assert listed(tmp_path) == before
    if there and name == "b.ome.zarr":
        assert zarr.open_array(target, mode="r")[:].tolist() == [7, 7, 7]
    elif there:
        assert target.read_bytes() == b"old"


class Enough(BaseException):
    pass


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_what_progress_raises_leaves_nothing(tmp_path, share):
    plate_of(tmp_path / "a.ome.zarr")

    def stop(done, total):
        if done >= share * total:
            raise Enough

    with pytest.raises(Enough):
        convert_series(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", progress=stop)
    assert listed(tmp_path) == ["a.ome.zarr"]


def test_the_old_store_stays_until_the_new_one_is_complete(tmp_path):
    plate_of(tmp_path / "a.ome.zarr")
    target = tmp_path / "b.ome.zarr"
    old_store(target)
    with pytest.raises(TargetExistsError):
        convert_series(tmp_path / "a.ome.zarr", target)
    seen = []
    convert_series(
        tmp_path / "a.ome.zarr",
        target,
        overwrite=True,
        progress=lambda *_: seen.append(zarr.open_array(target, mode="r")[:].tolist()),
    )
    assert seen
    assert all(values == [7, 7, 7] for values in seen)
    assert "plate" in attributes(target)
    assert listed(tmp_path) == ["a.ome.zarr", "b.ome.zarr"]


def test_what_is_refused(tmp_path):
    plate_of(tmp_path / "a.ome.zarr")
    source = tmp_path / "a.ome.zarr"
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr/notes.txt").write_text("mine")
    for error, dst, options in [
        (SpecError, source, {"overwrite": True}),
        (SpecError, tmp_path / "b.zarr", {"group": "1"}),
        (TypeError, tmp_path / "b.zarr", {"chunk": 64}),
        (SpecError, tmp_path / "b.zarr", {"ngff_version": "0.3"}),
        (SpecError, tmp_path / "b.zarr", {"level": 4}),
        (IsADirectoryError, tmp_path / "mine.zarr", {"overwrite": True}),
        (FileNotFoundError, tmp_path / "no/b.zarr", {}),
    ]:
        with pytest.raises(error):
            convert_series(source, dst, **options)
    with pytest.raises(SpecError, match="inside"):
        convert(source / "A/2/0", source, overwrite=True)
    assert listed(tmp_path) == ["a.ome.zarr", "mine.zarr"]
    assert (tmp_path / "mine.zarr/notes.txt").read_text() == "mine"


# ------------------------------------------------------------------ info


def test_info_shows_an_image_with_labels(tmp_path):
    path = tmp_path / "a.ome.zarr"
    labelled(path, chunks=32, shards=64)
    said, _ = run("info", path)
    array = zarr.open_group(path, mode="r")["0"]
    files = [p for p in path.rglob("*") if p.is_file()]
    assert array.shards == (1, 1, 1, 64, 64)
    for text in (
        f"{path}: OME-Zarr 0.5 (Zarr 3), image, 1 image",
        f"in {len(files)} files",
        "axes        t c z y x",
        "level 0     90 x 70: chunks 1 x 1 x 1 x 32 x 32, shards 1 x 1 x 1 x 64 x 64, blosc-zstd",
        "level 1     45 x 35: chunks",
        "labels      nuclei, uint8, 90 x 70, 45 x 35",
        "labels      cells, uint8, 90 x 70",
    ):
        assert text in said
    (found,) = json.loads(run("info", path, "--json")[0])
    assert found["bytes"] == sum(p.stat().st_size for p in files)
    (series,) = found["series"]
    assert [label["name"] for label in series["labels"]] == ["nuclei", "cells"]
    assert series["levels"][0]["chunk"] == list(array.chunks)
    assert series["levels"][0]["shard"] == list(array.shards)
    assert (series["ngff_version"], series["zarr_format"]) == ("0.5", 3)
    assert (found["layout"], found["images"], found["files"]) == ("image", 1, len(files))


def test_info_of_a_plate_opens_only_what_it_shows(tmp_path):
    path = tmp_path / "a.ome.zarr"
    plate_of(path)
    (path / "B/10/1/zarr.json").write_text("broken")
    said, _ = run("info", path, "--images", 2)
    for text in (
        "OME-Zarr 0.5 (Zarr 3), plate, 5 images",
        "plate 'screen': 3 rows x 3 columns, 3 wells with images, 2 fields a well",
        "image 0 'A/2/0' at A/2/0",
        "and 3 more",
    ):
        assert text in said
    assert "B/1/0" not in said
    run("info", path, code=1)
    wells = tuple(Well("A", str(n), (Field("0"),)) for n in range(1, 9))
    plate_of(tmp_path / "b.ome.zarr", Plate("", ("A",), tuple(map(str, range(1, 9))), wells))
    (tmp_path / "b.ome.zarr/A/8/0/zarr.json").write_text("broken")
    said, _ = run("info", tmp_path / "b.ome.zarr")
    assert said.splitlines()[-1] == "  and 2 more"
    found = describe(tmp_path / "b.ome.zarr")
    assert (found.images, len(found.series), found.plate.wells) == (8, 6, 8)


def test_info_of_other_stores(tmp_path):
    images = [coded((40, 50, 1, 1, 1)), coded((30, 20, 1, 1, 1))]
    convert_series(tiff(tmp_path / "a.ome.tif", *images), tmp_path / "b.ozx", ngff_version="0.4")
    said, _ = run("info", tmp_path / "b.ozx")
    assert "OME-Zarr 0.4 (Zarr 2), series, 2 images" in said
    assert "image 1 'image 1' at 1" in said
    zarr.create_array(tmp_path / "c.zarr", shape=(30, 20), chunks=(8, 8), dtype="f4")
    said, _ = run("info", tmp_path / "c.zarr")
    assert "c.zarr: Zarr (Zarr 3), array, 1 image" in said
    assert "level 0     20 x 30: chunks 8 x 8, zstd" in said
    labelled(tmp_path / "d.ome.zarr")
    said, _ = run("info", tmp_path / "d.ome.zarr/labels")
    assert "labels, 2 images" in said


def test_labels_that_cannot_be_read_do_not_hide_the_image(tmp_path):
    path = tmp_path / "a.ome.zarr"
    labelled(path)
    (path / "labels/cells/zarr.json").write_text("broken")
    (path / "labels/nuclei/0/zarr.json").unlink()
    said, _ = run("info", path)
    assert "X 90  Y 70" in said
    for name in ("cells", "nuclei"):
        assert f"note: labels '{name}' cannot be read: " in said
    with pytest.raises(DamagedFileError):
        convert(path, tmp_path / "b.ome.zarr")
    convert(path, tmp_path / "b.ome.zarr", labels=False)


def test_a_folder_of_very_many_files_is_not_counted(tmp_path, monkeypatch):
    path = tmp_path / "a.ome.zarr"
    labelled(path, chunks=16)
    monkeypatch.setattr("bioio_tk.jobs.describe._MOST_FILES", 10)
    found = describe(path)
    assert (found.bytes, found.files) == (None, None)
    assert "more than 10000 files" in run("info", path)[0]
    sizes = iter(range(100))
    monkeypatch.setattr("bioio_tk.jobs.describe.file_sizes", lambda _: sizes)
    describe(path)
    assert next(sizes) == 11  # no more were looked at


def test_thumbnail_of_a_store_and_of_a_url(tmp_path):
    pytest.importorskip("fsspec")
    image = np.zeros((60, 80, 3, 1, 1), "u1")
    image[10:30, 20:50] = 200
    url = "memory://test_thumbnail/a.ome.zarr"
    for place in (tmp_path / "a.ome.zarr", url):
        with BioWriter(place, image=image, pyramid=2):
            pass
        name = f"{'url' if place == url else 'folder'}.png"
        said, _ = run("thumbnail", place, tmp_path / name, "--storage-option", "anon=true")
        assert ": 80 x 60" in said
    with Image.open(tmp_path / "folder.png") as one, Image.open(tmp_path / "url.png") as other:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        np.testing.assert_array_equal(np.asarray(one)[:, :, 0] > 0, image[:, :, 0, 0, 0] > 0)


# ------------------------------------------------------------------ interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_everything_as_it_was(tmp_path, number):
    image = np.random.default_rng(0).integers(0, 60000, (2048, 2048), "u2")
    wells = tuple(Well("A", str(n), (Field("0"),)) for n in range(1, 17))
    plate = Plate("", ("A",), tuple(map(str, range(1, 17))), wells)
    for place in plate.paths:
        with BioWriter(
            tmp_path / "a.ome.zarr", image=image, group=place, plate=plate, compression="none"
        ):
            pass
    target = tmp_path / "b.ome.zarr"
    old_store(target)
    words = ["convert", tmp_path / "a.ome.zarr", target, "--series", "all", "--overwrite"]
    child = subprocess.Popen(
        [sys.executable, "-m", "bioio_tk", *words, "--compression", "gzip", "--workers", "1"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(6000):
        if (partial_path(target) / "A/2").exists():
            break
        time.sleep(0.01)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], said
    assert "is as it was before" in said
    assert listed(tmp_path) == ["a.ome.zarr", "b.ome.zarr"]
    assert zarr.open_array(target, mode="r")[:].tolist() == [7, 7, 7]


# ------------------------------------------------------------------ finish


def test_finish_on_the_command_line(tmp_path):
    path = tmp_path / "a.ome.zarr"
    image = coded((100, 130, 1, 1, 1))
    BioWriter(
        path, mode="create", shape=image.shape, dtype=image.dtype, chunks=32, pyramid=2
    ).close()
    with BioWriter(path, mode="r+") as bw:
        bw[:64, :64] = image[:64, :64]
        bw[64:, 64:] = image[64:, 64:]
    said, _ = run("finish", path, "--workers", 2)
    assert said == f"{path}: 130 x 100, 65 x 50\n"
    want = image.copy()
    want[:64, 64:] = want[64:, :64] = 0
    np.testing.assert_array_equal(pixels(path), want)
    assert listed(tmp_path) == ["a.ome.zarr"]
    _, said = run("finish", path, code=1)
    assert "no unfinished folder" in said
    assert math.prod(pixels(path, "1").shape) == 50 * 65
