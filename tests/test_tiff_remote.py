"""TIFF files of a server: the pixels of the local file, in few requests."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import numpy as np
import pytest
import tifffile
from images import coded
from servers import WebServer, s3

from bioio_tk import BioWriter
from bioio_tk.backends._store_url import UrlStore
from bioio_tk.backends.base import OpenOptions
from bioio_tk.backends.tiff_read import TiffSource
from bioio_tk.core.location import Url
from bioio_tk.core.spec import Address
from bioio_tk.errors import BioIOError, DamagedFileError

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

QUICK = OpenOptions(storage_options={"pause": 0.0, "timeout": 30.0})


@pytest.fixture
def web(tmp_path):
    with WebServer(tmp_path) as server:
        yield server


def pixels(source, image=0, level=0):
    """Return all pixels of one level in YXZCT, tile by tile."""
    spec = source.images[image]
    grid = spec.levels[level].grid
    out = np.zeros(grid.shape, spec.dtype)
    for key in list(grid.keys()):
        out[grid.region(key).slices()] = source.read_tile(Address(image, level, key))
    return out


def opened(web, name, options=QUICK):
    return TiffSource(Url(f"{web.url}/{name}"), options)


def _read(web, name):
    source = opened(web, name)
    try:
        return pixels(source)
    finally:
        source.close()


def check(web, name, expected):
    source = opened(web, name)
    try:
        np.testing.assert_array_equal(pixels(source), expected)
        return source.notes
    finally:
        source.close()


def test_ours(web, tmp_path):
    data = coded((700, 900, 2, 2, 2))
    with BioWriter(tmp_path / "a.ome.tif", image=data, tile_size=256, pyramid=True) as bw:
        bw[:] = data
    source = opened(web, "a.ome.tif")
    assert web.counts["/a.ome.tif"] <= 3
    assert all(method == "GET" for method, _, _ in web.log)
    np.testing.assert_array_equal(pixels(source), data)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:
        small = tif.series[0].levels[1].asarray().reshape(2, 2, 2, 350, 450)
    found = pixels(source, level=1).transpose(4, 3, 2, 0, 1)
    order = tif.series[0].axes[:-2]
    places = [order.index(axis) for axis in "TCZ"]
    np.testing.assert_array_equal(found, small.transpose(*places, 3, 4))
    source.close()


def test_requests(web, tmp_path):
    data = np.random.default_rng(1).integers(0, 60_000, (2048, 2048, 1, 3, 1), dtype="u2")
    with BioWriter(tmp_path / "a.ome.tif", image=data, tile_size=256) as bw:
        bw[:] = data
    source = opened(web, "a.ome.tif")
    assert 1 <= web.counts["/a.ome.tif"] <= 3
    assert source.caps.waits
    grid = source.images[0].levels[0].grid
    for channel in range(3):
        source.read_tile(Address(0, 0, (0, 0, 0, channel, 0)))  # the page's tables are known now
    for key in [(3, 4, 0, 0, 0), (7, 7, 0, 1, 0), (2, 1, 0, 2, 0)]:
        web.forget()
        tile = source.read_tile(Address(0, 0, key))
        np.testing.assert_array_equal(tile, data[grid.region(key).slices()])
        assert web.counts["/a.ome.tif"] == 1
    source.close()


def test_a_long_head(web, tmp_path):
    data = coded((1280, 1280, 1, 2, 1), "u1")
    with BioWriter(tmp_path / "a.ome.tif", image=data, tile_size=16, pyramid=True) as bw:
        bw[:] = data
    source = opened(web, "a.ome.tif")
    assert len(source.images[0].levels) > 2
    assert web.counts["/a.ome.tif"] <= 3
    tile = source.read_tile(Address(0, 0, (70, 70, 0, 1, 0)))
    np.testing.assert_array_equal(tile, data[1120:1136, 1120:1136, :, 1:])
    source.close()


def test_threads_wait_together(web, tmp_path):
    data = np.random.default_rng(1).integers(0, 60_000, (1024, 1024, 1, 1, 1), dtype="u2")
    with BioWriter(tmp_path / "a.ome.tif", image=data, tile_size=256) as bw:
        bw[:] = data
    source = opened(web, "a.ome.tif")
    grid = source.images[0].levels[0].grid
    web.forget()
    web.together = 5
    wrong = []

    def work(key):
        tile = source.read_tile(Address(0, 0, key))
        if not np.array_equal(tile, data[grid.region(key).slices()]):
            wrong.append(key)

    threads = [
        threading.Thread(target=work, args=(key,), name="bioio_tk test")
        for key in list(grid.keys())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert web.most > 4
    source.close()


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (64, 64), "compression": "zlib"},
        {"rowsperstrip": 7},
        {"bigtiff": True, "compression": "zstd", "predictor": True},
        {"byteorder": ">"},
        {"imagej": True},
    ],
    ids=str,
)
def test_what_tifffile_writes(web, tmp_path, options):
    data = coded((4, 150, 210))
    tifffile.imwrite(tmp_path / "a.tif", data, **{"photometric": "minisblack", **options})
    found = _read(web, "a.tif")  # what kind of axis the first is, the file does not say
    np.testing.assert_array_equal(found.reshape(150, 210, 4), data.transpose(1, 2, 0))


def test_rgb(web, tmp_path):
    data = coded((90, 110, 3), "u1")
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", compression="jpeg")
    expected = tifffile.imread(tmp_path / "a.tif")
    check(web, "a.tif", expected[:, :, None, :, None])


def test_what_only_tifffile_understands(web, tmp_path):
    data = coded((2, 3, 40, 60))
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TZYX"})
    source = opened(web, "a.tif")
    assert source._files.own._tif is not None
    np.testing.assert_array_equal(pixels(source)[:, :, :, 0], data.transpose(2, 3, 1, 0))
    source.close()


def _ome(width, height, planes, c=1, t=1, document_uuid=None):
    where = "".join(
        f'<TiffData FirstC="{c_}" FirstT="{t_}" FirstZ="0" IFD="{ifd}" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{uid}</UUID></TiffData>'
        for c_, t_, ifd, uid, name in planes
    )
    own = f' UUID="urn:uuid:{document_uuid}"' if document_uuid else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{own}>'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
        f'SizeX="{width}" SizeY="{height}" SizeZ="1" SizeC="{c}" SizeT="{t}">'
        + "".join(f'<Channel ID="Channel:0:{n}" SamplesPerPixel="1"/>' for n in range(c))
        + f"{where}</Pixels></Image></OME>"
    )


def _write(path: Path, planes, xml):
    tifffile.imwrite(path, planes, description=xml, metadata=None)


@pytest.fixture
def members(tmp_path):
    """Three files of one image; plane (c, t) is page t of file c."""
    data = coded((3, 2, 20, 30))
    names = [f"m {c}#.ome.tif" for c in range(3)]
    ids = [str(uuid.UUID(int=c + 1)) for c in range(3)]
    planes = [(c, t, t, ids[c], names[c]) for c in range(3) for t in range(2)]
    for c in range(3):
        _write(tmp_path / names[c], data[c], _ome(30, 20, planes, 3, 2, ids[c]))
    return names, data.transpose(2, 3, 0, 1)[:, :, None]


def test_several_files(web, members):
    names, expected = members
    for c in range(3):
        web.forget()
        assert check(web, f"m%20{c}%23.ome.tif", expected) == ()
        assert set(web.counts) == {f"/{name}" for name in names}
        assert set(web.counts.values()) == {1}
    web.forget()
    options = OpenOptions(storage_options={"headers": {"Authorization": "Bearer x"}})
    source = opened(web, "m%200%23.ome.tif", options)
    assert [headers["Authorization"] for headers in web.headers] == ["Bearer x"] * 3
    unread = list(source._files._found.values())
    assert len(unread) == 2
    source.close()
    assert all(file._store._closed for file in unread)


def test_a_name_with_a_space(web, tmp_path):
    data = coded((20, 30))
    xml = _ome(30, 20, [(0, 0, 0, str(uuid.UUID(int=1)), "a b.ome.tif")])
    _write(tmp_path / "a b.ome.tif", data, xml)
    assert check(web, "a%20b.ome.tif", data[:, :, None, None, None]) == ()
    assert web.counts == {"/a b.ome.tif": 1}


def test_a_missing_file_of_several(web, members, tmp_path):
    names, expected = members
    (tmp_path / names[1]).unlink()
    source = opened(web, "m%200%23.ome.tif")
    assert any(names[1] in note for note in source.notes)
    np.testing.assert_array_equal(
        source.read_tile(Address(0, 0, (0, 0, 0, 2, 1))), expected[:, :, :, 2:, 1:]
    )
    with pytest.raises(DamagedFileError):
        source.read_tile(Address(0, 0, (0, 0, 0, 1, 1)))
    source.close()


def test_a_file_of_several_the_server_cannot_give(web, members):
    names, _ = members
    web.faults[f"/{names[1]}"] = 500
    with pytest.raises(ConnectionError, match=rf"{web.url}/m%201%23.ome.tif.*500"):
        opened(web, "m%200%23.ome.tif")


def test_companion(web, tmp_path):
    data = coded((2, 20, 30))
    ids = [str(uuid.UUID(int=n + 7)) for n in range(2)]
    planes = [(0, t, 0, ids[t], f"t{t}.tif") for t in range(2)]
    (tmp_path / "set.companion.ome").write_text(_ome(30, 20, planes, t=2))
    for t in range(2):
        stub = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{ids[t]}"><BinaryOnly MetadataFile="set.companion.ome" '
            f'UUID="urn:uuid:{uuid.UUID(int=1)}"/></OME>'
        )
        _write(tmp_path / f"t{t}.tif", data[t], stub)
    expected = data.transpose(1, 2, 0)[:, :, None, None]
    for name in ("set.companion.ome", "t0.tif", "t1.tif"):
        web.forget()
        check(web, name, expected)
        assert web.counts["/set.companion.ome"] == 1
    (tmp_path / "set.companion.ome").unlink()
    source = opened(web, "t1.tif")
    assert any("set.companion.ome" in note for note in source.notes)
    source.close()


def test_outside_of_the_folder(web, tmp_path):
    (tmp_path / "sub").mkdir()
    uid = str(uuid.UUID(int=1))
    xml = _ome(30, 20, [(0, 0, 0, uid, "../secret.tif")])
    _write(tmp_path / "sub" / "a.ome.tif", coded((20, 30)), xml)
    with pytest.raises(BioIOError, match="outside"):
        opened(web, "sub/a.ome.tif")
    assert set(web.counts) == {"/sub/a.ome.tif"}


def test_signed_urls(web, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", coded((20, 30)))
    source = opened(web, "a.tif?signature=x/y%2Fz")
    np.testing.assert_array_equal(pixels(source)[:, :, 0, 0, 0], coded((20, 30)))
    source.close()


def test_secrets_are_not_shown(web, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", coded((600, 700)), rowsperstrip=50)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) // 2])
    for content in (whole[: len(whole) // 2], b"nothing of that kind", b"<xml/>"):
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.raises(BioIOError) as caught:
            _read(web, "a.tif?signature=hidden")
        assert f"{web.url}/a.tif" in str(caught.value)
        assert "hidden" not in str(caught.value)


def test_not_there(web):
    with pytest.raises(FileNotFoundError, match=f"{web.url}/no.ome.tif"):
        opened(web, "no.ome.tif")


def test_no_tiff(web, tmp_path):
    (tmp_path / "a.tif").write_bytes(b"<html>not found</html>")
    with pytest.raises(BioIOError, match=f"{web.url}/a.tif"):
        opened(web, "a.tif")
    (tmp_path / "a.tif").write_bytes(b"nothing of that kind")
    with pytest.raises(DamagedFileError, match=f"{web.url}/a.tif"):
        opened(web, "a.tif")


def test_cut_off(web, tmp_path):
    tifffile.imwrite(tmp_path / "whole.tif", coded((600, 700)), rowsperstrip=50)
    whole = (tmp_path / "whole.tif").read_bytes()
    for part in (0.1, 0.5, 0.9):
        (tmp_path / "a.tif").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(BioIOError, match=f"{web.url}/a.tif"):
            _read(web, "a.tif")


def test_a_server_that_fails_while_reading(web, tmp_path):
    data = np.random.default_rng(1).integers(0, 60_000, (512, 512), dtype="u2")
    tifffile.imwrite(tmp_path / "a.tif", data, tile=(256, 256))
    source = opened(web, "a.tif")
    web.fault("/a.tif", 500, "cut", 503)
    tile = source.read_tile(Address(0, 0, (1, 1, 0, 0, 0)))
    np.testing.assert_array_equal(tile[:, :, 0, 0, 0], data[256:, 256:])
    web.faults["/a.tif"] = "cut"
    with pytest.raises(ConnectionError, match=f"{web.url}/a.tif"):
        source.read_tile(Address(0, 0, (1, 0, 0, 0, 0)))
    source.close()


def test_s3(tmp_path):
    pytest.importorskip("s3fs")
    data = coded((300, 400, 1, 2, 1))
    with BioWriter(tmp_path / "a.ome.tif", image=data, tile_size=128) as bw:
        bw[:] = data
    with s3() as storage_options:
        store = UrlStore(Url("s3://plates"), storage_options)
        store.put_file("x y/a.ome.tif", tmp_path / "a.ome.tif")
        store.close()
        options = OpenOptions(storage_options=storage_options)
        source = TiffSource(Url("s3://plates/x y/a.ome.tif"), options)
        np.testing.assert_array_equal(pixels(source), data)
        source.close()
        with pytest.raises(FileNotFoundError, match=r"s3://plates/b\.tif"):
            TiffSource(Url("s3://plates/b.tif"), options)


def test_memory(tmp_path):
    data = coded((60, 70))
    tifffile.imwrite(tmp_path / "a.tif", data)
    store = UrlStore(Url("memory://test_tiff_remote"))
    store.put_file("a.tif", tmp_path / "a.tif")
    source = TiffSource(Url("memory://test_tiff_remote/a.tif"))
    np.testing.assert_array_equal(pixels(source)[:, :, 0, 0, 0], data)
    source.close()
    store.delete("a.tif")
