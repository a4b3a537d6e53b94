"""Labels: the label images of an OME-Zarr go with their image, and follow what is selected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.core.location import Location, Url
from bioio_tk.core.region import AXES
from bioio_tk.jobs.select import Seen
from bioio_tk.jobs.transfer import transfer
from bioio_tk.lazy import LazyArray
from bioio_tk.writer import BioWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from bioio_tk.engine.copy import Progress
    from bioio_tk.reader import BioReader

_FOR_LABELS = (
    "compression",
    "compression_level",
    "tile_size",
    "ngff_version",
    "chunks",
    "shards",
    "pyramid_z",
)


class Filled:
    """A target into which something more is put before it goes to its place."""

    def __init__(self, target: Any, fill: Callable[[], None]) -> None:
        self._target = target
        self._fill = fill

    def commit(self) -> None:
        """Put it in, and the whole into its place."""
        self._fill()
        self._target.commit()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def open_labels(
    image: LazyArray,
    target: Location,
    options: dict[str, Any],
    stack: ExitStack,
    notes: list[str],
) -> dict[str, LazyArray]:
    """Return the label images to copy, open; add what is left out to the notes."""
    reader = image.reader
    names = list(reader.labels)
    if not names:
        return {}
    row = registry.for_writing(target, options.get("backend"))
    if not row.tree or isinstance(target, Url):
        why = "only OME-Zarr keeps them" if not row.tree else "they cannot be sent to a server"
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
        found[name] = _seen_with(image, labels)
    return found


def _seen_with(image: LazyArray, labels: BioReader) -> LazyArray:
    """Return what is left of labels where a part of their image was selected."""
    whole = image.reader.shape
    key = []
    for axis, (pick, size) in enumerate(zip(image.picks, labels.shape, strict=True)):
        along = size == whole[axis] and AXES[axis] != "C"
        start = pick.start if isinstance(pick, range) else 0
        plain = isinstance(pick, range) and pick.step == 1
        part: Any = slice(start, start + len(pick)) if plain else list(pick)
        key.append(part if along else slice(None))
    seen = LazyArray(labels)
    for axis, part in enumerate(key):
        seen = seen[(slice(None),) * axis + (part,)]
    return seen


def _unfit(name: str, labels: BioReader, level: int) -> str:
    """Return why labels cannot be copied, "" where they can."""
    if labels.dtype.kind not in "iub":
        return f"labels are whole numbers, and these are {labels.dtype}"
    if labels.levels <= level:
        return f"they have no level {level}"
    return "" if "/" not in name and not name.startswith(".") else "their name fits no folder"


def copy_labels(
    found: dict[str, LazyArray],
    image: Path,
    options: dict[str, Any],
    *,
    workers: int,
    memory: int | None,
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
            like=Seen(labels),
            downsample=method,
            group=f"labels/{name}",
            label=_colors_and_properties(labels.reader),
            overwrite=True,  # what a run that was interrupted has left
            **shared,
        )
        transfer(labels.view(), writer, workers=workers, memory=memory, progress=tell)
        before += labels.nbytes


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
