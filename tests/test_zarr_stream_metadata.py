"""What is said of an acquisition in OME-Zarr: by the user while it runs, and after it.

zarr-python and an XML parser read what is on disk.
"""

from __future__ import annotations

import contextlib
import json
import random
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from test_zarr_interop import groups
from test_zarr_stream import (
    WELLS,
    check_groups,
    folder,
    options,
    pictures,
    places_of,
    planned,
    record,
    store_frame,
)

from bioio_tk import AcquisitionSettings, Dimension, Plate, Position, create_stream
from bioio_tk.backends import _zarr_positions, tiff_stream, zarr_stream
from bioio_tk.backends.zarr_stream import ZarrStore
from bioio_tk.core.acquisition import AcquiredPosition
from bioio_tk.core.frames import FrameRoute
from bioio_tk.core.plate import Plate as PlannedPlate
from bioio_tk.errors import BackendError, StreamError
from bioio_tk.meta.ome_notes import renoted
from bioio_tk.meta.ome_stream import StreamImage, stream_xml
from bioio_tk.stream import journal as stream_journal
from bioio_tk.stream.journal import StreamJournal

zarr = pytest.importorskip("zarr")

SPACE = {"m": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
TWO = tuple(AcquiredPosition(f"p{n}") for n in range(2))
LAYOUTS = {
    "single": ({}, ["."]),
    "series": ({"positions": TWO, "several": True}, ["p0", "p1"]),
    "plate": (
        {"positions": WELLS[:2], "several": True, "plate": PlannedPlate("P", ("A", "B"), ("1",))},
        ["A/1/fov0", "B/12/fov0"],
    ),
}


def ngff(attributes):
    return attributes.get("ome", attributes)


def store_all(store, plan, frames, positions):
    for position in positions:
        sink = store.open(position)
        for n, frame in enumerate(frames):
            store_frame(sink, plan, n, frame)
        sink.extend(len(frames))


# ------------------------------------------------------------------ changed while it runs


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_the_user_says_before_the_first_frame_stays(tmp_path, kind, version):
    about, paths = LAYOUTS[kind]
    plan, frames = planned(**about), pictures(4)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options(version))
    said = store.get_metadata()
    assert list(said) == paths
    assert list(path.iterdir()) == []
    for at in paths:
        said[at]["mine"] = {"at": at, "deep": [1, {"a": None}]}
        said[at]["other"] = 1
        image = ngff(said[at])["multiscales"][0]
        image["name"] = f"my {at}"
        image["metadata"] = {"by": "me"}
        image["axes"] = image["axes"][1:]
        image["datasets"][0]["path"] = "nope"
        ngff(said[at])["omero"]["channels"][1]["label"] = "GFP"
        ngff(said[at])["omero"]["channels"] += [{}] if at != paths[0] else []
        ngff(said[at])["version"] = 7
    store.update_metadata(said)
    again = store.get_metadata()
    assert again[paths[0]]["mine"] == {"at": paths[0], "deep": [1, {"a": None}]}
    again[paths[0]]["mine"]["at"] = "here"
    del again[paths[0]]["other"]
    store.update_metadata({paths[0]: again[paths[0]]})

    def check():
        found = groups(path)
        first, last = found[paths[0]], found[paths[-1]]
        assert first["mine"] == {
            "at": "here" if len(paths) > 1 else "now",
            "deep": [1, {"a": None}],
        }
        assert "other" not in first
        assert last.get("other", 1) == 1
        for at in paths:
            image = ngff(found[at])["multiscales"][0]
            assert (image["name"], image["metadata"]) == (f"my {at}", {"by": "me"})
            assert [axis["name"] for axis in image["axes"]] == ["t", "c", "y", "x"]
            assert image["datasets"][0]["path"] == "0"
        labels = [channel["label"] for channel in ngff(first)["omero"]["channels"]]
        assert labels == ["ch0", "GFP"]
        assert len(ngff(last)["omero"]["channels"]) == 2
        for attributes in found.values():
            assert attributes.get("ome", {"version": "0.5"})["version"] == "0.5"

    store_all(store, plan, frames, range(len(paths)))
    if len(paths) == 1:
        said = store.get_metadata()
        said["."]["mine"]["at"] = "now"
        store.update_metadata(said)
    check()
    store.finish([record(4, position) for position in range(len(paths))], {"note": {"a": 1}})
    store.close()
    check()
    found = groups(path)
    assert found["."]["note"] == {"a": 1}
    window = ngff(found[paths[0]])["omero"]["channels"][0]["window"]
    assert window["end"] < 65535  # measured, which is not what was said at first
    mine = store.get_metadata()
    assert list(mine) == paths
    assert ngff(mine[paths[0]])["multiscales"][0]["name"] == f"my {paths[0]}"


def test_a_killed_process_leaves_what_the_user_said(tmp_path):
    plan, frames = planned(**LAYOUTS["series"][0]), pictures(4)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options())
    said = store.get_metadata()
    said["p0"]["mine"] = 5
    said["p0"]["ome"]["multiscales"][0]["name"] = "cells"
    store.update_metadata(said)
    store_all(store, plan, frames, [0])
    store.close()
    left = ZarrStore.reopen(path, plan, options(), {0: 4})
    left.finish([record(4)], {})
    left.close()
    found = groups(path)["p0"]
    assert (found["mine"], found["ome"]["multiscales"][0]["name"]) == (5, "cells")


def test_keys_of_ngff_are_taken_for_no_changes(tmp_path):
    plan = planned()
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options())
    said = store.get_metadata()
    said["."] |= {"plate": {}, "ome_writers": {"frame_metadata": [1]}, "well": {}}
    said["."]["ome"]["plate"] = {}
    said["."]["ome"]["multiscales"][0]["name"] = ["no", "name"]
    store.update_metadata(said)
    store_all(store, plan, pictures(2), [0])
    store.finish([record(2)], {})
    store.close()
    found = groups(path)["."]
    assert set(found) == {"ome", "ome_writers"}
    assert found["ome_writers"]["frame_metadata"] == []
    assert "plate" not in found["ome"]
    assert found["ome"]["multiscales"][0]["name"] == "run"
    assert check_groups(path, "0.5") == {"image": 1}


def test_unknown_paths_are_refused_before_anything_changes(tmp_path):
    store = ZarrStore(folder(tmp_path), planned(), options())
    with pytest.raises(KeyError, match="Unknown path: p7"):
        store.update_metadata({".": {"mine": 1}, "p7": {}})
    assert "mine" not in store.get_metadata()["."]


# ------------------------------------------------------------------ said after the end


def settings_for(path, positions=(), count=2, **more):
    dims = [Dimension(name="t", type="time", count=count)]
    if positions:
        dims.append(Dimension(name="p", type="position", coords=list(positions)))
    dims += [Dimension(name=name, type="space", count=8) for name in "yx"]
    return AcquisitionSettings(root_path=path, dimensions=dims, dtype="uint16", **more)


def xml_of(path):
    if path.is_dir():
        return ET.fromstring((path / "OME/METADATA.ome.xml").read_bytes())
    return ET.fromstring(tifffile.tiffcomment(path).encode())


def notes_in(root):
    found = {}
    for note in root.iterfind(".//m:MapAnnotation", SPACE):
        if "frame-metadata" not in note.get("Namespace"):
            pairs = note.iterfind(".//m:M", SPACE)
            found[note.get("Namespace")] = {m.get("K"): json.loads(m.text) for m in pairs}
    return found


@pytest.mark.parametrize("before", [{}, {"lab": {"user": "Ada"}}])
@pytest.mark.parametrize("suffix", [".ome.tiff", ".ome.zarr"])
def test_notes_after_close_are_in_the_xml_too(tmp_path, suffix, before):
    path = tmp_path / f"a{suffix}"
    with create_stream(settings_for(path)) as stream:
        for namespace, said in before.items():
            stream.set_global_metadata(namespace, said)
        for n in range(2):
            stream.append(np.full((8, 8), n + 1, "u2"), frame_metadata={"delta_t": n, "who": "<&"})
    old = xml_of(path)
    assert notes_in(old) == before
    stream.set_global_metadata("lab", {"user": 'Grace </MapAnnotation> & "co"'})
    stream.set_global_metadata("more", {"n": [1, 2]})
    new = xml_of(path)
    want = {"lab": {"user": 'Grace </MapAnnotation> & "co"'}, "more": {"n": [1, 2]}}
    assert notes_in(new) == want
    for root in (old, new):
        for parent in root.iter():
            for note in [n for n in parent if n.get("ID", "").startswith("Annotation:note-")]:
                parent.remove(note)
        for parent in list(root):
            if parent.tag.endswith("StructuredAnnotations") and not len(parent):
                root.remove(parent)
    assert ET.tostring(old) == ET.tostring(new)
    if suffix == ".ome.zarr":
        attributes = zarr.open_group(path, mode="r").attrs.asdict()
        assert {name: attributes[name] for name in want} == want


def test_no_notes_leave_a_document_as_it_is():
    for document in (
        b"<OME></OME>",
        b"<OME><StructuredAnnotations>a</StructuredAnnotations></OME>",
    ):
        assert renoted(document, {}) == document


def test_notes_of_what_could_not_be_finished_are_refused(tmp_path):
    plan = planned()
    store = ZarrStore(folder(tmp_path), plan, options())
    store.finish((), {"note": {}})  # there is nothing of which they tell
    store_all(store, plan, pictures(2), [0])
    with pytest.raises(BackendError, match="recover"):
        store.finish((), {"note": {}})
    store.close()


@pytest.mark.parametrize(
    "name",
    ["ome", "ome_writers", "bioio_tk", "multiscales", "omero", "plate", "well", "labels", "series",
     "bioformats2raw.layout", "image-label"],
)  # fmt: skip
def test_namespaces_that_ngff_has_are_refused(tmp_path, name):
    with create_stream(settings_for(tmp_path / "a.ome.zarr")) as stream:
        with pytest.raises(ValueError, match=f"'{name}' is reserved.*choose a name of your own"):
            stream.set_global_metadata(name, {"a": 1})
        stream.append(np.ones((8, 8), "u2"))


# ------------------------------------------------------------------ positions that came to nothing


def failing(monkeypatch, module, bad):
    """Make the first frame of some positions fail, whatever has been written of it by then."""
    sink = {tiff_stream: "GrowingTiff", zarr_stream: "GrowingZarr"}[module]
    original = getattr(module, sink).store_tiles

    def store_tiles(self, tiles):
        original(self, tiles)
        if any(name in str(getattr(self, "group", "") or self.path) for name in bad):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(getattr(module, sink), "store_tiles", store_tiles)


def record_three(settings):
    with create_stream(settings) as stream:
        for n in range(3):
            stream.append(np.full((8, 8), n + 1, "u2"))


@pytest.mark.parametrize("tiff_kind", ["redundant", "master-tiff", "companion-file"])
def test_a_tiff_without_a_visible_plane_is_not_left(tmp_path, monkeypatch, tiff_kind):
    failing(monkeypatch, tiff_stream, ["_p002"])
    path = tmp_path / "a.ome.tiff"
    how = {"name": "ome-tiff", "multi_file_metadata": tiff_kind}
    settings = settings_for(path, ["a", "b", "c"], format=how, max_workers=1)
    with pytest.raises(StreamError, match="2 of 3 frames are safe"):
        record_three(settings)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    extra = ["companion.ome"] if tiff_kind == "companion-file" else []
    assert files == ["a_p000.ome.tiff", "a_p001.ome.tiff", *extra]
    first = tmp_path / "a" / (extra or files)[0]
    document = first.read_text() if extra else tifffile.tiffcomment(first)
    assert document.count("<Image ") == 2
    assert [tifffile.imread(tmp_path / "a" / f, series=0).max() for f in files[:1]] == [1]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("wells", "bad", "left"),
    [
        (None, ["p2"], ["OME", "p0", "p1"]),
        (["A1", "B1", "A2"], ["A/2"], ["A", "A/1", "A/1/f", "B", "B/1", "B/1/f", "OME"]),
        (["A1", "A2", "B1"], ["B/1"], ["A", "A/1", "A/1/f", "A/2", "A/2/f", "OME"]),
        (["A1", "B1", "A1"], ["A/1/g"], ["A", "A/1", "A/1/f", "B", "B/1", "B/1/f", "OME"]),
    ],
)
def test_a_group_without_a_visible_plane_is_not_left(
    tmp_path, monkeypatch, wells, bad, left, version
):
    failing(monkeypatch, zarr_stream, bad)
    path = tmp_path / "a.ome.zarr"
    how = {"name": "ome-zarr", "ngff_version": version}
    more = {}
    positions = [f"p{n}" for n in range(3)]
    if wells:
        more["plate"] = Plate(row_names=["A", "B"], column_names=["1", "2"])
        names = ["f", "f", "g" if wells[2] in wells[:2] else "f"]
        positions = [
            Position(name=n, plate_row=w[0], plate_column=w[1])
            for n, w in zip(names, wells, strict=True)
        ]
    settings = settings_for(path, positions, format=how, max_workers=1, **more)
    with pytest.raises(StreamError, match="2 of 3 frames are safe"):
        record_three(settings)
    found = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_dir())
    images = [name for name in left if name.count("/") == (2 if wells else 0) and name != "OME"]
    arrays = [name for name in found if any(name.startswith(f"{i}/0") for i in images)]
    assert sorted(set(found) - set(arrays)) == sorted(left)
    assert check_groups(path, version)["image"] == 2
    attributes = ngff(groups(path)["."])
    if wells:
        assert [w["path"] for w in attributes["plate"]["wells"]] == [i[:3] for i in images]
        assert attributes["plate"]["field_count"] == 1
        for image in images:
            assert len(ngff(groups(path)[image[:3]])["well"]["images"]) == 1
    else:
        assert ngff(groups(path)["OME"])["series"] == ["p0", "p1"]
    values = [int(zarr.open_array(str(path / i / "0"), mode="r")[...].max()) for i in images]
    assert values == [1, 2]
    names = [image.get("Name") for image in xml_of(path).iterfind("m:Image", SPACE)]
    assert len(names) == 2


def test_pixels_that_a_killed_process_has_left_are_kept(tmp_path):
    plan, frames = planned(**LAYOUTS["series"][0]), pictures(2)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options())
    store_all(store, plan, frames, [0])
    store_frame(store.open(1), plan, 0, frames[0])  # on disk, and nobody was told
    store.close()
    left = ZarrStore.reopen(path, plan, options(), {0: 2})
    left.finish([record(2)], {})
    left.close()
    np.testing.assert_array_equal(zarr.open_array(str(path / "p1/0"), mode="r")[0, 0], frames[0])
    bare = folder(tmp_path, "bare.ome.zarr")
    store = ZarrStore(bare, plan, options())
    store_all(store, plan, frames, [0])
    store.open(1)
    store.close()
    left = ZarrStore.reopen(bare, plan, options(), {0: 2})
    left.finish([record(2)], {})
    left.close()
    assert set(places_of(bare)) == {"p0"}


def test_what_readers_have_seen_is_kept_also_without_a_record(tmp_path):
    plan, frames = planned(**LAYOUTS["series"][0]), pictures(2)
    path = folder(tmp_path)
    store = ZarrStore(path, plan, options())
    store_all(store, plan, frames, [0, 1])
    store.finish([record(2)], {})
    store.close()
    np.testing.assert_array_equal(zarr.open_array(str(path / "p1/0"), mode="r")[0], frames)


# ------------------------------------------------------------------ fast ways and plain ones

ODD = (
    {}, {"a": 1}, {"storage_index": "mine"}, {"a": {"storage_index": 1}}, {"who": "ü\n\"\\"},
    {"x": "NaN"}, {"x": float("nan")}, {"y": [float("inf")]}, {"": None}, {"a": "}"}, {"{": "{"},
    {"delta_t": 10**40, "exposure_time": True, "position_x": -0.0, "n": -7, "b": False, "f": 1e300},
)  # fmt: skip


def random_said(rng):
    values = (1, -2.5, "text", "ü", None, True, [1, {"a": "b"}], {"storage_index": 3}, 10**30)
    keys = ("delta_t", "exposure_time", "position_z", "gain", "storage_index", "Größe", "a b")
    return {key: rng.choice(values) for key in rng.sample(keys, rng.randint(0, 5))}


def each_key_once(pairs):
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_frames_written_from_documents_are_those_written_from_dicts(tmp_path):
    rng = random.Random(5)
    said = [*ODD, *ODD, *(random_said(rng) for _ in range(300))]
    spelled = [
        json.dumps(about, ensure_ascii=rng.random() < 0.5, indent=None if n % 5 else 1)
        for n, about in enumerate(said)
    ]
    spelled.append('{"storage\\u005findex": 9}')
    said.append({"storage_index": 9})
    plan = planned((("t", None), ("c", 2), ("z", 3)))
    found = []
    for name in ("a", "b"):
        path = folder(tmp_path, f"{name}.zarr")
        store = ZarrStore(path, plan, options())
        store_all(store, plan, pictures(1), [0])
        done = record(len(said), metadata=lambda: enumerate(said))
        if name == "b":
            texts = [text.encode() for text in spelled]
            done = replace(done, documents=lambda: enumerate(texts))  # noqa: B023
        store.finish([done], {})
        store.close()
        text = (path / "zarr.json").read_text()
        document = json.loads(text, parse_constant=pytest.fail, object_pairs_hook=each_key_once)
        found.append(document["attributes"]["ome_writers"])
    assert found[0] == found[1]
    for n, about in enumerate(found[1]["frame_metadata"]):
        assert about["storage_index"] == [n // 6, n // 3 % 2, n % 3]
    assert found[1]["frame_metadata"][4]["who"] == 'ü\n"\\'


@pytest.mark.parametrize(("sizes", "axis"), [((3000,), None), ((40, 5, 3), 1), ((300, 40), 1)])
@pytest.mark.parametrize("block", [50, 1 << 16])
def test_documents_of_a_journal_are_those_entered(tmp_path, monkeypatch, sizes, axis, block):
    monkeypatch.setattr(stream_journal, "_BLOCK", block)
    rng = random.Random(str(sizes))
    route, positions = FrameRoute(sizes, axis), 1 if axis is None else sizes[axis]
    journal = StreamJournal(tmp_path / "a.ome.zarr", {"settings": {}})
    want = [[] for _ in range(positions)]
    number = 0
    while number < route.total:
        stop = min(route.total, number + rng.randint(1, 9))
        texts = []
        for n in range(number, stop):
            text = json.dumps({"n": n, "x": "y" * rng.choice((0, 5, 90000 if n % 500 == 0 else 9))})
            texts.append(None if rng.random() < 0.3 else text.encode())
            at = np.unravel_index(n, sizes)
            position = 0 if axis is None else int(at[axis])
            rest = [i for k, i in enumerate(at) if k != axis]
            plane = int(np.ravel_multi_index(rest, [s for k, s in enumerate(sizes) if k != axis]))
            if texts[-1] is not None:
                want[position].append((plane, texts[-1]))
        journal.frames(number, stop, texts)
        number = stop
    with contextlib.closing(journal.contents()) as found:
        records = found.records(route)
        assert len(records) == positions
        for one in records:
            assert list(one.documents()) == want[one.position]
            assert list(one.metadata()) == [(n, json.loads(t)) for n, t in want[one.position]]
    journal.remove()


def test_values_in_the_xml_are_those_of_a_plain_loop():
    rng = random.Random(7)
    said = [about for about in ODD if "nan" not in str(about) and "inf" not in str(about)]
    said += [random_said(rng) for _ in range(200)]
    plan = planned((("t", None),))
    done = record(len(said), metadata=lambda: enumerate(said))
    text = stream_xml(plan, [StreamImage(done, "a")], {}, uuid="u", tiff=False)
    root = ET.fromstring(text)
    notes = {n.get("ID"): n for n in root.iterfind(".//m:MapAnnotation", SPACE)}
    names = {"delta_t": "DeltaT", "exposure_time": "ExposureTime", "position_x": "PositionX",
             "position_z": "PositionZ"}  # fmt: skip
    planes = {int(p.get("TheT")): p for p in root.iterfind(".//m:Plane", SPACE)}
    for n, about in enumerate(said):
        plane = planes[n]
        numbers = {
            name: float(plane.get(name)) for name in names.values() if plane.get(name) is not None
        }
        plain = {
            key: value
            for key, value in about.items()
            if key in names and type(value) in (int, float) and abs(value) < 1e300
        }
        assert numbers == {names[key]: float(value) for key, value in plain.items()}
        others = {k: v for k, v in about.items() if k not in plain}
        ref = plane.find("m:AnnotationRef", SPACE)
        pairs = {}
        if ref is not None:
            pairs = {
                m.get("K"): m.text or "" for m in notes[ref.get("ID")].iterfind(".//m:M", SPACE)
            }
        wanted = {k: v if isinstance(v, str) else json.dumps(v) for k, v in others.items()}
        assert pairs == wanted


def test_paths_of_one_plan_are_never_those_of_another():
    one, two = (planned(positions=names, several=True) for names in (TWO, TWO[::-1]))
    for plan, want in ((one, ["p0", "p1"]), (two, ["p1", "p0"]), (one, ["p0", "p1"])):
        assert [place.path for place in _zarr_positions.places(plan)] == want
