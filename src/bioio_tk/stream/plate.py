"""Plate: rows and columns of a well plate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from bioio_tk.core.plate import Acquisition, Well
from bioio_tk.core.plate import Plate as CorePlate
from bioio_tk.stream.model import Model

_STANDARD = {
    6: (2, 3),
    12: (3, 4),
    24: (4, 6),
    48: (6, 8),
    96: (8, 12),
    384: (16, 24),
    1536: (32, 48),
}


class Plate(Model):
    """A well plate: its name and all its rows and columns, imaged or not.

    Parameters
    ----------
    name : str or None
        What it is called; may be given without saying ``name=``.
    row_names, column_names : list of str
        All of them; ``rows`` and ``columns`` say the same.
    wells : tuple of bioio_tk.core.plate.Well, optional
        Wells and the images in them, where they are known beforehand.
    acquisitions : tuple of bioio_tk.core.plate.Acquisition, optional
        Runs over the plate, where they are told apart.

    Examples
    --------
    >>> plate = Plate("screen 7", rows=("A", "B"), columns=("1", "2", "3"))
    >>> plate.row_names, plate.columns
    (['A', 'B'], ('1', '2', '3'))
    """

    row_names: list[str] = Field(default_factory=list)
    column_names: list[str] = Field(default_factory=list)
    name: str | None = None
    wells: tuple[Well, ...] = ()
    acquisitions: tuple[Acquisition, ...] = ()

    def __init__(self, name: str | None = None, **fields: Any) -> None:
        super().__init__(**{"name": name, **fields})

    @classmethod
    def from_standard_wells(cls, num_wells_or_shape: int | tuple[int, int]) -> Plate:
        """Return a plate with rows A, B, ..., Z, AA, AB and columns 1, 2, and so on.

        Parameters
        ----------
        num_wells_or_shape : int or (int, int)
            6, 12, 24, 48, 96, 384 or 1536 wells, or the number of rows and of columns.

        Raises
        ------
        ValueError
            No plate has so many wells.
        """
        shape: Sequence[int]
        if isinstance(num_wells_or_shape, tuple):
            shape = num_wells_or_shape
            if [int(n) > 0 for n in shape] != [True, True]:
                raise ValueError(
                    "If providing a tuple for plate shape, it must be (n_rows, n_columns) with "
                    "positive integers."
                )
        elif num_wells_or_shape in _STANDARD:
            shape = _STANDARD[num_wells_or_shape]
        else:
            raise ValueError(
                f"Unrecognized standard plate size: {num_wells_or_shape}. "
                f"Supported sizes: {list(_STANDARD)}"
            )
        rows, columns = (int(n) for n in shape)
        return cls(
            row_names=[_letters(n) for n in range(rows)],
            column_names=[str(n + 1) for n in range(columns)],
        )

    @property
    def rows(self) -> tuple[str, ...]:
        """The same as `row_names`."""
        return tuple(self.row_names)

    @property
    def columns(self) -> tuple[str, ...]:
        """The same as `column_names`."""
        return tuple(self.column_names)

    def core(self) -> CorePlate:
        """Return the plate as readers and writers of files know it."""
        return CorePlate(self.name or "", self.rows, self.columns, self.wells, self.acquisitions)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        for short, long in (("rows", "row_names"), ("columns", "column_names")):
            if short not in data:
                continue
            if long in data:
                raise ValueError(f"{short} and {long} are the same: give one of them")
            data[long] = data.pop(short)
        return data

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        unset = [name for name in ("wells", "acquisitions") if not getattr(self, name)]
        return {name: value for name, value in dumped.items() if name not in unset}


def _letters(number: int) -> str:
    """Return the name of a row by its number from 0.

    >>> [_letters(n) for n in (0, 25, 26, 31, 701, 702)]
    ['A', 'Z', 'AA', 'AF', 'ZZ', 'AAA']
    """
    name = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        name = chr(ord("A") + letter) + name
    return name
