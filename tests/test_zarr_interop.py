"""What we write as OME-Zarr is accepted by everybody else's checkers, and read pixel-equal.

Checkers: the official JSON schemas, ome-zarr-models, yaozarrs. Readers: zarr-python, TensorStore,
ngff-zarr, ome-zarr-py. A peer that is not installed skips its tests.
"""

from __future__ import annotations

import json
import logging

import ngff_peers
import numpy as np
import pytest
from images import DTYPES, coded, smaller
from oracles import tensorstore

from bioio_tk import BioWriter
from bioio_tk.core.plate import Acquisition, Plate

zarr = pytest.importorskip("zarr")
pytest.importorskip("tensorstore")

VERSIONS = ("0.4", "0.5")
COMPRESSIONS = ("zstd", "blosc-zstd", "blosc-lz4", "gzip", "none")
STORES = ("image", "pyramid", "sharded", "rgb", "labels", "series", "plate")
"""What is written; a plate also has labels in one of its fields."""
SHAPE = (45, 38, 3, 2, 2)
FIELDS = [f"{row}/{column}/{field}" for row in "AB" for column in "123" for field in "01"]


@pytest.fixture(autouse=True)
def silent():
    """Spare the log what ome-zarr-py says of every 0.4 image."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


def write(path, pixels, version, **more):
    options = {"chunks": 16, "ngff_version": version, "physical_size_x": (0.5, "µm"), **more}
    with BioWriter(path, image=pixels, **options) as bw:
        del bw


def made(folder, kind, version):
    """Write a store; return its path and what each of its images holds: {path: levels}."""
    path = folder / f"{kind}.ome.zarr"
    pixels = coded(SHAPE)
    if kind == "image":
        write(path, pixels, version)
        return path, {"": [pixels]}
    if kind == "rgb":
        pixels = coded((45, 38, 2, 3, 1), "u1")
        write(path, pixels, version, samples_per_pixel=3)
        return path, {"": [pixels]}
    if kind == "sharded":
        if version == "0.4":
            pytest.skip("Zarr v2 has no shards")
        write(path, pixels, version, shards=(32, 48, 2))
        return path, {"": [pixels]}
    levels = [pixels, smaller(pixels), smaller(smaller(pixels))]
    if kind == "series":
        others = [coded((9, 8 + n, 1, n + 1, 1), seed=n) for n in range(3)]
        for n, other in enumerate(others):
            write(path, other, version, group=str(n), channel_names=[f"c{i}" for i in range(n + 1)])
        return path, {str(n): [other] for n, other in enumerate(others)}
    if kind == "plate":
        plate = Plate("P1", acquisitions=(Acquisition(0, "one"),))
        found = {}
        for n, field in enumerate(FIELDS):
            found[field] = [coded((20, 18, 1, 2, 1), seed=n)]
            write(path, found[field][0], version, group=field, plate=plate)
        labels = "B/2/1/labels/cells"
        found[labels] = [coded((20, 18, 1, 1, 1), "u1")]
        colors = {"colors": {7: (255, 0, 0, 255)}}
        write(path, found[labels][0], version, group=labels, label=colors)
        return path, found
    write(path, pixels, version, pyramid=3, channel_names=["DAPI", "actin"])
    found = {"": levels}
    if kind == "labels":
        cells = coded(SHAPE, seed=9) // 4000
        label = {
            "colors": {1: (255, 0, 0, 255), 2: (0, 255, 0, 128)},
            "properties": {2: {"area": 7}},
        }
        for name in ("nuclei", "cells"):
            more = {"group": f"labels/{name}", "pyramid": 3, "downsample": "nearest"}
            write(path, cells, version, label=label, **more)
            found[f"labels/{name}"] = [cells, cells[::2, ::2], cells[::2, ::2][::2, ::2]]
    return path, found


def stored(pixels):
    """Return Y, X, Z, C, T pixels with the axes that are stored."""
    return pixels.transpose(4, 3, 2, 0, 1)


# ------------------------------------------------------------------ pixels, by those of the field


@pytest.mark.parametrize("kind", STORES)
def test_every_array_is_read_equal(tmp_path, version, kind):
    path, images = made(tmp_path, kind, version)
    for place, levels in images.items():
        group = zarr.open_group(path / place, mode="r")
        attributes = group.attrs.asdict()
        (multiscale,) = attributes.get("ome", attributes)["multiscales"]
        assert [axis["name"] for axis in multiscale["axes"]] == list("tczyx")
        assert len(multiscale["datasets"]) == len(levels)
        for dataset, pixels in zip(multiscale["datasets"], levels, strict=True):
            array = group[dataset["path"]]
            assert array.metadata.zarr_format == (2 if version == "0.4" else 3)
            assert array.dtype == pixels.dtype
            np.testing.assert_array_equal(array[...], stored(pixels))
            place_of = path / place / dataset["path"]
            np.testing.assert_array_equal(tensorstore(place_of), stored(pixels))
    if kind == "sharded":
        assert group["0"].shards == (1, 1, 2, 32, 48)
        assert group["0"].chunks == (1, 1, 1, 16, 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_pixel_types_and_compressions(tmp_path, version, dtype, compression):
    path, pixels = tmp_path / "a.ome.zarr", coded((40, 30, 2, 1, 1), dtype)
    sharded = {} if version == "0.4" else {"shards": 32}
    write(path, pixels, version, compression=compression, **sharded)
    array = zarr.open_group(path, mode="r")["0"]
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array[...], stored(pixels))
    read = tensorstore(path / "0")
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, stored(pixels))
    packed = {type(c).__name__.lower() for c in array.compressors}
    wanted = compression.split("-", maxsplit=1)[0]
    assert (not packed) if wanted == "none" else any(wanted in name for name in packed), packed


# ------------------------------------------------------------------ the checkers


def groups(path):
    """Return the attributes of every group of a store."""
    found = {}
    for file in [*path.rglob("zarr.json"), *path.rglob(".zgroup")]:
        group = zarr.open(file.parent, mode="r")
        if isinstance(group, zarr.Group):
            found[file.parent.relative_to(path).as_posix()] = group.attrs.asdict()
    return found


def with_method(attributes):
    """Return the attributes with what the strict schemas ask for even where nothing was shrunk."""
    for image in attributes.get("ome", attributes).get("multiscales", ()):
        if len(image["datasets"]) == 1 and "type" not in image:
            image.update(type="", metadata={})
    return attributes


def kind_of(attributes):
    """Return which kind of group of `ngff_peers.KINDS` these are, None for one without NGFF."""
    keys = set(attributes.get("ome", attributes))
    for key, kind in (
        ("plate", "plate"),
        ("well", "well"),
        ("image-label", "label"),
        ("multiscales", "image"),
        ("labels", "labels"),
        ("bioformats2raw.layout", "layout"),
        ("series", "series"),
    ):
        if key in keys:
            return kind
    assert not keys - {"version"}, keys
    return None


@pytest.mark.parametrize("kind", STORES)
def test_schemas_and_models_of_every_group(tmp_path, version, kind):
    pytest.importorskip("ome_zarr_models")
    pytest.importorskip("yaozarrs")
    path, images = made(tmp_path, kind, version)
    counts = {}
    for attributes in groups(path).values():
        found = kind_of(attributes)
        if found is not None:
            ngff_peers.check(with_method(attributes), version, found)
            counts[found] = counts.get(found, 0) + 1
    wanted = {
        "labels": {"image": 1, "labels": 1, "label": 2},
        "series": {"layout": 1, "series": 1, "image": 3},
        "plate": {"plate": 1, "well": 6, "image": 12, "labels": 1, "label": 1},
    }
    assert counts == wanted.get(kind, {"image": 1})
    assert len(images) == counts.get("image", 0) + counts.get("label", 0)


@pytest.mark.parametrize("kind", STORES)
def test_ome_zarr_models_accepts_the_store(tmp_path, version, kind):
    models = pytest.importorskip("ome_zarr_models")
    path, images = made(tmp_path, kind, version)
    group = zarr.open_group(path, mode="r")
    if kind == "series":  # open_ome_zarr does not try this one for 0.5
        module = pytest.importorskip(f"ome_zarr_models.v{version.replace('.', '')}.bioformats2raw")
        assert set(module.BioFormats2Raw.from_zarr(group).images) == {"0", "1", "2"}
        return
    found = models.open_ome_zarr(group, version=version)
    assert found.ome_zarr_version == version
    assert type(found).__name__ == ("HCS" if kind == "plate" else "Image")
    if kind == "plate":
        assert found.n_wells == 6
    for name in images:
        if name.startswith("labels/"):  # with colours
            module = f"ome_zarr_models.v{version.replace('.', '')}.image_label"
            label = pytest.importorskip(module).ImageLabel.from_zarr(zarr.open_group(path / name))
            dumped = json.loads(label.attributes.model_dump_json())
            entries = dumped.get("ome", dumped)["image_label"]["colors"]
            assert {e["label_value"]: e["rgba"] for e in entries} == {
                1: [255, 0, 0, 255],
                2: [0, 255, 0, 128],
            }


@pytest.mark.parametrize("kind", STORES)
def test_yaozarrs_accepts_the_store(tmp_path, version, kind):
    yaozarrs = pytest.importorskip("yaozarrs")
    path, _ = made(tmp_path, kind, version)
    assert yaozarrs.validate_zarr_store(path).ome_version() == version


# ------------------------------------------------------------------ the readers of NGFF


@pytest.mark.parametrize("kind", STORES)
def test_ngff_zarr_reads_every_image(tmp_path, version, kind):
    ngff_zarr = pytest.importorskip("ngff_zarr")
    path, images = made(tmp_path, kind, version)
    for place, levels in images.items():
        found = ngff_zarr.from_ngff_zarr(str(path / place), version=version, validate=True)
        assert len(found.images) == len(levels)
        for level, (image, pixels) in enumerate(zip(found.images, levels, strict=True)):
            assert tuple(image.dims) == tuple("tczyx")
            assert image.scale["x"] == 0.5 * 2**level
            assert image.axes_units["x"] == "micrometer"
            read = image.data.compute(scheduler="synchronous")
            np.testing.assert_array_equal(read, stored(pixels))


def test_ngff_zarr_reads_the_plate(tmp_path, version):
    hcs = pytest.importorskip("ngff_zarr.hcs")
    path, images = made(tmp_path, "plate", version)
    plate = hcs.from_hcs_zarr(str(path), validate=True)
    assert [row.name for row in plate.rows] == ["A", "B"]
    assert [column.name for column in plate.columns] == ["1", "2", "3"]
    for place, (pixels,) in images.items():
        if "labels" in place:
            continue
        row, column, field = place.split("/")
        image = plate.get_well(row, column).get_image(int(field)).images[0]
        read = image.data.compute(scheduler="synchronous")
        np.testing.assert_array_equal(read, stored(pixels))


def nodes(path):
    io = pytest.importorskip("ome_zarr.io")
    reader = pytest.importorskip("ome_zarr.reader")
    return list(reader.Reader(io.parse_url(str(path)))())


@pytest.mark.parametrize("kind", [k for k in STORES if k != "plate"])
def test_ome_zarr_py_reads_every_image(tmp_path, version, kind):
    path, images = made(tmp_path, kind, version)
    for place, levels in images.items():
        # with a label image comes the image it was made of
        name = (path / place).name
        (node,) = [n for n in nodes(path / place) if n.zarr.basename() == name]
        assert len(node.data) == len(levels)
        for data, pixels in zip(node.data, levels, strict=True):
            np.testing.assert_array_equal(data.compute(scheduler="synchronous"), stored(pixels))
        scale = node.metadata["coordinateTransformations"][0][0]["scale"]
        assert scale == [1.0, 1.0, 1.0, 1.0, 0.5]
    if kind == "labels":
        (node,) = [n for n in nodes(path) if n.zarr.basename() == "nuclei"]
        color = node.metadata["color"]
        assert color[1] == [1.0, 0.0, 0.0, 1.0]
        assert color[2] == [0.0, 1.0, 0.0, 128 / 255]


def test_ome_zarr_py_stitches_the_plate(tmp_path, version):
    path, images = made(tmp_path, "plate", version)
    seen = nodes(path)[0].data[0].compute(scheduler="synchronous")
    # the first field of each well, wells as they stand on the plate
    rows = [[stored(images[f"{row}/{column}/0"][0]) for column in "123"] for row in "AB"]
    wanted = np.concatenate([np.concatenate(wells, axis=-1) for wells in rows], axis=-2)
    np.testing.assert_array_equal(seen, wanted)
