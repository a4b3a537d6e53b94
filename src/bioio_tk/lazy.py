"""LazyArray: an image as an array whose pixels are read only when they are wanted."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.base import plain_size
from bioio_tk.core.index import is_list, select
from bioio_tk.core.region import AXES
from bioio_tk.core.spec import picked
from bioio_tk.core.units import convert_length
from bioio_tk.engine.copy import View
from bioio_tk.engine.statistics import reduce_view
from bioio_tk.errors import BackendMissingError, RegionError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from ome_types import OME

    from bioio_tk.base import PixelSize
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
        return self._with(self._dims, dict(zip(self._dims, picks, strict=True)))

    def __iter__(self) -> Iterator[LazyArray]:
        """Yield the views along the first axis."""
        return (self[k] for k in range(len(self)))

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

    def astype(self, dtype: Any, **numpy: Any) -> NDArray[Any]:
        """Read the pixels as another type, as NumPy's `astype`; see `compute`.

        dask, too, asks for it where it was given the array with ``dask.array.from_array``.
        """
        return self.compute().astype(dtype, **numpy)

    # ------------------------------------------------------------------ numbers of all pixels

    def sum(self, axis: Any = None, *, keepdims: bool = False, **numpy: Any) -> Any:
        """Return the sum of the pixels, read piece by piece; as `max`."""
        return self._reduced("sum", axis, keepdims, numpy)

    def mean(self, axis: Any = None, *, keepdims: bool = False, **numpy: Any) -> Any:
        """Return the mean of the pixels, read piece by piece; as `max`."""
        return self._reduced("mean", axis, keepdims, numpy)

    def std(self, axis: Any = None, *, keepdims: bool = False, **numpy: Any) -> Any:
        """Return the standard deviation of the pixels, read piece by piece; as `max`."""
        return self._reduced("std", axis, keepdims, numpy)

    def min(self, axis: Any = None, *, keepdims: bool = False, **numpy: Any) -> Any:
        """Return the smallest of the pixels, read piece by piece; as `max`."""
        return self._reduced("min", axis, keepdims, numpy)

    def max(self, axis: Any = None, *, keepdims: bool = False, **numpy: Any) -> Any:
        """Return the largest of the pixels; they are read piece by piece, by several threads.

        Parameters
        ----------
        axis : int, tuple of int or str, optional
            Along which axes, by number or by name: ``-1``, ``(0, 1)``, ``"Z"``, ``"TZ"``; all
            by default. What is left must fit into memory.
        keepdims : bool
            The axes stay, with length 1.

        Returns
        -------
        number or numpy.ndarray
            Of the type that NumPy gives; floats are added up in float64.

        Raises
        ------
        SpecError
            There is no pixel, or ``dtype=``, ``out=`` … of NumPy is given.
        """
        return self._reduced("max", axis, keepdims, numpy)

    def _reduced(self, how: str, axis: Any, keepdims: bool, numpy: dict[str, Any]) -> Any:
        if set(numpy) - {"dtype", "out", "ddof"}:
            raise TypeError(f"{how}() got an unexpected keyword argument {min(numpy)!r}")
        given = [n for n, v in numpy.items() if v is not None and (n, v) != ("ddof", 0)]
        if given:
            raise SpecError(f"{how}() of a lazy array has no {given[0]}=: convert what it gives")
        if not self.size:
            raise SpecError(f"{how}() of an array without pixels: its shape is {self.shape}")
        gone = self._letters(axis)
        axes = tuple(AXES.index(letter) for letter in self._dims if letter in gone)
        full = reduce_view(self.view(), how, axes, workers=self._reader.max_workers)
        pixels = full.transpose([AXES.index(letter) for letter in self._dims])
        drop = tuple(
            0 if isinstance(p, int) or (letter in gone and not keepdims) else slice(None)
            for letter, p in zip(self._dims, self._picks, strict=True)
        )
        return pixels[drop]

    def _letters(self, axis: Any) -> str:
        """Return the axes that are meant, as letters."""
        if axis is None:
            return self.dims
        if isinstance(axis, str):
            letters = axis.upper()
        else:
            numbers = axis if isinstance(axis, tuple) else (axis,)
            if numbers and all(isinstance(n, str) for n in numbers):
                return self._letters("".join(numbers))
            if not all(hasattr(n, "__index__") and -self.ndim <= n < self.ndim for n in numbers):
                raise RegionError(f"axis {axis!r}: the array has the axes {self.dims or 'none'}")
            letters = "".join(self.dims[n] for n in numbers)
        if set(letters) - set(self.dims) or len(set(letters)) < len(letters):
            raise RegionError(
                f"axis {axis!r}: name each once of what the array has: {self.dims or 'nothing'}"
            )
        return letters

    # ------------------------------------------------------------------ other orders of axes

    def transpose(self, *axes: Any) -> LazyArray:
        """Return the view with its axes in another order.

        Parameters
        ----------
        *axes : int or str
            All axes, by number or by name: ``(2, 0, 1)``, ``"YXC"``; reversed by default.
        """
        if len(axes) == 1 and isinstance(axes[0], str | tuple | list):
            axes = tuple(axes[0])
        wanted = self.dims[::-1] if not axes else "".join(map(self._letters, axes))
        if sorted(wanted) != sorted(self.dims):
            raise SpecError(f"axes {axes!r}: name each of {self.dims} once")
        rest = "".join(axis for axis in self._dims if axis not in wanted)
        return self._with(wanted + rest, dict(zip(self._dims, self._picks, strict=True)))

    @property
    def T(self) -> LazyArray:
        """The view with its axes reversed."""
        return self.transpose()

    def squeeze(self) -> LazyArray:
        """Return the view without its axes of length 1."""
        picks = dict(zip(self._dims, self._picks, strict=True))
        for axis, pick in picks.items():
            if not isinstance(pick, int) and len(pick) == 1:
                picks[axis] = int(pick[0])
        return self._with(self._dims, picks)

    def _with(self, dims: str, picks: dict[str, Any]) -> LazyArray:
        view = object.__new__(LazyArray)
        view._reader, view._dims = self._reader, dims
        view._picks = tuple(picks[axis] for axis in dims)
        return view

    # ------------------------------------------------------------------ for other libraries

    def to_dask(self, chunks: Any = None) -> Any:
        """Return a `dask.array.Array` whose blocks read themselves; needs the ``dask`` extra.

        Parameters
        ----------
        chunks : optional
            As in dask; by default the tiles of the file.

        Notes
        -----
        It reads as long as this array is open. In another process the image is opened once more,
        so its file must be found there by the same path.
        """
        try:
            import dask.array as da
        except ImportError as exc:
            raise BackendMissingError(
                "to_dask() needs the package 'dask': pip install 'bioio-tk[dask]'"
            ) from exc
        from_array: Any = da.from_array
        return from_array(
            self,
            chunks=self._blocks() if chunks is None else chunks,
            name=False,  # a name made of the content would mean to read it
            asarray=True,
            fancy=False,
            meta=np.empty((0,) * self.ndim, self.dtype),
        )

    def _blocks(self) -> tuple[tuple[int, ...], ...]:
        """Return chunks that begin where the tiles of the file do."""
        offsets = dict(zip(AXES, self.view().offset(), strict=True))
        return tuple(
            _cut(n, chunk, offsets[axis] % chunk)
            for axis, n, chunk in zip(self.dims, self.shape, self.chunks, strict=True)
        )

    def to_xarray(self) -> Any:
        """Return a lazy `xarray.DataArray`; needs the ``dask`` extra.

        Its axes have the names of `dims`. Where pixel sizes are known, Y, X, Z and T have
        coordinates, which say in ``attrs["units"]`` what they count; they begin where the image
        lies. C has the names of the channels.
        """
        try:
            import xarray
        except ImportError as exc:
            raise BackendMissingError(
                "to_xarray() needs the package 'xarray': pip install 'bioio-tk[dask]'"
            ) from exc
        coords: dict[str, Any] = {}
        for axis in self.dims:
            found = self._coordinates(axis)
            if found is not None:
                values, unit = found
                coords[axis] = (axis, values, {"units": unit} if unit else {})
        name = self._reader.name or self._reader.path.name
        return xarray.DataArray(self.to_dask(), dims=tuple(self.dims), coords=coords, name=name)

    def _coordinates(self, axis: str) -> tuple[Any, str] | None:
        """Return where the positions of an axis lie, and the unit; None where that is unknown."""
        spec, pick = self._reader._spec(), np.asarray(self.picks[AXES.index(axis)])  # noqa: SLF001
        if axis == "C":
            names = [channel.name or f"channel {k}" for k, channel in enumerate(spec.channels)]
            return ([names[k] for k in pick], "") if names else None
        size = spec.time_increment if axis == "T" else getattr(spec.physical_size, axis.lower())
        if size is None:
            return None
        origin = None if axis == "T" else getattr(spec.position, axis.lower())
        start = 0.0
        if origin is not None and origin[1] == size[1]:
            start = origin[0]
        elif origin is not None:
            try:
                start = convert_length(origin[0], origin[1], size[1])
            except SpecError:
                return None  # a place in a unit that cannot be compared
        return start + pick * size[0], size[1]

    # ------------------------------------------------------------------ the image

    @property
    def channel_names(self) -> list[str | None]:
        """Name of each channel that is selected, None for one without a name."""
        channels = self.spec.channels
        return [c.name for c in channels] if channels else [None] * len(self.picks[3])

    def pixel_size(self, unit: str = "µm") -> PixelSize:
        """Return the distance of the selected pixels along Y, X, Z, as `BioReader.pixel_size`.

        None where it is unknown, is no length, or differs from one to the next.
        """
        return plain_size(self.spec.physical_size, unit)

    @property
    def metadata(self) -> OME:
        """What is known of the image, in OME's words, as it is for what is selected of it.

        The geometry is that of the selection; axes that were dropped have length 1.
        """
        from bioio_tk.meta import ome

        return ome.to_ome(ome.document((self.spec,), metadata=self.ome_xml))

    @property
    def ome_xml(self) -> str | None:
        """The OME-XML of the image, as it is for what is selected of it; None where none is."""
        from bioio_tk.meta import ome, ome_select

        xml = self._reader.ome_xml
        if xml is None:
            return None
        if self._reader.n_series > 1:
            xml = ome.single(xml, self._reader.series)
        full = self._reader.level_shapes[0][:2]
        return ome_select.picked(xml, self.picks, self._reader._spec(), full)  # noqa: SLF001

    def close(self) -> None:
        """Release the file; all views of the image are closed with it. Safe to call twice."""
        self._reader.close()

    def __enter__(self) -> LazyArray:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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


def _cut(size: int, chunk: int, before: int) -> tuple[int, ...]:
    """Return the lengths of chunks, of which the first one is shorter by `before`.

    >>> _cut(10, 4, 1), _cut(2, 4, 1)
    ((3, 4, 3), (2,))
    """
    first = min(size, chunk - before)
    whole, rest = divmod(size - first, chunk)
    return (first, *(chunk,) * whole, *((rest,) if rest else ()))


def _as_key(pick: Any) -> Any:
    if isinstance(pick, range):
        if not pick:
            return slice(0, 0)
        stop = pick[-1] + (1 if pick.step > 0 else -1)
        return slice(pick[0], None if stop < 0 else stop, pick.step)
    return pick
