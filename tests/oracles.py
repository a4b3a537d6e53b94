"""Read each format WITHOUT bioio_tk, as Y,X,Z,C,T: catches what reader and writer both have wrong.

One function per backend, called like it: ``name(path, level=0)``. None: there is no such reader.
"""

from __future__ import annotations

import numpy as np


def python(path, level=0):
    import tifffile

    with tifffile.TiffFile(path) as tif:
        series = tif.series[0].levels[level]
        pixels, axes = series.asarray(), series.axes
    return yxzct(pixels, axes)


def memory(path, level=0):
    return None


def yxzct(pixels, axes):
    """Return an array whose axes are named (S are samples of a channel) as Y, X, Z, C, T."""
    assert set(axes) <= set("YXZCST"), axes
    for axis in "YXZCST":
        if axis not in axes:
            pixels, axes = pixels[..., None], axes + axis
    pixels = pixels.transpose([axes.index(axis) for axis in "YXZCST"])
    y, x, z, c, s, t = pixels.shape
    return np.ascontiguousarray(pixels).reshape(y, x, z, c * s, t)
