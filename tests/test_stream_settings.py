"""Settings of a stream: what they take, what they refuse and with which words."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from bioio_tk import BioReader, BioWriter
from bioio_tk.core.plate import Acquisition, Field, Well
from bioio_tk.core.plate import Plate as CorePlate
from bioio_tk.errors import BioIOWarning, SpecError, UnsupportedError
from bioio_tk.stream.settings import (
    AcquisitionSettings,
    Channel,
    Dimension,
    OmeTiffFormat,
    OmeZarrFormat,
    Plate,
    Position,
    PositionDimension,
    ScratchFormat,
    StandardAxis,
    dims_from_standard_axes,
)

FRAME = (Dimension(name="y", count=8), Dimension(name="x", count=9))


def dims(**sizes):
    """Dimensions in front of a frame: a size, or the arguments of a Dimension."""
    made = [
        Dimension(name=name, **(given if isinstance(given, dict) else {"count": given}))
        for name, given in sizes.items()
    ]
    return [*made, *FRAME]


def made(root_path="a.ome.zarr", dimensions=FRAME, dtype="uint16", **others):
    return AcquisitionSettings(root_path=root_path, dimensions=dimensions, dtype=dtype, **others)


# --- dimensions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x", "space"), ("y", "space"), ("z", "space"), ("c", "channel"), ("t", "time"),
     ("T", "time"), ("p", "position"), ("cam", None), ("angle", None)],
)  # fmt: skip
def test_the_type_of_a_dimension_follows_from_its_name(name, kind):
    assert Dimension(name=name, count=2).type == kind


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"name": "t", "unit": "um"}, "space"),
        ({"name": "z", "unit": "ms"}, "time"),
        ({"name": "z", "coords": [Channel(name="A")]}, "channel"),
        ({"name": "t", "coords": [Position(name="A")]}, "position"),
        ({"name": "t", "type": "other", "count": 2}, "other"),
        ({"name": "c", "coords": [1.0, 2.5]}, None),
        ({"name": "p", "coords": [1.0, 2.5]}, None),
        ({"name": "w", "unit": "volt"}, None),
    ],
)
def test_what_is_said_counts_before_the_name(given, kind):
    assert Dimension(**given).type == kind


@pytest.mark.parametrize(
    ("unit", "kind", "word"),
    [("µm", None, "micrometer"), ("um", "space", "micrometer"), ("u", "space", "micrometer"),
     ("micron", "space", "micrometer"), ("A", "space", "angstrom"), ("mm", "space", "millimeter"),
     ("Mm", "space", "megameter"), ("m", "space", "meter"), ("s", "time", "second"),
     ("sec", None, "second"), ("us", "time", "microsecond"), ("usec", "time", "microsecond"),
     ("µsec", "time", "microsecond"), ("msec", "time", "millisecond"), ("min", None, "minute"),
     ("h", "time", "hour"), ("d", "time", "day"), ("Micrometer", None, "micrometer"),
     ("volt", "other", "volt"), ("um", "channel", "um")],
)  # fmt: skip
def test_units_are_kept_as_ngff_writes_them(unit, kind, word):
    assert Dimension(name="q", type=kind, unit=unit, count=1).unit == word


@pytest.mark.parametrize(("kind", "what"), [("space", "length"), ("time", "time")])
@pytest.mark.parametrize("unit", ["parrot", "", "pixel"])
def test_an_unknown_unit_is_refused(kind, what, unit):
    with pytest.raises(ValidationError, match=f"Unrecognized unit of {what}: {unit!r}"):
        Dimension(name="q", type=kind, unit=unit)


def test_coords_give_count_and_objects():
    channels = Dimension(name="c", coords=["DAPI", {"name": "FITC", "emission_wavelength_nm": 520}])
    assert channels.count == 2
    assert channels.coords == [
        Channel(name="DAPI"), Channel(name="FITC", emission_wavelength_nm=520)
    ]  # fmt: skip
    positions = Dimension(name="stage", type="position", count=3)
    assert positions.coords == [Position(name="0"), Position(name="1"), Position(name="2")]
    assert Dimension(name="z", coords=np.array([0.0, 0.5])).coords == [0.0, 0.5]
    assert Dimension(name="t", count=np.int64(4)).count == 4


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"coords": [1.0], "count": 2}, r"Length of coords \(1\) does not match count \(2\)\."),
        ({"coords": 3}, "`coords` must be an iterable type"),
        ({"coords": "DAPI"}, "`coords` must be an iterable type"),
        ({"coords": [Channel(name="A"), 1.0]}, "May not mix Channel objects with other coord"),
        ({"coords": [Position(name="A"), 1.0]}, "May not mix Position objects with other coord"),
        ({"coords": [Channel(name="A"), Position(name="A")]}, "May not mix Channel objects"),
        ({"coords": [Channel(name="A")], "type": "time"},
         "Channel objects in coords require type='channel', got type='time'"),
        ({"coords": [Position(name="A")], "type": "space"},
         "Position objects in coords require type='position', got type='space'"),
        ({"coords": [Channel(name="A")], "unit": "um"},
         "type inference: coords suggests type='channel' but unit suggests type='space'"),
        ({"coords": ["A", "A"], "type": "channel"}, r"Channel names must be unique\."),
        ({"coords": ["A", "A"], "type": "position"},
         r"All positions without row/column must have unique names\."),
        ({"coords": [Position(name="f", plate_row="A", plate_column="1", grid_row=0, grid_column=0)]
                    * 2},
         r'Duplicate names in well \("A", "1"\), grid position \(0, 0\): \[\'f\'\]'),
        ({"coords": [Position(name="f", grid_row=0, grid_column=2)] * 2},
         r"within each group\. Duplicate names in grid position \(0, 2\): \['f'\]"),
        ({"count": 0}, "greater than 0"),
        ({"chunk_size": -1}, "greater than 0"),
        ({"scale": float("nan")}, "finite"),
        ({"colour": 1}, "Extra inputs are not permitted"),
        ({"type": "wavelength"}, "Input should be 'space'"),
    ],
)  # fmt: skip
def test_a_dimension_that_makes_no_sense(given, text):
    with pytest.raises(ValidationError, match=text):
        Dimension(**{"name": "q", **given})


def test_positions_without_end_or_names_are_not_implemented():
    with pytest.raises(NotImplementedError, match=r"Unbounded position dimensions \(count=None\)"):
        Dimension(name="p", type="position")
    with pytest.raises(NotImplementedError, match="Empty coords for position dimensions"):
        Dimension(name="p", type="position", coords=[])


def test_the_same_name_in_other_wells_and_cells_is_allowed():
    coords = [
        Position(name="f", plate_row="A", plate_column="1"),
        Position(name="f", plate_row="A", plate_column="2"),
        Position(name="f", plate_row="A", plate_column="2", grid_row=0, grid_column=1),
    ]
    assert Dimension(name="p", coords=coords).coords == coords


@pytest.mark.parametrize("pair", ["plate", "grid"])
def test_row_and_column_go_together(pair):
    text = f"{pair}_row and {pair}_column must both be set or both be None"
    with pytest.raises(ValidationError, match=text):
        Position(name="A", **{f"{pair}_row": "1"})
    with pytest.raises(ValidationError, match=text):
        Position(name="A", **{f"{pair}_column": "1"})


def test_what_was_given_is_not_changed():
    given = {"name": "c", "coords": ["A"], "unit": "x"}
    form = {"name": "ome-tiff"}
    plate = {"rows": ["A"], "columns": ["1"]}
    kept = copy.deepcopy((given, form, plate))
    frame = [Dimension(name="row", count=2), Dimension(name="x", count=2)]
    with pytest.warns(UserWarning, match="expected to have type='space'"):
        settings = made("a.ome.tif", [Dimension.model_validate(given), *frame], format=form)
    Plate.model_validate(plate)
    assert (given, form, plate) == kept
    assert settings.format.suffix == ".ome.tif"
    assert frame[0].type is None
    assert settings.dimensions[1].type == "space"


def test_a_field_is_set_with_all_checks_or_not_at_all():
    dim = Dimension(name="t", coords=[1.0, 2.0])
    with pytest.raises(ValidationError, match="does not match count"):
        dim.count = 5
    with pytest.raises(ValueError, match="Dimension has no 'colour'"):
        dim.colour = "red"
    assert dim.count == 2
    dim.unit = "ms"
    assert dim.unit == "millisecond"
    later = Dimension(name="q")
    later.coords = [Channel(name="A")]
    assert (later.count, later.type) == (1, "channel")
    settings = made()
    with pytest.raises(ValidationError, match="not supported for OME-Zarr"):
        settings.compression = "lzw"
    assert settings.compression is None
    settings.format = "tifffile"
    settings.root_path = "b.ome.tiff"
    settings.compression = "lzw"
    assert settings.validate_stream_ready() is True
    assert settings.output_path == "b.ome.tiff"


def test_position_dimension_is_deprecated():
    with pytest.warns(DeprecationWarning, match="PositionDimension is deprecated") as record:
        old = PositionDimension(positions=["A", Position(name="B")])
    assert record[0].filename == __file__
    assert old.model_dump() == Dimension(name="p", type="position", coords=["A", "B"]).model_dump()


def test_a_warning_names_the_line_that_is_to_blame():
    frame = [Dimension(name="row", count=2), FRAME[1]]
    wells = [Position(name="q", plate_row="B", plate_column="1")]
    plate = Plate(rows=["A"], columns=["1"])
    for given in (
        {"root_path": "a"},
        {"root_path": "a.tif", "dimensions": frame},
        {"root_path": "a.tif", "dimensions": dims(p={"coords": wells}), "plate": plate},
    ):
        with pytest.warns(BioIOWarning) as record:
            AcquisitionSettings(**given)
        assert [w.filename for w in record] == [__file__]


def test_standard_axes():
    found = dims_from_standard_axes(
        {"t": None, "p": ["A", "B"], "c": ["D", "F"], "z": 3, "y": 64, "x": 32},
        chunk_shapes={"z": 2, StandardAxis.Y: 16},
        shard_shapes={"x": 2},
    )
    fields = ("name", "type", "count", "unit", "chunk_size", "shard_size_chunks")
    assert [tuple(getattr(d, field) for field in fields) for d in found] == [
        ("t", "time", None, "second", 1, None),
        ("p", "position", 2, None, None, None),
        ("c", "channel", 2, None, 1, None),
        ("z", "space", 3, "micrometer", 2, None),
        ("y", "space", 64, "micrometer", 16, None),
        ("x", "space", 32, "micrometer", 32, 2),
    ]  # fmt: skip
    assert found[2].coords == [Channel(name="D"), Channel(name="F")]
    with pytest.raises(ValueError, match=r"Standard axes names must be one of \['x', 'y', 'z'"):
        dims_from_standard_axes({"w": 2, "y": 4, "x": 4})


# --- settings --------------------------------------------------------------------------------


OTHER = {"count": 2, "type": "other"}


@pytest.mark.parametrize(
    ("dimensions", "text"),
    [
        (dims(p=2, q={"type": "position", "count": 2}), "Only one position dimension is allowed."),
        (dims(t=2, c=None), r"Only the first dimension may be unbounded \(count=None\)\."),
        ([FRAME[0]], r"At least 2 non-position dimensions are required \(usually Y and X\)\."),
        (dims(p=2)[:2], "At least 2 non-position dimensions are required"),
        (dims(t=1, c=1, z=1, a=1),
         "At most 5 non-position dimensions are allowed for both OME-Zarr and OME-TIFF, got 6."),
        (dims(t=1, z=1, w={"count": 1, "type": "time"}, v={"count": 2, "type": "space"}, cam=OTHER),
         "got 7"),
        (dims(t=1, z=1, w={"count": 1, "type": "time"}, cam=OTHER), "got 6"),
        ([Dimension(name="t", count=2), Dimension(name="t", count=2), *FRAME],
         r"Dimension names must be unique, duplicates: \['t'\]"),
        ([*FRAME, Dimension(name="t", count=2)],
         r"The last two dimensions must be spatial dimensions \(type='space'\)\."),
        ([Dimension(name="y"), FRAME[1]], "their count must be given"),
    ],
)  # fmt: skip
def test_dimensions_that_contradict_each_other(dimensions, text):
    with pytest.raises(ValidationError, match=text):
        made(dimensions=dimensions)


def test_cameras_share_the_channels():
    assert made(dimensions=dims(t=1, p=2, cam=OTHER, c=2, z=1)).num_frames == 8
    assert made(dimensions=dims(t=1, z=1, cam=OTHER, angle=OTHER)).num_frames == 4


def test_dimensions_and_type_may_come_later():
    settings = AcquisitionSettings(root_path="a.zarr")
    assert (settings.dimensions, settings.dtype) == ((), "")
    for name in ("output_path", "shape", "is_unbounded", "num_frames", "positions",
                 "position_dimension_index", "frame_dimensions", "index_dimensions",
                 "array_dimensions", "storage_index_dimensions", "storage_index_permutation",
                 "array_storage_dimensions"):  # fmt: skip
        with pytest.raises(ValueError, match=f"Cannot access '{name}': dimensions has not been"):
            getattr(settings, name)
    with pytest.raises(ValueError, match=r"settings\.dimensions must be set before creating"):
        settings.validate_stream_ready()
    settings.dimensions = FRAME
    with pytest.raises(ValueError, match=r"settings\.dtype must be set before creating"):
        settings.validate_stream_ready()
    settings.dtype = np.float32
    assert settings.dtype == "float32"
    assert settings.validate_stream_ready() is True


def test_the_properties():
    settings = made(dimensions=dims(t=None, p={"coords": ["A", "B"]}, c=3))
    assert settings.shape == (None, 2, 3, 8, 9)
    assert settings.is_unbounded
    assert settings.num_frames is None
    assert [p.name for p in settings.positions] == ["A", "B"]
    assert settings.position_dimension_index == 1
    names = {
        prop: [d.name for d in getattr(settings, prop)]
        for prop in ("frame_dimensions", "index_dimensions", "array_dimensions",
                     "storage_index_dimensions", "array_storage_dimensions")
    }  # fmt: skip
    assert names == {
        "frame_dimensions": ["y", "x"],
        "index_dimensions": ["t", "c"],
        "array_dimensions": ["t", "c", "y", "x"],
        "storage_index_dimensions": ["t", "c"],
        "array_storage_dimensions": ["t", "c", "y", "x"],
    }
    alone = made()
    assert (alone.num_frames, alone.positions) == (1, (Position(name="0"),))
    assert alone.position_dimension_index is None


@pytest.mark.parametrize(
    ("root", "order", "stored", "moved"),
    [
        ("a.zarr", "ome", "tcqz", (2, 1, 3, 0)),
        ("a.zarr", "acquisition", "zctq", None),
        ("a.tif", "ome", "zctq", None),
        ("", "ome", "zctq", None),
        ("a.tif", ["q", "t", "z", "c", "y", "x"], "qtzc", (3, 2, 0, 1)),
    ],
)
def test_storage_order(root, order, stored, moved):
    settings = made(root, dims(z=2, c=2, t=2, q={"count": 1, "type": "other"}), storage_order=order)
    assert "".join(d.name for d in settings.storage_index_dimensions) == stored
    assert settings.storage_index_permutation == moved


def test_what_is_neither_z_c_nor_t_comes_last():
    settings = made("a.tif", dims(q={"count": 1, "type": "other"}, c=2))
    assert [d.name for d in settings.storage_index_dimensions] == ["c", "q"]


@pytest.mark.parametrize(
    ("order", "text"),
    [
        (["y", "x", "t"], r"storage_order may not \(yet\) permute the last two dimensions\."),
        (["p", "t", "x", "y"], r"storage_order may not \(yet\) permute the last two dimensions\."),
        (["z", "y", "x"], r"storage_order names \['z', 'y', 'x'\] don't match acquisition"),
        (["y", "x"], "don't match acquisition dimension names"),
        (["t", "t", "y", "x"], "names a dimension twice"),
        ("TCZYX", "Input should be 'acquisition' or 'ome'"),
    ],
)
def test_storage_orders_that_do_not_fit(order, text):
    with pytest.raises(ValidationError, match=text):
        made(dimensions=dims(t=2, p=2), storage_order=order)


def test_a_list_may_leave_the_positions_out():
    for order in (["p", "t", "y", "x"], ["t", "y", "x"]):
        settings = made(dimensions=dims(t=2, p=2), storage_order=order)
        assert [d.name for d in settings.storage_index_dimensions] == ["t"]


@pytest.mark.parametrize(
    ("given", "name"),
    [("u2", "uint16"), (">u2", "uint16"), (np.uint8, "uint8"), (float, "float64"), ("?", "bool"),
     (np.dtype("complex64"), "complex64"), ("uint64", "uint64"), ("f2", "float16")],
)  # fmt: skip
def test_pixel_types(given, name):
    assert made(dtype=given).dtype == name


@pytest.mark.parametrize("given", ["object", "U5", "parrot", None, "M8[s]", "u2,u2", object()])
def test_what_is_no_pixel_type(given):
    with pytest.raises(ValidationError, match="Invalid dtype: "):
        made(dtype=given)


@pytest.mark.parametrize(
    ("root", "given", "form"),
    [
        ("", "auto", ScratchFormat()),
        ("", "Memory", ScratchFormat()),
        ("a", "scratch", ScratchFormat()),
        ("a.ome.tif", "auto", OmeTiffFormat(suffix=".ome.tif")),
        ("a.OME.TIFF", "AUTO", OmeTiffFormat(suffix=".OME.TIFF")),
        ("a.zarr", "auto", OmeZarrFormat(suffix=".zarr")),
        ("a.zarr", {"name": "ome-zarr"}, OmeZarrFormat(suffix=".zarr")),
        ("a.zarr", {"name": "ome-zarr", "suffix": ".z"}, OmeZarrFormat(suffix=".z")),
        ("a.zarr", OmeZarrFormat(ngff_version="0.4"), OmeZarrFormat(ngff_version="0.4")),
        ("a", "tiff", OmeTiffFormat()),
        ("a", "OME-Tiff", OmeTiffFormat()),
        ("a", "tifffile", OmeTiffFormat(backend="tifffile")),
        ("a", "ome-zarr", OmeZarrFormat()),
        ("a", "zarr", OmeZarrFormat()),
        ("a", "tensorstore", OmeZarrFormat(backend="tensorstore")),
        ("a", "acquire-zarr", OmeZarrFormat(backend="acquire-zarr")),
        ("a", "zarrs-python", OmeZarrFormat(backend="zarrs-python")),
        ("a.ome.zarr", "zarr-python", OmeZarrFormat(backend="zarr-python")),
    ],
)
def test_formats(root, given, form):
    assert made(root, format=given).format == form


def test_a_format_nobody_can_guess():
    with pytest.warns(UserWarning, match="Output format could not be inferred from root_path 'a'"):
        settings = made("a")
    assert settings.format == OmeZarrFormat()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"format": "png"}, "format='png' is not known: give one of ome-tiff, "),
        ({"format": {"name": "png"}}, "does not match any of the expected tags"),
        ({"backend": "tensorstore"}, "`backend` is no longer a top-level field"),
        ({"compression": "lzw"}, "Compression 'lzw' is not supported for OME-Zarr"),
        ({"compression": "rar"}, "Input should be 'lzw'"),
        ({"root_path": "a.tif", "compression": "blosc-lz4"}, "is not supported for OME-TIFF"),
        ({"format": "ome-tiff", "root_path": "a.ome.zarr"},
         "format='ome-tiff' contradicts root_path='a.ome.zarr'"),
        ({"format": "tensorstore", "root_path": "a.Tif"},
         "format='ome-zarr' contradicts root_path='a.Tif'"),
        ({"format": OmeTiffFormat(), "root_path": "a.zarr/"}, "contradicts"),
        ({"format": {"name": "ome-tiff", "suffix": ".zarr"}, "root_path": "a"},
         "suffix='.zarr' is that of OME-Zarr"),
        ({"format": {"name": "ome-tiff", "companion_file": "../x"}, "root_path": "a"},
         "is no name of a file"),
        ({"pyramid_levels": 2}, "needs pyramid='live' or 'after'"),
        ({"compression_level": 2}, "says nothing without a compression"),
        ({"spill_dir": "/tmp"}, "needs backpressure='spill'"),
        ({"pyramid": "live", "format": "scratch"}, "not for the scratch format"),
        ({"max_memory_bytes": 0}, "greater than 0"),
        ({"backpressure": "drop"}, "Input should be 'block'"),
        ({"downsample": "bicubic"}, "Input should be 'mean'"),
        ({"format": {"name": "ome-zarr", "ngff_version": "0.4"},
          "dimensions": dims(t={"count": 4, "shard_size_chunks": 2})},
         r"shard_size_chunks of \['t'\]: shards need ngff_version='0\.5'"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(given, text):
    with pytest.raises(ValidationError, match=text):
        made(**given)


@pytest.mark.parametrize("name", ["none", "lzw", "deflate", "zstd", "packbits", "lzma"])
def test_compressions_of_tiff(name):
    assert made("a.tif", compression=name).compression == name


@pytest.mark.parametrize("name", ["none", "blosc-zstd", "blosc-lz4", "zstd", "gzip"])
def test_compressions_of_zarr(name):
    assert made(compression=name, format="acquire-zarr").compression == name


@pytest.mark.parametrize(
    ("root", "form", "number", "path"),
    [
        ("d/a.ome.tiff", "auto", 1, "d/a.ome.tiff"),
        ("d/a.ome.tiff", "auto", 2, "d/a"),
        ("a.tif", "auto", 1, "a.tif"),
        ("a.OME.TIF", "auto", 1, "a.OME.TIF"),
        ("a.v2", "tiff", 1, "a.v2.ome.tiff"),
        ("a.v2", "tiff", 2, "a.v2"),
        ("a.tif", {"name": "ome-tiff", "prefer_single_file": False}, 1, "a"),
        ("a.tif", {"name": "ome-tiff", "prefer_single_file": "always"}, 1, "a.tif"),
        ("a.tif", OmeTiffFormat(suffix=".ome.tf8"), 1, "a.ome.tf8"),
        ("a.zarr", "auto", 3, "a.zarr"),
        ("a.ome.zarr/", "auto", 1, "a.ome.zarr"),
        ("a", "zarr", 1, "a.ome.zarr"),
        ("a.zarr", OmeZarrFormat(), 1, "a.ome.zarr"),
        ("a.tif", "scratch", 1, "a.tif"),
        (Path("q") / "a.zarr", "auto", 1, os.path.join("q", "a.zarr")),  # noqa: PTH118
    ],
)
def test_where_the_output_goes(root, form, number, path):
    assert made(root, dims(p=number), format=form).output_path == path


def test_plates_need_positions_in_wells():
    plate = Plate(row_names=["A"], column_names=["1"])
    with pytest.raises(ValidationError, match="Plate mode requires a position dimension in dim"):
        made(plate=plate)
    with pytest.raises(ValidationError, match=r"for plate mode\. Missing row/column for positions: "
                       r"\['q'\]"):  # fmt: skip
        made(dimensions=dims(p={"coords": ["q"]}), plate=plate)
    wells = [Position(name=f"{row}{column}", plate_row=row, plate_column=column)
             for row, column in ("A1", "B1", "A2")]  # fmt: skip
    made(dimensions=dims(p={"coords": wells[:1]}), plate=plate)
    with pytest.warns(UserWarning, match=r"values not in the plate definition: \['B1', 'A2'\]"):
        settings = made(dimensions=dims(p={"coords": wells}), plate=plate)
    settings.validate_stream_ready()  # says it no second time


def test_a_copy_with_other_values_is_checked_before_a_stream():
    settings = made(dimensions=dims(t=4))
    changed = settings.model_copy(update={"storage_order": ["q", "y", "x"]})
    with pytest.raises(ValidationError, match="don't match"):
        changed.validate_stream_ready()
    longer = settings.dimensions[0].model_copy(update={"chunk_size": 2, "shard_size_chunks": 2})
    assert longer.chunk_size == 2
    assert settings.dimensions[0].chunk_size is None
    wrong = settings.dimensions[0].model_copy(update={"chunk_size": -1})
    with pytest.raises(ValidationError, match=r"dimensions\.0\.chunk_size"):
        made(dimensions=[wrong, *FRAME])
    wrong = settings.model_copy(update={"dimensions": (wrong, *FRAME)})
    with pytest.raises(ValidationError, match=r"dimensions\.0\.chunk_size"):
        wrong.validate_stream_ready()


@pytest.mark.parametrize("start", [{"format": "scratch"}, {"root_path": "run.ome.tiff"}])
def test_settings_are_filled_in_as_microscope_programs_do(start):
    settings = AcquisitionSettings(overwrite=True, **start)
    known = dims(t=None, c={"coords": ["D", "F"]}, z=3)
    known[0] = known[0].model_copy(update={"chunk_size": 4, "shard_size_chunks": 2})
    known.insert(len(known) - 2, Dimension(name="cam", count=2, type="other"))
    full = AcquisitionSettings.model_validate(
        {**settings.model_dump(), "dimensions": known, "plate": None, "dtype": "uint16"}
    )
    assert full.format == settings.format
    assert full.overwrite
    assert full.shape == (None, 2, 3, 2, 8, 9)
    assert (full.dimensions[0].chunk_size, full.dimensions[0].shard_size_chunks) == (4, 2)
    assert full.validate_stream_ready() is True


@pytest.mark.parametrize("how", ["dump", "json", "model_json", "pickle", "copy"])
def test_settings_come_back_as_they_were(how):
    positions = [Position(name="a", plate_row="A", plate_column="1", x_coord=1.5), "b"]
    settings = made(
        "a.zarr",
        dims(t={"unit": "ms", "scale": 2}, p={"coords": positions}, cam=OTHER,
             c={"coords": [Channel(name="G", color="lime", excitation_wavelength_nm=488), "F"]}),
        plate=None, compression="zstd", storage_order="acquisition", pyramid="live",
    )  # fmt: skip
    back = {
        "dump": lambda: AcquisitionSettings.model_validate(settings.model_dump()),
        "json": lambda: AcquisitionSettings.model_validate(
            json.loads(json.dumps(settings.model_dump(mode="json")))
        ),
        "model_json": lambda: AcquisitionSettings.model_validate_json(settings.model_dump_json()),
        "pickle": lambda: pickle.loads(pickle.dumps(settings)),
        "copy": lambda: settings.model_copy(deep=True),
    }[how]()
    assert back == settings
    assert type(back.dimensions[3].coords[0]) is Channel
    assert type(back.dimensions[1].coords[1]) is Position


def test_what_is_dumped_has_the_names_other_programs_know():
    dumped = made(dimensions=dims(p={"coords": ["A"]})).model_dump()
    assert dumped["root_path"] == "a.ome.zarr"
    assert dumped["format"] == {
        "name": "ome-zarr", "backend": "auto", "suffix": ".ome.zarr", "ngff_version": "0.5"
    }  # fmt: skip
    assert dumped["dimensions"][0] == {
        "name": "p", "count": 1, "type": "position", "unit": None, "scale": None,
        "translation": None, "chunk_size": None, "shard_size_chunks": None,
        "coords": [{"name": "A", "plate_row": None, "plate_column": None, "grid_row": None,
                    "grid_column": None, "x_coord": None, "y_coord": None, "z_coord": None}],
    }  # fmt: skip


# --- plates ----------------------------------------------------------------------------------


def test_standard_plates():
    plate = Plate.from_standard_wells(96)
    assert "".join(plate.row_names) == "ABCDEFGH"
    assert plate.column_names == [str(n) for n in range(1, 13)]
    rows = Plate.from_standard_wells(1536).row_names
    assert rows[24:32] == ["Y", "Z", "AA", "AB", "AC", "AD", "AE", "AF"]
    assert Plate.from_standard_wells((703, 1)).row_names[-2:] == ["ZZ", "AAA"]
    for wells, shape in ((6, (2, 3)), (12, (3, 4)), (24, (4, 6)), (48, (6, 8)), (384, (16, 24))):
        plate = Plate.from_standard_wells(wells)
        assert (len(plate.row_names), len(plate.column_names)) == shape
    with pytest.raises(ValueError, match=r"Unrecognized standard plate size: 50\. Supported sizes"):
        Plate.from_standard_wells(50)
    for shape in ((0, 4), (1, 2, 3), (2, -1)):
        with pytest.raises(ValueError, match=r"it must be \(n_rows, n_columns\) with positive"):
            Plate.from_standard_wells(shape)


def test_a_plate_takes_both_spellings():
    plate = Plate("s", rows=("A", "B"), columns=["1"])
    assert plate == Plate(name="s", row_names=["A", "B"], column_names=["1"])
    assert plate.model_dump() == {"name": "s", "row_names": ["A", "B"], "column_names": ["1"]}
    assert (plate.rows, plate.columns) == (("A", "B"), ("1",))
    assert plate.core() == CorePlate("s", ("A", "B"), ("1",))
    with pytest.raises(ValidationError, match="rows and row_names are the same"):
        Plate(rows=["A"], row_names=["A"], columns=[])


def test_a_plate_keeps_its_wells_when_dumped():
    wells = (Well("A", "1", (Field("0", 3),)),)
    plate = Plate(rows=["A"], columns=["1"], wells=wells, acquisitions=(Acquisition(3, "x"),))
    assert Plate.model_validate(plate.model_dump()) == plate
    assert plate.core() == CorePlate("", ("A",), ("1",), wells, (Acquisition(3, "x"),))


@pytest.mark.parametrize("kind", [Plate, CorePlate])
def test_a_writer_takes_either_plate(tmp_path, kind):
    plate = kind(name="s", rows=("A", "B"), columns=("1", "2"))
    with BioWriter(
        tmp_path / "p.ome.zarr", image=np.ones((4, 4), "u1"), group="B/2/0", plate=plate
    ):
        pass
    attributes = json.loads((tmp_path / "p.ome.zarr" / "zarr.json").read_text())["attributes"]
    listed = attributes["ome"]["plate"]
    assert [row["name"] for row in listed["rows"]] == ["A", "B"]
    assert [column["name"] for column in listed["columns"]] == ["1", "2"]
    with BioReader(tmp_path / "p.ome.zarr") as br:
        assert br.plate.rows == ("A", "B")


def test_errors_outside_of_models_are_ours():
    with pytest.raises(SpecError):
        _ = AcquisitionSettings().shape
    with pytest.raises(UnsupportedError):
        Dimension(name="p", type="position")
    with pytest.warns(BioIOWarning):
        made("a")


def test_settings_need_no_engine():
    code = (
        "import sys, bioio_tk.stream.settings\n"
        "heavy = {'tifffile', 'imagecodecs', 'ome_types', 'zarr', 'numcodecs', 'jpype'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, text=True,
                          env={**os.environ, "PYTHONPATH": paths}, capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_good_setting_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(dimensions=dims(t=None, p=2, cam=OTHER, c=2, z=2))
