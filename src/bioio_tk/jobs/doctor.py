"""Doctor: what is installed here, what this process may use, and what would go wrong."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import bioio_tk
from bioio_tk.backends import _java_home
from bioio_tk.engine.pool import cpus_available
from bioio_tk.errors import BioIOError
from bioio_tk.jobs import java
from bioio_tk.reader import BioReader
from bioio_tk.writer import BioWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bioio_tk.jobs.java import Diagnosis

# name of the package -> name of what is imported
PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        "numpy": "numpy",
        "tifffile": "tifffile",
        "imagecodecs": "imagecodecs",
        "numcodecs": "numcodecs",
        "google-crc32c": "google_crc32c",
        "ome-types": "ome_types",
        "click": "click",
        "isal": "isal.isal_zlib",
        "platformdirs": "platformdirs",
    }
)
EXTRAS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "dask": {"dask": "dask.array", "distributed": "distributed", "xarray": "xarray"},
        "hdf5": {"h5py": "h5py"},
        "remote": {"fsspec": "fsspec", "aiohttp": "aiohttp", "s3fs": "s3fs"},
        "java": {"jpype1": "jpype"},
    }
)
CODECS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "OME-TIFF": (
            *("none", "deflate", "zstd", "lzw", "lzma", "packbits"),
            *("jpeg", "jpeg2000", "jpegxl", "lerc"),
        ),
        "OME-Zarr": ("none", "zstd", "blosc-zstd", "blosc-lz4", "gzip"),
    }
)
_ENDINGS = {"OME-TIFF": ".ome.tif", "OME-Zarr": ".ome.zarr"}
_LOSSY = ("jpeg",)
_FEW_FILES = 1024
_LITTLE_ROOM = 2 << 30
_LITTLE_MEMORY = 1 << 30


class Package(NamedTuple):
    """A package that bioio_tk uses.

    Attributes
    ----------
    name : str
        What pip calls it.
    version : str
        "" where it is not installed.
    problem : str
        Why it is installed and cannot be used; "" for nothing.
    """

    name: str
    version: str
    problem: str


class Extra(NamedTuple):
    """Packages that bring a feature.

    Attributes
    ----------
    name : str
        As in ``bioio-tk[name]``.
    packages : tuple of Package
        What belongs to it.
    mend : str
        The line that installs what is missing; "" where nothing is.
    """

    name: str
    packages: tuple[Package, ...]
    mend: str


class Folder(NamedTuple):
    """A folder for what is needed for a while.

    Attributes
    ----------
    path : str
        Where it is.
    free : int
        Bytes that are left on its disk.
    problem : str
        Why nothing can be written into it; "" for nothing.
    """

    path: str
    free: int
    problem: str


@dataclass(frozen=True, slots=True)
class Checkup:
    """What was found.

    Attributes
    ----------
    ok : bool
        Nothing that is installed is broken.
    version, python, system : str
        Of bioio_tk, of Python, and the name of the system.
    packages : tuple of Package
        What is always needed.
    extras : tuple of Extra
        What brings more.
    cpus : int
        How many this process may use.
    memory : int or None
        Bytes it may use, None where that cannot be told.
    open_files : int or None
        How many it may have open at a time.
    temp, cache : Folder
        Where large tiles wait that are not full yet; what can be made again.
    codecs : dict
        For each format and each compression "" where it works, else why not.
    java : Diagnosis
        What reading with Bio-Formats needs.
    problems : tuple of str
        What is broken, and how to mend it.
    notes : tuple of str
        What works and could go wrong.
    """

    ok: bool
    version: str
    python: str
    system: str
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]
    cpus: int
    memory: int | None
    open_files: int | None
    temp: Folder
    cache: Folder
    codecs: dict[str, dict[str, str]]
    java: Diagnosis
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Return everything as a JSON document."""
        found = asdict(self)
        found["packages"] = [package._asdict() for package in self.packages]
        found["extras"] = [
            {**extra._asdict(), "packages": [p._asdict() for p in extra.packages]}
            for extra in self.extras
        ]
        found["temp"], found["cache"] = self.temp._asdict(), self.cache._asdict()
        return json.dumps(found, indent=2, ensure_ascii=False)


def doctor() -> Checkup:
    """Look at what is installed, and try it on a few small images in the temporary folder.

    No Java is started, no network is used, and nothing is left.

    Returns
    -------
    Checkup
        What was found.
    """
    packages = tuple(_package(name, module) for name, module in PACKAGES.items())
    extras = tuple(_extra(name, modules) for name, modules in EXTRAS.items())
    temp, cache = _folder(Path(tempfile.gettempdir())), _folder(_java_home.cache_dir())
    codecs = {} if temp.problem else {name: _codecs(name) for name in CODECS}
    problems = (*_broken(packages, extras, codecs), *_no_room(temp))
    diagnosis = java.doctor()
    memory, files = _java_home.memory_limit(), _open_files()
    notes = (
        *_lacking(extras, diagnosis),
        *_tight(memory, files, temp),
        *([f"nothing is kept for the next time: {cache.problem}"] if cache.problem else []),
    )
    return Checkup(
        ok=not problems,
        version=bioio_tk.__version__,
        python=sys.version.split()[0],
        system=platform.platform(),
        packages=packages,
        extras=extras,
        cpus=cpus_available(),
        memory=memory,
        open_files=files,
        temp=temp,
        cache=cache,
        codecs=codecs,
        java=diagnosis,
        problems=problems,
        notes=notes,
    )


# -- looking --------------------------------------------------------------------------------------


def _package(name: str, module: str) -> Package:
    top = module.partition(".")[0]
    try:
        if find_spec(top) is None:
            return Package(name, "", "")
    except (ImportError, ValueError) as exc:
        return Package(name, "unknown", _said(exc))
    try:
        number = version(name)
    except PackageNotFoundError:
        number = "unknown"
    try:
        import_module(module)
    except Exception as exc:
        return Package(name, number, _said(exc))
    return Package(name, number, "")


def _extra(name: str, modules: Mapping[str, str]) -> Extra:
    packages = tuple(_package(package, module) for package, module in modules.items())
    whole = all(package.version for package in packages)
    return Extra(name, packages, "" if whole else f"pip install 'bioio-tk[{name}]'")


def _said(exc: Exception) -> str:
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:200]


def _folder(path: Path) -> Folder:
    """Look whether a folder, or the one it would be made in, can be written to."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = 0
    try:
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"bioio_tk")
    except OSError as exc:
        return Folder(str(path), free, f"{str(there)!r}: {exc.strerror or exc}")
    return Folder(str(path), free, "")


def _codecs(format_: str) -> dict[str, str]:
    pixels = np.arange(64 * 48, dtype=np.uint8).reshape(64, 48) // 16
    with tempfile.TemporaryDirectory(prefix="bioio_tk-", ignore_cleanup_errors=True) as folder:
        return {
            name: _round_trip(Path(folder) / f"{name}{_ENDINGS[format_]}", name, pixels)
            for name in CODECS[format_]
        }


def _round_trip(path: Path, codec: str, pixels: np.ndarray) -> str:
    try:
        with BioWriter(
            path, shape=pixels.shape, dtype=pixels.dtype, compression=codec, tile_size=32
        ) as writer:
            writer[:] = pixels
        with BioReader(path, 1) as reader:
            found = reader[:]
    except (BioIOError, OSError, ImportError) as exc:
        return _said(exc)
    same = codec in _LOSSY or bool((found == pixels).all())
    return "" if same else "other pixels come back than were stored"


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


# -- judging --------------------------------------------------------------------------------------


def _broken(
    packages: tuple[Package, ...], extras: tuple[Extra, ...], codecs: dict[str, dict[str, str]]
) -> Iterator[str]:
    for package in packages:
        if not package.version:
            yield f"{package.name} is not installed: pip install bioio-tk"
    for package in (*packages, *(p for extra in extras for p in extra.packages)):
        if package.problem:
            yield (
                f"{package.name} {package.version} is installed and cannot be used "
                f"({package.problem}): pip install --force-reinstall {package.name}"
            )
    for format_, found in codecs.items():
        bad = {name: why for name, why in found.items() if why}
        if bad:
            name, why = next(iter(bad.items()))
            yield f"{format_} with compression {', '.join(bad)} does not work ({name}: {why})"


def _no_room(temp: Folder) -> Iterator[str]:
    if temp.problem:
        yield f"the temporary folder cannot be used ({temp.problem}): set TMPDIR to another one"


def _lacking(extras: tuple[Extra, ...], diagnosis: Diagnosis) -> Iterator[str]:
    for extra in extras:
        lacking = [package.name for package in extra.packages if not package.version]
        if lacking and extra.name != "java":
            yield f"not installed: {', '.join(lacking)}: {extra.mend}"
    if not diagnosis.ok:
        yield f"Bio-Formats cannot be used ({diagnosis.problems[0]}): {diagnosis.mend}"


def _tight(memory: int | None, files: int | None, temp: Folder) -> Iterator[str]:
    if memory is not None and memory < _LITTLE_MEMORY:
        yield f"only {memory >> 20} MiB of memory: use few workers (--workers 1) and small tiles"
    if files is not None and files < _FEW_FILES:
        yield (
            f"only {files} files may be open at a time, images of many files need more: "
            "run 'ulimit -n 4096' before"
        )
    if not temp.problem and temp.free < _LITTLE_ROOM:
        yield (
            f"only {temp.free >> 20} MiB are free in {temp.path!r}, where tiles wait that do not "
            "fit into memory: set TMPDIR to a larger disk"
        )
