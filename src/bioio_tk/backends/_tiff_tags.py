"""What stands in the tags of a TIFF, and what its vendor put there, for people to read."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tifffile import TiffFile

_LAYOUT = {"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts", "FreeOffsets"}
"""Tags that say where the pixels lie; there may be millions of values."""
_MOST_VALUES = 256
"""Values of a list that are given."""


def tags_of(tif: TiffFile) -> dict[str, Any]:
    """Return the tags of the first page by name, then each vendor's own metadata by its name.

    Parameters
    ----------
    tif : tifffile.TiffFile
        An open file.

    Returns
    -------
    dict
        Values are what JSON has: texts, numbers, True, None, lists, dicts.
    """
    found = {tag.name: _plain(tag.value) for tag in tif.pages.first.tags if tag.name not in _LAYOUT}
    for vendor in sorted(tif.flags):
        more = _metadata(tif, vendor)
        if more:
            found[vendor] = _plain(more)
    return found


def _metadata(tif: Any, vendor: str) -> Any:
    try:
        return getattr(tif, f"{vendor}_metadata", None)
    except Exception:  # tifffile raises whatever a broken tag leads it to; the others are fine
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.reshape(-1)[: _MOST_VALUES + 1].tolist() if value.ndim else value.item()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value[:_MOST_VALUES]]
        return items if len(value) <= _MOST_VALUES else [*items, "…"]
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return value if isinstance(value, (str, bool, int, float, type(None))) else str(value)
