"""`bioio-tk wipp` makes what WIPP's OME converter makes: names, planes, preview.json."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from images import coded

from bioio_tk import BioReader
from bioio_tk.errors import SpecError
from bioio_tk.jobs.wipp import Environment, base_name, wipp

ROOT = Path(__file__).parent.parent


def make(path, *images, **metadata):
    """Write images (Y, X, Z, C, T), one series each."""
    with tifffile.TiffWriter(path, ome=True) as tif:
        for image in images:
            full = image.reshape((*image.shape, 1, 1, 1)[:5])
            tif.write(
                full.transpose(4, 3, 2, 0, 1),
                photometric="minisblack",
                metadata={"axes": "TCZYX", **metadata},
            )
    return path


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """An input and an output folder, and an environment that says nothing."""
    for name in ("POLUS_IMG_EXT", "NUM_THREADS", "NUM_WORKERS", "POLUS_LOG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return tmp_path / "in", tmp_path / "out"


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_one_file_for_each_plane_named_by_what_there_is_more_than_one_of(folders):
    src, out = folders
    image = coded((20, 30, 2, 3, 2), "u2")
    make(src / "cells.ome.tif", image, Channel={"Name": ["a", "b", "c"]}, PhysicalSizeX=0.5)
    make(src / "flat.tif", image[:, :, 0, 0, 0])
    make(src / "deep.ome.tiff", image[:, :, :, 0, 0])
    report = wipp(src, out)
    wanted = {
        f"cells_c{c}_t{t}_z{z}.ome.tif": image[:, :, z, c, t]
        for c in range(3)
        for t in range(2)
        for z in range(2)
    }
    wanted |= {"flat.ome.tif": image[:, :, 0, 0, 0]}
    wanted |= {f"deep_z{z}.ome.tif": image[:, :, z, 0, 0] for z in range(2)}
    assert names(out) == sorted(wanted)
    assert sorted(p.name for p in report.written) == sorted(wanted)
    assert report.failed == {}
    for name, plane in wanted.items():
        np.testing.assert_array_equal(tifffile.imread(out / name), plane)
    with BioReader(out / "cells_c1_t1_z0.ome.tif") as br:
        assert (br.channel_names, br.ps_x) == (["b"], (0.5, "µm"))


def test_series_have_numbers_of_their_own(folders):
    src, out = folders
    first, second = coded((20, 30, 1, 2), "u2"), coded((10, 12, 3), "u1", seed=1)
    make(src / "set.ome.tif", first, second)
    wipp(src, out, file_extension=".ome.zarr")
    wanted = {f"set_c{c}_s0.ome.zarr": first[:, :, 0, c] for c in range(2)}
    wanted |= {f"set_z{z}_s1.ome.zarr": second[:, :, z] for z in range(3)}
    assert names(out) == sorted(wanted)
    for name, plane in wanted.items():
        found = zarr.open_group(out / name, mode="r")["0"][:]
        np.testing.assert_array_equal(found.squeeze(), plane)


def test_patterns_pick_files_by_name(folders):
    src, out = folders
    for name in ("img_r001_c2.tif", "img_r001_c12.tif", "other.tif"):
        make(src / name, coded((4, 5), "u1"))
    (src / "notes.txt").write_text("no image")
    assert [p.name for p in wipp(src, out).written] == [
        "img_r001_c2.ome.tif",
        "img_r001_c12.ome.tif",
        "other.ome.tif",
    ]
    for pattern, count in {
        "img_r{r:ddd}_c{c:d+}.tif": 2,
        "img_r{rrr}_c{cc}.tif": 1,
        r"img_.*\.tif": 2,
        "other.tif": 1,
    }.items():
        assert len(wipp(src, out, file_pattern=pattern).written) == count
    with pytest.raises(SpecError, match=r"no image in .* fits 'nothing'"):
        wipp(src, out, file_pattern="nothing")
    with pytest.raises(SpecError, match="neither a file pattern"):
        wipp(src, out, file_pattern="(")


def test_a_list_of_files_in_place_of_a_folder(folders):
    src, out = folders
    for name in ("a.tif", "b.tif", "c.tif"):
        make(src / name, coded((4, 5), "u1"))
    wipp(f"{src / 'a.tif'}, {src / 'c.tif'}", out)
    assert names(out) == ["a.ome.tif", "c.ome.tif"]
    with pytest.raises(FileNotFoundError, match=r"d\.tif"):
        wipp(f"{src / 'a.tif'},{src / 'd.tif'}", out)
    with pytest.raises(NotADirectoryError, match="nowhere"):
        wipp(src / "nowhere", out)


def test_the_preview_is_that_of_the_converter_there_is(folders):
    src, out = folders
    make(src / "a.tif", coded((4, 5, 2), "u1"))
    make(src / "b.ome.tif", coded((4, 5), "u1"))
    report = wipp(src, out, file_pattern=".*", file_extension=".ome.zarr", preview=True)
    assert names(out) == ["preview.json"]
    assert report.preview == out / "preview.json"
    text = (out / "preview.json").read_text()
    wanted = {"filePattern": ".*", "outDir": ["a.ome.zarr", "b.ome.ome.zarr"]}
    assert text == json.dumps(wanted, indent=2)


def test_a_file_that_fails_does_not_stop_the_others(folders):
    src, out = folders
    make(src / "a.tif", coded((200, 300), "u2"))
    make(src / "c.tif", coded((20, 30), "u2"))
    whole = (src / "a.tif").read_bytes()
    (src / "b.tif").write_bytes(whole[: len(whole) // 2])
    report = wipp(src, out)
    assert [p.name for p in report.failed] == ["b.tif"]
    assert "DamagedFileError" in report.failed[src / "b.tif"]
    assert names(out) == ["a.ome.tif", "c.ome.tif"]


def test_a_second_run_does_only_what_is_missing(folders):
    src, out = folders
    make(src / "a.tif", coded((20, 30, 2), "u2"))
    wipp(src, out)
    before = os.stat(out / "a_z0.ome.tif").st_mtime_ns
    (out / "a_z1.ome.tif").unlink()
    wipp(src, out)
    assert names(out) == ["a_z0.ome.tif", "a_z1.ome.tif"]
    assert os.stat(out / "a_z0.ome.tif").st_mtime_ns == before
    (out / "a_z0.ome.tif").write_bytes(b"precious")
    assert "TargetExistsError" in wipp(src, out).failed[src / "a.tif"]
    assert (out / "a_z0.ome.tif").read_bytes() == b"precious"


def test_two_sources_of_one_name_are_an_error_before_anything_is_written(folders):
    src, out = folders
    make(src / "a.tif", coded((4, 5), "u1"))
    make(src / "a.ome.tif", coded((4, 5), "u1"))
    with pytest.raises(SpecError, match=r"'a.ome.tif' and 'a.tif' would both become 'a.ome.tif'"):
        wipp(src, out)
    assert names(out) == []


def test_braces_in_names_are_no_fields(folders):
    src, out = folders
    make(src / "a{c}.tif", coded((4, 5, 2), "u1"))
    wipp(src, out)
    assert names(out) == ["a{c}_z0.ome.tif", "a{c}_z1.ome.tif"]


@pytest.mark.parametrize(
    "name", ["a.tif", "a.ome.tif", "a.b.c.tif", "a.12345.tif", "a", "a.ome.zarr", "x.y.lif"]
)
def test_base_names_are_what_the_converter_cuts(name):
    # as its image_converter.py does: both of the last two endings that are short go
    short = "".join(s for s in Path(name).suffixes[-2:] if len(s) < 6)
    assert base_name(name) == (name.replace(short, "") if short else name)


def test_the_environment(monkeypatch):
    given = {"POLUS_IMG_EXT": ".ome.zarr", "NUM_THREADS": "3", "NUM_WORKERS": "2"}
    assert Environment.read(given) == Environment(".ome.zarr", 3, 2)
    plain = Environment.read({})
    assert (plain.extension, plain.workers) == (".ome.tif", 1)
    for bad in ("0", "-1", "x", "1.5"):
        with pytest.raises(SpecError, match=f"NUM_THREADS='{bad}'"):
            Environment.read({"NUM_THREADS": bad})


# ------------------------------------------------------------------ the command


def run(*args, **environment):
    code = "from bioio_tk.cli.wipp import command; command(prog_name='wipp')"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_command_takes_what_wipp_gives_it(folders):
    src, out = folders
    image = coded((20, 30, 1, 2), "u2")
    make(src / "cells.tif", image)
    (src / "damaged.tif").write_bytes((src / "cells.tif").read_bytes()[:300])
    done = run(
        *("--inpDir", src, "--filePattern", "cells.tif", "--outDir", out),
        POLUS_IMG_EXT=".ome.zarr",
        NUM_THREADS="2",
        NUM_WORKERS="2",
    )
    assert done.returncode == 0, done.stderr
    assert names(out) == ["cells_c0.ome.zarr", "cells_c1.ome.zarr"]
    assert re.search(r" - INFO +- converting cells\.tif", done.stderr)
    quiet = run(
        *("--inpDir", src, "--outDir", out, "--fileExtension", ".ome.tif"), POLUS_LOG="critical"
    )
    assert quiet.returncode == 1
    assert quiet.stderr.startswith("Error: 1 of the images failed: damaged.tif: ")
    assert len(quiet.stderr.splitlines()) == 1
    np.testing.assert_array_equal(tifffile.imread(out / "cells_c1.ome.tif"), image[:, :, 0, 1])
    preview = run("--inpDir", src, "--outDir", out / "new", "--preview")
    assert preview.returncode == 0, preview.stderr
    assert names(out / "new") == ["preview.json"]
    assert run("--inpDir", src, "--outDir", out, POLUS_LOG="loud").returncode == 2


def test_the_manifest_names_the_options_of_the_command():
    from bioio_tk import __version__
    from bioio_tk.cli.wipp import command

    manifest = json.loads((ROOT / "plugin.json").read_text())
    known = {opt.lstrip("-") for p in command.params for opt in p.opts}
    given = {entry["name"] for entry in manifest["inputs"] + manifest["outputs"]}
    assert given <= known
    assert {p.opts[0].lstrip("-") for p in command.params if p.required} <= given
    assert {entry["key"].removeprefix("inputs.") for entry in manifest["ui"]} == {
        entry["name"] for entry in manifest["inputs"]
    }
    assert manifest["version"] == __version__
    assert manifest["containerId"].endswith(f":{__version__}")
    assert manifest["baseCommand"] == ["bioio-tk", "wipp"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["bioio-tk", "wipp"]' in dockerfile
    assert "USER " in dockerfile


def test_the_plugin_in_the_guide_runs(folders, tmp_path):
    src, out = folders
    text = (ROOT / "docs" / "howto" / "wipp.md").read_text()
    (tmp_path / "plugin.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    image = coded((90, 1100), "u2")
    make(src / "cells.tif", image)
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", str(tmp_path / "plugin.py")),
            *("--inpDir", src, "--filePattern", "*.tif", "--outDir", out),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    found = tifffile.imread(out / "cells.ome.tif")
    wide = np.pad(image.astype("i8"), 16, mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(wide, (33, 33))[20:60, 1000:1050]
    wanted = image[20:60, 1000:1050].astype("i8") * 33**2 > around.sum(axis=(2, 3))
    np.testing.assert_array_equal(found[20:60, 1000:1050], wanted)
