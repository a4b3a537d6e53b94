"""Bad OME-Zarr: whatever a store says, the answer is right pixels or one error made for it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path
from typing import Any

import fuzz_zarr
import numpy as np
import pytest
import zarr

from bioio_tk import BioReader, BioWriter
from bioio_tk.errors import (
    BioIOError,
    DamagedFileError,
    FormatError,
    RegionError,
    UnsupportedError,
)

SECONDS = 10.0  # of this process on a CPU: what else the machine does is not counted
MEMORY = 64 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image.ome.zarr"


def fails(path: Path, *words: str, kind: Any = (BioIOError, OSError), **more: Any) -> Exception:
    """Look at a store that is damaged: one error, soon, without much memory."""
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(kind) as caught, BioReader(path, max_workers=2, **more) as br:
            br[...]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < SECONDS
    assert peak < MEMORY
    text = str(caught.value)
    assert str(path.parent) in text or kind is RegionError, text
    for word in words:
        assert word in text, text
    assert len(text) < 2000
    return caught.value


def edit(document: Path, change: Any) -> None:
    """Change a JSON document in place, by a function."""
    value = json.loads(document.read_text())
    change(value)
    document.write_text(json.dumps(value))


_made: dict[Any, tuple[fuzz_zarr.Files, Any]] = {}


def write_image(path: Path, version: int = 3, **more: Any) -> Any:
    """Write the store of `fuzz_zarr.write_image`, which zarr-python makes once."""
    key = (version, str(more))
    if key not in _made:
        pixels = fuzz_zarr.write_image(path, version, **more)
        _made[key] = fuzz_zarr.load(path), pixels
    files, pixels = _made[key]
    fuzz_zarr.save(files, path)
    return pixels


def ours(path: Path, **more: Any) -> np.ndarray[Any, Any]:
    image = np.random.default_rng(0).integers(1, 999, (70, 90)).astype("u2")
    with BioWriter(path, image=image, chunks=32, **more):
        pass
    return image


# ---------------------------------------------------------------------- documents

ROOTS = {3: "zarr.json", 2: ".zattrs"}
ARRAYS = {3: "zarr.json", 2: ".zarray"}
CORRUPT = {
    "empty": b"",
    "truncated": None,
    "zeros": bytes(500),
    "text": b"hello",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "latin-1": b'{"zarr_format": "\xe9\xff"}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "long number": b'{"zarr_format": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("where", ["root", "level 0"])
@pytest.mark.parametrize("how", CORRUPT)
def test_a_corrupt_document_is_named(path: Path, version: int, where: str, how: str) -> None:
    write_image(path, version)
    name = ROOTS[version] if where == "root" else f"0/{ARRAYS[version]}"
    data = (path / name).read_bytes()
    replaced = CORRUPT[how]
    (path / name).write_bytes(data[: len(data) // 2] if replaced is None else replaced)
    fails(path, name, kind=FormatError)


@pytest.mark.parametrize("version", [2, 3])
def test_a_huge_document_is_read_or_refused(path: Path, version: int) -> None:
    pixels = write_image(path, version)
    edit(
        path / ROOTS[version],
        lambda d: d.update(attributes={**d.get("attributes", {}), "x": "y" * 5_000_000}),
    )
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:, :, 0, 0, 0], pixels[0, 0, 0])


@pytest.mark.parametrize("version", [2, 3])
def test_missing_documents(path: Path, version: int) -> None:
    pixels = write_image(path, version)
    (path / "0" / ARRAYS[version]).unlink()
    fails(path, "/0'", "not there", kind=DamagedFileError)
    write_image(path, version)
    (path / "1" / ARRAYS[version]).unlink()
    with BioReader(path) as br:
        assert br.levels == 1
        assert "level '1' is listed but not there" in br.notes
        np.testing.assert_array_equal(br[:, :, 1, 1, 0], pixels[0, 1, 1])
    shutil.rmtree(path)
    fails(path, kind=FileNotFoundError)
    path.mkdir()
    fails(path, kind=(IsADirectoryError, FileNotFoundError))
    (path / "notes.txt").write_text("no store")
    fails(path, kind=IsADirectoryError)


def every_place(document: Any, at: tuple[Any, ...] = ()) -> Any:
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    for key, value in items:
        yield (*at, key)
        yield from every_place(value, (*at, key))


WRONG = (None, True, -1, 0, 2**62, 1.5, "x", "", [], {}, [[]], [{}], {"a": {}}, float("nan"),
         float("inf"), 1e999, 10**400, "\ud800", "\0")  # fmt: skip


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("document", ["root", "array"])
def test_a_wrong_type_anywhere_is_an_error_or_does_no_harm(
    path: Path, version: int, document: str
) -> None:
    pixels = write_image(path, version, shards=version == 3)
    file = path / (ROOTS[version] if document == "root" else f"0/{ARRAYS[version]}")
    text = file.read_text()
    places = list(every_place(json.loads(text)))
    rng = np.random.default_rng(0)
    for place in places:
        for number in rng.choice(len(WRONG), 2, replace=False):
            value, damaged = WRONG[number], json.loads(text)
            holder = damaged
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = value
            file.write_text(json.dumps(damaged))
            result = fuzz_zarr.attempt(path)
            assert result != "MemoryError", (place, value)
    file.write_text(text)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:, :, 0, 1, 0], pixels[0, 1, 0])


# ---------------------------------------------------------------------- absurd numbers


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("size", [0, -1, 1.5, "9", None, 2**63, 2**64, 1e300, True])
@pytest.mark.parametrize("what", ["shape", "chunks"])
def test_a_size_that_is_none(path: Path, version: int, size: Any, what: str) -> None:
    write_image(path, version)

    def change(d: Any) -> None:
        if what == "shape" or version == 2:
            d[what][4] = size
        else:
            d["chunk_grid"]["configuration"]["chunk_shape"][4] = size

    edit(path / "0" / ARRAYS[version], change)
    fails(path, kind=FormatError)


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_too_large_to_read(path: Path, version: int) -> None:
    write_image(path, version)

    def change(d: Any) -> None:
        d["shape"] = [1, 2, 2, 2**40, 2**20]
        if version == 2:
            d["chunks"] = d["shape"]
        else:
            d["chunk_grid"]["configuration"]["chunk_shape"] = d["shape"]

    edit(path / "0" / ARRAYS[version], change)
    shutil.rmtree(path / "1")
    source = next(p for p in sorted(path.rglob("*0")) if p.is_file())
    key = path / ("0/0.0.0.0.0" if version == 2 else "0/c/0/0/0/0/0")
    if key != source:
        key.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, key)
    with pytest.raises(BioIOError, match=r"too large|smaller"), BioReader(path) as br:
        br[0, 0, 0, 0, 0]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("shards", [False, True])
def test_billions_of_chunks_are_opened_and_a_pixel_of_them_read_at_once(
    path: Path, version: int, shards: bool
) -> None:
    if version == 2 and shards:
        pytest.skip("Zarr v2 has no shards")
    write_image(path, version, shards=shards)
    shape = [2**40, 2, 2, 2**31, 2**31]
    for level in "01":
        edit(path / level / ARRAYS[version], lambda d: d.update(shape=shape))
    began = time.process_time()
    tracemalloc.start()
    try:
        with BioReader(path) as br:
            assert br.shape == (2**31, 2**31, 2, 2, 2**40)
            assert br[2**30, 2**29, 1, 1, 2**39] == 0  # nothing is stored there
            assert br[0, 0, 0, 0, 0] > 0
            assert not br[-3:, -3:, 0, 0, -1].any()
            assert br[:: 2**29, :: 2**29, 0, 0, 0].shape == (4, 4)
            assert br.details["chunk"] == (1, 1, 1, 16, 16)
            repr(br)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < SECONDS
    assert peak < 8 << 20


def test_more_channels_than_there_can_be(path: Path) -> None:
    write_image(path)
    edit(path / "0" / "zarr.json", lambda d: d.update(shape=[1, 2**40, 2, 40, 50]))
    edit(path / "1" / "zarr.json", lambda d: d.update(shape=[1, 2**40, 2, 20, 25]))
    fails(path, "channels", kind=UnsupportedError)


def test_an_index_of_a_shard_that_would_fill_the_memory(path: Path) -> None:
    write_image(path, shards=True)

    def change(d: Any) -> None:
        d["chunk_grid"]["configuration"]["chunk_shape"] = [1, 1, 1, 2**30, 2**30]
        d["codecs"][0]["configuration"]["chunk_shape"] = [1, 1, 1, 1, 1]

    edit(path / "0" / "zarr.json", change)
    fails(path, kind=BioIOError)


# ---------------------------------------------------------------------- chunks and shards


def chunk_files(path: Path, level: str = "0") -> list[Path]:
    return [p for p in sorted((path / level).rglob("*")) if p.is_file() and p.name[0] not in "z."]


@pytest.mark.parametrize("compression", ["zstd", "gzip", "blosc-zstd", "blosc-lz4", "none"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("keep", [0, 1, 30, -1])
def test_a_chunk_that_is_cut_off_is_an_error_and_the_others_are_read(
    path: Path, compression: str, version: str, keep: int
) -> None:
    image = ours(path, compression=compression, ngff_version=version, shards=False)
    found = chunk_files(path)
    assert len(found) == 9
    found[4].write_bytes(found[4].read_bytes()[:keep])  # rows and columns 32 to 64
    fails(path, str(found[4]), kind=DamagedFileError)
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:32], image[:32])
        np.testing.assert_array_equal(br[64:], image[64:])
        np.testing.assert_array_equal(br[:, 64:], image[:, 64:])
        for key in (np.s_[40, 40], np.s_[31:33], np.s_[63:, 63:]):
            with pytest.raises(DamagedFileError):
                br[key]


def test_a_chunk_of_another_size_is_an_error(path: Path) -> None:
    from numcodecs import GZip

    for size in (0, 1, 16 * 16 * 2 - 2, 16 * 16 * 2 + 2, 4 * 16 * 16 * 2, 50 << 20):
        write_image(path, 2, compressors=GZip())
        file = path / "0" / "0.0.0.1.1"
        assert file.exists()
        file.write_bytes(GZip().encode(bytes(size)))
        fails(path, "0.0.0.1.1", kind=DamagedFileError)
        shutil.rmtree(path)


def test_a_shard_that_is_cut_off_is_an_error_and_the_others_are_read(path: Path) -> None:
    image = ours(path, shards=64)
    file = chunk_files(path)[0]
    data = file.read_bytes()
    index = 16 * 4 + 4
    for keep in (0, 1, index - 1, index, len(data) - index, len(data) - 5, len(data) - 1):
        file.write_bytes(data[:keep])
        fails(path, str(file), kind=DamagedFileError)
        with BioReader(path) as br:
            np.testing.assert_array_equal(br[64:], image[64:])
            for key in (np.s_[0, 0], np.s_[:64, :64], np.s_[60:70, 60:70]):
                with pytest.raises(DamagedFileError):
                    br[key]


def test_an_index_of_a_shard_with_wrong_places(path: Path) -> None:
    image = ours(path, shards=64)
    file = chunk_files(path)[0]
    data = file.read_bytes()
    table = np.frombuffer(data[-68:-4], "<u8").reshape(2, 2, 2)
    from bioio_tk.backends._zarr_codecs import crc32c

    most = 2**64 - 1
    for entry in ((len(data), 5), (0, len(data)), (2**63, 10), (10, 2**63), (most, 7),
                  (most - 5, 10), (most - 1, 2), (0, 0), (0, 5)):  # fmt: skip
        new = table.copy()
        new[0, 1] = entry
        body = new.tobytes()
        file.write_bytes(data[:-68] + body + crc32c(body).to_bytes(4, "little"))
        fails(path, str(file), kind=DamagedFileError)
        with BioReader(path) as br:
            np.testing.assert_array_equal(br[32:64, 32:64], image[32:64, 32:64])
            with pytest.raises(DamagedFileError):
                br[0:32, 32:64]
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    fails(path, "checksum", kind=DamagedFileError)


def test_what_is_missing_is_the_fill_value(path: Path) -> None:
    pixels = write_image(path, 3, fill_value=7)
    missing = path / "0/c/0/0/0/1/1"
    missing.unlink()
    expected = pixels[0, 0, 0].copy()
    expected[16:32, 16:32] = 7
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:, :, 0, 0, 0], expected)


# ---------------------------------------------------------------------- unknown things


@pytest.mark.parametrize("version", [2, 3])
def test_an_unknown_codec_is_named(path: Path, version: int) -> None:
    write_image(path, version)

    def change(d: Any) -> None:
        if version == 2:
            d["compressor"] = {"id": "zipzap", "level": 3}
        else:
            d["codecs"][-1] = {"name": "zipzap", "configuration": {"level": 3}}

    edit(path / "0" / ARRAYS[version], change)
    fails(path, "zipzap", kind=(UnsupportedError, BioIOError))


@pytest.mark.parametrize(
    "dtype", ["|O", "|V3", "<U4", "|S5", "<M8[ns]", [["a", "<u2"], ["b", "<f4"]], "foo", 7, None]
)
def test_pixels_that_are_no_numbers(path: Path, dtype: Any) -> None:
    write_image(path, 2)
    edit(path / "0" / ".zarray", lambda d: d.update(dtype=dtype))
    fails(path, kind=(FormatError, UnsupportedError))


@pytest.mark.parametrize(
    "name", ["float128", "string", "variable_length_bytes", "r24", "", None, []]
)
def test_pixel_types_nobody_knows(path: Path, name: Any) -> None:
    write_image(path)
    edit(path / "0" / "zarr.json", lambda d: d.update(data_type=name))
    fails(path, kind=(FormatError, UnsupportedError))


# ---------------------------------------------------------------------- contradictions


def image_of(document: Any) -> Any:
    document = document.get("attributes", document)
    return document.get("ome", document)["multiscales"][0]


@pytest.mark.parametrize("version", [2, 3])
def test_axes_that_do_not_fit_the_array(path: Path, version: int) -> None:
    write_image(path, version)
    edit(path / ROOTS[version], lambda d: image_of(d)["axes"].pop())
    fails(path, "axes", kind=BioIOError)


@pytest.mark.parametrize("version", [2, 3])
def test_levels_of_another_pixel_type(path: Path, version: int) -> None:
    write_image(path, version)
    name = "data_type" if version == 3 else "dtype"
    value = "uint8" if version == 3 else "|u1"
    edit(path / "1" / ARRAYS[version], lambda d: d.update({name: value}))
    fails(path, "uint8", "uint16", kind=DamagedFileError)


@pytest.mark.parametrize("version", [2, 3])
def test_levels_in_the_wrong_order_are_put_right(path: Path, version: int) -> None:
    pixels = write_image(path, version)
    edit(path / ROOTS[version], lambda d: image_of(d)["datasets"].reverse())
    with BioReader(path) as br:
        assert br.level_shapes == [(40, 50, 2, 2, 1), (20, 25, 2, 2, 1)]
        np.testing.assert_array_equal(br[:, :, 0, 0, 0], pixels[0, 0, 0])
        assert any("large to small" in note for note in br.notes)


@pytest.mark.parametrize(
    "shape", [[1, 1, 2, 20, 25], [2, 2, 2, 20, 25], [1, 2, 9, 20, 25], [1, 2, 0, 20, 25]]
)
def test_a_level_of_another_shape_is_left_out(path: Path, shape: list[int]) -> None:
    pixels = write_image(path)
    edit(path / "1" / "zarr.json", lambda d: d.update(shape=shape))
    with BioReader(path) as br:
        assert br.level_shapes == [(40, 50, 2, 2, 1)]
        assert any("left out" in note for note in br.notes)
        np.testing.assert_array_equal(br[:, :, 0, 0, 0], pixels[0, 0, 0])


@pytest.mark.parametrize("count", [0, 1, 3, 5000])
def test_other_channels_than_the_array_has(path: Path, count: int) -> None:
    write_image(path)
    channels = [{"label": "a"}] * count
    edit(path / "zarr.json", lambda d: d["attributes"]["ome"]["omero"].update(channels=channels))
    with BioReader(path) as br:
        assert br.shape == (40, 50, 2, 2, 1)
        assert len(br.channel_names) == 2
        assert br.metadata.images[0].pixels.size_c == 2


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "0", "-1", "1e999", '"a"', "null"]
)
def test_scales_that_are_none_are_noted_or_refused(path: Path, value: str) -> None:
    pixels = write_image(path)
    text = (path / "zarr.json").read_text()
    scale = json.dumps([1.0, 1.0, 1.0, 0.5, 0.5], indent=None)
    compact = json.dumps(json.loads(text))
    assert scale in compact
    (path / "zarr.json").write_text(compact.replace(scale, f"[1.0, 1.0, {value}, {value}, 0.5]"))
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:, :, 0, 0, 0], pixels[0, 0, 0])
        for size in (br.ps_x, br.ps_y, br.ps_z):
            assert size is None or size[0] is None or math.isfinite(size[0])
        assert br.metadata.images


# ---------------------------------------------------------------------- paths

BAD_PATHS = ["..", "../..", "../other.ome.zarr/0", "/etc", "a/../../x", "", ".", "./0", "0/",
             "//0",
             "..\\..", "C:\\x", "\0", "a\0b", "é" * 200, "x" * 5000,
             "../image.ome.zarr/0"]  # fmt: skip


def other(path: Path) -> None:
    """Put an image where no path of the store may lead."""
    write_image(path.with_name("other.ome.zarr"))


def read_all(path: Path) -> str:
    began = time.process_time()
    result = fuzz_zarr.attempt(path)
    assert time.process_time() - began < SECONDS
    return result


@pytest.mark.parametrize("bad", BAD_PATHS)
def test_no_path_leads_out_of_the_store(path: Path, bad: str) -> None:
    other(path)
    write_image(path)
    edit(path / "zarr.json", lambda d: image_of(d)["datasets"][0].update(path=bad))
    if bad in ("./0", "0/", "//0"):  # sloppy, but they lead where they should
        assert read_all(path) in ("ok", "DamagedFileError", "FormatError")
    else:
        assert read_all(path) != "ok"
    for kind in ("series", "labels", "plate", "well"):
        shutil.rmtree(path)
        listing(path, kind, bad)
        result = read_all(path)
        sloppy = kind == "well" and bad in ("./0", "0/")
        assert (result == "ok") == sloppy or kind == "labels", kind
        if kind == "labels":
            with BioReader(path) as br, pytest.raises((BioIOError, OSError, KeyError)):
                br.labels[bad].close()


def listing(path: Path, kind: str, bad: str) -> None:
    """Make a store whose list names one image, by a path that leads elsewhere."""
    if kind == "labels":
        write_image(path)
        group = zarr.open_group(path / "labels", mode="w", zarr_format=3)
        group.attrs.update({"ome": {"version": "0.5", "labels": [bad]}})
        return
    root = zarr.open_group(path, mode="w", zarr_format=3)
    if kind == "series":
        root.attrs.update({"ome": {"version": "0.5", "bioformats2raw.layout": 3}})
        root.create_group("OME").attrs.update({"ome": {"version": "0.5", "series": [bad]}})
        return
    well = bad if kind == "plate" else "A/1"
    plate = {"rows": [{"name": "A"}], "columns": [{"name": "1"}], "name": "p",
             "wells": [{"path": well, "rowIndex": 0, "columnIndex": 0}]}  # fmt: skip
    root.attrs.update({"ome": {"version": "0.5", "plate": plate}})
    fields = {"ome": {"version": "0.5", "well": {"images": [{"path": bad}]}}}
    zarr.open_group(path / "A" / "1", mode="w", zarr_format=3, attributes=fields)
    write_image(path / "A" / "1" / "0")


@pytest.mark.parametrize("loop", [".", "..", "0"])
def test_links_that_lead_in_a_circle(path: Path, loop: str) -> None:
    pixels = write_image(path)
    (path / "1" / "loop").symlink_to(loop)
    shutil.rmtree(path / "0")
    (path / "0").symlink_to("0")
    fails(path)
    (path / "0").unlink()
    (path / "0").symlink_to("1")
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:, :, 0, 0, 0], pixels[0, 0, 0, ::2, ::2])


def test_labels_that_list_themselves(path: Path) -> None:
    write_image(path)
    for names in (["labels"], ["."], [""], ["0"], ["../labels"]):
        group = zarr.open_group(path / "labels", mode="w", zarr_format=3)
        group.attrs.update({"ome": {"version": "0.5", "labels": names}})
        assert read_all(path) in ("ok", "DamagedFileError", "FormatError", "FileNotFoundError")
        with pytest.raises((BioIOError, OSError)), BioReader(path, group="labels"):
            pass


def test_a_series_that_lists_itself(path: Path) -> None:
    for names in (["OME"], ["OME/OME"], ["0", "0"]):
        root = zarr.open_group(path, mode="w", zarr_format=3)
        root.attrs.update({"ome": {"version": "0.5", "bioformats2raw.layout": 3}})
        root.create_group("OME").attrs.update({"ome": {"version": "0.5", "series": names}})
        write_image(path / "0")
        result = read_all(path)
        assert (result == "ok") == (names == ["0", "0"])


@pytest.mark.parametrize("group", ["..", "../other.ome.zarr", "/etc", "0/../..", "nothing", "a\0b"])
def test_a_group_that_is_asked_for_does_not_lead_out_either(path: Path, group: str) -> None:
    other(path)
    write_image(path)
    with pytest.raises((BioIOError, OSError)), BioReader(path, group=group):
        pass


# ---------------------------------------------------------------------- many


def test_a_plate_of_ten_thousand_wells_that_are_not_there(path: Path) -> None:
    names = [str(n) for n in range(100)]
    wells = [
        {"path": f"{r}/{c}", "rowIndex": r, "columnIndex": c}
        for r in range(100)
        for c in range(100)
    ]
    plate = {"rows": [{"name": n} for n in names], "columns": [{"name": n} for n in names],
             "name": "p", "wells": wells}  # fmt: skip
    zarr.open_group(
        path, mode="w", zarr_format=3, attributes={"ome": {"version": "0.5", "plate": plate}}
    )
    began = time.process_time()
    with pytest.raises(DamagedFileError, match="no image"):
        BioReader(path)
    assert time.process_time() - began < SECONDS


def test_a_list_of_100_000_series_is_opened_by_its_first(path: Path) -> None:
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update({"ome": {"version": "0.5", "bioformats2raw.layout": 3}})
    names = [str(n) for n in range(100_000)]
    root.create_group("OME").attrs.update({"ome": {"version": "0.5", "series": names}})
    pixels = write_image(path / "0")
    began = time.process_time()
    with BioReader(path) as br:
        assert br.n_series == 100_000
        np.testing.assert_array_equal(br[:, :, 0, 0, 0], pixels[0, 0, 0])
        with pytest.raises(DamagedFileError, match="/1'"):
            BioReader(path, series=1)
    assert time.process_time() - began < SECONDS


def test_names_that_are_no_text(path: Path) -> None:
    pixels = write_image(path)
    raw = os.fsencode(path) + b"/\xff\xfe"
    os.mkdir(raw)  # noqa: PTH102 - a path that is no text
    with open(raw + b"/zarr.json", "w") as file:  # noqa: PTH123
        file.write('{"zarr_format": 3, "node_type": "group"}')
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[:, :, 0, 0, 0], pixels[0, 0, 0])
    edit(path / "zarr.json", lambda d: d.update(attributes={}))
    with BioReader(path, dims="TCZYX") as br:  # the arrays right in the group
        np.testing.assert_array_equal(br[:, :, 0, 0, 0], pixels[0, 0, 0])


# ---------------------------------------------------------------------- memory, of a real process


def test_what_is_hostile_takes_no_memory(path: Path) -> None:
    write_image(path)
    edit(path / "0" / "zarr.json", lambda d: d.update(shape=[2**40, 2, 2, 2**31, 2**31]))
    shutil.rmtree(path / "1")
    code = """
        import resource, sys
        from bioio_tk import BioReader
        from bioio_tk.errors import BioIOError
        with BioReader(sys.argv[1]) as br:
            br[0, 0, 0, 0, 0]
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
            try:
                br[...]
            except (BioIOError, MemoryError) as exc:
                print(len(str(exc)) > 10)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path],
        capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert done.stdout == "True\nTrue\n", done.stderr


# ---------------------------------------------------------------------- fuzzing


def test_a_short_run_of_the_fuzzer_finds_nothing() -> None:
    counts, findings = fuzz_zarr.fuzz(float(os.environ.get("BIOIO_TK_FUZZ", "2")), seed=3)
    assert not findings, findings.keys()
    assert sum(counts.values()) > 10
    assert counts["ok"] > 0
    assert counts["DamagedFileError"] > 0
