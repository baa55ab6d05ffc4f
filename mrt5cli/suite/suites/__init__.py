"""Suites, the lists of experiments, as YAML files in this folder, and their reader.

A file contains `experiments`, a list of `jobs.Experiment`, and optionally `machine`, `gpu` (the default) or
`cpu`. An experiment's `recipes` lists names of shipped recipes, or globs such as `multilingual_v3/*`, which
expand to all matches that no earlier entry named, sorted by name.
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
    """The content of a suite file."""

    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1)]
    machine: Machine = "gpu"


def suite_names() -> list[str]:
    """The names of the shipped suites."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_suite(name_or_path: str | Path, *, recipes: Iterable[str] | None = None) -> list[Experiment]:
    """The experiments of a shipped suite, or of a file.

    Args:
        recipes: recipe names that experiments may use; by default the shipped ones.

    Raises:
        UserError: the suite does not exist.
        RecipeError: the suite is wrong; lists all problems.
    """
    path = FOLDER / f"{name_or_path}.yaml" if str(name_or_path) in suite_names() else Path(name_or_path)
    if not path.is_file():
        near = nearest(str(name_or_path), suite_names())
        raise UserError(
            f"no suite {str(name_or_path)!r}: expected {', '.join(suite_names())} or an existing file",
            f"did you mean {near}?" if near else None,
        )
    try:
        suite = TypeAdapter(SuiteFile).validate_json(json.dumps(read(path).tree))
    except ValidationError as error:
        # pydantic skips invalid experiments, and then also reports a list of one as too short.
        found = [item for item in error.errors() if item["loc"] != ("experiments",)] or error.errors()
        raise RecipeError(path.name, [_problem(item) for item in found]) from None
    known = list(shipped() if recipes is None else recipes)
    problems = [
        problem for place in range(len(suite.experiments)) for problem in _misfits(suite, place, known)
    ]
    if problems:
        raise RecipeError(path.name, problems, "list the shipped recipes with `mrt5 recipe list`")
    return [
        replace(entry, machine=entry.machine or suite.machine, recipes=_spelt_out(entry, known))
        for entry in suite.experiments
    ]


def _spelt_out(entry: Experiment, known: Sequence[str]) -> tuple[str, ...]:
    """An experiment's recipes, with its globs expanded."""
    return tuple(dict.fromkeys(name for glob in entry.recipes for name in fnmatch.filter(known, glob)))


def _misfits(suite: SuiteFile, place: int, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the invalid names and duplicates in an experiment, as (key, problem)."""
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
        text = f"{entry.baseline} is not one of the experiment's recipes{_meant(entry.baseline, own)}"
        yield f"{where}.baseline", text
    if twice := [seed for n, seed in enumerate(entry.seeds) if seed in entry.seeds[:n]]:
        yield f"{where}.seeds", f"{twice[0]} is listed twice; both runs would be the same"
    if entry.id in [other.id for other in suite.experiments[:place]]:
        yield f"{where}.id", f"another experiment is also called {entry.id}"


def _problem(item: ErrorDetails) -> tuple[str, str]:
    """One of pydantic's problems, as (key, problem)."""
    if item["type"] == "unexpected_keyword_argument":
        return dotted(item["loc"]), f"unknown key{_meant(str(item['loc'][-1]), KEYS)}"
    return dotted(item["loc"]), item["msg"]


def _meant(name: str, names: Iterable[str]) -> str:
    near = nearest(name, names)
    return f"; did you mean {near}?" if near else ""
