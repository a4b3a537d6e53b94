"""Smaller resolutions for the views of a BigDataViewer dataset of any writer, in place."""

from __future__ import annotations

import time as clock
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.bdv.levels import add_levels
from bioio_tk.bdv.scheme import check_compression, triples
from bioio_tk.engine.pool import check_workers
from bioio_tk.errors import DamagedFileError, FormatError, UnsupportedError
from bioio_tk.jobs.bdv import HDF5_ENDINGS, Report, local_file
from bioio_tk.meta.bdv import HDF5, loader_path, parse

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from bioio_tk.core.views import Shape3, ViewId
    from bioio_tk.engine.copy import Progress
    from bioio_tk.meta.bdv import SpimData


@dataclass(frozen=True, slots=True)
class PyramidReport(Report):
    """What `add_pyramid` did.

    Attributes
    ----------
    path : str
        The HDF5 file.
    made, left : tuple of ViewId
        Views that have got smaller resolutions, and those that had them.
    levels : dict of int to tuple
        Of each setup: factors of all its resolutions along Z, Y, X.
    pixel_bytes : int
        Size of the pixels they were made from.
    seconds : float
        Time it took.
    """

    path: str
    made: tuple[ViewId, ...]
    left: tuple[ViewId, ...]
    levels: dict[int, tuple[Shape3, ...]]
    pixel_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        found = Report.to_dict(self)
        for name in ("made", "left"):
            found[name] = [view._asdict() for view in getattr(self, name)]
        return found


def add_pyramid(
    path: str | os.PathLike[str],
    subsamp: Sequence[Sequence[int]] | None = None,
    blockdim: Sequence[Sequence[int]] | None = None,
    compression: str | None = "gzip",
    *,
    compression_level: int | None = None,
    max_workers: int | None = None,
    progress: Progress | None = None,
) -> PyramidReport:
    """Add smaller resolutions to all views of a dataset, in place, whatever their size.

    Memory is bounded. If it is interrupted the dataset is as good as before, and the same call
    goes on: views that have got their resolutions are left alone. Readers see the new resolutions
    when all views have them.

    Parameters
    ----------
    path : str or Path
        The XML or the HDF5 file, of any writer.
    subsamp : sequence of (int, int, int), optional
        Factors of the new resolutions along Z, Y, X, such as ``((1, 2, 2), (2, 4, 4))``; by default
        those that BigDataViewer proposes.
    blockdim : sequence of (int, int, int), optional
        Their blocks along Z, Y, X, or one for all.
    compression : str or None
        As for `BdvWriter`.
    compression_level : int, optional
        0 to 9 for gzip.
    max_workers : int, optional
        Threads, by default one per CPU this process may use.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes of the full resolution. What it raises ends
        the work.

    Returns
    -------
    PyramidReport
        What was done.

    Raises
    ------
    SpecError
        The factors make no sense, or a setup has other smaller resolutions.
    UnsupportedError
        The pixels are not in HDF5, or the full resolution is not stored.
    TargetBusyError
        Another writer is at work on the file.
    """
    wanted, blocks = triples("subsamp", subsamp), triples("blockdim", blockdim)
    kind = check_compression(compression, compression_level)
    workers = check_workers(max_workers)
    began = clock.perf_counter()
    place, data = _pixels_of(path)
    file = registry.load_view_store().open(place, writable=True)
    try:
        setups = {} if data is None else data.setups
        added = add_levels(
            file,
            {number: setup.voxel_size for number, setup in setups.items()},
            wanted,
            blocks,
            compression=kind,
            level=compression_level,
            workers=workers,
            scratch_folder=place.parent,
            progress=progress,
        )
    finally:
        file.close()
    levels = {setup: tuple(m.factor for m in found) for setup, found in added.mipmaps.items()}
    seconds = clock.perf_counter() - began
    return PyramidReport(str(place), added.made, added.left, levels, added.nbytes, seconds)


def _pixels_of(path: str | os.PathLike[str]) -> tuple[Path, SpimData | None]:
    """Return the HDF5 file of a dataset, and what its XML says, where there is one."""
    place = local_file(path)
    if place.name.lower().endswith(HDF5_ENDINGS):
        return place, _described(place.with_suffix(".xml"))
    data = parse(place.read_bytes(), str(place))
    if data.loader.format != HDF5:
        raise UnsupportedError(
            f"{str(place)!r} keeps its pixels as {data.loader.format!r}: smaller resolutions are "
            "added to HDF5 files ('bdv.hdf5')"
        )
    return loader_path(data, place), data


def _described(xml: Path) -> SpimData | None:
    """Return what an XML says; None where there is none, or one of something else."""
    if not xml.exists():
        return None
    try:
        return parse(xml.read_bytes(), str(xml))
    except DamagedFileError:
        raise
    except FormatError:
        return None
