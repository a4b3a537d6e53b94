"""CZI: the directory of its image blocks, against the length of the file.

ZISRAW file format 1.2: segments with a header of 32 bytes (name, room, used); the file header
names the place of the directory, whose entries ("DV") name the place of each block.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.backends._java_bytes import Bytes

_HEAD = 32
_ENTRY = struct.Struct("<2siqii")
"""Schema, pixel type, place in the file, part of the file, compression."""
_FIXED = 32
_AXIS = 20
_DIRECTORY_HEAD = 128
_ZSTD = {5, 6}
_FARTHEST = 10_000_000
_MOST_AXES = 40
_LOOKED = 1000
"""Blocks whose axes are looked at."""
_LAST = 16
"""Blocks at the end of the file whose length is looked at."""


def check(file: Bytes, version: str) -> None:
    """Raise where the directory or a block of pixels lies beyond the end of the file."""
    part, directory, metadata = file.unpack("<iqq", 80, "the header")
    if directory == 0:  # not written yet: Bio-Formats looks for the blocks one by one
        _unlisted(file)
        return
    if metadata:  # the first part of several has them
        _segment(file, metadata, b"ZISRAWMETADATA", "the metadata")
    blocks = _blocks(file, directory)
    if not blocks.size:
        return
    old = version.startswith("6.")
    if old and _ZSTD & set(np.unique(blocks[:, 2]).tolist()):
        raise file.too_new(version, "is compressed with Zstandard")
    for number in np.unique(blocks[:, 1]).tolist():
        if number not in (part, 0):
            _other_part(file, number)
    here = np.sort(blocks[blocks[:, 1] == part, 0])
    if here.size and here[0] < _HEAD:
        raise file.damaged(f"a block of pixels lies at byte {here[0]}")
    _check_planes(file, here[:_LOOKED].tolist(), version if old else "")
    for place in here[-_LAST:].tolist():
        _segment(file, place, b"ZISRAWSUBBLOCK", "a block of pixels")


def _check_planes(file: Bytes, places: list[int], old: str) -> None:
    """Raise for blocks that lie nowhere; for an `old` version also where several make a plane."""
    planes: set[bytes | None] = set()
    for place in places:
        entry = file.all(place + _HEAD + 16, _FIXED, "a block of pixels")
        length = _AXIS * min(_MOST_AXES, int.from_bytes(entry[28:], "little"))
        axes = file.all(place + _HEAD + 16 + _FIXED, length, "a block of pixels")
        _check_axes(file, axes)
        plane = _plane(axes)
        if old and plane is not None and plane in planes:
            raise file.too_new(old, "is a mosaic of tiles")
        planes.add(plane)


def _blocks(file: Bytes, directory: int) -> NDArray[np.int64]:
    """Return place, part and compression of each block, (n, 3)."""
    used = _segment(file, directory, b"ZISRAWDIRECTORY", "the directory of its blocks")
    data = file.all(directory + _HEAD, used, "the directory of its blocks")
    count = int.from_bytes(data[:4], "little", signed=True)
    if not 0 <= count <= used // _FIXED:
        raise file.damaged(f"its directory claims {count} blocks")
    found = np.empty((count, 3), np.int64)
    at = _DIRECTORY_HEAD
    for number in range(count):
        if at + _FIXED > len(data):
            raise file.damaged("its directory of blocks is incomplete")
        _, _, *entry = _ENTRY.unpack_from(data, at)
        found[number] = entry
        at += _FIXED + _AXIS * int.from_bytes(data[at + 28 : at + 32], "little")
    return found


def _check_axes(file: Bytes, data: bytes) -> None:
    """Raise where a block claims a place that no image has: Bio-Formats would count up to it."""
    for at in range(0, len(data), _AXIS):
        start, size = struct.unpack_from("<ii", data, at + 4)
        name = data[at : at + 1]
        if size < 1 or size > _FARTHEST or (name not in b"XYM" and not 0 <= start < _FARTHEST):
            raise file.damaged(f"a block of pixels claims {start} and {size} along an axis")


def _plane(data: bytes) -> bytes | None:
    """Return which plane a block is of, None for one of a smaller resolution."""
    found = []
    for name, start, size, _, stored in struct.iter_unpack("<4siifi", data):
        if name[:1] not in b"XYM":
            found.append(struct.pack("<4si", name, start))
        elif stored not in (0, size) and name[:1] != b"M":
            return None
    return b"".join(sorted(found))


def _segment(file: Bytes, place: int, name: bytes, what: str) -> int:
    """Return how many bytes a segment uses; raise where it is not there or not whole."""
    head = file.all(place, _HEAD, what)
    if not head.startswith(name):
        raise file.damaged(f"{what} is not at byte {place}")
    room, used = struct.unpack_from("<qq", head, 16)
    length: int = used or room
    file.need(place + _HEAD, length, what)
    return length


def _unlisted(file: Bytes) -> None:
    at = 0
    while at < file.size:
        head = file.some(at, _HEAD)
        if not head.startswith((b"ZISRAW", b"DELETED")):
            return
        room, used = struct.unpack("<qq", head[16:]) if len(head) == _HEAD else (0, _HEAD)
        file.need(at + _HEAD, used or room, "a block of pixels")
        at += _HEAD + max(room, 1)


def _other_part(file: Bytes, number: int) -> None:
    begin, end = file.path.stem, f"({number}){file.path.suffix}"
    if not any(file.path.with_name(name).exists() for name in (f"{begin} {end}", f"{begin}{end}")):
        raise FileNotFoundError(
            f"{str(file.path)!r} is one part of an image; '{begin} {end}' is missing beside it"
        )
