"""Three wells of a plate, two fields of view in one of them."""

from __future__ import annotations

import numpy as np

from bioio_tk import AcquisitionSettings, BioReader, Dimension, Plate, Position, create_stream

settings = AcquisitionSettings(
    root_path="plate.ome.zarr",
    dimensions=[
        Dimension(name="t", count=2, type="time"),
        Dimension(
            name="p",
            type="position",
            coords=[  # in the order in which they are visited
                Position(name="fov0", plate_row="A", plate_column="1"),
                Position(name="fov0", plate_row="A", plate_column="2"),
                Position(name="fov0", plate_row="C", plate_column="4"),
                Position(name="fov1", plate_row="C", plate_column="4"),
            ],
        ),
        Dimension(name="c", count=3, type="channel"),
        Dimension(name="y", count=64, type="space"),
        Dimension(name="x", count=64, type="space"),
    ],
    dtype="uint16",
    plate=Plate.from_standard_wells(96),
    overwrite=True,
)
with create_stream(settings) as stream:
    for number in range(settings.num_frames):
        stream.append(np.full((64, 64), number, "uint16"))
with BioReader("plate.ome.zarr") as br:
    print(
        br.n_series, "images of", br.shape, "in wells of a plate with", len(br.plate.rows), "rows"
    )
    print(br.series_names)
