"""Every file of the shared data against its known truth, plane by plane.

The truth comes from independent readers (``../shared/data/MANIFEST.json``). Each file is read by
the backend that is chosen for it, and once more through Java. Run as a script,
``python tests/test_real_files.py`` prints both tables of counts.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from bioio_tk import BioReader
from bioio_tk.backends import _java_home
from bioio_tk.errors import BioIOError, BioIOWarning

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "formats"
FORMATS = {"tiff", "ome-tiff", "imagej-tiff", "lsm", "svs", "ndpi", "vendor-tiff", "hostile",
           "ndtiff", "ome-zarr", "bdv"}  # fmt: skip

DEVIATIONS = {
    "tiff/libtiffpic/ycbcr-cat.tif": "the truth wraps around where a colour leaves 0 to 255",
    "tiff/pillow/multipage.tiff": "equal pages are one series here, three there",
    "svs/CMU-1-Small-Region.svs": "associated images come in the order of the file, all of them",
    "vendor-tiff/imagexpress_3420/TimePoint_1/9987.HTD": "an index in text, not a TIFF",
    "ome-zarr/invalid-image-03.zarr": "made invalid: the array of its only level is missing",
}
"""What differs from the truth, and why; the page of the format has each at more length."""

REFUSED_THROUGH_JAVA = {
    "*.zarr": "Bio-Formats 7.3.1 has no reader for it",
    "ome-zarr/bioformats-zarr": "Bio-Formats 7.3.1 has no reader for it",
    "gen/tifffile/dtype_*int64*": "64-bit integers are refused",
    "gen/tifffile/dtype_complex64*": "complex pixels are refused",
    "gen/tifffile/ome_complex64.ome.tif": "complex pixels are refused",
    "gen/tifffile/dtype_complex128*": "complex pixels are refused",
    "gen/tifffile/pred3_*": "predictor 3 is refused",
    "tiff/imagetiff/predictor-3-gray-f32.tif": "predictor 3 is refused",
    "tiff/seq/seq-1c-64f-deflate-fpredict-afa8560e.tiff": "predictor 3 is refused",
    "gen/tifffile/comp_lzma_*": "the compression is refused",
    "gen/tifffile/comp_png_*": "the compression is refused",
    "gen/tifffile/comp_jpegxl_*": "the compression is refused",
    "gen/tifffile/comp_jpegxr_*": "the compression is refused",
    "gen/tifffile/comp_lerc_*": "the compression is refused",
    "gen/tifffile/comp_webp_*": "the compression is refused",
    "gen/libtiff/lzma.tif": "the compression is refused",
    "gen/libtiff/lerc.tif": "the compression is refused",
    "gen/gdal/gdal_lerc_zstd.tif": "the compression is refused",
    "gen/gdal/gdal_lzma.tif": "the compression is refused",
    "tiff/pillow/hopper_lzma.tif": "the compression is refused",
    "gen/libtiff/zstd.tif": "zstd without the size of its content is refused",
    "gen/gdal/gdal_tiled_zstd.tif": "zstd without the size of its content is refused",
    "tiff/libtiffpic/fax2d.tif": "fax compression is refused",
    "gen/libtiff/g[34]*.tif": "fax compression is refused",
    "gen/vips/vips_ccitt_1bit.tif": "fax compression is refused",
    "vendor-tiff/imagexpress_3420/TimePoint_1/9987.HTD": "a plate of 0 planes is refused",
    "ome-xml/omexml/small.ome.xml": "there are no pixels in it",
    "ome-xml/omexml/bad.ome.xml": "there are no pixels in it",
    "dicom/SC_rgb_rle_2frame/SC_rgb_rle_2frame.dcm": "frames coded by run length are refused",
    "dv/otf/otf.dv": "complex pixels are refused",
}
"""What is refused through Java, by pattern, and why; the page of Bio-Formats has each."""

DIFFERENT_THROUGH_JAVA = {
    "gen/tifffile/dtype_float16*": "float16 comes as float32, of equal value",
    "gen/tifffile/miniswhite_u8.tif": "pixels that mean 0 is white are inverted",
    "ndtiff/ndtiff_v30/ndtiffv3.0_test_NDTiffStack.tif": "all planes are time points",
}
"""What is read through Java and differs."""

THROUGH_JAVA = {**REFUSED_THROUGH_JAVA, **DIFFERENT_THROUGH_JAVA}


def entries() -> list[dict[str, Any]]:
    """Return the entries of the manifest."""
    manifest = DATA / "MANIFEST.json"
    return json.loads(manifest.read_text())["entries"] if manifest.exists() else []


def ours(entry: dict[str, Any]) -> bool:
    """Return whether the reader of TIFF, Zarr or HDF5 is there for it."""
    if entry["format"].startswith("generated"):
        return entry["path"].endswith((".tif", ".tiff", ".btf", ".zarr", ".h5"))
    return entry["format"] in FORMATS


EVERY = {e["id"]: e for e in entries()}
ENTRIES = {name: e for name, e in EVERY.items() if ours(e)}
needs_data = pytest.mark.skipif(not ENTRIES, reason="the shared data are not beside the checkout")


def deviates(name: str, patterns: Iterable[str] = THROUGH_JAVA) -> bool:
    """Return whether a file is known to differ through Java."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Spare the log tifffile's complaints."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def plane_hash(plane: Any) -> str:
    if plane.dtype == bool:
        plane = plane.astype("u1")
    little = plane.astype(plane.dtype.newbyteorder("<"))
    return hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()


def images(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [i for i in (entry.get("truth") or {}).get("images") or [] if "shape_tczyx" in i]


def compare(
    path: Path, series: int, truth: dict[str, Any], backend: str | None = None
) -> list[str]:
    """Return what of a series differs from its truth."""
    t, c, z, y, x = truth["shape_tczyx"]
    with BioReader(path, series=series, backend=backend) as br:
        if br.shape != (y, x, z, c, t):
            return [f"series {series} is {br.shape}, not {(y, x, z, c, t)}"]
        dtype = truth["dtype"].split("(")[0]
        if br.dtype.name != dtype and {br.dtype.name, dtype} != {"bool", "uint8"}:
            return [f"series {series} is {br.dtype}, not {truth['dtype']}"]
        wrong = []
        if "plane_sha256" not in truth:  # large ones have a hash of the whole image alone
            found = plane_hash(br[:].reshape(br.shape).transpose(4, 3, 2, 0, 1))
            return [] if found == truth["tczyx_sha256"] else [f"series {series} differs"]
        for key, value in truth["plane_sha256"].items():
            at = re.fullmatch(r"t(\d+)c(\d+)z(\d+)", key)
            assert at
            pt, pc, pz = map(int, at.groups())
            if plane_hash(br[:, :, pz, pc, pt]) != value:
                wrong.append(f"series {series}: plane {key} differs")
        whole = br[:]  # the same pixels by another way
        pt, pc, pz = t - 1, c - 1, z - 1
        whole = whole.reshape(whole.shape + (1,) * (5 - whole.ndim))
        if plane_hash(whole[:, :, pz, pc, pt]) != truth["plane_sha256"][f"t{pt}c{pc}z{pz}"]:
            wrong.append(f"series {series}: the last plane differs when all are read at once")
    return wrong


def outcome(entry: dict[str, Any], backend: str | None = None) -> str:
    """Return how a file was read: "identical", "refused", "opened", or what is wrong."""
    path = DATA / entry["path"]
    truth = images(entry)
    try:
        with BioReader(path, backend=backend) as br:
            count = br.n_series
        if "LOSSY" in entry["id"]:
            return lossy(path, backend)
        if (entry.get("layout") or {}).get("tiles_across"):
            return huge(path, backend)
        wrong = [] if count >= len(truth) else [f"{count} series, not {len(truth)}"]
        for number, image in enumerate(truth[:count]):
            wrong += compare(path, number, image, backend)
        if not truth:
            for series in range(count):
                with BioReader(path, series=series, backend=backend) as br:
                    br[:]
            return "opened"
    except BioIOError as exc:
        return f"refused: {type(exc).__name__}: {exc}"
    return "; ".join(wrong) or "identical"


def lossy(path: Path, backend: str | None = None) -> str:
    """Compare with what tifffile decodes; decoders may differ by a little."""
    want = np.squeeze(tifffile.imread(path, series=0))
    with BioReader(path, backend=backend) as br:
        got = br[:]
        got = got.reshape(got.shape + (1,) * (5 - got.ndim)).transpose(4, 2, 0, 1, 3)
    got = np.squeeze(got)
    if got.shape != want.shape:
        want = np.moveaxis(want, 0, -1)
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.shape} {got.dtype}, not {want.shape} {want.dtype}"
    worst = np.abs(got.astype(float) - want.astype(float)).max()
    return "identical (lossy)" if worst <= 2 else f"differs by up to {worst}"


def huge(path: Path, backend: str | None = None) -> str:
    """Compare with tifffile, tile by tile: too large for the manifest."""
    with BioReader(path, backend=backend) as br, tifffile.TiffFile(path) as tif:
        for tile, (_, _, y, x, _), _ in tif.pages.first.segments():
            got = br[y : y + 1024, x : x + 1024]
            if (got != tile[0, : got.shape[0], : got.shape[1], 0]).any():
                return f"the tile at {y}, {x} differs"
    return "identical (to tifffile)"


BDV = [name for name in ENTRIES if "bdv" in name]


@needs_data
@pytest.mark.parametrize("name", BDV)
def test_bigdataviewer_is_read_without_java(name: str) -> None:
    """By the name of the XML and of the HDF5, every level; the smaller ones equal to h5py's."""
    path = DATA / EVERY[name]["path"]
    with h5py.File(path.with_suffix(".h5")) as file:
        for suffix in (".xml", ".h5"):
            with BioReader(path.with_suffix(suffix)) as br:
                assert br.backend == "bdv"
                levels, views = br.levels, br.views
            assert views
            for level in range(levels):
                with BioReader(path.with_suffix(suffix), level=level) as br:
                    for view in views:
                        cells = file[f"t{view.time:05d}/s{view.setup:02d}/{level}/cells"][()]
                        got = br[..., view.c, view.t].transpose(2, 0, 1)
                        np.testing.assert_array_equal(got, cells.view(np.uint16))


def verdict(entry: dict[str, Any], result: str) -> str:
    """Return "" where the outcome is what the manifest expects of the file."""
    expect = entry["expect"]
    if "any" in expect:
        return ""
    if expect == "metadata only":
        return result if result.startswith("refused") else ""
    if expect == "error":
        return "" if result.startswith("refused") else f"read, though damaged: {result}"
    return "" if result.startswith("identical") else result


@needs_data
@pytest.mark.parametrize("name", [n for n in ENTRIES if n not in DEVIATIONS])
def test_file_is_read_as_others_read_it(name: str) -> None:
    entry = ENTRIES[name]
    assert not verdict(entry, outcome(entry))


@needs_data
@pytest.mark.parametrize("name", [n for n in EVERY if not ours(EVERY[n])])
def test_file_of_another_format_is_read_as_others_read_it(name: str, java: Any) -> None:
    check_through_java(name, java.started.version)


HOSTILE = [n for n, e in EVERY.items() if e["expect"] not in ("ok", "metadata only")]


@needs_data
@pytest.mark.parametrize("name", [n for n in EVERY if n not in HOSTILE])
def test_file_is_read_through_java_as_others_read_it(name: str, java: Any) -> None:
    check_through_java(name, java.started.version, "java")


def check_through_java(name: str, version: str, backend: str | None = None) -> None:
    """Check that a file differs where the page says so; an older version may refuse more."""
    entry = EVERY[name]
    result = outcome(entry, backend)
    differs = bool(verdict(entry, result))
    no_pixels = refused(DATA / entry["path"], backend)
    if version == "7.3.1":
        assert differs == deviates(name), result
        assert no_pixels == (name in HOSTILE or deviates(name, REFUSED_THROUGH_JAVA)), result
    elif differs and not no_pixels:
        assert deviates(name, DIFFERENT_THROUGH_JAVA), result


def refused(path: Path, backend: str | None) -> bool:
    """Return whether there is an error instead of the pixels of the first image."""
    try:
        with BioReader(path, backend=backend) as br:
            br[-1:]
    except BioIOError:
        return True
    return False


@needs_data
@pytest.mark.usefixtures("java")
def test_damaged_files_are_refused_by_java_in_time() -> None:
    """In a process of their own, which one of them may not bring down nor hold up."""
    paths = {name: str(DATA / EVERY[name]["path"]) for name in HOSTILE}
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.keys() == paths.keys()
    wrong = {name: verdict(EVERY[name], result) for name, result in results.items()}
    assert not {name: text for name, text in wrong.items() if text}


READ_ALL = """
import json, logging, sys
from bioio_tk import BioReader
from bioio_tk.errors import BioIOError

def outcome(path):
    try:
        with BioReader(path, backend="java") as br:
            count = br.n_series
        for series in range(count):
            with BioReader(path, backend="java", series=series) as br:
                br[:]
    except BioIOError as exc:
        return f"refused: {exc}"
    return "opened"

json.dump({name: outcome(path) for name, path in json.load(sys.stdin).items()}, sys.stdout)
"""


@needs_data
def test_what_differs_through_java_is_there() -> None:
    """Each pattern is about a file that there is."""
    for pattern in THROUGH_JAVA:
        assert any(fnmatchcase(name, pattern) for name in EVERY), pattern


def test_what_differs_through_java_is_documented() -> None:
    """The table of the page, and the dict above, name the same files."""
    text = (DOCS / "bio-formats.md").read_text()
    table = text[text.index("## Where it differs") :]
    cells = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    assert set(re.findall(r"`([^`]+)`", " ".join(cells))) == set(THROUGH_JAVA)


@needs_data
@pytest.mark.parametrize("name", DEVIATIONS)
def test_deviations_are_still_there_and_documented(name: str) -> None:
    assert name in ENTRIES
    assert verdict(ENTRIES[name], outcome(ENTRIES[name])), "no deviation any more: drop it"
    assert name in page(name).read_text(), f"{page(name)} does not name {name}"


def test_documented_deviations_are_known_here() -> None:
    """The tables of the pages, and the dict above, name the same files."""
    named = set()
    for text in {page(name): page(name).read_text() for name in DEVIATIONS}.values():
        table = text[text.index("## Where it differs") :]
        named |= set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))
    assert named == set(DEVIATIONS)


def page(name: str) -> Path:
    """Return the page of the documentation that a file belongs to."""
    return DOCS / ("ome-zarr.md" if ".zarr" in name else "tiff.md")


@needs_data
def test_ycbcr_deviates_only_where_the_truth_wraps_around() -> None:
    """The truth, computed anew without the wrap, is at most one level away: it cuts, we round."""
    entry = ENTRIES["tiff/libtiffpic/ycbcr-cat.tif"]
    path = DATA / entry["path"]
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        height, width = page.imagelength, page.imagewidth
        strips = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        coefficients = np.array(page.tags[529].value, np.float32).reshape(3, 2)
    red_weight, green_weight, blue_weight = coefficients[:, 0] / coefficients[:, 1]
    import imagecodecs

    raw = path.read_bytes()
    ycc = np.zeros((height + 10, width, 3), np.float32)
    for n, (offset, count) in enumerate(strips):
        units = np.frombuffer(imagecodecs.lzw_decode(raw[offset : offset + count]), "u1")
        units = units[: 5 * 125 * 6].reshape(-1, 125, 6)
        rows = ycc[n * 10 : n * 10 + 2 * len(units)]
        luma = units[..., :4].reshape(-1, 125, 2, 2).transpose(0, 2, 1, 3).reshape(-1, 250)
        rows[..., 0] = luma[:, :width]
        rows[..., 1:] = units[..., 4:].repeat(2, 0).repeat(2, 1)[:, :width].astype(int) - 128
    y, cb, cr = np.moveaxis(ycc[:height], -1, 0)
    red = np.trunc(cr * (np.float32(2) - 2 * red_weight) + y)
    blue = np.trunc(cb * (np.float32(2) - 2 * blue_weight) + y)
    green = np.trunc((y - blue_weight * blue - red_weight * red) / green_weight)
    truth = images(entry)[0]["plane_sha256"]
    with BioReader(path) as br:
        for channel, plane in enumerate((red, green, blue)):
            wrapped = (plane.astype(int) & 255).astype("u1")
            assert plane_hash(wrapped) == truth[f"t0c{channel}z0"]
            got = br[:, :, 0, channel].astype(int)
            allowed = 2 if channel == 1 else 1  # green follows from the two others
            assert np.abs(got.reshape(height, width) - plane.clip(0, 255)).max() <= allowed


@needs_data
def test_ycbcr_is_what_libtiff_shows() -> None:
    from PIL import Image

    path = DATA / "tiff/libtiffpic/ycbcr-cat.tif"
    with Image.open(path) as image, BioReader(path) as br:
        np.testing.assert_array_equal(br[:][:, :, 0], np.asarray(image))


@needs_data
@pytest.mark.parametrize("name", ["tiff/pillow/multipage.tiff", "svs/CMU-1-Small-Region.svs"])
def test_every_plane_of_the_truth_is_there_in_another_place(name: str) -> None:
    entry = ENTRIES[name]
    path = DATA / entry["path"]
    found: list[str] = []
    with BioReader(path) as br:
        count = br.n_series
    for series in range(count):
        with BioReader(path, series=series) as br:
            _, _, z, c, t = br.shape
            places = [(pz, pc, pt) for pt in range(t) for pc in range(c) for pz in range(z)]
            found += [plane_hash(br[(slice(None), slice(None), *at)]) for at in places]
    wanted = [h for image in images(entry) for h in image["plane_sha256"].values()]
    assert not collections.Counter(wanted) - collections.Counter(found)


@needs_data
def test_image_0_of_the_slide_is_identical() -> None:
    entry = ENTRIES["svs/CMU-1-Small-Region.svs"]
    assert not compare(DATA / entry["path"], 0, images(entry)[0])


@needs_data
def test_tiff_beside_the_index_is_read() -> None:
    folder = DATA / "vendor-tiff/imagexpress_3420/TimePoint_1"
    for path in folder.glob("*.TIF"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BioIOWarning)  # the set is not complete, it says
            br = BioReader(path)
        with br:
            np.testing.assert_array_equal(br[:].squeeze(), tifffile.imread(path).squeeze())


@needs_data
@pytest.mark.parametrize(
    "name",
    [n for n in ENTRIES if "pyramid" in n or "gdal_cog" in n or n.startswith(("svs", "ndpi"))],
)
def test_levels_are_smaller_copies(name: str) -> None:
    path = DATA / ENTRIES[name]["path"]
    with BioReader(path) as br:
        shapes = br.level_shapes
    single = ("svs/", "ndpi/", "gen/gdal/gdal_cog")  # these have one level each
    assert len(shapes) > 1 or name.startswith(single), shapes
    for number, (above, this) in enumerate(pairwise(shapes)):
        assert this[0] < above[0]
        assert this[3:] == above[3:]
        assert this[2] == above[2] or ".zarr" in name
        with BioReader(path, level=number + 1) as small, BioReader(path) as full:
            assert small[:].any()
            if full.physical_size_x[0]:
                ratio = small.physical_size_x[0] / full.physical_size_x[0]
                assert ratio == round(ratio)


def counted(every: dict[str, dict[str, Any]], backend: str | None = None) -> str:
    """Return how many files of each format were read, and how."""
    logging.disable(logging.CRITICAL)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, entry in every.items():
        kind = kind_of(entry, outcome(entry, backend), known=known(name, backend))
        counts[entry["format"]][kind] += 1
        counts["all"][kind] += 1
    kinds = ["identical", "deviates", "refused", "opened", "WRONG"]
    lines = [f"| format | files | {' | '.join(kinds)} |", "| --- " * (len(kinds) + 2) + "|"]
    for name in [*sorted(n for n in counts if n != "all"), "all"]:
        row = counts[name]
        cells = " | ".join(str(row[k]) for k in kinds)
        lines.append(f"| {name} | {sum(row.values())} | {cells} |")
    return "\n".join(lines)


def known(name: str, backend: str | None) -> bool:
    """Return whether a file is known to differ."""
    if backend is None and ours(EVERY[name]):
        return name in DEVIATIONS
    return deviates(name)


def kind_of(entry: dict[str, Any], result: str, *, known: bool) -> str:
    """Return the column of the table an outcome belongs to."""
    kind = result.split(":", maxsplit=1)[0].split(" ", maxsplit=1)[0]
    if verdict(entry, result):
        if not known:
            return "WRONG"
        return "refused" if kind == "refused" else "deviates"
    return kind if kind in ("identical", "refused") else "opened"


if __name__ == "__main__":
    missing = _java_home.missing()
    print("The backend that is chosen\n")
    print(counted(EVERY if missing is None else ENTRIES))
    print("\nThrough Java\n")
    print(counted(EVERY, "java") if missing is None else missing)
