"""What the workers of a cluster do: fill, shrink or encode a region. Nothing here needs Dask."""

from __future__ import annotations

import pickle
import socket
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk import __version__
from bioio_tk.backends import registry
from bioio_tk.backends.base import Caps
from bioio_tk.core.checksum import PlaneSums
from bioio_tk.core.dtype import as_pixels
from bioio_tk.engine.copy import copy
from bioio_tk.engine.scratch import Scratch
from bioio_tk.engine.write import TileWriter
from bioio_tk.errors import BackendError
from bioio_tk.jobs.shared_store import SharedImage, check_fits, check_source, moved, within

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.checksum import Part
    from bioio_tk.core.region import Region, Slices5
    from bioio_tk.core.spec import Address, ImageSpec
    from bioio_tk.jobs.shared_store import SourceRecord
    from bioio_tk.lazy import LazyArray

_MOST_OPEN = 4
_open: dict[str, LazyArray] = {}
_open_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Task:
    """What all tasks of one conversion have in common.

    Attributes
    ----------
    version : str
        Of this package, where the client is.
    key : str
        Names the source in the memory of a worker.
    target : str
        Where the image goes.
    source : tuple of SourceRecord
        The files it is read from.
    cast : str or None
        How pixels are converted.
    memory : int or None
        Bytes of pixels in flight in each task.
    sums : bool
        Checksums are wanted.
    images, options : tuple of ImageSpec, StoreOptions
        What is encoded here and stored by the client, and how; nothing for OME-Zarr.
    """

    version: str
    key: str
    target: str
    source: tuple[SourceRecord, ...]
    cast: str | None
    memory: int | None
    sums: bool
    images: tuple[ImageSpec, ...] = ()
    options: StoreOptions | None = None


def fill(task: Task, payload: bytes, region: Region) -> Part:
    """Copy a region of the source to the full resolution of an OME-Zarr; return its checksums."""
    with _on_this_worker(task):
        lazy = _opened(task, payload)
        with SharedImage(Path(task.target)) as image:
            sums = PlaneSums(image.spec.shape, image.spec.dtype) if task.sums else None
            image.fill(lazy.view(), region, cast=task.cast, memory=task.memory, sums=sums)
    return {} if sums is None else sums.parts()


def shrink(task: Task, steps: list[tuple[int, Region]]) -> None:
    """Make regions of smaller levels of an OME-Zarr, one after the other."""
    with _on_this_worker(task):
        for level, region in steps:
            # opened for each level: what is stored of one must be whole before the next reads it
            with SharedImage(Path(task.target), smaller=True) as image:
                image.shrink(level, region)


def encode(task: Task, payload: bytes, region: Region) -> tuple[list[Any], list[Any], Part]:
    """Encode a region of the source, and what smaller tiles it fills.

    Returns
    -------
    list of (Address, bytes)
        Tiles that are whole.
    list of (int, tuple of range, ndarray)
        Pixels of smaller levels that are not: level, positions along Y, X, Z, C, T, pixels.
    dict
        The checksums.
    """
    with _on_this_worker(task):
        lazy, spec = _opened(task, payload), task.images[0]
        view = lazy.view()
        kept: Any = _Kept(task)  # no more of a Sink than is needed here
        check_fits(view.shape, spec)
        sums = PlaneSums(spec.shape, spec.dtype) if task.sums else None
        scratch = Scratch(Path(tempfile.gettempdir()))
        method = kept.options.downsample
        tiles = TileWriter(kept, workers=1, scratch=scratch, method=method)

        def put(box: Slices5, pixels: NDArray[Any]) -> None:
            spans: Any = tuple(range(s.start, s.stop) for s in moved(box, region))
            tiles.write(spans, as_pixels(pixels, spec.dtype, task.cast))

        def done(box: Slices5, pixels: NDArray[Any]) -> None:
            if sums is not None:
                sums.add(moved(box, region), as_pixels(pixels, spec.dtype, task.cast))

        try:
            part, tile = within(view, region), spec.levels[0].tile
            copy(part, put, tile, workers=1, memory=task.memory, done=done)
            return kept.stored, tiles.take_waiting(), {} if sums is None else sums.parts()
        finally:
            scratch.close()


def forget(key: str) -> None:
    """Close a source."""
    with _open_lock:
        lazy = _open.pop(key, None)
    if lazy is not None:
        lazy.reader.close()


class _Kept:
    """A sink that keeps encoded tiles, for the client to store."""

    caps = Caps(parallel_store=True)

    def __init__(self, task: Task) -> None:
        if task.options is None:
            raise BackendError("a task to encode tiles came without what to do: report this")
        sink_class: Any = registry.load_sink(registry.for_writing(Path(task.target)))
        self.images, self.options = task.images, task.options
        self.stored: list[tuple[Address, bytes]] = []
        self._encoder = sink_class.encoder(task.images, task.options)

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> bytes:
        return bytes(self._encoder.encode_tile(at, tile))

    def store_tile(self, at: Address, encoded: bytes) -> None:
        self.stored.append((at, encoded))

    def load_tile(self, at: Address) -> None:
        """Nothing of what others have stored is needed: regions do not share tiles."""


def _opened(task: Task, payload: bytes) -> LazyArray:
    """Return the source, opened once by each worker."""
    with _open_lock:
        lazy = _open.get(task.key)
        if lazy is None:
            lazy = pickle.loads(payload)  # noqa: S301 (from the client, as is this call)
            lazy.view()  # raises what could not be said while it was unpickled
            while len(_open) >= _MOST_OPEN:  # of clients that were killed
                _open.pop(next(iter(_open)))
            _open[task.key] = lazy
    check_source(task.source, lazy, _here())
    return lazy


@contextmanager
def _on_this_worker(task: Task) -> Iterator[None]:
    """Let errors say which machine they are of, where that matters."""
    if task.version != __version__:
        raise BackendError(
            f"{_here()} has bioio-tk {__version__}, and the client {task.version}: install the "
            "same version everywhere"
        )
    try:
        yield
    except FileNotFoundError as exc:
        raise BackendError(
            f"{_here()} does not find what the client sees: {exc}. Every worker must see source "
            "and target under the same paths: put both on a file system that all machines share"
        ) from exc


def _here() -> str:
    return f"the worker on {socket.gethostname()}"
