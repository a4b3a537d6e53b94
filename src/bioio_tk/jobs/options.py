"""Options: everything that can be said of a conversion, checked as early as can be."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bioio_tk.engine.copy import Progress

EXISTS = ("error", "skip", "replace")
VERIFY = ("none", "sample", "full")
_LEAST = 1 << 20
# what changes the file that comes out, and so has to agree where a file is skipped or resumed
_SHAPES = (
    *("compression", "compression_level", "predictor", "tile_size", "pyramid", "levels"),
    *("downsample", "dtype", "cast", "ome", "ngff_version", "chunks", "shards", "pyramid_z"),
    *("group", "labels", "dataset_name", "metadata", "fill", "stack", "dims"),
    *("register_z", "apply_shifts", "max_frames", "chunk_frames", "max_reg_xy"),
)


def check_memory(memory: Any) -> None:
    """Raise for what is no number of bytes that anything could be done in."""
    whole = hasattr(memory, "__index__") and not isinstance(memory, bool)
    if memory is not None and (not whole or memory < _LEAST):
        raise SpecError(f"memory={memory!r}: give bytes, {_LEAST} (1 MiB) or more")


ALONE = {
    "resume": "an interrupted conversion of all images is begun anew",
    "client": "a cluster converts one image at a time",
    "shard_job": "several processes write one image",
    "dry_run": "a dry run is for one image",
    "register_z": "planes are registered for one image at a time",
    "apply_shifts": "planes are moved for one image at a time",
}
"""Options for a single image, and why they are not for all images of a source at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The keywords of `convert`, which says what each of them means."""

    series: int | None = None
    level: int | None = None
    dims: str | None = None
    select: Any = None
    t: Any = None
    c: Any = None
    z: Any = None
    y: Any = None
    x: Any = None
    planes: Any = None
    timepoints: Any = None
    channels: Any = None
    num_timepoints: int | None = None
    num_zplanes: int | None = None
    order: Any = None
    register_z: bool = False
    apply_shifts: bool = False
    max_frames: int = 200
    chunk_frames: int = 10
    max_reg_xy: int = 30
    roi: Any = None
    roi_mode: str | None = None
    stack: str | None = None
    fill: Any = None
    backend: str | None = None
    ext: str | None = None
    output_name: str | None = None
    output_suffix: str | None = None
    dataset_name: str | None = None
    metadata: Any = None
    compression: str | None = None
    compression_level: int | None = None
    predictor: bool | None = None
    tile_size: int | tuple[int, int] = 1024
    pyramid: bool | int = True
    levels: int | str | None = None
    downsample: str | None = None
    dtype: Any = None
    cast: str | None = None
    ome: bool = True
    ngff_version: str | None = None
    chunks: int | Sequence[int] | None = None
    shards: int | Sequence[int] | bool | None = None
    pyramid_z: bool = False
    bdv_xml: bool = False
    group: str = ""
    labels: bool = True
    storage_options: dict[str, Any] | None = None
    exists: str | None = None
    resume: bool = False
    dry_run: bool = False
    verify: str = "none"
    memory: int | None = None
    workers: int | None = None
    client: Any = None
    shard_job: str | None = None
    finalize: bool = False
    progress: Progress | None = None
    show_progress: bool = False
    shape: Any = None
    folders: bool = False
    """The folder of the target is made where it is not there."""
    told: Callable[[float], object] | None = field(default=None)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("exists", self.exists or "error", EXISTS),
            ("verify", self.verify, VERIFY),
        ):
            if value not in known:
                raise SpecError(f"{name}={value!r}: choose one of {', '.join(known)}")
        if self.levels is not None and self.levels != "keep":
            whole = hasattr(self.levels, "__index__") and not isinstance(self.levels, bool)
            if not whole or int(self.levels) < 1:
                raise SpecError(
                    f"levels={self.levels!r}: give the number of resolutions, the full one "
                    "included, or 'keep' for those of the source"
                )
            if self.pyramid is False:
                raise SpecError("pyramid=False and levels= contradict each other: give one of them")
        check_memory(self.memory)
        if self.bdv_xml:
            self._check_xml()
        if self.resume and self.exists == "replace":
            raise SpecError("resume= goes on with what is there, overwrite= begins anew: give one")

    def _check_xml(self) -> None:
        """Refuse what does not go with an XML over the image; such an image is of version 0.4."""
        if self.ngff_version is None:
            object.__setattr__(self, "ngff_version", "0.4")
        if str(self.ngff_version) != "0.4":
            raise SpecError(
                f"bdv_xml=True and ngff_version={self.ngff_version!r} do not go together: "
                "BigStitcher opens OME-Zarr 0.4"
            )
        if not self.ome:
            raise SpecError("bdv_xml=True needs the OME metadata that ome=False leaves out")
        if self.group or self.shard_job is not None or self.finalize:
            raise SpecError(
                "bdv_xml=True is for an image that is written at once: lay the XML over the store "
                "when all of it is there, with 'bioio-tk bdv xml STORE'"
            )

    @property
    def axes(self) -> dict[str, Any]:
        """What is selected by the keywords named like axes, from 0."""
        given = {axis.upper(): getattr(self, axis) for axis in "tczyx"}
        return {axis: item for axis, item in given.items() if item is not None}

    @property
    def resolutions(self) -> bool | int:
        """What `BioWriter` takes as ``pyramid``."""
        return self.pyramid if self.levels in (None, "keep") else int(self.levels)

    @property
    def casting(self) -> str | None:
        """How pixels are converted; None where they stay as they are."""
        return self.cast or (None if self.dtype is None else "exact")

    @property
    def makes_folder(self) -> bool:
        """Make the folder of the target where it is not there."""
        return self.folders or self.ext is not None

    @property
    def overwrite(self) -> bool:
        """Replace what is there."""
        return self.exists == "replace"

    def result(self) -> dict[str, Any]:
        """Return the options that change the file that comes out, as JSON has them."""
        default = Options()
        found = {}
        for name in _SHAPES:
            value = getattr(self, name)
            if value != getattr(default, name):
                found[name] = plain(value)
        if self.metadata is not None and not isinstance(self.metadata, dict):
            # a document of its own is in the image anyway: what stands here tells it from others
            text = str(found["metadata"]).encode()
            found["metadata"] = f"sha256:{hashlib.sha256(text).hexdigest()}"
        return found


def plain(value: Any) -> Any:
    """Return a value as JSON has it; what it has no word for as text."""
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(item) for item in value]
    return str(value)
