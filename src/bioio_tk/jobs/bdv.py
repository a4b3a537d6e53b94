"""BigDataViewer datasets of any writer: which views are missing, and where the others lie."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.bdv.description import calibrated
from bioio_tk.core.location import locate
from bioio_tk.core.text import plural
from bioio_tk.core.views import ATTRIBUTES, ViewId, ViewTransform, joined
from bioio_tk.errors import SpecError, UnsupportedError
from bioio_tk.meta.bdv import ZARR, SpimDocument, loader_path
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from bioio_tk.core.views import ViewSetup
    from bioio_tk.meta.bdv import SpimData

HDF5_ENDINGS = (".h5", ".hdf5", ".hdf")
_MOST_NAMED = 8
UNNAMED = "manually defined"
"""What a transform is called that nobody has given a name, as in npy2bdv."""


class Report:
    """What the reports about datasets have in common."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)


def local_file(path: str | os.PathLike[str]) -> Path:
    """Return a file of this machine that is there.

    Raises
    ------
    FileNotFoundError
        There is none.
    UnsupportedError
        It is on a server.
    """
    place = locate(path)
    if not isinstance(place, Path):
        raise UnsupportedError(
            f"{place.shown!r} is a URL: only datasets of this machine are changed"
        )
    if not place.exists():
        raise FileNotFoundError(f"there is no file {str(place)!r}")
    return place


def xml_of(path: str | os.PathLike[str]) -> Path:
    """Return the XML of a dataset, also where its HDF5 file was given.

    Raises
    ------
    FileNotFoundError, UnsupportedError
        As `local_file`; or there is none beside the HDF5 file.
    """
    place = local_file(path)
    if not place.name.lower().endswith(HDF5_ENDINGS):
        return place
    xml = place.with_suffix(".xml")
    if not xml.exists():
        raise FileNotFoundError(
            f"there is no XML beside {str(place)!r}, which says what its views are: give the XML"
        )
    return xml


# ------------------------------------------------------------------ missing views


@dataclass(frozen=True, slots=True)
class MissingReport(Report):
    """What is missing in a dataset.

    Attributes
    ----------
    path : str
        The XML.
    views : int
        How many there are in all: time points times view setups.
    listed : tuple of ViewId
        Missing, as the XML says.
    absent : tuple of ViewId
        Without pixels, though the XML does not say so.
    unregistered : tuple of ViewId
        With pixels, but without a place in the world: BigDataViewer does not open the dataset.
    fixed : bool
        The XML says so now, and those without a place have got one.
    notes : tuple of str
        What else is wrong, as `BioReader.notes`.
    """

    path: str
    views: int
    listed: tuple[ViewId, ...]
    absent: tuple[ViewId, ...]
    unregistered: tuple[ViewId, ...]
    fixed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the XML says what is there."""
        return self.fixed or not (self.absent or self.unregistered)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        found = Report.to_dict(self)
        for name in ("listed", "absent", "unregistered"):
            found[name] = [view._asdict() for view in getattr(self, name)]
        return {**found, "ok": self.ok}


def missing_views(path: str | os.PathLike[str], *, fix: bool = False) -> MissingReport:
    """Return which views of a dataset are missing, and whether its XML says so.

    Parameters
    ----------
    path : str or Path
        The XML, of any writer, or the HDF5 file.
    fix : bool
        Write into the XML what it does not say: the views without pixels, and for those without a
        place one by their voxel size. What it was before becomes ``X.xml~1``.

    Raises
    ------
    FormatError
        It is no such XML, or a damaged one.
    """
    xml = xml_of(path)
    document = SpimDocument.open(xml)
    data = document.data
    every = [ViewId(time, setup) for time in data.times for setup in data.setups]
    with BioReader(xml, backend="bdv") as reader:
        there = {ViewId(v.time, v.setup) for v in reader.views if not v.missing}
        notes = tuple(reader.notes)
    there -= _without_folder(data, xml)
    absent = tuple(v for v in every if v not in there and v not in data.missing)
    lost = tuple(v for v in every if v in there and v not in data.transforms)
    if fix and (absent or lost):
        for view in absent:
            document.add_missing(view)
        for view in lost:
            document.insert_transform(view, _by_size(data.setups[view.setup]))
        document.save()
    return MissingReport(
        str(xml), len(every), tuple(sorted(data.missing - {*absent})), absent, lost, fix, notes
    )


def _without_folder(data: SpimData, xml: Path) -> set[ViewId]:
    """Return the views whose OME-Zarr image is gone."""
    if data.loader.format != ZARR:
        return set()
    folder = loader_path(data, xml)
    paths = {image.path for image in data.loader.images.values()}
    gone = {path for path in paths if not (folder / path).is_dir()}
    return {view for view, image in data.loader.images.items() if image.path in gone}


def _by_size(setup: ViewSetup) -> ViewTransform:
    """Return the transform that makes the voxels of a setup cubes."""
    (transform,) = calibrated("auto", setup.voxel_size or (1.0, 1.0, 1.0))
    return transform


# ------------------------------------------------------------------ transforms


@dataclass(frozen=True, slots=True)
class ViewPlace:
    """Where one view lies.

    Attributes
    ----------
    time, setup : int
        Which view.
    name : str
        Of its setup.
    attributes : dict of str to str
        Names of its channel, tile, …
    transforms : tuple of ViewTransform
        From its pixels to the world; the last one is applied first.
    affine : list
        All of them together: 3 rows of 4 numbers.
    """

    time: int
    setup: int
    name: str
    attributes: dict[str, str]
    transforms: tuple[ViewTransform, ...]
    affine: list[list[float]]


@dataclass(frozen=True, slots=True)
class TransformReport(Report):
    """Where views lie, after what was changed.

    Attributes
    ----------
    path : str
        The XML.
    views : tuple of ViewPlace
        Those that were asked for.
    changed : int
        How many of them have got or lost a transform.
    """

    path: str
    views: tuple[ViewPlace, ...]
    changed: int = 0


def view_transforms(path: str | os.PathLike[str], **select: Any) -> TransformReport:
    """Return where the views of a dataset lie; which of them, see `transform_views`."""
    xml = xml_of(path)
    data = SpimDocument.open(xml).data
    return TransformReport(str(xml), _places(data, _selected(data, select)))


def transform_views(  # noqa: PLR0913 (a face: every option by its name)
    path: str | os.PathLike[str],
    *,
    affine: Any = None,
    translate: Sequence[float] | None = None,
    scale: Sequence[float] | float | None = None,
    remove: str | int | None = None,
    name: str | None = None,
    time: Any = None,
    setup: Any = None,
    channel: Any = None,
    tile: Any = None,
    angle: Any = None,
    illumination: Any = None,
) -> TransformReport:
    """Move, scale or transform views in the world, or take such a transform away.

    The new transform is applied after all others, as BigStitcher does it; no pixel is changed.
    What the XML was before becomes ``X.xml~1``.

    Parameters
    ----------
    path : str or Path
        The XML, of any writer, or the HDF5 file.
    affine : array of shape (3, 4)
        Linear part and translation along X, Y, Z, in the units of the world.
    translate : (float, float, float)
        How far along X, Y, Z.
    scale : (float, float, float) or float
        How much along X, Y, Z, from the origin of the world.
    remove : str or int
        Take away the transform of this name, the first one where there are several, or the one
        at this place: 0 is applied last.
    name : str, optional
        What the new one is called.
    time, setup, channel, tile, angle, illumination : int or sequence of int, optional
        Which views, by their ids; all that are there by default.

    Returns
    -------
    TransformReport
        Where these views lie now.

    Raises
    ------
    SpecError
        No view is selected, or has such a transform; or it is none. Nothing is changed.
    """
    which = {"time": time, "setup": setup, "channel": channel, "tile": tile}
    which |= {"angle": angle, "illumination": illumination}
    new = _new(affine=affine, translate=translate, scale=scale, name=name, remove=remove)
    xml = xml_of(path)
    document = SpimDocument.open(xml)
    views = _selected(document.data, which)
    if new is None:
        found = _found(document.data, views, remove)
        for view, index in found.items():
            document.remove_transform(view, index)
    else:
        found = dict.fromkeys(views, 0)
        for view in views:
            document.insert_transform(view, new)
    document.save()
    return TransformReport(str(xml), _places(document.data, views), len(found))


def _new(
    *, affine: Any, translate: Any, scale: Any, name: str | None, remove: Any
) -> ViewTransform | None:
    """Return the transform that was given, None to remove one."""
    given = {"affine": affine, "translate": translate, "scale": scale, "remove": remove}
    kinds = [kind for kind, value in given.items() if value is not None]
    if len(kinds) != 1:
        raise SpecError(
            f"{' and '.join(kinds) or 'nothing'} was given: give one of affine=, translate=, "
            "scale= and remove="
        )
    if remove is not None:
        if name is not None:
            raise SpecError("name= is for a new transform: give the one to take away as remove=")
        return None
    matrix = affine
    if translate is not None:
        matrix = np.hstack([np.eye(3), _three("translate", translate)[:, None]])
    elif scale is not None:
        factors = _three("scale", np.repeat(scale, 3) if np.ndim(scale) == 0 else scale)
        matrix = np.hstack([np.diag(factors), np.zeros((3, 1))])
    try:
        new = ViewTransform.of(matrix, UNNAMED if name is None else name)
    except (ValueError, TypeError) as exc:
        raise SpecError(f"{kinds[0]}=: {exc}") from exc
    if abs(np.linalg.det(new.array[:, :3])) < np.finfo(float).tiny:
        raise SpecError(f"{kinds[0]}={given[kinds[0]]!r:.80}: it makes the views flat")
    return new


def _three(what: str, value: Any) -> Any:
    try:
        found = np.asarray(value, float)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (3,) or not np.isfinite(found).all():
        raise SpecError(f"{what}={value!r:.80}: give three numbers along X, Y, Z")
    return found


def _selected(data: SpimData, which: Mapping[str, Any]) -> list[ViewId]:
    """Return the views that are picked and not missing."""
    wanted = {kind: _ids(kind, value) for kind, value in which.items() if value is not None}
    there = [
        ViewId(time, setup)
        for time in data.times
        for setup in sorted(data.setups)
        if ViewId(time, setup) not in data.missing
    ]
    for kind, ids in wanted.items():
        if kind not in ("time", "setup", *ATTRIBUTES):
            raise TypeError(f"there is no keyword {kind!r}")
        known = {_id_of(data, view, kind) for view in there}
        lost = sorted(ids - known)
        if lost:
            raise SpecError(f"{kind}={lost[0]}: there is no such view; {_known(kind, known)}")
    found = [v for v in there if all(_id_of(data, v, k) in ids for k, ids in wanted.items())]
    if not found:
        said = ", ".join(f"{kind}={value}" for kind, value in which.items() if value is not None)
        raise SpecError(f"{said or 'the dataset'}: no view is left")
    return found


def _known(kind: str, known: set[int]) -> str:
    ids = ", ".join(map(str, sorted(known)[:_MOST_NAMED]))
    more = f" … (of {len(known)})" if len(known) > _MOST_NAMED else ""
    return f"there are those of {kind} {ids}{more}"


def _ids(kind: str, value: Any) -> set[int]:
    several = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    try:
        return {operator.index(one) for one in several}
    except TypeError:
        raise SpecError(f"{kind}={value!r:.60}: give a whole number, or several") from None


def _id_of(data: SpimData, view: ViewId, kind: str) -> int:
    if kind == "time":
        return view.time
    if kind == "setup":
        return view.setup
    return data.setups[view.setup].attributes.get(kind, 0)


def _found(data: SpimData, views: list[ViewId], what: Any) -> dict[ViewId, int]:
    """Return the place of the transform to take away, of the views that have it."""
    found = {}
    for view in views:
        known = data.transforms.get(view, ())
        if isinstance(what, str):
            names = [one.name for one in known]
            if what in names:
                found[view] = names.index(what)
        elif 0 <= operator.index(what) < len(known):
            found[view] = operator.index(what)
    if not found:
        names = sorted({one.name for view in views for one in data.transforms.get(view, ())})
        listed = ", ".join(map(repr, names[:_MOST_NAMED])) or "none"
        raise SpecError(
            f"remove={what!r}: none of {plural(len(views), 'view')} has it; there are: {listed}"
        )
    return found


def _places(data: SpimData, views: Sequence[ViewId]) -> tuple[ViewPlace, ...]:
    return tuple(_all_places(data, views))


def _all_places(data: SpimData, views: Sequence[ViewId]) -> Iterator[ViewPlace]:
    for view in views:
        setup = data.setups[view.setup]
        names = {}
        for kind, number in setup.attributes.items():
            attribute = data.attributes.get(kind, {}).get(number)
            names[kind] = (attribute.name if attribute else "") or str(number)
        known = data.transforms.get(view, ())
        yield ViewPlace(view.time, view.setup, setup.name, names, known, joined(known).tolist())
