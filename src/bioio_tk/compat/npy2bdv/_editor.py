"""BdvEditor as npy2bdv 1.0 and 1.1 have it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk import bdv
from bioio_tk.compat.npy2bdv._errors import APPENDED, NoFileError, asserted, looked_up
from bioio_tk.compat.npy2bdv._h5 import StoredViews
from bioio_tk.core.views import ATTRIBUTES
from bioio_tk.errors import RegionError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class BdvEditor(bdv.BdvEditor):
    """Read and edit a dataset in npy2bdv's way; see `bioio_tk.bdv.BdvEditor`.

    Parameters
    ----------
    filename : str or Path
        The ``.xml`` or the ``.h5``. Several XMLs may share one HDF5 file.
    mode : {"r+", "r"}
        Whether anything may be changed.
    """

    __version__ = "1.1.0"

    def __init__(self, filename: Any, mode: str = "r+") -> None:
        try:
            super().__init__(filename, mode)
        except FileNotFoundError as exc:
            raise NoFileError(str(exc)) from exc
        self.filename_xml = str(filename).removesuffix(Path(filename).suffix) + ".xml"
        self.filename_h5 = str(
            Path(filename).parent / os.path.relpath(self.path, self.xml_path.parent)
        )
        self._h5 = StoredViews(self.path)

    @property
    def nsetups(self) -> int:
        """View setups there may be, also those without any view."""
        return math.prod(self.get_attribute_count()[1:])

    @property
    def _file_object_h5(self) -> Any:
        """What h5py sees of the file, to read."""
        return None if self._closed else self._h5.now()

    def _places(self, *places: int) -> dict[str, Any]:
        """Return the ids that indices stand for, which count what there is, also from the end."""
        found = {}
        for kind, at in zip(ATTRIBUTES, places, strict=True):
            known = self._values(kind)
            if not -len(known) <= at < len(known):
                raise RegionError(f"{kind}={at}: there are {len(known)}, counted from 0")
            found[kind] = known[at]
        return found

    def read_view(  # type: ignore[override]
        self,
        time: int = 0,
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
        ilevel: int = 0,
        z: int | None = None,
    ) -> NDArray[Any]:
        """Return the pixels of a view (z, y, x), or one plane of it (y, x).

        Raises
        ------
        KeyError
            The view, or the resolution, is not there.
        """
        if z is not None and z < 0:
            raise SpecError(f"z={z}: planes are counted from 0")
        with looked_up():
            places = self._places(illumination, channel, tile, angle)
            return super().read_view(time, **places, ilevel=ilevel, z=z)

    def get_view_property(
        self,
        key: str,
        illumination: Any = 0,
        channel: Any = 0,
        tile: Any = 0,
        angle: Any = 0,
    ) -> tuple[float, ...]:
        """Return ``"voxel_size"`` or ``"view_shape"`` of a setup, along X, Y, Z."""
        with asserted():
            places = self._places(illumination, channel, tile, angle)
            return super().get_view_property(key, **places)

    def append_affine(
        self,
        m_affine: Any,
        name_affine: str = APPENDED,
        time: Any = 0,
        illumination: Any = 0,
        channel: Any = 0,
        tile: Any = 0,
        angle: Any = 0,
        index: int = 0,
    ) -> None:
        """Give a view one more transform, applied after those it has, in the XML at once."""
        with asserted():
            places = self._places(illumination, channel, tile, angle)
            super().append_affine(m_affine, name_affine, time, **places, index=index)

    def read_affine(
        self,
        time: Any = 0,
        illumination: Any = 0,
        channel: Any = 0,
        tile: Any = 0,
        angle: Any = 0,
        index: int = 0,
    ) -> NDArray[np.float64]:
        """Return one of the transforms of a view, shape (3, 4); 0 is applied last."""
        with asserted():
            places = self._places(illumination, channel, tile, angle)
            return super().read_affine(time, **places, index=index)

    def crop_view(  # type: ignore[override]
        self,
        bbox_xyz: Any = ((1, -1), (1, -1), None),
        illumination: int = 0,
        channel: int = 0,
        tile: int = 0,
        angle: int = 0,
        ilevel: int = 0,
        *,
        progress: Any = None,
    ) -> None:
        """Cut the stacks of a setup, at all time points; all resolutions follow."""
        if ilevel:
            raise SpecError(
                f"ilevel={ilevel}: crop the full resolution, all others follow; a view whose "
                "resolutions show different parts of it is of no use"
            )
        places = self._places(illumination, channel, tile, angle)
        super().crop_view(bbox_xyz, **places, progress=progress)
        self._h5.changed()

    def close(self) -> None:
        """Release the files; `finalize` does the same."""
        super().close()
        self._h5.close()
