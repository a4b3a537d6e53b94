"""One job of a batch: what it is, what became of it, and how it is named."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bioio_tk.backends import registry
from bioio_tk.errors import SpecError

SPLIT_FIELDS = {"c": "c", "t": "t", "z": "z", "series": "s"}
"""What an image can be split by, in the order of their places in a name, and the field of each."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done with one source.

    Attributes
    ----------
    number : int
        Its place in the batch, from 0.
    source : str
        A path, a URL, or the file pattern of the files that become one image.
    target : str
        The file to make; where the image is split, the one of its first part.
    options : dict
        Keywords of `convert`.
    split : tuple of str
        What the image is split by, each of `SPLIT_FIELDS`.
    template : str
        Where it is split: the path of the files, with a field in braces for each of `split`.
    size : int
        Bytes of the source on disk, as far as known.
    java : bool
        It is read through Bio-Formats.
    """

    number: int
    source: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    split: tuple[str, ...] = ()
    template: str = ""
    size: int = 0
    java: bool = False


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """What became of one job.

    Attributes
    ----------
    source, target : str
        The two files; see `targets` where there are several.
    status : str
        ``"done"``, ``"skipped"``, ``"planned"`` or ``"failed"``.
    error, kind : str
        Of what failed: why, and the class of the exception. "" else.
    seconds : float
        Time it took, the last attempt.
    bytes_in, bytes_out : int
        Size of the files on disk.
    pixel_bytes : int
        Size of the pixels, uncompressed.
    attempts : int
        How often it was tried.
    checksums : dict
        As `ConvertReport` has them, where they were asked for; of an image that is split, for each
        of its files.
    notes : tuple of str
        What is worth knowing.
    targets : tuple of str
        All files that were made, where an image was split.
    may_pass : bool
        It failed of what may be over at another attempt: the network, memory.
    """

    source: str
    target: str
    status: str
    error: str = ""
    kind: str = ""
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    pixel_bytes: int = 0
    attempts: int = 1
    checksums: Any = None
    notes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    may_pass: bool = False


def stem(name: str) -> str:
    """Return a file name without what says its format.

    >>> stem("cells.ome.tif"), stem("a.b.czi"), stem("plate.zarr"), stem("scan")
    ('cells', 'a.b', 'plate', 'scan')
    """
    lower = name.lower()
    double = next((s for s in _double_suffixes() if lower.endswith(s) and lower != s), "")
    return name[: -len(double)] if double else Path(name).stem


@cache
def _double_suffixes() -> list[str]:
    """Return the endings that are two in one, ``.ome.tif``, the longest first."""
    rows = registry.rows()
    known = {s for row in rows for _, suffixes in registry.kinds(row) for s in suffixes}
    known.update(s for row in rows for s in row.suffixes)
    return sorted((s for s in known if s.count(".") > 1), key=len, reverse=True)


def fields_of(template: str) -> list[str]:
    """Return the names in braces; SpecError for what is no template of names.

    >>> fields_of("{name}_c{c:02d}")
    ['name', 'c']
    """
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as exc:
        raise SpecError(
            f"name={template!r}: {exc}; write for example '{{name}}_c{{c}}_t{{t}}'"
        ) from exc
    odd = next((name for name in found if not name.isidentifier()), None)
    if odd is not None:
        raise SpecError(f"name={template!r}: {{{odd}}} is no name of a field; see the manual")
    return found


def fill_in(template: str, values: dict[str, Any]) -> str:
    """Return a template with its fields filled in.

    >>> fill_in("{name}_c{c}_z{z:03}", {"name": "cells", "c": 1, "z": 12})
    'cells_c1_z012'
    """
    unknown = [name for name in fields_of(template) if name not in values]
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in sorted(values))
        raise SpecError(f"name={template!r}: {{{unknown[0]}}} is not known here; there are {known}")
    try:
        return template.format(**values)
    except (ValueError, TypeError) as exc:
        raise SpecError(f"name={template!r}: {exc}") from exc
