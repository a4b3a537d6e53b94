"""Formats of a stream, and where each puts its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, PositiveInt, field_validator

from bioio_tk.stream.model import Model

TiffCompression: TypeAlias = Literal[
    "lzw", "none", "deflate", "zstd", "packbits", "lzma", "jpeg", "jpeg2000", "jpegxl", "lerc"
]
ZarrCompression: TypeAlias = Literal["blosc-zstd", "blosc-lz4", "zstd", "none", "gzip"]
BdvCompression: TypeAlias = Literal["gzip", "none"]
Compression: TypeAlias = TiffCompression | ZarrCompression

_SUFFIXES = {
    **dict.fromkeys((".tiff", ".tif", ".btf", ".tf2", ".tf8"), "ome-tiff"),
    ".zarr": "ome-zarr",
    ".xml": "bdv",
    ".h5": "bdv",
}
SPOKEN = {"ome-tiff": "OME-TIFF", "ome-zarr": "OME-Zarr", "bdv": "BigDataViewer"}


class _FileFormat(Model):
    """A format whose files have a suffix."""

    name: str
    suffix: str

    @field_validator("suffix")
    @classmethod
    def _check_suffix(cls, suffix: str) -> str:
        kind = suffix_format(suffix)
        own = cls.model_fields["name"].default
        if kind is not None and kind != own:
            raise ValueError(
                f"suffix={suffix!r} is that of {SPOKEN[kind]}: give "
                f"{cls.model_fields['suffix'].default!r} or choose format={kind!r}"
            )
        return suffix


class OmeTiffFormat(_FileFormat):
    """OME-TIFF.

    Parameters
    ----------
    backend : {"auto", "tifffile"}
        Taken for the sake of other programs; there is one engine.
    suffix : str
        How the files end.
    prefer_single_file : {"auto", "always", "never"} or bool
        One file, or a folder with a file for each position; ``"auto"`` makes one file of one
        position.
    multi_file_metadata : {"redundant", "master-tiff", "companion-file"}
        Where the metadata go that concern all files: into each of them, into the first, or into
        a file of their own.
    companion_file : str
        Name of that file.
    """

    name: Literal["ome-tiff"] = "ome-tiff"
    backend: Literal["auto", "tifffile"] = "auto"
    suffix: str = ".ome.tiff"
    prefer_single_file: Literal["auto", "always", "never"] = "auto"
    multi_file_metadata: Literal["redundant", "master-tiff", "companion-file"] = "redundant"
    companion_file: str = "companion.ome"
    compressions: ClassVar[tuple[str, ...]] = get_args(TiffCompression)

    @field_validator("prefer_single_file", mode="before")
    @classmethod
    def _from_bool(cls, value: Any) -> Any:
        return {True: "always", False: "never"}[value] if isinstance(value, bool) else value

    @field_validator("companion_file")
    @classmethod
    def _check_companion(cls, value: str) -> str:
        if not value or value in (".", "..") or "/" in value or "\\" in value:
            raise ValueError(f"companion_file={value!r} is no name of a file: give 'companion.ome'")
        return value

    def single_file(self, num_positions: int) -> bool:
        """Return whether all goes into one file."""
        if self.prefer_single_file == "auto":
            return num_positions <= 1
        return self.prefer_single_file == "always"

    def get_output_path(self, root_path: str, *, num_positions: int = 1) -> str:
        """Return the path of the file, or of the folder of files."""
        stem, _ = split_suffix(root_path)
        return stem + self.suffix if self.single_file(num_positions) else stem


class OmeZarrFormat(_FileFormat):
    """OME-Zarr.

    Parameters
    ----------
    backend : {"auto", "tensorstore", "acquire-zarr", "zarrs-python", "zarr-python"}
        Taken for the sake of other programs; there is one engine.
    suffix : str
        How the folder ends.
    ngff_version : {"0.5", "0.4"}
        0.5 is Zarr v3, 0.4 is Zarr v2, which has no shards.
    """

    name: Literal["ome-zarr"] = "ome-zarr"
    backend: Literal["auto", "tensorstore", "acquire-zarr", "zarrs-python", "zarr-python"] = "auto"
    suffix: str = ".ome.zarr"
    ngff_version: Literal["0.5", "0.4"] = "0.5"
    compressions: ClassVar[tuple[str, ...]] = get_args(ZarrCompression)

    def get_output_path(self, root_path: str, *, num_positions: int = 1) -> str:
        """Return the path of the folder."""
        return split_suffix(root_path)[0] + self.suffix


class BdvFormat(_FileFormat):
    """BigDataViewer: an XML, and the HDF5 of the same name beside it.

    Parameters
    ----------
    backend : {"auto"}
        There is one.
    suffix : str
        How the XML ends; a path that ends in ``.h5`` stands for the XML beside it.
    """

    name: Literal["bdv"] = "bdv"
    backend: Literal["auto"] = "auto"
    suffix: str = ".xml"
    compressions: ClassVar[tuple[str, ...]] = get_args(BdvCompression)

    def get_output_path(self, root_path: str, *, num_positions: int = 1) -> str:
        """Return the path of the XML."""
        suffix = ".xml" if self.suffix.lower().endswith(".h5") else self.suffix
        return split_suffix(root_path)[0] + suffix


class ScratchFormat(Model):
    """Plain arrays for the time being, in memory or in temporary files.

    Parameters
    ----------
    backend : {"scratch"}
        There is one.
    max_memory_bytes : int
        Memory it may take where there is no root_path.
    suffix : str
        Counts for nothing.
    spill_to_disk : bool
        Go on in a temporary file when the memory is used up; else that is an error.
    """

    name: Literal["scratch"] = "scratch"
    backend: Literal["scratch"] = "scratch"
    max_memory_bytes: PositiveInt = 4 << 30
    suffix: str = ""
    spill_to_disk: bool = True

    def get_output_path(self, root_path: str, *, num_positions: int = 1) -> str:
        """Return `root_path` as it is."""
        return root_path


_CALLED: Mapping[
    str, tuple[type[OmeTiffFormat | OmeZarrFormat | BdvFormat | ScratchFormat], str]
] = {
    "ome-tiff": (OmeTiffFormat, "auto"),
    "tiff": (OmeTiffFormat, "auto"),
    "tifffile": (OmeTiffFormat, "tifffile"),
    "ome-zarr": (OmeZarrFormat, "auto"),
    "zarr": (OmeZarrFormat, "auto"),
    **{
        name: (OmeZarrFormat, name)
        for name in ("tensorstore", "acquire-zarr", "zarrs-python", "zarr-python")
    },
    "bdv": (BdvFormat, "auto"),
    "bigdataviewer": (BdvFormat, "auto"),
    "scratch": (ScratchFormat, "scratch"),
    "memory": (ScratchFormat, "scratch"),
}


def _by_name(value: Any) -> Any:
    return format_called(value, "") if isinstance(value, str) else value


Format: TypeAlias = Annotated[
    OmeTiffFormat | OmeZarrFormat | BdvFormat | ScratchFormat,
    BeforeValidator(_by_name),
    Field(discriminator="name"),
]


def format_called(value: str | Mapping[str, Any], root_path: str) -> dict[str, Any]:
    """Return the fields of a format that is given by its name or its fields.

    The suffix of `root_path` counts where it is one of the format's.
    """
    if isinstance(value, str):
        if value.lower() not in _CALLED:
            raise ValueError(
                f"format={value!r} is not known: give one of {', '.join(_CALLED)} or auto"
            )
        model, backend = _CALLED[value.lower()]
        value = {"name": model.model_fields["name"].default, "backend": backend}
    _, suffix = split_suffix(root_path)
    if suffix and suffix_format(suffix) == value.get("name"):
        return {"suffix": suffix, **value}
    return dict(value)


def suffix_format(path: str) -> str | None:
    """Return the format whose suffix a path has, None for one nobody knows."""
    return next((kind for end, kind in _SUFFIXES.items() if path.lower().endswith(end)), None)


def split_suffix(path: str) -> tuple[str, str]:
    """Return a path without and the suffix by which it names a format, as it is spelled.

    >>> split_suffix("a/b.c.OME.tif"), split_suffix("a.zarr/"), split_suffix("a.v2")
    (('a/b.c', '.OME.tif'), ('a', '.zarr'), ('a.v2', ''))
    """
    plain = path.rstrip("/\\") or path
    for end in _SUFFIXES:
        if plain.lower().endswith(end):
            long = ".ome" + end if plain.lower().endswith(".ome" + end) else end
            return plain[: -len(long)], plain[-len(long) :]
    return plain, ""


def contradiction(format_name: str, root_path: str) -> str | None:
    """Return what is wrong with a path whose suffix is that of another format."""
    kind = suffix_format(split_suffix(root_path)[1])
    if format_name == "scratch" or kind in (None, format_name):
        return None
    model, _ = _CALLED[format_name]
    suffix = model.model_fields["suffix"].default
    return (
        f"format={format_name!r} contradicts root_path={root_path!r}, which ends as "
        f"{SPOKEN[str(kind)]} does: give format={kind!r}, or a root_path that ends in {suffix!r}"
    )
