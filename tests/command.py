"""The command line, run in this process."""

import io
import sys

import pytest

from bioio_tk.cli import main as cli


def run(*words, code=0):
    """Run the command in this process; return what it printed to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    old = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
    finally:
        sys.stdout, sys.stderr = old
    assert end.value.code == code, (end.value.code, out.getvalue(), err.getvalue())
    return out.getvalue(), err.getvalue()
