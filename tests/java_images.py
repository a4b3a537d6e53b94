"""Images that Bio-Formats makes up or reads, in plain calls of Java; nothing here is bioio_tk's."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import numpy as np

TYPES = {
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float": "f4",
    "double": "f8",
    "bit": "bool",
}
"""Name that Bio-Formats gives a pixel type, and NumPy's."""

BOX = 10
"""Side of the boxes in which a synthetic plane says where it belongs."""


class Fake(NamedTuple):
    """A synthetic image: its name says what Bio-Formats shows for it."""

    x: int = 64
    y: int = 14
    z: int = 1
    c: int = 1
    t: int = 1
    type: str = "uint8"
    order: str = "XYZCT"
    series: int = 1
    rgb: int = 1
    little: bool = True
    interleaved: bool = True
    more: str = ""

    def file(self, folder):
        """Make the file; what is in it does not matter, as long as it is something."""
        name = (
            f"image&sizeX={self.x}&sizeY={self.y}&sizeZ={self.z}&sizeC={self.c}&sizeT={self.t}"
            f"&pixelType={self.type}&dimOrder={self.order}&series={self.series}&rgb={self.rgb}"
            f"&little={_java(self.little)}&interleaved={_java(self.interleaved)}{self.more}.fake"
        )
        path = folder / name
        path.write_bytes(b"a synthetic image")
        return path

    @property
    def shape(self):
        return (self.y, self.x, self.z, self.c, self.t)

    def pixels(self, series=0):
        """Return all pixels: a gradient, and the boxes at the top.

        Planes of several samples come channel by channel first, whatever the order asked for.
        """
        dtype = np.dtype(TYPES[self.type])
        least = int(np.iinfo(dtype).min) if dtype.kind == "i" else 0
        image = np.zeros(self.shape, "i8")
        image[...] = least + np.arange(self.x).reshape(1, -1, 1, 1, 1)
        counts = {"Z": self.z, "C": self.c // self.rgb, "T": self.t}
        for z, c, t in product(range(self.z), range(self.c), range(self.t)):
            at = {"Z": z, "C": c // self.rgb, "T": t}
            number, step = 0, 1
            for axis in self.order[2:] if self.rgb == 1 else "C" + self.order[2:].replace("C", ""):
                number += at[axis] * step
                step *= counts[axis]
            for box, value in enumerate((series, number, z, c, t)):
                image[:BOX, box * BOX : (box + 1) * BOX, z, c, t] = value
        if dtype.kind == "u":
            image %= 1 << (8 * dtype.itemsize)
        return image.astype(dtype)


def _java(value):
    return "true" if value else "false"


@contextmanager
def opened(java, path, series=0, level=0):
    """Open a file with Bio-Formats itself, set to a series and a resolution."""
    reader = java("loci.formats.ImageReader")()
    factory = java("loci.common.services.ServiceFactory")()
    service = factory.getInstance(java("loci.formats.services.OMEXMLService"))
    reader.setFlattenedResolutions(False)
    reader.setMetadataStore(service.createOMEXMLMetadata())
    try:
        reader.setId(str(path))
        reader.setSeries(series)
        reader.setResolution(level)
        yield reader
    finally:
        reader.close()


def by_java(java, path, series=0, level=0):
    """Return all pixels as Y, X, Z, C, T: plane after plane, sample after sample."""
    with opened(java, path, series, level) as reader:
        y, x = int(reader.getSizeY()), int(reader.getSizeX())
        z, c, t = int(reader.getSizeZ()), int(reader.getSizeC()), int(reader.getSizeT())
        samples = int(reader.getRGBChannelCount())
        name = str(java("loci.formats.FormatTools").getPixelTypeString(reader.getPixelType()))
        stored = np.dtype("u1" if name == "bit" else TYPES[name])
        stored = stored.newbyteorder("<" if reader.isLittleEndian() else ">")
        image = np.zeros((y, x, z, c, t), TYPES[name])
        for number in range(int(reader.getImageCount())):
            at_z, at_c, at_t = (int(n) for n in reader.getZCTCoords(number))
            flat = np.frombuffer(bytes(reader.openBytes(number)), stored)
            for sample in range(samples):
                if reader.isInterleaved():
                    plane = flat[sample::samples]
                else:
                    plane = flat[sample * y * x : (sample + 1) * y * x]
                image[:, :, at_z, at_c * samples + sample, at_t] = plane.reshape(y, x)
        return image


def series_count(java, path):
    with opened(java, path) as reader:
        return int(reader.getSeriesCount())
