"""BioWriter: a new image file that takes 5-D numpy-like assignment in YXZCT order."""

from __future__ import annotations

import os
import threading
import warnings
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends import registry
from bioio_tk.backends.base import StoreOptions
from bioio_tk.base import BioBase
from bioio_tk.core.assign import place, spread
from bioio_tk.core.downsample import METHODS
from bioio_tk.core.dtype import CASTS, as_pixels
from bioio_tk.core.index import Selection, select
from bioio_tk.core.location import Url, locate
from bioio_tk.core.region import AXES
from bioio_tk.core.spec import Level, fit_tile
from bioio_tk.draft import ALIASES, PROPERTIES, Draft
from bioio_tk.engine.pool import check_workers
from bioio_tk.engine.scratch import Scratch
from bioio_tk.engine.write import TileWriter
from bioio_tk.errors import (
    BioIOError,
    ClosedError,
    PixelTypeError,
    ReadOnlyError,
    SpecError,
    UnsupportedError,
)
from bioio_tk.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from ome_types import OME

    from bioio_tk.backends.base import Journal, Sink
    from bioio_tk.backends.registry import Backend
    from bioio_tk.core.location import Location
    from bioio_tk.core.plate import Plate
    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.core.spec import Address, ImageSpec
    from bioio_tk.core.stacks import Layout
    from bioio_tk.stream.plate import Plate as StreamPlate

_TILE = 1024
"""Height and width of tiles where nothing is said of them."""
_MOST_PIXELS = 1 << 25
"""Of a tile that is as wide as the image."""


class BioWriter(BioBase):
    """Create an image file and write pixels into it: any region, any order, any thread.

    The file grows beside its place (``NAME.partial``) and moves there in `close()`. If the body
    of a ``with`` block raises, what was at its place before stays as it was.

    Parameters
    ----------
    file_path : str or Path
        The file to make; its ending says the format: ``.ome.tif`` …, ``.ome.zarr`` or ``.zarr``
        (a folder; ``.ozx`` and ``.zip`` pack it), ``.h5`` (HDF5), ``.xml`` (BigDataViewer, its
        pixels in the ``.h5`` of the same name), ``.npy``, ``.suite2p`` (a folder of raw int16
        movies; also ``FOLDER/data_raw.bin``), and through Bio-Formats ``.ome`` (OME-XML),
        ``.ics``, ``.dcm``, ``.jp2``, ``.png`` and ``.avi``. An OME-Zarr may also go to a URL
        (``s3://`` …).
    max_workers : int, optional
        Threads to encode with; by default one per CPU this process may use.
    backend : str, optional
        ``"python"`` forces OME-TIFF, ``"zarr"`` OME-Zarr, ``"bdv"`` BigDataViewer (also with a
        name that ends in ``.h5``); by default the ending decides.
        ``"java"`` never writes OME-TIFF: an ending that is not Bio-Formats' is refused.
    metadata : ome_types.OME or str, optional
        Metadata to carry over, also shape, pixel type, channels and sizes of its first image.
    image : numpy.ndarray, optional
        Array (Y, X[, Z[, C[, T]]]) to take shape and pixel type from. If nothing is written
        before `close()`, it is written.
    like : BioReader, optional
        An image to take everything from but the pixels.
    compression : str, optional
        Name of the codec: for OME-TIFF ``"deflate"`` (default), ``"zstd"``, ``"lzw"``, ``"lzma"``,
        ``"packbits"``, ``"jpeg"``, ``"jpeg2000"``, ``"jpegxl"``, ``"lerc"``, ``"none"``; for
        OME-Zarr ``"blosc-zstd"`` (default), ``"zstd"`` (default for pixels of one byte, and with
        a level), ``"blosc-lz4"``, ``"gzip"``, ``"none"``;
        for HDF5 and BigDataViewer ``"gzip"`` (default), ``"none"``.
    compression_level : int, optional
        Level or quality, in the codec's own scale.
    predictor : bool, optional
        Store differences of neighbouring pixels, where the codec allows it.
    tile_size : int or (int, int)
        Height and width of the tiles (in OME-Zarr: chunks), multiples of 16.
    pyramid : bool or int, optional
        True adds smaller resolutions until a plane fits into 256 pixels; a number is that of all
        resolutions, the full one included. By default none; for labels as many as their image has,
        for BigDataViewer those that it proposes itself.
    pyramid_z : bool
        Shrink along Z as well, as soon as pixels are as large as planes are apart (OME-Zarr).
    downsample : str, optional
        How pixels are joined: ``"mean"`` (default), ``"nearest"``, ``"mode"`` (the default for
        labels), ``"median"`` or ``"max"``.
    cast : str, optional
        Convert pixels of another type: ``"exact"`` (raise where a value does not fit), ``"clip"``,
        ``"scale"`` or ``"wrap"``. By default another type is an error.
    overwrite : bool
        Replace the image that is there, once the new one is complete. A folder that holds
        anything but an OME-Zarr is never replaced.
    mode : {"w", "create", "r+"}
        ``"w"`` writes an image. For several processes that write one OME-Zarr: ``"create"`` lays
        it out, ``"r+"`` writes whole shards (or chunks, where there are no shards) into it, and
        `bioio_tk.finish` makes the pyramid and moves it into place.
    ngff_version : {"0.5", "0.4"}
        Version of OME-Zarr: 0.5 (default) is Zarr v3, 0.4 is Zarr v2.
    chunks : int or tuple, optional
        Size of the chunks of an OME-Zarr along Y, X[, Z[, C[, T]]], of the blocks of BigDataViewer
        along Y, X[, Z]; any numbers.
    shards : int, tuple or False, optional
        Size of the shards, multiples of the chunks. By default shards are made where there would
        be thousands of chunks, so large that there are thousands of files, not millions.
    group : str, optional
        Write into an OME-Zarr of several images: ``"labels/nuclei"`` adds a label image,
        ``"1"`` a series, ``"A/3/0"`` a field of a plate.
    plate : Plate, optional
        With `group`: name, rows and columns of the plate.
    label : dict, optional
        With a group of labels: ``{"colors": {1: (255, 0, 0, 255)}, "properties": {1: {…}}}``.
    storage_options : dict, optional
        For a URL: what fsspec passes to the file system.
    ome : bool
        False leaves the metadata of OME out: a plain TIFF that ImageJ opens as a hyperstack, a
        Zarr array without those of NGFF. What only they can say (names and colours of channels)
        is lost.
    dataset_name : str, optional
        Name of the dataset in an HDF5 file, ``"mov"`` by default.
    times_per_file, setups_per_file : int, optional
        BigDataViewer: put so many time points (view setups) into each of several HDF5 files, which
        the one that is opened links to.
    views : Layout, optional
        BigDataViewer: what the stacks are called and where they lie, where that does not follow
        from names, sizes and position of the image.
    journal : Journal, optional
        Keeps a record of the tiles that are stored, so that an interrupted write can be gone on
        with. It is left out where that cannot be; `journal_note` says why.
    **properties
        Any property of the image: ``X Y Z C T`` (or ``shape``), ``dtype``, ``channel_names``,
        ``channel_colors``, ``physical_size_x`` … as ``(value, unit)``, ``time_increment``,
        ``samples_per_pixel``, ``name``; ``bigtiff=True`` or ``False`` for OME-TIFF.

    Raises
    ------
    TypeError
        A keyword is unknown.
    SpecError, UnsupportedError
        An argument makes no sense, or the format cannot store it; nothing is left on disk.
    TargetExistsError, TargetBusyError
        The file exists and `overwrite` is not set, or another writer is at work on it.

    Examples
    --------
    >>> with BioWriter("out.ome.tif", shape=(512, 512), dtype="uint16") as bw:  # doctest: +SKIP
    ...     bw[:256, :256, 0, 0, 0] = corner
    """

    _levels: int | None
    """How many resolutions; None for as many as suit the image."""

    def __init__(  # noqa: PLR0913
        self,
        file_path: str | os.PathLike[str] | Url,
        max_workers: int | None = None,
        backend: str | None = None,
        metadata: Any = None,
        image: NDArray[Any] | None = None,
        *,
        like: BioBase | None = None,
        compression: str | None = None,
        compression_level: int | None = None,
        predictor: bool | None = None,
        tile_size: int | tuple[int, int] = _TILE,
        pyramid: bool | int | None = None,
        downsample: str | None = None,
        cast: str | None = None,
        overwrite: bool = False,
        mode: str = "w",
        bigtiff: bool | None = None,
        ngff_version: str | None = None,
        chunks: int | Sequence[int] | None = None,
        shards: int | Sequence[int] | bool | None = None,
        pyramid_z: bool = False,
        group: str = "",
        plate: Plate | StreamPlate | None = None,
        label: dict[str, Any] | None = None,
        storage_options: dict[str, Any] | None = None,
        ome: bool = True,
        dataset_name: str | None = None,
        times_per_file: int | None = None,
        setups_per_file: int | None = None,
        views: Layout | None = None,
        journal: Journal | None = None,
        **properties: Any,
    ) -> None:
        self._pid = os.getpid()
        self._state = "new"  # new -> open -> closed; "failed" once a tile was not stored
        self._path, self._row = _where(file_path, backend)
        self._workers = check_workers(max_workers)
        self._set_sizes(tile_size, chunks, pyramid)
        self._shrink_z = bool(pyramid_z)
        self._cast = cast
        if cast is not None and cast not in CASTS:
            raise SpecError(f"cast={cast!r}: choose one of {', '.join(CASTS)}")
        if downsample is not None and downsample not in METHODS:
            raise SpecError(f"downsample={downsample!r}: choose one of {', '.join(METHODS)}")
        self._draft = Draft()
        self._image: NDArray[Any] | None = None
        self._describe(metadata, image, like, properties)
        place = Place(self._path, self._row, group, plate)
        self._sink_class: Any = registry.load_sink(self._row)
        self._method = downsample or ("mode" if place.is_label else "mean")
        version, labelled = place.expected(self._sink_class)
        self._labelled = labelled
        if labelled is not None:
            self._draft.set_defaults(labelled)
            self._levels = len(labelled.levels) if pyramid is None else self._levels
        ngff_version = _agreed_version(ngff_version, version)
        self._ngff_version = ngff_version
        extra = {
            "bigtiff": bigtiff,
            "ngff_version": ngff_version,
            "chunks": chunks,
            "shards": shards,
            "label": label if label is not None or not place.is_label else {},
            "dataset_name": dataset_name,
            "ome": None if ome else False,
            "times_per_file": times_per_file,
            "setups_per_file": setups_per_file,
            "views": views,
        }
        given = {name: value for name, value in extra.items() if value is not None}
        self._options = (compression, compression_level, predictor, given)
        self._sink_class = registry.load_sink(self._row, given)
        self._storage_options = dict(storage_options or {})
        self._final: ImageSpec | None = None
        self._sink: Sink | None = None
        self._given_levels: list[Shape5] | None = None  # sizes of smaller levels that are given
        self._gate = threading.Condition()
        self._writing = 0
        self._mode = _mode(mode, self._row, alone=not ome, group=group)
        self.journal, self.journal_note = self._kept(journal, group)
        if self._mode == "r+":
            self._join(place)
            return
        if self._mode == "create":
            place.shared_path()
        self._check()
        self._place = place
        self._target: Any = place.target(
            self._sink_class,
            overwrite=overwrite,
            storage_options=self._storage_options,
            resume=self.journal is not None and self.journal.resume,
        )

    def _set_sizes(self, tile_size: Any, chunks: Any, pyramid: Any) -> None:
        self._tile = _tile_size(tile_size) if chunks is None else _chunk_size(chunks)
        self._tile_given = chunks is not None or tile_size != _TILE
        own_rule = hasattr(registry.load_sink(self._row), "arrange")
        self._levels = None if pyramid is None and own_rule else _level_count(pyramid)

    def _describe(
        self, metadata: Any, image: Any, like: BioBase | None, properties: dict[str, Any]
    ) -> None:
        unknown = [k for k in properties if ALIASES.get(k, k) not in PROPERTIES]
        if unknown:
            known = ", ".join(PROPERTIES)
            raise TypeError(
                f"BioWriter got an unknown keyword {unknown[0]!r}; properties are {known}"
            )
        if like is not None:
            if not isinstance(like, BioBase):
                raise SpecError(f"like= takes a BioReader, not a {type(like).__name__}")
            self._draft.set_like(like)
        if metadata is not None:
            self._draft.set_metadata(metadata)
        if image is not None:
            self._image = np.asarray(image)
            self._draft.take_array(self._image)
        for name, value in properties.items():
            self._draft.set(name, value)
        self._given = {ALIASES.get(k, k) for k in properties}
        self._fit_channels()

    def _fit_channels(self) -> None:
        # a copied header may name more or fewer channels than the new image has
        if "samples_per_pixel" not in self._given and self._draft.shape[3] % self._draft.samples:
            self._draft.samples = 1
        count, draft, given = self._draft.shape[3], self._draft, self._given
        for what in ("channel_names", "channel_colors"):
            values = getattr(draft, what)
            if values is not None and what not in given and len(values) * draft.samples != count:
                kept = (values + [None] * count)[: count // draft.samples]
                setattr(draft, what, kept if draft.samples == 1 else None)

    # ------------------------------------------------------------------ pixels

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write pixels, numpy style: ``bw[0:100, 0:100, 3, 0, 0] = plane``.

        Parameters
        ----------
        key
            As for reading: ints, slices with any step, lists, masks, ``...`` for Y, X, Z, C, T.
        value : array or number
            Shaped as the same key reads, or anything that broadcasts to it as in numpy.
        """
        self._infer(key, value)
        self._write(select(key, self.shape), value)

    def write(
        self,
        image5d: Any,
        X: Any = None,
        Y: Any = None,
        Z: Any = None,
        C: Any = None,
        T: Any = None,
    ) -> None:
        """Write an array at a place.

        Parameters
        ----------
        image5d : numpy.ndarray
            Axes Y, X, Z, C, T; missing trailing axes count as 1.
        X, Y, Z : int or [int], optional
            First pixel along the axis, 0 by default.
        C, T : int or sequence of int, optional
            First position, or the position of each of the array's; 0, 1, 2, … by default.
        """
        array = np.asarray(image5d)
        if not 1 <= array.ndim <= 5:
            raise SpecError(f"an image has the axes Y, X, Z, C, T; the array has {array.ndim}")
        if not self._draft.sizes:
            self._infer(..., array)
        array = array.reshape((*array.shape, *([1] * (5 - array.ndim))))
        key = tuple(
            place(axis, start, n, size)
            for axis, start, n, size in zip(
                AXES, (Y, X, Z, C, T), array.shape, self.shape, strict=True
            )
        )
        self._write(select(key, self.shape), array)

    def _infer(self, key: Any, value: Any) -> None:
        """Take shape and pixel type from the first array, where nothing was said of them."""
        if self._state != "new":
            return
        array = np.asarray(value)
        if not self._draft.sizes and array.ndim:
            everything = key is Ellipsis or (isinstance(key, slice) and key == slice(None))
            if not everything:
                raise SpecError(
                    "the size of the image is not known: set X, Y, Z, C, T (or shape=) first, or "
                    "write the whole image at once with bw[:] = array"
                )
            self._draft.set_shape(array.shape)
        if self._draft.dtype is None and isinstance(value, (np.ndarray, np.generic)):
            self._draft.set("dtype", array.dtype)

    def _write(self, selection: Selection, value: Any) -> None:
        try:
            pixels = as_pixels(value, self.dtype, self._cast)
        except PixelTypeError as exc:
            if exc.place is None or len(exc.place) != 5:
                raise
            at = zip(selection.spans, exc.place, strict=True)
            raise exc.moved(tuple(int(span[n]) for span, n in at)) from None
        data = selection.flip(spread(pixels, selection))
        if self._mode == "create":
            raise SpecError("mode='create' lays an image out: open it with mode='r+' to write")
        if self._mode == "r+" and selection.size:
            self._check_aligned(selection)
        with self._busy():
            if selection.size:
                try:
                    self._tiles.write(selection.spans, data)
                except BaseException:
                    self._state = "failed"
                    raise

    # ------------------------------------------------------------------ the file

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Open the file if need be; close() waits until this is left."""
        if self._forked:
            raise ClosedError(
                f"the writer of {self._path.name!r} belongs to the process that opened it: "
                "a forked child cannot write with it; send the pixels to the parent"
            )
        with self._gate:
            self._check_open()
            if self._state == "new":
                self._start()
            self._writing += 1
        try:
            yield
        finally:
            with self._gate:
                self._writing -= 1
                self._gate.notify_all()

    @property
    def _forked(self) -> bool:
        # file and locks belong to the parent, which goes on with them
        return self._pid != os.getpid()

    def _check_open(self) -> None:
        if self._state == "closed":
            raise ClosedError(f"the writer of {self._path.name!r} is closed")
        if self._state == "failed":
            raise ClosedError(
                f"a write to {self._path.name!r} failed before, so the image cannot be completed"
            )

    def _check(self) -> None:
        """Raise before anything exists where the image cannot be stored."""
        self._checked = (self._drafted(), self._store_options())
        self._sink_class.check(self._checked[:1], self._checked[1])

    def _check_labelled(self, spec: ImageSpec) -> None:
        """Raise where labels do not lie on the image they belong to."""
        if self._labelled is None:
            return
        for n, size, axis in zip(spec.shape, self._labelled.shape, AXES, strict=True):
            if n != size and (axis in "YX" or n != 1):
                raise SpecError(
                    f"labels of {axis}={n} do not fit their image, which has {axis}={size}: give "
                    f"{size}" + ("" if axis in "YX" else " or 1")
                )

    def _drafted(self) -> ImageSpec:
        tile = self._tile
        if self._sink_class.caps.whole_rows:
            tile = _whole_rows(tile[0], self._draft.shape[1])
        multiple = self._sink_class.caps.tile_multiple
        spec = self._draft.spec(
            tile,
            self._levels if self._given_levels is None else 1,
            multiple=multiple,
            shrink_z=self._shrink_z,
        )
        arrange = getattr(self._sink_class, "arrange", None)
        if arrange is not None:
            spec = arrange(spec, by_rule=self._levels is None, tile_given=self._tile_given)
        full = spec.levels[0]
        if self._given_levels is None:
            return spec
        kept = (Level(size, fit_tile(size, full.tile, multiple)) for size in self._given_levels)
        return replace(spec, levels=(full, *kept))

    def _keep_levels(self, shapes: Sequence[Shape5]) -> None:
        """Take smaller levels of these sizes as they are given, in place of making them."""
        self._given_levels = list(shapes)

    def _put_level(self, level: int, box: Slices5, pixels: NDArray[Any]) -> None:
        """Write pixels of one of the levels that are kept."""
        spans = tuple(range(s.start, s.stop) for s in box)
        with self._busy():
            try:
                data = as_pixels(pixels, self.dtype, self._cast)
                self._tiles.write_at(level, spans, data)
            except BaseException:
                self._state = "failed"
                raise

    def _store_options(self) -> StoreOptions:
        compression, level, predictor, extra = self._options
        return StoreOptions(
            compression,
            level,
            predictor,
            self._draft.metadata,
            self._method,
            extra,
            self._storage_options,
            self._path.name,
            journaled=self.journal is not None,
        )

    def _join(self, place: Place) -> None:
        """Go on with an image that was laid out for several processes."""
        self._place = place
        self._target = place.leftover(self._sink_class, shared=True)
        try:
            if not self._target.is_shared:
                raise SpecError(
                    f"{str(self._target.partial)!r} was not laid out with mode='create', but left "
                    "by a write that was interrupted"
                )
            self._sink = self._sink_class.reopen(self._target.partial, shared=True)
        except BaseException:
            self._target.leave()
            raise
        self._final = self._sink.images[0]
        self._begin()
        try:
            self._check_same(self._final)
        except BaseException:
            self.abort()
            raise

    def _check_same(self, laid_out: ImageSpec) -> None:
        """Raise where another shape or pixel type was given than was laid out."""
        for axis, n in zip(AXES, laid_out.shape, strict=True):
            given = self._draft.sizes.get(axis, n)
            if given != n:
                raise SpecError(
                    f"{axis}={given} was given, the image laid out has {axis}={n}: leave shape= "
                    "out in mode 'r+'"
                )
        if self._draft.dtype not in (None, laid_out.dtype):
            raise SpecError(
                f"dtype={self._draft.dtype} was given, the image laid out has {laid_out.dtype}: "
                "leave dtype= out in mode 'r+'"
            )

    def _check_aligned(self, selection: Selection) -> None:
        unit = self._sink.unit()  # type: ignore[union-attr]
        for axis, span, n, size in zip(AXES, selection.spans, unit, self.shape, strict=True):
            run = isinstance(span, range) and span.step == 1
            if not run or span[0] % n or (span[-1] + 1) % n * (size - span[-1] - 1):
                raise SpecError(
                    f"in mode 'r+' each write covers whole files, which are {n} pixels long "
                    f"along {axis}: begin at a multiple of {n} and end at one, or at {size} "
                    f"(given: {span!r:.60})"
                )

    def start(self) -> None:
        """Make the unfinished file now, or go on with the one that the journal is of.

        Raises
        ------
        SpecError
            The journal is of another image, or of other options.
        """
        with self._busy():
            pass

    def _start(self) -> None:
        spec = self._drafted()
        self._check_labelled(spec)
        options = self._store_options()
        if (spec, options) != self._checked:  # something was set meanwhile
            self._sink_class.check((spec,), options)
        found = self._take_hold(spec, options)
        if not found:
            try:
                if self.journal is not None:
                    self.journal.begin({})
                self._sink = self._sink_class(self._target.partial, (spec,), options)
            except BaseException:
                self._target.abort()
                if self.journal is not None:
                    self.journal.remove()
                raise
        self._final = spec
        self._begin()
        if found:
            try:
                self._tiles.resume()
            except BaseException:
                self._state = "failed"
                raise

    def _take_hold(self, spec: ImageSpec, options: StoreOptions) -> bool:
        """Take hold of the unfinished file; return whether there are tiles in it to keep."""
        journal = self.journal
        if journal is None or not self._target.take_over():
            self._target.open()
            if journal is not None:
                journal.describe(spec, options)
            return False
        try:
            known = journal.load(spec, options)
            if not known:
                self._target.clear()
                return False
            sink = self._sink_class.resume(self._target.partial, (spec,), options, known)
            try:
                journal.begin({at: what for at, what in known.items() if sink.holds(at)})
            except BaseException:
                sink.suspend()
                raise
        except BaseException:
            self._target.leave()
            raise
        self._sink = sink
        return True

    def _begin(self) -> None:
        self._scratch = Scratch(self._place.scratch_folder)
        journal, sink = self.journal, self._live_sink
        self._tiles = TileWriter(
            sink,
            workers=self._workers,
            scratch=self._scratch,
            method=self._method,
            shrinks=self._given_levels is None,
            done=() if journal is None else journal.tiles,
            stored=None if journal is None else partial(_record, journal, sink),
        )
        self._state = "open"

    def _enter(self, sink: Any) -> None:
        """Write into a sink that others write into, too: who made it completes it."""
        self._sink, self._final = sink, sink.images[0]
        self._target = _Lent(self._target.partial)
        self._begin()

    def _kept(self, journal: Journal | None, group: str) -> tuple[Journal | None, str]:
        """Return the journal to keep, or why an interrupted write could not be gone on with."""
        if journal is None:
            return None, ""
        note = self._no_journal(group)
        return None if note else journal, note if journal.resume else ""

    def _no_journal(self, group: str) -> str:
        if self._mode != "w" or group:
            return "what is written into a store of several images cannot be resumed"
        if isinstance(self._path, Url):
            return "what is written to a server cannot be resumed: there is no file here to keep"
        if getattr(self._sink_class, "resume", None) is None:
            return f"files of the {self._row.name!r} backend cannot be resumed: they are begun anew"
        return ""

    def close(self) -> None:
        """Store what still waits, complete the file and move it into place.

        Raises
        ------
        OSError
            The disk is full, or what else the system says.
        ClosedError
            A write failed before; the tiles stored until then stay in ``NAME.partial``.
        """
        if self._state == "closed" or self._forked:
            return
        if self._state == "new" and not self._worth_writing():
            self._state = "closed"
            return
        if self._state == "new":
            self._finish_unwritten()
        with self._gate:
            self._gate.wait_for(lambda: not self._writing)
            state, self._state = self._state, "closed"
        if state == "closed":
            return
        try:
            if state == "failed":
                raise ClosedError(
                    f"a write to {self._path.name!r} failed, so the image is not complete; the "
                    f"tiles stored before are in {str(self._target.partial)!r}"
                )
            if self._mode != "create":
                self._tiles.flush()
                self._live_sink.finish()
            self._live_sink.close()
            if self._mode == "create":
                self._target.mark_shared()
            if self._mode == "w":
                self._commit()
            else:
                self._target.leave()
        except BaseException:
            self._let_go()
            self._target.leave()
            raise
        finally:
            self._scratch.close()

    def _commit(self) -> None:
        self._target.commit()
        if self.journal is not None:
            self.journal.remove()
        self._place.register(self._sink_class, self._ngff_version)

    def abort(self) -> None:
        """Give up: remove the unfinished file; what was at its place before stays as it was."""
        if self._forked:
            return
        with self._gate:
            self._gate.wait_for(lambda: not self._writing)
            state, self._state = self._state, "closed"
        if state in ("open", "failed"):
            self._let_go()
            self._scratch.close()
            if self._mode == "r+":  # others are at work on it; whole units stay
                self._target.leave()
            else:
                self._target.abort()
                if self.journal is not None:
                    self.journal.remove()

    def suspend(self) -> bool:
        """Give up, but leave what is done and its journal; return whether there is any."""
        if self._forked:
            return False
        with self._gate:
            self._gate.wait_for(lambda: not self._writing)
            state, self._state = self._state, "closed"
        if state in ("open", "failed"):
            self._let_go()
            self._scratch.close()
            self._target.leave()
        if self.journal is None:
            return False
        self.journal.close()
        return state != "new"

    def discard(self) -> None:
        """Remove what a close() that failed has left for recovery."""
        if self._state == "closed" and not (self.journal is not None and self.journal.resume):
            self._target.discard()
            if self.journal is not None:
                self.journal.remove()

    def _worth_writing(self) -> bool:
        return self._image is not None or {"X", "Y"} <= set(self._draft.sizes)

    def _finish_unwritten(self) -> None:
        try:
            if self._image is not None:
                self[...] = self._image
            else:
                with self._busy():
                    pass  # an image without pixels written is all 0
        except BaseException:  # all of it is still with the caller
            self.abort()
            raise

    @property
    def _live_sink(self) -> Sink:
        if self._sink is None:
            raise ClosedError("no pixel was written")
        return self._sink

    def _let_go(self) -> None:
        sink: Any = self._live_sink
        with suppress(OSError, BioIOError):  # there is an error already: the one to report
            if self.journal is None:
                sink.close()
            else:
                sink.suspend()

    def __enter__(self) -> BioWriter:
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        if getattr(self, "_state", "new") in ("open", "failed") and not self._forked:
            self._state = "closed"
            self._let_go()
            self._scratch.close()
            self._target.leave()
            warnings.warn(
                f"the writer of {str(self._path)!r} was never closed: what was written lies in "
                f"{str(self._target.partial)!r}; use `with BioWriter(...)` or close()",
                ResourceWarning,
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a BioWriter cannot be pickled: one process writes a file; open it there, or send it "
            "the pixels"
        )

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis}={n}" for axis, n in zip(AXES, self.shape, strict=True))
        return f"<BioWriter {self._path.name!r} {axes} {self.dtype.name} ({self._state})>"

    # ------------------------------------------------------------------ BioBase

    @property
    def read_only(self) -> bool:
        """True once the first pixel is written."""
        return self._state != "new"

    @property
    def max_workers(self) -> int:
        """Threads that encode."""
        return self._workers

    def _spec(self) -> ImageSpec:
        if self._final is not None:
            return self._final
        return self._drafted()

    def _get_shape(self) -> Shape5:
        return self._draft.shape if self._final is None else self._final.shape

    def _get_metadata(self) -> OME:
        from bioio_tk.meta import ome

        return ome.to_ome(ome.document((self._spec(),), metadata=self._draft.metadata))

    def _set(self, name: str, value: Any) -> None:
        if self._state != "new":
            raise ReadOnlyError(
                f"{name} cannot be set any more: the first pixel of {self._path.name!r} is written"
            )
        self._draft.set(name, value)
        self._given.add(name)
        if name in ("C", "shape", "samples_per_pixel"):
            self._fit_channels()


class _Lent:
    """The target of a file that somebody else puts into place."""

    def __init__(self, partial: Any) -> None:
        self.partial = partial

    def commit(self) -> None:
        """Do nothing."""

    abort = leave = discard = commit


def _record(journal: Journal, sink: Any, tiles: Sequence[tuple[Address, Any]]) -> None:
    """Enter tiles that are stored into the journal, and how the sink finds them again."""
    journal.tiles_stored([(at, sink.trace(at, encoded)) for at, encoded in tiles])


def _tile_size(value: Any) -> tuple[int, int]:
    sizes = (value, value) if np.ndim(value) == 0 else tuple(value)
    whole = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in sizes)
    if len(sizes) != 2 or not whole or any(n < 16 or n % 16 for n in sizes):
        raise SpecError(f"tile_size={value!r}: give a multiple of 16, or two (height, width)")
    return (int(sizes[0]), int(sizes[1]))


def _whole_rows(height: int, width: int) -> tuple[int, int]:
    """Return a tile of whole rows: as high as one was wanted, unless that is very much."""
    return (max(1, min(height, _MOST_PIXELS // width)), width)


def _chunk_size(value: Any) -> tuple[int, ...]:
    sizes = (value, value) if np.ndim(value) == 0 else tuple(value)
    whole = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in sizes)
    if not 2 <= len(sizes) <= 5 or not whole or any(n < 1 for n in sizes):
        raise SpecError(
            f"chunks={value!r}: give a whole number, or one for each of Y, X[, Z[, C[, T]]]"
        )
    return tuple(int(n) for n in sizes)


def _agreed_version(given: str | None, store: str | None) -> str | None:
    """Return the version of NGFF for what is added to a store."""
    if given is not None and store is not None and given != store:
        raise SpecError(
            f"ngff_version={given!r}: the store is {store}, and all that is in it has one version"
        )
    return given or store


def _where(file_path: Any, backend: str | None) -> tuple[Location, Backend]:
    """Return what is made at a path, and who writes it."""
    location = locate(file_path)
    row = registry.for_writing(location, backend)
    return registry.home(location, row), row


def _mode(mode: str, row: Backend, *, alone: bool, group: str) -> str:
    if mode not in ("w", "create", "r+"):
        raise SpecError(f"mode={mode!r}: choose 'w', 'create' or 'r+'")
    if alone and (mode != "w" or group):
        raise SpecError("ome=False is for an image of its own: leave mode= and group= out")
    if mode != "w" and not row.tree:
        raise UnsupportedError(
            f"mode={mode!r} is for several processes that write one image, which only OME-Zarr "
            "can: end the name with .ome.zarr"
        )
    return mode


def _level_count(pyramid: Any) -> int | None:
    if pyramid is True:
        return None
    if pyramid is False or pyramid is None:
        return 1
    if not isinstance(pyramid, (int, np.integer)) or pyramid < 1:
        raise SpecError(f"pyramid={pyramid!r}: give True, False, or the number of resolutions")
    return int(pyramid)
