"""Filters, sort orders, and the best run by a metric."""

from __future__ import annotations

import difflib
import fnmatch
import json
import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrt5cli.errors import UserError
from mrt5cli.metrics.catalog import METRICS, Better, Metric
from mrt5cli.metrics.results import Row, SavedEvaluation
from mrt5cli.runs.found import STATES, Entry, as_number
from mrt5cli.text import counted, listed, shortened

LOGGED: dict[str, Better | None] = {
    "cross_entropy": "lower",
    "bytes_per_second": "higher",
    **dict.fromkeys(("deletion_rate", "alpha", "seconds", "gate_loss", "score_loss", "learning_rate"), None),
    "grad_norm": None,
}
"""Metrics of training in metrics.jsonl, and which direction is better. Its `loss` is not among them, because
it includes the terms that control the gate: `loss` here is the cross-entropy of an evaluation."""
WORDS: dict[str, Callable[[Entry], list[str]]] = {
    "name": lambda run: [run.name, run.run.path.name],
    "state": lambda run: [run.state],
    "tag": lambda run: [*run.tags],
    "task": lambda run: [run.task or ""],
    "shortener": lambda run: [str(run.recipe.get("shortener", ""))],
    "start": lambda run: [str(run.recipe.get("start", ""))],
}
"""Keys whose values are text."""
TITLES = {"cross_entropy": "cross-entropy", "bytes_per_second": "bytes/s"}
OWN_NUMBERS = ("step", "steps", "target", "size", "age", "seed", "parameters")
UNITS = {"size": "bytes", "age": "seconds"}
"""Units of keys that a list shows in larger units."""
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_CONDITION = re.compile(r"([\w.]+)\s*(!=|<=|>=|=|<|>)\s*(.*)")
EXAMPLES = "state=finished, tag!=old, 'name=*mrt5*', 'cross_entropy<0.5'"


def numbers() -> list[str]:
    """Keys whose values are numbers."""
    return [*OWN_NUMBERS, *LOGGED, *(name for name in METRICS if name not in LOGGED)]


def check_key(option: str, key: str, known: Sequence[str]) -> None:
    """Raise UserError, with a hint that lists the known keys, unless a key is among them."""
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        first = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"{option}: unknown name {shortened(key)!r}", f"{first}known names: {listed(known, 60)}"
        )


def condition(text: str) -> Callable[[Entry], bool]:
    """The predicate of a condition: KEY=A,B or KEY!=A,B for text, where * and ? are wildcards; KEY<NUMBER and
    other comparisons, which a run without the number never meets; or part or a pattern of a name.

    Raises:
        UserError: the condition is invalid.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        pattern = text if re.search(r"[*?\[]", text) else f"*{text}*"
        return lambda run: any(fnmatch.fnmatchcase(name, pattern) for name in WORDS["name"](run))
    key, sign, value = match.groups()
    check_key("--filter", key, [*WORDS, *numbers()])
    if key in WORDS:
        if sign not in ("=", "!="):
            raise UserError(
                f"--filter {text}: {key} is text, so only = and != apply", f"for example {EXAMPLES}"
            )
        wanted = value.split(",")
        if key == "state" and (odd := [one for one in wanted if not fnmatch.filter(STATES, one)]):
            raise UserError(f"--filter {text}: {odd[0]!r} is not a state", f"states are {listed(STATES)}")
        return lambda run: (
            (sign == "=")
            == any(fnmatch.fnmatchcase(word, pattern) for word in WORDS[key](run) for pattern in wanted)
        )
    try:
        bounds = [float(one) for one in (value.split(",") if sign in ("=", "!=") else [value])]
    except ValueError:
        bounds = [math.nan]
    if any(math.isnan(bound) for bound in bounds):
        unit = UNITS.get(key)
        hint = f"{key} is in {unit}: for example {key}<3600" if unit else f"for example {EXAMPLES}"
        raise UserError(f"--filter {text}: {shortened(value)!r} is not a number", hint)

    def holds(run: Entry) -> bool:
        number = run.number(key)
        if number is None:
            return False
        return _COMPARE[sign](number, bounds[0]) if sign in _COMPARE else (sign == "=") == (number in bounds)

    return holds


def chosen(runs: Sequence[Entry], filters: Sequence[str]) -> list[Entry]:
    """The runs that meet all conditions."""
    conditions = [condition(text) for text in filters]
    return [run for run in runs if all(holds(run) for holds in conditions)]


def ordered(runs: Sequence[Entry], key: str, backwards: bool) -> list[Entry]:
    """Runs sorted by a key, those without a value last in either order; ties are sorted by name."""
    check_key("--sort", key, [*WORDS, *numbers()])
    runs = sorted(runs, key=lambda run: run.name)
    value: Callable[[Entry], object] = lambda run: run.number(key)
    if key in WORDS:
        value = lambda run: ",".join(WORDS[key](run)[:1] if key == "name" else WORDS[key](run)) or None
    known = [run for run in runs if value(run) is not None]
    known.sort(key=value, reverse=backwards)  # type: ignore[arg-type]
    return known + [run for run in runs if value(run) is None]


# --- the best -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """Runs ranked by a metric, the best first, all measured under the same conditions.

    Attributes:
        of: the conditions as text: training, or the task, split and deletion mode of the evaluations.
        remarks: sentences about runs that were left out.
    """

    metric: Metric
    of: str
    better: Better
    runs: list[tuple[Entry, float]]
    remarks: list[str]

    @property
    def best(self) -> tuple[Entry, float]:
        return self.runs[0]


def rank(runs: Sequence[Entry], metric: str, *, split: str = "test", soft: bool = False) -> Ranked:
    """Rank the runs that have a metric. Ties keep the run that ended first.

    Metrics of training are those of the last logged line. Evaluations are compared on one task and under the
    same conditions, the ones under which most runs were evaluated.

    Raises:
        UserError: no run has the metric, neither direction of it is better, or runs have it on several tasks.
    """
    remarks: list[str] = []
    if metric in LOGGED and metric not in METRICS:
        direction, one = (
            LOGGED[metric],
            Metric(metric, TITLES.get(metric, metric.replace("_", " ")), digits=4),
        )
        of = "of training, last logged line"
        found = [(run, run.logged[metric]) for run in runs if metric in run.logged]
    else:
        known = {name for run in runs for _, saved in run.evaluations for name in saved.rows[-1].others}
        check_key("--metric", metric, list(dict.fromkeys([*METRICS, *LOGGED, *sorted(known)])))
        one = METRICS.get(metric) or Metric(metric, metric, digits=4, better="higher")
        direction = one.better
        if direction is None:
            raise _no_direction(metric)
        found, of, remarks = _evaluated(runs, metric, split, "soft" if soft else "hard")
    if direction is None:
        raise _no_direction(metric)
    if not found:
        there = sorted({name for run in runs for name in _measured(run)})
        if not runs:
            raise UserError("there are no runs to choose from", "run `mrt5 runs` to list all runs")
        many = counted(len(runs), "run")
        raise UserError(
            f"none of {many} has {metric} {of}",
            f"available: {listed(there, 40)}" if there else "evaluate a run first: mrt5 evaluate RUN",
        )
    sign = 1 if direction == "lower" else -1
    found.sort(key=lambda pair: (sign * pair[1], pair[0].meta.get("ended") or "~", pair[0].name))
    return Ranked(one, of, direction, found, remarks)


def _no_direction(metric: str) -> UserError:
    ways = [name for name, one in METRICS.items() if one.better] + [
        name for name, way in LOGGED.items() if way
    ]
    return UserError(
        f"--metric {metric}: neither direction of this metric is better, so no run is best",
        f"choose one of {listed(ways, 40)}",
    )


def _measured(run: Entry) -> list[str]:
    rows = [saved.rows[-1] for _, saved in run.evaluations if saved.of_the_model_itself]
    names = [name for row in rows for name in (*METRICS, *row.others) if row.number(name) is not None]
    logged = [name for name, way in LOGGED.items() if way and name in run.logged]
    return [name for name in names if name not in METRICS or METRICS[name].better] + logged


def _conditions(path: Path, saved: SavedEvaluation) -> str:
    """The conditions that must be equal for two evaluations to be comparable."""
    keys = ("task", "settings", "limit", "languages", "constrained", "normalization", "generation")
    return json.dumps({key: saved.model_dump(mode="json")[key] for key in keys}, sort_keys=True)


def _evaluated(
    runs: Sequence[Entry], metric: str, split: str, deletion: str
) -> tuple[list[tuple[Entry, float]], str, list[str]]:
    """Each run's metric under the conditions of most runs, these conditions as text, and remarks."""
    by_condition: dict[str, list[tuple[Entry, SavedEvaluation, Row]]] = defaultdict(list)
    for run in runs:
        for path, saved in run.evaluations:
            right = saved.of_the_model_itself and (saved.split, saved.deletion) == (split, deletion)
            if right and as_number(saved.rows[-1].number(metric)) is not None:
                by_condition[_conditions(path, saved)].append((run, saved, saved.rows[-1]))
    of = f"in an evaluation of its finished model on {split} data with {deletion} deletion"
    if not by_condition:
        return [], of, []
    groups = sorted(by_condition.values(), key=lambda group: (-len(group), -group[0][2].examples))
    tasks = list(dict.fromkeys(group[0][1].task for group in groups))
    if len(tasks) > 1:
        raise UserError(
            f"{metric} was measured on several tasks, which cannot be compared: {listed(tasks)}",
            f"choose one, for example --filter task={tasks[0]}",
        )
    group = groups[0]
    said = f"{tasks[0]}, {split} split, {group[0][2].examples:,} examples, {deletion} deletion"
    left = {run.name for other in groups[1:] for run, *_ in other} - {run.name for run, *_ in group}
    remarks = []
    if left:
        one = "was" if len(left) == 1 else "were"
        remarks.append(f"left out {listed(sorted(left))}, which {one} evaluated under other conditions")
    return [(run, row.known(metric)) for run, _, row in group], said, remarks
