"""Zarr arrays: others' are read right, ours are read right by others, broken ones are told."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._store import FolderStore
from bioio_tk.backends._zarr_array import ZarrArray
from bioio_tk.backends._zarr_codecs import codec_documents
from bioio_tk.backends._zarr_meta import read_meta, write_meta_v2, write_meta_v3
from bioio_tk.backends._zarr_shards import ChunkWriter
from bioio_tk.errors import (
    ClosedError,
    DamagedFileError,
    PixelTypeError,
    SpecError,
    UnsupportedError,
)

zarr = pytest.importorskip("zarr")
ts = pytest.importorskip("tensorstore")

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip
COMPRESSIONS = ["zstd", "blosc-zstd", "blosc-lz4", "gzip", "none"]
SHAPES = [
    ((70,), (16,), (32,)),
    ((33, 50), (8, 16), (16, 32)),
    ((3, 20, 31), (1, 8, 8), (2, 16, 16)),
    ((2, 3, 9, 10), (1, 2, 4, 4), (1, 4, 8, 8)),
    ((2, 2, 2, 9, 10), (1, 1, 1, 4, 8), (2, 1, 2, 8, 8)),
]


OPEN = []
"""Stores and writers to close when a test ends."""


@pytest.fixture(autouse=True)
def closed():
    yield
    for item in OPEN:
        item.close()
    OPEN.clear()


def folder(path, store=FolderStore):
    OPEN.append(store(Path(path)))
    return OPEN[-1]


def pixels(shape, dtype="uint16", seed=0):
    made = np.random.default_rng(seed).integers(0, 1000, shape)
    return (made % 2 == 0) if dtype == "bool" else made.astype(dtype)


class CountingStore(FolderStore):
    """A folder that counts requests and says that they take long."""

    waits = True

    def __init__(self, root):
        super().__init__(root)
        self.asked = []

    def get(self, key):
        self.asked.append(("get", key))
        return super().get(key)

    def get_range(self, key, start, count):
        self.asked.append(("range", key, start, count))
        return super().get_range(key, start, count)


def opened(path, store=FolderStore):
    made = folder(path)
    meta = read_meta(made.get("zarr.json"), made.get(".zarray"), str(path))
    return ZarrArray(folder(path, store), "", meta)


def whole(array):
    """Read an array chunk by chunk: by read_part, and compare that with read_chunk."""
    meta = array.meta
    out = np.empty(meta.shape, meta.dtype)
    for index in np.ndindex(*meta.grid):
        place = tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(index, meta.chunks, meta.shape, strict=True)
        )
        part = tuple(slice(0, s.stop - s.start) for s in place)
        array.read_part(index, part, out[place])
        chunk = array.read_chunk(index)
        if chunk is None:
            chunk = np.full(meta.chunks, meta.fill, meta.dtype)
        assert chunk.shape == meta.chunks
        np.testing.assert_array_equal(chunk[part], out[place])
    return out


def by_shards(array):
    meta = array.meta
    out = np.empty(meta.shape, meta.dtype)
    grid = [-(-n // s) for n, s in zip(meta.shape, meta.shards, strict=True)]
    for index in np.ndindex(*grid):
        place = tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(index, meta.shards, meta.shape, strict=True)
        )
        array.read_shard(index, tuple(slice(0, s.stop - s.start) for s in place), out[place])
    return out


def begun(path, shape, chunks, shards=None, dtype="uint16", compression="zstd", v=3, **options):
    """Return a ChunkWriter for a new array at `path`."""
    dtype = np.dtype(dtype)
    path = Path(path)
    path.mkdir(exist_ok=True)
    documents = codec_documents(compression, None, dtype, v)
    if v == 3:
        made = write_meta_v3(shape, chunks, shards, dtype, documents)
        meta = read_meta(made, None, str(path))
        (path / "zarr.json").write_bytes(made)
    else:
        made = write_meta_v2(shape, chunks, dtype, documents)
        meta = read_meta(None, made, str(path))
        (path / ".zarray").write_bytes(made)
    OPEN.append(ChunkWriter(folder(path), "", meta, **options))
    return OPEN[-1]


def place_of(index, chunks):
    return tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))


def write(writer, data, indexes=None):
    for index in indexes or np.ndindex(*writer.meta.grid):
        writer.store(index, writer.encode(data[place_of(index, writer.meta.chunks)]))


def by_zarr(path):
    return zarr.open_array(path, mode="r")[...]


def by_tensorstore(path):
    driver = "zarr3" if (Path(path) / "zarr.json").exists() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}
    read = ts.open(spec).result().read().result()
    deadline = time.monotonic() + 5  # its threads close the files a little later
    while open_files(path) and time.monotonic() < deadline:
        time.sleep(0.001)
    return read


def open_files(path):
    """Return the files open under a folder; folders are open as long as their store."""
    names = []
    for entry in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").exists() else ():
        with suppress(OSError):
            names.append(entry.readlink())
    return [name for name in names if name.is_relative_to(path) and name.is_file()]


def files(path):
    return sorted(
        p.relative_to(path).as_posix()
        for p in Path(path).rglob("*")
        if p.is_file() and p.name not in ("zarr.json", ".zarray", ".zattrs")
    )


@pytest.mark.filterwarnings("ignore")
class TestOthers:
    """Arrays of zarr-python and TensorStore."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("v", [2, 3])
    def test_types(self, tmp_path, dtype, v):
        data = pixels((20, 33), dtype)
        made = zarr.create_array(
            tmp_path / "a", shape=data.shape, chunks=(8, 16), dtype=dtype, zarr_format=v
        )
        made[:] = data
        read = whole(opened(tmp_path / "a"))
        assert read.dtype == data.dtype
        np.testing.assert_array_equal(read, data)

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("endian", ["<", ">"])
    @pytest.mark.parametrize("separator", [".", "/"])
    @pytest.mark.parametrize("compressed", [True, False])
    def test_v2_layouts(self, tmp_path, order, endian, separator, compressed):
        data = pixels((3, 20, 33))
        made = zarr.create_array(
            tmp_path / "a",
            shape=data.shape,
            chunks=(2, 8, 16),
            dtype=f"{endian}u2",
            zarr_format=2,
            order=order,
            chunk_key_encoding={"name": "v2", "separator": separator},
            **({} if compressed else {"compressors": None}),
        )
        made[:] = data
        np.testing.assert_array_equal(whole(opened(tmp_path / "a")), data)

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize(
        "filters",
        [
            "delta",
            "fixedscaleoffset",
            "shuffle",
            "delta+shuffle",
            "astype",
            "fletcher32",
            "quantize",
        ],
    )
    def test_v2_filters(self, tmp_path, filters, order):
        import numcodecs

        known = {
            "delta": numcodecs.Delta("<u2"),
            "fixedscaleoffset": numcodecs.FixedScaleOffset(
                offset=0, scale=2, dtype="<u2", astype="<u4"
            ),
            "shuffle": numcodecs.Shuffle(2),
            "astype": numcodecs.AsType("<u4", "<u2"),
            "fletcher32": numcodecs.Fletcher32(),
            "quantize": numcodecs.Quantize(1, "<f4"),
        }
        dtype = "<f4" if filters == "quantize" else "<u2"
        data = pixels((20, 33), dtype)
        made = zarr.create_array(
            tmp_path / "a", shape=data.shape, chunks=(8, 16), dtype=dtype, zarr_format=2,
            filters=[known[name] for name in filters.split("+")], order=order,
        )  # fmt: skip
        made[:] = data
        np.testing.assert_array_equal(whole(opened(tmp_path / "a")), made[:])

    @pytest.mark.parametrize(
        ("dtype", "filters", "compressors"),
        [
            ("uint16", [], []),
            ("uint16", [], ["zstd"]),
            ("uint16", [], ["zstd-checksum", "crc32c"]),
            ("uint16", [], ["gzip"]),
            ("uint16", [], ["blosc"]),
            ("uint16", ["transpose"], ["blosc"]),
            ("uint16", ["transpose"], []),
            ("uint16", ["delta"], ["zstd"]),
            ("uint16", ["transpose", "delta"], ["zstd"]),
            ("uint16", ["fixedscaleoffset"], ["zstd"]),
            ("uint16", ["astype"], ["zstd"]),
            ("float32", ["bitround"], ["zstd"]),
            ("float32", ["quantize"], ["zstd"]),
            ("uint16", [], ["shuffle", "zlib"]),
            ("uint16", [], ["bz2", "crc32"]),
            ("uint16", [], ["lzma", "adler32"]),
            ("uint16", [], ["lz4", "fletcher32", "jenkins_lookup3"]),
            ("uint16", [], ["numcodecs.crc32c", "numcodecs.zstd", "numcodecs.gzip"]),
        ],
    )
    @pytest.mark.parametrize("shards", [None, (2, 16, 32)])
    def test_v3_codecs(self, tmp_path, dtype, filters, compressors, shards):
        from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
        from zarr.codecs import numcodecs as nc

        known = {
            "transpose": lambda: TransposeCodec(order=(2, 0, 1)),
            "delta": lambda: nc.Delta(dtype="uint16"),
            "fixedscaleoffset": lambda: nc.FixedScaleOffset(offset=0, scale=2, astype="uint32"),
            "astype": lambda: nc.AsType(encode_dtype="uint32", decode_dtype="uint16"),
            "bitround": lambda: nc.BitRound(keepbits=5),
            "quantize": lambda: nc.Quantize(digits=1),
            "zstd": ZstdCodec,
            "zstd-checksum": lambda: ZstdCodec(checksum=True),
            "crc32c": Crc32cCodec,
            "gzip": GzipCodec,
            "blosc": lambda: BloscCodec(cname="lz4", shuffle="bitshuffle"),
            "shuffle": nc.Shuffle,
            "zlib": nc.Zlib,
            "bz2": nc.BZ2,
            "lzma": nc.LZMA,
            "lz4": nc.LZ4,
            "crc32": nc.CRC32,
            "adler32": nc.Adler32,
            "fletcher32": nc.Fletcher32,
            "jenkins_lookup3": nc.JenkinsLookup3,
            "numcodecs.crc32c": lambda: nc.CRC32C(location="start"),
            "numcodecs.zstd": nc.Zstd,
            "numcodecs.gzip": nc.GZip,
        }
        data = pixels((3, 20, 33), dtype)
        made = zarr.create_array(
            tmp_path / "a", shape=data.shape, chunks=(1, 8, 16), shards=shards, dtype=dtype,
            filters=[known[f]() for f in filters], compressors=[known[c]() for c in compressors],
        )  # fmt: skip
        made[:] = data
        array = opened(tmp_path / "a")
        np.testing.assert_array_equal(whole(array), made[:])
        if shards:
            np.testing.assert_array_equal(by_shards(array), made[:])

    @pytest.mark.parametrize("location", ["start", "end"])
    @pytest.mark.parametrize("checked", [True, False])
    @pytest.mark.parametrize("endian", ["little", "big"])
    def test_shard_indexes(self, tmp_path, location, checked, endian):
        from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

        index = [BytesCodec(endian=endian), *([Crc32cCodec()] if checked else [])]
        sharding = ShardingCodec(
            chunk_shape=(8, 8), index_codecs=index, index_location=location,
            codecs=[BytesCodec(endian=endian)],
        )  # fmt: skip
        data = pixels((40, 33))
        data[:8, :8] = 0
        made = zarr.create_array(
            tmp_path / "a", shape=data.shape, chunks=(16, 16), dtype="uint16",
            serializer=sharding, compressors=None, filters=None,
        )  # fmt: skip
        made[:] = data
        array = opened(tmp_path / "a")
        np.testing.assert_array_equal(whole(array), data)
        np.testing.assert_array_equal(by_shards(array), data)

    @pytest.mark.parametrize("name", ["default", "v2"])
    @pytest.mark.parametrize("separator", [".", "/"])
    def test_v3_keys(self, tmp_path, name, separator):
        data = pixels((20, 33))
        made = zarr.create_array(
            tmp_path / "a", shape=data.shape, chunks=(8, 16), dtype="uint16",
            chunk_key_encoding={"name": name, "separator": separator},
            dimension_names=["y", None], attributes={"a": 1},
        )  # fmt: skip
        made[:] = data
        array = opened(tmp_path / "a")
        np.testing.assert_array_equal(whole(array), data)
        assert array.meta.dimension_names == ("y", None)
        assert array.meta.attributes == {"a": 1}

    @pytest.mark.parametrize("v", [2, 3])
    @pytest.mark.parametrize(
        ("dtype", "fill"),
        [("uint16", 7), ("int8", -3), ("float32", np.nan), ("float64", -np.inf), ("bool", True),
         ("complex64", 1 + 2j), ("float32", 0.1)],
    )  # fmt: skip
    def test_fill_values(self, tmp_path, v, dtype, fill):
        made = zarr.create_array(
            tmp_path / "a", shape=(5, 6), chunks=(4, 4), dtype=dtype, fill_value=fill,
            zarr_format=v,
        )  # fmt: skip
        made[0, 0] = 1
        array = opened(tmp_path / "a")
        assert array.read_chunk((1, 1)) is None
        np.testing.assert_array_equal(whole(array), made[:])

    @pytest.mark.parametrize(
        "shape", [(7,), (7, 8), (3, 7, 8), (2, 3, 7, 8), (1, 2, 3, 7, 8), (2, 1, 2, 3, 7, 8)]
    )
    def test_axes(self, tmp_path, shape):
        data = pixels(shape)
        chunks = tuple(min(n, 2 + i) for i, n in enumerate(shape))
        made = zarr.create_array(
            tmp_path / "a", shape=shape, chunks=chunks, shards=tuple(2 * c for c in chunks),
            dtype="uint16",
        )  # fmt: skip
        made[...] = data
        np.testing.assert_array_equal(whole(opened(tmp_path / "a")), data)
        np.testing.assert_array_equal(by_shards(opened(tmp_path / "a")), data)

    @pytest.mark.parametrize("driver", ["zarr", "zarr3"])
    @pytest.mark.parametrize("codec", ["zstd", "blosc", "gzip", "none"])
    def test_tensorstore(self, tmp_path, driver, codec):
        data = pixels((20, 33))
        if driver == "zarr":
            compressor = None if codec == "none" else {"id": codec}
            meta = {"shape": [20, 33], "chunks": [8, 16], "dtype": ">u2", "compressor": compressor,
                    "order": "F"}  # fmt: skip
        else:
            codecs = [{"name": "bytes", "configuration": {"endian": "big"}}]
            if codec != "none":
                codecs.append({"name": codec})
            grid = {"name": "regular", "configuration": {"chunk_shape": [8, 16]}}
            meta = {"shape": [20, 33], "data_type": "uint16", "chunk_grid": grid, "codecs": codecs}
        spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(tmp_path / "a")},
                "metadata": meta, "create": True}  # fmt: skip
        ts.open(spec).result().write(data).result()
        np.testing.assert_array_equal(whole(opened(tmp_path / "a")), data)


class TestOurs:
    """What we write is read by others."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("compression", COMPRESSIONS)
    @pytest.mark.parametrize("kind", ["v2", "v3", "sharded"])
    def test_read_by_others(self, tmp_path, dtype, compression, kind):
        data = pixels((33, 50), dtype)
        shards = (16, 32) if kind == "sharded" else None
        v = 2 if kind == "v2" else 3
        writer = begun(tmp_path / "a", data.shape, (8, 16), shards, dtype, compression, v)
        write(writer, data)
        writer.finish()
        writer.close()
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)
        np.testing.assert_array_equal(by_tensorstore(tmp_path / "a"), data)

    @pytest.mark.parametrize(("shape", "chunks", "shards"), SHAPES)
    @pytest.mark.parametrize("atomic", [False, True])
    @pytest.mark.parametrize("sharded", [False, True])
    def test_shapes(self, tmp_path, shape, chunks, shards, atomic, sharded):
        data = pixels(shape)
        writer = begun(tmp_path / "a", shape, chunks, shards if sharded else None, atomic=atomic)
        write(writer, data)
        # shards were completed when their last chunk came: nothing is left for finish() to do
        writer.close()
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)
        np.testing.assert_array_equal(by_tensorstore(tmp_path / "a"), data)
        np.testing.assert_array_equal(whole(opened(tmp_path / "a")), data)

    def test_read_by_zarrs(self, tmp_path):
        pytest.importorskip("zarrs")
        data = pixels((33, 50))
        write(begun(tmp_path / "a", data.shape, (8, 16), (16, 32)), data)
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)

    def test_fill_is_not_stored_but_other_zeros_are(self, tmp_path):
        writer = begun(tmp_path / "a", (8, 8), (4, 4), dtype="float32")
        chunk = np.zeros((4, 4), np.float32)
        assert writer.encode(chunk) is None
        for i in range(16):
            spot = chunk.copy()
            spot.flat[i] = -0.0
            assert writer.encode(spot) is not None
        assert writer.encode(chunk[:3]) is None

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "complex128", "bool"])
    def test_every_pixel_of_a_chunk_counts(self, tmp_path, dtype):
        writer = begun(tmp_path / "a", (8, 8), (4, 4), dtype=dtype)
        for i in range(16):
            chunk = np.zeros((8, 8), dtype)
            chunk[::2, ::2].flat[i] = 1  # flat of a view writes into the array
            view = chunk[::2, ::2]
            view[i // 4, i % 4] = 1
            assert writer.encode(view) is not None

    def test_encode_keeps_nothing_it_uses_again(self, tmp_path):
        writer = begun(tmp_path / "a", (6, 6), (4, 4), compression="none")
        data = pixels((6, 6))
        parts = {i: writer.encode(data[place_of(i, (4, 4))]) for i in np.ndindex(2, 2)}
        for index, part in parts.items():
            writer.store(index, part)
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)

    def test_wrong_pixels(self, tmp_path):
        writer = begun(tmp_path / "a", (8, 8), (4, 4))
        with pytest.raises(PixelTypeError, match="uint16"):
            writer.encode(np.zeros((4, 4), np.uint8))
        with pytest.raises(SpecError, match="fit"):
            writer.encode(np.zeros((5, 4), np.uint16))

    @pytest.mark.parametrize("atomic", [False, True])
    @pytest.mark.parametrize("shards", [None, (8, 8)])
    def test_rewrite_load_and_remove(self, tmp_path, shards, atomic):
        writer = begun(tmp_path / "a", (16, 16), (4, 4), shards, atomic=atomic)
        data = pixels((16, 16))
        assert writer.load((0, 0)) is None
        write(writer, data)
        for step, index in enumerate([(0, 0), (3, 3), (0, 1), (0, 0), (2, 2), (0, 0)]):
            data[place_of(index, (4, 4))] = pixels((4, 4), seed=step + 10)
            write(writer, data, [index])
            np.testing.assert_array_equal(writer.load(index), data[place_of(index, (4, 4))])
        data[place_of((1, 1), (4, 4))] = 0
        writer.store((1, 1), None)
        assert writer.load((1, 1)) is None
        for index in np.ndindex(4, 4):
            if index != (1, 1):
                np.testing.assert_array_equal(writer.load(index), data[place_of(index, (4, 4))])
        writer.finish()
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)
        data[:4, :4] = 9  # and once more after it was finished
        write(writer, data, [(0, 0)])
        writer.finish()
        writer.close()
        writer.close()
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)
        assert not [name for name in files(tmp_path / "a") if "part" in name]
        with pytest.raises(ClosedError):
            writer.store((0, 0), None)

    @pytest.mark.parametrize("atomic", [False, True])
    def test_another_writer_goes_on(self, tmp_path, atomic):
        data = pixels((16, 16))
        first = begun(tmp_path / "a", (16, 16), (4, 4), (8, 8), atomic=atomic)
        write(first, data, [(0, 0), (0, 1), (3, 3)])
        first.finish()
        first.close()
        second = begun(tmp_path / "a", (16, 16), (4, 4), (8, 8), atomic=atomic)
        np.testing.assert_array_equal(second.load((0, 1)), data[:4, 4:8])
        write(second, data, [i for i in np.ndindex(4, 4) if i not in [(0, 0), (0, 1), (3, 3)]])
        second.finish()
        second.close()
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)

    def test_a_shard_that_becomes_shorter(self, tmp_path):
        data = pixels((16, 16)) + 1
        first = begun(tmp_path / "a", (16, 16), (4, 4), (16, 16), compression="none")
        write(first, data)
        first.store((3, 3), None)
        first.finish()
        second = begun(tmp_path / "a", (16, 16), (4, 4), (16, 16), compression="none")
        second.store((0, 0), None)
        second.finish()
        data[12:, 12:] = data[:4, :4] = 0
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)

    @pytest.mark.parametrize("atomic", [False, True])
    def test_empty_shards_have_no_file(self, tmp_path, atomic):
        data = np.zeros((16, 16), np.uint16)
        writer = begun(tmp_path / "a", (16, 16), (4, 4), (8, 8), atomic=atomic)
        write(writer, data)
        write(writer, pixels((16, 16)), [(3, 3)])
        writer.store((3, 3), None)
        writer.finish()
        assert files(tmp_path / "a") == []
        write(writer, pixels((16, 16)), [(3, 3)])
        writer.finish()
        assert files(tmp_path / "a") == ["c/1/1"]
        writer.store((3, 3), None)
        writer.finish()
        assert files(tmp_path / "a") == []

    @pytest.mark.parametrize("atomic", [False, True])
    def test_replaced_chunks_take_no_lasting_space(self, tmp_path, atomic):
        writer = begun(
            tmp_path / "a", (16, 16), (8, 8), (16, 16), compression="none", atomic=atomic
        )
        data = pixels((16, 16))
        for step in range(20):
            data[:8, :8] = pixels((8, 8), seed=step)
            write(writer, data, [(0, 0), (0, 1)])
        write(writer, data, [(1, 1)])
        growing = max(p.stat().st_size for p in (tmp_path / "a" / "c" / "0").iterdir())
        assert growing < 6 * 128
        writer.finish()
        size = (tmp_path / "a" / "c" / "0" / "0").stat().st_size
        assert size <= 3 * 128 / 0.75 + 4 * 16 + 4
        data[8:, :8] = 0
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)

    def test_compaction(self, tmp_path):
        writer = begun(tmp_path / "a", (16, 16), (4, 4), (16, 16))
        data = pixels((16, 16))
        write(writer, data)  # complete
        for index in list(np.ndindex(4, 4))[:10]:
            writer.store(index, None)
            data[place_of(index, (4, 4))] = 0
        before = (tmp_path / "a" / "c" / "0" / "0").stat().st_size
        writer.finish()
        assert (tmp_path / "a" / "c" / "0" / "0").stat().st_size < 0.7 * before
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)

    def test_close_without_finish_leaves_nothing_half_done(self, tmp_path):
        for atomic in (False, True):
            path = tmp_path / f"a{atomic}"
            writer = begun(path, (16, 16), (4, 4), (8, 8), atomic=atomic)
            write(writer, pixels((16, 16)), [(0, 0), (2, 2)])
            writer.close()
            assert files(path) == []

    def test_atomic_shows_only_complete_shards(self, tmp_path):
        writer = begun(tmp_path / "a", (16, 16), (4, 4), (8, 8), atomic=True)
        data = pixels((16, 16))
        write(writer, data, [(0, 0), (0, 1), (1, 0)])
        assert not (tmp_path / "a" / "c" / "0" / "0").exists()
        write(writer, data, [(1, 1)])
        old = (tmp_path / "a" / "c" / "0" / "0").read_bytes()
        write(writer, pixels((16, 16), seed=5), [(1, 1)])
        assert (tmp_path / "a" / "c" / "0" / "0").read_bytes() == old
        writer.finish()
        assert (tmp_path / "a" / "c" / "0" / "0").read_bytes() != old

    def test_threads_in_one_shard(self, tmp_path):
        data = pixels((256, 256))
        writer = begun(tmp_path / "a", data.shape, (16, 16), (256, 256))

        def work(index):
            place = place_of(index, (16, 16))
            writer.store(index, writer.encode(pixels((16, 16), seed=99)))
            assert writer.load(index) is not None
            writer.store(index, writer.encode(data[place]))
            np.testing.assert_array_equal(writer.load(index), data[place])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, list(np.ndindex(16, 16))))
        writer.finish()
        writer.close()
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)

    @pytest.mark.parametrize("atomic", [False, True])
    def test_many_shards_and_few_open_files(self, tmp_path, atomic):
        data = pixels((100, 100))
        writer = begun(tmp_path / "a", data.shape, (5, 10), (10, 10), atomic=atomic)
        even, odd = range(0, 20, 2), range(1, 20, 2)
        order = [*itertools.product(even, range(10)), *itertools.product(odd, range(10))]
        most = 0
        for index in order:  # 100 shards grow at the same time
            write(writer, data, [index])
            most = max(most, len(open_files(tmp_path)))
        again = pixels((100, 100), seed=3)
        write(writer, again)
        np.testing.assert_array_equal(writer.load((0, 0)), again[:5, :10])
        writer.finish()
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), again)
        assert most <= 64
        assert len(writer._shards) <= 70

    def test_full_disk_reaches_the_caller_and_changes_nothing(self, tmp_path, monkeypatch):
        data = pixels((16, 16))
        writer = begun(tmp_path / "a", data.shape, (4, 4), (16, 16))
        write(writer, data, [(0, 0), (0, 1)])
        real = RandomFile.write

        def full(self, offset, encoded):
            pieces = encoded if isinstance(encoded, list) else [encoded]
            real(self, offset, memoryview(pieces[0]).cast("B")[:5])
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            patch.setattr(RandomFile, "write", full)
            patch.setattr(RandomFile, "write_many", full)
            for index in [(0, 0), (0, 2)]:
                with pytest.raises(OSError, match="full"):
                    write(writer, pixels((16, 16), seed=4), [index])
            np.testing.assert_array_equal(writer.load((0, 0)), data[:4, :4])
            assert writer.load((0, 2)) is None
            with pytest.raises(OSError, match="full"):
                writer.finish()
        write(writer, data)
        writer.finish()
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)

    def test_full_disk_unsharded(self, tmp_path, monkeypatch):
        writer = begun(tmp_path / "a", (8, 8), (4, 4))
        encoded = writer.encode(pixels((4, 4)))

        def full(fd, data):
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="full"):
                writer.store((0, 0), encoded)
        assert files(tmp_path / "a") == []

    def test_two_processes(self, tmp_path):
        data = pixels((32, 32))
        begun(tmp_path / "a", data.shape, (4, 4), (8, 8)).close()
        here = [str(Path(__file__).parent), *sys.path]
        code = "import sys, test_zarr_arrays as t; t._half(sys.argv[1], int(sys.argv[2]))"
        jobs = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / "a"), str(n)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in here if p)},
            )
            for n in (0, 1)
        ]
        for job in jobs:
            assert job.wait(120) == 0
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)
        assert len(files(tmp_path / "a")) == 16

    def test_remote_store(self, tmp_path):
        class Remote:
            """A store of which only the protocol is known."""

            waits, lists, writable = True, True, True

            def __init__(self, root):
                self._inner = folder(root)

            def __getattr__(self, name):
                return getattr(self._inner, name)

        data = pixels((32, 30))
        local = begun(tmp_path / "a", data.shape, (4, 4), (8, 8))
        (tmp_path / "s").mkdir()
        with pytest.raises(SpecError, match="scratch"):
            ChunkWriter(Remote(tmp_path / "a"), "", local.meta)
        writer = ChunkWriter(Remote(tmp_path / "a"), "", local.meta, scratch=tmp_path / "s")
        write(writer, data)
        data[3, 5] += 1
        write(writer, data, [(0, 1)])
        np.testing.assert_array_equal(writer.load((0, 1)), data[:4, 4:8])
        np.testing.assert_array_equal(writer.load((1, 1)), data[4:8, 4:8])
        writer.finish()
        assert list((tmp_path / "s").iterdir()) == []
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)
        write(writer, pixels((32, 30), seed=8), [(0, 0)])
        writer.close()
        assert list((tmp_path / "s").iterdir()) == []
        np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)


def _half(path, n):
    store = folder(path)
    writer = ChunkWriter(store, "", read_meta(store.get("zarr.json"), None, path), atomic=True)
    indexes = [i for i in np.ndindex(8, 8) if (i[0] // 2 + i[1] // 2) % 2 == n]
    write(writer, pixels((32, 32)), indexes)
    writer.finish()
    writer.close()
    store.close()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Arrays of zarr-python, some chunks missing, by name; and what zarr-python reads there."""
    root = tmp_path_factory.mktemp("stored")
    made = {}
    for name, options in {
        "v2": {"zarr_format": 2, "order": "F", "dtype": ">u2"},
        "v3": {"dtype": "uint16"},
        "raw": {"dtype": "uint16", "compressors": None},
        "sharded": {"dtype": "uint16", "shards": (2, 16, 24)},
        "raw sharded": {"dtype": "uint16", "shards": (2, 16, 24), "compressors": None},
    }.items():
        array = zarr.create_array(
            root / name, shape=(5, 37, 50), chunks=(1, 8, 6), fill_value=3, **options
        )
        data = pixels((5, 37, 50))
        data[0, :20, :20] = 3
        data[4] = 3
        array[:] = data
        made[name] = (opened(root / name), array[:])
    mine, OPEN[:] = OPEN[:], []
    yield made
    for store in mine:
        store.close()


def parts(draw, shape):
    made = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        made.append(slice(start, draw(st.integers(start + 1, n)), draw(st.integers(1, 5))))
    return tuple(made)


def odd_view(draw, shape, dtype):
    """Return an array of `shape` in memory laid out oddly, the memory around it, and a mask."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 2, -1])) for _ in shape]
    memory = np.full([abs(steps[i]) * shape[i] for i in order], 12345, dtype)
    view = memory.transpose(np.argsort(order))
    return view[tuple(slice(None, None, s) for s in steps)], memory


class TestParts:
    @settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_read_part(self, stored, data):
        array, expected = stored[data.draw(st.sampled_from(sorted(stored)))]
        meta = array.meta
        index = tuple(data.draw(st.integers(0, n - 1)) for n in meta.grid)
        place = place_of(index, meta.chunks)
        within = expected[place]
        part = parts(data.draw, within.shape)
        out, memory = odd_view(data.draw, within[part].shape, np.uint16)
        array.read_part(index, part, out)
        np.testing.assert_array_equal(out, within[part])
        out[...] = 12345
        assert (memory == 12345).all()

    @settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_read_shard(self, stored, data):
        array, expected = stored[data.draw(st.sampled_from(["sharded", "raw sharded"]))]
        meta = array.meta
        grid = [-(-n // s) for n, s in zip(meta.shape, meta.shards, strict=True)]
        index = tuple(data.draw(st.integers(0, n - 1)) for n in grid)
        within = expected[place_of(index, meta.shards)]
        part = parts(data.draw, within.shape)
        out, memory = odd_view(data.draw, within[part].shape, np.uint16)
        array.read_shard(index, part, out)
        np.testing.assert_array_equal(out, within[part])
        out[...] = 12345
        assert (memory == 12345).all()

    @settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_writing_in_any_order(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("w") / "a"
        atomic = data.draw(st.booleans())
        compression = data.draw(st.sampled_from(["none", "zstd"]))
        writer = begun(path, (20, 14), (4, 4), (8, 8), compression=compression, atomic=atomic)
        expected = np.zeros((20, 14), np.uint16)
        index = st.tuples(st.integers(0, 4), st.integers(0, 3))
        for step in range(data.draw(st.integers(1, 40))):
            at = data.draw(index)
            place = place_of(at, (4, 4))
            kind = data.draw(st.sampled_from(["store", "store", "store", "none", "load", "finish"]))
            if kind == "store":
                expected[place] = pixels(expected[place].shape, seed=step) // (1 + step % 3)
                write(writer, expected, [at])
            elif kind == "none":
                expected[place] = 0
                writer.store(at, None)
            elif kind == "finish":
                writer.finish()
            else:
                chunk = writer.load(at)
                got = 0 if chunk is None else chunk[tuple(slice(n) for n in expected[place].shape)]
                np.testing.assert_array_equal(got, expected[place])
        writer.finish()
        writer.close()
        np.testing.assert_array_equal(by_zarr(path), expected)


class TestRequests:
    @pytest.fixture
    def far(self, tmp_path):
        data = pixels((64, 64))
        write(begun(tmp_path / "a", data.shape, (8, 8), (32, 32)), data)
        return opened(tmp_path / "a", CountingStore), data

    def test_chunks_of_a_shard(self, far):
        array, data = far
        out = np.empty((8, 8), np.uint16)
        for i in range(4):
            array.read_part((0, i), (slice(0, 8), slice(0, 8)), out)
            np.testing.assert_array_equal(out, data[:8, 8 * i : 8 * i + 8])
        assert len(array.store.asked) == 1 + 4

    def test_whole_shard_is_one_request(self, far):
        array, data = far
        out = np.empty((32, 32), np.uint16)
        array.read_shard((0, 1), (slice(0, 32), slice(0, 32)), out)
        np.testing.assert_array_equal(out, data[:32, 32:])
        assert len(array.store.asked) == 1
        array.read_chunk((0, 4))  # and the index is known now
        assert len(array.store.asked) == 2

    def test_few_chunks_of_a_shard_go_together(self, far):
        array, data = far
        out = np.empty((3, 20), np.uint16)
        array.read_shard((0, 0), (slice(6, 9), slice(0, 20)), out)
        np.testing.assert_array_equal(out, data[6:9, :20])
        assert len(array.store.asked) == 2

    def test_missing_shard_is_asked_for_once(self, far, tmp_path):
        array, _ = far
        (tmp_path / "a" / "c" / "0" / "0").unlink()
        for i in range(4):
            assert array.read_chunk((0, i)) is None
        assert len(array.store.asked) == 1

    def test_unsharded_is_one_request(self, tmp_path):
        write(begun(tmp_path / "b", (16, 16), (8, 8)), pixels((16, 16)))
        array = opened(tmp_path / "b", CountingStore)
        array.read_chunk((1, 0))
        assert array.store.asked == [("get", "c/1/0")]

    def test_tables_are_bounded(self, tmp_path, monkeypatch):
        from bioio_tk.backends import _zarr_array

        data = pixels((64, 64))
        write(begun(tmp_path / "b", data.shape, (4, 4), (8, 8)), data)
        monkeypatch.setattr(_zarr_array, "_CACHED", 1000)
        array = opened(tmp_path / "b")
        np.testing.assert_array_equal(whole(array), data)
        assert 0 < array._tables_bytes <= 1000
        assert len(array._tables) <= 3


class TestDamage:
    @pytest.fixture(params=["zstd", "none"])
    def shard(self, tmp_path, request):
        data = pixels((32, 32))
        write(begun(tmp_path / "a", data.shape, (8, 8), (32, 32), compression=request.param), data)
        return tmp_path / "a" / "c" / "0" / "0"

    def read(self, path, index=(0, 0)):
        """Read a chunk in each way there is; each must tell."""
        for store in (FolderStore, CountingStore):
            array = opened(path.parents[2], store)
            out = np.empty((8, 8), np.uint16)
            with pytest.raises(DamagedFileError) as caught:
                array.read_part(index, (slice(0, 8), slice(0, 8)), out)
            assert str(path) in str(caught.value)
            with pytest.raises(DamagedFileError):
                array.read_chunk(index)
            with pytest.raises(DamagedFileError, match="c/0/0"):
                array.read_shard(
                    (0, 0), (slice(0, 32), slice(0, 32)), np.empty((32, 32), np.uint16)
                )
            start = tuple(slice(8 * i, 8 * i + 8) for i in index)
            with pytest.raises(DamagedFileError, match="c/0/0"):
                array.read_shard((0, 0), start, out)

    def entry(self, shard, i, offset, length):
        from numcodecs.checksum32 import CRC32C

        content = shard.read_bytes()
        table = np.frombuffer(content[-260:-4], "<u8").reshape(16, 2).copy()
        if offset is not None:
            table[i, 0] = offset
        if length is not None:
            table[i, 1] = length
        tail = bytes(CRC32C(location="end").encode(table.tobytes()))
        shard.write_bytes(content[:-260] + tail)
        return table

    @pytest.mark.parametrize("keep", [0, 1, 100, 259])
    def test_truncated_to_less_than_the_index(self, shard, keep):
        shard.write_bytes(shard.read_bytes()[-keep:] if keep else b"")
        self.read(shard)

    def test_cut_off(self, shard):
        shard.write_bytes(shard.read_bytes()[:-1])
        self.read(shard)

    def test_bit_of_the_index(self, shard):
        content = bytearray(shard.read_bytes())
        content[-200] ^= 1
        shard.write_bytes(bytes(content))
        self.read(shard)

    def test_front_is_missing(self, shard):
        shard.write_bytes(shard.read_bytes()[-300:])
        self.read(shard)

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(1 << 40, None), (2**64 - 2, None), (None, 1 << 40), (None, 2**64 - 2), (None, 0),
         (None, 2**64 - 1), (2**64 - 1, None)],
    )  # fmt: skip
    def test_entry_outside_of_the_file(self, shard, offset, length):
        self.entry(shard, 0, offset, length)
        self.read(shard)

    def test_entry_within_the_index(self, shard):
        size = shard.stat().st_size
        self.entry(shard, 0, size - 128, 128)
        array = opened(shard.parents[2])
        with pytest.raises(DamagedFileError, match="outside"):
            array.read_chunk((0, 0))
        with pytest.raises(DamagedFileError, match="outside"):
            array.read_shard((0, 0), (slice(0, 32), slice(0, 32)), np.empty((32, 32), np.uint16))
        np.testing.assert_array_equal(array.read_chunk((0, 1)), pixels((32, 32))[:8, 8:16])

    def test_entry_within_an_index_at_the_start(self, tmp_path):
        from zarr.codecs import BytesCodec, ShardingCodec

        sharding = ShardingCodec(
            chunk_shape=(4,), codecs=[BytesCodec()], index_codecs=[BytesCodec()],
            index_location="start",
        )  # fmt: skip
        made = zarr.create_array(
            tmp_path / "a", shape=(8,), chunks=(8,), dtype="uint16", serializer=sharding,
            compressors=None, filters=None,
        )  # fmt: skip
        made[:] = np.arange(1, 9)
        shard = tmp_path / "a" / "c" / "0"
        content = bytearray(shard.read_bytes())
        content[:8] = (24).to_bytes(8, "little")  # its first chunk: the last 8 bytes of the index
        shard.write_bytes(bytes(content))
        array = opened(tmp_path / "a")
        with pytest.raises(DamagedFileError, match="outside"):
            array.read_chunk((0,))
        np.testing.assert_array_equal(array.read_chunk((1,)), [5, 6, 7, 8])

    def test_bytes_of_a_chunk(self, tmp_path):
        data = pixels((32, 32))
        write(begun(tmp_path / "a", data.shape, (8, 8), (32, 32)), data)
        shard = tmp_path / "a" / "c" / "0" / "0"
        content = bytearray(shard.read_bytes())
        content[0] ^= 255
        shard.write_bytes(bytes(content))
        self.read(shard)

    @pytest.mark.parametrize("compression", COMPRESSIONS)
    def test_unsharded_cut_off(self, tmp_path, compression):
        write(begun(tmp_path / "a", (16, 16), (8, 8), compression=compression), pixels((16, 16)))
        chunk = tmp_path / "a" / "c" / "0" / "0"
        whole_chunk = chunk.read_bytes()
        for keep in (0, 1, 10, len(whole_chunk) - 1):
            chunk.write_bytes(whole_chunk[:keep])
            array = opened(tmp_path / "a")
            with pytest.raises(DamagedFileError, match="c/0/0"):
                array.read_chunk((0, 0))
            with pytest.raises(DamagedFileError, match="c/0/0"):
                array.read_part((0, 0), (slice(1, 3), slice(0, 2)), np.empty((2, 2), np.uint16))

    def test_chunk_too_large(self, tmp_path):
        writer = begun(tmp_path / "a", (1 << 16, 1 << 16), (1 << 16, 1 << 16))
        writer.close()
        (tmp_path / "a" / "c" / "0").mkdir(parents=True)
        (tmp_path / "a" / "c" / "0" / "0").write_bytes(b"x")
        with pytest.raises(UnsupportedError, match="2 GiB"):
            opened(tmp_path / "a").read_part((0, 0), (slice(0, 1),) * 2, np.empty((1, 1), "u2"))

    def test_reader_threads(self, tmp_path):
        data = pixels((128, 128))
        write(begun(tmp_path / "a", data.shape, (8, 16), (32, 32)), data)
        array = opened(tmp_path / "a")
        out = np.zeros_like(data)
        start = threading.Barrier(6)

        def work(n):
            start.wait()
            for index in list(np.ndindex(*array.meta.grid))[n::6]:
                place = place_of(index, (8, 16))
                array.read_part(index, (slice(0, 8), slice(0, 16)), out[place])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        np.testing.assert_array_equal(out, data)
