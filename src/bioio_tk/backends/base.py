"""What a backend author implements: a Source to read, a Sink to write, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from bioio_tk.core.acquisition import AcquisitionPlan, ImageRecord
from bioio_tk.core.location import Location
from bioio_tk.core.plate import Plate
from bioio_tk.core.region import Shape5, Slices5
from bioio_tk.core.spec import Address, ImageSpec
from bioio_tk.core.views import Mipmap, Scheme, Shape3, View, ViewId


@dataclass(frozen=True, slots=True)
class Caps:
    """What the engine may do with a backend."""

    parallel_read: bool = True
    """read_tile() may run in several threads at once."""

    parallel_store: bool = False
    """store_tile() may run in several threads at once (else: one at a time)."""

    grows: bool = False
    """grow() works: the number of time points may be unknown at the start."""

    costly_tiles: bool = True
    """A tile is decoded whole even for a part of it: worth keeping for the next request."""

    waits: bool = False
    """Tiles come over a network: worth asking for many at once, whatever the number of CPUs."""

    tile_multiple: int = 16
    """Height and width of tiles are a multiple of this, also where the image is smaller."""

    pyramids: bool = True
    """What is written may have smaller resolutions."""

    whole_rows: bool = False
    """Tiles are as wide as the image."""

    forks: bool = True
    """What was opened before a fork can be used in the child; else a BackendError says so."""


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a Source opens what it is given.

    Attributes
    ----------
    dims : str or None
        The axes of an array that does not name them, slowest first: ``"TZYX"``.
    group : str
        Where to begin in a file that is a tree: ``"A/1/0"``; "" is the root.
    storage_options : dict
        For remote locations: what fsspec passes on to the file system.
    """

    dims: str | None = None
    group: str = ""
    storage_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a Sink stores what it is given; None means the backend's own default.

    Attributes
    ----------
    compression : str or None
        Name of the codec, ``"none"`` for raw.
    level : int or None
        Compression level, in the codec's own scale.
    predictor : bool or None
        Difference neighbouring pixels before compressing, where the codec allows it.
    metadata : ome_types.OME, str or None
        Metadata to carry over (an OME object or an OME-XML document); the geometry in it is
        replaced by that of the images stored.
    downsample : str
        How the smaller levels are made, see `core.downsample`; formats may say so.
    extra : dict
        Options of one backend only; an unknown one is a SpecError.
    storage_options : dict
        For remote locations: what fsspec passes on to the file system.
    name : str
        What the finished file will be called, for a backend whose formats differ in that.
    journaled : bool
        A journal says what is stored (see `ResumingSink`): it has to stay where it is.
    """

    compression: str | None = None
    level: int | None = None
    predictor: bool | None = None
    metadata: Any = None
    downsample: str = "mean"
    extra: dict[str, Any] = field(default_factory=dict)
    storage_options: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    journaled: bool = False


DEFAULTS = OpenOptions()


@dataclass(frozen=True, slots=True)
class Started:
    """What a backend that must be started runs on.

    Attributes
    ----------
    version : str
        Of Bio-Formats.
    jar : str
        Its file; "" where that is not known.
    java : str
        Version of Java.
    """

    version: str
    jar: str
    java: str


class Source(Protocol):
    """An open file to read. Only reads tiles; knows nothing of regions or threads.

    Attributes
    ----------
    images : sequence of ImageSpec
        The series of the file.
    notes : tuple of str
        What was wrong in the file and how it was understood all the same; one line each.
    """

    caps: Caps
    images: Sequence[ImageSpec]
    notes: tuple[str, ...]

    def __init__(self, location: Location, options: OpenOptions = DEFAULTS) -> None: ...

    def read_tile(self, at: Address) -> NDArray[Any]:
        """Return the tile, shaped (y, x, z, c, t), clipped at the image edge."""
        ...

    def ome_xml(self) -> str | None:
        """Return the OME-XML document of the file as it stands there, None where it has none."""
        ...

    def details(self, image: int, level: int) -> dict[str, Any]:
        """Return how a level is stored: ``tile``, ``compression`` and what else is worth saying.

        ``parts`` is True where a part of a tile can be read at the price of that part.
        """
        ...

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        ...


class SettlingSource(Source, Protocol):
    """A Source that finds out how to read an image best only when its pixels are wanted."""

    def settle(self, image: int, level: int) -> None:
        """Make up its mind about the tile in ``images[image].levels[level]``."""
        ...


class PartSource(Source, Protocol):
    """A Source that can be faster when only a part of a tile is wanted, or where it goes."""

    def read_part(self, at: Address, part: Slices5, out: NDArray[Any]) -> bool:
        """Fill `out` with ``read_tile(at)[part]`` and return True, or return False.

        False means: nothing to gain here, take `read_tile`. Slices have positive steps.
        """
        ...


class ShardSource(Source, Protocol):
    """A Source whose tiles lie together in larger pieces that are read faster as one."""

    def shard(self, image: int, level: int) -> Shape5 | None:
        """Return the size of these pieces in YXZCT, a multiple of the tile; None for none."""
        ...

    def read_shard(self, at: Address, part: Slices5, out: NDArray[Any]) -> None:
        """Fill `out` with a part of a piece; the key of `at` counts pieces, not tiles.

        Slices have positive steps. Only the tiles that `part` touches are read.
        """
        ...


class TreeSource(Source, Protocol):
    """A Source that holds more than a list of images.

    Attributes
    ----------
    plate : Plate or None
        The wells the images were taken in.
    """

    plate: Plate | None

    def labels(self, image: int) -> dict[str, str]:
        """Return the label images that belong to an image: name to ``OpenOptions.group``."""
        ...

    def tree(self) -> dict[str, Any]:
        """Return what is in the file beyond its images, for people to read."""
        ...


class VendorSource(Source, Protocol):
    """A Source that knows what the vendor wrote, and which files it reads.

    Attributes
    ----------
    format : str
        What the format is called, "Zeiss CZI".
    """

    format: str

    def original_metadata(self, image: int) -> dict[str, Any]:
        """Return what the vendor wrote of an image, as it stands there, in types that JSON has."""
        ...

    def used_files(self) -> tuple[Path, ...]:
        """Return all files that belong to what was opened."""
        ...


class ViewSource(Source, Protocol):
    """A Source whose images lie somewhere in a common space: views of BigDataViewer.

    Attributes
    ----------
    views : tuple of View
        Every stack of every image, by series, then time point, then channel.
    """

    views: tuple[View, ...]


class PlaneSource(Source, Protocol):
    """A Source that reads a stack of small planes faster together than one by one."""

    def read_planes(
        self, image: int, level: int, planes: list[tuple[int, int, int]], out: NDArray[Any]
    ) -> bool:
        """Fill `out` (n, y, x) with the planes at (z, c, t) and return True, or return False."""
        ...


class Sink(Protocol):
    """A new file to write. The engine calls encode_tile in workers, then store_tile.

    The file (or folder) at `path` exists already, empty, and stays where it is: putting the
    result into place is the caller's business.
    """

    caps: Caps
    images: tuple[ImageSpec, ...]

    def __init__(self, path: Any, images: tuple[ImageSpec, ...], options: StoreOptions) -> None: ...

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        """Raise SpecError or UnsupportedError where __init__ would, before any file exists."""
        ...

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Any:
        """Turn a whole (clipped) tile (y, x, z, c, t) into what store_tile takes. Any thread."""
        ...

    def store_tile(self, at: Address, encoded: Any) -> None:
        """Put one encoded tile into the file. A tile may be stored again; the last one counts."""
        ...

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        """Return a stored tile, clipped, or None if it was never stored. Any thread."""
        ...

    def grow(self, image: int, t: int) -> None:
        """Make room for `t` time points. Only called where caps.grows."""
        ...

    def finish(self) -> None:
        """Complete the file; called once, after the last tile and before close()."""
        ...

    def close(self) -> None:
        """Release the file. Safe to call twice; without finish() the file stays unfinished."""
        ...


class ShardSink(Sink, Protocol):
    """A Sink whose tiles lie together in larger pieces that are stored faster as one."""

    def shard(self, level: int) -> Shape5 | None:
        """Return the size of these pieces in YXZCT, a multiple of the tile; None for none."""
        ...

    def store_tiles(self, tiles: Sequence[tuple[Address, Any]]) -> None:
        """Store several encoded tiles of one level, as store_tile() does each."""
        ...


class ResumingSink(Sink, Protocol):
    """A Sink that can go on with a file whose writer was interrupted, at any moment."""

    @classmethod
    def resume(
        cls,
        path: Any,
        images: tuple[ImageSpec, ...],
        options: StoreOptions,
        tiles: Mapping[Address, Any],
    ) -> ResumingSink:
        """Return a sink that goes on with what lies at `path`.

        `tiles` are those that were stored, with what `trace` said of each. Any other may be there
        in part: it must not be loaded.
        """
        ...

    def holds(self, at: Address) -> bool:
        """Return whether one of the tiles given to `resume` is there all the same."""
        ...

    def trace(self, at: Address, encoded: Any) -> Any:
        """Return what `resume` has to know of a tile that was just stored; JSON can hold it."""
        ...

    def suspend(self) -> None:
        """Release the file and leave everything in it for `resume`. Safe to call twice."""
        ...


class Journal(Protocol):
    """A record of the tiles that are stored, beside the unfinished file.

    Attributes
    ----------
    resume : bool
        Go on with what an interrupted run has left; and leave what is done for the next one.
    tiles : set of Address
        The tiles that are there from an earlier run.
    """

    resume: bool
    tiles: AbstractSet[Address]

    def describe(self, image: ImageSpec, options: StoreOptions) -> None:
        """Take down what is written, for a new file."""
        ...

    def load(self, image: ImageSpec, options: StoreOptions) -> dict[Address, Any]:
        """Return the tiles an earlier run has stored; SpecError where it wrote something else."""
        ...

    def begin(self, tiles: Mapping[Address, Any]) -> None:
        """Begin the record, with these tiles in it."""
        ...

    def tiles_stored(self, tiles: Sequence[tuple[Address, Any]]) -> None:
        """Enter tiles that are down; any thread."""
        ...

    def close(self) -> None:
        """Let go of the record and leave it where it is. Safe to call twice."""
        ...

    def remove(self) -> None:
        """Remove the record: nothing is left that it is of."""
        ...


class FolderSink(Sink, Protocol):
    """A Sink whose files are folders, which it can pack, share and put on a server."""

    @staticmethod
    def foreign(folder: Path, *, begun: bool = False) -> Path | None:
        """Return something in a folder that is none of this format's; itself for no image.

        With `begun` the image may have been interrupted at any moment.
        """
        ...

    @staticmethod
    def pack(folder: Path, target: Path) -> None:
        """Make one file of a finished folder."""
        ...

    @staticmethod
    def exists(location: Location, storage_options: dict[str, Any]) -> bool:
        """Return whether an image lies at a location."""
        ...

    @staticmethod
    def occupied(location: Location, storage_options: dict[str, Any]) -> str | None:
        """Return what is at a location on a server: None nothing, "" an image, else its name."""
        ...

    @staticmethod
    def remove(location: Location, storage_options: dict[str, Any]) -> None:
        """Remove an image from a server."""
        ...

    @classmethod
    def reopen(cls, folder: Path, *, shared: bool, smaller: bool = False) -> FolderSink:
        """Return a sink that goes on with an unfinished folder.

        With `shared` others work on it, too: only the full resolution is written (with `smaller`
        the other levels as well), in whole units, and finish() completes no more than what was
        stored.
        """
        ...

    def drop_smaller(self) -> None:
        """Remove what a finish() that was interrupted has left of the smaller levels."""
        ...

    def unit(self, level: int = 0) -> Shape5:
        """Return the size of what is one file: where two processes may not meet."""
        ...

    @staticmethod
    def check_group(root: Path, group: str) -> None:
        """Raise SpecError where register() would, before a pixel is written."""
        ...

    @staticmethod
    def expected(root: Path, group: str) -> tuple[str | None, ImageSpec | None]:
        """Return the version of `root`, and the image that labels in `group` belong to."""
        ...

    @staticmethod
    def register_all(
        root: Path, groups: Sequence[str], *, version: str, plate: Plate | None = None
    ) -> None:
        """List several images at once, as register() does each."""
        ...

    @staticmethod
    def stored(path: Path) -> list[NDArray[Any]]:
        """Return which tiles of an unfinished image are there: (planes, tiles) for each level."""
        ...

    @staticmethod
    def fill_up(path: Path) -> None:
        """Remove what is half there from an unfinished image, so that it reads without error."""
        ...

    @staticmethod
    def register(root: Path, group: str, *, version: str, plate: Plate | None) -> None:
        """List an image that was put into a group of `root` where readers look for it."""
        ...


class MipmapSink(Sink, Protocol):
    """A Sink whose smaller levels are each made from the full resolution.

    Attributes
    ----------
    factors : tuple of (int, int, int)
        Of each smaller level of the image: how many pixels of the full resolution one of its
        pixels is made from, along Y, X, Z.
    """

    factors: tuple[tuple[int, int, int], ...]


class ViewSink(MipmapSink, Protocol):
    """A Sink for one view, a stack. Nobody sees it before finish()."""

    def abort(self) -> None:
        """Remove what was begun; what was there of the view before stays. Safe to call twice."""
        ...


class ViewStore(Protocol):
    """A file of views that can be written, and written on: the pixels of a BDV dataset.

    Attributes
    ----------
    partitions : sequence of (str, sequence of int, sequence of int)
        The files it is spread over: name, time points, setups; none for a single file.
    """

    @property
    def partitions(self) -> Sequence[tuple[str, Sequence[int], Sequence[int]]]: ...

    @classmethod
    def create(cls, path: Path, *, times_per_file: int = 0, setups_per_file: int = 0) -> ViewStore:
        """Make a new file; 0 does not spread it along that."""
        ...

    @staticmethod
    def check(scheme: Scheme) -> None:
        """Raise what `add_setup` would raise, before there is a file."""
        ...

    @staticmethod
    def check_idle(path: Path) -> None:
        """Raise TargetBusyError where a writer is at work on a file."""
        ...

    @staticmethod
    def in_the_way(path: Path) -> list[Path]:
        """Return files that have the names of its partitions and are none: `remove` leaves them."""
        ...

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a file of views and all it is spread over; TargetBusyError if it is in use."""
        ...

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> ViewStore:
        """Open a file of any writer."""
        ...

    def setups(self) -> tuple[int, ...]:
        """Return the setups of the file."""
        ...

    def views(self) -> tuple[ViewId, ...]:
        """Return the views of which there are pixels."""
        ...

    def scheme(self, setup: int) -> Scheme:
        """Return how a setup is stored."""
        ...

    def shape(self, view: ViewId) -> Shape3:
        """Return the size of the first resolution of a view."""
        ...

    def shapes(self, view: ViewId) -> tuple[Shape3, ...]:
        """Return the sizes of all resolutions of a view."""
        ...

    def add_setup(self, setup: int, scheme: Scheme) -> None:
        """Say how the views of a setup will be stored. Again the same: nothing happens."""
        ...

    def begin_view(self, view: ViewId, size: Shape3) -> ViewSink:
        """Return what stores a new view, or a new version of one, of that full resolution."""
        ...

    def begin_levels(
        self,
        view: ViewId,
        size: Shape3,
        mipmaps: Sequence[Mipmap],
        compression: str | None,
        level: int | None,
    ) -> ViewSink:
        """Return what adds smaller resolutions to a view; its level 0 is what is stored."""
        ...

    def set_mipmaps(self, setup: int, mipmaps: Sequence[Mipmap]) -> None:
        """Say which resolutions the views of a setup have."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Let all views that are finished in a block be there in one moment, or none of them."""
        ...

    def remove_view(self, view: ViewId) -> None:
        """Remove a view."""
        ...

    def flush(self) -> None:
        """Put all that is finished on disk."""
        ...

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        ...


class GrowingSink(Sink, Protocol):
    """A Sink for one image whose planes come one after the other while others may read it.

    It lies where it will stay. At every moment it is a valid image of the planes that `extend`
    has spoken of, whatever happens to the process. ``images[0]`` has room for all that may come.
    """

    @property
    def planes(self) -> int:
        """How many planes `extend` has spoken of; after `GrowingStore.reopen` maybe more."""
        ...

    def store_tiles(self, tiles: Sequence[tuple[Address, Any]]) -> None:
        """Store several encoded tiles of one level, in one piece where that is faster.

        Any thread, planes in any order; a tile is stored once.
        """
        ...

    def extend(self, planes: int) -> None:
        """Let readers see the first `planes` planes of the order, and no more.

        What was not stored of them reads as 0. Called by one thread at a time, `planes` rising.
        """
        ...

    def settle(self, planes: int) -> None:
        """Cut ``images`` to what `planes` planes need: no more will come."""
        ...


class GrowingStore(Protocol):
    """All that one acquisition leaves, in one format: an image for each position.

    Parameters
    ----------
    path : Path
        Where it goes: an existing empty file, or an existing empty folder, as `is_folder` says.
    plan : AcquisitionPlan
        What is going to be recorded.
    options : StoreOptions
        How.
    """

    def __init__(self, path: Path, plan: AcquisitionPlan, options: StoreOptions) -> None: ...

    @classmethod
    def check(cls, plan: AcquisitionPlan, options: StoreOptions) -> None:
        """Raise SpecError or UnsupportedError where __init__ or open would."""
        ...

    @staticmethod
    def is_folder(plan: AcquisitionPlan, options: StoreOptions) -> bool:
        """Return whether `path` is a folder."""
        ...

    @classmethod
    def foreign(cls, path: Path, plan: AcquisitionPlan, options: StoreOptions) -> Path | None:
        """Return something in a folder that no acquisition of this format has written, or None."""
        ...

    @staticmethod
    def image_path(path: Path, plan: AcquisitionPlan, options: StoreOptions, position: int) -> Path:
        """Return what to open to read the image of a position."""
        ...

    @staticmethod
    def anchor(path: Path, plan: AcquisitionPlan, options: StoreOptions, position: int) -> Path:
        """Return a file that is there as long as the image of an open position is."""
        ...

    @classmethod
    def reopen(
        cls, path: Path, plan: AcquisitionPlan, options: StoreOptions, planes: Mapping[int, int]
    ) -> GrowingStore:
        """Return the store that a process which is no more has left.

        `planes` are the planes that are known to be there, by position; their images are open.
        """
        ...

    def open(self, position: int) -> GrowingSink:
        """Make the image of a position, and list it where readers look.

        Of a position that is open already, also by `reopen`, return the image there is.
        """
        ...

    def finish(
        self, records: Sequence[ImageRecord], notes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write all metadata of the images that were opened; `notes` by their namespace.

        With no records only the notes have changed; that may be said after `close`, too.
        """
        ...

    def get_metadata(self) -> Any:
        """Return the metadata in the terms of the format; while it runs, of what is there."""
        ...

    def update_metadata(self, metadata: Any) -> None:
        """Replace metadata that `get_metadata` has returned."""
        ...

    def close(self) -> None:
        """Release all files. Safe to call twice; without finish() images stay as `extend` left."""
        ...


class PlaneStore(GrowingStore, Protocol):
    """A GrowingStore of more than one file, whose planes are read without a Source."""

    @staticmethod
    def beside(path: Path) -> Sequence[Path]:
        """Return the files that are made, and replaced, with the one at `path`."""
        ...

    @classmethod
    def read_plane(
        cls, path: Path, plan: AcquisitionPlan, position: int, plane: int
    ) -> NDArray[Any]:
        """Return a plane (y, x) of a position as it is on disk now, 0 where nothing is."""
        ...
