"""Plain values to NGFF (OME-Zarr) metadata, versions 0.4 and 0.5."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioio_tk.core.spec import ImageSpec, PhysicalSize, Quantity, at_level
from bioio_tk.core.units import convert_length
from bioio_tk.errors import SpecError
from bioio_tk.meta.ngff_axes import AXIS_KINDS, unit_word

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bioio_tk.core.acquisition import StoredAxis
    from bioio_tk.core.plate import Plate, Well

WRITABLE_VERSIONS = ("0.4", "0.5")

RED, GREEN, BLUE = "FF0000", "00FF00", "0000FF"
CYAN, MAGENTA, YELLOW, WHITE = "00FFFF", "FF00FF", "FFFF00", "FFFFFF"
PALETTES: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {1: (WHITE,), 2: (MAGENTA, GREEN), 3: (RED, GREEN, BLUE)}
)
"""Colours of channels without one, by their number: what vizarr and OMERO's viewers show."""
MANY = (CYAN, YELLOW, MAGENTA, RED, GREEN, BLUE)
"""The same for more than three, over and over."""

_VISIBLE = 6  # more channels at once are mud, and more than most viewers mix
_NAME = re.compile(r"[A-Za-z0-9]+")


def image_attributes(
    spec: ImageSpec,
    *,
    version: str,
    axes: str = "tczyx",
    paths: Sequence[str],
    method: str,
    windows: Sequence[tuple[float, float, float, float] | None] | None = None,
    stored: Sequence[StoredAxis] | None = None,
) -> dict[str, Any]:
    """Return the attributes of the group of an image.

    Parameters
    ----------
    spec : ImageSpec
        The image. Its name, channels, sizes and position are written; what it does not know
        is not: without a size the scale is 1 and has no unit.
    version : {"0.4", "0.5"}
        Of NGFF.
    axes : str
        The axes of the arrays: ``"tczyx"`` or what is left of it when some are dropped.
    paths : sequence of str
        Where the array of each level lies, the full resolution first.
    method : str
        How the levels were made (see `core.downsample`); "" for an image without any.
        All but "nearest" put the centre of a large pixel amid the small ones, which is written
        as a translation.
    windows : sequence of (min, max, start, end) or None
        Range and shown range of each channel; without, those of the pixel type.
    stored : sequence of StoredAxis, optional
        The axes of the arrays, with names, kinds, units, sizes and translations of their own,
        in place of `axes` and of what `spec` says of these. NGFF asks for time first and space
        last; any other order is taken too, and is for the caller to warn of.

    Raises
    ------
    SpecError
        The arguments do not fit each other.

    Notes
    -----
    https://ngff.openmicroscopy.org/0.5/#multiscale-md and #omero-md.
    """
    if stored is None:
        _check(version, axes, spec)
        described = [_axis(spec, letter) for letter in axes]
    else:
        _check_stored(version, stored, spec)
        described = [_own_axis(axis) for axis in stored]
    document: dict[str, Any] = {"multiscales": [_multiscale(spec, described, paths, method)]}
    if version == "0.4":
        document["multiscales"][0]["version"] = version
        _state_origin(document["multiscales"][0]["datasets"])
    # Cameras, or what else is stored in place of channels, are no channels.
    if all(axis.letter != "c" or axis.document["type"] == "channel" for axis in described):
        document["omero"] = _omero(spec, windows)
    return _wrapped(document, version)


def label_attributes(
    spec: ImageSpec,
    *,
    version: str,
    axes: str = "tczyx",
    paths: Sequence[str],
    method: str = "nearest",
    colors: Mapping[int, tuple[int, int, int, int]] | None = None,
    properties: Mapping[int, Mapping[str, Any]] | None = None,
    source: str | None = "../../",
) -> dict[str, Any]:
    """Return the attributes of the group of a label image.

    Parameters
    ----------
    spec, version, axes, paths, method
        As in `image_attributes`.
    colors : mapping of int to (red, green, blue, alpha), optional
        Colour of labels, 0 to 255 each.
    properties : mapping of int to mapping, optional
        What is known of labels.
    source : str or None
        The way from here to the image that was labelled.
    """
    _check(version, axes, spec)
    if spec.dtype.kind not in "iub":
        raise SpecError(f"labels are whole numbers, and these pixels are {spec.dtype}")
    image = _multiscale(spec, [_axis(spec, letter) for letter in axes], paths, method)
    label: dict[str, Any] = {}
    if version == "0.4":
        image["version"] = label["version"] = version
    # Where both are given they list the same labels: there are readers that ask for it.
    values = sorted({int(v) for v in (*(colors or ()), *(properties or ()))})
    if colors:
        rgba = {int(v): {"rgba": _rgba(color)} for v, color in colors.items()}
        label["colors"] = [{"label-value": v, **rgba.get(v, {})} for v in values]
    if properties:
        known = {int(v): plain(more) for v, more in properties.items()}
        label["properties"] = [{**known.get(v, {}), "label-value": v} for v in values]
    if source:
        label["source"] = {"image": source}
    return _wrapped({"multiscales": [image], "image-label": label}, version)


def labels_attributes(names: Sequence[str], version: str) -> dict[str, Any]:
    """Return the attributes of the group ``labels``, which lists the label images."""
    return _wrapped({"labels": list(names)}, version)


def layout_attributes(version: str) -> dict[str, Any]:
    """Return the attributes of the root of a bioformats2raw layout (several series)."""
    return _wrapped({"bioformats2raw.layout": 3}, version)


def series_attributes(paths: Sequence[str], version: str) -> dict[str, Any]:
    """Return the attributes of the group ``OME``: where the images of the OME-XML lie."""
    return _wrapped({"series": list(paths)}, version)


def plate_attributes(plate: Plate, version: str) -> dict[str, Any]:
    """Return the attributes of the root of a plate.

    Raises
    ------
    SpecError
        Names that NGFF does not have (letters and digits only), wells outside the rows and
        columns, or no well at all.
    """
    _check_plate(plate)
    document: dict[str, Any] = {
        "columns": [{"name": name} for name in plate.columns],
        "rows": [{"name": name} for name in plate.rows],
        "wells": [
            {
                "path": well.path,
                "rowIndex": plate.rows.index(well.row),
                "columnIndex": plate.columns.index(well.column),
            }
            for well in plate.wells
        ],
    }
    document["name"] = plate.name
    fields = max(len(well.fields) for well in plate.wells)
    if fields:
        document["field_count"] = fields
    if plate.acquisitions:
        document["acquisitions"] = [
            {"id": run.id, "name": run.name, **_most_fields(plate, run.id)}
            for run in plate.acquisitions
        ]
    document["version"] = version  # 0.5 does not ask for it here, but there are readers that do
    return _wrapped({"plate": document}, version)


def well_attributes(well: Well, version: str) -> dict[str, Any]:
    """Return the attributes of the group of a well."""
    if not well.fields:
        raise SpecError(f"well {well.path} has no field: leave it out of the plate")
    images = []
    for field in well.fields:
        _check_name(field.path, "field")
        run = {} if field.acquisition is None else {"acquisition": field.acquisition}
        images.append({**run, "path": field.path})
    document: dict[str, Any] = {"images": images}
    if version == "0.4":
        document["version"] = version
    return _wrapped({"well": document}, version)


def plain(value: Any) -> Any:
    """Return `value` as JSON has it: NumPy's numbers as Python's, what is not finite as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "items"):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _wrapped(document: dict[str, Any], version: str) -> dict[str, Any]:
    _check_version(version)
    return {"ome": {"version": version, **document}} if version == "0.5" else document


class _Axis(NamedTuple):
    """One axis of the arrays: its letter of "yxzct", what is written of it, and its numbers."""

    letter: str
    document: dict[str, str]
    scale: float
    shift: float


def _multiscale(
    spec: ImageSpec, axes: Sequence[_Axis], paths: Sequence[str], method: str
) -> dict[str, Any]:
    if len(paths) != len(spec.levels):
        raise SpecError(f"{len(paths)} paths for {len(spec.levels)} levels")
    image: dict[str, Any] = {"name": spec.name, "axes": [axis.document for axis in axes]}
    image["datasets"] = []
    for level, path in enumerate(paths):
        factor = _factors(spec, level)
        scale = [axis.scale * factor.get(axis.letter, 1.0) for axis in axes]
        shift = [axis.shift for axis in axes]
        if method != "nearest":
            larger = [factor.get(axis.letter, 1.0) - 1 for axis in axes]
            shift = [s + a.scale * f / 2 for s, a, f in zip(shift, axes, larger, strict=True)]
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if any(shift):
            steps.append({"type": "translation", "translation": shift})
        image["datasets"].append({"path": path, "coordinateTransformations": steps})
    if method:
        image["type"] = method
        image["metadata"] = {"method": "bioio_tk", "description": f"{method} of each cell"}
    return image


def _state_origin(datasets: list[dict[str, Any]]) -> None:
    """Give the full resolution a translation of 0 where a smaller one has a translation.

    BigStitcher compares the two, and there are versions of it that take the first translation
    they meet for that of the full resolution.
    """
    first, *smaller = (dataset["coordinateTransformations"] for dataset in datasets)
    if len(first) == 1 and any(len(steps) > 1 for steps in smaller):
        first.append({"type": "translation", "translation": [0.0] * len(first[0]["scale"])})


def _most_fields(plate: Plate, run: int) -> dict[str, int]:
    count = max(sum(field.acquisition == run for field in well.fields) for well in plate.wells)
    return {"maximumfieldcount": count} if count else {}


def _axis(spec: ImageSpec, letter: str) -> _Axis:
    scale, unit = _size(spec, letter)
    document = {"name": letter, "type": AXIS_KINDS[letter]}
    if unit:
        document["unit"] = unit
    return _Axis(letter, document, scale, _position(spec, letter, unit)[0])


def _own_axis(axis: StoredAxis) -> _Axis:
    document = {"name": axis.name, "type": axis.kind}
    # With a unit, the scale of 1 that stands for none would be a size.
    if axis.unit and not (axis.scale is None and axis.translation is None):
        document["unit"] = axis.unit
    scale = 1.0 if axis.scale is None else float(axis.scale)
    return _Axis(axis.letter.lower(), document, scale, float(axis.translation or 0))


def _factors(spec: ImageSpec, level: int) -> dict[str, float]:
    """Return how much larger the pixels of a level are along each axis.

    Step by step: 9 planes on 5 on 3 are 2 x 2 times as thick, which 9 / 3 does not tell.
    """
    one = PhysicalSize((1.0, ""), (1.0, ""), (1.0, ""))
    factors = {"x": 1.0, "y": 1.0, "z": 1.0}
    for n in range(level):
        pair = replace(spec, levels=spec.levels[n : n + 2], physical_size=one)
        size = at_level(pair, 1).physical_size
        for k, q in zip("xyz", size, strict=True):
            factors[k] *= q[0] if q is not None else 1.0
    return factors


def _size(spec: ImageSpec, letter: str) -> tuple[float, str | None]:
    size = spec.physical_size
    known = {"x": size.x, "y": size.y, "z": size.z, "t": spec.time_increment}.get(letter)
    value, unit = _quantity(known, AXIS_KINDS[letter])
    return (value, unit) if value > 0 else (1.0, None)


def _position(spec: ImageSpec, letter: str, unit: str | None) -> tuple[float, str | None]:
    at = spec.position
    value, own = _quantity({"x": at.x, "y": at.y, "z": at.z}.get(letter), AXIS_KINDS[letter])
    if unit is None:  # a unit here would make the scale of 1, which stands for none, a size in it
        return 0.0, None
    if own == unit:
        return value, own
    if own is None:  # in no unit that could be compared with that of the size
        return 0.0, None
    return convert_length(value, own, unit), unit


def _quantity(known: Quantity | None, kind: str) -> tuple[float, str | None]:
    if known is None or not math.isfinite(known[0]):
        return 0.0, None
    value, unit = unit_word(float(known[0]), known[1], kind)
    return (value, unit) if math.isfinite(value) else (0.0, None)


def _omero(
    spec: ImageSpec, windows: Sequence[tuple[float, float, float, float] | None] | None
) -> dict[str, Any]:
    _, _, z, count, _ = spec.shape
    usual = PALETTES.get(3 if spec.samples == 3 else count, MANY)
    channels = []
    for c in range(count):
        known = spec.channels[c] if c < len(spec.channels) else None
        color = known.color if known else None
        channel: dict[str, Any] = {
            "active": c < _VISIBLE,
            "coefficient": 1.0,
            "color": "{:02X}{:02X}{:02X}".format(*color) if color else usual[c % len(usual)],
            "family": "linear",
            "inverted": False,
            "window": _window(spec.dtype, windows[c] if windows and c < len(windows) else None),
        }
        if known and known.name is not None:
            channel["label"] = known.name
        channels.append(channel)
    grey = count == 1 and channels[0]["color"] == WHITE
    model = "greyscale" if grey else "color"
    return {
        "channels": channels,
        "rdefs": {"model": model, "defaultZ": z // 2, "defaultT": 0},
    }


def _window(
    dtype: np.dtype[Any], given: tuple[float, float, float, float] | None
) -> dict[str, float]:
    values = [plain(v) for v in given] if given is not None else []
    if not values or not all(isinstance(v, (int, float)) for v in values):
        low, high = 0, 1
        if dtype.kind in "iu":
            low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        values = [low, high, low, high]
    low, high, start, end = values
    return {"min": low, "max": high, "start": start, "end": end}


def _rgba(color: Sequence[int]) -> list[int]:
    rgba = [int(v) for v in color]
    if len(rgba) != 4 or not all(0 <= v <= 255 for v in rgba):
        raise SpecError(f"color {tuple(color)}: give red, green, blue and alpha, 0 to 255 each")
    return rgba


def _check(version: str, axes: str, spec: ImageSpec) -> None:
    _check_version(version)
    if not re.fullmatch("t?c?z?yx", axes):
        raise SpecError(f"axes {axes!r}: NGFF has them in the order tczyx; t, c, z may be left out")
    for letter, size in zip("zct", spec.shape[2:], strict=True):
        if letter not in axes and size > 1:
            raise SpecError(f"axes {axes!r}: the image has {size} {letter.upper()}")


def _check_stored(version: str, stored: Sequence[StoredAxis], spec: ImageSpec) -> None:
    _check_version(version)
    shown = ", ".join(f"{axis.name} ({axis.letter})" for axis in stored)
    letters = [axis.letter for axis in stored]
    if letters[-2:] != ["Y", "X"] or len(set(letters)) < len(letters):
        raise SpecError(f"axes {shown}: Y and X are the last two, and each letter is there once")
    if len({axis.name for axis in stored}) < len(stored):
        raise SpecError(f"axes {shown}: two of them have the same name")
    for letter, size in zip("ZCT", spec.shape[2:], strict=True):
        if letter not in letters and size > 1:
            raise SpecError(f"axes {shown}: the image has {size} {letter}")
    for axis in stored:
        if not all(math.isfinite(v) for v in (axis.scale, axis.translation) if v is not None):
            raise SpecError(f"axis {axis.name}: its scale and translation are to be finite numbers")


def _check_version(version: str) -> None:
    if version not in WRITABLE_VERSIONS:
        fits = " and ".join(WRITABLE_VERSIONS)
        raise SpecError(f"OME-Zarr version {version!r}: {fits} can be written")


def _check_plate(plate: Plate) -> None:
    if not plate.wells:
        raise SpecError("a plate has at least one well")
    for what, names, used in (
        ("row", plate.rows, [well.row for well in plate.wells]),
        ("column", plate.columns, [well.column for well in plate.wells]),
    ):
        for name in names:
            _check_name(name, what)
        if len(set(names)) < len(names):
            raise SpecError(f"two {what}s of the plate have the same name")
        missing = set(used) - set(names)
        if missing:
            raise SpecError(f"{what} {min(missing)!r} of a well is not among those of the plate")
    paths = [well.path for well in plate.wells]
    if len(set(paths)) < len(paths):
        raise SpecError("the plate has the same well twice")


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise SpecError(f"{what} {name!r}: NGFF allows letters and digits only")
