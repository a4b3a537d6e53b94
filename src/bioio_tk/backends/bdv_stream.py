"""BdvStore: an acquisition as a BigDataViewer dataset, an HDF5 file and the XML beside it.

Each position is a tile, each channel a channel, each time point a time point. A stack is there for
readers when its first plane comes, and so is each plane as soon as it is stored (`GrowingView`);
the XML follows, as often as that costs little.
"""

from __future__ import annotations

import threading
import time
import uuid
import warnings
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np

from bioio_tk.backends._bdv_file import BdvFile
from bioio_tk.backends._bdv_growing import GrowingView, Zeros
from bioio_tk.backends._bdv_layout import CELLS, check_scheme, view_path
from bioio_tk.backends._bdv_ome import OME_XML
from bioio_tk.backends._hdf5_chunks import library
from bioio_tk.backends.base import Caps
from bioio_tk.core.frames import UNBOUNDED
from bioio_tk.core.spec import Level, PhysicalSize
from bioio_tk.core.stacks import Stack, layout_of
from bioio_tk.core.units import convert_length
from bioio_tk.core.views import Mipmap, Scheme, ViewId, tell_foreign
from bioio_tk.errors import BackendError, BioIOWarning, SpecError, UnsupportedError
from bioio_tk.meta.bdv import HDF5, Loader, SpimXml, parse, write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.acquisition import AcquiredPosition, AcquisitionPlan, ImageRecord
    from bioio_tk.core.spec import Address, ImageSpec, Quantity
    from bioio_tk.core.stacks import Layout
    from bioio_tk.core.views import Shape3

_EXTRA = ("factors", "depth", "pyramid")
_MOST_OPEN = 512
"""Stacks of which it is kept in memory where their chunks are."""
_MOST_GROWING = 64
"""Of these, how many are taken to get more planes."""
_SHARE = 4
"""Of the time, the XML takes one part in so many, at most."""


class GrowingBdv:
    """The stacks of one position.

    Attributes
    ----------
    factors : tuple of (int, int, int)
        See `MipmapSink`.
    """

    caps: ClassVar[Caps] = Caps(parallel_store=True, tile_multiple=1)

    def __init__(self, store: BdvStore, image: ImageSpec, position: int) -> None:
        self.images: tuple[ImageSpec, ...] = (image,)
        self.planes = 0
        self.factors: tuple[tuple[int, int, int], ...] = store.factors
        self._store = store
        self._position = position
        self._latest: tuple[tuple[int, int], GrowingView | None] = ((0, 0), None)

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Any:
        pixels = tile[:, :, :, 0, 0].transpose(2, 0, 1)
        return self._view(at).encode(at.level, pixels)

    def store_tile(self, at: Address, encoded: Any) -> None:
        self.store_tiles([(at, encoded)])

    def store_tiles(self, tiles: Sequence[tuple[Address, Any]]) -> None:
        stacks: dict[tuple[int, int], list[tuple[Address, Any]]] = {}
        for at, encoded in tiles:
            stacks.setdefault(at.key[3:], []).append((at, encoded))
        for some in stacks.values():
            first = some[0][0]
            view = self._view(first)
            view.store(first.level, [(self._start(at), encoded) for at, encoded in some])

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        view = self._store.view(self._position, *at.key[3:])
        y, x, z, _, _ = self.images[0].levels[at.level].grid.tile_shape(at.key)
        pixels = None if view is None else view.load(at.level, self._start(at), (z, y, x))
        return None if pixels is None else pixels.transpose(1, 2, 0)[..., None, None]

    def _view(self, at: Address) -> GrowingView:
        place, view = self._latest  # most tiles are of the stack of the one before
        if view is None or place != at.key[3:] or not view.has(at.level):
            view = self._store.begun(self._position, *at.key[3:], level=at.level)
            self._latest = at.key[3:], view
        return view

    def _start(self, at: Address) -> Shape3:
        """Return where in its stack a tile begins, along Z, Y, X."""
        tile = self.images[0].levels[at.level].tile
        y, x, z = (key * size for key, size in zip(at.key[:3], tile[:3], strict=True))
        return (z, y, x)

    def grow(self, image: int, t: int) -> None:
        raise UnsupportedError(f"this grows by planes, not to {t} time points")

    def extend(self, planes: int) -> None:
        self.planes = max(planes, self.planes)
        self._store.tell()

    def settle(self, planes: int) -> None:
        self.planes = max(planes, self.planes)
        self.images = (self._store.cut(self.images[0], self.planes),)

    def finish(self) -> None:
        """Do nothing: the store does it for all positions."""

    def close(self) -> None:
        """Do nothing: the store does it for all positions."""


class BdvStore:
    """All positions of one acquisition.

    Parameters
    ----------
    path : Path
        The XML: an empty file, as there is one of that name that ends in ``.h5``.
    plan : AcquisitionPlan
        What is going to be recorded.
    options : StoreOptions
        How. `extra` has ``factors`` of the smaller levels (along Y, X, Z), ``depth``, the planes
        of a block of the full resolution, and ``pyramid``, when the smaller levels are made.
    """

    def __init__(self, path: Path, plan: AcquisitionPlan, options: StoreOptions) -> None:
        self._begin(path, plan, options, BdvFile.create(self.beside(path)[0]))

    def _begin(
        self, path: Path, plan: AcquisitionPlan, options: StoreOptions, file: BdvFile
    ) -> None:
        self._path, self._plan, self._options = path, plan, options
        self._file = file
        self.factors: tuple[tuple[int, int, int], ...] = tuple(options.extra["factors"])
        self._layout = _layout(plan)
        self._scheme = _scheme(plan, options)
        self._at_once = len(plan.image.levels) if options.extra["pyramid"] == "live" else 1
        y, x, z = plan.image.shape[:3]
        self._size: Shape3 = (z, y, x)
        self._zeros = Zeros(file.tree)
        self._xml = SpimXml(Loader(HDF5, file.path.name), created_by=_library())
        self._lock = threading.RLock()  # over all below
        self._views: OrderedDict[ViewId, GrowingView] = OrderedDict()
        self._used: WeakValueDictionary[ViewId, GrowingView] = WeakValueDictionary()
        self._there: set[ViewId] = set()
        self._sinks: dict[int, GrowingBdv] = {}
        self._stale = self._finished = False
        self._told, self._cost = 0.0, 0.0

    @classmethod
    def check(cls, plan: AcquisitionPlan, options: StoreOptions) -> None:
        library()
        for name in options.extra:
            if name not in _EXTRA:
                raise SpecError(f"BigDataViewer streams have no option {name!r}: {_EXTRA}")
        _check_axes(plan)
        if plan.plate is not None:
            raise UnsupportedError(
                "BigDataViewer knows no plates: leave the plate out, and each position becomes a "
                "tile; or write OME-Zarr"
            )
        check_scheme(_scheme(plan, options))
        tell_foreign(options.compression)
        _say_all(SpimXml(Loader(HDF5, cls.beside(Path(options.name))[0].name)), _layout(plan))
        placed = any(position.x_um is not None for position in plan.positions)
        if placed and plan.image.physical_size.x is None and len(plan.positions) > 1:
            warnings.warn(
                "the positions have stage coordinates, but the size of a pixel is not known: "
                "BigDataViewer will show all of them in one place; give the dimensions y and x a "
                "scale",
                BioIOWarning,
                stacklevel=3,
            )

    @staticmethod
    def is_folder(plan: AcquisitionPlan, options: StoreOptions) -> bool:
        """Return False: it is a file, and another one beside it."""
        return False

    @staticmethod
    def beside(path: Path) -> tuple[Path]:
        """Return the file with the pixels."""
        return (path.with_suffix(".h5"),)

    check_idle = staticmethod(BdvFile.check_idle)

    @classmethod
    def foreign(cls, path: Path, plan: AcquisitionPlan, options: StoreOptions) -> Path | None:
        """Return None: there is no folder."""
        return None

    @staticmethod
    def image_path(path: Path, plan: AcquisitionPlan, options: StoreOptions, position: int) -> Path:
        """Return the XML."""
        return path

    @classmethod
    def anchor(
        cls,
        path: Path,
        plan: AcquisitionPlan,
        options: StoreOptions,
        position: int,
    ) -> Path:
        """Return the file with the pixels."""
        return cls.beside(path)[0]

    @classmethod
    def reopen(
        cls, path: Path, plan: AcquisitionPlan, options: StoreOptions, planes: Mapping[int, int]
    ) -> BdvStore:
        store = cls.__new__(cls)
        store._begin(path, plan, options, BdvFile.open(cls.beside(path)[0], writable=True))
        try:
            end = 0
            ours = {setup.id for setup in store._layout.setups.values()}
            for view in [view for view in store._file.views() if view.setup in ours]:
                store._add(view)
                stack = store._stack(view)
                stack.again()
                end = max(end, stack.end)
            store._file.tree.settle(end)
            for position, count in planes.items():
                store.open(position).planes = count
        except BaseException:
            store.close()
            raise
        return store

    def open(self, position: int) -> GrowingBdv:
        with self._lock:
            if position not in self._sinks:
                self._sinks[position] = GrowingBdv(self, self._plan.image, position)
            return self._sinks[position]

    # ------------------------------------------------------------------ stacks

    def view(self, position: int, c: int, t: int) -> GrowingView | None:
        """Return a stack, None where there is none."""
        view = ViewId(t, _setup_id(self._plan, position, c))
        with self._lock:
            found = self._used.get(view)  # who is at work on it has changed it since
            if found is None and view in self._there:
                found = self._stack(view)
                found.again()
            if found is not None:
                self._keep(view, found)
            return found

    def begun(self, position: int, c: int, t: int, *, level: int) -> GrowingView:
        """Return a stack, a new one where there is none, with a level and all that come at once."""
        with self._lock:
            found = self.view(position, c, t)
            if found is None:
                view = ViewId(t, _setup_id(self._plan, position, c))
                found = self._stack(view)
                if view.setup not in self._file.setups():
                    listed = self._scheme.mipmaps[: self._at_once]
                    self._file.add_setup(view.setup, replace(self._scheme, mipmaps=listed))
                recent = islice(reversed(self._views.values()), _MOST_GROWING)
                found.begin(range(self._at_once), sum(stack.room for stack in recent))
                self._add(view)
                self._keep(view, found)
            if not found.has(level):
                found.begin([level])
            return found

    def _stack(self, view: ViewId) -> GrowingView:
        return GrowingView(self._file.tree, view, self._size, self._scheme, self._zeros)

    def _keep(self, view: ViewId, stack: GrowingView) -> None:
        """Keep a stack in memory, and forget those that are whole or were not used for long."""
        self._views[view] = self._used[view] = stack
        self._views.move_to_end(view)
        while len(self._views) > 1 and (
            len(self._views) > _MOST_OPEN or not next(iter(self._views.values())).room
        ):
            self._views.popitem(last=False)

    def _add(self, view: ViewId) -> None:
        """Take note of a stack that is there."""
        position, c = self._where(view)
        setup = self._layout.setups[position, c]
        self._xml.set_setup(setup)
        for kind, number in setup.attributes.items():
            self._xml.set_attribute(kind, self._layout.attributes[kind][number])
        self._xml.set_view(view, self._layout.transforms[Stack(position, c, 0)])
        self._there.add(view)
        self._stale = True

    def _where(self, view: ViewId) -> tuple[int, int]:
        """Return position and channel of a view."""
        c, position = divmod(view.setup, len(self._plan.positions))  # see `_setup_id`
        return position, c

    # ------------------------------------------------------------------ what is said of them

    def tell(self, *, now: bool = False) -> None:
        """Write the XML where it lacks a stack, unless that was done just before."""
        with self._lock:
            begin = time.monotonic()
            if not self._stale or not (now or begin - self._told >= _SHARE * self._cost):
                return
            document = self._xml.render()
            self._stale = False
        write_atomic(self._path, document)
        self._told = time.monotonic()
        self._cost = self._told - begin

    def cut(self, image: ImageSpec, planes: int) -> ImageSpec:
        """Return an image of a position as large as so many planes need."""
        z, c, t = self._plan.order.extent(planes)
        levels = []
        for level, mipmap in zip(image.levels, self._scheme.mipmaps, strict=True):
            y, x = level.shape[:2]
            levels.append(replace(level, shape=(y, x, -(-z // mipmap.factor[0]), c, t)))
        return replace(image, levels=tuple(levels))

    def finish(
        self, records: Sequence[ImageRecord], notes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Leave out what was not stored, and write all metadata.

        With no records only the notes have changed; that may be said after `close`, too.

        Raises
        ------
        BackendError
            There are only notes, of an acquisition that could not be finished.
        """
        with self._lock:
            if records:
                self._list_levels()
                self._trim(records)
                self._describe(records, notes)
                self._xml.set_times(max(record.shape(self._plan)[4] for record in records))
                self._stale = self._finished = True
                self.tell(now=True)
            elif self._finished:
                self._renote(notes)
            elif self._there:
                raise BackendError(
                    "the metadata of this acquisition are not complete, so nothing can be added to "
                    "them: complete them first, with 'bioio-tk recover'"
                )

    def _trim(self, records: Sequence[ImageRecord]) -> None:
        """Leave out stacks, and blocks of stacks, that no plane of was recorded."""
        known = {record.position: _Planes(self._plan, record) for record in records}
        for view in sorted(self._there):
            position, c = self._where(view)
            planes = known.get(position)
            if planes is None or not planes.touches(c, view.time):
                self._drop(view)
            elif not planes.whole(c, view.time):
                stored = planes.stored(c, view.time)
                stack = self.view(position, c, view.time)
                if stack is not None:
                    with self._file.tree.edit() as edit:
                        stack.trim(edit, (planes.depth, *self._size[1:]), stored)
                self._forget(view)
        for (position, _), setup in self._layout.setups.items():
            if position in known and known[position].depth < self._size[0]:
                depth = known[position].depth
                self._xml.set_setup(replace(setup, size=(depth, *self._size[1:])))

    def _forget(self, view: ViewId) -> None:
        self._views.pop(view, None)
        self._used.pop(view, None)

    def _drop(self, view: ViewId) -> None:
        self._forget(view)
        self._there.discard(view)
        self._xml.drop_view(view)
        with self._file.tree.edit() as edit:
            edit.unlink(view_path(*view))

    def _list_levels(self) -> None:
        """Let the levels be found that were made at the end, now that all stacks have them."""
        if self._options.extra["pyramid"] != "after":
            return
        for view in sorted(self._there):
            position, c = self._where(view)
            for level in range(len(self._scheme.mipmaps)):
                self.begun(position, c, view.time, level=level)
        for setup in {view.setup for view in self._there}:
            self._file.set_mipmaps(setup, self._scheme.mipmaps)

    def _describe(
        self, records: Sequence[ImageRecord], notes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Keep beside the stacks what BigDataViewer has no words for."""
        from bioio_tk.meta.ome_stream import StreamImage, stream_xml

        plan = self._plan
        shapes = [record.shape(plan) for record in records]
        last = max(shape[4] for shape in shapes)
        images = [
            StreamImage(record, self._name(record.position), shape=(*shape[:4], last))
            for record, shape in zip(records, shapes, strict=True)
        ]
        document = stream_xml(plan, images, notes, uuid=str(uuid.uuid4()), tiff=False)
        self._file.describe(document)

    def _name(self, position: int) -> str:
        return self._plan.positions[position].name if self._plan.several else self._path.stem

    def _renote(self, notes: Mapping[str, Mapping[str, Any]]) -> None:
        from bioio_tk.meta.ome_notes import renoted

        with library().File(self._file.path, "r", locking=False) as file:
            document = bytes(file[OME_XML][0])
        self._file.close()
        again = BdvFile.open(self._file.path, writable=True)
        try:
            again.describe(renoted(document, notes))
        finally:
            again.close()

    def get_metadata(self) -> str:
        """Return the XML; while the acquisition runs, that of what is there."""
        with self._lock:
            if not self._finished:
                return self._xml.render().decode()
            return self._path.read_text("utf-8")

    def update_metadata(self, metadata: Any) -> None:
        """Replace the XML.

        Raises
        ------
        TypeError
            It is no text.
        BackendError
            The acquisition is not over.
        FormatError
            It is no XML of BigDataViewer.
        """
        if not isinstance(metadata, str):
            raise TypeError(f"Expected the text of an XML document, got {type(metadata)}")
        with self._lock:
            if not self._finished:
                raise BackendError(
                    "the stream has to be closed before its metadata can be updated: while it runs "
                    "they change with every stack"
                )
            parse(metadata, str(self._path))
            write_atomic(self._path, metadata.encode())

    @classmethod
    def read_plane(
        cls, path: Path, plan: AcquisitionPlan, position: int, plane: int
    ) -> NDArray[Any]:
        """Return a plane (y, x) of a position as it is on disk now, 0 where nothing is."""
        z, c, t = plan.order.key(plane)
        where = "/".join(view_path(t, _setup_id(plan, position, c), "0", CELLS))
        with library().File(cls.beside(path)[0], "r", locking=False) as file:
            if where not in file:
                return np.zeros(plan.image.shape[:2], plan.image.dtype)
            pixels: NDArray[Any] = file[where][z].view(plan.image.dtype)
            return pixels

    def close(self) -> None:
        with self._lock:
            self._views.clear()
            self._file.close()


class _Planes:
    """Which planes of a position were recorded, by channel and time point."""

    def __init__(self, plan: AcquisitionPlan, record: ImageRecord) -> None:
        self._order, self._planes = plan.order, record.planes
        self._skipped = record.skipped
        self._starts = [skip.start for skip in record.skipped]
        self._last = plan.image.shape[2] - 1
        self.depth = plan.order.extent(record.planes)[0]

    def touches(self, c: int, t: int) -> bool:
        """Return whether any plane of a stack was recorded."""
        return self.whole(c, t) or any(self.stored(c, t))

    def whole(self, c: int, t: int) -> bool:
        """Return whether all of them were; also no plane between them was skipped."""
        first, last = (self._order.plane(z, c, t) for z in (0, self._last))
        return last < self._planes and not self._skips(first, last)

    def stored(self, c: int, t: int) -> list[bool]:
        """Return which of them were."""
        numbers = [self._order.plane(z, c, t) for z in range(self._last + 1)]
        return [n < self._planes and not self._skips(n, n) for n in numbers]

    def _skips(self, first: int, last: int) -> bool:
        """Return whether any plane from the first to the last one was skipped."""
        before = bisect_right(self._starts, last)
        return before > 0 and self._skipped[before - 1].stop > first


# --- what is known before the first frame ---------------------------------------------------------


def _check_axes(plan: AcquisitionPlan) -> None:
    z, c = plan.image.shape[2:4]
    if z >= UNBOUNDED or c >= UNBOUNDED:
        what = "planes of a stack" if z >= UNBOUNDED else "channels"
        raise UnsupportedError(
            f"BigDataViewer has to know the number of {what} before the first frame: give it (a "
            "stream that is closed earlier has the size of what came), let only time be without "
            "end, or write OME-Zarr or OME-TIFF"
        )


def _scheme(plan: AcquisitionPlan, options: StoreOptions) -> Scheme:
    """Return how the stacks are stored."""
    depth = min(options.extra["depth"], plan.image.shape[2])
    mipmaps: list[Mipmap] = []
    factors = ((1, 1, 1), *options.extra["factors"])
    for (fy, fx, fz), level in zip(factors, plan.image.levels, strict=True):
        y, x, z = level.tile[:3]
        mipmaps.append(Mipmap((fz, fy, fx), (z if mipmaps else depth, y, x)))
    return Scheme(plan.image.dtype, tuple(mipmaps), options.compression or "none", options.level)


def _layout(plan: AcquisitionPlan) -> Layout:
    """Return the views of one time point."""
    y, x, z, c, _ = plan.image.shape
    level = Level((y, x, z, c, 1), plan.image.levels[0].tile)
    return layout_of(
        [
            replace(
                plan.image,
                levels=(level,),
                name=position.name if plan.several else "",
                position=_place(position, plan.image.position),
            )
            for position in plan.positions
        ]
    )


def _setup_id(plan: AcquisitionPlan, position: int, c: int) -> int:
    """Return the view setup of a position and channel; see `layout_of`."""
    return c * len(plan.positions) + position


def _place(position: AcquiredPosition, origin: PhysicalSize) -> PhysicalSize:
    """Return where the first pixel of a position lies: the stage, and the image's own origin."""
    stage = (position.x_um, position.y_um, position.z_um)
    return PhysicalSize(*map(_moved, stage, origin))


def _moved(stage: float | None, origin: Quantity | None) -> Quantity | None:
    if stage is None:
        return origin
    if origin is None:
        return (stage, "µm")
    try:
        return (stage + convert_length(*origin, "µm"), "µm")
    except SpecError:  # pixels, or units of the stage
        return (stage, "µm")


def _library() -> dict[str, str]:
    from bioio_tk import __version__

    return {"library": "bioio_tk", "library_version": __version__}


def _say_all(xml: SpimXml, layout: Layout) -> None:
    """Raise SpecError where a name cannot stand in an XML."""
    for setup in layout.setups.values():
        xml.set_setup(setup)
    for kind, attributes in layout.attributes.items():
        for attribute in attributes:
            xml.set_attribute(kind, attribute)
