"""Overlay: the XML of BigDataViewer beside an OME-Zarr that is made."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.bdv.zarr import check_absent, check_type, write_zarr_xml, xml_path
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from bioio_tk.core.location import Location
    from bioio_tk.jobs.options import Options
    from bioio_tk.jobs.report import ConvertReport


def xml_beside(target: Location, options: Options, dtype: Any) -> Path | None:
    """Return where the XML of a new OME-Zarr goes; None where none was asked for.

    Raises
    ------
    SpecError
        The target is no folder of this machine, or no OME-Zarr.
    UnsupportedError
        BigDataViewer has no pixels of this type.
    """
    if not options.bdv_xml:
        return None
    row = registry.for_writing(target)
    packed = target.name.lower().endswith(row.packed or ("/",))
    if not row.tree or packed or not isinstance(target, Path):
        raise SpecError(
            f"bdv_xml=True lays an XML over an OME-Zarr folder of this machine, and "
            f"{target.name!r} is to be something else: end its name with .ome.zarr, or, for "
            "BigDataViewer's own format, with .xml and without bdv_xml="
        )
    check_type(dtype if options.dtype is None else options.dtype)
    return xml_path(target.absolute())


def check_xml(xml: Path | None, options: Options) -> None:
    """Raise where an XML is there and may not be replaced."""
    if xml is not None and xml.parent.is_dir():  # else it is made with that of the image
        check_absent(xml, overwrite=options.overwrite)


def with_xml(
    report: ConvertReport, xml: Path | None, target: Location, options: Options
) -> ConvertReport:
    """Write the XML of an image that is in its place, and say so in the report.

    Of an image that was skipped it is written only where it is not there.
    """
    if xml is None:
        return report
    if report.status == "skipped" and os.path.lexists(xml):
        return report
    write_zarr_xml(str(target), xml, overwrite=options.overwrite)
    note = f"BigDataViewer and BigStitcher open it with {xml.name!r}"
    return replace(report, notes=(*report.notes, note))
