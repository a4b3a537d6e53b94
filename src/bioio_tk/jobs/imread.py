"""imread: one call that opens anything as a lazy array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bioio_tk.core.region import AXES
from bioio_tk.errors import RegionError, SpecError
from bioio_tk.inputs.array import is_array
from bioio_tk.inputs.open import open_input
from bioio_tk.lazy import LazyArray

if TYPE_CHECKING:
    from collections.abc import Sequence


_ALL = "TCZYX"


def imread(  # noqa: PLR0913 - as open_input, which says what each is for
    src: Any,
    dims: str = "TCZYX",
    series: int | None = None,
    level: int | None = None,
    *,
    squeeze: bool = False,
    channel: int | None = None,
    backend: str | None = None,
    group: str = "",
    stack: str | None = None,
    fill: Any = None,
    shape: Sequence[int] | None = None,
    dtype: Any = None,
    storage_options: dict[str, Any] | None = None,
    workers: int | None = None,
) -> LazyArray:
    """Open an image as an array whose pixels are read when they are wanted.

    Parameters
    ----------
    src : str, Path, URL, array, list, generator, BioReader or LazyArray
        A file, or many as one: a list of paths, ``"img_*.tif"``, or a file pattern such as
        ``"img_t{t:04d}_c{c}.tif"``, whose fields t, c and z say where each file lies. Arrays
        may be of NumPy, dask, Zarr, h5py, TensorStore or xarray. See `inputs.open.open_input`.
    dims : str
        Axes of the result, slowest first. One that is left out must have length 1. They also
        name the axes of an array that has no names, if there are as many: ``"ZYX"``.
    series, level : int, optional
        Which image of the file, and which of its resolutions; counted from 0.
    squeeze : bool
        Drop all axes of length 1.
    channel : int, optional
        Keep only this channel, counted from 0; the axis stays.
    backend, group, storage_options
        As in `BioReader`.
    stack : {"t", "c", "z"}, optional
        Along which axis the files of a list lie; T by default.
    fill : number, optional
        The pixels of files that are missing; by default a missing one is an error.
    shape, dtype : optional
        Size (along `dims`) and pixel type of what a generator gives.
    workers : int, optional
        Threads that read; by default one per CPU.

    Returns
    -------
    LazyArray
        To be closed, or used in a ``with`` statement; what is forgotten closes itself.

    Raises
    ------
    SpecError
        An argument does not fit the image.
    FileNotFoundError
        There is no such file, or none that matches.

    Examples
    --------
    >>> import bioio_tk
    >>> with bioio_tk.imread("cells.ome.tif", dims="TCZYX") as cells:
    ...     plane = cells[0, 1, 2]
    ...     plane.shape, float(plane.mean()) > 0
    ((600, 800), True)
    """
    order = _order(dims)
    image, owned = open_input(
        src,
        series=series,
        level=level,
        dims=_own_dims(src, order, shape),
        backend=backend,
        group=group,
        storage_options=storage_options,
        workers=workers,
        stack=stack,
        fill=fill,
        shape=shape,
        dtype=dtype,
    )
    try:
        image = _arranged(image, order)
        if channel is not None:
            image = _one_channel(image, channel)
        return image.squeeze() if squeeze else image
    except BaseException:
        if owned:
            image.close()
        raise


def _order(dims: Any) -> str:
    order = dims.upper() if isinstance(dims, str) else ""
    if not order or set(order) - set(AXES) or len(set(order)) < len(order):
        raise SpecError(
            f"dims={dims!r}: name the axes wanted, each of T, C, Z, Y, X at most once, slowest "
            "first, as in 'TCZYX'"
        )
    return order


def _own_dims(src: Any, order: str, shape: Sequence[int] | None) -> str | None:
    """Return `order` where it can be what the axes of an array without names are."""
    if isinstance(src, list | tuple):  # an axis of the result may be the one they lie along
        first = next((item for item in src if is_array(item)), None)
        return order if first is not None and len(first.shape) == len(order) else None
    sizes = src.shape if is_array(src) else shape
    if sizes is None:
        return None
    if len(sizes) != len(order) and order != _ALL:
        raise SpecError(
            f"dims={order!r} names {len(order)} axes, the array has {len(sizes)}: {tuple(sizes)}"
        )
    # a generator of tiles has its own order of five
    fits = len(sizes) == len(order) and (is_array(src) or order != _ALL)
    return order if fits else None


def _arranged(image: LazyArray, order: str) -> LazyArray:
    """Return the image with these axes."""
    for axis, size in zip(image.dims, image.shape, strict=True):
        if axis not in order and size != 1:
            raise SpecError(
                f"dims={order!r} leaves {axis} out, of which the image has {size}: name it, and "
                "pick one of it afterwards"
            )
    full = "".join(axis for axis in image.dims if axis not in order)
    if set(order) - set(image.dims):
        raise SpecError(
            f"dims={order!r} names axes that are no longer there: the array has {image.dims}"
        )
    return image.transpose(full + order)[(0,) * len(full)]


def _one_channel(image: LazyArray, channel: Any) -> LazyArray:
    if "C" not in image.dims:
        raise SpecError(f"channel={channel!r}: dims= leaves the channels out; name C in it")
    if isinstance(channel, bool) or not hasattr(channel, "__index__"):
        raise SpecError(f"channel={channel!r}: give the number of a channel, counted from 0")
    at = image.dims.index("C")
    count, number = image.shape[at], channel.__index__()
    if not 0 <= number < count:
        raise RegionError(f"channel={number} does not exist; there are {count}, counted from 0")
    return image[(slice(None),) * at + (slice(number, number + 1),)]
