"""Hdf5Pixels: the views of a BigDataViewer HDF5 file of any writer, and of its partitions."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from bioio_tk.backends._bdv_cells import Cells
from bioio_tk.backends._bdv_ome import OME_XML
from bioio_tk.backends._bdv_open import open_now, patiently
from bioio_tk.backends._bdv_pixels import Resolution, Stored
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._hdf5_chunks import library
from bioio_tk.backends._hdf5_file import reading
from bioio_tk.core.views import ViewId
from bioio_tk.errors import (
    BioIOError,
    ClosedError,
    DamagedFileError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bioio_tk.backends._bdv_open import open_now, patiently
from bioio_tk.backends._bdv_pixels import Box

_TIME, _SETUP = re.compile(r"t(\d+)"), re.compile(r"s(\d+)")
_TYPES = (
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float32", "float64"),
)
"""What `dataType` may say."""
_MOST_OPEN = 128
"""Stacks of which the place of every chunk is kept."""


class Hdf5Pixels:
    """The stacks of a file, opened when they are first read.

    Parameters
    ----------
    path : Path
        The file, or the one with links to all partitions.

    Raises
    ------
    DamagedFileError
        It cannot be opened as HDF5.
    """

    format = "BigDataViewer HDF5"

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        self._where = repr(str(path))
        self._path = path
        self._lock = threading.RLock()
        self._turn = threading.Lock()
        self._closed = False
        self._open: OrderedDict[tuple[ViewId, int], Cells | None] = OrderedDict()
        self._parts: WeakValueDictionary[Path, Any] = WeakValueDictionary()
        self._files: WeakValueDictionary[Path, RandomFile] = WeakValueDictionary()
        self._used = {path: None}
        self._alike: dict[Any, tuple[Resolution, ...]] = {}
        self._stored: dict[int, Stored | None] = {}
        self._older: list[Any] = []
        self._file: Any = None
        self._names, self._setups = patiently(path, self._begun)
        self._first: dict[int, ViewId] = {}
        self._of_setup: dict[int, list[ViewId]] = {}
        for view in sorted(self._names):
            self._of_setup.setdefault(view.setup, []).append(view)

    def _begun(self) -> tuple[dict[ViewId, str], dict[int, str]]:
        """Open the file, and return what `_listed` does."""
        self._state = _state_of(self._path)
        self._file = open_now(self._path)
        try:
            with self._calling(f"the list of views in {self._where}"):
                return self._listed()
        except BaseException:
            self._file.close()
            raise

    def _renewed(self) -> bool:
        """Open the file anew if it has changed: views may lie behind its former end."""
        state = _state_of(self._path)
        if state == self._state:
            return False
        self._older.append(self._file)
        self._state = state
        self._file = patiently(self._path, lambda: open_now(self._path))
        return True

    def _listed(self) -> tuple[dict[ViewId, str], dict[int, str]]:
        """Return the group of each view, and of each setup."""
        views, setups = {}, {}
        for name in self._file:
            time_point, setup = _TIME.fullmatch(name), _SETUP.fullmatch(name)
            if setup is not None:
                setups[int(setup[1])] = name
            elif time_point is not None:
                group = self._file[name]
                for inner in group if isinstance(group, library().Group) else ():
                    found = _SETUP.fullmatch(inner)
                    if found is not None:
                        views[ViewId(int(time_point[1]), int(found[1]))] = f"{name}/{inner}"
        return views, setups

    # ------------------------------------------------------------------ what there is

    def setups(self) -> tuple[int, ...]:
        """Return the ids of the setups that are stored."""
        return tuple(sorted({*self._setups, *(view.setup for view in self._names)}))

    def views(self) -> frozenset[ViewId]:
        """Return the views that are stored."""
        return frozenset(self._names)

    def stored(self, setup: int) -> Stored | None:
        """Return how the stacks of a setup are stored; None where nothing tells."""
        if setup not in self._stored:
            self._stored[setup] = self._look(setup)
        return self._stored[setup]

    def _look(self, setup: int) -> Stored | None:
        named = self._named_type(setup)
        view, first = self._first_there(setup)
        if view is None or first is None:
            return None
        dtype = self._dtype(setup, named, first.dtype)
        factors = self._factors(setup)
        key = (
            first.shape,
            first.block,
            first.compression,
            factors,
            self._table(setup, "subdivisions"),
        )
        if key not in self._alike:
            self._alike[key] = tuple(self._levels(view, factors))
        return Stored(dtype, self._alike[key])

    def _first_there(self, setup: int) -> tuple[ViewId | None, Cells | None]:
        """Return the first stack of a setup that can be opened; others are in files that are gone.

        It is the one that tells how all of them are stored.
        """
        for view in self._of_setup.get(setup, ()):
            try:
                cells = self._cells(view, 0)
            except FileNotFoundError as exc:
                self.notes.append(str(exc))
                continue
            if cells is not None:
                self._first[setup] = view
                return view, cells
        return None, None

    def _levels(self, view: ViewId, factors: tuple[Any, ...]) -> Iterator[Resolution]:
        count = len(factors) or len(self._numbers(view))
        for level in range(count):
            cells = self._cells(view, level)
            if cells is None:
                self.notes.append(
                    f"level {level} of {_named(view)} in {self._where} is listed but not there: "
                    f"its setup is read with {level} of {count} levels"
                )
                return
            if level == 0:
                full = cells.shape
            guessed = tuple(max(1.0, round(a / b)) for a, b in zip(full, cells.shape, strict=True))
            factor = factors[level] if factors else guessed
            yield Resolution(cells.shape, factor, cells.block, cells.compression)  # type: ignore[arg-type]

    def _numbers(self, view: ViewId) -> list[str]:
        with self._calling():
            return [name for name in self._file[self._names[view]] if name.isdigit()]

    def _named_type(self, setup: int) -> str | None:
        """Return the attribute ``dataType`` of a setup, None where there is none."""
        if setup not in self._setups:
            return None
        with self._calling(f"setup {setup} in {self._where}"):
            value = self._file[self._setups[setup]].attrs.get("dataType")
        if isinstance(value, np.ndarray):
            value = value.flat[0] if value.size else None
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        return None if text is None else str(text).strip("\0 ").lower()

    def _dtype(self, setup: int, named: str | None, stored: np.dtype[Any]) -> np.dtype[Any]:
        """Return what the pixels mean: int16 with nothing said is uint16, as ever in BDV."""
        native = stored.newbyteorder("=")
        if native.name not in _TYPES:
            raise UnsupportedError(
                f"setup {setup} in {self._where} has pixels of type {stored}, which is none of "
                f"BigDataViewer's: {', '.join(_TYPES)}"
            )
        if named is not None and named not in _TYPES:
            self.notes.append(f"setup {setup} says its pixels are {named!r}, which is no such type")
            named = None
        if named is None:
            return np.dtype(np.uint16) if native == np.int16 else native
        wanted = np.dtype(named)
        if wanted != native and native.name != f"int{8 * wanted.itemsize}":
            self.notes.append(
                f"setup {setup} says its pixels are {named}, but they are stored as {native}, "
                "and read so"
            )
            return native
        return wanted if wanted.kind == "u" else native

    def _factors(self, setup: int) -> tuple[tuple[float, ...], ...]:
        """Return the factors of all levels of a setup, Z, Y, X; none where nobody says them."""
        rows = self._table(setup, "resolutions")
        if not rows:
            self.notes.append(f"setup {setup} in {self._where} does not say its resolutions")
        return rows

    def _table(self, setup: int, name: str) -> tuple[tuple[float, ...], ...]:
        try:
            with self._lock:
                rows = self._file[f"{self._setups[setup]}/{name}"][()]
            return tuple(tuple(row[::-1]) for row in rows.reshape(-1, 3).tolist())
        except (KeyError, OSError, RuntimeError, ValueError, AttributeError):
            return ()

    @property
    def ome_xml(self) -> str | None:
        """What is said of the stacks beyond the XML, where we have written them."""
        with self._calling(f"what is said of the stacks in {self._where}"):
            if OME_XML not in self._file:
                return None
            return bytes(self._file[OME_XML][0]).decode("utf-8", "replace")

    def path(self, view: ViewId, level: int) -> str:
        """Return where a level of a view lies."""
        return f"{self._names.get(view, '')}/{level}/cells"

    def used_files(self) -> tuple[Path, ...]:
        """Return the files the pixels are in, as far as they were opened."""
        return tuple(self._used)

    # ------------------------------------------------------------------ pixels

    def parts(self, setup: int, level: int) -> bool:
        """Return whether a part of a tile is read at the price of that part."""
        view = self._first.get(setup)
        cells = None if view is None else self._cells(view, level)
        return cells is not None and cells.in_parts

    def read(self, view: ViewId, level: int, box: Box, out: NDArray[Any]) -> None:
        """Fill `out` (z, y, x), of the setup's type, with the pixels of a box."""
        cells = self._cells(view, level)
        if cells is None:
            raise DamagedFileError(
                f"level {level} of {_named(view)} is not in {self._where}, other views have it: "
                "its pyramid is not complete (make it anew with 'bioio-tk bdv pyramid')"
            )
        self._check(view, level, cells, out.dtype)
        cells.read(box, out)

    def _check(self, view: ViewId, level: int, cells: Cells, dtype: np.dtype[Any]) -> None:
        stored = self.stored(view.setup)
        known = stored.levels[level : level + 1] if stored is not None else ()
        usual = known[0].shape if known else cells.shape
        larger = any(a > b for a, b in zip(cells.shape, usual, strict=True))
        if larger or cells.dtype.itemsize != dtype.itemsize:
            raise DamagedFileError(
                f"{_named(view)} in {self._where} is {cells.shape} (Z, Y, X) of {cells.dtype} at "
                f"level {level}, but its setup is {usual} of {dtype}: all stacks of a setup have "
                "one size and one type"
            )

    def _cells(self, view: ViewId, level: int) -> Cells | None:
        """Return the dataset of a level, opened if it is not; None where there is none."""
        key = (view, level)
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
            cells = self._opened(view, level)
            self._open[key] = cells
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
            return cells

    def _opened(self, view: ViewId, level: int) -> Cells | None:
        group = self._names.get(view)
        if group is None:
            return None
        where = f"level {level} of {_named(view)} in {self._where}"
        path, file, data = self._dataset(f"{group}/{level}/cells", where)
        if data is None:
            return None
        with self._calling(where):
            if len(data.shape) != 3:
                raise DamagedFileError(f"{where} has {len(data.shape)} axes instead of 3")
            random = self._random(path) if file.userblock_size == 0 else None
            return Cells(data, file, random, where, self._calling, self._turn)

    def _dataset(self, name: str, where: str, tries: int = 3) -> tuple[Path, Any, Any]:
        """Return a dataset with the file it is in; None where this file has none of that name."""
        h5py = library()
        try:
            path, inside = self._followed(name, where)
            file = self._file if path == self._path else self._part(path)
            if inside:
                with self._calling(where):
                    return path, file, h5py.Dataset(h5py.h5d.open(file.id, inside.encode()))
        except DamagedFileError:
            if not (tries and self._renewed()):
                raise
        else:
            if not (tries and self._renewed()):
                return path, file, None
        return self._dataset(name, where, tries - 1)

    def _followed(self, name: str, where: str) -> tuple[Path, str]:
        """Return the file that a dataset is in, and its name there; "" where there is none."""
        links, parts = self._file.id.links, name.split("/")
        with self._calling(where):
            for count in range(1, len(parts) + 1):
                head = "/".join(parts[:count])
                if not links.exists(head.encode()):
                    return self._path, ""
                if links.get_info(head.encode()).type == library().h5l.TYPE_EXTERNAL:
                    other, inside = links.get_val(head.encode())
                    path = self._path.parent / other.decode(errors="surrogateescape")
                    return path, "/".join([inside.decode(), *parts[count:]])
        return self._path, name

    def _part(self, path: Path) -> Any:
        """Return an open partition."""
        file = self._parts.get(path)
        if file is None:
            if not path.is_file():
                raise FileNotFoundError(
                    f"there is no file {str(path)!r}, which {self._where} refers to: it holds a "
                    "part of the views; put it beside that file"
                )
            file = self._parts[path] = patiently(path, lambda: open_now(path))
        return file

    def _random(self, path: Path) -> RandomFile:
        """Return a file for reading chunks; it is closed when no stack of it is kept any more."""
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = RandomFile(path)
            self._used[path] = None
        return file

    @contextmanager
    def _calling(self, what: str = "") -> Iterator[None]:
        """Call the library: one thread at a time, its errors in our words."""
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self._where} is closed")
            try:
                with reading(what or self._where, self._where):
                    yield
            except BioIOError:
                raise
            except (KeyError, ValueError) as exc:
                raise DamagedFileError(f"{what or self._where} cannot be read: {exc}") from exc

    def close(self) -> None:
        """Release the files. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._open.clear()
            for opened in (self._file, *self._older):
                opened.close()
            for file in list(self._files.values()):
                file.close()


def _named(view: ViewId) -> str:
    return f"the view of time point {view.time}, setup {view.setup}"


def _state_of(path: Path) -> tuple[int, int, int, int] | None:
    """Return what changes when a file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
