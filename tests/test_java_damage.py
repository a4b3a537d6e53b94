"""Damaged files and what Bio-Formats reads wrongly: refused, and whole files are not."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from bioio_tk import BioReader
from bioio_tk.backends import _java_damage
from bioio_tk.backends._java_home import missing
from bioio_tk.errors import DamagedFileError, FormatError, UnsupportedError

NEW, OLD = "7.3.1", "6.7.0"
DATA = Path(__file__).parents[2] / "shared" / "data"
needs_java = pytest.mark.skipif(missing() is not None, reason=str(missing()))
PIXELS = np.arange(2 * 30 * 40, dtype="<u2").reshape(2, 30, 40)


def fits(path: Path) -> int:
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16"]
    cards += ["NAXIS   =                    2", "NAXIS1  =                   40"]
    cards += ["NAXIS2  =                   30", "END"]
    head = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    path.write_bytes(head + PIXELS[0].astype(">i2").tobytes())
    return path.stat().st_size


def nrrd(path: Path) -> int:
    head = "NRRD0004\ntype: unsigned short\ndimension: 3\nsizes: 40 30 2\nencoding: raw\n"
    path.write_bytes((head + "endian: little\n\n").encode() + PIXELS.tobytes())
    return path.stat().st_size


def ics(path: Path) -> int:
    head = (
        "\t\nics_version\t2.0\nfilename\tx\nlayout\tparameters\t4\nlayout\torder\tbits\tx\ty\tz\n"
    )
    head += "layout\tsizes\t16\t40\t30\t2\nlayout\tsignificant_bits\t16\n"
    head += "representation\tformat\tinteger\nrepresentation\tsign\tunsigned\n"
    head += "representation\tcompression\tuncompressed\nrepresentation\tbyte_order\t1\t2\nend\n"
    path.write_bytes(head.encode() + PIXELS.tobytes())
    return path.stat().st_size


def nifti(path: Path) -> int:
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, 40, 30, 2, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 512, 16)
    struct.pack_into("<f", head, 108, 352)
    head[344:348] = b"n+1\0"
    path.write_bytes(bytes(head) + PIXELS.tobytes())
    return path.stat().st_size


def mrc(path: Path, mode: int = 6) -> int:
    import mrcfile

    data = PIXELS if mode == 6 else PIXELS.astype(np.complex64)
    with mrcfile.new(path) as file:
        file.set_data(data)
    return path.stat().st_size


def dv(path: Path) -> int:
    head = bytearray(1024)
    struct.pack_into("<4i", head, 0, 40, 30, 2, 6)
    struct.pack_into("<h", head, 96, -16224)
    struct.pack_into("<h", head, 196, 1)
    path.write_bytes(bytes(head) + PIXELS.tobytes())
    return path.stat().st_size


def spe(path: Path) -> int:
    head = bytearray(4100)
    struct.pack_into("<H", head, 42, 40)
    struct.pack_into("<h", head, 108, 3)
    struct.pack_into("<H", head, 656, 30)
    struct.pack_into("<i", head, 1446, 2)
    path.write_bytes(bytes(head) + PIXELS.tobytes())
    return path.stat().st_size


def dicom(path: Path) -> int:
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3.4"
    data.Rows, data.Columns, data.NumberOfFrames, data.SamplesPerPixel = 30, 40, 2, 1
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = PIXELS.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path.stat().st_size


def tiff(path: Path) -> int:
    tifffile.imwrite(path, PIXELS, photometric="minisblack")
    return path.stat().st_size


def big_tiff(path: Path) -> int:
    tifffile.imwrite(path, PIXELS, bigtiff=True, tile=(16, 16), compression="zlib", ome=True)
    return path.stat().st_size


def czi(path: Path, compression: str = "uncompressed:") -> int:
    pyczi = pytest.importorskip("pylibCZIrw.czi")
    with pyczi.create_czi(str(path), compression_options=compression) as out:
        for z in range(2):
            out.write(data=PIXELS[z][..., None], plane={"Z": z, "C": 0, "T": 0})
    return path.stat().st_size


def hdf5(path: Path) -> int:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["x"] = PIXELS
    return path.stat().st_size


MAKERS = {
    "a.fits": fits,
    "a.nrrd": nrrd,
    "a.ics": ics,
    "a.nii": nifti,
    "a.mrc": mrc,
    "a.dv": dv,
    "a.dcm": dicom,
    "a.tif": tiff,
    "a.btf": big_tiff,
    "a.czi": czi,
    "a.h5": hdf5,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_whole_file_passes(tmp_path, name):
    MAKERS[name](tmp_path / name)
    _java_damage.before(tmp_path / name, NEW)


@pytest.mark.parametrize("part", [0.1, 0.3, 0.6, 0.9, 0.96])
@pytest.mark.parametrize("name", MAKERS)
def test_a_file_cut_off_is_refused(tmp_path, name, part):
    path = tmp_path / name
    size = MAKERS[name](path)
    os.truncate(path, int(size * part))
    with pytest.raises(DamagedFileError, match=r"(cut off|damaged).*copy it again") as caught:
        _java_damage.before(path, NEW)
    assert name in str(caught.value)


class Spy:
    """What check() asks an IFormatReader."""

    def __init__(self, *files: Path) -> None:
        self.files = files

    def getUsedFiles(self) -> tuple[Path, ...]:
        return self.files


def test_spe_is_known_by_its_reader(tmp_path):
    path = tmp_path / "a.spe"
    size = spe(path)
    assert _java_damage.check(path, "SPEReader", Spy(path), NEW) == ()
    os.truncate(path, size - 1)
    with pytest.raises(DamagedFileError, match="cut off"):
        _java_damage.check(path, "SPEReader", Spy(path), NEW)


def test_another_file_of_the_image_is_looked_at(tmp_path):
    first, second = tmp_path / "1.tif", tmp_path / "2.tif"
    tiff(first)
    size = tiff(second)
    spy = Spy(first, second)
    assert _java_damage.check(first, "OMETiffReader", spy, NEW) == ()
    os.truncate(second, size - 500)
    with pytest.raises(DamagedFileError, match=r"2\.tif"):
        _java_damage.check(first, "OMETiffReader", spy, NEW)


def test_a_lesser_reader_is_refused(tmp_path):
    nrrd(tmp_path / "a.nrrd")
    with pytest.raises(DamagedFileError, match="begins as NRRD"):
        _java_damage.check(tmp_path / "a.nrrd", "TextReader", Spy(), NEW)


@pytest.mark.parametrize("version", [NEW, OLD])
@pytest.mark.parametrize(
    ("dtype", "what"),
    [
        ("complex64", "complex numbers"),
        ("complex128", "complex numbers"),
        ("int64", "integers of 64 bits"),
        (">u8", "integers of 64 bits"),
    ],
)
def test_tiff_of_other_pixels_is_refused(tmp_path, dtype, what, version):
    tifffile.imwrite(tmp_path / "c.tif", PIXELS.astype(dtype), photometric="minisblack")
    with pytest.raises(UnsupportedError, match=rf"{what}.*backend='python'"):
        _java_damage.before(tmp_path / "c.tif", version)


@pytest.mark.parametrize("version", [NEW, OLD])
def test_tiff_of_64_bit_floats_passes(tmp_path, version):
    tifffile.imwrite(tmp_path / "f.tif", PIXELS.astype("f8"), photometric="minisblack")
    _java_damage.before(tmp_path / "f.tif", version)


def test_old_bio_formats_knows_no_zstd_in_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "z.tif", PIXELS, photometric="minisblack", compression="zstd")
    _java_damage.before(tmp_path / "z.tif", NEW)
    with pytest.raises(UnsupportedError, match=r"backend='python'.*bioio-tk java install"):
        _java_damage.before(tmp_path / "z.tif", OLD)


def test_complex_mrc_is_refused(tmp_path):
    mrc(tmp_path / "c.mrc", mode=4)
    with pytest.raises(UnsupportedError, match="complex"):
        _java_damage.before(tmp_path / "c.mrc", NEW)


@pytest.mark.parametrize("compression", ["zstd0:ExplicitLevel=1", "zstd1:ExplicitLevel=1"])
def test_old_bio_formats_refuses_zstd(tmp_path, compression):
    czi(tmp_path / "z.czi", compression)
    _java_damage.before(tmp_path / "z.czi", NEW)
    with pytest.raises(UnsupportedError, match="bioio-tk java install"):
        _java_damage.before(tmp_path / "z.czi", OLD)


@pytest.mark.parametrize("name", ["m (1).czi", "m(1).czi"])
def test_the_other_part_of_a_czi_is_looked_for_under_the_names_it_may_have(tmp_path, name):
    """Bio-Formats takes both; the first is what Zeiss' software writes."""
    path = tmp_path / "m.czi"
    czi(path)
    data = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<q", data, 84)
    struct.pack_into("<i", data, directory + 32 + 128 + 14, 1)  # its first block is in part 1
    path.write_bytes(data)
    with pytest.raises(FileNotFoundError, match=r"'m \(1\).czi' is missing beside it"):
        _java_damage.before(path, NEW)
    (tmp_path / name).write_bytes(b"")
    _java_damage.before(path, NEW)


def test_old_bio_formats_reads_raw_czi(tmp_path):
    czi(tmp_path / "u.czi")
    _java_damage.before(tmp_path / "u.czi", OLD)


def tiled_czi(path: Path, *places: tuple[int, int, int]) -> None:
    """Write tiles of 40 x 30 pixels: their X, Z and scene."""
    pyczi = pytest.importorskip("pylibCZIrw.czi")
    with pyczi.create_czi(str(path), compression_options="uncompressed:") as out:
        for x, z, scene in places:
            where = {"location": (x, 0), "plane": {"Z": z, "C": 0, "T": 0}, "scene": scene}
            out.write(data=PIXELS[0][..., None], **where)


def test_old_bio_formats_refuses_a_mosaic(tmp_path):
    """It takes one made with Zeiss' library for an image of another size."""
    tiled_czi(tmp_path / "m.czi", (0, 0, 0), (40, 0, 0))
    _java_damage.before(tmp_path / "m.czi", NEW)
    with pytest.raises(UnsupportedError, match=r"mosaic.*bioio-tk java install"):
        _java_damage.before(tmp_path / "m.czi", OLD)
    raw = (tmp_path / "m.czi").read_bytes()
    second = struct.pack("<4sii", b"X", 40, 40)
    assert second in raw
    smaller = raw.replace(second, struct.pack("<4sii", b"X", 0, 80))  # stored in 40 pixels
    (tmp_path / "p.czi").write_bytes(smaller)
    _java_damage.before(tmp_path / "p.czi", OLD)
    tiled_czi(tmp_path / "s.czi", (0, 0, 0), (0, 1, 0), (40, 0, 1), (40, 1, 1))
    _java_damage.before(tmp_path / "s.czi", OLD)


def test_rle_dicom_is_refused(tmp_path):
    import pydicom
    from pydicom.uid import RLELossless

    dicom(tmp_path / "a.dcm")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.compress(RLELossless)
    data.save_as(tmp_path / "r.dcm")
    with pytest.raises(UnsupportedError, match="RLE"):
        _java_damage.before(tmp_path / "r.dcm", NEW)


def test_dicom_with_fewer_frames_than_it_claims_is_refused(tmp_path):
    import pydicom

    dicom(tmp_path / "a.dcm")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.NumberOfFrames = 3
    data.save_as(tmp_path / "b.dcm")
    with pytest.raises(DamagedFileError, match="need 7200 bytes of pixels, 4800 are there"):
        _java_damage.before(tmp_path / "b.dcm", NEW)


def test_a_header_without_its_pixels_names_the_missing_file(tmp_path):
    head = "ics_version\t1.0\nlayout\torder\tbits\tx\ty\nlayout\tsizes\t8\t4\t3\n"
    (tmp_path / "a.ics").write_text(head)
    with pytest.raises(FileNotFoundError, match=r"a\.ids"):
        _java_damage.before(tmp_path / "a.ics", NEW)
    (tmp_path / "a.ids").write_bytes(bytes(12))
    _java_damage.before(tmp_path / "a.ics", NEW)
    (tmp_path / "a.ids").write_bytes(bytes(11))
    with pytest.raises(DamagedFileError, match=r"a\.ids.*cut off"):
        _java_damage.before(tmp_path / "a.ics", NEW)


def test_pixels_without_their_header_name_the_missing_file(tmp_path):
    path = tmp_path / "a[1].ids"
    path.write_bytes(bytes(12))
    with pytest.raises(FileNotFoundError, match=r"a\[1\]\.ics"):
        _java_damage.before(path, NEW)
    (tmp_path / "a[1].ICS").write_text("")
    _java_damage.before(path, NEW)


OME_XML = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" BigEndian="false"
SizeX="3" SizeY="2" SizeZ="1" SizeC="1" SizeT="1">
<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{}</Pixels></Image></OME>
"""
BIN_DATA = '<BinData BigEndian="false" Length="8">AQIDBAUG</BinData>'
TIFF_DATA = '<TiffData><UUID FileName="cells.ome.tif">urn:uuid:1</UUID></TiffData>'


@needs_java
def test_ome_xml_without_pixels_is_refused(tmp_path, java):
    from bioio_tk import BioReader

    path = tmp_path / "a.ome.xml"
    path.write_text(OME_XML.format(BIN_DATA))
    with BioReader(path, backend="java") as reader:
        assert np.array_equal(reader[:].reshape(2, 3), [[1, 2, 3], [4, 5, 6]])
    path.write_text(OME_XML.format(TIFF_DATA))
    with pytest.raises(UnsupportedError, match=r"no pixels.*open 'cells\.ome\.tif'"):
        BioReader(path, backend="java")
    path.write_text(OME_XML.format("<MetadataOnly/>"))
    with pytest.raises(UnsupportedError, match=r"no pixels, only a description of them$"):
        BioReader(path, backend="java")


def test_pixels_may_begin_late_in_an_ome_xml(tmp_path):
    path = tmp_path / "a.ome.xml"
    for gap in range((1 << 20) - 16, 1 << 20):  # across the end of what is read at once
        path.write_bytes(b"<OME>" + bytes(gap) + b"<BinData>")
        assert _java_damage.check(path, "OMEXMLReader", Spy(path), NEW) == ()


def test_a_plate_of_no_planes_is_refused(tmp_path):
    index = '"HTSInfoFile", Version 1.0\r\n"ZSeries", FALSE\r\n"ZSteps", {}\r\n"XWells", 12\r\n'
    path = tmp_path / "a.HTD"
    for steps in (1, 10):
        path.write_bytes(index.format(steps).encode())
        _java_damage.before(path, NEW)
    path.write_bytes(index.format(0).encode())
    with pytest.raises(UnsupportedError, match=r"0 steps in Z.*backend='python'"):
        _java_damage.before(path, NEW)
    (tmp_path / "a_A01.pnl").write_bytes(b"")  # of CellWorx, where it does not matter
    _java_damage.before(path, NEW)


def test_absurd_sizes_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tiff(path)
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[tag].overwrite(60000)
    with pytest.raises(DamagedFileError, match=r"needs 7200000000 bytes"):
        _java_damage.before(path, NEW)


def test_a_loop_of_directories_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS[0], metadata=None)
    raw = bytearray(path.read_bytes())
    (ifd,) = struct.unpack_from("<I", raw, 4)
    (count,) = struct.unpack_from("<H", raw, ifd)
    struct.pack_into("<I", raw, ifd + 2 + 12 * count, ifd)
    path.write_bytes(raw)
    with pytest.raises(DamagedFileError, match="loop"):
        _java_damage.before(path, NEW)


@pytest.mark.parametrize("name", ["a.fits", "a.nrrd", "a.ics", "a.nii", "a.dv", "a.dcm", "a.czi"])
@needs_java
def test_through_the_reader(tmp_path, java, name):
    from bioio_tk import BioReader

    path = tmp_path / name
    size = MAKERS[name](path)
    with BioReader(path, backend="java") as reader:
        found = np.asarray(reader[:]).reshape(30, 40, -1)
    if name == "a.dv":  # Bio-Formats counts its rows from the bottom
        found = found[::-1]
    assert np.array_equal(found, np.moveaxis(PIXELS[: found.shape[2]], 0, -1))
    os.truncate(path, size - 90)
    with pytest.raises(DamagedFileError, match=r"cut off|damaged"):
        BioReader(path, backend="java")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared images are not here")
def test_real_files_pass():
    import json

    wrong = ("complex", "int64", "rle", "otf", "lzma", ".htd")
    number = 0
    for entry in json.loads((DATA / "MANIFEST.json").read_text())["entries"]:
        path = DATA / entry["path"]
        known = any(word in entry["id"].lower() for word in wrong)
        if entry["expect"] == "ok" and path.is_file() and not known:
            _java_damage.before(path, NEW)
            number += 1
    assert number > 200


REAL = (
    "czi/RGB-8bit.czi",
    "lif/LeicaLASX_wavelength-sweep_example.lif",
    "lsm/032113-18.lsm",
    "nd2/example-multichannel.nd2",
    "svs/CMU-1-Small-Region.svs",
    "gen/bioformats/pyramid.ome.tif",
    "dicom/sm_image/sm_image.dcm",
    "gen/ims/h5py_made.ims",
)


RAW = ["a.fits", "a.nrrd", "a.ics", "a.nii", "a.mrc", "a.dv", "a.dcm"]


@pytest.mark.parametrize("name", RAW)
def test_one_missing_byte_is_refused(tmp_path, name):
    path = tmp_path / name
    os.truncate(path, MAKERS[name](path) - 1)
    with pytest.raises(DamagedFileError, match="cut off"):
        _java_damage.before(path, NEW)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared images are not here")
def test_real_files_cut_off(tmp_path, name, part):
    raw = (DATA / name).read_bytes()
    path = tmp_path / Path(name).name
    path.write_bytes(raw[: int(len(raw) * part)])
    with pytest.raises(FormatError):
        _java_damage.before(path, NEW)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such permissions here")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "a.nrrd"
    nrrd(path)
    path.chmod(0)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys, pathlib\n"
        "from bioio_tk.backends import _java_damage\n"
        "fd = os.open(sys.argv[2], os.O_RDONLY)\n"
        "os.fchdir(fd)\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: _java_damage.before(pathlib.Path(sys.argv[1]), '7.3.1')\n"
        "except PermissionError: sys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path.name, str(tmp_path)], timeout=60, check=False
    )
    assert done.returncode == 7


def test_the_last_of_many_pages_is_looked_at(java, tmp_path):
    """Between them only the chain of directories is followed, for the time it would take."""
    path = tmp_path / "many.tif"
    with tifffile.TiffWriter(path) as tif:
        for _ in range(1300):
            tif.write(np.ones((8, 8), "u1"), contiguous=False)
    with BioReader(path, backend="java") as br:
        assert br.T * br.Z * br.n_series == 1300
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 20)
    with pytest.raises(DamagedFileError, match="cut off"):
        BioReader(path, backend="java")
