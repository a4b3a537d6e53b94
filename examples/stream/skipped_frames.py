"""The autofocus fails now and then: those frames are skipped, all others stay in place."""

from __future__ import annotations

import numpy as np

from bioio_tk import AcquisitionSettings, create_stream, dims_from_standard_axes, imread

TIMES, POSITIONS, PLANES = 5, 3, 4
settings = AcquisitionSettings(
    root_path="skipped.ome.zarr",
    dimensions=dims_from_standard_axes({"t": TIMES, "p": POSITIONS, "z": PLANES, "y": 64, "x": 64}),
    dtype="uint16",
    overwrite=True,
)


class AutofocusError(Exception):
    """There is nothing to see."""


def focus(position: int, t: int) -> None:
    """Fail at position 1, at two time points."""
    if position == 1 and t in (1, 2):
        raise AutofocusError(f"no focus at position {position}, time point {t}")


with create_stream(settings) as stream:
    for t in range(TIMES):
        for position in range(POSITIONS):
            try:
                focus(position, t)
            except AutofocusError as exc:
                print(exc, "- skipping", PLANES, "frames")
                stream.skip(frames=PLANES)
            else:
                for _ in range(PLANES):
                    stream.append(np.full((64, 64), 10 * t + position, "uint16"))
print(stream.stats.frames_skipped, "frames were skipped")
with imread("skipped.ome.zarr", series=1, dims="TCZYX") as image:
    print("position 1 over time:", np.asarray(image[:, 0, 0, 0, 0]))
