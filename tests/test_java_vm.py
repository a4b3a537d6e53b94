"""Java in every state a process can be in: each in a process of its own, with a time limit."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

import bioio_tk
from bioio_tk.backends import _java_home
from bioio_tk.errors import SpecError

pytestmark = pytest.mark.skipif(
    _java_home.missing() is not None, reason=f"no Java: {_java_home.missing()}"
)
LIMIT = 60
SYSTEM_JAVA = Path("/usr/lib/jvm/java-17-openjdk-amd64")
PIXELS = (np.arange(6 * 96 * 160) % 65521).astype("<u2").reshape(6, 96, 160)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "small.ome.tif"
    tifffile.imwrite(path, PIXELS, metadata={"axes": "ZYX"}, tile=(32, 32))
    return path


BEGIN = """
import gc, os, signal, sys, threading, time
import numpy as np
import bioio_tk
from bioio_tk import BioReader
PATH = sys.argv[1]
def opened(path=PATH, **more):
    return BioReader(path, backend="java", **more)
def right(plane):
    want = (np.arange(96 * 160) % 65521).astype("<u2").reshape(96, 160)
    assert plane.dtype == want.dtype and np.array_equal(plane, want), "wrong pixels"
"""


def start_child(code, *args, env=None):
    begin = [sys.executable, "-X", "dev", "-W", "error", "-c", BEGIN + textwrap.dedent(code)]
    given = {**os.environ, **(env or {})}
    given = {key: value for key, value in given.items() if value is not None}
    return subprocess.Popen(
        [*begin, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=given
    )


def finished(child):
    try:
        out, err = child.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        child.kill()
        pytest.fail(f"the process hangs: {child.communicate()}")
    return child.returncode, out.decode(), err.decode()


def run(code, *args, env=None):
    """Run code, which must say nothing but what it prints, and return that."""
    returned, out, err = finished(start_child(code, *args, env=env))
    assert (returned, err) == (0, ""), err
    return out.strip()


# ------------------------------------------------------------------ start and end

STATES = {
    "never started": ("", 0),
    "started and idle": ("bioio_tk.start()", 0),
    "a reader is left open": ("br = opened(); right(br[:, :, 0])", 0),
    "a reader is left open in a cycle": ("a = [opened()]; a.append(a); right(a[0][:, :, 0])", 0),
    "opened in a thread that has ended": (
        "t = threading.Thread(target=lambda: right(opened()[:, :, 0])); t.start(); t.join()",
        0,
    ),
    "started in a thread, used in others": (
        """
        t = threading.Thread(target=bioio_tk.start); t.start(); t.join()
        right(opened(max_workers=4)[:, :, 0])
        """,
        0,
    ),
    "opened in a pool": (
        """
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(8)
        for future in [pool.submit(lambda: right(opened()[:, :, 0])) for _ in range(8)]:
            future.result()
        """,
        0,
    ),
    "read by a daemon thread": (
        """
        br = opened()
        def forever():
            while True: br[:, :, 1:5]
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.3)
        """,
        0,
    ),
    "started by a daemon thread": (
        """
        threading.Thread(target=bioio_tk.start, daemon=True).start()
        time.sleep(0.05)
        """,
        0,
    ),
    "read by a thread that goes on": (
        """
        br = opened()
        threading.Thread(target=lambda: [right(br[:, :, 0]) for _ in range(50)]).start()
        """,
        0,
    ),
    "sys.exit in a thread": (
        """
        def leave(): opened(); sys.exit(5)
        t = threading.Thread(target=leave); t.start(); t.join()
        """,
        0,
    ),
    "sys.exit": ("br = opened(); sys.exit(7)", 7),
    "os._exit": ("br = opened(); os._exit(9)", 9),
}


@pytest.mark.parametrize("state", STATES)
def test_a_process_ends_in_silence_in_every_state(image, state):
    code, returns = STATES[state]
    assert finished(start_child(code, image)) == (returns, "", "")


def test_an_exception_that_nobody_catches_is_all_that_is_said(image):
    returned, out, err = finished(start_child("br = opened()\nraise ValueError('mine')", image))
    assert (returned, out) == (1, "")
    assert err.startswith("Traceback")
    assert err.rstrip().endswith("ValueError: mine")
    assert "java" not in err.replace('backend="java"', "").lower()


def test_reading_says_nothing_nor_do_errors(image, tmp_path):
    bad = tmp_path / "bad.czi"
    bad.write_bytes(b"ZISRAWFILE" + bytes(3000))
    code = """
    right(opened()[:, :, 0])
    try:
        opened(sys.argv[2])
    except bioio_tk.BioIOError as exc:
        assert "\\n" not in str(exc) and "bad.czi" in str(exc), exc
    else:
        raise SystemExit("no error")
    """
    assert run(code, image, bad) == ""


@pytest.mark.skipif(not SYSTEM_JAVA.is_dir(), reason="no second Java here")
def test_another_java(image):
    code = "right(opened()[:, :, 0]); print(bioio_tk.start().java)"
    assert run(code, image, env={"BIOIO_TK_JVM": str(SYSTEM_JAVA)}).startswith("17.")


@pytest.mark.parametrize("content", [b"", b"junk" * 9999])
@pytest.mark.parametrize("home", [None, SYSTEM_JAVA])
def test_a_corrupt_archive_is_passed_over_in_silence(image, tmp_path, home, content):
    if home is not None and not home.is_dir():
        pytest.skip("no second Java here")
    code = """
    from bioio_tk.backends import _java_home
    from pathlib import Path
    archive = _java_home.archive(_java_home.find_jvm(), _java_home.find_jar())
    archive.parent.mkdir(parents=True)
    archive.write_bytes(Path(sys.argv[2]).read_bytes())
    right(opened()[:, :, 0])
    bean = __import__("jpype").JClass("java.lang.management.ManagementFactory")
    print(any(str(archive) in str(a) for a in bean.getRuntimeMXBean().getInputArguments()))
    """
    (tmp_path / "content").write_bytes(content)
    env = {"BIOIO_TK_CACHE": str(tmp_path / "cache")}
    if home is not None:
        env["BIOIO_TK_JVM"] = str(home)
    assert run(code, image, tmp_path / "content", env=env) == "True"


def test_java_is_headless_and_has_the_memory_that_was_asked_for(image):
    code = """
    bioio_tk.start(heap_mb=300)
    from jpype import JClass
    print(JClass("java.lang.System").getProperty("java.awt.headless"))
    print(any("ParallelGC" in str(a) for a in JClass(
        "java.lang.management.ManagementFactory").getRuntimeMXBean().getInputArguments()))
    print(JClass("java.lang.Runtime").getRuntime().maxMemory() >> 20)
    """
    headless, parallel, heap = run(code, image).split()
    assert (headless, parallel) == ("true", "True")
    assert 240 <= int(heap) <= 300


def test_options_of_the_user_count(image):
    code = """
    bioio_tk.start(options=["-Dmine=yes please"])
    from jpype import JClass
    system = JClass("java.lang.System")
    print(system.getProperty("mine"), system.getProperty("theirs"))
    """
    env = {"BIOIO_TK_JAVA_OPTIONS": "-Dtheirs='a b' -XX:+UseSerialGC"}
    assert run(code, image, env=env) == "yes please a b"


def test_what_comes_too_late_is_said(java):
    runs = java.started
    assert bioio_tk.start() == bioio_tk.start(jar=runs.jar) == runs
    with pytest.raises(SpecError, match=r"heap_mb: '-Xmx77m' comes too late"):
        bioio_tk.start(heap_mb=77)
    with pytest.raises(SpecError, match="options: '-Xss3m' comes too late"):
        bioio_tk.start(options=["-Xss3m"])
    with pytest.raises(SpecError, match="give a list of options"):
        bioio_tk.start(options="-Xss3m")


# ------------------------------------------------------------------ Java that does not start


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"options": ["-XX:NoSuchThing=1"]}, "NoSuchThing"),
        ({"options": ["--nonsense"]}, "nonsense"),
        ({"heap_mb": 10**9}, "heap"),
    ],
)
def test_wrong_options_are_found_before_they_do_harm(image, wrong, says):
    code = """
    wrong = eval(sys.argv[2])
    for _ in range(2):
        try:
            bioio_tk.start(**wrong)
        except bioio_tk.BioIOError as exc:
            print(type(exc).__name__, exc)
    right(opened()[:, :, 0])
    """
    first, second = run(code, image, repr(wrong)).splitlines()
    assert first == second
    assert first.startswith("BackendError Java does not start with these options: ")
    assert says in first


def test_a_library_that_is_none_leaves_python_as_it_was(image, tmp_path):
    home = tmp_path / "jvm"
    (home / "lib" / "server").mkdir(parents=True)
    (home / "release").write_text('JAVA_VERSION="21.0.1"\n')
    (home / "lib" / "server" / "libjvm.so").write_bytes(
        Path(_java_home.find_jvm().library).read_bytes()[:64] + b"and no more"
    )
    code = """
    for _ in range(2):
        try:
            bioio_tk.start(jvm=sys.argv[2])
        except bioio_tk.BioIOError as exc:
            assert "libjvm.so" in str(exc) and "\\n" not in str(exc), exc
            print(type(exc).__name__)
    right(opened()[:, :, 0])
    """
    assert run(code, image, home).split() == ["BackendError"] * 2


def test_java_that_fails_in_this_process_is_not_tried_again(image):
    # a folder, where the classes should be, is refused only by the Java in the process
    code = """
    import jpype
    real, jpype._core._jpype.startup = jpype._core._jpype.startup, None
    calls = []
    def broken(*args):
        calls.append(args)
        raise RuntimeError("Unable to start JVM\\nat somewhere")
    class Module:
        def __getattr__(self, name): return getattr(sys.modules["_jpype"], name)
    module = Module(); module.startup = broken
    jpype._core._jpype.startup = real
    jpype._core._jpype = module
    for _ in range(2):
        try:
            opened()
        except bioio_tk.BioIOError as exc:
            print(type(exc).__name__, "Unable to start JVM at somewhere" in str(exc), len(calls))
    tiff = BioReader(PATH); right(tiff[:, :, 0]); tiff.close()
    """
    assert run(code, image).splitlines() == ["BackendError True 1"] * 2


# ------------------------------------------------------------------ somebody else's Java


@pytest.mark.parametrize("strings", [True, False])
@pytest.mark.parametrize("with_jar", [True, False])
def test_the_java_of_somebody_else_is_used(image, with_jar, strings):
    code = """
    import jpype
    from bioio_tk.backends import _java_home
    jar = str(_java_home.find_jar().path)
    path = str(_java_home.find_jvm().library)
    flags = ["--enable-native-access=ALL-UNNAMED", "-Dsun.misc.unsafe.memory.access=allow",
             "-Xmx444m"]
    jpype.startJVM(path, *flags, classpath=[jar] if sys.argv[2] == "1" else [],
                   convertStrings=sys.argv[3] == "1", interrupt=False)
    right(opened()[:, :, 0])
    br = opened()
    assert br.shape == (96, 160, 6, 1, 1) and br.metadata.images[0].pixels.size_z == 6
    assert bioio_tk.start(heap_mb=444).jar == jar
    """
    assert run(code, image, int(with_jar), int(strings)) == ""


def test_java_that_was_shut_down_is_an_error(image):
    code = """
    import jpype
    br = opened()
    jpype.shutdownJVM()
    for call in (opened, bioio_tk.start, lambda: br[:2, :2, 3]):
        try:
            call()
        except bioio_tk.BioIOError as exc:
            print(type(exc).__name__)
    br.close()
    """
    assert run(code, image).split() == ["BackendError"] * 3


# ------------------------------------------------------------------ names of files and the locale


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LANG": "C"}, {}, {"LC_ALL": "C.UTF-8"}])
def test_names_of_files_in_every_locale(image, tmp_path, locale):
    folder = tmp_path / "Zellkörper µm 細胞 #1;50%&{a}"
    folder.mkdir()
    path = folder / "é à.ome.tif"
    path.write_bytes(image.read_bytes())
    code = """
    import locale
    before = (dict(os.environ), locale.setlocale(locale.LC_ALL))
    right(opened()[:, :, 0])
    assert (dict(os.environ), locale.setlocale(locale.LC_ALL)) == before
    import ctypes
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    want = os.environ.get("LC_ALL")
    assert getenv(b"LC_ALL") == (want and want.encode()), getenv(b"LC_ALL")
    """
    env = {"LC_ALL": None, "LANG": None, "LC_CTYPE": None, **locale}
    assert run(code, path, env=env) == ""


# ------------------------------------------------------------------ signals


def test_ctrl_c_is_pythons_and_reading_goes_on(image):
    code = """
    br = opened(max_workers=2)
    try:
        print("ready", flush=True)
        while True: br.read(Z=(0, 6)); BioReader(PATH, backend="java").close()
    except KeyboardInterrupt:
        right(br[:, :, 0])
        right(opened()[:, :, 0])
        print("interrupted", flush=True)
    """
    child = start_child(code, image)
    assert child.stdout.readline() == b"ready\n"
    time.sleep(0.4)
    child.send_signal(signal.SIGINT)
    assert finished(child) == (0, "interrupted\n", "")


def test_ctrl_c_while_java_starts(image):
    code = """
    try:
        print("ready", flush=True)
        bioio_tk.start()
        time.sleep(30)
    except KeyboardInterrupt:
        pass
    right(opened()[:, :, 0])
    print("read", flush=True)
    """
    for delay in (0.02, 0.1, 0.16, 0.2, 0.25):
        child = start_child(code, image)
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        assert finished(child) == (0, "read\n", "")


@pytest.mark.parametrize("handled", [True, False])
def test_sigterm_is_pythons(image, handled):
    code = """
    if sys.argv[2] == "1":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(11))
    br = opened()
    print("ready", flush=True)
    time.sleep(60)
    """
    child = start_child(code, image, int(handled))
    assert child.stdout.readline() == b"ready\n"
    child.terminate()
    assert finished(child) == (11 if handled else -signal.SIGTERM, "", "")


@pytest.mark.parametrize("when", ["before", "after", "off", "off and on"])
def test_faulthandler_and_java_get_on(image, when):
    # Java's own code meets null thousands of times: compiled, it lets the processor find out
    code = """
    import faulthandler
    faulthandler.disable()
    when = sys.argv[2]
    if when != "after":
        faulthandler.enable()
    br = opened()
    if when == "after":
        faulthandler.enable()
    if when.startswith("off"):
        faulthandler.disable()
    right(br[:, :, 0])
    if when.endswith("on"):
        faulthandler.enable()
        right(br[:, :, 1] - 96 * 160)
    import jpype
    tools, none = jpype.JClass("loci.common.DataTools"), jpype.JObject(None, jpype.JByte[:])
    count = 0
    for _ in range(20000):
        try:
            tools.bytesToInt(none, 0, 4, True)
        except Exception:
            count += 1
    print(count)
    """
    assert run(code, image, when) == "20000"


# ------------------------------------------------------------------ fork and spawn


def test_a_forked_child_gets_an_error_at_once_and_ends(image):
    code = """
    import warnings
    # Python 3.12 warns of a fork in a process with threads: that is what is tried here
    warnings.simplefilter("ignore", DeprecationWarning)
    bioio_tk.start()
    br = opened()
    right(br[:, :, 0])
    stop = False
    def work():
        while not stop: BioReader(PATH, backend="java", max_workers=1)[:, :, 1:4]
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads: thread.start()
    time.sleep(0.3)
    for turn in range(12):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            said = 0
            for call in (opened, lambda: br[:2, :2, 5], lambda: br.metadata, bioio_tk.start):
                try:
                    call()
                except bioio_tk.BioIOError as exc:
                    said += type(exc).__name__ == "BackendError" and "'spawn'" in str(exc)
            tiff = BioReader(PATH, backend="python"); right(tiff[:, :, 0]); tiff.close()
            br.close()
            del br
            gc.collect()
            if turn % 2: os._exit(said)
            sys.stdout.flush()
            sys.exit(said)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    stop = True
    for thread in threads: thread.join()
    """
    assert run(code, image).split() == ["4"] * 12


def test_fork_before_java_starts_gives_a_child_that_reads(image):
    code = """
    pid = os.fork()
    right(opened()[:, :, 0])
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert run(code, image) == "0"


def test_readers_travel_to_spawned_processes(image, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, sys
            from bioio_tk import BioReader
            def total(br): return int(br[:, :, 0].sum(dtype="u8"))
            if __name__ == "__main__":
                br = BioReader(sys.argv[1], backend="java")
                print(total(br))
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    print(*pool.map(total, [br, br]))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(image)],
        capture_output=True,
        timeout=LIMIT,
        check=False,
        text=True,
    )
    want = str(PIXELS[0].sum(dtype="u8"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [want] * 3


# ------------------------------------------------------------------ threads and memory


def test_threads_that_have_ended_leave_java(image):
    code = """
    from jpype import JClass
    br = opened(max_workers=1)
    beans = JClass("java.lang.management.ManagementFactory").getThreadMXBean()
    def look():
        br[:8, :8, 0]; br[:8, :8, 1]
    before = beans.getThreadCount()
    for _ in range(100):
        threads = [threading.Thread(target=look) for _ in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
    print(beans.getThreadCount() - before)
    """
    assert int(run(code, image)) <= 3


def test_a_full_java_is_an_error_and_the_reader_lives_on(image, tmp_path):
    big = tmp_path / "big.tif"
    tifffile.imwrite(big, np.ones((9000, 9000), "u2"), rowsperstrip=9000, compression="zlib")
    code = """
    br = opened()
    right(br[:, :, 0])
    for _ in range(2):
        try:
            with opened(sys.argv[2]) as large: large[:]
        except MemoryError as exc:
            print(type(exc).__name__, "heap_mb" in str(exc), "big.tif" in str(exc))
    right(br[:, :, 0])
    right(opened()[:, :, 0])
    """
    said = run(code, image, big, env={"BIOIO_TK_JAVA_HEAP_MB": "64"})
    assert said.splitlines() == ["OutOfMemoryError True True"] * 2


def test_the_older_bio_formats_is_silent_too(image):
    """Its log cannot be asked for its level by JPype, and would go to stdout."""
    spec = importlib.util.find_spec("bioformats_jar")
    if spec is None:
        pytest.skip("the package bioformats_jar is not installed")
    jar = Path(spec.submodule_search_locations[0]) / "bioformats_package.jar"
    code = """
    with opened() as br:
        right(br[:, :, 0])
    print(bioio_tk.start().version)
    """
    assert run(code, image, env={"BIOIO_TK_BIOFORMATS_JAR": str(jar)}).startswith("6.7.0")


def test_a_broken_document_is_no_noise():
    """Java's parser of XML writes to stderr, besides throwing."""
    code = """
    from bioio_tk.backends import _java_vm
    java = _java_vm.java()
    factory = java("javax.xml.parsers.DocumentBuilderFactory").newInstance()
    broken = java("java.io.ByteArrayInputStream")(b"<a><b></a>")
    try:
        factory.newDocumentBuilder().parse(broken)
    except Exception as exc:
        print(type(exc).__name__)
    """
    assert run(code, "").endswith("SAXParseException")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone keeps to the limit")
def test_too_little_memory_for_java_is_an_error_and_python_goes_on(image):
    code = """
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    from bioio_tk.errors import BackendError
    for _ in range(2):
        try:
            opened()
        except BackendError as exc:
            print(str(exc).split(":")[0])
    with BioReader(PATH, backend="python") as br:
        right(br[:, :, 0])
    print("goes on")
    """
    said = run(code, image).splitlines()
    assert said == ["Java does not start with these options"] * 2 + ["goes on"]
