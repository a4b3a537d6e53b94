"""Split: one file of an image for each of its planes, channels, time points or series."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.core.location import Url, locate
from bioio_tk.engine.pool import check_workers, run
from bioio_tk.errors import SpecError, TargetExistsError
from bioio_tk.inputs.open import open_input
from bioio_tk.jobs.batch.job import SPLIT_FIELDS, fields_of, fill_in
from bioio_tk.jobs.convert import convert_image, options_of
from bioio_tk.jobs.options import Options
from bioio_tk.jobs.select import chosen
from bioio_tk.lazy import LazyArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bioio_tk.engine.copy import Progress
    from bioio_tk.jobs.report import ConvertReport

_SERIES = "_s{s}"
"""How the default template ends; left out of a name where a file has one series."""
_AXES = ("t", "c", "z")
_SELECTING = (
    *("select", "t", "c", "z", "y", "x", "planes", "timepoints", "channels"),
    *("num_timepoints", "num_zplanes", "order"),
)


def split_into(
    src: Any,
    template: str,
    axes: Iterable[str],
    *,
    progress: Progress | None = None,
    **given: Any,
) -> list[ConvertReport]:
    """Convert parts of an image to files of their own.

    Parameters
    ----------
    src : str or Path
        The image.
    template : str
        Path of the files with a field for each of `axes`: ``"out/cells_c{c}_t{t}.ome.tif"``; the
        field of series is ``{s}``. Numbers count from 0, of what is selected. Where the file has
        one series only, ``_s{s}`` is left out.
    axes : iterable of str
        What to split by: ``"t"``, ``"c"``, ``"z"``, ``"series"``.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes, all files together.
    **given
        As for `convert`.

    Returns
    -------
    list of ConvertReport
        One for each file, in the order of series, T, C, Z.

    Raises
    ------
    TargetExistsError
        One of the files exists; nothing was converted.
    """
    axes = tuple(axes)
    for axis in axes:
        if SPLIT_FIELDS[axis] not in fields_of(template):
            raise SpecError(f"{template!r} has no field {{{SPLIT_FIELDS[axis]}}} for {axis}")
    options = options_of(**given)
    with ExitStack() as stack:
        parts = list(_parts(src, template, axes, options, stack))
        _check_free((target for _, target in parts), options)
        return _converted(parts, _unselected(options), progress)


def _check_free(targets: Iterable[str], options: Options) -> None:
    if (options.exists or "error") != "error" or options.dry_run:
        return
    there = next((t for t in targets if not isinstance(locate(t), Url) and Path(t).exists()), None)
    if there is not None:
        raise TargetExistsError(
            f"{there!r} exists: nothing was converted; pass exists='skip' or exists='replace'"
        )


def _parts(
    src: Any, template: str, axes: tuple[str, ...], options: Options, stack: ExitStack
) -> Iterator[tuple[LazyArray, str]]:
    """Yield each part of the image and where it goes."""
    number = options.series or 0
    last = number
    while number <= last:
        image = _opened(src, number, options, stack)
        count = image.reader.n_series
        if "series" in axes and options.series is None:
            last = count - 1
        text = template if count > 1 else template.replace(_SERIES, "")
        yield from _of_image(chosen(image, options), number, text, axes)
        number += 1


def _opened(src: Any, number: int, options: Options, stack: ExitStack) -> LazyArray:
    image, mine = open_input(
        src,
        series=number,
        level=options.level,
        dims=options.dims,
        backend=options.backend,
        storage_options=options.storage_options if isinstance(locate(src), Url) else None,
        workers=check_workers(options.workers),
        fill=options.fill,
    )
    if mine:
        stack.callback(image.reader.close)
    return image


def _of_image(
    image: LazyArray, number: int, template: str, axes: tuple[str, ...]
) -> Iterator[tuple[LazyArray, str]]:
    sizes = [image.shape[image.dims.index(a.upper())] if a in axes else 1 for a in _AXES]
    for at in product(*map(range, sizes)):
        where = dict(zip(_AXES, at, strict=True))
        key = tuple(
            slice(where[a], where[a] + 1) if a in axes else slice(None) for a in image.dims.lower()
        )
        values = {SPLIT_FIELDS[a]: where.get(a, number) for a in axes}
        yield image[key], fill_in(template, values)


def _unselected(options: Options) -> Options:
    """Return the options without what is selected, which is done already."""
    default = Options()
    cleared: dict[str, Any] = {name: getattr(default, name) for name in _SELECTING}
    return replace(options, folders=True, **cleared)


def _converted(
    parts: list[tuple[LazyArray, str]], options: Options, progress: Progress | None
) -> list[ConvertReport]:
    """Convert the parts, several at a time: each is small, and its beginning and end take time."""
    workers = check_workers(options.workers)
    reports: dict[int, ConvertReport] = {}
    lock = threading.Lock()
    total = sum(image.nbytes for image, _ in parts)
    done = 0

    def one(number: int) -> None:
        nonlocal done
        image, target = parts[number]
        report = convert_image(image, target, options)
        with lock:
            reports[number] = report
            done += image.nbytes
            if progress is not None:
                progress(done, total)

    run(one, range(len(parts)), workers)
    return [reports[number] for number in range(len(parts))]
