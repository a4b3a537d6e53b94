"""Recorder: all that happens to a frame between `append` and the disk."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import warnings
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioio_tk.core.metadata_json import frame_document
from bioio_tk.core.signals import interrupt_later
from bioio_tk.engine.feed import Feed
from bioio_tk.engine.flush import sync
from bioio_tk.engine.pool import begin, check_workers, run_apart
from bioio_tk.engine.scratch import Scratch
from bioio_tk.errors import (
    BackendError,
    BioIOWarning,
    ClosedError,
    PixelTypeError,
    RegionError,
    SpecError,
    StreamError,
)
from bioio_tk.stream.files import PlaneFiles
from bioio_tk.stream.image import StreamImage
from bioio_tk.stream.journal import journal_of
from bioio_tk.stream.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from bioio_tk.backends.base import GrowingStore
    from bioio_tk.core.acquisition import ImageRecord
    from bioio_tk.stream.journal import StreamJournal
    from bioio_tk.stream.layout import Layout
    from bioio_tk.stream.memory_journal import MemoryJournal
    from bioio_tk.stream.output import Output
    from bioio_tk.stream.settings import AcquisitionSettings

_LOOK_EVERY = 1.0
"""Seconds after which it is looked whether the output is still where it was."""


class FrameAddress(NamedTuple):
    """Where a frame went.

    Attributes
    ----------
    frame : int
        Its number in the acquisition, those skipped counted.
    position : int
        Its position of the stage.
    z, c, t : int
        Where it lies in the image of that position.
    """

    frame: int
    position: int
    z: int
    c: int
    t: int


@dataclass(frozen=True, slots=True)
class StreamStats:
    """How a stream is doing.

    Attributes
    ----------
    frames_appended, frames_skipped : int
        Frames that were given, and those left out.
    frames_stored : int
        Frames that are safe: the first so many are in the file, with their metadata, whatever
        happens to this process.
    queue_depth, queue_high_water, queue_capacity : int
        Frames that wait for the disk: now, at the worst moment, and how many may do so in memory.
    frames_spilled, spill_high_water : int
        Of these, those in the spill file: now, and at the worst moment.
    memory_bytes : int
        Memory that frames that wait have taken.
    blocked_seconds : float
        Time that `append` has waited for the disk.
    seconds : float
        Since the first frame.
    fps, mb_per_second : float
        Throughput of the last second: frames, and pixels in MB (10⁶ bytes).
    """

    frames_appended: int
    frames_skipped: int
    frames_stored: int
    queue_depth: int
    queue_high_water: int
    queue_capacity: int
    frames_spilled: int
    spill_high_water: int
    memory_bytes: int
    blocked_seconds: float
    seconds: float
    fps: float
    mb_per_second: float


class Recorder:
    """Takes frames in the order of an acquisition and stores them.

    Parameters
    ----------
    settings : AcquisitionSettings
        What is acquired, and how much memory may be taken.
    layout : Layout
        Where it goes.
    store : GrowingStore
        The output, empty.
    journal : StreamJournal or MemoryJournal
        Keeps the metadata of the frames, and which of them are safe.
    output : Output, optional
        The place on disk, where there is one.
    """

    def __init__(
        self,
        settings: AcquisitionSettings,
        layout: Layout,
        store: GrowingStore,
        journal: StreamJournal | MemoryJournal,
        output: Output | None,
    ) -> None:
        plan = layout.plan
        self.store = store
        self.closed = False
        self.left_nothing = False
        """No frame came, so that the output was removed."""
        self._ending = False  # it takes no more frames
        self._pid = os.getpid()
        self._close_lock = threading.RLock()
        self.failure: StreamError | None = None
        self.told: Callable[..., object] | None = None
        """Is told the numbers of frames that were taken or skipped, in their order."""
        self._settings = settings
        self._plan, self._route, self._order = plan, layout.route, plan.order
        self._options = layout.options
        self._shape, self._dtype = plan.image.shape[:2], plan.image.dtype
        self._journal, self._output = journal, output
        self._name = "memory" if layout.path is None else str(layout.path)
        workers = check_workers(settings.max_workers)
        self._workers = workers
        folder, memory = _spill_folder(settings, layout), settings.max_memory_bytes
        # tiles that wait for their rest and frames that wait for a worker share the memory
        share = memory // 2 if self._keeps_tiles() else 0
        self._scratch = Scratch(folder, share or memory)
        self._feed = Feed(
            self._shape,
            self._dtype,
            self._store_frames,
            workers=workers,
            budget=memory - share,
            policy=settings.backpressure,
            spill_folder=folder,
        )
        self._ledger = Ledger(self._advance)
        self._lock = threading.RLock()  # who gives frames holds it
        self._looked = 0.0  # when the output was last seen where it belongs
        self._open_lock = threading.Lock()
        self._images: dict[int, StreamImage] = {}
        self._documents: dict[int, bytes] = {}
        self._skips: deque[range] = deque()
        self._skipped = self._safe = 0
        self._lent: NDArray[Any] | None = None
        self._look_lock = threading.Lock()  # who looks at frames holds it
        self._layout = layout
        self._files: PlaneFiles | None = None  # once the sinks are closed
        self._planes: dict[int, int] = {}
        self._notes: dict[str, dict[str, Any]] = {}

    def _keeps_tiles(self) -> bool:
        """Return whether tiles wait in memory while frames come."""
        level = self._plan.image.levels[0]
        pieces = level.grid.counts[:2] != (1, 1)
        return level.tile[2:] != (1, 1, 1) or (pieces and self._settings.pyramid == "live")

    # ------------------------------------------------------------------ frames in

    @property
    def mine(self) -> bool:
        """False in a child of the process that has opened it."""
        return self._pid == os.getpid()

    @property
    def frames_appended(self) -> int:
        """The number of the next frame."""
        return self._feed.next

    def append(self, frame: Any, metadata: Mapping[str, Any] | None) -> FrameAddress:
        """Take a frame; see `OMEStream.append`."""
        self._check_turn()
        with self._lock:
            self._check_alive()
            number = self._feed.next
            if number >= self._route.total:
                raise RegionError(self._past_end("append frame", 1))
            frame = self._checked(frame, number)
            document, left_out = (None, ()) if metadata is None else frame_document(metadata)
            try:
                slot = self._feed.slot()
            except BaseException:
                self._check_alive()
                raise
            if frame is not self._lent:
                slot[...] = frame
            self._lent = None
            if document is not None:
                self._documents[number] = document
            elif self._documents:
                self._documents.pop(number, None)
            self._feed.give()
            if self.told is not None:
                self.told(number)
        if left_out:
            warnings.warn(
                f"metadata of frame {number}: JSON cannot hold {', '.join(map(repr, left_out))}, "
                "which is left out; the frame and everything else are stored",
                BioIOWarning,
                stacklevel=3,
            )
        position, plane = self._route.locate(number)
        return FrameAddress(number, position, *self._order.key(plane))

    def frame_buffer(self) -> NDArray[Any]:
        """Return the memory that the next frame will lie in; see `OMEStream.frame_buffer`."""
        self._check_turn()
        with self._lock:
            self._check_alive()
            if self._feed.next >= self._route.total:
                raise RegionError(self._past_end("append frame", 1))
            self._lent = self._feed.slot()
            return self._lent

    def skip(self, frames: int) -> None:
        """Leave frames out; see `OMEStream.skip`."""
        if frames <= 0:
            raise SpecError(f"frames must be positive, got {frames}")
        self._check_turn()
        with interrupt_later(), self._lock:
            self._check_alive()
            start = self._feed.next
            stop = start + frames
            if stop > self._route.total:
                raise RegionError(self._past_end("skip frames", frames))
            self._skips.append(range(start, stop))
            self._skipped += frames
            self._feed.skip(frames)
            if self.told is not None:
                self.told(start, frames, together=True)
            try:
                self._skip_planes(start, stop)
                self._ledger.add(start, stop)
            except Exception as exc:  # the disk, mostly: as when a worker meets it
                self._feed.fail(exc)
                self._check_alive()

    def _checked(self, frame: Any, number: int) -> NDArray[Any]:
        if type(frame) is not np.ndarray:
            frame = np.asarray(frame)
        if frame.shape != self._shape:
            raise SpecError(
                f"frame {number} has the shape {frame.shape}, and the stream was opened for "
                f"frames of {self._shape} (height, width): it was not taken"
            )
        if frame.dtype != self._dtype and frame.dtype.newbyteorder("=") != self._dtype:
            raise PixelTypeError(
                f"frame {number} has pixels of type {frame.dtype}, and the stream was opened for "
                f"{self._dtype}: it was not taken; give frame.astype({self._dtype.name!r}), or "
                f"open the stream with dtype={frame.dtype.name!r}"
            )
        return frame  # type: ignore[no-any-return]

    def _past_end(self, what: str, count: int) -> str:
        tried = f" (tried to skip {count})" if count > 1 else ""
        return (
            f"Cannot {what}: would exceed total of {self._route.total} frames{tried}. Check your "
            "AcquisitionSettings.dimensions. For a stream without end, set the count of the first "
            "dimension to None."
        )

    def _check_turn(self) -> None:
        """Refuse what would wait for ever, or give a frame in the middle of another one."""
        self._check_mine()
        if self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
            raise BackendError(
                "the stream was called in the middle of another call, as from a signal handler: "
                "let that raise an exception instead (sys.exit()), and close the stream where it "
                "was opened"
            )

    def _check_mine(self) -> None:
        if not self.mine:
            raise BackendError(
                "this stream was opened before a fork, and belongs to the process that has opened "
                "it: open another one here"
            )

    def _check_alive(self) -> None:
        if self._feed.error is not None:
            raise self._failed()
        if self._ending:
            raise ClosedError("the stream is closed: it takes no more frames")

    def _failed(self) -> StreamError:
        cause = self._feed.error
        if self.failure is None:
            missing = self._missing()
            safe = self.stats().frames_stored if missing is None else missing[1]
            self.failure = StreamError(
                f"the stream into {self._name!r} has failed: {cause or 'unknown'}; the first "
                f"{safe} of {self._feed.next - self._skipped} frames are safe, the others are not "
                f"stored{self._advice(moved=missing is not None)}"
            )
            self.failure.frames_safe = safe
            self.failure.errno = getattr(cause, "errno", None)
            self.failure.__cause__ = cause
        return self.failure

    def _advice(self, *, moved: bool) -> str:
        """Return what to do when the stream has ended and its metadata could not be written."""
        if not self.closed or self._output is None or not journal_of(self._output.path).exists():
            return ""
        first = "if it was moved, move it back" if moved else "when the cause is mended"
        return f"; {first}, and complete its metadata with 'bioio-tk recover {self._name}'"

    def _missing(self) -> tuple[Path, int] | None:
        """Return what is no longer where it was written, and the number of its first frame."""
        layout = self._layout
        if layout.path is None:
            return None
        if not layout.path.exists():
            return layout.path, 0
        store: Any = self.store
        for position in sorted(self._images):
            place = store.anchor(layout.path, layout.plan, layout.options, position)
            if not place.exists():
                return place, self._route.number(position, 0)
        return None

    def _check_place(self) -> None:
        missing = self._missing()
        if missing is not None:
            raise FileNotFoundError(
                f"{str(missing[0])!r} was removed or moved while it was written"
            )

    # ------------------------------------------------------------------ to the disk

    def _store_frames(self, first: int, frames: NDArray[Any]) -> None:
        """Store frames with consecutive numbers; in a worker."""
        start = 0
        while start < len(frames):
            number = first + start
            count = min(self._route.stay(number), len(frames) - start)
            position, plane = self._route.locate(number)
            self._image(position).write(plane, frames[start : start + count])
            start += count

    def _skip_planes(self, start: int, stop: int) -> None:
        if self._plan.image.levels[0].tile[2:] == (1, 1, 1):
            return
        while start < stop:
            count = min(self._route.stay(start), stop - start)
            position, plane = self._route.locate(start)
            self._image(position).skip(plane, plane + count)
            start += count

    def _image(self, position: int) -> StreamImage:
        image = self._images.get(position)
        if image is None:
            with self._open_lock:
                image = self._images.get(position)
                if image is None:
                    image = self._images[position] = self._opened(position)
        return image

    def _opened(self, position: int) -> StreamImage:
        def stored(start: int, stop: int) -> None:
            first = self._route.number(position, start)
            self._ledger.add(first, first + stop - start)

        return StreamImage(
            self.store.open(position),
            self._order,
            scratch=self._scratch,
            stored=stored,
            method=self._options.downsample,
            live=self._settings.pyramid == "live",
        )

    def _advance(self, start: int, stop: int) -> None:
        """Let readers see the frames [start, stop), and put them on record."""
        now = time.monotonic()
        if now - self._looked > _LOOK_EVERY:  # what was removed can be written to all the same
            self._looked = now
            self._check_place()
            late = getattr(self._journal, "error", None)
            if late is not None:
                raise late
        for position, planes in self._grown(start, stop):
            if position in self._images:  # else all of its planes were skipped so far
                self._images[position].sink.extend(planes)
        while start < stop:
            end = stop
            if self._skips:
                skipped = self._skips[0]
                if skipped.start <= start:
                    end = min(stop, skipped.stop)
                    self._journal.skipped(start, end)
                    if end == skipped.stop:
                        self._skips.popleft()
                    start = end
                    continue
                end = min(stop, skipped.start)
            documents: list[bytes | None] = []
            if self._documents:
                documents = [self._documents.pop(n, None) for n in range(start, end)]
            self._journal.frames(start, end, documents)
            self._safe += end - start
            start = end

    def _grown(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the positions that frames belong to, and how many planes each has then."""
        if len(self._plan.positions) == 1:
            return [(0, stop)]
        if stop - start <= len(self._plan.positions):
            last = dict(self._route.locate(number) for number in range(start, stop))
            return [(position, plane + 1) for position, plane in last.items()]
        before, after = self._route.planes(start), self._route.planes(stop)
        return [(p, n) for p, (n, old) in enumerate(zip(after, before, strict=True)) if n > old]

    # ------------------------------------------------------------------ looking

    def read(self, n: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a frame (y, x), wherever it is by now; 0 for one that never came."""
        found = self._feed.peek(n)
        if found is None:
            found = self._stored(*self._route.locate(n))
        if out is None:
            return found
        out[...] = found
        return out

    def _stored(self, position: int, plane: int) -> NDArray[Any]:
        image = self._images.get(position)
        if image is None:
            return np.zeros(self._shape, self._dtype)
        with self._look_lock:
            if self._files is None:
                return image.read(plane)
            if plane >= self._planes.get(position, 0):
                return np.zeros(self._shape, self._dtype)
            return self._files.read(position, plane, self._planes[position])

    def stats(self) -> StreamStats:
        """Return how the stream is doing."""
        self._check_mine()
        feed = self._feed.stats()
        frame = self._shape[0] * self._shape[1] * self._dtype.itemsize
        return StreamStats(
            frames_appended=feed.taken,
            frames_skipped=self._skipped,
            frames_stored=self._safe,
            queue_depth=feed.waiting,
            queue_high_water=feed.most_waiting,
            queue_capacity=feed.capacity,
            frames_spilled=feed.spilled,
            spill_high_water=feed.most_spilled,
            memory_bytes=feed.nbytes,
            blocked_seconds=feed.blocked,
            seconds=feed.seconds,
            fps=feed.fps,
            mb_per_second=feed.fps * frame / 1e6,
        )

    def flush(self) -> None:
        """Wait until every frame given so far is stored, as far as its tile is full."""
        self._check_turn()
        self._feed.drain()
        if self._feed.error is not None:
            raise self._failed()

    def note(self, namespace: str, mapping: Mapping[str, Any]) -> None:
        """Keep something that is true of the whole acquisition."""
        document, left_out = frame_document({"note": dict(mapping)})
        if left_out:
            names = ", ".join(repr(name.removeprefix("note.")) for name in left_out)
            raise SpecError(
                f"JSON cannot hold {names} of the metadata of {namespace!r}: nothing of it is kept"
            )
        plain = json.loads(document)["note"]
        self._check_turn()
        with self._close_lock, self._lock:  # not while the metadata are written
            self._notes[namespace] = plain
            if self.closed:
                self.store.finish((), self._notes)
            else:
                self._journal.note(namespace, plain)

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Store what waits and complete the files; see `OMEStream.close`.

        Ctrl-C is raised when that is done; a second one at once, and then it goes on alone.
        """
        if not self.mine:
            return
        self._check_turn()
        if self._close_lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
            return
        with self._lock:
            self._ending = True
            self._lent = None
        if self.closed:
            return
        run_apart(self._close)
        if self._feed.error is not None:
            self.failure = None  # others have stored more since
            raise self._failed()

    def close_forgotten(self) -> None:
        """Close what nobody has any more. Any thread: that is where garbage is collected."""
        if self._feed.works_here():  # it cannot wait for itself
            begin(self._close_alone)
        else:
            self.close()

    def _close_alone(self) -> None:
        try:
            self.close()
        except StreamError as exc:  # nobody is there who could catch it
            warnings.warn(str(exc), BioIOWarning, stacklevel=1)

    def _close(self) -> None:
        with self._close_lock:
            if self.closed:
                return
            self._feed.close()
            try:
                if self._feed.error is None:
                    self._flush_images()
                self._complete()
            except Exception as exc:
                self._feed.fail(exc)
            with suppress(OSError):  # what was safe is so all the same
                self.store.close()
            self._journal.close()
            self._scratch.close()
            self.closed = True

    def _flush_images(self) -> None:
        for image in self._images.values():
            image.flush()
        self._ledger.add(0, self._feed.next)

    def _complete(self) -> None:
        contents = self._journal.contents()
        try:
            self._finish(contents.records(self._route, self._images))
        finally:
            contents.close()

    def _finish(self, records: list[ImageRecord]) -> None:
        records = [record for record in records if record.planes]
        self._planes = {record.position: record.planes for record in records}
        if not records:
            self._leave_nothing()
            return
        self._check_place()
        for record in records:
            image = self._images[record.position]
            if self._settings.pyramid == "after":
                image.make_levels(record.planes, self._workers)
            else:
                image.settle(record.planes, self._workers)
        self.store.finish(records, self._notes)
        with self._look_lock:
            if self._output is not None:
                self._files = PlaneFiles(self._layout, lambda: sorted(self._planes))
            self.store.close()
        if self._settings.sync and self._output is not None:
            sync(self._output.path)
        self._journal.remove()

    def _leave_nothing(self) -> None:
        self.left_nothing = True
        self.store.close()
        self._journal.remove()
        if self._output is not None:
            self._output.remove()


def _spill_folder(settings: AcquisitionSettings, layout: Layout) -> Path:
    """Return where temporary files go: beside the output, unless the user says otherwise."""
    if settings.spill_dir:
        return Path(settings.spill_dir)
    return Path(tempfile.gettempdir()) if layout.path is None else layout.path.parent
