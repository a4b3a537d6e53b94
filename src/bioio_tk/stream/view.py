"""StreamView: an acquisition as one array in the order of acquisition, while it is running."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bioio_tk.core.index import is_list
from bioio_tk.errors import RegionError
from bioio_tk.stream.coords import CoordTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from bioio_tk.stream.coords import CoordUpdate, ViewAxis

    Subscribe = Callable[[Callable[[CoordUpdate], None]], object]


class Frames(Protocol):
    """Where a view takes its frames from: a stream, or the file of another process."""

    @property
    def frames_appended(self) -> int:
        """Frames that are there, those skipped included."""
        ...

    def read(self, n: int) -> NDArray[Any]:
        """Return frame `n` (y, x); zeros where nothing was stored."""
        ...


class CoordsSignal:
    """Calls functions without arguments when the coordinates have grown.

    Needs no Qt and no psygnal; what is connected stays so until `disconnect`.
    """

    def __init__(self, on_first: Callable[[], object] = lambda: None) -> None:
        self._slots: list[Callable[[], object]] = []
        self._on_first: Callable[[], object] | None = on_first

    def connect(self, callback: Callable[[], Any]) -> Callable[[], Any]:
        """Call `callback` each time from now on; returns it, so that this is a decorator, too."""
        self._slots.append(callback)
        begin, self._on_first = self._on_first, None
        if begin is not None:
            begin()
        return callback

    def disconnect(self, callback: Callable[[], Any]) -> None:
        """Call `callback` no more; ValueError if it was not connected."""
        self._slots.remove(callback)

    def emit(self) -> None:
        """Call all that is connected; raises the first error after all were called."""
        errors = []
        for slot in tuple(self._slots):
            try:
                slot()
            except Exception as exc:
                errors.append(exc)
        if errors:
            raise errors[0]


class StreamView:
    """What was acquired until now, read only, as one array with all positions.

    Follows NumPy's rules of indexing, the advanced ones too, and reads the frames it needs and
    no others. What was skipped or is not there yet is 0.

    Parameters
    ----------
    frames : Frames
        A stream, or what reads the file of another process.
    axes : sequence of ViewAxis
        All axes, the slowest first, Y and X last: in the order of acquisition.
    dtype : numpy.dtype
        Pixel type.
    dynamic_shape : bool
        `shape` and `coords` are what was reached until now; else what was planned.
    strict : bool
        With `dynamic_shape`, an index that was not reached yet is an error, not 0.
    subscribe : callable, optional
        Given a function, it has that called whenever the coordinates grow.

    Examples
    --------
    >>> view = stream.view()                 # doctest: +SKIP
    >>> view.dims, view.shape                # doctest: +SKIP
    (('t', 'p', 'c', 'y', 'x'), (17, 4, 2, 2048, 2048))
    >>> newest = view[-1, 0, 0]              # doctest: +SKIP
    """

    def __init__(
        self,
        frames: Frames,
        axes: Sequence[ViewAxis],
        dtype: np.dtype[Any],
        *,
        dynamic_shape: bool = True,
        strict: bool = False,
        subscribe: Subscribe | None = None,
    ) -> None:
        self._frames = frames
        self._tracker = CoordTracker(axes)
        self._axes = self._tracker.axes
        self._dtype = np.dtype(dtype)
        self._dynamic = dynamic_shape
        self._strict = strict
        self._plane = tuple(axis.size or 0 for axis in self._axes[-2:])
        self._subscribe = subscribe
        self._coords_changed = CoordsSignal(self._listen)

    # ------------------------------------------------------------------ what it looks like

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each of `dims`; grows while the stream runs, unless it was planned."""
        return self._shape(self._frames.frames_appended)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(axis.name for axis in self._axes)

    @property
    def coords(self) -> dict[str, Sequence[Any]]:
        """For each axis its coordinates: names of channels and positions, or numbers."""
        return self._tracker.named(self.shape)

    @property
    def coords_changed(self) -> CoordsSignal:
        """Signal for the moment when `shape` and `coords` have grown; has connect, disconnect.

        Functions without arguments are called in a thread of the stream, not by who appends.
        """
        return self._coords_changed

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type."""
        return self._dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._axes)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes the pixels take in memory."""
        return self.size * self._dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<StreamView {', '.join(self.dims)} {self.shape} {self._dtype.name}>"

    # ------------------------------------------------------------------ pixels

    def __getitem__(self, key: Any) -> Any:
        """Return the pixels as a new array, by NumPy's rules; see `StreamView`.

        Raises
        ------
        RegionError
            An IndexError: an index does not fit; the text names the axis, the index and the size.
        """
        frames = self._frames.frames_appended
        items = self._checked(key, self._shape(frames))
        plain = all(isinstance(item, range) for item in items[-2:])
        read = self._read_frames if plain else self._read_pixels
        return read(tuple(items), frames)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the pixels of a stream have to be read: that makes a new array")
        pixels: NDArray[Any] = self[...]
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def astype(self, dtype: Any, **numpy: Any) -> NDArray[Any]:
        """Read all pixels as another type, as NumPy's `astype`."""
        return self.__array__().astype(dtype, **numpy)

    def __iter__(self) -> Iterator[Any]:
        """Yield the pixels for each index of the first axis, as many as there are at the start."""
        return (self[k] for k in range(len(self)))

    # ------------------------------------------------------------------ inside

    def _shape(self, frames: int) -> tuple[int, ...]:
        reached = self._tracker.reached(frames)
        if not self._dynamic:
            planned = (axis.size for axis in self._axes)
            reached = tuple(
                n if size is None else size for n, size in zip(reached, planned, strict=False)
            )
        return (*reached, *self._plane)

    def _listen(self) -> None:
        if self._subscribe is not None and (self._dynamic or self._axes[0].size is None):
            self._subscribe(lambda _update: self._coords_changed.emit())

    def _checked(self, key: Any, live: tuple[int, ...]) -> list[Any]:
        """Return a key with an item for each axis, all inside: a range, an int, an array of ints.

        What has no axis (None, single bools) stays where it is.
        """
        checked: list[Any] = []
        axis = 0
        for item in _expand(key, self.ndim):
            if item is None or item is Ellipsis or isinstance(item, bool | np.bool_):
                checked.append(item)
            elif isinstance(item, slice):
                checked.append(self._slice(axis, item, live[axis]))
                axis += 1
            elif isinstance(item, np.ndarray) and item.ndim:
                arrays = self._arrays(axis, item, live)
                checked += arrays
                axis += len(arrays)
            else:
                checked.append(self._int(axis, item, live[axis]))
                axis += 1
        return checked

    def _slice(self, axis: int, item: slice, size: int) -> range:
        try:
            return range(*item.indices(size))
        except (TypeError, ValueError) as exc:
            raise RegionError(f"{self.dims[axis]} slice {item} cannot be used: {exc}") from None

    def _most(self, axis: int, size: int) -> int:
        """Return how far an index may go: as far as was planned, unless the view is strict."""
        planned = self._axes[axis].size
        return size if self._strict or planned is None else planned

    def _int(self, axis: int, item: Any, size: int) -> int:
        try:
            index = operator.index(item)
        except TypeError:
            raise self._refused(axis, item) from None
        if not -size <= index < self._most(axis, size):
            raise self._outside(axis, index, size)
        return index + size if index < 0 else index

    def _arrays(
        self, axis: int, array: NDArray[Any], live: tuple[int, ...]
    ) -> list[NDArray[np.intp]]:
        """Return an array of ints as it is, a mask as an array of ints for each of its axes."""
        if array.dtype == bool:
            sizes = live[axis : axis + array.ndim]
            if array.shape != sizes:
                raise RegionError(
                    f"{', '.join(self.dims[axis : axis + array.ndim])} mask has the shape "
                    f"{array.shape}, but the view has {sizes} there"
                )
            return list(array.nonzero())
        if array.size == 0:
            array = array.astype(np.intp)
        if array.dtype.kind not in "iu":
            raise self._refused(axis, array)
        size = live[axis]
        outside = (array < -size) | (array >= self._most(axis, size))
        if outside.any():
            raise self._outside(axis, int(array[outside][0]), size)
        array = array.astype(np.intp)
        return [np.where(array < 0, array + size, array)]

    def _refused(self, axis: int, item: Any) -> RegionError:
        return RegionError(
            f"{self.dims[axis]} index {item!r:.60} is a {type(item).__name__}: give an int, a "
            "slice, '...', None, a list or array of ints, or a mask"
        )

    def _outside(self, axis: int, index: int, size: int) -> RegionError:
        live = " so far" if self._dynamic else ""
        return RegionError(
            f"{self.dims[axis]} index {index} is out of bounds: the view has "
            f"{self.dims[axis]}={size}{live}"
        )

    def _picked(self, items: tuple[Any, ...]) -> list[Any]:
        """Return the number of the frame, and the other indices, for each place of the result.

        NumPy does it: in place of pixels it is given the indices that are picked of each axis.
        """
        values: list[NDArray[np.intp]] = []
        narrowed: list[Any] = []
        for item in items:
            if isinstance(item, int) and not isinstance(item, bool):
                values.append(np.array([item]))
                narrowed.append(0)
            elif isinstance(item, range):
                values.append(np.arange(item.start, item.stop, item.step))
                narrowed.append(slice(0, None))
            elif isinstance(item, np.ndarray):
                values.append(item.ravel())
                narrowed.append(np.arange(item.size).reshape(item.shape))
            else:
                narrowed.append(item)
        if not values:
            return [np.zeros((), np.intp)[tuple(narrowed)]]
        found = [full[tuple(narrowed)] for full in np.broadcast_arrays(*np.ix_(*values))]
        steps = self._tracker.steps
        return [np.zeros_like(found[0]) + self._number(found[: len(steps)]), *found[len(steps) :]]

    def _number(self, indices: Sequence[Any]) -> Any:
        """Return the number of the frame with these indices along all axes but Y and X."""
        return sum(index * step for index, step in zip(indices, self._tracker.steps, strict=True))

    def _read_frames(self, items: tuple[Any, ...], frames: int) -> NDArray[Any]:
        """Read whole frames, or the same rows and columns of each."""
        numbers = self._picked(items[:-2])[0]
        rows, columns = items[-2:]
        pixels = np.empty((*numbers.shape, len(rows), len(columns)), self._dtype)
        part = _slice_of(rows), _slice_of(columns)
        if pixels.size:
            for place, number in np.ndenumerate(numbers):
                pixels[place] = self._frames.read(int(number))[part] if number < frames else 0
        return pixels

    def _read_pixels(self, items: tuple[Any, ...], frames: int) -> Any:
        """Read single pixels, rows or columns; each frame is read once."""
        picked = self._picked(items)
        shape = picked[0].shape
        number, y, x = (np.ravel(index) for index in picked)
        pixels = np.zeros(number.shape, self._dtype)
        order = np.argsort(number, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
            if group.size and number[group[0]] < frames:
                frame = self._frames.read(int(number[group[0]]))
                pixels[group] = frame[y[group], x[group]]
        return pixels.reshape(shape)[()]


def _slice_of(picked: range) -> slice:
    stop = picked.stop if picked.stop >= 0 else None
    return slice(picked.start, stop, picked.step) if picked else slice(0, 0)


def _expand(key: Any, ndim: int) -> tuple[Any, ...]:
    """Return a key as a tuple with an item for every axis; a mask is one for several."""
    items = [_item(item) for item in (key if isinstance(key, tuple) else (key,))]
    dots = [k for k, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise RegionError("an index can have only one ellipsis ('...')")
    used = sum(_axes_of(item) for item in items)
    if used > ndim:
        raise RegionError(
            f"too many indices for array: {used} were given, the view has {ndim} axes"
        )
    where = dots[0] if dots else len(items)
    # one that stands for no axis stays: for NumPy it parts the arrays before it from those after
    fill = (slice(None),) * (ndim - used) or (Ellipsis,) * len(dots)
    return (*items[:where], *fill, *items[where + 1 :])


def _item(item: Any) -> Any:
    if not is_list(item):
        return item
    try:
        return np.asarray(item)
    except ValueError:
        raise RegionError(f"index {item!r:.60}: its rows differ in length") from None


def _axes_of(item: Any) -> int:
    """Return how many axes an item of a key is for."""
    if item is None or item is Ellipsis or isinstance(item, bool | np.bool_):
        return 0
    if isinstance(item, np.ndarray) and item.dtype == bool:
        return item.ndim
    return 1
