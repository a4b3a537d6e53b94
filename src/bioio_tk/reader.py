"""BioReader: an image file as a numpy-like 5-D array in YXZCT order."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.backends.base import OpenOptions
from bioio_tk.base import BioBase
from bioio_tk.core.index import Selection, select, trim
from bioio_tk.core.location import Url, absolute, locate
from bioio_tk.core.region import AXES
from bioio_tk.core.spec import at_level
from bioio_tk.core.views import ViewId
from bioio_tk.engine import read as engine
from bioio_tk.engine import tiles as windows
from bioio_tk.engine.pool import check_workers, ordered
from bioio_tk.errors import (
    BioIOError,
    BioIOWarning,
    ClosedError,
    ReadOnlyError,
    RegionError,
    SpecError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from ome_types import OME

    from bioio_tk.backends.base import Source
    from bioio_tk.core.location import Location
    from bioio_tk.core.plate import Plate
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.core.views import View
    from bioio_tk.engine.tiles import Tile
    from bioio_tk.lazy import LazyArray


class BioReader(BioBase):
    """Open an image file for reading.

    Parameters
    ----------
    file_path : str or Path
        The file or, for Zarr, the folder; ``~`` is expanded. Or its URL: ``http(s)://``,
        ``s3://``, ``gs://``, ``memory://``.
    max_workers : int, optional
        Threads to decode with; by default one per CPU this process may use.
    backend : str, optional
        ``"python"`` forces TIFF, ``"zarr"`` Zarr, ``"bdv"`` BigDataViewer, ``"java"`` (or
        ``"bioformats"``) Bio-Formats; by default the content decides, see `backend_reason`.
    series : int, optional
        Which image of the file (counted from 0, negative from the end).
    level : int, optional
        Which resolution (0 is the full one, negative from the end).
    dims : str, optional
        The axes of a Zarr array that does not name them, slowest first: ``"TZYX"``.
    group : str, optional
        Where in a Zarr store to begin: ``"A/1/0"``, ``"labels/nuclei"``.
    storage_options : dict, optional
        For a URL: what fsspec passes to the file system (``{"anon": True}`` …).

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no such file, or it is a folder that is no image.
    UnknownFormatError, DamagedFileError
        No backend knows the format, or the file is broken.
    SpecError
        There is no such series, level or backend.
    BackendMissingError
        A package that is not installed is needed; the message says which.

    Notes
    -----
    A reader may be shared by threads, pickled, and used after a fork. One whose file cannot be
    opened where it is unpickled says why when it is first used.

    Examples
    --------
    >>> from bioio_tk import BioReader
    >>> with BioReader("cells.ome.tif") as br:          # doctest: +SKIP
    ...     corner = br[:256, :256, 0, 0, 0]
    """

    _make: tuple[Callable[..., Any], Any] | None = None
    """What gives the source, where it is no file of its own."""

    def __init__(
        self,
        file_path: str | os.PathLike[str] | Url,
        max_workers: int | None = None,
        backend: str | None = None,
        *,
        series: int = 0,
        level: int = 0,
        dims: str | None = None,
        group: str = "",
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self._path = locate(file_path)
        self._workers = check_workers(max_workers)
        self._options = OpenOptions(dims, group.strip("/"), dict(storage_options or {}))
        self._choice = registry.choose(self._path, backend, self._options.storage_options)
        self._begin(series, level)

    @classmethod
    def _over(
        cls, path: Location, kind: str, reason: str, make: Callable[..., Any], *args: Any
    ) -> BioReader:
        """Return a reader of what is no file of its own: ``make(*args)`` gives the source.

        It is called again in a forked child, and where the reader is unpickled. `path` is what
        messages call it, `kind` and `reason` stand for the backend and why it is that one.
        """
        reader = object.__new__(cls)
        reader._hold(path, kind, reason, (make, args))
        reader._begin(0, 0)
        return reader

    def _hold(
        self, path: Location, kind: str, reason: str, make: tuple[Callable[..., Any], Any]
    ) -> None:
        self._path, self._make = path, make
        self._workers = check_workers(None)
        self._options = OpenOptions()
        self._choice = registry.Choice(registry.Backend(kind, (), ()), reason)

    def _begin(self, series: Any, level: Any) -> None:
        self._closed = False
        self._xml: str | None = None
        self._open()
        try:
            self._choose(series, level)
            for note in self._choice.notes:
                warnings.warn(note, BioIOWarning, stacklevel=3)
        except BaseException:
            self.close()
            raise

    def _choose(self, series: Any, level: Any) -> None:
        images = self._live.images
        self._series = _pick("series", series, len(images), lambda: self.series_names)
        levels = images[self._series].levels
        sizes = [f"{v.shape[1]} x {v.shape[0]}" for v in levels]
        self._level = _pick("level", level, len(levels), lambda: sizes)
        self._view = at_level(images[self._series], self._level)

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._cache = engine.OwnTiles()
        self._live: Source
        if self._make is None:
            opened = registry.open_source(self._choice, self._path, self._options)
            self._choice, self._live = opened
        else:
            make, args = self._make
            self._live = make(*args)
        self._pid = os.getpid()

    @property
    def _source(self) -> Source:
        if self._closed:
            raise ClosedError(f"the reader of {self._path.name!r} is closed")
        if self._pid != os.getpid():
            self._open()  # a forked child: locks and file positions of the parent are not for us
        return self._live

    # ------------------------------------------------------------------ pixels

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return pixels, numpy style: ``br[0:100, ::2, 3, [0, 2], -1]``.

        Parameters
        ----------
        key
            For Y, X, Z, C, T in turn: ints, slices with any step, lists or arrays of positions,
            boolean masks, and one ``...``. What is left out is taken whole.

        Returns
        -------
        numpy.ndarray
            Axes Y, X, Z, C, T. An int keeps its axis at length 1; then trailing axes of length 1
            are dropped, never below two axes.

        Raises
        ------
        RegionError
            An index is outside the image.
        """
        return self._read(select(key, self.shape))

    def read(
        self, X: Any = None, Y: Any = None, Z: Any = None, C: Any = None, T: Any = None
    ) -> NDArray[Any]:
        """Return pixels by axis; an axis left out is read whole.

        Parameters
        ----------
        X, Y, Z, C, T
            ``[start, stop]`` or ``(start, stop)`` for X, Y and Z; a sequence of positions for C
            and T; for every axis also an int, a slice, or an array of positions.

        Returns
        -------
        numpy.ndarray
            As `__getitem__`.
        """
        y, x, z, _, _ = self.shape
        key = (
            _span("Y", Y, y),
            _span("X", X, x),
            _span("Z", Z, z),
            slice(None) if C is None else C,
            slice(None) if T is None else T,
        )
        return self._read(select(key, self.shape))

    def _read(self, selection: Selection) -> NDArray[Any]:
        pixels = self._read5(selection)
        kept = len(trim(pixels.shape))
        return pixels if kept == 5 else pixels[(slice(None),) * kept + (0,) * (5 - kept)]

    def _read5(self, selection: Selection) -> NDArray[Any]:
        return engine.read(
            self._source,
            self._series,
            self._level,
            selection,
            workers=self._workers,
            cache=self._cache,
        )

    @property
    def array(self) -> LazyArray:
        """The image as a lazy array with numpy's own rule: ints drop their axis."""
        from bioio_tk.lazy import LazyArray

        return LazyArray(self)

    def tiles(
        self, size: Any = 1024, *, overlap: int | tuple[int, int] = 0, order: str = "TCZYX"
    ) -> Iterator[Tile]:
        """Walk through the image in windows; the next ones are read in the background.

        Parameters
        ----------
        size : int or sequence of int
            Window along Y and X, or along Y, X, Z, C, T (1 for those left out).
        overlap : int or (int, int)
            Pixels that `data` shows around the window, in Y and X, where the image goes on.
        order : str
            The axes, slowest first.

        Yields
        ------
        Tile
            With `slices`, `data` and `crop`.

        Examples
        --------
        >>> for tile in br.tiles(1024, overlap=16):               # doctest: +SKIP
        ...     bw[tile.slices] = tile.crop(smooth(tile.data))
        """
        window = windows.check_size(size)
        halo = windows.check_overlap(overlap)
        shape = self.shape
        boxes = windows.windows(shape, window, order)

        def load(box: Any) -> Tile:
            outer, inner = windows.widen(box, halo, shape)
            data = self[outer]
            return windows.Tile(box, data, inner[: data.ndim])

        return ordered(load, boxes, ahead=self._workers)

    def __call__(
        self,
        tile_size: Any,
        tile_stride: Any = None,
        batch_size: int | None = None,
        channels: Any = (0,),
    ) -> Iterator[tuple[NDArray[Any], tuple[list[list[int]], ...]]]:
        """Walk through the first plane in batches of equal tiles, padded at the borders.

        Parameters
        ----------
        tile_size : sequence of two int
            Height and width of the tiles in pixels.
        tile_stride : sequence of two int, optional
            Rows and columns from a tile to the next; by default the tile size. Where it shares
            no number with `tile_size`, tiles start half the difference before the image and the
            border is mirrored; otherwise they start at 0 and the border is 0.
        batch_size : int, optional
            Tiles at a time, by default the smaller of 32 and `maximum_batch_size`.
        channels : sequence of int
            Channels to return; the first one by default.

        Yields
        ------
        images : numpy.ndarray
            Shape (tiles, height, width, channels).
        index : tuple of 5 list
            For X, Y, Z, C, T one entry a tile; X, Y and Z are ``[min, max]``.
        """
        from bioio_tk.batches import batches

        return batches(self, tile_size, tile_stride, batch_size, channels)

    def __iter__(self) -> Iterator[Any]:
        raise SpecError(
            "a reader cannot be iterated directly: use `for tile in br.tiles(1024)` or "
            "`for images, index in br(tile_size=[256, 256])`"
        )

    def maximum_batch_size(self, tile_size: Any, tile_stride: Any = None) -> int:
        """Return the most tiles that `__call__` gives at a time."""
        from bioio_tk.batches import maximum_batch_size

        return maximum_batch_size(self.Y, tile_size, tile_stride)

    # ------------------------------------------------------------------ the file

    @property
    def n_series(self) -> int:
        """Number of images in the file."""
        return len(self._live.images)

    @property
    def series(self) -> int:
        """Number of the image that is open, from 0."""
        return self._series

    @property
    def series_names(self) -> list[str]:
        """Name of each image in the file, "" for one without; on a plate its place, "A/1/0"."""
        names = getattr(self._live.images, "names", None)  # where asking each image is costly
        return [image.name for image in self._live.images] if names is None else list(names)

    @property
    def plate(self) -> Plate | None:
        """The plate whose wells the images were taken in, None where there is none."""
        return getattr(self._live, "plate", None)

    @property
    def views(self) -> tuple[View, ...]:
        """The stacks of a BigDataViewer dataset, of all series; empty for other formats.

        By series, then time point, then channel. Each says its ids and attributes, where this
        reader has it, whether it is missing, and its transforms.

        Examples
        --------
        >>> with BioReader("embryo.xml") as br:                              # doctest: +SKIP
        ...     left = [view for view in br.views if view.labels["angle"] == "left"]
        """
        return tuple(getattr(self._source, "views", ()))

    @property
    def affines(self) -> dict[ViewId, NDArray[Any]]:
        """Where each view lies: by time point and setup, the (3, 4) matrix from pixels to world.

        All transforms of a view taken together, for the pixel (x, y, z, 1) of its full resolution.
        Views that are missing have none.
        """
        return {
            ViewId(view.time, view.setup): view.affine for view in self.views if not view.missing
        }

    @property
    def labels(self) -> Labels:
        """The label images (segmentations) of the image: name to a reader of its own.

        Examples
        --------
        >>> with BioReader("cells.ome.zarr").labels["nuclei"] as nuclei:    # doctest: +SKIP
        ...     outlines = nuclei[:]
        """
        labels = getattr(self._source, "labels", None)
        return Labels(self, {} if labels is None else labels(self._series))

    @property
    def levels(self) -> int:
        """Number of resolutions of the image."""
        return len(self._live.images[self._series].levels)

    @property
    def level(self) -> int:
        """Number of the resolution that is open; 0 is the full one."""
        return self._level

    @property
    def level_shapes(self) -> list[Shape5]:
        """Size of each resolution along Y, X, Z, C, T."""
        return [v.shape for v in self._live.images[self._series].levels]

    @property
    def tile_shape(self) -> Shape5:
        """Size of the tiles the file is read in, along Y, X, Z, C, T."""
        return self._live.images[self._series].levels[self._level].tile

    @property
    def details(self) -> dict[str, Any]:
        """How the open resolution is stored: tiling, compression and more."""
        return self._source.details(self._series, self._level)

    @property
    def backend(self) -> str:
        """Name of the backend that reads the file: ``"python"`` (TIFF), ``"zarr"``, ``"java"``."""
        return self._choice.backend.name

    @property
    def backend_reason(self) -> str:
        """Why it is that backend: ``"content is TIFF"``, ``"asked for"`` …."""
        return self._choice.reason

    @property
    def original_metadata(self) -> dict[str, Any]:
        """What the vendor wrote, by name: of a TIFF the tags, of a Zarr the attributes.

        Values are texts, numbers, True, None, lists and dicts. They are not interpreted: what they
        mean in terms of OME is in `metadata`.
        """
        read = getattr(self._source, "original_metadata", None)
        return {} if read is None else dict(read(self._series))

    @property
    def used_files(self) -> tuple[Location, ...]:
        """All files that belong to what was opened, the folder of a Zarr, or the URL."""
        used = getattr(self._source, "used_files", None)
        found = () if used is None else tuple(used())
        if found or self._make is not None:
            return found
        return (registry.resolve(self._path, self._choice.backend),)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was wrong in the file and how it was understood all the same."""
        return (*self._choice.notes, *self._live.notes)

    @property
    def ome_xml(self) -> str | None:
        """The OME-XML document as it stands in the file, None where there is none."""
        if self._xml is None:
            self._xml = self._source.ome_xml()
        return self._xml

    @property
    def max_workers(self) -> int:
        """Threads that decode."""
        return self._workers

    @classmethod
    def image_size(cls, path: str | os.PathLike[str]) -> tuple[int, int]:
        """Return (width, height) of the first image of a file, without reading pixels."""
        with cls(path, max_workers=1) as reader:
            return reader.X, reader.Y

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        self._closed = True
        live = self.__dict__.get("_live")
        if live is not None:
            live.close()
            self._cache.clear()

    def __del__(self) -> None:
        live = self.__dict__.get("_live")
        if live is not None:
            live.close()  # no more than that: this may run while any lock is held

    def __enter__(self) -> BioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": absolute(self._path) if self._make is None else self._path,
            "workers": self._workers,
            "backend": self.backend,
            "why": (self._choice.reason, self._choice.notes),
            "series": self._series,
            "level": self._level,
            "options": self._options,
            "closed": self._closed,
            "make": self._make,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            self._reopen(state)
        except (BioIOError, OSError) as exc:
            # raised here it would end a worker of a pool, which starts the next one, for ever
            self._failed = exc
            return
        self._choice = registry.Choice(self._choice.backend, *state["why"])
        if state["closed"]:
            self.close()

    def _reopen(self, state: dict[str, Any]) -> None:
        if state["make"] is not None:
            self._hold(state["path"], state["backend"], state["why"][0], state["make"])
            self._workers = state["workers"]
            self._begin(state["series"], state["level"])
            return
        self.__init__(  # type: ignore[misc]
            state["path"],
            state["workers"],
            state["backend"],
            series=state["series"],
            level=state["level"],
            dims=state["options"].dims,
            group=state["options"].group,
            storage_options=state["options"].storage_options,
        )

    def __getattr__(self, name: str) -> Any:
        failed = self.__dict__.get("_failed")
        if failed is not None and not name.startswith("__"):
            raise failed
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis}={n}" for axis, n in zip(AXES, self.shape, strict=True))
        more = [f"series {self._series} of {self.n_series}"] if self.n_series > 1 else []
        more += [f"level {self._level} of {self.levels}"] if self.levels > 1 else []
        more += [f"{self.backend}: {self.backend_reason}"]
        more += ["closed"] if self._closed else []
        return f"<BioReader {self._path.name!r} {axes} {self.dtype.name}{_join(more)}>"

    # ------------------------------------------------------------------ BioBase

    def _spec(self) -> ImageSpec:
        return self._view

    def _get_shape(self) -> Shape5:
        return self._view.levels[0].shape

    def _get_metadata(self) -> OME:
        from bioio_tk.meta import ome

        xml, images = self.ome_xml, self._live.images
        if xml is None:
            return ome.default_ome(images)
        if self._live.notes:  # the document is wrong somewhere: its geometry becomes the true one
            return ome.to_ome(ome.document(images, metadata=xml))
        return ome.to_ome(xml)

    def _set(self, name: str, value: Any) -> None:
        raise ReadOnlyError(f"{name} of a BioReader cannot be set: it is what the file says")


class Labels(Mapping[str, BioReader]):
    """The label images of an image; each opens when it is asked for, and is yours to close."""

    def __init__(self, image: BioReader, groups: dict[str, str]) -> None:
        self._image = image
        self._groups = groups

    def __getitem__(self, name: str) -> BioReader:
        if name not in self._groups:
            known = ", ".join(self._groups) or "none"
            raise KeyError(f"there are no labels called {name!r}; there are: {known}")
        image = self._image
        return BioReader(
            image.path,
            image.max_workers,
            group=self._groups[name],
            storage_options=image._options.storage_options,  # noqa: SLF001
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __repr__(self) -> str:
        return f"<labels of {self._image.path.name!r}: {', '.join(self._groups) or 'none'}>"


def check_path(file_path: Any) -> Path:
    """Return the path, ``~`` expanded; SpecError for what is no path of this machine."""
    place = locate(file_path)
    if isinstance(place, Url):
        raise SpecError(f"{str(place)!r} is a URL: give the path of a file on this machine")
    return place


def _pick(what: str, number: Any, count: int, names: Callable[[], list[str]]) -> int:
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise SpecError(f"{what}={number!r}: give a whole number from 0 to {count - 1}")
    index = number.__index__()
    if not -count <= index < count:
        known = ", ".join(f"{i}: {name or 'unnamed'}" for i, name in enumerate(names()[:20]))
        raise SpecError(f"{what}={index} does not exist; there are {count} ({known})")
    return int(index % count)


def _span(axis: str, value: Any, size: int) -> Any:
    """Return the index for X, Y or Z, where a pair means [start, stop]."""
    if value is None:
        return slice(None)
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) == 1:
        return value[0]
    if len(value) != 2:
        raise RegionError(f"{axis}={value!r}: give [start, stop], an int or a slice")
    start, stop = value
    if not 0 <= start <= stop <= size:
        raise RegionError(f"{axis}=[{start}, {stop}] does not fit: the image has {axis}={size}")
    return slice(start, stop)


def _join(parts: list[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""
