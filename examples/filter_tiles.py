"""Smooth an image of any size without seams: `python filter_tiles.py in.tif out.ome.tif`."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from bioio_tk import BioReader, BioWriter
from bioio_tk.errors import BioIOError

RADIUS = 4


def smooth(plane: np.ndarray) -> np.ndarray:
    """Return the mean of the square of 2 * RADIUS + 1 pixels around each pixel."""
    padded = np.pad(plane.astype(np.float64), RADIUS, mode="reflect")
    width = 2 * RADIUS + 1
    sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    box = sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width]
    return ((box + sums[:-width, :-width]) / width**2).round().astype(plane.dtype)


def main(source: str, target: str) -> None:
    """Write a smoothed copy of `source` to `target`."""
    with BioReader(source) as br, BioWriter(target, like=br) as bw:
        for tile in br.tiles(1024, overlap=RADIUS):
            bw[tile.slices] = tile.crop(smooth(tile.data))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    try:
        main(**vars(parser.parse_args()))
    except (BioIOError, OSError) as exc:
        sys.exit(f"Error: {exc}")
