"""NGFF (OME-Zarr) metadata, versions 0.1 to 0.5, to plain values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from bioio_tk.core.plate import Acquisition, Field, Plate, Well
from bioio_tk.core.spec import Channel
from bioio_tk.errors import DamagedFileError, FormatError, UnsupportedError
from bioio_tk.meta.ngff_axes import AXIS_KINDS, NAMES, Axis, unit_symbol

VERSIONS = ("0.1", "0.2", "0.3", "0.4", "0.5")
"""What can be read; 0.4 and 0.5 can be written."""


class Window(NamedTuple):
    """The range of intensities of a channel, and the part of it that is shown."""

    min: float
    max: float
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Dataset:
    """One resolution: where its array lies and how it is placed, an entry for each axis.

    The transformations of the whole group are contained: first the level's own, then the
    group's, https://ngff.openmicroscopy.org/0.5/#multiscale-md.
    """

    path: str
    scale: tuple[float, ...] | None = None
    translation: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Multiscale:
    """One image with its resolutions.

    Attributes
    ----------
    version : str
        Of NGFF, one of `VERSIONS`.
    name : str
        "" for none.
    axes : tuple of Axis or None
        None before 0.3, which has no names for them.
    datasets : tuple of Dataset
        In the order of the file.
    type : str
        How the resolutions were made, "" where unknown.
    """

    version: str
    name: str
    axes: tuple[Axis, ...] | None
    datasets: tuple[Dataset, ...]
    type: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """What the attributes of one Zarr group say; what they do not mention is empty or None.

    Attributes
    ----------
    version : str
        Of NGFF, "" for a group without anything of it.
    multiscales : tuple of Multiscale
        The images of the group; the first one counts.
    channels : tuple of Channel
        As ``omero`` lists them; there may be fewer or more than the image has.
    windows : tuple of (Window or None)
        One for each of `channels`.
    default_z, default_t : int or None
        Which plane to show first.
    plate : Plate or None
        Wells without their fields: these stand in the groups of the wells.
    well_images : tuple of Field or None
        The fields of a well.
    labels : tuple of str
        Names of label images.
    series : tuple of str or None
        Images of a bioformats2raw layout in the order of the OME-XML.
    layout : int or None
        ``bioformats2raw.layout``.
    image_label : dict or None
        ``image-label`` as it stands there.
    notes : tuple of str
        What was wrong and how it was understood.
    """

    version: str = ""
    multiscales: tuple[Multiscale, ...] = ()
    channels: tuple[Channel, ...] = ()
    windows: tuple[Window | None, ...] = ()
    default_z: int | None = None
    default_t: int | None = None
    plate: Plate | None = None
    well_images: tuple[Field, ...] | None = None
    labels: tuple[str, ...] = ()
    series: tuple[str, ...] | None = None
    layout: int | None = None
    image_label: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def read_group(attributes: Mapping[str, Any], where: str) -> Group:
    """Return what the attributes of a group say.

    Parameters
    ----------
    attributes : mapping
        Of the group, as JSON gives them.
    where : str
        Path or URL of the group, for messages.

    Raises
    ------
    FormatError
        Something stands there in a way that pixels could be read wrongly.
    DamagedFileError
        A path leads out of the store.
    UnsupportedError
        A newer version whose axes are not where we know them.

    Examples
    --------
    >>> read_group({"multiscales": [{"version": "0.2", "datasets": [{"path": "0"}]}]}, "x").version
    '0.2'
    """
    return _Reader(where).group(attributes)


def inner_path(path: Any, what: str, where: str) -> str:
    """Return a path inside the store, without ``./`` and a slash at the end.

    Parameters
    ----------
    path : Any
        What the metadata has.
    what : str
        What it is the path of, for messages.
    where : str
        Path or URL of the group.

    Raises
    ------
    FormatError
        It is no string.
    DamagedFileError
        It leads out of the group, or back to it.

    Examples
    --------
    >>> inner_path("./scale0/image/", "dataset", "x")
    'scale0/image'
    """
    if not isinstance(path, str):
        raise FormatError(f"{where}: the path of a {what} is {path!r:.80}, and not a string")
    text = path.removesuffix("/")
    parts = [part for part in text.split("/") if part != "."]
    if not all(parts) or ".." in parts or ":" in text.split("/")[0] or {"\\", "\0"} & set(text):
        raise DamagedFileError(f"{where}: the path {path!r:.80} of a {what} leads out of the store")
    if not parts:
        raise DamagedFileError(f"{where}: the path {path!r} of a {what} leads back to the group")
    return "/".join(parts)


def fit_channels(channels: Sequence[Channel], count: int) -> tuple[Channel, ...]:
    """Return `count` channels: those that are missing know nothing; () where there are none."""
    if not channels:
        return ()
    return (*channels[:count], *[Channel()] * (count - len(channels)))


def usable(values: Any, kind: str, count: int | None) -> TypeGuard[list[float]]:
    """Return whether these are the numbers of a "scale" or a "translation" of `count` axes."""
    return (
        isinstance(values, list)
        and all(_finite(v) and (kind != "scale" or v > 0) for v in values)
        and (count is None or len(values) == count)
    )


def read_color(value: Any) -> tuple[int, int, int, int] | None:
    """Return red, green, blue, alpha of a colour in hex: 3, 6 or 8 digits, with or without #.

    >>> read_color("#0f8"), read_color("00FF88")
    ((0, 255, 136, 255), (0, 255, 136, 255))
    """
    text = value.strip().removeprefix("#") if isinstance(value, str) else ""
    if len(text) == 3:
        text = "".join(2 * digit for digit in text)
    if len(text) not in (6, 8) or not re.fullmatch("[0-9A-Fa-f]+", text):
        return None
    red, green, blue, alpha = bytes.fromhex(text.ljust(8, "F"))
    return red, green, blue, alpha


class _Reader:
    """One pass over the attributes of a group, which gathers the notes."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def wrong(self, text: str) -> FormatError:
        return FormatError(f"{self.where}: {text}")

    def group(self, attributes: Mapping[str, Any]) -> Group:
        ome = attributes.get("ome")
        if ome is not None and not isinstance(ome, Mapping):
            raise self.wrong(f'"ome" is {_kind(ome)}; it has to be an object')
        if ome is None:
            ome, newest = attributes, "0.4"
        else:
            newest = "0.5"
        version = self.version(ome, newest) if _OURS & set(ome) else ""
        images = self.multiscales(ome, version)
        channels, windows = self.omero(ome.get("omero"))
        rdefs = _mapping(_mapping(ome.get("omero")).get("rdefs"))
        plate = self.plate(ome["plate"]) if self.is_object(ome, "plate") else None
        well = self.well(ome["well"]) if self.is_object(ome, "well") else None
        labels = self.paths(ome, "labels", "label")
        series = self.paths(ome, "series", "series")
        layout = ome.get("bioformats2raw.layout")
        if layout is not None and (isinstance(layout, bool) or not isinstance(layout, int)):
            self.note(f"bioformats2raw.layout is {layout!r:.40} and was taken as 3")
            layout = 3
        label = dict(ome["image-label"]) if self.is_object(ome, "image-label") else None
        if (images, plate, well, labels, series, layout, label) == ((), *[None] * 6):
            version = ""
        return Group(
            version=version,
            multiscales=images,
            channels=channels,
            windows=windows,
            default_z=_whole(rdefs.get("defaultZ")),
            default_t=_whole(rdefs.get("defaultT")),
            plate=plate,
            well_images=well,
            labels=labels or (),
            series=series,
            layout=layout,
            image_label=label,
            notes=tuple(self.notes),
        )

    def is_object(self, ome: Mapping[str, Any], key: str) -> bool:
        """Return whether it is there; an attribute of that name may be somebody else's."""
        value = ome.get(key)
        if value is not None and not isinstance(value, Mapping):
            self.note(f'"{key}" is {_kind(value)} and was ignored')
        return isinstance(value, Mapping)

    def version(self, ome: Mapping[str, Any], newest: str) -> str:
        first = ome.get("multiscales")
        inner = first[0] if isinstance(first, list) and first else None
        parts = (inner, ome.get("plate"), ome.get("well"), ome.get("image-label"))
        # Before 0.5 each part has its own, and "version" at the top may be somebody else's.
        found = [_mapping(part).get("version") for part in parts]
        found = [ome.get("version"), *found] if newest == "0.5" else [*found, ome.get("version")]
        stated = [v for v in found if v is not None]
        if not stated:
            if any(part is not None for part in parts):
                self.note(f"no version is given: taken as {_guess_version(inner, newest)}")
            return _guess_version(inner, newest)
        text = str(stated[0])
        if text in VERSIONS:
            return text
        match = re.match(r"(\d+)\.(\d+)(?!\d)", text)
        if match and match[0] in VERSIONS:
            self.note(f"version {text!r:.40} was taken as {match[0]}")
            return match[0]
        if match and (int(match[1]), int(match[2])) > (0, 5):
            if "axes" not in _mapping(inner) and inner is not None:
                raise UnsupportedError(
                    f"{self.where}: OME-Zarr version {text:.40}; versions 0.1 to 0.5 can be read"
                )
            self.note(f"version {text!r:.40} is newer than 0.5 and was read as 0.5")
            return "0.5"
        self.note(f"version {text!r:.40} is unknown: taken as {_guess_version(inner, newest)}")
        return _guess_version(inner, newest)

    def multiscales(self, ome: Mapping[str, Any], version: str) -> tuple[Multiscale, ...]:
        entries = ome.get("multiscales")
        if entries is None:
            return ()
        if not isinstance(entries, list):
            raise self.wrong(f'"multiscales" is {_kind(entries)}; it has to be a list')
        if not entries:
            raise self.wrong('"multiscales" is an empty list: there is no image in it')
        return tuple(self.multiscale(entry, version) for entry in entries)

    def multiscale(self, entry: Any, version: str) -> Multiscale:
        if not isinstance(entry, Mapping):
            raise self.wrong(f'an entry of "multiscales" is {_kind(entry)} and not an object')
        levels = entry.get("datasets")
        if not isinstance(levels, list) or not levels:
            raise self.wrong(f'"datasets" of "multiscales" is {_kind(levels)}; it lists the levels')
        axes = self.axes(entry.get("axes"), version)
        outer = self.transform(entry.get("coordinateTransformations"), axes)
        datasets = tuple(self.dataset(level, axes, outer) for level in levels)
        name, method = entry.get("name"), entry.get("type")
        if name is not None and not isinstance(name, str):
            self.note(f"the name of the image is {_kind(name)}")
        if not isinstance(method, str) or not method:
            method = _mapping(entry.get("metadata")).get("method")
        return Multiscale(
            version=version,
            name="" if name is None else str(name),
            axes=axes,
            datasets=datasets,
            type=method if isinstance(method, str) else "",
        )

    def axes(self, entries: Any, version: str) -> tuple[Axis, ...] | None:
        if entries is None or entries == []:
            if version not in ("0.1", "0.2"):
                self.note(f"the axes are not named, as version {version} asks for")
            return None
        if not isinstance(entries, list):
            raise self.wrong(f'"axes" is {_kind(entries)}; it has to be a list')
        axes = tuple(self.axis(entry, version) for entry in entries)
        names = [axis.name for axis in axes]
        if len(set(names)) < len(names):
            raise self.wrong(f"two axes have the same name: {', '.join(names)}")
        if len(axes) > 5:
            raise self.wrong(f"{len(axes)} axes ({', '.join(names)}); an image has 2 to 5")
        return axes

    def axis(self, entry: Any, version: str) -> Axis:
        if isinstance(entry, str):
            if version not in ("0.1", "0.2", "0.3"):
                self.note("the axes are plain names, as in version 0.3")
            return Axis(entry, AXIS_KINDS.get(NAMES.get(entry.lower(), "")))
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise self.wrong(f"an axis is {entry!r:.80}; it has to have a name")
        name, kind, unit = entry["name"], entry.get("type"), entry.get("unit")
        if kind is not None and not isinstance(kind, str):
            self.note(f"the type of axis {name!r} is {_kind(kind)} and was ignored")
            kind = None
        if unit is not None and not isinstance(unit, str):
            self.note(f"the unit of axis {name!r} is {_kind(unit)} and was ignored")
            unit = None
        if unit is None:
            return Axis(name, kind)
        symbol = unit_symbol(unit, kind or AXIS_KINDS.get(NAMES.get(name.lower(), "")))
        if symbol is None:
            self.note(f"the unit {unit!r:.40} of axis {name!r} is not known")
        return Axis(name, kind, symbol or unit)

    def dataset(self, entry: Any, axes: tuple[Axis, ...] | None, outer: _Transform) -> Dataset:
        if not isinstance(entry, Mapping):
            raise self.wrong(f'an entry of "datasets" is {_kind(entry)} and not an object')
        path = inner_path(entry.get("path"), "dataset", self.where)
        own = self.transform(entry.get("coordinateTransformations"), axes)
        return Dataset(path, *_compose(own, outer))

    def transform(self, entries: Any, axes: tuple[Axis, ...] | None) -> _Transform:
        result: _Transform = (None, None)
        if entries is not None and not isinstance(entries, list):
            self.note(f'"coordinateTransformations" is {_kind(entries)} and was ignored')
            return result
        for entry in entries or ():
            kind = _mapping(entry).get("type")
            if kind in ("scale", "translation"):
                values = self.numbers(_mapping(entry), kind, axes)
                step = (values, None) if kind == "scale" else (None, values)
                result = _compose(result, step)
            elif kind != "identity":
                self.note(f"a transformation of type {kind!r:.40} was ignored")
        return result

    def numbers(
        self, entry: Mapping[str, Any], kind: str, axes: tuple[Axis, ...] | None
    ) -> tuple[float, ...] | None:
        values = entry.get(kind)
        if usable(values, kind, None if axes is None else len(axes)):
            return tuple(float(v) for v in values)
        asked = "numbers" if axes is None else f"{len(axes)} numbers"
        above = " above 0" if kind == "scale" else ""
        self.note(f"a {kind} was ignored, it is not a list of {asked}{above}: {values!r:.60}")
        return None

    def omero(self, omero: Any) -> tuple[tuple[Channel, ...], tuple[Window | None, ...]]:
        entries = _mapping(omero).get("channels")
        if entries is None and (omero is None or isinstance(omero, Mapping)):
            return (), ()
        if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
            self.note('the channels of "omero" are not a list of objects and were ignored')
            return (), ()
        return (
            tuple(self.channel(entry) for entry in entries),
            tuple(self.window(entry) for entry in entries),
        )

    def channel(self, entry: Mapping[str, Any]) -> Channel:
        label, color = entry.get("label"), entry.get("color")
        if label is not None and not isinstance(label, str):
            self.note(f"the label of a channel is {_kind(label)}")
            label = str(label)
        found = read_color(color)
        if found is None and color is not None:
            self.note(f"the colour {color!r:.40} of a channel is not six hex digits: ignored")
        return Channel(label, found)

    def window(self, entry: Mapping[str, Any]) -> Window | None:
        window = entry.get("window")
        if window is None:
            return None
        values = _mapping(window)
        start, end = values.get("start"), values.get("end")
        low, high = values.get("min", start), values.get("max", end)
        if not all(_finite(v) for v in (low, high, start, end)):
            self.note("a channel's window is not complete and was ignored")
            return None
        return Window(low, high, start, end)  # type: ignore[arg-type]

    def paths(self, ome: Mapping[str, Any], key: str, what: str) -> tuple[str, ...] | None:
        entries = ome.get(key)
        if entries is None:
            return None
        if not isinstance(entries, list):
            self.note(f'"{key}" is {_kind(entries)} and was ignored')
            return None
        paths = tuple(inner_path(entry, what, self.where) for entry in entries)
        if len(set(paths)) < len(paths):
            self.note(f'"{key}" lists the same twice; the second was ignored')
        return tuple(dict.fromkeys(paths))

    def plate(self, entry: Mapping[str, Any]) -> Plate:
        rows, columns = (self.grid_names(entry, key) for key in ("rows", "columns"))
        entries = entry.get("wells")
        if not isinstance(entries, list):
            raise self.wrong(f'"wells" of the plate is {_kind(entries)}; it has to be a list')
        wells = [self.plate_well(well, rows, columns) for well in entries]
        unique = {well.path: well for well in wells}
        if len(unique) < len(wells):
            self.note("the plate lists a well twice; the second was ignored")
        for key, names, used in (
            ("rows", rows, [well.row for well in wells]),
            ("columns", columns, [well.column for well in wells]),
        ):
            missing = [name for name in dict.fromkeys(used) if name not in names]
            if missing:
                self.note(f'wells lie in {", ".join(missing)}, not among the "{key}" of the plate')
                names.extend(missing)
        name = entry.get("name")
        return Plate(
            name="" if name is None else str(name),
            rows=tuple(rows),
            columns=tuple(columns),
            wells=tuple(unique.values()),
            acquisitions=self.acquisitions(entry.get("acquisitions")),
        )

    def grid_names(self, plate: Mapping[str, Any], key: str) -> list[str]:
        entries = plate.get(key)
        if not isinstance(entries, list):
            self.note(f'"{key}" of the plate is {_kind(entries)}')
            return []
        names = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in entries]
        if not all(isinstance(name, str) for name in names):
            self.note(f'names among the "{key}" of the plate are not strings')
        return [str(name) for name in names]

    def plate_well(self, entry: Any, rows: Sequence[str], columns: Sequence[str]) -> Well:
        well = _mapping(entry)
        at = [_index(well, *keys) for keys in (("rowIndex", "row_index", "row"), _COLUMN_KEYS)]
        named = [
            names[i] if i is not None and i < len(names) else None
            for i, names in zip(at, (rows, columns), strict=True)
        ]
        if well.get("path") is None:
            if None in named:
                raise self.wrong(f"a well of the plate has no path: {entry!r:.80}")
            self.note("wells have no path: it was taken from their row and column")
        path = well.get("path", "/".join(str(name) for name in named))
        parts = inner_path(path, "well", self.where).split("/")
        if len(parts) != 2:
            raise self.wrong(f"the path of a well is {path!r:.80}; it has to be ROW/COLUMN")
        if any(name not in (None, part) for name, part in zip(named, parts, strict=True)):
            self.note(f"row and column of a well do not agree with its path {path!r:.40}")
        return Well(parts[0], parts[1])

    def acquisitions(self, entries: Any) -> tuple[Acquisition, ...]:
        if entries is None:
            return ()
        if not isinstance(entries, list):
            self.note(f'"acquisitions" of the plate is {_kind(entries)} and was ignored')
            return ()
        found: dict[int, Acquisition] = {}
        for entry in entries:
            number, name = _whole(_mapping(entry).get("id")), _mapping(entry).get("name")
            if number is None:
                self.note(f"an acquisition without a number was ignored: {entry!r:.60}")
            else:
                found.setdefault(number, Acquisition(number, "" if name is None else str(name)))
        return tuple(found.values())

    def well(self, entry: Mapping[str, Any]) -> tuple[Field, ...]:
        entries = entry.get("images")
        if not isinstance(entries, list):
            raise self.wrong(f'"images" of the well is {_kind(entries)}; it lists the fields')
        fields: dict[str, Field] = {}
        for image in entries:
            path = inner_path(_mapping(image).get("path"), "field", self.where)
            if path in fields:
                self.note("the well lists a field twice; the second was ignored")
            run = _mapping(image).get("acquisition")
            if run is not None and _whole(run) is None:
                self.note(f"the acquisition {run!r:.40} of a field is no number: ignored")
            fields.setdefault(path, Field(path, _whole(run)))
        return tuple(fields.values())


_Transform = tuple[tuple[float, ...] | None, tuple[float, ...] | None]
"""Scale and translation; None changes nothing."""
_OURS = {
    *("multiscales", "plate", "well", "labels", "series"),
    *("bioformats2raw.layout", "image-label"),
}
_COLUMN_KEYS = ("columnIndex", "column_index", "column")


def _compose(first: _Transform, then: _Transform) -> _Transform:
    """Return what two transformations do one after the other.

    >>> _compose(((2.0,), (1.0,)), ((3.0,), (5.0,)))
    ((6.0,), (8.0,))
    """
    (scale, move), (outer, shift) = first, then
    moves = [m for m in (move, shift) if m is not None]
    lengths = {len(v) for v in (scale, move, outer, shift) if v is not None}
    if len(lengths) > 1:  # only where no axes are named: each level says something else
        return first
    if outer is not None:
        scale = outer if scale is None else tuple(a * b for a, b in zip(scale, outer, strict=True))
        if move is not None:
            moves[0] = tuple(a * b for a, b in zip(move, outer, strict=True))
    if not moves:
        return scale, None
    return scale, tuple(sum(column) for column in zip(*moves, strict=True))


def _guess_version(image: Any, newest: str) -> str:
    axes = _mapping(image).get("axes")
    if newest == "0.5" or not image:
        return newest
    if isinstance(axes, list) and axes and isinstance(axes[0], str):
        return "0.3"
    return "0.4" if axes else "0.1"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= 1e300 and math.isfinite(value)


def _whole(value: Any) -> int | None:
    """Return a whole number of 0 or more, also one written as 1.0; None for anything else."""
    return int(value) if _finite(value) and value >= 0 and value == int(value) else None


def _index(entry: Mapping[str, Any], *keys: str) -> int | None:
    return next((i for i in (_whole(entry.get(key)) for key in keys) if i is not None), None)


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number"}
    return "an empty list" if value == [] else names.get(type(value), f"{value!r:.40}")
