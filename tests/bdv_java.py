"""Datasets of BigDataViewer as Java programs see them; nothing here is bioio_tk's.

`loaded` makes the calls that BigDataViewer makes of JHDF5 (its HDF5Access and Hdf5ImageLoader, of
2023 and later), `spimdata` reads the XML under the rules of its parser, and `bio_formats` is the
reader of BDV in Bio-Formats.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

# name of a type: what BDV has HDF5 make of the pixels, NumPy's type, and Java's
NATIVE = {
    "int8": ("H5T_NATIVE_INT8", "i1", "JByte"),
    "uint8": ("H5T_NATIVE_UINT8", "u1", "JByte"),
    "int16": ("H5T_NATIVE_INT16", "i2", "JShort"),
    "uint16": ("H5T_NATIVE_UINT16", "u2", "JShort"),
    "int32": ("H5T_NATIVE_INT32", "i4", "JInt"),
    "uint32": ("H5T_NATIVE_UINT32", "u4", "JInt"),
    "int64": ("H5T_NATIVE_INT64", "i8", "JLong"),
    "uint64": ("H5T_NATIVE_UINT64", "u8", "JLong"),
    "float32": ("H5T_NATIVE_FLOAT", "f4", "JFloat"),
    "float64": ("H5T_NATIVE_DOUBLE", "f8", "JDouble"),
}
OLD = ("H5T_NATIVE_INT16", "u2", "JShort")
"""Without a name of a type: 16 bits that BDV takes as they are, and calls unsigned."""


# ------------------------------------------------------------------ JHDF5


@contextmanager
def loaded(java, path):
    """Open the HDF5 file of a dataset as BDV does."""
    loader = Loader(java, path)
    try:
        yield loader
    finally:
        loader.close()


class Loader:
    """What BDV asks of a file. Ids are those of the XML, sizes are along X, Y, Z as it has them."""

    def __init__(self, java, path):
        self._java = java
        self._h5 = java("hdf.hdf5lib.H5")
        self._constants = java("hdf.hdf5lib.HDF5Constants")
        factory = java("ch.systemsx.cisd.hdf5.HDF5Factory")
        self._reader = factory.openForReading(java("java.io.File")(str(path)))
        self._transfer = java("ch.systemsx.cisd.hdf5.hdf5lib.HDFHelper").H5Pcreate_xfer_abort()
        only = self._constants.H5F_ACC_RDONLY
        self._file = self._h5.H5Fopen(str(path), only, self._constants.H5P_DEFAULT)
        self._types = {}

    def close(self):
        self._h5.H5Pclose(self._transfer)
        self._h5.H5Fclose(self._file)
        self._reader.close()

    def factors(self, setup):
        """Return how much smaller each level is than the full resolution."""
        return rows(self._reader.readDoubleMatrix(f"s{setup:02d}/resolutions"))

    def blocks(self, setup):
        """Return the size of a block at each level."""
        return rows(self._reader.readIntMatrix(f"s{setup:02d}/subdivisions"))

    def type(self, setup):
        """Return the name of the type of the pixels, None where there is none: the old way."""
        if setup not in self._types:
            try:
                name = str(self._reader.string().getAttr(f"s{setup:02d}", "dataType"))
            except Exception:  # BDV, too, takes any exception for that
                name = None
            self._types[setup] = name if name in NATIVE else None
        return self._types[setup]

    def exists(self, view, level=0):
        """Return whether there are pixels of a (time point, setup)."""
        constants = self._constants
        try:
            info = self._h5.H5Oget_info_by_name(
                self._file, cells(view, level), constants.H5O_INFO_BASIC, constants.H5P_DEFAULT
            )
        except self._java("hdf.hdf5lib.exceptions.HDF5LibraryException"):
            return False
        return int(info.type) == int(constants.H5O_TYPE_DATASET)

    def size(self, view, level=0):
        with self._opened(view, level) as (_, space):
            return self._size(space)

    def chunk(self, view, level=0):
        """Return the size of the chunks, None where the pixels are in one piece."""
        import jpype

        h5 = self._h5
        with self._opened(view, level) as (data, _):
            how = h5.H5Dget_create_plist(data)
            try:
                if int(h5.H5Pget_layout(how)) != int(self._constants.H5D_CHUNKED):
                    return None
                found = jpype.JLong[3]
                h5.H5Pget_chunk(how, 3, found)
                return tuple(int(n) for n in found)[::-1]
            finally:
                h5.H5Pclose(how)

    def pixels(self, view, level=0):
        """Return all pixels as Z, Y, X, block after block, in the type BDV shows them in."""
        native, dtype, element = NATIVE.get(self.type(view[1]), OLD)
        x, y, z = self.size(view, level)
        block = self.chunk(view, level) or self.blocks(view[1])[level]
        out = np.zeros((z, y, x), dtype)
        with self._opened(view, level) as (data, space):
            for corner in product(*(range(0, n, b) for n, b in zip((x, y, z), block, strict=True))):
                stop = [min(c + b, n) for c, b, n in zip(corner, block, (x, y, z), strict=True)]
                part = tuple(slice(*ends) for ends in zip(corner, stop, strict=True))[::-1]
                out[part] = self._block(data, space, part, native, element).view(dtype)
        return out

    def _block(self, data, space, part, native, element):
        import jpype

        h5, constants = self._h5, self._constants
        start = jpype.JLong[:]([s.start for s in part])
        count = jpype.JLong[:]([s.stop - s.start for s in part])
        memory = h5.H5Screate_simple(3, count, None)
        try:
            h5.H5Sselect_hyperslab(space, constants.H5S_SELECT_SET, start, None, count, None)
            values = getattr(jpype, element)[int(np.prod(list(count)))]
            anything = jpype.JObject(values, jpype.JObject)  # the same overload as BDV's call
            h5.H5Dread(data, getattr(constants, native), memory, space, self._transfer, anything)
        finally:
            h5.H5Sclose(memory)
        return np.array(values).reshape([int(n) for n in count])

    @contextmanager
    def _opened(self, view, level):
        data = self._h5.H5Dopen(self._file, cells(view, level), self._constants.H5P_DEFAULT)
        space = self._h5.H5Dget_space(data)
        try:
            yield data, space
        finally:
            self._h5.H5Sclose(space)
            self._h5.H5Dclose(data)

    def _size(self, space):
        import jpype

        count = int(self._h5.H5Sget_simple_extent_ndims(space))
        found = jpype.JLong[count]
        self._h5.H5Sget_simple_extent_dims(space, found, None)
        return tuple(int(n) for n in found)[::-1]


def cells(view, level):
    return f"t{view[0]:05d}/s{view[1]:02d}/{level}/cells"


def rows(matrix):
    return [tuple(n.item() for n in np.array(row)) for row in matrix]


# ------------------------------------------------------------------ the XML


class NotForJavaError(AssertionError):
    """The parser of BDV would not read this, or not as it is meant."""


@dataclass
class Spim:
    """What BDV has of an XML, by the ids in it; sizes are along X, Y, Z.

    Attributes
    ----------
    file : Path
        The HDF5 file.
    partitions : list
        Of (file, time points, setups).
    transforms : dict
        (time point, setup) to its (name, matrix) in the order they stand there.
    models : dict
        (time point, setup) to what its transforms do together, 3 x 4.
    """

    file: Path
    partitions: list = field(default_factory=list)
    names: dict = field(default_factory=dict)
    sizes: dict = field(default_factory=dict)
    voxels: dict = field(default_factory=dict)
    attributes: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)
    times: tuple = ()
    missing: set = field(default_factory=set)
    transforms: dict = field(default_factory=dict)
    models: dict = field(default_factory=dict)

    @property
    def views(self):
        """What BDV shows: all that is not missing."""
        return {view for view in product(self.times, self.sizes) if view not in self.missing}


def spimdata(path):
    """Read the XML of a dataset, and demand what BDV, BigStitcher and Bio-Formats do."""
    text = Path(path).read_bytes()
    require(b"SpimData" in text[:100], "Bio-Formats looks for SpimData in the first 100 bytes")
    root = ET.fromstring(text)
    require(root.tag == "SpimData", f"the root is {root.tag}")
    base = file_of(root, "BasePath", Path(path).parent) or Path(path).parent
    sequence, loader = child(root, "SequenceDescription"), None
    loader = child(sequence, "ImageLoader")
    require(loader.get("format") == "bdv.hdf5", f"the loader is {loader.get('format')}")
    file = file_of(loader, "hdf5", base)
    require(file is not None, "no <hdf5>")
    found = Spim(file)
    for part in loader.findall("partition"):
        where = file_of(part, "path", base)
        found.partitions.append((where, integers(part, "timepoints"), integers(part, "setups")))
    read_setups(child(sequence, "ViewSetups"), found)
    found.times = time_points(child(sequence, "Timepoints"))
    for view in sequence.findall("MissingViews/MissingView"):
        found.missing.add((integer(view.get("timepoint")), integer(view.get("setup"))))
    read_registrations(child(root, "ViewRegistrations"), found)
    for view in found.views:
        require(view in found.models, f"no registration of {view}")
    return found


def read_setups(element, found):
    for values in element.findall("Attributes"):
        kind = values.get("name")
        require(kind is not None, "Attributes without a name")
        found.labels[kind] = named = {}
        for value in values.findall(kind.capitalize()):
            number = integer(text(value, "id"))
            require(number not in named, f"{kind} {number} twice")
            named[number] = text(value, "name")
    for setup in element.findall("ViewSetup"):
        read_setup(setup, found)
    require(bool(found.sizes), "no setups")
    require(list(found.sizes) == sorted(found.sizes), "Bio-Formats counts setups upwards")


def read_setup(setup, found):
    number = integer(text(setup, "id"))
    require(number not in found.sizes, f"setup {number} twice")
    order = [part.tag for part in setup]
    require(order.index("id") < order.index("attributes"), "Bio-Formats wants id first")
    found.names[number] = setup.findtext("name")
    found.sizes[number] = integers(setup, "size")
    require(len(found.sizes[number]) == 3, "a size is not three numbers")
    voxel = child(setup, "voxelSize")
    sizes = numbers(voxel, "size")
    require(len(sizes) == 3, "a voxel size is not three numbers")
    require(len(text(voxel, "size").split(" ")) == 3, "Bio-Formats splits at single spaces")
    found.voxels[number] = (text(voxel, "unit"), sizes)
    found.attributes[number] = {}
    for attribute in child(setup, "attributes"):
        value = integer((attribute.text or "").strip(" \t\r\n"))
        require(value in found.labels.get(attribute.tag, ()), f"no {attribute.tag} {value}")
        require(integer(attribute.text) == value, "Bio-Formats does not trim ids")
        found.attributes[number][attribute.tag] = value


def time_points(element):
    kind = element.get("type")
    if kind == "range":
        first, last = integer(text(element, "first")), integer(text(element, "last"))
        return tuple(range(first, last + 1))
    if kind == "list":
        return tuple(integer(text(time, "id")) for time in element.findall("Timepoint"))
    require(kind == "pattern", f"time points of type {kind}")
    found = []
    for part in text(element, "integerpattern").replace(" ", "").split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        found += range(integer(first), integer(last or first) + 1, integer(step or "1"))
    return tuple(found)


def read_registrations(element, found):
    for registration in element.findall("ViewRegistration"):
        view = (integer(registration.get("timepoint")), integer(registration.get("setup")))
        require(view not in found.models, f"two registrations of {view}")
        whole, steps = np.eye(4), []
        for transform in registration.findall("ViewTransform"):
            require(transform.get("type") == "affine", f"a {transform.get('type')} transform")
            values = numbers(transform, "affine")
            require(len(values) == 12, f"{len(values)} numbers are no affine transform")
            step = np.vstack([np.reshape(values, (3, 4)), (0, 0, 0, 1)])
            whole = whole @ step
            steps.append((transform.findtext("Name"), step[:3]))
        found.transforms[view], found.models[view] = steps, whole[:3]


def file_of(parent, tag, base):
    """Return a file the XML names, as BDV and Bio-Formats both understand it."""
    element = parent.find(tag)
    if element is None:
        return None
    name = element.text or ""
    require(element.get("type") == "relative", f"{tag} is {element.get('type')}")
    require(name == name.strip(), f"white space around {name!r}")
    return base / name


def child(parent, tag):
    found = parent.findall(tag)
    require(len(found) == 1, f"{len(found)} of {tag} in {parent.tag}")
    return found[0]


def text(parent, tag):
    found = parent.findtext(tag)
    require(found is not None, f"no {tag} in {parent.tag}")
    return found


def integers(parent, tag):
    return tuple(integer(word) for word in words(text(parent, tag)))


def numbers(parent, tag):
    return tuple(number(word) for word in words(text(parent, tag)))


def words(line):
    r"""Split as Java's split("\\s+") does: it makes an empty word of white space at the front."""
    found = re.split(r"[ \t\n\x0b\f\r]+", line)
    while found and found[-1] == "":
        found.pop()
    return found


def integer(word):
    """Read an int as Java does: no white space, 32 bits."""
    require(word is not None and re.fullmatch(r"[+-]?[0-9]+", word), f"{word!r} is no int of Java")
    require(-(2**31) <= int(word) < 2**31, f"{word} has more than 32 bits")
    return int(word)


def number(word):
    """Read a double as Java does; what is not finite has other names there than in Python."""
    good = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", word)
    require(good is not None, f"{word!r} is no number of Java")
    return float(word)


def require(good, what):
    if not good:
        raise NotForJavaError(what)


# ------------------------------------------------------------------ Bio-Formats


@contextmanager
def bio_formats(java, path, flat=False):
    """Open a dataset (its XML or its HDF5 file) with the reader of BDV in Bio-Formats."""
    reader = java("loci.formats.in.BDVReader")()
    factory = java("loci.common.services.ServiceFactory")()
    service = factory.getInstance(java("loci.formats.services.OMEXMLService"))
    reader.setFlattenedResolutions(flat)
    reader.setMetadataStore(service.createOMEXMLMetadata())
    try:
        reader.setId(str(path))
        yield reader
    finally:
        reader.close()


def by_bio_formats(reader, dtype, series=0, c=0, t=0, level=0):
    """Return a stack as Z, Y, X: the bits of what Bio-Formats gives, as a type of NumPy.

    It knows no signed types of 8 and 16 bits, and no unsigned one of 32; the bits are the same.
    """
    reader.setSeries(series)
    reader.setResolution(level)
    shape = (int(reader.getSizeY()), int(reader.getSizeX()))
    planes = []
    for z in range(int(reader.getSizeZ())):
        block = reader.openBytes(reader.getIndex(z, c, t))
        planes.append(np.frombuffer(bytes(block), np.dtype(dtype).newbyteorder("<")))
    return np.array(planes).reshape(-1, *shape).astype(dtype)
