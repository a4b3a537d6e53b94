"""imwrite: an array, or anything that can be read, into a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bioio_tk.backends import registry
from bioio_tk.core.location import Location, Url, locate
from bioio_tk.errors import SpecError
from bioio_tk.jobs.convert import options_of, run
from bioio_tk.jobs.names import is_image

_IN_MBO: dict[
    str, tuple[str, Callable[[Any], Any]]
] = {  # what mbo_utilities calls what is done here in another way
    "sharded": ("shards", lambda value: None if value else False),
    "compressor": ("compression", lambda value: value),
    "pyramid_max_layers": ("levels", lambda value: int(value) + 1),
    "pyramid_method": ("downsample", lambda value: value),
}
_NO_LEVELS = ("pyramid", "levels", "pyramid_max_layers")


def _has_levels(target: Location, ext: str | None) -> bool:
    """Return whether smaller resolutions are made without being asked for: BigDataViewer's are."""
    name = target if ext is None else Path(f"image.{ext.lstrip('.')}")
    return isinstance(name, Path) and is_image(name) and registry.for_writing(name).gathers


def _same(value: Any) -> Any:
    return value


def imwrite(  # noqa: PLR0913, PLR0917 (a face; the order is that of mbo_utilities)
    array: Any,
    path: str | os.PathLike[str],
    ext: str | None = None,
    planes: Any = None,
    frames: Any = None,
    channels: Any = None,
    num_frames: int | None = None,
    register_z: bool = False,
    roi_mode: str | None = None,
    roi: Any = None,
    metadata: Any = None,
    overwrite: bool = False,
    order: Any = None,
    target_chunk_mb: float | None = None,
    progress_callback: Any = None,
    show_progress: bool = False,
    output_name: str | None = None,
    output_suffix: str | None = None,
    dataset_name: str | None = None,
    dim_order: str | None = None,
    **options: Any,
) -> Location:
    """Write an array to a file, or into a folder under a name that says what is in it.

    Parameters
    ----------
    array : array, path, BioReader, LazyArray, generator, …
        The image: anything `imread` takes. The axes of an array that does not name them are
        taken by their number, (T, [C,] [Z,] Y, X), or as `dim_order` says.
    path : str or Path
        A file, its ending says the format; folders on the way are made. Or a folder: then `ext`
        (``".tiff"`` by default) says the format, and the file is named by what it holds.
    ext, planes, frames, channels, num_frames, register_z, roi_mode, roi, metadata, overwrite, \
order, target_chunk_mb, progress_callback, show_progress, output_name, output_suffix, \
dataset_name, dim_order
        As for `convert`. `planes`, `frames` and `channels` are counted from 1.
    **options
        Every other keyword of `convert`, and those that mbo_utilities has for Zarr: ``sharded``,
        ``compressor``, ``pyramid_max_layers``, ``pyramid_method``. Smaller resolutions are only
        made where one of ``pyramid=True``, ``levels=`` asks for them, and for BigDataViewer.

    Returns
    -------
    Path
        The file that was written; the folder, where there are several; for a URL a `Url`.

    Raises
    ------
    TypeError
        A keyword is unknown.
    TargetExistsError
        The file exists; see `overwrite`.

    Examples
    --------
    >>> from bioio_tk import imwrite
    >>> imwrite(stack, "cells.ome.tif", dim_order="ZYX")          # doctest: +SKIP
    PosixPath('cells.ome.tif')
    >>> imwrite(stack, "out", ext=".zarr", planes=[1, 7, 14])     # doctest: +SKIP
    PosixPath('out/zplane01-14+7.zarr')
    """
    if isinstance(array, (str, os.PathLike)) and hasattr(path, "shape"):
        raise TypeError("imwrite(array, path): the array comes first, then the path")
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("array", "path", "options") and value is not None
    }
    for name, value in options.items():
        keyword, change = _IN_MBO.get(name, (name, _same))
        if keyword in given or (keyword != name and keyword in options):
            raise SpecError(f"{name}= and {keyword}= are two names of one thing: give one of them")
        given[keyword] = change(value)
    target = locate(path)
    if not any(name in options for name in _NO_LEVELS):
        given["pyramid"] = _has_levels(target, ext)
    elif "pyramid_max_layers" in options and not options.get("pyramid"):
        given.pop("levels")  # as there: a number of layers alone asks for none
        given["pyramid"] = False
    if not isinstance(target, Url):
        folder = not target.suffix or (target.is_dir() and not is_image(target))
        if ext is None and folder:
            given["ext"] = ".tiff"
    report = run(array, path, replace(options_of(**given), folders=True))
    return locate(report.target)
