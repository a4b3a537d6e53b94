"""ZarrSink: OME-Zarr 0.4 and 0.5, chunk by chunk, sharded or not."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bioio_tk.backends._zarr_codecs import codec_documents
from bioio_tk.backends._zarr_foreign import remove_parts
from bioio_tk.backends._zarr_meta import TYPES, read_meta, write_meta_v2, write_meta_v3
from bioio_tk.backends._zarr_shards import ChunkWriter
from bioio_tk.backends._zarr_tree import DOCUMENTS, OME_XML, Tree, group_documents, join, new_store
from bioio_tk.backends.base import Caps, StoreOptions
from bioio_tk.backends.zarr_read import ZarrSource
from bioio_tk.core.region import AXES, Shape5
from bioio_tk.core.spec import Address, ImageSpec, Level
from bioio_tk.errors import DamagedFileError, SpecError, UnsupportedError
from bioio_tk.meta import ngff

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.location import Location
    from bioio_tk.core.plate import Plate
    from bioio_tk.core.tiling import TileKey

STORED_AXES = "tczyx"
_ORDER = (4, 3, 2, 0, 1)  # Y, X, Z, C, T as T, C, Z, Y, X
_MANY_FILES = 4096
"""Chunks of a level beyond which several share a file, unless the user says otherwise."""
_LARGEST_SHARD = 512 << 20
_WIDEST_SHARD = 4096
_SAMPLED_TILES = 64
"""Tiles of which pixels are looked at to find out what is worth showing."""
_SAMPLE = (64, 64, 4, 1, 4)
"""Pixels along Y, X, Z and T that are looked at in each."""
Window: TypeAlias = tuple[float, float, float, float]
_OPTIONS = ("ngff_version", "chunks", "shards", "windows", "label", "ome")


class ZarrSink:
    """A new OME-Zarr image: one Zarr array for each level, the metadata of NGFF around them."""

    caps: Caps = Caps(parallel_store=True, tile_multiple=1)

    def __init__(
        self,
        location: Location,
        images: tuple[ImageSpec, ...],
        options: StoreOptions,
        *,
        documents: list[bytes] | None = None,
        shared: bool = False,
    ) -> None:
        self.images = images
        self._options = options
        self._version = version_of(options)
        self._shared = shared
        self._store = new_store(location, options.storage_options)
        self._counts = images[0].levels[0].grid.counts
        rows, columns, planes, _, times = self._counts
        wanted = max(1, _SAMPLED_TILES // images[0].shape[3])
        self._every = -(-rows * columns * planes * times // wanted)
        self._samples: dict[TileKey, NDArray[Any]] = {}
        self._resumed = False
        self._blank: set[Address] = set()  # known to be all 0 when resumed
        self._described = False  # all metadata but the windows are where they belong
        self._scratch: Path | None = None
        self._pid = os.getpid()
        if not isinstance(location, Path):
            self.caps = replace(self.caps, waits=self._store.waits)
            self._scratch = Path(tempfile.mkdtemp(prefix="bioio_tk-"))
        try:
            self._documents = documents or [
                _array_document(images[0], level, options, self._version)
                for level in range(len(images[0].levels))
            ]
            self._writers = [self._writer(level) for level in range(len(images[0].levels))]
            # on a server the metadata come last: without them nobody takes it for an image
            if documents is None and not self._remote:
                self._write_metadata(None)
                self._described = True
        except BaseException:
            self.close()
            raise

    @property
    def _remote(self) -> bool:
        return self._scratch is not None

    @classmethod
    def reopen(cls, folder: Path, *, shared: bool, smaller: bool = False) -> ZarrSink:
        """Return a sink that goes on with a store which was laid out before."""
        if not shared:
            remove_parts(folder)
        source = ZarrSource(folder)
        try:
            spec, xml = source.images[0], source.ome_xml()
            known = source.stored(0)
        finally:
            source.close()
        if shared and not smaller:
            spec = replace(spec, levels=spec.levels[:1])
        extra = {"ngff_version": known.version}
        options = StoreOptions(metadata=xml, downsample=known.method or "mean", extra=extra)
        return cls(folder, (spec,), options, documents=list(known.documents), shared=shared)

    @classmethod
    def resume(
        cls,
        path: Path,
        images: tuple[ImageSpec, ...],
        options: StoreOptions,
        tiles: Mapping[Address, Any],
    ) -> ZarrSink:
        """Return a sink that goes on with an unfinished folder.

        What is there of other tiles, and labels, are removed. Only for folders of this machine.

        Raises
        ------
        DamagedFileError
            The arrays in the folder are not those of this image and these options.
        """
        version = version_of(options)
        documents = [
            _array_document(images[0], level, options, version)
            for level in range(len(images[0].levels))
        ]
        name = document_name(version, "array")
        for level, document in enumerate(documents):
            there = path / str(level) / name
            if not there.exists() or there.read_bytes() != document:
                raise DamagedFileError(
                    f"{str(there)!r} is not that of the image that is to be written: another one "
                    "was begun there, or it is damaged; begin anew with overwrite=True"
                )
        labels = path / "labels"
        if labels.exists():  # those are copied last, and again
            shutil.rmtree(labels)
        remove_parts(path)
        sink = cls(path, images, options, documents=documents)
        sink._resumed = True
        try:
            sink._adopt(tiles)
        except BaseException:
            sink.suspend()
            raise
        return sink

    def _adopt(self, tiles: Mapping[Address, Any]) -> None:
        chunks: list[dict[Any, Any]] = [{} for _ in self._writers]
        for at, what in tiles.items():
            chunks[at.level][_index(at)] = what
            if what is None:
                self._blank.add(at)
        for writer, known in zip(self._writers, chunks, strict=True):
            writer.adopt(known)

    def holds(self, at: Address) -> bool:
        return at in self._blank or self._writers[at.level].has(_index(at))

    def trace(self, at: Address, encoded: Any) -> Any:
        """Return what `resume` has to know of a tile: None where it is all 0, and not stored."""
        if encoded is None:
            return None
        writer = self._writers[at.level]
        return 1 if writer.meta.index is None else writer.trace(_index(at))

    def suspend(self) -> None:
        self.close(keep=True)

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        version = version_of(options)
        for name in options.extra:
            if name not in _OPTIONS:
                raise SpecError(f"OME-Zarr has no option {name!r}; there are {', '.join(_OPTIONS)}")
        if options.predictor:
            raise SpecError("OME-Zarr has no predictor; compression='blosc-zstd' shuffles instead")
        if len(images) != 1:
            raise SpecError("one sink stores one image")
        spec = images[0]
        if options.extra.get("label") is not None:
            _check_label(spec, options)
        if min(spec.shape) < 1:
            raise SpecError(f"the shape {spec.shape} (Y, X, Z, C, T) has an axis without pixels")
        if spec.dtype not in TYPES.values():
            known = ", ".join(TYPES)
            raise UnsupportedError(f"Zarr has no pixels of type {spec.dtype}; there are {known}")
        _check_order(options.extra, spec.shape)
        codecs_of(spec, options, version)
        for level in range(len(spec.levels) if version != "0.4" else 0):
            shard_of(spec, level, options)

    @staticmethod
    def foreign(folder: Path, *, begun: bool = False) -> Path | None:
        from bioio_tk.backends._zarr_foreign import foreign

        return foreign(folder, begun=begun)

    @staticmethod
    def check_group(root: Path, group: str) -> None:
        from bioio_tk.backends._zarr_collection import check

        check(root, group)

    @staticmethod
    def expected(root: Path, group: str) -> tuple[str | None, ImageSpec | None]:
        from bioio_tk.backends._zarr_collection import expected

        return expected(root, group)

    @staticmethod
    def pack(folder: Path, target: Path) -> None:
        from bioio_tk.backends._store_zip import pack

        pack(folder, target)

    @staticmethod
    def exists(location: Location, storage_options: dict[str, Any]) -> bool:
        store = new_store(location, storage_options)
        try:
            return Tree(store).node("") is not None
        finally:
            store.close()

    @staticmethod
    def occupied(location: Location, storage_options: dict[str, Any]) -> str | None:
        store = new_store(location, storage_options)
        try:
            names = store.names()
            tree = Tree(store)
            for name in names:
                known = name in DOCUMENTS or name in ("OME", "labels") or name.isdecimal()
                if not known and tree.node(name) is None:
                    return name
            return "" if names else None
        finally:
            store.close()

    @staticmethod
    def remove(location: Location, storage_options: dict[str, Any]) -> None:
        store = new_store(location, storage_options)
        try:
            store.clear()
        finally:
            store.close()

    @staticmethod
    def register(root: Path, group: str, *, version: str, plate: Plate | None) -> None:
        from bioio_tk.backends._zarr_collection import register

        register(root, group, version=version, plate=plate)

    @staticmethod
    def register_all(
        root: Path, groups: Sequence[str], *, version: str, plate: Plate | None = None
    ) -> None:
        from bioio_tk.backends._zarr_collection import register_all

        register_all(root, groups, version=version, plate=plate)

    @staticmethod
    def stored(path: Path) -> list[NDArray[np.bool_]]:
        """Return for each level which chunks a folder has that was left unfinished.

        Each is a table of planes x chunks; planes follow each other along Z, then C, then T,
        chunks along X, then Y.
        """
        from bioio_tk.backends._zarr_stored import stored_chunks

        return stored_chunks(path)

    @staticmethod
    def fill_up(path: Path) -> None:
        """Do what `finish` would have done for such a folder; what is not whole is removed."""
        from bioio_tk.backends._zarr_stored import drop_unfinished

        drop_unfinished(path)
        sink = ZarrSink.reopen(path, shared=False)
        try:
            sink.finish()
        finally:
            sink.close()

    @property
    def downsample(self) -> str:
        """How the smaller levels are made."""
        return self._options.downsample

    def drop_smaller(self) -> None:
        """Remove the pixels of the smaller levels: whoever made them may have been interrupted."""
        for level in range(1, len(self._writers)):
            for name in self._store.names(str(level)):
                path = Path(self._store.where(join(str(level), name)))
                if path.is_dir():
                    shutil.rmtree(path)
                elif name != "zarr.json" and not name.startswith(".z"):
                    path.unlink()

    def unit(self, level: int = 0) -> Shape5:
        meta = self._writers[level].meta
        sizes = meta.shards or meta.chunks
        t, c, z, y, x = sizes
        return (y, x, z, c, t)

    @classmethod
    def variant(cls, extra: Mapping[str, Any]) -> type[ZarrSink]:
        """Return the class that writes with such options: a bare array for ``ome=False``."""
        if extra.get("ome", True):
            return cls
        from bioio_tk.backends._zarr_bare import BareZarrSink

        return BareZarrSink

    def _path_of(self, level: int) -> str:
        """Return where the array of a level lies in the store."""
        return str(level)

    def _writer(self, level: int) -> ChunkWriter:
        document = self._documents[level]
        where = self._store.where(self._path_of(level))
        v3 = self._version != "0.4"
        meta = read_meta(document if v3 else None, None if v3 else document, where)
        return ChunkWriter(
            self._store,
            self._path_of(level),
            meta,
            scratch=self._scratch,
            atomic=self._shared,
            logged=self._options.journaled,
        )

    # ------------------------------------------------------------------ pixels

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Any:
        if at.level == 0 and not self._shared:
            self._sample(at.key, tile)
        return self._writers[at.level].encode(tile.transpose(_ORDER))

    def store_tile(self, at: Address, encoded: Any) -> None:
        self._writers[at.level].store(_index(at), encoded)

    def shard(self, level: int) -> Shape5 | None:
        meta = self._writers[level].meta
        return self.unit(level) if meta.shards else None

    def store_tiles(self, tiles: Sequence[tuple[Address, Any]]) -> None:
        level = tiles[0][0].level
        self._writers[level].store_many([(_index(at), encoded) for at, encoded in tiles])

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        chunk = self._writers[at.level].load(_index(at))
        if chunk is None:
            return None
        y, x, z, c, t = self.images[0].levels[at.level].grid.tile_shape(at.key)
        return chunk[:t, :c, :z, :y, :x].transpose(3, 4, 2, 1, 0)

    def grow(self, image: int, t: int) -> None:
        raise UnsupportedError(f"the number of time points is fixed at the start, not {t} later")

    def finish(self) -> None:
        for writer in self._writers:
            writer.finish()
        if not self._shared:
            windows = self._options.extra.get("windows")
            self._write_metadata(self._measured() if windows is None else windows)

    def close(self, *, keep: bool = False) -> None:
        for writer in getattr(self, "_writers", ()):
            writer.close(keep=keep)
        self._store.close()
        if self._scratch is not None and self._pid == os.getpid():  # else it is the parent's
            shutil.rmtree(self._scratch, ignore_errors=True)

    # ------------------------------------------------------------------ metadata

    def _write_metadata(self, windows: Any) -> None:
        spec = self.images[0]
        paths = [str(level) for level in range(len(spec.levels))]
        label = self._options.extra.get("label")
        if not self._described:
            self._describe(paths, with_xml=label is None)
        if label is None:
            attributes = ngff.image_attributes(
                spec,
                version=self._version,
                paths=paths,
                method=self._options.downsample if len(paths) > 1 else "",
                windows=windows,
            )
        else:
            attributes = ngff.label_attributes(
                spec,
                version=self._version,
                paths=paths,
                method=self._options.downsample,
                colors=label.get("colors"),
                properties=label.get("properties"),
            )
        self._put_group("", attributes)  # last: it makes the folder an image

    def _describe(self, paths: list[str], *, with_xml: bool) -> None:
        """Write what is known from the start, and will not change."""
        for path, document in zip(paths, self._documents, strict=True):
            self._store.put(join(path, self._name("array")), document)
        if with_xml:
            from bioio_tk.meta import ome

            xml = ome.document(self.images, metadata=self._options.metadata)
            self._store.put(OME_XML, xml.encode())
            self._put_group("OME", {})

    def _put_group(self, path: str, attributes: dict[str, Any]) -> None:
        for name, document in group_documents(attributes, self._version).items():
            self._store.put(join(path, name), document)

    def _name(self, kind: str) -> str:
        return document_name(self._version, kind)

    def _sample(self, key: TileKey, tile: NDArray[Any]) -> None:
        """Remember some pixels of some tiles of the full resolution, for the windows."""
        ky, kx, kz, _, kt = key
        rows, columns, planes = self._counts[:3]
        if (((kt * planes + kz) * rows + ky) * columns + kx) % self._every == 0:
            y, x, z, _, t = (-(-n // most) for n, most in zip(tile.shape, _SAMPLE, strict=True))
            self._samples[key] = tile[::y, ::x, ::z, :, ::t].copy()

    def _sample_stored(self) -> None:
        """Sample the same pixels where others have written them."""
        rows, columns, planes, channels, times = self._counts
        grid, any_stored = self.images[0].levels[0].grid, False
        for n in range(0, rows * columns * planes * times, self._every):
            rest, kx = divmod(n, columns)
            rest, ky = divmod(rest, rows)
            kt, kz = divmod(rest, planes)
            for kc in range(channels):
                key = (ky, kx, kz, kc, kt)
                if key in self._samples:
                    continue
                tile = self.load_tile(Address(0, 0, key))
                if tile is None:
                    tile = np.zeros(grid.tile_shape(key), self.images[0].dtype)
                else:
                    any_stored = True
                self._sample(key, tile)
        if not any_stored and not self._resumed:
            self._samples.clear()

    def _measured(self) -> list[Window | None]:
        """Return range and shown range of each channel, as the sampled pixels have them."""
        spec = self.images[0]
        grid = spec.levels[0].grid
        if self._resumed or not self._samples:
            self._sample_stored()
        values: list[list[NDArray[Any]]] = [[] for _ in range(spec.shape[3])]
        for key, tile in self._samples.items():
            first = grid.region(key).start[3]
            for c in range(tile.shape[3]):
                values[first + c].append(tile[:, :, :, c].ravel())
        return [window_of(np.concatenate(v) if v else None, spec.dtype) for v in values]


def _check_order(extra: dict[str, Any], shape: Shape5) -> None:
    """Raise where sizes were given in the order of the array in the store, T C Z Y X.

    ``(1, 1, 1, 64, 64)`` would be pieces of one pixel: millions of files, and hours to make them.
    """
    for name in ("chunks", "shards"):
        given = extra.get(name)
        sizes = tuple(given) if isinstance(given, list | tuple) else ()
        last = len(sizes) - 1
        if last > 1 and sizes[0] == 1 < shape[0] and sizes[last] > shape[last]:
            raise SpecError(
                f"{name}={sizes!r} is 1 along Y and {sizes[last]} along {AXES[last]}, where the "
                f"image has {shape[last]}: the order is Y, X, Z, C, T; for the order T, C, Z, Y, X "
                f"of the store write {(*sizes[-2:], *sizes[-3::-1])}"
            )


def _check_label(spec: ImageSpec, options: StoreOptions) -> None:
    for name in options.extra["label"]:
        if name not in ("colors", "properties"):
            raise SpecError(f"label={{{name!r}: …}}: there are 'colors' and 'properties'")
    if len(spec.levels) > 1 and options.downsample in ("mean", "median"):
        raise SpecError(
            f"downsample={options.downsample!r} would make labels that nothing has: choose "
            "'mode' or 'nearest'"
        )


def shard_of(spec: ImageSpec, level: int, options: StoreOptions) -> Shape5 | None:
    """Return the size (YXZCT) of the shards of a level, None where chunks are files.

    Raises
    ------
    SpecError
        They are no multiple of the chunks.
    """
    given = options.extra.get("shards")
    found = spec.levels[level]
    if given is None:
        version = options.extra.get("ngff_version")
        return None if version == "0.4" else _good_shard(found, spec.dtype.itemsize)
    if given is False:
        return None
    sizes = (given, given) if isinstance(given, int) else tuple(given)
    full = spec.levels[0].tile  # chunks of small levels may be smaller
    shard: Shape5 = (*sizes, *full[len(sizes) :])
    for axis, n, chunk in zip(AXES, shard, full, strict=True):
        if n < 1 or (n % chunk and n < spec.shape[AXES.index(axis)]):
            raise SpecError(
                f"shards={given!r}: along {axis} a shard of {n} is no multiple of the chunk's "
                f"{chunk} pixels"
            )
    y, x, z, c, t = (
        min(-(-n // chunk), -(-size // chunk)) * chunk
        for n, chunk, size in zip(shard, found.tile, found.shape, strict=True)
    )
    return (y, x, z, c, t)


def _good_shard(level: Level, itemsize: int) -> Shape5 | None:
    """Return shards so that the level makes thousands of files, not millions."""
    counts, many = list(level.grid.counts), [1, 1, 1, 1, 1]
    chunk_bytes = math.prod(level.tile) * itemsize

    def files() -> int:
        return math.prod(-(-n // k) for n, k in zip(counts, many, strict=True))

    def fits(axis: int) -> bool:
        wide = axis < 2 and many[axis] * level.tile[axis] >= _WIDEST_SHARD
        return many[axis] < counts[axis] and not wide

    while files() > _MANY_FILES and 2 * math.prod(many) * chunk_bytes <= _LARGEST_SHARD:
        axes = [axis for axis in (0, 1) if fits(axis)] or [axis for axis in (2, 4, 3) if fits(axis)]
        if not axes:
            break
        axis = min(axes[:2], key=lambda a: many[a]) if axes[0] < 2 else axes[0]
        many[axis] = min(2 * many[axis], counts[axis])
    if many == [1, 1, 1, 1, 1]:
        return None
    y, x, z, c, t = (n * k for n, k in zip(level.tile, many, strict=True))
    return (y, x, z, c, t)


def version_of(options: StoreOptions) -> str:
    """Return the version of NGFF that is asked for; SpecError where none is like that."""
    version = str(options.extra.get("ngff_version") or "0.5")
    if version not in ngff.WRITABLE_VERSIONS:
        raise SpecError(
            f"ngff_version={version!r}: choose one of {', '.join(ngff.WRITABLE_VERSIONS)}"
        )
    if version == "0.4" and options.extra.get("shards"):
        raise SpecError("shards need ngff_version='0.5': Zarr v2, which 0.4 rests on, has none")
    return version


def document_name(version: str, kind: str) -> str:
    """Return what the document of an ``"array"`` or ``"group"`` is called."""
    return "zarr.json" if version != "0.4" else f".z{kind}"


def _array_document(spec: ImageSpec, level: int, options: StoreOptions, version: str) -> bytes:
    found = spec.levels[level]
    shape, chunks = _stored(found.shape), _stored(found.tile)
    codec = codecs_of(spec, options, version)
    if version == "0.4":
        return write_meta_v2(shape, chunks, spec.dtype, codec)
    shard = shard_of(spec, level, options)
    return write_meta_v3(
        shape,
        chunks,
        None if shard is None else _stored(shard),
        spec.dtype,
        codec,
        tuple(STORED_AXES),
    )


def codecs_of(spec: ImageSpec, options: StoreOptions, version: str) -> Any:
    """Return how chunks are stored, as their document has it."""
    zarr_format = 2 if version == "0.4" else 3
    return codec_documents(options.compression, options.level, spec.dtype, zarr_format)


def _stored(sizes: Shape5) -> tuple[int, ...]:
    return tuple(sizes[five] for five in _ORDER)


def _index(at: Address) -> tuple[int, ...]:
    ky, kx, kz, kc, kt = at.key
    return (kt, kc, kz, ky, kx)


def window_of(values: NDArray[Any] | None, dtype: np.dtype[Any]) -> Window | None:
    """Return (min, max, start, end): what a channel may hold, and what is worth showing of it."""
    if values is None or dtype.kind not in "iuf":
        return None
    numbers = values[np.isfinite(values)] if dtype.kind == "f" else values
    if not numbers.size:
        return None
    start, end = (float(v) for v in np.percentile(numbers, [0.1, 99.9]))
    if dtype.kind == "f":
        low, high = float(numbers.min()), float(numbers.max())
    else:
        low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if low == high:  # floats that are all the same: viewers divide by the difference
        high = low + max(1.0, abs(low))
    if start == end:
        start, end = low, high
    return (low, high, start, end)
