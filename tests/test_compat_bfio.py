"""Code written for bfio runs with ``bioio_tk.compat.bfio``, without the faults it had there.

Expected pixels come from NumPy, files are made and read back by tifffile. The examples are those
of bfio's documentation and of the programs that use it, changed only where they could never run.
"""

from __future__ import annotations

import multiprocessing
import operator
import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from images import coded

import bioio_tk
import bioio_tk.compat.bfio as bfio
from bioio_tk.compat.bfio import BioReader, BioWriter, utils
from bioio_tk.compat.bfio.utils import (
    clean_ome_xml_for_known_issues,
    detect_zarr_format,
    pixels_per_cm,
)
from bioio_tk.errors import (
    BackendMissingError,
    ClosedError,
    FormatError,
    PixelTypeError,
    ReadOnlyError,
    RegionError,
    SpecError,
)

SHAPE = (300, 400, 3, 4, 2)


def make(path, image, *, tile=(128, 128), **metadata):
    """Write an image (Y, X, Z, C, T) with tifffile."""
    full = image.reshape((*image.shape, 1, 1, 1)[:5])
    tifffile.imwrite(
        path, full.transpose(4, 3, 2, 0, 1), metadata={"axes": "TCZYX", **metadata}, tile=tile
    )
    return path


def stored(path):
    """Read an image as Y, X, Z, C, T with tifffile."""
    with tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        pixels = series.asarray(squeeze=False)
        axes = series.get_axes(squeeze=False)
    order = ["TCZYXS".index(a) for a in axes]
    pixels = pixels.transpose(np.argsort(order))
    if "S" in axes:
        pixels = pixels[..., 0]
    return pixels.transpose(3, 4, 2, 1, 0)


def zarr_pixels(path, level="0"):
    """Read an array as Y, X, Z, C, T with zarr-python."""
    return zarr.open_group(path, mode="r")[level][:].transpose(3, 4, 2, 1, 0)


def drop_ones(pixels):
    """Drop trailing axes of length 1, as bfio does."""
    while pixels.ndim > 2 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return pixels


@pytest.fixture(scope="module")
def image():
    return coded(SHAPE)


@pytest.fixture(scope="module")
def path(tmp_path_factory, image):
    return make(
        tmp_path_factory.mktemp("bfio") / "five.ome.tif",
        image,
        Channel={"Name": ["a", "b", "c", "d"]},
        PhysicalSizeX=0.5,
        PhysicalSizeXUnit="nm",
        PhysicalSizeY=0.25,
        PhysicalSizeYUnit="mm",
    )


@pytest.fixture
def br(path):
    with BioReader(path) as reader:
        yield reader


@pytest.fixture
def plane(tmp_path):
    """A single plane of 300 x 400."""
    return make(tmp_path / "plane.ome.tif", coded((300, 400)))


# ------------------------------------------------------------------ the module


def test_what_the_module_has():
    from bioio_tk.compat.bfio.base_classes import BioBase
    from bioio_tk.compat.bfio.bfio import BioReader as Same
    from bioio_tk.compat.bfio.bfio import start as also_start
    from bioio_tk.compat.bfio.utils import start as start_too

    assert Same is bfio.BioReader
    assert bfio.start is start_too is also_start
    assert issubclass(bfio.BioReader, BioBase)
    assert bfio.__version__ == bfio.__version__.strip()
    assert tuple(int(n) for n in bfio.__version__.split(".")) >= (2, 5)
    assert bfio.JAR_VERSION is None
    assert list(bfio.JARS) == []
    assert str(bfio.LOG4J) == str(bfio.LOGBACK) == ""
    assert bfio.log_level == 30
    assert bfio.logger.name == "bfio.init"


def test_start_says_the_version_of_bioformats(java):
    assert bfio.start() == bfio.start() == str(java("loci.formats.FormatTools").VERSION)
    assert bfio.start() == utils.JAR_VERSION


def test_start_needs_no_java_and_says_a_version(monkeypatch):
    def missing(*_, **__):
        raise BackendMissingError("no Java")

    monkeypatch.setattr(bioio_tk, "start", missing, raising=False)
    assert bfio.start() == f"bioio_tk {bioio_tk.__version__}"


def run(code, **more):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(bioio_tk.__file__).parents[1])},
        **more,
    ).stdout


def test_importing_it_is_light_and_leaves_logging_alone():
    out = run("""
        import logging, sys
        import bioio_tk.compat.bfio
        heavy = ("ome_types", "tifffile", "imagecodecs", "zarr", "jpype", "pydantic", "lxml")
        print([m for m in heavy if m in sys.modules], logging.getLogger().handlers)
    """)
    assert out.split("\n")[0] == "[] []"


def test_it_can_take_the_name_bfio(plane):
    out = run(f"""
        import sys
        import bioio_tk.compat.bfio, bioio_tk.compat.bfio.utils
        for name in ("", ".bfio", ".utils", ".base_classes"):
            sys.modules["bfio" + name] = sys.modules["bioio_tk.compat.bfio" + name]

        from bfio import BioReader
        from bfio.bfio import BioReader as Same
        from bfio.utils import detect_zarr_format
        print(Same is BioReader, BioReader({str(plane)!r}).X)
    """)
    assert out == "True 400\n"


# ------------------------------------------------------------------ the documented examples


def test_documented_reading_by_index(br, image):
    a = br[:100, :100, :1, 0, 0]
    np.testing.assert_array_equal(a, image[:100, :100, 0, 0, 0])
    a = br[0:100:2, 0:100:2, 0:1, 0, 0]  # steps of the first three do not count
    np.testing.assert_array_equal(a, image[:100, :100, 0, 0, 0])
    a = br[:100, 100, 0:1, (0, 2), 0]
    np.testing.assert_array_equal(a, image[:100, 100:101, 0:1][:, :, :, [0, 2], 0])
    b = br[..., :2, 0, 0]
    np.testing.assert_array_equal(b, image[:, :, :2, 0, 0])


def test_documented_reading_of_a_corner(plane):
    expected = coded((300, 400))[:100, :100]
    with BioReader(plane, backend="java") as br:
        for pixels in (
            br.read(X=[0, 100], Y=[0, 100]),
            br[0:100, 0:100, :, :, :],
            br[:100, :100, ...],
            br[:100:2, :100:2],
        ):
            np.testing.assert_array_equal(pixels, expected)


def test_documented_strip_tiff_needs_no_other_backend(tmp_path):
    image = coded((60, 70))
    file = tmp_path / "img_r001_c001.ome.tif"
    tifffile.imwrite(file, image)
    for backend in (None, "python", "java"):
        with BioReader(file, backend=backend) as br:
            assert br.shape == (60, 70, 1, 1, 1)
            np.testing.assert_array_equal(br[:], image)


def test_documented_writer_from_scratch(tmp_path):
    file = tmp_path / "out.ome.tif"
    bw = BioWriter(file, X=100, Y=100, dtype=np.uint8)
    bw[:100, :100, 0, 0, 0] = np.zeros((100, 100), dtype=np.uint8)
    bw[0:100:2, 0:100:2] = np.full((100, 100), 3, dtype=np.uint8)  # steps do not count
    bw.close()
    np.testing.assert_array_equal(tifffile.imread(file), np.full((100, 100), 3, np.uint8))


def test_documented_writer_of_channels_and_of_a_stack(tmp_path):
    file = tmp_path / "out.ome.tif"
    with BioWriter(file, X=100, Y=100, Z=12, C=3, dtype=np.uint8) as bw:
        bw[:100, 99, 0, :2, 0] = np.full((100, 1, 1, 2), 5, dtype=np.uint8)
        bw[..., :10, 2, 0] = np.ones((100, 100, 10), dtype=np.uint8)
    expected = np.zeros((100, 100, 12, 3, 1), np.uint8)
    expected[:, 99:, :1, :2] = 5
    expected[:, :, :10, 2] = 1
    np.testing.assert_array_equal(stored(file), expected)


def test_documented_writer_with_the_metadata_of_a_reader(tmp_path, path):
    br = BioReader(path)
    br.close()
    bw = BioWriter(tmp_path / "out.ome.tif", metadata=br.metadata)
    bw.dtype = np.uint8
    bw.X = 1000
    bw.Y = 500
    bw.C = 3
    bw.channel_names = ["PI", "phalloidin", "DAPI"]
    assert bw.shape == (500, 1000, 3, 3, 2)
    assert bw.dtype == np.uint8
    assert bw.metadata.images[0].pixels.size_x == 1000
    assert [c.name for c in bw.metadata.images[0].pixels.channels] == ["PI", "phalloidin", "DAPI"]
    bw.close()
    assert not (tmp_path / "out.ome.tif").exists()  # nothing was written


@pytest.mark.parametrize("how", ["write", "[:]"])
def test_documented_conversion_in_one_go(tmp_path, path, image, how):
    out = tmp_path / "out.ome.tif"
    with BioReader(path, backend="java") as br, BioWriter(out, metadata=br.metadata) as bw:
        original_image = br[:]
        if how == "write":
            bw.write(original_image)
        else:
            bw[:] = original_image
    br = BioReader(out)
    new_image = br.read()
    br.close()
    assert np.array_equal(new_image, original_image)
    np.testing.assert_array_equal(stored(out), image)


def test_documented_write_of_a_plane_that_has_two_axes(tmp_path, plane):
    out = tmp_path / "out.ome.tif"
    with BioReader(plane) as br, BioWriter(out, metadata=br.metadata) as bw:
        bw.write(br[:])
    np.testing.assert_array_equal(tifffile.imread(out), coded((300, 400)))


def test_documented_scalable_converter(tmp_path, path, image):
    tile_size = 128
    with (
        BioReader(path, backend="java") as br,
        BioWriter(tmp_path / "out.ome.tif", backend="java", metadata=br.metadata) as bw,
    ):
        for t in range(br.T):
            for c in range(br.C):
                for z in range(br.Z):
                    for y in range(0, br.Y, tile_size):
                        y_max = min([br.Y, y + tile_size])
                        for x in range(0, br.X, tile_size):
                            x_max = min([br.X, x + tile_size])
                            bw[y:y_max, x:x_max, z : z + 1, c, t] = br[
                                y:y_max, x:x_max, z : z + 1, c, t
                            ]
    np.testing.assert_array_equal(stored(tmp_path / "out.ome.tif"), image)


def test_documented_converter_to_one_file_per_channel_and_time(tmp_path, path, image):
    with BioReader(path, backend="java") as br:
        for t in range(br.T):
            for c in range(br.C):
                with BioWriter(
                    tmp_path / f"out_c{c:03d}_t{t:03d}.ome.tif",
                    backend="java",
                    metadata=br.metadata,
                    C=1,
                    T=1,
                ) as bw:
                    for z in range(br.Z):
                        bw[:, :, z : z + 1, 0, 0] = br[:, :, z : z + 1, c, t]
    for c, t in product(range(4), range(2)):
        pixels = stored(tmp_path / f"out_c{c:03d}_t{t:03d}.ome.tif")
        np.testing.assert_array_equal(pixels[..., 0, 0], image[..., c, t])


# ------------------------------------------------------------------ reading: every kind of index

CASES = [
    # what bfio does
    ("br[:]", "im[:]"),
    ("br.read()", "im[:]"),
    ("br[10:20, 30:50]", "im[10:20, 30:50]"),
    ("br[5, :, 0, 0, 0]", "im[5:6, :, 0, 0, 0]"),
    ("br[:, 5, 0, 0, 0]", "im[:, 5:6, 0, 0, 0]"),
    ("br[7, 9, 1, 2, 1]", "im[7:8, 9:10, 1, 2, 1]"),
    ("br[:, :, 0:3:2, 0, 0]", "im[:, :, :, 0, 0]"),
    ("br[0:30:7, 0:20:3, ::2]", "im[0:30, 0:20, :]"),
    ("br[:9, :9, 0, ::2, 0]", "im[:9, :9, :1, ::2, 0]"),
    ("br[:9, :9, 0, 3:0:-1, 0]", "im[:9, :9, :1, 3:0:-1, 0]"),
    ("br[:9, :9, 0, 0, ::-1]", "im[:9, :9, :1, :1, ::-1]"),
    ("br[..., 1]", "im[..., 1]"),
    ("br[..., 2, 1]", "im[..., 2, 1]"),
    ("br[..., ::2, 1]", "im[..., ::2, 1]"),
    ("br[..., 0:3:2, 0, 0]", "im[..., 0, 0]"),
    ("br[0:9, ...]", "im[0:9]"),
    ("br[:9, :9, 2, 0:4, 0]", "im[:9, :9, 2:3, :, 0]"),
    ("br[100:100]", "im[100:100]"),
    # what it documents and cannot do, or could do only by accident
    ("br[:9, :9, 0, [0, 2], 0]", "im[:9, :9, :1][:, :, :, [0, 2], 0]"),
    ("br[:9, :9, 0, (3, 1), (1,)]", "im[:9, :9, :1][:, :, :, [3, 1], 1]"),
    ("br[:9, :9, 0, np.array([1, 3]), 0]", "im[:9, :9, :1][:, :, :, [1, 3], 0]"),
    ("br[:9, :9, np.int64(2), np.int64(1), np.uint8(1)]", "im[:9, :9, 2, 1, 1]"),
    ("br.read(X=[0, 100], Y=[0, 50])", "im[:50, :100]"),
    ("br.read(X=(0, 100), Y=(2, 50), Z=(1, 3))", "im[2:50, :100, 1:3]"),
    ("br.read(Z=1)", "im[:, :, 1:2]"),
    ("br.read(Z=np.int64(1))", "im[:, :, 1:2]"),
    ("br.read(Z=0, C=0, T=0)", "im[:, :, 0, 0, 0]"),
    ("br.read(C=(0, 1), T=[1])", "im[:, :, :, 0:2, 1]"),
    ("br.read(C=[3, 0])", "im[:, :, :, [3, 0]]"),
    ("br.read(X=5)", "im[:, 5:6]"),
    ("br[...]", "im[:]"),
    ("br[5]", "im[5:6]"),
    ("br[0:10]", "im[0:10]"),
    ("br[:, ..., 1]", "im[..., 1]"),
    ("br[-1, -3:]", "im[-1:, -3:]"),
    ("br[:9, :9, 0, -2:, -1]", "im[:9, :9, :1, -2:, 1]"),
    ("br[:9, :9, 0, 0:99, 0]", "im[:9, :9, :1, :, 0]"),
]


@pytest.mark.parametrize(("ours", "numpy"), CASES, ids=[c[0] for c in CASES])
def test_indexing(br, image, ours, numpy):
    expected = drop_ones(eval(numpy, {"im": image, "np": np}))
    found = eval(ours, {"br": br, "np": np})
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "key",
    [
        (300,),
        (0, 400),
        (0, 0, 3),
        (0, 0, 0, 4),
        (0, 0, 0, 0, 2),
        (-301,),
        (0, 0, 0, [0, 4]),
        (0, 0, 0, 0, 0, 0),
        (1.5,),
        (..., 0, ...),
        (True,),
    ],
)
def test_an_index_that_does_not_fit_is_an_index_error(br, key):
    with pytest.raises(RegionError):
        br[key]


def test_reading_old_style_gives_five_axes(br, image):
    whole = br.read_image()
    assert whole.shape == image.shape
    np.testing.assert_array_equal(whole, image)
    part = br.read_image(X=(10, 20), Y=(0, 5), Z=[1, 2], C=[2], T=[1])
    np.testing.assert_array_equal(part, image[0:5, 10:20, 1:2, 2:3, 1:2])


# ------------------------------------------------------------------ reading: properties


def test_properties_of_a_reader(br, image):
    assert image.shape == (br.Y, br.X, br.Z, br.C, br.T)
    assert (br.y, br.x, br.z, br.c, br.t) == image.shape
    assert br.dtype == image.dtype
    assert br.channel_names == br.cnames == ["a", "b", "c", "d"]
    assert (br.samples_per_pixel, br.spp, br.bytes_per_pixel, br.bpp) == (1, 1, 2, 2)
    assert br.read_only
    assert br.metadata is br.metadata
    assert br.metadata.images[0].pixels.size_x == 400
    assert br._metadata is br.metadata
    assert br._TILE_SIZE == 1024
    assert br._backend_name == "python"
    assert br._DIMS == {"Y": 300, "X": 400, "Z": 3, "C": 4, "T": 2}
    assert isinstance(br, bioio_tk.BioReader)


def test_pixel_sizes_are_pairs_of_value_and_unit(br):
    from ome_types.model import UnitsLength

    assert br.ps_x == br.physical_size_x == (0.5, UnitsLength.NANOMETER)
    assert br.ps_y == (0.25, UnitsLength.MILLIMETER)
    value, unit = br.ps_z
    assert value is None
    assert unit is UnitsLength.MICROMETER
    assert None in br.ps_z
    assert br.ps_x[1].value == "nm"


def test_every_unit_of_length_has_its_counterpart():
    from ome_types.model import UnitsLength

    from bioio_tk.core.units import LENGTH_UNITS

    assert {UnitsLength(unit) for unit in LENGTH_UNITS} == set(UnitsLength)


def test_names_of_bfio_1(br):
    assert (br.num_x(), br.num_y(), br.num_z(), br.num_c(), br.num_t()) == (400, 300, 3, 4, 2)
    assert br.pixel_type() == "uint16"
    assert np.iinfo(br.pixel_type()).max == 65535
    assert br.channel_names() == ["a", "b", "c", "d"]
    assert br.physical_size_x()[0] == 0.5
    assert br.read_metadata() is br.metadata
    assert br.read_metadata(update=True).images
    br.close_image()


def test_the_shape_fits_code_for_old_and_new_bfio(br, plane):
    y, x, z, c, t = br.shape
    assert (y, x, z, c, t) == SHAPE
    with BioReader(plane) as flat:
        assert flat.shape == (300, 400)  # 2.2 and later
        plain = (300, 400)
        assert plain == flat.shape
        assert flat.shape == (300, 400, 1, 1, 1)  # 2.1
        assert flat.shape == flat[:].shape
        assert not operator.ne(flat.shape, plain)
        assert flat.shape != (400, 300)
        assert flat.shape != (300, 400, 2)
        assert flat.shape != [300, 400]
        assert flat.shape != br.shape
        assert len(flat.shape) == 5
        assert flat.shape[:2] == (300, 400)
        assert {flat.shape: 1}[300, 400] == 1
    one = coded((1, 1))
    with BioReader(make(plane.with_name("one.ome.tif"), one, tile=(16, 16))) as dot:
        assert dot.shape == one.shape


def test_a_readers_properties_cannot_be_set(br):
    for name, value in [("X", 3), ("dtype", np.uint8), ("cnames", ["x"]), ("ps_x", (1, "nm"))]:
        with pytest.raises(ReadOnlyError):
            setattr(br, name, value)
    with pytest.raises(AttributeError):
        br.bytes_per_pixel = 3
    with pytest.raises(ReadOnlyError):
        br.num_x(5)
    with pytest.raises(ReadOnlyError):
        br.channel_names(["x"])


def test_workers_can_be_changed_at_any_time(path, image, tmp_path):
    with (
        BioReader(path, max_workers=2) as br,
        BioWriter(tmp_path / "o.ome.tif", 1, metadata=br.metadata) as bw,
    ):
        assert br.max_workers == br._max_workers == 2
        for n in (1, 3, 0, -1, np.int64(2)):
            br.max_workers = bw.max_workers = n
            bw[:] = br[:]
        br._max_workers = 4
        assert br.max_workers == 4
        assert bw.max_workers == 2
    np.testing.assert_array_equal(stored(tmp_path / "o.ome.tif"), image)


def test_positional_arguments_are_in_bfios_order(path, tmp_path):
    with BioReader(path, 2, "python", True, 0) as br:
        assert br.clean_metadata
        assert br.max_workers == 2
        with BioWriter(tmp_path / "o.ome.tif", 2, "python", br.metadata, None) as bw:
            assert bw.shape == br.shape


def test_image_size(path, tmp_path):
    assert BioReader.image_size(path) == (400, 300)
    assert BioReader.image_size(str(path)) == (400, 300)
    for name, order in [("le", "<"), ("be", ">")]:
        for big in (False, True):
            file = tmp_path / f"{name}{big}.tif"
            tifffile.imwrite(file, coded((20, 30)), bigtiff=big, byteorder=order)
            assert BioReader.image_size(file) == (30, 20)
    text = tmp_path / "text.txt"
    text.write_text("no image")
    assert BioReader.image_size(text) == (-1, -1)
    with pytest.raises(FileNotFoundError):
        BioReader.image_size(tmp_path / "none.tif")


def test_pickling(br, image):
    copied = pickle.loads(pickle.dumps(br))
    np.testing.assert_array_equal(copied[:], image)
    assert copied.metadata == br.metadata
    copied.close()
    names = pickle.loads(pickle.dumps(br.channel_names))
    assert type(names) is list
    assert pickle.loads(pickle.dumps(br.ps_x)) == br.ps_x
    br.close()
    again = pickle.loads(pickle.dumps(br))
    assert again.X == 400
    again.close()


def test_reading_goes_on_after_close(plane):
    with BioReader(plane) as br:
        pass
    np.testing.assert_array_equal(br.read(), coded((300, 400)))
    assert br.metadata.images[0].pixels.size_x == 400
    br.close()
    br.close()


# ------------------------------------------------------------------ backends


@pytest.mark.parametrize(
    "name", ["python", "java", "bioformats", "tensorstore", "zarr", "zarr3", "PYTHON", "Java", None]
)
def test_names_of_backends(path, image, tmp_path, name):
    with BioReader(path, backend=name) as br:
        np.testing.assert_array_equal(br[:5], image[:5])
    out = tmp_path / "o.ome.tif"
    with BioWriter(out, backend=name, image=image) as bw:
        bw[:] = image
    if name and "zarr" in name:  # what was asked for, whatever the ending
        assert zarr_pixels(out).shape == image.shape
        np.testing.assert_array_equal(zarr_pixels(out), image)
    else:
        np.testing.assert_array_equal(stored(out), image)
    with BioReader(out, backend=name) as br:
        np.testing.assert_array_equal(br[:], image)


def test_no_such_backend(path, tmp_path):
    with pytest.raises(ValueError, match="bioformats"):
        BioReader(path, backend="magic")
    with pytest.raises(ValueError, match="bioformats"):
        BioWriter(tmp_path / "o.ome.tif", backend="magic")


def test_what_cannot_be_read_says_why(tmp_path):
    png = tmp_path / "x.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    for backend in (None, "bioformats"):
        with pytest.raises((FormatError, BackendMissingError), match=r"x\.png"):
            BioReader(png, backend=backend)
    folder = tmp_path / "x.ome.zarr"
    folder.mkdir()
    for backend in (None, "zarr", "zarr3"):
        with pytest.raises(IsADirectoryError):
            BioReader(folder, backend=backend)
    with pytest.raises(IsADirectoryError):
        BioReader(tmp_path)
    for backend in (None, "java", "python", "zarr", "tensorstore"):
        with pytest.raises(FileNotFoundError):
            BioReader(tmp_path / "none.tif", backend=backend)
    for wrong in (None, 5, b""):
        with pytest.raises(SpecError):
            BioReader(wrong)


def test_a_tiff_under_any_name(tmp_path):
    image = coded((50, 60))
    for name in ("x.png", "y", "z.OME.TIF", "w.tif"):
        with BioWriter(tmp_path / name, image=image) as bw:
            bw[:] = image
        np.testing.assert_array_equal(tifffile.imread(tmp_path / name), image)


# ------------------------------------------------------------------ OME-Zarr


def like_bfio(path, image, version):
    """Write a store laid out as bfio does, with zarr-python.

    Chunks of a plane of 1024, level "0" alone. Zarr v2: attributes of version 0.1, without axes
    and transformations; v3: axes, and still no transformations. The OME-XML lies beside.
    """
    root = zarr.create_group(path, zarr_format=version, overwrite=True)
    array = root.create_array(
        "0",
        shape=image.transpose(4, 3, 2, 0, 1).shape,
        chunks=(1, 1, 1, 1024, 1024),
        dtype=image.dtype,
        chunk_key_encoding={"name": "v2" if version == 2 else "default", "separator": "/"},
    )
    array[:] = image.transpose(4, 3, 2, 0, 1)
    multiscale = {"version": "0.1", "name": path.name, "datasets": [{"path": "0"}]}
    multiscale["metadata"] = {"method": "mean"}
    if version == 2:
        root.attrs["multiscales"] = [multiscale]
    else:
        kinds = {"t": "time", "c": "channel"}
        multiscale["axes"] = [{"name": n, "type": kinds.get(n, "space")} for n in "tczyx"]
        del multiscale["version"]
        root.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    y, x, z, c, t = image.shape
    channels = "".join(
        f'<Channel ID="Channel:{i}" Name="ch{i}" SamplesPerPixel="1"/>' for i in range(c)
    )
    (path / "OME").mkdir()
    (path / "OME/METADATA.ome.xml").write_text(
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0" '
        f'Name="cells"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="{image.dtype.name}" '
        f'SizeX="{x}" SizeY="{y}" SizeZ="{z}" SizeC="{c}" SizeT="{t}" PhysicalSizeX="0.5" '
        f'PhysicalSizeXUnit="µm">{channels}<MetadataOnly/></Pixels></Image></OME>'
    )
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("backend", [None, "zarr", "zarr3", "tensorstore", "python", "bioformats"])
def test_reading_what_bfio_wrote(tmp_path, version, backend):
    image = coded((1030, 30, 2, 3, 2))
    path = like_bfio(tmp_path / "a.ome.zarr", image, version)
    assert detect_zarr_format(path) == version
    with BioReader(path, backend=backend) as br:
        assert image.shape == (br.Y, br.X, br.Z, br.C, br.T)
        assert br.dtype == image.dtype
        assert br.channel_names == ["ch0", "ch1", "ch2"]
        assert br.ps_x[0] == 0.5
        assert br.metadata.images[0].pixels.size_x == 30
        assert br._backend_name == "zarr"
        np.testing.assert_array_equal(br[:], image)
        np.testing.assert_array_equal(br[1000:1030, 0:9, 1, 2, 1], image[1000:1030, :9, 1, 2, 1])
        np.testing.assert_array_equal(br[:, :, 0:2:2, 0, 0], image[:, :, :, 0, 0])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(br))[5], image[5:6])
    assert BioReader.image_size(path) == (30, 1030)


@pytest.mark.parametrize("version", [2, 3])
def test_levels_of_a_zarr(tmp_path, version):
    image = coded((90, 70, 1, 2, 1))
    path = like_bfio(tmp_path / "a.ome.zarr", image, version)
    root = zarr.open_group(path, mode="r+")
    root.create_array("1", data=np.ascontiguousarray(image.transpose(4, 3, 2, 0, 1)[..., ::2, ::2]))
    attrs = root.attrs.asdict()
    (attrs if version == 2 else attrs["ome"])["multiscales"][0]["datasets"].append({"path": "1"})
    root.attrs.update(attrs)
    for level, want in ((0, image), (1, image[::2, ::2]), (-1, image[::2, ::2])):
        with BioReader(path, level=level) as br:
            np.testing.assert_array_equal(br[:], want[..., 0])
    with pytest.raises(SpecError, match="has no level 2; it has 2"):
        BioReader(path, level=2)


@pytest.mark.parametrize(
    ("backend", "there", "version"),
    [
        (None, None, 2),
        ("zarr", None, 2),
        ("zarr3", None, 3),
        ("tensorstore", None, 2),
        ("python", None, 2),
        (None, 3, 3),
        (None, 2, 2),
        ("zarr", 3, 2),
    ],
)
def test_writing_a_zarr(tmp_path, backend, there, version):
    image = coded((60, 70, 2, 3, 2))
    path = tmp_path / "a.ome.zarr"
    if there:
        like_bfio(path, image + np.uint16(1), there)
    with BioWriter(path, backend=backend, X=70, Y=60, Z=2, C=3, T=2, dtype=np.uint16) as bw:
        bw.cnames = ["a", "b", "c"]
        bw.ps_x = (0.5, "µm")
        bw[:] = image
    array = zarr.open_group(path, mode="r")["0"]
    assert array.metadata.zarr_format == version
    assert array.chunks[:3] == (1, 1, 1)
    np.testing.assert_array_equal(zarr_pixels(path), image)
    with BioReader(path) as br:
        assert (br.cnames, br.ps_x[0]) == (["a", "b", "c"], 0.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.zarr"]


def test_documented_conversion_to_zarr(tmp_path, path, image):
    with (
        BioReader(path) as br,
        BioWriter(tmp_path / "a.ome.zarr", metadata=br.metadata) as bw,
    ):
        for t in range(br.T):
            for y in range(0, br.Y, 128):
                bw[y : y + 128, :, :, :, t] = br[y : y + 128, :, :, :, t]
    np.testing.assert_array_equal(zarr_pixels(tmp_path / "a.ome.zarr"), image)


def test_nothing_foreign_is_removed(tmp_path):
    folder = tmp_path / "mine.zarr"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for backend in (None, "zarr", "zarr3", "tensorstore"):
        with pytest.raises(OSError, match="no image"):
            BioWriter(folder, backend=backend, image=np.ones((9, 9), "u1"))
    assert (folder / "thesis.txt").read_text() == "years of work"
    image = coded((20, 30))
    store = like_bfio(tmp_path / "a.zarr", image[:, :, None, None, None], 2)

    def fail():
        with BioWriter(store, X=30, Y=20, dtype=np.uint16) as bw:
            bw[:5] = 0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    np.testing.assert_array_equal(zarr_pixels(store)[..., 0, 0, 0], image)
    BioWriter(store, X=30, Y=20, dtype=np.uint16).close()  # nothing was written
    np.testing.assert_array_equal(zarr_pixels(store)[..., 0, 0, 0], image)


@pytest.mark.parametrize("version", [2, 3])
def test_append_goes_on_with_what_is_there(tmp_path, version):
    image = coded((60, 70, 2, 3, 2))
    path = like_bfio(tmp_path / "a.ome.zarr", image, version)
    with BioWriter(path, append=True) as bw:
        assert (bw.shape, bw.dtype) == (image.shape, image.dtype)
        bw[10:20, 5:60, 1, 2, 1] = np.full((10, 55), 7, np.uint16)
    want = image.copy()
    want[10:20, 5:60, 1, 2, 1] = 7
    np.testing.assert_array_equal(zarr_pixels(path), want)
    assert detect_zarr_format(path) == version
    with pytest.raises(SpecError, match="append=True"):
        BioWriter(path, append=True, X=71)[:, :, 0, 0, 0] = 1
    np.testing.assert_array_equal(zarr_pixels(path), want)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.zarr"]
    with BioWriter(tmp_path / "new.ome.zarr", append=True, image=image) as bw:
        bw[:] = image
    np.testing.assert_array_equal(zarr_pixels(tmp_path / "new.ome.zarr"), image)


# ------------------------------------------------------------------ level, metadata


def pyramid(path, images):
    """Write a file of several images, each with a level of half the size."""
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for n, image in enumerate(images):
            options = {"tile": (64, 64), "photometric": "minisblack"}
            meta = {"axes": "CYX", "Name": f"scene {n}", "PhysicalSizeX": 0.5}
            tif.write(image, subifds=1, metadata=meta, **options)
            tif.write(image[:, ::2, ::2], subfiletype=1, **options)
    return path


def test_levels_count_on_from_image_to_image(tmp_path):
    images = [coded((2, 200, 300), seed=1), coded((2, 120, 100), seed=2)]
    file = pyramid(tmp_path / "p.ome.tif", images)
    wanted = [images[0], images[0][:, ::2, ::2], images[1], images[1][:, ::2, ::2]]
    for level, expected in enumerate(wanted):
        with BioReader(file, level=level) as br:
            assert expected.shape[1:] == (br.Y, br.X)
            np.testing.assert_array_equal(br[:], expected.transpose(1, 2, 0)[:, :, None])
            assert len(br.metadata.images) == 1
            pixels = br.metadata.images[0].pixels
            assert (pixels.size_y, pixels.size_x) == expected.shape[1:]
            assert br.metadata.images[0].name == f"scene {level // 2}"
            copied = pickle.loads(pickle.dumps(br))
            assert copied.shape == br.shape
            copied.close()
    with BioReader(file, level=-1) as br:
        assert br.X == 150
        assert br.ps_x[0] == 1.0
    with BioReader(file) as br:
        assert len(br.metadata.images) == 2
        assert br.X == 300
    for level in (4, -3, "1", 1.0):
        with pytest.raises(ValueError, match="level"):
            BioReader(file, level=level)


def test_broken_metadata_are_mended_unless_that_is_not_wanted(tmp_path):
    file = make(tmp_path / "x.ome.tif", coded((30, 40)), tile=(16, 16))
    xml = tifffile.tiffcomment(file)
    tifffile.tiffcomment(file, xml.replace("<Pixels", "<Pixels Nonsense='&#0;'"))
    with BioReader(file) as br:
        assert br.metadata.images[0].pixels.size_x == 40
    with pytest.raises(FormatError, match="clean_metadata"):
        BioReader(file, clean_metadata=False)
    tifffile.tiffcomment(file, xml)
    with BioReader(file, clean_metadata=False) as br:
        assert br.X == 40


def test_of_several_images_in_the_metadata_the_first_is_written(tmp_path, caplog):
    images = [coded((2, 200, 300), seed=1), coded((2, 120, 100), seed=2)]
    file = pyramid(tmp_path / "p.ome.tif", images)
    out = tmp_path / "out.ome.tif"
    with BioReader(file) as br:
        meta = br.metadata
        with BioWriter(out, metadata=meta) as bw:
            bw[:] = br[:]
    assert "only the first" in caplog.text
    assert len(meta.images) == 2  # it is copied
    with BioReader(out) as br:
        assert len(br.metadata.images) == 1
        assert br.metadata.images[0].name == "out.ome.tif"
        np.testing.assert_array_equal(br[:], images[0].transpose(1, 2, 0)[:, :, None])


def test_a_change_in_the_metadata_counts_even_at_the_last_moment(tmp_path):
    with BioWriter(tmp_path / "o.ome.tif", X=30, Y=20) as bw:
        bw.metadata.images[0].pixels.size_z = 3
        bw._backend._init_writer()
    assert stored(tmp_path / "o.ome.tif").shape == (20, 30, 3, 1, 1)


def test_the_metadata_object_of_a_writer_is_alive(tmp_path):
    out = tmp_path / "out.ome.tif"
    with BioWriter(out, X=30, Y=20, dtype=np.uint16) as bw:
        metadata = bw.metadata
        assert metadata is bw.metadata
        bw.Z = 4
        assert metadata.images[0].pixels.size_z == 4
        metadata.images[0].pixels.size_z = 3
        metadata.images[0].description = "by hand"
        assert bw.Z == 3
        bw.C = 2
        bw.cnames = ["one", "two"]
        assert [c.name for c in metadata.images[0].pixels.channels] == ["one", "two"]
        metadata.images[0].pixels.channels[1].name = "deux"
        bw[:] = coded((20, 30, 3, 2))
        with pytest.raises(AttributeError):
            bw.metadata = metadata
    with BioReader(out) as br:
        assert br.cnames == ["one", "deux"]
        assert br.metadata.images[0].description == "by hand"
        np.testing.assert_array_equal(br[:], coded((20, 30, 3, 2)))


# ------------------------------------------------------------------ the tile iterator


def tiles_of(plane, tile, stride):
    """The tiles bfio documents, in order: (y, x, pixels)."""
    mirrored = not set(tile) & set(stride)
    before = [(t - s) // 2 if mirrored else 0 for t, s in zip(tile, stride, strict=True)]
    mode = "symmetric" if mirrored else "constant"
    padded = np.pad(plane, [(b, t + s) for b, t, s in zip(before, tile, stride, strict=True)], mode)
    for x in range(-before[1], plane.shape[1], stride[1]):
        for y in range(-before[0], plane.shape[0], stride[0]):
            yield y, x, padded[y + before[0] :, x + before[1] :][: tile[0], : tile[1]]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("tile", "stride", "batch"),
    [
        ([256, 256], None, None),
        ([256, 256], [200, 200], None),
        ((64, 32), (60, 20), 3),
        ((64, 32), (64, 20), 1),
        ([512, 512], [400, 400], 1),
    ],
)
def test_the_tile_iterator(br, image, tile, stride, batch):
    plane = image[..., 0, 0, 0]
    expected = list(tiles_of(plane, tile, stride or tile))
    found = []
    for tiles, ind in br(tile_size=tile, tile_stride=stride, batch_size=batch):
        assert tiles.shape[1:] == (*tile, 1)
        assert tiles.shape[0] <= (batch or 32)
        X, Y, Z, C, T = ind
        assert len(X) == len(Y) == len(Z) == len(C) == len(T) == tiles.shape[0]
        for i in range(tiles.shape[0]):
            assert X[i][1] - X[i][0] == tile[1]
            assert Y[i][1] - Y[i][0] == tile[0]
            found.append((Y[i][0], X[i][0], tiles[i, :, :, 0]))
    assert [f[:2] for f in found] == [e[:2] for e in expected]
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(f[2], e[2])
    again = [t for tiles, _ in br.iterate(tile_size=tile, tile_stride=stride) for t in tiles]
    assert len(again) == len(expected)


def test_two_iterators_of_two_readers_do_not_mix(path, plane):
    with BioReader(path) as one, BioReader(plane) as two:
        for (a, _), (b, _) in zip(one([128, 128]), two([128, 128]), strict=True):
            assert a.shape == b.shape
            np.testing.assert_array_equal(a, b)  # the first planes of both are the same


def test_the_largest_batch(br, tmp_path):
    for args, expected in [
        (([256, 256],), 8),
        (([256, 256], [200, 200]), 8),
        (([100, 2048],), 3),
        (((50, 50), (50, 50)), 120),
    ]:
        assert br.maximum_batch_size(*args) == expected
    with pytest.raises(ValueError, match="batch_size"):
        br([256, 256], batch_size=9)
    with pytest.raises(ValueError, match="tiles"):
        iter(br)
    bw = BioWriter(tmp_path / "o.ome.tif", X=400, Y=300)
    assert bw.maximum_batch_size([256, 256]) == 8


# ------------------------------------------------------------------ writing: properties


def test_settings_as_keywords_and_attributes_in_any_order(tmp_path):
    out = tmp_path / "o.ome.tif"
    with BioWriter(
        out, channel_names=["a", "b"], dtype=np.float32, X=30, y=20, C=2, ps_x=(0.5, "nm")
    ) as bw:
        bw.z = 2
        bw.ps_y = (2, "mm")
        bw.ps_z = (None, None)
        bw.T = 1.0
        assert not bw.read_only
        assert bw.shape == (20, 30, 2, 2)
        assert bw.bpp == 4
        bw[:] = coded((20, 30, 2, 2), "f4")
        assert bw.read_only
    with BioReader(out) as br:
        assert br.cnames == ["a", "b"]
        assert br.ps_x[0] == 0.5
        assert br.ps_y[1].value == "mm"
        assert br.ps_z[0] is None
        np.testing.assert_array_equal(br[:], coded((20, 30, 2, 2), "f4"))


def test_names_of_bfio_1_set(tmp_path):
    out = tmp_path / "o.ome.tif"
    image = coded((20, 30, 3, 2), "f4")
    bw = BioWriter(str(out))
    bw.num_x(30)
    bw.num_y(20)
    bw.num_z(Z=3)
    bw.num_c(2)
    bw.num_t(1)
    bw.pixel_type("float")
    bw.channel_names(["ZO1", "Empty"])
    bw.physical_size_x(0.5, "µm")
    assert (bw.num_x(), bw.pixel_type()) == (30, np.float32)
    for z in range(3):
        bw.write_image(image[:, :, z : z + 1, :, None], Z=[z, z + 1])
    bw.close_image()
    np.testing.assert_array_equal(stored(out)[..., 0], image)
    with BioReader(out) as br:
        assert br.channel_names() == ["ZO1", "Empty"]
        assert br.physical_size_x()[0] == 0.5


def test_a_shape_sets_the_axes_it_names(tmp_path):
    bw = BioWriter(tmp_path / "o.ome.tif", Z=4)
    bw.shape = (5, 6)
    assert bw.shape == (5, 6, 4)
    bw.shape = (7, 8, 1, 2, 3)
    assert bw.shape == (7, 8, 1, 2, 3)


def test_image_says_shape_and_type(tmp_path):
    image = coded((20, 30, 2), "i2")
    with BioWriter(tmp_path / "a.ome.tif", image=image) as bw:
        assert bw.shape == (20, 30, 2)
        assert bw.dtype == np.int16
        bw[:] = image
    np.testing.assert_array_equal(stored(tmp_path / "a.ome.tif")[..., 0, 0], image)
    with BioReader(tmp_path / "a.ome.tif") as br:
        other = BioWriter(tmp_path / "b.ome.tif", metadata=br.metadata, image=np.zeros((3, 3)))
        assert other.shape == (20, 30, 2)  # metadata come first
        assert other.dtype == np.int16


def test_the_metadata_given_are_a_start_only(tmp_path, path):
    with BioReader(path) as br:
        metadata = br.metadata.model_copy(deep=True)
        with BioWriter(tmp_path / "o.ome.tif", metadata=metadata) as bw:
            metadata.images[0].description = "too late"
            metadata.images[0].pixels.size_z = 99
            bw.ps_x = br.ps_z  # (None, µm): unknown, so what there is stays
            assert bw.ps_x[0] == 0.5
            bw.ps_z = (3, "µm")
            bw[:] = br[:]
        assert br.metadata.images[0].pixels.physical_size_z is None
    with BioReader(tmp_path / "o.ome.tif") as br:
        assert br.shape == SHAPE
        assert br.metadata.images[0].description is None
        assert br.ps_x[0] == 0.5
        assert br.ps_z[0] == 3


def test_fewer_channels_than_the_metadata_have(tmp_path, path):
    with BioReader(path) as br:
        bw = BioWriter(tmp_path / "o.ome.tif", metadata=br.metadata, dtype=np.float32)
        bw.C = 2
        assert bw.cnames == ["a", "b"]
        bw.C = 3
        assert bw.cnames == ["a", "b", None]
        bw.cnames = ["x", "y", "z"]
        bw.C = 1
        assert bw.cnames == ["x"]
        with pytest.raises(ValueError, match="C=1"):
            bw.cnames = ["x", "y"]


def test_metadata_of_rgb_for_an_image_of_one_channel(tmp_path):
    rgb = tmp_path / "rgb.ome.tif"
    pixels = coded((30, 40, 3), "u1")
    tifffile.imwrite(rgb, pixels, photometric="rgb", tile=(16, 16))
    with BioReader(rgb) as br:
        np.testing.assert_array_equal(br[:], pixels[:, :, None])
        with BioWriter(tmp_path / "o.ome.tif", metadata=br.metadata) as bw:
            bw.C = 1
            bw[:] = br[:, :, 0, 1, 0]
        np.testing.assert_array_equal(stored(tmp_path / "o.ome.tif")[..., 0, 0, 0], pixels[..., 1])
        with BioWriter(tmp_path / "all.ome.tif", metadata=br.metadata) as bw:
            for c in range(br.C):
                bw[:, :, 0, c, 0] = br[:, :, 0, c, 0]
    with BioReader(tmp_path / "all.ome.tif") as br:
        np.testing.assert_array_equal(br[:], pixels[:, :, None])


def test_unknown_keywords_warn_and_known_options_work(tmp_path):
    out = tmp_path / "o.ome.tif"
    with pytest.warns(UserWarning, match="Xx"):
        bw = BioWriter(out, image=coded((40, 50)), Xx=5, compression="lzw", tile_size=16, append=1)
    bw[:] = coded((40, 50))
    bw.close()
    with tifffile.TiffFile(out) as tif:
        assert tif.pages[0].compression == tifffile.COMPRESSION.LZW
        assert tif.pages[0].tilewidth == 16


def test_append_writes_anew(tmp_path):
    out = tmp_path / "o.ome.tif"
    for n in (1, 2):
        with BioWriter(out, X=10, Y=10, append=True) as bw:
            assert bw.append
            bw[:] = np.full((10, 10), n, np.uint8)
    assert (tifffile.imread(out) == 2).all()


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_every_pixel_type_of_bfio(tmp_path, dtype):
    image = coded((40, 30), dtype)
    for name, given in [("a", image), ("b", image.astype(image.dtype.newbyteorder(">")))]:
        out = tmp_path / f"{name}.ome.tif"
        with BioWriter(out, X=30, Y=40, dtype=np.dtype(dtype).type) as bw:
            bw[:] = given
        np.testing.assert_array_equal(tifffile.imread(out), image)
        assert tifffile.imread(out).dtype == image.dtype


def test_types_that_ome_does_not_know(tmp_path, caplog):
    out = tmp_path / "o.ome.tif"
    labels = coded((40, 30), "u2").astype(np.int64)
    with BioWriter(out, image=labels) as bw:
        assert bw.dtype == np.float64
        bw[:] = labels
    assert "float64" in caplog.text
    np.testing.assert_array_equal(tifffile.imread(out), labels)
    bw = BioWriter(out, dtype=np.uint64)
    assert bw.dtype == np.float64
    bw.dtype = np.int64
    assert bw.dtype == np.float64


def test_pixels_of_another_type_are_stored_only_where_they_fit(tmp_path):
    out = tmp_path / "o.ome.tif"
    with BioWriter(out, X=30, Y=40, dtype=np.uint8) as bw:
        bw[:] = np.full((40, 30), 200, np.int64)
        for wrong in (np.full((40, 30), 256), np.full((40, 30), 0.5), np.full((40, 30), -1)):
            with pytest.raises(PixelTypeError):
                bw[:] = wrong
    assert (tifffile.imread(out) == 200).all()


def test_what_was_forgotten_is_taken_from_the_image(tmp_path):
    image = coded((40, 30), "u2")
    with BioWriter(tmp_path / "a.ome.tif", X=30, Y=40) as bw:  # no dtype
        bw[:] = image
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.ome.tif"), image)
    with BioWriter(tmp_path / "b.ome.tif") as bw:  # nothing at all
        bw.write(image)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.ome.tif"), image)


# ------------------------------------------------------------------ writing: pixels


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"X": 0, "Y": 0, "Z": 0},
        {"X": [0], "Y": [0], "Z": [0], "C": [0, 1], "T": [0]},
        {"X": np.int64(0), "Y": (0,), "Z": [0, 2]},
    ],
)
def test_write_at_a_place(tmp_path, where):
    image = coded((40, 30, 2, 2, 1))
    given = {k: list(v) if isinstance(v, list) else v for k, v in where.items()}
    with BioWriter(tmp_path / "o.ome.tif", X=30, Y=40, Z=2, C=2, dtype=np.uint16) as bw:
        bw.write(image, **given)
    assert given == where  # nobody's list is changed
    np.testing.assert_array_equal(stored(tmp_path / "o.ome.tif"), image)


def test_write_by_keyword_and_away_from_the_corner(tmp_path):
    image = coded((10, 12, 1, 1, 1), "u1")
    with BioWriter(tmp_path / "o.ome.tif", X=30, Y=40, Z=2, C=3) as bw:
        bw.write(image=image, X=[7], Y=[3], Z=[1], C=[2])
    expected = np.zeros((40, 30, 2, 3, 1), np.uint8)
    expected[3:13, 7:19, 1:2, 2:3] = image
    np.testing.assert_array_equal(stored(tmp_path / "o.ome.tif"), expected)


def test_what_does_not_fit_is_refused(tmp_path):
    with BioWriter(tmp_path / "o.ome.tif", X=30, Y=40, dtype=np.uint8) as bw:
        bw[:] = np.ones((40, 30), np.uint8)
        for key, shape in [
            (np.s_[:], (30, 40)),
            (np.s_[0:50, :, 0, 0, 0], (50, 30)),
            (np.s_[0:10, 0:10], (10, 11)),
        ]:
            with pytest.raises((ValueError, IndexError)):
                bw[key] = np.zeros(shape, np.uint8)
        with pytest.raises(IndexError):
            bw.write(np.zeros((40, 30, 1, 1, 1), np.uint8), X=1)
        with pytest.raises(IndexError):
            bw[40, 0] = 0
    assert (tifffile.imread(tmp_path / "o.ome.tif") == 1).all()


def test_after_the_first_pixel_nothing_can_be_set(tmp_path):
    with BioWriter(tmp_path / "o.ome.tif", X=30, Y=40) as bw:
        bw[:] = np.zeros((40, 30), np.uint8)
        for name, value in [
            ("X", 77),
            ("dtype", np.uint16),
            ("cnames", ["a"]),
            ("ps_x", (1, "nm")),
        ]:
            with pytest.raises(ReadOnlyError):
                setattr(bw, name, value)
        assert bw.X == 30
    with pytest.raises(ClosedError):
        bw[:] = np.zeros((40, 30), np.uint8)


# ------------------------------------------------------------------ when the file appears


def fill(path, value=1, **options):
    bw = BioWriter(path, X=10, Y=10, **options)
    bw[:] = np.full((10, 10), value, np.uint8)
    return bw


def test_the_file_appears_on_close_and_replaces_another(tmp_path):
    out = tmp_path / "o.ome.tif"
    fill(out, 1).close()
    bw = fill(out, 2)
    assert (tifffile.imread(out) == 1).all()
    bw.close()
    assert (tifffile.imread(out) == 2).all()
    bw.close()
    assert [p.name for p in tmp_path.iterdir()] == ["o.ome.tif"]


def test_a_writer_that_is_dropped_completes_its_file(tmp_path):
    out = tmp_path / "o.ome.tif"
    bw = fill(out)
    del bw
    assert (tifffile.imread(out) == 1).all()


def test_a_writer_that_is_open_at_the_end_of_the_program_completes_its_file(tmp_path):
    for name, keep in [("global", "bw"), ("hidden", "import builtins; builtins.x = bw")]:
        out = tmp_path / f"{name}.ome.tif"
        run(f"""
            import numpy as np
            from bioio_tk.compat.bfio import BioWriter
            bw = BioWriter({str(out)!r}, X=700, Y=500, dtype=np.uint16, max_workers=4, tile_size=64)
            bw[:490, :690] = np.full((490, 690, 1, 1, 1), 7, np.uint16)
            {keep}
        """)
        expected = np.zeros((500, 700), np.uint16)
        expected[:490, :690] = 7
        np.testing.assert_array_equal(tifffile.imread(out), expected)


def test_a_body_that_raises_leaves_no_file(tmp_path):
    out = tmp_path / "o.ome.tif"
    with pytest.raises(KeyError), fill(out) as _:
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_nothing_written_nothing_made(tmp_path):
    with BioWriter(tmp_path / "o.ome.tif", X=10, Y=10):
        pass
    assert list(tmp_path.iterdir()) == []


def test_init_writer_makes_an_empty_image(tmp_path):
    with BioWriter(tmp_path / "o.ome.tif", X=10, Y=12, Z=2) as writer:
        writer.dtype = np.uint32
        writer.channel_names = ["label"]
        writer._backend._init_writer()
        assert writer.read_only
    assert stored(tmp_path / "o.ome.tif").shape == (12, 10, 2, 1, 1)
    assert not stored(tmp_path / "o.ome.tif").any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_ends_leaves_the_parents_file_alone(tmp_path):
    out = tmp_path / "o.ome.tif"
    run(f"""
        import os, sys
        import numpy as np
        from bioio_tk.compat.bfio import BioWriter
        bw = BioWriter({str(out)!r}, X=10, Y=10)
        bw[:5] = np.ones((5, 10, 1, 1, 1), np.uint8)
        if not os.fork():
            sys.exit(0)
        os.wait()
        assert not os.path.exists({str(out)!r})
        bw[5:] = np.ones((5, 10, 1, 1, 1), np.uint8)
        bw.close()
    """)
    assert (tifffile.imread(out) == 1).all()


def test_a_writer_that_cannot_be_made_leaves_no_trace(tmp_path):
    with pytest.raises(FileNotFoundError):
        BioWriter(tmp_path / "none" / "o.ome.tif")
    with pytest.raises(SpecError):
        BioWriter(tmp_path / "o.ome.tif", X=0)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ what bfio got wrong in silence


def test_planes_one_by_one_with_the_java_backend(tmp_path, image):
    out = tmp_path / "o.ome.tif"
    with BioWriter(out, backend="bioformats", image=image) as bw:
        for z, c, t in product(range(3), range(4), range(2)):
            bw[:, :, z, c, t] = image[:, :, z, c, t]
    np.testing.assert_array_equal(stored(out), image)


def test_a_reader_shared_by_threads(br, image):
    def read(n):
        rng = np.random.default_rng(n)
        y, x = rng.integers(0, 200, 2)
        if n % 3:
            return np.array_equal(
                br[y : y + 90, x : x + 90, 1, 2, 1], image[y : y + 90, x : x + 90, 1, 2, 1]
            )
        return np.array_equal(br[y : y + 5], image[y : y + 5])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(100)))


def test_unaligned_and_partial_writes(tmp_path):
    image = coded((1500, 1600), "u2")
    out = tmp_path / "o.ome.tif"
    with BioWriter(out, X=1600, Y=1500, dtype=np.uint16) as bw:
        bw[512:1500, 512:1536] = image[512:1500, 512:1536]
        bw[0:512] = image[:512]
        bw[512:1500, 1536:1600] = image[512:1500, 1536:1600]
        for y in range(512, 1500, 300):
            bw[y : min(1500, y + 300), 0:512] = image[y : y + 300, 0:512]
    np.testing.assert_array_equal(tifffile.imread(out), image)


def test_a_part_of_a_tile_leaves_the_rest_0(tmp_path):
    files = []
    for n in range(3):
        with BioWriter(tmp_path / f"{n}.ome.tif", X=300, Y=300) as bw:
            bw[100:200, 100:200, 0, 0, 0] = np.full((100, 100), 9, np.uint8)
        files.append(tifffile.imread(tmp_path / f"{n}.ome.tif"))
    expected = np.zeros((300, 300), np.uint8)
    expected[100:200, 100:200] = 9
    for found in files:
        np.testing.assert_array_equal(found, expected)
    with BioReader(tmp_path / "0.ome.tif") as br:
        np.testing.assert_array_equal(br[:], expected)


@pytest.mark.parametrize("size", [1, 1024, 1025, 2049])
def test_sizes_around_the_tile(tmp_path, size):
    image = coded((size, 7, 2), "u1")
    out = tmp_path / "o.ome.tif"
    with BioWriter(out, image=image, max_workers=4) as bw:
        for y in range(0, bw.Y, 1024):
            bw[y : min(bw.Y, y + 1024)] = image[y : y + 1024]
    np.testing.assert_array_equal(stored(out)[..., 0, 0], image)
    with BioReader(out) as br:
        np.testing.assert_array_equal(br[:], image)


def test_a_file_in_another_order_of_planes(tmp_path):
    image = coded((50, 60, 3, 2), "u2")  # tifffile writes Z before C when told so
    out = tmp_path / "o.ome.tif"
    tifffile.imwrite(out, image.transpose(2, 3, 0, 1), metadata={"axes": "ZCYX"}, tile=(2048, 2048))
    with BioReader(out, backend="python") as br:
        np.testing.assert_array_equal(br[:], image)


def test_three_samples_are_three_channels_everywhere(tmp_path):
    pixels = coded((30, 40, 1, 3), "u1")
    out = tmp_path / "o.ome.tif"
    with BioWriter(out, X=40, Y=30, C=3, spp=3, dtype=np.uint8) as bw:
        bw[:] = pixels
    np.testing.assert_array_equal(tifffile.imread(out), pixels[:, :, 0])
    with BioReader(out) as br:
        assert br.spp == br.metadata.images[0].pixels.channels[0].samples_per_pixel == 3
        np.testing.assert_array_equal(br[:], pixels)


def test_pixel_size_in_one_axis_or_very_small_or_no_length(tmp_path):
    for name, size in [("ps_x", (0.1, "µm")), ("ps_y", (1e-4, "nm")), ("ps_x", (2, "pixel"))]:
        with BioWriter(tmp_path / "o.ome.tif", X=100, Y=10, **{name: size}) as bw:
            bw[:] = np.zeros((10, 100), np.uint8)
        with BioReader(tmp_path / "o.ome.tif") as br:
            value, unit = getattr(br, name)
            assert (value, unit.value) == size


# ------------------------------------------------------------------ utils


def test_pixels_per_cm():
    from ome_types.model import UnitsLength

    assert pixels_per_cm(1000, 5, UnitsLength.MILLIMETER) == 2000
    assert pixels_per_cm(1000, 1000 * 0.5, UnitsLength.MICROMETER) == 20_000
    assert pixels_per_cm(1, 0.1, UnitsLength.MICROMETER) == 100_000
    assert pixels_per_cm(300, 1, UnitsLength.INCH) == 118
    assert pixels_per_cm(10**9, 1, UnitsLength.MEGAMETER) == 10
    assert pixels_per_cm(120, 1, UnitsLength.LINE) == 566
    assert pixels_per_cm(10, 2) == 5
    for wrong in (UnitsLength.PIXEL, UnitsLength.REFERENCEFRAME, "parrots"):
        with pytest.raises(ValueError):
            pixels_per_cm(1, 1, wrong)
    with pytest.raises(ValueError):
        pixels_per_cm(1, 0)


def test_detect_zarr_format(tmp_path):
    def store(name, **files):
        for file, text in files.items():
            target = tmp_path / name / file.replace("__", "/").replace("_dot_", ".")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return tmp_path / name

    assert detect_zarr_format(store("a", zarr_dot_json='{"zarr_format": 3}')) == 3
    assert detect_zarr_format(str(store("b", _dot_zgroup="{}"))) == 2
    assert detect_zarr_format(store("c", _dot_zarray="{}")) == 2
    assert detect_zarr_format(store("d", x__zarr_dot_json='{"zarr_format": 3}')) == 3
    assert detect_zarr_format(store("e", x___dot_zarray="{}")) == 2
    assert detect_zarr_format(store("f", zarr_dot_json="not json")) == 0
    assert detect_zarr_format(store("g", readme="x")) == 0
    assert detect_zarr_format(tmp_path / "none") == 0
    assert detect_zarr_format(tmp_path / "g" / "readme") == 0


def test_cleaning_ome_xml():
    import ome_types

    good = ome_types.to_xml(
        ome_types.OME.model_validate(
            {
                "images": [
                    {
                        "pixels": {
                            "dimension_order": "XYZCT",
                            "type": "uint8",
                            "size_x": 3,
                            "size_y": 2,
                            "size_z": 1,
                            "size_c": 1,
                            "size_t": 1,
                            "metadata_only": True,
                        }
                    }
                ]
            }
        )
    )
    assert ome_types.from_xml(clean_ome_xml_for_known_issues(good)) == ome_types.from_xml(good)
    bad = good.replace('SizeX="3"', 'SizeX="3" Nonsense="&#0;"').replace("Pixels:", "7:")
    mended = ome_types.from_xml(clean_ome_xml_for_known_issues(bad).encode())
    assert mended.images[0].pixels.size_x == 3
    with pytest.raises(ValueError):
        clean_ome_xml_for_known_issues("no xml at all")


# ------------------------------------------------------------------ what plugins do


def blur(block):
    """A filter that needs a rim of one pixel."""
    padded = np.pad(block.astype(np.uint32), 1, "edge")
    total = sum(
        padded[y : y + block.shape[0], x : x + block.shape[1]] for y in range(3) for x in range(3)
    )
    return (total // 9).astype(block.dtype)


@pytest.fixture
def big(tmp_path):
    return make(tmp_path / "big.ome.tif", coded((700, 500)), tile=(256, 256))


def test_pattern_1_read_and_squeeze(plane):
    with BioReader(plane) as br:
        img = br[:].squeeze()
    np.testing.assert_array_equal(img, coded((300, 400)))


def test_pattern_2_write_an_array(tmp_path):
    a = coded((70, 50), "f4")
    with BioWriter(tmp_path / "o.ome.tif") as bw:
        bw.dtype = a.dtype
        bw.X = a.shape[1]
        bw.Y = a.shape[0]
        bw.Z = bw.C = bw.T = 1
        bw[:, :, 0, 0, 0] = a[:]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o.ome.tif"), a)


def test_pattern_3_copy_the_header(tmp_path, path, image):
    with BioReader(path) as br, BioWriter(tmp_path / "o.ome.tif", metadata=br.metadata) as bw:
        bw.dtype = np.float32
        bw.C = 1
        bw[:] = br[..., 2:3, :].astype(bw.dtype)
    with BioReader(tmp_path / "o.ome.tif") as br:
        assert br.ps_x[0] == 0.5
        np.testing.assert_array_equal(br[:], image[:, :, :, 2:3].astype(np.float32))


@pytest.mark.parametrize("T", [128, 1024])
def test_pattern_4_filter_tile_by_tile(tmp_path, big, T):
    with BioReader(big) as br, BioWriter(tmp_path / "o.ome.tif", metadata=br.metadata) as bw:
        for y in range(0, br.Y, T):
            y_max = min(br.Y, y + T)
            for x in range(0, br.X, T):
                x_max = min(br.X, x + T)
                bw[y:y_max, x:x_max, 0, 0, 0] = br[y:y_max, x:x_max, 0, 0, 0] // 2
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o.ome.tif"), coded((700, 500)) // 2)


def test_pattern_5_filter_with_a_halo(tmp_path, big):
    def work(y, x):
        with BioReader(big) as mine:
            y0, x0 = max(0, y - pad), max(0, x - pad)
            y1, x1 = min(mine.Y, y + step + pad), min(mine.X, x + step + pad)
            tile = mine[y0:y1, x0:x1, 0:1, 0, 0]
        result = blur(tile)[y - y0 :, x - x0 :][:step, :step]
        bw[y : y + result.shape[0], x : x + result.shape[1], 0:1, 0, 0] = result

    with BioReader(big) as br:
        metadata = br.metadata
    with BioWriter(tmp_path / "o.ome.tif", metadata=metadata) as bw:
        assert br.shape == bw.shape
        step, pad = br._TILE_SIZE // 8, 3
        with ThreadPoolExecutor(4) as pool:
            places = product(range(0, br.shape[0], step), range(0, br.shape[1], step))
            list(pool.map(lambda place: work(*place), places))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o.ome.tif"), blur(coded((700, 500))))


def test_pattern_6_one_file_for_each_plane(tmp_path, path, image):
    with BioReader(path, max_workers=2) as br:
        for t, c, z in product(range(br.T), range(br.C), range(br.Z)):
            name = tmp_path / Path(path).name.replace(".ome.tif", f"_c{c}_t{t}_z{z}.ome.tif")
            with BioWriter(name, metadata=br.metadata, max_workers=2) as bw:
                bw.Z = 1
                bw.C = 1
                bw.T = 1
                bw[:, :, 0, 0, 0] = br[:, :, z, c, t]
            np.testing.assert_array_equal(tifffile.imread(name), image[:, :, z, c, t])
    assert len(list(tmp_path.glob("five_c*_t*_z*.ome.tif"))) == 24


def test_pattern_7_count_the_series_and_open_each(tmp_path):
    images = [coded((2, 60, 70), seed=1), coded((2, 40, 50), seed=2), coded((2, 30, 90), seed=3)]
    file = tmp_path / "series.ome.tif"
    with tifffile.TiffWriter(file) as tif:
        for image in images:
            tif.write(image, metadata={"axes": "CYX"}, photometric="minisblack")
    with BioReader(file, backend="bioformats") as br:
        num_series = len(br.metadata.images)
    assert num_series == 3
    for i in range(num_series):
        out = tmp_path / f"out_s{i}.ome.tif"
        with (
            BioReader(file, backend="bioformats", level=i) as br,
            BioWriter(out, metadata=br.metadata) as bw,
        ):
            bw[:] = br[:]
        np.testing.assert_array_equal(stored(out)[:, :, 0, :, 0], images[i].transpose(1, 2, 0))


def test_pattern_8_stack_files(tmp_path):
    planes = [coded((60, 70), seed=n) for n in range(5)]
    files = [make(tmp_path / f"z{n}.ome.tif", p, tile=(32, 32)) for n, p in enumerate(planes)]
    with BioReader(files[0]) as br:
        metadata = br.metadata
        ps_z = br.ps_z
        if None in ps_z:
            ps_z = br.ps_x

    def add(z):
        with BioReader(files[z], max_workers=1) as br:
            bw[:, :, z : z + 1, 0, 0] = br[:, :, 0:1, 0, 0]

    with BioWriter(tmp_path / "o.ome.tif", metadata=metadata, Z=len(files)) as bw:
        bw.ps_z = ps_z
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(add, range(len(files))))
    np.testing.assert_array_equal(stored(tmp_path / "o.ome.tif")[..., 0, 0], np.dstack(planes))


def test_pattern_8_as_it_was_in_bfio_1(tmp_path):
    planes = [coded((60, 70), seed=n) for n in range(3)]
    files = [make(tmp_path / f"z{n}.ome.tif", p, tile=(32, 32)) for n, p in enumerate(planes)]
    br = BioReader(str(files[0]))
    bw = BioWriter(str(tmp_path / "o.ome.tif"), metadata=br.read_metadata())
    bw.num_z(Z=len(files))
    del br
    for i, file in enumerate(files):
        br = BioReader(str(file))
        bw.write_image(br.read_image(), Z=[i, i + 1])
        del br
    bw.close_image()
    del bw
    np.testing.assert_array_equal(stored(tmp_path / "o.ome.tif")[..., 0, 0], np.dstack(planes))


def test_pattern_9_assemble_a_mosaic(tmp_path):
    size, chunk = 300, 256
    fovs = {
        (r * size, c * size): make(
            tmp_path / f"r{r}c{c}.ome.tif", coded((size, size), seed=r * 3 + c), tile=(128, 128)
        )
        for r, c in product(range(2), range(3))
    }
    width, height = 3 * size, 2 * size
    with BioReader(next(iter(fovs.values()))) as br:
        metadata = br.metadata

    def assemble(y, x):
        y2, x2 = min(y + chunk, height), min(x + chunk, width)
        template = np.zeros((y2 - y, x2 - x, 1, 1, 1), np.uint16)
        for (fy, fx), file in fovs.items():
            ya, yb = max(y, fy), min(y2, fy + size)
            xa, xb = max(x, fx), min(x2, fx + size)
            if ya < yb and xa < xb:
                with BioReader(file, max_workers=2) as br:
                    part = br.read_image(X=[xa - fx, xb - fx], Y=[ya - fy, yb - fy])
                template[ya - y : yb - y, xa - x : xb - x] = part
        bw.max_workers = 3
        bw[y:y2, x:x2, 0:1, 0, 0] = template

    with BioWriter(tmp_path / "o.ome.tif", metadata=metadata, backend="python") as bw:
        bw.x = width
        bw.y = height
        bw._CHUNK_SIZE = chunk
        with ThreadPoolExecutor(3) as pool:
            places = product(range(0, height, chunk), range(0, width, chunk))
            list(pool.map(lambda place: assemble(*place), places))
    rows = [np.hstack([coded((size, size), seed=r * 3 + c) for c in range(3)]) for r in range(2)]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o.ome.tif"), np.vstack(rows))


def test_pattern_10_projection(tmp_path, path, image):
    tile = 128
    with BioReader(path) as br, BioWriter(tmp_path / "o.ome.tif", metadata=br.metadata) as bw:
        bw.Z = bw.C = bw.T = 1
        for x in range(0, br.X, tile):
            x2 = min(br.X, x + tile)
            for y in range(0, br.Y, tile):
                y2 = min(br.Y, y + tile)
                out = np.zeros((y2 - y, x2 - x), br.dtype)
                for z in range(0, br.Z, 2):
                    z2 = min(br.Z, z + 2)
                    block = br[y:y2, x:x2, z:z2, 0, 0].reshape(y2 - y, x2 - x, z2 - z)
                    out = np.dstack((out, np.max(block, axis=2))).max(axis=2)
                bw[y:y2, x:x2, 0:1, 0, 0] = out
    expected = image[..., 0, 0].max(axis=2)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o.ome.tif"), expected)


def test_pattern_11_pyramid_by_hand(tmp_path, big):
    source, expected = big, coded((700, 500))
    for level in range(3):
        out = tmp_path / f"level{level}.ome.tif"
        with BioReader(source) as br, BioWriter(out, metadata=br.metadata) as bw:
            bw.X, bw.Y = br.X // 2, br.Y // 2
            for y in range(0, bw.Y, 100):
                rows = min(100, bw.Y - y)
                block = br[2 * y : 2 * (y + rows), 0 : 2 * bw.X, 0, 0, 0].astype(np.uint32)
                small = sum(block[a::2, b::2] for a in (0, 1) for b in (0, 1)) // 4
                bw[y : y + rows, :, 0, 0, 0] = small.astype(br.dtype)
        even = expected[: expected.shape[0] // 2 * 2, : expected.shape[1] // 2 * 2].astype(
            np.uint32
        )
        expected = (sum(even[a::2, b::2] for a in (0, 1) for b in (0, 1)) // 4).astype(np.uint16)
        np.testing.assert_array_equal(tifffile.imread(out), expected)
        source = out


def test_pattern_12_sizes_only(tmp_path):
    sizes = {f"{n}.ome.tif": (30 + n, 50 + n) for n in range(3)}
    for name, shape in sizes.items():
        make(tmp_path / name, coded(shape), tile=(16, 16))
    found = {p.name: BioReader.image_size(p) for p in tmp_path.iterdir()}
    assert found == {name: (x, y) for name, (y, x) in sizes.items()}


def test_pattern_13_pixel_size_by_a_table_of_units(path):
    from ome_types.model import UnitsLength

    by_text = {"m": 10**9, "cm": 10**7, "mm": 10**6, "µm": 10**3, "nm": 1, "Å": 10**-1}
    by_unit = {UnitsLength.MILLIMETER: 10**6, UnitsLength.NANOMETER: 1}
    with BioReader(path, backend="python") as br:
        x_val, xunits = br.ps_x
        y_val, yunits = br.ps_y
        ps_z = br.ps_z
        if None in ps_z:
            z = (x_val * by_text[xunits.value] + y_val * by_text[yunits.value]) / 2
        assert z == (0.5 + 0.25 * 10**6) / 2
        assert br.ps_x[0] * by_unit[br.ps_x[1]] == 0.5


def negative(source, target):
    with (
        BioReader(source, max_workers=1) as br,
        BioWriter(target, metadata=br.metadata, max_workers=1) as bw,
    ):
        bw[:] = np.iinfo(br.dtype).max - br[:]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_pattern_14_a_folder_with_processes(tmp_path, start):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for n in range(4):
        make(tmp_path / "in" / f"{n}.ome.tif", coded((60, 70), seed=n), tile=(32, 32))
    run(f"""
        import multiprocessing, sys
        from concurrent.futures import ProcessPoolExecutor, as_completed
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_compat_bfio import negative

        folder = Path({str(tmp_path)!r})
        context = multiprocessing.get_context({start!r})
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            jobs = [
                pool.submit(negative, file, folder / "out" / file.name)
                for file in sorted((folder / "in").iterdir())
            ]
            for job in as_completed(jobs):
                job.result()
    """)
    for n in range(4):
        found = tifffile.imread(tmp_path / "out" / f"{n}.ome.tif")
        np.testing.assert_array_equal(found, 65535 - coded((60, 70), seed=n))


def test_pattern_15_normalise_cast_and_name(tmp_path, plane):
    names = ["cell_probability", "flow_y", "flow_x", "labels"]
    with BioReader(plane) as br:
        image = br[:].astype(np.float64)
        normal = (image - image.min()) / (image.max() - image.min())
        with BioWriter(tmp_path / "flow.ome.tif", metadata=br.metadata) as writer:
            writer.dtype = np.float32
            writer.C = 4
            writer.channel_names = names
            writer[:, :, 0, 0:4, 0] = np.stack([normal] * 4, -1)[:, :, None].astype(writer.dtype)
        labels = image.astype(np.int64) % 300
        with BioWriter(tmp_path / "labels.ome.tif", metadata=br.metadata) as bw:
            bw.dtype = np.min_scalar_type(int(labels.max()))
            bw[:] = labels.astype(bw.dtype)
    with BioReader(tmp_path / "flow.ome.tif") as br:
        assert br.cnames == names
        np.testing.assert_array_equal(br[:, :, 0, 3, 0], normal.astype(np.float32))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "labels.ome.tif"), labels)


def test_pattern_preallocate_and_copy_between_several_readers(tmp_path, path, image):
    with (
        BioReader(path) as reader,
        BioReader(path) as other,
        BioWriter(tmp_path / "o.ome.tif", metadata=reader.metadata) as bw,
    ):
        bw[:] = np.zeros(bw.shape, bw.dtype)
        for z in range(reader.Z):
            bw[:, :, z, 0:4, 0] = reader[:, :, z, 0:4, 0]
            bw[:, :, z, 0:4, 1] = other[:, :, z, 0:4, 1]
    np.testing.assert_array_equal(stored(tmp_path / "o.ome.tif"), image)
