"""The XML of BigDataViewer laid over OME-Zarr images: BigStitcher opens them where they are."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends import registry
from bioio_tk.bdv.description import CALIBRATION, PIXEL
from bioio_tk.bdv.names import created
from bioio_tk.core.location import locate
from bioio_tk.core.units import convert_length
from bioio_tk.core.views import ViewAttribute, ViewId, ViewSetup, ViewTransform
from bioio_tk.errors import BioIOWarning, SpecError, TargetExistsError, UnsupportedError
from bioio_tk.meta.bdv import ZARR, Loader, SpimXml, ZarrImage, back_up, write_atomic
from bioio_tk.meta.ome_places import stage_positions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bioio_tk.core.spec import ImageSpec, Quantity
    from bioio_tk.core.views import Point3

_UNIT = "µm"
_GROUP = ".zgroup"
_OME = Path("OME", "METADATA.ome.xml")
_DOCUMENT = b'{\n  "zarr_format": 2\n}\n'
_ENDINGS = (".ome.zarr", ".zarr")
_TYPES = "iuf"
_SIZES = (1, 2, 4, 8)
_TOLERANCE = 0.05
"""Pixels that the loader allows between where a pixel lies and where it should."""


def write_zarr_xml(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write an XML with which BigDataViewer and BigStitcher open OME-Zarr images as they are.

    Each image is a tile, each of its channels a view setup, its time points are those of the
    dataset. Where images know their position they are put there, voxels are scaled to cubes as
    BigStitcher has it: the shortest side of a voxel is 1. No pixel is copied or changed.

    Parameters
    ----------
    images : path, or several
        OME-Zarr 0.4 of this machine: a folder with one image, or with several (series, fields of
        a plate), or several folders that lie side by side.
    path : str or Path, optional
        The XML; by default beside the image, of the same name, and ``dataset.xml`` beside several.
    overwrite : bool
        Replace an XML that is there; with all that was registered in it, it becomes ``X.xml~1``.

    Returns
    -------
    Path
        The XML.

    Raises
    ------
    UnsupportedError
        BigStitcher cannot open such an image; the text says why, and what to do.
    TargetExistsError
        The XML is there already.
    FileNotFoundError
        There is no such folder.

    Notes
    -----
    This is version 3.0 of the format ``bdv.multimg.zarr``, whose loader opens no folder that is not
    a Zarr group: where several images lie in one that is none, a file ``.zgroup`` is put there,
    which makes it one.
    """
    places = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if not places:
        raise SpecError("images=[]: give at least one OME-Zarr")
    folders = [_folder(place) for place in places]
    container = folders[0] if len(folders) == 1 else _container(folders)
    single = len(folders) == 1 or container.name.lower().endswith(_ENDINGS)
    target = xml_path(container, single=single) if path is None else _local(path)
    check_absent(target, overwrite=overwrite)
    found = [image for folder in folders for image in _images_of(folder)]
    document = _document(found, container, target)
    if not (container / _GROUP).exists():
        write_atomic(container / _GROUP, _DOCUMENT)
    back_up(target)
    write_atomic(target, document)
    return target


def xml_path(store: Path, *, single: bool = True) -> Path:
    """Return where the XML of a store goes; of a folder with several stores, where not `single`.

    >>> xml_path(Path("a/cells.ome.zarr")).as_posix(), xml_path(Path("a"), single=False).as_posix()
    ('a/cells.xml', 'a/dataset.xml')
    """
    if not single:
        return store / "dataset.xml"
    # of an image in a store: the XML goes beside the whole store
    while not store.name.lower().endswith(_ENDINGS) and _is_group(store.parent):
        store = store.parent
    return store.with_name(f"{_stem(store.name)}.xml")


def check_type(dtype: Any) -> None:
    """Raise UnsupportedError for pixels that BigDataViewer does not read."""
    wrong = _wrong_type(np.dtype(dtype))
    if wrong:
        raise UnsupportedError(f"the image {wrong}: convert them with dtype=")


def _is_group(folder: Path) -> bool:
    return any((folder / name).exists() for name in (_GROUP, "zarr.json"))


def _stem(name: str) -> str:
    """Return the name of a store without its ending."""
    ending = next((e for e in _ENDINGS if name.lower().endswith(e) and len(name) > len(e)), "")
    return name[: len(name) - len(ending)]


def check_absent(target: Path, *, overwrite: bool) -> None:
    """Raise where an XML is there and may not be replaced, or its folder is not there."""
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(target.parent)!r} for {target.name!r}: make it first"
        )
    if target.is_dir():
        raise IsADirectoryError(f"{str(target)!r} is a folder: give the name of the XML")
    if os.path.lexists(target) and not overwrite:
        raise TargetExistsError(
            f"{str(target)!r} exists, maybe with registrations: give another name, or "
            "overwrite=True to replace it"
        )


@dataclass(frozen=True, slots=True)
class _Image:
    """One image and where it lies.

    Attributes
    ----------
    folder : Path
        Of its Zarr group.
    spec : ImageSpec
        What is known of it.
    above : str
        The stored axes above Z, slowest first: ``"tc"``.
    """

    folder: Path
    spec: ImageSpec
    above: str

    def indices(self, c: int, t: int) -> tuple[int, ...]:
        """Return where a stack lies on the axes above Z, the fastest one first."""
        at = {"c": c, "t": t}
        return tuple(at[axis] for axis in reversed(self.above))


def _local(path: Any) -> Path:
    found = locate(path)
    if not isinstance(found, Path):
        raise UnsupportedError(f"{found.shown!r} is a URL: the XML is written beside local images")
    return found.absolute()


def _folder(place: Any) -> Path:
    folder = locate(place)
    if not isinstance(folder, Path):
        raise UnsupportedError(
            f"{folder.shown!r} is a URL: copy the images here ('bioio-tk convert'), or lay the XML "
            "over them before they go to the server"
        )
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    if not folder.is_dir():
        raise UnsupportedError(
            f"{str(folder)!r} is no folder: BigStitcher reads neither packed stores nor other "
            f"formats this way; {_remedy(folder)}"
        )
    return Path(os.path.abspath(folder))  # noqa: PTH100 (a link stays one)


def _remedy(folder: Path) -> str:
    name = folder.name if " " not in folder.name else repr(folder.name)
    return (
        f"make a copy that it opens: 'bioio-tk convert {name} NEW.ome.zarr --series all "
        "--ngff-version 0.4'"
    )


def _images_of(folder: Path) -> Iterator[_Image]:
    source: Any = registry.load_source(registry.choose(folder, "zarr").backend)(folder)
    try:
        for number, spec in enumerate(source.images):
            details = [source.details(number, level) for level in range(len(spec.levels))]
            image = _checked(folder, spec, details, source.original_metadata(number))
            yield image if any(spec.position) else _placed(image, folder, number)
    finally:
        source.close()


def _checked(
    folder: Path,
    spec: ImageSpec,
    details: list[dict[str, Any]],
    attributes: Mapping[str, Any],
) -> _Image:
    """Return an image that the loader opens.

    Its source: ``XmlIoAllenOMEZarrLoader``, ``AllenOMEZarrLoader`` and ``AllenOMEZarrProperties``
    of multiview-reconstruction, 2025 and 2026.
    """
    first = details[0]
    group, _, _ = first["path"].rpartition("/")
    place = folder / group if group else folder
    axes = first["axes"]
    wrong = (
        _wrong_version(first)
        or _wrong_axes(axes)
        or _wrong_type(spec.dtype)
        or _wrong_levels(group, details, attributes)
    )
    if wrong:
        raise UnsupportedError(f"{str(place)!r} {wrong}; {_remedy(folder)}")
    if not _is_averaged(attributes["multiscales"][0]["datasets"]):
        warnings.warn(
            f"{str(place)!r}: the smaller resolutions are no means of the full one ('nearest'?); "
            "there are versions of BigStitcher that refuse these",
            BioIOWarning,
            stacklevel=2,
        )
    return _Image(place, spec, axes[:-3])


def _placed(image: _Image, store: Path, number: int) -> _Image:
    """Return an image that does not say where it lies with where the stage stood, if known."""
    for folder, at in ((store, number), (image.folder, 0)):  # of all images, or of this one alone
        document = folder / _OME
        stages = stage_positions(document.read_text("utf-8")) if document.is_file() else ()
        if at < len(stages) and any(stages[at]):
            return replace(image, spec=replace(image.spec, position=stages[at]))
    return image


def _wrong_version(first: Mapping[str, Any]) -> str:
    if first["zarr_format"] != 2 or first["ngff_version"] != "0.4":
        version = first["ngff_version"]
        what = f"OME-Zarr {version}" if version else "a Zarr array without OME metadata"
        return f"is {what}, and BigStitcher opens OME-Zarr 0.4 this way"
    return ""


def _wrong_axes(axes: str) -> str:
    if axes[-3:] == "zyx" and set(axes[:-3]) <= set("tc"):
        return ""
    return f"has the axes {' '.join(axes)}, and BigStitcher needs Z, Y, X as the last three"


def _wrong_type(dtype: np.dtype[Any]) -> str:
    if dtype.kind in _TYPES and dtype.itemsize in _SIZES and dtype.name != "float16":
        return ""
    return f"has {dtype.name} pixels, and BigDataViewer reads whole numbers, float32, float64"


def _wrong_levels(group: str, details: list[dict[str, Any]], attributes: Mapping[str, Any]) -> str:
    """Say what is wrong with the resolutions: the loader finds them by name, and needs scales."""
    for number, level in enumerate(details):
        if level["path"] != (f"{group}/{number}" if group else str(number)):
            return (
                f"has its resolutions in {level['path']!r} …, and BigStitcher looks for them in "
                "'0', '1', '2' …"
            )
    if len(attributes["multiscales"]) > 1:
        return "has several multiscales, and BigStitcher would open the first"
    datasets = attributes["multiscales"][0]["datasets"]
    if len(datasets) != len(details):
        return f"lists {len(datasets)} resolutions, and {len(details)} of them can be used"
    for dataset in datasets:
        kinds = [step.get("type") for step in dataset.get("coordinateTransformations", ())]
        if "scale" not in kinds:
            return f"does not say how large the pixels of resolution {dataset['path']!r} are"
    return ""


def _is_averaged(datasets: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether pixels of the smaller resolutions lie amid those they are the mean of.

    One without a translation is taken for that.
    """
    steps = [{s["type"]: s for s in d["coordinateTransformations"]} for d in datasets]
    scale = np.array(steps[0]["scale"]["scale"], float)
    origin = np.array(steps[0].get("translation", {}).get("translation", 0 * scale), float)
    for step in steps[1:]:
        if "translation" not in step:
            continue
        factor = np.array(step["scale"]["scale"], float) / scale
        shift = (np.array(step["translation"]["translation"], float) - origin) / scale
        if (abs(shift - (factor - 1) / 2)[-3:] >= _TOLERANCE).any():
            return False
    return True


def _container(folders: list[Path]) -> Path:
    """Return the folder to name in the XML, which all images lie in (or are).

    Raises
    ------
    SpecError
        They lie here and there, and no Zarr group holds all of them.
    """
    if len(set(folders)) < len(folders):
        raise SpecError("images=: one of them is given twice")
    try:
        common = Path(os.path.commonpath(folders))
    except ValueError:  # several drives of Windows
        common = folders[0].parent
    if (common / _GROUP).exists() or all(folder.parent == common for folder in folders):
        return common
    raise SpecError(
        "the images lie in different folders, and BigStitcher needs one that holds all of them: "
        "put them side by side"
    )


def _document(images: list[_Image], container: Path, target: Path) -> bytes:
    """Return the XML."""
    tiles = len(images)
    views: dict[ViewId, ZarrImage] = {}
    for tile, image in enumerate(images):
        within = image.folder.relative_to(container).as_posix()
        *_, channels, times = image.spec.shape
        for c in range(channels):
            for t in range(times):
                where = ZarrImage("" if within == "." else within, image.indices(c, t))
                views[ViewId(t, c * tiles + tile)] = where
    path, kind = _written(container, target.absolute().parent)
    made = {key: value for key, value in created().items() if key.startswith("library")}
    xml = SpimXml(Loader(ZARR, path, kind, images=views, version="3.0"), created_by=made)
    voxels = [_voxel(image.spec) for image in images]
    unit = min((min(voxel) for voxel in voxels if voxel is not None), default=1.0)
    for kind_, value in _attributes(images):
        xml.set_attribute(kind_, value)
    for tile, (image, voxel) in enumerate(zip(images, voxels, strict=True)):
        transforms = _transforms(image.spec, voxel, unit)
        for c in range(image.spec.shape[3]):
            xml.set_setup(_setup(image.spec, voxel, tile=tile, c=c, number=c * tiles + tile))
            for t in range(image.spec.shape[4]):
                xml.set_view(ViewId(t, c * tiles + tile), transforms)
    return xml.render()


def _written(container: Path, folder: Path) -> tuple[str, str]:
    """Return the folder as the XML names it, relative where there is a way."""
    if container.is_relative_to(folder):
        return container.relative_to(folder).as_posix(), "relative"
    try:  # ".." of a link leads to the folder above what it points to
        relative = Path(os.path.relpath(container.resolve(), folder.resolve()))
    except ValueError:  # another drive of Windows
        return container.as_uri(), "absolute"
    return relative.as_posix(), "relative"


def _attributes(images: list[_Image]) -> Iterator[tuple[str, ViewAttribute]]:
    for c in range(max(image.spec.shape[3] for image in images)):
        names = (_channel(image.spec, c) for image in images)
        yield "channel", ViewAttribute(c, next(filter(None, names), str(c)))
    for tile, image in enumerate(images):
        yield "tile", ViewAttribute(tile, _name(image))
    for kind in ("illumination", "angle"):
        yield kind, ViewAttribute(0, "0")


def _name(image: _Image) -> str:
    if image.spec.name:
        return image.spec.name
    return _stem(image.folder.name)


def _channel(spec: ImageSpec, c: int) -> str:
    return (spec.channels[c].name or "") if c < len(spec.channels) else ""


def _setup(spec: ImageSpec, voxel: Point3 | None, *, tile: int, c: int, number: int) -> ViewSetup:
    y, x, z, *_ = spec.shape
    return ViewSetup(
        id=number,
        name=" ".join(filter(None, (spec.name, _channel(spec, c)))) or f"tile {tile} channel {c}",
        size=(z, y, x),
        voxel_size=voxel or (1.0, 1.0, 1.0),
        voxel_unit=PIXEL if voxel is None else _UNIT,
        attributes={"illumination": 0, "channel": c, "tile": tile, "angle": 0},
    )


def _voxel(spec: ImageSpec) -> Point3 | None:
    """Return the size of a voxel along X, Y, Z in µm; None where it is not known.

    A plane without thickness is as thick as its pixels are wide.
    """
    x, y, z = (_length(size) for size in spec.physical_size)
    if not x or not y or (not z and spec.shape[2] > 1):
        return None
    return (x, y, z or x)


def _length(size: Quantity | None) -> float | None:
    if size is None:
        return None
    try:
        length = convert_length(*size, _UNIT)
    except SpecError:  # pixels, or the unit of a stage
        return None
    return length if np.isfinite(length) else None


def _transforms(spec: ImageSpec, voxel: Point3 | None, unit: float) -> tuple[ViewTransform, ...]:
    """Return what puts an image to its place, in units of `unit` µm: the last one comes first."""
    if voxel is None:
        return (ViewTransform.of(np.eye(3, 4), CALIBRATION),)
    size = ViewTransform.of(np.hstack([np.diag(voxel) / unit, np.zeros((3, 1))]), CALIBRATION)
    place = [_length(at) or 0.0 for at in spec.position]
    if not any(place):
        return (size,)
    move = np.eye(3, 4)
    move[:, 3] = np.asarray(place) / unit
    return (ViewTransform.of(move, "translation"), size)
