"""Hdf5Source: images in datasets of an HDF5 file."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._described import axis_order, in_order, with_flat, with_ome
from bioio_tk.backends._file import open_random
from bioio_tk.backends._hdf5_chunks import ChunkCodec, library
from bioio_tk.backends._hdf5_file import open_to_read, reading
from bioio_tk.backends.base import DEFAULTS, Caps, OpenOptions
from bioio_tk.core.dtype import pixel_dtype
from bioio_tk.core.location import Url
from bioio_tk.core.spec import ImageSpec, Level
from bioio_tk.errors import (
    ClosedError,
    DamagedFileError,
    PixelTypeError,
    SpecError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bioio_tk.core.location import Location
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import Address

_USUAL = {3: "TYX", 4: "TZYX", 5: "TCZYX"}
_FIRST = ("mov", "data")
_OME_XML = "ome_xml"
_SMALL = 1 << 15
"""Bytes of a chunk below which the library puts several together faster."""
_PIECE = 1 << 21
"""Bytes that are then read at once."""


class Hdf5Source:
    """The datasets of 2 to 5 axes of numbers: ``mov``, ``data``, then the larger ones first.

    The axes are those in the attribute ``dims`` (or ``axistags``, or the labels of the
    dimensions), or the user's, or TYX, TZYX, TCZYX.
    """

    def __init__(self, location: Location, options: OpenOptions = DEFAULTS) -> None:
        self.caps = Caps(waits=isinstance(location, Url))
        self._where = repr(str(location))
        self._lock = threading.Lock()
        self._closed = False
        self._bytes = open_random(location, options.storage_options)
        self._file: Any = None
        notes: list[str] = []
        try:
            self._file = self._opened(location)
            self._direct = self._file.userblock_size == 0
            with self._reading():
                self._images = [
                    _Image(name, data, self._file.attrs, options.dims, notes)
                    for name, data in self._chosen(options.group)
                ]
        except BaseException:
            self.close()
            raise
        self.images: tuple[ImageSpec, ...] = tuple(image.spec for image in self._images)
        self.notes: tuple[str, ...] = tuple(dict.fromkeys(notes))

    def _opened(self, location: Location) -> Any:
        if not isinstance(location, Path):
            return open_to_read(self._bytes, self._where)
        # of a new file our own writer holds the lock while it is verified
        begun = location.suffix == ".partial"
        return open_to_read(location, self._where, locking=False if begun else "best-effort")

    def _chosen(self, group: str) -> list[tuple[str, Any]]:
        """Return the datasets that are images, in the order of the series."""
        h5py = library()
        found: list[tuple[str, Any]] = []

        def look(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset) and _is_image(node):
                found.append((name, node))

        if group and group not in self._file:
            self._file.visititems(look)
            names = ", ".join(repr(name) for name, _ in found[:9]) or "none"
            raise SpecError(f"{self._where} has no {group!r}; its images are {names}")
        node = self._file[group] if group else self._file
        if isinstance(node, h5py.Dataset):
            look(group, node)
        else:
            prefix = f"{group.strip('/')}/" if group else ""
            node.visititems(lambda name, part: look(prefix + name, part))
        if not found:
            raise UnsupportedError(
                f"{self._where} holds no dataset of 2 to 5 axes of numbers"
                + (f" in {group!r}" if group else "")
            )
        ranks = {name: rank for rank, name in enumerate(_FIRST)}
        found.sort(key=lambda item: (ranks.get(item[0], len(ranks)), -item[1].size))
        return found

    def read_tile(self, at: Address) -> NDArray[Any]:
        image = self._images[at.image]
        region = image.spec.levels[0].grid.region(at.key)
        where = image.in_file(region.slices())
        codec = image.codec
        if codec is None or not self._direct:
            corner = tuple(part.start for part in where)
            with self._reading(f"what lies at {corner} of {image.name!r} in {self._where}"):
                pixels = image.data[where]
        else:
            pixels = self._chunk(image, codec, tuple(part.start for part in where))
            pixels = pixels[tuple(slice(part.stop - part.start) for part in where)]
        return image.five(pixels)

    def _chunk(self, image: _Image, codec: ChunkCodec, corner: tuple[int, ...]) -> NDArray[Any]:
        with self._reading():
            found = image.data.id.get_chunk_info_by_coord(corner)
        if found.byte_offset is None:
            return np.full(codec.shape, image.fill, codec.dtype)
        data = self._bytes.read(found.byte_offset, found.size)
        try:
            return codec.decode(data, found.filter_mask)
        except ValueError as exc:
            raise DamagedFileError(
                f"the chunk at {corner} of {image.name!r} in {self._where} is broken: {exc}"
            ) from exc

    @contextmanager
    def _reading(self, what: str = "") -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self._where} is closed")
            with reading(what or self._where, self._where):
                yield

    def ome_xml(self) -> str | None:
        return next((image.xml for image in self._images if image.xml), None)

    def original_metadata(self, image: int) -> dict[str, Any]:
        with self._reading():
            own = dict(self._images[image].data.attrs)
            said = {**dict(self._file.attrs), **own}
        return {name: _plain(value) for name, value in said.items() if name != _OME_XML}

    def details(self, image: int, level: int) -> dict[str, Any]:
        found = self._images[image]
        return {
            "storage": "raw" if found.chunks is None else "chunks",
            "tile": found.spec.levels[0].tile if found.chunks is None else found.chunks,
            "compression": found.compression,
            "path": found.name,
            "axes": found.axes,
        }

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()
        self._bytes.close()


class _Image:
    """One dataset and how it is an image."""

    def __init__(self, name: str, data: Any, root: Any, dims: str | None, notes: list[str]) -> None:
        self.name = name
        self.data = data
        known = dims or _dims(data, notes)
        guesses: list[str] = []
        self._order = axis_order(data.shape, known, guesses, usual=_USUAL.get(data.ndim))
        shape = in_order(data.shape, self._order)
        dtype = pixel_dtype(data.dtype)
        self.chunks = None if data.chunks is None else in_order(data.chunks, self._order)
        self.compression = str(data.compression or "none")
        self.fill = data.fillvalue
        self.codec = ChunkCodec.of(data)
        if self.codec is not None and _bytes(self.chunks or (), dtype) < _SMALL:
            self.codec = None  # through the library, in larger pieces
        tile = self._tile(shape, dtype)
        spec = ImageSpec(dtype, (Level(shape, tile),), name)
        xml = data.attrs.get(_OME_XML)
        self.xml: str | None = None
        if isinstance(xml, str):
            spec, self.xml = with_ome(spec, xml, notes)
        else:
            spec = with_flat(spec, {**dict(root), **dict(data.attrs)})
        if self.xml is None:
            notes += guesses
        self.spec = spec

    def _tile(self, shape: Shape5, dtype: np.dtype[Any]) -> Shape5:
        """Return what to read at once: a chunk, or several small ones, or a band of rows."""
        y, x, z, c, t = self.chunks or (1, shape[1], 1, 1, 1)
        if self.codec is None:
            while x < shape[1] and _bytes((y, x, z, c, t), dtype) < _PIECE:
                x *= 2
            while y < shape[0] and _bytes((y, x, z, c, t), dtype) < _PIECE:
                y *= 2
        return (y, x, z, c, t)

    @property
    def axes(self) -> str:
        """The axes of the dataset, slowest first."""
        return "".join("YXZCT"[self._order.index(at)] for at in range(self.data.ndim))

    def in_file(self, five: tuple[slice, ...]) -> tuple[slice, ...]:
        """Return slices of Y, X, Z, C, T in the order of the dataset."""
        return tuple(five[self._order.index(at)] for at in range(len(self._order) - self._lacking))

    @property
    def _lacking(self) -> int:
        return sum(at is None for at in self._order)

    def five(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return pixels of the dataset with the axes Y, X, Z, C, T, in native byte order."""
        from bioio_tk.backends._described import five

        view: NDArray[Any] = five(pixels, self._order)
        return view.astype(self.spec.dtype, copy=False)


def _is_image(data: Any) -> bool:
    if data.shape is None or not 2 <= len(data.shape) <= 5 or 0 in data.shape:
        return False
    try:
        pixel_dtype(data.dtype)
    except PixelTypeError:
        return False
    return True


def _dims(data: Any, notes: list[str]) -> str | None:
    """Return the axes that a dataset names itself, slowest first."""
    for value in (data.attrs.get("dims"), _axistags(data), [d.label for d in data.dims]):
        named = [_plain(part) for part in value] if value is not None and len(value) else []
        letters = "".join(str(part)[:1].upper() for part in named)
        if not letters:
            continue
        fits = len(letters) == data.ndim and len(set(letters)) == len(letters)
        if fits and {"Y", "X"} <= set(letters) <= set("TCZYX"):
            return letters
        notes.append(f"the axes {letters} that {data.name!r} names are not those of an image")
    return None


def _axistags(data: Any) -> list[str] | None:
    """Return the axes that vigra and ilastik name."""
    try:
        return [str(axis["key"]) for axis in json.loads(data.attrs["axistags"])["axes"]]
    except (KeyError, ValueError, TypeError):
        return None


def _bytes(sizes: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    total = dtype.itemsize
    for n in sizes:
        total *= n
    return total


def _plain(value: Any) -> Any:
    """Return an attribute in types that JSON has."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    return value if isinstance(value, (str, int, float, bool, list)) else str(value)
