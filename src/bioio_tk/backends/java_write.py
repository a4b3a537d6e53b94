"""BioFormatsSink: formats that only Bio-Formats writes, through Java."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bioio_tk.backends import _java_home, _java_vm
from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._java_errors import reason
from bioio_tk.backends.base import Caps
from bioio_tk.core.spec import Channel
from bioio_tk.errors import (
    BackendError,
    BackendMissingError,
    ClosedError,
    OutOfMemoryError,
    PixelTypeError,
    SpecError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.spec import Address, ImageSpec, Level

_ARRAY = 2**31 - 64
"""Bytes that Java holds in one array, and so the largest plane."""
_BAND = 64 << 20
"""Bytes of a plane to hand over at once, where a writer takes less than a plane."""


@dataclass(frozen=True, slots=True)
class _Format:
    """What one writer of Bio-Formats stores so that it and others read the same.

    Bio-Formats itself claims more; what is missing here came back wrong from it, or from
    another program.

    Attributes
    ----------
    name : str
        What people call it.
    writer : str
        The class.
    types : tuple of str
        Pixel types.
    axes : str
        Those of Z, C, T along which there may be more than one plane.
    compressions : dict
        Our name of a codec to that of Bio-Formats, the default first; None sets nothing.
    samples : tuple of int
        How many samples a pixel may have.
    one_axis : bool
        There is one axis of planes, whatever its name: a film.
    bands : bool
        It takes parts of a plane, as wide as the image.
    most : int
        Bytes of pixels in all; 0 for no limit.
    side : int
        Largest height and width; 0 for no limit.
    width : int
        The width is a multiple of this.
    even : bool
        Of several planes each has an even number of bytes.
    ascii : bool
        Names hold no other characters.
    document : bool
        The metadata are stored whole, as OME-XML.
    """

    name: str
    writer: str
    types: tuple[str, ...]
    axes: str
    compressions: dict[str, str | None]
    samples: tuple[int, ...] = (1,)
    one_axis: bool = False
    bands: bool = False
    most: int = 0
    side: int = 0
    width: int = 1
    even: bool = False
    ascii: bool = False
    document: bool = False


_SMALL_INTS = ("uint8", "int8", "uint16", "int16")
_OME_XML = _Format(
    "OME-XML",
    "OMEXMLWriter",
    (*_SMALL_INTS, "uint32", "int32", "float32"),
    axes="ZCT",
    compressions={"deflate": "zlib", "none": "Uncompressed"},
    document=True,
)
_FORMATS = {
    ".ome": _OME_XML,
    ".ome.xml": _OME_XML,
    ".ics": _Format(
        "ICS",
        "ICSWriter",
        # of 32-bit integers it names the wrong byte order, of RGB it shifts the pixel sizes
        (*_SMALL_INTS, "float32"),
        axes="ZCT",
        compressions={"none": None},
        bands=True,
    ),
    ".dcm": _Format(
        "DICOM",
        "DicomWriter",
        (*_SMALL_INTS, "uint32", "int32"),
        axes="Z",
        compressions={"none": "Uncompressed"},
        samples=(1, 3),
        most=_ARRAY,
        side=2**16 - 1,
        even=True,
        ascii=True,
    ),
    ".jp2": _Format(
        "JPEG 2000",
        "JPEG2000Writer",
        ("uint8", "uint16"),
        axes="",
        compressions={"jpeg2000": "JPEG-2000"},
        samples=(1, 3),
    ),
    ".png": _Format(
        "PNG",
        "APNGWriter",
        ("uint8", "uint16"),
        axes="ZT",
        compressions={"deflate": None},
        samples=(1, 3),
        one_axis=True,
    ),
    ".avi": _Format(
        "AVI",
        "AVIWriter",
        ("uint8",),
        axes="ZT",
        compressions={"none": None},
        samples=(1, 3),
        one_axis=True,
        most=_ARRAY,
        width=4,  # of others it tells programs the width with its padding
    ),
}
SUFFIXES = tuple(_FORMATS)
"""Endings of the files that are written here."""
_ICS_HEAD = 1 << 14
"""Bytes in which the header of an ICS file ends."""
_FRAMES = 10
"""Frames of a film in a second."""


class BioFormatsSink:
    """A new file of a format that Bio-Formats writes; the ending of its name says which.

    These formats want whole planes, one after the other. Tiles wait in a temporary file beside
    the target, in any order, and `finish` hands the planes over.

    Parameters
    ----------
    path : Path
        An existing, empty file.
    images : tuple of ImageSpec
        What is to be stored: one image, without smaller resolutions.
    options : StoreOptions
        How; `name` is that of the finished file. Compressions are ``deflate`` (the default) or
        ``none`` for OME-XML, ``jpeg2000`` (lossless) for JP2, ``deflate`` for PNG, ``none`` for
        all others. `metadata` are stored in OME-XML only; in other formats what `images` say,
        as far as they have a place for it.

    Raises
    ------
    SpecError
        The images or options make no sense.
    UnsupportedError
        The format cannot hold such an image, or is none that is written here.
    BackendError
        Java does not start.
    """

    caps: ClassVar[Caps] = Caps(parallel_store=True, pyramids=False)

    def __init__(self, path: Path, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        self._format, self._compression = _plan(images, options)
        self.images = images
        self._path = path
        self._name = Path(options.name or path.name).name
        self._where = str(path.with_name(self._name))
        spec = images[0]
        with _translated(self._where):  # now, and not when all pixels have been given
            self._java = _java_vm.java()
            self._writer = self._new_writer()
            self._metadata = self._retrieve(_document(spec, self._format, options))
        self._tiles = _Tiles(path.parent, spec.levels[0], spec)

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        """Raise what the constructor would raise for such images and options.

        Raises
        ------
        SpecError
            The images or options make no sense.
        UnsupportedError
            The format cannot hold such an image, or is none that is written here.
        BackendMissingError
            There is no Java or no Bio-Formats; the text says what to do.
        """
        _plan(images, options)
        missing = None if _java_vm.is_running() else _java_home.missing()
        if missing is not None:
            raise BackendMissingError(f"{options.name!r} is written by Bio-Formats: {missing}")

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> NDArray[Any]:
        """Return the pixels of a whole (clipped) tile as they lie in the temporary file."""
        spec = self.images[at.image]
        shape = spec.levels[at.level].grid.tile_shape(at.key)
        if tile.shape != shape:
            raise SpecError(f"tile {at.key} has the shape {shape}, not {tile.shape}")
        if tile.dtype != spec.dtype:
            raise PixelTypeError(f"the image is {spec.dtype}, the tile {tile.dtype}")
        return np.ascontiguousarray(tile[:, :, 0, :, 0], self._tiles.dtype)

    def store_tile(self, at: Address, encoded: NDArray[Any]) -> None:
        """Put a tile into the temporary file. Any thread."""
        self._tiles.put(at, encoded)

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        """Return a stored tile, clipped, or None if it was never stored. Any thread."""
        found = self._tiles.get(at)
        if found is None:
            return None
        return found.astype(self.images[0].dtype, copy=False)[:, :, None, :, None]

    def grow(self, image: int, t: int) -> None:
        """Refuse: the size is written first."""
        raise UnsupportedError(
            f"{self._format.name} cannot grow to {t} time points while it is written: give their "
            "number at the start, or write OME-Zarr"
        )

    def finish(self) -> None:
        """Write the file, plane by plane.

        Raises
        ------
        OSError
            The disk is full, or what else the system says.
        OutOfMemoryError
            Java has not enough memory for a plane.
        BackendError
            Bio-Formats cannot write it.
        """
        location, writer = self._java("loci.common.Location"), self._writer
        with _translated(self._where):
            # the writer sees the name that the file will have; where it lies is only said here
            location.mapId(self._name, str(self._path.absolute()))
            try:
                writer.setMetadataRetrieve(self._metadata)
                writer.setId(self._name)
                self._hand_over()
                writer.close()
                if self._format is _FORMATS[".ics"]:
                    _forget_sizes(self._path, self.images[0])
            except BaseException:
                with suppress(Exception):  # there is an error already: the one to report
                    writer.close()
                raise
            finally:
                location.mapId(self._name, None)

    def close(self) -> None:
        """Release the files. Safe to call twice; without finish() nothing was written."""
        self._tiles.close()

    def _hand_over(self) -> None:
        buffers = _Buffers()
        height, width = self.images[0].shape[:2]
        row = width * self._tiles.pixel
        rows = max(1, _BAND // row) if self._format.bands else height
        for plane in range(self._tiles.planes):
            for y in range(0, height, rows):
                part = self._tiles.rows(plane, y, min(y + rows, height))
                found = buffers.of(part)
                if len(part) == height:
                    self._writer.saveBytes(plane, found)
                else:
                    self._writer.saveBytes(plane, found, 0, y, width, len(part))

    def _new_writer(self) -> Any:
        try:
            writer = self._java(f"loci.formats.out.{self._format.writer}")()
        except TypeError:
            raise UnsupportedError(
                f"Bio-Formats {self._java.started.version} does not write {self._format.name}: "
                "'bioio-tk java install' brings a newer one"
            ) from None
        writer.setInterleaved(True)
        writer.setWriteSequentially(True)
        writer.setFramesPerSecond(_FRAMES)
        if self._compression is not None:
            writer.setCompression(self._compression)
        return writer

    def _retrieve(self, xml: str) -> Any:
        factory = self._java("loci.common.services.ServiceFactory")()
        service = factory.getInstance(self._java("loci.formats.services.OMEXMLService"))
        return service.createOMEXMLMetadata(xml)


class _Tiles:
    """Tiles that wait in a temporary file; what was never stored takes no room and is 0.

    Parameters
    ----------
    folder : Path
        Where the file goes: where there must be room for the image anyway.
    level : Level
        Size of the image and of its tiles.
    spec : ImageSpec
        Whose pixels they are.

    Attributes
    ----------
    dtype : numpy.dtype
        Little-endian, as Bio-Formats is told.
    pixel : int
        Bytes of a pixel with all its samples.
    planes : int
        How many there are: Z fastest, then C, then T.
    """

    def __init__(self, folder: Path, level: Level, spec: ImageSpec) -> None:
        self.dtype = spec.dtype.newbyteorder("<")
        self.pixel = spec.samples * self.dtype.itemsize
        self._samples = spec.samples
        self._level = level
        self._down, self._across, *counts = level.grid.counts
        self._counts = counts
        self.planes = int(np.prod(counts))
        self._slot = level.tile[0] * level.tile[1] * self.pixel
        self._stored = bytearray(self.planes * self._down * self._across)
        fd, name = tempfile.mkstemp(dir=folder, prefix=".bioio_tk-")
        os.close(fd)
        self._name = Path(name)
        self._file: RandomFile | None = None
        try:
            self._file = RandomFile(self._name, writable=True)
        finally:
            with suppress(OSError):  # Windows keeps it until it is closed
                self._name.unlink()

    def put(self, at: Address, pixels: NDArray[Any]) -> None:
        """Store a tile (y, x, s)."""
        number = self._number(at)
        self._open().write(number * self._slot, pixels)
        self._stored[number] = 1

    def get(self, at: Address) -> NDArray[Any] | None:
        """Return a tile (y, x, s), None where it was never stored."""
        return self._read(self._number(at), *self._level.grid.tile_shape(at.key)[:2])

    def rows(self, plane: int, start: int, stop: int) -> NDArray[Any]:
        """Return rows of a plane (y, x, s)."""
        (height, width), (down, across) = self._level.shape[:2], self._level.tile[:2]
        out = np.zeros((stop - start, width, self._samples), self.dtype)
        for y in range(start // down, -(-stop // down)):
            a, b = max(start, y * down), min(stop, (y + 1) * down)
            for x in range(self._across):
                left, right = x * across, min((x + 1) * across, width)
                number = (plane * self._down + y) * self._across + x
                high = min(down, height - y * down)
                tile = self._read(number, high, right - left)
                if tile is not None:
                    out[a - start : b - start, left:right] = tile[a - y * down : b - y * down]
        return out

    def close(self) -> None:
        """Drop the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
            self._name.unlink(missing_ok=True)

    def _read(self, number: int, height: int, width: int) -> NDArray[Any] | None:
        file = self._open()
        if not self._stored[number]:
            return None
        tile = np.empty((height, width, self._samples), self.dtype)
        file.read_into(number * self._slot, tile)
        return tile

    def _number(self, at: Address) -> int:
        y, x, z, c, t = at.key
        plane = (t * self._counts[1] + c) * self._counts[0] + z
        return (plane * self._down + y) * self._across + x

    def _open(self) -> RandomFile:
        if self._file is None:
            raise ClosedError("the file is closed: no more tiles can be stored or loaded")
        return self._file


class _Buffers:
    """Java's own copy of some bytes; the last one is used again for as many."""

    def __init__(self) -> None:
        self._array: Any = None

    def of(self, pixels: NDArray[Any]) -> Any:
        """Return a byte[] of Java."""
        import jpype
        import jpype.nio

        flat = pixels.reshape(-1).view(np.int8)
        if self._array is None or len(self._array) != flat.size:
            self._array = jpype.JArray(jpype.JByte)(flat.size)
        jpype.nio.convertToDirectBuffer(flat).get(self._array, 0, flat.size)
        return self._array


# -- what is stored, and whether it can be ---------------------------------------------------------


def _plan(images: tuple[ImageSpec, ...], options: StoreOptions) -> tuple[_Format, str | None]:
    """Return the format and what Bio-Formats calls the compression."""
    found = _format_of(options.name)
    if len(images) != 1:
        raise UnsupportedError(
            f"{found.name} is written with one image, not {len(images)}: give each its own file"
        )
    for name in options.extra:
        raise SpecError(f"{found.name} has no option {name!r}: leave it out")
    for name in ("level", "predictor"):
        if getattr(options, name) is not None:
            raise SpecError(f"the compression of {found.name} has no {name}: leave it out")
    _check_geometry(found, images[0])
    _check_axes(found, images[0])
    _check_size(found, images[0])
    return found, _compression(found, options.compression)


def _format_of(name: str) -> _Format:
    lower = name.lower()
    found = next((_FORMATS[s] for s in SUFFIXES if lower.endswith(s)), None)
    if found is not None:
        return found
    if lower.endswith(".ids"):
        hint = "ICS is written as one file: end the name with .ics"
    elif re.search(r"\.(tiff?|tf[28]|btf|zarr|ozx|zip)$", lower):
        hint = "OME-TIFF and OME-Zarr are always written by bioio_tk itself: leave backend= out"
    else:
        hint = f"end the name with one of {', '.join(SUFFIXES)}"
    raise UnsupportedError(f"{name!r} is no name of a format that Bio-Formats writes here: {hint}")


def _check_geometry(found: _Format, spec: ImageSpec) -> None:
    instead = "write OME-TIFF (.ome.tif) or OME-Zarr instead"
    if len(spec.levels) > 1:
        raise UnsupportedError(
            f"{found.name} holds no smaller resolutions: leave pyramid out, or {instead}"
        )
    if spec.dtype.name not in found.types:
        raise UnsupportedError(
            f"{found.name} is written with pixels of {', '.join(found.types)}, not "
            f"{spec.dtype.name}: convert them (dtype= with cast=), or {instead}"
        )
    if spec.samples not in found.samples:
        fits = " or ".join(map(str, found.samples))
        raise UnsupportedError(
            f"{found.name} is written with {fits} samples a pixel, not {spec.samples}: store them "
            f"as channels (samples_per_pixel=1 in Python), or {instead}"
        )
    y, x, *rest = spec.levels[0].tile
    if min(spec.shape) < 1 or spec.shape[3] % spec.samples or rest != [1, spec.samples, 1]:
        raise SpecError(
            f"an image of {spec.shape} with tiles of {spec.levels[0].tile} (Y, X, Z, C, T) and "
            f"{spec.samples} samples a pixel: tiles are (1, {spec.samples}, 1) along Z, C, T"
        )
    if y * x * spec.samples * spec.dtype.itemsize > _ARRAY:
        raise SpecError(f"tiles of {y} x {x} pixels have 2 GB and more: make them smaller")


def _check_axes(found: _Format, spec: ImageSpec) -> None:
    z, c, t = spec.shape[2:]
    sizes = {"Z": z, "C": c // spec.samples, "T": t}
    many = [axis for axis, n in sizes.items() if n > 1]
    wrong = [axis for axis in many if axis not in found.axes]
    if wrong:
        said = ", ".join(f"{axis}={sizes[axis]}" for axis in wrong)
        rgb = " of RGB" if spec.samples > 1 else ""
        raise UnsupportedError(
            f"{found.name} has no place for {said}{rgb}: write each into a file of its own, or "
            "OME-TIFF (.ome.tif)"
        )
    if found.one_axis and len(many) > 1:
        raise UnsupportedError(
            f"{found.name} is a film, and the image has both Z={sizes['Z']} and T={sizes['T']}: "
            "write one Z or one T, or OME-TIFF (.ome.tif)"
        )


def _check_size(found: _Format, spec: ImageSpec) -> None:
    y, x, z, c, t = spec.shape
    plane = y * x * spec.samples * spec.dtype.itemsize
    instead = "write OME-TIFF (.ome.tif) instead"
    if plane > _ARRAY:
        raise UnsupportedError(
            f"a plane of {x} x {y} pixels has {plane / 1e9:.1f} GB, and Java handles 2 GB at "
            f"once: {instead}"
        )
    if found.most and plane * z * (c // spec.samples) * t > found.most:
        raise UnsupportedError(f"{found.name} ends at 2 GB: {instead}")
    if found.side and max(x, y) > found.side:
        raise UnsupportedError(
            f"{found.name} is at most {found.side} pixels high and wide, not {x} x {y}: {instead}"
        )
    if x % found.width:
        raise UnsupportedError(
            f"{found.name} is read right by all programs where X is a multiple of {found.width}, "
            f"and it is {x}: leave {x % found.width} columns out, or {instead}"
        )
    if found.even and plane % 2 and z > 1:
        raise UnsupportedError(
            f"{found.name} pads a plane of {plane} bytes, so that those after it read wrong: leave "
            "a row or a column out, or write one file for each Z"
        )


def _compression(found: _Format, given: str | None) -> str | None:
    default = next(iter(found.compressions))
    name = default if given is None else str(given).lower()
    if name not in found.compressions:
        raise UnsupportedError(
            f"compression={given!r} is none of those that {found.name} is written with: "
            f"{', '.join(found.compressions)}"
        )
    return found.compressions[name]


def _document(spec: ImageSpec, found: _Format, options: StoreOptions) -> str:
    """Return OME-XML that says what the writer has to know."""
    from bioio_tk.meta.ome import document

    if found.document:
        xml = document((spec,), metadata=options.metadata)
        return re.sub(r">[^<]+", lambda text: _twice_escaped(text[0]), xml)
    if found.ascii:
        channels = tuple(Channel(_plain(c.name), c.color) for c in spec.channels)
        spec = replace(spec, name=_plain(spec.name) or "", channels=channels)
    return document((spec,))


def _twice_escaped(text: str) -> str:
    """Return text between tags as it must be for Bio-Formats' writer and reader of OME-XML.

    Both put it into another document as it stands, where "&" and "<" would end it. The writer
    needs one more escape for a document to come about at all, the reader another to open it; that
    one stays: others read "&amp;" for "&", in descriptions and annotations, not in names.
    """
    return re.sub(r"(?<!\]\])&gt;", ">", text).replace("&", "&amp;amp;")


def _forget_sizes(path: Path, spec: ImageSpec) -> None:
    """Take back the 1 µm that an ICS file was given for sizes that nobody knows."""
    with path.open("r+b") as file:
        head = file.read(_ICS_HEAD)
        line = b"\nparameter\tunits\tbits\t"
        start = head.index(line) + len(line)
        for size in spec.physical_size:
            stop = head.index(b"\t", start)
            if size is None:
                file.seek(start)
                file.write(b"undefined".ljust(stop - start))
            start = stop + 1


def _plain(text: str | None) -> str | None:
    return None if text is None else text.encode("ascii", "replace").decode()


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Raise what Java throws in the block as an error about writing the file `where`."""
    import jpype

    try:
        yield
    except jpype.JException as exc:
        text = reason(exc)
        if isinstance(exc, jpype.JClass("java.lang.OutOfMemoryError")):
            error: Exception = OutOfMemoryError(
                f"{where!r}: Java has not enough memory to write a plane ({text}): give it more, "
                "bioio_tk.start(heap_mb=…) before the first image or BIOIO_TK_JAVA_HEAP_MB"
            )
        elif isinstance(exc, jpype.JClass("java.io.IOException")):
            full = "space" in text.lower()
            error = OSError(errno.ENOSPC if full else errno.EIO, text, where)
        else:
            error = BackendError(f"{where!r} cannot be written by Bio-Formats: {text}")
        raise error from exc
