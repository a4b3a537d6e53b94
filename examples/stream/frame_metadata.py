"""Events decide what is taken next: frames in a row, and what is known of each beside it."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as ET

import numpy as np

from bioio_tk import AcquisitionSettings, BioReader, create_stream, dims_from_standard_axes

settings = AcquisitionSettings(
    root_path="events.ome.tiff",
    dimensions=dims_from_standard_axes({"t": None, "y": 64, "x": 64}),
    dtype="uint16",
    overwrite=True,
)


def events() -> Iterator[tuple[np.ndarray, dict]]:
    """Yield frames and what is known of them, as long as the cell divides."""
    rng = np.random.default_rng(5)
    for number in range(12):
        yield (
            rng.integers(0, 4096, (64, 64), "uint16"),
            {
                # these have a place of their own in OME-XML: seconds and µm
                "delta_t": 0.5 * number,
                "exposure_time": 0.01,
                "position_x": 100 + 0.5 * number,
                "position_y": 200.0,
                "position_z": 50.0,
                # everything else is kept as it is
                "laser": "488" if number % 2 else "561",
                "temperature": 37.0 + rng.normal(0, 0.1),
            },
        )


with create_stream(settings) as stream:
    for frame, known in events():
        stream.append(frame, metadata=known)
    stream.set_global_metadata("my_lab", {"operator": "Ada", "sample": 7})

with BioReader("events.ome.tiff") as br:
    xml = ET.fromstring(br.ome_xml)
    planes = [part for part in xml.iter() if part.tag.endswith("}Plane")]
    print(br.shape, "- the fourth frame:", planes[3].attrib)
