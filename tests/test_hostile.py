"""Bad input: whatever a file says, the answer is right pixels or an error made for it."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_tiff
import imagecodecs
import numpy as np
import pytest
import tifffile
from fuzz_tiff import build, tag
from test_tiff_read import (
    _with_description,
    coded,
    gray,
    image,
    ome_file,
    ome_xml,
    planes,
    same,
    yxzct,
)
from test_tiff_read import all_of as read_all

from bioio_tk import BioReader
from bioio_tk.errors import (
    BackendMissingError,
    BioIOError,
    ClosedError,
    DamagedFileError,
    FormatError,
    RegionError,
    SpecError,
    UnknownFormatError,
)

MIB = 1 << 20


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Spare the log tifffile's complaints."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def child(code: str, *args: Any, memory: int = 2 << 30, optimise: bool = False) -> str:
    """Run code in a process with little memory; return what it prints."""
    head = (
        "import resource, sys, logging; logging.disable(logging.CRITICAL)\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))\n"
        "from bioio_tk import BioReader\nfrom bioio_tk.errors import *\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
    )
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable,
            *(["-O"] if optimise else []),
            "-c",
            head + textwrap.dedent(code),
            *map(str, args),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------------- no image at all


def test_missing_file(tmp_path: Path) -> None:
    for backend in (None, "python", "memory"):
        with pytest.raises(FileNotFoundError, match=r"nothing\.tif"):
            BioReader(tmp_path / "nothing.tif", backend=backend)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="folder"):
        BioReader(tmp_path)
    with pytest.raises(IsADirectoryError):
        BioReader(tmp_path, backend="python")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"I",
        b"II",
        b"II*\0",
        b"II*\0\0\0",
        b"MM\0*\0\0\0\x08",
        b"II+\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"hello, this is text",
        b"\x89PNG\r\n\x1a\n",
        b"<?xml version='1.0'?><html/>",
        b"<?xml",
        b"<OME",
        b"<OME/>",
        bytes(5000),
        b"\xff" * 5000,
    ],
)
def test_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    for backend in (None, "python"):
        # what seems to be a PNG is for Bio-Formats, which may not be here
        with pytest.raises((FormatError, BackendMissingError)):
            BioReader(path, backend=backend)


def test_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"")
    with pytest.raises(UnknownFormatError, match="empty"):
        BioReader(tmp_path / "a.tif")


@pytest.mark.parametrize("path", [None, 5, b"a.tif", "", ["a.tif"], 1.5])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(SpecError):
        BioReader(path)


def test_path_with_a_nul() -> None:
    with pytest.raises((BioIOError, OSError, ValueError)):
        BioReader("a\0b.tif")


# ---------------------------------------------------------------------- cut files


def kinds(folder: Path) -> dict[str, tuple[Path, Any]]:
    pixels = coded((3, 48, 40))
    found = {}

    def add(name: str, **options: Any) -> None:
        path = folder / f"{name}.tif"
        tifffile.imwrite(path, pixels, photometric="minisblack", **options)
        found[name] = (path, pixels)

    add("raw_strips", metadata=None, rowsperstrip=16)
    add("raw_tiles", metadata=None, tile=(16, 16))
    add("deflate_tiles", metadata=None, tile=(16, 16), compression="zlib", predictor=2)
    add("lzw_strips", metadata=None, rowsperstrip=16, compression="lzw")
    add("zstd_big", metadata=None, tile=(32, 32), compression="zstd", bigtiff=True)
    add("packbits", metadata=None, rowsperstrip=8, compression="packbits", byteorder=">")
    add("lzma", metadata=None, tile=(32, 32), compression="lzma")
    add("jpeg2000", metadata=None, tile=(32, 32), compression="jpeg2000")
    add("lerc", metadata=None, tile=(32, 32), compression="lerc")
    add("ome", ome=True, tile=(16, 16), compression="zlib", metadata={"axes": "ZYX"})
    add("ome_raw", ome=True, metadata={"axes": "TYX"})
    add("imagej", imagej=True, metadata={"axes": "ZYX"})
    add("shaped", metadata={"axes": "CYX"})
    return found


KINDS = ["raw_strips", "raw_tiles", "deflate_tiles", "lzw_strips", "zstd_big", "packbits", "lzma",
         "jpeg2000", "lerc", "ome", "ome_raw", "imagej", "shaped"]  # fmt: skip


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    return kinds(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("kind", KINDS)
def test_cut_file_gives_right_pixels_or_an_error(
    tmp_path: Path, samples: dict[str, tuple[Path, Any]], kind: str
) -> None:
    """Cut at every 16th byte: an error, or all the pixels, and never others."""
    source, pixels = samples[kind]
    blob = source.read_bytes()
    path = tmp_path / "a.tif"
    right = 0
    with BioReader(source) as br:
        shape = br.shape
    every = max(16, len(blob) // 600 // 16 * 16)
    for size in [*range(0, len(blob), every), *range(len(blob) - 40, len(blob))]:
        path.write_bytes(blob[:size])
        try:
            with BioReader(path, max_workers=1) as br:
                assert br.shape == shape, f"{size} of {len(blob)} bytes"
                for n in range(3):
                    axis = shape.index(3)
                    key: list[Any] = [slice(None)] * 5
                    key[axis] = n
                    try:
                        got = br[tuple(key)]
                    except BioIOError:
                        continue
                    right += 1
                    np.testing.assert_array_equal(got.reshape(48, 40), pixels[n])
        except BioIOError:
            continue
    assert right or every > 16 or kind in ("imagej", "ome", "ome_raw")  # their text comes last


def test_cut_inside_a_pyramid(tmp_path: Path) -> None:
    pixels = coded((64, 64))
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels, subifds=1, tile=(16, 16), compression="zlib")
        tif.write(pixels[::2, ::2], subfiletype=1, tile=(16, 16), compression="zlib")
    blob = path.read_bytes()
    for size in range(16, len(blob), 16):
        path.write_bytes(blob[:size])
        for level in (0, 1):
            try:
                with BioReader(path, level=level) as br:
                    got = br[:]
            except (BioIOError, IndexError):
                continue
            np.testing.assert_array_equal(got, pixels[:: level + 1, :: level + 1])


# ---------------------------------------------------------------------- directories


def test_chain_that_runs_in_a_circle(tmp_path: Path) -> None:
    page = [*gray(8, 8), tag(278, "I", 8)]
    blob = build(page, [coded((8, 8)).tobytes()])
    blob = bytearray(build(page, [coded((8, 8), "i2").tobytes()], after=blob))
    at = fuzz_tiff._last_pointer(bytes(blob), "<", big=False)
    path = tmp_path / "a.tif"
    for target in (8, fuzz_first(blob)):
        struct.pack_into("<I", blob, at, target)
        path.write_bytes(blob)
        with pytest.raises(DamagedFileError, match="points back"):
            BioReader(path)


def fuzz_first(blob: bytes) -> int:
    """Return the offset of the second directory."""
    count = struct.unpack_from("<H", blob, 8)[0]
    return int(struct.unpack_from("<I", blob, 10 + 12 * count)[0])


def test_ome_pages_in_a_circle(tmp_path: Path) -> None:
    blob = bytearray(_with_description(coded((2, 20, 30)), ome_xml([image(30, 20, z=50)]).encode()))
    struct.pack_into("<I", blob, fuzz_tiff._last_pointer(bytes(blob), "<", big=False), 8)
    path = tmp_path / "a.ome.tif"
    path.write_bytes(blob)
    try:
        with BioReader(path) as br:
            np.testing.assert_array_equal(br[:, :, 1], coded((2, 20, 30))[1])
            with pytest.raises(DamagedFileError):
                br[:, :, 2]
    except DamagedFileError:
        pass


def test_subifds_in_a_circle(tmp_path: Path) -> None:
    for value in (8, 4, 2**32 - 1, 60, 0):
        path = tmp_path / "a.ome.tif"
        tags = [
            *gray(30, 20),
            tag(278, "I", 20),
            tag(270, "s", ome_xml([image(30, 20)]).encode()),
            tag(330, "I", value),
        ]
        path.write_bytes(build(tags, [coded((20, 30)).tobytes()]))
        try:
            with BioReader(path) as br:
                got = br[:]
        except BioIOError:
            continue
        np.testing.assert_array_equal(got, coded((20, 30)))


def test_subifds_that_are_no_offsets(tmp_path: Path) -> None:
    """Found by the fuzzer: each of them would be looked up."""
    path = tmp_path / "a.tif"
    page = [*gray(30, 20), tag(278, "I", 20)]
    data = [coded((20, 30)).tobytes()]
    for odd in (tag(330, "s", bytes(range(8, 250)) * 20), tag(330, "I", *range(8, 5000))):
        for first, second in ((odd, []), ([], odd)):
            blob = build([*page, *([first] if first else [])], data)
            path.write_bytes(build([*page, *([second] if second else [])], data, after=blob))
            began = time.process_time()
            with pytest.raises(DamagedFileError, match="SubIFDs"):
                BioReader(path)
            assert time.process_time() - began < 5


@pytest.mark.parametrize("code", [256, 257, 278, 322, 323])
@pytest.mark.parametrize("kind", [11, 12, 2, 5, 6, 10])
def test_sizes_of_a_type_that_is_no_integer(tmp_path: Path, code: int, kind: int) -> None:
    tags = [*gray(32, 32, 8), tag(322, "I", 32), tag(323, "I", 32)]
    if code == 278:
        tags = [*gray(32, 32, 8), tag(278, "I", 32)]
    blob = bytearray(build(tags, [coded((32, 32), "u1").tobytes()]))
    at = next(p for p in fuzz_tiff._entries(blob) if struct.unpack_from("<H", blob, p)[0] == code)
    struct.pack_into("<H", blob, at + 2, kind)
    for value in (32, 0xC2000000, 0x42000000):
        struct.pack_into("<I", blob, at + 8, value)
        path = tmp_path / "a.ome.tif"
        path.write_bytes(blob)
        fuzz_tiff.attempt(path)


@pytest.mark.parametrize("value", [0, 4, 2**31, 2**32 - 1])
@pytest.mark.parametrize("what", ["offset", "count", "both"])
@pytest.mark.parametrize("compression", [1, 5, 8, 50000, 7, 34712])
def test_tables_that_lead_nowhere(tmp_path: Path, what: str, value: int, compression: int) -> None:
    path = tmp_path / "a.tif"
    data = coded((16, 16), "u1").tobytes()
    encode = {5: imagecodecs.lzw_encode, 8: imagecodecs.zlib_encode, 50000: imagecodecs.zstd_encode}
    coded_tile = bytes(encode.get(compression, bytes)(data))
    good = build(
        [*gray(32, 16, 8, compression), tag(322, "I", 16), tag(323, "I", 16)], [coded_tile] * 2
    )
    start = len(good) - 2 * len(coded_tile)
    offsets, counts = [start, start], [len(coded_tile)] * 2
    if what != "count":
        offsets[1] = value
    if what != "offset":
        counts[1] = value
    path.write_bytes(
        build(
            [*gray(32, 16, 8, compression), tag(322, "I", 16), tag(323, "I", 16)],
            [],
            segments=(offsets, counts),
        )[:start]
        + coded_tile
    )
    first = None
    with BioReader(path) as br:
        if compression in (1, 5, 8, 50000):
            first = br[:, :16]
            np.testing.assert_array_equal(first, coded((16, 16), "u1"))
        try:
            got = br[:, 16:]
        except BioIOError:
            return
    if what == "count" and value:  # more than there is, where the size of a tile says enough
        np.testing.assert_array_equal(got, coded((16, 16), "u1"))
        return
    assert value == 0, "nothing is there"  # left out: zeros, as sparse files mean it
    assert not got.any()


def test_bigtiff_offsets_beyond_any_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for value in (2**62, 2**63 - 1, 2**63, 2**64 - 1):
        blob = bytearray(
            build(
                [*gray(16, 16, 8), tag(278, "I", 16)],
                [],
                big=True,
                table="Q",
                segments=([value], [256]),
            )
        )
        path.write_bytes(blob)
        with pytest.raises(BioIOError), BioReader(path) as br:
            br[:]
        struct.pack_into("<Q", blob, 8, value)
        path.write_bytes(blob)
        with pytest.raises(BioIOError):
            BioReader(path)
    blob = build([*gray(16, 16, 8), tag(278, "I", 16)], [bytes(256)], big=True)
    for value in (2**40, 2**63, 2**64 - 1):  # entries of a directory, values of a tag
        for at in (16, 24 + 4):
            bad = bytearray(blob)
            struct.pack_into("<Q", bad, at, value)
            path.write_bytes(bad)
            with pytest.raises(BioIOError), BioReader(path) as br:
                br[:]


@pytest.mark.parametrize("code", [256, 257, 258, 259, 262, 277, 278, 273, 279, 284, 317, 338, 339])
@pytest.mark.parametrize("value", [0, 1, 3, 7, 65535, 2**31, 2**32 - 1])
def test_absurd_values_of_any_tag(tmp_path: Path, code: int, value: int) -> None:
    path = tmp_path / "a.tif"
    page = [*gray(30, 20, 8), tag(278, "I", 20)]
    page = [t for t in page if t[0] != code]
    if code not in (273, 279):
        page.append(tag(code, "I", value))
    path.write_bytes(
        build(
            page,
            [coded((20, 30), "u1").tobytes()],
            segments=([value], [600]) if code == 273 else None,
            counts=[value] if code == 279 else None,
        )
    )
    fuzz_tiff.attempt(path)  # anything but BioIOError and OSError comes out of it


def test_absurd_sizes_do_not_allocate(tmp_path: Path) -> None:
    """2 KB that claim 2^40 pixels: opening, and reading a corner, cost nothing."""
    cases = {
        "one strip": build([*gray(2**20, 2**20, 8), tag(278, "I", 2**20)], [bytes(600)]),
        "one deflate strip": build(
            [*gray(2**20, 2**20, 8, 8), tag(278, "I", 2**20)], [imagecodecs.zlib_encode(bytes(9))]
        ),
        "one lzw strip": build(
            [*gray(2**20, 2**20, 8, 5), tag(278, "I", 2**20)], [imagecodecs.lzw_encode(bytes(9))]
        ),
        "one tile": build(
            [*gray(2**20, 2**20, 8, 8), tag(322, "I", 2**20), tag(323, "I", 2**20)],
            [imagecodecs.zlib_encode(bytes(9))],
        ),
        "one tile left out": build(
            [*gray(2**20, 2**20, 8, 8), tag(322, "I", 2**20), tag(323, "I", 2**20)], [b""]
        ),
        "one raw tile left out": build(
            [*gray(2**20, 2**20, 8), tag(322, "I", 2**20), tag(323, "I", 2**20)], [b""]
        ),
        "huge tile of a small image": build(
            [*gray(16, 16, 8, 8), tag(322, "I", 2**24), tag(323, "I", 2**24)],
            [imagecodecs.zlib_encode(bytes(9))],
        ),
        "pages": _with_description(
            coded((1, 20, 30)), b"ImageJ=1.54f\nimages=2000000000\nslices=2000000000\n"
        ),
        "planes of OME": _with_description(
            coded((1, 20, 30)), ome_xml([image(30, 20, z=2**30)]).encode()
        ),
        "axes of tifffile": _with_description(
            coded((1, 20, 30)), b'{"shape": [1000000, 1000000, 20, 30], "axes": "TZYX"}'
        ),
        "64-bit": build([*gray(2**31, 2**31, 64), tag(278, "I", 2**31)], [bytes(600)], big=True),
        "samples": build(
            [t for t in gray(2**20, 2**20, 8) if t[0] != 277]
            + [tag(277, "H", 65535), tag(278, "I", 2**20)],
            [bytes(600)],
        ),
    }
    names = []
    for name, blob in cases.items():
        path = tmp_path / f"{name.replace(' ', '_')}.ome.tif"
        path.write_bytes(blob)
        assert path.stat().st_size < 4096
        names.append(path)
    code = """
    before = peak()
    for path in sys.argv[1:]:
        for what in ("shape", "corner", "end", "steps", "list", "all"):
            try:
                with BioReader(path, max_workers=2) as br:
                    y, x, z, c, t = br.shape
                    if what == "corner": br[:5, :5, 0, 0, 0]
                    if what == "end": br[y - 1, x - 1, z - 1, c - 1, t - 1]
                    if what == "steps": br[:: max(1, y // 3), :: max(1, x // 3), 0, 0, 0]
                    if what == "list": br[[0, y - 1], [0, x - 1], 0, 0, 0]
                    if what == "all" and y * x * z * c * t > 2**33: br[:]
            except (BioIOError, MemoryError) as exc:
                if isinstance(exc, MemoryError) and what != "all":
                    raise
        grown = peak() - before
        assert grown < 300e6, (path, grown)
    print("fine")
    """
    assert "fine" in child(code, *names, memory=3 << 30)


# ---------------------------------------------------------------------- bombs


@pytest.mark.parametrize("kind", ["deflate", "zstd", "lzw", "lzma", "packbits"])
@pytest.mark.parametrize("predictor", [False, True])
def test_tile_that_inflates_to_a_gigabyte(tmp_path: Path, kind: str, *, predictor: bool) -> None:
    size = 1 << 30
    if kind == "lzw":
        data = imagecodecs.lzw_encode(bytes(64 << 20))  # its encoder is slow
    elif kind == "packbits":
        data = b"\x81\0" * (size // 16 // 128)
    else:
        encode = {
            "deflate": lambda d: imagecodecs.zlib_encode(d, level=9),
            "zstd": imagecodecs.zstd_encode,
            "lzma": lambda d: imagecodecs.lzma_encode(d, level=1),
        }[kind]
        data = encode(bytes(size if kind == "zstd" else size // 4))
    number = {"deflate": 8, "zstd": 50000, "lzw": 5, "lzma": 34925, "packbits": 32773}[kind]
    tags = [*gray(64, 64, 8, number), tag(322, "I", 64), tag(323, "I", 64)]
    path = tmp_path / "a.tif"
    path.write_bytes(build([*tags, *([tag(317, "H", 2)] if predictor else [])], [bytes(data)]))
    del data
    code = """
    with BioReader(sys.argv[1]) as br:
        br[0, 0]
        before = peak()
        for _ in range(3):
            try:
                assert not br[:].any()
                assert not br[3:9, 4:8].any()
            except BioIOError:
                pass
        assert peak() - before < 40e6, peak() - before
    print("fine")
    """.replace("br[0, 0]", "br.shape")
    assert "fine" in child(code, path, memory=1 << 30)


XML_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(12))
    + ']><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0" '
    'Name="&m;"><Pixels ID="Pixels:0" Type="uint16" SizeX="30" SizeY="20" SizeZ="1" SizeC="1" '
    'SizeT="1" DimensionOrder="XYZCT"><TiffData/></Pixels></Image></OME>'
)
EXTERNAL = XML_BOMB[: XML_BOMB.index("[")] + (
    '[<!ENTITY m SYSTEM "file:///etc/passwd">' + XML_BOMB[XML_BOMB.index("]>") :]
)


@pytest.mark.parametrize("xml", [XML_BOMB, EXTERNAL], ids=["bomb", "external"])
def test_xml_bombs_and_entities_are_not_expanded(tmp_path: Path, xml: str) -> None:
    path = tmp_path / "a.ome.tif"
    path.write_bytes(_with_description(coded((1, 20, 30)), xml.encode()))
    code = """
    before = peak()
    with BioReader(sys.argv[1]) as br:
        assert "root:" not in br.name and "aaa" not in br.name
        br[:]
        try:
            br.metadata
        except BioIOError:
            pass
    assert peak() - before < 150e6
    print("fine")
    """
    assert "fine" in child(code, path)
    companion = tmp_path / "a.companion.ome"
    companion.write_text(xml)
    with pytest.raises(FormatError):
        BioReader(companion)


def test_xml_that_is_nested_or_long_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    for xml in (
        "<OME>" + "<a>" * 100_000,
        "<OME>" + "<Image><Pixels>" * 20_000,
        '<OME a="' + "x" * 10_000_000,
        "<OME>" + "<Image/>" * 300_000 + "</OME>",
        "<OME " + " ".join(f'a{n}="1"' for n in range(50_000)) + "></OME>",
        ome_xml([image(30, 20)] * 3000),
        ome_xml([image(30, 20, data='<TiffData PlaneCount="4096"/>' * 20_000)]),
    ):
        path.write_bytes(_with_description(coded((1, 20, 30)), xml.encode()))
        began = time.process_time()
        np.testing.assert_array_equal(read_all(path)[..., 0, 0, 0], coded((20, 30)))
        assert time.process_time() - began < 10, xml[:60]


# ---------------------------------------------------------------------- other files


@pytest.mark.parametrize(
    "name", ["../secret.tif", "/{abs}/secret.tif", "sub/../../secret.tif", "..\\secret.tif",
             "C:\\secret.tif", "\\\\server\\share\\secret.tif", "a/../../secret.tif"]
)  # fmt: skip
def test_files_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    secret = coded((20, 30), "i2").view("u2")
    tifffile.imwrite(tmp_path / "secret.tif", secret)
    name = name.replace("/{abs}", str(tmp_path))
    uid = "00000000-0000-0000-0000-000000000001"
    where = planes([(0, 0, 0, 0, uid, name)])
    xml = ome_xml([image(30, 20, data=where)])
    path = ome_file(tmp_path / "in" / "a.ome.tif", coded((1, 20, 30)), xml)
    with pytest.raises(FormatError, match="outside"):
        BioReader(path)
    companion = tmp_path / "in" / "a.companion.ome"
    companion.write_text(xml)
    with pytest.raises(FormatError, match="outside"):
        BioReader(companion)
    stub = f'<OME xmlns="x"><BinaryOnly MetadataFile="{name}" UUID="urn:uuid:{uid}"/></OME>'
    path = ome_file(tmp_path / "in" / "b.ome.tif", coded((1, 20, 30)), stub)
    with pytest.raises(FormatError, match="outside"):
        BioReader(path)


@pytest.mark.parametrize("name", ["a" * 5000, "x/" * 3000, "nul\u0001", ".", "sub", "CON"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    where = planes([(0, 0, 0, 0, "u", "a.ome.tif"), (0, 0, 1, 0, "v", name)])
    xml = ome_xml([image(30, 20, t=2, data=where)])
    path = ome_file(tmp_path / "a.ome.tif", coded((1, 20, 30)), xml)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[..., 0], coded((20, 30)))
        with pytest.raises(DamagedFileError):
            br[..., 1]


def test_master_that_names_itself(tmp_path: Path) -> None:
    for target in ("a.companion.ome", "b.companion.ome"):
        for name, other in (("a.companion.ome", target), ("b.companion.ome", "a.companion.ome")):
            (tmp_path / name).write_text(
                f'<OME xmlns="x"><BinaryOnly MetadataFile="{other}" UUID="urn:uuid:1"/></OME>'
            )
        with pytest.raises(FormatError):
            BioReader(tmp_path / "a.companion.ome")


def test_pipe_in_place_of_a_member(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.ome.tif")
    where = planes([(0, 0, 0, 0, "u", "a.ome.tif"), (0, 0, 1, 0, "v", "b.ome.tif")])
    xml = ome_xml([image(30, 20, t=2, data=where)])
    path = ome_file(tmp_path / "a.ome.tif", coded((1, 20, 30)), xml)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[..., 0], coded((20, 30)))


# ---------------------------------------------------------------------- absurd OME sizes


@pytest.mark.parametrize(
    "pixels",
    [
        image(30, 20, z=2**31),
        image(30, 20, c=2**31),
        image(30, 20, t=2**62),
        image(30, 20, z=2**20, c=2**20, t=2**20),
        image(2**31, 2**31),
        image(30, 20).replace('SizeZ="1"', 'SizeZ="-5"'),
        image(30, 20).replace('SizeC="1"', 'SizeC="0"'),
        image(30, 20).replace('SizeT="1"', 'SizeT="1e99"'),
        image(30, 20).replace('SizeT="1"', 'SizeT="nan"'),
        image(30, 20).replace('SizeT="1"', ""),
        image(30, 20, data='<TiffData IFD="0" PlaneCount="99999999999"/>'),
        image(30, 20, data='<TiffData IFD="-1" PlaneCount="-2"/>'),
        image(30, 20, z=4, data='<TiffData FirstZ="9999999999999" IFD="0"/><TiffData/>'),
    ],
)
def test_absurd_ome_sizes(tmp_path: Path, pixels: str) -> None:
    path = tmp_path / "a.ome.tif"
    path.write_bytes(_with_description(coded((1, 20, 30)), ome_xml([pixels]).encode()))
    began = time.process_time()
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:, :, 0, 0, 0], coded((20, 30)))
        if np.prod(br.shape, dtype=float) > 1e12:
            with pytest.raises((MemoryError, BioIOError)):
                br[:]
    assert time.process_time() - began < 5


def test_first_plane_beyond_the_file(tmp_path: Path) -> None:
    xml = ome_xml([image(30, 20, data='<TiffData IFD="4294967295"/>')])
    path = tmp_path / "a.ome.tif"
    path.write_bytes(_with_description(coded((1, 20, 30)), xml.encode()))
    with pytest.raises(DamagedFileError):
        BioReader(path)


# ---------------------------------------------------------------------- bad arguments


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, coded((20, 30)), tile=(16, 16), compression="zlib")
    return path


BAD_KEYS: list[Any] = [20, -21, (0, 30), (0, -31), (0, 0, 1), (0, 0, 0, -2), 1.5, (0, 2.0), None,
                       (0, None), True, (False, 0), "0", (0,) * 6, (..., ...), [0, 20], [-21],
                       [1.5], (0, [[1]]), np.array([True] * 19), slice(None, None, 0),
                       slice("a", 3), slice(1.5, None), 2**70, -(2**70), [2**70],
                       np.float64(3), object(), {1}, {"a": 1}, b"1",
                       np.array([1 + 2j])]  # fmt: skip


@pytest.mark.parametrize("key", BAD_KEYS, ids=[f"{n}" for n in range(len(BAD_KEYS))])
def test_keys_that_do_not_fit(small: Path, key: Any) -> None:
    with BioReader(small) as br, pytest.raises(RegionError):
        br[key]


@pytest.mark.parametrize("axis", "XYZCT")
@pytest.mark.parametrize("value", [99, -99, (0, 99), (-1, 3), (5, 2), 1.5, "a", (1, 2, 3)])
def test_read_arguments_that_do_not_fit(small: Path, axis: str, value: Any) -> None:
    with BioReader(small) as br, pytest.raises((RegionError, SpecError)):
        br.read(**{axis: value})


def test_used_after_close(small: Path) -> None:
    br = BioReader(small)
    br.close()
    br.close()
    for use in (lambda: br[0], br.read, lambda: br.details, lambda: next(br.tiles())):
        with pytest.raises(ClosedError):
            use()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", [1]])
def test_workers_that_make_no_sense(small: Path, value: Any) -> None:
    with pytest.raises(SpecError, match="max_workers"):
        BioReader(small, max_workers=value)


def test_what_does_not_exist(small: Path) -> None:
    with pytest.raises(SpecError, match="no backend"):
        BioReader(small, backend="nonsense")
    for name in ("series", "level"):
        for value in (1, -2, 99, 0.0, "0", None, True):
            with pytest.raises(SpecError, match=name):
                BioReader(small, **{name: value})
    for unit in ("parsec per inch", "", None, 5):
        with BioReader(small) as br, pytest.raises((SpecError, TypeError)):
            br.pixel_size(unit)


def test_the_same_without_asserts(small: Path, tmp_path: Path) -> None:
    """``python -O`` drops every assert; nothing may rest on one."""
    cut = tmp_path / "cut.tif"
    cut.write_bytes(small.read_bytes()[:-100])
    claims = tmp_path / "claims.tif"
    claims.write_bytes(build([*gray(2**20, 2**20, 8), tag(278, "I", 2**20)], [bytes(600)]))
    text = tmp_path / "text.tif"
    text.write_text("text")
    code = """
    small, cut, claims, text = sys.argv[1:]
    assert False, "-O drops this"
    def fails(kind, make):
        try:
            make()
        except kind as exc:
            print(kind.__name__, end=" ")
        else:
            sys.exit(f"no {kind}")
    fails(FileNotFoundError, lambda: BioReader(small + "x"))
    fails(UnknownFormatError, lambda: BioReader(text))
    fails(DamagedFileError, lambda: BioReader(cut)[:])
    fails(DamagedFileError, lambda: BioReader(claims)[:5, :5])
    fails(SpecError, lambda: BioReader(small, max_workers=0))
    fails(SpecError, lambda: BioReader(small, series=1))
    br = BioReader(small)
    for key in (20, (0, 30), 1.5, None, True, (0,) * 6, [99]):
        fails(RegionError, lambda: br[key])
    br.close()
    fails(ClosedError, lambda: br[:])
    print("fine")
    """
    assert child(code, small, cut, claims, text, optimise=True).endswith("fine\n")


def test_a_file_that_changes_under_the_reader(small: Path) -> None:
    with BioReader(small) as br:
        small.write_bytes(small.read_bytes()[:400])
        with pytest.raises(BioIOError):
            br[:]


def test_a_short_run_of_the_fuzzer(tmp_path: Path) -> None:
    """The long one is a script: ``python tests/fuzz_tiff.py --minutes 10``."""
    counts, findings = fuzz_tiff.fuzz(3, seed=1, keep=tmp_path)
    assert not findings, {what: text[-2000:] for what, (_, text) in findings.items()}
    assert sum(counts.values()) > 50
    assert counts["ok"]
    assert counts["DamagedFileError"]


def test_sane_files_of_the_fuzzer_are_read(tmp_path: Path) -> None:
    found = fuzz_tiff.seeds(tmp_path)
    assert len(found) > 30
    for path in found:
        assert fuzz_tiff.attempt(path) == "ok", path.name
        got = read_all(path)
        if path.name.startswith(("plain", "big", "shaped", "imagej")):
            want = tifffile.imread(path)
            same(np.squeeze(got), np.squeeze(yxzct(want, "ZYX")))
