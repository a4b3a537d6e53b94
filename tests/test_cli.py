"""The command line as its users meet it: what it prints, writes and returns."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import tifffile
from images import coded
from PIL import Image

from bioio_tk import BioWriter, convert
from bioio_tk.api import thumbnail
from bioio_tk.cli import main as cli
from bioio_tk.cli.convert import command as convert_command
from bioio_tk.cli.text import ByteSize
from bioio_tk.core.text import duration, size
from bioio_tk.engine.resample import area_mean
from bioio_tk.errors import RegionError, SpecError, TargetExistsError, UnknownFormatError
from bioio_tk.jobs.bar import Progress
from bioio_tk.jobs.legend import add_legend, lettering
from tests.command import run

NAMES = (
    "info",
    "formats",
    "convert",
    "thumbnail",
    "validate",
    "upgrade",
    "finish",
    "recover",
    "java",
    "demo",
)
ENV = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def child(*words):
    return subprocess.run(
        [sys.executable, *words], env=ENV, capture_output=True, text=True, check=False
    )


# ------------------------------------------------------------------ the command itself


def test_help_imports_no_numpy_and_no_format_library():
    done = child(
        "-c",
        """
import sys
from bioio_tk.cli.main import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
heavy = {"numpy", "tifffile", "imagecodecs", "zarr", "ome_types", "xml", "concurrent"}
print("heavy:", sorted(heavy & set(sys.modules)))
""",
    )
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    for name in NAMES:
        assert re.search(rf"^  {name} ", done.stdout, re.MULTILINE)


def test_as_a_module():
    done = child("-m", "bioio_tk", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("bioio-tk")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_help(name):
    said, _ = run(name, "--help")
    assert said.startswith(f"Usage: bioio-tk {name}")


def test_wrong_usage_is_2():
    _, said = run("konvert", code=2)
    assert "No such command" in said
    run("convert", "only-one.tif", code=2)
    run("convert", "a", "b.ome.tif", "--tile-size", "large", code=2)
    run("convert", "a", "b.ome.tif", "--series", "first", code=2)
    _, said = run("convert", "a", "b.ome.tif", "--no-pyramid", "--levels", 2, code=2)
    assert "give one of them" in said
    _, said = run("convert", "a", "b{series}.ome.tif", code=2)
    assert "--series all" in said
    _, said = run("convert", "a", "b.ome.tif", "--chunks", 64, code=2)
    assert "--chunks is for OME-Zarr; for TIFF use --tile-size" in said
    _, said = run("convert", "a", "b.ome.tif", "--ngff-version", "0.4", code=2)
    assert "--ngff-version is for OME-Zarr" in said


def test_errors_are_one_line_and_speak_of_options(tmp_path):
    _, said = run("convert", tmp_path / "none.tif", tmp_path / "b.ome.tif", code=1)
    assert said == f"Error: there is no file '{tmp_path / 'none.tif'}'\n"
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 20), "u2"))
    (tmp_path / "b.ome.tif").touch()
    _, said = run("convert", tmp_path / "a.tif", tmp_path / "b.ome.tif", code=1)
    assert said.count("\n") == 1
    assert "use --overwrite to replace it" in said
    _, said = run("recover", tmp_path / "c.ome.tif", code=1)
    assert "nothing to recover" in said


def test_debug_shows_where():
    done = child("-m", "bioio_tk", "convert", "none.tif", "b.ome.tif", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("ngff_version='0.7': no", "--ngff-version '0.7': no"),
        ("shards need ngff_version='0.5'", "shards need --ngff-version '0.5'"),
        ("max_workers=0: no", "--workers 0: no"),
        ("level=9 is no compression level", "--compression-level 9 is no compression level"),
        ("level=9 does not exist", "--level 9 does not exist"),
        ("chunks=(64, 32): no", "--chunks 64x32: no"),
        ("give shards=(64,)", "give --shards 64"),
        ("see overwrite=True", "see --overwrite"),
        ("set predictor=False", "set --no-predictor"),
        ("pass pyramid=True", "use --pyramid"),
        ("pyramid=3: no", "--levels 3: no"),
        ("mode='create' first", "mode='create' first"),
        ("by bioio_tk.finish('a b.zarr')", "by bioio-tk finish 'a b.zarr'"),
        ("by bioio_tk.finish('x.zarr')", "by bioio-tk finish x.zarr"),
        ("no file 'data/series=1/a.tif'", "no file 'data/series=1/a.tif'"),
    ],
)
def test_keywords_become_options(text, want):
    assert cli.error_text(SpecError(text)) == want


def test_a_path_is_said_once():
    assert cli.file_error("./a.tif", SpecError("'a.tif' is bad")) == "'a.tif' is bad"
    assert cli.file_error("a.tif", SpecError("page 3 is bad")) == "a.tif: page 3 is bad"
    for name in ("info", "validate"):
        assert run(name, "none.tif", code=1)[1] == "Error: there is no file 'none.tif'\n"


EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_say_how_they_are_used(path, tmp_path):
    done = child(str(path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: {path.name}")
    none = str(tmp_path / "none.tif")
    words = {"add_labels": [none], "cluster_job": ["create", none, "b.ome.zarr"]}
    done = child(str(path), *words.get(path.stem, [none, str(tmp_path / "b.ome.tif")]))
    assert (done.returncode, done.stderr) == (1, f"Error: there is no file {none!r}\n")


def test_an_error_of_the_system_is_one_line_too():
    exc = OSError(28, "No space left on device")
    assert cli.error_text(exc) == "No space left on device"
    assert cli.error_text(FileNotFoundError(2, "No such file", "x")) == "No such file: 'x'"
    text = cli.error_text(SpecError("bad: pass cast='clip', or pass max_workers=2"))
    assert text == "bad: use --cast 'clip', or use --workers 2"


# ------------------------------------------------------------------ info


def test_info_says_what_tifffile_says(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(
            np.zeros((2, 300, 200), "u2"),
            tile=(64, 32),
            compression="zlib",
            subifds=1,
            photometric="minisblack",
            metadata={
                "axes": "CYX",
                "Name": "cells",
                "Channel": {"Name": ["DAPI", "µ"]},
                "PhysicalSizeX": 0.5,
                "PhysicalSizeXUnit": "µm",
            },
        )
        writer.write(np.zeros((2, 150, 100), "u2"), subfiletype=1, photometric="minisblack")
        writer.write(np.zeros((7, 8), "f4"), metadata={"axes": "YX"})
    said, _ = run("info", path, "--json")
    (found,) = json.loads(said)
    with tifffile.TiffFile(path) as tif:
        for series, want in zip(found["series"], tif.series, strict=True):
            sizes = dict(zip(want.axes, want.shape, strict=True))
            assert series["shape"] == [sizes.get(axis, 1) for axis in series["axes"]]
            assert series["dtype"] == str(want.dtype)
            assert [v["shape"][:2] for v in series["levels"]] == [
                list(level.shape[-2:]) for level in want.levels
            ]
    first, second = found["series"]
    assert found["bytes"] == path.stat().st_size
    assert first["name"] == "cells"
    assert [c["name"] for c in first["channels"]] == ["DAPI", "µ"]
    assert first["pixel_size"] == {"x": [0.5, "µm"], "y": None, "z": None}
    assert first["levels"][0]["storage"] == "tiles"
    assert first["levels"][0]["tile"] == [64, 32]
    assert first["levels"][0]["compression"] == "deflate"
    assert second["levels"][0]["storage"] == "strips"

    said, _ = run("info", path)
    for text in (
        "X 200  Y 300  Z 1  C 2  T 1",
        "DAPI, µ",
        "X 0.5 µm",
        "tiles of 32 x 64, deflate",
        "200 x 300, 100 x 150",
        "2 images",
    ):
        assert text in said


def test_info_of_many_goes_on_after_a_bad_one(tmp_path):
    for name in ("a.tif", "c.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((9, 9), "u1"))
    (tmp_path / "b.tif").write_text("no image")
    said, wrong = run("info", tmp_path / "*.tif", code=1)
    assert "a.tif: 1 image" in said
    assert "c.tif: 1 image" in said
    assert wrong.startswith(f"Error: '{tmp_path / 'b.tif'}' is in no format")
    assert wrong.count("b.tif") == 1
    said, _ = run("info", tmp_path / "*.tif", tmp_path / "none*", "--json", code=1)
    assert [("error" in file) for file in json.loads(said)] == [False, True, False, True]


# ------------------------------------------------------------------ convert


def test_convert_options_are_the_keywords():
    in_python = {"src", "dst", "progress", "progress_callback", "show_progress", "max_workers"}
    in_python |= {"t", "c", "z", "y", "x", "shape"}  # --select; and for generators of tiles
    keywords = set(inspect.signature(convert).parameters) - in_python
    options = {param.name for param in convert_command.params} - {"src", "dst"}
    assert options - keywords == {"quiet", "as_json"}
    assert keywords <= options


def test_convert_says_what_it_did(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", coded((600, 700, 1, 1, 1))[:, :, 0, 0, 0])
    a, b = tmp_path / "a.tif", tmp_path / "b.ome.tif"
    said, _ = run("convert", a, b, "--tile-size", "64x128", "--compression", "zstd")
    assert said.startswith(f"{b}: 700 x 600, uint16, 3 resolutions\n")
    with tifffile.TiffFile(b) as tif:
        assert (tif.pages[0].tilelength, tif.pages[0].tilewidth) == (64, 128)
        assert tif.pages[0].compression.name == "ZSTD"
    assert run("convert", a, b, "--overwrite", "--quiet", "--no-pyramid") == ("", "")
    said, _ = run("convert", a, b, "--overwrite", "--json", "--levels", 2)
    assert json.loads(said)["levels"] == 2
    run("convert", a, b, "--overwrite", "--dtype", "uint8", "--cast", "wrap")
    assert tifffile.imread(b).dtype == np.uint8


def test_convert_all_series(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for n in (1, 2):
            writer.write(np.full((20 * n, 30), n, "u1"), metadata={"axes": "YX"})
    said, _ = run(
        "convert", tmp_path / "a.ome.tif", tmp_path / "b.ome.tif", "--series", "all", "--json"
    )
    assert [json.loads(line)["series"] for line in said.splitlines()] == [0, 1]
    assert (tmp_path / "b_s1.ome.tif").exists()
    said, _ = run("convert", tmp_path / "a.ome.tif", tmp_path / "c.ome.tif")
    assert "note: the source has 2 images; only number 0 was converted" in said


# ------------------------------------------------------------------ thumbnail


def picture(path):
    with Image.open(path) as image:
        image.load()
        return np.asarray(image)


def test_thumbnail_of_rgb_is_as_it_is(tmp_path):
    rgb = np.zeros((40, 60, 3), "u1")
    rgb[:, :30] = (200, 10, 90)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    run("thumbnail", tmp_path / "a.tif", tmp_path / "a.png")
    np.testing.assert_array_equal(picture(tmp_path / "a.png"), rgb)
    run("thumbnail", tmp_path / "a.tif", tmp_path / "b.png", "--size", 30)
    np.testing.assert_array_equal(picture(tmp_path / "b.png"), rgb[::2, ::2])


@pytest.mark.parametrize(
    ("shape", "size", "want"),
    [
        ((300, 500), 100, (60, 100)),
        ((500, 300), 100, (100, 60)),
        ((20, 30), 512, (20, 30)),
        ((1, 4000), 100, (1, 100)),
        ((257, 257), 256, (256, 256)),
    ],
)
def test_thumbnail_size(tmp_path, shape, size, want):
    tifffile.imwrite(
        tmp_path / "a.tif", coded((*shape, 1, 1, 1))[:, :, 0, 0, 0], compression="zlib"
    )
    said, _ = run("thumbnail", tmp_path / "a.tif", tmp_path / "a.png", "--size", size)
    assert picture(tmp_path / "a.png").shape == (*want, 3)
    assert f"{want[1]} x {want[0]}" in said


def test_thumbnail_shows_channels_in_their_colours(tmp_path):
    image = np.zeros((64, 64, 3, 2, 1), "u2")
    image[8:24, 8:24, 1, 0, 0] = 1000
    image[40:56, 40:56, 1, 1, 0] = 50
    image[:, :, 2] = 7
    with BioWriter(
        tmp_path / "a.ome.tif",
        image=image,
        tile_size=16,
        pyramid=3,
        channel_colors=["#ff0000", "#00ff00"],
    ):
        pass
    run("thumbnail", tmp_path / "a.ome.tif", tmp_path / "a.png")  # the middle Z
    shown = picture(tmp_path / "a.png")
    assert shown[16, 16].tolist() == [255, 0, 0]
    assert shown[48, 48].tolist() == [0, 255, 0]
    assert shown[2, 60].tolist() == [0, 0, 0]
    run("thumbnail", tmp_path / "a.ome.tif", tmp_path / "b.png", "--channel", 1)
    assert picture(tmp_path / "b.png")[48, 48].tolist() == [255, 255, 255]
    run("thumbnail", tmp_path / "a.ome.tif", tmp_path / "c.png", "--z", 0)
    assert not picture(tmp_path / "c.png").any()
    run("thumbnail", tmp_path / "a.ome.tif", tmp_path / "d.png", "--size", 32, "--legend")
    assert picture(tmp_path / "d.png").shape[0] > 32


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "u4", "f2", "f8", "c8"])
def test_thumbnail_of_every_pixel_type(tmp_path, dtype):
    image = np.zeros((32, 32), dtype)
    image[8:16, 8:16] = 1
    if dtype in ("f2", "f8"):
        image[0, 0], image[0, 1] = np.nan, np.inf
    with BioWriter(tmp_path / "a.ome.tif", image=image):
        pass
    shown = thumbnail(tmp_path / "a.ome.tif", tmp_path / "a.png").pixels
    assert shown[12, 12].min() > shown[24, 24].max()


def test_thumbnail_is_the_mean_of_what_it_covers(tmp_path):
    from bioio_tk import BioReader

    plane = coded((211, 305, 1, 1, 1))[:, :, 0, 0, 0]
    tifffile.imwrite(tmp_path / "a.tif", plane, tile=(32, 48), compression="zlib")
    with BioReader(tmp_path / "a.tif") as br:
        found = area_mean(br._source, 0, 0, (0, slice(0, 1), 0), (30, 61), workers=3)
    fine = np.repeat(np.repeat(plane.astype(float), 30, 0), 61, 1)  # 30 x 61 times as many pixels
    want = fine.reshape(30, 211, 61, 305).mean((1, 3))
    np.testing.assert_allclose(found[:, :, 0], want, rtol=1e-4)


def test_thumbnail_refuses(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 20), "u2"))
    (tmp_path / "there.png").write_bytes(b"precious")
    for error, target, options in [
        (UnknownFormatError, "a.jpg", {}),
        (TargetExistsError, "there.png", {}),
        (FileNotFoundError, "no/a.png", {}),
        (RegionError, "a.png", {"z": 1}),
        (RegionError, "a.png", {"t": 5}),
        (RegionError, "a.png", {"channels": [1]}),
        (SpecError, "a.png", {"series": 1}),
        (SpecError, "a.png", {"size": 0}),
    ]:
        with pytest.raises(error):
            thumbnail(tmp_path / "a.tif", tmp_path / target, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "there.png"]
    run("thumbnail", tmp_path / "a.tif", tmp_path / "there.png", "--overwrite", "--quiet")
    assert picture(tmp_path / "there.png").shape == (20, 20, 3)


def test_legend():
    assert lettering("I").tolist()[0] == [False, True, True, True, False]
    assert lettering("µm").shape == (8, 11)
    framed = add_legend(
        np.zeros((50, 500, 3), "u1"),
        [("DAPI", (0, 0, 255)), ("x" * 90, (9, 9, 9))],
        um_per_pixel=0.5,
    )
    strip = framed[50:]
    assert (strip[..., 2] == 255).any()
    assert not (strip == 9).any()  # does not fit
    grey = "".join("#" if pixel else "." for pixel in (strip == 200).all(axis=2)[15])
    assert max(map(len, grey.split("."))) == 100  # pixels for 50 µm


# ------------------------------------------------------------------ numbers and the bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar(monkeypatch):
    clock = iter([0.0, 0.5, 2.0, 2.01, 4.0])
    monkeypatch.setattr("bioio_tk.jobs.bar.time.monotonic", lambda: next(clock))
    screen = Terminal()
    with Progress("copying", stream=screen) as progress:
        for done in (10, 20, 30, 100):
            progress(done * 10**6, 100 * 10**6)
    lines = screen.getvalue().split("\r")
    assert lines[0] == ""  # nothing in the first second
    assert "20%  10.0 MB/s  8.0 s left" in lines[1]
    assert "100%  25.0 MB/s  in 4.0 s" in lines[2]
    assert len(lines) == 3  # not twice within a tenth of a second
    assert lines[2].endswith("\n")


def test_no_bar_where_nobody_looks():
    for progress in (
        Progress("x", stream=io.StringIO()),
        Progress("x", quiet=True, stream=Terminal()),
    ):
        progress._began -= 10
        progress(1, 2)
        assert progress._stream.getvalue() == ""


def test_numbers():
    assert [size(n) for n in (0, 999, 1000, 99_950, 123_456_789, 2.5e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "100 kB",
        "123 MB",
        "2500 GB",
    ]
    assert [duration(s) for s in (0, 9.96, 61, 3599.9)] == ["0.0 s", "10 s", "1:01", "1:00:00"]
    parse = ByteSize()
    assert [parse.convert(t, None, None) for t in ("2GB", "200 mb", "1.5 GiB", "77")] == [
        2 * 10**9,
        2 * 10**8,
        1610612736,
        77,
    ]
    for bad in ("large", "2 PB", "1.2.3 GB", ""):
        with pytest.raises(click.BadParameter):
            parse.convert(bad, None, None)
