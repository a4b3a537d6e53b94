"""6.2 The same by blocks, with a smaller resolution; they need not fit its factors."""

from __future__ import annotations

from specimen import sizes, stack

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

SHAPE = sizes((16, 96, 128), (400, 2048, 2048))  # Z, Y, X
STEP = sizes(5, 37)
whole = stack(SHAPE)

with BdvWriter(
    "ex6_2_by_substack.h5",
    subsamp=((1, 1, 1), (2, 4, 4)),
    blockdim=((16, 64, 64),),
    overwrite=True,
) as writer:
    writer.append_view(stack=None, virtual_stack_dim=SHAPE)
    for z in range(0, SHAPE[0], STEP):
        for y in (0, 33):
            block = whole[z : z + STEP, y : 33 if y == 0 else None]
            writer.append_substack(block, z_start=z, y_start=y)

with BioReader("ex6_2_by_substack.xml") as reader:
    same = (reader[:].transpose(2, 0, 1) == whole).all()
    print(reader.levels, "levels; the pixels are", "right" if same else "wrong")
