"""Read each format WITHOUT bioio_tk, as Y,X,Z,C,T: catches what reader and writer both have wrong.

One function per backend, called like it: ``name(path, level=0)``. None: there is no such reader.
"""

from __future__ import annotations

import base64
import time
import zlib
from typing import NamedTuple
from xml.etree import ElementTree as ET

import numpy as np

from conftest import open_files


class Refusal(NamedTuple):
    """What a format cannot hold, so that it must be refused before a file exists."""

    dtypes: tuple[str, ...] = ()
    samples: bool = False
    pyramids: bool = False


REFUSED = {
    ".npy": Refusal(pyramids=True),
    ".h5": Refusal(pyramids=True),
    ".xml": Refusal(("f2", "c8", "bool"), samples=True),
    ".ome": Refusal(("u8", "i8", "f2", "f8", "c8", "bool"), samples=True, pyramids=True),
}
"""By the ending of the file; formats that are not here must hold everything."""


def files_of(path):
    """Return the names of all files that an image is made of, where `path` is the one to open."""
    beside = {".xml": (".h5",)}.get(path.suffix, ())
    return sorted([path.name, *(path.with_suffix(ending).name for ending in beside)])


def may_refuse(path, dtype, samples, pyramid):
    """Return whether the format of a file need not hold such an image."""
    format_ = REFUSED.get(path.suffix, Refusal())
    return (
        np.dtype(dtype) in map(np.dtype, format_.dtypes)
        or (samples > 1 and format_.samples)
        or ((pyramid is True or (pyramid or 1) > 1) and format_.pyramids)
        or (np.dtype(dtype) == bool and samples > 1)  # hardly a format knows that
    )


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


def npy(path, level=0):
    assert level == 0
    pixels = np.load(path)
    return yxzct(pixels, "TCZYX"[-pixels.ndim :])


def hdf5(path, level=0):
    import h5py

    assert level == 0
    with h5py.File(path, locking=False) as file:
        data = file["mov"]
        return yxzct(data[()], "".join(data.attrs["dims"]))


def bdv(path, level=0):
    import h5py

    root = ET.parse(path).getroot()
    times = range(int(root.findtext(".//Timepoints/last")) + 1)
    setups = [int(e.text) for e in root.iterfind(".//ViewSetup/id")]
    with h5py.File(path.with_name(root.findtext(".//hdf5")), locking=False) as file:
        stacks = [[file[f"t{t:05d}/s{s:02d}/{level}/cells"][()] for s in setups] for t in times]
        if "dataType" not in file["s00"].attrs:  # 16 bits without a sign, in a type that has one
            stacks = np.array(stacks).view("u2")
    return yxzct(np.array(stacks), "TCZYX")


def java(path, level=0):
    assert level == 0
    return ome_xml(path)


def ome_xml(path):
    """Return the pixels inside an OME-XML document: one BinData a plane, by DimensionOrder."""
    root = ET.parse(path).getroot()
    ome = root.tag.rpartition("}")[0] + "}"
    (pixels,) = root.iter(f"{ome}Pixels")
    size = {axis: int(pixels.get(f"Size{axis}")) for axis in "XYZCT"}
    planes = []
    for block in pixels.findall(f"{ome}BinData"):
        data = base64.b64decode(block.text)
        if block.get("Compression") == "zlib":
            data = zlib.decompress(data)
        assert len(data) == int(block.get("Length"))
        order = ">" if block.get("BigEndian") == "true" else "<"
        kind = {"float": "f4"}.get(pixels.get("Type"), pixels.get("Type"))
        planes.append(np.frombuffer(data, np.dtype(kind).newbyteorder(order)))
    axes = pixels.get("DimensionOrder")[::-1]
    return yxzct(native(np.array(planes)).reshape([size[axis] for axis in axes]), axes)


def ics(path):
    """Return the pixels of an ICS 2.0 file, which holds them after its header."""
    header, data = path.read_bytes().split(b"\nend\n", 1)
    fields = dict(ics_fields(header))
    assert fields["ics_version"] == ["2.0"]
    assert fields["representation", "compression"] == ["uncompressed"]
    (bits, *sizes), axes = fields["layout", "sizes"], fields["layout", "order"][1:]
    kind = {"real": "f", "integer": "u"}[fields["representation", "format"][0]]
    if kind == "u" and fields["representation", "sign"] == ["signed"]:
        kind = "i"
    count = int(bits) // 8
    order = [int(n) for n in fields["representation", "byte_order"]]
    ascending = list(range(1, count + 1))  # the first byte is the lowest: little-endian
    assert order in (ascending, ascending[::-1])
    pixels = np.frombuffer(data, f"{'<' if order == ascending else '>'}{kind}{count}")
    shape = [int(n) for n in sizes[::-1]]
    names = "".join("C" if axis == "ch" else axis.upper() for axis in axes[::-1])
    return yxzct(native(pixels).reshape(shape), names)


def ics_fields(header):
    """Yield (key, values) of an ICS header; categories with a second word have a pair as key."""
    for line in header.decode().splitlines():
        first, *rest = [word.strip() for word in line.split("\t") if word.strip()] or [""]
        if first in ("layout", "representation", "parameter"):
            yield (first, rest[0]), rest[1:]
        elif rest:
            yield first, rest


OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def native(pixels):
    """Return the pixels in this machine's byte order."""
    return pixels.astype(pixels.dtype.newbyteorder("="))


def yxzct(pixels, axes):
    """Return an array whose axes are named (S are samples of a channel) as Y, X, Z, C, T."""
    assert set(axes) <= set("YXZCST"), axes
    for axis in "YXZCST":
        if axis not in axes:
            pixels, axes = pixels[..., None], axes + axis
    pixels = pixels.transpose([axes.index(axis) for axis in "YXZCST"])
    y, x, z, c, s, t = pixels.shape
    return np.ascontiguousarray(pixels).reshape(y, x, z, c * s, t)
