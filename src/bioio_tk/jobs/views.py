"""Views: what the stacks of a BigDataViewer dataset are in another one made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioio_tk.core.spec import picked
from bioio_tk.core.stacks import Layout, Stack
from bioio_tk.core.text import plural
from bioio_tk.core.views import ViewAttribute, ViewSetup, ViewTransform
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import PhysicalSize
    from bioio_tk.core.tiling import Span
    from bioio_tk.core.views import Point3, View
    from bioio_tk.lazy import LazyArray

SELECTION = "selection"
"""Name of the transform that puts a part of an image where it was in the whole."""


class Taken(NamedTuple):
    """What is taken of an image.

    Attributes
    ----------
    series : int
        Which image of the source.
    picks : tuple of 5 range or integer array
        Positions along Y, X, Z, C, T.
    zoom : Point3
        Pixels of the full resolution that are one pixel of the level, along X, Y, Z.
    size, shape : Shape5
        Of the level, and of what is left, along Y, X, Z, C, T.
    """

    series: int
    picks: tuple[Span, Span, Span, Span, Span]
    zoom: Point3
    size: Shape5
    shape: Shape5

    @classmethod
    def of(cls, image: LazyArray) -> Taken:
        """Return what a selection is of."""
        reader = image.reader
        full, seen = reader.level_shapes[0], reader.level_shapes[reader.level]
        y, x, z = (float(-(-a // b)) for a, b in zip(full[:3], seen[:3], strict=True))
        return cls(reader.series, image.picks, (x, y, z), seen, image.spec.shape)

    @property
    def is_whole(self) -> bool:
        """Nothing was left out."""
        steps = all(step == (0.0, 1.0) for step in self.steps)
        return steps and all(
            pick == range(n) for pick, n in zip(self.picks, self.size, strict=True)
        )

    @property
    def steps(self) -> tuple[tuple[float, float], ...]:
        """First position and distance of the positions along X, Y, Z, in full resolution."""
        y, x, z = (_line(pick) for pick in self.picks[:3])
        return tuple(
            (zoom * first + 0.5 * (zoom - 1), zoom * step)
            for (first, step), zoom in zip((x, y, z), self.zoom, strict=True)
        )


def left_of_views(image: LazyArray) -> list[str]:
    """Return what formats without views do not keep of what is selected, for the report."""
    *_, c, t = image.picks
    mine = [
        view
        for view in image.reader.views
        if view.series == image.reader.series and view.c in c and view.t in t
    ]
    notes = []
    missing = sum(view.missing for view in mine)
    if missing:
        notes.append(f"{plural(missing, 'view is', 'views are')} missing, and 0 in the new image")
    if any(_is_moved(view.affine) for view in mine if not view.missing):
        notes.append(
            "the places of the views (their affines) are not kept: only another BigDataViewer "
            "dataset ('NAME.xml') has room for them"
        )
    return notes


def _is_moved(affine: NDArray[np.float64]) -> bool:
    """Return whether a view is more than scaled along its axes."""
    return bool(np.any(affine[:, 3]) or np.any(affine[:, :3] != np.diag(affine.diagonal())))


def place_of(image: LazyArray, stages: Sequence[PhysicalSize]) -> PhysicalSize:
    """Return where what is selected of an image lies: where it says so, or the stage stood.

    Parameters
    ----------
    image : LazyArray
        One image of a source.
    stages : sequence of PhysicalSize
        Where the stage stood for each image of the source, see `stage_positions`.
    """
    reader = image.reader
    spec = reader._spec()  # noqa: SLF001
    if not any(spec.position) and reader.series < len(stages):
        spec = replace(spec, position=stages[reader.series])
    return picked(spec, image.picks).position


def layout_of_views(source: Any, taken: Sequence[Taken]) -> Layout | None:
    """Return the views for what is taken of a dataset; None where the source is none.

    Ids, names, transforms and gaps stay. A part of a stack is put where it was.

    Raises
    ------
    SpecError
        Channels or time points are picked in another order than that of their ids, or twice.
    """
    views: Sequence[View] | None = getattr(source, "views", None)
    if views is None:
        return None
    known = {(view.series, view.c, view.t): view for view in views}
    stacks = {
        Stack(image, c, t): known[part.series, int(from_c), int(from_t)]
        for image, part in enumerate(taken)
        for c, from_c in enumerate(part.picks[3])
        for t, from_t in enumerate(part.picks[4])
    }
    times: dict[int, int] = {}
    setups: dict[tuple[int, int], ViewSetup] = {}
    for stack, view in stacks.items():
        if times.setdefault(stack.t, view.time) != view.time:
            raise SpecError("the images have other time points each: convert them one by one")
        if (stack.image, stack.c) not in setups:
            setups[stack.image, stack.c] = _setup(source, view, taken[stack.image])
    _check_order("T", list(times.values()))
    for image in range(len(taken)):
        mine = (setup for (of, _), setup in setups.items() if of == image)
        _check_order("C", [setup.attributes.get("channel", setup.id) for setup in mine])
    moved = [_moved(part) for part in taken]
    return Layout(
        setups=setups,
        times=tuple(times.values()),
        attributes=_attributes(source, list(stacks.values())),
        transforms={
            stack: (*view.transforms, *moved[stack.image]) for stack, view in stacks.items()
        },
        missing=frozenset(stack for stack, view in stacks.items() if view.missing),
        created_by=source.data.created_by,
    )


def _setup(source: Any, view: View, taken: Taken) -> ViewSetup:
    y, x, z, *_ = taken.shape
    said: ViewSetup = source.data.setups.get(view.setup) or ViewSetup(view.setup, view.name)
    voxel = said.voxel_size
    if voxel is not None:
        a, b, c = (side * abs(step) for side, (_, step) in zip(voxel, taken.steps, strict=True))
        voxel = (a, b, c)
    return replace(said, size=(z, y, x), voxel_size=voxel, attributes=dict(view.attributes))


def _attributes(source: Any, views: Sequence[View]) -> dict[str, tuple[ViewAttribute, ...]]:
    """Return the values of attributes that views have, with all that is said of them."""
    found: dict[str, dict[int, ViewAttribute]] = {}
    for view in views:
        for kind, number in view.attributes.items():
            values = found.setdefault(kind, {})
            if number not in values:
                said = source.data.attributes.get(kind, {}).get(number)
                values[number] = said or ViewAttribute(number, view.labels.get(kind, ""))
    return {kind: tuple(values[n] for n in sorted(values)) for kind, values in found.items()}


def _moved(taken: Taken) -> tuple[ViewTransform, ...]:
    """Return the transform from the pixels of a part to those of the whole; none for the whole."""
    (x, dx), (y, dy), (z, dz) = taken.steps
    matrix = (dx, 0.0, 0.0, x, 0.0, dy, 0.0, y, 0.0, 0.0, dz, z)
    same = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    return () if matrix == same else (ViewTransform(matrix, SELECTION),)


def _line(pick: Span) -> tuple[float, float]:
    """Return first position and distance of positions; the mean where these differ."""
    first, last = float(pick[0]), float(pick[-1])
    return first, (last - first) / (len(pick) - 1) if len(pick) > 1 else 1.0


def _check_order(axis: str, ids: Sequence[int]) -> None:
    if any(a >= b for a, b in pairwise(ids)):
        raise SpecError(
            f"the ids of what is picked of {axis} are {ids[:8]}: BigDataViewer shows them in "
            "ascending order, so pick them in that order, and each once"
        )
