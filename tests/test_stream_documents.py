"""Everything the usage guide shows of streaming, as others read what it left.

Each acquisition below is taken frame by frame. A plain loop says which pixels belong where;
zarr-python, TensorStore, tifffile and Bio-Formats have to agree, and the schemas of OME and NGFF,
ome-zarr-models and yaozarrs must have nothing against the documents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import ngff_peers
import numpy as np
import ome_types
import pytest
import tifffile
import zarr
from images import coded
from java_images import by_java, series_count

from bioio_tk import (
    AcquisitionSettings,
    Channel,
    Dimension,
    Plate,
    Position,
    create_stream,
    dims_from_standard_axes,
)
from bioio_tk.meta.ome_absent import absent_planes

etree = pytest.importorskip("lxml.etree")
tensorstore = pytest.importorskip("tensorstore")
yaozarrs = pytest.importorskip("yaozarrs")
models = pytest.importorskip("ome_zarr_models")

NS = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
SCHEMA = etree.XMLSchema(etree.parse(Path(ome_types.__file__).parent / "ome-2016-06.xsd"))
Y, X = 32, 48
SPACE = {"type": "space", "unit": "um"}
YX = (
    Dimension(name="y", count=Y, scale=0.1, **SPACE),
    Dimension(name="x", count=X, scale=0.1, **SPACE),
)
TILED = (
    Dimension(name="y", count=Y, chunk_size=16, scale=0.1, **SPACE),
    Dimension(name="x", count=X, chunk_size=16, scale=0.1, **SPACE),
)
FORMATS = {
    "tiff": "ome-tiff",
    "zarr 0.5": "ome-zarr",
    "zarr 0.4": {"name": "ome-zarr", "ngff_version": "0.4"},
}


def t(count=2, **more):
    return Dimension(name="t", count=count, type="time", **more)


def c(count=3, **more):
    return Dimension(name="c", count=count, type="channel", **more)


def z(count=4, **more):
    return Dimension(name="z", count=count, scale=0.5, **SPACE, **more)


def p(*names, **more):
    return Dimension(name="p", type="position", coords=list(names), **more)


@dataclass
class Run:
    """An acquisition: what is declared, and what comes.

    Attributes
    ----------
    dims : tuple of Dimension
        As declared, the slowest first.
    frames : int or None
        How many come; None for all.
    skipped : tuple of int
        Numbers of the frames that do not.
    more : dict
        Other settings.
    said : callable or None
        Number of a frame to its metadata.
    formats : tuple of str
        Where it can be stored.
    """

    dims: tuple[Any, ...]
    frames: int | None = None
    skipped: tuple[int, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)
    said: Any = None
    formats: tuple[str, ...] = ("tiff", "zarr 0.5")


GRID = [
    Position(
        name=f"tile {row}{column}", grid_row=row, grid_column=column, x_coord=9.5 * column,
        y_coord=-3.0 * row,
    )
    for row, column in product(range(2), range(2))
]  # fmt: skip
WELLS = [
    Position(name="f0", plate_row="A", plate_column="1"),
    Position(name="f0", plate_row="A", plate_column="2"),
    Position(name="f0", plate_row="C", plate_column="4"),
    Position(name="f1", plate_row="C", plate_column="4"),
]
PLATE = Plate(name="Example", row_names=list("ABCD"), column_names=[str(n) for n in range(1, 9)])
LIGHTS = [
    Channel(
        name="green", fluorophore="EGFP", excitation_wavelength_nm=488,
        emission_wavelength_nm=525, color="#00FF00",
    ),
    Channel(name="red", color="red"),
]  # fmt: skip


def event(n):
    return {
        "delta_t": 0.25 * n,
        "exposure_time": 0.01,
        "position_x": 100 + 0.5 * n,
        "position_y": 200.0,
        "position_z": 50.0,
        "temperature": 37.0 + n,
        "state": {"laser": [1, n]},
    }


RUNS = {
    "five dimensions": Run((t(scale=2.0, unit="s"), c(), z(), *YX)),
    "the shorthand": Run(
        tuple(
            dims_from_standard_axes(
                {"t": 2, "c": 3, "z": 4, "y": Y, "x": X}, chunk_shapes={"z": 2, "y": 16, "x": 16}
            )
        )
    ),
    "all channels of a plane first": Run((t(), z(), c(), *YX)),
    "stored as taken": Run(
        (t(), z(), c(), *YX), more={"storage_order": "acquisition"}, formats=("zarr 0.5", "tiff")
    ),
    "another storage order": Run(
        (t(), z(), c(), *YX), more={"storage_order": ["t", "c", "z", "y", "x"]}
    ),
    "time fastest": Run((c(2), z(3), t(4), *YX)),
    "one plane": Run((t(1), *YX)),
    "only planes": Run((z(5), *YX)),
    "chunks along z": Run((t(), c(), z(5, chunk_size=2), *TILED)),
    "shards": Run(
        (t(6, shard_size_chunks=3), c(2), *TILED),
        formats=("zarr 0.5",),
    ),
    "positions by name": Run((t(), p("Pos0", "Pos1"), c(), z(), *YX)),
    "a grid of positions": Run((t(), p(*GRID), c(2, coords=LIGHTS), z(2), *YX)),
    "positions slowest": Run((p("a", "b", "c"), t(3), z(2), *YX)),
    "rich channels": Run((t(), c(2, coords=LIGHTS), z(), *YX)),
    "plate": Run((t(), p(*WELLS), c(), z(2), *YX), more={"plate": PLATE}),
    "unbounded": Run((t(None), p("Pos0", "Pos1"), *YX), frames=6),
    "unbounded, chunks along t": Run((t(None, chunk_size=4), c(2), *YX), frames=14),
    "unbounded, stopped within a round": Run((t(None), c(2), z(3), *YX), frames=14),
    "driven by events": Run((t(None), *TILED), frames=11, said=event),
    "frames with metadata": Run((t(), p("a", "b"), z(2), c(2), *YX), said=event),
    "frames skipped": Run(
        (t(5), p("a", "b", "c"), c(2), z(3), *YX),
        skipped=tuple(n for n in range(90) if (n // 6) % 3 == 1 and n // 18 in (1, 2, 4)),
    ),
    "the first frames skipped": Run((t(3), c(2), *YX), skipped=(0, 1, 2)),
    "the first position comes last": Run((t(3), p("a", "b", "c"), *YX), skipped=(0, 1, 3)),
    "stopped early": Run((t(9), c(2), z(3), *YX), frames=16),
    "stopped early at several positions": Run((t(9), p("a", "b", "c"), c(2), *YX), frames=9),
    "stopped before the last position": Run((p("a", "b", "c"), t(3), *YX), frames=5),
    "two cameras": Run(
        (t(3), Dimension(name="cam", count=2, type="other"), *YX),
    ),
    "two cameras, three filters": Run(
        (t(2), c(3), z(2), Dimension(name="cam", count=2, type="other"), *YX),
    ),
    "two cameras, stopped": Run(
        (t(None), c(3), z(2), Dimension(name="cam", count=2, type="other"), *YX), frames=29
    ),
    "names that are no paths": Run((t(), p("../up", "a/b", "OME", "zarr.json", "µ <&>"), *YX)),
}
for name in ("blosc-zstd", "blosc-lz4", "zstd", "gzip"):
    RUNS[name] = Run(
        (t(), c(2), *TILED), more={"compression": name}, formats=("zarr 0.5", "zarr 0.4")
    )
for name in ("lzw", "deflate", "zstd"):
    RUNS[f"tiff {name}"] = Run((t(), c(2), *YX), more={"compression": name}, formats=("tiff",))
for name in ("uint8", "int16", "uint32", "float32", "float64"):
    RUNS[name] = Run((t(), c(2), *YX), more={"dtype": name})
for name in ("after", "live"):
    RUNS[f"pyramid {name}"] = Run(
        (t(), c(2), *TILED), more={"pyramid": name, "pyramid_levels": 2, "downsample": "nearest"}
    )
for name in (
    "five dimensions", "the shorthand", "positions by name", "plate", "unbounded",
    "frames with metadata", "the first position comes last", "stopped early", "two cameras",
    "pyramid live",
):  # fmt: skip
    RUNS[name].formats += ("zarr 0.4",)
CASES = [(name, kind) for name, run in RUNS.items() for kind in run.formats]


def frame(number, dtype):
    return (coded((Y, X), dtype) + np.dtype(dtype).type(number % 60 + 1)).astype(dtype)


def taken(run):
    """Take an acquisition: yield the indices of each frame and its number, a plain loop."""
    sizes = [dim.count for dim in run.dims[:-2]]
    if sizes and sizes[0] is None:
        sizes[0] = 1000
    every = product(*(range(size) for size in sizes))
    for number, indices in enumerate(every):
        if run.frames is not None and number >= run.frames:
            return
        yield number, dict(zip((dim.name for dim in run.dims[:-2]), indices, strict=True))


def expected(run):
    """Return the image of each position that was visited: T, C, Z, Y, X."""
    dtype = run.more.get("dtype", "uint16")
    counts = {dim.name: dim.count for dim in run.dims}
    visited: dict[int, list[tuple[tuple[int, int, int], int]]] = {}
    for number, at in taken(run):
        # the slower of cameras and filters has the larger step
        shared = [n for n in at if n in ("c", "cam")]
        channel = 0
        for name in shared:
            channel = channel * (counts[name] or 0) + at[name]
        key = (at.get("t", 0), channel, at.get("z", 0))
        visited.setdefault(at.get("p", 0), []).append((key, number))
    slow = next((dim.name for dim in run.dims[:-2] if dim.name != "p"), None)
    images = {}
    for position, planes in visited.items():
        shape = [1, 1, 1]
        for axis, names in enumerate((("t",), ("c", "cam"), ("z",))):
            for name in names:  # cut along the slowest axis only
                shape[axis] *= 1 if name == slow else counts.get(name) or 1
        if slow is not None:
            axis = {"t": 0, "c": 1, "cam": 1, "z": 2}[slow]
            shape[axis] *= max(
                at[slow] + 1 for number, at in taken(run) if at.get("p", 0) == position
            )
        image = np.zeros((*shape, Y, X), dtype)
        for key, number in planes:
            if number not in run.skipped:
                image[key] = frame(number, dtype)
        images[position] = image
    return images


@pytest.fixture
def acquired(request, tmp_path):
    """Take an acquisition and return its settings."""
    name, kind = request.param
    run = RUNS[name]
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "run"),
        dimensions=run.dims,
        format=FORMATS[kind],
        **{"dtype": "uint16", **run.more},
    )
    with create_stream(settings) as stream:
        for number, _ in taken(run):
            if number in run.skipped:
                stream.skip(frames=1)
            else:
                said = run.said(number) if run.said else None
                stream.append(frame(number, settings.dtype), frame_metadata=said)
        stream.set_global_metadata("lab", {"operator": "Zoë", "n": [1, 2.5, None]})
    assert {path.name for path in tmp_path.iterdir()} == {Path(settings.output_path).name}
    return run, settings, Path(settings.output_path)


def of_format(kind):
    cases = [case for case in CASES if case[1].startswith(kind)]
    return pytest.mark.parametrize("acquired", cases, indirect=True, ids=", ".join)


# -- OME-TIFF -------------------------------------------------------------------------------------


def tiff_files(path):
    return sorted(path.glob("*.tiff")) if path.is_dir() else [path]


def description(path):
    with tifffile.TiffFile(path) as file:
        return file.pages[0].tags[270].value.encode()


def by_tifffile(path, series):
    """Return a series as T, C, Z, Y, X."""
    with tifffile.TiffFile(path) as file:
        found = file.series[series]
        axes, pixels = found.axes, found.asarray()
    for letter in "ZCT":
        if letter not in axes:
            axes, pixels = letter + axes, pixels[None]
    return pixels.transpose([axes.index(letter) for letter in "TCZYX"])


@of_format("tiff")
def test_ome_tiff(acquired, java):
    run, _, path = acquired
    images = list(expected(run).values())
    files = tiff_files(path)
    assert len(files) == len(images)
    assert series_count(java, files[0]) == len(images)
    for n, image in enumerate(images):
        # tifffile looks for contiguous pixels of another file in the one that is open
        np.testing.assert_array_equal(by_tifffile(files[n], n), image)
        np.testing.assert_array_equal(by_java(java, files[-1], n), image.transpose(3, 4, 2, 1, 0))
    for file in files:
        root = etree.fromstring(description(file))
        assert SCHEMA.validate(root), SCHEMA.error_log
        check_notes(root)
    check_planes(run, files)


@pytest.mark.parametrize("where", ["redundant", "master-tiff", "companion-file"])
def test_documents_of_several_files_wherever_they_are_kept(tmp_path, java, where):
    dims = (t(3), p("a", "b", "c"), c(2), *YX)
    settings = AcquisitionSettings(
        root_path=tmp_path / "run",
        dimensions=dims,
        dtype="uint16",
        format={"name": "ome-tiff", "multi_file_metadata": where},
    )
    run = Run(dims, frames=15, said=event)  # the last round lacks its last position
    with create_stream(settings) as stream:
        for number, _ in taken(run):
            stream.append(frame(number, "uint16"), frame_metadata=event(number))
    folder = tmp_path / "elsewhere"  # a set is one that can be moved
    Path(settings.output_path).rename(folder)
    files = tiff_files(folder)
    for n, image in enumerate(expected(run).values()):
        for file in files:
            np.testing.assert_array_equal(by_java(java, file, n), image.transpose(3, 4, 2, 1, 0))
    texts = [description(file) for file in files]
    if where == "companion-file":
        texts.append((folder / "companion.ome").read_bytes())
    full = {"redundant": [0, 1, 2], "master-tiff": [0], "companion-file": [3]}[where]
    frames = []
    for n, xml in enumerate(texts):
        root = etree.fromstring(xml)
        assert SCHEMA.validate(root), SCHEMA.error_log
        assert len(root.findall(f"{NS}Image")) == (3 if n in full else 0)
        assert len(root.findall(f"{NS}BinaryOnly")) == (n not in full)
        notes = {a.get("ID"): a for a in root.iter(f"{NS}MapAnnotation")}
        for plane in root.iter(f"{NS}Plane"):
            assert plane[0].get("ID") in notes
            frames.append(round(float(plane.get("DeltaT")) / 0.25))
    assert sorted(frames) == list(range(15))


def check_notes(root):
    (note,) = (a for a in root.iter(f"{NS}MapAnnotation") if a.get("Namespace") == "lab")
    found = {m.get("K"): json.loads(m.text) for m in note.iter(f"{NS}M")}
    assert found == {"operator": "Zoë", "n": [1, 2.5, None]}


def numbers_by_position(run):
    found: dict[int, list[int]] = {}
    for number, at in taken(run):
        found.setdefault(at.get("p", 0), []).append(number)
    return list(found.values())


def check_planes(run, files):
    """Compare what the files say of each plane with what was said of its frame."""
    for n, (file, numbers) in enumerate(zip(files, numbers_by_position(run), strict=True)):
        xml = description(file)
        absent = absent_planes(xml)[n]
        skipped = [k for k, number in enumerate(numbers) if number in run.skipped]
        assert [k for r in absent.skipped for k in r] == skipped
        planes = expected(run)[n][..., 0, 0].size
        assert [k for r in absent.missing for k in r] == list(range(len(numbers), planes))
        if run.said is None:
            continue
        root = etree.fromstring(xml)
        notes = {a.get("ID"): a for a in root.iter(f"{NS}MapAnnotation")}
        told = {}
        for plane in root.findall(f"{NS}Image")[n].iter(f"{NS}Plane"):
            (ref,) = plane
            others = {m.get("K"): m.text for m in notes[ref.get("ID")].iter(f"{NS}M")}
            key = tuple(int(plane.get(f"The{axis}")) for axis in "TCZ")
            told[key] = (dict(plane.attrib), others)
        wanted = {}
        for number, at in taken(run):
            if at.get("p", 0) == n:
                wanted[tuple(at.get(axis, 0) for axis in "tcz")] = run.said(number)
        assert set(told) == set(wanted)
        for key, said in wanted.items():
            attributes, others = told[key]
            for name, own in {
                "delta_t": "DeltaT",
                "exposure_time": "ExposureTime",
                **{f"position_{axis}": f"Position{axis.upper()}" for axis in "xyz"},
            }.items():
                assert float(attributes[own]) == said[name]
            assert float(others["temperature"]) == said["temperature"]
            assert json.loads(others["state"]) == said["state"]


# -- OME-Zarr -------------------------------------------------------------------------------------


def document(folder):
    """Return the attributes of a group, and the version of NGFF."""
    file = folder / "zarr.json"
    if file.exists():
        whole = json.loads(file.read_text())
        assert whole["node_type"] == "group"
        return whole["attributes"], "0.5"
    file = folder / ".zattrs"
    return json.loads(file.read_text()) if file.exists() else {}, "0.4"


def zarr_images(path):
    """Return the folder of each image, in the order of the positions."""
    attributes, version = document(path)
    found = attributes["ome"] if version == "0.5" else attributes
    if "multiscales" in found:
        return [path]
    if "plate" in found:
        wells = [path / well["path"] for well in found["plate"]["wells"]]
        inside = [(well, document(well)[0]) for well in wells]
        return [
            well / image["path"]
            for well, about in inside
            for image in about.get("ome", about)["well"]["images"]
        ]
    series, _ = document(path / "OME")
    return [path / name for name in series.get("ome", series)["series"]]


def by_tensorstore(folder, version):
    driver = "zarr3" if version == "0.5" else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(folder)}}
    return tensorstore.open(spec, read=True).result().read().result()


def strict(attributes, version):
    """Return attributes with what only the strict schema asks of an image without levels."""
    known = dict(attributes["ome"] if version == "0.5" else attributes)
    if "multiscales" in known:
        known["multiscales"] = [
            {"type": "none", "metadata": {}, **image} for image in known["multiscales"]
        ]
    return {**attributes, "ome": known} if version == "0.5" else known


@of_format("zarr")
def test_ome_zarr(acquired):
    run, settings, path = acquired
    images = list(expected(run).values())
    folders = zarr_images(path)
    assert len(folders) == len(images)
    compliant = settings.storage_order != "acquisition"
    for folder, image in zip(folders, images, strict=True):
        attributes, version = document(folder)
        (multiscale,) = (attributes["ome"] if version == "0.5" else attributes)["multiscales"]
        # cameras are stored in place of channels, or together with them
        letters = ["c" if a["name"] == "cam" else a["name"] for a in multiscale["axes"]]
        assert letters[-2:] == ["y", "x"]
        for level, dataset in enumerate(multiscale["datasets"]):
            array = folder / dataset["path"]
            seen = image[..., :: 2**level, :: 2**level]
            absent = [n for n, letter in enumerate("tczyx") if letter not in letters]
            left = "".join(letter for letter in "tczyx" if letter in letters)
            want = np.squeeze(seen, tuple(absent)).transpose([left.index(k) for k in letters])
            np.testing.assert_array_equal(zarr.open_array(array, mode="r")[...], want)
            np.testing.assert_array_equal(by_tensorstore(array, version), want)
        if compliant:
            ngff_peers.check(strict(attributes, version), version, "image")
    if compliant:
        check_store(path, run, settings)
    check_said(run, path, folders)


def check_store(path, run, settings):
    """Have others look at the store as a whole."""
    attributes, version = document(path)
    found = attributes["ome"] if version == "0.5" else attributes
    group = zarr.open_group(path, mode="r")
    # of 0.4 with several images yaozarrs learns the version from one that is called "0"
    named = version == "0.4" and "bioformats2raw.layout" in found
    for folder in zarr_images(path) if named else [path]:
        assert yaozarrs.validate_zarr_store(folder).ome_version() == version
    if "plate" in found:
        ngff_peers.check(attributes, version, "plate")
        assert type(models.open_ome_zarr(group, version=version)).__name__ == "HCS"
        assert found["plate"]["field_count"] == 2
    elif "bioformats2raw.layout" in found:
        ngff_peers.check(attributes, version, "layout")
        ngff_peers.check(document(path / "OME")[0], version, "series")
        for folder in zarr_images(path):
            image = models.open_ome_zarr(zarr.open_group(folder, mode="r"), version=version)
            assert type(image).__name__ == "Image"
    else:
        assert type(models.open_ome_zarr(group, version=version)).__name__ == "Image"
    xml = (path / "OME" / "METADATA.ome.xml").read_bytes()
    root = etree.fromstring(xml)
    assert SCHEMA.validate(root), SCHEMA.error_log
    assert len(root.findall(f"{NS}Image")) == len(expected(run))
    assert {p.get("Type") for p in root.iter(f"{NS}Pixels")} == {
        {"float32": "float", "float64": "double"}.get(settings.dtype, settings.dtype)
    }


def check_said(run, path, folders):
    """Compare the metadata of frames, and of the whole, with what was said."""
    attributes, _ = document(path)
    assert attributes["lab"] == {"operator": "Zoë", "n": [1, 2.5, None]}
    if run.said is None:
        return
    for folder, numbers in zip(folders, numbers_by_position(run), strict=True):
        told = document(folder)[0]["ome_writers"]["frame_metadata"]
        assert [{k: v for k, v in said.items() if k != "storage_index"} for said in told] == [
            run.said(number) for number in numbers
        ]


def test_settings_that_hold_the_rest_of_the_guide(tmp_path):
    """The suffix chooses the format; the path of the output is known before and after."""
    dims = dims_from_standard_axes({"t": 2, "y": Y, "x": X})
    for root, form, end in (
        ("a.ome.tiff", "auto", "a.ome.tiff"),
        ("b", "ome-tiff", "b.ome.tiff"),
        ("c.ome.zarr", "auto", "c.ome.zarr"),
        ("d", "ome-zarr", "d.ome.zarr"),
        ("e", "acquire-zarr", "e.ome.zarr"),
        ("f", {"name": "ome-zarr", "backend": "tensorstore"}, "f.ome.zarr"),
    ):
        settings = AcquisitionSettings(
            root_path=tmp_path / root, dimensions=dims, dtype="uint16", format=form
        )
        assert Path(settings.output_path) == tmp_path / end
        with create_stream(settings) as stream:
            for n in range(2):
                stream.append(frame(n, "uint16"))
        assert Path(settings.output_path).exists()
    with pytest.raises(ValueError, match="lzw"):
        AcquisitionSettings(
            root_path="x.ome.zarr", dimensions=dims, dtype="uint16", compression="lzw"
        )
