"""What the examples in the documentation find in their folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _examples(request: pytest.FixtureRequest) -> None:
    """Run every documentation example in a folder of its own, with an image in it."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    tmp_path: Path = request.getfixturevalue("tmp_path")
    request.getfixturevalue("monkeypatch").chdir(tmp_path)
    from bioio_tk import BioWriter

    y, x, z, c, t = np.ogrid[:600, :800, :3, :3, :2]
    pixels = (y * 31 + x * 7 + z * 1009 + c * 5003 + t * 9001) % 16384
    with BioWriter(
        "cells.ome.tif",
        image=pixels.astype(np.uint16),
        channel_names=["DAPI", "actin", "tubulin"],
        physical_size_x=(0.5, "µm"),
        physical_size_y=(0.5, "µm"),
        physical_size_z=(2.0, "µm"),
    ) as bw:
        del bw  # closing it writes the image
