"""What the examples record: a bright blob that changes with depth, as a light sheet sees it.

Each example takes a moment; with ``--full`` it has the size of a real camera.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

FULL = "--full" in sys.argv[1:]


def sizes(small: Any, full: Any) -> Any:
    """Return what is to be used today."""
    return full if FULL else small


def plane(z: int, shape: tuple[int, int, int], peak: int = 60_000) -> NDArray[np.uint16]:
    """Return plane `z` of a stack of `shape` (z, y, x), uint16."""
    depth, height, width = shape
    sigma = 1 - abs(z - depth / 2) / depth
    across = np.exp(-(np.linspace(-3, 3, width) ** 2) / (2 * sigma**2))
    down = np.exp(-(np.linspace(-3, 3, height) ** 2) / (2 * sigma**2))
    return (peak * np.outer(down, across)).astype(np.uint16)


def stack(shape: tuple[int, int, int], peak: int = 60_000) -> NDArray[np.uint16]:
    """Return a stack of `shape` (z, y, x), uint16."""
    whole = np.empty(shape, np.uint16)
    for z in range(shape[0]):
        whole[z] = plane(z, shape, peak)
    return whole
