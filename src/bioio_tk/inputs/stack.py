"""StackSource: many images of one size as one, side by side along T, C or Z."""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends.base import Caps
from bioio_tk.core.location import Url
from bioio_tk.core.region import AXES, Shape5
from bioio_tk.core.spec import Address, Channel, ImageSpec, Level
from bioio_tk.engine.pool import Turns
from bioio_tk.engine.read import settle
from bioio_tk.errors import ClosedError, SpecError
from bioio_tk.inputs.array import is_array, open_array, with_workers
from bioio_tk.inputs.held import Held
from bioio_tk.lazy import LazyArray
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.location import Location
    from bioio_tk.core.region import Slices5
    from bioio_tk.engine.copy import View

_MOST_OPEN = 32
"""Files that are open at the same time."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How each image of a stack is opened; as the keywords of `BioReader`."""

    series: int = 0
    level: int = 0
    dims: str | None = None
    backend: str | None = None
    group: str = ""
    storage_options: dict[str, Any] | None = None

    def open(self, part: Any) -> LazyArray:
        """Return an image: of a path, of an array; what is open already stays as it is."""
        if isinstance(part, Held):
            return LazyArray(open_array(part.array, self.dims, workers=1))
        if isinstance(part, LazyArray):
            return part
        if isinstance(part, BioReader):
            return LazyArray(part)
        return LazyArray(
            BioReader(
                part,
                1,
                self.backend,
                series=self.series,
                level=self.level,
                dims=self.dims,
                group=self.group,
                storage_options=self.storage_options,
            )
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """What a stack is made of; all that is needed to read it once more in another process.

    Attributes
    ----------
    parts : tuple
        Paths, readers or arrays, the last of `axes` fastest; None where one is missing.
    axes : str
        The axes along which they lie side by side, slowest first: ``"TC"``.
    bounds : tuple of tuple of int
        For each of these axes where each image begins, and after the last one its end.
    opening : Opening
        How they are opened.
    spec : ImageSpec
        The whole.
    caps : Caps
        Of the first image.
    xml : str or None
        Its document, with the geometry of the whole.
    notes : tuple of str
        What is worth knowing.
    fill : number
        The pixels of what is missing.
    """

    parts: tuple[Any, ...]
    axes: str
    bounds: tuple[tuple[int, ...], ...]
    opening: Opening
    spec: ImageSpec
    caps: Caps
    xml: str | None
    notes: tuple[str, ...]
    fill: Any

    def sizes(self, place: Sequence[int]) -> Shape5:
        """Return the size that the image at a place of the grid must have."""
        shape = list(self.spec.shape)
        for axis, bound, k in zip(self.axes, self.bounds, place, strict=True):
            shape[AXES.index(axis)] = bound[k + 1] - bound[k]
        return tuple(shape)  # type: ignore[return-value]


def open_stack(
    parts: Sequence[Any],
    axes: str,
    counts: Sequence[int],
    opening: Opening,
    *,
    names: Sequence[str] = (),
    fill: Any = None,
    workers: int | None = None,
) -> BioReader:
    """Return a reader of many images that lie side by side.

    Parameters
    ----------
    parts : sequence
        Paths, readers or arrays, the last of `axes` fastest; None where one is missing.
    axes : str
        The axes along which they lie side by side, slowest first: ``"TC"``.
    counts : sequence of int
        How many there are along each of them.
    opening : Opening
        How they are opened.
    names : sequence of str
        What the positions along C are called; () for what the images say.
    fill : number, optional
        The pixels of what is missing.
    workers : int, optional
        Threads that read.

    Raises
    ------
    SpecError
        The images do not fit together, or `fill` is no pixel of theirs.
    """
    kept = tuple(Held(p) if is_array(p) else p for p in parts)
    at = next(i for i, part in enumerate(kept) if part is not None)
    first = opening.open(kept[at])
    try:
        layout = _layout(kept, axes, tuple(counts), opening, first, fill)
        layout = replace(layout, spec=_channels(layout, first.spec, names))
        layout = replace(layout, xml=_document(first, layout.spec))
    finally:
        if not isinstance(kept[at], BioReader | LazyArray):
            first.reader.close()
    reason = f"{sum(p is not None for p in kept)} images along {', '.join(axes)}"
    path = _called(kept[at])
    reader = BioReader._over(path, "stack", reason, StackSource, layout)  # noqa: SLF001
    return with_workers(reader, workers)


def _layout(
    parts: tuple[Any, ...],
    axes: str,
    counts: tuple[int, ...],
    opening: Opening,
    first: LazyArray,
    fill: Any,
) -> Layout:
    view, spec = first.view(), first.spec
    settle(view.source, view.image, view.level)
    lengths = _lengths(parts, axes, counts, opening, spec)
    bounds = tuple((0, *accumulate(many)) for many in lengths)
    shape, tile = list(view.shape), list(view.stored())
    for axis, many, bound in zip(axes, lengths, bounds, strict=True):
        at = AXES.index(axis)
        shape[at] = bound[-1]
        tile[at] = math.gcd(min(tile[at], many[0]), *many)
    level = Level(tuple(shape), tuple(map(min, tile, shape)))  # type: ignore[arg-type]
    caps = view.source.caps
    return Layout(
        parts,
        axes,
        bounds,
        opening,
        replace(spec, levels=(level,)),
        Caps(
            parallel_read=caps.parallel_read,
            costly_tiles=caps.costly_tiles,
            waits=caps.waits,
            forks=caps.forks,
        ),
        None,
        first.reader.notes,
        _fill(fill, spec) if None in parts else None,
    )


def _lengths(
    parts: tuple[Any, ...], axes: str, counts: tuple[int, ...], opening: Opening, spec: ImageSpec
) -> list[tuple[int, ...]]:
    """Return how long the images are along each axis of the stack.

    In a series of files that are stacks themselves the last one is often shorter, so all are
    looked at; of single planes, of which there may be very many, only the first.
    """
    if len(axes) == 1 and spec.shape[AXES.index(axes)] > 1:
        at = AXES.index(axes)
        return [tuple(_length(part, at, opening, spec) for part in parts)]
    return [
        (spec.shape[AXES.index(axis)],) * count for axis, count in zip(axes, counts, strict=True)
    ]


def _length(part: Any, axis: int, opening: Opening, spec: ImageSpec) -> int:
    if part is None:
        return spec.shape[axis]
    image = opening.open(part)
    try:
        return image.view().shape[axis]
    finally:
        if not isinstance(part, BioReader | LazyArray):
            image.reader.close()


def _fill(fill: Any, spec: ImageSpec) -> Any:
    from bioio_tk.core.dtype import as_pixels

    return as_pixels(fill, spec.dtype)[()]


def _channels(layout: Layout, first: ImageSpec, names: Sequence[str]) -> ImageSpec:
    """Return the spec of the whole with the channels of all images."""
    if "C" not in layout.axes:
        return layout.spec
    bound = layout.bounds[layout.axes.index("C")]
    if names and first.shape[3] == 1:
        return replace(layout.spec, channels=tuple(map(Channel, names)))
    if not first.channels:
        return replace(layout.spec, channels=())
    found: list[Channel] = []
    for number in range(len(bound) - 1):
        found += _own_channels(layout, number, bound[number + 1] - bound[number])
    return replace(layout.spec, channels=tuple(found))


def _own_channels(layout: Layout, number: int, count: int) -> tuple[Channel, ...]:
    """Return the channels of the images at a position along C, from the first that is there."""
    inner = math.prod(len(b) - 1 for b in layout.bounds[layout.axes.index("C") + 1 :])
    along = len(layout.bounds[layout.axes.index("C")]) - 1
    for at, part in enumerate(layout.parts):
        if part is not None and at // inner % along == number:
            image = layout.opening.open(part)
            try:
                channels = image.spec.channels
            finally:
                if not isinstance(part, BioReader | LazyArray):
                    image.reader.close()
            return channels if len(channels) == count else (Channel(),) * count
    return (Channel(),) * count


def _document(first: LazyArray, spec: ImageSpec) -> str | None:
    """Return the document of the first image with the geometry of the whole."""
    from bioio_tk.meta import ome

    xml = first.ome_xml
    return None if xml is None else ome.document((spec,), metadata=xml)


def _called(part: Any) -> Location:
    if isinstance(part, BioReader):
        return part.path
    if isinstance(part, LazyArray):
        return part.reader.path
    return Path("array") if isinstance(part, Held) else part


class StackSource:
    """Tiles of many images; each is opened when it is wanted, and only so many are kept open."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.images = (layout.spec,)
        self.caps = layout.caps
        self.notes = layout.notes
        opening = layout.opening
        self.made = f"stacked along {layout.axes}, series {opening.series} level {opening.level}"
        self.in_memory = any(not isinstance(p, Path | None) for p in layout.parts)
        self._lock = threading.Lock()
        self._turns = Turns()
        self._open: OrderedDict[int, tuple[LazyArray, View, bool]] = OrderedDict()
        self._closed = False

    def read_tile(self, at: Address) -> NDArray[Any]:
        """Return the pixels of a tile, shaped (y, x, z, c, t)."""
        number, box = self._where(at)
        spec = self._layout.spec
        if self._layout.parts[number] is None:
            return np.full([s.stop - s.start for s in box], self._layout.fill, spec.dtype)
        _, view, same = self._get(number)
        if same:
            return view.source.read_tile(self._inner(view, box))
        return view.read(box, 1)

    def read_part(self, at: Address, part: Slices5, out: NDArray[Any]) -> bool:
        """Fill `out` with a part of a tile, where the image has a way to do that."""
        number, box = self._where(at)
        if self._layout.parts[number] is None:
            out[...] = self._layout.fill
            return True
        _, view, same = self._get(number)
        read_part = getattr(view.source, "read_part", None)
        if not same or read_part is None:
            return False
        done: bool = read_part(self._inner(view, box), part, out)
        return done

    def _where(self, at: Address) -> tuple[int, Slices5]:
        """Return the number of the image that a tile lies in, and where in it."""
        layout = self._layout
        box = list(layout.spec.levels[0].grid.region(at.key).slices())
        number = 0
        for axis, bound in zip(layout.axes, layout.bounds, strict=True):
            i = AXES.index(axis)
            k = bisect_right(bound, box[i].start) - 1
            box[i] = slice(box[i].start - bound[k], box[i].stop - bound[k])
            number = number * (len(bound) - 1) + k
        return number, tuple(box)  # type: ignore[return-value]

    def _inner(self, view: View, box: Slices5) -> Address:
        tile = self._layout.spec.levels[0].tile
        key = tuple(s.start // n for s, n in zip(box, tile, strict=True))
        return Address(view.image, view.level, key)

    def _get(self, number: int) -> tuple[LazyArray, View, bool]:
        """Return an image, opened if need be; what is closed meanwhile lives until it is read."""
        with self._turns(number):
            with self._lock:
                if self._closed:
                    raise ClosedError("the stack is closed")
                found = self._open.get(number)
                if found is not None:
                    self._open.move_to_end(number)
                    return found
            found = self._opened(number)
            with self._lock:
                self._open[number] = found
                while len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
            return found

    def _opened(self, number: int) -> tuple[LazyArray, View, bool]:
        part = self._layout.parts[number]
        image = self._layout.opening.open(part)
        view = image.view()
        settle(view.source, view.image, view.level)
        place, rest = [], number
        for bound in reversed(self._layout.bounds):
            rest, k = divmod(rest, len(bound) - 1)
            place.append(k)
        want = self._layout.sizes(place[::-1])
        if (view.shape, image.dtype) != (want, self._layout.spec.dtype):
            if not isinstance(part, BioReader | LazyArray):
                image.reader.close()
            raise SpecError(
                f"{str(_called(part))!r} does not fit the stack: it is "
                f"{_size(view.shape)} {image.dtype}, and {_size(want)} "
                f"{self._layout.spec.dtype} is what the first image is; "
                "all images of a stack must have one size and one pixel type"
            )
        return image, view, self._same_tiles(view)

    def _same_tiles(self, view: View) -> bool:
        """Return whether tiles of the image are tiles of the stack."""
        level = view.source.images[view.image].levels[view.level]
        ours = self._layout.spec.levels[0].tile
        whole = view.picks == tuple(map(range, level.shape))
        return whole and all(
            mine == theirs or (theirs >= size and mine >= size)
            for mine, theirs, size in zip(ours, level.tile, level.shape, strict=True)
        )

    def ome_xml(self) -> str | None:
        """Return the document of the first image with the geometry of the whole."""
        return self._layout.xml

    def used_files(self) -> tuple[Location, ...]:
        """Return all files of the stack."""
        found: list[Location] = []
        for part in self._layout.parts:
            if isinstance(part, BioReader | LazyArray):
                found += self._layout.opening.open(part).reader.used_files
            elif isinstance(part, Path | Url):
                found.append(part)
        return tuple(found)

    def details(self, image: int, level: int) -> dict[str, Any]:
        """Return how the stack is put together."""
        tile = self.images[image].levels[level].tile
        return {"tile": tile, "axes": self._layout.axes, "images": len(self._layout.parts)}

    def close(self) -> None:
        """Release the files. Safe to call twice."""
        with self._lock:
            self._closed = True
            mine = [
                image
                for number, (image, _, _) in self._open.items()
                if not isinstance(self._layout.parts[number], BioReader | LazyArray)
            ]
            self._open.clear()
        for image in mine:
            image.reader.close()


def _size(shape: Shape5) -> str:
    return " x ".join(f"{axis}={n}" for axis, n in zip(AXES, shape, strict=True))
