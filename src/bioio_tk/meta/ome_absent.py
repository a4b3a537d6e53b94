"""Planes without pixels: how an OME-XML document lists them, and how to read that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from bioio_tk.meta import repair
from bioio_tk.meta.ome_text import map_annotation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bioio_tk.core.acquisition import AcquisitionPlan

ABSENT_NS = "bioio_tk/planes-without-pixels"
"""Namespace of the annotation that lists the planes which were skipped, or never came."""


class Absent(NamedTuple):
    """Planes of an image that have no pixels and read as 0, by their number in the order taken."""

    skipped: tuple[range, ...] = ()
    missing: tuple[range, ...] = ()


def absent_planes(xml: bytes | str) -> tuple[Absent, ...]:
    """Return what a document of ours says of planes without pixels, for each of its images."""
    root = repair.tree(xml, [])
    space = f"{{{repair.OME_NS}}}"
    known = {}
    for annotation in root.iter(f"{space}MapAnnotation"):
        if annotation.get("Namespace") == ABSENT_NS:
            pairs = {m.get("K"): m.text or "" for m in annotation.iter(f"{space}M")}
            found = Absent(*(_ranges(pairs.get(key, "")) for key in Absent._fields))
            known[annotation.get("ID")] = found
    images = []
    for image in root.iter(f"{space}Image"):
        refs = [ref.get("ID") for ref in image.findall(f"{space}AnnotationRef")]
        images.append(next((known[ref] for ref in refs if ref in known), Absent()))
    return tuple(images)


def absent_id(number: int) -> str:
    """Return the ID of the annotation of an image."""
    return f"Annotation:{number}:absent"


def absent_annotation(plan: AcquisitionPlan, absent: Absent, number: int) -> str:
    """Return the annotation that lists the planes of an image."""
    pairs = {key: _listed(ranges) for key, ranges in absent._asdict().items() if ranges}
    pairs["order"] = " ".join(axis.letter for axis in plan.order.axes)
    return map_annotation(absent_id(number), ABSENT_NS, pairs)


def _listed(ranges: Sequence[range]) -> str:
    """Return ranges as people write them.

    >>> _listed((range(3, 6), range(9, 10)))
    '3-5, 9'
    """
    return ", ".join(f"{r.start}-{r.stop - 1}" if len(r) > 1 else f"{r.start}" for r in ranges if r)


def _ranges(text: str) -> tuple[range, ...]:
    found = re.findall(r"(\d+)(?:-(\d+))?", text)
    return tuple(range(int(first), int(last or first) + 1) for first, last in found)
