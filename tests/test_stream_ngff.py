"""NGFF attributes of an acquisition whose axes are not t, c, z, y, x."""

from __future__ import annotations

import ngff_peers
import numpy as np
import pytest

from bioio_tk.core.acquisition import StoredAxis
from bioio_tk.core.spec import Channel, ImageSpec, Level
from bioio_tk.errors import SpecError
from bioio_tk.meta.ngff import image_attributes

T = StoredAxis("t", "time", "T", "second", 1.5)
C = StoredAxis("c", "channel", "C")
CAM = StoredAxis("cam", "other", "C")
Z = StoredAxis("z", "space", "Z", "micrometer", 0.5, 2.0)
YX = (
    StoredAxis("y", "space", "Y", "micrometer", 0.1),
    StoredAxis("x", "space", "X", "nanometer", 100.0, 7.0),
)


def spec(levels=1, channels=()):
    shape = (8, 10, 3, 2, 4)
    sizes = [(-(-8 // 2**n), -(-10 // 2**n), *shape[2:]) for n in range(levels)]
    return ImageSpec(
        np.dtype("uint16"),
        tuple(Level(size, (8, 10, 1, 1, 1)) for size in sizes),
        "image",
        channels,
    )


def attributes(stored, version="0.5", levels=1, method="nearest", **more):
    found = image_attributes(
        spec(levels, **more),
        version=version,
        paths=[str(n) for n in range(levels)],
        method=method,
        stored=stored,
    )
    return found, (found["ome"] if version == "0.5" else found)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_have_names_kinds_and_units_of_their_own(version):
    whole, found = attributes((T, C, Z, *YX), version)
    ngff_peers.check(whole, version, "image")
    (image,) = found["multiscales"]
    assert image["axes"] == [
        {"name": "t", "type": "time", "unit": "second"},
        {"name": "c", "type": "channel"},
        {"name": "z", "type": "space", "unit": "micrometer"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "nanometer"},
    ]
    (dataset,) = image["datasets"]
    assert dataset["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.5, 1.0, 0.5, 0.1, 100.0]},
        {"type": "translation", "translation": [0.0, 0.0, 2.0, 0.0, 7.0]},
    ]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_cameras_are_an_axis_of_their_own(version):
    whole, found = attributes((T, CAM, Z, *YX), version)
    ngff_peers.check(whole, version, "image")
    assert found["multiscales"][0]["axes"][1] == {"name": "cam", "type": "other"}
    assert "omero" not in found


def test_channels_are_described():
    _, found = attributes((T, C, Z, *YX), channels=(Channel("a", (255, 0, 0, 255)), Channel("b")))
    assert [c.get("label") for c in found["omero"]["channels"]] == ["a", "b"]


def test_any_order_is_taken():
    """The frames may be stored as they are taken; NGFF has another order in mind."""
    _, found = attributes((Z, C, T, *YX))
    assert [a["name"] for a in found["multiscales"][0]["axes"]] == ["z", "c", "t", "y", "x"]
    steps = found["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert steps[0]["scale"] == [0.5, 1.0, 1.5, 0.1, 100.0]
    assert steps[1]["translation"] == [2.0, 0.0, 0.0, 0.0, 7.0]


@pytest.mark.parametrize(("method", "moved"), [("nearest", 0), ("mean", 1)])
def test_levels(method, moved):
    whole, found = attributes((T, C, Z, *YX), levels=3, method=method)
    ngff_peers.check(whole, "0.5", "image")
    for n, dataset in enumerate(found["multiscales"][0]["datasets"]):
        scale, shift = dataset["coordinateTransformations"]
        assert scale["scale"] == [1.5, 1.0, 0.5, 0.1 * 2**n, 100.0 * 2**n]
        half = moved * (2**n - 1) / 2
        np.testing.assert_allclose(
            shift["translation"], [0, 0, 2.0, 0.1 * half, 7.0 + 100.0 * half]
        )


def test_a_unit_without_a_size_would_make_1_a_size():
    unknown = StoredAxis("z", "space", "Z", "micrometer")
    placed = StoredAxis("z", "space", "Z", "micrometer", None, 3.0)
    for axis, unit in ((unknown, None), (placed, "micrometer")):
        _, found = attributes((T, C, axis, *YX))
        assert found["multiscales"][0]["axes"][2].get("unit") == unit
        steps = found["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        assert steps[0]["scale"][2] == 1.0


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ((T, C, Z, YX[1], YX[0]), "Y and X are the last two"),
        ((T, C, *YX, Z), "Y and X are the last two"),
        ((T, C, CAM, Z, *YX), "each letter is there once"),
        ((T, StoredAxis("t", "channel", "C"), Z, *YX), "same name"),
        ((T, Z, *YX), "the image has 2 C"),
        ((T, C, StoredAxis("z", "space", "Z", None, float("nan")), *YX), "finite"),
    ],
)
def test_axes_that_cannot_be(stored, text):
    with pytest.raises(SpecError, match=text):
        attributes(stored)


def test_a_version_nobody_writes():
    with pytest.raises(SpecError, match=r"0\.3"):
        attributes((T, C, Z, *YX), "0.3")
