"""Hdf5Sink: an image in a dataset of an HDF5 file, as calcium imaging keeps it."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from bioio_tk.backends import _described
from bioio_tk.backends._hdf5_chunks import ChunkCodec, compression_of, library
from bioio_tk.backends._hdf5_file import writing
from bioio_tk.backends.base import Caps
from bioio_tk.errors import ClosedError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import Address, ImageSpec

OME_XML = "ome_xml"
"""The attribute of a dataset with the OME-XML of its image."""
_LARGEST_CHUNK = 2**32 - 1


class Hdf5Sink:
    """A new HDF5 file with one dataset, a tile a chunk.

    Of one channel it has the axes TZYX, else TCZYX, and says so in its attribute ``dims``. Sizes
    of pixels and the like stand as attributes at the root, the OME-XML at the dataset. Chunks are
    compressed by the workers and stored as they are: the library itself does one thing at a time.
    `extra` may hold ``dataset_name``, ``"mov"`` by default, and ``chunks``, which are the tiles.
    """

    caps: ClassVar[Caps] = Caps(pyramids=False, tile_multiple=1)

    def __init__(self, path: Path, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        self.images = images
        self._options = options
        spec = images[0]
        level = compression_of(options.compression, options.level)
        shuffle = level is not None and options.predictor is not False
        self._several = spec.shape[3] > 1
        chunk = self._in_file(spec.levels[0].tile)
        shape = self._in_file(spec.shape)
        self._codec = ChunkCodec(chunk, spec.dtype, level, shuffle=shuffle)
        self._lock = threading.RLock()
        self._stored: set[Address] = set()
        self._closed = False
        # the writer holds a lock on the file already, which that of HDF5 would take for another's
        self._file = library().File(path, "w", locking=False)
        try:
            self._data = self._file.create_dataset(
                _name(options),
                shape,
                spec.dtype,
                chunks=chunk,
                maxshape=(None, *shape[1:]),
                compression=None if level is None else "gzip",
                compression_opts=level,
                shuffle=shuffle,
                track_times=False,
            )
            self._data.attrs["dims"] = list("TCZYX" if self._several else "TZYX")
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        library()
        compression_of(options.compression, options.level)
        for name in options.extra:
            if name not in ("dataset_name", "chunks", "ome"):
                raise SpecError(f"HDF5 has no option {name!r}; there are 'dataset_name', 'chunks'")
        _name(options)
        if len(images) != 1:
            raise SpecError("one HDF5 file is written with one image")
        spec = images[0]
        if len(spec.levels) > 1:
            raise UnsupportedError(
                "HDF5 is written without smaller resolutions: leave pyramid out, or write "
                "OME-TIFF (.ome.tif) or OME-Zarr"
            )
        if min(spec.shape) < 1:
            raise SpecError(f"the shape {spec.shape} (Y, X, Z, C, T) has an axis of length 0")
        size = spec.dtype.itemsize
        for n in spec.levels[0].tile:
            size *= n
        if size > _LARGEST_CHUNK:
            raise SpecError("a chunk of HDF5 is smaller than 4 GB: make tiles or chunks smaller")

    def _in_file(self, sizes: Shape5) -> tuple[int, ...]:
        y, x, z, c, t = sizes
        return (t, c, z, y, x) if self._several else (t, z, y, x)

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Any:
        pixels = tile.transpose(4, 3, 2, 0, 1)
        return self._codec.encode(pixels if self._several else pixels[:, 0])

    def store_tile(self, at: Address, encoded: Any) -> None:
        with self._library():
            self._data.id.write_direct_chunk(self._corner(at), encoded)
        self._stored.add(at)

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        if at not in self._stored:
            return None
        with self._library():
            skipped, data = self._data.id.read_direct_chunk(self._corner(at))
        chunk = self._codec.decode(data, skipped)
        y, x, z, c, t = self.images[0].levels[0].grid.tile_shape(at.key)
        if not self._several:
            chunk = chunk[:, None]
        return chunk[:t, :c, :z, :y, :x].transpose(3, 4, 2, 1, 0)

    def _corner(self, at: Address) -> tuple[int, ...]:
        y, x, z, c, t = (k * n for k, n in zip(at.key, self.images[0].levels[0].tile, strict=True))
        return (t, c, z, y, x) if self._several else (t, z, y, x)

    def grow(self, image: int, t: int) -> None:
        raise UnsupportedError(f"the number of time points is fixed at the start, not {t} later")

    def finish(self) -> None:
        with self._library():
            for name, value in _described.flat(self.images[0]).items():
                plain = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
                self._file.attrs[name] = plain
            if self._options.extra.get("ome", True):
                from bioio_tk.meta import ome

                xml = ome.document(self.images, metadata=self._options.metadata)
                self._data.attrs[OME_XML] = xml
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with writing(self._file.filename):
                self._file.close()

    @contextmanager
    def _library(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise ClosedError("the HDF5 file is closed: it neither takes nor gives tiles")
            with writing(self._file.filename):
                yield


def _name(options: StoreOptions) -> str:
    name = options.extra.get("dataset_name", "mov")
    parts = name.strip("/").split("/") if isinstance(name, str) else [""]
    if not all(part and part != "." for part in parts):
        raise SpecError(f"dataset_name={name!r}: give the name of a dataset, such as 'mov'")
    return "/".join(parts)
