"""ArraySource: anything with a shape, a pixel type and NumPy's slices, as an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends.base import Caps
from bioio_tk.base import BioBase
from bioio_tk.core.dtype import pixel_dtype
from bioio_tk.core.spec import Channel, ImageSpec, Level, PhysicalSize
from bioio_tk.core.units import LENGTH_UNITS, TIME_UNITS, length_unit, time_unit
from bioio_tk.errors import BioIOError, FormatError, SpecError
from bioio_tk.inputs.held import Held
from bioio_tk.lazy import LazyArray
from bioio_tk.meta.ngff_axes import LETTERS, NAMES, UNITLESS, AxisOrder, yxzct
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.core.spec import Address, Quantity

_BAND = 8 << 20
"""Bytes of a tile of what has no chunks: a band of rows, as they lie in memory."""

BY_RANK = {2: "YX", 3: "TYX", 4: "TZYX", 5: "TCZYX"}
"""What the axes are that nobody names."""


def is_array(value: Any) -> bool:
    """Return whether `value` is an array of another kind than ours: with shape, dtype, slices."""
    if isinstance(value, BioBase | LazyArray):
        return False
    return all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__"))


def open_array(array: Any, dims: str | None = None, *, workers: int | None = None) -> BioReader:
    """Return a reader of an array.

    Parameters
    ----------
    array : array_like
        NumPy (also memory-mapped), dask, Zarr, h5py, TensorStore, `xarray.DataArray`: whatever
        has ``shape``, ``dtype`` and slices. It is sliced when pixels are wanted, never before.
    dims : str, optional
        Its axes, slowest first, each of Y, X, Z, C, T at most once: ``"ZYX"``. By default the
        names it has itself; else YX, TYX, TZYX or TCZYX, by their number.
    workers : int, optional
        Threads that slice.

    Raises
    ------
    SpecError
        Its axes are not known, `dims` does not fit, or it has no pixels.
    PixelTypeError
        Objects, texts and records are no pixels.
    """
    check_shape(array.shape)
    if isinstance(array, np.ma.MaskedArray):
        raise SpecError(
            "a masked array: an image has no mask, and its pixels would lose it; give "
            "array.filled(0), or array.data"
        )
    _pixel_type(array)
    kind = f"{type(array).__module__.partition('.')[0]}.{type(array).__name__}"
    source = "array", f"a {kind} of shape {tuple(array.shape)}"
    reader = BioReader._over(Path("array"), *source, ArraySource, Held(array), dims)  # noqa: SLF001
    return with_workers(reader, workers)


def with_workers(reader: BioReader, workers: int | None) -> BioReader:
    """Return the reader, which decodes in so many threads."""
    from bioio_tk.engine.pool import check_workers

    try:
        reader._workers = check_workers(workers)  # noqa: SLF001 - who makes a reader sets it up
    except BaseException:
        reader.close()
        raise
    return reader


def _pixel_type(array: Any) -> np.dtype[Any]:
    return pixel_dtype(getattr(array.dtype, "numpy_dtype", array.dtype))  # TensorStore's own


def check_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of an array; SpecError where it is none of an image."""
    sizes = tuple(int(n) for n in shape)
    if 0 in sizes:
        raise SpecError(f"an array of shape {sizes} has no pixels; an image has at least one")
    if not 2 <= len(sizes) <= 5:
        more = "; pick one of the others first: array[0]" if len(sizes) > 5 else ""
        raise SpecError(
            f"an array of shape {sizes} has {len(sizes)} axes; an image has 2 to 5{more}"
        )
    return sizes


def axes_of(
    shape: Sequence[int],
    dims: str | None,
    names: Sequence[Any] = (),
    notes: list[str] | None = None,
) -> AxisOrder:
    """Return which axis of an array is Y, X, Z, C and T; None for one that it does not have.

    Parameters
    ----------
    shape : sequence of int
        Size of the array.
    dims : str or None
        What the user calls the axes.
    names : sequence
        What the array calls them; "" or None for one without a name.
    notes : list of str, optional
        Where to say what had to be guessed.
    """
    said = notes if notes is not None else []
    ndim = len(shape)
    if dims is not None:
        if not isinstance(dims, str):
            raise SpecError(f"dims={dims!r}: give a letter for each axis, as in dims='TZYX'")
        return yxzct(None, ndim, dims=dims)
    words = [str(name or "") for name in names]
    if any(word.lower() in NAMES for word in words):
        return yxzct(None, ndim, dimension_names=words, shape=shape, notes=said)
    letters = BY_RANK[ndim]
    if ndim > 2:
        said.append(f"nothing names the {ndim} axes: taken as {letters}; dims= tells otherwise")
    return yxzct(None, ndim, dims=letters)


class ArraySource:
    """Tiles of an array: its chunks, or bands of rows."""

    in_memory = True
    """Its files, where it has any, do not say which of their pixels these are."""

    def __init__(self, held: Held, dims: str | None) -> None:
        self._array = held.array
        notes: list[str] = []
        shape = check_shape(self._array.shape)
        self._axes = axes_of(shape, dims, _names(self._array), notes)
        self._plain = isinstance(self._array, np.ndarray)
        self.caps = Caps(costly_tiles=not self._plain, waits=_on_cluster(self._array))
        self.images = (self._spec(shape, notes),)
        self.notes = tuple(notes)

    def _spec(self, shape: tuple[int, ...], notes: list[str]) -> ImageSpec:
        dtype = _pixel_type(self._array)
        full: Shape5 = self._five(shape)
        chunks = _chunks(self._array)
        tile = band(full, dtype.itemsize) if chunks is None else self._five(chunks)
        level = Level(full, tuple(map(min, tile, full)))  # type: ignore[arg-type]
        spec = ImageSpec(dtype, (level,))
        return spec if not _is_xarray(self._array) else _named(spec, self._array, self._axes, notes)

    def _five(self, sizes: Sequence[int]) -> Shape5:
        return tuple(1 if at is None else sizes[at] for at in self._axes)  # type: ignore[return-value]

    def read_tile(self, at: Address) -> NDArray[Any]:
        """Return the pixels of a tile, shaped (y, x, z, c, t)."""
        level = self.images[0].levels[0]
        return self._read(level.grid.region(at.key).slices())

    def read_part(self, at: Address, part: Slices5, out: NDArray[Any]) -> bool:
        """Fill `out` with a part of a tile, where that costs no more than the part."""
        if not self._plain:
            return False
        tile = self.images[0].levels[0].tile
        low = tuple(k * n for k, n in zip(at.key, tile, strict=True))
        out[...] = self._read(
            tuple(  # type: ignore[arg-type]
                slice(s.start + a, s.stop + a, s.step) for s, a in zip(part, low, strict=True)
            )
        )
        return True

    def _read(self, box: Slices5) -> NDArray[Any]:
        key: list[Any] = [0] * len(self._array.shape)  # an axis that is left out is one long
        for axis, at in enumerate(self._axes):
            if at is not None:
                key[at] = box[axis]
        try:
            pixels = _computed(self._array[tuple(key)])
        except (BioIOError, OSError, MemoryError):
            raise
        except Exception as exc:
            where = ", ".join(f"{k}={s.start}:{s.stop}" for k, s in zip("YXZCT", box, strict=True))
            raise FormatError(
                f"the array could not give its pixels at {where}: {type(exc).__name__}: {exc}"
            ) from exc
        kept = sorted(at for at in self._axes if at is not None)
        order = [kept.index(at) for at in self._axes if at is not None]
        full = pixels.transpose(order)
        for axis, at in enumerate(self._axes):
            if at is None:
                full = np.expand_dims(full, axis)
        return full.astype(self.images[0].dtype, copy=False)

    def ome_xml(self) -> str | None:
        """Return None: an array has no document."""
        return None

    def used_files(self) -> tuple[Path, ...]:
        """Return the file of an array that is memory-mapped."""
        name = getattr(self._array, "filename", None)
        return (Path(name),) if isinstance(name, str | Path) else ()

    def details(self, image: int, level: int) -> dict[str, Any]:
        """Return how it is stored."""
        tile = self.images[image].levels[level].tile
        return {"tile": tile, "compression": "none", "parts": self._plain}

    def close(self) -> None:
        """Forget nothing: the array is the user's."""


def band(shape: Shape5, itemsize: int) -> Shape5:
    """Return a tile of what can be read anywhere at the same price: rows in their whole width."""
    y, x = shape[:2]
    width = min(x, max(1, _BAND // itemsize))
    return (max(1, min(y, _BAND // (width * itemsize))), width, 1, 1, 1)


def _computed(part: Any) -> NDArray[Any]:
    """Return pixels as NumPy's; dask computes in this thread unless a scheduler is set."""
    compute = getattr(part, "compute", None)
    if compute is None:
        return np.asarray(part)
    import dask

    chosen = {} if dask.config.get("scheduler", None) else {"scheduler": "synchronous"}
    return np.asarray(compute(**chosen))


def _on_cluster(array: Any) -> bool:
    """Return whether pixels are computed elsewhere: worth asking for many tiles at once."""
    if not hasattr(array, "__dask_graph__"):
        return False
    import dask

    return dask.config.get("scheduler", None) in ("distributed", "dask.distributed")


def _is_xarray(array: Any) -> bool:
    return hasattr(array, "dims") and hasattr(array, "coords")


def _names(array: Any) -> Sequence[Any]:
    """Return what an array calls its axes, in the ways of xarray, Zarr, TensorStore and HDF5."""
    if _is_xarray(array):
        return tuple(array.dims)
    metadata = getattr(array, "metadata", None)
    for names in (
        getattr(metadata, "dimension_names", None),
        getattr(getattr(array, "domain", None), "labels", None),
        _attribute(array, "_ARRAY_DIMENSIONS"),
    ):
        if isinstance(names, list | tuple) and len(names) == len(array.shape):
            return names
    labels = [getattr(dim, "label", None) for dim in getattr(array, "dims", ())]
    return labels if len(labels) == len(array.shape) else ()


def _attribute(array: Any, name: str) -> Any:
    attributes: Any = getattr(array, "attrs", None)
    return attributes.get(name) if hasattr(attributes, "get") else None


def _chunks(array: Any) -> tuple[int, ...] | None:
    """Return the size of its chunks, of the largest where they differ; None where it has none."""
    chunks = getattr(array, "chunks", None)
    if chunks is None:
        layout = getattr(array, "chunk_layout", None)
        chunks = getattr(getattr(layout, "read_chunk", None), "shape", None)
    if chunks is None:
        return None
    sizes = tuple(int(max(n)) if isinstance(n, tuple) else int(n or 0) for n in chunks)
    return sizes if len(sizes) == len(array.shape) and min(sizes) > 0 else None


# ---------------------------------------------------------------------- xarray's coordinates


def _named(spec: ImageSpec, array: Any, axes: AxisOrder, notes: list[str]) -> ImageSpec:
    """Return `spec` with what the coordinates say: pixel sizes, origin, names of channels."""
    letters = {
        letter: str(array.dims[at])
        for letter, at in zip(LETTERS, axes, strict=True)
        if at is not None
    }
    sizes: dict[str, Quantity | None] = {}
    origins: dict[str, Quantity | None] = {}
    for letter in "xyz":
        sizes[letter], origins[letter] = _spacing(array, letters.get(letter), notes)
    steps, _ = _spacing(array, letters.get("t"), notes, time=True)
    return ImageSpec(
        spec.dtype,
        spec.levels,
        name=str(array.name or ""),
        channels=_channels(array, letters.get("c")),
        physical_size=PhysicalSize(**sizes),
        position=PhysicalSize(**origins),
        time_increment=steps,
    )


def _channels(array: Any, dim: str | None) -> tuple[Channel, ...]:
    if dim is None or dim not in array.coords:
        return ()
    names = array.coords[dim].values
    return tuple(Channel(str(name)) for name in names) if names.dtype.kind in "UOT" else ()


def _spacing(
    array: Any, dim: str | None, notes: list[str], *, time: bool = False
) -> tuple[Quantity | None, Quantity | None]:
    """Return the distance of the coordinates along an axis, and the first one."""
    if dim is None or dim not in array.coords:
        return None, None
    coordinate = array.coords[dim]
    values, unit = coordinate.values, coordinate.attrs.get("units", coordinate.attrs.get("unit"))
    if values.dtype.kind in "mM":
        values, unit = values.astype(values.dtype.str[:2] + "8[ns]").astype("i8") / 1e9, "s"
    if values.dtype.kind not in "iuf" or len(values) < 2:
        return None, None
    steps = np.diff(values.astype(float))
    step, first = float(steps.mean()), float(values[0])
    if step <= 0 or not np.allclose(steps, step, rtol=1e-3, atol=0):
        notes.append(f"the coordinates of {dim!r} are not evenly spaced: the pixel size is unknown")
        return None, None
    if unit is None and (step, first) == (1.0, 0.0):  # plain numbers of the pixels
        return None, None
    known = _unit(unit, time=time)
    if known is None:
        said = f"the unit {unit!r}" if unit is not None else "no unit"
        notes.append(f"the coordinates of {dim!r} have {said}: a distance in it means little")
        return (None, None) if time else ((step, UNITLESS), (first, UNITLESS) if first else None)
    return (step, known), ((first, known) if first else None)


def _unit(name: Any, *, time: bool) -> str | None:
    if name is None:
        return None
    try:
        unit = time_unit(name) if time else length_unit(name)
    except SpecError:
        return None
    return unit if unit in (TIME_UNITS if time else LENGTH_UNITS) else None
