"""Where the stage stood: positions of the images of an OME-XML document."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

from bioio_tk.core.spec import PhysicalSize, Quantity
from bioio_tk.core.units import length_unit
from bioio_tk.errors import SpecError

_NO_UNITS = ("pixel", "reference frame")


def stage_positions(xml: str) -> tuple[PhysicalSize, ...]:
    """Return where the first plane of each image lies along X, Y, Z; None where it does not say.

    Stages that do not know their own unit ("reference frame", which is meant where none is given)
    say nothing.

    >>> stage_positions('<OME><Image><Pixels><Plane PositionX="2" PositionXUnit="mm"/></Pixels>'
    ...                 '</Image><Image/></OME>')[0].x
    (2.0, 'mm')
    """
    try:
        root = ET.fromstring(xml)
    except ET.ParseError:
        return ()
    images = (element for element in root if _name(element) == "Image")
    return tuple(_of_first_plane(image) for image in images)


def _of_first_plane(image: ET.Element) -> PhysicalSize:
    plane = next((element for element in image.iter() if _name(element) == "Plane"), None)
    if plane is None:
        return PhysicalSize()
    return PhysicalSize(*(_quantity(plane, f"Position{axis}") for axis in "XYZ"))


def _quantity(plane: ET.Element, name: str) -> Quantity | None:
    try:
        value = float(plane.get(name, "nan"))
        unit = length_unit(plane.get(f"{name}Unit", "reference frame"))
    except (ValueError, SpecError):
        return None
    return (value, unit) if math.isfinite(value) and unit not in _NO_UNITS else None


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]
