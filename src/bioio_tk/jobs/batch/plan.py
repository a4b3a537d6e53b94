"""From what a batch is given to its jobs, all checked before the first one begins."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bioio_tk.backends import registry
from bioio_tk.core.location import Location, Url, locate
from bioio_tk.errors import SpecError
from bioio_tk.jobs.batch import find as batch_find
from bioio_tk.jobs.batch.groups import groups
from bioio_tk.jobs.batch.job import SPLIT_FIELDS, Job, fields_of, fill_in, stem
from bioio_tk.jobs.batch.table import SUFFIXES, read_table

if TYPE_CHECKING:
    import inspect


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a batch finds its sources and names its targets; see `batch`.

    Attributes
    ----------
    dst : Path or Url or None
        The folder of the targets; None where every job brings its own.
    pattern : str or None
        File pattern of the sources in the folder.
    depth : float
        How many floors of folders to look in.
    ext : str
        Ending of the targets.
    name : str or None
        Template of their names.
    stack, split : tuple of str
        Axes along which files become one image, or an image becomes files.
    """

    dst: Location | None
    pattern: str | None
    depth: float
    ext: str
    name: str | None
    stack: tuple[str, ...]
    split: tuple[str, ...]


class _Item(NamedTuple):
    """A source, and what is known of it before it is opened."""

    source: str
    values: dict[str, Any]
    inside: Path = Path()
    java: bool | None = None
    target: str | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    where: str = ""
    scanned: bool = False


def axes_of(name: str, given: str | Iterable[str] | None, known: Iterable[str]) -> tuple[str, ...]:
    """Return the axes of ``"t,c,z"``; SpecError for what is none.

    >>> axes_of("stack", "C, z", "tcz"), axes_of("stack", "tc", "tcz"), axes_of("stack", None, "t")
    (('c', 'z'), ('t', 'c'), ())
    """
    if given is None:
        return ()
    known = list(known)
    if isinstance(given, str):
        text = given.lower().replace(" ", "")
        letters = "," not in text and text not in known
        parts = list(text) if letters else text.split(",")
    else:
        parts = [str(part).lower() for part in given]
    for part in parts:
        if part not in known or parts.count(part) > 1:
            raise SpecError(
                f"{name}={given!r}: give each of {', '.join(known)} at most once, separated by "
                "commas"
            )
    return tuple(parts)


def plan(
    src: Any, layout: Layout, options: dict[str, Any], known: dict[str, inspect.Parameter]
) -> list[Job]:
    """Return the jobs.

    Raises
    ------
    SpecError
        Nothing fits, two jobs would write the same file, or a file would replace a source.
    """
    _check(layout)
    items = list(_items(src, layout, known))
    if not items:
        raise SpecError(_nothing(src, layout))
    jobs = [_job(number, item, layout, options) for number, item in enumerate(items)]
    scanned = {item.source for item in items if item.scanned}
    jobs = _without_results(jobs, scanned)
    _check_apart(jobs)
    return [replace(job, number=number) for number, job in enumerate(jobs)]


def _check(layout: Layout) -> None:
    if layout.stack and layout.split:
        raise SpecError("stack= makes one image of many files, split= many files of one: give one")
    registry.for_writing(Path("image" + layout.ext))  # raises for an ending that nothing writes
    if layout.dst is not None and isinstance(layout.dst, Path) and layout.dst.is_file():
        raise SpecError(f"{str(layout.dst)!r} is a file: a batch writes into a folder")
    if layout.name is None:
        return
    given = fields_of(layout.name)
    for axis in layout.split:
        if SPLIT_FIELDS[axis] not in given:
            raise SpecError(
                f"name={layout.name!r} has no field {{{SPLIT_FIELDS[axis]}}}, but the image is "
                f"split by {axis}: every file needs a name of its own"
            )


def _nothing(src: Any, layout: Layout) -> str:
    text = f"there is no image in {str(src)!r}"
    if layout.pattern:
        return f"{text} that fits the pattern {layout.pattern!r}"
    if layout.depth == 1 and isinstance(src, (str, os.PathLike)) and Path(src).is_dir():
        text += "; recursive=True looks into the folders in it, too"
    return text


# -- sources --------------------------------------------------------------------------------------


def _items(src: Any, layout: Layout, known: dict[str, Any]) -> Iterator[_Item]:
    if isinstance(src, (str, os.PathLike, Url)):
        yield from _of_one(src, layout, known)
    elif isinstance(src, Iterable) and not hasattr(src, "dtype"):
        if layout.pattern or layout.stack:
            raise SpecError("pattern= and stack= are for a folder of files, not for a list of them")
        for one in src:
            yield from _of_one(one, layout, known)
    else:
        raise SpecError(
            f"{type(src).__name__} is no source of a batch: give a folder, a list of paths, a glob,"
            " a file pattern or a CSV of jobs; for one image there is convert()"
        )


def _of_one(src: Any, layout: Layout, known: dict[str, Any]) -> Iterator[_Item]:
    place = locate(src)
    if isinstance(place, Url):
        yield _item(str(place), place.name)
        return
    text = str(place)
    if layout.pattern is not None:
        yield from _of_pattern(place, layout.pattern, layout)
    elif "{" in text and not place.exists():
        folder, pattern = _cut(text)
        yield from _of_pattern(folder, pattern, layout)
    elif layout.stack:
        raise SpecError(
            f"stack={','.join(layout.stack)!r} needs a file pattern that says where in a name the "
            "numbers stand, for example pattern='img_t{t:d}_c{c:d}.tif'"
        )
    elif place.suffix.lower() in SUFFIXES and place.is_file():
        yield from _of_table(place, layout, known)
    elif place.is_dir() and not batch_find.is_image_folder(place):
        yield from _of_folder(place, layout)
    elif glob.has_magic(text) and not place.exists():
        for found in sorted(glob.glob(text, recursive=True)):  # noqa: PTH207
            path = Path(found)
            if not path.is_dir() or batch_find.is_image_folder(path):
                yield _item(found, path.name)
    else:
        yield _item(text, place.name)  # one that is not there fails as a job


def _item(source: str, name: str, **more: Any) -> _Item:
    ending = name[len(stem(name)) :].lstrip(".")
    parent = Path(source).parent.name
    values = {"name": stem(name), "suffix": ending, "folder": parent}
    return _Item(source, {**values, **more.pop("values", {})}, **more)


def _of_folder(folder: Path, layout: Layout) -> Iterator[_Item]:
    for found in batch_find.images(folder, layout.depth, _left_out(folder, layout.dst)):
        yield _item(
            str(found.path), found.path.name, inside=found.inside, java=found.java, scanned=True
        )


def _left_out(folder: Path, dst: Any) -> Path | None:
    """Return the folder of the results where it lies in that of the sources."""
    if not isinstance(dst, Path):
        return None
    place = dst.resolve()
    return place if folder.resolve() in place.parents else None


def _of_table(table: Path, layout: Layout, known: dict[str, Any]) -> Iterator[_Item]:
    for row in read_table(table, known):
        if row.target is None and layout.dst is None:
            raise SpecError(f"{row.where}: column 'dst' is empty, and no folder was given either")
        name = locate(row.source).name
        yield _item(row.source, name, target=row.target, options=row.options, where=row.where)


def _cut(text: str) -> tuple[Path, str]:
    """Return the folder of a file pattern, and the rest of it.

    >>> _cut("a/b/sub{z:d}/img_{c}.tif")[1]
    'sub{z:d}/img_{c}.tif'
    """
    parts = Path(text).parts
    first = next(i for i, part in enumerate(parts) if "{" in part)
    return Path(*parts[:first]), "/".join(parts[first:])


def _of_pattern(folder: Path, pattern: str, layout: Layout) -> Iterator[_Item]:
    if not folder.is_dir():
        raise SpecError(f"{str(folder)!r} is no folder: there are no files for {pattern!r} in it")
    depth = max(layout.depth, pattern.count("/") + 1)
    paths = batch_find.files(folder, depth, _left_out(folder, layout.dst))
    for found in groups(folder, pattern, paths, layout.stack):
        inside = Path(found.inside) if layout.depth > 1 else Path()
        yield _item(found.source, found.name, inside=inside, values=found.values, scanned=True)


# -- targets --------------------------------------------------------------------------------------


def _job(number: int, item: _Item, layout: Layout, options: dict[str, Any]) -> Job:
    path = Path(item.source)
    remote = isinstance(locate(item.source), Url)
    java = item.java
    if java is None and not remote:
        seen = batch_find.look(path) if path.exists() else None
        java = seen is not None and seen[0]
    template = _template(number, item, layout)
    split = dict.fromkeys((SPLIT_FIELDS[axis] for axis in layout.split), 0)
    return Job(
        number=number,
        source=item.source,
        target=fill_in(template, split) if layout.split else template,
        options={**options, **item.options},
        split=layout.split,
        template=template if layout.split else "",
        size=0 if remote else batch_find.size_of(path),
        java=bool(java),
    )


def _template(number: int, item: _Item, layout: Layout) -> str:
    """Return the path of the target; where the image is split, with fields for what by."""
    name = (layout.name or "{name}") + ("" if layout.name else _tags(layout.split))
    place = layout.dst if item.target is None else locate(item.target)
    if item.target is not None and _is_image(item.target):
        if not layout.split:
            return item.target
        place, name = locate(item.target).parent, _plain(stem(Path(item.target).name), layout)
        name += _tags(layout.split)
    if place is None:
        raise SpecError(f"{item.source!r}: no target was given")
    values: dict[str, Any] = {k: _plain(v, layout) for k, v in item.values.items()}
    values["number"] = number
    for axis in layout.split:
        field = SPLIT_FIELDS[axis]
        if field in values:
            raise SpecError(f"both the pattern and split= say what {{{field}}} is: rename one")
        values[field] = _Later(field)
    text = fill_in(name, values) + layout.ext
    if isinstance(place, Url):
        return str(place / (item.inside / text).as_posix())
    return str(Path(_plain(str(place / item.inside), layout)) / text)


def _plain(value: Any, layout: Layout) -> Any:
    """Return a value as it must stand in what is a template still."""
    if not layout.split or not isinstance(value, str):
        return value
    return value.replace("{", "{{").replace("}", "}}")


class _Later:
    """Leaves a field in a template as it stands, for the job to fill in."""

    def __init__(self, field: str) -> None:
        self._field = field

    def __format__(self, spec: str) -> str:
        return f"{{{self._field}:{spec}}}" if spec else f"{{{self._field}}}"


def _tags(split: tuple[str, ...]) -> str:
    """Return the end of the default template.

    >>> _tags(("z", "c"))
    '_c{c}_z{z}'
    """
    return "".join(f"_{f}{{{f}}}" for axis, f in SPLIT_FIELDS.items() if axis in split)


def _is_image(target: str) -> bool:
    lower = locate(target).name.lower()
    return any(row.sink and lower.endswith(row.suffixes) for row in registry.rows())


# -- checks ---------------------------------------------------------------------------------------


def _key(path: str) -> str:
    """Return what is equal for equal places; links count as what they lead to."""
    if isinstance(locate(path), Url):
        return path
    return os.path.normcase(os.path.realpath(path))  # a link to itself is no error here


def _without_results(jobs: list[Job], scanned: set[str]) -> list[Job]:
    """Leave out what another job has made in an earlier run into the same folder."""
    made = {_key(job.target): job.source for job in jobs}
    return [
        job
        for job in jobs
        if job.source not in scanned or made.get(_key(job.source), job.source) == job.source
    ]


def _check_apart(jobs: list[Job]) -> None:
    """Refuse what would write over another result or over a source."""
    targets: dict[str, Job] = {}
    for job in jobs:
        key = _key(job.target)
        other = targets.setdefault(key, job)
        if other is not job:
            raise SpecError(
                f"{other.source!r} and {job.source!r} would both become {job.target!r}: give "
                "name= with what tells them apart, for example '{name}_{suffix}'"
            )
    sources = {_key(job.source): job.source for job in jobs}
    for key, job in targets.items():
        if key in sources:
            own = "the source itself" if sources[key] == job.source else "a source, too"
            raise SpecError(
                f"{job.source!r} would become {job.target!r}, which is {own}: give another folder, "
                "ext= or name="
            )
        inside = next((t for t in map(str, Path(key).parents) if t in targets), None)
        if inside is not None:
            raise SpecError(
                f"{job.target!r} would lie inside {targets[inside].target!r}, another result"
            )


def depth_of(recursive: bool, depth: int | None) -> float:
    """Return how many floors of folders to look in."""
    if depth is None:
        return math.inf if recursive else 1
    whole = hasattr(depth, "__index__") and not isinstance(depth, bool)
    if not whole or depth < 1:
        raise SpecError(f"depth={depth!r}: give 1 for the folder itself, 2 for those in it, too, …")
    return depth
