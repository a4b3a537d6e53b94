"""``bioio-tk formats``, and what ``info`` and ``convert`` say of files that Bio-Formats reads."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from bioio_tk.cli.main import command

PLANE = np.arange(24 * 32, dtype="u2").reshape(24, 32)
WRONG = "BIOIO_TK_JVM" if find_spec("jpype") else "the package jpype1"
"""How it begins, what is wrong where that variable names no Java."""


def run(*words, code=0):
    """Run the command; return what it printed to stdout and stderr."""
    done = CliRunner().invoke(command, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout, done.stderr


def formats(*words):
    said, _ = run("formats", *words, "--json")
    return {(item["format"], item["reads"]): item for item in json.loads(said)}


def test_everything_is_listed():
    found = formats()
    assert len(found) > 150
    assert ".ome.tif" in found["OME-TIFF", "python"]["writes"]
    assert ".tif" in found["TIFF", "python"]["writes"]
    assert ".ome.zarr" in found["OME-Zarr", "zarr"]["writes"]
    assert found["Zeiss CZI", "java"]["suffixes"] == [".czi"]
    assert found["Zeiss CZI", "java"]["writes"] == []
    assert found["JPEG-2000", "java"]["writes"] == [".jp2"]
    assert found["Nikon ND2", "java"]["suffixes"] == [".nd2", ".jp2"]
    assert found["Nikon ND2", "java"]["writes"] == []  # what is written as .jp2 is JPEG 2000
    assert found["ImageJ, Micro-Manager and NDTiff stacks", "python"]["writes"] == []
    assert not any(backend == "memory" for _, backend in found)
    said, _ = run("formats")
    assert said.count("\n") >= len(found)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["czi"], {"Zeiss CZI"}),
        ([".CZI"], {"Zeiss CZI"}),
        (["*.czi"], {"Zeiss CZI"}),
        (["my cells 1.czi"], {"Zeiss CZI"}),
        (["nikon", "nd2"], {"Nikon ND2"}),
        (["ome.zarr"], {"OME-Zarr"}),
        (["operetta"], {"PerkinElmer Operetta"}),
    ],
)
def test_words_pick_formats(words, names):
    assert {name for name, _ in formats(*words)} == names


def test_nothing_fits():
    said, wrong = run("formats", "zeis", "nd2", code=1)
    assert said == ""
    assert wrong == "Error: no format is called 'zeis nd2'\n"
    said, _ = run("formats", "qqq", "--json", code=1)
    assert json.loads(said) == []


def test_what_is_missing_is_said_with_its_remedy(monkeypatch):
    monkeypatch.setenv("BIOIO_TK_JVM", os.devnull)
    said, _ = run("formats", "czi")
    first, blank, last = said.splitlines()
    assert first.split() == ["Zeiss", "CZI", "java", ".czi"]
    assert blank == ""
    assert last.startswith(f"java cannot read here yet: {WRONG}")
    assert formats("czi")["Zeiss CZI", "java"]["missing"]
    assert formats("lsm")["Zeiss Laser-Scanning Microscopy", "python"]["missing"] is None
    assert "yet" not in run("formats", "ndpi", "ndpi")[0].splitlines()[0]


def test_nothing_is_missing_where_java_is(java):
    assert formats("czi")["Zeiss CZI", "java"]["missing"] is None
    said, _ = run("formats", "czi")
    assert len(said.splitlines()) == 1


def test_info_says_who_reads_a_file_and_why(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PLANE, software="scope 7")
    said, _ = run("info", path)
    assert "  read by python: content is TIFF\n" in said
    assert "scope 7" not in said
    said, _ = run("info", path, "--original-metadata")
    assert "  original metadata\n" in said
    assert "    Software: scope 7\n" in said
    said, _ = run("info", path, "--json", "--original-metadata")
    (found,) = json.loads(said)
    assert found["original_metadata"]["Software"] == "scope 7"
    assert (found["backend"], found["backend_reason"]) == ("python", "content is TIFF")
    assert (found["format"], found["used_files"]) == ("", [])
    assert json.loads(run("info", path, "--json")[0])[0]["original_metadata"] is None


@pytest.fixture
def fake(tmp_path, java):
    """Three images that Bio-Formats makes up, 2 x 3 planes each."""
    path = tmp_path / "a&series=3&sizeX=32&sizeY=24&sizeC=2&sizeT=3&pixelType=uint16.fake"
    path.write_bytes(b"fake")
    return path


def test_info_of_a_file_that_bio_formats_reads(fake):
    said, _ = run("info", fake)
    first, second, *rest = said.splitlines()
    assert first == f"{fake}: Simulated data, 3 images, 4 B on disk"
    assert second == "  read by java: Simulated data is read through Bio-Formats"
    assert sum("X 32  Y 24  Z 1  C 2  T 3" in line for line in rest) == 3


def planes(java, path, series):
    """Return all pixels of a series in plain calls of Java: T, C, Y, X."""
    reader = java("loci.formats.ImageReader")()
    reader.setId(str(path))
    reader.setSeries(series)
    order = "<u2" if reader.isLittleEndian() else ">u2"
    found = np.empty((3, 2, 24, 32), "u2")
    for t in range(3):
        for c in range(2):
            pixels = bytes(reader.openBytes(reader.getIndex(0, c, t)))
            found[t, c] = np.frombuffer(pixels, order).reshape(24, 32)
    reader.close()
    return found


def test_convert_of_a_file_that_bio_formats_reads(fake, java, tmp_path):
    run("convert", fake, tmp_path / "one.ome.tif", "--series", "1", "--quiet")
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "one.ome.tif", series=0, level=0), planes(java, fake, 1)
    )
    run("convert", fake, tmp_path / "all.ome.tif", "--series", "all", "--quiet")
    written = sorted(p for p in tmp_path.iterdir() if p.name.startswith("all"))
    assert len(written) == 3
    for series, path in enumerate(written):
        np.testing.assert_array_equal(
            tifffile.imread(path, series=0, level=0), planes(java, fake, series)
        )


def test_a_set_without_java_is_shown_alone_with_a_note(tmp_path, monkeypatch):
    monkeypatch.setenv("BIOIO_TK_JVM", os.devnull)
    tifffile.imwrite(tmp_path / "exp_w1DAPI_s1.TIF", PLANE)
    (tmp_path / "exp.nd").write_text("index")
    said, wrong = run("info", tmp_path / "exp_w1DAPI_s1.TIF")
    assert said.count("  note: ") == 1
    assert "Metamorph (see 'exp.nd'): this file alone is read" in said
    assert wrong == ""
    said, wrong = run("info", tmp_path / "exp.nd", code=1)
    assert said == ""
    assert f"'Metamorph STK', which is read through Bio-Formats: {WRONG}" in wrong
    said, wrong = run("convert", tmp_path / "exp_w1DAPI_s1.TIF", tmp_path / "a.ome.tif")
    assert "this file alone is read" in said + wrong
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.ome.tif", level=0), PLANE)
