"""Stores that others have written: every version, layout and oddity of OME-Zarr and plain Zarr.

They are made here by zarr-python, ngff-zarr and ome-zarr-py; what must come out is NumPy's.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import coded, picked

from bioio_tk import BioReader
from bioio_tk.backends._store import FolderStore
from bioio_tk.errors import DamagedFileError, SpecError, UnknownFormatError, UnsupportedError

zarr = pytest.importorskip("zarr")

VERSIONS = ("0.1", "0.2", "0.3", "0.4", "0.5")
KINDS = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def write(path, pixels, v=3, **options):
    """Write one array with zarr-python, in chunks that do not fit it."""
    options = {"chunks": tuple(max(1, n // 2 + 1) for n in pixels.shape), **options}
    array = zarr.create_array(
        path, shape=pixels.shape, dtype=pixels.dtype, zarr_format=v, overwrite=True, **options
    )
    array[...] = pixels


def describe(path, attributes, v=3):
    """Write the metadata of a group; attributes of 0.5 go under ``ome``."""
    path.mkdir(parents=True, exist_ok=True)
    if v == 3:
        wrapped = {"ome": {"version": "0.5", **attributes}} if attributes else {}
        document = {"zarr_format": 3, "node_type": "group", "attributes": wrapped}
        (path / "zarr.json").write_text(json.dumps(document))
    else:
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(attributes))


def multiscales(axes="tczyx", paths=("0",), version="0.5", **more):
    """Return the multiscales of an image; axes as text, or as they shall stand there."""
    image = {"datasets": [{"path": path} for path in paths], **more}
    if version != "0.5":
        image["version"] = version
    if version == "0.3":
        image["axes"] = list(axes)
    elif version in ("0.4", "0.5"):
        named = [{"name": k, "type": KINDS[k]} for k in axes] if isinstance(axes, str) else axes
        image["axes"] = named
        for dataset in image["datasets"]:
            scale = {"type": "scale", "scale": [1.0] * len(axes)}
            dataset.setdefault("coordinateTransformations", [scale])
    return [image]


def image(path, pixels, axes="tczyx", version="0.5", **options):
    """Write an image of one level."""
    v = 3 if version == "0.5" else 2
    write(path / "0", pixels, v, **options)
    describe(path, {"multiscales": multiscales(axes, version=version)}, v)
    return path


def yxzct(pixels, axes):
    """Return an array with named axes as Y, X, Z, C, T."""
    for axis in "yxzct":
        if axis not in axes:
            pixels, axes = pixels[..., None], axes + axis
    return pixels.transpose([axes.index(axis) for axis in "yxzct"])


def seen(path, **options):
    """Return all pixels as Y, X, Z, C, T."""
    with BioReader(path, **options) as br:
        return br[:].reshape(br.shape)


# ------------------------------------------------------------------ versions and axes


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version(tmp_path, version):
    pixels = coded((2, 3, 4, 21, 18))
    path = image(tmp_path / "a.zarr", pixels, version=version)
    np.testing.assert_array_equal(seen(path), yxzct(pixels, "tczyx"))
    with BioReader(path) as br:
        assert br.details["ngff_version"] == version
        assert br.details["zarr_format"] == (3 if version == "0.5" else 2)
        assert br.notes == ()


@pytest.mark.parametrize("how", ["0.3", "0.4", "0.5", "dims", "dimension_names"])
@pytest.mark.parametrize("ndim", [2, 3, 4, 5])
def test_axes_in_every_order(tmp_path, ndim, how):
    pixels = coded((2, 3, 4, 5, 6)[:ndim])
    path = tmp_path / "a.zarr"
    v = 2 if how in ("0.3", "0.4") else 3
    write(path / "0", pixels, v)
    for letters in itertools.permutations("tczyx", ndim):
        axes = "".join(letters)
        if not {"x", "y"} <= set(axes):
            continue
        if how == "dims":
            got = seen(path / "0", dims=axes.upper())
        elif how == "dimension_names":
            document = json.loads((path / "0/zarr.json").read_text())
            document["dimension_names"] = list(axes)
            (path / "0/zarr.json").write_text(json.dumps(document))
            got = seen(path / "0")
        else:
            describe(path, {"multiscales": multiscales(axes, version=how)}, v)
            got = seen(path)
        np.testing.assert_array_equal(got, yxzct(pixels, axes), err_msg=axes)


@pytest.mark.parametrize(
    ("axes", "means"),
    [
        (["Time", "Channel", "Depth", "Row", "Col"], "tczyx"),
        ([("frame", "time"), ("band", "channel"), ("y", "space"), ("x", "space")], "tcyx"),
        ([("a", "space"), ("b", "space"), ("c", "channel")], "yxc"),
        ([("p", "space"), ("q", "space"), ("r", "space")], "zyx"),
        ([("lambda", "channel"), ("q", "space"), ("x", "space")], "cyx"),
    ],
)
def test_axes_of_odd_names(tmp_path, axes, means):
    pixels = coded((2, 3, 4, 5, 6)[: len(axes)])
    named = [{"name": a} if isinstance(a, str) else {"name": a[0], "type": a[1]} for a in axes]
    path = image(tmp_path / "a.zarr", pixels, named)
    np.testing.assert_array_equal(seen(path), yxzct(pixels, means))


def test_axis_nobody_knows(tmp_path):
    named = [{"name": "phase", "type": "angle"}, *({"name": k, "type": "space"} for k in "yx")]
    path = image(tmp_path / "a.zarr", coded((2, 9, 8)), named)
    np.testing.assert_array_equal(seen(path), yxzct(coded((2, 9, 8)), "cyx"))
    with BioReader(path) as reader:
        assert reader.notes == ("axis 'phase' (type angle) is taken as C",)
    two = [{"name": "tilt", "type": "angle"}, *named]
    with pytest.raises(UnsupportedError, match=r"'tilt'.*dims="):
        BioReader(image(tmp_path / "c.zarr", coded((3, 2, 9, 8)), two))
    np.testing.assert_array_equal(seen(path, dims="TYX"), yxzct(coded((2, 9, 8)), "tyx"))
    single = image(tmp_path / "b.zarr", coded((1, 9, 8)), named)
    np.testing.assert_array_equal(seen(single), yxzct(coded((1, 9, 8))[0], "yx"))


def test_dims_that_do_not_fit(tmp_path):
    path = image(tmp_path / "a.zarr", coded((2, 9, 8)), "zyx")
    for dims in ("YX", "ZYXC", "ZZYX", "QYX"):
        with pytest.raises(SpecError, match=dims):
            BioReader(path, dims=dims)


# ------------------------------------------------------------------ how arrays are stored


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<i2", ">f4", ">f8", "<u8", "bool", ">c8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("separator", [".", "/"])
def test_zarr_v2(tmp_path, dtype, order, separator):
    pixels = coded((2, 21, 18), np.dtype(dtype).newbyteorder("=").str).astype(dtype)
    path = tmp_path / "a.zarr"
    encoding = {"name": "v2", "separator": separator}
    write(path / "full/res", pixels, 2, order=order, chunk_key_encoding=encoding)
    described = multiscales("cyx", ("full/res",), "0.4")
    describe(path, {"multiscales": described}, 2)
    got = seen(path)
    assert got.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(got, yxzct(pixels, "cyx"))


@pytest.mark.parametrize("name", ["default", "v2"])
@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("endian", ["big", "little"])
def test_zarr_v3(tmp_path, name, separator, endian):
    pixels = coded((2, 21, 18))
    path = image(
        tmp_path / "a.zarr",
        pixels,
        "zyx",
        chunk_key_encoding={"name": name, "separator": separator},
        serializer=zarr.codecs.BytesCodec(endian=endian),
        filters=[zarr.codecs.TransposeCodec(order=(2, 0, 1))],
    )
    np.testing.assert_array_equal(seen(path), yxzct(pixels, "zyx"))


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("u2", 0), ("u2", 7), ("i4", -1), ("f4", np.nan), ("f8", -np.inf), ("bool", True)],
)
def test_missing_chunks_hold_the_fill_value(tmp_path, v, dtype, fill):
    wanted = np.full((20, 30), fill, dtype)
    path = tmp_path / "a.zarr"
    more = {"shards": (16, 16)} if v == 3 else {}
    array = zarr.create_array(
        path / "0", shape=(20, 30), chunks=(8, 8), dtype=dtype, fill_value=fill, zarr_format=v,
        **more,
    )  # fmt: skip
    wanted[8:16, 16:24] = array[8:16, 16:24] = 1
    version = "0.5" if v == 3 else "0.4"
    describe(path, {"multiscales": multiscales("yx", version=version)}, v)
    np.testing.assert_array_equal(seen(path)[:, :, 0, 0, 0], wanted)
    with BioReader(path) as br:  # another way: parts of chunks, and one that is not there
        np.testing.assert_array_equal(br[3:18, 5:27], wanted[3:18, 5:27])
        np.testing.assert_array_equal(br[0:3, 0:3], wanted[0:3, 0:3])


@pytest.mark.parametrize("v", [2, 3])
def test_chunk_larger_than_the_image(tmp_path, v):
    pixels = coded((7, 5))
    path = image(
        tmp_path / "a.zarr", pixels, "yx", version="0.5" if v == 3 else "0.4", chunks=(64, 100)
    )
    np.testing.assert_array_equal(seen(path)[:, :, 0, 0, 0], pixels)


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_consolidated_metadata_change_nothing(tmp_path, v):
    pixels = coded((2, 9, 8))
    path = image(tmp_path / "a.zarr", pixels, "zyx", version="0.5" if v == 3 else "0.4")
    zarr.consolidate_metadata(path)
    np.testing.assert_array_equal(seen(path), yxzct(pixels, "zyx"))
    assert zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None


# ------------------------------------------------------------------ arrays without NGFF


@pytest.mark.parametrize("v", [2, 3])
def test_plain_array(tmp_path, v):
    pixels = coded((3, 2, 9, 8))
    write(tmp_path / "a.zarr", pixels, v)
    np.testing.assert_array_equal(seen(tmp_path / "a.zarr"), yxzct(pixels, "czyx"))
    with BioReader(tmp_path / "a.zarr") as br:
        assert any("CZYX" in note and "dims=" in note for note in br.notes)


@pytest.mark.parametrize("v", [2, 3])
def test_group_of_arrays(tmp_path, v):
    path = tmp_path / "a.zarr"
    zarr.create_group(path, zarr_format=v)
    arrays = {name: coded((9, n), seed=n) for name, n in (("10", 5), ("2", 6), ("a", 7))}
    for name, pixels in arrays.items():
        write(path / name, pixels, v)
    with BioReader(path) as br:
        assert br.series_names == ["2", "a", "10"]
        assert any("no OME metadata" in note for note in br.notes)
        names = br.series_names
    for number, name in enumerate(names):
        np.testing.assert_array_equal(seen(path, series=number)[:, :, 0, 0, 0], arrays[name])


def test_group_of_images_and_group_of_nothing(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_group(path, zarr_format=3)
    with pytest.raises(UnknownFormatError, match="no OME"):
        BioReader(path)
    for name in ("left", "right"):
        image(path / name, coded((9, 8), seed=len(name)), "yx")
    with BioReader(path) as br:
        assert br.n_series == 2
    np.testing.assert_array_equal(seen(path, series=1)[:, :, 0, 0, 0], coded((9, 8), seed=5))


# ------------------------------------------------------------------ what the metadata say


def scale(*values):
    return {"type": "scale", "scale": list(values)}


def translation(*values):
    return {"type": "translation", "translation": list(values)}


UNITS = [
    {"name": "t", "type": "time", "unit": "minute"},
    {"name": "z", "type": "space", "unit": "nanometer"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]


def test_sizes_of_dataset_and_group_are_multiplied(tmp_path):
    path = image(tmp_path / "a.zarr", coded((2, 3, 8, 8)), UNITS)
    described = multiscales(UNITS)
    steps = [scale(1, 300, 0.5, 0.25), translation(0, 30, 4, 6)]
    described[0]["datasets"][0]["coordinateTransformations"] = steps
    described[0]["coordinateTransformations"] = [scale(1.5, 2, 1, 2), translation(0, 5, 0, 1)]
    describe(path, {"multiscales": described})
    with BioReader(path) as br:
        assert br.physical_size_z == (600, "nm")
        assert br.physical_size_y == (0.5, "µm")
        assert br.physical_size_x == (0.5, "µm")
        assert br.time_increment == (1.5, "min")
        assert br._spec().position == ((13, "µm"), (4, "µm"), (65, "nm"))  # x, y, z
        assert br.pixel_size("µm") == (0.5, 0.5, pytest.approx(0.6))


def test_sizes_without_a_unit_are_of_no_length(tmp_path):
    path = image(tmp_path / "a.zarr", coded((8, 8)), "yx")
    with BioReader(path) as br:  # a scale of 1 says nothing
        assert br.physical_size_x == (None, "µm")
    described = multiscales("yx")
    described[0]["datasets"][0]["coordinateTransformations"] = [scale(0.5, 0.25)]
    describe(path, {"multiscales": described})
    with BioReader(path) as br:
        assert br.physical_size_x[0] == 0.25
        assert br.pixel_size("µm").x is None
        assert any("no known unit" in note for note in br.notes)


def test_channels(tmp_path):
    path = image(tmp_path / "a.zarr", coded((3, 8, 8)), "cyx")
    channels = [
        {"label": "DAPI", "color": "0000FF", "window": {"min": 0, "max": 9, "start": 0, "end": 9}},
        {"label": "GFP", "color": "#00ff0080"},
    ]
    described = {"multiscales": multiscales("cyx", name="cells"), "omero": {"channels": channels}}
    describe(path, described)
    with BioReader(path) as br:
        assert br.name == "cells"
        assert br.channel_names == ["DAPI", "GFP", None]
        assert br.channel_colors == [(0, 0, 255, 255), (0, 255, 0, 128), None]
        assert any("2 channels, the image has 3" in note for note in br.notes)


# ------------------------------------------------------------------ levels


@pytest.mark.parametrize("v", [2, 3])
def test_levels(tmp_path, v):
    path = tmp_path / "a.zarr"
    shapes = [(2, 9, 62, 51), (2, 5, 31, 26), (2, 3, 16, 13), (2, 2, 5, 4)]
    version = "0.5" if v == 3 else "0.4"
    names = ["s0", "level/one", "2", "x"]
    axes = [{"name": "c", "type": "channel"}, *UNITS[1:]]
    levels = [coded(shape, seed=n) for n, shape in enumerate(shapes)]
    described = multiscales(axes, names, version)
    for name, pixels, dataset in zip(names, levels, described[0]["datasets"], strict=True):
        write(path / name, pixels, v)
        f = shapes[0][2] / pixels.shape[2]
        dataset["coordinateTransformations"] = [scale(1, 100 * f, 0.5 * f, 0.5 * f)]
    describe(path, {"multiscales": described}, v)
    with BioReader(path) as br:
        assert br.level_shapes == [(y, x, z, c, 1) for c, z, y, x in shapes]
    widths = []
    for n, pixels in enumerate(levels):
        np.testing.assert_array_equal(seen(path, level=n), yxzct(pixels, "czyx"))
        with BioReader(path, level=n) as br:
            assert br.details["path"] == names[n]
            widths.append(br.physical_size_x[0])
            assert br.level == n
    assert widths[:3] == [0.5, 1.0, 2.0]
    assert widths[3] > widths[2]
    np.testing.assert_array_equal(seen(path, level=-1), yxzct(levels[-1], "czyx"))
    with pytest.raises(SpecError, match="level=4"):
        BioReader(path, level=4)


def test_twelve_levels_in_the_order_of_their_numbers(tmp_path):
    path = tmp_path / "a.zarr"
    sizes = [40 - 3 * n for n in range(12)]
    for n, size in enumerate(sizes):
        write(path / str(n), coded((size, size), seed=n))
    describe(path, {"multiscales": multiscales("yx", [str(n) for n in range(12)])})
    with BioReader(path) as br:
        assert br.levels == 12
        assert [shape[0] for shape in br.level_shapes] == sizes
    np.testing.assert_array_equal(seen(path, level=11)[:, :, 0, 0, 0], coded((7, 7), seed=11))
    np.testing.assert_array_equal(seen(path, level=10)[:, :, 0, 0, 0], coded((10, 10), seed=10))


def test_levels_from_small_to_large_and_one_that_is_missing(tmp_path):
    path = tmp_path / "a.zarr"
    write(path / "small", coded((5, 5)))
    write(path / "full", coded((10, 10)))
    describe(path, {"multiscales": multiscales("yx", ["small", "full"])})
    with BioReader(path) as br:
        assert [shape[:2] for shape in br.level_shapes] == [(10, 10), (5, 5)]
        assert any("from large to small" in note for note in br.notes)
    describe(path, {"multiscales": multiscales("yx", ["full", "lost"])})
    with BioReader(path) as br:
        assert br.levels == 1
        assert any("'lost'" in note for note in br.notes)
    describe(path, {"multiscales": multiscales("yx", ["lost", "small"])})
    with pytest.raises(DamagedFileError, match="lost"):
        BioReader(path)


# ------------------------------------------------------------------ several images


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize("listed", [True, False])
def test_bioformats2raw_layout(tmp_path, v, listed):
    path = tmp_path / "a.zarr"
    version = "0.5" if v == 3 else "0.4"
    describe(path, {"bioformats2raw.layout": 3}, v)
    names = ["0", "1", "2"]
    for n, name in enumerate(names):
        image(path / name, coded((9, 8), seed=n), "yx", version)
    order = ["2", "0"] if listed else names
    if listed:  # which they are, and in which order
        describe(path / "OME", {"series": order}, v)
    with BioReader(path) as br:
        assert br.n_series == len(order)
    for n, name in enumerate(order):
        got = seen(path, series=n)[:, :, 0, 0, 0]
        np.testing.assert_array_equal(got, coded((9, 8), seed=int(name)))
        for inside in ({"group": name}, {}):
            place = path if inside else path / name
            np.testing.assert_array_equal(seen(place, **inside)[:, :, 0, 0, 0], got)


@pytest.mark.parametrize("v", [2, 3])
def test_plate(tmp_path, v):
    path = tmp_path / "a.zarr"
    version = "0.5" if v == 3 else "0.4"
    wells = {"A/2": ["0", "1"], "C/1": ["x"]}
    plate = {
        "name": "P7",
        "rows": [{"name": r} for r in "ABC"],
        "columns": [{"name": c} for c in "12"],
        "wells": [
            {"path": p, "rowIndex": "ABC".index(p[0]), "columnIndex": int(p[2]) - 1} for p in wells
        ],
        "acquisitions": [{"id": 4, "name": "day 1"}],
    }
    describe(path, {"plate": plate}, v)
    number = 0
    for well, fields in wells.items():
        described = [{"path": field, "acquisition": 4} for field in fields]
        describe(path / well, {"well": {"images": described, "version": version}}, v)
        for field in fields:
            image(path / well / field, coded((9, 8), seed=number), "yx", version)
            number += 1
    with BioReader(path) as br:
        found = br.plate
        assert (found.name, found.rows, found.columns) == ("P7", ("A", "B", "C"), ("1", "2"))
        assert [(w.row, w.column, len(w.fields)) for w in found.wells] == [
            ("A", "2", 2),
            ("C", "1", 1),
        ]
        assert [(a.id, a.name) for a in found.acquisitions] == [(4, "day 1")]
        assert found.wells[1].fields[0].acquisition == 4
        assert br.series_names == ["A/2/0", "A/2/1", "C/1/x"]
        assert found.series("A", "2", 1) == 1
        assert found.series("C", "1") == 2
        with pytest.raises(KeyError, match="B/1"):
            found.series("B", "1")
        with pytest.raises(KeyError, match="2 fields"):
            found.series("A", "2", 2)
    for n, place in enumerate(["A/2/0", "A/2/1", "C/1/x"]):
        wanted = coded((9, 8), seed=n)
        np.testing.assert_array_equal(seen(path, series=n)[:, :, 0, 0, 0], wanted)
        np.testing.assert_array_equal(seen(path, group=place)[:, :, 0, 0, 0], wanted)
    with BioReader(path / "A/2") as br:  # a well alone
        assert br.n_series == 2
        assert br.plate is None
    np.testing.assert_array_equal(
        seen(path, group="A/2", series=1)[:, :, 0, 0, 0], coded((9, 8), seed=1)
    )
    shutil.rmtree(path / "C")
    with BioReader(path) as br:
        assert br.n_series == 2
        assert any("C/1" in note for note in br.notes)


@pytest.mark.parametrize("v", [2, 3])
def test_labels(tmp_path, v):
    path = tmp_path / "a.zarr"
    version = "0.5" if v == 3 else "0.4"
    image(path, coded((2, 9, 8)), "cyx", version)
    describe(path / "labels", {"labels": ["cells", "deep/er"]}, v)
    for n, name in enumerate(("cells", "deep/er")):
        image(path / "labels" / name, coded((9, 8), "i4", seed=n), "yx", version)
    with BioReader(path) as br:
        assert list(br.labels) == ["cells", "deep/er"]
        for n, name in enumerate(br.labels):
            with br.labels[name] as label:
                np.testing.assert_array_equal(label[:], coded((9, 8), "i4", seed=n))
        with pytest.raises(KeyError, match="cells, deep/er"):
            br.labels["nuclei"]
    with BioReader(path / "labels") as br:
        assert br.n_series == 2
    with BioReader(path, group="labels/cells") as br:
        assert list(br.labels) == []


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize("folder", ["", "a.zarr"])
def test_packed(tmp_path, v, folder):
    pixels = coded((2, 9, 8))
    version = "0.5" if v == 3 else "0.4"
    image(tmp_path / "in" / folder, pixels, "cyx", version)
    shutil.make_archive(str(tmp_path / "a.zarr"), "zip", tmp_path / "in")
    np.testing.assert_array_equal(seen(tmp_path / "a.zarr.zip"), yxzct(pixels, "cyx"))


# ------------------------------------------------------------------ written by others' writers


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_written_by_ngff_zarr(tmp_path, version):
    ngff_zarr = pytest.importorskip("ngff_zarr")
    dask = pytest.importorskip("dask")
    pixels = coded((2, 3, 64, 50))
    with dask.config.set(scheduler="synchronous"):
        made = ngff_zarr.to_ngff_image(
            pixels,
            dims=["c", "z", "y", "x"],
            scale={"z": 2.0, "y": 0.5, "x": 0.25},
            translation={"z": 0.0, "y": 7.0, "x": 8.0},
            axes_units={"z": "micrometer", "y": "micrometer", "x": "micrometer"},
        )
        found = ngff_zarr.to_multiscales(made, scale_factors=[])
        ngff_zarr.to_ngff_zarr(str(tmp_path / "a.zarr"), found, version=version)
    np.testing.assert_array_equal(seen(tmp_path / "a.zarr"), yxzct(pixels, "czyx"))
    with BioReader(tmp_path / "a.zarr") as br:
        assert br.pixel_size() == (0.5, 0.25, 2.0)
        assert br._spec().position[:2] == ((8.0, "µm"), (7.0, "µm"))


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3", "0.4", "0.5"])
def test_written_by_ome_zarr_py(tmp_path, version):
    writer = pytest.importorskip("ome_zarr.writer")
    formats = pytest.importorskip("ome_zarr.format")
    dask = pytest.importorskip("dask")
    logging.disable(logging.CRITICAL)
    pixels = coded((2, 3, 4, 40, 30))
    levels = [pixels, pixels[..., ::2, ::2]]
    fmt = formats.format_from_version(version)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=fmt.zarr_format)
    try:
        axes = None if version in ("0.1", "0.2") else "tczyx"
        with dask.config.set(scheduler="synchronous"):
            writer.write_multiscale(levels, group, fmt=fmt, axes=axes)
    finally:
        logging.disable(logging.NOTSET)
    for n, level in enumerate(levels):
        np.testing.assert_array_equal(seen(tmp_path / "a.zarr", level=n), yxzct(level, "tczyx"))
    with BioReader(tmp_path / "a.zarr") as br:
        assert br.details["ngff_version"] == version


# ------------------------------------------------------------------ any index, any store


@st.composite
def stores(draw):
    """Describe a random array: axes, shape, chunks, shards, pixel type, codec, version."""
    ndim = draw(st.integers(2, 5))
    extra = draw(st.permutations("tcz"))[: ndim - 2]
    axes = "".join(draw(st.permutations([*extra, "y", "x"])))
    shape = tuple(draw(st.integers(1, 25 if k in "yx" else 4)) for k in axes)
    chunks = tuple(draw(st.integers(1, n + 2)) for n in shape)
    v = draw(st.sampled_from([2, 3]))
    shards = None
    if v == 3 and draw(st.booleans()):
        shards = tuple(n * draw(st.integers(1, 3)) for n in chunks)
    dtype = draw(st.sampled_from(["u1", "u2", "i4", "f4", "f8", "bool"]))
    codec = draw(st.sampled_from(["auto", "gzip", "none"]))
    compressors = {"auto": "auto", "none": None}.get(codec)
    if codec == "gzip":
        from numcodecs import GZip

        compressors = GZip(level=1) if v == 2 else zarr.codecs.GzipCodec(level=1)
    options = {"chunks": chunks, "compressors": compressors, "fill_value": draw(st.integers(0, 1))}
    if shards:
        options["shards"] = shards
    return axes, coded(shape, dtype), v, options


@st.composite
def keys(draw, shape):
    """Draw an index for Y, X, Z, C, T of any kind."""
    items = []
    for n in shape:
        items.append(
            draw(
                st.one_of(
                    st.integers(-n, n - 1),
                    st.slices(n),
                    st.lists(st.integers(-n, n - 1), min_size=1, max_size=5),
                    st.lists(st.booleans(), min_size=n, max_size=n),
                )
            )
        )
    return tuple(items[: draw(st.integers(1, 5))])


@given(data=st.data(), store=stores())
def test_any_index_of_any_store(tmp_path_factory, data, store):
    axes, pixels, v, options = store
    path = tmp_path_factory.mktemp("any") / "a.zarr"
    write(path / "0", pixels, v, **options)
    version = "0.5" if v == 3 else "0.4"
    describe(path, {"multiscales": multiscales(axes, version=version)}, v)
    whole = yxzct(zarr.open_array(path / "0", mode="r")[...], axes)
    with BioReader(path, max_workers=2) as br:
        for _ in range(3):
            key = data.draw(keys(whole.shape))
            wanted = picked(whole, key)
            if wanted.size:
                got = br[key]
                assert got.dtype == wanted.dtype
                np.testing.assert_array_equal(got, wanted)


PIPELINES = {
    "zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarrs": "zarrs.ZarrsCodecPipeline",
}


@pytest.mark.parametrize("engine", PIPELINES)
@pytest.mark.filterwarnings("ignore::UserWarning")
@given(data=st.data(), store=stores())
def test_both_engines_give_the_same(tmp_path_factory, engine, data, store):
    """Ours against zarr-python's own pipeline and the one in Rust, region by region."""
    if engine == "zarrs":
        pytest.importorskip("zarrs")
    axes, pixels, v, options = store
    path = tmp_path_factory.mktemp("engine") / "0"
    write(path, pixels, v, **options)
    with (
        zarr.config.set({"codec_pipeline.path": PIPELINES[engine]}),
        BioReader(path, dims=axes.upper(), max_workers=2) as br,
    ):
        array = zarr.open_array(path, mode="r")
        for _ in range(3):
            edges = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in array.shape]
            region = tuple(slice(a, b) for a, b in edges)
            if any(a == b for a, b in edges):
                continue
            key = [region[axes.index(k)] if k in axes else slice(0, 1) for k in "yxzct"]
            wanted = yxzct(array[region], axes)
            np.testing.assert_array_equal(br[tuple(key)].reshape(wanted.shape), wanted)


# ------------------------------------------------------------------ what is read for it


@pytest.fixture
def asked(monkeypatch):
    """The keys that are asked of a folder."""
    found = []
    get, get_range = FolderStore.get, FolderStore.get_range

    def seen_get(self, key):
        found.append(key)
        return get(self, key)

    def seen_range(self, key, start, count):
        found.append(key)
        return get_range(self, key, start, count)

    monkeypatch.setattr(FolderStore, "get", seen_get)
    monkeypatch.setattr(FolderStore, "get_range", seen_range)
    return found


def chunk_keys(found):
    return sorted(key for key in found if "/c/" in key)


def test_a_tile_asks_for_its_chunks_only(tmp_path, asked):
    pixels = coded((2, 64, 64))
    path = image(tmp_path / "a.zarr", pixels, "zyx", chunks=(1, 16, 16))
    with BioReader(path) as br:
        del asked[:]
        np.testing.assert_array_equal(br[16:48, 32:48, 1], pixels[1, 16:48, 32:48])
        assert chunk_keys(asked) == ["0/c/1/1/2", "0/c/1/2/2"]
        del asked[:]
        np.testing.assert_array_equal(br[15:17, 63, 0], pixels[0, 15:17, 63:])
        assert chunk_keys(asked) == ["0/c/0/0/3", "0/c/0/1/3"]


def test_opening_reads_no_pixels_and_no_other_image(tmp_path, asked):
    path = tmp_path / "a.zarr"
    describe(path, {"bioformats2raw.layout": 3})
    describe(path / "OME", {"series": ["0", "1", "2"]})
    for name in "012":
        image(path / name, coded((9, 8), seed=int(name)), "yx")
    with BioReader(path, series=1):
        assert not chunk_keys(asked)
        assert not [key for key in asked if key.startswith(("0/", "2/"))]


def test_a_tile_of_a_shard_asks_for_its_table_and_its_bytes(tmp_path, monkeypatch):
    pixels = np.random.default_rng(1).integers(0, 60000, (256, 256), "u2")
    path = image(tmp_path / "a.zarr", pixels, "yx", chunks=(32, 32), shards=(256, 256))
    read = []
    get_range = FolderStore.get_range

    def seen_range(self, key, start, count):
        read.append(count)
        return get_range(self, key, start, count)

    with BioReader(path) as reader:
        monkeypatch.setattr(FolderStore, "get", lambda self, key: pytest.fail(f"all of {key}"))
        monkeypatch.setattr(FolderStore, "get_range", seen_range)
        np.testing.assert_array_equal(reader[32:64, 64:96], pixels[32:64, 64:96])
    assert read[0] == 64 * 16 + 4  # offsets and lengths of 64 chunks, and their checksum
    assert len(read) == 2
    assert read[1] < 2 * 32 * 32 * 2
