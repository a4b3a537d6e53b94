"""Pattern: the examples of filepattern's documentation, Python's own fields, and clear errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bioio_tk.core.pattern import Pattern, has_fields, has_wildcards, natural, value
from bioio_tk.errors import SpecError

# from https://filepattern.readthedocs.io: pattern, name, values
DOCUMENTED = [
    ("img_r{r:ddd}_c{c:ddd}_{channel:c+}.tif", "img_r001_c001_DAPI.tif",
     {"r": 1, "c": 1, "channel": "DAPI"}),
    ("img_r{r:ddd}_c{c:ddd}_{channel:c+}.tif", "img_r002_c010_TXREAD.tif",
     {"r": 2, "c": 10, "channel": "TXREAD"}),
    ("img_r{r:ffff}_c{c:ffff}.tif", "img_r0.05_c1.15.tif", {"r": 0.05, "c": 1.15}),
    ("img_r{r:f+}_c{c:f+}.tif", "img_r1.05_c2.25.tif", {"r": 1.05, "c": 2.25}),
    ("img_r{r:d.dd}_c{c:d.dd}.tif", "img_r2.05_c3.35.tif", {"r": 2.05, "c": 3.35}),
    ("img_r{r:d.d+}.tif", "img_r2.0525.tif", {"r": 2.0525}),
    ("img_r{r:d+.ddd}.tif", "img_r12.125.tif", {"r": 12.125}),
    ("x0{x:d}_y01_wx0_wy0_c1.ome.tif", "x03_y01_wx0_wy0_c1.ome.tif", {"x": 3}),
    ("img_r{rrr}_c{cc}.tif", "img_r012_c03.tif", {"r": 12, "c": 3}),
    ("img_r{r+}.tif", "img_r12345.tif", {"r": 12345}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "values"), DOCUMENTED, ids=str)
def test_fields_mean_what_the_documentation_of_filepattern_says(text, name, values):
    assert Pattern(text).match(name) == values
    assert {type(v) for v in Pattern(text).match(name).values()} == {
        type(v) for v in values.values()
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("img_r{r:ddd}.tif", "img_r01.tif"),
        ("img_r{r:ddd}.tif", "img_r0001.tif"),
        ("img_r{r:d}.tif", "img_r10.tif"),
        ("img_{c:c+}.tif", "img_a1.tif"),
        ("img_{c:c+}.tif", "img_.tif"),
        ("img_{c}.tif", "img_a/b.tif"),
        ("img_{t:04d}.tif", "img_012.tif"),
        ("img_{t:d+}.tif", "img_1xtif"),  # a point is a point
        ("img_{t:d+}.tif", "xximg_1.tif"),
        ("img_{t:d+}.tif", "img_1.tiff"),
        ("a?.tif", "a.tif"),
        ("a*.tif", "ab/c.tif"),
    ],
)
def test_what_does_not_match(text, name):
    assert Pattern(text).match(name) is None


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("img_t{t:04d}_c{c}.tif", "img_t0012_cDAPI.tif", {"t": 12, "c": "DAPI"}),
        ("img_t{t:04d}_c{c}.tif", "img_t12345_c2.tif", {"t": 12345, "c": 2}),
        ("img_t{t:03}.tif", "img_t007.tif", {"t": 7}),
        ("sub{z:d}/img_{t:d+}.tif", "sub3/img_12.tif", {"z": 3, "t": 12}),
        ("p{p:d+}.*.ome.tif", "p12_whatever.ome.tif", {"p": 12}),
        ("*_t{t:d+}.t?f", "any_t2.tif", {"t": 2}),
        ("a{{b}}_{t:d}.tif", "a{b}_1.tif", {"t": 1}),
        ("a(1)+[x]_{t:d}.tif", "a(1)+[x]_1.tif", {"t": 1}),
        ("{name}.tif", "a.b.tif", {"name": "a.b"}),
        ("plain.tif", "plain.tif", {}),
    ],
)
def test_python_fields_folders_wildcards_and_odd_signs(text, name, values):
    assert Pattern(text).match(name) == values


@pytest.mark.parametrize(
    ("text", "values", "name"),
    [
        ("i_{t:ddd}_{c:c+}.tif", {"t": 7, "c": "GFP", "more": 1}, "i_007_GFP.tif"),
        ("i_{t:04d}.tif", {"t": 7}, "i_0007.tif"),
        ("i_{t:04d}.tif", {"t": 123456}, "i_123456.tif"),
        ("i_{t:d+}.tif", {"t": 12}, "i_12.tif"),
        ("{{i}}_{x:f+}.tif", {"x": 1.5}, "{i}_1.5.tif"),
        ("i_{c}.tif", {"c": "a b"}, "i_a b.tif"),
    ],
)
def test_values_make_the_name_back(text, values, name):
    assert Pattern(text).format(values) == name


@pytest.mark.parametrize(
    ("text", "values", "says"),
    [
        ("i_{t:dd}.tif", {"t": 100}, r"t=100 does not fit its field"),
        ("i_{t:dd}.tif", {}, "needs a value for 't'"),
        ("i_{c:c+}.tif", {"c": "a1"}, "c='a1' does not fit"),
        ("i_{c}.tif", {"c": "a/b"}, "c='a/b' does not fit"),
        ("i_{t:d+}.tif", {"t": -1}, "t=-1 does not fit"),
        ("i_{t:d+}_*.tif", {"t": 1}, "has a wildcard"),
    ],
)
def test_a_name_that_cannot_be_made(text, values, says):
    with pytest.raises(SpecError, match=says):
        Pattern(text).format(values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("i_{t:d}_{t:d}.tif", "the field 't' twice"),
        ("i_{t:x}.tif", r"\{t:x\} .* is no field"),
        ("i_{t:}.tif", "is no field"),
        ("i_{}.tif", "is no field"),
        ("i_{1t:d}.tif", "is no field"),
        ("i_{t:+d}.tif", "is no field"),
        ("i_{t:d++}.tif", "is no field"),
        ("i_{t:>4d}.tif", "is no field"),
        ("i_{t:d.tif", "'{' without its other half"),
        ("i_t:d}.tif", "'}' without its other half"),
    ],
)
def test_a_malformed_pattern_says_what_is_wrong_and_what_a_field_is(text, says):
    with pytest.raises(SpecError, match=says):
        Pattern(text)


@given(st.integers(0, 10**6), st.integers(0, 999), st.text("abcXYZ", min_size=1, max_size=5))
def test_formatting_and_matching_are_inverse(t, z, c):
    pattern = Pattern("a[{t:05d}].{z:ddd}{c:c+}/x.tif")
    values = {"t": t, "z": z, "c": c}
    assert pattern.match(pattern.format(values)) == values


def test_the_glob_finds_what_matches(tmp_path, monkeypatch):
    import glob

    monkeypatch.chdir(tmp_path)
    names = ["a[1]_001_x.tif", "a[1]_002_y.tif", "b_001_x.tif"]
    for name in names:
        (tmp_path / name).touch()
    pattern = Pattern("a[1]_{t:ddd}_{c}.tif")
    assert sorted(glob.glob(pattern.glob)) == names[:2]  # noqa: PTH207 - as find_files does


def test_numbers_sort_by_value_also_inside_of_names():
    names = ["i10.tif", "i9.tif", "i1_b.tif", "I1_a.tif", "10/x", "9/y", "a", "é2", "é10"]
    assert sorted(names, key=natural) == [
        "9/y", "10/x", "a", "I1_a.tif", "i1_b.tif", "i9.tif", "i10.tif", "é2", "é10",
    ]  # fmt: skip
    assert sorted(["b", 10, 2, 2.5, "a"], key=natural) == [2, 2.5, 10, "a", "b"]


def test_loosened_numbers_may_have_any_length():
    assert Pattern("i_{t:d}_{z:ddd}_{c:c+}.tif").loosened() == Pattern("i_{t:d+}_{z:d+}_{c:c+}.tif")
    assert Pattern("i_{t:d+}.tif").loosened() == Pattern("i_{t:d+}.tif")


def test_what_a_path_has():
    assert has_fields("a{t}.tif")
    assert not has_fields("a{t.tif")
    assert has_wildcards("a[12].tif")
    assert not has_wildcards("a.tif")
    assert value("1e3") == "1e3"
    assert value("²") == "²"  # a digit to Python, not a number
