"""Whatever a stream writes is an image for all the rest: it opens, converts, verifies, validates.

Expected pixels come from a plain loop over the frames, expected metadata are what was put in;
what is on disk is looked at with tifffile and zarr-python too.
"""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from command import run
from images import DTYPES, coded, smaller

from bioio_tk import (
    AcquisitionSettings,
    BioReader,
    Channel,
    Dimension,
    OmeTiffFormat,
    OmeZarrFormat,
    Plate,
    Position,
    convert,
    create_stream,
    imread,
)
from bioio_tk.errors import UnsupportedError

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")

V4, V5 = OmeZarrFormat(ngff_version="0.4"), OmeZarrFormat(ngff_version="0.5")
TIFF = OmeTiffFormat()
SHARED = [OmeTiffFormat(multi_file_metadata=how) for how in ("redundant", "master-tiff")]
COMPANION = OmeTiffFormat(multi_file_metadata="companion-file")
EACH = {"tiff": TIFF, "zarr-0.4": V4, "zarr-0.5": V5}
FIVE = ["zarr-0.4", "zarr-0.5", "redundant", "master-tiff", "companion-file"]
each_format = pytest.mark.parametrize("form", EACH.values(), ids=EACH)

COUNTS = {"t": 3, "c": 2, "z": 4, "cam": 2, "angle": 2}
UNITS = {"t": ("s", 2.0), "z": ("um", 1.5)}
LETTER = {"t": "T", "z": "Z", "c": "C", "cam": "C", "angle": "C"}

CHANNELS = [
    Channel(name="DAPI", color="#0000ff", excitation_wavelength_nm=405,
            emission_wavelength_nm=460.5, fluorophore="Hoechst"),
    Channel(name="GFP", color="#00ff00"),
]  # fmt: skip
STAGE = [
    Position(name="left", x_coord=100, y_coord=-50.5, z_coord=3),
    Position(name="right", x_coord=220, y_coord=7, z_coord=4),
]
WELLS = [
    Position(name="f0", plate_row="A", plate_column="2", x_coord=1, y_coord=2),
    Position(name="f1", plate_row="A", plate_column="2", x_coord=9, y_coord=2),
    Position(name="f0", plate_row="B", plate_column="1", x_coord=300, y_coord=2),
]
PLATE = Plate(name="screen", row_names=["A", "B"], column_names=["1", "2"])


def axis(name, **more):
    if name in ("cam", "angle"):
        more = {"type": "other", **more}
    if "coords" not in more:
        more = {"count": COUNTS[name], **more}
    unit, scale = UNITS.get(name, (None, None))
    return Dimension(name=name, unit=unit, scale=scale, **more)


def record(root, dims, dtype="u2", frame=(12, 20), chunk=None, stop=None, **options):
    """Stream all frames, or the first ones; return where they went, and what each position shows.

    Its axes are Y, X, Z, C, T; of two that are stored as channels the one that comes first has the
    larger steps.
    """
    sides = [Dimension(name=n, count=size, unit="um", scale=0.5, chunk_size=chunk)
             for n, size in zip("yx", frame, strict=True)]  # fmt: skip
    settings = AcquisitionSettings(
        root_path=str(root), dimensions=[*dims, *sides], dtype=dtype, **options
    )
    counts = {dim.name: dim.count for dim in dims}
    sizes = {k: math.prod(counts[n] for n in counts if LETTER.get(n) == k) for k in "ZCT"}
    wanted = {n: np.zeros((*frame, *sizes.values()), dtype) for n in range(counts.get("p", 1))}
    with create_stream(settings) as stream:
        for n, index in enumerate(np.ndindex(*counts.values())):
            if n == stop:
                break
            at, place = dict(zip(counts, index, strict=True)), dict.fromkeys("ZCT", 0)
            for name, count in counts.items():
                if name != "p":
                    place[LETTER[name]] = place[LETTER[name]] * count + at[name]
            pixels = coded(frame, dtype, seed=n)
            wanted[at.get("p", 0)][(..., *place.values())] = pixels
            stream.append(pixels, frame_metadata=said_of(n))
    return Path(settings.output_path), wanted


def said_of(n):
    return {"delta_t": n * 0.5, "exposure_time": 0.02, "position_x": 10.0 + n, "laser": n}


def same(path, wanted, number=0, level=0):
    """Check a series of a file, as the reader and as imread have it."""
    with BioReader(path, series=number, level=level) as reader:
        assert reader.shape == wanted.shape
        assert reader.dtype == wanted.dtype
        np.testing.assert_array_equal(reader[:].reshape(reader.shape), wanted)
    lazy = imread(path, "YXZCT", number, level)
    np.testing.assert_array_equal(np.asarray(lazy), wanted)


def entries(path):
    """Return the files by which an output is opened."""
    whole = path.is_file() or path.name.endswith(".zarr")
    return [path] if whole else sorted(path.iterdir())


def valid(path):
    """Whether every pixel is there and nothing is against the format, by the command."""
    report = json.loads(run("validate", "--pixels", "--json", path)[0])
    (report,) = report if isinstance(report, list) else [report]
    return report["ok"] and not report["problems"]


def info(path):
    return json.loads(run("info", "--json", path)[0])[0]


# ------------------------------------------------------------------ axes


ORDERS = ["".join(p) for n in range(4) for p in permutations("tcz", n)]


@each_format
@pytest.mark.parametrize("storage", ["ome", "acquisition", "list"])
def test_any_axes_in_any_order(tmp_path, form, storage):
    for order in ORDERS:
        name = order or "plane"
        given = [*sorted(order), "y", "x"] if storage == "list" else storage
        path, wanted = record(
            tmp_path / name, [axis(k) for k in order], format=form, storage_order=given
        )
        same(path, wanted[0])
        if form is TIFF or storage == "ome":  # NGFF allows of one order only
            assert valid(path), order
        if form is V5:
            stored = zarr.open_array(path / "0", mode="r").metadata.dimension_names
            usual = [k for k in "tcz" if k in order]
            expected = {"ome": usual, "acquisition": list(order), "list": sorted(order)}[storage]
            assert list(stored) == [*expected, "y", "x"]


@each_format
@pytest.mark.parametrize("order", [("cam", "t", "c"), ("t", "c", "cam"), ("c", "z", "cam"),
                                   ("cam", "t", "angle")], ids="-".join)  # fmt: skip
def test_cameras_beside_channels_are_channels(tmp_path, form, order):
    path, wanted = record(tmp_path / "a", [axis(k) for k in order], format=form)
    assert wanted[0].shape[3] == 4
    same(path, wanted[0])
    with BioReader(path) as reader:
        assert reader.notes == ()


@pytest.mark.parametrize("order", [("cam",), ("cam", "t"), ("t", "z", "cam")], ids="-".join)
@pytest.mark.parametrize("form", [V4, V5], ids=["0.4", "0.5"])
def test_cameras_alone_are_an_axis_of_their_own_and_read_as_channels(tmp_path, form, order):
    path, wanted = record(tmp_path / "a", [axis(k) for k in order], format=form)
    attributes = zarr.open_group(path, mode="r").attrs.asdict()
    (image,) = attributes.get("ome", attributes)["multiscales"]
    names = [found["name"] for found in image["axes"]]
    assert {"name": "cam", "type": "other"} in image["axes"]
    stored = zarr.open_array(path / "0", mode="r")[...]
    letters = [{"cam": "c"}.get(name, name) for name in names]
    ordered = stored.transpose([letters.index(k) for k in "yxzct" if k in letters])
    np.testing.assert_array_equal(ordered.reshape(wanted[0].shape), wanted[0])
    same(path, wanted[0])
    with BioReader(path) as reader:
        assert reader.notes == ("axis 'cam' (type other) is taken as C",)
    assert valid(path)
    report = convert(path, tmp_path / "b.ome.tiff")
    assert report.notes == ("axis 'cam' (type other) is taken as C",)
    run("verify", path, tmp_path / "b.ome.tiff")
    with tifffile.TiffFile(tmp_path / "b.ome.tiff") as file:
        assert "C" in file.series[0].axes


@each_format
def test_named_cameras_are_named_channels(tmp_path, form):
    path, wanted = record(tmp_path / "a", [axis("t"), axis("cam", coords=["left", "right"])],
                          format=form)  # fmt: skip
    same(path, wanted[0])
    with BioReader(path) as reader:
        assert reader.cnames == ["left", "right"]


def test_axes_nobody_can_place_are_refused(tmp_path):
    """One custom axis may stand for the channels; a second one, as others write it, may not."""
    path, _ = record(tmp_path / "a", [axis("cam"), axis("t")], format=V5)
    document = json.loads((path / "zarr.json").read_text())
    axes = document["attributes"]["ome"]["multiscales"][0]["axes"]
    axes[0] = {"name": "angle", "type": "other"}
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedError, match=r"'angle'.*dims="):
        BioReader(path)
    with BioReader(path, dims="TCYX") as reader:
        assert reader.shape == (12, 20, 1, 2, 3)


# ------------------------------------------------------------------ pixels


@each_format
@pytest.mark.parametrize("dtype", [*DTYPES, "c16"])
def test_any_pixel_type(tmp_path, form, dtype):
    path, wanted = record(tmp_path / "a", [axis("c")], dtype, format=form)
    same(path, wanted[0])
    assert info(path)["series"][0]["dtype"] == np.dtype(dtype).name
    assert valid(path)


@each_format
@pytest.mark.parametrize("mode", ["live", "after"])
def test_pyramids(tmp_path, form, mode):
    path, wanted = record(tmp_path / "a", [axis("t"), axis("c")], frame=(70, 45), chunk=16,
                          format=form, pyramid=mode, pyramid_levels=3)  # fmt: skip
    with BioReader(path) as reader:
        assert reader.level_shapes == [(70, 45, 1, 2, 3), (35, 23, 1, 2, 3), (18, 12, 1, 2, 3)]
    image = wanted[0]
    for level in range(3):
        same(path, image, level=level)
        image = smaller(image)
    assert valid(path)


@pytest.mark.parametrize(
    ("form", "more"),
    [
        (TIFF, {"compression": "zstd"}),
        (TIFF, {"compression": "deflate", "chunk": 16}),
        (V4, {"compression": "blosc-zstd"}),
        (V5, {"compression": "gzip"}),
        (V5, {"compression": "blosc-lz4", "shard": 2}),
        (V5, {"shard": 3, "pyramid": "live", "pyramid_levels": 2}),
    ],
)
def test_compressed_and_sharded(tmp_path, form, more):
    shard = more.pop("shard", None) if "shard" in more else None
    dims = [axis("t", shard_size_chunks=shard), axis("c")]
    path, wanted = record(tmp_path / "a", dims, frame=(33, 40), format=form, **more)
    same(path, wanted[0])
    assert valid(path)
    if shard:
        array = zarr.open_array(path / "0", mode="r")
        assert array.shards[0] == shard
        assert array.chunks[0] == 1


# ------------------------------------------------------------------ positions


@pytest.mark.parametrize("order", ["ptc", "tpc", "tcp"])
@pytest.mark.parametrize("form", [V4, V5, *SHARED, COMPANION], ids=FIVE)
def test_several_positions(tmp_path, form, order):
    coords = {"p": {"coords": STAGE, "type": "position"}, "c": {"coords": CHANNELS}}
    dims = [axis(k, **coords.get(k, {})) for k in order]
    path, wanted = record(tmp_path / "a", dims, format=form)
    for entry in entries(path):  # the images of the whole from each of the files
        with BioReader(entry) as reader:
            assert reader.series_names == ["left", "right"]
            assert reader.notes == ()
        for number in (0, 1):
            same(entry, wanted[number], number)
        images = info(entry)["series"]
        assert [image["name"] for image in images] == ["left", "right"]
        if entry.suffix != ".ome":
            assert valid(entry)
    owner = {0: entries(path)[0], 1: entries(path)[-1 if form is SHARED[0] else 0]}
    for number in (0, 1):
        described(owner[number], number, planes_of(number, order))
    target = tmp_path / ("b.ome.tiff" if form in (V4, V5) else "b.ome.zarr")
    convert(entries(path)[0], target, series=1)
    run("verify", entries(path)[0], target, "--series", "1,0")
    same(target, wanted[1])
    assert valid(target)


def planes_of(position, order):
    """Return (t, c) and number of the frames of a position."""
    counts = {"p": 2, "t": 3, "c": 2}
    frames = {}
    for n, index in enumerate(np.ndindex(*(counts[k] for k in order))):
        at = dict(zip(order, index, strict=True))
        if at["p"] == position:
            frames[at["t"], at["c"]] = n
    return frames


def described(path, number, frames, stage=STAGE):
    """Check the metadata of one image."""
    with BioReader(path, series=number) as reader:
        assert reader.cnames == ["DAPI", "GFP"]
        image = reader.metadata.images[number]
    assert image.name == stage[number].name
    label, place = image.stage_label, stage[number]
    assert (label.x, label.y, label.x_unit.value) == (place.x_coord, place.y_coord, "µm")
    pixels = image.pixels
    assert (pixels.physical_size_x, pixels.physical_size_x_unit.value) == (0.5, "µm")
    assert (pixels.time_increment, pixels.time_increment_unit.value) == (2.0, "s")
    blue, green = pixels.channels
    assert (blue.excitation_wavelength, blue.emission_wavelength) == (405, 460.5)
    assert blue.fluor == "Hoechst"
    assert [c.color.as_rgb_tuple() for c in (blue, green)] == [(0, 0, 255), (0, 255, 0)]
    found = {(p.the_t, p.the_c): p for p in pixels.planes}
    assert found.keys() == frames.keys()
    for at, n in frames.items():
        said = said_of(n)
        assert found[at].delta_t == said["delta_t"]
        assert found[at].exposure_time == said["exposure_time"]
        assert found[at].position_x == said["position_x"]


@pytest.mark.parametrize("form", [V4, V5, TIFF], ids=EACH)
def test_a_plate(tmp_path, form):
    dims = [axis("t"), axis("p", coords=WELLS, type="position"), axis("c", coords=CHANNELS)]
    path, wanted = record(tmp_path / "a", dims, format=form, plate=PLATE)
    first = entries(path)[0]
    with BioReader(first) as reader:
        assert reader.n_series == 3
        if form is not TIFF:
            assert reader.series_names == ["A/2/f0", "A/2/f1", "B/1/f0"]
            assert reader.plate.name == "screen"
            wells = {(w.row, w.column): [f.path for f in w.fields] for w in reader.plate.wells}
            assert wells == {("A", "2"): ["f0", "f1"], ("B", "1"): ["f0"]}
        (plate,) = reader.metadata.plates
    assert (plate.name, plate.rows, plate.columns) == ("screen", 2, 2)
    samples = {(w.row, w.column): len(w.well_samples) for w in plate.wells if w.well_samples}
    assert samples == {(0, 1): 2, (1, 0): 1}
    for number in range(3):
        same(first, wanted[number], number)
    frames = {(t, c): t * 6 + c for t in range(3) for c in range(2)}
    described(first, 0, frames, WELLS)
    for entry in entries(path):
        assert valid(entry)
        assert len(info(entry)["series"]) == 3
    target = tmp_path / ("b.ome.zarr" if form is TIFF else "b.ome.tiff")
    convert(first, target, series=2)
    run("verify", first, target, "--series", "2,0")
    same(target, wanted[2])


@pytest.mark.parametrize("form", [V4, V5, *SHARED, COMPANION], ids=FIVE)
def test_names_that_are_no_paths(tmp_path, form):
    names = ["../x", "OME", "a b/\u00fc", "zarr.json", "..", "<&>"]
    dims = [axis("p", coords=names, type="position"), axis("c")]
    path, wanted = record(tmp_path / "a", dims, format=form)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for entry in entries(path)[::3]:
        with BioReader(entry) as reader:
            assert reader.series_names == names
        assert [image["name"] for image in info(entry)["series"]] == names
    for number in range(len(names)):
        same(entries(path)[0], wanted[number], number)


@pytest.mark.parametrize("form", [V4, V5, *SHARED, COMPANION], ids=FIVE)
def test_positions_that_were_stopped_or_never_visited(tmp_path, form):
    dims = [axis("p", coords=["a", "b", "c"], type="position"), axis("t"), axis("c")]
    path, wanted = record(tmp_path / "a", dims, format=form, stop=9)
    assert not wanted[2].any()
    for entry in entries(path):
        with BioReader(entry) as reader:
            assert reader.series_names == ["a", "b"]
            assert len(reader.metadata.images) == 2
        same(entry, wanted[0], 0)
        same(entry, wanted[1][..., :2], 1)  # 3 of 6 came: 1 time point and a half
        if entry.suffix != ".ome":
            assert valid(entry)


# ------------------------------------------------------------------ one image


@each_format
def test_one_image_with_all_that_is_known_of_it(tmp_path, form):
    dims = [axis("t"), axis("z"), axis("c", coords=CHANNELS)]
    path, wanted = record(tmp_path / "a", dims, format=form)
    target = tmp_path / ("b.ome.zarr" if form is TIFF else "b.ome.tiff")
    convert(path, target)
    run("verify", path, target)
    for file in (path, target):
        same(file, wanted[0])
        assert valid(file)
        with BioReader(file) as reader:
            assert reader.cnames == ["DAPI", "GFP"]
            assert reader.ps_x == reader.ps_y == (0.5, "µm")
            assert reader.ps_z == (1.5, "µm")
            pixels = reader.metadata.images[0].pixels
            notes = reader.metadata.structured_annotations
        blue = pixels.channels[0]
        assert (blue.excitation_wavelength, blue.emission_wavelength) == (405, 460.5)
        assert blue.color.as_rgb_tuple() == (0, 0, 255)
        assert pixels.time_increment == 2.0
        planes = {(p.the_t, p.the_z, p.the_c): p for p in pixels.planes}
        texts = {note.id: note for note in notes}
        for n, at in enumerate(np.ndindex(3, 4, 2)):
            assert planes[at].delta_t == n * 0.5
            assert planes[at].exposure_time == 0.02
            (reference,) = planes[at].annotation_refs
            assert {m.k: m.value for m in texts[reference.id].value.ms} == {"laser": str(n)}


@each_format
def test_one_position_has_its_name_and_place(tmp_path, form):
    dims = [axis("p", coords=STAGE[:1], type="position"), axis("t")]
    path, wanted = record(tmp_path / "a", dims, format=form)
    same(entries(path)[0], wanted[0])
    with BioReader(entries(path)[0]) as reader:
        (image,) = reader.metadata.images
    assert (image.stage_label.x, image.stage_label.y, image.stage_label.z) == (100, -50.5, 3)


@each_format
def test_what_came_before_it_was_stopped(tmp_path, form):
    sides = [Dimension(name=n, count=8) for n in "yx"]
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "a"), format=form, dtype="u2",
        dimensions=[Dimension(name="t"), axis("cam"), axis("z", count=2), *sides],
    )  # fmt: skip
    wanted = np.zeros((8, 8, 2, 2, 3), "u2")
    with create_stream(settings) as stream:
        for n in range(9):  # the last cycle lacks 3 of 4
            if n == 5:
                stream.skip()
                continue
            wanted[..., n % 2, n // 2 % 2, n // 4] = coded((8, 8), seed=n)
            stream.append(coded((8, 8), seed=n))
    path = Path(settings.output_path)
    same(path, wanted)
    target = tmp_path / ("b.ome.zarr" if form is TIFF else "b.ome.tiff")
    convert(path, target)
    run("verify", path, target)
    same(target, wanted)
