"""Held: an array on its way to another process, as its file where it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class Held:
    """An array; pickled, one in a file becomes the name of the file and not its pixels.

    Parameters
    ----------
    array : array_like
        A memory-mapped array and a dataset of h5py are opened again where they are unpickled;
        of all others the array's own way is taken.
    """

    __slots__ = ("_again", "array")

    def __init__(
        self, array: Any, again: tuple[Callable[..., Held], tuple[Any, ...]] | None = None
    ) -> None:
        self.array = array
        self._again = again

    def __reduce__(self) -> tuple[Callable[..., Held], tuple[Any, ...]]:
        array = self.array
        if self._again is not None:
            return self._again
        if isinstance(array, np.memmap) and array.filename is not None:
            return _mapped, _place(array)
        if type(array).__module__.startswith("h5py.") and hasattr(array, "file"):
            return _dataset, (array.file.filename, array.name)
        return Held, (array,)


def _place(array: np.memmap[Any, Any]) -> tuple[Any, ...]:
    """Return where in which file the pixels of a memory-mapped array lie."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    pointers = [a.__array_interface__["data"][0] for a in (array, root)]
    offset = root.offset + pointers[0] - pointers[1]
    return str(array.filename), array.dtype.str, offset, array.shape, array.strides


def _mapped(
    name: str, dtype: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Held:
    data: np.memmap[Any, np.dtype[np.uint8]] = np.memmap(name, np.uint8, "r")
    pixels: NDArray[Any] = np.ndarray(shape, dtype, data, offset, strides)
    return Held(pixels, (_mapped, (name, dtype, offset, shape, strides)))


def _dataset(name: str, key: str) -> Held:
    import h5py

    return Held(h5py.File(name, "r")[key])
