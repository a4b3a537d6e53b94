"""TIFF reading: every layout against the array written, or against tifffile's own decoder."""

from __future__ import annotations

import logging
import os
import struct
import threading
import uuid
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from fuzz_tiff import build, tag
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bioio_tk import BioReader
from bioio_tk.errors import DamagedFileError, FormatError, UnsupportedError

Array = NDArray[Any]


def coded(shape: tuple[int, ...], dtype: Any = "u2") -> Array:
    """Pixels that tell where they belong, and do not repeat within small images."""
    count = int(np.prod(shape))
    values = (np.arange(count, dtype=np.int64) * 2654435761 + 12345) % 2**31
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return (values % 7 < 3).reshape(shape)
    if kind.kind == "c":
        return (values - 2j * values[::-1]).reshape(shape).astype(kind)
    if kind.kind == "f":
        return (values / 2**15 - 2**14).reshape(shape).astype(kind)
    raw = np.stack([values, values[::-1] ^ 0x5A5A], -1).astype("<u4").view("<u8")[:, 0]
    return raw.astype(kind).reshape(shape)


def yxzct(array: Array, axes: str) -> Array:
    """Bring an array with named axes into YXZCT; samples are channels, the fastest ones."""
    order = [a for a in "TCSZYX" if a in axes]
    array = array.transpose([axes.index(a) for a in order])
    for position, axis in enumerate("TCSZYX"):
        if axis not in axes:
            array = np.expand_dims(array, position)
    t, c, s, z, y, x = array.shape
    return array.reshape(t, c * s, z, y, x).transpose(3, 4, 2, 1, 0)


def all_of(path: Path, **options: Any) -> Array:
    """Read an image with all five axes."""
    with BioReader(path, max_workers=2, **options) as br:
        return br._read5(_everything(br))


def _everything(br: BioReader) -> Any:
    from bioio_tk.core.index import select

    return select((), br.shape)


def same(got: Array, want: Array) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype.newbyteorder("=")
    np.testing.assert_array_equal(got, want)


def write(path: Path, data: Any, **options: Any) -> Path:
    options.setdefault("metadata", None)
    tifffile.imwrite(path, data, **options)
    return path


# ---------------------------------------------------------------------- pixel types and layouts

DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "one_strip": {},
    "strips_of_1": {"rowsperstrip": 1},
    "strips_of_7": {"rowsperstrip": 7},
    "tiles_16": {"tile": (16, 16)},
    "tiles_32x48": {"tile": (32, 48)},
    "tile_larger": {"tile": (256, 128)},
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pixel_type_and_layout(tmp_path: Path, dtype: str, layout: str, order: str) -> None:
    if dtype == "?" and "tile" in LAYOUTS[layout]:
        pytest.skip("tifffile writes no tiles of single bits")
    data = coded((3, 61, 53), dtype)
    for bigtiff in (False, True):
        path = write(
            tmp_path / f"{bigtiff}.tif",
            data,
            byteorder=order,
            photometric="minisblack",
            bigtiff=bigtiff,
            **LAYOUTS[layout],
        )
        same(all_of(path), yxzct(data, "TYX"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("samples", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["u1", ">u2", "f4"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_samples(
    tmp_path: Path, samples: int, planar: str, layout: str, dtype: str, compression: str | None
) -> None:
    axes = "YXS" if planar == "contig" else "SYX"
    data = coded((61, 53, samples) if planar == "contig" else (samples, 61, 53), dtype)
    path = write(
        tmp_path / "a.tif",
        data,
        photometric="rgb" if samples in (3, 4) else "minisblack",
        planarconfig=planar,
        compression=compression,
        byteorder=">" if dtype[0] == ">" else "<",
        **LAYOUTS[layout],
    )
    same(all_of(path), yxzct(data, axes))
    with BioReader(path) as br:
        assert br.samples_per_pixel == samples
        got = br[3:50:2, 10:, 0, [samples - 1, 0]]
        np.testing.assert_array_equal(got, yxzct(data, axes)[3:50:2, 10:, 0:1, [samples - 1, 0], 0])


def test_palette_keeps_its_indices(tmp_path: Path) -> None:
    data = coded((20, 30), "u1")
    colormap = coded((3, 256), "u2")
    path = write(tmp_path / "a.tif", data, photometric="palette", colormap=colormap)
    same(all_of(path), yxzct(data, "YX"))


def test_white_is_zero_is_read_as_stored(tmp_path: Path) -> None:
    data = coded((20, 30), "u2")
    path = write(tmp_path / "a.tif", data, photometric="miniswhite")
    same(all_of(path), yxzct(data, "YX"))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 7, 10, 12, 14, 20, 24, 31])
@pytest.mark.parametrize("rows", [1, 5, 13])
def test_packed_bits(tmp_path: Path, bits: int, rows: int, order: str) -> None:
    height, width = 13, 21
    values = coded((height, width), "u4") % 2**bits
    shifts = np.arange(bits)[::-1]
    bit = (values[..., None] >> shifts & 1).astype("u1").reshape(height, -1)
    packed = np.packbits(bit, axis=1)
    if bits == 24 and order == "<":  # whole bytes have the byte order of the file
        packed = packed.reshape(height, width, 3)[..., ::-1].reshape(height, -1)
    strips = [packed[r : r + rows].tobytes() for r in range(0, height, rows)]
    path = tmp_path / "a.tif"
    path.write_bytes(
        build(
            [
                tag(256, "I", width),
                tag(257, "I", height),
                tag(258, "H", bits),
                tag(259, "H", 1),
                tag(262, "H", 1),
                tag(277, "H", 1),
                tag(278, "I", rows),
            ],
            strips,
            order=order,
        )
    )
    got = all_of(path)
    np.testing.assert_array_equal(got[..., 0, 0, 0], values)
    want = "?" if bits == 1 else "u1" if bits <= 8 else "u2" if bits <= 16 else "u4"
    assert got.dtype == np.dtype(want)


def test_float24(tmp_path: Path) -> None:
    values = np.array([[0.0, 1.0, -2.0, 0.5], [3.25, 1024.0, -0.0078125, 65536.0]], "f4")
    raw = values.view("u4")
    sign, exponent, mantissa = raw >> 31, (raw >> 23 & 255).astype("i4"), raw >> 7 & 0xFFFF
    exponent = np.where(values == 0, 0, exponent - 127 + 63).astype("u4")
    coded24 = sign << 23 | exponent << 16 | mantissa
    data = np.stack([coded24 >> 16, coded24 >> 8, coded24], -1).astype("u1").tobytes()
    path = tmp_path / "a.tif"
    path.write_bytes(
        build(
            [
                tag(256, "I", 4),
                tag(257, "I", 2),
                tag(258, "H", 24),
                tag(259, "H", 1),
                tag(262, "H", 1),
                tag(277, "H", 1),
                tag(278, "I", 2),
                tag(339, "H", 3),
            ],
            [data],
            order=">",
        )
    )
    same(all_of(path), yxzct(values, "YX"))


def test_complex_integers(tmp_path: Path) -> None:
    pairs = coded((5, 6, 2), "i2")
    path = tmp_path / "a.tif"
    path.write_bytes(
        build(
            [
                tag(256, "I", 6),
                tag(257, "I", 5),
                tag(258, "H", 32),
                tag(259, "H", 1),
                tag(262, "H", 1),
                tag(277, "H", 1),
                tag(278, "I", 5),
                tag(339, "H", 5),
            ],
            [pairs.astype("<i2").tobytes()],
        )
    )
    got = all_of(path)[..., 0, 0, 0]
    assert got.dtype.kind == "c"
    np.testing.assert_array_equal(got, pairs[..., 0] + 1j * pairs[..., 1])


def test_reversed_bits(tmp_path: Path) -> None:
    data = coded((9, 16), "u1")
    stored = imagecodecs.bitorder_encode(data.tobytes())
    path = tmp_path / "a.tif"
    path.write_bytes(build([*gray(16, 9, 8), tag(278, "I", 9), tag(266, "H", 2)], [stored]))
    same(all_of(path), yxzct(data, "YX"))


def gray(width: int, height: int, bits: int = 16, compression: int = 1) -> list[Any]:
    return [
        tag(256, "I", width),
        tag(257, "I", height),
        tag(258, "H", bits),
        tag(259, "H", compression),
        tag(262, "H", 1),
        tag(277, "H", 1),
    ]


# ---------------------------------------------------------------------- compression

LOSSLESS = [
    "zlib",
    "adobe_deflate",
    "lzw",
    "packbits",
    "lzma",
    "zstd",
    "png",
    "jpeg2000",
    "jpegxl",
    "lerc",
    "webp",
    "jpegxr",
]
_TYPES = {"png": "u1 u2", "webp": "u1", "jpegxr": "u1 u2", "jpegxl": "u1 u2 f4"}
_TYPES |= {"lerc": "u1 i1 u2 i2 u4 i4 f4 f8", "jpeg2000": "u1 i1 u2 i2"}
_ARGS: dict[str, dict[str, Any]] = {
    "webp": {"lossless": True},
    "jpegxl": {"lossless": True},
    "lerc": {"level": 0},
}


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("layout", ["strips_of_7", "tiles_16", "tile_larger"])
def test_compression(tmp_path: Path, compression: str, layout: str) -> None:
    for dtype in _TYPES.get(compression, "u1 u2 i4 f4 f8").split():
        samples = 3 if compression == "webp" else 1
        data = coded((61, 53, samples), dtype)[..., : samples if samples > 1 else None]
        data = data if samples > 1 else data[..., 0]
        if compression == "jpegxl" and dtype == "f4":
            data = np.abs(data) / 2**15
        try:
            path = write(
                tmp_path / f"{dtype}.tif",
                data,
                compression=compression,
                compressionargs=_ARGS.get(compression),
                photometric="rgb" if samples == 3 else "minisblack",
                **LAYOUTS[layout],
            )
        except (ValueError, RuntimeError) as exc:
            pytest.skip(f"cannot be written here: {exc}")
        want = tifffile.imread(path)
        if compression != "jpegxr":
            np.testing.assert_array_equal(want, data)
        same(all_of(path), yxzct(want, "YXS" if samples > 1 else "YX"))


@pytest.mark.parametrize("layout", ["strips_of_7", "tiles_16"])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack", "ycbcr"])
def test_jpeg_as_the_codec_decodes_it(tmp_path: Path, photometric: str, layout: str) -> None:
    ramp = np.add.outer(np.arange(64), np.arange(48)).astype("u1")
    gray_only = photometric == "minisblack"
    data = ramp if gray_only else np.stack([ramp, ramp.T.copy().reshape(64, 48), 255 - ramp], -1)
    options = dict(LAYOUTS[layout])
    if "rowsperstrip" in options:
        options["rowsperstrip"] = 16
    path = write(
        tmp_path / "a.tif",
        data,
        photometric="minisblack" if gray_only else "rgb",
        compression="jpeg",
        compressionargs={"outcolorspace": "ycbcr"} if photometric == "ycbcr" else None,
        **options,
    )
    want = tifffile.imread(path)
    same(all_of(path), yxzct(want, "YX" if gray_only else "YXS"))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", ["zlib", "zstd", "lzw", None])
@pytest.mark.parametrize("layout", ["strips_of_7", "tiles_16"])
def test_predictors(tmp_path: Path, compression: str | None, layout: str, order: str) -> None:
    if compression is None:
        pytest.skip("tifffile writes no predictor without compression")
    for dtype in ("u1", "i2", "u2", "u4", "u8", "f2", "f4", "f8"):
        data = coded((61, 53, 3), dtype)
        path = write(
            tmp_path / f"{dtype}.tif",
            data,
            compression=compression,
            predictor=3 if dtype[0] == "f" else 2,
            byteorder=order,
            photometric="rgb",
            **LAYOUTS[layout],
        )
        same(all_of(path), yxzct(data, "YXS"))


def ycbcr(size: tuple[int, int], blocks: tuple[int, int], compression: int) -> bytes:
    (height, width), (across, down), rows = size, blocks, 4
    strips = []
    for start in range(0, height, rows):
        units = -(-min(rows, height - start) // down) * -(-width // across)
        strip = coded((units * (across * down + 2),), "u1").tobytes()
        encode = {5: imagecodecs.lzw_encode, 8: imagecodecs.zlib_encode}.get(compression, bytes)
        strips.append(bytes(encode(strip)))
    return build(
        [
            tag(256, "I", width),
            tag(257, "I", height),
            tag(258, "H", 8, 8, 8),
            tag(259, "H", compression),
            tag(262, "H", 6),
            tag(277, "H", 3),
            tag(278, "I", rows),
            tag(284, "H", 1),
            tag(529, "rational", 299, 1000, 587, 1000, 114, 1000),
            tag(530, "H", across, down),
            tag(532, "rational", 15, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1),
        ],
        strips,
    )


def ycbcr_by_hand(size: tuple[int, int], blocks: tuple[int, int]) -> Array:
    """The equations of TIFF 6.0 section 21, pixel by pixel."""
    (height, width), (across, down), rows = size, blocks, 4
    out = np.zeros((height, width, 3))
    unit = across * down + 2
    for y in range(height):
        start = y // rows * rows
        per_row = -(-width // across)
        units = -(-min(rows, height - start) // down) * per_row
        strip = coded((units * unit,), "u1").astype(int)
        for x in range(width):
            at = ((y - start) // down * per_row + x // across) * unit
            luma = strip[at + (y - start) % down * across + x % across]
            cb, cr = strip[at + unit - 2], strip[at + unit - 1]
            full = (luma - 15) * 255 / 220
            blue = int((cb - 128) * 127 / 112) * (2 - 2 * 0.114) + int(full)
            red = int((cr - 128) * 127 / 112) * (2 - 2 * 0.299) + int(full)
            green = (int(full) - 0.114 * blue - 0.299 * red) / 0.587
            out[y, x] = red, green, blue
    return np.clip(out, 0, 255)


@pytest.mark.parametrize("size", [(8, 8), (13, 9), (5, 17)])
@pytest.mark.parametrize("blocks", [(a, d) for a in (1, 2, 4) for d in (1, 2, 4)])
def test_ycbcr_without_jpeg_is_what_libtiff_shows(
    tmp_path: Path, size: tuple[int, int], blocks: tuple[int, int]
) -> None:
    from PIL import Image

    path = tmp_path / "a.tif"
    path.write_bytes(ycbcr(size, blocks, 1))
    raw = all_of(path)
    for compression in (5, 8):
        path.write_bytes(ycbcr(size, blocks, compression))
        got = all_of(path)
        same(got, raw)
    want = ycbcr_by_hand(size, blocks)
    assert np.abs(raw[:, :, 0, :, 0].astype(int) - want).max() <= 1
    if blocks in ((1, 1), (1, 4), (2, 4)) or (blocks == (4, 4) and size[1] % 4):
        return  # Pillow does the first one itself, in another colour space; libtiff not all others
    with Image.open(path) as pillow:
        same(got, yxzct(np.asarray(pillow.convert("RGB")), "YXS"))


# ---------------------------------------------------------------------- the fast path

_GEOMETRY = {
    "height": st.integers(1, 70),
    "width": st.integers(1, 70),
    "samples": st.sampled_from([1, 1, 1, 3, 4]),
    "planar": st.booleans(),
    "pages": st.integers(1, 3),
    "tile": st.one_of(
        st.none(), st.tuples(st.sampled_from([16, 32, 48, 80]), st.sampled_from([16, 32, 48, 80]))
    ),
    "rows": st.integers(1, 70),
    "dtype": st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i8", "f2", "f4", "f8", "c8"]),
    "order": st.sampled_from("<>"),
    "big": st.booleans(),
    "compression": st.sampled_from([None, None, "zlib", "zstd", "lzw", "packbits", "lzma"]),
    "predictor": st.booleans(),
    "data": st.data(),
}


def span(size: int) -> st.SearchStrategy[slice]:
    bound = st.one_of(st.none(), st.integers(-size - 2, size + 2))
    return st.builds(slice, bound, bound, st.sampled_from([None, 1, 1, 2, 3, 7, -1, -2]))


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(**_GEOMETRY)
def test_any_region_of_any_layout_is_what_was_written(tmp_path: Path, **g: Any) -> None:
    samples, planar = g["samples"], g["planar"] and g["samples"] > 1
    inner = (g["height"], g["width"])
    shape = (samples, *inner) if planar else (*inner, samples)
    axes = "TSYX" if planar else "TYXS"
    pixels = coded((g["pages"], *shape), g["dtype"])
    predictor = None
    if g["predictor"] and g["compression"] in ("zlib", "zstd", "lzw"):
        predictor = {"f": 3, "c": None}.get(g["dtype"][0], 2)
    options: dict[str, Any] = {"tile": g["tile"]} if g["tile"] else {"rowsperstrip": g["rows"]}
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder=g["order"], bigtiff=g["big"]) as tif:
        for page in pixels:
            tif.write(
                page if samples > 1 else page[..., 0],
                photometric="rgb" if samples > 1 else "minisblack",
                planarconfig=("separate" if planar else "contig") if samples > 1 else None,
                compression=g["compression"],
                predictor=predictor,
                metadata=None,
                contiguous=False,
                **options,
            )
    want = yxzct(pixels, axes)
    with BioReader(path, max_workers=2) as br:
        assert br.shape == want.shape
        for _ in range(3):
            key = tuple(g["data"].draw(span(n)) for n in want.shape)
            got = br[key]
            expected = want[key]
            np.testing.assert_array_equal(
                got.reshape(expected.shape), expected, err_msg=f"{key} of {br.shape}"
            )


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.one_of(st.none(), st.sampled_from([(16, 16), (32, 16), (64, 96)])),
    rows=st.integers(1, 90),
    dtype=st.sampled_from(["u1", "u2", "f4"]),
    compression=st.sampled_from(["zlib", "zstd", "lzw", None]),
    predictor=st.booleans(),
    order=st.sampled_from("<>"),
)
def test_every_segment_is_what_tifffile_decodes(
    tmp_path_factory: pytest.TempPathFactory, **g: Any
) -> None:
    path = tmp_path_factory.mktemp("p") / "a.tif"
    options: dict[str, Any] = {"tile": g["tile"]} if g["tile"] else {"rowsperstrip": g["rows"]}
    predictor = (3 if g["dtype"] == "f4" else 2) if g["predictor"] and g["compression"] else None
    write(
        path,
        coded((g["height"], g["width"]), g["dtype"]),
        compression=g["compression"],
        predictor=predictor,
        byteorder=g["order"],
        photometric="minisblack",
        **options,
    )
    with BioReader(path, max_workers=1) as br, tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        for pixels, (_, _, y, x, _), (_, h, w, _) in page.segments():
            part = br[y : y + h, x : x + w]
            np.testing.assert_array_equal(part, pixels[0, : part.shape[0], : part.shape[1], 0])


# ---------------------------------------------------------------------- pages, axes, pyramids


def test_pages_that_nobody_named_are_time_points(tmp_path: Path) -> None:
    data = coded((5, 20, 30))
    same(all_of(write(tmp_path / "a.tif", data)), yxzct(data, "TYX"))


@pytest.mark.parametrize("axes", ["ZYX", "CYX", "TZCYX", "CTZYX", "ZCYX", "TCZYX"])
def test_axes_that_tifffile_notes(tmp_path: Path, axes: str) -> None:
    sizes = {"T": 2, "C": 3, "Z": 4, "Y": 21, "X": 32}
    data = coded(tuple(sizes[a] for a in axes))
    path = write(tmp_path / "a.tif", data, metadata={"axes": axes}, photometric="minisblack")
    same(all_of(path), yxzct(data, axes))


def test_unknown_axes_go_where_there_is_room(tmp_path: Path) -> None:
    data = coded((2, 3, 20, 30))
    path = write(tmp_path / "a.tif", data, metadata={"axes": "ZQYX"}, photometric="minisblack")
    same(all_of(path), yxzct(data, "ZTYX"))


@pytest.mark.parametrize("axes", ["TZCYXS", "TZCYX", "ZYX", "CYX", "TYX", "TCYX"])
def test_imagej_hyperstacks(tmp_path: Path, axes: str) -> None:
    sizes = {"T": 2, "C": 2, "Z": 3, "Y": 21, "X": 32, "S": 3}
    data = coded(tuple(sizes[a] for a in axes), "u1" if "S" in axes else "u2")
    path = write(
        tmp_path / "a.tif",
        data,
        imagej=True,
        resolution=(4.0, 2.0),
        metadata={"axes": axes, "unit": "um", "spacing": 3.0, "finterval": 0.5},
    )
    same(all_of(path), yxzct(data, axes))
    with BioReader(path) as br:
        assert br.pixel_size("µm") == pytest.approx((0.5, 0.25, 3.0))
        assert br.time_increment == (0.5, "s")


def test_imagej_stack_beyond_4_gib_has_a_single_directory(tmp_path: Path) -> None:
    """ImageJ writes such stacks as one block behind one directory; the file here is sparse."""
    size, planes, header = 4096, 150, 4096
    text = f"ImageJ=1.54f\nimages={planes}\nslices={planes}\nloop=false\n".encode()
    plane = size * size * 2
    path = tmp_path / "a.tif"
    head = build(
        [*gray(size, size), tag(270, "s", text), tag(278, "I", size)],
        [],
        order=">",
        segments=([header], [plane]),
    )
    path.write_bytes(head)
    rng = np.random.default_rng(1)
    os.truncate(path, header + plane * planes)
    marks = {n: rng.integers(0, 2**16, (2, size), dtype=np.uint16) for n in (0, 1, 127, 128, 149)}
    with path.open("r+b") as file:
        for n, rows in marks.items():
            file.seek(header + n * plane + 100 * size * 2)
            file.write(rows.astype(">u2").tobytes())
    assert path.stat().st_size > 2**32
    with BioReader(path) as br:
        assert br.shape == (size, size, planes, 1, 1)
        for n, rows in marks.items():
            np.testing.assert_array_equal(br[100:102, :, n], rows)
            assert not br[102:110, ::64, n].any()
        got = br[100, ::512, [0, 128, 149]]
        np.testing.assert_array_equal(
            got[0], np.stack([marks[n][0, ::512] for n in (0, 128, 149)], -1)
        )


def test_imagej_block_that_ends_early(tmp_path: Path) -> None:
    data = coded((4, 20, 32))
    path = write(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "ZYX"})
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(DamagedFileError), BioReader(path) as br:
        br[:]


def stk(planes: Array) -> bytes:
    count, height, width = planes.shape
    dates = [v for _ in range(count) for v in (2_451_545, 1_000, 2_451_545, 2_000, 1, 2)]
    wave = [v for _ in range(count) for v in (500, 1)]
    return build(
        [
            *gray(width, height),
            tag(278, "I", height),
            tag(33628, "I", *([1] * count)),
            tag(33629, "rational", *[d for n in range(count) for d in dates[:6]]),
            tag(33630, "rational", *wave),
        ],
        [planes.astype("<u2").tobytes()],
        counts=[planes[0].nbytes],
        numbers={33629: count},
    )


def test_metamorph_stack(tmp_path: Path) -> None:
    data = coded((5, 20, 32))
    path = tmp_path / "a.stk"
    path.write_bytes(stk(data))
    with tifffile.TiffFile(path) as tif:
        if not tif.is_stk or tif.series[0].shape != (5, 20, 32):
            pytest.skip("tifffile does not take this for a STK")
    got = all_of(path)
    assert got.shape in ((20, 32, 5, 1, 1), (20, 32, 1, 1, 5))
    np.testing.assert_array_equal(np.moveaxis(got.squeeze(), -1, 0), data)


def pyramid(path: Path, levels: list[Array], *, subifds: bool, flagged: bool = True) -> Path:
    with tifffile.TiffWriter(path) as tif:
        for n, level in enumerate(levels):
            tif.write(
                level,
                tile=(16, 16),
                compression="zlib",
                photometric="minisblack",
                subifds=len(levels) - 1 if n == 0 and subifds else None,
                subfiletype=1 if n and flagged else 0,
                metadata=None,
            )
    return path


@pytest.mark.parametrize("subifds", [True, False])
@pytest.mark.parametrize("flagged", [True, False])
def test_pyramids(tmp_path: Path, *, subifds: bool, flagged: bool) -> None:
    full = coded((101, 83))
    levels = [full, full[:100:2, :82:2], full[:100:4, :80:4]]
    path = pyramid(tmp_path / "a.tif", levels, subifds=subifds, flagged=flagged)
    if not subifds and not flagged:  # nothing says that the pages show the same
        for n, level in enumerate(levels):
            same(all_of(path, series=n), yxzct(level, "YX"))
        return
    with BioReader(path) as br:
        assert (br.n_series, br.levels) == (1, 3)
        assert [s[:2] for s in br.level_shapes] == [v.shape for v in levels]
    for n, level in enumerate(levels):
        same(all_of(path, level=n), yxzct(level, "YX"))


def test_pages_of_two_sizes_are_two_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    large, small = coded((3, 40, 50)), coded((2, 20, 25))
    with tifffile.TiffWriter(path) as tif:
        for page in (large[0], small[0], large[1], small[1], large[2]):
            tif.write(page, metadata=None, contiguous=False)
    same(all_of(path, series=0), yxzct(large, "TYX"))
    same(all_of(path, series=1), yxzct(small, "TYX"))


def test_pixel_size_of_a_level_is_a_whole_multiple(tmp_path: Path) -> None:
    full = coded((155, 311))
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(
            full,
            subifds=2,
            tile=(16, 16),
            metadata={"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25},
        )
        tif.write(full[::2, ::2], tile=(16, 16), subfiletype=1)
        tif.write(full[:152:4, :308:4], tile=(16, 16), subfiletype=1)
    for level, factor in ((0, 1), (1, 2), (2, 4)):
        with BioReader(path, level=level) as br:
            assert br.pixel_size("µm")[:2] == (0.25 * factor, 0.5 * factor)


# ---------------------------------------------------------------------- unusual storage


def test_sparse_tiles_are_zero(tmp_path: Path) -> None:
    data = coded((64, 64))
    tiles = [data[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    for compression in (None, "zlib", "lzw"):
        path = write(
            tmp_path / "a.tif",
            iter([tiles[0], None, None, tiles[3]]),
            shape=data.shape,
            dtype=data.dtype,
            tile=(32, 32),
            compression=compression,
        )
        want = data.copy()
        want[:32, 32:] = want[32:, :32] = 0
        same(all_of(path), yxzct(want, "YX"))
        with BioReader(path) as br:
            np.testing.assert_array_equal(br[20:40, 20:40], want[20:40, 20:40])


def test_sparse_strips_are_zero(tmp_path: Path) -> None:
    rows = [coded((4, 10)).tobytes(), b"", coded((4, 10), "i2").tobytes()]
    for compression in (1, 8):
        data = [imagecodecs.zlib_encode(r) if compression == 8 and r else r for r in rows]
        path = tmp_path / "a.tif"
        path.write_bytes(build([*gray(10, 12, 16, compression), tag(278, "I", 4)], data))
        got = all_of(path)[..., 0, 0, 0]
        np.testing.assert_array_equal(got[:4], coded((4, 10)))
        assert not got[4:8].any()
        np.testing.assert_array_equal(got[8:], coded((4, 10), "i2").view("u2"))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_volumetric_tiles(tmp_path: Path, compression: str | None) -> None:
    data = coded((11, 40, 50))
    path = write(
        tmp_path / "a.tif", data, volumetric=True, tile=(4, 16, 32), compression=compression
    )
    same(all_of(path), yxzct(data, "ZYX"))
    with BioReader(path) as br:
        np.testing.assert_array_equal(
            br[3:30:3, 5:48, ::-3], yxzct(data, "ZYX")[3:30:3, 5:48, ::-3, 0, 0]
        )


def test_strips_that_lie_in_any_order(tmp_path: Path) -> None:
    data = coded((12, 10))
    strips = [data[r : r + 4].tobytes() for r in (0, 4, 8)]
    path = tmp_path / "a.tif"
    blob = build([*gray(10, 12), tag(278, "I", 4)], strips, place=[2, 0, 1])
    path.write_bytes(blob)
    same(all_of(path), yxzct(data, "YX"))


def test_strip_that_is_too_short_is_not_filled_up_from_its_neighbour(tmp_path: Path) -> None:
    data = coded((12, 10))
    strips = [data[r : r + 4].tobytes() for r in (0, 4, 8)]
    path = tmp_path / "a.tif"
    path.write_bytes(build([*gray(10, 12), tag(278, "I", 4)], strips, counts=[80, 60, 80]))
    with BioReader(path) as br, pytest.raises(DamagedFileError, match="strip 1"):
        br[:]


def test_length_of_a_lonely_strip_may_be_wrong(tmp_path: Path) -> None:
    """As libtiff does: the size of the image says how long the strip is."""
    data = coded((12, 10))
    path = tmp_path / "a.tif"
    path.write_bytes(build([*gray(10, 12), tag(278, "I", 12)], [data.tobytes()], counts=[7]))
    same(all_of(path), yxzct(data, "YX"))


def test_default_rows_per_strip_means_all(tmp_path: Path) -> None:
    data = coded((12, 10))
    path = tmp_path / "a.tif"
    for rows in ([], [tag(278, "I", 2**32 - 1)], [tag(278, "I", 5000)]):
        path.write_bytes(build([*gray(10, 12), *rows], [data.tobytes()]))
        same(all_of(path), yxzct(data, "YX"))


def test_tile_that_decodes_to_another_size_or_type_is_refused(tmp_path: Path) -> None:
    tile = coded((16, 16), "u1")
    for wrong in (tile[:1], tile[:, :8], coded((16, 16), "u2"), np.dstack([tile] * 3)):
        blob = build(
            [*gray(16, 16, 8, 34933), tag(322, "I", 16), tag(323, "I", 16)],
            [imagecodecs.png_encode(np.ascontiguousarray(wrong))],
        )
        path = tmp_path / "a.tif"
        path.write_bytes(blob)
        with BioReader(path) as br, pytest.raises(DamagedFileError, match="tile 0"):
            br[:]


def test_pages_of_an_image_may_be_stored_each_in_its_own_way(tmp_path: Path) -> None:
    data = coded((6, 70, 50))
    path = tmp_path / "a.ome.tif"
    ways: list[dict[str, Any]] = [
        {"rowsperstrip": 7},
        {"rowsperstrip": 70},
        {"tile": (16, 32)},
        {"tile": (32, 32), "compression": "zlib"},
        {"compression": "lzw", "rowsperstrip": 9},
        {"compression": "zstd", "predictor": 2},
    ]
    for turn in range(6):
        order = ways[turn:] + ways[:turn]
        with tifffile.TiffWriter(path, ome=False) as tif:
            for n, (page, way) in enumerate(zip(data, order, strict=True)):
                xml = ome_xml([image(50, 70, z=6)]) if n == 0 else None
                tif.write(page, description=xml, metadata=None, photometric="minisblack", **way)
        same(all_of(path), yxzct(data, "ZYX"))
        with BioReader(path) as br:
            np.testing.assert_array_equal(
                br[5:60:3, 3:40:5, ::-1], yxzct(data, "ZYX")[5:60:3, 3:40:5, ::-1, 0, 0]
            )


def test_pages_of_another_size_inside_an_image_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=False) as tif:
        tif.write(coded((20, 30)), description=ome_xml([image(30, 20, z=2)]), metadata=None)
        tif.write(coded((10, 30)), metadata=None, contiguous=False)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:, :, 0], coded((20, 30)))
        with pytest.raises(UnsupportedError, match="30 x 10"):
            br[:, :, 1]


def test_threads_share_a_reader_of_many_pages(tmp_path: Path) -> None:
    data = coded((60, 24, 40))
    for name, options in {"ome": {"ome": True}, "plain": {"metadata": None}}.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, data, photometric="minisblack", compression="zlib", **options)
        with BioReader(path, max_workers=2) as br:
            axis = br.shape.index(60)
            wrong: list[int] = []

            def work(
                start: int, br: BioReader = br, axis: int = axis, wrong: list[int] = wrong
            ) -> None:
                for n in range(start, 60, 3):
                    key = [slice(None)] * 5
                    key[axis] = n  # type: ignore[call-overload]
                    if not (br[tuple(key)].reshape(24, 40) == data[n]).all():
                        wrong.append(n)

            threads = [threading.Thread(target=work, args=(s,)) for s in (0, 1, 2, 0, 1, 2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong


# ---------------------------------------------------------------------- OME-TIFF


def image(
    x: int,
    y: int,
    z: int = 1,
    c: int = 1,
    t: int = 1,
    order: str = "XYZCT",
    kind: str = "uint16",
    data: str | None = None,
    name: str = "",
    n: int = 0,
    channels: str = "",
) -> str:
    data = "<TiffData/>" if data is None else data
    return (
        f'<Image ID="Image:{n}" Name="{name}"><Pixels ID="Pixels:{n}" DimensionOrder="{order}" '
        f'Type="{kind}" SizeX="{x}" SizeY="{y}" SizeZ="{z}" SizeC="{c}" SizeT="{t}">'
        f"{channels}{data}</Pixels></Image>"
    )


def ome_xml(images: list[str], root: str = "") -> str:
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    space = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    return f'{head}<OME xmlns="{space}" {root}>{"".join(images)}</OME>'


def planes(where: list[tuple[int, int, int, int, str, str]]) -> str:
    """TiffData for (z, c, t, ifd, uuid, file name)."""
    return "".join(
        f'<TiffData FirstZ="{z}" FirstC="{c}" FirstT="{t}" IFD="{ifd}" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{u}</UUID></TiffData>'
        for z, c, t, ifd, u, name in where
    )


def ome_file(path: Path, pages: Array, xml: str | None, **options: Any) -> Path:
    with tifffile.TiffWriter(path, ome=False) as tif:
        for n, page in enumerate(pages):
            tif.write(
                page,
                description=xml if n == 0 else None,
                metadata=None,
                contiguous=False,
                **{"photometric": "minisblack", **options},
            )
    return path


@pytest.mark.parametrize("order", ["XYZCT", "XYZTC", "XYCTZ", "XYCZT", "XYTCZ", "XYTZC"])
def test_ome_plane_orders(tmp_path: Path, order: str) -> None:
    sizes = {"Z": 2, "C": 3, "T": 4}
    data = coded((*(sizes[a] for a in order[:1:-1]), 20, 30))
    xml = ome_xml([image(30, 20, 2, 3, 4, order)])
    path = ome_file(tmp_path / "a.ome.tif", data.reshape(-1, 20, 30), xml)
    same(all_of(path), yxzct(data, order[:1:-1] + "YX"))


def test_ome_written_by_tifffile(tmp_path: Path) -> None:
    data = coded((2, 3, 4, 20, 30))
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path,
        data,
        photometric="minisblack",
        metadata={
            "axes": "TCZYX",
            "Channel": {"Name": ["a", "b", "c"]},
            "PhysicalSizeX": 0.25,
            "PhysicalSizeXUnit": "µm",
            "TimeIncrement": 2.0,
        },
    )
    same(all_of(path), yxzct(data, "TCZYX"))
    with BioReader(path) as br:
        assert br.channel_names == ["a", "b", "c"]
        assert br.ps_x == (0.25, "µm")
        assert br.time_increment == (2.0, "s")
        assert br.notes == ()


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_ome_rgb_channels_come_before_samples(tmp_path: Path, planar: str) -> None:
    axes = "TCYXS" if planar == "contig" else "TCSYX"
    sizes = {"T": 2, "C": 2, "Y": 20, "X": 30, "S": 3}
    data = coded(tuple(sizes[a] for a in axes), "u1")
    channel = '<Channel ID="Channel:0:{}" SamplesPerPixel="3" Name="{}"/>'
    xml = ome_xml(
        [
            image(
                30,
                20,
                c=6,
                t=2,
                kind="uint8",
                channels=channel.format(0, "a") + channel.format(1, "b"),
            )
        ]
    )
    pages = data.reshape(4, *data.shape[2:])
    path = ome_file(tmp_path / "a.tif", pages, xml, photometric="rgb", planarconfig=planar)
    same(all_of(path), yxzct(data, axes))
    with BioReader(path) as br:
        assert br.channel_names == ["a"] * 3 + ["b"] * 3
        assert br.samples_per_pixel == 3


def test_ome_series(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    parts = [coded((3, 20, 30)), coded((2, 40, 10), "f4"), coded((1, 16, 16), "u1")]
    with tifffile.TiffWriter(path) as tif:
        for n, part in enumerate(parts):
            tif.write(part, metadata={"axes": "ZYX", "Name": f"part {n}"}, photometric=1)
    with BioReader(path) as br:
        assert br.series_names == ["part 0", "part 1", "part 2"]
    for n, part in enumerate(parts):
        same(all_of(path, series=n), yxzct(part, "ZYX"))
        same(all_of(path, series=n - 3), yxzct(part, "ZYX"))


@pytest.fixture
def members(tmp_path: Path) -> tuple[Path, list[str], Array]:
    """Three files of one image, each with the same document; plane (c, t) is page t of file c."""
    data = coded((3, 2, 20, 30))  # c t y x
    names = [f"m{c}.ome.tif" for c in range(3)]
    ids = [str(uuid.UUID(int=c + 1)) for c in range(3)]
    where = [(0, c, t, t, ids[c], names[c]) for c in range(3) for t in range(2)]
    for c in range(3):
        xml = ome_xml([image(30, 20, c=3, t=2, data=planes(where))], f'UUID="urn:uuid:{ids[c]}"')
        ome_file(tmp_path / names[c], data[c], xml)
    return tmp_path, names, data


def test_multi_file_opened_from_any_member(members: tuple[Path, list[str], Array]) -> None:
    folder, names, data = members
    for name in names:
        same(all_of(folder / name), yxzct(data, "CTYX"))
        with BioReader(folder / name) as br:
            assert br.notes == ()


def test_multi_file_with_a_missing_member(members: tuple[Path, list[str], Array]) -> None:
    folder, names, data = members
    for gone in (0, 1):
        (folder / names[gone]).rename(folder / "away")
        with BioReader(folder / names[2]) as br:
            assert br.shape == (20, 30, 1, 3, 2)
            assert any(names[gone] in note for note in br.notes)
            for c in range(3):
                if c == gone:
                    with pytest.raises(DamagedFileError):
                        br[:, :, 0, c]
                else:
                    np.testing.assert_array_equal(br[:, :, 0, c, 1], data[c, 1])
            with pytest.raises(DamagedFileError):
                br[:]
        (folder / "away").rename(folder / names[gone])


def test_multi_file_with_renamed_members(members: tuple[Path, list[str], Array]) -> None:
    folder, names, data = members
    for c, name in enumerate(names):
        (folder / name).rename(folder / f"new{c}.tif")
    for c in range(3):
        same(all_of(folder / f"new{c}.tif"), yxzct(data, "CTYX"))
    with BioReader(folder / "new1.tif") as br:
        assert any("m0.ome.tif" in note and "new0.tif" in note for note in br.notes)


def test_multi_file_with_a_stranger_under_the_name(
    members: tuple[Path, list[str], Array],
) -> None:
    folder, names, data = members
    other = coded((2, 20, 30), "i2").view("u2")
    xml = ome_xml([image(30, 20, t=2)], f'UUID="urn:uuid:{uuid.UUID(int=99)}"')
    ome_file(folder / names[1], other, xml)
    with BioReader(folder / names[0]) as br:
        np.testing.assert_array_equal(br[:, :, 0, 2, 1], data[2, 1])
        for _ in range(2):  # the second time as well
            with pytest.raises(DamagedFileError, match="another set"):
                br[:, :, 0, 1, 0]


def test_multi_file_member_that_is_no_tiff(members: tuple[Path, list[str], Array]) -> None:
    folder, names, data = members
    (folder / names[1]).write_text("not a TIFF")
    with BioReader(folder / names[0]) as br:
        np.testing.assert_array_equal(br[:, :, 0, 0, 1], data[0, 1])
        with pytest.raises(DamagedFileError):
            br[:, :, 0, 1, 0]


def test_multi_file_members_in_a_folder_below(tmp_path: Path) -> None:
    data = coded((2, 20, 30))
    u = str(uuid.uuid4())
    (tmp_path / "sub").mkdir()
    ome_file(tmp_path / "sub" / "b.tif", data[1:], None)
    where = planes([(0, 0, 0, 0, u, "a.ome.tif"), (0, 0, 1, 0, u, "sub/b.tif")])
    xml = ome_xml([image(30, 20, t=2, data=where)])
    path = ome_file(tmp_path / "a.ome.tif", data[:1], xml)
    same(all_of(path), yxzct(data, "TYX"))


def test_multi_file_members_may_be_links(tmp_path: Path) -> None:
    """Data stores such as git-annex keep the bytes elsewhere, and links under the names."""
    data = coded((2, 20, 30))
    u = str(uuid.uuid4())
    (tmp_path / "store").mkdir()
    (tmp_path / "set").mkdir()
    where = planes([(0, 0, n, 0, u, f"{n}.ome.tif") for n in range(2)])
    for n in range(2):
        xml = ome_xml([image(30, 20, t=2, data=where)])
        ome_file(tmp_path / "store" / f"k{n}", data[n : n + 1], xml)
        (tmp_path / "set" / f"{n}.ome.tif").symlink_to(tmp_path / "store" / f"k{n}")
    same(all_of(tmp_path / "set" / "0.ome.tif"), yxzct(data, "TYX"))


def test_companion_file(tmp_path: Path) -> None:
    data = coded((2, 3, 20, 30))
    ids = [str(uuid.uuid4()) for _ in range(2)]
    where = [(z, 0, t, z, ids[t], f"t{t}.tif") for t in range(2) for z in range(3)]
    master = tmp_path / "set.companion.ome"
    master.write_text(ome_xml([image(30, 20, z=3, t=2, data=planes(where), name="both")]))
    for t in range(2):
        stub = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{ids[t]}"><BinaryOnly MetadataFile="set.companion.ome" '
            f'UUID="urn:uuid:{uuid.uuid4()}"/></OME>'
        )
        ome_file(tmp_path / f"t{t}.tif", data[t], stub)
    for name in ("set.companion.ome", "t0.tif", "t1.tif"):
        same(all_of(tmp_path / name), yxzct(data, "TZYX"))
        with BioReader(tmp_path / name) as br:
            assert br.name == "both"
    master.unlink()
    with BioReader(tmp_path / "t1.tif") as br:  # what the file itself holds can still be had
        assert any("set.companion.ome" in note for note in br.notes)
    same(all_of(tmp_path / "t1.tif"), yxzct(data[1], "TYX"))


def test_master_file(tmp_path: Path) -> None:
    """One of the TIFFs speaks for all: by "this file" it means itself, whichever was opened."""
    data = coded((2, 3, 20, 30))
    ids = [str(uuid.uuid4()) for _ in range(2)]
    other = planes([(z, 0, 1, z, ids[1], "t1.tif") for z in range(3)])
    stub = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="urn:uuid:{ids[1]}"><BinaryOnly MetadataFile="t0.tif" UUID="urn:uuid:{ids[0]}"/>'
        "</OME>"
    )
    ome_file(tmp_path / "t1.tif", data[1], stub)
    named = planes([(z, 0, 0, z, ids[0], "t0.tif") for z in range(3)])
    unnamed = '<TiffData FirstT="0" IFD="0" PlaneCount="3"/>'
    for own in (named, unnamed):
        xml = ome_xml([image(30, 20, z=3, t=2, data=own + other)], f'UUID="urn:uuid:{ids[0]}"')
        ome_file(tmp_path / "t0.tif", data[0], xml)
        for name in ("t0.tif", "t1.tif"):
            same(all_of(tmp_path / name), yxzct(data, "TZYX"))
            with BioReader(tmp_path / name) as br:
                assert br.notes == ()
    ome_file(tmp_path / "t0.tif", data[0], ome_xml([image(30, 20, z=3, data="")]))
    same(all_of(tmp_path / "t1.tif"), yxzct(data[0], "ZYX"))


def test_bool_that_is_stored_as_bytes_is_what_the_document_says(tmp_path: Path) -> None:
    note = (
        '<StructuredAnnotations><MapAnnotation ID="Annotation:b" Namespace="bioio_tk/pixel-type">'
        '<Value><M K="dtype">bool</M></Value></MapAnnotation></StructuredAnnotations>'
    )
    pixels = image(30, 20, kind="uint8").replace("</Image>", '<AnnotationRef ID="Annotation:b"/>')
    data = (coded((1, 20, 30)) % 2).astype("u1")
    path = ome_file(tmp_path / "a.ome.tif", data, ome_xml([pixels + "</Image>", note]))
    with BioReader(path) as br:
        assert br.dtype == bool
        assert br.notes == ()
    same(all_of(path), yxzct(data.astype(bool), "TYX"))


def test_ome_pyramid_of_planes_in_subifds(tmp_path: Path) -> None:
    data = coded((3, 64, 48))
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(data, subifds=2, tile=(16, 16), metadata={"axes": "ZYX"}, photometric=1)
        tif.write(data[:, ::2, ::2], tile=(16, 16), subfiletype=1)
        tif.write(data[:, ::4, ::4], tile=(16, 16), subfiletype=1)
    for level in range(3):
        step = 2**level
        same(all_of(path, level=level), yxzct(data[:, ::step, ::step], "ZYX"))


# ---------------------------------------------------------------------- OME-XML with defects


def _mended(tmp_path: Path, xml: str, pages: int = 2) -> tuple[Array, tuple[str, ...]]:
    path = tmp_path / "a.ome.tif"
    path.write_bytes(_with_description(coded((pages, 20, 30)), xml.encode()))
    with BioReader(path) as br:
        return all_of(path), br.notes


def _with_description(pages: Array, text: bytes) -> bytes:
    """A chain of raw pages, the first one with a description of any bytes."""
    count, height, width = pages.shape
    blob = b""
    for n in range(count):
        tags = [*gray(width, height), tag(278, "I", height)]
        if n == 0:
            tags.append(tag(270, "s", text))
        blob = build(tags, [pages[n].tobytes()], after=blob)
    return blob


GOOD = image(30, 20, z=2)
DEFECTS = {
    "no namespace": "<OME>" + GOOD + "</OME>",
    "no TiffData": ome_xml([image(30, 20, z=2, data="")]),
    "wrong sizes": ome_xml([image(31, 19, z=2)]),
    "wrong type": ome_xml([image(30, 20, z=2, kind="uint8")]),
    "unknown type": ome_xml([image(30, 20, z=2, kind="short")]),
    "unknown order": ome_xml([image(30, 20, z=2, order="XYZ")]),
    "bare ampersand": ome_xml([image(30, 20, z=2, name="A & B")]),
    "control characters": ome_xml([image(30, 20, z=2, name="a\x07b\x1f")]),
    "text behind": ome_xml([GOOD]) + "\n",
    "NUL behind": ome_xml([GOOD]) + "\0\0",
    "entities of HTML": ome_xml([image(30, 20, z=2, name="&micro;m")]),
    "prefix": ome_xml([GOOD])
    .replace("<", "<ome:")
    .replace("<ome:/", "</ome:")
    .replace("<ome:?", "<?")
    .replace("xmlns=", "xmlns:ome="),
    "planes beyond the sizes": ome_xml(
        [
            image(
                30, 20, z=2, data='<TiffData IFD="0" PlaneCount="2"/><TiffData FirstZ="7" IFD="0"/>'
            )
        ]
    ),
    "negative attributes": ome_xml(
        [image(30, 20, z=2, data='<TiffData IFD="0" FirstZ="-1" PlaneCount="2"/>')]
    ),
    "absurd PlaneCount": ome_xml(
        [image(30, 20, z=2, data='<TiffData IFD="0" PlaneCount="999999999999"/>')]
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_ome_xml_that_can_be_mended(tmp_path: Path, defect: str) -> None:
    got, _ = _mended(tmp_path, DEFECTS[defect])
    same(got, yxzct(coded((2, 20, 30)), "ZYX"))


HOPELESS = {
    "cut short": ome_xml([GOOD])[:-60],
    "no image": ome_xml([]),
    "crossed elements": ome_xml([GOOD]).replace("</Pixels></Image>", "</Image></Pixels>"),
    "a bomb": "<!DOCTYPE x [<!ENTITY a 'aa'>]>" + ome_xml([GOOD]),
    "absurd SizeZ": ome_xml([image(30, 20, z=2**40)]),
    "absurd SizeC": ome_xml([image(30, 20, c=10**12)]),
    "absurd product": ome_xml([image(30, 20, z=2**15, c=2**15, t=2**15)]),
}


@pytest.mark.parametrize("defect", HOPELESS)
def test_ome_xml_that_cannot_be_used_gives_way_to_the_tiff(tmp_path: Path, defect: str) -> None:
    got, notes = _mended(tmp_path, HOPELESS[defect])
    same(got, yxzct(coded((2, 20, 30)), "TYX"))
    assert any("not usable" in note for note in notes)


def test_ome_xml_that_promises_more_planes_than_there_are(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    path.write_bytes(_with_description(coded((2, 20, 30)), ome_xml([image(30, 20, z=5)]).encode()))
    with BioReader(path) as br:
        assert br.shape == (20, 30, 5, 1, 1)
        assert br.notes
        np.testing.assert_array_equal(br[:, :, :2], yxzct(coded((2, 20, 30)), "ZYX")[..., 0, 0])
        with pytest.raises(DamagedFileError):
            br[:, :, 2]


def test_ome_xml_in_a_page_of_channels_that_are_samples(tmp_path: Path) -> None:
    """SizeC says 1, the pages are RGB: pixels win."""
    data = coded((2, 20, 30, 3), "u1")
    xml = ome_xml([image(30, 20, z=2, c=1, kind="uint8")])
    path = ome_file(tmp_path / "a.ome.tif", data, xml, photometric="rgb")
    same(all_of(path), yxzct(data, "ZYXS"))


def test_a_tiff_of_pages_beyond_the_first_in_the_document(tmp_path: Path) -> None:
    data = coded((4, 20, 30))
    xml = ome_xml([image(30, 20, z=2, data='<TiffData IFD="2" PlaneCount="2"/>')])
    path = tmp_path / "a.ome.tif"
    path.write_bytes(_with_description(data, xml.encode()))
    same(all_of(path), yxzct(data[2:], "ZYX"))


def test_nothing_is_logged_or_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.tif", coded((20, 30)), compression="zlib")
    with caplog.at_level(logging.DEBUG):
        all_of(path)
    assert not [r for r in caplog.records if r.name.startswith("bioio_tk")]


def test_pixels_of_a_format_that_is_no_format(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(build([*gray(16, 16, 16, 60123), tag(278, "I", 16)], [bytes(512)]))
    with pytest.raises((FormatError, UnsupportedError)), BioReader(path) as br:
        br[:]


def test_bigtiff_with_wide_tables(tmp_path: Path) -> None:
    data = coded((12, 10))
    strips = [data[r : r + 4].tobytes() for r in (0, 4, 8)]
    path = tmp_path / "a.tif"
    for kind in "IQ":
        path.write_bytes(
            build([*gray(10, 12), tag(278, "I", 4)], strips, order=">", big=True, table=kind)
        )
        if kind == "Q":
            assert struct.unpack(">H", path.read_bytes()[2:4]) == (43,)
        want = data.view("u2").byteswap().view("u2")
        same(all_of(path), yxzct(want, "YX"))
