"""What Java does in the run whose classes are kept; `jobs.java.warm` runs it as a program."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from bioio_tk.backends import _java_vm
from bioio_tk.reader import BioReader
from bioio_tk.writer import BioWriter


def train(library: str, jar: str, folder: Path, flags: list[str]) -> None:
    """Start Java with `flags` and read what is usual: pixels and metadata of two images."""
    _java_vm.start(library, jar, options=flags)
    tiff = folder / "training.ome.tif"
    BioWriter(tiff, image=np.zeros((600, 600, 1, 2), np.uint16), tile_size=256).close()
    fake = folder / "training&sizeX=64&sizeY=64&sizeZ=2&sizeC=2&series=2.fake"
    fake.touch()
    for path in (tiff, fake):
        with BioReader(path, backend="java") as reader:
            reader[:]
            _ = reader.metadata


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
