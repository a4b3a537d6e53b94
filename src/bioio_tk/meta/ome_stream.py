"""OME-XML of an acquisition: the document of what was recorded, and that of an image that grows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

from bioio_tk.core.dtype import ome_type
from bioio_tk.core.units import length_unit, time_unit
from bioio_tk.errors import SpecError
from bioio_tk.meta import repair
from bioio_tk.meta.ome import NEAREST, ORIGIN, PIXEL_TYPE_NS, packed
from bioio_tk.meta.ome_absent import Absent, absent_annotation, absent_id
from bioio_tk.meta.ome_notes import notes_xml
from bioio_tk.meta.ome_order import dimension_order, live_order, live_sizes
from bioio_tk.meta.ome_text import escaped, map_annotation, pair, quantity, urn
from bioio_tk.meta.ome_wells import plate_xml, stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from bioio_tk.core.acquisition import (
        AcquiredChannel,
        AcquiredPosition,
        AcquisitionPlan,
        ImageRecord,
    )
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import Quantity

FRAME_NS = "bioio_tk/frame-metadata"
"""Namespace of the annotation with what was said of one plane."""
CREATOR = "bioio_tk"

_PLACES = ("position_x", "position_y", "position_z")
_NUMBERS = {
    key: (f' {name}="', f'" {name}Unit="{unit}"')
    for key, name, unit in (
        ("delta_t", "DeltaT", "s"),
        ("exposure_time", "ExposureTime", "s"),
        *((place, f"Position{place[-1].upper()}", "µm") for place in _PLACES),
    )
}
"""What stands before and after the number."""
_DIGITS = 10  # of 2,147,483,647, the largest number of planes that other programs can count


@dataclass(frozen=True, slots=True)
class StreamImage:
    """One image of an acquisition, as its document has it.

    Attributes
    ----------
    record : ImageRecord
        What was recorded.
    name : str
        Name of the image.
    file, uuid : str or None
        The file it is in, relative to the document, and that file's UUID; None for the file of
        the document.
    first_ifd : int
        Number of the directory of its first plane; the others follow in the order taken.
    ifds : int or None
        How many directories it has; None for one for every plane of its shape. Bio-Formats
        cannot read an image that has fewer.
    shape : Shape5 or None
        Its size; None for what the planes need.
    """

    record: ImageRecord
    name: str
    file: str | None = None
    uuid: str | None = None
    first_ifd: int = 0
    ifds: int | None = None
    shape: Shape5 | None = None


class StreamDocument:
    """The documents of an acquisition that is over: one text, with the planes of some images.

    Parameters
    ----------
    plan : AcquisitionPlan
        What was going to be recorded.
    images : sequence of StreamImage
        What was, in the order of the document.
    notes : mapping of str to mapping
        What was said of the whole acquisition, by namespace; JSON can hold it.
    tiff : bool
        Tell where the planes are in TIFF files. Else the document is ``MetadataOnly``.

    Notes
    -----
    Text, not elements of a tree: 100,000 planes have 100,000 annotations. What does not depend on
    the file is made once: a plate of 384 files has 384 documents of 384 images.
    """

    def __init__(
        self,
        plan: AcquisitionPlan,
        images: Sequence[StreamImage],
        notes: Mapping[str, Mapping[str, Any]],
        *,
        tiff: bool,
    ) -> None:
        self._plan = plan
        self._images = tuple(images)
        self._notes = notes
        self._tiff = tiff

    def xml(self, *, uuid: str, planes_of: AbstractSet[int] | None = None) -> bytes:
        """Return the document of one file.

        Parameters
        ----------
        uuid : str
            Of the file.
        planes_of : set of int or None
            The positions whose planes are told about, one by one; None for all.
        """
        out, annotations = BytesIO(), StringIO()
        out.write(_opening(uuid).encode())
        out.write(self._plate)
        for n, image in enumerate(self._images):
            head, tail = self._texts[n]
            out.write(head)
            if planes_of is None or image.record.position in planes_of:
                planes = StringIO()
                for plane, annotation in _planes(self._plan, image, n):
                    planes.write(plane)
                    annotations.write(annotation)
                out.write(planes.getvalue().encode())
            out.write(tail)
        if annotations.tell() or self._annotations:
            out.write(b"<StructuredAnnotations>")
            out.write(annotations.getvalue().encode())
            out.write(self._annotations)
            out.write(b"</StructuredAnnotations>")
        out.write(b"</OME>")
        return out.getvalue()

    @cached_property
    def _plate(self) -> bytes:
        positions = [self._plan.positions[image.record.position] for image in self._images]
        return plate_xml(self._plan, positions).encode()

    @cached_property
    def _texts(self) -> list[tuple[bytes, bytes]]:
        """What stands before and after the planes of each image."""
        order = dimension_order(self._plan.order)
        texts = []
        for n, image in enumerate(self._images):
            data = "<MetadataOnly/>"
            if self._tiff:
                count = self._planes(image) if image.ifds is None else image.ifds
                data = _tiff_data(self._plan, image, count, order)
            sizes = dict(zip(("SizeZ", "SizeC", "SizeT"), self._shape(image)[2:], strict=True))
            shown = {name: str(size) for name, size in sizes.items()}
            head = _head(self._plan, image.record.position, image.name, n)
            pixels = _pixels(self._plan, n, shown, order or "XYZCT")
            channels = _channels(self._plan.channels, sizes["SizeC"], n)
            tail = _tail(self._plan, absent=any(self._absent(image)), number=n)
            texts.append((f"{head}{pixels}{channels}{data}".encode(), tail.encode()))
        return texts

    @cached_property
    def _annotations(self) -> bytes:
        parts = [_pixel_type(self._plan)]
        for n, image in enumerate(self._images):
            absent = self._absent(image)
            if any(absent):
                parts.append(absent_annotation(self._plan, absent, n))
        return "".join(parts).encode() + notes_xml(self._notes)

    def _shape(self, image: StreamImage) -> Shape5:
        return image.shape or image.record.shape(self._plan)

    def _planes(self, image: StreamImage) -> int:
        return math.prod(self._shape(image)[2:])

    def _absent(self, image: StreamImage) -> Absent:
        missing = range(image.record.planes, self._planes(image))
        return Absent(image.record.skipped, (missing,) if missing else ())


def stream_xml(
    plan: AcquisitionPlan,
    images: Sequence[StreamImage],
    notes: Mapping[str, Mapping[str, Any]],
    *,
    uuid: str,
    tiff: bool,
    planes_of: AbstractSet[int] | None = None,
    binary_only: tuple[str, str] | None = None,
) -> bytes:
    """Return the document of an acquisition; see `StreamDocument` for several of one.

    Parameters
    ----------
    plan, images, notes, tiff, uuid, planes_of
        As in `StreamDocument`.
    binary_only : (str, str), optional
        Name and UUID of the file that has the document; this one only says so.

    Returns
    -------
    bytes
        UTF-8, valid against the schema of OME 2016-06.
    """
    if binary_only is not None:
        file, other = binary_only
        refers = f'<BinaryOnly MetadataFile="{escaped(file)}" UUID="{urn(other)}"/>'
        return f"{_opening(uuid)}{refers}</OME>".encode()
    return StreamDocument(plan, images, notes, tiff=tiff).xml(uuid=uuid, planes_of=planes_of)


def live_xml(
    plan: AcquisitionPlan, position: int, name: str, *, uuid: str
) -> tuple[bytes, Mapping[str, tuple[int, int]]]:
    """Return the document of one image while it grows, and where its numbers stand.

    Parameters
    ----------
    plan : AcquisitionPlan
        What is going to be recorded.
    position : int
        Which image.
    name : str
        Its name.
    uuid : str
        Of its file.

    Returns
    -------
    xml : bytes
        A document of one image with one plane; its planes are the directories of the file from
        the first on, in the order taken.
    places : mapping of str to (int, int)
        Where ``SizeZ``, ``SizeC``, ``SizeT`` and ``PlaneCount`` stand: offset and length, in
        bytes. `live_numbers` has what goes there, in as many digits.
    """
    order = live_order(plan.order)
    numbers = live_numbers(plan, 1)
    shown = {key: _digits(value) for key, value in numbers.items()}
    most = live_sizes(plan.order, plan.order.planes)["SizeC"]
    # A reader asks for as many Channels as SizeC says: none fit where it changes.
    fixed = len(plan.channels) == most == numbers["SizeC"]
    text = (
        f"{_opening(uuid)}{_head(plan, position, name, 0)}{_pixels(plan, 0, shown, order)}"
        f"{_channels(plan.channels, most, 0) if fixed else ''}"
        f'<TiffData IFD="0" PlaneCount="{shown["PlaneCount"]}"/>{_tail(plan, False, 0)}'
    )
    annotation = _pixel_type(plan)
    if annotation:
        text += f"<StructuredAnnotations>{annotation}</StructuredAnnotations>"
    xml = f"{text}</OME>".encode()
    # No value has a quotation mark in it, so this finds the attributes and nothing else.
    starts = {key: xml.index(f' {key}="'.encode()) + len(key) + 3 for key in numbers}
    return xml, {key: (start, _DIGITS) for key, start in starts.items()}


def live_numbers(plan: AcquisitionPlan, planes: int) -> dict[str, int]:
    """Return the numbers for the places in `live_xml` when `planes` planes are there.

    Sizes are those of whole rounds of the slowest axis, and so is PlaneCount: Bio-Formats takes
    an image with fewer directories than SizeZ x SizeC x SizeT for one of another size. There has
    to be a directory for each, also of planes that are still to come. ``f"{number:010}"`` is
    what goes into the file.
    """
    sizes = live_sizes(plan.order, planes)
    return {**sizes, "PlaneCount": math.prod(sizes.values())}


# -- the parts of a document ----------------------------------------------------------------------


def _opening(uuid: str) -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{repair.OME_NS}" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:schemaLocation="{repair.OME_NS} {repair.OME_NS}/ome.xsd" '
        f'Creator="{CREATOR}" UUID="{urn(uuid)}">'
    )


def _head(plan: AcquisitionPlan, position: int, name: str, number: int) -> str:
    """Return the Image up to its Pixels."""
    text = f'<Image ID="Image:{number}" Name="{escaped(name)}">'
    if plan.created:
        text += f"<AcquisitionDate>{escaped(plan.created)}</AcquisitionDate>"
    return text + _stage_label(plan, plan.positions[position])


def _stage_label(plan: AcquisitionPlan, position: AcquiredPosition) -> str:
    """Say where the first pixel lies, or where the stage was: there is only one label."""
    places: Sequence[Quantity | None] = plan.image.position
    name = ORIGIN
    if not any(place is not None and place[0] for place in places):
        places = [None if v is None else (v, "µm") for v in stage(position)]
        name = position.name
    given = {axis: place for axis, place in zip("XYZ", places, strict=True) if place is not None}
    if not given:
        return ""
    shown = {axis: (value, length_unit(unit)) for axis, (value, unit) in given.items()}
    text = "".join(f' {k}="{float(v)!r}" {k}Unit="{unit}"' for k, (v, unit) in shown.items())
    return f'<StageLabel Name="{escaped(name)}"{text}/>'


def _pixels(plan: AcquisitionPlan, number: int, sizes: Mapping[str, str], order: str) -> str:
    """Return the start tag of Pixels."""
    spec = plan.image
    name = NEAREST.get(spec.dtype.name) or ome_type(spec.dtype)
    if name is None:
        raise SpecError(f"OME-XML has no pixel type for {spec.dtype}")
    y, x = spec.shape[:2]
    bits = 1 if spec.dtype.kind == "b" else spec.dtype.itemsize * 8
    significant = "" if spec.dtype.kind == "c" else f' SignificantBits="{bits}"'
    text = (
        f'<Pixels ID="Pixels:{number}" DimensionOrder="{order}" Type="{name}"{significant} '
        f'BigEndian="false" SizeX="{x}" SizeY="{y}" SizeZ="{sizes["SizeZ"]}" '
        f'SizeC="{sizes["SizeC"]}" SizeT="{sizes["SizeT"]}"'
    )
    for axis, length in zip("XYZ", spec.physical_size, strict=True):
        if length is not None:
            text += quantity(f"PhysicalSize{axis}", length[0], length_unit(length[1]))
    if spec.time_increment is not None:
        value, unit = spec.time_increment
        text += quantity("TimeIncrement", value, time_unit(unit))
    return f"{text}>"


def _channels(channels: Sequence[AcquiredChannel], count: int, number: int) -> str:
    text = []
    for c in range(count):
        text.append(f'<Channel ID="Channel:{number}:{c}" SamplesPerPixel="1"')
        if c < len(channels):
            text.append(_channel(channels[c]))
        text.append("/>")
    return "".join(text)


def _channel(channel: AcquiredChannel) -> str:
    """Return the attributes of a channel that is known."""
    text = ""
    if channel.name:
        text += f' Name="{escaped(channel.name)}"'
    waves = (("Excitation", channel.excitation_nm), ("Emission", channel.emission_nm))
    for name, wavelength in waves:
        if wavelength is not None:
            text += quantity(f"{name}Wavelength", wavelength, "nm")
    if channel.fluorophore:
        text += f' Fluor="{escaped(channel.fluorophore)}"'
    if channel.color is not None:
        text += f' Color="{packed(channel.color)}"'
    return text


def _tiff_data(plan: AcquisitionPlan, image: StreamImage, count: int, order: str | None) -> str:
    """Say which directory has which plane: in one element if the order has a name."""
    inside = ""
    if image.uuid is not None:
        file = "" if image.file is None else f' FileName="{escaped(image.file)}"'
        inside = f"<UUID{file}>{urn(image.uuid)}</UUID>"
    if order is not None:
        text = f'<TiffData IFD="{image.first_ifd}" PlaneCount="{count}"'
        return f"{text}>{inside}</TiffData>" if inside else f"{text}/>"
    parts = []
    for plane in range(count):
        z, c, t = plan.order.key(plane)
        parts.append(
            f'<TiffData FirstZ="{z}" FirstC="{c}" FirstT="{t}" IFD="{image.first_ifd + plane}" '
            f'PlaneCount="1">{inside}</TiffData>'
        )
    return "".join(parts)


def _planes(plan: AcquisitionPlan, image: StreamImage, number: int) -> Iterator[tuple[str, str]]:
    """Yield the Plane of each plane there is something to say of, and its annotation."""
    places = dict(zip(_PLACES, stage(plan.positions[image.record.position]), strict=True))
    where = {name: value for name, value in places.items() if value is not None}
    key, planes = plan.order.key, image.record.planes
    told = False
    for n, said in image.record.metadata():
        if n >= planes:
            break
        if where and not told and n:  # programs look for the place of the stage in the first one
            yield _plane((0, 0, 0), where, "")[0], ""
        told = True
        yield _plane(key(n), {**where, **said} if where else said, f"Annotation:{number}:{n}")
    if where and not told and planes:
        yield _plane((0, 0, 0), where, "")[0], ""


def _plane(at: tuple[int, int, int], said: Mapping[str, Any], identifier: str) -> tuple[str, str]:
    z, c, t = at
    text = f'<Plane TheZ="{z}" TheT="{t}" TheC="{c}"'
    others = []
    for key, value in said.items():
        known = _NUMBERS.get(key)
        if known is None or not _is_number(value):
            others.append(pair(key, value))
        else:
            text += f"{known[0]}{float(value)!r}{known[1]}"
    if not others:
        return f"{text}/>", ""
    annotation = (
        f'<MapAnnotation ID="{identifier}" Namespace="{FRAME_NS}"><Value>{"".join(others)}'
        "</Value></MapAnnotation>"
    )
    return f'{text}><AnnotationRef ID="{identifier}"/></Plane>', annotation


def _is_number(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    # A whole number may be too large for a float.
    return type(value) is int and -(10**300) < value < 10**300


def _tail(plan: AcquisitionPlan, absent: bool, number: int) -> str:
    """Return the end of an Image, with what refers to its annotations."""
    refs = ""
    if plan.image.dtype.name in NEAREST:
        refs += f'<AnnotationRef ID="{_pixel_type_id(plan)}"/>'
    if absent:
        refs += f'<AnnotationRef ID="{absent_id(number)}"/>'
    return f"</Pixels>{refs}</Image>"


def _pixel_type_id(plan: AcquisitionPlan) -> str:
    return f"Annotation:bioio_tk-{plan.image.dtype.name}"


def _pixel_type(plan: AcquisitionPlan) -> str:
    """Tell the true type of pixels that OME has no name for."""
    name = plan.image.dtype.name
    if name not in NEAREST:
        return ""
    return map_annotation(_pixel_type_id(plan), PIXEL_TYPE_NS, {"dtype": name})


def _digits(number: int) -> str:
    return f"{number:0{_DIGITS}}"
