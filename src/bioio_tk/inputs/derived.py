"""What images that are computed from another one have in common: they read it box by box."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bioio_tk.backends.base import Caps
from bioio_tk.core.spec import Level
from bioio_tk.engine.copy import cheap_parts
from bioio_tk.engine.read import OwnTiles
from bioio_tk.lazy import LazyArray
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from bioio_tk.core.location import Location
    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.core.spec import Channel, ImageSpec, PhysicalSize
    from bioio_tk.core.tiling import Span


class Derived:
    """One image whose tiles are made of the pixels of another; heirs add ``read_tile``.

    Parameters
    ----------
    origin : LazyArray
        The pixels it is made of. Closing the one does not close the other.
    spec : ImageSpec
        What it looks like.
    """

    made = ""
    """How the pixels differ from those of the files; "" where the caller says so in metadata."""

    def __init__(self, origin: LazyArray, spec: ImageSpec) -> None:
        self.origin = origin
        self.images = (spec,)
        self.notes = tuple(origin.reader.notes)
        self.in_memory = bool(getattr(origin.view().source, "in_memory", False))
        self.caps = Caps(costly_tiles=True)
        self._cache = OwnTiles()
        alone = not origin.view().source.caps.parallel_read
        self._turn: AbstractContextManager[Any] = threading.Lock() if alone else nullcontext()

    def read(self, box: Slices5, workers: int = 1) -> NDArray[Any]:
        """Return pixels of the original, shaped (y, x, z, c, t)."""
        with self._turn:
            return self.origin.view().read(box, workers, self._cache)

    def picks(self) -> tuple[Span, Span, Span, Span, Span]:
        """Return which positions of the file the planes of this image stand for."""
        return self.origin.picks

    def ome_xml(self) -> str | None:
        """Return the document of the original, as it is for what is left of it."""
        from bioio_tk.meta import ome
        from bioio_tk.meta.ome_select import picked

        reader = self.origin.reader
        xml = reader.ome_xml
        if xml is None:
            return None
        if reader.n_series > 1:
            xml = ome.single(xml, reader.series)
        full = reader.level_shapes[0][:2]
        return picked(xml, self.picks(), reader._spec(), full)  # noqa: SLF001

    def used_files(self) -> tuple[Location, ...]:
        """Return the files of the original."""
        return self.origin.reader.used_files

    def details(self, image: int, level: int) -> dict[str, Any]:
        """Return the size of the pieces it is computed in."""
        return {"tile": self.images[image].levels[level].tile, "compression": "none"}

    def close(self) -> None:
        """Forget what was kept of the original."""
        self._cache.clear()


def described(
    origin: LazyArray,
    shape: Shape5,
    tile: Shape5,
    *,
    dtype: np.dtype[Any] | None = None,
    channels: tuple[Channel, ...] | None = None,
    position: PhysicalSize | None = None,
) -> ImageSpec:
    """Return what is known of the original, for an image of another shape or pixel type."""
    spec = origin.spec
    known = spec.channels if channels is None else channels
    return replace(
        spec,
        dtype=spec.dtype if dtype is None else dtype,
        levels=(Level(shape, tile),),
        channels=known if len(known) == shape[3] else (),
        samples=1 if shape[3] % spec.samples else spec.samples,
        position=spec.position if position is None else position,
    )


def stored_tile(origin: LazyArray) -> Shape5:
    """Return how much of each axis is decoded at a time, 1 where less costs less."""
    view = origin.view()
    if cheap_parts(view.source, view.image, view.level):
        return (1, 1, 1, 1, 1)
    y, x, z, c, t = (max(1, min(n, s)) for n, s in zip(view.stored(), view.shape, strict=True))
    return (y, x, z, c, t)


def derive(image: LazyArray, what: str, make: Callable[..., Derived], *args: Any) -> LazyArray:
    """Return an image that is computed from another: ``make(*args)`` is its source.

    It has all five axes; those that `image` still has come last, in its order.
    """
    dims = "".join(axis for axis in "TCZYX" if axis not in image.dims) + image.dims
    path = image.reader.path
    return LazyArray(BioReader._over(path, "computed", what, make, *args), dims)  # noqa: SLF001
