"""OME-XML follows a selection: channels, planes and ROIs that are left, where they are now."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree as ET

import numpy as np

from bioio_tk.core.units import convert_length
from bioio_tk.errors import SpecError
from bioio_tk.meta import repair
from bioio_tk.meta.repair import OME_NS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.core.tiling import Span

_CORNERS = (("X", "Y"), ("X1", "Y1"), ("X2", "Y2"))
_LENGTHS = (("Width", "Height"), ("RadiusX", "RadiusY"))
_SIZES = ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ", "TimeIncrement")


class _Moved(NamedTuple):
    """Where a pixel of the image is in what was selected of it."""

    first: tuple[int, int]  # x, y
    step: tuple[int, int]
    scale: tuple[float, float]


def picked(
    xml: str | bytes,
    picks: tuple[Span, Span, Span, Span, Span],
    before: ImageSpec,
    full: tuple[int, int] | None = None,
) -> str:
    """Return the document of one image as it is for a selection of its pixels.

    Parameters
    ----------
    xml : str or bytes
        OME-XML of one image.
    picks : tuple of 5 range or integer array
        Positions along Y, X, Z, C, T.
    before : ImageSpec
        The whole image, at the resolution that is open.
    full : (int, int), optional
        Its height and width in pixels at full resolution, where that is another one.

    Returns
    -------
    str
        OME-XML with the channels, planes and shapes of ROIs that are left, in their new places.
        Sizes of pixels are left out, for the writer to put the right ones.
    """
    whole = zip(picks, before.shape, strict=True)
    full = full or before.shape[:2]
    everything = all(isinstance(p, range) and p == range(n) for p, n in whole)
    if everything and full == before.shape[:2]:
        return repair.clean_text(xml, [])
    root = repair.tree(xml, [])
    image = next((e for e in root.findall(_t("Image")) if e.find(_t("Pixels")) is not None), None)
    if image is None:
        return repair.serialise(root)
    pixels = image.find(_t("Pixels"))
    assert pixels is not None
    for name in _SIZES:
        pixels.attrib.pop(name, None)
        pixels.attrib.pop(f"{name}Unit", None)
    owner = _owners(pixels, before.shape[3])
    kept = [owner[int(c)] for c in picks[3]]
    places = _places(picks, owner, kept)
    _replace(pixels, "Channel", _once(kept))
    _replace(pixels, "Plane", list(_planes(pixels, places)))
    y, x = picks[:2]
    scale = (full[1] / before.shape[1], full[0] / before.shape[0])
    moved = _Moved((_first(x), _first(y)), (_step(x), _step(y)), scale)
    _move_stage(image.find(_t("StageLabel")), "", before, moved)
    for plane in pixels.findall(_t("Plane")):
        _move_stage(plane, "Position", before, moved)
    _move_rois(root, image, places, moved)
    return repair.serialise(root)


def _t(name: str) -> str:
    return f"{{{OME_NS}}}{name}"


def _owners(pixels: ET.Element, count: int) -> list[ET.Element | None]:
    """Return the Channel each position along C belongs to."""
    owner: list[ET.Element | None] = []
    for channel in pixels.findall(_t("Channel")):
        owner += [channel] * max(1, repair.size(channel.get("SamplesPerPixel", "1")) or 1)
    return (owner + [None] * count)[:count]


def _once(kept: list[ET.Element | None]) -> list[ET.Element]:
    """Return each channel once in a row; where one comes again, a copy of it."""
    found: list[ET.Element] = []
    last: ET.Element | None = None
    for channel in kept:
        if channel is None:
            channel = ET.Element(_t("Channel"))  # noqa: PLW2901
        elif channel is last:
            continue
        last = channel
        found.append(copy.deepcopy(channel) if any(channel is f for f in found) else channel)
    return found


def _places(
    picks: tuple[Span, ...], owner: list[ET.Element | None], kept: list[ET.Element | None]
) -> dict[str, dict[int, list[int]]]:
    """Return for Z, C, T where each old position is now."""

    def where(positions: list[int]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for new, old in enumerate(positions):
            found.setdefault(old, []).append(new)
        return found

    # planes count channels, not samples
    number: dict[int, int] = {}
    for channel in owner:
        number.setdefault(id(channel), len(number))
    channels = [number[id(c)] for n, c in enumerate(kept) if n == 0 or c is not kept[n - 1]]
    if None in owner:
        channels = [int(c) for c in picks[3]]
    z, t = ([int(v) for v in picks[axis]] for axis in (2, 4))
    return {"Z": where(z), "C": where(channels), "T": where(t)}


def _planes(pixels: ET.Element, places: dict[str, dict[int, list[int]]]) -> Iterator[ET.Element]:
    for plane in pixels.findall(_t("Plane")):
        old = {axis: _whole(plane.get(f"The{axis}")) for axis in places}
        new = {axis: places[axis].get(n, []) for axis, n in old.items() if n is not None}
        if len(new) < len(places):
            continue
        for z in new["Z"]:
            for c in new["C"]:
                for t in new["T"]:
                    moved = copy.deepcopy(plane)
                    for axis, n in zip("ZCT", (z, c, t), strict=True):
                        moved.set(f"The{axis}", str(n))
                    yield moved


def _replace(parent: ET.Element, name: str, new: list[ET.Element]) -> None:
    """Put other elements of a name in the place of those that are there."""
    at = next((n for n, e in enumerate(parent) if e.tag == _t(name)), len(parent))
    for element in parent.findall(_t(name)):
        parent.remove(element)
    parent[at:at] = new


def _whole(text: str | None) -> int | None:
    return None if text is None else repair.size(text)


def _first(pick: Span) -> int:
    return int(pick[0]) if len(pick) else 0


def _step(pick: Span) -> int:
    """Return the distance of picked positions; 0 where it is not everywhere the same."""
    steps = np.unique(np.diff(np.asarray(pick)))
    return 1 if not len(steps) else int(steps[0]) if len(steps) == 1 else 0


def _move_stage(label: ET.Element | None, name: str, before: ImageSpec, moved: _Moved) -> None:
    """Move what is said of the stage by as much as the first pixel has moved."""
    if label is None:
        return
    sizes = (before.physical_size.x, before.physical_size.y)
    for axis, size, first in zip("XY", sizes, moved.first, strict=True):
        value = repair.number(label.get(name + axis, ""))
        if value is None or size is None or not first:
            continue
        try:
            by = convert_length(size[0] * first, size[1], label.get(f"{name}{axis}Unit", ""))
        except SpecError:
            continue  # it is in the frame of the stage, whose unit nobody knows
        label.set(name + axis, repr(value + by))


def _move_rois(
    root: ET.Element, image: ET.Element, places: dict[str, dict[int, list[int]]], moved: _Moved
) -> None:
    """Move the shapes of the image's ROIs; drop those of planes that are gone."""
    mine = {ref.get("ID") for ref in image.findall(_t("ROIRef"))}
    for roi in root.findall(_t("ROI")):
        if roi.get("ID") not in mine:
            continue
        union = roi.find(_t("Union"))
        for shape in list(union) if union is not None else ():
            if not _move_shape(shape, places, moved):
                union.remove(shape)  # type: ignore[union-attr]
        if union is None or not len(union):
            root.remove(roi)
            for ref in image.findall(_t("ROIRef")):
                if ref.get("ID") == roi.get("ID"):
                    image.remove(ref)


def _move_shape(shape: ET.Element, places: dict[str, dict[int, list[int]]], moved: _Moved) -> bool:
    """Move a shape; False where it is on no plane that is left, or nowhere in particular."""
    for axis, where in places.items():
        old = _whole(shape.get(f"The{axis}"))
        if old is None:
            continue
        if old not in where:
            return False
        shape.set(f"The{axis}", str(where[old][0]))
    if min(moved.step) < 1:
        return False
    for names in _CORNERS:
        _change(shape, names, moved, move=True)
    for names in _LENGTHS:
        _change(shape, names, moved, move=False)
    points = shape.get("Points")
    if points is not None:
        shape.set("Points", " ".join(_moved_point(p, moved) for p in points.split()))
    return True


def _change(shape: ET.Element, names: tuple[str, str], moved: _Moved, *, move: bool) -> None:
    for name, first, step, scale in zip(names, *moved, strict=True):
        value = repair.number(shape.get(name, ""))
        if value is not None:
            shape.set(name, repr((value / scale - (first if move else 0)) / step))


def _moved_point(point: str, moved: _Moved) -> str:
    numbers = [repair.number(n) for n in point.split(",")]
    if len(numbers) != 2 or None in numbers:
        return point
    return ",".join(
        repr((n / scale - first) / step)  # type: ignore[operator]
        for n, first, step, scale in zip(numbers, *moved, strict=True)
    )
