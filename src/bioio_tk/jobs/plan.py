"""Plan: what a conversion would write, and from a sample how large and how long it will be."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.core.location import Location
from bioio_tk.jobs.names import folder_of
from bioio_tk.jobs.report import bytes_on_disk
from bioio_tk.jobs.transfer import transfer
from bioio_tk.target import journal_path
from bioio_tk.writer import BioWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.core.region import Shape5
    from bioio_tk.jobs.options import Options
    from bioio_tk.jobs.report import ConvertReport
    from bioio_tk.lazy import LazyArray

_SAMPLE = 32 << 20
"""Bytes of pixels that are converted to estimate the whole."""


def planned(
    image: LazyArray,
    target: Location,
    options: Options,
    step: dict[str, Any],
    report: ConvertReport,
) -> ConvertReport:
    """Return the report of a conversion that was not done.

    Nothing is written at `target`. A part from the middle of the image is converted in a
    temporary folder, and size and time are what it took, times how much larger the image is.
    """
    from bioio_tk.jobs.convert import kept_levels, writer_options

    settings = writer_options(image, target, options, step)
    with _place(target, options) as place:
        writer = BioWriter(place, image.reader.max_workers, **settings)  # raises as it would
        if options.levels == "keep":
            kept = kept_levels(image)
            writer._keep_levels([view.shape for view in kept])  # noqa: SLF001
        spec = writer._spec()  # noqa: SLF001
        writer.abort()
    sample = _middle(image)
    written, seconds = _tried(sample, target, settings)
    share = image.nbytes / max(1, sample.nbytes)
    left = shutil.disk_usage(_there(target)).free if isinstance(target, Path) else None
    size = round(written * share)
    plan = {
        "resolutions": [
            {"shape": list(level.shape), "tile": list(level.tile)} for level in spec.levels
        ],
        "dtype": spec.dtype.name,
        "pixel_bytes": image.nbytes,
        "estimated_bytes": size,
        "estimated_seconds": round(seconds * share, 1),
        "sampled_bytes": sample.nbytes,
        "free_bytes": left,
        "made": {name: value for name, value in step.items() if name != "when"},
    }
    notes = report.notes
    if left is not None and size > left:
        notes = (*notes, "there is probably not enough room on the disk for it")
    return replace(report, status="planned", levels=len(spec.levels), plan=plan, notes=notes)


@contextmanager
def _place(target: Location, options: Options) -> Iterator[Location]:
    """Give the target, or one of that name where a conversion finds the way clear, not we.

    Its folder may be one that is only made then, or what is in the way be gone on with.
    """
    if not isinstance(target, Path) or not (
        (options.makes_folder and not folder_of(target).is_dir())
        or (options.resume and journal_path(target).exists() and not target.exists())
    ):
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="bioio-tk-plan-") as folder:
        yield Path(folder) / target.relative_to(folder_of(target))


def _there(target: Path) -> Path:
    """Return the innermost folder of a path that exists."""
    return next(folder for folder in target.absolute().parents if folder.is_dir())


def _middle(image: LazyArray) -> LazyArray:
    """Return a part of an image from its middle, small enough to convert on the way."""
    for axis in ("T", "C", "Z"):
        where = image.dims.find(axis)
        if where >= 0 and image.nbytes > _SAMPLE:
            middle = image.shape[where] // 2
            image = image[(slice(None),) * where + (slice(middle, middle + 1),)]
    while image.nbytes > _SAMPLE:
        where = max((image.dims.find(a) for a in "YX"), key=lambda n: image.shape[n])
        quarter = image.shape[where] // 4
        image = image[(slice(None),) * where + (slice(quarter, 3 * quarter),)]
    return image


def _tried(sample: LazyArray, target: Location, settings: dict[str, Any]) -> tuple[int, float]:
    """Return how large a part of the image becomes, and how many seconds that takes."""
    from bioio_tk.jobs.select import Seen

    name = target.relative_to(folder_of(target)) if isinstance(target, Path) else target.name
    with tempfile.TemporaryDirectory(prefix="bioio-tk-plan-") as folder:
        place = Path(folder) / name
        alone = {"overwrite": False, "group": "", "storage_options": None, "like": Seen(sample)}
        writer = BioWriter(place, sample.reader.max_workers, **settings | alone)
        began = time.perf_counter()
        transfer(sample.view(), writer, workers=sample.reader.max_workers)
        return bytes_on_disk(Path(folder)), time.perf_counter() - began


def shape_text(shape: Shape5) -> str:
    """Return a size as people write it.

    >>> shape_text((480, 640, 1, 3, 1))
    '640 x 480, C 3'
    """
    y, x, z, c, t = shape
    more = "".join(f", {axis} {n}" for axis, n in (("Z", z), ("C", c), ("T", t)) if n > 1)
    return f"{x} x {y}{more}"
