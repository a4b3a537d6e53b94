"""What is stored when we write OME-Zarr: files, chunks, shards, levels, metadata.

Everything is looked at with zarr-python and json; the expected pixels come from NumPy.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import images
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import coded, smaller

import bioio_tk
from bioio_tk import BioReader, BioWriter
from bioio_tk.core.plate import Acquisition, Field, Plate, Well
from bioio_tk.errors import SpecError, TargetExistsError, UnsupportedError

zarr = pytest.importorskip("zarr")


def write(path, pixels, **options):
    with BioWriter(path, image=pixels, **options) as bw:
        del bw
    return path


def level(path, number=0):
    """Return a level as Y, X, Z, C, T, read by zarr-python."""
    return zarr.open_array(path / str(number), mode="r")[...].transpose(3, 4, 2, 1, 0)


def attributes(path):
    """Return what NGFF says of a group, parsed as strictly as JSON is."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    v3 = path / "zarr.json"
    if v3.exists():
        return json.loads(v3.read_text("utf-8"), parse_constant=refuse)["attributes"]["ome"]
    return json.loads((path / ".zattrs").read_text("utf-8"), parse_constant=refuse)


def files(path):
    """Return the files with pixels."""
    known = {"zarr.json", ".zarray", ".zgroup", ".zattrs", "METADATA.ome.xml"}
    return sorted(
        p.relative_to(path).as_posix()
        for p in path.rglob("*")
        if p.is_file() and p.name not in known
    )


# ------------------------------------------------------------------ chunks and shards


@pytest.mark.parametrize(
    ("shape", "dtype", "shards"),
    [
        ((100_000, 100_000), "u1", (1, 1, 1, 2048, 2048)),
        ((100_000, 100_000, 1, 4), "u2", (1, 1, 1, 4096, 4096)),
        ((250_000, 250_000), "u1", (1, 1, 1, 4096, 4096)),
        ((2048, 2048, 500, 4, 1000), "u2", (1, 1, 64, 2048, 2048)),
        ((512, 512, 1, 1, 1_000_000), "u1", (256, 1, 1, 512, 512)),
        ((300, 200_000, 200, 1, 1), "f8", (1, 1, 4, 300, 4096)),
        ((1, 1, 1, 1, 300_000), "u1", (128, 1, 1, 1, 1)),
    ],
)
def test_large_images_are_thousands_of_files(tmp_path, shape, dtype, shards):
    path = tmp_path / "a.ome.zarr"
    with BioWriter(path, shape=shape, dtype=dtype, mode="create", pyramid=True):
        pass
    group = zarr.open_group(tmp_path / "a.ome.zarr.partial", mode="r")
    assert group["0"].shards == shards
    total = 0
    for dataset in group.attrs["ome"]["multiscales"][0]["datasets"]:
        array = group[dataset["path"]]
        unit = array.shards or array.chunks
        grid = [-(-n // k) for n, k in zip(array.shape, unit, strict=True)]
        total += int(np.prod(grid))
        assert all(s % c == 0 for s, c in zip(unit, array.chunks, strict=True))
        assert np.prod(unit) * array.dtype.itemsize <= 512 << 20
        assert np.prod(array.chunks[:3]) == 1  # a plane is not read with its neighbours
        assert max(array.chunks) <= 1024
    assert total < 70_000


def test_small_images_have_no_shards(tmp_path):
    path = write(tmp_path / "a.ome.zarr", coded((1500, 1100)), pyramid=2)
    for n in (0, 1):
        array = zarr.open_array(path / str(n), mode="r")
        assert array.shards is None
    assert zarr.open_array(path / "0", mode="r").chunks == (1, 1, 1, 1024, 1024)
    assert files(path / "0") == [f"c/0/0/0/{y}/{x}" for y in (0, 1) for x in (0, 1)]


@pytest.mark.parametrize(
    ("chunks", "shards", "stored", "sharded"),
    [
        (7, None, (1, 1, 1, 7, 7), None),
        ((7, 11), False, (1, 1, 1, 7, 11), None),
        ((7, 11, 2, 2, 3), None, (3, 2, 2, 7, 11), None),
        ((7, 11, 2, 2, 3), (14, 33, 4, 2, 3), (3, 2, 2, 7, 11), (3, 2, 4, 14, 33)),
        (16, 32, (1, 1, 1, 16, 16), (1, 1, 1, 32, 32)),
        ((16, 8), (32, 8, 5, 1, 3), (1, 1, 1, 16, 8), (3, 1, 5, 32, 8)),
        ((1000, 1000, 50, 9, 9), None, (3, 2, 5, 40, 37), None),
    ],
)
def test_chunks_and_shards_as_asked_for(tmp_path, chunks, shards, stored, sharded):
    pixels = coded((40, 37, 5, 2, 3))
    path = write(tmp_path / "a.ome.zarr", pixels, chunks=chunks, shards=shards, pyramid=2)
    array = zarr.open_array(path / "0", mode="r")
    assert (array.chunks, array.shards) == (stored, sharded)
    np.testing.assert_array_equal(level(path), pixels)
    np.testing.assert_array_equal(level(path, 1), smaller(pixels))
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:], pixels)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"chunks": 16, "shards": 24}, "along Y a shard of 24 is no multiple of the chunk's 16"),
        ({"chunks": 16, "shards": (32, 40)}, "along X a shard of 40"),
        ({"chunks": (16, 16, 2), "shards": (16, 16, 3)}, "along Z a shard of 3"),
        ({"chunks": 0}, "chunks=0"),
        ({"chunks": (1, 2, 3, 4, 5, 6)}, "chunks="),
        ({"chunks": (16.5, 16)}, "chunks="),
        ({"shards": 2048, "ngff_version": "0.4"}, "shards need ngff_version='0.5'"),
        ({"ngff_version": "0.3"}, "choose one of 0.4, 0.5"),
        ({"ngff_version": "0.6"}, "choose one of 0.4, 0.5"),
        ({"predictor": True}, "no predictor"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(tmp_path, options, match):
    with pytest.raises(SpecError, match=match):
        BioWriter(tmp_path / "a.ome.zarr", shape=(100, 100, 7), dtype="u2", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shards", [False, 32])
def test_chunks_of_zeros_are_not_stored(tmp_path, shards):
    path = tmp_path / "a.ome.zarr"
    with BioWriter(path, shape=(64, 64), dtype="u2", chunks=16, shards=shards, pyramid=2) as bw:
        bw[:32, :32] = 0
        bw[40, 40] = 9
        bw[0:16, 48:64] = 5
        bw[0:16, 48:64] = 0  # was there, and is gone
    wanted = ["0/c/0/0/0/2/2", "1/c/0/0/0/1/1"]
    if shards:
        wanted = ["0/c/0/0/0/1/1", "1/c/0/0/0/0/0"]
    assert files(path) == wanted
    pixels = np.zeros((64, 64, 1, 1, 1), "u2")
    pixels[40, 40] = 9
    np.testing.assert_array_equal(level(path), pixels)
    np.testing.assert_array_equal(level(path, 1), smaller(pixels))


def test_negative_zeros_are_stored(tmp_path):
    path = write(tmp_path / "a.ome.zarr", np.full((16, 16), -0.0, "f4"))
    assert np.signbit(level(path)).all()


# ------------------------------------------------------------------ levels


def shrunk(image, factors, method):
    """Return an image shrunk by whole factors along Y, X, Z, cell by cell."""
    sizes = [-(-n // f) for n, f in zip(image.shape[:3], factors, strict=True)]
    out = np.zeros((*sizes, *image.shape[3:]), image.dtype)
    for index in np.ndindex(*out.shape):
        cell = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index[:3], factors, strict=True))
        values = [p.item() for p in image[(*cell, *index[3:])].ravel()]
        out[index] = images._joined(values, method, image.dtype.kind)
    return out


METHODS = ["mean", "nearest", "mode", "median", "max"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
@pytest.mark.parametrize("chunks", [8, (8, 8, 4), (5, 7, 3, 2)])
def test_levels_along_z(tmp_path, method, dtype, chunks):
    pixels = coded((21, 18, 9, 2, 1), dtype) if method != "mode" else coded((21, 18, 9, 2, 1)) % 3
    pixels = pixels.astype(dtype)
    path = write(
        tmp_path / "a.ome.zarr",
        pixels,
        chunks=chunks,
        pyramid=4,
        pyramid_z=True,
        downsample=method,
        physical_size_x=(500, "nm"),
        physical_size_y=(0.5, "µm"),
        physical_size_z=(1.0, "µm"),
    )
    wanted = pixels
    for n, factors in enumerate([(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]):
        wanted = shrunk(wanted, factors, method)
        if dtype == "f4":
            np.testing.assert_allclose(level(path, n), wanted, rtol=1e-6)
        else:
            np.testing.assert_array_equal(level(path, n), wanted)
    scales = [
        d["coordinateTransformations"][0]["scale"]
        for d in attributes(path)["multiscales"][0]["datasets"]
    ]
    assert [s[2] for s in scales] == [1.0, 1.0, 2.0, 4.0]
    assert [s[3] for s in scales] == [0.5, 1.0, 2.0, 4.0]
    shifts = [
        {t["type"]: t for t in d["coordinateTransformations"]}.get("translation")
        for d in attributes(path)["multiscales"][0]["datasets"]
    ]
    if method == "nearest":
        assert shifts == [None] * 4
    else:  # the centre of the first cell
        assert [s and s["translation"][2:] for s in shifts] == [
            None,
            [0, 0.25, 250],
            [0.5, 0.75, 750],
            [1.5, 1.75, 1750],
        ]


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5)),
    chunks=st.tuples(st.integers(3, 20), st.integers(3, 20), st.integers(1, 3)),
    shards=st.one_of(st.just(False), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    z=st.booleans(),
    threads=st.integers(1, 3),
    data=st.data(),
)
def test_any_writes_give_the_levels_of_the_last_pixels(
    tmp_path_factory, shape, chunks, shards, z, threads, data
):
    """Regions in any order, one over the other, also after their pyramid was made."""
    path = tmp_path_factory.mktemp("any") / "a.ome.zarr"
    full = (*shape, 1, 1)
    kept = tuple(min(n, c) for n, c in zip(shape, chunks, strict=True))
    if shards:
        shards = (kept[0] * shards[0], kept[1] * shards[1])
    wanted = np.zeros(full, "u2")
    with BioWriter(
        path,
        threads,
        shape=full,
        dtype="u2",
        chunks=kept,
        shards=shards,
        pyramid=3,
        pyramid_z=z,
    ) as bw:
        for seed in range(data.draw(st.integers(1, 4))):
            box = tuple(
                slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))))
                for n in shape
            )
            block = coded(full, seed=seed)[box]
            if block.size:
                wanted[box] = block
                bw[box] = block
    levels = zarr.open_group(path, mode="r").attrs["ome"]["multiscales"][0]["datasets"]
    factors = (2, 2, 2) if z else (2, 2, 1)  # pixels of unknown size are cubes
    for n in range(len(levels)):
        np.testing.assert_array_equal(level(path, n), wanted)
        wanted = shrunk(wanted, factors, "mean")


def test_threads_write_parts_of_the_same_chunks(tmp_path):
    path = tmp_path / "a.ome.zarr"
    pixels = coded((96, 80, 4, 2, 1))
    boxes = list(product(range(0, 96, 12), range(0, 80, 10), range(4), range(2)))
    np.random.default_rng(3).shuffle(boxes)

    def put(box):
        y, x, z, c = (int(n) for n in box)
        key = (slice(y, y + 12), slice(x, x + 10), z, c)
        bw[key] = pixels[key][:, :, None, None]

    with (
        BioWriter(path, shape=pixels.shape, dtype="u2", chunks=(32, 32, 2), shards=(64, 64, 4),
                  pyramid=3) as bw,
        ThreadPoolExecutor(4) as pool,
    ):  # fmt: skip
        for _ in pool.map(put, boxes):
            pass
    np.testing.assert_array_equal(level(path), pixels)
    np.testing.assert_array_equal(level(path, 1), smaller(pixels))
    np.testing.assert_array_equal(level(path, 2), smaller(smaller(pixels)))


# ------------------------------------------------------------------ metadata


def windows(path):
    return [channel["window"] for channel in attributes(path)["omero"]["channels"]]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_windows_show_most_pixels(tmp_path, version):
    rng = np.random.default_rng(4)
    pixels = rng.normal(1000, 100, (200, 150, 1, 2)).clip(0).astype("u2")
    pixels[..., 1] += 5000
    pixels[0, 0] = 65535  # one hot pixel does not darken all others
    path = write(tmp_path / "a.ome.zarr", pixels, ngff_version=version)
    for c, window in enumerate(windows(path)):
        assert (window["min"], window["max"]) == (0, 65535)
        low, least, most, high = np.percentile(pixels[..., c], [0.01, 1, 99, 99.99])
        assert low <= window["start"] <= least
        assert most <= window["end"] <= high


@pytest.mark.parametrize("dtype", images.DTYPES)
@pytest.mark.parametrize("value", [0, 1])
def test_windows_of_a_constant_are_not_empty(tmp_path, dtype, value):
    path = write(tmp_path / "a.ome.zarr", np.full((20, 30), value, dtype))
    (window,) = windows(path)
    assert window["min"] <= window["start"] < window["end"] <= window["max"]


@pytest.mark.parametrize("pixels", ["some", "all"])
def test_windows_of_floats_with_nan(tmp_path, pixels):
    values = np.linspace(-2, 3, 600, dtype="f4").reshape(20, 30)
    values[3:5] = [[np.nan], [np.inf]]
    if pixels == "all":
        values[:] = np.nan
    path = write(tmp_path / "a.ome.zarr", values)
    (window,) = windows(path)
    if pixels == "all":
        assert window["start"] < window["end"]
    else:
        assert (window["min"], window["max"]) == (-2, 3)
        assert -2 <= window["start"] < window["end"] <= 3
    np.testing.assert_array_equal(level(path)[:, :, 0, 0, 0], values)


@pytest.mark.parametrize(
    ("size", "scale", "unit"),
    [
        ((0.5, "µm"), 0.5, "micrometer"),
        ((65, "nm"), 65, "nanometer"),
        ((1, "mm"), 1, "millimeter"),
        ((2, "Å"), 2, "angstrom"),
        ((2, "pixel"), 2, None),
        ((1, "thou"), 25.4, "micrometer"),  # NGFF has no word for it
    ],
)
def test_sizes_and_units(tmp_path, size, scale, unit):
    path = write(
        tmp_path / "a.ome.zarr",
        coded((9, 8, 1, 1, 2)),
        physical_size_x=size,
        time_increment=(2, "min"),
    )
    (image,) = attributes(path)["multiscales"]
    axes = {axis["name"]: axis for axis in image["axes"]}
    (steps,) = image["datasets"][0]["coordinateTransformations"]
    assert axes["x"].get("unit") == unit
    assert steps["scale"][4] == pytest.approx(scale)
    assert steps["scale"][0] == 2
    assert axes["t"]["unit"] == "minute"
    assert "unit" not in axes["y"]
    assert steps["scale"][3] == 1


def test_position_is_carried_over(tmp_path):
    source = tmp_path / "source.zarr"
    array = zarr.create_array(source / "0", shape=(8, 8), chunks=(8, 8), dtype="u1")
    array[...] = 1
    axes = [{"name": k, "type": "space", "unit": "micrometer"} for k in "yx"]
    steps = [
        {"type": "scale", "scale": [0.5, 0.25]},
        {"type": "translation", "translation": [7.0, -8.0]},
    ]
    multiscale = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    zarr.create_group(
        source, attributes={"ome": {"version": "0.5", "multiscales": [multiscale]}}, overwrite=False
    )
    with BioReader(source) as br, BioWriter(tmp_path / "like.ome.zarr", like=br) as bw:
        bw[:] = br[:]
    bioio_tk.convert(source, tmp_path / "converted.ome.zarr")
    for name in ("like", "converted"):
        (image,) = attributes(tmp_path / f"{name}.ome.zarr")["multiscales"]
        scale, moved = image["datasets"][0]["coordinateTransformations"]
        assert scale["scale"] == [1, 1, 1, 0.5, 0.25]
        assert moved["translation"] == [0, 0, 0, 7, -8]


def test_ome_xml_is_kept(tmp_path):
    from ome_types import OME
    from ome_types.model import ROI, Channel, Image, Instrument, Objective, Pixels, Point, ROIRef

    roi = ROI(id="ROI:0", name="nucleus", union=[Point(id="Shape:0", x=3, y=4)])
    pixels = Pixels(
        id="Pixels:0", dimension_order="XYZCT", size_x=8, size_y=9, size_z=1, size_c=1, size_t=1,
        type="uint16", channels=[Channel(id="Channel:0:0", name="DAPI", emission_wavelength=461)],
        tiff_data_blocks=[{}],
    )  # fmt: skip
    ome = OME(
        images=[Image(id="Image:0", pixels=pixels, roi_refs=[ROIRef(id="ROI:0")])],
        instruments=[
            Instrument(
                id="Instrument:0",
                objectives=[Objective(id="Objective:0", nominal_magnification=63)],
            )
        ],
        rois=[roi],
    )
    source = write(tmp_path / "a.ome.tif", coded((9, 8)), metadata=ome)
    bioio_tk.convert(source, tmp_path / "b.ome.zarr")
    root = ET.parse(tmp_path / "b.ome.zarr/OME/METADATA.ome.xml").getroot()
    ns = {"o": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    assert root.find("o:Instrument/o:Objective", ns).get("NominalMagnification") == "63.0"
    assert root.find("o:ROI", ns).get("Name") == "nucleus"
    assert root.find("o:Image/o:Pixels/o:Channel", ns).get("EmissionWavelength") == "461.0"
    assert root.find("o:Image/o:Pixels", ns).get("SizeY") == "9"
    with BioReader(tmp_path / "b.ome.zarr") as br:
        assert br.metadata.instruments[0].objectives[0].nominal_magnification == 63


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_every_document_is_strict_json(tmp_path, version):
    path = tmp_path / "a.ome.zarr"
    pixels = np.full((20, 18), np.nan, "f4")
    write(path, pixels, ngff_version=version, name='Ö "1"\n', channel_names=["µ\\"])
    label = {"properties": {1: {"area": float("nan"), "mean": np.float32(np.inf)}}}
    write(
        path, coded((20, 18), "u1"), group="labels/ä", label=label, ngff_version=version
    )  # fmt: skip

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    names = {"zarr.json", ".zarray", ".zattrs", ".zgroup"}
    found = [p for p in path.rglob("*") if p.name in names]
    assert len(found) >= 6
    for file in found:
        json.loads(file.read_text("utf-8"), parse_constant=refuse)
    assert attributes(path)["multiscales"][0]["name"] == 'Ö "1"\n'
    assert attributes(path)["omero"]["channels"][0]["label"] == "µ\\"


# ------------------------------------------------------------------ several images in a store


def test_series_are_listed_in_the_order_they_came(tmp_path):
    path = tmp_path / "a.ome.zarr"
    for n, name in enumerate(("1", "0", "mosaic")):
        write(path, coded((9, 8), seed=n), group=name)
    assert attributes(path) == {"version": "0.5", "bioformats2raw.layout": 3}
    assert attributes(path / "OME")["series"] == ["1", "0", "mosaic"]
    root = ET.parse(path / "OME/METADATA.ome.xml").getroot()
    assert len([e for e in root if e.tag.endswith("Image")]) == 3
    write(path, coded((9, 8), seed=9), group="0", overwrite=True)
    assert attributes(path / "OME")["series"] == ["1", "0", "mosaic"]
    np.testing.assert_array_equal(level(path / "0")[:, :, 0, 0, 0], coded((9, 8), seed=9))


def test_plate_grows_field_by_field(tmp_path):
    path = tmp_path / "a.ome.zarr"
    plate = Plate(
        "P1",
        rows=("A", "B"),
        columns=("1", "2", "10"),
        wells=(Well("B", "2", (Field("0", 1), Field("1", 2))),),
        acquisitions=(Acquisition(1, "first"), Acquisition(2, "second")),
    )
    for place in ("B/2/1", "A/10/0", "B/2/0"):
        write(path, coded((9, 8)), group=place, plate=plate)
    write(path, coded((9, 8)), group="C/3/0")  # beyond what the plate was said to have
    said = attributes(path)["plate"]
    assert said["name"] == "P1"
    assert [r["name"] for r in said["rows"]] == ["A", "B", "C"]
    assert [c["name"] for c in said["columns"]] == ["1", "2", "3", "10"]
    assert [(w["path"], w["rowIndex"], w["columnIndex"]) for w in said["wells"]] == [
        ("A/10", 0, 3),
        ("B/2", 1, 1),
        ("C/3", 2, 2),
    ]
    assert [(a["id"], a["name"]) for a in said["acquisitions"]] == [(1, "first"), (2, "second")]
    assert said["field_count"] == 2
    assert attributes(path / "B/2")["well"]["images"] == [
        {"acquisition": 1, "path": "0"},
        {"acquisition": 2, "path": "1"},
    ]


def test_labels_are_added_to_a_finished_image(tmp_path):
    path = write(tmp_path / "a.ome.zarr", coded((20, 18)))
    before = (path / "zarr.json").read_bytes()
    for name in ("nuclei", "cells"):
        write(path, coded((20, 18), "u4") % 5, group=f"labels/{name}", downsample="nearest")
    assert (path / "zarr.json").read_bytes() == before
    assert attributes(path / "labels")["labels"] == ["nuclei", "cells"]
    assert attributes(path / "labels/cells")["image-label"]["source"] == {"image": "../../"}
    with pytest.raises(TargetExistsError):
        BioWriter(path, image=coded((20, 18)), group="labels/cells")
    with pytest.raises(SpecError, match="whole numbers"):
        write(path, coded((20, 18), "f4"), group="labels/wrong")
    assert attributes(path / "labels")["labels"] == ["nuclei", "cells"]
    assert sorted(p.name for p in (path / "labels").iterdir()) == ["cells", "nuclei", "zarr.json"]


@pytest.mark.parametrize("group", ["a/b", "../x", "a/../b/c", "labels/a/b", "A/1/0/4", "x\\y"])
def test_groups_that_are_none(tmp_path, group):
    with pytest.raises(SpecError, match="group="):
        BioWriter(tmp_path / "a.ome.zarr", shape=(9, 8), dtype="u1", group=group)
    assert list(tmp_path.iterdir()) == []


def test_groups_where_there_can_be_none(tmp_path):
    for name in ("a.ozx", "a.ome.zarr.zip"):
        with pytest.raises(UnsupportedError, match="packed"):
            BioWriter(tmp_path / name, shape=(9, 8), dtype="u1", group="0")
    with pytest.raises(UnsupportedError, match="OME-Zarr"):
        BioWriter(tmp_path / "a.ome.tif", shape=(9, 8), dtype="u1", group="0")
    with pytest.raises(UnsupportedError, match="folder"):
        BioWriter("memory://a.ome.zarr", shape=(9, 8), dtype="u1", group="0")
    folder = tmp_path / "b.ome.zarr"
    folder.mkdir()
    (folder / "thesis.doc").write_text("x")
    with pytest.raises(SpecError, match="no Zarr store"):
        BioWriter(folder, shape=(9, 8), dtype="u1", group="0")
    assert [p.name for p in folder.iterdir()] == ["thesis.doc"]


@pytest.mark.parametrize("group", ["B-1/1/0", "B/1 a/0", "B/1/field_0"])
def test_names_that_no_plate_has(tmp_path, group):
    path = write(tmp_path / "a.ome.zarr", coded((9, 8)), group="A/1/0")
    before = sorted(path.rglob("*"))
    with pytest.raises(SpecError, match="letters and digits only"):
        BioWriter(path, shape=(9, 8), dtype="u1", group=group)
    assert sorted(path.rglob("*")) == before


def test_labels_of_no_image(tmp_path):
    path = write(tmp_path / "a.ome.zarr", coded((9, 8)), group="A/1/0")
    for group in ("labels/cells", "A/1/1/labels/cells"):
        with pytest.raises(SpecError, match="no image"):
            BioWriter(path, shape=(9, 8), dtype="u1", group=group)
    write(path, coded((9, 8), "u1"), group="A/1/0/labels/cells")
    assert attributes(path / "A/1/0/labels")["labels"] == ["cells"]
    with BioReader(path) as br, br.labels["cells"] as labels:
        np.testing.assert_array_equal(labels[:], coded((9, 8), "u1"))


def test_what_is_added_has_the_version_of_the_store(tmp_path):
    path = write(tmp_path / "a.ome.zarr", coded((9, 8)), ngff_version="0.4")
    write(path, coded((9, 8), "u1"), group="labels/cells")
    labels = zarr.open_group(path, mode="r", zarr_format=2)["labels/cells/0"]
    np.testing.assert_array_equal(labels[0, 0, 0], coded((9, 8), "u1"))


def test_labels_have_the_levels_of_their_image(tmp_path):
    """https://ngff.openmicroscopy.org/0.5/#labels-md: as many as the original image."""
    path = write(tmp_path / "a.ome.zarr", coded((64, 64)), pyramid=3)
    write(path, coded((64, 64), "u1"), group="labels/cells")
    assert len(attributes(path / "labels/cells")["multiscales"][0]["datasets"]) == 3


def test_an_error_in_a_group_leaves_the_store_as_it_was(tmp_path):
    path = tmp_path / "a.ome.zarr"

    def broken(group):
        with BioWriter(path, shape=(9, 8), dtype="u1", group=group) as bw:
            bw[0, 0] = 1
            bw[0, 1] = 1 // 0

    def fail(group):
        with pytest.raises(ZeroDivisionError):
            broken(group)

    fail("0")
    assert list(tmp_path.iterdir()) == []
    write(path, coded((9, 8)), group="A/1/0")
    before = sorted(path.rglob("*"))
    fail("A/1/1")
    fail("B/1/0")
    assert sorted(path.rglob("*")) == before


@pytest.mark.parametrize("method", ["mean", "median"])
def test_levels_of_labels_invent_no_labels(tmp_path, method):
    path = write(tmp_path / "a.ome.zarr", coded((64, 64)), pyramid=2)
    labels = coded((64, 64), "u2") % 3 * 100
    with pytest.raises(SpecError, match="'mode' or 'nearest'"):
        write(path, labels, group="labels/a", pyramid=2, downsample=method)
    write(path, labels, group="labels/a", pyramid=2, downsample="mode")
    assert set(np.unique(level(path / "labels/a", 1))) <= {0, 100, 200}
    write(path, labels, group="labels/b", downsample=method, pyramid=1)  # nothing to shrink


# ------------------------------------------------------------------ packed


@pytest.mark.parametrize(
    ("name", "version"), [("a.ozx", "0.5"), ("a.ome.zarr.zip", "0.5"), ("a.zarr.zip", "0.4")]
)
def test_packed(tmp_path, name, version):
    pixels = coded((50, 40, 2, 2, 1))
    path = write(tmp_path / name, pixels, chunks=16, pyramid=2, ngff_version=version)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        infos = packed.infolist()
        assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
        assert infos[0].filename in ("zarr.json", ".zattrs", ".zgroup")
        assert len({info.filename for info in infos}) == len(infos)
    with zarr.storage.ZipStore(path, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        np.testing.assert_array_equal(group["0"][...].transpose(3, 4, 2, 1, 0), pixels)
        np.testing.assert_array_equal(group["1"][...].transpose(3, 4, 2, 1, 0), smaller(pixels))
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:].reshape(pixels.shape), pixels)


# ------------------------------------------------------------------ examples

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_example_of_a_cluster_job(tmp_path):
    job = runpy.run_path(str(EXAMPLES / "cluster_job.py"))
    job["work"].__globals__.update(ROWS=64, CHUNK=32)
    pixels = coded((200, 70, 1, 2, 1))
    source = write(tmp_path / "in.ome.tif", pixels)
    target = tmp_path / "out.ome.zarr"
    job["main"]("create", source, target)
    for number in (2, 0, 1):
        job["main"]("work", source, target, str(number), "3")
    assert not target.exists()
    job["main"]("finish", source, target)
    np.testing.assert_array_equal(level(target), np.clip(pixels, 100, None) - 100)


def test_example_of_labels(tmp_path):
    pixels = coded((300, 280, 2, 2, 1))
    path = write(tmp_path / "a.ome.zarr", pixels, pyramid=2)
    runpy.run_path(str(EXAMPLES / "add_labels.py"))["main"](path)
    smallest = level(path, 1)[:, :, :, 0, 0]
    edges = np.percentile(smallest, [50, 75, 90, 97])
    wanted = sum((pixels[:, :, :, :1] >= edge).astype("u1") for edge in edges)
    labels = path / "labels/brightness"
    np.testing.assert_array_equal(level(labels), wanted)
    assert len(attributes(labels)["multiscales"][0]["datasets"]) == 2
    assert [c["label-value"] for c in attributes(labels)["image-label"]["colors"]] == [1, 2, 3, 4]


# ------------------------------------------------------------------ memory


def test_memory_does_not_grow_with_the_image(tmp_path):
    """Whole rows of an image, not aligned with chunks: 400 MB of pixels in sharded chunks."""
    code = """
        import resource, sys
        import numpy as np
        from bioio_tk import BioWriter
        size = int(sys.argv[2])
        rows = np.random.default_rng(1).integers(0, 255, (100, 10_000), "u1")
        options = dict(dtype="u1", chunks=256, shards=1024, pyramid=True, compression="none")
        with BioWriter(sys.argv[1], 2, shape=(size, 10_000), **options) as bw:
            for y in range(0, size, 100):
                bw[y:y + 100] = rows
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    """

    def peak(size):
        args = [sys.executable, "-c", textwrap.dedent(code), tmp_path / f"{size}.ome.zarr", size]
        done = subprocess.run(map(str, args), capture_output=True, text=True, check=True)
        return int(done.stdout)

    small, large = peak(4_000), peak(40_000)
    assert large - small < 60e6, (small, large)
