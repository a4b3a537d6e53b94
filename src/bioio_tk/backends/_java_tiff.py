"""TIFF and what vendors made of it: directories and strips against the length of the file.

TIFF 6.0 and BigTIFF; LSM (tag 34412) states wrong lengths of compressed strips, NDPI (65420)
wraps offsets at 4 GB, STK (33629) lists the strips of its first plane only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bioio_tk.errors import UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bioio_tk.backends._java_bytes import Bytes

_SIZES = dict(
    zip(range(1, 19), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8), strict=True)
)
_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_MOST, _LAST = 1000, 100
"""Directories at the begin and the end whose strips are looked at; of others, only the chain."""
_WHAT = "a directory of its images"
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _DESCRIPTION = 256, 257, 258, 259, 270
_STRIPS, _SAMPLES, _COUNTS = 273, 277, 279
_TILES, _TILE_COUNTS, _SUB, _FORMAT = 324, 325, 330, 339
_INTEGER, _COMPLEX = {1, 2}, {5, 6}
_ZSTD = 50000
_STK, _LSM, _NDPI = 33629, 34412, 65420
_NEEDED = {_BITS, _DESCRIPTION, _STRIPS, _COUNTS, _TILES, _TILE_COUNTS, _SUB, _STK, _LSM}
_WRAP = 1 << 32


@dataclass(frozen=True, slots=True)
class _Form:
    """How the numbers of a file are written."""

    order: str
    big: bool

    @property
    def entry(self) -> np.dtype[np.void]:
        n = self.order + ("u8" if self.big else "u4")
        fields = [("tag", self.order + "u2"), ("type", self.order + "u2"), ("count", n)]
        return np.dtype([*fields, ("value", f"V{8 if self.big else 4}")])

    def number(self, raw: bytes) -> int:
        return int.from_bytes(raw, "little" if self.order == "<" else "big")


@dataclass(frozen=True, slots=True)
class Page:
    """A directory: which tags, of which type, how many values, where."""

    tags: dict[int, tuple[int, int, bytes]]
    next: int


def check(file: Bytes, version: str) -> None:
    """Raise where a directory or a strip lies beyond the end of the file."""
    head = file.all(0, 8, "the header")
    form = _Form("<" if head[:1] == b"I" else ">", head[2:4] in (b"+\0", b"\0+"))
    first = form.number(file.all(8, 8, "the header") if form.big else head[4:8])
    chain = _chain(file, form, first)
    lsm = False
    for number, at in enumerate(chain):
        if _MOST <= number < len(chain) - _LAST:
            continue
        page = _page(file, form, at)
        lsm |= _LSM in page.tags
        if file.size >= _WRAP and (_NDPI in page.tags or lsm):
            return
        if number == 0:
            _check_size(file, form, page)
        _check_pixels(file, form, page, version)
        _check_page(file, form, page, lsm=lsm)
        for sub in _values(file, form, page, _SUB).tolist():
            if sub:
                _check_page(file, form, _page(file, form, sub), lsm=False)


def _chain(file: Bytes, form: _Form, first: int) -> list[int]:
    """Return where the directories lie, in their order."""
    found: dict[int, None] = {}
    wide, size = (8 if form.big else 2), form.entry.itemsize
    at = first
    while at:
        if at in found:
            raise file.damaged("its directories form a loop")
        found[at] = None
        count = form.number(file.all(at, wide, _WHAT))
        rest = wide + count * size
        file.need(at, rest, _WHAT)
        at = form.number(file.some(at + rest, 8 if form.big else 4))
        if len(found) == 1 and file.size >= _WRAP and not form.big:
            break  # NDPI and LSM of that size have offsets of their own
    return list(found)


def _page(file: Bytes, form: _Form, at: int) -> Page:
    wide = 8 if form.big else 2
    size = form.entry.itemsize
    first = file.some(at, 4096)
    if len(first) < wide:
        raise file.damaged(f"{_WHAT} lies at byte {at}, beyond its end at {file.size}")
    count = form.number(first[:wide])
    length = wide + count * size
    file.need(at, length, _WHAT)
    if length + 8 > len(first):
        first = file.some(at, length + 8)
    rows = np.frombuffer(first, form.entry, count, wide)
    tags = {int(r["tag"]): (int(r["type"]), int(r["count"]), bytes(r["value"])) for r in rows}
    return Page(tags, form.number(first[length : length + (8 if form.big else 4)]))


def _values(file: Bytes, form: _Form, page: Page, tag: int) -> NDArray[np.int64]:
    kind, count, value = page.tags.get(tag, (0, 0, b""))
    if kind not in _NUMBERS:
        return np.empty(0, np.int64)
    dtype = np.dtype(form.order + _NUMBERS[kind])
    length = dtype.itemsize * count
    if length > len(value):
        value = file.all(form.number(value), length, f"tag {tag}")
    return np.frombuffer(value, dtype, count).astype(np.int64)


def _check_size(file: Bytes, form: _Form, page: Page) -> None:
    """Raise where the first directory has no size: Bio-Formats would go on with the second."""
    for tag in (_WIDTH, _HEIGHT):
        if not _values(file, form, page, tag)[:1].any():
            raise file.damaged("its first image has no size")


def _check_pixels(file: Bytes, form: _Form, page: Page, version: str) -> None:
    """Raise where Bio-Formats makes other numbers of the pixels, or an older one has no way in."""
    one = partial(_one, file, form, page)
    what = ""
    if one(_FORMAT, 1) in _COMPLEX:
        what = "complex numbers"
    elif one(_FORMAT, 1) in _INTEGER and one(_BITS, 1) == 64:
        what = "integers of 64 bits"
    if what:
        raise UnsupportedError(
            f"{str(file.path)!r} holds {what}, which Bio-Formats reads wrongly: open it with "
            "backend='python'"
        )
    if version.startswith("6.") and one(_COMPRESSION, 1) == _ZSTD:
        raise UnsupportedError(
            f"{str(file.path)!r} is compressed with Zstandard, which Bio-Formats {version} does "
            "not know: open it with backend='python', or run 'bioio-tk java install' for a newer "
            "one"
        )


def _one(file: Bytes, form: _Form, page: Page, tag: int, default: int) -> int:
    found = _values(file, form, page, tag)
    return int(found[0]) if found.size else default


def _check_page(file: Bytes, form: _Form, page: Page, *, lsm: bool) -> None:
    for tag, (kind, count, value) in page.tags.items():
        length = count * _SIZES.get(kind, 1)
        if tag in _NEEDED and length > len(value):
            file.need(form.number(value), length, f"tag {tag}")

    one = partial(_one, file, form, page)
    tiled = _TILES in page.tags
    starts = _values(file, form, page, _TILES if tiled else _STRIPS)
    counts = _values(file, form, page, _TILE_COUNTS if tiled else _COUNTS)
    number = min(starts.size, counts.size)
    starts, counts = starts[:number], counts[:number]
    if not number:
        return
    if starts.min() < 0 or counts.min() < 0:
        raise file.damaged("a part of an image lies nowhere")
    raw = one(_COMPRESSION, 1) == 1
    there = counts > 0  # others were left out on purpose: black
    lengths = np.minimum(counts, 1) if lsm and not raw else counts
    file.need(int((starts + lengths)[there].max(initial=0)), 0, "the pixels of an image")
    if raw and there.all():
        pixel = one(_SAMPLES, 1) * one(_BITS, 1)
        wanted = -(-one(_WIDTH, 0) * pixel // 8) * one(_HEIGHT, 0)
        if _STK in page.tags:
            file.need(int(starts[0]), wanted * page.tags[_STK][1], "its stack of planes")
        elif wanted > file.size:
            raise file.damaged(f"an image needs {wanted} bytes of pixels, {counts.sum()} are there")
