"""What this machine can do at all: codecs alone, memory copies, page cache, file writes.

Each is a session like a contestant's, so that it takes its turn among them, under the same
disturbances. Whatever a real reader or writer must also do (open, parse, allocate, place the
pixels) is left out: inputs are in memory, output buffers are allocated and touched beforehand.
"""

from __future__ import annotations

import contextlib
import os
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.images import TILE, load_camera

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from bench.measure import Case, Session, Work

TILE_BYTES = TILE * TILE * 2
CHUNK = 4 << 20


def segments(path: Path) -> list[bytes]:
    """All encoded tiles of a TIFF, in the order of its pages."""
    import tifffile

    found = []
    with tifffile.TiffFile(path) as tif:
        for page in tif.pages:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                tif.filehandle.seek(offset)
                found.append(tif.filehandle.read(count))
    return found


def decoding(name: str, codec: str, workers: int | None = None) -> Session:
    """Decode every tile of a file into buffers that are used again and again.

    ``codec`` is the name of an imagecodecs decoder.
    """

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        import imagecodecs

        decode = getattr(imagecodecs, codec)
        encoded = segments(case.file(name))
        threads = workers or case.workers
        buffers: queue.SimpleQueue[NDArray[Any]] = queue.SimpleQueue()
        for _ in range(threads):
            buffers.put(np.ones(TILE_BYTES, np.uint8))

        def one(data: bytes) -> None:
            buffer = buffers.get()
            decode(data, out=buffer)
            buffers.put(buffer)

        with _pool(threads) as pool:
            yield lambda: _drain(pool.map(one, encoded))

    return session


def encoding(encode: Callable[[NDArray[Any]], Any], workers: int | None = None) -> Session:
    """Encode every tile of the test image; the tiles are contiguous beforehand."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        image = load_camera(case)
        tiles = [
            np.ascontiguousarray(image[y : y + TILE, x : x + TILE])
            for y in range(0, case.size, TILE)
            for x in range(0, case.size, TILE)
        ]
        encode(tiles[0])
        with _pool(workers or case.workers) as pool:
            yield lambda: _drain(pool.map(lambda tile: len(encode(tile)), tiles))

    return session


def isal_deflate(tile: Any) -> Any:
    """Encode as zlib stream with ISA-L at its strongest level."""
    from isal import isal_zlib

    return isal_zlib.compress(tile, 3)


def libdeflate(tile: Any) -> Any:
    """Encode as zlib stream with libdeflate at its fastest level."""
    import imagecodecs

    return imagecodecs.deflate_encode(tile, 1)


def zstd(tile: Any) -> Any:
    """Encode with Zstandard at level 1."""
    import imagecodecs

    return imagecodecs.zstd_encode(tile, 1)


def memcpy(workers: int | None = None) -> Session:
    """Copy the test image into fresh memory, in one stripe per worker."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        image = load_camera(case)
        threads = workers or case.workers
        bounds = np.linspace(0, len(image), threads + 1).astype(int)

        def copy(pool: ThreadPoolExecutor) -> None:
            fresh = np.empty_like(image)

            def stripe(index: int) -> None:
                rows = slice(bounds[index], bounds[index + 1])
                fresh[rows] = image[rows]

            _drain(pool.map(stripe, range(threads)))

        with _pool(threads) as pool:
            yield lambda: copy(pool)

    return session


def cached_read(name: str, workers: int | None = None) -> Session:
    """Read a file out of the page cache into a buffer that is used again and again."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        path = case.file(name)
        threads = workers or case.workers
        starts = range(0, path.stat().st_size, CHUNK)
        buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(threads):
            buffers.put(bytearray(CHUNK))
        with path.open("rb", buffering=0) as file, _pool(threads) as pool:

            def one(start: int) -> None:
                buffer = buffers.get()
                if hasattr(os, "preadv"):
                    os.preadv(file.fileno(), [buffer], start)
                else:  # no positioned reads: one handle per call keeps threads apart
                    with path.open("rb", buffering=0) as own:
                        own.seek(start)
                        own.readinto(buffer)
                buffers.put(buffer)

            yield lambda: _drain(pool.map(one, starts))

    return session


def file_write() -> Session:
    """Write the test image's bytes to a new file, in pieces, without flushing it to the disk."""

    @contextlib.contextmanager
    def session(case: Case) -> Iterator[Work]:
        data = load_camera(case).data.cast("B")
        path = case.output()

        def write() -> None:
            with path.open("wb", buffering=0) as file:
                for start in range(0, len(data), CHUNK):
                    file.write(data[start : start + CHUNK])

        yield write
        path.unlink(missing_ok=True)

    return session


@contextlib.contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(threads) as pool:
        _drain(pool.map(abs, range(threads)))  # started before the clock is
        yield pool


def _drain(results: Iterator[Any]) -> None:
    for _ in results:
        pass
