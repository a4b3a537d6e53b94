"""What can be done with whole images: read, write, convert, verify, describe and more."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bioio_tk.inputs.shifted import with_axial_shifts
    from bioio_tk.jobs.axial import AxialShifts, axial_shifts, validate_axial_shifts
    from bioio_tk.jobs.batch.batch import BatchReport, batch, split
    from bioio_tk.jobs.bdv import (
        MissingReport,
        TransformReport,
        missing_views,
        transform_views,
        view_transforms,
    )
    from bioio_tk.jobs.bdv_pyramid import PyramidReport, add_pyramid
    from bioio_tk.jobs.collection import convert_series
    from bioio_tk.jobs.convert import convert
    from bioio_tk.jobs.describe import FileInfo, describe
    from bioio_tk.jobs.doctor import Checkup, doctor
    from bioio_tk.jobs.finish import finish
    from bioio_tk.jobs.imread import imread
    from bioio_tk.jobs.imwrite import imwrite
    from bioio_tk.jobs.metadata import get_metadata, ome_xml, set_metadata, set_ome_xml
    from bioio_tk.jobs.recover import RecoverReport, recover
    from bioio_tk.jobs.report import ConvertReport
    from bioio_tk.jobs.start import start
    from bioio_tk.jobs.thumbnail import thumbnail
    from bioio_tk.jobs.tiles import assemble, map_tiles, reduce, stack
    from bioio_tk.jobs.verify import VerifyReport, verify
    from bioio_tk.stream.recover import StreamReport
    from bioio_tk.stream.stream import create_stream
    from bioio_tk.stream.watch import watch

# imported on first use: who converts has no need of what makes thumbnails
_ROOMS = {
    "inputs.shifted": ("with_axial_shifts",),
    "jobs.axial": (
        "AxialShifts",
        "axial_shifts",
        "validate_axial_shifts",
    ),
    "jobs.batch.batch": (
        "BatchReport",
        "batch",
        "split",
    ),
    "jobs.bdv": (
        "MissingReport",
        "TransformReport",
        "missing_views",
        "transform_views",
        "view_transforms",
    ),
    "jobs.bdv_pyramid": (
        "PyramidReport",
        "add_pyramid",
    ),
    "jobs.collection": ("convert_series",),
    "jobs.convert": ("convert",),
    "jobs.describe": (
        "FileInfo",
        "describe",
    ),
    "jobs.doctor": (
        "Checkup",
        "doctor",
    ),
    "jobs.finish": ("finish",),
    "jobs.imread": ("imread",),
    "jobs.imwrite": ("imwrite",),
    "jobs.metadata": (
        "get_metadata",
        "ome_xml",
        "set_metadata",
        "set_ome_xml",
    ),
    "jobs.recover": (
        "RecoverReport",
        "recover",
    ),
    "jobs.report": ("ConvertReport",),
    "jobs.start": ("start",),
    "jobs.thumbnail": ("thumbnail",),
    "jobs.tiles": (
        "assemble",
        "map_tiles",
        "reduce",
        "stack",
    ),
    "jobs.verify": (
        "VerifyReport",
        "verify",
    ),
    "stream.recover": ("StreamReport",),
    "stream.stream": ("create_stream",),
    "stream.watch": ("watch",),
}
_HOME = {name: f"bioio_tk.{room}" for room, names in _ROOMS.items() for name in names}
__all__ = [
    "AxialShifts",
    "BatchReport",
    "Checkup",
    "ConvertReport",
    "FileInfo",
    "MissingReport",
    "PyramidReport",
    "RecoverReport",
    "StreamReport",
    "TransformReport",
    "VerifyReport",
    "add_pyramid",
    "assemble",
    "axial_shifts",
    "batch",
    "convert",
    "convert_series",
    "create_stream",
    "describe",
    "doctor",
    "finish",
    "get_metadata",
    "imread",
    "imwrite",
    "map_tiles",
    "missing_views",
    "ome_xml",
    "recover",
    "reduce",
    "set_metadata",
    "set_ome_xml",
    "split",
    "stack",
    "start",
    "thumbnail",
    "transform_views",
    "validate_axial_shifts",
    "verify",
    "view_transforms",
    "watch",
    "with_axial_shifts",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
