"""BigDataViewer datasets: write, read and edit what BigStitcher and Fiji open."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bioio_tk.bdv.editor import BdvEditor as BdvEditor
    from bioio_tk.bdv.writer import BdvWriter as BdvWriter
    from bioio_tk.bdv.zarr import write_zarr_xml as write_zarr_xml

__all__ = ["BdvEditor", "BdvWriter", "write_zarr_xml"]

_HOME = {
    "BdvEditor": "bioio_tk.bdv.editor",
    "BdvWriter": "bioio_tk.bdv.writer",
    "write_zarr_xml": "bioio_tk.bdv.zarr",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
