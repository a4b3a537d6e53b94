"""SetupViews: what is said of a view, where npy2bdv says it of all time points of a setup."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bioio_tk.bdv.catalogue import Catalogue
from bioio_tk.bdv.description import lengths

if TYPE_CHECKING:
    from pathlib import Path

    from bioio_tk.bdv.description import Description
    from bioio_tk.bdv.setups import SetupGrid
    from bioio_tk.core.views import Point3, ViewId, ViewTransform


class SetupViews(Catalogue):
    """The last voxel size and exposure count for a setup, its last affine for times without one.

    npy2bdv gives the last affine to *all* time points, also to those with another one: a fault.
    The last transform of a view here is always its calibration.
    """

    def __init__(self, xml: Path, name: str, grid: SetupGrid) -> None:
        super().__init__(xml, name, grid)
        self._own: dict[ViewId, ViewTransform] = {}
        self._shared: dict[int, ViewTransform] = {}
        self._borrowing: set[ViewId] = set()
        self._reopened: set[ViewId] = set()
        self._latest: dict[int, Description] = {}

    def voxel(self, view: ViewId, size: Any, unit: str | None) -> tuple[Point3, str]:
        """Return the voxel size that was given last."""
        return lengths("voxel_size_xyz", size), str(unit)

    def claim(self, view: ViewId, said: Description) -> None:
        """Reserve a view; what is said of it counts for its setup from now on."""
        super().claim(view, said)
        if view not in self._reopened:
            self._latest[view.setup] = said

    def release(self, view: ViewId, said: Description) -> None:
        """Let go of a view that did not get into the file, if it is `said` that was claimed."""
        super().release(view, said)
        if view not in self.claimed:
            self._reopened.discard(view)

    def _describe(self, setup: int, said: Description) -> None:
        super()._describe(setup, replace(self._latest[setup], size=said.size))

    def place(self, view: ViewId, transform: ViewTransform) -> None:
        """Say where a view lies, and with it other time points of its setup that do not say so."""
        self._own[view] = self._shared[view.setup] = transform
        for other, said in list(self.known.items()):
            if other.setup != view.setup or other in self._own:
                continue
            *above, calibration = said.transforms
            if other in self._borrowing:
                above.pop()
            self._borrowing.add(other)
            self.move(other, (*above, transform, calibration))

    def enter(self, view: ViewId) -> None:
        """Take down that a view is in the file, at its place."""
        if view in self._reopened:
            self._reopened.discard(view)
            self.claimed[view] = self.known[view]
        else:
            transform = self._own.get(view) or self._shared.get(view.setup)
            self._borrowing.discard(view)
            if transform is not None:
                said = self.claimed[view]
                self.claimed[view] = replace(said, transforms=(transform, *said.transforms))
                if view not in self._own:
                    self._borrowing.add(view)
        super().enter(view)

    def reopen(self, view: ViewId) -> None:
        """Say that of a view that is going to be claimed again only the pixels change."""
        self._reopened.add(view)

    def set_times(self, number: int) -> None:
        """Say how many time points there are, at least."""
        self._document.set_times(number)
