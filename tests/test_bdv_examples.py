"""Every example of BigDataViewer runs as it stands, and h5py finds in the files what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

from bdv_readers import check_all_readers  # noqa: E402

from bioio_tk.backends import _java_home  # noqa: E402

FOLDER = Path(__file__).parents[1] / "examples" / "bdv"

# what to look at in what they print
SAYS = {
    "ex1_views": [
        "16 views; 4 series of (96, 128, 8, 2, 2)",
        "channels ['488', '561']",
        "'illumination': 'right'",
        "'angle': '180'",
    ],
    "ex2_speed": ["none: 6 MB, ", "gzip: 6 MB, "],
    "ex3_shear": [
        "['unshear', 'calibration']",
        "[[1.0, 0.0, -20.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]",
    ],
    "ex3_1_tiles": ["setup 0 at x, y = [0.0, 0.0]", "setup 7 at x, y = [96.0, 32.0]"],
    "ex4_properties": [
        "PixelSize(y=1.0, x=1.0, z=5.0)",
        ".//camera/exposureTime = 10",
        ".//camera/name = Orca Flash",
        ".//microscope/name = Superscope",
        ".//user = Ada",
    ],
    "ex5_1_pyramid_while_writing": [
        "all levels: ",
        "reduced levels: ",
        "level 2 of 3 is (16, 32, 8",
    ],
    "ex5_2_pyramid_later": ["3 levels, the smallest (16, 32, 4, 2, 1)"],
    "ex6_1_by_plane": ["(128, 192, 10, 2, 1) - the plane in the middle is right"],
    "ex6_2_by_substack": ["2 levels; the pixels are right"],
    "ex6a_by_plane_with_pyramid": [
        "level 0 (128, 192, 10, 2, 1)",
        "level 1 (32, 48, 10, 2, 1)",
        "level 2 (16, 24, 5, 2, 1)",
    ],
    "ex7_missing_views": [
        "missing: [(0, 1), (1, 0)]",
        "time 0 channel 1 missing=True: up to 0",
        "time 1 channel 1 missing=False: up to 5",
    ],
    "ex8_missing_virtual_views": ["missing: [(0, 1), (1, 0)]"],
    "edit": [
        "tile 1: (8, 64, 96) plane 3: (64, 96)",
        "0 (64, 96, 8) ['calibration']",
        "1 (54, 76, 8) [",
        "'registered', ",
    ],
}


def blob(z, shape, peak=60_000):
    """One plane of what the examples record, by its formula."""
    depth, height, width = shape
    y, x = np.meshgrid(np.linspace(-3, 3, height), np.linspace(-3, 3, width), indexing="ij")
    sigma = 1 - abs(z - depth / 2) / depth
    return peak * np.exp(-(x**2) / (2 * sigma**2)) * np.exp(-(y**2) / (2 * sigma**2))


def cells(folder, name, time=0, setup=0, level=0):
    """Pixels of a view as h5py has them; uint16 is stored as int16."""
    with h5py.File(folder / f"{name}.h5", "r") as file:
        return file[f"t{time:05}/s{setup:02}/{level}/cells"][()].view(np.uint16)


def check_views(folder):
    shape = (8, 96, 128)
    setups = {
        tuple(
            int(setup.findtext(f"attributes/{name}"))
            for name in ("illumination", "channel", "angle")
        ): int(setup.findtext("id"))
        for setup in ET.parse(folder / "ex1_views.xml").iterfind(".//ViewSetup")
    }
    assert len(setups) == 8
    for number, (t, c, i, a) in enumerate(product(range(2), repeat=4)):
        stored = cells(folder, "ex1_views", t, setups[i, c, a])
        expected = blob(4, shape, 1000 + number)
        assert np.abs(stored[4].astype(float) - expected).max() < 1.001


def check_speed(folder):
    stacks = [cells(folder, f"ex2_{name}", 2, 1) for name in ("none", "gzip")]
    assert np.array_equal(*stacks)
    sizes = [(folder / f"ex2_{name}.h5").stat().st_size for name in ("none", "gzip")]
    assert sizes[1] < sizes[0] / 2


def check_tiles(folder):
    with h5py.File(folder / "ex3_1_tiles.h5", "r") as file:
        assert sorted(file["t00000"]) == ["s00", "s03", "s04", "s05", "s06", "s07"]
    whole = np.array([blob(z, (4, 64, 128)) for z in range(4)])
    below = np.concatenate([cells(folder, "ex3_1_tiles", setup=s) for s in (4, 5, 6, 7)], axis=2)
    assert np.abs(below.astype(float) - whole[:, 32:]).max() < 1.001
    corner = cells(folder, "ex3_1_tiles", setup=3)
    assert np.abs(corner.astype(float) - whole[:, :32, 96:]).max() < 1.001


def check_reduced(folder):
    whole = cells(folder, "ex5_1_all")
    expected = np.array([blob(z, (16, 128, 256)) for z in range(16)])
    assert np.abs(whole.astype(float) - expected).max() < 1.001
    for name, numbers in {"all": (0, 1, 2), "reduced": (None, 0, 1)}.items():
        for factors, level in zip(((1, 1, 1), (1, 4, 4), (2, 8, 8)), numbers, strict=True):
            if level is None:
                continue
            z, y, x = factors
            parts = whole.reshape(16 // z, z, 128 // y, y, 256 // x, x)
            mean = np.floor(parts.mean(axis=(1, 3, 5)) + 0.5)
            assert np.array_equal(cells(folder, f"ex5_1_{name}", level=level), mean)
    size = ET.parse(folder / "ex5_1_reduced.xml").findtext(".//ViewSetup/size")
    assert size == "256 128 16"  # the full one all the same


def check_later(folder):
    whole = cells(folder, "ex5_2_later", setup=1)
    parts = whole.reshape(4, 4, 16, 8, 32, 8)
    small = cells(folder, "ex5_2_later", setup=1, level=2)
    assert np.array_equal(small, np.floor(parts.mean(axis=(1, 3, 5)) + 0.5))
    with h5py.File(folder / "ex5_2_later.h5", "r") as file:
        assert file["t00000/s01/0/cells"].compression is None
        assert file["t00000/s01/2/cells"].compression == "gzip"
        assert file["s01/resolutions"][()].tolist() == [[1, 1, 1], [4, 4, 2], [8, 8, 4]]


def check_planes(folder):
    for c in range(2):
        stored = cells(folder, "ex6_1_by_plane", setup=c)
        for z in range(10):
            assert np.abs(stored[z].astype(float) - blob(z, (10, 128, 192))).max() < 1.001


def check_missing(folder):
    for name in ("ex7_missing_views", "ex8_missing_views"):
        document = ET.parse(folder / f"{name}.xml")
        missing = [
            (view.get("timepoint"), view.get("setup"))
            for view in document.iterfind(".//MissingView")
        ]
        assert sorted(missing) == [("0", "1"), ("1", "0")]
        assert np.array_equal(cells(folder, name, 0, 0), cells(folder, name, 1, 1))


CHECKS = {
    "ex1_views": check_views,
    "ex2_speed": check_speed,
    "ex3_1_tiles": check_tiles,
    "ex5_1_pyramid_while_writing": check_reduced,
    "ex5_2_pyramid_later": check_later,
    "ex6_1_by_plane": check_planes,
    "ex7_missing_views": check_missing,
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """A folder, and what each example printed in it."""
    folder = tmp_path_factory.mktemp("examples")
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-W", "error", str(FOLDER / f"{name}.py")],
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for name in SAYS
    }
    ended = {}
    for name, process in running.items():
        said, errors = process.communicate(timeout=120)
        ended[name] = (process.returncode, said, errors)
    return folder, ended


@pytest.mark.parametrize("name", SAYS)
def test_it_runs_and_says_so(name, printed):
    code, said, errors = printed[1][name]
    assert code == 0, errors
    assert errors == ""
    for text in SAYS[name]:
        assert text in said, said


@pytest.mark.parametrize("name", CHECKS)
def test_h5py_finds_the_pixels(name, printed):
    folder, ended = printed
    assert ended[name][0] == 0
    CHECKS[name](folder)


LEFT = [
    *("ex1_views", "ex2_none", "ex2_gzip", "ex3_shear", "ex3_1_tiles", "ex4_properties"),
    *("ex5_1_all", "ex5_1_reduced", "ex5_2_later", "ex6_1_by_plane", "ex6_2_by_substack"),
    *("ex6a_by_plane", "ex7_missing_views", "ex8_missing_views", "edit"),
]


@pytest.fixture(scope="module")
def java_or_none():
    """Java with Bio-Formats, None where there is none: the other readers are asked all the same."""
    if _java_home.missing() is not None:
        return None
    from bioio_tk.backends import _java_vm

    return _java_vm.java()


@pytest.mark.parametrize("name", LEFT)
def test_all_readers_see_the_same(name, printed, java_or_none):
    check_all_readers(printed[0] / f"{name}.xml", java_or_none)


def test_no_file_is_left_out(printed):
    assert {path.stem for path in printed[0].glob("*.xml")} == set(LEFT)


def test_all_of_them_are_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SAYS, "specimen"}
