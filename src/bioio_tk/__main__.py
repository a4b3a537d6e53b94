"""``python -m bioio_tk`` is the same as ``bioio-tk``."""

from __future__ import annotations

from bioio_tk.cli.main import main

if __name__ == "__main__":
    main()
