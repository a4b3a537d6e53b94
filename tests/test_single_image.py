"""One image of a set: its metadata alone, and what a plate of many costs."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from bioio_tk.meta import ome

NS = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
PIXELS = (
    '<Pixels ID="Pixels:{n}" DimensionOrder="XYZCT" Type="uint8" SizeX="4" SizeY="3" SizeZ="1" '
    'SizeC="1" SizeT="1"><MetadataOnly/></Pixels>'
)
PLATE = """<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Dataset ID="Dataset:0"><ImageRef ID="Image:1"/><ImageRef ID="Image:3"/></Dataset>
<Plate ID="Plate:0" Name="screen">
<Well ID="Well:0" Row="0" Column="0">
<WellSample ID="WellSample:0" Index="0"><ImageRef ID="Image:0"/></WellSample>
<WellSample ID="WellSample:1" Index="1"><ImageRef ID="Image:1"/></WellSample></Well>
<Well ID="Well:1" Row="0" Column="1">
<WellSample ID="WellSample:2" Index="2"><ImageRef ID="Image:2"/></WellSample></Well>
<PlateAcquisition ID="PlateAcquisition:0"><Description>first run</Description>
<WellSampleRef ID="WellSample:0"/><WellSampleRef ID="WellSample:2"/></PlateAcquisition></Plate>
<Plate ID="Plate:1" Name="another"><Well ID="Well:2" Row="0" Column="0">
<WellSample ID="WellSample:3" Index="3"><ImageRef ID="Image:3"/></WellSample></Well></Plate>
{images}</OME>""".replace(
    "{images}",
    "".join(
        f'<Image ID="Image:{n}" Name="field {n}">{PIXELS.format(n=n)}</Image>' for n in range(5)
    ),
)


@pytest.mark.parametrize(
    ("number", "plates", "wells", "samples"),
    [
        (0, ["Plate:0"], ["Well:0"], ["WellSample:0"]),
        (1, ["Plate:0"], ["Well:0"], ["WellSample:1"]),
        (2, ["Plate:0"], ["Well:1"], ["WellSample:2"]),
        (3, ["Plate:1"], ["Well:2"], ["WellSample:3"]),
        (4, [], [], []),
    ],
)
def test_only_the_well_of_the_image(
    number: int, plates: list[str], wells: list[str], samples: list[str]
) -> None:
    root = ET.fromstring(ome.single(PLATE, number))
    assert [e.get("Name") for e in root.iter(f"{NS}Image")] == [f"field {number}"]
    for name, ids in (("Plate", plates), ("Well", wells), ("WellSample", samples)):
        assert [e.get("ID") for e in root.iter(NS + name)] == ids
    assert [e.get("ID") for e in root.iter(f"{NS}WellSampleRef")] == sorted(
        {"WellSample:0", "WellSample:2"} & set(samples)
    )
    assert [e.get("ID") for e in root.iter(f"{NS}ImageRef")] == [
        *([f"Image:{number}"] if number in (1, 3) else []),
        *([f"Image:{number}"] if samples else []),
    ]
    # nothing refers to what is not there any more: ome_types would warn, and warnings are errors
    assert [image.name for image in ome.to_ome(ome.single(PLATE, number)).images] == [
        f"field {number}"
    ]


def test_of_a_number_it_has_not_there_is_no_image() -> None:
    root = ET.fromstring(ome.single(PLATE, 5))
    assert not [*root.iter(f"{NS}Image"), *root.iter(f"{NS}ImageRef"), *root.iter(f"{NS}Plate")]
