"""The smaller resolutions of all stacks of a file, made from what is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bioio_tk.bdv.pyramid import make_levels, with_smaller
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bioio_tk.backends.base import ViewStore
    from bioio_tk.core.downsample import Method
    from bioio_tk.core.views import Mipmap, Point3, Shape3, ViewId
    from bioio_tk.engine.copy import Progress


@dataclass(frozen=True, slots=True)
class Added:
    """What `add_levels` did.

    Attributes
    ----------
    made, left : tuple of ViewId
        Views that have got smaller resolutions, and those that had them.
    mipmaps : dict of int to tuple of Mipmap
        All resolutions of each setup that has views.
    nbytes : int
        Size of the pixels they were made from.
    """

    made: tuple[ViewId, ...]
    left: tuple[ViewId, ...]
    mipmaps: dict[int, tuple[Mipmap, ...]]
    nbytes: int


def add_levels(  # noqa: PLR0913
    file: ViewStore,
    voxels: Mapping[int, Point3 | None],
    subsamp: Sequence[Shape3] | None,
    blockdim: Sequence[Shape3] | None,
    *,
    compression: str,
    level: int | None = None,
    workers: int,
    method: Method = "mean",
    scratch_folder: Path,
    progress: Progress | None = None,
) -> Added:
    """Make the smaller resolutions of all views that lack them.

    Readers see them when all views have them; what an interrupted run has made is left as it is.

    Parameters
    ----------
    file : ViewStore
        Open to be written.
    voxels : mapping of int to Point3 or None
        Size of the voxels of each setup along X, Y, Z, where it is known.
    subsamp, blockdim
        See `with_smaller`.
    compression, level, workers, method, scratch_folder
        See `make_levels`.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes of the full resolution.

    Raises
    ------
    SpecError
        The factors make no sense, or a setup has other smaller resolutions.
    UnsupportedError
        The full resolution is not stored.
    """
    views = file.views()
    mipmaps = {
        setup: _planned(file, setup, voxels.get(setup), subsamp, blockdim)
        for setup in sorted({view.setup for view in views})
    }
    left = tuple(view for view in views if _has_all(file, view, mipmaps[view.setup]))
    todo = sorted({*views} - {*left}, key=lambda view: (view.setup, view.time))
    before, total = 0, sum(_nbytes(file, view) for view in todo)
    for setup, levels in mipmaps.items():
        for view in todo:
            if view.setup != setup:
                continue
            make_levels(
                file,
                view,
                levels,
                compression=compression,
                level=level,
                workers=workers,
                method=method,
                scratch_folder=scratch_folder,
                progress=_after(progress, before, total),
            )
            before += _nbytes(file, view)
    for setup, levels in mipmaps.items():  # at the end: channels of a tile are read as one image
        file.set_mipmaps(setup, levels)
    file.flush()
    return Added(tuple(sorted(todo)), left, mipmaps, total)


def _planned(
    file: ViewStore,
    setup: int,
    voxel: Point3 | None,
    wanted: Sequence[Shape3] | None,
    blocks: Sequence[Shape3] | None,
) -> tuple[Mipmap, ...]:
    """Return all resolutions the stacks of a setup will have."""
    scheme = file.scheme(setup)
    there = scheme.mipmaps
    if len(there) < 2:
        sizes = (file.shape(view) for view in file.views() if view.setup == setup)
        size = max(sizes, key=math.prod)
        return with_smaller(there[0], size, voxel, scheme.dtype.itemsize, wanted, blocks)
    if wanted is not None and [m.factor for m in there[1:]] != list(wanted):
        raise SpecError(
            f"setup {setup} has the smaller resolutions {[m.factor for m in there[1:]]} (Z, Y, "
            "X) already: leave subsamp out to complete these, or write the views anew"
        )
    return there


def _has_all(file: ViewStore, view: ViewId, mipmaps: Sequence[Mipmap]) -> bool:
    shapes = file.shapes(view)
    if len(shapes) != len(mipmaps):
        return False
    wanted = [mipmap.shape(shapes[0]) for mipmap in mipmaps]
    # Fiji's are a pixel smaller where the sizes are odd
    return all(
        abs(a - b) <= 1
        for pair in zip(shapes, wanted, strict=True)
        for a, b in zip(*pair, strict=True)
    )


def _nbytes(file: ViewStore, view: ViewId) -> int:
    """Return the size of the pixels of a view."""
    return math.prod(file.shape(view)) * file.scheme(view.setup).dtype.itemsize


def _after(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    tell = progress
    return lambda done, _: tell(before + done, total)
