"""2. Speed: how fast stacks of a camera get to the disk, raw and compressed."""

from __future__ import annotations

import time

from specimen import sizes, stack

from bioio_tk.bdv import BdvWriter

SHAPE = sizes((8, 256, 256), (50, 2048, 2048))  # Z, Y, X
TIMES, CHANNELS = sizes(3, 20), 2
pixels = stack(SHAPE)

for compression in ("none", "gzip"):
    began = time.perf_counter()
    with BdvWriter(
        f"ex2_{compression}.h5",
        nchannels=CHANNELS,
        subsamp=((1, 1, 1),),
        compression=compression,
        overwrite=True,
    ) as writer:
        for t in range(TIMES):
            for c in range(CHANNELS):
                writer.append_view(pixels, time=t, channel=c)
    seconds = time.perf_counter() - began
    megabytes = TIMES * CHANNELS * pixels.nbytes / 1e6
    print(f"{compression}: {megabytes:.0f} MB, {megabytes / seconds:.0f} MB/s")
