"""Location: where an image lies, a path of this machine or the address of something remote."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bioio_tk.errors import SpecError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True)
class Url:
    """The address of a remote file or folder, with the few manners of a path.

    Parameters
    ----------
    text : str
        ``"s3://bucket/plate.ome.zarr"``; a slash at the end is dropped.

    Examples
    --------
    >>> url = Url("s3://bucket/plate.ome.zarr/")
    >>> url.name, url.scheme, str(url / "A" / "1"), str(url.parent)
    ('plate.ome.zarr', 's3', 's3://bucket/plate.ome.zarr/A/1', 's3://bucket')
    """

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text.rstrip("/"))

    @property
    def scheme(self) -> str:
        """What comes before ``://``, in small letters."""
        return self.text.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The last part, without what follows a question mark."""
        return self.text.partition("://")[2].partition("?")[0].rpartition("/")[2]

    @property
    def shown(self) -> str:
        """The address without a password, or the signature behind the question mark.

        >>> Url("https://me:secret@host/a.zarr?token=1").shown
        'https://host/a.zarr'
        """
        scheme, _, rest = self.text.partition("?")[0].partition("://")
        server, slash, path = rest.partition("/")
        return f"{scheme}://{server.rpartition('@')[2]}{slash}{path}".rstrip("/")

    @property
    def parent(self) -> Url:
        """The address one level up."""
        head, _, rest = self.text.partition("://")
        return Url(f"{head}://{rest.rpartition('/')[0]}")

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text}/{name}")

    def __str__(self) -> str:
        return self.text


Location: TypeAlias = Path | Url


def locate(where: Any) -> Location:
    """Return a Path, ``~`` expanded, or a Url; SpecError for what is neither.

    >>> locate("s3://bucket/a.ome.zarr").name
    'a.ome.zarr'
    """
    if isinstance(where, Url):
        return where
    if isinstance(where, str) and _SCHEME.match(where):
        if where[:7].lower() == "file://":
            from urllib.parse import unquote, urlsplit

            return Path(unquote(urlsplit(where).path))
        return Url(where)
    if isinstance(where, (str, os.PathLike)) and str(where):
        return Path(where).expanduser()
    raise SpecError(f"{where!r:.80} is no path: give a str, a pathlib.Path or a URL")


def absolute(place: Location) -> Location:
    """Return where something lies whatever the working folder is, for another process."""
    return place if isinstance(place, Url) else place.absolute()
