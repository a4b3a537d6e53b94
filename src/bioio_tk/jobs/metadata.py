"""Metadata: look at names, colours and pixel sizes, and change them in place; pixels stay."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import registry
from bioio_tk.backends._store import exclusive
from bioio_tk.backends._tiff_comment import TiffComment
from bioio_tk.backends._zarr_tree import OME_XML, join, parse, to_json
from bioio_tk.core.location import Url, locate
from bioio_tk.draft import Draft
from bioio_tk.errors import SpecError, UnsupportedError
from bioio_tk.jobs.upgrade import put_file
from bioio_tk.meta import ngff_edit, ome, ome_edit
from bioio_tk.meta.repair import allowed
from bioio_tk.reader import BioReader
from bioio_tk.target import lock, partial_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.meta.ome import OmeDocument

KEYS = (
    "name",
    "channel_names",
    "channel_colors",
    *(f"physical_size_{axis}" for axis in "xyz"),
    "time_increment",
)
"""What can be looked at and changed."""
_LISTS = ("channel_names", "channel_colors")
_V3, _V2, _V2_ALL = "zarr.json", ".zattrs", ".zmetadata"
_DEEPEST = 5


@dataclass(frozen=True, slots=True)
class MetadataReport:
    """What was changed.

    Attributes
    ----------
    path : str
        The image.
    files : tuple of str
        The files that were changed.
    notes : tuple of str
        What is worth knowing.
    """

    path: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False)


def get_metadata(
    path: str | os.PathLike[str],
    *,
    series: int = 0,
    storage_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return names, colours and pixel sizes of an image.

    Parameters
    ----------
    path : path or URL
        Any image that can be read.
    series : int
        Which of its images.
    storage_options : dict, optional
        For a URL: what fsspec passes to the file system.

    Returns
    -------
    dict
        ``name``; ``channel_names`` and ``channel_colors``, (red, green, blue, alpha), a list each
        with None for what is not known; ``physical_size_x``, ``_y``, ``_z`` and
        ``time_increment``: (value, unit), or None.
    """
    remote = storage_options if isinstance(locate(path), Url) else None
    with BioReader(path, 1, series=series, storage_options=remote) as reader:
        spec = reader.array.spec
        colors = reader.channel_colors[:: spec.samples]
        size = spec.physical_size
        return {
            "name": spec.name,
            "channel_names": reader.channel_names[:: spec.samples],
            "channel_colors": colors,
            **{f"physical_size_{axis}": getattr(size, axis) for axis in "xyz"},
            "time_increment": spec.time_increment,
        }


def set_metadata(path: str | os.PathLike[str], *, series: int = 0, **values: Any) -> MetadataReport:
    """Change names, colours and pixel sizes of an OME-TIFF or an OME-Zarr where it lies.

    No pixel is read or written. What was not named stays as it is. Everything is checked before
    anything is written, and each file is the old or the new one at every moment; where there are
    several and the work was cut off, it can simply be done again.

    Parameters
    ----------
    path : path
        A file or folder of this machine.
    series : int
        Which of its images.
    **values
        ``name``: text. ``channel_names``: a list with a name for each channel, or a dict from
        the number of a channel, from 0, to its name. ``channel_colors``: the same with
        ``(red, green, blue)``, 0 to 255, a fourth number for alpha, or ``"#rrggbb"``.
        ``physical_size_x``, ``_y``, ``_z``, ``time_increment``: ``(value, unit)`` as in
        ``(0.65, "µm")``. None stands for "not known".

    Returns
    -------
    MetadataReport
        Which files were changed.

    Raises
    ------
    SpecError
        A value makes no sense, or there are more names than channels. Nothing was changed.
    UnsupportedError
        The format cannot be changed in place, or has no place for a value.
    TargetBusyError
        A writer is at work on the file.

    Examples
    --------
    >>> set_metadata("cells.ome.tif", channel_names=["DAPI", "GFP"],
    ...              physical_size_x=(0.65, "µm"))                     # doctest: +SKIP
    """
    changes = _checked(values)
    place = _local(path)
    notes: list[str] = []
    with BioReader(place, 1, series=series) as reader:
        spec = reader.array.spec
        _fit(changes, spec)
        edits = _edits(reader)
        if edits == "description":
            files = _tiff_documents(reader)

            def edit(xml: bytes) -> bytes:
                return ome_edit.edit(xml, reader.series, changes)

            new = {file: edit(xml) for file, xml in files.items()}
        elif edits == "attributes":
            new = dict(_zarr_documents(reader, spec, changes, notes))
        else:
            raise _not_ours(place, reader)
        root = Path(str(reader.used_files[0])) if edits == "attributes" else place
    for document in new.values():
        if document.lstrip()[:1] == b"<":
            ome.read_document(document)
    written = _write(new, root, folder=edits == "attributes")
    return MetadataReport(str(path), written, tuple(notes))


def ome_xml(
    path: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None
) -> str | None:
    """Return the OME-XML document of a file as it stands there, None where it has none."""
    remote = storage_options if isinstance(locate(path), Url) else None
    with BioReader(path, 1, storage_options=remote) as reader:
        return reader.ome_xml


def set_ome_xml(path: str | os.PathLike[str], xml: str | bytes) -> MetadataReport:
    """Put another OME-XML document into the place of the one in an OME-TIFF or OME-Zarr.

    Parameters
    ----------
    path : path
        A file or folder of this machine. Of an OME-Zarr the file ``OME/METADATA.ome.xml`` is
        replaced; names and pixel sizes in the Zarr's own attributes stay, see `set_metadata`.
    xml : str or bytes
        The document. It must describe the same images: their sizes, and where planes are.

    Raises
    ------
    FormatError
        It is no OME-XML.
    SpecError
        It describes other images. Nothing was changed.
    """
    data = xml.encode() if isinstance(xml, str) else bytes(xml)
    document = ome.read_document(data)
    place = _local(path)
    with BioReader(place, 1) as reader:
        zarr = _edits(reader) == "attributes"
        if not _edits(reader):
            raise _not_ours(place, reader)
        _same_images(reader, document)
        root = Path(str(reader.used_files[0])) if zarr else place
        if zarr:
            _check_folder(root)
            new = {root / OME_XML: data}
        else:
            files = _tiff_documents(reader)
            if len(files) > 1:
                raise UnsupportedError(
                    f"{str(place)!r}: {len(files)} files have an OME-XML of their own, each with "
                    "its own UUID: change single values with set_metadata"
                )
            old = ome.read_document(next(iter(files.values())))
            _same_planes(old, document)
            new = dict.fromkeys(files, data)
    return MetadataReport(str(path), _write(new, root, folder=zarr))


# -- what may be written --------------------------------------------------------------------------


def _local(path: str | os.PathLike[str]) -> Path:
    place = locate(path)
    if isinstance(place, Url):
        raise UnsupportedError(f"{str(place)!r} is remote: only files of this machine are changed")
    return place


def _edits(reader: BioReader) -> str:
    """Return where the metadata of what is open can be changed, see `registry.Backend`."""
    return next(row.edits for row in registry.rows() if row.name == reader.backend)


def _not_ours(place: Path, reader: BioReader) -> UnsupportedError:
    return UnsupportedError(
        f"{str(place)!r} cannot be changed in place, it is read by the {reader.backend!r} backend: "
        "OME-TIFF and OME-Zarr can; convert it to one of these"
    )


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as `ome_edit.edit` takes them; a list as a dict."""
    unknown = [key for key in values if key not in KEYS]
    if unknown:
        raise SpecError(f"{unknown[0]!r} cannot be set; these can: {', '.join(KEYS)}")
    if not values:
        raise SpecError(f"nothing to change was given; these can be: {', '.join(KEYS)}")
    return {key: _value(key, value) for key, value in values.items()}


def _value(key: str, value: Any) -> Any:
    draft = Draft()
    if key == "name":
        return None if value is None else _text(key, value)
    if key in _LISTS:
        if isinstance(value, str) or value is None or not hasattr(value, "__iter__"):
            raise SpecError(f"{key}={value!r}: give a list, one for each channel, or a dict")
        given = dict(value) if hasattr(value, "items") else None
        parts = list(value) if given is None else list(given.values())
        if key == "channel_names":
            parts = [None if v is None else _text(key, v) for v in parts]
        draft.set(key, parts)
        checked = getattr(draft, key)
        return checked if given is None else dict(zip(given, checked, strict=True))
    draft.set(key, value)
    return draft.time_increment if key == "time_increment" else draft.physical.get(key[-1])


def _text(key: str, value: Any) -> str:
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "\0"
    if allowed(text) != text or "\0" in text:
        raise SpecError(f"{key}={value!r:.80} has a character that no file can hold")
    return text


def _fit(changes: dict[str, Any], spec: ImageSpec) -> None:
    """Turn the lists into dicts; SpecError where the image has fewer channels, or others."""
    count = spec.shape[3] // spec.samples
    for key in _LISTS:
        given = changes.get(key)
        if isinstance(given, list):
            if len(given) == spec.shape[3]:
                given = given[:: spec.samples]
            if len(given) != count:
                raise SpecError(f"{key} has {len(given)} entries, but the image has C={count}")
            changes[key] = dict(enumerate(given))
        for number in changes.get(key) or ():
            whole = isinstance(number, int) and not isinstance(number, bool)
            if not whole or not 0 <= number < count:
                raise SpecError(f"{key}: there is no channel {number!r}, only 0 to {count - 1}")


def _same_images(reader: BioReader, document: OmeDocument) -> None:
    images = reader.array.view().source.images
    found = [(i.size_y, i.size_x, i.size_z, i.size_c, i.size_t) for i in document.images]
    if found != [image.shape for image in images]:
        raise SpecError(
            f"the OME-XML describes other images than those of {str(reader.path)!r}: it has "
            f"{found[:3]}, the file {[image.shape for image in images][:3]} (Y, X, Z, C, T)"
        )


def _same_planes(old: OmeDocument, new: OmeDocument) -> None:
    for a, b in zip(old.images, new.images, strict=True):
        if (a.order, a.tiff_data, a.type) != (b.order, b.tiff_data, b.type):
            raise SpecError(
                "the OME-XML says that pixels are elsewhere or of another kind (DimensionOrder, "
                "TiffData, Type): these must be as in the file's own document"
            )


# -- TIFF -----------------------------------------------------------------------------------------


def _tiff_documents(reader: BioReader) -> dict[Path, bytes]:
    """Return each file that holds the whole OME-XML of a set, and the document in it."""
    count = reader.n_series
    found: dict[Path, bytes] = {}
    files = [Path(str(file)) for file in reader.used_files]
    for file in files + [f for f in _companions(files) if f not in files]:
        xml = _document(file)
        if b"OME" not in xml[:4096]:
            continue
        if len(ome.read_document(xml).images) == count:
            found[file] = xml
    if not found:
        raise UnsupportedError(
            f"{str(reader.path)!r} is a TIFF without OME-XML, which has no place for such "
            "metadata: convert it to an OME-TIFF (out.ome.tif) or OME-Zarr"
        )
    return found


def _companions(files: list[Path]) -> Iterator[Path]:
    """Yield the files that documents say have the whole one."""
    for file in files:
        xml = _document(file)
        if b"BinaryOnly" in xml:
            name = ome.read_document(xml).metadata_only_file
            # no file outside of the folder is touched
            if name and Path(name).name == name and file.with_name(name).is_file():
                yield file.with_name(name)


def _document(file: Path) -> bytes:
    with file.open("rb") as opened:
        head = opened.read(64)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return file.read_bytes()
    comment = TiffComment(file)
    try:
        return comment.read()
    finally:
        comment.close()


# -- OME-Zarr -------------------------------------------------------------------------------------


def _zarr_documents(
    reader: BioReader, spec: ImageSpec, changes: Mapping[str, Any], notes: list[str]
) -> Iterator[tuple[Path, bytes]]:
    """Yield each file to be replaced, and what is to be in it."""
    root = Path(str(reader.used_files[0]))
    _check_folder(root)
    source: Any = reader.array.view().source
    path: str = source.images.at(reader.series).path
    name = _V3 if (root / path / _V3).is_file() else _V2
    file = root / path / name
    if not file.is_file():
        raise UnsupportedError(
            f"{str(root / path)!r} is an array without OME metadata: convert it to an OME-Zarr"
        )
    document = parse(file.read_bytes(), str(file))
    old = document.get("attributes", {}) if name == _V3 else document
    if not isinstance((old.get("ome") or old).get("multiscales"), list):
        raise UnsupportedError(
            f"{str(root / path)!r} has no OME metadata: convert it to an OME-Zarr"
        )
    which = 0 if path else reader.series  # a group may have several images itself
    new = ngff_edit.edit(old, spec, changes, str(root / path), which)
    yield file, to_json({**document, "attributes": new} if name == _V3 else new)
    copies = _consolidated(root, path, name, new)
    if copies is not None:
        yield copies
    documents = [(OME_XML, reader.series, reader.n_series)]
    documents += [(join(path, OME_XML), 0, 1)] if path else []
    for key, number, count in documents:
        if not (root / key).is_file():
            continue
        xml = (root / key).read_bytes()
        images = len(ome.read_document(xml).images)
        if images != count:
            notes.append(f"{key} describes {images} images, not {count}: it was left as it is")
            continue
        yield root / key, ome_edit.edit(xml, number, changes)


def _consolidated(
    root: Path, path: str, name: str, attributes: Mapping[str, Any]
) -> tuple[Path, bytes] | None:
    """Return the file at the root that has copies of all attributes, brought up to date."""
    file = root / (_V3 if name == _V3 else _V2_ALL)
    if not file.is_file():
        return None
    document = parse(file.read_bytes(), str(file))
    if name == _V2:
        copies = document.get("metadata")
        if not isinstance(copies, dict) or join(path, _V2) not in copies:
            return None
        copies[join(path, _V2)] = attributes
        return file, to_json(document)
    held = document.get("consolidated_metadata")
    copies = held.get("metadata") if isinstance(held, dict) else None
    if not isinstance(copies, dict) or path not in copies:
        return None
    copies[path] = {**copies[path], "attributes": attributes}
    return file, to_json(document)


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise UnsupportedError(
            f"{str(root)!r} is packed into one file: unpack it, or convert it with new metadata"
        )
    for above in root.absolute().parents[:_DEEPEST]:
        if any((above / name).is_file() for name in (_V3, ".zgroup")):
            raise SpecError(
                f"{str(root)!r} is a part of {str(above)!r}: name that store and the series in it"
            )


# -- writing --------------------------------------------------------------------------------------


def _write(documents: Mapping[Path, bytes], root: Path, *, folder: bool) -> tuple[str, ...]:
    """Put new documents into their files, each of them at once."""
    with ExitStack() as stack:
        _not_being_written(root)
        if folder:
            stack.enter_context(exclusive(root))
        steps = [_step(stack, file, data) for file, data in documents.items()]
        for step in steps:
            step()
    return tuple(map(str, documents))


def _step(stack: ExitStack, file: Path, data: bytes) -> Callable[[], object]:
    """Return what writes a document; what can fail before has then failed."""
    if not file.exists() or data[:1] in (b"{", b"["):
        file.parent.mkdir(exist_ok=True)
        return lambda: put_file(file, data)
    with file.open("rb") as opened:
        head = opened.read(4)
    if head[:2] not in (b"II", b"MM"):
        return lambda: put_file(file, data)
    comment = TiffComment(file, writable=True)
    stack.callback(comment.close)
    lock(comment.fileno(), file)
    return lambda: comment.replace(data)


def _not_being_written(path: Path) -> None:
    """Raise TargetBusyError where a writer makes what is to replace the file."""
    try:
        fd = os.open(partial_path(path), os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        lock(fd, path)
    finally:
        os.close(fd)
