"""The base class of recipe sections, and the types of text and numbers they contain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Self, Union, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mrt5cli import bounds, places
from mrt5cli.errors import UserError

# Text in a recipe is prose, one line (a path, an id, a column), or part of a file name.
PROSE = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+$"
ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f]+$"
CODE = r"^[^./\\\x00-\x1f\x7f-\x9f][^/\\\x00-\x1f\x7f-\x9f]*$"
NAME = r"^[a-z0-9][a-z0-9._-]*$"
DURATION = r"^[0-9]{1,6}[smh]$"

Text = Annotated[str, Field(min_length=1, max_length=bounds.TEXT, pattern=PROSE)]
Line = Annotated[str, Field(min_length=1, max_length=bounds.LINE, pattern=ONE_LINE)]
Language = Annotated[str, Field(min_length=1, max_length=bounds.NAME, pattern=CODE)]
Name = Annotated[str, Field(max_length=bounds.NAME, pattern=NAME)]
Duration = Annotated[str, Field(pattern=DURATION)]
Languages = Annotated[list[Language], Field(min_length=1, max_length=bounds.LANGUAGES)]

Seed = Annotated[int, Field(ge=0, le=bounds.SEED)]
Steps = Annotated[int, Field(ge=1, le=bounds.STEPS)]
StepsOrNone = Annotated[int, Field(ge=0, le=bounds.STEPS)]
Examples = Annotated[int, Field(ge=1, le=bounds.EXAMPLES)]
BatchSize = Annotated[int, Field(ge=1, le=bounds.BATCH)]
InputLength = Annotated[int, Field(ge=16, le=bounds.LENGTH)]
TargetLength = Annotated[int, Field(ge=1, le=bounds.LENGTH)]
Layers = Annotated[int, Field(ge=1, le=bounds.LAYERS)]
Width = Annotated[int, Field(ge=1, le=bounds.WIDTH)]

HeldExamples = Annotated[int, Field(ge=1, le=bounds.HELD_EXAMPLES)]
LayerIndex = Annotated[int, Field(ge=0, lt=bounds.LAYERS)]
Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
Coefficient = Annotated[float, Field(ge=-bounds.COEFFICIENT, le=bounds.COEFFICIENT)]
Weight = Annotated[float, Field(ge=1 / bounds.COEFFICIENT, le=bounds.COEFFICIENT)]
NonNegative = Annotated[float, Field(ge=0.0, le=bounds.COEFFICIENT)]
GateValue = Annotated[float, Field(ge=-bounds.COEFFICIENT, le=-bounds.SMALLEST)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
DropProbability = Annotated[float, Field(ge=0.0, lt=1.0)]


def _place(text: str) -> str:
    try:
        return places.place(text)
    except UserError as error:
        raise ValueError(f"{error.message}; {error.hint}") from None


Place = Annotated[Line, AfterValidator(_place)]
"""A path or another name; see `places.place`."""


SEED = "{seed}"
"""Placeholder for the recipe's seed in `model.start`."""


def _start(text: str) -> str:
    if {*"{}"} & {*text.replace(SEED, "")}:
        raise ValueError(f"{text!r}: the only braces allowed are {SEED}, for the recipe's seed")
    return text


Start = Annotated[Place, AfterValidator(_start)]
"""The value of `model.start`."""


class Misfit(ValueError):
    """Settings that are valid on their own but not together.

    Args:
        problems: pairs of (key relative to the section that raises this, what is wrong with it).
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key}: {text}" for key, text in problems))
        self.problems = problems


class Section(BaseModel):
    """Base class of sections: unknown keys are refused, values are immutable, nothing is converted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if problems := list(self.misfits()):
            raise Misfit(problems)
        return self

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """The values of `kind` that select this section; empty if it has no kinds."""
        field = cls.model_fields.get("kind")
        return get_args(field.annotation) if field else ()

    def misfits(self) -> Iterator[tuple[str, str]]:
        """Pairs for a `Misfit`: settings that contradict each other. Sections override it."""
        yield from ()

    def is_default(self, key: str) -> bool:
        """Whether a key has its default value."""
        return bool(getattr(self, key) == type(self).model_fields[key].default)


def union_of(sections: Sequence[type[Section]]) -> Any:
    """The union of section types, discriminated by `kind`."""
    return Union[tuple(sections)]  # noqa: UP007 - the list is dynamic


_made_of_kinds: list[Callable[[], None]] = []


def when_kinds_are_added(make_again: Callable[[], None]) -> Callable[[], None]:
    """Register a function that rebuilds a schema after custom code has added a kind."""
    _made_of_kinds.append(make_again)
    return make_again


def take_in_added_kinds() -> None:
    """Rebuild everything that depends on the lists of kinds."""
    for make_again in _made_of_kinds:
        make_again()
