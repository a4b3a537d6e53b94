"""Record what pymmcore-plus acquires: its own loop, our files. A camera made of Python counts.

`pip install pymmcore-plus bioio-tk[useq]`; with a real microscope, load its configuration in place
of the camera here. pymmcore-plus writes through the package `ome_writers`: lend bioio_tk that name
before the first import, and `output=` takes whatever it took before.
"""

from __future__ import annotations

import sys

import numpy as np
import useq

import bioio_tk.compat.ome_writers

sys.modules["ome_writers"] = bioio_tk.compat.ome_writers

from pymmcore_plus.experimental.unicore import CameraDevice, UniMMCore  # noqa: E402

from bioio_tk import AcquisitionSettings, imread  # noqa: E402


class Camera(CameraDevice):
    """A camera of 64 x 48 pixels."""

    frames = 0

    def get_exposure(self) -> float:
        """Return the time in ms."""
        return 1.0

    def set_exposure(self, exposure: float) -> None:
        """Take any."""

    def shape(self) -> tuple[int, int]:
        """Return height and width."""
        return 48, 64

    def dtype(self) -> type:
        """Return the pixel type."""
        return np.uint16

    def start_sequence(self, n, get_buffer):
        """Fill buffers; each frame is one brighter than the one before."""
        for _ in range(n or 1):
            self.frames += 1
            get_buffer(self.shape(), self.dtype())[:] = self.frames
            yield {}


core = UniMMCore()
core.loadPyDevice("Camera", Camera())
core.initializeDevice("Camera")
core.setCameraDevice("Camera")

settings = AcquisitionSettings(
    root_path="mda.ome.zarr", overwrite=True, compression="blosc-zstd", pyramid="after"
)
sequence = useq.MDASequence(time_plan={"interval": 0, "loops": 5})


@core.mda.events.frameReady.connect
def look(image: np.ndarray, event: useq.MDAEvent, meta: dict) -> None:
    """See the acquisition while it runs."""
    print(f"t={event.index['t']}:", "the view has", core.mda.get_view().shape)


core.mda.run(sequence, output=settings)
with imread("mda.ome.zarr") as image:
    print("stored:", image.shape, "values", np.unique(np.asarray(image)))
