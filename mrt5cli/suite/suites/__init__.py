"""Suites: which experiments there are, as YAML beside this file, and the one reader of it.

The file is a mapping of `experiments`, a list of `jobs.Experiment`, and of `machine`, what they are made for:
`gpu`, unless it says `cpu`. An experiment's `recipes` holds shipped names, or globs of them such as
`multilingual_v3/*`, which stand for every match that no entry before named, in the order of the names.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from mrt5cli.errors import RecipeError, UserError
from mrt5cli.recipe.loading import read, shipped
from mrt5cli.recipe.words import dotted, nearest
from mrt5cli.suite.jobs import CLOSED, Evaluation, Experiment, Machine

GLOB = set("*?[")
HINT = f"the keys of an experiment: {', '.join(field.name for field in fields(Experiment))}"


@dataclass(frozen=True, config=CLOSED)
class SuiteFile:
    """A whole suite, as it is written."""

    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1)]
    machine: Machine = "gpu"


def suite_names() -> list[str]:
    """The suites that come with the toolkit."""
    folder = resources.files(__name__)
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_suite(name_or_path: str | Path, *, recipes: Iterable[str] | None = None) -> list[Experiment]:
    """The experiments of a suite that comes with the toolkit, or of a file.

    Args:
        recipes: names that experiments may use; by default the shipped ones.

    Raises:
        UserError: there is no such suite.
        RecipeError: everything that is wrong with it, all at once.
    """
    path = _file(name_or_path)
    tree = read(path).tree
    if not isinstance(tree, dict):
        raise RecipeError(path.name, [("", "the file is no suite; expected the key `experiments`")], HINT)
    try:
        suite = TypeAdapter(SuiteFile).validate_json(json.dumps(tree))
    except ValidationError as error:
        found = error.errors()
        # Experiments that are wrong do not count, and then too few are left.
        told = [item for item in found if item["type"] != "too_short" or len(found) == 1]
        raise RecipeError(path.name, [_problem(item) for item in told], HINT) from None
    known = list(shipped() if recipes is None else recipes)
    problems: list[tuple[str, str]] = []
    experiments = [
        replace(
            entry,
            machine=entry.machine or suite.machine,
            recipes=_recipes(entry, f"experiments[{place}]", known, problems),
        )
        for place, entry in enumerate(suite.experiments)
    ]
    seen: set[str] = set()
    for place, entry in enumerate(suite.experiments):
        if entry.id in seen:
            problems.append((f"experiments[{place}].id", f"{entry.id} is another experiment's"))
        seen.add(entry.id)
    if problems:
        raise RecipeError(path.name, problems, "`mrt5 recipe list` shows the shipped recipes")
    return experiments


def _file(name_or_path: str | Path) -> Path:
    inside = Path(str(resources.files(__name__))) / f"{name_or_path}.yaml"
    if inside.is_file() and "/" not in str(name_or_path):
        return inside
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    names = suite_names()
    near = nearest(str(name_or_path), names)
    raise UserError(
        f"no suite {str(name_or_path)!r}: neither one of {', '.join(names)} nor a file",
        f"did you mean {near}?" if near else None,
    )


def _recipes(
    entry: Experiment, where: str, known: list[str], problems: list[tuple[str, str]]
) -> tuple[str, ...]:
    """An experiment's recipes with globs spelt out; what is wrong with the experiment goes to `problems`."""
    names: list[str] = []
    for place, pattern in enumerate(entry.recipes):
        key = f"{where}.recipes[{place}]"
        if GLOB.isdisjoint(pattern):
            _check_known(pattern, key, known, problems)
            if pattern in names:
                problems.append((key, f"{pattern} is there already"))
            names.append(pattern)
            continue
        found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            problems.append((key, f"no shipped recipe matches {pattern}"))
        names += [name for name in found if name not in names]
    empty = [key for key in ("title", "about") if not getattr(entry, key)]
    problems += [(f"{where}.{key}", "required, and must not be empty") for key in empty]
    if entry.baseline is not None and entry.baseline not in names:
        near = nearest(entry.baseline, names)
        hint = f"; did you mean {near}?" if near else ""
        problems.append((f"{where}.baseline", f"{entry.baseline} is none of the experiment's recipes{hint}"))
    for place, evaluation in enumerate(entry.evaluations):
        if evaluation.task is not None:
            _check_known(evaluation.task, f"{where}.evaluations[{place}].task", known, problems)
    twice = sorted({seed for seed in entry.seeds if entry.seeds.count(seed) > 1})
    if twice:
        problems.append((f"{where}.seeds", f"listed twice: {', '.join(map(str, twice))}"))
    return tuple(names)


def _check_known(name: str, key: str, known: Sequence[str], problems: list[tuple[str, str]]) -> None:
    if name not in known:
        near = nearest(name, known)
        problems.append((key, f"no shipped recipe {name!r}{f'; did you mean {near}?' if near else ''}"))


def _problem(item: ErrorDetails) -> tuple[str, str]:
    """One of pydantic's problems: where, and what."""
    *parents, key = item["loc"]
    place = dotted(tuple(item["loc"]))
    if item["type"] != "unexpected_keyword_argument":
        found = "" if item["type"] == "missing" else f", not {item['input']!r}"
        return place, f"{item['msg'][0].lower()}{item['msg'][1:]}{found}"
    owner: type = Evaluation if "evaluations" in parents else Experiment if parents else SuiteFile
    near = nearest(str(key), [field.name for field in fields(owner)])
    return place, f"unknown key; did you mean {near}?" if near else "unknown key"
