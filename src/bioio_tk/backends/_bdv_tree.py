"""The tree of an HDF5 file that changes in one moment: from one valid state to the next.

Nothing that a reader can reach is ever written again. What changes is written anew, behind the
end of the file, with all groups above it up to the root; then the few bytes of the superblock
that say where the root is, and where the file ends, are replaced by a single write. So a process
that is killed, at whatever instruction, leaves the state before or the state after, and somebody
who opened the file earlier goes on reading what there was then.
"""

from __future__ import annotations

import os
import struct
import threading
from bisect import bisect_left
from collections import OrderedDict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from bioio_tk.backends import _bdv_objects as hdf5
from bioio_tk.core.signals import interrupt_later
from bioio_tk.errors import DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bioio_tk.backends._file import RandomFile

Place: TypeAlias = tuple[str, ...]
_ENTRY = 40
_HEAD_SIZE = 128
_MOST_GROUPS = 64
"""Groups that are kept in memory beside the root."""
_PAGE = 4096
_LEAST_AHEAD, _MOST_AHEAD = 1 << 18, 1 << 24
"""Bytes that a file is longer than it has to be while it is written."""


class _Format(NamedTuple):
    """What the superblock of a file says of all of it."""

    leaf_k: int
    node_k: int
    chunk_k: int
    at: int
    """Where its addresses begin."""
    end: int
    root: int


class _Leaf:
    """A few entries of a group, sorted by name."""

    __slots__ = ("address", "entries", "names")

    def __init__(self, names: list[bytes], entries: list[bytes], address: int | None) -> None:
        self.names = names
        self.entries = entries
        self.address = address


class _Group:
    """A group, as it is and as it will be written next."""

    def __init__(self, *, grows: bool) -> None:
        self.messages: list[tuple[int, int, bytes]] = []  # all but where the entries are
        self.leaves: list[_Leaf] = []
        self.nodes: dict[tuple[int, ...], int] = {}  # by what is in them
        self.names = bytearray(8)  # the heap
        self.grows = grows
        self.room = 0  # bytes of the heap in the file, with what is free in it
        self.written = 0  # bytes of names in it
        self.heap_header = 0
        self.heap_data = 0

    def find(self, name: bytes) -> bytes | None:
        """Return the entry of a name."""
        leaf = self._leaf(name)
        if leaf is not None:
            at = bisect_left(leaf.names, name)
            if at < len(leaf.names) and leaf.names[at] == name:
                return leaf.entries[at]
        return None

    def _leaf(self, name: bytes) -> _Leaf | None:
        at = bisect_left(self.leaves, name, key=lambda leaf: leaf.names[-1])
        return self.leaves[min(at, len(self.leaves) - 1)] if self.leaves else None

    def put(self, name: bytes, header: int, most: int) -> None:
        """Let a name stand for the object whose header is at an address."""
        leaf = self._leaf(name)
        if leaf is None:
            leaf = _Leaf([], [], None)
            self.leaves.append(leaf)
        at = bisect_left(leaf.names, name)
        leaf.address = None
        if at < len(leaf.names) and leaf.names[at] == name:
            (offset,) = struct.unpack_from("<Q", leaf.entries[at])
            leaf.entries[at] = hdf5.symbol(offset, header)
            return
        leaf.names.insert(at, name)
        leaf.entries.insert(at, hdf5.symbol(len(self.names), header))
        self.names += hdf5.padded(name + b"\0")
        if len(leaf.names) > most:
            self._split(leaf, last=at == len(leaf.names) - 1)

    def _split(self, leaf: _Leaf, *, last: bool) -> None:
        where = self.leaves.index(leaf)
        # names mostly come in order: then leaves are left full
        middle = len(leaf.names) - 1 if last else len(leaf.names) // 2
        self.leaves.insert(where + 1, _Leaf(leaf.names[middle:], leaf.entries[middle:], None))
        del leaf.names[middle:], leaf.entries[middle:]

    def drop(self, name: bytes) -> None:
        """Forget a name that is there."""
        leaf = self._leaf(name)
        if leaf is None:
            return
        at = leaf.names.index(name)
        del leaf.names[at], leaf.entries[at]
        leaf.address = None
        if not leaf.names:
            self.leaves.remove(leaf)

    def members(self) -> list[str]:
        """Return all names in it."""
        return [name.decode("utf-8", "replace") for leaf in self.leaves for name in leaf.names]


class Edit:
    """Changes of a tree that are made together."""

    def __init__(self, tree: Tree, base: int) -> None:
        self._tree = tree
        self._base = base
        self.data = bytearray()
        self.patches: list[tuple[int, bytes]] = []

    def add(self, data: bytes) -> int:
        """Write an object and return its address."""
        at = self.next
        self.data += hdf5.padded(data)
        return at

    @property
    def next(self) -> int:
        """The address of what is added next."""
        return self._base + len(self.data)

    def add_chunk_index(
        self, chunks: Mapping[tuple[int, ...], tuple[int, int, int]], chunk: tuple[int, ...]
    ) -> int:
        """Write the index of the chunks of a dataset and return its address."""
        data, root = hdf5.chunk_index(chunks, chunk, self.next, self._tree.format.chunk_k)
        self.data += data
        return root

    def add_group(self, members: Mapping[str, int]) -> int:
        """Write a group of objects at addresses, by name, and return its address."""
        group = _Group(grows=False)
        for name, header in members.items():
            group.put(name.encode(), header, 2 * self._tree.format.leaf_k)
        return self._save(group)

    def make_group(self, path: Place, messages: Sequence[tuple[int, bytes]] = ()) -> None:
        """Make a group that grows, with messages of its own (attributes)."""
        group = self._tree.new_group(path)
        group.messages = [(kind, 0, hdf5.padded(body)) for kind, body in messages]
        self._tree.changed.add(path)

    def link(self, path: Place, header: int) -> None:
        """Let a path stand for an object; groups of it that are not there are made."""
        self._tree.forget_group(path)
        self._put(path, header)

    def _put(self, path: Place, header: int) -> None:
        group = self._tree.group(path[:-1])
        if group is None:
            group = self._tree.new_group(path[:-1])
        group.put(path[-1].encode(), header, 2 * self._tree.format.leaf_k)
        self._tree.changed.add(path[:-1])

    def unlink(self, path: Place) -> None:
        """Let nothing be at a path; what was there keeps its place in the file."""
        group = self._tree.group(path[:-1])
        if group is not None and group.find(path[-1].encode()) is not None:
            group.drop(path[-1].encode())
            self._tree.forget_group(path)
            self._tree.changed.add(path[:-1])

    def save_changed(self) -> int:
        """Write all changed groups, the lower ones first, and return the address of the root."""
        tree = self._tree
        while True:
            path = max(tree.changed, key=len)
            tree.changed.discard(path)
            group = tree.group(path)
            header = self._save(group)  # type: ignore[arg-type]
            if not path:
                return header
            self._put(path, header)

    def _save(self, group: _Group) -> int:
        """Write what is new of a group, and return the address of its header."""
        form = self._tree.format
        self._save_heap(group)
        children, ends = [], [0]
        for leaf in group.leaves:
            if leaf.address is None:
                head = struct.pack("<4sBxH", b"SNOD", 1, len(leaf.names))
                data = head + b"".join(leaf.entries)
                leaf.address = self.add(data.ljust(8 + 2 * form.leaf_k * _ENTRY, b"\0"))
            children.append(leaf.address)
            ends.append(struct.unpack_from("<Q", leaf.entries[-1])[0])
        nodes: dict[tuple[int, ...], int] = {}
        most, level = 2 * form.node_k, 0
        while level == 0 or len(children) > 1:
            above, above_ends = [], [0]
            for start in range(0, max(1, len(children)), most):
                below = children[start : start + most]
                keys = ends[start : start + len(below) + 1]
                known = (level, *below, *keys)
                at = group.nodes.get(known)
                if at is None:
                    at = self.add(_node(level, below, keys, most))
                nodes[known] = at
                above.append(at)
                above_ends.append(keys[-1])
            children, ends = above, above_ends
            level += 1
        group.nodes = nodes
        where = struct.pack("<QQ", children[0], group.heap_header)
        return self.add(hdf5.raw_header([*group.messages, (hdf5.SYMBOL_TABLE, 0, where)]))

    def _save_heap(self, group: _Group) -> None:
        """Write names that are new: where nobody looks yet, or all of them where there is room."""
        names = bytes(group.names)
        if len(names) > group.room:
            # a group whose entries come one by one gets twice as much room each time
            group.room = 2 * len(names) if group.grows else len(names)
            group.heap_header = self.next
            group.heap_data = group.heap_header + 32
            # no free block (1): names that come later are entered in the free room all the same
            self.add(struct.pack("<4sB3xQQQ", b"HEAP", 0, group.room, 1, group.heap_data))
            self.add(names.ljust(group.room, b"\0"))
        elif len(names) > group.written:
            self.patches.append((group.heap_data + group.written, names[group.written :]))
        group.written = len(names)


class Tree:
    """The groups of an HDF5 file, which it changes by `edit`; thread-safe.

    Parameters
    ----------
    file : RandomFile
        Open for writing; an empty one becomes an HDF5 file without members.

    Raises
    ------
    DamagedFileError
        It is not empty and no HDF5 file, or its end is missing.
    UnsupportedError
        It is an HDF5 file of a kind that is not changed here: one of the newer layouts.
    """

    def __init__(self, file: RandomFile) -> None:
        self.file = file
        self._name = repr(str(file.path))
        self._lock = threading.RLock()
        self._groups: OrderedDict[Place, _Group] = OrderedDict()
        self.changed: set[Place] = set()
        self._edit: Edit | None = None
        self._found = file.size > 0
        """It was there before, and is as it was."""
        if not self._found:
            self._begin()
        self.format = self._read_superblock()
        self._end = self._used = self._size = self.format.end
        self.room = 0
        """Bytes that the file is said to go on behind its end: who opens it now finds there what
        comes into stacks that grow."""

    def _begin(self) -> None:
        blank = hdf5.superblock(0, 0)
        self.format = _Format(hdf5.LEAF_K, hdf5.NODE_K, hdf5.CHUNK_K, 24, len(blank), 0)
        edit = Edit(self, len(blank))
        root = edit.add_group({})
        # the signature last: until then the file is none, rather than a broken one
        self.file.write(len(blank), bytes(edit.data))
        whole = hdf5.superblock(len(blank) + len(edit.data), root)
        self.file.write(0, whole)

    # ------------------------------------------------------------------ reading

    def _read_superblock(self) -> _Format:
        head = self.file.read(0, _HEAD_SIZE)
        if head[:8] != hdf5.SIGNATURE or len(head) < 96:
            for at in (512 << n for n in range(16)):
                if self.file.read(at, 8) == hdf5.SIGNATURE:
                    raise UnsupportedError(
                        f"{self._name} begins with a block of its owner: it is read but not "
                        "changed here, copy its views into a new file, and change that"
                    )
            raise DamagedFileError(f"{self._name} is no HDF5 file")
        version, sizes = head[8], tuple(head[13:15])
        if version > 1 or sizes != (8, 8):
            raise UnsupportedError(
                f"{self._name} is an HDF5 file of a newer layout (superblock {version}), which is "
                "read but not changed here: copy its views into a new file, and change that"
            )
        at = 24 + 4 * version
        leaf_k, node_k, chunk_k = struct.unpack_from("<HH4xH", head, 16)
        base, _, end, _, _, root = struct.unpack_from("<6Q", head, at)
        if base:
            raise UnsupportedError(f"{self._name} has addresses that begin at {base}: not changed")
        if end > self.file.size:
            raise DamagedFileError(
                f"{self._name} has {self.file.size} bytes where it says {end}: its end is "
                "missing, copy it again from where it came from"
            )
        return _Format(leaf_k, node_k, chunk_k if version else hdf5.CHUNK_K, at, end, root)

    def group(self, path: Place) -> _Group | None:
        """Return a group as it is with all changes so far, None where there is none."""
        known = self._groups.get(path)
        if known is not None:
            self._groups.move_to_end(path)
            return known
        at = self.find(path) if path else self.format.root
        if at is None:
            return None
        group = self._groups[path] = self._read_group(path, at)
        self._forget()
        return group

    def _forget(self) -> None:
        last = next(reversed(self._groups))
        for path in list(self._groups):
            if len(self._groups) <= _MOST_GROUPS:
                return
            if path and path not in self.changed and path != last:
                del self._groups[path]

    def forget_group(self, path: Place) -> None:
        """Forget what was known of a group that is replaced, and of those in it."""
        for known in [other for other in self._groups if other[: len(path)] == path]:
            del self._groups[known]

    def new_group(self, path: Place) -> _Group:
        """Return a group that is not there yet."""
        group = self._groups[path] = _Group(grows=True)
        self._forget()
        return group

    def find(self, path: Place) -> int | None:
        """Return the address of an object, None where there is none."""
        with self._lock:
            group = self.group(path[:-1])
            entry = None if group is None else group.find(path[-1].encode())
            return None if entry is None else int(struct.unpack_from("<Q", entry, 8)[0])

    def names(self, path: Place) -> list[str]:
        """Return the names in a group; none where there is no group."""
        with self._lock:
            group = self.group(path)
            return [] if group is None else group.members()

    def _read_group(self, path: Place, at: int) -> _Group:
        try:
            messages = self._messages(at)
            (where,) = (body for kind, _, body in messages if kind == hdf5.SYMBOL_TABLE)
            tree, heap = struct.unpack_from("<QQ", where)
            mark, size, data = struct.unpack("<4s4xQ8xQ", self._read(heap, 32))
            if mark != b"HEAP":
                raise ValueError("no names")
            group = _Group(grows=True)
            apart = (0, hdf5.SYMBOL_TABLE, hdf5.CONTINUATION)
            group.messages = [message for message in messages if message[0] not in apart]
            names = self._read(data, size)
            group.names[:] = names
            group.room = group.written = size
            group.heap_header, group.heap_data = heap, data
            for leaf in self._leaves(tree):
                entries = self._entries(leaf)
                if entries:
                    found = [_text(names, entry) for entry in entries]
                    group.leaves.append(_Leaf(found, entries, leaf))
        except (ValueError, struct.error, IndexError) as exc:
            place = "/" + "/".join(path)
            raise UnsupportedError(
                f"the group {place!r} of {self._name} is of a kind that is read but not changed "
                f"here ({exc}): copy its views into a new file, and change that"
            ) from exc
        return group

    def messages(self, at: int) -> list[tuple[int, int, bytes]]:
        """Return what an object says of itself, by its address: type, flags, body of each message.

        Raises
        ------
        ValueError, struct.error
            There is no such object.
        """
        return self._messages(at)

    def _messages(self, at: int) -> list[tuple[int, int, bytes]]:
        """Return all messages of an object, also those of the continuations of its header."""
        _, size = hdf5.read_header(self._read(at, 16))
        parts = [(at + 16, size)]
        found: list[tuple[int, int, bytes]] = []
        for where, length in parts:  # which grows meanwhile
            some = hdf5.read_messages(self._read(where, length))
            parts += [
                struct.unpack_from("<QQ", body) for kind, _, body in some
                if kind == hdf5.CONTINUATION
            ]  # fmt: skip
            found += some
            if len(parts) > 1000:
                raise ValueError("a header without end")
        return found

    def _leaves(self, at: int) -> Iterator[int]:
        form = self.format
        most = 2 * form.node_k
        data = self._read(at, 24 + 8 * (2 * most + 1))
        mark, kind, level, used = struct.unpack_from("<4sBBH", data)
        if mark != b"TREE" or kind or used > most:
            raise ValueError("no node of a group")
        for n in range(used):
            (child,) = struct.unpack_from("<Q", data, 32 + 16 * n)
            if level:
                yield from self._leaves(child)
            else:
                yield child

    def _entries(self, at: int) -> list[bytes]:
        data = self._read(at, 8 + 2 * self.format.leaf_k * _ENTRY)
        mark, used = struct.unpack_from("<4s2xH", data)
        if mark != b"SNOD" or used > 2 * self.format.leaf_k:
            raise ValueError("no leaf of a group")
        return [data[8 + n * _ENTRY :][:_ENTRY] for n in range(used)]

    def _read(self, at: int, count: int) -> bytes:
        if not 0 <= at <= self.format.end:
            raise ValueError(f"nothing is at {at}")
        data = self.file.read(at, count)
        if len(data) != count:
            raise ValueError(f"{count} bytes at {at} are behind the end")
        return data

    # ------------------------------------------------------------------ writing

    def write(self, at: int, data: Any) -> None:
        """Write bytes at an address; what the system says against it names the file."""
        try:
            self.file.write(at, data)
        except OSError as exc:
            if exc.filename is None:
                exc.filename = str(self.file.path)
            raise

    def allocate(self, count: int) -> int:
        """Return the address of room for so many bytes, behind all there is."""
        with self._lock:
            # whole pages begin where pages do, so that two threads never write to the same one;
            # of all others the rest of a page would be in vain
            step = 8 if count % _PAGE else _PAGE
            at = -(-self._end // step) * step
            self._end = at + count
            if self._found:  # a root behind all that others have added, before the file is longer
                with self.edit():
                    pass
            self._go_ahead(self._end)
            return at

    def _go_ahead(self, end: int) -> None:
        """Make the file longer than it has to be, and say so, long before anybody finds `end`.

        HDF5 looks at the length of a file, then reads where it is said to end, then where the root
        is: each of them has to be large enough for what is read after it.
        """
        ahead = max(self.room, min(_MOST_AHEAD, max(_LEAST_AHEAD, end // 16)))
        if self.format.end < end + ahead // 2 and self._size > self.format.end:
            self._replace_root(self._size, self.format.root)  # it is that long for a while now
        if self._size < end + ahead or self._size == self.format.end:
            with suppress(OSError):  # there may be a limit: then somebody may have to look again
                os.ftruncate(self.file.fileno(), end + 2 * ahead)
                self._size = end + 2 * ahead

    @contextmanager
    def edit(self) -> Iterator[Edit]:
        """Collect changes; they are made, all of them in one moment, when the block is left.

        Within such a block it is the same one again: all is made when the outer one is left.

        Raises
        ------
        OSError
            The system did not take them (a full disk): the file is as it was.
        """
        # Ctrl-C between the change of the file and that of what is known of it: the next one would
        # be written over it
        with interrupt_later(), self._lock:
            if self._edit is not None:
                yield self._edit
                return
            edit = Edit(self, -(-self._end // 8) * 8)
            if not self._found:
                self._go_ahead(self._end)
            self._edit = edit
            try:
                yield edit
                self.changed.add(())
                root = edit.save_changed()
                for at, data in edit.patches:
                    self.write(at, data)
                end = edit.next
                self.write(end - len(edit.data), edit.data)
                reach = end + self.room if self._size > end + self.room else end
                self._replace_root(max(reach, self.format.end), root)
            except BaseException:
                self._groups.clear()
                self.changed.clear()
                raise
            finally:
                self._edit = None
            self._end = self._used = end
            self._found = False

    def _replace_root(self, end: int, root: int) -> None:
        """Let the file be the tree below a new root, by one write of bytes that lie together."""
        form = self.format
        where = form.at + 16
        with interrupt_later():
            self.write(where, struct.pack("<QQ", end, hdf5.UNDEFINED) + hdf5.symbol(0, root))
            self.format = form._replace(end=end, root=root)

    def keep(self, end: int) -> None:
        """Let what is before `end` stay: room was allocated there, and is filled."""
        with self._lock:
            self._used = max(self._used, end)
            if end > self.format.end:
                self._replace_root(end, self.format.root)

    def forget_rest(self) -> None:
        """Give back room that was allocated since the last edit; nothing of it may be in use."""
        with self._lock:
            self._end = self._used

    def settle(self, end: int | None = None) -> None:
        """Let the file end where its last object does: nothing is written any more.

        Of a file that another process has left, `end` is where its last chunk does. Whatever
        somebody has added to the file since stays: HDF5 leaves no file longer than it is said to
        be, while a writer of ours always does (`_go_ahead`).
        """
        with self._lock:
            self.room = 0
            if end is not None and self.file.size > self.format.end:
                _, size = hdf5.read_header(self._read(self.format.root, 16))
                self._end = max(end, self.format.root + 16 + size)
            if self._end < self.format.end:
                self._replace_root(self._end, self.format.root)
            if self.file.size > self._end:
                os.ftruncate(self.file.fileno(), self._end)
            self._used = self._size = self._end


def _node(level: int, children: list[int], keys: list[int], most: int) -> bytes:
    """Return a node of a group: offsets of names, and between them addresses of children."""
    beside = hdf5.UNDEFINED  # nodes are replaced, so none knows its neighbours; nobody needs that
    head = struct.pack("<4sBBHQQ", b"TREE", 0, level, len(children), beside, beside)
    pairs = [n for pair in zip(keys, children, strict=False) for n in pair]
    body = struct.pack(f"<{len(pairs) + 1}Q", *pairs, keys[len(children)] if children else 0)
    return (head + body).ljust(24 + 8 * (2 * most + 1), b"\0")


def _text(names: bytes, entry: bytes) -> bytes:
    (start,) = struct.unpack_from("<Q", entry)
    return names[start : names.index(b"\0", start)]
