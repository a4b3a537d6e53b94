"""What authors of WIPP plugins write by hand, and the one-liners in its place: the same pixels.

Each pattern stands here twice: as plugins have it, run with ``bioio_tk.compat.bfio`` in the place
of bfio, and as a line of bioio_tk. Expected pixels come from NumPy, files are read by tifffile and
zarr.
"""

# ruff: noqa: SIM117 - plugins nest them

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import tifffile
import zarr
from images import coded, smaller

import bioio_tk
import bioio_tk.compat.bfio as bfio

SHAPE = (130, 170, 3, 2, 2)
TILE = 64


def make(path, image, **metadata):
    """Write an image (Y, X, Z, C, T) with tifffile."""
    full = image.reshape((*image.shape, 1, 1, 1)[:5])
    tifffile.imwrite(
        path,
        full.transpose(4, 3, 2, 0, 1),
        metadata={"axes": "TCZYX", **metadata},
        photometric="minisblack",
        tile=(64, 64),
    )
    return path


def stored(path, level=0):
    """Read an image as Y, X, Z, C, T with tifffile."""
    with tifffile.TiffFile(path) as tif:
        series = tif.series[0].levels[level]
        pixels, axes = series.asarray(squeeze=False), series.get_axes(squeeze=False)
    pixels = pixels.transpose(np.argsort(["TCZYXS".index(a) for a in axes]))
    return (pixels[..., 0] if "S" in axes else pixels).transpose(3, 4, 2, 1, 0)


@pytest.fixture
def image():
    return coded(SHAPE, "u2")


@pytest.fixture
def path(tmp_path, image):
    return make(
        tmp_path / "in.ome.tif",
        image,
        PhysicalSizeX=0.5,
        PhysicalSizeY=0.25,
        PhysicalSizeZ=2.0,
        Channel={"Name": ["dna", "actin"]},
    )


def test_1_read_everything(path, image, tmp_path):
    plane = make(tmp_path / "plane.ome.tif", image[..., 0, 0, 0])
    with bfio.BioReader(plane) as br:
        img = br[:].squeeze()
    np.testing.assert_array_equal(img, image[..., 0, 0, 0])
    with bioio_tk.imread(plane, squeeze=True) as lazy:
        np.testing.assert_array_equal(lazy, image[..., 0, 0, 0])
    with bioio_tk.imread(path) as lazy:
        np.testing.assert_array_equal(lazy, image.transpose(4, 3, 2, 0, 1))


def test_2_write_a_plane(tmp_path, image):
    a = image[..., 0, 0, 0]
    with bfio.BioWriter(tmp_path / "theirs.ome.tif") as bw:
        bw.dtype = a.dtype
        bw.X = a.shape[1]
        bw.Y = a.shape[0]
        bw.Z = bw.C = bw.T = 1
        bw[:, :, 0, 0, 0] = a[:]
    bioio_tk.imwrite(a, tmp_path / "ours.ome.tif")
    with bioio_tk.BioWriter(tmp_path / "image.ome.tif", image=a):
        pass
    for name in ("theirs", "ours", "image"):
        found = tifffile.imread(tmp_path / f"{name}.ome.tif")
        np.testing.assert_array_equal(found, a)
        assert found.dtype == a.dtype


def test_3_copy_the_header(path, image, tmp_path):
    with bfio.BioReader(path) as br:
        with bfio.BioWriter(tmp_path / "theirs.ome.tif", metadata=br.metadata) as bw:
            bw.dtype = np.float32
            bw.C = 1
            bw[:] = br[:, :, :, 0, :].astype(np.float32)
    with bioio_tk.BioReader(path) as br:
        with bioio_tk.BioWriter(tmp_path / "ours.ome.tif", like=br, dtype="float32", C=1) as bw:
            bw[:] = br[:, :, :, 0, :].astype(np.float32)
    for name in ("theirs", "ours"):
        found = stored(tmp_path / f"{name}.ome.tif")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, image[:, :, :, :1])
        with bioio_tk.BioReader(tmp_path / f"{name}.ome.tif") as br:
            assert (br.ps_x, br.ps_z, br.channel_names[0]) == ((0.5, "µm"), (2.0, "µm"), "dna")


def inverted(tile):
    return np.iinfo(tile.dtype).max - tile


def test_4_filter_tile_by_tile(path, image, tmp_path):
    with bfio.BioReader(path) as br:
        with bfio.BioWriter(tmp_path / "theirs.ome.tif", metadata=br.metadata) as bw:
            for t, c, z in product(range(br.T), range(br.C), range(br.Z)):
                for y in range(0, br.Y, TILE):
                    y_max = min(br.Y, y + TILE)
                    for x in range(0, br.X, TILE):
                        x_max = min(br.X, x + TILE)
                        bw[y:y_max, x:x_max, z : z + 1, c, t] = inverted(
                            br[y:y_max, x:x_max, z : z + 1, c, t]
                        )
    bioio_tk.map_tiles(inverted, path, tmp_path / "ours.ome.tif", tile=TILE)
    with bioio_tk.BioReader(path) as br:
        with bioio_tk.BioWriter(tmp_path / "loop.ome.tif", like=br) as bw:
            for tile in br.tiles(TILE):
                bw[tile.slices] = inverted(tile.data)
    for name in ("theirs", "ours", "loop"):
        np.testing.assert_array_equal(stored(tmp_path / f"{name}.ome.tif"), 65535 - image)


def local_mean(tile):
    """Return the mean of 7 x 7 pixels; those nearer than 3 to the border mean nothing."""
    sums = np.pad(tile.astype("f8"), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    out = np.zeros(tile.shape, "f4")
    out[3:-3, 3:-3] = (sums[7:, 7:] - sums[:-7, 7:] - sums[7:, :-7] + sums[:-7, :-7]) / 49
    return out


def test_5_filter_with_a_halo(path, image, tmp_path):
    plane = make(tmp_path / "plane.ome.tif", image[..., 0, 0, 0])
    halo = 3
    with bfio.BioReader(plane) as br:
        with bfio.BioWriter(tmp_path / "theirs.ome.tif", metadata=br.metadata) as bw:
            bw.dtype = np.float32
            for y in range(0, br.Y, TILE):
                for x in range(0, br.X, TILE):
                    y_max, x_max = min(br.Y, y + TILE), min(br.X, x + TILE)
                    y_from, x_from = max(0, y - halo), max(0, x - halo)
                    y_to, x_to = min(br.Y, y_max + halo), min(br.X, x_max + halo)
                    img = br[y_from:y_to, x_from:x_to, 0:1, 0, 0]
                    pad = (
                        (halo - (y - y_from), halo - (y_to - y_max)),
                        (halo - (x - x_from), halo - (x_to - x_max)),
                    )
                    result = local_mean(np.pad(img, pad, mode="reflect"))
                    bw[y:y_max, x:x_max, 0:1, 0, 0] = result[halo:-halo, halo:-halo]
    options = {"tile": TILE, "overlap": halo, "mode": "reflect"}
    bioio_tk.map_tiles(local_mean, plane, tmp_path / "ours.ome.tif", **options)
    wanted = local_mean(np.pad(image[..., 0, 0, 0], halo, mode="reflect"))[halo:-halo, halo:-halo]
    for name in ("theirs", "ours"):
        found = stored(tmp_path / f"{name}.ome.tif")[..., 0, 0, 0]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_6_one_file_for_each_plane(path, image, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    with bfio.BioReader(path) as br:
        for t, c, z in product(range(br.T), range(br.C), range(br.Z)):
            name = path.name.replace(".ome.tif", f"_c{c}_t{t}_z{z}.ome.tif")
            with bfio.BioWriter(theirs / name, metadata=br.metadata) as bw:
                bw.C = 1
                bw.T = 1
                bw.Z = 1
                if bw.channel_names != [None]:
                    bw.channel_names = [br.channel_names[c]]
                for y in range(0, br.Y, TILE):
                    y_max = min(br.Y, y + TILE)
                    for x in range(0, br.X, TILE):
                        x_max = min(br.X, x + TILE)
                        bw[y:y_max, x:x_max, 0, 0, 0] = br[y:y_max, x:x_max, z : z + 1, c, t]
    from bioio_tk.jobs.wipp import wipp

    wipp([path], ours, file_extension=".ome.tif")
    names = [f"in_c{c}_t{t}_z{z}.ome.tif" for c in (0, 1) for t in (0, 1) for z in range(3)]
    for folder in (theirs, ours):
        assert sorted(p.name for p in folder.iterdir()) == names
        for name in names:
            c, t, z = (int(part[1:]) for part in name.removesuffix(".ome.tif").split("_")[1:])
            np.testing.assert_array_equal(tifffile.imread(folder / name), image[:, :, z, c, t])
            with bioio_tk.BioReader(folder / name) as br:
                assert br.channel_names == [["dna", "actin"][c]]


def test_6_any_format_to_zarr(path, image, tmp_path):
    with bfio.BioReader(path) as br:
        with bfio.BioWriter(tmp_path / "theirs.ome.zarr", metadata=br.metadata) as bw:
            for t, c, z in product(range(br.T), range(br.C), range(br.Z)):
                bw[:, :, z : z + 1, c, t] = br[:, :, z : z + 1, c, t]
    bioio_tk.convert(path, tmp_path / "ours.ome.zarr")
    for name in ("theirs", "ours"):
        found = zarr.open_group(tmp_path / f"{name}.ome.zarr", mode="r")["0"][:]
        np.testing.assert_array_equal(found, image.transpose(4, 3, 2, 0, 1))


def test_7_every_series(tmp_path):
    images = [coded((40, 50), "u2"), coded((30, 20), "u2", seed=1)]
    path = tmp_path / "set.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        for one in images:
            tif.write(one, photometric="minisblack")
    with bfio.BioReader(path) as br:
        count = len(br.metadata.images)
    theirs = []
    for level in range(count):
        with bfio.BioReader(path, level=level) as br:
            theirs.append(br[:])
    with bioio_tk.BioReader(path) as br:
        assert br.n_series == count == 2
    ours = [np.squeeze(bioio_tk.map_tiles(lambda a: a, path, series=n)) for n in range(count)]
    with bioio_tk.BioReader(path, series=1) as br:
        np.testing.assert_array_equal(br[:], images[1])
    for found in (theirs, ours):
        for one, wanted in zip(found, images, strict=True):
            np.testing.assert_array_equal(one, wanted)


def test_8_stack_files_with_threads_that_share_a_writer(tmp_path, image):
    files = [make(tmp_path / f"z{z}.ome.tif", image[:, :, z, 0, 0]) for z in range(3)]

    def write(bw, z, file):
        with bfio.BioReader(file, max_workers=1) as br:
            bw[:, :, z : z + 1, 0, 0] = br[:]

    with bfio.BioReader(files[0]) as br:
        metadata = br.metadata
    with bfio.BioWriter(tmp_path / "theirs.ome.tif", metadata=metadata, Z=len(files)) as bw:
        with ThreadPoolExecutor(3) as pool:
            done = [pool.submit(write, bw, z, file) for z, file in enumerate(files)]
            for future in done:
                future.result()
    bioio_tk.stack(files, tmp_path / "ours.ome.tif", axis="z")
    for name in ("theirs", "ours"):
        np.testing.assert_array_equal(stored(tmp_path / f"{name}.ome.tif"), image[:, :, :, :1, :1])


def test_9_assemble_a_mosaic(tmp_path):
    whole = coded((150, 200), "u2")
    places = {
        "a.ome.tif": (0, 0),
        "b.ome.tif": (3, 90),
        "c.ome.tif": (70, 5),
        "d.ome.tif": (75, 99),
    }
    for name, (y, x) in places.items():
        make(tmp_path / name, whole[y : y + 80, x : x + 101])
    vector = tmp_path / "img-global-positions-0.txt"
    vector.write_text(
        "".join(
            f"file: {name}; corr: 1.0; position: ({x}, {y}); grid: ({n % 2}, {n // 2});\n"
            for n, (name, (y, x)) in enumerate(places.items())
        )
    )
    wanted = np.zeros(whole.shape, "u2")
    for y, x in places.values():
        wanted[y : y + 80, x : x + 101] = whole[y : y + 80, x : x + 101]

    sizes = {name: bfio.BioReader.image_size(tmp_path / name) for name in places}
    width = max(x + sizes[name][0] for name, (_, x) in places.items())
    height = max(y + sizes[name][1] for name, (y, _) in places.items())

    def write(bw, name):
        y, x = places[name]
        with bfio.BioReader(tmp_path / name, max_workers=1) as br:
            bw[y : y + br.Y, x : x + br.X, 0, 0, 0] = br[:]

    with bfio.BioWriter(tmp_path / "theirs.ome.tif", Y=height, X=width, dtype=np.uint16) as bw:
        bw.Z = bw.C = bw.T = 1
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(write, bw, name) for name in places]:
                future.result()
    bioio_tk.assemble(vector, tmp_path / "ours.ome.tif")
    for name in ("theirs", "ours"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"{name}.ome.tif"), wanted)


@pytest.mark.parametrize("method", [np.max, np.mean])
def test_10_project_along_z_by_tile(path, image, tmp_path, method):
    with bfio.BioReader(path) as br:
        with bfio.BioWriter(tmp_path / "theirs.ome.tif", metadata=br.metadata) as bw:
            bw.Z = 1
            for t, c in product(range(br.T), range(br.C)):
                for y in range(0, br.Y, TILE):
                    y2 = min(br.Y, y + TILE)
                    for x in range(0, br.X, TILE):
                        x2 = min(br.X, x + TILE)
                        tile = method(br[y:y2, x:x2, 0 : br.Z, c, t], axis=2)
                        bw[y:y2, x:x2, 0:1, c, t] = np.rint(tile).astype(bw.dtype)
    bioio_tk.reduce(path, method.__name__, tmp_path / "ours.ome.tif", axis="z")
    bioio_tk.reduce(path, method, tmp_path / "own.ome.tif", axis="z", dtype="uint16", cast="clip")
    wanted = np.rint(method(image, axis=2, keepdims=True))
    for name in ("theirs", "ours", "own"):
        np.testing.assert_array_equal(stored(tmp_path / f"{name}.ome.tif"), wanted)


def half(image):
    """Return the mean of each 2 x 2 pixels, as the pyramids of bioio_tk have it."""
    return smaller(image.reshape((*image.shape, 1, 1, 1)[:5]))[..., 0, 0, 0]


def test_11_a_pyramid(tmp_path, image):
    plane = image[..., 0, 0, 0]
    path = make(tmp_path / "plane.ome.tif", plane)
    levels = [plane]
    while max(levels[-1].shape) > 60:
        levels.append(half(levels[-1]))
    with bfio.BioReader(path) as br:
        for n, level in enumerate(levels):
            with bfio.BioWriter(tmp_path / f"level{n}.ome.tif", metadata=br.metadata) as bw:
                bw.Y, bw.X = level.shape
                bw[:] = br[:] if n == 0 else half(levels[n - 1])
    bioio_tk.convert(path, tmp_path / "ours.ome.tif", levels=len(levels), downsample="mean")
    bioio_tk.convert(path, tmp_path / "ours.ome.zarr", levels=len(levels), chunks=64)
    group = zarr.open_group(tmp_path / "ours.ome.zarr", mode="r")
    for n, level in enumerate(levels):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"level{n}.ome.tif"), level)
        np.testing.assert_array_equal(stored(tmp_path / "ours.ome.tif", n)[..., 0, 0, 0], level)
        np.testing.assert_array_equal(group[str(n)][:].squeeze(), level)


def test_12_sizes_only(path, tmp_path):
    for module in (bfio, bioio_tk):
        assert module.BioReader.image_size(path) == (170, 130)
    bioio_tk.convert(path, tmp_path / "in.ome.zarr")
    assert bioio_tk.BioReader.image_size(tmp_path / "in.ome.zarr") == (170, 130)


def test_13_pixel_sizes(path, tmp_path):
    units = {"mm": 1000.0, "µm": 1.0, "nm": 0.001}
    with bfio.BioReader(path) as br:
        x, unit = br.ps_x
        y, _ = br.ps_y
        theirs = (y * units[unit.value], x * units[unit.value])
    with bioio_tk.BioReader(path) as br:
        ours = br.pixel_size("µm")
        assert br.pixel_size("nm").z == 2000.0
    assert theirs == tuple(ours)[:2] == (0.25, 0.5)


PLUGIN = """
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from bioio_tk.compat.bfio import BioReader, BioWriter

def convert(name, out):
    with BioReader(name, max_workers=1) as br:
        with BioWriter(Path(out) / Path(name).name, max_workers=1, metadata=br.metadata) as bw:
            bw[:] = br[:] // 2

if __name__ == "__main__":
    inp, out = map(Path, sys.argv[1:])
    with ProcessPoolExecutor(2) as pool:
        done = [pool.submit(convert, file, out) for file in inp.glob("img_r*.ome.tif")]
        for future in as_completed(done):
            future.result()
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with four images and something else."""
    (tmp_path / "in").mkdir()
    for n in range(4):
        make(tmp_path / "in" / f"img_r00{n}.ome.tif", coded((40, 50), "u2", seed=n))
    (tmp_path / "in" / "readme.txt").write_text("no image")
    return tmp_path / "in"


def test_14_all_files_of_a_folder(folder, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    files = sorted(folder.glob("img_r*.ome.tif"))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    child = subprocess.run(
        [sys.executable, str(tmp_path / "plugin.py"), str(folder), str(theirs)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    for file in files:
        bioio_tk.map_tiles(lambda a: a // 2, file, ours / file.name, workers=1)
    for out in (theirs, ours):
        assert sorted(p.name for p in out.iterdir()) == [file.name for file in files]
        for n, file in enumerate(files):
            wanted = coded((40, 50), "u2", seed=n) // 2
            np.testing.assert_array_equal(tifffile.imread(out / file.name), wanted)


def test_15_normalise_and_cast(path, image, tmp_path):
    plane = make(tmp_path / "plane.ome.tif", image[..., 0, 0, 0])
    low, high = image[..., 0, 0, 0].min(), image[..., 0, 0, 0].max()
    with bfio.BioReader(plane) as br:
        with bfio.BioWriter(tmp_path / "theirs.ome.tif", metadata=br.metadata) as bw:
            bw.dtype = np.uint8
            for y in range(0, br.Y, TILE):
                y_max = min(br.Y, y + TILE)
                tile = br[y:y_max, :, 0:1, 0, 0].astype(np.float64)
                tile = (tile - low) / (float(high) - low) * 255
                bw[y:y_max, :, 0:1, 0, 0] = np.rint(tile).astype(bw.dtype)
    bioio_tk.map_tiles(
        lambda a: (a.astype(float) - low) / (float(high) - low) * 255,
        plane,
        tmp_path / "ours.ome.tif",
        dtype="uint8",
        cast="clip",
    )
    wanted = np.rint((image[..., 0, 0, 0].astype(float) - low) / (float(high) - low) * 255)
    for name in ("theirs", "ours"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"{name}.ome.tif"), wanted)


def test_15_names_of_channels(tmp_path):
    flow = coded((40, 50, 1, 3), "f4")
    names = ["cell_probability", "flow_y", "flow_x"]
    with bfio.BioWriter(tmp_path / "theirs.ome.tif") as bw:
        bw.Y, bw.X, bw.C, bw.dtype = 40, 50, 3, np.dtype("float32")
        bw.channel_names = names
        bw[:] = flow
    with bioio_tk.BioWriter(tmp_path / "ours.ome.tif", image=flow, channel_names=names):
        pass
    for name in ("theirs", "ours"):
        np.testing.assert_array_equal(stored(tmp_path / f"{name}.ome.tif")[..., 0], flow)
        with bioio_tk.BioReader(tmp_path / f"{name}.ome.tif") as br:
            assert br.channel_names == names


def test_15_labels_in_the_smallest_type(tmp_path):
    labels = coded((60, 70), "i4") % 300
    path = make(tmp_path / "labels.ome.tif", labels)
    with bfio.BioReader(path) as br:
        most = int(br[:].max())
        dtype = np.min_scalar_type(most)
        with bfio.BioWriter(tmp_path / "theirs.ome.tif", metadata=br.metadata) as bw:
            bw.dtype = dtype
            bw[:] = br[:].astype(dtype)
    smallest = np.min_scalar_type(int(bioio_tk.reduce(path, "max", axis="yx").item()))
    bioio_tk.convert(path, tmp_path / "ours.ome.tif", dtype=smallest, downsample="mode")
    for name in ("theirs", "ours"):
        found = tifffile.imread(tmp_path / f"{name}.ome.tif")
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, labels)


# ------------------------------------------------------------------ also seen


def test_the_file_first_the_pixels_later(tmp_path):
    with bfio.BioWriter(tmp_path / "theirs.ome.tif", X=50, Y=40, dtype=np.uint8) as bw:
        bw._backend._init_writer()
        bw[:] = np.zeros((40, 50, 1, 1, 1), np.uint8)
        bw[10:20, 5:9, 0, 0, 0] = np.full((10, 4), 7, np.uint8)
    wanted = np.zeros((40, 50), "u1")
    wanted[10:20, 5:9] = 7
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "theirs.ome.tif"), wanted)


def test_a_reader_into_a_writer_and_readers_in_step(path, image, tmp_path):
    with bfio.BioReader(path) as reader:
        with bfio.BioWriter(tmp_path / "theirs.ome.tif", metadata=reader.metadata) as writer:
            writer[:] = reader[:]
        np.testing.assert_array_equal(reader[:, :, 1, 0:2, 0], image[:, :, 1:2, :, 0])
    np.testing.assert_array_equal(stored(tmp_path / "theirs.ome.tif"), image)
    planes = [make(tmp_path / f"c{c}.ome.tif", image[:, :, 0, c, 0]) for c in range(2)]
    readers = [bfio.BioReader(plane, max_workers=1) for plane in planes]
    together = np.stack([br[20:90, 30:40] for br in readers], axis=-1)
    for br in readers:
        br.close()
    np.testing.assert_array_equal(together, image[20:90, 30:40, 0, :, 0])
    bioio_tk.stack(planes, tmp_path / "ours.ome.tif", axis="c")
    np.testing.assert_array_equal(stored(tmp_path / "ours.ome.tif"), image[:, :, :1, :, :1])
