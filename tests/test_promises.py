"""What the conversion jobs promise, each in every way it can be asked for."""

from __future__ import annotations

import inspect
import json
import os
import sys
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import click
import numpy as np
import pytest
import tifffile
import zarr
from servers import WebServer
from test_cli import run

from bioio_tk import imwrite
from bioio_tk.api import (
    batch,
    convert,
    convert_series,
    get_metadata,
    set_metadata,
    split,
    verify,
)
from bioio_tk.cli import convert as convert_room
from bioio_tk.cli import metadata as metadata_room
from bioio_tk.cli.doctor import command as doctor_command
from bioio_tk.cli.main import as_typed
from bioio_tk.cli.verify import command as verify_command
from bioio_tk.cli.wipp import command as wipp_command
from bioio_tk.errors import SpecError, TargetExistsError, UnsupportedError
from bioio_tk.jobs import cluster
from bioio_tk.jobs.batch import run as batch_run
from bioio_tk.jobs.batch.job import Job
from bioio_tk.jobs.doctor import doctor
from bioio_tk.jobs.wipp import wipp

PIXELS = np.random.default_rng(5).integers(0, 250, (2, 3, 4, 40, 50), np.uint8)  # T C Z Y X


@pytest.fixture
def cells(tmp_path):
    path = tmp_path / "cells.ome.tif"
    tifffile.imwrite(path, PIXELS, metadata={"axes": "TCZYX"})
    return path


@pytest.fixture
def two(tmp_path):
    """A file of two images of different sizes."""
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(PIXELS[0, 0], metadata={"axes": "ZYX"})
        writer.write(PIXELS[1, 1, :3, :30], metadata={"axes": "ZYX"})
    return path


def pixels(store):
    return zarr.open_group(store, mode="r")["0"][:]


def names(folder):
    return [path.name for path in folder.iterdir()]


def sums(planes):
    t, c, z = planes.shape[:3]
    return {
        f"t{i} c{j} z{k}": f"crc32:{zlib.crc32(planes[i, j, k].tobytes()):08x}"
        for i in range(t)
        for j in range(c)
        for k in range(z)
    }


# ------------------------------------------------------------------ verified, and its checksums


@pytest.mark.parametrize("name", ["w.ome.tif", "w.ome.zarr"])
def test_pixels_of_another_type_are_verified(cells, tmp_path, name):
    report = convert(cells, tmp_path / name, dtype="uint16", verify="full")
    assert report.verified == f"equal: all {PIXELS.size} pixels"
    assert report.checksums == sums(PIXELS.astype("<u2"))


def test_jobs_that_convert_pixels_are_verified_and_counted_alike(cells, tmp_path):
    target = tmp_path / "w.ome.zarr"
    kept = {"dtype": "uint16", "chunks": 16, "shards": False}
    for job in ("2/2", "1/2"):
        convert(cells, target, shard_job=job, **kept)
    report = convert(cells, target, finalize=True, verify="full", **kept)
    assert report.verified.startswith("equal")
    assert report.checksums == sums(PIXELS.astype("<u2"))
    assert verify(target, checksums=report.checksums).equal
    np.testing.assert_array_equal(pixels(target), PIXELS)


def test_each_image_of_several_is_verified(two, tmp_path):
    reports = convert_series(two, tmp_path / "o.ome.zarr", verify="full", dtype="uint16")
    assert [r.verified for r in reports] == ["equal: all 8000 pixels", "equal: all 4500 pixels"]


# ------------------------------------------------------------------ zeros are given, too


def test_a_zero_on_the_command_line_is_given(cells, tmp_path):
    for name in ("i_c0_t0.tif", "i_c0_t1.tif", "i_c1_t1.tif"):
        tifffile.imwrite(tmp_path / name, PIXELS[0, 0, 0])
    run("convert", tmp_path / "i_c{c:d}_t{t:d}.tif", tmp_path / "p.ome.tif", "--fill", 0)
    found = tifffile.imread(tmp_path / "p.ome.tif")
    assert found.shape == (2, 2, 40, 50)
    assert not found[0, 1].any()
    np.testing.assert_array_equal(found[1, 1], PIXELS[0, 0, 0])

    flat = tmp_path / "flat.tif"
    tifffile.imwrite(flat, np.zeros((512, 512), "u1"))
    run("convert", flat, tmp_path / "l.ome.tif", "--compression", "deflate",
        "--compression-level", 0, "--no-pyramid")  # fmt: skip
    with tifffile.TiffFile(tmp_path / "l.ome.tif") as tif:
        assert '"compression_level": 0' in tif.ome_metadata

    for option in ("--num-zplanes", "--num-frames", "--target-chunk-mb"):
        _, said = run("convert", cells, tmp_path / "n.ome.tif", option, 0, code=1)
        assert "0" in said
        assert not (tmp_path / "n.ome.tif").exists()


# ------------------------------------------------------------------ nothing is dropped


@pytest.mark.parametrize(
    "option",
    [
        {"roi": 1},
        {"roi_mode": "separate"},
        {"finalize": True},
        {"ext": ".tif"},
        {"output_name": "x"},
        {"output_suffix": "x"},
        {"register_z": True},
        {"apply_shifts": True},
        {"resume": True},
        {"dry_run": True},
        {"shard_job": "1/2"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_what_does_not_go_with_all_images_is_refused(two, tmp_path, option):
    with pytest.raises((SpecError, UnsupportedError), match=next(iter(option))):
        convert_series(two, tmp_path / "o.ome.zarr", **option)
    assert names(tmp_path) == ["two.ome.tif"]


def test_one_image_and_regions_contradict_each_other(two, tmp_path):
    _, said = run("convert", two, tmp_path / "o.ome.tif", "--series", 1, "--roi", 1, code=1)
    assert "--series" in said
    assert names(tmp_path) == ["two.ome.tif"]


@pytest.mark.parametrize("option", ["dry_run", "resume", "roi"])
def test_what_does_not_go_with_finalize_is_refused(cells, tmp_path, option):
    target = tmp_path / "o.ome.zarr"
    convert(cells, target, shard_job="1/1")
    with pytest.raises(SpecError, match=option):
        convert(cells, target, finalize=True, **{option: True})
    assert not target.exists()
    convert(cells, target, finalize=True)
    np.testing.assert_array_equal(pixels(target), PIXELS)


def test_jobs_find_a_file_that_is_named_by_what_it_holds(cells, tmp_path):
    for more in ({"shard_job": "1/1"}, {"finalize": True}):
        report = convert(cells, tmp_path / "out", ext=".zarr", planes=2, **more)
    assert report.shape == (40, 50, 1, 3, 2)
    np.testing.assert_array_equal(pixels(report.target), PIXELS[:, :, 1:2])


def test_splitting_takes_threads_and_a_dry_run(cells, tmp_path):
    planned = split(cells, tmp_path / "out", split="c", dry_run=True)
    assert [report.status for report in planned] == ["planned"] * 3
    assert not (tmp_path / "out").exists()
    made = split(cells, tmp_path / "out", split="c", workers=2)
    for c, report in enumerate(made):
        np.testing.assert_array_equal(tifffile.imread(report.target), PIXELS[:, c])
    with pytest.raises(TypeError, match=r"split\(\) has no keyword 'wrong'"):
        split(cells, tmp_path / "out2", split="c", wrong=1)


@pytest.mark.parametrize(
    ("place", "more"),
    [
        ("new", {"ext": ".tif"}),
        ("new", {"ext": ".bin", "z": 0, "c": 0}),
        ("new/deep", {"ext": ".zarr"}),
    ],
)
def test_a_dry_run_makes_no_folder(cells, tmp_path, place, more):
    report = convert(cells, tmp_path / place, dry_run=True, **more)
    assert report.status == "planned"
    assert report.plan["estimated_bytes"] > 0
    assert imwrite(cells, tmp_path / "new" / "a.ome.tif", dry_run=True).name == "a.ome.tif"
    assert names(tmp_path) == ["cells.ome.tif"]
    assert Path(convert(cells, tmp_path / place, **more).target).exists()


def test_a_dry_run_of_what_is_to_be_gone_on_with(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((20, 128, 128), "u1"))

    class Enough(Exception):
        pass

    def stop(done, total):
        if done > total // 2:
            raise Enough

    options = {"dims": "ZYX", "resume": True, "tile_size": 64, "memory": 1 << 20, "workers": 1}
    target = tmp_path / "o.ome.zarr"
    with pytest.raises(Enough):
        convert(tmp_path / "a.npy", target, progress=stop, **options)
    before = sorted(tmp_path.rglob("*"))
    assert len(names(tmp_path)) == 3  # with what is unfinished, and its record
    assert convert(tmp_path / "a.npy", target, dry_run=True, **options).status == "planned"
    assert sorted(tmp_path.rglob("*")) == before
    assert convert(tmp_path / "a.npy", target, **options).status == "done"


def test_bad_options_make_no_folder(cells, tmp_path):
    with pytest.raises(IndexError):
        imwrite(cells, tmp_path / "new" / "a.ome.tif", planes=9)
    with pytest.raises(SpecError):
        convert(cells, tmp_path / "new", ext=".tif", planes=1, z=0)
    assert names(tmp_path) == ["cells.ome.tif"]


@pytest.mark.parametrize("face", [convert, batch])
@pytest.mark.parametrize("memory", ["2GB", 5, True, 1e9])
def test_memory_is_a_number_of_bytes(cells, tmp_path, face, memory):
    with pytest.raises(SpecError, match="memory="):
        face(cells, tmp_path / "out", memory=memory)
    assert names(tmp_path) == ["cells.ome.tif"]


def test_a_job_of_a_cluster_has_one_thread_and_its_memory(monkeypatch):
    seen = []

    def map_jobs(client, func, jobs):
        seen.extend(job for job, _ in jobs)
        return iter(())

    monkeypatch.setattr(cluster, "map_jobs", map_jobs)
    jobs = [Job(0, "a.tif", "a.ome.zarr"), Job(1, "b.tif", "b.ome.zarr", {"memory": 9 << 20})]
    assert list(batch_run.on_cluster("tcp://x", jobs, 0, 8 << 20)) == []
    assert [job.options for job in seen] == [
        {"workers": 1, "memory": 8 << 20},
        {"workers": 1, "memory": 9 << 20},
    ]


# ------------------------------------------------------------------ reports


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_reports_are_json(cells, two, tmp_path):
    odd = {"gain": float("nan"), "span": (1, float("inf")), "from": Path("x"), "n": np.arange(2)}
    for more in ({"dry_run": True}, {}):
        report = convert(cells, tmp_path / "o.ome.tif", metadata=odd, **more)
        assert strict(report.to_json())["shape"] == [40, 50, 4, 3, 2]
    with tifffile.TiffFile(tmp_path / "o.ome.tif") as tif:
        assert '<M K="span">[1, "inf"]</M><M K="from">x</M><M K="n">[0, 1]</M>' in tif.ome_metadata
    report = convert(two, tmp_path / "r.ome.tif", roi=0)
    assert len(strict(report.to_json())["parts"]) == 2
    assert strict(batch(cells, tmp_path / "out", metadata=odd).to_json())["done"] == 1


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names are text there")
def test_a_name_that_is_no_text_stands_in_the_reports(cells, tmp_path):
    odd = cells.rename(tmp_path / os.fsdecode(b"odd\xff.ome.tif"))
    report = convert(odd, tmp_path / "o.ome.tif")
    assert json.loads(report.to_json().encode())["source"] == str(odd)
    assert json.loads(verify(odd, report.target).to_json().encode())["a"] == str(odd)
    (entry,) = batch(odd, tmp_path / "out").entries
    assert entry.status == "done"
    assert json.loads((tmp_path / "out" / "report.jsonl").read_bytes())["status"] == "done"


def test_a_report_of_regions_is_of_all_of_them(two, tmp_path):
    told = []
    target = tmp_path / "r.ome.tif"
    report = convert(two, target, roi=0, progress=lambda *n: told.append(n), verify="full")
    assert report.notes == ()
    assert [part.notes for part in report.parts] == [(), ()]
    assert (report.status, report.pixel_bytes) == ("done", 8000 + 4500)
    assert report.verified == "equal: all 8000 pixels; equal: all 4500 pixels"
    assert [done for done, total in told if done == total] == [8000 + 4500]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    (tmp_path / "r_roi02.ome.tif").unlink()
    assert convert(two, target, roi=0, exists="skip").status == "done"
    assert convert(two, target, roi=0, exists="skip").status == "skipped"


def test_all_images_are_told_of_as_one_task(two, tmp_path, capsys):
    shares = []
    convert_series(two, tmp_path / "o.ome.zarr", progress_callback=shares.append)
    convert_series(two, tmp_path / "o{series}.ome.tif", progress_callback=shares.append)
    assert shares.count(1.0) == 2


def test_checksums_are_found_in_the_reports_of_several_images(two, tmp_path):
    store, file = tmp_path / "o.ome.zarr", tmp_path / "reports.json"
    said, _ = run("convert", two, store, "--series", "all", "--json")
    file.write_text(said)
    assert len(said.splitlines()) == 2
    for number in (0, 1):
        run("verify", store, "--checksums", file, "--series", number)
    said, _ = run("convert", two, tmp_path / "r.ome.tif", "--roi", 0, "--json")
    file.write_text(said)
    run("verify", tmp_path / "r_roi02.ome.tif", "--checksums", file)
    with pytest.raises(SpecError, match="of several images, and 0 of them"):
        verify(two, checksums=file, series=0)
    file.write_text("[1]")
    with pytest.raises(SpecError):
        verify(two, checksums=file, series=0)


# ------------------------------------------------------------------ left alone only if the same


def test_all_images_in_one_store_are_left_alone(two, tmp_path):
    target = tmp_path / "o.ome.zarr"
    made = convert_series(two, target, exists="skip")
    before = {p: p.stat().st_mtime_ns for p in target.rglob("*")}
    again = convert_series(two, target, exists="skip")
    assert [r.status for r in (*made, *again)] == ["done", "done", "skipped", "skipped"]
    assert [r.group for r in again] == ["0", "1"]
    said, _ = run("convert", two, target, "--series", "all", "--exists", "skip")
    assert said.count("skipped") == 2
    for change in ({"tile_size": 32}, {"select": "z=0:2"}):
        with pytest.raises(TargetExistsError, match="other"):
            convert_series(two, target, exists="skip", **change)
    with tifffile.TiffWriter(two, ome=True) as writer:
        for n in range(3):
            writer.write(PIXELS[0, n], metadata={"axes": "ZYX"})
    with pytest.raises(TargetExistsError):
        convert_series(two, target, exists="skip")
    assert {p: p.stat().st_mtime_ns for p in target.rglob("*")} == before


def test_a_group_is_added_or_left_alone(cells, tmp_path):
    target = tmp_path / "o.ome.zarr"

    def add(group, **more):
        return convert(cells, target, group=group, exists="skip", **more).status

    assert [add(group) for group in ("0", "1", "0", "1")] == ["done", "done", "skipped", "skipped"]
    with pytest.raises(TargetExistsError, match="other selection"):
        add("1", z=0)
    np.testing.assert_array_equal(zarr.open_group(target, mode="r")["1/0"][:], PIXELS)


def test_a_chunk_with_another_date_is_another_source(cells, tmp_path):
    source, target = tmp_path / "a.ome.zarr", tmp_path / "o.ome.tif"
    convert(cells, source, compression="none")
    convert(source, target)
    assert convert(source, target, exists="skip").status == "skipped"
    chunk = next(p for p in (source / "0").rglob("*") if p.is_file() and p.stat().st_size >= 2000)
    was = chunk.stat()
    chunk.write_bytes(bytes(was.st_size))
    os.utime(chunk, ns=(was.st_atime_ns, was.st_mtime_ns - 10**12))  # as a copy that keeps dates
    with pytest.raises(TargetExistsError, match="has changed"):
        convert(source, target, exists="skip")


# ------------------------------------------------------------------ what is written into the file


def test_no_secret_of_an_address_is_written_down(cells, tmp_path):
    with WebServer(tmp_path) as web:
        for number, url in enumerate(
            (
                f"{web.url}/cells.ome.tif?X-Amz-Signature=hidden",
                f"{web.url}/cells.ome.tif".replace("://", "://me:hidden@"),
            )
        ):
            target = tmp_path / f"o{number}.ome.tif"
            report = convert(url, target)
            assert "hidden" not in report.to_json()
            assert report.source == f"{web.url}/cells.ome.tif"
            with tifffile.TiffFile(target) as tif:
                assert "hidden" not in tif.ome_metadata
                assert '<M K="source">cells.ome.tif</M>' in tif.ome_metadata


NS = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def test_regions_of_interest_and_stage_follow_to_a_smaller_resolution(tmp_path):
    document = f"""<OME xmlns="{NS[1:-1]}"><Image ID="Image:0"><Pixels ID="Pixels:0"
        DimensionOrder="XYZCT" Type="uint8" SizeX="512" SizeY="512" SizeZ="2" SizeC="1" SizeT="1"
        PhysicalSizeX="0.5" PhysicalSizeY="0.5"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>
        <Plane TheZ="1" TheC="0" TheT="0" PositionX="100" PositionXUnit="µm" PositionY="7"
        PositionYUnit="reference frame" PositionZ="3" PositionZUnit="µm"/></Pixels>
        <ROIRef ID="ROI:0"/></Image><ROI ID="ROI:0"><Union><Rectangle ID="Shape:0" X="100"
        Y="120" Width="40" Height="60"/><Polygon ID="Shape:1" Points="100,120 140,180 8,16"/>
        </Union></ROI></OME>"""
    image = np.zeros((2, 512, 512), "u1")
    source = tmp_path / "a.ome.tif"
    convert(image, source, dims="ZYX", metadata=document, levels=2, tile_size=128)

    def read(**options):
        target = tmp_path / "o.ome.tif"
        convert(source, target, exists="replace", **options)
        with tifffile.TiffFile(target) as tif:
            root = ET.fromstring(tif.ome_metadata)
        box = next(root.iter(f"{NS}Rectangle"))
        corners = [float(box.get(n)) for n in ("X", "Y", "Width", "Height")]
        points = [float(n) for n in next(root.iter(f"{NS}Polygon")).get("Points").replace(
            ",", " ").split()]  # fmt: skip
        plane = next(root.iter(f"{NS}Plane"))
        stage = [float(plane.get(f"Position{axis}")) for axis in "XYZ"]
        return corners, points, stage

    assert read() == ([100, 120, 40, 60], [100, 120, 140, 180, 8, 16], [100, 7, 3])
    assert read(level=1) == ([50, 60, 20, 30], [50, 60, 70, 90, 4, 8], [100, 7, 3])
    # 20 pixels of 1 µm, and in the frame of the stage nobody knows how far
    assert read(level=1, x=slice(20, 200)) == (
        [30, 60, 20, 30], [30, 60, 50, 90, -16, 8], [120, 7, 3]
    )  # fmt: skip
    assert read(x=slice(20, 200), y=slice(0, 512, 2)) == (
        [80, 60, 40, 30], [80, 60, 120, 90, -12, 8], [110, 7, 3]
    )  # fmt: skip


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("pass exists='replace'", "use --exists 'replace'"),
        ("order=[0, 0] must", "--order [0, 0] must"),
        ("say which with series=, a number", "say which with --series, a number"),
        ("timepoints= and frames= are two", "--timepoints and --frames are two"),
        ("with resume=True (--resume) it", "with --resume it"),
        ("client= (--cluster) writes", "--cluster writes"),
        ("retries=-1: give", "--retries -1: give"),
        ("'plates/series=1/a.tif' is", "'plates/series=1/a.tif' is"),
        ("t=0, c=1", "t=0, c=1"),
        ("ome=False", "--no-ome"),
    ],
)
def test_keywords_are_options_in_messages(text, typed):
    assert as_typed(text) == typed


def test_messages_about_one_of_many_speak_of_options(cells, tmp_path):
    out = tmp_path / "out"
    batch(cells, out)
    _, said = run("batch", cells, out, "--exists", "skip", "--tile-size", 32, code=1)
    assert "--exists 'replace'" in said
    assert "exists=" not in said
    (tmp_path / "in").mkdir()
    cells.rename(tmp_path / "in" / "cells.ome.tif")
    wipp(tmp_path / "in", tmp_path / "planes")
    _, said = run("wipp", "--inpDir", tmp_path / "in", "--outDir", tmp_path / "planes",
                  "--exists", "error", code=1)  # fmt: skip
    assert "--exists 'skip'" in said
    assert "exists=" not in said.partition("Error:")[2]


def test_ctrl_c_says_how_to_go_on(cells, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        exc = KeyboardInterrupt()
        exc.add_note("what is done is kept in 'b.partial': with resume=True (--resume) it goes on")
        raise exc

    target = tmp_path / "b.ome.tif"
    monkeypatch.setattr(convert_room, "_convert", interrupted)
    _, said = run("convert", cells, target, "--resume", code=130)
    assert said == (
        f"Interrupted: {str(target)!r} is as it was before; what is done is kept in 'b.partial': "
        "with --resume it goes on\n"
    )


def options_of(command):
    return {p.name: p for p in command.params if isinstance(p, click.Option)}


def keywords_of(function):
    found = inspect.signature(function).parameters.values()
    return {p.name for p in found if p.kind == p.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("command", "function", "in_python", "printed"),
    [
        (verify_command, verify, {"progress"}, {"quiet", "as_json"}),
        (metadata_room.get, get_metadata, set(), {"as_json"}),
        (metadata_room.set_, set_metadata, set(), {"as_json"}),
        (doctor_command, doctor, set(), {"as_json"}),
        (wipp_command, wipp, set(), {"inp_dir", "out_dir"}),
    ],
)
def test_options_are_the_keywords(command, function, in_python, printed):
    assert set(options_of(command)) - printed == keywords_of(function) - in_python
    for name, option in options_of(command).items():
        if command is not wipp_command and name != "as_json":
            assert f"--{name.replace('_', '-')}" in option.opts
