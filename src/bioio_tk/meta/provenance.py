"""Provenance: how an image was made, in an annotation of its OME-XML, one for each step."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree as ET

from bioio_tk.errors import FormatError
from bioio_tk.meta import repair
from bioio_tk.meta.repair import OME_NS

NAMESPACE = "bioio_tk/provenance"
METADATA = "bioio_tk/metadata"
"""Namespace of what someone gave to be written along."""


def add(xml: str | bytes, step: dict[str, Any], namespace: str = NAMESPACE) -> str:
    """Return a document with one more step of how its image was made.

    Parameters
    ----------
    xml : str or bytes
        OME-XML.
    step : dict
        From words to what JSON can hold.
    namespace : str
        What kind of annotation it is.
    """
    root = repair.tree(xml, [])
    block = root.find(_t("StructuredAnnotations"))
    if block is None:
        block = ET.Element(_t("StructuredAnnotations"))
        after = [n for n, e in enumerate(root) if e.tag not in (_t("ROI"), _t("MetadataOnly"))]
        root.insert(after[-1] + 1 if after else 0, block)
    taken = {e.get("ID") for e in block}
    number = next(n for n in range(len(taken) + 1) if f"Annotation:bioio_tk-step-{n}" not in taken)
    identifier = f"Annotation:bioio_tk-step-{number}"
    annotation = ET.Element(_t("MapAnnotation"), {"ID": identifier, "Namespace": namespace})
    value = ET.SubElement(annotation, _t("Value"))
    for key, content in step.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        ET.SubElement(value, _t("M"), {"K": key}).text = text
    block.append(annotation)
    for image in root.findall(_t("Image")):
        reference = ET.Element(_t("AnnotationRef"), {"ID": identifier})
        places = [n for n, e in enumerate(image) if e.tag != _t("MicrobeamManipulationRef")]
        image.insert(places[-1] + 1 if places else 0, reference)
    return repair.serialise(root)


def read(xml: str | bytes | None) -> list[dict[str, str]]:
    """Return the steps a document tells of, the last one last; none for no document."""
    text = xml.decode(errors="replace") if isinstance(xml, bytes) else xml or ""
    if NAMESPACE not in text:
        return []
    try:
        root = repair.tree(text, [])
    except FormatError:
        return []
    return [
        {m.get("K", ""): m.text or "" for m in annotation.iter(_t("M"))}
        for annotation in root.iter(_t("MapAnnotation"))
        if annotation.get("Namespace") == NAMESPACE
    ]


def _t(name: str) -> str:
    return f"{{{OME_NS}}}{name}"
