"""Catalogue: which views a dataset has and is getting, and the XML that says so."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bioio_tk.bdv.description import PIXEL, Description, label, lengths
from bioio_tk.bdv.names import created
from bioio_tk.bdv.setups import place
from bioio_tk.core.views import ATTRIBUTES, ViewId, ViewSetup
from bioio_tk.errors import RegionError, SpecError
from bioio_tk.meta.bdv import HDF5, Loader, Partition, SpimXml, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bioio_tk.bdv.setups import SetupGrid
    from bioio_tk.core.views import Point3, ViewTransform


class Catalogue:
    """What is known of the views of a growing dataset. One thread at a time.

    Parameters
    ----------
    xml : Path
        The document.
    name : str
        Of the HDF5 file beside it.
    grid : SetupGrid
        Numbers and names of the setups.

    Attributes
    ----------
    known : dict of ViewId to Description
        The views in the file.
    claimed : dict of ViewId to Description
        Those on their way there.
    """

    def __init__(self, xml: Path, name: str, grid: SetupGrid) -> None:
        self.grid = grid
        self.known: dict[ViewId, Description] = {}
        self.claimed: dict[ViewId, Description] = {}
        self._of_setup: dict[int, dict[ViewId, None]] = {}  # those of both
        self._path = xml
        self._camera = "default"
        self._document = SpimXml(Loader(HDF5, name), created_by=created())

    def view(self, time: Any, *places: Any) -> ViewId:
        """Return the view at a time point and places along all attributes."""
        setup = self.grid.setup(dict(zip(ATTRIBUTES, places, strict=True)))
        return ViewId(place("time", time, None), setup)

    def spoken(self, view: ViewId) -> str:
        """Return what people call a view."""
        at = self.grid.attributes(view.setup)
        several = (f"{kind} {n}" for kind, n in at.items() if self.grid.counts[kind] > 1)
        return ", ".join((f"the view at time {view.time}", *several))

    def there(self, view: ViewId) -> Description:
        """Return what is known of a view in the file; RegionError where it is not there."""
        if view not in self.known:
            raise RegionError(f"{self.spoken(view)} is not in the file (yet)")
        return self.known[view]

    def _others(self, setup: int, view: ViewId) -> Description | None:
        """Return what is known of a setup from other time points."""
        for other in self._of_setup.get(setup, ()):
            if other != view:
                return self.claimed.get(other) or self.known[other]
        return None

    def voxel(self, view: ViewId, size: Any, unit: str | None) -> tuple[Point3, str]:
        """Return the voxel size of a setup, which is one for all its time points.

        Raises
        ------
        SpecError
            Something else was said before.
        """
        before = self._others(view.setup, view)
        found = None if size is None else lengths("voxel_size_xyz", size)
        if before is None:
            return found or (1.0, 1.0, 1.0), PIXEL if unit is None else label(unit, "voxel_units")
        if found not in (None, before.voxel_size) or unit not in (None, before.voxel_unit):
            raise SpecError(
                f"voxel_size_xyz={size!r}, voxel_units={unit!r}: other time points of this setup "
                f"have voxels of {before.voxel_size} {before.voxel_unit}, and all of them share it"
            )
        return before.voxel_size, before.voxel_unit

    def claim(self, view: ViewId, said: Description) -> None:
        """Reserve a view.

        Raises
        ------
        SpecError
            Somebody is at it, or it does not fit the other time points.
        """
        if view in self.claimed:
            raise SpecError(
                f"{self.spoken(view)} is being written already: one stack after the other"
            )
        before = self._others(view.setup, view)
        if before is not None and before.size != said.size:
            raise SpecError(
                f"a stack of {said.size} pixels (Z, Y, X) does not fit the other time points of "
                f"this setup, which have {before.size}: all of them share one size"
            )
        self.claimed[view] = said
        self._of_setup.setdefault(view.setup, {})[view] = None

    def release(self, view: ViewId, said: Description) -> None:
        """Let go of a view that did not get into the file, if it is `said` that was claimed."""
        if self.claimed.get(view) is not said:
            return
        del self.claimed[view]
        if view not in self.known:
            self._of_setup.get(view.setup, {}).pop(view, None)

    def enter(self, view: ViewId) -> None:
        """Take down that a view is in the file; `write` then says so."""
        said = self.claimed.pop(view)
        self.known[view] = said
        self._describe(view.setup, said)
        self._document.set_view(view, said.transforms)

    def move(self, view: ViewId, transforms: Sequence[ViewTransform]) -> None:
        """Say anew where a view lies; the last transform is applied first."""
        self.known[view] = replace(self.known[view], transforms=tuple(transforms))
        self._document.set_view(view, transforms)

    def relabel(self, attribute: str) -> None:
        """Take over what `grid` says of an attribute."""
        for number in range(self.grid.counts[attribute]):
            self._document.set_attribute(attribute, self.grid.value(attribute, number))

    def credit(self, camera: str, microscope: str, version: str, user: str) -> None:
        """Say what the views were taken with."""
        camera = label(camera, "camera_name")
        words = (label(word, "write_xml") for word in (microscope, version, user))
        self._document.created_by = created(*words)
        self._camera = camera
        for setup, said in {view.setup: said for view, said in self.known.items()}.items():
            self._describe(setup, said)

    def _describe(self, setup: int, said: Description) -> None:
        places = self.grid.attributes(setup)
        time, unit = said.exposure
        camera = {"name": self._camera, "exposureTime": time, "exposureUnits": unit}
        self._document.set_setup(
            ViewSetup(
                setup,
                f"setup {setup}",
                said.size,
                said.voxel_size,
                said.voxel_unit,
                places,
                camera,
            )
        )

    @property
    def missing(self) -> tuple[ViewId, ...]:
        """The views that are not there, of the setups and up to the last time point there are."""
        return tuple(sorted(self._document.missing)) if self.known else ()

    def write(self, partitions: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
        """Put the XML in place, in one moment; the files the pixels are in are `partitions`."""
        parts = tuple(Partition(name, tuple(t), tuple(s)) for name, t, s in partitions)
        if parts != self._document.loader.partitions:
            self._document.loader = replace(self._document.loader, partitions=parts)
        write_atomic(self._path, self._document.render())
