"""Mutated Zarr stores: every outcome but right pixels, BioIOError or OSError is a finding.

Run as a script for as long as wanted, ``python tests/fuzz_zarr.py --minutes 10 --seed 1``. Inputs
run in child processes with a limit on memory and time; what fails is kept in ``--keep`` and can
be run again with ``--replay FOLDER``. The tests take `seeds` and `attempt` from here.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_tiff import Slow, _alarm, _look, limit

SECONDS = 5
MEMORY = 3 << 30
Files = dict[str, bytes]
"""A store: what lies at each path in it."""

# ---------------------------------------------------------------------- stores to damage


def seeds(folder: Path) -> list[Files]:
    """Return small stores of every kind, made by zarr-python and by bioio_tk."""
    folder.mkdir(exist_ok=True)
    made = [_foreign(folder, v, shards) for v, shards in ((2, False), (3, False), (3, True))]
    made += [_plain(folder), *_ours(folder)]
    return [load(path) for path in made]


def load(folder: Path) -> Files:
    """Return the files of a store."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def save(files: Files, folder: Path) -> None:
    """Write a store; where a mutation made a folder of a file, the file that comes first wins."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError:
            continue


def multiscales(version: int, paths: list[str], axes: str = "tczyx") -> dict[str, Any]:
    """Return the attributes of an image of `version` 2 (NGFF 0.4) or 3 (0.5)."""
    kinds = {"t": "time", "c": "channel"}
    scale = [
        {"type": "scale", "scale": [1.0] * (len(axes) - 2) + [0.5 * 2**n] * 2} for n in range(9)
    ]
    image = {
        "name": "a",
        "axes": [
            {"name": a, "type": kinds.get(a, "space"), "unit": "micrometer"}
            if a not in kinds
            else {"name": a, "type": kinds[a]}
            for a in axes
        ],
        "datasets": [
            {"path": p, "coordinateTransformations": [scale[n]]} for n, p in enumerate(paths)
        ],
        "coordinateTransformations": [scale[0]],
    }
    window = {"min": 0, "max": 255, "start": 0, "end": 200}
    omero = {"channels": [{"label": "x", "color": "FF0000", "window": window, "active": True}] * 2}
    if version == 2:
        return {"multiscales": [{**image, "version": "0.4"}], "omero": omero}
    return {"ome": {"version": "0.5", "multiscales": [image], "omero": omero}}


def write_image(
    path: Path, version: int = 3, *, shards: bool = False, **more: Any
) -> np.ndarray[Any, Any]:
    """Write an image of two levels with zarr-python; return its pixels (t, c, z, y, x)."""
    import zarr

    pixels = np.random.default_rng(0).integers(1, 999, (1, 2, 2, 40, 50)).astype("u2")
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for level, array in enumerate((pixels, pixels[..., ::2, ::2])):
        group.create_array(
            str(level),
            data=array,
            chunks=(1, 1, 1, 16, 16),
            shards=(1, 1, 2, 32, 32) if shards else None,
            **more,
        )
    group.attrs.update(multiscales(version, ["0", "1"]))
    return pixels


def _foreign(folder: Path, version: int, shards: bool) -> Path:
    path = folder / f"foreign-{version}-{shards}.zarr"
    write_image(path, version, shards=shards)
    return path


def _plain(folder: Path) -> Path:
    import zarr

    path = folder / "plain.zarr"
    zarr.create_array(path, data=np.arange(600.0).reshape(20, 30), chunks=(8, 8), zarr_format=2)
    return path


def _ours(folder: Path) -> Iterator[Path]:
    from bioio_tk import BioWriter

    pixels = np.random.default_rng(0).integers(0, 999, (70, 90, 1, 2)).astype("u2")
    for version in ("0.4", "0.5"):
        for name, groups in (("series", "012"), ("plate", ["A/1/0", "B/2/0"])):
            path = folder / f"{name}-{version}.ome.zarr"
            for group in groups:
                with BioWriter(path, group=group, image=pixels, ngff_version=version, chunks=32):
                    pass
            yield path
        path = folder / f"image-{version}.ome.zarr"
        shards = {} if version == "0.4" else {"shards": 64}
        with BioWriter(
            path, image=pixels, ngff_version=version, chunks=32, pyramid=2, compression="gzip",
            **shards,
        ):  # fmt: skip
            pass
        with BioWriter(path, group="labels/cells", image=pixels[..., 0], chunks=32):
            pass
        yield path


# ---------------------------------------------------------------------- mutations

_NUMBERS = (0, 1, -1, 2, 3, 5, 0.5, -0.0, 1e300, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30,
            float("nan"), float("inf"))  # fmt: skip
_TEXTS = ("", "0", "1", "..", "../0", "/", "/etc/passwd", ".", "\\", "a\\b", "\0", "\ud800", "é",
          "0/0", "labels", "OME", "x", "y", "zz", "blosc", "zlib", "bytes", "sharding_indexed",
          "transpose", "int8", "float64", "|O", "<U4", "<f2", "NaN", "0x7fc00000", "crc32c",
          "vlen-utf8", "A" * 5000, "0" * 300)  # fmt: skip
_THINGS = (None, True, False, [], {}, [[]], [{}], {"a": 1}, [1] * 40, [1, 2, 3], ["0"], [None])
_DOCUMENTS = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


def mutate(files: Files, rng: random.Random) -> Files:
    """Return a damaged copy of a store."""
    out = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        rng.choice(_MUTATIONS)(out, rng)
    return out


def _document(out: Files, rng: random.Random) -> str:
    names = [n for n in out if n.endswith(_DOCUMENTS)]
    near = [n for n in names if n.count("/") < 2]
    return rng.choice(near if near and rng.random() < 0.6 else names or list(out) or ["zarr.json"])


def _chunk(out: Files, rng: random.Random) -> str:
    names = [n for n in out if not n.endswith(_DOCUMENTS)]
    return rng.choice(names or list(out) or ["0/c/0"])


def _structure(out: Files, rng: random.Random) -> None:
    name = _document(out, rng)
    try:
        document = json.loads(out.get(name, b"{}"))
    except (ValueError, RecursionError):
        return
    places = list(_places(document))
    if not places:
        return
    holder, key = rng.choice(places)
    kind = rng.randrange(9)
    if kind < 5:
        holder[key] = _value(holder[key], rng)
    elif kind == 5:
        del holder[key]
    elif kind == 6:
        other, at = rng.choice(places)
        holder[key], other[at] = other[at], holder[key]
    elif kind == 7 and isinstance(holder, list):
        holder[key:key] = [holder[key]] * rng.choice((1, 2, 30))
    elif isinstance(holder, dict):
        holder[rng.choice(_TEXTS)] = holder.pop(key)
    try:
        out[name] = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, RecursionError):  # a cycle
        return


def _value(old: Any, rng: random.Random) -> Any:
    choice = rng.random()
    if isinstance(old, (int, float)) and choice < 0.7:
        return rng.choice((*_NUMBERS, old + 1, old * 2, -old))
    if isinstance(old, str) and choice < 0.7:
        return rng.choice((*_TEXTS, old + "x", old[1:], old.upper()))
    return rng.choice((*_NUMBERS, *_TEXTS, *_THINGS, [old], {"a": old}))


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    items = ()
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document))
    for key, value in items:
        yield document, key
        yield from _places(value)


def _text(out: Files, rng: random.Random) -> None:
    _bytes(out, _document(out, rng), rng)


def _data(out: Files, rng: random.Random) -> None:
    _bytes(out, _chunk(out, rng), rng)


def _bytes(out: Files, name: str, rng: random.Random) -> None:
    blob = bytearray(out.get(name, b""))
    at = rng.randrange(len(blob) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        del blob[at:]
    elif kind == 1:
        del blob[at : at + rng.choice((1, 4, 16))]
    elif kind == 2:
        blob[at:at] = rng.choice((b"\0", b"[" * 5000, b'{"a":', b"\xff\xfe", blob[:at]))
    elif kind == 3:
        blob[at:] = bytes(len(blob) - at)
    elif blob:
        for _ in range(rng.choice((1, 2, 8))):
            blob[min(len(blob) - 1, rng.choice((at, rng.randrange(len(blob)))))] ^= (
                1 << rng.randrange(8)
            )
    out[name] = bytes(blob)


def _remove(out: Files, rng: random.Random) -> None:
    out.pop(rng.choice((_document, _chunk))(out, rng), None)


def _swap(out: Files, rng: random.Random) -> None:
    pick = rng.choice((_document, _chunk))
    one, two = pick(out, rng), pick(out, rng)
    if one in out and two in out:
        out[one], out[two] = out[two], out[one]


def _misplace(out: Files, rng: random.Random) -> None:
    name = rng.choice((_document, _chunk))(out, rng)
    if name in out:
        new = rng.choice((f"{name}/0", name.rpartition("/")[0] or "0", f"0/{name}", "zarr.json"))
        out[new] = out[name] if rng.random() < 0.5 else out.pop(name)


_MUTATIONS = (*[_structure] * 10, _text, _text, _data, _data, _data, _remove, _swap, _misplace)

# ---------------------------------------------------------------------- one input


def attempt(path: Path) -> str:
    """Read a store as a user would; return "ok" or what was raised on purpose."""
    from bioio_tk import BioReader
    from bioio_tk.errors import BioIOError

    try:
        with BioReader(path, max_workers=2) as br:
            count = br.n_series
            names = list(br.labels)[:2]
            assert br.plate is None or br.plate.paths is not None
            assert count > 1000 or len(br.series_names) == count
        for name in names:
            with BioReader(path, max_workers=2) as br, br.labels[name] as labels:
                _look(labels)
        for series in range(min(count, 3)):
            with BioReader(path, max_workers=2, series=series) as br:
                levels = br.levels
                assert len(br.level_shapes) == levels
                if br.C < 1000 and max(br.shape) < 1 << 31:
                    assert br.metadata.images
            for level in range(min(levels, 3)):
                with BioReader(path, max_workers=2, series=series, level=level) as br:
                    _look(br)
    except (BioIOError, OSError) as exc:
        return type(exc).__name__
    except MemoryError as exc:
        if not str(exc):
            raise AssertionError("a MemoryError that says nothing") from exc
        return "MemoryError"
    return "ok"


def run(files: list[Files], seed: int, folder: Path, end: float, out: Any) -> None:
    """Try damaged stores until `end`; send what happened. Runs in a child process."""
    warnings.simplefilter("error")
    logging.disable(logging.CRITICAL)
    with (folder / "stderr").open("wb") as file:
        os.dup2(file.fileno(), 2)  # codecs written in C complain there
    faulthandler.enable()
    limit(MEMORY)
    signal.signal(signal.SIGALRM, _alarm)
    rng = random.Random(seed)
    counts: collections.Counter[str] = collections.Counter()
    path = folder / "input.ome.zarr"
    while time.process_time() < end:
        save(mutate(rng.choice(files), rng), path)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            result = attempt(path)
        except Slow:
            result = _finding(out, "slow", path, traceback.format_exc())
        except BaseException as exc:
            where = traceback.extract_tb(exc.__traceback__)[-1]
            what = f"{type(exc).__name__} at {Path(where.filename).name}:{where.lineno}"
            result = _finding(out, what, path, traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        counts[result] += 1
        left = [p for p in Path("/proc/self/fd").iterdir() if _leads_to(p, folder / "input")]
        if left:
            _finding(out, "files left open", path, "")
    out.send(("counts", counts, {}, ""))
    out.close()


def _leads_to(link: Path, folder: Path) -> bool:
    try:
        return str(link.readlink()).startswith(str(folder))
    except OSError:
        return False


def _finding(out: Any, what: str, path: Path, text: str) -> str:
    out.send(("finding", what, load(path), text))
    return "finding"


def fuzz(seconds: float, seed: int, processes: int = 1, keep: Path | None = None) -> Any:
    """Fuzz for some seconds of CPU time a process; return (counts, findings by kind)."""
    counts: collections.Counter[str] = collections.Counter()
    findings: dict[str, tuple[Files, str]] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = seeds(folder / "seeds")
        jobs = []
        for n in range(processes):
            (folder / str(n)).mkdir()
            pipe, theirs = context.Pipe(duplex=False)
            args = (files, seed + n, folder / str(n), seconds, theirs)
            process = context.Process(target=_child, args=args, daemon=True)
            process.start()
            theirs.close()
            jobs.append((process, pipe, folder / str(n)))
        for process, pipe, place in jobs:
            _collect(process, pipe, place, time.monotonic() + 20 * seconds + 60, counts, findings)
    if keep is not None:
        for n, (what, (store, text)) in enumerate(findings.items()):
            save(store, keep / f"{n}.ome.zarr")
            (keep / f"{n}.txt").write_text(f"{what}\n{text}")
    return counts, findings


def _collect(
    process: Any, pipe: Any, place: Path, until: float, counts: Any, findings: Any
) -> None:
    try:
        while pipe.poll(max(0.0, until - time.monotonic())):
            kind, what, store, text = pipe.recv()
            if kind == "counts":
                counts.update(what)
            else:
                findings.setdefault(what, (store, text))
    except EOFError:
        process.join(10)
        if process.exitcode:
            text = (place / "stderr").read_text(errors="replace")[-5000:]
            what = f"the process ended with {process.exitcode}"
            findings.setdefault(what, (load(place / "input.ome.zarr"), text))
        return
    process.kill()
    findings.setdefault("the process hung", (load(place / "input.ome.zarr"), ""))


def _child(files: list[Files], seed: int, folder: Path, cpu: float, out: Any) -> None:
    run(files, seed, folder, cpu + time.process_time(), out)


# ---------------------------------------------------------------------- the script


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1, help="CPU time a process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, help="read one store, with all it prints")
    args = parser.parse_args()
    if args.replay:
        print(attempt(args.replay))
        return 0
    began = time.monotonic()
    counts, findings = fuzz(args.minutes * 60, args.seed, args.processes, args.keep)
    print(f"{sum(counts.values())} inputs in {time.monotonic() - began:.0f} s:", dict(counts))
    for what, (_, text) in findings.items():
        last = text.strip().splitlines()[-1] if text else ""
        print(f"  {what}: {last[:160]}")
    print(f"{len(findings)} kinds of findings" + (f", kept in {args.keep}" if findings else ""))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
