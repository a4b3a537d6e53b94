"""NpySource: arrays that NumPy has saved, .npy and .npz, mapped into memory."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bioio_tk.backends import _numpy_file
from bioio_tk.backends._described import axis_order, band, five, in_order, with_flat, with_ome
from bioio_tk.backends.base import DEFAULTS, Caps, OpenOptions
from bioio_tk.core.dtype import pixel_dtype
from bioio_tk.core.spec import ImageSpec, Level
from bioio_tk.errors import (
    BioIOError,
    DamagedFileError,
    PixelTypeError,
    SpecError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.backends._numpy_file import Header
    from bioio_tk.core.location import Location
    from bioio_tk.core.region import Slices5
    from bioio_tk.core.spec import Address

_LONGEST_XML = 1 << 28
_LOCAL = struct.Struct("<4s5H3L2H")
"""The header of a file inside a zip file: the last two numbers say how long its names are."""


class NpySource:
    """The arrays of a file: one, or with ``.npz`` each a series.

    The axes are those of the OME-XML behind the pixels, where we wrote it, or of ``dims``, or
    the last ones of TCZYX.
    """

    caps: ClassVar[Caps] = Caps(costly_tiles=False)

    def __init__(self, location: Location, options: OpenOptions = DEFAULTS) -> None:
        if not isinstance(location, Path):
            raise UnsupportedError(
                f"{str(location)!r}: arrays of NumPy are read from files of this machine: download "
                "it first"
            )
        self._path = location
        self._said: dict[str, Any] = {}
        with location.open("rb") as file:
            packed = file.read(2) == b"PK"
        found = self._packed(options.group) if packed else self._single()
        notes: list[str] = []
        self._views: tuple[NDArray[Any], ...] = ()
        self._xml: str | None = None
        images = []
        for name, array, xml in found:
            spec, view, kept = self._understood(name, array, xml, options.dims, notes)
            images.append(spec)
            self._views += (view,)
            self._xml = self._xml or kept
        self.images: tuple[ImageSpec, ...] = tuple(images)
        self.notes: tuple[str, ...] = tuple(dict.fromkeys(notes))

    def _understood(
        self, name: str, array: NDArray[Any], xml: str, dims: str | None, notes: list[str]
    ) -> tuple[ImageSpec, NDArray[Any], str | None]:
        said = self._said.get("dims")
        if dims is None and isinstance(said, (str, list, tuple)) and len(said) == array.ndim:
            dims = "".join(map(str, said))
        guesses: list[str] = []
        order = axis_order(array.shape, dims, guesses)
        shape = in_order(array.shape, order)
        dtype = pixel_dtype(array.dtype)
        spec = ImageSpec(dtype, (Level(shape, band(shape, dtype.itemsize)),), name)
        kept = None
        if xml:
            spec, kept = with_ome(spec, xml, notes)
        elif self._said:
            spec = with_flat(spec, self._said)
        if kept is None:
            notes += guesses
        return spec, five(array, order), kept

    def _single(self) -> list[tuple[str, NDArray[Any], str]]:
        where = repr(str(self._path))
        with self._path.open("rb") as file:
            header = _numpy_file.read_header(file, where)
            _check(header, where)
            size = os.fstat(file.fileno()).st_size
            _check_length(header, size, where)
            file.seek(header.start + header.size)
            tail = file.read(min(_LONGEST_XML, size)).strip()
        xml = tail.decode("utf-8", "replace") if tail.startswith((b"<?xml", b"<OME")) else ""
        return [("", self._mapped(header, 0), xml)]

    def _packed(self, group: str) -> list[tuple[str, NDArray[Any], str]]:
        try:
            with zipfile.ZipFile(self._path) as pack:
                return self._members(pack, group)
        except BioIOError:
            raise
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as exc:
            raise DamagedFileError(f"{str(self._path)!r} cannot be read: {exc}") from exc

    def _members(self, pack: zipfile.ZipFile, group: str) -> list[tuple[str, NDArray[Any], str]]:
        arrays: dict[str, NDArray[Any]] = {}
        for info in pack.infolist():
            name = info.filename.removesuffix(".npy")
            where = f"{name!r} in {str(self._path)!r}"
            with pack.open(info) as file:
                header = _numpy_file.read_header(file, where)
            if header.dtype.kind == "O" and name == "metadata":
                with pack.open(info) as file:
                    said = _numpy_file.read_object(file, where)
                self._said = said if isinstance(said, dict) else {}
            elif header.dtype.kind in "buifc" and 2 <= len(header.shape) <= 5:
                arrays[name] = self._member(pack, info, header, where)
        if group:
            if group not in arrays:
                known = ", ".join(map(repr, arrays)) or "none"
                raise SpecError(f"{str(self._path)!r} has no image {group!r}; there are {known}")
            arrays = {group: arrays[group]}
        if not arrays:
            raise UnsupportedError(f"{str(self._path)!r} holds no array of 2 to 5 axes of numbers")
        first = ["data"] if "data" in arrays else []
        return [(n, arrays[n], "") for n in (*first, *(n for n in arrays if n not in first))]

    def _member(
        self, pack: zipfile.ZipFile, info: zipfile.ZipInfo, header: Header, where: str
    ) -> NDArray[Any]:
        _check(header, where)
        if info.compress_type != zipfile.ZIP_STORED:
            return _numpy_file.unpacked(self._path, info.filename)
        _check_length(header, info.file_size, where)
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            name, extra = _LOCAL.unpack(file.read(_LOCAL.size))[-2:]
        return self._mapped(header, info.header_offset + _LOCAL.size + name + extra)

    def _mapped(self, header: Header, begin: int) -> NDArray[Any]:
        return np.memmap(
            self._path,
            header.dtype,
            "r",
            begin + header.start,
            header.shape,
            "F" if header.fortran else "C",
        )

    def read_tile(self, at: Address) -> NDArray[Any]:
        spec = self.images[at.image]
        region = spec.levels[0].grid.region(at.key).slices()
        tile: NDArray[Any] = np.array(self._views[at.image][region], spec.dtype)
        return tile

    def read_part(self, at: Address, part: Slices5, out: NDArray[Any]) -> bool:
        region = self.images[at.image].levels[0].grid.region(at.key).slices()
        out[...] = self._views[at.image][region][part]
        return True

    def ome_xml(self) -> str | None:
        return self._xml

    def details(self, image: int, level: int) -> dict[str, Any]:
        tile = self.images[image].levels[level].tile
        return {"storage": "raw", "tile": tile, "compression": "none", "parts": True}

    def close(self) -> None:
        self._views = ()  # the last one who reads lets go of the file


def _check(header: Header, where: str) -> None:
    if not 2 <= len(header.shape) <= 5 or 0 in header.shape:
        raise UnsupportedError(
            f"{where} is an array of the shape {header.shape}: an image has 2 to 5 axes, and a "
            "pixel along each"
        )
    try:
        pixel_dtype(header.dtype)
    except PixelTypeError as exc:
        raise UnsupportedError(f"{where} is no image: {exc}") from exc


def _check_length(header: Header, size: int, where: str) -> None:
    if header.start + header.size > size:
        raise DamagedFileError(
            f"{where} is cut off: {size} bytes of {header.start + header.size} are there"
        )
