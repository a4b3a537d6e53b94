"""doctor: says what is there, and exits with 1 only where something installed is broken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from click.testing import CliRunner

from bioio_tk.cli.doctor import command
from bioio_tk.jobs import doctor as job

ENV = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def run(*words, code=0):
    done = CliRunner().invoke(command, list(words))
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


@pytest.fixture
def few_codecs(monkeypatch):
    """Those of one codec a format: what is tried takes its time."""
    monkeypatch.setattr(job, "CODECS", {"OME-TIFF": ("deflate",), "OME-Zarr": ("zstd",)})


def test_what_is_installed_works(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = json.loads(run("--json"))
    assert found["ok"], found["problems"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    versions = {p["name"]: p["version"] for p in found["packages"]}
    assert versions["numpy"] == np.__version__
    for name, number in versions.items():
        assert number == importlib.metadata.version(name)
    assert found["codecs"]["OME-TIFF"]["zstd"] == ""
    assert set(found["codecs"]["OME-Zarr"].values()) == {""}
    assert found["temp"]["path"] == str(tmp_path)
    assert abs(found["temp"]["free"] - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert found["cpus"] >= 1
    assert list(tmp_path.iterdir()) == []


def test_a_line_for_each(few_codecs):
    out = run()
    for word in ("bioio-tk", "Python", "numpy", "[dask]", "CPUs", "memory", "OME-Zarr", "zstd"):
        assert word in out
    assert out.splitlines()[-1] == "All that is installed works."


def test_what_is_missing_is_no_error(few_codecs, monkeypatch):
    monkeypatch.setattr(job, "EXTRAS", {"hdf5": {"h5py": "no_such_module"}})
    out = run()
    assert "note: not installed: h5py: pip install 'bioio-tk[hdf5]'" in out


def test_what_is_installed_and_broken_is_one(few_codecs, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('no such symbol')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(job, "EXTRAS", {"hdf5": {"h5py": "broken_module"}})
    out = run(code=1)
    assert "BROKEN: h5py" in out
    assert "no such symbol" in out
    assert "pip install --force-reinstall h5py" in out


def test_a_codec_that_does_not_work_is_one(monkeypatch):
    monkeypatch.setattr(job, "CODECS", {"OME-TIFF": ("deflate", "no-such-codec")})
    out = run(code=1)
    assert "OME-TIFF with compression no-such-codec does not work" in out


def test_a_package_that_is_needed_and_missing(few_codecs, monkeypatch):
    monkeypatch.setattr(job, "PACKAGES", {"isal": "no_such_module"})
    assert "isal is not installed: pip install bioio-tk" in run(code=1)


def test_a_temporary_folder_that_cannot_be_written(tmp_path, few_codecs, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/proc/nowhere")
    out = run(code=1)
    assert "the temporary folder cannot be used" in out


def test_tight_limits_are_noted(few_codecs):
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200));"
        "from bioio_tk.jobs.doctor import doctor; print('\\n'.join(doctor().notes))"
    )
    if os.name == "nt":
        pytest.skip("there are no such limits")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "only 200 files may be open at a time" in done.stdout
