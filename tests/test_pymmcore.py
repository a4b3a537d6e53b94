"""pymmcore-plus records with our streams: its own runner, sink and engine, and our name.

The camera counts, and so does the engine, but for one test with Micro-Manager's own. What was
stored is read by tifffile and zarr.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

useq = pytest.importorskip("useq", reason="useq-schema is not installed")
pytest.importorskip("pymmcore_plus", reason="pymmcore-plus is not installed")

SHAPE = (8, 12)
FORMATS = ["ome.tiff", "ome.zarr"]


@pytest.fixture(scope="module")
def plus():
    """pymmcore-plus, with bioio_tk under the name of ome-writers."""
    import bioio_tk.compat.ome_writers

    kept = {name: sys.modules.pop(name) for name in list(sys.modules)
            if name.partition(".")[0] in ("ome_writers", "pymmcore_plus")}  # fmt: skip
    sys.modules["ome_writers"] = bioio_tk.compat.ome_writers
    try:
        yield importlib.import_module("pymmcore_plus.mda")
    finally:
        for name in list(sys.modules):
            if name.partition(".")[0] in ("ome_writers", "pymmcore_plus"):
                del sys.modules[name]
        sys.modules.update(kept)


class Engine:
    """Takes frames that count; fails to focus, loses frames or is cancelled when it is told to."""

    def __init__(self, plus, *, cameras=1, unfocused=(), lost=(), then=None):
        self.plus, self.cameras = plus, cameras
        self.unfocused, self.lost, self.then = unfocused, lost, then or {}
        self.taken = []  # (value, event)
        self.events = itertools.count()

    def setup_sequence(self, sequence):
        info = {
            "width": SHAPE[1],
            "height": SHAPE[0],
            "pixel_size_um": 0.5,
            "dtype": "uint16",
            "num_camera_adapter_channels": self.cameras,
        }
        return {"format": "summary-dict", "image_infos": (info,), "mda_sequence": sequence}

    def event_iterator(self, events):
        return iter(events)

    def teardown_event(self, event):
        pass

    def teardown_sequence(self, sequence):
        pass

    def setup_event(self, event):
        self.now = next(self.events)
        if self.now in self.unfocused:
            raise importlib.import_module("pymmcore_plus.mda._runner").SkipEvent(num_frames=1)

    def exec_event(self, event):
        for _ in range(self.cameras):
            if self.now in self.then:
                self.then[self.now]()
            if self.now in self.lost:
                yield None
                continue
            value = len(self.taken) + 1
            self.taken.append((value, event))
            meta = {
                "format": "frame-dict",
                "exposure_ms": 10.0 + value,
                "position": {"x": event.x_pos or 0.0, "y": event.y_pos or 0.0, "z": 7.0},
            }
            yield np.full(SHAPE, value, "u2"), event, meta


def run(plus, path, events, *, overrides=None, **kwargs):
    """Run a sequence; return the values and events of the frames that were taken."""
    runner, engine = plus.MDARunner(), Engine(plus, **kwargs)
    runner.set_engine(engine)
    engine.then = {at: getattr(runner, what) for at, what in engine.then.items()}
    runner.run(events, output=str(path), dimension_overrides=overrides)
    assert not runner.is_running()
    return engine.taken


def stored(path):
    """Return the value of each plane, by position: arrays of 3 axes fewer than the image's."""
    if path.suffix == ".zarr":
        root = zarr.open_group(path, mode="r")
        ome = root.attrs["ome"]
        if "plate" in ome:
            groups = []
            for well in ome["plate"]["wells"]:
                fields = root[well["path"]].attrs["ome"]["well"]["images"]
                groups += [f"{well['path']}/{field['path']}" for field in fields]
        elif "bioformats2raw.layout" in ome:
            groups = root["OME"].attrs["ome"]["series"]
        else:
            groups = ["."]
        images = [root[f"{group}/0" if group != "." else "0"][:] for group in groups]
    else:
        files = [path] if path.is_file() else sorted(path.parent.glob(f"{path.name[:-9]}/*.tiff"))
        images = []
        for number, file in enumerate(files):
            with tifffile.TiffFile(file) as tif:  # it tells of the others, too
                assert len(tif.series) == len(files)
                images.append(tif.series[number].asarray())
    assert all((image == image[..., :1, :1]).all() for image in images)  # no frame is mixed up
    return [image[..., 0, 0] for image in images]


@pytest.fixture(autouse=True)
def _no_error_is_hidden(caplog):
    """The runner logs what close() raises, and goes on."""
    yield
    hidden = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert all("Micro-Manager installation" in text for text in hidden), hidden


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"run.{request.param}"


# ------------------------------------------------------------------ regular sequences


def test_a_time_lapse(plus, path):
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 5})
    run(plus, path, seq)
    (image,) = stored(path)
    np.testing.assert_array_equal(image, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("order", ["tpgcz", "tpgzc"])
def test_channels_and_planes(plus, path, order):
    seq = useq.MDASequence(
        time_plan={"interval": 0, "loops": 2},
        channels=["DAPI", "Cy5"],
        z_plan={"range": 2, "step": 1},
        axis_order=order,
    )
    run(plus, path, seq)
    (image,) = stored(path)
    want = np.arange(1, 13).reshape(2, 2, 3)
    if order == "tpgzc" and path.suffix == ".zarr":
        want = np.arange(1, 13).reshape(2, 3, 2).swapaxes(1, 2)
    if order == "tpgzc" and path.suffix == ".tiff":
        want = np.arange(1, 13).reshape(2, 3, 2)  # tifffile keeps the order of the planes
    np.testing.assert_array_equal(image, want)


def test_positions(plus, path):
    seq = useq.MDASequence(
        time_plan={"interval": 0, "loops": 2},
        stage_positions=[(1, 2), useq.Position(x=3, y=4, name="cells"), (5, 6)],
        channels=["DAPI", "Cy5"],
    )
    run(plus, path, seq)
    want = np.arange(1, 13).reshape(2, 3, 2)
    for position, image in enumerate(stored(path)):
        np.testing.assert_array_equal(image, want[:, position])


def test_a_plate(plus, path):
    seq = useq.MDASequence(
        stage_positions=useq.WellPlatePlan(
            plate="96-well",
            a1_center_xy=(0, 0),
            selected_wells=((0, 1), (0, 3)),
            well_points_plan=useq.GridRowsColumns(rows=1, columns=2),
        ),
        channels=["DAPI", "Cy5"],
    )
    run(plus, path, seq)
    for position, image in enumerate(stored(path)):
        np.testing.assert_array_equal(image, [2 * position + 1, 2 * position + 2])
    if path.suffix == ".zarr":
        said = zarr.open_group(path, mode="r").attrs["ome"]["plate"]
        assert [well["path"] for well in said["wells"]] == ["A/1", "B/4"]
        assert (len(said["rows"]), len(said["columns"])) == (8, 12)


@pytest.mark.parametrize("channels", [[], ["DAPI", "Cy5"]])
def test_two_cameras(plus, path, channels):
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 3}, channels=channels)
    if channels:
        with pytest.warns(UserWarning, match="Multi-camera"):
            run(plus, path, seq, cameras=2)
    else:
        run(plus, path, seq, cameras=2)
    (image,) = stored(path)
    want = np.arange(1, image.size + 1)
    assert image.size == 3 * 2 * (len(channels) or 1)
    np.testing.assert_array_equal(image.ravel(), want)


# ------------------------------------------------------------------ irregular ones


def test_a_generator_of_events(plus, path):
    run(plus, path, (useq.MDAEvent(x_pos=float(n)) for n in range(7)))
    (image,) = stored(path)
    np.testing.assert_array_equal(image, np.arange(1, 8))


def test_a_ragged_sequence(plus, path):
    channels = ["a", {"config": "b", "do_stack": False}]
    seq = useq.MDASequence(channels=channels, z_plan={"range": 2, "step": 1})
    run(plus, path, seq)
    (image,) = stored(path)
    np.testing.assert_array_equal(image, [1, 2, 3, 4])


def test_frames_that_never_came(plus, path):
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 6})
    run(plus, path, seq, unfocused={1}, lost={3, 4})
    (image,) = stored(path)
    np.testing.assert_array_equal(image, [1, 0, 2, 0, 0, 3])


def test_two_cameras_lose_frames(plus, path):
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 4})
    run(plus, path, seq, cameras=2, unfocused={1}, lost={2})
    (image,) = stored(path)
    np.testing.assert_array_equal(image.ravel(), [1, 2, 0, 0, 0, 0, 3, 4])


def test_cancelled_half_way(plus, path):
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 50}, channels=["a", "b"])
    run(plus, path, seq, then={6: "cancel"})
    (image,) = stored(path)
    np.testing.assert_array_equal(image, [[1, 2], [3, 4], [5, 6], [7, 0]])


def test_cancelled_half_way_at_several_positions(plus, path):
    seq = useq.MDASequence(
        time_plan={"interval": 0, "loops": 50}, stage_positions=[(0, 0), (1, 1), (2, 2)]
    )
    run(plus, path, seq, then={6: "cancel"})
    for image, want in zip(stored(path), [[1, 4, 7], [2, 5], [3, 6]], strict=True):
        np.testing.assert_array_equal(image, want)


# ------------------------------------------------------------------ metadata


def test_metadata_of_frames_and_of_the_run(plus, path):
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 3}, stage_positions=[(11, 22)])
    run(plus, path, seq)
    if path.suffix == ".zarr":
        attributes = dict(zarr.open_group(path, mode="r").attrs)
        if "multiscales" not in attributes["ome"]:
            attributes = dict(zarr.open_group(path / "0", mode="r").attrs)
        told = attributes["pymmcore_plus"]["summary_metadata"]
        frames = attributes["ome_writers"]["frame_metadata"]
        said = [(frame["exposure_time"], frame["position_x"]) for frame in frames]
    else:
        ome = tifffile.xml2dict(tifffile.tiffcomment(next(find(path))))["OME"]
        notes = ome["StructuredAnnotations"]["MapAnnotation"]
        notes = notes if isinstance(notes, list) else [notes]
        (note,) = (note for note in notes if note.get("Namespace") == "pymmcore_plus")
        pairs = note["Value"]["M"]
        pairs = pairs if isinstance(pairs, list) else [pairs]
        told = json.loads(next(m["value"] for m in pairs if m["K"] == "summary_metadata_json"))
        image = ome["Image"]
        said = [(p["ExposureTime"], p["PositionX"]) for p in image["Pixels"]["Plane"]]
    assert said == [(0.011, 11), (0.012, 11), (0.013, 11)]
    assert told["image_infos"][0]["dtype"] == "uint16"
    assert told["mda_sequence"]["time_plan"]["loops"] == 3


def find(path):
    if path.is_file():
        return iter([path])
    return Path(path.parent / path.name.removesuffix(".ome.tiff")).glob("*.tiff")


def test_newer_sinks_say_it_otherwise(plus, path):
    """What newer versions of the sink do in place of get_metadata() and update_metadata()."""
    sink = importlib.import_module("pymmcore_plus.mda._sink").OmeWritersSink
    own = sink.from_output(str(path))
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 2})
    own._write_summary_metadata = lambda **_: own._stream.set_summary_metadata(
        "pymmcore_plus", {"summary_metadata": {"by": "me"}}
    )
    own.setup(seq, Engine(plus).setup_sequence(seq))
    for value in (1, 2):
        own._stream.append(np.full(SHAPE, value, "u2"))
    own._stream.close()
    if path.suffix == ".zarr":
        attributes = zarr.open_group(path, mode="r").attrs
        assert attributes["pymmcore_plus"] == {"summary_metadata": {"by": "me"}}
    else:
        assert "pymmcore_plus" in tifffile.tiffcomment(path)


# ------------------------------------------------------------------ chunks, memory, a live view


def test_chunks_of_the_caller(plus, tmp_path):
    path = tmp_path / "run.ome.zarr"
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 8})
    overrides = {"t": {"chunk_size": 2, "shard_size_chunks": 2}, "y": {"chunk_size": 4}}
    run(plus, path, seq, overrides=overrides)
    array = zarr.open_array(path / "0", mode="r")
    assert (array.chunks, array.shards) == ((2, 4, 12), (4, 4, 12))
    np.testing.assert_array_equal(array[:, 0, 0], np.arange(1, 9))


def test_a_view_while_it_runs(plus):
    runner, engine = plus.MDARunner(), Engine(plus)
    runner.set_engine(engine)
    seen, go = [], threading.Event()

    @runner.events.frameReady.connect
    def look(image, event, meta):
        view = runner.get_view()
        seen.append((view.shape, int(view[event.index["t"], event.index["c"], 0, 0])))
        go.set()

    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 3}, channels=["a", "b"])
    runner.run(seq, output="memory")
    assert go.is_set()
    assert [value for _, value in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1][0] == (3, 2, *SHAPE)


# ------------------------------------------------------------------ Micro-Manager's own engine


def test_its_own_engine(plus, path):
    unicore = importlib.import_module("pymmcore_plus.experimental.unicore")

    class Camera(unicore.CameraDevice):
        """Counts."""

        taken = 0

        def get_exposure(self):
            return 1.0

        def set_exposure(self, exposure):
            pass

        def shape(self):
            return SHAPE

        def dtype(self):
            return np.uint16

        def start_sequence(self, n, get_buffer):
            for _ in range(n or 1):
                self.taken += 1
                get_buffer(SHAPE, np.uint16)[:] = self.taken
                yield {}

    core = unicore.UniMMCore()
    core.loadPyDevice("Camera", Camera())
    core.initializeDevice("Camera")
    core.setCameraDevice("Camera")
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 5})
    core.mda.run(seq, output=path)  # its pixel size is 0: not known
    (image,) = stored(path)
    np.testing.assert_array_equal(image, [1, 2, 3, 4, 5])
    if path.suffix == ".tiff":
        assert "PhysicalSizeX" not in tifffile.tiffcomment(path)
