"""What every section of a recipe is, and the kinds of text and numbers that stand in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Self, Union, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mrt5cli import bounds, places
from mrt5cli.errors import UserError

# Text in a recipe is prose, or one line (a path, an id, a column), or becomes part of a file's name.
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
"""A path, or a name that is no path; see `places.place`."""


SEED = "{seed}"
"""What stands for the recipe's own seed in what a model starts from."""


def _start(text: str) -> str:
    if {*"{}"} & {*text.replace(SEED, "")}:
        raise ValueError(f"{text!r}: braces are only for {SEED}, which stands for the recipe's seed")
    return text


Start = Annotated[Place, AfterValidator(_start)]
"""What a model starts from."""


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

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """The values of `kind` that choose this section; none where there is nothing to choose."""
        field = cls.model_fields.get("kind")
        return get_args(field.annotation) if field else ()

    def misfits(self) -> Iterator[tuple[str, str]]:
        """The problems of a `Misfit`: settings that do not fit together; sections override it."""
        yield from ()

    def is_default(self, key: str) -> bool:
        """Whether a key has the value that it has where it is not given."""
        return bool(getattr(self, key) == type(self).model_fields[key].default)


def union_of(sections: Sequence[type[Section]]) -> Any:
    """The type of a value that is any of some sections, told apart by `kind`."""
    return Union[tuple(sections)]  # noqa: UP007 - of a list that grows


_made_of_kinds: list[Callable[[], None]] = []


def when_kinds_are_added(make_again: Callable[[], None]) -> Callable[[], None]:
    """Register what makes a schema again after a file of the user's own has added a kind to it."""
    _made_of_kinds.append(make_again)
    return make_again


def take_in_added_kinds() -> None:
    """Make again whatever is made of the lists of kinds."""
    for make_again in _made_of_kinds:
        make_again()
