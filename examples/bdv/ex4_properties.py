"""4. What was recorded how: voxel size, exposure, camera, microscope and who was there."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from specimen import sizes, stack

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

with BdvWriter("ex4_properties.h5", overwrite=True) as writer:
    writer.append_view(
        stack(sizes((8, 64, 96), (50, 1024, 2048))),
        voxel_size_xyz=(1, 1, 5),
        voxel_units="µm",
        exposure_time=10,
        exposure_units="ms",
    )
    writer.write_xml(
        camera_name="Orca Flash",
        microscope_name="Superscope",
        microscope_version="2.1",
        user_name="Ada",
    )

with BioReader("ex4_properties.xml") as reader:
    print(reader.pixel_size("µm"))
document = ET.parse("ex4_properties.xml")
for path in (".//camera/exposureTime", ".//camera/name", ".//microscope/name", ".//user"):
    print(path, "=", document.findtext(path))
