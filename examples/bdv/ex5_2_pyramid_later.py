"""5.2 First the camera, at full speed; the smaller resolutions when there is time."""

from __future__ import annotations

from specimen import sizes, stack

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

SHAPE = sizes((16, 128, 256), (50, 2048, 2048))

with BdvWriter(
    "ex5_2_later.h5", nchannels=2, subsamp=((1, 1, 1),), compression="none", overwrite=True
) as writer:
    for c in range(2):
        writer.append_view(stack(SHAPE, peak=1000 * (c + 1)), channel=c)
    # tile by tile: the memory this takes does not depend on the size of the stacks
    writer.create_pyramids(
        subsamp=((2, 4, 4), (4, 8, 8)), blockdim=((8, 64, 64), (8, 64, 64)), compression="gzip"
    )

with BioReader("ex5_2_later.xml", level=2) as reader:
    print(reader.levels, "levels, the smallest", reader.shape)
