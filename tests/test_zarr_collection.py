"""Several images in one store, and what others have in it or open of it: nothing is lost."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from bioio_tk import BioReader, BioWriter
from bioio_tk.errors import SpecError, TargetExistsError

FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def put(path, value=7, size=128, **more):
    with BioWriter(path, image=np.full((size, size), value, "u1"), chunks=64, **more):
        pass


def test_a_group_that_is_replaced_lives_on_for_its_reader(tmp_path):
    path = tmp_path / "a.ome.zarr"
    for group in ("0", "1"):
        put(path, group=group)
    with BioReader(path, series=1) as br, BioReader(path, group="1") as own:
        br[0], own[0]
        put(path, 9, 64, group="1", overwrite=True)
        assert (br[:] == 7).all()
        assert (own[:] == 7).all()
    with BioReader(path, series=1) as br:
        assert br.shape[:2] == (64, 64)
        assert (br[:] == 9).all()


def test_an_image_is_added_while_the_folder_around_is_open(tmp_path):
    path = tmp_path / "a.ome.zarr"
    put(path, group="0")
    with BioReader(path) as br:
        put(path / "0", backend="zarr", group="labels/n")
        assert br[0].any()
    with BioReader(path, group="0") as br:
        assert list(br.labels) == ["n"]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_series_that_nothing_lists_are_listed_with_the_new_one(tmp_path):
    path = tmp_path / "a.ome.zarr"
    for group in ("0", "1"):
        put(path, group=group)
    document = path / "OME" / "zarr.json"
    found = json.loads(document.read_text())
    del found["attributes"]["ome"]["series"]
    document.write_text(json.dumps(found))
    put(path, group="2")
    with BioReader(path) as br:
        assert br.n_series == 3


def test_what_others_wrote_into_the_metadata_stays(tmp_path):
    path = tmp_path / "a.ome.zarr"
    put(path, group="0")
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["lab"] = {"grant": 1}
    (path / "zarr.json").write_text(json.dumps(root))
    xml = path / "OME" / "METADATA.ome.xml"
    text = xml.read_text()
    at = text.index("<Image")
    orion = '<Instrument ID="Instrument:0"><Microscope Model="Orion"/></Instrument>'
    xml.write_text(text[:at] + orion + text[at:])
    put(path, group="1")
    assert json.loads((path / "zarr.json").read_text())["attributes"]["lab"] == {"grant": 1}
    assert "Orion" in xml.read_text()
    with BioReader(path) as br:
        assert br.n_series == len(br.metadata.images) == 2


def test_labels_lie_on_their_image(tmp_path):
    path = tmp_path / "a.ome.zarr"
    put(path)
    with pytest.raises(SpecError, match="labels of Y=64 do not fit their image, which has Y=128"):
        put(path, size=64, group="labels/n")
    with pytest.raises(SpecError, match="'colours'"):
        put(path, group="labels/n", label={"colours": {}})
    with BioReader(path) as br:
        assert list(br.labels) == []


def test_other_objects_on_a_server_are_never_removed():
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.pipe("/collection/exp.zarr/notes.txt", b"mine")
    fs.pipe("/collection/exp.zarr/one.zarr/zarr.json", b"{}")
    for more in ({}, {"overwrite": True}):
        with pytest.raises(TargetExistsError, match="nothing there is touched"):
            BioWriter("memory://collection/exp.zarr", shape=(8, 8), dtype="u1", **more)
    assert len(fs.find("/collection")) == 2
    fs.rm("/collection", recursive=True)


@FORKS
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_let_go_for_its_parent(tmp_path):
    path = tmp_path / "a.ome.zarr"
    put(path)
    br = BioReader(path)
    child = os.fork()
    if child == 0:
        br.close()
        os._exit(0)
    os.waitpid(child, 0)
    put(path, 9, overwrite=True)
    assert (br[:] == 7).all()
    br.close()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@FORKS
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_leaves_the_unfinished_shards_of_a_server_alone():
    pytest.importorskip("fsspec")
    image = np.random.default_rng(1).integers(1, 255, (128, 128)).astype("u1")
    url = "memory://collection/forked.ome.zarr"
    with BioWriter(url, 1, shape=(128, 128), dtype="u1", chunks=64, shards=128) as bw:
        bw[:64] = image[:64]
        child = os.fork()
        if child == 0:
            bw.close()
            bw.abort()
            bw.__del__()
            os._exit(0)
        os.waitpid(child, 0)
        bw[64:] = image[64:]
    with BioReader(url) as br:
        np.testing.assert_array_equal(br[:], image)
