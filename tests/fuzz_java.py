"""Mutated vendor files through Bio-Formats: every outcome but pixels or BioIOError is a finding.

``python tests/fuzz_java.py --minutes 5 --seed 1 [--keep FOLDER] [FILES]``. A child process reads
one mutant after the other with a limit on time and memory; what crashes, hangs or raises anything
else is kept in ``--keep``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "shared" / "data"
SUFFIXES = ".czi .lif .nd2 .dv .ics .dm3 .dcm .vsi .fits .nrrd .nii .mrc .spe .lsm .svs .ndpi .ims"
SECONDS = 20
MEMORY = 12 << 30
LIMITS = (512, 512, 3, 3, 3)
"""Pixels that are read of each, Y, X, Z, C, T."""
MARKS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\0\0\0\x80")


def mutate(raw: bytes, chance: random.Random) -> bytes:
    """Return `raw` cut off, or with a few bytes changed, most of them near its start or end."""
    data = bytearray(raw)
    if chance.random() < 0.25:
        return bytes(data[: chance.randrange(1, len(data))])
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        near = min(len(data), chance.choice((32, 256, 1024, 8192, len(data))))
        at = chance.randrange(near)
        at = at if chance.random() < 0.8 else len(data) - 1 - at
        new = chance.choice((*MARKS, chance.randbytes(1), chance.randbytes(4)))
        data[at : at + len(new)] = new
    return bytes(data)


def child(tasks: Any, results: Any) -> None:
    """Read one file after the other; say how each went."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import numpy as np

    import bioio_tk
    from bioio_tk.errors import BioIOError

    bioio_tk.start(heap_mb=512)
    results.send("ready")
    while True:
        path = tasks.recv()
        try:
            with bioio_tk.BioReader(path, backend="java") as reader:
                wanted = tuple(min(n, most) for n, most in zip(reader.shape, LIMITS, strict=False))
                found = np.asarray(reader[tuple(slice(0, n) for n in wanted)])
                assert found.shape[:2] == wanted[:2], (found.shape, wanted)
            results.send("read")
        except (BioIOError, OSError) as exc:
            results.send(f"refused {type(exc).__name__}")
        except BaseException as exc:
            results.send(f"FINDING {type(exc).__name__}: {exc}")


def start() -> tuple[Any, Any, Any]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs, theirs), daemon=True)
    process.start()
    assert mine.poll(60), "the child did not start"
    mine.recv()
    return process, mine, theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_java_findings"))
    parser.add_argument("files", nargs="*", type=Path)
    given = parser.parse_args()
    kinds = tuple(SUFFIXES.split())
    files = given.files or [p for p in sorted(DATA.rglob("*")) if p.name.endswith(kinds)]
    files = [p for p in files if p.is_file() and p.stat().st_size < 6_000_000]
    chance, counts, slowest = random.Random(given.seed), {}, 0.0
    process, pipe, _ = start()
    end = time.monotonic() + given.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        number = 0
        while time.monotonic() < end:
            number += 1
            source = chance.choice(files)
            path = Path(folder) / f"{number}{source.suffix}"
            path.write_bytes(mutate(source.read_bytes(), chance))
            pipe.send(path)
            began = time.monotonic()
            try:
                said = pipe.recv() if pipe.poll(SECONDS) else f"FINDING hang > {SECONDS} s"
            except EOFError:
                said = "FINDING crash"
            slowest = max(slowest, time.monotonic() - began)
            counts[said.split(":")[0]] = counts.get(said.split(":")[0], 0) + 1
            if said.startswith("FINDING"):
                given.keep.mkdir(parents=True, exist_ok=True)
                kept = given.keep / f"{given.seed}-{number}-{source.name}"
                shutil.copy(path, kept)
                print(kept, said[:300], flush=True)
                if "hang" in said or "crash" in said:
                    process.kill()
                    process, pipe, _ = start()
            path.unlink()
    process.kill()
    print(f"{number} files, slowest {slowest:.1f} s: {counts}")
    return 1 if any(name.startswith("FINDING") for name in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
