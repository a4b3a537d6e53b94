"""BdvEditor: views by their attributes, changes in place, and nothing changed in mode "r"."""

from __future__ import annotations

import hashlib
from pathlib import Path
from xml.etree import ElementTree as ET

import h5py
import numpy as np
import pytest
from test_bdv_writer import affines, cells, coded, means, xml

from bioio_tk import BioReader
from bioio_tk.bdv import BdvEditor, BdvWriter
from bioio_tk.core.views import ViewId
from bioio_tk.errors import ClosedError, DamagedFileError, RegionError, SpecError

SIZE = (9, 34, 43)
LEVELS = ((1, 1, 1), (2, 2, 2))


@pytest.fixture
def made(tmp_path):
    """Two channels, two tiles and three times; tile 1 has no channel 0 at time 1."""
    path = tmp_path / "a.h5"
    with BdvWriter(path, LEVELS, ((4, 16, 16),), nchannels=2, ntiles=2) as writer:
        for time in range(3):
            for channel in range(2):
                for tile in range(2):
                    if (time, channel, tile) != (1, 0, 1):
                        writer.append_view(
                            stack(time, channel, tile),
                            time=time,
                            channel=channel,
                            tile=tile,
                            voxel_size_xyz=(0.5, 0.5, 1.5),
                            voxel_units="µm",
                        )
    return path


def stack(time, channel, tile):
    return coded(SIZE, salt=100 * time + 10 * channel + tile)


def fingerprint(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def fiji(folder: Path, pixels: np.ndarray) -> Path:
    """A dataset as Fiji writes it: no tile, channel ids from 1, setups out of order, a list."""
    with h5py.File(folder / "export.h5", "w") as file:
        for setup in (7, 4):
            file[f"s{setup:02d}/resolutions"] = np.ones((1, 3))
            file[f"s{setup:02d}/subdivisions"] = np.full((1, 3), 8, np.int32)
            for time in (3, 5):
                file.create_dataset(
                    f"t{time:05d}/s{setup:02d}/0/cells",
                    data=(pixels + setup + time).view(np.int16),
                    chunks=(4, 8, 8),
                )
    views = "".join(
        f"<ViewSetup><id>{setup}</id><size>{pixels.shape[2]} {pixels.shape[1]} {pixels.shape[0]}"
        f"</size><voxelSize><unit>µm</unit><size>1.0 1.0 2.0</size></voxelSize><attributes>"
        f"<channel>{channel}</channel></attributes></ViewSetup>"
        for setup, channel in ((7, 1), (4, 2))
    )
    registrations = "".join(
        f'<ViewRegistration timepoint="{t}" setup="{s}"><ViewTransform type="affine"><affine>'
        "1 0 0 5 0 1 0 0 0 0 2 0</affine></ViewTransform></ViewRegistration>"
        for t in (3, 5)
        for s in (7, 4)
    )
    (folder / "dataset.xml").write_text(
        '<SpimData version="0.2"><BasePath type="relative">.</BasePath><SequenceDescription>'
        '<ImageLoader format="bdv.hdf5"><hdf5 type="relative">export.h5</hdf5></ImageLoader>'
        f'<ViewSetups>{views}<Attributes name="channel"><Channel><id>1</id></Channel><Channel>'
        '<id>2</id></Channel></Attributes></ViewSetups><Timepoints type="list"><Timepoint><id>3'
        "</id></Timepoint><Timepoint><id>5</id></Timepoint></Timepoints></SequenceDescription>"
        f"<ViewRegistrations>{registrations}</ViewRegistrations><!-- kept --></SpimData>"
    )
    return folder / "dataset.xml"


# ------------------------------------------------------------------ reading


def test_views_are_found_by_their_attributes(made):
    with BdvEditor(made, mode="r") as editor:
        assert editor.get_attribute_count() == (3, 1, 2, 2, 1)
        assert editor.nsetups == 4
        assert editor.dtype == np.uint16
        for time in range(3):
            for channel in range(2):
                for tile in range(2):
                    if (time, channel, tile) == (1, 0, 1):
                        continue
                    where = {"time": time, "channel": channel, "tile": tile}
                    expected = stack(time, channel, tile)
                    np.testing.assert_array_equal(editor.read_view(**where), expected)
                    small = editor.read_view(**where, ilevel=1)
                    np.testing.assert_array_equal(small, means(expected, LEVELS[1]))
        assert editor.missing_views == (ViewId(1, 1),)
        with pytest.raises(RegionError, match="missing"):
            editor.read_view(time=1, channel=0, tile=1)


def test_parts_of_a_view(made):
    expected = stack(2, 1, 1)
    with BdvEditor(made.with_suffix(".xml"), mode="r") as editor:
        where = {"time": 2, "channel": 1, "tile": 1}
        np.testing.assert_array_equal(editor.read_view(**where, z=3), expected[3])
        np.testing.assert_array_equal(editor.read_view(**where, z=-1), expected[-1])
        part = editor.read_view(**where, z=slice(2, 8, 2), y=slice(5, 30), x=slice(40, None))
        np.testing.assert_array_equal(part, expected[2:8:2, 5:30, 40:])
        with pytest.raises(RegionError):
            editor.read_view(**where, z=9)
        with pytest.raises(RegionError, match="resolution"):
            editor.read_view(**where, ilevel=2)


@pytest.mark.parametrize(
    "where", [{"time": 3}, {"channel": 2}, {"tile": -1}, {"angle": 1}, {"illumination": True}]
)
def test_views_that_are_not_there_are_named(made, where):
    with BdvEditor(made, mode="r") as editor, pytest.raises(RegionError, match="there are: 0"):
        editor.read_view(**where)


def test_a_dataset_of_another_writer(tmp_path):
    pixels = coded((5, 20, 17))
    path = fiji(tmp_path, pixels)
    with BdvEditor(path, mode="r") as editor:
        assert editor.get_attribute_count() == (2, 1, 2, 1, 1)
        np.testing.assert_array_equal(editor.read_view(), pixels + np.uint16(10))
        np.testing.assert_array_equal(editor.read_view(5, channel=2), pixels + np.uint16(9))
        assert editor.get_view_property("voxel_size", channel=2) == (1.0, 1.0, 2.0)
        assert editor.get_view_property("view_shape", channel=2) == (17, 20, 5)
        assert editor.read_affine(5, channel=2)[0, 3] == 5
        assert editor.path == tmp_path / "export.h5"


def test_the_shared_affine_is_the_product_of_all(made):
    shift, turn = np.eye(4)[:3], np.eye(4)[:3].copy()
    shift[:, 3] = (10, 20, 30)
    turn[:2, :2] = [[0, -1], [1, 0]]
    with BdvEditor(made) as editor:
        editor.append_affine(shift, "shift", time=2, channel=1, tile=1)
        editor.append_affine(turn, "turn", time=2, channel=1, tile=1)
        whole = np.vstack([turn, [0, 0, 0, 1]]) @ np.vstack([shift, [0, 0, 0, 1]])
        whole = whole @ np.diag([1, 1, 3, 1])
        np.testing.assert_allclose(editor.affines[ViewId(2, 3)], whole[:3])


# ------------------------------------------------------------------ changing


def test_transforms_are_inserted_replaced_and_removed(made):
    matrices = [np.arange(12).reshape(3, 4) * k + np.eye(3, 4) for k in (0.1, 1e-9, 1e9)]
    before = made.with_suffix(".xml").read_bytes()
    with BdvEditor(made) as editor:
        editor.append_affine(matrices[0], "first", time=1, channel=1)
        editor.append_affine(matrices[1], "last", time=1, channel=1, index=2)
        editor.replace_affine(matrices[2], "other", time=1, channel=1, index=0)
        np.testing.assert_array_equal(editor.read_affine(1, channel=1), matrices[2])
        np.testing.assert_array_equal(editor.read_affine(1, channel=1, index=2), matrices[1])
        names = [name for name, _ in affines(made, 1, 2)]
        assert names == ["other", "calibration", "last"]
        editor.remove_affine(1, channel=1, index=1)
    assert affines(made, 1, 2) == [
        ("other", matrices[2].ravel().tolist()),
        ("last", matrices[1].ravel().tolist()),
    ]
    assert (made.parent / "a.xml~1").read_bytes() == before, "one backup of an editor"
    assert not (made.parent / "a.xml~2").exists()
    with BdvEditor(made) as editor:
        editor.append_affine(matrices[0])
    assert (made.parent / "a.xml~2").read_bytes() == before


def test_what_others_have_written_into_the_xml_stays(tmp_path):
    path = fiji(tmp_path, coded((5, 20, 17)))
    with BdvEditor(path) as editor:
        editor.append_affine(np.eye(3, 4), "one more", 5, channel=2)
    assert "<!-- kept -->" in path.read_text()
    found = ET.parse(path).getroot().findall(".//ViewRegistration")
    assert [len(r) for r in found] == [1, 1, 1, 2]


def test_a_cropped_view_stays_where_it_was_in_the_world(made):
    with BdvEditor(made) as editor:
        corner = np.array([7, 4, 2, 1.0])
        before = editor.affines[ViewId(0, 2)] @ corner
        editor.crop_view(((7, -3), (4, None), (2, 8)), channel=1)
        after = editor.affines[ViewId(0, 2)] @ np.array([0, 0, 0, 1.0])
        np.testing.assert_allclose(after, before)
        assert editor.get_view_property("view_shape", channel=1) == (33, 30, 6)
        for time in range(3):
            expected = stack(time, 1, 0)[2:8, 4:, 7:-3]
            found = editor.read_view(time, channel=1)
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(editor.read_view(0, channel=0), stack(0, 0, 0))
    for level, by in enumerate(LEVELS):
        np.testing.assert_array_equal(
            cells(made, (1, 2), level), means(stack(1, 1, 0)[2:8, 4:, 7:-3], by)
        )
    with BioReader(made) as reader:
        assert reader.views


@pytest.mark.parametrize(
    ("box", "says"),
    [
        (((5, 5), None, None), "nothing is left"),
        (((1, 2, 3), None, None), "start, stop"),
        (((1, 2), None), "each of X, Y, Z"),
        (3, "each of X, Y, Z"),
    ],
)
def test_a_crop_that_makes_no_sense_changes_nothing(made, box, says):
    before = fingerprint(made.parent)
    with BdvEditor(made) as editor, pytest.raises(SpecError, match=says):
        editor.crop_view(box)
    assert fingerprint(made.parent) == before


def test_pyramids_for_a_dataset_of_another_writer(tmp_path):
    pixels = coded((5, 20, 17))
    path = fiji(tmp_path, pixels)
    with BdvEditor(path) as editor:
        editor.create_pyramids(((1, 2, 2), (2, 4, 4)), ((2, 8, 8),))
        for level, by in enumerate([(1, 1, 1), (1, 2, 2), (2, 4, 4)]):
            found = editor.read_view(5, channel=2, ilevel=level)
            np.testing.assert_array_equal(found, means(pixels + np.uint16(9), by))
    with h5py.File(tmp_path / "export.h5") as file:
        for setup in ("s04", "s07"):
            assert file[setup]["resolutions"][()].tolist() == [[1, 1, 1], [2, 2, 1], [4, 4, 2]]
        old = file["t00003/s07/0/cells"][()].view("u2")
    np.testing.assert_array_equal(old, pixels + np.uint16(10))


def test_reading_changes_nothing(made):
    before = fingerprint(made.parent)
    with BdvEditor(made, mode="r") as editor:
        editor.read_view()
        editor.read_affine()
        for change in (
            lambda: editor.append_affine(np.eye(3, 4)),
            lambda: editor.replace_affine(np.eye(3, 4)),
            editor.remove_affine,
            editor.crop_view,
            editor.create_pyramids,
        ):
            with pytest.raises(SpecError, match="mode='r'"):
                change()
        editor.finalize()
        with pytest.raises(ClosedError):
            editor.read_view()
    assert fingerprint(made.parent) == before


# ------------------------------------------------------------------ what is not there


def test_both_files_are_needed(made):
    with pytest.raises(FileNotFoundError, match=r"nothing\.xml"):
        BdvEditor(made.with_name("nothing.h5"))
    with pytest.raises(SpecError, match="mode='w'"):
        BdvEditor(made, mode="w")
    made.rename(made.with_name("moved.h5"))
    with pytest.raises(FileNotFoundError, match=r"a\.h5"):
        BdvEditor(made.with_suffix(".xml"))
    made.with_suffix(".xml").write_text("<SpimData")
    with pytest.raises(DamagedFileError):
        BdvEditor(made.with_suffix(".xml"))


def test_affines_are_read_as_they_stand_there(made):
    where = xml(made).find(".//ViewTransform/affine")
    with BdvEditor(made, mode="r") as editor:
        found = editor.read_affine(0)
    assert found.ravel().tolist() == [float(n) for n in where.text.split()]
    with BdvEditor(made, mode="r") as editor, pytest.raises(RegionError, match="1 transform"):
        editor.read_affine(0, index=1)
