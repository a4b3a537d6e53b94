"""Gather: all images of a source into one dataset, each a tile of the scene."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bioio_tk.backends import registry
from bioio_tk.core.location import Url
from bioio_tk.errors import TargetExistsError, UnsupportedError
from bioio_tk.jobs.bar import shown
from bioio_tk.jobs.names import folder_of, target_of
from bioio_tk.jobs.options import ALONE
from bioio_tk.jobs.record import is_same, noted, step_of
from bioio_tk.jobs.regions import together
from bioio_tk.jobs.report import bytes_on_disk, peak_rss
from bioio_tk.jobs.select import chosen
from bioio_tk.jobs.tally import Tally
from bioio_tk.jobs.transfer import transfer
from bioio_tk.jobs.views import Taken, layout_of_views, place_of
from bioio_tk.lazy import LazyArray
from bioio_tk.meta.ome_places import stage_positions
from bioio_tk.target import target_for
from bioio_tk.writer import BioWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bioio_tk.core.location import Location
    from bioio_tk.core.spec import Address, ImageSpec, PhysicalSize
    from bioio_tk.engine.copy import Progress
    from bioio_tk.jobs.options import Options
    from bioio_tk.jobs.report import ConvertReport
    from bioio_tk.reader import BioReader

_MOST_NAMED = 8
_SAME = 1e-6
"""Up to this share sizes of pixels are equal."""


class Member(NamedTuple):
    """One of the images.

    Attributes
    ----------
    number : int
        Which series of the source.
    writer : BioWriter
        Takes its pixels, as soon as it is given a sink.
    taken : Taken
        What is selected of it.
    position : PhysicalSize
        Where it lies, by what the image says or else by where the stage stood.
    """

    number: int
    writer: BioWriter
    taken: Taken
    position: PhysicalSize

    @property
    def spec(self) -> ImageSpec:
        """What is written."""
        spec: ImageSpec = self.writer._spec()  # noqa: SLF001
        return replace(spec, position=self.position)


def gather(reader: BioReader, dst: Any, options: Options) -> ConvertReport:
    """Convert all images of an open file into one dataset.

    Raises
    ------
    UnsupportedError
        An option is for one image at a time; `series` picks one.
    """
    for name, why in ALONE.items():
        if getattr(options, name):
            raise UnsupportedError(
                f"{name}= does not go with all images of a file: {why}; give series="
            )
    for name, alone in (("levels", options.levels == "keep"), ("metadata", _is_whole(options))):
        if alone:
            raise UnsupportedError(
                f"{name}={getattr(options, name)!r:.60} is for one image at a time: give series="
            )
    from bioio_tk.jobs.convert import check_apart

    numbers, notes = _alike(reader)
    first = _image(reader, numbers[0], options)
    target = target_of(dst, options, first)
    if isinstance(target, Url):
        raise UnsupportedError(f"{str(target)!r} is a URL: write the files here and upload them")
    check_apart(first, target)
    step = _step(first, numbers, options)
    if options.exists == "skip" and is_same(target, step, options):
        return replace(_report(first, target), status="skipped", notes=(*reader.notes, *notes))
    if options.makes_folder:
        folder_of(target).mkdir(parents=True, exist_ok=True)
    with shown(options, target.name) as tell:
        reports = _Gathering(reader, target, options, step).run(numbers, tell)
    report = together(reports, target)
    return replace(
        report,
        bytes_in=sum(map(bytes_on_disk, reader.used_files)),
        bytes_out=sum(bytes_on_disk(file) for file in _made(target)),
        notes=(*reader.notes, *notes, f"{len(numbers)} images are the tiles of one dataset"),
        peak_rss=peak_rss(),
    )


class _Gathering:
    """All images on their way into one dataset."""

    def __init__(
        self, reader: BioReader, target: Path, options: Options, step: dict[str, Any]
    ) -> None:
        self._reader = reader
        self._target = target
        self._row = registry.for_writing(target)
        self._options = replace(options, exists=None) if options.exists == "skip" else options
        self._step = step
        self._places = stage_positions(reader.ome_xml or "")

    def run(self, numbers: Sequence[int], tell: Progress | None) -> list[ConvertReport]:
        """Convert them one after the other; nothing is left where one fails."""
        members = [self._member(number) for number in numbers]
        taken = [member.taken for member in members]
        views = layout_of_views(self._reader._source, taken)  # noqa: SLF001
        specs = tuple(member.spec for member in members)
        stored = members[0].writer._store_options()  # noqa: SLF001
        extra = stored.extra if views is None else {**stored.extra, "views": views}
        stored = replace(stored, extra=extra, metadata=self._document(members))
        sink_class: Any = registry.load_sink(self._row)
        sink_class.check(specs, stored)
        place: Any = target_for(
            self._target,
            self._row,
            sink_class,
            overwrite=self._options.overwrite,
            storage_options={},
        )
        place.open()
        try:
            sink = sink_class(place.partial, specs, stored)
            try:
                reports = self._fill(members, sink, Tally(tell, len(members)))
                sink.finish()
            finally:
                sink.close()
            verified = self._compare(members, place.image)
        except BaseException:
            place.abort()
            raise
        _commit(place)
        return [replace(r, verified=v) for r, v in zip(reports, verified, strict=True)]

    def _member(self, number: int) -> Member:
        from bioio_tk.jobs.convert import writer_options

        image = _image(self._reader, number, self._options)
        settings = writer_options(image, self._target, self._options, self._step)
        writer = BioWriter(self._target, self._reader.max_workers, **settings)
        return Member(number, writer, Taken.of(image), place_of(image, self._places))

    def _document(self, members: Sequence[Member]) -> str:
        """Return what is said of the images; where some are left out only how they were made."""
        from bioio_tk.meta import ome

        xml = self._reader.ome_xml
        parts = [member.taken for member in members]
        whole = len(members) == self._reader.n_series and all(part.is_whole for part in parts)
        if xml is None or not whole:
            xml = ome.document([member.spec for member in members])
        return noted(xml, self._options.metadata or {}, self._step)

    def _fill(self, members: Sequence[Member], sink: Any, tally: Tally) -> list[ConvertReport]:
        reports = []
        memory = None if self._options.memory is None else self._options.memory // 2
        for at, member in enumerate(members):
            began = time.perf_counter()
            image = _image(self._reader, member.number, self._options)
            member.writer._enter(_Part(sink, at))  # noqa: SLF001
            done = transfer(
                image.view(),
                member.writer,
                workers=self._reader.max_workers,
                progress=tally.one(),
                memory=memory,
            )
            seconds = time.perf_counter() - began
            report = _report(image, self._target)
            dtype = member.writer.dtype.name
            reports.append(replace(report, dtype=dtype, levels=done.levels, seconds=seconds))
        return reports

    def _compare(self, members: Sequence[Member], path: Path) -> list[str]:
        """Compare what was written with the source, where that was asked for."""
        from bioio_tk.jobs.verify import verify_copy

        if self._options.verify == "none":
            return [""] * len(members)
        said = []
        for at, member in enumerate(members):
            image = _image(self._reader, member.number, self._options)
            report = verify_copy(
                image.view(),
                path,
                mode=self._options.verify,
                backend=self._row.name,
                series=at,
                workers=self._reader.max_workers,
                memory=self._options.memory,
                cast=self._options.casting,
                times=image.spec.shape[4],  # another image may have more
            )
            said.append(report.summary)
        return said


class _Part:
    """One image of a sink of several, as a sink of its own; who made the sink completes it."""

    def __init__(self, sink: Any, image: int) -> None:
        self.caps = sink.caps
        self.images: tuple[ImageSpec, ...] = (sink.images[image],)
        self.factors = sink.factors_of(image)
        self._sink = sink
        self._image = image

    def encode_tile(self, at: Address, tile: NDArray[Any]) -> Any:
        return self._sink.encode_tile(at._replace(image=self._image), tile)

    def store_tile(self, at: Address, encoded: Any) -> None:
        self._sink.store_tile(at._replace(image=self._image), encoded)

    def load_tile(self, at: Address) -> NDArray[Any] | None:
        found: NDArray[Any] | None = self._sink.load_tile(at._replace(image=self._image))
        return found

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def _is_whole(options: Options) -> bool:
    """Return whether the metadata that are given are a whole document, not additions."""
    return options.metadata is not None and not isinstance(options.metadata, dict)


def _image(reader: BioReader, number: int, options: Options) -> LazyArray:
    """Return what is selected of one of the images, which the reader then stands at."""
    reader._choose(number, options.level or 0)  # noqa: SLF001 (opening a large set takes its time)
    return chosen(LazyArray(reader), options)


def _alike(reader: BioReader) -> tuple[list[int], list[str]]:
    """Return the images that are parts of one scene, and what to say of the others.

    The views of a dataset are; of others those with pixels like those of the first: a file may
    hold a picture of the label of the slide, too.
    """
    source = reader._source  # noqa: SLF001
    everything = range(len(source.images))
    if hasattr(source, "views"):
        return list(everything), []
    first = source.images[0]
    numbers = [n for n in everything if _same_pixels(first, source.images[n])]
    others = [str(n) for n in everything if n not in numbers]
    if not others:
        return numbers, []
    named = ", ".join(others[:_MOST_NAMED]) + (" …" if len(others) > _MOST_NAMED else "")
    note = (
        f"series {named} have pixels of another type or size, or other channels, than the first, "
        "and were left out: convert them alone with series="
    )
    return numbers, [note]


def _same_pixels(one: ImageSpec, other: ImageSpec) -> bool:
    sizes = zip(one.physical_size, other.physical_size, strict=True)
    return (
        one.dtype == other.dtype
        and (one.shape[3], one.samples) == (other.shape[3], other.samples)
        and all(
            a == b or (a and b and a[1] == b[1] and math.isclose(a[0], b[0], rel_tol=_SAME))
            for a, b in sizes
        )
    )


def _step(image: LazyArray, numbers: Sequence[int], options: Options) -> dict[str, Any]:
    """Return what is written about how the dataset is made; see `step_of`."""
    step = step_of(image, options)
    selection = step["selection"].removeprefix(f"series {image.reader.series}").strip()
    step["selection"] = f"{len(numbers)} series {selection}".strip()
    if step["fingerprint"]:
        text = f"{step['fingerprint']} {step['selection']}"
        step["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
    return step


def _report(image: LazyArray, target: Location) -> ConvertReport:
    from bioio_tk.jobs.convert import report_of

    return report_of(image, target, ())


def _made(target: Path) -> Sequence[Location]:
    return registry.files_of(target, registry.for_writing(target))


def _commit(place: Any) -> None:
    try:
        place.commit()
    except TargetExistsError:
        place.leave()  # all of it is complete, and the message says where it is
        raise
    except BaseException:
        place.abort()
        raise
