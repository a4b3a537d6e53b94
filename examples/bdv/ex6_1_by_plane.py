"""6.1 A stack that no memory holds, plane by plane; planes may come in any order."""

from __future__ import annotations

from specimen import plane, sizes

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

SHAPE = sizes((10, 128, 192), (250, 3648, 5472))  # Z, Y, X: 20 GB in two channels

with BdvWriter("ex6_1_by_plane.h5", nchannels=2, subsamp=((1, 1, 1),), overwrite=True) as writer:
    for c in range(2):
        writer.append_view(stack=None, virtual_stack_dim=SHAPE, channel=c)
        for z in reversed(range(SHAPE[0])):
            writer.append_plane(plane(z, SHAPE), z=z, channel=c)

with BioReader("ex6_1_by_plane.xml") as reader:
    middle = SHAPE[0] // 2
    same = (reader[:, :, middle, 1] == plane(middle, SHAPE)).all()
    print(reader.shape, "- the plane in the middle is", "right" if same else "wrong")
