"""Journal: a record beside an unfinished file of what is stored, so that work can go on there.

The first line (see `engine.record`) says of what the record is; then each tile has its line as
soon as it is stored, and each window of the source whose checksums are known. A line says up to
where the record holds when the machine died, and not only the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

from bioio_tk import __version__
from bioio_tk.backends._file import BINARY
from bioio_tk.core.spec import Address
from bioio_tk.engine.record import Record, boot, line, whole_lines, write_all
from bioio_tk.errors import ClosedError, SpecError
from bioio_tk.target import journal_path, partial_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.region import Shape5, Slices5
    from bioio_tk.core.spec import ImageSpec

_FORMAT = 1
_NOT_COMPARED = ("metadata", "storage_options", "name")
"""Options that change nothing in the tiles; the metadata are written at the end."""


class Journal:
    """The record of one conversion.

    Parameters
    ----------
    target : Path
        The file to be made.
    about : dict
        What has to be the same for a run to go on with what another has begun: the source and
        its fingerprint, the selection, the options. JSON has to hold it.
    resume : bool
        Go on with what an interrupted run has left, and leave what is done for the next one.

    Attributes
    ----------
    tiles : set of Address
        The tiles that are there from an earlier run; empty before `begin`.
    window : Shape5
        Size of the windows in which the source is read; `load` sets it to that of the run
        before.
    began : str
        When the first run began, in UTC: what the image says of when it was made has to be the
        same for all runs.
    """

    def __init__(self, target: Path, about: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = journal_path(target)
        self.partial = partial_path(target)
        self.resume = resume
        self.tiles: set[Address] = set()
        self.window: Shape5 = (0, 0, 0, 0, 0)
        self.began = (_began(self.path) if resume else "") or _now()
        self._target = target
        self._about = dict(about)
        self._image: dict[str, str] = {}
        self._parts: dict[str, Any] = {}
        self._durable = False  # what is carried over has reached the disk
        self._record: Record | None = None

    # ------------------------------------------------------------------ of the run before

    def describe(self, image: ImageSpec, options: StoreOptions) -> None:
        """Take down what is written, for a new file."""
        self._image = {**_fields(image), **_fields(options, but=_NOT_COMPARED)}

    def load(self, image: ImageSpec, options: StoreOptions) -> dict[Address, Any]:
        """Return the tiles an earlier run has stored, with what the sink said of each.

        Raises
        ------
        SpecError
            It wrote something else, or the record cannot be read.
        """
        self.describe(image, options)
        lines = _lines(BytesIO(self.path.read_bytes()))
        _, head = next(lines, (0, None))
        if not isinstance(head, dict) or "journal" not in head:
            raise SpecError(
                f"{str(self.path)!r} cannot be read, so nobody knows what is in the unfinished "
                f"{self.partial.name!r}: {self._anew()}"
            )
        self._check_same(head)
        same_boot = head.get("boot") is not None and head.get("boot") == boot()
        tiles, parts = _entries(list(lines), same_boot=same_boot)
        self.window = tuple(head["window"])
        self._parts = parts
        self._durable = not same_boot
        return tiles

    def part(self, box: Slices5) -> Any:
        """Return what a window adds to the checksums, None where that is not known."""
        return self._parts.get(_box_name(box))

    def _check_same(self, head: dict[str, Any]) -> None:
        ours = json.loads(json.dumps(self._header()))
        for name in ("journal", "bioio_tk"):
            if head.get(name) != ours[name]:
                raise SpecError(
                    f"{self.partial.name!r} was begun by bioio_tk {head.get('bioio_tk')}, and this "
                    f"is {ours['bioio_tk']}: {self._anew()}"
                )
        for kind in ("about", "image"):
            before, now = head.get(kind, {}), ours[kind]
            for name in sorted({*before, *now}):
                if before.get(name) != now.get(name):
                    raise SpecError(
                        f"{self.partial.name!r} was begun with another {name}: "
                        f"{_short(before.get(name))}, and now it is {_short(now.get(name))}. Give "
                        f"what was given then, or {self._anew()}"
                    )

    def _anew(self) -> str:
        return (
            "begin anew with overwrite=True and without resume (--overwrite), or keep what is "
            f"there with 'bioio-tk recover {self._target}'"
        )

    # ------------------------------------------------------------------ of this run

    def begin(self, tiles: Mapping[Address, Any]) -> None:
        """Begin the record, with these tiles in it; the one before is replaced at once."""
        self.tiles = set(tiles)
        lines = [line(self._header())]
        lines += [line(["w", name, part]) for name, part in self._parts.items()]
        lines += [line([*at.key, at.level, what]) for at, what in tiles.items()]
        if self._durable and tiles:
            lines.append(line({"synced": sum(map(len, lines))}))
        fresh = self.path.with_name(self.path.name + ".new")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | BINARY
        fd = os.open(fresh, flags, 0o666)
        try:
            write_all(fd, b"".join(lines))
            if self._durable:
                os.fsync(fd)
            if os.name == "nt":
                os.close(fd)
                os.replace(fresh, self.path)
                fd = os.open(self.path, os.O_RDWR | os.O_APPEND | BINARY)
            else:
                os.replace(fresh, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            fresh.unlink(missing_ok=True)
            raise
        self._record = Record(fd, self.path.parent)

    def tiles_stored(self, tiles: Sequence[tuple[Address, Any]]) -> None:
        """Enter tiles that are down. Any thread."""
        self._append(b"".join(line([*at.key, at.level, what]) for at, what in tiles))

    def window_done(self, box: Slices5, part: Any) -> None:
        """Enter what a window adds to the checksums. Any thread."""
        self._append(line(["w", _box_name(box), part]))

    def remove(self) -> None:
        """Remove the record: there is nothing left that it is of."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the record. Safe to call twice."""
        if self._record is not None:
            self._record.close()

    def _append(self, data: bytes) -> None:
        if self._record is None:
            raise ClosedError("the record was not begun: nothing can be entered")
        self._record.append(data)

    def _header(self) -> dict[str, Any]:
        return {
            "journal": _FORMAT,
            "bioio_tk": __version__,
            "began": self.began,
            "boot": boot(),
            "window": list(self.window),
            "about": self._about,
            "image": self._image,
        }


def _entries(
    lines: list[tuple[int, Any]], *, same_boot: bool
) -> tuple[dict[Address, Any], dict[str, Any]]:
    """Return the tiles and the parts of the checksums that a record holds.

    After a restart of the machine only that counts which was on the disk before.
    """
    durable = [item["synced"] for _, item in lines if isinstance(item, dict)]
    limit = float("inf") if same_boot else max(durable, default=0)
    tiles: dict[Address, Any] = {}
    parts: dict[str, Any] = {}
    for end, item in lines:
        if end > limit or isinstance(item, dict):
            continue
        if item[0] == "w":
            parts[item[1]] = item[2]
        else:
            *key, level, what = item
            tiles[Address(0, level, tuple(key))] = what
    return tiles, parts


def _lines(found: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield where each line ends, and what it says, up to the first that is not whole."""
    for end, text in whole_lines(found):
        yield end, json.loads(text)


def _box_name(box: Slices5) -> str:
    return " ".join(f"{s.start}:{s.stop}" for s in box)


def _fields(item: Any, but: Sequence[str] = ()) -> dict[str, str]:
    names = [field.name for field in dataclasses.fields(item)]
    return {name: repr(getattr(item, name)) for name in names if name not in but}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _began(path: Path) -> str:
    """Return when the run before began, "" where there was none."""
    try:
        with path.open("rb") as file:
            _, head = next(_lines(file), (0, None))
    except FileNotFoundError:
        return ""
    return str(head.get("began", "")) if isinstance(head, dict) else ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
