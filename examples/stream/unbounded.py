"""Nobody knows how long it takes: the first dimension has no end, the file grows."""

from __future__ import annotations

import numpy as np

from bioio_tk import AcquisitionSettings, BioReader, Dimension, create_stream

settings = AcquisitionSettings(
    root_path="unbounded.ome.tiff",
    dimensions=[
        Dimension(name="t", count=None, type="time", scale=5, unit="s"),
        Dimension(name="c", count=2, type="channel"),
        Dimension(name="y", count=64, type="space"),
        Dimension(name="x", count=64, type="space"),
    ],
    dtype="float32",
    overwrite=True,
)
rng = np.random.default_rng(7)
with create_stream(settings) as stream:
    brightest = 0.0
    while brightest < 0.9999:  # until something happens
        frame = rng.random((64, 64), dtype="float32")
        stream.append(frame)
        brightest = frame.max()
    stream.flush()
    with BioReader("unbounded.ome.tiff") as br:  # any other program may look, too
        print("while it runs:", br.shape)
with BioReader("unbounded.ome.tiff") as br:
    print("in the end:", br.shape, br.dtype, "of", stream.stats.frames_appended, "frames")
