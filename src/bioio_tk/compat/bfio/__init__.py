"""Runs code written for bfio 2.1 to 2.5: ``import bioio_tk.compat.bfio as bfio``.

A thin layer of bfio's names and habits over `bioio_tk.BioReader` and `bioio_tk.BioWriter`. New code
is better off with those; ``docs/migrate/bfio.md`` shows how to move.
"""

from __future__ import annotations

import logging

from bioio_tk.compat.bfio.bfio import BioReader, BioWriter
from bioio_tk.compat.bfio.utils import start

__all__ = ["JARS", "JAR_VERSION", "LOG4J", "LOGBACK", "BioReader", "BioWriter", "start"]

__version__ = "2.5.0"  # the bfio whose interface this is, for code that asks

# What code for bfio 1.x to 2.2 hands to a Java virtual machine of its own; there is none here.
JARS: list[str] = []
LOG4J = ""
LOGBACK = ""
JAR_VERSION: str | None = None

logger = logging.getLogger("bfio.init")
log_level = logging.WARNING
