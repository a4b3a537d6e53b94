"""Project an image of any size along Z: `python max_projection.py in.ome.tif out.ome.tif`."""

from __future__ import annotations

import argparse
import sys

from bioio_tk import BioReader, BioWriter
from bioio_tk.errors import BioIOError


def main(source: str, target: str) -> None:
    """Write the brightest pixel of every focal plane of `source` to `target`."""
    with BioReader(source) as br, BioWriter(target, like=br, Z=1, pyramid=True) as bw:
        for tile in br.tiles((1024, 1024, br.Z)):
            y, x, _, c, t = tile.slices
            stack = tile.data.reshape(*tile.data.shape[:2], -1)
            bw[y, x, 0, c, t] = stack.max(axis=2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    try:
        main(**vars(parser.parse_args()))
    except (BioIOError, OSError) as exc:
        sys.exit(f"Error: {exc}")
