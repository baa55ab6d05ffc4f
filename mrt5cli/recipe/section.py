"""What every section of a recipe is, and the kinds of numbers that several of them have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mrt5cli import bounds

HeldExamples = Annotated[int, Field(ge=1, le=bounds.HELD_EXAMPLES)]
LayerIndex = Annotated[int, Field(ge=0, lt=bounds.LAYERS)]
Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
Coefficient = Annotated[float, Field(ge=-bounds.COEFFICIENT, le=bounds.COEFFICIENT)]
NonNegative = Annotated[float, Field(ge=0.0, le=bounds.COEFFICIENT)]
GateValue = Annotated[float, Field(ge=-bounds.COEFFICIENT, le=-bounds.SMALLEST)]


class Misfit(ValueError):
    """Settings that are each fine and do not fit together.

    Args:
        problems: pairs of (key below the section that raises this, what is wrong with it).
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key}: {text}" for key, text in problems))
        self.problems = problems


class Section(BaseModel):
    """Base of every section: unknown keys refused, values immutable, no silent conversions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if problems := list(self.misfits()):
            raise Misfit(problems)
        return self

    def misfits(self) -> Iterator[tuple[str, str]]:
        """What does not fit together here, as a `Misfit` tells it; for sections to say."""
        yield from ()

    def is_default(self, key: str) -> bool:
        """Whether a key has the value that it has where it is not given."""
        return bool(getattr(self, key) == type(self).model_fields[key].default)
