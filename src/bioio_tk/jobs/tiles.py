"""Whole images through a function, joined along axes, put side by side: tile by tile."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from bioio_tk.core.index import trim
from bioio_tk.core.location import Location, locate
from bioio_tk.core.region import AXES
from bioio_tk.core.stitching import read_positions
from bioio_tk.engine import arrays
from bioio_tk.engine.copy import copy
from bioio_tk.engine.pool import check_workers
from bioio_tk.errors import OutOfMemoryError, SpecError
from bioio_tk.inputs.array import ArraySource
from bioio_tk.inputs.derived import derive
from bioio_tk.inputs.mapped import Given, MappedSource
from bioio_tk.inputs.mosaic import MosaicSource
from bioio_tk.inputs.open import open_input
from bioio_tk.inputs.reduced import HOW, ReducedSource
from bioio_tk.jobs.convert import convert
from bioio_tk.jobs.options import Options
from bioio_tk.jobs.select import chosen
from bioio_tk.lazy import LazyArray
from bioio_tk.reader import BioReader
from bioio_tk.writer import BioWriter

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from bioio_tk.core.region import Slices5
    from bioio_tk.engine.copy import Progress

_OF_SOURCE = ("series", "level", "dims", "select", "backend")
_OF_TARGET = (
    *("compression", "compression_level", "predictor", "tile_size", "pyramid", "levels"),
    *("downsample", "ome", "ngff_version", "chunks", "shards", "pyramid_z", "group", "metadata"),
    *("exists", "overwrite", "ext", "storage_options", "show_progress"),
)


class _Run(NamedTuple):
    """How the work is done."""

    workers: int
    memory: int | None
    progress: Progress | None


def map_tiles(  # noqa: PLR0913 (a face: every option by its name)
    f: Callable[[NDArray[Any]], Any],
    src: Any,
    dst: Any = None,
    *,
    tile: int | tuple[int, int] = 1024,
    overlap: int | tuple[int, int] = 0,
    mode: str = "reflect",
    cval: Any = 0,
    axes: str = "YX",
    dtype: Any = None,
    cast: str | None = None,
    workers: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """Apply a function to an image of any size, tile by tile.

    Tiles are read, computed and written by several threads at the same time, and memory holds a
    few of them. The result is that of a loop over the tiles of the padded image.

    Parameters
    ----------
    f : callable
        Takes an array, the halo included, and returns one of the same shape, of any pixel type.
        It is called from several threads at once.
    src : path, array, BioReader or LazyArray
        The image; whatever `bioio_tk.imread` opens.
    dst : path or BioWriter, optional
        Where the result goes; by default it is returned.
    tile : int or (int, int)
        Height and width of the tiles in pixels, without the halo.
    overlap : int or (int, int)
        Pixels that `f` sees around a tile, along Y and X. They are cut away from its result.
    mode : {"reflect", "symmetric", "edge", "constant"}
        What it sees there beyond the border of the image, as in `numpy.pad`.
    cval : number
        What that is with ``"constant"``.
    axes : str
        Axes `f` sees, in this order: ``"YX"`` are planes, ``"ZYX"`` stacks, ``"YXC"`` planes with
        all channels.
    dtype : numpy.dtype, optional
        Pixel type of the result. By default it is that of the first tile, which is computed
        before the file is made.
    cast : str, optional
        How results are converted to `dtype`, see `BioWriter`; ``"exact"`` by default.
    workers : int, optional
        Threads, by default one per CPU this process may use.
    memory : int, optional
        Bytes of pixels in flight; what `f` needs for itself comes on top.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes of the result.
    **options
        Which part of the source: ``series level dims select backend``. With a path, how it is
        written, as for `bioio_tk.convert`: ``pyramid compression tile_size overwrite`` ….

    Returns
    -------
    numpy.ndarray, Path or BioWriter
        Where it was written, or the pixels: with the axes of an array or LazyArray that was
        given, else Y, X, Z, C, T without trailing axes of length 1, as a BioReader reads them.

    Raises
    ------
    BioIOError
        `f` raised; the text names the tile, and ``__cause__`` is what it raised.
    SpecError
        An option makes no sense, or `f` returned another shape or pixel type than it may.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(12, dtype="uint8").reshape(3, 4)
    >>> map_tiles(lambda tile: tile * 2, image, tile=2)
    array([[ 0,  2,  4,  6],
           [ 8, 10, 12, 14],
           [16, 18, 20, 22]], dtype=uint8)
    >>> from scipy.ndimage import gaussian_filter                          # doctest: +SKIP
    >>> map_tiles(gaussian_filter, "in.tif", "out.ome.tif", overlap=16)    # doctest: +SKIP
    """
    given = Given(tile, overlap, mode, cval, axes, dtype, cast)
    count = check_workers(workers)
    with ExitStack() as stack:
        image = _opened(src, count, options, stack)
        made = derive(image, "made by a function", MappedSource, f, image, given)
        stack.callback(made.reader.close)
        said = f"map_tiles({_name(f)}, {given})"
        return _delivered(
            made, _dims(src, image), dst, said, _Run(count, memory, progress), options
        )


def reduce(  # noqa: PLR0913 (a face: every option by its name)
    src: Any,
    how: Any,
    dst: Any = None,
    *,
    axis: str | Iterable[str] = "z",
    dtype: Any = None,
    cast: str | None = None,
    workers: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """Join all positions of an axis to one: a projection, a mean over time.

    Parameters
    ----------
    src : path, array, BioReader or LazyArray
        The image; whatever `bioio_tk.imread` opens.
    how : str or callable
        ``"max"``, ``"min"``, ``"mean"``, ``"sum"``, ``"std"`` or ``"median"``; or a function that
        is called as those of NumPy are: ``how(pixels, axis=2)``, with pixels Y, X, Z, C, T, and a
        tuple for several axes. A function and the median need all pixels to join at once; smaller
        tiles are taken for that, but a plane that is joined whole has to fit into memory.
    dst : path or BioWriter, optional
        Where the result goes; by default it is returned.
    axis : str
        One or several of ``y x z c t``: ``"z"``, ``"zt"``.
    dtype : numpy.dtype, optional
        Pixel type of the result. By default that of the image: the mean and the median of whole
        numbers are rounded to the nearest (half to even). A sum has 32 or 64 bits, a standard
        deviation (of all pixels, ddof=0) is a float. With ``dtype="float32"`` nothing is rounded
        to whole numbers.
    cast : str, optional
        How results are converted to `dtype` where they do not fit, see `BioWriter`; ``"exact"``,
        an error, by default.
    workers, memory, progress, **options
        As for `map_tiles`. `memory` counts pixels of the result; each thread reads 16 MB at a time,
        and 64 MB for the median or a function.

    Returns
    -------
    numpy.ndarray, Path or BioWriter
        Where it was written, or the pixels, see `map_tiles`. There the axes that were joined are
        one position long, of an array they are gone.

    Examples
    --------
    >>> import numpy as np
    >>> stack = np.arange(12, dtype="uint8").reshape(3, 2, 2)
    >>> reduce(stack, "max", axis="z", dims="ZYX")
    array([[ 8,  9],
           [10, 11]], dtype=uint8)
    """
    letters = _axes(axis)
    if not callable(how) and how not in HOW:
        raise SpecError(f"how={how!r}: choose one of {', '.join(HOW)}, or give a function")
    count = check_workers(workers)
    with ExitStack() as stack:
        image = _opened(src, count, options, stack)
        if image.dtype.kind == "c" and how in ("std", "median"):
            raise SpecError(f"how={how!r} has no meaning for {image.dtype} pixels")
        args = (image, how, letters, dtype, cast, count)
        made = derive(image, f"joined along {letters}", ReducedSource, *args)
        stack.callback(made.reader.close)
        dims = _dims(src, image)
        if dims is not None:
            dims = "".join(axis for axis in dims if axis not in letters)
        said = f"reduce({_name(how)}, axis={letters.lower()!r})"
        return _delivered(made, dims, dst, said, _Run(count, memory, progress), options)


def assemble(  # noqa: PLR0913 (a face: every option by its name)
    positions: Any,
    dst: Any = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    blend: str = "last",
    fill: Any = 0,
    series: int = 0,
    workers: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """Put images at their places in one large one.

    Parameters
    ----------
    positions : sequence or path
        ``(file, y, x)`` or ``{"file": …, "y": …, "x": …}`` of each, in pixels; or a text file: a
        table with the columns file, y and x, or a stitching vector as MIST writes it
        (``file: a.tif; corr: 1; position: (x, y); grid: (0, 0);``). The smallest y and x become
        row and column 0, whatever they are.
    dst : path or BioWriter, optional
        Where the mosaic goes; by default it is returned.
    folder : path, optional
        Where the files lie; by default beside the text file, or where the process is.
    blend : {"last", "first", "max", "min", "mean"}
        What is seen where files overlap; ``"last"`` is the one that comes later.
    fill : number
        What is seen where there is none.
    series : int
        Which image of each file.
    workers, memory, progress, **options
        As for `map_tiles`; metadata are those of the first file.

    Returns
    -------
    numpy.ndarray, Path or BioWriter
        Where it was written, or the pixels: Y, X, Z, C, T without trailing axes of length 1.

    Raises
    ------
    SpecError
        The files differ in Z, C, T or pixel type; the text names one.
    """
    count = check_workers(workers)
    placed = read_positions(positions, folder)
    args = (placed, blend, fill, series, count)
    reader = BioReader._over(  # noqa: SLF001
        placed[0].path, "mosaic", f"{len(placed)} files side by side", MosaicSource, *args
    )
    with reader:
        said = f"assemble({len(placed)} files, blend={blend!r}, fill={fill!r})"
        return _delivered(
            LazyArray(reader), None, dst, said, _Run(count, memory, progress), options
        )


def stack(files: Any, dst: Any, axis: str = "z", **options: Any) -> Location:
    """Put many files into one image, one after the other along an axis.

    Parameters
    ----------
    files : sequence of paths, glob or file pattern
        The files, in this order; see `bioio_tk.imread`.
    dst : path
        The file to make.
    axis : str
        Along which they follow each other: ``"z"``, ``"c"`` or ``"t"``.
    **options
        As for `bioio_tk.convert`.

    Returns
    -------
    Path
        Where it was written.
    """
    return locate(convert(files, dst, stack=axis, **options).target)


def _opened(src: Any, workers: int, options: dict[str, Any], stack: ExitStack) -> LazyArray:
    """Return the image, or what is selected of it; its keywords are taken out of `options`."""
    given = {name: options.pop(name) for name in _OF_SOURCE if name in options}
    select = given.pop("select", None)
    remote = options.get("storage_options")
    image, mine = open_input(src, workers=workers, storage_options=remote, **given)
    if mine:
        stack.callback(image.reader.close)
    return image if select is None else chosen(image, Options(select=select))


def _dims(src: Any, image: LazyArray) -> str | None:
    """Return the axes of the result in their order; None for those that a reader gives."""
    if isinstance(src, LazyArray):
        return image.dims
    source: Any = image.view().source
    if not isinstance(source, ArraySource):
        return None
    axes = zip(AXES, source._axes, strict=True)  # noqa: SLF001 (an array gets its own order back)
    places = {axis: at for axis, at in axes if at is not None}
    return "".join(sorted(places, key=lambda axis: places[axis]))


def _name(f: Any) -> str:
    return str(getattr(f, "__qualname__", f) if callable(f) else f)


def _axes(axis: Any) -> str:
    letters = "".join(axis).upper() if isinstance(axis, (str, list, tuple)) else ""
    if not letters or not set(letters) <= set(AXES) or len(set(letters)) < len(letters):
        raise SpecError(f"axis={axis!r}: give one or several of y, x, z, c, t, e.g. 'z' or 'zt'")
    return letters


def _delivered(
    made: LazyArray,
    dims: str | None,
    dst: Any,
    said: str,
    run: _Run,
    options: dict[str, Any],
) -> Any:
    """Compute an image into a file, into a writer, or into an array."""
    unknown = [name for name in options if name not in _OF_TARGET]
    if unknown:
        raise TypeError(
            f"{unknown[0]!r} is no option here; there are, for the source, "
            f"{', '.join(_OF_SOURCE)}, and for the file to write {', '.join(_OF_TARGET)}"
        )
    if dst is None or isinstance(dst, BioWriter):
        if options:
            raise SpecError(f"{next(iter(options))}= is for the file to write: give dst= a path")
        if dst is None:
            return _array(made, dims, run)
        _fill(made, dst, run)
        return dst
    if options.get("exists") == "skip":
        raise SpecError(
            "exists='skip' cannot know whether the file was computed in the same way: choose "
            "'error' or 'replace'"
        )
    metadata = options.pop("metadata", None) or {}
    if not isinstance(metadata, dict):
        raise SpecError("metadata= takes a dict here: how the image was made is added to it")
    # with this no plain conversion takes the file for one of its own, that it may skip
    metadata = {"made_by": said, **metadata}
    report = convert(made, dst, metadata=metadata, **run._asdict(), **options)
    return locate(report.target)


def _array(made: LazyArray, dims: str | None, run: _Run) -> NDArray[Any]:
    if run.memory is not None and made.nbytes > run.memory:
        raise OutOfMemoryError(
            f"the result has {made.nbytes} bytes, more than memory={run.memory}: give dst= a file"
        )
    view = made.view()
    out = arrays.empty(view.shape, made.dtype)

    def put(box: Slices5, pixels: NDArray[Any]) -> None:
        out[box] = pixels

    copy(view, put, view.stored(), **run._asdict())
    if dims is None:
        return out[(...,) + (0,) * (5 - len(trim(out.shape)))]
    rest = [axis for axis in AXES if axis not in dims]
    ordered = out.transpose([AXES.index(axis) for axis in (*dims, *rest)])
    return ordered[(...,) + (0,) * len(rest)]


def _fill(made: LazyArray, writer: BioWriter, run: _Run) -> None:
    view, draft = made.view(), writer._draft  # noqa: SLF001
    if not writer.read_only and not draft.sizes:
        writer.shape = view.shape
    if not writer.read_only and draft.dtype is None:
        writer.dtype = made.dtype
    if writer.shape != view.shape:
        raise SpecError(
            f"the writer has an image of {writer.shape} (Y, X, Z, C, T), the result is "
            f"{view.shape}: give it that shape, or none"
        )
    tile = writer._spec().levels[0].tile  # noqa: SLF001
    copy(view, writer.__setitem__, tile, **run._asdict())
