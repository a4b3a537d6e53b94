"""The XML of BigDataViewer and BigStitcher ("SpimData") to plain values and back."""

from __future__ import annotations

from bioio_tk.meta.bdv_edit import BACKUPS, SpimDocument, back_up, write_atomic
from bioio_tk.meta.bdv_read import loader_path, parse
from bioio_tk.meta.bdv_values import HDF5, N5, ZARR, Loader, Partition, SpimData, ZarrImage
from bioio_tk.meta.bdv_xml import SpimXml, attribute_text, check_text, pattern

__all__ = [
    "BACKUPS",
    "HDF5",
    "N5",
    "ZARR",
    "Loader",
    "Partition",
    "SpimData",
    "SpimDocument",
    "SpimXml",
    "ZarrImage",
    "attribute_text",
    "back_up",
    "check_text",
    "loader_path",
    "parse",
    "pattern",
    "write_atomic",
]
