"""Validate: whether an image file is what its format asks for, and all of it can be read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bioio_tk.backends import registry
from bioio_tk.core.location import locate
from bioio_tk.engine import pool
from bioio_tk.errors import BioIOError, SpecError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from bioio_tk.backends.base import Source

_MOST_TILES = 3
"""Tiles named for each page that has bad ones."""


class Problem(NamedTuple):
    """Something that is wrong.

    Attributes
    ----------
    severity : {"error", "warning"}
        An error is against the format, or cannot be read; a warning is against its advice.
    where : str
        Where in the file: "" for the file as a whole, ``"0/zarr.json"``, ``"page 3"``.
    message : str
        What is wrong.
    """

    severity: Literal["error", "warning"]
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What was found in a file.

    Attributes
    ----------
    path : str
        The file.
    format : str
        "OME-Zarr 0.5", "Zarr", "OME-TIFF" or "TIFF".
    problems : tuple of Problem
        Nothing for a good file.
    pixels : int or None
        How many chunks or tiles were decoded; None where that was not asked for.
    """

    path: str
    format: str
    problems: tuple[Problem, ...]
    pixels: int | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not any(problem.severity == "error" for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        problems = [problem._asdict() for problem in self.problems]
        return {**asdict(self), "problems": problems, "ok": self.ok}

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)


def validate(
    path: str | os.PathLike[str],
    *,
    pixels: bool = False,
    max_workers: int | None = None,
    storage_options: dict[str, Any] | None = None,
) -> ValidationReport:
    """Check an OME-Zarr, an OME-TIFF or another TIFF.

    Parameters
    ----------
    path : path or URL
        The file or folder.
    pixels : bool
        Decode every chunk or tile that is stored, too. Without, only what describes them is read.
    max_workers : int, optional
        Threads for that; None for one per CPU.
    storage_options : dict, optional
        For remote locations: what fsspec passes on to the file system.

    Returns
    -------
    ValidationReport
        Damage is found, not raised.

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`.
    UnknownFormatError
        It is none of these formats.
    """
    workers = pool.check_workers(max_workers)
    location = locate(path)
    choice = registry.choose(location, None, storage_options)
    row = (choice.otherwise or choice).backend  # a TIFF is one, whatever it is a part of
    location = registry.resolve(location, row)
    if row.name == "zarr":
        from bioio_tk.jobs._validate_zarr import check_store

        name, problems, count = check_store(location, storage_options or {}, pixels, workers)
    elif isinstance(location, Path) and row.name == "python":
        name, problems, count = _check_tiff(location, row, pixels=pixels, workers=workers)
    else:
        raise SpecError(f"{path!s}: OME-Zarr and local TIFF files can be validated")
    unique = tuple(dict.fromkeys(problems))
    return ValidationReport(str(path), name, unique, count if pixels else None)


# -- TIFF -----------------------------------------------------------------------------------------


def _check_tiff(
    path: Path, row: registry.Backend, *, pixels: bool, workers: int
) -> tuple[str, list[Problem], int]:
    try:
        source = registry.load_source(row)(path)
    except BioIOError as exc:
        return "TIFF", [Problem("error", "", str(exc))], 0
    try:
        xml = source.ome_xml()
        problems = [Problem("warning", "", note) for note in source.notes]
        if xml is not None:
            problems += _check_xml(xml)
        if path.suffix.lower() not in (".xml", ".ome"):
            problems += _check_segments(path)
        count = _decode(source, problems, workers) if pixels else 0
        problems += [Problem("warning", "", note) for note in source.notes]
        return "OME-TIFF" if xml is not None else "TIFF", problems, count
    finally:
        source.close()


def _check_xml(xml: str) -> list[Problem]:
    """Return what is wrong with an OME-XML document, by its schema where that can be checked."""
    from bioio_tk.meta.ome import read_document, to_ome

    try:
        notes = read_document(xml).notes
        to_ome(xml)
    except (BioIOError, ValueError) as exc:
        return [Problem("error", "OME-XML", one_line(exc))]
    problems = [Problem("warning", "OME-XML", note) for note in notes]
    error = _schema_error(xml)
    return problems if error is None else [*problems, Problem("error", "OME-XML", error)]


def _schema_error(xml: str) -> str | None:
    try:
        from ome_types import validate_xml

        validate_xml(xml.encode())
    except ImportError:  # lxml and xmlschema are not there
        return None
    except Exception as exc:  # each of the two packages has errors of its own
        why = one_line(exc).rpartition(" failed: - ")[2]  # lxml's is preceded by the document
        return f"is not valid by the OME schema: {why}"
    return None


def one_line(exc: BaseException) -> str:
    """Return the text of an error as one line that is not too long."""
    return " ".join(str(exc).split())[:400]


def _check_segments(path: Path) -> list[Problem]:
    """Return which tiles and strips of which pages do not lie in the file."""
    import tifffile

    size = path.stat().st_size
    problems: list[Problem] = []
    try:
        with tifffile.TiffFile(path) as tif:
            for number, page in enumerate(tif.pages):
                problems += _check_page(page, f"page {number}", size)
                for level, small in enumerate(getattr(page, "pages", None) or (), 1):
                    problems += _check_page(small, f"page {number}, level {level}", size)
    except Exception as exc:  # damaged files bring any error out of the parser
        problems.append(Problem("error", "", f"the directories cannot be read: {exc}"))
    return problems


def _check_page(page: Any, where: str, size: int) -> Iterator[Problem]:
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) != len(counts):
        yield Problem("error", where, f"{len(offsets)} offsets of tiles, {len(counts)} lengths")
    outside = [
        n for n, (at, count) in enumerate(zip(offsets, counts, strict=False)) if at + count > size
    ]
    if outside:
        first = ", ".join(map(str, outside[:_MOST_TILES]))
        more = " …" if len(outside) > _MOST_TILES else ""
        text = f"{len(outside)} of {len(offsets)} tiles do not lie in the file: {first}{more}"
        yield Problem("error", where, text)


def _decode(source: Source, problems: list[Problem], workers: int) -> int:
    """Decode every tile; return how many there are."""
    from bioio_tk.core.spec import Address

    done = 0
    for image, spec in enumerate(source.images):
        for level, size in enumerate(spec.levels):
            addresses = [Address(image, level, key) for key in size.grid.keys()]  # noqa: SIM118 - no dict

            def one(at: Address) -> None:
                try:
                    source.read_tile(at)
                except (BioIOError, OSError) as exc:
                    where = f"image {at.image}, level {at.level}"
                    problems.append(Problem("error", where, str(exc)))

            pool.run(one, addresses, workers if source.caps.parallel_read else 1)
            done += len(addresses)
    return done
