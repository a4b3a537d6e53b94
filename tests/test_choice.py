"""Who reads what: by content, by name, by what lies beside a file; and what is said about it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile

from bioio_tk import BioReader
from bioio_tk.api import describe
from bioio_tk.backends import _java_suffixes, registry
from bioio_tk.errors import (
    BackendMissingError,
    BioIOWarning,
    FormatError,
    SpecError,
    UnknownFormatError,
    UnsupportedError,
)
from bioio_tk.jobs.validate import validate

RNG = np.random.default_rng(4)
PLANE = RNG.integers(0, 1 << 16, (24, 32), np.uint16)


WRONG = "BIOIO_TK_JVM" if find_spec("jpype") else "jpype1"
"""What is said to be wrong where `no_java` is used."""


@pytest.fixture
def no_java(monkeypatch):
    """A machine without Java."""
    monkeypatch.setenv("BIOIO_TK_JVM", os.devnull)


@pytest.fixture
def with_java(monkeypatch):
    """A machine where nothing is missing for Bio-Formats, as far as the choice goes."""
    monkeypatch.setattr("bioio_tk.backends._java_home.missing", lambda: None)


# ------------------------------------------------------------------ by content and by name

HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(100)
KNOWN = [
    ("a.czi", b"ZISRAWFILE\0\0\0\0\0\0", "Zeiss CZI"),
    ("a", b"ZISRAWFILE\0\0\0\0\0\0", "Zeiss CZI"),
    ("a.tif", b"ZISRAWFILE\0\0\0\0\0\0", "Zeiss CZI"),
    ("a.lif", b"\x70\0\0\0\x10\0\0\0\x2a", "Leica Image File Format"),
    ("a.nd2", b"\xda\xce\xbe\x0a" + bytes(12), "Nikon ND2"),
    ("a.nd2", b"\0\0\0\x0cjP  \r\n\x87\n", "Nikon ND2"),
    ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG-2000"),
    ("a.bin", bytes(128) + b"DICM" + bytes(9), "DICOM"),
    ("a.dcm", b"II*\0" + bytes(124) + b"DICM" + bytes(9), "DICOM"),
    ("a", b"MM\0*" + bytes(124) + b"DICM" + bytes(9), "DICOM"),
    ("a.nii", bytes(344) + b"n+1\0", "NIfTI"),
    ("a.nii.gz", b"\x1f\x8b\x08\0\0\0\0\0", "NIfTI"),
    ("a.dat", b"SIMPLE  =                    T", "Flexible Image Transport System"),
    ("a.nrrd", b"NRRD0004\n# text", "NRRD"),
    ("a.x", b"\t\nics_version\t1.0\n", "Image Cytometry Standard"),
    ("a.x", b"\x89PNG\r\n\x1a\n", "Animated PNG"),
    ("a.txt", b"\xff\xd8\xff\xe0", "JPEG"),
    ("a.gif", b"GIF89a", "Graphics Interchange Format"),
    ("a.bmp", b"BM\1\2\3\4", "Windows Bitmap"),
    ("a.avi", b"RIFF\1\1\1\1AVI LIST", "Audio Video Interleave"),
    ("a.ims", HDF5, "Bitplane Imaris"),
    ("a.HTD", b'"HTSInfoFile", Version 1.0\r\n', "CellWorx"),
    ("a.nd", b'"NDInfoFile", Version 1.0\r\n', "Metamorph STK"),
    ("a.dv", bytes(7) + b"\1", "Deltavision"),
    ("a.oib", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Olympus FV1000"),
    ("a.mrc", b"\1\0\0\0" * 20, "Medical Research Council"),
    ("a.xlef", b'<?xml version="1.0"?><LMSDataContainerHeader/>', "Extended leica file"),
    ("Index.idx.xml", b'<?xml version="1.0"?><Evaluation/>', "PerkinElmer Operetta"),
    ("a.xml", b"<EvaluationInputData/>", "PerkinElmer Operetta"),
    ("experiment_descriptor.xml", b"<a/>", "Olympus ScanR"),
    ("a_metadata.txt", b'{"Summary": {"Slices": 1}}', "Micro-Manager"),
]


@pytest.mark.parametrize(("name", "content", "kind"), KNOWN)
def test_what_bio_formats_reads_goes_there(tmp_path, with_java, name, content, kind):
    path = tmp_path / name
    path.write_bytes(content)
    choice = registry.choose(path)
    assert choice.backend.name == "java"
    assert choice.reason == f"{kind} is read through Bio-Formats"


@pytest.mark.parametrize(("name", "content", "kind"), KNOWN)
def test_without_java_the_error_names_the_format_and_the_remedy(
    tmp_path, no_java, name, content, kind
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BackendMissingError) as found:
        BioReader(path)
    text = str(found.value)
    assert repr(kind) in text
    assert "read through Bio-Formats: " in text
    assert str(path) in text
    assert WRONG in text


SPIM_DATA = [
    b'<?xml version="1.0" encoding="UTF-8"?>\n<SpimData version="0.2">',
    b"<SpimData>",
    b"\xef\xbb\xbf<?xml version='1.0'?><!-- by hand --><SpimData>",
    b"\n\n<SpimData>",
]


@pytest.mark.parametrize("java", ["with_java", "no_java"])
@pytest.mark.parametrize("content", SPIM_DATA)
def test_xml_of_bigdataviewer_is_read_without_java(tmp_path, request, java, content):
    request.getfixturevalue(java)
    for name in ("a.xml", "a", "a.ome.xml"):
        path = tmp_path / name
        path.write_bytes(content)
        choice = registry.choose(path)
        assert (choice.backend.name, choice.reason) == ("bdv", "content is BigDataViewer")


@pytest.mark.parametrize("java", ["with_java", "no_java"])
def test_hdf5_beside_an_xml_of_bigdataviewer(tmp_path, request, java):
    request.getfixturevalue(java)
    for name in ("a.h5", "a.b.h5", "c.h5", "d.h5"):
        (tmp_path / name).write_bytes(HDF5)
    (tmp_path / "a.xml").write_bytes(SPIM_DATA[0])
    (tmp_path / "c.xml").write_bytes(b"<note/>")
    assert registry.choose(tmp_path / "a.h5").backend.name == "bdv"
    assert registry.choose(tmp_path / "a.b.h5").backend.name == "bdv"
    assert registry.choose(tmp_path / "c.h5").backend.name != "bdv"
    assert registry.choose(tmp_path / "d.h5").backend.name == "hdf5"


NO_IMAGES = [
    ("a.txt", b"some text\n"),
    ("a.csv", b"1,2\n3,4\n"),
    ("a.json", b'{"a": 1}'),
    ("a.py", b"import os\n"),
    ("a.md", b"# title\n"),
    ("a.xml", b'<?xml version="1.0"?><note>no image</note>'),
    ("a.ome.xml", b'<?xml version="1.0"?><note>no image</note>'),
    ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ("a.html", b"<!DOCTYPE html><html></html>"),
    ("a.pdf", b"%PDF-1.7\n\xe2\xe3\xcf\xd3"),
    ("a.gz", b"\x1f\x8b\x08\0\0\0"),
    ("no_suffix", b"text alone\n"),
    ("a.tif", b"\1\2\3\4\5\6\7"),
    ("a.unknown", bytes(600)),
    ("metadata.txt", b"my notes\n"),
]


@pytest.mark.parametrize("java", ["with_java", "no_java"])
@pytest.mark.parametrize(("name", "content"), NO_IMAGES)
def test_what_is_no_image_is_never_given_to_java(tmp_path, request, java, name, content):
    request.getfixturevalue(java)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnknownFormatError, match="first bytes are"):
        registry.choose(path)


def test_an_office_document_is_never_given_to_java(tmp_path, with_java):
    (tmp_path / "a.docx").write_bytes(b"PK\3\4" + bytes(40))
    assert registry.choose(tmp_path / "a.docx").backend.name == "zarr"


def test_missing_empty_and_folders_are_said_at_once(tmp_path, with_java):
    (tmp_path / "a.czi").write_bytes(b"")
    with pytest.raises(UnknownFormatError, match="empty"):
        registry.choose(tmp_path / "a.czi")
    with pytest.raises(FileNotFoundError):
        registry.choose(tmp_path / "b.czi")
    with pytest.raises(FileNotFoundError):
        registry.choose(tmp_path / "b.czi", "java")
    with pytest.raises(FileNotFoundError):
        registry.choose(tmp_path / "b.fake")
    (tmp_path / "c.czi").mkdir()
    with pytest.raises(IsADirectoryError):
        registry.choose(tmp_path / "c.czi")


def test_an_unreadable_file_is_said_at_once(tmp_path, with_java, monkeypatch):
    path = tmp_path / "a.czi"
    path.write_bytes(b"ZISRAWFILE")

    def fail(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(registry, "open", fail, raising=False)  # root may read everything
    with pytest.raises(PermissionError):
        registry.choose(path)


def test_what_nobody_knows_is_for_bio_formats_to_say(tmp_path, java):
    path = tmp_path / "a.unknown"
    path.write_bytes(b"\1\2\3\4\xff\xfe" * 50)
    assert registry.choose(path).reason == "no other backend knows the content"
    with pytest.raises(UnknownFormatError):
        BioReader(path)


def test_what_nobody_knows_without_java(tmp_path, no_java):
    path = tmp_path / "a.unknown"
    path.write_bytes(b"\1\2\3\4\xff\xfe" * 50)
    with pytest.raises(UnknownFormatError, match=r"these are: TIFF.*Bio-Formats may know it: "):
        BioReader(path)


OME = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{}</OME>'


@pytest.mark.parametrize(
    ("content", "backend"),
    [
        (OME.format("<Pixels><BinData>AAAA</BinData></Pixels>"), "java"),
        (OME.format("<Pixels><Bin:BinData>AAAA</Bin:BinData></Pixels>"), "java"),
        (OME.format("<Pixels><TiffData/></Pixels>"), "python"),
        (OME.format("<Pixels><TiffData/><BinData>AAAA</BinData></Pixels>"), "java"),
        (OME.format("<Pixels><TiffData/></Pixels><ROI><BinData/></ROI>"), "python"),
        (OME.format("<Pixels><MetadataOnly/></Pixels>"), "python"),
        (OME.format(f"<!--{'x' * 70_000}--><Pixels><BinData/></Pixels>"), "java"),
        (OME.format(f"<!--{'x' * 3_000_000}--><Pixels><BinData/></Pixels>"), "java"),
        (OME.format(f"<!--{'x' * 3_000_000}--><Pixels><TiffData/></Pixels>"), "python"),
        ("\ufeff" + OME.format("<Pixels><BinData/></Pixels>"), "java"),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("name", ["a.ome.xml", "a.ome", "a.companion.ome", "a.dat"])
def test_ome_xml_goes_where_its_pixels_are(tmp_path, with_java, name, content, backend):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert registry.choose(path).backend.name == backend


@pytest.mark.parametrize("before", range(65_500, 65_560))
def test_the_word_is_found_wherever_a_piece_ends(tmp_path, with_java, before):
    path = tmp_path / "a.ome"
    path.write_bytes(b"<OME".ljust(before) + b"<BinData")
    assert registry.choose(path).backend.name == "java"


def test_content_decides_for_tiff_and_zarr_whatever_the_name(tmp_path, with_java):
    tifffile.imwrite(tmp_path / "a.tif", PLANE)
    for name in ("a.czi", "a.lsm", "a.svs", "a.xyz"):
        (tmp_path / name).write_bytes((tmp_path / "a.tif").read_bytes())
        assert registry.choose(tmp_path / name) == registry.Choice(
            registry.BACKENDS[0], "content is TIFF"
        )
    (tmp_path / "b.czi").mkdir()
    (tmp_path / "b.czi" / "zarr.json").write_text("{}")
    assert registry.choose(tmp_path / "b.czi").reason == "the folder is Zarr"


def test_a_tiff_that_is_dicom_too_is_read_as_it_is_called(tmp_path, with_java):
    tifffile.imwrite(tmp_path / "a.tif", PLANE, extratags=[(65000, "s", 0, "x" * 400, True)])
    content = bytearray((tmp_path / "a.tif").read_bytes())
    for name, backend in [("b.tif", "python"), ("b.TIFF", "python"), ("b.dcm", "java")]:
        content[128:132] = b"DICM"
        (tmp_path / name).write_bytes(content)
        assert registry.choose(tmp_path / name).backend.name == backend


def test_suffixes_are_those_of_bio_formats(java):
    if java.started.version != "7.3.1":
        pytest.skip(f"the table is of Bio-Formats 7.3.1, this is {java.started.version}")
    left_out = {"File pattern", "Zip", "Text", "Tagged Image File Format", "OME-TIFF"}
    left_out.add("SM Camera")
    claimed: dict[str, set[str]] = {}
    for reader in java("loci.formats.ImageReader")().getReaders():
        name = str(reader.getFormat())
        if name not in left_out:
            found = claimed.setdefault(name, set())
            found.update(s for item in reader.getSuffixes() for s in str(item).split(", ") if s)
    assert {name: set(suffixes.split()) for name, suffixes in _java_suffixes.KINDS} == claimed


def test_what_only_bio_formats_reads_must_be_on_this_machine(with_java, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe("/choice/a.czi", b"ZISRAWFILE" + bytes(90))
    files.pipe("/choice/a.bin", b"\1\2\3" * 90)
    try:
        with pytest.raises(UnsupportedError, match="copy the file first"):
            BioReader("memory://choice/a.czi")
        with pytest.raises(UnknownFormatError):
            BioReader("memory://choice/a.bin")
        monkeypatch.undo()
        monkeypatch.setenv("BIOIO_TK_JVM", os.devnull)
        with pytest.raises(BackendMissingError, match="Zeiss CZI"):
            BioReader("memory://choice/a.czi")
    finally:
        files.rm("/choice", recursive=True)


# ------------------------------------------------------------------ sets of a vendor

SETS = [
    ("Metamorph", "exp_w1DAPI_s1_t1.TIF", "exp.nd"),
    ("Metamorph", "my exp_1_w2GFP.tif", "my exp_1.nd"),
    ("Metamorph", "exp_s12.stk", "exp.ND"),
    ("MetaXpress", "plate_A01_s1_w1.TIF", "plate.HTD"),
    ("MetaXpress", "TimePoint_1/plate_A01_s1_w1.TIF", "plate.htd"),
    ("MetaXpress", "TimePoint_1/ZStep_2/plate_H12_w1.tif", "plate.HTD"),
    ("PerkinElmer Operetta", "r01c02f03p01-ch1sk1fk1fl1.tiff", "Index.idx.xml"),
    ("PerkinElmer Operetta", "001001000-1-001001001.tif", "Index.xml"),
    ("PerkinElmer Operetta", "Images/r01c02f03p01-ch1sk1fk1fl1.tiff", "Index.xml"),
    ("InCell 1000/2000", "A - 1(fld 1 wv DAPI - DAPI).tif", "any name.xdce"),
    ("Olympus ScanR", "data/A1--W00001--P00001--Z00000--T00000--DAPI.tif",
     "experiment_descriptor.xml"),
    ("CellVoyager", "Image/W1F001T0001Z01C1.tif", "MeasurementResult.xml"),
    ("Prairie", "TSeries-1_Cycle00001_CurrentSettings_Ch1_000001.tif", "TSeries-1.xml"),
    ("Leica", "exp_Series001_z000_ch00.tif", "exp.lei"),
    ("BD Pathway", "Well A01/DAPI - n000000.tif", "Experiment.exp"),
    ("Micro-Manager", "img_000000000_DAPI_000.tif", "metadata.txt"),
    ("Micro-Manager", "img_channel000_position000_time000000000_z000.tif", "metadata.txt"),
    ("Olympus FV1000", "a.oif.files/s_C001Z001.tif", "a.oif"),
    ("CellSens VSI", "a.vsi", ""),
    ("Evotec Flex", "001001000.flex", ""),
    ("Ventana .bif", "a.bif", ""),
]  # fmt: skip


def lay_out(folder, tiff, index):
    path = folder / tiff
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, PLANE)
    if index:
        (folder / index).write_text("index")
    return path, folder / index if index else path


@pytest.mark.parametrize(("kind", "tiff", "index"), SETS)
def test_a_tiff_of_a_set_goes_to_bio_formats(tmp_path, with_java, kind, tiff, index):
    path, described = lay_out(tmp_path / "plate", tiff, index)
    choice = registry.choose(path)
    assert choice.backend.name == "java"
    see = f" (see {described.name!r})" if index else ""
    assert choice.reason == f"a TIFF of {kind}{see}"
    assert choice.notes == ()
    assert registry.resolve(path, choice.backend) == described
    assert registry.resolve(path, registry.BACKENDS[0]) == path


@pytest.mark.parametrize(("kind", "tiff", "index"), SETS)
def test_without_java_it_opens_alone_with_one_warning(tmp_path, no_java, kind, tiff, index):
    path, _ = lay_out(tmp_path / "plate", tiff, index)
    with pytest.warns(BioIOWarning) as caught:
        br = BioReader(path)
    (warning,) = caught
    assert warning.filename == __file__
    assert br.notes == (str(warning.message),)
    assert kind in br.notes[0]
    assert "this file alone is read" in br.notes[0]
    assert (br.backend, br.backend_reason) == ("python", "content is TIFF")
    np.testing.assert_array_equal(br[:], PLANE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pickle.loads(pickle.dumps(br))
        assert again.notes == br.notes
        assert BioReader(path, backend="python").notes == ()
        assert describe(path).notes == br.notes


@pytest.mark.parametrize(
    ("kind", "tiff", "index"), [entry for entry in SETS if entry[2]], ids=lambda v: v
)
def test_without_the_index_it_stands_for_itself(tmp_path, with_java, kind, tiff, index):
    path, described = lay_out(tmp_path / "plate", tiff, index)
    described.unlink()
    described.mkdir()  # nor is a folder an index
    assert registry.choose(path) == registry.Choice(registry.BACKENDS[0], "content is TIFF")


@pytest.mark.parametrize(
    ("kind", "tiff", "index"), [entry for entry in SETS if entry[2]], ids=lambda v: v
)
def test_a_file_in_another_format_with_such_a_name_is_itself(
    tmp_path, with_java, kind, tiff, index
):
    path = lay_out(tmp_path / "plate", tiff, index)[0].with_suffix(".czi")
    path.write_bytes(b"ZISRAWFILE")
    assert registry.resolve(path, registry.choose(path).backend) == path


def test_ome_tiff_says_itself_what_belongs_together(tmp_path, with_java):
    path, _ = lay_out(tmp_path, "exp_w1DAPI_s1_t1.ome.tif", "exp.nd")
    assert registry.choose(path).backend.name == "python"


@pytest.mark.parametrize("name", ["a.tif", "cells_1.tif", "my scan 12.tiff", "img_1.tif"])
def test_a_plain_tiff_costs_no_look_at_its_folder(tmp_path, monkeypatch, name):
    path, _ = lay_out(tmp_path, name, "exp.nd")

    def fail(*_):
        raise AssertionError("looked into the folder")

    for function in ("scandir", "listdir", "stat"):
        monkeypatch.setattr(os, function, fail)
    choice = registry.choose(path)
    monkeypatch.undo()
    assert choice.backend.name == "python"


def test_a_tiff_of_a_set_is_validated_as_a_tiff(tmp_path, with_java):
    path, _ = lay_out(tmp_path, "exp_w1DAPI_s1_t1.TIF", "exp.nd")
    assert validate(path).format == "TIFF"


ND = """"NDInfoFile", Version 1.0
"Description", File recreated
"StartTime1", 20200101 12:00:00
"DoTimelapse", FALSE
"NTimePoints", 1
"DoStage", TRUE
"NStagePositions", 3
"Stage1", "one"
"Stage2", "two"
"Stage3", "three"
"DoWave", TRUE
"NWavelengths", 2
"WaveName1", "DAPI"
"WaveDoZ1", FALSE
"WaveName2", "GFP"
"WaveDoZ2", FALSE
"DoZSeries", FALSE
"WaveInFileName", TRUE
"EndFile"
"""


def test_a_metamorph_set_opens_whole_from_any_of_its_files(tmp_path, java):
    planes = RNG.integers(0, 1 << 16, (3, 2, 24, 32), np.uint16)
    (tmp_path / "exp.nd").write_text(ND.replace("\n", "\r\n"))
    names = [
        [f"exp_w{c + 1}{wave}_s{s + 1}.TIF" for c, wave in enumerate(("DAPI", "GFP"))]
        for s in range(3)
    ]
    for s in range(3):
        for c in range(2):
            tifffile.imwrite(tmp_path / names[s][c], planes[s, c])
    for name in ("exp.nd", names[0][0], names[2][1]):
        with BioReader(tmp_path / name) as br:
            assert br.backend == "java"
            assert br.n_series == 3
            assert {p.name for p in br.used_files} == {"exp.nd", *names[0], *names[1], *names[2]}
            for s in range(3):
                with BioReader(tmp_path / name, series=s) as one:
                    np.testing.assert_array_equal(one[:], planes[s].transpose(1, 2, 0)[:, :, None])


def test_a_broken_set_leaves_the_tiff_readable(tmp_path, java):
    path, _ = lay_out(tmp_path, "plate_A01_s1_w1.TIF", "plate.HTD")
    with pytest.warns(BioIOWarning, match=r"MetaXpress \(see 'plate.HTD'\).*alone is read"):
        br = BioReader(path)
    with br:
        assert br.backend == "python"
        np.testing.assert_array_equal(br[:], PLANE)
        assert len(br.notes) == 1
        assert describe(path).notes == br.notes
    with pytest.raises(FormatError):
        BioReader(path, backend="java")


# ------------------------------------------------------------------ what a reader says


def test_backend_decides(tmp_path, java):
    tifffile.imwrite(tmp_path / "a.tif", PLANE)
    for name, backend in [
        (None, "python"),
        ("python", "python"),
        ("java", "java"),
        ("bioformats", "java"),
        ("BioFormats", "java"),
    ]:
        with BioReader(tmp_path / "a.tif", backend=name) as br:
            assert br.backend == backend
            assert br.backend_reason == ("content is TIFF" if name is None else "asked for")
            assert f"{br.backend}: {br.backend_reason}" in repr(br)
            np.testing.assert_array_equal(br[:], PLANE)
            again = pickle.loads(pickle.dumps(br))
            assert (again.backend, again.backend_reason) == (br.backend, br.backend_reason)
    with pytest.raises(SpecError, match=r"there are python, zarr, .*java"):
        BioReader(tmp_path / "a.tif", backend="bioform")


def test_original_metadata_of_a_tiff_are_its_tags(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, PLANE, software="scope 7", imagej=True, metadata={"Info": "x = 1", "unit": "nm"},
        extratags=[(65000, "d", 3, (1.5, 2.0, 3.0), True)],
    )  # fmt: skip
    with BioReader(path) as br, tifffile.TiffFile(path) as tif:
        found = br.original_metadata
        tags = tif.pages[0].tags
        assert found["ImageWidth"] == tags["ImageWidth"].value == 32
        assert found["Software"] == "scope 7"
        assert found["65000"] == [1.5, 2.0, 3.0]
        assert found["Compression"] == tags["Compression"].value.name == "NONE"
        assert "StripOffsets" not in found
        assert found["imagej"]["Info"] == tif.imagej_metadata["Info"] == "x = 1"
        assert json.loads(json.dumps(found)) == found
        assert br.used_files == (path,)


def test_original_metadata_of_a_zarr_are_its_attributes(tmp_path):
    folder = tmp_path / "a.zarr"
    (folder / "0").mkdir(parents=True)
    multiscale = {
        "version": "0.4",
        "axes": [{"name": n, "type": "space"} for n in "yx"],
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]}
        ],
    }
    attributes = {"multiscales": [multiscale], "mine": {"a": [1, None, "µ"]}}
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / ".zattrs").write_text(json.dumps(attributes), encoding="utf-8")
    array = {"zarr_format": 2, "shape": [4, 4], "chunks": [4, 4], "dtype": "|u1", "order": "C"}
    array |= {"compressor": None, "filters": None, "fill_value": 0}
    (folder / "0" / ".zarray").write_text(json.dumps(array))
    with BioReader(folder / ".zattrs") as br:
        assert br.original_metadata == attributes
        assert br.used_files == (folder,)
        assert (br.backend, br.backend_reason) == ("zarr", ".zattrs stands for its folder")


def test_used_files_of_a_multi_file_ome_tiff(tmp_path):
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="32" SizeY="24" '
        'SizeZ="2" SizeC="1" SizeT="1"><Channel ID="Channel:0:0"/>'
        '<TiffData FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="z0.ome.tif">urn:uuid:'
        '00000000-0000-0000-0000-000000000001</UUID></TiffData>'
        '<TiffData FirstZ="1" IFD="0" PlaneCount="1"><UUID FileName="z1.ome.tif">urn:uuid:'
        '00000000-0000-0000-0000-000000000002</UUID></TiffData></Pixels></Image></OME>'
    )  # fmt: skip
    for name in ("z0.ome.tif", "z1.ome.tif"):
        tifffile.imwrite(tmp_path / name, PLANE, description=xml, metadata=None)
    (tmp_path / "a.companion.ome").write_text(xml)
    both = {tmp_path / "z0.ome.tif", tmp_path / "z1.ome.tif"}
    with BioReader(tmp_path / "z1.ome.tif") as br:
        assert br.used_files[0] == tmp_path / "z1.ome.tif"
        assert set(br.used_files) == both
    with BioReader(tmp_path / "a.companion.ome") as br:
        assert set(br.used_files) == both | {tmp_path / "a.companion.ome"}
        assert br.backend_reason == "content is OME-XML, the pixels are in TIFFs"
        assert br.original_metadata == {}
    info = describe(tmp_path / "z0.ome.tif")
    assert set(info.used_files) == set(map(str, both))
    assert (info.files, info.bytes) == (2, sum(p.stat().st_size for p in both))


# ------------------------------------------------------------------ many images


def fake(folder, **parameters):
    """An image that Bio-Formats makes up from its name."""
    text = "&".join(f"{name}={value}" for name, value in parameters.items())
    path = folder / f"a&sizeX=32&sizeY=24&{text}.fake"
    path.write_bytes(b"fake")  # what is empty is no image
    return path


def test_many_series_are_described_a_hundred_of_them(tmp_path, java):
    path = fake(tmp_path, series=2000, pixelType="uint16")
    info = describe(path)
    assert (info.backend, info.format, info.images) == ("java", "Simulated data", 2000)
    assert [series.series for series in info.series] == list(range(100))
    assert len(describe(path, images=150).series) == 150


def test_a_plate_is_described_by_its_first_images(tmp_path, java):
    path = fake(tmp_path, plates=1, plateRows=4, plateCols=6, fields=3, plateAcqs=1)
    info = describe(path)
    assert info.plate is not None
    assert (info.plate.wells, info.plate.fields, info.images) == (24, 3, 72)
    assert len(info.series) == 6


# ------------------------------------------------------------------ nothing starts by accident

QUIET = """
import sys
from bioio_tk import BioReader
from bioio_tk.api import describe
from bioio_tk.errors import UnknownFormatError
for path in sys.argv[1:]:
    for open_it in (BioReader, describe):
        try:
            open_it(path)
        except (UnknownFormatError, FileNotFoundError):
            pass
from bioio_tk.cli.main import main
try:
    main(["formats", "czi"])
except SystemExit as exc:
    assert not exc.code, exc.code
for heavy in ("jpype", "subprocess", "tifffile", "zipfile.foo"):
    assert heavy not in sys.modules, heavy
"""


def test_no_java_is_started_for_what_is_no_image(tmp_path):
    for name, content in NO_IMAGES:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty.czi").write_bytes(b"")
    tifffile.imwrite(tmp_path / "fine.tif", PLANE)
    paths = [*sorted(map(str, tmp_path.iterdir())), str(tmp_path / "none.czi")]
    done = subprocess.run(
        [sys.executable, "-c", QUIET, *paths],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ".czi" in done.stdout


def test_the_table_of_backends_loads_no_format():
    assert Path(registry.__file__).name == "registry.py"
    for row in registry.rows():
        assert registry.kinds(row) or not row.source
        for name, suffixes in registry.kinds(row):
            assert name
            assert all(s.startswith(".") for s in suffixes)
