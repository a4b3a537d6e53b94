"""Mutated TIFFs: every outcome but right pixels, BioIOError or OSError is a finding.

Run as a script for as long as wanted, ``python tests/fuzz_tiff.py --minutes 10 --seed 1``. Inputs
run in child processes with a limit on memory and time; what fails is kept in ``--keep`` and can
be run again with ``--replay FILE``. The tests take `build` from here, and a short run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import json
import logging
import multiprocessing
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SECONDS = 5
MEMORY = 2 << 30

# ---------------------------------------------------------------------- a TIFF from its tags

Tag = tuple[int, str, tuple[Any, ...]]
_WIDTHS = {"B": 1, "s": 1, "H": 2, "I": 4, "Q": 8}
_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4, "rational": 5, "Q": 16}


def tag(code: int, kind: str, *values: Any) -> Tag:
    """One entry: integers of struct's kind, "rational" (pairs of integers) or "s" (bytes)."""
    return code, kind, values


def build(
    tags: list[Tag],
    data: list[bytes],
    *,
    order: str = "<",
    big: bool = False,
    table: str = "I",
    counts: list[int] | None = None,
    segments: tuple[list[int], list[int]] | None = None,
    place: list[int] | None = None,
    numbers: dict[int, int] | None = None,
    after: bytes = b"",
) -> bytes:
    """Return a TIFF of one page, or `after` with one more page.

    Parameters
    ----------
    tags : list of Tag
        All but the tables of offsets and lengths.
    data : list of bytes
        The strips, or the tiles where there is a TileWidth; b"" for one that is left out.
    order, big
        Byte order and BigTIFF.
    table
        Type of the two tables.
    counts : list of int, optional
        Lengths that the table claims.
    segments : (list of int, list of int), optional
        Both tables, instead of those of `data`.
    place : list of int, optional
        Order in which `data` lies in the file.
    numbers : dict, optional
        Number of values that an entry claims, by tag.
    after : bytes
        A file of the same kind.
    """
    pointer = "Q" if big else "I"
    width = 8 if big else 4
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8)
    out = bytearray(after or head)
    start = len(out)
    if after:
        at = _last_pointer(after, order, big)
        out[at : at + width] = struct.pack(order + pointer, start)
    tiled = any(code == 322 for code, _, _ in tags)
    where, lengths = (324, 325) if tiled else (273, 279)
    number = len(segments[0]) if segments else len(data)
    entries = [*tags, tag(where, table, *[0] * number), tag(lengths, table, *[0] * number)]
    entries.sort()

    def encode(entry: Tag) -> bytes:
        _, kind, values = entry
        if kind == "s":
            return bytes(values[0]) + b"\0"
        return struct.pack(f"{order}{len(values)}{'I' if kind == 'rational' else kind}", *values)

    size = (8 if big else 2) + len(entries) * (20 if big else 12) + width
    values_at = start + size
    places = {}
    for entry in entries:
        if len(encode(entry)) > width:
            places[entry[0]] = values_at
            values_at += -(-len(encode(entry)) // 8) * 8
    offsets = [0] * number
    at = values_at
    for n in place or range(len(data)):
        offsets[n] = at if data[n] else 0
        at += len(data[n])
    found = (offsets, counts or [len(d) for d in data]) if segments is None else segments
    ifd = struct.pack(order + ("Q" if big else "H"), len(entries))
    values = b""
    for code, kind, given in entries:
        filled = found[code == lengths] if code in (where, lengths) else given
        raw = encode(tag(code, kind, *filled))
        count = len(raw) // {**_WIDTHS, "rational": 8}[kind]
        count = (numbers or {}).get(code, count)
        ifd += struct.pack(order + "HH" + pointer, code, _TYPES[kind], count)
        if code in places:
            ifd += struct.pack(order + pointer, places[code])
            values += raw.ljust(-(-len(raw) // 8) * 8, b"\0")
        else:
            ifd += raw.ljust(width, b"\0")
    out += ifd + struct.pack(order + pointer, 0) + values
    for n in place or range(len(data)):
        out += data[n]
    return bytes(out)


def _last_pointer(blob: bytes, order: str, big: bool) -> int:
    """Return where the offset of the next page stands in the last page."""
    pointer, width = ("Q", 8) if big else ("I", 4)
    at = 8 if big else 4
    while offset := struct.unpack_from(order + pointer, blob, at)[0]:
        count = struct.unpack_from(order + ("Q" if big else "H"), blob, offset)[0]
        at = offset + (8 if big else 2) + count * (20 if big else 12)
        assert at + width <= len(blob)
    return at


# ---------------------------------------------------------------------- files to start from


def seeds(folder: Path) -> list[Path]:
    """Write small TIFFs of many kinds."""
    import tifffile

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4000, (3, 40, 52)).astype("u2")
    byte = pixels.astype("u1")
    found = []

    def write(name: str, array: Any, **options: Any) -> None:
        path = folder / name
        options.setdefault("photometric", "rgb" if array.shape[-1] == 3 else "minisblack")
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            tifffile.imwrite(path, array, **options)
            found.append(path)

    for compression in (None, "zlib", "zstd", "lzw", "packbits", "lzma", "jpeg", "jpeg2000",
                        "jpegxl", "lerc", "png", "webp", "jpegxr"):  # fmt: skip
        array = byte if compression in ("jpeg", "webp", "jpegxl", "jpegxr") else pixels
        if compression == "webp":
            array = np.stack([byte] * 3, -1)
        write(f"tiles_{compression}.tif", array, tile=(16, 32), compression=compression)
        write(f"strips_{compression}.tif", array, rowsperstrip=16, compression=compression)
    write("predictor.tif", pixels, predictor=2, compression="zlib", rowsperstrip=7)
    write("float.tif", pixels.astype("f4"), predictor=3, compression="zstd", tile=(16, 16))
    write("big.ome.tif", pixels, bigtiff=True, ome=True, tile=(16, 16), byteorder=">")
    write("plain.ome.tif", pixels, ome=True, metadata={"axes": "ZYX"})
    write("imagej.tif", pixels, imagej=True, metadata={"axes": "ZYX"})
    write("shaped.tif", pixels, metadata={"axes": "CYX"}, photometric="minisblack")
    write("planar.tif", byte, planarconfig="separate", photometric="rgb", tile=(16, 16))
    write("rgb.tif", np.stack([byte] * 3, -1), photometric="rgb", compression="lzw")
    write("bits.tif", pixels > 2000, photometric="minisblack")
    write("volume.tif", pixels, volumetric=True, tile=(2, 16, 16), compression="zlib")
    write("palette.tif", byte[0], photometric="palette", colormap=np.zeros((3, 256), "u2"))
    path = folder / "pyramid.ome.tif"
    with tifffile.TiffWriter(path) as tif:
        options = {"tile": (16, 16), "compression": "zlib"}
        tif.write(pixels, subifds=2, metadata={"axes": "TYX"}, photometric=1, **options)
        tif.write(pixels[:, ::2, ::2], subfiletype=1, **options)
        tif.write(pixels[:, ::4, ::4], subfiletype=1, **options)
    found.append(path)
    path = folder / "chain.tif"
    with tifffile.TiffWriter(path) as tif:
        for step in (1, 2, 4):
            tif.write(pixels[0, ::step, ::step], subfiletype=int(step > 1), metadata=None)
    found.append(path)
    path = folder / "series.ome.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels, metadata={"axes": "ZYX"})
        tif.write(byte, metadata={"axes": "CYX"}, photometric=1)
    found.append(path)
    path = folder / "ycbcr.tif"
    path.write_bytes(
        build(
            [tag(256, "I", 10), tag(257, "I", 9), tag(258, "H", 8, 8, 8), tag(259, "H", 1),
             tag(262, "H", 6), tag(277, "H", 3), tag(278, "I", 4), tag(284, "H", 1),
             tag(529, "rational", 299, 1000, 587, 1000, 114, 1000), tag(530, "H", 2, 2),
             tag(532, "rational", 0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)],
            [bytes(range(60)), bytes(range(60)), bytes(range(30))],
        )
    )  # fmt: skip
    found.append(path)
    return found


def real_files(most: int = 200_000) -> list[Path]:
    """Return the small TIFFs of the shared data, where there are any."""
    manifest = DATA / "MANIFEST.json"
    if not manifest.exists():
        return []
    entries = json.loads(manifest.read_text())["entries"]
    paths = {DATA / e["path"] for e in entries}
    good = (".tif", ".tiff", ".btf", ".lsm", ".svs", ".ndpi", ".stk", ".tf8")
    return sorted(
        p for p in paths
        if p.suffix.lower() in good and p.is_file() and 0 < p.stat().st_size <= most
    )  # fmt: skip


# ---------------------------------------------------------------------- mutations

_NASTY = (0, 1, 2, 3, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_WORDS = (
    b'SizeX="', b'SizeZ="', b'SizeC="', b'SizeT="', b'IFD="', b'PlaneCount="', b'FirstZ="',
    b'FirstC="', b'Type="', b'DimensionOrder="', b"<TiffData", b"</Pixels>", b"<Image", b"UUID",
    b"images=", b"slices=", b"channels=", b'"shape": [', b"hyperstack", b"axes",
)  # fmt: skip
_VALUES = (
    b"0", b"-1", b"1e9", b"99999999999999999999", b"2147483648", b"4", b"NaN", b"", b"&#0;",
    b"&lt;", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"../../etc/passwd", b"\xff\xfe", b'"', b"uint8",
)  # fmt: skip


def mutate(blob: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy: bits, bytes, numbers, entries, text, cuts."""
    out = bytearray(blob)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            break
        rng.choice(_MUTATIONS)(out, rng)
    return bytes(out)


def _near_a_directory(out: bytearray, rng: random.Random) -> int:
    places = [p for p in _entries(out) if p < len(out)]
    return rng.choice(places) if places else rng.randrange(len(out))


def _entries(out: bytearray) -> list[int]:
    """Return where the entries of the first directories stand."""
    order = "<" if out[:2] == b"II" else ">"
    found: list[int] = []
    with contextlib.suppress(struct.error, OverflowError):
        big = struct.unpack_from(order + "H", out, 2)[0] == 43
        offset = struct.unpack_from(order + ("Q" if big else "I"), out, 8 if big else 4)[0]
        for _ in range(8):
            if not offset:
                break
            count = struct.unpack_from(order + ("Q" if big else "H"), out, offset)[0]
            first = offset + (8 if big else 2)
            size = 20 if big else 12
            if count > 200:
                break
            found += [first + n * size for n in range(count)]
            offset = struct.unpack_from(order + ("Q" if big else "I"), out, first + count * size)[0]
    return found


def _flip(out: bytearray, rng: random.Random) -> None:
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _flip_entry(out: bytearray, rng: random.Random) -> None:
    at = _near_a_directory(out, rng) + rng.randrange(20)
    if at < len(out):
        out[at] = rng.choice((0, 1, 2, 255, rng.randrange(256)))


def _number(out: bytearray, rng: random.Random) -> None:
    order = "<" if out[:2] == b"II" else ">"
    kind = rng.choice("HIQ")
    value = rng.choice((*_NASTY, len(out), len(out) - 1, rng.randrange(len(out))))
    raw = struct.pack(order + kind, value & (2 ** (8 * struct.calcsize(kind)) - 1))
    at = _near_a_directory(out, rng) + rng.choice((0, 2, 4, 4, 8, 8, 8, 12))
    out[at : at + len(raw)] = raw[: max(0, len(out) - at)]


def _swap(out: bytearray, rng: random.Random) -> None:
    a, b = (_near_a_directory(out, rng) for _ in range(2))
    one, two = bytes(out[a : a + 12]), bytes(out[b : b + 12])
    if len(one) == len(two) == 12:
        out[a : a + 12], out[b : b + 12] = two, one


def _new_tag(out: bytearray, rng: random.Random) -> None:
    order = "<" if out[:2] == b"II" else ">"
    code = rng.choice((254, 256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 320, 322, 323, 330,
                       338, 339, 347, 529, 530, 532, 32997, 32998, 33628, 33629, 34412, 42113,
                       50838, 50839, 51123, 65420, 65441))  # fmt: skip
    at = _near_a_directory(out, rng)
    out[at : at + 2] = struct.pack(order + "H", code)


def _text(out: bytearray, rng: random.Random) -> None:
    places = [i for word in _WORDS if (i := out.find(word)) >= 0]
    if not places:
        _flip_entry(out, rng)
        return
    at = rng.choice(places)
    at += rng.choice((0, 5, 6, 7, 12))
    value = rng.choice(_VALUES)
    if rng.random() < 0.7:  # in place, so that the offsets behind it stay right
        out[at : at + len(value)] = value[: max(0, len(out) - at)]
    else:
        out[at:at] = value


def _cut(out: bytearray, rng: random.Random) -> None:
    del out[rng.randrange(len(out)) :]


def _remove(out: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(out))
    del out[at : at + rng.choice((1, 4, 16, 300))]


def _repeat(out: bytearray, rng: random.Random) -> None:
    at, size = rng.randrange(len(out)), rng.choice((1, 12, 64, 500))
    out[at:at] = out[at : at + size]


_MUTATIONS = (_flip, _flip_entry, _flip_entry, _number, _number, _number, _swap, _new_tag, _text,
              _text, _cut, _remove, _repeat)  # fmt: skip

# ---------------------------------------------------------------------- one input


def attempt(path: Path) -> str:
    """Read a file as a user would; return "ok" or what was raised on purpose."""
    from bioio_tk import BioReader
    from bioio_tk.errors import BioIOError

    try:
        with BioReader(path, max_workers=2) as br:
            count = br.n_series
        for series in range(min(count, 4)):
            with BioReader(path, max_workers=2, series=series) as br:
                levels = br.levels
            for level in range(min(levels, 3)):
                with BioReader(path, max_workers=2, series=series, level=level) as br:
                    _look(br)
    except (BioIOError, OSError) as exc:
        return type(exc).__name__
    return "ok"


def _look(br: Any) -> None:
    assert len(br.shape) == 5, br.shape
    assert min(br.shape) > 0, br.shape
    repr(br), br.notes, br.details, br.channel_names, br.pixel_size(), br.time_increment
    br.used_files, br.original_metadata  # noqa: B018
    y, x, z, c, t = br.shape
    if c > 1 << 20 or len(br.channel_names) != c:
        raise AssertionError(f"{c} channels, {len(br.channel_names)} names")
    size = y * x * br.bytes_per_pixel
    planes = [(0, 0, 0), (z - 1, c - 1, t - 1)]
    for zct in planes:
        got = br[(slice(0, 70), slice(max(0, x - 70), x), *zct)]
        assert got.dtype == br.dtype, got.dtype
        assert got.shape == (min(y, 70), min(x, 70)), got.shape
    br[:: max(1, y // 9), :: max(1, x // 9)][..., :1] if size * z * c * t < 1 << 28 else None
    if size * z * c * t < 1 << 26:
        whole = br[:]
        assert whole.shape[:2] == (y, x)


def limit(memory: int) -> None:
    """Limit this process's memory."""
    import resource

    os.environ["BIOIO_TK_JVM"] = os.devnull  # no Java: it would not start in so little
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


class Slow(BaseException):
    """An input took too long; no ``except Exception`` swallows it."""


def _alarm(*_: Any) -> None:
    raise Slow


def run(todo: Iterator[tuple[str, bytes]], folder: Path, end: float, out: Any) -> None:
    """Try inputs until `end`; send what happened. Runs in a child process."""
    logging.disable(logging.CRITICAL)
    with (folder / "stderr").open("wb") as file:
        os.dup2(file.fileno(), 2)  # codecs written in C complain there
    faulthandler.enable()
    limit(MEMORY)
    signal.signal(signal.SIGALRM, _alarm)
    counts: collections.Counter[str] = collections.Counter()
    for name, blob in todo:
        path = folder / f"input{name[-9:] if name.endswith('.ome.tif') else '.tif'}"
        path.write_bytes(blob)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            result = attempt(path)
        except Slow:
            result = _finding(out, f"slow {name}", blob, "")
        except BaseException as exc:
            where = traceback.extract_tb(exc.__traceback__)[-1]
            what = f"{type(exc).__name__} at {Path(where.filename).name}:{where.lineno}"
            result = _finding(out, what, blob, traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        counts[result] += 1
        if time.process_time() > end:
            break
    out.send(("counts", counts, b"", ""))
    out.close()


def _finding(out: Any, what: str, blob: bytes, text: str) -> str:
    out.send(("finding", what, blob, text))
    return "finding"


def inputs(files: list[Path], seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield damaged copies of files without end."""
    rng = random.Random(seed)
    loaded: dict[Path, bytes] = {}
    while True:
        path = rng.choice(files)
        blob = loaded.setdefault(path, path.read_bytes())
        yield path.name, mutate(blob, rng)


def fuzz(seconds: float, seed: int, processes: int = 1, keep: Path | None = None) -> Any:
    """Fuzz for some seconds of CPU time a process; return (counts, findings by kind)."""
    counts: collections.Counter[str] = collections.Counter()
    findings: dict[str, tuple[bytes, str]] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        files = [*seeds(folder / "seeds"), *real_files()]
        jobs = [_Job(context, folder / str(n), files, seed + n, seconds) for n in range(processes)]
        while jobs:
            for job in list(jobs):
                more = job.collect(counts, findings)
                if not more:
                    jobs.remove(job)
            time.sleep(0.05)
    if keep is not None and findings:
        keep.mkdir(parents=True, exist_ok=True)
        for n, (what, (blob, text)) in enumerate(findings.items()):
            (keep / f"{n}.tif").write_bytes(blob)
            (keep / f"{n}.txt").write_text(f"{what}\n{text}")
    return counts, findings


class _Job:
    """A child process that is started again where an input has ended it."""

    def __init__(
        self, context: Any, folder: Path, files: list[Path], seed: int, cpu: float
    ) -> None:
        folder.mkdir()
        self._context, self._folder, self._files = context, folder, files
        self._seed, self._cpu = seed, cpu
        self._began = time.monotonic()
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe(duplex=False)
        args = (self._files, self._seed, self._folder, self._cpu, theirs)
        self._process = self._context.Process(target=_child, args=args, daemon=True)
        self._process.start()
        theirs.close()

    def collect(self, counts: Any, findings: dict[str, tuple[bytes, str]]) -> bool:
        """Take what the child has sent; return whether more is to come."""
        try:
            while self._pipe.poll():
                kind, what, blob, text = self._pipe.recv()
                if kind == "counts":
                    counts.update(what)
                else:
                    findings.setdefault(what, (blob, text))
        except EOFError:
            self._process.join(10)
            if self._process.exitcode == 0:
                return False
            inputs = sorted(self._folder.glob("input*"), key=os.path.getmtime)
            blob = inputs[-1] if inputs else None
            data = b"" if blob is None else blob.read_bytes()
            text = (self._folder / "stderr").read_text(errors="replace")[-5000:]
            findings.setdefault(f"the process ended with {self._process.exitcode}", (data, text))
            self._seed += 1000
            self._cpu -= 1
            self._start()
        if time.monotonic() - self._began > 20 * self._cpu + 60:
            self._process.kill()
            findings.setdefault("the process hung", (b"", ""))
            return False
        return True


def _child(files: list[Path], seed: int, folder: Path, cpu: float, out: Any) -> None:
    run(inputs(files, seed), folder, cpu + time.process_time(), out)


# ---------------------------------------------------------------------- the script


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1, help="CPU time a process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, help="run one file, with all it prints")
    args = parser.parse_args()
    if args.replay:
        print(attempt(args.replay))
        return 0
    began = time.monotonic()
    counts, findings = fuzz(args.minutes * 60, args.seed, args.processes, args.keep)
    print(f"{sum(counts.values())} inputs in {time.monotonic() - began:.0f} s:", dict(counts))
    for what, (blob, text) in findings.items():
        last = text.strip().splitlines()[-1] if text else ""
        print(f"  {what} ({len(blob)} bytes): {last[:160]}")
    print(f"{len(findings)} kinds of findings" + (f", kept in {args.keep}" if findings else ""))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
