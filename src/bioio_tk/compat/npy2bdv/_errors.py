"""Errors that are what npy2bdv raises, and say more."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from bioio_tk.errors import BioIOError, RegionError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

APPENDED = "Appended affine transformation using npy2bdv."
"""What a transform is called that comes without a name."""


class RefusedError(SpecError, RegionError, AssertionError):
    """What npy2bdv asserts."""


class NoFileError(BioIOError, FileNotFoundError, AssertionError):
    """One of the two files of a dataset is not there."""


class NoViewError(RegionError, KeyError):
    """A view or a resolution that is not in the file."""

    __str__ = Exception.__str__  # a KeyError shows its text in quotation marks


@contextmanager
def asserted() -> Iterator[None]:
    """Raise what makes no sense as the AssertionError that programs may wait for."""
    try:
        yield
    except RefusedError:
        raise
    except (SpecError, RegionError) as exc:
        raise RefusedError(str(exc)) from exc


@contextmanager
def looked_up() -> Iterator[None]:
    """Raise what is not there as the KeyError that programs may wait for."""
    try:
        yield
    except KeyError:
        raise
    except (SpecError, RegionError) as exc:
        raise NoViewError(str(exc)) from exc


def refuse(condition: object, text: str) -> None:
    """Raise `RefusedError` where a condition holds."""
    if condition:
        raise RefusedError(text)
