"""5.1 Smaller resolutions in the same pass, and with or without the full one."""

from __future__ import annotations

from pathlib import Path

from specimen import sizes, stack

from bioio_tk import BioReader
from bioio_tk.bdv import BdvWriter

pixels = stack(sizes((16, 128, 256), (50, 2048, 2048)))

# factors and blocks along Z, Y, X; without `subsamp` they follow BigDataViewer's own rule
LEVELS = {
    "all": ((1, 1, 1), (1, 4, 4), (2, 8, 8)),
    "reduced": ((1, 4, 4), (2, 8, 8), (4, 16, 16)),  # what a quick look needs; the rest is gone
}
for name, levels in LEVELS.items():
    file = Path(f"ex5_1_{name}.h5")
    with BdvWriter(file, subsamp=levels, blockdim=((8, 64, 64),), overwrite=True) as writer:
        writer.append_view(pixels)
    print(name, "levels:", f"{file.stat().st_size / pixels.nbytes:.0%} of the pixels")

with BioReader("ex5_1_all.xml", level=2) as reader:
    print("level 2 of", reader.levels, "is", reader.shape)
