"""BdvFile: the HDF5 side of a BigDataViewer dataset, one file or several, as it grows."""

from __future__ import annotations

import errno
import os
import re
import struct
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bioio_tk.backends import _bdv_objects as hdf5
from bioio_tk.backends._bdv_layout import (
    CELLS,
    DATA_TYPE,
    FULL,
    RESOLUTIONS,
    SUBDIVISIONS,
    check_mipmaps,
    check_scheme,
    factors_of,
    has_full,
    image_of,
    resolutions,
    setup_path,
    subdivisions,
    view_path,
)
from bioio_tk.backends._bdv_ome import OME_XML
from bioio_tk.backends._bdv_sink import DroppedLevel, NewLevel, ViewSink
from bioio_tk.backends._bdv_stored import StoredFile
from bioio_tk.backends._bdv_tree import Tree
from bioio_tk.backends._file import RandomFile
from bioio_tk.core.signals import interrupt_later
from bioio_tk.core.views import Mipmap, Scheme, Shape3, ViewId
from bioio_tk.errors import (
    ClosedError,
    DamagedFileError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
    UnsupportedError,
)

try:
    import fcntl
except ImportError:  # Windows: there is one writer, by good will
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from bioio_tk.backends._bdv_sink import Level
    from bioio_tk.backends._bdv_tree import Edit

_FAR = 1 << 62
"""Where in a file its writers lock a byte: readers, and other programs, never look there."""
_MOST_IDLE = 64
"""Partitions that stay open after a view came into them."""
_LARGEST_GAP = 1000
"""Time points in a row without a view that get a group of their own."""


class Batch(NamedTuple):
    """Which time points and setups lie together in a file."""

    time: int
    setup: int


class _Part:
    """One HDF5 file that is written, locked against other writers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tree: Tree | None = self._open()
        self.begun = 0  # views that are not finished
        self.tables: dict[int, tuple[Mipmap, ...]] = {}
        self.views: set[ViewId] = set()

    def _open(self) -> Tree:
        file = RandomFile(self.path, writable=True)
        try:
            _lock(file)
            return Tree(file)
        except BaseException:
            file.close()
            raise

    @property
    def tree(self) -> Tree:
        """What is in it; opened anew where it was closed."""
        if self._tree is None:
            self._tree = self._open()
        return self._tree

    @property
    def is_idle(self) -> bool:
        """It is open, and nothing is on its way into it."""
        return self._tree is not None and not self.begun

    def close(self) -> None:
        tree, self._tree = self._tree, None
        if tree is None:
            return
        try:
            with suppress(OSError):  # what is left over behind the end harms nobody
                tree.settle()
        finally:
            tree.file.close()


@dataclass(frozen=True)
class _Begun:
    """Where a view that is being written goes, and its new resolutions by their number."""

    part: _Part
    levels: dict[int, NewLevel]
    full: StoredFile | None = None
    """The file with the full resolution, where that stays."""


class BdvFile:
    """The stacks of a dataset, by view; all methods from any thread.

    A file is in order at every moment: a view that is finished stays whatever happens to the
    process, and one that is not is not there (see `Tree`). Readers may open it any time.
    """

    def __init__(self, path: Path, *, writable: bool, batches: tuple[int, int] = (0, 0)) -> None:
        self.path = path
        self.file_lock = threading.RLock()
        self._batches = batches
        self._closed = False
        self._schemes: dict[int, Scheme] = {}
        self._shapes: dict[ViewId, Shape3 | None] = {}  # None until it is asked for
        self._resolutions: dict[ViewId, tuple[Shape3, ...]] = {}  # of views written since then
        self._parts: dict[Batch, _Part] = {}
        self._sinks: dict[ViewSink, _Begun] = {}
        self._master = _Part(path) if writable else None
        self._found: StoredFile | None = None

    @classmethod
    def create(cls, path: Path, *, times_per_file: int = 0, setups_per_file: int = 0) -> BdvFile:
        """Make a new file, or take an empty one.

        Parameters
        ----------
        path : Path
            Of the file; with partitions, of the one that links to all others.
        times_per_file, setups_per_file : int
            So many time points, or setups, go to files of their own, ``NAME-00-00.h5``; 0 for all.

        Raises
        ------
        TargetExistsError
            There is a file with something in it, or one of its partitions.
        TargetBusyError
            Another writer is at work on it.
        OSError
            The system does not make it.
        """
        for name, count in (
            ("times_per_file", times_per_file),
            ("setups_per_file", setups_per_file),
        ):
            if count < 0:
                raise SpecError(f"{name}={count}: give how many, or 0 for one file")
        batches = (times_per_file, setups_per_file)
        for there in (path, *(partition_files(path) if any(batches) else ())):
            _refuse_filled(there)
        path.touch()
        return cls(path, writable=True, batches=batches)

    @staticmethod
    def check(scheme: Scheme) -> None:
        """Raise what `add_setup` would raise for a scheme, without a file; see `check_scheme`."""
        check_scheme(scheme)

    @staticmethod
    def in_the_way(path: Path) -> list[Path]:
        """Return files that have the names of its partitions and are none: `remove` leaves them."""
        named = partition_files(path)
        own = _own_partitions(path) if named and path.exists() else []
        return [part for part in named if part not in own and part.stat().st_size]

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a file and its partitions: the files it links to, and those without a view.

        Others stay, whatever their names: ``scan-2026-11.h5`` is no part of ``scan.h5``.

        Raises
        ------
        TargetBusyError
            A writer is at work on it: nothing is removed.
        """
        if not path.exists():
            return
        file = RandomFile(path, writable=True)
        try:
            _lock(file)
            parts = _own_partitions(path)
            if os.name == "nt":  # which removes no open file
                file.close()
            path.unlink()
        finally:
            file.close()
        for part in parts:
            part.unlink()

    @staticmethod
    def check_idle(path: Path) -> None:
        """Raise TargetBusyError where a writer is at work on a file.

        One that is not there, or may not be changed anyhow, is at rest.
        """
        try:
            file = RandomFile(path, writable=True)
        except OSError:
            return
        try:
            _lock(file)
        finally:
            file.close()

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> BdvFile:
        """Open a file of any writer; not `writable`, no byte of it changes.

        Raises
        ------
        FileNotFoundError
            There is none.
        DamagedFileError
            It is no HDF5 file, or not whole.
        UnsupportedError
            It is to be changed and of an HDF5 layout that is only read.
        TargetBusyError
            Another writer is at work on it.
        """
        if writable and not os.path.getsize(path):  # noqa: PTH202 (raises where there is none)
            raise DamagedFileError(f"{str(path)!r} is empty: it holds no views")
        opened = cls(path, writable=writable)
        try:
            found = opened._found = StoredFile(path)
            opened._shapes = dict.fromkeys(found.views())
            opened._schemes = found.schemes(tuple(opened._shapes))
            if opened._master is not None:
                tables = {setup: scheme.mipmaps for setup, scheme in opened._schemes.items()}
                opened._master.tables = tables
        except BaseException:
            opened.close()
            raise
        return opened

    # ------------------------------------------------------------------ what is there

    @property
    def partitions(self) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
        """Of each file with a part of the views: its name, their times, their setups."""
        with self.file_lock:
            return tuple(
                (
                    part.path.name,
                    tuple(sorted({view.time for view in part.views})),
                    tuple(sorted({view.setup for view in part.views})),
                )
                for _, part in sorted(self._parts.items())
            )

    def setups(self) -> tuple[int, ...]:
        """Return the ids of the setups that are there."""
        with self.file_lock:
            return tuple(sorted(self._schemes))

    def views(self) -> tuple[ViewId, ...]:
        """Return the views that are there, whole, by time and setup."""
        with self.file_lock:
            return tuple(sorted(self._shapes))

    def has(self, view: ViewId) -> bool:
        """Return whether a view is there."""
        return view in self._shapes

    def shape(self, view: ViewId) -> Shape3:
        """Return the size of the first stored resolution of a view."""
        with self.file_lock:
            if view not in self._shapes:
                raise SpecError(f"there is no {_name(view)} in {str(self.path)!r}")
            known = self._shapes[view]
            if known is None and self._found is not None:
                known = self._shapes[view] = self._found.level(view, 0).shape
            return known  # type: ignore[return-value]

    def shapes(self, view: ViewId) -> tuple[Shape3, ...]:
        """Return the sizes of all resolutions of a view."""
        with self.file_lock:
            self.shape(view)
            known = self._resolutions.get(view)
            if known is None and self._found is not None:
                known = self._found.shapes(view)
            return known or ()

    def scheme(self, setup: int) -> Scheme:
        """Return how the stacks of a setup are stored."""
        with self.file_lock:
            try:
                return self._schemes[setup]
            except KeyError:
                known = ", ".join(map(str, sorted(self._schemes))) or "none"
                raise SpecError(
                    f"there is no setup {setup} in {str(self.path)!r}; there are: {known}"
                ) from None

    # ------------------------------------------------------------------ writing

    @property
    def tree(self) -> Tree:
        """What the file is made of, for stacks that are seen while they grow (`GrowingView`)."""
        return self._writable().tree

    def add_setup(self, setup: int, scheme: Scheme) -> None:
        """Enter how the stacks of a setup are stored, before the first of them.

        Raises
        ------
        SpecError
            It is there, and stored in another way; or what is asked makes no sense.
        PixelTypeError
            BigDataViewer has no such pixels.
        """
        if setup < 0:
            raise SpecError(f"setup={setup}: setups are counted from 0")
        with self.file_lock:
            master = self._writable()
            known = self._schemes.get(setup)
            if known == scheme:
                return
            if known is None:
                check_scheme(scheme)
                self._enter(master, setup, scheme)
            elif (known.dtype, known.mipmaps) != (scheme.dtype, scheme.mipmaps):
                raise SpecError(
                    f"the stacks of setup {setup} have pixels of {known.dtype} and the resolutions "
                    f"{[m.factor for m in known.mipmaps]} with blocks of "
                    f"{[m.block for m in known.mipmaps]}, and those of all its time points are "
                    f"alike: {scheme.dtype}, {[m.factor for m in scheme.mipmaps]} and "
                    f"{[m.block for m in scheme.mipmaps]} do not fit"
                )
            else:  # only the compression is another one from now on
                check_scheme(scheme)
            self._schemes[setup] = scheme

    def set_mipmaps(self, setup: int, mipmaps: Sequence[Mipmap]) -> None:
        """Say which resolutions all stacks of a setup have."""
        with self.file_lock:
            master = self._writable()
            scheme = replace(self.scheme(setup), mipmaps=tuple(mipmaps))
            check_mipmaps(scheme.mipmaps, scheme.dtype)
            self._schemes[setup] = scheme
            for part in (*self._parts.values(), master):
                if part is master or setup in part.tables:
                    self._enter(part, setup, scheme)

    def _enter(self, part: _Part, setup: int, scheme: Scheme) -> None:
        """Write the tables of a setup into a file."""
        if part.tables.get(setup) == scheme.mipmaps:
            return
        path = (setup_path(setup),)
        with part.tree.edit() as edit:
            if part.tree.find(path) is None:
                said = [(hdf5.ATTRIBUTE, hdf5.attribute(DATA_TYPE, scheme.dtype.name.encode()))]
                # uint16 is what a reader expects where nothing is said, and all of them know that
                edit.make_group(path, said if scheme.dtype != np.uint16 else ())
            for name, table in (
                (RESOLUTIONS, resolutions(scheme.mipmaps)),
                (SUBDIVISIONS, subdivisions(scheme.mipmaps)),
            ):
                edit.link((*path, name), _add_table(edit, table))
        part.tables[setup] = scheme.mipmaps

    def begin_view(self, view: ViewId, size: Shape3) -> ViewSink:
        """Begin a stack of a full resolution of `size`; one of that id stays until it is finished.

        Raises
        ------
        SpecError
            Its setup is not known, or the size is none.
        """
        _check_view(view, size)
        with self.file_lock:
            self._writable()
            scheme = self.scheme(view.setup)
            part = self._part(view, scheme)
            new = [NewLevel(part.tree, size, scheme, n) for n in range(len(scheme.mipmaps))]
            levels: list[Level] = [*new] if has_full(scheme) else [DroppedLevel(), *new]
            image = image_of(size, scheme.dtype, scheme.mipmaps)
            sink = ViewSink(view, image, factors_of(scheme), levels, self._end)
            return self._begin(sink, _Begun(part, dict(enumerate(new))))

    def begin_levels(
        self,
        view: ViewId,
        size: Shape3,
        mipmaps: Sequence[Mipmap],
        compression: str | None = "gzip",
        level: int | None = None,
    ) -> ViewSink:
        """Begin the smaller resolutions of a stack whose full one is stored.

        Parameters
        ----------
        view : ViewId
            Which is there.
        size : Shape3
            Of its full resolution.
        mipmaps : sequence of Mipmap
            All resolutions it will have, the full one first: its tiles can be loaded, and the
            others take the place of those it has.
        compression, level : str or None, int or None
            See `Scheme`.

        Raises
        ------
        SpecError
            There is no such view, or it has another size.
        UnsupportedError
            Its full resolution is not stored.
        """
        with self.file_lock:
            self._writable()
            known = self.scheme(view.setup)
            if not has_full(known):
                raise UnsupportedError(
                    f"setup {view.setup} does not store its full resolution: smaller ones cannot "
                    "be made of it"
                )
            if self.shape(view) != tuple(size):
                raise SpecError(f"{_name(view)} has the size {self.shape(view)}, not {size}")
            smaller = tuple(mipmap for mipmap in mipmaps if mipmap.factor != FULL)
            scheme = Scheme(known.dtype, (known.mipmaps[0], *smaller), compression, level)
            check_scheme(scheme)
            part = self._part(view, scheme)
            new = [NewLevel(part.tree, size, scheme, n + 1) for n in range(len(smaller))]
            found = StoredFile(part.path)
            try:
                full = found.level(view, 0, scheme.dtype)
                image = image_of(size, scheme.dtype, scheme.mipmaps)
                z, y, x = full.tile
                first = replace(image.levels[0], tile=(y, x, z, 1, 1))
                image = replace(image, levels=(first, *image.levels[1:]))
                sink = ViewSink(view, image, factors_of(scheme), [full, *new], self._end)
                return self._begin(sink, _Begun(part, dict(enumerate(new, 1)), found))
            except BaseException:
                found.close()
                raise

    def remove_view(self, view: ViewId) -> None:
        """Let a view be missing. The file does not shrink: its room stays where it is."""
        with self.file_lock:
            master = self._writable()
            self.shape(view)
            path = view_path(*view)
            for part in (master, *self._parts.values()):
                if part is master or view in part.views:
                    with part.tree.edit() as edit:
                        edit.unlink(path)
                    part.views.discard(view)
            del self._shapes[view]
            self._resolutions.pop(view, None)

    def describe(self, document: bytes) -> None:
        """Keep an OME-XML beside the stacks: a dataset, as attributes hold at most 64 KB."""
        text = np.dtype(f"S{len(document)}")
        with self.file_lock, self._writable().tree.edit() as edit:
            at = edit.add(document)
            index = edit.add_chunk_index({(0,): (at, len(document), 0)}, (1,))
            edit.link((OME_XML,), edit.add(hdf5.dataset((1,), (1,), text, (), index)))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let all views that are finished in this block come in one moment, or none of them.

        Of a file with partitions, those of each partition do.
        """
        with self.file_lock:
            before = dict(self._shapes)
            try:
                with ExitStack() as edits:
                    for part in (self._writable(), *self._parts.values()):
                        edits.enter_context(part.tree.edit())
                    yield
            except BaseException:
                self._shapes = before
                raise

    def flush(self) -> None:
        """See that all finished views are in the files: nothing waits, so nothing is to do."""
        self._writable()

    def close(self) -> None:
        """Release all files; views that are not finished are forgotten. Safe to call twice."""
        with self.file_lock:
            if self._closed:
                return
            for sink in tuple(self._sinks):
                sink.abort()
            self._closed = True
            if self._found is not None:
                self._found.close()
            parts = [*self._parts.values(), *([] if self._master is None else [self._master])]
            for part in parts:
                part.close()

    # ------------------------------------------------------------------ inside

    def _writable(self) -> _Part:
        if self._closed:
            raise ClosedError(f"{str(self.path)!r} is closed")
        if self._master is None:
            raise SpecError(f"{str(self.path)!r} was opened to read: nothing in it can be changed")
        return self._master

    def _part(self, view: ViewId, scheme: Scheme) -> _Part:
        """Return the file that a view goes to, with the tables of its setup."""
        times, setups = self._batches
        if not times and not setups:
            return self._writable()
        batch = Batch(view.time // times if times else 0, view.setup // setups if setups else 0)
        part = self._parts.get(batch)
        if part is None:
            path = partition_path(self.path, batch)
            _refuse_filled(path)
            path.touch()
            with interrupt_later():  # or it would be in the way of itself
                part = self._parts[batch] = _Part(path)
        if view.setup not in part.tables:
            self._enter(part, view.setup, scheme)
        return part

    def _begin(self, sink: ViewSink, begun: _Begun) -> ViewSink:
        begun.part.begun += 1
        self._sinks[sink] = begun
        return sink

    def _end(self, sink: ViewSink, keep: bool) -> None:
        """Put the new resolutions of a view where they are found, or forget them."""
        with self.file_lock:
            begun = self._sinks.pop(sink)
            begun.part.begun -= 1
            try:
                if keep:
                    self._link(sink.view, begun)
            finally:
                if begun.full is not None:
                    begun.full.close()
                if not begun.part.begun:
                    begun.part.tree.forget_rest()
                    self._rest_parts()

    def _rest_parts(self) -> None:
        """Close files that nothing is written to: there may be one for every time point."""
        idle = [part for part in self._parts.values() if part.is_idle]
        for part in idle[: max(0, len(idle) - _MOST_IDLE)]:
            part.close()

    def _link(self, view: ViewId, begun: _Begun) -> None:
        master, part, path = self._writable(), begun.part, view_path(*view)
        with part.tree.edit() as edit:
            members = {str(number): level.save(edit) for number, level in begun.levels.items()}
            full = part.tree.find((*path, "0"))
            if begun.full is not None and full is not None:
                members["0"] = full
            edit.link(path, edit.add_group(members))
            if part is master:
                _fill_gap(part.tree, edit, view.time)
        if part is not master:
            part.views.add(view)
            where = "/".join(("", *path))
            with master.tree.edit() as edit:
                groups = {}
                for name in members:
                    there = f"{where}/{name}/{CELLS}"
                    link = hdf5.external_link(CELLS, part.path.name, there)
                    groups[name] = edit.add(hdf5.linking_group([link]))
                edit.link(path, edit.add_group(groups))
                _fill_gap(master.tree, edit, view.time)
        new = tuple(level.shape for _, level in sorted(begun.levels.items()))
        if begun.full is None:
            self._shapes[view] = new[0]
            self._resolutions[view] = new
        else:
            self._resolutions[view] = (self.shape(view), *new)


def partition_path(path: Path, batch: Batch) -> Path:
    """Return where the views of a batch are, beside the file that links to them."""
    return path.with_name(f"{path.stem}-{batch.time:02d}-{batch.setup:02d}{path.suffix}")


def partition_files(path: Path) -> tuple[Path, ...]:
    """Return the files beside a file that have the names of its partitions."""
    name = re.compile(re.escape(path.stem) + r"-\d{2,}-\d{2,}" + re.escape(path.suffix))
    if not path.parent.is_dir():
        return ()
    return tuple(sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name)))


def _own_partitions(path: Path) -> list[Path]:
    """Return the files beside a file that are parts of it and of nothing else."""
    named = partition_files(path)
    if not named:
        return []
    linked: set[str] = set()
    try:
        found = StoredFile(path)
    except (DamagedFileError, TargetBusyError):  # nobody knows what it linked to
        pass
    else:
        linked = found.linked_files()
        found.close()
    return [part for part in named if part.name in linked or _is_blank(part)]


def _is_blank(part: Path) -> bool:
    """Return whether a file is one that was begun for views, and has none."""
    if not part.stat().st_size:
        return True
    try:
        found = StoredFile(part)
    except DamagedFileError:
        return False
    try:
        return found.holds_no_view()
    finally:
        found.close()


def _refuse_filled(path: Path) -> None:
    """Raise TargetExistsError where a file is that has something in it."""
    if path.exists() and path.stat().st_size:
        raise TargetExistsError(
            f"{str(path)!r} exists: choose another name, or remove it first if it is not needed"
        )


def _add_table(edit: Edit, table: NDArray[Any]) -> int:
    """Write a table with a row for each resolution, and return its address."""
    data = table.tobytes()
    at = edit.add(data)
    index = edit.add_chunk_index({(0, 0): (at, len(data), 0)}, table.shape)
    return edit.add(hdf5.dataset(table.shape, table.shape, table.dtype, (), index, fixed=(3,)))


def _fill_gap(tree: Tree, edit: Edit, time: int) -> None:
    """Make groups of the time points before one that have none: Bio-Formats asks for each."""
    gap = []
    for earlier in range(time - 1, max(-1, time - 1 - _LARGEST_GAP), -1):
        path = view_path(earlier, 0)[:1]
        if tree.find(path) is not None:
            break
        gap.append(path)
    else:
        if time > _LARGEST_GAP:  # so many are none that somebody meant to write
            return
    for path in gap:
        edit.link(path, edit.add_group({}))


def _check_view(view: ViewId, size: Shape3) -> None:
    if view.time < 0:
        raise SpecError(f"time={view.time}: time points are counted from 0")
    if len((*size,)) != 3 or min(size) < 1:
        raise SpecError(f"a stack has 3 sizes (Z, Y, X) from 1, not {size}")


def _name(view: ViewId) -> str:
    return f"view (time {view.time}, setup {view.setup})"


def _lock(file: RandomFile) -> None:
    """Lock a file against other writers, in this process too; not against readers.

    Raises
    ------
    TargetBusyError
        Another one has locked it.
    """
    own = getattr(fcntl, "F_OFD_SETLK", None)
    try:
        if own is not None:
            # HDF5 asks for a shared lock to read and for the whole one to write: the shared one
            # keeps its writers away, a byte where it never looks keeps away ours
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            byte = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _FAR, 1, 0)
            fcntl.fcntl(file.fileno(), own, byte)
        elif fcntl is not None:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
            raise TargetBusyError(
                exc.errno,
                f"{str(file.path)!r} is being written by another program: wait until that is done",
            ) from exc
        # a file system without locks: there is one writer, by good will
