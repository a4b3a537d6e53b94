"""BdvWriter: stacks of a light-sheet microscope into one BigDataViewer dataset, HDF5 and XML."""

from __future__ import annotations

import math
import os
import threading
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends import registry
from bioio_tk.bdv.catalogue import Catalogue
from bioio_tk.bdv.description import Description, affine, calibrated, dimensions, label, picked
from bioio_tk.bdv.levels import add_levels
from bioio_tk.bdv.names import pair_of
from bioio_tk.bdv.scheme import check_compression, mipmaps, resolutions, triples
from bioio_tk.bdv.setups import SetupGrid, place
from bioio_tk.bdv.stack import Stack, checked_type
from bioio_tk.bdv.view_writer import ViewWriter
from bioio_tk.core.downsample import METHODS
from bioio_tk.core.dtype import CASTS, as_pixels
from bioio_tk.core.signals import interrupt_later
from bioio_tk.core.views import ATTRIBUTES, Scheme, ViewId
from bioio_tk.engine.pool import check_workers, run_apart
from bioio_tk.engine.scratch import Scratch
from bioio_tk.errors import (
    ClosedError,
    PixelTypeError,
    RegionError,
    SpecError,
    TargetExistsError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bioio_tk.backends.base import ViewStore
    from bioio_tk.core.downsample import Method
    from bioio_tk.core.views import Shape3
    from bioio_tk.engine.copy import Progress

_SMALL = 1 << 16
"""Bytes of a raw block below which one thread is faster than several."""


class BdvWriter:
    """Write stacks as the views of a BigDataViewer dataset: ``NAME.h5`` and ``NAME.xml``.

    Each view is a stack at one time point, of one illumination, channel, tile and angle. As soon
    as it is whole it is in the file and in the XML, and stays there whatever happens to the
    process; Fiji, BigStitcher and `bioio_tk.BioReader` open the dataset while it grows. Views come
    in any order and from any thread; those that never come are listed as missing.

    Parameters
    ----------
    filename : str or Path
        The ``.h5`` or the ``.xml``; the other one lies beside it.
    subsamp : sequence of (int, int, int), optional
        Resolutions: pixels of the stack that become one, along Z, Y, X. By default those that
        BigDataViewer proposes for the size of the stack and of its voxels; ``((1, 1, 1),)`` stores
        the full resolution only.
    blockdim : sequence of (int, int, int), optional
        Blocks (HDF5 chunks) of each resolution along Z, Y, X; the first for all where there are
        fewer. By default about 512 KiB, near-cubic in the world, no deeper than 16 planes.
    compression : str or None
        ``"gzip"`` (default; with byte shuffle), or ``"none"`` (or None) for raw pixels.
        BigDataViewer reads no others; ``"lzf"`` and those of hdf5plugin come with a warning.
    nilluminations, nchannels, ntiles, nangles : int
        How many there are at most.
    overwrite : bool
        Replace a dataset that is there, when the first view comes.
    dtype : dtype, optional
        Pixel type of all views: integers of 8 to 64 bits, float32, float64. By default each setup
        has that of its first stack.
    compression_level : int, optional
        0 to 9 for gzip, 1 by default.
    max_workers : int, optional
        Threads that compress; by default one per CPU.
    times_per_file, setups_per_file : int
        Spread the stacks over files of so many time points and setups; ``NAME.h5`` then links to
        them. 0 (default) keeps all in one.
    downsample : str
        How the smaller resolutions are made: ``"mean"`` (default, rounded half up), ``"nearest"``,
        ``"mode"`` (labels), ``"median"`` or ``"max"``.
    cast : str, optional
        Convert stacks of another type: ``"exact"`` (raise where a value does not fit), ``"clip"``,
        ``"scale"`` or ``"wrap"``. By default another type is an error.

    Raises
    ------
    SpecError, PixelTypeError
        An argument makes no sense.
    TargetExistsError, TargetBusyError
        The dataset exists and `overwrite` is not set, or another writer is at work on it.
    BackendMissingError
        The package for another compression than gzip is not installed.

    Examples
    --------
    >>> from bioio_tk.bdv import BdvWriter
    >>> with BdvWriter("embryo.h5", nchannels=2) as writer:               # doctest: +SKIP
    ...     for time in range(100):
    ...         for channel in range(2):
    ...             writer.append_view(camera.stack(), time=time, channel=channel,
    ...                                voxel_size_xyz=(0.4, 0.4, 2), voxel_units="µm")
    """

    def __init__(  # noqa: PLR0913, PLR0917 (a face: every option by its name)
        self,
        filename: str | os.PathLike[str],
        subsamp: Sequence[Sequence[int]] | None = None,
        blockdim: Sequence[Sequence[int]] | None = None,
        compression: str | None = "gzip",
        nilluminations: int = 1,
        nchannels: int = 1,
        ntiles: int = 1,
        nangles: int = 1,
        overwrite: bool = False,
        dtype: Any = None,
        *,
        compression_level: int | None = None,
        max_workers: int | None = None,
        times_per_file: int = 0,
        setups_per_file: int = 0,
        downsample: str = "mean",
        cast: str | None = None,
    ) -> None:
        self._state = "new"
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._working: list[int] = []  # threads in a call that writes
        self.path, self.xml_path = pair_of(filename)
        counts = (nilluminations, nchannels, ntiles, nangles)
        self._grid = SetupGrid(dict(zip(ATTRIBUTES, counts, strict=True)))
        self._subsamp = resolutions(subsamp)
        self._blockdim = triples("blockdim", blockdim)
        _check_blocks(self._subsamp, self._blockdim)
        self._compression = (check_compression(compression, compression_level), compression_level)
        self._dtype = None if dtype is None else checked_type(dtype)
        self._workers = check_workers(max_workers)
        self._partition = {
            "times_per_file": _per_file("times_per_file", times_per_file),
            "setups_per_file": _per_file("setups_per_file", setups_per_file),
        }
        self._method: Method = _one_of("downsample", downsample, METHODS)
        self._cast = None if cast is None else _one_of("cast", cast, CASTS)
        self._overwrite = overwrite
        self._store = registry.load_view_store()
        self._check_target()
        self._file: ViewStore | None = None
        self._views = Catalogue(self.xml_path, self.path.name, self._grid)
        for attribute in ATTRIBUTES:
            self._views.relabel(attribute)
        self._schemes: dict[int, Scheme] = {}
        self._virtual: dict[ViewId, _Virtual] = {}  # stacks that come in parts
        self._scratch = Scratch(self.path.parent)
        self._state = "open"

    def _check_target(self) -> None:
        """Raise where the dataset cannot be made, without touching anything."""
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(self.path.parent)!r} to write {self.path.name!r} into"
            )
        there = [path for path in (self.path, self.xml_path) if path.exists()]
        for path in there:
            if path.is_dir():
                raise IsADirectoryError(f"{str(path)!r} is a folder: choose another name")
        if there and not self._overwrite:
            raise TargetExistsError(
                f"{' and '.join(repr(str(path)) for path in there)} exist(s): choose another name, "
                "or pass overwrite=True to replace the dataset when the first view comes"
            )
        others = self._store.in_the_way(self.path) if any(self._partition.values()) else []
        if others:
            raise TargetExistsError(
                f"{str(others[0])!r} is called as the dataset would call a part of its own: choose "
                "another name, or move that file"
            )

    # ------------------------------------------------------------------ views

    def append_view(  # noqa: PLR0913, PLR0917 (a face, as npy2bdv has it)
        self,
        stack: Any,
        virtual_stack_dim: Sequence[int] | None = None,
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
        m_affine: Any = None,
        name_affine: str = "manually defined",
        voxel_size_xyz: Sequence[float] | None = None,
        voxel_units: str | None = None,
        calibration: Sequence[float] | str | None = "auto",
        exposure_time: float = 0,
        exposure_units: str = "s",
        *,
        progress: Progress | None = None,
    ) -> None:
        """Write a stack, or make room for one that comes in parts.

        Parameters
        ----------
        stack : array or None
            Axes Z, Y, X (or Y, X). NumPy's, or one that is read or computed piece by piece (dask,
            Zarr, h5py, a `BioReader`). None makes a *virtual* stack of `virtual_stack_dim`, which
            `append_plane` and `append_substack` fill.
        virtual_stack_dim : (int, int, int), optional
            Size along Z, Y, X, where `stack` is None.
        time, illumination, channel, tile, angle : int
            Which view it is, counted from 0. One that is there is replaced, once the new stack is.
        m_affine : array of shape (3, 4), optional
            Where the stack lies: linear part and translation along X, Y, Z, in the pixels that
            `calibration` makes. It belongs to this time point alone.
        name_affine : str
            What it is called.
        voxel_size_xyz : (float, float, float), optional
            Along X, Y, Z; one for all time points of a setup. By default 1 pixel.
        voxel_units : str, optional
            ``"µm"``, ``"nm"``, …
        calibration : (float, float, float) or "auto" or None
            What pixels are scaled with along X, Y, Z before all else. ``"auto"`` (default) makes
            voxels cubes: their size in units of the shortest side. None: no such transform.
        exposure_time : float
            Of the camera, kept in the XML.
        exposure_units : str
            Of `exposure_time`.
        progress : callable, optional
            Called as ``progress(done, total)`` in bytes.

        Raises
        ------
        SpecError, PixelTypeError, RegionError
            Something does not fit; nothing was written.
        OSError
            The disk is full, or what else the system says; the views before are in the file.
        """
        with self._at_work():
            view = self._views.view(time, illumination, channel, tile, angle)
            if stack is not None and virtual_stack_dim is not None:
                raise SpecError(
                    "virtual_stack_dim is for stack=None: a stack has a size of its own"
                )
            moved = () if m_affine is None else (affine(m_affine, name_affine),)
            exposure = (
                label(exposure_time, "exposure_time"),
                label(exposure_units, "exposure_units"),
            )
            given = None if stack is None else Stack(stack)
            said: Description | None = None
            try:
                # all that is said of a setup by two threads at once, is said one after the other
                with interrupt_later(), self._lock:
                    if given is not None and self._file is None:
                        given.check_apart(self.path, self.xml_path)
                    voxel, unit = self._views.voxel(view, voxel_size_xyz, voxel_units)
                    said = Description(
                        dimensions(virtual_stack_dim) if given is None else given.size,
                        voxel,
                        unit,
                        (*moved, *calibrated(calibration, voxel)),
                        exposure,
                    )
                    dtype = self._claim(view, said, given)
                    if given is None:
                        self._virtual[view] = _Virtual(said)
                if given is not None:
                    self._append_stack(view, said, given, dtype, progress)
            except BaseException:
                if given is not None and said is not None:
                    self._release(view, said)
                raise
            finally:
                if given is not None:
                    given.close()

    def _append_stack(
        self,
        view: ViewId,
        said: Description,
        given: Stack,
        dtype: np.dtype[Any],
        progress: Progress | None,
    ) -> None:
        writer = self._begin(view, said, dtype)
        try:
            given.hand_over(
                writer.put,
                writer.tile,
                dtype=writer.dtype,
                cast=self._cast,
                workers=self._workers,
                progress=progress,
            )
            writer.end()
        except BaseException:
            writer.abort()
            raise
        self._finish(view, writer)

    def _finish(self, view: ViewId, writer: ViewWriter) -> None:
        """Let readers see a view, and the XML tell of it: both, or (Ctrl-C) none of it."""
        with interrupt_later():
            try:
                writer.finish()
            except BaseException:
                writer.abort()
                raise
            self._enter(view)

    def _release(self, view: ViewId, said: Description) -> None:
        with interrupt_later(), self._lock:
            self._views.release(view, said)

    def append_plane(
        self,
        plane: Any,
        z: int,
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
    ) -> None:
        """Write one plane of a virtual stack; planes come in any order.

        Parameters
        ----------
        plane : array of shape (y, x)
            As large as the stack.
        z : int
            Which plane, counted from 0.
        time, illumination, channel, tile, angle : int
            The view, as it was given to `append_view`.
        """
        with self._at_work():
            view = self._views.view(time, illumination, channel, tile, angle)
            pixels = np.asarray(plane)
            virtual = self._part_of(view, pixels)
            _, height, width = virtual.said.size
            if pixels.shape != (height, width):
                raise SpecError(
                    f"a plane of {pixels.shape} pixels (Y, X) does not fit the stack, whose planes "
                    f"are {(height, width)}"
                )
            self._append_part(view, virtual, (z, 0, 0), pixels[None])

    def append_substack(  # noqa: PLR0913, PLR0917
        self,
        substack: Any,
        z_start: int,
        y_start: int = 0,
        x_start: int = 0,
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
    ) -> None:
        """Write a block of a virtual stack; blocks come in any order and need not fit anything.

        Parameters
        ----------
        substack : array of shape (z, y, x)
            Its pixels.
        z_start, y_start, x_start : int
            Where its first pixel goes.
        time, illumination, channel, tile, angle : int
            The view, as it was given to `append_view`.
        """
        with self._at_work():
            view = self._views.view(time, illumination, channel, tile, angle)
            pixels = np.asarray(substack)
            virtual = self._part_of(view, pixels)
            if pixels.ndim != 3 or 0 in pixels.shape:
                raise SpecError(f"a substack has the axes Z, Y, X; this is {pixels.shape}")
            self._append_part(view, virtual, (z_start, y_start, x_start), pixels)

    def _part_of(self, view: ViewId, pixels: NDArray[Any]) -> _Virtual:
        with self._lock:
            self._check_open()
            virtual = self._virtual.get(view)
        if virtual is None:
            whole = view in self._views.known
            raise SpecError(
                f"{self._views.spoken(view)} is "
                + ("complete" if whole else "not there yet")
                + ": make room for it with append_view(None, virtual_stack_dim=(nz, ny, nx), …)"
            )
        self._check_type(view.setup, pixels.dtype)
        return virtual

    def _append_part(
        self, view: ViewId, virtual: _Virtual, start: Sequence[int], pixels: NDArray[Any]
    ) -> None:
        corner = []
        for axis, a, n, size in zip("zyx", start, pixels.shape, virtual.said.size, strict=True):
            corner.append(place(axis, a, None))
            if a + n > size:
                raise RegionError(
                    f"a part of {n} along {axis}, from {a} on, does not fit the stack of {size}"
                )
        z, y, x = corner
        # Ctrl-C would leave blocks of the stack locked, and others of its parts come yet
        run_apart(lambda: self._put_part(view, virtual, (z, y, x), pixels))

    def _put_part(
        self, view: ViewId, virtual: _Virtual, start: Shape3, pixels: NDArray[Any]
    ) -> None:
        with self._lock:
            if virtual.writer is None:
                dtype = self._type_of(view.setup, pixels.dtype)
                virtual.writer = self._begin(view, virtual.said, dtype)
            writer = virtual.writer
        pixels = as_pixels(pixels, writer.dtype, self._cast)
        writer.put_stack(start, pixels)
        if writer.is_whole:
            self._finish_virtual(view, virtual)

    def _finish_virtual(self, view: ViewId, virtual: _Virtual) -> None:
        """Let readers see a stack that came in parts; only one thread gets to it."""
        with self._lock:
            if self._virtual.get(view) is not virtual:
                return
            del self._virtual[view]
            if virtual.writer is None:  # room was made, and nothing came
                dtype = self._type_of(view.setup, np.dtype(np.uint16))
                virtual.writer = self._begin(view, virtual.said, dtype)
        try:
            virtual.writer.end()
            self._finish(view, virtual.writer)
        except BaseException:
            virtual.writer.abort()
            self._release(view, virtual.said)
            raise

    # ------------------------------------------------------------------ the files

    def _claim(self, view: ViewId, said: Description, given: Stack | None) -> np.dtype[Any]:
        """Check what is known before, and reserve the view; return its pixel type."""
        with self._lock:
            self._check_open()
            dtype = np.dtype(np.uint16) if given is None else given.dtype
            if given is not None:
                self._check_type(view.setup, dtype)
            self._views.claim(view, said)
            return self._type_of(view.setup, dtype)

    def _type_of(self, setup: int, given: np.dtype[Any]) -> np.dtype[Any]:
        """Return the pixel type of a setup, which is that of its first stack."""
        scheme = self._schemes.get(setup)
        if scheme is not None:
            return scheme.dtype
        return checked_type(given) if self._dtype is None else self._dtype

    def _check_type(self, setup: int, given: np.dtype[Any]) -> None:
        dtype = self._type_of(setup, given)
        if self._cast is None and given.newbyteorder("=") != dtype:
            raise PixelTypeError(
                f"the pixels are {given.name}, and those of this setup {dtype.name}: convert them, "
                "or open the writer with cast='exact', 'clip', 'scale' or 'wrap'"
            )

    def _begin(self, view: ViewId, said: Description, dtype: np.dtype[Any]) -> ViewWriter:
        with interrupt_later(), self._lock:
            scheme = self._schemes.get(view.setup)
            if scheme is None:
                levels = mipmaps(
                    said.size, said.voxel_size, dtype.itemsize, self._subsamp, self._blockdim
                )
                scheme = Scheme(dtype, levels, *self._compression)
                self._store.check(scheme)  # as long as there is no file, or the old one
            file = self._opened()
            file.add_setup(view.setup, scheme)
            self._schemes[view.setup] = scheme
            sink = file.begin_view(view, said.size)
        small = math.prod(scheme.mipmaps[0].block) * dtype.itemsize < _SMALL
        # threads that hand each other small blocks to store take longer than one that stores them
        workers = 1 if scheme.compression == "none" and small else self._workers
        return ViewWriter(sink, workers=workers, scratch=self._scratch, method=self._method)

    def _opened(self) -> ViewStore:
        """Make the file, if that is still to do."""
        if self._file is None:
            if self._overwrite:
                self._store.remove(self.path)
                self.xml_path.unlink(missing_ok=True)
            self._file = self._store.create(self.path, **self._partition)
        return self._file

    def _enter(self, view: ViewId) -> None:
        """Enter a view that is in the file into the XML."""
        with self._lock:
            self._views.enter(view)
            self._write_xml()

    def _write_xml(self) -> None:
        if self._file is not None:
            self._views.write(self._file.partitions)

    # ------------------------------------------------------------------ what is said of views

    def set_attribute_labels(self, attribute: str, labels: Sequence[str]) -> None:
        """Name the values of an attribute, as BigDataViewer and BigStitcher show them.

        Parameters
        ----------
        attribute : {"illumination", "channel", "tile", "angle"}
            Which.
        labels : sequence of str
            A name for each: ``("488", "561")``.
        """
        with self._lock:
            self._check_open()
            self._grid.label(attribute, labels)
            self._relabel(attribute)

    def set_attribute(
        self, attribute: str, index: int, name: str | None = None, **properties: Any
    ) -> None:
        """Say more of one value of an attribute.

        Parameters
        ----------
        attribute : {"illumination", "channel", "tile", "angle"}
            Which.
        index : int
            Which of its values, counted from 0.
        name : str, optional
            What it is called.
        **properties
            What BigStitcher keeps beside the name: ``location=(x, y, z)`` of a tile,
            ``axis=(0, 1, 0)`` and ``degrees=90`` of an angle.
        """
        with self._lock:
            self._check_open()
            self._grid.describe(attribute, index, name, properties)
            self._relabel(attribute)

    def _relabel(self, attribute: str) -> None:
        self._views.relabel(attribute)
        if self._views.known:
            self._write_xml()

    def write_xml(
        self,
        camera_name: str = "default",
        microscope_name: str = "default",
        microscope_version: str = "0.0",
        user_name: str = "user",
    ) -> None:
        """Say what the views were taken with. The XML itself is written after every view.

        Parameters
        ----------
        camera_name, microscope_name, microscope_version, user_name : str
            Kept in the XML.
        """
        with self._lock:
            self._check_open()
            self._views.credit(camera_name, microscope_name, microscope_version, user_name)
            if self._views.known:
                self._write_xml()

    # ------------------------------------------------------------------ transforms

    def append_affine(
        self,
        m_affine: Any,
        name_affine: str = "manually defined",
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
    ) -> None:
        """Move a view that is there: the new transform is applied after all those it has.

        Parameters
        ----------
        m_affine : array of shape (3, 4)
            Linear part and translation along X, Y, Z.
        name_affine : str
            What it is called.
        time, illumination, channel, tile, angle : int
            Which view.
        """
        added = affine(m_affine, name_affine)
        with self._lock:
            self._check_open()
            view = self._views.view(time, illumination, channel, tile, angle)
            said = self._views.there(view)
            self._views.move(view, (added, *said.transforms))
            self._write_xml()

    def read_affine(
        self,
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
        index: int = 0,
    ) -> NDArray[np.float64]:
        """Return one of the transforms of a view, shape (3, 4).

        Parameters
        ----------
        time, illumination, channel, tile, angle : int
            Which view.
        index : int
            Which transform; 0 is the one that is applied last.
        """
        with self._lock:
            view = self._views.view(time, illumination, channel, tile, angle)
            said = self._views.there(view)
            return picked(said.transforms, index, self._views.spoken(view))

    # ------------------------------------------------------------------ pyramids

    def create_pyramids(
        self,
        subsamp: Sequence[Sequence[int]] | None = None,
        blockdim: Sequence[Sequence[int]] | None = None,
        compression: str | None = "gzip",
        *,
        progress: Progress | None = None,
    ) -> None:
        """Make the smaller resolutions of all views that are there, from what is stored.

        For a writer that was opened with ``subsamp=((1, 1, 1),)``. Works block by block, whatever
        the size of the stacks; later views of these setups have the resolutions, too. Views that
        have them are left alone.

        Parameters
        ----------
        subsamp : sequence of (int, int, int), optional
            The further resolutions, as for the writer; by default those BigDataViewer proposes.
        blockdim : sequence of (int, int, int), optional
            Blocks of each of them, or of all.
        compression : str or None
            Of the new resolutions.
        progress : callable, optional
            Called as ``progress(done, total)`` in bytes of the full resolution.
        """
        wanted, blocks = triples("subsamp", subsamp), triples("blockdim", blockdim)
        _check_blocks(wanted, blocks)
        kind = check_compression(compression, None)
        with self._lock:
            self._check_open()
            if self._views.claimed:
                view = next(iter(self._views.claimed))
                raise SpecError(
                    f"{self._views.spoken(view)} is not complete: write all of it before"
                )
            if self._file is None:
                return
            made = add_levels(
                self._file,
                {view.setup: said.voxel_size for view, said in self._views.known.items()},
                wanted,
                blocks,
                compression=kind,
                level=self._compression[1] if kind == "gzip" else None,
                workers=self._workers,
                method=self._method,
                scratch_folder=self.path.parent,
                progress=progress,
            )
            for setup, levels in made.mipmaps.items():
                scheme = self._schemes[setup]
                self._schemes[setup] = replace(scheme, mipmaps=levels, reduced_compression=kind)

    # ------------------------------------------------------------------ state

    @property
    def views(self) -> tuple[ViewId, ...]:
        """The views in the file: ids of time point and setup."""
        with self._lock:
            return tuple(sorted(self._views.known))

    @property
    def missing_views(self) -> tuple[ViewId, ...]:
        """The views that are not there, of the setups and up to the last time point there are."""
        with self._lock:
            return self._views.missing

    @property
    def ntimes(self) -> int:
        """Time points up to the last one there is."""
        with self._lock:
            return max((view.time for view in self._views.known), default=-1) + 1

    @property
    def nsetups(self) -> int:
        """View setups there may be."""
        return self._grid.size

    def flush(self) -> None:
        """See that all finished views are in the files, where every one is once it is finished.

        They survive the process; a power cut may take what the system has not put on disk yet.
        """
        with self._lock:
            self._check_open()
            if self._file is not None:
                self._file.flush()

    def close(self) -> None:
        """Finish stacks that came in parts, and close the files.

        Pixels of these that never came are 0. Where no view came, there is no file. What other
        threads are writing is waited for.

        Raises
        ------
        OSError
            The disk is full, or what else the system says. The views finished before stay.
        """
        if self._state not in ("new", "closed") and not self._is_forked:
            own = threading.get_ident()
            run_apart(lambda: self._close(own))  # Ctrl-C waits: it would lose parts of stacks

    def _close(self, own: int) -> None:
        with self._lock:
            if self._state == "closed":
                return
            self._state = "closing"
            # for others: a call of this thread that Ctrl-C has ended may still stand there
            self._idle.wait_for(lambda: all(thread == own for thread in self._working))
            failed: BaseException | None = None
            for view, virtual in list(self._virtual.items()):
                try:
                    self._finish_virtual(view, virtual)
                except Exception as exc:  # the others first; then the first error is raised
                    failed = failed or exc
            self._state = "closed"
            try:
                if self._file is not None:
                    self._file.close()
            finally:
                self._scratch.close()
            if failed is not None:
                raise failed

    def _check_open(self) -> None:
        if self._is_forked:
            raise ClosedError(
                f"the writer of {self.path.name!r} belongs to the process that opened it: a forked "
                "child cannot write with it; send the pixels to the parent"
            )
        if self._state != "open":
            raise ClosedError(f"the writer of {self.path.name!r} is closed")

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Let close() wait until this is left."""
        if self._is_forked:  # whose lock may be in any state
            self._check_open()
        with self._lock:
            self._check_open()
            self._working.append(threading.get_ident())
        try:
            yield
        finally:
            with interrupt_later(), self._lock:
                self._working.remove(threading.get_ident())
                self._idle.notify_all()

    @property
    def _is_forked(self) -> bool:
        # the file belongs to the parent, which goes on with it
        return os.getpid() != self._process

    def __del__(self) -> None:
        # finished views are safe; stacks that came in parts are not yet
        if getattr(self, "_state", "new") in ("new", "closed") or self._is_forked:
            return
        begun = self._file is not None or bool(self._virtual)
        self._close(threading.get_ident())
        if begun:
            warnings.warn(
                f"the writer of {str(self.path)!r} was never closed: use `with BdvWriter(...)` or "
                "close()",
                ResourceWarning,
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a BdvWriter cannot be pickled: one process writes a dataset; open it there, or send "
            "it the pixels"
        )

    def __enter__(self) -> BdvWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {kind}s" for kind, n in self._grid.counts.items() if n > 1)
        return (
            f"<BdvWriter {self.path.name!r} {len(self._views.known)} views"
            f"{', ' + counts if counts else ''} ({self._state})>"
        )


class _Virtual:
    """A stack that comes in parts; `writer` is there from the first part on."""

    def __init__(self, said: Description) -> None:
        self.said = said
        self.writer: ViewWriter | None = None


def _one_of(name: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise SpecError(f"{name}={value!r}: choose one of {', '.join(known)}")
    return str(value)


def _per_file(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise SpecError(f"{name}={value!r}: give how many go into one file, or 0 for all")
    return int(value)


def _check_blocks(subsamp: tuple[Shape3, ...] | None, blockdim: tuple[Shape3, ...] | None) -> None:
    """Raise where resolutions and blocks do not fit; the first block does for all others."""
    if subsamp is not None and (len(set(subsamp)) < len(subsamp) or (1, 1, 1) in subsamp[1:]):
        raise SpecError(
            f"subsamp={subsamp!r}: give every resolution once, and the full one (1, 1, 1) first"
        )
    if subsamp is not None and blockdim is not None and len(blockdim) > len(subsamp):
        raise SpecError(
            f"blockdim has {len(blockdim)} blocks for the {len(subsamp)} resolutions of subsamp: "
            "give as many, or one for all"
        )
