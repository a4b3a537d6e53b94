"""Every example of streaming runs as it stands, in an empty folder, and prints what it should."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

FOLDER = Path(__file__).parents[1] / "examples" / "stream"

# what to look at in what they print
SAYS = {
    "compression": ["small.ome.zarr", "blosc-zstd", "small.ome.tiff", "deflate"],
    "five_dimensions": [
        "five.ome.zarr (256, 256, 4, 3, 2) ['DAPI', 'GFP', 'Cy5'] 0.1 x 0.1 x 0.5 µm",
        "five.ome.tiff (256, 256, 4, 3, 2) ['DAPI', 'GFP', 'Cy5'] 0.1 x 0.1 x 0.5 µm",
        "frame 7, which is t=0 c=1 z=3: 7",
    ],
    "frame_metadata": ["(64, 64, 1, 1, 12)", "'DeltaT': '1.5'", "'PositionX': '101.5'"],
    "plate": ["4 images of (64, 64, 1, 3, 2) in wells of a plate with 8 rows"],
    "positions": ["grid.ome.zarr has 6 images", "grid has 6 images", "position=5, z=0, c=1, t=3"],
    "pymmcore_plus_loop": ["t=4: the view has (5, 48, 64)", "values [1 2 3 4 5]"],
    "skipped_frames": ["8 frames were skipped", "over time: [ 1  0  0 31 41]"],
    "storage_order": ["channel 1, up the planes: [ 1  4  7 10] [ 1  4  7 10]"],
    "unbounded": ["while it runs: (64, 64, 1, 2, ", "float32"],
}
NEEDS = {"pymmcore_plus_loop": ("useq", "pymmcore_plus")}


def start(name, *words, cwd, **kwargs):
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(FOLDER / f"{name}.py"), *words],
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        **kwargs,
    )


@pytest.mark.parametrize("name", SAYS)
def test_it_runs_and_says_so(name, tmp_path):
    for package in NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    said, errors = start(name, cwd=tmp_path).communicate(timeout=60)
    assert "Traceback" not in errors
    for text in SAYS[name]:
        assert text in said, said + errors


def test_all_of_them_are_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SAYS, "simulated_camera"}


def planes(path):
    """Read a time lapse (T, Y, X) with someone else's code."""
    if path.suffix == ".zarr":
        return zarr.open_array(path / "0", mode="r")[:]
    return tifffile.imread(path).reshape(-1, 64, 64)


@pytest.mark.parametrize("name", ["run.ome.zarr", "run.ome.tiff"])
def test_the_camera_stops_by_itself(name, tmp_path):
    words = (name, "--seconds", "0.6", "--fps", "100", "--size", "64")
    process = start("simulated_camera", *words, cwd=tmp_path)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    frames = int(said.splitlines()[-1].split()[0])
    stored = planes(tmp_path / name)
    assert len(stored) == frames > 5
    assert (stored.max((1, 2)) > 500).all()  # there is a cell in each of them
    assert len({frame.tobytes() for frame in stored}) == frames  # and no two are the same
    assert "safe" in said
    assert "@" in said


@pytest.mark.parametrize("name", ["run.ome.zarr", "run.ome.tiff"])
def test_ctrl_c_leaves_a_good_file(name, tmp_path):
    process = start("simulated_camera", name, "--size", "64", cwd=tmp_path)
    while "safe" not in process.stdout.readline():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "stopped" in said
    assert len(planes(tmp_path / name)) == int(said.splitlines()[-1].split()[0])
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no journal is left


def test_the_camera_says_what_is_wrong(tmp_path):
    (tmp_path / "run.ome.tiff").write_bytes(b"mine")
    process = start("simulated_camera", "run.ome.tiff", cwd=tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("Error: ")
    assert np.array_equal((tmp_path / "run.ome.tiff").read_bytes(), b"mine")
