"""Output: the place where a stream will lie is taken before its first frame, and given back."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bioio_tk.errors import TargetBusyError, TargetExistsError
from bioio_tk.stream.journal import journal_of, running

if TYPE_CHECKING:
    from collections.abc import Callable


class Output:
    """A new empty file or folder at its final place.

    A stream lies there from its first frame on: others look at it while it grows, and what a
    process that was killed has left is where everybody looks for it.

    Parameters
    ----------
    path : Path
        The place; folders above it are made.
    folder : bool
        Make a folder.
    overwrite : bool
        Replace an earlier acquisition.
    foreign : callable
        Returns something in a folder that no acquisition of this format has written, or None.

    Raises
    ------
    TargetExistsError
        Something is there that may not be replaced.
    IsADirectoryError, NotADirectoryError
        There is a folder where a file has to go, or the other way round.
    """

    def __init__(
        self,
        path: Path,
        *,
        folder: bool,
        overwrite: bool,
        foreign: Callable[[Path], Path | None],
    ) -> None:
        self.path = path
        self._folder = folder
        self._made: list[Path] = []
        self._foreign = foreign
        self._own: os.stat_result | None = None
        if os.path.lexists(path):
            self._check(foreign, overwrite=overwrite)

    def make_parents(self) -> None:
        """Make the folders above the place."""
        self._made = [folder for folder in self.path.parents if not folder.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as exc:
            raise NotADirectoryError(
                f"{exc.filename!r} is a file, and {self.path.name!r} is to be written into a "
                "folder of that name: choose another place, or move the file away"
            ) from exc

    def make(self) -> None:
        """Make it, in the place of what may be replaced."""
        try:
            if os.path.lexists(self.path):
                self._replace()
            elif self._folder:
                self.path.mkdir()
            else:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            raise _exists(self.path) from None  # it came just now
        self._own = os.stat(self.path)

    def remove(self) -> None:
        """Remove it, and the folders that were made for it: no frame in it is safe."""
        with suppress(OSError):
            if self._own is not None and os.path.samestat(self._own, os.stat(self.path)):
                if not self._folder:
                    self.path.unlink()
                elif self._foreign(self.path) is None:
                    shutil.rmtree(self.path)
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def _check(self, foreign: Callable[[Path], Path | None], *, overwrite: bool) -> None:
        path = self.path
        if not overwrite:
            raise _exists(path)
        if self._folder and not path.is_dir():
            raise NotADirectoryError(
                f"{str(path)!r} is a file, and a folder of that name is to be written: choose "
                "another name, or move the file away"
            )
        if not self._folder and path.is_dir():
            raise IsADirectoryError(
                f"{str(path)!r} is a folder, and a file of that name is to be written: choose "
                "another name, or move the folder away"
            )
        found = foreign(path) if self._folder else None
        if found is not None:
            raise TargetExistsError(
                f"{str(path)!r} is not replaced: it holds {str(found)!r}, which is no part of an "
                "acquisition of this format; choose another name, or move it away"
            )

    def _replace(self) -> None:
        """Put something empty into the place of what is there."""
        parent, name = self.path.parent, self.path.name
        if self._folder:
            aside = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}.", suffix=".replaced"))
            os.rename(self.path, aside / name)
            self.path.mkdir()
            shutil.rmtree(aside)
        else:  # readers that have the old file open keep it
            fd, new = tempfile.mkstemp(dir=parent, prefix=f".{name}.")
            os.fchmod(fd, 0o666 & ~_umask())
            os.close(fd)
            os.replace(new, self.path)


def _exists(path: Path) -> TargetExistsError | TargetBusyError:
    if running(path):
        return TargetBusyError(
            f"an acquisition to {str(path)!r} is running: close its stream, wait until it has "
            "ended, or choose another name"
        )
    if journal_of(path).exists():
        return TargetExistsError(
            f"{str(path)!r} is of an acquisition that was interrupted: "
            f"complete it with 'bioio-tk recover {path}', choose another name, or pass "
            "overwrite=True to replace it"
        )
    return TargetExistsError(
        f"{str(path)!r} exists: choose another name, or pass overwrite=True to replace it"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
