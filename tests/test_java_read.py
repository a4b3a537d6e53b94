"""Reading through Java: synthetic images of every kind, threads, closing, memos, plates.

Expected values are computed here, or come from plain calls of Bio-Formats, plane by plane.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from images import picked
from java_images import BOX, TYPES, Fake, by_java, opened, series_count
from test_contract import keys, together

from bioio_tk import BioReader
from bioio_tk.backends import _java_memo, _java_readers
from bioio_tk.backends.java_read import BioFormatsSource
from bioio_tk.core.spec import Address
from bioio_tk.errors import BioIOError, ClosedError, RegionError, SpecError
from conftest import open_files

pytestmark = pytest.mark.usefixtures("java")
ORDERS = ["XY" + "".join(rest) for rest in permutations("ZCT")]
WAIT = 60  # seconds until a test that hangs gives up; nothing is measured


def read(path, **more):
    """Return all pixels, with five axes."""
    with BioReader(path, backend="java", **more) as br:
        return br[...].reshape(br.shape)


def same(got, want):
    assert got.dtype == want.dtype
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, want)


# ------------------------------------------------------------------ synthetic images


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_every_pixel_type_byte_order_and_dimension_order(java, tmp_path, kind, little):
    for order in ORDERS:
        fake = Fake(z=3, c=2, t=2, type=kind, order=order, series=2, little=little)
        path = fake.file(tmp_path)
        for series in range(2):
            got = read(path, series=series)
            same(got, fake.pixels(series))
            same(got, by_java(java, path, series))
        with BioReader(path, backend="java", series=1) as br:
            assert (br.n_series, br.shape, br.samples_per_pixel) == (2, fake.shape, 1)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("rgb", "channels"), [(2, 2), (3, 3), (3, 6), (4, 4)])
def test_samples_of_a_pixel_are_channels(java, tmp_path, rgb, channels, interleaved):
    for kind, little, order in product(("uint8", "uint16", "float"), (True, False), ORDERS[::2]):
        fake = Fake(z=2, c=channels, t=2, type=kind, order=order, rgb=rgb, little=little,
                    interleaved=interleaved)  # fmt: skip
        path = fake.file(tmp_path)
        got = read(path)
        same(got, by_java(java, path))
        if not java.started.version.startswith("6."):  # which takes the order of planes as it is
            same(got, fake.pixels())
        with BioReader(path, backend="java") as br:
            assert br.samples_per_pixel == rgb
            same(br[:, :, 1, channels - 1, 1], got[:, :, 1, channels - 1, 1])


@pytest.mark.parametrize("more", ["&indexed=true", "&indexed=true&falseColor=true"])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_indexed_pixels_are_the_indices(java, tmp_path, kind, more):
    path = Fake(c=2, type=kind, more=more).file(tmp_path)
    same(read(path), by_java(java, path))


def test_resolutions_are_levels(java, tmp_path):
    fake = Fake(x=200, y=160, c=2, series=2, more="&resolutions=3&resolutionScale=2")
    path = fake.file(tmp_path)
    with BioReader(path, backend="java", series=1) as br:
        assert (br.n_series, br.levels) == (2, 3)
        assert [shape[:2] for shape in br.level_shapes] == [(160, 200), (80, 100), (40, 50)]
    for series, level in product(range(2), range(3)):
        same(read(path, series=series, level=level), by_java(java, path, series, level))


def test_one_reader_of_each_series_and_level_at_once(tmp_path):
    """Each keeps to its own, though Java's readers stand at one series at a time."""
    fake = Fake(x=100, y=80, z=2, series=3, more="&resolutions=2&resolutionScale=2")
    path = fake.file(tmp_path)
    readers = [BioReader(path, backend="java", series=s, level=0) for s in range(3)]
    for _ in range(3):
        for series, br in enumerate(readers):
            same(br[:, :, 1], fake.pixels(series)[:, :, 1, 0, 0])
    for br in readers:
        br.close()


def test_one_source_gives_tiles_of_every_series_and_level_in_turn(java, tmp_path):
    fake = Fake(x=100, y=80, z=2, series=3, more="&resolutions=2&resolutionScale=2")
    path = fake.file(tmp_path)
    places = [(series, level) for level in range(2) for series in range(3)]
    want = {at: by_java(java, path, *at) for at in places}
    source = BioFormatsSource(path)
    try:
        for at, z in [*product(places, range(2)), *product(reversed(places), range(2))]:
            grid = source.images[at[0]].levels[at[1]].grid
            for key in (k for k in grid.keys() if k[2] == z):  # noqa: SIM118
                where = grid.region(key).slices()
                same(source.read_tile(Address(*at, key)), want[at][where])
    finally:
        source.close()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (64, 1), (3000, 700), (1, 2100)])
def test_images_of_odd_sizes(java, tmp_path, width, height):
    fake = Fake(x=width, y=height, c=2, type="uint16")
    path = fake.file(tmp_path)
    got = read(path)
    same(got, fake.pixels())
    same(got, by_java(java, path))


def test_an_image_larger_than_a_request_of_java_is_read_in_parts(tmp_path):
    """A plane of 8 GB: one request gives 2 GB at most."""
    fake = Fake(x=40000, y=50000, type="float")
    with BioReader(fake.file(tmp_path), backend="java") as br:
        assert br.shape == fake.shape
        got = br[49990:, 39000:39500]
        np.testing.assert_array_equal(got, np.arange(39000, 39500, dtype="f4")[None].repeat(10, 0))
        assert br[3, 12, 0, 0, 0] == 0


def test_what_is_said_of_the_image(tmp_path):
    more = "&physicalSizeX=0.5&physicalSizeY=250nm&physicalSizeZ=2&color_0=16711935"
    path = Fake(c=2, more=more).file(tmp_path)
    with BioReader(path, backend="java") as br:
        assert br.physical_size_x == (0.5, "µm")
        assert br.physical_size_y == (250.0, "nm")
        assert br.physical_size_z == (2.0, "µm")
        assert br.channel_colors == [(0, 255, 0, 255), None]  # Java: 0x00FF00FF is R, G, B, A
        assert br.series_names == ["image"]
        assert br.metadata.images[0].pixels.size_c == 2


# ------------------------------------------------------------------ any region

CASES = {
    "5d": Fake(x=60, y=20, z=3, c=2, t=2, type="uint16", order="XYCTZ", little=False),
    "rgb": Fake(x=60, y=19, z=2, c=6, rgb=3, type="uint8", order="XYTCZ"),
    "planar": Fake(x=60, y=19, c=3, rgb=3, type="float", interleaved=False),
    "bits": Fake(x=50, y=30, t=3, type="bit"),
}


@given(data=st.data())
@pytest.mark.parametrize("name", CASES)
def test_any_key_reads_what_plain_indexing_gives(tmp_path, name, data):
    fake = CASES[name]
    key = data.draw(keys(fake.shape))
    want = picked(fake.pixels(), key)
    with BioReader(fake.file(tmp_path), backend="java", max_workers=2) as br:
        got = br[key]
    assert got.shape == want.shape
    same(got, want)


@pytest.mark.parametrize("name", CASES)
def test_tiles_cover_the_image_once(tmp_path, name):
    fake = CASES[name]
    source = BioFormatsSource(fake.file(tmp_path))
    try:
        grid = source.images[0].levels[0].grid
        seen = np.zeros(fake.shape, int)
        for key in sorted(grid.keys()):
            where = grid.region(key).slices()
            same(source.read_tile(Address(0, 0, key)), fake.pixels()[where])
            seen[where] += 1
        assert (seen == 1).all()
    finally:
        source.close()


@given(data=st.data())
@pytest.mark.parametrize("name", CASES)
def test_a_part_of_a_tile_equals_the_same_part_of_the_whole_tile(tmp_path, name, data):
    from test_contract import parts

    fake = CASES[name]
    source = BioFormatsSource(fake.file(tmp_path))
    try:
        if not hasattr(source, "read_part"):
            return
        grid = source.images[0].levels[0].grid
        at = Address(0, 0, data.draw(st.sampled_from(sorted(grid.keys()))))
        part = tuple(data.draw(parts(n)) for n in grid.tile_shape(at.key))
        want = fake.pixels()[grid.region(at.key).slices()][part]
        out = np.zeros(want.shape, want.dtype)
        if source.read_part(at, part, out):
            np.testing.assert_array_equal(out, want)
    finally:
        source.close()


def tiled(path, shape=(700, 900), tile=(256, 256), **more):
    """Write a tiled TIFF with tifffile; return its pixels."""
    image = np.random.default_rng(7).integers(0, 60000, shape, "u2")
    tifffile.imwrite(path, image, tile=tile, compression="zlib", **more)
    return image


@given(data=st.data())
def test_any_key_of_a_tiled_file(tmp_path, data):
    path = tmp_path / "tiled.tif"
    image = np.random.default_rng(7).integers(0, 60000, (700, 900), "u2")
    if not path.exists():
        same(tiled(path), image)
    image = image[..., None, None, None]
    key = data.draw(keys(image.shape))
    with BioReader(path, backend="java") as br:
        same(br[key], picked(image, key))


@pytest.mark.parametrize(
    "how",
    [
        {"tile": (64, 48)},
        {"tile": (1024, 1024)},
        {"rowsperstrip": 1},
        {"rowsperstrip": 17},
        {"rowsperstrip": 5000},
    ],
    ids=str,
)
def test_tiles_and_strips_of_any_size(tmp_path, how):
    image = np.random.default_rng(8).integers(0, 60000, (1500, 1100), "u2")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, image, compression="zlib", **how)
    same(read(path)[:, :, 0, 0, 0], image)
    with BioReader(path, backend="java") as br:
        same(br[1003:1010, 5:1099:7], image[1003:1010, 5:1099:7])
        for tile in br.tiles(400):
            same(tile.data, image[tile.slices[:2]])


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ((20,), "Y index 20 is out of range: the image has Y=20"),
        ((0, -61), "X index -61 .*X=60"),
        ((0, 0, [0, 3]), "Z index 3 .*Z=3"),
        ((0, 0, 0, 0, 2), "T index 2 .*T=2"),
        ((1.5,), "Y index 1.5 is a float"),
    ],
    ids=str,
)
def test_a_key_that_does_not_fit_is_a_region_error(tmp_path, key, says):
    with BioReader(CASES["5d"].file(tmp_path), backend="java") as br:
        with pytest.raises(RegionError, match=says):
            br[key]
        same(br[...], CASES["5d"].pixels())  # and it reads on


def test_a_series_or_level_that_is_not_there(tmp_path):
    path = Fake(series=2).file(tmp_path)
    with pytest.raises(SpecError, match="series=2 does not exist; there are 2"):
        BioReader(path, backend="java", series=2)
    with pytest.raises(SpecError, match="level=1 does not exist; there are 1"):
        BioReader(path, backend="java", level=1)


def test_the_lazy_array_is_numpys(tmp_path):
    fake = CASES["5d"]
    image = fake.pixels()
    with BioReader(fake.file(tmp_path), backend="java") as br:
        same(np.asarray(br.array[3:9, ::4, 1, 0]), image[3:9, ::4, 1, 0])


# ------------------------------------------------------------------ sharing a reader


@pytest.mark.parametrize("workers", [1, 16])
def test_a_reader_shared_by_16_threads_gives_each_its_own_region(tmp_path, workers):
    path = tmp_path / "tiled.tif"
    image = tiled(path)
    with BioReader(path, backend="java", max_workers=workers) as br:

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(20):
                y, x = rng.integers(0, 690, 2)
                h, w, step = rng.integers(1, 300), rng.integers(1, 300), rng.integers(1, 4)
                key = np.s_[y : y + h : step, x : x + w]
                same(br[key], picked(image[..., None, None, None], key))

        together([partial(work, n) for n in range(16)])


def test_threads_of_which_each_opens_its_own(tmp_path):
    fakes = [Fake(x=60 + n, y=20, z=2, series=2, type="uint16") for n in range(8)]
    paths = [fake.file(tmp_path) for fake in fakes]

    def work(seed):
        for n in range(10):
            which, series = (seed + n) % 8, n % 2
            same(read(paths[which], series=series), fakes[which].pixels(series))

    together([partial(work, n) for n in range(8)])


def test_a_reader_can_be_pickled(tmp_path):
    fake = Fake(series=2, z=2)
    with BioReader(fake.file(tmp_path), backend="java", max_workers=2, series=1) as br:
        with pickle.loads(pickle.dumps(br)) as twin:
            assert (twin.series, twin.max_workers, twin.shape) == (1, 2, fake.shape)
            same(twin[...].reshape(twin.shape), fake.pixels(1))
        br.close()
        copy = pickle.loads(pickle.dumps(br))
        with pytest.raises(ClosedError):
            copy[0]


# ------------------------------------------------------------------ closing


def test_closing_lets_go_of_the_file_while_the_reader_lives(tmp_path):
    path = tmp_path / "tiled.tif"
    tiled(path)
    br = BioReader(path, backend="java")
    br[0]
    br.close()
    br.close()
    assert not open_files(tmp_path)
    for use in (lambda: br[0], br.read, br.array.compute, lambda: next(br.tiles(16))):
        with pytest.raises(ClosedError, match=r"the reader of '.*' is closed"):
            use()
    assert br.shape == (700, 900, 1, 1, 1)


def test_closing_while_others_read_ends_them_and_lets_go_of_the_file(tmp_path):
    path = tmp_path / "tiled.tif"
    image = tiled(path)
    for _ in range(5):
        br = BioReader(path, backend="java", max_workers=4)
        started, ended, wrong = threading.Semaphore(0), [], []

        def work(br=br, started=started, ended=ended, wrong=wrong):
            try:
                while True:
                    if (br[100:600, 100:600] != image[100:600, 100:600]).any():
                        wrong.append("pixels")
                    started.release()
            except ClosedError:
                ended.append(1)
            except BaseException as exc:
                wrong.append(repr(exc))

        threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            assert started.acquire(timeout=WAIT)
        br.close()
        for thread in threads:
            thread.join(WAIT)
        assert (len(ended), wrong) == (8, [])
        assert not open_files(tmp_path)


def test_a_reader_that_met_an_error_is_not_lent_again(tmp_path):
    """Nobody knows where in the file it stands."""
    readers = _java_readers.Readers(Fake().file(tmp_path))
    with pytest.raises(ZeroDivisionError), readers.borrow() as first:
        raise ZeroDivisionError
    assert first.java.getCurrentFile() is None
    with readers.borrow() as second:
        assert second is not first
        assert second.java.getCurrentFile() is not None
    readers.close()


def test_threads_that_only_close_are_forgotten_by_java(java, tmp_path):
    path = Fake().file(tmp_path)
    readers = [BioReader(path, backend="java") for _ in range(40)]
    before = int(java("java.lang.Thread").activeCount())
    for br in readers:
        thread = threading.Thread(target=br.close)
        thread.start()
        thread.join()
    assert int(java("java.lang.Thread").activeCount()) - before < len(readers) // 2


def test_a_reader_forgotten_without_close_keeps_no_file_open(tmp_path):
    path = tmp_path / "tiled.tif"
    tiled(path)
    BioReader(path, backend="java")[0]
    gc.collect()
    assert not open_files(tmp_path)


FORGET = """
import sys
from bioio_tk import BioReader
{how}
"""


@pytest.mark.parametrize(
    "how",
    [
        "BioReader(sys.argv[1], backend='java')[0]",
        "br = BioReader(sys.argv[1], backend='java'); br[0]",
        "br = BioReader(sys.argv[1], backend='java', max_workers=4); br[:]; me = [br]; me += [me]",
        "br = BioReader(sys.argv[1], backend='java'); tiles = br.tiles(256); next(tiles)",
    ],
)
def test_a_reader_forgotten_until_the_end_is_silent(tmp_path, how):
    path = tmp_path / "tiled.tif"
    tiled(path)
    done = child(FORGET.format(how=how), path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def child(code, *args, **env):
    """Run code in a process of its own, with a time limit."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
        env={**os.environ, **env},
    )


# ------------------------------------------------------------------ what is kept of a parsed file


@pytest.fixture
def memos(monkeypatch, tmp_path):
    """A cache of its own, in which every file is kept, and what was taken from it."""
    monkeypatch.setattr(_java_readers, "_SLOW", 0)
    folder = tmp_path / "cache"
    monkeypatch.setenv("BIOIO_TK_CACHE", str(folder))
    load, taken = _java_memo.Memo.load, []

    def spied(memo):
        found = load(memo)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(_java_memo.Memo, "load", spied)
    return Memos(folder, taken)


class Memos:
    def __init__(self, folder, taken):
        self.folder, self.taken = folder, taken

    def first_is_kept(self):
        """Return whether the first reader that was opened since came from a memo."""
        first = self.taken[0]
        self.taken.clear()
        return first

    def files(self):
        return [p for p in self.folder.rglob("*") if p.is_file()]


def test_a_file_is_parsed_once(memos, tmp_path):
    path = tmp_path / "image.ome.tif"
    image = tiled(path)
    for kept in (False, True, True):
        same(read(path)[:, :, 0, 0, 0], image)
        assert memos.first_is_kept() is kept
    assert memos.files()
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]
    assert all(p.stat().st_mode & 0o077 == 0 or p.is_file() for p in memos.folder.rglob("*"))


@pytest.mark.parametrize("name", ["5d", "rgb", "planar"])
def test_what_was_kept_is_the_same_image(memos, java, tmp_path, name):
    fake = CASES[name]._replace(series=2, more="&physicalSizeX=0.5")
    path = fake.file(tmp_path)
    first = described(path)
    assert memos.first_is_kept() is False
    assert described(path) == first
    assert memos.first_is_kept() is True
    for series in range(2):
        same(read(path, series=series), fake.pixels(series))
        with BioReader(path, backend="java", series=series) as br:
            together([lambda br=br: br[...]] * 4)  # readers beyond the first one, too


def described(path):
    with BioReader(path, backend="java", series=1) as br:
        return br.shape, br.dtype, br.physical_size_x, br.series_names, br.ome_xml, br.details


def pages(path, count, value):
    """Write a TIFF of some pages, which differ in size when their number does."""
    image = np.full((count, 20, 30 + count), value, "u1")
    tifffile.imwrite(path, image, photometric="minisblack", metadata=None)
    return image


@pytest.mark.parametrize("days", [-1000, 0, 1])
def test_a_file_that_changed_is_parsed_again(memos, tmp_path, days):
    """Also where the new file bears an older date, or the very date of the old one."""
    path = tmp_path / "image.tif"
    pages(path, 3, 1)
    assert read(path).shape == (20, 33, 1, 1, 3)
    date = path.stat().st_mtime_ns
    pages(path, 5, 2)
    os.utime(path, ns=(date, date + days * 86400 * 10**9))
    memos.taken.clear()
    got = read(path)
    assert memos.first_is_kept() is False
    assert got.shape == (20, 35, 1, 1, 5)
    assert (got == 2).all()


def test_a_file_of_the_same_size_and_another_date_is_parsed_again(memos, tmp_path):
    path = tmp_path / "image.tif"
    one = np.arange(6 * 4, dtype="u1").reshape(6, 4)
    tifffile.imwrite(path, one, metadata=None)
    same(read(path)[:, :, 0, 0, 0], one)
    size = path.stat().st_size
    tifffile.imwrite(path, one.reshape(4, 6), metadata=None)
    assert path.stat().st_size == size
    os.utime(path, (1, 1))
    same(read(path)[:, :, 0, 0, 0], one.reshape(4, 6))


def test_a_file_replaced_while_it_is_parsed_is_not_kept(memos, tmp_path, monkeypatch):
    """What was parsed is of the file as it was; a memo would go for the new one."""
    path = tmp_path / "image.tif"
    pages(path, 3, 1)
    parsed = _java_readers.Readers._parsed

    def slow(readers):
        found = parsed(readers)
        pages(path, 5, 2)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(_java_readers.Readers, "_parsed", slow)
        BioReader(path, backend="java").close()
    for _ in range(2):
        same(read(path), np.full((20, 35, 1, 1, 5), 2, "u1"))


def ics(folder, width, height):
    """Write an ICS image: a header, and its pixels in a file beside it."""
    lines = [
        "\t",
        "ics_version\t1.0",
        "filename\timage",
        "layout\tparameters\t3",
        "layout\torder\tbits\tx\ty",
        f"layout\tsizes\t8\t{width}\t{height}",
        "layout\tcoordinates\tvideo",
        "layout\tsignificant_bits\t8",
        "representation\tformat\tinteger",
        "representation\tsign\tunsigned",
        "representation\tcompression\tuncompressed",
        "representation\tbyte_order\t1",
        "end",
    ]
    (folder / "image.ics").write_bytes("\n".join([*lines, ""]).encode())
    pixels = np.arange(width * height, dtype="u1").reshape(height, width)
    (folder / "image.ids").write_bytes(pixels.tobytes())
    return pixels


@pytest.mark.parametrize("name", ["image.ics", "image.ids"])
def test_a_companion_file_that_changed_is_seen(memos, tmp_path, name):
    for number, (width, height) in enumerate([(6, 4), (4, 6), (12, 2)]):
        image = ics(tmp_path, width, height)
        os.utime(tmp_path / "image.ids", (1, 1))  # the pixels look as before
        os.utime(tmp_path / "image.ics", (number + 1, number + 1))
        memos.taken.clear()
        same(read(tmp_path / name)[:, :, 0, 0, 0], image)
        assert memos.first_is_kept() is False
        memos.taken.clear()
        same(read(tmp_path / name)[:, :, 0, 0, 0], image)
        assert memos.first_is_kept() is True


def test_a_companion_file_that_is_gone_is_missed(memos, tmp_path):
    ics(tmp_path, 6, 4)
    read(tmp_path / "image.ics")
    (tmp_path / "image.ids").unlink()
    with pytest.raises((BioIOError, FileNotFoundError)):
        read(tmp_path / "image.ics")


def test_a_file_that_joins_an_image_is_seen(memos, tmp_path):
    """A DICOM image has a slice in each file: a memo of the first knows nothing of the others."""
    slices = [save_slice(tmp_path / "a1.dcm", number=1)]
    same(read(tmp_path / "a1.dcm")[:, :, :, 0, 0], np.stack(slices, 2))
    assert memos.files()
    slices += [save_slice(tmp_path / f"a{n}.dcm", number=n) for n in (2, 3)]
    same(read(tmp_path / "a1.dcm")[:, :, :, 0, 0], np.stack(slices, 2))


def save_slice(path, number):
    """Write a slice of one DICOM series; return its pixels."""
    pydicom = pytest.importorskip("pydicom")
    pixels = np.full((20, 30), number, "u2")
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    image.SeriesInstanceUID, image.StudyInstanceUID = "1.2.3.4", "1.2.3.5"
    image.ImageType, image.Modality = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT"
    for what in ("Series", "Acquisition", "Content"):
        setattr(image, f"{what}Date", "20200101")
        setattr(image, f"{what}Time", "101010")
    image.SeriesNumber, image.InstanceNumber = 1, number
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation, image.SamplesPerPixel = 15, 0, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = pixels.tobytes()
    image.save_as(path, enforce_file_format=True)
    return pixels


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "junk": lambda data: np.random.default_rng(3).bytes(len(data)),
    "another start": lambda data: b"\xff" * 16 + data[16:],
    "a hole": lambda data: data[:200] + bytes(100) + data[300:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_memo_is_no_matter(memos, tmp_path, damage):
    path = tmp_path / "image.tif"
    image = tiled(path)
    read(path)
    kept = memos.files()
    assert kept
    for victim in kept:
        data = victim.read_bytes()
        victim.write_bytes(DAMAGE[damage](data))
        same(read(path)[:, :, 0, 0, 0], image)
        same(read(path)[:, :, 0, 0, 0], image)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of POSIX")
def test_a_cache_others_may_write_to_is_not_trusted(memos, tmp_path):
    path = tmp_path / "image.tif"
    image = tiled(path)
    read(path)
    for folder in [memos.folder, *(p for p in memos.folder.rglob("*") if p.is_dir())]:
        folder.chmod(0o777)
    memos.taken.clear()
    same(read(path)[:, :, 0, 0, 0], image)
    assert memos.first_is_kept() is False


def test_a_cache_that_cannot_be_written_is_no_matter(memos, tmp_path, monkeypatch):
    path = tmp_path / "image.tif"
    image = tiled(path)
    in_the_way = tmp_path / "file"
    in_the_way.write_bytes(b"no folder")
    for place in (in_the_way, in_the_way / "cache", Path("/proc/nowhere/cache")):
        monkeypatch.setenv("BIOIO_TK_CACHE", str(place))
        same(read(path)[:, :, 0, 0, 0], image)
        same(read(path)[:, :, 0, 0, 0], image)
    assert in_the_way.read_bytes() == b"no folder"


NO_HOME = """
import sys
import numpy as np
from bioio_tk import BioReader
from bioio_tk.backends import _java_readers
_java_readers._SLOW = 0
for _ in range(2):
    with BioReader(sys.argv[1], backend="java") as br:
        assert br[:].sum() == int(sys.argv[2]), br[:].sum()
"""


def test_a_home_that_cannot_be_written_is_no_matter(tmp_path):
    path = tmp_path / "image.tif"
    image = tiled(path)
    code = "import os; os.environ.pop('BIOIO_TK_CACHE', None)\n" + NO_HOME
    for home in ("/proc/nowhere", "/dev/null", ""):
        done = child(code, path, image.sum(), HOME=home, XDG_CACHE_HOME="")
        assert done.returncode == 0, done.stderr


def test_a_full_disk_is_no_matter(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "tmpfs", str(full)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        path = tmp_path / "image.tif"
        image = tiled(path)
        done = child(NO_HOME, path, image.sum(), BIOIO_TK_CACHE=str(full))
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_processes_may_keep_the_same_file_at_once(tmp_path):
    path = tmp_path / "image.tif"
    image = tiled(path)
    code = NO_HOME.replace("range(2)", "range(15)")
    env = {**os.environ, "BIOIO_TK_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "error", "-c", code, str(path), str(image.sum())]
    running = [
        subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in running:
        _, errors = process.communicate(timeout=WAIT)
        assert (process.returncode, errors) == (0, "")
    left = [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert left
    assert not [name for name in left if name.endswith(".tmp")]


# ------------------------------------------------------------------ plates

PLATE = Fake(x=60, y=20, more="&plates=1&plateRows=2&plateCols=3&fields=2&plateAcqs=1")


def test_series_of_a_plate_are_its_fields(java, tmp_path):
    path = PLATE.file(tmp_path)
    assert series_count(java, path) == 12
    with BioReader(path, backend="java") as br:
        assert br.n_series == 12
    for series in range(12):
        got = read(path, series=series)
        same(got, by_java(java, path, series))
        assert (got[:BOX, :BOX] == series).all()


@pytest.mark.parametrize("runs", [1, 2])
def test_a_plate_is_described(java, tmp_path, runs):
    path = PLATE._replace(more=PLATE.more.replace("Acqs=1", f"Acqs={runs}")).file(tmp_path)
    with opened(java, path) as reader:
        store = reader.getMetadataStore()
        want = {}
        for well in range(int(store.getWellCount(0))):
            row, column = store.getWellRow(0, well), store.getWellColumn(0, well)
            want[int(row.getValue()), int(column.getValue())] = [
                int(store.getWellSampleIndex(0, well, n).getValue())
                for n in range(int(store.getWellSampleCount(0, well)))
            ]
    with BioReader(path, backend="java") as br:
        plate = br.plate
        assert br.n_series == 12 * runs
    assert plate is not None
    assert len(want) == 6
    assert len(plate.acquisitions) == runs
    assert (plate.rows, plate.columns) == (("A", "B"), ("1", "2", "3"))
    numbers = iter(plate.numbers)
    got = {
        (plate.rows.index(well.row), plate.columns.index(well.column)): [
            next(numbers) for _ in well.fields
        ]
        for well in plate.wells
    }
    assert got == want
    assert plate.series("B", "1", 1) == want[1, 0][1]


def test_an_image_of_no_plate_has_none(tmp_path):
    with BioReader(Fake().file(tmp_path), backend="java") as br:
        assert br.plate is None


# ------------------------------------------------------------------ what else is known of a file


@pytest.mark.parametrize("name", ["image.ics", "image.ids"])
def test_all_files_of_an_image_are_named(tmp_path, name):
    ics(tmp_path, 6, 4)
    with BioReader(tmp_path / name, backend="java") as br:
        assert set(br.used_files) == {tmp_path / "image.ics", tmp_path / "image.ids"}


def test_what_the_vendor_wrote_is_handed_on(java, tmp_path):
    ics(tmp_path, 6, 4)
    path = tmp_path / "image.ics"
    with opened(java, path) as reader:
        said = {**dict(reader.getGlobalMetadata()), **dict(reader.getSeriesMetadata())}
        want = {str(key): str(value) for key, value in said.items()}
    assert want["layout sizes"] == "8 6 4"
    with BioReader(path, backend="java") as br:
        got = br.original_metadata
    assert {key: str(value) for key, value in got.items()} == want
    assert all(isinstance(value, (str, int, float, bool)) for value in got.values())
