"""ZarrPixels: views that are OME-Zarr images, or a channel and time point of one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends._bdv_pixels import Resolution, Stored
from bioio_tk.core.spec import Address, at_level
from bioio_tk.core.tiling import plan
from bioio_tk.core.views import ViewId
from bioio_tk.errors import BioIOError, ClosedError, DamagedFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.backends._bdv_pixels import Box
    from bioio_tk.backends.base import Source
    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.meta.bdv_values import SpimData, ZarrImage

_MOST_OPEN = 64
"""Images that are open at once."""


class ZarrPixels:
    """The images of a folder; each opens when it is first asked for.

    Parameters
    ----------
    folder : Path
        What their paths are relative to.
    data : SpimData
        Which image each view is.
    """

    format = "BigDataViewer XML over OME-Zarr"

    def __init__(self, folder: Path, data: SpimData) -> None:
        self.notes: list[str] = []
        self._folder = folder
        self._images = data.loader.images
        self._lock = threading.RLock()
        self._closed = False
        self._open: OrderedDict[str, Source] = OrderedDict()
        self._stored: dict[int, Stored | None] = {}
        self._first: dict[int, ViewId] = {}
        for view in sorted(self._images):
            self._first.setdefault(view.setup, view)

    def setups(self) -> tuple[int, ...]:
        """Return the ids of the setups that are stored."""
        return tuple(self._first)

    def views(self) -> frozenset[ViewId]:
        """Return the views that are stored."""
        return frozenset(self._images)

    def stored(self, setup: int) -> Stored | None:
        """Return how the stacks of a setup are stored; None where nothing tells."""
        if setup not in self._stored:
            view = self._first.get(setup)
            self._stored[setup] = None if view is None else self._look(view)
        return self._stored[setup]

    def _look(self, view: ViewId) -> Stored | None:
        try:
            source = self._source(self._images[view])
        except FileNotFoundError as exc:
            self.notes.append(str(exc))
            return None
        spec = source.images[0]
        levels = tuple(_level(source, spec, level) for level in range(len(spec.levels)))
        return Stored(spec.dtype, levels)

    def read(self, view: ViewId, level: int, box: Box, out: NDArray[Any]) -> None:
        """Fill `out` (z, y, x), of the setup's type, with the pixels of a box."""
        image = self._images[view]
        source = self._source(image)
        spec = source.images[0]
        where = self._where(image)
        if level >= len(spec.levels) or spec.dtype != out.dtype:
            raise DamagedFileError(
                f"{where!r} has {len(spec.levels)} levels of {spec.dtype}, other views of its "
                f"setup are {out.dtype} and have level {level}: all are alike in a setup"
            )
        shape = spec.levels[level].shape
        c, t = _position(source, image)
        if not (c < shape[3] and t < shape[4]):
            raise DamagedFileError(
                f"the XML takes channel {c} of time point {t} from {where!r}, which "
                f"has {shape[3]} channels and {shape[4]} time points"
            )
        z, y, x = box
        spans = [
            range(part.start, max(part.start, min(part.stop, n)))
            for part, n in zip((y, x, z), shape[:3], strict=True)
        ]
        if any(span.stop < part.stop for span, part in zip(spans, (y, x, z), strict=True)):
            out[...] = 0
        wanted: Any = (*spans, range(c, c + 1), range(t, t + 1))
        five = out.transpose(1, 2, 0)[..., None, None]
        for step in plan(spec.levels[level].grid, wanted):
            tile = source.read_tile(Address(0, level, step.key))
            five[step.dst] = tile[step.src]

    def parts(self, setup: int, level: int) -> bool:
        """Return whether a part of a tile is read at the price of that part."""
        return False

    def path(self, view: ViewId, level: int) -> str:
        """Return where a level of a view lies."""
        return f"{self._images[view].path}/{level}"

    def used_files(self) -> tuple[Path, ...]:
        """Return the folders the pixels are in."""
        return tuple(dict.fromkeys(Path(self._where(image)) for image in self._images.values()))

    def close(self) -> None:
        """Release the files. Safe to call twice."""
        with self._lock:
            self._closed = True
            for source in self._open.values():
                source.close()
            self._open.clear()

    def _where(self, image: ZarrImage) -> str:
        return str(self._folder / image.path) if image.path else str(self._folder)

    def _source(self, image: ZarrImage) -> Source:
        from bioio_tk.backends import registry
        from bioio_tk.backends.base import OpenOptions

        where = self._where(image)
        with self._lock:
            if self._closed:
                raise ClosedError(f"{str(self._folder)!r} is closed")
            if where not in self._open:
                try:
                    choice = registry.choose(Path(where))
                    source = registry.open_source(choice, Path(where), OpenOptions())[1]
                except (IsADirectoryError, FileNotFoundError) as exc:
                    raise FileNotFoundError(
                        f"the XML names {where!r}, but there is no OME-Zarr image"
                    ) from exc
                except BioIOError as exc:
                    raise type(exc)(
                        f"the XML names {where!r}, which cannot be read: {exc}"
                    ) from exc
                self._open[where] = source
                while len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(where)
            return self._open[where]


def _position(source: Source, image: ZarrImage) -> tuple[int, int]:
    """Return which channel and time point of an image a view is.

    The indices count along the axes above Z, the fastest one first, whatever these are.
    """
    axes = str(source.details(0, 0).get("axes", "tczyx"))
    above = (axis for axis in reversed(axes) if axis in "ct")
    at = dict(zip(above, image.indices, strict=False))
    return at.get("c", 0), at.get("t", 0)


def _level(source: Source, spec: ImageSpec, level: int) -> Resolution:
    y, x, z, _, _ = spec.levels[level].shape
    ty, tx, tz, _, _ = spec.levels[level].tile
    full, now = spec.levels[0].shape, at_level(spec, level)
    sizes = []
    for axis, length in zip("zyx", (z, y, x), strict=True):
        first, here = getattr(spec.physical_size, axis), getattr(now.physical_size, axis)
        if first and here and first[0]:
            sizes.append(here[0] / first[0])
        else:
            sizes.append(float(round(full["yxz".index(axis)] / length)))
    fz, fy, fx = sizes
    codec = str(source.details(0, level).get("compression", ""))
    return Resolution((z, y, x), (fz, fy, fx), (tz, ty, tx), codec)
