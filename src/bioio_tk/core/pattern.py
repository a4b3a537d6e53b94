"""Pattern: names of files with fields in them, ``img_t{t:ddd}_{c:c+}.tif``, matched and made."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from bioio_tk.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Value: TypeAlias = int | float | str
"""What a field stands for: a number where it is written in digits, else text."""

_PIECE = re.compile(r"\{\{|\}\}|\{[^{}]*\}|\.\*|[*?{}]|[^*?{}.]+|\.")
_WILD = {".*": "*", "*": "*", "?": "?"}
_WILD_REGEX = {"*": "[^/]*", "?": "[^/]"}
_NAME = re.compile(r"[A-Za-z_]\w*")
_OLD = re.compile(r"([rtczyxp])(\1+)?(\+)?")
_PADDED = re.compile(r"0([1-9]\d*)d?")
_FORM = re.compile(r"(?:[dcf.0]\+?)+")
_ONE = {"d": "[0-9]", "c": "[A-Za-z]", "f": "[0-9.]", ".": r"\.", "0": "0", "+": "+"}
_ANY = "[^/]+?"
_FIXED = re.compile(r"\{(\w+):d+\}")
_FITS = (
    "{t:d+} is a number, {t:ddd} or {t:03d} one with three digits, {c:c+} letters, {x:f+} a "
    "number with a point, {c} any text"
)


class _Field(NamedTuple):
    name: str
    regex: str
    width: int


class Pattern:
    """A path with fields, in the way of WIPP's `filepattern` or in Python's own.

    Parameters
    ----------
    text : str
        ``{name:form}`` is a field. In the form each ``d`` is one digit, ``c`` one letter, ``f``
        a digit or a point, ``.`` and ``0`` are themselves, and ``+`` is for one or more of what
        stands before it. Python's ``{name:04d}`` is a number with at least four digits, and
        ``{name}`` any text without a slash. The old ``{rrr}`` and ``{r+}`` are ``{r:ddd}`` and
        ``{r:d+}``. ``*``, ``.*`` and ``?`` match what they match in a shell, ``{{`` and ``}}``
        are braces; all else stands for itself.

    Raises
    ------
    SpecError
        A field is malformed, or its name comes twice.

    Notes
    -----
    The fields are those of https://filepattern.readthedocs.io. What stands outside of a field is
    a regular expression there, and plain text here.

    Examples
    --------
    >>> pattern = Pattern("img_r{r:ddd}_{channel:c+}.tif")
    >>> pattern.match("img_r012_DAPI.tif")
    {'r': 12, 'channel': 'DAPI'}
    >>> pattern.format({"r": 7, "channel": "GFP"})
    'img_r007_GFP.tif'
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = [self._part(piece) for piece in _PIECE.findall(text)]
        names = self.fields
        for name in names:
            if names.count(name) > 1:
                raise SpecError(
                    f"the pattern {text!r} has the field {name!r} twice; give each its own name"
                )
        self._regex = re.compile("".join(map(_regex, self._parts)))

    def _part(self, piece: str) -> str | _Field | _Wild:
        if piece in _WILD:
            return _Wild(_WILD[piece])
        if piece in ("{{", "}}"):
            return piece[0]
        if piece in ("{", "}"):
            raise SpecError(
                f"the pattern {self.text!r} has a {piece!r} without its other half; write it "
                "twice where it is a part of the name"
            )
        return self._field(piece[1:-1]) if piece[0] == "{" else piece

    def _field(self, inside: str) -> _Field:
        name, colon, form = inside.partition(":")
        old = _OLD.fullmatch(inside)
        if old is not None and len(inside) > 1:
            name, form = old[1], "d" * (1 + len(old[2] or "")) + (old[3] or "")
        elif not colon:
            form = "any"
        if _NAME.fullmatch(name):
            padded = _PADDED.fullmatch(form)
            if form == "any" and not colon:
                return _Field(name, _ANY, 0)
            if padded is not None:
                return _Field(name, f"[0-9]{{{padded[1]},}}", int(padded[1]))
            if _FORM.fullmatch(form):
                regex = "".join(_ONE[letter] for letter in form)
                return _Field(name, regex, len(form) if set(form) == {"d"} else 0)
        raise SpecError(f"{{{inside}}} in the pattern {self.text!r} is no field: {_FITS}")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in the order they stand in."""
        return tuple(part.name for part in self._parts if isinstance(part, _Field))

    @property
    def glob(self) -> str:
        """What finds in a shell at least all that match."""
        return "".join(
            part.sign if isinstance(part, _Wild) else
            "*" if isinstance(part, _Field) else part.replace("[", "[[]")
            for part in self._parts
        )  # fmt: skip

    def match(self, name: str) -> dict[str, Value] | None:
        """Return the value of each field, None where `name` does not match."""
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        return dict(zip(self.fields, map(value, found.groups()), strict=True))

    def fixed(self, name: str, fields: Collection[str]) -> str:
        """Return the pattern with some of its fields replaced by what `name` has there.

        >>> Pattern("img_r{r:ddd}_t{t:d+}.tif").fixed("img_r012_t3.tif", ["r"])
        'img_r012_t{t:d+}.tif'
        """
        found = self._regex.fullmatch(name)
        if found is None:
            raise SpecError(f"{name!r} does not fit the pattern {self.text!r}")
        texts = dict(zip(self.fields, found.groups(), strict=True))
        return "".join(
            texts[part.name] if isinstance(part, _Field) and part.name in fields else piece
            for piece, part in zip(_PIECE.findall(self.text), self._parts, strict=True)
        )

    def loosened(self) -> Pattern:
        """Return the pattern with numbers of any length where it has so many digits.

        ``{t:d}`` is one digit, which is easily overlooked where there are more than ten files.
        """
        return Pattern(_FIXED.sub(r"{\1:d+}", self.text))

    def format(self, values: Mapping[str, Value]) -> str:
        """Return the name that has these values; what is no field of it is left out.

        Raises
        ------
        SpecError
            A value is missing or does not fit its field, or the pattern has a wildcard.
        """
        if any(isinstance(part, _Wild) for part in self._parts):
            raise SpecError(
                f"the pattern {self.text!r} has a wildcard: it finds names, it cannot make them"
            )
        return "".join(
            part if isinstance(part, str) else self._written(part, values)  # type: ignore[arg-type]
            for part in self._parts
        )

    def _written(self, field: _Field, values: Mapping[str, Value]) -> str:
        if field.name not in values:
            raise SpecError(f"the pattern {self.text!r} needs a value for {field.name!r}")
        given = values[field.name]
        whole = isinstance(given, int) and not isinstance(given, bool)
        text = f"{given:0{field.width}d}" if whole else str(given)
        if re.fullmatch(field.regex, text) is None:
            raise SpecError(
                f"{field.name}={given!r} does not fit its field in the pattern {self.text!r}"
            )
        return text

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


class _Wild(NamedTuple):
    sign: str


def _regex(part: str | _Field | _Wild) -> str:
    if isinstance(part, str):
        return re.escape(part)
    return f"({part.regex})" if isinstance(part, _Field) else _WILD_REGEX[part.sign]


def has_fields(text: str) -> bool:
    """Return whether a path has something in braces.

    >>> has_fields("img_t{t:d+}.tif"), has_fields("img_*.tif")
    (True, False)
    """
    return re.search(r"\{[^{}]*\}", text) is not None


def has_wildcards(text: str) -> bool:
    """Return whether a path has what a shell would look for.

    >>> has_wildcards("img_*.tif"), has_wildcards("img.tif")
    (True, False)
    """
    return any(sign in text for sign in "*?[")


def value(text: str) -> Value:
    """Return the number that is written there, else the text.

    >>> value("007"), value("1.5"), value("DAPI"), value("1.5.2")
    (7, 1.5, 'DAPI', '1.5.2')
    """
    if re.fullmatch("[0-9]+", text):
        return int(text)
    if re.fullmatch(r"[0-9]+\.[0-9]*|\.[0-9]+", text):
        return float(text)
    return text


def natural(what: object) -> tuple[tuple[int, float, str], ...]:
    """Return a key that sorts as people do: numbers by their value, also inside of text.

    >>> sorted(["img10.tif", "img9.tif", "Img1.tif"], key=natural)
    ['Img1.tif', 'img9.tif', 'img10.tif']
    >>> sorted(["DAPI", 10, 9.5], key=natural)
    [9.5, 10, 'DAPI']
    """
    if isinstance(what, int | float):
        return ((0, what, ""),)
    text = str(what)
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    key = tuple((0, int(p), "") if p[0] in "0123456789" else (1, 0, p.casefold()) for p in parts)
    return (*key, (2, 0, text))
