"""What an interrupted write has left of an OME-Zarr: which chunks are whole, and what has to go."""

from __future__ import annotations

import heapq
import math
import os
import shutil
from itertools import count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._store import FolderStore
from bioio_tk.backends._zarr_array import EMPTY, parse_table
from bioio_tk.backends._zarr_tree import Tree
from bioio_tk.backends.zarr_read import ZarrSource
from bioio_tk.errors import BioIOError, DamagedFileError
from bioio_tk.meta import ngff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bioio_tk.backends._zarr_array import Index, ZarrArray

_LAST = 256
"""Chunks that are decoded to see whether they are whole: more are not written at a time."""


class _Chunk:
    """A chunk that is a file: when it was written, and where it belongs."""

    __slots__ = ("array", "have", "index", "path")

    def __init__(self, array: ZarrArray, have: NDArray[np.bool_], index: Index, path: Path) -> None:
        self.array, self.have, self.index, self.path = array, have, index, path


def stored_chunks(folder: Path) -> list[NDArray[np.bool_]]:
    """Return for each level which chunks are there, as a table of planes x chunks.

    Planes follow each other along Z, then C, then T, the chunks of a plane along X, then Y. A
    chunk of several planes counts for each of them. Chunks that are all 0 are never stored.
    """
    source = _open(folder)
    try:
        spec = source.images[0]
        found, _ = _survey(source)
        layers = source.images.at(0).layers
        return [
            _by_plane(have, layer.array.meta.shape[:3], layer.array.meta.chunks[:3], spec.samples)
            for have, layer in zip(found, layers, strict=True)
        ]
    finally:
        source.close()


def drop_unfinished(folder: Path) -> None:
    """Remove what cannot be read: chunks and shards that are not whole, images in the image."""
    source = _open(folder)
    try:
        _, broken = _survey(source)
    finally:
        source.close()
    for path in broken:
        path.unlink()
    for path in (folder / "labels").glob("*.partial"):
        shutil.rmtree(path)


def _open(folder: Path) -> ZarrSource:
    store = FolderStore(folder)
    try:
        node = Tree(store).node("")
        group = None if node is None else ngff.read_group(node.attributes, str(folder))
    finally:
        store.close()
    if group is None or not group.multiscales:
        raise DamagedFileError(
            f"{str(folder)!r} holds no image that could be recovered: the write was interrupted "
            "before the first pixel, or it was one of several images; delete it and write anew"
        )
    return ZarrSource(folder)


def _survey(source: ZarrSource) -> tuple[list[NDArray[np.bool_]], list[Path]]:
    """Return which chunks of each level are there, and the files that are not whole."""
    found, broken = [], []
    last: list[tuple[int, int, _Chunk]] = []
    numbers = count()  # chunks written at the same moment are not compared
    for layer in source.images.at(0).layers:
        array = layer.array
        have = np.zeros(array.meta.grid, bool)
        found.append(have)
        if array.meta.index is not None:
            broken += list(_survey_shards(array, have))
            continue
        for chunk in _chunk_files(array, have):
            written = os.stat(chunk.path).st_mtime_ns
            entry = (written, next(numbers), chunk)
            (heapq.heappush if len(last) < _LAST else heapq.heappushpop)(last, entry)
    for _, _, chunk in last:
        if not _is_whole(chunk):
            chunk.have[chunk.index] = False
            broken.append(chunk.path)
    return found, broken


def _chunk_files(array: ZarrArray, have: NDArray[np.bool_]) -> Iterator[_Chunk]:
    """Yield the chunks of an array that have a file, and mark them in `have`."""
    root = Path(array.store.where())
    names = _names(root / array.path)
    for index in np.ndindex(*have.shape):
        path = array.store.where(array.key(index))
        if path in names:
            have[index] = True
            yield _Chunk(array, have, index, Path(path))


def _names(folder: Path) -> set[str]:
    return {f"{place}/{name}" for place, _, names in os.walk(folder) for name in names}


def _is_whole(chunk: _Chunk) -> bool:
    try:
        chunk.array.read_chunk(chunk.index)
    except BioIOError:
        return False
    return True


def _survey_shards(array: ZarrArray, have: NDArray[np.bool_]) -> Iterator[Path]:
    """Mark the chunks of whole shards in `have`; yield the files of the others."""
    index = array.meta.index
    assert index is not None
    counts = index.counts
    for key in product(*(range(-(-n // many)) for n, many in zip(have.shape, counts, strict=True))):
        name = array.key(key)
        raw = array.store.get_range(name, -index.nbytes, index.nbytes)
        if raw is None:
            continue
        path = Path(array.store.where(name))
        try:
            entries = _entries(index, raw, path.stat().st_size)
        except DamagedFileError:
            yield path
            continue
        here = tuple(slice(k * n, (k + 1) * n) for k, n in zip(key, counts, strict=True))
        inside = tuple(slice(n) for n in have[here].shape)
        have[here] = (entries[..., 0] != EMPTY)[inside]


def _entries(index: Any, raw: bytes, size: int) -> NDArray[np.uint64]:
    table = parse_table(index, raw, size)
    there = table.entries.reshape(-1, 2)
    there = there[there[:, 0] != EMPTY]
    if len(there) and int(there.sum(axis=1).max()) > table.stop:
        raise DamagedFileError("a chunk lies outside of what the shard has")
    return table.entries


def _by_plane(
    have: NDArray[np.bool_], shape: tuple[int, ...], chunks: tuple[int, ...], samples: int
) -> NDArray[np.bool_]:
    """Return a table of planes x chunks from one of chunks along T, C, Z, Y, X."""
    for axis, (size, chunk) in enumerate(zip(shape, chunks, strict=True)):
        have = have.repeat(chunk, axis=axis).take(range(size), axis=axis)
    t, c, _ = shape
    by_sample = have.reshape(t, c // samples, samples, -1, math.prod(have.shape[3:]))
    table: NDArray[np.bool_] = np.all(by_sample, axis=2)
    return table.reshape(-1, table.shape[-1])
