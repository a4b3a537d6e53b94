"""Read any bio-image as a 5-D array (Y, X, Z, C, T) and write it to any open format."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bioio_tk.api import convert as convert
    from bioio_tk.api import finish as finish
    from bioio_tk.api import start as start
    from bioio_tk.core.plate import Plate as Plate
    from bioio_tk.errors import BioIOError as BioIOError
    from bioio_tk.reader import BioReader as BioReader
    from bioio_tk.writer import BioWriter as BioWriter

__version__ = "0.1.0"
__all__ = [
    "BioIOError",
    "BioReader",
    "BioWriter",
    "Plate",
    "__version__",
    "convert",
    "finish",
    "start",
]

# imported on first use, so that `import bioio_tk` costs nothing
_HOME = {
    "BioIOError": "bioio_tk.errors",
    "BioReader": "bioio_tk.reader",
    "BioWriter": "bioio_tk.writer",
    "Plate": "bioio_tk.core.plate",
    "convert": "bioio_tk.api",
    "finish": "bioio_tk.api",
    "start": "bioio_tk.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
