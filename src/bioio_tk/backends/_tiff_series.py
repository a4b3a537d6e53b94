"""Images of a TIFF without OME-XML: what tifffile finds out about its series, as layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._tiff_files import TiffHandle, damaged, finish
from bioio_tk.backends._tiff_layers import Layer, Steps, missing
from bioio_tk.backends._tiff_segments import Page, Recipe
from bioio_tk.core.spec import Channel, ImageSpec, PhysicalSize, Quantity
from bioio_tk.errors import BioIOError

if TYPE_CHECKING:
    from tifffile import TiffPageSeries

_POSITIONS = "PR"  # Micro-Manager: each stage position is an image of its own
_CENTIMETER, _INCH = 3, 2
_PRINT_DPI = (0, 1, 72, 96, 100, 150, 200, 240, 300, 400, 600, 1200)


@dataclass(slots=True)
class Image:
    """One image: its description and its layers, full resolution first."""

    spec: ImageSpec
    layers: tuple[Layer, ...]


def read_series(handle: TiffHandle) -> list[Image]:
    """Return the images of a file as tifffile understands it."""
    try:
        series = handle.tif.series
        if not series:
            raise missing(handle.path, "the file holds no image")
        images = [image for s in series for part in _split(s) for image in _images(handle, part)]
    except BioIOError:
        raise
    except Exception as exc:  # tifffile raises whatever a broken tag leads it to
        raise damaged(handle.path, exc) from exc
    return images


def read_single(handle: TiffHandle) -> Image | None:
    """Return the image of a file that is one plain page, None where there is more to it."""
    if handle.single() is None:
        return None
    page = handle.page_at(handle.ifd.offset)
    alone: Steps = ((1, 0),)
    layer = Layer(page.recipe, lambda _: page, alone, alone, alone)
    size = _tag_size(
        handle.ifds.number(handle.ifd, 296, _INCH),
        handle.ifds.fraction(handle.ifd, 282),
        handle.ifds.fraction(handle.ifd, 283),
    )
    recipe = page.recipe
    return Image(
        ImageSpec(
            dtype=recipe.dtype,
            levels=(layer.level,),
            samples=recipe.samples * recipe.planes,
            physical_size=size,
        ),
        (layer,),
    )


def _split(series: TiffPageSeries) -> list[list[TiffPageSeries]]:
    """Return the levels of a series; where nothing says that they are, each is an image."""
    images: list[list[TiffPageSeries]] = []
    for level in series.levels:
        page = level.keyframe
        same = series.kind != "generic" or page.is_reduced or page.is_subifd
        if images and same:
            images[-1].append(level)
        else:
            images.append([level])
    return images


def _images(handle: TiffHandle, levels: list[TiffPageSeries]) -> list[Image]:
    """Return one image, or one for each stage position."""
    series = levels[0]
    layers = [_layers(handle, level) for level in levels]
    images = []
    for n in range(len(layers[0])):
        chain = tuple(level[n] for level in layers if n < len(level))
        spec = _spec(handle, series, chain)
        if len(layers[0]) > 1:
            spec = replace(spec, name=f"{spec.name} position {n}".strip())
        images.append(Image(spec, chain))
    return images


def _layers(handle: TiffHandle, series: TiffPageSeries) -> list[Layer]:
    keyframe = series.keyframe
    recipe = handle.recipe(keyframe)
    axes, shape = _outer(series)
    steps, positions = _steps(axes, shape)
    pages = series._pages
    expected = int(np.prod(shape, dtype=np.int64))
    if len(pages) == 1 and expected > 1:
        find, recipe = _virtual(handle, series, recipe, expected)
    else:
        find = _finder(handle, pages)
    if pages[0] is not None:
        find(0)  # a page whose tables do not fit its size is refused now, not at the first tile
    z, c, t = steps
    if not positions:
        return [Layer(recipe, find, z, c, t)]
    size, stride = positions
    return [Layer(recipe, find, z, c, t, first=n * stride) for n in range(size)]


def _outer(series: TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """Return the axes of a series that run over its pages."""
    page = series.keyframe
    axes, shape = series.get_axes(squeeze=False), tuple(series.get_shape(squeeze=False))
    inner, size = page.axes, tuple(page.shape)
    # drop what a page itself shows, and axes of length 1 that stand for nothing
    kept = [(a, n) for a, n in zip(axes, shape, strict=True)]
    while kept and kept[-1][1] == 1 and kept[-1][0] not in inner[-1:]:
        kept.pop()
    tail = tuple(n for _, n in kept[len(kept) - len(size) :])
    if tail == size:
        kept = kept[: len(kept) - len(size)]
        return "".join(a for a, _ in kept), tuple(n for _, n in kept)
    total, per_page = int(np.prod(shape, dtype=np.int64)), int(np.prod(size, dtype=np.int64))
    return "I", (max(1, total // max(1, per_page)),)


def _steps(
    axes: str, shape: tuple[int, ...]
) -> tuple[tuple[Steps, Steps, Steps], tuple[int, int] | None]:
    """Give every axis over pages to Z, C or T; also return that of stage positions."""
    strides = [int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
    found: dict[str, list[tuple[int, int]]] = {"Z": [], "C": [], "T": []}
    positions = None
    unknown = []
    for axis, size, stride in zip(axes, shape, strides, strict=True):
        if axis in _POSITIONS and positions is None:
            positions = (size, stride)
        elif axis in "ZCT":
            found[axis].append((size, stride))
        elif axis == "S":
            found["C"].append((size, stride))
        elif size > 1:
            unknown.append((axis, size, stride))
    for _, size, stride in unknown:
        # pages that nobody named are time points; a second such axis takes what is free
        free = next((a for a in "TZC" if not found[a]), "T")
        found[free].append((size, stride))
    z, c, t = (tuple(found[a]) or ((1, 0),) for a in "ZCT")
    return (z, c, t), positions


def _finder(handle: TiffHandle, pages: list[Any]) -> Any:
    made: dict[int, Page] = {}

    def find(number: int) -> Page:
        page = made.get(number)
        if page is None:
            source = pages[number] if number < len(pages) else None
            if source is None:
                raise missing(handle.path, "the file (or the set of files) does not hold it")
            try:
                page = handle.from_tifffile(source)
            except BioIOError:
                raise
            except Exception as exc:  # see read_series
                raise damaged(handle.path, exc) from exc
            made[number] = page
        return page

    return find


def _virtual(
    handle: TiffHandle, series: TiffPageSeries, recipe: Recipe, expected: int
) -> tuple[Any, Recipe]:
    """Return pages for a stack stored as one block behind a single directory."""
    first = handle.from_tifffile(series.keyframe)
    size = series.keyframe.nbytes
    start = int(first.offsets[0])
    strip = size // recipe.segments
    available = (handle.file.size - start) // size if size else 0
    if not recipe.raw:
        return _finder(handle, [series.keyframe]), recipe

    def find(number: int) -> Page:
        if number >= expected or number >= available:
            raise missing(
                handle.path,
                f"the file ends after {available} of the {expected} planes it speaks of",
            )
        if number == 0:
            return first
        move = np.int64(number * size)
        page = Page(handle.file, recipe, first.offsets + move, first.counts)
        return finish(page)

    if strip and not first.joined and recipe.segments > 1:
        raise missing(handle.path, "its planes are not stored as one block")
    return find, recipe


# ---------------------------------------------------------------------- what the file says of it


def _spec(handle: TiffHandle, series: TiffPageSeries, layers: tuple[Layer, ...]) -> ImageSpec:
    recipe = layers[0].recipe
    levels = tuple(layer.level for layer in layers)
    samples = recipe.samples * recipe.planes
    return ImageSpec(
        dtype=recipe.dtype,
        levels=levels,
        name=str(series.name or "").strip(),
        channels=_channels(handle, levels[0].shape[3]),
        samples=samples,
        physical_size=_physical_size(handle, series),
        time_increment=_time_increment(handle),
    )


def _channels(handle: TiffHandle, count: int) -> tuple[Channel, ...]:
    try:
        if handle.tif.is_lsm:
            colors = (handle.tif.lsm_metadata or {}).get("ChannelColors", {})
            names = colors.get("ColorNames", [])
            if len(names) == count:
                return tuple(Channel(str(name)) for name in names)
    except Exception:  # a name is not worth failing for
        return ()
    return ()


def _physical_size(handle: TiffHandle, series: TiffPageSeries) -> PhysicalSize:
    tif = handle.tif
    try:
        if tif.is_lsm and tif.lsm_metadata:
            meta = tif.lsm_metadata
            return PhysicalSize(
                *(_length(meta.get(f"VoxelSize{axis}", 0) * 1e6, "µm") for axis in "XYZ")
            )
        if tif.is_svs:
            found = _svs_mpp(series.keyframe.description)
            if found is not None:
                return PhysicalSize(found, found)
        if tif.is_imagej:
            return _imagej_size(handle, series)
        return _page_size(series.keyframe)
    except Exception:  # a size that cannot be understood is a size that is not known
        return PhysicalSize()


def _svs_mpp(description: str) -> Quantity | None:
    for part in description.split("|"):
        key, _, value = part.partition("=")
        if key.strip() == "MPP":
            return _length(float(value), "µm")
    return None


def _imagej_size(handle: TiffHandle, series: TiffPageSeries) -> PhysicalSize:
    from bioio_tk.core.units import length_unit

    meta = handle.tif.imagej_metadata or {}
    unit = str(meta.get("unit", "")).encode("latin-1", "ignore").decode("unicode_escape")
    if not unit or unit.lower() in ("pixel", "pixels"):
        return _page_size(series.keyframe)
    symbol = length_unit(unit)
    x, y = (_per_unit(series.keyframe.tags.valueof(tag)) for tag in (282, 283))
    return PhysicalSize(
        None if x is None else _length(1 / x, symbol),
        None if y is None else _length(1 / y, symbol),
        _length(float(meta.get("spacing", 0)), symbol),
    )


def _page_size(page: Any) -> PhysicalSize:
    tags = page.tags
    return _tag_size(tags.valueof(296, _INCH), tags.valueof(282), tags.valueof(283))


def _tag_size(unit: Any, across: Any, down: Any) -> PhysicalSize:
    """Return the size of a pixel from ResolutionUnit, XResolution and YResolution."""
    x, y = _per_unit(across), _per_unit(down)
    if x is None or y is None or unit not in (_CENTIMETER, _INCH):
        return PhysicalSize()
    if unit == _INCH and round(x) in _PRINT_DPI:
        return PhysicalSize()  # a default for printers, not the size of anything seen
    unit_um = 10_000.0 if unit == _CENTIMETER else 25_400.0
    return PhysicalSize(_length(unit_um / x, "µm"), _length(unit_um / y, "µm"))


def _per_unit(value: Any) -> float | None:
    if value is None or not value[0] or not value[1]:
        return None
    return float(value[0] / value[1])


def _time_increment(handle: TiffHandle) -> Quantity | None:
    try:
        if handle.tif.is_imagej:
            return _length(float((handle.tif.imagej_metadata or {}).get("finterval", 0)), "s")
        if handle.tif.is_lsm:
            return _length(float((handle.tif.lsm_metadata or {}).get("TimeInterval", 0)), "s")
    except Exception:  # as for sizes
        return None
    return None


def _length(value: float, unit: str) -> Quantity | None:
    return (float(value), unit) if np.isfinite(value) and value > 0 else None
