"""Which resolutions a stack gets for BigDataViewer, and how large their blocks are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bioio_tk.core.views import Mipmap
from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bioio_tk.core.views import Point3, Shape3

SMALL = 256
"""A stack without an axis longer than this needs no smaller resolution."""
BLOCK_BYTES = 2**19
"""Pixels of one block: fewer bytes cost time for each block, more are read in vain."""
BLOCK_DEPTH = 16
"""Planes of one block, at most: as they come from a camera they wait until it is full."""
_BDV_VOXELS = 4096
# Blocks are not made flatter than this only to leave less of the last ones empty.
_LEAST_DEPTH = 4
_STEP = 8
"""Sides of blocks are powers of two, or multiples of this where the stack is short."""


def propose(
    size: Shape3, voxel: Point3 | None, itemsize: int, count: int | None = None
) -> tuple[Mipmap, ...]:
    """Return the resolutions BigDataViewer proposes, in blocks as large as disks like them.

    The sides of a block are about equal in the world, and it holds 512 KiB, or less: it has 16
    planes at most, is no longer than the stack needs, and so much shorter that the last ones along
    an axis are not mostly empty.

    Parameters
    ----------
    size : Shape3
        Of the full resolution along Z, Y, X.
    voxel : Point3 or None
        Size of a voxel along X, Y, Z; None is a cube.
    itemsize : int
        Bytes of a pixel.
    count : int, optional
        So many resolutions, or as many as can be made, by the same rule.

    Raises
    ------
    SpecError
        A size is not positive.

    Examples
    --------
    >>> [m.factor for m in propose((50, 2048, 2048), (0.5, 0.5, 2.0), 2)]
    [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]
    >>> propose((64, 2048, 2048), None, 2)[0].block
    (16, 128, 128)
    """
    levels = []
    for factor, scale in _levels(size, voxel, count):
        shape = [-(-n // f) for n, f in zip(reversed(size), factor, strict=True)]
        levels.append(_mipmap(factor, _block(shape, scale, BLOCK_BYTES // itemsize)))
    return tuple(levels)


def propose_bdv(size: Shape3, voxel: Point3 | None) -> tuple[Mipmap, ...]:
    """Return the resolutions and blocks as Fiji's export has them: 4096 voxels a block.

    Like `propose`.

    Examples
    --------
    >>> [m.block for m in propose_bdv((27, 226, 186), (1.0, 1.0, 10.0))]
    [(4, 32, 32)]
    """
    levels = []
    for factor, scale in _levels(size, voxel):
        shape = [max(1, n // f) for n, f in zip(reversed(size), factor, strict=True)]
        levels.append(_mipmap(factor, _bdv_block(shape, scale)))
    return tuple(levels)


def _mipmap(factor: Sequence[int], block: Sequence[int]) -> Mipmap:
    return Mipmap((factor[2], factor[1], factor[0]), (block[2], block[1], block[0]))


def _levels(
    size: Shape3, voxel: Point3 | None, count: int | None = None
) -> list[tuple[list[int], list[float]]]:
    """Return factors and relative voxel sizes of each level along X, Y, Z: BDV's rule.

    Source: ``bdv.export.ProposeMipmaps`` of bigdataviewer-core.
    """
    scale = [float(length) for length in voxel or (1.0, 1.0, 1.0)]
    _check(size, scale)
    scale = [length / min(scale) for length in scale]
    factor = [1, 1, 1]
    levels = []
    while True:
        levels.append((list(factor), list(scale)))
        shape = [max(1, n // f) for n, f in zip(reversed(size), factor, strict=True)]
        enough = max(shape) <= SMALL if count is None else len(levels) >= count
        if enough or max(shape) == 1:
            return levels
        halved = [d for d in range(3) if scale[d] <= 2 and shape[d] > 1] or [0, 1, 2]
        for d in halved:
            factor[d] *= 2
            scale[d] *= 2
        scale = [length / min(scale) for length in scale]


def _check(size: Sequence[int], voxel: Sequence[float]) -> None:
    if len(size) != 3 or not all(n >= 1 for n in size):
        raise SpecError(f"a stack has 3 positive sizes along Z, Y, X; this has {tuple(size)}")
    if len(voxel) != 3 or not all(0 < length < math.inf for length in voxel):
        raise SpecError(f"a voxel has 3 positive sizes along X, Y, Z; this has {tuple(voxel)}")


def _block(shape: Sequence[int], scale: Sequence[float], voxels: int) -> list[int]:
    """Return a block along X, Y, Z: the axis that is shortest in the world grows first."""
    limits = [1 << (n - 1).bit_length() for n in shape]
    limits[2] = min(_depth(shape[2]), BLOCK_DEPTH)
    block = [1, 1, 1]
    while math.prod(block) * 2 <= voxels:
        short = [d for d in range(3) if block[d] < limits[d]]
        if not short:
            break
        block[min(short, key=lambda d: block[d] * scale[d])] *= 2
    return [*(_evened(n, side) for n, side in zip(shape[:2], block[:2], strict=True)), block[2]]


def _evened(length: int, side: int) -> int:
    """Return a side no longer than this one of which as many do, with less of the last one empty.

    >>> _evened(300, 128), _evened(2048, 128)
    (104, 128)
    """
    count = -(-length // side)
    return min(side, -(-length // (count * _STEP)) * _STEP)


def _depth(planes: int) -> int:
    """Return how deep a block may be: a power of two that leaves little of the last ones empty."""
    side: int = 1 << (planes - 1).bit_length()
    sides = [side]
    while side > _LEAST_DEPTH:
        side //= 2
        sides.append(side)
    return next(
        (n for n in sides if -planes % n * 8 <= planes), min(sides, key=lambda n: -planes % n)
    )


def _bdv_block(shape: Sequence[int], scale: Sequence[float]) -> list[int]:
    """Return BDV's block along X, Y, Z; source as for `_levels`."""
    side = (_BDV_VOXELS * math.prod(scale)) ** (1 / 3)
    wanted = [math.log2(side / length) for length in scale]
    most = [(n - 1).bit_length() for n in shape]
    bits = [min(max(0, int(want)), fit) for want, fit in zip(wanted, most, strict=True)]
    while sum(bits) < _BDV_VOXELS.bit_length() - 1:
        # X before Y before Z where they are about the same; X where all of it is in one block.
        short = [d for d in range(3) if bits[d] < most[d]] or [0]
        bits[max(short, key=lambda d: wanted[d] - bits[d] - 0.01 * d)] += 1
    return [1 << bit for bit in bits]
