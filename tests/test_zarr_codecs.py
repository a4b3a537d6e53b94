"""Metadata and codecs of Zarr arrays: what others write is understood, what is broken is told."""

from __future__ import annotations

import json

import imagecodecs
import numcodecs
import numpy as np
import pytest

from bioio_tk.backends import _zarr_codecs as codecs
from bioio_tk.backends._zarr_meta import TYPES, read_meta, write_meta_v2, write_meta_v3
from bioio_tk.errors import BioIOError, DamagedFileError, SpecError, UnsupportedError

PIXELS = (np.arange(40 * 50) * 37 % 1000).astype(np.uint16).reshape(40, 50)


def v2(**changes):
    document = {
        "zarr_format": 2,
        "shape": [40, 50],
        "chunks": [40, 50],
        "dtype": "<u2",
        "compressor": None,
        "fill_value": 0,
        "order": "C",
        "filters": None,
    } | changes
    return {k: v for k, v in document.items() if v is not ...}


def v3(*steps, **changes):
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [40, 50],
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [40, 50]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, *steps],
        "attributes": {},
    } | changes
    return {k: v for k, v in document.items() if v is not ...}


def sharding(inner=(10, 10), **changes):
    config = {
        "chunk_shape": list(inner),
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "index_codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ],
    } | changes
    return [{"name": "sharding_indexed", "configuration": config}]


def meta2(**changes):
    return read_meta(None, json.dumps(v2(**changes)).encode(), "/a/b")


def meta3(*steps, **changes):
    return read_meta(json.dumps(v3(*steps, **changes)).encode(), None, "/a/b")


class TestMeta:
    def test_keys(self):
        assert meta2().key((1, 2)) == "1.2"
        assert meta2(dimension_separator="/").key((1, 2)) == "1/2"
        assert meta3().key((1, 2)) == "c/1/2"
        dot = {"name": "default", "configuration": {"separator": "."}}
        assert meta3(chunk_key_encoding=dot).key((1, 2)) == "c.1.2"
        assert meta3(chunk_key_encoding={"name": "v2"}).key((1, 2)) == "1.2"
        slash = {"name": "v2", "configuration": {"separator": "/"}}
        assert meta3(chunk_key_encoding=slash).key((1, 2)) == "1/2"

    @pytest.mark.parametrize(
        ("dtype", "value", "expected"),
        [
            ("<u2", None, np.uint16(0)),
            ("<u2", 7, np.uint16(7)),
            ("<u2", 7.0, np.uint16(7)),
            (">u2", "AQI=", np.uint16(0x102)),
            ("|b1", True, np.bool_(True)),
            ("<f4", "NaN", np.float32("nan")),
            ("<f8", "-Infinity", np.float64("-inf")),
            ("<f8", 1.5, np.float64(1.5)),
            ("<c8", [1, "NaN"], np.complex64(complex(1, float("nan")))),
            ("<c8", "AACAPwAAAEA=", np.complex64(1 + 2j)),
        ],
    )
    def test_fill_v2(self, dtype, value, expected):
        fill = meta2(dtype=dtype, fill_value=value).fill
        assert fill.dtype == expected.dtype
        np.testing.assert_array_equal(fill, expected)

    def test_fill_v3_keeps_the_bits_of_nan(self):
        fill = meta3(data_type="float32", fill_value="0x7fc00123").fill
        assert fill.tobytes() == bytes.fromhex("2301c07f")
        fill = meta3(data_type="complex64", fill_value=["0x7fc00123", "-Infinity"]).fill
        assert fill.tobytes() == bytes.fromhex("2301c07f000080ff")

    def test_names_and_attributes(self):
        meta = meta3(dimension_names=["y", None], attributes={"a": 1})
        assert meta.dimension_names == ("y", None)
        assert meta.attributes == {"a": 1}

    def test_extensions_that_need_not_be_understood(self):
        assert meta3(extra={"must_understand": False}).shape == (40, 50)
        with pytest.raises(UnsupportedError, match="'extra'"):
            meta3(extra={"name": "x"})

    @pytest.mark.parametrize(
        ("document", "field"),
        [
            (v2(shape=[-1, 5]), "shape"),
            (v2(shape=[1.5, 5]), "shape"),
            (v2(shape=[True, 5]), "shape"),
            (v2(shape=[2**63, 5]), "shape"),
            (v2(shape=[]), "shape"),
            (v2(shape="x"), "shape"),
            (v2(shape=...), "shape"),
            (v2(chunks=[0, 5]), "chunks"),
            (v2(chunks=[5]), "chunks"),
            (v2(dtype="<q9"), "dtype"),
            (v2(dtype=7), "dtype"),
            (v2(order="K"), "order"),
            (v2(filters=7), "filters"),
            (v2(compressor={"x": 1}), "codec"),
            (v2(compressor={"id": "blosc", "shuffle": 9}), "shuffle"),
            (v2(compressor={"id": "zstd", "level": "x"}), "level"),
            (v2(fill_value=-1), "fill_value"),
            (v2(fill_value=70000), "fill_value"),
            (v2(fill_value="?"), "fill_value"),
            (v2(fill_value=1.5), "fill_value"),
            (v2(dimension_separator="-"), "separator"),
            (v2(zarr_format=3), "zarr_format"),
            (v3(shape=[0.5, 1]), "shape"),
            (v3(node_type="group"), "node_type"),
            (v3(fill_value=...), "fill_value"),
            (v3(fill_value=[1, 2]), "fill_value"),
            (v3(codecs=...), "codecs"),
            (v3(codecs=[]), "codecs"),
            (v3(codecs=[{"name": "zstd"}]), "zstd"),
            (v3(codecs=[{}]), "codecs"),
            (v3({"name": "transpose", "configuration": {"order": [1, 0]}}), "transpose"),
            (v3(codecs=[{"name": "bytes", "configuration": {"endian": "?"}}]), "endian"),
            (v3(dimension_names=["y"]), "dimension_names"),
            (v3(attributes=[]), "attributes"),
            (v3(codecs=sharding((7, 10))), "multiple"),
            (v3(codecs=sharding((0, 10))), "chunk_shape"),
            (v3(codecs=sharding(index_location="middle")), "index_location"),
            (v3(chunk_grid={"name": "regular", "configuration": {}}), "chunk_shape"),
        ],
    )
    def test_damage_names_the_field(self, document, field):
        content = json.dumps(document).encode()
        is_v3 = "node_type" in document
        with pytest.raises(DamagedFileError, match=field) as caught:
            read_meta(content if is_v3 else None, None if is_v3 else content, "/a/b")
        assert "/a/b/" in str(caught.value)

    @pytest.mark.parametrize(
        ("document", "named"),
        [
            (v2(dtype=[["a", "<u2"]]), "structure"),
            (v2(dtype="|S5"), "S5"),
            (v2(dtype="<M8[s]"), "M8"),
            (v2(compressor={"id": "nonsense"}), "nonsense"),
            (v2(filters=[{"id": "zfpy"}]), "pip install zfpy"),
            (v3(data_type="bfloat16"), "bfloat16"),
            (v3(data_type="r24"), "r24"),
            (v3(data_type={"name": "fixed_length_utf32"}), "fixed_length_utf32"),
            (v3(chunk_grid={"name": "rectilinear"}), "rectilinear"),
            (v3(chunk_key_encoding={"name": "fancy"}), "fancy"),
            (v3({"name": "nonsense"}), "nonsense"),
            (v3(storage_transformers=[{"name": "x"}]), "storage_transformers"),
            (v3(codecs=[*sharding(), {"name": "zstd"}]), "zstd"),
            (v3(codecs=sharding(codecs=sharding((5, 5)))), "one level"),
        ],
    )
    def test_what_is_not_known_is_named(self, document, named):
        content = json.dumps(document).encode()
        is_v3 = "node_type" in document
        with pytest.raises(UnsupportedError, match=named):
            read_meta(content if is_v3 else None, None if is_v3 else content, "/a/b")

    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"null"])
    def test_no_json(self, content):
        with pytest.raises(DamagedFileError, match=r"/a/b/zarr\.json"):
            read_meta(content, None, "/a/b")

    def test_what_is_written_is_read_alike(self):
        documents = codecs.codec_documents("zstd", 3, np.dtype("u2"), 3)
        made = write_meta_v3((40, 50), (8, 8), (16, 16), np.dtype("u2"), documents, ("y", "x"))
        meta = read_meta(made, None, "")
        assert (meta.shape, meta.chunks, meta.shards) == ((40, 50), (8, 8), (16, 16))
        assert meta.compression == "zstd"
        made = write_meta_v2((4,), (2,), np.dtype("u2"), (None, None))
        assert read_meta(None, made, "").compression == "none"


def roundtrip_cases():
    """(document, bytes that numcodecs or Python made of PIXELS)."""
    for name in ("zstd", "gzip", "zlib", "bz2", "lzma", "lz4", "blosc"):
        codec = numcodecs.get_codec({"id": name})
        yield name, codec.get_config(), codec.encode(PIXELS)
    for cname in ("blosclz", "lz4", "lz4hc", "zlib", "zstd"):
        for shuffle in (-1, 0, 1, 2):
            codec = numcodecs.Blosc(cname, 5, shuffle)
            yield f"{cname}{shuffle}", codec.get_config(), codec.encode(PIXELS)


CASES = list(roundtrip_cases())


class TestDecode:
    @pytest.mark.parametrize(("config", "data"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
    def test_what_numcodecs_wrote(self, config, data):
        codec = meta2(compressor=config).codec
        np.testing.assert_array_equal(codec.decode(data), PIXELS)
        out = np.zeros_like(PIXELS)
        codec.fill(memoryview(bytes(data)), out)
        np.testing.assert_array_equal(out, PIXELS)

    @pytest.mark.parametrize(("config", "data"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
    @pytest.mark.parametrize("cut", [1, 50])
    def test_cut_off(self, config, data, cut):
        codec = meta2(compressor=config).codec
        for part in (bytes(data)[:-cut], bytes(data)[:3], b""):
            with pytest.raises(DamagedFileError):
                codec.decode(part)
            with pytest.raises(DamagedFileError):
                codec.fill(part, np.zeros_like(PIXELS))

    @pytest.mark.parametrize("name", ["zstd", "gzip", "zlib", "bz2", "lzma", "lz4", "blosc"])
    @pytest.mark.parametrize("count", [1999, 2001, 100_000])
    def test_another_size(self, name, count):
        codec = numcodecs.get_codec({"id": name})
        data = codec.encode(np.zeros(count, np.uint16))
        with pytest.raises(DamagedFileError):
            meta2(compressor=codec.get_config()).codec.decode(data)

    @pytest.mark.parametrize("count", [1999, 2001])
    def test_raw_of_another_size(self, count):
        with pytest.raises(DamagedFileError, match="4000"):
            meta2().codec.decode(bytes(2 * count))

    def test_zstd_frame_without_its_size(self):
        # magic, no flags, window of 8 KiB; one raw block, the last, of 4000 bytes
        block = (4000 << 3 | 1).to_bytes(3, "little")
        data = bytes.fromhex("28b52ffd 00 18") + block + PIXELS.tobytes()
        np.testing.assert_array_equal(
            meta2(compressor={"id": "zstd", "level": 1}).codec.decode(data), PIXELS
        )

    def test_gzip_of_two_members(self):
        import gzip

        raw = PIXELS.tobytes()
        data = gzip.compress(raw[:1000]) + gzip.compress(raw[1000:])
        codec = meta2(compressor={"id": "gzip", "level": 1}).codec
        np.testing.assert_array_equal(codec.decode(data), PIXELS)

    def test_blosc_header_that_promises_more_than_there_is(self):
        data = bytearray(numcodecs.Blosc("zstd").encode(PIXELS))
        data[12:16] = (len(data) + 1).to_bytes(4, "little")
        with pytest.raises(DamagedFileError, match="are there"):
            meta2(compressor={"id": "blosc"}).codec.decode(bytes(data))

    def test_a_bomb_is_not_unpacked(self):
        import bz2

        data = bz2.compress(bz2.compress(bytes(200_000_000), 9), 9)
        codec = meta2(compressor={"id": "bz2", "level": 1}, filters=[{"id": "bz2"}]).codec
        with pytest.raises(DamagedFileError, match="bytes came out"):
            codec.decode(data)

    @pytest.mark.parametrize("checksum", [False, True])
    def test_crc32c(self, checksum):
        from numcodecs.checksum32 import CRC32C

        codec = meta3({"name": "zstd", "configuration": {"checksum": checksum}}, {"name": "crc32c"})
        zstd = numcodecs.Zstd(1, checksum=checksum)
        data = bytes(CRC32C(location="end").encode(zstd.encode(PIXELS)))
        np.testing.assert_array_equal(codec.codec.decode(data), PIXELS)
        for at in (0, 30, len(data) - 1):
            bad = bytearray(data)
            bad[at] ^= 1
            with pytest.raises(DamagedFileError, match="checksum"):
                codec.codec.decode(bytes(bad))

    @pytest.mark.parametrize("name", ["jpegxl", "png", "jpeg2k", "lerc"])
    def test_codecs_of_imagecodecs(self, name):
        encode = getattr(imagecodecs, f"{name}_encode")
        data = encode(PIXELS, **({"lossless": True} if name == "jpegxl" else {}))
        codec = meta2(compressor={"id": f"imagecodecs_{name}"}).codec
        np.testing.assert_array_equal(codec.decode(bytes(data)), PIXELS)

    def test_own_memory(self):
        codec = meta2(compressor={"id": "zstd"}, dtype=">u2").codec
        data = numcodecs.Zstd().encode(PIXELS.astype(">u2"))
        first = codec.decode(data)
        codec.decode(numcodecs.Zstd().encode(np.zeros((40, 50), ">u2")))
        np.testing.assert_array_equal(first, PIXELS)
        assert first.dtype == np.uint16
        assert first.dtype.isnative

    def test_damage_anywhere_is_told_or_harmless(self):
        rng = np.random.default_rng(1)
        for _, config, data in CASES:
            codec = meta2(compressor=config).codec
            for _ in range(30):
                bad = bytearray(data)
                bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
                try:
                    made = codec.decode(bytes(bad))
                except BioIOError:
                    continue
                assert made.shape == PIXELS.shape


class TestEncode:
    @pytest.mark.parametrize("name", ["zstd", "blosc-zstd", "blosc-lz4", "gzip"])
    @pytest.mark.parametrize("level", [None, 1, 9])
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64", "complex128"])
    def test_numcodecs_reads_it(self, name, level, dtype):
        pixels = PIXELS.astype(dtype)
        _, compressor = codecs.codec_documents(name, level, pixels.dtype, 2)
        meta = meta2(compressor=compressor, dtype=pixels.dtype.str)
        data = meta.codec.encode(pixels)
        made = np.frombuffer(numcodecs.get_codec(dict(compressor)).decode(data), dtype)
        np.testing.assert_array_equal(made.reshape(pixels.shape), pixels)
        assert len(data) < pixels.nbytes

    @pytest.mark.parametrize("shuffle", ["noshuffle", "shuffle", "bitshuffle"])
    def test_blosc_does_as_told(self, shuffle):
        options = {"cname": "zstd", "clevel": 5, "shuffle": shuffle, "typesize": 2, "blocksize": 0}
        codec = meta3({"name": "blosc", "configuration": options}).codec
        data = codec.encode(PIXELS)
        # flags of the header: bit 0 bytes shuffled, bit 2 bits shuffled; byte 3 is the type size
        assert data[2] & 5 == {"noshuffle": 0, "shuffle": 1, "bitshuffle": 4}[shuffle]
        assert data[3] == 2

    @pytest.mark.parametrize(("dtype", "flag"), [("|u1", 4), ("<u2", 1)])
    def test_blosc_of_v2_chooses_the_shuffle(self, dtype, flag):
        compressor = {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": -1, "blocksize": 0}
        data = meta2(dtype=dtype, compressor=compressor).codec.encode(PIXELS.astype(dtype))
        assert data[2] & 5 == flag

    def test_zstd_frame_says_its_size_and_has_a_checksum_if_asked(self):
        for checksum in (False, True):
            step = {"name": "zstd", "configuration": {"level": 1, "checksum": checksum}}
            data = bytes(meta3(step).codec.encode(PIXELS))
            assert bool(data[4] & 4) is checksum
            assert data[4] >> 6 or data[4] & 32
            assert len(imagecodecs.zstd_decode(data)) == PIXELS.nbytes

    def test_every_type_has_a_name(self):
        for name, dtype in TYPES.items():
            made = write_meta_v3(
                (4,), (2,), None, dtype, codecs.codec_documents(None, None, dtype, 3)
            )
            meta = read_meta(made, None, "")
            assert meta.dtype == np.dtype(name)
            assert meta.fill == 0

    def test_unknown_compression(self):
        with pytest.raises(SpecError, match="zstd, blosc-zstd, blosc-lz4, gzip, none"):
            codecs.codec_documents("lzx", None, np.dtype("u2"), 3)

    @pytest.mark.parametrize(
        ("name", "level"), [("zstd", 0), ("zstd", 23), ("gzip", True), ("zstd", "1"), ("none", 1)]
    )
    def test_level_that_does_not_fit(self, name, level):
        with pytest.raises(SpecError, match="level="):
            codecs.codec_documents(name, level, np.dtype("u2"), 3)
