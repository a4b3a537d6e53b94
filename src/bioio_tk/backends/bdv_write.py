"""BdvSink: images as the views of a BigDataViewer dataset, an HDF5 file and the XML beside it."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bioio_tk.backends._bdv_file import BdvFile
from bioio_tk.backends._bdv_layout import compression_at
from bioio_tk.backends._hdf5_chunks import library
from bioio_tk.backends.base import Caps
from bioio_tk.core.mipmaps import propose
from bioio_tk.core.spec import Address, Level, fit_tile
from bioio_tk.core.stacks import Layout, Stack, layout_of, voxel_of
from bioio_tk.core.views import Mipmap, Scheme, tell_foreign
from bioio_tk.errors import ClosedError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bioio_tk.backends._bdv_sink import ViewSink
    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import ImageSpec

_OPTIONS = ("chunks", "ome", "times_per_file", "setups_per_file", "views")
_LARGEST_CHUNK = 2**32 - 1
_SUFFIXES = (".xml", ".h5")


class BdvSink:
    """New files in a folder: ``NAME.xml`` and ``NAME.h5``, of several parts ``NAME-00-00.h5`` ….

    Each channel of an image is a view setup, each time point of it a view; a tile is a block.
    `extra` may hold ``chunks``, which are the tiles, ``times_per_file`` and ``setups_per_file``,
    and ``views``: a `Layout`.
    """

    caps: ClassVar[Caps] = Caps(parallel_store=True, tile_multiple=1)

    def __init__(self, path: Path, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        self.images = images
        self._options = options
        self._layout = _layout(images, options)
        name = Path(options.name or "image.xml")
        self._xml, self._home = path / name.name, path / name.with_suffix(".h5").name
        self._mipmaps = [mipmaps_of(spec) for spec in images]
        self._lock = threading.Lock()
        self._views: dict[Stack, ViewSink] = {}
        self._closed = False
        self._file = BdvFile.create(
            self._home,
            times_per_file=options.extra.get("times_per_file", 0),
            setups_per_file=options.extra.get("setups_per_file", 0),
        )
        try:
            for (number, _), setup in self._layout.setups.items():
                self._file.add_setup(setup.id, self._scheme(number))
        except BaseException:
            self._file.close()
            raise

    @property
    def factors(self) -> tuple[tuple[int, int, int], ...]:
        """Of each smaller level of the first image, along Y, X, Z; see `MipmapSink`."""
        return self.factors_of(0)

    def factors_of(self, image: int) -> tuple[tuple[int, int, int], ...]:
        """Return the same for one of several images."""
        factors = (mipmap.factor for mipmap in self._mipmaps[image][1:])
        return tuple((y, x, z) for z, y, x in factors)

    def _scheme(self, image: int) -> Scheme:
        dtype, mipmaps = self.images[image].dtype, self._mipmaps[image]
        return Scheme(dtype, mipmaps, self._options.compression, self._options.level)

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        library()
        for name in options.extra:
            if name not in _OPTIONS:
                raise SpecError(
                    f"BigDataViewer has no option {name!r}; there are {', '.join(_OPTIONS)}"
                )
        for name in ("times_per_file", "setups_per_file"):
            count = options.extra.get(name, 0)
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise SpecError(f"{name}={count!r}: give a whole number, 0 for one file")
        if options.predictor is False:
            raise SpecError(
                "predictor=False: BigDataViewer is always written with bytes shuffled, which makes "
                "files smaller; leave it out"
            )
        views: Layout | None = options.extra.get("views")
        stacks = {(n, c) for n, spec in enumerate(images) for c in range(spec.shape[3])}
        if views is not None and set(views.setups) != stacks:
            raise SpecError(
                f"views= tells of {len(views.setups)} channels, there are {len(stacks)}"
            )
        for spec in images:
            _check_image(spec)
            scheme = Scheme(spec.dtype, mipmaps_of(spec), options.compression, options.level)
            compression_at(scheme, 0)  # raises for one that there is not
        tell_foreign(options.compression)

    @classmethod
    def arrange(cls, spec: ImageSpec, *, by_rule: bool, tile_given: bool) -> ImageSpec:
        """Return an image with the resolutions and blocks that suit BigDataViewer.

        Parameters
        ----------
        spec : ImageSpec
            As BioWriter would have it.
        by_rule : bool
            Take the resolutions that BigDataViewer proposes, not those of `spec`.
        tile_given : bool
            The size of the blocks was asked for: those of `spec` stay.
        """
        y, x, z, c, t = spec.shape
        if min(spec.shape) < 1:
            return spec
        voxel, _ = voxel_of(spec.physical_size)
        proposed = propose((z, y, x), voxel, spec.dtype.itemsize)
        shapes: list[Shape5] = [level.shape for level in spec.levels]
        if by_rule:
            small = (mipmap.shape((z, y, x)) for mipmap in proposed)
            shapes = [(b, a, depth, c, t) for depth, b, a in small]
        blocks = [proposed[min(n, len(proposed) - 1)].block for n in range(len(shapes))]
        tiles: list[Shape5] = [(b, a, depth, 1, 1) for depth, b, a in blocks]
        if tile_given:
            tiles = [spec.levels[0].tile] * len(shapes)
        pairs = zip(shapes, tiles, strict=True)
        return replace(spec, levels=tuple(Level(s, fit_tile(s, tile, 1)) for s, tile in pairs))

    check_idle = staticmethod(BdvFile.check_idle)

    @staticmethod
    def foreign(folder: Path, *, begun: bool = False) -> Path | None:
        """Return something in a folder that is none of what we write."""
        entries = sorted(folder.iterdir())
        return next((e for e in entries if not e.is_file() or e.suffix not in _SUFFIXES), None)

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Any:
        view = self._view(at)
        return None if view is None else view.encode_tile(_inside(at), tile)

    def store_tile(self, at: Address, encoded: Any) -> None:
        view = self._view(at)
        if view is not None:
            view.store_tile(_inside(at), encoded)

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        view = self._views.get(_stack(at))
        return None if view is None else view.load_tile(_inside(at))

    def _view(self, at: Address) -> ViewSink | None:
        """Return the view a tile is of, begun if need be; None for one that is missing."""
        stack = _stack(at)
        found = self._views.get(stack)
        return found if found is not None else self._begin(stack)

    def _begin(self, stack: Stack) -> ViewSink | None:
        if stack in self._layout.missing:
            return None
        with self._lock:
            if self._closed:
                raise ClosedError("the BigDataViewer file is closed: it takes no more tiles")
            if stack not in self._views:
                y, x, z, *_ = self.images[stack.image].shape
                self._views[stack] = self._file.begin_view(self._layout.view(stack), (z, y, x))
            return self._views[stack]

    def grow(self, image: int, t: int) -> None:
        raise UnsupportedError(f"the number of time points is fixed at the start, not {t} later")

    def finish(self) -> None:
        there = [stack for stack in self._stacks() if stack not in self._layout.missing]
        for stack in there:
            view = self._begin(stack)
            if view is not None:
                view.finish()
        if self._options.extra.get("ome", True):
            self._describe()
        self._file.flush()
        partitions = self._file.partitions
        self._file.close()
        self._write_xml(there, partitions)

    def _stacks(self) -> Iterator[Stack]:
        """Yield all stacks of all images, missing ones too, time point by time point."""
        for t in range(len(self._layout.times)):
            for image, c in self._layout.setups:
                if t < self.images[image].shape[4]:
                    yield Stack(image, c, t)

    def _describe(self) -> None:
        """Put the OME-XML into the HDF5 file, where nothing but us looks for it."""
        from bioio_tk.meta import ome

        self._file.describe(ome.document(self.images, metadata=self._options.metadata).encode())

    def _write_xml(self, there: list[Stack], partitions: Any) -> None:
        from bioio_tk.meta.bdv import Loader, Partition, SpimXml, write_atomic

        layout = self._layout
        files = tuple(Partition(*partition) for partition in partitions)
        loader = Loader("bdv.hdf5", self._home.name, "relative", partitions=files)
        xml = SpimXml(loader, created_by=layout.created_by)
        for kind, values in layout.attributes.items():
            for value in values:
                xml.set_attribute(kind, value)
        for setup in layout.setups.values():
            xml.set_setup(setup)
        for stack in there:
            xml.set_view(layout.view(stack), layout.transforms[stack])
        xml.set_times(layout.times)
        write_atomic(self._xml, xml.render())

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for view in self._views.values():
            view.close()
        self._file.close()


def mipmaps_of(spec: ImageSpec) -> tuple[Mipmap, ...]:
    """Return the resolutions of an image as BigDataViewer says it."""
    found = []
    for level in spec.levels:
        y, x, z = (_factor(a, b) for a, b in zip(spec.shape[:3], level.shape[:3], strict=True))
        found.append(Mipmap((z, y, x), (level.tile[2], level.tile[0], level.tile[1])))
    return tuple(found)


def _factor(full: int, small: int) -> int:
    """Return how many pixels are one, a power of two where that is possible.

    >>> _factor(20, 3), _factor(5, 1), _factor(9, 3), _factor(7, 7)
    (8, 8, 4, 1)
    """
    powers = (1 << n for n in range(full.bit_length() + 1))
    plain = -(-full // small)
    return next((f for f in powers if -(-full // f) == small), plain)


def _layout(images: tuple[ImageSpec, ...], options: StoreOptions) -> Layout:
    given: Layout | None = options.extra.get("views")
    return layout_of(images) if given is None else given


def _stack(at: Address) -> Stack:
    return Stack(at.image, at.key[3], at.key[4])


def _inside(at: Address) -> Address:
    """Return where a tile is in its view."""
    return Address(0, at.level, (*at.key[:3], 0, 0))


def _check_image(spec: ImageSpec) -> None:
    """Raise for an image that BigDataViewer cannot hold."""
    if min(spec.shape) < 1:
        raise SpecError(f"the shape {spec.shape} (Y, X, Z, C, T) has an axis of length 0")
    if spec.samples > 1:
        raise UnsupportedError(
            f"BigDataViewer has no colour images, and this one has {spec.samples} samples a pixel: "
            "give samples_per_pixel=1, so that each is a channel, or write OME-TIFF or OME-Zarr"
        )
    if spec.dtype.kind not in "iuf" or spec.dtype.name == "float16":
        raise UnsupportedError(
            f"BigDataViewer has no pixels of type {spec.dtype}: give dtype='uint8', 'float32' or "
            "another integer or float type, and cast='exact', 'clip' or 'scale'"
        )
    for level in spec.levels:
        if level.tile[3:] != (1, 1):
            raise SpecError(
                f"blocks of {level.tile[3]} channels and {level.tile[4]} time points: give chunks= "
                "along Y, X and Z, a block of BigDataViewer is of one channel and time point"
            )
        if math.prod(level.tile) * spec.dtype.itemsize > _LARGEST_CHUNK:
            raise SpecError("a block of HDF5 is smaller than 4 GB: make tiles or chunks smaller")
