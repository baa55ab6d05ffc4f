"""Published numbers without a recipe, recipes without a published number: `unmatched.yaml` and its reader.

What a recipe is held against stands in its own `paper.rows`. The rest is listed, so that nothing is left out
unsaid: a number comes from an analysis of several runs or of none, or it is not reproduced, for a reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Annotated

from pydantic import Field, model_validator

from mrt5cli.paper.published import Published, published
from mrt5cli.recipe.section import Section, Text
from mrt5cli.recipe.strict_yaml import parse


class Numbers(Section):
    """Some of the published numbers: all of a version's experiment, or those of the given ids."""

    version: Text | None = None
    experiment: Text | None = None
    rows: Annotated[list[Text], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Numbers:
        group = (self.version is not None, self.experiment is not None)
        if not (all(group) if self.rows is None else not any(group)):
            raise ValueError("give version and experiment, or rows")
        return self

    def choose(self, numbers: Iterable[Published]) -> list[str]:
        """Their ids among `numbers`, in that order."""
        if self.rows is not None:
            return [number.id for number in numbers if number.id in self.rows]
        wanted = (self.version, self.experiment)
        return [number.id for number in numbers if (number.version, number.experiment) == wanted]


class FromAnalysis(Section):
    """Numbers that an analysis of an experiment of the suite gives."""

    experiment: Text
    analysis: Text
    numbers: Numbers
    reason: Text


class Without(Section):
    """Numbers that nothing here is held against."""

    numbers: Numbers
    reason: Text


class Unpublished(Section):
    """Recipes of the suite for which nothing was published."""

    recipes: Annotated[list[Text], Field(min_length=1)]
    reason: Text


class Unmatched(Section):
    """The whole file."""

    analyses: list[FromAnalysis]
    without: list[Without]
    recipes: list[Unpublished]


@cache
def unmatched() -> Unmatched:
    """The file that comes with the package.

    Raises:
        ValueError: a part of it chooses no number, ids that are none, or something chosen before.
    """
    text = (resources.files("mrt5cli.paper") / "unmatched.yaml").read_text(encoding="utf-8")
    return check(Unmatched.model_validate_json(json.dumps(parse(text).tree)), published())


def check(found: Unmatched, numbers: Mapping[str, Published]) -> Unmatched:
    """The same, once every part chooses numbers there are, and none twice.

    Raises:
        ValueError: see `unmatched`.
    """
    seen: set[str] = set()
    parts: list[FromAnalysis | Without] = [*found.analyses, *found.without]
    for part in parts:
        chosen = part.numbers.choose(numbers.values())
        unknown = sorted(set(part.numbers.rows or ()) - set(chosen))
        twice = sorted(seen & set(chosen))
        if unknown or twice or not chosen:
            what = f"unknown: {unknown}" if unknown else f"chosen before: {twice}" if twice else "no number"
            raise ValueError(f"unmatched.yaml, {part.reason!r}: {what}")
        seen |= set(chosen)
    return found


@cache
def from_analyses() -> Mapping[str, FromAnalysis]:
    """Which analysis gives a number, by the number's id."""
    return MappingProxyType({id_: part for part in unmatched().analyses for id_ in _ids(part)})


@cache
def without() -> Mapping[str, str]:
    """Why a number is not reproduced, in a phrase, by the number's id."""
    return MappingProxyType({id_: part.reason for part in unmatched().without for id_ in _ids(part)})


@cache
def unpublished() -> Mapping[str, str]:
    """Why nothing published stands beside a recipe, in a phrase, by the recipe's name."""
    return MappingProxyType({name: part.reason for part in unmatched().recipes for name in part.recipes})


def _ids(part: FromAnalysis | Without) -> list[str]:
    return part.numbers.choose(published().values())
