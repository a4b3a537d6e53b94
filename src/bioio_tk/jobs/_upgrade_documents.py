"""Documents of Zarr 2 and NGFF 0.1 to 0.4 to those of Zarr 3 and NGFF 0.5."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeGuard

from bioio_tk.errors import DamagedFileError, UnsupportedError
from bioio_tk.meta.ngff import AXIS_KINDS, inner_path, usable, yxzct
from bioio_tk.meta.ngff_write import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bioio_tk.core.plate import Plate
    from bioio_tk.meta.ngff import Group, Multiscale

_KEYS = (
    *("multiscales", "omero", "labels", "image-label"),
    *("plate", "well", "series", "bioformats2raw.layout"),
)
_KINDS = MappingProxyType({"u": "uint", "i": "int", "f": "float", "c": "complex", "b": "bool"})
_BLOSC = ("lz4", "lz4hc", "blosclz", "zstd", "snappy", "zlib")
_SIZES = MappingProxyType({"u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)})


# -- arrays ---------------------------------------------------------------------------------------


def array_document(
    old: Mapping[str, Any],
    attributes: Mapping[str, Any],
    names: Sequence[str] | None,
    where: str,
) -> dict[str, Any]:
    """Return the ``zarr.json`` that describes the chunks of a Zarr 2 array as they are.

    Parameters
    ----------
    old : mapping
        ``.zarray``.
    attributes : mapping
        ``.zattrs``.
    names : sequence of str or None
        Names of the axes.
    where : str
        Path of the array, for messages.

    Raises
    ------
    DamagedFileError
        Something is missing in `old`.
    UnsupportedError
        Zarr 3 has no words for it.
    """
    shape, chunks = array_shape(old, where)
    kind, endian, itemsize = _dtype(old.get("dtype"), where)
    separator = old.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise UnsupportedError(f"{where!r}: dimension_separator {separator!r} is neither . nor /")
    document: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": kind,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "v2", "configuration": {"separator": separator}},
        "fill_value": _fill_value(old.get("fill_value"), kind, where),
        "codecs": _codecs(old, endian, itemsize, where),
        "attributes": plain(attributes),
    }
    given = attributes.get("_ARRAY_DIMENSIONS")
    if names is None and isinstance(given, list) and len(given) == len(shape):
        names = [str(name) for name in given]
    if names is not None and len(names) == len(shape):
        document["dimension_names"] = list(names)
    return document


def array_shape(old: Mapping[str, Any], where: str) -> tuple[list[int], list[int]]:
    """Return the size of an array and of its chunks; DamagedFileError without them."""
    shape, chunks = old.get("shape"), old.get("chunks")
    if not _sizes(shape, 0) or not _sizes(chunks, 1) or len(shape) != len(chunks):
        raise DamagedFileError(
            f"{where!r}: shape {shape!r:.80} and chunks {chunks!r:.80} of the array are not usable"
        )
    return shape, chunks


def _sizes(values: Any, least: int) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values
    )


def _dtype(dtype: Any, where: str) -> tuple[str, str | None, int]:
    match = re.fullmatch(r"([<>|])([uifcb])(\d+)", dtype) if isinstance(dtype, str) else None
    size = int(match[3]) if match else 0
    if match is None or size not in _SIZES.get(match[2], (1,)):
        raise UnsupportedError(
            f"{where!r}: pixels of type {dtype!r:.80} cannot be described in Zarr 3; "
            "whole numbers, floating point, complex and true/false can"
        )
    endian = None if size == 1 else "big" if match[1] == ">" else "little"
    return _KINDS[match[2]] + ("" if match[2] == "b" else str(8 * size)), endian, size


def _fill_value(value: Any, kind: str, where: str) -> Any:
    """Return what a missing chunk is full of; Zarr 2 may leave it open, and readers take 0."""
    value = _number(value)
    if kind.startswith("complex"):
        value = [0.0, 0.0] if value is None else value
        pair = isinstance(value, list) and len(value) == 2
        if pair and all(_is_float(v) for v in value):
            return value
        if _is_float(value):
            return [value, 0.0]
    elif value is None:
        return False if kind == "bool" else 0
    elif kind == "bool" and value in (0, 1):
        return bool(value)
    elif kind.startswith("float") and _is_float(value):
        return value
    elif "int" in kind and isinstance(value, (int, float)) and value == int(value):
        bits, low = int(kind.lstrip("uint")), 0
        if kind.startswith("int"):
            bits, low = bits - 1, -(2 ** (bits - 1))
        if low <= value < 2**bits:
            return int(value)
    raise UnsupportedError(
        f"{where!r}: fill_value {value!r:.40} does not fit pixels of type {kind}"
    )


def _number(value: Any) -> Any:
    """Return a number that was written as a text, as some do; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value):
        return float(value) if "." in value else int(value)
    return value


def _is_float(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value  # noqa: PLR0124 - not NaN
    return (number and abs(value) < float("inf")) or value in ("NaN", "Infinity", "-Infinity")


def _codecs(
    old: Mapping[str, Any], endian: str | None, itemsize: int, where: str
) -> list[dict[str, Any]]:
    codecs: list[dict[str, Any]] = []
    ndim = len(old["shape"])
    if old.get("order") == "F" and ndim > 1:
        order = list(reversed(range(ndim)))
        codecs.append({"name": "transpose", "configuration": {"order": order}})
    filters = [_codec(f, _FILTERS, itemsize, where) for f in old.get("filters") or ()]
    codecs += filters
    codecs.append({"name": "bytes", **({"configuration": {"endian": endian}} if endian else {})})
    if old.get("compressor") is not None:
        codecs.append(_codec(old["compressor"], _COMPRESSORS, itemsize, where))
    return codecs


def _codec(
    config: Any,
    known: Mapping[str, Callable[[Mapping[str, Any], int], dict[str, Any]]],
    itemsize: int,
    where: str,
) -> dict[str, Any]:
    name = config.get("id") if isinstance(config, dict) else None
    if not isinstance(name, str) or name not in known:
        raise UnsupportedError(
            f"{where!r}: codec {name or config!r:.60} has no counterpart in Zarr 3 that is known "
            f"to read the same; {', '.join(known)} can be upgraded"
        )
    return known[name](config, itemsize)


def _blosc(config: Mapping[str, Any], itemsize: int) -> dict[str, Any]:
    shuffle = _whole(config, "shuffle", 1, -1, 2)
    if shuffle == -1:  # numcodecs chooses by the size of a pixel
        shuffle = 2 if itemsize == 1 else 1
    cname = config.get("cname", "lz4")
    return {
        "name": "blosc",
        "configuration": {
            "typesize": itemsize,
            "cname": cname if cname in _BLOSC else "lz4",
            "clevel": _whole(config, "clevel", 5, 0, 9),
            "shuffle": ("noshuffle", "shuffle", "bitshuffle")[shuffle],
            "blocksize": _whole(config, "blocksize", 0, 0, 2**31),
        },
    }


def _whole(config: Mapping[str, Any], key: str, usual: int, low: int, high: int) -> int:
    """Return a number that Zarr 3 allows. A reader needs none of them, they tell a writer."""
    value = config.get(key, usual)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and low <= value <= high else usual


def _zstd(config: Mapping[str, Any], itemsize: int) -> dict[str, Any]:
    level, checksum = _whole(config, "level", 0, -131072, 22), bool(config.get("checksum", False))
    return {"name": "zstd", "configuration": {"level": level, "checksum": checksum}}


def _gzip(config: Mapping[str, Any], itemsize: int) -> dict[str, Any]:
    return {"name": "gzip", "configuration": {"level": _whole(config, "level", 1, 0, 9)}}


def _numcodecs(config: Mapping[str, Any], itemsize: int) -> dict[str, Any]:
    more = {key: plain(value) for key, value in config.items() if key != "id"}
    return {"name": f"numcodecs.{config['id']}", "configuration": more}


_COMPRESSORS = MappingProxyType(
    {
        "blosc": _blosc,
        "zstd": _zstd,
        "gzip": _gzip,
        **dict.fromkeys(("zlib", "bz2", "lz4", "lzma"), _numcodecs),
    }
)
_FILTERS = MappingProxyType({"delta": _numcodecs})


# -- groups ---------------------------------------------------------------------------------------


def group_attributes(
    old: Mapping[str, Any], group: Group, shapes: Mapping[str, Sequence[int]], where: str
) -> dict[str, Any]:
    """Return the attributes of a group as 0.5 has them: what is of NGFF lies under ``ome``.

    Parameters
    ----------
    old : mapping
        ``.zattrs``.
    group : Group
        What they say.
    shapes : mapping of str to list of int
        Sizes of all arrays below the group.
    where : str
        Path of the group, for messages.

    Raises
    ------
    DamagedFileError
        An array of an image is missing.
    """
    if not group.version:
        return dict(plain(old))
    ome = {key: plain(old[key]) for key in _KEYS if key in old}
    for key in ("omero", "well", "image-label"):
        if isinstance(ome.get(key), dict):
            ome[key].pop("version", None)
    if "multiscales" in ome:
        ome["multiscales"] = [
            _multiscale(entry, image, shapes, where)
            for entry, image in zip(ome["multiscales"], group.multiscales, strict=True)
        ]
    if group.plate is not None:
        ome["plate"] = {**ome["plate"], "version": "0.5", **_wells(ome["plate"], group.plate)}
    dropped = {*_KEYS, "version"} if "multiscales" in old or "version" not in old else set(_KEYS)
    rest = {key: value for key, value in old.items() if key not in dropped}
    return {"ome": {"version": "0.5", **ome}, **plain(rest)}


def _multiscale(
    entry: dict[str, Any], image: Multiscale, shapes: Mapping[str, Sequence[int]], where: str
) -> dict[str, Any]:
    sizes = []
    for dataset in image.datasets:
        if dataset.path not in shapes:
            raise DamagedFileError(f"{where!r}: there is no array {dataset.path!r}")
        sizes.append(shapes[dataset.path])
    new = {key: value for key, value in entry.items() if key != "version"}
    new["axes"] = _axes(entry.get("axes"), image, len(sizes[0]))
    ndim = len(new["axes"])
    new["datasets"] = []
    for dataset, size in zip(entry["datasets"], sizes, strict=True):
        if len(size) != ndim:
            raise DamagedFileError(
                f"{where!r}: the array {dataset['path']!r} has {len(size)} axes, the image {ndim}"
            )
        factor = [a / b if b else 1.0 for a, b in zip(sizes[0], size, strict=True)]
        steps = _steps(dataset.get("coordinateTransformations"), factor)
        steps = steps or [{"type": "scale", "scale": factor}]
        path = inner_path(dataset["path"], "dataset", where)
        new["datasets"].append({**dataset, "path": path, "coordinateTransformations": steps})
    outer = _steps(new.pop("coordinateTransformations", None), [1.0] * ndim)
    return {**new, "coordinateTransformations": outer} if outer else new


def _axes(old: Any, image: Multiscale, ndim: int) -> list[dict[str, Any]]:
    if image.axes is None:
        order = yxzct(None, ndim)
        letters = {at: letter for letter, at in zip("yxzct", order, strict=True)}
        return [{"name": letters[i], "type": AXIS_KINDS[letters[i]]} for i in range(ndim)]
    axes = []
    for entry, axis in zip(old, image.axes, strict=True):
        kind = axis.type or AXIS_KINDS.get(axis.name.lower())
        known = {"name": axis.name, **({"type": kind} if kind else {})}
        axes.append({**known, **entry} if isinstance(entry, dict) else known)
    return axes


def _steps(old: Any, scale: list[float]) -> list[dict[str, Any]]:
    """Return the transformations that 0.5 knows, with a scale in front; [] for none at all."""
    steps = [
        {"type": kind, kind: step[kind]}
        for step in (old if isinstance(old, list) else [])
        for kind in ("scale", "translation")
        if isinstance(step, dict) and step.get("type") == kind
        if usable(step.get(kind), kind, len(scale))
    ]
    if steps and steps[0]["type"] != "scale":
        steps.insert(0, {"type": "scale", "scale": scale})
    return steps


def _wells(old: dict[str, Any], plate: Plate) -> dict[str, Any]:
    """Return rows, columns and wells with all that 0.4 and later ask for."""
    described = {well.get("path"): well for well in old.get("wells", ()) if isinstance(well, dict)}
    return {
        "rows": [{"name": name} for name in plate.rows],
        "columns": [{"name": name} for name in plate.columns],
        "wells": [
            {
                **described.get(well.path, {}),
                "path": well.path,
                "rowIndex": plate.rows.index(well.row),
                "columnIndex": plate.columns.index(well.column),
            }
            for well in plate.wells
        ],
    }
