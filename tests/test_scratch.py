"""Scratch: zeroed arrays in memory up to a budget, then in a file; the values are right in both."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from images import coded

from bioio_tk.engine.scratch import Scratch
from conftest import open_files

U2 = np.dtype("u2")
SHAPE = (64, 48, 2, 1, 1)


def place(room):
    return id(room.pages), room.start


@pytest.fixture
def scratch(tmp_path):
    made = Scratch(tmp_path, budget=100_000)
    yield made
    made.close()


def test_rooms_are_zero_and_their_planes_contiguous(scratch):
    for spilled in (False,) * 8 + (True,) * 4:
        room = scratch.room(SHAPE, U2)
        assert room.spilled == spilled
        assert room.array.shape == SHAPE
        assert room.array.dtype == U2
        assert not room.array.any()
        assert room.array[:, :, 1, 0, 0].flags.c_contiguous
        room.array[...] = 7


def test_the_budget_counts_bytes_in_use_not_bytes_ever_used(scratch):
    rooms = [scratch.room(SHAPE, U2) for _ in range(8)]
    assert not any(room.spilled for room in rooms)
    assert scratch.room(SHAPE, U2).spilled
    scratch.free(rooms.pop())
    assert not scratch.room(SHAPE, U2).spilled
    assert scratch.room(SHAPE, U2).spilled


def test_spilled_rooms_keep_their_own_values_while_they_rest(tmp_path):
    scratch = Scratch(tmp_path, budget=0)
    rooms = [scratch.room((33, 17 + n, 1, 2, 1), U2) for n in range(20)]
    for n, room in enumerate(rooms):
        room.array[...] = coded(room.array.shape, seed=n)
        room.rest()
    for n, room in enumerate(rooms):
        assert room.spilled
        np.testing.assert_array_equal(room.array, coded(room.array.shape, seed=n))
    scratch.close()
    np.testing.assert_array_equal(rooms[3].array, coded(rooms[3].array.shape, seed=3))


def test_a_freed_place_is_used_again_and_is_zero_again(tmp_path):
    scratch = Scratch(tmp_path, budget=0)
    first, second = scratch.room(SHAPE, U2), scratch.room(SHAPE, U2)
    first.array[...], second.array[...] = 1, 2
    scratch.free(first)
    third = scratch.room(SHAPE, U2)
    assert place(third) == place(first)
    assert not third.array.any()
    third.array[...] = 3
    assert (second.array == 2).all()
    assert place(scratch.room(SHAPE, U2)) not in (place(second), place(third))
    scratch.close()


def test_thousands_of_rooms_do_not_need_thousands_of_open_files(tmp_path):
    scratch = Scratch(tmp_path, budget=0)
    rooms = [scratch.room((16, 8, 1, 1, 1), U2) for _ in range(3000)]
    for n, room in enumerate(rooms):
        room.array[...] = n
        room.rest()
    assert len(open_files(tmp_path)) < 40
    assert all((room.array == n).all() for n, room in enumerate(rooms))
    scratch.close()


@pytest.mark.parametrize("dtype", ["?", "u1", "f8", "c8"])
def test_rooms_of_any_pixel_type(tmp_path, dtype):
    scratch = Scratch(tmp_path, budget=0)
    room = scratch.room((5, 7, 1, 3, 2), np.dtype(dtype))
    room.array[...] = coded((5, 7, 1, 3, 2), dtype)
    np.testing.assert_array_equal(room.array, coded((5, 7, 1, 3, 2), dtype))
    scratch.close()


def test_there_is_no_file_while_the_memory_suffices(scratch, tmp_path):
    scratch.room(SHAPE, U2)
    assert not open_files(tmp_path)
    assert not list(tmp_path.iterdir())


def test_close_drops_the_file_and_can_be_called_twice(tmp_path):
    scratch = Scratch(tmp_path, budget=0)
    room = scratch.room(SHAPE, U2)
    assert open_files(tmp_path)
    scratch.close()
    scratch.close()
    del room
    assert not open_files(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_os_error_and_not_a_crash(tmp_path):
    """Touching a mapped page that the disk has no room for would kill the process (SIGBUS)."""
    script = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from bioio_tk.engine.scratch import Scratch

        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        scratch = Scratch(Path(sys.argv[1]), budget=0)
        rooms = []
        try:
            for n in range(100):
                rooms.append(scratch.room((256, 256, 1, 1, 1), np.dtype("u2")))
                rooms[-1].array[...] = n
        except OSError as exc:
            print(len(rooms), all((room.array == n).all() for n, room in enumerate(rooms)))
            sys.exit(7)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (child.returncode, child.stdout) == (7, "8 True\n"), child.stderr
