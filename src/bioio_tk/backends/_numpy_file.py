"""NumPy's own files: the header of an array, and objects read without running any code."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from pathlib import PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioio_tk.errors import DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_LONGEST_HEADER = 1 << 20
_LARGEST_OBJECT = 1 << 28
"""Bytes of a pickled object up to which it is taken for metadata."""


class Header(NamedTuple):
    """What an array file says of its array; `start` is where its pixels begin."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def size(self) -> int:
        """Bytes of the pixels."""
        count = 1
        for n in self.shape:
            count *= n
        return count * self.dtype.itemsize


def read_header(file: IO[bytes], where: str) -> Header:
    """Return the header of the array that begins where `file` stands.

    Raises
    ------
    DamagedFileError
        It is none, or cut short.
    UnsupportedError
        A version of the format that NumPy does not know.
    """
    begin = file.tell()
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            found = np.lib.format.read_array_header_1_0(file, max_header_size=_LONGEST_HEADER)
        elif version == (2, 0):
            found = np.lib.format.read_array_header_2_0(file, max_header_size=_LONGEST_HEADER)
        else:
            raise UnsupportedError(
                f"{where} is of version {version[0]}.{version[1]}: save it again with numpy.save"
            )
    except (ValueError, EOFError, SyntaxError, RecursionError, TypeError) as exc:
        raise DamagedFileError(f"{where} has no readable header: {exc}") from exc
    shape, fortran, dtype = found
    return Header(tuple(int(n) for n in shape), dtype, bool(fortran), file.tell() - begin)


def make_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return the header of an array that follows it in C order."""
    out = io.BytesIO()
    said = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(out, said)
    return out.getvalue()


def load_object(path: Path) -> Any:
    """Return the one Python object in an array file (``ops.npy``), without running its code."""
    with path.open("rb") as file:
        return read_object(file, repr(str(path)))


def read_object(file: IO[bytes], where: str) -> Any:
    """Return the object in an open array file; what is not plain data stands there as `Foreign`.

    Raises
    ------
    DamagedFileError
        There is no object, or it is cut short.
    """
    header = read_header(file, where)
    if header.dtype.kind != "O":
        raise DamagedFileError(f"{where} holds numbers ({header.dtype}), not an object")
    data = file.read(_LARGEST_OBJECT)
    try:
        found = _Plain(io.BytesIO(data)).load()
        return found.item() if isinstance(found, np.ndarray) else found
    except Exception as exc:  # a broken pickle raises whatever it likes
        raise DamagedFileError(f"{where} holds an object that cannot be read: {exc}") from exc


def object_bytes(value: Any) -> bytes:
    """Return the array file of one Python object, as numpy.save writes it."""
    out = io.BytesIO()
    np.save(out, np.array(value, dtype=object), allow_pickle=True)
    return out.getvalue()


def unpacked(path: Path, name: str) -> NDArray[Any]:
    """Return an array that is compressed in a zip file."""
    try:
        with zipfile.ZipFile(path) as pack, pack.open(name) as file:
            found: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            return found
    except (ValueError, EOFError, OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as exc:
        raise DamagedFileError(f"{name!r} in {str(path)!r} cannot be read: {exc}") from exc


class Foreign:
    """Stands for an object of a class that is not plain data."""

    def __new__(cls, *_: Any, **__: Any) -> Foreign:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Take an item of a list, and forget it."""

    def extend(self, items: Any) -> None:
        """Take items of a list, and forget them."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


_NUMPY = {"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"}
_BUILTINS = {"set", "frozenset", "complex", "slice", "range", "bytearray", "list", "dict", "tuple"}
_PATHS = {
    "PosixPath": PurePosixPath,
    "PurePosixPath": PurePosixPath,
    "WindowsPath": PureWindowsPath,
    "PureWindowsPath": PureWindowsPath,
}


class _Plain(pickle.Unpickler):
    """Reads data, and calls nothing but what data are made of: a file may come from anyone."""

    def find_class(self, module: str, name: str) -> Any:
        root = module.partition(".")[0]
        known = (
            (root == "numpy" and name in _NUMPY)
            or (module == "builtins" and name in _BUILTINS)
            or (module == "collections" and name == "OrderedDict")
            or (module == "datetime" and name in ("datetime", "date", "time", "timedelta"))
            or (module == "_codecs" and name == "encode")
        )
        if known:
            return super().find_class(module, name)
        if root == "pathlib" and name in _PATHS:
            return _PATHS[name]
        return Foreign
