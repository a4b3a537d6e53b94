"""What code imports from ``bfio.utils``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.core.units import meters_per
from bioio_tk.errors import BackendMissingError, SpecError

if TYPE_CHECKING:
    import os

JAR_VERSION: str | None = None


def start() -> str:
    """Start Java where it is installed and return the version of Bio-Formats, as bfio does.

    Without Java it returns a version of bioio_tk, and reading goes on with what needs none. It may
    be called any number of times and in any thread.
    """
    global JAR_VERSION  # noqa: PLW0603 (bfio's own name for it)
    import bioio_tk

    try:
        JAR_VERSION = bioio_tk.start().version
    except BackendMissingError:
        return f"bioio_tk {bioio_tk.__version__}"
    return JAR_VERSION


def clean_ome_xml_for_known_issues(xml: str) -> str:
    """Return an OME-XML document mended where the intent is clear; a good one as it is.

    Raises
    ------
    FormatError
        It cannot be read at all, or is not OME-XML.
    """
    from bioio_tk.meta import repair

    notes: list[str] = []
    root = repair.tree(xml, notes)
    before = repair.serialise(root)
    repair.make_valid(root)
    after = repair.serialise(root)
    return xml if not notes and after == before else after


def pixels_per_cm(image_dim_px: int, physical_dim: float, unit: Any = "cm") -> int:
    """Return how many pixels there are in a centimetre.

    Parameters
    ----------
    image_dim_px : int
        Pixels along an axis: 1 if `physical_dim` is the size of a pixel.
    physical_dim : float
        How long all of them are.
    unit : ome_types.model.UnitsLength or str
        Unit of `physical_dim`.

    Returns
    -------
    int
        Rounded down.

    Raises
    ------
    SpecError
        The unit is no length (``"pixel"``), or `physical_dim` is not positive.

    Examples
    --------
    >>> pixels_per_cm(1000, 5, "mm")
    2000
    >>> pixels_per_cm(1, 0.5, "µm")
    20000
    """
    if not physical_dim > 0:
        raise SpecError(f"physical_dim={physical_dim!r}: give a length greater than 0")
    centimeters = physical_dim * (meters_per(getattr(unit, "value", unit)) * 100)
    count = image_dim_px / centimeters
    # 1 / (0.1 * 1e-4) is 99999.99…: what is a whole number but for rounding is that number
    whole = round(count)
    return whole if abs(count - whole) <= 1e-9 * max(1.0, abs(count)) else int(count)


def detect_zarr_format(path: str | os.PathLike[str]) -> int:
    """Return 2 or 3, the Zarr format of a folder or of a part of it; 0 for anything else."""
    folder = Path(path)
    if not folder.is_dir():
        return 0
    if found := _marker(folder):
        return found
    try:
        parts = sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return 0
    return next((found for part in parts if (found := _marker(part))), 0)


def _marker(folder: Path) -> int:
    try:
        document = json.loads((folder / "zarr.json").read_bytes())
        if isinstance(document, dict) and document.get("zarr_format") == 3:
            return 3
    except (OSError, ValueError):
        pass
    return 2 if (folder / ".zgroup").exists() or (folder / ".zarray").exists() else 0
