"""What the XML of a BigDataViewer dataset says, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bioio_tk.core.views import ViewAttribute, ViewId, ViewSetup, ViewTransform

HDF5 = "bdv.hdf5"
N5 = "bdv.n5"
ZARR = "bdv.multimg.zarr"


@dataclass(frozen=True, slots=True)
class Partition:
    """One of the files that an HDF5 dataset is spread over.

    Attributes
    ----------
    path : str
        As it is written: relative to the XML where the dataset is.
    times, setups : tuple of int
        Ids of what is in it.
    """

    path: str
    times: tuple[int, ...]
    setups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ZarrImage:
    """Where in a Zarr store a view is.

    Attributes
    ----------
    path : str
        Of the OME-Zarr image inside the store.
    indices : tuple of int
        Positions on the axes above X, Y, Z, from the fastest one: C, then T.
    """

    path: str
    indices: tuple[int, ...] = ()

    @property
    def c(self) -> int:
        """Position on the first axis above Z, which is C where there are both."""
        return self.indices[0] if self.indices else 0

    @property
    def t(self) -> int:
        """Position on the second axis above Z."""
        return self.indices[1] if len(self.indices) > 1 else 0


@dataclass(frozen=True, slots=True)
class Loader:
    """Where the pixels are.

    Attributes
    ----------
    format : str
        ``"bdv.hdf5"``, ``"bdv.multimg.zarr"``, ``"bdv.n5"``; others are kept as they are.
    path : str
        File or folder, as it is written.
    kind : str
        ``"relative"`` (to the XML) or ``"absolute"``.
    partitions : tuple of Partition
        Of an HDF5 dataset.
    images : mapping of ViewId to ZarrImage
        Of a Zarr dataset.
    version : str
        Of the format; "" where it has none.
    """

    format: str
    path: str
    kind: str = "relative"
    partitions: tuple[Partition, ...] = ()
    images: Mapping[ViewId, ZarrImage] = field(default_factory=dict)
    version: str = ""


@dataclass(slots=True)
class SpimData:
    """What the XML says.

    Attributes
    ----------
    loader : Loader
        Where the pixels are.
    base_path : str
        What paths are relative to, itself relative to the XML.
    setups : dict of int to ViewSetup
        In the order of the file.
    attributes : dict of str to dict of int to ViewAttribute
        By their kind ("channel") and id.
    times : tuple of int
        Ids of the time points, in order.
    missing : frozenset of ViewId
        Views of these that are said to have no pixels.
    transforms : dict of ViewId to tuple of ViewTransform
        Of each registered view; the last one is applied first.
    created_by : dict of str to str
        ``library``, ``library_version``, ``microscope``, ``microscope_version``, ``user``, where
        they are said.
    notes : tuple of str
        What was wrong and how it was understood all the same.
    """

    loader: Loader
    base_path: str = "."
    setups: dict[int, ViewSetup] = field(default_factory=dict)
    attributes: dict[str, dict[int, ViewAttribute]] = field(default_factory=dict)
    times: tuple[int, ...] = ()
    missing: frozenset[ViewId] = frozenset()
    transforms: dict[ViewId, tuple[ViewTransform, ...]] = field(default_factory=dict)
    created_by: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
