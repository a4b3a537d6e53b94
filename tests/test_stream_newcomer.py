"""What somebody new does wrong with a stream, and what the errors then say.

The texts are the point: each names what was given, and what to write instead.
"""

from __future__ import annotations

import dask.array
import numpy as np
import pytest
import zarr
from pydantic import ValidationError

from bioio_tk import (
    AcquisitionSettings,
    Channel,
    Dimension,
    OmeZarrFormat,
    Plate,
    Position,
    create_stream,
    dims_from_standard_axes,
)
from bioio_tk.errors import BioIOWarning

DIMS = dims_from_standard_axes({"t": 2, "y": 8, "x": 8})


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        (
            AcquisitionSettings,
            {"overwite": True},
            "AcquisitionSettings has no 'overwite'; did you mean 'overwrite'?",
        ),
        (
            AcquisitionSettings,
            {"Dtype": "uint8", "dimension": DIMS},
            "has no 'Dtype', 'dimension'; did you mean 'dtype', 'dimensions'?",
        ),
        (Dimension, {"name": "t", "chunk": 1}, "Dimension has no 'chunk'; did you mean 'chunk_si"),
        (Dimension, {"name": "t", "size": 3}, "Dimension has no 'size'; it has name, count, type,"),
        # one that can be guessed does not hide the one that cannot
        (Dimension, {"name": "t", "size": 3, "counts": 3}, "'size', 'counts'; it has name, count"),
        (Channel, {"name": "a", "colour": "red"}, "did you mean 'color'?"),
        # no guess is better than a bad one
        (Dimension, {"name": "c", "colour": "red"}, "Dimension has no 'colour'; it has name, coun"),
        (Position, {"name": "a", "x": 1.0}, "Position has no 'x'; did you mean 'x_coord'?"),
        (OmeZarrFormat, {"ngff": "0.4"}, "did you mean 'ngff_version'?"),
        (Plate, {"Row": ["A"]}, "did you mean 'row_names'?"),
    ],
)
def test_a_misspelled_field_says_what_there_is(model: type, fields: dict, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(**fields)
    assert "Extra inputs are not permitted: " in str(caught.value)
    assert said in str(caught.value)
    # programs look at the kind of error
    assert {error["type"] for error in caught.value.errors()} == {"extra_forbidden"}


def test_a_misspelled_field_of_a_format_given_as_a_dict() -> None:
    with pytest.raises(ValidationError, match="no 'version'; it has name, suffix, backend"):
        AcquisitionSettings(root_path="a", format={"name": "ome-zarr", "version": "0.4"})


@pytest.mark.parametrize(
    "given", [{"t": 2, "y": 8, "x": 8}, [("t", 2), ("y", 8), ("x", 8)], ["t", "y", "x"], "tyx"]
)
def test_dimensions_that_are_none_lead_to_the_shorthand(given: object) -> None:
    with pytest.raises(ValidationError, match=r"give dims_from_standard_axes\(\{'t': 5, "):
        AcquisitionSettings(root_path="a.ome.zarr", dimensions=given, dtype="uint8")


def test_dimensions_may_be_dicts() -> None:
    given = [dim.model_dump() for dim in DIMS]
    assert AcquisitionSettings(root_path="a.ome.zarr", dimensions=given).shape == (2, 8, 8)
    assert AcquisitionSettings(root_path="a.ome.zarr", dimensions=tuple(given)).shape == (2, 8, 8)


def test_the_frame_in_the_wrong_place_is_named() -> None:
    dims = dims_from_standard_axes({"y": 8, "x": 8, "t": 2})
    with pytest.raises(ValidationError, match=r"'t' is of type 'time': .* Y and X at the end"):
        AcquisitionSettings(root_path="a.ome.zarr", dimensions=dims)


def test_sizes_come_from_arrays_too() -> None:
    frames = np.zeros((np.int64(3), 4, 5))
    t, y, x = (np.int32(size) for size in frames.shape)
    dims = dims_from_standard_axes({"t": t, "y": y, "x": x})
    assert [dim.count for dim in dims] == [3, 4, 5]
    assert [dim.chunk_size for dim in dims] == [1, 4, 5]
    named = dims_from_standard_axes({"p": np.array(["a", "b"]), "y": 4, "x": 5})
    assert [position.name for position in named[0].coords or ()] == ["a", "b"]


@pytest.mark.parametrize("size", [2.0, "2", 2.5])
def test_a_size_that_is_none(size: object) -> None:
    with pytest.raises(ValueError, match=rf"size of 't' is {size!r}: give a whole number"):
        dims_from_standard_axes({"t": size, "y": 8, "x": 8})  # type: ignore[dict-item]


@pytest.mark.parametrize("which", ["chunk_shapes", "shard_shapes"])
def test_chunks_of_an_axis_that_nobody_knows(which: str) -> None:
    with pytest.raises(ValueError, match=r"must be one of .*Got: \['width'\]"):
        dims_from_standard_axes({"t": 2, "y": 8, "x": 8}, **{which: {"width": 4}})
    # the same chunks for all runs, though not all have planes
    dims = dims_from_standard_axes({"t": 2, "y": 8, "x": 8}, **{which: {"z": 4, "y": 2}})
    assert [dim.name for dim in dims] == ["t", "y", "x"]


def test_a_stream_of_a_dict() -> None:
    with pytest.raises(ValueError, match=r"takes bioio_tk.AcquisitionSettings, not builtins.dict"):
        create_stream({"root_path": "a.ome.zarr"})  # type: ignore[arg-type]


def test_notes_that_are_no_dict() -> None:
    settings = AcquisitionSettings(format="scratch", dimensions=DIMS, dtype="uint8")
    with create_stream(settings) as stream:
        stream.append(np.zeros((8, 8), "uint8"))
        with pytest.raises(ValueError, match="the metadata of 'lab' are a list: give a dict"):
            stream.set_global_metadata("lab", [1])  # type: ignore[arg-type]


def test_a_cell_of_a_notebook_run_twice(tmp_path) -> None:
    """Without `close`, then after it, then after the variable was used for something else."""
    path = tmp_path / "cell.ome.zarr"

    def cell(frame: int, **more: bool) -> object:
        settings = AcquisitionSettings(root_path=path, dimensions=DIMS, dtype="uint8", **more)
        stream = create_stream(settings)
        stream.append(np.full((8, 8), frame, "uint8"))
        return stream

    stream = cell(1)
    with pytest.raises(OSError, match="is running: close its stream, wait until it has ended, or"):
        cell(2)
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(FileExistsError, match="another name, or pass overwrite=True to replace"):
        cell(3)
    stream = cell(4, overwrite=True)
    with pytest.warns(BioIOWarning, match="was not closed: its frames are stored now"):
        del stream
    assert zarr.open_array(path / "0", mode="r")[:].max() == 4


def test_dask_takes_a_view() -> None:
    settings = AcquisitionSettings(
        format="memory", dimensions=dims_from_standard_axes({"t": None, "c": 2, "y": 8, "x": 8}),
        dtype="uint16",
    )  # fmt: skip
    expected = np.arange(6 * 64, dtype="uint16").reshape(3, 2, 8, 8)
    with create_stream(settings) as stream:
        for frame in expected.reshape(6, 8, 8):
            stream.append(frame)
        lazy = dask.array.from_array(stream.view(), chunks=(1, 1, 8, 8))
        picked = lazy[1:, :, ::2, 3].compute(scheduler="synchronous")
    np.testing.assert_array_equal(picked, expected[1:, :, ::2, 3])
