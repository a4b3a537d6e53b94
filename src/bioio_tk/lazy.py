"""LazyArray: an image as an array whose pixels are read only when they are wanted."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.index import is_list, select
from bioio_tk.core.region import AXES
from bioio_tk.core.spec import picked
from bioio_tk.engine.copy import View
from bioio_tk.errors import BackendMissingError, RegionError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.core.tiling import Span
    from bioio_tk.reader import BioReader

_FULL = (slice(None),) * 5


class LazyArray:
    """A view of an open image; indexing gives a smaller view and reads nothing.

    Follows numpy's rule: an int drops its axis, a slice keeps it; one axis at a time may be
    picked with a list, an array or a mask, and stays in its place. ``np.asarray(view)`` or
    `compute` reads the pixels.

    Parameters
    ----------
    reader : BioReader
        The open image.
    dims : str
        Order of the axes: each of Y, X, Z, C, T once, e.g. ``"TCZYX"``.

    Examples
    --------
    >>> plane = br.array[..., 0, 0, 3]       # doctest: +SKIP
    >>> plane.shape                          # doctest: +SKIP
    (2048, 2048)
    """

    def __init__(self, reader: BioReader, dims: str = AXES) -> None:
        if sorted(dims.upper()) != sorted(AXES):
            raise SpecError(f"dims {dims!r} must name each of Y, X, Z, C, T once, e.g. 'TCZYX'")
        self._reader = reader
        self._dims = dims.upper()
        shape = dict(zip(AXES, reader.shape, strict=True))
        # what is picked of each axis, in the order of self._dims: positions, or one number
        self._picks: tuple[Any, ...] = tuple(range(shape[axis]) for axis in self._dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each of `dims`."""
        return tuple(len(p) for p in self._picks if not isinstance(p, int))

    @property
    def dims(self) -> str:
        """Names of the axes that are left, e.g. ``"CYX"``."""
        return "".join(
            axis for axis, p in zip(self._dims, self._picks, strict=True) if not isinstance(p, int)
        )

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes the pixels take in memory."""
        return self.size * self.dtype.itemsize

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type."""
        return self._reader.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """Size of the tiles the file is read in, along each of `dims`."""
        tile = dict(zip(AXES, self._reader.tile_shape, strict=True))
        return tuple(
            max(1, min(tile[axis], len(p)))
            for axis, p in zip(self._dims, self._picks, strict=True)
            if not isinstance(p, int)
        )

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __getitem__(self, key: Any) -> LazyArray:
        """Return a smaller view; nothing is read."""
        open_axes = [i for i, p in enumerate(self._picks) if not isinstance(p, int)]
        items = _expand(key, len(open_axes))
        if sum(is_list(item) for item in items) > 1:
            raise RegionError(
                "numpy pairs up lists on several axes; pick one axis at a time: a[[0, 2]][:, [1]]"
            )
        picks = list(self._picks)
        for axis, item in zip(open_axes, items, strict=True):
            picks[axis] = _pick_more(self._dims[axis], picks[axis], item)
        view = object.__new__(LazyArray)
        view._reader, view._dims, view._picks = self._reader, self._dims, tuple(picks)
        return view

    def compute(self) -> NDArray[Any]:
        """Read the pixels.

        Returns
        -------
        numpy.ndarray
            Shape as `shape`, axes as `dims`.
        """
        by_axis = dict(zip(self._dims, self._picks, strict=True))
        key = tuple(_as_key(by_axis[axis]) for axis in AXES)
        pixels = self._reader._read5(select(key, self._reader.shape))  # noqa: SLF001
        pixels = pixels.transpose([AXES.index(axis) for axis in self._dims])
        drop = tuple(0 if isinstance(p, int) else slice(None) for p in self._picks)
        return np.asarray(pixels[drop])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the pixels are in a file: reading them makes an array")
        pixels = self.compute()
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def to_dask(self, chunks: Any = None) -> Any:
        """Return a `dask.array.Array` whose blocks read themselves; needs the ``dask`` extra.

        Parameters
        ----------
        chunks : optional
            As in dask; by default the tiles of the file.
        """
        try:
            import dask.array as da
        except ImportError as exc:
            raise BackendMissingError(
                "to_dask() needs the package 'dask': pip install 'bioio-tk[dask]'"
            ) from exc
        from_array: Any = da.from_array
        return from_array(
            self, chunks=self.chunks if chunks is None else chunks, asarray=True, fancy=False
        )

    def to_xarray(self) -> Any:
        """Return a lazy `xarray.DataArray` with named axes; needs the ``dask`` extra."""
        try:
            import xarray
        except ImportError as exc:
            raise BackendMissingError(
                "to_xarray() needs the package 'xarray': pip install 'bioio-tk[dask]'"
            ) from exc
        return xarray.DataArray(self.to_dask(), dims=tuple(self.dims), name=self._reader.name)

    @property
    def reader(self) -> BioReader:
        """The open image it is a view of."""
        return self._reader

    @property
    def picks(self) -> tuple[Span, Span, Span, Span, Span]:
        """Positions picked along Y, X, Z, C, T; of an axis that was dropped, the one."""
        by_axis = dict(zip(self._dims, self._picks, strict=True))
        spans = (by_axis[axis] for axis in AXES)
        return tuple(  # type: ignore[return-value]
            range(p, p + 1) if isinstance(p, int) else p for p in spans
        )

    @property
    def spec(self) -> ImageSpec:
        """What is known of the image, as it is seen through the selection."""
        return picked(self._reader._spec(), self.picks)  # noqa: SLF001

    def view(self) -> View:
        """Return what the engine copies."""
        reader = self._reader
        return View(reader._source, reader.series, reader.level, self.picks)  # noqa: SLF001

    def __repr__(self) -> str:
        return f"<LazyArray {self.dims} {self.shape} {self.dtype.name}>"


def _expand(key: Any, ndim: int) -> tuple[Any, ...]:
    items = key if isinstance(key, tuple) else (key,)
    dots = sum(item is Ellipsis for item in items)
    if dots > 1 or len(items) - dots > ndim:
        raise RegionError(f"{len(items) - dots} indices for an array with {ndim} axes")
    fill = (slice(None),) * (ndim - len(items) + dots)
    where = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    return (*items[:where], *fill, *(i for i in items[where:] if i is not Ellipsis))


def _pick_more(axis: str, positions: Any, item: Any) -> Any:
    """Return what `item` picks of `positions`: an int drops the axis."""
    try:
        if isinstance(item, slice):
            return positions[item]
        if is_list(item):
            return _pick_list(positions, item)
        if isinstance(item, (bool, np.bool_)):
            raise TypeError("it is neither an int, a slice nor a list")
        number = operator.index(item)
    except (TypeError, ValueError, IndexError) as exc:
        raise RegionError(f"{axis} index {item!r:.60}: {exc}") from None
    n = len(positions)
    if not -n <= number < n:
        raise RegionError(f"{axis} index {number} is out of range: the array has {axis}={n}")
    return int(positions[number])


def _pick_list(positions: Any, item: Any) -> NDArray[Any]:
    array = np.asarray(item)
    if array.size == 0 and array.dtype != bool:
        array = array.astype(np.intp)
    if array.ndim != 1:
        raise IndexError(f"an array with {array.ndim} axes; it must have one")
    picked: NDArray[Any] = np.asarray(positions)[array]
    return picked


def _as_key(pick: Any) -> Any:
    if isinstance(pick, range):
        if not pick:
            return slice(0, 0)
        stop = pick[-1] + (1 if pick.step > 0 else -1)
        return slice(pick[0], None if stop < 0 else stop, pick.step)
    return pick
