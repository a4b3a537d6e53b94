"""Images on servers: BioReader, BioWriter and convert with URLs, and what a bad server does.

Expected pixels come from NumPy and zarr-python; requests are counted by the server.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from images import coded
from oracles import yxzct
from servers import WebServer, s3

from bioio_tk import BioReader, BioWriter, convert
from bioio_tk.backends._store_url import UrlStore
from bioio_tk.core.location import Url
from bioio_tk.errors import DamagedFileError, TargetExistsError, UnsupportedError

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

QUICK = {"pause": 0.0, "timeout": 30.0}
SHAPE = (150, 170, 2, 3, 2)
LAYOUTS = {
    "plain": {"chunks": (64, 64), "shards": False},
    "sharded": {"chunks": (32, 32), "shards": (128, 128)},
    "0.4": {"chunks": (64, 64), "ngff_version": "0.4", "compression": "blosc-lz4"},
}


@pytest.fixture
def web(tmp_path):
    with WebServer(tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def bucket():
    """storage_options of an S3 server with the bucket "plates"."""
    pytest.importorskip("s3fs")
    with s3() as options:
        yield {**options, **QUICK}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


@pytest.fixture
def image():
    return coded(SHAPE)


def write(path, image, **more):
    with BioWriter(path, image=image, pyramid=2, **more):
        pass
    return image


def with_zarr_python(url, options, level=0):
    """Return the pixels that zarr-python finds at a URL."""
    import zarr

    hidden = {k: v for k, v in options.items() if k not in QUICK}
    group = zarr.open_group(url, mode="r", storage_options=hidden)
    return yxzct(group[str(level)][...], "TCZYX")


# ------------------------------------------------------------------ reading


def test_a_web_server_gives_the_pixels_of_the_local_store(web, tmp_path, image, layout):
    write(tmp_path / "a.ome.zarr", image, **layout)
    with BioReader(f"{web.url}/a.ome.zarr", storage_options=QUICK) as br:
        assert (br.shape, br.levels, br.notes) == (SHAPE, 2, ())
        web.together = 5
        np.testing.assert_array_equal(br[...], image)
        np.testing.assert_array_equal(
            br[40:101:3, [5, 160], 1, :, 0], image[40:101:3][:, [5, 160]][:, :, 1:2, :, 0]
        )
        assert "a.ome.zarr" in repr(br)
    assert web.most > 4, "requests were made one after the other"


def test_a_tile_costs_the_requests_of_its_chunks_alone(web, tmp_path, image):
    write(tmp_path / "a.ome.zarr", image, **LAYOUTS["sharded"])
    with BioReader(f"{web.url}/a.ome.zarr", storage_options=QUICK) as br:
        assert len(web.log) <= 14  # all documents of the store at once
        web.forget()
        np.testing.assert_array_equal(br[:32, :32, 0, 0, 0], image[:32, :32, 0, 0, 0])
        assert [path for _, path, _ in web.log] == ["/a.ome.zarr/0/c/0/0/0/0/0"] * 2  # table, chunk
        web.forget()
        br[32:64, 32:64, 0, 0, 0]
        assert len(web.log) == 1  # the table is known
        web.forget()
        br[32:64, 32:64, 0, 0, 0]
        assert len(web.log) == 1
        br[33:60, 40:50, 0, 0, 0]
        web.forget()
        br[34:61, 40:55, 0, 0, 0]
        assert not web.log, "a chunk that was decoded for a part of it is kept"


def test_a_store_whose_name_says_nothing_is_found(web, tmp_path, image):
    write(tmp_path / "a.ome.zarr", image)
    shutil.move(tmp_path / "a.ome.zarr", tmp_path / "data")
    with BioReader(f"{web.url}/data/", storage_options=QUICK) as br:
        np.testing.assert_array_equal(br[...], image)


def test_labels_and_packed_stores_on_a_server(web, tmp_path, image):
    write(tmp_path / "a.ome.zarr", image)
    with BioWriter(tmp_path / "a.ome.zarr", group="labels/cells", image=image[:, :, :, :1]):
        pass
    with BioReader(f"{web.url}/a.ome.zarr", storage_options=QUICK) as br:
        assert list(br.labels) == ["cells"]
        with br.labels["cells"] as labels:
            np.testing.assert_array_equal(labels[...].reshape(labels.shape), image[:, :, :, :1])
    write(tmp_path / "b.ozx", image)
    with BioReader(f"{web.url}/b.ozx", storage_options=QUICK) as br:
        np.testing.assert_array_equal(br[...], image)


def test_a_missing_chunk_is_fill_and_a_missing_store_is_said(web, tmp_path, image):
    write(tmp_path / "a.ome.zarr", image, chunks=(64, 64), shards=False)
    (tmp_path / "a.ome.zarr" / "0" / "c" / "0" / "0" / "0" / "0" / "0").unlink()
    want = image.copy()
    want[:64, :64, 0, 0, 0] = 0
    with BioReader(f"{web.url}/a.ome.zarr", storage_options=QUICK) as br:
        np.testing.assert_array_equal(br[...], want)
    with pytest.raises((FileNotFoundError, DamagedFileError), match=r"none\.ome\.zarr"):
        BioReader(f"{web.url}/none.ome.zarr", storage_options=QUICK)


@pytest.mark.parametrize("fault", [500, "cut", "long"])
def test_a_failing_request_is_repeated_and_then_an_error_with_the_url(web, tmp_path, image, fault):
    write(tmp_path / "a.ome.zarr", image, chunks=(64, 64), shards=False)
    key = "/a.ome.zarr/0/c/0/0/0/1/1"
    with BioReader(f"{web.url}/a.ome.zarr", storage_options=QUICK) as br:
        web.fault(key, fault, fault)
        np.testing.assert_array_equal(br[...], image)
        web.faults[key] = fault
        with pytest.raises(OSError, match=rf"{web.url}{key}.*tried 4 times"):
            br[...]
        np.testing.assert_array_equal(br[:64, :64, 0, 0, 0], image[:64, :64, 0, 0, 0])


def test_a_server_that_dies_is_an_error_in_the_caller(tmp_path, image):
    write(tmp_path / "a.ome.zarr", image, chunks=(64, 64), shards=False)
    with WebServer(tmp_path) as web:
        br = BioReader(f"{web.url}/a.ome.zarr", storage_options=QUICK)
    with br, pytest.raises(ConnectionError, match=r"a\.ome\.zarr/0/c"):
        br[...]


# ------------------------------------------------------------------ writing


def test_what_is_written_to_s3_is_what_others_read_there(bucket, image, layout, request):
    url = f"s3://plates/{abs(hash(request.node.name))}.ome.zarr"
    write(url, image, storage_options=bucket, **layout)
    with BioReader(url, storage_options=bucket) as br:
        np.testing.assert_array_equal(br[...], image)
    np.testing.assert_array_equal(with_zarr_python(url, bucket), image)
    with BioReader(url, storage_options=bucket, level=1) as br:
        np.testing.assert_array_equal(with_zarr_python(url, bucket, 1), br[...].reshape(br.shape))


def test_pieces_in_any_order_go_to_s3(bucket, image):
    url = "s3://plates/pieces.ome.zarr"
    rng = np.random.default_rng(1)
    with BioWriter(
        url, shape=SHAPE, dtype="u2", storage_options=bucket, chunks=(32, 32), shards=(64, 64)
    ) as bw:
        for y in rng.permutation(range(0, 150, 19)):
            bw[y : y + 19] = image[y : y + 19]
        bw[3:50, 7:90] = image[3:50, 7:90]
    np.testing.assert_array_equal(with_zarr_python(url, bucket), image)


def test_an_image_on_a_server_is_replaced_only_on_demand(bucket, image):
    url = "s3://plates/again.ome.zarr"
    write(url, image, storage_options=bucket)
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        BioWriter(url, image=image, storage_options=bucket)
    smaller = image[:40, :40]
    write(url, smaller, storage_options=bucket, overwrite=True)
    np.testing.assert_array_equal(with_zarr_python(url, bucket), smaller)


def test_an_interrupted_write_is_no_image(bucket, image):
    url = "s3://plates/stopped.ome.zarr"
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        BioWriter(url, shape=SHAPE, dtype="u2", storage_options=bucket, chunks=(64, 64)) as bw,
    ):
        bw[...] = image
        store = UrlStore(Url(url), bucket)
        assert store.get("zarr.json") is None
        assert store.get("0/zarr.json") is None
        raise KeyboardInterrupt
    assert store.names() == []
    store.close()
    with pytest.raises((FileNotFoundError, DamagedFileError)):
        BioReader(url, storage_options=bucket)


def test_convert_to_and_from_a_server(bucket, tmp_path, image):
    write(tmp_path / "a.ome.tif", image)
    url = "s3://plates/converted.ome.zarr"
    convert(tmp_path / "a.ome.tif", url, storage_options=bucket)
    np.testing.assert_array_equal(with_zarr_python(url, bucket), image)
    convert(url, tmp_path / "b.ome.tif", storage_options=bucket)
    with BioReader(tmp_path / "b.ome.tif") as br:
        np.testing.assert_array_equal(br[...], image)


def test_a_server_that_dies_during_a_write_is_an_error(image):
    pytest.importorskip("s3fs")
    with s3() as options:
        bw = BioWriter(
            "s3://plates/dying.ome.zarr",
            shape=SHAPE,
            dtype="u2",
            storage_options={**options, **QUICK, "tries": 2},
            chunks=(64, 64),
        )
        bw[:64] = image[:64]
    with pytest.raises(OSError, match=r"s3://plates/dying.ome.zarr"):
        bw[64:] = image[64:]
    with pytest.raises((OSError, ValueError), match="dying"):
        bw.close()


def test_what_a_url_cannot_do_is_said(web, image):
    with pytest.raises(UnsupportedError, match="web server only gives"):
        BioWriter(f"{web.url}/a.ome.zarr", image=image)
    for name in ("a.ome.tif", "a.ozx"):
        with pytest.raises(UnsupportedError, match="only OME-Zarr folders are written"):
            BioWriter(f"s3://plates/{name}", image=image)


def test_without_the_extra_a_url_says_what_to_install(tmp_path):
    code = """
import sys
sys.modules["fsspec"] = None
from bioio_tk import BioReader, BioWriter
for make in (lambda: BioReader("s3://b/a.ome.zarr"), lambda: BioReader("https://h/a.ome.tif"),
             lambda: BioWriter("s3://b/a.ome.zarr", shape=(4, 4), dtype="u1")):
    try:
        make()
    except ImportError as exc:
        print(exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("pip install 'bioio-tk[remote]'" in line for line in lines), lines


def test_the_metadata_come_last(bucket, image):
    url = "s3://plates/order.ome.zarr"
    seen = []
    put = UrlStore.put

    def watched(self, key, value):
        seen.append(key)
        put(self, key, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UrlStore, "put", watched)
        write(url, image, storage_options=bucket, chunks=(64, 64), shards=False)
    assert seen[-1] == "zarr.json"
    first = min(n for n, key in enumerate(seen) if key.endswith("json"))
    assert all("/c/" not in key for key in seen[first:])
    assert json.loads(UrlStore(Url(url), bucket).get("zarr.json"))["node_type"] == "group"
