"""Every image of several planes of the shared data, to OME-Zarr and on to OME-TIFF: all the same.

Pixels are compared with the truth of independent readers, metadata as ome-types reads them.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import tifffile

from bioio_tk import BioReader, convert
from bioio_tk.errors import BioIOError, BioIOWarning
from tests.test_real_files import DATA, DEVIATIONS, EVERY, images, needs_data, plane_hash


def several(entry: dict[str, Any]) -> list[int]:
    """Return the images of an entry that have more than one plane."""
    found = images(entry)
    return [n for n, i in enumerate(found) if int(np.prod(i["shape_tczyx"][:3])) > 1]


NAMES = [
    n for n, e in EVERY.items() if e.get("expect") == "ok" and n not in DEVIATIONS and several(e)
]


def known(ome: Any) -> dict[str, Any]:
    """Return what a document says, without what belongs to the file it is in."""
    found = ome.model_dump(exclude_unset=True, exclude_none=True)
    for name in ("creator", "uuid", "structured_annotations", "binary_only"):
        found.pop(name, None)
    own = {a.id for a in ome.structured_annotations or [] if "bioio_tk" in str(a.namespace)}
    notes = [a for a in ome.structured_annotations or [] if a.id not in own]
    found["annotations"] = [a.model_dump(exclude_unset=True, exclude_none=True) for a in notes]
    for image in found.get("images", []):
        image["annotation_refs"] = [
            ref for ref in image.get("annotation_refs", []) if ref["id"] not in own
        ]
        pixels = image["pixels"]
        for name in ("tiff_data_blocks", "bin_data_blocks", "metadata_only", "big_endian",
                     "interleaved", "dimension_order", "significant_bits", "id"):  # fmt: skip
            pixels.pop(name, None)
        image.pop("id", None)
        image.pop("name", None)  # that of the reader, which knows better
        if image.get("stage_label", {}).get("name") == "image origin":
            del image["stage_label"]  # where we note a translation of OME-Zarr
        if pixels.get("type") is not None and pixels["type"].value == "bit":
            pixels["type"] = type(pixels["type"])("uint8")  # as bits are stored
        for channel in pixels.get("channels", []):
            channel.pop("id", None)
            channel.pop("samples_per_pixel", None)  # known from the pixels, and not always told
            channel.pop("kind", None)
    return pruned(found)


def pruned(value: Any) -> Any:
    """Return nested values without those that are empty, and without units that are the default."""
    if isinstance(value, dict):
        kept = {k: pruned(v) for k, v in value.items() if not k.endswith("_unit")}
        return {k: v for k, v in kept.items() if v not in ({}, [], "", None)}
    if isinstance(value, list):
        kept = [pruned(v) for v in value]
        return kept if any(kept) else []
    return value


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(tmp_path, name):
    warnings.simplefilter("ignore", BioIOWarning)
    entry = EVERY[name]
    path = DATA / entry["path"]
    try:
        BioReader(path).close()
    except BioIOError as exc:
        pytest.skip(f"is not read: {exc}"[:200])
    for number in several(entry):
        truth = images(entry)[number]
        store, back = tmp_path / f"{number}.ome.zarr", tmp_path / f"{number}.ome.tif"
        with BioReader(path, series=number) as before:
            convert(before, store)
            convert(store, back)
            with BioReader(back) as after:
                assert after.shape == before.shape
                assert after.dtype == before.dtype
                assert after.channel_names == before.channel_names
                assert after.channel_colors == before.channel_colors
                for one, other in zip(after.pixel_size(), before.pixel_size(), strict=True):
                    assert one == (None if other is None else pytest.approx(other, rel=1e-6))
                assert after.time_increment == (before.time_increment or None)
                if before.ome_xml is not None:
                    one, other = known(single(before)), known(after.metadata)
                    assert other == one
        found = planes(back)
        if "LOSSY" in name:  # decoders differ: it is enough that ours does not change
            with BioReader(path, series=number) as before:
                np.testing.assert_array_equal(
                    found, np.asarray(before.array).transpose(4, 3, 2, 0, 1)
                )
            continue
        if "plane_sha256" not in truth:
            assert plane_hash(found) == truth["tczyx_sha256"]
            continue
        for key, value in truth["plane_sha256"].items():
            t, c, z = map(int, re.fullmatch(r"t(\d+)c(\d+)z(\d+)", key).groups())
            assert plane_hash(found[t, c, z]) == value, key


def planes(path: Any) -> Any:
    """Return (T, C, Z, Y, X) as tifffile reads it; samples of a pixel count as channels."""
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        array, axes = (
            series.asarray(),
            series.axes.replace("Q", "C"),
        )  # channels that mean something
    for n, axis in enumerate("TCZYXS"):
        if axis not in axes:
            array, axes = np.expand_dims(array, n), axes[:n] + axis + axes[n:]
    array = array.transpose([axes.index(axis) for axis in "TCSZYX"])
    return array.reshape(array.shape[0], -1, *array.shape[3:])


def single(reader: BioReader) -> Any:
    """Return the metadata of the image that is open alone."""
    from bioio_tk.meta import ome

    xml = reader.ome_xml
    return ome.to_ome(ome.single(xml, reader.series) if reader.n_series > 1 else xml)
