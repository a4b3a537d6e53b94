"""ZarrStore, GrowingZarr: OME-Zarr 0.4 and 0.5 of a running acquisition, right at every moment.

The document of an array is written with room for a larger number where the array grows, and that
number is replaced in place by one small write. Chunks and shards are the business of `LiveWriter`.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import uuid
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._open_files import OpenFile, OpenFiles
from bioio_tk.backends._store import FolderStore
from bioio_tk.backends._zarr_changes import Changes
from bioio_tk.backends._zarr_foreign import foreign, remove_parts
from bioio_tk.backends._zarr_live import LiveWriter
from bioio_tk.backends._zarr_meta import TYPES, read_meta, write_meta_v2, write_meta_v3
from bioio_tk.backends._zarr_positions import Lists, places
from bioio_tk.backends._zarr_tree import OME_XML, Tree, group_documents, join, put_group
from bioio_tk.backends.base import Caps
from bioio_tk.backends.zarr_write import (
    Window,
    codecs_of,
    document_name,
    shard_of,
    version_of,
    window_of,
)
from bioio_tk.core.acquisition import ImageRecord
from bioio_tk.core.frames import UNBOUNDED
from bioio_tk.core.region import AXES
from bioio_tk.core.spec import Address
from bioio_tk.errors import BackendError, SpecError, UnsupportedError
from bioio_tk.meta import ngff
from bioio_tk.meta.ngff_write import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends._zarr_meta import ArrayMeta
    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.acquisition import AcquisitionPlan
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.core.tiling import TileKey

_OPEN = 128
"""Files that all images of a store may have open."""
_ROOM = 1 << 62
"""A number of as many digits as a size may have, which nothing else in a document is."""
_ACROSS = 64
"""Pixels along Y and X of a plane that are looked at to find out what is worth showing."""
_REMEMBERED = 1 << 13
"""Of these, how many are kept of a channel."""
_MOST_CHANNELS = 256
_FRAMES = b'"frame_metadata": []'
_SUFFIX = re.compile(r"(\.ome)?\.zarr$", re.IGNORECASE)


class _Axes:
    """Which axis of the stored arrays is which of Y, X, Z, C, T."""

    def __init__(self, plan: AcquisitionPlan) -> None:
        self.letters = "".join(axis.letter for axis in plan.axes)
        self._order = tuple(AXES.index(letter) for letter in self.letters)
        self.leading = self._order[:-2]
        absent = tuple(n for n in range(5) if n not in self._order)
        self._pack = (*absent, *self._order)
        self._unpack = tuple(self._pack.index(n) for n in range(5))
        self._first = (0,) * len(absent)
        self._new = (None,) * len(absent)

    def sizes(self, five: Sequence[int]) -> tuple[int, ...]:
        """Return what is said of Y, X, Z, C, T for the stored axes."""
        return tuple(five[n] for n in self._order)

    def pack(self, tile: NDArray[Any]) -> NDArray[Any]:
        """Return a tile (y, x, z, c, t) as it is stored."""
        packed: NDArray[Any] = tile.transpose(self._pack)[self._first]
        return packed

    def unpack(self, chunk: NDArray[Any], shape: Shape5) -> NDArray[Any]:
        """Return what is stored as a tile of this shape."""
        inside = tuple(slice(n) for n in self.sizes(shape))
        return chunk[inside][self._new].transpose(self._unpack)


class _Arrays:
    """The documents of the arrays, which are the same in all images of an acquisition."""

    def __init__(self, plan: AcquisitionPlan, options: StoreOptions) -> None:
        self._plan, self._options = plan, options
        self._version = version_of(options)
        self.axes = _Axes(plan)
        self._made: dict[tuple[int, Shape5, bool], bytes] = {}
        self._metas: dict[int, ArrayMeta] = {}

    def document(self, level: int, shape: Shape5, *, live: bool) -> bytes:
        """Return what an array of this size says of itself."""
        found = self._made.get((level, shape, live))
        if found is None:
            found = self._made[level, shape, live] = self._make(level, shape, live=live)
        return found

    def meta(self, level: int) -> ArrayMeta:
        """Return what the array of a level is while it grows, with room for all that may come."""
        if level not in self._metas:
            document = self.document(level, self._plan.image.levels[level].shape, live=True)
            v3 = self._version != "0.4"
            self._metas[level] = read_meta(
                document if v3 else None, None if v3 else document, str(level)
            )
        return self._metas[level]

    def _make(self, level: int, shape: Shape5, *, live: bool) -> bytes:
        spec, options = self._plan.image, self._options
        sizes = self.axes.sizes
        chunks, codecs = sizes(spec.levels[level].tile), codecs_of(spec, options, self._version)
        if self._version == "0.4":
            return write_meta_v2(sizes(shape), chunks, spec.dtype, codecs)
        shard = _shard(spec, level, options)
        return write_meta_v3(
            sizes(shape),
            chunks,
            None if shard is None else sizes(shard),
            spec.dtype,
            codecs,
            [axis.name for axis in self._plan.axes],
            live=live,
        )


class _Seen:
    """Some pixels of each channel, spread over the planes; as many however many planes come."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._lock = threading.Lock()
        self._values: dict[int, list[NDArray[Any]]] = {}

    def look(self, first: int, key: TileKey, tile: NDArray[Any], step: tuple[int, int]) -> None:
        """Take pixels of a tile with the channels from `first` on, if it is one to look at."""
        z, t = key[2], key[4]
        if z & (z - 1) or t & (t - 1) or first >= _MOST_CHANNELS:  # planes 0, 1, 2, 4, 8, …
            return
        seen = tile[:: step[0], :: step[1], 0, :, 0].copy()
        with self._lock:
            for c in range(seen.shape[2]):
                values = self._values.setdefault(first + c, [])
                values.append(seen[:, :, c].ravel())
                if sum(map(len, values)) > _REMEMBERED:
                    values[:] = [np.concatenate(values)[::2].copy()]

    def windows(self, channels: int) -> list[Window | None]:
        """Return range and shown range of each channel, as the pixels have them."""
        with self._lock:
            found = [self._values.get(c) for c in range(channels)]
            return [window_of(np.concatenate(v) if v else None, self._dtype) for v in found]


class _LiveDocument(OpenFile):
    """The document of an array that grows: where it lies, and where its size stands in it."""

    def __init__(self, path: str, offset: int) -> None:
        super().__init__(path)
        self.offset = offset


class GrowingZarr:
    """The image of one position, a group with an array for each level.

    Parameters
    ----------
    store : FolderStore
        The whole output.
    group : str
        Path of the image in it, "" for the root.
    plan : AcquisitionPlan
        What is going to be recorded.
    options : StoreOptions
        How.
    name : str
        Name of the image.
    files : OpenFiles
        Opens what is written to.
    arrays : _Arrays
        What the arrays say of themselves.
    """

    caps: Caps = Caps(parallel_store=True, tile_multiple=1)

    def __init__(
        self,
        store: FolderStore,
        group: str,
        plan: AcquisitionPlan,
        options: StoreOptions,
        name: str,
        files: OpenFiles,
        arrays: _Arrays,
    ) -> None:
        self.group = group
        self.images: tuple[ImageSpec, ...] = (replace(plan.image, name=name),)
        self._store, self._plan, self._options, self._files = store, plan, options, files
        self._version = version_of(options)
        self._arrays, self._axes = arrays, arrays.axes
        self._slow = plan.order.axes[0].letter if plan.order.axes else ""
        self._planes = 0
        self._least = 1  # size along the slowest axis that readers have seen
        self._lock = threading.Lock()
        self._seen = _Seen(plan.image.dtype)
        y, x = plan.image.shape[:2]
        self._step = (-(-y // _ACROSS), -(-x // _ACROSS))
        self._writers = [self._writer(level) for level in range(len(plan.image.levels))]
        self._live: list[_LiveDocument] = []
        self._listed = 1  # levels that are listed: those that are made at the end come at the end
        self._finished = self._resumed = self._look_first = False
        self.changes = Changes()

    @property
    def planes(self) -> int:
        """How many planes are known to be there."""
        return self._planes

    def begin(self) -> None:
        """Write the documents of a new image: the group last."""
        for level in range(len(self._writers)):
            self._begin_array(level)
        self.describe()

    def describe(self) -> None:
        """Write the document of the group, as it is while the image grows."""
        put_group(self._store, self.group, self.attributes(None), self._version, compact=True)

    @property
    def empty(self) -> bool:
        """Whether no reader has seen a plane of it, and no other process has left pixels."""
        left = self._resumed and any(writer.inherited for writer in self._writers)
        return not self._planes and not left

    def resume(self) -> None:
        """Go on with an image that another process has left; what readers have seen stays."""
        document = self._store.get(self._document(0))
        if document is not None and self._slow:
            shape = json.loads(document)["shape"]
            self._least = int(shape[self._axes.letters.index(self._slow)])
        for writer in self._writers:
            writer.mend()
        self._resumed = self._look_first = True

    # ------------------------------------------------------------------ pixels

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Any:
        if at.level == 0:
            self._look(at.key, tile)
        return self._writers[at.level].encode(self._axes.pack(tile))

    def _look(self, key: TileKey, tile: NDArray[Any]) -> None:
        first = key[3] * self._plan.image.levels[0].tile[3]
        self._seen.look(first, key, tile, self._step)

    def store_tile(self, at: Address, encoded: Any) -> None:
        self.store_tiles([(at, encoded)])

    def store_tiles(self, tiles: Sequence[tuple[Address, Any]]) -> None:
        level = tiles[0][0].level
        sizes = self._axes.sizes
        self._writers[level].store_many([(sizes(at.key), encoded) for at, encoded in tiles])
        if level >= self._listed:
            self._list_all()

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        chunk = self._writers[at.level].load(self._axes.sizes(at.key))
        if chunk is None:
            return None
        return self._axes.unpack(chunk, self.images[0].levels[at.level].grid.tile_shape(at.key))

    def grow(self, image: int, t: int) -> None:
        raise UnsupportedError(f"this grows by planes, not to {t} time points")

    def extend(self, planes: int) -> None:
        self._planes = max(planes, self._planes)
        size = self._extent()
        if size == self._least:
            return
        for document in self._live:
            with self._files.use(document) as file:
                file.write(document.offset, _padded(size))
        self._least = size

    def settle(self, planes: int) -> None:
        self._planes = max(planes, self._planes)
        if self._slow:
            self.images = (self._cut(self._extent()),)

    def finish(self) -> None:
        """Complete the shards and write the documents of the arrays as they stay."""
        if self._finished:
            return
        self.settle(self._planes)
        for writer in self._writers:
            writer.finish()
        for level, found in enumerate(self.images[0].levels):
            document = self._arrays.document(level, found.shape, live=False)
            self._store.put(self._document(level), document)
        for live in self._live:
            self._files.close(live)
        self._live.clear()
        self._listed = len(self._writers)
        self._finished = True

    def close(self) -> None:
        """Release the files; all that is there stays as it is. Safe to call twice."""
        for writer in self._writers:
            writer.close()
        for live in self._live:
            self._files.close(live)

    # ------------------------------------------------------------------ documents

    def attributes(self, windows: Sequence[Window | None] | None) -> dict[str, Any]:
        """Return what NGFF says of the image, and what the user has made of that."""
        spec = self.images[0]
        if not self._finished:  # an axis without end has the size of what is there
            spec = self._cut(self._least if self._unbounded else self._full)
        spec = replace(spec, levels=spec.levels[: self._listed])
        paths = [str(level) for level in range(self._listed)]
        attributes = ngff.image_attributes(
            spec,
            version=self._version,
            paths=paths,
            method=self._options.downsample if len(paths) > 1 else "",
            windows=windows,
            stored=self._plan.axes,
        )
        return self.changes.made_in(attributes)

    def windows(self) -> list[Window | None]:
        """Return range and shown range of each channel."""
        if self._look_first:
            self._look_again()
        return self._seen.windows(self.images[0].shape[3])

    def _look_again(self) -> None:
        """Look at some planes that another process has stored."""
        self._look_first = False
        rows, columns, planes, channels, times = self.images[0].levels[0].grid.counts
        shown = min(channels, _MOST_CHANNELS)
        keys = product(range(rows), range(columns), _ends(planes), range(shown), _ends(times))
        for key in keys:
            tile = self.load_tile(Address(0, 0, key))
            if tile is not None:
                self._look(key, tile)

    def storage_index(self, plane: int) -> list[int]:
        """Return where a plane lies along the stored axes but Y and X."""
        at = (0, 0, *self._plan.order.key(plane))
        return [at[n] for n in self._axes.leading]

    @property
    def _full(self) -> int:
        return self._plan.image.shape[AXES.index(self._slow)] if self._slow else 1

    @property
    def _unbounded(self) -> bool:
        return self._full >= UNBOUNDED

    def _extent(self) -> int:
        """Return the size along the slowest axis: what came, and what readers have seen."""
        if not self._slow:
            return 1
        size = self._plan.order.extent(self._planes)["ZCT".index(self._slow)]
        return max(size, self._least)

    def _cut(self, size: int) -> ImageSpec:
        """Return the image with a size along the slowest axis."""
        spec = replace(self._plan.image, name=self.images[0].name)
        if not self._slow:
            return spec
        n = AXES.index(self._slow)
        levels = [
            replace(v, shape=(*v.shape[:n], size, *v.shape[n + 1 :]))  # type: ignore[arg-type]
            for v in spec.levels
        ]
        return replace(spec, levels=tuple(levels))

    def _path(self, level: int) -> str:
        return join(self.group, str(level))

    def _document(self, level: int) -> str:
        return join(self._path(level), document_name(self._version, "array"))

    def _writer(self, level: int) -> LiveWriter:
        return LiveWriter(self._store, self._path(level), self._arrays.meta(level), self._files)

    def _begin_array(self, level: int) -> None:
        shape = list(self._plan.image.levels[level].shape)
        if self._slow:
            shape[AXES.index(self._slow)] = _ROOM
        document = self._arrays.document(level, tuple(shape), live=True)  # type: ignore[arg-type]
        key = self._document(level)
        if self._slow:
            offset = document.index(b"%d" % _ROOM)
            document = document.replace(b"%d" % _ROOM, _padded(1), 1)
            self._live.append(_LiveDocument(self._store.where(key), offset))
        self._store.put(key, document)

    def _list_all(self) -> None:
        """List the smaller levels, now that they get pixels."""
        with self._lock:
            if self._listed < len(self._writers):
                self._listed = len(self._writers)
                self.describe()


class ZarrStore:
    """All that an acquisition leaves: one image, a series of them, or a plate.

    Parameters
    ----------
    path : Path
        An empty folder.
    plan : AcquisitionPlan
        What is going to be recorded.
    options : StoreOptions
        How. `extra` has ``ngff_version`` and ``shards`` (YXZCT, or None for files of one chunk).
    """

    def __init__(self, path: Path, plan: AcquisitionPlan, options: StoreOptions) -> None:
        self._plan, self._options = plan, options
        self._version = version_of(options)
        self._store = FolderStore(path)
        self._files = OpenFiles(_OPEN)
        self._arrays = _Arrays(plan, options)
        self._places = places(plan)
        self._lists = Lists(plan, self._places, self._version, self._store)
        self._sinks: dict[int, GrowingZarr] = {}
        self._changes: dict[str, Changes] = {}
        self._attributes: dict[str, dict[str, Any]] = {}  # of images that are finished
        self._notes: dict[str, Any] = {}
        self._lock = threading.Lock()  # who makes images, or changes what is said of them, has it
        self._finished = False
        self._name = _SUFFIX.sub("", path.name)

    @classmethod
    def check(cls, plan: AcquisitionPlan, options: StoreOptions) -> None:
        spec, version = plan.image, version_of(options)
        for name in options.extra:
            if name not in ("ngff_version", "shards"):
                raise SpecError(
                    f"OME-Zarr streams have no option {name!r}; there are ngff_version, shards"
                )
        if options.predictor:
            raise SpecError("OME-Zarr has no predictor; compression='blosc-zstd' shuffles instead")
        if spec.dtype not in TYPES.values():
            known = ", ".join(TYPES)
            raise UnsupportedError(f"Zarr has no pixels of type {spec.dtype}; there are {known}")
        codecs_of(spec, options, version)
        for level in range(len(spec.levels)):
            _shard(spec, level, options)
        _check_axes(plan)

    @staticmethod
    def is_folder(plan: AcquisitionPlan, options: StoreOptions) -> bool:
        return True

    @classmethod
    def foreign(cls, path: Path, plan: AcquisitionPlan, options: StoreOptions) -> Path | None:
        return foreign(path, begun=True)

    @classmethod
    def reopen(
        cls, path: Path, plan: AcquisitionPlan, options: StoreOptions, planes: Mapping[int, int]
    ) -> ZarrStore:
        remove_parts(path)
        store = cls(path, plan, options)
        tree = Tree(store._store)
        for position, place in enumerate(store._places):
            node = tree.node(place.path)
            if node is not None and (place.path or position in planes or node.attributes):
                sink = store._sinks[position] = store._sink(position)
                sink.resume()
                sink.settle(planes.get(position, 0))
                sink.changes.note(sink.attributes(None), node.attributes)
                store._lists.add(position)
        return store

    @staticmethod
    def image_path(path: Path, plan: AcquisitionPlan, options: StoreOptions, position: int) -> Path:
        """Return the group of a position."""
        return path / places(plan)[position].path

    @classmethod
    def anchor(
        cls, path: Path, plan: AcquisitionPlan, options: StoreOptions, position: int
    ) -> Path:
        """Return the document of the full resolution of a position: chunks alone are no image."""
        array = cls.image_path(path, plan, options, position) / "0"
        return array / document_name(version_of(options), "array")

    def open(self, position: int) -> GrowingZarr:
        with self._lock:
            if position not in self._sinks:
                sink = self._sink(position)
                sink.begin()
                self._lists.add(position)
                self._sinks[position] = sink
            return self._sinks[position]

    def finish(
        self, records: Sequence[ImageRecord], notes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write all metadata; images of which no plane is there are taken away.

        Raises
        ------
        BackendError
            There are only notes, of an acquisition that could not be finished.
        """
        if not records and not self._finished:
            if self._sinks:
                raise BackendError(
                    "the metadata of this acquisition are not complete, so nothing can be added to "
                    "them: complete them first, with 'bioio-tk recover'"
                )
            return
        self._notes = {name: plain(value) for name, value in notes.items()}
        if not records:  # all but the notes is said already
            self._put_notes()
            self._put_notes_xml(notes)
            return
        known = {record.position: record for record in records}
        self._remove_empty(known)
        found = []
        for position in self._lists.opened:
            record = known.get(position) or ImageRecord(position, 0)
            sink = self._sinks[position]
            sink.settle(record.planes)
            sink.finish()
            self._put_image(sink, record)
            found.append((sink, record))
        self._put_xml(found, notes)
        if self._places[0].path:
            self._put_notes()
        self._finished = True

    def close(self) -> None:
        for sink in self._sinks.values():
            sink.close()
        self._store.close()

    def get_metadata(self) -> dict[str, dict[str, Any]]:
        """Return the attributes of each image by its path, "." for one that is the root.

        Until they are finished these are the images of all positions, with what is said of them
        so far. What was said of the frames is not among them.
        """
        with self._lock:
            return json.loads(json.dumps(self._said_so_far()))  # type: ignore[no-any-return]

    def _said_so_far(self) -> dict[str, dict[str, Any]]:
        if self._finished:
            return {group or ".": said for group, said in self._attributes.items()}
        sinks = [self._sinks.get(n) or self._sink(n) for n in range(len(self._places))]
        return {sink.group or ".": sink.attributes(None) for sink in sinks}

    def update_metadata(self, metadata: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace the attributes of images, by their paths as `get_metadata` has them.

        While the acquisition runs, what the arrays are is not for others to say: all else is
        kept, also in what is written later.

        Raises
        ------
        KeyError
            There is no such image.
        """
        with self._lock:
            known = self._said_so_far()
            for path in metadata:
                if path not in known:
                    raise KeyError(f"Unknown path: {path}")
            for path, attributes in metadata.items():
                group = "" if path == "." else path
                if self._finished:
                    self._attributes[group] = plain(attributes)
                    self._put_said(group, self._attributes[group], *self._said(group))
                else:
                    self._changes_of(group).note(known[path], plain(attributes))
            if not self._finished:
                for sink in self._sinks.values():
                    if (sink.group or ".") in metadata:
                        sink.describe()

    # ------------------------------------------------------------------ the pieces

    def _sink(self, position: int) -> GrowingZarr:
        plan = self._plan
        name = plan.positions[position].name if plan.several else self._name
        name = name.encode("utf-8", "replace").decode()  # a file's name may be no text
        group = self._places[position].path
        sink = GrowingZarr(self._store, group, plan, self._options, name, self._files, self._arrays)
        sink.changes = self._changes_of(group)
        return sink

    def _changes_of(self, group: str) -> Changes:
        return self._changes.setdefault(group, Changes())

    def _remove_empty(self, known: Mapping[int, ImageRecord]) -> None:
        """Take the images away of which no plane became visible: they may hold half a frame."""
        for position in self._lists.opened:
            place, sink = self._places[position], self._sinks[position]
            if place.path and position not in known and sink.empty:
                sink.close()
                shutil.rmtree(self._store.where(place.path))
                self._lists.remove(position)
                del self._sinks[position]

    def _put_image(self, sink: GrowingZarr, record: ImageRecord) -> None:
        """Write all that is said of an image and its frames."""
        attributes = sink.attributes(sink.windows())
        if not sink.group:
            attributes = {**attributes, **self._notes}
        self._attributes[sink.group] = attributes
        skipped = [sink.storage_index(n) for some in record.skipped for n in some]
        lines = _frame_lines(sink, record)
        self._put_said(sink.group, attributes, {"skipped_frames": skipped}, lines)

    def _put_notes(self) -> None:
        """Write what is said of the whole acquisition into the root."""
        if "" not in self._attributes:
            said = {"version": _version()}
            attributes = {**self._lists.root(), **self._notes, "ome_writers": said}
            put_group(self._store, "", attributes, self._version)
            return
        self._attributes[""] = {**self._attributes[""], **self._notes}
        self._put_said("", self._attributes[""], *self._said(""))

    def _put_notes_xml(self, notes: Mapping[str, Mapping[str, Any]]) -> None:
        from bioio_tk.meta.ome_notes import renoted

        document = self._store.get(OME_XML)
        if document is not None:
            self._store.put(OME_XML, renoted(document, notes))

    def _said(self, group: str) -> tuple[dict[str, Any], Iterable[bytes]]:
        """Return what is said of the frames of an image: in general, and of each."""
        node = Tree(self._store).node(group)
        said = {} if node is None else dict(node.attributes.get("ome_writers", {}))
        return said, map(_line, said.pop("frame_metadata", ()))

    def _put_said(
        self,
        group: str,
        attributes: dict[str, Any],
        said: dict[str, Any],
        frames: Iterable[bytes],
    ) -> None:
        """Write the attributes of an image; what is said of 100,000 frames is a line for each."""
        lines = b",\n".join(frames)
        said = {**said, "version": _version(), "frame_metadata": []}
        documents = group_documents({**attributes, "ome_writers": said}, self._version)
        for name, document in documents.items():
            before, mark, after = document.rpartition(_FRAMES)
            filled = (before, _FRAMES[:-1], b"\n", lines, b"\n]", after)
            whole = b"".join(filled) if mark and lines else document
            self._store.put(join(group, name), whole)

    def _put_xml(
        self,
        found: Sequence[tuple[GrowingZarr, ImageRecord]],
        notes: Mapping[str, Mapping[str, Any]],
    ) -> None:
        from bioio_tk.meta.ome_stream import StreamImage, stream_xml

        images = [
            StreamImage(record, sink.images[0].name, shape=sink.images[0].shape)
            for sink, record in found
        ]
        document = stream_xml(self._plan, images, notes, uuid=str(uuid.uuid4()), tiff=False)
        self._store.put(OME_XML, document)


def _ends(count: int) -> tuple[int, ...]:
    """Return the first of some positions, and the last that is a power of two."""
    return (0, 1 << ((count - 1).bit_length() - 1)) if count > 1 else (0,)


def _padded(size: int) -> bytes:
    """Return a number with room for the largest there may be."""
    return str(size).encode().ljust(len(str(_ROOM)))


def _frame_lines(sink: GrowingZarr, record: ImageRecord) -> Iterator[bytes]:
    """Yield what was said of each frame, and where that is, as JSON."""
    if record.documents is None:
        for plane, said in record.metadata():
            yield _line({**said, "storage_index": sink.storage_index(plane)})
        return
    for plane, document in record.documents():
        yield _placed(document, sink.storage_index(plane))


def _placed(document: bytes, index: list[int]) -> bytes:
    """Return a JSON object with the place of its frame; most need not be understood for that."""
    if (
        document[:2] != b'{"'
        or document[-1:] != b"}"
        or b"storage_index" in document  # which it says already, and may spell with \u0073
        or b"\\u00" in document
        or b"NaN" in document  # which is no JSON, nor is infinity
        or b"Infinity" in document
    ):
        return _line({**json.loads(document), "storage_index": index})
    return b'%b,"storage_index":%b}' % (document[:-1], str(index).encode())


def _line(said: dict[str, Any]) -> bytes:
    try:
        return json.dumps(said, allow_nan=False).encode()
    except ValueError:
        return json.dumps(plain(said), allow_nan=False).encode()


def _version() -> str:
    from bioio_tk import __version__

    return __version__


def _shard(spec: ImageSpec, level: int, options: StoreOptions) -> Shape5 | None:
    """Return the size of the shards of a level; none are made that nobody asked for."""
    given = options.extra.get("shards")
    if given is None:
        return None
    return shard_of(spec, level, replace(options, extra={"shards": tuple(given)}))


def _check_axes(plan: AcquisitionPlan) -> None:
    letters = "".join(axis.letter for axis in plan.axes)
    sizes = dict(zip(AXES, plan.image.shape, strict=True))
    lost = [letter for letter, n in sizes.items() if n > 1 and letter not in letters]
    if not letters.endswith("YX") or len(set(letters)) < len(letters) or lost:
        raise SpecError(
            f"the axes {letters!r} cannot hold an image of {plan.image.shape} (Y, X, Z, C, T): "
            "each of its axes is needed once, Y and X last"
        )
