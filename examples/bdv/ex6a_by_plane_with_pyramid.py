"""6a. Plane by plane with smaller resolutions in the same pass, in Z as well."""

from __future__ import annotations

from specimen import plane, sizes

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

SHAPE = sizes((10, 128, 192), (250, 3648, 5472))  # Z, Y, X

with BdvWriter(
    "ex6a_by_plane.h5",
    nchannels=2,
    subsamp=((1, 1, 1), (1, 4, 4), (2, 8, 8)),
    blockdim=((4, 128, 128),),
    overwrite=True,
) as writer:
    for c in range(2):
        writer.append_view(stack=None, virtual_stack_dim=SHAPE, channel=c)
        for z in range(SHAPE[0]):
            writer.append_plane(plane(z, SHAPE), z=z, channel=c)

for level in range(3):
    with BioReader("ex6a_by_plane.xml", level=level) as reader:
        print("level", level, reader.shape)
