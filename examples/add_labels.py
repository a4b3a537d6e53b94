"""Segment an OME-Zarr and keep the labels in it: `python add_labels.py cells.ome.zarr`."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from bioio_tk import BioReader, BioWriter
from bioio_tk.errors import BioIOError

COLORS = [(230, 25, 75, 255), (60, 180, 75, 255), (255, 225, 25, 255), (0, 130, 200, 255)]


def classes(pixels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return 0 for the darkest pixels, 1, 2, … for brighter ones. Your segmentation goes here."""
    return np.digitize(pixels, edges).astype(np.uint8)


def main(path: str) -> None:
    """Add the labels "brightness", with a colour and a property for each."""
    with BioReader(path, level=-1) as small:  # the smallest resolution is enough for this
        edges = np.percentile(small[:, :, :, 0, 0], [50, 75, 90, 97])
    label = {
        "colors": dict(enumerate(COLORS, start=1)),
        "properties": {n: {"brighter than": float(v)} for n, v in enumerate(edges, start=1)},
    }
    with (
        BioReader(path) as br,
        BioWriter(
            path,
            shape=(br.Y, br.X, br.Z),
            dtype="uint8",
            physical_size_x=br.physical_size_x,
            physical_size_y=br.physical_size_y,
            physical_size_z=br.physical_size_z,
            group="labels/brightness",
            label=label,
            pyramid=br.levels,  # NGFF: as many as the image has
            downsample="mode",  # a mean of labels is none
            overwrite=True,
        ) as bw,
    ):
        for z in range(br.Z):
            for y in range(0, br.Y, 1024):
                rows = slice(y, y + 1024)
                bw[rows, :, z] = classes(br[rows, :, z, 0, 0], edges)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    try:
        main(**vars(parser.parse_args()))
    except (BioIOError, OSError) as exc:
        sys.exit(f"Error: {exc}")
