"""The two files of a dataset, from the name of one of them, and what stands in the XML of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bioio_tk.core.location import Url, locate
from bioio_tk.errors import SpecError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path


def pair_of(filename: Any) -> tuple[Path, Path]:
    """Return the HDF5 file and the XML of a dataset.

    Raises
    ------
    SpecError
        The name ends in neither.
    UnsupportedError
        It is on a server.
    """
    path = locate(filename)
    if isinstance(path, Url):
        raise UnsupportedError(
            f"{path.shown!r}: a BigDataViewer dataset is written to a folder of this machine or "
            "its network; convert it to OME-Zarr for a server"
        )
    ending = path.suffix.lower()
    if ending not in (".h5", ".xml"):
        raise SpecError(
            f"{path.name!r} is neither the .h5 nor the .xml of a dataset: give 'NAME.h5' or "
            "'NAME.xml'"
        )
    if ending == ".h5":
        return path, path.with_suffix(".xml")
    return path.with_suffix(".h5"), path


def created(
    microscope: str = "default", version: str = "0.0", user: str = "user"
) -> dict[str, str]:
    """Return what the XML says of where it comes from."""
    from bioio_tk import __version__

    return {
        "library": "bioio-tk",
        "library_version": __version__,
        "microscope": microscope,
        "microscope_version": version,
        "user": user,
    }
