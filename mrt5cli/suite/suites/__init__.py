"""Suites: which experiments there are, as YAML beside this file, and the one reader of it.

The file is a mapping of `experiments`, a list of `jobs.Experiment`, and of `machine`, what they are made for:
`gpu`, unless it says `cpu`. An experiment's `recipes` holds shipped names, or globs of them such as
`multilingual_v3/*`, which stand for every match that no entry before named, in the order of the names.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from mrt5cli.errors import RecipeError, UserError
from mrt5cli.recipe.loading import read, shipped
from mrt5cli.recipe.words import dotted, nearest
from mrt5cli.suite.jobs import CLOSED, Evaluation, Experiment, Machine

FOLDER = Path(__file__).parent
KEYS = [field.name for section in (Experiment, Evaluation) for field in fields(section)]


@dataclass(frozen=True, config=CLOSED)
class SuiteFile:
    """A whole suite, as it is written."""

    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1)]
    machine: Machine = "gpu"


def suite_names() -> list[str]:
    """The suites that come with the toolkit."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_suite(name_or_path: str | Path, *, recipes: Iterable[str] | None = None) -> list[Experiment]:
    """The experiments of a suite that comes with the toolkit, or of a file.

    Args:
        recipes: names that experiments may use; by default the shipped ones.

    Raises:
        UserError: there is no such suite.
        RecipeError: everything that is wrong with it, all at once.
    """
    path = FOLDER / f"{name_or_path}.yaml" if str(name_or_path) in suite_names() else Path(name_or_path)
    if not path.is_file():
        near = nearest(str(name_or_path), suite_names())
        raise UserError(
            f"no suite {str(name_or_path)!r}: neither one of {', '.join(suite_names())} nor a file",
            f"did you mean {near}?" if near else None,
        )
    try:
        suite = TypeAdapter(SuiteFile).validate_json(json.dumps(read(path).tree))
    except ValidationError as error:
        # pydantic does not count a wrong experiment, and so also calls a list of one too short.
        found = [item for item in error.errors() if item["loc"] != ("experiments",)] or error.errors()
        raise RecipeError(path.name, [_problem(item) for item in found]) from None
    known = list(shipped() if recipes is None else recipes)
    problems = [
        problem for place in range(len(suite.experiments)) for problem in _misfits(suite, place, known)
    ]
    if problems:
        raise RecipeError(path.name, problems, "`mrt5 recipe list` shows the shipped recipes")
    return [
        replace(entry, machine=entry.machine or suite.machine, recipes=_spelt_out(entry, known))
        for entry in suite.experiments
    ]


def _spelt_out(entry: Experiment, known: Sequence[str]) -> tuple[str, ...]:
    """An experiment's recipes, the matches of its globs among them."""
    return tuple(dict.fromkeys(name for glob in entry.recipes for name in fnmatch.filter(known, glob)))


def _misfits(suite: SuiteFile, place: int, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What an experiment names that is not there, as (key, what is wrong)."""
    entry, where = suite.experiments[place], f"experiments[{place}]"
    names = [(f"{where}.recipes[{n}]", glob) for n, glob in enumerate(entry.recipes)]
    names += [
        (f"{where}.evaluations[{n}].task", one.task) for n, one in enumerate(entry.evaluations) if one.task
    ]
    for key, name in names:
        if not fnmatch.filter(known, name):
            yield key, f"no shipped recipe {name!r}{_meant(name, known)}"
    own = _spelt_out(entry, known)
    if entry.baseline is not None and entry.baseline not in own:
        text = f"{entry.baseline} is none of the experiment's recipes{_meant(entry.baseline, own)}"
        yield f"{where}.baseline", text
    if twice := [seed for n, seed in enumerate(entry.seeds) if seed in entry.seeds[:n]]:
        yield f"{where}.seeds", f"{twice[0]} is given twice; both runs would be the same"
    if entry.id in [other.id for other in suite.experiments[:place]]:
        yield f"{where}.id", f"{entry.id} is another experiment's"


def _problem(item: ErrorDetails) -> tuple[str, str]:
    """One of pydantic's problems: where, and what."""
    if item["type"] == "unexpected_keyword_argument":
        return dotted(item["loc"]), f"unknown key{_meant(str(item['loc'][-1]), KEYS)}"
    return dotted(item["loc"]), item["msg"]


def _meant(name: str, names: Iterable[str]) -> str:
    near = nearest(name, names)
    return f"; did you mean {near}?" if near else ""
