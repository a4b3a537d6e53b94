"""``bioio-tk java``: what its commands print and return."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from bioio_tk.backends import _java_home
from bioio_tk.cli import main as cli
from bioio_tk.errors import BackendError, BackendMissingError
from bioio_tk.jobs import java
from bioio_tk.jobs.java import InstallReport, WarmReport


def run(*words, code=0):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.main(["java", *words])
    assert end.value.code == code, (end.value.code, out.getvalue(), err.getvalue())
    return out.getvalue(), err.getvalue()


@pytest.fixture
def jobs(monkeypatch):
    """The jobs, of which nothing is done; what they were called with."""
    calls = []
    answers = {
        "install": InstallReport("/c/b.jar", "7.3.1", True, "/c/b.jar"),
        "warm": WarmReport("/c/a.aot", 33_900_000, True),
        "installed": False,
    }

    def job(name):
        def call(*args, **options):
            calls.append((name, args, options))
            if isinstance(answers[name], Exception):
                raise answers[name]
            return answers[name]

        return call

    for name in answers:
        monkeypatch.setattr(java, name, job(name))
    return answers, calls


def test_help_names_the_commands_and_starts_nothing():
    out, _ = run("--help")
    for name in ("install", "warm", "doctor"):
        assert f"  {name} " in out


def test_install(jobs):
    out, err = run("install")
    assert out.splitlines() == [
        "Bio-Formats 7.3.1 installed: /c/b.jar",
        "Start-up archive made: /c/a.aot (33.9 MB)",
    ]
    assert "Fetching" in err
    names = [call for call in jobs[1] if call[0] != "installed"]
    assert names == [("install", (None,), {"force": False}), ("warm", (), {"force": False})]


def test_install_passes_its_options_on(jobs):
    _, err = run("install", "--jar", "x.whl", "--force")
    assert err == ""
    assert jobs[1] == [("install", ("x.whl",), {"force": True}), ("warm", (), {"force": True})]


def test_install_again(jobs):
    jobs[0]["installed"] = True
    jobs[0]["install"] = InstallReport("/c/b.jar", "7.3.1", False, "/other.jar")
    jobs[0]["warm"] = WarmReport("/c/a.aot", 1, False)
    out, err = run("install")
    assert err == ""
    assert out.count("was there already") == 2
    assert "names another, which is used: /other.jar" in out


def test_a_failed_archive_does_not_fail_the_install_but_fails_warm(jobs):
    jobs[0]["warm"] = WarmReport("", 0, False, "no room")
    out, _ = run("install")
    assert "No start-up archive, so Java starts more slowly: no room" in out
    out, _ = run("warm", code=1)
    assert "no room" in out


def test_a_jar_without_a_java_says_what_is_still_missing(jobs):
    jobs[0]["warm"] = BackendMissingError("no Java: pip install x")
    out, _ = run("install")
    assert "Still missing: no Java: pip install x" in out
    _, err = run("warm", code=1)
    assert err == "Error: no Java: pip install x\n"


def test_a_failed_install_is_one_line(jobs):
    jobs[0]["install"] = BackendError("pip cannot")
    out, err = run("install", "--jar", "x", code=1)
    assert (out, err) == ("", "Error: pip cannot\n")


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("BIOIO_TK_JVM", str(tmp_path / "gone"))
    monkeypatch.setenv("BIOIO_TK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_java_home, "_system_folders", list)
    return str(tmp_path / "gone")


def test_doctor_says_what_is_missing_and_what_mends_it(wrong):
    out, _ = run("doctor", code=1)
    assert f"MISSING: BIOIO_TK_JVM names {wrong!r}, where there is no Java" in out
    assert "To mend it: " in out.splitlines()[-1]
    assert sys.version.split()[0] in out
    found = json.loads(run("doctor", "--json", code=1)[0])
    assert not found["ok"]
    assert found["java"][0] == {
        "origin": "BIOIO_TK_JVM",
        "path": wrong,
        "version": "",
        "taken": False,
        "problem": f"BIOIO_TK_JVM names {wrong!r}, where there is no Java",
    }


def test_doctor_where_all_is_well(tmp_path, monkeypatch):
    missing = _java_home.missing()
    if missing is not None:
        pytest.skip(missing)
    monkeypatch.setenv("BIOIO_TK_CACHE", str(tmp_path / "cache"))
    out, _ = run("doctor")
    assert out.splitlines()[-1] == "Bio-Formats can be used."
    assert out.count(", taken: ") == 2
    assert "bioio-tk java warm" in out
