"""What Bio-Formats would read wrongly without a word: files cut off, formats it gets wrong.

Most of its readers fill what lies beyond the end of a file with zeros, leave out images, or let
a simpler reader take the file. So the file is asked where it should end, before Java sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import _java_czi, _java_dicom, _java_headers, _java_tiff
from bioio_tk.backends._java_bytes import Bytes
from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD = 512
_OTHERS = 100
"""Files of an image that are looked at beyond the one that was named."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A format that can be told by its first bytes.

    Attributes
    ----------
    name : str
        For people.
    at : int
        Where the mark stands.
    marks : tuple of bytes
        One of which it is.
    check : callable
        Takes the file and the version of Bio-Formats; raises where something is wrong.
    readers : tuple of str
        The classes that read it; empty where there are too many.
    """

    name: str
    at: int
    marks: tuple[bytes, ...]
    check: Callable[[Bytes, str], None]
    readers: tuple[str, ...] = ()


KINDS = (
    Kind("CZI", 0, (b"ZISRAWFILE",), _java_czi.check, ("ZeissCZIReader",)),
    Kind("DICOM", 128, (b"DICM",), _java_dicom.check, ("DicomReader",)),
    Kind("LIF", 0, (b"\x70\0\0\0",), _java_headers.lif, ("LIFReader",)),
    Kind("ND2", 0, (b"\xda\xce\xbe\x0a",), _java_headers.nd2, ("ND2Reader", "NativeND2Reader")),
    Kind("HDF5", 0, (b"\x89HDF\r\n\x1a\n",), _java_headers.hdf5),
    Kind("FITS", 0, (b"SIMPLE  =",), _java_headers.fits, ("FitsReader",)),
    Kind("NRRD", 0, (b"NRRD000",), _java_headers.nrrd, ("NRRDReader",)),
    Kind("NIfTI", 344, (b"n+1\0",), _java_headers.nifti, ("NiftiReader",)),
    Kind("DV", 96, (b"\xa0\xc0", b"\xc0\xa0"), _java_headers.dv, ("DeltavisionReader",)),
    Kind("MRC", 208, (b"MAP ", b"MAP\0"), _java_headers.mrc, ("MRCReader",)),
    Kind("ICS", 0, (b"ics_version", b"\t\nics_version", b"\t\r\nics_version"), _java_headers.ics),
    Kind("HTD", 0, (b'"HTSInfoFile"',), _java_headers.htd),
    Kind("TIFF", 0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _java_tiff.check),
)

BY_READER = {
    "SPEReader": _java_headers.spe,
    "MRCReader": _java_headers.mrc,
    "OMEXMLReader": _java_headers.ome_xml,
}
"""Checks of formats without a mark, by the class that reads them."""


def before(path: Path, version: str) -> None:
    """Raise where a file should not even be shown to Bio-Formats.

    Parameters
    ----------
    path : Path
        The file.
    version : str
        Of Bio-Formats.

    Raises
    ------
    DamagedFileError
        It is cut off, or says of itself what cannot be.
    UnsupportedError
        This Bio-Formats reads it wrongly.
    FileNotFoundError
        A file that belongs to it is missing.
    """
    with Bytes(path) as file:
        kind = _kind(file)
        if kind is not None:
            kind.check(file, version)
        elif path.suffix.lower() == ".ids":
            _java_headers.ids(file)


def check(path: Path, reader: str, java: Any, version: str) -> tuple[str, ...]:
    """Return what is worth knowing of an open file; raise where it would be read wrongly.

    Parameters
    ----------
    path : Path
        The file.
    reader : str
        Class of its reader, ``"ZeissCZIReader"``.
    java : IFormatReader
        The reader, open.
    version : str
        Of Bio-Formats.

    Raises
    ------
    DamagedFileError
        Bio-Formats took it for something else, or another file of the image is cut off.
    UnsupportedError
        It holds no pixels.
    """
    with Bytes(path) as file:
        kind = _kind(file)
        if kind is not None and kind.readers and reader not in kind.readers:
            raise DamagedFileError(
                f"{str(path)!r} begins as {kind.name} but Bio-Formats takes it for something else "
                f"({reader}): it is damaged, or has the ending of another format; give it the "
                f"ending of {kind.name}"
            )
        if kind is None and reader in BY_READER:
            BY_READER[reader](file, version)
        overview = _overview_only(path, reader)
    here = str(path.absolute())
    others = [Path(str(name)) for name in java.getUsedFiles()]
    for other in [name for name in others if str(name) != here][:_OTHERS]:
        if other.is_file():
            before(other, version)
    return overview


def _overview_only(path: Path, reader: str) -> tuple[str, ...]:
    """Return a note where the folder with the images of a slide is not there."""
    folder = path.with_name(f"_{path.stem}_")
    if reader != "CellSensReader" or path.suffix.lower() != ".vsi" or folder.is_dir():
        return ()
    note = (
        f"there is no folder {folder.name!r} beside it, where the slide itself is kept: only what "
        f"{path.name!r} holds alone can be read, mostly overviews and labels"
    )
    return (note,)


def _kind(file: Bytes) -> Kind | None:
    head = file.some(0, _HEAD)
    for kind in KINDS:
        if head.startswith(kind.marks, kind.at):
            return kind
    return None
