"""WIPP's converter: each plane of each image in a folder becomes a file of its own."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bioio_tk.backends import registry
from bioio_tk.core.pattern import Pattern, has_fields, natural
from bioio_tk.engine.pool import check_workers, cpus_available, run
from bioio_tk.errors import BioIOError, SpecError
from bioio_tk.jobs.batch.find import images
from bioio_tk.jobs.batch.split import split_into
from bioio_tk.reader import BioReader

_LOG = logging.getLogger("bioio_tk.wipp")
_AXES = "ctz"
"""In the order of their numbers in a name."""
_LONGEST = 5
"""Characters of an ending that is taken for one, the point included: ``.ome`` ``.tiff``."""


@dataclass(frozen=True, slots=True)
class WippReport:
    """What a run did.

    Attributes
    ----------
    written : tuple of Path
        The files in the output folder.
    failed : dict of str
        Why, for each source that failed.
    preview : Path or None
        What was written instead, where a preview was asked for.
    """

    written: tuple[Path, ...] = ()
    failed: dict[Path, str] = field(default_factory=dict)
    preview: Path | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """What WIPP says to a plugin by environment variables.

    Attributes
    ----------
    extension : str
        ``POLUS_IMG_EXT``: ``.ome.tif`` (default) or ``.ome.zarr``.
    threads : int
        ``NUM_THREADS``: threads for each file, one per CPU by default.
    workers : int
        ``NUM_WORKERS``: files at the same time, 1 by default.
    """

    extension: str = ".ome.tif"
    threads: int = 1
    workers: int = 1

    @classmethod
    def read(cls, given: Mapping[str, str] = os.environ) -> Environment:
        """Return what the environment says; SpecError for what is no number."""
        return cls(
            given.get("POLUS_IMG_EXT") or ".ome.tif",
            _count(given, "NUM_THREADS", cpus_available()),
            _count(given, "NUM_WORKERS", 1),
        )


def wipp(
    inp_dir: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    file_pattern: str = ".+",
    file_extension: str | None = None,
    preview: bool = False,
    exists: str = "skip",
    **options: Any,
) -> WippReport:
    """Convert images to single planes, named as WIPP's OME converter names them.

    ``cells.czi`` becomes ``cells_c0_t0_z0_s0.ome.tif`` and so on; of C, T, Z and series those are
    left out of which an image has one. A file that fails does not stop the others.

    Parameters
    ----------
    inp_dir : path, or paths
        A folder, or files, also as one text with commas between them.
    out_dir : path
        Where the files go; it is made if need be.
    file_pattern : str
        Which files of a folder: a file pattern (``img_r{r:ddd}_c{c:d+}.tif``) or, without fields,
        a regular expression for the whole name.
    file_extension : str, optional
        Ending of the new files, ``.ome.tif`` or ``.ome.zarr``; by default what ``POLUS_IMG_EXT``
        says.
    preview : bool
        Write only ``preview.json``, with the names.
    exists : {"skip", "error", "replace"}
        What to do about a file that is there: leave it where it was made from the same source in
        the same way and fail else (default), fail, or replace it.
    **options
        As for `bioio_tk.convert`.

    Returns
    -------
    WippReport
        What was written, and what failed.

    Raises
    ------
    SpecError
        Nothing matches, or two sources would become the same files.
    """
    environment = Environment.read()
    extension = _extension(file_extension or environment.extension)
    registry.for_writing(Path("image" + extension))  # raises for what nothing writes
    sources = find(inp_dir, file_pattern)
    target = Path(out_dir).expanduser()
    names = _names(sources, extension)
    target.mkdir(parents=True, exist_ok=True)
    _LOG.info("%d image(s) to convert to %s in %s", len(sources), extension, target)
    if preview:
        return WippReport(preview=_preview(target, file_pattern, sources, extension))
    options.setdefault("pyramid", False)
    options.update(exists=exists, workers=options.get("workers") or environment.threads)
    written: dict[Path, list[Path]] = {}
    failed: dict[Path, str] = {}

    def one(source: Path) -> None:
        _LOG.info("converting %s", source.name)
        try:
            written[source] = _split(source, target / names[source], extension, options)
        except (BioIOError, OSError, MemoryError) as exc:
            failed[source] = f"{type(exc).__name__}: {exc}"
            _LOG.error("%s failed: %s", source.name, exc)

    run(one, sources, environment.workers)
    _LOG.info("%d of %d image(s) converted", len(written), len(sources))
    return WippReport(
        tuple(path for source in sources for path in written.get(source, ())),
        {source: failed[source] for source in sources if source in failed},
    )


def find(inp_dir: Any, file_pattern: str) -> list[Path]:
    """Return the images, in their natural order; see `wipp`."""
    if not isinstance(inp_dir, (str, os.PathLike)):
        return [_there(Path(p)) for p in inp_dir]
    folder = Path(inp_dir).expanduser()
    if not folder.is_dir() and "," in str(inp_dir):
        return [_there(Path(p.strip())) for p in str(inp_dir).split(",") if p.strip()]
    if not folder.is_dir():
        raise NotADirectoryError(f"inpDir {str(folder)!r} is no folder")
    fits = _matcher(file_pattern)
    found = [image.path for image in images(folder) if fits(image.path.name)]
    if not found:
        raise SpecError(f"no image in {str(folder)!r} has a name that fits {file_pattern!r}")
    return sorted(found, key=lambda path: natural(path.name))


def base_name(name: str) -> str:
    """Return the name of a file without its endings: the last two, where they are short.

    >>> base_name("cells.ome.tif"), base_name("scan.czi"), base_name("a.b.c.lif"), base_name("x")
    ('cells', 'scan', 'a.b', 'x')
    """
    suffixes = [s for s in Path(name).suffixes[-2:] if len(s) <= _LONGEST]
    ending = "".join(suffixes)
    return name[: -len(ending)] if ending and name.endswith(ending) else Path(name).stem


def _there(path: Path) -> Path:
    path = path.expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    return path


def _matcher(pattern: str) -> Any:
    if has_fields(pattern):
        return Pattern(pattern).match
    try:
        return re.compile(pattern).fullmatch
    except re.error as exc:
        raise SpecError(
            f"filePattern {pattern!r} is neither a file pattern such as 'img_t{{t:d+}}.tif' nor a "
            f"regular expression: {exc}"
        ) from exc


def _extension(given: str) -> str:
    return given if given.startswith(".") else f".{given}"


def _names(sources: list[Path], extension: str) -> dict[Path, str]:
    names = {source: base_name(source.name) for source in sources}
    first: dict[str, Path] = {}
    for source, name in names.items():
        other = first.setdefault(name, source)
        if other != source:
            raise SpecError(
                f"{other.name!r} and {source.name!r} would both become {name + extension!r}: "
                "rename one, or convert them to two folders"
            )
    return names


def _preview(folder: Path, pattern: str, sources: list[Path], extension: str) -> Path:
    path = folder / "preview.json"
    # the names are those of WIPP's own converter, whose preview tells planes not apart
    content = {"filePattern": pattern, "outDir": [source.stem + extension for source in sources]}
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def _split(source: Path, base: Path, extension: str, options: dict[str, Any]) -> list[Path]:
    """Convert all planes of a file."""
    stem = str(base).replace("{", "{{").replace("}", "}}")
    made: list[Path] = []
    for number, axes in _several(source):
        ending = "".join(f"_{axis}{{{axis}}}" for axis in axes)
        if number is not None:
            ending += f"_s{number}"
        reports = split_into(
            source, f"{stem}{ending}{extension}", tuple(axes), series=number or 0, **options
        )
        made += [Path(report.target) for report in reports]
    return made


def _several(source: Path) -> Iterator[tuple[int | None, str]]:
    """Yield each series, None for the only one, and the axes of which it has more than one."""
    with BioReader(source, 1) as reader:
        sizes = []
        for number in range(reader.n_series):
            reader._choose(number, 0)  # noqa: SLF001 (opening a file may take its time)
            sizes.append({"c": reader.C, "t": reader.T, "z": reader.Z})
    for number, size in enumerate(sizes):
        yield number if len(sizes) > 1 else None, "".join(a for a in _AXES if size[a] > 1)


def _count(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise SpecError(f"the environment says {name}={text!r}: give a whole number of 1 or more")
    return check_workers(int(text))
