"""The demo and the field of cells it is made of."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from bioio_tk import BioWriter
from bioio_tk.errors import DamagedFileError
from bioio_tk.jobs import demo
from bioio_tk.jobs.cells import CHANNELS, Cells

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def run(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "bioio_tk", "demo", *map(str, words)],
        env=ENV,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def cells():
    return Cells(1500, 2500)


@pytest.mark.parametrize("channel", range(len(CHANNELS)))
def test_a_pixel_follows_from_its_place_alone(cells, channel):
    whole = cells.pixels(channel, slice(0, 700), slice(900, 2100))
    part = cells.pixels(channel, slice(133, 390), slice(1001, 1007))
    np.testing.assert_array_equal(part, whole[133:390, 101:107])
    assert whole.std() > 50
    assert whole.min() > 50


def test_two_fields_differ():
    a, b = (Cells(64, 64, seed).pixels(0, slice(0, 64), slice(0, 64)) for seed in (1, 2))
    assert (a != b).any()


def test_demo(tmp_path):
    done = run("--size", "8MB", "--out", "work", "--keep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal, no bar
    assert "all 4,000,000 pixels are equal; 24 tiles read with tifffile too" in done.stdout
    assert "peak memory" in done.stdout
    with Image.open(tmp_path / "work" / "bioio-tk-demo.png") as image:
        assert image.size == (640 + 8 + 640, 640 + 30)
    with tifffile.TiffFile(tmp_path / "work" / "cells.ome.tif") as tif:
        assert tif.series[0].shape == (4, 1000, 1000)
        assert len(tif.series[0].levels) == 3
        assert "Tubulin" in tif.ome_metadata
        np.testing.assert_array_equal(
            tif.series[0].asarray(), tifffile.imread(tmp_path / "work" / "cells-strips.ome.tif")
        )


def test_demo_cleans_up(tmp_path):
    done = run("--size", "1MB", "--out", tmp_path / "w", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "w").iterdir()] == ["bioio-tk-demo.png"]


def test_demo_needs_room(tmp_path):
    done = run("--size", "900TB", "--out", "w", cwd=tmp_path)
    assert done.returncode == 1
    assert "needs 1980000 GB of disk" in done.stderr
    assert list((tmp_path / "w").iterdir()) == []


def test_the_demo_finds_a_wrong_pixel(tmp_path):
    cells = Cells(300, 300)
    demo.write_source(cells, tmp_path / "a.ome.tif")
    image = tifffile.imread(tmp_path / "a.ome.tif").transpose(1, 2, 0)[:, :, None]

    def copy(name, image):
        with BioWriter(tmp_path / name, image=image, tile_size=64):
            pass
        return tmp_path / name

    checked = demo.verify(cells, tmp_path / "a.ome.tif", copy("b.ome.tif", image), tiles=9)
    assert checked == (4 * 300 * 300, 9)
    image[299, 299, 0, 3] += 1
    with pytest.raises(DamagedFileError, match="differs"):
        demo.verify(cells, tmp_path / "a.ome.tif", copy("c.ome.tif", image))
    with pytest.raises(DamagedFileError, match="not as it was made"):
        demo._check_tiles(Cells(300, 300, seed=8), tmp_path / "b.ome.tif", 1)
