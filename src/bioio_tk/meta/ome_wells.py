"""The Plate of an OME-XML document, for the positions of an acquisition."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bioio_tk.meta.ome_text import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bioio_tk.core.acquisition import AcquiredPosition, AcquisitionPlan


def plate_xml(plan: AcquisitionPlan, positions: Sequence[AcquiredPosition]) -> str:
    """Return the Plate with the wells of the images at these positions; "" for none."""
    if plan.plate is None:
        return ""
    wells: dict[tuple[str, str], list[int]] = {}
    for n, position in enumerate(positions):
        if position.row is not None and position.column is not None:
            wells.setdefault((position.row, position.column), []).append(n)
    rows = _all_names(plan.plate.rows, [row for row, _ in wells])
    columns = _all_names(plan.plate.columns, [column for _, column in wells])
    text = ['<Plate ID="Plate:0"']
    if plan.plate.name:
        text.append(f' Name="{escaped(plan.plate.name)}"')
    for kind, names in (("Row", rows), ("Column", columns)):
        text.append(f' {kind}s="{len(names)}"{_convention(kind, names)}')
    text.append(">")
    for (row, column), numbers in wells.items():
        r, c = rows[row], columns[column]
        text.append(f'<Well ID="Well:{r}:{c}" Row="{r}" Column="{c}">')
        text += [_well_sample(n, positions[n]) for n in numbers]
        text.append("</Well>")
    if wells:
        text.append(_run(plan, wells))
    text.append("</Plate>")
    return "".join(text)


def _all_names(names: Sequence[str], used: Sequence[str]) -> dict[str, int]:
    """Return the number of each row or column of a plate; after them come those it lacks."""
    return {name: n for n, name in enumerate(dict.fromkeys([*names, *used]))}


def _convention(kind: str, names: Mapping[str, int]) -> str:
    for what, fits in (("number", str.isdecimal), ("letter", str.isalpha)):
        if names and all(map(fits, names)):
            return f' {kind}NamingConvention="{what}"'
    return ""


def _well_sample(number: int, position: AcquiredPosition) -> str:
    text = f'<WellSample ID="WellSample:{number}" Index="{number}"'
    for axis, value in zip("XY", stage(position)[:2], strict=True):
        if value is not None:
            text += f' Position{axis}="{float(value)!r}" Position{axis}Unit="µm"'
    return f'{text}><ImageRef ID="Image:{number}"/></WellSample>'


def _run(plan: AcquisitionPlan, wells: Mapping[tuple[str, str], list[int]]) -> str:
    """Return the one run over the plate, with all its fields."""
    most = max(map(len, wells.values()))
    start = f' StartTime="{escaped(plan.created)}"' if plan.created else ""
    refs = [f'<WellSampleRef ID="WellSample:{n}"/>' for numbers in wells.values() for n in numbers]
    return (
        f'<PlateAcquisition ID="PlateAcquisition:0" MaximumFieldCount="{most}"{start}>'
        f"{''.join(refs)}</PlateAcquisition>"
    )


def stage(position: AcquiredPosition) -> tuple[float | None, float | None, float | None]:
    """Return where the stage was along X, Y, Z, in µm."""
    places = (position.x_um, position.y_um, position.z_um)
    x, y, z = (v if v is not None and math.isfinite(v) else None for v in places)
    return x, y, z
