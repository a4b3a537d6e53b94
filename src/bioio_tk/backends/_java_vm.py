"""The one Java virtual machine of this process: started when first needed, never stopped."""

from __future__ import annotations

import atexit
import gc
import os
import re
import shlex
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bioio_tk.backends import _java_home
from bioio_tk.backends._java_signals import Handlers
from bioio_tk.backends.base import Started
from bioio_tk.core.signals import interrupt_later
from bioio_tk.errors import BackendError, BackendMissingError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bioio_tk.backends._java_home import Jar, Jvm


class _State:
    """What this process knows of its Java.

    Attributes
    ----------
    running : Java or None
        What was started, or found running.
    handlers : Handlers or None
        The signals of the Java that runs.
    starting : bool
        Some thread is at it.
    forked : bool
        Java ran in the parent of this process, which has but a dead copy.
    ending : bool
        The interpreter ends.
    prepared : bool
        The end will be noticed.
    failed : str
        Why Java did not start, where it cannot be tried again in this process.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.running: Java | None = None
        self.handlers: Handlers | None = None
        self.starting = False
        self.forked = False
        self.ending = False
        self.prepared = False
        self.failed = ""


_of_thread = threading.local()

_PATIENCE = 30
"""Seconds for `java -version`."""

_OPENED = ("lang", "util", "util.regex", "io", "nio", "net", "text")
"""Packages that Kryo looks into when it stores a parsed file."""


class Java:
    """The classes of Java and Bio-Formats; each is looked up once."""

    def __init__(self, started: Started) -> None:
        self.started = started
        self._classes: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        """Return a class: ``java("loci.formats.ImageReader")``."""
        found = self._classes.get(name)
        if found is None:
            import jpype

            found = self._classes[name] = jpype.JClass(name)
        return found


_state = _State()


def start(
    jvm: str | os.PathLike[str] | None = None,
    jar: str | os.PathLike[str] | None = None,
    *,
    heap_mb: int | None = None,
    options: Sequence[str] = (),
) -> Started:
    """Start Java now, as `bioio_tk.start` says; without this a file that needs it does."""
    check_fork()
    wanted = _checked(options)
    with _state.lock:
        enter()
        if _state.running is not None:
            _check_same(_state.running.started, jvm, jar, heap_mb, wanted)
            return _state.running.started
        _state.starting = True
        try:
            with interrupt_later():
                _state.running = Java(_start(jvm, jar, heap_mb, wanted))
        finally:
            _state.starting = False
        return _state.running.started


def java() -> Java:
    """Return the classes; start Java where it does not run yet."""
    enter()
    if _state.running is None:
        start()
    elif not _started():
        raise BackendError(_ENDED)
    return cast("Java", _state.running)


def is_running() -> bool:
    """Return whether Java may be called: it runs, in this very process."""
    return _state.running is not None and not _state.forked and _started()


def enter() -> None:
    """Do what a thread must before it calls Java: all of ours begin with this.

    Raises
    ------
    BackendError
        This process was forked from one where Java ran.
    """
    check_fork()
    check_end()
    # JPype makes a thread known to Java when it first calls it, and Java never forgets one
    if not hasattr(_of_thread, "visit"):
        _of_thread.visit = None if _is_main() else _Visit()
    if _state.handlers is not None:
        _state.handlers.check()


def check_fork() -> None:
    """Raise where this process was forked from one that ran Java."""
    if _state.forked:
        raise BackendError(
            "Java was running when this process was forked, and cannot be used in the child: start "
            "processes with multiprocessing.get_context('spawn'), or fork before the first image "
            "is opened through Bio-Formats"
        )


def check_end() -> None:
    """Let a thread rest that wants Java while the interpreter ends.

    Only daemon threads are left then, and Python itself stops each of them in the same way as soon
    as it wants to go on; they have no error to tell of.
    """
    if _state.ending and not _is_main():
        threading.Event().wait()


class _Visit:
    """Goes away with the thread it belongs to, and takes the thread out of Java."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def __del__(self) -> None:
        # after a fork, and when the interpreter ends, another thread tidies up
        if self._thread == threading.get_ident() and not _state.forked and _started():
            sys.modules["jpype"].java.lang.Thread.detach()


_ENDED = "Java was shut down, and cannot start a second time in one process"


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _started() -> bool:
    jpype = sys.modules.get("jpype")
    return jpype is not None and bool(jpype.isJVMStarted())


# ------------------------------------------------------------------ starting


def _start(jvm: Any, jar: Any, heap_mb: int | None, options: tuple[str, ...]) -> Started:
    """Start Java, or join the one that somebody else has started."""
    if _state.failed:
        raise BackendError(_state.failed)
    try:
        import jpype
        import jpype.config  # for _after_fork
    except ImportError as exc:
        text = _java_home.missing() or f"the package jpype1 cannot be loaded: {exc}"
        raise BackendMissingError(text) from exc
    if not _state.prepared:
        atexit.register(_at_end)  # comes before what JPype does then, being later registered
        _state.prepared = True
    added = ""
    if not jpype.isJVMStarted():
        found = _java_home.find_jar(jar)
        _launch(_java_home.find_jvm(jvm), found, heap_mb, options)
        added = str(found.path)
    elif _bioformats() is None:
        added = str(_java_home.find_jar(jar).path)
        jpype.addClassPath(added)
    tools = _bioformats()
    if tools is None:
        raise BackendError(
            f"there is no Bio-Formats in {added!r} that Java can load: the file is damaged, or it "
            "is another jar"
        )
    _silence()
    _state.handlers = Handlers()
    java = str(jpype.java.lang.System.getProperty("java.version"))
    return Started(str(tools.VERSION), added or _origin(tools), java)


def _launch(machine: Jvm, jar: Jar, heap_mb: int | None, options: tuple[str, ...]) -> None:
    import jpype

    asked = tuple(shlex.split(os.environ.get("BIOIO_TK_JAVA_OPTIONS", ""))) + options
    flags = _flags(machine, jar, heap_mb, asked)
    if asked or heap_mb is not None or "BIOIO_TK_JAVA_HEAP_MB" in os.environ or _is_limited():
        # a wrong option is found by a Java of its own: here it would be the end of every attempt
        reason = _refusal(machine, flags)
        if reason is not None:
            raise BackendError(f"Java does not start with these options: {reason}")
    try:
        with _names_as_python_has_them():
            jpype.startJVM(
                str(machine.library),
                *flags,
                classpath=[str(jar.path)],
                convertStrings=False,
                interrupt=False,
            )
    except Exception as exc:
        raise BackendError(_why(machine, flags, exc)) from exc
    # the parser of XML writes what it dislikes to stderr, besides throwing it
    system = jpype.java.lang.System
    system.setErr(jpype.java.io.PrintStream(jpype.java.io.OutputStream.nullOutputStream()))
    if not _is_main():
        # the thread that starts Java counts as one that Java waits for at the end
        thread = jpype.java.lang.Thread
        thread.detach()
        thread.attachAsDaemon()


def _flags(machine: Jvm, jar: Jar, heap_mb: int | None, asked: tuple[str, ...]) -> list[str]:
    flags = [
        "-Djava.awt.headless=true",
        "-Duser.language=en",  # numbers in files are read alike everywhere
        f"-Xmx{heap_mb or _java_home.memory_mb()}m",
        "-Xlog:disable",
        "-Xrs",  # signals stay Python's
        # the thread that starts Java can use no more of its stack than one of Java's own has: with
        # the 1 MB by default, LZF of HDF5 would end the process
        "-Xss8m",
    ]
    if not any(re.fullmatch(r"-XX:\+Use\w+GC", option) for option in asked):
        flags.append("-XX:+UseParallelGC")  # the default one does not scale with threads
    flags += [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED]
    if machine.major >= 24:
        flags += ["--enable-native-access=ALL-UNNAMED", "-Dsun.misc.unsafe.memory.access=allow"]
    archive = _java_home.archive(machine, jar)
    if archive.is_file() and not any(_ARCHIVE.search(option) for option in asked):
        name = "AOTCache" if archive.suffix == ".aot" else "SharedArchiveFile"
        flags.append(f"-XX:{name}={archive}")
    return [*flags, *asked]


def _is_limited() -> bool:
    """Return whether the memory of this process is: Java that gets too little ends the process."""
    if sys.platform == "win32":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


_ARCHIVE = re.compile("-XX:.*(Archive|AOT|Shared)|-Xshare")


@contextmanager
def _names_as_python_has_them() -> Iterator[None]:
    """Make Java write the names of files in UTF-8 where Python does.

    Java takes this from the locale when it starts, and nothing else can tell it. It changes the
    locale of the process on the way, which is put back.
    """
    import locale

    language = locale.setlocale(locale.LC_ALL)
    before = os.environ.get("LC_ALL")
    change = sys.platform == "linux" and sys.getfilesystemencoding() == "utf-8"
    if change:
        os.environ["LC_ALL"] = "C.UTF-8"
    try:
        yield
    finally:
        if change and before is None:
            del os.environ["LC_ALL"]
        elif change and before is not None:
            os.environ["LC_ALL"] = before
        with suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, language)


def _why(machine: Jvm, flags: list[str], exc: Exception) -> str:
    """Return why Java did not start; where it may not be tried again, remember it."""
    reason = _refusal(machine, flags) or " ".join(str(exc).split()) or type(exc).__name__
    text = f"Java ({machine.library}, from {machine.origin}) does not start: {reason}"
    if not isinstance(exc, OSError):  # it was loaded, and is loaded once in a process
        text = _state.failed = f"{text}. It can be tried again in a new process only"
    return text


def _refusal(machine: Jvm, flags: list[str]) -> str | None:
    """Return what a Java of its own says against these options, None where it starts."""
    import subprocess

    command = machine.home / "bin" / ("java.exe" if sys.platform == "win32" else "java")
    if not command.is_file():
        return None
    told = [flag for flag in flags if not _ARCHIVE.search(flag) and flag != "-Xlog:disable"]
    try:
        done = subprocess.run(  # noqa: S603 (the user's own words)
            [str(command), *told, "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        return f"{command} cannot be run: {exc}"
    if done.returncode == 0:
        return None
    said = (done.stdout + b"\n" + done.stderr).decode(errors="replace").splitlines()
    lines = [line.strip() for line in said if line.strip() and not _IDLE.search(line)]
    return " ".join(lines[:3])[:400] or f"{command} ends with {done.returncode}"


_IDLE = re.compile("Could not create the Java Virtual Machine|A fatal exception has occurred")


# ------------------------------------------------------------------ what runs


def _bioformats() -> Any | None:
    """Return Bio-Formats' class of constants, None where Java does not find it."""
    import jpype

    try:
        return jpype.JClass("loci.formats.FormatTools")
    except (TypeError, jpype.JException):
        return None


def _silence() -> None:
    """Turn off a log that nobody has set up: it would go to stdout, at level DEBUG."""
    import jpype

    try:
        debug = bool(jpype.JClass("org.slf4j.LoggerFactory").getLogger("ROOT").isDebugEnabled())
    except (TypeError, jpype.JException):  # JPype cannot hold the logger that comes with 6.7.0
        debug = True
    if debug:
        with suppress(TypeError, jpype.JException):  # another jar, without a log
            jpype.JClass("loci.common.DebugTools").setRootLevel("OFF")


def _origin(tools: Any) -> str:
    """Return the jar that a class comes from, "" where that is not known."""
    import jpype

    try:
        source = tools.class_.getProtectionDomain().getCodeSource().getLocation()
        return str(jpype.JClass("java.nio.file.Paths").get(source.toURI()))
    except (AttributeError, jpype.JException):
        return ""


def _checked(options: Sequence[str]) -> tuple[str, ...]:
    if isinstance(options, str) or not all(isinstance(o, str) for o in options):
        raise SpecError(f"options={options!r}: give a list of options, such as ['-Xss4m']")
    return tuple(options)


def _check_same(
    started: Started, jvm: Any, jar: Any, heap_mb: int | None, options: tuple[str, ...]
) -> None:
    """Raise where Java, which runs, is not as it is wanted."""
    import jpype

    if not _started():
        raise BackendError(_ENDED)
    if jvm is not None:
        home = Path(str(jpype.java.lang.System.getProperty("java.home")))
        _demand(_java_home.find_jvm(jvm).home, home, "jvm", jvm)
    if jar is not None:
        _demand(_java_home.find_jar(jar).path, Path(started.jar), "jar", jar)
    wanted = [*options, *([f"-Xmx{heap_mb}m"] if heap_mb is not None else [])]
    if wanted:
        factory = jpype.JClass("java.lang.management.ManagementFactory")
        told = {str(option) for option in factory.getRuntimeMXBean().getInputArguments()}
        for option in wanted:
            if option not in told:
                name = "heap_mb" if option not in options else "options"
                raise SpecError(_late(name, option, "without it"))


def _demand(wanted: Path, runs: Path, name: str, given: Any) -> None:
    if wanted.resolve() != runs.resolve():
        raise SpecError(_late(name, str(given), f"from {str(runs)!r}"))


def _late(name: str, wanted: str, how: str) -> str:
    return (
        f"{name}: {wanted!r} comes too late, Java runs already {how}, and starts once in a "
        "process: call bioio_tk.start() before the first image is opened through Bio-Formats"
    )


# ------------------------------------------------------------------ fork, and the end


def _at_end() -> None:
    with _state.lock:  # Java that is just starting is let start: it could not be ended otherwise
        _state.ending = True
    if _state.handlers is not None:
        _state.handlers.put_back()  # Java ends after this, for which it needs them


def _after_fork() -> None:
    _state.lock = threading.RLock()
    _state.forked = _state.forked or _state.starting or _started()
    config = sys.modules.get("jpype.config")
    if _state.forked and config is not None:
        # JPype would end Java when this process ends, and wait for threads that are not here
        config.onexit = False  # type: ignore[attr-defined, unused-ignore]
        _keep_all()


def _keep_all() -> None:
    """Let go of no object of Java, ever: this is a call, too, and may wait for a lost thread."""
    import ctypes

    # JPype asks Java to collect its own garbage when Python does
    gc.callbacks[:] = [call for call in gc.callbacks if getattr(call, "__module__", "") != "_jpype"]
    jpype = sys.modules["_jpype"]
    roots = {id(jpype._JObject), id(jpype._JClass)}
    keep = ctypes.pythonapi.Py_IncRef
    keep.argtypes = [ctypes.py_object]
    for thing in gc.get_objects():
        # isinstance() with a class of Java would be such a call
        if any(id(base) in roots for base in type(thing).__mro__):
            keep(thing)
    gc.freeze()  # so are views of their memory, where nobody holds them any more


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
