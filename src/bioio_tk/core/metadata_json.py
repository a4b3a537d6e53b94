"""What was said of one frame, as JSON: quickly where it is plain, and nothing else lost if not."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from numbers import Real
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np

from bioio_tk.errors import SpecError

SPECIAL_KEYS: dict[str, str] = {
    "delta_t": "seconds",
    "exposure_time": "seconds",
    **dict.fromkeys(("position_x", "position_y", "position_z"), "micrometers"),
}
"""Keys that OME has a place for, and what their numbers count."""
LARGEST_ARRAY = 65536
"""Elements of an array that still is a note on a frame; a larger one is an image."""

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class _UnfitError(Exception):
    """JSON has no place for a value."""


def frame_document(metadata: Mapping[Any, Any]) -> tuple[bytes, tuple[str, ...]]:
    """Return the metadata of one frame as JSON, and the keys of what JSON cannot hold.

    Parameters
    ----------
    metadata : mapping
        Keys become text. Values may be what JSON has, NumPy scalars and small arrays, dates and
        times (as ISO 8601 writes them), durations (in seconds), paths, enumerations, sets,
        dataclasses, pydantic models, and all of these inside each other. What is not finite
        becomes the text "NaN", "Infinity" or "-Infinity".

    Returns
    -------
    document : bytes
        JSON, in ASCII.
    left_out : tuple of str
        Where the values are that are missing in it, such as ``"camera.handle"``.

    Raises
    ------
    SpecError
        `metadata` is no mapping, or one of the `SPECIAL_KEYS` is no number.

    Examples
    --------
    >>> frame_document({"delta_t": 0.5, "gain": np.float32(2)})
    (b'{"delta_t":0.5,"gain":2.0}', ())
    >>> frame_document({"camera": {"name": "A", "handle": object()}})
    (b'{"camera":{"name":"A"}}', ('camera.handle',))
    """
    if not isinstance(metadata, Mapping):
        raise SpecError(
            f"the metadata of a frame is a {type(metadata).__name__}: give a dict, such as "
            '{"delta_t": 0.5, "exposure_time": 0.01}'
        )
    for key in SPECIAL_KEYS:
        if key in metadata:
            _check_number(key, metadata[key])
    if type(metadata) is dict and all(type(key) is str for key in metadata):
        try:
            return _encode(metadata).encode("ascii"), ()
        except (TypeError, ValueError, RecursionError):
            pass  # something in it is not plain
    left_out: list[str] = []
    document = _mapping(metadata, "", left_out, frozenset())
    return _encode(document).encode("ascii"), tuple(left_out)


def _check_number(key: str, value: Any) -> None:
    if value is None or type(value) is float or type(value) is int:
        return
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    number = isinstance(value, (Real, Decimal)) and not isinstance(value, bool)
    if key in ("delta_t", "exposure_time"):
        number = number or isinstance(value, dt.timedelta)
    if not number:
        raise SpecError(
            f"the frame's metadata has {key}={value!r:.80}: give a number of {SPECIAL_KEYS[key]}, "
            "or leave it out"
        )


def _mapping(
    values: Mapping[Any, Any], where: str, left_out: list[str], above: frozenset[int]
) -> dict[str, Any]:
    """Return a mapping as JSON has it; what does not fit is left out and listed."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = _name(key)
        try:
            if name in found:  # 1 and "1" are two keys, but not in JSON
                raise _UnfitError
            found[name] = _value(value, f"{where}{name}.", left_out, above | {id(values)})
        except (_UnfitError, RecursionError):
            left_out.append(f"{where}{name}")
    return found


def _name(key: Any) -> str:
    if isinstance(key, Enum):
        key = key.value
    return key if type(key) is str else str(key)


def _value(value: Any, where: str, left_out: list[str], above: frozenset[int]) -> Any:
    """Return a value as JSON has it; `above` are the containers it is in."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, (np.generic, np.ndarray)):
        value = _numpy(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (str, PurePath, UUID)):
        return str(value)
    if isinstance(value, (Real, Decimal)):
        return _number(value)
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, (dt.date, dt.time)):  # a datetime is a date
        return value.isoformat()
    return _container(value, where, left_out, above)


def _container(value: Any, where: str, left_out: list[str], above: frozenset[int]) -> Any:
    if id(value) in above:
        raise _UnfitError
    inside = above | {id(value)}
    if isinstance(value, Mapping):
        return _mapping(value, where, left_out, above)
    if isinstance(value, (list, tuple)):
        return [_value(v, where, left_out, inside) for v in value]
    if isinstance(value, AbstractSet):
        return [_value(v, where, left_out, inside) for v in sorted(value, key=_rank)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return _mapping({f.name: getattr(value, f.name) for f in fields}, where, left_out, inside)
    dump = getattr(value, "model_dump", None)  # of pydantic
    if callable(dump) and not isinstance(value, type):
        return _mapping(dump(), where, left_out, inside)
    raise _UnfitError


def _rank(value: Any) -> tuple[bool, Any, str]:
    """Return what sorts a set the same way each time: numbers first, then all else as text."""
    number = isinstance(value, Real)
    return not number, value if number else 0, f"{type(value).__name__} {value}"


def _numpy(value: Any) -> Any:
    """Return an array or a scalar of NumPy as Python's own."""
    if value.size > LARGEST_ARRAY or value.dtype.kind in "VO":
        raise _UnfitError
    if value.dtype.kind == "M":
        value = value.astype(str)
    elif value.dtype.kind == "m":
        value = value / np.timedelta64(1, "s")
    return value.tolist()


def _number(value: Any) -> int | float | str:
    if isinstance(value, int):
        if abs(value) >= 10**4000:  # Python refuses to write it down
            raise _UnfitError
        return int(value)
    if isinstance(value, (Decimal, Fraction)):
        value = _as_float(value)
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")


def _as_float(value: Decimal | Fraction) -> float:
    try:
        return float(value)
    except (OverflowError, ValueError) as exc:
        raise _UnfitError from exc
