"""Change a few values in the attributes of an OME-Zarr image; all others stay as they are."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from bioio_tk.core.units import convert_length, convert_time
from bioio_tk.errors import UnsupportedError
from bioio_tk.meta import ngff
from bioio_tk.meta.ngff_axes import AXIS_KINDS, unit_symbol, unit_word

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bioio_tk.core.spec import ImageSpec, Quantity

_AXES = {"physical_size_x": "x", "physical_size_y": "y", "physical_size_z": "z"}
_AXES |= {"time_increment": "t"}


def edit(
    attributes: Mapping[str, Any],
    spec: ImageSpec,
    changes: Mapping[str, Any],
    where: str,
    number: int = 0,
) -> dict[str, Any]:
    """Return the attributes of an image with other values.

    Parameters
    ----------
    attributes : mapping
        All attributes of the group, as in ``zarr.json`` (0.5) or ``.zattrs`` (0.4).
    spec : ImageSpec
        The image as it is now.
    changes : mapping
        As for `ome_edit.edit`.
    where : str
        The group, for messages.
    number : int
        Which of the images of the group.

    Raises
    ------
    UnsupportedError
        The version of NGFF has no place for a value, or the image no such axis.
    """
    found = copy.deepcopy(dict(attributes))
    inside = found.get("ome")
    document = inside if isinstance(inside, dict) else found
    version = ngff.read_group(attributes, where).version
    if version not in ngff.WRITABLE_VERSIONS:
        raise UnsupportedError(
            f"{where!r} is an OME-Zarr {version or 'of no known version'}: bring it to 0.5 with "
            "'bioio-tk upgrade', and change that"
        )
    image = document["multiscales"][number]
    if "name" in changes:
        _set(image, "name", changes["name"])
    for key, axis in _AXES.items():
        if key in changes:
            _rescale(image, axis, changes[key], f"{key} of {where!r}")
    names, colors = (changes.get(key) or {} for key in ("channel_names", "channel_colors"))
    if names or colors:
        usual = ngff.image_attributes(
            spec, version=version, paths=["0"] * len(spec.levels), method=""
        )
        omero = (usual.get("ome") or usual)["omero"]
        mine = document.setdefault("omero", {"channels": [], "rdefs": omero["rdefs"]})
        listed = mine.setdefault("channels", [])
        listed += omero["channels"][len(listed) :]
        for n, name in names.items():
            _set(listed[n], "label", name)
        for n, color in colors.items():
            value = color or (255, 255, 255, 255)  # to omero each channel has one
            listed[n]["color"] = "{:02X}{:02X}{:02X}".format(*value)
    return found


def _set(document: dict[str, Any], key: str, value: str | None) -> None:
    if value is None:
        document.pop(key, None)
    else:
        document[key] = value


def _rescale(image: dict[str, Any], letter: str, size: Quantity | None, what: str) -> None:
    """Give an axis another pixel size: of the full resolution this one, of the others in line."""
    axes = [axis["name"] for axis in image["axes"]]
    if letter not in axes:
        raise UnsupportedError(
            f"{what}: the image has no axis {letter!r} (its axes are {''.join(axes)})"
        )
    at = axes.index(letter)
    value, unit = (1.0, None) if size is None else unit_word(size[0], size[1], AXIS_KINDS[letter])
    levels = [_steps(dataset, what) for dataset in image["datasets"]]
    whole = _steps(image, what)
    same = _same_unit(image["axes"][at].get("unit"), unit, AXIS_KINDS[letter])
    before = [_factor(steps, at) for steps in levels]
    full = value / _factor(whole, at)
    origin = _shift(levels[0], at)
    for steps, factor in zip(levels, before, strict=True):
        offset = _shift(steps, at) - origin
        _put(steps, "scale", at, full * (factor / before[0]))
        # where the image lies stays; how far its levels are apart follows
        _put(steps, "translation", at, origin * same + offset * full / before[0])
    _put(whole, "translation", at, _shift(whole, at) * same)
    _set(image["axes"][at], "unit", unit)


def _same_unit(old: Any, new: str | None, kind: str) -> float:
    """Return how many of the new unit the old one is; 1 where one of them is not known."""
    known = [unit_symbol(unit, kind) if unit else None for unit in (old, new)]
    if None in known or known[0] == known[1]:
        return 1.0
    convert = convert_length if kind == "space" else convert_time
    return convert(1.0, known[0], known[1])


def _steps(document: dict[str, Any], what: str) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = document.get("coordinateTransformations") or []
    for step in steps:
        kind = step.get("type")
        if kind not in ("scale", "translation") or not isinstance(step.get(kind), list):
            raise UnsupportedError(
                f"{what} is given by a transformation of type {kind!r}: such a one cannot be "
                "changed"
            )
    return steps


def _factor(steps: list[dict[str, Any]], at: int) -> float:
    factor = 1.0
    for step in steps:
        if step["type"] == "scale":
            factor *= step["scale"][at]
    return factor


def _shift(steps: list[dict[str, Any]], at: int) -> float:
    return float(sum(step["translation"][at] for step in steps if step["type"] == "translation"))


def _put(steps: list[dict[str, Any]], kind: str, at: int, value: float) -> None:
    """Let the steps of a kind together have a value; there may be none of them."""
    found = [step[kind] for step in steps if step["type"] == kind]
    for number, values in enumerate(found):
        last = number == len(found) - 1
        values[at] = value if last else 1.0 if kind == "scale" else 0.0
