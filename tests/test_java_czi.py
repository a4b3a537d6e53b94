"""CZI files made with Zeiss' own library, read through Java: equal pixels, names and sizes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from images import picked
from java_images import by_java
from test_contract import together

from bioio_tk import BioReader

czi = pytest.importorskip("pylibCZIrw.czi", reason="pylibCZIrw is not installed")


@pytest.fixture(autouse=True)
def modern(java, request):
    """Skip what is refused where Bio-Formats is old, as the tests of damage have it."""
    name = request.node.name
    if java.started.version.startswith("6.") and ("uncompressed" not in name or "mosaic" in name):
        pytest.skip(f"Bio-Formats {java.started.version} gets zstd and mosaics wrong: refused")


CODECS = [
    "uncompressed:",
    "zstd0:ExplicitLevel=3",
    "zstd1:ExplicitLevel=3;PreProcess=HiLoByteUnpack",
]
NAMES = {0: "DAPI", 1: "GFP"}


def coded(shape, dtype="u2", seed=0):
    """Return smooth pixels with some noise, so that codecs have something to do."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    rest = np.arange(np.prod(shape[2:], dtype=int)).reshape(shape[2:])
    noise = np.random.default_rng(seed).integers(0, 9, shape)
    smooth = (y * 3 + x * 7).reshape(shape[:2] + (1,) * len(shape[2:])) + rest * 101 + seed * 13
    return (smooth + noise).astype(dtype)


def write(path, scenes, codec=CODECS[2], tile=None, **metadata):
    """Write scenes, each Y, X, Z, C, T; tiles of a mosaic one by one."""
    with czi.create_czi(str(path), compression_options=codec) as file:
        for number, image in enumerate(scenes):
            y, x, z, c, t = image.shape
            height, width = tile or (y, x)
            for at in np.ndindex(z, c, t):
                plane = {"Z": at[0], "C": at[1], "T": at[2]}
                for top in range(0, y, height):
                    for left in range(0, x, width):
                        part = image[top : top + height, left : left + width]
                        file.write(
                            np.ascontiguousarray(part[:, :, *at, None]),
                            location=(left + number * (x + 100), top),
                            plane=plane,
                            scene=number,
                        )
        file.write_metadata("image", **metadata)


def read(path, **more):
    """Return all pixels, with five axes."""
    with BioReader(path, **more) as br:
        return br[...].reshape(br.shape)


def as_zeiss(path, scene, shape):
    """Return all pixels of a scene as Zeiss' library reads them."""
    y, x, z, c, t = shape
    with czi.open_czi(str(path)) as file:
        roi = file.scenes_bounding_rectangle[scene]
        planes = [
            file.read(plane={"Z": k, "C": i, "T": n}, scene=scene, roi=roi)[:, :, 0]
            for k, i, n in np.ndindex(z, c, t)
        ]
    return np.stack(planes, axis=-1).reshape(y, x, z, c, t)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_scenes_of_every_pixel_type_and_compression(tmp_path, dtype, codec):
    scenes = [coded((97, 123, 3, 2, 2), dtype, seed) for seed in range(2)]
    path = tmp_path / "image.czi"
    metres = {"scale_x": 0.325e-6, "scale_y": 0.3e-6, "scale_z": 1.5e-6}
    write(path, scenes, codec, channel_names=NAMES, **metres)
    for number, image in enumerate(scenes):
        got = read(path, series=number)
        assert got.dtype == image.dtype
        np.testing.assert_array_equal(got, image)
        np.testing.assert_array_equal(as_zeiss(path, number, image.shape), image)
    with BioReader(path, series=1) as br:
        assert br.n_series == 2
        assert br.channel_names == ["DAPI", "GFP"]
        assert [round(n, 9) for n in br.pixel_size("µm")] == [0.3, 0.325, 1.5]


@pytest.mark.parametrize("codec", CODECS)
def test_a_mosaic_is_one_image(java, tmp_path, codec):
    image = coded((700, 900, 1, 2, 1))
    path = tmp_path / "mosaic.czi"
    write(path, [image], codec, tile=(256, 256))
    np.testing.assert_array_equal(read(path), image)
    np.testing.assert_array_equal(as_zeiss(path, 0, image.shape), image)
    np.testing.assert_array_equal(by_java(java, path), image)
    with BioReader(path) as br:
        assert br.n_series == 1
        key = np.s_[250:520:3, 700:100:-1, 0, 1]
        np.testing.assert_array_equal(br[key], picked(image, key))


@pytest.mark.parametrize("codec", CODECS)
def test_colours_come_as_red_green_blue(tmp_path, codec):
    bgr = coded((101, 211, 3), "u1")
    path = tmp_path / "colour.czi"
    with czi.create_czi(str(path), compression_options=codec) as file:
        file.write(bgr)
        file.write_metadata("image")
    with BioReader(path) as br:
        assert (br.shape, br.samples_per_pixel) == ((101, 211, 1, 3, 1), 3)
        np.testing.assert_array_equal(br[:][:, :, 0], bgr[:, :, ::-1])


def test_threads_read_a_mosaic_each_its_own_region(tmp_path):
    image = coded((700, 900, 2, 2, 1))
    path = tmp_path / "mosaic.czi"
    write(path, [image], tile=(256, 256))
    with BioReader(path, max_workers=4) as br:

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(20):
                y, x = rng.integers(0, 690, 2)
                key = np.s_[y : y + 80, x : x + 150, rng.integers(2), rng.integers(2)]
                np.testing.assert_array_equal(br[key], picked(image, key))

        together([partial(work, n) for n in range(8)])
