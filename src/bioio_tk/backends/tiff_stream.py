"""TiffStore: an acquisition as OME-TIFF, a file for each position, right while it grows."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bioio_tk.backends._open_files import OpenFiles
from bioio_tk.backends._tiff_comment import TiffComment
from bioio_tk.backends._tiff_growing import GrowingTiff
from bioio_tk.errors import (
    BackendError,
    DamagedFileError,
    SpecError,
    TargetExistsError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.acquisition import AcquisitionPlan, ImageRecord

METADATA = ("redundant", "master-tiff", "companion-file")
"""Where the document of several files is: in each, in the first one, in a file of its own."""
COMPANION = -1
"""The number of the companion file among the documents."""

_MOST_OPEN = 128
_DEFAULTS = {
    "suffix": ".ome.tiff",
    "single_file": None,
    "multi_file_metadata": "redundant",
    "companion_file": "companion.ome",
}


class TiffStore:
    """An acquisition as OME-TIFF: one file, or a folder with a file for each position.

    Parameters
    ----------
    path : Path
        The empty file; an empty folder where `is_folder` says so.
    plan : AcquisitionPlan
        What is going to be recorded.
    options : StoreOptions
        How. `extra` may hold

        ``suffix``
            Of the files in a folder.
        ``single_file``
            One file (True) or a folder (False); by default as the positions demand.
        ``multi_file_metadata``
            One of `METADATA`.
        ``companion_file``
            What the companion file is called.

    Raises
    ------
    SpecError
        The plan or the options make no sense.
    UnsupportedError
        TIFF, or the compression, cannot hold such pixels.
    """

    def __init__(self, path: Path, plan: AcquisitionPlan, options: StoreOptions) -> None:
        self.path = path
        self._plan = plan
        self._options = options
        self._extra = _checked(plan, options)
        self._folder = self.is_folder(plan, options)
        self._files = OpenFiles(_MOST_OPEN)
        self._sinks: dict[int, GrowingTiff] = {}
        self._uuid = str(uuid.uuid4())  # of the companion file
        self._finished = False

    @classmethod
    def check(cls, plan: AcquisitionPlan, options: StoreOptions) -> None:
        """Raise what the constructor would.

        Raises
        ------
        SpecError
            The plan or the options make no sense.
        UnsupportedError
            TIFF, or the compression, cannot hold such pixels.
        """
        _checked(plan, options)

    @staticmethod
    def is_folder(plan: AcquisitionPlan, options: StoreOptions) -> bool:
        """Return whether the acquisition is a folder of files."""
        single = options.extra.get("single_file")
        return len(plan.positions) > 1 if single is None else not single

    @classmethod
    def foreign(cls, path: Path, plan: AcquisitionPlan, options: StoreOptions) -> Path | None:
        """Return something in a folder that no such acquisition has written, None for nothing."""
        extra = {**_DEFAULTS, **options.extra}
        ours = re.compile(re.escape(path.name) + r"_p\d{3,}" + re.escape(str(extra["suffix"])))
        for found in sorted(path.iterdir()):
            named = ours.fullmatch(found.name) or found.name == extra["companion_file"]
            if not named or not found.is_file():
                return found
        return None

    @classmethod
    def reopen(
        cls, path: Path, plan: AcquisitionPlan, options: StoreOptions, planes: Mapping[int, int]
    ) -> TiffStore:
        """Return the store that a process which is no more has left.

        Parameters
        ----------
        path, plan, options
            As they were.
        planes : mapping of int to int
            The planes that are known to be there, by position. Where a file has more, they are
            kept: its `GrowingTiff.planes` has the number. So are the files of other positions
            that have a plane.

        Raises
        ------
        DamagedFileError
            A file was not left by such a store.

        Warns
        -----
        BioIOWarning
            A file has fewer.
        """
        store = cls(path, plan, options)
        for position in range(len(plan.positions)):
            if position in planes:
                store._add(position, again=planes[position])
            elif store._folder and store._file(position).exists():
                with suppress(DamagedFileError):  # of somebody else
                    store._add(position, again=0)
        return store

    @staticmethod
    def image_path(path: Path, plan: AcquisitionPlan, options: StoreOptions, position: int) -> Path:
        """Return the file of a position."""
        if not TiffStore.is_folder(plan, options):
            return path
        suffix = {**_DEFAULTS, **options.extra}["suffix"]
        return path / f"{path.name}_p{position:03}{suffix}"

    anchor = image_path

    def open(self, position: int) -> GrowingTiff:
        """Return the file of a position, a new one unless it was there on `reopen`.

        Raises
        ------
        TargetExistsError
            Somebody else has put a file there.
        """
        if position not in self._sinks:
            if self._folder:
                self._create(position)
            self._add(position)
        return self._sinks[position]

    def finish(
        self, records: Sequence[ImageRecord], notes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write the metadata of all positions; of those without a record, what planes there are.

        May be called again with other notes, also after `close`; without records, the notes are
        all that changes.
        """
        if records or not self._finished:
            known = {record.position for record in records}
            records = [*records, *(r for r in self._so_far() if r.position not in known)]
            for record in records:
                sink = self._sinks[record.position]
                sink.settle(record.planes)
                sink.part()  # all of them, before a document speaks of another file
            for position, document in self._documents(records, notes):
                self._write(position, document)
        else:
            from bioio_tk.meta.ome_notes import renoted

            for position, document in self._read_documents():
                if b"<BinaryOnly" not in document[:4096]:
                    self._write(position, renoted(document, notes))
        self._finished = True

    def get_metadata(self) -> dict[int, Any]:
        """Return the metadata, an ``ome_types.OME`` for each position.

        The companion file is position -1. While the acquisition runs, they are those of the
        planes so far.
        """
        from ome_types import from_xml

        if self._finished:
            documents = self._read_documents()
        else:
            documents = self._documents(self._so_far(), {})
        return {position: from_xml(document.decode()) for position, document in documents}

    def update_metadata(self, metadata: Any) -> None:
        """Replace the metadata of some positions; see `get_metadata`.

        Raises
        ------
        TypeError
            These are no OME objects.
        KeyError
            There is no such position.
        BackendError
            The acquisition is not over.
        """
        from ome_types.model import OME

        if not self._finished:
            raise BackendError(
                "the stream has to be closed before its metadata can be updated: while it runs "
                "they change with every frame"
            )
        if not isinstance(metadata, dict):
            raise TypeError(
                f"Expected dict[int, ome_types.model.OME] metadata, got {type(metadata)}"
            )
        known = self._numbers()
        for position, document in metadata.items():
            if not isinstance(document, OME):
                raise TypeError(
                    f"Expected ome_types.model.OME for position {position}, got {type(document)}"
                )
            if position not in known:
                raise KeyError(f"Unknown position index: {position}; there are {sorted(known)}")
        for position, document in metadata.items():
            self._write(position, document.to_xml().encode())

    def close(self) -> None:
        """Release all files; of those without a visible plane nothing is left. Safe twice."""
        for sink in self._sinks.values():
            sink.close()
        self._files.close_all()
        for position in [p for p, sink in self._sinks.items() if not sink.planes]:
            path = self._sinks.pop(position).path
            with suppress(FileNotFoundError):
                if self._folder:
                    path.unlink()
                else:
                    os.truncate(path, 0)

    def _file(self, position: int) -> Path:
        return self.image_path(self.path, self._plan, self._options, position)

    def _create(self, position: int) -> None:
        path = self._file(position)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError as exc:
            raise TargetExistsError(
                f"{str(path)!r} exists: something else has written it since the stream was opened"
            ) from exc

    def _add(self, position: int, *, again: int | None = None) -> None:
        self._sinks[position] = GrowingTiff(
            self._file(position), self._plan, position, self._options, self._files, again=again
        )

    def _so_far(self) -> list[ImageRecord]:
        from bioio_tk.core.acquisition import ImageRecord

        return [
            ImageRecord(position, sink.planes)
            for position, sink in sorted(self._sinks.items())
            if sink.planes
        ]

    def _numbers(self) -> set[int]:
        """Return the numbers of all documents there are."""
        companion = self._folder and self._extra["multi_file_metadata"] == "companion-file"
        return {*self._sinks, COMPANION} if companion else set(self._sinks)

    def _documents(
        self, records: Sequence[ImageRecord], notes: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the document of each file: those that others refer to first."""
        from bioio_tk.meta.ome_stream import StreamDocument, StreamImage, stream_xml

        images = []
        for given in sorted(records, key=lambda record: record.position):
            sink = self._sinks[given.position]
            record = given if sink.lost is None else replace(given, planes=sink.lost)
            file, known = (sink.path.name, sink.uuid) if self._folder else (None, None)
            size = self._plan.order.extent(max(given.planes, sink.planes))
            shape = (*self._plan.image.shape[:2], *size)
            name = self._plan.positions[record.position].name
            images.append(StreamImage(record, name, file, known, shape=shape))
        if not images:
            return
        document = StreamDocument(self._plan, images, notes, tiff=True)
        kind = self._extra["multi_file_metadata"] if self._folder else "redundant"
        if kind == "redundant":
            for image in images:
                number = image.record.position
                own = self._sinks[number].uuid
                yield number, document.xml(uuid=own, planes_of={number})
            return
        first = images[0].record.position
        holder = (str(self._extra["companion_file"]), self._uuid)
        number = COMPANION
        if kind == "master-tiff":
            holder, number = (self._file(first).name, self._sinks[first].uuid), first
        yield number, document.xml(uuid=holder[1])
        for image in images:
            if image.record.position != number:
                own = self._sinks[image.record.position].uuid
                yield (
                    image.record.position,
                    stream_xml(self._plan, (), {}, uuid=own, tiff=True, binary_only=holder),
                )

    def _read_documents(self) -> Iterator[tuple[int, bytes]]:
        """Yield the document of each file as it is now."""
        for number in sorted(self._numbers()):
            if number == COMPANION:
                yield number, (self.path / str(self._extra["companion_file"])).read_bytes()
            else:
                comment = TiffComment(self._sinks[number].path)
                try:
                    yield number, comment.read()
                finally:
                    comment.close()

    def _write(self, number: int, document: bytes) -> None:
        if number != COMPANION:
            self._sinks[number].describe(document)
            return
        path = self.path / str(self._extra["companion_file"])
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            fresh.write_bytes(document)
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


# --- what is checked and decided before there is a file ------------------------------------------


def _checked(plan: AcquisitionPlan, options: StoreOptions) -> dict[str, Any]:
    """Return all options of this format."""
    for name in options.extra:
        if name not in _DEFAULTS:
            raise SpecError(
                f"a stream to OME-TIFF has no option {name!r}; there are {', '.join(_DEFAULTS)}"
            )
    extra = {**_DEFAULTS, **options.extra}
    if extra["multi_file_metadata"] not in METADATA:
        raise SpecError(
            f"multi_file_metadata={extra['multi_file_metadata']!r}: choose one of "
            f"{', '.join(METADATA)}"
        )
    for name in ("companion_file", "suffix"):
        given = str(extra[name])
        if not given or given in (".", "..") or "/" in given or "\\" in given or "\0" in given:
            raise SpecError(f"{name}={given!r}: give the name of a file, without a folder")
    if extra["single_file"] and len(plan.positions) > 1:
        raise UnsupportedError(
            f"{len(plan.positions)} positions cannot go into a single OME-TIFF while it grows: "
            "leave prefer_single_file out, and each position has a file of its own"
        )
    if plan.image.samples != 1:
        raise UnsupportedError("a stream takes pixels of one sample: colours are channels here")
    GrowingTiff.check((plan.image,), options)
    return extra
