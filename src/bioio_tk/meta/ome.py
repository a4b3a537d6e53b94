"""OME-XML to and from image specs: what a file's document says, and the document to store."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree as ET

from bioio_tk.core.dtype import from_ome_type, ome_type
from bioio_tk.core.spec import ImageSpec, PhysicalSize, Quantity
from bioio_tk.core.units import length_unit, time_unit
from bioio_tk.errors import FormatError, SpecError
from bioio_tk.meta import repair
from bioio_tk.meta.repair import OME_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ome_types import OME

ORIGIN = "image origin"
"""Name of the StageLabel that tells where the first pixel lies."""
PIXEL_TYPE_NS = "bioio_tk/pixel-type"
"""Namespace of the annotation that tells the NumPy type of pixels OME has no name for."""

ORDERS = ("XYZCT", "XYZTC", "XYCTZ", "XYCZT", "XYTCZ", "XYTZC")

# What stands in Type for types OME does not know. float16 is a float to every reader. For 64-bit
# integers "double" is the least wrong: a pixel has the right size, so a reader that trusts Type
# gets nothing misaligned and one that converts loses nothing below 2**53, where "int32" would
# tear every pixel in two. The true type is in the file's own tags and in our annotation.
# bool has the name "bit", but files hold it as bytes of 0 and 1, which every reader gets right.
NEAREST = {"bool": "uint8", "float16": "float", "int64": "double", "uint64": "double"}
"""What stands in Type for the NumPy types OME does not know, by NumPy's name."""


# -- what a document says -------------------------------------------------------------------------


class TiffData(NamedTuple):
    """Which planes are in which IFD of which file; None where the attribute is absent."""

    first_z: int | None = None
    first_c: int | None = None
    first_t: int | None = None
    ifd: int | None = None
    plane_count: int | None = None
    uuid: str | None = None
    file_name: str | None = None


@dataclass(frozen=True, slots=True)
class OmeChannel:
    """A Channel element. `color` is (red, green, blue, alpha)."""

    name: str | None = None
    color: tuple[int, int, int, int] | None = None
    samples: int = 1


@dataclass(frozen=True, slots=True)
class OmeImage:
    """What a document says of one image.

    Attributes
    ----------
    name, id : str
        "" where absent.
    size_x, size_y, size_z, size_c, size_t : int
        Sizes in pixels. Absent or senseless ones are 1 along Z, C, T, and 0 along X and Y, for
        the file itself to tell.
    order : str
        Order of the planes, fastest axis first, such as ``"XYZCT"``.
    type : str
        PixelType in lower case, as written even if it is none of OME's; "" where absent.
    big_endian : bool or None
        What the document claims; files know better.
    channels : tuple of OmeChannel
        Their samples add up to `size_c`. Channels that the document does not have are added
        with one sample each.
    physical_size : PhysicalSize
        Size of a pixel; None along an axis where there is no sensible one.
    time_increment : Quantity or None
        Time between two time points.
    tiff_data : tuple of TiffData
        As written.
    stored_dtype : str or None
        NumPy's name of the pixel type where we wrote one that OME has no name for.
    position : PhysicalSize
        Where the first pixel lies, where we wrote it; None along an axis where not.
    """

    name: str
    id: str
    size_x: int
    size_y: int
    size_z: int
    size_c: int
    size_t: int
    order: str
    type: str
    big_endian: bool | None
    channels: tuple[OmeChannel, ...]
    physical_size: PhysicalSize
    time_increment: Quantity | None
    tiff_data: tuple[TiffData, ...]
    stored_dtype: str | None = None
    position: PhysicalSize = PhysicalSize()


@dataclass(frozen=True, slots=True)
class OmeDocument:
    """What an OME-XML document says.

    Attributes
    ----------
    images : tuple of OmeImage
        In the order of the document; empty only where `metadata_only_file` is set.
    notes : tuple of str
        What was wrong and how it was understood, one line each.
    root_uuid : str or None
        UUID of the file the document is in.
    metadata_only_file : str or None
        Name of the file that has the full document (a ``BinaryOnly`` document names one).
    """

    images: tuple[OmeImage, ...]
    notes: tuple[str, ...] = ()
    root_uuid: str | None = None
    metadata_only_file: str | None = None


def read_document(xml: str | bytes) -> OmeDocument:
    """Read the geometry out of an OME-XML document of any year, mending what is clear.

    Raises
    ------
    FormatError
        Not OME-XML, cut short, without any image, or with a DOCTYPE or entities of its own.

    Examples
    --------
    >>> xml = '<OME><Image><Pixels Type="uint8" SizeX="3" SizeY="2"/></Image></OME>'
    >>> image = read_document(xml).images[0]
    >>> image.size_x, image.size_z, image.order
    (3, 1, 'XYZCT')
    """
    notes: list[str] = []
    text = repair.clean_text(xml, notes)
    scan: _Scan = repair.parse(text, _Scan, notes)
    if not scan.images and scan.metadata_file is None:
        raise FormatError("the OME-XML has no Image with Pixels in it")
    images = tuple(_image(found, i, scan, notes) for i, found in enumerate(scan.images))
    # One line for each kind of trouble is enough, however many images have it.
    return OmeDocument(images, tuple(dict.fromkeys(notes)), scan.uuid, scan.metadata_file)


@dataclass(slots=True)
class _Found:
    """The attributes of an image as they stand in the document."""

    image: dict[str, str]
    pixels: dict[str, str] | None = None
    channels: list[dict[str, str]] = field(default_factory=list)
    old_channels: list[dict[str, str]] = field(default_factory=list)
    tiff_data: list[dict[str, str]] = field(default_factory=list)
    annotations: list[str] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)


class _Scan:
    """Collects, while the parser runs, the few elements that matter. Sees no others."""

    def __init__(self) -> None:
        self.images: list[_Found] = []
        self.uuid: str | None = None
        self.metadata_file: str | None = None
        self.pixel_types: dict[str, str] = {}
        self.closed = False
        self._depth = 0
        self._image: _Found | None = None
        self._in_pixels = False
        self._data: dict[str, str] | None = None
        self._text: list[str] | None = None
        self._annotations = False
        self._annotation: str | None = None

    # One flat function, because it runs for every element of documents with 100 000 of them.
    def start(self, name: str, attributes: dict[str, str]) -> None:  # noqa: C901, PLR0912
        depth = self._depth = self._depth + 1
        if ":" in name:
            name = name.rpartition(":")[2]
        if depth == 4:
            if name == "TiffData" and self._in_pixels and self._image is not None:
                self._data = attributes
                self._image.tiff_data.append(attributes)
            elif name == "Channel" and self._in_pixels and self._image is not None:
                self._image.channels.append(attributes)
        elif depth == 5:
            if self._data is not None and name == "UUID":
                self._data["UUID FileName"] = attributes.get("FileName", "")
                self._text = []
            elif self._annotation is not None and name == "M" and attributes.get("K") == "dtype":
                self._text = []
        elif depth == 3:
            self._start_third(name, attributes)
        elif depth == 2:
            if name == "Image":
                self._image = _Found(attributes)
            elif name == "BinaryOnly":
                self.metadata_file = attributes.get("MetadataFile")
            elif name == "StructuredAnnotations":
                self._annotations = True
        elif depth == 1:
            if name.upper() != "OME":
                raise FormatError(f"the document is not OME-XML: its root element is {name!r}")
            self.uuid = attributes.get("UUID")
        elif depth > repair.MAX_DEPTH:
            raise repair.too_deep()

    def _start_third(self, name: str, attributes: dict[str, str]) -> None:
        if self._image is not None:
            if name == "Pixels" and self._image.pixels is None:
                self._image.pixels = attributes
                self._in_pixels = True
            elif name in ("LogicalChannel", "ChannelInfo"):  # before 2009
                self._image.old_channels.append(attributes)
            elif name == "AnnotationRef":
                self._image.annotations.append(attributes.get("ID", ""))
            elif name == "StageLabel" and attributes.get("Name") == ORIGIN:
                self._image.origin = attributes
        elif (
            self._annotations
            and name == "MapAnnotation"
            and attributes.get("Namespace") == PIXEL_TYPE_NS
        ):
            self._annotation = attributes.get("ID", "")

    def end(self, name: str) -> None:
        depth = self._depth
        self._depth -= 1
        if depth == 5:
            if self._text is not None:
                text = "".join(self._text).strip()
                if self._data is not None:
                    self._data["UUID"] = text
                elif self._annotation is not None:
                    self.pixel_types[self._annotation] = text
                self._text = None
        elif depth == 4:
            self._data = None
        elif depth == 3:
            self._in_pixels = False
            self._annotation = None
        elif depth == 2:
            if self._image is not None and self._image.pixels is not None:
                self.images.append(self._image)
            self._image = None
            self._annotations = False
        elif depth == 1:
            self.closed = True

    def data(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)


def _image(found: _Found, index: int, scan: _Scan, notes: list[str]) -> OmeImage:
    pixels = found.pixels or {}
    where = f"image {index}"
    sizes = {axis: _size(pixels, axis, where, notes) for axis in "XYZCT"}
    order = pixels.get("DimensionOrder", "").strip().upper()
    if order not in ORDERS:
        notes.append(f"{where}: DimensionOrder {order or 'missing'}, taken as XYZCT")
        order = "XYZCT"
    # Documents of 2003 have the pixel sizes at the image, in microns, under another name.
    lengths = []
    for axis in "XYZ":
        name = f"PhysicalSize{axis}"
        if name not in pixels and f"PixelSize{axis}" in found.image:
            pixels = {**pixels, name: found.image[f"PixelSize{axis}"]}
        lengths.append(_quantity(pixels, name, "µm", length_unit, where, notes))
    if "TimeIncrement" not in pixels and "TimeIncrement" in found.image:
        pixels = {**pixels, "TimeIncrement": found.image["TimeIncrement"]}
    stored = [scan.pixel_types[a] for a in found.annotations if a in scan.pixel_types]
    return OmeImage(
        name=found.image.get("Name", ""),
        id=found.image.get("ID", ""),
        size_x=sizes["X"],
        size_y=sizes["Y"],
        size_z=sizes["Z"],
        size_c=sizes["C"],
        size_t=sizes["T"],
        order=order,
        type=(pixels.get("Type") or pixels.get("PixelType") or "").strip().lower(),
        big_endian=_boolean(pixels.get("BigEndian")),
        channels=_channels(found, sizes["C"], where, notes),
        physical_size=PhysicalSize(*lengths),
        time_increment=_quantity(pixels, "TimeIncrement", "s", time_unit, where, notes),
        tiff_data=tuple(_tiff_data(d) for d in found.tiff_data),
        stored_dtype=stored[0] if stored and stored[0] in NEAREST else None,
        position=PhysicalSize(*(_coordinate(found.origin, axis) for axis in "XYZ")),
    )


def _coordinate(attributes: dict[str, str], axis: str) -> Quantity | None:
    """Return where the first pixel lies along an axis; 0 and less are places, too."""
    value = repair.number(attributes.get(axis, ""))
    unit = repair.unit(attributes.get(f"{axis}Unit", ""), length_unit)
    return None if value is None or unit is None or not math.isfinite(value) else (value, unit)


def _size(pixels: dict[str, str], axis: str, where: str, notes: list[str]) -> int:
    text = pixels.get(f"Size{axis}")
    if text is not None and text.isascii() and text.isdecimal() and 0 < len(text) < 16:
        value: int | None = int(text)
    else:
        value = None if text is None else repair.size(text)
        if value is not None:
            notes.append(f"{where}: Size{axis}={text[:40]!r} read as {value}")  # type: ignore[index]
    if value is not None and value > 0:
        return value
    shown = "missing" if text is None else repr(text[:40])
    if axis in "XY":
        notes.append(f"{where}: Size{axis} {shown}, left to the pixels themselves")
        return 0
    notes.append(f"{where}: Size{axis} {shown}, taken as 1")
    return 1


def _quantity(
    attributes: dict[str, str],
    name: str,
    default: str,
    kind: Callable[[Any], str],
    where: str,
    notes: list[str],
) -> Quantity | None:
    text = attributes.get(name)
    if text is None or not text.strip():
        return None
    value = repair.number(text)
    if value == 0 and name == "TimeIncrement":
        return None  # what many writers put where there is only one time point
    if value is None or not 0 < value < math.inf:
        notes.append(f"{where}: {name}={text[:40]!r} makes no sense, left out")
        return None
    if "," in text:
        notes.append(f"{where}: {name}={text[:40]!r} read as {value}")
    given = attributes.get(f"{name}Unit")
    if given is None:
        return value, default
    unit = repair.unit(given, kind)
    if unit is None:
        notes.append(f"{where}: {name} is in {given[:40]!r}, which is no unit; left out")
        return None
    if unit != given:
        notes.append(f"{where}: {name}Unit={given[:40]!r} read as {unit!r}")
    return value, unit


def _boolean(text: str | None) -> bool | None:
    return None if text is None else text.strip().lower() in ("true", "1")


def _channels(found: _Found, size_c: int, where: str, notes: list[str]) -> tuple[OmeChannel, ...]:
    elements = found.channels or found.old_channels
    channels: list[OmeChannel] = []
    left = size_c
    for attributes in elements:
        samples = repair.size(attributes.get("SamplesPerPixel", "1")) or 1
        if not 0 < samples <= left:
            notes.append(f"{where}: the channels have more samples than SizeC={size_c}")
            samples = left
        if left <= 0:
            break
        left -= samples
        channels.append(
            OmeChannel(attributes.get("Name") or None, _color(attributes.get("Color")), samples)
        )
    if left:
        # A document without any Channel is complete; one with too few of them is not. Of a
        # SizeC that nobody can mean, the file itself will tell.
        if channels:
            notes.append(f"{where}: {left} of {size_c} channels have no Channel element")
        channels += [OmeChannel()] * min(left, 2**16)
    return tuple(channels)


def _color(text: str | None) -> tuple[int, int, int, int] | None:
    value = None if text is None else repair.size(text)
    if value is None or not -(2**31) <= value < 2**32:
        return None
    red, green, blue, alpha = (value >> shift & 255 for shift in (24, 16, 8, 0))
    return red, green, blue, alpha


def _tiff_data(attributes: dict[str, str]) -> TiffData:
    get = attributes.get
    return TiffData(
        _whole(get("FirstZ")),
        _whole(get("FirstC")),
        _whole(get("FirstT")),
        _whole(get("IFD")),
        _whole(get("PlaneCount") or get("NumPlanes")),
        get("UUID") or None,
        get("UUID FileName") or None,
    )


def _whole(text: str | None) -> int | None:
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and len(text) < 16:
        return int(text)
    value = repair.size(text)
    return value if value is not None and value >= 0 else None


# -- the document to store ------------------------------------------------------------------------


def document(
    images: Sequence[ImageSpec],
    *,
    metadata: OME | str | bytes | None = None,
    tiff: bool = False,
    creator: str = "bioio_tk",
) -> str:
    """Return the OME-XML to store with images, valid against the OME 2016-06 schema.

    Parameters
    ----------
    images : sequence of ImageSpec
        One Image each. DimensionOrder is XYZCT.
    metadata : ome_types.OME, str or bytes, optional
        Metadata to carry over: instruments, ROIs, annotations, the details of channels and of
        the planes that are still there. Geometry and pixel type always are those of `images`;
        names, colours, pixel sizes and the time increment are too where `images` has them. It
        is left as it is.
    tiff : bool
        Tell where the planes are in a TIFF file: Z fastest, then channel, then T, those of an
        image right after those of the one before. Else the document is ``MetadataOnly``.
    creator : str
        Who writes the file.

    Raises
    ------
    SpecError
        `metadata` is none of the above, or a unit of `images` is unknown.
    FormatError
        `metadata` is a document that cannot be read.

    Notes
    -----
    OME has no int64, uint64 and float16. They are called "double" and "float", and an
    annotation tells the true type; see `OmeImage.stored_dtype`.
    """
    if metadata is None:
        root = ET.Element(_tag("OME"))
    else:
        root = _source_tree(metadata)
        for element in root.findall(_tag("BinaryOnly")):
            root.remove(element)
        root.attrib.pop("UUID", None)  # is that of the source's file
    root.set("Creator", creator)
    _drop_pixel_types(root)
    elements = root.findall(_tag("Image"))
    for extra in elements[len(images) :]:
        root.remove(extra)
    ids = {e.get("ID") for e in elements[: len(images)]}
    ifd = 0
    for index, spec in enumerate(images):
        known = index < len(elements)
        element = elements[index] if known else ET.SubElement(root, _tag("Image"))
        if not element.get("ID"):
            element.set("ID", _free("Image", index, ids))
        if spec.name or "Name" not in element.attrib:
            element.set("Name", spec.name)
        if not element.get("Name"):
            element.attrib.pop("Name", None)
        _set_pixels(element, spec, index, ifd if tiff else None)
        _set_origin(element, spec.position)
        ifd += _planes(spec)
    _note_pixel_types(root, images)
    if metadata is not None:
        repair.make_valid(root)
    return repair.serialise(root)


def default_ome(images: Sequence[ImageSpec]) -> OME:
    """Return the metadata of images that have no document of their own."""
    return to_ome(document(images))


def to_ome(xml: str | bytes) -> OME:
    """Return a document as an ``ome_types.OME`` object, mended as by `read_document`.

    Raises
    ------
    FormatError
        The document cannot be read, or is not OME-XML, or an image in it has no size in X or Y
        or no pixel type of OME's (then ``document(images, metadata=xml)`` has one).
    """
    import ome_types

    root = _source_tree(xml)
    for index, element in enumerate(root.findall(_tag("Image"))):
        pixels = element.find(_tag("Pixels"))
        if pixels is None:
            continue
        lacking = [a for a in ("SizeX", "SizeY", "Type") if not pixels.get(a)]
        if lacking:
            raise FormatError(
                f"image {index} of the OME-XML has no valid {' and '.join(lacking)}: give the "
                "images of the file, which know"
            )
    repair.make_valid(root)
    # Bytes, because ome_types takes a str for the name of a file if there is one.
    document = repair.serialise(root).encode()
    from xsdata.exceptions import ParserError
    from xsdata.formats.dataclass.parsers.config import ParserConfig
    from xsdata_pydantic_basemodel.bindings import XmlContext

    # In an annotation anything may stand, and what is called like a class is made one: of all
    # classes of the process, unless those of OME are asked for.
    context = XmlContext()
    context.models_package = "ome_types"
    try:
        return ome_types.from_xml(document, parser_kwargs={"context": context})
    except ParserError:  # called like one of OME, but it does not fit: that is left out
        lenient = ParserConfig(fail_on_unknown_properties=False)
        return ome_types.from_xml(document, parser_kwargs={"context": context, "config": lenient})


def single(xml: str | bytes, number: int) -> str:
    """Return the document of one image of a set.

    Parameters
    ----------
    xml : str or bytes
        OME-XML of all images.
    number : int
        Which of the images with pixels, from 0.

    Returns
    -------
    str
        OME-XML without the other images, and without the wells and plates they are in; with no
        image where it has none of that number.

    Raises
    ------
    FormatError
        The document cannot be read.
    """
    whole = _shared_tree(xml)
    images = [e for e in whole.findall(_tag("Image")) if e.find(_tag("Pixels")) is not None]
    image = images[number] if number < len(images) else ET.Element(_tag("Image"))
    kept = [e for e in whole if e.tag != _tag("Image") or e is image]
    own = image.get("ID")
    found = [e if e is image else _without_others(e, own) for e in kept]
    root = ET.Element(whole.tag, whole.attrib)
    root.extend(e for e in found if e.tag != _tag("Plate") or e.find(_tag("Well")) is not None)
    return repair.serialise(root)


@lru_cache(maxsize=1)
def _shared_tree(xml: str | bytes) -> ET.Element:
    """Return a document as a tree, not to be changed: all images of a plate ask for theirs."""
    return repair.tree(xml, [])


def _without_others(element: ET.Element, image: str | None) -> ET.Element:
    """Return a part of the document without what it says of other images than one."""
    if element.tag == _tag("Dataset"):
        return _with_refs(element, "ImageRef", {image})
    if element.tag != _tag("Plate"):
        return element
    parts = [_well_of(e, image) if e.tag == _tag("Well") else e for e in element]
    samples = {e.get("ID") for part in parts for e in part.findall(_tag("WellSample"))}
    found = ET.Element(element.tag, element.attrib)
    for part in parts:
        if part.tag == _tag("PlateAcquisition"):
            found.append(_with_refs(part, "WellSampleRef", samples))
        elif part.tag != _tag("Well") or part.find(_tag("WellSample")) is not None:
            found.append(part)
    return found


def _well_of(well: ET.Element, image: str | None) -> ET.Element:
    """Return a well with the samples alone that are of an image."""
    found = ET.Element(well.tag, well.attrib)
    for part in well:
        refs = part.findall(_tag("ImageRef"))
        if part.tag != _tag("WellSample") or any(ref.get("ID") == image for ref in refs):
            found.append(part)
    return found


def _with_refs(element: ET.Element, name: str, known: set[str | None]) -> ET.Element:
    """Return an element whose references of one kind are to known ones."""
    found = ET.Element(element.tag, element.attrib)
    found.extend(e for e in element if e.tag != _tag(name) or e.get("ID") in known)
    return found


def _tag(name: str) -> str:
    return f"{{{OME_NS}}}{name}"


def _free(name: str, index: int, taken: set[str | None]) -> str:
    """Return the first unused ID from `index` on: the Nth image is Image:N where it can be."""
    while f"{name}:{index}" in taken:
        index += 1
    taken.add(f"{name}:{index}")
    return f"{name}:{index}"


def _source_tree(metadata: Any) -> ET.Element:
    """Return metadata as a tree of our own, in the schema of 2016, with all geometry sound."""
    if not isinstance(metadata, str | bytes):
        metadata = _xml_of(metadata)
    known = read_document(metadata)
    root = repair.tree(metadata, [])
    images = root.findall(_tag("Image"))
    for element in images:
        if element.find(_tag("Pixels")) is None:
            root.remove(element)
    found = root.findall(_tag("Image"))
    for index, (element, image) in enumerate(zip(found, known.images, strict=False)):
        _mend_image(element, image, index)
    return root


def _xml_of(metadata: Any) -> str:
    import ome_types

    if not isinstance(metadata, ome_types.OME):
        raise SpecError(
            f"metadata is a {type(metadata).__name__}: give an ome_types.OME object or an "
            "OME-XML document"
        )
    # to_xml() marks fields as set in the object it is given.
    return ome_types.to_xml(copy.deepcopy(metadata))


def _mend_image(element: ET.Element, image: OmeImage, index: int) -> None:
    pixels = element.find(_tag("Pixels"))
    if pixels is None:
        return
    for extra in element.findall(_tag("Pixels"))[1:]:
        element.remove(extra)
    element.set("ID", element.get("ID") or f"Image:{index}")
    pixels.set("ID", pixels.get("ID") or f"Pixels:{index}")
    pixels.set("DimensionOrder", image.order)
    for axis, size in (
        ("X", image.size_x),
        ("Y", image.size_y),
        ("Z", image.size_z),
        ("C", image.size_c),
        ("T", image.size_t),
    ):
        pixels.set(f"Size{axis}", str(size) if size else "")
    known = from_ome_type(image.type)
    pixels.set("Type", ome_type(known) or "" if known is not None else "")
    _set_sizes(pixels, image.physical_size, image.time_increment, replace=True)
    for n, channel in enumerate(pixels.findall(_tag("Channel"))):
        channel.set("ID", channel.get("ID") or f"Channel:{index}:{n}")
    if not any(pixels.find(_tag(n)) is not None for n in ("TiffData", "BinData", "MetadataOnly")):
        ET.SubElement(pixels, _tag("MetadataOnly"))


def _planes(spec: ImageSpec) -> int:
    _, _, z, c, t = spec.shape
    return z * (c // spec.samples) * t


def _set_pixels(element: ET.Element, spec: ImageSpec, index: int, ifd: int | None) -> None:
    """Give an Image the geometry of a spec; `ifd` is where its planes begin, None for no TIFF."""
    y, x, z, c, t = spec.shape
    count = c // spec.samples
    pixels = element.find(_tag("Pixels"))
    if pixels is None:
        pixels = ET.SubElement(element, _tag("Pixels"))
    type_ = NEAREST.get(spec.dtype.name) or ome_type(spec.dtype)
    if type_ is None:
        raise SpecError(f"OME-XML has no pixel type for {spec.dtype}")
    bits = _significant_bits(pixels, type_, spec)
    for name in ("Interleaved", "SignificantBits"):
        pixels.attrib.pop(name, None)
    pixels.set("ID", f"Pixels:{index}")
    pixels.set("DimensionOrder", "XYZCT")
    pixels.set("Type", type_)
    if bits:
        pixels.set("SignificantBits", str(bits))
    if spec.samples > 1:
        pixels.set("Interleaved", "true")
    pixels.set("BigEndian", "false")
    for axis, size in zip("XYZCT", (x, y, z, c, t), strict=True):
        pixels.set(f"Size{axis}", str(size))
    _set_sizes(pixels, spec.physical_size, spec.time_increment, replace=False)

    channels = _new_channels(pixels.findall(_tag("Channel")), spec, index)
    planes = _kept_planes(pixels.findall(_tag("Plane")), z, count, t)
    data: list[ET.Element]
    if ifd is None:
        data = [ET.Element(_tag("MetadataOnly"))]
    else:
        where = {"IFD": str(ifd), "PlaneCount": str(z * count * t)}
        data = [ET.Element(_tag("TiffData"), where | {f"First{a}": "0" for a in "ZCT"})]
    pixels[:] = [*channels, *data, *planes]


def _set_origin(element: ET.Element, position: PhysicalSize) -> None:
    """Say where the first pixel lies, where no one has said where the stage was."""
    found = element.find(_tag("StageLabel"))
    if found is not None and found.get("Name") != ORIGIN:
        return
    if found is not None:
        element.remove(found)
    given = {axis: q for axis, q in zip("XYZ", position, strict=True) if q is not None}
    if not any(value for value, _ in given.values()):
        return
    attributes = {"Name": ORIGIN}
    for axis, (value, unit) in given.items():
        attributes |= {axis: repr(float(value)), f"{axis}Unit": length_unit(unit)}
    pixels = list(element).index(element.find(_tag("Pixels")))  # type: ignore[arg-type]
    element.insert(pixels, ET.Element(_tag("StageLabel"), attributes))


def _significant_bits(pixels: ET.Element, type_: str, spec: ImageSpec) -> int | None:
    """How many bits count: those of the source, such as a 12-bit camera's, where still true."""
    if spec.dtype.kind == "c":
        return None
    whole = 1 if spec.dtype.kind == "b" else spec.dtype.itemsize * 8
    given = repair.size(pixels.get("SignificantBits", "0")) or 0
    if pixels.get("Type") == type_ and 0 < given <= whole:
        return given
    return whole


def _set_sizes(
    pixels: ET.Element, size: PhysicalSize, increment: Quantity | None, *, replace: bool
) -> None:
    for name, quantity, kind in (
        ("PhysicalSizeX", size.x, length_unit),
        ("PhysicalSizeY", size.y, length_unit),
        ("PhysicalSizeZ", size.z, length_unit),
        ("TimeIncrement", increment, time_unit),
    ):
        # The schema's numbers are 32-bit floats: what is smaller would be 0 there.
        usable = quantity is not None and repair.SMALLEST <= quantity[0] < math.inf
        if replace or usable:
            pixels.attrib.pop(name, None)
            pixels.attrib.pop(f"{name}Unit", None)
        if usable and quantity is not None:
            pixels.set(name, repr(float(quantity[0])))
            pixels.set(f"{name}Unit", kind(quantity[1]))


def _new_channels(found: list[ET.Element], spec: ImageSpec, index: int) -> list[ET.Element]:
    """One Channel per `samples` of C, with the details of the one that was there."""
    owner: list[ET.Element] = []  # by C
    c = spec.shape[3]
    for channel in found:
        samples = repair.size(channel.get("SamplesPerPixel", "1")) or 1
        owner += [channel] * max(1, min(samples, c - len(owner)))
        if len(owner) >= c:
            break
    used: set[int] = set()
    channels = []
    for n in range(c // spec.samples):
        first = n * spec.samples
        channel = ET.Element(_tag("Channel"))
        if first < len(owner):
            source = owner[first]
            if id(source) in used:  # an RGB channel that now is three
                source = copy.deepcopy(source)
            used.add(id(source))
            channel = source
        channel.set("ID", f"Channel:{index}:{n}")
        channel.set("SamplesPerPixel", str(spec.samples))
        if first < len(spec.channels):
            given = spec.channels[first]
            if given.name:
                channel.set("Name", given.name)
            if given.color is not None:
                channel.set("Color", packed(given.color))
        channels.append(channel)
    return channels


def packed(color: tuple[int, int, int, int]) -> str:
    """Return a colour as OME's signed 32-bit RGBA."""
    parts: Sequence[int] = color
    if len(parts) != 4 or not all(0 <= v <= 255 for v in parts):
        raise SpecError(f"colour {color!r}: give red, green, blue and alpha, 0 to 255 each")
    red, green, blue, alpha = (int(v) for v in color)
    value = red << 24 | green << 16 | blue << 8 | alpha
    return str(value - 2**32 if value >= 2**31 else value)


def _kept_planes(found: list[ET.Element], z: int, c: int, t: int) -> list[ET.Element]:
    kept = {}
    for plane in found:
        at = tuple(_whole(plane.get(f"The{axis}")) for axis in "ZCT")
        inside = all(i is not None and i < n for i, n in zip(at, (z, c, t), strict=True))
        if inside and at not in kept:
            # The checksum of pixels that may have changed.
            for digest in plane.findall(_tag("HashSHA1")):
                plane.remove(digest)
            kept[at] = plane
    return list(kept.values())


def _drop_pixel_types(root: ET.Element) -> None:
    for block in root.findall(_tag("StructuredAnnotations")):
        for annotation in list(block):
            if annotation.get("Namespace") != PIXEL_TYPE_NS:
                continue
            block.remove(annotation)
            for image in root.findall(_tag("Image")):
                for reference in image.findall(_tag("AnnotationRef")):
                    if reference.get("ID") == annotation.get("ID"):
                        image.remove(reference)


def _note_pixel_types(root: ET.Element, images: Sequence[ImageSpec]) -> None:
    """Annotate the images whose type OME has no name for, one annotation for each type."""
    names = sorted({s.dtype.name for s in images if s.dtype.name in NEAREST})
    if not names:
        return
    block = root.find(_tag("StructuredAnnotations"))
    if block is None:
        block = ET.SubElement(root, _tag("StructuredAnnotations"))
    for name in names:
        identifier = f"Annotation:bioio_tk-{name}"
        annotation = ET.SubElement(
            block,
            _tag("MapAnnotation"),
            {"ID": identifier, "Namespace": PIXEL_TYPE_NS},
        )
        value = ET.SubElement(annotation, _tag("Value"))
        ET.SubElement(value, _tag("M"), {"K": "dtype"}).text = name
        for element, spec in zip(root.findall(_tag("Image")), images, strict=True):
            if spec.dtype.name == name:
                ET.SubElement(element, _tag("AnnotationRef"), {"ID": identifier})
