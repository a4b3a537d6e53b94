"""The least that reading or writing a Zarr store can be: files, Zstandard, copies, threads.

No metadata but that of one array in Zarr v3, whose chunks (or the inner chunks of its shards)
are Zstandard alone and divide the array evenly; no missing chunks, no checks. What a real reader
takes longer than this is its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Box = tuple[tuple[int, int], ...]  # first and behind the last of every axis

BATCH = 4  # chunks a thread takes at once where they are small


class BareArray:
    """An array of a local store.

    Parameters
    ----------
    path
        Its folder.
    workers
        Threads.
    """

    def __init__(self, path: Path, workers: int) -> None:
        found = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        self.path = str(path)
        self.shape: tuple[int, ...] = tuple(found["shape"])
        self.dtype = np.dtype(found["data_type"]).newbyteorder("<")
        self.outer: tuple[int, ...] = tuple(found["chunk_grid"]["configuration"]["chunk_shape"])
        codec = found["codecs"][0]
        self.sharded = codec["name"] == "sharding_indexed"
        self.inner: tuple[int, ...] = self.outer
        if self.sharded:
            self.inner = tuple(codec["configuration"]["chunk_shape"])
        self.across = tuple(o // i for o, i in zip(self.outer, self.inner, strict=True))
        self.bytes = math.prod(self.inner) * self.dtype.itemsize
        self.workers = workers
        self._own = threading.local()

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """The pixels of a box, of all the array without one."""
        box = box or tuple((0, size) for size in self.shape)
        result = np.empty([stop - start for start, stop in box], self.dtype)
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(self.workers) as pool:
            jobs = list(self._jobs(box, stack))
            list(pool.map(lambda job: self._run(job, box, result), jobs))
        return result

    def _jobs(self, box: Box, stack: contextlib.ExitStack) -> Iterator[tuple[Any, ...]]:
        for place in _touched(box, self.outer):
            name = self._name(place)
            corner = tuple(p * size for p, size in zip(place, self.outer, strict=True))
            whole = all(
                a <= c and c + size <= b
                for (a, b), c, size in zip(box, corner, self.outer, strict=True)
            )
            if whole or not self.sharded:
                yield name, corner, None
                continue
            file = os.open(name, os.O_RDONLY)
            stack.callback(os.close, file)
            size = math.prod(self.across) * 16
            index = self._index(os.pread(file, size, os.fstat(file).st_size - size - 4))
            part = tuple(
                (max(a - c, 0), min(b - c, size))
                for (a, b), c, size in zip(box, corner, self.outer, strict=True)
            )
            places = list(_touched(part, self.inner))
            for start in range(0, len(places), BATCH):
                yield file, corner, [(at, *index[at]) for at in places[start : start + BATCH]]

    def _index(self, data: bytes) -> NDArray[Any]:
        return np.frombuffer(data, "<u8").reshape(*self.across, 2)

    def _name(self, place: tuple[int, ...]) -> str:
        return f"{self.path}/c/" + "/".join(map(str, place))

    def _run(self, job: tuple[Any, ...], box: Box, result: NDArray[Any]) -> None:
        file, corner, chunks = job
        if chunks is not None:
            for place, offset, count in chunks:
                self._decode(os.pread(file, int(count), int(offset)), corner, place, box, result)
            return
        data = memoryview(_read_file(file))
        if not self.sharded:
            self._decode(data, corner, (0,) * len(corner), box, result)
            return
        index = self._index(data[-math.prod(self.across) * 16 - 4 : -4])
        for place in np.ndindex(*self.across):
            offset, count = map(int, index[place])
            self._decode(data[offset : offset + count], corner, place, box, result)

    def _decode(
        self, data: Any, corner: tuple[int, ...], place: Any, box: Box, result: NDArray[Any]
    ) -> None:
        import imagecodecs

        pixels = self._own.__dict__.get("pixels")
        if pixels is None:  # one buffer per thread, used again and again
            pixels = self._own.pixels = np.empty(self.inner, self.dtype)
        imagecodecs.zstd_decode(data, out=pixels.reshape(-1).view(np.uint8))
        into, out_of = [], []
        for (a, b), c, p, size in zip(box, corner, place, self.inner, strict=True):
            start = c + p * size
            first, behind = max(a, start), min(b, start + size)
            into.append(slice(first - a, behind - a))
            out_of.append(slice(first - start, behind - start))
        result[tuple(into)] = pixels[tuple(out_of)]

    def write(self, pixels: NDArray[Any]) -> None:
        """Write all the array; one thread makes a whole shard (or chunk) and its file."""
        places = list(_touched(tuple((0, size) for size in self.shape), self.outer))
        for folder in {Path(self._name(place)).parent for place in places}:
            folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(lambda place: self._write_one(place, pixels), places))

    def _write_one(self, place: tuple[int, ...], pixels: NDArray[Any]) -> None:
        import imagecodecs

        index, end = [], 0
        count = math.prod(self.across)
        room = self._own.__dict__.get("room")
        if room is None:
            room = self._own.room = np.empty(count * (self.bytes + self.bytes // 128 + 1024), "u1")
        corner = [p * size for p, size in zip(place, self.outer, strict=True)]
        for at in np.ndindex(*self.across):
            starts = [c + i * size for c, i, size in zip(corner, at, self.inner, strict=True)]
            key = tuple(slice(s, s + n) for s, n in zip(starts, self.inner, strict=True))
            chunk = np.ascontiguousarray(pixels[key])
            size = len(imagecodecs.zstd_encode(chunk, 1, out=room[end:]))
            index += [end, size]
            end += size
        if self.sharded:
            import google_crc32c

            table = struct.pack(f"<{len(index)}Q", *index)
            table += struct.pack("<I", google_crc32c.value(table))
            room[end : end + len(table)] = np.frombuffer(table, "u1")
            end += len(table)
        with Path(self._name(place)).open("wb", buffering=0) as file:
            file.write(room[:end].data)


def _touched(box: Box, size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Chunks of that size that a box needs."""
    return itertools.product(
        *(range(a // n, -(-b // n)) for (a, b), n in zip(box, size, strict=True))
    )


def _read_file(name: str) -> bytes:
    file = os.open(name, os.O_RDONLY)
    try:
        return os.read(file, os.fstat(file).st_size)
    finally:
        os.close(file)
