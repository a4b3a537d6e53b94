"""bfio's BioReader and BioWriter."""

from __future__ import annotations

import atexit
import copy
import inspect
import logging
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bioio_tk import reader, writer
from bioio_tk.compat.bfio.base_classes import BioBase, workers
from bioio_tk.compat.bfio.utils import detect_zarr_format, start
from bioio_tk.core.index import select
from bioio_tk.core.region import AXES
from bioio_tk.core.spec import at_level
from bioio_tk.draft import ALIASES, PROPERTIES
from bioio_tk.engine.copy import View
from bioio_tk.engine.copy import copy as copy_pixels
from bioio_tk.errors import BioIOError, FormatError, SpecError, UnknownFormatError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from ome_types import OME

    from bioio_tk.backends.base import Source
    from bioio_tk.core.spec import ImageSpec

__all__ = ["BioReader", "BioWriter", "start"]  # start: bfio 2.1 had it here

_BACKENDS = ("python", "java", "bioformats", "zarr", "zarr3", "tensorstore")


class BioReader(BioBase, reader.BioReader):
    """Open an image file for reading.

    Parameters
    ----------
    file_path : str or Path
        The file or OME-Zarr; ``~`` is expanded.
    max_workers : int, optional
        Threads to decode with; by default one per CPU this process may use.
    backend : str, optional
        A name of bfio's, in any case: ``python``, ``java``, ``bioformats``, ``zarr``, ``zarr3``,
        ``tensorstore``. It says what is expected of the file; the content decides who reads it.
    clean_metadata : bool
        Mend OME-XML that is not well formed or not valid; if False, raise.
    level : int, optional
        Which resolution; those of a second image in the file are counted on from those of the
        first, as Bio-Formats does. Negative numbers count from the last one of the first image.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    IsADirectoryError
        It is a folder and no Zarr.
    BackendMissingError
        The file needs Bio-Formats, which is not installed.
    FormatError
        The file is broken, or its metadata are and `clean_metadata` is False.
    """

    logger = logging.getLogger("bfio.bfio.BioReader")

    def __init__(
        self,
        file_path: str | os.PathLike[str],
        max_workers: int | None = None,
        backend: str | None = None,
        clean_metadata: bool = True,
        level: int | None = None,
    ) -> None:
        _backend_name(backend)
        super().__init__(reader.check_path(file_path).resolve(), workers(max_workers))
        self.clean_metadata = clean_metadata
        self.level_given = level
        self._ome: OME | None = None
        try:
            self._go_to_level(level)
            if not clean_metadata:
                self._check_metadata()
        except BaseException:
            self.close()
            raise

    def _go_to_level(self, level: int | None) -> None:
        if level is None:
            return
        images = self._live.images
        first = len(images[0].levels)
        try:
            number = level.__index__()
            if number < first:  # where opening thousands of other images is not needed
                self._series, self._level = 0, range(first)[number]
            else:
                self._series, self._level = _every(images)[number]
        except (AttributeError, IndexError):
            raise SpecError(
                f"{self.path.name!r} has no level {level!r}; it has {len(_every(images))}, "
                "counted from 0"
            ) from None
        self._view = at_level(images[self._series], self._level)

    def _check_metadata(self) -> None:
        xml = self.ome_xml
        if xml is None:
            return
        import ome_types

        from bioio_tk.meta import ome

        ome.read_document(xml)  # refuses what would be dangerous to read
        try:
            ome_types.from_xml(xml.encode())
        except Exception as exc:  # whatever its parsers raise
            raise FormatError(
                f"the OME-XML in {self.path.name!r} is not valid ({exc}); leave clean_metadata "
                "True to have it mended"
            ) from exc

    # ------------------------------------------------------------------ pixels

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return pixels: ``br[0:100, 0:100, 3, (0, 2), 0]``.

        As documented by bfio, steps of slices are ignored for Y, X and Z and count for C and T.
        An int keeps its axis at length 1, and then trailing axes of length 1 are dropped, never
        below two axes. Everything else is as in `bioio_tk.BioReader`.
        """
        return super().__getitem__(without_steps(key))

    def read_image(
        self, X: Any = None, Y: Any = None, Z: Any = None, C: Any = None, T: Any = None
    ) -> NDArray[Any]:
        """Return pixels by axis as `read` does, but always with five axes."""
        pixels = self.read(X, Y, Z, C, T)
        return pixels[(..., *[None] * (5 - pixels.ndim))]

    def iterate(
        self,
        tile_size: Any,
        tile_stride: Any = None,
        batch_size: int | None = None,
        channels: Any = (0,),
    ) -> Iterator[tuple[NDArray[Any], tuple[list[list[int]], ...]]]:
        """Walk through the first plane in batches of tiles, as calling the reader does."""
        return self(tile_size, tile_stride, batch_size, channels)

    # ------------------------------------------------------------------ the file

    @classmethod
    def image_size(cls, path: str | os.PathLike[str]) -> tuple[int, int]:
        """Return (width, height) of an image file; (-1, -1) for what is no image."""
        try:
            return super().image_size(path)
        except UnknownFormatError:
            return (-1, -1)

    @property
    def _source(self) -> Source:
        if self._closed:  # bfio opens the file again, and its own examples count on it
            self._open()
            self._closed = False
        return super()._source

    def close(self) -> None:
        """Release the file. Safe to call twice; what is read later opens it again."""
        reader.BioReader.close(self)

    def __enter__(self) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self._path,
            "workers": self._workers,
            "clean_metadata": self.clean_metadata,
            "level": self.level_given,
            "closed": self._closed,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]
            state["path"], state["workers"], None, state["clean_metadata"], state["level"]
        )
        if state["closed"]:
            self.close()

    @property
    def _backend_name(self) -> str:
        return self.backend

    def _get_metadata(self) -> OME:
        if self._ome is None:
            self._ome = self._read_ome()
        return self._ome

    def _read_ome(self) -> OME:
        """Return the file's OME, with the open image alone if there was a `level`."""
        from bioio_tk.meta import ome

        specs = self._live.images
        xml = self.ome_xml
        try:
            found = super()._get_metadata()
        except FormatError:
            if xml is None:
                raise
            found = ome.to_ome(ome.document(specs, metadata=xml))
        if xml is not None and not _agree(found, specs):  # the file's own structure won
            found = ome.to_ome(ome.document(specs, metadata=xml))
        if self.level_given is not None:
            found.images = [found.images[self._series]]
            if self._level:
                found = ome.to_ome(ome.document((self._view,), metadata=found))
        return found


class BioWriter(BioBase, writer.BioWriter):
    """Create an OME-TIFF file or an OME-Zarr and write pixels into it.

    It is complete and at its place after `close()`; an image that was there is replaced then. A
    folder that holds anything but a Zarr store is never touched.

    Parameters
    ----------
    file_path : str or Path
        The image to make; ``~`` is expanded. One called ``.zarr`` is an OME-Zarr, any other name
        an OME-TIFF.
    max_workers : int, optional
        Threads to encode with; by default one per CPU this process may use.
    backend : str, optional
        A name of bfio's, in any case. ``zarr`` (Zarr v2, OME-Zarr 0.4) and ``zarr3`` (Zarr v3,
        0.5) make an OME-Zarr under any name. Otherwise an OME-Zarr is one of Zarr v2, unless it
        takes the place of one of v3; ``ngff_version=`` decides.
    metadata : ome_types.OME, optional
        What to start from; of several images the first. It is copied.
    image : numpy.ndarray, optional
        Array (Y, X[, Z[, C[, T]]]) to take shape and pixel type from; ignored where there are
        metadata.
    append : bool
        Start from the pixels of the OME-Zarr that is there, which is replaced in `close()`; shape
        and pixel type are its own. Ignored for OME-TIFF.
    **kwargs
        Properties (``X=…``, ``dtype=…``, ``channel_names=…``, ``ps_x=…``), which win over
        metadata and image, and the options of `bioio_tk.BioWriter` (``compression=…``,
        ``tile_size=…``, ``pyramid=…``). Anything else is ignored with a warning.

    Notes
    -----
    Pixels of another type are converted if every value fits, else `PixelTypeError` is raised.
    The pixel types int64 and uint64, which OME does not know, become float64.
    """

    logger = logging.getLogger("bfio.bfio.BioWriter")
    append = False

    def __init__(
        self,
        file_path: str | os.PathLike[str],
        max_workers: int | None = None,
        backend: str | None = None,
        metadata: Any = None,
        image: NDArray[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._ready = False
        self._former: reader.BioReader | None = None
        self._shown: OME | None = None
        self._shown_as = ""
        path = reader.check_path(file_path).resolve()
        self.append = kwargs.pop("append", False) is True
        row, version = _writing_backend(path, backend)
        if version is not None:
            kwargs.setdefault("ngff_version", version)
        if self.append and row == "zarr" and detect_zarr_format(path):
            self._former = reader.BioReader(path, workers(max_workers))
            kwargs = {**_geometry(self._former), **kwargs}
        unknown = [k for k in kwargs if ALIASES.get(k, k) not in PROPERTIES and k not in _OPTIONS]
        for name in unknown:
            warnings.warn(
                f"BioWriter does not know the keyword {name!r} and ignores it, as bfio does",
                UserWarning,
                stacklevel=2,
            )
            del kwargs[name]
        if metadata is not None and not isinstance(metadata, str | bytes):
            metadata = copy.deepcopy(metadata)
            if len(getattr(metadata, "images", ())) > 1:
                self.logger.warning("the metadata have several images: only the first is written")
        super().__init__(
            path,
            workers(max_workers),
            row,
            metadata,
            None if metadata is not None else image,
            **{"cast": "exact", "overwrite": True, **kwargs},
        )
        self._ready = True
        _writers.add(self)

    def _take_over(self, former: reader.BioReader) -> None:
        """Copy the pixels of the image that is there into the new one."""
        shape = self._get_shape()
        if (former.shape, former.dtype) != (tuple(shape), self.dtype):
            raise SpecError(
                f"append=True: {self._path.name!r} has the shape {former.shape} and pixels of type "
                f"{former.dtype}, not {tuple(shape)} and {self.dtype}"
            )

        def put(box: Any, pixels: NDArray[Any]) -> None:
            self._tiles.write(select(box, tuple(shape)).spans, pixels)

        tile = self._spec().levels[0].tile
        view = View.whole(former._source, 0, 0)  # noqa: SLF001
        copy_pixels(view, put, tile, workers=self._workers)

    # ------------------------------------------------------------------ pixels

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write pixels: ``bw[0:100, 0:100, 3, 0, 0] = plane``.

        As documented by bfio, steps of slices are ignored for Y, X and Z and count for C and T.
        """
        super().__setitem__(without_steps(key), value)

    def write(
        self, image: Any, X: Any = None, Y: Any = None, Z: Any = None, C: Any = None, T: Any = None
    ) -> None:
        """Write an array at a place.

        Parameters
        ----------
        image : numpy.ndarray
            Axes Y, X, Z, C, T; missing trailing axes count as 1.
        X, Y, Z : int or [int], optional
            First pixel along the axis, 0 by default.
        C, T : int or sequence of int, optional
            Position of each of the array's; 0, 1, 2, … by default.
        """
        super().write(image, X, Y, Z, C, T)

    def write_image(
        self, image: Any, X: Any = None, Y: Any = None, Z: Any = None, C: Any = None, T: Any = None
    ) -> None:
        """Write an array at a place, as `write`."""
        self.write(image, X, Y, Z, C, T)

    # ------------------------------------------------------------------ properties

    def _describe(self, metadata: Any, image: Any, like: Any, properties: dict[str, Any]) -> None:
        super()._describe(metadata, image, like, properties)
        if metadata is not None and "name" not in properties:
            self._draft.name = self._path.name
        self._settle()

    def _infer(self, key: Any, value: Any) -> None:
        self._absorb()
        super()._infer(key, value)
        self._settle()

    def _set(self, name: str, value: Any) -> None:
        self._absorb()
        name = ALIASES.get(name, name)
        if name == "metadata":
            raise AttributeError(
                "metadata cannot be set; change the object that bw.metadata gives, or the "
                "properties of the writer"
            )
        if name in AXES and isinstance(value, (float, np.floating)) and value.is_integer():
            value = int(value)
        if name.startswith("physical_size_") and isinstance(value, tuple) and None in value:
            return  # bfio: nothing known, nothing changed
        if name == "channel_names" and not self.read_only:
            self._check_names(value)
        if name == "C":
            self._given.discard("channel_names")  # those that are too many go
        super()._set(name, value)
        self._settle()
        self._refresh()

    def _check_names(self, names: Any) -> None:
        count, samples = self._draft.shape[3], self._draft.samples
        if "C" in self._draft.sizes and len(names) not in (count, count // samples):
            raise SpecError(f"{len(names)} channel names were given, but the image has C={count}")

    def _settle(self) -> None:
        """Turn what cannot be stored as it was said into what bfio makes of it."""
        draft = self._draft
        if draft.dtype is not None and draft.dtype in (np.int64, np.uint64):
            self.logger.warning("%s is no pixel type of OME: saved as float64", draft.dtype)
            draft.dtype = np.dtype(np.float64)
        if draft.shape[3] % draft.samples:  # RGB metadata for an image of fewer channels
            draft.samples = 1
            self._fit_channels()

    # bfio gives out its own metadata object, and what is changed in it changes the image

    def _get_metadata(self) -> OME:
        self._absorb()
        if self._shown is None:
            self._shown = super()._get_metadata()
            self._shown_as = _xml(self._shown)
        return self._shown

    def _absorb(self) -> None:
        """Take over what was changed in the object that `metadata` gave."""
        if self._shown is None or self.read_only:
            return
        xml = _xml(self._shown)
        if xml != self._shown_as:
            self._shown_as = xml
            self._draft.set_metadata(copy.deepcopy(self._shown))
            self._settle()

    def _refresh(self) -> None:
        """Show a change of a property in the object that `metadata` gave."""
        if self._shown is None:
            return
        try:
            fresh = super()._get_metadata()
        except SpecError:  # half way: names of channels that are still to come
            return
        for field in type(fresh).model_fields:
            setattr(self._shown, field, getattr(fresh, field))
        self._shown_as = _xml(self._shown)

    def _spec(self) -> ImageSpec:
        self._absorb()
        return super()._spec()

    def _get_shape(self) -> Any:
        self._absorb()
        return super()._get_shape()

    @property
    def max_workers(self) -> int:
        """Threads to work with; may be changed at any time."""
        return self._workers

    @max_workers.setter
    def max_workers(self, value: int | None) -> None:
        self._workers = workers(value)
        if self._state == "open":
            self._tiles._workers = self._workers  # noqa: SLF001

    _max_workers = max_workers

    # ------------------------------------------------------------------ the file

    def _start(self) -> None:
        self._absorb()
        super()._start()
        former, self._former = self._former, None
        if former is None:
            return
        try:
            with former:
                self._take_over(former)
        except BaseException:
            self._state = "closed"
            self._let_go()
            self._scratch.close()
            self._target.abort()
            raise

    def _worth_writing(self) -> bool:
        return self._image is not None  # bfio makes no file as long as nothing is written

    def close(self) -> None:
        """Complete the file and move it into place; nothing where nothing was written."""
        writer.BioWriter.close(self)

    def __enter__(self) -> Self:
        return self

    def __del__(self) -> None:
        if not getattr(self, "_ready", False):
            return
        if self._state == "failed":
            super().__del__()
        else:
            self.close()

    @property
    def _backend(self) -> _Backend:
        return _Backend(self)

    @property
    def _backend_name(self) -> str:
        return self._row.name


class _Backend:
    """What code reaches for in ``bw._backend``."""

    def __init__(self, front: BioWriter) -> None:
        self._front = front

    def _init_writer(self) -> None:
        with self._front._busy():  # noqa: SLF001
            pass


def without_steps(key: Any) -> Any:
    """Return `key` with no step along Y, X and Z."""
    items = key if isinstance(key, tuple) else (key,)
    dots = next((n for n, item in enumerate(items) if item is Ellipsis), len(items))
    plain = list(items)
    for n, item in enumerate(items):
        axis = n if n < dots else 5 - len(items) + n
        if axis < 3 and isinstance(item, slice):
            plain[n] = slice(item.start, item.stop)
    return tuple(plain)


def _backend_name(backend: Any) -> str | None:
    if backend is None:
        return None
    name = str(backend).lower()
    if name not in _BACKENDS:
        raise SpecError(f"backend={backend!r}: choose one of {', '.join(_BACKENDS)}")
    return name


def _writing_backend(path: Path, backend: Any) -> tuple[str, str | None]:
    """Return the backend that writes, and the version of OME-Zarr."""
    name = _backend_name(backend)
    if name not in ("zarr", "zarr3") and not path.name.lower().endswith(".zarr"):
        return "python", None  # OME-TIFF, whatever the ending
    newer = name == "zarr3" or (name != "zarr" and detect_zarr_format(path) == 3)
    return "zarr", "0.5" if newer else "0.4"


def _geometry(image: reader.BioReader) -> dict[str, Any]:
    """Return shape and pixel type as keywords."""
    return {**dict(zip(AXES, image.shape, strict=True)), "dtype": image.dtype}


def _every(images: Sequence[ImageSpec]) -> list[tuple[int, int]]:
    """Return (series, level) of every level of every image."""
    return [(s, n) for s, image in enumerate(images) for n in range(len(image.levels))]


def _agree(found: OME, specs: Sequence[ImageSpec]) -> bool:
    """Say whether the document describes the images that the file holds."""
    sizes = [
        (p.size_y, p.size_x, p.size_z, p.size_c, p.size_t)
        for p in (image.pixels for image in found.images)
    ]
    return sizes == [tuple(spec.levels[0].shape) for spec in specs]


def _xml(ome: OME) -> str:
    return copy.deepcopy(ome).to_xml()  # it marks fields as set in the object it is called on


_OPTIONS = frozenset(
    name
    for name, parameter in inspect.signature(writer.BioWriter.__init__).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
)
_writers: weakref.WeakSet[BioWriter] = weakref.WeakSet()


def _close_writers() -> None:
    for one in list(_writers):
        try:
            one.close()
        except (OSError, BioIOError):
            one.logger.exception("%s is not complete", one.path)


atexit.register(_close_writers)
