"""7. Views that were never taken are found by themselves, and read as 0."""

from __future__ import annotations

from specimen import sizes, stack

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

pixels = stack(sizes((8, 64, 96), (50, 1024, 2048)))

with BdvWriter("ex7_missing_views.h5", nchannels=2, overwrite=True) as writer:
    writer.append_view(pixels, time=0, channel=0)
    writer.append_view(pixels, time=1, channel=1)
    print("missing:", sorted(tuple(view) for view in writer.missing_views))

with BioReader("ex7_missing_views.xml") as reader:
    for view in reader.views:
        brightest = reader[:, :, :, view.c, view.t].max()
        print(f"time {view.time} channel {view.c} missing={view.missing}: up to {brightest}")
