"""An existing dataset: read views and planes, shift a tile, cut off the borders."""

from __future__ import annotations

import numpy as np
from specimen import sizes, stack

from bioio_tk import BioReader
from bioio_tk.bdv import BdvEditor, BdvWriter

pixels = stack(sizes((8, 64, 96), (50, 1024, 2048)))
with BdvWriter("edit.h5", ntiles=2, overwrite=True) as writer:
    for tile in range(2):
        writer.append_view(pixels, tile=tile)

with BdvEditor("edit.xml") as editor:
    print(
        "tile 1:", editor.read_view(tile=1).shape, "plane 3:", editor.read_view(tile=1, z=3).shape
    )
    shift = np.eye(3, 4)
    shift[:, 3] = 80.5, 0, 0
    editor.append_affine(shift, name_affine="registered", tile=1)  # in the XML at once
    editor.crop_view(((10, -10), (5, -5), None), tile=1)

with BioReader("edit.xml") as reader:
    for view in reader.views:
        print(view.labels["tile"], view.shape[:3], [t.name for t in view.transforms])
