"""What was said of a whole acquisition, as OME-XML has it, and a document in which it changes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from bioio_tk.meta.ome_text import map_annotation

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOTE = re.compile(
    rb'\s*<MapAnnotation\s(?=[^<]*?\bID="Annotation:note-\d+")(?:[^">]|"[^"]*")*>'
    rb".*?</MapAnnotation>",
    re.DOTALL,
)
_END = b"</StructuredAnnotations>"


def notes_xml(notes: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return an annotation for each namespace; JSON can hold the values."""
    parts = []
    for n, (namespace, values) in enumerate(notes.items()):
        pairs = {key: json.dumps(value) for key, value in values.items()}
        parts.append(map_annotation(f"Annotation:note-{n}", namespace, pairs))
    return "".join(parts).encode()


def renoted(document: bytes, notes: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return a document with these notes in place of those it has; all else stays as it is."""
    text = notes_xml(notes)
    head, end, tail = _NOTE.sub(b"", document).rpartition(_END)
    if end:
        return head + text + end + tail
    if not text:
        return document
    before, close, after = document.rpartition(b"</OME>")
    return before + b"<StructuredAnnotations>" + text + _END + close + after
