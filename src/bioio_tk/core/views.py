"""Views: the stacks of a BigDataViewer dataset, each one time point of one view setup."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bioio_tk.core.region import Shape5
from bioio_tk.errors import BioIOWarning

Shape3: TypeAlias = tuple[int, int, int]
"""Sizes along Z, Y, X."""
Point3: TypeAlias = tuple[float, float, float]
"""Numbers along X, Y, Z."""

ATTRIBUTES: tuple[str, ...] = ("illumination", "channel", "tile", "angle")
"""What tells view setups apart, in the order in which their ids are counted."""


class ViewId(NamedTuple):
    """Which stack of a dataset: ids of the time point and of the view setup."""

    time: int
    setup: int


@dataclass(frozen=True, slots=True)
class ViewTransform:
    """One affine transform of a view.

    Attributes
    ----------
    matrix : tuple of 12 float
        3 rows of 4, row after row: linear part and translation along X, Y, Z.
    name : str
        "" where it has none.
    """

    matrix: tuple[float, ...]
    name: str = ""

    @classmethod
    def of(cls, matrix: Any, name: str = "") -> ViewTransform:
        """Return the transform of an array of 3 x 4 (or 12, or 4 x 4) finite numbers.

        Raises
        ------
        ValueError
            It is none.
        """
        numbers = np.asarray(matrix, np.float64)
        if numbers.shape == (4, 4) and (numbers[3] == (0, 0, 0, 1)).all():
            numbers = numbers[:3]
        if numbers.shape not in ((3, 4), (12,)) or not np.isfinite(numbers).all():
            raise ValueError(
                f"an affine transform has 3 rows of 4 finite numbers, this has {numbers.shape}"
                f" ({np.array2string(numbers.ravel()[:12], threshold=12)})"
            )
        return cls(tuple(numbers.ravel().tolist()), name)

    @property
    def array(self) -> NDArray[np.float64]:
        """The matrix, shape (3, 4)."""
        return np.array(self.matrix).reshape(3, 4)


def joined(transforms: Sequence[ViewTransform]) -> NDArray[np.float64]:
    """Return what transforms do together, shape (3, 4): the last one of them is applied first.

    >>> shift = ViewTransform((1, 0, 0, 10, 0, 1, 0, 0, 0, 0, 1, 0))
    >>> twice = ViewTransform((2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0))
    >>> joined([shift, twice])[0].tolist(), joined([twice, shift])[0].tolist()
    ([2.0, 0.0, 0.0, 10.0], [2.0, 0.0, 0.0, 20.0])
    """
    whole = np.eye(4)
    for transform in transforms:
        step = np.eye(4)
        step[:3] = transform.array
        whole = whole @ step
    return whole[:3]


@dataclass(frozen=True, slots=True)
class ViewAttribute:
    """One value of an attribute: a channel, a tile, an angle, an illumination.

    Attributes
    ----------
    id : int
        As the setups name it.
    name : str
        What people call it.
    properties : mapping of str to str
        What else is said of it: ``location`` of a tile, ``axis`` and ``degrees`` of an angle.
    """

    id: int
    name: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ViewSetup:
    """What the stacks of all time points have in common.

    Attributes
    ----------
    id : int
        Its number; not always counted from 0.
    name : str
        "" where it has none.
    size : Shape3 or None
        Of the full resolution along Z, Y, X; None where it is not said.
    voxel_size : Point3 or None
        Along X, Y, Z.
    voxel_unit : str
        As it is spelt there.
    attributes : mapping of str to int
        Ids of its channel, tile, …
    camera : mapping of str to str
        ``name``, ``exposureTime``, ``exposureUnits`` where they are said.
    """

    id: int
    name: str = ""
    size: Shape3 | None = None
    voxel_size: Point3 | None = None
    voxel_unit: str = ""
    attributes: Mapping[str, int] = field(default_factory=dict)
    camera: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mipmap:
    """One resolution of a setup.

    Attributes
    ----------
    factor : Shape3
        Pixels of the full resolution that are one pixel of it, along Z, Y, X.
    block : Shape3
        Size of its chunks along Z, Y, X.
    """

    factor: Shape3
    block: Shape3

    def shape(self, size: Shape3) -> Shape3:
        """Return how large a stack of `size` is at this resolution."""
        z, y, x = (-(-n // f) for n, f in zip(size, self.factor, strict=True))
        return (z, y, x)


@dataclass(frozen=True, slots=True)
class View:
    """One stack, and where a reader has it.

    Attributes
    ----------
    time, setup : int
        Its ids in the dataset.
    name : str
        Of its setup.
    attributes : mapping of str to int
        Ids of its channel, tile, …
    labels : mapping of str to str
        What people call these.
    series, c, t : int
        The series, channel and time point of a `BioReader`.
    shape : Shape5
        Of the full resolution along Y, X, Z, C, T; C and T are 1.
    missing : bool
        There are no pixels: it reads as 0.
    transforms : tuple of ViewTransform
        From its pixels to the world; the last one is applied first.
    """

    time: int
    setup: int
    name: str
    attributes: Mapping[str, int]
    labels: Mapping[str, str]
    series: int
    c: int
    t: int
    shape: Shape5
    missing: bool = False
    transforms: tuple[ViewTransform, ...] = ()

    @property
    def affine(self) -> NDArray[np.float64]:
        """From the pixel (x, y, z) to the world: all transforms together, shape (3, 4)."""
        return joined(self.transforms)


FOREIGN_COMPRESSIONS = ("lzf", "zstd", "blosc", "blosc2", "lz4", "bitshuffle", "bzip2")
"""Those of HDF5 that only some programs know; Fiji knows none of them."""


def tell_foreign(name: str | None, stacklevel: int = 2) -> None:
    """Warn of a compression that Fiji cannot read.

    Parameters
    ----------
    name : str or None
        Of the compression.
    stacklevel : int
        Of the warning, as if the caller gave it.
    """
    if name is not None and name.lower() in FOREIGN_COMPRESSIONS:
        warnings.warn(
            f"compression={name!r}: Fiji (BigDataViewer, BigStitcher) cannot read this, its HDF5 "
            "knows gzip only; choose 'gzip' for files that are opened there",
            BioIOWarning,
            stacklevel=stacklevel + 1,
        )


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the stacks of a setup are stored.

    Attributes
    ----------
    dtype : numpy.dtype
        Pixel type in native byte order.
    mipmaps : tuple of Mipmap
        The resolutions.
    compression : str or None
        Of the chunks: ``"gzip"``, ``"none"``; None is the format's default.
    level : int or None
        Of the compression.
    reduced_compression : str or None
        That of the smaller resolutions, where it is another one.
    """

    dtype: np.dtype[Any]
    mipmaps: tuple[Mipmap, ...]
    compression: str | None = "gzip"
    level: int | None = None
    reduced_compression: str | None = None
