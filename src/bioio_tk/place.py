"""Place: where a writer puts its image, a file of its own or a group in a store of several."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.core.location import Location, Url
from bioio_tk.errors import SpecError, TargetExistsError, UnsupportedError
from bioio_tk.target import SUFFIX, FolderTarget, target_for

if TYPE_CHECKING:
    from bioio_tk.backends.registry import Backend
    from bioio_tk.core.plate import Plate
    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.stream.plate import Plate as StreamPlate
    from bioio_tk.target import RemoteTarget, Target

_MOST_PARTS = 16
_TAKEN = ("", "OME", "zarr.json")


class Place:
    """Where an image goes.

    Parameters
    ----------
    location : Path or Url
        The file or the store.
    backend : Backend
        What writes it.
    group : str
        Where in the store; "" for an image that is a store of its own.
    plate : Plate or None
        What is known of the plate the image belongs to.
    """

    def __init__(
        self,
        location: Location,
        backend: Backend,
        group: str,
        plate: Plate | StreamPlate | None,
    ) -> None:
        self._location = location
        self._backend = backend
        self._group = group.strip("/")
        self._plate = plate.core() if plate is not None else None
        if self._group:
            self._check_group()

    @property
    def is_label(self) -> bool:
        """The image is a label image of another."""
        return "labels" in self._group.split("/")[:-1]

    @property
    def scratch_folder(self) -> Path:
        """Where temporary files may go: where there must be room for the image anyway."""
        if isinstance(self._location, Url):
            return Path(tempfile.gettempdir())
        return self._location.parent

    def target(
        self,
        sink: Any,
        *,
        overwrite: bool,
        storage_options: dict[str, Any],
        resume: bool = False,
    ) -> Target | RemoteTarget:
        """Return the target of a new image."""
        if not self._group:
            return target_for(
                self._location,
                self._backend,
                sink,
                overwrite=overwrite,
                storage_options=storage_options,
                resume=resume,
            )
        strange = self._root.is_dir() and not sink.exists(self._root, {})
        if strange and sink.foreign(self._root, begun=True) is not None:
            raise SpecError(
                f"{str(self._root)!r} is a folder, and no Zarr store: nothing in it is touched"
            )
        sink.check_group(self._root, self._group)
        return _GroupTarget(self._root, self._group, overwrite=overwrite, foreign=sink.foreign)

    def expected(self, sink: Any) -> tuple[str | None, ImageSpec | None]:
        """Return the version of the store, and the image that labels belong to."""
        found: tuple[str | None, ImageSpec | None] = (None, None)
        if self._group and self._root.is_dir():
            sink.check_group(self._root, self._group)
            found = sink.expected(self._root, self._group)
        return found

    def leftover(self, sink: Any, *, shared: bool) -> FolderTarget:
        """Return the target of an image that was laid out before."""
        return FolderTarget(
            self.shared_path(), overwrite=False, leftover=True, foreign=sink.foreign, shared=shared
        )

    def shared_path(self) -> Path:
        """Return the folder of an image that several processes write, where they can."""
        location = self._location
        packed = location.name.lower().endswith(self._backend.packed)
        if isinstance(location, Url) or self._group or packed:
            raise UnsupportedError(
                "several processes can write one OME-Zarr in a folder of this machine or network, "
                "not on a server, not in a group and not in a packed store"
            )
        return location

    def register(self, sink: Any, version: str | None) -> None:
        """List the finished image in its store, where it is one of several."""
        if self._group:
            sink.register(self._root, self._group, version=version or "0.5", plate=self._plate)

    @property
    def _root(self) -> Path:
        return Path(str(self._location))  # _check_group has refused URLs

    def _check_group(self) -> None:
        parts = self._group.split("/")
        if not self._backend.tree or isinstance(self._location, Url):
            raise UnsupportedError(
                f"group={self._group!r} is for OME-Zarr in a folder of this machine"
            )
        if self._location.name.lower().endswith(self._backend.packed):
            raise UnsupportedError(
                "several images cannot be written one by one into a packed store: write a folder "
                "and pack it afterwards"
            )
        bad = any(
            part.startswith(".") or part in _TAKEN or part.endswith(SUFFIX) or "\\" in part
            for part in parts
        )
        if bad or parts[-1] == "labels" or len(parts) > _MOST_PARTS:
            raise SpecError(f"group={self._group!r} is no path inside a store")
        plain = parts[: parts.index("labels")] if self.is_label else parts
        if len(plain) not in (0, 1, 3) or (self.is_label and len(parts) - len(plain) != 2):
            raise SpecError(
                f"group={self._group!r}: give 'NAME' for a series, 'ROW/COLUMN/FIELD' for a field "
                "of a plate, and 'labels/NAME' in one of these or alone for labels"
            )


class _GroupTarget(FolderTarget):
    """A folder in a store that may not exist yet."""

    def __init__(self, root: Path, group: str, *, overwrite: bool, foreign: Any) -> None:
        self._root = root
        self._made: list[Path] = []
        super().__init__(root / group, overwrite=overwrite, foreign=foreign)

    def check(self) -> None:
        """Raise where open() would, without touching anything."""
        if not self._root.parent.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(self._root.parent)!r} to write {self._root.name!r} into"
            )
        if self.path.parent.is_dir():
            super().check()

    def open(self) -> None:
        """Create the empty partial folder, and the folders it lies in."""
        missing = self.path.parent
        while not missing.exists():
            self._made.append(missing)
            missing = missing.parent
        self.path.parent.mkdir(parents=True, exist_ok=True)
        super().open()

    def _refuse_leftover(self) -> None:
        raise TargetExistsError(
            f"{str(self.partial)!r} is left from a write that was interrupted: pass "
            "overwrite=True to start anew"
        )

    def abort(self) -> None:
        """Remove the partial folder, and the folders made for it."""
        super().abort()
        for folder in self._made:
            with suppress(OSError):  # another image has been put there meanwhile
                folder.rmdir()
