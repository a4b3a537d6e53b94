"""The one module of npy2bdv, for code that names it: ``npy2bdv.npy2bdv.BdvEditor``."""

from __future__ import annotations

from bioio_tk.compat.npy2bdv._editor import BdvEditor
from bioio_tk.compat.npy2bdv._writer import BdvWriter

__all__ = ["BdvEditor", "BdvWriter"]
