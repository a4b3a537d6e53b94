"""BdvEditor: read and change a BigDataViewer dataset of any writer."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends import registry
from bioio_tk.bdv.description import affine, picked
from bioio_tk.bdv.levels import add_levels
from bioio_tk.bdv.names import pair_of
from bioio_tk.bdv.scheme import check_compression, triples
from bioio_tk.bdv.view_writer import ViewWriter
from bioio_tk.core.index import select
from bioio_tk.core.signals import interrupt_later
from bioio_tk.core.views import ATTRIBUTES, ViewId, ViewTransform
from bioio_tk.engine.copy import View as Pixels
from bioio_tk.engine.copy import copy
from bioio_tk.engine.pool import check_workers
from bioio_tk.engine.read import read
from bioio_tk.engine.scratch import Scratch
from bioio_tk.errors import ClosedError, RegionError, SpecError, UnsupportedError
from bioio_tk.meta.bdv import HDF5, SpimDocument, loader_path
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends.base import ViewStore
    from bioio_tk.core.views import View
    from bioio_tk.engine.copy import Progress

CROPPED = "cropped"
"""What the transform is called that keeps a cropped stack where it was."""


class BdvEditor:
    """Open a dataset to read its views by their attributes, and to change it in place.

    Files of Fiji, BigStitcher, pybdv and npy2bdv do as well: views are found by what the XML says.
    With ``mode="r"`` no byte of it changes. For whole images in C and T see `bioio_tk.BioReader`.

    Parameters
    ----------
    filename : str or Path
        The ``.xml``, or the ``.h5`` beside it.
    mode : {"r+", "r"}
        Whether anything may be changed.
    max_workers : int, optional
        Threads; by default one per CPU.

    Raises
    ------
    FileNotFoundError
        One of the two files is not there.
    DamagedFileError, FormatError
        One of them is broken, or something else.

    Examples
    --------
    >>> from bioio_tk.bdv import BdvEditor
    >>> with BdvEditor("embryo.xml", mode="r") as editor:                 # doctest: +SKIP
    ...     stack = editor.read_view(time=3, channel=1)
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str = "r+",
        *,
        max_workers: int | None = None,
    ) -> None:
        self._reader: BioReader | None = None
        self._store: ViewStore | None = None
        self._lock = threading.RLock()
        self._closed = False
        if mode not in ("r", "r+"):
            raise SpecError(f"mode={mode!r}: choose 'r+' to change the dataset, or 'r' to read it")
        self.mode = mode
        self._workers = check_workers(max_workers)
        _, self.xml_path = pair_of(filename)
        if not self.xml_path.is_file():
            raise FileNotFoundError(
                f"there is no {str(self.xml_path)!r}, the XML of the dataset: without it nothing "
                "is known of its views (BioReader opens an HDF5 file alone)"
            )
        self._document = SpimDocument.open(self.xml_path)
        self.path: Path = loader_path(self._document.data, self.xml_path)
        self._backed_up = False
        self._open()

    def _open(self) -> BioReader:
        with self._lock:
            if self._closed:
                raise ClosedError(f"the editor of {self.xml_path.name!r} is closed")
            if self._reader is None:
                self._reader = BioReader(self.xml_path, self._workers, "bdv")
                self._views = {ViewId(v.time, v.setup): v for v in self._reader.views}
            return self._reader

    # ------------------------------------------------------------------ what there is

    @property
    def views(self) -> tuple[View, ...]:
        """All views, those that are missing too."""
        self._open()
        return tuple(self._views.values())

    @property
    def missing_views(self) -> tuple[ViewId, ...]:
        """The views without pixels: ids of time point and setup."""
        return tuple(ViewId(v.time, v.setup) for v in self.views if v.missing)

    @property
    def affines(self) -> dict[ViewId, NDArray[Any]]:
        """Where each view that is there lies, see `BioReader.affines`."""
        return {ViewId(v.time, v.setup): v.affine for v in self.views if not v.missing}

    @property
    def ntimes(self) -> int:
        """Time points."""
        return len(self._document.data.times)

    @property
    def nsetups(self) -> int:
        """View setups."""
        return len(self._document.data.setups)

    @property
    def nilluminations(self) -> int:
        """Illuminations."""
        return len(self._values("illumination"))

    @property
    def nchannels(self) -> int:
        """Channels."""
        return len(self._values("channel"))

    @property
    def ntiles(self) -> int:
        """Tiles."""
        return len(self._values("tile"))

    @property
    def nangles(self) -> int:
        """Angles."""
        return len(self._values("angle"))

    def get_attribute_count(self) -> tuple[int, int, int, int, int]:
        """Return the numbers of time points, illuminations, channels, tiles and angles."""
        return (self.ntimes, self.nilluminations, self.nchannels, self.ntiles, self.nangles)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type of the first view."""
        return self._open().dtype

    def _values(self, kind: str) -> list[int]:
        """Return the ids of an attribute; where a setup says nothing of it, it has 0."""
        data = self._document.data
        used = {setup.attributes.get(kind, 0) for setup in data.setups.values()}
        return sorted(used | set(data.attributes.get(kind, ())))

    def view(
        self,
        time: int | None = None,
        illumination: int | None = None,
        channel: int | None = None,
        tile: int | None = None,
        angle: int | None = None,
    ) -> View:
        """Return a view by the ids of its time point and attributes, as the XML has them.

        Parameters
        ----------
        time, illumination, channel, tile, angle : int, optional
            By default the first one there is.

        Raises
        ------
        RegionError
            There is no such view.
        """
        self._open()
        given = dict(zip(ATTRIBUTES, (illumination, channel, tile, angle), strict=True))
        found = list(self._views.values())
        for kind, wanted in (("time", time), *given.items()):
            found = _with(found, kind, wanted)
        return found[0]

    def get_view_property(
        self,
        key: str,
        illumination: int | None = None,
        channel: int | None = None,
        tile: int | None = None,
        angle: int | None = None,
    ) -> tuple[float, ...]:
        """Return ``"voxel_size"`` or ``"view_shape"`` of a setup, along X, Y, Z.

        Parameters
        ----------
        key : str
            Which of the two.
        illumination, channel, tile, angle : int, optional
            See `view`.
        """
        setup = self._document.data.setups[
            self.view(None, illumination, channel, tile, angle).setup
        ]
        known = {
            "voxel_size": setup.voxel_size,
            "view_shape": None if setup.size is None else setup.size[::-1],
        }
        if key not in known:
            raise SpecError(f"key={key!r}: choose one of {', '.join(known)}")
        value = known[key]
        if value is None:
            raise SpecError(f"{self.xml_path.name!r} does not say the {key} of setup {setup.id}")
        return value

    # ------------------------------------------------------------------ pixels

    def read_view(  # noqa: PLR0913, PLR0917 (a face, as npy2bdv has it)
        self,
        time: int | None = None,
        illumination: int | None = None,
        channel: int | None = None,
        tile: int | None = None,
        angle: int | None = None,
        ilevel: int = 0,
        z: int | slice | None = None,
        y: slice | None = None,
        x: slice | None = None,
    ) -> NDArray[Any]:
        """Return the pixels of a view, or of a part of it.

        Parameters
        ----------
        time, illumination, channel, tile, angle : int, optional
            See `view`.
        ilevel : int
            Resolution, 0 is the first.
        z, y, x : int or slice, optional
            What to read along Z, Y, X; all of it by default. Only the chunks it touches are read.

        Returns
        -------
        numpy.ndarray
            Shape (z, y, x); (y, x) where `z` is an int.

        Raises
        ------
        RegionError
            There is no such view, resolution or plane, or the view is missing.
        """
        view = self.view(time, illumination, channel, tile, angle)
        if view.missing:
            raise RegionError(f"{_spoken(view)} is missing: there are no pixels of it")
        source = self._open().array.view().source
        levels = source.images[view.series].levels
        if ilevel not in range(len(levels)):
            raise RegionError(f"ilevel={ilevel!r}: {_spoken(view)} has {len(levels)} resolution(s)")
        key = (slice(None) if part is None else part for part in (y, x, z))
        selection = select((*key, view.c, view.t), levels[ilevel].shape)
        pixels = read(source, view.series, ilevel, selection, workers=self._workers)
        stack = pixels[..., 0, 0].transpose(2, 0, 1)
        return stack[0] if isinstance(z, (int, np.integer)) else stack

    # ------------------------------------------------------------------ transforms

    def read_affine(
        self,
        time: int | None = None,
        illumination: int | None = None,
        channel: int | None = None,
        tile: int | None = None,
        angle: int | None = None,
        index: int = 0,
    ) -> NDArray[np.float64]:
        """Return one of the transforms of a view, shape (3, 4).

        Parameters
        ----------
        time, illumination, channel, tile, angle : int, optional
            See `view`.
        index : int
            Which transform; 0 is the one that is applied last. All together: `affines`.
        """
        view = self.view(time, illumination, channel, tile, angle)
        found = self._document.data.transforms.get(ViewId(view.time, view.setup), ())
        return picked(found, index, _spoken(view))

    def append_affine(
        self,
        m_affine: Any,
        name_affine: str = "manually defined",
        time: int | None = None,
        illumination: int | None = None,
        channel: int | None = None,
        tile: int | None = None,
        angle: int | None = None,
        index: int = 0,
    ) -> None:
        """Give a view one more transform; the XML is written at once.

        Parameters
        ----------
        m_affine : array of shape (3, 4)
            Linear part and translation along X, Y, Z.
        name_affine : str
            What it is called.
        time, illumination, channel, tile, angle : int, optional
            See `view`.
        index : int
            Before which of those there are; at 0 it is applied after all of them.
        """
        added = affine(m_affine, name_affine)
        with self._lock:
            view = self._editable(time, illumination, channel, tile, angle)
            self._document.insert_transform(view, added, index)
            self._moved(view)

    def replace_affine(
        self,
        m_affine: Any,
        name_affine: str = "manually defined",
        time: int | None = None,
        illumination: int | None = None,
        channel: int | None = None,
        tile: int | None = None,
        angle: int | None = None,
        index: int = 0,
    ) -> None:
        """Put another transform in the place of one; as `append_affine`."""
        changed = affine(m_affine, name_affine)
        with self._lock:
            view = self._editable(time, illumination, channel, tile, angle)
            self._document.replace_transform(view, index, changed)
            self._moved(view)

    def remove_affine(
        self,
        time: int | None = None,
        illumination: int | None = None,
        channel: int | None = None,
        tile: int | None = None,
        angle: int | None = None,
        index: int = 0,
    ) -> None:
        """Take a transform of a view away; as `append_affine`."""
        with self._lock:
            view = self._editable(time, illumination, channel, tile, angle)
            self._document.remove_transform(view, index)
            self._moved(view)

    def _moved(self, view: ViewId) -> None:
        """Write that a view lies elsewhere. Its pixels are as before: they are not opened anew."""
        there = self._document.data.transforms.get(view, ())
        self._views[view] = replace(self._views[view], transforms=there)
        self._save()

    def _editable(self, *places: Any) -> ViewId:
        self._check_writable()
        if self._store is None and self._document.data.loader.format == HDF5:
            # a writer at work says anew, with its next view, where all of them lie
            registry.load_view_store().check_idle(self.path)
        view = self.view(*places)
        return ViewId(view.time, view.setup)

    def _check_writable(self) -> None:
        if self._closed:
            raise ClosedError(f"the editor of {self.xml_path.name!r} is closed")
        if self.mode == "r":
            raise SpecError(
                f"{self.xml_path.name!r} was opened with mode='r': open it with mode='r+' to "
                "change it"
            )

    def _save(self) -> None:
        """Write the XML; what it was before this editor came stays beside it, as ``X.xml~1``."""
        self._document.save(backup=not self._backed_up)
        self._backed_up = True

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    # ------------------------------------------------------------------ changing pixels

    def crop_view(
        self,
        bbox_xyz: Sequence[Sequence[int | None] | None] = ((1, -1), (1, -1), None),
        illumination: int | None = None,
        channel: int | None = None,
        tile: int | None = None,
        angle: int | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Cut the stacks of a setup, at all time points and resolutions.

        What is left stays where it was in the world: the views get a transform that moves them by
        what was cut off. The file does not get smaller; `bioio_tk.convert` makes one that is.

        Parameters
        ----------
        bbox_xyz : sequence of 3 (start, stop) or None
            What to keep along X, Y, Z, as a Python slice, which may go beyond the stack; None keeps
            all.
        illumination, channel, tile, angle : int, optional
            See `view`.
        progress : callable, optional
            Called as ``progress(done, total)`` in bytes, for each time point.
        """
        with self._lock:
            self._check_writable()
            setup = self.view(None, illumination, channel, tile, angle).setup
            views = [v for v in self._views.values() if v.setup == setup and not v.missing]
            if not views:
                raise RegionError(f"setup {setup} has no views that are there")
            y, x, z = views[0].shape[:3]
            spans = [_kept(a, box, n) for a, box, n in _boxes(bbox_xyz, (x, y, z))]
            file = self._file()
            if file.scheme(setup).mipmaps[0].factor != (1, 1, 1):
                raise UnsupportedError(
                    f"setup {setup} does not store its full resolution, so it cannot be cropped"
                )
            with closing(Scratch(self.path.parent)) as scratch:
                writers = self._crop(file, views, spans, scratch, progress)
            with interrupt_later():
                self._finish(file, writers)
                self._cut(setup, views, spans)
            self._let_go()

    def _crop(
        self,
        file: ViewStore,
        views: list[View],
        spans: list[range],
        scratch: Scratch,
        progress: Progress | None,
    ) -> list[ViewWriter]:
        """Cut stacks, which nobody sees yet."""
        x, y, z = spans
        source = self._open().array.view().source
        writers: list[ViewWriter] = []
        try:
            for view in views:
                sink = file.begin_view(ViewId(view.time, view.setup), (len(z), len(y), len(x)))
                writer = ViewWriter(sink, workers=self._workers, scratch=scratch, method="mean")
                writers.append(writer)
                one = (range(view.c, view.c + 1), range(view.t, view.t + 1))
                kept = Pixels(source, view.series, 0, (y, x, z, *one))
                copy(kept, writer.put, writer.tile, workers=self._workers, progress=progress)
                writer.end()
            self._document.check_unchanged()
        except BaseException:
            for writer in writers:
                writer.abort()
            raise
        return writers

    @staticmethod
    def _finish(file: ViewStore, writers: list[ViewWriter]) -> None:
        """Let others see stacks, all of them in one moment: a setup has one size."""
        try:
            with file.together():
                for writer in writers:
                    writer.finish()
        except BaseException:
            for writer in writers:
                writer.abort()
            raise

    def _cut(self, setup: int, views: list[View], spans: list[range]) -> None:
        """Write that the stacks of a setup are smaller, and lie where they lay."""
        x, y, z = spans
        shift = (1, 0, 0, x.start, 0, 1, 0, y.start, 0, 0, 1, z.start)
        self._document.set_size(setup, (len(z), len(y), len(x)))
        for view in views:
            there = self._document.data.transforms.get(ViewId(view.time, setup), ())
            moved = ViewTransform(shift, CROPPED)
            self._document.insert_transform(ViewId(view.time, setup), moved, len(there))
        self._save()

    def create_pyramids(
        self,
        subsamp: Sequence[Sequence[int]] | None = None,
        blockdim: Sequence[Sequence[int]] | None = None,
        compression: str | None = "gzip",
        *,
        progress: Progress | None = None,
    ) -> None:
        """Make the smaller resolutions of all views from what is stored, block by block.

        Views that have them already are left alone, so an interrupted run can be repeated.

        Parameters
        ----------
        subsamp : sequence of (int, int, int), optional
            Factors along Z, Y, X besides the full resolution; by default those that BigDataViewer
            proposes.
        blockdim : sequence of (int, int, int), optional
            Blocks of each of them, or of all.
        compression : str or None
            ``"gzip"`` or ``"none"``.
        progress : callable, optional
            Called as ``progress(done, total)`` in bytes of the full resolution.
        """
        wanted, blocks = triples("subsamp", subsamp), triples("blockdim", blockdim)
        kind = check_compression(compression, None)
        with self._lock:
            self._check_writable()
            self._let_go()
            add_levels(
                self._file(),
                {n: setup.voxel_size for n, setup in self._document.data.setups.items()},
                wanted,
                blocks,
                compression=kind,
                workers=self._workers,
                scratch_folder=self.path.parent,
                progress=progress,
            )

    def _file(self) -> ViewStore:
        """Open the pixels to change them; from the first change on they stay open."""
        if self._store is not None:
            return self._store
        loader = self._document.data.loader
        if loader.format != HDF5:
            raise UnsupportedError(
                f"the pixels of {self.xml_path.name!r} are in {loader.format!r}: only those in "
                f"{HDF5!r} can be changed; convert the dataset"
            )
        self._store = registry.load_view_store().open(self.path, writable=True)
        return self._store

    def finalize(self) -> None:
        """Close the dataset, as `close`: every change is in the files already."""
        self.close()

    def close(self) -> None:
        """Release the files. Safe to call twice."""
        with self._lock:
            self._let_go()
            self._closed = True
            if self._store is not None:
                self._store.close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a BdvEditor cannot be pickled: open the dataset with it in the other process, or "
            "send a BioReader"
        )

    def __enter__(self) -> BdvEditor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.mode
        counts = f"{self.nsetups} setups, {self.ntimes} times"
        return f"<BdvEditor {self.xml_path.name!r} {counts} ({state})>"


def _with(views: list[View], kind: str, wanted: Any) -> list[View]:
    """Return the views of one time point, channel, …; the first there is where none is named."""
    ids = {(v.time if kind == "time" else v.attributes.get(kind, 0)) for v in views}
    if wanted is None:
        wanted = min(ids)
    if isinstance(wanted, bool) or wanted not in ids:
        known = sorted(ids)
        listed = ", ".join(map(str, known[:12])) + (" …" if len(known) > 12 else "")
        raise RegionError(f"there is no view with {kind}={wanted!r}; there are: {listed}")
    return [v for v in views if (v.time if kind == "time" else v.attributes.get(kind, 0)) == wanted]


def _spoken(view: View) -> str:
    at = ", ".join(f"{kind} {n}" for kind, n in view.attributes.items())
    return f"the view at time {view.time}{', ' if at else ''}{at}"


def _boxes(
    given: Any, sizes: tuple[int, int, int]
) -> list[tuple[str, Sequence[int | None] | None, int]]:
    try:
        boxes = list(given)
    except TypeError:
        boxes = []
    if len(boxes) != 3:
        raise SpecError(f"bbox_xyz={given!r}: give (start, stop) or None along each of X, Y, Z")
    return list(zip("xyz", boxes, sizes, strict=True))


def _kept(axis: str, box: Sequence[int | None] | None, size: int) -> range:
    """Return what is kept along an axis."""
    if box is None:
        return range(size)
    if len(box) != 2:
        raise SpecError(f"bbox_xyz along {axis} is {box!r}: give (start, stop), or None for all")
    kept = range(*slice(*box).indices(size))
    if not kept:
        raise SpecError(f"bbox_xyz along {axis} is {box!r}: nothing is left of {size} pixels")
    return kept
