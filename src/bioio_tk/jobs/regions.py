"""Regions: files that have an image for each region of interest, joined or one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.core.location import Url, locate
from bioio_tk.core.pick import one_based
from bioio_tk.errors import SpecError
from bioio_tk.inputs.joined import joined
from bioio_tk.jobs.bar import shown
from bioio_tk.jobs.convert import convert_image, only_one, open_source
from bioio_tk.jobs.tally import Tally
from bioio_tk.lazy import LazyArray

if TYPE_CHECKING:
    from bioio_tk.engine.copy import Progress
    from bioio_tk.jobs.options import Options
    from bioio_tk.jobs.report import ConvertReport
    from bioio_tk.reader import BioReader

MODES = ("concat_y", "separate")


def each_region(src: Any, dst: Any, options: Options) -> ConvertReport:
    """Convert the regions of a file as `roi_mode` says.

    Joined along Y they are one image. Separate, each goes into a folder of its own, ``roi01`` …,
    or, where the target is a file, gets ``_roi01`` … before the ending.
    """
    mode = (options.roi_mode or "separate").lower()
    if mode not in MODES:
        raise SpecError(f"roi_mode={options.roi_mode!r}: choose one of {', '.join(MODES)}")
    if options.series is not None:
        raise SpecError("series= takes one image of the file, roi_mode= all of them: give one")
    with open_source(src, options) as reader:
        if mode == "concat_y":  # roi= has no say there, as in mbo_utilities
            image = joined(reader)
            return convert_image(image, dst, replace(options, roi=None, roi_mode=None))
        with shown(options, str(dst)) as tell:
            return _separate(reader, dst, options, tell)


def _separate(
    reader: BioReader, dst: Any, options: Options, tell: Progress | None
) -> ConvertReport:
    """Convert each of the regions that are asked for."""
    reports = []
    numbers = _numbers(options.roi, reader.n_series)
    alone = replace(options, roi=None, roi_mode=None, told=None, show_progress=False)
    tally = Tally(tell, len(numbers))
    for number in numbers:
        reader._choose(number, options.level or 0)  # noqa: SLF001
        place, more = _place(dst, number, replace(alone, progress=tally.one()))
        report = convert_image(LazyArray(reader), place, more)
        left_out = only_one(reader.n_series, number)  # the others are asked for, too
        notes = tuple(note for note in report.notes if note != left_out)
        reports.append(replace(report, notes=notes))
    return together(reports, dst)


def _numbers(roi: Any, count: int) -> list[int]:
    everything = roi is None or (isinstance(roi, int) and not isinstance(roi, bool) and roi == 0)
    if everything or (isinstance(roi, Iterable) and list(roi) in ([0], ["0"])):
        return list(range(count))
    return one_based("roi", roi, "regions", count)


def _place(dst: Any, number: int, options: Options) -> tuple[Any, Options]:
    target = locate(dst)
    name = f"roi{number + 1:02}"
    if isinstance(target, Url):
        raise SpecError(f"{str(target)!r} is a URL: regions are written to folders of this machine")
    from bioio_tk.jobs.names import split_name

    stem, ending = split_name(target.name)
    if options.ext is None and ending:
        return target.with_name(f"{stem}_{name}{ending}"), options
    return target / name, options


def together(reports: list[ConvertReport], dst: Any) -> ConvertReport:
    """Return one report of several images."""
    if len(reports) == 1:
        return reports[0]
    first = reports[0]

    def total(name: str) -> Any:
        return sum(getattr(report, name) for report in reports)

    states = {report.status for report in reports}
    return replace(
        first,
        target=str(Path(dst)),
        status=first.status if len(states) == 1 else "done",
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        verified="; ".join(
            text if count == 1 else f"{text} of each of {count} images"
            for text, count in Counter(r.verified for r in reports if r.verified).items()
        ),
        bytes_out=total("bytes_out"),
        pixel_bytes=total("pixel_bytes"),
        seconds=total("seconds"),
        checksums={},
        parts=tuple(reports),
    )
