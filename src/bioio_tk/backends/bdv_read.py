"""BdvSource: the views of a BigDataViewer dataset as images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._bdv_found import xml_beside, xml_of_partition
from bioio_tk.backends._bdv_ome import with_ome
from bioio_tk.backends._bdv_series import Series, arrange, describe
from bioio_tk.backends.base import DEFAULTS, Caps, OpenOptions
from bioio_tk.core.text import plural
from bioio_tk.core.views import Shape3, View, ViewId, ViewSetup
from bioio_tk.errors import UnsupportedError
from bioio_tk.meta.bdv import HDF5, N5, ZARR, Loader, SpimData, loader_path, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from bioio_tk.backends._bdv_pixels import Box, Pixels
    from bioio_tk.core.location import Location
    from bioio_tk.core.region import Slices5
    from bioio_tk.core.spec import Address, ImageSpec

_HDF5 = b"\x89HDF\r\n\x1a\n"
_PARTIAL = ".partial"
_MOST_NOTES = 20
_MOST_NAMED = 6


class BdvSource:
    """Channels as C, time points as T; each combination of other attributes is a series.

    Views that are missing read as 0.

    Parameters
    ----------
    location : Path
        The XML of a dataset, or its HDF5 file.
    options : OpenOptions
        Not used.

    Raises
    ------
    FileNotFoundError
        There is no such file, or none where the XML says the pixels are.
    DamagedFileError, FormatError
        It is broken, or something else.
    UnsupportedError
        The pixels are stored in a way that cannot be read.
    """

    def __init__(self, location: Location, options: OpenOptions = DEFAULTS) -> None:
        path = Path(str(location))
        self._xml, notes, self._data, self._pixels = _opened(path)
        try:
            self._arranged = arrange(self._data, self._pixels.stored, notes)
            if not self._arranged:
                raise UnsupportedError(f"{str(path)!r} describes no view whose size is known")
            times = len(self._data.times)
            self.images: tuple[ImageSpec, ...] = tuple(
                describe(self._data, series, times, notes) for series in self._arranged
            )
            self._ome: str | None = getattr(self._pixels, "ome_xml", None)
            if self._ome is not None:
                self.images, self._ome = with_ome(self.images, self._ome, notes)
            self._there = self._present(notes)
        except BaseException:
            self.close()
            raise
        self.caps = Caps()
        self.notes = _few([*self._data.notes, *notes, *self._pixels.notes])
        self._views: tuple[View, ...] | None = None

    def _present(self, notes: list[str]) -> frozenset[ViewId]:
        """Return the views that have pixels, and say where the XML and the pixels disagree."""
        data, stored = self._data, self._pixels.views()
        every = {ViewId(time, setup) for time in data.times for setup in data.setups}
        lost = sorted(every - stored - data.missing)
        if lost:
            notes.append(_told(lost, "not there, though the XML does not say so, and read as 0"))
        hidden = sorted(stored & data.missing)
        if hidden:
            notes.append(_told(hidden, "said to be missing, but stored, and read as 0"))
        unknown = sorted(stored - every)
        if unknown:
            notes.append(_told(unknown, "stored, but not in the XML, and left out"))
        return frozenset(stored & every - data.missing)

    # ------------------------------------------------------------------ pixels

    def _place(self, at: Address) -> tuple[ViewId, Box]:
        """Return which view a tile is of, and where in it."""
        _, _, _, c, t = at.key
        region = self.images[at.image].levels[at.level].grid.region(at.key)
        y, x, z = region.slices()[:3]
        setup = self._arranged[at.image].setups[c]
        return ViewId(self._data.times[t], setup), (z, y, x)

    def read_tile(self, at: Address) -> NDArray[Any]:
        view, box = self._place(at)
        sizes = tuple(part.stop - part.start for part in box)
        pixels = np.empty(sizes, self.images[at.image].dtype)
        self._fill(view, at.level, box, pixels)
        return pixels.transpose(1, 2, 0)[..., np.newaxis, np.newaxis]

    def read_part(self, at: Address, part: Slices5, out: NDArray[Any]) -> bool:
        if any(piece.step not in (None, 1) for piece in part):
            return False
        view, box = self._place(at)
        y, x, z = part[:3]
        wanted: Any = tuple(
            slice(whole.start + piece.start, whole.start + piece.stop)
            for whole, piece in zip(box, (z, y, x), strict=True)
        )
        if wanted != box and not self._in_parts(view, at, wanted):
            return False
        self._fill(view, at.level, wanted, out[:, :, :, 0, 0].transpose(2, 0, 1))
        return True

    def _in_parts(self, view: ViewId, at: Address, wanted: Box) -> bool:
        """Return whether a part of a tile is worth more than the whole of it, which is kept."""
        if view not in self._there or self._pixels.parts(view.setup, at.level):
            return True
        level = self._arranged[at.image].stored.levels[at.level]
        return level.block is not None and _blocks(wanted, level.block) * 2 < _blocks(
            self._place(at)[1], level.block
        )

    def _fill(self, view: ViewId, level: int, box: Box, out: NDArray[Any]) -> None:
        if view in self._there:
            self._pixels.read(view, level, box, out)
        else:
            out[...] = 0

    # ------------------------------------------------------------------ what it is

    @property
    def format(self) -> str:
        """What it is called."""
        return self._pixels.format

    @property
    def views(self) -> tuple[View, ...]:
        """Every stack of every series, by series, then time point, then channel."""
        if self._views is None:
            self._views = tuple(self._all_views())
        return self._views

    def _all_views(self) -> Iterator[View]:
        data = self._data
        for number, series in enumerate(self._arranged):
            z, y, x = _full(data.setups[series.setups[0]], series)
            labels = [_labels(data, data.setups[setup]) for setup in series.setups]
            for t, time in enumerate(data.times):
                for c, setup in enumerate(series.setups):
                    view = ViewId(time, setup)
                    yield View(
                        time,
                        setup,
                        data.setups[setup].name,
                        data.setups[setup].attributes,
                        labels[c],
                        number,
                        c,
                        t,
                        (y, x, z, 1, 1),
                        view not in self._there,
                        data.transforms.get(view, ()),
                    )

    @property
    def data(self) -> SpimData:
        """What the XML says."""
        return self._data

    def ome_xml(self) -> str | None:
        return self._ome

    def original_metadata(self, image: int) -> dict[str, Any]:
        data = self._data
        setups = [data.setups[n] for n in self._arranged[image].setups]
        return {
            "loader": data.loader.format,
            **data.created_by,
            "timepoints": list(data.times),
            "setups": [_plain(setup) for setup in setups],
            "attributes": {
                kind: {
                    str(n): {"name": found[n].name, **found[n].properties}
                    for n in sorted({setup.attributes.get(kind, -1) for setup in setups})
                    if n in found
                }
                for kind, found in data.attributes.items()
            },
        }

    def details(self, image: int, level: int) -> dict[str, Any]:
        series = self._arranged[image]
        found = series.stored.levels[level]
        first = next((v for v in self._series_views(series) if v in self._there), None)
        z, y, x = found.block or found.shape
        return {
            "storage": "raw" if found.block is None else "blocks",
            "tile": (y, x, z, 1, 1),
            "chunk": found.block,
            "compression": found.compression,
            "path": "" if first is None else self._pixels.path(first, level),
            "factor": found.factor[::-1],
            "parts": self._pixels.parts(series.setups[0], level),
        }

    def _series_views(self, series: Series) -> Iterable[ViewId]:
        return (ViewId(t, setup) for t in self._data.times for setup in series.setups)

    def used_files(self) -> tuple[Path, ...]:
        own = () if self._xml is None else (self._xml,)
        parts = (self._pixels.used_files()[0].parent / p.path for p in self._data.loader.partitions)
        return tuple(dict.fromkeys((*own, *self._pixels.used_files(), *parts)))

    def close(self) -> None:
        self._pixels.close()


def _opened(path: Path) -> tuple[Path | None, list[str], SpimData, Pixels]:
    """Return the XML, notes, what it says, and the pixels."""
    with path.open("rb") as file:
        is_hdf5 = file.read(len(_HDF5)) == _HDF5
    if not is_hdf5:
        data = parse(path.read_bytes(), str(path))
        notes: list[str] = []
        return path, notes, data, _pixels(path, data, notes)
    xml = xml_beside(path)
    if xml is not None:
        data = parse(xml.read_bytes(), str(xml))
        if data.loader.format == HDF5 and _same(_where(xml, data), path):
            return xml, [], data, _hdf5(path)
    return _alone(path)


def _alone(path: Path) -> tuple[None, list[str], SpimData, Pixels]:
    """Return an HDF5 file that no XML describes: each setup is a series."""
    pixels = _hdf5(path)
    whole = xml_of_partition(path)
    notes = [
        "no XML describes this file: each setup is a series, and sizes of pixels, channels and "
        "transforms are unknown"
        if whole is None
        else f"this is a part of {whole.name!r} alone: open that one to have all views with what "
        "is known of them"
    ]
    times = tuple(sorted({view.time for view in pixels.views()}))
    setups = {setup: ViewSetup(setup) for setup in pixels.setups()}
    return None, notes, SpimData(Loader(HDF5, path.name), setups=setups, times=times), pixels


def _pixels(xml: Path, data: SpimData, notes: list[str]) -> Pixels:
    """Return the pixels that an XML names."""
    make = _LOADERS.get(data.loader.format)
    if make is None:
        raise UnsupportedError(
            f"{str(xml)!r} keeps its pixels as {data.loader.format!r}, which is not read here; "
            f"these are: {', '.join(_LOADERS)}. BigStitcher in Fiji saves a dataset anew as one of "
            "them (Resave Dataset)"
        )
    where = _where(xml, data)
    if not where.exists():
        same = xml.with_suffix(".h5")
        if data.loader.format != HDF5 or not same.exists():
            raise FileNotFoundError(_missing(xml, data, where))
        notes.append(f"there is no {data.loader.path!r}, as the XML says: {same.name!r} is read")
        where = same
    return make(where, data)


def _where(xml: Path, data: SpimData) -> Path:
    """Return where the pixels are; of a dataset that is not in its place yet, where they wait."""
    final = xml.with_name(xml.name.removesuffix(_PARTIAL))
    where = loader_path(data, final)
    if final == xml:
        return where  # which may be the folder itself, and has no name then
    waiting = where.with_name(f"{where.name}{_PARTIAL}")
    return waiting if waiting.exists() else where


def _missing(xml: Path, data: SpimData, where: Path) -> str:
    text = f"{str(xml)!r} names {data.loader.path!r} for its pixels, but there is no {str(where)!r}"
    if where.parent != xml.parent:
        text += f", nor a file of that name in {str(xml.parent)!r}"
    return f"{text}: put it there, or correct the path in the XML"


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        # what it names is not there: it was renamed, and so was the XML
        return not one.exists()


def _hdf5(path: Path, data: SpimData | None = None) -> Pixels:
    from bioio_tk.backends._bdv_hdf5 import Hdf5Pixels

    return Hdf5Pixels(path)


def _zarr(path: Path, data: SpimData) -> Pixels:
    from bioio_tk.backends._bdv_zarr import ZarrPixels

    return ZarrPixels(path, data)


def _n5(path: Path, data: SpimData) -> Pixels:
    from bioio_tk.backends._bdv_n5 import N5Pixels

    return N5Pixels(path)


_LOADERS: dict[str, Callable[[Path, SpimData], Pixels]] = {HDF5: _hdf5, N5: _n5, ZARR: _zarr}


def _full(setup: ViewSetup, series: Series) -> Shape3:
    """Return how large the stacks are at full resolution, which may not be stored."""
    first = series.stored.levels[0]
    if all(by == 1 for by in first.factor):
        return first.shape
    z, y, x = (round(n * by) for n, by in zip(first.shape, first.factor, strict=True))
    return setup.size or (z, y, x)


def _blocks(box: Box, block: tuple[int, int, int]) -> int:
    """Return how many blocks a box touches."""
    count = 1
    for part, n in zip(box, block, strict=True):
        count *= -(-part.stop // n) - part.start // n
    return count


def _labels(data: SpimData, setup: ViewSetup) -> dict[str, str]:
    """Return what people call the attributes of a setup."""
    found = {}
    for kind, number in setup.attributes.items():
        attribute = data.attributes.get(kind, {}).get(number)
        found[kind] = (attribute.name if attribute else "") or str(number)
    return found


def _plain(setup: ViewSetup) -> dict[str, Any]:
    """Return a setup in types that JSON has, sizes along X, Y, Z as in the XML."""
    return {
        "id": setup.id,
        "name": setup.name,
        "size": None if setup.size is None else list(setup.size[::-1]),
        "voxelSize": None if setup.voxel_size is None else list(setup.voxel_size),
        "unit": setup.voxel_unit,
        "attributes": dict(setup.attributes),
        "camera": dict(setup.camera),
    }


def _told(views: list[ViewId], what: str) -> str:
    """Return what is the matter with some views, and the first of them by name."""
    named = [f"time point {view.time} of setup {view.setup}" for view in views[:_MOST_NAMED]]
    more = ["…"] if len(views) > _MOST_NAMED else []
    return f"{plural(len(views), 'view is', 'views are')} {what}: {', '.join([*named, *more])}"


def _few(notes: Iterable[str]) -> tuple[str, ...]:
    found = list(dict.fromkeys(notes))
    more = len(found) - _MOST_NOTES
    return tuple(found) if more <= 1 else (*found[:_MOST_NOTES], f"and {more} more such notes")
