"""A 5-D image: time points, channels with colours and wavelengths, planes, pixel sizes."""

from __future__ import annotations

import numpy as np

from bioio_tk import AcquisitionSettings, BioReader, Channel, Dimension, create_stream

CHANNELS = [
    Channel(name="DAPI", color="blue", excitation_wavelength_nm=405, emission_wavelength_nm=450),
    Channel(name="GFP", color="#00ff00", fluorophore="EGFP", excitation_wavelength_nm=488),
    Channel(name="Cy5", color="red", emission_wavelength_nm=670),
]
# the slowest first: the order in which the frames come
DIMENSIONS = [
    Dimension(name="t", count=2, type="time", scale=30, unit="s"),
    Dimension(name="c", type="channel", coords=CHANNELS),
    Dimension(name="z", count=4, type="space", scale=0.5, unit="um"),
    Dimension(name="y", count=256, chunk_size=64, type="space", scale=0.1, unit="um"),
    Dimension(name="x", count=256, chunk_size=64, type="space", scale=0.1, unit="um"),
]

for name in ("five.ome.zarr", "five.ome.tiff"):
    settings = AcquisitionSettings(
        root_path=name, dimensions=DIMENSIONS, dtype="uint16", overwrite=True
    )
    with create_stream(settings) as stream:
        for number in range(settings.num_frames):
            stream.append(np.full((256, 256), number, "uint16"))
    with BioReader(settings.output_path) as br:
        size = br.pixel_size("µm")
        print(name, br.shape, br.channel_names, f"{size.x} x {size.y} x {size.z} µm")
        print("frame 7, which is t=0 c=1 z=3:", br[0, 0, 3, 1, 0].item())
