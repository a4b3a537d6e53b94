"""What compression makes of the same frames, in both formats; workers do it in the background."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bioio_tk import AcquisitionSettings, create_stream, dims_from_standard_axes

FRAMES = np.random.default_rng(3).poisson(20, (4, 512, 512)).astype("uint16")
FORMATS = {
    "small.ome.zarr": (None, "blosc-zstd", "blosc-lz4", "zstd"),
    "small.ome.tiff": (None, "deflate", "zstd", "lzw"),
}

for name, compressions in FORMATS.items():
    for compression in compressions:
        settings = AcquisitionSettings(
            root_path=name,
            dimensions=dims_from_standard_axes({"t": len(FRAMES), "y": 512, "x": 512}),
            dtype="uint16",
            compression=compression,
            overwrite=True,
        )
        with create_stream(settings) as stream:
            for frame in FRAMES:
                stream.append(frame)
        path = Path(settings.output_path)
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        share = sum(file.stat().st_size for file in files) / FRAMES.nbytes
        print(f"{name:<15} {compression or 'raw':<11} {share:.0%} of the pixels")
