"""Parts of uncompressed chunks of a BigDataViewer file: what is read of them, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from bioio_tk import BioReader
from bioio_tk.errors import DamagedFileError

SHAPE, CHUNK = (9, 300, 520), (4, 128, 256)


@pytest.fixture
def stack(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Return a file of one raw view, with chunks too large to leave to the library."""
    pixels = np.random.default_rng(0).integers(0, 60000, SHAPE, np.uint16)
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as file:
        file["s00/resolutions"] = np.ones((1, 3))
        file["s00/subdivisions"] = np.array([CHUNK[::-1]], np.int32)
        file.create_dataset("t00000/s00/0/cells", data=pixels.view(np.int16), chunks=CHUNK)
    return path, pixels


@pytest.mark.parametrize("z", [(0, 1), (3, 6), (0, 9)])
@pytest.mark.parametrize("y", [(0, 1), (60, 70), (63, 128), (120, 140), (0, 300), (299, 300)])
@pytest.mark.parametrize("x", [(0, 520), (250, 260)])
def test_any_part_is_right(
    stack: tuple[Path, np.ndarray], z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
) -> None:
    path, pixels = stack
    (z0, z1), (y0, y1), (x0, x1) = z, y, x
    with BioReader(path) as reader:
        found = reader[y0:y1, x0:x1, z0:z1]
    expected = pixels[z0:z1, y0:y1, x0:x1].transpose(1, 2, 0)
    assert np.array_equal(np.squeeze(found), np.squeeze(expected))


def read_by(path: Path, box: tuple[slice, slice, slice]) -> int:
    """Return the bytes that the process asks for to read a box, once the file is known."""

    def asked() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    with BioReader(path) as reader:
        _ = reader[0:1, 0:1, 0:1]
        before = asked()
        itself = asked() - before
        _ = reader[box]
        return asked() - before - 2 * itself


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not tell")
def test_few_rows_are_read_without_the_rest_of_the_planes(stack: tuple[Path, np.ndarray]) -> None:
    path, _ = stack
    rows, planes, width = 10, 3, 2 * CHUNK[2]
    least = rows * planes * width * 2
    read = read_by(path, (slice(20, 20 + rows), slice(200, 300), slice(0, planes)))
    assert least <= read < 1.1 * least


@pytest.mark.parametrize("y", [slice(0, 300), slice(130, 140)])
def test_a_file_that_gets_shorter_is_an_error(stack: tuple[Path, np.ndarray], y: slice) -> None:
    path, _ = stack
    with BioReader(path) as reader:
        _ = reader[0:1, 0:1, 0:1]
        os.truncate(path, path.stat().st_size // 3)
        with pytest.raises(DamagedFileError, match="ends after"):
            _ = reader[y, 0:520, 4:9]
