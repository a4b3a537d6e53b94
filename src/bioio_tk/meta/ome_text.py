"""Pieces of OME-XML as text, for what is too much for a tree of elements."""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bioio_tk.meta import repair

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPECIAL = re.compile("[^ !#-%'-;=?-~\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_URI = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?[A-Za-z0-9_.~/?=&;,@!$'()*+-]*(?:#[A-Za-z0-9_.~/-]*)?"
)
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def escaped(text: str) -> str:
    """Return text for an attribute or an element; what XML cannot hold as JSON writes it."""
    return _SPECIAL.sub(_escape, text) if _SPECIAL.search(text) else text


def _escape(found: re.Match[str]) -> str:
    sign = found[0]
    if sign in _NAMED:
        return _NAMED[sign]
    # Line breaks and tabs in attributes would come back as blanks.
    if sign in "\t\n\r" or "\x7f" <= sign <= "\x9f":
        return f"&#{ord(sign)};"
    return f"\\u{ord(sign):04x}"


def urn(uuid: str) -> str:
    """Return a UUID as OME writes it."""
    text = uuid if uuid.startswith("urn:uuid:") else f"urn:uuid:{uuid}"
    return escaped(text)


def namespace(text: str) -> str:
    """Return a namespace as the schema takes it, for a URI; ``urllib.parse.unquote`` undoes it.

    >>> namespace("pymmcore_plus"), namespace("http://a.org/b"), namespace("my notes: 1")
    ('pymmcore_plus', 'http://a.org/b', 'my%20notes%3A%201')
    """
    uri = text if _URI.fullmatch(text) else quote(text, safe="/", errors="surrogatepass")
    return escaped(uri)


def quantity(name: str, value: float, unit: str) -> str:
    """Return the attributes of a size with its unit; nothing for one that makes no sense."""
    # The schema's numbers are 32-bit floats: what is smaller would be 0 there.
    if not repair.SMALLEST <= value < math.inf:
        return ""
    return f' {name}="{float(value)!r}" {name}Unit="{unit}"'


def map_annotation(identifier: str, name: str, pairs: Mapping[str, Any]) -> str:
    """Return an annotation of keys and values, in the namespace of that name."""
    inside = "".join(pair(key, value) for key, value in pairs.items())
    return (
        f'<MapAnnotation ID="{identifier}" Namespace="{namespace(name)}">'
        f"<Value>{inside}</Value></MapAnnotation>"
    )


def pair(key: str, value: Any) -> str:
    """Return one key with its value: text as it is, everything else as JSON."""
    if type(value) is int:
        return f"{_key(key)}{value}</M>"
    return f"{_key(key)}{escaped(value if type(value) is str else json.dumps(value))}</M>"


@lru_cache(maxsize=1024)
def _key(key: str) -> str:
    return f'<M K="{escaped(key)}">'
