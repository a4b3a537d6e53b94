"""Describe: everything about the images in a file but their pixels, quickly."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.backends.base import OpenOptions
from bioio_tk.core.location import locate
from bioio_tk.core.region import AXES
from bioio_tk.core.units import convert_length
from bioio_tk.errors import BioIOError, SpecError
from bioio_tk.jobs.report import file_sizes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from bioio_tk.backends.base import Source
    from bioio_tk.core.location import Location
    from bioio_tk.core.plate import Plate
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import ImageSpec, Quantity
    from bioio_tk.core.views import View

_MOST_IMAGES = 6
"""Images of a store that are looked at: a plate has thousands."""
_MOST_LAZY = 100
"""The same of any other file whose images are looked at one by one."""
_MOST_FILES = 10_000
"""Files of a folder that are counted: there may be millions."""


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """One resolution: its size, and how it is stored.

    Attributes
    ----------
    shape : tuple of 5 int
        Size along Y, X, Z, C, T.
    storage : str
        ``"tiles"`` or ``"strips"``, "" where the format has no such thing.
    tile : (int, int)
        Height and width of a tile or strip.
    compression : str
        Name of the codec; "unknown" where Bio-Formats does not say.
    path : str
        Of a Zarr array: where it lies in the store.
    chunk, shard : tuple of int or None
        Size of the chunks and shards of a Zarr array along its own axes, and of the blocks of
        BigDataViewer along Z, Y, X; None where there are none.
    """

    shape: Shape5
    storage: str
    tile: tuple[int, int]
    compression: str
    path: str = ""
    chunk: tuple[int, ...] | None = None
    shard: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LabelInfo:
    """The label image of an image.

    Attributes
    ----------
    name : str
        Its name.
    dtype : str
        Pixel type.
    levels : tuple of LevelInfo
        Full resolution first.
    """

    name: str
    dtype: str
    levels: tuple[LevelInfo, ...]


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """One image of a file.

    Attributes
    ----------
    series : int
        Its number, from 0.
    name : str
        "" for one without.
    dtype : str
        Pixel type.
    samples : int
        Samples of a pixel stored together: 3 for RGB.
    levels : tuple of LevelInfo
        Full resolution first.
    channels : tuple of dict
        ``name`` and ``color`` of each channel, None where unknown.
    pixel_size : dict
        Value and unit along ``x``, ``y``, ``z``; None where unknown.
    time_increment : (float, str) or None
        Time between two time points.
    pixel_bytes : int
        Size of the full resolution, uncompressed.
    path : str
        Where it lies in a store, ``"A/1/0"``; "" for the root and for TIFF.
    stored_axes : str
        The axes of a Zarr array, ``"tczyx"``.
    ngff_version : str
        "" where there are no metadata of OME-Zarr.
    zarr_format : int or None
        2 or 3.
    labels : tuple of LabelInfo
        Its label images.
    """

    series: int
    name: str
    dtype: str
    samples: int
    levels: tuple[LevelInfo, ...]
    channels: tuple[dict[str, Any], ...]
    pixel_size: dict[str, Quantity | None]
    time_increment: Quantity | None
    pixel_bytes: int
    path: str = ""
    stored_axes: str = ""
    ngff_version: str = ""
    zarr_format: int | None = None
    labels: tuple[LabelInfo, ...] = ()

    @property
    def shape(self) -> Shape5:
        """Size of the full resolution along Y, X, Z, C, T."""
        return self.levels[0].shape

    def pixel_size_um(self) -> dict[str, float | None]:
        """Return the pixel size along ``x``, ``y``, ``z`` in µm, None where it is no length."""

        def number(size: Quantity | None) -> float | None:
            try:
                return None if size is None else convert_length(size[0], size[1], "µm")
            except SpecError:
                return None

        return {axis: number(size) for axis, size in self.pixel_size.items()}


@dataclass(frozen=True, slots=True)
class PlateInfo:
    """A plate.

    Attributes
    ----------
    name : str
        "" for one without.
    rows, columns : tuple of str
        Their names.
    wells : int
        Wells with images.
    fields : int
        Most images of a well.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    wells: int
    fields: int


@dataclass(frozen=True, slots=True)
class ViewsInfo:
    """The views of a BigDataViewer dataset: stacks, each one time point of one setup.

    Attributes
    ----------
    count, missing : int
        All of them, and those without pixels.
    times, setups : int
        Time points and setups.
    attributes : dict of str to tuple of str
        What people call the channels, tiles, angles, … there are.
    transforms : tuple of str
        Names of the transforms of views, in their order: the last one is applied first.
    affines : int
        Different places of views in the world.
    affine : tuple of 3 tuple of 4 float, or None
        From the pixels of the first view to the world.
    """

    count: int
    missing: int
    times: int
    setups: int
    attributes: dict[str, tuple[str, ...]]
    transforms: tuple[str, ...]
    affines: int
    affine: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What is in a file.

    Attributes
    ----------
    path : str
        The file, the folder, or its URL.
    backend : str
        What reads it.
    backend_reason : str
        Why that does.
    format : str
        What Bio-Formats calls the format; "" where it does not read the file.
    bytes : int or None
        Size on disk; None where only a server knows, and for a folder of very many files.
    series : tuple of SeriesInfo
        Its images; of a store with many only the first few, see `images`.
    notes : tuple of str
        What is wrong in it and how it was understood all the same.
    layout : str
        Of a store: ``"image"``, ``"series"``, ``"plate"``, ``"labels"``, ``"array"`` or
        ``"arrays"``; "" for a file.
    images : int
        How many images there are.
    files : int or None
        How many files a folder has, or belong to the image; None where that was not counted to the
        end.
    used_files : tuple of str
        Where several files were found to belong to the image, these, up to 10,000.
    plate : PlateInfo or None
        The plate the images were taken in.
    original_metadata : dict or None
        What the vendor wrote of the first image; None where it was not asked for.
    views : ViewsInfo or None
        Of a BigDataViewer dataset.
    """

    path: str
    backend: str
    bytes: int | None
    series: tuple[SeriesInfo, ...]
    notes: tuple[str, ...]
    layout: str = ""
    images: int = 0
    files: int | None = None
    plate: PlateInfo | None = None
    backend_reason: str = ""
    format: str = ""
    used_files: tuple[str, ...] = ()
    original_metadata: dict[str, Any] | None = None
    views: ViewsInfo | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, texts, lists and dicts, as JSON takes them."""
        found = asdict(self)
        for series, info in zip(found["series"], self.series, strict=True):
            series["axes"] = AXES
            series["shape"] = info.shape
        return found


def describe(
    path: str | os.PathLike[str],
    *,
    images: int | None = None,
    original_metadata: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> FileInfo:
    """Return what is in an image file, without reading pixels.

    Parameters
    ----------
    path : str or Path
        The file or folder, or its URL.
    images : int, optional
        How many images to look at. By default all of a TIFF, and the first six of an OME-Zarr or a
        plate, which has thousands; the first hundred of what Bio-Formats reads.
    original_metadata : bool
        Ask also for what the vendor wrote.
    storage_options : dict, optional
        For a URL: what fsspec passes to the file system.

    Returns
    -------
    FileInfo
        Its series, with levels, channels, pixel sizes and how they are stored.
    """
    place = locate(path)
    options = OpenOptions(storage_options=dict(storage_options or {}))
    choice = registry.choose(place, None, options.storage_options)
    source: Any
    choice, source = registry.open_source(choice, place, options)
    place = registry.resolve(place, choice.backend)
    try:
        layout = _layout(source, place)
        count = len(source.images)
        plate = getattr(source, "plate", None)
        most = _most(source, layout, plate) if images is None else images
        notes: list[str] = []
        series = tuple(_series(source, n, place, options, notes) for n in range(min(most, count)))
        used = source.used_files() if hasattr(source, "used_files") else ()
        size, files = _on_disk(place, used)
        return FileInfo(
            path=str(path),
            backend=choice.backend.name,
            bytes=size,
            series=series,
            notes=(*choice.notes, *source.notes, *notes),
            layout=layout,
            images=count,
            files=files,
            plate=_plate(plate),
            backend_reason=choice.reason,
            format=str(getattr(source, "format", "")),
            used_files=tuple(map(str, used[:_MOST_FILES])) if len(used) > 1 else (),
            original_metadata=_original(source) if original_metadata else None,
            views=_views(getattr(source, "views", ())),
        )
    finally:
        source.close()


def _layout(source: Any, place: Location) -> str:
    if not hasattr(source, "tree"):
        return ""
    layout = str(source.tree()["layout"])
    return "labels" if layout == "series" and place.name == "labels" else layout


def _plate(plate: Plate | None) -> PlateInfo | None:
    if plate is None:
        return None
    fields = [len(well.fields) for well in plate.wells if well.fields]
    return PlateInfo(plate.name, plate.rows, plate.columns, len(fields), max(fields, default=0))


def _views(views: tuple[View, ...]) -> ViewsInfo | None:
    """Return what there is to say of all views; None where there are none."""
    if not views:
        return None
    labels: dict[str, dict[int, str]] = {}
    for view in views:
        for kind, number in view.attributes.items():
            labels.setdefault(kind, {})[number] = view.labels[kind]
    placed = [view for view in views if view.transforms and not view.missing]
    first = placed[0].affine.tolist() if placed else None
    return ViewsInfo(
        count=len(views),
        missing=sum(view.missing for view in views),
        times=len({view.time for view in views}),
        setups=len({view.setup for view in views}),
        attributes={kind: tuple(known[n] for n in sorted(known)) for kind, known in labels.items()},
        transforms=tuple(dict.fromkeys(t.name for view in placed for t in view.transforms)),
        affines=len({tuple(t.matrix for t in view.transforms) for view in placed}),
        affine=None if first is None else tuple(map(tuple, first)),
    )


def _most(source: Any, layout: str, plate: Plate | None) -> int:
    """Return how many images to look at where nobody says."""
    if layout or plate is not None:
        return _MOST_IMAGES
    # otherwise each costs when it is first asked for, or there may be hundreds of tiles
    known = isinstance(source.images, tuple) and not hasattr(source, "views")
    return len(source.images) if known else _MOST_LAZY


def _original(source: Any) -> dict[str, Any]:
    return dict(source.original_metadata(0)) if hasattr(source, "original_metadata") else {}


def _on_disk(place: Location, used: tuple[Path, ...]) -> tuple[int | None, int | None]:
    """Return bytes and number of files, each None where that is not known quickly."""
    if not isinstance(place, Path):
        return None, None
    every = chain.from_iterable(map(_sizes, used if len(used) > 1 else (place,)))
    sizes = list(islice(every, _MOST_FILES + 1))
    return (None, None) if len(sizes) > _MOST_FILES else (sum(sizes), len(sizes))


def _sizes(path: Path) -> Iterable[int]:
    """Return the sizes of a file, or of all files of a folder; none where it is not there."""
    if path.is_dir():
        return file_sizes(path)
    return [path.stat().st_size] if path.exists() else []


def _series(
    source: Any, number: int, place: Location, options: OpenOptions, notes: list[str]
) -> SeriesInfo:
    spec: ImageSpec = source.images[number]
    channels = [{"name": channel.name, "color": channel.color} for channel in spec.channels]
    size = spec.physical_size
    details = source.details(number, 0)
    return SeriesInfo(
        series=number,
        name=spec.name,
        dtype=spec.dtype.name,
        samples=spec.samples,
        levels=_levels(source, number, spec),
        channels=tuple(channels or [{"name": None, "color": None}] * spec.shape[3]),
        pixel_size={"x": size.x, "y": size.y, "z": size.z},
        time_increment=spec.time_increment,
        pixel_bytes=math.prod(spec.shape) * spec.dtype.itemsize,
        path=str(details.get("path", "")).rpartition("/")[0],
        stored_axes=str(details.get("axes", "")),
        ngff_version=str(details.get("ngff_version", "")),
        zarr_format=details.get("zarr_format"),
        labels=_labels(source, number, place, options, notes),
    )


def _labels(
    source: Any, number: int, place: Location, options: OpenOptions, notes: list[str]
) -> tuple[LabelInfo, ...]:
    """Return the label images of an image; those that cannot be read go to the notes."""
    if not hasattr(source, "labels"):
        return ()
    found = []
    for name, group in source.labels(number).items():
        try:
            with closing(type(source)(place, replace(options, group=group))) as labels:
                spec = labels.images[0]
                found.append(LabelInfo(name, spec.dtype.name, _levels(labels, 0, spec)))
        except (BioIOError, OSError) as exc:
            notes.append(f"labels {name!r} cannot be read: {exc}")
    return tuple(found)


def _levels(source: Source, number: int, spec: ImageSpec) -> tuple[LevelInfo, ...]:
    return tuple(_level(source, number, level, spec) for level in range(len(spec.levels)))


def _level(source: Source, number: int, level: int, spec: ImageSpec) -> LevelInfo:
    details = source.details(number, level)
    height, width = tuple(details.get("tile", spec.levels[level].tile))[:2]
    return LevelInfo(
        shape=spec.levels[level].shape,
        storage=str(details.get("storage", "")),
        tile=(int(height), int(width)),
        compression=str(details.get("compression", "")).removeprefix("adobe_"),
        path=str(details.get("path", "")),
        chunk=details.get("chunk"),
        shard=details.get("shard"),
    )
