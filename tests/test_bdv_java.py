"""The Java side of BigDataViewer, tried on files of h5py: what it reads, and what it refuses.

These tests say which way of storing a type is right, and that the checks in `bdv_java` can fail.
The last ones are of what `BdvWriter` leaves.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from bdv_java import (
    NATIVE,
    NotForJavaError,
    bio_formats,
    by_bio_formats,
    integer,
    loaded,
    number,
    spimdata,
    words,
)

from bioio_tk import AcquisitionSettings, BioWriter, create_stream

h5py = pytest.importorskip("h5py")

SHAPE, BLOCK = (3, 10, 13), (2, 4, 8)
FACTORS = ((1, 1, 1), (1, 2, 2))


def noise(dtype, shape=SHAPE, seed=0):
    """Return pixels over the whole range of a type."""
    dtype, random = np.dtype(dtype), np.random.default_rng(seed)
    if dtype.kind == "f":
        return random.normal(0, 1e6, shape).astype(dtype)
    info = np.iinfo(dtype)
    image = random.integers(info.min, info.max, shape, dtype, endpoint=True)
    image.flat[0], image.flat[-1] = info.min, info.max
    return image


def tables(file, setup, name=None, factors=((1, 1, 1),), block=BLOCK):
    group = file.require_group(f"s{setup:02d}")
    group["resolutions"] = np.array(factors, "f8")[:, ::-1]
    group["subdivisions"] = np.array([block] * len(factors), "i4")[:, ::-1]
    if name is not None:
        group.attrs["dataType"] = name


def stored(path, views, name=None, times=(0,), **how):
    """Write stacks, each under its (time point, setup), and the XML; return the file."""
    how = {"chunks": BLOCK, "maxshape": (None,) * 3} | how
    setups = sorted({setup for _, setup in views})
    with h5py.File(path, "w", locking=False) as file:
        for setup in setups:
            tables(file, setup, name)
        for time in times:
            file.require_group(f"t{time:05d}")
        for (time, setup), stack in views.items():
            file.create_dataset(f"t{time:05d}/s{setup:02d}/0/cells", data=stack, **how)
    missing = [v for v in product(times, setups) if v not in views]
    path.with_suffix(".xml").write_text(xml(path.name, setups, times, missing))
    return path


def xml(name, setups=(0,), times=(0,), missing=()):
    """Return an XML of tiles that lie beside each other, as Fiji would have it."""
    view_setups = "".join(
        f"<ViewSetup><id>{s}</id><name>setup {s}</name><size>13 10 3</size><voxelSize>"
        f"<unit>µm</unit><size>0.5 0.5 2.0</size></voxelSize><attributes><illumination>0"
        f"</illumination><channel>0</channel><tile>{s}</tile><angle>0</angle></attributes>"
        f"</ViewSetup>"
        for s in setups
    )
    values = {"tile": setups, **dict.fromkeys(("illumination", "channel", "angle"), (0,))}
    view_setups += "".join(
        f'<Attributes name="{kind}">'
        + "".join(
            f"<{kind.title()}><id>{n}</id><name>{kind} {n}</name></{kind.title()}>" for n in ids
        )
        + "</Attributes>"
        for kind, ids in values.items()
    )
    registrations = "".join(
        f'<ViewRegistration timepoint="{t}" setup="{s}"><ViewTransform type="affine"><Name>grid'
        f"</Name><affine>1 0 0 {s * 10} 0 1 0 0 0 0 1 0</affine></ViewTransform><ViewTransform "
        f'type="affine"><Name>calibration</Name><affine>1.0 0 0 0 0 1 0 0 0 0 4e0 0</affine>'
        f"</ViewTransform></ViewRegistration>"
        for t, s in product(times, setups)
        if (t, s) not in missing
    )
    absent = "".join(f'<MissingView timepoint="{t}" setup="{s}"/>' for t, s in missing)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<SpimData version="0.2"><BasePath type="relative">'
        '.</BasePath><SequenceDescription><ImageLoader format="bdv.hdf5"><hdf5 type="relative">'
        f"{name}</hdf5></ImageLoader><ViewSetups>{view_setups}</ViewSetups><Timepoints "
        f'type="range"><first>{times[0]}</first><last>{times[-1]}</last></Timepoints>'
        f"<MissingViews>{absent}</MissingViews></SequenceDescription><ViewRegistrations>"
        f"{registrations}</ViewRegistrations></SpimData>"
    )


# ------------------------------------------------------------------ how a type must be stored


@pytest.mark.parametrize("kind", ["fixed", "variable"])
@pytest.mark.parametrize("name", NATIVE)
def test_every_type_with_its_name(java, tmp_path, name, kind):
    stack = noise(NATIVE[name][1])
    label = np.bytes_(name) if kind == "fixed" else name
    path = stored(tmp_path / "x.h5", {(0, 0): stack}, label, compression="gzip", shuffle=True)
    with loaded(java, path) as loader:
        assert loader.type(0) == name
        got = loader.pixels((0, 0))
        assert got.dtype == stack.dtype
        np.testing.assert_array_equal(got, stack)


def test_16_bits_without_a_name_are_unsigned(java, tmp_path):
    stack = noise("u2")
    path = stored(tmp_path / "x.h5", {(0, 0): stack.view("i2")})
    with loaded(java, path) as loader:
        assert loader.type(0) is None
        np.testing.assert_array_equal(loader.pixels((0, 0)), stack)
    with bio_formats(java, path) as reader:
        np.testing.assert_array_equal(by_bio_formats(reader, "u2"), stack)


@pytest.mark.parametrize(
    ("stack", "name"),
    [
        (noise("u2"), None),
        (noise("u2").view("i2"), "uint16"),
        (noise("f4"), None),
        (noise("u4"), "int32"),
    ],
    ids=["unsigned without a name", "bits under the wrong name", "float without", "wrong sign"],
)
def test_ways_that_do_not_read(java, tmp_path, stack, name):
    path = stored(tmp_path / "x.h5", {(0, 0): stack}, name)
    with (
        loaded(java, path) as loader,
        pytest.raises(java("hdf.hdf5lib.exceptions.HDF5LibraryException"), match="convert"),
    ):
        loader.pixels((0, 0))


def test_signed_pixels_without_a_name_come_out_wrong(java, tmp_path):
    path = stored(tmp_path / "x.h5", {(0, 0): np.full(SHAPE, -1, "i2")})
    with loaded(java, path) as loader:
        assert (loader.pixels((0, 0)) == 65535).all()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "gzip", "compression_opts": 9},
        {"compression": "gzip", "shuffle": True},
        {"fletcher32": True},
        {"scaleoffset": 0},
        {"chunks": None, "maxshape": None},
        {"chunks": (8, 16, 32)},
        {"chunks": (1, 1, 1)},
        {"maxshape": SHAPE},
    ],
    ids=str,
)
def test_ways_of_storage_that_read(java, tmp_path, how):
    stack = noise("u2")
    path = stored(tmp_path / "x.h5", {(0, 0): stack.view("i2")}, **how)
    with loaded(java, path) as loader:
        assert loader.size((0, 0)) == SHAPE[::-1]
        block = how.get("chunks", BLOCK)
        assert loader.chunk((0, 0)) == (block and block[::-1])
        np.testing.assert_array_equal(loader.pixels((0, 0)), stack)


def test_tables_are_along_x_y_z(java, tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", locking=False) as file:
        tables(file, 7, factors=((1, 1, 1), (1, 2, 4)))
    with loaded(java, path) as loader:
        assert loader.factors(7) == [(1.0, 1.0, 1.0), (4.0, 2.0, 1.0)]
        assert loader.blocks(7) == [(8, 4, 2), (8, 4, 2)]
        assert not loader.exists((0, 7))


@pytest.mark.parametrize("link", ["cells", "view"])
def test_partitions(java, tmp_path, link):
    stacks = {view: noise("u2", seed=n) for n, view in enumerate(product((0, 1), (0, 1)))}
    for (time, setup), stack in stacks.items():
        views = {(time, setup): stack.view("i2")}
        stored(tmp_path / f"x-{time:02d}-{setup:02d}.h5", views)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", locking=False) as file:
        for setup in (0, 1):
            tables(file, setup)
        for time, setup in stacks:
            place = f"t{time:05d}/s{setup:02d}" + ("/0/cells" if link == "cells" else "")
            file[place] = h5py.ExternalLink(f"x-{time:02d}-{setup:02d}.h5", place)
    path.with_suffix(".xml").write_text(xml("x.h5", (0, 1), (0, 1)))
    with loaded(java, path) as loader:
        for view, stack in stacks.items():
            np.testing.assert_array_equal(loader.pixels(view), stack)
    with bio_formats(java, path) as reader:
        for (time, setup), stack in stacks.items():
            np.testing.assert_array_equal(by_bio_formats(reader, "u2", setup, t=time), stack)


# ------------------------------------------------------------------ Bio-Formats


@pytest.mark.parametrize("suffix", [".h5", ".xml"])
def test_bio_formats_knows_such_files_by_themselves(java, tmp_path, suffix):
    path = stored(tmp_path / "x.h5", {(0, 0): noise("u2").view("i2")})
    reader = java("loci.formats.ImageReader")()
    assert str(reader.getFormat(str(path.with_suffix(suffix)))) == "BDV"


def test_a_time_point_without_views_needs_its_group(java, tmp_path):
    views = {(time, 0): noise("u2", seed=time).view("i2") for time in (0, 2)}
    path = stored(tmp_path / "x.h5", views, times=(0, 1, 2))
    with bio_formats(java, path) as reader:
        assert int(reader.getSizeT()) == 3
        np.testing.assert_array_equal(by_bio_formats(reader, "i2", t=2), views[2, 0])
    with h5py.File(path, "r+") as file:
        del file["t00001"]
    with pytest.raises(Exception, match="t00001"), bio_formats(java, path):
        pass


def test_a_file_that_is_locked_cannot_be_read(java, tmp_path):
    """So a writer that lets Fiji look on must not lock its file in this way."""
    fcntl = pytest.importorskip("fcntl")
    path = stored(tmp_path / "x.h5", {(0, 0): noise("u2").view("i2")})
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with loaded(java, path) as loader:
            loader.pixels((0, 0))
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Exception, match="unable to lock"), loaded(java, path):
            pass


# ------------------------------------------------------------------ the XML


def test_an_xml_that_is_right(tmp_path):
    path = tmp_path / "x.xml"
    path.write_text(xml("x.h5", (0, 3), (4, 5), [(5, 0)]))
    found = spimdata(path)
    assert found.file == tmp_path / "x.h5"
    assert found.views == {(4, 0), (4, 3), (5, 3)}
    assert found.missing == {(5, 0)}
    assert found.sizes == {0: (13, 10, 3), 3: (13, 10, 3)}
    assert found.voxels[3] == ("µm", (0.5, 0.5, 2.0))
    assert found.attributes[3] == {"illumination": 0, "channel": 0, "tile": 3, "angle": 0}
    assert found.labels["tile"] == {0: "tile 0", 3: "tile 3"}
    assert [name for name, _ in found.transforms[4, 3]] == ["grid", "calibration"]
    np.testing.assert_array_equal(found.models[4, 3] @ (1, 1, 1, 1), (31, 1, 4))


WRONG = {
    "white space in front": ("<size>13 ", "<size> 13 "),
    "voxels over two lines": ("0.5 0.5 2.0", "0.5\n0.5 2.0"),
    "a number that is none": ("1.0 0 0 0", "nan 0 0 0"),
    "too few numbers": ("1.0 0 0 0", "0 0 0"),
    "an id with white space": ("<tile>0</tile>", "<tile> 0</tile>"),
    "an id that is not listed": ("<tile>0</tile>", "<tile>9</tile>"),
    "an id twice": ("<Tile><id>3", "<Tile><id>0"),
    "a setup twice": ("<ViewSetup><id>3", "<ViewSetup><id>0"),
    "setups counted down": ("<ViewSetup><id>0", "<ViewSetup><id>8"),
    "attributes before the id": ("<id>0</id><name>setup 0", "<name>setup 0"),
    "a view that is nowhere": ('<MissingView timepoint="5" setup="0"/>', ""),
    "a view twice": ('<ViewRegistration timepoint="4" setup="3"',
                     '<ViewRegistration timepoint="4" setup="0"'),
    "a path of no type": ('<hdf5 type="relative"', "<hdf5"),
    "a padded path": ("x.h5<", "x.h5 <"),
    "time points of no type": ('<Timepoints type="range"', "<Timepoints"),
    "a time point that is no number": ("<last>5", "<last>5.0"),
    "another loader": ("bdv.hdf5", "bdv.other"),
    "no transforms": ('type="affine"', 'type="generic"'),
    "a comment in front": ("<SpimData", f"<!-- {'x' * 90} --><SpimData"),
    "no sizes": ("<size>13 10 3</size>", ""),
    "two axes": ("13 10 3", "13 10"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_an_xml_with_a_fault(tmp_path, wrong):
    right = xml("x.h5", (0, 3), (4, 5), [(5, 0)])
    assert WRONG[wrong][0] in right
    path = tmp_path / "x.xml"
    path.write_text(right.replace(*WRONG[wrong], 1))
    with pytest.raises(NotForJavaError):
        spimdata(path)


@pytest.mark.parametrize(
    ("kind", "inside", "expected"),
    [
        ("list", "<Timepoint><id>7</id></Timepoint><Timepoint><id>2</id></Timepoint>", (7, 2)),
        ("pattern", "<integerpattern>0-10:4, 15,17-18</integerpattern>", (0, 4, 8, 15, 17, 18)),
    ],
)
def test_time_points_of_other_kinds(tmp_path, kind, inside, expected):
    path = tmp_path / "x.xml"
    element = f'<Timepoints type="{kind}">{inside}</Timepoints>'
    text = re.sub("<Timepoints.*</Timepoints>", element, xml("x.h5"))
    text = re.sub(
        "<ViewRegistration .*</ViewRegistration>",
        "".join(f'<ViewRegistration timepoint="{t}" setup="0"/>' for t in expected),
        text,
    )
    path.write_text(text)
    assert spimdata(path).times == expected


def test_numbers_and_words_are_those_of_java(java):
    split = java("java.lang.String")
    for line in ("1 2", " 1 2", "1 2 ", "1\n\t2", "", "1"):
        assert words(line) == [str(word) for word in split(line).split("\\s+")] or line == ""
    for kind, read, java_reads in (
        ("int", integer, java("java.lang.Integer").parseInt),
        ("double", number, java("java.lang.Double").parseDouble),
    ):
        for word in ("1", "-1", "+1", "1.5", "1e-7", "1.2345678901234567e+300", ".5", "2147483648",
                     "nan", "inf", "", "1,5", "0x1"):  # fmt: skip
            try:
                want = java_reads(word)
            except java("java.lang.NumberFormatException"):
                with pytest.raises(NotForJavaError):
                    read(word)
            else:
                assert read(word) == want, (kind, word)


# ------------------------------------------------------------------ real files


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).resolve().parents[2] / "shared" / "data").glob("**/bdv/**/*.h5")),
    ids=lambda path: path.stem,
)
def test_files_of_others(java, path):
    """BDV's own calls and h5py agree on the files of Fiji and pybdv."""
    with h5py.File(path, locking=False) as file, loaded(java, path) as loader:
        seen = 0
        for time, setup in product(range(3), range(4)):
            for level in range(len(loader.factors(setup)) if f"s{setup:02d}" in file else 0):
                name = f"t{time:05d}/s{setup:02d}/{level}/cells"
                assert loader.exists((time, setup), level) == (name in file)
                if name in file and file[name].size < 1 << 22:
                    want = file[name][()]
                    want = want.view("u2") if loader.type(setup) is None else want
                    np.testing.assert_array_equal(loader.pixels((time, setup), level), want)
                    seen += 1
    assert seen


# ------------------------------------------------------------------ what BdvWriter leaves


@pytest.fixture
def writer():
    return pytest.importorskip("bioio_tk.bdv").BdvWriter


def test_each_setup_has_its_attributes(tmp_path, writer):
    counts = {"nilluminations": 2, "nchannels": 3, "ntiles": 2, "nangles": 2}
    kinds = {"illumination": 2, "channel": 3, "tile": 2, "angle": 2}
    labels = {kind: [f"{kind} <{n}> & µ" for n in range(count)] for kind, count in kinds.items()}
    written = [(0, 1, 0, 1), (1, 0, 1, 0), (1, 2, 1, 1)]  # the others are never acquired
    with writer(tmp_path / "x.h5", **counts) as w:
        for kind, names in labels.items():
            w.set_attribute_labels(kind, names)
        for at in written:
            w.append_view(noise("u2"), **dict(zip(kinds, at, strict=True)))
    found = spimdata(tmp_path / "x.xml")
    setups = {((i * 3 + c) * 2 + t) * 2 + a: (i, c, t, a) for i, c, t, a in written}
    assert found.attributes == {s: dict(zip(kinds, at, strict=True)) for s, at in setups.items()}
    assert found.views == {(0, setup) for setup in setups}
    for kind, names in labels.items():
        for place in {at[list(kinds).index(kind)] for at in written}:
            assert found.labels[kind][place] == names[place]


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [
        ((0.4, 0.5, 2.25), "µm", [(0.4, "µm"), (0.5, "µm"), (2.25, "µm")]),
        ((162.5, 162.5, 1000.0), "nm", [(162.5, "nm"), (162.5, "nm"), (1000.0, "nm")]),
        ((1, 1, 3), "px", [(1.0, "pixel"), (1.0, "pixel"), (3.0, "pixel")]),
    ],
)
def test_bio_formats_shows_the_size_of_a_voxel(java, tmp_path, writer, size, unit, expected):
    path = tmp_path / "x.h5"
    with writer(path) as w:
        w.append_view(noise("u2"), voxel_size_xyz=size, voxel_units=unit)
    with bio_formats(java, path.with_suffix(".xml")) as reader:
        store = reader.getMetadataStore()
        lengths = [getattr(store, f"getPixelsPhysicalSize{axis}")(0) for axis in "XYZ"]
        got = [(float(n.value().doubleValue()), str(n.unit().getSymbol())) for n in lengths]
    assert got == expected


def test_numbers_reach_java_to_the_last_bit(java, tmp_path, writer):
    parse = java("java.lang.Double").parseDouble
    random = np.random.default_rng(5)
    matrices = [random.normal(0, 10.0**exponent, (3, 4)) for exponent in (-300, -7, 0, 9, 300)]
    with writer(tmp_path / "x.h5", subsamp=((1, 1, 1),)) as w:
        for time, matrix in enumerate(matrices):  # each time point has its own
            w.append_view(noise("u1"), time=time, m_affine=matrix, name_affine="drift",
                          voxel_size_xyz=(0.1, 0.1, 1 / 3))  # fmt: skip
    found = spimdata(tmp_path / "x.xml")
    assert [float(parse(repr(n))) for n in found.voxels[0][1]] == [0.1, 0.1, 1 / 3]
    lines = re.findall("<affine>([^<]+)</affine>", (tmp_path / "x.xml").read_text())
    for time, matrix in enumerate(matrices):
        words_of_it = lines[2 * time].split(" ")
        assert [float(parse(word)) for word in words_of_it] == matrix.ravel().tolist()
        np.testing.assert_array_equal(found.transforms[time, 0][0][1], matrix)
        np.testing.assert_array_equal(found.transforms[time, 0][1][1][2, 2], (1 / 3) / 0.1)


@pytest.mark.parametrize("parts", [0, 1])
def test_java_reads_each_view_as_soon_as_it_is_whole(java, tmp_path, writer, parts):
    path = tmp_path / "x.h5"
    stacks = {(t, s): noise("u2", seed=10 * t + s) for t, s in product((0, 1, 3), (0, 1))}
    with writer(path, ntiles=2, times_per_file=parts) as w:
        done = []
        for view, stack in stacks.items():
            w.append_view(stack, time=view[0], tile=view[1])
            done.append(view)
            with loaded(java, path) as loader:
                for each in done:
                    np.testing.assert_array_equal(loader.pixels(each), stacks[each])
            assert spimdata(path.with_suffix(".xml")).views == set(done)
            if view[1] == 1:
                with bio_formats(java, path) as reader:
                    got = by_bio_formats(reader, "u2", 1, t=view[0])
                    np.testing.assert_array_equal(got, stack)
    assert spimdata(path.with_suffix(".xml")).missing == {(2, 0), (2, 1)}


@pytest.mark.parametrize("name", ["a b.h5", "Größe_µm.h5", "x-00-00.h5", "100%.h5", "#1.h5"])
@pytest.mark.parametrize("parts", [0, 1])
def test_names_of_files(java, tmp_path, writer, name, parts):
    path = tmp_path / "an experiment" / name
    path.parent.mkdir()
    with writer(path, times_per_file=parts) as w:
        for time in (0, 1):
            w.append_view(noise("u2", seed=time), time=time)
    assert spimdata(path.with_suffix(".xml")).file == path
    with loaded(java, path) as loader, bio_formats(java, path) as reader:
        for time in (0, 1):
            np.testing.assert_array_equal(loader.pixels((time, 0)), noise("u2", seed=time))
            got = by_bio_formats(reader, "u2", t=time)
            np.testing.assert_array_equal(got, noise("u2", seed=time))


def test_setups_of_other_sizes_types_and_levels(java, tmp_path, writer):
    path = tmp_path / "x.h5"
    stacks = [noise("u2", (4, 20, 16)), noise("f4", (1, 7, 300)), noise("i1", (9, 1, 1))]
    with writer(path, ntiles=3, blockdim=((4, 8, 8),)) as w:
        for tile, stack in enumerate(stacks):
            w.append_view(stack, tile=tile)
    found = spimdata(path.with_suffix(".xml"))
    with loaded(java, path) as loader:
        for tile, stack in enumerate(stacks):
            assert found.sizes[tile] == stack.shape[::-1] == loader.size((0, tile))
            np.testing.assert_array_equal(loader.pixels((0, tile)), stack)
        assert len(loader.factors(1)) > len(loader.factors(0))


def test_a_pyramid_without_the_full_resolution(java, tmp_path, writer):
    path, stack = tmp_path / "x.h5", noise("u2", (4, 8, 8)) // 2
    with writer(path, subsamp=((2, 2, 2), (2, 4, 4)), blockdim=((2, 4, 4),)) as w:
        w.append_view(stack)
    assert spimdata(path.with_suffix(".xml")).sizes[0] == (8, 8, 4)
    blocks = stack.reshape(2, 2, 4, 2, 4, 2).astype("u4").sum((1, 3, 5))
    with loaded(java, path) as loader:
        assert loader.factors(0) == [(2.0, 2.0, 2.0), (4.0, 4.0, 2.0)]
        np.testing.assert_array_equal(loader.pixels((0, 0)), (blocks + 4) // 8)
        blocks = blocks.reshape(2, 2, 2, 2, 2).sum((2, 4))
        np.testing.assert_array_equal(loader.pixels((0, 0), 1), (blocks + 16) // 32)


def test_more_than_100_setups(java, tmp_path, writer):
    path = tmp_path / "x.h5"
    with writer(path, ntiles=104, subsamp=((1, 1, 1),)) as w:
        for tile in range(104):
            w.append_view(np.full((1, 4, 4), tile, "u1"), tile=tile)
    assert len(spimdata(path.with_suffix(".xml")).views) == 104
    with loaded(java, path) as loader, bio_formats(java, path) as reader:
        assert int(reader.getSeriesCount()) == 104
        for tile in (0, 9, 10, 99, 100, 103):
            assert (loader.pixels((0, tile)) == tile).all()
            assert (by_bio_formats(reader, "u1", tile) == tile).all()


def means(stack, factor):
    """Return the mean of each block of an unsigned stack, half up."""
    shape = [-(-n // f) for n, f in zip(stack.shape, factor, strict=True)]
    small = np.zeros(shape, stack.dtype)
    for at in np.ndindex(*shape):
        part = stack[tuple(slice(i * f, (i + 1) * f) for i, f in zip(at, factor, strict=True))]
        small[at] = (2 * int(part.sum(dtype="u8")) + part.size) // (2 * part.size)
    return small


def test_what_an_editor_leaves(java, tmp_path, writer):
    editor = pytest.importorskip("bioio_tk.bdv").BdvEditor
    path, stacks = tmp_path / "x.h5", [noise("u2", seed=n) for n in range(4)]
    with writer(path, ntiles=2, subsamp=FACTORS, blockdim=(BLOCK,)) as w:
        for number, stack in enumerate(stacks):
            w.append_view(stack, time=number // 2, tile=number % 2, voxel_size_xyz=(1, 1, 2))
    drift = np.eye(4)[:3] + np.reshape(range(12), (3, 4)) / 7
    with editor(path) as e:
        e.crop_view(((3, 12), None, (1, None)), tile=1)
        e.append_affine(drift, "drift", time=1, tile=1)
    found = spimdata(path.with_suffix(".xml"))
    assert found.sizes == {0: SHAPE[::-1], 1: (9, 10, 2)}
    moved = np.array([[1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 2, 2.0]])  # in voxels that are cubes
    np.testing.assert_allclose(found.models[0, 1], moved, rtol=1e-15)
    whole = np.vstack([moved, (0, 0, 0, 1)])
    np.testing.assert_allclose(found.models[1, 1], drift @ whole, rtol=1e-15)
    np.testing.assert_array_equal(found.models[1, 0], np.diag([1, 1, 2, 1])[:3])
    assert found.transforms[1, 1][0][0] == "drift"
    with loaded(java, path) as loader, bio_formats(java, path) as reader:
        for number, stack in enumerate(stacks):
            time, tile = divmod(number, 2)
            kept = stack[1:, :, 3:12] if tile else stack
            for level, factor in enumerate(FACTORS):
                got = loader.pixels((time, tile), level)
                np.testing.assert_array_equal(got, means(kept, factor))
                got = by_bio_formats(reader, "u2", tile, t=time, level=level)
                np.testing.assert_array_equal(got, means(kept, factor))


def test_views_that_were_written_again(java, tmp_path, writer):
    path = tmp_path / "x.h5"
    with writer(path, subsamp=FACTORS, blockdim=(BLOCK,)) as w:
        for number in range(5):
            stack = noise("u2", seed=number)
            w.append_view(stack, time=number % 2)
            with loaded(java, path) as loader:
                for level, factor in enumerate(FACTORS):
                    got = loader.pixels((number % 2, 0), level)
                    np.testing.assert_array_equal(got, means(stack, factor))


def test_files_that_others_go_on_with(java, tmp_path, writer):
    """HDF5 itself changes what was written here, and Java reads both."""
    path, stacks = tmp_path / "x.h5", {(t, 0): noise("u2", seed=t) for t in range(40)}
    with writer(path, subsamp=((1, 1, 1),), blockdim=(BLOCK,)) as w:
        for (time, _), stack in stacks.items():
            w.append_view(stack, time=time)
    with h5py.File(path, "r+") as file:
        for time in range(0, 40, 3):
            del file[f"t{time:05d}/s00"], stacks[time, 0]
        for time, _ in stacks:
            data = file[f"t{time:05d}/s00/0/cells"]
            data[0, 0, 0] = time
            data.resize((4, 10, 13))
            small = data[::2, ::2, ::2]
            file.create_dataset(f"t{time:05d}/s00/1/cells", data=small, chunks=(1, 2, 3))
        for time in range(40, 80):
            stacks[time, 0] = noise("u2", seed=time)
            file[f"t{time:05d}/s00/0/cells"] = stacks[time, 0].view("i2")  # in one piece
        for setup in range(1, 40):
            tables(file, setup, "uint8")
    with loaded(java, path) as loader:
        for time in range(80):
            assert loader.exists((time, 0)) == ((time, 0) in stacks)
        for (time, _), stack in stacks.items():
            want = stack.copy()
            if time < 40:
                want[0, 0, 0] = time
                want = np.concatenate([want, np.zeros((1, 10, 13), "u2")])
                got = loader.pixels((time, 0), 1)
                np.testing.assert_array_equal(got, want[::2, ::2, ::2])
            np.testing.assert_array_equal(loader.pixels((time, 0)), want)
        assert [loader.type(setup) for setup in (0, 1, 39)] == [None, "uint8", "uint8"]


def test_lzf_with_java_in_the_process(java, tmp_path, writer):
    """Java leaves little room on the stack of the main thread, and LZF takes half a megabyte.

    Fiji cannot read it: the writer says so, and it is true.
    """
    code = """
        import sys
        import warnings

        import numpy as np

        import bioio_tk
        from bioio_tk.bdv import BdvWriter
        from bioio_tk.errors import BioIOWarning

        bioio_tk.start()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with BdvWriter(sys.argv[1], compression="lzf", max_workers=int(sys.argv[2])) as w:
                w.append_view(np.arange(2 * 300 * 400, dtype="u2").reshape(2, 300, 400) // 7)
        assert {w.category for w in said} == {BioIOWarning}, said
        assert "Fiji" in str(said[0].message), said[0].message
    """
    for workers in ("1", "2"):
        path = tmp_path / f"{workers}.h5"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(path), workers],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        with h5py.File(path, locking=False) as file:
            data = file["t00000/s00/0/cells"]
            assert data.compression == "lzf"
            want = np.arange(2 * 300 * 400, dtype="u2").reshape(2, 300, 400) // 7
            np.testing.assert_array_equal(data[()].view("u2"), want)
        error = java("hdf.hdf5lib.exceptions.HDF5LibraryException")
        with loaded(java, path) as loader, pytest.raises(error, match="plugin"):
            loader.pixels((0, 0))


# ------------------------------------------------------------------ and other ways to write them


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_an_image_written_as_views(java, tmp_path, dtype):
    path, image = tmp_path / "x.xml", noise(dtype, (21, 34, 3, 2, 2)) // 2
    said = {"physical_size_x": (0.5, "µm"), "physical_size_y": (0.5, "µm"),
            "physical_size_z": (2.0, "µm"), "channel_names": ["DAPI", "GFP <2>"]}  # fmt: skip
    with BioWriter(path, image=image, pyramid=2, **said):
        pass
    found = spimdata(path)
    assert found.views == set(product((0, 1), (0, 1)))
    assert found.sizes[0] == (34, 21, 3)
    assert found.voxels[1] == ("µm", (0.5, 0.5, 2.0))
    assert found.labels["channel"] == {0: "DAPI", 1: "GFP <2>"}
    np.testing.assert_array_equal(found.models[1, 1], np.diag([1, 1, 4, 1])[:3])
    with loaded(java, found.file) as loader, bio_formats(java, path) as reader:
        factors = [tuple(int(n) for n in f[::-1]) for f in loader.factors(0)]
        assert factors == [(1, 1, 1), (1, 2, 2)]
        for (time, channel), (level, factor) in product(found.views, enumerate(factors)):
            want = means(image[:, :, :, channel, time].transpose(2, 0, 1), factor)
            np.testing.assert_array_equal(loader.pixels((time, channel), level), want)
            got = by_bio_formats(reader, dtype, 0, channel, time, level)
            np.testing.assert_array_equal(got, want)


def test_frames_of_a_camera_as_views(java, tmp_path):
    path = tmp_path / "x.xml"
    dimensions = [
        {"name": "t", "count": 3, "type": "time"},
        {"name": "p", "type": "position", "coords": ["A", "B"]},
        {"name": "z", "count": 4, "type": "space", "scale": 2, "unit": "um"},
        {"name": "y", "count": 9, "type": "space", "scale": 0.5, "unit": "um"},
        {"name": "x", "count": 13, "type": "space", "scale": 0.5, "unit": "um"},
    ]
    frames = noise("u2", (3, 2, 4, 9, 13))
    with create_stream(
        AcquisitionSettings.model_validate(
            {"root_path": str(path), "dimensions": dimensions, "dtype": "uint16"}
        )
    ) as stream:
        for frame in frames.reshape(-1, 9, 13)[:-3]:  # stopped in the middle of the last stack
            stream.append(frame)
    found = spimdata(path)
    assert found.sizes == {0: (13, 9, 4), 1: (13, 9, 4)}
    frames[2, 1, 1:] = 0
    with loaded(java, found.file) as loader, bio_formats(java, path) as reader:
        for time, setup in found.views:
            np.testing.assert_array_equal(loader.pixels((time, setup)), frames[time, setup])
            got = by_bio_formats(reader, "u2", setup, t=time)
            np.testing.assert_array_equal(got, frames[time, setup])
    assert found.views >= set(product((0, 1), (0, 1))) | {(2, 0)}
