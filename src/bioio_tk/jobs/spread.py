"""Spread: one conversion done by the workers of a cluster, or by processes that are started."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.core.checksum import PlaneSums
from bioio_tk.core.dtype import pixel_dtype
from bioio_tk.errors import SpecError
from bioio_tk.jobs import shards
from bioio_tk.jobs.bar import shown
from bioio_tk.jobs.convert import open_source, report_of, writer_options
from bioio_tk.jobs.names import target_of
from bioio_tk.jobs.report import bytes_on_disk, peak_rss
from bioio_tk.jobs.select import chosen
from bioio_tk.jobs.verify import verify_copy
from bioio_tk.lazy import LazyArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from bioio_tk.core.location import Location
    from bioio_tk.jobs.options import Options
    from bioio_tk.jobs.report import ConvertReport

_NOT_AT_END = ("dry_run", "resume", "roi", "roi_mode", "shard_job", "client")
"""Options that say nothing of an image whose parts are written."""


def spread(
    image: LazyArray, target: Location, options: Options, step: dict[str, Any]
) -> ConvertReport:
    """Convert an image together with others: on a cluster, or as one of several jobs."""
    if options.resume:
        raise SpecError(
            "resume= is for a conversion by one process: a cluster repeats what a worker that died "
            "had begun, and a job of several is simply run again"
        )
    if options.levels == "keep":
        raise SpecError(
            "levels='keep' copies the levels of the source, which one process does: leave it out, "
            "and they are made anew"
        )
    if options.shard_job is not None:
        return _share(image, target, options, step)
    from bioio_tk.jobs.cluster import on_cluster

    began = time.perf_counter()
    compared: list[str] = []
    settings = writer_options(image, target, options, step)
    sums = PlaneSums(image.spec.shape, pixel_dtype(settings.get("dtype", image.dtype)))
    spec = on_cluster(
        image,
        target,
        settings,
        client=options.client,
        progress=options.progress,
        memory=None if options.memory is None else options.memory // 2,
        sums=sums,
        before=_comparison(image, options, compared),
    )
    return replace(
        report_of(image, target, ()),
        dtype=spec.dtype.name,
        levels=len(spec.levels),
        seconds=time.perf_counter() - began,
        peak_rss=peak_rss(),
        checksums=sums.result(),
        verified="".join(compared),
        notes=_no_labels(image),
    )


def _share(
    image: LazyArray, target: Location, options: Options, step: dict[str, Any]
) -> ConvertReport:
    began = time.perf_counter()
    record = {name: value for name, value in step.items() if name not in ("when", "tool")}
    share = shards.write_share(
        image,
        target,
        writer_options(image, target, options, step),
        job=str(options.shard_job),
        record=record,
        workers=options.workers,
        memory=None if options.memory is None else options.memory // 2,
        progress=options.progress,
    )
    notes = list(_no_labels(image))
    notes.append(
        f"still to do: jobs {', '.join(share.left[:20])}{' …' if len(share.left) > 20 else ''}"
        if share.left
        else "all jobs are done: complete the image with finalize=True (--finalize)"
    )
    return replace(
        report_of(image, target, notes),
        status="skipped" if share.skipped else "partial",
        dtype=share.spec.dtype.name,
        levels=len(share.spec.levels),
        pixel_bytes=share.read_bytes,
        seconds=time.perf_counter() - began,
        peak_rss=peak_rss(),
    )


def finalize(src: Any, dst: Any, options: Options) -> ConvertReport:
    """Complete an image whose parts are done: smaller resolutions, and into its place."""
    began = time.perf_counter()
    refused = [name for name in _NOT_AT_END if getattr(options, name)]
    if refused:
        raise SpecError(
            f"{refused[0]}= does not go with finalize=, which completes one image whose parts are "
            "written already"
        )
    compared: list[str] = []
    with ExitStack() as stack:
        reader = stack.enter_context(open_source(src, options))
        reader._choose(options.series or 0, options.level or 0)  # noqa: SLF001
        image = chosen(LazyArray(reader), options)
        place = target_of(dst, options, image)
        if not isinstance(place, Path):
            raise SpecError(f"{str(place)!r} is a URL: the jobs of a conversion share a folder")
        tell = stack.enter_context(shown(options, place.name))
        spec, checksums = shards.finalize(
            place,
            overwrite=options.overwrite,
            workers=options.workers,
            progress=tell,
            before=_comparison(image, options, compared),
        )
        report = report_of(image, place, _no_labels(image))
    return replace(
        report,
        dtype=spec.dtype.name,
        levels=len(spec.levels),
        bytes_out=bytes_on_disk(place),
        seconds=time.perf_counter() - began,
        peak_rss=peak_rss(),
        checksums=checksums,
        verified="".join(compared),
        shape=spec.shape,
    )


def _comparison(
    image: LazyArray, options: Options, said: list[str]
) -> Callable[[Path], object] | None:
    """Return what compares the finished image with its source, None where none is wanted."""
    if options.verify == "none":
        return None

    def compare(partial: Path) -> None:
        report = verify_copy(
            image.view(),
            partial,
            mode=options.verify,
            backend="zarr" if partial.is_dir() else None,
            workers=image.reader.max_workers,
            memory=options.memory,
            cast=options.casting,
        )
        said.append(report.summary)

    return compare


def _no_labels(image: LazyArray) -> tuple[str, ...]:
    names = list(image.reader.labels)
    return (f"labels were not copied ({', '.join(names)}): one process does that",) if names else ()
