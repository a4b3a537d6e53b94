"""BdvWriter and BdvEditor at their edges: nothing of the user's is lost, nothing half said."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from xml.etree import ElementTree as ET

import h5py
import numpy as np
import pytest
from test_bdv_writer import FULL, cells, coded, missing, xml

from bioio_tk import BioReader
from bioio_tk.bdv import BdvEditor, BdvWriter
from bioio_tk.core.views import ViewId
from bioio_tk.errors import (
    BioIOWarning,
    ClosedError,
    PixelTypeError,
    SpecError,
    TargetBusyError,
    TargetExistsError,
)

SIZE = (4, 20, 30)
SMALL = ((1, 1, 1), (1, 2, 2))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scan.h5"


def names(folder):
    return sorted(found.name for found in folder.iterdir())


# ------------------------------------------------------------------ what is the user's


def test_overwriting_leaves_files_that_only_have_the_name_of_a_part(path):
    with BdvWriter(path, FULL, times_per_file=1) as writer:
        writer.append_view(coded(SIZE), time=7)
    assert "scan-07-00.h5" in names(path.parent)
    other = path.with_name("scan-2026-11.h5")
    with BdvWriter(other, FULL) as writer:  # a dataset of its own
        writer.append_view(coded(SIZE, salt=5))
    plain = path.with_name("scan-01-02.h5")
    with h5py.File(plain, "w") as file:
        file["results"] = [1, 2, 3]
    with BdvWriter(path, FULL, overwrite=True) as writer:
        writer.append_view(coded(SIZE, salt=1))
    assert names(path.parent) == [
        *("scan-01-02.h5", "scan-2026-11.h5", "scan-2026-11.xml", "scan.h5", "scan.xml"),
    ]
    np.testing.assert_array_equal(cells(other, (0, 0)), coded(SIZE, salt=5))
    with h5py.File(plain) as file:
        assert file["results"][()].tolist() == [1, 2, 3]


@pytest.mark.parametrize("times_per_file", [0, 1])
def test_a_dataset_is_not_replaced_by_what_is_read_from_it(path, times_per_file):
    with BdvWriter(path, FULL, times_per_file=times_per_file) as writer:
        writer.append_view(coded(SIZE))
    before = {found.name: found.read_bytes() for found in path.parent.iterdir()}
    with BioReader(path.with_suffix(".xml")) as reader:
        with (
            BdvWriter(path, FULL, overwrite=True) as writer,
            pytest.raises(SpecError, match="another name"),
        ):
            writer.append_view(reader)
        assert {found.name: found.read_bytes() for found in path.parent.iterdir()} == before
        with BdvWriter(path.with_name("new.h5"), FULL) as writer:
            writer.append_view(reader)
    np.testing.assert_array_equal(cells(path.with_name("new.h5"), (0, 0)), coded(SIZE))


def test_a_part_that_was_begun_and_has_no_view_is_replaced(path):
    with BdvWriter(path, FULL, times_per_file=1) as writer:
        writer.append_view(coded(SIZE))
    with h5py.File(path.with_name("scan-01-00.h5"), "w") as file:  # as a killed writer leaves it
        file["s00/resolutions"] = np.ones((1, 3))
    with BdvWriter(path, FULL, overwrite=True, times_per_file=1) as writer:
        writer.append_view(coded(SIZE, salt=3), time=1)
    np.testing.assert_array_equal(cells(path, (1, 0)), coded(SIZE, salt=3))


@pytest.mark.parametrize("name", ["scan.h5", "scan.xml"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_that_name_is_no_dataset(tmp_path, name, overwrite):
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        BdvWriter(tmp_path / "scan.h5", overwrite=overwrite)
    assert names(tmp_path) == [name]


def test_a_scheme_that_cannot_be_leaves_the_old_dataset(path):
    with BdvWriter(path, FULL) as writer:
        writer.append_view(coded(SIZE))
    before = path.read_bytes()
    with (
        BdvWriter(path, blockdim=((4096, 4096, 4096),), overwrite=True) as writer,
        pytest.raises(SpecError, match="4 GB"),
    ):
        writer.append_view(coded(SIZE))
    assert path.read_bytes() == before
    with (
        BdvWriter(path.with_name("new.h5"), blockdim=((4096, 4096, 4096),)) as writer,
        pytest.raises(SpecError, match="4 GB"),
    ):
        writer.append_view(coded(SIZE))
    assert names(path.parent) == ["scan.h5", "scan.xml"]


def test_stacks_in_parts_survive_a_writer_that_nobody_closed(path):
    writer = BdvWriter(path, FULL)
    writer.append_view(None, virtual_stack_dim=SIZE)
    writer.append_plane(coded(SIZE)[2], 2)
    with pytest.warns(ResourceWarning, match="never closed"):
        del writer
    expected = np.zeros(SIZE, "u2")
    expected[2] = coded(SIZE)[2]
    np.testing.assert_array_equal(cells(path, (0, 0)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer = BdvWriter(path.with_name("nothing.h5"))
        del writer
        gc.collect()


FORKED = """
import os, sys
import numpy as np
from bioio_tk.bdv import BdvWriter
from bioio_tk.errors import ClosedError
writer = BdvWriter(sys.argv[1], ((1, 1, 1),))
stack = np.arange(24, dtype="u2").reshape(2, 3, 4)
writer.append_view(stack)
writer.append_view(None, (2, 3, 4), time=1)
writer.append_plane(stack[0], 0, time=1)
child = os.fork()
if not child:
    try:
        writer.append_view(stack, time=2)
    except ClosedError as exc:
        writer.close()
        del writer
        os._exit(0 if "forked" in str(exc) else 3)
    os._exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
writer.append_plane(stack[1], 1, time=1)
writer.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_leaves_the_dataset_to_its_parent(path):
    src = Path(sys.modules["bioio_tk"].__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(path)],
        timeout=60,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(src)},
    )
    assert done.returncode == 0, done.stderr.decode()
    stack = np.arange(24, dtype="u2").reshape(2, 3, 4)
    for time in range(2):
        np.testing.assert_array_equal(cells(path, (time, 0)), stack)
    assert len(list(xml(path).iter("ViewRegistration"))) == 2


def test_neither_can_be_pickled(path):
    with BdvWriter(path, FULL) as writer:
        writer.append_view(coded(SIZE))
        with pytest.raises(TypeError, match="BdvWriter cannot be pickled"):
            pickle.dumps(writer)
    with BdvEditor(path) as editor, pytest.raises(TypeError, match="BdvEditor cannot be pickled"):
        pickle.dumps(editor)


# ------------------------------------------------------------------ errors before the first byte


@pytest.mark.parametrize(
    "said",
    [
        {"voxel_units": "\x00m"},
        {"m_affine": np.eye(3, 4), "name_affine": "a\x02b"},
        {"exposure_units": "\x03"},
    ],
)
def test_words_that_xml_cannot_hold_are_refused_before_pixels_are_written(path, said):
    with BdvWriter(path, FULL) as writer:
        with pytest.raises(SpecError, match="XML cannot hold"):
            writer.append_view(coded(SIZE), **said)
        assert not writer.views
        assert not path.exists()
        writer.append_view(coded(SIZE), voxel_units="µm", exposure_units=None, name_affine=None)
    assert xml(path).findtext(".//voxelSize/unit") == "µm"


def test_a_word_that_was_refused_is_forgotten(path):
    with BdvWriter(path, FULL, ntiles=2) as writer:
        for said in (
            {"name": "a\x01"},
            {"bad key": 1},
            {"id": 4},
            {"location": (1, 2, "east")},
            {"location": (1, 2, np.nan)},
        ):
            with pytest.raises(SpecError):
                writer.set_attribute("tile", 0, **said)
        with pytest.raises(SpecError, match="XML cannot hold"):
            writer.set_attribute_labels("tile", ["west", "e\x01st"])
        with pytest.raises(SpecError, match="XML cannot hold"):
            writer.write_xml(camera_name="c\x01")
        writer.append_view(coded(SIZE))
        writer.set_attribute("tile", 1, "second", location=(1, 2.5, 3))
    tiles = [{e.tag: e.text for e in tile} for tile in xml(path).iter("Tile")]
    assert tiles == [
        {"id": "0", "name": "0"},
        {"id": "1", "name": "second", "location": "1.0 2.5 3.0"},
    ]
    assert xml(path).findtext(".//camera/name") == "default"


@pytest.mark.parametrize(
    "arguments",
    [
        {"subsamp": ((1, 1, 1), (2, 2))},
        {"subsamp": ((1, 1, 1), (1, 1, 1))},
        {"subsamp": ((2, 2, 2), (1, 1, 1))},
        {"blockdim": ((4, 4), (3, 3, 3))},
    ],
)
def test_resolutions_that_make_no_sense(path, arguments):
    with pytest.raises(SpecError, match=r"subsamp|blockdim"):
        BdvWriter(path, **arguments)


@pytest.mark.parametrize("size", [(10, None, 3), ("a", 1, 2), (1.5, 2, 2), (3, 4), 5, (0, 1, 2)])
def test_sizes_of_virtual_stacks_that_are_none(path, size):
    with BdvWriter(path) as writer:
        with pytest.raises(SpecError, match="virtual_stack_dim"):
            writer.append_view(None, virtual_stack_dim=size)
        with pytest.raises(SpecError, match="Z, Y, X"):
            writer.append_view([[1, 2], [3]])
    assert not names(path.parent)


def test_one_warning_of_a_compression_that_fiji_cannot_read(path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with BdvWriter(path, FULL, compression="lzf", ntiles=3) as writer:
            for tile in range(3):
                writer.append_view(coded(SIZE), tile=tile)
    assert [(w.category, w.filename) for w in said] == [(BioIOWarning, __file__)]


# ------------------------------------------------------------------ threads


def test_two_threads_with_two_pixel_types_for_one_setup(path):
    """Whichever comes first, the other is refused: none is stored as what it is not."""
    stacks = [np.full(SIZE, 300, "u2"), np.full(SIZE, 0.5, "f4")]
    both = threading.Barrier(2)

    class Slow(BdvWriter):
        def _begin(self, *claimed):
            both.wait(30)  # both have found that nothing is there yet
            return super()._begin(*claimed)

    errors = []
    with Slow(path, FULL, max_workers=1) as writer:

        def write(time):
            try:
                writer.append_view(stacks[time], time=time)
            except PixelTypeError as exc:
                errors.append(exc)

        threads = [threading.Thread(target=write, args=(time,)) for time in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(errors) == 1
        (view,) = writer.views
    np.testing.assert_array_equal(cells(path, view), stacks[view.time])


def test_close_waits_for_stacks_on_their_way(path):
    begun, go_on = threading.Event(), threading.Event()

    def wait(done, total):
        begun.set()
        assert go_on.wait(30)

    writer = BdvWriter(path, FULL)
    stack = coded(SIZE)
    appending = threading.Thread(
        target=writer.append_view, args=(stack,), kwargs={"progress": wait}
    )
    appending.start()
    assert begun.wait(30)
    closing = threading.Thread(target=writer.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    with pytest.raises(ClosedError):
        writer.append_view(stack, time=1)
    go_on.set()
    closing.join(30)
    appending.join(30)
    assert not closing.is_alive()
    np.testing.assert_array_equal(cells(path, (0, 0)), stack)
    assert len(list(xml(path).iter("ViewRegistration"))) == 1


def test_transforms_from_several_threads(path):
    with BdvWriter(path, FULL, ntiles=4) as writer:
        for tile in range(4):
            writer.append_view(coded(SIZE), tile=tile, calibration=None)
    with BdvEditor(path) as editor:

        def move(tile):
            for n in range(5):
                matrix = np.eye(3, 4)
                matrix[0, 3] = n
                editor.append_affine(matrix, f"{n}", tile=tile)

        threads = [threading.Thread(target=move, args=(tile,)) for tile in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for view in xml(path).iter("ViewRegistration"):
        assert [t.findtext("Name") for t in view] == ["4", "3", "2", "1", "0"]


# ------------------------------------------------------------------ many


def test_more_parts_than_files_may_be_open(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = len(list(Path("/dev/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + 110, hard))
    try:
        stack = coded((1, 4, 5))
        with BdvWriter(path, FULL, compression="none", times_per_file=1) as writer:
            for time in range(150):
                writer.append_view(stack + np.uint16(time), time=time)
            writer.append_view(stack, time=0)  # into one that was closed
        with BdvEditor(path) as editor:
            editor.create_pyramids(((1, 2, 2),))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(cells(path, (0, 0)), stack)
    np.testing.assert_array_equal(cells(path, (140, 0)), stack + np.uint16(140))
    assert cells(path, (149, 0), 1).shape == (1, 2, 3)


def test_views_that_have_their_resolutions_are_not_made_again(path):
    with BdvWriter(path, SMALL) as writer:
        writer.append_view(coded(SIZE))
        before = path.read_bytes()
        writer.create_pyramids()
        assert path.read_bytes() == before


def test_parts_in_thousands_are_counted_exactly(path):
    """The stack is in the file with the last of 4096 blocks, not before and not later."""
    stack = coded((16, 32, 32))
    corners = [(z, y, x) for z in range(16) for y in range(0, 32, 2) for x in range(0, 32, 2)]
    np.random.default_rng(1).shuffle(corners)
    with BdvWriter(path, FULL, compression="none", max_workers=1) as writer:
        writer.append_view(None, virtual_stack_dim=stack.shape)
        for n, (z, y, x) in enumerate(corners):
            assert not writer.views
            block = stack[z : z + 1, y : y + 2, x : x + 2]
            writer.append_substack(block, z, y, x)
            if n % 500 == 0:
                writer.append_substack(block, z, y, x)  # again: counted once
        assert writer.views == (ViewId(0, 0),)
    np.testing.assert_array_equal(cells(path, (0, 0)), stack)


@pytest.mark.parametrize("parts", [[(0, 3), (2, 3)], [(2, 3), (0, 3)], [(0, 1), (2, 3), (0, 2)]])
def test_parts_that_overlap_do_not_end_a_stack_before_its_last_plane(path, parts):
    stack = coded(SIZE)
    with BdvWriter(path, FULL) as writer:
        writer.append_view(None, virtual_stack_dim=SIZE)
        for start, stop in parts:
            writer.append_substack(stack[start:stop], start)
        assert not writer.views
        writer.append_plane(stack[3], 3)
    np.testing.assert_array_equal(cells(path, (0, 0)), stack)


def test_ten_thousand_tiles_of_which_few_are_there(path):
    with BdvWriter(path, FULL, ntiles=10_000) as writer:
        for tile in (9_999, 5, 400):
            writer.append_view(coded(SIZE, salt=tile), tile=tile)
        writer.append_view(coded(SIZE), time=2, tile=5)
    np.testing.assert_array_equal(cells(path, (0, 9_999)), coded(SIZE, salt=9_999))
    root = xml(path)
    assert [s.findtext("id") for s in root.iter("ViewSetup")] == ["5", "400", "9999"]
    assert len(list(root.iter("Tile"))) == 10_000
    assert missing(path) == {(1, 5), (1, 400), (1, 9_999), (2, 400), (2, 9_999)}


# ------------------------------------------------------------------ cropping


@pytest.fixture
def three(path):
    with BdvWriter(path, SMALL) as writer:
        for time in range(3):
            writer.append_view(coded(SIZE, salt=time), time=time)
    return path


def unchanged(path):
    assert xml(path).findtext(".//ViewSetup/size") == "30 20 4"
    assert not [t for t in xml(path).iter("ViewTransform") if t.findtext("Name") == "cropped"]
    for time in range(3):
        np.testing.assert_array_equal(cells(path, (time, 0)), coded(SIZE, salt=time))


def test_a_crop_that_fails_in_the_middle_changes_no_stack(three):
    calls = []

    def stop(done, total):
        calls.append(done)
        if len(calls) == 3:
            raise RuntimeError("stopped")

    with BdvEditor(three) as editor, pytest.raises(RuntimeError, match="stopped"):
        editor.crop_view(((5, 25), (2, 18), None), progress=stop)
    unchanged(three)
    with BdvEditor(three) as editor:
        editor.crop_view(((5, 25), (2, 18), None))
    for time in range(3):
        kept = coded(SIZE, salt=time)[:, 2:18, 5:25]
        np.testing.assert_array_equal(cells(three, (time, 0)), kept)


def test_a_crop_changes_nothing_where_another_program_has_changed_the_xml(three):
    document = three.with_suffix(".xml")
    with BdvEditor(three) as editor:
        text = document.read_text() + "\n"
        document.write_text(text)
        with pytest.raises(TargetBusyError, match="changed by another program"):
            editor.crop_view(((5, 25), (2, 18), None))
    assert document.read_text() == text
    ET.parse(document)
    unchanged(three)


def test_a_cropped_stack_gets_resolutions_of_its_new_size(path):
    with BdvWriter(path, FULL) as writer:
        writer.append_view(coded(SIZE))
    with BdvEditor(path) as editor:
        editor.crop_view(((5, 25), (2, 18), (1, 4)))
        editor.create_pyramids(((1, 2, 2),))
        assert editor.read_view(ilevel=1).shape == (3, 8, 10)
    kept = coded(SIZE)[1:4, 2:18, 5:25].astype(int)
    total = kept.reshape(3, 8, 2, 10, 2).sum((2, 4))
    np.testing.assert_array_equal(cells(path, (0, 0), 1), (total + 2) // 4)


def test_an_existing_part_is_not_taken_for_ours(path):
    with h5py.File(path.with_name("scan-00-00.h5"), "w") as file:
        file["t00000/mine"] = 1
    with pytest.raises(TargetExistsError):
        BdvWriter(path, FULL, times_per_file=1)
    with h5py.File(path.with_name("scan-00-00.h5")) as file:
        assert file["t00000/mine"][()] == 1


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_is_called_like_a_part_is_seen_before_anything_is_removed(tmp_path, there):
    path, other = tmp_path / "a.h5", tmp_path / "a-00-01.h5"
    stack = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    if there:
        with BdvWriter(path) as writer:
            writer.append_view(stack)
    with h5py.File(other, "w") as file:
        file["mine"] = [1, 2, 3]
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(TargetExistsError, match="a-00-01"):
        BdvWriter(path, setups_per_file=1, nchannels=2, overwrite=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_cell_that_is_too_large_is_refused_before_there_is_a_file(tmp_path):
    with (
        pytest.raises(SpecError, match="smaller factors"),
        BdvWriter(tmp_path / "a.h5", ((1, 1, 1), (2048, 2048, 2048))) as writer,
    ):
        writer.append_view(np.zeros((3, 4, 5), np.uint16))
    assert not list(tmp_path.iterdir())
