"""convert and recover: right pixels, flat memory, and nothing half-done, whatever happens."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from images import coded

from bioio_tk import BioReader, BioWriter, convert
from bioio_tk.api import convert_series, recover
from bioio_tk.backends.base import Caps
from bioio_tk.core.spec import ImageSpec, Level
from bioio_tk.engine.copy import View, copy, cut, pieces, windows
from bioio_tk.errors import (
    DamagedFileError,
    PixelTypeError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
    UnknownFormatError,
    UnsupportedError,
)
from bioio_tk.target import partial_path

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
CLI = [sys.executable, "-m", "bioio_tk"]


def planes_of(shape, dtype="u2"):
    """Return an image as tifffile takes it: (T, Z, C, Y, X), each pixel telling its place."""
    return np.ascontiguousarray(coded(shape, dtype).transpose(4, 2, 3, 0, 1))


def listed(folder):
    return sorted(p.name for p in folder.iterdir())


# ------------------------------------------------------------------ pixels, by an outside reader

SOURCES = {
    "raw strips": {"rowsperstrip": 7},
    "one raw strip": {},
    "deflate strips": {"compression": "zlib", "rowsperstrip": 13},
    "one deflate strip": {"compression": "zlib", "rowsperstrip": 10_000},
    "single rows": {"compression": "lzw", "rowsperstrip": 1},
    "small tiles": {"compression": "zlib", "tile": (16, 32)},
    "equal tiles": {"tile": (64, 64), "compression": "zstd"},
    "large tiles": {"tile": (256, 256), "compression": "zlib"},
    "odd tiles": {"tile": (80, 48), "compression": "zlib"},
    "raw tiles": {"tile": (80, 48)},
    "big-endian": {"byteorder": ">", "rowsperstrip": 16},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_pixels_are_those_of_the_source(tmp_path, kind):
    data = planes_of((201, 317, 2, 2, 2))
    options = dict(SOURCES[kind])
    order = options.pop("byteorder", "<")
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", byteorder=order, ome=True) as writer:
        writer.write(data, photometric="minisblack", metadata={"axes": "TZCYX"}, **options)
    report = convert(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif", tile_size=64, max_workers=3)
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tif:
        assert tif.series[0].axes == "TCZYX"
        found = tif.series[0].asarray()
        assert tif.pages[0].is_tiled
        assert (tif.pages[0].tilelength, tif.pages[0].tilewidth) == (64, 64)
    np.testing.assert_array_equal(found.transpose(0, 2, 1, 3, 4), data)
    assert report.shape == (201, 317, 2, 2, 2)
    assert report.pixel_bytes == data.nbytes
    assert report.bytes_out == (tmp_path / "b.ome.tif").stat().st_size
    assert listed(tmp_path) == ["a.ome.tif", "b.ome.tif"]


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_rgb_stays_rgb(tmp_path, planar):
    rgb = coded((70, 90, 1, 3, 1), "u1")[:, :, 0, :, 0]
    data = np.ascontiguousarray(rgb if planar == "contig" else rgb.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", planarconfig=planar)
    convert(tmp_path / "a.tif", tmp_path / "b.ome.tif", tile_size=32)
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tif:
        found = tif.series[0].asarray()
    if found.shape[0] == 3:
        found = found.transpose(1, 2, 0)
    np.testing.assert_array_equal(found, rgb)


@pytest.mark.parametrize("method", ["mean", "nearest", "max"])
def test_smaller_resolutions_are_those_of_the_source(tmp_path, method):
    data = planes_of((203, 330, 1, 1, 1))[0, 0, 0]
    tifffile.imwrite(tmp_path / "a.tif", data, rowsperstrip=9, compression="zlib")
    report = convert(
        tmp_path / "a.tif", tmp_path / "b.ome.tif", tile_size=32, pyramid=3, downsample=method
    )
    assert report.levels == 3
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tif:
        levels = [level.asarray() for level in tif.series[0].levels]
    assert [level.shape for level in levels] == [(203, 330), (102, 165), (51, 83)]
    four = np.stack([levels[0][:202][y::2, x::2] for y in (0, 1) for x in (0, 1)]).astype(int)
    want = {
        "mean": (four.sum(0) + 2) // 4,
        "nearest": four[0],
        "max": four.max(0),
    }[method]
    np.testing.assert_array_equal(levels[1][:101], want)


def test_the_file_of_the_bfio_docs(tmp_path):
    from pathlib import Path

    source = Path(__file__).parents[2] / "shared/data/ome-tiff/img_r001_c001.ome.tif"
    if not source.exists():
        pytest.skip("the shared images are not here")
    convert(source, tmp_path / "b.ome.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.ome.tif"), tifffile.imread(source))


def test_metadata_are_carried_over(tmp_path):
    data = planes_of((40, 50, 1, 2, 1))[0, 0]
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        data,
        photometric="minisblack",
        metadata={
            "axes": "CYX",
            "Channel": {"Name": ["DAPI", "Actin"]},
            "PhysicalSizeX": 0.325,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 650.0,
            "PhysicalSizeYUnit": "nm",
            "Description": "ein Feld",
        },
    )
    convert(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif", tile_size=16)
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tif:
        pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
    assert [channel["Name"] for channel in pixels["Channel"]] == ["DAPI", "Actin"]
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (0.325, 650.0)
    assert pixels["PhysicalSizeYUnit"] == "nm"
    with BioReader(tmp_path / "b.ome.tif") as br:
        assert br.metadata.images[0].description == "ein Feld"


def test_a_resolution_of_the_source(tmp_path):
    with BioWriter(
        tmp_path / "a.ome.tif",
        image=coded((300, 400, 1, 1, 1)),
        tile_size=64,
        pyramid=2,
        physical_size_x=(0.5, "µm"),
    ) as bw:
        assert bw.shape[:2] == (300, 400)
    convert(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif", level=1, pyramid=False)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:
        small = tif.series[0].levels[1].asarray()
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.ome.tif"), small)
    with BioReader(tmp_path / "b.ome.tif") as br:
        assert br.physical_size_x == (1.0, "µm")


def test_pixel_type(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.arange(4000, dtype="u2").reshape(50, 80))
    with pytest.raises(PixelTypeError):
        convert(tmp_path / "a.tif", tmp_path / "b.ome.tif", dtype="u1")
    assert listed(tmp_path) == ["a.tif"]
    report = convert(tmp_path / "a.tif", tmp_path / "b.ome.tif", dtype="u1", cast="clip")
    assert report.dtype == "uint8"
    assert tifffile.imread(tmp_path / "b.ome.tif").max() == 255
    convert(tmp_path / "a.tif", tmp_path / "c.ome.tif", dtype="f4")
    assert tifffile.imread(tmp_path / "c.ome.tif")[-1, -1] == 3999


# ------------------------------------------------------------------ several images in a file


def two_images(path):
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(np.full((30, 40), 1, "u1"), metadata={"axes": "YX", "Name": "one"})
        writer.write(np.full((50, 20), 2, "u2"), metadata={"axes": "YX", "Name": "two"})


def test_one_of_several_images_is_noted(tmp_path):
    two_images(tmp_path / "a.ome.tif")
    report = convert(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif", series=1)
    assert report.shape == (50, 20, 1, 1, 1)
    assert any("2 images; only number 1" in note for note in report.notes)
    with BioReader(tmp_path / "b.ome.tif") as br:
        assert (br.n_series, br.name) == (1, "two")


def test_all_images_each_into_a_file(tmp_path):
    two_images(tmp_path / "a.ome.tif")
    reports = convert_series(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif")
    assert [r.target for r in reports] == [str(tmp_path / f"b_s{n}.ome.tif") for n in (0, 1)]
    assert tifffile.imread(tmp_path / "b_s0.ome.tif").shape == (30, 40)
    assert tifffile.imread(tmp_path / "b_s1.ome.tif").max() == 2
    with pytest.raises(TargetExistsError):
        convert_series(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif")
    (named,) = convert_series(tmp_path / "b_s1.ome.tif", tmp_path / "image{series}.tif")
    assert named.target.endswith("image0.tif")


# ------------------------------------------------------------------ what goes wrong


def test_what_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 40), "u1"))
    (tmp_path / "there.ome.tif").write_bytes(b"precious")
    a, b = tmp_path / "a.tif", tmp_path / "b.ome.tif"
    for error, src, dst, options in [
        (FileNotFoundError, tmp_path / "none.tif", b, {}),
        (TargetExistsError, a, tmp_path / "there.ome.tif", {}),
        (UnknownFormatError, a, tmp_path / "b.xyz", {}),
        (FileNotFoundError, a, tmp_path / "no" / "b.ome.tif", {}),
        (SpecError, a, a, {"overwrite": True}),
        (SpecError, a, b, {"compression": "zip"}),
        (SpecError, a, b, {"tile_size": 100}),
        (SpecError, a, b, {"series": 3}),
        (SpecError, a, b, {"max_workers": 0}),
        (SpecError, a, b, {"downsample": "best"}),
        (UnsupportedError, a, b, {"compression": "jpegxl", "dtype": "f4"}),
        (TypeError, a, b, {"tilesize": 64}),
    ]:
        with pytest.raises(error):
            convert(src, dst, **options)
    assert listed(tmp_path) == ["a.tif", "there.ome.tif"]
    assert (tmp_path / "there.ome.tif").read_bytes() == b"precious"
    assert a.stat().st_size > 1600


def test_a_reader_is_converted_as_it_is_open(tmp_path):
    two_images(tmp_path / "a.ome.tif")
    with BioReader(tmp_path / "a.ome.tif", series=1) as br:
        assert convert(br, tmp_path / "b.ome.tif").shape[:2] == (50, 20)
        assert br[0, 0] == 2  # still open
        with pytest.raises(SpecError, match="series"):
            convert(br, tmp_path / "c.ome.tif", series=0)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_damaged_source_leaves_nothing(tmp_path, workers):
    tifffile.imwrite(
        tmp_path / "a.tif",
        planes_of((300, 300, 1, 1, 1))[0, 0, 0],
        tile=(32, 32),
        compression="zlib",
    )
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        place = tif.pages[0].dataoffsets[77]
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 40)
    (tmp_path / "b.ome.tif").write_bytes(b"precious")
    with pytest.raises(DamagedFileError, match="tile 77"):
        convert(tmp_path / "a.tif", tmp_path / "b.ome.tif", overwrite=True, max_workers=workers)
    assert listed(tmp_path) == ["a.tif", "b.ome.tif"]
    assert (tmp_path / "b.ome.tif").read_bytes() == b"precious"


def test_progress_grows_and_ends_at_all(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        planes_of((200, 300, 1, 3, 1))[0, 0],
        tile=(64, 64),
        photometric="minisblack",
    )
    calls = []
    convert(
        tmp_path / "a.tif",
        tmp_path / "b.ome.tif",
        tile_size=64,
        max_workers=4,
        progress=lambda done, total: calls.append((done, total)),
    )
    dones = [done for done, _ in calls]
    assert dones == sorted(set(dones))
    assert {total for _, total in calls} == {200 * 300 * 3 * 2}
    assert dones[-1] == 200 * 300 * 3 * 2


class Enough(BaseException):
    pass


def test_what_progress_raises_ends_it(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros(
            (
                512,
                512,
            ),
            "u2",
        ),
        tile=(32, 32),
    )

    def stop(done, total):
        if done > total / 3:
            raise Enough

    with pytest.raises(Enough):
        convert(
            tmp_path / "a.tif", tmp_path / "b.ome.tif", tile_size=32, max_workers=4, progress=stop
        )
    assert listed(tmp_path) == ["a.tif"]


def test_a_full_disk_leaves_nothing(tmp_path):
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 60000, (1000, 1000), "u2"))
    script = """
        import resource, signal, sys
        from bioio_tk import convert
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            convert(sys.argv[1], sys.argv[2], tile_size=64)
        except OSError as exc:
            print(type(exc).__name__, exc.errno)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "a.tif", tmp_path / "b.ome.tif"],
        env=ENV,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["OSError", "27"], done
    assert listed(tmp_path) == ["a.tif"]


def test_an_error_at_the_very_end_leaves_nothing(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((40, 40), "u1"))

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bioio_tk.backends.tiff_write.TiffSink.finish", full)
    with pytest.raises(OSError, match="No space"):
        convert(tmp_path / "a.tif", tmp_path / "b.ome.tif")
    assert listed(tmp_path) == ["a.tif"]


def test_a_target_that_has_come_into_being_meanwhile(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((40, 40), "u1"))
    target = tmp_path / "b.ome.tif"
    with pytest.raises(TargetExistsError, match="is kept in"):
        convert(tmp_path / "a.tif", target, progress=lambda *_: target.write_bytes(b"precious"))
    assert target.read_bytes() == b"precious"
    assert tifffile.imread(partial_path(target)).all()


def test_another_writer_is_left_in_peace(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((40, 40), "u1"))
    with BioWriter(tmp_path / "b.ome.tif", shape=(32, 32), dtype="u1", tile_size=16) as bw:
        bw[:16] = 7
        with pytest.raises(TargetBusyError):
            convert(tmp_path / "a.tif", tmp_path / "b.ome.tif", overwrite=True)
    assert tifffile.imread(tmp_path / "b.ome.tif").sum() == 7 * 16 * 32


# ------------------------------------------------------------------ how an image is cut


class Tiles:
    """A Source over an array that counts how often each tile is read."""

    caps = Caps()
    notes = ()

    def __init__(self, array, tile):
        self.images = (ImageSpec(array.dtype, (Level(array.shape, tile),)),)
        self.array = array
        self.reads = {}

    def read_tile(self, at):
        self.reads[at.key] = self.reads.get(at.key, 0) + 1
        return self.array[self.images[0].levels[0].grid.region(at.key).slices()]

    def details(self, image, level):
        return {}


sizes = st.tuples(*[st.integers(1, 90)] * 2, *[st.integers(1, 3)] * 3)


@given(
    shape=sizes,
    stored=sizes,
    tile=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    workers=st.integers(1, 4),
    thin=st.booleans(),
)
def test_each_source_tile_is_read_once_and_each_pixel_put_once(shape, stored, tile, workers, thin):
    source = Tiles(coded(shape), (*stored[:4], 1))
    out, count = np.zeros(shape, "u2"), np.zeros(shape, "u1")
    target = (*tile, 1, 1, 1)

    def put(box, pixels):
        out[box] = pixels
        count[box] += 1
        for part, n in zip(box, target, strict=True):  # no piece crosses a border
            assert part.start // n == (part.stop - 1) // n

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bioio_tk.engine.copy._SMALL", 1)  # else so small an image is one window
        if thin:
            patch.setattr("bioio_tk.engine.copy._WIDEST", 1000)
            patch.setattr("bioio_tk.engine.copy._LARGE", 500)
        copy(View.whole(source, 0, 0), put, target, workers=workers)
    np.testing.assert_array_equal(out, source.array)
    assert (count == 1).all()
    assert set(source.reads.values()) == {1}


@given(
    side=st.integers(1, 10**6),
    stored=st.sampled_from(
        [(1, 10**6), (64, 10**6), (13, 10**6), (256, 256), (1024, 1024), (240, 240), (4096, 4096)]
    ),
    tile=st.sampled_from([256, 512, 1024, 2048]),
    itemsize=st.sampled_from([1, 2, 8]),
    workers=st.integers(1, 64),
    parts=st.booleans(),
)
def test_windows_in_flight_are_bounded(side, stored, tile, itemsize, workers, parts):
    split = cut(
        (10**6, side, 1, 1, 1),
        (*stored, 1, 1, 1),
        (tile, tile, 1, 1, 1),
        itemsize,
        workers=workers,
        parts=parts,
    )
    window = math.prod(split.window) * itemsize
    flying = max(2 * workers * tile * tile * itemsize, 192 << 20)
    one = math.prod(stored) * itemsize  # a tile of the source has to be decoded whole
    assert window * split.at_once <= max(flying, one * 4)
    assert split.at_once * split.workers >= workers


@pytest.mark.parametrize(
    ("stored", "tile", "window"),
    [
        ((256, 256), 1024, (1024, 1024)),  # four source tiles make one of the target
        ((4096, 4096), 1024, (4096, 4096)),
        ((240, 240), 1024, (960, 960)),  # they never meet: whole source tiles, target in parts
        ((64, 16384), 1024, (1024, 16384)),  # strips: a band as high as a tile
        ((13, 16384), 1024, (1014, 16384)),
        ((64, 64), 64, (512, 1024)),  # small tiles: several at a time
    ],
)
def test_windows_fit_both_grids(stored, tile, window):
    split = cut((16384, 16384, 1, 1, 1), (*stored, 1, 1, 1), (tile, tile, 1, 1, 1), 2, workers=4)
    assert split.window == (*window, 1, 1, 1)


def test_windows_follow_each_other_in_squares():
    boxes = [(b[0].start, b[1].start) for b in windows((5, 6, 1, 1, 1), (1, 1, 1, 1, 1))]
    assert sorted(boxes) == [(y, x) for y in range(5) for x in range(6)]
    assert set(boxes[:4]) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert set(boxes[:16]) == {(y, x) for y in range(4) for x in range(4)}


def test_pieces_end_at_tile_borders():
    box = (slice(3, 9), slice(0, 4), slice(0, 1), slice(0, 3), slice(0, 1))
    found = [(p[0], p[1]) for p in pieces(box, (4, 4, 1, 3, 1))]
    assert found == [(slice(a, b), slice(0, 4)) for a, b in ((3, 4), (4, 8), (8, 9))]


# ------------------------------------------------------------------ a large image, in a child


def large(path, side, channels, rows):
    """Write a large image of equal deflate strips, quickly; return one strip."""
    strip = np.random.default_rng(0).poisson(200, (rows, side)).astype("u2")
    encoded = imagecodecs.deflate_encode(strip, level=1)
    tifffile.imwrite(
        path,
        (encoded for _ in range(side // rows * channels)),
        shape=(channels, side, side),
        dtype="u2",
        rowsperstrip=rows,
        compression="zlib",
        photometric="minisblack",
        metadata={"axes": "CYX"},
    )
    return strip


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """An image of 302 MB, and one of its strips."""
    path = tmp_path_factory.mktemp("big") / "big.ome.tif"
    return path, large(path, 6144, 4, 64)


def test_memory_does_not_grow_with_the_image(tmp_path, big):
    path, strip = big
    done = subprocess.run(
        [*CLI, "convert", path, tmp_path / "b.ome.tif", "--json", "--workers", "2"],
        env=ENV,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["pixel_bytes"] == 4 * 6144 * 6144 * 2
    assert report["peak_rss"] < 220e6
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tif:
        page = tif.series[0].pages[3]
        tif.filehandle.seek(page.dataoffsets[7])
        data = tif.filehandle.read(page.databytecounts[7])
        tile = page.keyframe.decode(data, 7)[0].squeeze()
    np.testing.assert_array_equal(tile, np.tile(strip[:, 1024:2048], (16, 1)))


def start(path, target, *options):
    """Start a conversion in a child and return it once tiles are being stored."""
    child = subprocess.Popen(
        [*CLI, "convert", path, target, "--workers", "1", *options],
        env=ENV,
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = partial_path(target)
    for _ in range(6000):
        if partial.exists() and partial.stat().st_size > 1_000_000:
            return child
        time.sleep(0.01)
    child.kill()
    raise AssertionError("the conversion has not begun: " + child.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_everything_as_it_was(tmp_path, big, number):
    target = tmp_path / "b.ome.tif"
    target.write_bytes(b"precious")
    child = start(big[0], target, "--overwrite")
    child.send_signal(number)
    _, said = child.communicate(timeout=30)
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert "is as it was before" in said
    assert "Traceback" not in said
    assert listed(tmp_path) == ["b.ome.tif"]
    assert target.read_bytes() == b"precious"


def test_recover_after_a_kill(tmp_path, big):
    source, target = big[0], tmp_path / "b.ome.tif"
    child = start(source, target)
    with pytest.raises(TargetBusyError):
        recover(target)
    child.kill()
    child.communicate()
    assert listed(tmp_path) == ["b.ome.tif.partial", "b.ome.tif.partial.journal"]

    look = recover(target, dry_run=True)
    stored, count = look.tiles[0]
    assert 0 < stored < count == 4 * 36
    assert (look.moved, look.whole, look.planes) == (False, False, 4)
    assert listed(tmp_path) == ["b.ome.tif.partial", "b.ome.tif.partial.journal"]

    target.write_bytes(b"precious")
    with pytest.raises(TargetExistsError):
        recover(target)
    assert target.read_bytes() == b"precious"
    target.unlink()

    done = subprocess.run(
        [*CLI, "recover", partial_path(target)], env=ENV, capture_output=True, text=True, check=True
    )
    assert f"{stored} of 144 tiles stored" in done.stdout
    assert listed(tmp_path) == ["b.ome.tif"]
    with BioReader(source) as before, tifffile.TiffFile(target) as tif:
        right = 0
        for channel, page in enumerate(tif.series[0].pages):
            for number in range(36):
                assert page.databytecounts[number]  # other readers refuse empty entries
                tif.filehandle.seek(page.dataoffsets[number])
                data = tif.filehandle.read(page.databytecounts[number])
                found = page.keyframe.decode(data, number)[0].squeeze()
                y, x = number // 6 * 1024, number % 6 * 1024
                if found.any():
                    want = before[y : y + 1024, x : x + 1024, 0, channel]
                    np.testing.assert_array_equal(found, want)
                    right += 1
        assert right == stored
    with pytest.raises(FileNotFoundError):
        recover(target)


def left_behind(path, image, tiles, **options):
    """Write some tiles and leave the file as a kill would."""
    size = options.setdefault("tile_size", 32)
    bw = BioWriter(path, shape=image.shape, dtype=image.dtype, **options)
    for y, x, *rest in tiles:
        key = np.s_[y * size : (y + 1) * size, x * size : (x + 1) * size, *rest]
        bw[key] = image[key]
    bw._state = "closed"
    bw._let_go()
    bw._target.leave()
    bw._scratch.close()


@pytest.mark.parametrize("compression", ["none", "deflate", "zstd", "lzw", "jpeg2000"])
@pytest.mark.parametrize("width", [32, 80])
def test_what_recover_counts_and_fills_up(tmp_path, compression, width):
    image = coded((64, width, 2, 2, 2)) + np.uint16(1)
    path = tmp_path / "a.ome.tif"
    across = -(-width // 32)
    whole = [(y, x, 1, 0, 1) for y in range(2) for x in range(across)]
    left_behind(path, image, [*whole, (1, 0, 0, 1, 0)], compression=compression)
    report = recover(path)
    assert report.tiles == ((2 * across + 1, 8 * 2 * across),)
    assert report.complete == ((1, 0, 1),)
    found = tifffile.imread(path)  # T, C, Z, Y, X
    np.testing.assert_array_equal(found[1, 0, 1], image[:, :, 1, 0, 1])
    np.testing.assert_array_equal(found[0, 1, 0, 32:, :32], image[32:, :32, 0, 1, 0])
    found[1, 0, 1] = found[0, 1, 0, 32:, :32] = 0
    assert not found.any()
    with tifffile.TiffFile(path) as tif:
        assert all(min(page.databytecounts) > 0 for page in tif.pages)


def test_recover_a_single_tile_and_nothing_at_all(tmp_path):
    image = coded((20, 20, 1, 1, 1)) + np.uint16(1)
    for compression in ("none", "deflate"):
        path = tmp_path / f"{compression}.ome.tif"
        left_behind(path, image, [(0, 0, 0, 0, 0)], compression=compression)
        report = recover(path)
        assert report.tiles == ((1, 1),)
        assert report.whole
        np.testing.assert_array_equal(tifffile.imread(path), image[:, :, 0, 0, 0])
        bare = tmp_path / f"{compression}-bare.ome.tif"
        with_nothing = BioWriter(bare, shape=(20, 20), dtype="u2", compression=compression)
        with with_nothing._busy():
            pass
        with_nothing._state = "closed"
        with_nothing._let_go()
        with_nothing._target.leave()
        with pytest.raises(DamagedFileError, match="no tile"):
            recover(bare)
        assert partial_path(bare).exists()
