"""Where a new image goes: the file that was given, or a name made of what is in it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.core.location import Location, Url, locate
from bioio_tk.errors import BioIOError, SpecError

if TYPE_CHECKING:
    from bioio_tk.core.tiling import Span
    from bioio_tk.jobs.options import Options
    from bioio_tk.lazy import LazyArray

_TAGS = (("T", 4, "tp", 5), ("C", 3, "ch", 2), ("Z", 2, "zplane", 2))
"""Axis, its place in YXZCT, what it is called in a file name, and how many digits it gets."""
_MOST_LISTED = 8
_RAW = ".bin"


def target_of(dst: Any, options: Options, image: LazyArray) -> Location:
    """Return the file to make.

    Without ``ext`` that is `dst`. With it `dst` is a folder, and the file in it is called after
    the positions it holds, counted from 1: ``tp00001-00006_zplane03.tif``.

    Raises
    ------
    SpecError
        There is no format for the ending that was asked for.
    """
    if dst is None:
        raise SpecError("no target was given: say where the new image goes")
    target = locate(dst)
    if options.ext is None:
        return _suffixed(target, options)
    if isinstance(target, Url):
        raise SpecError(
            f"{str(target)!r} is a URL: give the name of the image itself, without ext="
        )
    ext = _ext(options.ext)
    if is_image(target) and not target.is_dir() and target.name.lower().endswith(ext):
        return _suffixed(target, options)
    tags = tag(image)
    if ext == _RAW:
        folder = "_".join(reversed(tags)) or "plane0"
        name = _clean(options.output_name or "data_raw") + ext
        return target / (folder + suffix(options.output_suffix)) / name.replace(ext * 2, ext)
    stem = _clean(options.output_name) if options.output_name else "_".join(tags)
    stem = stem.removesuffix(ext) or _stem(image)
    return target / f"{stem}{suffix(options.output_suffix)}{ext}"


def folder_of(target: Path) -> Path:
    """Return the folder that has to be there; that of a Suite2p binary is made with it."""
    return target.parent.parent if target.suffix.lower() == _RAW else target.parent


def is_image(target: Path) -> bool:
    """Return whether a name is that of an image, by its ending."""
    try:
        registry.for_writing(target)
    except (BioIOError, OSError):
        return False
    return True


def _suffixed(target: Location, options: Options) -> Location:
    """Return a name with what is to come before its ending."""
    if not options.output_suffix and not options.output_name:
        return target
    if isinstance(target, Url):
        raise SpecError("output_name= and output_suffix= are for files of this machine")
    stem, ending = split_name(target.name)
    name = _clean(options.output_name).removesuffix(ending) if options.output_name else stem
    return target.with_name(f"{name}{suffix(options.output_suffix)}{ending}")


def split_name(name: str) -> tuple[str, str]:
    """Return a file name and its ending.

    >>> split_name("a.b.ome.tif"), split_name("a.zarr")
    (('a.b', '.ome.tif'), ('a', '.zarr'))
    """
    lower = name.lower()
    cut = lower.rfind(".ome.")
    if cut < 0:
        cut = len(name) - len(Path(name).suffix)
    return name[:cut], name[cut:]


def _ext(given: str) -> str:
    ext = "." + given.lower().strip().lstrip(".")
    try:
        registry.for_writing(Path(("data_raw" if ext == _RAW else "image") + ext))
    except BioIOError as exc:
        raise SpecError(f"ext={given!r}: {exc}") from None
    return {".tiff": ".tif", ".hdf5": ".h5"}.get(ext, ext)


def tag(image: LazyArray) -> list[str]:
    """Return what a file name says of the positions that are in the file, counted from 1."""
    whole = image.reader.shape
    found = []
    for _, number, name, digits in _TAGS:
        pick = image.picks[number]
        if whole[number] > 1:
            found.append(name + _positions([int(p) + 1 for p in pick], digits))
    return found


def _positions(numbers: list[int], digits: int) -> str:
    first, last = f"{numbers[0]:0{digits}}", f"{numbers[-1]:0{digits}}"
    steps = {b - a for a, b in pairwise(numbers)}
    if not steps:
        return first
    if steps == {1}:
        return f"{first}-{last}"
    if len(steps) == 1 and (step := steps.pop()) > 0:
        return f"{first}-{last}-{step}"
    if len(numbers) <= _MOST_LISTED:
        return "+".join(f"{n:0{digits}}" for n in numbers)
    return f"{first}-{last}-{len(numbers)}of"


def suffix(given: str | None) -> str:
    """Return what comes before the ending of a name, made safe.

    >>> suffix("session 1/a.tif"), suffix(None)
    ('_session 1a', '')
    """
    text = _clean(given or "")
    text = split_name(text)[0].strip("._ ") if text else ""
    return f"_{text}" if text else ""


def _clean(name: str) -> str:
    """Return a name without what no file system takes."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]', "", name).strip(". ")


def span_text(axis: str, pick: Span, size: int) -> str:
    """Return a selection as `select=` takes it; "" for all of an axis.

    >>> span_text("Z", range(2, 8, 2), 10), span_text("C", range(3), 3)
    ('z=2:8:2', '')
    """
    if isinstance(pick, range):
        if pick == range(size):
            return ""
        if len(pick) == 1:
            return f"{axis.lower()}={pick[0]}"
        if pick.step > 0:
            step = f":{pick.step}" if pick.step > 1 else ""
            return f"{axis.lower()}={pick.start}:{pick.stop}{step}"
    return f"{axis.lower()}=" + ",".join(str(int(p)) for p in pick)


def _stem(image: LazyArray) -> str:
    return split_name(image.reader.path.name)[0] or "image"
