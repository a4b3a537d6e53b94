"""Record: what an image was made from, written into it, and compared before it is made again."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioio_tk import __version__
from bioio_tk.core.location import Url
from bioio_tk.core.region import AXES
from bioio_tk.draft import PROPERTIES
from bioio_tk.errors import BioIOError, SpecError, TargetExistsError
from bioio_tk.jobs.names import span_text
from bioio_tk.jobs.options import plain
from bioio_tk.jobs.select import Seen
from bioio_tk.meta import provenance
from bioio_tk.reader import BioReader

if TYPE_CHECKING:
    from bioio_tk.core.location import Location
    from bioio_tk.jobs.options import Options
    from bioio_tk.lazy import LazyArray

_MOST_NAMED = 4
_SPACINGS = ("dx", "dy", "dz")
_GEOMETRY = ("X", "Y", "Z", "C", "T", "shape", "dtype", "samples_per_pixel")


def step_of(image: LazyArray, options: Options) -> dict[str, Any]:
    """Return what is written into an image about how it is made.

    Returns
    -------
    dict
        ``tool``, ``when`` (UTC), ``source`` (names of files), ``selection``, ``options`` (those
        that change the result) and ``fingerprint``: a hash of the source's files (their names,
        sizes and times of change), the selection and the options. It is "" for pixels that come
        from memory.
    """
    reader = image.reader
    files = files_of(image)
    chosen = (
        span_text(axis, pick, size)
        for axis, pick, size in zip(AXES, image.picks, reader.shape, strict=True)
    )
    text = " ".join(part for part in chosen if part)
    if reader.n_series > 1:
        text = f"series {reader.series} {text}".strip()
    if reader.level:
        text = f"{text} level {reader.level}".strip()
    made: dict[str, Any] = {
        "tool": f"bioio-tk {__version__}",
        "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "source": _names(files) or reader.path.name,
        "selection": text,
        "options": options.result(),
    }
    same = {"files": files, "selection": text, "options": made["options"]}
    source = image.view().source
    computed = getattr(source, "made", "")
    if computed:  # from the pixels of the files: what lies in them is not all there is to it
        same["made"] = computed
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    known = files and not getattr(source, "in_memory", False)
    return {**made, "fingerprint": digest if known else ""}


def shifts_in(xml: str | None) -> dict[str, Any] | None:
    """Return what a document says of how far planes are shifted; None where nothing, or no more."""
    for step in reversed(provenance.read(xml)):
        if "plane_shifts" in step:
            names = ("plane_shifts", "plane_shifts_params")
            found: dict[str, Any] = {n: json.loads(step[n]) for n in names if n in step}
            return found if found["plane_shifts"] else None
    return None


def files_of(image: LazyArray) -> list[list[Any]]:
    """Return name, size and time of change of each file an image is read from.

    Of a folder it is that of all files in it together; of what lies on a server nothing but its
    address is known, and of an array in memory nothing at all.
    """
    return [_seen(place) for place in image.reader.used_files if _is_place(place)]


def _is_place(place: Location) -> bool:
    return isinstance(place, Url) or place.exists()


def carried(image: LazyArray, options: Options, step: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords for `BioWriter` that say what goes along with the pixels.

    They are the metadata of the source as they are for the selection, what was given, and how
    the image was made.
    """
    given = options.metadata
    if given is not None and not isinstance(given, dict):
        whole = given if isinstance(given, (str, bytes)) else given.to_xml()
        return {"like": Seen(image), "metadata": provenance.add(whole, step)}
    known, _ = _sorted(given or {})
    seen = Seen(image)
    seen.ome_xml = noted(seen.ome_xml, given or {}, step)
    return {"like": seen, **known}


def noted(xml: str, given: dict[Any, Any], step: dict[str, Any]) -> str:
    """Return a document with how the image was made, and what was given that has no place in it."""
    xml = provenance.add(xml, step)
    _, free = _sorted(given)
    return provenance.add(xml, plain(free), namespace=provenance.METADATA) if free else xml


def _sorted(given: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `BioWriter` takes as a keyword, and the rest."""
    known: dict[str, Any] = {}
    free: dict[str, Any] = {}
    for name, value in given.items():
        key = str(name)
        if key in _SPACINGS:
            known[f"physical_size_{key[1]}"] = (_number(key, value), "µm")
        elif key == "fs":
            known["time_increment"] = (1 / _number(key, value), "s")
        elif key in PROPERTIES and key not in _GEOMETRY:
            known[key] = value
        else:
            free[key] = value
    return known, free


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not number > 0:
        raise SpecError(f"metadata[{name!r}]={value!r}: give a number above 0")
    return number


def _seen(place: Location) -> list[Any]:
    if isinstance(place, Url):
        return [place.shown, 0, 0]
    path = Path(os.path.abspath(place))  # noqa: PTH100 (a link is not to be followed)
    if not path.is_dir():
        found = path.stat()
        return [str(path), found.st_size, found.st_mtime_ns]
    count = total = sums = 0
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)  # noqa: PTH118 (there may be very many)
            found = os.stat(file)
            count, total = count + 1, total + found.st_size
            # one that is put back as it was before is an old file in the place of a newer one
            seen = f"{file[len(str(path)) :]} {found.st_size} {found.st_mtime_ns}"
            sums ^= int.from_bytes(hashlib.blake2b(seen.encode(errors="surrogateescape")).digest())
    return [str(path), total, f"{sums:x}", count]


def _names(files: list[list[Any]]) -> str:
    names = [Path(str(entry[0])).name for entry in files]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def is_same(target: Location, step: dict[str, Any], options: Options) -> bool:
    """Return whether the image that would be made is at `target` already.

    Raises
    ------
    TargetExistsError
        What is there was made of something else, or in another way, or does not say of what.
    """
    if options.group:
        target = target / options.group
    if isinstance(target, Path) and not os.path.lexists(target):
        return False
    recorded = last_step(target, options.storage_options)
    if recorded is None and isinstance(target, Url):
        return False
    known = step["fingerprint"]
    if recorded is not None and known and known == recorded.get("fingerprint"):
        return True
    raise TargetExistsError(
        f"{str(target)!r} exists and {_difference(recorded, step)}: it was not skipped; choose "
        "another name, or pass exists='replace'"
    )


def _difference(recorded: dict[str, str] | None, step: dict[str, Any]) -> str:
    if not step["fingerprint"]:
        return "it cannot be told whether it is the same, because the pixels come from memory"
    if not recorded or not recorded.get("fingerprint"):
        return "does not say what it was made from"
    for name, what in (("options", "options"), ("selection", "selection")):
        mine = step[name] if isinstance(step[name], str) else json.dumps(step[name])
        if recorded.get(name, "") != mine:
            return f"was made with other {what} ({recorded.get(name) or 'none'})"
    return f"was made from another source, or one that has changed ({recorded.get('source')})"


def last_step(target: Location, storage_options: dict[str, Any] | None) -> dict[str, str] | None:
    """Return what an image says of how it was made last; None where it does not."""
    try:
        with BioReader(target, 1, storage_options=storage_options) as reader:
            steps = provenance.read(reader.ome_xml)
    except (BioIOError, OSError):
        return None
    return steps[-1] if steps else None
