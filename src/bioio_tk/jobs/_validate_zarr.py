"""What NGFF asks of a store, checked node by node. Every MUST is an error, a SHOULD a warning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise, product, takewhile
from typing import TYPE_CHECKING, Any, Literal

from bioio_tk.backends._zarr_array import ZarrArray
from bioio_tk.backends._zarr_meta import read_meta
from bioio_tk.backends._zarr_tree import OME_XML, Tree, join, open_store
from bioio_tk.backends.base import OpenOptions
from bioio_tk.engine import pool
from bioio_tk.errors import BioIOError
from bioio_tk.jobs.validate import Problem, one_line
from bioio_tk.meta import ngff
from bioio_tk.meta.ome import OmeImage, read_document

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bioio_tk.backends._zarr_meta import ArrayMeta
    from bioio_tk.backends._zarr_tree import Node
    from bioio_tk.core.location import Location
    from bioio_tk.core.plate import Plate

_MOST_SERIES = 100_000
_RANK = {"time": 0, "channel": 1, "space": 3}  # an axis of its own kind: beside the channel, 1


def check_store(
    location: Location, storage_options: dict[str, Any], pixels: bool, workers: int
) -> tuple[str, list[Problem], int]:
    """Return the name of the format, all problems, and how many chunks were decoded."""
    store, root = open_store(location, OpenOptions(storage_options=storage_options))
    try:
        check = _Check(Tree(store))
        check.root(root)
        count = check.pixels(workers) if pixels else 0
        name = f"OME-Zarr {check.version}" if check.version else "Zarr"
        return name, check.problems, count
    finally:
        store.close()


class _Check:
    """One walk over a store."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.problems: list[Problem] = []
        self.version = ""
        self.arrays: dict[str, ArrayMeta] = {}
        self._seen: set[str] = set()

    def error(self, where: str, message: str) -> None:
        self._add("error", where, message)

    def warn(self, where: str, message: str) -> None:
        self._add("warning", where, message)

    def _add(self, severity: Literal["error", "warning"], where: str, message: str) -> None:
        # where it is, is said already
        text = message.replace(f"{self.tree.store.where(where)}: ", "").replace(
            f"{self.tree.store.where(where)!r}: ", ""
        )
        self.problems.append(Problem(severity, where, text))

    # ------------------------------------------------------------------ nodes

    def node(self, path: str, what: str = "") -> Node | None:
        """Return what lies at a path; where it is missing or damaged that is a problem."""
        try:
            node = self.tree.node(path)
        except BioIOError as exc:
            self.error(path, str(exc))
            return None
        if node is None and what:
            self.error(path, f"{what}, but it is not there")
        return node

    def root(self, path: str) -> None:
        node = self.node(path, "a Zarr store should be here")
        if node is None:
            return
        if node.kind == "array":
            self.array(path)
            return
        group = self.group(path)
        if group is None:
            return
        if not group.version:
            self.warn(path, "there are no OME metadata")
        if group.layout is not None:
            self.layout(path, group)

    def group(self, path: str, what: str = "", wanted: str = "") -> ngff.Group | None:
        """Check a group and all that it leads to; None where it cannot be understood."""
        node = self.node(path, what)
        if node is None or path in self._seen:
            return None
        self._seen.add(path)
        if node.kind == "array":
            self.error(path, f"{what or 'a group should be here'}, but it is an array")
            return None
        try:
            group = ngff.read_group(node.attributes, self.tree.store.where(path))
        except BioIOError as exc:
            self.error(path, str(exc))
            return None
        self.notes(path, group)
        if group.version:
            self.format(node, group)
        if wanted and not getattr(group, wanted):
            self.error(path, f"{what}, but there are no such metadata ({wanted})")
        self.contents(path, node, group)
        return group

    def notes(self, path: str, group: ngff.Group) -> None:
        for note in group.notes:
            self.warn(path, note)

    def format(self, node: Node, group: ngff.Group) -> None:
        """Check that the version of NGFF and that of Zarr belong together."""
        if not self.version or group.multiscales:
            self.version = group.version
        under_ome = isinstance(node.attributes.get("ome"), Mapping)
        if node.zarr_format == 3 and not under_ome:
            self.error(node.path, 'in Zarr 3 the OME metadata have to be under "ome" (0.5)')
        elif node.zarr_format == 2 and under_ome:
            self.error(node.path, "version 0.5 asks for Zarr 3, this is Zarr 2")
        elif (group.version == "0.5") != (node.zarr_format == 3):
            self.error(
                node.path, f"version {group.version} does not go with Zarr {node.zarr_format}"
            )

    def contents(self, path: str, node: Node, group: ngff.Group) -> None:
        ome = node.attributes.get("ome")
        raw = node.attributes if ome is None else ome
        for entry, image in zip(raw.get("multiscales") or (), group.multiscales, strict=False):
            self.image(path, entry, image)
        if group.multiscales:
            self.omero(path, raw.get("omero"), group)
            if self.node(join(path, "labels")) is not None:
                self.group(join(path, "labels"))
        for name in group.labels:
            self.label(join(path, name))
        for field in group.well_images or ():
            self.group(join(path, field.path), "is listed as a field", "multiscales")
        if group.plate is not None:
            self.plate(path, raw["plate"], group.plate, group.version)

    # ------------------------------------------------------------------ images

    def image(self, path: str, entry: Mapping[str, Any], image: ngff.Multiscale) -> None:
        metas = []
        for dataset, level in zip(entry["datasets"], image.datasets, strict=True):
            if image.version in ("0.4", "0.5"):
                self.steps(path, dataset, image)
            meta = self.array(join(path, level.path), "is listed as a level of the image")
            if meta is not None:
                metas.append((level.path, meta))
                self.names(join(path, level.path), meta, image)
        if image.axes is not None:
            full = self.arrays.get(join(path, image.datasets[0].path))
            self.axes(path, image, full.shape if full is not None else ())
        paths = [level.path for level in image.datasets]
        if len(set(paths)) < len(paths):
            self.error(path, "the image lists a level twice")
        self.levels(path, metas)

    def axes(self, path: str, image: ngff.Multiscale, shape: tuple[int, ...]) -> None:
        axes = image.axes or ()
        kinds = [axis.type for axis in axes]
        if image.version == "0.3":
            if [axis.name for axis in axes] != [k for k in "tczyx" if k in {a.name for a in axes}]:
                self.error(path, "in version 0.3 axes are named t, c, z, y, x, in this order")
            return
        if not 2 <= kinds.count("space") <= 3:
            self.error(path, f"{kinds.count('space')} axes of space; an image has 2 or 3")
        for kind in ("time", "channel"):
            if kinds.count(kind) > 1:
                self.error(path, f"{kinds.count(kind)} axes of type {kind}; there may be one")
        order = [_RANK.get(kind or "", 1) for kind in kinds]
        if order != sorted(order):
            said = ", ".join(axis.name for axis in axes)
            self.error(path, f"axes {said}: the order has to be time, channel, space")
        for what, names in (
            ("type", [a.name for a in axes if a.type is None]),
            ("unit", list(_without_unit(axes, shape))),
        ):
            if names:
                noun = "axis" if len(names) == 1 else "axes"
                self.warn(path, f"no {what} is given for the {noun} {', '.join(names)}")

    def steps(self, path: str, dataset: Mapping[str, Any], image: ngff.Multiscale) -> None:
        where = f"level {dataset.get('path')!r}"
        steps = dataset.get("coordinateTransformations")
        if not isinstance(steps, list) or not steps:
            self.error(path, f"{where} has no coordinateTransformations")
            return
        kinds = [step.get("type") if isinstance(step, Mapping) else None for step in steps]
        if kinds not in (["scale"], ["scale", "translation"]):
            said = ", ".join(map(str, kinds))
            self.error(
                path, f"{where} has the transformations {said}: one scale, then one translation"
            )
        for step, kind in zip(steps, kinds, strict=True):
            if kind not in ("scale", "translation"):
                continue
            values, count = step.get(kind), len(image.axes or ())
            if not isinstance(values, list) or len(values) != count:
                self.error(path, f"{where}: the {kind} has to be a list of {count} numbers")
            elif not all(_number(v) and (kind != "scale" or v > 0) for v in values):
                self.error(path, f"{where}: {kind} {values} has to be of numbers, and above 0")

    def array(self, path: str, what: str = "an array should be here") -> ArrayMeta | None:
        node = self.node(path, what)
        if node is None:
            return None
        if node.kind != "array":
            self.error(path, f"{what}, but it is a group")
            return None
        three = node.zarr_format == 3
        document = node.document
        try:
            where = self.tree.store.where(path)
            meta = read_meta(document if three else None, None if three else document, where)
        except BioIOError as exc:
            self.error(path, str(exc))
            return None
        self.arrays[path] = meta
        above = self.tree.node(path.rpartition("/")[0]) if path else None
        if above is not None and above.zarr_format != meta.zarr_format:
            self.error(path, f"Zarr {meta.zarr_format} in a group of Zarr {above.zarr_format}")
        return meta

    def names(self, path: str, meta: ArrayMeta, image: ngff.Multiscale) -> None:
        if image.axes is None:
            return
        names = tuple(axis.name for axis in image.axes)
        if len(meta.shape) != len(names):
            self.error(path, f"the array has {len(meta.shape)} axes, the image {len(names)}")
        elif image.version == "0.5" and meta.dimension_names != names:
            said = meta.dimension_names
            text = f"dimension_names {said} of the array are not the axes {names}"
            if said is None:
                self.warn(path, "the array has no dimension_names")
            else:
                self.error(path, text)

    def levels(self, path: str, metas: Sequence[tuple[str, ArrayMeta]]) -> None:
        for (name, large), (other, small) in pairwise(metas):
            if large.dtype != small.dtype:
                self.error(
                    path, f"level {other!r} has {small.dtype} pixels, {name!r} {large.dtype}"
                )
            if len(large.shape) != len(small.shape):
                continue  # is said already
            if any(a < b for a, b in zip(large.shape, small.shape, strict=True)):
                self.error(
                    path, f"level {other!r} {small.shape} is larger than {name!r} {large.shape}"
                )
            elif large.shape == small.shape:
                self.warn(path, f"level {other!r} is as large as {name!r}")

    def omero(self, path: str, omero: Any, group: ngff.Group) -> None:
        if omero is None:
            return
        channels = omero.get("channels") if isinstance(omero, Mapping) else None
        if not isinstance(channels, list):
            self.error(path, '"omero" has no list of channels')
            return
        for number, channel in enumerate(channels):
            where = f"omero channel {number}"
            if not isinstance(channel, Mapping):
                self.error(path, f"{where} is no object")
                continue
            color, window = channel.get("color"), channel.get("window")
            if not isinstance(color, str) or not re.fullmatch("[0-9A-Fa-f]{6}", color):
                self.error(path, f"{where}: the colour {color!r:.40} is not six hex digits")
            keys = ("min", "max", "start", "end")
            if not isinstance(window, Mapping) or not all(_number(window.get(k)) for k in keys):
                self.error(path, f"{where}: the window needs numbers for min, max, start and end")
        count = self.channel_count(path, group.multiscales[0])
        if count is not None and count != len(channels):
            self.warn(path, f"omero describes {len(channels)} channels, the image has {count}")

    def five(self, path: str, image: ngff.Multiscale) -> tuple[int, ...] | None:
        """Return the size along Y, X, Z, C, T; None where it cannot be told."""
        meta = self.arrays.get(join(path, image.datasets[0].path))
        if meta is None:
            return None
        try:
            order = ngff.yxzct(
                image.axes,
                len(meta.shape),
                dimension_names=meta.dimension_names,
                shape=meta.shape,
            )
        except BioIOError as exc:
            self.error(path, str(exc))
            return None
        return tuple(1 if axis is None else meta.shape[axis] for axis in order)

    def channel_count(self, path: str, image: ngff.Multiscale) -> int | None:
        five = self.five(path, image)
        return None if five is None else five[3]

    # ------------------------------------------------------------------ what holds images

    def label(self, path: str) -> None:
        label = self.group(path, "is listed as a label image", "multiscales")
        if label is None:
            return
        if label.image_label is None:
            self.error(path, 'a label image needs "image-label"')
        for image in label.multiscales:
            for level in image.datasets:
                meta = self.arrays.get(join(path, level.path))
                if meta is not None and meta.dtype.kind not in "iub":
                    text = f"labels are whole numbers, these pixels are {meta.dtype}"
                    self.error(join(path, level.path), text)

    def plate(self, path: str, raw: Mapping[str, Any], plate: Plate, version: str) -> None:
        runs = {run.id for run in plate.acquisitions}
        for key in ("rows", "columns"):
            for name in getattr(plate, key):
                if not re.fullmatch("[A-Za-z0-9]+", name):
                    self.error(path, f"name {name!r:.40} among the {key}: letters and digits only")
        if not plate.wells:
            self.error(path, "the plate has no wells")
        for entry in raw["wells"] if version in ("0.4", "0.5") else ():
            if not isinstance(entry, Mapping) or not {"path", "rowIndex", "columnIndex"} <= {
                *entry
            }:
                self.error(path, f"a well needs path, rowIndex and columnIndex: {entry!r:.80}")
        for well in plate.wells:
            place = join(path, well.path)
            group = self.group(place, "is listed as a well", "well_images")
            fields = (group.well_images or ()) if group is not None else ()
            for run in {field.acquisition for field in fields} - {None, *runs} if runs else ():
                self.error(place, f"acquisition {run} is not one of the plate")

    def layout(self, path: str, root: ngff.Group) -> None:
        if root.layout != 3:
            self.error(path, f"bioformats2raw.layout is {root.layout}; only 3 is defined")
        ome = self.group(join(path, "OME")) if self.node(join(path, "OME")) else None
        series = ome.series if ome is not None else None
        if series is None:
            numbers = map(str, range(_MOST_SERIES))
            series = tuple(takewhile(lambda n: self.node(join(path, n)), numbers))
        found = [self.group(join(path, s), "is listed as an image", "multiscales") for s in series]
        if root.plate is None and not series:
            self.error(path, "there is no image in the bioformats2raw layout")
        images = self.xml(path)
        if images is None or root.plate is not None:
            return
        if len(images) != len(series):
            text = f"describes {len(images)} images, the store has {len(series)}"
            self.error(join(path, OME_XML), text)
        for name, group, image in zip(series, found, images, strict=False):
            if group is not None and group.multiscales:
                self.agree(path, name, group, image)

    def xml(self, path: str) -> Sequence[OmeImage] | None:
        key = join(path, OME_XML)
        data = self.tree.store.get(key)
        if data is None:
            self.warn(key, "the bioformats2raw layout should have OME-XML, it is not there")
            return None
        try:
            return read_document(data).images
        except BioIOError as exc:
            self.error(key, one_line(exc))
            return None

    def agree(self, path: str, name: str, group: ngff.Group, image: OmeImage) -> None:
        five = self.five(join(path, name), group.multiscales[0])
        said = (image.size_y, image.size_x, image.size_z, image.size_c, image.size_t)
        if five is not None and five != said:
            text = f"image {name!r} is {said} (Y, X, Z, C, T) here, the array is {five}"
            self.error(join(path, OME_XML), text)

    # ------------------------------------------------------------------ pixels

    def pixels(self, workers: int) -> int:
        """Decode every chunk that is stored; return how many there are."""
        stored: list[None] = []
        wrong: list[tuple[str, str]] = []
        for path, meta in self.arrays.items():
            array = ZarrArray(self.tree.store, path, meta)

            def one(index: tuple[int, ...], array: ZarrArray = array) -> None:
                try:
                    if array.read_chunk(index) is not None:
                        stored.append(None)
                except (BioIOError, OSError) as exc:
                    wrong.append((array.path, one_line(exc)))

            pool.run(one, product(*map(range, meta.grid)), workers)
        for path, text in sorted(wrong):
            self.error(path, text)
        return len(stored)


def _without_unit(axes: Sequence[ngff.Axis], shape: Sequence[int]) -> Iterator[str]:
    """Yield the axes that lack one; where there is a single pixel, nothing is measured."""
    for number, axis in enumerate(axes):
        single = shape[number : number + 1] == (1,)
        if axis.type in ("space", "time") and axis.unit is None and not single:
            yield axis.name


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value  # noqa: PLR0124 - not NaN
