"""Plate: the wells of a high-content screen and the images (fields) taken in them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Acquisition:
    """One run over a plate."""

    id: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """One image taken in a well.

    Attributes
    ----------
    path : str
        Name of the image in its well.
    acquisition : int or None
        The `Acquisition.id` it belongs to.
    series : int or None
        Number of the image in the file; None where the images come in the order of the fields.
    """

    path: str
    acquisition: int | None = None
    series: int | None = None


@dataclass(frozen=True, slots=True)
class Well:
    """One well and its fields.

    Attributes
    ----------
    row, column : str
        Their names, as in `Plate.rows` and `Plate.columns`.
    fields : tuple of Field
        The images of the well.
    """

    row: str
    column: str
    fields: tuple[Field, ...] = ()

    @property
    def path(self) -> str:
        """Row and column, ``"A/1"``."""
        return f"{self.row}/{self.column}"


@dataclass(frozen=True, slots=True)
class Plate:
    """A plate with its rows and columns, and the wells that were imaged.

    Attributes
    ----------
    name : str
        "" for one without.
    rows, columns : tuple of str
        All names, also of rows and columns without an image.
    wells : tuple of Well
        With their fields; unless these say otherwise, the series come in this order.
    acquisitions : tuple of Acquisition
        Runs over the plate, where they are told apart.
    """

    name: str = ""
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    wells: tuple[Well, ...] = ()
    acquisitions: tuple[Acquisition, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Where each image lies in the plate, ``"A/1/0"``: first all fields of the first well."""
        return tuple(f"{well.path}/{field.path}" for well in self.wells for field in well.fields)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number of the series that lies at each of `paths`."""
        fields = (field for well in self.wells for field in well.fields)
        return tuple(n if f.series is None else f.series for n, f in enumerate(fields))

    def core(self) -> Plate:
        """Return itself, as the plate of a stream's settings returns one like it."""
        return self

    def series(self, row: str, column: str, field: int = 0) -> int:
        """Return the number of the image (the series) of a field.

        Parameters
        ----------
        row, column : str
            Names of the well's row and column.
        field : int
            Number of the field in the well, from 0.

        Raises
        ------
        KeyError
            There is no such image.
        """
        number = 0
        for well in self.wells:
            if (well.row, well.column) == (str(row), str(column)):
                if not 0 <= field < len(well.fields):
                    raise KeyError(
                        f"well {well.path} has {len(well.fields)} fields, no number {field}"
                    )
                return self.numbers[number + field]
            number += len(well.fields)
        raise KeyError(f"no image was taken in well {row}/{column}")
