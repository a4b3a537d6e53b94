"""NpySink: an array that numpy.load opens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._numpy_file import make_header
from bioio_tk.backends._raw_planes import GoesOn, RawPlanes
from bioio_tk.backends.base import Caps
from bioio_tk.errors import SpecError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.spec import Address, ImageSpec

_ORDER = (4, 3, 2, 0, 1)  # Y, X, Z, C, T as T, C, Z, Y, X


class NpySink(GoesOn):
    """A new ``.npy``: the axes are TCZYX without the first ones of length 1.

    So the number of axes says what they are: YX, ZYX, CZYX or TCZYX. Behind the pixels, where
    numpy.load does not look, stands the OME-XML of the image, unless `extra` has ``ome=False``.
    """

    caps: ClassVar[Caps] = Caps(parallel_store=True, pyramids=False, tile_multiple=1)

    def __init__(self, path: Path, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        self.images = images
        self._options = options
        (spec,) = images
        y, x, z, c, t = spec.shape
        shape: tuple[int, ...] = (t, c, z, y, x)
        while len(shape) > 2 and shape[0] == 1:
            shape = shape[1:]
        header = make_header(shape, spec.dtype)
        self._stored: set[Address] = set()
        self._file = RandomFile(path, writable=True)
        try:
            self._planes = RawPlanes(self._file, len(header), (t * c * z, y, x), spec.dtype)
            self._file.write(0, header)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        if options.compression not in (None, "none"):
            raise SpecError(
                f"an array of NumPy is not compressed: leave compression={options.compression!r} "
                "out, or write HDF5 or OME-Zarr"
            )
        if options.level is not None or options.predictor:
            raise SpecError("an array of NumPy is not compressed: leave level and predictor out")
        for name in set(options.extra) - {"ome"}:
            raise SpecError(f"an array of NumPy has no option {name!r}")
        if options.name.lower().endswith(".npz"):
            raise UnsupportedError("packed arrays (.npz) are read only: end the name with .npy")
        if len(images) != 1:
            raise SpecError("one .npy holds one image")
        if len(images[0].levels) > 1:
            raise UnsupportedError(
                "an array of NumPy holds no smaller resolutions: leave pyramid out, or write "
                "OME-TIFF (.ome.tif) or OME-Zarr"
            )
        if min(images[0].shape) < 1:
            raise SpecError(f"the shape {images[0].shape} (Y, X, Z, C, T) has an axis of length 0")

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(tile.transpose(_ORDER))

    def store_tile(self, at: Address, encoded: NDArray[Any]) -> None:
        for plane, y, x, where in self._parts(at, encoded.shape[:3]):
            self._planes.store(plane, y, x, encoded[where])
        self._stored.add(at)

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        if at not in self._stored:
            return None
        y, x, z, c, t = self.images[0].levels[0].grid.tile_shape(at.key)
        out = np.empty((t, c, z, y, x), self.images[0].dtype)
        for plane, top, left, where in self._parts(at, out.shape[:3]):
            self._planes.load(plane, top, left, out[where])
        return out.transpose(3, 4, 2, 1, 0)

    def _parts(
        self, at: Address, counts: tuple[int, ...]
    ) -> list[tuple[int, int, int, tuple[int, ...]]]:
        """Return number and corner of each plane of a tile, and its place in it (t, c, z)."""
        level = self.images[0].levels[0]
        y, x, z, c, t = (k * n for k, n in zip(at.key, level.tile, strict=True))
        _, _, planes, channels, _ = level.shape
        return [
            (((t + dt) * channels + c + dc) * planes + z + dz, y, x, (dt, dc, dz))
            for dt, dc, dz in np.ndindex(*counts)
        ]

    def grow(self, image: int, t: int) -> None:
        raise UnsupportedError(f"the number of time points is fixed at the start, not {t} later")

    def finish(self) -> None:
        if not self._options.extra.get("ome", True):
            return
        from bioio_tk.meta import ome

        xml = ome.document(self.images, metadata=self._options.metadata)
        self._file.write(self._planes.end, f"\n{xml}\n".encode())

    def close(self) -> None:
        self._file.close()
