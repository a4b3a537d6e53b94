"""Read each format WITHOUT bioio_tk, as Y,X,Z,C,T: catches what reader and writer both have wrong.

One function per backend, called like it: ``name(path, level=0)``. None: there is no such reader.
"""

from __future__ import annotations

import time

import numpy as np

from conftest import open_files


def python(path, level=0):
    import tifffile

    with tifffile.TiffFile(path) as tif:
        series = tif.series[0].levels[level]
        pixels, axes = series.asarray(), series.axes
    return yxzct(pixels, axes)


def zarr(path, level=0):
    import zarr

    if path.is_file():  # packed
        with zarr.storage.ZipStore(path, mode="r") as store:
            return _zarr(zarr.open_group(store, mode="r"), level)
    pixels, axes = _zarr(zarr.open_group(path, mode="r"), level, raw=True)
    np.testing.assert_array_equal(pixels, tensorstore(path / str(level)))  # two readers agree
    return yxzct(pixels, axes)


def tensorstore(array):
    """Return the pixels of a Zarr array in a folder, its axes as they are stored."""
    import tensorstore

    driver = "zarr3" if (array / "zarr.json").exists() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(array)}}
    pixels = tensorstore.open(spec).result().read().result()
    deadline = time.monotonic() + 5
    while open_files(array) and time.monotonic() < deadline:  # its threads close files later
        time.sleep(0.001)
    return pixels


def _zarr(group, level, *, raw=False):
    attributes = group.attrs.asdict()
    (image,) = attributes.get("ome", attributes)["multiscales"]
    axes = "".join(axis["name"] for axis in image["axes"]).upper()
    pixels = group[image["datasets"][level]["path"]][...]
    return (pixels, axes) if raw else yxzct(pixels, axes)


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
