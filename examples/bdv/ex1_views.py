"""1. Views: two time points of two channels, seen from two angles, lit from two sides."""

from __future__ import annotations

from itertools import product

from specimen import sizes, stack

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

SHAPE = sizes((8, 96, 128), (50, 1024, 2048))  # Z, Y, X

with BdvWriter(
    "ex1_views.h5", nchannels=2, nilluminations=2, nangles=2, subsamp=((1, 1, 1),), overwrite=True
) as writer:
    writer.set_attribute_labels("channel", ("488", "561"))
    writer.set_attribute_labels("illumination", ("left", "right"))
    writer.set_attribute_labels("angle", ("0", "180"))
    for number, (t, c, i, a) in enumerate(product(range(2), repeat=4)):
        writer.append_view(
            stack(SHAPE, peak=1000 + number), time=t, channel=c, illumination=i, angle=a
        )

with BioReader("ex1_views.xml") as reader:
    print(len(reader.views), "views;", reader.n_series, "series of", reader.shape)
    print("channels", reader.channel_names)
    last = reader.views[-1]
    print("the last view:", dict(last.labels), "time point", last.time)
