"""open_input: whatever an image can come from, as a LazyArray."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.core.location import Url, locate
from bioio_tk.core.pattern import Pattern, has_fields, has_wildcards
from bioio_tk.engine.pool import check_workers
from bioio_tk.errors import SpecError
from bioio_tk.inputs.array import is_array, open_array
from bioio_tk.inputs.files import find_files, grid_of, list_files
from bioio_tk.inputs.stack import Opening, open_stack
from bioio_tk.lazy import LazyArray
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from collections.abc import Sequence

_KINDS = (
    "give a path, a URL, a list of paths, a file pattern ('img_t{t:ddd}.tif'), an array, a "
    "BioReader, or a generator with shape= and dtype="
)


def open_input(  # noqa: PLR0913 - each is a way to say what the input is
    src: Any,
    *,
    series: int | None = None,
    level: int | None = None,
    dims: str | None = None,
    backend: str | None = None,
    group: str = "",
    storage_options: dict[str, Any] | None = None,
    workers: int | None = None,
    stack: str | None = None,
    fill: Any = None,
    shape: Sequence[int] | None = None,
    dtype: Any = None,
) -> tuple[LazyArray, bool]:
    """Return an image as a lazy array, whatever it comes from.

    Parameters
    ----------
    src : str, Path, Url, array, BioReader, LazyArray, list or iterable
        * A file, a folder that is an image, or a URL.
        * A path with fields (`core.pattern.Pattern`) or wildcards, where no file is called so:
          all files that match, as one image. Fields called t, c or z (or time, channel, plane …)
          say where each lies; files found by wildcards are taken in natural order.
        * A list of paths, readers or arrays, side by side in the order given.
        * An array: NumPy, dask, Zarr, h5py, TensorStore, xarray.
        * A generator, or another iterable, of planes or of tiles; see `open_stream`.
    series, level : int, optional
        Which image of the file and which of its resolutions; the first by default.
    dims : str, optional
        The axes of an array, slowest first, where it does not name them itself: ``"ZYX"``.
    backend, group, storage_options
        As in `BioReader`.
    workers : int, optional
        Threads that read; by default one per CPU.
    stack : {"t", "c", "z"}, optional
        Along which axis the files of a list, or of a name with wildcards, lie; T by default.
    fill : number, optional
        The pixels of what is missing between the files of a pattern; by default that is an error.
    shape, dtype : optional
        Size and pixel type of what a generator gives.

    Returns
    -------
    image : LazyArray
        Axes Y, X, Z, C, T.
    owned : bool
        Whether it was opened here, and is the caller's to close.

    Raises
    ------
    SpecError
        `src` is none of these, or an argument does not fit it.
    FileNotFoundError
        There is no such file, or none that matches.
    """
    workers = check_workers(workers)
    opening = Opening(series or 0, level or 0, dims, backend, group, storage_options)
    if isinstance(src, BioReader | LazyArray):
        return _as_it_is(src, series, level), False
    if is_array(src):
        _only_one(src, series, level)
        return LazyArray(open_array(src, dims, workers=workers)), True
    if isinstance(src, str | os.PathLike | Url):
        return LazyArray(_path(src, opening, workers, stack, fill)), True
    if isinstance(src, list | tuple):
        return LazyArray(_list(src, opening, workers, stack)), True
    if hasattr(src, "__iter__") and not isinstance(src, bytes | bytearray | io.IOBase):
        from bioio_tk.inputs.stream import open_stream

        return LazyArray(open_stream(src, shape, dtype, dims, workers=workers)), True
    raise SpecError(f"{src!r:.80} (a {type(src).__name__}) is no image; {_KINDS}")


def _as_it_is(src: BioReader | LazyArray, series: int | None, level: int | None) -> LazyArray:
    reader = src.reader if isinstance(src, LazyArray) else src
    if series not in (None, reader.series) or level not in (None, reader.level):
        raise SpecError(
            f"the reader has series {reader.series}, level {reader.level} open: open another one "
            f"for series={series}, level={level}, or give the path"
        )
    return src if isinstance(src, LazyArray) else LazyArray(src)


def _only_one(src: Any, series: int | None, level: int | None) -> None:
    if series or level:
        raise SpecError(
            f"series={series}, level={level}: a {type(src).__name__} is one image at one resolution"
        )


def _path(src: Any, opening: Opening, workers: int, stack: str | None, fill: Any) -> BioReader:
    place = locate(src)
    text = os.fspath(src) if isinstance(place, Path) and not isinstance(src, Url) else ""
    if not (has_fields(text) or has_wildcards(text)) or _exists(place):
        if stack is not None or fill is not None:
            raise SpecError(
                f"stack= and fill= are for several files, and {str(place)!r} is one: give a list, "
                "or a pattern such as 'img_t{t:d+}.tif'"
            )
        return BioReader(
            place,
            workers,
            opening.backend,
            series=opening.series,
            level=opening.level,
            dims=opening.dims,
            group=opening.group,
            storage_options=opening.storage_options,
        )
    if has_fields(text):
        return _pattern(text, opening, workers, stack, fill)
    if fill is not None:
        raise SpecError("fill= is for patterns with fields: wildcards do not tell what is missing")
    return _list(list_files(text), opening, workers, stack)


def _exists(place: Any) -> bool:
    try:
        return not isinstance(place, Path) or place.exists()
    except OSError:  # a name that no file can have
        return False


def _pattern(text: str, opening: Opening, workers: int, stack: str | None, fill: Any) -> BioReader:
    pattern = Pattern(text)
    found = find_files(pattern)
    grid = grid_of(found, pattern.fields, text, allow_missing=fill is not None)
    if stack is not None and sorted(_axes(stack)) != sorted(grid.axes):
        raise SpecError(
            f"stack={stack!r}, and the fields of {text!r} are the axes "
            f"{', '.join(grid.axes) or 'of nothing'}: leave stack= away, the fields say it all"
        )
    axes, counts = grid.axes or "T", [len(v) for v in grid.values] or [1]
    named = axes.find("C")
    names = [str(v) for v in grid.values[named]] if named >= 0 and grid.axes else []
    if names and not any(isinstance(v, str) for v in grid.values[named]):
        names = []
    return open_stack(grid.parts, axes, counts, opening, names=names, fill=fill, workers=workers)


def _list(src: Sequence[Any], opening: Opening, workers: int, stack: str | None) -> BioReader:
    axes = _axes("t" if stack is None else stack)
    if len(axes) != 1:
        raise SpecError(
            f"stack={stack!r}: files in a row lie along one axis, t, c or z; for several give a "
            "pattern that names them, such as 'img_t{t:d+}_c{c}.tif'"
        )
    if not src:
        raise SpecError("an empty list: an image is made of at least one file")
    parts: list[Any] = []
    for item in src:
        if isinstance(item, BioReader | LazyArray) or is_array(item):
            parts.append(item)
        elif isinstance(item, str | os.PathLike | Url):
            parts.append(locate(item))
        else:
            raise SpecError(
                f"{item!r:.60} in the list (a {type(item).__name__}) is no image; a list holds "
                "paths, arrays or readers"
            )
    return open_stack(parts, axes, [len(parts)], opening, workers=workers)


def _axes(stack: Any) -> str:
    """Return the axes that are named, ``"c,z"`` or ``"cz"``, as letters."""
    letters = stack.replace(",", "").replace(" ", "").upper() if isinstance(stack, str) else ""
    if not letters or set(letters) - set("TCZ") or len(set(letters)) < len(letters):
        raise SpecError(
            f"stack={stack!r}: name the axes t, c, z along which the files lie, each once"
        )
    return letters
