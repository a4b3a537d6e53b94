"""verify: equal is equal, and the first pixel that differs is named, whatever the files."""

from __future__ import annotations

import json
import math
import zlib
from itertools import product

import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from images import coded

from bioio_tk import BioReader, convert
from bioio_tk.cli.verify import command
from bioio_tk.engine.copy import View
from bioio_tk.errors import DamagedFileError, SpecError, UnsupportedError
from bioio_tk.jobs.verify import keeps_pixels, recompute, verify, verify_copy
from bioio_tk.writer import BioWriter

AXES = [("t", "time"), ("c", "channel"), *((k, "space") for k in "zyx")]
SHAPE = (150, 170, 2, 3, 2)


def tiff(path, pixels, **options):
    """Write (Y, X, Z, C, T) with tifffile."""
    options = {"tile": (64, 64), "compression": "zlib"} | options
    data = np.ascontiguousarray(pixels.transpose(4, 2, 3, 0, 1))
    tifffile.imwrite(path, data, metadata={"axes": "TZCYX"}, photometric="minisblack", **options)
    return path


def store(path, pixels, chunks=(1, 1, 1, 48, 56), version="0.4", compressor="auto"):
    """Write (Y, X, Z, C, T) with zarr-python."""
    group = zarr.create_group(path, zarr_format=2)
    array = group.create_array(
        "0",
        shape=pixels.transpose(4, 3, 2, 0, 1).shape,
        dtype=pixels.dtype,
        chunks=chunks,
        compressors=compressor,
    )
    array[...] = pixels.transpose(4, 3, 2, 0, 1)
    axes = [{"name": n, "type": k} for n, k in AXES]
    scale = {"type": "scale", "scale": [1.0] * 5}
    group.attrs["multiscales"] = [
        {
            "version": version,
            "axes": axes,
            "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
        }
    ]
    return path


def first_of(one, other):
    """The first pixel that differs by a plain loop over t, c, z, y, x."""
    y, x, z, c, t = one.shape
    for kt, kc, kz, ky, kx in product(*map(range, (t, c, z, y, x))):
        if one[ky, kx, kz, kc, kt] != other[ky, kx, kz, kc, kt]:
            return kt, kc, kz, ky, kx
    return None


def run(*words, code=0):
    done = CliRunner().invoke(command, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


# ------------------------------------------------------------------ equal, and not


@pytest.mark.parametrize("mode", ["full", "sample"])
@pytest.mark.parametrize(
    "kind", [{}, {"compression": None, "tile": None}, {"byteorder": ">", "tile": (80, 32)}]
)
def test_the_same_pixels_in_two_formats_are_equal(tmp_path, kind, mode):
    pixels = coded(SHAPE)
    a, b = tiff(tmp_path / "a.ome.tif", pixels, **kind), store(tmp_path / "b.ome.zarr", pixels)
    seen = []
    report = verify(a, b, mode=mode, progress=lambda *pair: seen.append(pair))
    assert report.equal
    assert report.first_difference is None
    assert report.reasons == ()
    assert report.total_pixels == pixels.size
    assert seen[-1] == (pixels.nbytes, pixels.nbytes)
    if mode == "full":
        assert report.compared_pixels == pixels.size
        planes = {
            f"t{t} c{c} z{z}": f"crc32:{zlib.crc32(pixels[:, :, z, c, t].tobytes()):08x}"
            for t, c, z in product(range(2), range(3), range(2))
        }
        assert report.checksums == planes
    else:
        assert 0 < report.compared_pixels < pixels.size
        assert f"{report.compared_pixels / pixels.size:.1%}" in report.summary


@given(data=st.data())
def test_the_first_difference_is_the_first(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("first")
    one = coded((40, 50, 2, 2, 2))
    other = one.copy()
    where = data.draw(
        st.lists(st.tuples(*[st.integers(0, n - 1) for n in one.shape]), min_size=1, max_size=6)
    )
    for at in where:
        other[at] ^= 5
    a = tiff(folder / "a.tif", one, tile=(16, 32))
    b = store(folder / "b.zarr", other, chunks=(1, 2, 1, 24, 16))
    report = verify(a, b, workers=4)
    differ = one != other
    first = first_of(one, other) if differ.any() else None
    assert report.equal == (first is None)
    assert report.different_pixels == int(differ.sum())
    if first is not None:
        found = report.first_difference
        assert (found.t, found.c, found.z, found.y, found.x) == first
        t, c, z, y, x = first
        assert (found.a, found.b) == (one[y, x, z, c, t], other[y, x, z, c, t])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16", "?", "i8", "u1"])
def test_pixels_are_compared_bit_by_bit(tmp_path, dtype):
    one = coded((20, 30), dtype)
    if one.dtype.kind in "fc":
        one[3, 4] = math.nan
    other = one.copy()
    np.save(tmp_path / "a.npy", one)
    for name, pixels in (("a", one), ("b", other)):
        array = zarr.create_array(tmp_path / f"{name}.zarr", data=pixels, chunks=(7, 9))
        assert array.dtype == dtype
    assert verify(tmp_path / "a.zarr", tmp_path / "b.zarr").equal
    changed = zarr.open_array(tmp_path / "b.zarr", mode="r+")
    value = ~one[19, 29] if one.dtype.kind in "bui" else -one[19, 29]
    if one.dtype.kind == "c":  # only its imaginary part
        value = one[19, 29].conjugate()
    changed[19, 29] = value
    report = verify(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert report.first_difference[1:6] == (0, 0, 0, 19, 29)
    assert report.different_pixels == 1
    assert report.first_difference.b == value


def test_nan_equals_the_same_nan_and_no_other(tmp_path):
    one = np.zeros((8, 8), "f4")
    one[2, 2] = math.nan
    other = one.copy()
    other.view("u4")[2, 2] ^= 1
    assert np.isnan(other[2, 2])
    tifffile.imwrite(tmp_path / "a.tif", one)
    tifffile.imwrite(tmp_path / "b.tif", other)
    assert verify(tmp_path / "a.tif", tmp_path / "a.tif").equal
    report = verify(tmp_path / "a.tif", tmp_path / "b.tif")
    assert report.first_difference[4:6] == (2, 2)
    assert json.loads(report.to_json())["first_difference"]["b"] == "nan"


def test_another_size_or_type_is_a_difference(tmp_path):
    a = tiff(tmp_path / "a.tif", coded((30, 40, 2, 1, 1)))
    b = tiff(tmp_path / "b.tif", coded((30, 41, 2, 1, 1)))
    c = tiff(tmp_path / "c.tif", coded((30, 40, 2, 1, 1), "u1"))
    report = verify(a, b)
    assert not report.equal
    assert report.reasons == (
        "the sizes (T x C x Z x X x Y) are 1 x 1 x 2 x 40 x 30 and 1 x 1 x 2 x 41 x 30",
    )
    assert report.compared_pixels == 0
    assert verify(a, c).reasons == ("the pixel types are uint16 and uint8",)


# ------------------------------------------------------------------ what is compared


def test_a_selection_is_compared_with_what_was_made_of_it(tmp_path):
    pixels = coded(SHAPE)
    a = tiff(tmp_path / "a.tif", pixels)
    part = pixels[20:130, ::3, [1], ::-1][:, :, :, :, 1:]
    b = tiff(tmp_path / "b.tif", part)
    assert verify(a, b, select="y=20:130 x=::3 z=1 c=::-1 t=1:").equal
    assert verify(
        a, b, select={"y": slice(20, 130), "x": slice(0, 170, 3), "z": 1, "c": [2, 1, 0], "t": 1}
    ).equal
    report = verify(a, b, select="y=20:130 x=::3 z=0 c=::-1 t=1:")
    assert report.first_difference[1:6] == (0, 0, 0, 0, 0)
    with BioReader(a) as one, BioReader(b) as other:
        assert verify(one.array[20:130, ::3, 1, ::-1, 1], other).equal
        with pytest.raises(SpecError, match="level=1 is for paths"):
            verify(one, other, level=1)


def test_files_of_several_images(tmp_path):
    images = [coded((30, 20 + k), seed=k) for k in range(3)]
    for name, wrong in (("a", None), ("b", 1)):
        with tifffile.TiffWriter(tmp_path / f"{name}.ome.tif", ome=True) as tif:
            for number, image in enumerate(images):
                pixels = image.copy()
                pixels[7, 9] += number == wrong
                tif.write(pixels, metadata={"axes": "YX"})
    a, b = tmp_path / "a.ome.tif", tmp_path / "b.ome.tif"
    report = verify(a, b)
    assert report.first_difference[:6] == (1, 0, 0, 0, 7, 9)
    assert "image 1, t=0, c=0, z=0, y=7, x=9" in report.summary
    assert set(report.checksums) == {"s0 t0 c0 z0", "s1 t0 c0 z0", "s2 t0 c0 z0"}
    assert verify(a, b, series=2).equal
    tifffile.imwrite(tmp_path / "one.tif", images[2])
    assert verify(a, tmp_path / "one.tif", series=2).equal
    assert verify(tmp_path / "one.tif", a, series=(0, 2)).equal
    with pytest.raises(SpecError, match=r"has 3 images and .* has 1: say which"):
        verify(a, tmp_path / "one.tif")
    with pytest.raises(SpecError, match="images 0 to 2"):
        verify(a, b, series=3)
    with pytest.raises(SpecError, match="the levels 0 to 0"):
        verify(a, b, level=1)
    with pytest.raises(SpecError, match="give 'full' or 'sample'"):
        verify(a, b, mode="half")


def test_smaller_resolutions_are_compared_too(tmp_path):
    a = tiff(tmp_path / "a.tif", coded((600, 520, 1, 1, 1)))
    convert(a, tmp_path / "b.ome.zarr")
    convert(a, tmp_path / "c.ome.tif", pyramid=False)
    convert(tmp_path / "b.ome.zarr", tmp_path / "d.ome.tif", level=1)
    with BioReader(tmp_path / "b.ome.zarr", level=1) as one:
        assert verify(one, tmp_path / "d.ome.tif", series=0).equal


# ------------------------------------------------------------------ a sample


def test_a_sample_takes_the_corners_and_some_of_every_plane(tmp_path):
    pixels = coded((16 * 12, 16 * 10, 2, 2, 1))
    a = tiff(tmp_path / "a.tif", pixels, tile=(16, 16))
    looked = []
    for again in range(2):
        seen = np.zeros(pixels.shape, bool)
        with BioReader(a) as one:
            source = one.array.view().source
            real = View.read

            def note(view, box, workers, seen=seen, real=real, source=source):
                if view.source is not source:
                    seen[box] = True
                return real(view, box, workers)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(View, "read", note)
                report = verify(one, a, mode="sample", workers=again + 1)
        assert report.compared_pixels == seen.sum()
        looked.append(seen)
    assert (looked[0] == looked[1]).all()
    planes = looked[0].transpose(4, 3, 2, 0, 1).reshape(-1, 192, 160)
    for plane in planes:
        assert plane[[0, 0, -1, -1], [0, -1, 0, -1]].all()
        assert 4 * 256 < plane.sum() < 192 * 160 / 4
    assert len({plane.tobytes() for plane in planes}) > 1


def test_a_sample_of_small_planes_takes_a_tile_of_each(tmp_path):
    pixels = coded((30, 30, 5, 4, 3))
    changed = pixels.copy()
    changed += 1
    a, b = (tiff(tmp_path / f"{k}.tif", p, tile=(16, 16)) for k, p in enumerate((pixels, changed)))
    report = verify(a, b, mode="sample")
    planes = 5 * 4 * 3
    assert planes * 14 * 14 <= report.different_pixels <= planes * 256
    assert report.compared_pixels == report.different_pixels
    # a view that begins inside a tile: its windows are shifted, each plane is still looked at
    with BioReader(a) as one, BioReader(b) as other:
        for start in range(1, 16):
            cut = one.array[start:, start:], other.array[start:, start:]
            real, seen = View.read, set()

            def note(view, box, workers, seen=seen, real=real):
                seen.add(tuple(s.start for s in box[2:]))
                return real(view, box, workers)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(View, "read", note)
                verify(*cut, mode="sample")
            assert len(seen) == planes


# ------------------------------------------------------------------ damage


def flip(path, at, bit=3):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_one_flipped_bit_of_a_raw_tiff_is_named(tmp_path):
    pixels = coded(SHAPE)
    a = tiff(tmp_path / "a.tif", pixels, compression=None)
    b = tmp_path / "b.tif"
    b.write_bytes(a.read_bytes())
    with tifffile.TiffFile(b) as tif:  # a pixel of the second tile of plane t=1, z=0, c=2
        offset = tif.pages[2 * 3 + 2].dataoffsets[1]
    flip(b, offset + (5 * 64 + 7) * 2)
    report = verify(a, b)
    first = report.first_difference
    assert first[:6] == (0, 1, 2, 0, 5, 64 + 7)
    assert first.a == pixels[5, 71, 0, 2, 1]
    assert first.b == pixels[5, 71, 0, 2, 1] ^ 8
    out = run(a, b, code=1)
    assert f"t=1, c=2, z=0, y=5, x=71: {first.a} in A, {first.b} in B" in out


def test_one_flipped_bit_of_a_raw_chunk_is_named(tmp_path):
    pixels = coded(SHAPE)
    a = tiff(tmp_path / "a.tif", pixels)
    b = store(tmp_path / "b.zarr", pixels, compressor=None)
    flip(b / "0" / "1.2.1.2.3", (4 * 56 + 1) * 2)
    report = verify(a, b)
    assert report.first_difference[1:6] == (1, 2, 1, 2 * 48 + 4, 3 * 56 + 1)
    assert report.different_pixels == 1


@pytest.mark.parametrize("bit", range(0, 8, 3))
def test_a_flipped_bit_of_a_compressed_tile_is_found(tmp_path, bit):
    pixels = np.random.default_rng(3).integers(0, 4000, SHAPE).astype("u2")
    a = tiff(tmp_path / "a.tif", pixels)
    b = tmp_path / "b.tif"
    b.write_bytes(a.read_bytes())
    with tifffile.TiffFile(b) as tif:
        page = tif.pages[7]  # t=1, z=0, c=1
        offset, count = page.dataoffsets[4], page.databytecounts[4]
    flip(b, offset + count // 2, bit)
    try:
        report = verify(a, b)
    except DamagedFileError as exc:
        damage = str(exc)
    else:
        first = report.first_difference
        assert (first.t, first.c, first.z) == (1, 1, 0)
        assert 64 <= first.y < 128
        assert 64 <= first.x < 128
        return
    assert "b.tif" in damage
    assert "tile" in damage


def test_a_truncated_file_is_damaged(tmp_path):
    a = tiff(tmp_path / "a.tif", coded(SHAPE), compression=None)
    b = tmp_path / "b.tif"
    data = a.read_bytes()
    with tifffile.TiffFile(a) as tif:
        last = tif.pages[-1].dataoffsets[-1]
    b.write_bytes(data[: last + 10])
    with pytest.raises(DamagedFileError, match=r"b\.tif"):
        verify(a, b)
    with pytest.raises(DamagedFileError, match=r"b\.tif"):
        verify(b, a)


# ------------------------------------------------------------------ checksums


def test_recorded_checksums_find_the_plane(tmp_path):
    pixels = coded(SHAPE, "i4")
    a = store(tmp_path / "a.zarr", pixels, compressor=None)
    known = {
        f"t{t} c{c} z{z}": f"crc32:{zlib.crc32(pixels[:, :, z, c, t].tobytes()):08x}"
        for t, c, z in product(range(2), range(3), range(2))
    }
    assert verify(a, checksums=known).equal
    flip(a / "0" / "1.0.1.2.0", 100)
    with BioReader(a) as reader:
        report = recompute(reader, known)
    assert not report.equal
    assert len(report.reasons) == 1
    assert report.reasons[0].startswith("plane t1 c0 z1 is crc32:")
    assert known["t1 c0 z1"] in report.reasons[0]
    with pytest.raises(SpecError, match="nothing to compare with"):
        verify(a)
    with pytest.raises(SpecError, match="not the crc32"):
        verify(a, checksums={"t0 c0 z0": "crc32:00000000"})


# ------------------------------------------------------------------ a copy that is not in place


@pytest.mark.parametrize("name", ["out.ome.tif", "out.ome.zarr"])
def test_an_unfinished_output_is_compared(tmp_path, name):
    pixels = coded((100, 90, 2, 1, 1))
    a = tiff(tmp_path / "a.tif", pixels)
    with BioReader(a) as reader:
        view = reader.array.view()
        writer = BioWriter(tmp_path / name, shape=pixels.shape, dtype="u2", tile_size=32)
        writer[:] = pixels
        backend = "zarr" if "zarr" in name else "python"
        assert verify_copy(view, tmp_path / f"{name}.partial", backend=backend).equal
        changed = pixels.copy()
        changed[40, 50, 1] += 1
        writer[32:64, 32:64, 1] = changed[32:64, 32:64, 1]
        with pytest.raises(DamagedFileError, match="first at t=0, c=0, z=1, y=40, x=50:"):
            verify_copy(view, tmp_path / f"{name}.partial", backend=backend)
        writer.close()
    assert not verify(a, tmp_path / name).equal


def test_a_cast_is_repeated_before_it_is_compared(tmp_path):
    pixels = coded((100, 90, 1, 1, 1))
    a = tiff(tmp_path / "a.tif", pixels)
    clipped = tiff(tmp_path / "b.tif", np.minimum(pixels, 255).astype("u1"))
    with BioReader(a) as reader:
        view = reader.array.view()
        assert verify_copy(view, clipped, cast="clip").equal
        with pytest.raises(DamagedFileError, match="pixels differ, the first at"):
            verify_copy(view, clipped, cast="wrap")
        with pytest.raises(DamagedFileError, match="the pixel types are uint16 and uint8"):
            verify_copy(view, clipped)


def test_what_a_lossy_codec_changed_is_no_mistake(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (100, 90, 1, 1, 1)).astype("u1")
    a = tiff(tmp_path / "a.tif", pixels)
    b = tmp_path / "b.ome.tif"
    convert(a, b, compression="jpeg")
    with BioReader(a) as reader, pytest.raises(UnsupportedError, match="'jpeg' cannot be verified"):
        verify_copy(reader.array.view(), b)
    assert keeps_pixels(None, None)
    assert keeps_pixels("deflate", 9)
    assert not keeps_pixels("JPEG", None)
    assert keeps_pixels("jpeg2000", None)
    assert not keeps_pixels("jpegxl", 90)


# ------------------------------------------------------------------ the command


def test_the_command(tmp_path):
    pixels = coded((60, 50, 2, 1, 1))
    a, b = tiff(tmp_path / "a.tif", pixels), tiff(tmp_path / "b.tif", pixels + 1)
    assert f"equal: all {pixels.size} pixels" in run(a, a)
    assert run("--quiet", a, a) == ""
    report = json.loads(run("--json", "--workers", 2, "--memory", "50MB", a, b, code=1))
    assert report["equal"] is False
    assert report["first_difference"] == {
        **dict.fromkeys(("series", "t", "c", "z", "y", "x"), 0), "a": 0, "b": 1,
    }  # fmt: skip
    assert report["different_pixels"] == pixels.size
    assert "equal in what was looked at" in run("--mode", "sample", a, a)
    half = tiff(tmp_path / "half.tif", pixels[:, :, 1:])
    assert "equal" in run("--select", "z=1", "--series", "0,0", a, half)
    assert "sizes" in run(a, half, code=1)
    run("--series", "x", a, a, code=2)
    run("--mode", "sample", a, code=2)
    run(a, code=2)
    sums = tmp_path / "report.json"
    sums.write_text(run("--json", a, a))
    assert "equal: all" in run(a, "--checksums", sums)
    assert "plane t0 c0 z0 is crc32:" in run(b, "--checksums", sums, code=1)


def test_whatever_can_be_read_can_be_compared(tmp_path):
    pixels = coded((60, 50, 1, 1, 3))
    a = tiff(tmp_path / "a.tif", pixels)
    assert verify(a, pixels.transpose(4, 3, 2, 0, 1)).equal
    for t in range(3):
        tifffile.imwrite(tmp_path / f"p_t{t}.tif", pixels[:, :, 0, 0, t])
    assert verify(a, tmp_path / "p_t{t:d}.tif").equal
    other = pixels.copy()
    other[1, 2, 0, 0, 2] += 1
    assert verify(other.transpose(4, 3, 2, 0, 1), tmp_path / "p_t*.tif").first_difference[1:6] == (
        2,
        0,
        0,
        1,
        2,
    )
    with pytest.raises(FileNotFoundError):
        verify(a, tmp_path / "none.tif")
