"""Suite2pSource: folders of Suite2p, a movie of raw int16 a plane and channel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from bioio_tk.backends._described import band, with_flat, with_ome
from bioio_tk.backends._numpy_file import load_object
from bioio_tk.backends.base import DEFAULTS, Caps, OpenOptions
from bioio_tk.core.spec import ImageSpec, Level
from bioio_tk.errors import DamagedFileError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.location import Location
    from bioio_tk.core.region import Slices5
    from bioio_tk.core.spec import Address

OPS = "ops.npy"
_DTYPE = np.dtype("<i2")
_PLANE = re.compile(r"plane(\d+)", re.IGNORECASE)
_MOVIES = ("data.bin", "data_raw.bin")
"""The movie after registration, and the one before."""


class _Movie(NamedTuple):
    """The files of a series in one plane: first channel, and second where there is one."""

    name: str
    channels: tuple[Path, ...]


class Suite2pSource:
    """The movies of a folder with ``ops.npy``, or of its folders ``plane0``, ``zplane01_…``.

    Given one ``.bin``, it is that movie alone. Where a folder has the registered movie and the
    raw one, these are two series.
    """

    caps: ClassVar[Caps] = Caps(costly_tiles=False)

    def __init__(self, location: Location, options: OpenOptions = DEFAULTS) -> None:
        if not isinstance(location, Path):
            raise UnsupportedError(f"{str(location)!r}: Suite2p folders are read from this machine")
        if options.group:
            raise SpecError(f"group={options.group!r}: a Suite2p folder has no groups")
        single = location if location.is_file() else None
        folders = [location.parent] if single else _plane_folders(location)
        self._ops = [_read_ops(folder / OPS) for folder in folders]
        notes: list[str] = []
        self._xml: str | None = None
        self._views: tuple[list[list[NDArray[Any]]], ...] = ()
        images = []
        for movies in _series(folders, self._ops, single):
            views = [
                [_mapped(path, ops, notes) for path in movie.channels]
                for movie, ops in zip(movies, self._ops, strict=True)
            ]
            images.append(self._understood(movies[0].name, views, notes))
            self._views += (views,)
        self.images: tuple[ImageSpec, ...] = tuple(images)
        self.notes: tuple[str, ...] = tuple(dict.fromkeys(notes))

    def _understood(
        self, name: str, views: list[list[NDArray[Any]]], notes: list[str]
    ) -> ImageSpec:
        lengths = sorted({len(movie) for plane in views for movie in plane})
        if len(lengths) > 1:
            notes.append(
                f"{name}: the planes have {lengths[0]} to {lengths[-1]} frames; the first "
                f"{lengths[0]} are read"
            )
        sizes = {movie.shape[1:] for plane in views for movie in plane}
        if len(sizes) > 1:
            raise UnsupportedError(
                f"the planes have several sizes ({', '.join(map(str, sorted(sizes)))}): open them "
                "one by one"
            )
        y, x = sizes.pop()
        channels = min(len(plane) for plane in views)
        shape = (y, x, len(views), channels, lengths[0])
        spec = ImageSpec(np.dtype(np.int16), (Level(shape, band(shape, 2)),), name)
        said = self._ops[0]
        if isinstance(said.get("ome_xml"), str):
            spec, xml = with_ome(spec, said["ome_xml"], notes)
            if xml is not None:
                self._xml = self._xml or xml
                return spec
        return with_flat(spec, said)

    def read_tile(self, at: Address) -> NDArray[Any]:
        y, x, z, c, t = self.images[at.image].levels[0].grid.region(at.key).slices()
        movie = self._views[at.image][z.start][c.start]
        tile: NDArray[Any] = np.array(movie[t, y, x], np.int16)
        return tile.transpose(1, 2, 0)[:, :, None, None, :]

    def read_part(self, at: Address, part: Slices5, out: NDArray[Any]) -> bool:
        y, x, z, c, t = self.images[at.image].levels[0].grid.region(at.key).slices()
        movie = self._views[at.image][z.start][c.start]
        out[...] = movie[t, y, x].transpose(1, 2, 0)[:, :, None, None, :][part]
        return True

    def ome_xml(self) -> str | None:
        return self._xml

    def original_metadata(self, image: int) -> dict[str, Any]:
        return {str(key): _plain(value) for key, value in self._ops[0].items() if key != "ome_xml"}

    def details(self, image: int, level: int) -> dict[str, Any]:
        tile = self.images[image].levels[level].tile
        return {"storage": "raw", "tile": tile, "compression": "none", "parts": True}

    def close(self) -> None:
        self._views = ()  # the last one who reads lets go of the files


def _plane_folders(folder: Path) -> list[Path]:
    """Return the folders of the planes, in the order of their numbers."""
    if (folder / OPS).is_file():
        return [folder]
    numbered = [
        (int(found[1]), path)
        for path in folder.iterdir()
        if (found := _PLANE.search(path.name)) and (path / OPS).is_file()
    ]
    if not numbered:
        raise DamagedFileError(f"{str(folder)!r} holds no {OPS}, and no folder of a plane with one")
    numbers = [number for number, _ in numbered]
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        names = ", ".join(sorted(path.name for n, path in numbered if n == twice))
        raise UnsupportedError(
            f"{str(folder)!r} holds plane {twice} more than once ({names}): give the path of one "
            "of these folders"
        )
    return [path for _, path in sorted(numbered)]


def _read_ops(path: Path) -> Mapping[str, Any]:
    try:
        ops = load_object(path)
    except FileNotFoundError:
        raise DamagedFileError(
            f"{str(path)!r} is missing: without it nobody knows the size of the frames"
        ) from None
    if not isinstance(ops, dict):
        raise DamagedFileError(f"{str(path)!r} holds no dictionary of Suite2p")
    return ops


def _series(
    folders: Sequence[Path], ops: Sequence[Mapping[str, Any]], single: Path | None
) -> list[list[_Movie]]:
    """Return for each series the movies of all planes."""
    if single is not None:
        return [[_Movie(single.stem, _with_second(single))]]
    found = []
    for name in _MOVIES:
        paths = [folder / name for folder in folders]
        if all(path.is_file() for path in paths):
            found.append([_Movie(path.stem, _with_second(path)) for path in paths])
    if not found:
        pairs = zip(folders, ops, strict=True)
        found = [[_Movie("", (_named_in_ops(folder, said),)) for folder, said in pairs]]
    return found


def _with_second(path: Path) -> tuple[Path, ...]:
    """Return a movie, and behind it the second channel where there is one."""
    folder = path.parent
    raw, other, registered = (folder / f"data_chan2{end}.bin" for end in ("_raw", "", "_reg"))
    ours = registered.is_file() or not (folder / "data.bin").is_file()
    if path.name == "data_raw.bin":  # without another name for it, "other" is the raw one
        fitting = [raw, other] if ours else [raw]
    elif path.name == "data.bin":
        fitting = [registered, other]
    else:
        fitting = []
    second = next((p for p in fitting if p.is_file()), None)
    return (path,) if second is None else (path, second)


def _named_in_ops(folder: Path, said: Mapping[str, Any]) -> Path:
    told = [str(said[key]) for key in ("reg_file", "raw_file") if key in said]
    names: list[str] = [text.replace("\\", "/").rpartition("/")[2] for text in told]
    others = sorted(p.name for p in folder.glob("*.bin"))
    if len(others) == 1:
        names += others
    for name in names:
        if name and (folder / name).is_file():
            return folder / name
    raise DamagedFileError(f"{str(folder)!r} holds no movie: no data.bin and no data_raw.bin")


def _mapped(path: Path, said: Mapping[str, Any], notes: list[str]) -> NDArray[Any]:
    """Return the movie in a file: frames, rows, columns."""
    try:
        height, width = int(said["Ly"]), int(said["Lx"])
    except (KeyError, TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise DamagedFileError(
            f"{OPS} beside {str(path)!r} does not say how large a frame is (Ly and Lx)"
        )
    frame = height * width * _DTYPE.itemsize
    size = path.stat().st_size
    frames, rest = divmod(size, frame)
    if not frames:
        raise DamagedFileError(f"{str(path)!r} has {size} bytes, one frame has {frame}")
    told = said.get("nframes")
    if isinstance(told, (int, np.integer)) and told != frames:
        notes.append(
            f"{path.name} has {frames} frames, {OPS} tells of {told}: those there are read"
        )
    if rest:
        notes.append(f"{path.name} ends in the middle of a frame: that one is left out")
    return np.memmap(path, _DTYPE, "r", 0, (frames, height, width))


def _plain(value: Any) -> Any:
    """Return a value in types that JSON has."""
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size < 64 else f"array of the shape {value.shape}"
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
