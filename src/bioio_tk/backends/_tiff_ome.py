"""Images of an OME-TIFF: the planes that its OME-XML names, in one file or in many, as layers."""

from __future__ import annotations

import os
import re
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np

from bioio_tk.backends._file import open_random
from bioio_tk.backends._tiff_files import TiffHandle, plain_uuid
from bioio_tk.backends._tiff_layers import Find, Layer, missing
from bioio_tk.backends._tiff_segments import Page, Recipe
from bioio_tk.backends._tiff_series import Image
from bioio_tk.core.dtype import from_ome_type
from bioio_tk.core.location import Url
from bioio_tk.core.spec import Channel, ImageSpec
from bioio_tk.errors import BioIOError, DamagedFileError, FormatError, UnsupportedError
from bioio_tk.meta import ome

if TYPE_CHECKING:
    from bioio_tk.backends._file import AnyFile
    from bioio_tk.core.location import Location
    from bioio_tk.meta.ome import OmeDocument, OmeImage, TiffData

_MOST_TO_CHECK = 4096
"""Planes up to which opening a file makes sure that all of them are there."""
_MOST_PLANES, _MOST_CHANNELS = 1 << 31, 1 << 16
_LONGEST_XML = 1 << 30
_MOST_TO_LOOK_AT = 1000
_TIFF_SUFFIXES = (".tif", ".tiff", ".tf2", ".tf8", ".btf")


class OutsideError(FormatError):
    """The document names a file outside of its own folder."""


class FileSet:
    """The file that was opened and those its OME-XML names.

    Parameters
    ----------
    path : Path or Url
        A TIFF, or an OME-XML document that speaks of TIFFs (a companion file).
    storage_options : dict, optional
        For a Url, see `UrlStore`.
    """

    def __init__(self, path: Location, storage_options: dict[str, Any] | None = None) -> None:
        self.folder = path.parent
        self.name = path.name if isinstance(path, Path) else _plain_name(path)
        self.speaker = self.name  # the TIFF whose document it is, by which "this file" is meant
        self.notes: list[str] = []
        self._storage_options = storage_options
        self._handles: dict[str, TiffHandle] = {}
        self._found: dict[str, AnyFile] = {}
        self._location = path
        self._named: dict[str, None] = {}
        file = open_random(path, storage_options)
        self.path = file.path  # of a Url, what may be shown
        self.only_xml = _is_xml(file.read(0, 512))
        if self.only_xml:
            self._found[self.name] = file
        else:
            self._handles[self.name] = TiffHandle(path, file)

    @property
    def own(self) -> TiffHandle:
        """The file that was opened."""
        return self.handle(self.name)

    @property
    def own_is_big(self) -> bool:
        """True where the file that was opened is a BigTIFF."""
        return not self.only_xml and self.own.ifds.big

    def handle(self, name: str) -> TiffHandle:
        """Return the open file called `name`."""
        found = self._handles.get(name)
        if found is None:
            # two threads may both open it; the second one's is dropped
            fresh = TiffHandle(self._beside(name), self._open(name))
            found = self._handles.setdefault(name, fresh)
            if found is not fresh:
                fresh.close()
        return found

    def used_files(self) -> tuple[Path, ...]:
        """Return the file that was opened and those of its document that are there."""
        if not isinstance(self.folder, Path):
            return ()
        return tuple(self.folder / name for name in {self.name: None, **self._named})

    def exists(self, name: str) -> bool:
        """Return whether the folder has a file called `name`; OutsideError where it leads out."""
        there = self._is_there(name)
        if there:
            self._named[name] = None
        return there

    def _is_there(self, name: str) -> bool:
        parts = re.split(r"[\\/]", name)
        if "\0" in name or ".." in parts or PureWindowsPath(name).anchor:
            raise OutsideError(
                f"{str(self.path)!r} names a file outside of its folder ({name!r:.200}); such a "
                "file is not opened"
            )
        where = self._beside(name)
        try:
            if isinstance(where, Path):
                return where.is_file()
            if name not in self._handles and name not in self._found:
                self._found[name] = self._open(name)  # what is asked for is opened soon
        except FileNotFoundError:
            return False
        except OSError:
            if isinstance(where, Path):  # a name that no file can have
                return False
            raise
        return True

    def _beside(self, name: str) -> Location:
        """Return where a file of the same folder is."""
        if isinstance(self.folder, Path):
            return self.folder / name
        return self._location if name == self.name else _neighbour(str(self._location), name)

    def _open(self, name: str) -> AnyFile:
        file = self._found.pop(name, None)
        return open_random(self._beside(name), self._storage_options) if file is None else file

    def uuids(self, besides: set[str]) -> dict[str, str]:
        """Return the UUIDs of the TIFFs in the folder, but for those in `besides`, by UUID."""
        if not isinstance(self.folder, Path):
            return {}  # a server is not searched
        names = (entry.name for entry in os.scandir(self.folder) if entry.is_file())
        tiffs = [n for n in names if n.lower().endswith(_TIFF_SUFFIXES) and n not in besides]
        found = {}
        for name in sorted(tiffs)[:_MOST_TO_LOOK_AT]:
            try:
                handle = TiffHandle(self.folder / name)
            except (BioIOError, OSError):
                continue  # some other file; not ours to complain about
            with closing(handle):
                if handle.uuid is not None:
                    found[handle.uuid] = name
        return found

    def ome_xml(self) -> str | None:
        """Return the OME-XML document of the set, None where there is none."""
        xml = self._document(self.name)
        if xml is None or "MetadataFile" not in xml[:8192]:
            return xml
        try:
            document = ome.read_document(xml)
        except FormatError:
            return xml
        name = document.metadata_only_file
        if document.images or name is None or name == self.name:
            return xml
        if not self.exists(name):
            self.notes.append(
                f"the metadata are in {name!r}, which is not in the folder: this is what the file "
                "says of itself"
            )
            return None
        found = self._document(name)
        if name in self._handles:
            self.speaker = name
        return found

    def _document(self, name: str) -> str | None:
        if name in self._handles:
            return self._description(name)
        with closing(self._open(name)) as file:
            head = file.read(0, 4608)
            if _is_xml(head[:512]):
                if b"OME" not in head:
                    raise FormatError(f"{str(file.path)!r} is an XML file, but no OME-XML")
                if file.size > _LONGEST_XML:
                    raise FormatError(f"{str(file.path)!r} is too long for an OME-XML document")
                return file.read(0, file.size).decode("utf-8", "replace")
        return self._description(name)

    def _description(self, name: str) -> str | None:
        text = self.handle(name).description
        start = text[:4096]
        return text if "<OME" in start or ":OME" in start else None

    def close(self) -> None:
        """Release all files."""
        for handle in self._handles.values():
            handle.close()
        for file in self._found.values():
            file.close()


def _plain_name(url: Url) -> str:
    """Return the name of a file as its folder has it: ``%20`` of the web is a space."""
    return unquote(url.name) if url.scheme in ("http", "https") else url.name


def _neighbour(url: str, name: str) -> Url:
    """Return the address of another file of the same folder, opened by the same signature.

    >>> str(_neighbour("https://host/plate/a.ome.tif?key=x/y", "b 1.ome.tif"))
    'https://host/plate/b%201.ome.tif?key=x/y'
    """
    if not url.lower().startswith(("http://", "https://")):
        return Url(f"{url.rpartition('/')[0]}/{name}")
    head, mark, query = url.partition("?")
    return Url(f"{head.rpartition('/')[0]}/{quote(name)}{mark}{query}")


def _is_xml(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def read_images(files: FileSet, xml: str) -> tuple[list[Image], list[str]]:
    """Return the images of the document and notes on what was mended.

    Raises
    ------
    FormatError
        The document cannot be used.
    """
    document = ome.read_document(xml)
    notes = list(document.notes)
    if not document.images:
        raise FormatError(f"the metadata name no image (they are in {document.metadata_only_file})")
    resolve = _Names(files, document, notes)
    images: list[Image] = []
    after = 0  # IFDs that earlier images without TiffData have taken
    for image in document.images:
        built, after = _image(files, image, resolve, after, notes)
        images.append(built)
    return images, list(dict.fromkeys(notes))


class _Names:
    """Finds the file that a TiffData element means; None where it is not there."""

    def __init__(self, files: FileSet, document: OmeDocument, notes: list[str]) -> None:
        self._files = files
        self._notes = notes
        self._root = plain_uuid(document.root_uuid)
        self._found: dict[tuple[str | None, str | None], str | None] = {}
        self._named = {
            data.file_name
            for image in document.images
            for data in image.tiff_data
            if data.file_name
        }

    @cached_property
    def _renamed(self) -> dict[str, str]:
        """UUIDs of the TIFFs in the folder that the document does not name."""
        return self._files.uuids(self._named)

    def __call__(self, data: TiffData) -> str | None:
        key = (data.uuid, data.file_name)
        if key not in self._found:
            self._found[key] = self._look(plain_uuid(data.uuid), data.file_name)
        return self._found[key]

    def _look(self, uuid: str | None, name: str | None) -> str | None:
        own = None if self._files.only_xml else self._files.speaker
        if name is None or name == own or (uuid is not None and uuid == self._root and own):
            if own is None:
                raise UnsupportedError(
                    f"{str(self._files.path)!r} keeps its pixels in the XML itself, or does not "
                    "say in which TIFF; only OME-TIFF can be read here"
                )
            if name is None and uuid is not None and self._root is not None and uuid != self._root:
                self._notes.append("a UUID that names no file is taken for this file's")
            return own
        if self._files.exists(name):
            return name
        found = None if uuid is None else self._renamed.get(uuid)
        if found is not None:
            self._files.exists(found)
            self._notes.append(f"{name!r} is called {found!r} now: its UUID is the same")
            return found
        if own is not None and len(self._named) == 1:
            self._notes.append(f"the file is called {name!r} in its OME-XML: it has been renamed")
            return own
        self._notes.append(f"{name!r} is missing, so its planes cannot be read")
        return None


@dataclass(slots=True)
class _Planes:
    """Where each plane is: its number -> (file, IFD)."""

    files: FileSet
    where: dict[int, tuple[str, int]]
    uuids: dict[str, str]

    def locate(self, number: int) -> tuple[TiffHandle, int]:
        """Return the file of a plane and its page's number there."""
        found = self.where.get(number)
        if found is None:
            raise missing(self.files.path, "the OME-XML names no file for it, or a missing one")
        name, ifd = found
        handle = self.files.handle(name)
        expected = self.uuids.get(name)
        if expected is not None:
            own = handle.uuid
            if own is not None and own != expected and name != self.files.name:
                raise missing(
                    self.files.path, f"{name!r} belongs to another set (its UUID is {own})"
                )
            self.uuids.pop(name, None)
        return handle, ifd

    def finder(self, level: int) -> Find:
        """Return a function that gives the page of a plane at one level."""

        def find(number: int) -> Page:
            handle, ifd = self.locate(number)
            page = handle.page(ifd)
            if level == 0:
                return page
            below = handle.subifds(int(handle.chain[ifd]))
            if level > len(below):
                raise missing(handle.path, f"plane {number} has no resolution {level}")
            return handle.page_at(below[level - 1])

        return find


def _image(
    files: FileSet, image: OmeImage, resolve: _Names, after: int, notes: list[str]
) -> tuple[Image, int]:
    recipe = _first_page(image, resolve, files, after).recipe
    _compare(recipe, image, notes)
    samples = recipe.samples * recipe.planes
    channels = _channel_count(image, samples, notes)
    sizes = {"Z": image.size_z, "C": channels, "T": image.size_t}
    strides, total = _strides(image.order, sizes)
    planes = _Planes(files, {}, {})
    taken = _map(image, resolve, planes, sizes, strides, total, after, notes)
    _check(planes, total, notes)
    steps = {axis: ((sizes[axis], strides[axis]),) for axis in "ZCT"}
    start = min(planes.where, default=0)
    handle, ifd = planes.locate(start)
    base = handle.page(ifd)
    layers = [Layer(base.recipe, planes.finder(0), steps["Z"], steps["C"], steps["T"])]
    for level, _ in enumerate(handle.subifds(int(handle.chain[ifd])), 1):
        find = planes.finder(level)
        layers.append(Layer(find(start).recipe, find, steps["Z"], steps["C"], steps["T"]))
    kept = _resolutions(layers, notes)
    return Image(_spec(image, kept, samples, channels), kept), max(after, taken)


def _spec(image: OmeImage, layers: tuple[Layer, ...], samples: int, channels: int) -> ImageSpec:
    described = [Channel(c.name, c.color) for c in image.channels for _ in range(c.samples)]
    count = channels * samples
    if len(described) < count and len(image.channels) == channels:
        described = [Channel(c.name, c.color) for c in image.channels for _ in range(samples)]
    described = (described + [Channel()] * count)[:count]
    dtype = layers[0].recipe.dtype
    if dtype == np.uint8 and image.stored_dtype == "bool":
        dtype = np.dtype(bool)  # see _compare
    return ImageSpec(
        dtype=dtype,
        levels=tuple(layer.level for layer in layers),
        name=image.name,
        channels=tuple(described),
        samples=samples,
        physical_size=image.physical_size,
        position=image.position,
        time_increment=image.time_increment,
    )


def _first_page(image: OmeImage, resolve: _Names, files: FileSet, after: int) -> Page:
    for data in image.tiff_data:
        name = resolve(data)
        if name is not None:
            return files.handle(name).page(data.ifd or 0)
    if image.tiff_data:
        raise DamagedFileError(
            f"none of the files that {str(files.path)!r} names for its image is in its folder"
        )
    if files.only_xml:
        raise UnsupportedError(f"{str(files.path)!r} names no TIFF; only OME-TIFF can be read here")
    handle = files.handle(files.speaker)
    if after >= len(handle.chain):
        raise FormatError(f"it has no TiffData, and image {image.name!r} finds no page left")
    return handle.page(after)


def _compare(recipe: Recipe, image: OmeImage, notes: list[str]) -> None:
    """Note where document and pixels disagree."""
    if (image.size_x, image.size_y) != (recipe.width, recipe.length):
        notes.append(
            f"the OME-XML says {image.size_x} x {image.size_y} pixels, the TIFF has "
            f"{recipe.width} x {recipe.length}: the TIFF is right"
        )
    claimed = image.stored_dtype or from_ome_type(image.type)
    if claimed == "bool" and recipe.dtype == np.uint8:
        return  # we store it as bytes of 0 and 1
    if (
        claimed is not None
        and claimed != recipe.dtype
        and recipe.dtype.name
        not in (
            "float16",
            "bool",
            "int64",
            "uint64",
        )
    ):
        notes.append(
            f"the OME-XML says {image.type} pixels, the TIFF has {recipe.dtype.name}: the TIFF is "
            "right"
        )


def _channel_count(image: OmeImage, samples: int, notes: list[str]) -> int:
    """Return how many pages a Z and T have: channels, each with all its samples."""
    if image.size_c % samples == 0:
        return max(1, image.size_c // samples)
    notes.append(
        f"the OME-XML says {image.size_c} channels, but every page has {samples} samples: each "
        "channel is taken to have as many"
    )
    return max(1, image.size_c)


def _strides(order: str, sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    strides, total = {}, 1
    for axis in order[2:]:
        strides[axis] = total
        total *= sizes[axis]
    if total > _MOST_PLANES or sizes["C"] > _MOST_CHANNELS:
        raise FormatError(f"it claims {total} planes, Z, C, T = {tuple(sizes.values())}")
    return strides, total


def _map(
    image: OmeImage,
    resolve: _Names,
    planes: _Planes,
    sizes: dict[str, int],
    strides: dict[str, int],
    total: int,
    after: int,
    notes: list[str],
) -> int:
    """Find the file and IFD of every plane; return the first IFD behind them."""
    where = planes.where
    if not image.tiff_data:
        own = planes.files.speaker
        available = len(planes.files.handle(own).chain) - after
        where.update((n, (own, after + n)) for n in range(min(total, available)))
        notes.append("the OME-XML has no TiffData: planes are taken in the order of the file")
        return after + len(where)
    last = after
    for data in image.tiff_data:
        name = resolve(data)
        if name is None:
            continue
        if data.uuid is not None:
            planes.uuids[name] = plain_uuid(data.uuid) or ""
        at = _start(data, sizes, strides)
        if at is None:
            notes.append(
                f"a TiffData element speaks of a plane that does not exist ({_place(data)})"
            )
            continue
        ifd = data.ifd or 0
        for n in _count(data, planes.files, name, total - at):
            where[at + n] = (name, ifd + n)
            last = max(last, ifd + n + 1)
    return last


def _start(data: TiffData, sizes: dict[str, int], strides: dict[str, int]) -> int | None:
    first = {"Z": data.first_z or 0, "C": data.first_c or 0, "T": data.first_t or 0}
    if any(not 0 <= first[axis] < sizes[axis] for axis in "ZCT"):
        return None
    return sum(first[axis] * strides[axis] for axis in "ZCT")


def _count(data: TiffData, files: FileSet, name: str, most: int) -> range:
    if data.plane_count is not None:
        count = data.plane_count
    elif data.ifd is not None:
        count = 1
    else:
        try:
            count = len(files.handle(name).chain)
        except BioIOError:
            count = 1  # it is damaged; reading its planes will say so
    if count > _MOST_TO_CHECK:
        count = min(count, len(files.handle(name).chain) - (data.ifd or 0))
    return range(max(0, min(count, most)))


def _place(data: TiffData) -> str:
    return f"Z {data.first_z}, C {data.first_c}, T {data.first_t}"


def _check(planes: _Planes, total: int, notes: list[str]) -> None:
    """Note planes that are missing; refuse a file that ends before its planes do."""
    if total > len(planes.where):
        notes.append(
            f"{total - len(planes.where)} of {total} planes are not in the file(s); they cannot be "
            "read"
        )
    if len(planes.where) > _MOST_TO_CHECK:
        return
    own = planes.files.name
    needed = max((ifd for name, ifd in planes.where.values() if name == own), default=-1)
    if needed <= 0:
        return
    handle = planes.files.own
    if needed < len(handle.chain):
        return
    if handle.ifds.broken:
        raise DamagedFileError(
            f"{str(handle.path)!r} is cut off: {handle.ifds.broken}, its OME-XML speaks of "
            f"{needed + 1} pages"
        )
    notes.append(
        f"the OME-XML speaks of {needed + 1} pages, the file has {len(handle.chain)}; the others "
        "cannot be read"
    )


def _resolutions(layers: list[Layer], notes: list[str]) -> tuple[Layer, ...]:
    """Return the layers that are smaller copies of the one before; drop what else SubIFDs hold."""
    kept = [layers[0]]
    for layer in layers[1:]:
        above, this = kept[-1].recipe, layer.recipe
        smaller = this.width <= above.width and this.length <= above.length
        alike = (this.dtype, this.samples, this.planes) == (
            above.dtype,
            above.samples,
            above.planes,
        )
        if smaller and alike:
            kept.append(layer)
        else:
            notes.append(f"a SubIFD of {this.width} x {this.length} pixels is no resolution level")
    return tuple(kept)
