"""Whether an HDF5 file is one of BigDataViewer, and which XML describes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from bioio_tk.backends._bdv_open import open_now, patiently
from bioio_tk.backends._hdf5_chunks import missing
from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.core.location import Location

_SUFFIXES = (".h5", ".hdf5", ".hdf")
_ROOT = b"<SpimData"
_HEAD = 1 << 16
_TIME, _SETUP = re.compile(r"t\d{5,}"), re.compile(r"s\d{2,}")
_PARTITION = re.compile(r"(.+)-\d{2,}-\d{2,}")


def is_bdv(location: Location) -> bool:
    """Return whether an HDF5 file holds views, by the XML beside it or else by its own groups."""
    if not isinstance(location, Path) or not location.name.lower().endswith(_SUFFIXES):
        return False
    return xml_beside(location) is not None or _has_views(location)


def xml_beside(path: Path) -> Path | None:
    """Return the XML that describes an HDF5 file of the same name, None where there is none."""
    return next((xml for xml in _same_name(path) if _is_spim_data(xml)), None)


def xml_of_partition(path: Path) -> Path | None:
    """Return the XML of the dataset that a file called ``NAME-00-01.h5`` is a part of, or None."""
    found = _PARTITION.fullmatch(path.stem)
    if found is None:
        return None
    xml = path.with_name(f"{found[1]}.xml")
    return xml if _is_spim_data(xml) else None


def main_of(path: Path) -> Path:
    """Return the XML of the dataset that a file is a part of; the file itself if there is none."""
    xml = xml_beside(path) or xml_of_partition(path)
    if xml is None or path.suffix.lower() not in _SUFFIXES:
        return path
    return xml if path.name.encode() in xml.read_bytes() else path


def _same_name(path: Path) -> Iterator[Path]:
    yield path.with_suffix(".xml")
    first = path.name.partition(".")[0]  # Bio-Formats takes the name up to its first dot
    if first and first != path.stem:
        yield path.with_name(f"{first}.xml")


def _is_spim_data(xml: Path) -> bool:
    try:
        with xml.open("rb") as file:
            return _ROOT in file.read(_HEAD)
    except OSError:
        return False


def _has_views(path: Path) -> bool:
    """Return whether there are groups of time points and of setups in a file."""
    if missing() is not None:  # whoever reads it says so
        return False
    try:
        return patiently(path, lambda: _looks_like_views(path))
    except (DamagedFileError, OSError):
        return False


def _looks_like_views(path: Path) -> bool:
    with open_now(path) as file:
        try:
            names = list(file)
            setups = [name for name in names if _SETUP.fullmatch(name)]
            tables = any(f"{name}/resolutions" in file for name in setups[:1])
        except (OSError, RuntimeError, KeyError) as exc:
            raise DamagedFileError(f"{str(path)!r} cannot be read: {exc}") from exc
        return tables and any(_TIME.fullmatch(name) for name in names)
