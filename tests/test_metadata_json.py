"""What is said of a frame, as JSON: nothing is lost silently, and it never fails at the end."""

from __future__ import annotations

import datetime as dt
import enum
import json
import uuid
from collections import ChainMap, OrderedDict, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import pydantic
import pytest

from bioio_tk.core.metadata_json import frame_document
from bioio_tk.errors import SpecError


class Mode(enum.Enum):
    FAST = "fast"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Stage:
    x: float
    name: Any = None


class Model(pydantic.BaseModel):
    path: PurePosixPath
    inner: Any = None


def loaded(metadata):
    """Return what a strict reader of JSON finds, and the keys that were left out."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    document, left_out = frame_document(metadata)
    return json.loads(document, parse_constant=refuse), left_out


PLAIN = [
    {},
    {"delta_t": 0.5, "exposure_time": 1, "position_x": -1e9, "position_y": 0, "position_z": 2.5},
    {"a": [1, [2, {"b": None}], "é\n\u0000"], "c": True, "d": {"e": {}}},
    {"big": 2**70, "small": 5e-324},
]


@pytest.mark.parametrize("metadata", PLAIN)
def test_plain_values_come_back_as_they_were(metadata):
    assert loaded(metadata) == (metadata, ())


CONVERTED = {
    "float32": (np.float32(0.5), 0.5),
    "float64": (np.float64(0.1), 0.1),
    "uint16": (np.uint16(65535), 65535),
    "bool": (np.bool_(True), True),
    "str_": (np.str_("a"), "a"),
    "array": (np.arange(6, dtype="u2").reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
    "0-d array": (np.array(2.5), 2.5),
    "text array": (np.array(["a", "b"]), ["a", "b"]),
    "datetime64": (np.datetime64("2026-11-21T12:00:00"), "2026-11-21T12:00:00"),
    "timedelta64": (np.timedelta64(1500, "ms"), 1.5),
    "datetime": (dt.datetime(2026, 11, 21, tzinfo=dt.UTC), "2026-11-21T00:00:00+00:00"),
    "date": (dt.date(2026, 11, 21), "2026-11-21"),
    "time": (dt.time(1, 2, 3), "01:02:03"),
    "timedelta": (dt.timedelta(minutes=1, milliseconds=500), 60.5),
    "path": (PurePosixPath("/a/b"), "/a/b"),
    "uuid": (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    "enum": (Mode.FAST, "fast"),
    "int enum": (Level.HIGH, 3),
    "set": ({10, 9, -1}, [-1, 9, 10]),
    "mixed set": ({5, "b", 2.5, "a"}, [2.5, 5, "a", "b"]),
    "frozenset": (frozenset({"b", "a"}), ["a", "b"]),
    "tuple": ((1, (2, "x")), [1, [2, "x"]]),
    "named tuple": (namedtuple("Pair", "a b")(1, np.int8(2)), [1, 2]),  # noqa: PYI024
    "dataclass": (Stage(1.5, Stage(np.float32(2))), {"x": 1.5, "name": {"x": 2.0, "name": None}}),
    "pydantic": (Model(path="/a", inner=Mode.FAST), {"path": "/a", "inner": "fast"}),
    "ordered": (OrderedDict(a=np.int32(1)), {"a": 1}),
    "chain": (ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
    "proxy": (MappingProxyType({"a": {1, 2}}), {"a": [1, 2]}),
    "decimal": (Decimal("0.25"), 0.25),
    "fraction": (Fraction(1, 4), 0.25),
    "nan": (float("nan"), "NaN"),
    "infinity": (float("inf"), "Infinity"),
    "minus infinity": (np.float32("-inf"), "-Infinity"),
    "nan inside": ({"a": [1.0, float("nan")]}, {"a": [1.0, "NaN"]}),
    "NaT": (np.datetime64("NaT"), "NaT"),
    "lone surrogate": ("\ud800", "\ud800"),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_values_that_python_has_and_json_has_not(name):
    value, expected = CONVERTED[name]
    document, left_out = loaded({"before": 1, "value": value, "after": [value]})
    assert document == {"before": 1, "value": expected, "after": [expected]}
    assert left_out == ()


def test_keys_become_text():
    keys = {1: "a", 2.5: "b", None: "c", (1, 2): "d", Mode.FAST: "e", np.int16(7): "f"}
    assert loaded(keys) == (
        {"1": "a", "2.5": "b", "None": "c", "(1, 2)": "d", "fast": "e", "7": "f"},
        (),
    )


def test_two_keys_that_are_one_in_json():
    assert loaded({1: "number", "1": "text"}) == ({"1": "number"}, ("1",))


UNFIT = {
    "object": object(),
    "bytes": b"abc",
    "complex": 1j,
    "function": len,
    "class": Model,
    "dataclass itself": Stage,
    "large array": np.zeros((300, 300)),
    "array of objects": np.array([object()]),
    "record": np.zeros(1, "i4,f4"),
    "list": [1, object()],
    "huge number": 10**5000,
    "generator": (n for n in range(3)),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_json_cannot_hold_is_left_out_and_named(name):
    metadata = {"delta_t": 1.5, "bad": UNFIT[name], "in": {"bad": UNFIT[name], "good": 1}}
    assert loaded(metadata) == ({"delta_t": 1.5, "in": {"good": 1}}, ("bad", "in.bad"))


def test_what_contains_itself():
    loop: dict[str, Any] = {"good": 1}
    loop["self"] = loop
    items: list[Any] = [1]
    items.append(items)
    stage = Stage(1.0)
    stage.name = stage
    found = loaded({"loop": loop, "items": items, "stage": stage, "twice": [loop["good"]] * 2})
    assert found == (
        {"loop": {"good": 1}, "stage": {"x": 1.0}, "twice": [1, 1]},
        ("loop.self", "items", "stage.name"),
    )


def test_the_same_value_twice_is_no_circle():
    shared = {"a": {1}}
    assert loaded({"x": shared, "y": [shared, shared]}) == (
        {"x": {"a": [1]}, "y": [{"a": [1]}, {"a": [1]}]},
        (),
    )


def test_what_is_nested_too_deeply():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert loaded({"deep": deep, "good": 1}) == ({"good": 1}, ("deep",))


@pytest.mark.parametrize(
    "value", [1, 2.5, np.float32(2.5), np.int64(3), np.array(2.5), Decimal("1.5"), Fraction(1, 2)]
)
@pytest.mark.parametrize("key", ["delta_t", "exposure_time", "position_x", "position_z"])
def test_special_keys_take_any_number(key, value):
    document, left_out = loaded({key: value})
    assert document == {key: float(value)}
    assert left_out == ()


def test_special_keys_may_be_unknown_or_not_finite():
    assert loaded({"delta_t": None, "position_y": float("nan")}) == (
        {"delta_t": None, "position_y": "NaN"},
        (),
    )
    assert loaded({"delta_t": dt.timedelta(seconds=2)}) == ({"delta_t": 2.0}, ())


@pytest.mark.parametrize("value", ["1.5", True, np.bool_(True), [1], {}, 1j, np.array([1, 2])])
@pytest.mark.parametrize("key", ["delta_t", "exposure_time", "position_x", "position_y"])
def test_special_keys_take_nothing_else(key, value):
    with pytest.raises(SpecError, match=f"{key}=.*give a number of (seconds|micrometers)") as info:
        frame_document({"ok": 1, key: value})
    assert repr(value)[:20] in str(info.value)


def test_a_duration_is_no_place():
    with pytest.raises(SpecError, match="position_x="):
        frame_document({"position_x": dt.timedelta(seconds=2)})


@pytest.mark.parametrize("value", [[("delta_t", 1)], "text", 5, None])
def test_metadata_that_is_no_mapping(value):
    with pytest.raises(SpecError, match=f"is a {type(value).__name__}: give a dict"):
        frame_document(value)


def test_the_document_is_one_line_of_ascii():
    document, _ = frame_document({"a\n": "é\n\u2028", "b": [1, 2]})
    assert document.isascii()
    assert b"\n" not in document


def test_nothing_of_the_callers_is_changed():
    inner = [1, {2}]
    metadata = {"a": inner, "b": np.arange(3)}
    frame_document(metadata)
    assert metadata["a"] is inner
    assert inner == [1, {2}]
