"""How the stacks of a setup are stored, from what the user says of resolutions and blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.core.mipmaps import propose
from bioio_tk.core.views import FOREIGN_COMPRESSIONS, Mipmap, tell_foreign
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bioio_tk.core.views import Point3, Shape3

_READ = {"gzip": "gzip", "deflate": "gzip", "zlib": "gzip", "none": "none"}


def check_compression(name: Any, level: Any) -> str:
    """Return the name of a compression as files are written with it.

    Raises
    ------
    SpecError
        There is none such, or it has no such level.
    """
    kind = "none" if name is None else str(name).lower()
    if kind in FOREIGN_COMPRESSIONS:
        tell_foreign(kind, stacklevel=3)
        return kind
    if kind not in _READ:
        known = ", ".join(("gzip", "none", *FOREIGN_COMPRESSIONS))
        raise SpecError(f"compression={name!r}: choose one of {known}")
    if level is None:
        return _READ[kind]
    whole = isinstance(level, (int, np.integer)) and not isinstance(level, bool)
    if _READ[kind] == "none" or not whole or not 0 <= level <= 9:
        raise SpecError(f"compression_level={level!r}: gzip has levels 0 to 9, others have none")
    return _READ[kind]


def mipmaps(
    size: Shape3,
    voxel: Point3 | None,
    itemsize: int,
    subsamp: Sequence[Shape3] | None,
    blockdim: Sequence[Shape3] | None,
) -> tuple[Mipmap, ...]:
    """Return the resolutions of a stack.

    Parameters
    ----------
    size : Shape3
        Of the full resolution along Z, Y, X.
    voxel : Point3 or None
        Size of a voxel along X, Y, Z.
    itemsize : int
        Bytes of a pixel.
    subsamp : sequence of Shape3, optional
        Factors along Z, Y, X; by default those that BigDataViewer proposes.
    blockdim : sequence of Shape3, optional
        Blocks of each, or the first for all; by default such that they suit the voxels.
    """
    proposed = propose(size, voxel, itemsize)
    factors = [m.factor for m in proposed] if subsamp is None else list(subsamp)
    if blockdim is None:
        if subsamp is None:
            return proposed
        return tuple(Mipmap(f, _block(size, voxel, itemsize, f)) for f in factors)
    blocks = list(blockdim)
    if len(blocks) < len(factors):
        blocks = [blocks[0]] * len(factors)
    return tuple(Mipmap(f, b) for f, b in zip(factors, blocks, strict=False))


def _block(size: Shape3, voxel: Point3 | None, itemsize: int, factor: Shape3) -> Shape3:
    """Return a block for one level: the first one of a stack that has its size."""
    x, y, z = voxel or (1.0, 1.0, 1.0)
    scaled = (x * factor[2], y * factor[1], z * factor[0])
    return propose(Mipmap(factor, factor).shape(size), scaled, itemsize)[0].block


def triples(name: str, value: Any) -> tuple[Shape3, ...] | None:
    """Return what a user gives as factors or blocks: one or several (Z, Y, X).

    Raises
    ------
    SpecError
        They are none.
    """
    if value is None:
        return None
    try:
        rows = [value] if len(value) == 3 and not any(map(np.ndim, value)) else value
        found = tuple(tuple(_whole(n) for n in row) for row in rows)
    except (TypeError, ValueError):
        found = ()
    if not found or any(len(row) != 3 for row in found):
        raise SpecError(
            f"{name}={value!r:.80}: give whole numbers from 1 along Z, Y, X for each resolution, "
            "such as ((1, 1, 1), (2, 4, 4))"
        )
    return found  # type: ignore[return-value]


def resolutions(subsamp: Any) -> tuple[Shape3, ...] | None:
    """Return the factors of all levels of a new dataset, the full resolution among them.

    Raises
    ------
    SpecError
        They are no factors, or one alone, with which the full resolution would be lost unnoticed.
    """
    found = triples("subsamp", subsamp)
    if found is not None and np.ndim(subsamp) == 1 and found[0] != (1, 1, 1):
        raise SpecError(
            f"subsamp={subsamp!r}: the full resolution would not be stored; give "
            f"((1, 1, 1), {found[0]}) to keep it, or ({found[0]},) where that is what you want"
        )
    return found


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(value)
    return int(value)
