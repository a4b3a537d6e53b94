"""What is said of an array beside its pixels: OME-XML, or the flat names of calcium imaging."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.spec import Channel, ImageSpec, PhysicalSize, Quantity
from bioio_tk.core.units import convert_length, convert_time
from bioio_tk.errors import FormatError, SpecError
from bioio_tk.meta.ngff_axes import yxzct

if TYPE_CHECKING:
    from bioio_tk.core.region import Shape5

_NAMES: Mapping[str, tuple[str, ...]] = {
    "x": ("dx", "umPerPixX", "PhysicalSizeX", "physical_size_x", "pixel_size_x"),
    "y": ("dy", "umPerPixY", "PhysicalSizeY", "physical_size_y", "pixel_size_y"),
    "z": ("dz", "umPerPixZ", "PhysicalSizeZ", "physical_size_z", "z_step", "spacing"),
}
"""What the size of a pixel is called; in µm."""
_RATES = ("fs", "frame_rate", "framerate", "fps")
_BAND = 1 << 21
"""Bytes of the bands that raw pixels are read in."""


def axis_order(
    shape: Sequence[int], dims: str | None, notes: list[str], *, usual: str | None = None
) -> tuple[int | None, ...]:
    """Return which axis of an array is Y, X, Z, C and T; None for one that it does not have.

    Parameters
    ----------
    shape : sequence of int
        Of the array.
    dims : str or None
        Its axes, slowest first, where they are known.
    notes : list of str
        Where to say what had to be guessed.
    usual : str, optional
        What to take them for where they are not known, instead of the last ones of TCZYX.
    """
    if dims is None and usual is not None and len(usual) == len(shape):
        dims = usual
        notes.append(
            f"nothing names the {len(shape)} axes: taken as {usual}; dims= tells otherwise"
        )
    return yxzct(None, len(shape), dims=dims, notes=notes)


def in_order(sizes: Sequence[int], order: Sequence[int | None]) -> Shape5:
    """Return the sizes along Y, X, Z, C, T of an array with its axes in some order."""
    y, x, z, c, t = (1 if at is None else int(sizes[at]) for at in order)
    return (y, x, z, c, t)


def five(array: Any, order: Sequence[int | None]) -> Any:
    """Return a view of a NumPy array with the axes Y, X, Z, C, T."""
    there = [at for at in order if at is not None]
    missing = tuple(slice(None) if at is not None else np.newaxis for at in order)
    return array.transpose(there)[missing]


def band(shape: Shape5, itemsize: int) -> Shape5:
    """Return the tile to read raw pixels in: whole rows."""
    rows = max(1, _BAND // max(1, shape[1] * itemsize))
    return (min(shape[0], rows), shape[1], 1, 1, 1)


def with_ome(spec: ImageSpec, xml: str, notes: list[str]) -> tuple[ImageSpec, str | None]:
    """Return `spec` with what an OME-XML document says of it, and the document if it fits."""
    from bioio_tk.meta import ome

    try:
        image = ome.read_document(xml).images[0]
    except (FormatError, IndexError) as exc:
        notes.append(f"the OME-XML beside the pixels is left out: {exc}")
        _let_go(exc)
        return spec, None
    said = (image.size_y, image.size_x, image.size_z, image.size_c, image.size_t)
    if said != spec.shape:
        notes.append(
            f"the OME-XML beside the pixels is left out: it describes {said} (Y, X, Z, C, T), the "
            f"array has {spec.shape}"
        )
        return spec, None
    samples = {channel.samples for channel in image.channels}
    channels = tuple(Channel(c.name, c.color) for c in image.channels for _ in range(c.samples))
    described = replace(
        spec,
        name=image.name,
        samples=samples.pop() if len(samples) == 1 else 1,
        channels=channels if any(c.name or c.color for c in channels) else (),
        physical_size=image.physical_size,
        time_increment=image.time_increment,
    )
    return described, xml


def _let_go(exc: BaseException | None) -> None:
    """Forget what an exception saw: it may hold pixels that are mapped, and keep the file open."""
    while exc is not None:
        traceback.clear_frames(exc.__traceback__)
        exc = exc.__cause__ or exc.__context__


def with_flat(spec: ImageSpec, said: Mapping[str, Any]) -> ImageSpec:
    """Return `spec` with what a flat dictionary (``ops.npy``, HDF5 attributes) says of it."""
    sizes = []
    for axis in "xyz":
        found = _first_number(said, _NAMES[axis])
        if found is None and axis in "xy":
            found = _of_pair(said.get("pixel_resolution"), "xy".index(axis))
        sizes.append(None if found is None else (found, "µm"))
    rate = _first_number(said, _RATES)
    step = 1 / rate if rate else _first_number(said, ("finterval", "dt"))
    names = _channel_names(said.get("channel_names"))
    fits = len(names) == spec.shape[3]
    return replace(
        spec,
        physical_size=PhysicalSize(*sizes),
        time_increment=None if step is None else (step, "s"),
        channels=tuple(Channel(name or None) for name in names) if fits else (),
    )


def flat(spec: ImageSpec) -> dict[str, Any]:
    """Return what is known of an image under its flat names: sizes in µm, rates in Hz."""
    y, x, z, c, t = spec.shape
    said: dict[str, Any] = {
        "Ly": y,
        "Lx": x,
        "num_frames": t,
        "num_timepoints": t,
        "num_zplanes": z,
        "num_color_channels": c,
    }
    for axis, size in zip("xyz", spec.physical_size, strict=True):
        found = _micrometres(size)
        if found is not None:
            said[f"d{axis}"] = found
    step = _seconds(spec.time_increment)
    if step:
        said |= {"fs": 1 / step, "finterval": step}
    if any(channel.name for channel in spec.channels):
        said["channel_names"] = [channel.name or "" for channel in spec.channels]
    return said


def _micrometres(size: Quantity | None) -> float | None:
    try:
        return None if size is None else convert_length(size[0], size[1], "µm")
    except SpecError:  # in pixels, or in an arbitrary unit
        return None


def _seconds(step: Quantity | None) -> float | None:
    try:
        return None if step is None else convert_time(step[0], step[1], "s")
    except SpecError:
        return None


def _first_number(said: Mapping[str, Any], names: Sequence[str]) -> float | None:
    for name in names:
        number = _number(said.get(name))
        if number is not None:
            return number
    return None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _of_pair(value: Any, at: int) -> float | None:
    text = value.strip("()[] ").split(",") if isinstance(value, str) else value
    try:
        return _number(text[at]) if len(text) == 2 else None
    except (TypeError, IndexError, KeyError):
        return None


def _channel_names(value: Any) -> list[str]:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = [part.strip(" '\"") for part in value.strip("[]() ").split(",")]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return [str(name) for name in value] if isinstance(value, (list, tuple)) else []
