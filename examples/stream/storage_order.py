"""All channels of a plane are taken before the next plane, and stored as OME-Zarr wants it."""

from __future__ import annotations

import numpy as np

from bioio_tk import AcquisitionSettings, create_stream, dims_from_standard_axes, imread

for order in ("ome", ["t", "c", "z", "y", "x"]):
    settings = AcquisitionSettings(
        root_path="order.ome.zarr",
        dimensions=dims_from_standard_axes({"t": 2, "z": 4, "c": 3, "y": 64, "x": 64}),
        dtype="uint16",
        storage_order=order,
        overwrite=True,
    )
    with create_stream(settings) as stream:
        for number in range(settings.num_frames):
            stream.append(np.full((64, 64), number, "uint16"))
        acquired = stream.view()[0, :, :, 0, 0]  # as it was taken: z, c
    with imread("order.ome.zarr", dims="TCZYX") as image:
        print(order, "is", image.shape)
        print("channel 1, up the planes:", np.asarray(image[0, 1, :, 0, 0]), acquired[:, 1])
