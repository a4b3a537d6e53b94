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
    from collections.abc import Callable, Sequence


class Output:
    """A new empty file or folder at its final place, and the files that lie beside it.

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
    beside : sequence of Path
        Further files of it, which are made and replaced with it.
    check_idle : callable, optional
        Takes a file that would be replaced, and raises TargetBusyError where a writer of another
        kind is at work on it.

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
        beside: Sequence[Path] = (),
        check_idle: Callable[[Path], None] | None = None,
    ) -> None:
        self.path = path
        self._folder = folder
        self._made: list[Path] = []
        self._foreign = foreign
        self._own: dict[Path, os.stat_result] = {}
        self._beside = tuple(beside)
        self._check_idle = check_idle
        for place in (path, *self._beside):
            if os.path.lexists(place):
                self._check(place, overwrite=overwrite)

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
        for place in (*self._beside, self.path):
            self._make(place)

    def _make(self, place: Path) -> None:
        try:
            if os.path.lexists(place):
                self._replace(place)
            elif self._folder:
                place.mkdir()
            else:
                os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            raise _exists(place) from None  # it came just now
        self._own[place] = os.stat(place)

    def remove(self) -> None:
        """Remove it, and the folders that were made for it: no frame in it is safe."""
        for place, own in self._own.items():
            with suppress(OSError):
                if not self._is_own(place, own):
                    continue
                if not self._folder:
                    place.unlink()
                elif self._foreign(place) is None:
                    shutil.rmtree(place)
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    @staticmethod
    def _is_own(place: Path, own: os.stat_result) -> bool:
        return os.path.samestat(own, os.stat(place))

    def _check(self, path: Path, *, overwrite: bool) -> None:
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
        if self._check_idle is not None:
            self._check_idle(path)
        found = self._foreign(path) if self._folder else None
        if found is not None:
            raise TargetExistsError(
                f"{str(path)!r} is not replaced: it holds {str(found)!r}, which is no part of an "
                "acquisition of this format; choose another name, or move it away"
            )

    def _replace(self, place: Path) -> None:
        """Put something empty into the place of what is there."""
        parent, name = place.parent, place.name
        if self._folder:
            aside = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}.", suffix=".replaced"))
            os.rename(place, aside / name)
            place.mkdir()
            shutil.rmtree(aside)
        else:  # readers that have the old file open keep it
            fd, new = tempfile.mkstemp(dir=parent, prefix=f".{name}.")
            os.fchmod(fd, 0o666 & ~_umask())
            os.close(fd)
            os.replace(new, place)


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
