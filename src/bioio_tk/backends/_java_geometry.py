"""What Bio-Formats says of an image, as ours: sizes, tiles, pixel types, channels, plates."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.plate import Acquisition, Field, Plate, Well
from bioio_tk.core.spec import Channel, ImageSpec, Level, PhysicalSize
from bioio_tk.errors import DamagedFileError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from bioio_tk.backends._java_metadata import Metadata
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import Quantity

_TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8", "b1")
"""By the number that FormatTools gives each."""
_NO_UNITS = ("reference frame", "pixel")
_TILE = 256
"""Height and width to which stored tiles that are smaller are put together."""
_COARSE = {"ZeissCZIReader": 512}
"""The same for readers that look through all their blocks at each request."""
_AREA = 1 << 18
"""Pixels to which strips that are smaller are put together, into bands."""

_LARGEST_PLANE = 1 << 29
"""Bytes of a plane up to which it may be a tile."""
_COPIED = 2e9
"""Bytes that are copied in a second: nothing is decoded faster."""
_ROW = 0.001
"""Seconds that reading one row may take in itself."""
_LOADING = 0.2
"""Seconds that loading code for the first row may take."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pixels of one resolution arrive from Java.

    Attributes
    ----------
    shape : Shape5
        Y, X, Z, C, T; the samples of a pixel count as channels.
    tile : Shape5
        What to ask for at once.
    dtype : numpy.dtype
        In the file's byte order.
    samples : int
        Samples that one request returns for each pixel.
    interleaved : bool
        Samples lie side by side, not one plane after the other.
    """

    shape: Shape5
    tile: Shape5
    dtype: np.dtype[Any]
    samples: int
    interleaved: bool

    def by_rows(self, rows: int) -> Layout:
        """Return the same with another height of tiles."""
        return replace(self, tile=(min(rows, self.shape[0]), *self.tile[1:]))

    def pixels(self, array: Any, height: int, width: int) -> NDArray[Any]:
        """Return what openBytes() gave as (y, x, z, c, t), in native byte order."""
        flat = np.frombuffer(array, np.uint8)
        wanted = height * width * self.samples * self.dtype.itemsize
        if flat.size != wanted:
            raise DamagedFileError(f"Bio-Formats gave {flat.size} bytes where {wanted} belong")
        if self.dtype.kind == "b":
            typed = flat != 0
        else:
            typed = flat.view(self.dtype)
            if not self.dtype.isnative:
                typed = typed.astype(self.dtype.newbyteorder("="))
        if self.interleaved:
            pixels: NDArray[Any] = typed.reshape(height, width, 1, self.samples, 1)
        else:
            pixels = typed.reshape(self.samples, height, width, 1, 1).transpose(1, 2, 3, 0, 4)
        return pixels


def layout_of(java: Any, name: str = "") -> Layout:
    """Return the layout of the series and resolution that an IFormatReader is set to.

    `name` is that of its class, "ZeissCZIReader".
    """
    y, x = int(java.getSizeY()), int(java.getSizeX())
    z, c, t = int(java.getSizeZ()), int(java.getSizeC()), int(java.getSizeT())
    samples = int(java.getRGBChannelCount())
    number = int(java.getPixelType())
    if not 0 <= number < len(_TYPES):
        raise UnsupportedError(f"pixels of Bio-Formats' type {number} are not known here")
    bits = int(java.getBitsPerPixel())
    if bits > max(8, 8 * np.dtype(_TYPES[number]).itemsize):  # complex ones, taken for bytes
        raise UnsupportedError(f"Bio-Formats cannot read pixels of {bits} bits")
    if min(y, x, z, c, t, samples) < 1:
        raise DamagedFileError(f"an image of {x} x {y} pixels, Z={z} C={c} T={t} is none")
    order = "<" if java.isLittleEndian() else ">"
    best = (int(java.getOptimalTileHeight()), int(java.getOptimalTileWidth()))
    height, width = tile_of((y, x), best, _COARSE.get(name, _TILE))
    return Layout(
        shape=(y, x, z, c, t),
        tile=(height, width, 1, samples, 1),
        dtype=np.dtype(order + _TYPES[number]),
        samples=samples,
        interleaved=samples == 1 or bool(java.isInterleaved()),
    )


def tile_of(size: tuple[int, int], best: tuple[int, int], least: int = _TILE) -> tuple[int, int]:
    """Return the height and width to ask for at once: whole multiples of what is stored.

    Parameters
    ----------
    size : (int, int)
        Height and width of the image.
    best : (int, int)
        What Bio-Formats calls the optimal tile.
    least : int
        Height and width to which smaller tiles are put together.

    Examples
    --------
    >>> tile_of((8192, 8192), (100, 64)), tile_of((8192, 8192), (1, 8192))
    ((200, 256), (32, 8192))
    >>> tile_of((300, 200), (1024, 1024)), tile_of((5000, 5000), (5000, 5000))
    ((300, 200), (5000, 5000))
    """
    height, width = (max(1, min(n, most)) for n, most in zip(best, size, strict=True))
    if width < size[1]:
        width *= max(1, least // width)
        height *= max(1, least // height)
    else:  # strips
        height *= max(1, _AREA // (height * width))
    return min(height, size[0]), min(width, size[1])


def settled(java: Any, layout: Layout) -> Layout:
    """Return a layout with the best tile for planes that are not stored in tiles.

    Bio-Formats does not say whether a plane is stored as one compressed piece, so that it decodes
    all of it to give a part. Reading one row tells: it takes some 0.1 ms where no more than the
    row is read, and as long as the plane where that is decoded first. What is decided here
    changes the time that reading takes, never the pixels.
    """
    (height, width, *_), (rows, columns, *_) = layout.shape, layout.tile
    plane = math.prod((height, width, layout.samples, layout.dtype.itemsize))
    if columns < width or height * width <= _AREA or (rows < height and plane > _LARGEST_PLANE):
        return layout
    if _decodes_all(java, layout, plane):
        return layout.by_rows(height)
    return layout.by_rows(max(rows if rows < height else 1, 4 * _AREA // width))


def _decodes_all(java: Any, layout: Layout, plane: int) -> bool:
    height, width = layout.shape[:2]
    longest = _ROW + plane / _COPIED

    def row() -> float:
        began = time.perf_counter()
        java.openBytes(0, 0, height // 2, width, 1)
        return time.perf_counter() - began

    first = row()
    if first < longest:
        return False
    # Java may have had to load the code for it, or the reader may have kept the plane
    return first > _LOADING or row() > longest


def spec_of(image: Any | None, layouts: tuple[Layout, ...]) -> ImageSpec:
    """Return the ImageSpec of a series, of which an ome.xml.model.Image tells."""
    full = layouts[0]
    pixels = None if image is None else image.getPixels()
    bare = ImageSpec(
        dtype=full.dtype.newbyteorder("="),
        levels=tuple(Level(layout.shape, layout.tile) for layout in layouts),
        name="" if image is None else str(image.getName() or ""),
        samples=full.samples,
    )
    if pixels is None:
        return bare
    return replace(
        bare,
        channels=_channels(pixels, full),
        physical_size=PhysicalSize(
            _size(pixels.getPhysicalSizeX()),
            _size(pixels.getPhysicalSizeY()),
            _size(pixels.getPhysicalSizeZ()),
        ),
        # 0 stands for no time between them, where there is one time point
        time_increment=_size(pixels.getTimeIncrement()),
        position=_position(pixels),
    )


def _channels(pixels: Any, layout: Layout) -> tuple[Channel, ...]:
    known = [
        _channel(pixels.getChannel(number), colored=layout.samples == 1)
        for number in range(int(pixels.sizeOfChannelList()))
    ]
    count, samples = layout.shape[3], layout.samples
    found = [known[n // samples] if n // samples < len(known) else Channel() for n in range(count)]
    return tuple(found) if any(channel != Channel() for channel in found) else ()


def _channel(channel: Any, *, colored: bool) -> Channel:
    color = channel.getColor() if colored else None
    return Channel(
        name=str(channel.getName() or "") or None,
        color=None
        if color is None
        else (
            int(color.getRed()),
            int(color.getGreen()),
            int(color.getBlue()),
            int(color.getAlpha()),
        ),
    )


def _position(pixels: Any) -> PhysicalSize:
    if int(pixels.sizeOfPlaneList()) < 1:
        return PhysicalSize()
    plane = pixels.getPlane(0)
    return PhysicalSize(
        _quantity(plane.getPositionX()),
        _quantity(plane.getPositionY()),
        _quantity(plane.getPositionZ()),
    )


def _size(found: Any) -> Quantity | None:
    size = _quantity(found)
    return size if size is not None and size[0] > 0 else None


def _quantity(found: Any) -> Quantity | None:
    if found is None:
        return None
    value = float(found.value().doubleValue())
    unit = str(found.unit().getSymbol())
    # stages say "reference frame" where they do not know their own unit
    return (value, unit) if np.isfinite(value) and unit not in _NO_UNITS else None


def plate_of(metadata: Metadata) -> Plate | None:
    """Return the first plate, None where there is none."""
    if not int(metadata.root.sizeOfPlateList()):
        return None
    store = metadata.store
    runs = range(int(store.getPlateAcquisitionCount(0)))
    run_of = {
        str(store.getPlateAcquisitionWellSampleRef(0, run, n)): run
        for run in runs
        for n in range(int(store.getWellSampleRefCount(0, run)))
    }
    images = {str(store.getImageID(n)): n for n in range(int(store.getImageCount()))}
    wells = [
        (
            int(store.getWellRow(0, well).getValue()),
            int(store.getWellColumn(0, well).getValue()),
            _fields(store, well, images, run_of),
        )
        for well in range(int(store.getWellCount(0)))
    ]
    rows = _names(store.getPlateRowNamingConvention(0), "letter")
    columns = _names(store.getPlateColumnNamingConvention(0), "number")
    named = tuple(Well(rows(row), columns(column), fields) for row, column, fields in wells)
    return Plate(
        name=str(store.getPlateName(0) or ""),
        rows=tuple(map(rows, range(_count(store.getPlateRows(0), (w[0] for w in wells))))),
        columns=tuple(map(columns, range(_count(store.getPlateColumns(0), (w[1] for w in wells))))),
        wells=named,
        acquisitions=tuple(
            Acquisition(run, str(store.getPlateAcquisitionName(0, run) or "")) for run in runs
        ),
    )


def _fields(
    store: Any, well: int, images: dict[str, int], run_of: dict[str, int]
) -> tuple[Field, ...]:
    fields: list[Field] = []
    for sample in range(int(store.getWellSampleCount(0, well))):
        image = images.get(str(store.getWellSampleImageRef(0, well, sample)))
        if image is not None:
            run = run_of.get(str(store.getWellSampleID(0, well, sample)))
            fields.append(Field(str(len(fields)), run, image))
    return tuple(fields)


def _count(said: Any, used: Iterable[int]) -> int:
    return max(0 if said is None else int(said.getValue()), max(used, default=-1) + 1)


def _names(convention: Any, usual: str) -> Callable[[int], str]:
    """Return what names the rows or columns of a plate: letters, or numbers from 1."""
    kind = usual if convention is None else str(convention.getValue())
    return _letters if kind == "letter" else lambda number: str(number + 1)


def _letters(number: int) -> str:
    """Return A to Z, then AA to ZZ.

    >>> _letters(0), _letters(25), _letters(26), _letters(31)
    ('A', 'Z', 'AA', 'AF')
    """
    rest, letter = divmod(number, 26)
    return (_letters(rest - 1) if rest else "") + chr(ord("A") + letter)
