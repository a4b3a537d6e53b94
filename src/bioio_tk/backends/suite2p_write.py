"""Suite2pSink: a folder of raw int16 movies with the ops.npy that Suite2p starts from."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bioio_tk.backends import _described
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._numpy_file import object_bytes
from bioio_tk.backends._raw_planes import GoesOn, RawPlanes
from bioio_tk.backends.base import Caps
from bioio_tk.errors import PixelTypeError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.spec import Address, ImageSpec

OPS = "ops.npy"
MOVIES = ("data_raw.bin", "data_chan2.bin")
"""What the movie of the first and of the second channel is called."""
DTYPE = np.dtype("<i2")
_PLANE = re.compile(r"plane[0-9]+")
_IGNORED = (".DS_Store", "Thumbs.db")
_RATE = 10.0
"""Frames a second where the image does not say: what Suite2p assumes."""


class Suite2pSink(GoesOn):
    """A new folder: the movies and ``ops.npy``, of several planes in ``plane0/``, ``plane1/`` ….

    A movie is T x Y x X int16. Values of other integers are stored where they fit.
    """

    caps: ClassVar[Caps] = Caps(parallel_store=True, pyramids=False, tile_multiple=1)
    pixel_type: ClassVar = np.dtype(np.int16)

    def __init__(self, path: Path, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        self.images = images
        self._options = options
        self._folder = path
        self._stored: set[Address] = set()
        self._files: list[RandomFile] = []
        self._movies: dict[tuple[int, int], RawPlanes] = {}
        y, x, z, c, t = images[0].shape
        try:
            for plane in range(z):
                folder = self._plane(path, plane)
                folder.mkdir(exist_ok=True)
                for channel in range(c):
                    movie = folder / MOVIES[channel]
                    movie.touch()
                    self._files.append(RandomFile(movie, writable=True))
                    planes = RawPlanes(self._files[-1], 0, (t, y, x), DTYPE)
                    self._movies[plane, channel] = planes
        except BaseException:
            self.close()
            raise

    def _plane(self, root: Path, number: int) -> Path:
        return root if self.images[0].shape[2] == 1 else root / f"plane{number}"

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        if options.compression not in (None, "none"):
            raise SpecError(
                f"a Suite2p binary is not compressed: leave compression={options.compression!r} out"
            )
        if options.level is not None or options.predictor:
            raise SpecError("a Suite2p binary is not compressed: leave level and predictor out")
        for name in set(options.extra) - {"ome"}:
            raise SpecError(f"a Suite2p binary has no option {name!r}")
        if len(images) != 1:
            raise SpecError("one Suite2p folder holds one image")
        spec = images[0]
        if min(spec.shape) < 1:
            raise SpecError(f"the shape {spec.shape} (Y, X, Z, C, T) has an axis of length 0")
        if len(spec.levels) > 1:
            raise UnsupportedError(
                "a Suite2p binary holds no smaller resolutions: leave pyramid out, or write "
                "OME-TIFF (.ome.tif) or OME-Zarr"
            )
        if spec.shape[3] > len(MOVIES) or spec.samples > 1:
            raise UnsupportedError(
                f"Suite2p has one or two channels, this image has C={spec.shape[3]}: pick those "
                "that it needs (channels=), or write HDF5 (.h5)"
            )
        if spec.dtype.kind not in "iu":
            raise UnsupportedError(
                f"Suite2p binaries hold int16, the image is {spec.dtype}: give dtype='int16' with "
                "cast='clip' or 'scale'"
            )

    @staticmethod
    def foreign(folder: Path, *, begun: bool = False) -> Path | None:
        """Return something in a folder that is none of what we write; itself for no image."""
        entries = sorted(folder.iterdir())
        planes = [p for p in entries if _PLANE.fullmatch(p.name) and p.is_dir()]
        if not begun and not any((place / OPS).is_file() for place in (folder, *planes)):
            return folder
        for entry in (e for place in (folder, *planes) for e in sorted(place.iterdir())):
            known = entry.name in (OPS, *MOVIES, *_IGNORED) and entry.is_file()
            if entry.is_symlink() or not (known or entry in planes):
                return entry
        return None

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> NDArray[Any]:
        limits = np.iinfo(DTYPE)
        if not np.can_cast(tile.dtype, DTYPE):
            bad = (tile < limits.min) | (tile > limits.max)
            if bad.any():
                raise self._too_large(at, tile, bad)
        return np.ascontiguousarray(tile.transpose(3, 2, 4, 0, 1), DTYPE)

    def _too_large(self, at: Address, tile: NDArray[Any], bad: NDArray[Any]) -> PixelTypeError:
        inside = np.unravel_index(int(np.argmax(bad)), bad.shape)
        begin = (k * n for k, n in zip(at.key, self.images[0].levels[0].tile, strict=True))
        y, x, z, c, t = (int(a + b) for a, b in zip(begin, inside, strict=True))
        return PixelTypeError(
            f"the value {tile[inside].item()} at t={t}, c={c}, z={z}, y={y}, x={x} does not fit "
            "int16 (-32768 to 32767), which Suite2p binaries hold: give dtype='int16' with "
            "cast='clip' or 'scale'"
        )

    def store_tile(self, at: Address, encoded: NDArray[Any]) -> None:
        for movie, frame, y, x, where in self._parts(at, encoded.shape[:3]):
            movie.store(frame, y, x, encoded[where])
        self._stored.add(at)

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        if at not in self._stored:
            return None
        y, x, z, c, t = self.images[0].levels[0].grid.tile_shape(at.key)
        out = np.empty((c, z, t, y, x), DTYPE)
        for movie, frame, top, left, where in self._parts(at, out.shape[:3]):
            movie.load(frame, top, left, out[where])
        return out.transpose(3, 4, 1, 0, 2).astype(self.images[0].dtype, copy=False)

    def _parts(
        self, at: Address, counts: tuple[int, ...]
    ) -> list[tuple[RawPlanes, int, int, int, tuple[int, ...]]]:
        """Return movie, frame and corner of each plane of a tile, and its place in it (c, z, t)."""
        begin = zip(at.key, self.images[0].levels[0].tile, strict=True)
        y, x, z, c, t = (k * n for k, n in begin)
        return [
            (self._movies[z + dz, c + dc], t + dt, y, x, (dc, dz, dt))
            for dc, dz, dt in np.ndindex(*counts)
        ]

    def grow(self, image: int, t: int) -> None:
        raise UnsupportedError(f"the number of time points is fixed at the start, not {t} later")

    def finish(self) -> None:
        spec = replace(self.images[0], dtype=np.dtype(np.int16))
        more: dict[str, Any] = {}
        if self._options.extra.get("ome", True):
            from bioio_tk.meta import ome

            more["ome_xml"] = ome.document((spec,), metadata=self._options.metadata)
        home = self._folder.with_name(self._options.name or self._folder.name).absolute()
        for plane in range(spec.shape[2]):
            ops = self._ops(spec, plane, self._plane(home, plane)) | more
            (self._plane(self._folder, plane) / OPS).write_bytes(object_bytes(ops))

    def _ops(self, spec: ImageSpec, plane: int, home: Path) -> dict[str, Any]:
        """Return what Suite2p, and what reads its folders, must know of a plane at `home`."""
        _, _, z, c, t = spec.shape
        said = _described.flat(spec)
        names = {"x": "umPerPixX", "y": "umPerPixY", "z": "umPerPixZ"}
        said |= {names[a]: said[f"d{a}"] for a in "xyz" if f"d{a}" in said}
        if "dx" in said and "dy" in said:
            said["pixel_resolution"] = (said["dx"], said["dy"])
        if "dz" in said:
            said["z_step"] = said["dz"]
        said |= dict.fromkeys(("nframes", "n_frames", "timepoints", "T", "nt", "nframes_chan1"), t)
        said |= {
            "fs": said.get("fs", _RATE),
            "nplanes": z,
            "plane": plane + 1,
            "nchannels": c,
            "functional_chan": 1,
            "align_by_chan": 1,
            "shape": (t, *spec.shape[:2]),
            "keep_movie_raw": True,
            "raw_file": str(home / MOVIES[0]),
            "reg_file": str(home / "data.bin"),
            "save_path": str(home),
            "ops_path": str(home / OPS),
        }
        if c > 1:
            said["nframes_chan2"] = t
            said["chan2_file"] = said["raw_file_chan2"] = str(home / MOVIES[1])
            said["reg_file_chan2"] = str(home / "data_chan2_reg.bin")
        return said

    def close(self) -> None:
        files, self._files = self._files, []
        failed: OSError | None = None
        for file in files:
            with suppress(OSError):
                file.close()
                continue
            failed = failed or OSError(f"{str(file.path)!r} was not written to its end")
        if failed is not None:
            raise failed
