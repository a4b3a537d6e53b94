"""imwrite and convert: every argument through the functions and through the command line."""

import json

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from bioio_tk import convert, imwrite
from bioio_tk.errors import PixelTypeError, RegionError, SpecError, TargetExistsError
from tests.command import run

T, C, Z, Y, X = 4, 3, 5, 40, 48
IMAGE = (np.arange(T * C * Z * Y * X, dtype=np.uint32).reshape(T, C, Z, Y, X) % 65521).astype("u2")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return an OME-TIFF that tifffile has written."""
    path = tmp_path_factory.mktemp("in") / "cells.ome.tif"
    tifffile.imwrite(
        path,
        IMAGE,
        metadata={
            "axes": "TCZYX",
            "Channel": {"Name": ["DAPI", "GFP", "RFP"]},
            "PhysicalSizeX": 0.5,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 0.5,
            "PhysicalSizeYUnit": "µm",
            "PhysicalSizeZ": 2.0,
            "PhysicalSizeZUnit": "µm",
            "TimeIncrement": 3.0,
            "TimeIncrementUnit": "s",
        },
    )
    return path


def pixels(path):
    """Return (T, C, Z, Y, X), read by tifffile, which leaves out axes of one."""
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        array, axes = series.asarray(), series.axes
    for n, axis in enumerate("TCZYX"):
        if axis not in axes:
            array = np.expand_dims(array, n)
            axes = axes[:n] + axis + axes[n:]
    assert axes == "TCZYX"
    return array


def by(**picks):
    """Return what is selected of IMAGE along each axis."""
    out = IMAGE
    for n, axis in enumerate("tczyx"):
        if axis in picks:
            out = out.take(np.arange(out.shape[n])[picks[axis]], n)
    return out


CASES = [
    ({"planes": 2}, ["--planes", "2"], by(z=[1])),
    ({"planes": [1, 3, 5]}, ["--planes", "1,3,5"], by(z=[0, 2, 4])),
    ({"planes": "2:4"}, ["--planes", "2:4"], by(z=[1, 2, 3])),
    ({"planes": [5, 1]}, ["--planes", "5,1"], by(z=[4, 0])),
    ({"frames": [1, 4]}, ["--frames", "1,4"], by(t=[0, 3])),
    ({"timepoints": range(2, 4)}, ["--timepoints", "2:3"], by(t=[1, 2])),
    ({"channels": (1, 3)}, ["--channels", "1,3"], by(c=[0, 2])),
    ({"num_frames": 2}, ["--num-frames", "2"], by(t=[0, 1])),
    ({"num_timepoints": 3}, ["--num-timepoints", "3"], by(t=[0, 1, 2])),
    ({"num_zplanes": 2}, ["--num-zplanes", "2"], by(z=[0, 1])),
    ({"planes": [1, 2, 5], "order": [2, 0, 1]}, ["--planes", "1,2,5", "--order", "2,0,1"],
     by(z=[4, 0, 1])),
    ({"order": [4, 3, 2, 1, 0]}, ["--order", "4,3,2,1,0"], by(z=[4, 3, 2, 1, 0])),
    ({"select": "c=0,2 z=1:4 t=::2 y=8:30"}, ["--select", "c=0,2 z=1:4 t=::2 y=8:30"],
     by(c=[0, 2], z=slice(1, 4), t=slice(None, None, 2), y=slice(8, 30))),
    ({"select": {"x": slice(3, None, 5)}}, ["--select", "x=3::5"], by(x=slice(3, None, 5))),
    ({"target_chunk_mb": 0.01}, ["--target-chunk-mb", "0.01"], IMAGE),
    ({"memory": 1 << 20}, ["--memory", "1MiB"], IMAGE),
    ({"register_z": True, "planes": [1, 1]}, ["--register-z", "--planes", "1,1"], by(z=[0, 0])),
    ({"roi_mode": "concat_y"}, ["--roi-mode", "concat_y"], IMAGE),
    ({"dtype": "uint8", "cast": "clip"}, ["--dtype", "uint8", "--cast", "clip"],
     np.minimum(IMAGE, 255).astype("u1")),
    ({"dtype": "uint8", "cast": "scale"}, ["--dtype", "uint8", "--cast", "scale"],
     np.rint(IMAGE * (255 / 65535)).astype("u1")),
    ({"verify": "full"}, ["--verify", "full"], IMAGE),
    ({"verify": "sample"}, ["--verify", "sample"], IMAGE),
    ({"resume": True}, ["--resume"], IMAGE),
    ({"workers": 1}, ["--workers", "1"], IMAGE),
    ({"exists": "replace"}, ["--exists", "replace"], IMAGE),
]  # fmt: skip
IDS = [" ".join(case[1]) for case in CASES]


@pytest.mark.parametrize(("keywords", "options", "expected"), CASES, ids=IDS)
def test_arguments_by_function(tmp_path, source, keywords, options, expected):
    report = convert(source, tmp_path / "a.ome.tif", **keywords)
    np.testing.assert_array_equal(pixels(tmp_path / "a.ome.tif"), expected)
    assert report.shape == tuple(expected.shape[n] for n in (3, 4, 2, 1, 0))
    wrote = imwrite(IMAGE, tmp_path / "deep" / "b.ome.tif", dim_order="TCZYX", **keywords)
    assert wrote == tmp_path / "deep" / "b.ome.tif"
    np.testing.assert_array_equal(pixels(wrote), expected)


@pytest.mark.parametrize(("keywords", "options", "expected"), CASES, ids=IDS)
def test_arguments_by_command(tmp_path, source, keywords, options, expected):
    run("convert", source, tmp_path / "a.ome.tif", "--quiet", *options)
    np.testing.assert_array_equal(pixels(tmp_path / "a.ome.tif"), expected)


@pytest.mark.parametrize(
    ("keywords", "options", "name"),
    [
        ({}, [], "tp00001-00004_ch01-03_zplane01-05.tif"),
        ({"planes": 3}, ["--planes", "3"], "tp00001-00004_ch01-03_zplane03.tif"),
        ({"planes": [1, 3, 5]}, ["--planes", "1,3,5"], "tp00001-00004_ch01-03_zplane01-05-2.tif"),
        ({"frames": [1, 4, 2], "channels": 2}, ["--frames", "1,4,2", "--channels", "2"],
         "tp00001+00004+00002_ch02_zplane01-05.tif"),
        ({"output_suffix": "my/..bad:one.tiff"}, ["--output-suffix", "my/..bad:one.tiff"],
         "tp00001-00004_ch01-03_zplane01-05_my..badone.tif"),
        ({"output_name": "mouse"}, ["--output-name", "mouse"], "mouse.tif"),
    ],
)  # fmt: skip
def test_a_file_is_named_by_what_is_in_it(tmp_path, source, keywords, options, name):
    assert imwrite(source, tmp_path / "new" / "out", **keywords) == tmp_path / "new" / "out" / name
    run("convert", source, tmp_path / "cli", "--ext", "tiff", "--quiet", *options)
    assert [path.name for path in (tmp_path / "cli").iterdir()] == [name]
    np.testing.assert_array_equal(
        pixels(tmp_path / "cli" / name), pixels(tmp_path / "new" / "out" / name)
    )


@pytest.mark.parametrize(
    ("ext", "read"),
    [
        (".tif", tifffile.imread),
        ("tiff", tifffile.imread),
        (".ome.tif", tifffile.imread),
        (".zarr", lambda path: zarr.open(path, mode="r")["0"][:]),
        (".ome.zarr", lambda path: zarr.open(path, mode="r")["0"][:]),
        (".h5", lambda path: h5py.File(path, "r", locking=False)["mov"][:]),
        (".hdf5", lambda path: h5py.File(path, "r", locking=False)["mov"][:]),
        (".npy", np.load),
    ],
)
def test_every_format_by_its_ending(tmp_path, source, ext, read):
    path = imwrite(source, tmp_path, ext=ext)
    np.testing.assert_array_equal(read(path).reshape(IMAGE.shape), IMAGE)
    run("convert", source, tmp_path / "cli", "--ext", ext, "--quiet")
    (other,) = (tmp_path / "cli").iterdir()
    np.testing.assert_array_equal(read(other).reshape(IMAGE.shape), IMAGE)


def test_suite2p_has_a_folder_for_each(tmp_path, source):
    path = imwrite(source, tmp_path, ext=".bin", planes=2, channels=1, cast="clip")
    raw = np.fromfile(path, "<i2").reshape(T, Y, X)
    np.testing.assert_array_equal(raw, np.minimum(IMAGE[:, 0, 1], 32767))
    assert (path.parent / "ops.npy").exists()
    with pytest.raises((SpecError, PixelTypeError), match=r"int16|cast"):
        imwrite(source, tmp_path / "b", ext=".bin", planes=2, channels=1)
    assert not list(tmp_path.glob("b/*/*"))


def test_a_dataset_is_called_as_asked(tmp_path, source):
    path = imwrite(source, tmp_path / "a.h5", dataset_name="movie")
    assert h5py.File(path, "r")["movie"].size == IMAGE.size
    run("convert", source, tmp_path / "b.h5", "--dataset-name", "movie", "--quiet")
    assert "movie" in h5py.File(tmp_path / "b.h5", "r")


@pytest.mark.parametrize("axes", ["TCZYX", "ZYX", "YX", "CYX", "XY", "TYX"])
def test_the_order_of_axes_is_what_is_said(tmp_path, axes):
    array = np.moveaxis(IMAGE, 0, -1)[(0,) * (5 - len(axes))]
    path = imwrite(array, tmp_path / "a.ome.tif", dim_order=axes)
    full = array
    for axis in "TCZYX":
        if axis not in axes:
            full, axes = full[None], axis + axes
    np.testing.assert_array_equal(pixels(path), full.transpose([axes.index(a) for a in "TCZYX"]))


def test_metadata_are_added(tmp_path, source):
    given = {"dz": 5, "fs": 4, "mouse": "m 7", "channel_names": ["a", "b", "c"]}
    imwrite(source, tmp_path / "a.ome.tif", metadata=given)
    words = [f"--metadata={k}={json.dumps(v) if k != 'mouse' else v}" for k, v in given.items()]
    run("convert", source, tmp_path / "b.ome.tif", "--quiet", *words)
    run("convert", source, tmp_path / "c.ome.tif", "--quiet", "--metadata", json.dumps(given))
    for name in ("a", "b", "c"):
        with tifffile.TiffFile(tmp_path / f"{name}.ome.tif") as file:
            xml = file.ome_metadata
        for part in ('PhysicalSizeZ="5.0"', 'TimeIncrement="0.25"', 'Name="b"', "m 7",
                     'PhysicalSizeX="0.5"'):  # fmt: skip
            assert part in xml
    with pytest.raises(SpecError, match=r"metadata\['dz'\]=-1"):
        imwrite(source, tmp_path / "d.ome.tif", metadata={"dz": -1})


def test_progress_is_told_in_every_format(tmp_path, source):
    for ext in (".tif", ".zarr", ".h5", ".npy"):
        shares, counts = [], []
        imwrite(
            source,
            tmp_path,
            ext,
            progress_callback=shares.append,
            progress=lambda done, total, counts=counts: counts.append((done, total)),
            show_progress=True,
        )
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert counts[-1] == (IMAGE.nbytes, IMAGE.nbytes)


def test_what_is_there_is_not_replaced_unless_asked(tmp_path, source):
    path = imwrite(source, tmp_path / "a.ome.tif", planes=1)
    before = path.read_bytes()
    with pytest.raises(TargetExistsError, match="exists"):
        imwrite(source, path)
    run("convert", source, path, code=1)
    assert path.read_bytes() == before
    imwrite(source, path, overwrite=True)
    np.testing.assert_array_equal(pixels(path), IMAGE)
    run("convert", source, path, "--overwrite", "--planes", "2", "--quiet")
    np.testing.assert_array_equal(pixels(path), by(z=[1]))


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"planes": 0}, RegionError, "planes=0 is out of range: planes are counted from 1"),
        ({"planes": 99}, RegionError, "Z=5"),
        ({"planes": []}, RegionError, "selects nothing"),
        ({"frames": [1, 9]}, RegionError, "timepoints=9"),
        ({"channels": 4}, RegionError, "C=3"),
        ({"num_frames": 9}, SpecError, "num_timepoints=9: the image has T=4"),
        ({"num_frames": 0}, SpecError, "num_timepoints=0"),
        ({"order": [0, 0, 1, 2, 3]}, SpecError, "each of the 5 planes once"),
        ({"planes": [1, 2], "order": [0, 1, 2]}, SpecError, "each of the 2 planes once"),
        ({"select": "z=9"}, RegionError, "Z index 9 is out of range: the image has Z=5"),
        ({"z": 1, "planes": 1}, SpecError, "z (from 0) and planes"),
        ({"z": 1, "select": "z=1"}, SpecError, "both say what to take of Z"),
        ({"frames": 1, "timepoints": 1}, SpecError, "two names of one thing"),
        ({"frames": 1, "num_frames": 1}, SpecError, "both say what to take of T"),
        ({"ext": ".xyz"}, SpecError, "ext='.xyz'"),
        ({"roi_mode": "both"}, SpecError, "choose one of concat_y, separate"),
        ({"roi": 2}, RegionError, "roi=2 is out of range"),
        ({"exists": "maybe"}, SpecError, "choose one of error, skip, replace"),
        ({"verify": "some"}, SpecError, "choose one of none, sample, full"),
        ({"levels": 0}, SpecError, "levels=0"),
        ({"levels": 2, "pyramid": False}, SpecError, "contradict"),
        ({"overwrite": True, "exists": "skip"}, SpecError, "contradict"),
        ({"memory": 10}, SpecError, "memory=10"),
        ({"target_chunk_mb": 0}, SpecError, "target_chunk_mb=0"),
        ({"dtype": "uint8"}, PixelTypeError, "does not fit uint8"),
        ({"resume": True, "overwrite": True}, SpecError, "resume="),
        ({"dim_order": "TQ"}, SpecError, "TQ"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(
    tmp_path, source, keywords, error, words
):
    src = IMAGE if "dim_order" in keywords else source
    with pytest.raises(error) as caught:
        convert(src, tmp_path / "a.ome.tif", **keywords)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_value_that_does_not_fit_is_named_with_its_place(tmp_path):
    image = np.zeros((2, 3, 40, 3000), np.uint16)  # T, Z, Y, X
    image[1, 2, 33, 2500] = 300
    with pytest.raises(PixelTypeError, match=r"300 at \(33, 2500, 2, 0, 1\)"):
        imwrite(image, tmp_path / "a.ome.tif", dtype="uint8")
    assert not list(tmp_path.iterdir())


def test_keywords_nobody_knows_are_errors(tmp_path, source):
    for function in (convert, imwrite):
        with pytest.raises(TypeError, match="colour"):
            function(source, tmp_path / "a.ome.tif", colour=1)
    with pytest.raises(TypeError, match="the array comes first"):
        imwrite(tmp_path / "a.tif", IMAGE)


def test_the_options_that_mbo_utilities_has_for_zarr(tmp_path):
    image = np.arange(600 * 700, dtype=np.uint16).reshape(600, 700)
    path = imwrite(
        image, tmp_path, ".zarr", pyramid=True, pyramid_max_layers=1, pyramid_method="nearest",
        compressor="none", sharded=False,
    )  # fmt: skip
    group = zarr.open(path, mode="r")
    assert group["1"].shape[-2:] == (300, 350)
    assert "2" not in group
    np.testing.assert_array_equal(group["1"][0, 0, 0] if group["1"].ndim == 5 else group["1"][:],
                                  image[::2, ::2])  # fmt: skip
    assert len(list(imwrite(image, tmp_path / "b", ".zarr").glob("[0-9]"))) == 1


@pytest.mark.parametrize("ending", [".ome.tif", ".ome.zarr"])
def test_levels_are_kept_as_they_are(tmp_path, ending):
    full = np.arange(2 * 300 * 420, dtype=np.uint32).reshape(2, 300, 420).astype("u2")
    small = np.full((2, 100, 140), 7, np.uint16)  # a third, and of other pixels
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        more = {"tile": (64, 64), "photometric": "minisblack"}
        file.write(full, subifds=1, metadata={"axes": "CYX"}, **more)
        file.write(small, subfiletype=1, **more)
    report = convert(tmp_path / "a.ome.tif", tmp_path / f"b{ending}", levels="keep", channels=[2])
    assert report.levels == 2
    if ending == ".ome.tif":
        with tifffile.TiffFile(tmp_path / f"b{ending}") as file:
            found = [level.asarray() for level in file.series[0].levels]
    else:
        group = zarr.open(tmp_path / f"b{ending}", mode="r")
        found = [group[str(n)][:] for n in range(2)]
    np.testing.assert_array_equal(found[0].squeeze(), full[1])
    np.testing.assert_array_equal(found[1].squeeze(), small[1])
    run("convert", tmp_path / "a.ome.tif", tmp_path / f"c{ending}", "--levels", "keep", "--quiet")
    with pytest.raises(SpecError, match="a part of Y is selected"):
        convert(tmp_path / "a.ome.tif", tmp_path / "d.ome.tif", levels="keep", select="y=:9")


def test_regions_are_joined_or_written_one_by_one(tmp_path):
    regions = [IMAGE[0, 0, 0] + n for n in range(3)]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        for pixels_ in regions:
            file.write(pixels_, metadata={"axes": "YX"})
    source = tmp_path / "a.ome.tif"
    imwrite(source, tmp_path / "joined.ome.tif", roi_mode="concat_y", roi=2)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "joined.ome.tif"), np.vstack(regions))
    run("convert", source, tmp_path / "j.ome.tif", "--roi-mode", "CONCAT_Y", "--quiet")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "j.ome.tif"), np.vstack(regions))
    imwrite(source, tmp_path / "out", ext=".tif", roi=0)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("out/*/*"))
    assert names == ["out/roi01/a.tif", "out/roi02/a.tif", "out/roi03/a.tif"]
    run("convert", source, tmp_path / "b.ome.tif", "--roi", "1,3", "--quiet")
    for number in (0, 2):
        path = tmp_path / f"b_roi{number + 1:02}.ome.tif"
        np.testing.assert_array_equal(tifffile.imread(path), regions[number])
    assert not (tmp_path / "b_roi02.ome.tif").exists()
    with tifffile.TiffWriter(tmp_path / "c.ome.tif") as file:
        file.write(IMAGE[0, 0, 0], metadata={"axes": "YX"})
        file.write(IMAGE[0, 0, 0, :9], metadata={"axes": "YX"})
        file.write(IMAGE[0, 0, 0, :, :9], metadata={"axes": "YX"})
    with pytest.raises(SpecError, match=r"image 2 .* cannot be joined along Y"):
        imwrite(tmp_path / "c.ome.tif", tmp_path / "x.ome.tif", roi_mode="concat_y")


def test_without_ome_metadata(tmp_path, source):
    convert(source, tmp_path / "a.tif", ome=False)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_imagej
        assert not file.is_ome
        np.testing.assert_array_equal(file.asarray(), IMAGE.transpose(0, 2, 1, 3, 4))
    run("convert", source, tmp_path / "b.zarr", "--no-ome", "--quiet")
    array = zarr.open(tmp_path / "b.zarr", mode="r")
    np.testing.assert_array_equal(array[:].reshape(IMAGE.shape), IMAGE)
    assert "ome" not in array.attrs


def test_shifts_of_planes_are_found_kept_and_applied_on_request(tmp_path):
    rng = np.random.default_rng(5)
    scene = rng.integers(0, 4000, (140, 150)).astype("u2")
    moves = [(0, 0), (3, -4), (1, 6), (-7, 2)]
    stack = np.stack([scene[20 + y : 116 + y, 20 + x : 120 + x] for y, x in moves])
    imwrite(stack, tmp_path / "a.ome.tif", dim_order="ZYX", register_z=True)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.ome.tif"), stack)
    # the planes of a selection keep theirs, counted from the first of them
    convert(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif", planes=[2, 3, 4])
    convert(tmp_path / "b.ome.tif", tmp_path / "c.ome.tif", apply_shifts=True)
    run("convert", tmp_path / "b.ome.tif", tmp_path / "d.ome.tif", "--apply-shifts", "--quiet")
    lying = [(y - moves[1][0], x - moves[1][1]) for y, x in moves[1:]]
    top, left = (max(0, -min(n)) for n in zip(*lying, strict=True))
    bottom, right = (max(0, *n) for n in zip(*lying, strict=True))
    expected = np.zeros((3, 96 + top + bottom, 100 + left + right), np.uint16)
    for plane, out, (y, x) in zip(stack[1:], expected, lying, strict=True):
        out[top + y : top + y + 96, left + x : left + x + 100] = plane
    for name in ("c", "d"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"{name}.ome.tif"), expected)
    for wrong in ("c", "d"):  # they have been applied
        with pytest.raises(SpecError, match="give register_z=True"):
            convert(tmp_path / f"{wrong}.ome.tif", tmp_path / "e.ome.tif", apply_shifts=True)
    words = ["--register-z", "--max-reg-xy", "2", "--max-frames", "1", "--chunk-frames", "1"]
    said, _ = run("convert", tmp_path / "a.ome.tif", tmp_path / "f.ome.tif", *words)
    assert "raise --max-reg-xy 2" in said
