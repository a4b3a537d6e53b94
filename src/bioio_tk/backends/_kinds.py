"""What kind of file this is, by its first bytes and its name."""

from __future__ import annotations

from bioio_tk.backends._java_suffixes import KINDS, SHARED

HEAD = 512
"""Bytes that tell the kind of most files."""

TIFF: tuple[tuple[str, str], ...] = (
    ("OME-TIFF", "ome.tif ome.tiff ome.tf2 ome.tf8 ome.btf companion.ome"),
    ("TIFF", "tif tiff tf2 tf8 btf"),
    ("Zeiss Laser-Scanning Microscopy", "lsm"),
    ("Metamorph STK", "stk"),
    ("Aperio SVS", "svs"),
    ("Hamamatsu NDPI", "ndpi"),
    ("Leica SCN", "scn"),
    ("PerkinElmer Vectra/QPTIFF", "qptiff"),
    ("ImageJ, Micro-Manager and NDTiff stacks", "tif"),
)
"""What is read as TIFF, and its suffixes."""
ZARR: tuple[tuple[str, str], ...] = (("OME-Zarr", "ome.zarr ozx"), ("Zarr", "zarr zarr.zip zip"))
"""What is read as Zarr, and its suffixes."""
SUITE2P: tuple[tuple[str, str], ...] = (("Suite2p binaries", "suite2p bin"),)
"""What is read as Suite2p, and its suffixes."""
BDV: tuple[tuple[str, str], ...] = (("BigDataViewer", "xml h5"),)
"""What is read as BigDataViewer, and its suffixes."""

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"ZISRAWFILE", "Zeiss CZI"),
    (0, b"\x70\0\0\0", "Leica Image File Format"),
    (0, b"\xda\xce\xbe\x0a", "Nikon ND2"),
    (0, b"OLYMPUSRAWFORMAT", "Olympus OIR"),
    (0, b"SIS\0", "CellSens VSI"),
    (0, b"OMAS_BF\n", "OBF"),
    (0, b"Andor Technology", "Andor SIF"),
    (0, b"CDF\1", "MINC MRI"),
    (0, b"SIMPLE  =", "Flexible Image Transport System"),
    (0, b"NRRD000", "NRRD"),
    (128, b"DICM", "DICOM"),
    (344, b"n+1\0", "NIfTI"),
    (344, b"ni1\0", "NIfTI"),
    (208, b"MAP ", "Medical Research Council"),
    (96, b"\xa0\xc0", "Deltavision"),
    (96, b"\xc0\xa0", "Deltavision"),
    (0, b"\x89PNG\r\n\x1a\n", "Animated PNG"),
    (0, b"\x8aMNG\r\n\x1a\n", "Multiple-image Network Graphics"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG-2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG-2000"),
    (0, b"GIF8", "Graphics Interchange Format"),
    (0, b"8BPS", "Adobe Photoshop"),
    (8, b"AVI LIST", "Audio Video Interleave"),
    (4, b"ftypqt", "QuickTime"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5"),
)
"""Where which bytes stand, and what they mean."""

_ROOTS: tuple[tuple[bytes, str], ...] = (
    (b"<EvaluationInputData", "PerkinElmer Operetta"),
    (b"<PVScan", "Prairie TIFF"),
    (b"<ImageStack", "InCell 1000/2000"),
    (b"<LMSDataContainerHeader", "Extended leica file"),
)
"""What the XML documents begin with that list the files of a set."""

_NAMES: tuple[tuple[str, str], ...] = (
    ("experiment_descriptor.xml", "Olympus ScanR"),
    ("measurementresult.xml", "CellVoyager"),
    ("index.idx.xml", "PerkinElmer Operetta"),
    ("index.ref.xml", "PerkinElmer Operetta"),
    ("index.flex.xml", "PerkinElmer Operetta"),
    ("index.xml", "PerkinElmer Operetta"),
    (".columbusidx.xml", "PerkinElmer Columbus"),
)
"""How the names of other such documents end."""

_OTHERS = (
    "txt csv tsv log json jsonl py ipynb pyc md rst tex pdf doc docx xls xlsx ppt pptx rtf odt ods "
    "htm html css js ts yaml yml toml ini cfg env sh bat c h cpp java class jar r m so dll exe o "
    "gz tgz tar bz2 xz 7z rar whl npy npz pkl parquet feather sqlite mp3 mp4 mkv wav ttf woff eml "
    "tif tiff tf2 tf8 btf ome xml"
)
"""Endings of what is no image that Bio-Formats would read, unless its content says otherwise."""

_TEXT = bytes(range(32, 127)) + b"\t\n\r\f"


def kind_of(name: str, head: bytes) -> str | None:
    """Return the name of the Bio-Formats format that a file is in, None where that is unknown.

    Parameters
    ----------
    name : str
        Of the file, without its folder.
    head : bytes
        How it begins; `HEAD` bytes are enough.

    Examples
    --------
    >>> kind_of("cells.czi", b"ZISRAWFILE"), kind_of("cells.dat", b"ZISRAWFILE")
    ('Zeiss CZI', 'Zeiss CZI')
    >>> kind_of("cells.lsm.ims", bytes(8)), kind_of("notes.txt", b"hello")
    ('Bitplane Imaris', None)
    """
    by_name = _by_suffix(name.lower())
    for where, magic, kind in _MAGIC:
        if head.startswith(magic, where):
            # the content decides; but a container (HDF5, JPEG 2000) may be a format of its own
            return by_name if by_name and kind in ("HDF5", "JPEG-2000") else kind
    if b"ics_version" in head[:32]:
        return "Image Cytometry Standard"
    if name.lower().endswith("metadata.txt") and b'"Summary"' in head:
        return "Micro-Manager"
    return by_name


def xml_kind(name: str, head: bytes) -> str | None:
    """Return the format whose set of files an XML document lists, None where it is none of them."""
    lower = name.lower()
    for root, kind in _ROOTS:
        if root in head:
            return kind
    for ending, kind in _NAMES:
        if lower.endswith(ending):
            return kind
    by_suffix = _by_suffix(lower)
    return None if by_suffix == "OME-XML" else by_suffix  # there is no OME in it


def is_dicom(name: str, head: bytes) -> bool:
    """Return whether a file is DICOM, and not one that is meant to be read as the TIFF it also is.

    The first 128 bytes of a DICOM file are free, and may be those of a TIFF (DICOM PS3.10, 7.1).
    """
    return head.startswith(b"DICM", 128) and not name.lower().endswith((".tif", ".tiff"))


def is_xml(head: bytes) -> bool:
    """Return whether a file is an XML document."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def is_other(name: str, head: bytes) -> bool:
    """Return whether a file of no known kind is obviously no image: a text, a program, a table."""
    suffix = name.lower().rpartition(".")[2]
    return suffix in _OTHERS.split() or not head.strip(b"\0") or not head.translate(None, _TEXT)


def _by_suffix(lower: str) -> str | None:
    """Return the first format that claims a suffix; the longer one of two (``nii.gz``)."""
    parts = lower.split(".")[1:]
    for suffix in (".".join(parts[-2:]), *parts[-1:]):
        if suffix in _SUFFIXES:
            return _SUFFIXES[suffix]
    return None


_SUFFIXES: dict[str, str] = {}
for _kind, _claimed in KINDS:
    for _suffix in _claimed.split():
        if _suffix not in SHARED.split():
            _SUFFIXES.setdefault(_suffix, _kind)
