"""GrowingView: a stack in a BigDataViewer file that anybody can read while its planes come.

The index of its chunks is whole from the start: where a chunk has not come it names one of zeros,
which all of them share. A chunk goes behind all there is, then its entry in the index is replaced.
Each is one write, so the file is right after every one of them, and nothing has to be flushed.
While stacks grow the file is said to be as long as it will be when they are whole: who has opened
it before finds their planes inside.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends import _bdv_objects as hdf5
from bioio_tk.backends._bdv_layout import (
    CELLS,
    chunk_of,
    codec_of,
    compression_at,
    stored_dtype,
    view_path,
)
from bioio_tk.errors import DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bioio_tk.backends._bdv_layout import Codec
    from bioio_tk.backends._bdv_tree import Edit, Tree
    from bioio_tk.core.views import Scheme, Shape3, ViewId

_ENTRY = np.dtype([("bytes", "<u4"), ("skipped", "<u4"), ("corner", "<u8", (4,)), ("at", "<u8")])
"""What the index of the chunks of a stack says of one of them (III.A.1 of the specification)."""
_HEAD = 24
"""Bytes of a node of the index before its first entry."""
_DEEPEST = 8
_NOWHERE = -1
_PAGE = 4096


class _Level:
    """The chunks of one resolution.

    Parameters
    ----------
    shape, chunk : Shape3
        Of the stack, and of a chunk.
    codec : Codec
        Packs chunks.
    entries : ndarray of _ENTRY
        The index, chunk after chunk.
    places : ndarray of int
        Where each entry is in the file.
    zeros : int
        Where the chunk is that others share; -1 where nobody knows.
    """

    def __init__(
        self,
        shape: Shape3,
        chunk: Shape3,
        codec: Codec,
        entries: NDArray[Any],
        places: NDArray[np.int64],
        zeros: int,
    ) -> None:
        self.shape, self.chunk, self.codec = shape, chunk, codec
        self.entries, self.places, self.zeros = entries, places, zeros
        self.own = entries["at"] != zeros if zeros != _NOWHERE else np.zeros(len(entries), bool)
        self.lock = threading.Lock()  # who gives a chunk room, before all of it is there
        _, self._down, self._across = _counts(shape, chunk)

    def number(self, start: Shape3) -> int:
        """Return the number of the chunk that something at `start` is in."""
        z, y, x = (a // n for a, n in zip(start, self.chunk, strict=True))
        return (z * self._down + y) * self._across + x

    @property
    def missing(self) -> int:
        """How many chunks have not come."""
        return len(self.own) - int(np.count_nonzero(self.own))

    @property
    def plane(self) -> int:
        """Pixels of one plane of a chunk."""
        return self.chunk[1] * self.chunk[2]


class Zeros:
    """The chunks of zeros of a file, one for all that are alike.

    Parameters
    ----------
    tree : Tree
        The file.

    Attributes
    ----------
    turn : threading.Lock
        Who writes to the file has it: the system lets in one at a time, and those that wait there
        keep the CPUs from others.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.turn = threading.Lock()
        self._known: dict[tuple[Shape3, tuple[Any, ...], np.dtype[Any]], tuple[int, int]] = {}

    def find(self, codec: Codec, chunk: Shape3, dtype: np.dtype[Any]) -> tuple[int, int] | None:
        """Return where such a chunk is, and how many bytes long; None where there is none."""
        return self._known.get((chunk, codec.filters, dtype))

    def make(self, codec: Codec, chunk: Shape3, dtype: np.dtype[Any]) -> tuple[int, int]:
        """Return the same, of a new one if need be."""
        known = self.find(codec, chunk, dtype)
        if known is None:
            if codec.filters:
                data = codec.encode(np.zeros(chunk, dtype))[1]
                known = self._tree.allocate(len(data)), len(data)
                self._tree.file.write(known[0], data)
            else:  # room that is never written to is 0
                count = int(np.prod(chunk)) * dtype.itemsize
                known = self._tree.allocate(count), count
            self._known[chunk, codec.filters, dtype] = known
        return known


class GrowingView:
    """One stack; `begin` makes it, `again` finds one that is there.

    Parameters
    ----------
    tree : Tree
        The file it is in.
    view : ViewId
        Which one.
    size : Shape3
        Of its full resolution.
    scheme : Scheme
        How it is stored.
    zeros : Zeros
        Of the file.
    """

    def __init__(
        self, tree: Tree, view: ViewId, size: Shape3, scheme: Scheme, zeros: Zeros
    ) -> None:
        self._tree, self._zeros = tree, zeros
        self._view, self._size, self._scheme = view, size, scheme
        self._dtype = scheme.dtype.newbyteorder("<")
        self._levels: dict[int, _Level] = {}

    def begin(self, numbers: Sequence[int], room: int = 0) -> None:
        """Make some of its resolutions, all of them 0.

        Parameters
        ----------
        numbers : sequence of int
            Which ones.
        room : int
            Bytes that what has not come of other stacks may take.
        """
        parts = [(number, *self._parts(number)) for number in numbers]
        shared = [self._zeros.make(codec, chunk, self._dtype) for *_, chunk, codec in parts]
        for _, shape, chunk, _ in parts:
            count = int(np.prod(_counts(shape, chunk)))
            room += _room(count, chunk, self._dtype.itemsize)
        self._tree.room = room
        made = {}
        with self._tree.edit() as edit:
            for (number, shape, chunk, codec), zeros in zip(parts, shared, strict=True):
                corners = _corners(shape, chunk)
                first = edit.next
                index = edit.add_chunk_index(dict.fromkeys(corners, (*zeros, 0)), chunk)
                self._put(edit, number, shape, chunk, codec, index)
                laid_out = self._laid_out(corners, zeros, first)
                made[number] = _Level(shape, chunk, codec, *laid_out, zeros[0])
        self._levels |= made

    def again(self) -> None:
        """Go on with the resolutions that are there.

        Raises
        ------
        DamagedFileError
            Something else is there.
        """
        for number in range(len(self._scheme.mipmaps)):
            header = self._tree.find(self._path(number))
            if header is None:
                continue
            shape, chunk, codec = self._parts(number)
            zeros = self._zeros.find(codec, chunk, self._dtype) or (_NOWHERE, 0)
            corners = _corners(shape, chunk)
            entries, places = self._found(header, corners)
            self._levels[number] = _Level(shape, chunk, codec, entries, places, zeros[0])

    @property
    def room(self) -> int:
        """Bytes that what has not come may take in the file."""
        levels, size = self._levels.values(), self._dtype.itemsize
        return sum(_room(level.missing, level.chunk, size) for level in levels)

    @property
    def end(self) -> int:
        """Where its last chunk ends in the file."""
        entries = [level.entries for level in self._levels.values()]
        return max(
            (int((some["at"] + some["bytes"]).max(initial=0)) for some in entries), default=0
        )

    def has(self, number: int) -> bool:
        """Return whether a resolution is there."""
        return number in self._levels

    def _parts(self, number: int) -> tuple[Shape3, Shape3, Codec]:
        """Return the size of a resolution, that of its chunks, and what packs these."""
        mipmap = self._scheme.mipmaps[number]
        chunk = chunk_of(mipmap, self._size)
        codec = codec_of(*compression_at(self._scheme, number), chunk, self._scheme.dtype)
        return mipmap.shape(self._size), chunk, codec

    def _laid_out(
        self, corners: list[Shape3], zeros: tuple[int, int], first: int
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the entries of a new index that begins at `first`, and where in the file."""
        entries = np.zeros(len(corners), _ENTRY)
        entries["corner"][:, :3] = corners
        entries["at"], entries["bytes"] = zeros
        most = 2 * self._tree.format.chunk_k
        node, place = np.divmod(np.arange(len(corners)), most)
        length = _HEAD + most * _ENTRY.itemsize + _ENTRY.itemsize - 8
        return entries, first + node * length + _HEAD + place * _ENTRY.itemsize

    def _put(
        self, edit: Edit, number: int, shape: Shape3, chunk: Shape3, codec: Codec, index: int
    ) -> None:
        stored = stored_dtype(self._scheme.dtype)
        header = hdf5.dataset(shape, chunk, stored, codec.filters, index)
        edit.link(self._path(number), edit.add(header))

    def _path(self, number: int) -> tuple[str, ...]:
        return view_path(*self._view, str(number), CELLS)

    def _strange(self) -> DamagedFileError:
        time, setup = self._view
        return DamagedFileError(
            f"the stack of time point {time}, view setup {setup} in {str(self._tree.file.path)!r} "
            "is not as an acquisition has left it: it was changed since"
        )

    # ------------------------------------------------------------------ the index

    def _found(self, header: int, corners: list[Shape3]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the entry of each chunk, and where; nowhere for those that were left out."""
        entries, places = self._read_index(header)
        numbers = {corner: n for n, corner in enumerate(corners)}
        try:
            known = [numbers[tuple(corner)] for corner in entries["corner"][:, :3].tolist()]
        except KeyError as exc:
            raise self._strange() from exc
        whole = np.zeros(len(corners), _ENTRY)
        where = np.full(len(corners), _NOWHERE)
        whole[known], where[known] = entries, places
        return whole, where

    def _read_index(self, header: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the entries of a resolution, and where they are in the file."""
        try:
            messages = self._tree.messages(header)
            layout = next(body for kind, _, body in messages if kind == hdf5.LAYOUT)
            (index,) = struct.unpack_from("<Q", layout, 3)
            if index == hdf5.UNDEFINED:
                return np.zeros(0, _ENTRY), np.zeros(0, np.int64)
            entries, places = zip(*self._leaves(index, _DEEPEST), strict=True)
        except (StopIteration, ValueError, struct.error) as exc:
            raise self._strange() from exc
        return np.concatenate(entries), np.concatenate(places)

    def _leaves(self, at: int, above: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        most = 2 * self._tree.format.chunk_k
        data = self._tree.file.read(at, _HEAD + most * _ENTRY.itemsize)
        mark, kind, level, used = struct.unpack_from("<4sBBH", data)
        if mark != b"TREE" or kind != 1 or used > most or level >= above:
            raise ValueError("no index")
        entries = np.frombuffer(data, _ENTRY, used, _HEAD).copy()
        if level == 0:
            yield entries, at + _HEAD + np.arange(used) * _ENTRY.itemsize
            return
        for child in entries["at"].tolist():
            yield from self._leaves(child, level)

    # ------------------------------------------------------------------ pixels

    def encode(self, number: int, pixels: NDArray[Any]) -> Any:
        """Return what `store` takes, of pixels (z, y, x). Any thread."""
        codec = self._levels[number].codec
        return codec.encode(pixels)[1] if codec.filters else pixels

    def store(self, number: int, tiles: Sequence[tuple[Shape3, Any]]) -> None:
        """Store what `encode` has returned, each with where it begins along Z, Y, X. Any thread.

        Raw pixels may be some planes of a chunk; packed ones are all of it.
        """
        level = self._levels[number]
        whole: list[tuple[int, list[Any]]] = []
        for start, data in tiles:
            chunk, first = level.number(start), start[0] % level.chunk[0]
            if level.codec.filters:
                whole.append((chunk, [data]))
            elif not first and len(data) == min(level.chunk[0], level.shape[0] - start[0]):
                rest = bytes((level.chunk[0] - len(data)) * level.plane * self._dtype.itemsize)
                whole.append((chunk, [*self._rows(level, data), *([rest] if rest else ())]))
            else:
                self._store_planes(level, chunk, first, data)
        if whole:
            self._add(level, whole)

    def load(self, number: int, start: Shape3, shape: Shape3) -> NDArray[Any] | None:
        """Return pixels (z, y, x) of one chunk; None where none were stored.

        Raises
        ------
        DamagedFileError
            What is there cannot be unpacked.
        """
        level = self._levels.get(number)
        if level is None:
            return None
        entry = level.entries[level.number(start)]
        at, first = int(entry["at"]), start[0] % level.chunk[0]
        if at in (0, level.zeros):
            return None
        z, y, x = shape
        if not level.codec.filters:
            pixels = np.zeros((z, *level.chunk[1:]), self._dtype)
            skip = first * level.plane * self._dtype.itemsize
            self._tree.file.read_into(at + skip, pixels)
            return pixels[:, :y, :x]
        try:
            data = self._tree.file.read(at, int(entry["bytes"]))
            return level.codec.decode((0, data))[first : first + z, :y, :x]
        except ValueError as exc:
            raise DamagedFileError(
                f"the block at {start} (Z, Y, X) of time point {self._view.time}, view setup "
                f"{self._view.setup} in {str(self._tree.file.path)!r} is broken: {exc}"
            ) from exc

    def _rows(self, level: _Level, pixels: NDArray[Any]) -> list[Any]:
        """Return raw pixels in pieces that are whole planes of a chunk, also at the border."""
        _, down, across = level.chunk
        z, y, x = pixels.shape
        if x == across and (y == down or z == 1):
            rest = across * (down - y) * self._dtype.itemsize
            rows = np.ascontiguousarray(pixels, self._dtype)
            return [rows, bytes(rest)] if rest else [rows]
        whole = np.zeros((z, down, across), self._dtype)
        whole[:, :y, :x] = pixels
        return [whole]

    def _store_planes(self, level: _Level, chunk: int, first: int, pixels: NDArray[Any]) -> None:
        """Store some planes of a raw chunk; it is 0 where others have not come."""
        plane = level.plane * self._dtype.itemsize
        with level.lock:
            if not level.own[chunk]:
                before, count = int(level.entries["at"][chunk]), plane * level.chunk[0]
                at = self._tree.allocate(count)
                if before == level.zeros:  # room that is not written to is 0
                    self._tree.file.write(at + count - 1, b"\0")
                else:  # it may be what others share
                    self._tree.file.write(at, self._tree.file.read(before, count))
                self._enter(level, [(chunk, at, count)])
        at = int(level.entries["at"][chunk])
        with self._zeros.turn:
            self._tree.file.write_many(at + first * plane, self._rows(level, pixels))

    def _add(self, level: _Level, chunks: list[tuple[int, list[Any]]]) -> None:
        """Put chunks behind the end of the file, then enter them in the index."""
        sizes = [sum(memoryview(piece).nbytes for piece in pieces) for _, pieces in chunks]
        first = at = self._tree.allocate(sum(sizes))
        places = []
        for (chunk, _), size in zip(chunks, sizes, strict=True):
            places.append((chunk, at, size))
            at += size
        with self._zeros.turn:
            self._tree.file.write_many(first, [piece for _, pieces in chunks for piece in pieces])
            self._enter(level, places)

    def _enter(self, level: _Level, places: list[tuple[int, int, int]]) -> None:
        """Let readers find chunks, each with its place and size, now that they are there."""
        _, at, size = places[-1]
        self._tree.keep(at + size)
        chunks = np.array(sorted(chunk for chunk, _, _ in places))
        if (level.places[chunks] == _NOWHERE).any():
            raise self._strange()
        for chunk, at, size in places:
            entry = level.entries[chunk]
            entry["at"], entry["bytes"] = at, size
        level.own[chunks] = True
        # one write for all that lie together
        apart = np.flatnonzero(np.diff(level.places[chunks]) != _ENTRY.itemsize) + 1
        for some in np.split(chunks, apart):
            self._tree.file.write(int(level.places[some[0]]), level.entries[some].tobytes())

    # ------------------------------------------------------------------ the end

    def trim(self, edit: Edit, size: Shape3, planes: Sequence[bool]) -> None:
        """Leave chunks without pixels out of the index; nothing is stored after it.

        Parameters
        ----------
        edit : Edit
            Takes the changes of the file.
        size : Shape3
            The stack is cut to this along Z.
        planes : sequence of bool
            Whether each plane along Z is known to be stored; others may be all the same.
        """
        for number, level in self._levels.items():
            mipmap = self._scheme.mipmaps[number]
            shape = mipmap.shape(size)
            deep = mipmap.factor[0] * level.chunk[0]
            known = [any(planes[n : n + deep]) for n in range(0, len(planes), deep)]
            kept = {}
            for chunk, (count, skipped, corner, at) in enumerate(level.entries.tolist()):
                row = corner[0] // level.chunk[0]
                inside = at and corner[0] < shape[0]
                if inside and (known[row] or self._holds(level, chunk)):
                    kept[tuple(corner[:3])] = (at, count, skipped)
            index = edit.add_chunk_index(kept, level.chunk)
            self._put(edit, number, shape, level.chunk, level.codec, index)
        self._levels.clear()

    def _holds(self, level: _Level, chunk: int) -> bool:
        """Return whether a chunk has any pixels but 0."""
        at, count = (int(level.entries[name][chunk]) for name in ("at", "bytes"))
        if at == level.zeros:
            return False
        try:
            data = self._tree.file.read(at, count)
            return bool(level.codec.decode((0, data)).any())
        except ValueError:
            return False


def _room(count: int, chunk: Shape3, itemsize: int) -> int:
    """Return how many bytes so many chunks may take, each in whole pages."""
    raw = int(np.prod(chunk)) * itemsize
    most = raw + raw // 256 + 64  # packed pixels may be a little larger
    return count * (most // _PAGE + 2) * _PAGE


def _counts(shape: Shape3, chunk: Shape3) -> Shape3:
    z, y, x = (-(-n // c) for n, c in zip(shape, chunk, strict=True))
    return (z, y, x)


def _corners(shape: Shape3, chunk: Shape3) -> list[Shape3]:
    """Return where the chunks of a stack begin, in the order of its index."""
    cz, cy, cx = chunk
    return [(z * cz, y * cy, x * cx) for z, y, x in np.ndindex(_counts(shape, chunk))]
