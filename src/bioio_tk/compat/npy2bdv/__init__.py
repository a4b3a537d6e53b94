"""Runs code written for npy2bdv 1.0 and 1.1: ``import bioio_tk.compat.npy2bdv as npy2bdv``.

Its names and habits over `bioio_tk.bdv`. New code is better off with that;
``docs/migrate/npy2bdv.md`` shows how to move, and which faults were not kept.
"""

from __future__ import annotations

from bioio_tk.compat.npy2bdv import npy2bdv
from bioio_tk.compat.npy2bdv.npy2bdv import BdvEditor, BdvWriter

__all__ = ["BdvEditor", "BdvWriter", "npy2bdv"]

__version__ = "1.1.0"  # the npy2bdv whose interface this is, for code that asks
