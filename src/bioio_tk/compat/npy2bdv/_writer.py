"""BdvWriter as npy2bdv 1.0 and 1.1 have it."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk import bdv
from bioio_tk.bdv.description import affine
from bioio_tk.bdv.scheme import triples
from bioio_tk.compat.npy2bdv._errors import APPENDED, asserted, refuse
from bioio_tk.compat.npy2bdv._h5 import StoredViews
from bioio_tk.compat.npy2bdv._pyramid import padded_mean
from bioio_tk.compat.npy2bdv._views import SetupViews
from bioio_tk.core.views import ATTRIBUTES
from bioio_tk.errors import BioIOWarning, SpecError
from bioio_tk.meta.bdv import back_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.views import Shape3, ViewId

_COMPRESSIONS = (None, "gzip", "lzf")
_KNOWN = "npy2bdv has None, 'gzip' and 'lzf'; bioio_tk.bdv.BdvWriter has others"
_TYPES = ("uint16", "uint8", "float32")
_SLAB = 64 << 20
"""Bytes of pixels that are read at a time."""


class BdvWriter(bdv.BdvWriter):
    """Write stacks as views, in npy2bdv's way; see `bioio_tk.bdv.BdvWriter`.

    Parameters
    ----------
    filename : str or Path
        The ``.h5`` or the ``.xml``.
    subsamp, blockdim : sequence of (int, int, int)
        Resolutions and blocks along Z, Y, X.
    compression : {None, "gzip", "lzf"}
        Of the blocks. Fiji cannot read ``"lzf"``.
    nilluminations, nchannels, ntiles, nangles : int
        How many there are.
    overwrite : bool
        Replace a dataset that is there.
    dtype : {"uint16", "uint8", "float32"}
        Pixel type. Others are converted to it, with a warning where values change.
    subsamp_zyx : sequence of (int, int, int), optional
        What `subsamp` was called in the first versions.
    """

    __version__ = "1.1.0"
    _views: SetupViews

    def __init__(  # noqa: PLR0913, PLR0917 (a face: every option by its name)
        self,
        filename: Any,
        subsamp: Sequence[Sequence[int]] = ((1, 1, 1),),
        blockdim: Sequence[Sequence[int]] = ((4, 256, 256),),
        compression: str | None = None,
        nilluminations: int = 1,
        nchannels: int = 1,
        ntiles: int = 1,
        nangles: int = 1,
        overwrite: bool = False,
        dtype: Any = "uint16",
        *,
        subsamp_zyx: Sequence[Sequence[int]] | None = None,
    ) -> None:
        levels = subsamp if subsamp_zyx is None else subsamp_zyx
        refuse(
            compression not in _COMPRESSIONS,
            f"compression={compression!r}: {_KNOWN}",
        )
        refuse(
            dtype not in _TYPES,
            f"dtype={dtype!r}: npy2bdv has {', '.join(_TYPES)}; bioio_tk.bdv.BdvWriter has all "
            "integer and float types",
        )
        with asserted():
            super().__init__(
                filename,
                levels,
                blockdim[: len(levels)],
                compression,
                nilluminations,
                nchannels,
                ntiles,
                nangles,
                overwrite,
                dtype,
            )
        self._method = padded_mean
        self._reopening = threading.RLock()
        self._views = SetupViews(self.xml_path, self.path.name, self._grid)
        for attribute in ATTRIBUTES:
            self._views.relabel(attribute)
        self._h5 = StoredViews(self.path)
        stem = str(filename).removesuffix(Path(filename).suffix)
        self.filename_h5, self.filename_xml = f"{stem}.h5", f"{stem}.xml"
        self.nilluminations, self.nchannels = nilluminations, nchannels
        self.ntiles, self.nangles = ntiles, nangles
        self.compression = compression
        self.compressions_supported = _COMPRESSIONS
        self.dtype = np.dtype(dtype)
        self.dtypes_supported = _TYPES
        self.attribute_counts = dict(self._grid.counts)
        self.attribute_labels: dict[str, Sequence[str]] = {}
        self.virtual_stacks = False
        self.stack_shapes: dict[int, Shape3] = {}
        self.affine_matrices: dict[int, NDArray[Any]] = {}
        self.affine_names: dict[int, str] = {}
        self.calibrations: dict[int, Any] = {}
        self.voxel_size_xyz: dict[int, Any] = {}
        self.voxel_units: dict[int, Any] = {}
        self.exposure_time: dict[int, Any] = {}
        self.exposure_units: dict[int, Any] = {}
        self._set_levels(levels, blockdim)

    def _set_levels(
        self, subsamp: Sequence[Sequence[int]], blockdim: Sequence[Sequence[int]]
    ) -> None:
        blocks = list(blockdim)
        if len(blocks) < len(subsamp):
            blocks = [blocks[0]] * len(subsamp)
        self.subsamp = np.asarray(subsamp)
        self.chunks = tuple(tuple(int(n) for n in block) for block in blocks)
        self.nlevels = len(subsamp)

    def _check_target(self) -> None:
        """Let an XML without its pixels be no obstacle; it is kept as a backup."""
        if self.path.exists() or not self.xml_path.exists():
            super()._check_target()

    def _opened(self) -> Any:
        if self._file is None and not self.path.exists():
            back_up(self.xml_path)
        return super()._opened()

    @property
    def _file_object_h5(self) -> Any:
        """What h5py sees of the file, to read; None where no view was written yet."""
        with self._lock:
            return self._h5.now() if self._file is not None and self._state == "open" else None

    # ------------------------------------------------------------------ views

    def append_view(  # noqa: PLR0913, PLR0917 (a face, as npy2bdv has it)
        self,
        stack: Any,
        virtual_stack_dim: Sequence[int] | None = None,
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
        m_affine: Any = None,
        name_affine: str = "manually defined",
        voxel_size_xyz: Any = (1, 1, 1),
        voxel_units: Any = "px",
        calibration: Any = (1, 1, 1),
        exposure_time: float = 0,
        exposure_units: str = "s",
        *,
        progress: Any = None,
    ) -> None:
        """Write a stack as npy2bdv does, or make room for one that comes in parts.

        It is converted to the pixel type of the writer. See `bioio_tk.bdv.BdvWriter.append_view`.
        """
        places = self._from_end(illumination, channel, tile, angle)
        view = self._views.view(time, *places.values())
        with asserted():
            scaled = _scaling(calibration)
            pixels = None if stack is None else self._converted(stack, 3)
            if m_affine is not None:
                self._views.place(view, affine(m_affine, name_affine))
            self._drop_part(view)
            super().append_view(
                pixels,
                virtual_stack_dim if pixels is None else None,
                time,
                **places,
                m_affine=scaled,
                name_affine="calibration",
                voxel_size_xyz=voxel_size_xyz,
                voxel_units=voxel_units,
                calibration=None,
                exposure_time=exposure_time,
                exposure_units=exposure_units,
                progress=progress,
            )
        self.virtual_stacks |= stack is None
        z, y, x = pixels.shape if pixels is not None else virtual_stack_dim or ()
        self.stack_shapes[view.setup] = (int(z), int(y), int(x))
        if m_affine is not None:
            self.affine_matrices[view.setup] = np.array(m_affine)
            self.affine_names[view.setup] = name_affine
        self.calibrations[view.setup] = calibration
        self.voxel_size_xyz[view.setup] = voxel_size_xyz
        self.voxel_units[view.setup] = voxel_units
        self.exposure_time[view.setup] = exposure_time
        self.exposure_units[view.setup] = exposure_units

    def append_plane(
        self,
        plane: Any,
        z: int | None = None,
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
        *,
        plane_index: int | None = None,
    ) -> None:
        """Write one plane of a virtual stack; `plane_index` is what `z` was called once."""
        places = self._from_end(illumination, channel, tile, angle)
        with asserted():
            at = plane_index if z is None else z
            if at is None:
                raise SpecError("z: say which plane it is, counted from 0")
            setup = self._views.view(time, *places.values()).setup
            if at < 0 and setup in self.stack_shapes:
                at += self.stack_shapes[setup][0]
            pixels = self._converted(plane, 2)
            super().append_plane(pixels, at, time, **places)

    def append_substack(  # noqa: PLR0913, PLR0917
        self,
        substack: Any,
        z_start: int,
        y_start: int = 0,
        x_start: int = 0,
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
    ) -> None:
        """Write a block of a virtual stack, which may lie anywhere in it."""
        places = self._from_end(illumination, channel, tile, angle)
        with asserted():
            pixels = self._converted(substack, 3)
            super().append_substack(pixels, z_start, y_start, x_start, time, **places)

    def _from_end(self, *places: int) -> dict[str, Any]:
        """Count negative indices from the end, as NumPy does."""
        counts = self._grid.counts.items()
        return {
            kind: at + count if -count <= at < 0 else at
            for at, (kind, count) in zip(places, counts, strict=True)
        }

    def _converted(self, pixels: Any, axes: int) -> Any:
        """Return pixels of the type of the writer; warn the caller's caller where values change."""
        if getattr(pixels, "dtype", None) != self.dtype:
            pixels = np.asarray(pixels)
        refuse(
            len(pixels.shape) != axes,
            f"pixels of the shape {tuple(pixels.shape)}: give {axes} axes, "
            f"{'Z, Y, X' if axes == 3 else 'Y, X'}",
        )
        if pixels.dtype == self.dtype:
            return pixels
        with np.errstate(invalid="ignore", over="ignore"):
            converted = pixels.astype(self.dtype)
        safe = np.can_cast(pixels.dtype, self.dtype, casting="safe")
        if not safe and not np.array_equal(converted, pixels, equal_nan=True):
            warnings.warn(
                f"pixels of {pixels.dtype} change when they become {self.dtype}: they are out of "
                "its range, or have fractions. Scale them before, or open the writer with another "
                "dtype",
                BioIOWarning,
                stacklevel=3,
            )
        return converted

    # ------------------------------------------------------------------ stacks that come in parts

    def _drop_part(self, view: ViewId) -> None:
        """Forget what came of a virtual stack that is begun anew."""
        with self._lock:
            virtual = self._virtual.pop(view, None)
            if virtual is not None:
                self._views.release(view, virtual.said)
                if virtual.writer is not None:
                    virtual.writer.abort()

    def _part_of(self, view: ViewId, pixels: NDArray[Any]) -> Any:
        """Return where parts of a view go, also of one that was complete."""
        with self._reopening:  # not the writer's own lock: another thread stores the parts
            with self._lock:
                complete = view in self._views.known and view not in self._virtual
            if self.virtual_stacks and complete:
                self._reopen(view)
        return super()._part_of(view, pixels)

    def _reopen(self, view: ViewId) -> None:
        """Begin a view anew with the pixels it has; what is in the file stays until it is whole."""
        size = self._views.known[view].size
        stored = self._file_object_h5[f"t{view.time:05}/s{view.setup:02}/0/cells"]
        if stored.shape != size:
            raise SpecError(
                f"{self._views.spoken(view)} is complete, and its full resolution is not stored: "
                "nothing in it can be changed"
            )
        places: dict[str, Any] = self._grid.attributes(view.setup)
        self._views.reopen(view)
        super().append_view(
            None, size, view.time, **places, voxel_size_xyz=(1, 1, 1), calibration=None
        )
        # What overlaps is not counted: the view is not whole when all of this is there, but with
        # the next XML.
        super().append_substack(stored[:1, :1, :1].view(self.dtype), 0, 0, 0, view.time, **places)
        deep = max(1, _SLAB // (size[1] * size[2] * self.dtype.itemsize))
        for z in range(0, size[0], deep):
            slab = stored[z : z + deep].view(self.dtype)
            super().append_substack(slab, z, 0, 0, view.time, **places)

    def _settle(self) -> None:
        """Let readers see all virtual stacks as far as they came.

        Those whose full resolution is not stored could not be gone on with: they wait for the end.
        """
        if tuple(self.subsamp[0]) != (1, 1, 1):
            return
        with self._lock:
            for view, virtual in list(self._virtual.items()):
                self._finish_virtual(view, virtual)

    def _enter(self, view: ViewId) -> None:
        with self._lock:
            super()._enter(view)
            self._h5.changed()

    def create_pyramids(
        self,
        subsamp: Any = ((4, 8, 8),),
        blockdim: Any = ((8, 128, 128),),
        compression: str | None = None,
        *,
        progress: Any = None,
    ) -> None:
        """Make the smaller resolutions of all views that are there; later ones have them, too."""
        with asserted():
            wanted, blocks = triples("subsamp", subsamp) or (), triples("blockdim", blockdim) or ()
            refuse(
                self.nlevels != 1,
                f"the views have {self.nlevels} resolutions already: create_pyramids is for a "
                "writer opened with one",
            )
            refuse(compression not in _COMPRESSIONS, f"compression={compression!r}: {_KNOWN}")
            refuse(
                not wanted or (1, 1, 1) in wanted,
                "subsamp: at least one factor of each resolution must be larger than 1",
            )
            self._settle()
            if len(blocks) < len(wanted):
                blocks = blocks[:1] * len(wanted)
            super().create_pyramids(wanted, blocks, compression, progress=progress)
        self._set_levels((*self.subsamp.tolist(), *wanted), (*self.chunks, *blocks))
        self._subsamp, self._blockdim = triples("", self.subsamp), triples("", self.chunks)
        self._h5.changed()

    # ------------------------------------------------------------------ what is said of views

    def set_attribute_labels(self, attribute: str, labels: Sequence[str]) -> None:
        """Name the values of an attribute."""
        with asserted():
            super().set_attribute_labels(attribute, labels)
        self.attribute_labels[attribute] = labels

    def write_xml(
        self,
        camera_name: str = "default",
        microscope_name: str = "default",
        microscope_version: str = "0.0",
        user_name: str = "user",
        *,
        ntimes: int | None = None,
    ) -> None:
        """Say what the views were taken with, and complete virtual stacks as far as they came.

        `ntimes` is how many time points there are at least, as its first versions have it.
        """
        with asserted():
            self._settle()
            refuse(
                not self.ntimes if ntimes is None else ntimes < 1,
                "there is no time point yet: append a view before the XML is written",
            )
            if ntimes is not None:
                self._views.set_times(int(ntimes))
            super().write_xml(camera_name, microscope_name, microscope_version, user_name)

    def write_xml_file(self, ntimes: int = 1, *said: str, **names: str) -> None:
        """Do what `write_xml` does; its name before version 1.0.7."""
        self.write_xml(*said, **names, ntimes=ntimes)

    def append_affine(
        self,
        m_affine: Any,
        name_affine: str = APPENDED,
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
    ) -> None:
        """Move a view that is there: the new transform is applied after all those it has."""
        places = self._from_end(illumination, channel, tile, angle)
        with asserted():
            super().append_affine(m_affine, name_affine, time, **places)

    def read_affine(
        self,
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
        index: int = 0,
    ) -> NDArray[np.float64]:
        """Return one of the transforms of a view, shape (3, 4); 0 is applied last."""
        places = self._from_end(illumination, channel, tile, angle)
        with asserted():
            return super().read_affine(time, **places, index=index)

    @property
    def ntimes(self) -> int:
        """Time points up to the last one there is, or is begun."""
        with self._lock:
            views = (*self._views.known, *self._views.claimed)
            return max((view.time for view in views), default=-1) + 1

    @property
    def setup_id_present(self) -> list[list[bool]]:
        """Which setups there are, or are begun, at each time point."""
        with self._lock:
            views = {*self._views.known, *self._views.claimed}
        times = range(max(self.ntimes, 1))
        return [[(t, s) in views for s in range(self.nsetups)] for t in times]

    def close(self) -> None:
        """Complete virtual stacks as far as they came, and close the files."""
        try:
            super().close()
        finally:
            self._h5.close()


def _scaling(calibration: Any) -> NDArray[np.float64]:
    """Return the transform of a calibration; negative ones mirror the stack."""
    sizes = np.asarray(calibration, np.float64)
    refuse(sizes.shape != (3,), f"calibration={calibration!r}: give three numbers along X, Y, Z")
    return np.hstack([np.diag(sizes), np.zeros((3, 1))])
