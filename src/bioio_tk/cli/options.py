"""The options of a conversion, for every command that converts; each is a keyword of `convert`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bioio_tk.cli.text import STORAGE_OPTION, ByteSize

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")
_CHUNKS = "Y x X [x Z [x C [x T]]]"


class Sizes(click.ParamType[Any]):
    """A number of pixels, or pixels along several axes."""

    name = "pixels"

    def __init__(self, most: int, axes: str, none: bool = False) -> None:
        self._most = most
        self._axes = axes
        self._none = none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return an int, a tuple of ints, or False."""
        if not isinstance(value, str):
            return value
        if self._none and value.lower() == "none":
            return False
        try:
            sizes = tuple(int(part) for part in value.lower().split("x"))
        except ValueError:
            sizes = ()
        if not 1 <= len(sizes) <= self._most:
            example = f"give pixels, for example 512, or {self._axes}: 512x1024"
            self.fail(f"{value!r}: {example}", param, ctx)
        return sizes if len(sizes) > 1 else sizes[0]


class _Levels(click.ParamType[Any]):
    """A number of resolutions, or keep."""

    name = "levels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return an int or the word."""
        if isinstance(value, int) or value == "keep":
            return value
        if str(value).isdecimal() and int(value) >= 1:
            return int(value)
        return self.fail(f"{value!r}: give a number from 1, or keep", param, ctx)


class _Metadata(click.ParamType[Any]):
    """KEY=VALUE, or a JSON object."""

    name = "metadata"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return pairs."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            try:
                return list(json.loads(value).items())
            except ValueError as exc:
                self.fail(f"{value!r} is no JSON: {exc}", param, ctx)
        key, sign, text = value.partition("=")
        if not sign:
            self.fail(
                f"{value!r}: give KEY=VALUE, for example dz=2.5, or a JSON object", param, ctx
            )
        try:
            return [(key, json.loads(text))]
        except ValueError:
            return [(key, text)]


# name -> what click.option takes, in the order of the help; the first word is the group it is in
OPTIONS: dict[str, dict[str, Any]] = {
    "series": {
        "metavar": "N|all",
        "help": "Which image of SRC, from 0 [0; for .xml all, as tiles]; all makes one OME-Zarr of "
        "all (a plate of a plate), or a file for each: DST with _s0, _s1 … before the ending.",
    },
    "level": {"type": int, "help": "Which resolution of SRC to begin with [0]."},
    "select": {
        "metavar": "TEXT",
        "help": "What to take, from 0, the end not included: 'c=0,2 z=10:20 t=::2 y=0:512'.",
    },
    "planes": {"metavar": "N,N|A:B", "help": "Planes (Z) to take, from 1, the end included."},
    "timepoints": {"metavar": "N,N|A:B", "help": "Time points to take, from 1."},
    "frames": {"metavar": "N,N|A:B", "help": "Another name of --timepoints."},
    "channels": {"metavar": "N,N|A:B", "help": "Channels to take, from 1."},
    "num_timepoints": {"type": int, "help": "Take the first so many time points."},
    "num_frames": {"type": int, "help": "Another name of --num-timepoints."},
    "num_zplanes": {"type": int, "help": "Take the first so many planes."},
    "order": {"metavar": "N,N", "help": "Put planes in another order, counted from 0."},
    "register_z": {
        "is_flag": True,
        "help": "Find out by how much each plane is shifted, and write that into the metadata.",
    },
    "apply_shifts": {
        "is_flag": True,
        "help": "Move the planes by the shifts that are found, or that are in the metadata of SRC.",
    },
    "max_frames": {"type": int, "help": "--register-z: time points that are averaged [200]."},
    "chunk_frames": {"type": int, "help": "--register-z: how many of them at a time [10]."},
    "max_reg_xy": {"type": int, "help": "--register-z: most pixels between two planes [30]."},
    "roi_mode": {
        "metavar": "MODE",
        "help": "Files with an image for each region: concat_y joins them, separate writes each.",
    },
    "roi": {"metavar": "N,N", "help": "With --roi-mode separate: which regions, from 1 [0: all]."},
    "dims": {"metavar": "AXES", "help": "Axes of an array that does not name them: TZYX."},
    "dim_order": {"metavar": "AXES", "help": "Another name of --dims."},
    "stack": {
        "metavar": "AXES",
        "help": "SRC is several files (a pattern): the axes along which they are put together.",
    },
    "fill": {"type": float, "help": "The value of files that are missing in such a pattern."},
    "backend": {"metavar": "NAME", "help": "What reads SRC: python (TIFF), zarr, java …"},
    "ext": {
        "metavar": ".EXT",
        "help": "DST is a folder; the file in it is named by what it holds: .tif, .zarr, .h5, "
        ".bin, .npy …",
    },
    "output_name": {"metavar": "NAME", "help": "Name of that file instead."},
    "output_suffix": {"metavar": "TEXT", "help": "What is put before the ending of its name."},
    "dataset_name": {"metavar": "NAME", "help": "HDF5: name of the dataset [mov]."},
    "metadata": {
        "type": _Metadata(),
        "multiple": True,
        "metavar": "KEY=VALUE",
        "help": "Add to the metadata: channel_names, dx, dy, dz (µm), fs (Hz), or anything. May "
        "be given several times.",
    },
    "compression": {
        "metavar": "NAME",
        "help": "TIFF: deflate [default], zstd, lzw, lzma, packbits, jpeg, jpeg2000, jpegxl, lerc "
        "or none. OME-Zarr: blosc-zstd [default], zstd [of single bytes], blosc-lz4, gzip or none.",
    },
    "compression_level": {"type": int, "help": "Level or quality, in the codec's own scale."},
    "predictor": {
        "flag": True,
        "default": None,
        "help": "TIFF: store differences of neighbouring pixels [as suits the codec].",
    },
    "tile_size": {
        "type": Sizes(2, "height x width"),
        "help": "Height and width of tiles or chunks, a multiple of 16 [1024].",
    },
    "ngff_version": {
        "metavar": "VERSION",
        "help": "OME-Zarr: 0.5 [default, Zarr 3] or 0.4 [Zarr 2].",
    },
    "chunks": {
        "type": Sizes(5, _CHUNKS),
        "help": f"OME-Zarr: size of the chunks, {_CHUNKS}, in place of --tile-size.",
    },
    "shards": {
        "type": Sizes(5, _CHUNKS, none=True),
        "help": f"OME-Zarr 0.5: size of the shards, {_CHUNKS}, a multiple of the chunks, or none "
        "[where there would be very many files].",
    },
    "pyramid": {"flag": True, "default": None, "help": "Add smaller resolutions [yes]."},
    "pyramid_z": {
        "flag": True,
        "default": None,
        "help": "OME-Zarr: shrink along Z as well, until pixels are cubes [no].",
    },
    "bdv_xml": {
        "is_flag": True,
        "help": "OME-Zarr: write an XML beside it with which BigDataViewer and BigStitcher open it "
        "[no]; it is of version 0.4 then.",
    },
    "levels": {
        "type": _Levels(),
        "metavar": "N|keep",
        "help": "Number of resolutions, the full one included [down to 256 pixels]; keep copies "
        "those of SRC.",
    },
    "downsample": {
        "metavar": "METHOD",
        "help": "mean [default], mode [default for labels], nearest, median or max.",
    },
    "dtype": {"metavar": "TYPE", "help": "Pixel type to convert to, for example uint8."},
    "cast": {
        "metavar": "HOW",
        "help": "How to convert pixels: exact [default: stop where a value does not fit], clip, "
        "scale or wrap. scale takes the full range of the type, not that of the pixels, to the "
        "full range of the new one.",
    },
    "ome": {
        "flag": True,
        "default": None,
        "help": "Write OME metadata [yes]; without, a TIFF for ImageJ, or a plain Zarr array.",
    },
    "group": {
        "metavar": "PATH",
        "help": "OME-Zarr: add the image to the store DST, as labels/NAME, as a series NAME or as "
        "a field ROW/COLUMN/FIELD of a plate.",
    },
    "labels": {
        "flag": True,
        "default": None,
        "help": "OME-Zarr: copy the label images of SRC, too [yes].",
    },
    "storage_options": {"names": ("--storage-option", "--storage-options"), **STORAGE_OPTION},
    "exists": {
        "type": click.Choice(["error", "skip", "replace"]),
        "help": "What to do where DST is there: error [default]; skip it where it was made from "
        "the same source with the same options; or replace it once the new image is complete.",
    },
    "overwrite": {"is_flag": True, "help": "The same as --exists replace."},
    "resume": {
        "is_flag": True,
        "help": "Go on with what an interrupted run has left, and leave what is done if this one "
        "is interrupted.",
    },
    "dry_run": {
        "is_flag": True,
        "help": "Write nothing; show what would be written, and estimate size and time.",
    },
    "verify": {
        "type": click.Choice(["none", "sample", "full"]),
        "help": "Compare the new image with SRC before it goes into its place [none].",
    },
    "memory": {
        "type": ByteSize(),
        "metavar": "SIZE",
        "help": "Memory to keep to, more or less: 500MB, 2GB.",
    },
    "target_chunk_mb": {"type": float, "help": "MB of pixels on their way, in place of --memory."},
    "workers": {"type": click.IntRange(1), "help": "Threads [one per CPU]."},
    "client": {
        "metavar": "ADDRESS",
        "names": ("--cluster", "--client"),
        "help": "Let the workers of the Dask scheduler at ADDRESS do it: tcp://host:8786.",
    },
    "shard_job": {
        "metavar": "I/N",
        "help": "Do the I-th of N parts of an OME-Zarr; other processes do the others.",
    },
    "finalize": {"is_flag": True, "help": "Complete an OME-Zarr whose parts are all done."},
}


def conversion(command: F) -> F:
    """Give a command the options of a conversion."""
    for name, given in reversed(OPTIONS.items()):
        command = option(name, **given)(command)
    return command


def option(name: str, *, flag: bool = False, names: Any = (), **more: Any) -> Callable[[F], F]:
    """Return a decorator for the option of a keyword: ``tile_size`` is ``--tile-size``."""
    dashed = name.replace("_", "-")
    spelled = f"--{dashed}/--no-{dashed}" if flag else f"--{dashed}"
    return click.option(*(names or (spelled,)), name, **more)


def check_both(src: tuple[str, ...], dst: str) -> None:
    """Refuse one path alone, which would count as the target, and be told that SRC is missing."""
    if not src:
        raise click.UsageError(f"one path was given, {dst!r}: give SRC and DST, where it goes")


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords for `convert`: those options that were given."""
    # a zero is given (compression_level, fill), and is equal to False
    found = {
        name: value
        for name, value in options.items()
        if value is not None and value is not False and value != ()
    }
    found |= {
        name: False
        for name in ("predictor", "pyramid", "ome", "labels", "pyramid_z", "shards")
        if options.get(name) is False
    }
    for name in ("storage_options", "metadata"):
        if name in found:
            pairs = found[name]
            flat = pairs if name == "storage_options" else [p for several in pairs for p in several]
            found[name] = dict(flat)
    return found
