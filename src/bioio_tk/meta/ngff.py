"""NGFF (OME-Zarr) metadata, versions 0.1 to 0.5, to plain values and back. No file is touched."""

from __future__ import annotations

from bioio_tk.meta.ngff_axes import (
    AXIS_KINDS,
    Axis,
    AxisOrder,
    Sizes,
    ome_unit,
    pixel_sizes,
    unit_symbol,
    unit_word,
    yxzct,
)
from bioio_tk.meta.ngff_read import (
    VERSIONS,
    Dataset,
    Group,
    Multiscale,
    Window,
    fit_channels,
    inner_path,
    read_group,
    usable,
)
from bioio_tk.meta.ngff_write import (
    WRITABLE_VERSIONS,
    image_attributes,
    label_attributes,
    labels_attributes,
    layout_attributes,
    plate_attributes,
    series_attributes,
    well_attributes,
)

__all__ = [
    "AXIS_KINDS",
    "VERSIONS",
    "WRITABLE_VERSIONS",
    "Axis",
    "AxisOrder",
    "Dataset",
    "Group",
    "Multiscale",
    "Sizes",
    "Window",
    "fit_channels",
    "image_attributes",
    "inner_path",
    "label_attributes",
    "labels_attributes",
    "layout_attributes",
    "ome_unit",
    "pixel_sizes",
    "plate_attributes",
    "read_group",
    "series_attributes",
    "unit_symbol",
    "unit_word",
    "usable",
    "well_attributes",
    "yxzct",
]
