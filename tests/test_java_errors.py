"""What Java throws arrives as an error of ours, or of Python, that says what to do."""

from __future__ import annotations

import errno

import pytest

from bioio_tk.backends._java_errors import translated
from bioio_tk.errors import (
    BioIOError,
    DamagedFileError,
    FormatError,
    OutOfMemoryError,
    UnknownFormatError,
    UnsupportedError,
)

WHERE = "/data/cells.czi"
FORMATS = "loci.formats."
CASES = [
    (FORMATS + "UnknownFormatException", "Unknown file format: x", UnknownFormatError, "no format"),
    (FORMATS + "FormatException", "Invalid thing", FormatError, "Invalid thing"),
    (FORMATS + "FormatException", "Unsupported data type: 7", UnsupportedError, "data type: 7"),
    (FORMATS + "FormatException", "Sorry, compressed data is not supported.", UnsupportedError, ""),
    (FORMATS + "FormatException", "IDS file not found.", FileNotFoundError, "together"),
    (FORMATS + "FormatException", "Could not find .vsi file.", FileNotFoundError, "vsi"),
    (FORMATS + "FormatException", "Header block not found", FormatError, "Header"),
    ("java.io.EOFException", "Attempting to read beyond end", DamagedFileError, "cut off"),
    ("java.io.IOException", "Bad magic", DamagedFileError, "Bad magic"),
    ("java.io.IOException", "Input/output error", OSError, "Input/output"),
    ("java.lang.NegativeArraySizeException", "-4", DamagedFileError, "-4"),
    ("java.lang.StackOverflowError", None, DamagedFileError, "StackOverflowError"),
    ("java.lang.OutOfMemoryError", "Java heap space", OutOfMemoryError, "heap_mb"),
    ("java.lang.NoClassDefFoundError", "com/x/Y", UnsupportedError, "com/x/Y"),
    ("loci.common.services.DependencyException", "no jxr", UnsupportedError, "no jxr"),
    (
        "java.io.FileNotFoundException",
        "/data/cells.dat (No such file or directory)",
        FileNotFoundError,
        "/data/cells.dat",
    ),
    ("java.io.FileNotFoundException", "/a (Permission denied)", PermissionError, "denied"),
    ("java.io.FileNotFoundException", "/a (Too many open files)", OSError, "Too many"),
]


def thrown(java, name, text, cause=None):
    kind = java(name)
    made = kind(text) if text is not None else kind()
    if cause is not None:
        made.initCause(cause)
    with pytest.raises(Exception) as caught, translated(WHERE):
        raise made
    assert caught.value.__cause__ is made
    return caught.value


@pytest.mark.parametrize(("name", "text", "kind", "says"), CASES)
def test_each_has_its_class_and_says_it_in_one_line(java, name, text, kind, says):
    error = thrown(java, name, text)
    assert type(error) is kind
    assert says in str(error)
    assert "cells.czi" in str(error)
    assert "\n" not in str(error)


def test_slips_of_java_itself_are_damage(java):
    import jpype

    tools, array = java("loci.common.DataTools"), jpype.JByte[:]
    for bytes_, at, says in (
        (jpype.JObject(None, array), 0, "Null"),
        (jpype.JByte[3], -1, "Index"),
    ):
        with pytest.raises(DamagedFileError, match=says) as caught, translated(WHERE):
            tools.bytesToInt(bytes_, at, 4, True)
        assert isinstance(caught.value.__cause__, jpype.JException)


def test_system_errors_have_their_number(java):
    error = thrown(java, "java.io.FileNotFoundException", "/a (Too many open files)")
    assert error.errno == errno.EMFILE


def test_what_is_behind_it_counts(java):
    full = java("java.lang.OutOfMemoryError")("Java heap space")
    assert type(thrown(java, "java.lang.RuntimeException", "x", full)) is OutOfMemoryError
    unknown = java(FORMATS + "UnknownFormatException")("what is it")
    assert type(thrown(java, "java.lang.RuntimeException", "x", unknown)) is UnknownFormatError
    end = java("java.io.EOFException")("beyond the end")
    error = thrown(java, FORMATS + "FormatException", "Cannot parse", end)
    assert "Cannot parse" in str(error)
    assert "beyond the end" in str(error)


def test_a_long_reason_is_one_line(java):
    error = thrown(java, "java.io.IOException", "line\n" * 500)
    assert "\n" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TypeError, BioIOError, OSError, MemoryError])
def test_what_is_not_javas_passes(java, kind):
    error = kind("mine")
    with pytest.raises(kind) as caught, translated(WHERE):
        raise error
    assert caught.value is error
