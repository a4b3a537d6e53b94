"""The bytes of what an HDF5 file is made of, in the oldest form: every version reads it.

Names and numbers are those of the HDF5 File Format Specification, version 3.0, with the section
where a layout is described. All integers are little-endian, offsets and lengths have 8 bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
UNDEFINED = 0xFFFF_FFFF_FFFF_FFFF
"""An address of nothing, and the largest size of an axis without end."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"
CHUNK_K = 32
"""Half of the most children of a node of the index of chunks, where a file does not say."""
LEAF_K, NODE_K = 4, 16
"""The same of the leaves and nodes that a group is made of."""

DATASPACE, LINK_INFO, DATATYPE, FILL_VALUE, LINK, LAYOUT = 1, 2, 3, 5, 6, 8
GROUP_INFO, PIPELINE, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE = 10, 11, 12, 16, 17
"""Types of messages (IV.A.2)."""


def padded(data: bytes) -> bytes:
    """Return bytes with zeros behind them, up to a multiple of 8."""
    return data + bytes(-len(data) % 8)


def superblock(end: int, root: int) -> bytes:
    """Return a superblock of version 0 (II.A): `end` of the file, header of the root group."""
    start = struct.pack(
        "<8s8BHHI4Q",
        *(SIGNATURE, 0, 0, 0, 0, 0, 8, 8, 0, LEAF_K, NODE_K, 0),
        *(0, UNDEFINED, end, UNDEFINED),
    )
    return start + symbol(0, root)


def symbol(name: int, header: int, rest: bytes = bytes(24)) -> bytes:
    """Return an entry of a group (III.C): offset of the name, address of the object's header."""
    return struct.pack("<QQ", name, header) + rest


def object_header(messages: Sequence[tuple[int, bytes]]) -> bytes:
    """Return an object header of version 1 (IV.A.1.a) with messages: type, body."""
    return raw_header([(kind, 0, padded(body)) for kind, body in messages])


def raw_header(messages: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Return the same of messages with their flags: type, flags, padded body."""
    body = b"".join(
        struct.pack("<HHB3x", kind, len(data), flags) + data for kind, flags, data in messages
    )
    return struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body


def dataspace(shape: Sequence[int], largest: Sequence[int]) -> bytes:
    """Return the sizes of a dataset (IV.A.2.b); none of a single value."""
    sizes = (*shape, *largest)
    return struct.pack(f"<BBB5x{len(sizes)}Q", 1, len(shape), 1 if shape else 0, *sizes)


def datatype(dtype: np.dtype[Any]) -> bytes:
    """Return a little-endian type of numbers, or of text of one length (IV.A.2.d)."""
    size = dtype.itemsize
    if dtype.kind == "S":  # padded with zeros, ASCII
        return struct.pack("<4BI", 0x13, 1, 0, 0, size)
    if dtype.kind == "f":
        exponent, bias = {4: (8, 127), 8: (11, 1023)}[size]
        mantissa = 8 * size - 1 - exponent
        return struct.pack(
            "<4BIHH4BI",
            *(0x11, 0x20, 8 * size - 1, 0, size, 0, 8 * size),
            *(mantissa, exponent, 0, mantissa, bias),
        )
    return struct.pack("<4BIHH", 0x10, 8 * (dtype.kind == "i"), 0, 0, size, 0, 8 * size)


def attribute(name: str, value: bytes) -> bytes:
    """Return an attribute that is a text (IV.A.2.m)."""
    kind = datatype(np.dtype(f"S{len(value)}"))
    space = dataspace((), ())
    label = name.encode() + b"\0"
    sizes = struct.pack("<BxHHH", 1, len(label), len(kind), len(space))
    return sizes + padded(label) + padded(kind) + padded(space) + value


def pipeline(filters: Sequence[tuple[int, int, tuple[int, ...], bytes]]) -> bytes:
    """Return what is done to chunks (IV.A.2.l): for each filter number, flags, values, name."""
    parts = [struct.pack("<BB6x", 1, len(filters))]
    for number, flags, values, name in filters:
        label = padded(name + b"\0")
        parts.append(struct.pack("<4H", number, len(label), flags, len(values)) + label)
        parts.append(padded(struct.pack(f"<{len(values)}I", *values)))
    return b"".join(parts)


def dataset(
    shape: Sequence[int],
    chunk: Sequence[int],
    dtype: np.dtype[Any],
    filters: Sequence[tuple[int, int, tuple[int, ...], bytes]],
    index: int,
    fixed: Sequence[int] = (),
) -> bytes:
    """Return the header of a dataset in chunks, whose index is at an address.

    Axes grow without end, but for the last ones, which are given in `fixed`.
    """
    free = len(shape) - len(fixed)
    layout = struct.pack("<BBBQ", 3, 2, len(shape) + 1, index)
    layout += struct.pack(f"<{len(shape) + 1}I", *chunk, dtype.itemsize)
    messages = [
        (DATASPACE, dataspace(shape, (*(UNDEFINED,) * free, *fixed))),
        (DATATYPE, datatype(dtype)),
        # room for a chunk is taken when it is written, what was never written is 0
        (FILL_VALUE, struct.pack("<4BI", 2, 3, 2, 1, 0)),
        (LAYOUT, layout),
    ]
    if filters:
        messages.append((PIPELINE, pipeline(filters)))
    return object_header(messages)


def chunk_index(
    chunks: Mapping[tuple[int, ...], tuple[int, int, int]],
    chunk: Sequence[int],
    base: int,
    half: int = CHUNK_K,
) -> tuple[bytes, int]:
    """Return the B-tree of the chunks of a dataset (III.A.1), and the address of its root.

    Parameters
    ----------
    chunks : mapping
        Where each begins in the dataset: where it is in the file, how many bytes long, and the
        filters that were not used for it, a bit for each.
    chunk : sequence of int
        Size of one.
    base : int
        Where the bytes go in the file.
    half : int
        Half of the most children of a node.
    """
    if not chunks:
        return b"", UNDEFINED
    most = 2 * half
    rank = len(chunk) + 1
    record = np.dtype(
        [("bytes", "<u4"), ("skipped", "<u4"), ("corner", "<u8", (rank,)), ("child", "<u8")]
    )
    corners = sorted(chunks)
    keys = np.zeros(len(corners), record)
    keys["corner"][:, :-1] = corners
    where = np.array([chunks[corner] for corner in corners], np.uint64)
    keys["child"], keys["bytes"], keys["skipped"] = where.T
    last = np.zeros(1, record)  # more than any corner
    last["corner"][0, :-1] = np.add(corners[-1], chunk)
    length = 24 + most * record.itemsize + record.itemsize - 8
    data: list[bytes] = []
    level = 0
    while level == 0 or len(keys) > 1:
        starts = range(0, len(keys), most)
        first = base + len(data) * length
        places = [first + n * length for n in range(len(starts))]
        beside = [UNDEFINED, *places, UNDEFINED]
        for n, start in enumerate(starts):
            some = keys[start : start + most]
            after = keys[start + most : start + most + 1]
            end = (after if len(after) else last).tobytes()[:-8]
            head = struct.pack("<4sBBHQQ", b"TREE", 1, level, len(some), beside[n], beside[n + 2])
            data.append((head + some.tobytes() + end).ljust(length, b"\0"))
        keys = keys[::most].copy()
        keys["child"] = places
        level += 1
    return b"".join(data), int(keys["child"][0])


def external_link(name: str, file: str, path: str) -> bytes:
    """Return a link to an object of another file (IV.A.2.g)."""
    value = b"\0" + file.encode() + b"\0" + path.encode() + b"\0"
    label = name.encode()
    # flags: the type is said, and that names are UTF-8
    head = struct.pack("<4BB", 1, 0x18, 64, 1, len(label))
    return head + label + struct.pack("<H", len(value)) + value


def linking_group(links: Sequence[bytes]) -> bytes:
    """Return the header of a group of links, the only kind that may be to other files."""
    info = struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED)
    return object_header([(LINK_INFO, info), (GROUP_INFO, bytes(2)), *((LINK, v) for v in links)])


def read_header(data: bytes, at: int = 0) -> tuple[int, int]:
    """Return how many messages an object header has, and how many bytes of them come first.

    Raises
    ------
    ValueError
        It is none of version 1.
    """
    version, messages, _, size = struct.unpack_from("<BxHII", data, at)
    if version != 1:
        raise ValueError(f"an object header of version {version}")
    return messages, size


def read_messages(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return the messages in a part of an object header: type, flags, body."""
    found, at = [], 0
    while at + 8 <= len(data):
        kind, size, flags = struct.unpack_from("<HHB", data, at)
        found.append((kind, flags, data[at + 8 : at + 8 + size]))
        at += 8 + size
    return found
