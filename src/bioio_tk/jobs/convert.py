"""Convert: any image that can be read into a file that can be written, in bounded memory."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.core.checksum import PlaneSums
from bioio_tk.core.location import Location, Url, absolute, locate
from bioio_tk.engine.pool import check_workers
from bioio_tk.errors import DamagedFileError, SpecError
from bioio_tk.inputs.open import open_input
from bioio_tk.jobs.bar import shown
from bioio_tk.jobs.journal import Journal
from bioio_tk.jobs.labels import Filled, copy_labels, open_labels
from bioio_tk.jobs.names import folder_of, target_of
from bioio_tk.jobs.options import Options
from bioio_tk.jobs.overlay import check_xml, with_xml, xml_beside
from bioio_tk.jobs.record import carried, files_of, is_same, shifts_in, step_of
from bioio_tk.jobs.report import ConvertReport, bytes_on_disk, part_of, peak_rss, shown_path
from bioio_tk.jobs.select import chosen
from bioio_tk.jobs.transfer import transfer
from bioio_tk.jobs.views import Taken, layout_of_views, left_of_views, place_of
from bioio_tk.meta.ome_places import stage_positions
from bioio_tk.writer import BioWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bioio_tk.engine.copy import Progress, View
    from bioio_tk.lazy import LazyArray
    from bioio_tk.reader import BioReader

_KEPT = (
    *("compression", "compression_level", "predictor", "tile_size", "downsample", "cast"),
    *("overwrite", "ngff_version", "chunks", "shards", "pyramid_z", "group", "storage_options"),
)
"""Options that go to `BioWriter` as they are."""
_JOURNALED = 256 << 20
"""Bytes of pixels from which on a record is kept, for a run that may be interrupted."""


def convert(  # noqa: PLR0913 (a face: every option by its name)
    src: Any,
    dst: str | os.PathLike[str] | None = None,
    *,
    series: int | None = None,
    level: int | None = None,
    dims: str | None = None,
    dim_order: str | None = None,
    select: Any = None,
    t: Any = None,
    c: Any = None,
    z: Any = None,
    y: Any = None,
    x: Any = None,
    planes: Any = None,
    timepoints: Any = None,
    frames: Any = None,
    channels: Any = None,
    num_frames: int | None = None,
    num_timepoints: int | None = None,
    num_zplanes: int | None = None,
    order: Sequence[int] | None = None,
    register_z: bool = False,
    apply_shifts: bool = False,
    max_frames: int = 200,
    chunk_frames: int = 10,
    max_reg_xy: int = 30,
    roi: int | Sequence[int] | None = None,
    roi_mode: str | None = None,
    stack: str | None = None,
    fill: float | None = None,
    shape: Sequence[int] | None = None,
    backend: str | None = None,
    ext: str | None = None,
    output_name: str | None = None,
    output_suffix: str | None = None,
    dataset_name: str | None = None,
    metadata: Any = None,
    compression: str | None = None,
    compression_level: int | None = None,
    predictor: bool | None = None,
    tile_size: int | tuple[int, int] = 1024,
    pyramid: bool | int = True,
    levels: int | str | None = None,
    downsample: str | None = None,
    dtype: Any = None,
    cast: str | None = None,
    ome: bool = True,
    ngff_version: str | None = None,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | bool | None = None,
    pyramid_z: bool = False,
    bdv_xml: bool = False,
    group: str = "",
    labels: bool = True,
    storage_options: dict[str, Any] | None = None,
    exists: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    verify: str = "none",
    memory: int | None = None,
    target_chunk_mb: float | None = None,
    workers: int | None = None,
    max_workers: int | None = None,
    client: Any = None,
    shard_job: str | None = None,
    finalize: bool = False,
    progress: Progress | None = None,
    progress_callback: Callable[..., object] | None = None,
    show_progress: bool = False,
) -> ConvertReport:
    """Convert an image of any size, or what is selected of it, with its metadata, tile by tile.

    Memory is bounded, whatever the size of the image. If it fails or is interrupted, what was at
    `dst` before stays as it was, and nothing is left beside it but what `resume` goes on with.

    Parameters
    ----------
    src : path, array, BioReader, LazyArray, or several
        The image: anything `imread` takes. Of an open reader the series and level that are open
        are converted.
    dst : str or Path
        The file to make; its ending says the format. With `ext` it is a
        folder, and the file in it is called after what it holds: ``tp00001-00006_zplane03.tif``.
    series, level : int, optional
        Which image of the file, and which of its resolutions; the first and largest by default.
        In a dataset of BigDataViewer all images are tiles by default.
    dims, dim_order : str, optional
        The axes of an array that does not name them, slowest first: ``"TZYX"``.
    select : str or dict, optional
        What to take, from 0 and half open: ``"c=0,2 z=10:20 t=::2 y=0:512"``.
    t, c, z, y, x : int, slice or sequence, optional
        The same for one axis: ``z=slice(10, 20)``.
    planes, timepoints, channels : int, str or sequence of int, optional
        What to take of Z, T and C, counted from 1: ``7``, ``[1, 7, 14]``, ``"1:100"``.
    frames : optional
        Another name of `timepoints`.
    num_timepoints, num_zplanes : int, optional
        How many to take, the first ones; `num_frames` is another name of `num_timepoints`.
    num_frames : int, optional
        As `num_timepoints`.
    order : sequence of int, optional
        Puts planes into another order: for each place the number, from 0, of one of `planes`.
    register_z : bool
        Find out by how much each plane lies beside the one before, by phase correlation, and
        write that into the metadata (see `axial_shifts`); the pixels stay where they are.
    apply_shifts : bool
        Move the planes by the shifts that are found, or that the metadata of the source have. The
        canvas grows by as much as they move.
    max_frames, chunk_frames, max_reg_xy : int
        For `register_z`: time points that are averaged, how many at a time, and how many pixels
        apart two neighbouring planes may lie.
    roi : int or sequence of int, optional
        With ``roi_mode="separate"``: which images of a file that has one for each region, from
        1; 0 or None for all. Each gets a folder ``roi01`` … of its own.
    roi_mode : {"concat_y", "separate"}, optional
        Join all images of the file along Y, or write each by itself.
    stack, fill, shape : optional
        For several files, or for tiles: see `imread`.
    backend : str, optional
        What reads `src`: ``"python"`` (TIFF), ``"zarr"``, ``"java"`` …
    ext : str, optional
        Format of a file that is named by what it holds: ``".tif"``, ``".zarr"``, ``".h5"``,
        ``".bin"``, ``".npy"`` …
    output_name, output_suffix : str, optional
        Name of that file instead, and what is put before its ending.
    dataset_name : str, optional
        HDF5: name of the dataset, ``"mov"`` by default.
    metadata : dict, ome_types.OME or str, optional
        A dict is added to the metadata of the image: properties of `BioWriter` such as
        ``channel_names``, ``dx``, ``dy``, ``dz`` in µm and ``fs`` in Hz, and anything else. An
        OME object or OME-XML takes their place.
    compression, compression_level, predictor, tile_size
        As for `BioWriter`.
    pyramid : bool
        Add smaller resolutions (the default) where the format has any.
    levels : int or "keep", optional
        Number of all resolutions; by default until a plane fits into 256 pixels. ``"keep"``
        copies those of the source.
    downsample : str, optional
        As for `BioWriter`; ``"mean"`` by default, and ``"mode"`` for labels.
    dtype : str or numpy.dtype, optional
        Pixel type to convert to, that of the source by default.
    cast : str, optional
        How: ``"exact"`` (the default: an error where a value does not fit), ``"clip"``,
        ``"scale"`` or ``"wrap"``.
    ome : bool
        Write OME metadata (the default). Without them TIFF is one that ImageJ understands, and
        Zarr a plain array.
    ngff_version, chunks, shards, pyramid_z, group
        As for `BioWriter`, for OME-Zarr; `chunks` for BigDataViewer, too.
    bdv_xml : bool
        Write an XML beside the OME-Zarr, with which BigDataViewer and BigStitcher open it as it
        is (see `bioio_tk.bdv.write_zarr_xml`); it is of version 0.4 then.
    labels : bool
        Copy the label images of the source, too, where both sides are OME-Zarr: with their
        colours and properties, and as many resolutions as the image has, by ``"mode"``
        (``"nearest"`` where `downsample` says so).
    storage_options : dict, optional
        For URLs, of `src` as of `dst`: what fsspec passes to the file system.
    exists : {"error", "skip", "replace"}, optional
        What to do where `dst` exists. It is skipped only where it says itself that it was made
        of the same files, unchanged since, with the same selection and options. Of a source on a
        server only the address is compared.
    overwrite : bool
        As ``exists="replace"``.
    resume : bool
        Go on with what a run that was interrupted has left, and leave what is done so far if
        this one is; begin anew where there is nothing.
    dry_run : bool
        Write nothing, but say what would be written, and estimate size and time.
    verify : {"none", "sample", "full"}
        Compare the new image with the source before it goes into its place.
    memory : int, optional
        Bytes of memory to keep to, more or less: half of it for pixels that are on their way.
    target_chunk_mb : float, optional
        MB of pixels that are on their way, as in mbo_utilities.
    workers : int, optional
        Threads, by default one per CPU this process may use; `max_workers` is the old name.
    max_workers : int, optional
        As `workers`.
    client : distributed.Client or str, optional
        Let the workers of a Dask cluster do it; the client, or the address of the scheduler.
    shard_job : str, optional
        ``"i/n"``: do the i-th of n parts of an OME-Zarr, others do the rest, wherever they run.
    finalize : bool
        Complete an OME-Zarr whose parts are all done.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes, one call at a time, not always from the
        same thread; the last call has ``done == total``. What it raises ends the conversion.
    progress_callback : callable, optional
        Called with the share that is done, 0 to 1, as in mbo_utilities.
    show_progress : bool
        Draw a bar on the terminal.

    Returns
    -------
    ConvertReport
        What was done.

    Raises
    ------
    SpecError, RegionError, UnsupportedError
        An argument makes no sense, or does not fit the image or the format; nothing is written.
    PixelTypeError
        A value does not fit the pixel type asked for; the text names it.
    FormatError
        The source is damaged; the text says where.
    TargetExistsError, TargetBusyError
        `dst` is there already, or someone else is at work on it.

    Examples
    --------
    >>> from bioio_tk import convert
    >>> report = convert("cells.tif", "cells.ome.tif", compression="zstd")  # doctest: +SKIP
    """
    given = dict(locals())
    src, dst = given.pop("src"), given.pop("dst")
    return run(src, dst, options_of(**given))


def options_of(**given: Any) -> Options:
    """Return the options for keywords of `convert`, where one thing may have several names."""
    pairs = (
        ("timepoints", "frames"),
        ("num_timepoints", "num_frames"),
        ("dims", "dim_order"),
        ("workers", "max_workers"),
    )
    for name, other in pairs:
        value = given.pop(other, None)
        if value is not None and given.get(name) is not None:
            raise SpecError(f"{name}= and {other}= are two names of one thing: give one of them")
        given[name] = given.get(name) if value is None else value
    if given.pop("overwrite", False):
        if given.get("exists") not in (None, "replace"):
            raise SpecError(f"overwrite=True and exists={given['exists']!r} contradict each other")
        given["exists"] = "replace"
    chunk = given.pop("target_chunk_mb", None)
    if chunk is not None:
        if not isinstance(chunk, (int, float)) or chunk <= 0:
            raise SpecError(f"target_chunk_mb={chunk!r}: give a number of megabytes")
        given["memory"] = given.get("memory") or max(1 << 20, int(2 * chunk * 1_000_000))
    given["told"] = given.pop("progress_callback", None)
    unknown = set(given) - {f.name for f in fields(Options)}
    if unknown:
        raise TypeError(f"there is no keyword {min(unknown)!r}{_alike(min(unknown))}")
    return Options(**given)


def _alike(name: str) -> str:
    found = get_close_matches(name, [f.name for f in fields(Options)], 1)
    return f"; was {found[0]!r} meant?" if found else ""


def run(src: Any, dst: Any, options: Options) -> ConvertReport:
    """Convert with options that are checked, see `convert`."""
    if options.finalize:
        from bioio_tk.jobs.spread import finalize

        return finalize(src, dst, options)
    if options.roi_mode is not None or options.roi is not None:
        from bioio_tk.jobs.regions import each_region

        return each_region(src, dst, options)
    image, mine = _opened(src, options, series=options.series, level=options.level)
    try:
        if _is_scene(src, image, dst, options):
            from bioio_tk.jobs.gather import gather

            return gather(image.reader, dst, options)
        return convert_image(image, dst, options)
    finally:
        if mine:
            image.reader.close()


def _is_scene(src: Any, image: LazyArray, dst: Any, options: Options) -> bool:
    """Return whether all images of a source are wanted, as parts of one file."""
    if options.series is not None or image.reader.n_series == 1:
        return False
    if not isinstance(src, (str, os.PathLike, Url)):
        return False  # an open reader stands at one image
    return registry.for_writing(target_of(dst, options, image)).gathers


@contextmanager
def open_source(src: Any, options: Options) -> Iterator[BioReader]:
    """Yield an open reader for all images of a source."""
    image, mine = _opened(src, options, series=None, level=None)
    try:
        yield image.reader
    finally:
        if mine:
            image.reader.close()


def _opened(
    src: Any, options: Options, *, series: int | None, level: int | None
) -> tuple[LazyArray, bool]:
    if options.client is not None or options.shard_job is not None:
        src = _from_anywhere(src)
    return open_input(
        src,
        series=series,
        level=level,
        dims=options.dims,
        backend=options.backend,
        storage_options=_for_source(src, options),
        workers=check_workers(options.workers),
        stack=options.stack,
        fill=options.fill,
        shape=options.shape,
        dtype=options.dtype if options.shape is not None else None,
    )


def convert_image(image: LazyArray, dst: Any, options: Options) -> ConvertReport:
    """Convert an open image: select, decide where it goes, and do it."""
    image = chosen(image, options)
    target = target_of(dst, options, image)
    check_apart(image, target, inside=bool(options.group))
    notes = list(_notes(image))
    if not registry.for_writing(target).gathers:
        notes.extend(left_of_views(image))
    step = step_of(image, options)
    xml = xml_beside(target, options, image.dtype)
    if options.exists == "skip" and is_same(target, step, options):
        report = replace(report_of(image, target, notes), status="skipped")
        return with_xml(report, xml, target, options)
    check_xml(xml, options)
    if options.makes_folder and isinstance(target, Path) and not options.dry_run:
        folder_of(target).mkdir(parents=True, exist_ok=True)
    if options.dry_run:
        from bioio_tk.jobs.plan import planned

        return planned(image, target, options, step, report_of(image, target, notes))
    image = _registered(image, options, step, notes)
    files = files_of(image)
    with shown(options, target.name) as tell:
        options = replace(options, progress=tell)
        if options.client is not None or options.shard_job is not None:
            from bioio_tk.jobs.spread import spread

            report = spread(image, target, options, step)
        else:
            report = one(image, target, options, step)
    now = files_of(image)
    if any(file not in files for file in now):  # one that was removed meanwhile was open still
        notes.append(
            f"{image.reader.path.name!r} was changed while it was read, so pixels of before and "
            "after may be mixed in the new image: convert it again once nobody writes it"
        )
    report = replace(
        report,
        bytes_in=sum(int(file[1]) for file in files),
        bytes_out=sum(map(bytes_on_disk, registry.files_of(target, registry.for_writing(target)))),
        notes=(*notes, *report.notes),
    )
    return with_xml(report, xml, target, options)


def one(
    image: LazyArray,
    target: Location,
    options: Options,
    step: dict[str, Any],
    *,
    backend: str | None = None,
) -> ConvertReport:
    """Convert an image and its labels, in this process."""
    began = time.perf_counter()
    workers = image.reader.max_workers
    budget = None if options.memory is None else options.memory // 2
    journal = _journal(image, target, options, step)
    if journal is not None:
        step = {**step, "when": journal.began}  # all runs write the same
    settings = writer_options(image, target, options, step, backend=backend)
    settings["journal"] = journal
    if registry.for_writing(target, backend).gathers:
        settings["views"] = layout_of_views(image.view().source, [Taken.of(image)])
    notes: list[str] = []
    with ExitStack() as stack:
        found: dict[str, LazyArray] = {}
        if options.labels:
            found = open_labels(image, target, settings, stack, notes)
        total = image.nbytes + sum(labels.nbytes for labels in found.values())
        progress = options.progress
        writer = BioWriter(target, workers, **settings)
        if "views" in settings:
            stages = stage_positions(image.reader.ome_xml or "")
            writer._draft.position = place_of(image, stages)  # noqa: SLF001
        smaller = kept_levels(image) if options.levels == "keep" else []
        if options.levels == "keep":
            writer._keep_levels([view.shape for view in smaller])  # noqa: SLF001
        compared: list[str] = []
        if found:
            told = part_of(progress, image.nbytes, total)

            def add_labels() -> None:
                partial = writer._target.partial  # noqa: SLF001
                copy_labels(found, partial, settings, workers=workers, memory=budget, progress=told)

            writer._target = Filled(writer._target, add_labels)  # noqa: SLF001
        if options.verify != "none":
            writer._target = _compared(writer, image, options, compared)  # noqa: SLF001
        done = transfer(
            image.view(),
            writer,
            workers=workers,
            progress=part_of(progress, 0, total),
            memory=budget,
            sums=PlaneSums(image.spec.shape, writer.dtype),
            smaller=smaller,
        )
    report = report_of(image, target, notes)
    return replace(
        report,
        dtype=writer.dtype.name,
        levels=done.levels,
        seconds=time.perf_counter() - began,
        peak_rss=peak_rss(),
        labels=tuple(found),
        group=options.group,
        checksums=done.checksums,
        verified="".join(compared),
        notes=(*notes, *((done.note,) if done.note else ())),
    )


def kept_levels(image: LazyArray) -> list[View]:
    """Return the smaller levels of a source as they are, with what is selected of T and C.

    Raises
    ------
    SpecError
        A part of the planes is selected: its pixels lie between those of the smaller levels.
    """
    view = image.view()
    levels = view.source.images[view.image].levels[view.level :]
    for pick, size, axis in zip(image.picks[:3], levels[0].shape, "YXZ", strict=False):
        if not isinstance(pick, range) or pick != range(size):
            raise SpecError(
                f"levels='keep' copies whole planes, and a part of {axis} is selected: leave "
                "levels= out, and they are made anew"
            )
    found = []
    for number, level in enumerate(levels[1:], view.level + 1):
        y, x, z = map(range, level.shape[:3])
        found.append(view._replace(level=number, picks=(y, x, z, *image.picks[3:])))
    return found


def _journal(
    image: LazyArray, target: Location, options: Options, step: dict[str, Any]
) -> Journal | None:
    """Return the record with which an interrupted run can be gone on with.

    A small image is sooner begun anew, and one of pixels in memory cannot be compared.
    """
    if isinstance(target, Url) or not (options.resume or image.nbytes >= _JOURNALED):
        return None
    if not step["fingerprint"]:
        return None
    about = {name: value for name, value in step.items() if name not in ("when", "tool")}
    return Journal(target, about, resume=options.resume)


def writer_options(
    image: LazyArray,
    target: Location,
    options: Options,
    step: dict[str, Any],
    *,
    backend: str | None = None,
) -> dict[str, Any]:
    """Return the keywords for `BioWriter`."""
    settings: dict[str, Any] = {name: getattr(options, name) for name in _KEPT}
    if backend is not None:
        settings["backend"] = backend
    pyramid: bool | int | None = options.resolutions
    if pyramid is True and "labels" in options.group.split("/")[:-1]:
        pyramid = None  # as many as the image has
    if pyramid is True and not _sink(target, backend, ome=options.ome).caps.pyramids:
        pyramid = None
    settings["pyramid"] = pyramid
    if options.dtype is not None:
        settings |= {"dtype": options.dtype, "cast": options.casting}
    elif options.cast is not None:
        # a format that holds one type of pixels alone
        settings["dtype"] = (
            getattr(_sink(target, backend, ome=True), "pixel_type", None) or image.dtype
        )
    if not options.ome:
        settings["ome"] = False
    if options.dataset_name is not None:
        settings["dataset_name"] = options.dataset_name
    settings |= carried(image, options, step)
    if image.spec.samples > 1 and registry.for_writing(target, backend).gathers:
        settings |= {"samples_per_pixel": 1, "channel_names": _sample_names(image)}
    return settings


def _sample_names(image: LazyArray) -> list[str | None]:
    """Return names for the samples of colour pixels that become channels."""
    spec = image.spec
    colors = ("red", "green", "blue") if spec.samples == 3 else tuple(map(str, range(spec.samples)))
    names = [channel.name for channel in spec.channels] or [None] * spec.shape[3]
    return [
        f"{name} {colors[n % spec.samples]}" if name else colors[n % spec.samples]
        for n, name in enumerate(names)
    ]


def check_apart(image: LazyArray, target: Location, *, inside: bool = False) -> None:
    """Raise where the target is the source itself, or holds it."""
    made = registry.files_of(target, registry.for_writing(target)) if not inside else (target,)
    for source, new in product(image.reader.used_files, made):
        with suppress(OSError):
            same = source == new
            if isinstance(source, Path) and isinstance(new, Path):
                same = source.samefile(new)
                if not inside and new.resolve() in source.resolve().parents:
                    raise SpecError(
                        f"{str(source)!r} lies inside {str(target)!r}, which would be replaced: "
                        "give the new image another name"
                    )
            if same:
                raise SpecError(
                    f"{str(new)!r} is the source itself: give the new image another name"
                )


def _from_anywhere(src: Any) -> Any:
    """Return paths as they are for a process in another folder."""
    if isinstance(src, (str, os.PathLike)):
        return absolute(locate(src))
    return [_from_anywhere(one) for one in src] if isinstance(src, (list, tuple)) else src


def only_one(count: int, number: int) -> str:
    """Return the note about images that were left out."""
    return f"the source has {count} images; only number {number} was converted"


def _for_source(src: Any, options: Options) -> dict[str, Any] | None:
    """Return the options for the source: a file of this machine takes none."""
    remote = isinstance(src, Url) or (isinstance(src, str) and "://" in src)
    return options.storage_options if remote else None


def _sink(target: Location, backend: str | None, *, ome: bool) -> Any:
    row = registry.for_writing(target, backend)
    return registry.load_sink(row, None if ome else {"ome": False})


def _registered(
    image: LazyArray, options: Options, step: dict[str, Any], notes: list[str]
) -> LazyArray:
    """Return the image, its planes moved where that was asked for; add to `step` by how much.

    Shifts that were found before are carried on, for the planes that are left.
    """
    recorded = shifts_in(image.reader.ome_xml)
    if not options.register_z and recorded is None:
        if options.apply_shifts:
            raise SpecError(
                "apply_shifts=True: the image does not say how far its planes are shifted; give "
                "register_z=True to find out"
            )
        return image
    from bioio_tk.inputs.shifted import with_axial_shifts
    from bioio_tk.jobs.axial import AxialShifts, axial_shifts

    if options.register_z:
        shifts = axial_shifts(
            image,
            max_frames=options.max_frames,
            chunk_frames=options.chunk_frames,
            max_reg_xy=options.max_reg_xy,
        )
        notes += shifts.notes
    else:
        whole = AxialShifts.from_metadata(recorded or {}, image.reader.shape[2])
        shifts = whole.picked(list(image.picks[2]))
    if not options.apply_shifts:
        step |= shifts.to_metadata()
        return image
    step |= {"plane_shifts": [], "plane_shifts_applied": shifts.shifts.tolist()}
    return with_axial_shifts(image, shifts.shifts)


def _compared(writer: BioWriter, image: LazyArray, options: Options, said: list[str]) -> Filled:
    """Return the target of a writer, which compares the new image before it lets it in."""

    def compare() -> None:
        from bioio_tk.jobs.verify import verify_copy

        try:
            report = verify_copy(
                image.view(),
                writer._target.image,  # noqa: SLF001
                mode=options.verify,
                backend=writer._row.name,  # noqa: SLF001
                workers=image.reader.max_workers,
                memory=options.memory,
                cast=options.casting,
            )
        except DamagedFileError:
            if writer.journal is not None:
                writer.journal.resume = False  # what is wrong is not to be gone on with
            raise
        said.append(report.summary)

    return Filled(writer._target, compare)  # noqa: SLF001


def _notes(image: LazyArray) -> tuple[str, ...]:
    reader = image.reader
    notes = list(reader.notes)
    if reader.n_series > 1:
        notes.append(only_one(reader.n_series, reader.series))
    return tuple(notes)


def report_of(image: LazyArray, target: Location, notes: Sequence[str]) -> ConvertReport:
    """Return the report of a conversion that is yet to be done."""
    spec = image.spec
    return ConvertReport(
        source=shown_path(image.reader.path),
        target=str(target),
        series=image.reader.series,
        shape=spec.shape,
        dtype=spec.dtype.name,
        levels=0,
        bytes_in=0,
        bytes_out=0,
        pixel_bytes=image.nbytes,
        seconds=0.0,
        peak_rss=None,
        notes=tuple(notes),
    )
