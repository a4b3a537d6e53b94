"""ConvertReport: what a conversion did, and what it took."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk.core.location import Location, Url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bioio_tk.core.region import Shape5
    from bioio_tk.engine.copy import Progress


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did.

    Attributes
    ----------
    source, target : str
        The two files.
    series : int
        Which image of the source, from 0.
    shape : tuple of 5 int
        Size along Y, X, Z, C, T.
    dtype : str
        Pixel type of the target.
    levels : int
        Resolutions of the target.
    bytes_in, bytes_out : int
        Size of the two files on disk.
    pixel_bytes : int
        Size of the pixels read, uncompressed.
    seconds : float
        Time it took.
    peak_rss : int or None
        Most memory this process has ever held, in bytes; None where the system does not say.
    notes : tuple of str
        What is worth knowing about the source and what became of it.
    group : str
        Where in the target the image lies: ``"1"``, ``"A/1/0"``; "" for the target itself.
    labels : tuple of str
        Names of the label images that were copied with it.
    status : str
        ``"done"``; ``"skipped"`` where the same image was there already; ``"planned"`` of a dry
        run; ``"partial"`` of one of several jobs that write one image.
    checksums : dict
        Of each plane as it was written, in the pixel type of the target and before any lossy
        compression: ``"t0 c0 z0"`` to its checksum; see `verify`.
    verified : str
        What was compared with the source before the image went into its place; "" for nothing.
    plan : dict
        Of a dry run: what would be written, and how large and how long it is likely to be.
    parts : tuple of ConvertReport
        Where several images were written: a report for each; the numbers here are of all.
    """

    source: str
    target: str
    series: int
    shape: Shape5
    dtype: str
    levels: int
    bytes_in: int
    bytes_out: int
    pixel_bytes: int
    seconds: float
    peak_rss: int | None
    notes: tuple[str, ...]
    group: str = ""
    labels: tuple[str, ...] = ()
    status: str = "done"
    checksums: dict[str, str] = field(default_factory=dict)
    verified: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    parts: tuple[ConvertReport, ...] = ()

    @property
    def speed(self) -> float:
        """Bytes of pixels per second."""
        return self.pixel_bytes / max(self.seconds, 1e-9)

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        return json.dumps(asdict(self))  # ASCII: a path may have bytes that are no text


def shown_path(location: Location) -> str:
    """Return a path or an address as it may be written down, without what is secret in it."""
    return location.shown if isinstance(location, Url) else str(location)


def bytes_on_disk(location: Location) -> int:
    """Return the size of a file or folder; 0 for what is on a server, or not there."""
    if isinstance(location, Url) or not location.exists():
        return 0
    if not location.is_dir():
        return location.stat().st_size
    return sum(file_sizes(location))


def file_sizes(folder: Path) -> Iterator[int]:
    """Yield the size of each file under a folder."""
    folders = [os.fspath(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_dir():  # a link to a folder
                    with suppress(FileNotFoundError):
                        yield entry.stat(follow_symlinks=False).st_size


def part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Return what to call for a part of a task of which so many bytes are done before."""
    if progress is None:
        return None

    def tell(done: int, _: int) -> None:
        progress(before + done, total)

    return tell


def peak_rss() -> int | None:
    """Return the most memory this process has held so far in bytes, None where unknown."""
    try:
        # Linux: what getrusage says there includes the process that started this one
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) if sys.platform == "darwin" else int(most) * 1024
