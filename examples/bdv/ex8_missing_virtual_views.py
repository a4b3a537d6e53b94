"""8. Missing views of stacks that come plane by plane."""

from __future__ import annotations

from specimen import plane, sizes

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

SHAPE = sizes((8, 64, 96), (50, 1000, 2000))  # Z, Y, X
TAKEN = ((0, 0), (1, 1))  # time point, channel

with BdvWriter("ex8_missing_views.h5", nchannels=2, overwrite=True) as writer:
    for t, c in TAKEN:
        writer.append_view(stack=None, virtual_stack_dim=SHAPE, time=t, channel=c)
    for z in range(SHAPE[0]):
        for t, c in TAKEN:  # as a camera that changes the filter in every plane
            writer.append_plane(plane(z, SHAPE), z=z, time=t, channel=c)

with BioReader("ex8_missing_views.xml") as reader:
    print("missing:", [(view.time, view.setup) for view in reader.views if view.missing])
