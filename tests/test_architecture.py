"""The house rules that a linter cannot see: floors, rooms, threads, and what an import costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bioio_tk

ROOT = Path(bioio_tk.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# An import may only point to the same floor or one below.
FLOORS = [
    ["errors"],
    ["core"],
    ["meta"],
    ["backends"],
    ["engine"],
    [
        "base",
        "reader",
        "writer",
        "lazy",
        "draft",
        "target",
        "place",
        "batches",
        "stream",
        "bdv",
        "inputs",
    ],
    ["api", "jobs"],
    ["cli", "compat", "viewer"],
    ["__init__", "__main__"],
]
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
FACES = {"cli", "viewer", "compat"}
THREADS = {"Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "Pool", "Process"}
# no formats: all may use them
SHARED = {"base", "_file", "_open_files", "_store", "_store_url", "_store_zip"} | {
    *("_kinds", "_java_suffixes", "_vendor_tiff"),
    *("_described", "_numpy_file", "_raw_planes", "_hdf5_chunks", "_hdf5_file"),
}

LOOPS = {"backends/_store_url.py": {"asyncio"}}  # speaks to the loop that fsspec runs


def name(path):
    return str(path.relative_to(ROOT))


def room(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Yield (module, line) of every import, those inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def ours(path):
    """Yield (parts below bioio_tk, line) of every import of our own."""
    for module, line in imports(path):
        head, *rest = module.split(".")
        if head == "bioio_tk" and rest:
            yield rest, line


each_file = pytest.mark.parametrize("path", FILES, ids=name)


@each_file
def test_every_room_has_a_floor(path):
    assert room(path) in LEVEL, f"{name(path)}: say in FLOORS where this room is"


@each_file
def test_imports_only_point_down(path):
    here = LEVEL[room(path)]
    for parts, line in ours(path):
        if parts[0] in LEVEL:
            assert LEVEL[parts[0]] <= here, f"{name(path)}:{line} imports {'.'.join(parts)}"


@each_file
def test_no_import_is_relative(path):
    for node in ast.walk(tree(path)):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name(path)}:{node.lineno}"


def family(module):
    """Return which backend a module of backends/ belongs to: tiff_read and _tiff_ifd to tiff."""
    return module.lstrip("_").split("_")[0]


def test_backends_do_not_import_each_other():
    for path in sorted((ROOT / "backends").glob("*.py")):
        own = family(path.stem)
        for parts, line in ours(path):
            other = parts[1] if parts[0] == "backends" and len(parts) > 1 else "base"
            if (path.stem, other) == ("_bdv_zarr", "registry"):
                continue  # its pixels are images of their own, of whatever backend
            if other not in SHARED and (ROOT / "backends" / f"{other}.py").exists():
                assert family(other) == own, f"{name(path)}:{line} imports {'.'.join(parts)}"


def test_only_the_registry_knows_the_backends():
    documents = {"_zarr_tree", "_zarr_array", "_zarr_meta"}  # validate and upgrade look into them
    documents |= {"_tiff_comment"}  # what `bioio-tk metadata` writes
    documents |= {"_java_home", "_java_vm"}  # what `bioio-tk java` installs and warms
    others = SHARED | documents | {"registry", "__init__"}
    backends = {p.stem for p in (ROOT / "backends").glob("*.py")} - others
    for path in FILES:
        if room(path) != "backends" and room(path) not in FACES:
            for parts, line in ours(path):
                known = parts[0] == "backends" and len(parts) > 1 and parts[1] in backends
                assert not known, f"{name(path)}:{line} imports {'.'.join(parts)}"


@each_file
def test_only_the_engine_starts_threads(path):
    if room(path) == "engine":
        return
    for module, line in imports(path):
        parts = module.split(".")
        allowed = {"asyncio"} & LOOPS.get(name(path), set())
        banned = {"concurrent", "multiprocessing", "asyncio", "_thread"} - allowed
        assert parts[0] not in banned, line
        assert parts[-1] not in THREADS, f"{name(path)}:{line}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr in THREADS:
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            assert owner != "threading", f"{name(path)}:{node.lineno}"
        if isinstance(node, ast.Attribute) and node.attr in {"fork", "forkpty", "posix_spawn"}:
            raise AssertionError(f"{name(path)}:{node.lineno} starts a process")


def calls(path):
    """Yield (dotted name, line) of every call."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


FORBIDDEN = {
    "print",
    "input",
    "breakpoint",
    "exit",
    "quit",
    "sys.exit",
    "logging.basicConfig",
    "logging.disable",
    "logging.captureWarnings",
    "warnings.filterwarnings",
    "warnings.simplefilter",
    "warnings.resetwarnings",
    "np.seterr",
    "np.set_printoptions",
    "os.chdir",
    "signal.signal",
    "locale.setlocale",
}
# while Java starts, and put back
RESTORED = {
    "backends/_java_vm.py": {"locale.setlocale"},
    "core/signals.py": {"signal.signal"},  # put back at the end of a block
    "engine/_child.py": {"signal.signal"},  # a process of its own
}
METHODS = {"setLevel", "addHandler", "removeHandler"}


@each_file
def test_a_library_does_not_print_and_changes_nothing_global(path):
    if room(path) in FACES | {"__main__"}:
        return
    restored = RESTORED.get(name(path), set())
    for call, line in calls(path):
        assert call not in FORBIDDEN - restored, f"{name(path)}:{line} calls {call}"
        assert call.split(".")[-1] not in METHODS, f"{name(path)}:{line} calls {call}"


@each_file
def test_nothing_but_a_face_asks_for_a_backend_by_name(path):
    """Ask `caps`, never a name: what a backend can do is written in its own file."""
    if room(path) in {"backends"} | FACES:
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Compare):
            text = ast.unparse(node)
            asked = any(f"'{b}'" in text for b in ("memory", "python", "zarr", "bdv", "java"))
            assert not ("backend" in text and asked), f"{name(path)}:{node.lineno}: {text}"


@each_file
def test_user_input_is_never_asserted_on_the_floors_of_the_user(path):
    """`python -O` removes asserts."""
    if LEVEL[room(path)] < LEVEL["base"]:
        return
    found = [n.lineno for n in ast.walk(tree(path)) if isinstance(n, ast.Assert)]
    assert not found, f"{name(path)}: {found}"


@each_file
def test_every_file_says_what_it_is_for(path):
    text = ast.get_docstring(tree(path))
    assert text, f"{name(path)} has no docstring"
    assert len(text.splitlines()[0]) <= 100


def in_child(code):
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_importing_the_package_loads_no_format_library():
    out = in_child("import json, sys, bioio_tk; print(json.dumps(list(sys.modules)))")
    loaded = {module.split(".")[0] for module in json.loads(out)}
    assert not loaded & {"numpy", "tifffile", "imagecodecs", "zarr", "ome_types", "dask", "isal"}
    assert "concurrent" not in loaded


def test_importing_the_package_starts_and_prints_nothing():
    out = in_child(
        "import logging, threading, warnings\n"
        "before = (list(warnings.filters), list(logging.root.handlers), logging.root.level)\n"
        "import bioio_tk, bioio_tk.reader, bioio_tk.writer, bioio_tk.lazy, bioio_tk.meta.ome\n"
        "import bioio_tk.backends.tiff_read, bioio_tk.backends.tiff_write\n"
        "after = (list(logging.root.handlers), logging.root.level)\n"
        "after == before[1:] or print('logging')\n"
        "threading.active_count() == 1 or print('threads')\n"
    )
    assert out == ""


def test_reading_does_not_load_what_only_writing_needs_nor_zarr():
    out = in_child("import json, sys, bioio_tk.reader; print(json.dumps(list(sys.modules)))")
    loaded = {module.split(".")[0] for module in json.loads(out)}
    assert not loaded & {"zarr", "ome_types", "dask", "xarray", "tifffile", "imagecodecs"}


def test_public_names_are_there_and_others_are_an_attribute_error():
    assert set(bioio_tk.__all__) <= set(dir(bioio_tk))
    for public in bioio_tk.__all__:
        assert getattr(bioio_tk, public) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = bioio_tk.nonsense


def test_every_exception_has_the_one_root_and_a_class_of_pythons_own():
    from bioio_tk import errors

    found = [e for e in vars(errors).values() if isinstance(e, type)]
    found.remove(errors.BioIOWarning)  # which is no error
    assert len(found) > 10
    for kind in found:
        assert issubclass(kind, errors.BioIOError)
        assert kind.__doc__
        assert kind.__name__ in errors.__doc__
        if kind is not errors.BioIOError:
            own = next(base for base in kind.__mro__ if base.__module__ == "builtins")
            assert own is not Exception
