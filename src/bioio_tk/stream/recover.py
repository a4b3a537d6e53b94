"""Recover: complete what a stream has left that was killed, from its journal."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from bioio_tk import __version__
from bioio_tk.backends import registry
from bioio_tk.core.frames import UNBOUNDED
from bioio_tk.engine.pool import check_workers
from bioio_tk.engine.scratch import Scratch
from bioio_tk.errors import DamagedFileError, TargetBusyError
from bioio_tk.stream.image import StreamImage
from bioio_tk.stream.journal import JournalContents, StreamJournal, load

if TYPE_CHECKING:
    from pathlib import Path

    from bioio_tk.backends.base import GrowingStore
    from bioio_tk.core.acquisition import ImageRecord
    from bioio_tk.core.region import Shape5
    from bioio_tk.stream.layout import Layout
    from bioio_tk.stream.settings import AcquisitionSettings


@dataclass(frozen=True, slots=True)
class RecoveredImage:
    """What was recorded of one position.

    Attributes
    ----------
    position : str
        Its name.
    shape : tuple of 5 int
        Size along Y, X, Z, C, T.
    planes : int
        So many planes came, those skipped included. The others are 0, or a frame that was being
        stored at that moment, without what was said of it.
    skipped : int
        So many of them were skipped.
    """

    position: str
    shape: Shape5
    planes: int
    skipped: int


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What an interrupted acquisition has left.

    Attributes
    ----------
    target : str
        The file or folder.
    frames : int
        So many frames are in it: the first ones, but for those that were skipped.
    skipped : int
        So many frames were skipped.
    planned : int or None
        So many frames were to come; None where nobody had said.
    uncertain : int
        The machine was started anew since, and so many of the last frames may not have reached
        the disk before: look at them.
    images : tuple of RecoveredImage
        What was recorded of each position.
    dtype : str
        Pixel type.
    finished : bool
        Whether sizes and metadata are complete now.
    """

    target: str
    frames: int
    skipped: int
    planned: int | None
    uncertain: int
    images: tuple[RecoveredImage, ...]
    dtype: str
    finished: bool

    @property
    def whole(self) -> bool:
        """True where every frame came that was to come."""
        return self.frames + self.skipped == self.planned

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Left:
    """What a stream has left, or is still writing, as its journal says."""

    settings: AcquisitionSettings
    layout: Layout
    contents: JournalContents


def look(target: Path) -> Left:
    """Return what the journal beside `target` says; its `contents` have to be closed.

    Raises
    ------
    FileNotFoundError
        There is no journal.
    DamagedFileError
        It cannot be read.
    """
    from bioio_tk.stream.layout import layout
    from bioio_tk.stream.settings import AcquisitionSettings

    contents = load(target)
    try:
        settings = AcquisitionSettings.model_validate(contents.about["settings"])
        found = layout(settings)
        created = str(contents.about["created"])
    except (KeyError, TypeError, ValueError) as exc:
        contents.close()
        raise DamagedFileError(
            f"{str(contents.path)!r} does not say what was recorded ({exc}): was it written by "
            "another version of bioio_tk? Use that one"
        ) from exc
    if contents.about.get("layout") != fingerprint(found):
        contents.close()
        raise DamagedFileError(
            f"{str(target)!r} was begun by bioio_tk {contents.version}, which lays such an "
            f"acquisition out in another way than this version, {__version__}: use that one"
        )
    # it may have been moved since
    plan = replace(found.plan, created=created)
    return Left(settings, replace(found, plan=plan, path=target), contents)


def fingerprint(layout: Layout) -> str:
    """Return what differs where two versions would make other files of the same settings."""
    plan = replace(layout.plan, created="")
    return f"{zlib.crc32(repr((plan, layout.route, layout.options)).encode()):08x}"


def recover_stream(target: Path, *, dry_run: bool = False) -> StreamReport:
    """Complete sizes and metadata of what a killed stream has left, where it lies.

    Every frame that was safe is there, with its metadata. It may be interrupted itself and done
    again.

    Parameters
    ----------
    target : Path
        The file or folder that was written.
    dry_run : bool
        Only look.

    Raises
    ------
    FileNotFoundError
        There is no journal, or nothing that it tells of.
    TargetBusyError
        The stream is still running.
    DamagedFileError
        It was interrupted before the first frame was safe, or what it wrote was changed since.
    """
    try:
        journal = StreamJournal.adopt(target)
    except TargetBusyError:
        raise TargetBusyError(
            f"the acquisition to {str(target)!r} is still running: wait until it has ended"
        ) from None
    try:
        left = look(target)
        try:
            report = _complete(left, target, dry_run=dry_run)
        finally:
            left.contents.close()
        if not dry_run:
            journal.remove()
    finally:
        journal.close()
    return report


def _complete(left: Left, target: Path, *, dry_run: bool) -> StreamReport:
    layout, contents = left.layout, left.contents
    if not target.exists():
        raise FileNotFoundError(
            f"there is no {str(target)!r}, of which {str(contents.path)!r} tells: put it back "
            "beside it, or remove that"
        )
    records = contents.records(layout.route)
    if not records:
        raise DamagedFileError(
            f"{str(target)!r} holds no whole frame: the acquisition was interrupted before the "
            f"first one was stored; delete it and {contents.path.name!r}"
        )
    if dry_run:
        shapes = [record.shape(layout.plan) for record in records]
    else:
        store_class: Any = registry.load_stream_store(layout.store)
        planes = {record.position: record.planes for record in records}
        store = store_class.reopen(target, layout.plan, layout.options, planes)
        try:
            shapes = _finish(left, store, records)
        finally:
            store.close()
    images = tuple(
        RecoveredImage(
            layout.plan.positions[record.position].name,
            shape,
            record.planes,
            sum(map(len, record.skipped)),
        )
        for record, shape in zip(records, shapes, strict=True)
    )
    return _report(left, target, images, finished=not dry_run)


def _finish(left: Left, store: GrowingStore, records: list[ImageRecord]) -> list[Shape5]:
    """Complete all images; return their sizes."""
    shapes, found = [], []
    layout, settings = left.layout, left.settings
    workers = check_workers(settings.max_workers)
    scratch = Scratch(left.contents.path.parent)
    try:
        for record in records:
            sink = store.open(record.position)
            # readers may have seen a plane that the journal had no time to tell of
            planes = max(record.planes, sink.planes)
            found.append(replace(record, planes=planes))
            sink.settle(planes)
            if settings.pyramid is not None:  # those that were made live may lack the last ones
                StreamImage(
                    sink,
                    layout.plan.order,
                    scratch=scratch,
                    stored=lambda start, stop: None,
                    method=layout.options.downsample,
                    live=False,
                ).make_levels(planes, workers)
            shapes.append(sink.images[0].shape)
    finally:
        scratch.close()
    store.finish(found, left.contents.notes)
    return shapes


def _report(
    left: Left, target: Path, images: tuple[RecoveredImage, ...], *, finished: bool
) -> StreamReport:
    plan, route, contents = left.layout.plan, left.layout.route, left.contents
    skipped = sum(map(len, contents.skipped))
    return StreamReport(
        target=str(target),
        frames=contents.frames - skipped,
        skipped=skipped,
        planned=route.total if route.total < UNBOUNDED else None,
        uncertain=contents.frames - contents.certain,
        images=images,
        dtype=plan.image.dtype.name,
        finished=finished,
    )
