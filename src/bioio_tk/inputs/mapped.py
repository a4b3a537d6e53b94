"""MappedSource: an image whose tiles are what a function makes of the tiles of another."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bioio_tk.core.dtype import as_pixels, pixel_dtype
from bioio_tk.core.region import AXES
from bioio_tk.engine.tiles import check_overlap
from bioio_tk.errors import BioIOError, PixelTypeError, SpecError
from bioio_tk.inputs.derived import Derived, described

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bioio_tk.core.region import Region, Shape5
    from bioio_tk.core.spec import Address
    from bioio_tk.core.tiling import TileKey
    from bioio_tk.lazy import LazyArray

    Function: TypeAlias = Callable[[NDArray[Any]], Any]

MODES = ("reflect", "symmetric", "edge", "constant")
"""What lies beyond the border of an image, as `numpy.pad` calls it."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a function is given, and what becomes of what it returns.

    Attributes
    ----------
    tile : int or (int, int)
        Height and width of the tiles, without the halo.
    overlap : int or (int, int)
        Pixels of halo on each side, along Y and X.
    mode : str
        What the halo shows beyond the border of the image, see `MODES`.
    cval : number
        What it shows with ``mode="constant"``.
    axes : str
        Axes that the function sees, in this order, Y and X among them; of the others one
        position at a time, of these all.
    dtype : numpy.dtype, optional
        Pixel type to convert results to; by default that of the first tile.
    cast : str, optional
        How to convert, see `core.dtype.cast`.
    """

    tile: Any = 1024
    overlap: Any = 0
    mode: str = "reflect"
    cval: Any = 0
    axes: str = "YX"
    dtype: Any = None
    cast: str | None = None


class MappedSource(Derived):
    """An image made tile by tile by a function; the first tile is made at once.

    Parameters
    ----------
    f : callable
        Takes a tile with its halo and returns as large an array.
    origin : LazyArray
        The pixels it is given.
    given : Given
        How they are cut.
    """

    def __init__(self, f: Function, origin: LazyArray, given: Given) -> None:
        self._f = f
        self._axes = _axes(given.axes)
        self._halo = check_overlap(given.overlap)
        if given.mode not in MODES:
            raise SpecError(f"mode={given.mode!r}: choose one of {', '.join(MODES)}")
        self._mode = given.mode
        self._cval = as_pixels(given.cval, origin.dtype)
        self._cast = "exact" if given.cast is None and given.dtype is not None else given.cast
        self._wanted = None if given.dtype is None else pixel_dtype(given.dtype)
        size = self._tile(given.tile, origin.spec.shape)
        super().__init__(origin, described(origin, origin.spec.shape, size))
        first = (0, 0, 0, 0, 0)
        result = self._compute(first)
        self._ready = {first: result}  # until it is asked for: the function may be costly
        self.images = (described(origin, origin.spec.shape, size, dtype=result.dtype),)
        self._wanted = result.dtype

    def _tile(self, tile: Any, shape: Shape5) -> Shape5:
        height, width = _tile_size(tile)
        seen = [n if axis in self._axes else 1 for axis, n in zip(AXES, shape, strict=True)]
        return (min(height, shape[0]), min(width, shape[1]), seen[2], seen[3], seen[4])

    def read_tile(self, at: Address) -> NDArray[Any]:
        """Return what the function makes of a tile."""
        result = self._ready.pop(at.key, None)
        return self._compute(at.key) if result is None else result

    def _compute(self, key: TileKey) -> NDArray[Any]:
        region = self.images[0].levels[0].grid.region(key)
        pixels = self._with_halo(region)
        given = _seen(pixels, self._axes)
        shape = given.shape  # the function may do to its array what it likes
        try:
            result = np.asarray(self._f(given))
        except Exception as exc:
            raise BioIOError(
                f"the function failed on the tile {_where(region)}: {type(exc).__name__}: {exc}"
            ) from exc
        if result.shape != shape:
            raise SpecError(
                f"the function was given an array of {shape} pixels (tile {_where(region)}) and "
                f"returned one of {result.shape}: it must return one as large, the overlap included"
            )
        return self._cropped(self._typed(result, region), region)

    def _with_halo(self, region: Region) -> NDArray[Any]:
        box = list(region.slices())
        places, inside = [], []
        for axis, halo in enumerate(self._halo):
            size = self.images[0].shape[axis]
            found, known = halo_positions(box[axis], halo, size, self._mode)
            box[axis] = slice(int(found.min()), int(found.max()) + 1)
            places.append(found - box[axis].start)
            inside.append(known)
        pixels = self.read(tuple(box))  # type: ignore[arg-type]
        if all(len(p) == n for p, n in zip(places, pixels.shape, strict=False)):
            return pixels  # nothing lies beyond the border
        # taken in the order of memory, so that planes are contiguous again
        wide = pixels.transpose(4, 3, 2, 0, 1)[..., places[0][:, None], places[1]]
        if self._mode == "constant":
            wide[..., ~(inside[0][:, None] & inside[1])] = self._cval
        return wide.transpose(3, 4, 2, 1, 0)

    def _typed(self, result: NDArray[Any], region: Region) -> NDArray[Any]:
        wanted = self._wanted
        try:
            if wanted is None:
                return result.astype(pixel_dtype(result.dtype), copy=False)
            how = None if result.dtype == wanted else self._cast
            return as_pixels(result, wanted, how)
        except SpecError as exc:
            if wanted is not None and isinstance(exc, PixelTypeError) and self._cast is None:
                raise PixelTypeError(
                    f"the function returned {result.dtype} for the tile {_where(region)} and "
                    f"{wanted} for others: give dtype= to have all converted"
                ) from exc
            raise type(exc)(
                f"what the function returned for the tile {_where(region)}: {exc}"
            ) from exc

    def _cropped(self, result: NDArray[Any], region: Region) -> NDArray[Any]:
        """Return a result without its halo, shaped (y, x, z, c, t)."""
        order = [self._axes.index(axis) for axis in AXES if axis in self._axes]
        pixels = result.transpose(order)
        height, width = region.shape[:2]
        top, left = self._halo
        return pixels[top : top + height, left : left + width].reshape(region.shape)


def halo_positions(
    span: slice, halo: int, size: int, mode: str
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the pixel that stands at each place of a run with its halo, and if it is a real one.

    Parameters
    ----------
    span : slice
        The run, inside the axis.
    halo : int
        Places more on each side.
    size : int
        Length of the axis.
    mode : str
        What stands beyond its ends, see `MODES`.

    Examples
    --------
    >>> halo_positions(slice(0, 2), 2, 9, "reflect")[0].tolist()
    [2, 1, 0, 1, 2, 3]
    >>> halo_positions(slice(0, 2), 2, 9, "symmetric")[0].tolist()
    [1, 0, 0, 1, 2, 3]
    """
    places = np.arange(span.start - halo, span.stop + halo)
    inside = (places >= 0) & (places < size)
    if mode == "reflect" and size > 1:
        turn = places % (2 * size - 2)
        places = np.where(turn < size, turn, 2 * size - 2 - turn)
    elif mode == "symmetric":
        turn = places % (2 * size)
        places = np.where(turn < size, turn, 2 * size - 1 - turn)
    else:
        places = places.clip(0, size - 1)
    return places, inside


def _seen(pixels: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return pixels (y, x, z, c, t) with the axes `axes` alone, in their order."""
    rest = [axis for axis in AXES if axis not in axes]
    ordered = pixels.transpose([AXES.index(axis) for axis in (*axes, *rest)])
    return ordered[(...,) + (0,) * len(rest)]


def _axes(axes: Any) -> str:
    letters = str(axes).upper()
    if not {"Y", "X"} <= set(letters) <= set(AXES) or len(set(letters)) != len(letters):
        raise SpecError(
            f"axes={axes!r}: name the axes the function sees, Y and X and any of Z, C, T, each "
            "once, e.g. 'YX' or 'ZYX'"
        )
    return letters


def _tile_size(tile: Any) -> tuple[int, int]:
    sizes = (tile, tile) if np.ndim(tile) == 0 else tuple(tile)
    try:
        height, width = (-1 if isinstance(n, bool) else operator.index(n) for n in sizes)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise SpecError(f"tile={tile!r}: give pixels, or a pair for height and width")
    return height, width


def _where(region: Region) -> str:
    """Return the place of a tile as text.

    >>> from bioio_tk.core.region import Region
    >>> _where(Region((0, 16, 3, 0, 0), (16, 20, 4, 1, 1)))
    'y=0:16, x=16:20, z=3, c=0, t=0'
    """
    parts = []
    for axis, a, b in zip(AXES.lower(), region.start, region.stop, strict=True):
        parts.append(f"{axis}={a}:{b}" if b > a + 1 or axis in "yx" else f"{axis}={a}")
    return ", ".join(parts)
