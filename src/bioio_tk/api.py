"""What can be done with whole files: convert, describe, finish, recover, make a small picture."""

from __future__ import annotations

from bioio_tk.jobs.convert import ConvertReport, convert, convert_series
from bioio_tk.jobs.describe import FileInfo, describe
from bioio_tk.jobs.finish import finish
from bioio_tk.jobs.recover import RecoverReport, recover
from bioio_tk.jobs.start import start
from bioio_tk.jobs.thumbnail import thumbnail

__all__ = [
    "ConvertReport",
    "FileInfo",
    "RecoverReport",
    "convert",
    "convert_series",
    "describe",
    "finish",
    "recover",
    "start",
    "thumbnail",
]
