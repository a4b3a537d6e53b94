"""Recover: put into place, or complete, what an interrupted write or acquisition has left."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bioio_tk.backends import registry
from bioio_tk.errors import (
    DamagedFileError,
    SpecError,
    TargetExistsError,
    UnknownFormatError,
    UnsupportedError,
)
from bioio_tk.reader import BioReader, check_path
from bioio_tk.stream.journal import find_target
from bioio_tk.stream.recover import StreamReport, recover_stream
from bioio_tk.target import SUFFIX, FolderTarget, PackedTarget, Target, partial_path

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.backends.registry import Backend
    from bioio_tk.core.region import Shape5


class Plane(NamedTuple):
    """Where a plane lies; `c` counts every sample of RGB."""

    z: int
    c: int
    t: int


@dataclass(frozen=True, slots=True)
class RecoverReport:
    """What an unfinished file holds.

    Attributes
    ----------
    target : str
        The file it was meant to become.
    partial : str
        The file that was left.
    shape : tuple of 5 int
        Size along Y, X, Z, C, T.
    dtype : str
        Pixel type.
    tiles : tuple of (int, int)
        For each level how many tiles are stored, and how many there are in all.
    complete : tuple of Plane
        The planes of which every tile of the full resolution is stored.
    planes : int
        Number of all planes.
    moved : bool
        Whether it lies at `target` now.
    """

    target: str
    partial: str
    shape: Shape5
    dtype: str
    tiles: tuple[tuple[int, int], ...]
    complete: tuple[Plane, ...]
    planes: int
    moved: bool

    @property
    def whole(self) -> bool:
        """True where nothing at all is missing."""
        return all(stored == count for stored, count in self.tiles)

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        found = asdict(self)
        found["complete"] = [plane._asdict() for plane in self.complete]
        return json.dumps(found)


def recover(
    path: str | os.PathLike[str], *, overwrite: bool = False, dry_run: bool = False
) -> RecoverReport | StreamReport:
    """Put the unfinished file or folder of an interrupted write into place.

    It is a valid image: what was stored reads right, the rest reads as 0. Of an OME-Zarr, chunks
    and shards that were just being written are dropped; and as chunks that are all 0 are never
    stored, they count as missing.

    What an interrupted acquisition has left lies in its place already. Its sizes and metadata are
    completed: every frame that was safe is there, with what was said of it.

    Parameters
    ----------
    path : str or Path
        The file that was to be written, or its ``.partial``; what a stream was writing, or its
        ``.journal``.
    overwrite : bool
        Replace what is at the target; an acquisition replaces nothing.
    dry_run : bool
        Only look.

    Returns
    -------
    RecoverReport or StreamReport
        Which tiles and planes are there; of an acquisition, which frames.

    Raises
    ------
    FileNotFoundError
        There is no unfinished file.
    TargetBusyError
        A writer is still at work on it.
    TargetExistsError
        There is a file at the target already.
    DamagedFileError
        It was interrupted before the first tile or frame, or held several images.
    """
    given = check_path(path)
    stream = find_target(given)
    if stream is not None:
        return recover_stream(stream, dry_run=dry_run)
    return _recover_write(given, overwrite=overwrite, dry_run=dry_run)


def _recover_write(given: Path, *, overwrite: bool, dry_run: bool) -> RecoverReport:
    target = given.with_name(given.name.removesuffix(SUFFIX))
    try:
        row = registry.for_writing(target)
    except UnknownFormatError:
        if target.exists():
            _check_unfinished(target)
        raise
    sink: Any = registry.load_sink(row)
    if not hasattr(sink, "stored"):
        _check_unfinished(target)
        raise UnsupportedError(
            f"an unfinished file of the {row.name!r} backend cannot be recovered: write it anew, "
            "with overwrite=True in place of what is left"
        )
    left = _leftover(target, row, sink, overwrite=overwrite)
    try:
        report = _inspect(target, left.partial, sink.stored(left.partial), moved=not dry_run)
        if not dry_run:
            if target.exists() and not overwrite:
                raise TargetExistsError(
                    f"{str(target)!r} exists: move it away, or pass overwrite=True to replace it"
                )
            if isinstance(left, FolderTarget):
                _check_not_shared(left)
                left.check_place()
            sink.fill_up(left.partial)
            left.commit()
    finally:
        left.leave()
    return report


def _check_unfinished(target: Path) -> None:
    if not partial_path(target).exists():
        raise FileNotFoundError(
            f"there is nothing unfinished beside {str(target)!r}: nothing to recover"
        ) from None


def _check_not_shared(left: FolderTarget) -> None:
    if left.is_shared:
        raise SpecError(
            f"{str(left.partial)!r} was laid out for several processes: complete it with "
            f"'bioio-tk finish {left.path}'"
        )


def _leftover(target: Path, row: Backend, sink: Any, *, overwrite: bool) -> Target:
    if not row.marks:
        return Target(target, overwrite=overwrite, leftover=True)
    partial = partial_path(target)
    if not partial.exists():
        whole = f", {str(target)!r} is complete" if target.exists() else ""
        raise FileNotFoundError(
            f"there is no unfinished folder {str(partial)!r}{whole}: nothing to recover"
        )
    given: dict[str, Any] = {"overwrite": overwrite, "leftover": True, "foreign": sink.foreign}
    if target.name.lower().endswith(row.packed):
        return PackedTarget(target, pack=sink.pack, **given)
    return FolderTarget(target, **given)


def _inspect(
    target: Path, partial: Path, levels: list[NDArray[Any]], *, moved: bool
) -> RecoverReport:
    if not levels or not any(level.any() for level in levels):
        raise DamagedFileError(
            f"{str(partial)!r} holds no tile: the write was interrupted before the first one; "
            "delete it"
        )
    with BioReader(partial, 1) as reader:
        shape, samples, dtype = reader.shape, reader.samples_per_pixel, reader.dtype.name
    z, c, t = shape[2], shape[3] // samples, shape[4]
    if len(levels[0]) != z * c * t:
        raise DamagedFileError(
            f"{str(partial)!r} has {len(levels[0])} planes where its metadata say {z * c * t}"
        )
    complete = tuple(
        Plane(n % z, n // z % c * samples, n // (z * c))
        for n, tiles in enumerate(levels[0])
        if tiles.all()
    )
    return RecoverReport(
        target=str(target),
        partial=str(partial),
        shape=shape,
        dtype=dtype,
        tiles=tuple((int(level.sum()), level.size) for level in levels),
        complete=complete,
        planes=z * c * t,
        moved=moved,
    )
