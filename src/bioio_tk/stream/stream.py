"""OMEStream: what a microscope hands its frames to."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from bioio_tk.backends import registry
from bioio_tk.errors import BioIOWarning, SpecError
from bioio_tk.stream.recorder import FrameAddress, Recorder, StreamStats

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from bioio_tk.engine.notify import Notifier
    from bioio_tk.stream.coords import CoordUpdate
    from bioio_tk.stream.layout import Layout
    from bioio_tk.stream.settings import AcquisitionSettings
    from bioio_tk.stream.view import StreamView

_RESERVED = (
    "bioformats2raw.layout",
    "bioio_tk",
    "image-label",
    "labels",
    "multiscales",
    "ome",
    "ome_writers",
    "omero",
    "plate",
    "series",
    "well",
)
"""Namespaces in which NGFF, or this package, says something itself."""


def create_stream(settings: AcquisitionSettings) -> OMEStream:
    """Open a stream for the frames of an acquisition.

    Everything that can be wrong with the settings is said here, before anything is on disk.

    Parameters
    ----------
    settings : AcquisitionSettings
        What is acquired, and where it goes. It is copied: changing it later changes nothing.

    Returns
    -------
    OMEStream
        Use it in a ``with`` block, or close it.

    Raises
    ------
    ValueError
        The settings are not complete, or contradict each other or the format.
    NotImplementedError
        The format cannot store such an acquisition.
    FileExistsError
        There is something at the place, and `overwrite` is not set; or something that is never
        replaced, because it is no earlier acquisition.
    TargetBusyError
        Another stream is at work there.

    Examples
    --------
    >>> import numpy as np
    >>> from bioio_tk import AcquisitionSettings, create_stream, dims_from_standard_axes
    >>> settings = AcquisitionSettings(
    ...     root_path="run.ome.zarr",
    ...     dimensions=dims_from_standard_axes({"t": 10, "c": 2, "y": 64, "x": 64}),
    ...     dtype="uint16",
    ... )
    >>> with create_stream(settings) as stream:  # doctest: +SKIP
    ...     for frame in camera:
    ...         stream.append(frame, frame_metadata={"exposure_time": 0.01})
    """
    from bioio_tk.stream.layout import layout
    from bioio_tk.stream.settings import AcquisitionSettings

    if not isinstance(settings, AcquisitionSettings):
        raise SpecError(
            "create_stream takes bioio_tk.AcquisitionSettings, not "
            f"{type(settings).__module__}.{type(settings).__qualname__}: give "
            "AcquisitionSettings(root_path=..., dimensions=..., dtype=...)"
        )
    settings = settings.model_copy(deep=True)
    settings.validate_stream_ready()
    found = layout(settings)
    store_class = registry.load_stream_store(found.store)
    store_class.check(found.plan, found.options)
    return OMEStream(settings, found, _begin(settings, found, store_class))


def _begin(settings: AcquisitionSettings, found: Layout, store_class: Any) -> Recorder:
    """Take the place on disk; leave nothing there where that fails half-way."""
    from bioio_tk.stream.journal import StreamJournal
    from bioio_tk.stream.memory_journal import MemoryJournal
    from bioio_tk.stream.output import Output
    from bioio_tk.stream.recover import fingerprint

    if found.path is None:
        store = store_class(None, found.plan, found.options)
        return Recorder(settings, found, store, MemoryJournal(), None)
    beside = getattr(store_class, "beside", None)
    output = Output(
        found.path,
        folder=store_class.is_folder(found.plan, found.options),
        overwrite=settings.overwrite,
        foreign=lambda path: store_class.foreign(path, found.plan, found.options),
        beside=beside(found.path) if beside is not None else (),
        check_idle=getattr(store_class, "check_idle", None),
    )
    journal: StreamJournal | None = None
    try:
        output.make_parents()
        about = {
            "settings": settings.model_dump(mode="json"),
            "created": found.plan.created,
            "layout": fingerprint(found),
        }
        journal = StreamJournal(found.path, about, overwrite=settings.overwrite)
        output.make()
        store = store_class(found.path, found.plan, found.options)
        return Recorder(settings, found, store, journal, output)
    except BaseException:
        if journal is not None:
            journal.remove()
        output.remove()
        raise


class OMEStream:
    """A running acquisition. Made by `create_stream`; its methods may be called from any thread.

    Frames are copied and stored by workers in the background; `append` returns as soon as the
    frame is copied. What goes wrong there is raised by the next call, at the latest by `close`.
    """

    def __init__(self, settings: AcquisitionSettings, layout: Layout, recorder: Recorder) -> None:
        self._settings = settings
        self._layout = layout
        self._recorder = recorder
        self._notifier: Notifier | None = None
        self._notifier_lock = threading.Lock()
        # a stream that is forgotten, also at the end of Python, keeps the frames it was given
        self._finalizer = weakref.finalize(self, _close_forgotten, recorder)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        frames = self._recorder.frames_appended
        return f"<OMEStream {self.path or 'in memory'}: {frames} frames, {state}>"

    @property
    def path(self) -> Path | None:
        """The file or folder that is written; None in memory."""
        return self._layout.path

    @property
    def settings(self) -> AcquisitionSettings:
        """A copy of what the stream was opened with."""
        return self._settings.model_copy(deep=True)

    # ------------------------------------------------------------------ frames

    def append(
        self,
        frame: Any,
        *,
        frame_metadata: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> FrameAddress:
        """Give the next frame of the acquisition.

        Parameters
        ----------
        frame : numpy.ndarray
            Height x width, of the stream's pixel type. It is copied: its memory may be used again
            at once. Memory that `frame_buffer` has lent is not copied.
        frame_metadata : dict, optional
            What is known of this frame. ``delta_t`` and ``exposure_time`` (seconds) and
            ``position_x``, ``position_y``, ``position_z`` (µm) have places of their own in
            OME; all else is kept beside them. What JSON cannot hold is left out, with a warning.
        metadata
            Another spelling of `frame_metadata`.

        Returns
        -------
        FrameAddress
            The number of the frame and where it lies.

        Raises
        ------
        SpecError, PixelTypeError
            It has another shape or another pixel type; it was not taken.
        RegionError
            All frames have been given.
        OverrunError
            The disk is too slow, and ``backpressure="raise"``; it was not taken.
        StreamError
            An earlier frame could not be stored: says how many are safe.
        ClosedError
            The stream is closed.
        """
        if frame_metadata is not None and metadata is not None:
            raise SpecError("give frame_metadata= or metadata=, which are the same, not both")
        known = metadata if frame_metadata is None else frame_metadata
        address = self._recorder.append(frame, known)
        self._warn_of_listeners()
        return address

    def frame_buffer(self) -> NDArray[Any]:
        """Return memory for the next frame, height x width: fill it, then give it to `append`.

        It saves the copy. It must not be touched any more after `append`; what is in it before
        is of no meaning. May wait as `append` may.
        """
        return self._recorder.frame_buffer()

    def skip(self, *, frames: int = 1) -> None:
        """Leave out frames that never came.

        They read as 0, and the metadata say that they were skipped.

        Parameters
        ----------
        frames : int
            How many.

        Raises
        ------
        SpecError
            That is less than 1.
        RegionError
            There are not so many any more; nothing was skipped.
        """
        self._recorder.skip(frames)

    def flush(self) -> None:
        """Wait until the frames given so far are stored.

        Frames of a chunk that is longer than one frame are when the chunk is full.
        """
        self._recorder.flush()

    @property
    def stats(self) -> StreamStats:
        """How it is doing: frames given, stored, waiting; throughput; memory."""
        return self._recorder.stats()

    # ------------------------------------------------------------------ metadata

    def set_global_metadata(self, namespace: str, metadata: Mapping[str, Any]) -> None:
        """Keep something that is true of the whole acquisition; also after `close`.

        Parameters
        ----------
        namespace : str
            Whose it is; what it said before is replaced. In OME-Zarr a key of the root's
            attributes, in OME-TIFF (and in what is kept beside the pixels of BigDataViewer) the
            Namespace of a MapAnnotation.
        metadata : mapping
            JSON has to hold it.

        Raises
        ------
        ValueError
            The namespace is empty or reserved, or JSON cannot hold the metadata.
        """
        _check_namespace(namespace)
        if not isinstance(metadata, Mapping):
            raise SpecError(
                f"the metadata of {namespace!r} are a {type(metadata).__name__}: give a dict"
            )
        self._recorder.note(namespace, metadata)

    set_summary_metadata = set_global_metadata

    def get_metadata(self) -> Any:
        """Return the metadata as the format has them.

        Of OME-Zarr the attributes of each image group, by its path ("." for the only one); of
        OME-TIFF an ``ome_types.OME`` for each position, -1 for the companion file; of
        BigDataViewer the text of the XML.
        """
        return self._recorder.store.get_metadata()

    def update_metadata(self, metadata: Any) -> None:
        """Replace metadata that `get_metadata` has returned, changed."""
        self._recorder.store.update_metadata(metadata)

    # ------------------------------------------------------------------ looking

    def view(self, *, dynamic_shape: bool = True, strict: bool = False) -> StreamView:
        """Return an array of all frames, in the order of acquisition, that grows with them.

        Parameters
        ----------
        dynamic_shape : bool
            Its shape is that of the frames so far; else that of the whole acquisition.
        strict : bool
            An index outside of the shape so far is an error; else it reads as 0.
        """
        from bioio_tk.stream.coords import view_axes
        from bioio_tk.stream.view import StreamView

        return StreamView(
            self._recorder,
            view_axes(self._settings.dimensions),
            self._layout.plan.image.dtype,
            dynamic_shape=dynamic_shape,
            strict=strict,
            subscribe=lambda callback: self.on("coords_expanded", callback),
        )

    def on(
        self,
        event: Literal["coords_expanded", "coords_changed"],
        callback: Callable[[CoordUpdate], None],
    ) -> None:
        """Have a function called as the acquisition goes on; in another thread.

        Parameters
        ----------
        event : {"coords_changed", "coords_expanded"}
            After frames were given; or only when a coordinate was reached for the first time.
        callback : callable
            Gets a `CoordUpdate`. What it raises is shown as a warning.
        """
        with self._notifier_lock:
            if self._notifier is None:
                from bioio_tk.engine.notify import Notifier
                from bioio_tk.stream.coords import CoordTracker, view_axes

                self._notifier = Notifier(CoordTracker(view_axes(self._settings.dimensions)))
                self._recorder.told = self._notifier.tell
        self._notifier.on(event, callback, self._recorder.frames_appended)

    def _warn_of_listeners(self) -> None:
        if self._notifier is None:
            return
        for failure in self._notifier.take_errors():
            warnings.warn(
                f"a function that listens to {failure.event!r} has raised "
                f"{failure.error!r} ({failure.times} times); the frames are stored all the same",
                BioIOWarning,
                stacklevel=3,
            )

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Store what waits and complete the files; returns when the last byte is down.

        An acquisition that was stopped early has the size of what came. Safe to call twice. A
        Ctrl-C meanwhile is raised when all is done; a second one at once, and the rest is done
        before Python ends.

        Raises
        ------
        StreamError
            A frame could not be stored: says how many are safe. The files hold these.
        """
        before = self.closed
        try:
            self._recorder.close()
        finally:
            if self._recorder.closed:
                self._finalizer.detach()
            if self._notifier is not None:
                self._notifier.close()
                self._warn_of_listeners()
        if self._recorder.left_nothing and not before:
            warnings.warn(
                f"{self!r} was given no frame with pixels: nothing is left there",
                BioIOWarning,
                stacklevel=2,
            )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._recorder.closed

    def __enter__(self) -> OMEStream:
        return self

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        # frames that were given are kept also when the acquisition has failed
        try:
            self.close()
        except Exception as closing:
            if exc is None:
                raise
            if closing is not exc and closing is not self._recorder.failure:
                exc.add_note(f"and closing the stream failed: {closing}")


def _check_namespace(namespace: Any) -> None:
    if not isinstance(namespace, str) or not namespace:
        raise SpecError("namespace must be a non-empty string")
    if namespace in _RESERVED:
        raise SpecError(
            f"namespace {namespace!r} is reserved for what OME-Zarr and this package say there: "
            f"choose a name of your own, such as {'my_' + namespace!r}; reserved are "
            f"{', '.join(_RESERVED)}"
        )


def _close_forgotten(recorder: Recorder) -> None:
    if not recorder.mine or recorder.closed:  # in a child of the process that has opened it
        return
    if recorder.frames_appended:
        warnings.warn(
            "OMEStream was not closed: its frames are stored now; use it in a with block, or call "
            "close()",
            BioIOWarning,
            stacklevel=2,
        )
    recorder.close_forgotten()
