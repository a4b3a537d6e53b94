"""Legend: channel names and a scale bar in a strip below a picture, with a font of its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Color: TypeAlias = tuple[int, int, int]

# Glyphs 5 x 8, a byte for each column with the top row in the lowest bit: ASCII 32 to 126, and µ.
_FONT = bytes.fromhex(
    "000000000000005F00000007000700147F147F14242A7F2A12231308646236495620500005030000"
    "001C2241000041221C0014083E081408083E08080050300000080808080800606000002010080402"
    "3E5149453E00427F400042615149462141454B311814127F1027454545393C4A4949300171090503"
    "3649494936064949291E003636000000563600000814224100141414141400412214080201510906"
    "324979413E7E1111117E7F494949363E414141227F4141221C7F494949417F090909013E4149497A"
    "7F0808087F00417F41002040413F017F081422417F404040407F020C027F7F0408107F3E4141413E"
    "7F090909063E4151215E7F09192946464949493101017F01013F4040403F1F2040201F3F4038403F"
    "631408146307087008076151494543007F41410002040810200041417F0004020102044040404040"
    "000102040020545454787F484444383844444420384444487F3854545418087E0901020C5252523E"
    "7F0804047800447D40002040443D007F1028440000417F40007C041804787C080404783844444438"
    "7C14141408081414187C7C080404084854545420043F4440203C4040207C1C2040201C3C4030403C"
    "44281028440C5050503C4464544C44000836410000007F000000413608000804081008FC4040207C"
)
_MARGIN = 10
_GREY = (200, 200, 200)


def add_legend(
    picture: NDArray[np.uint8],
    entries: Sequence[tuple[str, Color]],
    um_per_pixel: float | None = None,
) -> NDArray[np.uint8]:
    """Return a picture with a dark strip below it.

    Parameters
    ----------
    picture : numpy.ndarray
        Shape (height, width, 3).
    entries : sequence of (str, Color)
        Names and their colours; those that do not fit into the width are left out.
    um_per_pixel : float, optional
        Size of a pixel of the picture in µm; adds a scale bar.
    """
    scale = 2 if picture.shape[1] >= 400 else 1
    strip = np.zeros((10 * scale + _MARGIN, picture.shape[1], 3), np.uint8)
    right = picture.shape[1] - _MARGIN
    if um_per_pixel:
        right = _bar(strip, right, um_per_pixel, scale)
    left = _MARGIN
    for name, color in entries:
        mask = lettering(name, scale)
        if left + mask.shape[1] > right:
            break
        _paint(strip, mask, left, color)
        left += mask.shape[1] + 9 * scale
    return np.concatenate([picture, strip])


def lettering(text: str, scale: int = 1) -> NDArray[np.bool_]:
    """Return a text as a mask, 8 x `scale` pixels high."""
    columns: list[int] = []
    for letter in text.replace("μ", "µ"):
        number = 95 if letter == "µ" else ord(letter) - 32
        if not 0 <= number <= 95:
            number = ord("?") - 32
        columns += [*_FONT[5 * number : 5 * number + 5], 0]
    bits = np.array(columns[:-1], np.uint8)
    mask = (bits[None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return np.kron(mask, np.ones((scale, scale), np.uint8)).astype(np.bool_)


def nice_length(most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20 … that is no larger than `most`.

    >>> nice_length(730.0), nice_length(0.34)
    (500.0, 0.2)
    """
    ten: float = 10.0 ** math.floor(math.log10(most))
    return max(ten * n for n in (1, 2, 5) if ten * n <= most)


def _bar(strip: NDArray[np.uint8], right: int, um_per_pixel: float, scale: int) -> int:
    """Draw a scale bar that ends at `right`; return where it begins."""
    length = nice_length(um_per_pixel * strip.shape[1] / 5)
    unit, size = ("mm", length / 1000) if length >= 1000 else ("µm", length)
    mask = lettering(f"{size:g} {unit}", scale)
    _paint(strip, mask, right - mask.shape[1], _GREY)
    right -= mask.shape[1] + 4 * scale
    left = right - max(1, round(length / um_per_pixel))
    middle = strip.shape[0] // 2
    strip[middle - scale : middle + scale, max(0, left) : right] = _GREY
    return left - 9 * scale


def _paint(strip: NDArray[np.uint8], mask: NDArray[np.bool_], left: int, color: Color) -> None:
    top = (strip.shape[0] - mask.shape[0]) // 2
    left = max(0, left)
    area = strip[top : top + mask.shape[0], left : left + mask.shape[1]]
    area[mask[:, : area.shape[1]]] = color
