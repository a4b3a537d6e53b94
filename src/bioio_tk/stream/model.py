"""Model: what all settings of a stream have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Model(BaseModel):
    """Checked when it is made and whenever a field is set; unknown fields are refused.

    A field that is set is checked together with all others, and where it does not fit nothing
    has changed.
    """

    # what model_copy(update=...) has changed is checked where the copy is used
    model_config = ConfigDict(
        validate_default=True,
        validate_assignment=True,
        extra="forbid",
        revalidate_instances="always",
    )

    def __setattr__(self, name: str, value: Any) -> None:
        cls = type(self)
        if name not in cls.model_fields:
            super().__setattr__(name, value)
            return
        made = cls.model_validate({**self.__dict__, name: value}, context={"assigned": name})
        self.__dict__.update(made.__dict__)
        self.__pydantic_fields_set__.add(name)

    # what a subclass does before is done first: it may know other names for its fields
    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        known = cls.model_fields
        unknown = [name for name in data if name not in known] if isinstance(data, Mapping) else []
        if not unknown:
            return data
        guesses = [repr(meant) for name in unknown if (meant := _meant(str(name).lower(), known))]
        raise PydanticCustomError(
            "extra_forbidden",
            "Extra inputs are not permitted: {model} has no {names}; {remedy}",
            {
                "model": cls.__name__,
                "names": ", ".join(repr(name) for name in unknown),
                "remedy": f"did you mean {', '.join(guesses)}?"
                if len(guesses) == len(unknown)
                else f"it has {', '.join(known)}",
            },
        )


def _meant(name: str, known: Iterable[str]) -> str | None:
    """Return the field that begins so, or is spelled almost so."""
    begun = [field for field in known if field.startswith(name)]
    return next(iter(begun or get_close_matches(name, known, n=1, cutoff=0.75)), None)
