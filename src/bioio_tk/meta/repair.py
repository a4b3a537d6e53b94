"""Damaged OME-XML: reading what was meant, and making a tree valid against the OME schema."""

from __future__ import annotations

import binascii
import codecs
import math
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from xml.etree import ElementTree as ET
from xml.parsers import expat

from bioio_tk.core.units import length_unit, time_unit
from bioio_tk.errors import FormatError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OME_NS = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
XSI_NS = "http://www.w3.org/2001/XMLSchema-instance"

# OME-XML is some ten levels deep; whatever is deeper was not written to be read.
MAX_DEPTH = 200
_MAX_CHARS = 2**30

SMALLEST = 1e-37
"""The least positive number to write: the floats of the schema have 32 bits."""


# -- text -----------------------------------------------------------------------------------------

# Everything XML 1.0 does not allow in a document.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECLARED = re.compile(rb"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9._-]{1,40})[\"']")


def decode(data: bytes, notes: list[str]) -> str:
    """Return the text of a document whatever its encoding; wrong bytes are read as Latin-1."""
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(name, "replace")
    for start, name in ((b"<\0", "utf-16-le"), (b"\0<", "utf-16-be")):
        if data.startswith(start):
            return data.decode(name, "replace")
    declared = _DECLARED.search(data[:400])
    name = declared.group(1).decode("ascii") if declared else "utf-8"
    try:
        return data.decode(name)
    except (LookupError, UnicodeError):
        notes.append(f"the OME-XML is not all {name}: bytes that are not UTF-8 read as Latin-1")
        return data.decode("utf-8", _LATIN)


_LATIN = "bioio_tk.latin1"


def _as_latin1(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error(_LATIN, _as_latin1)


def clean_text(given: str | bytes, notes: list[str]) -> str:
    """Return the text of a document without byte order mark and padding."""
    text = decode(given, notes) if isinstance(given, bytes | bytearray | memoryview) else given
    if len(text) > _MAX_CHARS:
        raise FormatError(f"an OME-XML of {len(text)} characters is not read")
    start = text.find("<")
    if start < 0:
        raise FormatError(f"no OME-XML: {text[:40]!r} holds no element")
    # Writers pad with NULs, and the end of a document is not always the end of the text.
    return text[start:].rstrip("\0 \t\r\n")


def allowed(text: str) -> str:
    """Return a text with every character that XML forbids replaced by U+FFFD."""
    return _FORBIDDEN.sub("\ufffd", text)


class Handler(Protocol):
    """What `parse` tells of a document. `start` has to refuse more than `MAX_DEPTH` elements.

    `closed` is True once the root element has ended.
    """

    closed: bool

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Begin an element."""

    def end(self, name: str) -> None:
        """End an element."""

    def data(self, text: str) -> None:
        """Take text."""


def parse(text: str, handler: Callable[[], Any], notes: list[str]) -> Any:
    """Feed a document to a new handler and return it; mend the text where it is no XML.

    Raises
    ------
    FormatError
        The document declares a type or entities (never needed, and a way to attack), is nested
        absurdly deep, or cannot be understood.
    """
    mends: tuple[tuple[Callable[[str], str] | None, str], ...] = (
        (None, ""),
        (lambda broken: _FORBIDDEN.sub("", broken), "characters that XML does not allow"),
        (_mend_references, "unescaped '&' or bad character references"),
        (_mend_attributes, "unescaped '<' in attributes"),
    )
    first: Exception | None = None
    mended: list[str] = []
    for mend, what in mends:
        if mend is not None:
            better = mend(text)
            if better == text:
                continue
            text = better
            mended.append(f"the OME-XML has {what}; read as the text meant")
        target = handler()
        try:
            _run(text, target)
        except expat.ExpatError as exc:
            first = first or exc
            continue
        notes.extend(mended)
        return target
    raise FormatError(f"the OME-XML cannot be read: {first}") from first


def _run(text: str, target: Handler) -> None:
    parser = expat.ParserCreate("UTF-8")  # overrides what the document declares
    parser.buffer_text = True
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)

    def refuse(*_: Any) -> Any:
        raise FormatError(
            "the OME-XML declares a document type or entities, which are never read: remove the "
            "DOCTYPE from it"
        )

    parser.StartElementHandler = target.start
    parser.EndElementHandler = target.end
    parser.CharacterDataHandler = target.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except expat.ExpatError:
        if not target.closed:  # what follows the document is not ours to read
            raise


def too_deep() -> FormatError:
    """Return the error to raise from a handler that is deeper than `MAX_DEPTH` elements."""
    return FormatError(f"the OME-XML is nested deeper than {MAX_DEPTH} elements")


_REFERENCE = re.compile(
    r"&(?:#([0-9]{1,7});|#[xX]([0-9A-Fa-f]{1,6});|([A-Za-z][A-Za-z0-9]{1,31});)?"
)


def _mend_references(text: str) -> str:
    """Escape lone ampersands, and resolve references that XML does not know."""
    return "".join(
        _REFERENCE.sub(_reference, part) if ours else part for part, ours in _outside(text)
    )


def _outside(text: str) -> Iterator[tuple[str, bool]]:
    """Yield a text in parts: outside (True) and inside comments and CDATA sections (False)."""
    at = 0
    for found in re.finditer(r"<!\[CDATA\[|<!--", text):
        if found.start() < at:
            continue
        close = "]]>" if found.group() == "<![CDATA[" else "-->"
        stop = text.find(close, found.end())
        if stop < 0:
            break
        yield text[at : found.start()], True
        at = stop + len(close)
        yield text[found.start() : at], False
    yield text[at:], True


def _reference(match: re.Match[str]) -> str:
    decimal, hexadecimal, name = match.groups()
    if decimal or hexadecimal:
        code = int(decimal) if decimal else int(hexadecimal, 16)
        fits = code < 0x110000 and not _FORBIDDEN.match(chr(code))
        return match.group() if fits else ""
    if name in ("amp", "lt", "gt", "quot", "apos"):
        return match.group()
    if name:
        from html.entities import html5

        if f"{name};" in html5:  # &micro; and its like, known to HTML only
            return "".join(f"&#{ord(c)};" for c in html5[f"{name};"])
    return "&amp;" + match.group()[1:]


def _mend_attributes(text: str) -> str:
    return re.sub(r"=\s*(?:\"[^\"]*\"|'[^']*')", lambda m: m.group().replace("<", "&lt;"), text)


# -- values ---------------------------------------------------------------------------------------


def unit(text: str, kind: Callable[[Any], str]) -> str | None:
    """Return OME's symbol of a unit that may have come through a wrong encoding, or None.

    Examples
    --------
    >>> unit("Âµm", length_unit), unit("smoots", length_unit)
    ('µm', None)
    """
    for spelling in _spellings(text):
        try:
            return kind(spelling)
        except SpecError:
            continue
    return None


def _spellings(text: str) -> Iterator[str]:
    yield text
    for encoding in ("cp1252", "latin-1", "mac-roman"):
        try:
            yield text.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
    # What is left of a micro sign where it could not be written at all.
    if len(text) <= 4 and text[-1:] in ("m", "s") and set(text[:-1]) <= set("?\ufffd¿¬Âµμ"):
        yield f"µ{text[-1]}"


def number(text: str) -> float | None:
    """Return the number a text means, None if none; a decimal comma is understood.

    Examples
    --------
    >>> number("0,325"), number("1.5e-3"), number("wide")
    (0.325, 0.0015, None)
    """
    if text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    text = text.strip()
    if not re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?", text):
        low = text.lower()
        return float(low) if low in ("inf", "-inf", "infinity", "-infinity", "nan") else None
    return float(text)


def size(text: str) -> int | None:
    """Return the whole number a text means (``"512.0"`` too), None if none."""
    value = number(text[:40])
    if value is None or not abs(value) <= 2**53 or not value.is_integer():  # NaN is not <=
        return None
    return int(value)


# -- trees ----------------------------------------------------------------------------------------


class _TreeMaker:
    """Builds an ElementTree; every OME namespace becomes that of 2016-06 unless `as_is`."""

    def __init__(self, *, as_is: bool = False) -> None:
        self._as_is = as_is
        self._builder = ET.TreeBuilder()
        self._scopes: list[dict[str, str]] = [{"xml": "http://www.w3.org/XML/1998/namespace"}]
        self._tags: list[str] = []
        self.namespace = ""
        self.closed = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._tags) >= MAX_DEPTH:
            raise too_deep()
        scope = self._scopes[-1]
        declared = {k: v for k, v in attributes.items() if k == "xmlns" or k[:6] == "xmlns:"}
        if declared:
            scope = scope | {k[6:]: v for k, v in declared.items()}
        self._scopes.append(scope)
        prefix, _, local = name.rpartition(":")
        space = scope.get(prefix, "")
        if not self._tags:
            self.namespace = space
        # A document without any namespace is taken for one of OME.
        if (is_ome(space) and not self._as_is) or (not space and "" not in scope):
            space = OME_NS
        tag = f"{{{space}}}{local}" if space else local
        kept = {}
        for key, value in attributes.items():
            if key in declared:
                continue
            prefix, _, local = key.rpartition(":")
            owner = scope.get(prefix, "") if prefix else ""
            kept[f"{{{owner}}}{local}" if owner else local] = value
        self._tags.append(tag)
        self._builder.start(tag, kept)

    def end(self, name: str) -> None:
        self._scopes.pop()
        self._builder.end(self._tags.pop())
        self.closed = not self._tags

    def data(self, text: str) -> None:
        self._builder.data(text)

    def close(self) -> ET.Element:
        return self._builder.close()


def is_ome(namespace: str) -> bool:
    """Return whether a namespace is that of an OME schema, of any year and in any case."""
    low = namespace.lower()
    return "openmicroscopy.org/" in low and ("schemas/" in low or "xmlschemas/" in low)


def tree(given: str | bytes, notes: list[str]) -> ET.Element:
    """Return a document as a tree of the 2016 schema, as far as it can be brought there."""
    text = clean_text(given, notes)
    maker: _TreeMaker = parse(text, _TreeMaker, notes)
    version = _old_version(maker.namespace)
    if version and (upgraded := _upgraded(text, version)) is not None:
        maker = parse(upgraded, _TreeMaker, notes)
    root = maker.close()
    root.tag = f"{{{OME_NS}}}OME"
    return root


def _old_version(namespace: str) -> str | None:
    if not is_ome(namespace) or namespace == OME_NS:
        return None
    found = re.search(r"/(20[0-9]{2}-[0-9]{2})", namespace)
    if found:
        return found.group(1)
    return "2003-FC" if "/FC" in namespace else None


def _upgraded(text: str, version: str) -> str | None:
    """Rewrite a document of an older schema by OME's own stylesheets; None where they fail.

    Without them (they take lxml) most of the document is still understood: the schemas share
    nearly all names. What differs is left out.
    """
    try:
        etree: Any = import_module("lxml.etree")
    except ImportError:
        return None
    steps = {p.name.partition("-to-")[0]: p for p in _package_files("transforms", ".xsl")}
    # Parsed by us first: what reaches lxml has no entities and nothing that is not XML.
    maker: _TreeMaker = parse(text, lambda: _TreeMaker(as_is=True), [])
    try:
        document = etree.fromstring(serialise(maker.close()).encode())
        while version in steps:
            path = steps[version]
            style = etree.XSLT(etree.parse(path), access_control=etree.XSLTAccessControl.DENY_ALL)
            document = style(document)
            version = path.stem.partition("-to-")[2]
        return str(etree.tostring(document, encoding="unicode")) if version == "2016-06" else None
    except etree.LxmlError:
        return None


def _package_files(folder: str, ending: str) -> list[Path]:
    """Files that come with ome_types. Looking for them does not import the package."""
    found = find_spec("ome_types")
    places = (found.submodule_search_locations or ()) if found else ()
    return [p for place in places for p in sorted(Path(place, folder).glob(f"*{ending}"))]


def serialise(root: ET.Element) -> str:
    """Return a tree as XML, OME's namespace being the default one. Forbidden characters go."""
    out: list[str] = ['<?xml version="1.0" encoding="UTF-8"?>']
    _write(root, None, out, top=True)
    return "".join(out)


_TEXT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
# Line breaks and tabs in attributes would come back as blanks.
_ATTRIBUTE = str.maketrans(
    {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        '"': "&quot;",
        "\r": "&#13;",
        "\n": "&#10;",
        "\t": "&#9;",
    }
)


def _write(element: ET.Element, default: str | None, out: list[str], *, top: bool = False) -> None:
    space, local = _split(element.tag)
    out.append(f"<{local}")
    if space != (default or ""):
        out.append(f' xmlns="{allowed(space).translate(_ATTRIBUTE)}"')
    if top:
        out.append(f' xmlns:xsi="{XSI_NS}" xsi:schemaLocation="{OME_NS} {OME_NS}/ome.xsd"')
    _write_attributes(element, out, top=top)
    text = element.text
    if not text and not len(element):
        out.append("/>")
    else:
        out.append(">")
        if text:
            out.append(allowed(text).translate(_TEXT))
        for child in element:
            _write(child, space, out)
        out.append(f"</{local}>")
    if element.tail and not top:
        out.append(allowed(element.tail).translate(_TEXT))


def _write_attributes(element: ET.Element, out: list[str], *, top: bool) -> None:
    for key, value in element.attrib.items():
        owner, name = _split(key)
        if owner == XSI_NS and top:
            continue
        if owner == "http://www.w3.org/XML/1998/namespace":
            name = f"xml:{name}"
        elif owner:
            out.append(f' xmlns:a="{allowed(owner).translate(_ATTRIBUTE)}"')
            name = f"a:{name}"
        out.append(f' {name}="{allowed(value).translate(_ATTRIBUTE)}"')


def _split(tag: str) -> tuple[str, str]:
    if tag[:1] == "{":
        space, _, local = tag[1:].partition("}")
        return space, local
    return "", tag


# -- the schema -----------------------------------------------------------------------------------

_XSD = "{http://www.w3.org/2001/XMLSchema}"


class _Attribute(NamedTuple):
    type: Any
    required: bool


class _Slot(NamedTuple):
    """A place among the children of an element."""

    elements: dict[str, ET.Element]
    least: int
    most: float
    choice: tuple[int, int] | None
    """Which choice it belongs to, and which of its alternatives it is."""


class _Rule(NamedTuple):
    """What the schema says of one kind of element."""

    attributes: dict[str, _Attribute]
    slots: list[_Slot]
    text: Any
    anything: bool
    reference: bool

    @property
    def identifiers(self) -> list[tuple[str, str]]:
        """The attributes that hold an ID, and whose."""
        return [
            (name, attribute.type)
            for name, attribute in self.attributes.items()
            if isinstance(attribute.type, str) and attribute.type.endswith("ID")
        ]


class _Schema:
    """The OME schema, as far as it takes to leave out what it does not allow."""

    def __init__(self, path: Path) -> None:
        root = ET.parse(path).getroot()
        self.elements: dict[str, ET.Element] = {}
        self._types: dict[str, ET.Element] = {}
        self._groups: dict[str, list[ET.Element]] = {}
        self._rules: dict[ET.Element, _Rule] = {}
        for node in root:
            name = node.get("name", "")
            if node.tag == f"{_XSD}element":
                self.elements[name] = node
                if group := node.get("substitutionGroup"):
                    self._groups.setdefault(group, []).append(node)
            else:
                self._types[name] = node

    def rule(self, declaration: ET.Element) -> _Rule:
        rule = self._rules.get(declaration)
        if rule is None:
            rule = self._rules[declaration] = self._compile(declaration)
        return rule

    def _compile(self, declaration: ET.Element) -> _Rule:
        node: Any = declaration.find(f"{_XSD}complexType")
        kind = declaration.get("type", "")
        if node is None and not kind.startswith("xsd:"):
            named = self._types.get(kind)
            if named is not None and named.tag == f"{_XSD}complexType":
                node = named
        if node is None:
            simple = declaration.find(f"{_XSD}simpleType")
            text = simple if simple is not None else (kind or None)
            return _Rule({}, [], text, anything=False, reference=False)
        attributes: dict[str, _Attribute] = {}
        slots: list[_Slot] = []
        text, anything, reference = None, False, False
        for part in self._chain(node):
            for child in part:
                if child.tag == f"{_XSD}attribute":
                    inline = child.find(f"{_XSD}simpleType")
                    attributes[child.get("name", "")] = _Attribute(
                        inline if inline is not None else child.get("type", "xsd:string"),
                        child.get("use") == "required",
                    )
                elif child.tag in (f"{_XSD}sequence", f"{_XSD}choice"):
                    anything |= child.find(f".//{_XSD}any") is not None
                    slots += self._slots(child)
            base = part.get("base", "")
            reference |= base == "Reference"
            if part.get("_text"):
                text = part.get("_text")
        return _Rule(attributes, slots, text, anything, reference)

    def _chain(self, node: ET.Element) -> list[ET.Element]:
        """Return the parts of a type, those of the type it extends first."""
        for content in ("complexContent", "simpleContent"):
            extension = node.find(f"{_XSD}{content}/{_XSD}extension")
            if extension is None:
                continue
            base = extension.get("base", "")
            named = self._types.get(base)
            if named is not None and named.tag == f"{_XSD}complexType":
                return [*self._chain(named), extension]
            if base in self.elements:
                return [extension]
            extension.set("_text", base)
            return [extension]
        return [node]

    def _slots(self, node: ET.Element, least: int = 1) -> list[_Slot]:
        least = min(least, int(node.get("minOccurs", "1")))
        many = node.get("maxOccurs", "1") == "unbounded"
        slots: list[_Slot] = []
        if node.tag == f"{_XSD}choice" and many:
            named: dict[str, ET.Element] = {}
            for child in node:
                named.update(self._named(child))
            return [_Slot(named, least, float("inf"), None)]
        for index, child in enumerate(node):
            if child.tag == f"{_XSD}element":
                most = child.get("maxOccurs", "1")
                made = [
                    _Slot(
                        self._named(child),
                        min(least, int(child.get("minOccurs", "1"))),
                        float("inf") if most == "unbounded" else float(most),
                        None,
                    )
                ]
            elif child.tag in (f"{_XSD}sequence", f"{_XSD}choice"):
                made = self._slots(child, least)
            else:
                continue
            if node.tag == f"{_XSD}choice":
                made = [slot._replace(choice=(id(node), index)) for slot in made]
            slots += made
        return slots

    def _named(self, node: ET.Element) -> dict[str, ET.Element]:
        reference = node.get("ref")
        if reference is None:
            return {node.get("name", ""): node}
        if reference in self._groups:
            return {e.get("name", ""): e for e in self._groups[reference]}
        return {reference: self.elements[reference]}

    # -- simple values --

    def value(self, kind: Any, text: str) -> str | None:
        """Return `text` as the type wants it, None where it does not fit."""
        if isinstance(kind, str):
            if kind.startswith("xsd:") or kind not in self._types:
                return _builtin(kind.removeprefix("xsd:"), text)
            if kind in ("UnitsLength", "UnitsTime"):
                return unit(text, length_unit if kind == "UnitsLength" else time_unit)
            kind = self._types[kind]
        node = kind.find(f"{_XSD}list")
        if node is not None:
            inner = node.find(f"{_XSD}simpleType")
            items = [self.value(inner, item) for item in text.split()]
            return " ".join(v for v in items if v is not None)
        node = kind.find(f"{_XSD}restriction")
        base = node.get("base", "xsd:string")
        if base == "LSID":
            pattern = node.find(f"{_XSD}pattern")
            return _identifier(text, pattern.get("value", ""))
        if kind.get("name") == "LSID":
            return _identifier(text, "")
        found = self.value(base, text)
        if found is None:
            return None
        return _restricted(node, found)


def _restricted(node: ET.Element, text: str) -> str | None:
    choices = [e.get("value", "") for e in node.findall(f"{_XSD}enumeration")]
    if choices and text not in choices:
        by_fold = {c.casefold(): c for c in choices}
        # OME's own word for what its lists do not have.
        found = by_fold.get(text.strip().casefold()) or by_fold.get("other")
        if found is None:
            return None
        text = found
    for bound in node:
        limit = bound.get("value", "")
        name = bound.tag.removeprefix(_XSD)
        if name == "pattern" and not re.fullmatch(limit, text[:200]):
            return None
        if name == "length" and len(text) != 2 * int(limit):
            return None
        if name in ("minInclusive", "maxInclusive", "minExclusive"):
            have, edge = float(text.replace("INF", "inf")), float(limit)
            if not {
                "minInclusive": have >= edge,
                "maxInclusive": have <= edge,
                "minExclusive": have >= edge + SMALLEST,
            }[name]:
                return None
    return text


def _identifier(text: str, pattern: str) -> str:
    """Return an ID as the schema wants it; always the same for a text, so references hold."""
    found = re.search(r"\(([A-Za-z]+):\\S\+\)", pattern)
    prefix = f"{found.group(1)}:" if found else ""
    text = "".join(text.split())
    if text.startswith("urn:lsid:"):
        body, colon, rest = text[9:].partition(":")
        host = "." in body[1:-1] and re.fullmatch(r"[\w.-]+", body) and colon
        if host and rest.startswith(prefix) and rest.partition(":")[2]:
            return text
    if prefix and (not text.startswith(prefix) or len(text) == len(prefix)):
        return f"{prefix}{text or '0'}"
    return text or "0"


_INTEGERS = {"int": 31, "long": 63, "short": 15, "integer": 63}


def _builtin(kind: str, text: str) -> str | None:
    """Return `text` as a type that comes with XML Schema wants it, None where it does not fit."""
    check = _BUILTIN.get(kind)
    if check is not None:
        return check(text.strip())
    return _integer(kind, text.strip()) if kind in _INTEGERS else text


def _integer(kind: str, text: str) -> str | None:
    plain = re.fullmatch(r"[+-]?[0-9]{1,19}", text)
    whole = int(text) if plain else size(text)
    bits = _INTEGERS[kind]
    return str(whole) if whole is not None and -(2**bits) <= whole < 2**bits else None


def _float(text: str) -> str | None:
    value = number(text)
    if value is None:
        return None
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "INF" if value > 0 else "-INF"
    return repr(value) if "," in text else text


def _true_false(text: str) -> str | None:
    return text.lower() if text.lower() in ("true", "false", "0", "1") else None


def _date(text: str) -> str | None:
    return text if _is_date(text) else None


def _uri(text: str) -> str | None:
    return text if re.fullmatch(r"[!#-;=?-\[\]_a-z~]*", text) else None


def _is_date(text: str) -> bool:
    found = re.fullmatch(
        r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]{1,30})?"
        r"(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9])?",
        text,
    )
    if not found:
        return False
    from datetime import datetime

    try:
        datetime(*(int(v) for v in found.groups()))  # type: ignore[arg-type]
    except ValueError:
        return False
    return True


def _base64(text: str) -> str | None:
    plain = "".join(text.split())
    try:
        binascii.a2b_base64(plain, strict_mode=True)
    except ValueError:
        return None
    return plain


def _hex(text: str) -> str | None:
    plain = "".join(text.split())
    try:
        binascii.unhexlify(plain)
    except ValueError:
        return None
    return plain


_BUILTIN: dict[str, Callable[[str], str | None]] = {
    "float": _float,
    "double": _float,
    "boolean": _true_false,
    "dateTime": _date,
    "anyURI": _uri,
    "base64Binary": _base64,
    "hexBinary": _hex,
}


# -- making a tree valid --------------------------------------------------------------------------


@cache
def _schema() -> _Schema | None:
    for path in _package_files("", ".xsd"):
        if path.stem == "ome-2016-06":
            return _Schema(path)
    return None  # pragma: no cover - ome_types without its schema


def make_valid(root: ET.Element) -> None:
    """Change a tree so that it is valid against the OME 2016-06 schema.

    Children are put in order; what the schema does not allow, repeated IDs and references to
    what is not there are left out or renamed.
    """
    schema = _schema()
    if schema is None:  # pragma: no cover
        return
    declaration = schema.elements["OME"]
    _clean(schema, root, declaration)
    while _prune_references(schema, root, declaration):
        _clean(schema, root, declaration)


def _clean(schema: _Schema, element: ET.Element, declaration: ET.Element) -> bool:
    """Make one element valid; False if it cannot be."""
    rule = schema.rule(declaration)
    if not _clean_attributes(schema, element, rule):
        return False
    if rule.anything:
        _release(schema, element)
        return True
    if rule.text is not None:
        text = schema.value(rule.text, element.text or "")
        element[:] = []
        element.text = text
        return text is not None
    element.text = None
    return _clean_children(schema, element, rule)


def _clean_attributes(schema: _Schema, element: ET.Element, rule: _Rule) -> bool:
    kept = {}
    for name, value in element.attrib.items():
        known = rule.attributes.get(name)
        if known is not None:
            fitting = schema.value(known.type, value)
            if fitting is not None:
                kept[name] = fitting
    for name in [n for n in element.attrib if n.endswith("Unit")]:
        # A number whose unit nobody knows is worse than none: it would get the default unit.
        if name not in kept and name in rule.attributes:
            kept.pop(name.removesuffix("Unit"), None)
    if kept != element.attrib:
        element.attrib.clear()
        element.attrib.update(kept)
    return all(name in kept for name, known in rule.attributes.items() if known.required)


def _clean_children(schema: _Schema, element: ET.Element, rule: _Rule) -> bool:
    places = {
        name: (index, slot, declaration)
        for index, slot in enumerate(rule.slots)
        for name, declaration in slot.elements.items()
    }
    counts = [0] * len(rule.slots)
    taken: dict[int, int] = {}
    kept: list[tuple[int, ET.Element]] = []
    for child in element:
        space, local = _split(child.tag)
        place = places.get(local) if space == OME_NS else None
        if place is None:
            continue
        index, slot, declaration = place
        if counts[index] >= slot.most:
            continue
        if slot.choice is not None and taken.get(slot.choice[0], slot.choice[1]) != slot.choice[1]:
            continue
        if not _clean(schema, child, declaration):
            continue
        counts[index] += 1
        if slot.choice is not None:
            taken[slot.choice[0]] = slot.choice[1]
        child.tail = None
        kept.append((index, child))
    kept.sort(key=lambda pair: pair[0])
    element[:] = [child for _, child in kept]
    return all(
        count >= slot.least if slot.choice is None else not slot.least or slot.choice[0] in taken
        for count, slot in zip(counts, rule.slots, strict=True)
    )


def _release(schema: _Schema, element: ET.Element) -> None:
    """Free content (of an XMLAnnotation): only what looks like OME's own is checked, so free it."""
    element.text = None
    for child in element:
        child.tail = None
        for node in child.iter():
            for key in [k for k in node.attrib if k.startswith(f"{{{XSI_NS}}}")]:
                del node.attrib[key]
            space, local = _split(node.tag)
            if space == OME_NS and local in schema.elements:
                node.tag = local


def _prune_references(schema: _Schema, root: ET.Element, declaration: ET.Element) -> bool:
    """Make IDs unique and leave out references to what is not there; True if any went."""
    found = _References(schema)
    found.visit(root, declaration)
    return found.prune()


class _References:
    """The IDs of a (clean) tree, and what refers to them."""

    def __init__(self, schema: _Schema) -> None:
        self._schema = schema
        self._known: dict[str, set[str]] = {}
        self._copies: dict[str, int] = {}
        self._uses: list[tuple[ET.Element, ET.Element, str, str]] = []
        self._in_wells: set[str] = set()
        self._changed = False

    def visit(self, parent: ET.Element, declaration: ET.Element) -> None:
        rule = self._schema.rule(declaration)
        if rule.anything:
            return
        children = {n: d for slot in rule.slots for n, d in slot.elements.items()}
        for child in list(parent):
            inner = children[_split(child.tag)[1]]
            self._note(parent, child, self._schema.rule(inner))
            self.visit(child, inner)

    def _note(self, parent: ET.Element, child: ET.Element, rule: _Rule) -> None:
        for name, kind in rule.identifiers:
            value = child.get(name)
            if value is None:
                continue
            if name != "ID" or rule.reference:
                self._uses.append((parent, child, name, kind))
                continue
            ids = self._known.setdefault(kind, set())
            if value in ids:
                child.set(name, value := self._renamed(value, ids))
            ids.add(value)
        if child.tag == f"{{{OME_NS}}}ImageRef" and parent.tag == f"{{{OME_NS}}}WellSample":
            image = child.get("ID", "")
            if image in self._in_wells:  # an image is in one well only
                parent.remove(child)
                self._changed = True
            self._in_wells.add(image)

    def _renamed(self, value: str, ids: set[str]) -> str:
        base = value
        while value in ids:
            self._copies[base] = self._copies.get(base, 1) + 1
            value = f"{base}-{self._copies[base]}"
        return value

    def prune(self) -> bool:
        for parent, child, name, kind in self._uses:
            if child.get(name) in self._known.get(kind, ()):
                continue
            self._changed = True
            if name != "ID":
                del child.attrib[name]
            elif child in list(parent):
                parent.remove(child)
        return self._changed
