"""N5Pixels: the views of a BigDataViewer dataset in N5, which BigStitcher and pybdv write.

The layout is that of https://github.com/saalfeldlab/n5 with BigDataViewer's names for the groups:
``setup0/timepoint0/s0``.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._bdv_cells import along
from bioio_tk.backends._bdv_pixels import Resolution, Stored
from bioio_tk.core.views import ViewId
from bioio_tk.errors import ClosedError, DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bioio_tk.backends._bdv_pixels import Box

_SETUP, _TIME = re.compile(r"setup(\d+)"), re.compile(r"timepoint(\d+)")
_ATTRIBUTES = "attributes.json"
_KINDS = "iuf"
_LZ4, _LZ4_HEAD, _LZ4_RAW = b"LZ4Block", 21, 0x10
"""What each block of lz4-java begins with, how long that is, and what says it is not packed."""


class N5Pixels:
    """The stacks of a folder; a block is a file.

    Parameters
    ----------
    folder : Path
        The container.

    Raises
    ------
    DamagedFileError
        It is no folder.
    """

    format = "BigDataViewer N5"

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        self._folder = folder
        self._closed = False
        if not folder.is_dir():
            raise DamagedFileError(f"{str(folder)!r} is a file, an N5 container is a folder")
        self._views = frozenset(_views(folder))
        self._first: dict[int, ViewId] = {}
        for view in sorted(self._views):
            self._first.setdefault(view.setup, view)
        self._levels: dict[tuple[ViewId, int], _Dataset | None] = {}
        self._stored: dict[int, Stored | None] = {}

    def setups(self) -> tuple[int, ...]:
        """Return the ids of the setups that are stored."""
        return tuple(self._first)

    def views(self) -> frozenset[ViewId]:
        """Return the views that are stored."""
        return self._views

    def stored(self, setup: int) -> Stored | None:
        """Return how the stacks of a setup are stored; None where nothing tells."""
        if setup not in self._stored:
            view = self._first.get(setup)
            self._stored[setup] = None if view is None else self._look(view)
        return self._stored[setup]

    def _look(self, view: ViewId) -> Stored | None:
        said = _document(self._folder / f"setup{view.setup}" / _ATTRIBUTES) or {}
        factors = said.get("downsamplingFactors")
        count = len(factors) if factors else len(list(self._where(view).glob("s[0-9]*")))
        levels: list[Resolution] = []
        first: _Dataset | None = None
        for number in range(count):
            dataset = self._dataset(view, number)
            if dataset is None:
                self.notes.append(
                    f"level {number} of setup {view.setup} in {str(self._folder)!r} is listed but "
                    "not there"
                )
                break
            first = first or dataset
            factor = factors[number][::-1] if factors else dataset.factor(first)
            fz, fy, fx = (float(f) for f in factor)
            levels.append(
                Resolution(dataset.shape, (fz, fy, fx), dataset.block, dataset.compression)
            )
        return Stored(first.dtype, tuple(levels)) if first else None

    def read(self, view: ViewId, level: int, box: Box, out: NDArray[Any]) -> None:
        """Fill `out` (z, y, x), of the setup's type, with the pixels of a box."""
        if self._closed:
            raise ClosedError(f"{str(self._folder)!r} is closed")
        dataset = self._dataset(view, level)
        if dataset is None or dataset.dtype != out.dtype:
            there = "is not there" if dataset is None else f"is {dataset.dtype}"
            raise DamagedFileError(
                f"{str(self._where(view) / f's{level}')!r} {there}, in other views of its setup it "
                f"is {out.dtype}"
            )
        dataset.read(box, out)

    def parts(self, setup: int, level: int) -> bool:
        """Return whether a part of a tile is read at the price of that part."""
        return False

    def path(self, view: ViewId, level: int) -> str:
        """Return where a level of a view lies."""
        return f"setup{view.setup}/timepoint{view.time}/s{level}"

    def used_files(self) -> tuple[Path, ...]:
        """Return the folder."""
        return (self._folder,)

    def close(self) -> None:
        """Read no more. Safe to call twice."""
        self._closed = True

    def _where(self, view: ViewId) -> Path:
        return self._folder / f"setup{view.setup}" / f"timepoint{view.time}"

    def _dataset(self, view: ViewId, level: int) -> _Dataset | None:
        key = (view, level)
        if key not in self._levels:
            folder = self._where(view) / f"s{level}"
            said = _document(folder / _ATTRIBUTES)
            self._levels[key] = None if said is None else _Dataset(folder, said)
        return self._levels[key]


class _Dataset:
    """One resolution of a stack."""

    def __init__(self, folder: Path, said: Mapping[str, Any]) -> None:
        self._folder = folder
        try:
            x, y, z = (int(n) for n in said["dimensions"])
            bx, by, bz = (int(n) for n in said["blockSize"])
            self.dtype = np.dtype(str(said["dataType"]))
            packed = said.get("compression", said.get("compressionType", "raw"))
            self._settings = packed if isinstance(packed, dict) else {"type": packed}
            self.compression = str(self._settings["type"])
        except (KeyError, TypeError, ValueError) as exc:
            raise DamagedFileError(
                f"{str(folder / _ATTRIBUTES)!r} does not describe a stack of three axes: {exc}"
            ) from exc
        if self.dtype.kind not in _KINDS or min(x, y, z, bx, by, bz) < 1:
            raise DamagedFileError(f"{str(folder / _ATTRIBUTES)!r} describes no image: {said}")
        if self.compression not in _CODECS:
            raise UnsupportedError(
                f"{str(folder)!r} is compressed with {self.compression!r}, which is not read here; "
                f"these are: {', '.join(_CODECS)}"
            )
        self.shape, self.block = (z, y, x), (bz, by, bx)

    def factor(self, first: _Dataset) -> tuple[int, ...]:
        """Return how many pixels of the first resolution are one of this."""
        return tuple(max(1, round(a / b)) for a, b in zip(first.shape, self.shape, strict=True))

    def read(self, box: Box, out: NDArray[Any]) -> None:
        inside = tuple(
            slice(b.start, max(b.start, min(b.stop, n)))
            for b, n in zip(box, self.shape, strict=True)
        )
        if inside != box:  # a stack that is smaller than the others of its setup
            out[...] = 0
        steps = [along(i, n) for i, n in zip(inside, self.block, strict=True)]
        for z, y, x in product(*steps):
            target = out[z.dst, y.dst, x.dst]
            pixels = self._block((z.chunk, y.chunk, x.chunk))
            if pixels is None:
                target[...] = 0
                continue
            part = pixels[z.src, y.src, x.src]
            if part.shape != target.shape:
                raise DamagedFileError(
                    f"the block {(x.chunk, y.chunk, z.chunk)} of {str(self._folder)!r} is "
                    f"{pixels.shape} (Z, Y, X), which is too small"
                )
            target[...] = part

    def _block(self, place: tuple[int, int, int]) -> NDArray[Any] | None:
        """Return the pixels of a block, None where it was never written."""
        path = self._folder.joinpath(*(str(n) for n in place[::-1]))
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return self._decoded(data)
        except Exception as exc:  # each codec has errors of its own
            raise DamagedFileError(f"the block {str(path)!r} is broken: {exc}") from exc

    def _decoded(self, data: bytes) -> NDArray[Any]:
        mode, axes = struct.unpack_from(">HH", data)
        if mode > 1 or axes != len(self.shape):
            raise ValueError(f"it is of kind {mode} and has {axes} axes")
        x, y, z = struct.unpack_from(">3I", data, 4)
        begin = 16 + (4 if mode else 0)  # of kind 1, how many numbers there are is said, too
        raw = _CODECS[self.compression](data[begin:], self._settings)
        pixels = np.frombuffer(raw, self.dtype.newbyteorder(">"), x * y * z)
        return pixels.reshape(z, y, x).astype(self.dtype, copy=False)


def _views(folder: Path) -> Iterator[ViewId]:
    for group in folder.iterdir():
        setup = _SETUP.fullmatch(group.name)
        if setup is not None and group.is_dir():
            for inner in group.iterdir():
                time = _TIME.fullmatch(inner.name)
                if time is not None:
                    yield ViewId(int(time[1]), int(setup[1]))


def _document(path: Path) -> dict[str, Any] | None:
    """Return what a JSON document says, None where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as exc:
        raise DamagedFileError(f"{str(path)!r} is no JSON document: {exc}") from exc
    if not isinstance(found, dict):
        raise DamagedFileError(f"{str(path)!r} holds {type(found).__name__}, not attributes")
    return found


def _gzip(data: bytes, settings: Mapping[str, Any]) -> bytes:
    return zlib.decompress(data) if settings.get("useZlib") else gzip.decompress(data)


def _zstd(data: bytes, _: Mapping[str, Any]) -> Any:
    from imagecodecs import zstd_decode

    return zstd_decode(data)


def _blosc(data: bytes, _: Mapping[str, Any]) -> Any:
    from numcodecs import blosc

    return blosc.decompress(data)


def _lz4(data: bytes, _: Mapping[str, Any]) -> bytes:
    """Return what lz4-java has packed, a block at a time, up to an empty one."""
    from imagecodecs import lz4_decode

    parts, at = [], 0
    while at < len(data):
        head = data[at : at + _LZ4_HEAD]
        magic, token, packed, whole = struct.unpack_from("<8sBII", head)
        if magic != _LZ4:
            raise ValueError("it is not what lz4-java writes")
        if not whole:
            break
        body = data[at + _LZ4_HEAD :][:packed]
        plain = token & 0xF0 == _LZ4_RAW
        parts.append(body if plain else bytes(lz4_decode(body, out=whole)))
        at += _LZ4_HEAD + packed
    return b"".join(parts)


_CODECS: Mapping[str, Callable[[bytes, Mapping[str, Any]], Any]] = MappingProxyType(
    {
        "raw": lambda data, _: data,
        "gzip": _gzip,
        "bzip2": lambda data, _: bz2.decompress(data),
        "xz": lambda data, _: lzma.decompress(data),
        "lz4": _lz4,
        "zstd": _zstd,
        "blosc": _blosc,
    }
)
