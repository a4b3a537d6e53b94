"""Stands in for ome-writers: its names, so that code written for it runs unchanged.

Nothing here has a quirk of its own: the classes and functions are those of `bioio_tk`.
`pymmcore-plus <https://pymmcore-plus.github.io/pymmcore-plus/>`_ records with this package when it
is lent the name before it is imported::

    import sys
    import bioio_tk.compat.ome_writers

    sys.modules["ome_writers"] = bioio_tk.compat.ome_writers
    from pymmcore_plus import CMMCorePlus
"""

from __future__ import annotations

from bioio_tk.stream.coords import CoordUpdate
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
from bioio_tk.stream.stream import OMEStream, create_stream
from bioio_tk.stream.useq import dims_from_useq, useq_to_acquisition_settings

__version__ = "0.3.2"  # the ome-writers whose interface this is, for code that asks
__all__ = [
    "AcquisitionSettings",
    "Channel",
    "CoordUpdate",
    "Dimension",
    "OMEStream",
    "OmeTiffFormat",
    "OmeZarrFormat",
    "Plate",
    "Position",
    "PositionDimension",
    "ScratchFormat",
    "StandardAxis",
    "__version__",
    "create_stream",
    "dims_from_standard_axes",
    "dims_from_useq",
    "useq_to_acquisition_settings",
]
