"""Collection: all images of a file, into one OME-Zarr or each into a file of its own."""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.core.location import Location, Url, locate
from bioio_tk.errors import SpecError, TargetExistsError, UnsupportedError
from bioio_tk.jobs.bar import shown
from bioio_tk.jobs.convert import (
    check_apart,
    convert,
    one,
    only_one,
    open_source,
    options_of,
    report_of,
)
from bioio_tk.jobs.options import ALONE
from bioio_tk.jobs.overlay import check_xml, with_xml, xml_beside
from bioio_tk.jobs.record import is_same, step_of
from bioio_tk.jobs.report import bytes_on_disk
from bioio_tk.jobs.select import chosen
from bioio_tk.jobs.tally import Tally
from bioio_tk.lazy import LazyArray
from bioio_tk.reader import BioReader, check_path
from bioio_tk.target import target_for

if TYPE_CHECKING:
    from bioio_tk.core.plate import Plate
    from bioio_tk.engine.copy import Progress
    from bioio_tk.jobs.options import Options
    from bioio_tk.jobs.report import ConvertReport

_NEVER = {
    "roi": "it is another name for one of them",
    "roi_mode": "it says itself which images are taken",
    "finalize": "several processes write one image",
    "ext": "the name of the target says the format",
    "output_name": "{series} in the name of the target is the number of the image",
    "output_suffix": "put it into the name of the target",
}


def convert_series(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], **options: Any
) -> list[ConvertReport]:
    """Convert every image of a file: into one OME-Zarr, or each into a TIFF of its own.

    In a dataset of BigDataViewer they are tiles.

    An OME-Zarr becomes a plate where the source is one, with a field for each image, and else
    has a group for each image (the layout of bioformats2raw); of a single image it is simply
    that image. It appears when all of it is complete; if one image fails, nothing is left.

    Parameters
    ----------
    src : str or Path
        The file.
    dst : str or Path
        The OME-Zarr to make. For TIFF the name of the files: ``{series}`` in it becomes the
        number of the image, and ``_s`` and the number go before the ending where it is not
        there: ``out_s0.ome.tif``. With ``{series}`` OME-Zarrs are made one by one, too.
    **options
        As for `convert`; `progress` counts all images together.

    Returns
    -------
    list of ConvertReport
        One for each.

    Raises
    ------
    TargetExistsError
        Something is at one of the places already; nothing was converted.
    """
    options.pop("series", None)
    inspect.signature(convert).bind(src, dst, **options)  # raises for a keyword it does not have
    target = locate(dst)
    given = options_of(**options)
    _refuse(_NEVER, given)
    for name in ("progress", "progress_callback", "show_progress"):  # told of all together
        options.pop(name, None)
    with shown(given, target.name) as tell:
        return _all(src, dst, options, given, tell)


def _all(
    src: Any, dst: Any, options: dict[str, Any], given: Options, tell: Progress | None
) -> list[ConvertReport]:
    target = locate(dst)
    if registry.for_writing(target).gathers and "{series}" not in target.name:
        return [convert(src, dst, **options, progress=tell)]
    with open_source(src, given) as reader:
        count = reader.n_series
        tally = Tally(tell, count)
        together = registry.for_writing(target).tree and "{series}" not in target.name
        if together and (count > 1 or reader.plate is not None):
            alone = replace(given, told=None, show_progress=False)
            return _convert_collection(reader, target, tally, alone)
    if together:
        return [convert(src, dst, **options, progress=tally.one())]
    targets = [series_path(check_path(dst), number) for number in range(count)]
    if given.exists is None and not given.resume:
        there = next((str(path) for path in targets if path.exists()), None)
        if there:
            raise TargetExistsError(f"{there!r} exists: nothing was converted; see overwrite=True")
    reports = []
    for number, path in enumerate(targets):
        report = convert(src, path, series=number, **options, progress=tally.one())
        notes = tuple(note for note in report.notes if note != only_one(count, number))
        reports.append(replace(report, notes=notes))
    return reports


def _convert_collection(
    reader: BioReader,
    target: Location,
    tally: Tally,
    options: Options,
) -> list[ConvertReport]:
    """Convert all images of a file into one OME-Zarr."""
    _refuse(ALONE, options)
    if options.group:
        raise SpecError(
            f"group={options.group!r} is for one image: all of them make a store of their own"
        )
    if isinstance(target, Url):
        raise UnsupportedError(
            f"{str(target)!r} is a URL, and only single images are written to a server: convert "
            "to a folder here and upload that"
        )
    check_apart(LazyArray(reader), target)
    version = str(options.ngff_version or "0.5")
    row = registry.for_writing(target)
    sink: Any = registry.load_sink(row)
    plate = _plate(reader, version)
    numbers = range(reader.n_series) if plate is None else plate.numbers
    groups = list(map(str, numbers)) if plate is None else list(plate.paths)
    bytes_in = bytes_on_disk(reader.path)
    xml = xml_beside(target, options, reader.dtype)
    if options.exists == "skip" and os.path.lexists(target):
        reports = _skipped(reader, target, dict(zip(numbers, groups, strict=True)), options)
        return [with_xml(reports[0], xml, target, options), *reports[1:]]
    check_xml(xml, options)
    place = target_for(target, row, sink, overwrite=options.overwrite, storage_options={})
    place.open()
    root = Path(str(place.partial))
    reports = []
    try:
        for number, name in zip(numbers, groups, strict=True):
            reader._choose(number, options.level or 0)  # noqa: SLF001 (opening a plate takes its time)
            folder = root / name
            folder.parent.mkdir(parents=True, exist_ok=True)
            image = chosen(LazyArray(reader), options)
            alone = replace(options, progress=tally.one(), exists=None, storage_options=None)
            report = one(image, folder, alone, step_of(image, options), backend="zarr")
            size = bytes_on_disk(folder)
            reports.append(
                replace(report, target=str(target), group=name, bytes_in=bytes_in, bytes_out=size)
            )
        sink.register_all(root, groups, version=version, plate=plate)
    except BaseException:
        place.abort()
        raise
    _commit(place)
    return [with_xml(reports[0], xml, target, options), *reports[1:]]


def _skipped(
    reader: BioReader, target: Path, groups: dict[int, str], options: Options
) -> list[ConvertReport]:
    """Return a report of each image that is there already.

    Raises
    ------
    TargetExistsError
        One is missing, or was made of something else, or in another way.
    """
    reports = []
    for number, name in groups.items():
        reader._choose(number, options.level or 0)  # noqa: SLF001
        image = chosen(LazyArray(reader), options)
        if not is_same(target / name, step_of(image, options), options):
            raise TargetExistsError(
                f"{str(target)!r} exists and has no image {name!r}: it was not skipped; choose "
                "another name, or pass exists='replace'"
            )
        report = report_of(image, target, reader.notes)
        reports.append(replace(report, group=name, status="skipped"))
    return reports


def _commit(place: Any) -> None:
    try:
        place.commit()
    except TargetExistsError:
        place.leave()  # all of it is complete, and the message says where it is
        raise
    except BaseException:
        place.abort()
        raise


def _plate(reader: BioReader, version: str) -> Plate | None:
    """Return the plate to write, without the wells no image was taken in.

    None where there is none, or where some images of the file lie on another, or on none.
    """
    if reader.plate is None or set(reader.plate.numbers) != set(range(reader.n_series)):
        return None
    from bioio_tk.meta import ngff

    plate = replace(reader.plate, wells=tuple(w for w in reader.plate.wells if w.fields))
    ngff.plate_attributes(plate, version)  # raises now, and not after hours, for a bad name
    for well in plate.wells:
        ngff.well_attributes(well, version)
    return plate


def series_path(path: Path, number: int) -> Path:
    """Return the name of the file for one image of several.

    >>> series_path(Path("a/out.ome.tif"), 3).as_posix(), series_path(Path("{series}.tif"), 3).name
    ('a/out_s3.ome.tif', '3.tif')
    """
    if "{series}" in path.name:
        return path.with_name(path.name.replace("{series}", str(number)))
    lower = path.name.lower()
    cut = lower.find(".ome.")
    if cut < 0:
        cut = len(path.name) - len(path.suffix)
    return path.with_name(f"{path.name[:cut]}_s{number}{path.name[cut:]}")


def _refuse(names: dict[str, str], options: Options) -> None:
    """Raise for what is not done with several images at once."""
    for name, why in names.items():
        if getattr(options, name):
            raise UnsupportedError(f"{name}= does not go with all images of a file: {why}")
