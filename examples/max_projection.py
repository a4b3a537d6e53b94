"""Project an image of any size along Z: `python max_projection.py in.ome.tif out.ome.tif`."""

from __future__ import annotations

import sys

from bioio_tk import BioReader, BioWriter


def main(source: str, target: str) -> None:
    """Write the brightest pixel of every focal plane of `source` to `target`."""
    with BioReader(source) as br, BioWriter(target, like=br, Z=1, pyramid=True) as bw:
        for tile in br.tiles((1024, 1024, br.Z)):
            y, x, _, c, t = tile.slices
            stack = tile.data.reshape(*tile.data.shape[:2], -1)
            bw[y, x, 0, c, t] = stack.max(axis=2)


if __name__ == "__main__":
    main(*sys.argv[1:3])
