"""ZarrSource: OME-Zarr of every version and layout, and plain Zarr arrays."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from bioio_tk.backends._described import with_flat
from bioio_tk.backends._store import FolderStore
from bioio_tk.backends._zarr_array import ZarrArray
from bioio_tk.backends._zarr_meta import read_meta
from bioio_tk.backends._zarr_tree import OME_XML, Tree, join, open_store
from bioio_tk.backends.base import DEFAULTS, Caps, OpenOptions
from bioio_tk.core.plate import Plate, Well
from bioio_tk.core.region import Shape5
from bioio_tk.core.spec import Channel, ImageSpec, Level, PhysicalSize
from bioio_tk.errors import DamagedFileError, FormatError, UnknownFormatError, UnsupportedError
from bioio_tk.meta import ngff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from bioio_tk.backends._zarr_meta import ArrayMeta
    from bioio_tk.backends._zarr_tree import Node
    from bioio_tk.core.location import Location
    from bioio_tk.core.region import Slices5
    from bioio_tk.core.spec import Address, Quantity
    from bioio_tk.meta.ome import OmeImage

_TO_KEEP = 1 << 26
"""Bytes of a decoded chunk up to which it is worth keeping for the next request."""
_MOST_SERIES = 100_000
_MOST_FOLDERS = 64
"""Folders of images that are held open: a plate has thousands."""
_MOST_CHANNELS = 1 << 20


class ZarrSource:
    """A Zarr store, or a part of one: an image, several, a plate, labels, a bare array."""

    def __init__(self, location: Location, options: OpenOptions = DEFAULTS) -> None:
        self._store, self._root = open_store(location, options)
        self.caps = Caps(waits=self._store.waits, tile_multiple=1)
        self._tree = Tree(self._store)
        self._dims = options.dims
        self._notes: list[str] = []
        self._own_folders: dict[str, FolderStore] = {}
        self._lock = threading.RLock()
        self._xml: tuple[str | None] | None = None
        self._ome: list[OmeImage] | None = None
        self.plate: Plate | None = None
        try:
            self.images = self._open()
        except BaseException:
            self._store.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._notes))

    # ------------------------------------------------------------------ finding the images

    def _open(self) -> _Images:
        node = self._tree.node(self._root)
        if node is None:
            where = self._store.where(self._root)
            if self._store.lists and not self._store.names(self._root):
                raise FileNotFoundError(f"there is no Zarr store at {where!r}")
            raise DamagedFileError(
                f"{where!r} is no Zarr store: none of zarr.json, .zgroup, .zarray, .zattrs is in it"
            )
        if node.kind == "array":
            return self._images([("", partial(self._array_image, node.path))], "array")
        group = self._group(node)
        if group.plate is not None:
            return self._plate_images(node.path, group.plate)
        if group.well_images is not None:
            return self._by_path(join(node.path, f.path) for f in group.well_images)
        if group.multiscales:
            return self._images(
                [(m.name, partial(self._image, node.path, m, group)) for m in group.multiscales],
                "image",
            )
        if group.layout is not None or group.series is not None:
            return self._by_path(self._series_paths(node.path, group))
        if group.labels:
            return self._by_path(join(node.path, name) for name in group.labels)
        return self._loose(node)

    def _group(self, node: Node) -> ngff.Group:
        group = ngff.read_group(node.attributes, self._store.where(node.path))
        self._notes += group.notes
        return group

    def _images(self, found: Sequence[tuple[str, Callable[[], _Image]]], layout: str) -> _Images:
        self._layout = layout
        return _Images([name for name, _ in found], [load for _, load in found])

    def _by_path(self, paths: Any, layout: str = "series") -> _Images:
        found = [(path, partial(self._image_at, path)) for path in paths]
        if not found:
            raise DamagedFileError(f"{self._store.where(self._root)!r} holds no image")
        images = self._images(found, layout)
        if layout == "series":
            images.names = None  # each has a name of its own
        return images

    def _plate_images(self, path: str, plate: Plate) -> _Images:
        places = [join(path, well.path) for well in plate.wells]
        nodes = self._tree.nodes(places)
        wells: list[Well] = []
        for well, place in zip(plate.wells, places, strict=True):
            node = nodes[place]
            if node is None:
                self._notes.append(f"well {well.path} is listed but not there")
                continue
            wells.append(replace(well, fields=self._group(node).well_images or ()))
        self.plate = replace(plate, wells=tuple(wells))
        images = self._by_path((join(path, p) for p in self.plate.paths), "plate")
        images.names = list(self.plate.paths)
        return images

    def _series_paths(self, path: str, group: ngff.Group) -> list[str]:
        ome = self._tree.node(join(path, "OME"))
        names = group.series
        if names is None and ome is not None:
            names = self._group(ome).series
        if names:
            return [join(path, name) for name in names]
        found = []
        for number in range(_MOST_SERIES):  # the layout counts its images where nothing lists them
            place = join(path, str(number))
            if self._tree.node(place) is None:
                break
            found.append(place)
        return found

    def _loose(self, node: Node) -> _Images:
        """Return the arrays and images right under a group that says nothing of them."""
        children = [join(node.path, name) for name in self._store.names(node.path)]
        nodes = [n for n in self._tree.nodes(children).values() if n is not None]
        arrays = [n for n in nodes if n.kind == "array"]
        if arrays:
            arrays.sort(key=lambda n: (len(n.path), n.path))
            self._notes.append("the group has no OME metadata; each array in it is an image")
            return self._images(
                [(n.path.rpartition("/")[2], partial(self._array_image, n.path)) for n in arrays],
                "arrays",
            )
        groups = [n.path for n in nodes if n.kind == "group" and self._group(n).multiscales]
        if groups:
            self._notes.append("the group has no OME metadata; each image in it is a series")
            return self._by_path(groups)
        raise UnknownFormatError(
            f"{self._store.where(node.path)!r} is a Zarr group without an image: it has no OME "
            "metadata, and no array right in it"
        )

    # ------------------------------------------------------------------ one image

    def _image_at(self, path: str) -> _Image:
        node = self._tree.node(path)
        if node is None:
            raise DamagedFileError(
                f"{self._store.where(path)!r} is listed as an image but is not there"
            )
        if node.kind == "array":
            return self._array_image(path)
        group = self._group(node)
        if not group.multiscales:
            raise DamagedFileError(
                f"{self._store.where(path)!r} is listed as an image but has no multiscales"
            )
        return self._image(path, group.multiscales[0], group)

    def _array_image(self, path: str) -> _Image:
        node = self._tree.node(path)
        assert node is not None
        meta = self._meta(node)
        axes = self._axes(None, meta, path)
        level = _Layer(ZarrArray(self._store, path, meta), axes, path)
        self._check_size(level, path)
        spec = ImageSpec(meta.dtype, (level.level,), name=path.rpartition("/")[2])
        return _Image(with_flat(spec, node.attributes), (level,), path, "")

    def _image(self, path: str, multiscale: ngff.Multiscale, group: ngff.Group) -> _Image:
        places = [join(path, dataset.path) for dataset in multiscale.datasets]
        nodes = self._tree.nodes(places)
        layers: list[tuple[_Layer, ngff.Dataset]] = []
        for dataset, place in zip(multiscale.datasets, places, strict=True):
            node = nodes[place]
            if node is None or node.kind != "array":
                if not layers:
                    raise DamagedFileError(
                        f"{self._store.where(place)!r}, an array of image "
                        f"{self._store.where(path)!r}, is not there"
                    )
                self._notes.append(f"level {dataset.path!r} is listed but not there")
                continue
            meta = self._meta(node)
            axes = self._axes(multiscale.axes, meta, path, multiscale.version)
            layers.append((_Layer(self._array(path, dataset.path, meta), axes, place), dataset))
        self._check_size(layers[0][0], layers[0][0].path)
        layers = self._ordered(layers, path)
        self._check_size(layers[0][0], layers[0][0].path)
        spec = self._spec(multiscale, group, layers)
        kept = tuple(layer for layer, _ in layers)
        return _Image(self._with_ome(spec, path), kept, path, multiscale.version, multiscale.type)

    def _array(self, image: str, path: str, meta: ArrayMeta) -> ZarrArray:
        """Return an array of an image, read through the image's own folder where it has one.

        That is held open: when the image is replaced, as one of several in a store, what is read
        here stays the old one.
        """
        store = self._own_folders.get(image)
        room = len(self._own_folders) < _MOST_FOLDERS
        if store is None and image and room and isinstance(self._store, FolderStore):
            store = self._own_folders[image] = FolderStore(self._store.root / image)
        if store is None:
            return ZarrArray(self._store, join(image, path), meta)
        return ZarrArray(store, path, meta)

    def _ordered(
        self, layers: list[tuple[_Layer, ngff.Dataset]], path: str
    ) -> list[tuple[_Layer, ngff.Dataset]]:
        """Return the levels, largest first, without those that cannot be of the same image."""
        ordered = sorted(layers, key=_by_size)
        if ordered != layers:
            self._notes.append("the levels are not listed from large to small")
        full = ordered[0][0]
        kept = []
        for layer, dataset in ordered:
            where = f"level {dataset.path!r} of {self._store.where(path)!r}"
            if layer.array.meta.dtype != full.array.meta.dtype:
                raise DamagedFileError(
                    f"{where} has {layer.array.meta.dtype} pixels, the full resolution "
                    f"{full.array.meta.dtype}"
                )
            if layer.level.shape[3:] != full.level.shape[3:]:
                self._notes.append(f"{where} has other channels or time points; it is left out")
                continue
            if layer is not full and min(layer.level.shape) < 1:
                self._notes.append(f"{where} has no pixels; it is left out")
                continue
            if layer.level.shape[2] > full.level.shape[2]:
                self._notes.append(f"{where} has more planes than the full one; it is left out")
                continue
            kept.append((layer, dataset))
        return kept

    def _check_size(self, layer: _Layer, path: str) -> None:
        shape, where = layer.level.shape, self._store.where(path)
        if min(shape) < 1:
            raise DamagedFileError(
                f"{where!r} has no pixels: its shape is {layer.array.meta.shape}"
            )
        if shape[3] > _MOST_CHANNELS:
            raise UnsupportedError(
                f"{where!r} has {shape[3]} channels, up to {_MOST_CHANNELS} can be read; dims= "
                "tells which axis is which where that was guessed wrong"
            )

    def _spec(
        self,
        multiscale: ngff.Multiscale,
        group: ngff.Group,
        layers: list[tuple[_Layer, ngff.Dataset]],
    ) -> ImageSpec:
        layer, dataset = layers[0]
        sizes = ngff.pixel_sizes(
            multiscale.axes, layer.axes, dataset.scale, dataset.translation, self._notes
        )
        count = layer.level.shape[3]
        if group.channels and len(group.channels) != count:
            said = f"{len(group.channels)} channels, the image has {count}"
            self._notes.append(f"the omero metadata describe {said}")
        return ImageSpec(
            dtype=layer.array.meta.dtype,
            levels=tuple(layer.level for layer, _ in layers),
            name="" if multiscale.name == "/" else multiscale.name,
            channels=ngff.fit_channels(group.channels, count),
            physical_size=sizes.physical_size,
            time_increment=sizes.time_increment,
            position=sizes.position,
        )

    def _meta(self, node: Node) -> ArrayMeta:
        where = self._store.where(node.path)
        if node.zarr_format == 3:
            return read_meta(node.document, None, where)
        return read_meta(None, node.document, where)

    def _axes(
        self, axes: tuple[ngff.Axis, ...] | None, meta: ArrayMeta, path: str, version: str = ""
    ) -> ngff.AxisOrder:
        # before 0.3 an image has the axes TCZYX, which needs no telling
        told = version in ("0.1", "0.2") and len(meta.shape) == 5
        try:
            return ngff.yxzct(
                axes,
                len(meta.shape),
                dims=self._dims,
                dimension_names=meta.dimension_names,
                shape=meta.shape,
                notes=None if told else self._notes,
            )
        except (FormatError, UnsupportedError) as exc:
            raise type(exc)(f"{self._store.where(path)!r}: {exc}") from exc

    # ------------------------------------------------------------------ OME-XML

    def ome_xml(self) -> str | None:
        with self._lock:
            if self._xml is None:
                self._xml = (self._document(self._root),)
            return self._xml[0]

    def _document(self, path: str) -> str | None:
        data = self._store.get(join(path, OME_XML))
        return None if data is None else data.decode("utf-8", "replace")

    def _with_ome(self, spec: ImageSpec, path: str) -> ImageSpec:
        """Return the image with what only the OME-XML beside it says."""
        found = self._described(path)
        if found is None:
            return spec
        y, x, z, c, t = spec.shape
        if (found.size_y, found.size_x, found.size_z, found.size_c, found.size_t) != (
            y,
            x,
            z,
            c,
            t,
        ):
            self._notes.append("the OME-XML describes an image of another size; it is not used")
            return spec
        return _completed(spec, found, self._notes)

    def _described(self, path: str) -> OmeImage | None:
        """Return what the OME-XML of the store, or else of the image itself, says of an image."""
        number = 0 if path == self._root else None
        if number is None and path in self.images.paths:
            number = self.images.paths.index(path)
        with self._lock:
            if self._ome is None:
                self._ome = self._parsed(self.ome_xml())
            if number is not None and number < len(self._ome):
                return self._ome[number]
        own = self._parsed(self._document(path)) if path != self._root else []
        return own[0] if own else None

    def _parsed(self, xml: str | None) -> list[OmeImage]:
        if xml is None:
            return []
        from bioio_tk.meta.ome import read_document

        try:
            return list(read_document(xml).images)
        except FormatError as exc:
            self._notes.append(f"the OME-XML is not usable: {exc}")
            return []

    # ------------------------------------------------------------------ pixels

    def _layer(self, at: Address) -> _Layer:
        return self.images.at(at.image).layers[at.level]

    def read_tile(self, at: Address) -> NDArray[Any]:
        layer = self._layer(at)
        y, x, z, c, t = layer.level.grid.tile_shape(at.key)
        out = np.empty((t, c, z, y, x), layer.array.meta.dtype).transpose(3, 4, 2, 1, 0)
        part = (slice(0, y), slice(0, x), slice(0, z), slice(0, c), slice(0, t))
        layer.read(at.key, part, out)
        return out

    def read_part(self, at: Address, part: Slices5, out: NDArray[Any]) -> bool:
        layer = self._layer(at)
        if layer.worth_keeping:
            shape = layer.level.grid.tile_shape(at.key)
            if any(
                s.start != 0 or s.stop != n or (s.step or 1) != 1
                for s, n in zip(part, shape, strict=True)
            ):
                return False  # a chunk that must be decoded whole is better kept
        layer.read(at.key, part, out)
        return True

    def shard(self, image: int, level: int) -> Shape5 | None:
        return self.images.at(image).layers[level].shard

    def read_shard(self, at: Address, part: Slices5, out: NDArray[Any]) -> None:
        layer = self._layer(at)
        layer.array.read_shard(layer.index(at.key), layer.slices(part), layer.view(out))

    # ------------------------------------------------------------------ what people want to know

    def details(self, image: int, level: int) -> dict[str, Any]:
        found = self.images.at(image)
        layer = found.layers[level]
        meta = layer.array.meta
        return {
            "storage": "chunks",
            "tile": layer.level.tile[:2],
            "chunk": meta.chunks,
            "shard": meta.shards,
            "compression": meta.compression,
            "path": layer.path,
            "axes": layer.letters,
            "zarr_format": meta.zarr_format,
            "ngff_version": found.version,
        }

    def stored(self, image: int) -> Stored:
        """Return what is needed to go on writing an image of ours."""
        found = self.images.at(image)
        nodes = [self._tree.node(layer.path) for layer in found.layers]
        documents = tuple(node.document for node in nodes if node is not None)
        return Stored(found.version, found.method, documents)

    def labels(self, image: int) -> dict[str, str]:
        place = join(self.images.at(image).path, "labels")
        node = self._tree.node(place)
        if node is None or node.kind != "group":
            return {}
        return {name: join(place, name) for name in self._group(node).labels}

    def original_metadata(self, image: int) -> dict[str, Any]:
        node = self._tree.node(self.images.at(image).path)
        return {} if node is None else dict(node.attributes)

    def tree(self) -> dict[str, Any]:
        return {"layout": self._layout, "remote": self._store.waits}

    def close(self) -> None:
        for store in list(self._own_folders.values()):
            store.close()
        self._store.close()


@dataclass(frozen=True, slots=True)
class Stored:
    """How an image is stored: version of NGFF, how the levels were made, the arrays' documents."""

    version: str
    method: str
    documents: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Image:
    spec: ImageSpec
    layers: tuple[_Layer, ...]
    path: str
    version: str
    method: str = ""


class _Images(Sequence[ImageSpec]):
    """The images of a store, each read when it is first asked for: a plate has thousands."""

    def __init__(self, names: list[str], loaders: list[Callable[[], _Image]]) -> None:
        self.paths = names
        self.names: list[str] | None = None
        self._loaders = loaders
        self._found: dict[int, _Image] = {}
        self._lock = threading.RLock()

    def at(self, number: int) -> _Image:
        """Return one image and its arrays."""
        found = self._found.get(number)
        if found is None:
            with self._lock:
                found = self._found.get(number) or self._loaders[number]()
                self._found[number] = found
        return found

    @overload
    def __getitem__(self, number: int) -> ImageSpec: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[ImageSpec]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return [self.at(n).spec for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self.at(number % len(self)).spec

    def __iter__(self) -> Iterator[ImageSpec]:
        return (self.at(n).spec for n in range(len(self)))

    def __len__(self) -> int:
        return len(self._loaders)


def _by_size(pair: tuple[_Layer, ngff.Dataset]) -> tuple[int, int]:
    y, x, z, _, _ = pair[0].level.shape
    return (-y * x, -z)


class _Layer:
    """One array seen as Y, X, Z, C, T.

    Parameters
    ----------
    array : ZarrArray
        The pixels.
    axes : AxisOrder
        For Y, X, Z, C, T the axis of the array, None where it has none.
    path : str
        Where the array lies in the store.
    """

    def __init__(self, array: ZarrArray, axes: ngff.AxisOrder, path: str) -> None:
        meta = array.meta
        self.path = path
        self.array = array
        self.axes = axes
        self.ndim = len(meta.shape)
        self.level = Level(self._five(meta.shape), self._five(meta.chunks))
        self.shard = None if meta.shards is None else self._five(meta.shards)
        nbytes = int(np.prod(meta.chunks)) * meta.dtype.itemsize
        self.worth_keeping = nbytes <= _TO_KEEP
        # how a (y, x, z, c, t) array looks with the axes of the stored one; those it has not are 1
        known = {axis: five for five, axis in enumerate(axes) if axis is not None}
        absent = [five for five, axis in enumerate(axes) if axis is None]
        self._order = (*(known[a] for a in range(self.ndim) if a in known), *absent)
        shown = (slice(None) if a in known else None for a in range(self.ndim))
        self._expand: tuple[Any, ...] = (*shown, *[0] * len(absent))
        self._fives = tuple(known.get(a, -1) for a in range(self.ndim))
        self.letters = "".join("yxzct"[known[a]] if a in known else "?" for a in range(self.ndim))
        self._plain = self._order == (4, 3, 2, 0, 1) and self.ndim == 5

    def read(self, key: Sequence[int], part: Slices5, out: NDArray[Any]) -> None:
        """Fill `out` (y, x, z, c, t) with a part of a chunk."""
        self.array.read_part(self.index(key), self.slices(part), self.view(out))

    def view(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return (y, x, z, c, t) pixels with the axes of the stored array."""
        view = pixels.transpose(self._order)
        return view if self._plain else view[self._expand]

    def index(self, key: Sequence[int]) -> tuple[int, ...]:
        """Return the index of a chunk by its key in YXZCT."""
        return tuple(key[five] if five >= 0 else 0 for five in self._fives)

    def slices(self, part: Sequence[slice]) -> tuple[slice, ...]:
        """Return slices in the order of the stored array."""
        return tuple(part[five] if five >= 0 else slice(0, 1) for five in self._fives)

    def _five(self, sizes: Sequence[int]) -> Shape5:
        y, x, z, c, t = (1 if axis is None else sizes[axis] for axis in self.axes)
        return (y, x, z, c, t)


def _completed(spec: ImageSpec, found: OmeImage, notes: list[str]) -> ImageSpec:
    """Return `spec` with what NGFF has no words for: samples, absent and transparent colours."""
    samples = {channel.samples for channel in found.channels}
    channels = tuple(Channel(c.name, c.color) for c in found.channels for _ in range(c.samples))
    sizes = []
    for axis, ngff_says, ome_says in zip(
        "XYZ", spec.physical_size, found.physical_size, strict=True
    ):
        sizes.append(_agreed(f"pixel size along {axis}", ngff_says, ome_says, notes))
    return replace(
        spec,
        name=spec.name or found.name,
        samples=samples.pop() if len(samples) == 1 else 1,
        channels=channels if any(c.name or c.color for c in channels) else (),
        physical_size=PhysicalSize(*sizes),
        time_increment=_agreed("time increment", spec.time_increment, found.time_increment, notes),
    )


def _agreed(
    what: str, ngff_says: Quantity | None, ome_says: Quantity | None, notes: list[str]
) -> Quantity | None:
    """Return what both say, or the one that says something."""
    if ngff_says is None or ome_says is None:
        return ngff_says or ome_says
    if ngff_says[1] == ome_says[1] and abs(ngff_says[0] - ome_says[0]) <= 1e-6 * ome_says[0]:
        return ome_says
    if ngff_says[1] == "reference frame":
        return ome_says
    notes.append(
        f"the {what} is {ngff_says[0]:g} {ngff_says[1]} in the OME-Zarr metadata and "
        f"{ome_says[0]:g} {ome_says[1]} in the OME-XML; the first is used"
    )
    return ngff_says
