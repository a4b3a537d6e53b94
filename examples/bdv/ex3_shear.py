"""3. An affine transform: a stage-scanned stack is unsheared by the viewer, not by resampling."""

from __future__ import annotations

import numpy as np
from specimen import sizes, stack

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

SHEAR_PX = 10  # each plane is shifted by this much along X

# the world is matrix @ (x, y, z, 1)
unshear = np.array([[1, 0, -SHEAR_PX, 0], [0, 1, 0, 0], [0, 0, 1, 0]], float)

with BdvWriter("ex3_shear.h5", overwrite=True) as writer:
    writer.append_view(
        stack(sizes((8, 64, 96), (50, 1024, 2048))),
        m_affine=unshear,
        name_affine="unshear",
        voxel_size_xyz=(0.5, 0.5, 1),
        voxel_units="µm",
        calibration=(1, 1, 2),  # planes are twice as far apart as pixels; applied first
    )

with BioReader("ex3_shear.xml") as reader:
    (view,) = reader.views
    print("transforms, the last one is applied first:", [t.name for t in view.transforms])
    print("both together:", reader.affines[0, 0].tolist())
