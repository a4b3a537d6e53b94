"""ViewSink: one stack of a BigDataViewer file that is being written."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from bioio_tk.backends import _bdv_objects as hdf5
from bioio_tk.backends._bdv_layout import (
    CELLS,
    chunk_of,
    codec_of,
    compression_at,
    stored_dtype,
)
from bioio_tk.backends.base import Caps
from bioio_tk.core.signals import interrupt_later
from bioio_tk.errors import ClosedError, DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from bioio_tk.backends._bdv_layout import Packed
    from bioio_tk.backends._bdv_tree import Edit, Tree
    from bioio_tk.core.spec import Address, ImageSpec
    from bioio_tk.core.views import Scheme, Shape3, ViewId

Corner = tuple[int, int, int]


class Level(Protocol):
    """Where the chunks of a resolution go, and come from again. Any thread."""

    def encode(self, pixels: NDArray[Any]) -> Any:
        """Return what `store` takes of a chunk (z, y, x)."""
        ...

    def store(self, corner: Corner, encoded: Any) -> None:
        """Put a chunk into the file; not to be seen there yet."""
        ...

    def load(self, corner: Corner) -> NDArray[Any] | None:
        """Return a chunk (z, y, x), whole or clipped; None if there is none."""
        ...


class NewLevel:
    """A new dataset: chunks go behind all there is, each to room of its own, by any thread."""

    def __init__(self, tree: Tree, size: Shape3, scheme: Scheme, number: int) -> None:
        mipmap = scheme.mipmaps[number]
        self._tree = tree
        self.shape = mipmap.shape(size)
        self._chunk = chunk_of(mipmap, size)
        self._dtype = scheme.dtype
        self._codec = codec_of(*compression_at(scheme, number), self._chunk, scheme.dtype)
        self._chunks: dict[tuple[int, ...], tuple[int, int, int]] = {}

    def encode(self, pixels: NDArray[Any]) -> Packed:
        return self._codec.encode(pixels)

    def store(self, corner: Corner, encoded: Packed) -> None:
        skipped, data = encoded
        count = memoryview(data).nbytes
        known = self._chunks.get(corner)
        # a chunk that is given again takes the place of the old one where it fits
        at = known[0] if known and count <= known[1] else self._tree.allocate(count)
        self._tree.write(at, data)
        self._chunks[corner] = (at, count, skipped)

    def load(self, corner: Corner) -> NDArray[Any] | None:
        known = self._chunks.get(corner)
        if known is None:
            return None
        at, count, skipped = known
        try:
            return self._codec.decode((skipped, self._tree.file.read(at, count)))
        except ValueError as exc:
            raise DamagedFileError(
                f"the chunk at {corner} in {str(self._tree.file.path)!r} is broken: {exc}"
            ) from exc

    def save(self, edit: Edit) -> int:
        """Write the dataset and the group it is in, and return the address of that."""
        index = edit.add_chunk_index(self._chunks, self._chunk)
        dtype = stored_dtype(self._dtype)
        data = hdf5.dataset(self.shape, self._chunk, dtype, self._codec.filters, index)
        return edit.add_group({CELLS: edit.add(data)})


class DroppedLevel:
    """The full resolution of a setup that stores only smaller ones."""

    def __init__(self) -> None:
        self._given: set[Corner] = set()

    def encode(self, pixels: NDArray[Any]) -> None:
        return None

    def store(self, corner: Corner, encoded: Any) -> None:
        self._given.add(corner)

    def load(self, corner: Corner) -> NDArray[Any] | None:
        if corner in self._given:
            raise UnsupportedError(
                "the full resolution of this setup is not stored, only smaller ones: what was "
                "given of it cannot be given again, nor in parts that share a block"
            )
        return None


class ViewSink:
    """A stack that is being written; others see it, all of it, once it is finished.

    Attributes
    ----------
    view : ViewId
        Which one.
    images : tuple of ImageSpec
        One image: the full resolution and the smaller ones, as Y, X, Z, 1, 1.
    factors : tuple of (int, int, int)
        Of each of the smaller ones, along Y, X, Z.
    """

    caps = Caps(parallel_store=True, tile_multiple=1)

    def __init__(
        self,
        view: ViewId,
        image: ImageSpec,
        factors: tuple[tuple[int, int, int], ...],
        levels: Sequence[Level],
        end: Callable[[ViewSink, bool], None],
    ) -> None:
        self.view = view
        self.images = (image,)
        self.factors = factors
        self._levels = tuple(levels)
        self._end = end
        self._ended = False
        self._gate = threading.Condition()
        self._storing: list[int] = []  # threads

    def _level(self, at: Address) -> Level:
        if self._ended:
            raise ClosedError(f"{self.view} is finished: it neither takes nor gives tiles")
        return self._levels[at.level]

    def _corner(self, at: Address) -> Corner:
        y, x, z, _, _ = at.key
        height, width, depth, _, _ = self.images[0].levels[at.level].tile
        return (z * depth, y * height, x * width)

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Any:
        return self._level(at).encode(tile[..., 0, 0].transpose(2, 0, 1))

    def store_tile(self, at: Address, encoded: Any) -> None:
        own = threading.get_ident()
        with self._gate:
            level = self._level(at)
            self._storing.append(own)
        try:
            level.store(self._corner(at), encoded)
        finally:
            with self._gate:
                self._storing.remove(own)
                self._gate.notify_all()

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        chunk = self._level(at).load(self._corner(at))
        if chunk is None:
            return None
        y, x, z, _, _ = self.images[0].levels[at.level].grid.tile_shape(at.key)
        return chunk[:z, :y, :x].transpose(1, 2, 0)[..., None, None]

    def grow(self, image: int, t: int) -> None:
        raise UnsupportedError("a view has one time point: begin another view for the next one")

    def finish(self) -> None:
        """Put the view where readers find it, in one moment: from then on it is safe.

        Raises
        ------
        OSError
            The system did not take it (a full disk). What was there before is there still.
        """
        self._stop(keep=True)

    def abort(self) -> None:
        """Forget the view; what was there before stays. Safe to call twice, and after finish."""
        self._stop(keep=False)

    def close(self) -> None:
        """Release it: a view that was not finished is forgotten. Safe to call twice."""
        self._stop(keep=False)

    def _stop(self, *, keep: bool) -> None:
        own = threading.get_ident()
        with interrupt_later():
            with self._gate:
                if self._ended:
                    return
                self._ended = True
                # after a second Ctrl-C others may still store: their room is not given to anybody
                self._gate.wait_for(lambda: all(thread == own for thread in self._storing))
            self._end(self, keep)
