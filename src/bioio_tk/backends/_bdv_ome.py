"""What BigDataViewer has no words for: OME-XML beside the stacks, where we have written them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bioio_tk.core.spec import Channel
from bioio_tk.core.stacks import voxel_of
from bioio_tk.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.meta.ome import OmeImage

OME_XML = "ome_xml"
"""The dataset that holds it: an attribute cannot have more than 64 KB."""


def with_ome(
    images: Sequence[ImageSpec], xml: str, notes: list[str]
) -> tuple[tuple[ImageSpec, ...], str | None]:
    """Return images with what a document adds to what the XML says, and the document if it fits.

    The XML may have been changed since: what both say of names and voxels is taken from there.
    """
    from bioio_tk.meta import ome

    try:
        said = ome.read_document(xml).images
    except FormatError as exc:
        notes.append(f"the OME-XML beside the stacks is left out: {exc}")
        return tuple(images), None
    sizes = [(i.size_y, i.size_x, i.size_z, i.size_c, i.size_t) for i in said]
    shapes = [spec.shape for spec in images]
    if not _is_of(sizes, shapes):
        notes.append("the OME-XML beside the stacks is left out: they have changed since")
        return tuple(images), None
    found = tuple(_described(spec, more) for spec, more in zip(images, said, strict=True))
    return found, xml if sizes == shapes else None


def _is_of(sizes: list[Shape5], shapes: list[Shape5]) -> bool:
    """Return whether images of these sizes are these: a dataset has the time points of all."""
    return [size[:4] for size in sizes] == [shape[:4] for shape in shapes] and all(
        size[4] <= shape[4] for size, shape in zip(sizes, shapes, strict=True)
    )


def _described(spec: ImageSpec, said: OmeImage) -> ImageSpec:
    same_size = voxel_of(said.physical_size) == voxel_of(spec.physical_size)
    colors = [channel.color for channel in said.channels]
    names = [channel.name for channel in said.channels]
    if len(names) == len(spec.channels):
        pairs = zip(names, spec.channels, strict=True)
        names = [None if name is None and _is_number(now.name) else now.name for name, now in pairs]
    known = any(names) or any(colors)
    return replace(
        spec,
        name=said.name or spec.name,
        channels=tuple(map(Channel, names, colors)) if known else (),
        physical_size=said.physical_size if same_size else spec.physical_size,
        time_increment=said.time_increment,
        position=said.position,
    )


def _is_number(name: str | None) -> bool:
    """Return whether a channel that has no name is called so."""
    return name is not None and name.isdigit()
