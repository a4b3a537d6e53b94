"""Axial registration against planes that NumPy has moved by known steps."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import tifffile

import bioio_tk
from bioio_tk import BioReader
from bioio_tk.errors import BioIOWarning, RegionError, SpecError, TargetExistsError
from bioio_tk.inputs.shifted import with_axial_shifts
from bioio_tk.jobs.axial import AxialShifts, axial_shifts, validate_axial_shifts

SIZE = 96
MARGIN = 48
STEPS = [(0, 0), (3, -2), (-7, 5), (0, 11), (10, -10)]


def texture(seed=0):
    """Return a smooth random plane, larger than what is seen of it."""
    noise = np.random.default_rng(seed).normal(size=(SIZE + 2 * MARGIN,) * 2)
    spectrum = np.fft.fft2(noise)
    f = np.fft.fftfreq(len(noise))
    return np.fft.ifft2(spectrum * np.exp(-60 * (f[:, None] ** 2 + f**2))).real


def stack(steps, *, frames=1, noise=0.0, dtype="uint16"):
    """Return T, Z, Y, X where plane z shows what plane z-1 does, `steps[z]` further in."""
    world = texture()
    world = (world - world.min()) / np.ptp(world)
    rng = np.random.default_rng(1)
    places = np.cumsum(steps, axis=0)
    planes = []
    for dy, dx in places:
        y, x = MARGIN - dy, MARGIN - dx
        planes.append(world[y : y + SIZE, x : x + SIZE])
    clean = np.stack(planes)[None].repeat(frames, 0)
    return ((clean + noise * rng.normal(size=clean.shape) + 1) * 1000).astype(dtype)


def save(path, pixels, **metadata):
    """Write T, Z, Y, X with tifffile."""
    tifffile.imwrite(
        path, pixels, ome=True, photometric="minisblack", metadata={"axes": "TZYX", **metadata}
    )
    return path


@pytest.fixture
def opened(tmp_path):
    """Write an array (T, Z, Y, X) and open it lazily."""
    readers = []

    def make(pixels, **metadata):
        readers.append(BioReader(save(tmp_path / f"{len(readers)}.ome.tif", pixels, **metadata)))
        return readers[-1].array

    yield make
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("noise", [0.0, 0.1], ids=["clean", "noisy"])
def test_known_shifts_are_found_exactly(opened, noise):
    found = axial_shifts(opened(stack(STEPS, frames=3, noise=noise)), max_reg_xy=15)
    # plane z was moved by the sum of the steps, so it has to go back by that
    assert found.shifts.tolist() == (-np.cumsum(STEPS, axis=0)).tolist()
    assert found.borders == found.empty == found.notes == ()
    assert found.peaks[0] == 1
    assert (found.peaks[1:] > 0.02).all()


def test_a_clearer_stack_has_higher_peaks(opened):
    clean = axial_shifts(opened(stack(STEPS)), max_reg_xy=15)
    noisy = axial_shifts(opened(stack(STEPS, noise=0.4)), max_reg_xy=15)
    assert (clean.peaks[1:] > noisy.peaks[1:]).all()
    assert (clean.peaks <= 1).all()


def test_a_shift_beyond_the_radius_is_reported_with_its_plane(opened):
    image = opened(stack([(0, 0), (2, 2), (-20, 0), (1, 0)]))
    with pytest.warns(BioIOWarning, match=r"plane 2 \(from 0\).*max_reg_xy=10"):
        found = axial_shifts(image, max_reg_xy=10)
    assert 2 in found.borders
    assert 1 not in found.borders
    assert axial_shifts(image, max_reg_xy=21).shifts.tolist() == [
        [0, 0],
        [-2, -2],
        [18, -2],
        [17, -2],
    ]


def test_a_plane_without_contrast_does_not_break_the_chain(opened):
    pixels = stack([(0, 0), (4, 1), (0, 0), (-2, 6)])
    pixels[:, 2] = 1234
    found = axial_shifts(opened(pixels), max_reg_xy=15)
    assert found.empty == (2,)
    assert found.peaks[2] == 0
    assert found.shifts.tolist() == [[0, 0], [-4, -1], [-4, -1], [-2, -7]]
    assert "plane 2" in found.notes[0]


def test_floats_with_nan_and_huge_numbers_are_no_obstacle(opened):
    pixels = stack(STEPS, dtype="float32") * np.float32(1e30)
    pixels[0, 1, 5, 5] = np.nan
    pixels[0, 2, 7, 7] = np.inf
    with np.errstate(all="raise"):
        found = axial_shifts(opened(pixels), max_reg_xy=15)
    assert found.shifts.tolist() == (-np.cumsum(STEPS, axis=0)).tolist()


def test_frames_are_evenly_spaced_and_read_a_few_at_a_time(opened):
    pixels = stack(STEPS, frames=9)
    pixels[1::2] = np.random.default_rng(5).integers(0, 4000, pixels[1::2].shape)  # not looked at
    told = []
    found = axial_shifts(
        opened(pixels),
        max_frames=5,
        chunk_frames=2,
        max_reg_xy=15,
        progress=lambda done, total: told.append((done, total)),
    )
    assert found.shifts.tolist() == (-np.cumsum(STEPS, axis=0)).tolist()
    assert found.params["frames"] == 5
    plane = SIZE * SIZE * 2
    assert told == [(plane * (5 * z + n), plane * 25) for z in range(5) for n in (2, 4, 5)]


def test_a_part_of_an_image_is_registered_by_itself(opened):
    image = opened(stack(STEPS, frames=4))
    part = image[:, :, 1:4, :, ::-2]
    wanted = -np.cumsum(STEPS, axis=0)
    assert axial_shifts(part, max_reg_xy=15).shifts.tolist() == (wanted - wanted[1])[1:4].tolist()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_reg_xy": 0}, "max_reg_xy=0"),
        ({"max_frames": 1.5}, "max_frames=1.5"),
        ({"chunk_frames": True}, "chunk_frames=True"),
    ],
)
def test_options_that_make_no_sense(opened, options, text):
    with pytest.raises(SpecError, match=text):
        axial_shifts(opened(stack(STEPS)), **options)


def test_a_channel_that_is_not_there(opened):
    with pytest.raises(RegionError, match="channel=1 does not exist: the image has C=1"):
        axial_shifts(opened(stack(STEPS)), channel=1)


def test_shifts_survive_metadata_as_json(opened):
    with pytest.warns(BioIOWarning):
        found = axial_shifts(opened(stack(STEPS)), max_reg_xy=10)
    metadata = json.loads(json.dumps({"other": 1, **found.to_metadata()}))
    again = AxialShifts.from_metadata(metadata, 5)
    assert again.shifts.tolist() == found.shifts.tolist()
    np.testing.assert_allclose(again.peaks, found.peaks, atol=1e-4)
    assert (again.borders, again.empty, again.params) == (found.borders, (), found.params)
    assert metadata["plane_shifts"] == found.shifts.tolist()
    assert metadata["plane_shifts_params"]["max_reg_xy"] == 10
    assert validate_axial_shifts(metadata, 5)
    assert not validate_axial_shifts(metadata, 4)


@pytest.mark.parametrize(
    "shifts", [None, [[0, 0.5]], [[0, 0, 0]], [0, 0], [["a", "b"]], [[0, float("nan")]], []]
)
def test_metadata_without_usable_shifts(shifts):
    assert not validate_axial_shifts({"plane_shifts": shifts}, 1)
    with pytest.raises(SpecError, match="plane_shifts"):
        AxialShifts.from_metadata({"plane_shifts": shifts}, 1)


def test_shifts_of_some_planes_count_from_the_first_of_them():
    found = AxialShifts(np.array([[0, 0], [1, 2], [3, 5], [4, 4]]), np.ones(4), (2,), (3,))
    part = found.picked([1, 3, 2])
    assert part.shifts.tolist() == [[0, 0], [3, 2], [2, 3]]
    assert (part.borders, part.empty) == ((2,), (1,))
    assert found.picked(slice(2, None)).shifts.tolist() == [[0, 0], [1, -1]]
    with pytest.raises(RegionError, match="none of 4"):
        found.picked([])


# ------------------------------------------------------------------ applying them


SHIFTS = np.array([[0, 0], [3, -2], [-5, 4], [1, 1], [0, -40]])


def canvas(pixels, shifts):
    """Return (T, Z, Y, X) on a canvas of zeros, by a plain loop."""
    t, z, y, x = pixels.shape
    top, left = (max(0, -s) for s in shifts.min(axis=0))
    bottom, right = (max(0, s) for s in shifts.max(axis=0))
    out = np.zeros((t, z, y + top + bottom, x + left + right), pixels.dtype)
    for n, (dy, dx) in enumerate(shifts):
        out[:, n, dy + top : dy + top + y, dx + left : dx + left + x] = pixels[:, n]
    return out


@pytest.fixture
def pixels():
    """T, Z, Y, X."""
    return np.random.default_rng(3).integers(1, 60000, (2, 5, 70, 50), "uint16")


def test_planes_are_moved_on_a_canvas_that_holds_all(opened, pixels):
    image = opened(pixels, PhysicalSizeX=0.5, PhysicalSizeY=0.25)
    moved = with_axial_shifts(image, SHIFTS)
    assert moved.shape[:3] == (70 + 5 + 3, 50 + 40 + 4, 5)
    wanted = canvas(pixels, SHIFTS)
    np.testing.assert_array_equal(moved.compute()[:, :, :, 0].transpose(3, 2, 0, 1), wanted)
    part = moved[10:60:3, 5:, [4, 1], 0, -1]
    np.testing.assert_array_equal(
        part.compute(), wanted[-1, [4, 1], 10:60:3, 5:].transpose(1, 2, 0)
    )


def test_the_origin_moves_with_the_canvas(opened, pixels):
    image = opened(pixels, PhysicalSizeX=0.5, PhysicalSizeY=0.25)
    spec = with_axial_shifts(image, SHIFTS).spec
    assert spec.physical_size == image.spec.physical_size
    assert spec.position.x == (-20.0, "µm")
    assert spec.position.y == (-1.25, "µm")


def test_moving_again_begins_with_the_image_as_it_was(opened, pixels):
    image = opened(pixels)
    moved = with_axial_shifts(image, SHIFTS)
    other = with_axial_shifts(moved, -SHIFTS)
    np.testing.assert_array_equal(
        other.compute()[:, :, :, 0].transpose(3, 2, 0, 1), canvas(pixels, -SHIFTS)
    )
    assert with_axial_shifts(other, None) is image
    with pytest.raises(SpecError, match="a part of an image with moved planes"):
        with_axial_shifts(moved[:20], None)


def test_zero_shifts_change_nothing(opened, pixels):
    moved = with_axial_shifts(opened(pixels), np.zeros((5, 2), int))
    np.testing.assert_array_equal(moved.compute()[:, :, :, 0].transpose(3, 2, 0, 1), pixels)


@pytest.mark.parametrize(
    ("shifts", "text"),
    [
        ([[0, 0]], r"\(1, 2\) were given for Z=5"),
        (np.full((5, 2), 0.5), "whole numbers"),
        (np.full((5, 2), np.nan), "whole numbers"),
        ([["a", "b"]] * 5, "whole numbers"),
    ],
)
def test_shifts_that_fit_no_image(opened, pixels, shifts, text):
    with pytest.raises(SpecError, match=text):
        with_axial_shifts(opened(pixels), shifts)


def test_a_moved_image_is_pickled_with_its_shifts(opened, pixels):
    moved = with_axial_shifts(opened(pixels), SHIFTS)
    again = pickle.loads(pickle.dumps(moved.reader))
    with again:
        np.testing.assert_array_equal(
            again[:, :, :, 0, 1].transpose(2, 0, 1), canvas(pixels, SHIFTS)[1]
        )
    again._live.origin.reader.close()


def test_a_moved_image_is_written_and_not_taken_for_the_one_it_was(opened, pixels, tmp_path):
    image = opened(pixels)
    moved = with_axial_shifts(image, SHIFTS)
    out = tmp_path / "out.ome.tif"
    bioio_tk.convert(moved, out)
    np.testing.assert_array_equal(tifffile.imread(out), canvas(pixels, SHIFTS))
    assert bioio_tk.convert(moved, out, exists="skip").status == "skipped"
    for other in (image, with_axial_shifts(image, -SHIFTS)):
        with pytest.raises(TargetExistsError):
            bioio_tk.convert(other, out, exists="skip")
