"""Verify: whether two images have the same pixels, and where they do not; tile by tile."""

from __future__ import annotations

import json
import math
import os
import threading
import time
import zlib
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioio_tk.core.checksum import PlaneSums, check_sums
from bioio_tk.core.dtype import as_pixels
from bioio_tk.core.location import Url, locate
from bioio_tk.core.pattern import has_fields, has_wildcards
from bioio_tk.core.pick import parse, positions
from bioio_tk.core.region import AXES
from bioio_tk.engine.copy import View, copy
from bioio_tk.engine.pool import check_workers
from bioio_tk.engine.read import settle
from bioio_tk.errors import DamagedFileError, SpecError, UnsupportedError
from bioio_tk.inputs.open import open_input
from bioio_tk.lazy import LazyArray
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from bioio_tk.backends.base import Source
    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.engine.copy import Progress

MODES = ("full", "sample")
_ONE_IN = 16
"""Of a plane of many tiles one in so many is looked at, besides those in its corners."""
_FEW = 4
"""Of a plane of so many tiles one is looked at."""
_LOSSY = ("jpeg", "jpeg2000", "jpegxl", "jpeg_lossy", "aperio_jp2000", "lerc", "webp", "jpegxr")
_LOSSY_ALWAYS = ("jpeg", "jpg", "webp")
_LOSSY_BY_LEVEL = ("jpeg2000", "jpeg_2000", "j2k", "jp2", "jpegxl", "jpeg_xl", "jxl", "lerc")


class Difference(NamedTuple):
    """A pixel that differs, counted from 0.

    Attributes
    ----------
    series, t, c, z, y, x : int
        Where it is: `series` counts the images that were compared.
    a, b : int, float, complex or bool
        The two values.
    """

    series: int
    t: int
    c: int
    z: int
    y: int
    x: int
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a comparison has found.

    Attributes
    ----------
    a, b : str
        What was compared; `b` is "" where recorded checksums were.
    equal : bool
        Nothing differs in what was looked at.
    mode : str
        "full" or "sample".
    compared_pixels, total_pixels : int
        How much was looked at, and how much there is.
    different_pixels : int
        How many of them differ.
    first_difference : Difference or None
        The first pixel that differs, in the order t, c, z, y, x.
    reasons : tuple of str
        What differs beyond pixels: sizes, pixel types, checksums; one line each.
    checksums : dict
        Of each plane of `b` (of `a` where there is no `b`), ``{"t0 c0 z0": "crc32:…"}``; with
        several images the number of each comes first: ``"s1 t0 c0 z0"``. Empty for a sample.
    seconds : float
        Time it took.
    notes : tuple of str
        What is worth knowing.
    """

    a: str
    b: str
    equal: bool
    mode: str
    compared_pixels: int
    total_pixels: int
    different_pixels: int
    first_difference: Difference | None
    reasons: tuple[str, ...]
    checksums: dict[str, str]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """How much of the pixels was looked at, 0 to 1."""
        return self.compared_pixels / self.total_pixels if self.total_pixels else 1.0

    @property
    def summary(self) -> str:
        """The result in a line."""
        if self.reasons:
            return f"different: {self.reasons[0]}"
        if self.first_difference is not None:
            return f"different: {self.pixels}"
        if self.mode == "full":
            return f"equal: all {self.total_pixels} pixels"
        return f"equal in what was looked at: {self.share:.1%} of {self.total_pixels} pixels"

    @property
    def pixels(self) -> str:
        """How many pixels differ, and the first that does, in a line."""
        if self.first_difference is None:
            return f"0 of {self.compared_pixels} pixels differ"
        series, t, c, z, y, x, a, b = self.first_difference
        image = f"image {series}, " if series else ""
        return (
            f"{self.different_pixels} of {self.compared_pixels} pixels differ, the first at "
            f"{image}t={t}, c={c}, z={z}, y={y}, x={x}: {a!r} in A, {b!r} in B"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON has."""
        found = asdict(self)
        if self.first_difference is not None:
            first = self.first_difference._asdict()
            found["first_difference"] = first | {k: _plain(first[k]) for k in "ab"}
        return found

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        return json.dumps(self.to_dict())  # ASCII: a path may have bytes that are no text


def verify(  # noqa: PLR0913 (a face: every option by its name)
    a: Any,
    b: Any = None,
    *,
    series: int | tuple[int, int] | None = None,
    level: int = 0,
    select: str | Mapping[str, Any] | None = None,
    mode: str = "full",
    checksums: Mapping[str, str] | str | os.PathLike[str] | None = None,
    storage_options: dict[str, Any] | None = None,
    workers: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare the pixels of two images, or those of one with the checksums recorded of it.

    Both sides are read piece by piece, in bounded memory. Pixels are equal where all their bits
    are: a NaN is equal to the same NaN.

    Parameters
    ----------
    a, b : path, URL, BioReader, LazyArray, array …
        What to compare, whatever `imread` takes. Without `b`, `checksums` are needed.
    series : int or (int, int), optional
        Which image of `a`, and of `b`; by default all, where both have as many. With one number
        a `b` of one image is that image.
    level : int
        Which resolution of both.
    select : str or mapping, optional
        What of `a` is compared with all of `b`: ``"c=0,2 z=10:20"``, as for `convert`.
    mode : {"full", "sample"}
        ``"sample"`` looks at some tiles of every plane, always at the same ones.
    checksums : mapping or path, optional
        What is known of the planes of `a`: ``{"t0 c0 z0": "crc32:0f1e2d3c"}``, as `convert`
        reports them. Or a JSON file with that, with a whole report, or with one a line: then the
        one that is of `a` counts.
    storage_options : dict, optional
        For URLs: what fsspec passes to the file system.
    workers : int, optional
        Threads, by default one per CPU this process may use.
    memory : int, optional
        Bytes of pixels in flight, both sides together; more only where one piece needs it.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes of `a`.

    Returns
    -------
    VerifyReport
        Differences are found, not raised.

    Raises
    ------
    DamagedFileError
        A part of one of the two cannot be read; the message says which.
    SpecError
        The arguments do not fit each other, or the images.
    """
    mode = _check_mode(mode)
    threads = check_workers(workers)
    how = _How(mode, threads, memory)
    with ExitStack() as stack:
        one = _open(stack, a, level, threads, storage_options)
        if b is None:
            if checksums is None:
                raise SpecError(
                    "there is nothing to compare with: give a second image, or checksums=, the "
                    "report that convert has made"
                )
            number = series[0] if isinstance(series, tuple) else series
            view = _selected(one.view(number), select)
            known = _loaded(checksums, Path(one.name).name, number)
            return _recompute(view, one.name, known, how, progress)
        other = _open(stack, b, level, threads, storage_options)
        pairs = [(_selected(v, select), w) for v, w in _pairs(one, other, series)]
        return _compare_all(pairs, (one.name, other.name), how, progress)


def verify_copy(  # noqa: PLR0913 (options of the copy, each by its name)
    view: View,
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    series: int = 0,
    mode: str = "full",
    cast: str | None = None,
    workers: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
    group: str = "",
    times: int | None = None,
) -> VerifyReport:
    """Compare what was copied with the file it went to, which may not be in place yet.

    Parameters
    ----------
    view : View
        What was copied.
    path : path
        The file or folder, ``NAME.partial`` while it is not in place.
    backend : str, optional
        Name of the backend that has written it; by default its content decides.
    series : int
        Which image of it.
    mode : {"full", "sample"}
        See `verify`.
    cast : str, optional
        How pixels were converted, see `core.dtype.as_pixels`; the same is done here before they
        are compared.
    workers, memory, progress
        See `verify`.
    group : str
        Where in the file the image lies.
    times : int, optional
        How many of its time points, the first ones, are those of the image; all by default.

    Returns
    -------
    VerifyReport
        Of two that are equal.

    Raises
    ------
    DamagedFileError
        The copy is another one; the message says where.
    UnsupportedError
        It is, as under a compression that does not keep pixels exactly.
    """
    threads = check_workers(workers)
    how = _How(_check_mode(mode), threads, memory)
    with BioReader(path, threads, backend, series=series, group=group) as reader:
        dtype = reader.dtype

        def convert(pixels: NDArray[Any]) -> NDArray[Any]:
            return as_pixels(pixels, dtype, cast)

        other = reader.array[..., :times].view()
        report = _compare_all(
            [(view, other)], ("", str(path)), how, progress, convert if cast else None
        )
        codec = _codec(reader)
    if report.equal:
        return report
    if not report.reasons and codec in _LOSSY:
        raise UnsupportedError(
            f"verify={mode!r}: pixels stored with {codec!r} cannot be verified exactly, "
            f"{report.different_pixels} of {report.compared_pixels} have changed: choose a "
            "compression that keeps them, or verify='none'"
        )
    raise DamagedFileError(
        f"what was written is not what was read (A is the source, B {str(path)!r}): "
        f"{report.summary}; look at the disk, or memory, of this machine and try again"
    )


def keeps_pixels(compression: str | None, level: int | None) -> bool:
    """Return whether what is stored so can be verified: exactly as it was given.

    >>> keeps_pixels("zstd", 3), keeps_pixels("jpeg", None), keeps_pixels("jpegxl", None)
    (True, False, True)
    """
    name = (compression or "").lower()
    return name not in _LOSSY_ALWAYS and not (name in _LOSSY_BY_LEVEL and level is not None)


def recompute(
    image: BioReader | LazyArray,
    checksums: Mapping[str, str],
    *,
    workers: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare the checksum of each plane with the one recorded.

    Parameters
    ----------
    image : BioReader or LazyArray
        The image; of a reader the series and level that are open.
    checksums : mapping
        ``{"t0 c0 z0": "crc32:0f1e2d3c"}``, one for each plane.
    workers, memory, progress
        See `verify`.

    Returns
    -------
    VerifyReport
        `reasons` names each plane that differs.

    Raises
    ------
    SpecError
        The checksums are those of another image.
    """
    array = image.array if isinstance(image, BioReader) else image
    how = _How("full", check_workers(workers), memory)
    return _recompute(array.view(), str(array.reader.path), checksums, how, progress)


def _recompute(
    view: View,
    name: str,
    checksums: Mapping[str, str],
    how: _How,
    progress: Progress | None,
) -> VerifyReport:
    began = time.monotonic()
    known = check_sums(checksums, view.shape)
    sums = PlaneSums(view.shape, _dtype(view))
    copy(
        view,
        lambda *_: None,
        view.stored(),
        workers=how.workers,
        memory=how.memory,
        progress=progress,
        done=sums.add,
    )
    found = sums.result()
    reasons = tuple(
        f"plane {plane} is {found[plane]}, and was {known[plane]} when it was written"
        for plane in known
        if found[plane] != known[plane]
    )
    size = math.prod(view.shape)
    return VerifyReport(
        a=name,
        b="",
        equal=not reasons,
        mode="full",
        compared_pixels=size,
        total_pixels=size,
        different_pixels=0,
        first_difference=None,
        reasons=reasons,
        checksums=found,
        seconds=time.monotonic() - began,
    )


# -- what is compared -----------------------------------------------------------------------------


class _How(NamedTuple):
    mode: str
    workers: int
    memory: int | None


def _loaded(
    checksums: Mapping[str, str] | str | os.PathLike[str], name: str, number: int | None
) -> Any:
    """Return recorded checksums, also from a file; `check_sums` looks whether they are any.

    In a file with the reports of several images they are those of the one that became the file
    `name`, and the image `number` in it.
    """
    if not isinstance(checksums, (str, os.PathLike)):
        return checksums
    path = Path(checksums)
    found = _documents(path)
    if len(found) > 1:
        found = [report for report in found if Path(str(report.get("target"))).name == name]
        if len(found) > 1 and number is not None:
            found = found[number : number + 1]
    if len(found) != 1:
        raise SpecError(
            f"{str(path)!r} has the reports of several images, and {len(found)} of them are of "
            f"{name!r}: it has to be one, by its name or by series="
        )
    return found[0].get("checksums", found[0])


def _documents(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a JSON file, or in one that has one a line; parts by themselves."""
    data = path.read_bytes()
    try:
        lines = [json.loads(data)]
    except ValueError:
        try:
            lines = [json.loads(line) for line in data.splitlines() if line.strip()]
        except ValueError as exc:
            raise SpecError(f"{str(path)!r} is no JSON file: {exc}") from exc
    whole = [line for line in lines if isinstance(line, dict)]
    return [part for line in whole for part in line.get("parts") or [line]]


def _check_mode(mode: str) -> str:
    if mode not in MODES:
        raise SpecError(f"mode={mode!r}: give 'full' or 'sample'")
    return mode


class _Side(NamedTuple):
    """One of the two that are compared: all images of a file, or a single one."""

    name: str
    source: Source
    level: int
    only: View | None

    @property
    def images(self) -> int:
        return 1 if self.only is not None else len(self.source.images)

    def view(self, number: int | None) -> View:
        if number is None and self.images > 1:
            raise SpecError(f"{self.name!r} has {self.images} images: say which one with series=")
        number = number or 0
        if not 0 <= number < self.images:
            last = self.images - 1
            raise SpecError(f"series={number}: {self.name!r} has the images 0 to {last}")
        if self.only is not None:
            return self.only
        levels = len(self.source.images[number].levels)
        if not 0 <= self.level < levels:
            raise SpecError(
                f"level={self.level}: image {number} of {self.name!r} has the levels 0 to "
                f"{levels - 1}"
            )
        return View.whole(self.source, number, self.level)


def _open(
    stack: ExitStack, given: Any, level: int, workers: int, storage_options: dict[str, Any] | None
) -> _Side:
    if isinstance(given, (BioReader, LazyArray)) or not _is_file(given):
        if level and isinstance(given, (BioReader, LazyArray)):
            raise SpecError(f"level={level} is for paths: open the reader with that level")
        array, mine = open_input(
            given, level=level or None, storage_options=storage_options, workers=workers
        )
        if mine:
            stack.enter_context(array.reader)
        view = array.view()
        return _Side(str(array.reader.path), view.source, 0, view)
    remote = storage_options if isinstance(locate(given), Url) else None
    reader = stack.enter_context(BioReader(given, workers, storage_options=remote))
    return _Side(str(given), reader.array.view().source, level, None)


def _is_file(given: Any) -> bool:
    """Return whether it is one file, folder or URL, all images of which are meant."""
    if not isinstance(given, (str, os.PathLike, Url)):
        return False
    place = locate(given)
    return (
        isinstance(place, Url)
        or place.exists()
        or not (has_fields(place.name) or has_wildcards(place.name))
    )


def _pairs(
    one: _Side, other: _Side, series: int | tuple[int, int] | None
) -> list[tuple[View, View]]:
    if series is None and one.images == other.images:
        return [(one.view(n), other.view(n)) for n in range(one.images)]
    if series is None:
        raise SpecError(
            f"{one.name!r} has {one.images} images and {other.name!r} has {other.images}: say "
            "which ones with series=, a number, or one for each"
        )
    if not isinstance(series, tuple):
        series = (series, 0 if other.images == 1 else series)
    return [(one.view(series[0]), other.view(series[1]))]


def _selected(view: View, select: str | Mapping[str, Any] | None) -> View:
    picks: list[Any] = list(view.picks)
    for axis, item in parse(select).items():
        number = AXES.index(axis)
        chosen = positions(axis, item, len(picks[number]))
        if not isinstance(chosen, slice):
            picks[number] = np.asarray(picks[number])
        picks[number] = picks[number][chosen]
    return view._replace(picks=tuple(picks))


def _codec(reader: BioReader) -> str:
    return str(reader.details.get("compression") or "").lower()


def _dtype(view: View) -> np.dtype[Any]:
    return view.source.images[view.image].dtype


# -- comparing ------------------------------------------------------------------------------------


def _compare_all(
    pairs: list[tuple[View, View]],
    names: tuple[str, str],
    how: _How,
    progress: Progress | None,
    convert: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> VerifyReport:
    began = time.monotonic()
    reasons: list[str] = []
    sums: dict[str, str] = {}
    first: Difference | None = None
    compared = different = before = 0
    total = sum(one.nbytes for one, _ in pairs)
    for number, (one, other) in enumerate(pairs):
        image = f"image {number}: " if len(pairs) > 1 else ""
        unlike = _unlike(one, other, cast=convert is not None)
        if unlike:
            reasons.append(f"{image}{unlike}")
            continue
        work = _Comparison(number, one, other, how, convert)
        work.run(None if progress is None else _shift(progress, before, total))
        before += one.nbytes
        first = first or work.first
        compared += work.compared
        different += work.different
        prefix = f"s{number} " if len(pairs) > 1 else ""
        sums |= {f"{prefix}{name}": value for name, value in work.checksums().items()}
    return VerifyReport(
        a=names[0],
        b=names[1],
        equal=not reasons and first is None,
        mode=how.mode,
        compared_pixels=compared,
        total_pixels=sum(math.prod(one.shape) for one, _ in pairs),
        different_pixels=different,
        first_difference=first,
        reasons=tuple(reasons),
        checksums=sums,
        seconds=time.monotonic() - began,
    )


def _unlike(one: View, other: View, *, cast: bool) -> str:
    """Return why two images cannot have the same pixels, "" where they can."""
    if one.shape != other.shape:
        sizes = (" x ".join(map(str, view.shape[::-1])) for view in (one, other))
        return "the sizes (T x C x Z x X x Y) are {} and {}".format(*sizes)
    if not cast and _dtype(one) != _dtype(other):
        return f"the pixel types are {_dtype(one)} and {_dtype(other)}"
    return ""


def _shift(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


class _Comparison:
    """Two images of one size; after run() the other members say what was found."""

    def __init__(
        self,
        number: int,
        one: View,
        other: View,
        how: _How,
        convert: Callable[[NDArray[Any]], NDArray[Any]] | None,
    ) -> None:
        self._number = number
        self._one = one
        self._other = other
        self._how = how
        self._convert = convert
        self._lock = threading.Lock()
        # for a source that reads one tile at a time
        self._turn = None if other.source.caps.parallel_read else threading.Lock()
        self._sums = PlaneSums(other.shape, _dtype(other)) if how.mode == "full" else None
        self.first: Difference | None = None
        self.compared = 0
        self.different = 0

    def run(self, progress: Progress | None) -> None:
        memory, workers = self._how.memory, self._how.workers
        settle(self._other.source, self._other.image, self._other.level)
        tile = self._other.stored()
        sample = self._how.mode == "sample"
        window: Any = tuple(map(min, tile, self._one.shape)) if sample else None
        copy(
            self._one,
            self._put,
            tile,
            workers=workers,
            progress=progress,
            memory=None
            if memory is None
            else max(1, memory // 3),  # a, b, and what is made of them
            window=window,
            skip=_Sample(self._one, window).skips if sample else None,
        )

    def checksums(self) -> dict[str, str]:
        return {} if self._sums is None else self._sums.result()

    def _put(self, box: Slices5, one: NDArray[Any]) -> None:
        if self._turn is None:
            other = self._other.read(box, 1)
        else:
            with self._turn:
                other = self._other.read(box, 1)
        if self._convert is not None:
            one = self._convert(one)
        if self._sums is not None:
            self._sums.add(box, other)
        found = self._look(box, one, other)
        with self._lock:
            self.compared += other.size
            if found is not None:
                count, first = found
                self.different += count
                if self.first is None or first < self.first:
                    self.first = first

    def _look(
        self, box: Slices5, one: NDArray[Any], other: NDArray[Any]
    ) -> tuple[int, Difference] | None:
        """Return how many pixels differ and the first that does."""
        unequal = (_bits(one) != _bits(other)).transpose(4, 3, 2, 0, 1)
        if one.dtype.itemsize == 16:
            one_i, other_i = _bits(one.imag), _bits(other.imag)
            unequal = unequal | (one_i != other_i).transpose(4, 3, 2, 0, 1)
        # argmax stops at the first; counting all is for pieces that have one
        flat = int(unequal.argmax())
        at = tuple(int(k) for k in np.unravel_index(flat, unequal.shape))
        if not unequal[at]:
            return None
        t, c, z, y, x = at
        ys, xs, zs, cs, ts = (s.start for s in box)
        values = (pixels[y, x, z, c, t].item() for pixels in (one, other))
        where = (t + ts, c + cs, z + zs, y + ys, x + xs)
        return int(np.count_nonzero(unequal)), Difference(self._number, *where, *values)


def _bits(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return pixels as whole numbers; of a complex number of 16 bytes the real part."""
    if pixels.dtype.itemsize == 16:
        pixels = pixels.real
    return pixels.view(f"u{pixels.dtype.itemsize}")


class _Sample:
    """Which windows of an image are looked at; the same for every image of a size."""

    def __init__(self, view: View, window: Shape5) -> None:
        self._window = window
        # the first window is shorter where the view begins inside a tile, see engine.copy
        self._before = tuple(a % n for a, n in zip(view.offset(), window, strict=True))
        self._rows, self._columns = (
            -(-(view.shape[k] + self._before[k]) // window[k]) for k in (0, 1)
        )

    def skips(self, box: Slices5) -> bool:
        y, x, z, c, t = (
            (s.start + before) // n if s.start else 0
            for s, before, n in zip(box, self._before, self._window, strict=True)
        )
        plane = zlib.crc32(f"{t} {c} {z}".encode())
        tiles = self._rows * self._columns
        if tiles <= _FEW:
            return y * self._columns + x != plane % tiles
        corner = y in (0, self._rows - 1) and x in (0, self._columns - 1)
        return not corner and zlib.crc32(f"{y} {x}".encode(), plane) % _ONE_IN != 0


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: what it has no number for as text."""
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return repr(value)
    return value
