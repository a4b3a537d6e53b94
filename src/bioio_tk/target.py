"""Targets: a file or folder grows beside its place, and moves there when it is whole."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bioio_tk.backends._store import (
    SHARED_MARK,
    remove_all_replaced,
    remove_replaced,
    replaced_path,
)
from bioio_tk.core.location import Url
from bioio_tk.errors import TargetBusyError, TargetExistsError, UnsupportedError

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be replaced there, which protects as well
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bioio_tk.backends.registry import Backend
    from bioio_tk.core.location import Location

SUFFIX = ".partial"
JOURNAL = ".journal"
"""What the name of the record of an unfinished file ends with, behind that of the file."""


class Target:
    """The file to be made at `path`; until then ``path + ".partial"``.

    Parameters
    ----------
    path : Path
        Where the finished file goes.
    overwrite : bool
        Replace what is at `path`, and what an interrupted write left beside it.
    leftover : bool
        Do not make a new file, take hold of the one an interrupted write has left.
    resume : bool
        Be ready to go on with an unfinished file that has a journal, see `take_over`.

    Raises
    ------
    TargetExistsError
        Something is there already and may not be replaced.
    TargetBusyError
        Another writer, in this process or another, is at work on it.
    """

    def __init__(
        self, path: Path, *, overwrite: bool, leftover: bool = False, resume: bool = False
    ) -> None:
        self.path = path
        self.partial = partial_path(path)
        self.image = self.partial
        """What to open to read the unfinished image."""
        self._overwrite = overwrite
        self._resume = resume
        self._fd = -1
        if leftover:
            self.adopt()
        else:
            self.check()

    def adopt(self) -> None:
        """Take hold of the unfinished file that an interrupted write has left.

        Raises
        ------
        FileNotFoundError
            There is none.
        TargetBusyError
            The writer is still at work on it.
        """
        try:
            fd = os.open(self.partial, os.O_RDWR)
        except FileNotFoundError:
            whole = f", {str(self.path)!r} is complete" if self.path.exists() else ""
            raise FileNotFoundError(
                f"there is no unfinished file {str(self.partial)!r}{whole}: nothing to recover"
            ) from None
        try:
            self._lock(fd)
            self._same_file(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def check(self) -> None:
        """Raise where open() would, without touching anything."""
        if self.path.is_dir():
            raise IsADirectoryError(f"{str(self.path)!r} is a folder; give the path of a file")
        if not self._overwrite and self.path.exists():
            raise TargetExistsError(
                f"{str(self.path)!r} exists: choose another name, or pass overwrite=True to "
                "replace it once the new image is complete"
            )
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(self.path.parent)!r} to write {self.path.name!r} into"
            )
        if self.partial.exists():
            fd = os.open(self.partial, os.O_RDWR)
            try:
                self._lock(fd)
                empty = not os.fstat(fd).st_size
            finally:
                os.close(fd)
            if not (empty or self._overwrite or self._resumable):
                self._refuse_leftover()

    @property
    def _resumable(self) -> bool:
        return self._resume and journal_path(self.path).exists()

    def take_over(self) -> bool:
        """Take hold of an unfinished file that has a journal; return whether there is one."""
        if not self._resumable:
            return False
        try:
            self.adopt()
        except FileNotFoundError:
            return False
        return True

    def clear(self) -> None:
        """Empty the partial file, which is held."""
        os.ftruncate(self._fd, 0)

    def open(self) -> None:
        """Create the empty partial file and hold it."""
        fd = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(fd)
            self._same_file(fd)
            if os.fstat(fd).st_size and not self._overwrite:
                self._refuse_leftover()
            self._drop_journal()
            os.ftruncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def commit(self) -> None:
        """Move the partial file into place; atomic for everyone who looks."""
        if self._overwrite:
            os.replace(self.partial, self.path)
        else:
            move_new(self.partial, self.path)
        self._drop_journal()
        self._release()

    def abort(self) -> None:
        """Remove the partial file; the place it was meant for stays as it is."""
        if self._fd >= 0:
            self.partial.unlink(missing_ok=True)
        self._release()

    def leave(self) -> None:
        """Let go of the partial file and leave it where it is, for recovery."""
        self._release()

    def discard(self) -> None:
        """Remove the partial file that leave() has left."""
        self.partial.unlink(missing_ok=True)

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._unlock(fd)
            os.close(fd)

    def _refuse_leftover(self) -> None:
        raise TargetExistsError(
            f"{str(self.partial)!r} is left from a write that was interrupted: "
            f"{self._go_on()}keep it with 'bioio-tk recover {self.path}', or pass overwrite=True "
            "to start anew"
        )

    def _drop_journal(self) -> None:
        # it would say of a file that is begun now, or later, what is in another one
        journal_path(self.path).unlink(missing_ok=True)

    def _go_on(self) -> str:
        if not journal_path(self.path).exists():
            return ""
        return "go on with resume=True (--resume) of the same conversion, "

    def _lock(self, fd: int) -> None:
        lock(fd, self.path)

    def _unlock(self, fd: int) -> None:
        # said out loud, because a forked child still has the file open and with it the lock
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)

    def _same_file(self, fd: int) -> None:
        # between open and lock the other writer may have finished and moved its file away
        try:
            same = os.path.samestat(os.fstat(fd), os.stat(self.partial))
        except FileNotFoundError:
            same = False
        if not same:
            raise TargetBusyError(f"another writer has just finished {str(self.path)!r}")


class FolderTarget(Target):
    """A folder to be made at `path`, as `Target` makes a file.

    Parameters
    ----------
    path, overwrite, leftover
        As for `Target`.
    foreign : callable
        Returns a file in a folder that is none of this format's, None where there is none: a
        folder with such a file is never replaced or removed. With ``begun=True`` the folder may
        be of an image that was interrupted at any moment.
    shared : bool
        Let others that say so work on the same unfinished folder.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool,
        leftover: bool = False,
        foreign: Callable[..., Path | None],
        shared: bool = False,
        resume: bool = False,
    ) -> None:
        self._foreign = foreign
        self._shared = shared
        super().__init__(path, overwrite=overwrite, leftover=leftover, resume=resume)

    @property
    def is_shared(self) -> bool:
        """Several processes write it, until it is finished."""
        return (self.partial / SHARED_MARK).exists()

    def mark_shared(self) -> None:
        """Say that several processes will write it."""
        (self.partial / SHARED_MARK).touch()

    def unmark_shared(self) -> None:
        """Say that nobody else will write it any more."""
        (self.partial / SHARED_MARK).unlink()

    def adopt(self) -> None:
        """Take hold of the unfinished folder that an interrupted write has left."""
        try:
            fd = self._open_folder()
        except NotADirectoryError:
            raise FileNotFoundError(f"{str(self.partial)!r} is a file, not a folder") from None
        try:
            self._lock(fd)
            self._same_file(fd)
        except BaseException:
            _close(fd)
            raise
        self._fd = fd

    def check(self) -> None:
        """Raise where open() would, without touching anything."""
        self.check_place()
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(self.path.parent)!r} to write {self.path.name!r} into"
            )
        if os.path.lexists(self.partial):
            try:
                fd = self._open_folder()
            except FileNotFoundError:
                return  # the other writer has just finished
            try:
                self._lock(fd)
                empty = not any(self.partial.iterdir())
            finally:
                _close(fd)
            if not (empty or self._overwrite or self._resumable):
                self._refuse_leftover()
            self._refuse(self.partial, self._foreign(self.partial, begun=True))

    def clear(self) -> None:
        """Empty the partial folder, which is held."""
        self._refuse(self.partial, self._foreign(self.partial, begun=True))
        _empty(self.partial)

    def check_place(self) -> None:
        """Raise where what is at the target may not be replaced."""
        if os.path.lexists(self.path):
            self._check_replaceable()

    def open(self) -> None:
        """Create the empty partial folder and hold it."""
        while True:
            with suppress(FileExistsError):
                self.partial.mkdir()
            try:
                fd = self._open_folder()
            except FileNotFoundError:
                continue  # another writer has just finished, or given up
            break
        try:
            self._lock(fd)
            self._same_file(fd)
            if any(self.partial.iterdir()):
                if not self._overwrite:
                    self._refuse_leftover()
                self._refuse(self.partial, self._foreign(self.partial, begun=True))
                self._drop_journal()
                _empty(self.partial)
        except BaseException:
            _close(fd)
            raise
        self._fd = fd

    def commit(self) -> None:
        """Move the partial folder into place."""
        if self._fd >= 0:
            with suppress(OSError):  # readers lock it as soon as it is in its place
                lock(self._fd, self.path, shared=True)
        if self._overwrite and os.path.lexists(self.path):
            self._check_replaceable()
            self._replace()
        else:
            self._move()
        if self._overwrite:
            remove_all_replaced(self.path)
        self._drop_journal()
        self._release()

    def abort(self) -> None:
        """Remove the partial folder; the place it was meant for stays as it is."""
        if self._fd != -1:
            shutil.rmtree(self.partial)
        self._release()

    def discard(self) -> None:
        """Remove the partial folder that leave() has left."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _move(self) -> None:
        try:
            if os.path.lexists(self.path):
                raise FileExistsError
            os.rename(self.partial, self.path)
        except OSError as exc:
            if not isinstance(exc, FileExistsError) and exc.errno != errno.ENOTEMPTY:
                raise
            raise TargetExistsError(
                f"{str(self.path)!r} has come into being meanwhile; the new image is kept in "
                f"{str(self.partial)!r}"
            ) from None

    def _replace(self) -> None:
        """Put the new folder into the place of the old one, which lives on while it is read."""
        old = os.open(self.path, os.O_RDONLY) if os.name != "nt" else -1
        try:
            aside = replaced_path(self.path, old) if old >= 0 else _unused(self.path)
            if exchange(self.partial, self.path):
                os.rename(self.partial, aside)
            else:
                os.rename(self.path, aside)
                try:
                    os.rename(self.partial, self.path)
                except BaseException:
                    os.rename(aside, self.path)
                    raise
            if old >= 0:
                remove_replaced(self.path, old)
            else:
                shutil.rmtree(aside, ignore_errors=True)
        finally:
            _close(old)

    def _check_replaceable(self) -> None:
        if self.path.is_symlink():
            raise TargetExistsError(
                f"{str(self.path)!r} is a link to {str(self.path.readlink())!r}: remove the link, "
                "or give the path of the image itself to replace it"
            )
        if not self.path.is_dir():
            raise TargetExistsError(
                f"{str(self.path)!r} is a file, and the new image is a folder: choose another name"
            )
        found = self._foreign(self.path)
        if found == self.path:
            raise IsADirectoryError(
                f"{str(self.path)!r} is a folder, and no image: nothing in it is touched; choose "
                "another name"
            )
        if not self._overwrite:
            raise TargetExistsError(
                f"{str(self.path)!r} exists: choose another name, or pass overwrite=True to "
                "replace it once the new image is complete"
            )
        self._refuse(self.path, found)

    def _refuse(self, folder: Path, found: Path | None) -> None:
        if found is not None:
            raise TargetExistsError(
                f"{str(folder)!r} holds {str(found.relative_to(folder))!r}, which is no part of an "
                "image: move that away first, or choose another name"
            )

    def _open_folder(self) -> int:
        if not hasattr(os, "O_DIRECTORY"):  # Windows: folders cannot be held
            return -2 if self.partial.is_dir() else os.open(self.partial, os.O_RDONLY)
        try:
            return os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            done = f"; {str(self.path)!r} is complete" if self.path.exists() else ""
            raise FileNotFoundError(
                f"there is no unfinished folder {str(self.partial)!r}{done}: lay an image out "
                "with mode='create' first"
            ) from None
        except OSError as exc:
            if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise NotADirectoryError(
                f"{str(self.partial)!r} is no folder, and in the way: move it away, or choose "
                "another name"
            ) from None

    def _refuse_leftover(self) -> None:
        raise TargetExistsError(
            f"{str(self.partial)!r} is left from a write that was interrupted: "
            f"{self._go_on()}keep it with 'bioio-tk recover {self.path}', or pass overwrite=True "
            "to start anew; what was laid out with mode='create' is completed by "
            f"bioio_tk.finish({str(self.path)!r})"
        )

    def _same_file(self, fd: int) -> None:
        if fd >= 0:
            super()._same_file(fd)

    def _lock(self, fd: int) -> None:
        if fd >= 0:
            lock(fd, self.path, shared=self._shared)

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._unlock(fd)
            os.close(fd)


class PackedTarget(FolderTarget):
    """A folder that becomes one file when it is whole.

    Parameters
    ----------
    path, overwrite, leftover, foreign
        As for `FolderTarget`.
    pack : callable
        Makes the file from the folder: ``pack(folder, file)``.
    """

    def __init__(
        self, path: Path, *, pack: Callable[[Path, Path], object], overwrite: bool, **more: Any
    ) -> None:
        self._pack = pack
        super().__init__(path, overwrite=overwrite, **more)

    def commit(self) -> None:
        """Move the partial folder into place."""
        packed = self.partial.with_name(self.partial.name + ".packed")
        try:
            self._pack(self.partial, packed)
            if self._overwrite:
                os.replace(packed, self.path)
            else:
                move_new(packed, self.path)
        finally:
            packed.unlink(missing_ok=True)
        self.abort()

    def _check_replaceable(self) -> None:
        if self.path.is_dir():
            raise IsADirectoryError(f"{str(self.path)!r} is a folder; give the path of a file")
        if not self._overwrite:
            raise TargetExistsError(
                f"{str(self.path)!r} exists: choose another name, or pass overwrite=True to "
                "replace it once the new image is complete"
            )


class FilesTarget(FolderTarget):
    """Files that belong together: they are made in a folder, and laid beside each other when whole.

    Parameters
    ----------
    path : Path
        The file that one opens. It is put into place last, so that all it names are there before.
    beside : tuple of str
        What the names of further files end with that will be there for certain.
    check_idle : callable
        Takes a file that would be replaced, and raises TargetBusyError where a writer that makes
        such files in their place is at work on it.
    overwrite, leftover, foreign
        As for `FolderTarget`.
    """

    def __init__(
        self,
        path: Path,
        *,
        beside: tuple[str, ...],
        check_idle: Callable[[Path], None],
        overwrite: bool,
        **more: Any,
    ) -> None:
        self._check_idle = check_idle
        self._places = [path, *(path.with_suffix(ending) for ending in beside)]
        super().__init__(path, overwrite=overwrite, **more)
        self.image = self.partial / path.name

    def check_place(self) -> None:
        """Raise where what is at the target may not be replaced."""
        self._check_free(
            self._places,
            "choose another name, or pass overwrite=True to replace it once the new image is "
            "complete",
        )

    def commit(self) -> None:
        """Lay the files beside each other, those first that others name."""
        last = {place.name: n for n, place in enumerate(reversed(self._places), 1)}
        made = sorted(self.partial.iterdir(), key=lambda file: (last.get(file.name, 0), file.name))
        places = [self.path.with_name(file.name) for file in made]
        self._check_free(places, f"the new image is kept in {str(self.partial)!r}")
        for file, place in zip(made, places, strict=True):
            if self._overwrite:
                os.replace(file, place)
            else:
                move_new(file, place)
        self.abort()

    def _refuse_leftover(self) -> None:
        raise TargetExistsError(
            f"{str(self.partial)!r} is left from a write that was interrupted, and holds nothing "
            "to keep: pass overwrite=True to start anew"
        )

    def _check_free(self, places: Sequence[Path], what_now: str) -> None:
        there = [place for place in places if os.path.lexists(place)]
        folder = next((place for place in there if place.is_dir()), None)
        if folder is not None:
            raise IsADirectoryError(f"{str(folder)!r} is a folder; give the path of a file")
        if there and not self._overwrite:
            names = " and ".join(repr(str(place)) for place in there)
            raise TargetExistsError(f"there exists {names}: {what_now}")
        for place in there:
            self._check_idle(place)


class RemoteTarget:
    """A place on a server: it is written where it stays, and opens only when it is complete.

    Parameters
    ----------
    url : Url
        Where the image goes.
    overwrite : bool
        Remove what is there when the first pixel is written.
    occupied : callable
        Returns what is there: None for nothing, "" for an image, else the name of something that
        is no part of one, which is never removed.
    remove : callable
        Removes all that is there.
    """

    def __init__(
        self,
        url: Url,
        *,
        overwrite: bool,
        occupied: Callable[[], str | None],
        remove: Callable[[], object],
    ) -> None:
        self.path = self.partial = self.image = url
        self._overwrite = overwrite
        self._occupied = occupied
        self._remove = remove
        self._begun = False
        self.check()

    def check(self) -> None:
        """Raise where open() would, without touching anything."""
        found = self._occupied()
        if found:
            raise TargetExistsError(
                f"{str(self.path)!r} holds {found!r}, which is no part of an image: nothing there "
                "is touched; choose another name"
            )
        if found is not None and not self._overwrite:
            raise TargetExistsError(
                f"{str(self.path)!r} exists: choose another name, or pass overwrite=True to "
                "replace it; on a server the old image is removed when the first pixel is written"
            )

    def open(self) -> None:
        """Remove what is to be replaced."""
        self.check()
        if self._overwrite:
            self._remove()
        self._begun = True

    def commit(self) -> None:
        """Do nothing: what was written last made it an image."""

    def abort(self) -> None:
        """Remove what was written."""
        if self._begun:
            self._begun = False
            self._remove()

    def discard(self) -> None:
        """Remove what leave() has left."""
        self._remove()

    def take_over(self) -> bool:
        """Return False: on a server an interrupted write is begun anew."""
        return False

    def leave(self) -> None:
        """Leave what was written where it is; without its metadata nobody takes it for an image."""


def target_for(
    location: Location,
    backend: Backend,
    sink: Any,
    *,
    overwrite: bool,
    storage_options: dict[str, Any],
    resume: bool = False,
) -> Target | RemoteTarget:
    """Return the target for what a backend writes at a location."""
    packed = location.name.lower().endswith(backend.packed) if backend.packed else False
    if isinstance(location, Url):
        if not backend.tree or packed:
            raise UnsupportedError(
                f"{str(location)!r} is a URL, and only OME-Zarr folders are written to a server: "
                "write the file here and upload it, or end the name with .ome.zarr"
            )
        return RemoteTarget(
            location,
            overwrite=overwrite,
            occupied=lambda: sink.occupied(location, storage_options),
            remove=lambda: sink.remove(location, storage_options),
        )
    if not (backend.marks or backend.beside):
        return Target(location, overwrite=overwrite, resume=resume)
    given: dict[str, Any] = {"overwrite": overwrite, "foreign": sink.foreign, "resume": resume}
    if backend.beside:
        return FilesTarget(location, beside=backend.beside, check_idle=sink.check_idle, **given)
    if packed:
        return PackedTarget(location, pack=sink.pack, **given)
    return FolderTarget(location, **given)


def partial_path(path: Path) -> Path:
    """Return where the unfinished file of `path` lies."""
    return path.with_name(path.name + SUFFIX)


def journal_path(path: Path) -> Path:
    """Return where the journal of the unfinished file of `path` lies."""
    return path.with_name(path.name + SUFFIX + JOURNAL)


def move_new(source: Path, path: Path) -> None:
    """Rename `source` to `path`, which must not exist; TargetExistsError where it does."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise TargetExistsError(
            f"{str(path)!r} has come into being meanwhile; the new image is kept in {str(source)!r}"
        ) from None
    except (OSError, AttributeError):  # a file system without hard links
        if path.exists():
            raise TargetExistsError(f"{str(path)!r} exists; {str(source)!r} is kept") from None
        os.rename(source, path)
    else:
        source.unlink()


def lock(fd: int, path: Path, *, shared: bool = False) -> None:
    """Lock an open file or folder for a writer of `path`; TargetBusyError where one has it."""
    if os.name == "nt":
        return
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TargetBusyError(
            f"another writer is at work on {str(path)!r}: wait until it has closed it, "
            "or write to another name"
        ) from None
    except OSError:
        return  # a file system without locks


def exchange(one: Path, other: Path) -> bool:
    """Swap two names at once, so that neither is ever missing; False where that cannot be done."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    here = -100  # AT_FDCWD: names are relative to the working folder
    return bool(swap(here, os.fsencode(one), here, os.fsencode(other), 2) == 0)


def _unused(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.replaced")


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
