"""A grid of 2 x 3 positions, visited at every time point: an image each."""

from __future__ import annotations

import numpy as np

from bioio_tk import AcquisitionSettings, BioReader, Dimension, Position, create_stream

GRID = [
    Position(
        name=f"tile_{row}_{column}",
        grid_row=row,
        grid_column=column,
        x_coord=column * 90.0,  # of the stage, in µm
        y_coord=row * 90.0,
    )
    for row in range(2)
    for column in range(3)
]

for name in ("grid.ome.zarr", "grid.ome.tiff"):
    settings = AcquisitionSettings(
        root_path=name,
        dimensions=[
            Dimension(name="t", count=4, type="time"),
            Dimension(name="p", type="position", coords=GRID),
            Dimension(name="c", type="channel", coords=["DAPI", "GFP"]),
            Dimension(name="y", count=100, type="space", scale=1, unit="um"),
            Dimension(name="x", count=100, type="space", scale=1, unit="um"),
        ],
        dtype="uint16",
        overwrite=True,
    )
    with create_stream(settings) as stream:
        for number in range(settings.num_frames):
            address = stream.append(np.full((100, 100), number, "uint16"))
    print("the last frame went to", address)
    # of OME-TIFF a folder with a file for each position
    first = settings.output_path
    if name.endswith(".tiff"):
        first += "/grid_p000.ome.tiff"
    with BioReader(first) as br:
        print(settings.output_path, "has", br.n_series, "images:", br.series_names)
