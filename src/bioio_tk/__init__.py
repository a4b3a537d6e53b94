"""Read any bio-image as a 5-D array (Y, X, Z, C, T) and write it to any open format."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bioio_tk.api import assemble as assemble
    from bioio_tk.api import axial_shifts as axial_shifts
    from bioio_tk.api import batch as batch
    from bioio_tk.api import convert as convert
    from bioio_tk.api import finish as finish
    from bioio_tk.api import get_metadata as get_metadata
    from bioio_tk.api import imread as imread
    from bioio_tk.api import imwrite as imwrite
    from bioio_tk.api import map_tiles as map_tiles
    from bioio_tk.api import reduce as reduce
    from bioio_tk.api import set_metadata as set_metadata
    from bioio_tk.api import stack as stack
    from bioio_tk.api import start as start
    from bioio_tk.api import verify as verify
    from bioio_tk.api import with_axial_shifts as with_axial_shifts
    from bioio_tk.errors import BioIOError as BioIOError
    from bioio_tk.reader import BioReader as BioReader
    from bioio_tk.stream.coords import CoordUpdate as CoordUpdate
    from bioio_tk.stream.dimensions import Channel as Channel
    from bioio_tk.stream.dimensions import Dimension as Dimension
    from bioio_tk.stream.dimensions import Position as Position
    from bioio_tk.stream.dimensions import PositionDimension as PositionDimension
    from bioio_tk.stream.dimensions import StandardAxis as StandardAxis
    from bioio_tk.stream.dimensions import dims_from_standard_axes as dims_from_standard_axes
    from bioio_tk.stream.formats import BdvFormat as BdvFormat
    from bioio_tk.stream.formats import OmeTiffFormat as OmeTiffFormat
    from bioio_tk.stream.formats import OmeZarrFormat as OmeZarrFormat
    from bioio_tk.stream.formats import ScratchFormat as ScratchFormat
    from bioio_tk.stream.plate import Plate as Plate
    from bioio_tk.stream.settings import AcquisitionSettings as AcquisitionSettings
    from bioio_tk.stream.stream import OMEStream as OMEStream
    from bioio_tk.stream.stream import create_stream as create_stream
    from bioio_tk.stream.useq import dims_from_useq as dims_from_useq
    from bioio_tk.stream.useq import useq_to_acquisition_settings as useq_to_acquisition_settings
    from bioio_tk.stream.watch import watch as watch
    from bioio_tk.writer import BioWriter as BioWriter

__version__ = "0.1.0"
__all__ = [
    "AcquisitionSettings",
    "BdvFormat",
    "BioIOError",
    "BioReader",
    "BioWriter",
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
    "assemble",
    "axial_shifts",
    "batch",
    "convert",
    "create_stream",
    "dims_from_standard_axes",
    "dims_from_useq",
    "finish",
    "get_metadata",
    "imread",
    "imwrite",
    "map_tiles",
    "reduce",
    "set_metadata",
    "stack",
    "start",
    "useq_to_acquisition_settings",
    "verify",
    "watch",
    "with_axial_shifts",
]

# imported on first use, so that `import bioio_tk` costs nothing
_HOME = {
    "BioIOError": "bioio_tk.errors",
    "BioReader": "bioio_tk.reader",
    "BioWriter": "bioio_tk.writer",
    "batch": "bioio_tk.api",
    "convert": "bioio_tk.api",
    "finish": "bioio_tk.api",
    "imread": "bioio_tk.api",
    "imwrite": "bioio_tk.api",
    "assemble": "bioio_tk.api",
    "axial_shifts": "bioio_tk.api",
    "map_tiles": "bioio_tk.api",
    "reduce": "bioio_tk.api",
    "stack": "bioio_tk.api",
    "get_metadata": "bioio_tk.api",
    "set_metadata": "bioio_tk.api",
    "verify": "bioio_tk.api",
    "with_axial_shifts": "bioio_tk.api",
    "start": "bioio_tk.api",
    "AcquisitionSettings": "bioio_tk.stream.settings",
    "Channel": "bioio_tk.stream.dimensions",
    "Dimension": "bioio_tk.stream.dimensions",
    "Position": "bioio_tk.stream.dimensions",
    "PositionDimension": "bioio_tk.stream.dimensions",
    "StandardAxis": "bioio_tk.stream.dimensions",
    "dims_from_standard_axes": "bioio_tk.stream.dimensions",
    "BdvFormat": "bioio_tk.stream.formats",
    "OmeTiffFormat": "bioio_tk.stream.formats",
    "OmeZarrFormat": "bioio_tk.stream.formats",
    "ScratchFormat": "bioio_tk.stream.formats",
    "Plate": "bioio_tk.stream.plate",
    "CoordUpdate": "bioio_tk.stream.coords",
    "OMEStream": "bioio_tk.stream.stream",
    "create_stream": "bioio_tk.stream.stream",
    "dims_from_useq": "bioio_tk.stream.useq",
    "useq_to_acquisition_settings": "bioio_tk.stream.useq",
    "watch": "bioio_tk.stream.watch",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
