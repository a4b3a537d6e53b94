"""Convert: any image that can be read into a file that can be written, in bounded memory."""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.core.location import Location, Url, locate
from bioio_tk.engine.copy import View, copy
from bioio_tk.engine.pool import check_workers
from bioio_tk.errors import SpecError, TargetExistsError, UnsupportedError
from bioio_tk.reader import BioReader, check_path
from bioio_tk.target import target_for
from bioio_tk.writer import BioWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bioio_tk.core.plate import Plate
    from bioio_tk.core.region import Shape5
    from bioio_tk.engine.copy import Progress

_FOR_LABELS = (
    "compression",
    "compression_level",
    "tile_size",
    "ngff_version",
    "chunks",
    "shards",
    "pyramid_z",
)


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did.

    Attributes
    ----------
    source, target : str
        The two files.
    series : int
        Which image of the source, from 0.
    shape : tuple of 5 int
        Size along Y, X, Z, C, T.
    dtype : str
        Pixel type of the target.
    levels : int
        Resolutions of the target.
    bytes_in, bytes_out : int
        Size of the two files on disk.
    pixel_bytes : int
        Size of the pixels read, uncompressed.
    seconds : float
        Time it took.
    peak_rss : int or None
        Most memory this process has ever held, in bytes; None where the system does not say.
    notes : tuple of str
        What is worth knowing about the source and what became of it.
    group : str
        Where in the target the image lies: ``"1"``, ``"A/1/0"``; "" for the target itself.
    labels : tuple of str
        Names of the label images that were copied with it.
    """

    source: str
    target: str
    series: int
    shape: Shape5
    dtype: str
    levels: int
    bytes_in: int
    bytes_out: int
    pixel_bytes: int
    seconds: float
    peak_rss: int | None
    notes: tuple[str, ...]
    group: str = ""
    labels: tuple[str, ...] = ()

    @property
    def speed(self) -> float:
        """Bytes of pixels per second."""
        return self.pixel_bytes / max(self.seconds, 1e-9)

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False)


def convert(  # noqa: PLR0913 (a face: every option by its name)
    src: str | os.PathLike[str] | BioReader,
    dst: str | os.PathLike[str],
    *,
    series: int | None = None,
    level: int | None = None,
    compression: str | None = None,
    compression_level: int | None = None,
    predictor: bool | None = None,
    tile_size: int | tuple[int, int] = 1024,
    pyramid: bool | int = True,
    downsample: str | None = None,
    dtype: Any = None,
    cast: str | None = None,
    overwrite: bool = False,
    ngff_version: str | None = None,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | bool | None = None,
    pyramid_z: bool = False,
    group: str = "",
    labels: bool = True,
    storage_options: dict[str, Any] | None = None,
    max_workers: int | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert an image of any size, with its metadata, tile by tile.

    Memory is bounded by the number of workers times the size of a tile, and for a source of
    compressed strips by a band of the image as high as a tile. If it fails or is interrupted,
    what was at `dst` before stays as it was, and nothing is left beside it.

    Parameters
    ----------
    src : str, Path or BioReader
        The image. Of an open reader the series and level that are open are converted.
    dst : str or Path
        The file to make; its ending says the format.
    series, level : int, optional
        Which image of the file, and which of its resolutions; the first and largest by default.
    compression, compression_level, predictor, tile_size, overwrite
        As for `BioWriter`.
    downsample : str, optional
        As for `BioWriter`; ``"mean"`` by default, and ``"mode"`` for labels.
    ngff_version, chunks, shards, pyramid_z, group
        As for `BioWriter`, for OME-Zarr.
    labels : bool
        Copy the label images of the source, too, where both sides are OME-Zarr: with their
        colours and properties, and as many resolutions as the image has, by ``"mode"``
        (``"nearest"`` where `downsample` says so).
    storage_options : dict, optional
        For URLs, of `src` as of `dst`: what fsspec passes to the file system.
    pyramid : bool or int
        True (the default) adds smaller resolutions until a plane fits into 256 pixels, where the
        format has any; a number is that of all resolutions. Labels that are added to an image get
        as many as it has.
    dtype : str or numpy.dtype, optional
        Pixel type to convert to, that of the source by default.
    cast : str, optional
        How: ``"exact"`` (the default: an error where a value does not fit), ``"clip"``,
        ``"scale"`` or ``"wrap"``.
    max_workers : int, optional
        Threads, by default one per CPU this process may use.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes, one call at a time, not always from the
        same thread; the last call has ``done == total``. What it raises ends the conversion.

    Returns
    -------
    ConvertReport
        What was done.

    Examples
    --------
    >>> from bioio_tk import convert
    >>> report = convert("cells.tif", "cells.ome.tif", compression="zstd")  # doctest: +SKIP
    """
    workers = check_workers(max_workers)
    target = locate(dst)
    options = _writer_options(
        compression=compression,
        compression_level=compression_level,
        predictor=predictor,
        tile_size=tile_size,
        pyramid=pyramid,
        downsample=downsample,
        dtype=dtype,
        cast=cast,
        overwrite=overwrite,
        ngff_version=ngff_version,
        chunks=chunks,
        shards=shards,
        pyramid_z=pyramid_z,
        group=group,
        storage_options=storage_options,
    )
    reader, mine = _open(src, series, level, workers, storage_options)
    try:
        _check_apart(reader.path, target, inside=bool(group))
        report = _convert(reader, target, options, labels=labels, progress=progress)
        return replace(
            report,
            bytes_in=bytes_on_disk(reader.path),
            bytes_out=bytes_on_disk(target),
            notes=(*_notes(reader), *report.notes),
        )
    finally:
        if mine:
            reader.close()


def convert_series(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], **options: Any
) -> list[ConvertReport]:
    """Convert every image of a file: into one OME-Zarr, or each into a TIFF of its own.

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
    workers = check_workers(options.get("max_workers"))
    remote = _remote_only(src, options.get("storage_options"))
    with BioReader(src, workers, storage_options=remote) as reader:
        count = reader.n_series
        tally = _Tally(options.pop("progress", None), count)
        together = registry.for_writing(target).marks and "{series}" not in target.name
        if together and (count > 1 or reader.plate is not None):
            return _convert_collection(reader, target, tally, **options)
    if together:
        return [convert(src, dst, **options, progress=tally.one())]
    targets = [series_path(check_path(dst), number) for number in range(count)]
    if not options.get("overwrite"):
        there = next((str(path) for path in targets if path.exists()), None)
        if there:
            raise TargetExistsError(f"{there!r} exists: nothing was converted; see overwrite=True")
    reports = []
    for number, path in enumerate(targets):
        report = convert(src, path, series=number, **options, progress=tally.one())
        notes = tuple(note for note in report.notes if note != _only_one(count, number))
        reports.append(replace(report, notes=notes))
    return reports


def _convert_collection(
    reader: BioReader,
    target: Location,
    tally: _Tally,
    *,
    level: int | None = None,
    labels: bool = True,
    overwrite: bool = False,
    **given: Any,
) -> list[ConvertReport]:
    """Convert all images of a file into one OME-Zarr."""
    if given.get("group"):
        raise SpecError(
            f"group={given['group']!r} is for one image: all of them make a store of their own"
        )
    if isinstance(target, Url):
        raise UnsupportedError(
            f"{str(target)!r} is a URL, and only single images are written to a server: convert "
            "to a folder here and upload that"
        )
    _check_apart(reader.path, target)
    more = {k: v for k, v in given.items() if k not in ("max_workers", "storage_options")}
    options = _writer_options(**more, backend="zarr")
    version = str(given.get("ngff_version") or "0.5")
    row = registry.for_writing(target)
    sink: Any = registry.load_sink(row)
    plate = _plate(reader, version)
    numbers = range(reader.n_series) if plate is None else plate.numbers
    groups = list(map(str, numbers)) if plate is None else list(plate.paths)
    bytes_in = bytes_on_disk(reader.path)
    place = target_for(target, row, sink, overwrite=overwrite, storage_options={})
    place.open()
    root = Path(str(place.partial))
    reports = []
    try:
        for number, name in zip(numbers, groups, strict=True):
            reader._choose(number, level or 0)  # noqa: SLF001 (opening a plate takes its time)
            folder = root / name
            folder.parent.mkdir(parents=True, exist_ok=True)
            report = _convert(reader, folder, options, labels=labels, progress=tally.one())
            size = bytes_on_disk(folder)
            reports.append(
                replace(report, target=str(target), group=name, bytes_in=bytes_in, bytes_out=size)
            )
        sink.register_all(root, groups, version=version, plate=plate)
    except BaseException:
        place.abort()
        raise
    _commit(place)
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


def bytes_on_disk(location: Location) -> int:
    """Return the size of a file, or of all files in a folder; 0 for what is on a server."""
    if isinstance(location, Url):
        return 0
    if not location.is_dir():
        return location.stat().st_size
    return sum(file_sizes(location))


def file_sizes(folder: Path) -> Iterator[int]:
    """Yield the size of each file under a folder."""
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                yield os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 (there are many)


def peak_rss() -> int | None:
    """Return the most memory this process has held so far in bytes, None where unknown."""
    try:
        # Linux: what getrusage says there includes the process that started this one
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) if sys.platform == "darwin" else int(most) * 1024


def _open(
    src: Any,
    series: int | None,
    level: int | None,
    workers: int,
    storage_options: dict[str, Any] | None,
) -> tuple[BioReader, bool]:
    """Return a reader, and whether it is ours to close."""
    if not isinstance(src, BioReader):
        options = _remote_only(src, storage_options)
        reader = BioReader(
            src, workers, series=series or 0, level=level or 0, storage_options=options
        )
        return reader, True
    if (series is not None and series != src.series) or (level is not None and level != src.level):
        raise SpecError(
            f"the reader has series {src.series}, level {src.level} open: open another one for "
            f"series={series}, level={level}, or give the path"
        )
    return src, False


def _remote_only(src: Any, storage_options: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the options for the source: a file of this machine takes none."""
    return storage_options if isinstance(locate(src), Url) else None


def _check_apart(source: Location, target: Location, *, inside: bool = False) -> None:
    with suppress(OSError):
        same = source == target
        if isinstance(source, Path) and isinstance(target, Path):
            same = source.samefile(target)
            if not inside and target.resolve() in source.resolve().parents:
                raise SpecError(
                    f"{str(source)!r} lies inside {str(target)!r}, which would be replaced: give "
                    "the new image another name"
                )
        if same:
            raise SpecError(
                f"{str(target)!r} is the source itself: give the new image another name"
            )


def _writer_options(
    *,
    pyramid: bool | int | None = True,
    dtype: Any = None,
    cast: str | None = None,
    group: str = "",
    **more: Any,
) -> dict[str, Any]:
    """Return the keywords for `BioWriter`."""
    if pyramid is True and "labels" in group.split("/")[:-1]:
        pyramid = None  # as many as the image has
    options = {"pyramid": pyramid, "cast": cast, "group": group, **more}
    if dtype is not None:
        options.update(dtype=dtype, cast=cast or "exact")
    return options


def _convert(
    reader: BioReader,
    target: Location,
    options: dict[str, Any],
    *,
    labels: bool,
    progress: Progress | None,
) -> ConvertReport:
    """Convert the open image and its labels."""
    began = time.perf_counter()
    workers = reader.max_workers
    nbytes = _pixel_bytes(reader)
    if options["pyramid"] is True and not _may_have_levels(target, options.get("backend")):
        options = {**options, "pyramid": None}
    with ExitStack() as stack:
        found: dict[str, BioReader] = {}
        notes: list[str] = []
        if labels:
            found = _labels(reader, target, options, stack, notes)
        total = nbytes + sum(map(_pixel_bytes, found.values()))
        writer = BioWriter(target, workers, like=reader, **options)
        if found:
            told = _part(progress, nbytes, total)

            def add_labels() -> None:
                _copy_labels(found, writer._target.partial, options, workers, told)  # noqa: SLF001

            writer._target = _Filled(writer._target, add_labels)  # noqa: SLF001
        levels = _pump(reader, writer, workers, _part(progress, 0, total))
    return ConvertReport(
        source=str(reader.path),
        target=str(target),
        series=reader.series,
        shape=reader.shape,
        dtype=writer.dtype.name,
        levels=levels,
        bytes_in=0,
        bytes_out=0,
        pixel_bytes=nbytes,
        seconds=time.perf_counter() - began,
        peak_rss=peak_rss(),
        notes=tuple(notes),
        group=str(options.get("group") or ""),
        labels=tuple(found),
    )


def _may_have_levels(target: Location, backend: str | None) -> bool:
    sink: Any = registry.load_sink(registry.for_writing(target, backend))
    return bool(sink.caps.pyramids)


def _pixel_bytes(reader: BioReader) -> int:
    return math.prod(reader.shape) * reader.dtype.itemsize


class _Tally:
    """Tells of several images as of one task.

    How large all are is only known at the last one: opening thousands of fields just to add their
    sizes up would take longer than a small plate. Until then those to come count as the present.
    """

    def __init__(self, progress: Progress | None, count: int) -> None:
        self._progress = progress
        self._left = count
        self._before = self._size = 0

    def one(self) -> Progress | None:
        """Return what to call for the next image."""
        self._before += self._size
        self._size = 0
        self._left -= 1
        progress = self._progress
        if progress is None:
            return None

        def tell(done: int, total: int) -> None:
            self._size = total
            progress(self._before + done, self._before + total * (1 + self._left))

        return tell


def _part(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Return what to call for a part of a task of which so many bytes are done before."""
    if progress is None:
        return None

    def tell(done: int, _: int) -> None:
        progress(before + done, total)

    return tell


# -- labels ---------------------------------------------------------------------------------------


class _Filled:
    """A target into which something more is put before it goes to its place."""

    def __init__(self, target: Any, fill: Callable[[], None]) -> None:
        self._target = target
        self._fill = fill

    def commit(self) -> None:
        self._fill()
        self._target.commit()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def _labels(
    reader: BioReader,
    target: Location,
    options: dict[str, Any],
    stack: ExitStack,
    notes: list[str],
) -> dict[str, BioReader]:
    """Return the label images to copy, open; add what is left out to the notes."""
    names = list(reader.labels)
    if not names:
        return {}
    row = registry.for_writing(target, options.get("backend"))
    if not row.marks or isinstance(target, Url):
        why = "only OME-Zarr keeps them" if not row.marks else "they cannot be sent to a server"
        notes.append(f"labels were not copied ({', '.join(names)}): {why}")
        return {}
    found = {}
    for name in names:
        labels = stack.enter_context(reader.labels[name])
        why = _unfit(name, labels, reader.level)
        if why:
            notes.append(f"labels {name!r} were not copied: {why}")
            continue
        labels._choose(0, reader.level)  # noqa: SLF001
        found[name] = labels
    return found


def _unfit(name: str, labels: BioReader, level: int) -> str:
    """Return why labels cannot be copied, "" where they can."""
    if labels.dtype.kind not in "iub":
        return f"labels are whole numbers, and these are {labels.dtype}"
    if labels.levels <= level:
        return f"they have no level {level}"
    return "" if "/" not in name and not name.startswith(".") else "their name fits no folder"


def _copy_labels(
    found: dict[str, BioReader],
    image: Path,
    options: dict[str, Any],
    workers: int,
    progress: Progress | None,
) -> None:
    """Add labels to an image that is complete but for them."""
    shared = {name: options[name] for name in _FOR_LABELS if name in options}
    method = "nearest" if options.get("downsample") == "nearest" else "mode"
    before = 0

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(before + done, total)

    for name, labels in found.items():
        writer = BioWriter(
            image,
            workers,
            "zarr",
            like=labels,
            downsample=method,
            group=f"labels/{name}",
            label=_colors_and_properties(labels),
            **shared,
        )
        _pump(labels, writer, workers, tell)
        before += _pixel_bytes(labels)


def _colors_and_properties(labels: BioReader) -> dict[str, Any]:
    """Return what an OME-Zarr says of single labels, as `BioWriter` takes it."""
    from bioio_tk.backends._zarr_tree import Tree, open_store
    from bioio_tk.meta import ngff

    place = registry.resolve(labels.path, labels._choice.backend)  # noqa: SLF001
    store, root = open_store(place, labels._options)  # noqa: SLF001
    try:
        node = Tree(store).node(root)
        attributes = {} if node is None else node.attributes
        said = ngff.read_group(attributes, store.where(root)).image_label or {}
    finally:
        store.close()
    found: dict[str, Any] = {"colors": {}, "properties": {}}
    for key, entries in found.items():
        given = said.get(key)
        for entry in given if isinstance(given, list) else ():
            value = entry.get("label-value") if isinstance(entry, dict) else None
            if not isinstance(value, int):
                continue
            if key == "properties":
                entries[value] = {k: v for k, v in entry.items() if k != "label-value"}
            elif isinstance(entry.get("rgba"), list) and _is_rgba(entry["rgba"]):
                entries[value] = tuple(entry["rgba"])
    return found


def _is_rgba(values: list[Any]) -> bool:
    return len(values) == 4 and all(isinstance(v, int) and 0 <= v <= 255 for v in values)


def _pump(reader: BioReader, writer: BioWriter, workers: int, progress: Progress | None) -> int:
    """Copy all pixels, close the writer and return how many levels it has."""
    spec = writer._spec()  # noqa: SLF001
    try:
        copy(
            # the engine works on tiles, which have no public door
            View.whole(reader._source, reader.series, reader.level),  # noqa: SLF001
            writer.__setitem__,
            spec.levels[0].tile,
            workers=workers,
            progress=progress,
        )
    except BaseException:
        writer.abort()
        raise
    try:
        writer.close()
    except TargetExistsError:
        raise  # the new image is complete, and the message says where it is
    except BaseException:
        writer.abort()
        writer.discard()
        raise
    return len(spec.levels)


def _notes(reader: BioReader) -> tuple[str, ...]:
    notes = list(reader.notes)
    if reader.n_series > 1:
        notes.append(_only_one(reader.n_series, reader.series))
    return tuple(notes)


def _only_one(count: int, number: int) -> str:
    return f"the source has {count} images; only number {number} was converted"
