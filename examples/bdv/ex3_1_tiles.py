"""3.1 Tiles on a grid, each with its place as a transform; two of them were never taken."""

from __future__ import annotations

import numpy as np
from specimen import sizes, stack

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

ROWS, COLUMNS = 2, 4
NOT_TAKEN = (1, 2)
whole = stack(sizes((4, 64, 128), (50, 1024, 2048)))
height, width = whole.shape[1] // ROWS, whole.shape[2] // COLUMNS

with BdvWriter("ex3_1_tiles.h5", ntiles=ROWS * COLUMNS, overwrite=True) as writer:
    for tile in range(ROWS * COLUMNS):
        if tile in NOT_TAKEN:
            continue
        y, x = tile // COLUMNS * height, tile % COLUMNS * width
        place = np.eye(3, 4)
        place[:, 3] = x, y, 0
        writer.append_view(
            whole[:, y : y + height, x : x + width],
            tile=tile,
            m_affine=place,
            name_affine=f"place of tile {tile}",
        )

with BioReader("ex3_1_tiles.xml") as reader:
    for view, affine in reader.affines.items():
        print("setup", view.setup, "at x, y =", affine[:2, 3].tolist())
